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
const VERSION: u32 = 2;
const HEADER: usize = 24;
const RECORD: usize = 88;
/// The part of a record that says whose it is and how the file looked, in words of eight bytes.
const LOOKS: usize = 7;
/// Where the digest begins.
const DIGEST: usize = LOOKS * 8;
/// Both times of a file must be so many seconds older than the start of its reading: stamps are coarse.
const SETTLED: i64 = 2;
/// Records of files that no longer turn up are kept until there are so many.
const MOST: usize = 1 << 20;

/// What is known of a context's files.
#[derive(Debug, Default)]
pub(crate) struct StatCache {
    directory: Option<Directory>,
    name: String,
    /// Of the file system that it holds for.
    file_system: [u8; 8],
    stored: Option<Map>,
    learned: BTreeMap<(u64, u64), [u8; RECORD]>,
}

impl StatCache {
    /// The cache for the context directory with this device and inode, on this file system. One that cannot be read is
    /// empty, and so is that of another file system.
    pub(crate) fn open(directory: Directory, identity: (u64, u64), file_system: [u8; 8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(&identity.0.to_le_bytes());
        hasher.update(&identity.1.to_le_bytes());
        let name = hasher.finish().hex();
        let map = directory.open_file(&name).ok().and_then(|file| Map::of(&file).ok());
        let stored = map.filter(|map| is_valid(map, file_system));
        Self { directory: Some(directory), name, file_system, stored, learned: BTreeMap::new() }
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
        let record = learned.or(known).filter(|record| record[..DIGEST] == *encode(stamp).as_flattened())?;
        record.last_chunk().copied().map(Digest::from_bytes)
    }

    /// Remembers a digest if the file had not been touched for a while when its reading started.
    pub(crate) fn learn(&mut self, stamp: Stamp, digest: Digest, start: Time) {
        let settled = |(seconds, nanoseconds): (i64, u32)| {
            let time = Time { seconds: seconds.saturating_add(SETTLED), nanoseconds };
            time <= start
        };
        if settled(stamp.modified) && settled(stamp.changed) {
            let mut record = [0; RECORD];
            record[..DIGEST].copy_from_slice(encode(&stamp).as_flattened());
            record[DIGEST..].copy_from_slice(digest.as_bytes());
            self.learned.insert((stamp.device, stamp.inode), record);
        }
    }

    /// Forgets all: what is learned from now on is all that is kept.
    pub(crate) fn forget(&mut self) {
        self.stored = None;
        self.learned.clear();
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
        bytes.extend_from_slice(&self.file_system);
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
        self.stored = is_valid(&mapped, self.file_system).then_some(mapped);
        self.learned.clear();
        Ok(())
    }
}

fn is_valid(bytes: &[u8], file_system: [u8; 8]) -> bool {
    let header = bytes.get(..HEADER).is_some_and(|header| {
        header.starts_with(MAGIC)
            && header[8..12] == VERSION.to_le_bytes()
            && header[12..16] == (((bytes.len() - HEADER) / RECORD) as u32).to_le_bytes()
            && header[16..] == file_system
    });
    header && (bytes.len() - HEADER).is_multiple_of(RECORD)
}

/// The first position from which on no record is before `wanted`, which is usually near.
fn gallop(records: &[[u8; RECORD]], wanted: (u64, u64)) -> usize {
    let before = |record: &[u8; RECORD]| identity(record) < wanted;
    let (mut low, mut next) = (0, 0);
    while records.get(next).is_some_and(before) {
        low = next + 1;
        next += low;
    }
    low + records[low..records.len().min(next)].partition_point(before)
}

/// Device and inode, read as words: to copy slices of a few bytes is a call where the compiler does not put it in line.
fn identity(record: &[u8; RECORD]) -> (u64, u64) {
    let words = record.as_chunks().0;
    (u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]))
}

/// How a file looks, as a record has it. Seconds of its second time lie across two words.
fn encode(stamp: &Stamp) -> [[u8; 8]; LOOKS] {
    let (modified, changed) = (u64::from(stamp.modified.1), stamp.changed.0.cast_unsigned());
    [
        stamp.device.to_le_bytes(),
        stamp.inode.to_le_bytes(),
        stamp.size.to_le_bytes(),
        stamp.modified.0.to_le_bytes(),
        (modified | (changed << 32)).to_le_bytes(),
        ((changed >> 32) | (u64::from(stamp.changed.1) << 32)).to_le_bytes(),
        u64::from(stamp.mode).to_le_bytes(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(inode: u64) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&7_u64.to_le_bytes());
        record[8..16].copy_from_slice(&inode.to_le_bytes());
        record
    }

    #[test]
    fn what_is_near_is_found_as_by_looking_through_all() {
        for count in 0..40 {
            let records: Vec<[u8; RECORD]> = (0..count).map(|number| record(2 * number + 1)).collect();
            for wanted in (0..2 * count + 2).map(|inode| (7, inode)).chain([(6, 99), (8, 0)]) {
                let expected = records.iter().filter(|record| identity(record) < wanted).count();
                assert_eq!(gallop(&records, wanted), expected, "{wanted:?} of {count}");
            }
        }
    }

    #[test]
    fn what_another_file_system_told_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = |system| {
            let caches = Directory::open(directory.path()).expect("opened");
            StatCache::open(caches, (1, 2), [system; 8])
        };
        let stamp =
            Stamp { device: 1, inode: 3, size: 4, modified: (5, 0), changed: (6, 0), mode: 0o100_644 };
        let mut cache = open(7);
        cache.learn(stamp, Digest::of(b"x"), Time { seconds: 9, nanoseconds: 0 });
        cache.save().expect("saved");
        assert_eq!(open(7).content(&stamp, &mut 0), Some(Digest::of(b"x")));
        assert_eq!(open(8).content(&stamp, &mut 0), None);
    }

    #[test]
    fn a_record_is_laid_out_as_its_format_says() {
        let stamp = Stamp {
            device: 0x0102_0304_0506_0708,
            inode: 2,
            size: 3,
            modified: (-4, 0x1122_3344),
            changed: (-0x0102_0304_0506_0708, 0x5566_7788),
            mode: 0o100_644,
        };
        let mut expected = Vec::new();
        for number in [stamp.device, stamp.inode, stamp.size] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        for (seconds, nanoseconds) in [stamp.modified, stamp.changed] {
            expected.extend_from_slice(&seconds.to_le_bytes());
            expected.extend_from_slice(&nanoseconds.to_le_bytes());
        }
        expected.extend_from_slice(&stamp.mode.to_le_bytes());
        expected.extend_from_slice(&[0; 4]);
        assert_eq!(encode(&stamp).as_flattened(), expected);
        let mut record = record(0);
        record[..DIGEST].copy_from_slice(&expected);
        assert_eq!(identity(&record), (stamp.device, stamp.inode));
    }
}
