//! What is wrong with a Dockerfile's words, found while it is lowered: all of it is told at once.

use std::collections::HashSet;

use kiln_dockerfile::{
    Diagnostic, Error as LanguageError, ExpandFailure, IgnoreMatcher, Instruction, Kind, MAX_DIAGNOSTICS,
    SourceKind, Span, Transfer, Word, clean_path, glob_match, has_wildcards, source_kind,
};

use super::at;
use crate::error::{Error, Result};

/// Faults so far. Looking for more goes on as long as what is found is no consequence of them.
#[derive(Default)]
pub(super) struct Faults {
    found: Vec<Diagnostic>,
    /// Variables that would have been set but for a fault.
    unknown: HashSet<String>,
}

impl Faults {
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn into_found(self) -> Vec<Diagnostic> {
        self.found
    }

    pub(super) fn push(&mut self, error: &LanguageError, span: Span) {
        self.found.push(Diagnostic::error(error.to_string(), span));
    }

    /// Notes what is wrong with a word; gives back what else is wrong, and what is too much.
    pub(super) fn note(&mut self, error: Error, instruction: &Instruction) -> Result<()> {
        let Error::Syntax(LanguageError::At { error, span }) = error else {
            return Err(at(error, instruction.span));
        };
        let is_consequence = matches!(
            &*error,
            LanguageError::Expand { reason: ExpandFailure::Required { name, .. }, .. } if self.unknown.contains(name)
        );
        if self.found.len() >= MAX_DIAGNOSTICS {
            return Err(Error::Syntax(LanguageError::At { error, span }));
        }
        if !is_consequence {
            self.push(&error, span);
        }
        let name = |word: &Word| word.text.clone();
        match &instruction.kind {
            Kind::Env(pairs) => self.unknown.extend(pairs.iter().map(|pair| name(&pair.key))),
            Kind::Arg(items) => self.unknown.extend(items.iter().map(|item| name(&item.name))),
            _ => {}
        }
        Ok(())
    }

    /// Notes the patterns of a COPY or ADD that mean nothing.
    pub(super) fn note_patterns(&mut self, transfer: &Transfer) {
        let paths = transfer.sources.iter().filter(|source| source_kind(&source.text) == SourceKind::Path);
        let malformed = paths.filter(|source| is_malformed(&source.text)).chain(
            transfer.exclude.iter().filter(|pattern| IgnoreMatcher::new([pattern.text.as_str()]).is_err()),
        );
        let room = MAX_DIAGNOSTICS.saturating_sub(self.found.len());
        self.found.extend(
            malformed
                .take(room)
                .map(|word| Diagnostic::error(format!("syntax error in pattern {:?}", word.text), word.span)),
        );
    }

    /// Says of which trigger the faults are that were found at `place` since there were `known` of them.
    pub(super) fn tell_trigger(&mut self, known: usize, trigger: &str, place: Span) {
        for fault in self.found[known..].iter_mut().filter(|fault| fault.span == place) {
            fault.hint = Some(of_trigger(trigger));
        }
    }
}

/// Where a fault is that stands at no place of its own.
pub(super) fn of_trigger(trigger: &str) -> String {
    format!("it is in the base's ONBUILD trigger {trigger:?}")
}

/// Whether a path has wildcards that mean nothing: they would match nothing, and nothing is no error.
fn is_malformed(path: &str) -> bool {
    let pattern = clean_path(path);
    // By component, too, as files are looked up: a class that reaches over a slash holds no name.
    has_wildcards(&pattern)
        && std::iter::once(pattern.as_str())
            .chain(pattern.split('/'))
            .any(|part| glob_match(part, "").is_err())
}
