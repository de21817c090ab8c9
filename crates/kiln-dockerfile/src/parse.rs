//! From text to tree: each instruction's rules.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Severity};
use crate::directive::{self, Directives};
use crate::expand::{Expander, NoVariables};
use crate::flag::{FlagKind, Flags};
use crate::heredoc::{Heredoc, heredoc_start};
use crate::instruction::{
    Add, Arg, Check, CommandLine, Copy, Dockerfile, Healthcheck, InlineFile, Instruction, Kind, MetaArg,
    Network, Onbuild, Pair, PairForm, Run, Security, Stage, Transfer,
};
use crate::json::{self, JsonForm};
use crate::mount::{DeviceFlag, MountFlag};
use crate::reader::{RawInstruction, Reader};
use crate::source::{LogicalLine, Source, Span, Word};
use crate::{split, suggest, value};

/// A longer line is an error, as in BuildKit.
pub const MAX_LINE_BYTES: usize = 65_535;
/// A larger file is an error, and nothing of it is read.
pub const MAX_SOURCE_BYTES: usize = 16 << 20;

const KEYWORDS: [&str; 18] = [
    "add",
    "arg",
    "cmd",
    "copy",
    "entrypoint",
    "env",
    "expose",
    "from",
    "healthcheck",
    "label",
    "maintainer",
    "onbuild",
    "run",
    "shell",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];

/// What a text is: a tree, and all that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parsed {
    /// The tree. Instructions with errors are missing from it.
    pub dockerfile: Dockerfile,
    /// Errors and warnings in the order of their places.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether the file must not be built.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// Parses a Dockerfile.
#[must_use]
pub fn parse(text: impl AsRef<[u8]>) -> Parsed {
    let bytes = text.as_ref();
    let mut diagnostics = Vec::new();
    if bytes.len() > MAX_SOURCE_BYTES {
        let message =
            format!("the Dockerfile has {} bytes: expected at most {MAX_SOURCE_BYTES}", bytes.len());
        return Parsed {
            diagnostics: vec![Diagnostic::error(message, Span::default())],
            ..Parsed::default()
        };
    }
    let text = decode(bytes);
    let source = Source::new(&text);
    let directives = directive::read(&source, &mut diagnostics);
    let mut parser = Parser { source: &source, escape: directives.escape, diagnostics };
    parser.check_utf8(bytes);
    let (meta_args, stages) = parser.file(&directives);
    let mut diagnostics = parser.diagnostics;
    diagnostics.sort_by_key(|diagnostic| (diagnostic.span.start, std::cmp::Reverse(diagnostic.severity)));
    crate::stage::check_stages(&stages, &mut diagnostics);
    let dockerfile = Dockerfile { directives, meta_args, stages, source: text.into_owned() };
    Parsed { dockerfile, diagnostics }
}

/// Parses the trigger that a base image's `OnBuild` holds. It is one instruction of a stage; FROM and
/// ONBUILD are refused. Spans point into `text`.
///
/// # Errors
/// What is wrong with it; warnings are dropped.
pub fn parse_trigger(text: &str) -> Result<Instruction, Vec<Diagnostic>> {
    let source = Source::new(text);
    let mut diagnostics = Vec::new();
    let directives = directive::read(&source, &mut diagnostics);
    let mut parser = Parser { source: &source, escape: directives.escape, diagnostics };
    let mut reader = Reader::new(&source, directives.escape, 0);
    let mut found = Vec::new();
    while let Some(raw) = reader.next(&mut parser.diagnostics) {
        found.extend(parser.statement(raw));
    }
    let whole = source.span(0..text.len());
    let mut diagnostics = parser.diagnostics;
    diagnostics.retain(|diagnostic| diagnostic.severity == Severity::Error);
    let refused =
        |what: &str| Diagnostic::error(format!("{what} isn't allowed as an ONBUILD trigger"), whole);
    let instruction = match (found.pop(), found.is_empty()) {
        (Some(Statement::Instruction(instruction)), true) => Some(*instruction),
        (Some(Statement::From(_)), true) => {
            diagnostics.push(refused("FROM"));
            None
        }
        _ if !diagnostics.is_empty() => None,
        _ => {
            diagnostics.push(Diagnostic::error("an ONBUILD trigger should be a single instruction", whole));
            None
        }
    };
    if instruction.as_ref().is_some_and(|instruction| matches!(instruction.kind, Kind::Onbuild(_))) {
        diagnostics.push(refused("ONBUILD"));
    }
    match instruction {
        Some(instruction) if diagnostics.is_empty() => Ok(instruction),
        _ => Err(diagnostics),
    }
}

fn decode(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

enum Statement {
    From(Box<Stage>),
    Instruction(Box<Instruction>),
}

/// An instruction cut into its parts, all of them ranges of the logical line.
struct Cut<'r> {
    line: &'r LogicalLine,
    keyword: Word,
    flags: Vec<Word>,
    arguments: Range<usize>,
    heredocs: &'r [Heredoc],
}

impl Cut<'_> {
    fn text(&self) -> &str {
        &self.line.text[self.arguments.clone()]
    }
}

/// What an instruction's rule gives; the diagnostic says why there is nothing.
type Ruled<T> = Result<T, Diagnostic>;

struct Parser<'s> {
    source: &'s Source<'s>,
    escape: char,
    diagnostics: Vec<Diagnostic>,
}

impl Parser<'_> {
    /// Invalid UTF-8 is harmless in comments and an error elsewhere.
    fn check_utf8(&mut self, bytes: &[u8]) {
        if std::str::from_utf8(bytes).is_ok() {
            return;
        }
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let comment = line.trim_ascii_start().first() == Some(&b'#');
            if !comment && std::str::from_utf8(line).is_err() {
                let span = self.source.line_span(index + 1);
                self.diagnostics.push(Diagnostic::error("the line is not valid UTF-8", span));
            }
        }
    }

    fn error(&mut self, message: impl Into<String>, span: Span) {
        self.diagnostics.push(Diagnostic::error(message, span));
    }

    fn file(&mut self, directives: &Directives) -> (Vec<MetaArg>, Vec<Stage>) {
        let directive_lines =
            [&directives.syntax, &directives.check.as_ref().map(|check| check.value.clone())];
        let directive_lines =
            directive_lines.iter().filter_map(|word| Some(word.as_ref()?.span.line)).max().unwrap_or(0);
        let mut reader = Reader::new(self.source, self.escape, directive_lines);
        let (mut meta_args, mut stages): (Vec<MetaArg>, Vec<Stage>) = (Vec::new(), Vec::new());
        let (mut seen, mut stray) = (false, false);
        while let Some(raw) = reader.next(&mut self.diagnostics) {
            seen = true;
            match self.statement(raw) {
                None => {}
                Some(Statement::From(mut stage)) => {
                    stage.index = stages.len();
                    stages.push(*stage);
                }
                Some(Statement::Instruction(instruction)) => match (stages.last_mut(), instruction.kind) {
                    (Some(stage), kind) => stage.instructions.push(Instruction { kind, ..*instruction }),
                    (None, Kind::Arg(items)) => {
                        meta_args.push(MetaArg {
                            items,
                            comments: instruction.comments,
                            span: instruction.span,
                        });
                    }
                    (None, kind) => {
                        if !stray {
                            let message = format!(
                                "no build stage in current context: expected FROM or ARG, found {}",
                                kind.name()
                            );
                            self.error(message, instruction.keyword.span);
                        }
                        stray = true;
                    }
                },
            }
        }
        if self.source.text.is_empty() {
            self.error("the Dockerfile cannot be empty", Span::default());
        } else if !seen {
            self.error("file with no instructions", Span::default());
        } else if stages.is_empty() && !stray {
            self.error("dockerfile contains no stages to build: expected at least one FROM", Span::default());
        }
        (meta_args, stages)
    }

    /// One instruction; `None` if it has errors that leave nothing of it.
    fn statement(&mut self, raw: RawInstruction) -> Option<Statement> {
        let range = split::trim(&raw.line.text, 0..raw.line.text.len());
        let mut span = raw.line.span(self.source, range.clone());
        span.line = span.line.max(raw.line.first_line);
        span.end_line = raw.line.last_line;
        span.end = span.end.max(self.source.line_span(raw.line.last_line).end);
        let cut = self.cut(&raw.line, range.clone(), &raw.heredocs);
        let original = raw.line.text[range].to_owned();
        if cut.keyword.text.eq_ignore_ascii_case("from") {
            return Some(Statement::From(Box::new(self.from(&cut, original, raw.comments, span))));
        }
        let before = self.diagnostics.len();
        let kind = match self.kind(&cut) {
            Ok(kind) => kind,
            Err(diagnostic) => {
                self.diagnostics.insert(before, diagnostic);
                return None;
            }
        };
        let keyword = cut.keyword;
        Some(Statement::Instruction(Box::new(Instruction {
            kind,
            keyword,
            original,
            comments: raw.comments,
            span,
        })))
    }

    fn cut<'r>(&self, line: &'r LogicalLine, range: Range<usize>, heredocs: &'r [Heredoc]) -> Cut<'r> {
        let end = range.end;
        let (keyword, rest) = split::first_and_rest(&line.text, range);
        let (flags, arguments) = split::flags(&line.text, rest.unwrap_or(end..end), self.escape);
        let flags =
            flags.into_iter().map(|flag| Word { text: flag.text, span: line.span(self.source, flag.range) });
        Cut {
            keyword: line.word(self.source, keyword),
            flags: flags.collect(),
            arguments: split::trim(&line.text, arguments),
            line,
            heredocs,
        }
    }

    fn words(&self, cut: &Cut<'_>) -> Vec<Word> {
        let ranges = split::blank_separated(&cut.line.text, cut.arguments.clone());
        ranges.into_iter().map(|range| cut.line.word(self.source, range)).collect()
    }

    fn quoted_words(&self, cut: &Cut<'_>) -> Vec<Range<usize>> {
        split::quoted_words(&cut.line.text, cut.arguments.clone(), self.escape)
    }

    fn whole(&self, cut: &Cut<'_>) -> Word {
        cut.line.word(self.source, cut.arguments.clone())
    }

    /// The words of the JSON form, or `None` for the shell form.
    fn json(&self, cut: &Cut<'_>, from: usize) -> Ruled<Option<Vec<Word>>> {
        let start = cut.arguments.start + from;
        let place = |range: Range<usize>| cut.line.span(self.source, start + range.start..start + range.end);
        match json::read(&cut.line.text[start..cut.arguments.end]) {
            JsonForm::NotJson => Ok(None),
            JsonForm::Strings(strings) => {
                Ok(Some(strings.into_iter().map(|(text, range)| Word { text, span: place(range) }).collect()))
            }
            JsonForm::NotStrings(range) => {
                let found = cut.line.text[start + range.start..start + range.end]
                    .chars()
                    .take(40)
                    .collect::<String>();
                let message = format!(
                    "when using JSON array syntax, arrays must be comprised of strings only: found {found}"
                );
                Err(Diagnostic::error(message, place(range)))
            }
        }
    }

    fn flags(&mut self, cut: &Cut<'_>, known: &[(&'static str, FlagKind)]) -> Flags {
        Flags::read(&cut.keyword.text.to_uppercase(), &cut.flags, known, &mut self.diagnostics)
    }

    /// Flags that BuildKit drops without a word.
    fn warn_flags(&mut self, cut: &Cut<'_>, what: &str) {
        for flag in &cut.flags {
            let message = format!("{what} takes no flags: {} is ignored", flag.text);
            self.diagnostics.push(Diagnostic::warning(None, message, flag.span));
        }
    }

    fn kind(&mut self, cut: &Cut<'_>) -> Ruled<Kind> {
        let name = cut.keyword.text.to_lowercase();
        Ok(match name.as_str() {
            "add" => Kind::Add(self.add(cut)?),
            "arg" => Kind::Arg(self.arg(cut)?),
            "cmd" => Kind::Cmd(self.plain_command(cut)?),
            "copy" => Kind::Copy(self.copy(cut)?),
            "entrypoint" => Kind::Entrypoint(self.plain_command(cut)?),
            "env" => Kind::Env(self.pairs(cut)?),
            "expose" => Kind::Expose(self.expose(cut)?),
            "healthcheck" => Kind::Healthcheck(self.healthcheck(cut)?),
            "label" => Kind::Label(self.pairs(cut)?),
            "maintainer" => Kind::Maintainer(self.maintainer(cut)?),
            "onbuild" => Kind::Onbuild(self.onbuild(cut)?),
            "run" => Kind::Run(self.run(cut)?),
            "shell" => Kind::Shell(self.shell(cut)?),
            "stopsignal" => Kind::StopSignal(self.stop_signal(cut)?),
            "user" => Kind::User(self.single(cut)?),
            "volume" => Kind::Volume(self.volume(cut)?),
            "workdir" => Kind::Workdir(self.single(cut)?),
            _ => return Err(unknown_instruction(&cut.keyword)),
        })
    }

    fn from(&mut self, cut: &Cut<'_>, original: String, comments: Vec<String>, span: Span) -> Stage {
        let flags = self.flags(cut, &[("platform", FlagKind::Value)]);
        let mut words = self.words(cut).into_iter();
        let base = words.next();
        let rest: Vec<Word> = words.collect();
        let mut name = None;
        match (&base, rest.as_slice()) {
            (Some(_), []) => {}
            (Some(_), [keyword, stage]) if keyword.text.eq_ignore_ascii_case("as") => {
                let lower = stage.text.to_lowercase();
                if is_stage_name(&lower) {
                    name = Some(stage.with_text(lower));
                    self.check_from_case(cut, keyword, stage);
                } else {
                    let message = format!(
                        "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                        stage.text
                    );
                    self.error(message, stage.span);
                }
            }
            (_, rest) => {
                let message = "FROM requires either one or three arguments: FROM <image> [AS <name>]";
                let place = rest.first().map_or(cut.keyword.span, |word| word.span);
                self.error(message, place);
            }
        }
        Stage {
            index: 0,
            base: base.unwrap_or_default(),
            platform: flags.value("platform"),
            name,
            keyword: cut.keyword.clone(),
            original,
            comments,
            instructions: Vec::new(),
            span,
        }
    }

    fn check_from_case(&mut self, cut: &Cut<'_>, keyword: &Word, stage: &Word) {
        let from = &cut.keyword.text;
        let lower = *from == from.to_lowercase();
        let upper = *from == from.to_uppercase();
        let agrees = if lower {
            keyword.text == keyword.text.to_lowercase()
        } else {
            keyword.text == keyword.text.to_uppercase()
        };
        if (lower || upper) && !agrees {
            let message = format!("'{}' and '{from}' keywords' casing do not match", keyword.text);
            self.diagnostics.push(Diagnostic::warning(Some("FromAsCasing"), message, keyword.span));
        }
        if stage.text != stage.text.to_lowercase() {
            let message = format!("stage name '{}' should be lowercase", stage.text);
            self.diagnostics.push(Diagnostic::warning(Some("StageNameCasing"), message, stage.span));
        }
    }

    fn single(&mut self, cut: &Cut<'_>) -> Ruled<Word> {
        self.flags(cut, &[]);
        required(cut, self.whole(cut))
    }

    fn maintainer(&mut self, cut: &Cut<'_>) -> Ruled<Word> {
        let word = self.single(cut)?;
        let message = "MAINTAINER is deprecated in favor of a label";
        self.diagnostics.push(
            Diagnostic::warning(Some("MaintainerDeprecated"), message, cut.keyword.span)
                .with_hint(Some("use LABEL org.opencontainers.image.authors=...".to_owned())),
        );
        Ok(word)
    }

    fn stop_signal(&mut self, cut: &Cut<'_>) -> Ruled<Word> {
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
            return Err(Diagnostic::error(error.to_string(), word.span).with_hint(near));
        }
        Ok(word)
    }

    fn plain_command(&mut self, cut: &Cut<'_>) -> Ruled<CommandLine> {
        self.flags(cut, &[]);
        self.command(cut, 0)
    }

    fn command(&mut self, cut: &Cut<'_>, from: usize) -> Ruled<CommandLine> {
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
    fn warn_almost_json(&mut self, word: &Word) {
        let text = &word.text;
        if text.starts_with('[') && text.ends_with(']') && !text.starts_with("[ ") && !text.starts_with("[[")
        {
            let message = "the JSON array is malformed, so the whole text is given to the shell";
            let hint = text.contains('\'').then(|| "JSON strings stand in double quotes".to_owned());
            self.diagnostics.push(Diagnostic::warning(None, message, word.span).with_hint(hint));
        }
    }

    fn shell(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Word>> {
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
                Err(Diagnostic::error(message, self.whole(cut).span).with_hint(Some(hint.to_owned())))
            }
        }
    }

    fn run(&mut self, cut: &Cut<'_>) -> Ruled<Run> {
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
                    flag.resolve(&Expander::new(self.escape), &NoVariables)?;
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
    fn choice(&mut self, flags: &Flags, name: &str, what: &str, allowed: &[&str]) -> usize {
        let Some(word) = flags.values(name).into_iter().next() else { return 0 };
        let index = allowed.iter().position(|known| *known == word.text);
        if index.is_none() {
            let message = format!("invalid {what} {:?}: expected {}", word.text, allowed.join(", "));
            let hint = suggest::hint(&word.text, allowed.iter().copied());
            self.diagnostics.push(Diagnostic::error(message, word.span).with_hint(hint));
        }
        index.unwrap_or(0)
    }

    fn copy(&mut self, cut: &Cut<'_>) -> Ruled<Copy> {
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

    fn add(&mut self, cut: &Cut<'_>) -> Ruled<Add> {
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

    fn transfer(&mut self, cut: &Cut<'_>, flags: &Flags) -> Ruled<Transfer> {
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
            return Err(Diagnostic::error(message, words.first().map_or(cut.keyword.span, |word| word.span)));
        }
        let destination = words.pop().unwrap_or_default();
        let heredoc = |word: &Word| heredoc_start(&word.text).ok().flatten();
        if heredoc(&destination).is_some() {
            return Err(Diagnostic::error(
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

    fn arg(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Arg>> {
        self.warn_flags(cut, "ARG");
        let mut items = Vec::new();
        for range in self.quoted_words(cut) {
            let text = &cut.line.text[range.clone()];
            let word = |range: Range<usize>| cut.line.word(self.source, range);
            items.push(match text.find('=') {
                Some(0) => return Err(Diagnostic::error("ARG names can not be blank", word(range).span)),
                Some(at) => Arg {
                    name: word(range.start..range.start + at),
                    default: Some(word(range.start + at + 1..range.end)),
                },
                None => Arg { name: word(range), default: None },
            });
        }
        if items.is_empty() { Err(at_least_one(cut)) } else { Ok(items) }
    }

    fn pairs(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Pair>> {
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
                return Err(Diagnostic::error(message, word(key).span));
            };
            let message =
                format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            let (key, value) = (word(key), word(rest));
            self.diagnostics.push(Diagnostic::warning(Some("LegacyKeyValueFormat"), message, key.span));
            return Ok(vec![Pair { key, value, form: PairForm::Legacy }]);
        }
        let equals = |range: &Range<usize>| cut.line.text[range.clone()].find('=');
        if let Some(bare) = words.iter().find(|range| equals(range).is_none()) {
            let message = format!("can't find = in {:?}: expected name=value", &cut.line.text[bare.clone()]);
            return Err(Diagnostic::error(message, word(bare.clone()).span));
        }
        let mut pairs = Vec::new();
        for range in words {
            let at = range.start + equals(&range).unwrap_or(0);
            if at == range.start {
                return Err(Diagnostic::error(format!("{name} names can not be blank"), word(range).span));
            }
            let (key, value) = (word(range.start..at), word(at + 1..range.end));
            pairs.push(Pair { key, value, form: PairForm::Equals });
        }
        Ok(pairs)
    }

    fn expose(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Word>> {
        self.flags(cut, &[]);
        let mut words = self.words(cut);
        if words.is_empty() {
            return Err(at_least_one(cut));
        }
        for word in &words {
            let plain =
                word.text.chars().all(|ch| ch.is_ascii_alphanumeric() || matches!(ch, '/' | '-' | ':' | '.'));
            if plain && let Err(error) = value::parse_port(&word.text) {
                self.diagnostics.push(Diagnostic::error(error.to_string(), word.span));
            }
        }
        words.sort_by(|left, right| left.text.cmp(&right.text));
        Ok(words)
    }

    fn volume(&mut self, cut: &Cut<'_>) -> Ruled<Vec<Word>> {
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
            Some(word) => Err(Diagnostic::error("VOLUME specified can not be an empty string", word.span)),
            None => Ok(words),
        }
    }

    fn healthcheck(&mut self, cut: &Cut<'_>) -> Ruled<Healthcheck> {
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
                if from < text.len() {
                    return Err(Diagnostic::error(
                        "HEALTHCHECK NONE takes no arguments",
                        self.whole(cut).span,
                    ));
                }
                Ok(Healthcheck::None)
            }
            "CMD" => Ok(Healthcheck::Check(self.check(cut, from)?)),
            other => {
                let message = format!("unknown type {other:?} in HEALTHCHECK: expected CMD or NONE");
                let hint =
                    suggest::hint(other, ["CMD", "NONE"]).or(Some("try HEALTHCHECK CMD ...".to_owned()));
                Err(Diagnostic::error(message, kind.span).with_hint(hint))
            }
        }
    }

    fn check(&mut self, cut: &Cut<'_>, from: usize) -> Ruled<Check> {
        use FlagKind::Value;
        let names = ["interval", "timeout", "start-period", "start-interval", "retries"];
        let flags = self.flags(cut, &names.map(|name| (name, Value)));
        let command = self.command(cut, from)?;
        let empty = match &command {
            CommandLine::Shell(text) => text.text.is_empty(),
            CommandLine::Exec(words) => words.is_empty(),
        };
        if empty {
            return Err(Diagnostic::error("missing command after HEALTHCHECK CMD", self.whole(cut).span));
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

    fn interval(&mut self, flags: &Flags, name: &str) -> Duration {
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

    fn onbuild(&mut self, cut: &Cut<'_>) -> Ruled<Onbuild> {
        self.flags(cut, &[]);
        if cut.arguments.is_empty() {
            return Err(at_least_one(cut));
        }
        let inner = self.cut(cut.line, cut.arguments.clone(), cut.heredocs);
        let name = inner.keyword.text.to_uppercase();
        match name.as_str() {
            "ONBUILD" => {
                let message = "chaining ONBUILD via ONBUILD ONBUILD isn't allowed";
                return Err(Diagnostic::error(message, inner.keyword.span));
            }
            "MAINTAINER" | "FROM" => {
                let message = format!("{name} isn't allowed as an ONBUILD trigger");
                return Err(Diagnostic::error(message, inner.keyword.span));
            }
            _ => {}
        }
        self.trigger(&inner)?;
        // Flags of ONBUILD itself are errors, so what follows the keyword is the trigger. Blanks at its
        // end stay.
        let mut expression = cut.line.text.trim_start()[cut.keyword.text.len()..].trim_start().to_owned();
        for heredoc in cut.heredocs {
            expression.push('\n');
            expression.push_str(&heredoc.content);
            expression.push_str(&heredoc.name);
        }
        Ok(Onbuild { expression })
    }

    /// A trigger is judged when the image is built upon: what is wrong with it is a warning here, but
    /// for what BuildKit cannot even read.
    fn trigger(&mut self, inner: &Cut<'_>) -> Ruled<()> {
        let before = self.diagnostics.len();
        let result = self.kind(inner);
        for diagnostic in &mut self.diagnostics[before..] {
            diagnostic.severity = Severity::Warning;
        }
        let Err(mut diagnostic) = result else { return Ok(()) };
        let unreadable = diagnostic.message.starts_with("when using JSON")
            || diagnostic.message.contains("must have two arguments")
            || diagnostic.message.starts_with("can't find =");
        if unreadable {
            return Err(diagnostic);
        }
        diagnostic.severity = Severity::Warning;
        self.diagnostics.push(diagnostic);
        Ok(())
    }
}

fn unknown_instruction(keyword: &Word) -> Diagnostic {
    let shown: String = keyword.text.chars().take(60).collect();
    let hint = suggest::near(&keyword.text, KEYWORDS).map(|near| {
        let near = if keyword.text.chars().any(char::is_lowercase) { near } else { near.to_uppercase() };
        format!("did you mean {near}?")
    });
    Diagnostic::error(format!("unknown instruction: {shown}"), keyword.span).with_hint(hint)
}

fn required(cut: &Cut<'_>, word: Word) -> Ruled<Word> {
    if !word.text.is_empty() {
        return Ok(word);
    }
    let message = format!("{} requires exactly one argument", cut.keyword.text.to_uppercase());
    Err(Diagnostic::error(message, cut.keyword.span))
}

fn at_least_one(cut: &Cut<'_>) -> Diagnostic {
    let message = format!("{} requires at least one argument", cut.keyword.text.to_uppercase());
    Diagnostic::error(message, cut.keyword.span)
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|ch: char| ch.is_ascii_lowercase())
        && name
            .chars()
            .all(|ch| ch.is_ascii_lowercase() || ch.is_ascii_digit() || matches!(ch, '-' | '_' | '.'))
}
