//! How every test says that it is skipped: a file that the tests of all crates include, since each of them is a program of
//! its own.

use std::io::Write;

/// Says on the real standard error that a test does not run, and why. The test harness keeps what is printed with macros to
/// itself as long as a test passes; `cargo xtask test` counts these lines by their reasons.
pub(crate) fn skipped(reason: &str) {
    let thread = std::thread::current();
    // The harness names a test's thread after the test.
    let line = match thread.name() {
        Some(test) if test != "main" => format!("SKIPPED {test}: {reason}\n"),
        _ => format!("SKIPPED: {reason}\n"),
    };
    // One write, so that lines of tests that run at once stay whole.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
