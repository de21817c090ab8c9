//! Image archives and layouts coming in: docker archives old and new, OCI archives, OCI directories.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use kiln_layer::archive::{Archive, Entry, EntryType};
use kiln_layer::{Compression, Options};
use kiln_oci::{
    ChainId, Descriptor, DiffId, Digest, Document, ImageConfig, ImageId, MAX_DOCUMENT_SIZE, Manifest,
    Platform, Reference, media_type,
};
use kiln_sys::root::{Directory, Root};
use serde::Deserialize;

use crate::Store;
use crate::error::{Error, Result};
use crate::layers::{NewBlob, NewLayer};
use crate::layout::NewManifest;
use crate::lease::{Lease, Leased};

/// Members of an archive; more are refused.
const MAX_MEMBERS: usize = 100_000;
/// Images in an archive; more are refused.
const MAX_IMAGES: usize = 1_000;
/// Bytes of all documents that are read from an archive, each as often as it is named; more are refused.
const MAX_DOCUMENTS: u64 = 64 << 20;
/// Indexes in indexes; deeper ones are refused.
const MAX_DEPTH: usize = 4;

/// Whether layers are unpacked as they come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacking {
    /// Into snapshots, since people run next.
    Now,
    /// When a snapshot is first needed.
    Later,
}

/// An image that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    /// Digest of the config.
    pub id: ImageId,
    /// The names that it was given.
    pub names: Vec<Reference>,
    /// Those of its names that another image had before, and which.
    pub moved: Vec<(Reference, ImageId)>,
}

/// What happens while images come in.
#[derive(Clone, Debug)]
pub enum LoadEvent {
    /// A layer begins: position from 1, how many there are, digest, bytes if known.
    Layer {
        /// Position from 1.
        position: usize,
        /// How many layers the image has.
        count: usize,
        /// Diff ID.
        layer: DiffId,
        /// Whether it was in the store before.
        known: bool,
    },
}

/// Where an archive's members are.
enum Members {
    /// In a file, by offset and size.
    Archive { name: String, file: Arc<File>, members: BTreeMap<String, Member> },
    /// In a directory.
    Directory { name: String, root: Root },
}

#[derive(Clone, Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

#[derive(Deserialize)]
struct DockerImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    names: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

impl Store {
    /// Loads all images of an archive file (plain or compressed) or of an OCI layout directory. Nothing is named
    /// before everything has been verified. After a failure the lease keeps nothing, and no layer stays that came in.
    pub fn load(
        &self,
        lease: &Lease,
        path: &Path,
        unpacking: Unpacking,
        progress: &mut dyn FnMut(LoadEvent),
    ) -> Result<Vec<LoadedImage>> {
        let name = path.display().to_string();
        let metadata = fs_err::metadata(path).map_err(Error::file("open", path))?;
        let members = if metadata.is_dir() {
            Members::Directory { name, root: Root::open(path)? }
        } else {
            let file = fs_err::File::open(path).map_err(Error::file("open", path))?;
            self.open_archive(lease, &name, file.into_file())?
        };
        self.load_members(lease, &members, unpacking, progress)
    }

    /// As [`Store::load`], from a stream such as standard input.
    pub fn load_stream(
        &self,
        lease: &Lease,
        name: &str,
        input: File,
        unpacking: Unpacking,
        progress: &mut dyn FnMut(LoadEvent),
    ) -> Result<Vec<LoadedImage>> {
        let members = self.open_archive(lease, name, input)?;
        self.load_members(lease, &members, unpacking, progress)
    }

    /// A regular, uncompressed file is read in place; anything else is first written to one.
    fn open_archive(&self, lease: &Lease, name: &str, mut file: File) -> Result<Members> {
        let read = |source| Error::File { action: "read", path: name.into(), source };
        let is_regular = file.metadata().map_err(read)?.is_file();
        let mut first = [0; 512];
        let compressed = is_regular && {
            let length = file.read_at(&mut first, 0).map_err(read)?;
            Compression::detect(&first[..length]) != Compression::Plain
        };
        let file = if is_regular && !compressed { file } else { self.spool(lease, name, &mut file)? };
        scan(name, file)
    }

    fn spool(&self, lease: &Lease, name: &str, input: &mut File) -> Result<File> {
        let read = |source| Error::File { action: "read", path: name.into(), source };
        let path = lease.fresh_path("archive");
        let mut output = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::file("make", &path))?;
        let mut input = BufReader::with_capacity(1 << 20, input);
        let first = io::BufRead::fill_buf(&mut input).map_err(read)?;
        let compression = Compression::detect(first);
        let mut decoder = compression.decoder(input)?;
        io::copy(&mut decoder, &mut output).map_err(read)?;
        Ok(output.into_file())
    }

    fn load_members(
        &self,
        lease: &Lease,
        members: &Members,
        unpacking: Unpacking,
        progress: &mut dyn FnMut(LoadEvent),
    ) -> Result<Vec<LoadedImage>> {
        let found = if members.has("manifest.json") {
            docker_images(members)?
        } else if members.has("index.json") {
            oci_images(members)?
        } else {
            let reason = "neither manifest.json (docker archive) nor index.json (OCI layout) is in it";
            return Err(Error::archive(members.name(), reason));
        };
        if found.is_empty() {
            return Err(Error::archive(members.name(), "it holds no image for this platform"));
        }
        let mut load = || {
            for image in &found {
                self.load_layers(lease, members, image, unpacking, progress)?;
            }
            self.publish_all(lease, &found)
        };
        let outcome = load();
        self.undo_failed(lease, outcome)
    }

    fn publish_all(&self, lease: &Lease, found: &[FoundImage]) -> Result<Vec<LoadedImage>> {
        let mut loaded = Vec::new();
        for image in found {
            let mut moved = Vec::new();
            for name in &image.names {
                moved.extend(self.find_name(name)?.map(|old| (name.clone(), old)));
            }
            let id = self.publish_loaded(lease, image)?;
            moved.retain(|(_, old)| *old != id);
            loaded.push(LoadedImage { id, names: image.names.clone(), moved });
        }
        Ok(loaded)
    }

    fn publish_loaded(&self, lease: &Lease, image: &FoundImage) -> Result<ImageId> {
        let manifest = match &image.manifest {
            // A layer that was here before may have come as another blob, or have none.
            Some((media_type, bytes)) if self.manifest_holds(media_type, bytes, &image.config)? => {
                Some(NewManifest { media_type: media_type.clone(), bytes: bytes.clone() })
            }
            _ => None,
        };
        self.publish_shown(lease, &image.config_bytes, manifest, &image.names)
    }

    fn manifest_holds(&self, media_type: &str, bytes: &[u8], config: &ImageConfig) -> Result<bool> {
        match Document::parse(Some(media_type), bytes)? {
            Document::Manifest(manifest) => self.can_give(&manifest, &config.rootfs.diff_ids),
            Document::Index(_) => Ok(false),
        }
    }

    fn load_layers(
        &self,
        lease: &Lease,
        members: &Members,
        image: &FoundImage,
        unpacking: Unpacking,
        progress: &mut dyn FnMut(LoadEvent),
    ) -> Result<()> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let mut parent = ChainId::SCRATCH;
        for (position, (layer, source)) in diff_ids.iter().zip(&image.layers).enumerate() {
            let known = self.keep_known(lease, *layer)?;
            progress(LoadEvent::Layer {
                position: position + 1,
                count: diff_ids.len(),
                layer: *layer,
                known,
            });
            if known {
                self.remember_chain(parent, *layer)?;
            } else {
                self.load_layer(lease, members, &diff_ids[..position], parent, *layer, source, unpacking)?;
            }
            parent = parent.with(*layer);
        }
        Ok(())
    }

    /// Leases a layer if it is in the store, trusted, with a source.
    pub(crate) fn keep_known(&self, lease: &Lease, layer: DiffId) -> Result<bool> {
        self.database.write(crate::database::Durability::Relaxed, |t| {
            let usable = self.is_usable(t, layer)?;
            if usable {
                lease.keep_in(t, Leased::Layer(layer))?;
            }
            Ok(usable)
        })
    }

    fn remember_chain(&self, parent: ChainId, layer: DiffId) -> Result<()> {
        self.database
            .write(crate::database::Durability::Relaxed, |t| crate::chains::insert_link(t, parent, layer))
    }

    #[expect(clippy::too_many_arguments, reason = "each is another fact of the one layer")]
    fn load_layer(
        &self,
        lease: &Lease,
        members: &Members,
        below: &[DiffId],
        parent: ChainId,
        layer: DiffId,
        source: &LayerSource,
        unpacking: Unpacking,
    ) -> Result<()> {
        let what = || format!("{}: layer {}", members.name(), source.path);
        let path = lease.fresh_path("blob");
        members.copy(&source.path, &path)?;
        let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?;
        let new = self.walk_layer(lease, below, file, &path, unpacking)?;
        if let (Some(descriptor), Some(blob)) = (&source.descriptor, &new.blob) {
            if blob.digest != descriptor.digest {
                let (expected, found) = (descriptor.digest, blob.digest);
                return Err(Error::Mismatch { what: what(), expected, found });
            }
            if blob.size != descriptor.size {
                let reason =
                    format!("layer has {} bytes, its descriptor says {}", blob.size, descriptor.size);
                return Err(Error::archive(members.name(), reason));
            }
        }
        if new.index.diff_id() != layer {
            let found = new.index.diff_id().0;
            return Err(Error::Mismatch { what: what() + " (diff ID)", expected: layer.0, found });
        }
        self.publish_layer(lease, parent, new).map(|_| ())
    }

    /// The one walk over a layer that came in as the file at `path`.
    pub(crate) fn walk_layer(
        &self,
        lease: &Lease,
        below: &[DiffId],
        file: impl Read + Send,
        path: &Path,
        unpacking: Unpacking,
    ) -> Result<NewLayer> {
        let snapshot = match unpacking {
            Unpacking::Now if self.keeps_snapshots() => {
                let directory = lease.fresh_path("unpack");
                fs_err::create_dir(&directory).map_err(Error::file("make", &directory))?;
                Some((Root::open(&directory)?, directory))
            }
            Unpacking::Now | Unpacking::Later => None,
        };
        let unpack = snapshot.as_ref().map(|(root, _)| self.unpacking(root));
        let walk = kiln_layer::walk(file, &Options { unpack, ..Options::default() })?;
        if let Some((root, _)) = &snapshot
            && !walk.index.stands_alone()
        {
            self.complete_snapshot(below, &walk.index, root)?;
        }
        let blob = NewBlob {
            path: path.to_path_buf(),
            digest: walk.blob,
            size: walk.blob_size,
            compression: walk.compression.name(),
        };
        Ok(NewLayer {
            index: walk.index,
            blob: Some(blob),
            snapshot: snapshot.map(|(_, directory)| directory),
        })
    }
}

/// An image of an archive, its documents verified, its layers not read yet.
struct FoundImage {
    config_bytes: Vec<u8>,
    config: ImageConfig,
    names: Vec<Reference>,
    layers: Vec<LayerSource>,
    manifest: Option<(String, Vec<u8>)>,
}

struct LayerSource {
    path: String,
    descriptor: Option<Descriptor>,
}

fn docker_images(members: &Members) -> Result<Vec<FoundImage>> {
    let bytes = members.document("manifest.json")?;
    let images: Vec<DockerImage> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::archive(members.name(), format!("manifest.json cannot be read: {error}")))?;
    let mut found = Vec::new();
    let mut total = 0;
    for image in images {
        let config_bytes = members.document(&image.config)?;
        count(members, &found, &mut total, &config_bytes)?;
        let config = ImageConfig::parse(&config_bytes)?;
        let layers = image.layers.unwrap_or_default();
        let diff_ids = config.rootfs.diff_ids.len();
        if layers.len() != diff_ids {
            let reason = format!(
                "manifest.json names {} layers, the config {} has {diff_ids}",
                layers.len(),
                image.config
            );
            return Err(Error::archive(members.name(), reason));
        }
        let layers = layers.into_iter().map(|path| LayerSource { path, descriptor: None }).collect();
        let names = image.names.unwrap_or_default();
        let names =
            names.iter().map(|name| Ok(name.parse::<Reference>()?.or_latest())).collect::<Result<_>>()?;
        found.push(FoundImage { config_bytes, config, names, layers, manifest: None });
    }
    Ok(found)
}

fn oci_images(members: &Members) -> Result<Vec<FoundImage>> {
    let bytes = members.document("index.json")?;
    let mut found = Vec::new();
    let mut total = 0;
    match Document::parse(None, &bytes)? {
        Document::Index(index) => {
            for descriptor in &index.manifests {
                oci_image(members, descriptor, &[], &mut found, 0, &mut total)?;
            }
        }
        Document::Manifest(_) => {
            return Err(Error::archive(members.name(), "index.json is a manifest, not an index"));
        }
    }
    Ok(found)
}

/// Follows a descriptor; of an index only what runs here is taken.
fn oci_image(
    members: &Members,
    descriptor: &Descriptor,
    outer_names: &[Reference],
    found: &mut Vec<FoundImage>,
    depth: usize,
    total: &mut u64,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::archive(members.name(), "indexes are nested too deep"));
    }
    let own = names_of(descriptor);
    let names = if own.is_empty() { outer_names.to_vec() } else { own };
    let bytes = members.verified(descriptor)?;
    count(members, found, total, &bytes)?;
    match Document::parse(Some(&descriptor.media_type), &bytes)? {
        Document::Index(index) => {
            let host = Platform::host();
            let fits = |inner: &&Descriptor| {
                inner.platform.as_ref().is_none_or(|platform| {
                    platform.os == host.os && platform.architecture == host.architecture
                })
            };
            for inner in index.manifests.iter().filter(fits) {
                oci_image(members, inner, &names, found, depth + 1, total)?;
            }
        }
        Document::Manifest(manifest) => {
            if manifest.config.media_type != media_type::OCI_CONFIG
                && manifest.config.media_type != media_type::DOCKER_CONFIG
            {
                return Ok(()); // an artifact, not an image
            }
            let image = oci_manifest(members, descriptor, &manifest, bytes, names)?;
            count(members, found, total, &image.config_bytes)?;
            found.push(image);
        }
    }
    Ok(())
}

fn oci_manifest(
    members: &Members,
    descriptor: &Descriptor,
    manifest: &Manifest,
    bytes: Vec<u8>,
    names: Vec<Reference>,
) -> Result<FoundImage> {
    let config_bytes = members.verified(&manifest.config)?;
    let config = ImageConfig::parse(&config_bytes)?;
    if manifest.layers.len() != config.rootfs.diff_ids.len() {
        let reason = format!(
            "manifest {} has {} layers, its config {}",
            descriptor.digest,
            manifest.layers.len(),
            config.rootfs.diff_ids.len()
        );
        return Err(Error::archive(members.name(), reason));
    }
    let layers = manifest
        .layers
        .iter()
        .map(|layer| LayerSource { path: blob_member(&layer.digest), descriptor: Some(layer.clone()) })
        .collect();
    let manifest = Some((descriptor.media_type.clone(), bytes));
    Ok(FoundImage { config_bytes, config, names, layers, manifest })
}

/// Bounds what a small archive can make of itself by naming the same documents again and again.
fn count(members: &Members, found: &[FoundImage], total: &mut u64, document: &[u8]) -> Result<()> {
    // Each is counted for more than it has: what is made of the smallest takes memory, and time, too.
    *total += document.len() as u64 + 4096;
    if found.len() >= MAX_IMAGES {
        return Err(Error::archive(members.name(), format!("it names more than {MAX_IMAGES} images")));
    }
    if *total > MAX_DOCUMENTS {
        let reason =
            format!("its documents have more than {MAX_DOCUMENTS} bytes, each as often as it is named");
        return Err(Error::archive(members.name(), reason));
    }
    Ok(())
}

fn blob_member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The names that an annotation gives: containerd's full one, else OCI's if it is more than a tag.
fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let Some(annotations) = &descriptor.annotations else { return Vec::new() };
    let full = annotations.get(media_type::CONTAINERD_NAME);
    let name =
        full.or_else(|| annotations.get(media_type::REF_NAME).filter(|name| name.contains([':', '/'])));
    name.and_then(|name| name.parse::<Reference>().ok()).map(Reference::or_latest).into_iter().collect()
}

fn scan(name: &str, file: File) -> Result<Members> {
    let file = Arc::new(file);
    let mut members = BTreeMap::new();
    let mut offset = 0;
    let mut entry = Entry::default();
    loop {
        let reader =
            BufReader::with_capacity(4096, Window { file: Arc::clone(&file), offset, end: u64::MAX });
        let mut archive = Archive::at(reader, offset);
        if !archive.next_entry(&mut entry)? {
            break;
        }
        let path = clean_member(&entry.name);
        let member = match entry.kind {
            EntryType::Regular => Some(Member::File { offset: entry.content_offset, size: entry.size }),
            EntryType::Symlink => {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                let target = String::from_utf8_lossy(&entry.link).into_owned();
                let joined = format!("/{parent}/{target}");
                Some(Member::Link(clean_member(joined.as_bytes())))
            }
            EntryType::HardLink => Some(Member::Link(clean_member(&entry.link))),
            _ => None,
        };
        if let Some(member) = member {
            members.insert(path, member);
        }
        if members.len() > MAX_MEMBERS {
            return Err(Error::archive(name, format!("it has more than {MAX_MEMBERS} members")));
        }
        let stored = if matches!(entry.kind, EntryType::Regular) { entry.size } else { 0 };
        offset = entry.content_offset + stored.div_ceil(512) * 512;
    }
    Ok(Members::Archive { name: name.to_owned(), file, members })
}

/// A member's name as others refer to it: relative, without `.` and `..`.
fn clean_member(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Members {
    fn name(&self) -> &str {
        match self {
            Self::Archive { name, .. } | Self::Directory { name, .. } => name,
        }
    }

    fn has(&self, member: &str) -> bool {
        match self {
            Self::Archive { members, .. } => members.contains_key(member),
            Self::Directory { root, .. } => root.stat(Path::new(member)).is_ok(),
        }
    }

    /// Opens a member; links are followed, inside the archive.
    fn open(&self, member: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        let missing = || Error::archive(self.name(), format!("{member} is named but not in it"));
        match self {
            Self::Archive { file, members, .. } => {
                let mut name = clean_member(member.as_bytes());
                for _ in 0..16 {
                    match members.get(&name).ok_or_else(missing)? {
                        Member::Link(target) => name.clone_from(target),
                        Member::File { offset, size } => {
                            let window = Window {
                                file: Arc::clone(file),
                                offset: *offset,
                                end: offset.saturating_add(*size),
                            };
                            return Ok((Box::new(window), *size));
                        }
                    }
                }
                Err(Error::archive(self.name(), format!("{member} is a link to itself")))
            }
            Self::Directory { root, .. } => {
                let file = root.open_file(Path::new(member)).map_err(|_| missing())?;
                let size = file.metadata().map_err(Error::file("stat", member))?.len();
                Ok((Box::new(file), size))
            }
        }
    }

    /// A small JSON document.
    fn document(&self, member: &str) -> Result<Vec<u8>> {
        let (reader, size) = self.open(member)?;
        if size > MAX_DOCUMENT_SIZE {
            let reason = format!("{member} has {size} bytes; at most {MAX_DOCUMENT_SIZE} are read");
            return Err(Error::archive(self.name(), reason));
        }
        let mut bytes = Vec::new();
        reader
            .take(MAX_DOCUMENT_SIZE + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::file("read", self.name()))?;
        if bytes.len() as u64 != size {
            return Err(Error::archive(self.name(), format!("{member} is truncated")));
        }
        Ok(bytes)
    }

    /// A document by its descriptor, verified.
    fn verified(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let bytes = self.document(&blob_member(&descriptor.digest))?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            let what = format!("{}: {}", self.name(), blob_member(&descriptor.digest));
            return Err(Error::Mismatch { what, expected: descriptor.digest, found });
        }
        if bytes.len() as u64 != descriptor.size {
            let reason = format!(
                "{} has {} bytes, its descriptor says {}",
                descriptor.digest,
                bytes.len(),
                descriptor.size
            );
            return Err(Error::archive(self.name(), reason));
        }
        Ok(bytes)
    }

    /// Copies a member into a new file, in the kernel where that is possible.
    fn copy(&self, member: &str, path: &Path) -> Result<()> {
        let (mut reader, size) = self.open(member)?;
        let mut output = fs_err::File::create_new(path).map_err(Error::file("make", path))?;
        let copied = io::copy(&mut reader, &mut output).map_err(Error::file("copy into", path))?;
        if copied != size {
            return Err(Error::archive(self.name(), format!("{member} is truncated")));
        }
        Ok(())
    }
}

/// A part of a file.
struct Window {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Whether a directory is an OCI layout.
pub fn is_layout(path: &Path) -> bool {
    Directory::open(path).and_then(|directory| directory.open_file("oci-layout")).is_ok()
}
