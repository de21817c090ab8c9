//! `run`.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// Run a command in a new container
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "kiln run [OPTIONS] IMAGE [COMMAND] [ARG]...",
    after_long_help = "\
Examples:
  kiln run --rm -it debian:bookworm-slim bash
  kiln run --rm -e NAME=value -v /srv/data:/data:ro app
  kiln run --rm --entrypoint id -u 1000:1000 app

A container is always removed when it ends, with its changes, whether --rm is given or not. It sees the host's network.

The exit status is the command's; 125 if kiln could not start it, 126 if it cannot be executed, 127 if it is not there."
)]
pub(crate) struct Run {
    /// Remove the container when it ends
    #[arg(long)]
    pub(crate) rm: bool,

    /// Environment variable, NAME=VALUE, or NAME to pass it on; may be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,

    /// File with such variables, one a line; --env counts before it; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Directory or file of the host to mount, SOURCE:TARGET[:ro]; may be repeated
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]")]
    pub(crate) volume: Vec<String>,

    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// User, name or number, and group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,

    /// Program instead of the image's ENTRYPOINT; empty for none
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,

    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// Image (NAME, NAME:TAG or an ID), then a command and its arguments instead of the image's CMD
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true)]
    words: Vec<String>,
}

impl Run {
    /// The image's name or ID.
    pub(crate) fn image(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }

    /// The working directory, if one was named. An empty name is none, as in Docker: scripts write `-w "$DIR"`.
    pub(crate) fn workdir(&self) -> Option<&str> {
        self.workdir.as_deref().filter(|directory| !directory.is_empty())
    }

    /// The command and its arguments, none for the image's own.
    pub(crate) fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}
