//! Frames: the bytes of a foreign tar that belong to no file's content, such as headers and padding.
//!
//! With them a tar that another program wrote is made again, byte for byte, from its index and the files of its
//! snapshot, so that an uncompressed layer need not be stored twice.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;

use kiln_oci::{DiffId, HashingWriter};

use crate::error::{Error, Result};
use crate::index::{Entry, LayerIndex};
use crate::metadata::Kind;
use crate::path;

/// More bytes between files than this are not kept: such a tar stays a blob.
const MOST: u64 = 256 << 20;
const LEVEL: i32 = 3;

/// Adds to `index` the frames of its uncompressed tar, which starts `offset` bytes into `tar`. `None` when the snapshot
/// alone could not give all contents back: a file that a later entry replaced, or one with holes.
///
/// # Errors
/// When the tar cannot be read or the index is damaged.
pub fn with_frames(index: &LayerIndex, tar: &File, offset: u64) -> Result<Option<LayerIndex>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).map_err(Error::Write)?;
    let mut buffer = vec![0; 64 << 10];
    let mut kept: u64 = 0;
    let mut position: u64 = 0;
    let mut keep = |from: u64, to: u64| -> Result<bool> {
        kept += to.saturating_sub(from);
        if to < from || kept > MOST {
            return Ok(false);
        }
        let mut at = from;
        while at < to {
            let most = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
            tar.read_exact_at(&mut buffer[..most], offset + at).map_err(Error::Read)?;
            encoder.write_all(&buffer[..most]).map_err(Error::Write)?;
            at += most as u64;
        }
        Ok(true)
    };
    for entry in index.entries() {
        let entry = entry?;
        if entry.kind() != Kind::Regular || entry.size() == 0 {
            continue;
        }
        if entry.is_superseded() || entry.is_sparse() || !keep(position, entry.content_offset())? {
            return Ok(None);
        }
        position = entry.content_offset() + entry.size();
    }
    if !keep(position, index.tar_size())? {
        return Ok(None);
    }
    let compressed = encoder.finish().map_err(Error::Write)?;
    index.with_frames(&compressed).map(Some)
}

/// Writes the tar of an index with frames, its files' contents from `open`, and gives the diff ID of what was written.
///
/// # Errors
/// When the index has no frames or is damaged, a content cannot be read or has another size, or `out` refuses.
pub fn restore<'a>(
    index: &'a LayerIndex,
    open: &dyn Fn(&Entry<'a>) -> Result<Box<dyn Read + Send + 'a>>,
    out: &mut dyn Write,
) -> Result<DiffId> {
    let frames = index.frames().ok_or(Error::Index("no frames"))?;
    let mut frames = zstd::Decoder::new(frames).map_err(Error::Read)?;
    let mut out = HashingWriter::new(out);
    let mut position: u64 = 0;
    for entry in index.entries() {
        let entry = entry?;
        if entry.kind() != Kind::Regular || entry.size() == 0 {
            continue;
        }
        let gap = entry.content_offset().checked_sub(position).ok_or(Error::Index("content offset"))?;
        copy(&mut frames, gap, &mut out, || Error::Index("frames are too short"))?;
        let changed = || Error::Changed { path: path::shown(entry.path()), expected: entry.size() };
        copy(&mut open(&entry)?, entry.size(), &mut out, changed)?;
        position = entry.content_offset() + entry.size();
    }
    let rest = index.tar_size().checked_sub(position).ok_or(Error::Index("tar size"))?;
    copy(&mut frames, rest, &mut out, || Error::Index("frames are too short"))?;
    Ok(DiffId(out.finish().0))
}

/// Copies exactly `length` bytes.
fn copy(
    from: &mut impl Read,
    length: u64,
    out: &mut impl Write,
    too_short: impl Fn() -> Error,
) -> Result<()> {
    let mut buffer = [0; 32 << 10];
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = from.read(&mut buffer[..most]).map_err(Error::Read)?;
        if read == 0 {
            return Err(too_short());
        }
        out.write_all(&buffer[..read]).map_err(Error::Write)?;
        left -= read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, walk};
    use std::io::Cursor;

    /// A tar of ustar headers: name, type flag, content.
    fn tar(entries: &[(&str, u8, &[u8])], padding: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, flag, content) in entries {
            let mut header = [0_u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[100..107].copy_from_slice(b"0000644");
            header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            header[136..147].copy_from_slice(b"00000000001");
            header[156] = *flag;
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            out.extend_from_slice(&header);
            out.extend_from_slice(content);
            out.resize(out.len().div_ceil(512) * 512, 7);
        }
        out.resize(out.len() + 1024 + padding, 0);
        out
    }

    fn check(bytes: &[u8], possible: bool) {
        let walked = walk(Cursor::new(bytes.to_vec()), &Options::default()).unwrap();
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"before").unwrap();
        (&file).write_all(bytes).unwrap();
        let Some(index) = with_frames(&walked.index, &file, 6).unwrap() else {
            assert!(!possible);
            return;
        };
        assert!(possible && index.has_frames());
        assert_eq!(index.diff_id(), walked.index.diff_id());
        assert_eq!(index.entry_count(), walked.index.entry_count());
        let open = |entry: &Entry<'_>| {
            let start = entry.content_offset() as usize;
            let content = bytes[start..start + entry.size() as usize].to_vec();
            Ok(Box::new(Cursor::new(content)) as Box<dyn Read + Send>)
        };
        let mut again = Vec::new();
        assert_eq!(restore(&index, &open, &mut again).unwrap(), walked.diff_id);
        assert_eq!(again, bytes);
        let short = |_: &Entry<'_>| Ok(Box::new(Cursor::new(Vec::new())) as Box<dyn Read + Send>);
        assert!(restore(&index, &short, &mut Vec::new()).is_err());
    }

    #[test]
    fn foreign_tars_come_back_byte_for_byte() {
        check(&tar(&[("d/", b'5', b""), ("d/a", b'0', b"hello"), ("b", b'0', &[1; 1000])], 0), true);
        check(&tar(&[("a", b'0', b"x")], 9 * 1024), true);
        check(&tar(&[("a", b'0', b"first"), ("a", b'0', b"second")], 0), false);
    }
}
