//! `build`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::lent::Loan;

/// Build an image from a Dockerfile
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln build -t app .
  kiln build -t app:1 -t app:latest --build-arg VERSION=1 .
  kiln build -f docker/Dockerfile --target test --progress plain .
  kiln build -q --iidfile app.id .
  kiln build --lend ca,proxy,pip -t app .
  kiln build -t app - < context.tar.gz
  kiln build -t app https://example.com/context.tar.gz
  kiln build -t app https://example.com/repository.git#main:docker

The image ID goes to --iidfile, and to standard output with -q; progress goes to standard error.")]
pub(crate) struct Build {
    /// Name of the image, NAME or NAME:TAG; may be repeated
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,

    /// Dockerfile, or - for standard input; in an archive if the context is one [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Value for an ARG, NAME=VALUE, or NAME to take it from the environment, as SOURCE_DATE_EPOCH always is; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) build_arg: Vec<String>,

    /// Label to set on the image; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,

    /// Run every step again, whatever the cache holds
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// How progress is shown
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub(crate) progress: ProgressMode,

    /// Show nothing but the image ID
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// File to write the image ID to
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,

    /// Network of RUN steps that name none
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub(crate) network: String,

    /// Permit what a Dockerfile may not do by itself: network.host, security.insecure; may be repeated
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(crate) allow: Vec<String>,

    /// Lend RUN steps this machine's settings, without a trace in layer, history or cache key; may be repeated
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) lend: Vec<Loan>,

    /// Directory with the build's files; a git repository; an archive or a Dockerfile at a URL or, as -, on standard input
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: PathBuf,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// tty on a terminal, else plain.
    Auto,
    /// One line after another.
    Plain,
    /// Lines that change in place.
    Tty,
}
