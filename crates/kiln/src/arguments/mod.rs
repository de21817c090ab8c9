//! The command line's definition: commands, flags and help. Flags are spelled as Docker spells them; one that is not
//! here is refused by name.

pub(crate) mod build;
pub(crate) mod image;
mod missing;
pub(crate) mod run;
pub(crate) mod switches;
pub(crate) mod system;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

/// What kiln reads of the environment. A test compares it with the sources.
const ENVIRONMENT: &str = "\
Environment:
  KILN_ROOT          directory of the store, unless --root names one
  XDG_DATA_HOME      an ordinary user's store is in kiln below this,
  HOME                 or else in .local/share/kiln below this
  KILN_LAYERS        `unpacked` unpacks every layer, also one that could be
                       mounted in its tar; `mounted` is the default
  HTTP_PROXY         proxy for http, in what `build` fetches by URL or git
  HTTPS_PROXY        the same for https
  NO_PROXY           hosts that are asked directly: names, .names, addresses
                       and networks, with :PORT or without, separated by
                       commas; * for all. This machine always is
  SSL_CERT_FILE      CA bundle for what `build` fetches and `--lend ca` lends,
                       instead of the system's
  PATH               where git is looked for
  SOURCE_DATE_EPOCH  seconds: `build` takes it as a --build-arg
  BUILDKIT_PROGRESS  how `build` shows progress, unless --progress says it
  NO_COLOR           no colours
  TERM               `dumb` has neither colours nor progress in place

The proxies' names may be in small letters; where both are set, capitals
count. Other variables of proxies are not read, ALL_PROXY for one. A variable
that is empty is not set.

`build --build-arg NAME` and `run -e NAME` take any variable, `build --lend`
those that `kiln build --help` names.

`kiln COMMAND --help` tells more about a command.";

/// Builds container images from Dockerfiles, keeps and explains their layers, and runs containers from them.
///
/// There is no daemon: every command opens the same store, and any number of them may run at once.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    about = "Build, keep, explain and run container images, without a daemon",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    disable_version_flag = true,
    after_help = "`kiln COMMAND --help` tells more about a command, `kiln --help` about environment variables.",
    after_long_help = ENVIRONMENT
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    everywhere: Everywhere,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that may stand at every command, and before it.
#[derive(Debug, Args)]
struct Everywhere {
    /// Directory of the store [default: /var/lib/kiln as root, else $XDG_DATA_HOME/kiln] [env: KILN_ROOT]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    root: Option<PathBuf>,

    /// Tell on standard error where the time went, by phase and by thread
    #[arg(long, global = true, display_order = 901)]
    timings: bool,

    /// Write where the time went to a file for Perfetto and chrome://tracing
    #[arg(long, global = true, value_name = "FILE", display_order = 902)]
    trace: Option<PathBuf>,

    /// Print version
    #[arg(short, short_alias = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

impl Arguments {
    /// The store's directory, if one was named.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.everywhere.root.as_deref()
    }

    /// The same, with the store that the environment names if the command line names none. clap is not asked to do this: with
    /// the variable set a line without a command would not be an empty one to it. An empty variable names none.
    #[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
    fn with_environment(mut self) -> Self {
        let named = || std::env::var_os("KILN_ROOT").filter(|root| !root.is_empty()).map(PathBuf::from);
        self.everywhere.root = self.everywhere.root.or_else(named);
        self
    }

    /// Whether to tell where the time went.
    pub(crate) fn timings(&self) -> bool {
        self.everywhere.timings
    }

    /// The file for the trace, if one was named.
    pub(crate) fn trace(&self) -> Option<&Path> {
        self.everywhere.trace.as_deref()
    }

    /// The definition with the one command that `words` seem to name: to make all of them takes a while. What it does not
    /// understand is for the whole definition to say.
    fn command_for<W: AsRef<OsStr>>(words: &[W]) -> Option<clap::Command> {
        type Define = fn(clap::Command) -> clap::Command;
        const COMMANDS: [(&str, Define); 12] = [
            ("build", build::Build::augment_args),
            ("run", run::Run::augment_args),
            ("images", image::List::augment_args),
            ("history", image::History::augment_args),
            ("inspect", image::Inspect::augment_args),
            ("tag", image::Tag::augment_args),
            ("rmi", image::Remove::augment_args),
            ("load", image::Load::augment_args),
            ("save", image::Save::augment_args),
            ("import", image::Import::augment_args),
            ("info", system::Info::augment_args),
            ("version", system::Version::augment_args),
        ];
        let named = |word: &W| COMMANDS.into_iter().find(|(name, _)| word.as_ref() == *name);
        let (name, define) = words.iter().skip(1).find_map(named)?;
        let kiln = clap::Command::new("kiln").version(env!("CARGO_PKG_VERSION")).disable_version_flag(true);
        let kiln = Everywhere::augment_args(kiln.disable_help_subcommand(true).subcommand_required(true));
        Some(kiln.subcommand(define(clap::Command::new(name))))
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Build(build::Build),
    Run(run::Run),
    Images(image::List),
    History(image::History),
    Inspect(image::Inspect),
    Tag(image::Tag),
    Rmi(image::Remove),
    Load(image::Load),
    Save(image::Save),
    Import(image::Import),
    /// Manage images
    #[command(subcommand, arg_required_else_help = true)]
    Image(ImageCommand),
    /// Look after the store
    #[command(subcommand, arg_required_else_help = true)]
    System(SystemCommand),
    Info(system::Info),
    Version(system::Version),
}

/// Commands on images. Those that stand alone too mean the same.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    #[command(visible_alias = "list")]
    Ls(image::List),
    Build(build::Build),
    History(image::History),
    Inspect(image::InspectImage),
    Diff(image::Diff),
    Files(image::Files),
    Cat(image::Cat),
    Unpack(image::Unpack),
    Tag(image::Tag),
    #[command(visible_alias = "remove")]
    Rm(image::Remove),
    Load(image::Load),
    Save(image::Save),
    Import(image::Import),
    Prune(image::Prune),
}

/// Commands on the store as a whole.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    Df(system::DiskUsage),
    Prune(system::Prune),
    Check(system::Check),
    Info(system::Info),
}

/// `--format` of commands that print documents.
#[derive(Debug, Args)]
pub(crate) struct DocumentFormat {
    /// Print through a Go template, or `json` for one line of JSON
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl DocumentFormat {
    /// What was asked for: an empty text is nothing, as in Docker.
    pub(crate) fn asked(&self) -> Option<&str> {
        self.format.as_deref().filter(|format| !format.is_empty())
    }
}

/// `--format` of commands that print rows.
#[derive(Debug, Args)]
pub(crate) struct RowFormat {
    /// Print rows through a Go template: `table` (the default), `table TEMPLATE`, `json` or `TEMPLATE`
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl RowFormat {
    /// What was asked for: an empty text is nothing, as in Docker.
    pub(crate) fn asked(&self) -> Option<&str> {
        self.format.as_deref().filter(|format| !format.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn definition_is_sound() {
        Arguments::command().debug_assert();
    }

    /// What one command's definition understands, the whole one understands, too, and in the same way.
    #[test]
    fn one_command_is_defined_as_among_all() {
        let whole = Arguments::command();
        let mut seen = 0;
        for child in whole.get_subcommands().filter(|child| !child.has_subcommands()) {
            let words = ["kiln", "--root", "/r", child.get_name()];
            let alone = Arguments::command_for(&words).expect("a definition");
            let alone = alone.find_subcommand(child.get_name()).expect("the command");
            let told = |command: &clap::Command| format!("{:?}", command.clone().render_long_help());
            assert_eq!(told(alone), told(child));
            seen += 1;
        }
        assert_eq!(seen, 12);
        assert!(Arguments::command_for(&["kiln", "image", "ls"]).is_none());
        // A name of a command that is a value: the whole definition is asked.
        for words in [["kiln", "--root", "run", "images"], ["kiln", "images", "--root", "build"]] {
            assert!(matches!(parse(&words[1..]), Command::Images(_)), "{words:?}");
        }
    }

    /// Every command and every flag says what it does, in one line without a full stop.
    #[test]
    fn everything_has_help() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let about = command.get_about().unwrap_or_else(|| panic!("{path} has no help")).to_string();
            assert!(!about.ends_with('.'), "{path}: {about}");
            for argument in command.get_arguments() {
                let help = argument
                    .get_help()
                    .unwrap_or_else(|| panic!("{path}: {} has no help", argument.get_id()));
                assert!(!help.to_string().ends_with('.'), "{path}: {help}");
            }
            command.get_subcommands().for_each(|command| walk(command, &path));
        }
        walk(&Arguments::command(), "");
    }

    /// Every variable that this crate reads by name is in the help, or in that of `--lend`.
    #[test]
    fn the_environment_has_help() {
        fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs_err::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => sources(&path, found),
                    false => found.push(path),
                }
            }
        }
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let command = Arguments::command();
        let lend = command.find_subcommand("build").unwrap().get_after_long_help().unwrap().to_string();
        let mut seen = 0;
        for file in files {
            let text = fs_err::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let lends = file.parent().is_some_and(|parent| parent.ends_with("lent"));
            let help = if lends { format!("{ENVIRONMENT}{lend}") } else { ENVIRONMENT.to_owned() };
            for reader in ["var(\"", "var_os(\"", "variable(\"", "set(\"", "named(\"", "env = \""] {
                for behind in code.split(reader).skip(1) {
                    let name = behind.split('"').next().unwrap().to_ascii_uppercase();
                    let is_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
                    if is_name && !name.is_empty() {
                        assert!(help.contains(&name), "{name}, which {} reads, has no help", file.display());
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 12, "{seen} variables");
    }

    /// What a shell makes of a line without escapes.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut quoted) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().expect("a word").push(c),
            }
        }
        words
    }

    /// The examples in long help are command lines that parse.
    #[test]
    fn examples_parse() {
        fn walk(command: &clap::Command, seen: &mut usize) {
            for help in [command.get_after_long_help(), command.get_after_help()].into_iter().flatten() {
                let help = help.to_string();
                let lines = help.lines().map(str::trim);
                for line in lines.filter(|line| line.starts_with("kiln ") || line.contains("| kiln ")) {
                    let line = line.split_once("| kiln ").map_or(line, |(_, rest)| rest);
                    let line = line.strip_prefix("kiln ").unwrap_or(line);
                    let line = line.split_once("   ").map_or(line, |(line, _)| line);
                    let words =
                        words(line).into_iter().take_while(|w| !matches!(w.as_str(), "|" | ">" | "<"));
                    let words: Vec<String> = std::iter::once("kiln".to_owned()).chain(words).collect();
                    let command = match switches::parse(&words) {
                        Ok(arguments) => arguments.command,
                        Err(error) => panic!("{line}: {error}"),
                    };
                    if let Command::Import(import) = command {
                        let platform = kiln_oci::Platform::host();
                        kiln_build::apply_changes(&platform, &import.change).expect(line);
                    }
                    *seen += 1;
                }
            }
            command.get_subcommands().for_each(|command| walk(command, seen));
        }
        let mut seen = 0;
        walk(&Arguments::command(), &mut seen);
        assert!(seen > 20, "{seen} examples");
    }

    #[track_caller]
    fn parse(words: &[&str]) -> Command {
        let words: Vec<&str> = std::iter::once("kiln").chain(words.iter().copied()).collect();
        match switches::parse(&words) {
            Ok(arguments) => arguments.command,
            Err(error) => panic!("{words:?}: {error}"),
        }
    }

    #[test]
    fn the_containers_command_is_its_own() {
        let Command::Run(run) =
            parse(&["run", "--rm", "-it", "-e", "A=1", "-e", "B", "busybox", "sh", "-c", "--rm=x", "-e"])
        else {
            panic!("not run")
        };
        assert!(run.rm && run.interactive && run.tty);
        assert_eq!(run.env, ["A=1", "B"]);
        assert_eq!(run.image(), "busybox");
        assert_eq!(run.command(), ["sh", "-c", "--rm=x", "-e"]);
    }

    #[test]
    fn the_root_may_stand_anywhere() {
        let root = |words: &[&str]| switches::parse(words).unwrap().root().map(Path::to_owned);
        assert_eq!(root(&["kiln", "--root", "/a", "images"]).as_deref(), Some(Path::new("/a")));
        assert_eq!(root(&["kiln", "images", "--root=/a"]).as_deref(), Some(Path::new("/a")));
        // An empty variable in a script is no wish for the default.
        assert!(switches::parse(&["kiln", "--root=", "images"]).is_err());
    }

    #[test]
    fn switches_take_values_as_in_docker() {
        let rm = |words: &[&str]| match parse(words) {
            Command::Run(run) => run.rm,
            other => panic!("{other:?}"),
        };
        assert!(rm(&["run", "--rm", "x"]));
        assert!(rm(&["run", "--rm=true", "x"]));
        assert!(!rm(&["run", "--rm=false", "x"]));
        assert!(!rm(&["run", "--rm=0", "x"]));
        assert!(!rm(&["run", "x", "--rm"]));
        let human = |words: &[&str]| match parse(words) {
            Command::History(history) => history.human,
            other => panic!("{other:?}"),
        };
        assert!(human(&["history", "x"]));
        assert!(human(&["history", "-H", "x"]));
        assert!(!human(&["history", "-H=false", "x"]));
        assert!(!human(&["history", "--human=false", "x"]));
    }

    #[test]
    fn short_and_long_names_mean_the_same() {
        for words in [["images", "-a"].as_slice(), &["image", "ls", "-a"], &["image", "list", "--all"]] {
            match parse(words) {
                Command::Images(list) | Command::Image(ImageCommand::Ls(list)) => assert!(list.all),
                other => panic!("{other:?}"),
            }
        }
        for words in [
            ["rmi", "-f", "a", "b"].as_slice(),
            &["image", "rm", "-f", "a", "b"],
            &["image", "remove", "--force", "a", "b"],
        ] {
            match parse(words) {
                Command::Rmi(remove) | Command::Image(ImageCommand::Rm(remove)) => {
                    assert_eq!((remove.force, remove.images), (true, vec!["a".to_owned(), "b".to_owned()]));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn build_flags() {
        let Command::Build(build) = parse(&[
            "build",
            "-t",
            "a",
            "--tag",
            "b:1",
            "-f",
            "-",
            "--build-arg",
            "A=1,2",
            "--allow",
            "network.host,security.insecure",
            "--progress=plain",
            ".",
        ]) else {
            panic!("not build")
        };
        assert_eq!(build.tag, ["a", "b:1"]);
        assert_eq!(build.file(), Some(Path::new("-")));
        assert_eq!(build.build_arg, ["A=1,2"]);
        assert_eq!(build.allow, ["network.host", "security.insecure"]);
        assert_eq!(build.progress, Some(build::ProgressMode::Plain));
    }

    /// Docker takes these as if they were not given, which scripts with empty variables rely on.
    #[test]
    fn an_empty_value_is_none() {
        let words = ["build", "-f", "", "--iidfile=", "--target", "", "--network=", "--progress=", "."];
        let Command::Build(build) = parse(&words) else { panic!("not build") };
        assert_eq!((build.file(), build.iidfile()), (None, None));
        assert_eq!(build.progress, Some(build::ProgressMode::Auto));
        let Command::Run(run) = parse(&["run", "-w", "", "-u", "", "x"]) else { panic!("not run") };
        assert_eq!(run.workdir(), None);
        let Command::Run(run) = parse(&["run", "-w", "/a", "x"]) else { panic!("not run") };
        assert_eq!(run.workdir(), Some("/a"));
    }

    #[test]
    fn of_a_flag_that_is_given_again_the_last_counts() {
        let words =
            ["run", "--rm", "-w", "/a", "-e", "A=1", "--rm=false", "-w=/b", "-e", "B=2", "x", "-w", "-w"];
        let Command::Run(run) = parse(&words) else { panic!("not run") };
        assert_eq!((run.rm, run.workdir()), (false, Some("/b")));
        assert_eq!(run.env, ["A=1", "B=2"]);
        assert_eq!(run.command(), ["-w", "-w"]);
        for words in [
            ["image", "ls", "-q", "-q", "--format", "a", "--format=b"].as_slice(),
            &["images", "-qq", "--format=b"],
        ] {
            match parse(words) {
                Command::Images(list) | Command::Image(ImageCommand::Ls(list)) => {
                    assert_eq!((list.quiet, list.format.asked()), (true, Some("b")));
                }
                other => panic!("{other:?}"),
            }
        }
        let words =
            ["build", "-t", "a", "-f", "b", "-t", "c", "--file=d", "--progress=tty", "--progress=plain", "."];
        let Command::Build(build) = parse(&words) else { panic!("not build") };
        assert_eq!((build.file(), build.progress), (Some(Path::new("d")), Some(build::ProgressMode::Plain)));
        assert_eq!(build.tag, ["a", "c"]);
        let root = switches::parse(&["kiln", "--root", "/a", "images", "--root=/b"]).unwrap();
        assert_eq!(root.root(), Some(Path::new("/b")));
    }

    #[test]
    fn help_is_a_word_too() {
        for words in [&["kiln", "help"][..], &["kiln", "help", "build"], &["kiln", "help", "image", "prune"]]
        {
            match switches::parse(words) {
                Err(switches::Stop::Shown { text }) => {
                    let usage = format!("Usage: kiln {}", words[2..].join(" "));
                    assert!(text.to_string().contains(usage.trim()), "{words:?} {text}");
                }
                other => panic!("{words:?}: {other:?}"),
            }
        }
    }

    /// Nothing is called missing that is there.
    #[test]
    fn what_is_missing_is_missing() {
        let command = Arguments::command();
        for name in ["pull", "push", "ps", "exec", "rm", "prune", "builder", "diff", "volume"] {
            assert!(missing::command(name).is_some() && command.find_subcommand(name).is_none(), "{name}");
        }
        for (name, flag) in [
            ("build", "--output"),
            ("build", "--secret"),
            ("build", "--pull"),
            ("run", "--name"),
            ("run", "--mount"),
        ] {
            let command = command.find_subcommand(name).expect("a command");
            let path = format!("kiln {name}");
            assert!(
                missing::flag(&path, flag).is_some() && missing::flag(&path, &format!("{flag}=x")).is_some()
            );
            assert!(command.get_arguments().all(|known| known.get_long() != Some(&flag[2..])), "{flag}");
        }
    }

    #[test]
    fn refusals() {
        #[track_caller]
        fn check(words: &[&str], expect: &str) {
            let words: Vec<&str> = std::iter::once("kiln").chain(words.iter().copied()).collect();
            let refusal = match switches::parse(&words) {
                Err(switches::Stop::Refused(refusal)) => refusal.to_string(),
                other => panic!("{words:?}: {other:?}"),
            };
            assert_eq!(refusal, expect);
        }
        check(
            &["imges"],
            "kiln: unknown command 'imges': did you mean 'images'?\nhint: `kiln --help` lists the commands\n",
        );
        check(
            &["image", "prun"],
            "kiln: unknown command 'image prun': did you mean 'prune'?\nhint: `kiln image --help` lists the commands\n",
        );
        check(&["zzz", "build"], "kiln: unknown command 'zzz'\nhint: `kiln --help` lists the commands\n");
        check(
            &["--root", "build", "image", "lss", "rm"],
            "kiln: unknown command 'image lss': did you mean 'ls'?\nhint: `kiln image --help` lists the commands\n",
        );
        check(&["--foo"], "kiln: unknown flag: --foo\nhint: `kiln --help` lists the flags\n");
        check(&["--root=/x"], "kiln: no command is named\nhint: `kiln --help` lists the commands\n");
        check(
            &["load", "a.tar"],
            "kiln: unexpected argument 'a.tar'\nhint: -i names the archive: kiln load -i a.tar\n",
        );
        check(
            &["run", "-e"],
            "kiln: --env <NAME[=VALUE]> needs a value\nhint: `kiln run --help` tells more\n",
        );
        check(&["zzz"], "kiln: unknown command 'zzz'\nhint: `kiln --help` lists the commands\n");
        check(
            &["images", "--nosuch"],
            "kiln: unknown flag: --nosuch\nhint: `kiln images --help` lists the flags\n",
        );
        check(
            &["build", "--pul", "."],
            "kiln: unknown flag: --pul\nhint: `kiln build --help` lists the flags\n",
        );
        check(
            &["build", "--targt=x", "."],
            "kiln: unknown flag: --targt: did you mean '--target'?\nhint: `kiln build --help` lists the flags\n",
        );
        check(
            &["history"],
            "kiln: 'kiln history' needs IMAGE\nhint: usage: kiln history [OPTIONS] <IMAGE>\n",
        );
        check(
            &["tag", "a"],
            "kiln: 'kiln tag' needs TARGET_IMAGE[:TAG]\nhint: usage: kiln tag <SOURCE_IMAGE[:TAG]> <TARGET_IMAGE[:TAG]>\n",
        );
        check(
            &["images", "a", "b"],
            "kiln: unexpected argument 'b'\nhint: usage: kiln images [OPTIONS] [REPOSITORY[:TAG]]\n",
        );
        check(
            &["build", "--progress=fancy", "."],
            "kiln: invalid value 'fancy' for --progress <MODE>: expected auto, plain or tty\nhint: `kiln build --help` tells more\n",
        );
        check(
            &["run", "--rm=maybe", "x"],
            "kiln: invalid value 'maybe' for --rm: expected true or false\nhint: `kiln run --help` tells more\n",
        );
        check(&["build", "-f"], "kiln: --file <FILE> needs a value\nhint: `kiln build --help` tells more\n");
    }
}
