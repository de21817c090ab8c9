//! `--chown` and USER of WORKDIR: numbers, or names of the image that is built on.

use std::io::Read;

use kiln_oci::{UserError, UserSpec, find_group, find_user};

use crate::error::{Error, Result};
use crate::image_tree::ImageTree;
use crate::tree::{LastLink, SourceTree, resolve_in};

/// The largest passwd or group file that is read, as BuildKit's.
const LARGEST: u64 = 10 << 20;

/// Who new files belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names that the image does not know; root stands in for them, as in BuildKit.
    pub(crate) unknown: Vec<String>,
}

/// Finds `user[:group]`. A number without a group is the group's number, too; a user's name brings its group. What is
/// empty beside a colon is root.
///
/// # Errors
/// A name where there is no image yet to look it up in, or a number out of range.
pub(crate) fn find_owner(text: &str, image: &ImageTree<'_>) -> Result<Owner> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let mut owner = Owner { uid: 0, gid: 0, unknown: Vec::new() };
    match number(user)? {
        Some(uid) => (owner.uid, owner.gid) = (uid, uid),
        None => {
            let passwd = file(image, b"etc/passwd", || UserError::NoUser(user.to_owned()))?;
            let spec = UserSpec { user: user.to_owned(), group: None };
            match find_user(&spec, &passwd, b"") {
                Ok(found) => (owner.uid, owner.gid) = (found.uid, found.gid),
                Err(UserError::NoUser(_)) => owner.unknown.push(user.to_owned()),
                Err(error) => return Err(error.into()),
            }
        }
    }
    if let Some(name) = group {
        match number(name)? {
            Some(gid) => owner.gid = gid,
            None => {
                let groups = file(image, b"etc/group", || UserError::NoGroup(name.to_owned()))?;
                match find_group(name, &groups) {
                    Ok(gid) => owner.gid = gid,
                    Err(UserError::NoGroup(_)) => owner.unknown.push(name.to_owned()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(owner)
}

fn number(text: &str) -> Result<Option<u32>> {
    // As in BuildKit, nothing is root, too.
    if text == "root" || text.is_empty() {
        return Ok(Some(0));
    }
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match digits.parse::<i32>() {
        Ok(number) => Ok(Some(number.unsigned_abs())),
        Err(_) => Err(UserError::Range(text.chars().take(40).collect()).into()),
    }
}

/// The bytes of an account file; none if the image has no such file.
fn file(image: &ImageTree<'_>, path: &[u8], missing: impl FnOnce() -> UserError) -> Result<Vec<u8>> {
    if image.view().layers().is_empty() {
        return Err(missing().into());
    }
    let path = match resolve_in(image, path, LastLink::Follow) {
        Err(Error::NotDirectory(_)) => return Ok(Vec::new()),
        path => path?,
    };
    let shown = crate::tree::shown(&path);
    match image.find(&path)? {
        None => Ok(Vec::new()),
        Some(found) if found.metadata.kind != kiln_layer::Kind::Regular => Err(Error::NotFile(shown)),
        Some(found) if found.metadata.size > LARGEST => Err(Error::TooLarge { path: shown, limit: LARGEST }),
        Some(_) => {
            let mut bytes = Vec::new();
            let (reader, _) = image.open(&path)?;
            let read = reader.take(LARGEST).read_to_end(&mut bytes);
            read.map_err(|source| Error::File { action: "read", path: shown, source })?;
            Ok(bytes)
        }
    }
}
