//! `save`.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::Result;
use kiln_graph::Cancel;
use kiln_store::{ArchiveForm as Form, Error, Saving};
use rustix::io::Errno;

use crate::arguments::image::{ArchiveForm, Compression, Save};
use crate::failure::{Failure, Kind};
use crate::interrupt;
use crate::session::{self, Files};

/// Writes images to an archive, a directory or standard output.
pub(crate) fn run(root: Option<&Path>, arguments: &Save) -> Result<u8> {
    let output = arguments.output.as_deref().filter(|path| path.as_os_str() != "-");
    let stdout = std::io::stdout();
    if output.is_none() && arguments.format == ArchiveForm::OciDir {
        let message = "cannot write a directory to standard output";
        return Err(Failure::new(Kind::Usage, message).hint("name it with -o").into());
    }
    if output.is_none() && rustix::termios::isatty(stdout.as_fd()) {
        return Err(Failure::new(Kind::Usage, "refusing to write an archive to a terminal")
            .hint("name a file with -o, or redirect standard output")
            .into());
    }
    if output.is_none() {
        crate::output::is_there()?;
    }
    if let Some(path) = output {
        can_be_saved_to(path, arguments.format)?;
    }
    let compression = match arguments.compression {
        Compression::None => kiln_layer::Compression::Plain,
        Compression::Gzip => kiln_layer::Compression::Gzip,
        Compression::Zstd => kiln_layer::Compression::Zstd,
    };
    let form = if arguments.format == ArchiveForm::DockerArchive { Form::Docker } else { Form::Oci };
    let store = session::open(root, Files::Touched)?;
    let cancel = Cancel::new();
    if output.is_some() {
        interrupt::cancel_on_interrupt(&cancel)?;
    }
    let lease = store.lease("save")?;
    let images = store.images_to_save(&arguments.images)?;
    let how = Saving { compression, stopped: &|| cancel.is_canceled() };
    let saved = match output {
        None => {
            let mut out = File::from(stdout.as_fd().try_clone_to_owned()?);
            store.save(&lease, &images, form, &how, &mut out)
        }
        Some(path) if arguments.format == ArchiveForm::OciDir => {
            store.save_to_directory(&lease, &images, &how, path)
        }
        Some(path) => store.save_to_file(&lease, &images, form, &how, path),
    };
    saved.map_err(|error| explain(error, output))?;
    Ok(0)
}

/// Whether an archive or a directory can get this name: it gets it when it is complete, which may take long.
fn can_be_saved_to(path: &Path, format: ArchiveForm) -> Result<()> {
    let cannot = Failure::new(Kind::Input, format!("cannot save to {}", path.display()));
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if rustix::fs::stat(parent).is_ok_and(|found| found.st_nlink == 0) {
        // The system calls that a permission that is missing.
        let message = format!("the directory {} was removed", parent.display());
        return Err(cannot.caused_by(anyhow::Error::msg(message)).into());
    }
    let hint = "--format oci-dir makes a directory, which must be empty or not there";
    Err(match (format, path.is_dir()) {
        (ArchiveForm::OciDir, true) if fs_err::read_dir(path)?.next().is_some() => {
            cannot.caused_by(Errno::NOTEMPTY)
        }
        (ArchiveForm::OciDir, false) if path.exists() => cannot.caused_by(Errno::NOTDIR),
        (ArchiveForm::DockerArchive | ArchiveForm::OciArchive, true) => {
            cannot.caused_by(Errno::ISDIR).hint(hint)
        }
        _ => return Ok(()),
    }
    .into())
}

fn explain(error: Error, output: Option<&Path>) -> Failure {
    let place = output.map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
    let cannot = Failure::new(Kind::World, format!("cannot save to {place}"));
    let told = match &error {
        Error::Stopped => cannot.status(interrupt::status()),
        Error::Output { source, .. } if output.is_some() && source.kind() == ErrorKind::StorageFull => cannot
            .hint("there is not enough room for the archive where it is to be; nothing of it was left there"),
        Error::Output { source, .. } if source.kind() == ErrorKind::StorageFull => {
            cannot.hint("there is not enough room for the archive where standard output goes")
        }
        // Of the store nothing is written, but what a lease needs, which it has.
        Error::Path(error) if output.is_some() && error.kind() == ErrorKind::ReadOnlyFilesystem => {
            cannot.hint("-o names the archive; where it is to be nothing can be written")
        }
        Error::Damaged { .. } => cannot.hint(
            "`kiln system check` tells what else is damaged, and how to repair it; nothing in the archive can be relied on",
        ),
        _ => cannot,
    };
    told.caused_by(error)
}
