//! Failures of the init, on their way to the one who started it.

use std::io;

use kiln_sys::mount::FilesystemRefused;

use crate::report::Report;

/// A step of setting up that failed.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Report);

/// Names the step at which an error occurred.
pub(crate) fn at(step: &str) -> impl FnOnce(io::Error) -> Failure + use<> {
    let step = step.to_owned();
    move |error| {
        // An error of fs_err carries the system's as its source's number.
        Failure(Report::Failed {
            step,
            errno: error.raw_os_error().unwrap_or(0),
            detail: if error.raw_os_error().is_some() { String::new() } else { error.to_string() },
        })
    }
}

impl From<FilesystemRefused> for Failure {
    fn from(refused: FilesystemRefused) -> Self {
        Self(Report::Failed {
            step: format!("mount {}", refused.filesystem),
            errno: refused.source.raw_os_error().unwrap_or(0),
            detail: refused.log,
        })
    }
}
