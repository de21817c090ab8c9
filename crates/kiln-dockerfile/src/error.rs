//! The one error type of the crate, for the pure functions that need values only known while building.
//!
//! Parsing a Dockerfile never returns an error: it returns [`Diagnostic`](crate::Diagnostic)s.

use thiserror::Error;

use crate::source::Span;

/// Why a piece of Dockerfile text could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// A word could not be expanded.
    #[error("failed to process {word:?}: {reason}")]
    Expand {
        /// The word as written.
        word: String,
        /// What is wrong with it.
        #[source]
        reason: ExpandFailure,
    },
    /// A Go duration such as `1m30s` was expected.
    #[error("invalid duration {value:?}: {reason}")]
    Duration {
        /// The text found.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An EXPOSE port specification is wrong.
    #[error("invalid port {value:?}: {reason}")]
    Port {
        /// The text found.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A signal is neither a number nor a known name.
    #[error("invalid signal: {value}")]
    Signal {
        /// The text found.
        value: String,
    },
    /// A `--mount` option is wrong.
    #[error("invalid mount {value:?}: {reason}")]
    Mount {
        /// The whole value of the option.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A `--device` option is wrong.
    #[error("invalid device {value:?}: {reason}")]
    Device {
        /// The whole value of the option.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A size in bytes such as `64m` was expected.
    #[error("invalid size {value:?}: expected a number with an optional unit b, k, m, g, t or p")]
    Size {
        /// The text found.
        value: String,
    },
    /// A wildcard pattern is malformed.
    #[error("syntax error in pattern {pattern:?}")]
    Pattern {
        /// The pattern as written.
        pattern: String,
    },
    /// A line of an ignore file is just `!`.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyExclusion,
    /// One of the others, and which word of the Dockerfile it is about.
    #[error("{error}")]
    At {
        /// What is wrong.
        error: Box<Error>,
        /// The word.
        span: Span,
    },
    /// A reference to a stage names none.
    #[error("{message}")]
    Stage {
        /// The full sentence, with a near name where there is one.
        message: String,
    },
}

impl Error {
    /// The same, about this word.
    #[must_use]
    pub fn at(self, span: Span) -> Self {
        Self::At { error: Box::new(self), span }
    }
}

/// Why a word could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExpandFailure {
    /// A `'` without its twin.
    #[error("unexpected end of statement while looking for matching single-quote")]
    SingleQuote,
    /// A `"` without its twin.
    #[error("unexpected end of statement while looking for matching double-quote")]
    DoubleQuote,
    /// `${` without `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${name/pattern` without the second `/`.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${{`, `${:`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// An operator that does not exist.
    #[error("unsupported modifier ({modifier}) in substitution")]
    Modifier {
        /// The operator as written.
        modifier: String,
    },
    /// `${name?message}` of a name that is not set, or `${name:?message}` of an empty one.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The user's message, or a default one.
        message: String,
    },
    /// A pattern with an escape that does not exist.
    #[error("invalid pattern ({pattern}) in substitution: invalid escape")]
    Pattern {
        /// The pattern after expansion.
        pattern: String,
    },
    /// Substitutions inside substitutions beyond the cap.
    #[error("substitutions are nested more than {limit} deep")]
    TooDeep {
        /// The cap.
        limit: usize,
    },
    /// The result, or the work to get it, is beyond the cap.
    #[error("the result is larger than {limit} bytes")]
    TooLarge {
        /// The cap.
        limit: usize,
    },
    /// What is bounded together is beyond the cap.
    #[error("what is filled in is larger than {limit} bytes together")]
    TooMuch {
        /// The cap.
        limit: usize,
    },
}
