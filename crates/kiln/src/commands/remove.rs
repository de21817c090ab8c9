//! `rmi`.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use kiln_store::{Error, Removed};

use crate::arguments::image::Remove;
use crate::session::{self, Files};

/// Removes names, and images with their last name. `--no-prune` has nothing to keep: images have no parents here.
pub(crate) fn run(root: Option<&Path>, arguments: &Remove) -> Result<u8> {
    let store = session::open(root, Files::Touched)?;
    let mut failures: Vec<anyhow::Error> = Vec::new();
    let mut forgiven = true;
    let mut files_stay = None;
    let mut out = crate::output::output();
    for name in &arguments.images {
        match store.remove_image(name, arguments.force) {
            Ok(removed) => {
                for what in removed {
                    match what {
                        Removed::Untagged(name) => writeln!(out, "Untagged: {name}")?,
                        Removed::Deleted(id) => writeln!(out, "Deleted: {id}")?,
                        Removed::Layer(layer) => writeln!(out, "Deleted: {layer}")?,
                        Removed::FilesStay(reason) => files_stay = Some(reason),
                    }
                }
            }
            Err(error) => {
                // As in Docker, --force does not mind what is not there.
                forgiven &= arguments.force && matches!(error, Error::NoImage(_));
                failures.push(error.into());
            }
        }
    }
    super::tell_files_stay(files_stay.as_deref());
    let status = super::report_all(&failures);
    Ok(if forgiven { 0 } else { status })
}
