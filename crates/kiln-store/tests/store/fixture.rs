//! Stores that go with their test, and tars, configs and archives to put into them.

use std::path::Path;

use kiln_layer::{Compression, Kind, Metadata, Owners, tar};
use kiln_oci::{ChainId, DiffId, Digest, History, ImageConfig, ImageId, Platform};
use kiln_store::{Error, GivenFiles, LoadedImage, Ownership, RootWay, Store, Unpacking};
use serde_json::{Value as Json, json};

/// A store in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        // Owners cannot be given away without privileges.
        let root = rustix::process::geteuid().is_root();
        let ownership = if root { Ownership::Root } else { Ownership::SingleId };
        Self::at(tempfile::tempdir().unwrap(), ownership)
    }

    pub(crate) fn at(directory: tempfile::TempDir, ownership: Ownership) -> Self {
        let store = Store::open(&directory.path().join("store"), ownership).unwrap();
        // The same everywhere; mounts have a test of their own.
        store.never_mount_tars();
        Self { directory, store }
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn load(&self, bytes: &[u8]) -> Result<Vec<LoadedImage>, Error> {
        let path = self.path("archive.tar");
        fs_err::write(&path, bytes).unwrap();
        self.load_from(&path)
    }

    pub(crate) fn load_from(&self, path: &Path) -> Result<Vec<LoadedImage>, Error> {
        let lease = self.store.lease("test").unwrap();
        self.store.load(&lease, path, Unpacking::Now, &mut |_| {})
    }

    /// An image of one layer with one file, imported from a plain tar, which as root is not stored beside its files.
    pub(crate) fn image(&self, text: &str, name: Option<&str>) -> (ImageId, DiffId) {
        self.image_from(text, name, Compression::Plain)
    }

    pub(crate) fn image_from(
        &self,
        text: &str,
        name: Option<&str>,
        compression: Compression,
    ) -> (ImageId, DiffId) {
        let bytes = layer(text);
        let path = self.path("input.tar");
        let mut encoder = compression.encoder(Vec::new(), 1).unwrap();
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        fs_err::write(&path, encoder.finish().unwrap()).unwrap();
        let lease = self.store.lease("test").unwrap();
        let config = ImageConfig::scratch(&Platform::host());
        let input = fs_err::File::open(&path).unwrap().into_file();
        let name = name.map(|name| name.parse().unwrap());
        let id = self.store.import(&lease, input, config, History::default(), name.as_ref()).unwrap();
        (id, DiffId(Digest::of(&bytes)))
    }

    /// Changes the rows that the store is made of.
    pub(crate) fn change(&self, sql: &str) {
        rusqlite::Connection::open(self.path("store/kiln.db")).unwrap().execute_batch(sql).unwrap();
    }

    /// The store as another process finds it.
    pub(crate) fn again(&self) -> Store {
        let store = Store::open(self.store.root(), self.store.ownership()).unwrap();
        store.never_mount_tars();
        store
    }

    /// A layer that kiln made: of the same text the same, whenever.
    pub(crate) fn built(&self, text: &str) -> DiffId {
        let lease = self.store.lease("builder").unwrap();
        let prepared = self.store.prepare_root(&lease, &[], RootWay::Overlay, GivenFiles::Hosts).unwrap();
        let path = prepared.changed().join("file");
        fs_err::write(&path, text).unwrap();
        // The root is in the layer if its owner is another than that of no root at all.
        for path in [&path, prepared.changed()] {
            fs_err::File::open(path).unwrap().file().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let view = self.store.root_view(&[]).unwrap();
        let new = self.store.capture(&lease, &prepared, &view, Owners::Files, None).unwrap();
        let layer = self.store.publish_layer(&lease, ChainId::SCRATCH, new).unwrap();
        let mut config = ImageConfig::scratch(&Platform::host());
        config.rootfs.diff_ids = vec![layer];
        self.store.publish_image(&config.to_bytes(), &[format!("{text}:1").parse().unwrap()]).unwrap();
        layer
    }

    /// The names of all images, as people write them.
    pub(crate) fn names(&self) -> Vec<String> {
        self.store.tags().unwrap().iter().map(|tag| tag.name.familiar()).collect()
    }
}

/// An error with what is behind it.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", told(source)),
        None => error.to_string(),
    }
}

/// A member of a tar: a file's bytes, or a symbolic link's target.
pub(crate) type Member = Result<Vec<u8>, &'static str>;

pub(crate) fn archive<N: AsRef<str>>(members: &[(N, Member)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, member) in members {
        let metadata = match member {
            Ok(bytes) => Metadata { size: bytes.len() as u64, ..Metadata::new(Kind::Regular, 0o644) },
            Err(target) => {
                Metadata { link: target.as_bytes().to_vec(), ..Metadata::new(Kind::Symlink, 0o777) }
            }
        };
        tar::write_header(name.as_ref().as_bytes(), &metadata, &mut out);
        let bytes = member.as_deref().unwrap_or_default();
        out.extend_from_slice(bytes);
        tar::pad(bytes.len() as u64, &mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// The tar of a layer with one file.
pub(crate) fn layer(text: &str) -> Vec<u8> {
    archive(&[("hello", Ok(text.into()))])
}

pub(crate) fn config(layers: &[&[u8]]) -> Vec<u8> {
    config_with(layers, &json!({}))
}

/// A config whose `config` member is given.
pub(crate) fn config_with(layers: &[&[u8]], config: &Json) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    json!({ "architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs }).to_string().into()
}

/// The `manifest.json` of one image, `app:1`.
pub(crate) fn docker(config: &str, layers: &[&str]) -> Member {
    Ok(json!([{ "Config": config, "RepoTags": ["app:1"], "Layers": layers }]).to_string().into())
}

/// A docker archive of one image, `app:1`, of these layers.
pub(crate) fn image_of(layers: &[&[u8]]) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest = docker("c.json", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut members: Vec<(&str, Member)> = vec![("manifest.json", manifest), ("c.json", Ok(config(layers)))];
    members.extend(names.iter().zip(layers).map(|(name, layer)| (name.as_str(), Ok(layer.to_vec()))));
    archive(&members)
}

/// Where an OCI layout has a blob.
pub(crate) fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

pub(crate) fn descriptor(kind: &str, bytes: &[u8]) -> Json {
    let media_type = format!("application/vnd.oci.image.{kind}");
    json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

/// An OCI archive of one layer, `app:1`, and its manifest, config and layer, after `change` was made to the manifest.
pub(crate) fn oci(change: impl FnOnce(&mut Json)) -> (Vec<u8>, [Vec<u8>; 3]) {
    let layer = layer("hello\n");
    let config = config(&[&layer]);
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    });
    change(&mut manifest);
    let documents = [manifest.to_string().into_bytes(), config, layer];
    let mut members: Vec<(String, Member)> = vec![("index.json".to_owned(), Ok(layout_index(&documents[0])))];
    members.extend(documents.iter().map(|bytes| (blob(bytes), Ok(bytes.clone()))));
    (archive(&members), documents)
}

/// The `index.json` of a layout with one manifest, `app:1`.
pub(crate) fn layout_index(manifest: &[u8]) -> Vec<u8> {
    let mut entry = descriptor("manifest.v1+json", manifest);
    entry["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/app:1" });
    json!({ "schemaVersion": 2, "manifests": [entry] }).to_string().into()
}

pub(crate) fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = compression.encoder(Vec::new(), 6).unwrap();
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// An OCI archive of one image, `name`, whose one layer is said to be `said` and is `layer` compressed; and the digest of its
/// manifest.
pub(crate) fn oci_as(name: &str, compression: Compression, said: &[u8], layer: &[u8]) -> (Vec<u8>, Digest) {
    let compressed = compressed(compression, layer);
    let suffix = if compression == Compression::Plain { "" } else { &format!("+{}", compression.name()) };
    let config = config(&[said]);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor(&format!("layer.v1.tar{suffix}"), &compressed)],
    })
    .to_string()
    .into_bytes();
    let index = String::from_utf8(layout_index(&manifest)).unwrap().replace("app:1", name).into_bytes();
    let mut members = vec![("index.json".to_owned(), Ok(index))];
    members.extend([&manifest, &config, &compressed].map(|bytes| (blob(bytes), Ok(bytes.clone()))));
    (archive(&members), Digest::of(&manifest))
}
