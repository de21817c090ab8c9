//! Whether this process was started with its standard output open. Rust's runtime opens `/dev/null` in place of a
//! standard stream that is closed, before `main`: a program that then writes its results sees them taken, and they are
//! nowhere. Nor can it be told from what it finds there, since others open `/dev/null` in the same way on purpose.

#![allow(unsafe_code, reason = "what runs before main has to be put in its place by hand")]

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was closed when this program was started.
#[must_use]
pub fn output_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

// SAFETY: the C library calls what is in this section before main, when there is one thread; it is a function of the type
// that is expected there, which needs nothing of Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = note;

extern "C" fn note() {
    // SAFETY: asks for a descriptor's flags, which changes nothing, whatever the descriptor.
    if unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1 {
        CLOSED.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_open_output_is_open() {
        assert!(!super::output_was_closed());
    }
}
