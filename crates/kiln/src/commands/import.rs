//! `import`.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use kiln_oci::{History, Platform, PlatformError};
use kiln_store::Error;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::arguments::image::Import;
use crate::failure::{Failure, Kind};
use crate::session::{self, Files};
use crate::units;

/// Where standard input has no archive.
const HINT: &str = "name a file, or pipe an archive into `kiln import -`";

/// The platform of that name.
fn platform(name: &str) -> Result<Platform> {
    let wrong = |reason: anyhow::Error| Failure::new(Kind::Input, "cannot import").caused_by(reason);
    let platform: Platform =
        name.parse().map_err(|error| wrong(anyhow::Error::new::<PlatformError>(error)))?;
    if platform.os != Platform::host().os {
        let reason = format!("operating system {:?} is not supported", platform.os);
        return Err(wrong(anyhow::Error::msg(reason)).into());
    }
    Ok(platform)
}

/// Makes an image of one layer out of a root file system's tar and prints its ID.
pub(crate) fn run(root: Option<&Path>, arguments: &Import) -> Result<u8> {
    let platform = match arguments.platform() {
        Some(named) => platform(named)?,
        None => Platform::host(),
    };
    let config = kiln_build::apply_changes(&platform, &arguments.change)?;
    let name = match &arguments.reference {
        Some(name) => Some(super::new_name(name)?),
        None => None,
    };
    let stdin = std::io::stdin();
    let (input, shown) = if arguments.file.as_os_str() == "-" {
        if rustix::termios::isatty(stdin.as_fd()) {
            let failure = Failure::new(Kind::Usage, "no archive to import: standard input is a terminal");
            return Err(failure.hint(HINT).into());
        }
        (File::from(stdin.as_fd().try_clone_to_owned()?), "standard input".to_owned())
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
    let not_imported = |error| -> anyhow::Error {
        match error {
            Error::Empty { .. } => {
                let failure = Failure::new(Kind::Input, format!("cannot import {shown}")).caused_by(error);
                if arguments.file.as_os_str() == "-" { failure.hint(HINT) } else { failure }.into()
            }
            error => anyhow::Error::from(error).context(format!("cannot import {shown}")),
        }
    };
    if input.metadata().is_ok_and(|found| found.is_file() && found.len() == 0) {
        return Err(not_imported(Error::Empty { expected: "a tar archive" }));
    }
    let store = session::open(root, Files::Touched)?;
    let lease = store.lease("import")?;
    let history = History {
        created: Some(units::moment(SystemTime::now()).to_string()),
        // As docker says it of every file, wherever that is.
        comment: arguments.message.clone().unwrap_or_else(|| "Imported from -".to_owned()),
        ..History::default()
    };
    let id = store.import(&lease, input, config, history, name.as_ref()).map_err(not_imported)?;
    writeln!(crate::output::output(), "{id}")?;
    Ok(0)
}
