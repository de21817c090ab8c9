//! The store through its public methods.

mod archives;
mod fixture;
mod keeping;
mod mounted;
mod repair;
mod sources;
mod stale;
