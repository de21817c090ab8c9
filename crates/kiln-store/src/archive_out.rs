//! Images going out: archives that docker, skopeo and containerd read alike, OCI archives and OCI directories.
//!
//! The bytes are a function of the images, their names, the form and the compression. A layer that came as a blob goes
//! out as that blob; a layer that kiln made is made again from its snapshot and index.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_layer::{Compression, Kind, Metadata, tar};
use kiln_oci::{
    Annotations, Descriptor, DiffId, Digest, Hasher, HashingWriter, ImageId, Index, Manifest, Reference,
    media_type,
};
use kiln_sys::publish;
use kiln_sys::root::Directory;
use serde::Serialize;

use crate::Store;
use crate::database::Durability;
use crate::error::{Error, Result};
use crate::images::Tag;
use crate::layers::NewBlob;
use crate::layout::layer_media_type;
use crate::lease::{Lease, Leased};

/// What an archive looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveForm {
    /// A tar of an OCI layout that has docker's `manifest.json` and `repositories` besides.
    Docker,
    /// A tar of an OCI layout.
    Oci,
}

/// An image to save, with the names that it is to have there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedImage {
    /// The image.
    pub id: ImageId,
    /// Its names; none if it was asked for by ID.
    pub names: Vec<Reference>,
    /// The manifest under which the image came by these names.
    pub(crate) came_as: Option<Digest>,
}

/// How images are saved.
#[derive(Clone, Copy)]
pub struct Saving<'a> {
    /// Of layers that did not come compressed.
    pub compression: Compression,
    /// Whether to give up: asked again and again, at least every 64 MiB.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

/// Bytes between two questions whether to give up.
const AT_ONCE: u64 = 64 << 20;

impl Saving<'_> {
    fn go_on(&self) -> io::Result<()> {
        if (self.stopped)() { Err(io::Error::other("stopped")) } else { Ok(()) }
    }

    /// What comes of saving; a failure after it was stopped is that it was stopped.
    fn told(&self, save: impl FnOnce() -> Result<()>) -> Result<()> {
        save().map_err(|error| if (self.stopped)() { Error::Stopped } else { error })
    }
}

/// Gives up between two writes.
struct Stoppable<'a, W> {
    output: &'a mut W,
    how: &'a Saving<'a>,
}

impl<W: io::Write> io::Write for Stoppable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.how.go_on()?;
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Where the bytes of a blob come from.
enum Bytes {
    /// A document.
    Document(Vec<u8>),
    /// A file of the store.
    Blob(Digest),
    /// The tar of a layer, made again; below it these.
    Made { layer: DiffId, below: Vec<DiffId> },
}

/// A blob of the archive.
struct Part {
    digest: Digest,
    size: u64,
    bytes: Bytes,
}

/// An archive that is about to be written.
struct Plan {
    documents: Vec<(&'static str, Vec<u8>)>,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct DockerImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    names: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
    #[serde(rename = "LayerSources")]
    sources: BTreeMap<DiffId, Descriptor>,
}

impl Store {
    /// What names and IDs mean to `save`: a name without a tag stands for all its tags, an ID for an image that will
    /// have no name.
    pub fn images_to_save(&self, texts: &[String]) -> Result<Vec<SavedImage>> {
        let mut chosen: Vec<SavedImage> = Vec::new();
        let mut add = |id: ImageId, name: Option<Reference>, came_as: Option<Digest>| {
            // Who does not ask for a manifest takes that of others.
            let same = |image: &SavedImage| {
                let either = image.came_as.is_none() || came_as.is_none();
                image.id == id && (either || image.came_as == came_as)
            };
            let position = chosen.iter().position(same).unwrap_or_else(|| {
                chosen.push(SavedImage { id, names: Vec::new(), came_as });
                chosen.len() - 1
            });
            let SavedImage { names, came_as: known, .. } = &mut chosen[position];
            *known = known.or(came_as);
            names.extend(name.filter(|name| !names.contains(name)));
        };
        for text in texts {
            let reference = text.parse::<Reference>().ok().filter(|name| name.digest.is_none());
            let all_tags: Vec<_> = match &reference {
                Some(name) if name.tag.is_none() => {
                    self.tags()?.into_iter().filter(|tag| tag.name.name() == name.name()).collect()
                }
                _ => Vec::new(),
            };
            if !all_tags.is_empty() {
                for Tag { name, image, .. } in all_tags {
                    let came_as = self.manifest_of(&name)?;
                    add(image, Some(name), came_as);
                }
                continue;
            }
            let named = match reference {
                Some(name) => self.find_name(&name)?.map(|id| (id, name)),
                None => None,
            };
            match named {
                Some((id, name)) => {
                    let came_as = self.manifest_of(&name)?;
                    add(id, Some(name), came_as);
                }
                None => {
                    // The digest of a reference is that of a manifest, or the ID.
                    let came_as = text.parse::<Reference>().ok().and_then(|name| name.digest);
                    add(self.resolve(text)?, None, came_as);
                }
            }
        }
        Ok(chosen)
    }

    /// Writes images as one archive; layers that they share are in it once.
    pub fn save(
        &self,
        lease: &Lease,
        images: &[SavedImage],
        form: ArchiveForm,
        how: &Saving<'_>,
        output: &mut File,
    ) -> Result<()> {
        how.told(|| {
            let plan = self.plan(lease, images, Some(form), how)?;
            self.write_archive(&plan, how, output)
        })
    }

    /// As [`Store::save`], to a file that appears under its name only when it is complete; else nothing of it stays.
    pub fn save_to_file(
        &self,
        lease: &Lease,
        images: &[SavedImage],
        form: ArchiveForm,
        how: &Saving<'_>,
        path: &Path,
    ) -> Result<()> {
        if fs_err::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            // A device or a pipe cannot be replaced.
            let file =
                fs_err::OpenOptions::new().write(true).open(path).map_err(Error::file("open", path))?;
            return self.save(lease, images, form, how, &mut file.into_file());
        }
        how.told(|| {
            let plan = self.plan(lease, images, Some(form), how)?;
            let (directory, name) = parent(path)?;
            let mut archive = publish::Unnamed::create(&directory, 0o600)?;
            self.write_archive(&plan, how, archive.file())?;
            Ok(archive.rename_over(name.as_ref())?)
        })
    }

    /// Writes images as an OCI layout into a directory that is made, or empty. It is filled under another name, which
    /// goes if that fails or is stopped; after a kill, with the next one that is written beside it.
    pub fn save_to_directory(
        &self,
        lease: &Lease,
        images: &[SavedImage],
        how: &Saving<'_>,
        path: &Path,
    ) -> Result<()> {
        how.told(|| {
            let plan = self.plan(lease, images, None, how)?;
            let (directory, name) = parent(path)?;
            let unfinished = publish::UnfinishedDirectory::create(&directory, 0o755)?;
            self.write_layout_files(&plan, how, unfinished.path())?;
            Ok(unfinished.rename_over(name.as_ref())?)
        })
    }

    fn write_layout_files(&self, plan: &Plan, how: &Saving<'_>, directory: &Path) -> Result<()> {
        let blobs = directory.join("blobs/sha256");
        fs_err::create_dir_all(&blobs).map_err(Error::file("make", &blobs))?;
        for (name, bytes) in &plan.documents {
            let path = directory.join(name);
            fs_err::write(&path, bytes).map_err(Error::file("write", &path))?;
        }
        for part in &plan.parts {
            let path = blobs.join(part.digest.hex());
            let file = fs_err::File::create_new(&path).map_err(Error::file("make", &path))?;
            self.write_part(part, how, &mut file.into_file())?;
        }
        Ok(())
    }

    fn write_archive(&self, plan: &Plan, how: &Saving<'_>, output: &mut File) -> Result<()> {
        let failed = |source| Error::Output { what: "the archive".to_owned(), source };
        let mut headers = Vec::new();
        for (name, bytes) in &plan.documents {
            header(name, Kind::Regular, bytes.len() as u64, &mut headers);
            headers.extend_from_slice(bytes);
            tar::pad(bytes.len() as u64, &mut headers);
        }
        for directory in ["blobs", "blobs/sha256"] {
            header(directory, Kind::Directory, 0, &mut headers);
        }
        for part in &plan.parts {
            header(&format!("blobs/sha256/{}", part.digest.hex()), Kind::Regular, part.size, &mut headers);
            output.write_all(&headers).map_err(failed)?;
            headers.clear();
            self.write_part(part, how, output)?;
            tar::pad(part.size, &mut headers);
        }
        headers.resize(headers.len() + 1024, 0);
        output.write_all(&headers).map_err(failed)
    }

    fn write_part(&self, part: &Part, how: &Saving<'_>, output: &mut File) -> Result<()> {
        let failed = |source| Error::Output { what: "the archive".to_owned(), source };
        let _span = kiln_trace::span("write blob").with_bytes(part.size);
        match &part.bytes {
            Bytes::Document(bytes) => output.write_all(bytes).map_err(failed),
            Bytes::Blob(blob) => self.write_blob(blob, part.size, how, output),
            Bytes::Made { layer, below } => {
                self.write_uncompressed(below, *layer, &mut Stoppable { output, how })
            }
        }
    }

    /// Writes a blob by the kernel, while another thread reads it to see that it is what it was.
    fn write_blob(&self, blob: &Digest, size: u64, how: &Saving<'_>, output: &mut File) -> Result<()> {
        let failed = |source| Error::Output { what: "the archive".to_owned(), source };
        let damaged = |reason: String| Error::Damaged { what: format!("blob {blob}"), reason };
        let mut file = self.open_blob(blob)?;
        let length = file.metadata().map_err(Error::file("stat", file.path()))?.len();
        if length != size {
            return Err(damaged(format!("it has {length} bytes, expected {size}")));
        }
        let given_up = AtomicBool::new(false);
        let hashed = self.open_blob(blob)?;
        let found = std::thread::scope(|scope| {
            let stopped = || given_up.load(Ordering::Relaxed) || (how.stopped)();
            let hashing = scope.spawn(move || hash(hashed, &stopped));
            let copied = (|| {
                loop {
                    how.go_on()?;
                    if io::copy(&mut file.file_mut().take(AT_ONCE), output)? < AT_ONCE {
                        return Ok(());
                    }
                }
            })();
            given_up.store(copied.is_err(), Ordering::Relaxed);
            let found = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            copied.map_err(failed)?;
            found
        })?;
        if found != *blob {
            return Err(damaged(format!("its bytes have the digest {found}")));
        }
        Ok(())
    }

    fn open_blob(&self, blob: &Digest) -> Result<fs_err::File> {
        let path = self.blob_path(blob);
        fs_err::File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::Damaged { what: format!("blob {blob}"), reason: "its file is gone".to_owned() }
            }
            _ => Error::file("open", &path)(error),
        })
    }

    /// Writes a layer's tar, as it was: from a blob, or else made again.
    fn write_uncompressed(
        &self,
        below: &[DiffId],
        layer: DiffId,
        output: &mut (dyn io::Write + Send),
    ) -> Result<()> {
        let Some(blob) = self.layer_blobs(layer)?.into_iter().next() else {
            return self.write_tar(below, layer, output);
        };
        let file = io::BufReader::with_capacity(1 << 18, self.open_blob(&blob.digest)?);
        let damaged = |reason| Error::Damaged { what: format!("blob {}", blob.digest), reason };
        let mut tar = compression_named(&blob.compression).decoder(file)?;
        let mut output = HashingWriter::new(output);
        let mut buffer = vec![0; 1 << 18];
        loop {
            match tar.read(&mut buffer).map_err(|error| damaged(error.to_string()))? {
                0 => break,
                length => output
                    .write_all(&buffer[..length])
                    .map_err(|source| Error::Output { what: format!("layer {layer}"), source })?,
            }
        }
        match output.finish() {
            (found, _) if found == layer.0 => Ok(()),
            (found, _) => Err(damaged(format!("its layer has the digest {found}, expected {layer}"))),
        }
    }

    fn plan(
        &self,
        lease: &Lease,
        images: &[SavedImage],
        form: Option<ArchiveForm>,
        how: &Saving<'_>,
    ) -> Result<Plan> {
        let mut parts = Vec::new();
        let mut descriptors = Vec::new();
        let mut docker = Vec::new();
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for image in images {
            lease.keep(Leased::Image(image.id))?;
            let found = self.image(image.id)?;
            let layers = &found.config.rootfs.diff_ids;
            self.keep_layers(lease, layers)?;
            let (media_type, manifest, bytes) =
                self.manifest_to_save(lease, image, &found.config_bytes, layers, how)?;
            for (position, descriptor) in manifest.layers.iter().enumerate() {
                let bytes = match self.has_blob(&descriptor.digest)? {
                    true => Bytes::Blob(descriptor.digest),
                    false => Bytes::Made { layer: layers[position], below: layers[..position].to_vec() },
                };
                parts.push(Part { digest: descriptor.digest, size: descriptor.size, bytes });
            }
            docker.push(docker_image(image, layers, &manifest));
            for name in &image.names {
                let top = manifest.layers.last().map_or(manifest.config.digest, |layer| layer.digest);
                let tag = name.tag.clone().unwrap_or_default();
                repositories.entry(name.familiar_name()).or_default().insert(tag, top.hex());
            }
            descriptors.extend(layout_entries(image, &Descriptor::of(&media_type, &bytes)));
            for document in [found.config_bytes, bytes] {
                let (digest, size) = (Digest::of(&document), document.len() as u64);
                parts.push(Part { digest, size, bytes: Bytes::Document(document) });
            }
        }
        let mut seen = HashSet::new();
        parts.retain(|part| seen.insert(part.digest));
        let index = Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            manifests: descriptors,
            annotations: None,
        };
        let mut documents =
            vec![("oci-layout", crate::layout::LAYOUT.to_vec()), ("index.json", index.to_bytes())];
        if form == Some(ArchiveForm::Docker) {
            let json =
                |error| Error::Output { what: "manifest.json".to_owned(), source: io::Error::from(error) };
            documents.push(("manifest.json", serde_json::to_vec(&docker).map_err(json)?));
            if !repositories.is_empty() {
                documents.push(("repositories", serde_json::to_vec(&repositories).map_err(json)?));
            }
        }
        Ok(Plan { documents, parts })
    }

    /// Leases the layers of an image, and says which one is missing.
    fn keep_layers(&self, lease: &Lease, layers: &[DiffId]) -> Result<()> {
        for layer in layers {
            if !self.keep_known(lease, *layer)? {
                return Err(self.unusable(*layer));
            }
        }
        Ok(())
    }

    /// The manifest that the image came with, under this name or last, if all its blobs can be given; else one that fits
    /// what is here.
    fn manifest_to_save(
        &self,
        lease: &Lease,
        image: &SavedImage,
        config: &[u8],
        layers: &[DiffId],
        how: &Saving<'_>,
    ) -> Result<(String, Manifest, Vec<u8>)> {
        let kept = self.database.all(
            "SELECT m.media_type, m.bytes FROM manifests m LEFT JOIN blobs b ON b.digest = m.digest \
             WHERE m.image = ?1 ORDER BY m.digest IS NOT ?2, b.created DESC, m.digest",
            rusqlite::params![image.id.0.as_bytes(), image.came_as.as_ref().map(Digest::as_bytes)],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)),
        )?;
        for (media_type, bytes) in kept {
            if let Ok(kiln_oci::Document::Manifest(manifest)) =
                kiln_oci::Document::parse(Some(&media_type), &bytes)
                && self.can_give(&manifest, layers)?
            {
                return Ok((media_type, *manifest, bytes));
            }
        }
        let mut descriptors = Vec::new();
        for (position, layer) in layers.iter().enumerate() {
            descriptors.push(self.layer_to_save(lease, &layers[..position], *layer, how)?);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            config: Descriptor::of(media_type::OCI_CONFIG, config),
            layers: descriptors,
            annotations: None,
        };
        let bytes = manifest.to_bytes();
        Ok((media_type::OCI_MANIFEST.to_owned(), manifest, bytes))
    }

    /// Whether every layer that a manifest names is here as that blob.
    pub(crate) fn can_give(&self, manifest: &Manifest, layers: &[DiffId]) -> Result<bool> {
        if manifest.layers.len() != layers.len() {
            return Ok(false);
        }
        for (descriptor, layer) in manifest.layers.iter().zip(layers) {
            if !self.has_layer_as(*layer, descriptor)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn layer_to_save(
        &self,
        lease: &Lease,
        below: &[DiffId],
        layer: DiffId,
        how: &Saving<'_>,
    ) -> Result<Descriptor> {
        let compression = how.compression;
        let info = self.layer(layer)?.ok_or(Error::NoLayer(layer))?;
        let blobs = self.layer_blobs(layer)?;
        let foreign = info.writer == 0;
        let fitting = blobs.iter().find(|blob| foreign || blob.compression == compression.name());
        if let Some(blob) = fitting
            && let Some(media_type) = layer_media_type(&blob.compression)
        {
            return Ok(Descriptor::new(media_type, blob.digest, blob.size));
        }
        if fitting.is_some() || compression == Compression::Plain {
            // What OCI has no media type for goes out uncompressed.
            return Ok(Descriptor::new(media_type::OCI_LAYER, layer.0, info.tar_size));
        }
        let blob = self.compress(lease, below, layer, how)?;
        let media_type = layer_media_type(compression.name()).unwrap_or(media_type::OCI_LAYER);
        let descriptor = Descriptor::new(media_type, blob.digest, blob.size);
        self.database.write(Durability::Relaxed, |t| {
            self.insert_layer_blob(t, layer, &blob)?;
            lease.keep_in(t, Leased::Blob(blob.digest))
        })?;
        Ok(descriptor)
    }

    /// Makes a layer's compressed blob in the lease's directory.
    fn compress(&self, lease: &Lease, below: &[DiffId], layer: DiffId, how: &Saving<'_>) -> Result<NewBlob> {
        let compression = how.compression;
        let _span = kiln_trace::span("compress").of(|| layer.to_string());
        let path = lease.fresh_path("compressed");
        let failed = |source| Error::File { action: "write", path: path.clone(), source };
        let file = fs_err::File::create_new(&path).map_err(failed)?;
        let hashing = HashingWriter::new(io::BufWriter::with_capacity(1 << 18, file));
        let mut encoder = compression.encoder(hashing, level(compression)).map_err(failed)?;
        self.write_uncompressed(below, layer, &mut Stoppable { output: &mut encoder, how })?;
        let mut hashing = encoder.finish().map_err(failed)?;
        hashing.flush().map_err(failed)?;
        let (digest, size) = hashing.finish();
        Ok(NewBlob { path, digest, size, compression: compression.name() })
    }

    fn has_blob(&self, blob: &Digest) -> Result<bool> {
        let connection = self.database.lock();
        self.trusted(&connection, "blobs", "digest", blob)
    }
}

fn hash(mut file: fs_err::File, stopped: &dyn Fn() -> bool) -> Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::file("read", file.path())(error)),
        }
        if stopped() {
            return Err(Error::Stopped);
        }
    }
}

fn compression_named(name: &str) -> Compression {
    use Compression::{Bzip2, Gzip, Plain, Xz, Zstd};
    [Gzip, Zstd, Xz, Bzip2].into_iter().find(|known| known.name() == name).unwrap_or(Plain)
}

/// The compressors' own defaults.
fn level(compression: Compression) -> i32 {
    if compression == Compression::Gzip { 6 } else { 3 }
}

fn docker_image(image: &SavedImage, layers: &[DiffId], manifest: &Manifest) -> DockerImage {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
    DockerImage {
        config: path(&image.id.0),
        names: (!names.is_empty()).then_some(names),
        layers: manifest.layers.iter().map(|layer| path(&layer.digest)).collect(),
        sources: layers.iter().copied().zip(manifest.layers.iter().cloned()).collect(),
    }
}

/// The entries of `index.json` for an image: one for each name.
fn layout_entries(image: &SavedImage, manifest: &Descriptor) -> Vec<Descriptor> {
    if image.names.is_empty() {
        return vec![manifest.clone()];
    }
    let entry = |name: &Reference| {
        let mut descriptor = manifest.clone();
        descriptor.annotations = Some(Annotations::from([
            (media_type::REF_NAME.to_owned(), name.familiar()),
            (media_type::CONTAINERD_NAME.to_owned(), name.to_string()),
        ]));
        descriptor
    };
    image.names.iter().map(entry).collect()
}

fn header(name: &str, kind: Kind, size: u64, out: &mut Vec<u8>) {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    let metadata = Metadata { size, ..Metadata::new(kind, mode) };
    tar::write_header(name.as_bytes(), &metadata, out);
}

/// The directory that a path is in, and its name there.
fn parent(path: &Path) -> Result<(Directory, String)> {
    let missing = || Error::archive(&path.display().to_string(), "it is no path of a file");
    let name = path.file_name().ok_or_else(missing)?.to_str().ok_or_else(missing)?.to_owned();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((Directory::open(parent)?, name))
}
