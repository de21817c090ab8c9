//! `build` as a whole, over a base image of one static program. Needs root, and busybox of Debian's busybox-static at
//! /bin/busybox or /usr/bin/busybox; says so where it is skipped.

mod bench;
mod dice;
mod kills;
mod mounted;
mod recipe;
mod refusals;
mod stale;
mod together;
