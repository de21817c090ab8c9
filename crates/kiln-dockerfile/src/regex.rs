//! The few regular expressions that ignore patterns become.
//!
//! An ignore pattern is defined by the expression that moby's matcher makes of it, so the same
//! expression is made and run here. It is anchored at both ends and holds characters, classes,
//! `[^/]*`, `.*` and `(.*/)?` only, hence a list of steps suffices, and a set of steps walks over
//! the path once.

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// One character of the set.
    One(Set),
    /// Any number of characters of the set.
    Many(Set),
    /// One or no character of the set.
    Maybe(Set),
    /// Nothing, or anything that ends in a slash.
    Directories,
    /// Between a word character and another one (or, if false, not so).
    Boundary(bool),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Set {
    Char(char),
    /// Anything but a newline.
    Any,
    /// Anything but a slash.
    NoSlash,
    Ranges {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Set {
    fn holds(&self, ch: char) -> bool {
        match self {
            Self::Char(own) => *own == ch,
            Self::Any => ch != '\n',
            Self::NoSlash => ch != '/',
            Self::Ranges { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&ch)) != *negated
            }
        }
    }
}

/// A compiled expression.
#[derive(Debug, Clone)]
pub(crate) struct Regex {
    steps: Vec<Step>,
    /// Characters that every match begins with.
    prefix: String,
    /// Characters that every match ends with, behind the prefix.
    suffix: String,
    /// Characters that stand somewhere between the two in every match.
    inner: String,
    /// The steps between prefix and suffix.
    middle: std::ops::Range<usize>,
}

/// States up to this many live on the stack.
const INLINE_STATES: usize = 64;

impl Regex {
    /// Compiles an expression that stands for `^expression$`; `None` if it is malformed.
    pub(crate) fn compile(expression: &str) -> Option<Self> {
        let steps = Compiler { chars: expression.chars().collect(), at: 0 }.run()?;
        let literal = |step: &Step| match step {
            Step::One(Set::Char(ch)) => Some(*ch),
            _ => None,
        };
        // A word boundary looks at its neighbours, so nothing is cut off where there is one.
        let whole = steps.iter().any(|step| matches!(step, Step::Boundary(_)));
        let literal = |step: &Step| literal(step).filter(|_| !whole);
        let prefix: String = steps.iter().map_while(literal).collect();
        let head = prefix.chars().count();
        let mut suffix: Vec<char> = steps[head..].iter().rev().map_while(literal).collect();
        suffix.reverse();
        let middle = head..steps.len() - suffix.len();
        let runs = steps[middle.clone()].split(|step| literal(step).is_none());
        let longest = runs.max_by_key(|run| run.len()).unwrap_or_default();
        let inner = longest.iter().filter_map(literal).collect();
        Some(Self { steps, prefix, suffix: suffix.into_iter().collect(), inner, middle })
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.prefix.as_str()) else { return false };
        let Some(rest) = rest.strip_suffix(self.suffix.as_str()) else { return false };
        let steps = &self.steps[self.middle.clone()];
        if steps == [Step::Directories, Step::Many(Set::NoSlash)] {
            // `**/*.ext`
            let directories = rest.rfind('/').unwrap_or(0);
            return !rest[..directories].contains('\n');
        }
        if !self.inner.is_empty() && !contains(rest, &self.inner) {
            return false;
        }
        run(steps, rest, End::Nothing, |states| states[steps.len()])
    }

    /// Whether some path that begins with `start` may match.
    pub(crate) fn may_match_below(&self, start: &str) -> bool {
        run(&self.steps, start, End::Unknown, |states| states.contains(&true))
    }
}

/// Whether a text holds another one. Most paths are so short that a search needs no preparation.
fn contains(text: &str, part: &str) -> bool {
    const SHORT: usize = 64;
    if text.len() > SHORT {
        return text.contains(part);
    }
    text.as_bytes().windows(part.len()).any(|window| window == part.as_bytes())
}

/// Walks the steps over the text. State `n` means: before step `n`; the last one means done.
fn run(steps: &[Step], text: &str, end: End, verdict: impl Fn(&[bool]) -> bool) -> bool {
    let count = steps.len() + 1;
    // A Directories step has a second state for being inside; it stands in the second half.
    let (mut inline_now, mut inline_next) = ([false; INLINE_STATES * 2], [false; INLINE_STATES * 2]);
    let (mut heap_now, mut heap_next);
    let (mut now, mut next): (&mut [bool], &mut [bool]) = if count <= INLINE_STATES {
        (&mut inline_now[..count * 2], &mut inline_next[..count * 2])
    } else {
        heap_now = vec![false; count * 2];
        heap_next = vec![false; count * 2];
        (&mut heap_now, &mut heap_next)
    };
    let mut chars = text.chars().peekable();
    enter(steps, now, 0, boundary(None, chars.peek().copied(), end));
    while let Some(ch) = chars.next() {
        let at_boundary = boundary(Some(ch), chars.peek().copied(), end);
        next.fill(false);
        let mut alive = false;
        for (index, step) in steps.iter().enumerate() {
            if now[count + index] && ch != '\n' {
                next[count + index] = true;
                alive = true;
                if ch == '/' {
                    enter(steps, next, index + 1, at_boundary);
                }
            }
            if !now[index] {
                continue;
            }
            let (taken, target) = match step {
                Step::One(set) | Step::Maybe(set) => (set.holds(ch), index + 1),
                Step::Many(set) => (set.holds(ch), index),
                Step::Directories | Step::Boundary(_) => (false, index),
            };
            if taken {
                enter(steps, next, target, at_boundary);
                alive = true;
            }
        }
        std::mem::swap(&mut now, &mut next);
        if !alive {
            return false;
        }
    }
    verdict(&now[..count]) || verdict(&now[count..])
}

/// What follows the text that steps walk over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    Unknown,
}

/// Whether a position is a word boundary; `None` if that cannot be known.
fn boundary(before: Option<char>, after: Option<char>, end: End) -> Option<bool> {
    if after.is_none() && end == End::Unknown {
        return None;
    }
    let word = |ch: Option<char>| ch.is_some_and(|ch| ch.is_ascii_alphanumeric() || ch == '_');
    Some(word(before) != word(after))
}

/// Marks a state and those reachable from it without a character.
fn enter(steps: &[Step], states: &mut [bool], from: usize, at_boundary: Option<bool>) {
    let count = steps.len() + 1;
    for index in from..count {
        states[index] = true;
        match steps.get(index) {
            Some(Step::Many(_) | Step::Maybe(_)) => {}
            Some(Step::Boundary(wanted)) if at_boundary.is_none_or(|is| is == *wanted) => {}
            Some(Step::Directories) => states[count + index] = true,
            Some(Step::One(_) | Step::Boundary(_)) | None => break,
        }
    }
}

struct Compiler {
    chars: Vec<char>,
    at: usize,
}

impl Compiler {
    fn run(mut self) -> Option<Vec<Step>> {
        let mut steps: Vec<Step> = Vec::new();
        while let Some(ch) = self.next() {
            let set = match ch {
                '(' => {
                    // Only made for `**`: the group is always the same.
                    self.at += "(.*/)?".len() - 1;
                    steps.push(Step::Directories);
                    continue;
                }
                '^' => {
                    // Holds at the start only: what stands before it must be able to be empty, and is.
                    if steps.iter().any(|step| matches!(step, Step::One(_))) {
                        steps = vec![Step::One(Set::Ranges { negated: false, ranges: Vec::new() })];
                    } else {
                        steps.retain(|step| matches!(step, Step::Boundary(_)));
                    }
                    continue;
                }
                '.' => Set::Any,
                '[' => self.class()?,
                '\\' if matches!(self.peek(), Some('b' | 'B')) => {
                    steps.push(Step::Boundary(self.next() == Some('b')));
                    continue;
                }
                '\\' => self.escape()?,
                literal => Set::Char(literal),
            };
            steps.push(match self.peek() {
                Some('*') => Step::Many(set),
                Some('?') => Step::Maybe(set),
                _ => Step::One(set),
            });
            if matches!(self.peek(), Some('*' | '?')) {
                self.at += 1;
            }
        }
        Some(steps)
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let ch = self.peek();
        self.at += usize::from(ch.is_some());
        ch
    }

    fn escape(&mut self) -> Option<Set> {
        let ch = self.next()?;
        if let Some((negated, ranges)) = perl_class(ch) {
            return Some(Set::Ranges { negated, ranges: ranges.to_vec() });
        }
        self.escaped_char(ch).map(Set::Char)
    }

    /// A punctuation character is itself; letters and digits are control characters and codes, or errors.
    fn escaped_char(&mut self, ch: char) -> Option<char> {
        let code = match ch {
            'a' => 7,
            'f' => 12,
            'n' => 10,
            'r' => 13,
            't' => 9,
            'v' => 11,
            'x' => self.next()?.to_digit(16)? * 16 + self.next()?.to_digit(16)?,
            '0'..='7' => {
                let mut code = ch.to_digit(8)?;
                let first = self.peek().and_then(|ch| ch.to_digit(8));
                if ch != '0' && first.is_none() {
                    return None;
                }
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|ch| ch.to_digit(8)) else { break };
                    self.at += 1;
                    code = code * 8 + digit;
                }
                code
            }
            _ if ch.is_ascii() && !ch.is_ascii_alphanumeric() => return Some(ch),
            _ => return None,
        };
        char::from_u32(code)
    }

    fn escape_in_class(&mut self) -> Option<char> {
        let ch = self.next()?;
        self.escaped_char(ch)
    }

    fn class(&mut self) -> Option<Set> {
        let negated = self.peek() == Some('^');
        self.at += usize::from(negated);
        let mut ranges: Vec<(char, char)> = Vec::new();
        let mut first = true;
        loop {
            let ch = self.next()?;
            if ch == ']' && !first {
                let no_slash = negated && ranges == [('/', '/')];
                return Some(if no_slash { Set::NoSlash } else { Set::Ranges { negated, ranges } });
            }
            first = false;
            if ch == '[' && self.peek() == Some(':') {
                if let Some(named) = self.posix_class() {
                    ranges.extend(named);
                    continue;
                }
                return None;
            }
            if ch == '\\'
                && let Some((outside, own)) = self.peek().and_then(perl_class)
            {
                self.at += 1;
                ranges.extend(if outside { complement(own) } else { own.to_vec() });
                continue;
            }
            let low = if ch == '\\' { self.escape_in_class()? } else { ch };
            let mut high = low;
            if self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|next| *next != ']') {
                self.at += 1;
                high = match self.next()? {
                    '\\' => self.escape_in_class()?,
                    ch => ch,
                };
            }
            if high < low {
                return None;
            }
            ranges.push((low, high));
        }
    }

    /// `[:alpha:]` and the like, the reader standing behind the inner bracket.
    fn posix_class(&mut self) -> Option<Vec<(char, char)>> {
        let rest: String = self.chars[self.at..].iter().take(12).collect();
        let end = rest.find(":]")?;
        let name = rest[1..].get(..end - 1)?;
        let (outside, name) = name.strip_prefix('^').map_or((false, name), |name| (true, name));
        let ranges: &[(char, char)] = match name {
            "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
            "alpha" => &[('A', 'Z'), ('a', 'z')],
            "ascii" => &[('\0', '\x7f')],
            "blank" => &[('\t', '\t'), (' ', ' ')],
            "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
            "digit" => &[('0', '9')],
            "graph" => &[('!', '~')],
            "lower" => &[('a', 'z')],
            "print" => &[(' ', '~')],
            "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
            "space" => &[('\t', '\r'), (' ', ' ')],
            "upper" => &[('A', 'Z')],
            "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
            _ => return None,
        };
        self.at += end + 2;
        Some(if outside { complement(ranges) } else { ranges.to_vec() })
    }
}

type Ranges = &'static [(char, char)];

/// `\d` and its relatives, which Go's expressions know.
fn perl_class(ch: char) -> Option<(bool, Ranges)> {
    let ranges: Ranges = match ch.to_ascii_lowercase() {
        'd' => &[('0', '9')],
        's' => &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')],
        'w' => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        _ => return None,
    };
    Some((ch.is_ascii_uppercase(), ranges))
}

fn complement(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let mut out = Vec::new();
    let mut start = 0_u32;
    for (low, high) in ranges {
        if u32::from(*low) > start {
            out.extend(char::from_u32(start).zip(char::from_u32(u32::from(*low) - 1)));
        }
        start = u32::from(*high) + 1;
    }
    out.extend(char::from_u32(start).map(|start| (start, char::MAX)));
    out
}
