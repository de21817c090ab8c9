//! Rules of COPY and ADD.

use super::{Cut, Fault, Parser, Ruled};
use crate::diagnostic::Diagnostic;
use crate::expand::{Expander, NoVariables};
use crate::flag::{FlagKind, Flags};
use crate::heredoc::{Heredoc, heredoc_start};
use crate::instruction::{Add, Copy, InlineFile, Transfer};
use crate::source::Word;

impl Parser<'_> {
    pub(super) fn copy(&mut self, cut: &Cut<'_>) -> Ruled<Copy> {
        use FlagKind::{Switch, Value, Values};
        let flags = self.flags(
            cut,
            &[
                ("from", Value),
                ("chown", Value),
                ("chmod", Value),
                ("link", Switch),
                ("parents", Switch),
                ("exclude", Values),
            ],
        );
        let transfer = self.transfer(cut, &flags)?;
        let from = flags.value("from");
        if let Some(from) = &from {
            let expanded = Expander::new(self.escape).word(&from.text, &NoVariables);
            if !expanded.is_ok_and(|expansion| expansion.text == from.text) {
                let hint = "define a new stage with FROM using ARG from global scope as a workaround";
                self.diagnostics.push(
                    Diagnostic::error("variable expansion is not supported for --from", from.span)
                        .with_hint(Some(hint.to_owned())),
                );
            }
        }
        Ok(Copy { transfer, from, parents: flags.switch("parents").unwrap_or(false) })
    }

    pub(super) fn add(&mut self, cut: &Cut<'_>) -> Ruled<Add> {
        use FlagKind::{Switch, Value, Values};
        let flags = self.flags(
            cut,
            &[
                ("chown", Value),
                ("chmod", Value),
                ("link", Switch),
                ("keep-git-dir", Switch),
                ("checksum", Value),
                ("unpack", Switch),
                ("exclude", Values),
            ],
        );
        let transfer = self.transfer(cut, &flags)?;
        Ok(Add {
            transfer,
            checksum: flags.value("checksum"),
            keep_git_dir: flags.switch("keep-git-dir"),
            unpack: flags.switch("unpack"),
        })
    }

    pub(super) fn transfer(&mut self, cut: &Cut<'_>, flags: &Flags) -> Ruled<Transfer> {
        let name = cut.keyword.text.to_uppercase();
        let mut words = match self.json(cut, 0)? {
            Some(words) => words,
            None => self.words(cut),
        };
        if words.len() < 2 {
            let message = match words.len() {
                0 => format!("{name} requires at least two arguments, a source and a destination"),
                _ => format!(
                    "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
                ),
            };
            return Err(Fault::meaning(message, words.first().map_or(cut.keyword.span, |word| word.span)));
        }
        let destination = words.pop().unwrap_or_default();
        let heredoc = |word: &Word| heredoc_start(&word.text).ok().flatten();
        if heredoc(&destination).is_some() {
            return Err(Fault::meaning(
                format!("{name} cannot accept a heredoc as a destination"),
                destination.span,
            ));
        }
        let mut transfer = Transfer {
            destination,
            chown: flags.value("chown"),
            chmod: flags.value("chmod"),
            link: flags.switch("link").unwrap_or(false),
            exclude: flags.values("exclude"),
            ..Transfer::default()
        };
        for word in words {
            let Some(start) = heredoc(&word) else {
                transfer.sources.push(word);
                continue;
            };
            let body = cut.heredocs.iter().rev().find(|body| body.name == start.name);
            let content = body.map(|body| body.content.clone()).unwrap_or_default();
            let content = Heredoc { content, ..start.clone() }.text();
            transfer.inline.push(InlineFile {
                name: word.with_text(start.name),
                content,
                expand: start.expand,
            });
        }
        Ok(transfer)
    }
}
