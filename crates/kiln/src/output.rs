//! Standard output, whose failures say that they are its own: a full disk below it is not the store's. And standard error,
//! whose failures nobody is left to be told.

use std::io::{self, StdoutLock, Write};

use rustix::io::Errno;
use thiserror::Error;

/// Standard output did not take what a command had to say.
#[derive(Debug, Error)]
#[error("cannot write to standard output: {0}")]
struct Unwritten(#[source] io::Error);

/// Standard output, until it is dropped.
pub(crate) struct Output(StdoutLock<'static>);

/// Standard output for one command.
pub(crate) fn output() -> Output {
    Output(io::stdout().lock())
}

/// Writes what is still held back, which would be lost without a word when the process ends.
pub(crate) fn finish() -> io::Result<()> {
    output().flush()
}

/// Fails if standard output was closed when kiln was started: what is written then would be lost without a word.
pub(crate) fn is_there() -> io::Result<()> {
    match kiln_sys::streams::output_was_closed() {
        true => Err(own(Errno::BADF.into())),
        false => Ok(()),
    }
}

/// Tells people something besides, on standard error. Where that is gone or full the command is as good as without it.
pub(crate) fn aside(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        is_there()?;
        self.0.write(bytes).map_err(own)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(own)
    }
}

/// A reader that has seen enough, and a call to repeat, are told apart by their kinds.
pub(crate) fn own(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::Interrupted => error,
        _ => io::Error::other(Unwritten(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_to_be_that_of_standard_output() {
        let told = own(io::Error::from_raw_os_error(28));
        assert_eq!(
            told.to_string(),
            "cannot write to standard output: No space left on device (os error 28)"
        );
        assert_eq!(told.kind(), io::ErrorKind::Other);
        assert_eq!(own(io::ErrorKind::BrokenPipe.into()).kind(), io::ErrorKind::BrokenPipe);
    }
}
