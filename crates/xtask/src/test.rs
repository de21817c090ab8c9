//! `cargo xtask test`: everything that must be green.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machine::{self, cargo, has, is_root, repository, say};

/// Packages that widen what the tests can see: independent readers, and a shell for containers.
const PACKAGES: [(&str, &str); 4] =
    [("busybox", "busybox-static"), ("skopeo", "skopeo"), ("umoci", "umoci"), ("newuidmap", "uidmap")];

/// Formatting, lints, tidiness, then the tests of every crate.
pub(crate) fn run() -> Result<()> {
    install_readers();
    complete_toolchain()?;
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
    let mut skipped = Skipped::default();
    // The same random inputs each time: a failure comes back when it is looked at. Other ones are for runs by hand.
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--quiet"]).env("PROPTEST_RNG_SEED", "20260101");
    listen(&mut tests, &mut skipped)?;
    compare_corpus(&mut skipped)?;
    say("skipped");
    print!("{}", skipped.table());
    Ok(())
}

/// rustup's smallest profile has neither rustfmt nor clippy.
fn complete_toolchain() -> Result<()> {
    let lacks =
        |tool: &str| !cargo().args([tool, "--version"]).output().is_ok_and(|told| told.status.success());
    if !["fmt", "clippy"].into_iter().any(lacks) {
        return Ok(());
    }
    if !has("rustup") {
        bail!("cargo fmt and cargo clippy are needed: install rustfmt and clippy");
    }
    machine::run(
        Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]).current_dir(repository()),
    )
}

/// Builds the corpus and compares it with BuildKit's answers. Needs root, python3 and busybox.
fn compare_corpus(skipped: &mut Skipped) -> Result<()> {
    say("Dockerfiles with BuildKit's answers");
    if !is_root() || !has("python3") || !has("busybox") {
        let line = "SKIPPED: the corpus needs root, python3 and busybox";
        println!("{line}");
        skipped.hear(line);
        return Ok(());
    }
    machine::run(cargo().args(["build", "--quiet", "--package", "kiln"]))?;
    let mut compare = Command::new(repository().join("corpus/compare"));
    compare.args(["--quiet", "--jobs", "2"]).env("KILN", machine::target_directory().join("debug/kiln"));
    machine::run(&mut compare)
}

/// Why tests were skipped, and how often.
#[derive(Debug, Default)]
struct Skipped(BTreeMap<String, usize>);

impl Skipped {
    /// A line of what the tests say: `SKIPPED [test]: reason` (tests/skipped.rs).
    fn hear(&mut self, line: &str) {
        let said = line.strip_prefix("SKIPPED").filter(|rest| rest.starts_with([':', ' ']));
        if let Some((_, reason)) = said.and_then(|rest| rest.split_once(": ")) {
            *self.0.entry(reason.trim().to_owned()).or_default() += 1;
        }
    }

    fn table(&self) -> String {
        if self.0.is_empty() {
            return "nothing\n".to_owned();
        }
        self.0.iter().map(|(reason, count)| format!("{count:>4}  {reason}\n")).collect()
    }
}

/// Runs a command, passes on what it says as it comes, and hears what is skipped.
fn listen(command: &mut Command, skipped: &mut Skipped) -> Result<()> {
    println!("$ {}", machine::line(command));
    hear(command, skipped, std::io::stdout(), std::io::stderr())
}

fn hear(
    command: &mut Command,
    skipped: &mut Skipped,
    to: impl Write + Send,
    errors_to: impl Write + Send,
) -> Result<()> {
    let shown = machine::line(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let texts = std::thread::scope(|scope| {
        let output = scope.spawn(|| pass_on(output, to));
        let errors = scope.spawn(|| pass_on(errors, errors_to));
        [output, errors].map(|thread| thread.join())
    });
    let status = child.wait()?;
    for text in texts {
        let Ok(text) = text else { bail!("what {shown} says could not be read") };
        String::from_utf8_lossy(&text?).lines().for_each(|line| skipped.hear(line));
    }
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

fn pass_on(from: Option<impl Read>, mut to: impl Write) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let Some(mut from) = from else { return Ok(text) };
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(text);
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
        text.extend_from_slice(&buffer[..count]);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_summed_up() {
        let mut skipped = Skipped::default();
        assert_eq!(skipped.table(), "nothing\n");
        let script = "echo ..; echo SKIPPED a::b: needs root >&2; echo SKIPPED: needs git; echo SKIPPED c: needs root: really; \
                      echo SKIPPED d: needs root; echo SKIPPEDLY: no; echo test SKIPPED: no";
        // Into nothing: this test's own output is listened to.
        let mut listen =
            |command: &mut Command| hear(command, &mut skipped, std::io::sink(), std::io::sink());
        listen(Command::new("sh").args(["-c", script])).unwrap();
        assert!(listen(Command::new("false").arg("now")).is_err());
        assert_eq!(skipped.table(), "   1  needs git\n   2  needs root\n   1  needs root: really\n");
    }
}
