//! Layers: the one tar parser, the tar writer, whiteouts, compression, the layer index and views of an image's root.
//!
//! This crate owns what is between a layer's bytes and its files. It must never open a network connection, and never
//! joins a path onto a root: that is `kiln-sys`'s. Entries: [`walk`] for a layer that comes in, [`LayerWriter`] for one that
//! is made, [`LayerIndex`] for what it holds, [`RootView`] for a stack of them.
#![forbid(unsafe_code)]

pub mod archive;
pub mod capture;
mod complete;
pub mod compression;
pub mod contents;
mod copy;
pub mod diff;
pub mod erofs;
pub mod error;
pub mod facts;
pub mod frames;
pub mod index;
pub mod metadata;
mod outlet;
pub mod path;
mod stream;
pub mod tar;
mod unpack;
pub mod view;
mod walk;
pub mod writer;

pub use capture::{Capture, Changes, GoOn, Marks, Owner, Owners, RecordedDevice, Stub, capture};
pub use complete::{OpenLower, complete};
pub use compression::Compression;
pub use contents::{ContentReader, ContentSource, LayerContents};
pub use copy::{Copied, copy, note_copied};
pub use diff::{Change, Difference, diff};
pub use error::{Error, Result};
pub use index::LayerIndex;
pub use metadata::{Kind, Metadata};
pub use unpack::{Ownership, Unpack, Whiteouts};
pub use view::RootView;
pub use walk::{Limits, Options, Size, Walk, walk};
pub use writer::{LayerWriter, Outputs, Source, Written};
