//! A stage while it is lowered: its environment, its config, and what each instruction does to them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use kiln_dockerfile::{
    Expander, Healthcheck as HealthcheckInstruction, Kind, StageLint, Surroundings, Together, Variables as _,
    history, parse_port, parse_signal, predefined::NON_ENVIRONMENT_ARGS,
};
use kiln_graph::VertexId;
use kiln_oci::{Config, Empty, Healthcheck, History, ImageConfig, Platform};

use crate::environment::Environment;
use crate::error::{Error, Result};

/// The PATH of images that set none, as Docker's.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most ports that an EXPOSE may name: all of TCP, UDP and SCTP, and so many a config may have.
pub(crate) const MOST_PORTS: usize = 3 * 65_536;
/// The comment of history entries, as BuildKit's Dockerfile frontend writes it.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// An entry of the history that the build adds, and the vertex that makes its layer.
#[derive(Clone, Debug)]
pub(crate) struct PlannedHistory {
    pub(crate) entry: History,
    pub(crate) layer: Option<VertexId>,
}

/// About how many bytes an instruction takes besides its text.
const INSTRUCTION_BYTES: usize = 256;
/// About how often the text of a variable, label or the like is kept.
const TEXT_COPIES: usize = 4;

/// A stage up to some instruction. Stages on one another share what they do not change.
#[derive(Clone, Debug)]
pub(crate) struct StageState {
    /// The image config so far; its history is the base's alone.
    pub(crate) image: Arc<ImageConfig>,
    pub(crate) history: Arc<Vec<PlannedHistory>>,
    /// What RUN sees: ENV and ARG, of a name the later one.
    pub(crate) environment: Environment,
    /// Where in the config's Env each name stands first.
    configured: Arc<HashMap<String, usize>>,
    /// Whether it would change nothing to set again what the config's Env says: it stands behind all others, in that order.
    as_configured: bool,
    /// ARG items so far with the values that they got.
    pub(crate) build_args: Arc<Vec<(String, Option<String>)>>,
    /// Their names.
    pub(crate) declared: Arc<HashSet<String>>,
    /// The vertex whose result is the stage's root; `None` before the first one.
    pub(crate) vertex: Option<VertexId>,
    /// Whether this stage had a CMD, which an ENTRYPOINT then keeps.
    has_cmd: bool,
    /// What lint remembers.
    pub(crate) lint: StageLint,
    /// How many ports its own instructions named.
    pub(crate) exposed: usize,
    /// About how many bytes all of this takes.
    pub(crate) bytes: usize,
}

/// What the whole build knows while it lowers a stage.
pub(crate) struct Scope<'a> {
    pub(crate) expander: Expander,
    pub(crate) global_args: &'a Environment,
    pub(crate) build_args: &'a BTreeMap<String, String>,
    pub(crate) epoch: Option<i64>,
}

impl StageState {
    /// A stage on a base image's config, or on scratch.
    pub(crate) fn new(mut image: ImageConfig) -> Self {
        image.created = None;
        let config = &mut image.config;
        config.on_build = None;
        let environment = config.env.get_or_insert_default();
        if !environment.iter().any(|pair| named(pair).0 == "PATH") {
            environment.push(format!("PATH={DEFAULT_PATH}"));
        }
        let mut configured = HashMap::new();
        environment.iter().enumerate().for_each(|(place, pair)| note(&mut configured, pair, place));
        if !config.working_dir.is_empty() {
            config.working_dir = working_directory("/", &config.working_dir);
        }
        let bytes = bytes_of(&image);
        let mut state = Self { configured: Arc::new(configured), bytes, ..Self::empty(image) };
        state.read_config();
        state
    }

    /// A stage that knows nothing of its config.
    fn empty(image: ImageConfig) -> Self {
        Self {
            image: Arc::new(image),
            history: Arc::default(),
            environment: Environment::default(),
            configured: Arc::default(),
            as_configured: false,
            build_args: Arc::default(),
            declared: Arc::default(),
            vertex: None,
            has_cmd: false,
            lint: StageLint::default(),
            exposed: 0,
            bytes: INSTRUCTION_BYTES,
        }
    }

    /// A stage on an earlier stage: everything but whether it had a CMD, and its ONBUILD triggers beside it.
    pub(crate) fn on_stage(base: &Self) -> (Self, Vec<String>) {
        let mut state = base.clone();
        state.has_cmd = false;
        state.lint = base.lint.on_stage();
        let triggers = match &state.image.config.on_build {
            Some(_) => Arc::make_mut(&mut state.image).config.on_build.take().unwrap_or_default(),
            None => Vec::new(),
        };
        // As in BuildKit, so that what an ARG had hidden is back, and of what is there twice the last one counts.
        state.read_config();
        (state, triggers)
    }

    /// Sets what the config sets.
    fn read_config(&mut self) {
        if self.as_configured {
            return;
        }
        let config = self.image.config.env.as_deref().unwrap_or_default();
        config.iter().map(|pair| named(pair)).for_each(|(name, value)| self.environment.set(name, value));
        self.bytes += config.len() * INSTRUCTION_BYTES;
        self.as_configured = true;
    }

    /// How many ports the config names.
    pub(crate) fn ports(&self) -> usize {
        self.image.config.exposed_ports.as_ref().map_or(0, BTreeMap::len)
    }

    /// The directory of relative paths.
    pub(crate) fn directory(&self) -> &str {
        match self.image.config.working_dir.as_str() {
            "" => "/",
            directory => directory,
        }
    }

    /// The shell of shell forms.
    pub(crate) fn shell(&self) -> Vec<String> {
        match &self.image.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        }
    }

    /// What lint knows of the stage.
    pub(crate) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            environment: &self.environment,
            declared: &self.declared,
            own_shell: self.image.config.shell.as_ref().is_some_and(|shell| !shell.is_empty()),
        }
    }

    /// The config, to change it: no longer shared.
    fn config(&mut self) -> &mut Config {
        &mut Arc::make_mut(&mut self.image).config
    }

    /// Sets a variable of the config's Env.
    fn set_env(&mut self, name: &str, value: &str) {
        let environment = Arc::make_mut(&mut self.image).config.env.get_or_insert_default();
        let pair = format!("{name}={value}");
        match self.configured.get(name) {
            Some(place) => {
                environment[*place] = pair;
                self.as_configured = false;
            }
            None => {
                self.as_configured &= named(&pair).0 == name;
                note(Arc::make_mut(&mut self.configured), &pair, environment.len());
                environment.push(pair);
            }
        }
    }

    /// Adds a history entry.
    pub(crate) fn commit(&mut self, text: String, layer: Option<VertexId>, epoch: Option<i64>) {
        let entry = History {
            created: epoch.map(crate::export::format_seconds),
            created_by: text,
            author: String::new(),
            comment: HISTORY_COMMENT.to_owned(),
            empty_layer: layer.is_none(),
        };
        let copies = if layer.is_some() { 1 } else { TEXT_COPIES };
        self.bytes += INSTRUCTION_BYTES + copies * entry.created_by.len();
        Arc::make_mut(&mut self.history).push(PlannedHistory { entry, layer });
    }

    /// Does an instruction that changes the config alone. Returns `false` for RUN, COPY, ADD and WORKDIR.
    /// `kind` is expanded, but for ARG.
    pub(crate) fn apply(&mut self, kind: &Kind, scope: &Scope<'_>) -> Result<bool> {
        let text = match kind {
            Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_) => return Ok(false),
            Kind::Arg(items) => return self.declare(items, scope).map(|()| true),
            Kind::Onbuild(trigger) => {
                self.bytes += INSTRUCTION_BYTES + trigger.expression.len();
                self.config().on_build.get_or_insert_default().push(trigger.expression.clone());
                return Ok(true);
            }
            Kind::Env(pairs) => {
                for pair in pairs {
                    self.set_env(&pair.key.text, &pair.value.text);
                    self.environment.set(&pair.key.text, &pair.value.text);
                }
                history::env(pairs)
            }
            Kind::Label(pairs) => {
                let labels = self.config().labels.get_or_insert_default();
                labels.extend(pairs.iter().map(|pair| (pair.key.text.clone(), pair.value.text.clone())));
                history::label(pairs)
            }
            Kind::Maintainer(name) => {
                Arc::make_mut(&mut self.image).author = Some(name.text.clone());
                history::maintainer(&name.text)
            }
            Kind::User(user) => {
                self.config().user = user.text.clone();
                history::user(&user.text)
            }
            Kind::Cmd(command) => {
                let arguments = command.arguments(&self.shell());
                let config = self.config();
                config.cmd = Some(arguments.clone());
                config.args_escaped = true;
                self.has_cmd = true;
                history::cmd(&arguments)
            }
            Kind::Entrypoint(command) => {
                let arguments = command.arguments(&self.shell());
                let has_cmd = self.has_cmd;
                let config = self.config();
                config.entrypoint = Some(arguments.clone());
                if !has_cmd {
                    config.cmd = None;
                }
                history::entrypoint(&arguments)
            }
            Kind::Shell(words) => {
                self.config().shell = Some(words.iter().map(|word| word.text.clone()).collect());
                history::shell(words)
            }
            Kind::StopSignal(signal) => {
                parse_signal(&signal.text).map_err(|error| error.at(signal.span))?;
                self.config().stop_signal = signal.text.clone();
                history::stop_signal(&signal.text)
            }
            Kind::Volume(paths) => {
                if paths.iter().any(|path| path.text.is_empty()) {
                    let message = "VOLUME specified can not be an empty string".to_owned();
                    return Err(Error::Instruction { message, span: paths[0].span, hint: None });
                }
                let volumes = self.config().volumes.get_or_insert_default();
                volumes.extend(paths.iter().map(|path| (path.text.clone(), Empty {})));
                history::volume(paths)
            }
            Kind::Expose(words) => {
                let ports = exposed(words)?;
                let known = self.config().exposed_ports.get_or_insert_default();
                known.extend(ports.iter().map(|port| (port.clone(), Empty {})));
                self.exposed += ports.len();
                history::expose(&ports)
            }
            Kind::Healthcheck(check) => {
                self.config().healthcheck = Some(healthcheck(check));
                history::healthcheck(check)
            }
        };
        self.commit(text, None, scope.epoch);
        Ok(true)
    }

    /// ARG: a build argument stands in for the default, a global ARG for a missing one.
    fn declare(&mut self, items: &[kiln_dockerfile::Arg], scope: &Scope<'_>) -> Result<()> {
        let mut declared = Vec::new();
        let mut together = Together::default();
        for item in items {
            let name = &item.name.text;
            let value = match (scope.build_args.get(name), &item.default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => {
                    let expanded = scope.expander.word(&default.text, &self.environment);
                    Some(expanded.map_err(|error| error.at(default.span))?.text)
                }
                (None, None) => scope.global_args.get(name).map(str::to_owned),
            };
            let counted = together.count(name, value.as_deref().unwrap_or_default());
            counted.map_err(|error| error.at(item.name.span))?;
            if let Some(value) = value.as_ref().filter(|_| !NON_ENVIRONMENT_ARGS.contains(&name.as_str())) {
                self.environment.set(name, value);
                self.as_configured = false;
            }
            Arc::make_mut(&mut self.build_args).push((name.clone(), value.clone()));
            Arc::make_mut(&mut self.declared).insert(name.clone());
            declared.push((name.clone(), value));
        }
        self.commit(history::arg(&declared), None, scope.epoch);
        Ok(())
    }
}

/// About how many bytes a base's config takes.
fn bytes_of(image: &ImageConfig) -> usize {
    let config = &image.config;
    let words = [&config.env, &config.entrypoint, &config.cmd, &config.on_build, &config.shell];
    let texts = [&image.os, &image.architecture, &config.user, &config.working_dir, &config.stop_signal]
        .into_iter()
        .chain(words.into_iter().flatten().flatten())
        .chain(config.labels.iter().flatten().flat_map(|(name, value)| [name, value]))
        .chain(config.volumes.iter().flatten().map(|(path, _)| path))
        .chain(config.exposed_ports.iter().flatten().map(|(port, _)| port))
        .chain(config.healthcheck.iter().flat_map(|check| &check.test))
        .chain(&image.author)
        .chain(image.history.iter().flat_map(|entry| [&entry.created_by, &entry.comment, &entry.author]));
    texts.filter(|text| !text.is_empty()).map(|text| INSTRUCTION_BYTES + TEXT_COPIES * text.len()).sum()
}

/// Notes where a name of the config's Env stands, unless it is there before.
fn note(configured: &mut HashMap<String, usize>, pair: &str, place: usize) {
    configured.entry(named(pair).0.to_owned()).or_insert(place);
}

/// Name and value of an entry of the config's Env.
fn named(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

/// The ports of an EXPOSE. A range is short to write: what is more than any config may have is refused before the next
/// one is spelt out.
fn exposed(words: &[kiln_dockerfile::Word]) -> Result<Vec<String>> {
    let mut ports = Vec::new();
    for word in words {
        ports.extend(parse_port(&word.text).map_err(|error| error.at(word.span))?);
        if ports.len() > MOST_PORTS {
            let message =
                format!("EXPOSE names more than {MOST_PORTS} ports, all that TCP, UDP and SCTP have");
            return Err(Error::Instruction { message, span: word.span, hint: None });
        }
    }
    Ok(ports)
}

fn healthcheck(check: &HealthcheckInstruction) -> Healthcheck {
    let nanoseconds = |duration: std::time::Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    let test = check.test();
    match check {
        HealthcheckInstruction::None => Healthcheck { test, ..Healthcheck::default() },
        HealthcheckInstruction::Check(check) => Healthcheck {
            test,
            interval: nanoseconds(check.interval),
            timeout: nanoseconds(check.timeout),
            start_period: nanoseconds(check.start_period),
            start_interval: nanoseconds(check.start_interval),
            retries: i64::from(check.retries),
        },
    }
}

/// `path` under `directory`, cleaned as Go's `path.Clean` does: absolute, without `.` and `..`.
pub(crate) fn absolute(directory: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("/{directory}/{path}") };
    kiln_dockerfile::clean_path(&joined)
}

/// The directory of a WORKDIR: an absolute path stays as it is written, a relative one is joined and cleaned
/// (BuildKit's `NormalizeWorkdir`).
pub(crate) fn working_directory(directory: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { absolute(directory, path) }
}

/// As [`absolute`], keeping a trailing `/` or `/.`, which tell COPY that the destination is a directory.
pub(crate) fn absolute_destination(directory: &str, path: &str) -> String {
    let path = if path.is_empty() || path == "." { "./" } else { path };
    let cleaned = absolute(directory, path);
    let is_directory = path.ends_with('/') || path.ends_with("/.");
    if is_directory && cleaned != "/" { format!("{cleaned}/") } else { cleaned }
}

/// A config made of nothing but Dockerfile instructions, as `import --change` and `commit --change` take them.
pub fn apply_changes(platform: &Platform, changes: &[String]) -> Result<ImageConfig> {
    let mut state = StageState::empty(ImageConfig::scratch(platform));
    let expander = Expander::new('\\');
    let (global_args, build_args) = (Environment::default(), BTreeMap::new());
    let scope = Scope { expander, global_args: &global_args, build_args: &build_args, epoch: None };
    for change in changes {
        let instructions = kiln_dockerfile::parse_changes(change).map_err(|diagnostics| {
            let reason = diagnostics.first().map_or("it is empty", |first| first.message.as_str());
            Error::Change { change: change.clone(), reason: reason.to_owned() }
        })?;
        for instruction in instructions {
            let kind = instruction.kind.expand(&expander, &state.environment)?.kind;
            if let Kind::Workdir(path) = &kind {
                let path = working_directory(state.directory(), &path.text);
                Arc::make_mut(&mut state.image).config.working_dir = path;
            } else if matches!(kind, Kind::Arg(_)) || !state.apply(&kind, &scope)? {
                let reason = format!("{} changes more than an image's config", kind.name());
                return Err(Error::Change { change: change.clone(), reason });
            }
        }
    }
    let mut image = Arc::unwrap_or_clone(state.image);
    // Builds alone say so.
    image.config.args_escaped = false;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(changes: &[&str]) -> Result<serde_json::Value> {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        let config = apply_changes(&Platform::host(), &changes)?.to_bytes();
        let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        Ok(config["config"].clone())
    }

    /// One line names an argument, large as it may be, a thousand times.
    #[test]
    fn what_one_instruction_declares_is_bounded() {
        let global_args: Environment = [("A".to_owned(), "x".repeat(1 << 20))].into_iter().collect();
        let build_args = BTreeMap::new();
        let expander = Expander::new('\\');
        let scope = Scope { expander, global_args: &global_args, build_args: &build_args, epoch: None };
        for (first, word) in [("ARG A", " A"), ("ARG A", " B=$A")] {
            let declare = |times: usize| {
                let text = format!("{first}{}", word.repeat(times));
                let kind = &kiln_dockerfile::parse_changes(&text).expect("an instruction")[0].kind;
                StageState::new(ImageConfig::scratch(&Platform::host())).apply(kind, &scope)
            };
            assert!(declare(10).expect("not too much"));
            let error = declare(100).expect_err("too much");
            assert!(error.to_string().contains("together"), "{error}");
        }
    }

    /// A stage on another one shares all that it does not change.
    #[test]
    fn stages_share_what_they_inherit() {
        let (global_args, build_args) = (Environment::default(), BTreeMap::new());
        let expander = Expander::new('\\');
        let scope = Scope { expander, global_args: &global_args, build_args: &build_args, epoch: None };
        let apply = |state: &mut StageState, text: &str| {
            let kind = &kiln_dockerfile::parse_changes(text).expect("an instruction")[0].kind;
            assert!(state.apply(kind, &scope).expect("applied"), "{text}");
        };
        let shares = |one: &StageState, other: &StageState| {
            (
                Arc::ptr_eq(&one.image, &other.image),
                Arc::ptr_eq(&one.history, &other.history),
                Arc::ptr_eq(&one.configured, &other.configured),
                one.environment.settings().is(&other.environment.settings()),
            )
        };
        let mut base = StageState::new(ImageConfig::scratch(&Platform::host()));
        for number in 0..10 {
            apply(&mut base, &format!("ENV a{number}=x"));
            apply(&mut base, &format!("LABEL a{number}=x"));
        }
        let bytes = base.bytes;
        assert!(bytes > 20 * INSTRUCTION_BYTES, "{bytes}");
        let (mut state, triggers) = StageState::on_stage(&base);
        assert!(triggers.is_empty());
        assert_eq!((shares(&base, &state), state.bytes), ((true, true, true, true), bytes));
        apply(&mut state, "USER x");
        assert_eq!(shares(&base, &state), (false, false, true, true));
        assert_eq!((base.image.config.user.as_str(), base.history.len(), state.history.len()), ("", 20, 21));
        // What was set again stands elsewhere than in the config: the next stage has the config's order.
        apply(&mut base, "ENV a3=y");
        let (state, _) = StageState::on_stage(&base);
        assert!(!shares(&base, &state).3);
        let last = state.environment.settings();
        assert_eq!(last.pairs().last(), Some(&("a9", "x")));
        assert!(last.pairs().contains(&("a3", "y")));
    }

    /// Those that Docker takes, and SHELL.
    #[test]
    fn changes_make_a_config() {
        let check = |changes: &[&str], member: &str, expect: serde_json::Value| {
            assert_eq!(changed(changes).expect("a config")[member], expect, "{changes:?}");
        };
        check(&["CMD [\"a\", \"b\"]"], "Cmd", json!(["a", "b"]));
        check(&["cmd a b"], "Cmd", json!(["/bin/sh", "-c", "a b"]));
        check(&["CMD a"], "ArgsEscaped", json!(null));
        check(&["ENTRYPOINT [\"a\"]", "CMD [\"b\"]"], "Entrypoint", json!(["a"]));
        check(&["ENV A=1 B=2", "ENV A=$B"], "Env", json!(["A=2", "B=2"]));
        check(&["EXPOSE 80 90/udp"], "ExposedPorts", json!({"80/tcp": {}, "90/udp": {}}));
        let error = changed(&[&format!("EXPOSE{}", " 0-65535".repeat(1000))]).expect_err("too many ports");
        assert!(error.to_string().contains("more than 196608 ports"), "{error}");
        let test = json!({"Test": ["CMD", "true"], "Interval": 5_000_000_000_u64});
        check(&["HEALTHCHECK --interval=5s CMD [\"true\"]"], "Healthcheck", test);
        check(&["HEALTHCHECK NONE"], "Healthcheck", json!({"Test": ["NONE"]}));
        check(&["LABEL a=b \"c d\"=e"], "Labels", json!({"a": "b", "c d": "e"}));
        let triggers = json!(["RUN echo x", "COPY . /app"]);
        check(&["ONBUILD RUN echo x", "ONBUILD COPY . /app"], "OnBuild", triggers);
        check(&["STOPSIGNAL SIGINT"], "StopSignal", json!("SIGINT"));
        check(&["USER app:1"], "User", json!("app:1"));
        check(&["VOLUME /a /b"], "Volumes", json!({"/a": {}, "/b": {}}));
        check(&["WORKDIR /a", "WORKDIR b"], "WorkingDir", json!("/a/b"));
        check(&["ENV A=1\n# of which\nENV B=${A}2\\\n3\n"], "Env", json!(["A=1", "B=123"]));
        check(&["SHELL [\"/bin/ash\", \"-c\"]", "CMD x"], "Cmd", json!(["/bin/ash", "-c", "x"]));
    }

    #[test]
    fn what_is_no_change_is_told() {
        for (change, expect) in [
            ("RUN true", "RUN changes more than an image's config"),
            ("COPY a b", "COPY changes more than an image's config"),
            ("ADD a b", "ADD changes more than an image's config"),
            ("ARG a", "ARG changes more than an image's config"),
            ("FROM scratch", "FROM changes more than an image's config"),
            ("ONBUILD ONBUILD RUN x", "chaining ONBUILD via ONBUILD ONBUILD isn't allowed"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("ENV A=b\nRUN true", "RUN changes more than an image's config"),
            ("", "it has no instruction"),
            ("NOPE x", "unknown instruction: NOPE"),
        ] {
            let told = changed(&[change]).expect_err(change).to_string();
            assert!(told.starts_with("cannot apply the change") && told.contains(expect), "{told}");
        }
    }

    #[test]
    fn paths_are_made_absolute() {
        for (directory, path, expect) in [
            ("/", "a", "/a"),
            ("/app", "../b", "/b"),
            ("/app", "/x/./y//z", "/x/y/z"),
            ("/", "../../..", "/"),
        ] {
            assert_eq!(absolute(directory, path), expect);
        }
        for (directory, path, expect) in [
            ("/app", ".", "/app/"),
            ("/app", "", "/app/"),
            ("/app", "d/", "/app/d/"),
            ("/app", "/d/.", "/d/"),
            ("/", "/", "/"),
            ("/", "x", "/x"),
        ] {
            assert_eq!(absolute_destination(directory, path), expect);
        }
    }
}
