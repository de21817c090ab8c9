//! Answers to `stat` and its like: the owners that files have for who is deceived about them.
//!
//! Nothing was recorded of most files. Those of lower layers are whose the layers say, by path; new ones are of the user
//! that the sandbox was started as. The walk over what was changed decides in the same way.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_sys::seccomp::{self, Answer, Notification};
use kiln_sys::status::{self, Shown};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, StatxFlags, Uid};
use rustix::io::Errno;

use super::calls::Width;
use super::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, Call, Named, Scene, ownership};
use crate::target::open_below;

/// Whose a file of the lower layers is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowerFile {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and mode, as in `struct stat`.
    pub mode: u32,
    /// It has other names: the overlay does not mark what it copies up of it.
    pub has_links: bool,
}

/// Finds files of the lower layers, by path from the root without a leading `/`, no component of it a symbolic link.
pub type LowerFiles = Arc<dyn Fn(&Path) -> Option<LowerFile> + Send + Sync>;

/// What was said of a file, as long as nothing changes it.
pub(super) struct Known {
    changed: (i64, u32),
    shown: Shown,
}

/// A file as it is.
struct Seen {
    file: OwnedFd,
    mode: u32,
    key: (u64, u64),
    changed: (i64, u32),
}

const SPECIAL: u32 = 0o7000;

impl Scene {
    /// Answers a call of the `stat` family; the kernel does where owners are as it knows them.
    pub(super) fn show(
        &mut self,
        listener: std::os::fd::BorrowedFd<'_>,
        notification: &Notification,
        (call, width): (Call, Width),
    ) -> Result<Answer, Errno> {
        if width == Width::Narrow && call != Call::Statx {
            return Ok(Answer::Continue);
        }
        let [first, second, third, fourth, fifth, _] = notification.arguments;
        let (directory, path, flags, buffer) = match call {
            Call::Stat => (AT_FDCWD, Some(first), 0, second),
            Call::Lstat => (AT_FDCWD, Some(first), AT_SYMLINK_NOFOLLOW, second),
            Call::Fstat => (first as i32, None, AT_EMPTY_PATH, second),
            Call::FstatAt => (first as i32, Some(second), fourth as u32, third),
            _ => (first as i32, Some(second), third as u32, fifth),
        };
        let path = match path {
            Some(address) => self.name(notification, address, flags)?,
            None => c"".to_owned(),
        };
        let Named { file, .. } = self.named(notification.pid, directory, &path, flags)?;
        let Some(seen) = self.look(file)? else { return Ok(Answer::Continue) };
        let shown = self.shown(&seen)?;
        if shown == (Shown { uid: 0, gid: 0, mode: 0 }) {
            return Ok(Answer::Continue);
        }
        let bytes = match call {
            Call::Statx => status::statx_bytes(seen.file.as_fd(), flags, fourth as u32, shown),
            _ => status::stat_bytes(seen.file.as_fd(), shown),
        };
        let Ok(bytes) = bytes else { return Ok(Answer::Continue) };
        if !seccomp::still_waits(listener, notification.id) {
            return Err(Errno::SRCH);
        }
        self.write(notification, buffer, &bytes)?;
        Ok(Answer::Value(0))
    }

    /// Before a file gets another name: what the lower layers say of it by path is recorded, since the path goes.
    pub(super) fn keep_owner(&mut self, notification: &Notification, call: Call) -> Result<Answer, Errno> {
        self.known.clear();
        let [first, second, ..] = notification.arguments;
        let (directory, path) = match call {
            Call::RenameAt | Call::LinkAt => (first as i32, self.text(notification, second)?),
            _ => (AT_FDCWD, self.text(notification, first)?),
        };
        let Named { file, status } = self.named(notification.pid, directory, &path, AT_SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            return Ok(Answer::Continue);
        }
        let Some(seen) = self.look(file)? else { return Ok(Answer::Continue) };
        let inside = self.inside(&seen.file)?;
        let kept = self.kept(&inside, seen.mode);
        let Some(lower) = self.lower(&inside, seen.mode, kept.as_ref()) else {
            return Ok(Answer::Continue);
        };
        let named = Named { file: seen.file, status };
        if self.kept_as(&named)?.is_some_and(|(d, i, b)| self.ownership.of(d, i, b).is_some()) {
            return Ok(Answer::Continue);
        }
        // It is copied up by that, and so can have a record.
        let root = (Some(Uid::from_raw(0)), Some(Gid::from_raw(0)));
        rustix::fs::chownat(&named.file, c"", root.0, root.1, AtFlags::EMPTY_PATH)?;
        if seen.mode & 0o777 == lower.mode & 0o777 && lower.mode & SPECIAL != 0 {
            let own = format!("self/fd/{}", named.file.as_raw_fd());
            let mode = Mode::from_raw_mode(lower.mode & 0o7777);
            rustix::fs::chmodat(&self.proc, own, mode, AtFlags::empty())?;
        }
        if let Some((device, inode, birth)) = self.kept_as(&named)? {
            self.ownership.note_owner(device, inode, birth, Some(lower.uid), Some(lower.gid));
        }
        Ok(Answer::Continue)
    }

    /// What a file is; nothing if it is on another mount than the root.
    fn look(&self, file: OwnedFd) -> Result<Option<Seen>, Errno> {
        /// `STATX_MNT_ID`.
        const MOUNT: u32 = 0x1000;
        let wanted = StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::INO | StatxFlags::CTIME;
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        let found = rustix::fs::statx(&file, c"", flags, wanted | StatxFlags::from_bits_retain(MOUNT))?;
        let mount = (found.stx_mask & MOUNT != 0).then_some(found.stx_mnt_id);
        if mount != self.base_mount {
            return Ok(None);
        }
        let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
        Ok(Some(Seen {
            file,
            mode: found.stx_mode.into(),
            key: (device, found.stx_ino),
            changed: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
        }))
    }

    fn shown(&mut self, seen: &Seen) -> Result<Shown, Errno> {
        if let Some(known) = self.known.get(&seen.key).filter(|known| known.changed == seen.changed) {
            return Ok(known.shown);
        }
        let inside = self.inside(&seen.file)?;
        let shown = self.shown_at(&inside, seen.mode);
        self.known.insert(seen.key, Known { changed: seen.changed, shown });
        Ok(shown)
    }

    /// Where a file is in the root.
    pub(super) fn inside(&self, file: &OwnedFd) -> Result<PathBuf, Errno> {
        rustix::process::fchdir(&self.base)?;
        rustix::process::chroot(c".")?;
        let text = rustix::fs::readlinkat(&self.proc, format!("self/fd/{}", file.as_raw_fd()), Vec::new())?;
        let path = Path::new(std::ffi::OsStr::from_bytes(text.as_bytes()));
        path.strip_prefix("/").map(Path::to_path_buf).map_err(|_| Errno::NOENT)
    }

    /// What the lower layers say of a file, if it is theirs: not if another one took its place.
    fn lower(&self, inside: &Path, mode: u32, kept: Option<&OwnedFd>) -> Option<LowerFile> {
        let lower = (self.below.as_ref()?)(inside)?;
        let is_theirs = |kept: &OwnedFd| self.is_copied_up(kept, mode, lower.has_links);
        let same = FileType::from_raw_mode(lower.mode) == FileType::from_raw_mode(mode);
        (same && kept.is_none_or(is_theirs)).then_some(lower)
    }

    /// Whether an overlay made a file of its upper directory of a lower one. It marks those files, if they have one name,
    /// and directories that took the place of others; no more is known of what can bear no marks.
    fn is_copied_up(&self, kept: &OwnedFd, mode: u32, has_links: bool) -> bool {
        if self.upper.is_none() {
            return true;
        }
        let mark = |name: &str| {
            rustix::process::fchdir(&self.proc)?;
            let mut value = [0; 256];
            rustix::fs::getxattr(format!("self/fd/{}", kept.as_raw_fd()), name, &mut value[..])
        };
        match FileType::from_raw_mode(mode) {
            FileType::Directory => mark("user.overlay.opaque").is_err(),
            FileType::RegularFile => has_links || mark("user.overlay.origin") != Err(Errno::NODATA),
            _ => true,
        }
    }

    /// The file that keeps what is at a place of the root.
    fn kept(&self, inside: &Path, mode: u32) -> Option<OwnedFd> {
        let holder = self.upper.as_ref().unwrap_or(&self.base);
        let is_same = |file: &OwnedFd| {
            rustix::fs::fstat(file)
                .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::from_raw_mode(mode))
        };
        open_below(holder.as_fd(), inside, OFlags::PATH).ok().filter(is_same)
    }

    fn shown_at(&self, inside: &Path, mode: u32) -> Shown {
        let kept = self.kept(inside, mode);
        let key = kept.as_ref().and_then(|kept| ownership::key_of(kept.as_fd()).ok());
        let record = key.and_then(|(device, inode, birth)| self.ownership.of(device, inode, birth));
        let lower = self.lower(inside, mode, kept.as_ref());
        let bits = match lower {
            Some(lower) if record.is_none() && lower.mode & 0o777 == mode & 0o777 => lower.mode & SPECIAL,
            _ => 0,
        };
        let uid = record.and_then(|record| record.uid).or(lower.map(|lower| lower.uid));
        let gid = record.and_then(|record| record.gid).or(lower.map(|lower| lower.gid));
        Shown {
            uid: uid.unwrap_or(self.initial.uids.effective),
            gid: gid.unwrap_or_else(|| self.fresh_group(inside)),
            mode: bits,
        }
    }

    /// The group of a new file: that of its directory if that has the set-group-ID bit.
    fn fresh_group(&self, inside: &Path) -> u32 {
        let own = self.initial.gids.effective;
        let Some(parent) = inside.parent() else { return own };
        let place = open_below(self.base.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY);
        match place.and_then(|place| rustix::fs::fstat(&place)) {
            Ok(found) if found.st_mode & 0o2000 != 0 => self.shown_at(parent, found.st_mode).gid,
            _ => own,
        }
    }
}
