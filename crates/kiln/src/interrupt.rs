//! Ctrl-C and its kin: the first one cancels in good order, a second one ends at once.

use std::sync::atomic::{AtomicU8, Ordering};

use kiln_graph::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The first signal that came, or 0.
static FIRST: AtomicU8 = AtomicU8::new(0);

/// The exit status of a command that was canceled: 128 and the signal's number, as shells count.
pub(crate) fn status() -> u8 {
    match FIRST.load(Ordering::Relaxed) {
        0 => 130,
        signal => 128 + signal,
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP cancel `cancel`; a second one ends the process, which leaves nothing
/// mounted either, since all mounts are in namespaces of their own. A SIGHUP that was ignored when kiln was started, as by
/// nohup(1), stays so.
pub(crate) fn cancel_on_interrupt(cancel: &Cancel) -> std::io::Result<()> {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let is_heeded = |signal: &i32| *signal != SIGHUP || ignored(&status) & (1 << (SIGHUP - 1)) == 0;
    let heeded = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(is_heeded);
    let mut signals = Signals::new(heeded)?;
    let cancel = cancel.clone();
    std::thread::spawn(move || {
        for signal in &mut signals {
            if cancel.is_canceled() {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            let number = u8::try_from(signal).unwrap_or(0);
            let _ = FIRST.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
            cancel.cancel();
        }
    });
    Ok(())
}

/// The signals that a process ignores (proc_pid_status(5)), the first one in the lowest bit.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        assert_eq!(ignored("Name:\tkiln\nSigIgn:\t0000000000001003\nSigCgt:\t1\n"), 0x1003);
        assert_eq!(ignored("Name:\tkiln\n"), 0);
    }
}
