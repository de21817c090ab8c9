//! Where bytes come from, by digest.

use std::io::{self, Read};

use crate::Digest;

/// A source of blobs. Each method is idempotent; none changes anything.
pub trait Blobs {
    /// The blob's size in bytes, or `None` when this source does not hold it.
    fn size(&self, digest: &Digest) -> io::Result<Option<u64>>;

    /// Opens the blob from its beginning. The reader fails at the end if the bytes do not have the digest.
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>>;

    /// Reads up to `buffer.len()` bytes at `offset`; for sources that were verified before.
    fn read_at(&self, digest: &Digest, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}
