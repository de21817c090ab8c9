//! `cargo xtask kernels`: kiln on other kernels, with cgroups of version 2 alone, in emulated machines.

mod guest;
mod packages;
mod programs;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::source_of;
use crate::demo::debian_root;
use crate::machine::{self, has, is_root, run, say, target_directory};
use packages::Kernel;
use programs::Programs;

const USAGE: &str = "usage: cargo xtask kernels [--suite NAME]... [--kernel FILE[,FILE]...]... [--tests] [--tests-of CRATE]...

Boots kernels of Debian packages in qemu, which emulates the processor, and checks kiln's usual commands there as root, as a user
with sub-identifiers and as one without. Needs root, Debian on x86-64 and some minutes for each kernel.

  --suite NAME      the kernel for cloud machines of a Debian suite, from the machine's own mirror; where no kernel is named,
                    those of bullseye, bookworm and trixie
  --kernel FILES    the kernel in these Debian packages, parted by commas
  --tests           run the tests of kiln, kiln-layer, kiln-runtime, kiln-store and kiln-sys, too: hours
  --tests-of CRATE  run the tests of one crate, too";

/// What is installed if it is missing: a program and its package.
const PACKAGES: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("busybox", "busybox-static"),
    ("mke2fs", "e2fsprogs"),
    ("xz", "xz-utils"),
];

/// What the guest's system has besides the essential packages.
const GUEST: &str = "ca-certificates,busybox-static,uidmap,kmod,git,python3-minimal,procps,mount,bsdutils";

/// Crates whose tests depend on the kernel.
const CRATES: [&str; 5] = ["kiln", "kiln-layer", "kiln-runtime", "kiln-store", "kiln-sys"];

/// Where a kernel comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Suite(String),
    Files(Vec<PathBuf>),
}

/// Runs the checks on each kernel and says which failed where.
pub(crate) fn run_all(words: &[String]) -> Result<()> {
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let (sources, tests) = parse(words)?;
    if !is_root() || !has("apt-get") || !cfg!(target_arch = "x86_64") {
        bail!("kernels are tried as root on Debian, on x86-64");
    }
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        machine::install(&missing)?;
    }
    let place = target_directory().join("kernels");
    std::fs::create_dir_all(&place)?;
    let place = place.canonicalize()?;
    let programs = Programs::prepare(&place, &tests)?;
    let system = guest_system(&place)?;
    let mut table = Vec::new();
    for source in &sources {
        let kernel = match source {
            Source::Suite(suite) => Kernel::of_suite(&place, suite, &source_of(suite)?)?,
            Source::Files(files) => Kernel::of_files(&place, files)?,
        };
        say(&format!("kernel {}", kernel.release));
        table.push((kernel.release.clone(), guest::check(&place, &kernel, &system, &programs.disk)?));
    }
    say("kernels");
    for (release, verdict) in &table {
        println!("{release}: {} checks passed, {} failed", verdict.passed, verdict.failed.len());
        for failed in &verdict.failed {
            println!("  {failed}");
        }
    }
    println!("What the guests said is in {}", place.display());
    if table.iter().any(|(_, verdict)| !verdict.failed.is_empty()) {
        bail!("some checks failed");
    }
    Ok(())
}

/// The kernels, and the crates whose tests are run.
fn parse(words: &[String]) -> Result<(Vec<Source>, Vec<String>)> {
    let (mut sources, mut tests) = (Vec::new(), Vec::new());
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == "--tests" {
            tests = CRATES.map(str::to_owned).into();
            continue;
        }
        match (word, words.next()) {
            ("--suite", Some(suite)) => sources.push(Source::Suite(suite.to_owned())),
            ("--kernel", Some(files)) => {
                sources.push(Source::Files(files.split(',').map(PathBuf::from).collect()));
            }
            ("--tests-of", Some(name)) => tests.push(name.to_owned()),
            _ => bail!("{USAGE}"),
        }
    }
    if sources.is_empty() {
        sources = ["bullseye", "bookworm", "trixie"].map(|suite| Source::Suite(suite.to_owned())).into();
    }
    Ok((sources, tests))
}

/// The disk of the guest's Debian, made once.
fn guest_system(place: &std::path::Path) -> Result<PathBuf> {
    let disk = place.join("system.ext4");
    if disk.exists() {
        return Ok(disk);
    }
    say("making the guest's Debian out of packages");
    let (archive, root) = (place.join("system.tar"), place.join("system"));
    debian_root(place, &archive, GUEST)?;
    std::fs::create_dir_all(&root)?;
    let mut extract = std::process::Command::new("tar");
    run(extract.arg("-C").arg(&root).args(["--exclude=./dev/*", "-xf"]).arg(&archive))?;
    let fresh = place.join("system.fresh");
    guest::make_disk(&root, &fresh, "6G")?;
    std::fs::remove_dir_all(&root)?;
    std::fs::remove_file(&archive)?;
    std::fs::rename(&fresh, &disk)?;
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, sources: &[Source], tests: &[&str]) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (kernels, crates) = parse(&words).unwrap();
        assert_eq!(kernels, sources, "{line}");
        assert_eq!(crates, tests, "{line}");
    }

    #[test]
    fn words_name_kernels_and_crates() {
        let suite = |name: &str| Source::Suite(name.to_owned());
        check("", &["bullseye", "bookworm", "trixie"].map(suite), &[]);
        check("--suite sid --tests-of kiln-sys", &[suite("sid")], &["kiln-sys"]);
        let files = Source::Files(["a.deb", "b.deb"].map(PathBuf::from).into());
        check("--tests --kernel a.deb,b.deb", &[files], &CRATES);
        for line in ["--suite", "--kernel", "--test", "sid"] {
            assert!(parse(&[line.to_owned()]).is_err(), "{line}");
        }
    }
}
