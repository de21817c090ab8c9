//! COPY and ADD: what was selected, staged onto the parent's root by the rules of BuildKit's file operations
//! (`solver/llbsolver/file` and `tonistiigi/fsutil/copy`).

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use kiln_layer::{Kind, LayerIndex, LayerWriter, Metadata};
use kiln_oci::Digest;
use kiln_sys::root::Directory;

use crate::beginning::Beginning;
use crate::context::is_no_file;
use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::image_tree::{Contents, ImageTree};
use crate::mode::ModeChange;
use crate::operation::CopyOperation;
use crate::owner::find_owner;
use crate::select::{RootContent, SelectedRoot, Selection};
use crate::staging::{Bytes, Expected, Making, Staged, Staging, Wanted};
use crate::tree::{Below, LastLink, SourceTree, cleaned, join, shown, split};
use crate::unpack::{Archived, Spool, Unpacked, unpack};

/// What a COPY or ADD is given.
#[derive(Clone, Copy)]
pub(crate) struct Copying<'a> {
    pub(crate) operation: &'a CopyOperation,
    /// The root that is built on.
    pub(crate) parent: &'a ImageTree<'a>,
    /// The context, or the root that `--from` names.
    pub(crate) source: &'a dyn SourceTree,
    /// Takes a nameless file with what ADD unpacks.
    pub(crate) scratch: &'a Directory,
    /// Seconds since the epoch.
    pub(crate) now: i64,
    /// What may have the same files.
    pub(crate) earlier: Option<&'a Earlier>,
    /// Asked while archives are unpacked.
    pub(crate) is_canceled: &'a dyn Fn() -> bool,
}

/// What is known once everything was given to the layer writer.
#[derive(Debug)]
pub(crate) struct Copied {
    expected: Vec<Expected>,
    /// Names in `--chown` that the image does not know: their files belong to root.
    pub(crate) unknown_owners: Vec<String>,
}

impl Copied {
    /// The file of the source that was not as the key says when it was copied, if there is one.
    ///
    /// # Errors
    /// When the index is damaged.
    pub(crate) fn changed(&self, index: &LayerIndex) -> Result<Option<String>> {
        let mut finder = index.finder();
        for expected in &self.expected {
            let written = finder.find(&expected.path)?.and_then(|entry| entry.content());
            if written != Some(expected.content) {
                return Ok(Some(shown(&expected.source)));
            }
        }
        Ok(None)
    }
}

/// Gives the entries of a COPY's or ADD's layer to `out`. Nothing is read yet but archives to unpack and, in a stage or
/// image, what was selected without being walked.
///
/// Finish the writer, then ask [`Copied::changed`]. A writer that fails with `kiln_layer::Error::Changed` says the same:
/// a file changed since its key was made.
///
/// # Errors
/// When the destination cannot take what is copied, a mode or owner makes no sense, or an archive is damaged.
pub(crate) fn copy<'w>(
    copying: Copying<'w>,
    selection: &mut Selection,
    out: &mut LayerWriter<'w>,
) -> Result<Copied> {
    let Copying { operation, parent, source, scratch, now, earlier, is_canceled } = copying;
    let mode = operation.mode.as_deref().map(ModeChange::parse).transpose()?;
    // As in BuildKit, --chmod turns --link off.
    let unlinked = !operation.link || mode.is_some();
    let base: &dyn SourceTree = if unlinked { parent } else { &NothingBelow };
    let owner = match &operation.owner {
        Some(text) if unlinked => Some(find_owner(text, parent)?),
        Some(text) => {
            let nothing = kiln_layer::RootView::default();
            Some(find_owner(text, &ImageTree::new(&nothing, &NothingBelow, ""))?)
        }
        None => None,
    };
    let mut copier = Copier {
        staging: Staging::new(base, now, operation.epoch),
        source,
        owner: owner.as_ref().map(|owner| (owner.uid, owner.gid)),
        mode,
        destination: &operation.destination,
        spool: Spool::new(scratch),
        beginnings: HashMap::new(),
        is_canceled,
    };
    for selected in &mut selection.sources {
        for root in &mut selected.roots {
            if !(selected.unpack && copier.unpack(root)?) {
                copier.root(root)?;
            }
        }
    }
    let (spool, beginnings) = (copier.spool.finish()?, copier.beginnings);
    let mut earlier = earlier.map(Earlier::files);
    let mut same = |wanted: &Wanted<'_>| {
        let (files, content) = (earlier.as_mut()?, wanted.content.as_ref()?);
        files.open(wanted.path, wanted.size, content)
    };
    let expected = copier.staging.write(out, |wanted| match wanted.bytes {
        Bytes::None => kiln_layer::Source::Empty,
        Bytes::Inline(bytes) => kiln_layer::Source::Bytes(bytes.to_vec()),
        Bytes::Source(path) => {
            let source = match same(wanted) {
                Some(piece) => kiln_layer::Source::Open(Box::new(|| Ok(Box::new(piece)))),
                None => open_later(source, path),
            };
            let begins = beginnings.get(&path[..]).map_or(&[][..], Vec::as_slice);
            begins.iter().fold(source, |source, beginning| beginning_with(*beginning, source))
        }
        Bytes::Parent(path) => open_later(parent, path),
        Bytes::Spool(offset) => spool.source(*offset, wanted.size),
    })?;
    Ok(Copied { expected, unknown_owners: owner.map(|owner| owner.unknown).unwrap_or_default() })
}

fn open_later<'w>(tree: &'w dyn SourceTree, path: &Arc<[u8]>) -> kiln_layer::Source<'w> {
    let path = Arc::clone(path);
    kiln_layer::Source::Open(Box::new(move || match tree.open(&path) {
        Ok((reader, _)) => {
            let reader: Box<dyn Read + 'w> = reader;
            Ok(reader)
        }
        // It was there when the key was made, and a regular file.
        Err(error) if is_no_file(&error) => Err(changed(&path)),
        Err(Error::Path(error)) => Err(kiln_layer::Error::File(error)),
        Err(Error::Layer(error)) => Err(error),
        Err(error) => Err(kiln_layer::Error::Read(io::Error::other(error))),
    }))
}

/// A source that must begin with what something was decided by.
fn beginning_with(beginning: Beginning, source: kiln_layer::Source<'_>) -> kiln_layer::Source<'_> {
    match source {
        kiln_layer::Source::Open(open) => {
            kiln_layer::Source::Open(Box::new(move || Ok(beginning.of(open()?))))
        }
        held => held,
    }
}

fn changed(path: &[u8]) -> kiln_layer::Error {
    kiln_layer::Error::Changed { path: String::from_utf8_lossy(path).into_owned(), expected: 0 }
}

/// What `COPY --link` builds on.
struct NothingBelow;

impl SourceTree for NothingBelow {
    fn find(&self, path: &[u8]) -> Result<Option<crate::tree::Found>> {
        let metadata = Metadata::implied_directory();
        let root = crate::tree::Found { metadata, content: None, group: None, stamp: None };
        Ok(path.is_empty().then_some(root))
    }

    fn children(&self, _directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    fn open(&self, _path: &[u8]) -> Result<(Box<dyn Read + Send + '_>, Option<crate::tree::Stamp>)> {
        Ok((Box::new(io::empty()), None))
    }

    fn stored_digest(&self, _path: &[u8]) -> Result<Option<Digest>> {
        Ok(None)
    }

    fn hides(&self, _path: &[u8]) -> bool {
        false
    }

    fn place(&self) -> String {
        String::new()
    }
}

impl Contents for NothingBelow {
    fn open<'a>(
        &'a self,
        _view: &'a kiln_layer::RootView,
        _layer: usize,
        _entry: kiln_layer::index::Entry<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>> {
        Ok(Box::new(io::empty()))
    }
}

struct Copier<'a> {
    staging: Staging<'a>,
    source: &'a dyn SourceTree,
    owner: Option<(u32, u32)>,
    mode: Option<ModeChange>,
    destination: &'a str,
    spool: Spool<'a>,
    /// By what files were found to be no archives.
    beginnings: HashMap<Vec<u8>, Vec<Beginning>>,
    is_canceled: &'a dyn Fn() -> bool,
}

impl Copier<'_> {
    /// How directories on the way are made: with `--chmod` in octal they get that mode, too.
    fn making(&self) -> Making {
        let mode = match self.mode {
            Some(ModeChange::Octal(mode)) => mode,
            _ => 0o755,
        };
        Making { mode, owner: self.owner }
    }

    /// Unpacks a selected file if it is an archive.
    fn unpack(&mut self, root: &mut SelectedRoot) -> Result<bool> {
        let path = match &root.content {
            RootContent::Tree { path, .. } => path.clone(),
            RootContent::Inline(_) => return Ok(false),
        };
        let shown = crate::route::shown(&path, &root.name);
        let Some(first) = root.load(self.source)?.first() else { return Ok(false) };
        let (source, is_canceled) = (self.source, self.is_canceled);
        let archived = Archived { source, path: &path, found: &first.found, shown: &shown, is_canceled };
        let destination = cleaned(self.destination);
        match unpack(&mut self.staging, archived, &destination, self.owner, &mut self.spool)? {
            Unpacked::All => return Ok(true),
            Unpacked::NoArchive(Some(beginning)) => self.beginnings.entry(path).or_default().push(beginning),
            Unpacked::NoArchive(None) => {}
        }
        Ok(false)
    }

    /// Copies one selected file, or the contents of one selected directory.
    fn root(&mut self, root: &mut SelectedRoot) -> Result<()> {
        let making = self.making();
        let destination = cleaned(self.destination);
        let is_directory = self.destination.ends_with('/') || self.destination.ends_with("/.");
        let ensured = if is_directory { &destination[..] } else { split(&destination).0 };
        let ensured = self.staging.resolve(ensured, LastLink::Follow)?;
        self.staging.make_directories(&ensured, making)?;
        let mut target = self.staging.resolve(&destination, LastLink::Follow)?;
        let name = root.name.clone();
        let source = self.source;
        if let RootContent::Inline(bytes) = &root.content {
            let bytes = Arc::from(bytes.as_slice());
            target = self.file_target(target, &name)?;
            return self.inline(&target, bytes);
        }
        let path = match &root.content {
            RootContent::Tree { path, .. } => path.clone(),
            RootContent::Inline(_) => Vec::new(),
        };
        let entries = root.load(source)?;
        let Some((first, below)) = entries.split_first() else { return Ok(()) };
        if first.found.metadata.kind == Kind::Directory {
            self.directory(&target, first, &path, below)
        } else {
            let target = self.file_target(target, &name)?;
            self.entry(&target, &path, first, &mut HashMap::new())
        }
    }

    /// Where a file goes: into the destination if that is a directory.
    fn file_target(&mut self, destination: Vec<u8>, name: &[u8]) -> Result<Vec<u8>> {
        let seen = self.staging.find(&destination)?;
        let into = seen.is_some_and(|seen| seen.metadata.kind == Kind::Directory);
        let target = if into { join(&destination, name) } else { destination };
        self.staging.make_directories(split(&target).0, self.making())?;
        Ok(target)
    }

    fn directory(&mut self, target: &[u8], first: &Below, path: &[u8], below: &[Below]) -> Result<()> {
        match self.staging.find(target)? {
            None => self.staging.make_directories(target, self.making())?,
            Some(seen) if seen.metadata.kind == Kind::Directory => {}
            Some(_) => return Err(Error::DirectoryOverFile(shown(target))),
        }
        let mut links = HashMap::new();
        for entry in below {
            let to = join(target, &entry.path);
            self.entry(&to, &join(path, &entry.path), entry, &mut links)?;
        }
        // Of the selected directory itself nothing but its time is taken over.
        if let Some(mut seen) = self.staging.find(target)? {
            seen.metadata.modified = self.staging.time(first.found.metadata.modified.seconds);
            self.staging.put(target, Staged::plain(seen.metadata))?;
        }
        Ok(())
    }

    fn inline(&mut self, target: &[u8], bytes: Arc<[u8]>) -> Result<()> {
        let mut metadata = Metadata::new(Kind::Regular, 0o644);
        metadata.size = bytes.len() as u64;
        metadata.modified = self.staging.made();
        self.adjust(&mut metadata);
        let content = Some(Digest::of(&bytes));
        self.staging.put_file(target, Staged { metadata, bytes: Bytes::Inline(bytes), content, group: None })
    }

    /// Copies one entry to a resolved path whose directory is there.
    fn entry(
        &mut self,
        target: &[u8],
        path: &[u8],
        entry: &Below,
        links: &mut HashMap<(u64, u64), usize>,
    ) -> Result<()> {
        let found = &entry.found;
        let mut metadata = found.metadata.clone();
        metadata.modified = self.staging.time(metadata.modified.seconds);
        metadata.xattrs.retain(|(name, _)| name == b"security.capability");
        if metadata.kind == Kind::Directory {
            return self.subdirectory(target, metadata, entry.is_implied);
        }
        self.adjust(&mut metadata);
        if metadata.kind != Kind::Regular {
            return self.staging.put_file(target, Staged::plain(metadata));
        }
        let group = found.group.map(|group| match links.get(&group) {
            Some(number) => *number,
            None => {
                let number = self.staging.new_group();
                links.insert(group, number);
                number
            }
        });
        let bytes = Bytes::Source(Arc::from(path));
        self.staging.put_file(target, Staged { metadata, bytes, content: found.content, group })
    }

    /// A directory below the selected one brings all its metadata, onto one that is there, too; one that is there only for
    /// the sake of what is below it brings its mode.
    fn subdirectory(&mut self, target: &[u8], mut metadata: Metadata, is_implied: bool) -> Result<()> {
        let plain_mode = metadata.mode;
        self.adjust(&mut metadata);
        match self.staging.find(target)? {
            Some(seen) if seen.metadata.kind != Kind::Directory => {
                return Err(Error::DirectoryOverFile(shown(target)));
            }
            Some(seen) if is_implied => metadata = Metadata { mode: plain_mode, ..seen.metadata },
            Some(seen) if metadata.xattrs.is_empty() => metadata.xattrs = seen.metadata.xattrs,
            _ => {}
        }
        self.staging.put(target, Staged::plain(metadata))
    }

    fn adjust(&self, metadata: &mut Metadata) {
        if let Some((uid, gid)) = self.owner {
            (metadata.uid, metadata.gid) = (uid, gid);
        }
        if let Some(mode) = self.mode.as_ref().filter(|_| metadata.kind != Kind::Symlink) {
            metadata.mode = mode.apply(metadata.mode, metadata.kind == Kind::Directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Image, Lab, Layer};

    const ACCOUNTS: &[(&str, u32, &str)] = &[
        ("etc/", 0o755, ""),
        ("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\napp:x:1500:1600::/:/bin/sh\n"),
        ("etc/group", 0o644, "root:x:0:\nstaff:x:50:\n"),
    ];

    fn lab() -> Lab {
        let files = [("a.txt", "a"), ("b.txt", "b"), ("c.md", "c"), ("dir/one", "1"), ("dir/sub/two", "2")];
        Lab::new().context(&files)
    }

    /// The tree that a Dockerfile leaves, without what the base image had.
    fn check(lab: Lab, base: &[(&str, u32, &str)], instructions: &str, expect: &[&str]) {
        let image = if base.is_empty() { Image::default() } else { Image::default().with(base) };
        let (from, before) = if base.is_empty() { ("scratch", Vec::new()) } else { ("base", image.tree()) };
        let lab = lab.base("base", image);
        let outcome = lab.build(&format!("FROM {from}\n{instructions}\n")).expect(instructions);
        let tree = outcome.image.tree();
        let new: Vec<&String> = tree.iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(new, expect, "{instructions}");
    }

    fn refused(lab: Lab, base: &[(&str, u32, &str)], instructions: &str) -> Error {
        let lab = lab.base("base", Image::default().with(base));
        let from = if base.is_empty() { "scratch" } else { "base" };
        match lab.build(&format!("FROM {from}\n{instructions}\n")) {
            Ok(outcome) => panic!("{instructions}: {:?}", outcome.image.tree()),
            Err(error) => error,
        }
    }

    #[test]
    fn a_destination_is_a_directory_or_a_file() {
        let d = "d 0755 0:0 d";
        check(lab(), &[], "COPY a.txt /d/", &[d, "f 0644 0:0 d/a.txt = a"]);
        check(lab(), &[], "COPY a.txt /d/.", &[d, "f 0644 0:0 d/a.txt = a"]);
        check(lab(), &[], "COPY a.txt /d", &["f 0644 0:0 d = a"]);
        check(lab(), &[], "COPY a.txt b.txt /x", &["f 0644 0:0 x = b"]);
        check(lab(), &[("d/", 0o700, "")], "COPY a.txt /d", &["f 0644 0:0 d/a.txt = a"]);
        check(
            lab(),
            &[],
            "COPY dir /d",
            &[d, "f 0644 0:0 d/one = 1", "d 0755 0:0 d/sub", "f 0644 0:0 d/sub/two = 2"],
        );
        check(lab(), &[], "COPY dir/sub dir/one /d/", &[d, "f 0644 0:0 d/one = 1", "f 0644 0:0 d/two = 2"]);
        check(lab(), &[], "WORKDIR /w\nCOPY a.txt ../up", &["f 0644 0:0 up = a", "d 0755 0:0 w"]);
    }

    #[test]
    fn heredocs_are_copied() {
        check(lab(), &[], "COPY <<x /d/\nhi\nx", &["d 0755 0:0 d", "f 0644 0:0 d/x = hi\n"]);
        check(lab(), &[], "COPY --chmod=4711 --chown=5 <<x /y\nhi\nx", &["f 4711 5:5 y = hi\n"]);
    }

    #[test]
    fn links_in_the_destination_stay_inside() {
        let base = [
            ("real/", 0o755, ""),
            ("l", 0o777, "->real"),
            ("out", 0o777, "->../../../../real"),
            ("to", 0o777, "->/gone"),
        ];
        check(lab(), &base, "COPY a.txt /l", &["f 0644 0:0 real/a.txt = a"]);
        check(lab(), &base, "COPY a.txt /l/x", &["f 0644 0:0 real/x = a"]);
        check(lab(), &base, "COPY a.txt /out/x", &["f 0644 0:0 real/x = a"]);
        check(lab(), &base, "COPY a.txt /to/x", &["d 0755 0:0 gone", "f 0644 0:0 gone/x = a"]);
        check(lab(), &base, "COPY a.txt /to", &["f 0644 0:0 gone = a"]);
        check(lab(), &base, "COPY --link a.txt /l/x", &["d 0755 0:0 l", "f 0644 0:0 l/x = a"]);
        let host = tempfile::tempdir().expect("a directory");
        let target = format!("->{}", host.path().display());
        let image = Image::default().with(&[("escape", 0o777, &target)]);
        let outcome = lab().base("base", image).build("FROM base\nCOPY dir /escape/\n").expect("built");
        assert!(outcome.image.tree().iter().any(|line| line.ends_with("one = 1")));
        assert_eq!(fs_err::read_dir(host.path()).expect("listed").count(), 0, "the host is not touched");
        // A link where a file of the source goes is replaced, not followed.
        let below = [("d/", 0o755, ""), ("d/one", 0o777, "->/etc/shadow")];
        check(lab(), &below, "COPY dir/one /d/", &["f 0644 0:0 d/one = 1"]);
    }

    #[test]
    fn what_is_in_the_way_is_refused() {
        let base = [
            ("f", 0o644, "x"),
            ("d/", 0o755, ""),
            ("d/sub", 0o777, "->/"),
            ("e/", 0o755, ""),
            ("e/one/", 0o755, ""),
        ];
        assert!(
            matches!(refused(lab(), &base, "COPY dir /f"), Error::DirectoryOverFile(path) if path == "/f")
        );
        assert!(
            matches!(refused(lab(), &base, "COPY dir /d"), Error::DirectoryOverFile(path) if path == "/d/sub")
        );
        assert!(
            matches!(refused(lab(), &base, "COPY dir /e"), Error::FileOverDirectory(path) if path == "/e/one")
        );
        assert!(
            matches!(refused(lab(), &base, "COPY a.txt /f/x"), Error::NotDirectory(path) if path == "/f")
        );
        assert!(matches!(refused(lab(), &base, "COPY a.txt /f/"), Error::NotDirectory(path) if path == "/f"));
    }

    #[test]
    fn names_that_layers_take_for_whiteouts_are_refused() {
        let files = || Lab::new().context(&[("dir/.wh.x", "x"), ("dir/.whale", "w"), ("a.txt", "a")]);
        let told = |instructions| refused(files(), &[], instructions).to_string();
        let says = "in a layer, a name that begins with .wh. says that a file is removed";
        assert_eq!(told("COPY dir /d"), format!("cannot copy /dir/.wh.x to /d/.wh.x: {says}"));
        assert_eq!(told("COPY a.txt /d/.wh.a"), format!("cannot copy /a.txt to /d/.wh.a: {says}"));
        assert_eq!(told("COPY a.txt /.wh.d/"), format!("cannot make /.wh.d: {says}"));
        check(files(), &[], "COPY dir/.whale /.whale", &["f 0644 0:0 .whale = w"]);
    }

    #[test]
    fn modes_and_owners_are_given() {
        check(lab(), &[], "COPY --chmod=640 a.txt /p/q", &["d 0640 0:0 p", "f 0640 0:0 p/q = a"]);
        check(
            lab(),
            &[],
            "COPY --chmod=u=rwX,go= dir /d",
            &["d 0755 0:0 d", "f 0600 0:0 d/one = 1", "d 0700 0:0 d/sub", "f 0600 0:0 d/sub/two = 2"],
        );
        check(lab(), ACCOUNTS, "COPY --chown=app a.txt /x", &["f 0644 1500:1600 x = a"]);
        check(lab(), ACCOUNTS, "COPY --chown=app:staff a.txt /x", &["f 0644 1500:50 x = a"]);
        check(lab(), ACCOUNTS, "COPY --chown=7:app a.txt /x", &["f 0644 7:7 x = a"]);
        check(lab(), ACCOUNTS, "COPY --chown=app: a.txt /x", &["f 0644 1500:0 x = a"]);
        check(lab(), &[], "COPY --chown=5: a.txt /x", &["f 0644 5:0 x = a"]);
        check(lab(), &[], "COPY --chown=+5 a.txt /x", &["f 0644 5:5 x = a"]);
        check(lab(), &[], "COPY --chown=:6 a.txt /x", &["f 0644 0:6 x = a"]);
        check(lab(), &[], "COPY --chown=: a.txt /x", &["f 0644 0:0 x = a"]);
        check(lab(), ACCOUNTS, "COPY --chown=9 a.txt /d/x", &["d 0755 9:9 d", "f 0644 9:9 d/x = a"]);
        assert!(matches!(refused(lab(), &[], "COPY --chown=app a.txt /x"), Error::User(_)));
        let outcome = lab().base("base", Image::default().with(ACCOUNTS));
        let outcome = outcome.build("FROM base\nCOPY --chown=nobody:none a.txt /x\n").expect("built");
        assert_eq!(outcome.unknown_owners, ["nobody", "none"]);
        let links = Lab::new().context(&[("d/f", "x"), ("d/l", "->f")]);
        check(
            links,
            &[],
            "COPY --chmod=700 --chown=1:2 d /d",
            &["d 0700 1:2 d", "f 0700 1:2 d/f = x", "l 0777 1:2 d/l -> f"],
        );
        // Directories made below one with the set-group-ID bit get it.
        let layer = [("s/", 0o2755, "")];
        check(lab(), &layer, "WORKDIR /s/t", &["d 2755 0:0 s/t"]);
    }

    #[test]
    fn directories_are_merged() {
        let base =
            [("d/", 0o700, ""), ("d/keep", 0o644, "k"), ("d/one", 0o600, "old"), ("d/sub/", 0o711, "")];
        check(
            lab(),
            &base,
            "COPY dir /d",
            &["f 0644 0:0 d/one = 1", "d 0755 0:0 d/sub", "f 0644 0:0 d/sub/two = 2"],
        );
    }

    #[test]
    fn excludes_and_parents_select() {
        let one = "f 0644 0:0 d/one = 1";
        check(lab(), &[], "COPY --exclude=sub dir /d", &["d 0755 0:0 d", one]);
        check(
            lab(),
            &[],
            "COPY --exclude=* --exclude=!sub/two dir /d",
            &["d 0755 0:0 d", "d 0755 0:0 d/sub", "f 0644 0:0 d/sub/two = 2"],
        );
        check(
            lab(),
            &[],
            "COPY --parents **/two /p/",
            &["d 0755 0:0 p", "d 0755 0:0 p/dir", "d 0755 0:0 p/dir/sub", "f 0644 0:0 p/dir/sub/two = 2"],
        );
        check(
            lab(),
            &[],
            "COPY --parents ./dir/./sub/two /p/",
            &["d 0755 0:0 p", "d 0755 0:0 p/sub", "f 0644 0:0 p/sub/two = 2"],
        );
        let all = ["d 0755 0:0 p", "f 0644 0:0 p/one = 1", "d 0755 0:0 p/sub", "f 0644 0:0 p/sub/two = 2"];
        check(lab(), &[], "COPY --parents ./dir/./ /p/", &all);
        check(lab(), &[], "COPY --parents dir/./. /p/", &all);
        check(lab(), &[], "COPY --parents --exclude=sub dir/./ /p/", &all[..2]);
        assert!(matches!(refused(lab(), &[], "COPY --parents dir/no /p/"), Error::NoSource { .. }));
        assert!(matches!(refused(lab(), &[], "COPY --parents no/./ /p/"), Error::NoSource { .. }));
    }

    #[test]
    fn only_what_changes_is_in_the_layer() {
        let top = |dockerfile: &str| lab().build(dockerfile).expect(dockerfile).image.top();
        assert!(top("FROM scratch\nCOPY a.txt /f\nCOPY a.txt /f\n").is_empty());
        assert!(top("FROM scratch\nCOPY dir /d\nCOPY dir /d\n").is_empty());
        assert!(top("FROM scratch\nCOPY dir /d\nWORKDIR /d\n").is_empty());
        assert!(top("FROM scratch\nCOPY a.txt /f\nCOPY *.nothing /x/\n").is_empty());
        assert_eq!(top("FROM scratch\nCOPY dir /d\nCOPY a.txt /d/sub/x\n"), ["d d", "d d/sub", "f d/sub/x"]);
        assert_eq!(
            top("FROM scratch\nCOPY dir /d\nCOPY --chmod=700 dir /d\n"),
            ["d d", "f d/one", "d d/sub", "f d/sub/two"]
        );
        assert_eq!(top("FROM scratch\nCOPY a.txt /f\nCOPY --link a.txt /f\n"), ["f f"]);
    }

    #[test]
    fn stages_are_copied_from() {
        let lab =
            lab().context(&[("links/abs", "->/links/f"), ("links/f", "f"), ("links/dangling", "->/no")]);
        fs_err::hard_link(lab.context_path().join("a.txt"), lab.context_path().join("links/hard"))
            .expect("linked");
        fs_err::hard_link(lab.context_path().join("a.txt"), lab.context_path().join("links/hard2"))
            .expect("linked");
        let stage = "FROM scratch AS s\nCOPY --chown=7:8 --chmod=750 . /c\n";
        let outcome = lab.build(&format!("{stage}FROM scratch\nCOPY --from=s /c/links /l\n")).expect("built");
        assert_eq!(
            outcome.image.tree(),
            [
                "d 0755 0:0 l",
                "l 0777 7:8 l/abs -> /links/f",
                "l 0777 7:8 l/dangling -> /no",
                "f 0750 7:8 l/f = f",
                "f 0750 7:8 l/hard = a",
                "f 0750 7:8 l/hard2 = a",
            ]
        );
        assert_eq!(outcome.image.top()[4..], ["f l/hard", "h l/hard2"]);
        let outcome = lab
            .build(&format!("{stage}FROM scratch\nCOPY --from=s /c/*.txt /c/dir/s* /x/\n"))
            .expect("built");
        assert_eq!(
            outcome.image.tree(),
            ["d 0755 0:0 x", "f 0750 7:8 x/a.txt = a", "f 0750 7:8 x/b.txt = b", "f 0750 7:8 x/two = 2"]
        );
    }

    #[test]
    fn times_are_kept_or_clamped() {
        let lab = lab();
        let file = fs_err::File::open(lab.context_path().join("a.txt")).expect("opened");
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 500_000_000);
        file.file().set_modified(time).expect("set");
        let seconds = |dockerfile: &str, path: &str| {
            let image = lab.build(dockerfile).expect(dockerfile).image;
            let view = image.view();
            let node = view.lookup(path.as_bytes()).expect("looked up").expect("there");
            let time = view.modified(&node).expect("a time");
            assert_eq!(time.nanoseconds, 0);
            time.seconds
        };
        assert_eq!(seconds("FROM scratch\nCOPY a.txt /d/x\n", "d/x"), 1_234_567_890);
        assert_eq!(seconds("FROM scratch\nCOPY a.txt /d/x\n", "d"), crate::lab::NOW);
        let early = "ARG SOURCE_DATE_EPOCH=1000\nFROM scratch\nCOPY a.txt /d/x\n";
        assert_eq!((seconds(early, "d/x"), seconds(early, "d")), (1000, 1000));
        let late = "ARG SOURCE_DATE_EPOCH=1500000000\nFROM scratch\nCOPY a.txt /d/x\n";
        assert_eq!(seconds(late, "d/x"), 1_234_567_890);
    }

    fn copy_of(path: &str) -> CopyOperation {
        CopyOperation {
            sources: vec![crate::operation::CopySource::Path(path.to_owned())],
            from: crate::operation::MountSource::Context,
            destination: "/d".to_owned(),
            owner: None,
            mode: None,
            exclude: Vec::new(),
            parents: false,
            link: false,
            kind: crate::operation::CopyKind::Plain,
            epoch: None,
        }
    }

    /// Copies `dir`, doing `meanwhile` between key and copying; gives the layer, and the file that was not as the key says.
    fn copied(lab: &Lab, earlier: Option<&Earlier>, meanwhile: impl FnOnce()) -> (Layer, Option<String>) {
        let (operation, context) = (copy_of("dir"), lab.open());
        let mut selection = crate::select::select(&operation, &context).expect("selected");
        meanwhile();
        let (mut image, empty) = (Image::default(), Image::default());
        let view = empty.view();
        let parent = &ImageTree::new(&view, &empty, "");
        let scratch = &Directory::open(lab.host.path()).expect("opened");
        let copying = Copying {
            operation: &operation,
            parent,
            source: &context,
            scratch,
            now: 0,
            earlier,
            is_canceled: &|| false,
        };
        let mut writer = LayerWriter::new();
        let copied = copy(copying, &mut selection, &mut writer).expect("copied");
        image.add(writer);
        let layer = image.0.remove(0);
        let changed = copied.changed(&layer.index).expect("checked");
        (layer, changed)
    }

    /// What a layer is for the next one, its tar as it is changed by `edit`.
    fn earlier(layer: &Layer, edit: impl FnOnce(&mut Vec<u8>)) -> Earlier {
        let mut bytes = layer.tar.to_vec();
        edit(&mut bytes);
        let mut tar = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut tar, &bytes).expect("written");
        Earlier::new(Arc::clone(&layer.index), tar)
    }

    #[test]
    fn a_file_that_changed_since_its_key_is_named() {
        let lab = lab();
        let write = || fs_err::write(lab.context_path().join("dir/sub/two"), "X").expect("written");
        assert_eq!(copied(&lab, None, write).1.as_deref(), Some("/dir/sub/two"));
    }

    #[test]
    fn an_earlier_layer_gives_the_same_bytes() {
        let lab = lab();
        let write = |name: &str, text: &str| {
            fs_err::write(lab.context_path().join("dir").join(name), text).expect("written");
        };
        let (first, _) = copied(&lab, None, || {});
        write("one", "other");
        write("sub/new", "new");
        let before = earlier(&first, |_| {});
        let plain = copied(&lab, None, || {}).0.tar;
        assert_ne!(plain, first.tar);
        let same = |(layer, changed): (Layer, Option<String>), plain: &[u8]| {
            assert_eq!(changed, None);
            assert!(*layer.tar == *plain, "the tars differ");
        };
        same(copied(&lab, Some(&before), || {}), &plain);
        // A file that is the same is not opened at all.
        same(copied(&lab, Some(&before), || write("sub/two", "X")), &plain);
        write("sub/two", "2");
        // Of the size that it had there, but of other content: it is not taken from there.
        write("one", "3");
        let plain = copied(&lab, None, || {}).0.tar;
        same(copied(&lab, Some(&before), || {}), &plain);
    }

    #[test]
    fn a_damaged_earlier_layer_is_found_out() {
        let lab = lab();
        let (first, _) = copied(&lab, None, || {});
        let at = first.index.find(b"d/sub/two").expect("read").expect("there").content_offset() as usize;
        let flipped = earlier(&first, |tar| tar[at] ^= 1);
        assert_eq!(copied(&lab, Some(&flipped), || {}).1.as_deref(), Some("/dir/sub/two"));
        let (operation, context) = (copy_of("dir"), lab.open());
        let mut selection = crate::select::select(&operation, &context).expect("selected");
        let (empty, view) = (Image::default(), kiln_layer::RootView::default());
        let short = earlier(&first, |tar| tar.truncate(at));
        let copying = Copying {
            operation: &operation,
            parent: &ImageTree::new(&view, &empty, ""),
            source: &context,
            scratch: &Directory::open(lab.host.path()).expect("opened"),
            now: 0,
            earlier: Some(&short),
            is_canceled: &|| false,
        };
        let mut writer = LayerWriter::new();
        copy(copying, &mut selection, &mut writer).expect("copied");
        let written = writer.finish(&view, kiln_layer::Outputs::default());
        assert!(matches!(written, Err(kiln_layer::Error::Changed { .. })), "{written:?}");
    }
}
