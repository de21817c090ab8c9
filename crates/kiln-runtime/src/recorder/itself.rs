//! Paths that lead through `/proc/self`, such as `/dev/stdout`: a recorder that follows them is not who they are about, and
//! is nobody at all in its callers' namespace of processes.

use std::collections::VecDeque;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{AT_SYMLINK_NOFOLLOW, Named, Scene};

/// The kernel's own limit on links in one path.
const MOST_LINKS: usize = 40;

impl Scene {
    /// Opens what a caller named, to whom `self` and `thread-self` of a `/proc` are the caller.
    pub(super) fn named_itself(
        &self,
        caller: u32,
        directory: i32,
        path: &CStr,
        flags: u32,
    ) -> Result<Named, Errno> {
        self.stand(caller, directory, path)?;
        let open = |place: BorrowedFd<'_>, name: &OsStr, how: OFlags| {
            rustix::fs::openat(place, name, how | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        };
        let top = || rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let is_absolute = |text: &[u8]| text.starts_with(b"/");
        let mut here: OwnedFd = match is_absolute(path.to_bytes()) {
            true => top()?,
            false => rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
        };
        let mut rest = parts(path.to_bytes());
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." && is_of_proc(here.as_fd()) {
                // Perhaps the recorder's own, from where that leads out of the caller's root.
                return Err(Errno::NOENT);
            }
            let found = open(here.as_fd(), &name, OFlags::NOFOLLOW)?;
            let is_link = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink;
            if !is_link || (rest.is_empty() && flags & AT_SYMLINK_NOFOLLOW != 0) {
                here = found;
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP);
            }
            if is_of_proc(found.as_fd()) && (name == "self" || name == "thread-self") {
                here = open(self.proc.as_fd(), OsStr::new(&caller.to_string()), OFlags::empty())?;
            } else if is_of_proc(found.as_fd()) && !is_text(&name) {
                // What such a link leads to has no path, perhaps.
                here = open(here.as_fd(), &name, OFlags::empty())?;
            } else {
                let text = rustix::fs::readlinkat(&found, c"", Vec::new())?;
                if is_absolute(text.as_bytes()) {
                    here = top()?;
                }
                for part in parts(text.as_bytes()).into_iter().rev() {
                    rest.push_front(part);
                }
            }
        }
        let status = rustix::fs::fstat(&here)?;
        Ok(Named { file: here, status })
    }
}

fn parts(path: &[u8]) -> VecDeque<OsString> {
    let is_said = |part: &&[u8]| !part.is_empty() && *part != b".";
    path.split(|byte| *byte == b'/').filter(is_said).map(|part| OsStr::from_bytes(part).to_owned()).collect()
}

/// Whether a link in a `/proc` is no more than its text: `mounts` and `net` are; those of processes are not.
fn is_text(name: &OsStr) -> bool {
    name == "mounts" || name == "net"
}

/// Whether a file is the kernel's own account of something, whose owner means nothing.
pub(super) fn is_of_proc(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Whether a file is a pipe that has no name.
pub(super) fn is_pipe(file: BorrowedFd<'_>) -> bool {
    /// `PIPEFS_MAGIC`
    const PIPES: rustix::fs::FsWord = 0x5049_5045;
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == PIPES)
}
