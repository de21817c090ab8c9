//! What most commands begin with: where the store is, and whose its files are.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kiln_runtime::Isolation;
use kiln_store::{Awaited, Certainty, Ownership, Store, Wait};
use kiln_sys::namespace::{Configuration, IdMaps, Lack, UserNamespace, enter_user_namespace};

use crate::failure::{Failure, Kind, enumerate};

/// Whether a command reads or writes files of layers, so that it must be whoever owns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// Names, configs, indexes and records are enough.
    Untouched,
    /// A user namespace is entered if this is not root.
    Touched,
}

/// Opens the store. With [`Files::Touched`] this must come before any thread is started.
pub(crate) fn open(root: Option<&Path>, files: Files) -> Result<Store> {
    let owners = match files {
        Files::Untouched => Owners::expected(),
        Files::Touched => enter()?.0,
    };
    open_as(root, &owners)
}

/// Opens the store for who makes files that are owned this way.
pub(crate) fn open_as(root: Option<&Path>, owners: &Owners) -> Result<Store> {
    let root = match root {
        Some(root) => std::path::absolute(root)?,
        None => default_root()?,
    };
    if root.is_file() {
        let message = format!("the store {} is no directory", root.display());
        return Err(Failure::new(Kind::Input, message).hint("--root and KILN_ROOT name it").into());
    }
    let opened = Store::open(&root, owners.ownership).and_then(|store| match &owners.maps {
        Some((maps, certainty)) => store.with_maps(maps, *certainty),
        None => Ok(store),
    });
    let store = opened.map_err(|error| not_opened(&root, error))?;
    store.tell_waits(|wait| {
        crate::output::aside(&format!("kiln: {}\n", told(wait)));
    });
    if unpacks_layers()? {
        store.never_mount_tars();
    }
    Ok(store)
}

/// A store that this user may not use gets a hint.
fn not_opened(root: &Path, error: kiln_store::Error) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    if !error.chain().any(|cause| cause.downcast_ref().is_some_and(refused)) {
        return error;
    }
    let hint = format!(
        "the store at {} must be this user's own with all its files; --root or KILN_ROOT names another place",
        root.display()
    );
    Failure::new(Kind::World, error.to_string()).caused_by(error).hint(hint).into()
}

/// Whom a command waits for.
fn told(wait: &Wait) -> String {
    let awaited = match wait.awaited {
        Awaited::Collection => "another command that removes what is unused",
        Awaited::LookUp => "a build that looks things up",
        Awaited::Files => "another command that makes files of a layer ready",
    };
    let processes: Vec<String> = wait.processes.iter().map(ToString::to_string).collect();
    match processes.len() {
        0 => format!("waiting for {awaited}"),
        1 => format!("waiting for {awaited}: process {}", processes[0]),
        _ => format!("waiting for {awaited}: processes {}", enumerate(&processes)),
    }
}

/// Whether the user wants every layer unpacked that could be mounted in its tar: `KILN_LAYERS`.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn unpacks_layers() -> Result<bool> {
    match std::env::var_os("KILN_LAYERS").as_ref().map(|value| value.to_str()) {
        None | Some(Some("" | "mounted")) => Ok(false),
        Some(Some("unpacked")) => Ok(true),
        Some(other) => {
            let found = other.unwrap_or("(no UTF-8)");
            let message = format!("KILN_LAYERS is {found:?}: expected `mounted` or `unpacked`");
            Err(Failure::new(Kind::Usage, message).into())
        }
    }
}

/// How commands can be run here.
pub(crate) enum Commands {
    /// Held in this way.
    Held(Isolation),
    /// Not at all.
    Refused {
        /// Why not.
        reason: String,
    },
}

/// What to do where no command can be run.
pub(crate) const REMEDY: &str =
    "run kiln as root, or allow user namespaces; `kiln info` tells what this machine gives";

/// Opens the store for a command that runs commands. This must come before any thread is started.
pub(crate) fn open_to_run(root: Option<&Path>) -> Result<(Store, Commands)> {
    let (owners, commands) = enter()?;
    Ok((open_as(root, &owners)?, commands))
}

/// Where this user's subordinate IDs are looked for.
pub(crate) fn namespace_configuration() -> Configuration {
    let (user, group) = passwd_entry().unzip();
    Configuration { user, group: group.flatten(), ..Configuration::default() }
}

/// Becomes whoever may own the files of layers and run commands, as far as this machine lets.
fn enter() -> Result<(Owners, Commands)> {
    let _span = kiln_trace::span("enter user namespace");
    let entered = enter_user_namespace(&namespace_configuration())?;
    if let UserNamespace::SingleId { reason, lack: Lack::Refused } = &entered {
        // Nobody is left to tell if standard error is gone.
        let _ = writeln!(
            std::io::stderr(),
            "kiln: warning: no subordinate IDs, so owners are recorded and layers made with such IDs are unpacked \
             anew or out of reach: {reason}"
        );
    }
    let owners = Owners::in_namespace(&entered);
    let commands = match (Isolation::best(), entered) {
        (Ok(isolation), _) => Commands::Held(isolation),
        (Err(_), UserNamespace::Unavailable { reason }) => Commands::Refused { reason },
        (Err(reason), _) => Commands::Refused { reason },
    };
    Ok((owners, commands))
}

/// Whose the files are that a process makes.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    pub(crate) ownership: Ownership,
    /// With sub-identifiers, which they are.
    maps: Option<(IdMaps, Certainty)>,
}

impl Owners {
    fn plain(ownership: Ownership) -> Self {
        Self { ownership, maps: None }
    }

    /// Of this process, now that it has tried to enter a user namespace.
    pub(crate) fn in_namespace(entered: &UserNamespace) -> Self {
        match entered {
            UserNamespace::SubIds { maps } => {
                Self { ownership: Ownership::SubIds, maps: Some((maps.clone(), Certainty::Entered)) }
            }
            UserNamespace::SingleId { .. } => Self::plain(Ownership::SingleId),
            UserNamespace::Unavailable { .. } if !rustix::process::geteuid().is_root() => {
                Self::plain(Ownership::SingleId)
            }
            UserNamespace::None | UserNamespace::Unavailable { .. } => Self::expected(),
        }
    }

    /// Of this process, once it has entered its user namespace.
    pub(crate) fn expected() -> Self {
        if rustix::process::geteuid().is_root() {
            return match mapped_users() {
                Some(1) => Self::plain(Ownership::SingleId),
                Some(count) if count < u32::MAX => {
                    let maps = IdMaps::of_this_process().ok().map(|maps| (maps, Certainty::Entered));
                    Self { ownership: Ownership::SubIds, maps }
                }
                _ => Self::plain(Ownership::Root),
            };
        }
        match IdMaps::expected(&namespace_configuration()) {
            Ok(maps) => Self { ownership: Ownership::SubIds, maps: Some((maps, Certainty::Expected)) },
            Err(_) => Self::plain(Ownership::SingleId),
        }
    }
}

/// How many users this user namespace has; `None` where that cannot be read.
fn mapped_users() -> Option<u32> {
    let map = fs_err::read_to_string("/proc/self/uid_map").ok()?;
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u32>().ok());
    Some(counts.fold(0, u32::saturating_add))
}

/// The name of the calling user and the group, as passwd has them.
fn passwd_entry() -> Option<(String, Option<u32>)> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = fs_err::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| (name.to_owned(), fields.next().and_then(|group| group.parse().ok())))
    })
}

#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn default_root() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() && mapped_users().is_none_or(|count| count == u32::MAX) {
        return Ok(PathBuf::from("/var/lib/kiln"));
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("kiln")).ok_or_else(|| {
        Failure::new(Kind::World, "cannot tell where the store is: neither XDG_DATA_HOME nor HOME is set")
            .hint("name it with --root")
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_with_their_processes() {
        let check = |awaited, processes: &[u32], text: &str| {
            assert_eq!(told(&Wait { awaited, processes: processes.to_vec() }), text);
        };
        check(Awaited::LookUp, &[], "waiting for a build that looks things up");
        check(Awaited::LookUp, &[7], "waiting for a build that looks things up: process 7");
        check(
            Awaited::Files,
            &[7],
            "waiting for another command that makes files of a layer ready: process 7",
        );
        let removes = "waiting for another command that removes what is unused";
        check(Awaited::Collection, &[7, 8, 9], &format!("{removes}: processes 7, 8 and 9"));
    }
}
