//! Sizes, durations, times and identifiers as Docker's users know them.

use std::fmt::Write as _;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use unicode_width::UnicodeWidthChar;

const DECIMAL: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
const BINARY: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/// A point in time to measure ages from, and the zone in which times are shown.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    pub(crate) now: Timestamp,
    pub(crate) zone: TimeZone,
}

impl Clock {
    /// The machine's time and zone.
    pub(crate) fn system() -> Self {
        Self { now: moment(SystemTime::now()), zone: TimeZone::system() }
    }

    /// "5 seconds ago".
    pub(crate) fn since(&self, then: Timestamp) -> String {
        format!("{} ago", human_duration(self.now.as_second() - then.as_second()))
    }

    /// `2026-11-21 06:15:42 +0000 UTC`, in whole seconds.
    pub(crate) fn seconds(&self, time: Timestamp) -> String {
        let whole = Timestamp::from_second(time.as_second()).unwrap_or(time);
        self.full(whole)
    }

    /// `2026-11-21 06:15:37.541850053 +0000 UTC`: the fraction without trailing zeros.
    pub(crate) fn full(&self, time: Timestamp) -> String {
        let zoned = time.to_zoned(self.zone.clone());
        let mut out = zoned.strftime("%Y-%m-%d %H:%M:%S").to_string();
        out.push_str(&fraction(time));
        let _ = write!(out, " {}", zoned.strftime("%z %Z"));
        out
    }

    /// RFC 3339 in whole seconds: `2026-11-21T06:15:37Z`.
    pub(crate) fn rfc3339(&self, time: Timestamp) -> String {
        let zoned = time.to_zoned(self.zone.clone());
        let offset = match zoned.offset().seconds() {
            0 => "Z".to_owned(),
            _ => zoned.strftime("%:z").to_string(),
        };
        format!("{}{offset}", zoned.strftime("%Y-%m-%dT%H:%M:%S"))
    }
}

/// A time of the machine's clock; the nearest one that has a year of four digits where that is set to none.
pub(crate) fn moment(time: SystemTime) -> Timestamp {
    let far = if time < SystemTime::UNIX_EPOCH { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::try_from(time).unwrap_or(far)
}

fn fraction(time: Timestamp) -> String {
    let nanoseconds = time.subsec_nanosecond().unsigned_abs();
    if nanoseconds == 0 {
        return String::new();
    }
    format!(".{nanoseconds:09}").trim_end_matches('0').to_owned()
}

/// Bytes in powers of 1000 with four significant digits: `7.798MB`.
pub(crate) fn human_size(bytes: u64) -> String {
    scaled(bytes, 1000.0, &DECIMAL, 4)
}

/// Bytes in powers of 1000 with three significant digits, as image lists show them: `7.8MB`.
pub(crate) fn short_size(bytes: u64) -> String {
    scaled(bytes, 1000.0, &DECIMAL, 3)
}

/// Bytes in powers of 1024 with four significant digits: `23.54GiB`.
pub(crate) fn binary_size(bytes: u64) -> String {
    scaled(bytes, 1024.0, &BINARY, 4)
}

/// Bytes in powers of 1000 with two decimals, as progress shows them: `30.41MB`; whole bytes below 1000.
pub(crate) fn progress_size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let (value, unit) = scale(bytes, 1000.0, &DECIMAL);
    format!("{value:.2}{unit}")
}

fn scale(bytes: u64, base: f64, units: &[&'static str; 9]) -> (f64, &'static str) {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    (value, units[unit])
}

fn scaled(bytes: u64, base: f64, units: &[&'static str; 9], digits: i32) -> String {
    let (value, unit) = scale(bytes, base, units);
    let text = significant(value, digits);
    // Rounding may reach the base; C's %g would then write "1e+03MB".
    if text.parse::<f64>().is_ok_and(|rounded| rounded >= base)
        && let Some(next) = units.iter().position(|u| *u == unit).and_then(|at| units.get(at + 1))
    {
        return format!("1{next}");
    }
    format!("{text}{unit}")
}

/// `value` (zero, or at least one and below 10,000) rounded to `digits` significant digits, without trailing zeros.
fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    // Without a logarithm: it would be the only use of the system's library of mathematics, which takes time to load.
    let whole_digits = 1 + [10.0, 100.0, 1000.0].into_iter().filter(|power| value >= *power).count() as i32;
    let decimals = usize::try_from(digits - whole_digits).unwrap_or(0);
    let text = if whole_digits > digits {
        let step = 10f64.powi(whole_digits - digits);
        format!("{}", (value / step).round() * step)
    } else {
        format!("{value:.decimals$}")
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A rough duration in words: "About a minute", "3 weeks".
pub(crate) fn human_duration(seconds: i64) -> String {
    const HOUR: i64 = 3600;
    if seconds < 1 {
        return "Less than a second".to_owned();
    }
    let minutes = seconds / 60;
    let hours = (seconds + HOUR / 2) / HOUR;
    match (seconds, minutes, hours) {
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., ..48) => format!("{hours} hours"),
        (.., ..336) => format!("{} days", hours / 24),
        (.., ..1440) => format!("{} weeks", hours / 24 / 7),
        (.., ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / HOUR / 24 / 365),
    }
}

/// The first twelve digits of an identifier, without its algorithm.
pub(crate) fn short_id(id: &str) -> &str {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

/// `text` cut to `columns` of a terminal, the last of them an ellipsis.
pub(crate) fn ellipsis(text: &str, columns: usize) -> String {
    let width = |c: char| c.width().unwrap_or(1);
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += width(c);
        if used >= columns {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_far_off() {
        let far = std::time::Duration::from_secs(1 << 40);
        let after = moment(SystemTime::UNIX_EPOCH + far);
        assert_eq!(after, Timestamp::MAX);
        assert_eq!(moment(SystemTime::UNIX_EPOCH - far), Timestamp::MIN);
        for zone in
            [TimeZone::UTC, TimeZone::fixed(jiff::tz::offset(25)), TimeZone::fixed(jiff::tz::offset(-25))]
        {
            let clock = Clock { now: after, zone };
            assert_eq!(clock.since(Timestamp::UNIX_EPOCH), "8035 years ago");
            assert!(clock.full(after).len() > clock.rfc3339(Timestamp::MIN).len());
        }
    }

    #[test]
    fn sizes() {
        #[track_caller]
        fn check(bytes: u64, short: &str, long: &str, binary: &str) {
            assert_eq!(
                (short_size(bytes), human_size(bytes), binary_size(bytes)),
                (short.to_owned(), long.to_owned(), binary.to_owned())
            );
        }
        check(0, "0B", "0B", "0B");
        check(7, "7B", "7B", "7B");
        check(345, "345B", "345B", "345B");
        check(999, "999B", "999B", "999B");
        check(1000, "1kB", "1kB", "1000B");
        check(1023, "1.02kB", "1.023kB", "1023B");
        check(1024, "1.02kB", "1.024kB", "1KiB");
        check(1826, "1.83kB", "1.826kB", "1.783KiB");
        check(4_421_262, "4.42MB", "4.421MB", "4.216MiB");
        check(7_797_760, "7.8MB", "7.798MB", "7.437MiB");
        check(7_800_000, "7.8MB", "7.8MB", "7.439MiB");
        check(164_010_000, "164MB", "164MB", "156.4MiB");
        check(176_200_000, "176MB", "176.2MB", "168MiB");
        check(999_600_000, "1GB", "999.6MB", "953.3MiB");
        check(999_960_000, "1GB", "1GB", "953.6MiB");
        check(25_275_854_848, "25.3GB", "25.28GB", "23.54GiB");
        check(u64::MAX, "18.4EB", "18.45EB", "16EiB");
    }

    #[test]
    fn progress_sizes() {
        #[track_caller]
        fn check(bytes: u64, expect: &str) {
            assert_eq!(progress_size(bytes), expect);
        }
        check(0, "0B");
        check(375, "375B");
        check(1500, "1.50kB");
        check(30_412_345, "30.41MB");
    }

    #[test]
    fn durations() {
        #[track_caller]
        fn check(seconds: i64, expect: &str) {
            assert_eq!(human_duration(seconds), expect);
        }
        const MINUTE: i64 = 60;
        const HOUR: i64 = 60 * MINUTE;
        const DAY: i64 = 24 * HOUR;
        check(-5, "Less than a second");
        check(0, "Less than a second");
        check(1, "1 second");
        check(2, "2 seconds");
        check(59, "59 seconds");
        check(60, "About a minute");
        check(2 * MINUTE - 1, "About a minute");
        check(2 * MINUTE, "2 minutes");
        check(59 * MINUTE, "59 minutes");
        check(HOUR, "About an hour");
        check(89 * MINUTE, "About an hour");
        check(90 * MINUTE, "2 hours");
        check(47 * HOUR, "47 hours");
        check(48 * HOUR, "2 days");
        check(13 * DAY, "13 days");
        check(14 * DAY, "2 weeks");
        check(59 * DAY, "8 weeks");
        check(60 * DAY, "2 months");
        check(729 * DAY, "24 months");
        check(730 * DAY, "2 years");
        check(786 * DAY, "2 years");
    }

    #[test]
    fn times() {
        let clock = |zone| Clock { now: "2026-11-21T06:15:42Z".parse().unwrap(), zone };
        let time: Timestamp = "2026-11-21T06:15:37.541850050Z".parse().unwrap();
        let utc = clock(TimeZone::UTC);
        assert_eq!(utc.since(time), "5 seconds ago");
        assert_eq!(utc.seconds(time), "2026-11-21 06:15:37 +0000 UTC");
        assert_eq!(utc.full(time), "2026-11-21 06:15:37.54185005 +0000 UTC");
        assert_eq!(utc.rfc3339(time), "2026-11-21T06:15:37Z");
        let east = clock(TimeZone::fixed(jiff::tz::offset(2)));
        assert_eq!(east.rfc3339(time), "2026-11-21T08:15:37+02:00");
        assert!(east.seconds(time).starts_with("2026-11-21 08:15:37 +0200 "));
    }

    #[test]
    fn short_ids() {
        #[track_caller]
        fn check(id: &str, expect: &str) {
            assert_eq!(short_id(id), expect);
        }
        check("sha256:0f7396cbbc2a07c2454e5594b4fb861fcac65cbd9cef25017a4c967fcded5fa5", "0f7396cbbc2a");
        check("ibznzqr4f0uuadk79pej3sh27", "ibznzqr4f0uu");
        check("<missing>", "<missing>");
        check("", "");
    }

    #[test]
    fn ellipses() {
        #[track_caller]
        fn check(text: &str, expect: &str) {
            assert_eq!(ellipsis(text, 45), expect);
        }
        check("WORKDIR /opt", "WORKDIR /opt");
        check(
            "RUN /bin/sh -c echo \"layer2 data\" > /layer2.txt # buildkit",
            "RUN /bin/sh -c echo \"layer2 data\" > /layer2.…",
        );
        check(
            "123456789012345678901234567890123456789012345",
            "123456789012345678901234567890123456789012345",
        );
        check(&"界".repeat(23), &format!("{}…", "界".repeat(22)));
        check(&"é".repeat(46), &format!("{}…", "é".repeat(44)));
    }
}
