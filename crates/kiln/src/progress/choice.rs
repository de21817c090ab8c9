//! Which display fits what was asked for and what standard error is.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;

use clap::ValueEnum as _;

use super::{Colours, Mode, Size};
use crate::arguments::build::ProgressMode;
use crate::failure::{Failure, Kind};

/// What standard error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Terminal(Colours),
    /// A terminal that cannot move its cursor.
    Dumb,
    Other,
}

impl Mode {
    /// The display for `--progress` and `--quiet` on this process's standard error.
    ///
    /// # Errors
    /// Lines that change in place were asked for where there is no terminal, or the environment asks for what is no display.
    pub(crate) fn choose(asked: Option<ProgressMode>, quiet: bool) -> Result<Self, Failure> {
        let asked = match asked {
            // It would not be looked at.
            None if quiet => ProgressMode::Auto,
            None => named(set("BUILDKIT_PROGRESS").as_deref())?,
            Some(asked) => asked,
        };
        choose(asked, quiet, output())
    }
}

/// What a variable asks for.
fn named(word: Option<&OsStr>) -> Result<ProgressMode, Failure> {
    let Some(word) = word else { return Ok(ProgressMode::Auto) };
    let word = word.to_string_lossy();
    ProgressMode::from_str(&word, false).map_err(|_| {
        let message = format!("invalid value {word:?} of BUILDKIT_PROGRESS: expected auto, plain or tty");
        Failure::new(Kind::Usage, message).hint("--progress counts before it")
    })
}

/// A variable of the environment that is not empty.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn choose(asked: ProgressMode, quiet: bool, output: Output) -> Result<Mode, Failure> {
    let terminal = |colours| Mode::Terminal { size: Box::new(size), colours };
    match (asked, output) {
        _ if quiet => Ok(Mode::Quiet),
        (ProgressMode::Auto | ProgressMode::Tty, Output::Terminal(colours)) => Ok(terminal(colours)),
        (ProgressMode::Plain, _) | (ProgressMode::Auto, _) => Ok(Mode::Plain),
        (ProgressMode::Tty, Output::Dumb | Output::Other) => {
            let message =
                "cannot show progress as tty: standard error is not a terminal that can move its cursor";
            Err(Failure::new(Kind::Usage, message).hint("--progress=plain works everywhere"))
        }
    }
}

fn output() -> Output {
    if !std::io::stderr().is_terminal() {
        return Output::Other;
    }
    match set("TERM") {
        Some(term) if term != "dumb" => match set("NO_COLOR") {
            Some(_) => Output::Terminal(Colours::Unused),
            None => Output::Terminal(Colours::Used),
        },
        _ => Output::Dumb,
    }
}

/// The terminal's size now; it may change at any time.
fn size() -> Size {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => Size { columns: 80, rows: 24 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As buildx: one that is empty is not there, one that it does not know is an error.
    #[test]
    fn the_environment_chooses() {
        #[track_caller]
        fn check(word: Option<&str>, expect: Option<ProgressMode>) {
            assert_eq!(named(word.map(OsStr::new)).ok(), expect, "{word:?}");
        }
        check(None, Some(ProgressMode::Auto));
        check(Some("auto"), Some(ProgressMode::Auto));
        check(Some("plain"), Some(ProgressMode::Plain));
        check(Some("tty"), Some(ProgressMode::Tty));
        check(Some("rawjson"), None);
        check(Some("Plain"), None);
    }

    #[test]
    fn choices() {
        #[track_caller]
        fn check(asked: ProgressMode, quiet: bool, output: Output, expect: &str) {
            let found = match choose(asked, quiet, output) {
                Ok(Mode::Plain) => "plain",
                Ok(Mode::Terminal { colours: Colours::Used, .. }) => "coloured",
                Ok(Mode::Terminal { colours: Colours::Unused, .. }) => "terminal",
                Ok(Mode::Quiet) => "quiet",
                Err(_) => "refused",
            };
            assert_eq!(found, expect, "{asked:?} {quiet} {output:?}");
        }
        check(ProgressMode::Auto, false, Output::Terminal(Colours::Used), "coloured");
        check(ProgressMode::Auto, false, Output::Terminal(Colours::Unused), "terminal");
        check(ProgressMode::Auto, false, Output::Dumb, "plain");
        check(ProgressMode::Auto, false, Output::Other, "plain");
        check(ProgressMode::Plain, false, Output::Terminal(Colours::Used), "plain");
        check(ProgressMode::Tty, false, Output::Terminal(Colours::Used), "coloured");
        check(ProgressMode::Tty, false, Output::Dumb, "refused");
        check(ProgressMode::Tty, false, Output::Other, "refused");
        check(ProgressMode::Tty, true, Output::Other, "quiet");
        check(ProgressMode::Auto, true, Output::Terminal(Colours::Used), "quiet");
    }
}
