//! BuildKit's lint rules: what is allowed in a Dockerfile and seldom meant.
//!
//! Rules that need only the text are checked by [`parse`](crate::parse). The others follow the instructions as a build
//! meets them, with the environment that each one sees: [`Linter`]. Rules have BuildKit's names, by which `# check=skip=`
//! leaves them out.

use std::collections::{BTreeSet, HashSet};

use crate::diagnostic::{Diagnostic, Severity};
use crate::directive::Check;
use crate::evaluate::Expanded;
use crate::expand::Expansion;
use crate::glob::clean_path;
use crate::ignore::IgnoreMatcher;
use crate::instruction::{CommandLine, Dockerfile, Instruction, Kind, Pair, PairForm, Stage, Transfer};
use crate::parse::MAX_DIAGNOSTICS;
use crate::predefined;
use crate::remote_source::{SourceKind, source_kind};
use crate::source::{Span, Word};
use crate::suggest;

/// Parts of a variable's name, between underscores, that tell of a secret; and those that tell that it is none.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// As many times an ignore file's patterns are asked: far more often than a few hundred of them for a few hundred sources.
const MOST_MATCHES: usize = 1 << 22;
/// The longest path that can be a file's.
const LONGEST_PATH: usize = 4096;

/// As many findings look for a near name among all that there are.
const HINTS: usize = 20;

/// Checks what needs no more than the file.
pub(crate) fn check_file(dockerfile: &Dockerfile, diagnostics: &mut Vec<Diagnostic>) {
    stage_names(&dockerfile.stages, diagnostics);
    keyword_casing(&dockerfile.stages, diagnostics);
    if dockerfile.directives.check.as_ref().is_some_and(|check| check.wants(DESCRIPTION)) {
        descriptions(dockerfile, diagnostics);
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
}

/// Names that are used twice or mean something else.
fn stage_names(stages: &[Stage], diagnostics: &mut Vec<Diagnostic>) {
    let mut seen = BTreeSet::new();
    for name in stages.iter().filter_map(|stage| stage.name.as_ref()).take(MAX_DIAGNOSTICS) {
        if name.text == "context" || name.text == "scratch" {
            let message =
                format!("stage name should not use the same name as reserved stage {:?}", name.text);
            diagnostics.push(Diagnostic::warning(Some("ReservedStageName"), message, name.span));
        }
        if !seen.insert(&name.text) {
            let message = format!("duplicate stage name {:?}, stage names should be unique", name.text);
            diagnostics.push(Diagnostic::warning(Some("DuplicateStageName"), message, name.span));
        }
    }
}

/// Keywords are all upper case or all lower case, as most of them are.
fn keyword_casing(stages: &[Stage], diagnostics: &mut Vec<Diagnostic>) {
    let keywords = || {
        stages.iter().flat_map(|stage| {
            let own = stage.instructions.iter().map(|instruction| &instruction.keyword);
            std::iter::once(&stage.keyword).chain(own)
        })
    };
    let is_lower = |word: &&Word| word.text == word.text.to_lowercase();
    let is_upper = |word: &&Word| word.text == word.text.to_uppercase();
    let (is_right, right): (&dyn Fn(&&Word) -> bool, _) =
        if keywords().filter(is_lower).count() > keywords().filter(is_upper).count() {
            (&is_lower, "lower")
        } else {
            (&is_upper, "upper")
        };
    for keyword in keywords().filter(|keyword| !is_right(keyword)).take(MAX_DIAGNOSTICS) {
        let message = format!("'{}' should be in {right} case, as most instructions are", keyword.text);
        diagnostics.push(Diagnostic::warning(Some("ConsistentInstructionCasing"), message, keyword.span));
    }
}

/// An experimental rule: only who asks for it gets it.
const DESCRIPTION: &str = "InvalidDefinitionDescription";

/// A comment right above a named stage or an ARG begins with the name.
fn descriptions(dockerfile: &Dockerfile, diagnostics: &mut Vec<Diagnostic>) {
    let mut look = |comments: &[String], names: &[&Word], keyword: &str, span: Span| {
        let Some((comment, first)) = comments.last().zip(names.first()) else { return };
        let begins = comment.split(' ').next().unwrap_or_default();
        if names.iter().any(|name| name.text == begins) {
            return;
        }
        let name = if names.len() > 1 { "<name>" } else { &first.text };
        let message = format!("the comment above {keyword} should have the form `# {name} <description>`");
        diagnostics.push(Diagnostic::warning(Some(DESCRIPTION), message, span));
    };
    for meta in &dockerfile.meta_args {
        let names: Vec<&Word> = meta.items.iter().map(|item| &item.name).collect();
        look(&meta.comments, &names, "ARG", meta.span);
    }
    for stage in &dockerfile.stages {
        let name: Vec<&Word> = stage.name.iter().collect();
        look(&stage.comments, &name, "FROM", stage.span);
        for instruction in &stage.instructions {
            if let Kind::Arg(items) = &instruction.kind {
                let names: Vec<&Word> = items.iter().map(|item| &item.name).collect();
                look(&instruction.comments, &names, "ARG", instruction.span);
            }
        }
    }
}

/// Follows the instructions of a build.
#[derive(Debug)]
pub struct Linter<'d> {
    check: Option<&'d Check>,
    /// What the comments right above ask for.
    own: Option<Check>,
    /// Patterns of the context's ignore file, if any of its paths can be told to be left out.
    ignore: Option<IgnoreMatcher>,
    /// How many times these were asked.
    matches: usize,
    findings: Vec<Diagnostic>,
}

/// What lint remembers of a stage.
#[derive(Debug, Clone, Default)]
pub struct StageLint {
    cmd: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
    workdir: bool,
}

impl StageLint {
    /// For a stage on this one.
    #[must_use]
    pub fn on_stage(&self) -> Self {
        Self { workdir: self.workdir, ..Self::default() }
    }
}

/// Names of variables, for whoever looks for a near one.
pub trait Names: std::fmt::Debug {
    /// All of them, in an order that is the same each time.
    fn names(&self) -> Vec<&str>;
}

/// What an instruction finds.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The variables that are set.
    pub environment: &'a dyn Names,
    /// What ARGs of the stage declare, with or without a value.
    pub declared: &'a HashSet<String>,
    /// Whether SHELL was used, here or in the base: who chooses the shell means the shell form.
    pub own_shell: bool,
}

impl<'d> Linter<'d> {
    /// A linter for a build of `dockerfile` in a context with this ignore file, of which malformed ones are not lint's to
    /// report.
    #[must_use]
    pub fn new(dockerfile: &'d Dockerfile, ignore: &[u8]) -> Self {
        let ignore = Some(ignore).filter(|ignore| !ignore.is_empty());
        let ignore = ignore.and_then(|ignore| IgnoreMatcher::parse(ignore).ok());
        // What an exclusion brings back depends on the files.
        let ignore = ignore.filter(|matcher| !matcher.is_empty() && !matcher.has_exclusions());
        Self {
            check: dockerfile.directives.check.as_ref(),
            own: None,
            ignore,
            matches: 0,
            findings: Vec::new(),
        }
    }

    /// What was found, in the order of the file.
    #[must_use]
    pub fn into_findings(mut self) -> Vec<Diagnostic> {
        self.findings.sort_by_key(|finding| finding.span.start);
        self.findings
    }

    /// Whether nobody wants to know of a rule, or there is too much to tell already.
    fn is_silent(&self, rule: &'static str) -> bool {
        let skips = |check: &Check| check.skip_all || check.skip.contains(rule);
        self.findings.len() >= MAX_DIAGNOSTICS
            || self.check.is_some_and(skips)
            || self.own.as_ref().is_some_and(skips)
    }

    fn find(&mut self, rule: &'static str, span: Span, message: impl FnOnce() -> String) {
        if self.is_silent(rule) {
            return;
        }
        let mut finding = Diagnostic::warning(Some(rule), message(), span);
        if self.check.is_some_and(|check| check.error) {
            finding.severity = Severity::Error;
        }
        self.findings.push(finding);
    }

    /// From now on these are the comments right above.
    fn below(&mut self, comments: &[String]) {
        self.own = if comments.is_empty() { None } else { Check::of_comments(comments) };
    }

    /// FROM, with its base and platform expanded by the global ARGs, which have the names `known`.
    pub fn from(
        &mut self,
        stage: &Stage,
        base: &Expansion,
        platform: Option<&Expansion>,
        known: &BTreeSet<&str>,
    ) {
        self.below(&stage.comments);
        for name in [Some(base), platform].into_iter().flatten().flat_map(|word| &word.unset) {
            if known.contains(name.as_str()) {
                continue;
            }
            let hints = self.findings.len() < HINTS;
            self.find("UndefinedArgInFrom", stage.span, || {
                let near = if hints { suggest::near(name, known.iter().copied()) } else { None };
                let near = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                format!("no ARG before the first FROM declares {name}{near}")
            });
        }
    }

    /// FROM's base when no build argument is given: expanded, and whether it names an image or a stage then.
    pub fn default_base(&mut self, stage: &Stage, is_name: bool) {
        if !is_name {
            self.below(&stage.comments);
            self.find("InvalidDefaultArgInFrom", stage.span, || {
                format!("without build arguments {} is empty or no image's name", stage.base.text)
            });
        }
    }

    /// FROM's `--platform`: what it became, the build's target platform, and the platform's system and architecture if it
    /// can be read.
    pub fn platform(
        &mut self,
        stage: &Stage,
        word: &Word,
        expanded: &Expansion,
        target: &str,
        parsed: Option<(&str, &str)>,
    ) {
        if !expanded.unset.is_empty() {
            return;
        }
        self.below(&stage.comments);
        let only_target = expanded.used.len() == 1 && expanded.used.contains("TARGETPLATFORM");
        if only_target && expanded.text == target {
            self.find("RedundantTargetPlatform", word.span, || {
                format!("the platform is {} without being set", word.text)
            });
        }
        let Some((system, architecture)) = parsed.filter(|_| expanded.used.is_empty()) else { return };
        // A stage that is named for its platform means it.
        let named = |name: &Word| name.text.contains(system) || name.text.contains(architecture);
        if !stage.name.as_ref().is_some_and(named) {
            self.find("FromPlatformFlagConstDisallowed", word.span, || {
                format!("FROM builds for {} whatever platform is asked for", expanded.text)
            });
        }
    }

    /// FROM's image: its system and architecture, and those that the stage is for.
    pub fn base_platform(&mut self, stage: &Stage, found: (&str, &str), wanted: (&str, &str)) {
        if found != wanted {
            self.below(&stage.comments);
            self.find("InvalidBaseImagePlatform", stage.base.span, || {
                format!("the base image is for {}/{}, not for {}/{}", found.0, found.1, wanted.0, wanted.1)
            });
        }
    }

    /// An instruction of a stage, before it is done.
    pub fn instruction(
        &mut self,
        state: &mut StageLint,
        instruction: &Instruction,
        expanded: &Expanded,
        around: &Surroundings<'_>,
    ) {
        self.below(&instruction.comments);
        self.undefined(expanded, around);
        match &expanded.kind {
            Kind::Cmd(command) => {
                self.shell_form(instruction, command, around);
                self.once(&mut state.cmd, instruction);
            }
            Kind::Entrypoint(command) => {
                self.shell_form(instruction, command, around);
                self.once(&mut state.entrypoint, instruction);
            }
            Kind::Healthcheck(_) => self.once(&mut state.healthcheck, instruction),
            Kind::Workdir(path) => {
                if !state.workdir && !path.text.starts_with('/') {
                    self.find("WorkdirRelativePath", path.span, || {
                        format!("where {:?} is depends on the base image's WORKDIR", path.text)
                    });
                }
                state.workdir = true;
            }
            Kind::Env(pairs) => {
                self.legacy("ENV", pairs);
                pairs.iter().for_each(|pair| self.secret("ENV", &pair.key));
            }
            Kind::Label(pairs) => self.legacy("LABEL", pairs),
            Kind::Arg(items) => items.iter().for_each(|item| self.secret("ARG", &item.name)),
            Kind::Expose(words) => words.iter().for_each(|word| self.port(word)),
            Kind::Copy(copy) if copy.from.is_none() => self.sources("COPY", &copy.transfer),
            Kind::Add(add) => self.sources("ADD", &add.transfer),
            _ => {}
        }
    }

    fn undefined(&mut self, expanded: &Expanded, around: &Surroundings<'_>) {
        const RULE: &str = "UndefinedVar";
        let unset = || {
            expanded.lookups.iter().flat_map(|lookup| {
                lookup.expansion.unset.iter().map(move |name| (name.as_str(), lookup.word.span))
            })
        };
        if self.is_silent(RULE) {
            return;
        }
        for (name, span) in unset() {
            if around.declared.contains(name) || predefined::NON_ENVIRONMENT_ARGS.contains(&name) {
                continue;
            }
            let hints = self.findings.len() < HINTS;
            self.find(RULE, span, || {
                let near = if hints { suggest::near(name, around.environment.names()) } else { None };
                let near = near.map(|near| format!(", did you mean ${near}?"));
                format!("the variable ${name} is not defined{}", near.unwrap_or_default())
            });
        }
    }

    fn shell_form(&mut self, instruction: &Instruction, command: &CommandLine, around: &Surroundings<'_>) {
        if matches!(command, CommandLine::Shell(_)) && !around.own_shell {
            let name = instruction.kind.name();
            self.find("JSONArgsRecommended", instruction.span, || {
                format!("{name} in shell form: the shell gets signals such as SIGTERM, not the program; use a JSON array")
            });
        }
    }

    /// The earlier one is of no use.
    fn once(&mut self, earlier: &mut Option<Span>, instruction: &Instruction) {
        if let Some(span) = earlier.replace(instruction.span) {
            let name = instruction.kind.name();
            self.find("MultipleInstructionsDisallowed", span, || {
                format!("only the last {name} of a stage counts")
            });
        }
    }

    fn legacy(&mut self, keyword: &str, pairs: &[Pair]) {
        for pair in pairs.iter().filter(|pair| pair.form == PairForm::Legacy) {
            self.find("LegacyKeyValueFormat", pair.key.span, || {
                format!(
                    "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
                )
            });
        }
    }

    fn secret(&mut self, keyword: &str, name: &Word) {
        let has = |parts: &[&str]| {
            name.text.split('_').any(|part| parts.iter().any(|known| part.eq_ignore_ascii_case(known)))
        };
        if has(&SECRET) && !has(&NO_SECRET) {
            self.find("SecretsUsedInArgOrEnv", name.span, || {
                format!("{keyword} {:?} stays readable in the image: it is no place for a secret", name.text)
            });
        }
    }

    fn port(&mut self, word: &Word) {
        let (host, container) = word.text.rsplit_once(':').unwrap_or(("", &word.text));
        let protocol = container.split_once('/').map_or("", |(_, protocol)| protocol);
        if protocol != protocol.to_lowercase() {
            self.find("ExposeProtoCasing", word.span, || {
                format!("the protocol of {:?} should be in lower case", word.text)
            });
        }
        if !host.is_empty() {
            self.find("ExposeInvalidFormat", word.span, || {
                format!("EXPOSE takes no address and no port of the host, found {:?}", word.text)
            });
        }
    }

    fn sources(&mut self, keyword: &str, transfer: &Transfer) {
        let Some(matcher) = self.ignore.take() else { return };
        for source in transfer.sources.iter().filter(|word| source_kind(&word.text) == SourceKind::Path) {
            let path = clean_path(&source.text);
            let path = path.trim_start_matches('/');
            self.matches += matcher.len() * (1 + path.matches('/').count());
            if path.len() > LONGEST_PATH || self.matches > MOST_MATCHES {
                break;
            }
            let ignored = if path.is_empty() || path == "." {
                matcher.patterns().any(|pattern| matches!(pattern.as_str(), "*" | "**" | "**/*"))
            } else {
                matcher.is_ignored(path)
            };
            if ignored {
                self.find("CopyIgnoredFile", source.span, || {
                    format!("{keyword} of {:?}, which the ignore file leaves out", source.text)
                });
            }
        }
        self.ignore = Some(matcher);
    }
}
