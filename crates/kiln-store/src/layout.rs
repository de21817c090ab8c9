//! The OCI layout that the store's root is: `oci-layout`, `index.json` and `blobs/` (OCI image-spec
//! `image-layout.md`).
//!
//! It shows the images whose every layer has a blob. It is made anew from the database and is never read.

use kiln_oci::{Annotations, Descriptor, Digest, ImageId, Index, Manifest, media_type};
use kiln_sys::lock::{Lock, Sharing};
use rusqlite::params;

use crate::Store;
use crate::database::{Durability, all, digest, execute};
use crate::error::{Error, Result};
use crate::layers::NewBlob;
use crate::lease::Lease;

pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

impl Store {
    /// Keeps a manifest as it came, and config and manifest as blobs, so that the layout shows the image.
    pub(crate) fn put_manifest(
        &self,
        lease: &Lease,
        image: ImageId,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<()> {
        let config = self.image(image)?.config_bytes;
        let staged = [self.stage_blob(lease, bytes)?, self.stage_blob(lease, &config)?];
        self.database.write(Durability::Relaxed, |t| {
            for blob in &staged {
                self.insert_blob(t, blob)?;
            }
            execute(
                t,
                "INSERT INTO manifests VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                params![Digest::of(bytes).as_bytes(), media_type, bytes, image.0.as_bytes()],
            )
            .map(|_| ())
        })
    }

    /// Makes a manifest for an image that came without one, if all its layers have blobs.
    pub(crate) fn make_manifest(&self, lease: &Lease, image: ImageId) -> Result<()> {
        let known = self.database.one(
            "SELECT 1 FROM manifests WHERE image = ?1",
            [image.0.as_bytes()],
            |_| Ok(()),
        )?;
        if known.is_some() {
            return Ok(());
        }
        let found = self.image(image)?;
        let mut layers = Vec::new();
        for layer in &found.config.rootfs.diff_ids {
            let Some(blob) = self.layer_blobs(*layer)?.into_iter().next() else { return Ok(()) };
            let Some(media_type) = layer_media_type(&blob.compression) else { return Ok(()) };
            layers.push(Descriptor::new(media_type, blob.digest, blob.size));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            config: Descriptor::of(media_type::OCI_CONFIG, &found.config_bytes),
            layers,
            annotations: None,
        };
        self.put_manifest(lease, image, media_type::OCI_MANIFEST, &manifest.to_bytes())
    }

    fn stage_blob(&self, lease: &Lease, bytes: &[u8]) -> Result<NewBlob> {
        let path = lease.fresh_path("document");
        fs_err::write(&path, bytes).map_err(Error::file("write", &path))?;
        Ok(NewBlob { path, digest: Digest::of(bytes), size: bytes.len() as u64, compression: "none" })
    }

    /// Writes `oci-layout` and `index.json` from the database, by rename.
    pub(crate) fn write_layout(&self) -> Result<()> {
        // Else what was read before another process's change could replace what that one wrote after it.
        let _one = Lock::acquire(&self.root().join("layout.lock"), Sharing::Exclusive)?;
        let rows = self.database.all(
            "SELECT m.digest, m.media_type, length(m.bytes), t.name FROM manifests m \
             JOIN tags t ON t.image = m.image ORDER BY t.name",
            [],
            |row| {
                Ok((
                    digest(row, 0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?.unsigned_abs(),
                    row.get::<_, String>(3)?,
                ))
            },
        )?;
        let manifests = rows
            .into_iter()
            .map(|(digest, media_type, size, name)| {
                let mut descriptor = Descriptor::new(&media_type, digest, size);
                let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag).to_owned();
                descriptor.annotations = Some(Annotations::from([
                    (media_type::REF_NAME.to_owned(), tag),
                    (media_type::CONTAINERD_NAME.to_owned(), name),
                ]));
                descriptor
            })
            .collect();
        let index = Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            manifests,
            annotations: None,
        };
        self.replace("oci-layout", LAYOUT)?;
        self.replace("index.json", &index.to_bytes())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let directory = kiln_sys::root::Directory::open(self.root())?;
        Ok(kiln_sys::publish::write_over(&directory, name.as_ref(), bytes, 0o600)?)
    }

    /// Writes the layout anew if the image is shown in it.
    pub(crate) fn write_layout_for(&self, image: ImageId) -> Result<()> {
        let connection = self.database.lock();
        let shown =
            !all(&connection, "SELECT 1 FROM manifests WHERE image = ?1", [image.0.as_bytes()], |_| Ok(()))?
                .is_empty();
        drop(connection);
        if shown { self.write_layout() } else { Ok(()) }
    }
}

/// The media type of a layer blob; `None` for compressions that OCI does not know.
pub(crate) fn layer_media_type(compression: &str) -> Option<&'static str> {
    match compression {
        "none" => Some(media_type::OCI_LAYER),
        "gzip" => Some(media_type::OCI_LAYER_GZIP),
        "zstd" => Some(media_type::OCI_LAYER_ZSTD),
        _ => None,
    }
}
