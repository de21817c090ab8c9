//! Dockerfiles to images.
//!
//! This crate owns the way from a syntax tree to a graph, one file an operation, and the exporter. It must never
//! parse text or talk to a terminal.
//!
//! Entry: [`build`].
#![forbid(unsafe_code)]

mod beginning;
mod build;
mod caches;
mod checksum;
mod context;
mod context_walk;
mod copy;
mod download;
mod earlier;
mod engine;
mod environment;
mod error;
mod examine;
mod export;
mod file_system;
mod filter;
mod git;
mod image_tree;
#[cfg(test)]
mod lab;
mod lower;
mod materialize;
mod mode;
mod operation;
mod owner;
mod request;
mod route;
mod run;
mod select;
#[cfg(test)]
#[path = "../../../tests/skipped.rs"]
mod skipped;
mod stage;
mod staging;
mod stat_cache;
mod stopping;
mod transfer;
mod tree;
mod unpack;
mod wait;
mod workdir;

pub use build::{BuildFailure, Built, Watcher, build};
pub use error::{Absence, Error, Result};
pub use git::{GitLimits, GitProgram, check_out};
pub use request::{
    BuildRequest, CacheUse, ContextKind, Entitlement, Executions, GivenModes, Lent, NetworkMode,
};
pub use stage::apply_changes;
