//! `openat2` for `cargo xtask count`, whose valgrind may not know it: one component after the other. It allows less than
//! the kernel's: no symbolic link is followed, and `..` is refused.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{self as sys, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// As `rustix::fs::openat2`; that it stays inside needs no flag.
pub(super) fn openat2(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    _resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::XDEV),
        }
    }
    let Some((last, parents)) = names.split_last() else {
        return sys::openat(root, ".", flags, mode);
    };
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for name in parents {
        let from = at.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        at = Some(sys::openat(from, *name, step, Mode::empty())?);
    }
    let from = at.as_ref().map_or(root.as_fd(), AsFd::as_fd);
    let found = sys::openat(from, *last, flags | OFlags::NOFOLLOW, mode)?;
    let link = FileType::from_raw_mode(sys::fstat(&found)?.st_mode) == FileType::Symlink;
    if link && !flags.contains(OFlags::NOFOLLOW) { Err(Errno::LOOP) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_leaves_the_root() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("root");
        fs_err::create_dir_all(root.join("d")).unwrap();
        fs_err::write(root.join("d/f"), "inside").unwrap();
        fs_err::write(host.path().join("secret"), "outside").unwrap();
        fs_err::os::unix::fs::symlink("../secret", root.join("l")).unwrap();
        fs_err::os::unix::fs::symlink("..", root.join("up")).unwrap();
        let root = fs_err::File::open(&root).unwrap();
        let open =
            |path: &str, flags| openat2(&root, Path::new(path), flags, Mode::empty(), ResolveFlags::IN_ROOT);
        for path in ["d/f", "/d/f", "./d/f", "", "d"] {
            assert!(open(path, OFlags::PATH).is_ok(), "{path}");
        }
        for path in ["l", "up/secret", "../secret", "d/../../secret", "missing"] {
            assert!(open(path, OFlags::PATH).is_err(), "{path}");
            assert!(open(path, OFlags::RDONLY).is_err(), "{path}");
        }
        assert!(open("l", OFlags::PATH | OFlags::NOFOLLOW).is_ok(), "the link itself");
    }
}
