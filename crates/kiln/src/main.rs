//! The command line.
#![allow(dead_code, reason = "commands that need the store are not here yet")]

mod failure;
mod filters;
mod format;
mod listing;
mod units;

fn main() {}
