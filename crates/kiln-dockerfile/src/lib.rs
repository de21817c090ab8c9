//! kiln-dockerfile: see docs/architecture.md.
#![forbid(unsafe_code)]
