//! Rules of the instructions that hold a command: RUN, CMD, ENTRYPOINT, SHELL, HEALTHCHECK.

use std::time::Duration;

use super::{Cut, Fault, Parser, Ruled, at_least_one, required};
use crate::diagnostic::Diagnostic;
use crate::expand::{Expander, NoVariables};
use crate::flag::{FlagKind, Flags};
use crate::instruction::{Check, CommandLine, Healthcheck, Network, Run, Security};
use crate::json::{self, JsonForm};
use crate::mount::{DeviceFlag, MountFlag};
use crate::source::Word;
use crate::{suggest, value};

impl Parser<'_> {
    pub(super) fn plain_command(&mut self, cut: &Cut<'_>) -> Ruled<CommandLine> {
        self.flags(cut, &[]);
        self.command(cut, 0)
    }

    pub(super) fn command(&mut self, cut: &Cut<'_>, from: usize) -> Ruled<CommandLine> {
        Ok(match self.json(cut, from)? {
            Some(words) => CommandLine::Exec(words),
            None => {
                let word = cut.line.word(self.source, cut.arguments.start + from..cut.arguments.end);
                self.warn_almost_json(&word);
                CommandLine::Shell(word)
            }
        })
    }

    /// `CMD ['a', 'b']` is run by the shell, which is hardly meant.
    pub(super) fn warn_almost_json(&mut self, word: &Word) {
        let text = &word.text;
        if text.starts_with('[') && text.ends_with(']') && !text.starts_with("[ ") && !text.starts_with("[[")
        {
            let message = "the JSON array is malformed, so the whole text is given to the shell";
            let hint = text.contains('\'').then(|| "JSON strings stand in double quotes".to_owned());
            self.diagnostics.push(Diagnostic::warning(None, message, word.span).with_hint(hint));
        }
    }

    pub(super) fn shell(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Word>> {
        self.flags(cut, &[]);
        let words = self.json(cut, 0)?;
        required(cut, self.whole(cut))?;
        match words {
            Some(words) if words.is_empty() => Err(at_least_one(cut)),
            Some(words) => Ok(words),
            None => {
                let message =
                    format!("SHELL requires the arguments to be in JSON form, found {}", cut.text());
                let hint = "for example SHELL [\"/bin/bash\", \"-c\"]";
                Err(Fault::meaning(message, self.whole(cut).span).with_hint(Some(hint.to_owned())))
            }
        }
    }

    pub(super) fn run(&mut self, cut: &Cut<'_>) -> Ruled<Run> {
        use FlagKind::{Value, Values};
        let flags = self
            .flags(cut, &[("mount", Values), ("network", Value), ("security", Value), ("device", Values)]);
        let network = match self.choice(&flags, "network", "network mode", &["default", "none", "host"]) {
            1 => Network::None,
            2 => Network::Host,
            _ => Network::Default,
        };
        let security = match self.choice(&flags, "security", "security mode", &["sandbox", "insecure"]) {
            1 => Security::Insecure,
            _ => Security::Sandbox,
        };
        let mut mounts = Vec::new();
        for word in flags.values("mount") {
            let span = word.span;
            let literal = !word.text.contains('$');
            // What names no variable can be checked here; the rest waits for the environment.
            let checked = MountFlag::new(word).and_then(|flag| {
                if literal {
                    flag.resolve(|value| Expander::new(self.escape).word(value, &NoVariables))?;
                }
                Ok(flag)
            });
            match checked {
                Ok(mount) => mounts.push(mount),
                Err(error) => self.error(error.to_string(), span),
            }
        }
        let mut devices = Vec::new();
        for word in flags.values("device") {
            let span = word.span;
            match DeviceFlag::new(word) {
                Ok(device) => devices.push(device),
                Err(error) => self.error(error.to_string(), span),
            }
        }
        let command = self.command(cut, 0)?;
        Ok(Run { command, heredocs: cut.heredocs.to_vec(), mounts, network, security, devices })
    }

    /// Index of the flag's value among the allowed ones; 0 where it is not given or wrong.
    pub(super) fn choice(&mut self, flags: &Flags, name: &str, what: &str, allowed: &[&str]) -> usize {
        let Some(word) = flags.values(name).into_iter().next() else { return 0 };
        let index = allowed.iter().position(|known| *known == word.text);
        if index.is_none() {
            let message = format!("invalid {what} {:?}: expected {}", word.text, allowed.join(", "));
            let hint = suggest::hint(&word.text, allowed.iter().copied());
            self.diagnostics.push(Diagnostic::error(message, word.span).with_hint(hint));
        }
        index.unwrap_or(0)
    }

    pub(super) fn healthcheck(&mut self, cut: &Cut<'_>) -> Ruled<Healthcheck> {
        let text = cut.text();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        if end == 0 {
            return Err(at_least_one(cut));
        }
        let from = text.len() - text[end..].trim_start().len();
        let kind = cut.line.word(self.source, cut.arguments.start..cut.arguments.start + end);
        match kind.text.to_uppercase().as_str() {
            "NONE" => {
                self.warn_flags(cut, "HEALTHCHECK NONE");
                let nothing =
                    from == text.len() || json::read(&text[from..]) == JsonForm::Strings(Vec::new());
                if !nothing {
                    return Err(Fault::meaning("HEALTHCHECK NONE takes no arguments", self.whole(cut).span));
                }
                Ok(Healthcheck::None)
            }
            "CMD" => Ok(Healthcheck::Check(self.check(cut, from)?)),
            other => {
                let message = format!("unknown type {other:?} in HEALTHCHECK: expected CMD or NONE");
                let hint =
                    suggest::hint(other, ["CMD", "NONE"]).or(Some("try HEALTHCHECK CMD ...".to_owned()));
                Err(Fault::meaning(message, kind.span).with_hint(hint))
            }
        }
    }

    pub(super) fn check(&mut self, cut: &Cut<'_>, from: usize) -> Ruled<Check> {
        use FlagKind::Value;
        let names = ["interval", "timeout", "start-period", "start-interval", "retries"];
        let flags = self.flags(cut, &names.map(|name| (name, Value)));
        let command = self.command(cut, from)?;
        let empty = match &command {
            CommandLine::Shell(text) => text.text.is_empty(),
            CommandLine::Exec(words) => words.is_empty(),
        };
        if empty {
            return Err(Fault::meaning("missing command after HEALTHCHECK CMD", self.whole(cut).span));
        }
        let retries = flags.value("retries").map_or(0, |word| {
            let retries = word.text.parse::<i32>().ok().and_then(|retries| u32::try_from(retries).ok());
            if retries.is_none() {
                self.error(
                    format!("invalid --retries {:?}: expected a number that is not negative", word.text),
                    word.span,
                );
            }
            retries.unwrap_or(0)
        });
        Ok(Check {
            command,
            interval: self.interval(&flags, "interval"),
            timeout: self.interval(&flags, "timeout"),
            start_period: self.interval(&flags, "start-period"),
            start_interval: self.interval(&flags, "start-interval"),
            retries,
        })
    }

    pub(super) fn interval(&mut self, flags: &Flags, name: &str) -> Duration {
        let Some(word) = flags.value(name) else { return Duration::ZERO };
        match value::parse_duration(&word.text) {
            Err(error) => self.error(format!("--{name}: {error}"), word.span),
            Ok(nanos) => match u64::try_from(nanos) {
                Ok(nanos) if nanos == 0 || nanos >= 1_000_000 => return Duration::from_nanos(nanos),
                _ => self.error(format!("--{name} cannot be less than 1ms, found {}", word.text), word.span),
            },
        }
        Duration::ZERO
    }
}
