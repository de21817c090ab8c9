//! `tag`.

use std::path::Path;

use anyhow::{Context as _, Result};
use kiln_oci::Reference;

use crate::arguments::image::Tag;
use crate::failure::{Failure, Kind};
use crate::session::{self, Files};

/// Gives an image another name.
pub(crate) fn run(root: Option<&Path>, arguments: &Tag) -> Result<u8> {
    let target: Reference = arguments.target.parse().map_err(|error: kiln_oci::ReferenceError| {
        Failure::new(Kind::Input, format!("cannot use {:?} as a name", arguments.target)).caused_by(error)
    })?;
    if target.digest.is_some() {
        let message = "refusing to create a tag with a digest reference";
        return Err(Failure::new(Kind::Input, message).into());
    }
    let store = session::open(root, Files::Untouched)?;
    let id = store.resolve(&arguments.source)?;
    store.tag(id, &target.or_latest()).with_context(|| format!("cannot tag {}", arguments.source))?;
    Ok(0)
}
