//! kiln-container: see docs/architecture.md.
#![forbid(unsafe_code)]
