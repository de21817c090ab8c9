//! kiln-layer: see docs/architecture.md.
#![forbid(unsafe_code)]
