//! `build` as a whole, over a base image of one static program. Needs root (all but one), and busybox of Debian's busybox-static at
//! /bin/busybox or /usr/bin/busybox; says so where it is skipped.

mod bench;
mod caches;
mod contexts;
mod dice;
mod downloads;
mod hostile;
mod kills;
mod layers;
mod mounted;
#[path = "../patience/mod.rs"]
mod patience;
mod recipe;
mod refusals;
mod repositories;
mod same_image;
#[path = "../../../../tests/skipped.rs"]
mod skipped;
mod stale;
mod together;
mod web;
