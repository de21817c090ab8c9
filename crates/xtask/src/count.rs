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
    let compiler = machine::output(Command::new("rustc").arg("--version"))?.trim().to_owned();
    let path = repository().join("crates/xtask/instructions.json");
    if purpose == Purpose::Accept {
        let figures = Figures { compiler, architecture: architecture(), instructions: count(None)? };
        std::fs::write(&path, serde_json::to_string_pretty(&figures)? + "\n")?;
        println!("accepted: {}", path.display());
        for (name, count) in &figures.instructions {
            println!("{name:<12} {count:>14}");
        }
        return Ok(());
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}: `cargo xtask count --accept` makes it", path.display()))?;
    let accepted: Figures = serde_json::from_str(&text)?;
    // Other code is not comparable.
    for (what, theirs, ours) in
        [("compiler", &accepted.compiler, &compiler), ("processor", &accepted.architecture, &architecture())]
    {
        if theirs != ours {
            println!(
                "SKIPPED: instructions are not counted, since the figures are of another {what}: {theirs}, this is {ours}; \
                 `cargo xtask count --accept` takes this one's"
            );
            return Ok(());
        }
    }
    let instructions = count(Some(&accepted))?;
    report(&accepted.instructions, &instructions)
}

/// What decides which code is run: valgrind shows the processor's vector instructions, and copying uses them.
fn architecture() -> String {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let vectors = if flags.split_whitespace().any(|flag| flag == "avx2") { " with AVX2" } else { "" };
    format!("{}{vectors}", std::env::consts::ARCH)
}

fn report(accepted: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> Result<()> {
    let mut worse = Vec::new();
    for (name, count) in found {
        let verdict = compare(accepted.get(name).copied(), *count);
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
    for name in accepted.keys().filter(|name| !found.contains_key(*name)) {
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

/// A piece of work, by name.
struct Work {
    name: &'static str,
    command: Command,
}

/// Builds what is counted and makes what it works on.
fn prepare(memory: Option<&Memory>) -> Result<Vec<Work>> {
    say("building what is counted");
    let mut cargo = machine::cargo();
    cargo.args(["build", "--profile", "count", "--quiet"]);
    cargo.args([
        "--package",
        "kiln",
        "--package",
        "kiln-sys",
        "--package",
        "kiln-layer",
        "--package",
        "kiln-graph",
    ]);
    cargo.args(["--bin", "kiln", "--example", "count_layer", "--example", "count_keys"]);
    // valgrind 3.19 does not know openat2.
    cargo.args(["--features", "kiln-sys/without-openat2"]);
    machine::run(&mut cargo)?;
    let built = target_directory().join("count");
    let place = target_directory().join("counted");
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place)?;
    let (layers, kiln) = (built.join("examples/count_layer"), built.join("kiln"));
    let (layer, index) = (place.join("layer.tar"), place.join("index"));
    machine::run(Command::new(&layers).arg("make").arg(&layer))?;
    let of_layers = |what: &str, path: &Path| {
        let mut command = Command::new(&layers);
        command.arg(what).arg(path);
        command
    };
    let steps = steps(&place)?;
    let build = |name, context: &Path| Work { name, command: build(&kiln, &place, context) };
    let work = |name, command| Work { name, command };
    let mut works = vec![
        work("tar-walk", of_layers("walk", &layer)),
        work("index-write", of_layers("write-index", &index)),
        work("index-read", of_layers("read-index", &index)),
        work("keys", Command::new(built.join("examples/count_keys"))),
        build("steps", &steps),
        build("steps-again", &steps),
    ];
    if let Some(Memory(memory)) = memory {
        let files = files(memory)?;
        // Contents are hashed, and a layer is written from them; then they are only looked at.
        works.extend([build("files", &files), build("files-again", &files)]);
    }
    Ok(works)
}

/// A directory in memory, where files have ascending numbers in the order in which they are made, in every directory and
/// on every machine. On a disk their numbers depend on what was there before: kiln looks files up by them, and the count of
/// a build of files would be 6 or 7 million as they happen to lie.
struct Memory(PathBuf);

impl Memory {
    /// Makes one, or says why there is none.
    fn new() -> Result<Self, String> {
        const TMPFS: u64 = 0x0102_1994;
        let place = Path::new("/dev/shm");
        let kind = rustix::fs::statfs(place).map_err(|error| format!("{}: {error}", place.display()))?;
        if u64::try_from(kind.f_type).unwrap_or_default() != TMPFS {
            return Err(format!("{} is no tmpfs", place.display()));
        }
        // Of the same length each time: a path is hashed and printed, too.
        let path = place.join(format!("kiln-count-{:010}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Counts each piece of work. One that is worse than it was is counted once more where that can be done: nothing but the
/// order of threads and the places in memory differ between two counts.
fn count(accepted: Option<&Figures>) -> Result<BTreeMap<String, u64>> {
    let memory = Memory::new();
    if let Err(reason) = &memory {
        println!("SKIPPED: builds of files are not counted: {reason}");
    }
    let works = prepare(memory.as_ref().ok())?;
    say("counting instructions");
    let profile = target_directory().join("counted/callgrind");
    let mut counts = BTreeMap::new();
    for Work { name, command } in &works {
        let mut count = instructions(command, &profile).with_context(|| (*name).to_owned())?;
        let known = accepted.and_then(|accepted| accepted.instructions.get(*name).copied());
        let repeatable = !matches!(*name, "steps" | "files");
        if repeatable && matches!(compare(known, count), Verdict::Worse(_)) {
            count = count.min(instructions(command, &profile)?);
        }
        counts.insert((*name).to_owned(), count);
    }
    Ok(counts)
}

fn build(kiln: &Path, place: &Path, context: &Path) -> Command {
    let mut command = Command::new(kiln);
    command.arg("--root").arg(place.join("store")).args(["build", "--progress", "plain", "-t", "counted"]);
    command.arg(context);
    command
}

/// Forty steps that each have a key and a record, between two hundred that have none.
fn steps(place: &Path) -> Result<PathBuf> {
    let context = place.join("steps");
    std::fs::create_dir_all(&context)?;
    let mut text = "FROM scratch\n".to_owned();
    for number in 0..200 {
        text.push_str(&format!("ENV NAME_{number}=value-{number}\n"));
        if number % 5 == 0 {
            text.push_str(&format!("WORKDIR /w/${{NAME_{number}}}\n"));
        }
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
        std::fs::write(directory.join(format!("file-{number:04}")), format!("{number}\n").repeat(20))?;
    }
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY src /src\n")?;
    // Files that were written a moment ago are not trusted to stay as they are.
    std::thread::sleep(Duration::from_millis(2500));
    Ok(context)
}

/// The first processor that this process may use.
fn processor() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    Ok(list.trim().chars().take_while(char::is_ascii_digit).collect())
}

/// Instructions of a command, its threads together, without those of the hash function itself: valgrind's processor has
/// no instructions for it, so it would hide everything else.
fn instructions(command: &Command, profile: &Path) -> Result<u64> {
    // On one processor: which of two threads does how much is never twice the same.
    let mut valgrind = Command::new("taskset");
    valgrind
        .args(["--cpu-list", &processor()?, "valgrind", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", profile.display()));
    valgrind.arg(command.get_program()).args(command.get_args());
    machine::output(&mut valgrind)?;
    let text = std::fs::read_to_string(profile).with_context(|| profile.display().to_string())?;
    let total: u64 =
        costs(&text).iter().filter(|(name, _)| !name.contains("sha2")).map(|(_, cost)| cost).sum();
    if total == 0 { bail!("callgrind's profile {} has no costs", profile.display()) } else { Ok(total) }
}

/// The instructions of each function itself, from a profile in callgrind's format (valgrind's manual, "Callgrind Format
/// Specification"): `fn=(1) name` begins a function, and is `fn=(1)` from then on; lines of a position and a cost follow;
/// the one after `calls=` is what the called function took.
fn costs(profile: &str) -> BTreeMap<String, u64> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut costs: BTreeMap<String, u64> = BTreeMap::new();
    let (mut function, mut of_callee) = ("", false);
    for line in profile.lines() {
        if let Some(id) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            let (id, name) = id.split_once(' ').unwrap_or((id, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            if !line.starts_with('c') {
                function = id;
            }
        } else if line.starts_with("calls=") {
            of_callee = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok()).unwrap_or(0);
            if !std::mem::take(&mut of_callee) {
                *costs.entry((*names.get(function).unwrap_or(&function)).to_owned()).or_default() += cost;
            }
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(count: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([("walk".to_owned(), count)])
    }

    #[test]
    fn costs_are_each_functions_own() {
        let profile = "version: 1\npositions: line\nevents: Ir\n\nfl=(1) a.rs\nfn=(1) main\n16 20\ncfn=(2) sha2::compress\n\
                       calls=3 10\n16 400\n+1 5\nfi=(2) b.rs\n* 1\n\nfn=(2)\n10 400\n\nfn=(1)\n-3 2\n";
        let own = costs(profile);
        assert_eq!(own, BTreeMap::from([("main".to_owned(), 28), ("sha2::compress".to_owned(), 400)]));
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
