//! Containers: a command run in the foreground over the layers of an image, as `docker run` does it.
//!
//! This crate owns how an image's config and a request become a process, and what of the host such a process sees. It
//! must never build images.
//!
//! Entry: [`run`]. A container lives exactly as long as that call: what it writes goes with it, and nothing stays
//! mounted or running.
#![forbid(unsafe_code)]

mod error;
mod mounts;
mod process;
mod request;
mod run;

pub use error::{Error, Result};
pub use request::{Access, Entrypoint, Request, Variable, Volume, VolumeError, parse_volume};
pub use run::{Ended, run};
