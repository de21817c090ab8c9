//! Read-only maps of files that never change once published.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags};

/// The bytes of a file, mapped.
///
/// The file must not be truncated while it is mapped; kiln's published files are replaced by rename, never written again.
#[derive(Debug)]
pub struct Map {
    start: *mut core::ffi::c_void,
    length: usize,
}

// SAFETY: the map is private and read-only, so that any thread may read it or unmap it.
unsafe impl Send for Map {}
// SAFETY: as above; shared reads of unchanging memory do not conflict.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the whole of `file`.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn of(file: &File) -> io::Result<Self> {
        let length = usize::try_from(rustix::fs::fstat(file)?.st_size).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(Self { start: ptr::null_mut(), length: 0 });
        }
        // SAFETY: the kernel chooses the address, so that no existing memory is replaced.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file.as_fd(), 0)
        }?;
        Ok(Self { start, length })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: `start` is the beginning of a readable map of `length` bytes that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.length) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.length != 0 {
            // SAFETY: the range was mapped by us, and no reference into it outlives `self`.
            let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_file() {
        let host = tempfile::tempdir().expect("a temporary directory");
        for text in ["", "some bytes"] {
            let path = host.path().join("file");
            fs_err::write(&path, text).expect("written");
            let map = Map::of(fs_err::File::open(&path).expect("opened").file()).expect("mapped");
            assert_eq!(&map[..], text.as_bytes());
        }
    }
}
