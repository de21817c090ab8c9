//! The only room of the workspace where `unsafe` may be written: what the kernel offers, made safe.
#![allow(unsafe_code)]

pub mod lock;
pub mod mmap;
pub mod publish;
pub mod root;
pub mod xattr;
