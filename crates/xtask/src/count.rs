//! `cargo xtask count`: instructions of small, fixed pieces of work, counted by callgrind and compared with the figures
//! in `instructions.json`. Unlike time, they repeat on a busy machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::machine::{self, has, is_root, repository, say, target_directory};

/// How much worse than the figure is still the same.
const TOLERANCE: f64 = 0.03;

/// The file that the figures are kept in.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Figures {
    /// Another compiler makes other code.
    compiler: String,
    architecture: String,
    instructions: BTreeMap<String, u64>,
}

/// What a comparison says of one piece of work.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Within the tolerance, by this part.
    Same(f64),
    /// Better by more than the tolerance.
    Better(f64),
    Worse(f64),
    /// There is no figure yet.
    New,
}

/// What to do with the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Compare,
    Accept,
}

/// Counts, then compares or accepts.
pub(crate) fn run(purpose: Purpose) -> Result<()> {
    if !has("valgrind") && (!is_root() || machine::install(&["valgrind"]).is_err()) {
        println!("SKIPPED: instructions are not counted, since valgrind is not on the PATH");
        return Ok(());
    }
    let figures = Figures {
        compiler: machine::output(Command::new("rustc").arg("--version"))?.trim().to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        instructions: count()?,
    };
    let path = repository().join("crates/xtask/instructions.json");
    if purpose == Purpose::Accept {
        std::fs::write(&path, serde_json::to_string_pretty(&figures)? + "\n")?;
        println!("accepted: {}", path.display());
        for (name, count) in &figures.instructions {
            println!("{name:<12} {count:>14}");
        }
        return Ok(());
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}: `cargo xtask count --accept` makes it", path.display()))?;
    report(&serde_json::from_str(&text)?, &figures)
}

fn report(accepted: &Figures, found: &Figures) -> Result<()> {
    if accepted.architecture != found.architecture {
        println!(
            "SKIPPED: the figures are those of {}, not of {}",
            accepted.architecture, found.architecture
        );
        return Ok(());
    }
    if accepted.compiler != found.compiler {
        println!("note: the figures were made by {}, this is {}", accepted.compiler, found.compiler);
    }
    let mut worse = Vec::new();
    for (name, count) in &found.instructions {
        let verdict = compare(accepted.instructions.get(name).copied(), *count);
        let told = match verdict {
            Verdict::Same(part) => format!("{:+.1} %", part * 100.0),
            Verdict::Better(part) => {
                format!("{:+.1} %, better: `cargo xtask count --accept` keeps it so", part * 100.0)
            }
            Verdict::Worse(part) => {
                worse.push(format!("{name} by {:.1} %", part * 100.0));
                format!("{:+.1} %, WORSE", part * 100.0)
            }
            Verdict::New => {
                "NOT COMPARED: there is no figure yet; `cargo xtask count --accept` writes it".to_owned()
            }
        };
        println!("{name:<12} {count:>14} instructions  {told}");
    }
    for name in accepted.instructions.keys().filter(|name| !found.instructions.contains_key(*name)) {
        println!("{name:<12} NOT COMPARED: it was not counted");
    }
    if worse.is_empty() {
        return Ok(());
    }
    bail!(
        "more than {} % worse than crates/xtask/instructions.json: {}; if that is the price of something, say so in the commit and \
         run `cargo xtask count --accept`",
        TOLERANCE * 100.0,
        worse.join(", ")
    )
}

#[expect(clippy::cast_precision_loss, reason = "a part of a hundred")]
fn compare(accepted: Option<u64>, found: u64) -> Verdict {
    let Some(accepted) = accepted else { return Verdict::New };
    let part = found as f64 / accepted as f64 - 1.0;
    match part {
        part if part > TOLERANCE => Verdict::Worse(part),
        part if part < -TOLERANCE => Verdict::Better(part),
        part => Verdict::Same(part),
    }
}

/// Builds what is counted and runs each piece.
fn count() -> Result<BTreeMap<String, u64>> {
    say("building what is counted (release)");
    let release = target_directory().join("release");
    for (package, target) in [
        ("kiln", ["--bin", "kiln"]),
        ("kiln-layer", ["--example", "count_layer"]),
        ("kiln-graph", ["--example", "count_keys"]),
    ] {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(repository()).args(["build", "--release", "--quiet", "--package", package]);
        machine::run(cargo.args(target))?;
    }
    let place = target_directory().join("count");
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place)?;
    let layers = release.join("examples/count_layer");
    let layer = place.join("layer.tar");
    machine::run(Command::new(&layers).arg("make").arg(&layer))?;

    say("counting instructions");
    let mut counts = BTreeMap::new();
    let mut add = |name: &str, command: &Command| -> Result<()> {
        match instructions(command).with_context(|| name.to_owned())? {
            Some(count) => drop(counts.insert(name.to_owned(), count)),
            None => println!("SKIPPED: {name}, since this valgrind does not know openat2"),
        }
        Ok(())
    };
    add("tar-walk", Command::new(&layers).arg("walk").arg(&layer))?;
    add("index", Command::new(&layers).arg("index"))?;
    add("keys", &Command::new(release.join("examples/count_keys")))?;
    let kiln = release.join("kiln");
    let steps = build(&kiln, &place, &steps(&place)?);
    add("steps", &steps)?;
    add("steps-again", &steps)?;
    // Contents are hashed, and a layer is written from them; then they are only looked at.
    let files = build(&kiln, &place, &files(&place)?);
    add("files", &files)?;
    add("files-again", &files)?;
    Ok(counts)
}

fn build(kiln: &Path, place: &Path, context: &Path) -> Command {
    let mut command = Command::new(kiln);
    command.arg("--root").arg(place.join("store")).args(["build", "--progress", "plain", "-t", "counted"]);
    command.arg(context);
    command
}

/// A Dockerfile of four hundred steps that need no files.
fn steps(place: &Path) -> Result<PathBuf> {
    let context = place.join("steps");
    std::fs::create_dir_all(&context)?;
    let mut text = "FROM scratch\n".to_owned();
    for number in 0..200 {
        text.push_str(&format!(
            "ENV NAME_{number}=value-{number}\nLABEL label.{number}=${{NAME_{number}}}\n"
        ));
    }
    std::fs::write(context.join("Dockerfile"), text)?;
    Ok(context)
}

/// A COPY of a thousand small files.
fn files(place: &Path) -> Result<PathBuf> {
    let context = place.join("files");
    for number in 0..1000 {
        let directory = context.join(format!("src/d{:02}", number % 25));
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(format!("file-{number:04}")), format!("{number}\n").repeat(200))?;
    }
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY src /src\n")?;
    // Files that were written a moment ago are not trusted to stay as they are.
    std::thread::sleep(Duration::from_millis(2500));
    Ok(context)
}

/// Instructions of a command, its threads together; `None` if valgrind cannot run it.
fn instructions(command: &Command) -> Result<Option<u64>> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(PathBuf::from(command.get_program())).args(command.get_args());
    let output = valgrind.output().context("cannot start valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        if text.contains("unhandled") && text.contains("syscall") {
            return Ok(None);
        }
        bail!("{} ended with {}: {text}", machine::line(command), output.status);
    }
    // ==123== Collected : 456
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    let number = collected.and_then(|(_, number)| number.trim().parse().ok());
    number.map(Some).with_context(|| format!("callgrind does not say what it collected: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(count: u64) -> Figures {
        Figures {
            compiler: "rustc".to_owned(),
            architecture: "any".to_owned(),
            instructions: BTreeMap::from([("walk".to_owned(), count)]),
        }
    }

    #[test]
    fn three_percent_are_tolerated() {
        assert_eq!(compare(Some(1000), 1000), Verdict::Same(0.0));
        assert!(matches!(compare(Some(1000), 1029), Verdict::Same(_)));
        assert!(matches!(compare(Some(1000), 1031), Verdict::Worse(_)));
        assert!(matches!(compare(Some(1000), 960), Verdict::Better(_)));
        assert_eq!(compare(None, 1), Verdict::New);
    }

    #[test]
    fn a_regression_says_by_how_much_and_how_to_accept_it() {
        assert!(report(&figures(1000), &figures(1020)).is_ok());
        let refusal = report(&figures(1000), &figures(1100)).unwrap_err().to_string();
        assert!(refusal.contains("walk by 10.0 %") && refusal.contains("--accept"), "{refusal}");
    }
}
