//! Word expansion: quotes, escapes and variables, as BuildKit's shell lexer does it.
//!
//! One word in, one word out ([`Expander::word`]), or one word in and several out
//! ([`Expander::words`]), where unquoted spaces, also those that come out of a variable, split.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash};

use crate::error::{Error, ExpandFailure};
use crate::pattern::{Appetite, ShellPattern, reverse_pattern};

/// Substitutions may nest this deep.
pub const MAX_NESTING: usize = 128;
/// All substituted text of one word may add up to this many bytes. A row of `ENV a=$a$a` doubles
/// with each line; it ends here with an error.
pub const MAX_EXPANDED_BYTES: usize = 16 << 20;
/// Words that are bounded [`Together`] may become about this many bytes.
const MAX_TOGETHER: usize = 64 << 20;
/// What a word takes besides its text.
const WORD_BYTES: usize = 64;

/// Where the values of variables come from.
pub trait Variables {
    /// The value of `name`, or `None` if it is not set. An empty value is set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// Nothing is set.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoVariables;

impl Variables for NoVariables {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }
}

impl<K: Borrow<str> + Ord, V: AsRef<str>> Variables for BTreeMap<K, V> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(AsRef::as_ref)
    }
}

impl<K: Borrow<str> + Eq + Hash, V: AsRef<str>, S: BuildHasher> Variables for HashMap<K, V, S> {
    fn get(&self, name: &str) -> Option<&str> {
        HashMap::get(self, name).map(AsRef::as_ref)
    }
}

/// An image config's `Env`: `NAME=value` strings, of which the last wins.
impl Variables for [String] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find_map(|entry| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            (key == name).then_some(value)
        })
    }
}

impl Variables for Vec<String> {
    fn get(&self, name: &str) -> Option<&str> {
        Variables::get(self.as_slice(), name)
    }
}

/// What a word became.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The expanded word.
    pub text: String,
    /// The same, split at unquoted spaces.
    pub words: Vec<String>,
    /// Variables that were looked up and are set.
    pub used: BTreeSet<String>,
    /// Variables that were looked up and are not set.
    pub unset: BTreeSet<String>,
}

/// What words have become that are bounded together: those of one instruction, for example. Each may be as large as
/// [`MAX_EXPANDED_BYTES`], and a line has room for thousands.
#[derive(Debug, Default)]
pub struct Together {
    bytes: usize,
}

impl Together {
    /// Counts what `word` has become.
    ///
    /// # Errors
    /// [`ExpandFailure::TooMuch`].
    pub fn count(&mut self, word: &str, text: &str) -> Result<(), Error> {
        self.add(word, text.len())
    }

    pub(crate) fn count_words(&mut self, word: &str, expansion: &Expansion) -> Result<(), Error> {
        self.add(word, expansion.text.len() + expansion.words.len() * WORD_BYTES)
    }

    fn add(&mut self, word: &str, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes <= MAX_TOGETHER {
            return Ok(());
        }
        Err(Error::Expand { word: word.to_owned(), reason: ExpandFailure::TooMuch { limit: MAX_TOGETHER } })
    }
}

/// Expands words. Cheap to make; holds no state between words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expander {
    escape: char,
    keep_quotes: bool,
    keep_escapes: bool,
    ignore_quotes: bool,
    keep_unset: bool,
}

impl Expander {
    /// The expander for instruction words of a Dockerfile with this escape character.
    #[must_use]
    pub fn new(escape: char) -> Self {
        Self { escape, keep_quotes: false, keep_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// The expander for the body of a heredoc: quotes mean nothing, the escape is always `\`.
    #[must_use]
    pub fn for_heredoc_body() -> Self {
        Self { ignore_quotes: true, ..Self::new('\\') }
    }

    /// Leave quotes where they are, and variables that are not set as written. Good for messages
    /// that show a command.
    #[must_use]
    pub fn for_display(escape: char) -> Self {
        Self { keep_quotes: true, keep_unset: true, ..Self::new(escape) }
    }

    /// Finds the words of a line that may be heredocs.
    pub(crate) fn for_heredoc_line() -> Self {
        Self { keep_escapes: true, ..Self::for_display('\\') }
    }

    /// Reads the name of a heredoc, with or without its quotes.
    pub(crate) fn for_heredoc_name(keep_quotes: bool) -> Self {
        Self { keep_quotes, ..Self::for_display('\\') }
    }

    /// Expands one word.
    ///
    /// # Errors
    /// [`Error::Expand`] for open quotes, bad substitutions, `${x?}` of an unset x, and caps.
    pub fn word<V: Variables + ?Sized>(&self, word: &str, variables: &V) -> Result<Expansion, Error> {
        let mut lexer = Lexer::new(*self, word, |name: &str| variables.get(name));
        match lexer.until(None, self.keep_escapes) {
            Ok((text, words)) => Ok(Expansion { text, words, used: lexer.used, unset: lexer.unset }),
            Err(reason) => Err(Error::Expand { word: word.to_owned(), reason }),
        }
    }

    /// Expands one word and splits it at unquoted spaces (EXPOSE does).
    ///
    /// # Errors
    /// As [`Expander::word`].
    pub fn words<V: Variables + ?Sized>(&self, word: &str, variables: &V) -> Result<Vec<String>, Error> {
        Ok(self.word(word, variables)?.words)
    }
}

struct Lexer<F> {
    options: Expander,
    chars: Vec<char>,
    at: usize,
    variables: F,
    used: BTreeSet<String>,
    unset: BTreeSet<String>,
    /// The word being collected. Shared with nested substitutions, which empty it: so in BuildKit a
    /// list's word loses what stood before `${x:-y}`. Kept, because EXPOSE shows it.
    pending: String,
    keep_escapes: bool,
    depth: usize,
    substituted: usize,
}

#[derive(Default)]
struct WordList {
    words: Vec<String>,
    in_word: bool,
}

impl WordList {
    fn push(&mut self, pending: &mut String, ch: char) {
        if !ch.is_whitespace() {
            pending.push(ch);
            self.in_word = true;
        } else if self.in_word && !pending.is_empty() {
            self.words.push(std::mem::take(pending));
            self.in_word = false;
        }
    }

    fn push_quoted(&mut self, pending: &mut String, text: &str) {
        pending.push_str(text);
        self.in_word = true;
    }

    fn finish(mut self, pending: &mut String) -> Vec<String> {
        if !pending.is_empty() {
            self.words.push(std::mem::take(pending));
        }
        self.words
    }
}

impl<'v, F: Fn(&str) -> Option<&'v str>> Lexer<F> {
    fn new(options: Expander, word: &str, variables: F) -> Self {
        // A byte order mark at the start of a word is dropped.
        let word = word.strip_prefix('\u{feff}').unwrap_or(word);
        Self {
            options,
            chars: word.chars().collect(),
            at: 0,
            variables,
            used: BTreeSet::new(),
            unset: BTreeSet::new(),
            pending: String::new(),
            keep_escapes: options.keep_escapes,
            depth: 0,
            substituted: 0,
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let ch = self.peek();
        self.at += usize::from(ch.is_some());
        ch
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = (self.variables)(name).map(str::to_owned);
        let seen = if value.is_some() { &mut self.used } else { &mut self.unset };
        if !seen.contains(name) {
            seen.insert(name.to_owned());
        }
        value
    }

    /// Everything up to `stop` (or the end), with escapes kept or not meanwhile.
    fn until(
        &mut self,
        stop: Option<char>,
        keep_escapes: bool,
    ) -> Result<(String, Vec<String>), ExpandFailure> {
        let outer = std::mem::replace(&mut self.keep_escapes, keep_escapes);
        self.depth += 1;
        let result = if self.depth > MAX_NESTING {
            Err(ExpandFailure::TooDeep { limit: MAX_NESTING })
        } else {
            self.until_inner(stop)
        };
        self.depth -= 1;
        self.keep_escapes = outer;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandFailure> {
        let mut text = String::new();
        let mut list = WordList::default();
        self.pending.clear();
        while let Some(ch) = self.peek() {
            if stop == Some(ch) {
                self.at += 1;
                return Ok((text, list.finish(&mut self.pending)));
            }
            match ch {
                '$' => {
                    let value = self.substitution()?;
                    value.chars().for_each(|ch| list.push(&mut self.pending, ch));
                    text.push_str(&value);
                }
                '<' => {
                    let marker = self.heredoc_marker();
                    list.push_quoted(&mut self.pending, &marker);
                    text.push_str(&marker);
                }
                '\'' | '"' if !self.options.ignore_quotes => {
                    let quoted = if ch == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    list.push_quoted(&mut self.pending, &quoted);
                    text.push_str(&quoted);
                }
                _ => {
                    self.at += 1;
                    if !self.plain(ch, &mut text, &mut list) {
                        break;
                    }
                }
            }
        }
        if stop.is_some() {
            return Err(ExpandFailure::MissingBrace);
        }
        Ok((text, list.finish(&mut self.pending)))
    }

    /// One unquoted character that means nothing special; false where an escape ends the text.
    fn plain(&mut self, ch: char, text: &mut String, list: &mut WordList) -> bool {
        if ch != self.options.escape {
            list.push(&mut self.pending, ch);
            text.push(ch);
            return true;
        }
        let mut buffer = [0; 4];
        if self.keep_escapes {
            list.push_quoted(&mut self.pending, ch.encode_utf8(&mut buffer));
            text.push(ch);
        }
        let Some(escaped) = self.next() else { return false };
        list.push_quoted(&mut self.pending, escaped.encode_utf8(&mut buffer));
        text.push(escaped);
        true
    }

    fn single_quoted(&mut self) -> Result<String, ExpandFailure> {
        let start = self.at;
        self.at += 1;
        let length = self.chars[self.at..].iter().position(|&ch| ch == '\'');
        let Some(length) = length else { return self.run_out(ExpandFailure::SingleQuote) };
        let inner = self.at..self.at + length;
        self.at = inner.end + 1;
        let taken = if self.options.keep_quotes { start..self.at } else { inner };
        Ok(self.chars[taken].iter().collect())
    }

    fn double_quoted(&mut self) -> Result<String, ExpandFailure> {
        let mut text = String::new();
        self.at += 1;
        if self.options.keep_quotes {
            text.push('"');
        }
        loop {
            match self.peek() {
                None => return self.run_out(ExpandFailure::DoubleQuote),
                Some('"') => {
                    self.at += 1;
                    if self.options.keep_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.substitution()?),
                Some(ch) => {
                    self.at += 1;
                    let mut literal = ch;
                    if ch == self.options.escape {
                        if self.keep_escapes {
                            text.push(ch);
                        }
                        match self.peek() {
                            None => continue,
                            Some(next) if next == '"' || next == '$' || next == self.options.escape => {
                                self.at += 1;
                                literal = next;
                            }
                            Some(_) => {}
                        }
                    }
                    text.push(literal);
                }
            }
        }
    }

    fn run_out<T>(&mut self, failure: ExpandFailure) -> Result<T, ExpandFailure> {
        self.at = self.chars.len();
        Err(failure)
    }

    /// `<` or `<<` with the blanks behind it, which belong to the heredoc's word.
    fn heredoc_marker(&mut self) -> String {
        let start = self.at;
        self.at += 1;
        if self.peek() == Some('<') {
            self.at += 1;
            while matches!(self.peek(), Some('\t' | '\r' | ' ')) {
                self.at += 1;
            }
        }
        self.chars[start..self.at].iter().collect()
    }

    fn substitution(&mut self) -> Result<String, ExpandFailure> {
        let value = self.dollar()?;
        self.substituted += value.len();
        if self.substituted > MAX_EXPANDED_BYTES {
            return Err(ExpandFailure::TooLarge { limit: MAX_EXPANDED_BYTES });
        }
        Ok(value)
    }

    fn dollar(&mut self) -> Result<String, ExpandFailure> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.lookup(&name) {
                Some(value) => value,
                None if self.options.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err(ExpandFailure::MissingBrace),
            Some('{' | '}' | ':') => return Err(ExpandFailure::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            None => Err(ExpandFailure::MissingBrace),
            Some('}') => Ok(match self.lookup(&name) {
                Some(value) => value,
                None if self.options.keep_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some(':') => match self.next() {
                None => Err(ExpandFailure::MissingBrace),
                Some(operator) => self.operator(&name, operator, EmptyCounts::AsUnset),
            },
            Some(operator @ ('+' | '-' | '?' | '#' | '%')) => {
                self.operator(&name, operator, EmptyCounts::AsSet)
            }
            Some('/') => self.replace(&name),
            Some(other) => Err(ExpandFailure::Modifier { modifier: other.to_string() }),
        }
    }

    fn operator(&mut self, name: &str, operator: char, empty: EmptyCounts) -> Result<String, ExpandFailure> {
        let trims = matches!(operator, '#' | '%');
        let colon = if empty == EmptyCounts::AsUnset { ":" } else { "" };
        let modifier = || ExpandFailure::Modifier { modifier: format!("{colon}{operator}") };
        if trims && empty == EmptyCounts::AsUnset {
            return Err(modifier());
        }
        let (word, _) = self
            .until(Some('}'), trims)
            .map_err(|failure| self.at_end(failure, ExpandFailure::MissingBrace))?;
        let value = self.lookup(name);
        if value.is_none() && self.options.keep_unset {
            return Ok(format!("${{{name}{colon}{operator}{word}}}"));
        }
        let present = value.as_deref().is_some_and(|text| empty == EmptyCounts::AsSet || !text.is_empty());
        match operator {
            '-' if present => Ok(value.unwrap_or_default()),
            '-' => Ok(word),
            '+' if present => Ok(word),
            '+' => Ok(String::new()),
            '?' if present => Ok(value.unwrap_or_default()),
            '?' => {
                let default =
                    if value.is_none() { "is not allowed to be unset" } else { "is not allowed to be empty" };
                let message = if word.is_empty() { default.to_owned() } else { capped(word) };
                Err(ExpandFailure::Required { name: name.to_owned(), message })
            }
            '#' | '%' => trim(operator, &word, &value.unwrap_or_default()),
            _ => Err(modifier()),
        }
    }

    fn replace(&mut self, name: &str) -> Result<String, ExpandFailure> {
        let every = self.peek() == Some('/');
        self.at += usize::from(every);
        let (pattern, _) = self
            .until(Some('/'), true)
            .map_err(|failure| self.at_end(failure, ExpandFailure::MissingSlash))?;
        let (replacement, _) = self
            .until(Some('}'), true)
            .map_err(|failure| self.at_end(failure, ExpandFailure::MissingBrace))?;
        let value = self.lookup(name);
        if value.is_none() && self.options.keep_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let pattern = ShellPattern::compile(&pattern, Appetite::Longest)?;
        if every {
            pattern.replace_all(&value, &replacement, MAX_EXPANDED_BYTES)
        } else {
            pattern.replace_first(&value, &replacement)
        }
    }

    /// A failure at the very end of the text means that the substitution was not closed.
    fn at_end(&self, failure: ExpandFailure, open: ExpandFailure) -> ExpandFailure {
        let cap = matches!(failure, ExpandFailure::TooDeep { .. } | ExpandFailure::TooLarge { .. });
        if self.peek().is_none() && !cap { open } else { failure }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(ch) = self.peek() {
            if name.is_empty() && ch.is_numeric() {
                while let Some(digit) = self.peek().filter(|ch| ch.is_numeric()) {
                    self.at += 1;
                    name.push(digit);
                }
                return name;
            }
            if name.is_empty() && matches!(ch, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
                self.at += 1;
                return ch.to_string();
            }
            if !ch.is_alphanumeric() && ch != '_' {
                break;
            }
            self.at += 1;
            name.push(ch);
        }
        name
    }
}

/// Whether an empty value is a value: `${x-y}` against `${x:-y}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EmptyCounts {
    AsSet,
    AsUnset,
}

/// `${x#p}`, `${x##p}`, `${x%p}`, `${x%%p}`; a doubled operator arrives as the pattern's first character.
fn trim(operator: char, word: &str, value: &str) -> Result<String, ExpandFailure> {
    let (pattern, appetite) = match word.strip_prefix(operator) {
        Some(rest) => (rest, Appetite::Longest),
        None => (word, Appetite::Shortest),
    };
    if operator == '#' {
        return ShellPattern::compile(pattern, appetite)?.trim_start(value);
    }
    let reversed: String = value.chars().rev().collect();
    let rest = ShellPattern::compile(&reverse_pattern(pattern), appetite)?.trim_start(&reversed)?;
    Ok(rest.chars().rev().collect())
}

/// As much of a message as anybody reads: it may be made of variables that are megabytes long.
fn capped(mut message: String) -> String {
    const MOST: usize = 4096;
    if let Some((end, _)) = message.char_indices().nth(MOST) {
        message.truncate(end);
        message.push('…');
    }
    message
}
