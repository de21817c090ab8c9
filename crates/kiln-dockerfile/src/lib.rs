//! Dockerfile text to syntax tree and diagnostics.
//!
//! This crate owns the Dockerfile language as BuildKit reads it: parser directives, logical lines,
//! heredocs, typed instructions, word expansion, `.dockerignore` and wildcard matching, and the
//! texts that instructions leave in an image's history. It must never do I/O, look at the
//! environment, or stop at the first error.
//!
//! The entry is [`parse`]. It always gives a tree and never panics; whether the file may be built is
//! told by [`Parsed::has_errors`].
//!
//! ```
//! use kiln_dockerfile::{Expander, Kind, history, parse, render_all};
//!
//! let parsed = parse(b"ARG BASE=debian:13\nFROM $BASE AS app\nENV A=1 B=\"x $A\"\nRUN echo $B\n");
//! assert!(!parsed.has_errors(), "{}", render_all(&parsed.diagnostics, "Dockerfile", &parsed.dockerfile.source));
//! let file = &parsed.dockerfile;
//!
//! // FROM sees the meta args only.
//! let expander = Expander::new(file.directives.escape);
//! let meta = std::collections::BTreeMap::from([("BASE", "debian:13")]);
//! let stage = &file.stages[0];
//! assert_eq!(expander.word(&stage.base.text, &meta)?.text, "debian:13");
//! assert_eq!(stage.display_name(), "app");
//!
//! // Expand an instruction with the environment as it is before the instruction.
//! let env = vec!["A=0".to_owned()];
//! let expanded = stage.instructions[0].kind.expand(&expander, &env)?;
//! let Kind::Env(pairs) = &expanded.kind else { panic!() };
//! assert_eq!((pairs[1].key.text.as_str(), pairs[1].value.text.as_str()), ("B", "x 0"));
//! assert_eq!(history::env(pairs), "ENV A=1 B=x 0");
//!
//! // RUN is not expanded by the builder; its arguments come from form, shell and heredocs.
//! let Kind::Run(run) = &stage.instructions[1].kind else { panic!() };
//! let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
//! let program = run.program(&shell);
//! assert_eq!(history::run(&program.arguments, &[], &env), "RUN /bin/sh -c echo $B # buildkit");
//!
//! // Errors come with place and hint, all of them at once.
//! let bad = parse(b"FROM scratch\nRNU echo hi\nCOPY --form=x a b\n");
//! let shown = render_all(&bad.diagnostics, "Dockerfile", &bad.dockerfile.source);
//! assert_eq!(
//!     shown,
//!     "\
//! error: unknown instruction: RNU
//!  --> Dockerfile:2:1
//!   |
//! 2 | RNU echo hi
//!   | ^^^
//!   = help: did you mean RUN?
//!
//! error: unknown flag: --form
//!  --> Dockerfile:3:6
//!   |
//! 3 | COPY --form=x a b
//!   |      ^^^^^^^^
//!   = help: did you mean --from?
//! "
//! );
//! # Ok::<(), kiln_dockerfile::Error>(())
//! ```
//!
//! For the build context see [`IgnoreMatcher`]; for COPY's wildcards [`glob_match`].
#![forbid(unsafe_code)]

mod diagnostic;
mod directive;
mod error;
mod evaluate;
mod expand;
mod flag;
mod glob;
mod heredoc;
pub mod history;
mod ignore;
mod instruction;
mod json;
mod lint;
mod mount;
mod parse;
mod pattern;
pub mod predefined;
mod reader;
mod regex;
mod remote_source;
mod source;
mod split;
mod stage;
mod suggest;
mod value;

pub use diagnostic::{Diagnostic, Severity, render, render_all};
pub use directive::{Check as CheckDirective, Directives};
pub use error::{Error, ExpandFailure};
pub use evaluate::{Expanded, Lookup, Program};
pub use expand::{Expander, Expansion, MAX_EXPANDED_BYTES, MAX_NESTING, NoVariables, Together, Variables};
pub use glob::{clean_path, glob_match, has_wildcards};
pub use heredoc::{Heredoc, heredoc_start, strip_leading_tabs};
pub use ignore::{IgnoreMatcher, IgnoreState};
pub use instruction::{
    Add, Arg, Check, CommandLine, Copy, Dockerfile, Healthcheck, InlineFile, Instruction, Kind, MetaArg,
    Network, Onbuild, Pair, PairForm, Run, Security, Stage, Transfer,
};
pub use lint::{Linter, Names, StageLint, Surroundings};
pub use mount::{DeviceFlag, Mount, MountFlag, MountType, Sharing};
pub use parse::{
    MAX_DIAGNOSTICS, MAX_LINE_BYTES, MAX_SOURCE_BYTES, Parsed, parse, parse_changes, parse_checked,
    parse_trigger,
};
pub use remote_source::{GitSource, SourceKind, context_kind, percent_decoded, source_kind};
pub use source::{Span, Word};
pub use stage::{CopySource, StageNames};
pub use value::{format_duration, parse_duration, parse_port, parse_signal, parse_size};
