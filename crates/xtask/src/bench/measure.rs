//! Timing a command, and watching the memory of all processes that take part in it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Runs commands one after the other and gives the seconds that all took. What they print goes to `log`.
pub(crate) fn time(commands: Vec<Command>, log: &Path) -> Result<f64> {
    let mut total = 0.0;
    for mut command in commands {
        let shown = crate::machine::line(&command);
        let out = File::create(log)?;
        command.stdout(out.try_clone()?).stderr(out).stdin(Stdio::null());
        let started = Instant::now();
        let status = command.status().with_context(|| format!("cannot start {shown}"))?;
        total += started.elapsed().as_secs_f64();
        if !status.success() {
            bail!("{shown} ended with {status}: {}", tail(log));
        }
    }
    Ok(total)
}

/// Waits until what was written before is on disk, so that it is not paid for by what is timed next: a file system is
/// synced as a whole. At most ten seconds, since other programs may go on writing.
pub(crate) fn settle() {
    let started = Instant::now();
    rustix::fs::sync();
    while dirty_kibibytes() > 2048 && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(50));
        rustix::fs::sync();
    }
}

/// Bytes that wait to be written, or are being written.
fn dirty_kibibytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let waiting = lines.filter(|(name, _)| matches!(*name, "Dirty" | "Writeback"));
    waiting.filter_map(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

/// The last lines of what a command printed.
fn tail(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" / ")
}

/// Runs commands and gives the peak, in bytes, of the resident memory of their processes and of the daemons that
/// serve them. `others` are daemons that do not.
pub(crate) fn peak_memory(
    commands: Vec<Command>,
    log: &Path,
    daemons: &[u32],
    others: &[u32],
) -> Result<u64> {
    let page = page_size()?;
    let mut peak = 0;
    for mut command in commands {
        let out = File::create(log)?;
        command.stdout(out.try_clone()?).stderr(out).stdin(Stdio::null());
        let mut child = command.spawn()?;
        let started = Instant::now();
        let mut looked = started;
        loop {
            // Commands that take milliseconds need a close look, which one process gives (a look at all of them takes
            // milliseconds itself); long ones must not be disturbed by it.
            peak = peak.max(high_water_mark(child.id()));
            let hurry = started.elapsed() < Duration::from_millis(50);
            if looked.elapsed() > Duration::from_millis(if hurry { 2 } else { 15 }) {
                peak = peak.max(resident_pages(daemons, others) * page);
                looked = Instant::now();
            }
            if child.try_wait()?.is_some() {
                break;
            }
            if !hurry {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    Ok(peak)
}

fn page_size() -> Result<u64> {
    let text = crate::machine::output(Command::new("getconf").arg("PAGESIZE"))?;
    text.trim().parse().with_context(|| format!("getconf says that a page has {text:?} bytes"))
}

/// The most resident bytes that a process has had; 0 once it has ended.
fn high_water_mark(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Resident pages of all processes below this one, which adopts orphans, and of the daemons' trees.
fn resident_pages(daemons: &[u32], others: &[u32]) -> u64 {
    let processes = processes();
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (pid, (parent, _)) in &processes {
        children.entry(*parent).or_default().push(*pid);
    }
    let own = std::process::id();
    let mut pending: Vec<u32> = children.get(&own).cloned().unwrap_or_default();
    pending.extend(daemons);
    let mut seen: HashSet<u32> = others.iter().copied().collect();
    let mut pages = 0;
    while let Some(pid) = pending.pop() {
        if !seen.insert(pid) {
            continue;
        }
        pages += processes.get(&pid).map_or(0, |(_, resident)| *resident);
        pending.extend(children.get(&pid).into_iter().flatten());
    }
    pages
}

/// Parent and resident pages of every process.
fn processes() -> HashMap<u32, (u32, u64)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name is in parentheses and may hold anything.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some((pid, (fields.get(1)?.parse().ok()?, fields.get(21)?.parse().ok()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_grandchildren_counts() {
        let directory = std::env::temp_dir().join(format!("bench-measure-{}", std::process::id()));
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            vec![command]
        };
        let small = peak_memory(shell("sleep 0.2"), &directory, &[], &[]).unwrap();
        let large = peak_memory(
            shell("(head -c 40000000 /dev/zero | tail -c 40000000 >/dev/null; true)"),
            &directory,
            &[],
            &[],
        )
        .unwrap();
        let _ = std::fs::remove_file(&directory);
        assert!(small > 100_000, "{small}");
        assert!(large > small + 20_000_000, "{small} {large}");
    }

    #[test]
    fn a_failure_says_what_was_printed() {
        let log = std::env::temp_dir().join(format!("bench-log-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo sorry; exit 3"]);
        let error = time(vec![command], &log).unwrap_err().to_string();
        let _ = std::fs::remove_file(&log);
        assert!(error.contains("sorry") && error.contains('3'), "{error}");
    }
}
