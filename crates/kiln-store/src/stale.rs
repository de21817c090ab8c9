//! What an earlier boot wrote and nobody synced, and what could not be synced: nothing uses it any more.

use std::collections::HashSet;

use kiln_oci::{DiffId, Digest};
use rusqlite::Connection;

use crate::Store;
use crate::database::{all, digest};
use crate::error::Result;

/// Rows whose files a power cut may have torn. Those of layers that a running command has leased are not among them, nor
/// is the last that is left of an image's layer.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    /// Layers, by their indexes.
    pub(crate) layers: HashSet<Digest>,
    pub(crate) blobs: HashSet<Digest>,
    pub(crate) snapshots: Vec<StaleSnapshot>,
    /// Bytes of the blobs' files and of those in the snapshots.
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct StaleSnapshot {
    /// Its directory.
    pub(crate) id: String,
    /// Its name in `overlay2/l`.
    pub(crate) link: String,
}

const LAYERS: &str = "SELECT diff_id FROM layers l WHERE boot IS NOT NULL AND boot <> ?1 \
     AND NOT EXISTS (SELECT 1 FROM image_layers i WHERE i.diff_id = l.diff_id) \
     AND NOT EXISTS (SELECT 1 FROM lease_roots r WHERE r.kind = 'layer' AND r.digest = l.diff_id)";
/// With the layers that a blob holds, one in a row; a document holds none.
const BLOBS: &str = "SELECT b.digest, b.size, x.diff_id, \
       EXISTS (SELECT 1 FROM image_layers i WHERE i.diff_id = x.diff_id), \
       EXISTS (SELECT 1 FROM lease_roots r WHERE r.kind = 'layer' AND r.digest = x.diff_id \
                                              OR r.kind = 'blob' AND r.digest = b.digest) \
     FROM blobs b LEFT JOIN layer_blobs x ON x.blob = b.digest WHERE b.boot IS NOT NULL AND b.boot <> ?1";
const SNAPSHOTS: &str = "SELECT s.id, s.link, s.diff_id, \
       EXISTS (SELECT 1 FROM image_layers i WHERE i.diff_id = s.diff_id), \
       coalesce((SELECT l.files_size FROM layers l WHERE l.diff_id = s.diff_id), 0) \
     FROM snapshots s WHERE s.boot IS NOT NULL AND s.boot <> ?1 \
     AND NOT EXISTS (SELECT 1 FROM lease_roots r WHERE r.kind = 'layer' AND r.digest = s.diff_id)";

impl Store {
    pub(crate) fn stale(&self, t: &Connection) -> Result<Stale> {
        let mut stale = Stale {
            layers: all(t, LAYERS, [&self.boot], |row| digest(row, 0))?.into_iter().collect(),
            ..Stale::default()
        };
        let is_needed = |layer: Digest, of_image: bool| -> Result<bool> {
            Ok(of_image && !self.is_usable(t, DiffId(layer))?)
        };
        let blobs = all(t, BLOBS, [&self.boot], |row| {
            let layer = row.get::<_, Option<[u8; 32]>>(2)?.map(Digest::from_bytes);
            let size = row.get::<_, i64>(1)?.unsigned_abs();
            Ok((digest(row, 0)?, size, layer, row.get::<_, bool>(3)?, row.get::<_, bool>(4)?))
        })?;
        let mut needed = HashSet::new();
        for (blob, _, layer, of_image, leased) in &blobs {
            let last = layer.map_or(Ok(false), |layer| is_needed(layer, *of_image))?;
            needed.extend((*leased || last).then_some(*blob));
        }
        for (blob, size, ..) in blobs {
            if !needed.contains(&blob) && stale.blobs.insert(blob) {
                stale.bytes = stale.bytes.saturating_add(size);
            }
        }
        let snapshots = all(t, SNAPSHOTS, [&self.boot], |row| {
            let snapshot = StaleSnapshot { id: row.get(0)?, link: row.get(1)? };
            Ok((snapshot, digest(row, 2)?, row.get::<_, bool>(3)?, row.get::<_, i64>(4)?.unsigned_abs()))
        })?;
        for (snapshot, layer, of_image, size) in snapshots {
            if !is_needed(layer, of_image)? {
                stale.snapshots.push(snapshot);
                stale.bytes = stale.bytes.saturating_add(size);
            }
        }
        Ok(stale)
    }
}
