//! Parser directives: `# syntax=`, `# escape=`, `# check=` in the first lines of a file.

use std::collections::BTreeSet;

use crate::diagnostic::Diagnostic;
use crate::source::{Source, Word};

/// The directives of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// The frontend named by `# syntax=`; always one that kiln stands in for, else there is an error.
    pub syntax: Option<Word>,
    /// The escape character: `\` or a backtick.
    pub escape: char,
    /// `# check=`
    pub check: Option<Check>,
}

impl Default for Directives {
    fn default() -> Self {
        Self { syntax: None, escape: '\\', check: None }
    }
}

/// What `# check=` asks of lint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Check {
    /// The value as written.
    pub value: Word,
    /// `skip=`: names of rules.
    pub skip: BTreeSet<String>,
    /// `skip=all`
    pub skip_all: bool,
    /// `error=true`: a warning fails the build.
    pub error: bool,
    /// `experimental=`: names of rules, or `all`.
    pub experimental: BTreeSet<String>,
}

/// One line that is a directive.
struct Found {
    name: String,
    value: Word,
    line: usize,
}

enum LineKind {
    Directive(Found),
    Duplicate(String),
    End,
}

/// Reads directive lines one after the other, until a line is none.
struct DirectiveReader {
    marker: &'static str,
    seen: BTreeSet<String>,
}

impl DirectiveReader {
    fn new(marker: &'static str) -> Self {
        Self { marker, seen: BTreeSet::new() }
    }

    /// `offset` is where `text` begins in the source.
    fn read(&mut self, source: &Source<'_>, text: &str, offset: usize, line: usize) -> LineKind {
        let Some(rest) = text.strip_prefix(self.marker) else { return LineKind::End };
        let rest = rest.trim_start();
        let Some((name, value)) = rest.split_once('=') else { return LineKind::End };
        let name = name.trim_end_matches(is_regex_space);
        let well_named = name.starts_with(|ch: char| ch.is_ascii_alphabetic())
            && name.chars().all(|ch| ch.is_ascii_alphanumeric());
        let value = value.trim_matches(is_regex_space);
        let name = name.to_ascii_lowercase();
        if !well_named || value.is_empty() || !["syntax", "escape", "check"].contains(&name.as_str()) {
            return LineKind::End;
        }
        if !self.seen.insert(name.clone()) {
            return LineKind::Duplicate(name);
        }
        let start = offset + (value.as_ptr() as usize - text.as_ptr() as usize);
        let value = Word { text: value.to_owned(), span: source.span(start..start + value.len()) };
        LineKind::Directive(Found { name, value, line })
    }
}

fn is_regex_space(ch: char) -> bool {
    matches!(ch, '\t' | '\n' | '\x0c' | '\r' | ' ')
}

/// Reads the directives of a file. Errors go to `diagnostics`.
pub(crate) fn read(source: &Source<'_>, diagnostics: &mut Vec<Diagnostic>) -> Directives {
    let mut directives = Directives::default();
    let first = first_line(source);
    let shebang = first.is_some_and(|line| line.starts_with("#!"));

    // The language itself (escape): indentation is allowed, a #! line ends the directives.
    let mut escape_seen = false;
    for found in lines(source, Leniency::Indented, "#", 0, Some(diagnostics)) {
        if found.name == "escape" {
            escape_seen = true;
            match found.value.text.as_str() {
                "\\" => directives.escape = '\\',
                "`" => directives.escape = '`',
                other => diagnostics.push(Diagnostic::error(
                    format!("invalid escape token: expected \\ or `, found {other}"),
                    found.value.span,
                )),
            }
        }
    }
    // The frontend and lint: a #! line is skipped, a line must begin with the marker.
    let skip = usize::from(shebang);
    for found in lines(source, Leniency::Strict, "#", skip, None) {
        match found.name.as_str() {
            "syntax" => directives.syntax = Some(found.value),
            "check" => directives.check = Some(read_check(&found.value, diagnostics)),
            "escape" if shebang && !escape_seen => diagnostics.push(Diagnostic::warning(
                None,
                "the escape directive has no effect behind a #! line",
                source.line_span(found.line),
            )),
            _ => {}
        }
    }
    if directives.syntax.is_none() {
        let other = lines(source, Leniency::Strict, "//", skip, None)
            .into_iter()
            .find(|found| found.name == "syntax");
        directives.syntax = other.map(|found| found.value).or_else(|| json_syntax(source, skip));
    }
    if let Some(syntax) = &mut directives.syntax {
        if let Some((reference, _)) = syntax.text.split_once(' ') {
            syntax.text = reference.to_owned();
        }
        if !is_dockerfile_frontend(&syntax.text) {
            diagnostics.push(
                Diagnostic::error(
                    format!("frontend {} is not supported: expected docker/dockerfile", syntax.text),
                    syntax.span,
                )
                .with_hint(Some(
                    "kiln reads the Dockerfile language itself and runs no other frontend".to_owned(),
                )),
            );
        }
    }
    directives
}

/// A file that is one JSON object names its frontend in the member `syntax`.
fn json_syntax(source: &Source<'_>, skip: usize) -> Option<Word> {
    let start = if skip < source.line_count() { source.line_range(1 + skip).start } else { return None };
    let text = &source.text[start..];
    let start = start + (text.len() - text.trim_start_matches('\u{feff}').len());
    let (value, range) = crate::json::text_member(&source.text[start..], "syntax")?;
    Some(Word { text: value, span: source.span(start + range.start..start + range.end) })
}

fn first_line<'t>(source: &Source<'t>) -> Option<&'t str> {
    (source.line_count() > 0).then(|| {
        let line = &source.text[source.line_range(1)];
        line.strip_prefix('\u{feff}').unwrap_or(line)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leniency {
    Indented,
    Strict,
}

fn lines(
    source: &Source<'_>,
    leniency: Leniency,
    marker: &'static str,
    skip: usize,
    mut diagnostics: Option<&mut Vec<Diagnostic>>,
) -> Vec<Found> {
    let mut reader = DirectiveReader::new(marker);
    let mut found = Vec::new();
    for line in 1 + skip..=source.line_count() {
        let range = source.line_range(line);
        let whole = &source.text[range.clone()];
        let mut text = whole.trim_end_matches(['\r', '\n']);
        if line == 1 {
            text = text.strip_prefix('\u{feff}').unwrap_or(text);
        }
        if leniency == Leniency::Indented {
            text = text.trim_start();
        }
        let offset = range.start + (text.as_ptr() as usize - whole.as_ptr() as usize);
        match reader.read(source, text, offset, line) {
            LineKind::Directive(directive) => found.push(directive),
            LineKind::Duplicate(name) => {
                if let Some(diagnostics) = diagnostics.as_deref_mut() {
                    diagnostics.push(Diagnostic::error(
                        format!("only one {name} parser directive can be used"),
                        source.line_span(line),
                    ));
                }
            }
            LineKind::End => break,
        }
    }
    found
}

/// Whether a frontend reference is Docker's own Dockerfile frontend, of whatever version.
fn is_dockerfile_frontend(reference: &str) -> bool {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let name =
        ["docker.io/", "index.docker.io/"].iter().find_map(|host| name.strip_prefix(host)).unwrap_or(name);
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    name == "docker/dockerfile" || name == "docker/dockerfile-upstream"
}

/// Reads `skip=A,B;error=true;experimental=all`; all behind a blank is ignored, as in BuildKit.
fn read_check(value: &Word, diagnostics: &mut Vec<Diagnostic>) -> Check {
    let mut check = Check { value: value.clone(), ..Check::default() };
    for option in value.text.split(' ').next().unwrap_or_default().split(';') {
        let Some((key, setting)) = option.split_once('=') else {
            let message = format!("invalid check option {option:?}: expected key=value");
            diagnostics.push(Diagnostic::error(message, value.span));
            continue;
        };
        let names = || setting.split(',').map(|name| name.trim().to_owned()).collect();
        match key.trim() {
            "skip" if setting == "all" => check.skip_all = true,
            "skip" => check.skip = names(),
            "experimental" => check.experimental = names(),
            "error" => match crate::value::parse_bool(setting) {
                Some(error) => check.error = error,
                None => diagnostics.push(Diagnostic::error(
                    format!("invalid value for check option error: expected true or false, found {setting}"),
                    value.span,
                )),
            },
            other => {
                let hint = crate::suggest::hint(other, ["skip", "error", "experimental"]);
                let message = format!("invalid check option {other:?}");
                diagnostics.push(Diagnostic::error(message, value.span).with_hint(hint));
            }
        }
    }
    check
}

impl Check {
    /// What a `# check=` comment right above an instruction asks for, if it is well formed.
    pub(crate) fn of_comments(comments: &[String]) -> Option<Self> {
        let values = comments.iter().filter_map(|comment| comment.split_once('='));
        let mut values = values.filter(|(name, _)| name.trim().eq_ignore_ascii_case("check"));
        let (_, value) = values.next()?;
        let mut diagnostics = Vec::new();
        let value = Word { text: value.trim().to_owned(), ..Word::default() };
        let check = read_check(&value, &mut diagnostics);
        diagnostics.is_empty().then_some(check)
    }

    /// What a build argument asks for; an empty one for nothing.
    pub(crate) fn of_argument(value: &str, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let before = diagnostics.len();
        let word = Word { text: value.trim().to_owned(), ..Word::default() };
        let check = if word.text.is_empty() { Self::default() } else { read_check(&word, diagnostics) };
        for diagnostic in &mut diagnostics[before..] {
            diagnostic.message = format!("BUILDKIT_DOCKERFILE_CHECK: {}", diagnostic.message);
        }
        check
    }

    /// Whether an experimental rule is asked for.
    pub(crate) fn wants(&self, rule: &str) -> bool {
        self.experimental.contains(rule) || self.experimental.contains("all")
    }

    /// Whether a finding stays; those that no rule made always do.
    pub(crate) fn keeps(&self, diagnostic: &Diagnostic) -> bool {
        diagnostic.rule.is_none_or(|rule| !self.skip_all && !self.skip.contains(rule))
    }
}
