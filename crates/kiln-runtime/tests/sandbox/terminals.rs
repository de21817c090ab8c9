//! Terminals.

use kiln_runtime::{Streams, Terminal};
use std::os::fd::AsFd;

use crate::Case;
use crate::fixture::Fixture;

pub(crate) const CASES: &[Case] = &[("a_terminal_is_the_sandboxes_own", own_terminal)];

fn own_terminal(fixture: &Fixture) {
    let mut sandbox =
        fixture.shell("tty; stty size; read line; echo got $line; stty size; ls -l /dev/console | wc -l");
    sandbox.process.terminal = Terminal::Own { rows: 33, columns: 77 };
    let mut running = kiln_runtime::start(&sandbox, Streams::inherit()).expect("starts");
    let terminal = running.terminal.take().expect("a terminal");
    let mut seen = String::new();
    let mut bytes = [0_u8; 256];
    let mut read_until = |seen: &mut String, word: &str| {
        while !seen.contains(word) {
            match rustix::io::read(&terminal, &mut bytes[..]) {
                Ok(0) | Err(_) => break,
                Ok(count) => seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
            }
        }
    };
    read_until(&mut seen, "33 77");
    let size = kiln_sys::terminal::Winsize { ws_row: 10, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    kiln_sys::terminal::set_size(terminal.as_fd(), size).expect("resize");
    rustix::io::write(&terminal, b"hello\n").expect("write");
    read_until(&mut seen, "never");
    assert!(running.wait().expect("waits").exit.success(), "{seen}");
    for expect in ["/dev/pts/0", "33 77", "got hello", "10 20", "\r\n1\r\n"] {
        assert!(seen.contains(expect), "{expect} in {seen}");
    }
}
