//! Where the bytes of a layer that is made go: into its digest, its tar and its snapshot, each in a thread of its own as
//! soon as there are more of them than one chunk holds.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{Scope, ScopedJoinHandle};

use kiln_oci::{DiffId, Hasher};

use crate::error::{Error, Result};
use crate::stream::DEPTH;
use crate::unpack::{Placed, Unpack, Unpacker};
use crate::writer::{Outputs, Tar};

const CHUNK: usize = 512 << 10;
/// A chunk with less room than this is sent on before a file is read into it.
const ROOM: usize = 4 << 10;

/// What becomes of files, told with the chunk that holds their bytes.
pub(crate) enum Step {
    Entry(Placed),
    Data(Range<usize>),
}

/// Some bytes of the tar: the first `used` of these.
struct Chunk {
    bytes: Vec<u8>,
    used: usize,
}

impl Chunk {
    fn new() -> Self {
        Self { bytes: Vec::new(), used: 0 }
    }

    /// Makes room for so many bytes more, as far as a chunk goes. Most layers are small, so that it begins with little.
    fn grow(&mut self, more: usize) {
        let least = self.used.saturating_add(more).min(CHUNK);
        if self.bytes.len() < least {
            self.bytes.resize(least.next_power_of_two().max(2 * ROOM), 0);
        }
    }

    fn used(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

type Batch = (Arc<Chunk>, Vec<Step>);

/// The outputs of a layer, and the chunk that is filled.
pub(crate) struct Outlets<'scope, 'env, 'a> {
    scope: &'scope Scope<'scope, 'env>,
    state: State<'scope, 'a>,
    chunk: Chunk,
    steps: Vec<Step>,
    /// Bytes in the chunks before this one.
    sent: u64,
    /// Chunks that were sent; what nobody reads any more is filled again.
    passed: VecDeque<Arc<Chunk>>,
}

enum State<'scope, 'a> {
    /// Nothing was sent yet.
    Waiting(Outputs<'a>),
    Running(Running<'scope>),
}

struct Running<'scope> {
    hash: SyncSender<Arc<Chunk>>,
    tar: Option<SyncSender<Arc<Chunk>>>,
    files: Option<SyncSender<Batch>>,
    hashing: ScopedJoinHandle<'scope, DiffId>,
    working: Vec<ScopedJoinHandle<'scope, Result<()>>>,
}

impl<'scope, 'env, 'a: 'scope> Outlets<'scope, 'env, 'a> {
    pub(crate) fn new(scope: &'scope Scope<'scope, 'env>, outputs: Outputs<'a>) -> Self {
        let state = State::Waiting(outputs);
        let (steps, passed) = (Vec::new(), VecDeque::new());
        let mut new = Self { scope, state, chunk: Chunk::new(), steps, sent: 0, passed };
        // Unpacking changes what only a thread of its own may have changed.
        if new.wants_files() {
            new.start();
        }
        new
    }

    /// How many bytes were put in.
    pub(crate) fn position(&self) -> u64 {
        self.sent + self.chunk.used as u64
    }

    /// Whether anybody wants to know of steps.
    pub(crate) fn wants_files(&self) -> bool {
        match &self.state {
            State::Waiting(outputs) => outputs.unpack.is_some(),
            State::Running(running) => running.files.is_some(),
        }
    }

    /// Says what entry the following bytes are of.
    pub(crate) fn entry(&mut self, placed: Placed) {
        self.steps.push(Step::Entry(placed));
    }

    /// Puts bytes in that are no file's content.
    pub(crate) fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.chunk.used == CHUNK {
                self.send()?;
            }
            let length = bytes.len().min(CHUNK - self.chunk.used);
            self.chunk.grow(length);
            self.chunk.bytes[self.chunk.used..][..length].copy_from_slice(&bytes[..length]);
            self.chunk.used += length;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Where at most so many bytes of content may be read into; never empty if `most` is not zero.
    pub(crate) fn room(&mut self, most: u64) -> Result<&mut [u8]> {
        if self.chunk.used + ROOM > CHUNK {
            self.send()?;
        }
        let most = usize::try_from(most).unwrap_or(CHUNK);
        self.chunk.grow(most);
        let room = &mut self.chunk.bytes[self.chunk.used..];
        let length = room.len().min(most);
        Ok(&mut room[..length])
    }

    /// Says that so many bytes of content were read, and gives them.
    pub(crate) fn fill(&mut self, length: usize) -> &[u8] {
        let start = self.chunk.used;
        self.chunk.used += length;
        if length > 0 && self.wants_files() {
            self.steps.push(Step::Data(start..start + length));
        }
        &self.chunk.bytes[start..start + length]
    }

    fn start(&mut self) {
        let State::Waiting(outputs) = &mut self.state else { return };
        let Outputs { tar, unpack } = std::mem::take(outputs);
        let mut working = Vec::new();
        let (hash, chunks) = mpsc::sync_channel(DEPTH);
        let hashing = self.scope.spawn(move || hash_chunks(&chunks));
        let tar = tar.map(|tar| {
            let (sender, chunks) = mpsc::sync_channel(DEPTH);
            working.push(self.scope.spawn(move || write_tar(tar, &chunks)));
            sender
        });
        let files = unpack.map(|unpack| {
            let (sender, batches) = mpsc::sync_channel(DEPTH);
            working.push(self.scope.spawn(move || write_files(&unpack, &batches)));
            sender
        });
        self.state = State::Running(Running { hash, tar, files, hashing, working });
    }

    fn send(&mut self) -> Result<()> {
        self.start();
        let fresh = match self.passed.front() {
            Some(first) if Arc::strong_count(first) == 1 => self.passed.pop_front().and_then(Arc::into_inner),
            _ => None,
        };
        let fresh = fresh.map_or_else(Chunk::new, |chunk| Chunk { used: 0, ..chunk });
        let chunk = Arc::new(std::mem::replace(&mut self.chunk, fresh));
        let steps = std::mem::take(&mut self.steps);
        self.sent += chunk.used as u64;
        let _span = kiln_trace::span("wait for writers");
        let State::Running(running) = &self.state else { return Err(Error::Worker) };
        if let Some(files) = &running.files {
            files.send((Arc::clone(&chunk), steps)).map_err(|_| Error::Worker)?;
        }
        if let Some(tar) = &running.tar {
            tar.send(Arc::clone(&chunk)).map_err(|_| Error::Worker)?;
        }
        running.hash.send(Arc::clone(&chunk)).map_err(|_| Error::Worker)?;
        self.passed.push_back(chunk);
        Ok(())
    }

    /// Gives everything out that was put in, and waits for the outputs. What is not complete is given up.
    pub(crate) fn end(mut self, is_complete: bool) -> Result<DiffId> {
        if let State::Waiting(outputs) = self.state {
            if let (Some(tar), true) = (outputs.tar, is_complete) {
                write_chunk(tar, self.chunk.used())?;
                tar.flush().map_err(Error::Write)?;
            }
            return Ok(DiffId(kiln_oci::Digest::of(self.chunk.used())));
        }
        let sent = if is_complete { self.send() } else { Ok(()) };
        let State::Running(Running { hash, tar, files, hashing, working }) = self.state else {
            return Err(Error::Worker);
        };
        drop((hash, tar, files));
        let _span = kiln_trace::span("wait for writers");
        let hashed = hashing.join().map_err(|_| Error::Worker);
        let mut failure = None;
        for worker in working {
            match worker.join().unwrap_or(Err(Error::Worker)) {
                Err(error) if matches!(failure, None | Some(Error::Worker)) => failure = Some(error),
                _ => {}
            }
        }
        match failure {
            Some(error) => Err(error),
            None => sent.and(hashed),
        }
    }
}

fn hash_chunks(chunks: &Receiver<Arc<Chunk>>) -> DiffId {
    let mut hasher = Hasher::new();
    for chunk in chunks {
        let _span = kiln_trace::span("hash tar").with_bytes(chunk.used as u64);
        hasher.update(chunk.used());
    }
    DiffId(hasher.finish())
}

fn write_tar(tar: Tar<'_>, chunks: &Receiver<Arc<Chunk>>) -> Result<()> {
    for chunk in chunks {
        write_chunk(tar, chunk.used())?;
    }
    tar.flush().map_err(Error::Write)
}

fn write_chunk(tar: Tar<'_>, bytes: &[u8]) -> Result<()> {
    let _span = kiln_trace::span("write tar").with_bytes(bytes.len() as u64);
    tar.write_all(bytes).map_err(Error::Write)
}

fn write_files(unpack: &Unpack<'_>, batches: &Receiver<Batch>) -> Result<()> {
    let mut unpacker = Unpacker::new(unpack)?;
    for (chunk, steps) in batches {
        let _span = kiln_trace::span("unpack files").with_bytes(chunk.used as u64);
        for step in steps {
            match step {
                Step::Entry(placed) => unpacker.entry(placed)?,
                Step::Data(range) => unpacker.data(&chunk.bytes[range])?,
            }
        }
    }
    unpacker.finish()
}
