//! Extended attributes of any file by its directory and name, without following a symbolic link.
//!
//! The `l*xattr` calls take paths. They get `/proc/self/fd/<directory>/<name>`: the descriptor decides the directory, the
//! last component is never followed. (`setxattrat(2)` and its family exist only from Linux 6.13.)

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::root::{Directory, FileError};

type Result<T> = std::result::Result<T, FileError>;

/// One attribute: its full name (`security.capability`) and its value.
pub type Attribute = (Vec<u8>, Vec<u8>);

fn path(directory: &Directory, name: &OsStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    // The directory itself is "." below its own descriptor.
    path.extend_from_slice(if name.is_empty() { b"." } else { name.as_bytes() });
    path
}

fn failed<T>(
    operation: &'static str,
    directory: &Directory,
    name: &OsStr,
    result: rustix::io::Result<T>,
) -> Result<T> {
    result.map_err(|error| FileError::new(operation, directory.name().join(name), error))
}

/// The attributes of `name` in `directory` (of the directory itself when `name` is empty), sorted by name; only those
/// for whose name `wanted` is true are read. A file system without attributes has none.
///
/// # Errors
/// When the kernel refuses.
pub fn list(directory: &Directory, name: &OsStr, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Attribute>> {
    let path = path(directory, name);
    let mut small = [0_u8; 512];
    let names = match rustix::fs::llistxattr(path.as_slice(), &mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => small[..length].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0; 64 << 10];
            let length = failed(
                "list the attributes of",
                directory,
                name,
                rustix::fs::llistxattr(path.as_slice(), &mut large),
            )?;
            large.truncate(length);
            large
        }
        Err(error) => return failed("list the attributes of", directory, name, Err(error)),
    };
    let mut attributes = Vec::new();
    for attribute in
        names.split(|byte| *byte == 0).filter(|attribute| !attribute.is_empty() && wanted(attribute))
    {
        if let Some(value) = get(directory, name, attribute)? {
            attributes.push((attribute.to_vec(), value));
        }
    }
    attributes.sort();
    Ok(attributes)
}

/// One attribute of `name` in `directory`, or none.
///
/// # Errors
/// When the kernel refuses.
pub fn get(directory: &Directory, name: &OsStr, attribute: &[u8]) -> Result<Option<Vec<u8>>> {
    let path = path(directory, name);
    let mut value = vec![0; 256];
    loop {
        match rustix::fs::lgetxattr(path.as_slice(), attribute, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) if value.len() < 64 << 10 => value.resize(64 << 10, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return failed("read an attribute of", directory, name, Err(error)),
        }
    }
}

/// Sets an attribute of `name` in `directory` (of the directory itself when `name` is empty).
///
/// # Errors
/// When the kernel refuses: `PermissionDenied` for namespaces above our privileges, `Unsupported` where the file
/// system has none.
pub fn set(directory: &Directory, name: &OsStr, attribute: &[u8], value: &[u8]) -> Result<()> {
    let path = path(directory, name);
    let done = rustix::fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty());
    failed("set an attribute of", directory, name, done)
}

/// Removes an attribute of `name` in `directory`; one that is not there is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(directory: &Directory, name: &OsStr, attribute: &[u8]) -> Result<()> {
    let path = path(directory, name);
    match rustix::fs::lremovexattr(path.as_slice(), attribute) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        result => failed("remove an attribute of", directory, name, result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_sorted_and_links_are_not_followed() {
        let host = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::open(host.path()).expect("opened");
        directory.create_file("f", 0o644).expect("created");
        directory.make_symlink("l", "f").expect("linked");
        let long = vec![b'x'; 1000];
        set(&directory, OsStr::new("f"), b"user.z", b"last").expect("set");
        set(&directory, OsStr::new("f"), b"user.a", &long).expect("set");
        let expected = vec![(b"user.a".to_vec(), long), (b"user.z".to_vec(), b"last".to_vec())];
        let user = |name: &[u8]| name.starts_with(b"user.");
        assert_eq!(list(&directory, OsStr::new("f"), user).expect("listed"), expected);
        assert!(list(&directory, OsStr::new("l"), user).expect("listed").is_empty());
        set(&directory, OsStr::new("l"), b"user.a", b"").expect_err("a link has no user attributes");
        remove(&directory, OsStr::new("f"), b"user.z").expect("removed");
        assert_eq!(get(&directory, OsStr::new("f"), b"user.z").expect("read"), None);
        set(&directory, OsStr::new(""), b"user.own", b"1").expect("set");
        assert_eq!(get(&directory, OsStr::new(""), b"user.own").expect("read"), Some(b"1".to_vec()));
    }
}
