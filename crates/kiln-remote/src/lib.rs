//! All outgoing HTTP.
//!
//! This crate owns requests, redirects, proxies, certificates and the limits of a download. It must never touch the
//! store, follow a redirect from https to http, send what was meant for one host to another, or wait for ever: whoever
//! reads a body gets every byte counted and a silent server ended.
//!
//! Entry: [`Client`]. Nothing here starts a thread.
#![forbid(unsafe_code)]

mod address;
mod client;
mod date;
mod download;
mod error;
mod forward;
mod proxy;

pub use address::shown;
pub use client::{Answer, Client, Known, Limits, Settings};
pub use date::parse_date;
pub use download::Download;
pub use error::{Error, Result};
pub use proxy::Proxies;
