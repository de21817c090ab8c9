//! docker: an engine of its own, with its own containerd, that shares nothing with the machine's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::daemon::Daemon;
use super::{Compression, Engine, Task, tag_of};
use crate::bench::archives::Image;
use crate::machine;

/// dockerd, its containerd and the client. The fields' order is the order in which they are stopped.
#[derive(Debug)]
pub(crate) struct Docker {
    dockerd: Daemon,
    containerd: Daemon,
    place: PathBuf,
    /// Which docker can from 23 on.
    reads_zstd: bool,
}

impl Docker {
    pub(crate) fn start(place: &Path) -> Result<Self> {
        let place = place.join("docker");
        std::fs::create_dir_all(&place)?;
        // The address of a socket is short, and the bench's directory may be deep.
        let sockets = sockets(&place)?;
        let configuration = place.join("containerd.toml");
        std::fs::write(&configuration, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")?;
        let mut command = Command::new(program("containerd")?);
        command.arg("--config").arg(&configuration);
        command
            .arg("--root")
            .arg(place.join("containerd"))
            .arg("--state")
            .arg(place.join("containerd-state"));
        command.arg("--address").arg(sockets.join("containerd.sock"));
        let mut containerd = Daemon::start(command, "containerd", &place)?;
        containerd.wait_until(|| sockets.join("containerd.sock").exists())?;

        let settings = place.join("daemon.json");
        std::fs::write(&settings, "{}")?;
        let mut command = Command::new(program("dockerd")?);
        command.arg("--config-file").arg(&settings);
        command.arg("--data-root").arg(place.join("data")).arg("--exec-root").arg(place.join("exec"));
        command.arg("--pidfile").arg(place.join("dockerd.pid"));
        command.arg("--host").arg(format!("unix://{}", sockets.join("docker.sock").display()));
        command.arg("--containerd").arg(sockets.join("containerd.sock"));
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"]);
        let dockerd = Daemon::start(command, "dockerd", &place)?;
        let mut docker = Self { dockerd, containerd, place, reads_zstd: false };
        let mut ask = docker.client();
        ask.arg("version");
        docker.dockerd.wait_until(|| machine::output(&mut ask).is_ok())?;
        let version = docker.ask(&["version", "--format", "{{.Server.Version}}"])?;
        docker.reads_zstd = version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major >= 23);
        Ok(docker)
    }

    fn client(&self) -> Command {
        let mut command = Command::new(program("docker").unwrap_or_else(|_| "docker".into()));
        command.env("DOCKER_HOST", format!("unix://{}", self.place.join("run/docker.sock").display()));
        command.env("DOCKER_BUILDKIT", "1").env("DOCKER_CONFIG", self.place.join("client"));
        command
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        machine::output(self.client().args(words))
    }
}

fn sockets(place: &Path) -> Result<PathBuf> {
    let sockets = place.join("run");
    std::fs::create_dir_all(&sockets)?;
    Ok(sockets)
}

/// Debian's own where it is, since client and daemon must be of one make; else the PATH's.
fn program(name: &str) -> Result<PathBuf> {
    let own = ["/usr/bin", "/usr/sbin"].iter().map(|directory| Path::new(directory).join(name));
    own.into_iter()
        .find(|file| file.is_file())
        .or_else(|| machine::find(name))
        .with_context(|| format!("{name} is not on the PATH"))
}

impl Engine for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn version(&self) -> Result<String> {
        Ok(format!("docker {}", self.ask(&["version", "--format", "{{.Server.Version}}"])?.trim()))
    }

    fn reset(&mut self, images: &[&Image]) -> Result<()> {
        self.ask(&["container", "prune", "--force"])?;
        let all = self.ask(&["images", "--all", "--quiet", "--no-trunc"])?;
        let mut ids: Vec<&str> = all.lines().collect();
        ids.sort_unstable();
        ids.dedup();
        for some in ids.chunks(200) {
            // An image that went with another is no error.
            let _ = self.client().args(["rmi", "--force"]).args(some).output()?;
        }
        self.ask(&["builder", "prune", "--all", "--force"])?;
        for image in images {
            machine::output(self.client().arg("import").arg(&image.rootfs).arg(&image.name))?;
        }
        Ok(())
    }

    fn command(&self, task: &Task) -> Option<Command> {
        let mut command = self.client();
        match task {
            Task::Build { context, dockerfile, tag } => {
                command.args(["build", "--network", "host", "--progress", "plain", "-t", tag]);
                command.arg("-f").arg(dockerfile).arg(context)
            }
            Task::Load { archive: file } | Task::Import { tar: file, .. }
                if !self.reads_zstd && file.to_string_lossy().contains("zst") =>
            {
                return None;
            }
            Task::Load { archive } => command.args(["load", "-i"]).arg(archive),
            Task::Save { image, to, compression: Compression::None } => {
                command.args(["save", "-o"]).arg(to).arg(image)
            }
            // It saves uncompressed alone.
            Task::Save { .. } => return None,
            Task::Import { tar, name } => command.arg("import").arg(tar).arg(name),
            Task::Run { image, words } => {
                command.args(["run", "--rm", "--network", "none", image]).args(words)
            }
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
        machine::output(self.client().args(["save", "-o"]).arg(to).arg(tag_of(build))).map(drop)
    }

    fn daemons(&self) -> Vec<u32> {
        vec![self.dockerd.pid(), self.containerd.pid()]
    }

    fn store(&self) -> PathBuf {
        self.place.join("data")
    }
}
