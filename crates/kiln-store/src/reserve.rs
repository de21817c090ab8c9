//! Space that is set aside for what must work on a full disk: removing rows takes space before it gives any back, and
//! opening a store may take some, too.

use std::path::Path;

use rustix::fs::FallocateFlags;

use crate::error::{Error, Result};

/// A file that gives its space.
const RESERVE: &str = "reserve";

/// How many bytes it has; less where there is no room for as many.
const SIZES: [u64; 4] = [1 << 20, 768 << 10, 512 << 10, 256 << 10];

/// Sets space aside in the store at `root`. Where there is none, none is set aside.
pub(crate) fn make(root: &Path) {
    let path = root.join(RESERVE);
    let Ok(file) = fs_err::File::create_new(&path) else { return };
    let fits = |bytes| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).is_ok();
    if !SIZES.into_iter().any(fits) {
        let _ = fs_err::remove_file(&path);
    }
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
