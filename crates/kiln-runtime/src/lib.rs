//! kiln-runtime: see docs/architecture.md.
#![forbid(unsafe_code)]
