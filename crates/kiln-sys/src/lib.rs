//! The only room of the workspace where `unsafe` may be written: what the kernel offers, made safe.
