//! Process 1 of a sandbox that wants an init: hands signals on to the command and collects orphans.

use kiln_sys::process::{self, Ended};
use kiln_sys::terminal::Signals;

use crate::init::status_of;

/// Waits until the command has ended, and ends like it.
pub(crate) fn collect(command: i32, signals: &Signals) -> ! {
    // What a panic says until now goes where nobody listens any more.
    drop(std::panic::take_hook());
    // The command lives in descriptors of its own; this process needs none but the signals'.
    drop(process::inherited(crate::init::CONTROL));
    let _ = process::die_with_parent();
    let numbers = signals.descriptor().try_clone_to_owned();
    if let Ok(numbers) = numbers {
        let forwarding = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let mut number = [0_u8; 1];
            loop {
                let mut polled = [rustix::event::PollFd::new(&numbers, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut polled, None);
                while rustix::io::read(&numbers, &mut number[..]) == Ok(1) {
                    let signal = rustix::process::Signal::from_named_raw(i32::from(number[0]));
                    if let (Some(signal), Some(pid)) = (signal, rustix::process::Pid::from_raw(command)) {
                        let _ = rustix::process::kill_process(pid, signal);
                    }
                }
            }
        });
        drop(forwarding);
    }
    loop {
        match process::wait_for(None) {
            Ok((pid, ended)) if pid == command => process::leave(status_of(ended)),
            Ok(_) => {}
            Err(_) => process::leave(status_of(Ended::Exited(255))),
        }
    }
}
