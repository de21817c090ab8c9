//! `run`.

use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::Result;
use kiln_container::{Entrypoint, Request, Variable, Volume, parse_volume};
use kiln_oci::{ImageId, Platform, Reference};
use kiln_runtime::Foreground;
use kiln_store::Store;

use crate::arguments::run::Run;
use crate::environment_file;
use crate::failure::{Failure, Kind};
use crate::progress::log::sanitise;
use crate::session::{self, Commands};

/// Runs a command in a new container and ends with its status.
pub(crate) fn run(root: Option<&Path>, arguments: &Run) -> Result<u8> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    if arguments.tty && arguments.interactive && !rustix::termios::isatty(&stdin) {
        // Docker's status for it.
        let failure = Failure::new(Kind::Usage, "cannot use -t with -i: the input device is not a TTY");
        return Err(failure.status(1).into());
    }
    let volumes = volumes(&arguments.volume)?;
    let environment = environment(arguments)?;
    let (store, commands) = session::open_to_run(root)?;
    if let Commands::Refused { reason } = commands {
        let failure = Failure::new(Kind::World, format!("cannot run a container as this user: {reason}"));
        return Err(failure.status(125).hint(session::REMEDY).into());
    }
    let image = image(&store, arguments.image())?;
    look_at_platform(&store, image, arguments.image())?;
    let request = Request {
        image,
        command: arguments.command().to_vec(),
        entrypoint: match arguments.entrypoint.as_deref() {
            None => Entrypoint::Image,
            Some("") => Entrypoint::None,
            Some(program) => Entrypoint::Program(program.to_owned()),
        },
        environment,
        volumes,
        directory: arguments.workdir().map(str::to_owned),
        user: arguments.user.clone(),
        resolv_conf: fs_err::read("/etc/resolv.conf").unwrap_or_default(),
    };
    let watcher = Foreground {
        input: stdin.as_fd(),
        output: stdout.as_fd(),
        error: stderr.as_fd(),
        interactive: arguments.interactive,
        own_terminal: arguments.tty,
    };
    let lease = store.lease(kiln_store::CONTAINER)?;
    let ended = kiln_container::run(&store, &lease, &request, watcher).map_err(|error| {
        let status = error.status();
        let kind = if status == 125 { Kind::World } else { Kind::Input };
        let message = format!("cannot run a container from {}", arguments.image());
        Failure::new(kind, message).status(status).caused_by(error)
    })?;
    for note in &ended.notes {
        crate::output::aside(&format!("kiln: {note}\n"));
    }
    Ok(ended.exit.status())
}

/// Refuses an image of another system, and warns of one for other processors: an emulator may be there for it.
fn look_at_platform(store: &Store, image: ImageId, name: &str) -> Result<()> {
    let config = store.image(image)?.config;
    let host = Platform::host();
    let told = || {
        format!(
            "{name} is for {}/{}, this machine is {}/{}",
            config.os, config.architecture, host.os, host.architecture
        )
    };
    if !config.os.is_empty() && config.os != host.os {
        return Err(Failure::new(Kind::Input, format!("cannot run a container: {}", told()))
            .status(125)
            .into());
    }
    if !config.architecture.is_empty() && config.architecture != host.architecture {
        crate::output::aside(&format!("kiln: warning: {}\n", sanitise(told().as_bytes())));
    }
    Ok(())
}

fn image(store: &Store, name: &str) -> Result<ImageId> {
    if let Some(id) = store.find(name)? {
        return Ok(id);
    }
    let wanted = match name.parse::<Reference>() {
        Ok(reference) => format!("the name {} and the ID {name}", reference.or_latest()),
        Err(_) if is_id(name) => format!("the ID {name}"),
        Err(error) => {
            let message = format!("{name:?} is neither a name nor an ID");
            return Err(Failure::new(Kind::Input, message).caused_by(error).into());
        }
    };
    let message =
        format!("unable to find image {name:?}: looked for {wanted} in the store {}", store.root().display());
    let failure = Failure::new(Kind::Input, message);
    Err(failure
        .hint("`kiln images` lists what is there; `kiln load`, `kiln import` and `kiln build` add to it")
        .into())
}

/// Whether a text may be the beginning of an ID.
fn is_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[expect(clippy::disallowed_methods, reason = "the binary knows where it stands")]
fn volumes(given: &[String]) -> Result<Vec<Volume>> {
    let wrong = |message: String| Failure::new(Kind::Usage, message);
    let mut volumes: Vec<Volume> = Vec::with_capacity(given.len());
    for text in given {
        let current = if text.starts_with('.') { std::env::current_dir() } else { Ok("/".into()) };
        let current = current.map_err(|error| {
            let message =
                format!("invalid volume {text:?}: cannot find the current directory that it starts from");
            Failure::new(Kind::World, message).status(125).caused_by(error)
        })?;
        let volume = parse_volume(text, &current).map_err(|error| wrong(error.to_string()))?;
        if volumes.iter().any(|known| known.target() == volume.target()) {
            return Err(wrong(format!("two volumes at {}: expected one", volume.target().display())).into());
        }
        volumes.push(volume);
    }
    Ok(volumes)
}

/// What the files say, then what the command line says: the last counts.
fn environment(arguments: &Run) -> Result<Vec<Variable>> {
    let mut variables = Vec::new();
    for file in &arguments.env_file {
        variables.extend(environment_file::read(file, own)?);
    }
    for text in &arguments.env {
        variables.push(variable(text)?);
    }
    Ok(variables)
}

/// A variable of this process.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn own(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn variable(text: &str) -> Result<Variable> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, own(text)),
    };
    if name.is_empty() {
        let message = format!("invalid environment variable {text:?}: expected NAME=VALUE or NAME");
        return Err(Failure::new(Kind::Usage, message).into());
    }
    let name = name.to_owned();
    Ok(match value {
        Some(value) => Variable::Set { name, value },
        // As in Docker: a variable that is not set here is not set there, whatever the image says.
        None => Variable::Unset { name },
    })
}
