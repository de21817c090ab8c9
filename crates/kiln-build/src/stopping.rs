//! Reading that ends with the build: large files are not read to their end after an interrupt.

use std::io::{self, Read};

use kiln_graph::Cancel;

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
            return Err(io::Error::other("canceled"));
        }
        self.inner.read(bytes)
    }
}
