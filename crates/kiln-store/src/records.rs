//! The build cache: records by key, with their whole preimages, and claims between processes.

use std::ops::Range;
use std::time::Duration;

use kiln_oci::{ChainId, DiffId, Digest, Hasher};
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

/// So long must a part of an operation's text be to be stored apart from it.
const LEAST_SHARED: usize = 1024;
/// The name, in their table, of texts that are parts of operations; none has it.
const SHARED_NAME: &str = "";
/// What an operation's text begins with where a part of it is stored apart; JSON does not.
const SHARED_MARK: u8 = 0;
const SHARED_MAGIC: &[u8] = b"kiln-shared-1\n";

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
    /// A part of it that other operations may have, too, such as the environment: one that is long is stored once for all.
    pub shared: Option<Range<usize>>,
    /// The inputs in order.
    pub inputs: Vec<RecordInput>,
    /// What the step was done to.
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

/// What of a record a miss is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearRecord {
    /// Digest of the operation, whose text [`Store::operation`] gives.
    pub operation: Digest,
    /// The inputs in order.
    pub inputs: Vec<RecordInput>,
    /// The layer that was made; `None` if the step made none.
    pub layer: Option<DiffId>,
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
            write_operation(t, record)?;
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
    ) -> Result<Vec<NearRecord>> {
        const COLUMNS: &str = "r.key, r.operation, r.layer, r.last_used";
        let connection = self.database.lock();
        let read = |row: &rusqlite::Row<'_>| {
            let layer: Option<[u8; 32]> = row.get(2)?;
            let layer = layer.map(Digest::from_bytes).map(DiffId);
            let record = NearRecord { operation: digest(row, 1)?, inputs: Vec::new(), layer };
            Ok((row.get::<_, i64>(3)?, digest(row, 0)?, record))
        };
        let same = format!(
            "SELECT {COLUMNS} FROM records r WHERE r.operation = ?1 ORDER BY r.last_used DESC LIMIT ?2"
        );
        let mut found = all(&connection, &same, params![operation.as_bytes(), limit], read)?;
        // CROSS JOIN makes SQLite go through the records from the newest on, and stop when there are enough.
        let named = format!(
            "SELECT {COLUMNS} FROM records r CROSS JOIN operations o ON o.digest = r.operation \
             WHERE o.name = ?1 AND r.operation <> ?3 ORDER BY r.last_used DESC LIMIT ?2"
        );
        let parameters = params![operation_name, limit, operation.as_bytes()];
        found.extend(all(&connection, &named, parameters, read)?);
        found.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let inputs = |key: &Digest| {
            all(
                &connection,
                "SELECT name, selector, digest FROM record_inputs WHERE key = ?1 ORDER BY position",
                [key.as_bytes()],
                |row| Ok(RecordInput { name: row.get(0)?, selector: row.get(1)?, digest: digest(row, 2)? }),
            )
        };
        let filled = |(_, key, record): (i64, Digest, NearRecord)| -> Result<NearRecord> {
            Ok(NearRecord { inputs: inputs(&key)?, ..record })
        };
        found.into_iter().map(filled).collect()
    }

    /// An operation's canonical JSON, if it is known whole.
    pub fn operation(&self, operation: &Digest) -> Result<Option<Vec<u8>>> {
        let connection = self.database.lock();
        read_operation(&connection, operation)
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

    /// As [`Store::claim_files`], of a layer's tar: who makes files ready may need it, and holds another claim then.
    pub(crate) fn claim_tar(&self, layer: DiffId, waiting: Working<'_>) -> Result<Claim> {
        let lock = self.lock_files(&self.claim_path("tar-", &layer.0), waiting)?;
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
    forget_operations(t)
}

/// Forgets the operations that no record has, and the parts that no operation has.
fn forget_operations(t: &Connection) -> Result<()> {
    execute(
        t,
        "DELETE FROM operations WHERE name <> ?1 AND digest NOT IN (SELECT operation FROM records)",
        [SHARED_NAME],
    )?;
    execute(
        t,
        "DELETE FROM operations WHERE name = ?1 AND digest NOT IN \
         (SELECT substr(json, 6) FROM \
         (SELECT substr(json, 1, 37) AS json FROM operations WHERE name <> ?1 AND substr(json, 1, 1) = x'00'))",
        [SHARED_NAME],
    )?;
    Ok(())
}

/// Writes an operation, unless it is there. Of a stage with many variables the steps have hundreds of kilobytes in common.
fn write_operation(t: &Connection, record: &CacheRecord) -> Result<()> {
    const INSERT: &str = "INSERT INTO operations VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    let text = &record.operation_json;
    let shared = record.shared.clone().and_then(|range| Some((range.start, text.get(range)?)));
    let stored = match shared.filter(|(_, part)| part.len() >= LEAST_SHARED) {
        None => text.clone(),
        Some((start, part)) => {
            let digest = shared_digest(part);
            execute(t, INSERT, params![digest.as_bytes(), SHARED_NAME, part])?;
            let place = u32::try_from(start).unwrap_or(u32::MAX).to_le_bytes();
            let (before, after) = (&text[..start], &text[start + part.len()..]);
            [&[SHARED_MARK], &place[..], digest.as_bytes(), before, after].concat()
        }
    };
    execute(t, INSERT, params![record.operation.as_bytes(), record.operation_name, stored])?;
    Ok(())
}

fn read_operation(connection: &Connection, operation: &Digest) -> Result<Option<Vec<u8>>> {
    let text = |digest: &[u8]| -> Result<Option<Vec<u8>>> {
        let rows =
            all(connection, "SELECT json FROM operations WHERE digest = ?1", [digest], |row| row.get(0))?;
        Ok(rows.into_iter().next())
    };
    let Some(stored) = text(operation.as_bytes())? else { return Ok(None) };
    let Some((&SHARED_MARK, rest)) = stored.split_first() else { return Ok(Some(stored)) };
    let Some((place, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let Some((digest, rest)) = rest.split_first_chunk::<32>() else { return Ok(None) };
    let place = u32::from_le_bytes(*place) as usize;
    let Some((before, after)) = rest.split_at_checked(place) else { return Ok(None) };
    Ok(text(digest)?.map(|part| [before, &part, after].concat()))
}

fn shared_digest(part: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(SHARED_MAGIC);
    hasher.update(part);
    hasher.finish()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Database;

    /// An operation whose member in the middle is long.
    fn operation(name: &str, shared: &str) -> CacheRecord {
        let text = format!("{{\"a\":\"{name}\",\"b\":{shared},\"c\":1}}");
        let start = text.find(shared).unwrap();
        CacheRecord {
            key: Digest::of(name.as_bytes()),
            operation: Digest::of(text.as_bytes()),
            operation_name: "run".to_owned(),
            operation_json: text.into_bytes(),
            shared: Some(start..start + shared.len()),
            inputs: Vec::new(),
            parent: ChainId::SCRATCH,
            result: ChainId::SCRATCH,
            layer: None,
            wall_time: Duration::ZERO,
            bytes: 0,
            created: 0,
            name: String::new(),
        }
    }

    #[test]
    fn long_parts_of_operations_are_stored_once() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("kiln.db")).unwrap();
        let (long, other) = (format!("[{}0]", "1,".repeat(10_000)), format!("[{}2]", "1,".repeat(10_000)));
        let operations: Vec<_> = (0..100)
            .map(|number| operation(&number.to_string(), &long))
            .chain([operation("x", &other)])
            .collect();
        let short = operation("short", "[1]");
        database
            .write(Durability::Relaxed, |t| {
                operations.iter().chain([&short]).try_for_each(|record| write_operation(t, record))
            })
            .unwrap();
        let connection = database.lock();
        for record in operations.iter().chain([&short]) {
            let found = read_operation(&connection, &record.operation).unwrap();
            assert_eq!(found.as_ref(), Some(&record.operation_json));
        }
        assert_eq!(read_operation(&connection, &Digest::of(b"none")).unwrap(), None);
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert!(number("SELECT sum(length(json)) FROM operations") < 60_000);
        // What no record has goes, and a part goes with the last operation that has it.
        for kept in [&operations[3], &short] {
            let record = "INSERT INTO records VALUES (?1, ?2, zeroblob(32), NULL, 0, 0, 0, 0, '')";
            execute(&connection, record, params![kept.key.as_bytes(), kept.operation.as_bytes()]).unwrap();
        }
        forget_operations(&connection).unwrap();
        assert_eq!(number("SELECT count(*) FROM operations"), 3);
        let found = |record: &CacheRecord| read_operation(&connection, &record.operation).unwrap();
        assert_eq!(found(&operations[3]).as_ref(), Some(&operations[3].operation_json));
        assert_eq!((found(&operations[4]), found(&operations[100])), (None, None));
        execute(&connection, "DELETE FROM records", []).unwrap();
        forget_operations(&connection).unwrap();
        assert_eq!(number("SELECT count(*) FROM operations"), 0);
    }

    #[test]
    fn damaged_operations_are_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("kiln.db")).unwrap();
        let connection = database.lock();
        let whole = [&[SHARED_MARK], &9_u32.to_le_bytes()[..], &[7; 32], b"{}"].concat();
        for length in 1..=whole.len() {
            let digest = Digest::of(&whole[..length]);
            execute(
                &connection,
                "INSERT INTO operations VALUES (?1, 'run', ?2)",
                params![digest.as_bytes(), &whole[..length]],
            )
            .unwrap();
            assert_eq!(read_operation(&connection, &digest).unwrap(), None);
        }
    }
}
