//! How much git may take: of time without getting on, of the disk, and of memory. A server decides what it is sent.

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
}

impl Default for GitLimits {
    /// A minute and 64 GiB, as for downloads; 8 GiB of memory.
    fn default() -> Self {
        Self { stall: Duration::from_secs(60), bytes: 64 << 30, memory: 8 << 30 }
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
    /// git and its helpers.
    group: Pid,
    /// When it was last seen to have got on, and what it had come to.
    since: Instant,
    size: u64,
    worked: Duration,
    next: Instant,
}

impl<'a> Watch<'a> {
    /// Begins with git's first moment.
    pub(super) fn new(limits: GitLimits, place: &'a Path, group: Pid) -> Self {
        let now = Instant::now();
        let next = now + LOOK.min(limits.stall);
        Self { limits, place, group, since: now, size: 0, worked: Duration::ZERO, next }
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
        let worked = work_of(self.group);
        if size >= self.size + LITTLE || size < self.size || worked >= self.worked + IDLE {
            (self.since, self.size, self.worked) = (start, size, worked);
        } else if self.since.elapsed() >= self.limits.stall {
            return Some(Beyond::Time);
        }
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

/// Bytes that the files below a directory take.
fn size_below(place: &Path) -> Result<u64, FileError> {
    fn below(directory: &Directory) -> Result<u64, FileError> {
        let mut size = 0;
        for found in directory.list()? {
            let Ok(stat) = directory.stat(&found.name) else { continue };
            // Small files take more than they hold, and what is written is not yet on disk.
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
            size += u64::try_from(stat.st_size).unwrap_or_default().max(blocks);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                && let Ok(directory) = directory.open_directory(&found.name)
            {
                size += below(&directory)?;
            }
        }
        Ok(size)
    }
    below(&Directory::open(place)?)
}

/// How long the processes of a group, and those that they have waited for, have had a CPU (proc_pid_stat(5)).
fn work_of(group: Pid) -> Duration {
    let group = group.as_raw_nonzero().to_string();
    let processes = fs_err::read_dir("/proc").into_iter().flatten().flatten();
    let ticks = processes.filter_map(|process| {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            return None;
        }
        let stat = fs_err::read_to_string(process.path().join("stat")).ok()?;
        // The name may hold anything, and ends with the last parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        if *fields.get(2)? != group {
            return None;
        }
        Some(fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>())
    });
    Duration::from_millis(ticks.sum::<u64>() * TICK)
}
