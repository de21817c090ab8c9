//! `import`.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use kiln_oci::{History, Platform, Reference};

use crate::arguments::image::Import;
use crate::session::{self, Files};

/// Makes an image of one layer out of a root file system's tar and prints its ID.
pub(crate) fn run(root: Option<&Path>, arguments: &Import) -> Result<u8> {
    let platform = Platform::host();
    let config = kiln_build::apply_changes(&platform, &arguments.change)?;
    let name = match &arguments.reference {
        Some(name) => Some(name.parse::<Reference>()?.or_latest()),
        None => None,
    };
    let store = session::open(root, Files::Touched)?;
    let lease = store.lease("import")?;
    let (input, shown) = if arguments.file.as_os_str() == "-" {
        (File::from(std::io::stdin().as_fd().try_clone_to_owned()?), "-".to_owned())
    } else {
        let file = fs_err::File::open(&arguments.file)?;
        (file.into_file(), arguments.file.display().to_string())
    };
    let history = History {
        created: Some(Timestamp::now().to_string()),
        comment: arguments.message.clone().unwrap_or_else(|| format!("Imported from {shown}")),
        ..History::default()
    };
    let id = store
        .import(&lease, input, config, history, name.as_ref())
        .with_context(|| format!("cannot import {shown}"))?;
    writeln!(std::io::stdout(), "{id}")?;
    Ok(0)
}
