//! Space that is set aside for what must work on a full disk: removing rows takes space before it gives any back, and
//! opening a store may take some, too.

use std::path::Path;

use rustix::fs::FallocateFlags;

use crate::error::{Error, Result};

/// A file that gives its space.
const RESERVE: &str = "reserve";

/// What is needed however small the database is: for its log and what that is moved to, for the log's index, for
/// directories that grow, and for the layout that is written anew.
const LEAST: u64 = 48 << 10;

/// Sets space aside in the store at `root`, or as much of it as there is room for. Removing all of 300 images, each of a build of
/// its own, takes less than half of what the database has: the log gets each page that changes. So it grows with the database.
pub(crate) fn make(root: &Path) {
    let length = |name: &str| fs_err::metadata(root.join(name)).map_or(0, |found| found.len());
    // Of a new one, nearly all is in the log.
    let wanted = LEAST + length("kiln.db").max(length("kiln.db-wal")) / 4 * 3;
    let path = root.join(RESERVE);
    let Ok(file) = fs_err::OpenOptions::new().write(true).create(true).truncate(false).open(&path) else {
        return;
    };
    if file.metadata().is_ok_and(|found| found.len() >= wanted) {
        return;
    }
    let fits =
        |part: u64| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, wanted * part / 4).is_ok();
    let _ = (1..=4).rev().any(fits);
}

/// Gives the space back.
pub(crate) fn release(root: &Path) -> Result<()> {
    let path = root.join(RESERVE);
    match fs_err::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove", &path)(error))
        }
        _ => Ok(()),
    }
}
