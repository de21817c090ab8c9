//! `load`.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::Result;
use kiln_store::{Error, LoadEvent, LoadedImage, Unpacking};

use crate::arguments::image::Load;
use crate::failure::{Failure, Kind};
use crate::session::{self, Files};

/// Where standard input has no archive.
const HINT: &str = "name a file with -i, or pipe an archive into `kiln load`";

/// Loads the images of an archive or of an OCI directory.
pub(crate) fn run(root: Option<&Path>, arguments: &Load) -> Result<u8> {
    let (files, unpacking) = match arguments.no_unpack {
        true => (Files::Untouched, Unpacking::Later),
        false => (Files::Touched, Unpacking::IfNeeded),
    };
    let input = match arguments.input.as_deref().filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            rustix::fs::stat(path).map_err(|error| {
                Failure::new(Kind::Input, format!("cannot load {}", path.display())).caused_by(error)
            })?;
            Some(path)
        }
        None => None,
    };
    let stdin = std::io::stdin();
    if input.is_none() && rustix::termios::isatty(stdin.as_fd()) {
        return Err(Failure::new(Kind::Usage, "no archive to load: standard input is a terminal")
            .hint(HINT)
            .into());
    }
    let store = session::open(root, files)?;
    let lease = store.lease("load")?;
    let shown = !arguments.quiet && rustix::termios::isatty(std::io::stderr().as_fd());
    let mut progress = |event: LoadEvent| {
        if shown {
            tell(&event);
        }
    };
    let loaded = match input {
        Some(path) => store.load(&lease, path, unpacking, &mut progress),
        None => {
            let input = File::from(stdin.as_fd().try_clone_to_owned()?);
            store.load_stream(&lease, "standard input", input, unpacking, &mut progress)
        }
    };
    let name = input.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    let loaded = loaded.map_err(|error| not_loaded(&name, input.is_none(), error))?;
    report(&loaded)?;
    Ok(0)
}

fn not_loaded(name: &str, is_standard_input: bool, error: Error) -> Failure {
    let hint = match error {
        Error::NoImages => Some("`kiln import` makes an image of a root file system"),
        Error::Empty { .. } if is_standard_input => Some(HINT),
        _ => None,
    };
    let kind = match error {
        Error::NoImages | Error::Archive { .. } | Error::Empty { .. } => Kind::Input,
        _ => Kind::World,
    };
    let failure = match error {
        // It would be named twice.
        Error::Archive { archive, reason } if archive == name => {
            Failure::new(kind, format!("cannot load {name}: {reason}"))
        }
        error => Failure::new(kind, format!("cannot load {name}")).caused_by(error),
    };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A line for each layer, on a terminal only.
fn tell(event: &LoadEvent) {
    let LoadEvent::Layer { position, count, layer, known } = event;
    let note = if *known { " (already here)" } else { "" };
    crate::output::aside(&format!("layer {position}/{count} {}{note}\n", layer.0.short()));
}

fn report(loaded: &[LoadedImage]) -> Result<()> {
    let mut out = crate::output::output();
    for image in loaded {
        for (name, old) in &image.moved {
            let name = name.familiar();
            writeln!(
                out,
                "The image {name} already exists, renaming the old one with ID {old} to empty string"
            )?;
        }
        for name in &image.names {
            writeln!(out, "Loaded image: {}", name.familiar())?;
        }
        if image.names.is_empty() {
            writeln!(out, "Loaded image ID: {}", image.id)?;
        }
    }
    Ok(())
}
