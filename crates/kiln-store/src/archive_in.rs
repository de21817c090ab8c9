//! Image archives and layouts coming in: docker archives old and new, OCI archives, OCI directories.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kiln_layer::archive::{Archive, Entry};
use kiln_layer::{Compression, Limits, Options};
use kiln_oci::{
    ChainId, Descriptor, DiffId, Digest, Document, ImageConfig, ImageId, Manifest, Platform, Reference,
    Shape, check_members, media_type,
};
use kiln_sys::root::{Directory, Root};
use serde::Deserialize;

use crate::Store;
use crate::error::{Error, Result};
use crate::images::NewImage;
use crate::layers::{NewBlob, NewLayer};
use crate::layout::NewManifest;
use crate::lease::{Lease, Leased};
use crate::members::{Members, blob_member, scan};

/// Images in an archive; more are refused.
const MAX_IMAGES: usize = 1_000;
/// Names of one image of an archive; more are refused.
const MAX_NAMES: usize = 10_000;
/// Bytes of all documents that are read from an archive, each as often as it is named; more are refused.
const MAX_DOCUMENTS: u64 = 64 << 20;
/// Indexes in indexes; deeper ones are refused.
const MAX_DEPTH: usize = 4;
/// Within so many bytes of an archive is the header of its first member, extended headers before it included.
const HEAD: u64 = 2 << 20;

/// Whether layers are unpacked as they come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacking {
    /// Into snapshots.
    Now,
    /// Into snapshots, since people run next, unless tars can be mounted where they are.
    IfNeeded,
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

/// `manifest.json` of docker archives.
const DOCKER_MANIFEST: Shape =
    Shape::List(&Shape::Object(&[("Config", Shape::Any), ("RepoTags", Shape::Any), ("Layers", Shape::Any)]));

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
        let _span = kiln_trace::span("open archive");
        let read = |source| Error::File { action: "read", path: name.into(), source };
        let is_regular = file.metadata().map_err(read)?.is_file();
        let mut first = [0; 512];
        let compressed = is_regular && {
            let length = file.read_at(&mut first, 0).map_err(read)?;
            Compression::detect(&first[..length]) != Compression::Plain
        };
        let most = Limits::default().bytes;
        let file = if is_regular && !compressed { file } else { self.spool(lease, name, &mut file, most)? };
        if file.metadata().map_err(read)?.len() == 0 {
            return Err(Error::Empty { expected: "a docker or OCI archive" });
        }
        scan(name, file)
    }

    /// Writes an archive of at most `most` bytes to a file, uncompressed. What begins as none is left where that shows: to
    /// scan it says what is wrong with it.
    fn spool(&self, lease: &Lease, name: &str, input: &mut File, most: u64) -> Result<File> {
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
        let mut buffer = Vec::new();
        (&mut decoder).take(HEAD).read_to_end(&mut buffer).map_err(read)?;
        let is_archive = Archive::new(&buffer[..]).next_entry(&mut Entry::default()).unwrap_or(false);
        let mut length = buffer.len();
        let mut written = 0;
        // Not `io::copy`: a full disk is no fault of the archive.
        loop {
            written += length as u64;
            if written > most {
                return Err(kiln_layer::Error::Limit { what: "bytes", limit: most }.into());
            }
            output.write_all(&buffer[..length]).map_err(Error::file("write", &path))?;
            if length == 0 || !is_archive {
                return Ok(output.into_file());
            }
            length = decoder.read(&mut buffer).map_err(read)?;
        }
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
        } else if members.is_cut_off() {
            let reason = "it is truncated: it has no end, and neither manifest.json nor index.json is in it";
            return Err(Error::archive(members.name(), reason));
        } else {
            return Err(Error::NoImages);
        };
        if found.is_empty() {
            return Err(Error::archive(members.name(), "it holds no image for this platform"));
        }
        let load = || {
            let mut done = Done::default();
            for image in &found {
                self.load_layers(lease, members, image, unpacking, &mut done, progress)?;
            }
            // Now that nothing is wrong with any of them.
            self.keep_layer_blobs(lease, &done.others)?;
            self.publish_all(lease, found)
        };
        let outcome = load();
        self.undo_failed(lease, outcome)
    }

    /// All images and all names at once, or none.
    fn publish_all(&self, lease: &Lease, found: Vec<FoundImage>) -> Result<Vec<LoadedImage>> {
        let mut images = Vec::new();
        for FoundImage { config_bytes, config, names, manifest, .. } in found {
            let manifest = match manifest {
                Some(manifest) if self.manifest_holds(&manifest, &config.rootfs.diff_ids)? => Some(manifest),
                _ => None,
            };
            let came_as = manifest.as_ref().map(NewManifest::digest);
            images.push(NewImage { config_bytes, manifest, names, came_as });
        }
        let names: Vec<_> = images.iter().map(|image| image.names.clone()).collect();
        let published = self.publish_all_shown(lease, images)?;
        let loaded = published.into_iter().zip(names);
        Ok(loaded.map(|(image, names)| LoadedImage { id: image.id, names, moved: image.moved }).collect())
    }

    /// Whether every layer is here as the blob that a manifest names.
    pub(crate) fn manifest_holds(&self, manifest: &NewManifest, layers: &[DiffId]) -> Result<bool> {
        match Document::parse(Some(&manifest.media_type), &manifest.bytes)? {
            Document::Manifest(manifest) => self.can_give(&manifest, layers),
            Document::Index(_) => Ok(false),
        }
    }

    /// Brings the layers of an image here, those that this load has not brought yet.
    fn load_layers(
        &self,
        lease: &Lease,
        members: &Members,
        image: &FoundImage,
        unpacking: Unpacking,
        done: &mut Done,
        progress: &mut dyn FnMut(LoadEvent),
    ) -> Result<()> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let mut parent = ChainId::SCRATCH;
        for (position, (layer, source)) in diff_ids.iter().zip(&image.layers).enumerate() {
            let again = done.layers.contains(layer);
            let known = again || self.keep_known(lease, *layer)? && !self.drop_what_is_gone(*layer)?;
            progress(LoadEvent::Layer {
                position: position + 1,
                count: diff_ids.len(),
                layer: *layer,
                known,
            });
            let below = &diff_ids[..position];
            if known {
                if !again {
                    self.remember_chain(parent, *layer)?;
                }
                // Under the manifest that the image came with stands the layer as it came, not as it was here before.
                if let Some(named) = &source.descriptor
                    && done.blobs.insert((*layer, named.digest))
                    && !self.has_layer_as(*layer, named)?
                {
                    let new = self.verified_layer(lease, members, below, *layer, source, Unpacking::Later)?;
                    done.others.extend(new.blob.map(|blob| (*layer, blob)));
                }
            } else {
                let new = self.verified_layer(lease, members, below, *layer, source, unpacking)?;
                self.publish_layer(lease, parent, new)?;
            }
            done.layers.insert(*layer);
            parent = parent.with(*layer);
        }
        Ok(())
    }

    /// Whether a layer is here in the bytes that a descriptor names.
    pub(crate) fn has_layer_as(&self, layer: DiffId, named: &Descriptor) -> Result<bool> {
        let blobs = self.layer_blobs(layer)?;
        Ok(blobs.iter().any(|blob| blob.digest == named.digest && blob.size == named.size))
    }

    fn keep_layer_blobs(&self, lease: &Lease, blobs: &[(DiffId, NewBlob)]) -> Result<()> {
        if blobs.is_empty() {
            return Ok(());
        }
        self.database.write(crate::database::Durability::Relaxed, |t| {
            for (layer, blob) in blobs {
                self.insert_layer_blob(t, *layer, blob)?;
                lease.keep_in(t, Leased::Blob(blob.digest))?;
            }
            Ok(())
        })
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

    /// A layer of the archive that is what its descriptor and the config say.
    fn verified_layer(
        &self,
        lease: &Lease,
        members: &Members,
        below: &[DiffId],
        layer: DiffId,
        source: &LayerSource,
        unpacking: Unpacking,
    ) -> Result<NewLayer> {
        let _span = kiln_trace::span("load layer").of(|| layer.to_string());
        let what = || format!("{}: layer {}", members.name(), source.path);
        let path = lease.fresh_path("blob");
        let expected = source.descriptor.as_ref().map(|descriptor| descriptor.size);
        members.copy(&source.path, expected, &path)?;
        let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?;
        let new = self.walk_layer(lease, below, file, &path, unpacking)?;
        if let (Some(descriptor), Some(blob)) = (&source.descriptor, &new.blob)
            && blob.digest != descriptor.digest
        {
            let (expected, found) = (descriptor.digest, blob.digest);
            return Err(Error::Mismatch { what: what(), expected, found });
        }
        if new.index.diff_id() != layer {
            let found = new.index.diff_id().0;
            return Err(Error::Mismatch { what: what() + " (diff ID)", expected: layer.0, found });
        }
        Ok(new)
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
        let unpacking = match unpacking {
            Unpacking::IfNeeded if self.mounts_tars() => Unpacking::Later,
            other => other,
        };
        let snapshot = match unpacking {
            Unpacking::Now | Unpacking::IfNeeded if self.keeps_snapshots() => {
                let directory = lease.fresh_path("unpack");
                fs_err::create_dir(&directory).map_err(Error::file("make", &directory))?;
                Some((Root::open(&directory)?, directory))
            }
            _ => None,
        };
        let unpack = snapshot.as_ref().map(|(root, _)| self.unpacking(root));
        let walk = kiln_layer::walk(file, &Options { unpack, ..Options::default() })?;
        if let Some((root, _)) = &snapshot
            && !walk.index.stands_alone()
        {
            self.complete_snapshot(lease.into(), below, &walk.index, root)?;
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

/// What a load has brought here: archives may name a layer again and again.
#[derive(Default)]
struct Done {
    layers: HashSet<DiffId>,
    /// Layers in the bytes that descriptors name.
    blobs: HashSet<(DiffId, Digest)>,
    /// The bytes of layers that were known by other ones.
    others: Vec<(DiffId, NewBlob)>,
}

/// An image of an archive, its documents verified, its layers not read yet.
struct FoundImage {
    config_bytes: Vec<u8>,
    config: ImageConfig,
    names: Vec<Reference>,
    layers: Vec<LayerSource>,
    manifest: Option<NewManifest>,
}

struct LayerSource {
    path: String,
    descriptor: Option<Descriptor>,
}

fn docker_images(members: &Members) -> Result<Vec<FoundImage>> {
    let bytes = members.document("manifest.json")?;
    check_members("manifest.json", &DOCKER_MANIFEST, &bytes)?;
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
        if names.len() > MAX_NAMES {
            let reason = format!("it gives an image {} names; at most {MAX_NAMES} are read", names.len());
            return Err(Error::archive(members.name(), reason));
        }
        let names = names.iter().map(|name| tag_of(members, name)).collect::<Result<_>>()?;
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
            for inner in fitting(&index.manifests, &Platform::host()) {
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

/// Of an index what runs on a host: the one for the nearest variant, or those that do not say what they are for.
fn fitting<'a>(manifests: &'a [Descriptor], host: &Platform) -> Vec<&'a Descriptor> {
    // Containerd's: what a variant that is not written means.
    let level = |platform: &Platform| {
        let number = platform.variant.as_deref().and_then(|variant| variant.strip_prefix('v')?.parse().ok());
        number.unwrap_or(match platform.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1_u32,
        })
    };
    let own = level(host);
    let best = manifests
        .iter()
        .filter_map(|manifest| Some((manifest, manifest.platform.as_ref()?)))
        .filter(|(_, platform)| platform.os == host.os && platform.architecture == host.architecture)
        // A higher variant may not run here.
        .min_by_key(|(_, platform)| (level(platform) > own, level(platform).abs_diff(own)));
    match best {
        Some((manifest, _)) => vec![manifest],
        None => manifests.iter().filter(|manifest| manifest.platform.is_none()).collect(),
    }
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
    let manifest = Some(NewManifest { media_type: descriptor.media_type.clone(), bytes });
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

/// The names that an annotation gives: containerd's full one, else OCI's if it is more than a tag.
fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let Some(annotations) = &descriptor.annotations else { return Vec::new() };
    let full = annotations.get(media_type::CONTAINERD_NAME);
    let name =
        full.or_else(|| annotations.get(media_type::REF_NAME).filter(|name| name.contains([':', '/'])));
    let name = name.and_then(|name| name.parse::<Reference>().ok()).map(Reference::or_latest);
    // A name that is pinned as well is the tag's: a digest is not given, it is what the bytes have.
    let name = name.filter(|name| name.tag.is_some());
    name.map(|name| Reference { digest: None, ..name }).into_iter().collect()
}

/// A name of `RepoTags`, as the images are to have it.
fn tag_of(members: &Members, name: &str) -> Result<Reference> {
    let name = name.parse::<Reference>()?.or_latest();
    if name.digest.is_some() {
        let reason = format!("manifest.json names an image {}: a digest is no tag", name.familiar());
        return Err(Error::archive(members.name(), reason));
    }
    Ok(name)
}

/// Whether a directory is an OCI layout.
pub fn is_layout(path: &Path) -> bool {
    Directory::open(path).and_then(|directory| directory.open_file("oci-layout")).is_ok()
}

#[cfg(test)]
mod tests {
    use kiln_layer::{LayerWriter, Metadata, Outputs, RootView, Source};

    use super::*;
    use crate::store::Ownership;

    #[test]
    fn the_nearest_variant_is_taken() {
        let take = |host: &str, offered: &[&str]| {
            let describe = |platform: &&str| {
                let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, platform.as_bytes());
                descriptor.platform = (!platform.is_empty()).then(|| platform.parse().unwrap());
                descriptor
            };
            let manifests: Vec<Descriptor> = offered.iter().map(describe).collect();
            let taken = fitting(&manifests, &host.parse().unwrap());
            let position = |found: &&Descriptor| manifests.iter().position(|one| one == *found).unwrap();
            taken.iter().map(position).collect::<Vec<_>>()
        };
        let arm = ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm/v8"];
        assert_eq!(take("linux/arm/v7", &arm), [1]);
        assert_eq!(take("linux/arm/v6", &arm), [2]);
        assert_eq!(take("linux/amd64", &["linux/amd64/v3", "linux/amd64", "linux/amd64/v2"]), [1]);
        assert_eq!(take("linux/amd64", &["linux/amd64/v3", "linux/amd64/v2", ""]), [1]);
        assert_eq!(take("linux/amd64", &["linux/arm64", ""]), [1]);
        assert_eq!(take("linux/amd64", &["linux/arm64"]), [] as [usize; 0]);
    }

    #[test]
    fn archives_end_at_the_limit() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let mut writer = LayerWriter::new();
        let metadata = Metadata { size: 8 << 20, ..Metadata::new(kiln_layer::Kind::Regular, 0o644) };
        writer.add(b"zeros", metadata, Source::Bytes(vec![0; 8 << 20])).unwrap();
        let mut tar = Vec::new();
        writer.finish(&RootView::default(), Outputs { tar: Some(&mut tar), unpack: None }).unwrap();
        let mut encoder = Compression::Gzip.encoder(Vec::new(), 6).unwrap();
        encoder.write_all(&tar).unwrap();
        let path = host.path().join("bomb");
        fs_err::write(&path, encoder.finish().unwrap()).unwrap();
        let spool = |most| {
            let mut input = fs_err::File::open(&path).unwrap().into_file();
            store.spool(&lease, "bomb", &mut input, most)
        };
        let length = tar.len() as u64;
        let refused = spool(length - 1);
        let limit = length - 1;
        assert!(
            matches!(&refused, Err(Error::Layer(kiln_layer::Error::Limit { limit: found, .. })) if *found == limit),
            "{refused:?}"
        );
        assert_eq!(spool(length).unwrap().metadata().unwrap().len(), length);
    }
}
