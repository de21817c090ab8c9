//! RUN: a process over the parent's layers, and the layer that it leaves behind.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_dockerfile::Variables as _;
use kiln_graph::{Context, Stop, Stream as LogStream};
use kiln_layer::{Kind, Owner, Owners, RecordedDevice, RootView};
use kiln_oci::{ChainId, DiffId, Groups, UserSpec, find_user};
use kiln_runtime::{
    BindSource, Capabilities, Confinement, Finished, Isolation, LowerFile, LowerFiles, Mount, MountKind,
    Network, OwnershipMode, ProvidedFile, RootSource, Running, Sandbox, Security, Stream, Streams,
};
use kiln_store::{
    CacheMountIdentity, CacheMountUse, GivenFiles, Ownership, PreparedRoot, RootForm, RootPart, RootWay,
};
use kiln_sys::overlay::{Overlay, Upper};
use kiln_sys::process::Credentials;
use rustix::event::{PollFd, PollFlags, poll};

use crate::engine::{Engine, Step};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::operation::{
    Access, CacheOwner, CacheSharing, MountSource, RunMount, RunMountKind, RunOperation, SecurityMode,
};
use crate::request::NetworkMode;

/// The host name of RUN steps, which must not differ between machines.
const HOSTNAME: &str = "buildkitsandbox";
const HOSTS: &[u8] = b"127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const COPIED: &str = "roots of RUN steps are copied, since no overlay can be mounted here";
/// Where lent files are mounted.
const SCRIPTS: &str = "/dev/pipes";

/// Runs the step and publishes its layer.
pub(crate) fn execute(
    engine: &Engine<'_>,
    operation: &RunOperation,
    isolation: Isolation,
    inputs: &[Step],
    context: &Context<'_>,
) -> std::result::Result<DiffId, Stop<Error>> {
    if operation.network == NetworkMode::Default {
        engine.note_once("RUN steps use this machine's network: kiln has no networks of its own yet");
    }
    let layers = engine.layers(inputs[0].chain)?;
    let view = engine.store.root_view(&layers).map_err(Error::from)?;
    let parent = Parent { layers: &layers, view: &view, isolation };
    if isolation == Isolation::Namespaces
        && let Some(reason) = engine.store.snapshots_refused()
    {
        engine.note_once(&format!("{COPIED}: {reason}"));
    }
    let Begun { prepared, fresh, running, caches } = match begin(engine, operation, inputs, parent) {
        Err(Error::Runtime(error)) if error.is_overlay_refused() && engine.root_way() == RootWay::Overlay => {
            engine.overlays_refused.store(true, Ordering::Relaxed);
            engine.note_once(&format!("{COPIED}: {error}"));
            begin(engine, operation, inputs, parent)?
        }
        begun => begun?,
    };
    if engine.stood_on.contains(&context.vertex()) {
        engine.launcher.expect(confinement(engine, operation, isolation));
    }
    // The command has begun to work meanwhile.
    engine.lease()?.tidy();
    let started = kiln_trace::span("run");
    let mut finished = follow(running, context)?;
    drop(started);
    drop(caches);
    if context.cancel().is_canceled() {
        return Err(Stop::Canceled);
    }
    for note in &finished.notes {
        engine.note_once(note);
    }
    if !finished.exit.success() {
        let command = operation.arguments.join(" ");
        return Err(Stop::Failed(Error::Exit { command, status: i32::from(finished.exit.status()) }));
    }
    let layer = publish(engine, operation, inputs, &prepared, &view, &mut finished, fresh)?;
    engine.lease().map_err(Stop::Failed)?.discard(&prepared);
    Ok(layer)
}

/// What a step stands on, and what holds it.
#[derive(Clone, Copy)]
struct Parent<'a> {
    isolation: Isolation,
    layers: &'a [DiffId],
    view: &'a RootView,
}

/// A step that runs.
struct Begun {
    prepared: PreparedRoot,
    /// Whose new files are.
    fresh: (u32, u32),
    running: Running,
    /// Held until it has ended.
    caches: Vec<CacheMountUse>,
}

fn begin(
    engine: &Engine<'_>,
    operation: &RunOperation,
    inputs: &[Step],
    parent: Parent<'_>,
) -> Result<Begun> {
    let confinement = confinement(engine, operation, parent.isolation);
    engine.launcher.expect(confinement);
    let prepared = engine.store.prepare_root(
        engine.lease()?,
        parent.layers,
        engine.root_way(),
        given_files(operation),
    )?;
    let mut caches = Vec::new();
    let sandbox = sandbox(engine, operation, inputs, &prepared, parent, &mut caches)?;
    let fresh = (sandbox.process.credentials.uid, sandbox.process.credentials.gid);
    let streams = Streams { input: Stream::Null, output: Stream::Pipe, error: Stream::Pipe };
    let below = match sandbox.ownership {
        OwnershipMode::Recorded => Some(lower_files(engine.store.root_view(parent.layers)?)),
        OwnershipMode::Kernel => None,
    };
    let running = kiln_runtime::start(&sandbox, streams, below.as_ref(), &engine.launcher)
        .map_err(|error| failed_to_start(&operation.arguments, error))?;
    Ok(Begun { prepared, fresh, running, caches })
}

/// Whose files are that the step finds.
fn lower_files(view: RootView) -> LowerFiles {
    Arc::new(move |path| {
        let (uid, gid, mode) = view.status(path.as_os_str().as_bytes()).ok()??;
        Some(LowerFile { uid, gid, mode })
    })
}

/// The walk over what the process changed.
fn publish(
    engine: &Engine<'_>,
    operation: &RunOperation,
    inputs: &[Step],
    prepared: &PreparedRoot,
    view: &RootView,
    finished: &mut Finished,
    fresh: (u32, u32),
) -> Result<DiffId> {
    let changed = prepared.changed();
    let failed = |action| move |source| Error::File { action, path: changed.display().to_string(), source };
    finished.stubs.undo(changed).map_err(failed("take mount points back from"))?;
    finished.ownership.verify(changed).map_err(failed("match recorded owners with"))?;
    let recorded = |stat: &rustix::fs::Stat| owner(&finished.ownership, stat);
    let owners = match engine.store.ownership() {
        Ownership::SingleId => Owners::Recorded { recorded: &recorded, fresh },
        Ownership::Root | Ownership::SubIds => Owners::Files,
    };
    let layer = engine.store.capture(engine.lease()?, prepared, view, owners, operation.epoch)?;
    Ok(engine.store.publish_layer(engine.lease()?, inputs[0].chain, layer)?)
}

/// Whose a changed file is, as recorded while the step ran.
fn owner(ownership: &kiln_runtime::Ownership, stat: &rustix::fs::Stat) -> Option<Owner> {
    let record = ownership.of_inode(stat.st_dev, stat.st_ino)?;
    let device = record.device.map(|node| RecordedDevice {
        kind: if node.block { Kind::BlockDevice } else { Kind::CharacterDevice },
        number: (node.major, node.minor),
    });
    Some(Owner { uid: record.uid, gid: record.gid, device })
}

fn failed_to_start(arguments: &[String], error: kiln_runtime::RuntimeError) -> Error {
    match error.status() {
        126 | 127 => {
            Error::NotStarted { command: arguments.join(" "), status: error.status().into(), source: error }
        }
        _ => Error::Runtime(error),
    }
}

fn sandbox(
    engine: &Engine<'_>,
    operation: &RunOperation,
    inputs: &[Step],
    prepared: &PreparedRoot,
    parent: Parent<'_>,
    caches: &mut Vec<CacheMountUse>,
) -> Result<Sandbox> {
    let Parent { view, isolation, .. } = parent;
    let root = match &prepared.form {
        RootForm::Overlay { overlay, .. } => RootSource::Overlay { overlay: overlay.clone() },
        RootForm::Copy { directory, .. } => RootSource::Directory { path: directory.clone() },
    };
    let mut sandbox = Sandbox::new(root, operation.arguments.iter().map(OsString::from).collect());
    let user = user(engine, &operation.user, view, &prepared.layers)?;
    sandbox.process.environment = environment(engine, operation, &user);
    sandbox.process.directory = PathBuf::from(&operation.directory);
    sandbox.process.credentials = Credentials { uid: user.uid, gid: user.gid, groups: all_groups(&user) };
    sandbox.hostname = Some(HOSTNAME.into());
    sandbox.confine(confinement(engine, operation, isolation));
    if operation.security == SecurityMode::Insecure {
        sandbox.process.capabilities = Capabilities::ALL;
    }
    take_caches(engine, operation, inputs, isolation, caches)?;
    for mount in &operation.mounts {
        let kind = mount_kind(engine, mount, inputs, (isolation, prepared.way()), caches)?;
        sandbox.mounts.push(Mount { kind, target: PathBuf::from(&mount.target) });
    }
    if let Some((name, content)) = &operation.script {
        sandbox.mounts.push(script_mount(engine, name, content)?);
    }
    sandbox.files = provided_files(engine, operation);
    Ok(sandbox)
}

fn confinement(engine: &Engine<'_>, operation: &RunOperation, isolation: Isolation) -> Confinement {
    Confinement {
        isolation,
        network: match operation.network {
            NetworkMode::None => Network::None,
            NetworkMode::Default | NetworkMode::Host => Network::Host,
        },
        security: match operation.security {
            SecurityMode::Insecure => Security::Insecure,
            SecurityMode::Sandbox => Security::Sandboxed,
        },
        ownership: match engine.store.ownership() {
            Ownership::SingleId => OwnershipMode::Recorded,
            Ownership::Root | Ownership::SubIds => OwnershipMode::Kernel,
        },
    }
}

/// As [`provided_files`] provides them.
fn given_files(operation: &RunOperation) -> GivenFiles {
    match operation.network {
        NetworkMode::None => GivenFiles::Hosts,
        NetworkMode::Default | NetworkMode::Host => GivenFiles::HostsAndResolver,
    }
}

/// Files over those of the root. They are in no layer, whatever the step does.
fn provided_files(engine: &Engine<'_>, operation: &RunOperation) -> Vec<ProvidedFile> {
    let file = |target: &str, contents: &[u8], read_only| ProvidedFile {
        target: PathBuf::from(target),
        contents: contents.to_vec(),
        read_only,
    };
    let mut files = vec![file("/etc/hosts", HOSTS, false)];
    if operation.network != NetworkMode::None {
        files.push(file("/etc/resolv.conf", &engine.request.resolv_conf, false));
    }
    for (target, contents) in &engine.request.lent.files {
        files.push(file(target, contents, true));
    }
    files
}

/// Lent variables first, so that the image's own win; then what BuildKit adds.
fn environment(engine: &Engine<'_>, operation: &RunOperation, user: &Groups) -> Vec<OsString> {
    let mut environment = Environment::default();
    let around = engine.request.lent.environment.iter().cloned().chain(engine.request.proxies());
    around.for_each(|(name, value)| environment.set(&name, &value));
    operation.environment.iter().for_each(|(name, value)| environment.set(name, value));
    if environment.get("HOME").is_none() {
        environment.set("HOME", user.home.as_deref().unwrap_or("/"));
    }
    let pairs = environment.pairs().iter();
    pairs.map(|(name, value)| OsString::from(format!("{name}={value}"))).collect()
}

/// The user of a step, from the image's own passwd and group.
pub(crate) fn user(engine: &Engine<'_>, user: &str, view: &RootView, layers: &[DiffId]) -> Result<Groups> {
    let spec = user_spec(user);
    let passwd = engine.store.read_root_file(view, layers, b"etc/passwd")?.unwrap_or_default();
    let group = engine.store.read_root_file(view, layers, b"etc/group")?.unwrap_or_default();
    Ok(find_user(&spec, &passwd, &group)?)
}

/// USER as BuildKit reads it: beside another number, `root` is one, whatever the image's files say.
fn user_spec(text: &str) -> UserSpec {
    let mut spec = UserSpec::parse(text);
    let is_number =
        |word: &str| word == "root" || !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    if let Some(group) = &mut spec.group
        && is_number(&spec.user)
        && is_number(group)
    {
        for word in [&mut spec.user, group] {
            if word == "root" {
                "0".clone_into(word);
            }
        }
    }
    spec
}

fn mount_kind(
    engine: &Engine<'_>,
    mount: &RunMount,
    inputs: &[Step],
    (isolation, way): (Isolation, RootWay),
    caches: &mut Vec<CacheMountUse>,
) -> Result<MountKind> {
    match &mount.kind {
        RunMountKind::Tmpfs { size } => {
            Ok(MountKind::Tmpfs { size: (*size > 0).then_some(*size), mode: 0o1777 })
        }
        RunMountKind::Bind { source, path, access } => bind(engine, (*source, path), *access, inputs, way),
        RunMountKind::Cache { id, sharing, source, path, owner, access } => {
            let from = cache_source(engine, *source, inputs)?;
            let wanted = WantedCache { id, sharing: *sharing, from, path, owner: *owner };
            cache_mount(engine, &wanted, isolation, *access, caches)
        }
    }
}

/// Takes all caches of a step, in an order that is the same in every step and process, so that no two wait for each other.
fn take_caches(
    engine: &Engine<'_>,
    operation: &RunOperation,
    inputs: &[Step],
    isolation: Isolation,
    caches: &mut Vec<CacheMountUse>,
) -> Result<()> {
    let mut wanted = Vec::new();
    for mount in &operation.mounts {
        if let RunMountKind::Cache { id, sharing, source, path, owner, access: _ } = &mount.kind {
            let from = cache_source(engine, *source, inputs)?;
            wanted.push(WantedCache { id, sharing: *sharing, from, path, owner: *owner });
        }
    }
    wanted.sort_by_key(WantedCache::identity);
    let same = |pair: &[WantedCache<'_>]| pair[0].identity() == pair[1].identity();
    if isolation == Isolation::Chroot && wanted.windows(2).any(same) {
        let what = "one cache at two places of a step, where nothing can be mounted,";
        return Err(Error::Unsupported(what.to_owned()));
    }
    wanted.iter().try_for_each(|wanted| filled_cache(engine, wanted, isolation, caches).map(drop))
}

/// A cache mount as a step asks for it.
struct WantedCache<'a> {
    id: &'a str,
    sharing: CacheSharing,
    /// What a new one begins with.
    from: Option<ChainId>,
    /// In `from`, else in the cache.
    path: &'a str,
    owner: Option<CacheOwner>,
}

impl WantedCache<'_> {
    /// Which directory it is: as in BuildKit, that of another base or owner is another one.
    fn identity(&self) -> CacheMountIdentity {
        let mut base = Vec::new();
        if let Some(from) = self.from {
            base.push(format!("from={from}"));
            if self.owner.is_none() {
                base.push(format!("source={}", self.path));
            }
        }
        if let Some(CacheOwner { uid, gid, mode }) = self.owner {
            base.push(format!("uid={uid},gid={gid},mode={mode:o}"));
        }
        CacheMountIdentity { id: self.id.to_owned(), base: base.join(",") }
    }
}

/// What a cache mount begins with. A stage without layers is nothing.
fn cache_source(engine: &Engine<'_>, source: MountSource, inputs: &[Step]) -> Result<Option<ChainId>> {
    match source {
        MountSource::Empty | MountSource::Context => Ok(None),
        MountSource::Input(position) => {
            let chain = inputs[position].chain;
            Ok((!engine.layers(chain)?.is_empty()).then_some(chain))
        }
    }
}

fn cache_mount(
    engine: &Engine<'_>,
    wanted: &WantedCache<'_>,
    isolation: Isolation,
    access: Access,
    caches: &mut Vec<CacheMountUse>,
) -> Result<MountKind> {
    let used = filled_cache(engine, wanted, isolation, caches)?;
    let inside = if wanted.from.is_none() { wanted.path } else { "/" };
    let is_whole = inside.trim_matches('/').is_empty();
    Ok(MountKind::Bind {
        source: match is_whole && isolation == Isolation::Chroot {
            true => BindSource::Owned { path: used },
            false => BindSource::Within { root: used, path: PathBuf::from(inside) },
        },
        read_only: access == Access::ReadOnly,
        recursive: false,
    })
}

/// Takes a cache mount for the time of the step, and makes what it begins with.
fn filled_cache(
    engine: &Engine<'_>,
    wanted: &WantedCache<'_>,
    isolation: Isolation,
    caches: &mut Vec<CacheMountUse>,
) -> Result<PathBuf> {
    // A cache that is moved into a root is nobody else's meanwhile.
    let alone = isolation == Isolation::Chroot && wanted.sharing == CacheSharing::Shared;
    let sharing = match if alone { CacheSharing::Locked } else { wanted.sharing } {
        CacheSharing::Shared => kiln_store::CacheMountSharing::Shared,
        CacheSharing::Private => kiln_store::CacheMountSharing::Private,
        CacheSharing::Locked => kiln_store::CacheMountSharing::Locked,
    };
    let identity = wanted.identity();
    if let Some(held) = caches.iter().find(|held| *held.identity() == identity) {
        // A step does not wait for itself.
        return Ok(held.path().to_path_buf());
    }
    let mut used = engine.store.cache_mount(&identity, sharing)?;
    while used.is_fresh() {
        let directory = used.path().to_path_buf();
        // What a step that was cut off had begun to fill is not trusted.
        kiln_sys::root::Directory::open(&directory)?.clear()?;
        match (wanted.from, wanted.owner) {
            (Some(chain), None) => engine.materialize_from(chain, wanted.path, &directory)?,
            (_, owner) => own(engine, &directory, owner.unwrap_or(CacheOwner::ROOT))?,
        }
        engine.store.cache_mount_is_filled(&used)?;
        drop(used);
        used = engine.store.cache_mount(&identity, sharing)?;
    }
    let directory = used.path().to_path_buf();
    caches.push(used);
    Ok(directory)
}

/// The primary group first: a process must not lose it by changing its effective one (CVE-2022-2990).
fn all_groups(user: &Groups) -> Vec<u32> {
    std::iter::once(user.gid).chain(user.additional.iter().copied()).collect()
}

fn own(engine: &Engine<'_>, directory: &Path, owner: CacheOwner) -> Result<()> {
    let error = |source| Error::File { action: "prepare", path: directory.display().to_string(), source };
    // With one user there is nobody else to give it to, and whoever the step becomes may write.
    let single = engine.store.ownership() == Ownership::SingleId;
    let (uid, gid) = if single { (0, 0) } else { (owner.uid, owner.gid) };
    std::os::unix::fs::chown(directory, Some(uid), Some(gid)).map_err(error)?;
    fs_err::set_permissions(directory, std::fs::Permissions::from_mode(owner.mode)).map_err(error)
}

fn bind(
    engine: &Engine<'_>,
    (source, path): (MountSource, &str),
    access: Access,
    inputs: &[Step],
    way: RootWay,
) -> Result<MountKind> {
    let lowers = match source {
        MountSource::Empty => only(engine.fresh_directory("empty")?),
        MountSource::Context => {
            let directory = engine.fresh_directory("context")?;
            let below = engine.materialize_bind(path, &directory)?;
            if !below.is_dir() {
                return Ok(bind_own(below, access));
            }
            only(below)
        }
        MountSource::Input(position) => {
            let layers = engine.layers(inputs[position].chain)?;
            match engine.store.root_part(engine.lease()?, &layers, path.as_bytes(), way)? {
                Some(RootPart::Directories(lowers)) => lowers,
                Some(RootPart::File(file)) => {
                    let file = match access {
                        Access::ReadOnly => file,
                        Access::ReadWrite => copy_of(engine, &file)?,
                    };
                    return Ok(bind_host(file, access));
                }
                Some(RootPart::Copy(copy)) => return Ok(bind_own(copy, access)),
                None => {
                    return Err(Error::NoSource {
                        path: path.to_owned(),
                        place: "the mount's source".to_owned(),
                        ignored: false,
                    });
                }
            }
        }
    };
    if let (RootWay::Copy, [own]) = (way, lowers.directories.as_slice()) {
        // It is the step's own.
        return Ok(bind_own(own.clone(), access));
    }
    let upper = match access {
        Access::ReadOnly => None,
        Access::ReadWrite => {
            let upper = engine.fresh_directory("upper")?;
            match source {
                MountSource::Input(position) => dress(engine, inputs[position], path, &upper)?,
                MountSource::Empty | MountSource::Context => like(&lowers.directories[0], &upper)?,
            }
            Some(Upper { upper, work: engine.fresh_directory("work")? })
        }
    };
    let userxattr = engine.store.ownership() != Ownership::Root;
    Ok(MountKind::Overlay {
        overlay: Overlay { tars: lowers.tars, lowers: lowers.directories, upper, userxattr, volatile: true },
    })
}

/// The lowers of an overlay over one directory.
fn only(directory: PathBuf) -> kiln_store::Lowers {
    kiln_store::Lowers { tars: Vec::new(), directories: vec![directory] }
}

/// Gives a directory the owner and mode of one in a stage or image.
fn dress(engine: &Engine<'_>, step: Step, path: &str, directory: &Path) -> Result<()> {
    let view = engine.store.root_view(&engine.layers(step.chain)?)?;
    match view.resolve(path.as_bytes())? {
        Some(node) => Ok(engine.store.dress(directory, &view.metadata(&node)?)?),
        None => Ok(()),
    }
}

/// Gives a directory the owner and mode of another.
fn like(other: &Path, directory: &Path) -> Result<()> {
    let failed = |source| Error::File { action: "prepare", path: directory.display().to_string(), source };
    let metadata = fs_err::symlink_metadata(other).map_err(failed)?;
    std::os::unix::fs::chown(directory, Some(metadata.uid()), Some(metadata.gid())).map_err(failed)?;
    fs_err::set_permissions(directory, metadata.permissions()).map_err(failed)
}

fn bind_own(path: PathBuf, access: Access) -> MountKind {
    let read_only = access == Access::ReadOnly;
    MountKind::Bind { source: BindSource::Owned { path }, read_only, recursive: false }
}

fn bind_host(path: PathBuf, access: Access) -> MountKind {
    let read_only = access == Access::ReadOnly;
    MountKind::Bind { source: BindSource::Host { path }, read_only, recursive: false }
}

/// A copy of a layer's file, with its mode and owner, that a step may write to: it is thrown away.
fn copy_of(engine: &Engine<'_>, file: &Path) -> Result<PathBuf> {
    let failed = |source| Error::File { action: "copy", path: file.display().to_string(), source };
    let metadata = fs_err::symlink_metadata(file).map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::Unsupported(
            "a writable bind mount of what is neither file nor directory".to_owned(),
        ));
    }
    let copy = engine.lease()?.fresh_path("file");
    fs_err::copy(file, &copy).map_err(failed)?;
    std::os::unix::fs::lchown(&copy, Some(metadata.uid()), Some(metadata.gid())).map_err(failed)?;
    fs_err::set_permissions(&copy, metadata.permissions()).map_err(failed)?;
    Ok(copy)
}

fn script_mount(engine: &Engine<'_>, name: &str, content: &str) -> Result<Mount> {
    let directory = engine.fresh_directory("script")?;
    let root = kiln_sys::root::Directory::open(&directory)?;
    let mut file = root.create_file(name, 0o755)?;
    std::io::Write::write_all(&mut file, content.as_bytes()).map_err(|source| Error::File {
        action: "write",
        path: name.to_owned(),
        source,
    })?;
    let kind =
        MountKind::Bind { source: BindSource::Owned { path: directory }, read_only: true, recursive: false };
    Ok(Mount { kind, target: PathBuf::from(SCRIPTS) })
}

/// Hands output on until the command ends; kills it when the build is canceled. What the command left in the background may
/// hold the pipes open for longer where it is not the kernel that ends that.
fn follow(mut running: Running, context: &Context<'_>) -> std::result::Result<Finished, Stop<Error>> {
    let signaller = running.signaller();
    let _kill = context.cancel().on_cancel(move || {
        let _ = signaller.kill();
    });
    let output = running.output.take().map(File::from);
    let error = running.error.take().map(File::from);
    let mut streams = [(output, LogStream::Output), (error, LogStream::Error)];
    let mut buffer = vec![0; 64 << 10];
    let mut hand_on = |streams: &mut [(Option<File>, LogStream); 2]| {
        let mut came = false;
        for (slot, stream) in streams {
            let Some(file) = slot else { continue };
            if !is_readable(file.as_fd()) {
                continue;
            }
            came = true;
            match file.read(&mut buffer) {
                Ok(0) | Err(_) => *slot = None,
                Ok(length) => context.log(*stream, &buffer[..length]),
            }
        }
        came
    };
    while streams.iter().any(|(file, _)| file.is_some()) && !is_readable(running.ended()) {
        wait_readable(&streams, running.ended());
        hand_on(&mut streams);
    }
    let finished = running.wait().map_err(Error::Runtime)?;
    // Nobody is left who could write, and what was written is in the pipes.
    while hand_on(&mut streams) {}
    Ok(finished)
}

fn wait_readable(streams: &[(Option<File>, LogStream); 2], ended: BorrowedFd<'_>) {
    let files = streams.iter().filter_map(|(file, _)| file.as_ref()).map(AsFd::as_fd);
    let mut fds: Vec<PollFd<'_>> =
        files.chain([ended]).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let _ = poll(&mut fds, None);
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_a_number_beside_a_number() {
        let check = |text: &str, user: &str, group: Option<&str>| {
            let expect = UserSpec { user: user.to_owned(), group: group.map(str::to_owned) };
            assert_eq!(user_spec(text), expect, "{text}");
        };
        check("root:root", "0", Some("0"));
        check("root:5", "0", Some("5"));
        check("5:root", "5", Some("0"));
        check("root", "root", None);
        check("root:", "root", None);
        check("root:staff", "root", Some("staff"));
        check("app:root", "app", Some("root"));
        check(":root", "", Some("root"));
    }
}
