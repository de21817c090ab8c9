//! buildah and podman, which have no daemon and share one library.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::{Compression, Engine, Task, tag_of};
use crate::bench::archives::{self, Image};
use crate::machine;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Buildah,
    Podman,
}

/// A program with storage of its own.
#[derive(Debug)]
pub(crate) struct Containers {
    program: Program,
    place: PathBuf,
    /// podman takes no path of more than fifty bytes for it.
    runroot: PathBuf,
}

impl Drop for Containers {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.runroot);
    }
}

impl Containers {
    pub(crate) fn new(program: Program, place: &Path) -> Result<Self> {
        let place = place.join(name(program));
        // It stands in podman's database, so it must be the same in the next run.
        let identity = archives::digest(place.as_os_str().as_encoded_bytes());
        let runroot = std::env::temp_dir().join(format!("bench-{}-{}", name(program), &identity[7..15]));
        let engine = Self { program, place, runroot };
        if !machine::has(name(program)) {
            bail!("{} is not on the PATH", name(program));
        }
        std::fs::create_dir_all(&engine.place)?;
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        std::fs::write(engine.place.join("policy.json"), policy)?;
        Ok(engine)
    }

    fn base(&self) -> Command {
        let mut command = Command::new(name(self.program));
        command.arg("--root").arg(self.place.join("storage")).arg("--runroot").arg(&self.runroot);
        command.args(["--storage-driver", "overlay"]);
        if self.program == Program::Podman {
            command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
            if machine::has("runc") {
                command.args(["--runtime", "runc"]);
            }
        }
        command
    }

    fn load(&self, archive: &Path) -> Command {
        let mut command = self.base();
        match self.program {
            Program::Podman => command.args(["load", "-i"]).arg(archive),
            Program::Buildah => command
                .arg("pull")
                .arg("--signature-policy")
                .arg(self.place.join("policy.json"))
                .arg(format!("docker-archive:{}", archive.display())),
        };
        command
    }

    fn save(&self, image: &str, to: &Path) -> Command {
        let mut command = self.base();
        match self.program {
            Program::Podman => command.args(["save", "-o"]).arg(to).arg(image),
            Program::Buildah => command
                .arg("push")
                .arg("--signature-policy")
                .arg(self.place.join("policy.json"))
                .arg(image)
                .arg(format!("docker-archive:{}:{image}", to.display())),
        };
        command
    }
}

fn name(program: Program) -> &'static str {
    match program {
        Program::Buildah => "buildah",
        Program::Podman => "podman",
    }
}

impl Engine for Containers {
    fn name(&self) -> &'static str {
        name(self.program)
    }

    fn version(&self) -> Result<String> {
        Ok(machine::output(Command::new(name(self.program)).arg("--version"))?.trim().to_owned())
    }

    fn reset(&mut self, images: &[&Image]) -> Result<()> {
        machine::output(self.base().args(["rmi", "--all", "--force"]))?;
        for image in images {
            machine::output(&mut self.load(&image.archive))?;
        }
        Ok(())
    }

    fn command(&self, task: &Task) -> Option<Command> {
        let podman = self.program == Program::Podman;
        let mut command = self.base();
        match task {
            Task::Build { context, dockerfile, tag } => {
                command.args(["build", "--isolation", "chroot", "--layers", "--pull=never", "-t", tag]);
                command.arg("--signature-policy").arg(self.place.join("policy.json"));
                command.arg("-f").arg(dockerfile).arg(context);
            }
            Task::Load { archive } => command = self.load(archive),
            Task::Save { image, to, compression: Compression::None } => command = self.save(image, to),
            Task::Import { tar, name } if podman => {
                command.arg("import").arg(tar).arg(name);
            }
            Task::Run { image, words } if podman => {
                command.args(["run", "--rm", "--network", "none"]);
                // It would raise these, which is not everywhere allowed.
                command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
                // crun wants cgroup v2 for one, runc knows no container without one.
                if !machine::has("runc") {
                    command.args(["--cgroups", "disabled"]);
                }
                command.arg(image).args(words);
            }
            Task::History { image } if podman => {
                command.args(["history", image]);
            }
            Task::Inspect { image } => {
                let words: &[&str] = if podman { &["image", "inspect"] } else { &["inspect"] };
                command.args(words).arg(image);
            }
            Task::DiskUsage if podman => {
                command.args(["system", "df"]);
            }
            Task::Prune if podman => {
                command.args(["image", "prune", "--force"]);
            }
            Task::Images => {
                command.arg("images");
            }
            Task::Version => {
                command.arg("version");
            }
            _ => return None,
        }
        Some(command)
    }

    fn export(&self, build: &Task, to: &Path) -> Result<()> {
        machine::output(&mut self.save(tag_of(build), to)).map(drop)
    }

    fn daemons(&self) -> Vec<u32> {
        Vec::new()
    }

    fn store(&self) -> PathBuf {
        self.place.join("storage")
    }
}
