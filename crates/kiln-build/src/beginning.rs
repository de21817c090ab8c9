//! What was read of a file when something was decided by it, so that a file that was another one just then is told.

use std::io::{self, Read};

use kiln_oci::{Digest, Hasher};

/// Hashes what is read of a file.
pub(crate) struct Watched<'a> {
    reader: Box<dyn Read + Send + 'a>,
    hasher: Hasher,
    length: u64,
    /// No more is read than that.
    most: u64,
    ended: bool,
}

/// The first bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    pub(crate) length: u64,
    pub(crate) digest: Digest,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(reader: Box<dyn Read + Send + 'a>, most: u64) -> Self {
        Self { reader, hasher: Hasher::new(), length: 0, most, ended: false }
    }

    /// What was read so far.
    pub(crate) fn beginning(&self) -> Beginning {
        Beginning { length: self.length, digest: self.hasher.clone().finish() }
    }

    /// Whether there was no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = up_to(bytes.len(), self.most - self.length);
        let length = self.reader.read(&mut bytes[..most])?;
        self.ended |= length == 0;
        self.hasher.update(&bytes[..length]);
        self.length += length as u64;
        Ok(length)
    }
}

impl Beginning {
    /// The bytes of `reader`, if they begin like this. Else they end here: who knows how many there are sees that the file
    /// changed.
    pub(crate) fn of<'w>(self, reader: Box<dyn Read + 'w>) -> Box<dyn Read + 'w> {
        let Self { length: left, digest } = self;
        Box::new(Checked { reader, hasher: Hasher::new(), left, digest, is_same: None })
    }
}

struct Checked<'w> {
    reader: Box<dyn Read + 'w>,
    hasher: Hasher,
    /// How much of the beginning is to come.
    left: u64,
    digest: Digest,
    /// Known once all of it has come.
    is_same: Option<bool>,
}

impl Read for Checked<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let is_same = || std::mem::take(&mut self.hasher).finish() == self.digest;
            return if *self.is_same.get_or_insert_with(is_same) { self.reader.read(bytes) } else { Ok(0) };
        }
        let most = up_to(bytes.len(), self.left);
        let length = self.reader.read(&mut bytes[..most])?;
        self.hasher.update(&bytes[..length]);
        self.left -= length as u64;
        Ok(length)
    }
}

fn up_to(length: usize, most: u64) -> usize {
    length.min(usize::try_from(most).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_beginnings_end_too_soon() {
        let mut watched = Watched::new(Box::new(&b"abcdef"[..]), 3);
        io::copy(&mut watched, &mut io::sink()).expect("read");
        assert!(watched.has_ended());
        let beginning = watched.beginning();
        assert_eq!(beginning, Beginning { length: 3, digest: Digest::of(b"abc") });
        let read = |bytes: &'static [u8]| io::read_to_string(beginning.of(Box::new(bytes))).expect("text");
        assert_eq!(read(b"abcxyz"), "abcxyz");
        assert_eq!(read(b"aBcdef"), "aBc");
        assert_eq!(read(b"ab"), "ab");
    }
}
