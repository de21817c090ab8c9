//! The tar writer, version 1 (docs/formats.md, section 4): the bytes of a layer are a function of its entries.

use crate::metadata::{Kind, Metadata};
use crate::path::{OPAQUE, WHITEOUT, split};

/// The version that indexes of layers written here carry.
pub const WRITER: u32 = 1;

pub(crate) const BLOCK: usize = 512;
/// The largest value of a field of seven octal digits.
const SEVEN_DIGITS: u64 = 0o7_777_777;
/// The largest value of a field of eleven octal digits.
const ELEVEN_DIGITS: u64 = 0o77_777_777_777;

/// The name of an entry in the tar.
fn tar_name(path: &[u8], kind: Kind) -> Vec<u8> {
    let (directory, name) = split(path);
    let mut written = Vec::with_capacity(path.len() + 16);
    let mut parent = |directory: &[u8]| {
        written.extend_from_slice(directory);
        if !directory.is_empty() {
            written.push(b'/');
        }
    };
    match kind {
        Kind::Opaque => {
            parent(path);
            written.extend_from_slice(OPAQUE);
        }
        Kind::Whiteout => {
            parent(directory);
            written.extend_from_slice(WHITEOUT);
            written.extend_from_slice(name);
        }
        Kind::Directory if path.is_empty() => written.extend_from_slice(b"./"),
        Kind::Directory => parent(path),
        _ => written.extend_from_slice(path),
    }
    written
}

/// Appends the header of an entry, with the pax header before it if a value does not fit.
pub fn write_header(path: &[u8], metadata: &Metadata, out: &mut Vec<u8>) {
    let name = tar_name(path, metadata.kind);
    let flag = match metadata.kind {
        Kind::Regular | Kind::Whiteout | Kind::Opaque => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharacterDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    let size = if metadata.kind == Kind::Regular { metadata.size } else { 0 };
    let link: &[u8] =
        if matches!(metadata.kind, Kind::HardLink | Kind::Symlink) { &metadata.link } else { b"" };
    let seconds = u64::try_from(metadata.modified.seconds).ok().filter(|seconds| *seconds <= ELEVEN_DIGITS);
    let records = pax_records(&name, link, size, metadata, seconds.is_none());
    if !records.is_empty() {
        let trimmed = name.strip_suffix(b"/").unwrap_or(&name);
        let base = split(trimmed).1;
        let mut pax_name = b"PaxHeaders/".to_vec();
        pax_name.extend_from_slice(&base[..base.len().min(80)]);
        let fields = Fields { mode: 0o644, size: records.len() as u64, flag: b'x', ..Fields::default() };
        header(&pax_name, b"", &fields, out);
        out.extend_from_slice(&records);
        pad(records.len() as u64, out);
    }
    let fits = |value: u64, most: u64| if value > most { 0 } else { value };
    let fields = Fields {
        mode: metadata.mode & 0o7777,
        uid: fits(metadata.uid.into(), SEVEN_DIGITS),
        gid: fits(metadata.gid.into(), SEVEN_DIGITS),
        size: fits(size, ELEVEN_DIGITS),
        seconds: seconds.unwrap_or(0),
        device: metadata.device,
        flag,
    };
    header(&name, link, &fields, out);
}

/// Appends the zeros that fill the last block of a content.
pub fn pad(size: u64, out: &mut Vec<u8>) {
    let padding = (size.wrapping_neg() % BLOCK as u64) as usize;
    out.resize(out.len() + padding, 0);
}

#[derive(Default)]
struct Fields {
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    seconds: u64,
    device: (u32, u32),
    flag: u8,
}

fn header(name: &[u8], link: &[u8], fields: &Fields, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + BLOCK, 0);
    let block = &mut out[start..];
    let mut text = |at: usize, value: &[u8]| block[at..at + value.len()].copy_from_slice(value);
    text(0, &name[..name.len().min(100)]);
    text(157, &link[..link.len().min(100)]);
    text(156, &[fields.flag]);
    text(257, b"ustar\x0000");
    octal(&mut block[100..107], fields.mode.into());
    octal(&mut block[108..115], fields.uid);
    octal(&mut block[116..123], fields.gid);
    octal(&mut block[124..135], fields.size);
    octal(&mut block[136..147], fields.seconds);
    octal(&mut block[329..336], fields.device.0.into());
    octal(&mut block[337..344], fields.device.1.into());
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * u64::from(b' ');
    octal(&mut block[148..154], sum);
    block[155] = b' ';
}

fn octal(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

fn pax_records(name: &[u8], link: &[u8], size: u64, metadata: &Metadata, far_time: bool) -> Vec<u8> {
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let decimal = |value: u64| value.to_string().into_bytes();
    for (key, value) in [(&b"path"[..], name), (b"linkpath", link)] {
        if value.len() > 100 || !value.is_ascii() {
            records.push((key.to_vec(), value.to_vec()));
        }
    }
    if size > ELEVEN_DIGITS {
        records.push((b"size".to_vec(), decimal(size)));
    }
    for (key, value) in [(&b"uid"[..], metadata.uid), (b"gid", metadata.gid)] {
        if u64::from(value) > SEVEN_DIGITS {
            records.push((key.to_vec(), decimal(value.into())));
        }
    }
    if far_time {
        records.push((b"mtime".to_vec(), metadata.modified.seconds.to_string().into_bytes()));
    }
    for (attribute, value) in &metadata.xattrs {
        records.push(([b"SCHILY.xattr.", attribute.as_slice()].concat(), value.clone()));
    }
    records.sort();
    let mut bytes = Vec::new();
    for (key, value) in &records {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        bytes.extend_from_slice(length.to_string().as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(key);
        bytes.push(b'=');
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}
