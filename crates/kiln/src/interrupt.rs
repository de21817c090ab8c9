//! Ctrl-C and its kin: the first one cancels in good order, a second one ends at once.

use kiln_graph::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// From now on SIGINT, SIGTERM and SIGHUP cancel `cancel`; a second one ends the process, which leaves nothing
/// mounted either, since all mounts are in namespaces of their own.
pub(crate) fn cancel_on_interrupt(cancel: &Cancel) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let cancel = cancel.clone();
    std::thread::spawn(move || {
        for signal in &mut signals {
            if cancel.is_canceled() {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            cancel.cancel();
        }
    });
    Ok(())
}
