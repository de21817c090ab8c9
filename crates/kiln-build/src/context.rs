//! The build context: a directory of the user's, seen through its ignore file, never followed out of.
//!
//! Everything in it belongs to 0:0, has times in whole seconds and no extended attributes (what BuildKit's transfer of a
//! context leaves of them never reaches an image). Sockets are not part of it. Of a directory that the ignore file leaves
//! out only what a `!` pattern takes back is there.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use kiln_dockerfile::{IgnoreMatcher, IgnoreState};
use kiln_graph::Cancel;
use kiln_layer::{Kind, Limits, Metadata};
use kiln_oci::{Digest, Hasher};
use kiln_sys::root::{Directory, FileError, Root, Time};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::context_walk::{Purpose, Walk, Walked};
use crate::error::{Error, Result};
use crate::examine::{Entries, Examined};
use crate::file_system::FileSystems;
use crate::filter::Filter;
use crate::request::GivenModes;
use crate::stat_cache::StatCache;
use crate::stopping::Stopping;
use crate::tree::{Below, Found, SourceTree, Stamp, split};

/// How many threads walk and hash at most.
const WORKERS: usize = 2;
/// How often a file that changes under the reader is read again, and a directory some of whose files have gone since they were
/// found is walked again.
const ATTEMPTS: usize = 3;
const BUFFER: usize = 128 << 10;

/// The directory that COPY, ADD and bind mounts see.
pub(crate) struct BuildContext<'a> {
    root: Root,
    ignore: IgnoreMatcher,
    /// Modes that files do not have on the disk.
    modes: Arc<GivenModes>,
    cache: RwLock<StatCache>,
    /// None if nothing is kept.
    file_systems: Option<FileSystems>,
    /// The directory that was opened last: files are mostly opened in order.
    last: Mutex<Option<(Vec<u8>, Arc<Directory>)>>,
    /// What is to be done before files are read.
    before_reading: Option<BeforeReading<'a>>,
    /// Ends reading.
    cancel: Cancel,
}

/// Called whenever files of a context are about to be read, which may take long.
pub(crate) type BeforeReading<'a> = &'a (dyn Fn() -> Result<()> + Sync);

/// What came of examining a path.
enum Seen {
    Whole(Examined),
    /// All but a directory that was gone when it was to be read; what was in it may have another name by now.
    Partly(Examined),
    /// A file was gone, or had become something else, when it was to be read.
    Gone(Vec<u8>),
}

/// A file that was read from beginning to end.
struct HashedFile {
    digest: Digest,
    stamp: Stamp,
    /// When the reading began.
    start: Time,
    /// Whether a change of it could be told later.
    is_told: bool,
}

impl<'a> BuildContext<'a> {
    /// Opens the context at `path`. `ignore` holds the bytes of the ignore file; `caches`, if given, is the store's
    /// directory of context stat caches.
    ///
    /// # Errors
    /// When the directory cannot be opened or a pattern of the ignore file is malformed.
    pub(crate) fn open(path: &Path, ignore: &[u8], caches: Option<Directory>) -> Result<Self> {
        let _span = kiln_trace::span("open context");
        let root = Root::open(path)?;
        let ignore = IgnoreMatcher::parse(ignore).map_err(Error::IgnoreFile)?;
        let stat = root.directory().stat_self()?;
        let kept = caches.and_then(|caches| Some((caches, FileSystems::of(root.directory(), stat.st_dev)?)));
        let (cache, file_systems) = match kept {
            Some((caches, systems)) => {
                let of = (stat.st_dev, stat.st_ino);
                (StatCache::open(caches, of, systems.identity()), Some(systems))
            }
            None => (StatCache::default(), None),
        };
        let cache = RwLock::new(cache);
        Ok(Self {
            root,
            ignore,
            modes: Arc::default(),
            cache,
            file_systems,
            last: Mutex::new(None),
            before_reading: None,
            cancel: Cancel::new(),
        })
    }

    /// The same context, some of whose files have other modes than on the disk.
    pub(crate) fn with(self, modes: Arc<GivenModes>) -> Self {
        Self { modes, ..self }
    }

    /// The same context, which calls `before_reading` first of all when contents have to be read for a digest.
    pub(crate) fn calling(self, before_reading: BeforeReading<'a>) -> Self {
        Self { before_reading: Some(before_reading), ..self }
    }

    /// The same context, no file of which is read on and no directory walked once `cancel` is set.
    pub(crate) fn ending_with(self, cancel: &Cancel) -> Self {
        Self { cancel: cancel.clone(), ..self }
    }

    /// Keeps what was learned of unchanged files for later builds. Losing a race with another build loses only speed.
    ///
    /// # Errors
    /// When the cache file cannot be written.
    pub(crate) fn save(&self) -> Result<()> {
        let _span = kiln_trace::span("save stat cache");
        Ok(self.cache.write().unwrap_or_else(PoisonError::into_inner).save()?)
    }

    /// Forgets what is remembered: a file was not what was known of it. Either it changed just now, or what was kept is wrong,
    /// and would be so again and again.
    pub(crate) fn forget(&self) {
        self.cache.write().unwrap_or_else(PoisonError::into_inner).forget();
    }

    /// Whether the content of some of its files is known from an earlier build.
    pub(crate) fn is_remembered(&self) -> bool {
        !self.cache().is_empty()
    }

    pub(crate) fn cache(&self) -> RwLockReadGuard<'_, StatCache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn ignore(&self) -> &IgnoreMatcher {
        &self.ignore
    }

    /// Whether some files have other modes than on the disk.
    pub(crate) fn gives_modes(&self) -> bool {
        !self.modes.is_empty()
    }

    /// What was found at a path, with the mode that it has in the context.
    pub(crate) fn given(&self, path: &[u8], mut stat: Stat) -> Stat {
        if let Some(mode) = self.modes.get(path) {
            stat.st_mode = stat.st_mode & !0o7777 | mode;
        }
        stat
    }

    /// The ignore rules' state at `path`.
    fn ignore_state(&self, path: &[u8]) -> IgnoreState {
        let mut state = self.ignore.root();
        if !path.is_empty() {
            let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
            for end in ends.chain([path.len()]) {
                state = self.ignore.child(&state, &path[..end]);
            }
        }
        state
    }

    fn stat(&self, path: &[u8]) -> Result<Option<(Arc<Directory>, Stat)>> {
        if path.is_empty() {
            let stat = self.root.directory().stat_self()?;
            return Ok(Some((self.directory(b"")?, self.given(path, stat))));
        }
        let (parent, name) = split(path);
        let stat = self.directory(parent).and_then(|parent| {
            let stat = parent.stat(OsStr::from_bytes(name))?;
            Ok((parent, self.given(path, stat)))
        });
        match stat {
            Err(Error::Path(error)) if is_missing(&error) => Ok(None),
            stat => stat.map(Some),
        }
    }

    fn directory(&self, path: &[u8]) -> Result<Arc<Directory>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, directory)) = &*last
            && known == path
        {
            return Ok(Arc::clone(directory));
        }
        let directory = Arc::new(self.root.open_directory(Path::new(OsStr::from_bytes(path)))?);
        *last = Some((path.to_vec(), Arc::clone(&directory)));
        Ok(directory)
    }

    fn open_regular(&self, path: &[u8]) -> Result<(std::fs::File, Stamp)> {
        let (parent, name) = split(path);
        let file = self.directory(parent)?.open_file(OsStr::from_bytes(name))?;
        let stamp = self.stamp_of(&file, path)?;
        Ok((file, stamp))
    }

    fn stamp_of(&self, file: &std::fs::File, path: &[u8]) -> Result<Stamp> {
        let stat = rustix::fs::fstat(file).map_err(|error| self.failed("stat", path, error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Changed(self.shown(path)));
        }
        Ok(Stamp::of(&self.given(path, stat)))
    }

    fn shown(&self, path: &[u8]) -> String {
        self.root.directory().name().join(OsStr::from_bytes(path)).display().to_string()
    }

    fn failed(&self, action: &'static str, path: &[u8], source: io::Error) -> Error {
        Error::File { action, path: self.shown(path), source }
    }

    pub(crate) fn check_canceled(&self) -> Result<()> {
        if self.cancel.is_canceled() { Err(Error::Canceled) } else { Ok(()) }
    }

    fn begin_reading(&self) -> Result<()> {
        self.before_reading.map_or(Ok(()), |begin| begin())
    }

    /// Hashes a file that holds still meanwhile; `None` if it is gone, or no regular file any more.
    fn hash_file(&self, path: &[u8], buffer: &mut [u8]) -> Result<Option<HashedFile>> {
        for _ in 0..ATTEMPTS {
            let start = now();
            let (mut file, before) = match self.open_regular(path) {
                Err(error) if is_no_file(&error) => return Ok(None),
                opened => opened?,
            };
            // No layer can hold it: that need not be read to be known.
            let limit = Limits::default().bytes;
            if before.size > limit {
                return Err(Error::TooLarge { path: self.shown(path), limit });
            }
            let mut hasher = Hasher::new();
            let mut left = before.size;
            // Whatever comes after the size that it had shows in its size afterwards.
            while left > 0 {
                self.check_canceled()?;
                match file.read(buffer) {
                    Ok(0) => break,
                    Ok(length) => {
                        hasher.update(&buffer[..length]);
                        left = left.saturating_sub(length as u64);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(self.failed("read", path, error)),
                }
            }
            if left == 0 && self.stamp_of(&file, path)? == before {
                let systems = self.file_systems.as_ref();
                let is_told = systems.is_none_or(|systems| systems.tell(&file, before.device));
                return Ok(Some(HashedFile { digest: hasher.finish(), stamp: before, start, is_told }));
            }
        }
        Err(Error::Changed(self.shown(path)))
    }

    /// Hashes the files below `root` that the stat cache does not know, in chunks that threads take in turn. Gives the path of
    /// one that is gone, if there is any.
    fn hash_missing(&self, root: &[u8], walked: &mut Walked) -> Result<Option<Vec<u8>>> {
        const CHUNK: usize = 32;
        let missing = walked.unknown();
        if missing.is_empty() {
            return Ok(None);
        }
        self.begin_reading()?;
        let helpers = if missing.len() > CHUNK { workers() - 1 } else { 0 };
        let chunks = Mutex::new(missing.chunks(CHUNK));
        let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
        let walk: &Walked = walked;
        let work = || {
            let mut buffer = vec![0; BUFFER];
            let (mut hashed, mut gone) = (Vec::new(), None);
            let mut span = kiln_trace::span("hash context");
            while let Some(chunk) = next() {
                for position in chunk {
                    let path = crate::tree::join(root, &walk.path(*position));
                    let Some(file) = self.hash_file(&path, &mut buffer)? else {
                        gone = Some(path);
                        continue;
                    };
                    span.count(1);
                    span.bytes(file.stamp.size);
                    hashed.push((*position, file));
                }
            }
            Ok::<_, Error>((hashed, gone))
        };
        let hashed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
            let own = work();
            let _span = kiln_trace::span("wait for hashing");
            let others = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            std::iter::once(own).chain(others).collect::<Result<Vec<_>>>()
        })?;
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        let mut gone = None;
        for (hashed, missing) in hashed {
            for (position, file) in hashed {
                if file.is_told {
                    cache.learn(file.stamp, file.digest, file.start);
                }
                walked.learn(position, file.digest, file.stamp);
            }
            gone = gone.or(missing);
        }
        Ok(gone)
    }

    /// Fills in the content of a single file; says whether it is still there.
    fn hash_one(&self, path: &[u8], found: &mut Found) -> Result<bool> {
        let Some(stamp) = found.stamp else { return Ok(true) };
        found.content = self.cache().content(&stamp, &mut 0);
        if found.content.is_none() {
            self.begin_reading()?;
            let Some(file) = self.hash_file(path, &mut vec![0; BUFFER])? else { return Ok(false) };
            if file.is_told {
                let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
                cache.learn(file.stamp, file.digest, file.start);
            }
            found.content = Some(file.digest);
            found.stamp = Some(file.stamp);
            found.metadata.mode = file.stamp.mode & 0o7777;
            found.metadata.size = file.stamp.size;
            found.metadata.modified.seconds = file.stamp.modified.0;
        }
        Ok(true)
    }

    /// Examines what is at and below a path as it is just now.
    fn examine_once(&self, path: &[u8], filter: &Filter) -> Result<Seen> {
        let Some(mut found) = self.find(path)? else { return Ok(Seen::Whole(Examined::of(Vec::new()))) };
        if found.metadata.kind != Kind::Directory {
            if !self.hash_one(path, &mut found)? {
                return Ok(Seen::Gone(path.to_vec()));
            }
            let below = Below { path: Box::default(), found, is_implied: false };
            return Ok(Seen::Whole(Examined::of(vec![below])));
        }
        let walk = Walk::new(self, path, self.ignore_state(path), filter, Purpose::Content);
        let mut walked = walk.run()?;
        if walked.is_gone() {
            return Ok(Seen::Gone(path.to_vec()));
        }
        if let Some(gone) = self.hash_missing(path, &mut walked)? {
            return Ok(Seen::Gone(gone));
        }
        let _span = kiln_trace::span("hash directories");
        let digest = walked.digest(found.metadata.mode);
        let root = Box::new(Below { path: Box::default(), found, is_implied: false });
        let seen = if walked.is_partial() { Seen::Partly } else { Seen::Whole };
        Ok(seen(Examined { digest, links: walked.links(), entries: Entries::Walked(root, walked) }))
    }

    /// What an entry is; none for sockets.
    pub(crate) fn kind(stat: &Stat) -> Option<Kind> {
        Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket | FileType::Unknown => return None,
        })
    }

    /// An entry as the context shows it; none for sockets.
    fn found(parent: &Directory, name: &OsStr, stat: &Stat) -> Result<Option<Found>> {
        let Some(kind) = Self::kind(stat) else { return Ok(None) };
        let mut metadata = Metadata::new(kind, stat.st_mode & 0o7777);
        metadata.modified = Time { seconds: stat.st_mtime, nanoseconds: 0 };
        let mut found = Found { metadata, content: None, group: None, stamp: None };
        match kind {
            Kind::Regular => {
                found.metadata.size = stat.st_size.unsigned_abs();
                found.group = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
                found.stamp = Some(Stamp::of(stat));
            }
            Kind::Symlink => {
                found.metadata.mode = 0o777;
                found.metadata.link = parent.read_link(name)?.as_bytes().to_vec();
            }
            Kind::CharacterDevice | Kind::BlockDevice => {
                found.metadata.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            }
            _ => {}
        }
        Ok(Some(found))
    }
}

impl Stamp {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.unsigned_abs(),
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
            mode: stat.st_mode,
        }
    }
}

impl SourceTree for BuildContext<'_> {
    fn find(&self, path: &[u8]) -> Result<Option<Found>> {
        let state = self.ignore_state(path);
        let Some((parent, stat)) = self.stat(path)? else { return Ok(None) };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if state.is_ignored() {
            // An ignored directory is there for the sake of what a pattern takes back below it.
            let enter = is_directory && self.ignore.may_include_below(path);
            let filter = Filter::default();
            if !enter || Walk::new(self, path, state, &filter, Purpose::Entries).run()?.is_empty() {
                return Ok(None);
            }
        }
        Self::found(&parent, OsStr::from_bytes(split(path).1), &stat)
    }

    fn children(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>> {
        let parent = self.ignore_state(directory);
        let mut names = Vec::new();
        for found in self.directory(directory)?.list()? {
            let name = found.name.as_bytes();
            let path = crate::tree::join(directory, name);
            let state = self.ignore.child(&parent, &path);
            if !state.is_ignored() || self.ignore.may_include_below(&path) && self.find(&path)?.is_some() {
                names.push(name.to_vec());
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &[u8]) -> Result<(Box<dyn Read + Send + '_>, Option<Stamp>)> {
        let (file, stamp) = self.open_regular(path)?;
        Ok((Box::new(Stopping::new(file, &self.cancel)), Some(stamp)))
    }

    fn stored_digest(&self, _path: &[u8]) -> Result<Option<Digest>> {
        Ok(None)
    }

    fn walk(&self, path: &[u8], filter: &Filter) -> Result<Vec<Below>> {
        let Some(found) = self.find(path)? else { return Ok(Vec::new()) };
        let is_directory = found.metadata.kind == Kind::Directory;
        let root = Below { path: Box::default(), found, is_implied: false };
        if !is_directory {
            return Ok(vec![root]);
        }
        let walked = Walk::new(self, path, self.ignore_state(path), filter, Purpose::Entries).run()?;
        Ok(if walked.is_gone() { Vec::new() } else { walked.entries(root) })
    }

    fn examine(&self, path: &[u8], filter: &Filter) -> Result<Examined> {
        let mut last = Err(Error::Changed(self.shown(path)));
        for _ in 0..ATTEMPTS {
            last = match self.examine_once(path, filter)? {
                Seen::Whole(examined) => return Ok(examined),
                Seen::Partly(examined) => Ok(examined),
                Seen::Gone(gone) => Err(Error::Changed(self.shown(&gone))),
            };
            // Its directory may be another one by now.
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        last
    }

    fn hides(&self, path: &[u8]) -> bool {
        self.ignore.is_ignored(path) && self.root.resolve_link(Path::new(OsStr::from_bytes(path))).is_ok()
    }

    fn place(&self) -> String {
        "the build context".to_owned()
    }
}

/// Whether nothing is there.
pub(crate) fn is_missing(error: &FileError) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a file could not be opened because it is gone, or no regular file any more.
pub(crate) fn is_no_file(error: &Error) -> bool {
    match error {
        Error::Changed(_) => true,
        Error::Path(error) => {
            // What a symbolic link and a socket answer.
            let answers = [Errno::LOOP, Errno::NXIO].map(|errno| Some(errno.raw_os_error()));
            is_missing(error) || answers.contains(&error.source.raw_os_error())
        }
        _ => false,
    }
}

/// How many threads walk and hash: no more than there are processors for this process.
pub(crate) fn workers() -> usize {
    let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize);
    processors.clamp(1, WORKERS)
}

fn now() -> Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Time { seconds: i64::try_from(now.as_secs()).unwrap_or_default(), nanoseconds: now.subsec_nanos() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::lab::Lab;

    #[test]
    fn what_is_known_is_not_read() {
        let lab = Lab::new().context(&[("one", "1"), ("d/two", "2"), ("d/three", "3")]);
        std::thread::sleep(Duration::from_millis(2100));
        let calls = AtomicUsize::new(0);
        let begin = || {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let examine = |path: &[u8]| {
            let context = lab.open().calling(&begin);
            let digest = context.examine(path, &Filter::default()).expect("examined").digest;
            context.save().expect("saved");
            (digest, calls.swap(0, Ordering::Relaxed))
        };
        for path in [&b"one"[..], b"d"] {
            let (digest, count) = examine(path);
            assert_eq!(count, 1, "{path:?} is read");
            assert_eq!(examine(path), (digest, 0), "{path:?} is known");
        }
        fs_err::write(lab.context_path().join("d/two"), "3").expect("written");
        assert_eq!(examine(b"d").1, 1);
    }

    #[test]
    fn a_file_that_no_layer_can_hold_is_not_read() {
        let lab = Lab::new().context(&[("d/holes", "")]);
        let file = fs_err::OpenOptions::new().write(true).open(lab.context_path().join("d/holes"));
        file.expect("opened").set_len(300 << 30).expect("grown");
        for path in [&b"d"[..], b"d/holes"] {
            let examined = lab.open().examine(path, &Filter::default());
            assert!(matches!(examined, Err(Error::TooLarge { .. })), "{:?}", examined.err());
        }
    }

    /// What a path holds after `change` was done, over and over, each time that files are to be read.
    fn examine_changing(lab: &Lab, path: &[u8], change: &(dyn Fn(usize) + Sync)) -> Result<Vec<String>> {
        let rounds = AtomicUsize::new(0);
        let begin = || {
            change(rounds.fetch_add(1, Ordering::Relaxed));
            Ok(())
        };
        let context = lab.open().calling(&begin);
        let examined = context.examine(path, &Filter::default())?;
        let digest = examined.digest;
        let entries = examined.entries.all();
        let still = lab.open().examine(path, &Filter::default()).expect("examined");
        assert_eq!(digest, still.digest, "what was found is what is there");
        Ok(entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect())
    }

    #[test]
    fn what_goes_while_a_context_is_read_is_not_in_it() {
        let all = [("one", "1"), ("d/two", "2"), ("d/s/three", "3"), ("d/s/four", "4")];
        let path = |lab: &Lab, name: &str| lab.context_path().join(name);
        let lab = Lab::new().context(&all);
        let once = |change: &(dyn Fn() + Sync)| {
            examine_changing(&lab, b"d", &|round| {
                if round == 0 {
                    change();
                }
            })
        };
        let found = once(&|| fs_err::remove_file(path(&lab, "d/s/three")).expect("removed"));
        assert_eq!(found.expect("examined"), ["", "s", "s/four", "two"]);
        let found = once(&|| {
            fs_err::remove_file(path(&lab, "d/two")).expect("removed");
            fs_err::os::unix::fs::symlink("s/four", path(&lab, "d/two")).expect("linked");
            fs_err::create_dir(path(&lab, "d/t")).expect("made");
            fs_err::rename(path(&lab, "d/s/four"), path(&lab, "d/t/four")).expect("moved");
            fs_err::remove_dir(path(&lab, "d/s")).expect("removed");
        });
        assert_eq!(found.expect("examined"), ["", "t", "t/four", "two"]);
        let found = once(&|| {
            fs_err::remove_file(path(&lab, "d/t/four")).expect("removed");
            fs_err::create_dir_all(path(&lab, "d/t/four/five")).expect("made");
        });
        assert_eq!(found.expect("examined"), ["", "t", "t/four", "t/four/five", "two"]);
        let found =
            examine_changing(&lab, b"one", &|_| fs_err::remove_file(path(&lab, "one")).expect("removed"));
        assert_eq!(found.expect("examined"), [""; 0]);
    }

    #[test]
    fn a_directory_that_moves_while_a_context_is_read_never_loses_what_is_in_it() {
        use std::sync::atomic::AtomicBool;
        let lab = Lab::new().context(&[("d/s/link", "->x"), ("d/one/", ""), ("d/two/", "")]);
        let (context, ended) = (lab.open(), AtomicBool::new(false));
        let (here, there) = (lab.context_path().join("d/s"), lab.context_path().join("d/t"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    fs_err::rename(&here, &there).expect("moved");
                    fs_err::rename(&there, &here).expect("moved back");
                }
            });
            for _ in 0..500 {
                let examined = context.examine(b"d", &Filter::default()).map(|it| it.entries.all());
                let names = examined.map(|all| {
                    all.iter()
                        .map(|below| String::from_utf8_lossy(&below.path).into_owned())
                        .collect::<Vec<_>>()
                });
                let is_whole = names.as_ref().is_ok_and(|names| {
                    ["s", "t"].iter().all(|name| {
                        names.iter().any(|found| found == name) == names.contains(&format!("{name}/link"))
                    })
                });
                if !is_whole {
                    ended.store(true, Ordering::Relaxed);
                }
                assert!(is_whole, "{names:?}");
            }
            ended.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_walk_ends_with_the_build() {
        let lab = Lab::new().context(&[("d/s/empty/", "")]);
        let cancel = Cancel::new();
        let context = lab.open().ending_with(&cancel);
        assert!(context.examine(b"d", &Filter::default()).is_ok());
        cancel.cancel();
        assert!(matches!(context.examine(b"d", &Filter::default()), Err(Error::Canceled)));
        assert!(matches!(context.walk(b"d", &Filter::default()), Err(Error::Canceled)));
    }

    #[test]
    fn files_that_always_go_are_named() {
        let lab = Lab::new().context(&[("d/kept", "1"), ("d/0", "0")]);
        let path = |round: usize| lab.context_path().join(format!("d/{round}"));
        let error = examine_changing(&lab, b"d", &|round| {
            fs_err::rename(path(round), path(round + 1)).expect("renamed");
        });
        let named = lab.context_path().join("d/2").display().to_string();
        assert!(matches!(&error, Err(Error::Changed(name)) if *name == named), "{error:?}");
    }

    #[test]
    fn a_source_that_goes_is_not_found() {
        let lab = Lab::new().context(&[("one", "1")]);
        let begin = || {
            fs_err::remove_file(lab.context_path().join("one")).expect("removed");
            Ok(())
        };
        let context = lab.open().calling(&begin);
        let selected = crate::select::select_mount("one", &context);
        assert!(matches!(&selected, Err(Error::NoSource { path, .. }) if path == "/one"), "{selected:?}");
    }
}
