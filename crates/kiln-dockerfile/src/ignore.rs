//! `.dockerignore`: which paths of a context are left out. The rules are moby/patternmatcher's.
//!
//! - A pattern is matched against the whole path from the context's root, never against a name alone.
//! - `**` is any number of directories, `*` and `?` stop at `/`.
//! - What lies below a matched directory is matched too.
//! - The last pattern that matches decides; `!` makes it decide for inclusion.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::error::Error;
use crate::glob::{clean_path, glob_match};
use crate::regex::Regex;

/// Fewer suffixes than this are sooner compared than looked up, which takes as many times as a path has components.
const MANY_SUFFIXES: usize = 32;

/// Compiled patterns of one ignore file.
#[derive(Debug, Clone, Default)]
pub struct IgnoreMatcher {
    patterns: Vec<Pattern>,
    /// Where patterns without wildcards stand, by their texts: of many of them, only those that match a path are asked.
    exact: HashMap<String, Vec<usize>>,
    /// The same of those that are `**/` and a text, if there are many.
    suffixes: HashMap<String, Vec<usize>>,
    /// Where the others stand.
    others: Vec<usize>,
    has_exclusions: bool,
}

/// What is known of one path while walking; the state of a directory serves its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreState {
    ignored: bool,
    /// The patterns, in order, that matched the path or a directory above it.
    matched: Vec<usize>,
}

impl IgnoreState {
    /// Whether the path is left out.
    #[must_use]
    pub fn is_ignored(&self) -> bool {
        self.ignored
    }
}

#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// `!`
    exclusion: bool,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Exact,
    /// Paths that begin with this.
    Prefix(String),
    /// Paths that end with this, or, where it begins with a slash, are the rest of it.
    Suffix(String),
    Regex(Regex),
}

impl IgnoreMatcher {
    /// Reads an ignore file: one pattern a line, `#` in the first column for comments, blanks around
    /// a pattern do not count, a leading slash neither.
    ///
    /// # Errors
    /// [`Error::Pattern`], [`Error::EmptyExclusion`].
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, Error> {
        let bytes = text.as_ref();
        let text = String::from_utf8_lossy(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes));
        let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        let patterns: Vec<String> =
            lines.filter(|line| !line.starts_with('#')).filter_map(read_line).collect();
        Self::new(patterns)
    }

    /// Compiles patterns, such as those of `COPY --exclude`.
    ///
    /// # Errors
    /// [`Error::Pattern`], [`Error::EmptyExclusion`].
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, Error> {
        let mut matcher = Self::default();
        let mut suffixes = 0;
        for pattern in patterns {
            let trimmed = pattern.as_ref().trim();
            if trimmed.is_empty() {
                continue;
            }
            let cleaned = clean_path(trimmed);
            let (exclusion, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(Error::EmptyExclusion),
                Some(text) => (true, text.to_owned()),
                None => (false, cleaned),
            };
            // Only for its judgement of the pattern's form.
            glob_match(&text, ".")?;
            matcher.has_exclusions |= exclusion;
            let Some(rule) = compile(&text) else { return Err(Error::Pattern { pattern: text }) };
            let place = matcher.patterns.len();
            match &rule {
                Rule::Exact => matcher.exact.entry(text.clone()).or_default().push(place),
                _ => matcher.others.push(place),
            }
            suffixes += usize::from(rule.names().is_some());
            matcher.patterns.push(Pattern { text, exclusion, rule });
        }
        if suffixes >= MANY_SUFFIXES {
            matcher.look_suffixes_up();
        }
        Ok(matcher)
    }

    /// From now on suffixes are looked up.
    fn look_suffixes_up(&mut self) {
        let Self { patterns, suffixes, others, .. } = self;
        others.retain(|place| match patterns[*place].rule.names() {
            Some(names) => {
                suffixes.entry(names.to_owned()).or_default().push(*place);
                false
            }
            None => true,
        });
    }

    /// How many patterns there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.patterns.len()
    }

    /// No patterns: nothing is ignored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether there is any `!` pattern.
    #[must_use]
    pub fn has_exclusions(&self) -> bool {
        self.has_exclusions
    }

    /// The patterns, cleaned, with `!` where they had one.
    pub fn patterns(&self) -> impl Iterator<Item = String> + '_ {
        self.patterns
            .iter()
            .map(|pattern| format!("{}{}", if pattern.exclusion { "!" } else { "" }, pattern.text))
    }

    /// Whether a path, relative to the root with `/` between names, is left out. Looks at all
    /// directories above it as well; a walk is faster with [`IgnoreMatcher::root`] and
    /// [`IgnoreMatcher::child`].
    #[must_use]
    pub fn is_ignored(&self, path: impl AsRef<[u8]>) -> bool {
        let path = String::from_utf8_lossy(path.as_ref());
        let cleaned = clean_path(&path);
        if cleaned == "." {
            return false;
        }
        let mut ignored = false;
        for pattern in &self.patterns {
            if pattern.exclusion != ignored {
                continue;
            }
            let parents = || cleaned.match_indices('/').any(|(at, _)| pattern.matches(&cleaned[..at]));
            if pattern.matches(&cleaned) || parents() {
                ignored = !pattern.exclusion;
            }
        }
        ignored
    }

    /// The state of the context's root, which is never ignored.
    #[must_use]
    pub fn root(&self) -> IgnoreState {
        IgnoreState::default()
    }

    /// The state of an entry, given its directory's state and its whole path relative to the root.
    ///
    /// If the entry is an ignored directory, ask [`IgnoreMatcher::may_include_below`] whether to
    /// enter it.
    #[must_use]
    pub fn child(&self, parent: &IgnoreState, path: impl AsRef<[u8]>) -> IgnoreState {
        let path: Cow<'_, str> = String::from_utf8_lossy(path.as_ref());
        // Those that are looked up and not found could not match.
        let found: Vec<usize> = self.look_up(&path).chain(&parent.matched).copied().collect();
        let mut asked = Cow::Borrowed(self.others.as_slice());
        if !found.is_empty() {
            let asked = asked.to_mut();
            asked.extend(found);
            asked.sort();
            asked.dedup();
        }
        let mut state = self.root();
        for index in asked.iter() {
            let pattern = &self.patterns[*index];
            let inherited = parent.matched.binary_search(index).is_ok();
            // As in moby, a pattern that could change nothing is not asked, and counts as not matched
            // for what lies below.
            if !inherited && pattern.exclusion != state.ignored {
                continue;
            }
            if inherited || pattern.matches(&path) {
                state.matched.push(*index);
                state.ignored = !pattern.exclusion;
            }
        }
        state
    }

    /// Where the patterns stand that match a path and are looked up.
    fn look_up<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a usize> {
        let starts = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at + 1));
        let starts = starts.filter(|_| !self.suffixes.is_empty());
        let suffixes = starts.filter_map(|start| self.suffixes.get(&path[start..]));
        self.exact.get(path).into_iter().chain(suffixes).flatten()
    }

    /// Whether some path below this ignored directory may be included again by a `!` pattern. If not,
    /// a walk need not enter it.
    #[must_use]
    pub fn may_include_below(&self, directory: impl AsRef<[u8]>) -> bool {
        if !self.has_exclusions {
            return false;
        }
        let start = format!("{}/", String::from_utf8_lossy(directory.as_ref()));
        self.patterns
            .iter()
            .filter(|pattern| pattern.exclusion)
            .any(|pattern| pattern.may_match_below(&start))
    }
}

impl Rule {
    /// The last components of all paths that match, if these alone decide.
    fn names(&self) -> Option<&str> {
        match self {
            Self::Suffix(suffix) => suffix.strip_prefix('/'),
            Self::Exact | Self::Prefix(_) | Self::Regex(_) => None,
        }
    }
}

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        match &self.rule {
            Rule::Exact => path == self.text,
            Rule::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Rule::Suffix(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path),
            Rule::Regex(regex) => regex.matches(path),
        }
    }

    fn may_match_below(&self, start: &str) -> bool {
        match &self.rule {
            Rule::Exact => self.text.starts_with(start),
            Rule::Prefix(prefix) => prefix.starts_with(start) || start.starts_with(prefix.as_str()),
            Rule::Suffix(_) => true,
            Rule::Regex(regex) => regex.may_match_below(start),
        }
    }
}

/// One line of an ignore file as a pattern.
fn read_line(line: &str) -> Option<String> {
    let line = line.trim();
    if line.is_empty() {
        return None;
    }
    let (mark, pattern) = line.strip_prefix('!').map_or(("", line), |rest| ("!", rest.trim()));
    if pattern.is_empty() {
        return Some(mark.to_owned());
    }
    let cleaned = clean_path(pattern);
    let relative = cleaned.strip_prefix('/').filter(|relative| !relative.is_empty()).unwrap_or(&cleaned);
    Some(format!("{mark}{relative}"))
}

/// Which of the rules a pattern follows. A pattern that begins with `**` and goes on without
/// wildcards is a suffix; one that ends with the only `**` a prefix; one without wildcards exact.
/// `None` if it is malformed.
fn compile(pattern: &str) -> Option<Rule> {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Shape {
        Exact,
        Prefix,
        Suffix,
        Regex,
    }
    let mut expression = String::new();
    let mut shape = Shape::Exact;
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(ch) = chars.next() {
        match ch {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                let _ = chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    expression.push_str("(.*/)?");
                    shape = Shape::Regex;
                } else if shape == Shape::Exact {
                    shape = Shape::Prefix;
                } else {
                    expression.push_str(".*");
                    shape = Shape::Regex;
                }
                if first {
                    shape = Shape::Suffix;
                }
            }
            '*' => {
                expression.push_str("[^/]*");
                shape = Shape::Regex;
            }
            '?' => {
                expression.push_str("[^/]");
                shape = Shape::Regex;
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                expression.push('\\');
                expression.push(ch);
            }
            '\\' => {
                expression.push('\\');
                if let Some(escaped) = chars.next() {
                    expression.push(escaped);
                    shape = Shape::Regex;
                }
            }
            '[' | ']' => {
                expression.push(ch);
                shape = Shape::Regex;
            }
            _ => expression.push(ch),
        }
        first = false;
    }
    Some(match shape {
        Shape::Exact => Rule::Exact,
        Shape::Prefix => Rule::Prefix(pattern[..pattern.len() - 2].to_owned()),
        Shape::Suffix => Rule::Suffix(pattern[2..].to_owned()),
        Shape::Regex => Rule::Regex(Regex::compile(&expression)?),
    })
}
