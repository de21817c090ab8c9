//! Daemons that the bench starts, and stops however it ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Those that run, in the order of their start.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Stops the daemons when the bench itself is told to stop.
pub(crate) fn stop_on_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            let running: Vec<Pid> = RUNNING.lock().map(|running| running.clone()).unwrap_or_default();
            for pid in running.iter().rev() {
                let _ = kill_process(*pid, Signal::TERM);
                let started = Instant::now();
                while rustix::process::test_kill_process(*pid).is_ok()
                    && !is_zombie(*pid)
                    && started.elapsed() < Duration::from_secs(10)
                {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Stopped when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; what it prints goes to `<place>/<name>.log`.
    pub(crate) fn start(mut command: Command, name: &str, place: &Path) -> Result<Self> {
        let log = place.join(format!("{name}.log"));
        let out = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        if let Ok(mut running) = RUNNING.lock() {
            running.push(pid);
        }
        Ok(Self { child, pid, log })
    }

    /// Waits until it answers.
    pub(crate) fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || started.elapsed() > Duration::from_secs(30) {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last = text.lines().last().unwrap_or_default().to_owned();
                bail!("a daemon did not start ({}): {last}", self.log.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = kill_process(self.pid, Signal::TERM);
        }
        let started = Instant::now();
        while !self.has_ended() {
            if started.elapsed() > Duration::from_secs(15) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Ok(mut running) = RUNNING.lock() {
            running.retain(|pid| *pid != self.pid);
        }
    }
}
