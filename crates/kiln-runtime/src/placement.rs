//! Putting directories and files into a root where nothing can be mounted, and taking them out again.
//!
//! What is there under the name is moved aside, what belongs there is moved in, and at the end both go back. That takes a
//! root that is nobody else's, on the file system of what is moved: a copied one beside the things that are to be seen in
//! it. All of it happens outside, while no process runs in the root.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::sandbox::{BindSource, Mount, MountKind, ProvidedFile, Sandbox};
use crate::target::{Missing, StubKind, Stubs, Tree, open_below};

/// What was put into a root.
#[derive(Debug, Default)]
pub(crate) struct Placements {
    root: PathBuf,
    /// Where things are kept that had to make room.
    aside: PathBuf,
    placed: Vec<Placed>,
    /// What had to be made, and the directories whose times all this changed.
    stubs: Stubs,
}

#[derive(Debug)]
struct Placed {
    /// Below the root.
    path: PathBuf,
    /// Where it came from, and goes back to; nowhere for what was made for the sandbox.
    source: Option<PathBuf>,
    /// What it was.
    kind: StubKind,
}

impl Placements {
    /// Puts everything into the root.
    pub(crate) fn make(root: &Path, sandbox: &Sandbox) -> io::Result<Self> {
        let mut aside = root.as_os_str().to_owned();
        aside.push(".aside");
        let mut placements =
            Self { root: root.to_owned(), aside: aside.into(), placed: Vec::new(), stubs: Stubs::default() };
        rustix::fs::mkdir(&placements.aside, Mode::RWXU)?;
        match placements.put(sandbox) {
            Ok(()) => Ok(placements),
            Err(error) => {
                // What was moved in is somebody's: a cache goes back to where it lasts.
                placements.undo(Stubs::default())?;
                Err(error)
            }
        }
    }

    fn put(&mut self, sandbox: &Sandbox) -> io::Result<()> {
        for mount in &sandbox.mounts {
            self.mount(mount).map_err(|error| named(&mount.target, &error))?;
        }
        for file in &sandbox.files {
            self.file(file).map_err(|error| named(&file.target, &error))?;
        }
        self.stubs = self.tree()?.into_stubs();
        Ok(())
    }

    /// The root, with what was made in it so far.
    fn tree(&mut self) -> io::Result<Tree> {
        Tree::continued(open_directory(&self.root)?, std::mem::take(&mut self.stubs))
    }

    /// The root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn mount(&mut self, mount: &Mount) -> io::Result<()> {
        let number = self.placed.len();
        match &mount.kind {
            MountKind::Bind { source: BindSource::Owned { path }, .. } => {
                self.place(&mount.target, path, Some(path.clone()))
            }
            MountKind::Tmpfs { mode, .. } => {
                let made = self.aside.join(format!("{number}-made"));
                let mode = self.mode_there(&mount.target)?.unwrap_or_else(|| Mode::from_raw_mode(*mode));
                rustix::fs::mkdir(&made, Mode::RWXU)?;
                rustix::fs::chmod(&made, mode)?;
                self.place(&mount.target, &made, None)
            }
            MountKind::Bind { .. } | MountKind::Overlay { .. } => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it would have to be mounted, and nothing can be mounted here",
            )),
        }
    }

    /// The mode of what there is in the root.
    fn mode_there(&self, target: &Path) -> io::Result<Option<Mode>> {
        match Tree::new(open_directory(&self.root)?)?.resolve(target, Missing::Refuse) {
            Ok(found) => Ok(Some(Mode::from_raw_mode(rustix::fs::fstat(&found)?.st_mode))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn file(&mut self, file: &ProvidedFile) -> io::Result<()> {
        let made = self.aside.join(format!("{}-made", self.placed.len()));
        fs_err::write(&made, &file.contents)?;
        rustix::fs::chmod(&made, Mode::from_raw_mode(0o644))?;
        self.place(&file.target, &made, None)
    }

    fn place(&mut self, target: &Path, from: &Path, source: Option<PathBuf>) -> io::Result<()> {
        let mut tree = self.tree()?;
        let is_directory = fs_err::symlink_metadata(from)?.is_dir();
        let kind = if is_directory { StubKind::Directory } else { StubKind::File };
        let found = tree.resolve(target, Missing::Stub(kind));
        let path = found.and_then(|found| self.inside(&found));
        if let Some(parent) = path.as_ref().ok().and_then(|path| path.parent()) {
            tree.touch(parent)?;
        }
        self.stubs = tree.into_stubs();
        let path = path?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is the root"));
        };
        let root = open_directory(&self.root)?;
        let parent = open_below(root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY)?;
        rustix::fs::renameat(&parent, name, CWD, self.kept(self.placed.len()))?;
        rustix::fs::renameat(CWD, from, &parent, name)?;
        self.placed.push(Placed { path, source, kind });
        Ok(())
    }

    /// The path of something in the root, as the kernel tells it.
    fn inside(&self, found: &OwnedFd) -> io::Result<PathBuf> {
        let link = format!("/proc/self/fd/{}", found.as_raw_fd());
        let text = rustix::fs::readlink(link, Vec::new())?;
        let path = Path::new(std::ffi::OsStr::from_bytes(text.as_bytes()));
        let root = fs_err::canonicalize(&self.root)?;
        path.strip_prefix(root).map(Path::to_path_buf).map_err(io::Error::other)
    }

    fn kept(&self, number: usize) -> PathBuf {
        self.aside.join(format!("{number}-kept"))
    }

    /// Takes everything out again, the last first. To be called when no process of the sandbox lives. What was made in
    /// the root comes before `stubs`, which were made later, and is to be taken back with them.
    pub(crate) fn undo(self, stubs: Stubs) -> io::Result<Stubs> {
        let untouched = self.stubs.unchanged_parents(&self.root, &stubs)?;
        let mut outcome = Ok(());
        for number in (0..self.placed.len()).rev() {
            let done = self.take_out(number);
            outcome = outcome.and(done);
        }
        outcome?;
        let (parent, name) = split(&self.aside)?;
        kiln_sys::root::Directory::open(parent)
            .and_then(|parent| parent.remove_all(&name))
            .map_err(io::Error::other)?;
        // From now on these times are the stubs' doing.
        let untouched = Stubs { made: Vec::new(), parents: untouched };
        let mut parents = Tree::continued(open_directory(&self.root)?, untouched)?.into_stubs().parents;
        let known = self.stubs.parents;
        parents
            .extend(stubs.parents.into_iter().filter(|parent| known.iter().all(|k| k.path != parent.path)));
        Ok(Stubs { made: self.stubs.made.into_iter().chain(stubs.made).collect(), parents })
    }

    /// What the command has put into the place of a thing does not go where that came from: a link there would be followed
    /// the next time. It is thrown away.
    fn take_out(&self, number: usize) -> io::Result<()> {
        let Placed { path, source, kind } = &self.placed[number];
        let (parent, name) = split(path)?;
        let root = kiln_sys::root::Root::open(&self.root).map_err(io::Error::other)?;
        // What the command removed with everything above it is in no layer either.
        let parent = match open_below(root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            parent => parent?,
        };
        // First to where no process of the root can exchange it.
        let taken = self.aside.join(format!("{number}-taken"));
        let found = match rustix::fs::renameat(&parent, &name, CWD, &taken) {
            Ok(()) => Some(rustix::fs::statat(CWD, &taken, AtFlags::SYMLINK_NOFOLLOW)?),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        let expected = if *kind == StubKind::Directory { FileType::Directory } else { FileType::RegularFile };
        if let (Some(source), Some(found)) = (source, found)
            && FileType::from_raw_mode(found.st_mode) == expected
        {
            rustix::fs::renameat(CWD, &taken, CWD, source)?;
        }
        Ok(rustix::fs::renameat(CWD, self.kept(number), &parent, &name)?)
    }
}

fn named(target: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", target.display()))
}

fn split(path: &Path) -> io::Result<(&Path, OsString)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name.to_owned())),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Kills every process that has `root`, or what is below it, as its root directory: with no namespace of processes there is
/// nothing else to know those by that outlive the command.
pub(crate) fn end_processes(root: &Path) -> io::Result<()> {
    let root = fs_err::canonicalize(root)?;
    for _ in 0..100 {
        let mut found = false;
        for process in fs_err::read_dir("/proc")? {
            let process = process?;
            let number = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(pid) = number.and_then(rustix::process::Pid::from_raw) else { continue };
            let is_inside = || root_of(&process.path()).is_some_and(|found| found.starts_with(&root));
            if !is_inside() {
                continue;
            }
            // The number may be another's by the time it is opened.
            let Ok(opened) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
                continue;
            };
            if is_inside() {
                found = true;
                kiln_sys::process::send_signal(opened.as_fd(), 9)?;
            }
        }
        if !found {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("processes that were killed still have their root in {}", root.display()),
    ))
}

/// The root directory of a process. Of another user's it is told to that user, where this one may not trace it.
fn root_of(process: &Path) -> Option<PathBuf> {
    let link = process.join("root");
    match fs_err::read_link(&link) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let owner = fs_err::metadata(process).ok()?;
            kiln_sys::process::looking_as(owner.uid(), owner.gid(), || fs_err::read_link(&link).ok())?
        }
        found => found.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::RootSource;

    /// A root, a cache with a file in it, and a sandbox that has the cache at these places.
    fn with_cache_at(targets: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf, Sandbox) {
        let directory = tempfile::tempdir().expect("a directory");
        let [root, cache] = ["root", "cache"].map(|name| directory.path().join(name));
        fs_err::create_dir(&root).expect("made");
        fs_err::create_dir(&cache).expect("made");
        fs_err::write(cache.join("kept"), "kept").expect("written");
        let mut sandbox = Sandbox::new(RootSource::Directory { path: root.clone() }, Vec::new());
        let bind = |target: &&str| Mount {
            kind: MountKind::Bind {
                source: BindSource::Owned { path: cache.clone() },
                read_only: false,
                recursive: false,
            },
            target: target.into(),
        };
        sandbox.mounts = targets.iter().map(bind).collect();
        (directory, root, cache, sandbox)
    }

    #[test]
    fn what_stands_in_the_place_of_a_cache_does_not_become_one() {
        let taken = |replace: &dyn Fn(&Path)| {
            let (directory, root, cache, sandbox) = with_cache_at(&["/a"]);
            fs_err::create_dir(directory.path().join("host")).expect("made");
            let placements = Placements::make(&root, &sandbox).expect("made");
            assert!(root.join("a/kept").exists() && !cache.exists());
            replace(&root.join("a"));
            placements.undo(Stubs::default()).expect("undone");
            assert!(!root.join("a/kept").exists() && !directory.path().join("root.aside").exists());
            fs_err::symlink_metadata(&cache).map(|found| found.is_dir()).ok()
        };
        assert_eq!(taken(&|_| {}), Some(true));
        assert_eq!(taken(&|place| fs_err::write(place.join("more"), "more").expect("written")), Some(true));
        assert_eq!(taken(&|place| fs_err::remove_dir_all(place).expect("removed")), None);
        let instead = |make: fn(&Path)| {
            move |place: &Path| {
                fs_err::remove_dir_all(place).expect("removed");
                make(place);
            }
        };
        let link = |place: &Path| fs_err::os::unix::fs::symlink("../host", place).expect("linked");
        let file = |place: &Path| fs_err::write(place, "file").expect("written");
        assert_eq!(taken(&instead(link)), None);
        assert_eq!(taken(&instead(file)), None);
    }

    #[test]
    fn what_was_moved_in_goes_back_when_the_rest_cannot_be() {
        let (directory, root, cache, sandbox) = with_cache_at(&["/a", "/b"]);
        Placements::make(&root, &sandbox).expect_err("it is at /a already");
        assert_eq!(fs_err::read_to_string(cache.join("kept")).expect("it is back"), "kept");
        assert!(!root.join("b").exists() && !directory.path().join("root.aside").exists());
    }
}
