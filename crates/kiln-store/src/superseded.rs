//! What stays of an image that came again under another manifest: manifests that no name stands for any more, and the blobs
//! of layers that they alone named.

use std::collections::HashSet;

use kiln_oci::Digest;
use rusqlite::{Connection, params};

use crate::database::{all, digest, execute};
use crate::error::Result;
use crate::layout::{LAST_MANIFEST, NewManifest};

/// Images with more than one manifest, but for those that a running command uses. It reads an index alone.
const IMAGES: &str = "SELECT image FROM manifests GROUP BY image HAVING count(*) > 1 \
     EXCEPT SELECT digest FROM lease_roots WHERE kind = 'image'";

/// Layers that a blob, of so many bytes, holds and that no running command uses, if another blob of theirs is durable.
const SPARE: &str = "SELECT x.diff_id, s.size FROM layer_blobs x JOIN blobs s ON s.digest = x.blob WHERE x.blob = ?1 \
     AND EXISTS (SELECT 1 FROM layer_blobs y JOIN blobs b ON b.digest = y.blob \
                 WHERE y.diff_id = x.diff_id AND y.blob <> x.blob AND b.boot IS NULL) \
     AND NOT EXISTS (SELECT 1 FROM lease_roots r WHERE r.kind = 'layer' AND r.digest = x.diff_id)";

/// Forgets them, so that these blobs are nobody's, and gives the bytes of the layers' ones.
pub(crate) fn forget(t: &Connection) -> Result<u64> {
    let mut named = HashSet::new();
    for image in all(t, IMAGES, [], |row| digest(row, 0))? {
        let needed = needed(t, &image)?;
        for (manifest, document) in manifests(t, &image)? {
            if !needed.contains(&manifest) {
                execute(t, "DELETE FROM manifests WHERE digest = ?1", [manifest.as_bytes()])?;
                named.extend(document.layers()?);
            }
        }
    }
    let mut bytes: u64 = 0;
    for blob in named {
        for (layer, size) in
            all(t, SPARE, [blob.as_bytes()], |row| Ok((digest(row, 0)?, row.get::<_, i64>(1)?)))?
        {
            if !is_named(t, &layer, &blob)? {
                let sql = "DELETE FROM layer_blobs WHERE diff_id = ?1 AND blob = ?2";
                execute(t, sql, params![layer.as_bytes(), blob.as_bytes()])?;
                bytes = bytes.saturating_add(size.unsigned_abs());
            }
        }
    }
    Ok(bytes)
}

/// What an image's names stand for: each for its own manifest, those without one, and an image without a name, for the last.
fn needed(t: &Connection, image: &Digest) -> Result<HashSet<Digest>> {
    let names = all(t, "SELECT manifest FROM tags WHERE image = ?1", [image.as_bytes()], |row| {
        Ok(row.get::<_, Option<[u8; 32]>>(0)?.map(Digest::from_bytes))
    })?;
    let mut needed: HashSet<Digest> = names.iter().flatten().copied().collect();
    if names.is_empty() || names.contains(&None) {
        let last = format!("SELECT m.digest {LAST_MANIFEST}");
        needed.extend(all(t, &last, [image.as_bytes()], |row| digest(row, 0))?);
    }
    Ok(needed)
}

fn manifests(t: &Connection, image: &Digest) -> Result<Vec<(Digest, NewManifest)>> {
    all(t, "SELECT digest, media_type, bytes FROM manifests WHERE image = ?1", [image.as_bytes()], |row| {
        Ok((digest(row, 0)?, NewManifest { media_type: row.get(1)?, bytes: row.get(2)? }))
    })
}

/// Whether a manifest of an image that has the layer names the blob.
fn is_named(t: &Connection, layer: &Digest, blob: &Digest) -> Result<bool> {
    let images = "SELECT DISTINCT image FROM image_layers WHERE diff_id = ?1";
    for image in all(t, images, [layer.as_bytes()], |row| digest(row, 0))? {
        for (_, manifest) in manifests(t, &image)? {
            if manifest.layers()?.contains(blob) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
