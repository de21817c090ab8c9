//! What an instruction becomes when the environment is known.

use crate::error::Error;
use crate::expand::{Expander, Expansion, Together, Variables};
use crate::heredoc::heredoc_start;
use crate::instruction::{CommandLine, Kind, Pair, Run, Transfer};
use crate::mount::Mount;
use crate::source::Word;

/// An instruction with its words expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// The instruction. Words keep the spans of what they were made from.
    pub kind: Kind,
    /// The mounts of RUN, in order; empty for other instructions.
    pub mounts: Vec<Mount>,
    /// Variables looked up in the environment: set ones and unset ones, each with the word that asked.
    pub lookups: Vec<Lookup>,
}

/// Variables that one word asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The word as written.
    pub word: Word,
    /// Its expansion, with used and unset names.
    pub expansion: Expansion,
}

impl Kind {
    /// Expands what BuildKit expands, with the environment as it is before the instruction:
    /// ENV and LABEL keys and values; COPY and ADD sources, destination, --chown, --chmod,
    /// --checksum and unquoted heredoc bodies; USER, WORKDIR, VOLUME, STOPSIGNAL; EXPOSE, where a
    /// word may become several; RUN's mounts. ARG, CMD, ENTRYPOINT, SHELL, HEALTHCHECK, MAINTAINER,
    /// ONBUILD and RUN's command stay as they are; ARG's defaults are for the caller, as a build
    /// argument may stand in for them.
    ///
    /// # Errors
    /// [`Error::At`] with [`Error::Expand`], also where all words [`Together`] are too large, or [`Error::Mount`].
    pub fn expand<V: Variables + ?Sized>(
        &self,
        expander: &Expander,
        variables: &V,
    ) -> Result<Expanded, Error> {
        let mut kind = self.clone();
        let mut work = Work { expander, variables, together: Together::default(), lookups: Vec::new() };
        let mut mounts = Vec::new();
        match &mut kind {
            Kind::Env(pairs) | Kind::Label(pairs) => work.pairs(pairs)?,
            Kind::User(word) | Kind::Workdir(word) | Kind::StopSignal(word) => work.word(word)?,
            Kind::Volume(words) => work.all(words)?,
            Kind::Expose(words) => work.split(words)?,
            Kind::Copy(copy) => work.transfer(&mut copy.transfer)?,
            Kind::Add(add) => {
                work.all(&mut add.checksum)?;
                work.transfer(&mut add.transfer)?;
            }
            Kind::Run(run) => {
                for flag in &run.mounts {
                    let resolved = flag.resolve(|value| work.expand(expander, value));
                    let (mount, reports) = resolved.map_err(|error| error.at(flag.value.span))?;
                    mounts.push(mount);
                    let lookup = |expansion| Lookup { word: flag.value.clone(), expansion };
                    work.lookups.extend(reports.into_iter().map(lookup));
                }
            }
            Kind::Arg(_)
            | Kind::Cmd(_)
            | Kind::Entrypoint(_)
            | Kind::Healthcheck(_)
            | Kind::Maintainer(_)
            | Kind::Onbuild(_)
            | Kind::Shell(_) => {}
        }
        let asks = |lookup: &Lookup| !lookup.expansion.used.is_empty() || !lookup.expansion.unset.is_empty();
        let lookups = work.lookups.into_iter().filter(asks).collect();
        Ok(Expanded { kind, mounts, lookups })
    }
}

struct Work<'e, V: ?Sized> {
    expander: &'e Expander,
    variables: &'e V,
    together: Together,
    lookups: Vec<Lookup>,
}

impl<V: Variables + ?Sized> Work<'_, V> {
    fn expand(&mut self, expander: &Expander, word: &str) -> Result<Expansion, Error> {
        let expansion = expander.word(word, self.variables)?;
        self.together.count_words(word, &expansion)?;
        Ok(expansion)
    }

    fn look(&mut self, expander: &Expander, word: &Word) -> Result<Expansion, Error> {
        let expansion = self.expand(expander, &word.text).map_err(|error| error.at(word.span))?;
        self.lookups.push(Lookup { word: word.clone(), expansion: expansion.clone() });
        Ok(expansion)
    }

    fn word(&mut self, word: &mut Word) -> Result<(), Error> {
        let expander = *self.expander;
        word.text = self.look(&expander, word)?.text;
        Ok(())
    }

    fn all<'w>(&mut self, words: impl IntoIterator<Item = &'w mut Word>) -> Result<(), Error> {
        words.into_iter().try_for_each(|word| self.word(word))
    }

    fn split(&mut self, words: &mut Vec<Word>) -> Result<(), Error> {
        let expander = *self.expander;
        let mut out = Vec::new();
        for word in words.iter() {
            out.extend(self.look(&expander, word)?.words.into_iter().map(|text| word.with_text(text)));
        }
        *words = out;
        Ok(())
    }

    fn pairs(&mut self, pairs: &mut [Pair]) -> Result<(), Error> {
        pairs.iter_mut().try_for_each(|pair| {
            self.word(&mut pair.key)?;
            self.word(&mut pair.value)
        })
    }

    fn transfer(&mut self, transfer: &mut Transfer) -> Result<(), Error> {
        self.all(&mut transfer.chown)?;
        self.all(&mut transfer.chmod)?;
        self.all(&mut transfer.sources)?;
        self.word(&mut transfer.destination)?;
        for file in transfer.inline.iter_mut().filter(|file| file.expand) {
            let body = file.name.with_text(std::mem::take(&mut file.content));
            file.content = self.look(&Expander::for_heredoc_body(), &body)?.text;
        }
        Ok(())
    }
}

/// What RUN starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The arguments.
    pub arguments: Vec<String>,
    /// A heredoc that begins with `#!` is a program of its own: the file to offer read-only, with
    /// mode 0755, at the path that is the last argument. Its name and content.
    pub script: Option<(String, String)>,
}

impl Run {
    /// The program to run, with `shell` in front of the shell form.
    ///
    /// The text of a heredoc is given to the shell. A command that only names one heredoc is that
    /// heredoc's body; if the body begins with `#!`, it becomes a file under `/dev/pipes`.
    #[must_use]
    pub fn program(&self, shell: &[String]) -> Program {
        let text = match &self.command {
            CommandLine::Shell(word) => &word.text,
            CommandLine::Exec(_) => {
                return Program { arguments: self.command.arguments(shell), script: None };
            }
        };
        let with_shell =
            |text: String| Program { arguments: shell.iter().cloned().chain([text]).collect(), script: None };
        let Some(first) = self.heredocs.first() else { return with_shell(text.clone()) };
        if !matches!(heredoc_start(text), Ok(Some(_))) {
            let bodies = self.heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.content, heredoc.name));
            return with_shell(text.chars().chain(bodies.collect::<String>().chars()).collect());
        }
        let body = first.text();
        if !body.starts_with("#!") {
            return with_shell(body);
        }
        let path = crate::glob::clean_path(&format!("/dev/pipes/{}", first.name));
        let arguments = shell.iter().cloned().chain([path]).collect();
        Program { arguments, script: Some((first.name.clone(), body)) }
    }
}
