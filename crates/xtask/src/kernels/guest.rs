//! Disks, and the emulated machine that boots from them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::packages::Kernel;
use crate::machine::{find, run};

const INIT: &str = include_str!("init.sh");
const GUEST: &str = include_str!("guest.sh");

/// What the guest needs before it has a disk.
const DRIVERS: [&str; 6] =
    ["virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];

/// Left out of the emulated processor: qemu 7 emulates interrupts wrongly with five levels of page tables, and the flags after
/// `cmpxchg16b`; newer kernels die of either.
const PROCESSOR: &str = "max,la57=off,cx16=off";

/// What came of the checks on a kernel.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) passed: usize,
    pub(crate) failed: Vec<String>,
}

/// Makes an ext4 image of a directory, without mounting anything.
pub(crate) fn make_disk(directory: &Path, disk: &Path, size: &str) -> Result<()> {
    if disk.exists() {
        std::fs::remove_file(disk)?;
    }
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(directory).arg(disk).arg(size))
}

/// Boots the kernel and runs all checks. What the guest writes to its console goes to a file of the kernel's name, too.
pub(crate) fn check(place: &Path, kernel: &Kernel, system: &Path, programs: &Path) -> Result<Verdict> {
    let initial = place.join("initrd");
    make_initial(&place.join("initial"), kernel, &initial)?;
    let modules = place.join("kernel.ext4");
    make_disk(&kernel.directory, &modules, "2G")?;
    let mut machine = Command::new("timeout");
    machine.args(["4h", "nice", "qemu-system-x86_64", "-accel", "tcg", "-cpu", PROCESSOR, "-m", "1536"]);
    machine.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel"]);
    machine.arg(&kernel.image).arg("-initrd").arg(&initial);
    machine.args(["-append", "console=ttyS0 quiet panic=-1"]);
    for disk in [system, programs, &modules] {
        let drive = format!("file={},format=raw,if=virtio,snapshot=on,cache=unsafe", disk.display());
        machine.args(["-drive", &drive]);
    }
    let mut running =
        machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start qemu")?;
    let console = running.stdout.take().context("qemu has no output")?;
    let mut log = std::fs::File::create(place.join(format!("{}.log", kernel.release)))?;
    let mut verdict = Verdict::default();
    let (mut user, mut has_ended) = (String::new(), false);
    for line in BufReader::new(console).split(b'\n') {
        let line = line?;
        log.write_all(&line)?;
        log.write_all(b"\n")?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        match line.split_once(' ') {
            Some(("==", who)) => user = who.to_owned(),
            Some(("ok", _)) => verdict.passed += 1,
            Some(("FAILED", check)) => verdict.failed.push(format!("{user}: {check}")),
            _ => {
                has_ended |= line == "the end";
                if !line.starts_with("    ") {
                    continue;
                }
            }
        }
        println!("{line}");
    }
    running.wait()?;
    if !has_ended {
        verdict.failed.push("the guest did not reach its end".to_owned());
    }
    Ok(verdict)
}

/// Makes the initramfs.
fn make_initial(directory: &Path, kernel: &Kernel, archive: &Path) -> Result<()> {
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    for name in ["bin", "dev", "disk", "modules", "proc", "sys"] {
        std::fs::create_dir_all(directory.join(name))?;
    }
    let busybox = find("busybox").context("busybox is not on the PATH")?;
    std::fs::copy(busybox, directory.join("bin/busybox"))?;
    std::fs::write(directory.join("init"), INIT)?;
    run(Command::new("chmod").arg("755").arg(directory.join("init")))?;
    std::fs::write(directory.join("guest.sh"), GUEST)?;
    for name in DRIVERS {
        let Some(module) = kernel.module(name) else { continue };
        let to = directory.join(format!("modules/{name}.ko"));
        if module.extension().is_some_and(|extension| extension == "xz") {
            let file = std::fs::File::create(to)?;
            run(Command::new("xz").arg("-dc").arg(module).stdout(file))?;
        } else {
            std::fs::copy(module, to)?;
        }
    }
    let mut pack = Command::new("sh");
    pack.current_dir(directory).args(["-c", "find . | busybox cpio -o -H newc 2> /dev/null"]);
    run(pack.stdout(std::fs::File::create(archive)?))
}
