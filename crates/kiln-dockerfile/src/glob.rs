//! Wildcards in paths (Go's `filepath.Match`) and lexical cleaning (Go's `path.Clean`).

use crate::error::Error;

/// Whether a whole path matches a pattern, as Go's `filepath.Match` does it (COPY's sources): `*` is
/// any run without `/`, `?` any character but `/`, `[a-z]` and `[^a-z]` one character, `\` makes the
/// next character plain.
///
/// # Errors
/// [`Error::Pattern`] if the pattern is malformed, whether or not the path fits what is before the fault.
pub fn glob_match(pattern: &str, path: &str) -> Result<bool, Error> {
    let malformed = |_: Malformed| Error::Pattern { pattern: pattern.to_owned() };
    let path: Vec<char> = path.chars().collect();
    let chunks = chunks(pattern);
    let mut at = 0;
    for (index, chunk) in chunks.iter().enumerate() {
        let last = index + 1 == chunks.len();
        if chunk.star && chunk.text.is_empty() {
            return Ok(!path[at..].contains(&'/'));
        }
        // Where a star stands before the chunk, its first fit is taken; it may not skip a slash.
        let mut fit = None;
        for start in at..=path.len() {
            let end = match_chunk(&chunk.text, &path, start).map_err(malformed)?;
            if end.is_some_and(|end| !last || end == path.len()) {
                fit = end;
                break;
            }
            if !chunk.star || path.get(start) == Some(&'/') {
                break;
            }
        }
        match fit {
            Some(end) => at = end,
            None => {
                for rest in &chunks[index + 1..] {
                    match_chunk(&rest.text, &[], 0).map_err(malformed)?;
                }
                return Ok(false);
            }
        }
    }
    Ok(at == path.len())
}

/// The pattern is not well formed.
struct Malformed;

struct Chunk {
    star: bool,
    text: Vec<char>,
}

/// The pattern cut at its stars.
fn chunks(pattern: &str) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut chunk = Chunk { star: false, text: Vec::new() };
    let mut in_class = false;
    let mut chars = pattern.chars();
    while let Some(ch) = chars.next() {
        match ch {
            '*' if !in_class => {
                if !chunk.text.is_empty() {
                    chunks.push(std::mem::replace(&mut chunk, Chunk { star: false, text: Vec::new() }));
                }
                chunk.star = true;
                continue;
            }
            '[' => in_class = true,
            ']' => in_class = false,
            _ => {}
        }
        chunk.text.push(ch);
        if ch == '\\' {
            chunk.text.extend(chars.next());
        }
    }
    if chunk.star || !chunk.text.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// Where the chunk's fit at `start` ends. The whole chunk is checked, fit or not.
fn match_chunk(chunk: &[char], path: &[char], start: usize) -> Result<Option<usize>, Malformed> {
    let (mut at, mut pos) = (Some(start), 0);
    while pos < chunk.len() {
        let ch = at.and_then(|at| path.get(at)).copied();
        let fits = match chunk[pos] {
            '[' => {
                let (inside, next) = match_class(chunk, pos + 1, ch)?;
                pos = next;
                inside
            }
            '?' => {
                pos += 1;
                ch != Some('/')
            }
            '\\' => {
                pos += 2;
                Some(*chunk.get(pos - 1).ok_or(Malformed)?) == ch
            }
            literal => {
                pos += 1;
                Some(literal) == ch
            }
        };
        at = at.filter(|_| fits && ch.is_some()).map(|at| at + 1);
    }
    Ok(at)
}

/// Whether the class that begins at `pos`, behind its bracket, holds the character; and where it ends.
fn match_class(chunk: &[char], mut pos: usize, ch: Option<char>) -> Result<(bool, usize), Malformed> {
    let negated = chunk.get(pos) == Some(&'^');
    pos += usize::from(negated);
    let mut found = false;
    let mut first = true;
    while first || chunk.get(pos) != Some(&']') {
        first = false;
        let low = class_char(chunk, &mut pos)?;
        let mut high = low;
        if chunk.get(pos) == Some(&'-') {
            pos += 1;
            high = class_char(chunk, &mut pos)?;
        }
        found |= ch.is_some_and(|ch| (low..=high).contains(&ch));
    }
    Ok((found != negated, pos + 1))
}

fn class_char(chunk: &[char], pos: &mut usize) -> Result<char, Malformed> {
    let mut ch = *chunk.get(*pos).ok_or(Malformed)?;
    *pos += 1;
    match ch {
        '-' | ']' => return Err(Malformed),
        '\\' => {
            ch = *chunk.get(*pos).ok_or(Malformed)?;
            *pos += 1;
        }
        _ => {}
    }
    // A class must be closed, so it cannot end behind one of its characters.
    if *pos < chunk.len() { Ok(ch) } else { Err(Malformed) }
}

/// Whether a path has `*`, `?` or `[` that is not escaped.
#[must_use]
pub fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(ch) = chars.next() {
        match ch {
            '*' | '?' | '[' => return true,
            '\\' => _ = chars.next(),
            _ => {}
        }
    }
    false
}

/// The shortest equal path by its letters alone, as Go's `path.Clean`: no empty, `.` or inner `..`
/// components, no trailing slash, `.` for nothing.
#[must_use]
pub fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}
