//! Cuts an instruction's text into keyword, flags and words, each with its range.

use std::ops::Range;

/// Blanks that separate words. Other white space does not.
pub(crate) fn is_blank(ch: char) -> bool {
    matches!(ch, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// The range without the white space at its ends.
pub(crate) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let start = range.start + (part.len() - part.trim_start().len());
    start..(range.start + part.trim_end().len()).max(start)
}

/// Words between blanks.
pub(crate) fn blank_separated(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    for (at, ch) in text[range.clone()].char_indices() {
        let at = range.start + at;
        match (is_blank(ch), start) {
            (false, None) => start = Some(at),
            (true, Some(begin)) => {
                words.push(begin..at);
                start = None;
            }
            _ => {}
        }
    }
    words.extend(start.map(|begin| begin..range.end));
    words
}

/// The first word up to a blank, and what follows the blanks.
pub(crate) fn first_and_rest(text: &str, range: Range<usize>) -> (Range<usize>, Option<Range<usize>>) {
    let part = &text[range.clone()];
    let Some(end) = part.find(is_blank) else { return (range, None) };
    let rest = part[end..].find(|ch| !is_blank(ch)).map_or(range.end, |skip| range.start + end + skip);
    (range.start..range.start + end, Some(rest..range.end))
}

/// Words between white space where quotes and escapes hold a word together; they stay in the word.
pub(crate) fn quoted_words(text: &str, range: Range<usize>, escape: char) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start: Option<usize> = None;
    let mut quote = None;
    let mut end = range.end;
    let mut chars = text[range.clone()].char_indices().peekable();
    while let Some((at, ch)) = chars.next() {
        let at = range.start + at;
        let Some(begin) = start else {
            if ch.is_whitespace() {
                continue;
            }
            start = Some(at);
            if ch == '\'' || ch == '"' {
                quote = Some(ch);
            } else if ch == escape && chars.next().is_none() {
                end = at;
            }
            continue;
        };
        match quote {
            None if ch.is_whitespace() => {
                words.push(begin..at);
                start = None;
            }
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            Some(open) if ch == open => quote = None,
            // Nothing escapes inside single quotes.
            Some('\'') => {}
            _ if ch == escape && chars.next().is_none() => end = at,
            _ => {}
        }
    }
    words.extend(start.filter(|begin| *begin < end).map(|begin| begin..end));
    words
}

/// One `--flag` word: its text without quotes and escapes, and its range with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FlagWord {
    pub(crate) text: String,
    pub(crate) range: Range<usize>,
}

/// The flags at the start of the range, and where the rest begins. A lone `--` ends the flags.
pub(crate) fn flags(text: &str, range: Range<usize>, escape: char) -> (Vec<FlagWord>, Range<usize>) {
    let mut flags = Vec::new();
    let mut at = range.start;
    loop {
        let part = &text[at..range.end];
        let begin = at + (part.len() - part.trim_start().len());
        if !text[begin..range.end].starts_with("--") {
            return (flags, begin..range.end);
        }
        let (word, end) = flag_word(text, begin..range.end, escape);
        at = end;
        if word == "--" {
            return (flags, end..range.end);
        }
        flags.push(FlagWord { text: word, range: begin..end });
    }
}

fn flag_word(text: &str, range: Range<usize>, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text[range.clone()].char_indices();
    while let Some((at, ch)) = chars.next() {
        if quote == Some(ch) {
            quote = None;
        } else if quote.is_none() && ch.is_whitespace() {
            return (word, range.start + at);
        } else if quote.is_none() && (ch == '\'' || ch == '"') {
            quote = Some(ch);
        } else if ch == escape {
            word.extend(chars.next().map(|(_, escaped)| escaped));
        } else {
            word.push(ch);
        }
    }
    (word, range.end)
}
