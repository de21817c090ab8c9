//! `import`.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use kiln_oci::{History, Platform};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::arguments::image::Import;
use crate::failure::{Failure, Kind};
use crate::session::{self, Files};

/// Makes an image of one layer out of a root file system's tar and prints its ID.
pub(crate) fn run(root: Option<&Path>, arguments: &Import) -> Result<u8> {
    let platform = Platform::host();
    let config = kiln_build::apply_changes(&platform, &arguments.change)?;
    let name = match &arguments.reference {
        Some(name) => Some(super::new_name(name)?),
        None => None,
    };
    let stdin = std::io::stdin();
    let (input, shown) = if arguments.file.as_os_str() == "-" {
        if rustix::termios::isatty(stdin.as_fd()) {
            let failure = Failure::new(Kind::Usage, "no archive to import: standard input is a terminal");
            return Err(failure.hint("name a file, or pipe an archive into `kiln import -`").into());
        }
        (File::from(stdin.as_fd().try_clone_to_owned()?), "-".to_owned())
    } else {
        let shown = arguments.file.display().to_string();
        let failed =
            |error: Errno| Failure::new(Kind::Input, format!("cannot import {shown}")).caused_by(error);
        if arguments.file.is_dir() {
            let hint = format!("make an archive of it: tar -C {shown} -c . | kiln import -");
            return Err(failed(Errno::ISDIR).hint(hint).into());
        }
        if (shown.starts_with("http://") || shown.starts_with("https://")) && !arguments.file.exists() {
            let hint = format!("`curl -fL {shown} | kiln import -` imports what is there");
            return Err(failed(Errno::NOENT).hint(hint).into());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&arguments.file, flags, Mode::empty()).map_err(failed)?;
        (File::from(file), shown)
    };
    if input.metadata().is_ok_and(|found| found.is_file() && found.len() == 0) {
        let message = format!("cannot import {shown}: it is empty: expected a tar archive");
        return Err(Failure::new(Kind::Input, message).into());
    }
    let store = session::open(root, Files::Touched)?;
    let lease = store.lease("import")?;
    let history = History {
        created: Some(Timestamp::now().to_string()),
        // As docker says it of every file, wherever that is.
        comment: arguments.message.clone().unwrap_or_else(|| "Imported from -".to_owned()),
        ..History::default()
    };
    let id = store
        .import(&lease, input, config, history, name.as_ref())
        .with_context(|| format!("cannot import {shown}"))?;
    writeln!(crate::output::output(), "{id}")?;
    Ok(0)
}
