//! The commands. Each module takes its arguments and prints its outcome; what it does is a library's work.

mod build;
mod check;
mod contents;
mod disk_usage;
mod history;
mod images;
mod import;
mod info;
mod inspect;
mod load;
mod prune;
mod remove;
mod run;
mod save;
mod tag;
mod version;

use anyhow::Result;
use kiln_oci::Reference;

use crate::arguments::{Arguments, Command, ImageCommand, SystemCommand};
use crate::failure::{Convention, Failure, Kind, report};
use crate::progress::log::sanitise;

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
        Command::Run(arguments) => run::run(root, arguments),
        Command::Images(list) | Command::Image(ImageCommand::Ls(list)) => images::run(root, list),
        Command::History(history) | Command::Image(ImageCommand::History(history)) => {
            history::run(root, history)
        }
        Command::Inspect(inspect) => inspect::run(root, inspect),
        Command::Image(ImageCommand::Inspect(inspect)) => inspect::image(root, inspect),
        Command::Tag(tag) | Command::Image(ImageCommand::Tag(tag)) => tag::run(root, tag),
        Command::Rmi(remove) | Command::Image(ImageCommand::Rm(remove)) => remove::run(root, remove),
        Command::Load(load) | Command::Image(ImageCommand::Load(load)) => load::run(root, load),
        Command::Save(save) | Command::Image(ImageCommand::Save(save)) => save::run(root, save),
        Command::Import(import) | Command::Image(ImageCommand::Import(import)) => import::run(root, import),
        Command::Image(ImageCommand::Files(files)) => contents::files(root, files),
        Command::Image(ImageCommand::Cat(cat)) => contents::cat(root, cat),
        Command::Image(ImageCommand::Diff(diff)) => contents::diff(root, diff),
        Command::Image(ImageCommand::Unpack(unpack)) => contents::unpack(root, unpack),
        Command::Image(ImageCommand::Prune(prune)) => prune::images(root, prune),
        Command::System(SystemCommand::Prune(prune)) => prune::system(root, prune),
        Command::System(SystemCommand::Df(usage)) => disk_usage::run(root, usage),
        Command::System(SystemCommand::Check(_)) => check::run(root),
        Command::Info(info) | Command::System(SystemCommand::Info(info)) => info::run(root, info),
        Command::Version(version) => version::show(version),
    }
}

/// A name that an image is to get: nobody chooses a digest.
fn new_name(text: &str) -> Result<Reference> {
    let name: Reference = text.parse().map_err(|error: kiln_oci::ReferenceError| {
        Failure::new(Kind::Input, format!("cannot use {text:?} as a name")).caused_by(error)
    })?;
    if name.digest.is_some() {
        let message =
            format!("cannot use {text:?} as a name: refusing to create a tag with a digest reference");
        return Err(Failure::new(Kind::Input, message).into());
    }
    Ok(name.or_latest())
}

/// Tells of files that were to be removed and may not be, if there are any.
fn tell_files_stay(reason: Option<&str>) {
    let Some(reason) = reason else { return };
    let stay = format!("kiln: warning: some files stay in the store: {reason}");
    let hint = "give this user back the ranges of /etc/subuid and /etc/subgid that made them, or remove them as root";
    crate::output::aside(&format!("{}\nhint: {hint}\n", sanitise(stay.as_bytes())));
}

/// Tells of every failure of a command that goes on after one; the exit status is 0 if there is none, else 1.
fn report_all(failures: &[anyhow::Error]) -> u8 {
    for failure in failures {
        crate::output::aside(&report(failure, Convention::Plain).text);
    }
    u8::from(!failures.is_empty())
}
