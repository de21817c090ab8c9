//! What the machine is.

use std::path::Path;
use std::process::Command;

use crate::machine::{is_root, output, repository};

/// The user whose figures promises are about.
pub(crate) const ROOT: &str = "root";

/// Facts that figures depend on, in reading order.
pub(crate) fn facts(place: &Path, user: Option<&str>) -> Vec<(String, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo");
    let model = field(&cpu, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let flags = field(&cpu, "flags").unwrap_or_default();
    let sha = if flags.split(' ').any(|flag| flag == "sha_ni") { ", SHA-NI" } else { "" };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kibibytes: u64 = memory.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let ask = |program: &str, words: &[&str]| {
        output(Command::new(program).args(words)).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let shown = place.to_string_lossy();
    let filesystem = ask("findmnt", &["--noheadings", "--output", "FSTYPE", "--target", &shown]);
    let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    let rows = [
        ("processor", format!("{model}, {cores} cores{sha}")),
        ("memory", format!("{} GiB", (kibibytes + (1 << 19)) >> 20)),
        ("kernel", ask("uname", &["-sr"])),
        ("file system", filesystem),
        ("user", if is_root() && user.is_none() { ROOT.to_owned() } else { "an ordinary user".to_owned() }),
        ("load average before the first workload", load),
        ("compiler", ask("rustc", &["--version"])),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The commit that is measured, and whether the tree has changes besides.
pub(crate) fn commit() -> String {
    let git = |words: &[&str]| output(Command::new("git").current_dir(repository()).args(words));
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).map(|text| text.trim().to_owned());
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "crates", "Cargo.lock"]);
    match (commit, changed) {
        (Ok(commit), Ok(changed)) if changed.trim().is_empty() => commit,
        (Ok(commit), _) => format!("{commit} with changes"),
        (Err(_), _) => "unknown".to_owned(),
    }
}

/// The day, in UTC.
pub(crate) fn date() -> String {
    output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
