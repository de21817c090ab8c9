//! The wildcard patterns inside `${name#pattern}` and its relatives: `*` and `?`, no brackets.

use crate::error::ExpandFailure;

/// Pattern pieces times text length beyond which matching is refused.
const MAX_WORK: usize = 1 << 27;

/// Whether `*` prefers the shortest or the longest run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appetite {
    Shortest,
    Longest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    AnyOne,
    AnyRun,
}

/// A compiled pattern. Neither wildcard matches a newline.
#[derive(Debug)]
pub(crate) struct ShellPattern {
    pieces: Vec<Piece>,
    appetite: Appetite,
}

impl ShellPattern {
    /// `\*`, `\?` and `\\` are literals; `\}` and `\/` lose their backslash; other escapes are errors.
    pub(crate) fn compile(pattern: &str, appetite: Appetite) -> Result<Self, ExpandFailure> {
        let mut pieces = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(ch) = chars.next() {
            pieces.push(match ch {
                '*' => Piece::AnyRun,
                '?' => Piece::AnyOne,
                '\\' => match chars.next() {
                    Some(next @ ('*' | '?' | '\\' | '}' | '/')) => Piece::Char(next),
                    _ => return Err(ExpandFailure::Pattern { pattern: pattern.to_owned() }),
                },
                other => Piece::Char(other),
            });
        }
        Ok(Self { pieces, appetite })
    }

    /// `text` without the part that the pattern matches at its start.
    pub(crate) fn trim_start(&self, text: &str) -> Result<String, ExpandFailure> {
        let chars: Vec<char> = text.chars().collect();
        let mut search = Search::new(self, &chars)?;
        Ok(match search.end_from(0) {
            Some(end) => chars[end..].iter().collect(),
            None => text.to_owned(),
        })
    }

    /// `text` with the first match replaced by the replacement, literally.
    pub(crate) fn replace_first(&self, text: &str, replacement: &str) -> Result<String, ExpandFailure> {
        let chars: Vec<char> = text.chars().collect();
        let mut search = Search::new(self, &chars)?;
        let Some((start, end)) = search.find(0) else { return Ok(text.to_owned()) };
        let mut out: String = chars[..start].iter().collect();
        out.push_str(replacement);
        out.extend(&chars[end..]);
        Ok(out)
    }

    /// `text` with all matches replaced. As in BuildKit the replacement is a template: `$0` is the
    /// match, `$$` a dollar, any other `$name` nothing.
    pub(crate) fn replace_all(
        &self,
        text: &str,
        template: &str,
        limit: usize,
    ) -> Result<String, ExpandFailure> {
        let chars: Vec<char> = text.chars().collect();
        let mut search = Search::new(self, &chars)?;
        let (mut out, mut at, mut last_end) = (String::new(), 0, 0);
        while at <= chars.len() {
            let Some((start, end)) = search.find(at) else { break };
            out.extend(&chars[last_end..start]);
            // An empty match right behind another match is not a match of its own.
            if end > last_end || start == 0 {
                push_template(&mut out, template, &chars[start..end], limit)?;
            }
            last_end = end;
            at = if end > at { end } else { at + 1 };
        }
        out.extend(&chars[last_end..]);
        Ok(out)
    }
}

/// The pattern turned round, escapes kept in front of what they escape, so that a match at the end
/// of a text becomes one at the start of the reversed text.
pub(crate) fn reverse_pattern(pattern: &str) -> String {
    let mut units: Vec<String> = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(ch) = chars.next() {
        let mut unit = String::from(ch);
        if ch == '\\'
            && let Some(escaped) = chars.next()
        {
            unit.push(escaped);
        }
        units.push(unit);
    }
    units.into_iter().rev().collect()
}

fn push_template(
    out: &mut String,
    template: &str,
    matched: &[char],
    limit: usize,
) -> Result<(), ExpandFailure> {
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        within(limit, out)?;
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (name, after) = match rest.strip_prefix('{') {
            Some(inner) => match inner.split_once('}') {
                Some((name, after)) if is_template_name(name) => (name, after),
                _ => ("", rest),
            },
            None => {
                let end = rest.find(|ch: char| !is_template_char(ch)).unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        if name.is_empty() {
            out.push('$');
            continue;
        }
        // A number with a leading zero is a name, and no group has a name.
        if name == "0" {
            out.extend(matched);
        }
        rest = after;
    }
    out.push_str(rest);
    within(limit, out)
}

fn within(limit: usize, out: &str) -> Result<(), ExpandFailure> {
    if out.len() > limit { Err(ExpandFailure::TooLarge { limit }) } else { Ok(()) }
}

fn is_template_char(ch: char) -> bool {
    ch == '_' || ch.is_alphanumeric()
}

fn is_template_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(is_template_char)
}

/// Backtracking that never visits a (piece, position) pair twice, so it is linear in their product.
struct Search<'a> {
    pieces: &'a [Piece],
    appetite: Appetite,
    text: &'a [char],
    failed: Vec<u64>,
}

impl<'a> Search<'a> {
    fn new(pattern: &'a ShellPattern, text: &'a [char]) -> Result<Self, ExpandFailure> {
        let work = (pattern.pieces.len() + 1).saturating_mul(text.len() + 1);
        if work > MAX_WORK {
            return Err(ExpandFailure::TooLarge { limit: MAX_WORK });
        }
        Ok(Self { pieces: &pattern.pieces, appetite: pattern.appetite, text, failed: vec![0; work / 64 + 1] })
    }

    fn find(&mut self, from: usize) -> Option<(usize, usize)> {
        (from..=self.text.len()).find_map(|start| Some((start, self.end_from(start)?)))
    }

    /// End of the preferred match that starts at `start`.
    fn end_from(&mut self, start: usize) -> Option<usize> {
        // The pairs of one successful run stay marked as visited, so they are unmarked for the next.
        let mut trail = Vec::new();
        let mut stack = vec![(0, start)];
        let mut found = None;
        while let Some((piece, at)) = stack.pop() {
            if piece == self.pieces.len() {
                found = Some(at);
                break;
            }
            let bit = piece * (self.text.len() + 1) + at;
            if self.failed[bit / 64] & (1 << (bit % 64)) != 0 {
                continue;
            }
            self.failed[bit / 64] |= 1 << (bit % 64);
            trail.push(bit);
            let next = self.text.get(at).copied();
            match self.pieces[piece] {
                Piece::Char(ch) if next == Some(ch) => stack.push((piece + 1, at + 1)),
                Piece::AnyOne if next.is_some_and(|ch| ch != '\n') => stack.push((piece + 1, at + 1)),
                Piece::Char(_) | Piece::AnyOne => {}
                Piece::AnyRun => {
                    let consume = next.is_some_and(|ch| ch != '\n').then_some((piece, at + 1));
                    let skip = (piece + 1, at);
                    match self.appetite {
                        Appetite::Longest => {
                            stack.push(skip);
                            stack.extend(consume);
                        }
                        Appetite::Shortest => {
                            stack.extend(consume);
                            stack.push(skip);
                        }
                    }
                }
            }
        }
        if found.is_some() {
            for bit in trail {
                self.failed[bit / 64] &= !(1 << (bit % 64));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::push_template;

    /// One template may name its match a million times.
    #[test]
    fn templates_end_at_the_limit() {
        let mut out = String::new();
        push_template(&mut out, &"$0".repeat(1000), &['x'; 10], 15).expect_err("too large");
        assert_eq!(out.len(), 20);
    }
}
