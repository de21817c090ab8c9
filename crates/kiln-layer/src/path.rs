//! Paths inside a layer (docs/formats.md, section 1): their order and their cleaned form.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{EntryProblem, Error};

/// The prefix of whiteouts in a layer's tar (OCI image-spec `layer.md`).
pub const WHITEOUT: &[u8] = b".wh.";
/// The name that makes a directory opaque in a layer's tar.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// Orders paths component by component, so that a directory sorts directly before everything below it.
pub fn compare(left: &[u8], right: &[u8]) -> Ordering {
    let common = common(left, right);
    match (left.get(common), right.get(common)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(b'/'), Some(_)) => Ordering::Less,
        (Some(_), Some(b'/')) => Ordering::Greater,
        (Some(left), Some(right)) => left.cmp(right),
    }
}

/// How many bytes two paths begin with alike.
fn common(left: &[u8], right: &[u8]) -> usize {
    const WIDTH: usize = 8;
    let (wide_left, wide_right) = (left.as_chunks::<WIDTH>().0, right.as_chunks::<WIDTH>().0);
    let mut alike = 0;
    for (left, right) in wide_left.iter().zip(wide_right) {
        let different = u64::from_le_bytes(*left) ^ u64::from_le_bytes(*right);
        if different != 0 {
            return alike + different.trailing_zeros() as usize / 8;
        }
        alike += WIDTH;
    }
    let rest = left[alike..].iter().zip(&right[alike..]);
    alike + rest.take_while(|(left, right)| left == right).count()
}

/// Whether `path` is strictly below `directory`; everything but the root is below the root.
pub fn is_below(path: &[u8], directory: &[u8]) -> bool {
    if directory.is_empty() {
        return !path.is_empty();
    }
    path.len() > directory.len() && path[directory.len()] == b'/' && path.starts_with(directory)
}

/// Splits a path into its parent and its last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The components of a path; none for the root.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
}

/// Appends `name` to the path of a directory.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + name.len() + 1);
    path.extend_from_slice(directory);
    if !directory.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Cleans a name as an archive or a user gives it, lexically and inside the root: `..` at the root stays there.
pub fn clean(name: &[u8], cleaned: &mut Vec<u8>) {
    cleaned.clear();
    if is_clean(name) {
        cleaned.extend_from_slice(name);
        return;
    }
    for component in components(name) {
        match component {
            b"." => {}
            b".." => cleaned.truncate(split(cleaned).0.len()),
            _ => {
                if !cleaned.is_empty() {
                    cleaned.push(b'/');
                }
                cleaned.extend_from_slice(component);
            }
        }
    }
}

/// As many components as are looked up for one path, its links' included.
const STEPS: usize = 10_000;

/// Resolves the symbolic links of `path` inside the root; `None` if there are more than `limit` of them, or
/// they are so long that following them for every entry would take for ever. `look` is told each
/// path on the way, and whether anything comes after it, and gives the target of a link that is to be followed.
///
/// # Errors
/// Those of `look`.
pub fn resolve<T: AsRef<[u8]>, E>(
    path: &[u8],
    limit: usize,
    look: impl FnMut(&[u8], Position) -> Result<Option<T>, E>,
) -> Result<Option<Vec<u8>>, E> {
    resolve_counting(path, limit, &mut 0, look)
}

/// As [`resolve`]; `detour` is told how many components the targets of links add to the way.
pub(crate) fn resolve_counting<T: AsRef<[u8]>, E>(
    path: &[u8],
    limit: usize,
    detour: &mut u64,
    mut look: impl FnMut(&[u8], Position) -> Result<Option<T>, E>,
) -> Result<Option<Vec<u8>>, E> {
    let stacked = |path: &[u8]| components(path).map(<[u8]>::to_vec).rev().collect::<Vec<_>>();
    let mut resolved: Vec<u8> = Vec::with_capacity(path.len());
    let mut pending = stacked(path);
    let (mut followed, mut steps) = (0, 0);
    while let Some(component) = pending.pop() {
        steps += 1;
        match component.as_slice() {
            b"." => continue,
            b".." => {
                resolved.truncate(split(&resolved).0.len());
                continue;
            }
            _ => {}
        }
        let parent = resolved.len();
        if parent > 0 {
            resolved.push(b'/');
        }
        resolved.extend_from_slice(&component);
        let position = if pending.is_empty() { Position::Last } else { Position::OnTheWay };
        let Some(target) = look(&resolved, position)? else { continue };
        let target = target.as_ref();
        followed += 1;
        if followed > limit || steps + pending.len() > STEPS {
            return Ok(None);
        }
        resolved.truncate(if target.starts_with(b"/") { 0 } else { parent });
        let before = pending.len();
        pending.extend(stacked(target));
        *detour += (pending.len() - before) as u64;
    }
    Ok(Some(resolved))
}

/// Where a path is that [`resolve`] comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Something comes after it.
    OnTheWay,
    /// Nothing comes after it.
    Last,
}

fn is_clean(name: &[u8]) -> bool {
    if name.is_empty() || name[0] == b'/' || name[name.len() - 1] == b'/' {
        return name.is_empty();
    }
    let mut start = true;
    for (position, byte) in name.iter().enumerate() {
        if start && *byte == b'/' {
            return false;
        }
        if start && *byte == b'.' {
            match name[position + 1..] {
                [] | [b'/', ..] | [b'.'] | [b'.', b'/', ..] => return false,
                _ => {}
            }
        }
        start = *byte == b'/';
    }
    true
}

/// A layer's path as the system's type.
pub fn to_system(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// The longest path of a file in a layer, in bytes: Linux's `PATH_MAX` without the zero.
pub const LONGEST: usize = 4095;
/// The longest name, in bytes: `NAME_MAX`.
pub const LONGEST_NAME: usize = 255;
/// How deep a file may be.
pub const DEEPEST: usize = 1000;

/// Refuses the path of what no layer may have: it could not be unpacked. Whatever reads or makes a layer asks here, so
/// that what one takes the other takes, too.
///
/// # Errors
/// [`EntryProblem::PathTooLong`] or [`EntryProblem::TooDeep`]
pub(crate) fn check(path: &[u8]) -> Result<(), Error> {
    let problem = if path.len() > LONGEST || components(path).any(|name| name.len() > LONGEST_NAME) {
        EntryProblem::PathTooLong
    } else if components(path).count() > DEEPEST {
        EntryProblem::TooDeep
    } else {
        return Ok(());
    };
    Err(Error::Entry { path: shown(&path[..path.len().min(200)]), problem })
}

/// A path for people, always with a leading slash.
pub fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_cannot_be_unpacked_are_refused() {
        let name = |length: usize| "n".repeat(length);
        let deep = |depth: usize| vec!["d"; depth].join("/");
        let long = |last: usize| vec![name(254); 16].join("/") + "/" + &name(last);
        for good in [name(255), deep(1000), long(15)] {
            assert!(check(good.as_bytes()).is_ok(), "{good}");
        }
        for (bad, told) in [(name(256), "too long"), (deep(1001), "too deep"), (long(16), "too long")] {
            let error = check(bad.as_bytes()).expect_err(&bad).to_string();
            assert!(error.contains(told) && error.len() < 300, "{error}");
        }
    }

    #[test]
    fn directories_come_directly_before_their_content() {
        let mut paths = ["a.b", "a", "a/b", "a/b/c", "a-", "a/b.c", "", "b", "a0"].map(str::as_bytes);
        paths.sort_by(|left, right| compare(left, right));
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a/b.c", "a-", "a.b", "a0", "b"].map(str::as_bytes));
    }

    #[test]
    fn cleaning_stays_inside() {
        for (name, expected) in [
            ("", ""),
            (".", ""),
            ("./", ""),
            ("/", ""),
            ("..", ""),
            ("../../etc", "etc"),
            ("./a", "a"),
            ("a/", "a"),
            ("a//b", "a/b"),
            ("a/./b", "a/b"),
            ("a/../b", "b"),
            ("a/..", ""),
            ("/a/b/../../../c", "c"),
            ("...", "..."),
            ("a/..b/.c", "a/..b/.c"),
            ("a/.", "a"),
        ] {
            let mut cleaned = Vec::new();
            clean(name.as_bytes(), &mut cleaned);
            assert_eq!(String::from_utf8_lossy(&cleaned), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn order_equals_order_of_components(
            both in "[ab/]{0,40}",
            left in "[ab./-]{0,8}",
            right in "[ab./-]{0,8}",
        ) {
            let (left, right) = (both.clone() + &left, both + &right);
            let (mut cleaned_left, mut cleaned_right) = (Vec::new(), Vec::new());
            clean(left.as_bytes(), &mut cleaned_left);
            clean(right.as_bytes(), &mut cleaned_right);
            prop_assert!(is_clean(&cleaned_left));
            let expected = components(&cleaned_left).cmp(components(&cleaned_right));
            prop_assert_eq!(compare(&cleaned_left, &cleaned_right), expected);
        }
    }
}
