//! umoci, which unpacks an OCI layout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::{Engine, Task};
use crate::bench::archives::Image;
use crate::machine;

/// The program and where it unpacks to.
#[derive(Debug)]
pub(crate) struct Umoci {
    bundle: PathBuf,
}

impl Umoci {
    pub(crate) fn new(place: &Path) -> Result<Self> {
        if !machine::has("umoci") {
            bail!("umoci is not on the PATH");
        }
        Ok(Self { bundle: place.join("umoci") })
    }
}

impl Engine for Umoci {
    fn name(&self) -> &'static str {
        "umoci"
    }

    fn version(&self) -> Result<String> {
        Ok(machine::output(Command::new("umoci").arg("--version"))?.trim().to_owned())
    }

    fn reset(&mut self, _images: &[&Image]) -> Result<()> {
        if self.bundle.exists() {
            std::fs::remove_dir_all(&self.bundle)?;
        }
        Ok(())
    }

    fn command(&self, task: &Task) -> Option<Command> {
        match task {
            // An archive's layout is unpacked beside it, so that what is measured is the unpacking of its layer.
            Task::Load { archive } if archive.file_name().is_some_and(|name| name == "image.tar") => {
                let layout = archive.with_file_name("layout");
                let mut command = Command::new("umoci");
                command
                    .args(["unpack", "--image"])
                    .arg(format!("{}:latest", layout.display()))
                    .arg(&self.bundle);
                Some(command)
            }
            _ => None,
        }
    }

    fn export(&self, _build: &Task, _to: &Path) -> Result<()> {
        bail!("umoci builds nothing")
    }

    fn daemons(&self) -> Vec<u32> {
        Vec::new()
    }

    fn store(&self) -> PathBuf {
        self.bundle.clone()
    }
}
