//! The commands. Each module takes its arguments and prints its outcome; what it does is a library's work.

mod build;
mod history;
mod images;
mod import;
mod inspect;
mod load;
mod remove;
mod tag;
mod version;

use std::io::Write as _;

use anyhow::Result;

use crate::arguments::{Arguments, Command, ImageCommand};
use crate::failure::{Convention, Failure, Kind, report};

/// What a command was, for those who report its failure.
pub(crate) fn convention(command: &Command) -> Convention {
    match command {
        Command::Run(_) => Convention::Run,
        _ => Convention::Plain,
    }
}

/// Does what was asked for and gives the exit status.
pub(crate) fn dispatch(arguments: &Arguments) -> Result<u8> {
    let root = arguments.root();
    match &arguments.command {
        Command::Build(build) | Command::Image(ImageCommand::Build(build)) => build::run(root, build),
        Command::Images(list) | Command::Image(ImageCommand::Ls(list)) => images::run(root, list),
        Command::History(history) | Command::Image(ImageCommand::History(history)) => {
            history::run(root, history)
        }
        Command::Inspect(inspect) => inspect::run(root, inspect),
        Command::Image(ImageCommand::Inspect(inspect)) => inspect::image(root, inspect),
        Command::Tag(tag) | Command::Image(ImageCommand::Tag(tag)) => tag::run(root, tag),
        Command::Rmi(remove) | Command::Image(ImageCommand::Rm(remove)) => remove::run(root, remove),
        Command::Load(load) | Command::Image(ImageCommand::Load(load)) => load::run(root, load),
        Command::Import(import) | Command::Image(ImageCommand::Import(import)) => import::run(root, import),
        Command::Version(version) => version::show(version),
        _ => Err(Failure::new(Kind::Usage, "this command is not part of this build").into()),
    }
}

/// Tells of every failure of a command that goes on after one; the exit status is 0 if there is none, else 1.
fn report_all(failures: &[anyhow::Error]) -> u8 {
    for failure in failures {
        // Nobody is left to tell if standard error is gone.
        let _ = std::io::stderr().write_all(report(failure, Convention::Plain).text.as_bytes());
    }
    u8::from(!failures.is_empty())
}
