//! The `created_by` texts that instructions leave in an image's history, exactly as BuildKit writes
//! them. All take expanded instructions. ONBUILD leaves none.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;

use crate::expand::Variables;
use crate::instruction::{Add, Check, Copy, Healthcheck, Pair, Transfer};
use crate::source::Word;
use crate::value::format_duration;

/// `RUN /bin/sh -c echo hi # buildkit`, or `RUN |1 A=1 /bin/sh -c echo hi # buildkit` behind an ARG.
///
/// `arguments` are [`Program::arguments`](crate::Program::arguments). `build_args` are the stage's
/// ARG items so far, in order, each with the value it got, if any; the environment's value of the
/// same name goes first.
#[must_use]
pub fn run<V: Variables + ?Sized>(
    arguments: &[String],
    build_args: &[(String, Option<String>)],
    environment: &V,
) -> String {
    let mut shown: Vec<(&str, &str)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (name, value) in build_args {
        let value = environment.get(name).or(value.as_deref()).unwrap_or_default();
        match places.entry(name) {
            Entry::Occupied(place) => shown[*place.get()].1 = value,
            Entry::Vacant(place) => {
                place.insert(shown.len());
                shown.push((name, value));
            }
        }
    }
    let mut parts = vec!["RUN".to_owned()];
    if !shown.is_empty() {
        parts.push(format!("|{}", shown.len()));
        parts.extend(shown.iter().map(|(name, value)| format!("{name}={value}")));
    }
    // No arguments at all leave the blank that stood before them.
    let command = if arguments.is_empty() && shown.is_empty() { String::new() } else { arguments.join(" ") };
    if !arguments.is_empty() || shown.is_empty() {
        parts.push(command);
    }
    format!("{} # buildkit", parts.join(" "))
}

/// `COPY --chown=1:1 a b /dest/ # buildkit`
#[must_use]
pub fn copy(copy: &Copy) -> String {
    transfer(if copy.parents { "COPY --parents" } else { "COPY" }, &copy.transfer)
}

/// `ADD a.tar /dest/ # buildkit`
#[must_use]
pub fn add(add: &Add) -> String {
    transfer("ADD", &add.transfer)
}

fn transfer(start: &str, transfer: &Transfer) -> String {
    let mut out = start.to_owned();
    for (flag, value) in [("chown", &transfer.chown), ("chmod", &transfer.chmod)] {
        if let Some(value) = value.as_ref().filter(|value| !value.text.is_empty()) {
            let _ = write!(out, " --{flag}={}", value.text);
        }
    }
    for source in &transfer.sources {
        let _ = write!(out, " {}", source.text);
    }
    for file in &transfer.inline {
        let _ = write!(out, " <<{}", file.name.text);
    }
    let _ = write!(out, " {} # buildkit", transfer.destination.text);
    out
}

/// `ENV A=b C=d`
#[must_use]
pub fn env(pairs: &[Pair]) -> String {
    key_values("ENV", pairs)
}

/// `LABEL a=b c=d`
#[must_use]
pub fn label(pairs: &[Pair]) -> String {
    key_values("LABEL", pairs)
}

fn key_values(name: &str, pairs: &[Pair]) -> String {
    let shown = pairs.iter().map(|pair| format!(" {}={}", pair.key.text, pair.value.text));
    std::iter::once(name.to_owned()).chain(shown).collect()
}

/// `ARG A=1 B`, with the values that they got.
#[must_use]
pub fn arg(items: &[(String, Option<String>)]) -> String {
    let shown = items.iter().map(|(name, value)| match value {
        Some(value) => format!(" {name}={value}"),
        None => format!(" {name}"),
    });
    std::iter::once("ARG".to_owned()).chain(shown).collect()
}

/// `WORKDIR /app`, with the absolute path. It makes a layer unless the path is `/`.
#[must_use]
pub fn workdir(path: &str) -> String {
    format!("WORKDIR {path}")
}

/// `USER app`
#[must_use]
pub fn user(user: &str) -> String {
    format!("USER {user}")
}

/// `EXPOSE [80/tcp 443/tcp]`, with the result of [`parse_port`](crate::parse_port) in order.
#[must_use]
pub fn expose(ports: &[String]) -> String {
    format!("EXPOSE [{}]", ports.join(" "))
}

/// `VOLUME [/data /log]`
#[must_use]
pub fn volume(paths: &[Word]) -> String {
    format!("VOLUME {}", list(paths))
}

/// `SHELL [/bin/bash -c]`
#[must_use]
pub fn shell(shell: &[Word]) -> String {
    format!("SHELL {}", list(shell))
}

fn list(words: &[Word]) -> String {
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    format!("[{}]", texts.join(" "))
}

/// `CMD ["/bin/sh" "-c" "echo hi"]`
#[must_use]
pub fn cmd(arguments: &[String]) -> String {
    format!("CMD {}", quoted_list(arguments))
}

/// `ENTRYPOINT ["/app"]`
#[must_use]
pub fn entrypoint(arguments: &[String]) -> String {
    format!("ENTRYPOINT {}", quoted_list(arguments))
}

/// `STOPSIGNAL SIGTERM`, as written.
#[must_use]
pub fn stop_signal(signal: &str) -> String {
    format!("STOPSIGNAL {signal}")
}

/// `MAINTAINER somebody`
#[must_use]
pub fn maintainer(maintainer: &str) -> String {
    format!("MAINTAINER {maintainer}")
}

/// `HEALTHCHECK {Test:[CMD-SHELL true] Interval:30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:3}`
#[must_use]
pub fn healthcheck(healthcheck: &Healthcheck) -> String {
    let zero = std::time::Duration::ZERO;
    let (interval, timeout, start_period, start_interval, retries) = match healthcheck {
        Healthcheck::None => (zero, zero, zero, zero, 0),
        Healthcheck::Check(Check { interval, timeout, start_period, start_interval, retries, .. }) => {
            (*interval, *timeout, *start_period, *start_interval, *retries)
        }
    };
    format!(
        "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{retries}}}",
        healthcheck.test().join(" "),
        format_duration(interval),
        format_duration(timeout),
        format_duration(start_period),
        format_duration(start_interval),
    )
}

fn quoted_list(arguments: &[String]) -> String {
    let quoted: Vec<String> = arguments.iter().map(|argument| go_quote(argument)).collect();
    format!("[{}]", quoted.join(" "))
}

/// Go's `strconv.Quote`.
fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for ch in text.chars() {
        match ch {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            _ if is_printable(ch) => out.push(ch),
            '\0'..='\x7f' => _ = write!(out, "\\x{:02x}", u32::from(ch)),
            '\u{80}'..='\u{ffff}' => _ = write!(out, "\\u{:04x}", u32::from(ch)),
            _ => _ = write!(out, "\\U{:08x}", u32::from(ch)),
        }
    }
    out.push('"');
    out
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space.
fn is_printable(ch: char) -> bool {
    if ch.is_ascii() {
        return ch == ' ' || ch.is_ascii_graphic();
    }
    // Behind another character, only what cannot be printed is escaped.
    let mut buffer = String::from("a");
    buffer.push(ch);
    buffer.escape_debug().nth(1) == Some(ch)
}
