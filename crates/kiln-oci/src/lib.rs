//! The vocabulary of images: digests, references, descriptors, manifests, configs, platforms, users.
//!
//! This crate owns the meaning of OCI's and Docker's documents. It must never touch a disk or a network: it
//! turns bytes into values and values into bytes. A document that came from outside keeps its own bytes, and
//! digests are taken from those.
//!
//! Entry: [`Digest`], [`Reference`], [`ImageConfig`], [`Manifest`].
#![forbid(unsafe_code)]

mod config;
mod digest;
mod manifest;
mod members;
mod platform;
mod reference;
mod users;

pub use config::{Config, Empty, Healthcheck, History, ImageConfig, RootFs};
pub use digest::{ChainId, DiffId, Digest, DigestError, Hasher, HashingWriter, ImageId};
pub use manifest::{
    Annotations, Descriptor, Document, DocumentError, Index, MAX_DOCUMENT_SIZE, Manifest, media_type,
};
pub use members::{Shape, check_members};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use users::{Groups, UserError, UserSpec, find_group, find_user};
