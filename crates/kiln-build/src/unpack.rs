//! ADD of a local archive: its entries, staged below the destination.
//!
//! The destination is the root of everything the archive says, as if chrooted: `..`, absolute names and symbolic links,
//! the archive's own or those that were there, never lead out of it.

use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use kiln_layer::archive::{Archive, Entry, EntryType, Piece};
use kiln_layer::path::{DEEPEST, LONGEST, LONGEST_NAME, OPAQUE, WHITEOUT, clean, is_below};
use kiln_layer::{Compression, Kind, Metadata};
use kiln_oci::{Digest, Hasher};
use kiln_sys::publish::create_temporary;
use kiln_sys::root::Directory;

use crate::beginning::{Beginning, Watched};
use crate::context::is_no_file;
use crate::error::{Error, Result};
use crate::staging::{Bytes, Making, Staged, Staging};
use crate::tree::{Found, LastLink, SourceTree, join, split};

const BUFFER: usize = 256 << 10;
/// The most that one archive may unpack to, in bytes and entries.
const MOST_BYTES: u64 = 256 << 30;
const MOST_ENTRIES: usize = 4_000_000;

/// A nameless file with the bytes of everything that is unpacked.
pub(crate) struct Spool<'a> {
    directory: &'a Directory,
    /// The file, and the same opened for reading.
    file: Option<(io::BufWriter<File>, File)>,
    length: u64,
}

/// The spool once all is unpacked.
pub(crate) struct Spooled(Option<Arc<File>>);

impl<'a> Spool<'a> {
    /// An empty spool, whose file is made in `directory` when it is needed.
    pub(crate) fn new(directory: &'a Directory) -> Self {
        Self { directory, file: None, length: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (file, _) = match &mut self.file {
            Some(file) => file,
            empty => {
                let (name, file) = create_temporary(self.directory, 0o600)?;
                let reopened = self.directory.open_file(&name)?;
                self.directory.unlink(&name)?;
                empty.insert((io::BufWriter::with_capacity(BUFFER, file), reopened))
            }
        };
        self.length += bytes.len() as u64;
        file.write_all(bytes).map_err(|source| spool_error(self.directory, "write", source))
    }

    pub(crate) fn finish(self) -> Result<Spooled> {
        let Some((mut file, reader)) = self.file else { return Ok(Spooled(None)) };
        file.flush().map_err(|source| spool_error(self.directory, "write", source))?;
        Ok(Spooled(Some(Arc::new(reader))))
    }
}

fn spool_error(directory: &Directory, action: &'static str, source: io::Error) -> Error {
    Error::File { action, path: directory.name().display().to_string(), source }
}

impl Spooled {
    /// Part of the spool as a layer's source.
    pub(crate) fn source<'w>(&self, offset: u64, size: u64) -> kiln_layer::Source<'w> {
        let Some(file) = self.0.clone().filter(|_| size > 0) else { return kiln_layer::Source::Empty };
        kiln_layer::Source::Open(Box::new(move || {
            let part: Box<dyn Read + 'w> = Box::new(Part { file, offset, left: size });
            Ok(part)
        }))
    }
}

struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.file.read_at(&mut bytes[..most], self.offset)?;
        self.offset += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// A file that may be an archive.
#[derive(Clone, Copy)]
pub(crate) struct Archived<'a> {
    pub(crate) source: &'a dyn SourceTree,
    pub(crate) path: &'a [u8],
    /// What it was when the key was made.
    pub(crate) found: &'a Found,
    /// What messages call it.
    pub(crate) shown: &'a str,
    pub(crate) is_canceled: &'a dyn Fn() -> bool,
}

/// What became of a file that may be an archive.
pub(crate) enum Unpacked {
    /// It was unpacked.
    All,
    /// It is none, which these bytes of it say; `None` if they are all of it, as the key has them.
    NoArchive(Option<Beginning>),
}

impl<'a> Archived<'a> {
    fn open(self) -> Result<BufReader<Watched<'a>>> {
        let (reader, _) = match self.source.open(self.path) {
            // It was there when the key was made, and a regular file.
            Err(error) if is_no_file(&error) => return Err(self.changed()),
            opened => opened?,
        };
        // One byte more shows that there is more.
        let most = self.found.metadata.size.saturating_add(1);
        Ok(BufReader::with_capacity(BUFFER, Watched::new(reader, most)))
    }

    /// Whether these bytes are all that the file had when the key was made.
    fn is(self, read: Beginning) -> bool {
        let Found { metadata, content, .. } = self.found;
        read.length == metadata.size && content.is_none_or(|content| read.digest == content)
    }

    fn go_on(self) -> Result<()> {
        if (self.is_canceled)() { Err(Error::Canceled) } else { Ok(()) }
    }

    fn changed(self) -> Error {
        Error::Changed(self.shown.to_owned())
    }

    fn failed(self, source: kiln_layer::Error) -> Error {
        Error::Archive { path: self.shown.to_owned(), source }
    }

    /// Reads the rest of an archive: other bytes than those of the key are nothing that may be kept, nor complained of.
    fn check(self, mut watched: Watched<'_>) -> Result<()> {
        let rest = io::copy(&mut watched, &mut io::sink());
        rest.map_err(|source| Error::File { action: "read", path: self.shown.to_owned(), source })?;
        if self.is(watched.beginning()) { Ok(()) } else { Err(self.changed()) }
    }

    /// What shows that it is no archive.
    fn refused(self, watched: &Watched<'_>) -> Result<Unpacked> {
        let read = watched.beginning();
        let is_all = read.length >= self.found.metadata.size || watched.has_ended();
        match is_all {
            true if self.is(read) => Ok(Unpacked::NoArchive(None)),
            true => Err(self.changed()),
            false => Ok(Unpacked::NoArchive(Some(read))),
        }
    }
}

/// Unpacks a file to `destination` if it is an archive. All of it is read once, and compared with what it was when the key
/// was made.
///
/// # Errors
/// [`Error::Changed`] if it is another file than it was; what was staged is of no use then.
pub(crate) fn unpack(
    staging: &mut Staging<'_>,
    archived: Archived<'_>,
    destination: &[u8],
    owner: Option<(u32, u32)>,
    spool: &mut Spool<'_>,
) -> Result<Unpacked> {
    if archived.found.metadata.kind != Kind::Regular {
        return Ok(Unpacked::NoArchive(None));
    }
    let mut reader = archived.open()?;
    let unpacked = unpack_from(&mut reader, staging, archived, destination, owner, spool);
    let watched = reader.into_inner();
    if matches!(unpacked, Ok(false)) {
        return archived.refused(&watched);
    }
    archived.go_on()?;
    match archived.check(watched) {
        Err(error @ Error::Changed(_)) => Err(error),
        checked => unpacked.and(checked).map(|()| Unpacked::All),
    }
}

/// False if it is no archive: one whose first header cannot be read, whatever its name.
fn unpack_from(
    reader: &mut BufReader<Watched<'_>>,
    staging: &mut Staging<'_>,
    archived: Archived<'_>,
    destination: &[u8],
    owner: Option<(u32, u32)>,
    spool: &mut Spool<'_>,
) -> Result<bool> {
    let compression = Compression::detect(io::BufRead::fill_buf(reader).unwrap_or_default());
    let Ok(decoder) = compression.decoder(reader) else { return Ok(false) };
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, decoder));
    let mut entry = Entry::default();
    if !archive.next_entry(&mut entry).unwrap_or(false) {
        return Ok(false);
    }
    let root = staging.resolve(destination, LastLink::Follow)?;
    staging.make_directories(&root, Making { mode: 0o755, owner })?;
    let mut unpacking = Unpacking { staging, root, owner, archived, bytes: 0 };
    let mut entries = 0;
    loop {
        entries += 1;
        if entries > MOST_ENTRIES {
            let source = kiln_layer::Error::Limit { what: "entries", limit: MOST_ENTRIES as u64 };
            return Err(archived.failed(source));
        }
        let content = match entry.kind {
            EntryType::Regular => unpacking.content(&mut archive, entry.size, spool)?,
            _ => (Bytes::None, None),
        };
        unpacking.entry(&entry, content)?;
        archived.go_on()?;
        if !archive.next_entry(&mut entry).map_err(|source| archived.failed(source))? {
            return Ok(true);
        }
    }
}

struct Unpacking<'a, 'p> {
    staging: &'a mut Staging<'p>,
    /// Where everything goes.
    root: Vec<u8>,
    owner: Option<(u32, u32)>,
    archived: Archived<'a>,
    bytes: u64,
}

impl Unpacking<'_, '_> {
    fn refused(&self, entry: &Entry, problem: &'static str) -> Error {
        let entry = String::from_utf8_lossy(&entry.name).into_owned();
        Error::ArchiveEntry { path: self.archived.shown.to_owned(), entry, problem }
    }

    fn content<R: io::BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        size: u64,
        spool: &mut Spool<'_>,
    ) -> Result<(Bytes, Option<Digest>)> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MOST_BYTES {
            let source = kiln_layer::Error::Limit { what: "bytes in files", limit: MOST_BYTES };
            return Err(self.archived.failed(source));
        }
        let offset = spool.length;
        let mut hasher = Hasher::new();
        loop {
            self.archived.go_on()?;
            let length = match archive.piece(BUFFER).map_err(|error| self.archived.failed(error))? {
                Piece::Data(bytes) => {
                    hasher.update(bytes);
                    spool.write(bytes)?;
                    bytes.len()
                }
                Piece::Hole(mut length) => {
                    while length > 0 {
                        let now = length.min(ZEROS.len() as u64) as usize;
                        hasher.update(&ZEROS[..now]);
                        spool.write(&ZEROS[..now])?;
                        length -= now as u64;
                    }
                    0
                }
                Piece::End => break,
            };
            archive.consume(length);
        }
        Ok((Bytes::Spool(offset), Some(hasher.finish())))
    }

    fn entry(&mut self, entry: &Entry, (bytes, content): (Bytes, Option<Digest>)) -> Result<()> {
        let mut name = Vec::new();
        clean(&entry.name, &mut name);
        if name.is_empty() {
            // The archive's root says nothing of a directory that is there.
            return Ok(());
        }
        self.check_length(entry, &name)?;
        let path = self.place(&name)?;
        if self.mark(&path) {
            return Ok(());
        }
        let staged = match entry.kind {
            EntryType::HardLink => return self.link(entry, &path),
            _ => Staged { metadata: self.metadata(entry)?, bytes, content, group: None },
        };
        self.put(&path, staged)
    }

    /// Puts an entry in place of what is there; directories are merged.
    fn put(&mut self, path: &[u8], staged: Staged) -> Result<()> {
        if let Some(seen) = self.staging.find(path)? {
            let both = seen.metadata.kind == Kind::Directory && staged.metadata.kind == Kind::Directory;
            if !both {
                self.staging.remove(path);
            }
        }
        self.staging.put(path, staged)
    }

    fn check_length(&self, entry: &Entry, name: &[u8]) -> Result<()> {
        let components = || kiln_layer::path::components(name);
        if name.len() > LONGEST || components().any(|name| name.len() > LONGEST_NAME) {
            return Err(self.refused(entry, "its path is too long"));
        }
        if components().count() > DEEPEST {
            return Err(self.refused(entry, "its path is too deep"));
        }
        Ok(())
    }

    /// The resolved path of a cleaned name; directories on the way are made.
    fn place(&mut self, name: &[u8]) -> Result<Vec<u8>> {
        let (parent, last) = split(name);
        let parent = self.staging.resolve_below(&self.root, parent, LastLink::Follow)?;
        let making = Making { mode: 0o755, owner: Some(self.owner.unwrap_or_default()) };
        self.staging.make_directories(&parent, making)?;
        Ok(join(&parent, last))
    }

    /// Names that mean a whiteout to whoever applies the layer.
    fn mark(&mut self, path: &[u8]) -> bool {
        let (parent, name) = split(path);
        if name == OPAQUE {
            self.staging.mark(parent.to_vec(), Kind::Opaque);
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if !matches!(hidden, b"" | b"." | b"..") && !hidden.starts_with(WHITEOUT) {
                self.staging.mark(join(parent, hidden), Kind::Whiteout);
            }
        } else {
            return false;
        }
        true
    }

    fn metadata(&self, entry: &Entry) -> Result<Metadata> {
        let kind = entry.kind_in_layer();
        if kind == Kind::Whiteout {
            return Err(self.refused(entry, "a device that overlay file systems take for a whiteout"));
        }
        let mut metadata = Metadata::new(kind, entry.mode & 0o7777);
        (metadata.uid, metadata.gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        metadata.modified = self.staging.time(entry.seconds);
        let capability = entry.xattrs.iter().filter(|(name, _)| name == b"security.capability");
        metadata.xattrs = capability.cloned().collect();
        match kind {
            Kind::Regular => metadata.size = entry.size,
            Kind::Symlink if entry.link.is_empty() => {
                return Err(self.refused(entry, "a link without a target"));
            }
            Kind::Symlink if entry.link.len() > LONGEST => {
                return Err(self.refused(entry, "its link is too long"));
            }
            Kind::Symlink => {
                metadata.mode = 0o777;
                metadata.link.clone_from(&entry.link);
            }
            Kind::CharacterDevice | Kind::BlockDevice => metadata.device = entry.device,
            _ => {}
        }
        Ok(metadata)
    }

    /// Another name for a file of the archive or of the parent, whose owner, mode and time it sets anew.
    fn link(&mut self, entry: &Entry, path: &[u8]) -> Result<()> {
        let mut target = Vec::new();
        clean(&entry.link, &mut target);
        let (parent, last) = split(&target);
        let parent = self.staging.resolve_below(&self.root, parent, LastLink::Follow)?;
        let target = join(&parent, last);
        if target == path {
            return Err(self.refused(entry, "a hard link to itself"));
        }
        // What has the link's name makes room first, with everything below it.
        let Some(seen) = self.staging.find(&target)?.filter(|_| !is_below(&target, path)) else {
            return Err(self.refused(entry, "a hard link to nothing"));
        };
        let mut metadata = seen.metadata;
        if metadata.kind == Kind::Directory {
            return Err(self.refused(entry, "a hard link to a directory"));
        }
        (metadata.uid, metadata.gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        metadata.modified = self.staging.time(entry.seconds);
        if metadata.kind != Kind::Regular {
            return self.put(path, Staged::plain(metadata));
        }
        metadata.mode = entry.mode & 0o7777;
        let (bytes, group) = match seen.staged {
            Some((bytes, group)) => (bytes, group),
            None => (Bytes::Parent(Arc::from(target.as_slice())), None),
        };
        let known = group;
        let group = group.unwrap_or_else(|| self.staging.new_group());
        let staged = Staged { metadata: metadata.clone(), bytes, content: seen.content, group: Some(group) };
        if known.is_none() {
            self.staging.put(&target, staged.clone())?;
        }
        self.put(path, staged)?;
        self.staging.set_inode(group, metadata);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Image, Lab, Shifting};

    /// One member of a test archive: flag, name, link, content.
    type Member<'a> = (u8, &'a str, &'a str, &'a str);

    fn tar(members: &[Member<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (flag, name, link, content) in members {
            let mut header = [0_u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let mode: &[u8] = if *flag == b'5' { b"0000755\0" } else { b"0000640\0" };
            header[100..108].copy_from_slice(mode);
            header[108..116].copy_from_slice(b"0000005\0");
            header[116..124].copy_from_slice(b"0000006\0");
            header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
            header[136..148].copy_from_slice(b"00000001750\0");
            header[148..156].copy_from_slice(b"        ");
            header[156] = *flag;
            header[157..157 + link.len()].copy_from_slice(link.as_bytes());
            header[257..265].copy_from_slice(b"ustar\x0000");
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(content.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    fn lab(archive: &[u8]) -> Lab {
        let lab = Lab::new().context(&[]);
        fs_err::write(lab.context_path().join("a"), archive).expect("written");
        lab
    }

    fn check(base: &[(&str, u32, &str)], members: &[Member<'_>], expect: &[&str]) {
        let image = Image::default().with(base);
        let before = image.tree();
        let lab = lab(&tar(members)).base("base", image);
        let outcome = lab.build("FROM base\nADD a /x/\n").expect("built");
        let tree = outcome.image.tree();
        let new: Vec<&String> = tree.iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(new, expect);
    }

    const FILE: u8 = b'0';
    const LINK: u8 = b'1';
    const SYMLINK: u8 = b'2';
    const DIRECTORY: u8 = b'5';

    #[test]
    fn archives_are_found_by_content() {
        let plain = tar(&[(FILE, "f", "", "f")]);
        let gzip = {
            let mut encoder = kiln_layer::Compression::Gzip.encoder(Vec::new(), 6).expect("an encoder");
            encoder.write_all(&plain).expect("written");
            encoder.finish().expect("finished")
        };
        let zstd = {
            let mut encoder = kiln_layer::Compression::Zstd.encoder(Vec::new(), 3).expect("an encoder");
            encoder.write_all(&plain).expect("written");
            encoder.finish().expect("finished")
        };
        let unpacked = ["d 0755 0:0 x", "f 0640 5:6 x/f = f"];
        for archive in [&plain, &gzip, &zstd] {
            let outcome = lab(archive).build("FROM scratch\nADD a /x\n").expect("built");
            assert_eq!(outcome.image.tree(), unpacked);
            let owned =
                lab(archive).build("FROM scratch\nADD --chown=8:9 --chmod=600 a /x\n").expect("built");
            assert_eq!(owned.image.tree(), ["d 0755 8:9 x", "f 0640 8:9 x/f = f"]);
            let copied = lab(archive).build("FROM scratch\nCOPY a /x/\n").expect("built");
            assert_eq!(copied.image.top(), ["d x", "f x/a"]);
            let kept = lab(archive).build("FROM scratch\nADD --unpack=false a /x/\n").expect("built");
            assert_eq!(kept.image.top(), ["d x", "f x/a"]);
        }
        for other in [&b"no archive"[..], &[0; 1024], b"", &gzip[..12]] {
            let outcome = lab(other).build("FROM scratch\nADD a /x/\n").expect("built");
            assert_eq!(outcome.image.top(), ["d x", "f x/a"]);
        }
    }

    #[test]
    fn hostile_names_stay_below_the_destination() {
        let base = [
            ("etc/", 0o755, ""),
            ("x/", 0o755, ""),
            ("x/there", 0o777, "->/etc"),
            ("etc/passwd", 0o644, "mine"),
        ];
        check(
            &base,
            &[
                (FILE, "../../etc/passwd", "", "1"),
                (FILE, "/abs", "", "2"),
                (SYMLINK, "out", "/etc", ""),
                (DIRECTORY, "etc/", "", ""),
                (FILE, "out/passwd2", "", "3"),
                (FILE, "there/passwd3", "", "4"),
                (SYMLINK, "up", "../../..", ""),
                (FILE, "up/top", "", "5"),
            ],
            &[
                "f 0640 5:6 x/abs = 2",
                "d 0755 5:6 x/etc",
                "f 0640 5:6 x/etc/passwd = 1",
                "f 0640 5:6 x/etc/passwd2 = 3",
                "f 0640 5:6 x/etc/passwd3 = 4",
                "l 0777 5:6 x/out -> /etc",
                "f 0640 5:6 x/top = 5",
                "l 0777 5:6 x/up -> ../../..",
            ],
        );
    }

    #[test]
    fn later_entries_win() {
        let base = [
            ("x/", 0o755, ""),
            ("x/d/", 0o700, ""),
            ("x/d/old", 0o644, "o"),
            ("x/f", 0o644, "o"),
            ("x/e/", 0o755, ""),
            ("x/e/old", 0o644, "o"),
        ];
        check(
            &base,
            &[
                (FILE, "d", "", "now a file"),
                (DIRECTORY, "f/", "", ""),
                (FILE, "f/in", "", "i"),
                (FILE, "e", "", "file first"),
                (DIRECTORY, "e/", "", ""),
                (FILE, "e/new", "", "n"),
                (FILE, "g", "", "1"),
                (FILE, "g", "", "2"),
                (FILE, "p/q", "", "p"),
            ],
            &[
                "f 0640 5:6 x/d = now a file",
                "d 0755 5:6 x/e",
                "f 0640 5:6 x/e/new = n",
                "d 0755 5:6 x/f",
                "f 0640 5:6 x/f/in = i",
                "f 0640 5:6 x/g = 2",
                "d 0755 0:0 x/p",
                "f 0640 5:6 x/p/q = p",
            ],
        );
    }

    #[test]
    fn whiteouts_and_links_reach_the_parent() {
        let base = [
            ("x/", 0o755, ""),
            ("x/gone", 0o644, "g"),
            ("x/kept", 0o644, "k"),
            ("x/o/", 0o755, ""),
            ("x/o/hid", 0o644, "h"),
        ];
        let image = Image::default().with(&base);
        let members = [
            (FILE, ".wh.gone", "", ""),
            (FILE, ".wh.nothing", "", ""),
            (FILE, "o/.wh..wh..opq", "", ""),
            (LINK, "linked", "kept", ""),
        ];
        let outcome = lab(&tar(&members)).base("base", image).build("FROM base\nADD a /x/\n").expect("built");
        assert_eq!(
            outcome.image.tree(),
            ["d 0755 0:0 x", "f 0640 5:6 x/kept = k", "f 0640 5:6 x/linked = k", "d 0755 0:0 x/o"]
        );
        assert!(outcome.image.top().contains(&"h x/linked".to_owned()));
        assert!(!outcome.image.top().iter().any(|line| line.contains("nothing")));
    }

    #[test]
    fn what_no_root_can_hold_is_refused() {
        let long = "n".repeat(90) + "/";
        let refused = |members: &[Member<'_>]| match lab(&tar(members)).build("FROM scratch\nADD a /x/\n") {
            Ok(outcome) => panic!("{:?}", outcome.image.tree()),
            Err(error) => error,
        };
        for members in [
            &[(LINK, "l", "missing", "")][..],
            &[(DIRECTORY, "d/", "", ""), (LINK, "l", "d", "")],
            &[(SYMLINK, "l", "", "")],
            &[(b'3', "zero", "", "")],
            &[(FILE, "d/f", "", "x"), (LINK, "d", "d/f", "")],
        ] {
            assert!(matches!(refused(members), Error::ArchiveEntry { .. }), "{members:?}");
        }
        assert!(matches!(refused(&[(SYMLINK, "l", "l", ""), (FILE, "l/f", "", "x")]), Error::Loop(_)));
        assert!(matches!(refused(&[(FILE, "f", "", "x"), (FILE, "f/g", "", "x")]), Error::NotDirectory(_)));
        let mut cut = tar(&[(FILE, &long[..90], "", &"x".repeat(600))]);
        cut.truncate(900);
        let cut = lab(&cut).build("FROM scratch\nADD a /x/\n");
        assert!(matches!(cut.err().expect("cut"), Error::Archive { .. }));
    }

    /// ADD of `a`, which was `then` when the key was made and has these bytes when it is opened; what the layer holds, or
    /// `None` if a change was seen.
    fn add_changing(then: &[u8], opened: &[&[u8]]) -> Option<Vec<String>> {
        add_unless(&|| false, then, opened).expect("copied")
    }

    fn add_unless(
        is_canceled: &dyn Fn() -> bool,
        then: &[u8],
        opened: &[&[u8]],
    ) -> Result<Option<Vec<String>>> {
        let lab = lab(then);
        let operation = crate::operation::CopyOperation {
            sources: vec![crate::operation::CopySource::Path("a".to_owned())],
            from: crate::operation::MountSource::Context,
            destination: "/x/".to_owned(),
            owner: None,
            mode: None,
            exclude: Vec::new(),
            parents: false,
            link: false,
            kind: crate::operation::CopyKind::Unpack,
            epoch: None,
        };
        let context = lab.open();
        let mut selection = crate::select::select(&operation, &context).expect("selected");
        let (empty, view) = (Image::default(), kiln_layer::RootView::default());
        let scratch = Directory::open(&lab.host.path().join("scratch")).expect("opened");
        let copying = crate::copy::Copying {
            operation: &operation,
            parent: &crate::image_tree::ImageTree::new(&view, &empty, ""),
            source: &Shifting::new(&context, opened),
            scratch: &scratch,
            now: crate::lab::NOW,
            earlier: None,
            is_canceled,
        };
        let mut writer = kiln_layer::LayerWriter::new();
        let copied = match crate::copy::copy(copying, &mut selection, &mut writer) {
            Err(Error::Changed(name)) => {
                assert_eq!(name, "/a");
                return Ok(None);
            }
            copied => copied?,
        };
        let written = match writer.finish(&view, kiln_layer::Outputs::default()) {
            Err(kiln_layer::Error::Changed { .. }) => return Ok(None),
            written => written?,
        };
        if copied.changed(&written.index)?.is_some() {
            return Ok(None);
        }
        let names = written.index.entries().map(|entry| entry.expect("an entry").path().to_vec());
        Ok(Some(names.map(|name| String::from_utf8(name).expect("text")).collect()))
    }

    #[test]
    fn unpacking_can_be_stopped() {
        let archive = tar(&[(FILE, "f", "", &"1".repeat(700_000)), (FILE, "g", "", "2")]);
        let asked = std::cell::Cell::new(0);
        for most in 0..5 {
            asked.set(0);
            let is_canceled = || {
                asked.set(asked.get() + 1);
                asked.get() > most
            };
            let stopped = add_unless(&is_canceled, &archive, &[&archive]);
            assert!(matches!(stopped, Err(Error::Canceled)), "{stopped:?}");
        }
    }

    #[test]
    fn only_what_the_key_says_is_unpacked() {
        // More than is looked at to tell whether it is an archive.
        let (one, two) = ("1".repeat(700_000), "2".repeat(700_000));
        let (one, two) = (tar(&[(FILE, "f", "", &one)]), tar(&[(FILE, "f", "", &two)]));
        let (cut, none) = (&one[..one.len() / 2], vec![b'x'; one.len()]);
        let mut longer = one.clone();
        longer.push(0);
        let mut padded = one.clone();
        *padded.last_mut().expect("an end") = 1;
        let (unpacked, copied) =
            (Some(vec!["x".to_owned(), "x/f".to_owned()]), Some(vec!["x".to_owned(), "x/a".to_owned()]));
        assert_eq!(add_changing(&one, &[&one]), unpacked);
        assert_eq!(add_changing(&none, &[&none]), copied);
        for opened in [&two[..], cut, &none, &longer, &padded, b""] {
            assert_eq!(add_changing(&one, &[opened]), None);
        }
        assert_eq!(add_changing(&none, &[&one]), None);
        assert_eq!(add_changing(&none, &[b""]), None);
        // An archive that was none for a moment is not copied as a file.
        assert_eq!(add_changing(&one, &[&none, &one]), None);
        assert_eq!(add_changing(&one, &[&none[..9], &one]), None);
        assert_eq!(add_changing(b"small", &[b"s", b"small"]), None);
    }

    #[test]
    fn time_is_linear_in_links() {
        let names: Vec<String> = (0..20_000).map(|number| format!("link{number}")).collect();
        let links = names.iter().map(|name| (LINK, name.as_str(), "f", ""));
        let members: Vec<Member<'_>> = std::iter::once((FILE, "f", "", "f")).chain(links).collect();
        let lab = lab(&tar(&members));
        let start = std::time::Instant::now();
        let outcome = lab.build("FROM scratch\nADD a /\n").expect("built");
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
        assert_eq!(outcome.image.top().iter().filter(|line| line.starts_with("h ")).count(), names.len());
    }

    #[test]
    fn links_have_the_last_owner_and_mode() {
        let mut archive =
            tar(&[(FILE, "f", "", "f"), (LINK, "g", "f", ""), (LINK, "h", "g", ""), (FILE, "g", "", "g")]);
        let link = &mut archive[1024 + 512..1024 + 1024];
        link[100..108].copy_from_slice(b"0004711\0");
        link[108..116].copy_from_slice(b"0000007\0");
        link[148..156].copy_from_slice(b"        ");
        let sum: u32 = link.iter().map(|byte| u32::from(*byte)).sum();
        link[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let outcome = lab(&archive).build("FROM scratch\nADD a /\n").expect("built");
        assert_eq!(outcome.image.tree(), ["f 4711 7:6 f = f", "f 0640 5:6 g = g", "f 4711 7:6 h = f"]);
    }
}
