//! kiln in environments that lack privileges, a file system that holds overlays, or user namespaces.

mod environment;
mod foreground;
mod owners;
#[path = "../patience/mod.rs"]
mod patience;
mod refused;
mod same;
#[path = "../../../../tests/skipped.rs"]
mod skipped;
