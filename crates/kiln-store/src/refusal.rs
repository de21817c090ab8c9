//! What SQLite's refusals mean to who has the store: which file it is about, what the system says of it, what to do.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};
use rustix::fs::Access;

use crate::error::Error;

/// Bytes of the path of a store's directory at most: SQLite takes 512 for `/kiln.db` in it with the name of a journal's ending,
/// `-journal`, which it counts whether or not there is one (`MAX_PATHNAME` of its os_unix.c).
const LONGEST_ROOT: usize = 512 - "/kiln.db-journal".len();

/// What `action` on the database at `path` came to.
pub(crate) fn refused(path: &Path, action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |source| explain(path, action, source)
}

/// As [`refused`], of a database that is open.
pub(crate) fn failed(connection: &Connection, action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |source| match connection.path() {
        Some(path) => explain(Path::new(path), action, source),
        None => Error::Database { action, source },
    }
}

fn explain(path: &Path, action: &'static str, source: rusqlite::Error) -> Error {
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::LostDatabase { path: path.to_path_buf(), found: "is damaged", source: Some(source) }
        }
        // It says that "the database or disk is full".
        Some(ErrorCode::DiskFull) => Error::file("write", path)(io::ErrorKind::StorageFull.into()),
        Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly) => {
            systems_answer(path).unwrap_or(Error::Database { action, source })
        }
        _ => Error::Database { action, source },
    }
}

/// What the system has against a database's files: SQLite keeps that to itself. None of them is opened, since closing one
/// would take the locks away that this process has on it.
fn systems_answer(path: &Path) -> Option<Error> {
    if let Some(root) = path.parent().and_then(|root| fs_err::canonicalize(root).ok())
        && root.as_os_str().len() > LONGEST_ROOT
    {
        let found = root.as_os_str().len();
        return Some(Error::LongPath { path: root, found, most: LONGEST_ROOT });
    }
    if path.is_dir() {
        return Some(Error::LostDatabase { path: path.to_path_buf(), found: "is a directory", source: None });
    }
    for end in ["", "-wal", "-shm"] {
        let mut name = OsString::from(path);
        name.push(end);
        let file = PathBuf::from(name);
        if file.is_dir() {
            return Some(Error::InTheWay { path: file });
        }
        match rustix::fs::access(&file, Access::READ_OK | Access::WRITE_OK).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !end.is_empty() => {}
            Err(error) => return Some(Error::file("open", file)(error)),
            Ok(()) => {}
        }
    }
    no_room(path.parent()?).map(Error::file("write", path))
}

/// Why nothing can be written into a directory, if the file system is full.
fn no_room(directory: &Path) -> Option<io::Error> {
    // The index of the log has as many at least.
    const BYTES: usize = 32 << 10;
    let directory = fs_err::File::open(directory).ok()?;
    let tried = kiln_sys::publish::unnamed_file(directory.as_fd())
        .and_then(|mut file| file.write_all(&vec![0; BYTES]));
    tried.err().filter(is_full)
}

/// Whether there was no room, or no more that is this user's.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ownership, Store};

    #[test]
    fn a_path_that_is_too_long_is_said_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let base = fs_err::canonicalize(directory.path()).unwrap();
        let root = |length: usize| {
            let mut root = base.clone();
            while length - root.as_os_str().len() > 200 {
                root.push("d".repeat(100));
            }
            let rest = length - root.as_os_str().len() - 1;
            root.join("e".repeat(rest))
        };
        Store::open(&root(LONGEST_ROOT), Ownership::SingleId).unwrap();
        let long = root(LONGEST_ROOT + 1);
        match Store::open(&long, Ownership::SingleId).err() {
            Some(Error::LongPath { found: 497, most: 496, path }) => assert_eq!(path, long),
            other => panic!("{other:?}"),
        }
    }
}
