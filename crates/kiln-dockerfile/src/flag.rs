//! The `--flags` of one instruction, checked against what the instruction knows.

use crate::diagnostic::Diagnostic;
use crate::source::Word;
use crate::suggest;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// `--x`, `--x=true`, `--x=false`
    Switch,
    /// `--x=value`, once
    Value,
    /// `--x=value`, any number of times
    Values,
}

/// A flag as written: its name without `--`, and its value.
#[derive(Debug)]
struct Given {
    name: &'static str,
    value: String,
    word: Word,
}

/// The flags found good.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    given: Vec<Given>,
}

impl Flags {
    /// Reads an instruction's flag words; what is wrong with them goes to `diagnostics`.
    pub(crate) fn read(
        instruction: &str,
        words: &[Word],
        known: &[(&'static str, FlagKind)],
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut flags = Self::default();
        for word in words {
            match flags.read_one(instruction, word, known) {
                Ok(given) => flags.given.push(given),
                Err(diagnostic) => diagnostics.push(diagnostic),
            }
        }
        flags
    }

    fn read_one(
        &self,
        instruction: &str,
        word: &Word,
        known: &[(&'static str, FlagKind)],
    ) -> Result<Given, Diagnostic> {
        let (flag, value) =
            word.text.split_once('=').map_or((word.text.as_str(), None), |(flag, value)| (flag, Some(value)));
        let name = flag.strip_prefix("--").unwrap_or(flag);
        let fail = |message: String| Diagnostic::error(message, word.span);
        let Some((name, kind)) = known.iter().find(|(known, _)| *known == name) else {
            let near = suggest::near(name, known.iter().map(|(name, _)| *name))
                .map(|near| format!("did you mean --{near}?"));
            let list: Vec<String> = known.iter().map(|(name, _)| format!("--{name}")).collect();
            let takes = if list.is_empty() { "no flags".to_owned() } else { list.join(", ") };
            return Err(fail(format!("unknown flag: {flag}"))
                .with_hint(near.or(Some(format!("{instruction} takes {takes}")))));
        };
        if *kind != FlagKind::Values && self.given.iter().any(|given| given.name == *name) {
            return Err(fail(format!("duplicate flag specified: {flag}")));
        }
        let value = match (kind, value) {
            (FlagKind::Switch, None) => "true".to_owned(),
            (FlagKind::Switch, Some("")) | (FlagKind::Value | FlagKind::Values, None) => {
                return Err(fail(format!("missing a value on flag: {flag}")));
            }
            (FlagKind::Switch, Some(value)) => match value.to_lowercase().as_str() {
                "true" => "true".to_owned(),
                "false" => "false".to_owned(),
                _ => return Err(fail(format!("expecting boolean value for flag {flag}, not: {value}"))),
            },
            (FlagKind::Value | FlagKind::Values, Some(value)) => value.to_owned(),
        };
        Ok(Given { name, value, word: word.clone() })
    }

    /// The flag's value, if it was given and is not empty.
    pub(crate) fn value(&self, name: &str) -> Option<Word> {
        self.values(name).into_iter().next().filter(|word| !word.text.is_empty())
    }

    /// All values of the flag.
    pub(crate) fn values(&self, name: &str) -> Vec<Word> {
        let given = self.given.iter().filter(|given| given.name == name);
        given.map(|given| given.word.with_text(given.value.clone())).collect()
    }

    /// The switch, if it was given.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.given.iter().find(|given| given.name == name).map(|given| given.value == "true")
    }
}
