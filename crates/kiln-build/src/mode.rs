//! `--chmod`: octal modes and symbolic ones, with the rules of BSD's `setmode(3)` that BuildKit follows.

use crate::error::{Error, Result};

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHER: u32 = 0o0007;
/// All bits but the sticky one.
const STANDARD: u32 = USER | GROUP | OTHER;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

/// What `--chmod` does to a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModeChange {
    /// The mode is replaced.
    Octal(u32),
    /// The changes are applied in order.
    Symbolic(Vec<Change>),
}

/// One step of a symbolic mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(u32),
    Clear(u32),
    /// Sets the bits if it is a directory, or could be executed by anyone before.
    SetIfExecutable(u32),
    /// Copies one class's permissions to the classes of `to`.
    Copy {
        from: Class,
        to: u32,
        operator: Operator,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    User,
    Group,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Remove,
    Assign,
}

impl ModeChange {
    /// Reads the value of `--chmod`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::Mode(text.to_owned());
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
            return if mode <= 0o7777 { Ok(Self::Octal(mode)) } else { Err(wrong()) };
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut changes).ok_or_else(wrong)?;
        }
        Ok(Self::Symbolic(changes))
    }

    /// The mode that `mode` becomes.
    pub(crate) fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let changes = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(changes) => changes,
        };
        let executable = is_directory || mode & EXECUTE != 0;
        changes.iter().fold(mode & 0o7777, |now, change| match *change {
            Change::Set(bits) => now | bits,
            Change::Clear(bits) => now & !bits,
            Change::SetIfExecutable(bits) if executable => now | bits,
            Change::SetIfExecutable(_) => now,
            Change::Copy { from, to, operator } => {
                let permissions = match from {
                    Class::User => now >> 6 & 7,
                    Class::Group => now >> 3 & 7,
                    Class::Other => now & 7,
                };
                let spread = (permissions * EXECUTE) & to;
                match operator {
                    Operator::Add => now | spread,
                    Operator::Remove => now & !spread,
                    Operator::Assign => now & !(0o777 & to) | spread,
                }
            }
        })
    }
}

/// Reads one clause: classes, then operators with their permissions.
fn parse_clause(clause: &str, changes: &mut Vec<Change>) -> Option<()> {
    let operators = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let mut who = clause[..clause.len() - operators.len()].bytes().fold(0, |who, class| {
        who | match class {
            b'u' => USER,
            b'g' => GROUP,
            b'o' => OTHER,
            _ => STANDARD,
        }
    });
    let mut rest = operators.as_bytes();
    loop {
        let operator = match rest.first()? {
            b'+' => Operator::Add,
            b'-' => Operator::Remove,
            b'=' => Operator::Assign,
            _ => return None,
        };
        who &= !STICKY;
        rest = parse_permissions(&rest[1..], operator, &mut who, changes);
        if rest.is_empty() {
            return Some(());
        }
    }
}

/// Reads the permissions behind an operator; gives what follows them.
fn parse_permissions<'a>(
    mut rest: &'a [u8],
    operator: Operator,
    who: &mut u32,
    changes: &mut Vec<Change>,
) -> &'a [u8] {
    let for_everyone_named = *who == 0 || *who & !OTHER != 0;
    let (mut bits, mut if_executable) = (0, 0);
    let mut assigned = false;
    while let Some(permission) = rest.first() {
        match permission {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= EXECUTE,
            b'X' if operator == Operator::Remove => bits |= EXECUTE,
            b'X' => if_executable |= EXECUTE,
            b's' if for_everyone_named => bits |= 0o6000,
            b's' => {}
            b't' if for_everyone_named => {
                *who |= STICKY;
                bits |= STICKY;
            }
            b't' => {}
            b'u' | b'g' | b'o' => {
                if bits != 0 {
                    push(operator, *who, bits, changes);
                    bits = 0;
                }
                assigned |= operator == Operator::Assign;
                if if_executable != 0 {
                    changes.push(Change::SetIfExecutable(limited(*who, if_executable)));
                    if_executable = 0;
                }
                let from = match permission {
                    b'u' => Class::User,
                    b'g' => Class::Group,
                    _ => Class::Other,
                };
                let to = if *who == 0 { 0o777 } else { copied_to(*who) };
                changes.push(Change::Copy { from, to, operator });
            }
            _ => break,
        }
        rest = &rest[1..];
    }
    if bits != 0 || operator == Operator::Assign && !assigned {
        push(operator, *who, bits, changes);
    }
    if if_executable != 0 {
        changes.push(Change::SetIfExecutable(limited(*who, if_executable)));
    }
    rest
}

fn copied_to(who: u32) -> u32 {
    [(0o400, 0o700), (0o040, 0o070), (0o004, 0o007)]
        .into_iter()
        .filter(|(named, _)| who & named != 0)
        .fold(0, |to, (_, class)| to | class)
}

fn limited(who: u32, bits: u32) -> u32 {
    if who == 0 { bits } else { who & bits }
}

fn push(operator: Operator, who: u32, bits: u32, changes: &mut Vec<Change>) {
    match operator {
        Operator::Add => changes.push(Change::Set(limited(who, bits))),
        Operator::Remove => changes.push(Change::Clear(limited(who, bits))),
        Operator::Assign => {
            changes.push(Change::Clear(if who == 0 { STANDARD } else { who }));
            changes.push(Change::Set(limited(who, bits)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_in_buildkit() {
        for (text, before, is_directory, after) in [
            ("600", 0o755, false, 0o600),
            ("0755", 0o644, true, 0o755),
            ("4711", 0o644, false, 0o4711),
            ("u=rwX,go=rX", 0o644, true, 0o755),
            ("u=rwX,go=rX", 0o666, false, 0o644),
            ("go-X", 0o755, false, 0o744),
            ("g+w,o-r", 0o644, false, 0o660),
            ("a+x", 0o644, false, 0o755),
            ("+x", 0o600, false, 0o711),
            ("=rw,+X", 0o755, false, 0o777),
            ("=rw,+X", 0o644, false, 0o666),
            ("=rw,+X", 0o600, true, 0o777),
            ("go=", 0o777, false, 0o700),
            ("go=u-w", 0o640, false, 0o644),
            ("u+s", 0o755, false, 0o4755),
            ("g+s", 0o755, true, 0o2755),
            ("o+s", 0o755, true, 0o755),
            ("+t", 0o777, true, 0o1777),
            ("o+t", 0o777, true, 0o777),
            ("-s", 0o6755, false, 0o755),
            ("=", 0o7777, false, 0o1000),
            ("u+rwx,g=u,o-rwx", 0o604, false, 0o770),
            ("g=o", 0o604, false, 0o644),
            ("a=r", 0o1777, true, 0o1444),
            ("u+r+w-x", 0o100, false, 0o600),
        ] {
            let change = ModeChange::parse(text).expect(text);
            assert_eq!(format!("{:o}", change.apply(before, is_directory)), format!("{after:o}"), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "99z", "9", "10000", "u", "u+q", "x", "+x,", ",", "u=rwx g=r"] {
            assert!(matches!(ModeChange::parse(text), Err(Error::Mode(_))), "{text:?}");
        }
    }
}
