//! RUN: a process over the parent's layers, and the layer that it leaves behind.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_dockerfile::Variables as _;
use kiln_graph::{Cancel, Context, Done, OnCancel, Preimage, Stop, Stream as LogStream};
use kiln_layer::{Kind, Owner, Owners, RecordedDevice, RootView};
use kiln_oci::{DiffId, Digest, Groups, UserSpec, find_user};
use kiln_runtime::{
    BindSource, Capabilities, Confinement, Finished, Interrupt, Isolation, LowerFile, LowerFiles, Mount,
    MountKind, Network, OwnershipMode, ProvidedFile, RootSource, Running, RuntimeError, Sandbox, Security,
    Stream, Streams, start_interruptibly,
};
use kiln_store::{GivenFiles, Ownership, PreparedRoot, RootForm, RootPart, RootWay, Store, Working};
use kiln_sys::overlay::{Overlay, Upper};
use kiln_sys::process::Credentials;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::caches::Caches;
use crate::engine::{Engine, Step};
use crate::environment::Environment;
use crate::error::{Absence, Error, Result};
use crate::operation::{Access, MountSource, RunMount, RunMountKind, RunOperation, SecurityMode};
use crate::request::NetworkMode;
use crate::wait::FilesWait;

/// The host name of RUN steps, which must not differ between machines.
const HOSTNAME: &str = "buildkitsandbox";
const HOSTS: &[u8] = b"127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const COPIED: &str = "roots of RUN steps are copied, since no overlay can be mounted here";
/// Where lent files are mounted.
const SCRIPTS: &str = "/dev/pipes";

/// Runs the step and publishes its layer. What the step came from is what its mounts showed, which may be newer than the
/// key.
pub(crate) fn execute(
    engine: &Engine<'_>,
    operation: &RunOperation,
    isolation: Isolation,
    preimage: &Preimage,
    inputs: &[Step],
    context: &Context<'_>,
) -> std::result::Result<Done<Step>, Stop<Error>> {
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
    let begun = match begin(engine, operation, inputs, parent, context) {
        Err(Error::Runtime(error)) if error.is_overlay_refused() && engine.root_way() == RootWay::Overlay => {
            engine.overlays_refused.store(true, Ordering::Relaxed);
            engine.note_once(&format!("{COPIED}: {error}"));
            begin(engine, operation, inputs, parent, context).map_err(Error::stop)?
        }
        begun => begun.map_err(Error::stop)?,
    };
    if engine.stood_on.contains(&context.vertex()) {
        engine.launcher.expect(confinement(engine, operation, isolation));
    }
    // The command has begun to work meanwhile, and what it says is read, however much there is to remove.
    let spent = engine.lease()?.tidy();
    std::thread::scope(|scope| {
        if let Some(spent) = spent {
            scope.spawn(|| spent.remove());
        }
        end(engine, operation, preimage, inputs, &view, begun, context)
    })
}

/// Follows a step to its end, and publishes its layer.
fn end(
    engine: &Engine<'_>,
    operation: &RunOperation,
    preimage: &Preimage,
    inputs: &[Step],
    view: &RootView,
    begun: Begun<'_>,
    context: &Context<'_>,
) -> std::result::Result<Done<Step>, Stop<Error>> {
    let Begun { prepared, fresh, running, caches, shown } = begun;
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
    let patience = FilesWait::new(context);
    let working = Working::with(engine.lease().map_err(Stop::Failed)?, &patience);
    let step = (operation, inputs, view);
    let layer = publish(engine.store, working, step, &prepared, &mut finished, fresh)?;
    engine.lease().map_err(Stop::Failed)?.discard(&prepared);
    let result = engine.made(inputs[0].chain, layer);
    Ok(Done { result, preimage: Some(operation.came_from(preimage, &shown)) })
}

/// What a step stands on, and what holds it.
#[derive(Clone, Copy)]
struct Parent<'a> {
    isolation: Isolation,
    layers: &'a [DiffId],
    view: &'a RootView,
}

/// A step that runs.
struct Begun<'a> {
    prepared: PreparedRoot,
    /// Whose new files are.
    fresh: (u32, u32),
    running: Running,
    /// Held until it has ended.
    caches: Caches<'a>,
    /// What its bind mounts of the context show, in order, by the digests of that.
    shown: Vec<Digest>,
}

fn begin<'a>(
    engine: &Engine<'_>,
    operation: &RunOperation,
    inputs: &[Step],
    parent: Parent<'_>,
    context: &'a Context<'a>,
) -> Result<Begun<'a>> {
    let confinement = confinement(engine, operation, parent.isolation);
    engine.launcher.expect(confinement);
    let prepared = engine.store.prepare_root(
        Working::with(engine.lease()?, &FilesWait::new(context)),
        parent.layers,
        engine.root_way(),
        given_files(operation),
    )?;
    let (mut caches, mut shown) = (Caches::new(context), Vec::new());
    let sandbox = sandbox(engine, operation, inputs, &prepared, parent, (&mut caches, &mut shown))?;
    let fresh = (sandbox.process.credentials.uid, sandbox.process.credentials.gid);
    let streams = Streams { input: Stream::Null, output: Stream::Pipe, error: Stream::Pipe };
    let below = match sandbox.ownership {
        OwnershipMode::Recorded => Some(lower_files(engine.store.root_view(parent.layers)?)),
        OwnershipMode::Kernel => None,
    };
    let interrupt = CancelBell::new(context.cancel())?;
    let running = start_interruptibly(&sandbox, streams, below.as_ref(), &engine.launcher, &interrupt)
        .map_err(|error| failed_to_start(&operation.arguments, error))?;
    Ok(Begun { prepared, fresh, running, caches, shown })
}

/// Ends the start of a step when the build is canceled.
struct CancelBell<'a> {
    cancel: &'a Cancel,
    rung: Arc<OwnedFd>,
    _ring: OnCancel,
}

impl<'a> CancelBell<'a> {
    fn new(cancel: &'a Cancel) -> Result<Self> {
        let rung = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| {
            Error::Runtime(RuntimeError::Process { operation: "make an event", source: errno.into() })
        })?;
        let rung = Arc::new(rung);
        let bell = Arc::clone(&rung);
        let ring = cancel.on_cancel(move || {
            let _ = rustix::io::write(&*bell, &1_u64.to_ne_bytes());
        });
        Ok(Self { cancel, rung, _ring: ring })
    }
}

impl Interrupt for CancelBell<'_> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.rung.as_fd()
    }

    fn is_interrupted(&self) -> bool {
        self.cancel.is_canceled()
    }
}

/// Whose files are that the step finds.
fn lower_files(view: RootView) -> LowerFiles {
    Arc::new(move |path| {
        let found = view.status(path.as_os_str().as_bytes()).ok()??;
        Some(LowerFile { uid: found.uid, gid: found.gid, mode: found.mode, has_links: found.has_links })
    })
}

/// The walk over what the process changed.
fn publish(
    store: &Store,
    working: Working<'_>,
    (operation, inputs, view): (&RunOperation, &[Step], &RootView),
    prepared: &PreparedRoot,
    finished: &mut Finished,
    fresh: (u32, u32),
) -> Result<DiffId> {
    let changed = prepared.changed();
    let failed = |action| move |source| Error::File { action, path: changed.display().to_string(), source };
    finished.stubs.undo(changed).map_err(failed("take mount points back from"))?;
    finished.ownership.verify(changed).map_err(failed("match recorded owners with"))?;
    let recorded = |stat: &rustix::fs::Stat| owner(&finished.ownership, stat);
    let owners = match store.ownership() {
        Ownership::SingleId => Owners::Recorded { recorded: &recorded, fresh },
        Ownership::Root | Ownership::SubIds => Owners::Files,
    };
    let layer = store.capture(working, prepared, view, owners, operation.epoch)?;
    Ok(store.publish_layer(&working, inputs[0].chain, layer)?)
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

fn failed_to_start(arguments: &[String], error: RuntimeError) -> Error {
    match error.status() {
        _ if matches!(error, RuntimeError::Interrupted) => Error::Canceled,
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
    (caches, shown): (&mut Caches<'_>, &mut Vec<Digest>),
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
    caches.take(engine, operation, inputs, isolation)?;
    for mount in &operation.mounts {
        let kind = mount_kind(engine, mount, inputs, (isolation, prepared.way()), caches, shown)?;
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

/// The image's own, as BuildKit has them, then what is lent and is not there already, then what BuildKit adds.
fn environment(engine: &Engine<'_>, operation: &RunOperation, user: &Groups) -> Vec<OsString> {
    let mut environment = Environment::default();
    operation.environment.pairs().into_iter().for_each(|(name, value)| environment.set(name, value));
    let mut around = Environment::default();
    let lent = engine.request.lent.environment.iter().cloned().chain(engine.request.proxies());
    lent.for_each(|(name, value)| around.set(&name, &value));
    let home = ("HOME", user.home.as_deref().unwrap_or("/"));
    for (name, value) in around.settings().pairs().into_iter().chain([home]) {
        if environment.get(name).is_none() {
            environment.set(name, value);
        }
    }
    let pairs = environment.settings();
    pairs.pairs().into_iter().map(|(name, value)| OsString::from(format!("{name}={value}"))).collect()
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
    caches: &mut Caches<'_>,
    shown: &mut Vec<Digest>,
) -> Result<MountKind> {
    match &mount.kind {
        RunMountKind::Tmpfs { size } => {
            Ok(MountKind::Tmpfs { size: (*size > 0).then_some(*size), mode: 0o1777 })
        }
        RunMountKind::Bind { source, path, access } => {
            bind(engine, caches.step(), (*source, path), *access, inputs, way, shown)
        }
        RunMountKind::Cache(mount) => caches.mount(engine, mount, inputs, isolation),
    }
}

/// The primary group first: a process must not lose it by changing its effective one (CVE-2022-2990).
fn all_groups(user: &Groups) -> Vec<u32> {
    std::iter::once(user.gid).chain(user.additional.iter().copied()).collect()
}

fn bind(
    engine: &Engine<'_>,
    context: &Context<'_>,
    (source, path): (MountSource, &str),
    access: Access,
    inputs: &[Step],
    way: RootWay,
    shown: &mut Vec<Digest>,
) -> Result<MountKind> {
    let lowers = match source {
        MountSource::Empty => only(engine.fresh_directory("empty")?),
        MountSource::Context => {
            let (below, digest) = engine.materialize_bind(path)?;
            shown.push(digest);
            if !below.is_dir() {
                return Ok(bind_own(below, access));
            }
            only(below)
        }
        MountSource::Input(position) => {
            let layers = engine.layers(inputs[position].chain)?;
            let patience = FilesWait::new(context);
            let working = Working::with(engine.lease()?, &patience);
            match engine.store.root_part(working, &layers, path.as_bytes(), way)? {
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
                        absence: Absence::Unexplained,
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
    let failed = |action| move |source| Error::File { action, path: name.to_owned(), source };
    std::io::Write::write_all(&mut file, content.as_bytes()).map_err(failed("write"))?;
    // Whatever the umask is: the step's user, whoever that is, executes it.
    kiln_sys::root::set_file(&file, None, Some(0o755), None).map_err(failed("set the mode of"))?;
    root.set_self(Some(0o755), None, None)?;
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
