//! pax extended headers (POSIX.1-2017, `pax`): records of `length key=value\n`.

use std::collections::BTreeMap;

use super::sparse::decimal;
use super::{Entry, damaged};
use crate::error::{Result, TarProblem};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records for one entry, later ones over earlier ones.
#[derive(Default)]
pub(super) struct Records {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU sparse 0.0 repeats two keys in turn.
    sparse_map: Vec<u8>,
    sparse_numbers: usize,
}

/// What pax records say about a sparse file.
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// The map of formats 0.0 and 0.1; in format 1.0 it is in the content.
    pub(super) map: Option<Vec<u8>>,
    /// How many regions there are, where the records say so.
    pub(super) regions: Option<u64>,
}

impl Records {
    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.sparse_map.clear();
        self.sparse_numbers = 0;
    }

    /// Reads a whole extended header; it replaces an earlier one for the same entry.
    pub(super) fn parse(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        self.clear();
        each(bytes, |key, value| self.add(key, value)).ok_or_else(|| damaged(at, TarProblem::Pax))?;
        // POSIX and Go take an empty one for none at all, GNU tar refuses it, Python takes it for zero.
        let governs =
            |key: &[u8]| matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime");
        if self.records.iter().any(|(key, value)| value.is_empty() && governs(key)) {
            return Err(damaged(at, TarProblem::Disagreement("an empty record")));
        }
        Ok(())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let expected = match key {
            b"GNU.sparse.offset" => 0,
            b"GNU.sparse.numbytes" => 1,
            _ => {
                let again = self.records.insert(key.to_vec(), value.to_vec()).is_some();
                // The last one wins, but only where the first one can be read.
                return (!again || !governs(key)).then_some(());
            }
        };
        if self.sparse_numbers % 2 != expected || value.contains(&b',') {
            return None;
        }
        if self.sparse_numbers > 0 {
            self.sparse_map.push(b',');
        }
        self.sparse_map.extend_from_slice(value);
        self.sparse_numbers += 1;
        Some(())
    }

    /// The value of a record; an empty one means "as if it were not there".
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.get(key).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// Whether any record is about a sparse file.
    pub(super) fn speaks_of_sparse(&self) -> bool {
        self.sparse_numbers > 0 || self.records.keys().any(|key| key.starts_with(b"GNU.sparse."))
    }

    pub(super) fn has_path(&self) -> bool {
        self.get(b"path").is_some()
    }

    pub(super) fn has_size(&self) -> bool {
        self.get(b"size").is_some()
    }

    pub(super) fn has_link(&self) -> bool {
        self.get(b"linkpath").is_some()
    }

    pub(super) fn apply(&self, entry: &mut Entry, at: u64) -> Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let bad = || damaged(at, TarProblem::Pax);
        let identity = |key: &[u8]| match self.get(key) {
            Some(value) => {
                // The largest one is nobody: chown(2) takes it for "as it is".
                let number = decimal(value).and_then(|value| u32::try_from(value).ok());
                number.filter(|number| *number != u32::MAX).ok_or_else(bad).map(Some)
            }
            None => Ok(None),
        };
        if let Some(path) = self.get(b"path") {
            path.clone_into(&mut entry.name);
        }
        if let Some(link) = self.get(b"linkpath") {
            link.clone_into(&mut entry.link);
        }
        if let Some(size) = self.get(b"size") {
            entry.size = decimal(size).filter(|size| *size <= i64::MAX as u64).ok_or_else(bad)?;
        }
        entry.uid = identity(b"uid")?.unwrap_or(entry.uid);
        entry.gid = identity(b"gid")?.unwrap_or(entry.gid);
        if let Some(time) = self.get(b"mtime") {
            (entry.seconds, entry.nanoseconds) = parse_time(time).ok_or_else(bad)?;
        }
        for (key, value) in &self.records {
            if let Some(name) = key.strip_prefix(XATTR)
                && !name.is_empty()
            {
                entry.xattrs.push((name.to_vec(), value.clone()));
            }
        }
        Ok(())
    }

    /// What the records say about a sparse file, if they do.
    pub(super) fn sparse(&self, at: u64) -> Result<Option<Sparse>> {
        if self.records.is_empty() && self.sparse_numbers == 0 {
            return Ok(None);
        }
        let bad = || damaged(at, TarProblem::Sparse);
        if !self.sparse_numbers.is_multiple_of(2) {
            return Err(bad());
        }
        let map =
            if self.sparse_numbers > 0 { Some(&self.sparse_map[..]) } else { self.get(b"GNU.sparse.map") };
        let regions = match self.get(b"GNU.sparse.numblocks") {
            Some(count) => Some(decimal(count).ok_or_else(bad)?),
            None => None,
        };
        let map = match (self.get(b"GNU.sparse.major"), self.get(b"GNU.sparse.minor")) {
            (Some(b"0"), Some(b"0" | b"1")) => Some(map.unwrap_or_default()),
            (Some(b"1"), Some(b"0")) => None,
            (None, None) if map.is_some() => map,
            (None, None) => return Ok(None),
            _ => return Err(bad()),
        };
        if map.is_some() && regions.is_none() {
            return Err(bad());
        }
        let size = match self.get(b"GNU.sparse.size").or_else(|| self.get(b"GNU.sparse.realsize")) {
            Some(size) => Some(decimal(size).ok_or_else(bad)?),
            None => None,
        };
        let name = self.get(b"GNU.sparse.name").map(<[u8]>::to_vec);
        Ok(Some(Sparse { name, size, map: map.map(<[u8]>::to_vec), regions }))
    }
}

/// Whether a record decides what an entry is.
fn governs(key: &[u8]) -> bool {
    matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime")
        || key.starts_with(b"GNU.sparse.")
}

/// Reads a global header for validity. Go's reader and the engines on it ignore global records, GNU tar applies them:
/// those that would change the listing are refused.
pub(super) fn check_global(bytes: &[u8], at: u64) -> Result<()> {
    let mut overrides = false;
    each(bytes, |key, _| {
        overrides |= matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid")
            || key.starts_with(b"GNU.sparse.")
            || key.starts_with(XATTR);
        Some(())
    })
    .ok_or_else(|| damaged(at, TarProblem::Pax))?;
    if overrides { Err(damaged(at, TarProblem::GlobalOverride)) } else { Ok(()) }
}

fn each(mut bytes: &[u8], mut record: impl FnMut(&[u8], &[u8]) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
        if length < space + 4 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return None;
        }
        let text = &bytes[space + 1..length - 1];
        let equals = text.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&text[..equals], &text[equals + 1..]);
        let value_is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
        if key.is_empty() || key.contains(&0) || (value_is_text && value.contains(&0)) {
            return None;
        }
        record(key, value)?;
        bytes = &bytes[length..];
    }
    Some(())
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are cut.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1350244992.0239601089999", Some((1_350_244_992, 23_960_108))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-1", Some((-1, 0))),
            ("1.", Some((1, 0))),
            ("", None),
            ("1.x", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn records() {
        for (text, good) in [
            ("6 k=1\n\n", false),
            ("6 k=1\n", true),
            ("9 path=a\n", true),
            ("8 path=a\n", false),
            ("10 path=a\n", true),
            ("11 path=a\n", false),
            ("12 path=a\0b\n", false),
            ("5 k=\n", true),
            ("5 =k\n", false),
            ("4294967296 k=\n", false),
            ("", true),
        ] {
            assert_eq!(each(text.as_bytes(), |_, _| Some(())).is_some(), good, "{text:?}");
        }
    }
}
