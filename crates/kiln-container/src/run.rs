//! From a request to a process, and to its end.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_layer::RootView;
use kiln_oci::{Config, Groups, UserSpec, find_user};
use kiln_runtime::{
    Confinement, Exit, Finished, Foreground, Isolation, Launcher, LowerFile, LowerFiles, OwnershipMode,
    RootSource, Sandbox, run_in_foreground,
};
use kiln_store::{GivenFiles, Image, Lease, Leased, Ownership, PreparedRoot, RootForm, RootWay, Store};
use kiln_sys::process::Credentials;

use crate::error::{Error, Result};
use crate::mounts::{self, Origin};
use crate::process::{self, Surroundings};
use crate::request::Request;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How its command ended.
    pub exit: Exit,
    /// What this machine could not give, a line each.
    pub notes: Vec<String>,
}

/// Runs a command in a new container in the foreground. What the container wrote goes with `lease`.
///
/// # Errors
/// Whatever keeps the command from being started or followed. Nothing stays mounted or running.
pub fn run(store: &Store, lease: &Lease, request: &Request, watcher: Foreground<'_>) -> Result<Ended> {
    lease.keep(Leased::Image(request.image))?;
    let image = store.image(request.image)?;
    let isolation = Isolation::best().map_err(Error::NoIsolation)?;
    let launcher = Launcher::new();
    let confinement = confinement(store, isolation);
    launcher.expect(confinement);
    let run = |way: RootWay| -> Result<Finished> {
        let sandbox = sandbox(store, lease, (&image, request), watcher.own_terminal, (confinement, way))?;
        let view = store.root_view(&image.config.rootfs.diff_ids)?;
        let below: LowerFiles = Arc::new(move |path| {
            let found = view.status(path.as_os_str().as_bytes()).ok()??;
            Some(LowerFile { uid: found.uid, gid: found.gid, mode: found.mode, has_links: found.has_links })
        });
        Ok(run_in_foreground(&sandbox, watcher, Some(&below), &launcher)?)
    };
    let mut reason = None;
    let finished = match (isolation, store.snapshots_refused()) {
        (Isolation::Chroot, _) => run(RootWay::Copy)?,
        (Isolation::Namespaces, Some(refused)) => {
            reason = Some(refused.to_owned());
            run(RootWay::Copy)?
        }
        (Isolation::Namespaces, None) => match run(RootWay::Overlay) {
            Err(Error::Runtime(error)) if error.is_overlay_refused() => {
                reason = Some(error.to_string());
                run(RootWay::Copy)?
            }
            finished => finished?,
        },
    };
    let copied =
        reason.map(|reason| format!("the image was copied, since no overlay can be mounted here: {reason}"));
    Ok(Ended { exit: finished.exit, notes: finished.notes.into_iter().chain(copied).collect() })
}

/// What an image and a request make of a command.
fn sandbox(
    store: &Store,
    lease: &Lease,
    (image, request): (&Image, &Request),
    own_terminal: bool,
    (confinement, way): (Confinement, RootWay),
) -> Result<Sandbox> {
    let config = &image.config.config;
    let arguments = process::command(config, &request.entrypoint, &request.command)?;
    let prepared =
        store.prepare_root(lease, &image.config.rootfs.diff_ids, way, GivenFiles::HostsAndResolver)?;
    let view = store.root_view(&prepared.layers)?;
    let root = match &prepared.form {
        RootForm::Overlay { overlay, .. } => RootSource::Overlay { overlay: overlay.clone() },
        RootForm::Copy { directory, .. } => RootSource::Directory { path: directory.clone() },
    };
    let mut sandbox = Sandbox::new(root, arguments.into_iter().map(OsString::from).collect());
    let user = user(store, config, request, &view, &prepared)?;
    let hostname = fresh_id()?;
    let around = Surroundings {
        hostname: &hostname,
        terminal: own_terminal,
        home: user.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/"),
    };
    let environment = process::environment(config, &request.environment, &around);
    sandbox.process.environment = environment.into_iter().map(OsString::from).collect();
    sandbox.process.directory = directory(config, request)?;
    // The primary group is also an additional one (CVE-2022-36109).
    let groups = std::iter::once(user.gid).chain(user.additional).collect();
    sandbox.process.credentials = Credentials { uid: user.uid, gid: user.gid, groups };
    let origin = Origin { store, lease, prepared: &prepared, view: &view };
    sandbox.mounts = mounts::volumes(&origin, config, request)?;
    sandbox.files = mounts::provided_files(&hostname, &request.resolv_conf, &sandbox.mounts);
    sandbox.hostname = Some(hostname.into());
    sandbox.confine(confinement);
    Ok(sandbox)
}

fn confinement(store: &Store, isolation: Isolation) -> Confinement {
    let ownership = match store.ownership() {
        Ownership::SingleId => OwnershipMode::Recorded,
        Ownership::Root | Ownership::SubIds => OwnershipMode::Kernel,
    };
    Confinement { isolation, ownership, ..Confinement::default() }
}

fn directory(config: &Config, request: &Request) -> Result<PathBuf> {
    match &request.directory {
        Some(directory) if !directory.starts_with('/') => Err(Error::RelativeDirectory(directory.clone())),
        Some(directory) => Ok(PathBuf::from(directory)),
        // An image may say `app`: Docker takes it from the root.
        None => Ok(PathBuf::from("/").join(&config.working_dir)),
    }
}

/// The user, by the image's own passwd and group.
fn user(
    store: &Store,
    config: &Config,
    request: &Request,
    view: &RootView,
    prepared: &PreparedRoot,
) -> Result<Groups> {
    let text = match &request.user {
        Some(user) if !user.is_empty() => user,
        _ => &config.user,
    };
    let spec = UserSpec::parse(text);
    let passwd = store.read_root_file(view, &prepared.layers, b"etc/passwd")?.unwrap_or_default();
    let group = store.read_root_file(view, &prepared.layers, b"etc/group")?.unwrap_or_default();
    Ok(find_user(&spec, &passwd, &group)?)
}

/// Twelve random hexadecimal digits: the short form of a container ID.
fn fresh_id() -> Result<String> {
    let mut bytes = [0_u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::Random(errno.into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
