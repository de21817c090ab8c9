//! From a syntax tree to a graph: which vertices a target needs, and the image config that comes out.

mod add;
mod arguments;
mod faults;
mod run;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiln_dockerfile::{
    CopySource as StageSource, Diagnostic, Dockerfile, Error as LanguageError, Expander, Instruction, Kind,
    Linter, SourceKind, Span, Stage, StageNames, Word, history, source_kind,
};
use kiln_graph::{Graph, Vertex, VertexId};
use kiln_oci::{ImageConfig, Platform, Reference};

use self::arguments::{declare_meta_args, default_args, lint_stages, source_date_epoch};
use self::faults::Faults;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::operation::{CopyKind, CopyOperation, CopySource, MountSource, Operation, ROOT, WorkdirOperation};
use crate::request::BuildRequest;
use crate::stage::{MOST_PORTS, PlannedHistory, Scope, StageState, absolute_destination, working_directory};

/// How many ports EXPOSE may name, and stages begin with, together: eight times as many as one config may have.
const MOST_PORTS_TOGETHER: usize = 8 * MOST_PORTS;
/// About how many bytes may be kept of all stages: more than a hundred of 10,000 instructions each. With variables, a few lines are
/// gigabytes, and so are many stages on a long one.
const MOST_BYTES_TOGETHER: usize = 512 << 20;
/// Longest chain of ONBUILD triggers that is accepted from one base image.
const MAX_TRIGGERS: usize = 1000;

/// Longest chain of stages, each needing the next.
const MAX_STAGES_DEEP: usize = 500;

/// A base image as the caller found it.
#[derive(Clone, Debug)]
pub(crate) struct BaseImage {
    /// The config, with its layers.
    pub(crate) config: ImageConfig,
    /// What the Dockerfile's name stands for, with its digest.
    pub(crate) pinned: String,
}

/// Finds base images: in the store today.
pub(crate) trait Bases {
    /// The image of a name for a platform. Idempotent.
    fn find(&mut self, reference: &Reference, platform: &Platform, span: Span) -> Result<BaseImage>;
}

/// What is to be built.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) graph: Graph<Operation>,
    /// The vertex whose result is the image's root; `None` for an image without layers.
    pub(crate) target: Option<VertexId>,
    /// The config without the new layers and history.
    pub(crate) image: ImageConfig,
    pub(crate) history: Vec<PlannedHistory>,
    /// What lint says of the stages that are wanted.
    pub(crate) findings: Vec<Diagnostic>,
}

/// Lowers the target stage and whatever it needs.
pub(crate) fn lower(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    bases: &mut dyn Bases,
) -> Result<Lowered> {
    lower_within(MOST_BYTES_TOGETHER, dockerfile, request, bases)
}

fn lower_within(
    most_bytes: usize,
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    bases: &mut dyn Bases,
) -> Result<Lowered> {
    let target = dockerfile.target_stage(request.target.as_deref())?;
    let expander = Expander::new(dockerfile.directives.escape);
    let mut global_args = default_args(dockerfile, request, &request.build_args, target);
    declare_meta_args(dockerfile, &request.build_args, expander, &mut global_args)?;
    let epoch = source_date_epoch(request, &global_args)?;
    let mut linter = Linter::new(dockerfile, &request.ignore);
    lint_stages(&mut linter, dockerfile, request, expander, &global_args, target);
    let mut lowering = Lowering {
        dockerfile,
        names: StageNames::of(dockerfile),
        request,
        bases,
        expander,
        global_args,
        epoch,
        depth: 0,
        ports: 0,
        bytes: 0,
        most_bytes,
        graph: Graph::new(),
        stages: BTreeMap::new(),
        images: BTreeMap::new(),
        downloads: BTreeMap::new(),
        repositories: HashMap::new(),
        linter,
        faults: Faults::default(),
    };
    match lowering.stage(target, 0) {
        Err(Error::Syntax(LanguageError::At { error, span })) => {
            lowering.faults.push(&error, span);
        }
        // What else is wrong may be so because of what was told.
        Err(_) if !lowering.faults.is_empty() => {}
        lowered => lowered?,
    }
    let mut state = lowering.stages.remove(&target).unwrap_or_else(|| unreachable_stage(request));
    if !request.labels.is_empty() {
        let labels = Arc::make_mut(&mut state.image).config.labels.get_or_insert_default();
        labels.extend(request.labels.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    let mut findings = lowering.linter.into_findings();
    findings.append(&mut lowering.faults.into_found());
    Ok(Lowered {
        graph: lowering.graph,
        target: state.vertex,
        image: Arc::unwrap_or_clone(state.image),
        history: Arc::unwrap_or_clone(state.history),
        findings,
    })
}

fn unreachable_stage(request: &BuildRequest) -> StageState {
    StageState::new(ImageConfig::scratch(&request.platform))
}

struct Lowering<'a> {
    dockerfile: &'a Dockerfile,
    names: StageNames<'a>,
    request: &'a BuildRequest,
    bases: &'a mut dyn Bases,
    expander: Expander,
    global_args: Environment,
    epoch: Option<i64>,
    /// How many stages are being lowered, each for the one before.
    depth: usize,
    graph: Graph<Operation>,
    /// How many ports EXPOSE named, and stages began with, so far.
    ports: usize,
    /// About how many bytes are kept of stages so far.
    bytes: usize,
    most_bytes: usize,
    /// Stages that are lowered to their end.
    stages: BTreeMap<usize, StageState>,
    /// Images of `--from` and `from=` that are no stages.
    images: BTreeMap<String, VertexId>,
    /// Downloads by address and checksum.
    downloads: BTreeMap<(String, Option<String>), VertexId>,
    /// Repositories that were added before.
    repositories: HashMap<crate::git::GitAddress, VertexId>,
    linter: Linter<'a>,
    /// What cannot be built, found while everything is looked at.
    faults: Faults,
}

/// Where a stage is: for names of vertices.
struct Steps {
    /// With a space behind it; empty in a Dockerfile of one stage, whatever its name, as in BuildKit.
    stage: String,
    next: usize,
    total: usize,
    trigger: bool,
}

impl Steps {
    /// `[builder 2/4] RUN make`.
    fn name(&mut self, text: &str) -> String {
        self.next += 1;
        let width = self.total.max(1).ilog10() as usize + 1;
        let trigger = if self.trigger { "ONBUILD " } else { "" };
        format!("[{}{:>width$}/{}] {trigger}{text}", self.stage, self.next, self.total)
    }
}

impl Lowering<'_> {
    /// Lowers a stage unless that is done; `depth` bounds chains of stages.
    fn stage(&mut self, index: usize, depth: usize) -> Result<()> {
        if self.stages.contains_key(&index) {
            return Ok(());
        }
        let stage = &self.dockerfile.stages[index];
        if depth > MAX_STAGES_DEEP {
            let message = format!("more than {MAX_STAGES_DEEP} stages are built on one another");
            return Err(instruction_error(message, stage.span));
        }
        self.depth = depth;
        let base = self.global_word(&stage.base)?;
        if base.is_empty() {
            return Err(instruction_error(
                format!("base name ({}) should not be blank", stage.base.text),
                stage.base.span,
            ));
        }
        let platform = self.stage_platform(stage)?;
        let earlier = self.names.base_stage(index, &base);
        let is_image = earlier.is_none() && base != "scratch";
        let mut steps = Steps {
            stage: match self.dockerfile.stages.len() {
                1 => String::new(),
                _ => format!("{} ", stage.display_name()),
            },
            next: 0,
            total: usize::from(is_image) + stage.instructions.iter().filter(|i| makes_layer(&i.kind)).count(),
            trigger: false,
        };
        let (mut state, triggers) = match earlier {
            Some(earlier) => {
                self.stage(earlier, depth + 1)?;
                let base = &self.stages[&earlier];
                let (state, triggers) = StageState::on_stage(base);
                let shares_all =
                    stage.instructions.is_empty() && triggers.is_empty() && state.bytes == base.bytes;
                self.count_ports(state.ports(), stage.span)?;
                // What it changes is no longer shared.
                self.count_bytes(if shares_all { 0 } else { state.bytes }, stage.span)?;
                steps.total += triggers.iter().filter(|trigger| trigger_makes_layer(trigger)).count();
                (state, triggers)
            }
            None if base == "scratch" => {
                let mut image = ImageConfig::scratch(&platform);
                image.config.working_dir = "/".to_owned();
                (StageState::new(image), Vec::new())
            }
            None => {
                let (state, triggers) = self.on_image(stage, &base, &platform, &mut steps)?;
                self.count_bytes(state.bytes, stage.span)?;
                (state, triggers)
            }
        };
        self.triggers(&mut state, index, &triggers, &mut steps, stage.span)?;
        for instruction in &stage.instructions {
            if let Err(error) = self.instruction(&mut state, index, instruction, &mut steps) {
                self.faults.note(error, instruction)?;
            }
        }
        self.stages.insert(index, state);
        self.depth = depth.saturating_sub(1);
        Ok(())
    }

    /// A word of FROM.
    fn global_word(&self, word: &Word) -> Result<String> {
        let expanded = self.expander.word(&word.text, &self.global_args);
        Ok(expanded.map_err(|error| error.at(word.span))?.text)
    }

    fn stage_platform(&self, stage: &Stage) -> Result<Platform> {
        let Some(word) = &stage.platform else { return Ok(self.request.platform.clone()) };
        let text = self.global_word(word)?;
        if text.is_empty() {
            let message = format!("empty platform value from expression {}", word.text);
            return Err(instruction_error(message, word.span));
        }
        text.parse().map_err(|error: kiln_oci::PlatformError| instruction_error(error.to_string(), word.span))
    }

    fn on_image(
        &mut self,
        stage: &Stage,
        base: &str,
        platform: &Platform,
        steps: &mut Steps,
    ) -> Result<(StageState, Vec<String>)> {
        let image = self.base_image(base, platform, stage.base.span)?;
        self.linter.base_platform(
            stage,
            (&image.config.os, &image.config.architecture),
            (&platform.os, &platform.architecture),
        );
        let triggers = image.config.config.on_build.clone().unwrap_or_default();
        let count = triggers.iter().filter(|trigger| trigger_makes_layer(trigger)).count();
        steps.total += count;
        let layers = image.config.rootfs.diff_ids.clone();
        let mut state = StageState::new(image.config);
        if layers.is_empty() {
            steps.next += 1;
        } else {
            let name = steps.name(&format!("FROM {}", image.pinned));
            let vertex = Vertex::new(Operation::Base(layers), name).span(stage.span.start..stage.span.end);
            state.vertex = Some(self.graph.add(vertex));
        }
        Ok((state, triggers))
    }

    /// Runs the base's ONBUILD triggers before the stage's own instructions.
    fn triggers(
        &mut self,
        state: &mut StageState,
        stage: usize,
        triggers: &[String],
        steps: &mut Steps,
        span: Span,
    ) -> Result<()> {
        if triggers.len() > MAX_TRIGGERS {
            let message =
                format!("the base image has {} ONBUILD triggers; at most {MAX_TRIGGERS}", triggers.len());
            return Err(instruction_error(message, span));
        }
        steps.trigger = true;
        for trigger in triggers {
            let unreadable = |reason: &str| {
                let message =
                    format!("the base image's ONBUILD trigger {trigger:?} cannot be read: {reason}");
                instruction_error(message, span)
            };
            let instruction = kiln_dockerfile::parse_trigger(trigger, span).map_err(|diagnostics| {
                unreadable(diagnostics.first().map_or("it is empty", |first| first.message.as_str()))
            })?;
            let known = self.faults.len();
            let done = self.instruction(state, stage, &instruction, steps);
            let noted = done.or_else(|error| self.faults.note(error, &instruction));
            self.faults.tell_trigger(known, trigger, span);
            noted.map_err(|error| with_hint(error, span, || faults::of_trigger(trigger)))?;
        }
        steps.trigger = false;
        Ok(())
    }

    /// Counts the ports that an EXPOSE names, or that a stage begins with. A few lines with ranges would else
    /// fill the memory with configs and histories.
    fn count_ports(&mut self, ports: usize, span: Span) -> Result<()> {
        self.ports += ports;
        if self.ports <= MOST_PORTS_TOGETHER {
            return Ok(());
        }
        let message = format!("EXPOSE and stages' bases name more than {MOST_PORTS_TOGETHER} ports together");
        Err(instruction_error(message, span))
    }

    /// Counts what is kept.
    fn count_bytes(&mut self, bytes: usize, span: Span) -> Result<()> {
        self.bytes += bytes;
        if self.bytes <= self.most_bytes {
            return Ok(());
        }
        let most = self.most_bytes >> 20;
        let message = format!(
            "with variables filled in, the stages that are wanted take more than {most} MiB together"
        );
        Err(instruction_error(message, span))
    }

    fn instruction(
        &mut self,
        state: &mut StageState,
        stage: usize,
        instruction: &Instruction,
        steps: &mut Steps,
    ) -> Result<()> {
        let (bytes, exposed) = (state.bytes, state.exposed);
        self.step(state, stage, instruction, steps)?;
        self.count_ports(state.exposed - exposed, instruction.span)?;
        self.count_bytes(state.bytes - bytes, instruction.span)
    }

    fn step(
        &mut self,
        state: &mut StageState,
        stage: usize,
        instruction: &Instruction,
        steps: &mut Steps,
    ) -> Result<()> {
        let expanded = instruction.kind.expand(&self.expander, &state.environment)?;
        if !steps.trigger {
            let mut remembered = std::mem::take(&mut state.lint);
            self.linter.instruction(&mut remembered, instruction, &expanded, &state.surroundings());
            state.lint = remembered;
        }
        let global_args = std::mem::take(&mut self.global_args);
        let scope = Scope {
            expander: self.expander,
            global_args: &global_args,
            build_args: &self.request.build_args,
            epoch: self.epoch,
        };
        let applied = state.apply(&expanded.kind, &scope);
        self.global_args = global_args;
        if applied? {
            return Ok(());
        }
        let shown = self.shown(state, instruction);
        let filled_in = expanded.lookups.iter().map(|lookup| lookup.expansion.text.len());
        self.count_bytes(shown.len() + filled_in.sum::<usize>(), instruction.span)?;
        let span = instruction.span.start..instruction.span.end;
        let (operation, inputs, text) = match &expanded.kind {
            Kind::Run(run) => self.run(state, stage, run, &expanded.mounts, instruction)?,
            Kind::Copy(copy) => self.copy(state, stage, copy)?,
            Kind::Add(add) => self.add(state, add)?,
            Kind::Workdir(path) => {
                let path = working_directory(state.directory(), &path.text);
                Arc::make_mut(&mut state.image).config.working_dir = path.clone();
                let text = history::workdir(&path);
                if path == "/" {
                    state.commit(text, None, self.epoch);
                    return Ok(());
                }
                let user = state.image.config.user.clone();
                let operation = WorkdirOperation { path, user, epoch: self.epoch };
                (Operation::Workdir(operation), Vec::new(), text)
            }
            _ => return Ok(()),
        };
        let mut vertex = Vertex::new(operation, steps.name(&shown)).span(span);
        if let Some(parent) = state.vertex {
            vertex = vertex.input(ROOT, parent);
        } else {
            let scratch = self.scratch();
            vertex = vertex.input(ROOT, scratch);
        }
        for (role, input) in inputs {
            vertex = vertex.input(role, input);
        }
        let id = self.graph.add(vertex);
        state.vertex = Some(id);
        state.commit(text, Some(id), self.epoch);
        Ok(())
    }

    /// The instruction as people are shown it: variables that are set are filled in.
    fn shown(&self, state: &StageState, instruction: &Instruction) -> String {
        let expander = Expander::for_display(self.dockerfile.directives.escape);
        let original = instruction.original.trim();
        let text =
            expander.word(original, &state.environment).map_or_else(|_| original.to_owned(), |e| e.text);
        let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((&text, ""));
        let mut shown = format!("{} {}", keyword.to_uppercase(), rest.trim());
        if let Kind::Run(run) = &instruction.kind
            && let Some(first) = run.heredocs.first()
        {
            let mut lines = first.content.trim().lines();
            let more = if lines.clone().count() > 1 { "..." } else { "" };
            shown = format!("{shown} ({}{more})", lines.next().unwrap_or_default());
        }
        shown
    }

    fn scratch(&mut self) -> VertexId {
        if let Some(id) = self.images.get("scratch") {
            return *id;
        }
        let id = self.graph.add(Vertex::new(Operation::Base(Vec::new()), "[internal] scratch"));
        self.images.insert("scratch".to_owned(), id);
        id
    }

    /// The vertex of a stage or image that COPY or a mount reads.
    fn source(&mut self, asking: usize, source: StageSource, span: Span) -> Result<VertexId> {
        match source {
            StageSource::Stage(index) if index < asking => {
                let depth = self.depth + 1;
                self.stage(index, depth)?;
                Ok(match self.stages[&index].vertex {
                    Some(vertex) => vertex,
                    None => self.scratch(),
                })
            }
            StageSource::Stage(index) => {
                let name = self.dockerfile.stages[index].display_name();
                let message = format!("stage {name:?} needs to be defined before the stage that uses it");
                Err(instruction_error(message, span))
            }
            StageSource::Image(name) if name == "scratch" => Ok(self.scratch()),
            StageSource::Image(name) => self.image_source(&name, span),
        }
    }

    fn base_image(&mut self, name: &str, platform: &Platform, span: Span) -> Result<BaseImage> {
        let reference =
            name.parse::<Reference>().map_err(|error| instruction_error(error.to_string(), span))?;
        self.bases.find(&reference.or_latest(), platform, span).map_err(|error| match error {
            Error::NoBase { reference, store, span, .. } => {
                Error::NoBase { reference, store, span, near_stage: self.dockerfile.near_stage(name) }
            }
            error => error,
        })
    }

    fn image_source(&mut self, name: &str, span: Span) -> Result<VertexId> {
        if let Some(id) = self.images.get(name) {
            return Ok(*id);
        }
        let image = self.base_image(name, &self.request.platform, span)?;
        let operation = Operation::Base(image.config.rootfs.diff_ids);
        let id = self.graph.add(Vertex::new(operation, format!("FROM {}", image.pinned)));
        self.images.insert(name.to_owned(), id);
        Ok(id)
    }

    fn copy(
        &mut self,
        state: &StageState,
        stage: usize,
        copy: &kiln_dockerfile::Copy,
    ) -> Result<LoweredStep> {
        let mut inputs = Vec::new();
        let mut from = MountSource::Context;
        if let Some(word) = &copy.from {
            let plain = self.expander.word(&word.text, &kiln_dockerfile::NoVariables)?.text;
            if plain != word.text {
                let message = "variable expansion is not supported for --from, define a new stage with FROM using \
                               ARG from global scope as a workaround";
                return Err(instruction_error(message.to_owned(), word.span));
            }
            let source = self.names.copy_source(&word.text)?;
            inputs.push(("source".to_owned(), self.source(stage, source, word.span)?));
            from = MountSource::Input(1);
        }
        let transfer = &copy.transfer;
        if let Some(url) = transfer.sources.iter().find(|source| is_url(&source.text)) {
            return Err(instruction_error("source can't be a URL for COPY".to_owned(), url.span));
        }
        let is_git =
            |source: &&kiln_dockerfile::Word| matches!(source_kind(&source.text), SourceKind::Git(_));
        if let Some(git) = transfer.sources.iter().find(is_git) {
            return Err(instruction_error("source can't be a git ref for COPY".to_owned(), git.span));
        }
        let operation = self.transfer(state, transfer, from, CopyKind::Plain, copy.parents);
        Ok((Operation::Copy(Box::new(operation)), inputs, history::copy(copy)))
    }

    fn transfer(
        &mut self,
        state: &StageState,
        transfer: &kiln_dockerfile::Transfer,
        from: MountSource,
        kind: CopyKind,
        parents: bool,
    ) -> CopyOperation {
        self.faults.note_patterns(transfer);
        let paths = transfer.sources.iter().map(|source| CopySource::Path(source.text.clone()));
        let inline = transfer
            .inline
            .iter()
            .map(|file| CopySource::Inline { name: file.name.text.clone(), content: file.content.clone() });
        CopyOperation {
            sources: paths.chain(inline).collect(),
            from,
            destination: absolute_destination(state.directory(), &transfer.destination.text),
            owner: transfer.chown.as_ref().map(|word| word.text.clone()),
            mode: transfer.chmod.as_ref().map(|word| word.text.clone()),
            exclude: transfer.exclude.iter().map(|word| word.text.clone()).collect(),
            parents,
            link: transfer.link,
            kind,
            epoch: self.epoch,
        }
    }
}

/// An operation, its further inputs, and its history text.
type LoweredStep = (Operation, Vec<(String, VertexId)>, String);

fn makes_layer(kind: &Kind) -> bool {
    matches!(kind, Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_))
}

fn trigger_makes_layer(trigger: &str) -> bool {
    let keyword = trigger.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    matches!(keyword.as_str(), "RUN" | "COPY" | "ADD" | "WORKDIR")
}

fn is_url(source: &str) -> bool {
    matches!(source_kind(source), SourceKind::Url { .. })
}

fn instruction_error(message: String, span: Span) -> Error {
    Error::Instruction { message, span, hint: None }
}

/// Gives an error that stands at `place` a hint, unless it has one.
fn with_hint(error: Error, place: Span, of: impl FnOnce() -> String) -> Error {
    match error {
        Error::Instruction { message, span, hint: None } if span == place => {
            Error::Instruction { message, span, hint: Some(of()) }
        }
        error => error,
    }
}

/// Gives an error without a place the instruction's.
fn at(error: Error, span: Span) -> Error {
    match error {
        Error::Syntax(error) => instruction_error(error.to_string(), span),
        Error::NotAllowed { .. } | Error::Unsupported(_) => instruction_error(error.to_string(), span),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{CacheUse, Executions, Lent};

    struct NoBases;

    impl Bases for NoBases {
        fn find(&mut self, reference: &Reference, _: &Platform, _: Span) -> Result<BaseImage> {
            panic!("{reference} is asked for");
        }
    }

    fn request(dockerfile: &str, build_args: &[(&str, &str)]) -> BuildRequest {
        BuildRequest {
            context: ".".into(),
            context_kind: crate::request::ContextKind::Lasting,
            dockerfile: dockerfile.as_bytes().to_vec(),
            dockerfile_name: "Dockerfile".to_owned(),
            ignore: Vec::new(),
            target: None,
            build_args: build_args
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            labels: BTreeMap::new(),
            names: Vec::new(),
            cache: CacheUse::Records,
            network: crate::request::NetworkMode::Default,
            allowed: Vec::new(),
            lent: Lent::default(),
            resolv_conf: Vec::new(),
            platform: Platform::host(),
            parallelism: 1,
            executions: Executions::Allowed(kiln_runtime::Isolation::Namespaces),
            remote: kiln_remote::Settings::default(),
            git: crate::git::GitProgram::default(),
        }
    }

    /// HTTP_PROXY in the environment, and so in the key, of a Dockerfile's one RUN.
    #[track_caller]
    fn proxy(instructions: &str, build_arg: Option<&str>) -> Option<String> {
        let dockerfile = format!("FROM scratch\n{instructions}\nRUN [\"x\"]\n");
        let given: Vec<_> = build_arg.map(|value| ("HTTP_PROXY", value)).into_iter().collect();
        let request = request(&dockerfile, &given);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let lowered = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered");
        let runs = lowered.graph.vertices().find_map(|(_, vertex)| match &vertex.operation {
            Operation::Run(run) => Some(&run.environment),
            _ => None,
        });
        let found = runs.expect("a RUN").pairs().into_iter().find(|(name, _)| *name == "HTTP_PROXY");
        found.map(|(_, value)| value.to_owned())
    }

    /// Rule and line of what lint finds.
    #[track_caller]
    fn lint(request: &BuildRequest, expect: &[&str]) {
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let lowered = lower(&parsed.dockerfile, request, &mut NoBases).expect("lowered");
        let found: Vec<String> = lowered
            .findings
            .iter()
            .map(|finding| format!("{} {}", finding.rule.unwrap_or_default(), finding.span.line))
            .collect();
        assert_eq!(found, expect, "{}", String::from_utf8_lossy(&request.dockerfile));
    }

    /// BuildKit names no stage where there is but one.
    #[test]
    fn steps_name_their_stage_if_there_are_several() {
        #[track_caller]
        fn check(dockerfile: &str, expect: &[&str]) {
            let request = request(dockerfile, &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            let lowered = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered");
            let names = lowered.graph.vertices().map(|(_, vertex)| vertex.name.as_str());
            let names: Vec<&str> = names.filter(|name| !name.starts_with("[internal]")).collect();
            assert_eq!(names, expect);
        }
        check("FROM scratch\nWORKDIR /a\nWORKDIR /b\n", &["[1/2] WORKDIR /a", "[2/2] WORKDIR /b"]);
        check("FROM scratch AS one\nWORKDIR /a\n", &["[1/1] WORKDIR /a"]);
        check("FROM scratch\nWORKDIR /a\nFROM scratch\nWORKDIR /b\n", &["[stage-1 1/1] WORKDIR /b"]);
        check("FROM scratch\nFROM scratch AS two\nWORKDIR /b\n", &["[two 1/1] WORKDIR /b"]);
    }

    #[test]
    fn lint_sees_what_each_instruction_sees() {
        lint(
            &request("FROM scratch\nENV A=$B B=$A\nLABEL c=$B\n", &[]),
            &["UndefinedVar 2", "UndefinedVar 2"],
        );
        lint(&request("FROM scratch\nARG B\nENV A=$B\n", &[]), &[]);
        lint(&request("FROM scratch\nSHELL [\"x\"]\nCMD y\n", &[]), &[]);
        lint(&request("FROM scratch\nCMD y\n", &[]), &["JSONArgsRecommended 2"]);
        // A stage knows where the one below it is; what it says itself counts anew.
        let stages = "FROM scratch AS a\nWORKDIR /x\nCMD [\"a\"]\nFROM a\nWORKDIR y\nCMD [\"b\"]\n";
        lint(&request(stages, &[]), &[]);
        // Only what is wanted is lint's to judge.
        lint(&request("FROM scratch\nCMD y\nFROM scratch\n", &[]), &[]);
    }

    /// A range of a few letters is many ports, and so is a stage on a stage that has them.
    #[test]
    fn ports_are_bounded_over_all_stages() {
        let lowered = |file: &str| {
            let request = request(file, &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            lower(&parsed.dockerfile, &request, &mut NoBases).map(|lowered| lowered.image)
        };
        let all = "EXPOSE 0-65535/udp\n";
        let each: String = (1..=5_000).map(|port| format!("EXPOSE {port}\n")).collect();
        let image = lowered(&format!("FROM scratch\n{each}")).expect("few");
        assert_eq!(image.config.exposed_ports.expect("ports").len(), 5_000);
        let image = lowered(&format!("FROM scratch\n{}", all.repeat(5))).expect("few");
        assert_eq!(image.config.exposed_ports.expect("ports").len(), 65_536);
        let stages: String = (0..40).map(|number| format!("FROM s{number} AS s{}\n", number + 1)).collect();
        for file in
            [format!("FROM scratch\n{}", all.repeat(40)), format!("FROM scratch AS s0\n{all}{stages}")]
        {
            let error = lowered(&file).expect_err("too many");
            assert!(error.to_string().contains("ports together"), "{error}");
        }
    }

    /// A few lines with variables are gigabytes, and so are many stages on a long one that each change something.
    #[test]
    fn bytes_are_bounded_over_all_stages() {
        let lowered = |file: &str| {
            let request = request(file, &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
            lower_within(16 << 20, &parsed.dockerfile, &request, &mut NoBases).map(drop)
        };
        let long = format!("ENV A={}\n", "x".repeat(60_000));
        let many = "$A".repeat(10);
        for line in
            [format!("LABEL a={many}\n"), format!("RUN x {many}\n"), format!("COPY <<E /a\n{many}\nE\n")]
        {
            let error = lowered(&format!("FROM scratch\n{long}{}", line.repeat(40))).expect_err("too much");
            assert!(error.to_string().contains("take more than 16 MiB together"), "{error}");
            lowered(&format!("FROM scratch\n{long}{}", line.repeat(3))).expect("not too much");
        }
        const STAGES: usize = 500;
        let labels: String = (0..1_000).map(|number| format!("LABEL l{number}=x\n")).collect();
        let stages = |instruction: &str| {
            let stages: String =
                (0..STAGES).map(|number| format!("FROM s AS s{number}\n{instruction}")).collect();
            let copies: String = (0..STAGES).map(|number| format!("COPY --from=s{number} /a /a\n")).collect();
            format!("FROM scratch AS s\n{labels}{stages}FROM scratch\n{copies}")
        };
        lowered(&stages("")).expect("they share all");
        let error = lowered(&stages("USER x\n")).expect_err("too much");
        assert!(error.to_string().contains("take more than 16 MiB together"), "{error}");
    }

    /// Any name is an image of an architecture that is nobody's.
    struct ForeignBases;

    impl Bases for ForeignBases {
        fn find(&mut self, reference: &Reference, platform: &Platform, _: Span) -> Result<BaseImage> {
            let mut config = ImageConfig::scratch(platform);
            "pdp11".clone_into(&mut config.architecture);
            Ok(BaseImage { config, pinned: reference.to_string() })
        }
    }

    #[test]
    fn lint_tells_of_a_base_for_another_platform() {
        let request = request("FROM far\n", &[]);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let findings = lower(&parsed.dockerfile, &request, &mut ForeignBases).expect("lowered").findings;
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!(finding.rule, Some("InvalidBaseImagePlatform"));
        assert!(
            finding.message.starts_with("the base image is for linux/pdp11, not for linux/"),
            "{finding:?}"
        );
    }

    /// For how long this thread was on a processor: other work on the machine does not count.
    fn worked() -> std::time::Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.try_into().expect("a clock that goes forward")
    }

    /// Neither many unset variables beside many set ones, nor long comments above many findings.
    #[test]
    fn lint_is_bounded() {
        let before = worked();
        let set: String = (0..2_000).map(|number| format!("ENV A{number}=x\n")).collect();
        let unset: String = (0..20_000).map(|number| format!("$u{number}")).collect();
        let file = format!("FROM scratch\n{set}LABEL a={unset}\n");
        let lowered = |file: &str| {
            let request = request(file, &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered").findings.len()
        };
        assert_eq!(lowered(&file), kiln_dockerfile::MAX_DIAGNOSTICS);
        let names: String = (0..10_000).map(|number| format!("r{number},")).collect();
        let ports = "1/Tcp ".repeat(10_000);
        assert_eq!(
            lowered(&format!("FROM scratch\n# check=skip={names}\nEXPOSE {ports}\n")),
            kiln_dockerfile::MAX_DIAGNOSTICS
        );
        assert_eq!(lowered(&format!("# check=skip=all\n{file}")), 0);
        // Nor many words that cannot be expanded, whatever their messages hold.
        let long = "x".repeat(128 << 10);
        let required = "LABEL l=${x?$A}\n".repeat(20_000);
        let request = request(&format!("FROM scratch\nENV A={long}\n{required}"), &[]);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let findings = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered").findings;
        let told: usize = findings.iter().map(|found| found.message.len()).sum();
        assert!(
            findings.len() <= 2 * kiln_dockerfile::MAX_DIAGNOSTICS && told < 10 << 20,
            "{} {told}",
            findings.len()
        );
        // Nor many patterns of an ignore file beside many sources.
        let copies: String = (0..3_000).map(|number| format!("COPY a{number} /\n")).collect();
        let mut request = super::tests::request(&format!("FROM scratch\n{copies}"), &[]);
        request.ignore = b"*x\n".repeat(200_000);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered");
        let worked = worked() - before;
        assert!(worked < std::time::Duration::from_secs(60), "{worked:?}");
    }

    /// Neither many uses of many variables, nor of many that are declared and not set.
    #[test]
    fn variables_are_bounded() {
        const MANY: usize = 20_000;
        let before = worked();
        let file = |line: &dyn Fn(usize) -> String, last: &str| {
            let lines: String = (0..MANY).map(line).collect();
            let request = request(&format!("FROM scratch\n{lines}{last}RUN [\"x\"]\n"), &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
            lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered")
        };
        let uses = |line: usize| {
            (0..MANY / 4).map(|number| format!("$a{}", number * 4 + line % 4)).collect::<String>()
        };
        let lines: String = (0..40).map(|line| format!("LABEL l{line}={}\n", uses(line))).collect();
        let config = file(&|number| format!("ENV a{number}=x\n"), &lines).image.config;
        assert_eq!(config.labels.expect("labels")["l39"], "x".repeat(MANY / 4));
        let environment = config.env.expect("variables");
        assert_eq!(environment.len(), 1 + MANY);
        assert_eq!(environment[MANY], format!("a{}=x", MANY - 1));
        let lowered = file(&|number| format!("ARG a{number}\nLABEL b=$a{number}\n"), "");
        assert!(lowered.findings.is_empty(), "{:?}", lowered.findings);
        let worked = worked() - before;
        assert!(worked < std::time::Duration::from_secs(20), "{worked:?}");
    }

    /// What steps see is there once, however many of them see it.
    #[test]
    fn steps_share_variables() {
        const STEPS: usize = 1000;
        let lines: String = (0..10 * STEPS)
            .map(|number| format!("ENV a{number}=x\n{}", if number % 10 == 9 { "RUN [\"x\"]\n" } else { "" }))
            .collect();
        let request = request(&format!("FROM scratch\n{lines}"), &[]);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let lowered = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered");
        let runs: Vec<_> = lowered
            .graph
            .vertices()
            .filter_map(|(_, vertex)| match &vertex.operation {
                Operation::Run(run) => Some(&run.environment),
                _ => None,
            })
            .collect();
        assert_eq!(runs.len(), STEPS);
        assert_eq!(runs[STEPS - 1].pairs().len(), 1 + 10 * STEPS);
        let settings = runs.iter().copied();
        assert_eq!(crate::environment::tests::distinct(settings), 1 + 10 * STEPS);
    }

    /// A name that a base has more than once: the last one is read until it is set; of the config the first one is set.
    #[test]
    fn variables_that_bases_have_twice() {
        struct Bases;
        impl super::Bases for Bases {
            fn find(&mut self, reference: &Reference, platform: &Platform, _: Span) -> Result<BaseImage> {
                let mut config = ImageConfig::scratch(platform);
                config.config.env = Some(["A=1", "B", "A=2", "C=D=1"].map(str::to_owned).to_vec());
                Ok(BaseImage { config, pinned: reference.to_string() })
            }
        }
        let request = request("FROM x\nENV A=3 B=4 C=5\nENV D=$A$B$C N=C=6\nENV $N=7\nENV $N=8 C=9\n", &[]);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let lowered = lower(&parsed.dockerfile, &request, &mut Bases).expect("lowered");
        let path = format!("PATH={}", crate::stage::DEFAULT_PATH);
        let expect = ["A=3", "B=4", "A=2", "C=9", &path, "D=345", "N=C=6", "C=6=7", "C=6=8"];
        assert_eq!(lowered.image.config.env.expect("variables"), expect);
    }

    #[test]
    fn malformed_patterns_are_refused_where_they_stand() {
        for (instruction, word) in [
            ("COPY a[ /o/", "a["),
            ("COPY fine* [ /o/", "["),
            ("COPY [] /o/", "[]"),
            ("COPY [-] /o/", "[-]"),
            ("COPY [^] /o/", "[^]"),
            ("ADD *[ /o/", "*["),
            ("ADD d/[ /o/", "d/["),
            ("COPY a*[ /o/", "a*["),
            ("COPY [a/b] /o/", "[a/b]"),
            ("COPY --parents d/./x[ /o/", "d/./x["),
            ("COPY --exclude=*.md --exclude=y[ . /o/", "y["),
        ] {
            let request = request(&format!("FROM scratch\n{instruction}\n"), &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            let findings = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered").findings;
            let [fault] = findings.as_slice() else { panic!("{instruction}: {findings:?}") };
            assert_eq!(fault.severity, kiln_dockerfile::Severity::Error, "{instruction}");
            assert_eq!(fault.message, format!("syntax error in pattern {word:?}"), "{instruction}");
            let place = &request.dockerfile[fault.span.start..fault.span.end];
            assert!(String::from_utf8_lossy(place).contains(word), "{instruction}");
        }
        for instruction in ["COPY a\\\\[ /o/", "COPY [[] [a-z]* /o/", "ADD https://localhost/a[ /o/"] {
            let request = request(&format!("FROM scratch\n{instruction}\n"), &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            let findings = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered").findings;
            assert_eq!(findings, [], "{instruction}");
        }
    }

    #[test]
    fn lint_of_bases_goes_without_build_arguments() {
        let file = "ARG BASE\nFROM $BASE\n";
        lint(&request(file, &[("BASE", "scratch")]), &["InvalidDefaultArgInFrom 2"]);
        let misspelt = "ARG BASE=scratch\nFROM scratch$BSAE\n";
        lint(&request(misspelt, &[]), &["UndefinedArgInFrom 2"]);
    }

    #[test]
    fn all_words_that_cannot_be_expanded_are_told_where_they_stand() {
        let text = "FROM scratch\nENV A=${B\nWORKDIR /w${C:?need}\nARG X=${Y:?}\nLABEL l=${X:?}${A:?}\n\
            ENV D=1 E=${E:^x}\nEXPOSE 1-x\n\
            EXPOSE 1 2/${Z}x\nSTOPSIGNAL SIG${Z}NOT\n";
        let request = request(text, &[]);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let findings = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered").findings;
        let errors = findings.iter().filter(|found| found.severity == kiln_dockerfile::Severity::Error);
        let places: Vec<_> =
            errors.map(|found| (found.span.line, &text[found.span.start..found.span.end])).collect();
        assert_eq!(
            places,
            [
                (2, "${B"),
                (3, "/w${C:?need}"),
                (4, "${Y:?}"),
                (6, "${E:^x}"),
                (7, "1-x"),
                (8, "2/${Z}x"),
                (9, "SIG${Z}NOT")
            ]
        );
        for (text, place) in [("FROM ${x\n", "${x"), ("FROM --platform=${x scratch\n", "--platform=${x")] {
            let request = super::tests::request(text, &[]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            let findings = lower(&parsed.dockerfile, &request, &mut NoBases).expect("lowered").findings;
            let errors = findings.iter().filter(|found| found.severity == kiln_dockerfile::Severity::Error);
            assert_eq!(
                errors.map(|found| &text[found.span.start..found.span.end]).collect::<Vec<_>>(),
                [place]
            );
        }
    }

    /// A base with triggers, whichever its name.
    struct Triggers<'a>(&'a [&'a str]);

    impl Bases for Triggers<'_> {
        fn find(&mut self, reference: &Reference, platform: &Platform, _: Span) -> Result<BaseImage> {
            let mut config = ImageConfig::scratch(platform);
            config.config.on_build = Some(self.0.iter().map(|&trigger| trigger.to_owned()).collect());
            Ok(BaseImage { config, pinned: reference.to_string() })
        }
    }

    #[test]
    fn faults_of_triggers_are_told_where_their_base_is_named() {
        let text = "FROM scratch AS other\nEXPOSE 2/${Z}x\nFROM far\nSTOPSIGNAL SIG${Z}NOT\n";
        let triggers = ["RUN true\\\n\\\n && true", "EXPOSE 1/${Z}x", "COPY --from=other a[ /"];
        let request = request(text, &[]);
        let parsed = kiln_dockerfile::parse(&request.dockerfile);
        let lowered = lower(&parsed.dockerfile, &request, &mut Triggers(&triggers)).expect("lowered");
        let place = |span: &std::ops::Range<usize>| text[span.clone()].to_owned();
        let hint = |of: usize| Some(format!("it is in the base's ONBUILD trigger {:?}", triggers[of]));
        let told: Vec<_> = lowered
            .findings
            .into_iter()
            .filter(|found| found.severity == kiln_dockerfile::Severity::Error)
            .map(|found| (place(&(found.span.start..found.span.end)), found.hint))
            .collect();
        let expect = [("FROM far", hint(1)), ("2/${Z}x", None), ("FROM far", hint(2)), ("SIG${Z}NOT", None)]
            .map(|(a, b)| (a.to_owned(), b));
        assert_eq!(told, expect);
        let trigger = "VOLUME [\"${Z}\"]";
        let refused = lower(&parsed.dockerfile, &request, &mut Triggers(&[trigger]));
        let Err(Error::Instruction { span, hint, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!((place(&(span.start..span.end)).as_str(), hint.is_some()), ("FROM far", true));
        let steps = lowered.graph.vertices().filter(|(_, vertex)| vertex.name.contains("ONBUILD"));
        let places: Vec<_> = steps.map(|(_, vertex)| vertex.span.as_ref().map(place)).collect();
        assert_eq!(places, [Some("FROM far".to_owned()), Some("FROM far".to_owned())]);
    }

    #[test]
    fn a_year_that_no_config_can_tell_is_refused() {
        for (seconds, is_told) in [
            ("-62167219200", true),
            ("-62167219201", false),
            ("253402207199", true),
            ("253402207200", false),
            ("9223372036854775807", false),
        ] {
            let request = request("FROM scratch\nLABEL a=b\n", &[("SOURCE_DATE_EPOCH", seconds)]);
            let parsed = kiln_dockerfile::parse(&request.dockerfile);
            let lowered = lower(&parsed.dockerfile, &request, &mut NoBases);
            assert_eq!(lowered.is_ok(), is_told, "{seconds}");
            if let Err(error) = lowered {
                assert!(error.to_string().contains(seconds), "{error}");
            }
        }
        assert_eq!(crate::export::format_seconds(253_402_207_199), "9999-12-30T21:59:59Z");
        assert_eq!(crate::export::format_seconds(-62_167_219_200), "0000-01-01T00:00:00Z");
    }

    #[test]
    fn proxies_that_are_declared_are_in_keys() {
        for (instructions, build_arg, expect) in [
            ("", Some("http://given"), None),
            ("ARG HTTP_PROXY", Some("http://given"), Some("http://given")),
            ("ARG HTTP_PROXY", None, None),
            ("ARG HTTP_PROXY=http://default", Some("http://given"), Some("http://given")),
            ("ARG HTTP_PROXY=http://default", None, Some("http://default")),
            ("ARG HTTP_PROXY\nENV HTTP_PROXY=http://fixed", Some("http://given"), Some("http://fixed")),
        ] {
            assert_eq!(proxy(instructions, build_arg).as_deref(), expect, "{instructions}");
        }
    }
}
