//! The lowest directory of every overlay: what every container has something mounted on.
//!
//! Where an image lacks these, they would have to be made in the upper, `/etc` copied there with them, and all of it
//! taken back before the upper is walked. They are in no layer and no index. Whatever is missing here is made in the
//! upper after all.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::Store;
use crate::error::{Error, Result};

/// Its name in the store's root.
pub(crate) const NAME: &str = "mount-points";

const DIRECTORIES: [&str; 5] = ["", "dev", "etc", "proc", "sys"];
const FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

impl Store {
    /// The directory, which is made if it is not there.
    pub(crate) fn mount_points(&self) -> Result<PathBuf> {
        let place = self.root().join(NAME);
        let [.., last] = FILES;
        if place.join(last).exists() {
            return Ok(place);
        }
        for name in DIRECTORIES {
            let path = place.join(name);
            match std::fs::DirBuilder::new().mode(0o755).create(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.map_err(Error::file("make", &path))?,
            }
            open_to_all(&path, 0o755)?;
        }
        for name in FILES {
            let path = place.join(name);
            let mut options = std::fs::OpenOptions::new();
            options
                .write(true)
                .create(true)
                .mode(0o644)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
            options.open(&path).map_err(Error::file("make", &path))?;
            open_to_all(&path, 0o644)?;
        }
        Ok(place)
    }
}

/// Whatever the umask is.
fn open_to_all(path: &std::path::Path, mode: u32) -> Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs_err::set_permissions(path, mode).map_err(Error::file("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ownership;

    #[test]
    fn it_is_made_once_and_completed() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Ownership::Root).expect("a store");
        let place = store.mount_points().expect("made");
        assert!(place.join("etc/hosts").is_file() && place.join("proc").is_dir());
        fs_err::remove_dir_all(place.join("etc")).expect("removed");
        assert_eq!(store.mount_points().expect("completed"), place);
        assert!(place.join("etc/resolv.conf").is_file());
        Store::open(directory.path(), Ownership::Root).expect("it is the store's own");
    }
}
