//! Errors as people see them: what kind of failure, which exit status, what to do next.

use std::fmt;
use std::io;

use crate::filters::FilterError;
use crate::format::template::TemplateFailure;
use crate::progress::log::sanitise;

/// Whose failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line cannot be understood.
    Usage,
    /// Something the user gave is wrong: a Dockerfile, an archive, a name.
    Input,
    /// The machine or the network did not do its part.
    World,
    /// kiln is wrong.
    Bug,
}

impl Kind {
    /// The exit status of a failure of this kind, unless the command has its own rules.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Usage => 125,
            Self::Input | Self::World => 1,
            Self::Bug => 70,
        }
    }
}

/// A failure with all that is said about it. Made where a library's error is understood; travels as `anyhow::Error`.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    status: u8,
    message: String,
    excerpt: String,
    hint: Option<String>,
    source: Option<anyhow::Error>,
}

impl Failure {
    /// A failure that says `message`, which names the thing, what was expected and what was found.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: kind.status(),
            message: message.into(),
            excerpt: String::new(),
            hint: None,
            source: None,
        }
    }

    /// The same with what is behind it, which is printed after the message.
    pub(crate) fn caused_by(mut self, source: impl Into<anyhow::Error>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with lines to print above the message, a Dockerfile's for instance.
    pub(crate) fn excerpt(mut self, excerpt: impl Into<String>) -> Self {
        self.excerpt = excerpt.into();
        self
    }

    /// The same with an exit status of its own.
    pub(crate) fn status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(AsRef::as_ref)
    }
}

impl From<TemplateFailure> for Failure {
    fn from(failure: TemplateFailure) -> Self {
        Self { hint: failure.hint(), ..Self::new(Kind::Input, failure.to_string()) }
    }
}

impl From<FilterError> for Failure {
    fn from(error: FilterError) -> Self {
        Self { hint: error.hint(), ..Self::new(Kind::Usage, error.to_string()) }
    }
}

/// Which exit statuses a command uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convention {
    /// 1 for what went wrong, 125 for a command line that was not understood.
    Plain,
    /// `run`: 125 for every failure of kiln's own, since other statuses are the command's.
    Run,
}

/// What is printed to standard error, and the exit status.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) text: String,
    pub(crate) status: u8,
}

/// Tells what `error` means to the user.
pub(crate) fn report(error: &anyhow::Error, convention: Convention) -> Report {
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    if failure.is_none() && io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // Whoever read our output has seen enough: `kiln images | head -1`. The status is that of SIGPIPE.
        return Report { text: String::new(), status: 141 };
    }
    let kind = failure.map_or(Kind::World, |failure| failure.kind);
    let hint =
        failure.and_then(|failure| failure.hint.clone()).or_else(|| io_hint(io?, error)).or_else(|| {
            let others = error.chain().any(is_of_other_owners);
            others.then(|| OTHER_OWNERS_HINT.to_owned())
        });

    let mut text = failure.map(|failure| failure.excerpt.clone()).unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("kiln: ");
    text.push_str(&chain(error));
    text.push('\n');
    if kind == Kind::Bug {
        text.push_str(
            "kiln: this is a bug in kiln, not in what you did; please report it with the lines above\n",
        );
    }
    if let Some(hint) = hint {
        text.push_str(&format!("hint: {hint}\n"));
    }
    let status = match (convention, failure) {
        (Convention::Run, Some(failure)) if failure.status != failure.kind.status() => failure.status,
        (Convention::Run, _) => 125,
        (Convention::Plain, Some(failure)) => failure.status,
        (Convention::Plain, None) => kind.status(),
    };
    Report { text: text.lines().map(|line| sanitise(line.as_bytes()) + "\n").collect(), status }
}

/// The messages from the outermost to the innermost, leaving out one that its outer neighbour ends with already.
fn chain(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        if out.is_empty() {
            out = message;
        } else if !message.is_empty() && !out.ends_with(&message) {
            out.push_str(": ");
            out.push_str(&message);
        }
    }
    out
}

const OTHER_OWNERS_HINT: &str = "`kiln info` tells which IDs this process has, and why; use the image as it was made, or \
    load, import or build it again";

fn is_of_other_owners(error: &(dyn std::error::Error + 'static)) -> bool {
    of_the_store(error).is_some_and(|error| matches!(error, kiln_store::Error::OtherOwners { .. }))
}

/// What the store says of its own files.
fn of_the_store<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a kiln_store::Error> {
    // Those that say what is in them do not show it as their cause.
    let store = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(kiln_build::Error::Store(error)), _) | (_, Some(kiln_container::Error::Store(error))) => {
            Some(error)
        }
        _ => error.downcast_ref::<kiln_store::Error>(),
    };
    store.filter(|error| !matches!(error, kiln_store::Error::Output { .. }))
}

fn io_hint(io: &io::Error, error: &anyhow::Error) -> Option<String> {
    let hint = match io.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full; `kiln system df` shows what kiln holds, `kiln system prune` removes what is unused"
        }
        // Volumes, archives and the like are somewhere else.
        io::ErrorKind::ReadOnlyFilesystem if error.chain().any(|cause| of_the_store(cause).is_some()) => {
            "the file system is read-only; --root or KILN_ROOT names another place for the store"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The candidate that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "a, b and c".
pub(crate) fn enumerate(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[track_caller]
    fn check<E: Into<anyhow::Error>>(error: E, convention: Convention, text: &str, status: u8) {
        assert_eq!(report(&error.into(), convention), Report { text: text.to_owned(), status });
    }

    #[test]
    fn reports() {
        let archive = || {
            anyhow::Error::new(Failure::new(
                Kind::Input,
                "not an image archive: expected index.json or manifest.json, found junk",
            ))
            .context("cannot load junk.tar")
        };
        let text = "kiln: cannot load junk.tar: not an image archive: expected index.json or manifest.json, found junk\n";
        check(archive(), Convention::Plain, text, 1);
        check(archive(), Convention::Run, text, 125);
        check(
            Failure::new(Kind::Usage, "invalid filter 'nope'")
                .hint("filters of images are dangling and label"),
            Convention::Plain,
            "kiln: invalid filter 'nope'\nhint: filters of images are dangling and label\n",
            125,
        );
        check(
            Failure::new(Kind::Input, "cannot run nosuch: no such file in the image").status(127),
            Convention::Run,
            "kiln: cannot run nosuch: no such file in the image\n",
            127,
        );
        check(
            Failure::new(Kind::Input, "cannot build").excerpt("Dockerfile:2\n---"),
            Convention::Plain,
            "Dockerfile:2\n---\nkiln: cannot build\n",
            1,
        );
        check(
            Failure::new(Kind::Bug, "the layer index has no root"),
            Convention::Plain,
            "kiln: the layer index has no root\nkiln: this is a bug in kiln, not in what you did; please report it with the lines above\n",
            70,
        );
    }

    #[test]
    fn outside_world() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Err::<(), _>(full).context("cannot write /var/lib/kiln/tmp/1").unwrap_err();
        let report = report(&error, Convention::Plain);
        assert_eq!(report.status, 1);
        assert!(report.text.starts_with("kiln: cannot write /var/lib/kiln/tmp/1: "), "{}", report.text);
        assert!(report.text.contains("hint: the disk is full"), "{}", report.text);
    }

    #[test]
    fn another_store_helps_where_the_store_is_read_only() {
        #[track_caller]
        fn check(error: impl Into<anyhow::Error>, expect: bool) {
            let text = report(&error.into(), Convention::Run).text;
            assert_eq!(text.contains("hint: the file system is read-only; --root"), expect, "{text}");
        }
        let source = || io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let store = || kiln_store::Error::File { action: "make", path: "/s/tmp/1".into(), source: source() };
        check(store(), true);
        check(kiln_build::Error::Store(store()), true);
        check(Failure::new(Kind::World, "cannot run").caused_by(kiln_container::Error::Store(store())), true);
        check(kiln_container::Error::Volume { path: "/ro/new".into(), source: source() }, false);
        check(kiln_store::Error::Output { what: "x.tar".to_owned(), source: source() }, false);
        check(anyhow::Error::new(source()).context("cannot write the trace"), false);
    }

    #[test]
    fn names_from_outside() {
        let error = Failure::new(Kind::Input, "cannot load x.tar: no layer \x1b[2J\x1b]0;t\x07a\u{202e}b");
        check(error, Convention::Plain, "kiln: cannot load x.tar: no layer ab\n", 1);
    }

    #[test]
    fn a_reader_that_went_away() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        check(error, Convention::Plain, "", 141);
    }

    #[test]
    fn repeated_causes_are_said_once() {
        let error = anyhow!("no such file").context("cannot open x: no such file");
        check(error, Convention::Plain, "kiln: cannot open x: no such file\n", 1);
        let error = anyhow!(Failure::new(Kind::Input, "cannot build").caused_by(anyhow!("no stage")));
        check(error, Convention::Plain, "kiln: cannot build: no stage\n", 1);
    }

    #[test]
    fn near_names() {
        #[track_caller]
        fn check(word: &str, expect: Option<&str>) {
            assert_eq!(nearest(word, ["Repository", "Tag", "Size", "ID"]), expect);
        }
        check("Repositroy", Some("Repository"));
        check("tag", Some("Tag"));
        check("Sise", Some("Size"));
        check("Nope", None);
        check("Tab", Some("Tag"));
        check("Bib", None);
        check("", None);
    }
}
