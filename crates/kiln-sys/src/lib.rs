//! The only room of the workspace where `unsafe` may be written: what the kernel offers, made safe.
pub mod mount;
pub mod namespace;
pub mod overlay;
pub mod process;
pub mod seccomp;
pub mod terminal;
