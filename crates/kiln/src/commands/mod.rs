//! The commands. Each module takes its arguments and prints its outcome; what it does is a library's work.

mod build;
mod import;
mod run;
mod version;

use anyhow::Result;

use crate::arguments::{Arguments, Command, ImageCommand};
use crate::failure::{Convention, Failure, Kind};

/// What a command was, for those who report its failure.
pub(crate) fn convention(command: &Command) -> Convention {
    match command {
        Command::Run(_) => Convention::Run,
        _ => Convention::Plain,
    }
}

/// Does what was asked for and gives the exit status.
pub(crate) fn dispatch(arguments: &Arguments) -> Result<u8> {
    match &arguments.command {
        Command::Build(build) | Command::Image(ImageCommand::Build(build)) => {
            build::run(arguments.root(), build)
        }
        Command::Import(import) | Command::Image(ImageCommand::Import(import)) => {
            import::run(arguments.root(), import)
        }
        Command::Run(run) => run::run(arguments.root(), run),
        Command::Version(version) => version::show(version),
        _ => Err(Failure::new(Kind::Usage, "this command is not part of this build").into()),
    }
}
