//! The command line.
#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod context;
mod failure;
mod filters;
mod format;
mod interrupt;
mod lent;
mod listing;
mod progress;
mod prompt;
mod session;
mod units;
mod watch;
mod web;

use std::io::Write as _;
use std::process::ExitCode;

use arguments::switches::{self, Stop};
use failure::Convention;

fn main() -> ExitCode {
    kiln_runtime::init_if_asked();
    let words: Vec<_> = std::env::args_os().collect();
    let (error, convention) = match switches::parse(&words) {
        Ok(arguments) => match commands::dispatch(&arguments) {
            Ok(status) => return ExitCode::from(status),
            Err(error) => (error, commands::convention(&arguments.command)),
        },
        Err(Stop::Shown { text }) => {
            // Nothing is left to do if the terminal is gone.
            let _ = text.print();
            return ExitCode::SUCCESS;
        }
        Err(Stop::Refused(refusal)) => (refusal.into_failure().into(), Convention::Plain),
    };
    let report = failure::report(&error, convention);
    let _ = std::io::stderr().lock().write_all(report.text.as_bytes());
    ExitCode::from(report.status)
}
