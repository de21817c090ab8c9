//! `tag`.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::arguments::image::Tag;
use crate::session::{self, Files};

/// Gives an image another name.
pub(crate) fn run(root: Option<&Path>, arguments: &Tag) -> Result<u8> {
    let target = super::new_name(&arguments.target)?;
    let store = session::open(root, Files::Untouched)?;
    store.resolve(&arguments.source)?;
    store.tag(&arguments.source, &target).with_context(|| format!("cannot tag {}", arguments.source))?;
    Ok(0)
}
