//! The disk of what is checked: kiln, an image, a build context, what is expected of them, and tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::machine::{cargo, output, repository, run, say, target_directory};

const TOUR: &str = include_str!("tour.sh");
const DOCKERFILE: &str = include_str!("Dockerfile");

/// Programs of the base image.
const PROGRAMS: [&str; 21] = [
    "[", "cat", "chmod", "chown", "cp", "echo", "id", "ln", "ls", "mkdir", "mkfifo", "mount", "mv", "rm",
    "sh", "stat", "stty", "touch", "true", "tty", "wc",
];

/// A disk with all that the guest needs.
pub(crate) struct Programs {
    pub(crate) disk: PathBuf,
}

impl Programs {
    /// Builds everything, and learns from this machine's kernel what image has to come out. The tests of these
    /// crates are run after the tour.
    pub(crate) fn prepare(place: &Path, tests: &[String]) -> Result<Self> {
        say("building kiln (release)");
        run(cargo().args(["build", "--release", "--quiet", "--package", "kiln"]))?;
        let kiln = target_directory().join("release/kiln");
        let files = place.join("programs");
        for directory in [&files, &place.join("here")] {
            if directory.exists() {
                std::fs::remove_dir_all(directory)?;
            }
        }
        std::fs::create_dir_all(files.join("context/directory"))?;
        std::fs::copy(&kiln, files.join("kiln"))?;
        std::fs::write(files.join("tour.sh"), TOUR)?;
        std::fs::write(files.join("context/Dockerfile"), DOCKERFILE)?;
        std::fs::write(files.join("context/file"), "f\n")?;
        std::fs::write(files.join("context/directory/g"), "g\n")?;
        let here = place.join("here");
        std::fs::create_dir_all(here.join("tour"))?;
        base_image(&kiln, &here, &files.join("base.image"))?;
        expected_id(&kiln, &here, &files)?;
        if !tests.is_empty() {
            add_tests(&files, &kiln, tests)?;
        }
        let disk = place.join("programs.ext4");
        super::guest::make_disk(&files, &disk, "4G")?;
        Ok(Self { disk })
    }
}

/// busybox and more files than a layer may have that is unpacked for being small.
fn base_image(kiln: &Path, here: &Path, image: &Path) -> Result<()> {
    let tree = here.join("tree");
    for name in ["bin", "etc", "tmp"] {
        std::fs::create_dir_all(tree.join(name))?;
    }
    let busybox = crate::machine::find("busybox").context("busybox is not on the PATH")?;
    std::fs::copy(busybox, tree.join("bin/busybox"))?;
    for name in PROGRAMS {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(name))?;
    }
    std::fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
    for directory in 1..=60 {
        let directory = tree.join(format!("big/d{directory}"));
        std::fs::create_dir_all(&directory)?;
        for file in 1..=40 {
            std::fs::write(directory.join(format!("f{file}")), format!("{file}\n"))?;
        }
    }
    let archive = here.join("base.tar");
    run(Command::new("tar").arg("-C").arg(&tree).args(["--sort=name", "-cf"]).arg(&archive).arg("."))?;
    let store = here.join("store");
    let command = |name: &str| {
        let mut command = Command::new(kiln);
        command.arg("--root").arg(&store).arg(name);
        command
    };
    run(command("import").arg(&archive).arg("base"))?;
    run(command("save").arg("-o").arg(image).arg("base"))
}

/// The tour on this machine's kernel. What it builds, all others must build.
fn expected_id(kiln: &Path, here: &Path, files: &Path) -> Result<()> {
    say("the tour on this machine's kernel");
    let mut tour = Command::new("sh");
    tour.current_dir(here.join("tour")).arg(files.join("tour.sh")).arg(kiln).arg(files);
    let said = output(&mut tour)?;
    print!("{said}");
    let id = std::fs::read_to_string(here.join("tour/first")).context("nothing was built here")?;
    if said.lines().any(|line| line.starts_with("FAILED")) {
        bail!("the tour fails on this machine's own kernel");
    }
    std::fs::write(files.join("expected"), id).context("note the expected image")
}

/// Programs of tests, the repository's files, and a list of both by the paths that the tests were built with.
fn add_tests(files: &Path, kiln: &Path, crates: &[String]) -> Result<()> {
    say("building the tests");
    let mut build = cargo();
    build.args(["test", "--no-run", "--quiet", "--message-format=json"]);
    build.args(crates.iter().flat_map(|name| ["--package", name]));
    let mut list = String::new();
    for line in output(&mut build)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let (Some(program), Some(manifest)) =
            (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        if message["profile"]["test"] != true {
            continue;
        }
        let directory = Path::new(manifest).parent().context("a manifest has a directory")?;
        let name = message["target"]["name"].as_str().unwrap_or("unnamed");
        place_file(files, Path::new(program))?;
        list.push_str(&format!("{} {program} {name}\n", directory.display()));
    }
    // What the tests call kiln is built without optimisation; emulated, the other one is fast enough.
    let unoptimised = target_directory().join("debug/kiln");
    let inside = files.join("tree").join(unoptimised.strip_prefix("/")?);
    std::fs::create_dir_all(inside.parent().context("it has a directory")?)?;
    std::fs::copy(kiln, inside)?;
    let inside = files.join("tree").join(repository().strip_prefix("/")?);
    std::fs::create_dir_all(&inside)?;
    let mut list_files = Command::new("git");
    let mut listed =
        list_files.current_dir(repository()).args(["ls-files", "-z"]).stdout(Stdio::piped()).spawn()?;
    let names = listed.stdout.take().context("git has no output")?;
    let mut pack = Command::new("tar");
    let pack = pack.current_dir(repository()).args(["--null", "--files-from=-", "-cf", "-"]);
    let mut packed = pack.stdin(names).stdout(Stdio::piped()).spawn()?;
    let archive = packed.stdout.take().context("tar has no output")?;
    let unpacked = Command::new("tar").arg("-C").arg(&inside).arg("-xf-").stdin(archive).status()?;
    if !listed.wait()?.success() || !packed.wait()?.success() || !unpacked.success() {
        bail!("cannot copy the repository's files");
    }
    std::fs::write(files.join("tests"), list).context("list the tests")
}

fn place_file(files: &Path, path: &Path) -> Result<()> {
    let inside = files.join("tree").join(path.strip_prefix("/")?);
    std::fs::create_dir_all(inside.parent().context("it has a directory")?)?;
    run(Command::new("strip").args(["--strip-debug", "-o"]).arg(inside).arg(path))
}
