//! Parsing with Docker's rule for switches, `--rm=false`, and refusals in kiln's words.
//!
//! Help and usage come from the plain definition, where a switch takes no value; what is parsed is a copy in which
//! each switch may have one, and of flags that are given again the last counts.

use std::ffi::OsStr;

use clap::builder::PossibleValuesParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command, CommandFactory as _, FromArgMatches as _};

use super::{Arguments, missing};
use crate::failure::{Failure, Kind, enumerate, nearest};

/// Why there is nothing to do.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Help or the version was asked for, or no command was named.
    Shown { text: clap::Error },
    /// The command line was not understood.
    Refused(Refusal),
}

/// What was not understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    message: String,
    hint: String,
}

impl Refusal {
    /// The refusal as an error of the command line.
    pub(crate) fn into_failure(self) -> Failure {
        Failure::new(Kind::Usage, self.message).hint(self.hint)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "kiln: {}\nhint: {}", self.message, self.hint)
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shown { text } => text.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

/// Parses a command line, the program's name first.
pub(crate) fn parse<W: AsRef<OsStr>>(words: &[W]) -> Result<Arguments, Stop> {
    let words: Vec<&OsStr> = words.iter().map(AsRef::as_ref).collect();
    // `kiln help image prune`, as in Docker.
    if let [program, help, command @ ..] = &words[..]
        && *help == "help"
    {
        return parse_plainly(&[&[*program], command, &[OsStr::new("--help")]].concat());
    }
    parse_plainly(&words)
}

fn parse_plainly(words: &[&OsStr]) -> Result<Arguments, Stop> {
    if let Some(Ok(arguments)) = Arguments::command_for(words).map(|command| parse_with(command, words)) {
        return Ok(arguments);
    }
    let parsed = parse_with(Arguments::command(), words);
    let error = match parsed {
        Ok(arguments) => return Ok(arguments),
        Err(error) => error,
    };
    let shown = |kind| {
        use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
        matches!(kind, DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand)
    };
    // A switch's value is an error in the plain definition, so that its text stands only for help.
    match Arguments::command().try_get_matches_from(words) {
        Err(plain) if shown(plain.kind()) && shown(error.kind()) => Err(Stop::Shown { text: plain }),
        _ if shown(error.kind()) => Err(Stop::Shown { text: error }),
        _ => Err(Stop::Refused(refusal(&error, &command_words(words), words))),
    }
}

fn parse_with(command: Command, words: &[&OsStr]) -> clap::error::Result<Arguments> {
    let matches = with_values(command).try_get_matches_from(words)?;
    Arguments::from_arg_matches(&matches).map(Arguments::with_environment)
}

fn with_values(command: Command) -> Command {
    // Of a flag that is given again the last counts, as in Docker: scripts put theirs before "$@".
    let command = command.args_override_self(true).mut_args(|argument| match argument.get_action() {
        ArgAction::SetTrue => argument
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .value_parser(switch()),
        ArgAction::Set if argument.get_default_values() == ["true"] => argument.value_parser(switch()),
        _ => argument,
    });
    let names: Vec<String> = command.get_subcommands().map(|child| child.get_name().to_owned()).collect();
    names.iter().fold(command, |command, name| command.mut_subcommand(name, with_values))
}

/// Go's words for true and false.
fn switch() -> impl clap::builder::TypedValueParser<Value = bool> {
    use clap::builder::TypedValueParser as _;
    let words = ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];
    PossibleValuesParser::new(words).map(|word| word.starts_with(['1', 't', 'T']))
}

/// The commands and subcommands among `words`: "kiln image prune".
fn command_words(words: &[&OsStr]) -> String {
    let mut at = Arguments::command();
    let mut path = "kiln".to_owned();
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let flag = word.to_str().and_then(|word| word.strip_prefix("--")).unwrap_or_default();
        let takes_value =
            |known: &clap::Arg| known.get_long() == Some(flag) && known.get_action().takes_values();
        if at.get_arguments().any(takes_value) {
            words.next();
            continue;
        }
        let Some(child) = word.to_str().and_then(|word| at.find_subcommand(word)) else { continue };
        path = format!("{path} {}", child.get_name());
        at = child.clone();
        if at.get_subcommands().next().is_none() {
            break;
        }
    }
    path
}

fn definition(path: &str) -> Command {
    path.split(' ').skip(1).fold(Arguments::command(), |at, word| {
        at.find_subcommand(word).cloned().unwrap_or_else(|| Command::new("kiln"))
    })
}

fn refusal(error: &clap::Error, path: &str, words: &[&OsStr]) -> Refusal {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.first().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let argument = text(ContextKind::InvalidArg);
    let flags_of =
        |argument: &str| argument.split_once("[=<").map_or(argument.to_owned(), |(name, _)| name.to_owned());
    let usage = || {
        let usage = definition(path).bin_name(path).render_usage().to_string();
        format!("usage: {}", usage.trim_start_matches("Usage: "))
    };
    let more = || format!("`{path} --help` tells more");
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand);
            // What comes behind it may be named as a command is.
            let before = words.iter().position(|known| **known == *word).unwrap_or(words.len());
            let path = &command_words(&words[..before]);
            let commands = definition(path);
            let names: Vec<&str> =
                commands.get_subcommands().flat_map(Command::get_name_and_visible_aliases).collect();
            let near =
                nearest(&word, names).map_or_else(String::new, |near| format!(": did you mean '{near}'?"));
            let full = format!("{path} {word}");
            let full = full.trim_start_matches("kiln ");
            Refusal {
                message: format!("unknown command '{full}'{near}"),
                hint: missing::command(&word)
                    .map_or_else(|| format!("`{path} --help` lists the commands"), str::to_owned),
            }
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let command = definition(path);
            let flags = command.get_arguments().filter_map(|argument| argument.get_long());
            let near = nearest(argument.trim_start_matches('-'), flags)
                .map_or_else(String::new, |near| format!(": did you mean '--{near}'?"));
            Refusal {
                message: format!("unknown flag: {argument}{near}"),
                hint: missing::flag(path, &argument)
                    .map_or_else(|| format!("`{path} --help` lists the flags"), str::to_owned),
            }
        }
        ErrorKind::UnknownArgument if matches!(path, "kiln load" | "kiln image load") => Refusal {
            message: format!("unexpected argument '{argument}'"),
            hint: format!("-i names the archive: {path} -i {argument}"),
        },
        ErrorKind::MissingSubcommand => Refusal {
            message: "no command is named".to_owned(),
            hint: format!("`{path} --help` lists the commands"),
        },
        ErrorKind::UnknownArgument => {
            Refusal { message: format!("unexpected argument '{argument}'"), hint: usage() }
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(names)) => names.clone(),
                _ => Vec::new(),
            };
            let names: Vec<String> = missing
                .iter()
                .map(|name| name.strip_prefix('<').unwrap_or(name).replacen("]>", "]", 1))
                .map(|name| name.trim_end_matches("...").trim_end_matches('>').to_owned())
                .collect();
            Refusal { message: format!("'{path}' needs {}", enumerate(&names)), hint: usage() }
        }
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_empty() => {
            Refusal { message: format!("{} needs a value", flags_of(&argument)), hint: more() }
        }
        ErrorKind::InvalidValue => {
            let expected = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(words)) if words.iter().any(|word| word == "False") => {
                    "true or false".to_owned()
                }
                Some(ContextValue::Strings(words)) => enumerate(words).replace(" and ", " or "),
                _ => "something else".to_owned(),
            };
            Refusal {
                message: format!(
                    "invalid value '{}' for {}: expected {expected}",
                    text(ContextKind::InvalidValue),
                    flags_of(&argument)
                ),
                hint: more(),
            }
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Refusal { message: line.trim_start_matches("error: ").to_owned(), hint: more() }
        }
    }
}
