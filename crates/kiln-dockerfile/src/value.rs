//! Values with a syntax of their own: durations, sizes, booleans, signals, ports.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::Error;

/// Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Reads a duration as Go's `time.ParseDuration` does, such as `1m30.5s`, in nanoseconds.
///
/// # Errors
/// [`Error::Duration`] for no number, no or an unknown unit, or more than about 292 years.
pub fn parse_duration(text: &str) -> Result<i64, Error> {
    let fail = |reason| Error::Duration { value: text.to_owned(), reason };
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(fail("expected a number with a unit such as 30s"));
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(whole_len);
        let fraction = after.strip_prefix('.').map(|after| {
            let length = after.bytes().take_while(u8::is_ascii_digit).count();
            after.split_at(length)
        });
        let (fraction, after) = fraction.map_or(("", after), |(digits, after)| (digits, after));
        if whole.is_empty() && fraction.is_empty() {
            return Err(fail("expected a number"));
        }
        let unit_len = after.find(|ch: char| ch == '.' || ch.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let nanos: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(fail("missing unit, expected one of ns, us, ms, s, m, h")),
            _ => return Err(fail("unknown unit, expected one of ns, us, ms, s, m, h")),
        };
        let too_large = || fail("too large");
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
        let value = whole.checked_mul(nanos).filter(|value| *value <= 1 << 63).ok_or_else(too_large)?;
        total = total.checked_add(value + fraction_of(fraction, nanos)).ok_or_else(too_large)?;
        if total > 1 << 63 {
            return Err(too_large());
        }
        rest = after;
    }
    if negative {
        return Ok(0_i64.wrapping_sub_unsigned(total));
    }
    i64::try_from(total).map_err(|_| fail("too large"))
}

/// `0.<digits>` of a unit; digits that do not matter any more are dropped.
fn fraction_of(digits: &str, nanos: u64) -> u64 {
    let (mut value, mut scale): (u64, f64) = (0, 1.0);
    for digit in digits.bytes() {
        let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')));
        match next.filter(|next| *next <= 1 << 63) {
            Some(next) => value = next,
            None => break,
        }
        scale *= 10.0;
    }
    // The same floating-point steps as Go, so that the last digit agrees.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let fraction = (value as f64 * (nanos as f64 / scale)) as u64;
    fraction
}

/// Writes a duration as Go's `Duration.String` does, such as `1m30s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000_000_000 {
        let (unit, name) = match nanos {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{}{name}", with_fraction(nanos, unit));
    }
    let seconds = with_fraction(nanos % 60_000_000_000, 1_000_000_000);
    let minutes = nanos / 60_000_000_000;
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn with_fraction(value: u128, unit: u128) -> String {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", value % unit);
    let fraction = if unit == 1 { "" } else { fraction.trim_end_matches('0') };
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}", value / unit)
}

/// Reads a size in bytes such as `64m`, `1.5GiB` or `1024`; units are powers of 1024.
///
/// # Errors
/// [`Error::Size`]
pub fn parse_size(text: &str) -> Result<i64, Error> {
    let fail = || Error::Size { value: text.to_owned() };
    let last = text.rfind(|ch: char| ch.is_ascii_digit() || ch == '.' || ch == ' ').ok_or_else(fail)?;
    let number = if text.as_bytes()[last] == b' ' { &text[..last] } else { &text[..=last] };
    let unit = text[last + 1..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" if unit.is_empty() || unit == "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(fail()),
    };
    if unit.len() > 3 || (unit.len() == 3 && !unit.ends_with("ib")) {
        return Err(fail());
    }
    let plain =
        number.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'+' | b'e' | b'E' | b'-'));
    let value: f64 = number.parse().map_err(|_| fail())?;
    if !plain || value < 0.0 {
        return Err(fail());
    }
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let bytes = (value * (1_i64 << shift) as f64) as i64;
    Ok(bytes)
}

/// Signal names without `SIG`, and their numbers on Linux.
const SIGNALS: [(&str, i32); 36] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("RTMIN", 34),
    ("RTMAX", 64),
];

/// Reads a signal: a number but 0, or a name with or without `SIG`, in any case; `RTMIN+1` too.
///
/// # Errors
/// [`Error::Signal`]
pub fn parse_signal(text: &str) -> Result<i32, Error> {
    let fail = || Error::Signal { value: text.to_owned() };
    if let Ok(number) = text.parse::<i32>() {
        return if number == 0 { Err(fail()) } else { Ok(number) };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |digits: &str, most: i32| {
        let canonical =
            digits.parse::<i32>().ok().filter(|n| (1..=most).contains(n) && n.to_string() == digits);
        canonical.ok_or_else(fail)
    };
    match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
        (Some(digits), _) => Ok(34 + offset(digits, 15)?),
        (_, Some(digits)) => Ok(64 - offset(digits, 14)?),
        _ => Err(fail()),
    }
}

/// The signal names that [`parse_signal`] knows, for near names.
pub(crate) fn signal_names() -> impl Iterator<Item = &'static str> {
    SIGNALS.iter().map(|(name, _)| *name)
}

/// Reads one EXPOSE word, already expanded: `[[ip:]host:]port[-port][/protocol]`. Gives
/// `port/protocol` for each port, as the image config has them. IP and host port are checked and
/// dropped, as in BuildKit.
///
/// # Errors
/// [`Error::Port`]
pub fn parse_port(text: &str) -> Result<Vec<String>, Error> {
    let (ports, protocol) = port_range(text)?;
    Ok(ports.map(|port| format!("{port}/{protocol}")).collect())
}

/// The ports that an EXPOSE word names, and their protocol: nothing is spelt out.
pub(crate) fn port_range(text: &str) -> Result<(RangeInclusive<u16>, String), Error> {
    let fail = |reason: String| Error::Port { value: text.to_owned(), reason };
    let mut parts = text.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let host = parts.next().unwrap_or_default();
    let ip = parts.next().unwrap_or_default();
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return Err(fail("no port specified".to_owned()));
    }
    let lower = protocol.to_lowercase();
    let protocol = match lower.as_str() {
        "" => "tcp".to_owned(),
        "tcp" | "udp" | "sctp" => lower,
        _ => return Err(fail(format!("expected protocol tcp, udp or sctp, found {protocol}"))),
    };
    let address = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if !ip.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(fail(format!("invalid IP address {ip}")));
    }
    let (start, end) = parse_port_range(ports).map_err(|reason| fail(format!("container port: {reason}")))?;
    if !host.is_empty() {
        let (host_start, host_end) =
            parse_port_range(host).map_err(|reason| fail(format!("host port: {reason}")))?;
        if end != start && end - start != host_end - host_start {
            return Err(fail(format!("ranges {ports} and {host} differ in length")));
        }
    }
    Ok((start..=end, protocol))
}

fn parse_port_range(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| -> Result<u16, String> {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        let zero = !digits.is_empty() && digits.bytes().all(|byte| byte == b'0');
        if text.starts_with('-') && zero {
            return Ok(0);
        }
        text.parse().map_err(|_| format!("expected a number from 0 to 65535, found {text:?}"))
    };
    let (start, end) = match text.split_once('-') {
        Some((start, end)) => (number(start)?, number(end)?),
        None => (number(text)?, number(text)?),
    };
    if end < start { Err(format!("range {text} is backwards")) } else { Ok((start, end)) }
}
