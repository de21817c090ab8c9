//! `cargo xtask test`: everything that must be green.

use std::process::Command;

use anyhow::Result;

use crate::machine::{self, cargo, has, is_root, repository, say};

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
    // The same random inputs each time: a failure comes back when it is looked at. Other ones are for runs by hand.
    machine::run(cargo().args(["test", "--workspace", "--quiet"]).env("PROPTEST_RNG_SEED", "20260101"))?;
    compare_corpus()
}

/// Builds the corpus and compares it with BuildKit's answers. Needs root, python3 and busybox.
fn compare_corpus() -> Result<()> {
    say("Dockerfiles with BuildKit's answers");
    if !is_root() || !has("python3") || !has("busybox") {
        println!("SKIPPED: the corpus needs root, python3 and busybox");
        return Ok(());
    }
    machine::run(cargo().args(["build", "--quiet", "--package", "kiln"]))?;
    let mut compare = Command::new(repository().join("corpus/compare"));
    compare.args(["--quiet", "--jobs", "2"]).env("KILN", machine::target_directory().join("debug/kiln"));
    machine::run(&mut compare)
}

/// Installs what is missing where that is possible; tests that lack a reader say that they are skipped.
fn install_readers() {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return;
    }
    if let Err(error) = machine::install(&missing) {
        println!("not installed ({error:#}): some tests will say that they are skipped");
    }
}
