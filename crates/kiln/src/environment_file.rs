//! `--env-file` as Docker reads it: a variable a line, nothing quoted, nothing expanded.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use kiln_container::Variable;
use rustix::fs::{Mode, OFlags};

use crate::failure::{Failure, Kind};

/// The variables of a file. A name alone takes its value from `lookup`, and is left out where that has none.
///
/// # Errors
/// The file cannot be read, or a line is no variable.
pub(crate) fn read(path: &Path, lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<Variable>, Failure> {
    let cannot = || Failure::new(Kind::Usage, format!("cannot read the environment file {}", path.display()));
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut text = Vec::new();
    let read = file.map_err(io::Error::from).and_then(|file| File::from(file).read_to_end(&mut text));
    read.map_err(|error| cannot().caused_by(error))?;
    parse(&text, lookup).map_err(|reason| cannot().caused_by(anyhow::Error::msg(reason)))
}

fn parse(text: &[u8], lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<Variable>, String> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| format!("line {number} is no UTF-8"))?;
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line, lookup(line)),
        };
        if name.is_empty() {
            return Err(format!("line {number}: no variable name on line '{line}'"));
        }
        if name.contains([' ', '\t']) {
            return Err(format!("line {number}: variable '{name}' contains whitespaces"));
        }
        variables.extend(value.map(|value| Variable::Set { name: name.to_owned(), value }));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &[u8], expect: Result<&[(&str, &str)], &str>) {
        let lookup = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        let found = parse(text, lookup);
        let expect = expect.map_err(str::to_owned).map(|pairs| {
            let set = |(name, value): &(&str, &str)| Variable::Set {
                name: (*name).to_owned(),
                value: (*value).to_owned(),
            };
            pairs.iter().map(set).collect::<Vec<_>>()
        });
        assert_eq!(found, expect, "{}", String::from_utf8_lossy(text));
    }

    /// What Docker 26.1 makes of these files.
    #[test]
    fn lines() {
        check(
            b"A=1\n#c\n\n  B=two words \nHOME\nNOPE\nD=\nE=\"q\"\nF=a=b\nG=1 #x\n\tH=t\r\n",
            Ok(&[
                ("A", "1"),
                ("B", "two words "),
                ("HOME", "/home/me"),
                ("D", ""),
                ("E", "\"q\""),
                ("F", "a=b"),
                ("G", "1 #x"),
                ("H", "t"),
            ]),
        );
        check("\u{feff}A=1".as_bytes(), Ok(&[("A", "1")]));
        check(b"", Ok(&[]));
        check(b"=x\n", Err("line 1: no variable name on line '=x'"));
        check(b"A=1\nA =x\n", Err("line 2: variable 'A ' contains whitespaces"));
        check(b"B C\n", Err("line 1: variable 'B C' contains whitespaces"));
        check(b"A\xff=x\n", Err("line 1 is no UTF-8"));
    }
}
