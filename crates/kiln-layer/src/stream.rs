//! The first stage of a walk: a thread that reads, hashes and decompresses, and hands chunks on.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use kiln_oci::{DiffId, Digest, Hasher};

use crate::compression::Compression;
use crate::error::{Error, Result};

/// Bytes on their way; parts of a chunk are shared, not copied.
pub(crate) type Chunk = Arc<Vec<u8>>;

const CHUNK: usize = 256 << 10;
/// How many chunks may wait between two stages.
pub(crate) const DEPTH: usize = 8;

/// What the stage knows at the end of the stream.
pub(crate) struct Streamed {
    pub(crate) blob: Digest,
    pub(crate) blob_size: u64,
    pub(crate) compression: Compression,
    pub(crate) diff_id: DiffId,
    pub(crate) size: u64,
}

/// Counts and hashes what passes.
struct Hashing<R> {
    reader: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.count += length as u64;
        Ok(length)
    }
}

/// Reads the layer to its end. A receiver that has gone ends the stage early with [`Error::Worker`]: the stage that went
/// knows the reason.
pub(crate) fn run<R: Read + Send>(reader: R, most: u64, sender: &SyncSender<Chunk>) -> Result<Streamed> {
    let hashing = Hashing { reader, hasher: Hasher::new(), count: 0 };
    let mut reader = BufReader::with_capacity(CHUNK, hashing);
    let first = first_bytes(&mut reader)?;
    let compression = Compression::detect(&first);
    let mut reader = io::Cursor::new(first).chain(reader);
    let mut size = 0_u64;
    let mut send = |chunk: Vec<u8>| {
        size += chunk.len() as u64;
        if size > most {
            return Err(Error::Limit { what: "bytes", limit: most });
        }
        sender.send(Arc::new(chunk)).map_err(|_| Error::Worker)
    };
    let diff_id = if compression == Compression::Plain {
        pump(&mut reader, Error::Read, &mut send)?;
        None
    } else {
        let mut hasher = Hasher::new();
        let failed = |source| Error::Decompress { compression: compression.name(), source };
        pump(&mut *compression.decoder(&mut reader)?, failed, &mut |chunk| {
            hasher.update(&chunk);
            send(chunk)
        })?;
        Some(hasher.finish())
    };
    // A decoder that stops before the end of the stream leaves bytes that nobody has read.
    if !reader.fill_buf().map_err(Error::Read)?.is_empty() {
        return Err(Error::TrailingBytes { compression: compression.name() });
    }
    let hashing = reader.into_inner().1.into_inner();
    let blob = hashing.hasher.finish();
    let diff_id = DiffId(diff_id.unwrap_or(blob));
    Ok(Streamed { blob, blob_size: hashing.count, compression, diff_id, size })
}

/// The first bytes of the stream, enough to see its compression.
fn first_bytes(reader: &mut impl Read) -> Result<Vec<u8>> {
    let mut first = Vec::with_capacity(8);
    reader.take(8).read_to_end(&mut first).map_err(Error::Read)?;
    Ok(first)
}

fn pump(
    mut reader: &mut dyn Read,
    failed: impl Fn(io::Error) -> Error,
    send: &mut impl FnMut(Vec<u8>) -> Result<()>,
) -> Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut span = kiln_trace::span("read and hash layer");
        (&mut reader).take(CHUNK as u64).read_to_end(&mut chunk).map_err(&failed)?;
        span.bytes(chunk.len() as u64);
        drop(span);
        if chunk.is_empty() {
            return Ok(());
        }
        send(chunk)?;
    }
}

/// The receiving end as a reader whose current chunk can be shared.
pub(crate) struct ChunkReader {
    receiver: Receiver<Chunk>,
    current: Chunk,
    position: usize,
}

impl ChunkReader {
    pub(crate) fn new(receiver: Receiver<Chunk>) -> Self {
        Self { receiver, current: Arc::default(), position: 0 }
    }

    /// The next `length` bytes, which [`fill_buf`](BufRead::fill_buf) has shown, as a shared part of their chunk.
    pub(crate) fn share(&self, length: usize) -> (Chunk, Range<usize>) {
        (Arc::clone(&self.current), self.position..self.position + length)
    }
}

impl Read for ChunkReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(bytes.len());
        bytes[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.current.len() {
            let _span = kiln_trace::span("wait for reader");
            match self.receiver.recv() {
                Ok(chunk) => (self.current, self.position) = (chunk, 0),
                // The stage before has ended; its result says whether well.
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, length: usize) {
        self.position += length;
    }
}
