//! The walk over a build context: only what is selected is visited, several directories at a time.
//!
//! A directory is one piece of work from its opening to its digest: its names are listed, every file is looked at, and
//! what the stat cache knows is hashed into the digest of its entries, all by one thread. What is kept of it is small,
//! since of most walks nothing but the digest is wanted.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kiln_dockerfile::IgnoreState;
use kiln_layer::metadata::{Children, Tail};
use kiln_layer::{Kind, Metadata};
use kiln_oci::Digest;
use kiln_sys::root::{Directory, Names, Time};
use rustix::fs::{FileType, Stat};

use crate::context::{BuildContext, is_missing, workers};
use crate::error::{Error, Result};
use crate::filter::{Filter, FilterState, Wanted};
use crate::tree::{Below, Found, Stamp, join};

/// A walk over everything below one directory of the context.
pub(crate) struct Walk<'a> {
    context: &'a BuildContext<'a>,
    filter: &'a Filter,
    purpose: Purpose,
    root: Vec<u8>,
    work: Mutex<Work>,
    changed: Condvar,
}

/// What is walked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What is there.
    Entries,
    /// What is there, and what the stat cache knows of its content.
    Content,
}

#[derive(Default)]
struct Work {
    pending: Vec<Task>,
    /// How many tasks are being done.
    active: usize,
    /// How many threads wait for a task.
    waiting: usize,
    /// What was found in each directory, by its number.
    listings: Vec<Listing>,
    failure: Option<Error>,
}

/// A directory to be read.
struct Task {
    number: usize,
    /// Relative to the walked directory.
    path: Vec<u8>,
    mode: u32,
    ignore: IgnoreState,
    filter: FilterState,
}

/// What a thread uses for one directory after the other.
#[derive(Default)]
struct Scratch {
    names: Names,
    order: Vec<(u64, u64, usize)>,
}

/// What came of reading a directory.
enum Read {
    /// What is in it, and which of its entries are directories to be read, too, with their places.
    Listed(Listing, Vec<(Task, usize)>),
    /// It went away since its parent was read.
    Gone,
}

/// Everything that was found below a directory.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// The walked directory's own is the first.
    listings: Vec<Listing>,
}

/// What was found in one directory, in order of names.
#[derive(Debug, Default)]
struct Listing {
    /// Relative to the walked directory.
    path: Vec<u8>,
    /// The names of the entries, one after the other, each with the link's target behind it if it is one.
    text: Vec<u8>,
    entries: Vec<Listed>,
    digests: Digests,
    /// The directory went away before it was read, as if it had not been there when its parent was.
    is_gone: bool,
}

/// How far the directory's digest is known.
#[derive(Debug, Default)]
enum Digests {
    #[default]
    Unknown,
    /// Those of the entries; of directories, and of files whose content is unknown, none.
    Entries(Vec<Option<Digest>>),
    /// That of the directory.
    Whole(Digest),
}

#[derive(Debug)]
struct Listed {
    /// Where the name begins, and how long it is.
    name: (usize, usize),
    kind: Kind,
    is_implied: bool,
    /// It is there only if something below it is.
    needs_below: bool,
    /// It may have other names.
    is_linked: bool,
    stamp: Stamp,
    more: More,
}

/// What only some kinds have.
#[derive(Clone, Copy, Debug)]
enum More {
    Nothing,
    /// The digest of a regular file's content, if it is known.
    Content(Option<Digest>),
    /// The number of a directory's listing.
    Listing(usize),
    /// How long a symbolic link's target is.
    Target(usize),
    Device(u32, u32),
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        context: &'a BuildContext<'a>,
        root: &[u8],
        ignore: IgnoreState,
        filter: &'a Filter,
        purpose: Purpose,
    ) -> Self {
        let first = Task { number: 0, path: Vec::new(), mode: 0, ignore, filter: filter.root() };
        let work = Work { pending: vec![first], listings: vec![Listing::default()], ..Work::default() };
        let (work, changed) = (Mutex::new(work), Condvar::new());
        Self { context, filter, purpose, root: root.to_vec(), work, changed }
    }

    /// Finds everything below the directory.
    pub(crate) fn run(self) -> Result<Walked> {
        std::thread::scope(|scope| {
            let mut helpers = 1..workers();
            // A thread is worth its start only where more than one directory waits.
            self.work(|pending| {
                if pending > 1 && helpers.next().is_some() {
                    scope.spawn(|| self.work(|_| {}));
                }
            });
        });
        let work = self.work.into_inner().unwrap_or_else(PoisonError::into_inner);
        match work.failure {
            Some(failure) => Err(failure),
            None => Ok(Walked { listings: work.listings }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is to be done; after each directory `pending` is told how many wait.
    fn work(&self, mut pending: impl FnMut(usize)) {
        let mut span = kiln_trace::span("walk context");
        let mut scratch = Scratch::default();
        while let Some(task) = self.next() {
            let read = self.read(&task, &mut scratch);
            if let Ok(Read::Listed(listing, _)) = &read {
                span.count(listing.entries.len());
            }
            pending(self.note(&task, read));
        }
    }

    /// Notes what came of a task, and gives how many wait.
    fn note(&self, task: &Task, read: Result<Read>) -> usize {
        let mut work = self.lock();
        work.active -= 1;
        match read {
            Ok(Read::Listed(mut listing, tasks)) => {
                let first = work.listings.len();
                for (task, entry) in tasks {
                    let number = work.listings.len();
                    work.listings.push(Listing::default());
                    listing.entries[entry].more = More::Listing(number);
                    work.pending.push(Task { number, ..task });
                }
                // The one pushed last is taken first: keep to the order of names.
                let pushed = work.listings.len() - first;
                let start = work.pending.len() - pushed;
                work.pending[start..].reverse();
                work.listings[task.number] = listing;
            }
            Ok(Read::Gone) => work.listings[task.number].is_gone = true,
            Err(error) => {
                work.failure.get_or_insert(error);
                work.pending.clear();
            }
        }
        let (left, waiting) = (work.pending.len(), work.waiting);
        let wakes = waiting > 0 && (left > 0 || work.active == 0);
        drop(work);
        if wakes {
            self.changed.notify_all();
        }
        left
    }

    fn next(&self) -> Option<Task> {
        let mut work = self.lock();
        loop {
            if let Some(task) = work.pending.pop() {
                work.active += 1;
                return Some(task);
            }
            if work.active == 0 {
                return None;
            }
            work.waiting += 1;
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
            work.waiting -= 1;
        }
    }

    /// Reads one directory.
    fn read(&self, task: &Task, scratch: &mut Scratch) -> Result<Read> {
        self.context.check_canceled()?;
        let mut listing = Listing { path: task.path.clone(), ..Listing::default() };
        let mut tasks = Vec::new();
        let from_root = join(&self.root, &task.path);
        let opened = self.context.root().open_directory(Path::new(OsStr::from_bytes(&from_root)));
        let listed = opened.and_then(|mut directory| {
            directory.list_sorted(&mut scratch.names)?;
            Ok(directory)
        });
        let directory = match listed {
            Err(error) if is_missing(&error) => return Ok(Read::Gone),
            listed => listed?,
        };
        listing.entries.reserve_exact(scratch.names.iter().len());
        listing.text.reserve_exact(scratch.names.text_size());
        let mut place = Place::new(self, task, from_root);
        for (name, kind) in scratch.names.iter() {
            let may_enter = matches!(kind, FileType::Directory | FileType::Unknown);
            let Some(Chosen { ignore, filter, needs_below, is_implied }) = place.choose(name, may_enter)
            else {
                continue;
            };
            let stat = match directory.stat(name) {
                // It went away since the directory was read.
                Err(error) if is_missing(&error) => continue,
                stat => place.given(name, stat?),
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if needs_below && !is_directory {
                continue;
            }
            let mut listed = match listing.look(&directory, name, &stat) {
                Err(Error::Path(error)) if is_missing(&error) => continue,
                listed => match listed? {
                    Some(listed) => listed,
                    None => continue,
                },
            };
            (listed.is_implied, listed.needs_below) = (is_implied, needs_below);
            if is_directory {
                let (path, mode) = (join(&task.path, name.as_bytes()), listed.mode());
                tasks.push((Task { number: 0, path, mode, ignore, filter }, listing.entries.len()));
            }
            listing.entries.push(listed);
        }
        if self.purpose == Purpose::Content {
            self.fill_in(&mut listing, &mut scratch.order);
            listing.sum(task.mode, tasks.is_empty() && !task.path.is_empty());
        }
        Ok(Read::Listed(listing, tasks))
    }

    /// Asks the stat cache for the content of the files of a directory.
    fn fill_in(&self, listing: &mut Listing, order: &mut Vec<(u64, u64, usize)>) {
        order.clear();
        for (number, listed) in listing.entries.iter().enumerate() {
            if listed.kind == Kind::Regular {
                order.push((listed.stamp.device, listed.stamp.inode, number));
            }
        }
        order.sort_unstable();
        let cache = self.context.cache();
        let mut from = 0;
        for (_, _, number) in order {
            let listed = &mut listing.entries[*number];
            listed.more = More::Content(cache.content(&listed.stamp, &mut from));
        }
    }
}

/// Decides on the names of one directory.
struct Place<'a> {
    walk: &'a Walk<'a>,
    task: &'a Task,
    /// The directory's path from the context's root, then with a name.
    path: Vec<u8>,
    /// The same from the walked directory.
    relative: Vec<u8>,
    lengths: (usize, usize),
    /// Whether there is nothing to decide.
    takes_all: bool,
}

/// A name that is looked at.
#[derive(Default)]
struct Chosen {
    ignore: IgnoreState,
    filter: FilterState,
    needs_below: bool,
    is_implied: bool,
}

impl<'a> Place<'a> {
    fn new(walk: &'a Walk<'a>, task: &'a Task, path: Vec<u8>) -> Self {
        let relative = task.path.clone();
        let lengths = (path.len(), relative.len());
        let takes_all = walk.context.ignore().is_empty() && walk.filter.is_empty();
        Self { walk, task, path, relative, lengths, takes_all }
    }

    /// What was found at a name, as it is in the context.
    fn given(&mut self, name: &OsStr, stat: Stat) -> Stat {
        if !self.walk.context.gives_modes() {
            return stat;
        }
        append(&mut self.path, self.lengths.0, name.as_bytes());
        self.walk.context.given(&self.path, stat)
    }

    fn choose(&mut self, name: &OsStr, may_enter: bool) -> Option<Chosen> {
        if self.takes_all {
            return Some(Chosen::default());
        }
        append(&mut self.path, self.lengths.0, name.as_bytes());
        append(&mut self.relative, self.lengths.1, name.as_bytes());
        let rules = self.walk.context.ignore();
        let ignore = rules.child(&self.task.ignore, &self.path);
        if ignore.is_ignored() && !(may_enter && rules.may_include_below(&self.path)) {
            return None;
        }
        let (wanted, filter) = self.walk.filter.child(&self.task.filter, &self.relative, may_enter);
        let is_implied = wanted == Wanted::Below;
        let needs_below = ignore.is_ignored() || is_implied;
        (wanted != Wanted::No).then_some(Chosen { ignore, filter, needs_below, is_implied })
    }
}

impl Listing {
    /// An entry as the context shows it; none for sockets.
    fn look(&mut self, directory: &Directory, name: &OsStr, stat: &Stat) -> Result<Option<Listed>> {
        let Some(kind) = BuildContext::kind(stat) else { return Ok(None) };
        let start = self.text.len();
        self.text.extend_from_slice(name.as_bytes());
        let more = match kind {
            Kind::Regular => More::Content(None),
            Kind::Symlink => {
                let target = directory.read_link(name)?;
                self.text.extend_from_slice(target.as_bytes());
                More::Target(target.len())
            }
            Kind::CharacterDevice | Kind::BlockDevice => {
                More::Device(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
            }
            _ => More::Nothing,
        };
        Ok(Some(Listed {
            name: (start, name.len()),
            kind,
            is_implied: false,
            needs_below: false,
            is_linked: kind == Kind::Regular && stat.st_nlink > 1,
            stamp: Stamp::of(stat),
            more,
        }))
    }

    fn name(&self, listed: &Listed) -> &[u8] {
        &self.text[listed.name.0..listed.name.0 + listed.name.1]
    }

    fn metadata(&self, listed: &Listed) -> Metadata {
        let mut metadata = Metadata::new(listed.kind, listed.mode());
        metadata.modified = Time { seconds: listed.stamp.modified.0, nanoseconds: 0 };
        match listed.more {
            More::Content(_) => metadata.size = listed.stamp.size,
            More::Target(length) => {
                let start = listed.name.0 + listed.name.1;
                metadata.link = self.text[start..start + length].to_vec();
            }
            More::Device(major, minor) => metadata.device = (major, minor),
            More::Nothing | More::Listing(_) => {}
        }
        metadata
    }

    /// The content digest of anything but a directory, if all of it is known.
    fn entry_digest(&self, listed: &Listed) -> Option<Digest> {
        match &listed.more {
            More::Content(content) => {
                content.as_ref().map(|content| self.metadata(listed).content_digest(&Tail::Content(content)))
            }
            _ if listed.kind == Kind::Directory => None,
            _ => Some(self.metadata(listed).content_digest(&Tail::Nothing)),
        }
    }

    /// Works the digests of the entries out as far as they are known; if there is nothing else, the directory's, whose mode
    /// is given.
    fn sum(&mut self, mode: u32, is_whole: bool) {
        let digests: Vec<Option<Digest>> =
            self.entries.iter().map(|listed| self.entry_digest(listed)).collect();
        if is_whole && digests.iter().all(Option::is_some) {
            let mut children = Children::default();
            for (listed, digest) in self.entries.iter().zip(digests.iter().flatten()) {
                children.add(b"", self.name(listed), digest);
            }
            self.digests = Digests::Whole(directory_digest(mode, &children));
        } else {
            self.digests = Digests::Entries(digests);
        }
    }
}

impl Listed {
    fn mode(&self) -> u32 {
        if self.kind == Kind::Symlink { 0o777 } else { self.stamp.mode & 0o7777 }
    }

    fn is_unknown(&self) -> bool {
        matches!(self.more, More::Content(None))
    }
}

fn directory_digest(mode: u32, children: &Children) -> Digest {
    Metadata::new(Kind::Directory, mode).content_digest(&Tail::Children(children))
}

/// A file whose content is to be found out: the number of its listing, and its place there.
pub(crate) type Position = (usize, usize);

impl Walked {
    /// Whether nothing is below the directory.
    pub(crate) fn is_empty(&self) -> bool {
        !self.has_entries(0)
    }

    /// Whether the directory itself went away before it was read.
    pub(crate) fn is_gone(&self) -> bool {
        self.went_away(0)
    }

    /// Whether directories are left out that went away before they were read.
    pub(crate) fn is_partial(&self) -> bool {
        self.listings.iter().any(|listing| listing.is_gone)
    }

    fn went_away(&self, number: usize) -> bool {
        self.listings.get(number).is_some_and(|listing| listing.is_gone)
    }

    fn has_entries(&self, number: usize) -> bool {
        self.listings.get(number).is_some_and(|listing| {
            listing.entries.iter().any(|listed| match listed.more {
                More::Listing(below) if self.went_away(below) => false,
                More::Listing(below) if listed.needs_below => self.has_entries(below),
                _ => true,
            })
        })
    }

    /// The files whose content is not known.
    pub(crate) fn unknown(&self) -> Vec<Position> {
        let mut unknown = Vec::new();
        for (number, listing) in self.listings.iter().enumerate() {
            let entries = listing.entries.iter().enumerate();
            unknown
                .extend(entries.filter(|(_, listed)| listed.is_unknown()).map(|(place, _)| (number, place)));
        }
        unknown
    }

    /// The path of a file below the walked directory.
    pub(crate) fn path(&self, (number, place): Position) -> Vec<u8> {
        let listing = &self.listings[number];
        join(&listing.path, listing.name(&listing.entries[place]))
    }

    /// Says what a file holds, and how it looked then.
    pub(crate) fn learn(&mut self, (number, place): Position, digest: Digest, stamp: Stamp) {
        let listing = &mut self.listings[number];
        let listed = &mut listing.entries[place];
        listed.stamp = stamp;
        listed.more = More::Content(Some(digest));
    }

    /// The content digest of the walked directory, whose mode is given. All files' contents must be known.
    pub(crate) fn digest(&self, mode: u32) -> Digest {
        self.digest_of(0, mode).0
    }

    /// The digest of a directory, and how many entries it has.
    fn digest_of(&self, number: usize, mode: u32) -> (Digest, usize) {
        let Some(listing) = self.listings.get(number) else { return Default::default() };
        let known: &[Option<Digest>] = match &listing.digests {
            Digests::Whole(digest) => return (*digest, listing.entries.len()),
            Digests::Entries(known) => known,
            Digests::Unknown => &[],
        };
        let mut children = Children::default();
        let mut count = 0;
        for (place, listed) in listing.entries.iter().enumerate() {
            let digest = match listed.more {
                More::Listing(below) if self.went_away(below) => continue,
                More::Listing(below) => {
                    let (digest, entries) = self.digest_of(below, listed.mode());
                    if listed.needs_below && entries == 0 {
                        continue;
                    }
                    digest
                }
                _ => {
                    let known = known.get(place).copied().flatten();
                    known.or_else(|| listing.entry_digest(listed)).unwrap_or_default()
                }
            };
            count += 1;
            children.add(b"", listing.name(listed), &digest);
        }
        (directory_digest(mode, &children), count)
    }

    /// The names of the files that have several, relative to the walked directory, in path order.
    pub(crate) fn links(&self) -> Vec<Vec<Vec<u8>>> {
        let mut groups: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
        self.gather_links(0, &mut groups);
        groups.into_values().filter(|group| group.len() > 1).collect()
    }

    fn gather_links(&self, number: usize, groups: &mut BTreeMap<(u64, u64), Vec<Vec<u8>>>) {
        let Some(listing) = self.listings.get(number) else { return };
        for (place, listed) in listing.entries.iter().enumerate() {
            match listed.more {
                More::Listing(below) => self.gather_links(below, groups),
                _ if listed.is_linked => {
                    let identity = (listed.stamp.device, listed.stamp.inode);
                    groups.entry(identity).or_default().push(self.path((number, place)));
                }
                _ => {}
            }
        }
    }

    /// `root`, and behind it everything below the directory, in path order.
    pub(crate) fn entries(&self, root: Below) -> Vec<Below> {
        let count: usize = self.listings.iter().map(|listing| listing.entries.len()).sum();
        let mut below = Vec::with_capacity(1 + count);
        below.push(root);
        self.assemble(0, &mut Vec::new(), &mut below);
        below
    }

    fn assemble(&self, number: usize, path: &mut Vec<u8>, below: &mut Vec<Below>) {
        let Some(listing) = self.listings.get(number) else { return };
        let length = path.len();
        for listed in &listing.entries {
            if matches!(listed.more, More::Listing(below) if self.went_away(below)) {
                continue;
            }
            append(path, length, listing.name(listed));
            let at = below.len();
            let is_regular = listed.kind == Kind::Regular;
            let found = Found {
                metadata: listing.metadata(listed),
                content: if let More::Content(content) = listed.more { content } else { None },
                group: listed.is_linked.then_some((listed.stamp.device, listed.stamp.inode)),
                stamp: is_regular.then_some(listed.stamp),
            };
            below.push(Below { path: path.as_slice().into(), found, is_implied: listed.is_implied });
            if let More::Listing(listing) = listed.more {
                self.assemble(listing, path, below);
            }
            if listed.needs_below && below.len() == at + 1 {
                below.pop();
            }
        }
        path.truncate(length);
    }
}

fn append(path: &mut Vec<u8>, length: usize, name: &[u8]) {
    path.truncate(length);
    if length > 0 {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;
    use crate::tree::SourceTree as _;

    #[test]
    fn a_directory_that_goes_before_it_is_read_is_not_in_its_parent() {
        let changes: [fn(&Path); 3] = [
            |path| fs_err::remove_dir_all(path).expect("removed"),
            |path| fs_err::rename(path, path.with_extension("moved")).expect("moved"),
            |path| {
                fs_err::remove_dir_all(path).expect("removed");
                fs_err::write(path, "").expect("written");
            },
        ];
        for change in changes {
            let lab =
                Lab::new().context(&[("d/s/link", "->x"), ("d/s/t/", ""), ("d/link", "->x"), ("d/e/", "")]);
            let (context, filter) = (lab.open(), Filter::default());
            let walk = || Walk::new(&context, b"d", IgnoreState::default(), &filter, Purpose::Content);
            let begun = walk();
            // The directory itself, as a thread reads it.
            let task = begun.next().expect("a task");
            begun.note(&task, begun.read(&task, &mut Scratch::default()));
            change(&lab.context_path().join("d/s"));
            let walked = begun.run().expect("walked");
            assert!(walked.is_partial() && !walked.is_gone());
            let root = || {
                let found = context.find(b"d").expect("found").expect("there");
                Below { path: Box::default(), found, is_implied: false }
            };
            let names: Vec<_> = walked
                .entries(root())
                .iter()
                .map(|below| String::from_utf8_lossy(&below.path).into_owned())
                .collect();
            assert_eq!(names, ["", "e", "link"]);
            for left in ["s", "s.moved"] {
                let left = lab.context_path().join("d").join(left);
                let _ = fs_err::remove_dir_all(&left).or_else(|_| fs_err::remove_file(&left));
            }
            let whole = walk().run().expect("walked");
            assert!(!whole.is_partial());
            assert_eq!(walked.digest(0o755), whole.digest(0o755), "as if it had not been there");
        }
    }

    #[test]
    fn a_walked_directory_that_goes_is_gone() {
        let lab = Lab::new().context(&[("d/link", "->x")]);
        let (context, filter) = (lab.open(), Filter::default());
        let walk = Walk::new(&context, b"d", IgnoreState::default(), &filter, Purpose::Entries);
        fs_err::remove_dir_all(lab.context_path().join("d")).expect("removed");
        assert!(walk.run().expect("walked").is_gone());
    }
}
