//! The build cache: records by key, with their whole preimages, and claims between processes.

use std::time::Duration;

use kiln_oci::{ChainId, DiffId, Digest};
use kiln_sys::lock::{Lock, Sharing, holders};
use rusqlite::{Connection, params};

use crate::Store;
use crate::database::{Durability, all, digest, execute, now};
use crate::error::Result;
use crate::lease::Lease;
use crate::waiting::Working;

/// The most records that are kept: the steps of thousands of builds, in a few tens of megabytes.
const MOST_RECORDS: i64 = 20_000;
/// A use of a record is noted unless one of the last day was: looking an unchanged build up writes next to nothing.
pub(crate) const NOTED_AGAIN: i64 = 24 * 3600 * 1_000_000_000;

/// One input of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordInput {
    /// Such as `root`.
    pub name: String,
    /// What of it was selected.
    pub selector: String,
    /// Digest of the selected content, or a chain ID.
    pub digest: Digest,
}

/// A cache record: what a step made, and from what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRecord {
    /// Digest of operation and inputs.
    pub key: Digest,
    /// Digest of the operation.
    pub operation: Digest,
    /// The operation's name.
    pub operation_name: String,
    /// The operation's canonical JSON.
    pub operation_json: Vec<u8>,
    /// The inputs in order.
    pub inputs: Vec<RecordInput>,
    /// What the step was done to; not kept, and scratch in records that were read.
    pub parent: ChainId,
    /// What it gave: `parent` itself, or with `layer` on top.
    pub result: ChainId,
    /// The layer that was made; `None` if the step made none.
    pub layer: Option<DiffId>,
    /// How long the step took.
    pub wall_time: Duration,
    /// Bytes of regular files in the layer.
    pub bytes: u64,
    /// When the layer was first made, nanoseconds since the epoch.
    pub created: i64,
    /// The step as it was shown.
    pub name: String,
}

/// When a layer was first made that a step made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstMade {
    /// As the record of the same key and result says, if there is one.
    Kept,
    /// Now: earlier records do not count.
    Now,
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedResult {
    /// What the step gave.
    pub result: ChainId,
    /// The layer that was made; `None` if the step made none.
    pub layer: Option<DiffId>,
    /// Whether all layers of the result are in the store now; they are leased if so.
    pub present: bool,
    /// How long it took to make.
    pub wall_time: Duration,
    /// When the layer was first made, nanoseconds since the epoch.
    pub created: i64,
}

/// A claim on a key: no other process works on it until this is dropped or its process dies.
#[derive(Debug)]
pub struct Claim {
    _lock: Lock,
}

impl Store {
    /// Looks a key up and, if the layers of its result are there, leases them: one transaction. Nothing is written if
    /// they are leased already.
    pub fn cached(&self, key: &Digest, lease: &Lease) -> Result<Option<CachedResult>> {
        let Some((known, last_used)) = find_record(&self.database.lock(), key)? else { return Ok(None) };
        if lease.has_kept(known.result) && now().saturating_sub(last_used) <= NOTED_AGAIN {
            return Ok(Some(known));
        }
        let found = self.database.write(Durability::Relaxed, |t| {
            let Some((cached, last_used)) = find_record(t, key)? else { return Ok(None) };
            let now = now();
            if now.saturating_sub(last_used) > NOTED_AGAIN {
                let sql = "UPDATE records SET last_used = ?1 WHERE key = ?2";
                execute(t, sql, params![now, key.as_bytes()])?;
            }
            let kept = self.keep_chain_in(t, lease, cached.result)?;
            let cached = CachedResult { present: kept.is_some(), ..cached };
            Ok(Some((cached, kept.unwrap_or_default())))
        })?;
        Ok(found.map(|(cached, kept)| {
            lease.note_kept(kept);
            cached
        }))
    }

    /// Writes a record and gives its time of creation, which is what an image made of it is to say: later builds, which
    /// find the record, then make the same image.
    pub fn record(&self, record: &CacheRecord, made: FirstMade) -> Result<i64> {
        self.database.write(Durability::Relaxed, |t| {
            execute(
                t,
                "INSERT INTO operations VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![record.operation.as_bytes(), record.operation_name, record.operation_json],
            )?;
            let created = all(
                t,
                "INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (key) DO UPDATE SET \
                 created = iif(result = ?3 AND ?10, created, ?7), result = ?3, layer = ?4, wall_time = ?5, \
                 bytes = ?6, last_used = ?8 RETURNING created",
                params![
                    record.key.as_bytes(),
                    record.operation.as_bytes(),
                    record.result.0.as_bytes(),
                    record.layer.map(|layer| *layer.0.as_bytes()),
                    i64::try_from(record.wall_time.as_nanos()).unwrap_or(i64::MAX),
                    i64::try_from(record.bytes).unwrap_or(i64::MAX),
                    record.created,
                    now(),
                    record.name,
                    made == FirstMade::Kept
                ],
                |row| row.get(0),
            )?;
            if let Some(layer) = record.layer {
                crate::chains::insert_link(t, record.parent, layer)?;
            }
            execute(t, "DELETE FROM record_inputs WHERE key = ?1", [record.key.as_bytes()])?;
            for (position, input) in record.inputs.iter().enumerate() {
                execute(
                    t,
                    "INSERT INTO record_inputs VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        record.key.as_bytes(),
                        position as i64,
                        input.name,
                        input.selector,
                        input.digest.as_bytes()
                    ],
                )?;
            }
            Ok(created.first().copied().unwrap_or(record.created))
        })
    }

    /// Records that a miss may be compared with: those of the same operation, and those of operations of the same
    /// name, at most `limit` of each, the newest first.
    pub fn nearest_records(
        &self,
        operation: &Digest,
        operation_name: &str,
        limit: u32,
    ) -> Result<Vec<CacheRecord>> {
        const COLUMNS: &str = "r.key, r.operation, o.name, o.json, r.result, r.wall_time, r.bytes, r.created, \
                               r.name, r.layer, r.last_used";
        let connection = self.database.lock();
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(10)?, read_record(row)?));
        let same = format!(
            "SELECT {COLUMNS} FROM records r JOIN operations o ON o.digest = r.operation \
             WHERE r.operation = ?1 ORDER BY r.last_used DESC LIMIT ?2"
        );
        let mut found = all(&connection, &same, params![operation.as_bytes(), limit], read)?;
        // CROSS JOIN makes SQLite go through the records from the newest on, and stop when there are enough.
        let named = format!(
            "SELECT {COLUMNS} FROM records r CROSS JOIN operations o ON o.digest = r.operation \
             WHERE o.name = ?1 AND r.operation <> ?3 ORDER BY r.last_used DESC LIMIT ?2"
        );
        let parameters = params![operation_name, limit, operation.as_bytes()];
        found.extend(all(&connection, &named, parameters, read)?);
        found.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        let mut records: Vec<CacheRecord> = found.into_iter().map(|(_, record)| record).collect();
        for record in &mut records {
            record.inputs = all(
                &connection,
                "SELECT name, selector, digest FROM record_inputs WHERE key = ?1 ORDER BY position",
                [record.key.as_bytes()],
                |row| Ok(RecordInput { name: row.get(0)?, selector: row.get(1)?, digest: digest(row, 2)? }),
            )?;
        }
        Ok(records)
    }

    /// Claims a key for this process, or `None` while another one works on it.
    pub fn try_claim(&self, key: &Digest) -> Result<Option<Claim>> {
        let lock = Lock::try_acquire(&self.claim_path("", key), Sharing::Exclusive)?;
        Ok(lock.map(|lock| Claim { _lock: lock }))
    }

    /// The processes that work on a key, as far as they can be told.
    pub fn claim_holders(&self, key: &Digest) -> Vec<u32> {
        holders(&self.claim_path("", key))
    }

    /// Waits until nobody makes the files of a layer ready, and claims that. A thread may hold a claim of a key of the
    /// build already: these are others, so that it cannot wait for itself.
    pub(crate) fn claim_files(&self, key: &Digest, waiting: Working<'_>) -> Result<Claim> {
        let lock = self.lock_files(&self.claim_path("files-", key), waiting)?;
        Ok(Claim { _lock: lock })
    }

    /// One of 4,096 lock files: two keys that share one wait for each other needlessly, which is harmless,
    /// and the files never need to be removed.
    fn claim_path(&self, kind: &str, key: &Digest) -> std::path::PathBuf {
        self.root().join("claims").join(format!("{kind}{}", &key.hex()[..3]))
    }
}

/// Whether there are more records than are kept.
pub(crate) fn are_too_many(connection: &Connection) -> Result<bool> {
    Ok(!all(connection, "SELECT 1 FROM records LIMIT 1 OFFSET ?1", [MOST_RECORDS], |_| Ok(()))?.is_empty())
}

/// If there are more records than are kept, forgets those that were used longest ago, and some more, so that not every
/// collection has to.
pub(crate) fn trim(t: &Connection) -> Result<()> {
    if !are_too_many(t)? {
        return Ok(());
    }
    execute(
        t,
        "DELETE FROM records WHERE key IN (SELECT key FROM records ORDER BY last_used DESC LIMIT -1 OFFSET ?1)",
        [MOST_RECORDS - MOST_RECORDS / 10],
    )?;
    execute(t, "DELETE FROM operations WHERE digest NOT IN (SELECT operation FROM records)", [])?;
    Ok(())
}

fn read_record(row: &rusqlite::Row<'_>) -> rusqlite::Result<CacheRecord> {
    let result = digest(row, 4)?;
    let wall_time: i64 = row.get(5)?;
    let bytes: i64 = row.get(6)?;
    let layer: Option<[u8; 32]> = row.get(9)?;
    Ok(CacheRecord {
        key: digest(row, 0)?,
        operation: digest(row, 1)?,
        operation_name: row.get(2)?,
        operation_json: row.get(3)?,
        inputs: Vec::new(),
        parent: ChainId::SCRATCH,
        result: ChainId(result),
        layer: layer.map(|layer| DiffId(Digest::from_bytes(layer))),
        wall_time: Duration::from_nanos(wall_time.unsigned_abs()),
        bytes: bytes.unsigned_abs(),
        created: row.get(7)?,
        name: row.get(8)?,
    })
}
/// A record as it is, taken to be there, and when it was last used.
pub(crate) fn find_record(connection: &Connection, key: &Digest) -> Result<Option<(CachedResult, i64)>> {
    let rows = all(
        connection,
        "SELECT result, layer, created, wall_time, last_used FROM records WHERE key = ?1",
        [key.as_bytes()],
        |row| {
            let layer: Option<[u8; 32]> = row.get(1)?;
            let cached = CachedResult {
                result: ChainId(digest(row, 0)?),
                layer: layer.map(Digest::from_bytes).map(DiffId),
                present: true,
                wall_time: Duration::from_nanos(row.get::<_, i64>(3)?.unsigned_abs()),
                created: row.get(2)?,
            };
            Ok((cached, row.get(4)?))
        },
    )?;
    Ok(rows.into_iter().next())
}
