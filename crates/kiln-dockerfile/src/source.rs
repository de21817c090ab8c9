//! Positions: byte ranges of the source with line and column, and the logical lines that the
//! instructions are read from.

use std::ops::Range;

/// A part of the source text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Byte behind the last.
    pub end: usize,
    /// Line of the first byte, counted from 1.
    pub line: usize,
    /// Column of the first byte in characters, counted from 1.
    pub column: usize,
    /// Line of the last byte, counted from 1.
    pub end_line: usize,
}

/// Text from the source, and where it stands.
///
/// Two words are equal if their texts are: an expanded or generated word keeps the span of what it
/// was made from.
#[derive(Debug, Clone, Default)]
pub struct Word {
    /// The text, with continuation lines joined. Quotes and variables are as written.
    pub text: String,
    /// Where it stands in the source.
    pub span: Span,
}

impl Word {
    /// The same place with another text.
    #[must_use]
    pub fn with_text(&self, text: String) -> Self {
        Self { text, span: self.span }
    }
}

impl PartialEq for Word {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Word {}

/// The source text and where its lines begin.
#[derive(Debug)]
pub(crate) struct Source<'t> {
    pub(crate) text: &'t str,
    line_starts: Vec<usize>,
    ascii: bool,
    /// Where all of it stands, for what is part of no file that people see.
    place: Option<Span>,
}

impl<'t> Source<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let mut line_starts = vec![0];
        line_starts.extend(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1));
        if line_starts.len() > 1 && line_starts.last() == Some(&text.len()) {
            line_starts.pop();
        }
        Self { text, line_starts, ascii: text.is_ascii(), place: None }
    }

    /// Text of elsewhere, such as a base image's trigger: each part of it stands at `place`.
    pub(crate) fn placed(text: &'t str, place: Span) -> Self {
        Self { place: Some(place), ..Self::new(text) }
    }

    pub(crate) fn line_count(&self) -> usize {
        if self.text.is_empty() { 0 } else { self.line_starts.len() }
    }

    /// Bytes of a line (counted from 1), its end-of-line included.
    pub(crate) fn line_range(&self, line: usize) -> Range<usize> {
        let end = self.line_starts.get(line).copied().unwrap_or(self.text.len());
        self.line_starts[line - 1]..end
    }

    /// Number of the line, counted from 1, that the byte is on.
    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        if let Some(place) = self.place {
            return place;
        }
        let line = self.line_of(range.start);
        let before = &self.text[self.line_starts[line - 1]..range.start];
        let last = range.end.saturating_sub(1).max(range.start);
        let before = before.strip_prefix('\u{feff}').unwrap_or(before);
        Span {
            start: range.start,
            end: range.end,
            line,
            column: if self.ascii { before.len() } else { before.chars().count() } + 1,
            end_line: self.line_of(last),
        }
    }

    /// The span of a whole line without its end-of-line and indentation.
    pub(crate) fn line_span(&self, line: usize) -> Span {
        let range = self.line_range(line);
        let text = self.text[range.clone()].trim_end();
        let start = range.start + (text.len() - text.trim_start().len());
        self.span(start..range.start + text.len())
    }
}

/// An instruction's text, made of one or more source lines joined.
#[derive(Debug)]
pub(crate) struct LogicalLine {
    pub(crate) text: String,
    /// Offset in `text`, offset in the source, ascending.
    pieces: Vec<(usize, usize)>,
    pub(crate) first_line: usize,
    pub(crate) last_line: usize,
}

impl LogicalLine {
    pub(crate) fn new(first_line: usize) -> Self {
        Self { text: String::new(), pieces: Vec::new(), first_line, last_line: first_line }
    }

    pub(crate) fn push(&mut self, text: &str, source_start: usize) {
        if self.pieces.is_empty() || !text.is_empty() {
            self.pieces.push((self.text.len(), source_start));
        }
        self.text.push_str(text);
    }

    /// The span of a part that reaches to the end of the last line, comments and heredocs in between included.
    pub(crate) fn span_of_instruction(&self, source: &Source<'_>, range: Range<usize>) -> Span {
        let span = self.span(source, range);
        if source.place.is_some() {
            return span;
        }
        Span {
            line: span.line.max(self.first_line),
            end_line: self.last_line,
            end: span.end.max(source.line_span(self.last_line).end),
            ..span
        }
    }

    fn source_offset(&self, at: usize) -> usize {
        let index = self.pieces.partition_point(|(logical, _)| *logical <= at);
        match index.checked_sub(1).map(|index| self.pieces[index]) {
            Some((logical, source)) => source + (at - logical),
            None => 0,
        }
    }

    pub(crate) fn span(&self, source: &Source<'_>, range: Range<usize>) -> Span {
        let start = self.source_offset(range.start).min(source.text.len());
        let end = if range.end > range.start { self.source_offset(range.end - 1) + 1 } else { start };
        source.span(start..end.clamp(start, source.text.len()))
    }

    pub(crate) fn word(&self, source: &Source<'_>, range: Range<usize>) -> Word {
        Word { text: self.text[range.clone()].to_owned(), span: self.span(source, range) }
    }
}
