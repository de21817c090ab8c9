//! The context stat cache: which content files had when they looked as they do now (docs/formats.md, section 7).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;

use kiln_oci::{Digest, Hasher};
use kiln_sys::mmap::Map;
use kiln_sys::publish;
use kiln_sys::root::{Directory, FileError, Time};

use crate::tree::Stamp;

const MAGIC: &[u8] = b"kilnctx\n";
const VERSION: u32 = 1;
const HEADER: usize = 16;
const RECORD: usize = 88;
/// Both times of a file must be so many seconds older than the start of its reading: stamps are coarse.
const SETTLED: i64 = 2;
/// Records of files that no longer turn up are kept until there are so many.
const MOST: usize = 1 << 20;

/// What is known of a context's files.
#[derive(Debug, Default)]
pub(crate) struct StatCache {
    directory: Option<Directory>,
    name: String,
    stored: Option<Map>,
    learned: BTreeMap<(u64, u64), [u8; RECORD]>,
}

impl StatCache {
    /// The cache for the context directory with this device and inode. One that cannot be read is empty.
    pub(crate) fn open(directory: Option<Directory>, identity: (u64, u64)) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(&identity.0.to_le_bytes());
        hasher.update(&identity.1.to_le_bytes());
        let name = hasher.finish().hex();
        let stored = directory.as_ref().and_then(|directory| {
            let map = Map::of(&directory.open_file(&name).ok()?).ok()?;
            is_valid(&map).then_some(map)
        });
        Self { directory, name, stored, learned: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records().is_empty()
    }

    fn records(&self) -> &[[u8; RECORD]] {
        let stored = self.stored.as_deref().and_then(|map| map.get(HEADER..)).unwrap_or_default();
        stored.as_chunks().0
    }

    /// The content of a file, if it looks as it did when it was hashed. Files are best asked for in order of device and
    /// inode: `from`, zero for the first of a row, tells where the search for the next one begins.
    pub(crate) fn content(&self, stamp: &Stamp, from: &mut usize) -> Option<Digest> {
        let wanted = (stamp.device, stamp.inode);
        let stored = self.records();
        *from += gallop(&stored[*from..], wanted);
        let known = stored.get(*from).filter(|record| identity(record) == wanted);
        let learned = if self.learned.is_empty() { None } else { self.learned.get(&wanted) };
        let record = learned.or(known).filter(|record| record[..52] == encode(stamp))?;
        let mut digest = [0; 32];
        digest.copy_from_slice(&record[56..]);
        Some(Digest::from_bytes(digest))
    }

    /// Remembers a digest if the file had not been touched for a while when its reading started.
    pub(crate) fn learn(&mut self, stamp: Stamp, digest: Digest, start: Time) {
        let settled = |(seconds, nanoseconds): (i64, u32)| {
            let time = Time { seconds: seconds.saturating_add(SETTLED), nanoseconds };
            time <= start
        };
        if settled(stamp.modified) && settled(stamp.changed) {
            let mut record = [0; RECORD];
            record[..52].copy_from_slice(&encode(&stamp));
            record[56..].copy_from_slice(digest.as_bytes());
            self.learned.insert((stamp.device, stamp.inode), record);
        }
    }

    /// Writes what was learned.
    pub(crate) fn save(&mut self) -> Result<(), FileError> {
        let Some(directory) = self.directory.as_ref().filter(|_| !self.learned.is_empty()) else {
            return Ok(());
        };
        let kept = self.records();
        let kept = if kept.len() + self.learned.len() > MOST { &[] } else { kept };
        let mut bytes = Vec::with_capacity(HEADER + (kept.len() + self.learned.len()) * RECORD);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let mut learned = self.learned.iter().peekable();
        for record in kept {
            let identity = identity(record);
            while let Some((_, new)) = learned.next_if(|(key, _)| **key < identity) {
                bytes.extend_from_slice(new);
            }
            match learned.next_if(|(key, _)| **key == identity) {
                Some((_, new)) => bytes.extend_from_slice(new),
                None => bytes.extend_from_slice(record),
            }
        }
        for (_, new) in learned {
            bytes.extend_from_slice(new);
        }
        let count = ((bytes.len() - HEADER) / RECORD) as u32;
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        publish::write_over(directory, OsStr::new(&self.name), &bytes, 0o600)?;
        let reopened = directory.open_file(&self.name)?;
        let mapped = Map::of(&reopened).map_err(|source: io::Error| FileError {
            operation: "map",
            path: directory.name().join(&self.name),
            source,
        })?;
        self.stored = is_valid(&mapped).then_some(mapped);
        self.learned.clear();
        Ok(())
    }
}

fn is_valid(bytes: &[u8]) -> bool {
    let header = bytes.get(..HEADER).is_some_and(|header| {
        header.starts_with(MAGIC)
            && header[8..12] == VERSION.to_le_bytes()
            && header[12..16] == (((bytes.len() - HEADER) / RECORD) as u32).to_le_bytes()
    });
    header && (bytes.len() - HEADER).is_multiple_of(RECORD)
}

/// The first position from which on no record is before `wanted`, which is usually near.
fn gallop(records: &[[u8; RECORD]], wanted: (u64, u64)) -> usize {
    let before = |record: &[u8; RECORD]| identity(record) < wanted;
    let mut step = 1;
    while step < records.len() && before(&records[step]) {
        step *= 2;
    }
    let low = step / 2;
    low + records[low..records.len().min(step + 1)].partition_point(before)
}

fn identity(record: &[u8; RECORD]) -> (u64, u64) {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&record[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    (number(0), number(8))
}

fn encode(stamp: &Stamp) -> [u8; 52] {
    let mut bytes = [0; 52];
    bytes[..8].copy_from_slice(&stamp.device.to_le_bytes());
    bytes[8..16].copy_from_slice(&stamp.inode.to_le_bytes());
    bytes[16..24].copy_from_slice(&stamp.size.to_le_bytes());
    bytes[24..32].copy_from_slice(&stamp.modified.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&stamp.modified.1.to_le_bytes());
    bytes[36..44].copy_from_slice(&stamp.changed.0.to_le_bytes());
    bytes[44..48].copy_from_slice(&stamp.changed.1.to_le_bytes());
    bytes[48..].copy_from_slice(&stamp.mode.to_le_bytes());
    bytes
}
