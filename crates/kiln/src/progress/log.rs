//! What steps write, made fit to be shown: whole lines, without anything that a terminal would obey.

/// Longer lines are broken.
const LONGEST: usize = 16 * 1024;

/// Puts lines together from bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    returned: bool,
}

impl Lines {
    /// Takes `bytes` and gives the lines that they complete. After a carriage return a line begins anew, so of a
    /// progress bar its last state is left.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => {
                    lines.push(sanitise(&self.partial));
                    self.partial.clear();
                    self.returned = false;
                }
                b'\r' => self.returned = true,
                byte => {
                    if std::mem::take(&mut self.returned) {
                        self.partial.clear();
                    }
                    self.partial.push(byte);
                    if self.partial.len() >= LONGEST {
                        lines.push(sanitise(&self.partial));
                        self.partial.clear();
                    }
                }
            }
        }
        lines
    }

    /// The line that has begun and not ended.
    pub(crate) fn rest(&self) -> Option<String> {
        (!self.partial.is_empty()).then(|| sanitise(&self.partial))
    }

    /// Ends the line that has begun.
    pub(crate) fn end(&mut self) -> Option<String> {
        let rest = self.rest();
        self.partial.clear();
        self.returned = false;
        rest
    }
}

/// What a step is called, as one line; the end of a very long one, a script that is its own name, is left out.
pub(super) fn name(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => sanitise(&text.as_bytes()[..end]) + "…",
        None => sanitise(text.as_bytes()),
    }
}

/// One line without escape sequences, controls and invisible marks that reorder text; tabs become spaces.
pub(crate) fn sanitise(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut column = 0_usize;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => match rest.next() {
                Some('[') => skip_control(&mut rest),
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut rest),
                // Two or more characters: any number of intermediates, one that ends it.
                Some(' '..='/') => while rest.next().is_some_and(|c| matches!(c, ' '..='/')) {},
                _ => {}
            },
            '\u{9b}' => skip_control(&mut rest),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => skip_string(&mut rest),
            '\t' => {
                let spaces = 8 - column % 8;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\n' => {
                out.push(' ');
                column += 1;
            }
            '\x08' => column -= usize::from(out.pop().is_some()),
            c if c.is_control() || reorders(c) => {}
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// A control sequence: parameters and intermediates, then one character that ends it.
fn skip_control(rest: &mut Rest<'_>) {
    while rest.next_if(|c| matches!(c, ' '..='?')).is_some() {}
    rest.next_if(|c| matches!(c, '@'..='~'));
}

/// A string for the terminal, up to BEL or ST or the end of the line.
fn skip_string(rest: &mut Rest<'_>) {
    while let Some(c) = rest.next() {
        match c {
            '\x07' | '\u{9c}' => return,
            '\x1b' if rest.next_if_eq(&'\\').is_some() => return,
            _ => {}
        }
    }
}

/// Marks that change the order of the text around them, or separate lines, without being seen.
fn reorders(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitised() {
        #[track_caller]
        fn check(input: &[u8], expect: &str) {
            assert_eq!(sanitise(input), expect);
        }
        check(b"plain", "plain");
        check("grüße 世界 👍".as_bytes(), "grüße 世界 👍");
        check(b"\x1b[31mred\x1b[0m", "red");
        check(b"\x1b[38;2;1;2;3mred\x1b[m \x1b[?25l\x1b[2J\x1b[1;1H.", "red .");
        check(b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink");
        check(b"\x1bP+q\x1b\\x\x1b_apc\x1b\\y", "xy");
        check(b"\x1b(B\x1b#8\x1bcx\x1b7y", "xy");
        check(b"\x1b%Gx", "x");
        check("\u{9b}31mx\u{9d}0;t\u{9c}y\u{85}z".as_bytes(), "xyz");
        check(b"a\tb\t\tc", "a       b               c");
        check(b"a\x00\x01\x07\x0b\x0c\x7fb", "ab");
        check(b"|\x08/\x08-", "-");
        check(b"\x08\x08x", "x");
        check(b"\xff\xfeok\xc3", "\u{fffd}\u{fffd}ok\u{fffd}");
        check("a\u{202e}b\u{2066}c\u{2028}d\u{feff}".as_bytes(), "abcd");
        check(b"open \x1b[31", "open ");
        check(b"open \x1b]0;never closed", "open ");
        check(b"open \x1b", "open ");
    }

    #[test]
    fn tabs_without_end_take_no_time() {
        let began = std::time::Instant::now();
        assert_eq!(sanitise(&vec![b'\t'; 1 << 18]).len(), 8 << 18);
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn names_are_capped() {
        assert_eq!(name("a\tb\n"), "a       b ");
        assert_eq!(name(&"世".repeat(LONGEST)), "世".repeat(LONGEST));
        assert_eq!(name(&"世".repeat(LONGEST + 1)), "世".repeat(LONGEST) + "…");
    }

    #[test]
    fn lines() {
        #[track_caller]
        fn check(chunks: &[&[u8]], expect: &[&str], rest: Option<&str>) {
            let mut lines = Lines::default();
            let complete: Vec<String> = chunks.iter().flat_map(|chunk| lines.take(chunk)).collect();
            assert_eq!(complete, expect);
            assert_eq!(lines.end().as_deref(), rest);
            assert_eq!(lines.end(), None);
        }
        check(&[b"a\nb\n"], &["a", "b"], None);
        check(&[b"a", b"b\nc"], &["ab"], Some("c"));
        check(&[b"a\r\nb\r", b"\n"], &["a", "b"], None);
        check(&[b"10%\r50%\r100%\ndone\n"], &["100%", "done"], None);
        check(&[b"10%\r", b"50%\r"], &[], Some("50%"));
        check(&[b"\n\n"], &["", ""], None);
        check(&[b"\xe4\xb8", b"\x96\n"], &["世"], None);
        check(&[b"\x1b[3", b"1mred\n"], &["red"], None);
        let long = vec![b'x'; LONGEST + 5];
        check(&[&long], &[&"x".repeat(LONGEST)], Some("xxxxx"));
    }
}
