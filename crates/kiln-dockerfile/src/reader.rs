//! Reads instructions off the source: joins continued lines, skips comments, collects heredocs.

use crate::diagnostic::Diagnostic;
use crate::heredoc::{Heredoc, heredocs_of_line};
use crate::json::{self, JsonForm};
use crate::parse::MAX_LINE_BYTES;
use crate::source::{LogicalLine, Source};
use crate::split;

/// One instruction's text, not yet understood.
#[derive(Debug)]
pub(crate) struct RawInstruction {
    pub(crate) line: LogicalLine,
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) comments: Vec<String>,
}

pub(crate) struct Reader<'s> {
    source: &'s Source<'s>,
    escape: char,
    /// The next line to read, counted from 1.
    next_line: usize,
    /// Lines before this one may be directives, which are no comments.
    directive_lines: usize,
    comments: Vec<String>,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Source<'s>, escape: char, directive_lines: usize) -> Self {
        Self { source, escape, next_line: 1, directive_lines, comments: Vec::new() }
    }

    /// The next line without its end-of-line, and where it begins.
    fn take_line(&mut self, diagnostics: &mut Vec<Diagnostic>) -> Option<(&'s str, usize)> {
        if self.next_line > self.source.line_count() {
            return None;
        }
        let range = self.source.line_range(self.next_line);
        let mut text = &self.source.text[range.clone()];
        let ended = text.ends_with('\n');
        if text.len() > MAX_LINE_BYTES + usize::from(ended) {
            let span = self.source.line_span(self.next_line);
            let message = format!("line of {} bytes is longer than {MAX_LINE_BYTES}", text.len());
            diagnostics.push(Diagnostic::error(message, span));
        }
        let mut start = range.start;
        if self.next_line == 1
            && let Some(rest) = text.strip_prefix('\u{feff}')
        {
            start += text.len() - rest.len();
            text = rest;
        }
        self.next_line += 1;
        Some((text, start))
    }

    pub(crate) fn next(&mut self, diagnostics: &mut Vec<Diagnostic>) -> Option<RawInstruction> {
        loop {
            let number = self.next_line;
            let (whole, start) = self.take_line(diagnostics)?;
            let text = trim_end_of_line(whole);
            if is_comment(text) {
                self.note_comment(text, number);
                continue;
            }
            let indent = text.len() - text.trim_start().len();
            let text = &text[indent..];
            if text.is_empty() {
                continue;
            }
            let mut line = LogicalLine::new(number);
            let continued = self.push(&mut line, text, start + indent);
            if continued {
                self.read_continuation(&mut line, diagnostics);
            }
            let heredocs = self.read_heredocs(&mut line, diagnostics);
            return Some(RawInstruction { line, heredocs, comments: std::mem::take(&mut self.comments) });
        }
    }

    fn note_comment(&mut self, text: &str, number: usize) {
        if number <= self.directive_lines {
            return;
        }
        // The first byte goes, be it the # or, as in BuildKit, a blank before it.
        let skip = text.chars().next().map_or(0, char::len_utf8);
        match text[skip..].trim() {
            "" => self.comments.clear(),
            comment => self.comments.push(comment.to_owned()),
        }
    }

    /// Adds a line's text without its continuation character; true if it had one.
    fn push(&self, line: &mut LogicalLine, text: &str, start: usize) -> bool {
        let trimmed = text.trim_end_matches([' ', '\t']);
        if let Some(before) = trimmed.strip_suffix(self.escape)
            && !before.ends_with(self.escape)
        {
            line.push(before, start);
            return true;
        }
        line.push(text, start);
        false
    }

    fn read_continuation(&mut self, line: &mut LogicalLine, diagnostics: &mut Vec<Diagnostic>) {
        let mut empty_line = None;
        loop {
            let number = self.next_line;
            let Some((whole, start)) = self.take_line(diagnostics) else { break };
            line.last_line = number;
            let text = trim_end_of_line(whole);
            if is_comment(text) {
                continue;
            }
            if text.trim().is_empty() {
                empty_line.get_or_insert(number);
                continue;
            }
            if !self.push(line, text, start) {
                break;
            }
        }
        if let Some(number) = empty_line {
            diagnostics.push(
                Diagnostic::warning(
                    Some("NoEmptyContinuation"),
                    "empty continuation line: it will become an error in a future Dockerfile version",
                    self.source.line_span(number),
                )
                .with_hint(Some("remove the line, or make it a comment".to_owned())),
            );
        }
    }

    fn read_heredocs(&mut self, line: &mut LogicalLine, diagnostics: &mut Vec<Diagnostic>) -> Vec<Heredoc> {
        if !line.text.contains("<<") || !may_have_heredocs(&line.text, self.escape) {
            return Vec::new();
        }
        let mut heredocs = match heredocs_of_line(&line.text) {
            Ok(heredocs) => heredocs,
            Err(error) => {
                diagnostics
                    .push(Diagnostic::error(error.to_string(), line.span(self.source, 0..line.text.len())));
                return Vec::new();
            }
        };
        for heredoc in &mut heredocs {
            if !self.read_body(heredoc, line, diagnostics) {
                let at = line.text.find("<<").unwrap_or(0);
                let span = line.span(self.source, at..line.text.len());
                let message = format!(
                    "unterminated heredoc: expected a line {:?}, found the end of the file",
                    heredoc.name
                );
                diagnostics.push(Diagnostic::error(message, span).with_hint(near_terminator(heredoc)));
                break;
            }
        }
        heredocs
    }

    fn read_body(
        &mut self,
        heredoc: &mut Heredoc,
        line: &mut LogicalLine,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> bool {
        loop {
            let number = self.next_line;
            let Some((whole, _)) = self.take_line(diagnostics) else { return false };
            line.last_line = number;
            let mut text = trim_end_of_line(whole);
            if heredoc.strip_tabs {
                text = text.trim_start_matches('\t');
            }
            if text == heredoc.name {
                return true;
            }
            heredoc.content.push_str(whole);
        }
    }
}

/// A line of the body that is the terminator but for white space around it.
fn near_terminator(heredoc: &Heredoc) -> Option<String> {
    let near = heredoc.content.lines().find(|line| line.trim() == heredoc.name)?;
    Some(format!("the line {near:?} is not it: no white space may stand around the terminator"))
}

/// Whether an instruction reads heredocs: RUN, COPY and ADD in shell form, also behind ONBUILD.
fn may_have_heredocs(text: &str, escape: char) -> bool {
    let (mut keyword, mut arguments) = keyword_and_arguments(text, split::trim(text, 0..text.len()), escape);
    if text[keyword.clone()].eq_ignore_ascii_case("onbuild") {
        (keyword, arguments) = keyword_and_arguments(text, arguments, escape);
    }
    let named = ["run", "copy", "add"].iter().any(|name| text[keyword.clone()].eq_ignore_ascii_case(name));
    named && json::read(&text[arguments]) == JsonForm::NotJson
}

fn keyword_and_arguments(
    text: &str,
    range: std::ops::Range<usize>,
    escape: char,
) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let end = range.end;
    let (keyword, rest) = split::first_and_rest(text, range);
    let (_, arguments) = split::flags(text, rest.unwrap_or(end..end), escape);
    (keyword, split::trim(text, arguments))
}

fn trim_end_of_line(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

fn is_comment(text: &str) -> bool {
    text.trim_start().starts_with('#')
}
