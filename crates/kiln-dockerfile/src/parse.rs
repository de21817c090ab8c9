//! From text to tree: each instruction's rules.

mod command;
mod metadata;
mod transfer;

use std::borrow::Cow;
use std::ops::Range;

use crate::diagnostic::{Diagnostic, Severity};
use crate::directive::{self, Check, Directives};
use crate::flag::{FlagKind, Flags};
use crate::heredoc::Heredoc;
use crate::instruction::{Dockerfile, Instruction, Kind, MetaArg, Onbuild, Stage};
use crate::json::{self, JsonForm};
use crate::reader::{RawInstruction, Reader};
use crate::source::{LogicalLine, Source, Span, Word};
use crate::{split, suggest};

/// A longer line is an error, as in BuildKit.
pub const MAX_LINE_BYTES: usize = 65_535;
/// A larger file is an error, and nothing of it is read.
pub const MAX_SOURCE_BYTES: usize = 4 << 20;
/// Reading ends behind the instruction with which there are more diagnostics.
pub const MAX_DIAGNOSTICS: usize = 1000;

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
    parse_checked(text, None)
}

/// Parses a Dockerfile. `check` has what `# check=` may have and stands in for it, as the build argument
/// `BUILDKIT_DOCKERFILE_CHECK` does; a malformed one is an error.
#[must_use]
pub fn parse_checked(text: impl AsRef<[u8]>, check: Option<&str>) -> Parsed {
    let bytes = text.as_ref();
    let mut diagnostics = Vec::new();
    if bytes.len() > MAX_SOURCE_BYTES {
        return refused(format!("the Dockerfile has more than {MAX_SOURCE_BYTES} bytes"));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        // As some editors and shells of Windows write it: every line of it would be wrong.
        return refused("the Dockerfile is in UTF-16: expected UTF-8".to_owned());
    }
    let text = decode(bytes);
    let source = Source::new(&text);
    let mut directives = directive::read(&source, &mut diagnostics);
    let of_directives = diagnostics.len();
    let mut parser = Parser { source: &source, escape: directives.escape, diagnostics };
    parser.check_utf8(bytes);
    let (meta_args, stages) = parser.file(&directives, of_directives);
    if let Some(check) = check {
        directives.check = Some(directive::Check::of_argument(check, &mut parser.diagnostics));
    }
    let mut diagnostics = parser.diagnostics;
    diagnostics.sort_by_key(|diagnostic| (diagnostic.span.start, std::cmp::Reverse(diagnostic.severity)));
    let dockerfile = Dockerfile { directives, meta_args, stages, source: text.into_owned() };
    crate::lint::check_file(&dockerfile, &mut diagnostics);
    if let Some(check) = &dockerfile.directives.check {
        diagnostics.retain(|diagnostic| check.keeps(diagnostic));
        if check.error {
            let broken = diagnostics.iter_mut().filter(|diagnostic| diagnostic.rule.is_some());
            broken.for_each(|diagnostic| diagnostic.severity = Severity::Error);
        }
    }
    Parsed { dockerfile, diagnostics }
}

/// A file of which nothing is read.
fn refused(message: String) -> Parsed {
    Parsed { diagnostics: vec![Diagnostic::error(message, Span::default())], ..Parsed::default() }
}

/// Parses the trigger that a base image's `OnBuild` holds. It is one instruction of a stage; FROM and
/// ONBUILD are refused. It has no place in the Dockerfile that is built: every span is `place`, where its base is named.
///
/// # Errors
/// What is wrong with it; warnings are dropped.
pub fn parse_trigger(text: &str, place: Span) -> Result<Instruction, Vec<Diagnostic>> {
    let refused = |name: &str| format!("{name} isn't allowed as an ONBUILD trigger");
    let source = Source::placed(text, place);
    let mut instructions = parse_several(&source, refused)?;
    match (instructions.pop(), instructions.is_empty()) {
        (Some(Instruction { kind: Kind::Onbuild(_), keyword, .. }), true) => {
            Err(vec![Diagnostic::error(refused("ONBUILD"), keyword.span)])
        }
        (Some(instruction), true) => Ok(instruction),
        _ => {
            let message = "an ONBUILD trigger should be a single instruction";
            Err(vec![Diagnostic::error(message, source.span(0..text.len()))])
        }
    }
}

/// Parses changes to an image, such as `import --change` takes: instructions of a stage, a line each, ONBUILD among them.
/// FROM is refused, and so is a text without any. Spans point into `text`.
///
/// # Errors
/// What is wrong with it; warnings are dropped.
pub fn parse_changes(text: &str) -> Result<Vec<Instruction>, Vec<Diagnostic>> {
    let refused = |name: &str| format!("{name} changes more than an image's config");
    let source = Source::new(text);
    let instructions = parse_several(&source, refused)?;
    match instructions.is_empty() {
        true => Err(vec![Diagnostic::error("it has no instruction", source.span(0..text.len()))]),
        false => Ok(instructions),
    }
}

fn parse_several(
    source: &Source<'_>,
    refused: impl Fn(&str) -> String,
) -> Result<Vec<Instruction>, Vec<Diagnostic>> {
    let mut diagnostics = Vec::new();
    let directives = directive::read(source, &mut diagnostics);
    let mut parser = Parser { source, escape: directives.escape, diagnostics };
    let mut reader = Reader::new(source, directives.escape, 0);
    let mut found = Vec::new();
    while let Some(raw) = reader.next(&mut parser.diagnostics) {
        found.extend(parser.statement(raw));
    }
    let whole = source.span(0..source.text.len());
    let mut diagnostics = parser.diagnostics;
    diagnostics.retain(|diagnostic| diagnostic.severity == Severity::Error);
    let mut instructions = Vec::with_capacity(found.len());
    for statement in found {
        match statement {
            Statement::Instruction(instruction) => instructions.push(*instruction),
            Statement::From(_) => diagnostics.push(Diagnostic::error(refused("FROM"), whole)),
        }
    }
    if diagnostics.is_empty() { Ok(instructions) } else { Err(diagnostics) }
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

/// What an instruction's rule gives, or why there is nothing.
type Ruled<T> = Result<T, Fault>;

/// An instruction's one fatal error.
enum Fault {
    /// BuildKit cannot read it, not even as a trigger.
    Form(Diagnostic),
    /// BuildKit reads it, and refuses it when it is built.
    Meaning(Diagnostic),
}

impl Fault {
    fn form(message: impl Into<String>, span: Span) -> Self {
        Self::Form(Diagnostic::error(message, span))
    }

    fn meaning(message: impl Into<String>, span: Span) -> Self {
        Self::Meaning(Diagnostic::error(message, span))
    }

    fn with_hint(self, hint: Option<String>) -> Self {
        match self {
            Self::Form(diagnostic) => Self::Form(diagnostic.with_hint(hint)),
            Self::Meaning(diagnostic) => Self::Meaning(diagnostic.with_hint(hint)),
        }
    }
}

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
            if self.diagnostics.len() > MAX_DIAGNOSTICS {
                break;
            }
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

    /// All instructions; `of_directives` tells how many diagnostics are the directives'.
    fn file(&mut self, directives: &Directives, of_directives: usize) -> (Vec<MetaArg>, Vec<Stage>) {
        let directive_lines =
            [&directives.syntax, &directives.check.as_ref().map(|check| check.value.clone())];
        let directive_lines =
            directive_lines.iter().filter_map(|word| Some(word.as_ref()?.span.line)).max().unwrap_or(0);
        let mut reader = Reader::new(self.source, self.escape, directive_lines);
        let (mut meta_args, mut stages): (Vec<MetaArg>, Vec<Stage>) = (Vec::new(), Vec::new());
        let (mut seen, mut is_dockerfile, mut stray) = (false, false, false);
        while let Some(raw) = reader.next(&mut self.diagnostics) {
            seen = true;
            if self.diagnostics.len() > MAX_DIAGNOSTICS {
                let span = raw.line.span(self.source, 0..raw.line.text.len());
                self.error("too many diagnostics: the rest of the file is not read", span);
                stray = true;
                break;
            }
            let meant = meant(&raw.line.text);
            is_dockerfile |= meant.is_some();
            match self.statement(raw) {
                // It says that there is no FROM; what comes after it says nothing new.
                None => stray |= stages.is_empty() && meant == Some("from"),
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
        if seen && !is_dockerfile {
            self.tell_of_another_file(of_directives);
        }
        (meta_args, stages)
    }

    /// A file of which nothing is an instruction, nor nearly one, is no Dockerfile: its first line tells as much as all of them.
    fn tell_of_another_file(&mut self, of_directives: usize) {
        let found = self.diagnostics.split_off(of_directives).into_iter();
        if let Some(first) = found.min_by_key(|one| (one.span.line == 0, one.span.start)) {
            let hint = "nothing in it is an instruction: it is no Dockerfile";
            self.diagnostics.push(first.with_hint(Some(hint.to_owned())));
        }
    }

    /// One instruction; `None` if it has errors that leave nothing of it.
    fn statement(&mut self, raw: RawInstruction) -> Option<Statement> {
        let range = split::trim(&raw.line.text, 0..raw.line.text.len());
        let span = raw.line.span_of_instruction(self.source, range.clone());
        let cut = self.cut(&raw.line, range.clone(), &raw.heredocs);
        let original = raw.line.text[range].to_owned();
        let before = self.diagnostics.len();
        let check = Check::of_comments(&raw.comments);
        let statement = if cut.keyword.text.eq_ignore_ascii_case("from") {
            Some(Statement::From(Box::new(self.from(&cut, original, raw.comments, span))))
        } else {
            match self.kind(&cut) {
                Ok(kind) => {
                    let keyword = cut.keyword;
                    let instruction = Instruction { kind, keyword, original, comments: raw.comments, span };
                    Some(Statement::Instruction(Box::new(instruction)))
                }
                Err(Fault::Form(diagnostic) | Fault::Meaning(diagnostic)) => {
                    self.diagnostics.insert(before, diagnostic);
                    None
                }
            }
        };
        if let Some(check) = check {
            let own = self.diagnostics.split_off(before);
            self.diagnostics.extend(own.into_iter().filter(|diagnostic| check.keeps(diagnostic)));
        }
        statement
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
                Err(Fault::form(message, place(range)))
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
                return Err(Fault::meaning(message, inner.keyword.span));
            }
            "MAINTAINER" | "FROM" => {
                let message = format!("{name} isn't allowed as an ONBUILD trigger");
                return Err(Fault::meaning(message, inner.keyword.span));
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
        match result {
            Ok(_) => {}
            Err(Fault::Form(diagnostic)) => return Err(Fault::Form(diagnostic)),
            Err(Fault::Meaning(diagnostic)) => {
                self.diagnostics.push(Diagnostic { severity: Severity::Warning, ..diagnostic });
            }
        }
        Ok(())
    }
}

/// The instruction that a line begins with, or nearly does.
fn meant(line: &str) -> Option<&'static str> {
    let word = line.split_whitespace().next().unwrap_or_default();
    let named = |word: &str| KEYWORDS.into_iter().find(|known| known.eq_ignore_ascii_case(word));
    named(word).or_else(|| named(&suggest::near(word, KEYWORDS)?))
}

fn unknown_instruction(keyword: &Word) -> Fault {
    let shown: String = keyword.text.chars().take(60).collect();
    let hint = suggest::near(&keyword.text, KEYWORDS).map(|near| {
        let near = if keyword.text.chars().any(char::is_lowercase) { near } else { near.to_uppercase() };
        format!("did you mean {near}?")
    });
    Fault::meaning(format!("unknown instruction: {shown}"), keyword.span).with_hint(hint)
}

fn required(cut: &Cut<'_>, word: Word) -> Ruled<Word> {
    if !word.text.is_empty() {
        return Ok(word);
    }
    let message = format!("{} requires exactly one argument", cut.keyword.text.to_uppercase());
    Err(Fault::meaning(message, cut.keyword.span))
}

fn at_least_one(cut: &Cut<'_>) -> Fault {
    let message = format!("{} requires at least one argument", cut.keyword.text.to_uppercase());
    Fault::meaning(message, cut.keyword.span)
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|ch: char| ch.is_ascii_lowercase())
        && name
            .chars()
            .all(|ch| ch.is_ascii_lowercase() || ch.is_ascii_digit() || matches!(ch, '-' | '_' | '.'))
}
