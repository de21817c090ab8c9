//! `build`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use kiln_build::{
    BuildFailure, BuildRequest, Built, CacheUse, ContextKind, Entitlement, Error as BuildError, Executions,
    NetworkMode,
};
use kiln_graph::Cancel;
use kiln_oci::{ImageId, Platform, Reference};
use kiln_store::Store;

use crate::arguments::build::Build;
use crate::context::{self, Inputs};
use crate::failure::{Failure, Kind};
use crate::progress::excerpt::{self, Source};
use crate::progress::{FailedStep, Mode, Progress};
use crate::session::{self, Commands, Files};
use crate::watch::{Rehearsal, Watch};

/// Builds an image.
pub(crate) fn run(root: Option<&Path>, arguments: &Build) -> Result<u8> {
    let mode = Mode::choose(arguments.progress, arguments.quiet)?;
    // What is wrong on the command line is told before anything is waited for.
    let request = request(arguments)?;
    if let Some(path) = arguments.iidfile() {
        can_be_written(path)?;
    }
    let inputs = context::open(root, &arguments.context, arguments.file())?;
    let request = of(&inputs, request);
    let started = Instant::now();
    let rehearsal = Rehearsal::default();
    // As root no namespace is entered, so that one way does for both.
    let found = if rustix::process::geteuid().is_root() { None } else { find(root, &request, &rehearsal)? };
    let way = match found {
        Some(outcome) => Way::Found(outcome),
        None => Way::Execute(Box::new(session::open_to_run(root)?)),
    };
    let progress = Progress::start(mode, std::io::stderr(), started);
    let cancel = Cancel::new();
    let watch = Watch::new(progress.sender(), &cancel);
    let result = match way {
        Way::Found(outcome) => {
            rehearsal.repeat(&watch);
            outcome
        }
        Way::Execute(opened) => {
            let (store, commands) = *opened;
            let executions = match commands {
                Commands::Held(isolation) => Executions::Allowed(isolation),
                Commands::Refused { reason } => Executions::WithoutCommands { reason },
            };
            kiln_build::build(&store, &BuildRequest { executions, ..request.clone() }, &watch, &cancel)
        }
    };
    drop(watch);
    let failed = progress.finish();
    match result {
        Ok(built) => report(arguments, &request.names, &built),
        Err(failure) => Err(explain(&request, *failure, &failed).into()),
    }
}

/// How a build goes on.
enum Way {
    /// It is at its end, and nothing was executed.
    Found(Outcome),
    /// Steps are executed.
    Execute(Box<(Store, Commands)>),
}

type Outcome = std::result::Result<Built, Box<BuildFailure>>;

/// Builds without touching files of layers: an unchanged build ends here, and so does one that cannot be right.
/// `None` if a step must be executed. Starts no thread: the user namespace comes after it.
fn find(root: Option<&Path>, request: &BuildRequest, rehearsal: &Rehearsal) -> Result<Option<Outcome>> {
    if request.cache == CacheUse::Nothing {
        return Ok(None);
    }
    let store = session::open(root, Files::Untouched)?;
    let request = BuildRequest { parallelism: 1, executions: Executions::Refused, ..request.clone() };
    match kiln_build::build(&store, &request, rehearsal, &Cancel::new()) {
        Err(failure) if matches!(failure.error, BuildError::NeedsFiles) => Ok(None),
        outcome => Ok(Some(outcome)),
    }
}

/// Whether a file can be where the image ID is to be written: a build may take long.
fn can_be_written(path: &Path) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = |error: rustix::io::Errno| {
        Failure::new(Kind::Input, format!("cannot write the image ID to {}", path.display())).caused_by(error)
    };
    if path.is_dir() {
        return Err(cannot(rustix::io::Errno::ISDIR).into());
    }
    let place = if path.exists() { path } else { directory };
    Ok(rustix::fs::access(place, rustix::fs::Access::WRITE_OK).map_err(cannot)?)
}

/// What a build made, in the words that scripts look for in Docker's logs.
fn made(id: ImageId, names: &[Reference]) -> String {
    let named = names.iter().map(|name| format!("naming to {name}\n"));
    std::iter::once(format!("writing image {id}\n")).chain(named).collect()
}

fn report(arguments: &Build, names: &[Reference], built: &Built) -> Result<u8> {
    if let Some(path) = arguments.iidfile() {
        fs_err::write(path, built.id.to_string()).context("cannot write the image ID")?;
    }
    if arguments.quiet {
        writeln!(crate::output::output(), "{}", built.id)?;
        return Ok(0);
    }
    crate::output::aside(&format!("\n{}", made(built.id, names)));
    if !built.warnings.is_empty() {
        crate::output::aside(&format!("\n{}", built.warnings));
    }
    Ok(0)
}

fn of(inputs: &Inputs, request: BuildRequest) -> BuildRequest {
    BuildRequest {
        context: inputs.context.clone(),
        context_kind: inputs.kind.clone(),
        dockerfile: inputs.dockerfile.clone(),
        dockerfile_name: inputs.dockerfile_name.clone(),
        ignore: inputs.ignore.clone(),
        ..request
    }
}

/// What the command line asks for, without a context.
fn request(arguments: &Build) -> Result<BuildRequest> {
    let names = arguments.tag.iter().map(|name| super::new_name(name)).collect::<Result<Vec<_>>>()?;
    let network = match arguments.network.as_str() {
        // An empty word is no word, as in Docker.
        "default" | "" => NetworkMode::Default,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        other => {
            let message = format!("cannot use the network {other:?}: expected default, none or host");
            return Err(Failure::new(Kind::Usage, message).into());
        }
    };
    let mut allowed = arguments.allow.iter().map(|name| entitlement(name)).collect::<Result<Vec<_>>>()?;
    if network == NetworkMode::Host {
        // Whoever runs kiln and says --network=host has allowed it.
        allowed.push(Entitlement::NetworkHost);
    }
    Ok(BuildRequest {
        context: arguments.context.clone(),
        context_kind: ContextKind::Lasting,
        dockerfile: Vec::new(),
        dockerfile_name: String::new(),
        ignore: Vec::new(),
        target: arguments.target.clone(),
        build_args: build_args(&arguments.build_arg)?,
        labels: labels(&arguments.label)?,
        names,
        cache: if arguments.no_cache { CacheUse::Nothing } else { CacheUse::Records },
        network,
        allowed,
        lent: crate::lent::read(&arguments.lend)?,
        resolv_conf: fs_err::read("/etc/resolv.conf").unwrap_or_default(),
        platform: Platform::host(),
        parallelism: std::thread::available_parallelism().map_or(2, usize::from).max(2),
        executions: Executions::Refused,
        remote: crate::web::settings(),
        git: crate::web::git(),
    })
}

fn entitlement(name: &str) -> Result<Entitlement> {
    let known = [Entitlement::NetworkHost, Entitlement::SecurityInsecure];
    known.into_iter().find(|known| known.name() == name).ok_or_else(|| {
        let message =
            format!("cannot allow {name:?}: the entitlements are network.host and security.insecure");
        Failure::new(Kind::Usage, message).into()
    })
}

#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn build_args(given: &[String]) -> Result<BTreeMap<String, String>> {
    // As buildx does, which the reproducible-builds.org specification asks of build tools.
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().filter(|value| !value.is_empty());
    let epoch = epoch.map(|value| ("SOURCE_DATE_EPOCH".to_owned(), value));
    let mut arguments: BTreeMap<String, String> = epoch.into_iter().collect();
    for text in given {
        let (name, value) = named("--build-arg", text)?;
        if let Some(value) = value.map(str::to_owned).or_else(|| std::env::var(name).ok()) {
            arguments.insert(name.to_owned(), value);
        }
    }
    Ok(arguments)
}

fn labels(given: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (name, value) = named("--label", text)?;
        Ok((name.to_owned(), value.unwrap_or_default().to_owned()))
    };
    given.iter().map(pair).collect()
}

/// The name of a pair and its value.
fn named<'a>(flag: &str, text: &'a str) -> Result<(&'a str, Option<&'a str>)> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    if name.is_empty() {
        let message = format!("invalid value {text:?} for {flag}: expected NAME=VALUE");
        return Err(Failure::new(Kind::Usage, message).into());
    }
    Ok((name, value))
}

/// What failed, with the step's last output and the Dockerfile's lines.
fn explain(request: &BuildRequest, failure: BuildFailure, failed: &[FailedStep]) -> Failure {
    let mut shown = String::new();
    if let Some(step) = failed.first() {
        shown.push_str(&excerpt::last_output(step, 10));
    }
    if let (Some(span), false) = (&failure.span, matches!(failure.error, BuildError::Dockerfile(_))) {
        let text = &failure.source_text;
        let line = |offset: usize| {
            1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count()
        };
        let lines = line(span.start)..=line(span.end.saturating_sub(1).max(span.start));
        shown.push_str(&excerpt::source(&Source { file: &request.dockerfile_name, text, lines }));
    }
    let kind = match &failure.error {
        BuildError::Runtime(kiln_runtime::RuntimeError::Panicked { .. }) => Kind::Bug,
        BuildError::Store(_)
        | BuildError::Layer(_)
        | BuildError::Path(_)
        | BuildError::File { .. }
        | BuildError::NoCommands { .. }
        | BuildError::Remote(_)
        | BuildError::Git { .. }
        | BuildError::GitStalled { .. }
        | BuildError::GitTooLarge { .. }
        | BuildError::GitTooMany { .. }
        | BuildError::NoGit
        | BuildError::Runtime(_) => Kind::World,
        _ => Kind::Input,
    };
    let hint = match &failure.error {
        BuildError::NoBase { .. } => {
            Some("load it with `kiln load`, make it with `kiln import`, or build and tag it".to_owned())
        }
        BuildError::NoCommands { .. } => Some(session::REMEDY.to_owned()),
        BuildError::Remote(error) => crate::web::hint(error),
        BuildError::NoGit => Some(crate::web::NO_GIT.to_owned()),
        _ => None,
    };
    let status = match &failure.error {
        BuildError::Canceled => crate::interrupt::status(),
        _ => kind.status(),
    };
    let mut told = Failure::new(kind, format!("cannot build {}", request.dockerfile_name))
        .excerpt(shown)
        .status(status)
        .caused_by(failure.error);
    if let Some(hint) = hint {
        told = told.hint(hint);
    }
    told
}
