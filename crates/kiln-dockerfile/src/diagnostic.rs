//! What is wrong with a Dockerfile, where, and how it may have been meant.

use std::fmt::Write as _;

use crate::source::Span;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Works, but is not what it looks like or will stop working.
    Warning,
    /// The file cannot be built.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The lint rule that found it, by BuildKit's name, for `# check=skip=`. Errors have none.
    pub rule: Option<&'static str>,
    /// Names the thing, what was expected and what was found. No full stop.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What to do, such as `did you mean RUN?`.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error without a hint.
    #[must_use]
    pub fn error(message: impl Into<String>, span: Span) -> Self {
        Self { severity: Severity::Error, rule: None, message: message.into(), span, hint: None }
    }

    /// A warning without a hint.
    #[must_use]
    pub fn warning(rule: Option<&'static str>, message: impl Into<String>, span: Span) -> Self {
        Self { severity: Severity::Warning, rule, message: message.into(), span, hint: None }
    }

    /// The same with a hint, if there is one.
    #[must_use]
    pub fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

/// Shows one diagnostic as plain text: what, `file:line:column`, the source line, a caret, the hint.
///
/// `file` is only shown; `source` is [`Dockerfile::source`](crate::Dockerfile::source). A span over
/// several lines is underlined on its first one.
#[must_use]
pub fn render(diagnostic: &Diagnostic, file: &str, source: &str) -> String {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let rule = diagnostic.rule.map(|rule| format!("[{rule}]")).unwrap_or_default();
    let span = diagnostic.span;
    let mut out = format!("{severity}{rule}: {}\n", printable(&diagnostic.message));
    if span.line > 0 {
        let number = span.line.to_string();
        let margin = " ".repeat(number.len());
        let _ = writeln!(out, "{margin}--> {file}:{}:{}", span.line, span.column);
        if let Some(line) = source.lines().nth(span.line - 1) {
            let line = line.strip_prefix('\u{feff}').unwrap_or(line);
            let (shown, caret_at, width) = window(line, span);
            let _ = writeln!(out, "{margin} |\n{number} | {shown}");
            let _ = writeln!(out, "{margin} | {}{}", " ".repeat(caret_at), "^".repeat(width));
        }
        if let Some(hint) = &diagnostic.hint {
            let _ = writeln!(out, "{margin} = help: {}", printable(hint));
        }
    } else if let Some(hint) = &diagnostic.hint {
        let _ = writeln!(out, " = help: {}", printable(hint));
    }
    out
}

/// Shows all diagnostics, one empty line between two.
#[must_use]
pub fn render_all(diagnostics: &[Diagnostic], file: &str, source: &str) -> String {
    let shown: Vec<String> = diagnostics.iter().map(|diagnostic| render(diagnostic, file, source)).collect();
    shown.join("\n")
}

/// Columns of a source line that are shown at most.
const SHOWN: usize = 160;

/// The part of the line around the span, where the caret goes in it, and how wide it is.
fn window(line: &str, span: Span) -> (String, usize, usize) {
    let chars: Vec<char> = line.chars().collect();
    let start = (span.column - 1).min(chars.len());
    let length = if span.end_line > span.line {
        chars.len().saturating_sub(start)
    } else {
        // The span's end is a byte offset; walk characters from its start.
        let mut bytes = span.end.saturating_sub(span.start);
        chars[start..]
            .iter()
            .take_while(|ch| {
                let inside = bytes > 0;
                bytes = bytes.saturating_sub(ch.len_utf8());
                inside
            })
            .count()
    };
    let from = if start + length.min(40) > SHOWN { start.saturating_sub(SHOWN / 2) } else { 0 };
    let to = chars.len().min(from + SHOWN);
    let shown: String = chars[from..to].iter().map(|ch| if ch.is_control() { ' ' } else { *ch }).collect();
    let width = length.min(to.saturating_sub(start)).max(1);
    (shown.trim_end().to_owned(), start - from, width)
}

/// Control characters, which could drive a terminal, shown as escapes.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for ch in text.chars() {
        if ch.is_control() { out.extend(ch.escape_default()) } else { out.push(ch) }
    }
    out
}
