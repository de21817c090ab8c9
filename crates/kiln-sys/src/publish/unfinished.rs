//! Directories that get their name when they are complete.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use rustix::fs::{FileType, FlockOperation};
use rustix::io::Errno;

use super::{Result, random, rename_over};
use crate::root::Directory;

/// What the names of unfinished directories begin with; 16 hexadecimal digits follow.
const PREFIX: &str = ".kiln-unfinished-";

/// A directory that is filled under a name of its own, which goes when this is dropped. It is locked meanwhile: what the
/// kill of a process left behind goes when the next one is made beside it.
#[derive(Debug)]
pub struct UnfinishedDirectory<'a> {
    parent: &'a Directory,
    name: OsString,
    directory: Directory,
}

impl<'a> UnfinishedDirectory<'a> {
    /// Makes one in `parent`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(parent: &'a Directory, mode: u32) -> Result<Self> {
        remove_abandoned(parent);
        loop {
            let name = OsString::from(format!("{PREFIX}{:016x}", random()));
            match parent.make_directory(&name, mode) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            // Until it is locked, another process may take it for abandoned.
            let directory = match parent.open_directory(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            // Where there are no locks, nobody takes it for abandoned.
            while rustix::fs::flock(&directory, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
            if is_named(parent, &name, &directory) {
                return Ok(Self { parent, name, directory });
            }
        }
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        self.directory.name()
    }

    /// Gives it its name, where nothing or an empty directory is.
    ///
    /// # Errors
    /// When the kernel refuses; then it goes.
    pub fn rename_over(self, name: &OsStr) -> Result<()> {
        rename_over((self.parent, &self.name), (self.parent, name))
    }
}

impl Drop for UnfinishedDirectory<'_> {
    fn drop(&mut self) {
        if is_named(self.parent, &self.name, &self.directory) {
            let _ = self.parent.remove_all(&self.name);
        }
    }
}

fn is_named(parent: &Directory, name: &OsStr, directory: &Directory) -> bool {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    match (parent.stat(name), directory.stat_self()) {
        (Ok(named), Ok(opened)) => identity(named) == identity(opened),
        _ => false,
    }
}

/// Removes what killed processes of the same user left. What cannot be removed is in nobody's way.
fn remove_abandoned(parent: &Directory) {
    for found in parent.list().unwrap_or_default() {
        let digits = found.name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let is_ours =
            digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
        if !is_ours || !matches!(found.kind, FileType::Directory | FileType::Unknown) {
            continue;
        }
        let Ok(directory) = parent.open_directory(&found.name) else { continue };
        let owner = directory.stat_self().map(|stat| stat.st_uid);
        if owner.is_ok_and(|owner| owner == rustix::process::geteuid().as_raw())
            && rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_named(parent, &found.name, &directory)
        {
            let _ = parent.remove_all(&found.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_nothing_else() {
        let host = tempfile::tempdir().expect("a temporary directory");
        let parent = Directory::open(host.path()).expect("opened");
        let names = || {
            let entries = fs_err::read_dir(host.path()).expect("listed");
            let mut names: Vec<_> = entries.map(|entry| entry.expect("read").file_name()).collect();
            names.sort();
            names
        };
        let left = format!("{PREFIX}0123456789abcdef");
        fs_err::create_dir_all(host.path().join(&left).join("blobs/sha256")).expect("made");
        let kept = [format!("{PREFIX}0123456789abcde"), format!("{PREFIX}mine"), "other".to_owned()];
        kept.iter().for_each(|name| fs_err::create_dir(host.path().join(name)).expect("made"));
        let link = format!("{PREFIX}fedcba9876543210");
        parent.make_symlink(&link, "other").expect("linked");

        let at_work = UnfinishedDirectory::create(&parent, 0o755).expect("made");
        fs_err::write(at_work.path().join("half"), "half").expect("written");
        let second = UnfinishedDirectory::create(&parent, 0o755).expect("made");
        let own = [&at_work, &second].map(|directory| directory.name.clone());
        let mut expected: Vec<OsString> = kept.iter().chain([&link]).map(OsString::from).collect();
        expected.extend(own);
        expected.sort();
        assert_eq!(names(), expected);

        second.rename_over("other".as_ref()).expect("an empty directory is replaced");
        at_work.rename_over(kept[1].as_ref()).expect("named");
        UnfinishedDirectory::create(&parent, 0o755)
            .expect("made")
            .rename_over(kept[1].as_ref())
            .expect_err("it is not empty");
        drop(UnfinishedDirectory::create(&parent, 0o755).expect("made"));
        let mut expected: Vec<OsString> = kept.iter().chain([&link]).map(OsString::from).collect();
        expected.sort();
        assert_eq!(names(), expected);
        assert_eq!(fs_err::read_to_string(host.path().join(&kept[1]).join("half")).expect("read"), "half");
    }
}
