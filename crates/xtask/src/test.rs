//! `cargo xtask test`: everything that must be green.

use std::process::Command;

use anyhow::Result;

use crate::machine::{self, has, is_root, repository, say};

/// Packages that widen what the tests can see: independent readers, and a shell for containers.
const PACKAGES: [(&str, &str); 4] =
    [("busybox", "busybox-static"), ("skopeo", "skopeo"), ("umoci", "umoci"), ("newuidmap", "uidmap")];

/// Formatting, lints, tidiness, then the tests of every crate.
pub(crate) fn run() -> Result<()> {
    install_readers();
    say("formatting");
    machine::run(cargo().args(["fmt", "--all", "--check"]))?;
    say("lints, warnings denied");
    machine::run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    say("the house's rules");
    crate::tidy::run()?;
    say("tests");
    machine::run(cargo().args(["test", "--workspace", "--quiet"]))
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

/// Installs what is missing where that is possible; tests that lack a reader say that they are skipped.
fn install_readers() {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return;
    }
    if !is_root() || !has("apt-get") {
        println!("not installed, so some tests will say that they are skipped: {}", missing.join(", "));
        return;
    }
    say("installing what tests compare kiln with");
    let install = || -> Result<()> {
        machine::run(Command::new("apt-get").args(["update", "-qq"]))?;
        let mut command = Command::new("apt-get");
        command.args(["install", "-qq", "-y", "--no-install-recommends"]).args(&missing);
        machine::run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if let Err(error) = install() {
        println!("not installed ({error:#}): some tests will say that they are skipped");
    }
}
