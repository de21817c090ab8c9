//! The OCI layout that the store's root is: `oci-layout`, `index.json` and `blobs/` (OCI image-spec
//! `image-layout.md`).
//!
//! It shows the images whose every layer has a blob. It is made anew from the database and is never read.

use kiln_oci::{
    Annotations, Descriptor, Digest, Document, ImageConfig, ImageId, Index, Manifest, Reference, media_type,
};
use kiln_sys::lock::{Lock, Sharing};
use rusqlite::{Connection, params};

use crate::Store;
use crate::database::{Durability, all, digest, execute};
use crate::error::{Error, Result};
use crate::layers::NewBlob;
use crate::lease::{Lease, Leased};

pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Of an image's manifests (`m`) that which came last: what names stand for that have none of their own.
pub(crate) const LAST_MANIFEST: &str = "FROM manifests m LEFT JOIN blobs b ON b.digest = m.digest WHERE m.image = ?1 \
                             ORDER BY b.created DESC, m.digest LIMIT 1";

/// A manifest of an image that is to be published.
pub(crate) struct NewManifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl NewManifest {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The digests of its layers' blobs.
    pub(crate) fn layers(&self) -> Result<Vec<Digest>> {
        match Document::parse(Some(&self.media_type), &self.bytes)? {
            Document::Manifest(manifest) => Ok(manifest.layers.iter().map(|layer| layer.digest).collect()),
            Document::Index(_) => Ok(Vec::new()),
        }
    }
}

impl Store {
    /// Keeps an image's config and manifest as blobs, so that the layout shows it once it is published.
    pub(crate) fn put_documents(&self, lease: &Lease, config: &[u8], manifest: &NewManifest) -> Result<()> {
        let staged = [self.stage_blob(lease, &manifest.bytes)?, self.stage_blob(lease, config)?];
        self.database.write(Durability::Relaxed, |t| {
            for blob in &staged {
                self.insert_blob(t, blob)?;
                lease.keep_in(t, Leased::Blob(blob.digest))?;
            }
            Ok(())
        })
    }

    /// Whether config and manifest are there as blobs, written to the end, the manifest is known, and what it names is durable.
    pub(crate) fn has_documents(&self, image: ImageId, manifest: &NewManifest) -> Result<bool> {
        let connection = self.database.lock();
        let digest = manifest.digest();
        let is_one = |sql: &str, digest: &Digest| -> Result<bool> {
            Ok(!all(&connection, sql, [digest.as_bytes()], |_| Ok(()))?.is_empty())
        };
        if !is_one("SELECT 1 FROM manifests WHERE digest = ?1", &digest)?
            || !self.blob_is_whole(&connection, &digest)?
            || !self.blob_is_whole(&connection, &image.0)?
        {
            return Ok(false);
        }
        let durable = "SELECT 1 FROM blobs WHERE digest = ?1 AND boot IS NULL";
        manifest.layers()?.iter().try_fold(true, |all, layer| Ok(all && is_one(durable, layer)?))
    }

    /// Makes a manifest for an image that came without one, if all its layers have blobs. `None` if it is shown already.
    pub(crate) fn made_manifest(&self, config_bytes: &[u8]) -> Result<Option<NewManifest>> {
        let image = ImageId(Digest::of(config_bytes));
        let diff_ids = ImageConfig::parse(config_bytes)?.rootfs.diff_ids;
        if let Some(shown) = self.shown_manifest(image)?
            && self.manifest_holds(&shown, &diff_ids)?
        {
            return Ok((!self.has_documents(image, &shown)?).then_some(shown));
        }
        let mut layers = Vec::new();
        for layer in &diff_ids {
            let Some(blob) = self.layer_blobs(*layer)?.into_iter().next() else { return Ok(None) };
            let Some(media_type) = layer_media_type(&blob.compression) else { return Ok(None) };
            layers.push(Descriptor::new(media_type, blob.digest, blob.size));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            config: Descriptor::of(media_type::OCI_CONFIG, config_bytes),
            layers,
            annotations: None,
        };
        let media_type = media_type::OCI_MANIFEST.to_owned();
        Ok(Some(NewManifest { media_type, bytes: manifest.to_bytes() }))
    }

    /// A manifest by which the layout shows an image.
    fn shown_manifest(&self, image: ImageId) -> Result<Option<NewManifest>> {
        self.database.one(
            &format!("SELECT m.media_type, m.bytes {LAST_MANIFEST}"),
            [image.0.as_bytes()],
            |row| Ok(NewManifest { media_type: row.get(0)?, bytes: row.get(1)? }),
        )
    }

    fn stage_blob(&self, lease: &Lease, bytes: &[u8]) -> Result<NewBlob> {
        let path = lease.fresh_path("document");
        fs_err::write(&path, bytes).map_err(Error::file("write", &path))?;
        Ok(NewBlob { path, digest: Digest::of(bytes), size: bytes.len() as u64, compression: "none" })
    }

    /// Writes `oci-layout` and `index.json` from the database, by rename.
    pub(crate) fn write_layout(&self) -> Result<()> {
        let _span = kiln_trace::span("write layout");
        // Else what was read before another process's change could replace what that one wrote after it.
        let _one = Lock::acquire(&self.root().join("layout.lock"), Sharing::Exclusive)?;
        // Sizes come from the blobs: reading them off the manifests' own bytes takes ten times as long.
        let mut rows = self.database.all(
            "SELECT m.digest, m.media_type, b.size, t.name FROM tags t JOIN manifests m ON m.image = t.image \
             JOIN blobs b ON b.digest = m.digest \
             ORDER BY t.name, t.manifest IS NOT m.digest, b.created DESC, m.digest",
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
        // An image that came with several manifests is shown with one, that of the name or the last, so that each name stands
        // for one thing.
        rows.dedup_by(|next, row| next.3 == row.3);
        let manifests = rows
            .into_iter()
            .map(|(digest, media_type, size, name)| {
                let mut descriptor = Descriptor::new(&media_type, digest, size);
                descriptor.annotations = Some(Annotations::from([
                    (media_type::REF_NAME.to_owned(), familiar(&name)),
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

    /// Removes what a kill left beside `index.json` while it was written anew.
    pub(crate) fn sweep_layout(&self) -> Result<()> {
        let _one = Lock::acquire(&self.root().join("layout.lock"), Sharing::Exclusive)?;
        let directory = kiln_sys::root::Directory::open(self.root())?;
        for found in directory.list()? {
            if kiln_sys::publish::is_temporary(&found.name) {
                directory.remove_all(&found.name)?;
            }
        }
        Ok(())
    }

    /// Writes a file of the store's root anew. Only for who has `layout.lock`.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let directory = kiln_sys::root::Directory::open(self.root())?;
        kiln_sys::publish::write_over(&directory, name.as_ref(), bytes, 0o600).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::IsADirectory => Error::InTheWay { path: self.root().join(name) },
                _ => Error::Path(error),
            }
        })
    }

    /// Writes the layout anew if the image is shown in it.
    pub(crate) fn write_layout_for(&self, image: ImageId) -> Result<()> {
        let shown = is_shown(&self.database.lock(), image)?;
        if shown { self.write_layout() } else { Ok(()) }
    }
}

/// A name as people write it, which is another one for each: what tools choose an image of a layout by.
fn familiar(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |name| name.familiar())
}

/// Keeps a manifest of an image. Names that stand for the image's last one go on standing for that which was the last.
pub(crate) fn insert_manifest(t: &Connection, image: ImageId, manifest: &NewManifest) -> Result<()> {
    let digest = manifest.digest();
    execute(
        t,
        &format!(
            "UPDATE tags SET manifest = (SELECT m.digest {LAST_MANIFEST}) \
             WHERE image = ?1 AND manifest IS NULL AND NOT EXISTS (SELECT 1 FROM manifests WHERE digest = ?2)"
        ),
        params![image.0.as_bytes(), digest.as_bytes()],
    )?;
    execute(
        t,
        "INSERT INTO manifests VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
        params![digest.as_bytes(), manifest.media_type, manifest.bytes, image.0.as_bytes()],
    )?;
    Ok(())
}

/// Whether the layout shows an image, under each of its names.
pub(crate) fn is_shown(connection: &Connection, image: ImageId) -> Result<bool> {
    let sql = "SELECT 1 FROM manifests WHERE image = ?1 LIMIT 1";
    Ok(!all(connection, sql, [image.0.as_bytes()], |_| Ok(()))?.is_empty())
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
