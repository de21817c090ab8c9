//! kiln-oci: see docs/architecture.md.
#![forbid(unsafe_code)]
