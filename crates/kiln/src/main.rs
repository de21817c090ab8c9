//! The command line.
#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod context;
mod environment_file;
mod failure;
mod filters;
mod format;
mod interrupt;
mod lent;
mod listing;
mod output;
mod progress;
mod prompt;
mod session;
mod timings;
mod units;
mod watch;
mod web;

use std::process::ExitCode;

use arguments::Arguments;
use arguments::switches::{self, Stop};
use failure::Convention;
use timings::Timings;

fn main() -> ExitCode {
    kiln_runtime::init_if_asked();
    kiln_sys::process::remember_children();
    kiln_sys::process::report_large_files();
    let status = command_line();
    kiln_runtime::wait_for_wardens();
    status
}

fn command_line() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let (error, convention) = match switches::parse(&words) {
        Ok(arguments) => match run(&arguments) {
            Ok(status) => return ExitCode::from(status),
            Err(error) => (error, commands::convention(&arguments.command)),
        },
        Err(Stop::Shown { text }) => {
            let shown = output::is_there()
                .and_then(|()| text.print().and_then(|()| output::finish()).map_err(output::own));
            match shown {
                Ok(()) => return ExitCode::SUCCESS,
                Err(error) => (error.into(), Convention::Plain),
            }
        }
        Err(Stop::Refused(refusal)) => (refusal.into_failure().into(), Convention::Plain),
    };
    ExitCode::from(tell(&error, convention))
}

/// Does what was asked for, and tells where its time went if that was asked for, too.
fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let timings = Timings::start(arguments)?;
    let outcome = commands::dispatch(arguments).and_then(|status| {
        output::finish()?;
        Ok(status)
    });
    let status = match &outcome {
        // What failed comes before the table.
        Err(error) => tell(error, commands::convention(&arguments.command)),
        Ok(status) => *status,
    };
    match timings.finish() {
        // What the command itself came to is said first.
        Err(error) if status != 0 => {
            tell(&error, Convention::Plain);
            Ok(status)
        }
        finished => finished.map(|()| status),
    }
}

/// Reports a failure and gives the exit status.
fn tell(error: &anyhow::Error, convention: Convention) -> u8 {
    let report = failure::report(error, convention);
    output::aside(&report.text);
    report.status
}
