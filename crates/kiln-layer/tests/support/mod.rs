//! Hand-made tars, hostile ones included, and what tests ask of trees.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod chance;
#[path = "../../../../tests/skipped.rs"]
mod skipped;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kiln_layer::{Options, Ownership, Result, Unpack, Walk, Whiteouts, walk};
use kiln_sys::root::{Directory, Root};

/// A tar being written by hand, header by header.
#[derive(Default, Clone)]
pub struct Tar {
    pub bytes: Vec<u8>,
}

pub struct Header<'a> {
    pub name: &'a [u8],
    pub flag: u8,
    pub mode: u32,
    pub size: u64,
    pub link: &'a [u8],
    pub device: (u32, u32),
    pub magic: &'a [u8],
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self { name: b"", flag: b'0', mode: 0o644, size: 0, link: b"", device: (0, 0), magic: b"ustar\x0000" }
    }
}

pub fn checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn header(mut self, header: &Header<'_>) -> Self {
        let mut block = [0_u8; 512];
        block[..header.name.len()].copy_from_slice(header.name);
        block[100..108].copy_from_slice(format!("{:07o}\0", header.mode).as_bytes());
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{:011o}\0", header.size).as_bytes());
        block[136..148].copy_from_slice(format!("{:011o}\0", 1_700_000_000).as_bytes());
        block[156] = header.flag;
        block[157..157 + header.link.len()].copy_from_slice(header.link);
        block[257..257 + header.magic.len()].copy_from_slice(header.magic);
        block[329..337].copy_from_slice(format!("{:07o}\0", header.device.0).as_bytes());
        block[337..345].copy_from_slice(format!("{:07o}\0", header.device.1).as_bytes());
        checksum(&mut block);
        self.bytes.extend_from_slice(&block);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        let padding = self.bytes.len().wrapping_neg() % 512;
        self.bytes.resize(self.bytes.len() + padding, 0);
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.file_mode(name, content, 0o644)
    }

    pub fn file_mode(self, name: &str, content: &[u8], mode: u32) -> Self {
        let size = content.len() as u64;
        self.header(&Header { name: name.as_bytes(), size, mode, ..Header::default() }).raw(content)
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.header(&Header { name: name.as_bytes(), flag: b'5', mode, ..Header::default() })
    }

    pub fn symlink(self, target: &str, name: &str) -> Self {
        let header = Header {
            name: name.as_bytes(),
            link: target.as_bytes(),
            flag: b'2',
            mode: 0o777,
            ..Header::default()
        };
        self.header(&header)
    }

    pub fn link(self, target: &str, name: &str) -> Self {
        self.header(&Header {
            name: name.as_bytes(),
            link: target.as_bytes(),
            flag: b'1',
            ..Header::default()
        })
    }

    pub fn node(self, flag: u8, name: &str, device: (u32, u32)) -> Self {
        self.header(&Header { name: name.as_bytes(), flag, device, ..Header::default() })
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', &pax_records(records))
    }

    pub fn extended(self, flag: u8, bytes: &[u8]) -> Self {
        let size = bytes.len() as u64;
        self.header(&Header { name: b"extended", flag, size, ..Header::default() }).raw(bytes)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

pub fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}

/// Walks without unpacking.
pub fn index(bytes: &[u8]) -> Result<Walk> {
    walk(bytes, &Options::default())
}

/// Walks and unpacks below `directory`.
pub fn unpack(bytes: &[u8], directory: &Path, whiteouts: Whiteouts) -> Result<Walk> {
    unpack_as(bytes, directory, whiteouts, ownership())
}

pub fn unpack_as(bytes: &[u8], directory: &Path, whiteouts: Whiteouts, ownership: Ownership) -> Result<Walk> {
    let root = Root::open(directory)?;
    let unpack = Unpack { root: &root, whiteouts, ownership, clamp: None };
    walk(bytes, &Options { unpack: Some(unpack), ..Options::default() })
}

/// Says visibly that a test did not run, and why.
pub fn skipped(reason: &str) {
    skipped::skipped(reason);
}

/// As much of owners as our privileges allow.
pub fn ownership() -> Ownership {
    if is_root() { Ownership::Keep } else { Ownership::Ignore }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything that can be seen of a tree, path by path: type, mode, owner, time, link, content, hard links as the first
/// path of the file.
pub fn describe(directory: &Path) -> BTreeMap<String, String> {
    let root = Directory::open(directory).expect("opened");
    let mut found = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    found.insert(String::new(), line(&root.stat_self().expect("stat"), ""));
    visit(&root, "", &mut found, &mut first_names);
    found
}

fn line(stat: &rustix::fs::Stat, rest: &str) -> String {
    let time = (stat.st_mtime, stat.st_mtime_nsec);
    format!("{:o} {}:{} {}:{time:?} {rest}", stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev)
}

fn visit(
    directory: &Directory,
    path: &str,
    found: &mut BTreeMap<String, String>,
    first_names: &mut BTreeMap<(u64, u64), String>,
) {
    let mut list = directory.list().expect("listed");
    list.sort_by(|left, right| left.name.cmp(&right.name));
    for entry in list {
        let name = String::from_utf8_lossy(entry.name.as_bytes()).into_owned();
        let below = format!("{path}/{name}");
        let stat = directory.stat(&entry.name).expect("stat");
        let rest = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Symlink => {
                format!("-> {}", directory.read_link(&entry.name).expect("link").display())
            }
            rustix::fs::FileType::RegularFile => {
                let mut file = directory.open_file(&entry.name).expect("opened");
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut bytes).expect("read");
                let first = first_names.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| below.clone());
                format!("{} = {first}", kiln_oci::Digest::of(&bytes))
            }
            rustix::fs::FileType::Directory => {
                visit(&directory.open_directory(&entry.name).expect("opened"), &below, found, first_names);
                let opaque = kiln_sys::xattr::list(directory, OsStr::new(&entry.name), |name| {
                    name.ends_with(b".overlay.opaque")
                });
                if opaque.expect("listed").is_empty() { String::new() } else { "opaque".to_owned() }
            }
            _ => String::new(),
        };
        // A whiteout is its name alone.
        let is_whiteout = stat.st_rdev == 0 && stat.st_mode & 0o170_000 == 0o020_000;
        found.insert(below, if is_whiteout { "whiteout".to_owned() } else { line(&stat, &rest) });
    }
}

/// A root to unpack into, inside a directory that nothing may change.
pub struct Canary {
    pub host: tempfile::TempDir,
    before: BTreeMap<String, String>,
}

impl Canary {
    pub fn new() -> Self {
        let host = tempfile::tempdir().expect("a temporary directory");
        for directory in ["etc", "tmp", "outside"] {
            fs_err::create_dir(host.path().join(directory)).expect("made");
        }
        for file in ["etc/passwd", "outside/secret", "file"] {
            fs_err::write(host.path().join(file), "canary").expect("written");
        }
        let before = describe(host.path());
        fs_err::create_dir(host.path().join("root")).expect("made");
        Self { host, before }
    }

    pub fn root(&self) -> std::path::PathBuf {
        self.host.path().join("root")
    }

    pub fn check(&self, test: &str) {
        let after = describe(self.host.path());
        for (path, line) in &after {
            // The directory above gained "root".
            if !path.is_empty() && path != "/root" && !path.starts_with("/root/") {
                assert_eq!(Some(line), self.before.get(path), "{test}: {path} changed outside of the root");
            }
        }
        assert!(
            self.before.keys().all(|path| after.contains_key(path)),
            "{test}: something outside was removed"
        );
    }
}
