//! How much git may take: of time without getting on, of the disk, of memory, and of submodules. A server decides what it is sent.

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_sys::root::{Directory, FileError};
use rustix::fs::FileType;
use rustix::process::Pid;

/// How much is waited for and taken, for each repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GitLimits {
    /// How long git may get on with nothing: as a server that is silent, or next to it.
    pub stall: Duration,
    /// The most that it may have on disk, in bytes.
    pub bytes: u64,
    /// The most memory of one of its processes, in bytes.
    pub memory: u64,
    /// The most submodules, those of submodules included.
    pub submodules: usize,
    /// The most repositories that a submodule may be in.
    pub nesting: usize,
}

impl Default for GitLimits {
    /// A minute and 64 GiB, as for downloads; 8 GiB of memory; 1,000 submodules, 16 within one another.
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(60),
            bytes: 64 << 30,
            memory: 8 << 30,
            submodules: 1000,
            nesting: 16,
        }
    }
}

/// Less on disk than this within the time that is waited is nothing. As for downloads.
const LITTLE: u64 = kiln_remote::Limits::STALLED;
/// So is less time of a CPU than this.
const IDLE: Duration = Duration::from_millis(100);
/// Linux tells times of CPUs in hundredths of a second, whatever its own clock, in milliseconds.
const TICK: u64 = 10;
/// How often it is looked what git has come to.
const LOOK: Duration = Duration::from_secs(1);
/// Looking takes at most this part of the time.
const SHARE: u32 = 20;

/// What git has gone beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    Time,
    Space,
}

/// What is known of one run of git.
pub(super) struct Watch<'a> {
    limits: GitLimits,
    place: &'a Path,
    git: Pid,
    /// How long it has not got on, and what it had come to before.
    idle: Duration,
    size: u64,
    worked: Duration,
    /// When it was last looked, and when it will be.
    last: Instant,
    next: Instant,
}

impl<'a> Watch<'a> {
    /// Begins with git's first moment.
    pub(super) fn new(limits: GitLimits, place: &'a Path, git: Pid) -> Self {
        let now = Instant::now();
        let next = now + LOOK.min(limits.stall);
        let (idle, worked) = (Duration::ZERO, Duration::ZERO);
        Self { limits, place, git, idle, size: 0, worked, last: now, next }
    }

    /// Whether git has gone beyond a limit. Costs little if it was asked a moment ago.
    pub(super) fn look(&mut self) -> Option<Beyond> {
        let start = Instant::now();
        if start < self.next {
            return None;
        }
        // What is made and removed meanwhile cannot be measured; there is a next time.
        let size = size_below(self.place).unwrap_or(self.size);
        if size > self.limits.bytes {
            return Some(Beyond::Space);
        }
        let worked = family(self.git).iter().map(|(_, worked)| *worked).sum();
        let grew = size >= self.size + LITTLE || worked >= self.worked + IDLE;
        // What is cleaned up, or waited for by nobody, is less than it was.
        if grew || size < self.size || worked < self.worked {
            (self.idle, self.size, self.worked) = (Duration::ZERO, size, worked);
        } else {
            // A process that was stopped itself has not waited.
            let planned = self.next - self.last;
            self.idle += start.duration_since(self.last).min(planned * 2);
            if self.idle >= self.limits.stall {
                return Some(Beyond::Time);
            }
        }
        self.last = start;
        self.next = Instant::now() + (start.elapsed() * SHARE).max(LOOK.min(self.limits.stall));
        None
    }
}

impl GitLimits {
    /// Whether what is below a directory is more than may be there. What git does at once is never looked at on the way.
    pub(super) fn allow(&self, place: &Path) -> bool {
        size_below(place).is_ok_and(|size| size <= self.bytes)
    }
}

/// Directories in one another that are measured. Each needs a descriptor; what is deeper counts as endless, since
/// nothing would be known of it.
const DEEPEST: usize = 500;

/// Bytes that the files below a directory take.
fn size_below(place: &Path) -> Result<u64, FileError> {
    fn below(directory: &Directory, depth: usize) -> Result<u64, FileError> {
        let mut size: u64 = 0;
        if depth > DEEPEST {
            return Ok(u64::MAX);
        }
        for found in directory.list()? {
            let Ok(stat) = directory.stat(&found.name) else { continue };
            // Small files take more than they hold, and what is written is not yet on disk.
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
            size = size.saturating_add(u64::try_from(stat.st_size).unwrap_or_default().max(blocks));
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                && let Ok(directory) = directory.open_directory(&found.name)
            {
                size = size.saturating_add(below(&directory, depth + 1)?);
            }
        }
        Ok(size)
    }
    below(&Directory::open(place)?, 0)
}

/// A process and what it has started, directly and indirectly, and how long each of them, and those that it has waited
/// for, have had a CPU (proc_pid_stat(5)).
pub(super) fn family(of: Pid) -> Vec<(Pid, Duration)> {
    let processes = fs_err::read_dir("/proc").into_iter().flatten().flatten();
    let known: Vec<(Pid, Pid, Duration)> = processes.filter_map(|process| read(&process.path())).collect();
    let mut family = Vec::new();
    let mut next = vec![of];
    while let Some(member) = next.pop() {
        let found = known.iter().find(|(pid, ..)| *pid == member);
        family.extend(found.map(|(pid, _, worked)| (*pid, *worked)));
        next.extend(known.iter().filter(|(_, parent, _)| *parent == member).map(|(pid, ..)| *pid));
    }
    family
}

/// A process, its parent and its time.
fn read(process: &Path) -> Option<(Pid, Pid, Duration)> {
    let pid = |text: &str| Pid::from_raw(text.parse().ok()?);
    let own = pid(process.file_name()?.to_str()?)?;
    let stat = fs_err::read_to_string(process.join("stat")).ok()?;
    // The name may hold anything, and ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>();
    Some((own, pid(fields.get(1)?)?, Duration::from_millis(ticks * TICK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_deep_to_be_measured_is_endless() {
        let host = tempfile::tempdir().expect("a temporary directory");
        let limits = GitLimits { bytes: 1 << 30, ..GitLimits::default() };
        let mut path = host.path().to_path_buf();
        for _ in 0..DEEPEST {
            path.push("a");
        }
        fs_err::create_dir_all(&path).expect("made");
        fs_err::write(path.join("file"), vec![b'x'; 100_000]).expect("written");
        assert!(size_below(host.path()).expect("measured") > 100_000);
        assert!(limits.allow(host.path()));
        fs_err::create_dir(path.join("b")).expect("made");
        assert!(!limits.allow(host.path()));
    }
}
