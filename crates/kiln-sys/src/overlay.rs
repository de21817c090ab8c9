//! Overlay mounts with every option given, and any number of lowers up to the kernel's 500.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::erofs::MountError;
use crate::mount::{self, Attributes, Depth, FilesystemContext, FilesystemRefused};

/// The most lowers that the kernel takes in one overlay (`OVL_MAX_STACK`).
pub const MOST_LOWERS: usize = 500;

/// The longest string, with its end, that `fsconfig(2)` takes.
const LONGEST_PARAMETER: usize = 256;

/// Where an overlay's changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upper {
    /// The directory that receives changes.
    pub upper: PathBuf,
    /// An empty directory on the same filesystem, for the kernel's use.
    pub work: PathBuf,
}

/// A lower that is mounted first: a layer's tar, where it is, through an EROFS image that points into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarMount {
    /// The EROFS image: everything but the files' content.
    pub metadata: PathBuf,
    /// The uncompressed tar.
    pub tar: PathBuf,
    /// An empty directory to mount it on.
    pub at: PathBuf,
}

impl TarMount {
    /// Mounts it where it is to be, which is on the caller's path: kernels before 6.15 take no detached lowers.
    fn mount(&self) -> Result<(), FilesystemRefused> {
        let failed =
            |source| FilesystemRefused { filesystem: "erofs".to_owned(), log: String::new(), source };
        let metadata = fs_err::File::open(&self.metadata).map_err(failed)?;
        let tar = fs_err::File::open(&self.tar).map_err(failed)?;
        let mounted = crate::erofs::mount(metadata.as_fd(), tar.as_fd()).map_err(MountError::into_refused)?;
        let place = mount::open_place(&self.at).map_err(failed)?;
        mount::attach(mounted.as_fd(), place.as_fd()).map_err(failed)
    }
}

/// An overlay of directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// What is mounted before the overlay is, in the caller's own mount namespace; `lowers` name the places.
    pub tars: Vec<TarMount>,
    /// Lower directories, the topmost first; at least one, at most [`MOST_LOWERS`].
    pub lowers: Vec<PathBuf>,
    /// Where changes go; without it the overlay is read-only.
    pub upper: Option<Upper>,
    /// Marks are kept in `user.overlay.*` instead of `trusted.overlay.*`: needed in a user namespace (kernel 5.11).
    pub userxattr: bool,
    /// Nothing is synchronised to disk, where the kernel knows that (5.10). The kernel refuses the same work directory
    /// a second time then.
    pub volatile: bool,
}

impl Overlay {
    /// Mounts the overlay detached. Where the kernel's overlay does not take the new calls' options, it gets a place for a
    /// moment, in the mount namespace of the calling thread, which must be private to it.
    ///
    /// The options `index`, `metacopy`, `redirect_dir` and `xino` are always given, since their defaults are the
    /// choice of whoever built the kernel. The current directory is changed and changed back where lowers' names
    /// do not fit, so the caller must be alone in its process.
    ///
    /// # Errors
    /// The kernel's refusal, with its log. `EINVAL` is what an upper on another overlay gets.
    pub fn mount(&self, attributes: Attributes) -> Result<OwnedFd, FilesystemRefused> {
        for tar in &self.tars {
            tar.mount()?;
        }
        match self.lowers.len() {
            0 => return Err(refused("an overlay needs a lower directory", rustix::io::Errno::INVAL)),
            1 if self.upper.is_none() => return self.mount_single(attributes),
            2.. if self.lowers.len() > MOST_LOWERS => {
                return Err(refused(
                    "an overlay takes at most 500 lower directories",
                    rustix::io::Errno::INVAL,
                ));
            }
            _ => {}
        }
        if !takes_lowers_one_by_one(&rustix::system::uname().release().to_string_lossy()) {
            return self.mount_old(attributes).map_err(|error| self.explained(error));
        }
        let names = Names::of(self)?;
        match self.mount_new(&names, attributes) {
            Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => {
                // Whatever the release says; a refusal for another reason is refused here again.
                self.mount_old(attributes).map_err(|_| self.explained(error))
            }
            other => other,
        }
    }

    /// Adds the reason that the kernel tells its own log alone.
    fn explained(&self, mut error: FilesystemRefused) -> FilesystemRefused {
        let mark = self.upper.as_ref().map(|upper| upper.work.join("work/incompat/volatile"));
        if mark.is_some_and(|mark| rustix::fs::access(mark, rustix::fs::Access::EXISTS).is_ok()) {
            error.log = "the upper was in a volatile mount before; a new work directory is needed".to_owned();
        }
        error
    }

    /// The kernel refuses an overlay of one lower and no upper: a read-only clone of the directory is the same.
    fn mount_single(&self, attributes: Attributes) -> Result<OwnedFd, FilesystemRefused> {
        let failed =
            |source| FilesystemRefused { filesystem: "overlay".to_owned(), log: String::new(), source };
        let place = mount::open_place(&self.lowers[0]).map_err(failed)?;
        let attributes = Attributes { read_only: true, ..attributes };
        mount::clone_restricted(place.as_fd(), attributes).map_err(failed)
    }

    fn mount_new(&self, names: &Names, attributes: Attributes) -> Result<OwnedFd, FilesystemRefused> {
        let context = FilesystemContext::open("overlay")?;
        context.set("source", "overlay")?;
        let _directory = names.enter()?;
        for lower in &names.lowers {
            context.set("lowerdir+", lower)?;
        }
        if let Some((upper, work)) = &names.upper {
            context.set("upperdir", upper)?;
            context.set("workdir", work)?;
        }
        for (key, value) in self.options() {
            if value.is_empty() {
                context.set_flag(key)?;
            } else {
                context.set(key, value)?;
            }
        }
        context.mount(attributes)
    }

    /// All names relative to a directory of numbered links, so that 500 fit into the page that `mount(2)` takes.
    fn mount_old(&self, attributes: Attributes) -> Result<OwnedFd, FilesystemRefused> {
        let names = Names::links(self)?;
        let failed =
            |source| FilesystemRefused { filesystem: "overlay".to_owned(), log: String::new(), source };
        let mut options = String::from("lowerdir=");
        for (number, lower) in names.lowers.iter().enumerate() {
            if number > 0 {
                options.push(':');
            }
            options.push_str(&lower.to_string_lossy());
        }
        if let Some((upper, work)) = &names.upper {
            options.push_str(&format!(",upperdir={},workdir={}", upper.display(), work.display()));
        }
        let attempt = |place: OwnedFd, volatile: bool| {
            let mut options = options.clone();
            for (key, value) in self.options().filter(|(key, _)| volatile || *key != "volatile") {
                options.push(',');
                options.push_str(key);
                if !value.is_empty() {
                    options.push('=');
                    options.push_str(value);
                }
            }
            let _directory = names.enter().map_err(|refused| refused.source)?;
            mount::mount_classic("overlay", place.as_fd(), attributes, Path::new(&options))
        };
        mount::with_place(|place| {
            match attempt(place()?, self.volatile) {
                // Unknown to the kernel, it may be. What another refusal leaves behind makes a second attempt fail for a
                // reason of its own.
                Err(error) if self.volatile && error.raw_os_error() == Some(libc::EINVAL) => {
                    attempt(place()?, false)
                }
                other => other,
            }?;
            mount::clone_tree(place()?.as_fd(), Depth::Single)
        })
        .map_err(failed)
    }

    fn options(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let writable = self.upper.is_some();
        [
            Some(("index", "off")),
            Some(("metacopy", "off")),
            // `nofollow` also ignores redirects that a hostile layer might carry.
            Some(("redirect_dir", "nofollow")),
            // With several file systems below, a tree would seem to cross them at every file (`tar --one-file-system`).
            Some(("xino", if self.tars.is_empty() { "off" } else { "on" })),
            self.userxattr.then_some(("userxattr", "")),
            (self.volatile && writable).then_some(("volatile", "")),
        ]
        .into_iter()
        .flatten()
    }

    /// Tries whether a directory can hold an upper: mounts a small overlay there, detached, and drops it. The
    /// directory must be empty and writable; three directories are made in it and removed again.
    ///
    /// # Errors
    /// The kernel's refusal: `EINVAL` where the filesystem cannot hold an upper, `EPERM` without the privilege.
    pub fn probe(directory: &Path, userxattr: bool) -> Result<(), FilesystemRefused> {
        let failed = |errno: rustix::io::Errno| refused("", errno);
        let names = ["lower", "upper", "work"].map(|name| directory.join(name));
        for name in &names {
            rustix::fs::mkdir(name, Mode::RWXU).map_err(failed)?;
        }
        let [lower, upper, work] = names.clone();
        let overlay = Self {
            tars: Vec::new(),
            lowers: vec![lower],
            upper: Some(Upper { upper, work: work.clone() }),
            userxattr,
            volatile: false,
        };
        // On a thread with mounts of its own, since old kernels need a place for the overlay.
        let attempt = || {
            crate::process::separate_mounts().map_err(|source| FilesystemRefused {
                filesystem: "overlay".to_owned(),
                log: String::new(),
                source,
            })?;
            overlay.mount(Attributes::default()).map(drop)
        };
        let result = std::thread::scope(|scope| scope.spawn(attempt).join())
            .unwrap_or_else(|_| Err(refused("the attempt panicked", rustix::io::Errno::IO)));
        // The kernel leaves work/work behind.
        let _ = rustix::fs::unlinkat(CWD, work.join("work"), rustix::fs::AtFlags::REMOVEDIR);
        for name in &names {
            let _ = rustix::fs::unlinkat(CWD, name, rustix::fs::AtFlags::REMOVEDIR);
        }
        result
    }
}

/// Whether overlays of this release know `lowerdir+` (6.8). It is not tried, since older ones write a line to the kernel's
/// log for each unknown option.
fn takes_lowers_one_by_one(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 8),
        _ => true,
    }
}

fn refused(log: &str, errno: rustix::io::Errno) -> FilesystemRefused {
    FilesystemRefused { filesystem: "overlay".to_owned(), log: log.to_owned(), source: errno.into() }
}

/// The names by which the kernel is told the directories.
struct Names {
    lowers: Vec<PathBuf>,
    upper: Option<(PathBuf, PathBuf)>,
    /// A private directory of links from which the names start.
    links: Option<OwnedFd>,
}

impl Names {
    fn of(overlay: &Overlay) -> Result<Self, FilesystemRefused> {
        let upper = overlay.upper.as_ref();
        let mut paths =
            overlay.lowers.iter().chain(upper.iter().flat_map(|upper| [&upper.upper, &upper.work]));
        // The kernel takes a backslash for the mark of what follows it.
        let is_plain = |path: &[u8]| path.len() < LONGEST_PARAMETER && !path.contains(&b'\\');
        if paths.all(|path| path.is_absolute() && is_plain(path.as_os_str().as_bytes())) {
            return Ok(Self {
                lowers: overlay.lowers.clone(),
                upper: upper.map(|upper| (upper.upper.clone(), upper.work.clone())),
                links: None,
            });
        }
        Self::links(overlay)
    }

    fn links(overlay: &Overlay) -> Result<Self, FilesystemRefused> {
        let failed = |errno: rustix::io::Errno| refused("", errno);
        let links = mount::filesystem("tmpfs", &[("mode", "0700")], Attributes::INERT)?;
        let mut lowers = Vec::with_capacity(overlay.lowers.len());
        for (number, lower) in overlay.lowers.iter().enumerate() {
            let name = PathBuf::from(number.to_string());
            rustix::fs::symlinkat(lower, &links, &name).map_err(failed)?;
            lowers.push(name);
        }
        let upper = match &overlay.upper {
            None => None,
            Some(upper) => {
                rustix::fs::symlinkat(&upper.upper, &links, c"upper").map_err(failed)?;
                rustix::fs::symlinkat(&upper.work, &links, c"work").map_err(failed)?;
                Some((PathBuf::from("upper"), PathBuf::from("work")))
            }
        };
        Ok(Self { lowers, upper, links: Some(links) })
    }

    fn enter(&self) -> Result<Option<Returning>, FilesystemRefused> {
        let Some(links) = &self.links else { return Ok(None) };
        let failed = |errno: rustix::io::Errno| refused("", errno);
        let before =
            rustix::fs::open(c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed)?;
        rustix::process::fchdir(links).map_err(failed)?;
        Ok(Some(Returning(before)))
    }
}

/// Changes back to a directory when dropped.
struct Returning(OwnedFd);

impl Drop for Returning {
    fn drop(&mut self) {
        let _ = rustix::process::fchdir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on a thread with a mount namespace of its own; says so and skips without the privilege.
    fn in_own_namespace(test: impl FnOnce(&Path) + Send + 'static) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let thread = std::thread::spawn(move || {
            if let Err(error) = crate::process::separate_mounts() {
                crate::skipped::skipped(&format!("a mount namespace needs root: {error}"));
                return;
            }
            test(&path);
        });
        thread.join().expect("the test passes");
    }

    fn overlay(holder: &Path, lowers: usize) -> Overlay {
        let make = |name: String| {
            let path = holder.join(name);
            fs_err::create_dir_all(&path).expect("make");
            path
        };
        let lowers: Vec<PathBuf> =
            (0..lowers).map(|number| make(format!("{}/{number}", "x".repeat(120)))).collect();
        for (number, lower) in lowers.iter().enumerate() {
            fs_err::write(lower.join(format!("file{number}")), "").expect("write");
        }
        let upper = Some(Upper { upper: make("upper".to_owned()), work: make("work".to_owned()) });
        Overlay { tars: Vec::new(), lowers, upper, userxattr: false, volatile: true }
    }

    fn entries(mounted: &OwnedFd) -> usize {
        let directory = rustix::fs::openat(mounted, c".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .expect("open");
        rustix::fs::Dir::read_from(&directory).expect("list").count() - 2
    }

    #[test]
    fn releases_are_told_apart() {
        for old in ["5.10.0-46-cloud-amd64", "6.1.0-50-amd64", "6.7", "6.7.12+deb13"] {
            assert!(!takes_lowers_one_by_one(old), "{old}");
        }
        for new in ["6.8.0", "6.12.95+deb12-amd64", "6.18.44-x", "7.2.13", "10.0", "6", "", "next"] {
            assert!(takes_lowers_one_by_one(new), "{new}");
        }
    }

    #[test]
    fn the_old_interface_takes_five_hundred_lowers() {
        in_own_namespace(|holder| {
            let before = fs_err::read_to_string("/proc/thread-self/mounts").expect("read");
            let overlay = overlay(holder, MOST_LOWERS);
            let mounted = overlay.mount_old(Attributes::default()).expect("mounts");
            assert_eq!(entries(&mounted), MOST_LOWERS);
            rustix::fs::mkdirat(&mounted, c"new", Mode::RWXU).expect("writable");
            assert!(holder.join("upper/new").is_dir());
            assert_eq!(fs_err::read_to_string("/proc/thread-self/mounts").expect("read"), before);
        });
    }

    #[test]
    fn both_interfaces_show_the_same() {
        in_own_namespace(|holder| {
            for lowers in [1, 2, 17] {
                let overlay = overlay(&holder.join(format!("new{lowers}")), lowers);
                assert_eq!(entries(&overlay.mount(Attributes::default()).expect("mounts")), lowers);
                let overlay = self::overlay(&holder.join(format!("old{lowers}")), lowers);
                assert_eq!(entries(&overlay.mount_old(Attributes::default()).expect("mounts")), lowers);
            }
        });
    }

    #[test]
    fn any_name_of_a_directory_will_do() {
        in_own_namespace(|holder| {
            for name in ["back\\slash", "comma,colon:", "new\nline", "\\"] {
                let lowers = overlay(&holder.join(name), 3);
                assert_eq!(entries(&lowers.mount(Attributes::default()).expect(name)), 3);
                let single = Overlay { upper: None, ..overlay(&holder.join(name).join("other"), 2) };
                assert_eq!(entries(&single.mount(Attributes::default()).expect(name)), 2);
            }
        });
    }

    #[test]
    fn refusals_name_the_reason() {
        let none =
            Overlay { tars: Vec::new(), lowers: Vec::new(), upper: None, userxattr: false, volatile: false };
        assert!(none.mount(Attributes::default()).expect_err("no lower").to_string().contains("lower"));
        in_own_namespace(|holder| {
            let mut overlay = overlay(holder, 2);
            overlay.lowers.push(holder.join("missing"));
            let error = overlay.mount(Attributes::default()).expect_err("a lower is missing");
            assert_eq!(error.source.raw_os_error(), Some(libc::ENOENT), "{error}");
            assert!(Overlay::probe(&overlay.lowers[0].join("none"), false).is_err());
        });
    }
}
