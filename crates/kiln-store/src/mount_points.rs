//! The lowest directory of every overlay: what every container has something mounted on.
//!
//! Where an image lacks these, they would have to be made in the upper, `/etc` copied there with them, and all of it
//! taken back before the upper is walked. They are in no layer and no index: what of them is copied up all the same is left
//! out as a stub. Whatever is missing here is made in the upper after all.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_layer::Stub;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::Store;
use crate::error::{Error, Result};

/// Its name in the store's root.
pub(crate) const NAME: &str = "mount-points";

const DIRECTORIES: [&str; 4] = ["dev", "etc", "proc", "sys"];

/// Which files of `/etc` a container is given. An image that lacks another one must be seen to lack it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenFiles {
    /// `/etc/hosts`.
    Hosts,
    /// That and `/etc/resolv.conf`.
    HostsAndResolver,
}

impl GivenFiles {
    fn name(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::HostsAndResolver => "resolver",
        }
    }

    fn paths(self) -> &'static [&'static str] {
        match self {
            Self::Hosts => &["etc/hosts"],
            Self::HostsAndResolver => &["etc/hosts", "etc/resolv.conf"],
        }
    }

    /// What is in the directory, none of which belongs into a layer.
    pub(crate) fn stubs(self) -> Vec<Stub> {
        let paths = DIRECTORIES.iter().chain(self.paths());
        paths.map(|path| Stub { path: path.as_bytes().to_vec(), parent: None }).collect()
    }
}

impl Store {
    /// The directory, which is made if it is not there.
    pub(crate) fn mount_points(&self, given: GivenFiles) -> Result<PathBuf> {
        let place = self.root().join(NAME).join(given.name());
        let whole = DIRECTORIES.iter().chain(given.paths()).all(|path| place.join(path).exists());
        if !whole {
            make_directory(&self.root().join(NAME))?;
            make_directory(&place)?;
            DIRECTORIES.iter().try_for_each(|name| make_directory(&place.join(name)))?;
            given.paths().iter().try_for_each(|name| make_file(&place.join(name)))?;
            // The same in every store, whatever becomes of them.
            [""].iter().chain(&DIRECTORIES).try_for_each(|name| age(&place.join(name)))?;
        }
        Ok(place)
    }
}

fn make_directory(path: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::file("make", path))?,
    }
    open_to_all(path, 0o755)
}

fn make_file(path: &Path) -> Result<()> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644).custom_flags(no_link);
    options.open(path).map_err(Error::file("make", path))?;
    open_to_all(path, 0o644)?;
    age(path)
}

/// Whatever the umask is.
fn open_to_all(path: &Path, mode: u32) -> Result<()> {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::file("set the mode of", path))
}

fn age(path: &Path) -> Result<()> {
    let epoch = Timespec { tv_sec: 0, tv_nsec: 0 };
    let times = Timestamps { last_access: epoch, last_modification: epoch };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| Error::file("set the times of", path)(errno.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::Ownership;

    #[test]
    fn they_are_made_once_and_completed() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Ownership::Root).expect("a store");
        for given in [GivenFiles::Hosts, GivenFiles::HostsAndResolver] {
            let place = store.mount_points(given).expect("made");
            assert!(place.join("etc/hosts").is_file() && place.join("proc").is_dir());
            fs_err::remove_dir_all(place.join("etc")).expect("removed");
            assert_eq!(store.mount_points(given).expect("completed"), place);
            assert_eq!(place.join("etc/resolv.conf").is_file(), given == GivenFiles::HostsAndResolver);
            for name in ["", "etc", "etc/hosts", "dev"] {
                assert_eq!(fs_err::metadata(place.join(name)).expect("there").mtime(), 0, "{name}");
            }
        }
        Store::open(directory.path(), Ownership::Root).expect("it is the store's own");
    }
}
