//! The store through its public methods.

mod archives;
mod fixture;
mod keeping;
mod lost;
mod mounted;
mod published;
mod repair;
#[path = "../../../../tests/skipped.rs"]
mod skipped;
mod sources;
mod stack;
mod stale;
