//! BuildKit: a buildkitd of its own. Its figures are without an export: results stay in its cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::daemon::Daemon;
use super::{Engine, Task};
use crate::bench::archives::Image;
use crate::machine;

/// buildkitd and buildctl.
#[derive(Debug)]
pub(crate) struct Buildkit {
    daemon: Daemon,
    place: PathBuf,
    /// Name, layout and manifest's digest of the images that Dockerfiles may name.
    images: Vec<(String, PathBuf, String)>,
}

impl Buildkit {
    pub(crate) fn start(place: &Path) -> Result<Self> {
        let place = place.join("buildkit");
        std::fs::create_dir_all(&place)?;
        let program = machine::find("buildkitd").context("buildkitd is not on the PATH")?;
        let configuration = place.join("buildkitd.toml");
        let worker = "[worker.oci]\n  enabled = true\n  networkMode = \"host\"\n  snapshotter = \"overlayfs\"\n[worker.containerd]\n  enabled = false\n";
        std::fs::write(&configuration, worker)?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&configuration);
        command.arg("--root").arg(place.join("root"));
        command.arg("--addr").arg(format!("unix://{}", place.join("buildkitd.sock").display()));
        let daemon = Daemon::start(command, "buildkitd", &place)?;
        let mut buildkit = Self { daemon, place, images: Vec::new() };
        let mut ask = buildkit.client();
        ask.args(["debug", "workers"]);
        buildkit.daemon.wait_until(|| machine::output(&mut ask).is_ok())?;
        Ok(buildkit)
    }

    fn client(&self) -> Command {
        let mut command = Command::new("buildctl");
        command.arg("--addr").arg(format!("unix://{}", self.place.join("buildkitd.sock").display()));
        command
    }

    fn build(&self, context: &Path, dockerfile: &Path) -> Command {
        let mut command = self.client();
        command.args(["build", "--progress", "plain", "--frontend", "dockerfile.v0"]);
        command.arg("--local").arg(format!("context={}", context.display()));
        let directory = dockerfile.parent().unwrap_or(dockerfile);
        command.arg("--local").arg(format!("dockerfile={}", directory.display()));
        let name = dockerfile.file_name().unwrap_or_default().to_string_lossy();
        command.args(["--opt", &format!("filename={name}")]);
        for (name, layout, manifest) in &self.images {
            command.args(["--oci-layout", &format!("{name}={}", layout.display())]);
            command.args(["--opt", &format!("context:{name}=oci-layout://{name}@{manifest}")]);
        }
        command
    }
}

impl Engine for Buildkit {
    fn name(&self) -> &'static str {
        "buildkit"
    }

    fn version(&self) -> Result<String> {
        Ok(machine::output(Command::new("buildkitd").arg("--version"))?.trim().to_owned())
    }

    fn reset(&mut self, images: &[&Image]) -> Result<()> {
        machine::output(self.client().args(["prune", "--all"]))?;
        self.images = images
            .iter()
            .map(|image| (image.name.clone(), image.layout.clone(), image.manifest.clone()))
            .collect();
        Ok(())
    }

    fn command(&self, task: &Task) -> Option<Command> {
        match task {
            Task::Build { context, dockerfile, tag: _ } => Some(self.build(context, dockerfile)),
            Task::DiskUsage => {
                let mut command = self.client();
                command.arg("du");
                Some(command)
            }
            Task::Version => {
                let mut command = Command::new("buildctl");
                command.arg("--version");
                Some(command)
            }
            _ => None,
        }
    }

    fn export(&self, build: &Task, to: &Path) -> Result<()> {
        let Task::Build { context, dockerfile, tag } = build else { return Ok(()) };
        let mut command = self.build(context, dockerfile);
        command.args(["--output", &format!("type=docker,name={tag},dest={}", to.display())]);
        machine::output(&mut command).map(drop)
    }

    fn daemons(&self) -> Vec<u32> {
        vec![self.daemon.pid()]
    }

    fn store(&self) -> PathBuf {
        self.place.join("root")
    }
}
