//! kiln, the program that was built from this tree.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Compression, Engine, Task, tag_of};
use crate::bench::archives::Image;
use crate::machine;

/// The program and its store.
#[derive(Debug)]
pub(crate) struct Kiln {
    program: PathBuf,
    root: PathBuf,
    /// Whose it is, if not the caller's.
    user: Option<User>,
}

/// An ordinary user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    home: String,
    uid: u32,
    gid: u32,
}

impl User {
    /// A user by name, as passwd has it.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let passwd = std::fs::read_to_string("/etc/passwd")?;
        Self::read(&passwd, name)
            .with_context(|| format!("{name} is no user of this machine: `useradd -m {name}` makes one"))
    }

    fn read(passwd: &str, name: &str) -> Option<Self> {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        Some(Self { name: name.to_owned(), home: (*fields.get(5)?).to_owned(), uid, gid })
    }
}

impl Kiln {
    pub(crate) fn new(program: PathBuf, place: &Path, user: Option<User>) -> Result<Self> {
        let place = match &user {
            Some(user) => {
                let place = place.join(format!("of-{}", user.name));
                std::fs::create_dir_all(&place)?;
                std::os::unix::fs::chown(&place, Some(user.uid), Some(user.gid))?;
                place
            }
            None => place.to_path_buf(),
        };
        Ok(Self { program, root: place.join("kiln"), user })
    }

    fn kiln(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        if let Some(user) = &self.user {
            command
                .uid(user.uid)
                .gid(user.gid)
                .env("USER", &user.name)
                .env("HOME", &user.home)
                .current_dir("/");
        }
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
            Task::Save { image, to, compression } => {
                let named = match compression {
                    Compression::None => "none",
                    Compression::Gzip => "gzip",
                    Compression::Zstd => "zstd",
                };
                command.args(["save", "--compression", named, "-o"]).arg(to).arg(image)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nann2:x:1:2::/a:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n";
        let ann = User::read(passwd, "ann").unwrap();
        assert_eq!((ann.uid, ann.gid, ann.home.as_str()), (1000, 1001, "/home/ann"));
        assert_eq!(User::read(passwd, "an"), None);
    }
}
