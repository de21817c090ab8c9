//! Kernels out of Debian packages, without installing them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::PrivateApt;
use crate::machine::{run, say};

/// Parts of a kernel's modules that a guest without a network needs.
const KEPT: [&str; 6] = ["arch", "crypto", "drivers/block", "drivers/virtio", "fs", "lib"];

/// A kernel whose packages are unpacked.
pub(crate) struct Kernel {
    /// Its release, as `uname -r` tells it.
    pub(crate) release: String,
    /// What is booted.
    pub(crate) image: PathBuf,
    /// The unpacked packages.
    pub(crate) directory: PathBuf,
    /// Where its modules are.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The kernel that a suite has for machines in clouds: small, with all that containers need.
    pub(crate) fn of_suite(place: &Path, suite: &str, source: &str) -> Result<Self> {
        say(&format!("looking for the kernel of {suite}"));
        let directory = place.join(suite);
        let apt = PrivateApt::new(&directory.join("apt"), source)?;
        let planned = apt.plan(&["linux-image-cloud-amd64"])?;
        let wanted: Vec<String> = planned.into_iter().filter(|name| name.ends_with("-cloud-amd64")).collect();
        let files = directory.join("packages");
        // What an earlier run downloaded may be of an older kernel.
        if files.exists() {
            std::fs::remove_dir_all(&files)?;
        }
        std::fs::create_dir_all(&files)?;
        apt.download(&wanted, &files)?;
        let files = std::fs::read_dir(&files)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        Self::of_files(&directory, &files)
    }

    /// The kernel in these packages.
    pub(crate) fn of_files(place: &Path, files: &[PathBuf]) -> Result<Self> {
        let directory = place.join("unpacked");
        if directory.exists() {
            std::fs::remove_dir_all(&directory)?;
        }
        for file in files {
            run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(&directory))?;
        }
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .filter_map(|name| std::fs::read_dir(directory.join(name)).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.join("kernel").is_dir())
            .context("the packages have no kernel modules")?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let images = [directory.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        let Some(image) = images.into_iter().find(|path| path.is_file()) else {
            bail!("the packages have no kernel image of {release}");
        };
        let kernel = Self { release, image, directory, modules };
        kernel.drop_what_is_not_needed()?;
        Ok(kernel)
    }

    /// All modules together would keep the guest busy for minutes.
    fn drop_what_is_not_needed(&self) -> Result<()> {
        let all = self.modules.join("kernel");
        let kept = self.modules.join("kept");
        for part in KEPT.iter().filter(|part| all.join(part).is_dir()) {
            let to = kept.join(part);
            std::fs::create_dir_all(to.parent().unwrap_or(&kept))?;
            std::fs::rename(all.join(part), to)?;
        }
        std::fs::remove_dir_all(&all)?;
        std::fs::rename(kept, all).context("keep modules")
    }

    /// A module's file, compressed or not, unless it is built in.
    pub(crate) fn module(&self, name: &str) -> Option<PathBuf> {
        let mut pending = vec![self.modules.join("kernel/drivers")];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(directory).ok()?.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    pending.push(path);
                } else if path.file_name().is_some_and(|file| {
                    [format!("{name}.ko"), format!("{name}.ko.xz")]
                        .iter()
                        .any(|wanted| file == wanted.as_str())
                }) {
                    return Some(path);
                }
            }
        }
        None
    }
}
