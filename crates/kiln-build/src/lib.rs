//! Dockerfiles to images.
//!
//! This crate owns the way from a syntax tree to a graph, one file an operation, and the exporter. It must never
//! parse text or talk to a terminal.
//!
//! Entry: [`build`].
#![forbid(unsafe_code)]

mod build;
mod engine;
mod error;
mod export;
mod lower;
mod operation;
mod request;
mod run;
mod stage;

pub use build::{BuildFailure, Built, Watcher, build};
pub use error::{Error, Result};
pub use request::{BuildRequest, CacheUse, Entitlement, Lent, NetworkMode};
pub use stage::apply_changes;
