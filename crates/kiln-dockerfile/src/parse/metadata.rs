//! Rules of the instructions that only change the image config: ENV, LABEL, ARG, EXPOSE and so on.

use std::ops::Range;

use super::{Cut, Fault, Parser, Ruled, at_least_one, required};
use crate::diagnostic::Diagnostic;
use crate::instruction::{Arg, Pair, PairForm};
use crate::source::Word;
use crate::{split, suggest, value};

impl Parser<'_> {
    pub(super) fn single(&mut self, cut: &Cut<'_>) -> Ruled<Word> {
        self.flags(cut, &[]);
        required(cut, self.whole(cut))
    }

    pub(super) fn maintainer(&mut self, cut: &Cut<'_>) -> Ruled<Word> {
        let word = self.single(cut)?;
        let message = "MAINTAINER is deprecated in favor of a label";
        self.diagnostics.push(
            Diagnostic::warning(Some("MaintainerDeprecated"), message, cut.keyword.span)
                .with_hint(Some("use LABEL org.opencontainers.image.authors=...".to_owned())),
        );
        Ok(word)
    }

    pub(super) fn stop_signal(&mut self, cut: &Cut<'_>) -> Ruled<Word> {
        self.warn_flags(cut, "STOPSIGNAL");
        let word = required(cut, self.whole(cut))?;
        // Quotes, escapes and variables are gone only after expansion.
        if word.text.chars().all(|ch| ch.is_ascii_alphanumeric() || ch == '+' || ch == '-')
            && let Err(error) = value::parse_signal(&word.text)
        {
            let name = word.text.to_uppercase();
            let bare = name.strip_prefix("SIG").unwrap_or(&name);
            let near =
                suggest::near(bare, value::signal_names()).map(|near| format!("did you mean SIG{near}?"));
            return Err(Fault::meaning(error.to_string(), word.span).with_hint(near));
        }
        Ok(word)
    }

    pub(super) fn arg(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Arg>> {
        self.warn_flags(cut, "ARG");
        let mut items = Vec::new();
        for range in self.quoted_words(cut) {
            let text = &cut.line.text[range.clone()];
            let word = |range: Range<usize>| cut.line.word(self.source, range);
            items.push(match text.find('=') {
                Some(0) => return Err(Fault::meaning("ARG names can not be blank", word(range).span)),
                Some(at) => Arg {
                    name: word(range.start..range.start + at),
                    default: Some(word(range.start + at + 1..range.end)),
                },
                None => Arg { name: word(range), default: None },
            });
        }
        if items.is_empty() { Err(at_least_one(cut)) } else { Ok(items) }
    }

    pub(super) fn pairs(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Pair>> {
        self.flags(cut, &[]);
        let name = cut.keyword.text.to_uppercase();
        let words = self.quoted_words(cut);
        let word = |range: Range<usize>| cut.line.word(self.source, range);
        let Some(first) = words.first() else { return Err(at_least_one(cut)) };
        if !cut.line.text[first.clone()].contains('=') {
            let (key, rest) = split::first_and_rest(&cut.line.text, cut.arguments.clone());
            let Some(rest) = rest else {
                let message = format!(
                    "{name} must have two arguments: expected {name} {}=value",
                    &cut.line.text[key.clone()]
                );
                return Err(Fault::form(message, word(key).span));
            };
            return Ok(vec![Pair { key: word(key), value: word(rest), form: PairForm::Legacy }]);
        }
        let equals = |range: &Range<usize>| cut.line.text[range.clone()].find('=');
        if let Some(bare) = words.iter().find(|range| equals(range).is_none()) {
            let message = format!("can't find = in {:?}: expected name=value", &cut.line.text[bare.clone()]);
            return Err(Fault::form(message, word(bare.clone()).span));
        }
        let mut pairs = Vec::new();
        for range in words {
            let at = range.start + equals(&range).unwrap_or(0);
            if at == range.start {
                return Err(Fault::meaning(format!("{name} names can not be blank"), word(range).span));
            }
            let (key, value) = (word(range.start..at), word(at + 1..range.end));
            pairs.push(Pair { key, value, form: PairForm::Equals });
        }
        Ok(pairs)
    }

    pub(super) fn expose(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Word>> {
        self.flags(cut, &[]);
        let mut words = self.words(cut);
        if words.is_empty() {
            return Err(at_least_one(cut));
        }
        for word in &words {
            let plain =
                word.text.chars().all(|ch| ch.is_ascii_alphanumeric() || matches!(ch, '/' | '-' | ':' | '.'));
            if plain && let Err(error) = value::port_range(&word.text) {
                self.diagnostics.push(Diagnostic::error(error.to_string(), word.span));
            }
        }
        words.sort_by(|left, right| left.text.cmp(&right.text));
        Ok(words)
    }

    pub(super) fn volume(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Word>> {
        self.flags(cut, &[]);
        let words = match self.json(cut, 0)? {
            Some(words) => words,
            None => self.words(cut),
        };
        if words.is_empty() {
            return Err(at_least_one(cut));
        }
        let words: Vec<Word> =
            words.into_iter().map(|word| word.with_text(word.text.trim().to_owned())).collect();
        match words.iter().find(|word| word.text.is_empty()) {
            Some(word) => Err(Fault::meaning("VOLUME specified can not be an empty string", word.span)),
            None => Ok(words),
        }
    }
}
