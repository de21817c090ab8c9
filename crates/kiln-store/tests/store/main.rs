//! The store through its public methods.

mod archives;
mod fixture;
mod keeping;
mod mounted;
#[path = "../../../../tests/skipped.rs"]
mod skipped;
mod sources;
mod stale;
