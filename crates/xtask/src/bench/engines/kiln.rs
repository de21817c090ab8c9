//! kiln, the program that was built from this tree.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Engine, Task, tag_of};
use crate::bench::archives::Image;
use crate::machine;

/// The program and its store.
#[derive(Debug)]
pub(crate) struct Kiln {
    program: PathBuf,
    root: PathBuf,
}

impl Kiln {
    pub(crate) fn new(program: PathBuf, place: &Path) -> Self {
        Self { program, root: place.join("kiln") }
    }

    fn kiln(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        command
    }
}

impl Engine for Kiln {
    fn name(&self) -> &'static str {
        "kiln"
    }

    fn version(&self) -> Result<String> {
        Ok(machine::output(Command::new(&self.program).arg("--version"))?.trim().to_owned())
    }

    fn reset(&mut self, images: &[&Image]) -> Result<()> {
        if self.root.exists() {
            std::fs::remove_dir_all(&self.root)?;
        }
        for image in images {
            machine::output(self.kiln().arg("import").arg(&image.rootfs).arg(&image.name))?;
        }
        Ok(())
    }

    fn command(&self, task: &Task) -> Option<Command> {
        let mut command = self.kiln();
        match task {
            Task::Build { context, dockerfile, tag } => command
                .args(["build", "--progress", "plain", "-t", tag])
                .arg("-f")
                .arg(dockerfile)
                .arg(context),
            Task::Load { archive } => command.args(["load", "-i"]).arg(archive),
            Task::Save { image, to } => command.args(["save", "-o"]).arg(to).arg(image),
            Task::Import { tar, name } => command.arg("import").arg(tar).arg(name),
            Task::Run { image, words } => command.args(["run", "--rm", image]).args(words),
            Task::Images => command.arg("images"),
            Task::History { image } => command.args(["history", image]),
            Task::Inspect { image } => command.args(["image", "inspect", image]),
            Task::DiskUsage => command.args(["system", "df"]),
            Task::Prune => command.args(["image", "prune", "--force"]),
            Task::Version => command.arg("version"),
        };
        Some(command)
    }

    fn export(&self, build: &Task, to: &Path) -> Result<()> {
        machine::output(self.kiln().args(["save", "-o"]).arg(to).arg(tag_of(build))).map(drop)
    }

    fn daemons(&self) -> Vec<u32> {
        Vec::new()
    }

    fn store(&self) -> PathBuf {
        self.root.clone()
    }
}
