//! WORKDIR: makes the directory if it is not there.

use kiln_layer::LayerWriter;

use crate::error::Result;
use crate::image_tree::ImageTree;
use crate::operation::WorkdirOperation;
use crate::owner::find_owner;
use crate::staging::{Making, Staging};
use crate::tree::{LastLink, cleaned};

/// Gives the directories that are missing to `out`: nothing if the path is a directory. Gives back the names in USER that
/// the image does not know; their directories belong to root. `now` is in seconds since the epoch.
///
/// # Errors
/// When something in the way is not a directory, or the user makes no sense.
pub(crate) fn workdir<'w>(
    operation: &WorkdirOperation,
    parent: &'w ImageTree<'w>,
    now: i64,
    out: &mut LayerWriter<'w>,
) -> Result<Vec<String>> {
    let owner = match operation.user.as_str() {
        "" => None,
        user => Some(find_owner(user, parent)?),
    };
    let mut staging = Staging::new(parent, now, operation.epoch);
    let path = staging.resolve(&cleaned(&operation.path), LastLink::Follow)?;
    let owner_ids = owner.as_ref().map(|owner| (owner.uid, owner.gid));
    staging.make_directories(&path, Making { mode: 0o755, owner: owner_ids })?;
    staging.write(out, |_| kiln_layer::Source::Empty)?;
    Ok(owner.map(|owner| owner.unknown).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use crate::error::Error;
    use crate::lab::{Image, Lab};

    fn check(dockerfile: &str, expect: Result<&[&str], &str>) {
        let base = Image::default().with(&[
            ("etc/", 0o755, ""),
            ("etc/passwd", 0o644, "app:x:1500:1600::/:/bin/sh\n"),
            ("real/", 0o755, ""),
            ("link", 0o777, "->real"),
            ("file", 0o644, "x"),
        ]);
        let before = base.tree();
        let found = match Lab::new().base("base", base).build(&format!("FROM base\n{dockerfile}\n")) {
            Ok(outcome) => Ok(outcome.image.tree()),
            Err(Error::NotDirectory(path)) => Err(path),
            Err(error) => panic!("{dockerfile}: {error}"),
        };
        let found =
            found.map(|tree| tree.into_iter().filter(|line| !before.contains(line)).collect::<Vec<_>>());
        let expect =
            expect.map(|lines| lines.iter().map(ToString::to_string).collect()).map_err(str::to_owned);
        assert_eq!(found, expect, "{dockerfile}");
    }

    #[test]
    fn missing_directories_are_made() {
        check("WORKDIR /a/b", Ok(&["d 0755 0:0 a", "d 0755 0:0 a/b"]));
        check("WORKDIR /etc", Ok(&[]));
        check("WORKDIR /link/sub", Ok(&["d 0755 0:0 real/sub"]));
        check("USER app\nWORKDIR /a/b", Ok(&["d 0755 1500:1600 a", "d 0755 1500:1600 a/b"]));
        check("USER 5:6\nWORKDIR /a", Ok(&["d 0755 5:6 a"]));
        check("WORKDIR /file/x", Err("/file"));
        check("WORKDIR /file", Err("/file"));
    }
}
