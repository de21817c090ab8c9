//! `--filter NAME=VALUE` as Docker reads it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;

use crate::failure::{enumerate, nearest};
use crate::units::Clock;

/// Why a filter cannot be used. Unknown names and values fail; nothing is silently passed over.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FilterError {
    /// No equals sign.
    #[error("invalid filter '{0}': bad format of filter (expected name=value)")]
    Form(String),
    /// A name that this command does not know.
    #[error("invalid filter '{name}'")]
    Name { name: String, known: &'static [&'static str] },
    /// A value that is not of the filter's kind.
    #[error("invalid filter '{name}=[{value}]': expected {expected}")]
    Value { name: &'static str, value: String, expected: &'static str },
    /// A filter that can only have one value, given two.
    #[error("invalid filter '{name}=[{first} {second}]': expected one value")]
    Twice { name: &'static str, first: bool, second: bool },
    /// A filter that can only be given once.
    #[error("invalid filter '{name}': more than one {name} filter specified")]
    Again { name: &'static str },
    /// A pattern that does not parse.
    #[error("invalid filter 'reference=[{0}]': syntax error in pattern")]
    Pattern(String),
}

impl FilterError {
    /// What to write instead.
    pub(crate) fn hint(&self) -> Option<String> {
        let Self::Name { name, known } = self else { return None };
        let list = enumerate(&known.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        Some(match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {near}? the filters are {list}"),
            None => format!("the filters are {list}"),
        })
    }
}

/// The labels of an image.
pub(crate) type Labels = BTreeMap<String, String>;

/// A label that must be there, or must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelFilter {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl LabelFilter {
    fn read(text: &str) -> Self {
        match text.split_once('=') {
            Some((name, value)) => Self { name: name.to_owned(), value: Some(value.to_owned()) },
            None => Self { name: text.to_owned(), value: None },
        }
    }

    /// Whether one of `labels` is the one.
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        labels.get(&self.name).is_some_and(|value| self.value.as_ref().is_none_or(|wanted| wanted == value))
    }
}

/// The filters of `images`. All kinds must hold; several of one kind: labels must all hold, of references one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageFilters {
    /// Untagged images only, or tagged ones only.
    pub(crate) dangling: Option<bool>,
    pub(crate) labels: Vec<LabelFilter>,
    /// Names of images: older than the oldest of them.
    pub(crate) before: Vec<String>,
    /// Names of images: newer than the newest of them.
    pub(crate) since: Vec<String>,
    /// Patterns over names as Docker shows them.
    pub(crate) references: Vec<String>,
    /// Made before this.
    pub(crate) until: Option<Timestamp>,
}

const IMAGE_FILTERS: &[&str] = &["dangling", "label", "before", "since", "reference", "until"];

impl ImageFilters {
    /// Reads the values of `--filter`.
    pub(crate) fn read(filters: &[String], clock: &Clock) -> Result<Self, FilterError> {
        let mut read = Self::default();
        for filter in given(filters) {
            let (name, value) = pair(filter)?;
            match name {
                "dangling" => read.dangling = Some(one_flag("dangling", read.dangling, value)?),
                "label" => read.labels.push(LabelFilter::read(value)),
                "before" => read.before.push(value.to_owned()),
                "since" => read.since.push(value.to_owned()),
                "reference" => {
                    path_match(value, "").ok_or_else(|| FilterError::Pattern(value.to_owned()))?;
                    read.references.push(value.to_owned());
                }
                "until" => {
                    // As in Docker, the oldest counts.
                    let new = until(value, clock)?;
                    read.until = Some(read.until.map_or(new, |old| old.min(new)));
                }
                _ => return Err(unknown(name, IMAGE_FILTERS)),
            }
        }
        Ok(read)
    }

    /// Whether an image without (with) a tag is wanted.
    pub(crate) fn wants(&self, dangling: bool) -> bool {
        self.dangling.is_none_or(|wanted| wanted == dangling)
    }

    /// Whether labels and time fit.
    pub(crate) fn accepts(&self, labels: &Labels, created: Option<Timestamp>) -> bool {
        self.labels.iter().all(|label| label.matches(labels))
            && self.until.is_none_or(|until| created.is_none_or(|created| created < until))
    }

    /// Whether a name, in Docker's familiar form, is one of those asked for.
    pub(crate) fn names(&self, name: &str, tag: &str) -> bool {
        self.references.is_empty()
            || self.references.iter().any(|pattern| reference_matches(pattern, name, tag))
    }
}

/// The filters of `prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PruneFilters {
    pub(crate) until: Option<Timestamp>,
    pub(crate) labels: Vec<LabelFilter>,
    /// `label!=`: what has one of these stays.
    pub(crate) kept_labels: Vec<LabelFilter>,
    pub(crate) dangling: Option<bool>,
}

const PRUNE_FILTERS: &[&str] = &["until", "label", "label!", "dangling"];

impl PruneFilters {
    /// Reads the values of `--filter`.
    pub(crate) fn read(filters: &[String], clock: &Clock) -> Result<Self, FilterError> {
        let mut read = Self::default();
        for filter in given(filters) {
            let (name, value) = pair(filter)?;
            match name {
                // To take one of them might be to remove more than was meant.
                "until" if read.until.is_some() => return Err(FilterError::Again { name: "until" }),
                "until" => read.until = Some(until(value, clock)?),
                "label" => read.labels.push(LabelFilter::read(value)),
                "label!" => read.kept_labels.push(LabelFilter::read(value)),
                "dangling" => read.dangling = Some(one_flag("dangling", read.dangling, value)?),
                _ => return Err(unknown(name, PRUNE_FILTERS)),
            }
        }
        Ok(read)
    }

    /// Whether something with these labels, made then, may go.
    pub(crate) fn accepts(&self, labels: &Labels, created: Option<Timestamp>) -> bool {
        self.until.is_none_or(|until| created.is_some_and(|created| created < until))
            && self.labels.iter().all(|label| label.matches(labels))
            && !self.kept_labels.iter().any(|label| label.matches(labels))
    }
}

/// Whether `pattern` names `name:tag`, both in Docker's familiar form. A pattern without a tag stands for all tags.
pub(crate) fn reference_matches(pattern: &str, name: &str, tag: &str) -> bool {
    let familiar = pattern.strip_prefix("docker.io/library/").or_else(|| pattern.strip_prefix("docker.io/"));
    let pattern = familiar.unwrap_or(pattern);
    path_match(pattern, &format!("{name}:{tag}")) == Some(true) || path_match(pattern, name) == Some(true)
}

/// The filters that say something: an empty one is none, as in Docker, since scripts write `--filter "$FILTER"`.
pub(crate) fn given(filters: &[String]) -> impl Iterator<Item = &String> {
    filters.iter().filter(|filter| !filter.is_empty())
}

fn pair(filter: &str) -> Result<(&str, &str), FilterError> {
    let (name, value) = filter.split_once('=').ok_or_else(|| FilterError::Form(filter.to_owned()))?;
    Ok((name.trim(), value.trim()))
}

fn unknown(name: &str, known: &'static [&'static str]) -> FilterError {
    FilterError::Name { name: name.to_owned(), known }
}

/// A flag that may be given again, and may not be contradicted.
fn one_flag(name: &'static str, before: Option<bool>, value: &str) -> Result<bool, FilterError> {
    let flag = flag(name, value)?;
    match before {
        Some(first) if first != flag => Err(FilterError::Twice { name, first, second: flag }),
        _ => Ok(flag),
    }
}

fn flag(name: &'static str, value: &str) -> Result<bool, FilterError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(FilterError::Value { name, value: value.to_owned(), expected: "true or false" }),
    }
}

/// A duration before now (`24h`, `1h30m`), seconds since the epoch, or a date and time.
fn until(value: &str, clock: &Clock) -> Result<Timestamp, FilterError> {
    let seconds = || {
        let (whole, part) = value.split_once('.').unwrap_or((value, "0"));
        let nanoseconds: String = part.chars().chain("000000000".chars()).take(9).collect();
        Timestamp::new(whole.parse().ok()?, nanoseconds.parse().ok()?).ok()
    };
    let date = || {
        let text = value.trim_end_matches('Z');
        let zone = if text.len() == value.len() { clock.zone.clone() } else { jiff::tz::TimeZone::UTC };
        let short = match text.len() {
            16 => format!("{text}:00"),
            13 => format!("{text}:00:00"),
            _ => text.to_owned(),
        };
        let civil = short.parse::<jiff::civil::DateTime>().ok()?;
        zone.to_timestamp(civil).ok()
    };
    duration(value)
        .and_then(|duration| clock.now.checked_sub(duration).ok())
        .or_else(seconds)
        .or_else(|| value.parse().ok())
        .or_else(date)
        .ok_or_else(|| FilterError::Value {
            name: "until",
            value: value.to_owned(),
            expected: "a duration such as 24h, or a time such as 2026-11-21T06:00:00",
        })
}

/// Go's durations: `1h30m`, `1.5h`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let scale = match &rest[digits..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * scale).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

/// Go's `path.Match`: `*` and `?` stop at a slash, `[a-z]` and `[^a-z]` are classes, a backslash takes the next
/// character as it is. `None` for a pattern that is not one.
pub(crate) fn path_match(pattern: &str, name: &str) -> Option<bool> {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // The positions of the last star and of what it has taken so far, to come back to.
    let (mut at, mut read) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    let mut lost = false;
    loop {
        let step = match pattern.get(at) {
            Some('*') => {
                star = Some((at + 1, read));
                at += 1;
                continue;
            }
            None if read == name.len() && !lost => return Some(true),
            None => None,
            Some(_) => {
                let (accepts, next) = element(&pattern, at, name.get(read).copied())?;
                (accepts && !lost).then_some(next)
            }
        };
        match (step, star) {
            (Some(next), _) => {
                at = next;
                read += 1;
            }
            (None, Some((after, taken))) if taken < name.len() && name[taken] != '/' && !lost => {
                star = Some((after, taken + 1));
                (at, read) = (after, taken + 1);
            }
            // The rest is still read, so that a broken pattern is broken whatever the name.
            (None, _) => match pattern.get(at) {
                None => return Some(false),
                Some(_) => {
                    lost = true;
                    at = element(&pattern, at, None)?.1;
                }
            },
        }
    }
}

/// One element of a pattern that is not a star: whether it takes `c`, and where the next begins.
fn element(pattern: &[char], at: usize, c: Option<char>) -> Option<(bool, usize)> {
    match pattern[at] {
        '?' => Some((c.is_some_and(|c| c != '/'), at + 1)),
        '\\' => Some((c == Some(*pattern.get(at + 1)?), at + 2)),
        '[' => class(pattern, at + 1, c),
        literal => Some((c == Some(literal), at + 1)),
    }
}

fn class(pattern: &[char], mut at: usize, c: Option<char>) -> Option<(bool, usize)> {
    let negated = pattern.get(at) == Some(&'^');
    at += usize::from(negated);
    let mut found = false;
    let mut ranges = 0;
    loop {
        if pattern.get(at) == Some(&']') && ranges > 0 {
            let taken = c.is_some_and(|c| c != '/') && found != negated;
            return Some((taken, at + 1));
        }
        let low;
        (low, at) = class_member(pattern, at)?;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            (high, at) = class_member(pattern, at + 1)?;
        }
        found |= c.is_some_and(|c| (low..=high).contains(&c));
        ranges += 1;
    }
}

fn class_member(pattern: &[char], at: usize) -> Option<(char, usize)> {
    match pattern.get(at)? {
        '-' | ']' => None,
        '\\' => Some((*pattern.get(at + 1)?, at + 2)),
        c => Some((*c, at + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    fn clock() -> Clock {
        Clock { now: "2026-11-21T12:00:00Z".parse().unwrap(), zone: TimeZone::UTC }
    }

    fn images(filters: &[&str]) -> Result<ImageFilters, FilterError> {
        ImageFilters::read(&filters.iter().map(ToString::to_string).collect::<Vec<_>>(), &clock())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_empty_filter_is_none() {
        assert_eq!(images(&["", "dangling=true"]), images(&["dangling=true"]));
        assert_eq!(PruneFilters::read(&[String::new()], &clock()), Ok(PruneFilters::default()));
        assert_eq!(images(&[" "]), Err(FilterError::Form(" ".to_owned())));
    }

    #[test]
    fn of_several_times_the_oldest_counts_and_prune_takes_one() {
        for order in [["until=2h", "until=1h"], ["until=1h", "until=2h"]] {
            assert_eq!(images(&order).unwrap().until, Some("2026-11-21T10:00:00Z".parse().unwrap()));
            let filters = order.map(str::to_owned);
            assert_eq!(PruneFilters::read(&filters, &clock()), Err(FilterError::Again { name: "until" }));
        }
    }

    #[test]
    fn paths() {
        #[track_caller]
        fn check(pattern: &str, name: &str, expect: Option<bool>) {
            assert_eq!(path_match(pattern, name), expect, "{pattern} {name}");
        }
        check("abc", "abc", Some(true));
        check("*", "abc", Some(true));
        check("*c", "abc", Some(true));
        check("a*", "a", Some(true));
        check("a*", "ab/c", Some(false));
        check("a*/b", "abc/b", Some(true));
        check("a*/b", "a/c/b", Some(false));
        check("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true));
        check("a*b*c*d*e*/f", "axbxcxdxexxx/f", Some(true));
        check("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Some(false));
        check("a*b?c*x", "abxbbxdbxebxczzx", Some(true));
        check("a*b?c*x", "abxbbxdbxebxczzy", Some(false));
        check("ab[c]", "abc", Some(true));
        check("ab[b-d]", "abc", Some(true));
        check("ab[e-g]", "abc", Some(false));
        check("ab[^c]", "abc", Some(false));
        check("ab[^e-g]", "abc", Some(true));
        check("a\\*b", "a*b", Some(true));
        check("a\\*b", "ab", Some(false));
        check("a?b", "a☺b", Some(true));
        check("a[^a]b", "a☺b", Some(true));
        check("a???b", "a☺b", Some(false));
        check("[a-ζ]*", "α", Some(true));
        check("*[a-ζ]", "A", Some(false));
        check("a?b", "a/b", Some(false));
        check("a*b", "a/b", Some(false));
        check("[\\]a]", "]", Some(true));
        check("[x\\-]", "-", Some(true));
        check("[]a]", "]", None);
        check("[-]", "-", None);
        check("[x-]", "x", None);
        check("[a-b-c]", "a", None);
        check("[", "a", None);
        check("[^", "a", None);
        check("[^bc", "a", None);
        check("a[", "a", None);
        check("a[", "ab", None);
        check("a[", "x", None);
        check("a/b[", "x", None);
        check("*x", "xxx", Some(true));
        check("", "", Some(true));
        check("", "a", Some(false));
    }

    #[test]
    fn references() {
        #[track_caller]
        fn check(pattern: &str, name: &str, tag: &str, expect: bool) {
            assert_eq!(reference_matches(pattern, name, tag), expect, "{pattern} {name}:{tag}");
        }
        check("alpine", "alpine", "3.20", true);
        check("alpine:*", "alpine", "3.20", true);
        check("alp*:3*", "alpine", "3.20", true);
        check("alp*:3*", "alpine", "imported", false);
        check("lay*", "layers", "1", true);
        check("layers:2", "layers", "1", false);
        check("*/*/layers", "example.org/team/layers", "v2", true);
        check("layers", "example.org/team/layers", "v2", false);
        check("docker.io/library/alpine", "alpine", "3.20", true);
    }

    #[test]
    fn image_filters() {
        let read =
            images(&["dangling=true", "label=a", "label=b=c", "reference=alp*", "before=x:1", "until=1h30m"])
                .unwrap();
        assert_eq!(read.dangling, Some(true));
        assert_eq!(read.before, ["x:1"]);
        assert_eq!(read.until, Some("2026-11-21T10:30:00Z".parse().unwrap()));
        assert!(read.wants(true) && !read.wants(false));
        let old = "2024-01-01T00:00:00Z".parse().ok();
        assert!(read.accepts(&labels(&[("a", "1"), ("b", "c")]), old));
        assert!(!read.accepts(&labels(&[("a", "1"), ("b", "d")]), old));
        assert!(!read.accepts(&labels(&[("b", "c")]), old));
        assert!(!read.accepts(&labels(&[("a", "1"), ("b", "c")]), Some(clock().now)));
        assert!(read.names("alpine", "3.20") && !read.names("busybox", "1"));
        assert!(images(&[]).unwrap().names("busybox", "1"));
    }

    #[test]
    fn times() {
        #[track_caller]
        fn check(value: &str, expect: &str) {
            assert_eq!(images(&[&format!("until={value}")]).unwrap().until, expect.parse().ok(), "{value}");
        }
        check("24h", "2026-11-20T12:00:00Z");
        check("1.5h", "2026-11-21T10:30:00Z");
        check("90s", "2026-11-21T11:58:30Z");
        check("0", "1970-01-01T00:00:00Z");
        check("1700000000", "2023-11-14T22:13:20Z");
        check("1700000000.5", "2023-11-14T22:13:20.5Z");
        check("2026-11-20", "2026-11-20T00:00:00Z");
        check("2026-11-20T08", "2026-11-20T08:00:00Z");
        check("2026-11-20T08:30", "2026-11-20T08:30:00Z");
        check("2026-11-20T08:30:15", "2026-11-20T08:30:15Z");
        check("2026-11-20T08:30:15Z", "2026-11-20T08:30:15Z");
        check("2026-11-20T08:30:15+02:00", "2026-11-20T06:30:15Z");
    }

    #[test]
    fn failures() {
        #[track_caller]
        fn check(filter: &str, expect: &str) {
            assert_eq!(images(&[filter]).unwrap_err().to_string(), expect);
        }
        check("nope=1", "invalid filter 'nope'");
        check("dangling", "invalid filter 'dangling': bad format of filter (expected name=value)");
        check("dangling=maybe", "invalid filter 'dangling=[maybe]': expected true or false");
        check("reference=a[", "invalid filter 'reference=[a[]': syntax error in pattern");
        check(
            "until=soon",
            "invalid filter 'until=[soon]': expected a duration such as 24h, or a time such as 2026-11-21T06:00:00",
        );
        assert_eq!(
            images(&["dangling=true", "dangling=0"]).unwrap_err().to_string(),
            "invalid filter 'dangling=[true false]': expected one value"
        );
        assert_eq!(images(&["dangling=1", "dangling=true"]).unwrap().dangling, Some(true));
        assert!(
            images(&["lable=x"])
                .unwrap_err()
                .hint()
                .unwrap()
                .starts_with("did you mean label? the filters are ")
        );
    }

    #[test]
    fn prune_filters() {
        let filters = ["until=24h", "label=temporary", "label!=keep"].map(str::to_owned);
        let read = PruneFilters::read(&filters, &clock()).unwrap();
        let old = "2026-11-01T00:00:00Z".parse().ok();
        assert!(read.accepts(&labels(&[("temporary", "")]), old));
        assert!(!read.accepts(&labels(&[("temporary", ""), ("keep", "")]), old));
        assert!(!read.accepts(&labels(&[]), old));
        assert!(!read.accepts(&labels(&[("temporary", "")]), Some(clock().now)));
        assert!(!read.accepts(&labels(&[("temporary", "")]), None));
        let unknown = PruneFilters::read(&["before=x".to_owned()], &clock()).unwrap_err();
        assert_eq!(unknown.to_string(), "invalid filter 'before'");
    }
}
