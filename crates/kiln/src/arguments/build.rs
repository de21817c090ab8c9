//! `build`.

use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser as _};
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

The image ID goes to --iidfile, and to standard output with -q; progress goes
to standard error, and at its end the ID of an image without a name.

A context github.com/USER/REPOSITORY is read from https://github.com, unless
there is such a directory.

What --lend lends is under /run/kiln and in variables, for the time of a step.
Files that a setting names go with it:
  ca     the CA bundle of SSL_CERT_FILE or of the system, and the variables by
         which programs find one
  proxy  HTTP_PROXY, HTTPS_PROXY, FTP_PROXY, ALL_PROXY and NO_PROXY, in
         capital and in small letters
  apt    what `apt-config dump` says of Acquire: proxies, certificates, time
         limits; not what is fetched
  pip    indexes, proxy, certificates and time limits of pip.conf (system,
         user, PIP_CONFIG_FILE) and of PIP_...
  npm    registries, tokens, proxies and certificates of npmrc (global, user,
         NPM_CONFIG_GLOBALCONFIG, NPM_CONFIG_USERCONFIG) and of npm_config_...
  go     GOPROXY, GOSUMDB, GONOSUMDB, GOPRIVATE, GONOPROXY, GOINSECURE and
         GOVCS, set or in the file GOENV, else $XDG_CONFIG_HOME/go/env")]
pub(crate) struct Build {
    /// Name of the image, NAME or NAME:TAG; may be repeated
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,

    /// Dockerfile, or - for standard input; in an archive if the context is one [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    file: Option<PathBuf>,

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

    /// How progress is shown [default: auto] [env: BUILDKIT_PROGRESS]
    #[arg(long, value_name = "MODE")]
    pub(crate) progress: Option<ProgressMode>,

    /// Show nothing but the image ID
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// File to write the image ID to
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    iidfile: Option<PathBuf>,

    /// Network of RUN steps that name none: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub(crate) network: String,

    /// Permit what a Dockerfile may not do by itself: network.host, security.insecure; several with commas, or repeated
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(crate) allow: Vec<String>,

    /// Lend RUN steps this machine's settings, without a trace in layer, history or cache key; several with commas, or repeated
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) lend: Vec<Loan>,

    /// Directory with the build's files; a git repository; an archive or a Dockerfile at a URL or, as -, on standard input
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: PathBuf,
}

impl Build {
    /// The Dockerfile, if one was named. An empty name is none, as in Docker: scripts write `-f "$FILE"`.
    pub(crate) fn file(&self) -> Option<&Path> {
        named(self.file.as_deref())
    }

    /// The file for the image ID, in the same way.
    pub(crate) fn iidfile(&self) -> Option<&Path> {
        named(self.iidfile.as_deref())
    }
}

fn named(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// tty on a terminal, else plain.
    #[value(alias = "")]
    Auto,
    /// One line after another.
    Plain,
    /// Lines that change in place.
    Tty,
}
