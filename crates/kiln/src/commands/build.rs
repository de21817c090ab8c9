//! `build`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use kiln_build::{
    BuildFailure, BuildRequest, Built, CacheUse, Entitlement, Error as BuildError, Executions, NetworkMode,
};
use kiln_graph::Cancel;
use kiln_oci::{Platform, Reference};
use kiln_store::Store;
use kiln_sys::root::Root;

use crate::arguments::build::Build;
use crate::failure::{Failure, Kind};
use crate::progress::excerpt::{self, Source};
use crate::progress::{FailedStep, Mode, Progress};
use crate::session::{self, Commands, Files};
use crate::watch::{Rehearsal, Watch};

/// Builds an image.
pub(crate) fn run(root: Option<&Path>, arguments: &Build) -> Result<u8> {
    let request = request(arguments)?;
    let mode = Mode::choose(arguments.progress, arguments.quiet)?;
    let started = Instant::now();
    let rehearsal = Rehearsal::default();
    // As root no namespace is entered, so that one way does for both.
    let found = if rustix::process::geteuid().is_root() { None } else { find(root, &request, &rehearsal)? };
    let way = match found {
        Some(outcome) => Way::Found(outcome),
        None => Way::Execute(session::open_to_run(root)?),
    };
    let progress = Progress::start(mode, std::io::stderr(), started);
    let watch = Watch::new(progress.sender());
    let result = match way {
        Way::Found(outcome) => {
            rehearsal.repeat(&watch);
            outcome
        }
        Way::Execute((store, commands)) => {
            let cancel = Cancel::new();
            crate::interrupt::cancel_on_interrupt(&cancel)?;
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
        Ok(built) => report(arguments, &built),
        Err(failure) => Err(explain(&request, *failure, &failed).into()),
    }
}

/// How a build goes on.
enum Way {
    /// It is at its end, and nothing was executed.
    Found(Outcome),
    /// Steps are executed.
    Execute((Store, Commands)),
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

fn report(arguments: &Build, built: &Built) -> Result<u8> {
    if let Some(path) = &arguments.iidfile {
        fs_err::write(path, built.id.to_string())?;
    }
    if arguments.quiet {
        writeln!(std::io::stdout(), "{}", built.id)?;
    } else if !built.warnings.is_empty() {
        write!(std::io::stderr(), "\n{}", built.warnings)?;
    }
    Ok(0)
}

fn request(arguments: &Build) -> Result<BuildRequest> {
    let context = arguments.context.clone();
    if context.as_os_str() == "-" {
        let message = "cannot take the context from standard input: expected a directory";
        return Err(Failure::new(Kind::Usage, message).hint("`-f -` reads the Dockerfile from there").into());
    }
    let (dockerfile, name, path) = dockerfile(arguments, &context)?;
    let names = arguments
        .tag
        .iter()
        .map(|name| Ok(name.parse::<Reference>()?.or_latest()))
        .collect::<Result<Vec<_>>>()?;
    let network = match arguments.network.as_str() {
        "default" => NetworkMode::Default,
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
        ignore: ignore_file(&context, path.as_deref())?,
        context,
        dockerfile,
        dockerfile_name: name,
        target: arguments.target.clone(),
        build_args: build_args(&arguments.build_arg),
        labels: labels(&arguments.label),
        names,
        cache: if arguments.no_cache { CacheUse::Nothing } else { CacheUse::Records },
        network,
        allowed,
        lent: crate::lent::read(&arguments.lend)?,
        resolv_conf: fs_err::read("/etc/resolv.conf").unwrap_or_default(),
        platform: Platform::host(),
        parallelism: std::thread::available_parallelism().map_or(2, usize::from).max(2),
        executions: Executions::Refused,
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

/// The Dockerfile's bytes, its name in messages, and its path if it has one.
fn dockerfile(arguments: &Build, context: &Path) -> Result<(Vec<u8>, String, Option<PathBuf>)> {
    let path = match &arguments.file {
        Some(file) if file.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)?;
            return Ok((bytes, "Dockerfile".to_owned(), None));
        }
        Some(file) => file.clone(),
        None => context.join("Dockerfile"),
    };
    let bytes = fs_err::read(&path).map_err(|error| {
        let message = format!("cannot read the Dockerfile {}", path.display());
        Failure::new(Kind::Input, message).caused_by(error)
    })?;
    let name =
        path.file_name().map_or_else(|| "Dockerfile".to_owned(), |name| name.to_string_lossy().into_owned());
    Ok((bytes, name, Some(path)))
}

/// `<Dockerfile>.dockerignore` if it is there, else the context's `.dockerignore`. Symbolic links are followed inside the
/// directory that it is in; one that cannot be read is an error, since without it secrets would be copied.
fn ignore_file(context: &Path, dockerfile: Option<&Path>) -> Result<Vec<u8>> {
    let own = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in own.into_iter().chain([context.join(".dockerignore")]) {
        if fs_err::symlink_metadata(&path).is_err() {
            continue;
        }
        let cannot = || format!("cannot read {}", path.display());
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let file =
            Root::open(parent).and_then(|root| root.open_file(Path::new(name))).with_context(cannot)?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &file, &mut bytes).with_context(cannot)?;
        return Ok(bytes);
    }
    Ok(Vec::new())
}

#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn build_args(given: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => std::env::var(text).ok().map(|value| (text.clone(), value)),
    };
    // As buildx does, which the reproducible-builds.org specification asks of build tools.
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().map(|value| ("SOURCE_DATE_EPOCH".to_owned(), value));
    epoch.into_iter().chain(given.iter().filter_map(pair)).collect()
}

fn labels(given: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    given.iter().map(pair).collect()
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
        BuildError::Store(_)
        | BuildError::Layer(_)
        | BuildError::Path(_)
        | BuildError::File { .. }
        | BuildError::NoCommands { .. }
        | BuildError::Runtime(_) => Kind::World,
        _ => Kind::Input,
    };
    let hint = match &failure.error {
        BuildError::NoBase { .. } => {
            Some("load it with `kiln load`, make it with `kiln import`, or build and tag it")
        }
        BuildError::NoCommands { .. } => Some(session::REMEDY),
        _ => None,
    };
    let status = match &failure.error {
        BuildError::Canceled => 130,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignore_file_is_read_or_the_build_ends() {
        let host = tempfile::tempdir().unwrap();
        let context = host.path();
        let file = context.join(".dockerignore");
        assert_eq!(ignore_file(context, None).unwrap(), b"");
        fs_err::write(context.join("real"), "secret").unwrap();
        fs_err::os::unix::fs::symlink("real", &file).unwrap();
        assert_eq!(ignore_file(context, None).unwrap(), b"secret");
        for target in ["missing", "/etc/hostname", ".dockerignore"] {
            fs_err::remove_file(&file).unwrap();
            fs_err::os::unix::fs::symlink(target, &file).unwrap();
            assert!(ignore_file(context, None).is_err(), "{target}");
        }
    }
}
