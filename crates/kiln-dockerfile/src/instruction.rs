//! The syntax tree: a Dockerfile's stages and typed instructions, words as written.

use std::time::Duration;

use crate::directive::Directives;
use crate::heredoc::Heredoc;
use crate::mount::{DeviceFlag, MountFlag};
use crate::source::{Span, Word};

/// A whole Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dockerfile {
    /// The text that all spans point into. Invalid UTF-8 of the input stands replaced.
    pub source: String,
    /// `# syntax=`, `# escape=`, `# check=`.
    pub directives: Directives,
    /// The ARGs before the first FROM, each `ARG` with its items. Their values are seen by FROM only.
    pub meta_args: Vec<MetaArg>,
    /// The stages in the order of their FROMs.
    pub stages: Vec<Stage>,
}

/// One `ARG` instruction before the first FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaArg {
    /// What it declares.
    pub items: Vec<Arg>,
    /// Comments right above.
    pub comments: Vec<String>,
    /// The whole instruction.
    pub span: Span,
}

/// FROM and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Position in the file, counted from 0.
    pub index: usize,
    /// The base image or earlier stage, unexpanded; its variables are the meta args.
    pub base: Word,
    /// `--platform`, unexpanded.
    pub platform: Option<Word>,
    /// The name behind AS, in lower case.
    pub name: Option<Word>,
    /// `FROM` as written.
    pub keyword: Word,
    /// The instruction's text with continuation lines joined.
    pub original: String,
    /// Comments right above.
    pub comments: Vec<String>,
    /// All instructions but FROM.
    pub instructions: Vec<Instruction>,
    /// The FROM instruction.
    pub span: Span,
}

impl Stage {
    /// The stage's name, or BuildKit's `stage-<index>`.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.name.as_ref().map_or_else(|| format!("stage-{}", self.index), |name| name.text.clone())
    }
}

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// What it is, with its words.
    pub kind: Kind,
    /// The keyword as written.
    pub keyword: Word,
    /// The instruction's text with continuation lines joined, without heredoc bodies.
    pub original: String,
    /// Comments right above.
    pub comments: Vec<String>,
    /// First to last line, heredoc bodies included.
    pub span: Span,
}

/// The instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// ADD
    Add(Add),
    /// ARG
    Arg(Vec<Arg>),
    /// CMD
    Cmd(CommandLine),
    /// COPY
    Copy(Copy),
    /// ENTRYPOINT
    Entrypoint(CommandLine),
    /// ENV
    Env(Vec<Pair>),
    /// EXPOSE; sorted, as BuildKit does before it expands.
    Expose(Vec<Word>),
    /// HEALTHCHECK
    Healthcheck(Healthcheck),
    /// LABEL
    Label(Vec<Pair>),
    /// MAINTAINER
    Maintainer(Word),
    /// ONBUILD
    Onbuild(Onbuild),
    /// RUN
    Run(Run),
    /// SHELL
    Shell(Vec<Word>),
    /// STOPSIGNAL
    StopSignal(Word),
    /// USER
    User(Word),
    /// VOLUME
    Volume(Vec<Word>),
    /// WORKDIR
    Workdir(Word),
}

impl Kind {
    /// The keyword in upper case.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Arg(_) => "ARG",
            Self::Cmd(_) => "CMD",
            Self::Copy(_) => "COPY",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Expose(_) => "EXPOSE",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Onbuild(_) => "ONBUILD",
            Self::Run(_) => "RUN",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Workdir(_) => "WORKDIR",
        }
    }
}

/// One item of ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// The name; never expanded.
    pub name: Word,
    /// The default behind `=`, unexpanded, quotes in place. `ARG x=` has an empty one.
    pub default: Option<Word>,
}

/// One item of ENV or LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Left of `=`.
    pub key: Word,
    /// Right of `=`.
    pub value: Word,
    /// How it was written.
    pub form: PairForm,
}

/// How a pair is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairForm {
    /// `key=value`
    Equals,
    /// `key value`, one pair an instruction.
    Legacy,
}

/// What COPY and ADD share. Words are unexpanded, but for `exclude`, which never is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfer {
    /// Paths or patterns, in order.
    pub sources: Vec<Word>,
    /// Files whose content stands in the Dockerfile.
    pub inline: Vec<InlineFile>,
    /// Where to.
    pub destination: Word,
    /// `--chown`
    pub chown: Option<Word>,
    /// `--chmod`
    pub chmod: Option<Word>,
    /// `--link`
    pub link: bool,
    /// `--exclude`, patterns with [`IgnoreMatcher`](crate::IgnoreMatcher)'s rules.
    pub exclude: Vec<Word>,
}

/// A heredoc that is a source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// The file's name: the heredoc's.
    pub name: Word,
    /// The content, leading tabs of `<<-` already gone.
    pub content: String,
    /// Whether variables in it are expanded: the name was not quoted.
    pub expand: bool,
}

/// COPY
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// Sources, destination, ownership.
    pub transfer: Transfer,
    /// `--from`: a stage's name or number, or an image. Never expanded.
    pub from: Option<Word>,
    /// `--parents`
    pub parents: bool,
}

/// ADD
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Add {
    /// Sources, destination, ownership.
    pub transfer: Transfer,
    /// `--checksum`, unexpanded.
    pub checksum: Option<Word>,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`, if given.
    pub unpack: Option<bool>,
}

/// RUN
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What runs.
    pub command: CommandLine,
    /// Bodies of the heredocs that the command's text starts, in order. Shell form only.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, in order.
    pub mounts: Vec<MountFlag>,
    /// `--network`
    pub network: Network,
    /// `--security`
    pub security: Security,
    /// `--device`, in order.
    pub devices: Vec<DeviceFlag>,
}

/// `RUN --network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The build's network.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's; needs an allowance.
    Host,
}

/// `RUN --security`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// The usual isolation.
    #[default]
    Sandbox,
    /// All privileges; needs an allowance.
    Insecure,
}

/// A command in one of its two forms. Neither is ever expanded by the builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Text for the shell.
    Shell(Word),
    /// A JSON array: the arguments.
    Exec(Vec<Word>),
}

impl CommandLine {
    /// The arguments to run: the shell's and the text, or the array's.
    #[must_use]
    pub fn arguments(&self, shell: &[String]) -> Vec<String> {
        match self {
            Self::Shell(text) => shell.iter().cloned().chain([text.text.clone()]).collect(),
            Self::Exec(words) => words.iter().map(|word| word.text.clone()).collect(),
        }
    }
}

/// HEALTHCHECK
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `NONE`: no check, also none of the base's.
    None,
    /// `CMD`
    Check(Check),
}

/// What HEALTHCHECK CMD says. Zero means not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The command.
    pub command: CommandLine,
    /// `--interval`
    pub interval: Duration,
    /// `--timeout`
    pub timeout: Duration,
    /// `--start-period`
    pub start_period: Duration,
    /// `--start-interval`
    pub start_interval: Duration,
    /// `--retries`
    pub retries: u32,
}

impl Healthcheck {
    /// The `Test` array of the image config.
    #[must_use]
    pub fn test(&self) -> Vec<String> {
        match self {
            Self::None => vec!["NONE".to_owned()],
            Self::Check(Check { command: CommandLine::Shell(text), .. }) => {
                vec!["CMD-SHELL".to_owned(), text.text.clone()]
            }
            Self::Check(Check { command: CommandLine::Exec(words), .. }) => {
                std::iter::once("CMD".to_owned()).chain(words.iter().map(|word| word.text.clone())).collect()
            }
        }
    }
}

/// ONBUILD
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onbuild {
    /// What goes into the image config: the trigger's text, heredocs with it. Read it back with
    /// [`parse_trigger`](crate::parse_trigger).
    pub expression: String,
}
