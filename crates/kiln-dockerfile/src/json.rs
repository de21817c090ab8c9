//! The JSON form of an instruction: an array of strings, read as Go's `encoding/json` reads it.

use std::ops::Range;

/// What a text is, taken as an instruction's JSON form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JsonForm {
    /// An array of strings: values and their byte ranges, quotes included.
    Strings(Vec<(String, Range<usize>)>),
    /// A valid array with something other than strings in it: the range of the first such element.
    NotStrings(Range<usize>),
    /// Not valid JSON, or no array: the shell form.
    NotJson,
}

/// Values inside values beyond which a text is not JSON, as in Go.
const MAX_DEPTH: usize = 10_000;

/// Reads a text that may be a JSON array.
pub(crate) fn read(text: &str) -> JsonForm {
    let mut reader = Reader { bytes: text.as_bytes(), text, at: 0 };
    let start = text.len() - text.trim_start().len();
    if !text[start..].starts_with('[') {
        return JsonForm::NotJson;
    }
    reader.at = start;
    reader.array().unwrap_or(JsonForm::NotJson)
}

/// A member of a text that is one JSON object: its value, if that is a string, and the value's byte range. Of several with
/// that name the last counts, as in Go.
pub(crate) fn text_member(text: &str, name: &str) -> Option<(String, Range<usize>)> {
    let mut reader = Reader { bytes: text.as_bytes(), text, at: 0 };
    reader.blanks();
    reader.eat(b'{')?;
    reader.blanks();
    let mut found = None;
    if reader.eat(b'}').is_none() {
        loop {
            reader.blanks();
            let key = reader.string()?;
            reader.blanks();
            reader.eat(b':')?;
            reader.blanks();
            let start = reader.at;
            let value = if reader.bytes.get(start) == Some(&b'"') {
                Some(reader.string()?)
            } else {
                reader.value()?;
                None
            };
            if key == name {
                found = value.map(|value| (value, start..reader.at));
            }
            reader.blanks();
            if reader.eat(b',').is_none() {
                break;
            }
        }
        reader.eat(b'}')?;
    }
    reader.blanks();
    found.filter(|_| reader.at == text.len())
}

struct Reader<'t> {
    bytes: &'t [u8],
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.bytes.get(self.at) == Some(&byte)).then(|| self.at += 1)
    }

    fn array(&mut self) -> Option<JsonForm> {
        let mut strings = Vec::new();
        let mut other = None;
        self.eat(b'[')?;
        self.blanks();
        if self.eat(b']').is_none() {
            loop {
                self.blanks();
                let start = self.at;
                if self.bytes.get(self.at) == Some(&b'"') {
                    let value = self.string()?;
                    strings.push((value, start..self.at));
                } else {
                    self.value()?;
                    other.get_or_insert(start..self.at);
                }
                self.blanks();
                if self.eat(b',').is_none() {
                    break;
                }
            }
            self.eat(b']')?;
        }
        self.blanks();
        if self.at != self.bytes.len() {
            return None;
        }
        Some(other.map_or(JsonForm::Strings(strings), JsonForm::NotStrings))
    }

    /// Skips one value of any kind, without recursion.
    fn value(&mut self) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.blanks();
            match *self.bytes.get(self.at)? {
                b'"' => drop(self.string()?),
                b'[' => {
                    self.at += 1;
                    self.blanks();
                    if self.eat(b']').is_none() {
                        open.push(b']');
                        if open.len() > MAX_DEPTH {
                            return None;
                        }
                        continue;
                    }
                }
                b'{' => {
                    self.at += 1;
                    self.blanks();
                    if self.eat(b'}').is_none() {
                        open.push(b'}');
                        if open.len() > MAX_DEPTH {
                            return None;
                        }
                        self.key()?;
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // A value is complete: close what it completes, or go on behind a comma.
            loop {
                let Some(&close) = open.last() else { return Some(()) };
                self.blanks();
                if self.eat(b',').is_some() {
                    if close == b'}' {
                        self.blanks();
                        self.key()?;
                    }
                    break;
                }
                self.eat(close)?;
                open.pop();
            }
        }
    }

    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.blanks();
        self.eat(b':')
    }

    fn scalar(&mut self) -> Option<()> {
        for literal in ["true", "false", "null"] {
            if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(literal)) {
                self.at += literal.len();
                return Some(());
            }
        }
        let start = self.at;
        let _ = self.eat(b'-');
        if self.eat(b'0').is_none() {
            self.digits()?;
        }
        if self.eat(b'.').is_some() {
            self.digits()?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let number: f64 = self.text[start..self.at].parse().ok()?;
        number.is_finite().then_some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn string(&mut self) -> Option<String> {
        self.eat(b'"')?;
        let mut value = String::new();
        loop {
            let ch = self.text[self.at..].chars().next()?;
            self.at += ch.len_utf8();
            match ch {
                '"' => return Some(value),
                '\\' => value.push(self.escape()?),
                '\0'..='\x1f' => return None,
                _ => value.push(ch),
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(match byte {
            b'"' | b'\\' | b'/' => byte as char,
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex4()?;
                let low = (0xd800..0xdc00).contains(&unit).then(|| self.low_surrogate()).flatten();
                let code = low.map_or(unit, |low| 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
                char::from_u32(code).unwrap_or('\u{fffd}')
            }
            _ => return None,
        })
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let value = u32::from_str_radix(&self.text[self.at..self.at + 4], 16).ok()?;
        self.at += 4;
        Some(value)
    }

    /// The second half of a pair, if it follows; nothing is consumed otherwise.
    fn low_surrogate(&mut self) -> Option<u32> {
        let before = self.at;
        if self.eat(b'\\').is_some()
            && self.eat(b'u').is_some()
            && let Some(low) = self.hex4()
            && (0xdc00..0xe000).contains(&low)
        {
            return Some(low);
        }
        self.at = before;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{JsonForm, read};

    fn check(text: &str, expect: Option<&[&str]>) {
        let got = match read(text) {
            JsonForm::Strings(strings) => {
                Some(strings.into_iter().map(|(value, _)| value).collect::<Vec<_>>())
            }
            JsonForm::NotStrings(_) => Some(vec!["NOT STRINGS".to_owned()]),
            JsonForm::NotJson => None,
        };
        assert_eq!(got, expect.map(|list| list.iter().map(ToString::to_string).collect()), "{text}");
    }

    #[test]
    fn arrays() {
        check("[]", Some(&[]));
        check(" [ \"a\" , \"b c\" ] ", Some(&["a", "b c"]));
        check(r#"["\u00e9\n\"\/", "\ud83d\ude00", "\ud800x"]"#, Some(&["é\n\"/", "😀", "\u{fffd}x"]));
        check(r#"["a", 1]"#, Some(&["NOT STRINGS"]));
        check(r#"[null]"#, Some(&["NOT STRINGS"]));
        check(r#"[["a"], {"b": [1, {}]}, -1.5e3]"#, Some(&["NOT STRINGS"]));
    }

    #[test]
    fn not_json() {
        for text in [
            "",
            "a",
            "{}",
            "['a']",
            r#"["a""#,
            r#"["a",]"#,
            r#"["a"] b"#,
            r#"["\x"]"#,
            "[01]",
            "[\"\t\"]",
            "[1e999]",
            "[,]",
            "[{\"a\"}]",
        ] {
            check(text, None);
        }
        check(&"[".repeat(20_000), None);
    }
}
