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
    staging.write(out, |_, _| kiln_layer::Source::Empty)?;
    Ok(owner.map(|owner| owner.unknown).unwrap_or_default())
}
