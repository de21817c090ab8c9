//! What the kernel offers, made safe. The only room of the workspace where `unsafe` may be written.
//!
//! This crate owns mounts and namespaces, processes and terminals, seccomp filters, path resolution under a
//! hostile root, durable publishing, locks and maps. It must never know what an image is.
//!
//! Entry: [`root::Root`] (paths), [`overlay::Overlay`] (mounts), [`process`] (launching).
#![allow(unsafe_code)]

pub mod bpf;
mod clone;
pub mod erofs;
pub mod lock;
pub mod mmap;
pub mod mount;
pub mod namespace;
pub mod overlay;
mod privilege;
pub mod process;
pub mod publish;
pub mod root;
pub mod seccomp;
#[cfg(test)]
#[path = "../../../tests/skipped.rs"]
mod skipped;
pub mod status;
pub mod streams;
pub mod terminal;
pub mod xattr;
