//! Files that are made by who pretends to be another user than the one that the sandbox was started as.
//!
//! A file cannot be noted before it is there. So its name is kept, the kernel makes it, and the next call that comes by
//! finds it and notes whose it is.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use kiln_sys::seccomp::{Answer, Notification};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, Call, Scene, ownership};
use crate::target::open_below;

/// A file that is about to be made.
pub(super) struct Expected {
    caller: u32,
    path: PathBuf,
    uid: u32,
    /// Nothing where the directory decides.
    gid: Option<u32>,
}

impl Scene {
    /// Keeps the name of what a call makes, if it is to belong to someone else.
    pub(super) fn expect(&mut self, notification: &Notification, call: Call) -> Result<Answer, Errno> {
        let identity = self.identity(notification.pid);
        let (uid, gid) = (identity.uids.filesystem, identity.gids.filesystem);
        if (uid, gid) == (self.initial.uids.effective, self.initial.gids.effective) {
            return Ok(Answer::Continue);
        }
        let [first, second, third, ..] = notification.arguments;
        let (directory, address) = match call {
            Call::OpenAt | Call::MkdirAt => (first as i32, second),
            Call::Symlink => (AT_FDCWD, second),
            Call::SymlinkAt => (second as i32, third),
            _ => (AT_FDCWD, first),
        };
        let path = self.text(notification, address)?;
        if self.named(notification.pid, directory, &path, AT_SYMLINK_NOFOLLOW).is_ok() {
            return Ok(Answer::Continue);
        }
        let bytes = path.to_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let (parent, name) = match bytes[..end].iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&bytes[..=slash], &bytes[slash + 1..end]),
            None => (&b"."[..], &bytes[..end]),
        };
        let parent = CString::new(parent).map_err(|_| Errno::INVAL)?;
        let parent = self.named(notification.pid, directory, &parent, 0)?;
        if !ownership::is_on(&self.base, parent.file.as_fd()) {
            return Ok(Answer::Continue);
        }
        let path = self.inside(&parent.file)?.join(std::ffi::OsStr::from_bytes(name));
        let gid = (parent.status.st_mode & 0o2000 == 0).then_some(gid);
        self.expected.push(Expected { caller: notification.pid, path, uid, gid });
        Ok(Answer::Continue)
    }

    /// Notes what has been made meanwhile. What its maker did not make before it called again was refused.
    pub(super) fn find_expected(&mut self, caller: Option<u32>) {
        for expected in std::mem::take(&mut self.expected) {
            let holder = self.upper.as_ref().unwrap_or(&self.base);
            let found = open_below(holder.as_fd(), &expected.path, OFlags::PATH);
            match found.and_then(|file| ownership::key_of(file.as_fd())) {
                Ok((device, inode, birth)) => {
                    if self.ownership.of(device, inode, birth).is_none() {
                        self.ownership.note_owner(device, inode, birth, Some(expected.uid), expected.gid);
                        self.known.clear();
                    }
                }
                Err(_) if caller.is_some_and(|caller| caller != expected.caller) => {
                    self.expected.push(expected);
                }
                Err(_) => {}
            }
        }
    }
}
