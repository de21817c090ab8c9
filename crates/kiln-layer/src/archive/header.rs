//! One 512-byte header block: fields, numbers and checksum.

use super::{BLOCK, Entry, Region, damaged, until_nul};
use crate::error::{Result, TarProblem};

/// A header block of the ustar family.
pub(super) struct Block([u8; BLOCK]);

impl Default for Block {
    fn default() -> Self {
        Self([0; BLOCK])
    }
}

/// The dialects that place fields differently.
enum Dialect {
    V7,
    /// POSIX: a prefix of 155 bytes.
    Ustar,
    /// Jörg Schilling's star: a prefix of 131 bytes, then times.
    Star,
    /// GNU: times where POSIX has its prefix.
    Gnu,
}

impl Block {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar\x0000" if &self.0[508..512] == b"tar\0" => Dialect::Star,
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    /// Compares the checksum with the sum of the bytes, unsigned or (old Sun tars) signed.
    pub(super) fn check(&self, at: u64) -> Result<()> {
        let mut unsigned = 0_i64;
        let mut high = 0_i64;
        for byte in self.0[..148].iter().chain(&self.0[156..]) {
            unsigned += i64::from(*byte);
            high += i64::from(*byte >> 7);
        }
        unsigned += 8 * i64::from(b' ');
        let signed = unsigned - 256 * high;
        let stored = octal(&self.0[148..156]).and_then(|value| i64::try_from(value).ok());
        if stored == Some(unsigned) || stored == Some(signed) {
            return Ok(());
        }
        Err(damaged(at, TarProblem::Checksum))
    }

    pub(super) fn size(&self, at: u64) -> Result<u64> {
        let field = &self.0[124..136];
        // GNU tar passes over a header whose size is blank.
        let blank = field[0] == b' ' && field.trim_ascii().is_empty();
        unsigned(field).filter(|_| !blank).ok_or_else(|| damaged(at, TarProblem::Number("size")))
    }

    pub(super) fn read_into(&self, entry: &mut Entry, at: u64) -> Result<()> {
        let bad = |field| move || damaged(at, TarProblem::Number(field));
        let small = |range: std::ops::Range<usize>, field| {
            unsigned(&self.0[range]).and_then(|value| u32::try_from(value).ok()).ok_or_else(bad(field))
        };
        let dialect = self.dialect();
        entry.name.clear();
        let prefix = match dialect {
            Dialect::Ustar => until_nul(&self.0[345..500]),
            Dialect::Star => until_nul(&self.0[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if !prefix.is_empty() {
            entry.name.extend_from_slice(prefix);
            entry.name.push(b'/');
        }
        entry.name.extend_from_slice(until_nul(&self.0[..100]));
        entry.link.clear();
        entry.link.extend_from_slice(until_nul(&self.0[157..257]));
        // The file type is the flag's to say; mode fields carry its bits in some dialects.
        let mode = number(&self.0[100..108]).ok_or_else(bad("mode"))?;
        entry.mode = (mode & 0o7777) as u32;
        // The largest one is nobody: chown(2) takes it for "as it is".
        let somebody = |id: u32, field| if id == u32::MAX { Err(bad(field)()) } else { Ok(id) };
        entry.uid = somebody(small(108..116, "uid")?, "uid")?;
        entry.gid = somebody(small(116..124, "gid")?, "gid")?;
        entry.size = self.size(at)?;
        entry.seconds = number(&self.0[136..148]).ok_or_else(bad("mtime"))?;
        entry.nanoseconds = 0;
        entry.device = match (&dialect, self.flag()) {
            (Dialect::V7, _) => (0, 0),
            (_, b'3' | b'4') => (small(329..337, "devmajor")?, small(337..345, "devminor")?),
            _ => (0, 0),
        };
        entry.xattrs.clear();
        Ok(())
    }

    pub(super) fn sparse_real_size(&self, at: u64) -> Result<u64> {
        if !matches!(self.dialect(), Dialect::Gnu) {
            return Err(damaged(at, TarProblem::Sparse));
        }
        unsigned(&self.0[483..495]).ok_or_else(|| damaged(at, TarProblem::Number("realsize")))
    }

    /// Reads the four regions of an old GNU sparse header; true when an extension block follows.
    pub(super) fn sparse_regions(&self, at: u64, regions: &mut Vec<Region>) -> Result<bool> {
        read_regions(&self.0[386..482], at, regions)?;
        Ok(self.0[482] != 0)
    }

    /// Reads the 21 regions of an extension block; true when another follows.
    pub(super) fn sparse_extension(&self, at: u64, regions: &mut Vec<Region>) -> Result<bool> {
        read_regions(&self.0[..504], at, regions)?;
        Ok(self.0[504] != 0)
    }
}

fn read_regions(bytes: &[u8], at: u64, regions: &mut Vec<Region>) -> Result<()> {
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let bad = || damaged(at, TarProblem::Sparse);
        let offset = unsigned(&pair[..12]).ok_or_else(bad)?;
        let length = unsigned(&pair[12..]).ok_or_else(bad)?;
        if regions.len() >= super::sparse::MAXIMUM_REGIONS {
            return Err(bad());
        }
        regions.push(Region { offset, length });
    }
    Ok(())
}

/// An octal field: spaces and NULs around digits; nothing at all is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let trimmed = field.trim_ascii_start();
    let start = trimmed.iter().position(|byte| *byte != 0 && *byte != b' ').unwrap_or(trimmed.len());
    let digits = until_nul(&trimmed[start..]).trim_ascii_end();
    let mut value = 0_u64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}

/// An octal or base-256 field. Base-256: the first bit is set, the second is the sign, big-endian two's complement.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 == 0 {
        return octal(field).and_then(|value| i64::try_from(value).ok());
    }
    let negative = field[0] & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (position, byte) in field.iter().enumerate() {
        let byte = match (position, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
        if position == 0 {
            // The first byte carries the sign already.
            value = if negative { i64::from(byte as i8) } else { i64::from(byte) };
        }
    }
    Some(value)
}

fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|value| u64::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0 ", Some(0o644)),
            (b"        ", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000008\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"777777777777", Some(0o777_777_777_777)),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
