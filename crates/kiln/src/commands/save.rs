//! `save`.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use kiln_store::ArchiveForm as Form;

use crate::arguments::image::{ArchiveForm, Compression, Save};
use crate::failure::{Failure, Kind};
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
    let compression = match arguments.compression {
        Compression::None => kiln_layer::Compression::Plain,
        Compression::Gzip => kiln_layer::Compression::Gzip,
        Compression::Zstd => kiln_layer::Compression::Zstd,
    };
    let form = if arguments.format == ArchiveForm::DockerArchive { Form::Docker } else { Form::Oci };
    let store = session::open(root, Files::Touched)?;
    let lease = store.lease("save")?;
    let images = store.images_to_save(&arguments.images)?;
    match output {
        None => {
            let mut out = File::from(stdout.as_fd().try_clone_to_owned()?);
            store.save(&lease, &images, form, compression, &mut out).context("cannot save")
        }
        Some(path) if arguments.format == ArchiveForm::OciDir => store
            .save_to_directory(&lease, &images, compression, path)
            .with_context(|| format!("cannot save to {}", path.display())),
        Some(path) => store
            .save_to_file(&lease, &images, form, compression, path)
            .with_context(|| format!("cannot save to {}", path.display())),
    }?;
    Ok(0)
}
