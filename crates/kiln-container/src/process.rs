//! An image's config and a request, merged into a command and its environment as Docker merges them (moby
//! `daemon/commit.go`, `container/env.go`).

use kiln_oci::Config;

use crate::error::{Error, Result};
use crate::request::{Entrypoint, Variable};

/// What Docker gives containers whose image says nothing.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command and its arguments.
pub(crate) fn command(config: &Config, entrypoint: &Entrypoint, given: &[String]) -> Result<Vec<String>> {
    let image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut words = match entrypoint {
        Entrypoint::Image => image(&config.entrypoint),
        Entrypoint::None => Vec::new(),
        Entrypoint::Program(program) => vec![program.clone()],
    };
    if !given.is_empty() {
        words.extend_from_slice(given);
    } else if *entrypoint == Entrypoint::Image {
        words.extend(image(&config.cmd));
    }
    if words.is_empty() { Err(Error::NoCommand) } else { Ok(words) }
}

/// What surrounds a process, besides image and request.
pub(crate) struct Surroundings<'a> {
    /// The host name.
    pub(crate) hostname: &'a str,
    /// Whether it has a terminal of its own.
    pub(crate) terminal: bool,
    /// The user's home directory.
    pub(crate) home: &'a str,
}

/// The environment, in Docker's order: `PATH`, `HOSTNAME` and `TERM`, what was asked for, what the image sets, `HOME`.
pub(crate) fn environment(config: &Config, given: &[Variable], around: &Surroundings<'_>) -> Vec<String> {
    let mut list: Vec<(&str, &str)> = vec![("PATH", PATH), ("HOSTNAME", around.hostname)];
    if around.terminal {
        list.push(("TERM", "xterm"));
    }
    let defaults = list.len();
    let mut unset = Vec::new();
    for variable in given {
        match variable {
            Variable::Set { name, value } => set(&mut list, defaults, name, value),
            Variable::Unset { name } => unset.push(name.as_str()),
        }
    }
    for variable in config.env.iter().flatten() {
        let Some((name, value)) = variable.split_once('=') else { continue };
        let is_given = given.iter().any(|given| match given {
            Variable::Set { name: known, .. } | Variable::Unset { name: known } => known == name,
        });
        if !is_given {
            set(&mut list, defaults, name, value);
        }
    }
    list.retain(|(name, _)| !unset.contains(name));
    if !list.iter().any(|(name, value)| *name == "HOME" && !value.is_empty()) {
        list.retain(|(name, _)| *name != "HOME");
        list.push(("HOME", around.home));
    }
    list.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Sets a variable: in the place of the default of that name, else at the end.
fn set<'a>(list: &mut Vec<(&'a str, &'a str)>, defaults: usize, name: &'a str, value: &'a str) {
    if let Some((_, known)) = list[..defaults].iter_mut().find(|(known, _)| *known == name) {
        *known = value;
        return;
    }
    // Of two values the later one counts, where it stands.
    if let Some(at) = list[defaults..].iter().position(|(known, _)| *known == name) {
        list.remove(defaults + at);
    }
    list.push((name, value));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands() {
        #[track_caller]
        fn check(image: (&str, &str), entrypoint: Entrypoint, given: &str, expect: &str) {
            let list = |text: &str| (!text.is_empty()).then(|| words(text));
            let config = Config { entrypoint: list(image.0), cmd: list(image.1), ..Config::default() };
            match command(&config, &entrypoint, &words(given)) {
                Ok(found) => assert_eq!(found, words(expect)),
                Err(Error::NoCommand) => assert_eq!(expect, ""),
                Err(error) => panic!("{error}"),
            }
        }
        let program = || Entrypoint::Program("p".to_owned());
        check(("", "sh"), Entrypoint::Image, "", "sh");
        check(("", "sh"), Entrypoint::Image, "ls -l", "ls -l");
        check(("e f", "c"), Entrypoint::Image, "", "e f c");
        check(("e f", "c"), Entrypoint::Image, "x", "e f x");
        check(("e f", "c"), program(), "", "p");
        check(("e f", "c"), program(), "x", "p x");
        check(("e f", "c"), Entrypoint::None, "x", "x");
        check(("e f", "c"), Entrypoint::None, "", "");
        check(("", ""), Entrypoint::Image, "", "");
    }

    #[test]
    fn environments() {
        #[track_caller]
        fn check(image: &str, given: &str, terminal: bool, expect: &str) {
            let config = Config { env: Some(words(image)), ..Config::default() };
            let given: Vec<Variable> = words(given)
                .into_iter()
                .map(|word| match word.split_once('=') {
                    Some((name, value)) => Variable::Set { name: name.to_owned(), value: value.to_owned() },
                    None => Variable::Unset { name: word },
                })
                .collect();
            let around = Surroundings { hostname: "h", terminal, home: "/root" };
            let found = environment(&config, &given, &around);
            assert_eq!(found, words(&expect.replace("PATH=*", &format!("PATH={PATH}"))));
        }
        check("", "", false, "PATH=* HOSTNAME=h HOME=/root");
        check("A=1 PATH=/bin", "", true, "PATH=/bin HOSTNAME=h TERM=xterm A=1 HOME=/root");
        check("A=1 B=2", "C=3 B=4", false, "PATH=* HOSTNAME=h C=3 B=4 A=1 HOME=/root");
        check("A=1 B=2", "A", false, "PATH=* HOSTNAME=h B=2 HOME=/root");
        check("", "A=1 B=2 A=3", false, "PATH=* HOSTNAME=h B=2 A=3 HOME=/root");
        check("HOME=/x", "HOSTNAME=y PATH", false, "HOSTNAME=y HOME=/x");
    }
}
