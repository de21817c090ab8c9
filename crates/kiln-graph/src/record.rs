//! What the graph asks of those who keep records.

use std::ops::Range;
use std::time::Duration;

use crate::{Key, Preimage};

/// Keeps what was once computed, for all processes that share it. Called from several threads at once.
/// [`crate::contract`] is the suite that every implementation runs.
pub trait Records: Sync {
    /// What is recorded.
    type Result: Clone + Send + Sync;
    /// Why reading or writing failed.
    type Error: std::error::Error + Send + 'static;
    /// A claim that is held; dropping it, or the end of the process, ends it.
    type Guard: Send;

    /// The record of a key. Idempotent. Data that it says to be present stays so as long as the result, or a
    /// clone of it, lives.
    fn lookup(&self, key: &Key) -> Result<Option<Record<Self::Result>>, Self::Error>;

    /// Preimages of records that may explain why this one's key missed: those whose operation has the same name, the
    /// newest first. Idempotent; may leave out the old ones when there are many, and those that share neither the
    /// operation nor all inputs, which explain nothing.
    fn candidates(&self, preimage: &Preimage) -> Result<Vec<Preimage>, Self::Error>;

    /// Claims a key, without waiting. Atomic: at any time at most one guard for a key exists in all processes.
    fn claim(&self, key: &Key) -> Result<Claim<Self::Guard>, Self::Error>;

    /// Waits until the claim on a key may have ended, at most `timeout`; may return early. Idempotent.
    fn wait(&self, key: &Key, timeout: Duration) -> Result<(), Self::Error>;

    /// Stores a record, or replaces that of the same key, and gives the result as it is recorded now. Idempotent; atomic:
    /// a lookup gives the old one or the new one. What a lookup gives afterwards is present. No claim is needed to call it.
    fn record(&self, entry: Entry<'_, Self::Result>) -> Result<Self::Result, Self::Error>;
}

/// What is known under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<R> {
    /// The result
    pub result: R,
    /// Whether its data, all of it, is still there
    pub present: bool,
    /// How long the execution took that gave it
    pub duration: Duration,
}

/// What is to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a, R> {
    /// The preimage's key
    pub key: Key,
    /// What the result came from
    pub preimage: &'a Preimage,
    /// The result, its data present
    pub result: &'a R,
    /// How long the execution took
    pub duration: Duration,
    /// What an earlier record of the key means
    pub earlier: Earlier,
    /// The vertex's name, for people
    pub name: &'a str,
    /// The vertex's place in the source text
    pub span: Option<&'a Range<usize>>,
}

/// What an earlier record means for a result that came out the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// Its data was gone, or the key was known only afterwards: what it knows of the result stays, such as when it was
    /// first made.
    Kept,
    /// It was not to be used: the new result takes its place whole.
    Replaced,
}

/// The answer to [`Records::claim`].
#[derive(Debug)]
pub enum Claim<G> {
    /// The key is the caller's until the guard is dropped.
    Owned(G),
    /// Somebody else has it.
    Busy {
        /// Who, as far as is known; for people
        holder: String,
    },
}
