//! Reading that ends with the build: large files are not read to their end after an interrupt, or when another step fails.

use std::io::{self, Read};

use kiln_graph::Cancel;

use crate::error::Error;

/// Why a reader failed: the build is canceled, and nothing is wrong with what was read.
#[derive(Debug, thiserror::Error)]
#[error("canceled")]
struct Canceled;

/// Whether an error, or one that it came from, is no failure but the end of a build.
pub(crate) fn is_end(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // What an `io::Error` was made of is none of its sources.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inside.is_some_and(|inside| inside.is::<Canceled>() || is_end(inside)) || is_stopped(error) {
            return true;
        }
        next = error.source();
    }
    false
}

fn is_stopped(error: &(dyn std::error::Error + 'static)) -> bool {
    let store = match error.downcast_ref() {
        Some(Error::Canceled) => return true,
        Some(Error::Store(store)) => Some(store),
        _ => error.downcast_ref(),
    };
    matches!(store, Some(kiln_store::Error::Stopped))
}

/// A reader that fails once the build is canceled.
#[derive(Debug)]
pub(crate) struct Stopping<R> {
    inner: R,
    cancel: Cancel,
}

impl<R> Stopping<R> {
    pub(crate) fn new(inner: R, cancel: &Cancel) -> Self {
        Self { inner, cancel: cancel.clone() }
    }
}

impl<R: Read> Read for Stopping<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_canceled() {
            return Err(io::Error::other(Canceled));
        }
        self.inner.read(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_build_is_told_from_a_failure() {
        let check = |error: Error, ends: bool| assert_eq!(is_end(&error), ends, "{error:?}");
        let read = |source: io::Error| Error::Layer(kiln_layer::Error::Read(source));
        let cancel = Cancel::new();
        let mut reader = Stopping::new(&b"text"[..], &cancel);
        assert_eq!(reader.read(&mut [0; 2]).expect("read"), 2);
        cancel.cancel();
        check(read(reader.read(&mut [0; 2]).expect_err("it ends")), true);
        check(read(io::Error::other(kiln_store::Error::Stopped)), true);
        check(Error::Store(kiln_store::Error::Stopped), true);
        check(Error::Canceled, true);
        check(read(io::Error::other("canceled")), false);
        check(Error::Store(kiln_store::Error::Restless), false);
    }
}
