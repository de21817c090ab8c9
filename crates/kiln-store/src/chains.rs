//! Stacks of layers by chain ID.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kiln_oci::{ChainId, DiffId, Digest, ImageId};
use rusqlite::{Connection, params};

use crate::Store;
use crate::database::{Durability, all, digest, execute};
use crate::error::{Error, Result};
use crate::lease::{Lease, Leased};

impl Store {
    /// The layers of a chain, from the bottom to the top; `None` if the chain was never seen.
    pub fn chain_layers(&self, chain: ChainId) -> Result<Option<Arc<[DiffId]>>> {
        let connection = self.database.lock();
        self.chain_layers_in(&connection, chain)
    }

    pub(crate) fn chain_layers_in(
        &self,
        connection: &Connection,
        chain: ChainId,
    ) -> Result<Option<Arc<[DiffId]>>> {
        let mut above = Vec::new();
        let mut at = chain;
        let below = loop {
            if at == ChainId::SCRATCH {
                break Arc::default();
            }
            if let Some(known) = self.chains.lock().unwrap_or_else(|e| e.into_inner()).get(&at) {
                break Arc::clone(known);
            }
            let row = all(
                connection,
                "SELECT parent, diff_id FROM chains WHERE chain_id = ?1",
                [at.0.as_bytes()],
                |row| Ok((digest(row, 0)?, digest(row, 1)?)),
            )?;
            let Some((parent, layer)) = row.first() else { return Ok(None) };
            above.push(DiffId(*layer));
            at = ChainId(*parent);
        };
        let layers: Arc<[DiffId]> = below.iter().copied().chain(above.into_iter().rev()).collect();
        self.chains.lock().unwrap_or_else(|e| e.into_inner()).insert(chain, Arc::clone(&layers));
        Ok(Some(layers))
    }

    /// Whether a layer is there, was written to the end, and has a source that this ownership mode can read.
    pub(crate) fn is_usable(&self, t: &Connection, layer: DiffId) -> Result<bool> {
        Ok(self.usable(t, layer)?.is_some())
    }

    /// When a layer that [is usable](Self::is_usable) was last leased.
    pub(crate) fn usable(&self, t: &Connection, layer: DiffId) -> Result<Option<i64>> {
        let rows = all(
            t,
            "SELECT l.last_used FROM layers l WHERE l.diff_id = ?1 AND (l.boot IS NULL OR l.boot = ?2) \
             AND (l.snapshot_is_source AND EXISTS \
                    (SELECT 1 FROM snapshots s WHERE s.diff_id = l.diff_id AND s.ownership = ?3 \
                          AND (s.boot IS NULL OR s.boot = ?2)) \
               OR EXISTS (SELECT 1 FROM layer_blobs x JOIN blobs b ON b.digest = x.blob \
                          WHERE x.diff_id = l.diff_id AND (b.boot IS NULL OR b.boot = ?2)))",
            params![layer.0.as_bytes(), self.boot, self.owners()],
            |row| row.get(0),
        )?;
        Ok(rows.first().copied())
    }

    /// Leases an image with its layers, so that a build whose steps end in them need not lease each step's.
    pub fn keep_image(&self, lease: &Lease, image: ImageId) -> Result<()> {
        let find = |connection: &Connection| {
            let sql = "SELECT chain_id FROM images WHERE id = ?1";
            let chain = all(connection, sql, [image.0.as_bytes()], |row| digest(row, 0))?;
            Ok::<_, Error>(chain.first().copied().map(ChainId))
        };
        if find(&self.database.lock())?.is_some_and(|chain| lease.has_kept(chain)) {
            return Ok(());
        }
        let kept = self.database.write(Durability::Relaxed, |t| {
            lease.keep_in(t, Leased::Image(image))?;
            match find(t)? {
                Some(chain) => self.keep_chain_in(t, lease, chain),
                None => Ok(None),
            }
        })?;
        lease.note_kept(kept.unwrap_or_default());
        Ok(())
    }

    /// Leases all layers of a chain; `None` if one of them is not there, or was not written to the end before a power
    /// cut. What was leased is for [`Lease::note_kept`] once the transaction is over: it may still be rolled back.
    pub(crate) fn keep_chain_in(
        &self,
        t: &Connection,
        lease: &Lease,
        chain: ChainId,
    ) -> Result<Option<Vec<ChainId>>> {
        if lease.has_kept(chain) {
            return Ok(Some(Vec::new()));
        }
        let Some(layers) = self.chain_layers_in(t, chain)? else { return Ok(None) };
        let mut at = ChainId::SCRATCH;
        let mut kept = Vec::new();
        for layer in layers.iter() {
            at = at.with(*layer);
            if lease.has_kept(at) {
                continue;
            }
            if !self.is_usable(t, *layer)? {
                return Ok(None);
            }
            lease.keep_in(t, Leased::Layer(*layer))?;
            kept.push(at);
        }
        Ok(Some(kept))
    }
}

/// Remembers that `layer` on `parent` is a chain.
pub(crate) fn insert_link(t: &Connection, parent: ChainId, layer: DiffId) -> Result<()> {
    let chain = parent.with(layer);
    execute(
        t,
        "INSERT INTO chains VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![chain.0.as_bytes(), parent.0.as_bytes(), layer.0.as_bytes()],
    )?;
    Ok(())
}

/// Parent and topmost layer of each chain.
pub(crate) type Links = HashMap<Digest, (Digest, Digest)>;

/// All chains.
pub(crate) fn links(t: &Connection) -> Result<Links> {
    let rows = all(t, "SELECT chain_id, parent, diff_id FROM chains", [], |row| {
        Ok((digest(row, 0)?, (digest(row, 1)?, digest(row, 2)?)))
    })?;
    Ok(rows.into_iter().collect())
}

/// Forgets the chains of `links` that no image, no record and no lease reaches. Those of records stay without their
/// layers, so that what stood on them still hits.
pub(crate) fn prune(t: &Connection, links: &Links) -> Result<()> {
    let list = |sql: &str| all(t, sql, [], |row| digest(row, 0));
    let leased: HashSet<Digest> =
        list("SELECT digest FROM lease_roots WHERE kind = 'layer'")?.into_iter().collect();
    let mut reached = HashSet::new();
    let roots = list("SELECT chain_id FROM images UNION SELECT result FROM records")?;
    let in_use = links.iter().filter(|(_, (_, layer))| leased.contains(layer)).map(|(chain, _)| *chain);
    for root in roots.into_iter().chain(in_use) {
        let mut at = root;
        while let Some((parent, _)) = links.get(&at)
            && reached.insert(at)
        {
            at = *parent;
        }
    }
    for chain in links.keys().filter(|chain| !reached.contains(*chain)) {
        execute(t, "DELETE FROM chains WHERE chain_id = ?1", [chain.as_bytes()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Durability;
    use crate::store::Ownership;

    /// A lease that thinks it has what it has not would let the collector take layers that are in use.
    #[test]
    fn what_was_rolled_back_is_not_leased() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), Ownership::SingleId).unwrap();
        let lease = store.lease("test").unwrap();
        let layer = DiffId(Digest::of(b"layer"));
        let chain = ChainId::SCRATCH.with(layer);
        let rows = || {
            let count = "SELECT count(*) FROM lease_roots";
            store.database.one(count, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        store
            .database
            .write(Durability::Relaxed, |t| {
                let key = layer.0.as_bytes();
                execute(t, "INSERT INTO layers VALUES (?1, 0, 0, 0, 1, 1, 0, NULL, 0, 0, 1)", [key])?;
                execute(t, "INSERT INTO snapshots VALUES ('s', 'l', ?1, 'single-id', ?1, NULL, 0)", [key])?;
                insert_link(t, ChainId::SCRATCH, layer)
            })
            .unwrap();
        let rolled_back: Result<()> = store.database.write(Durability::Relaxed, |t| {
            assert_eq!(store.keep_chain_in(t, &lease, chain)?, Some(vec![chain]));
            Err(Error::NoImage("the disk is full".to_owned()))
        });
        rolled_back.unwrap_err();
        assert!(!lease.has_kept(chain) && rows() == Some(0));

        let kept = store.database.write(Durability::Relaxed, |t| store.keep_chain_in(t, &lease, chain));
        lease.note_kept(kept.unwrap().unwrap());
        assert!(lease.has_kept(chain) && rows() == Some(1));
    }
}
