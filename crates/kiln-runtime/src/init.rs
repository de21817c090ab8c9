//! The program that a sandbox's first process runs before it becomes the command: kiln itself, started again, with one
//! thread and a description of the sandbox in a sealed file.
//!
//! Everything that could be reached from inside happens before the command, and in this order: the host's paths are
//! opened and mounted while the old root is there; then the root changes; then the current directory is set, when no
//! descriptor of the host is left that a path could name; then privileges go, the widest last.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use kiln_sys::mount::{self, Attributes, Depth};
use kiln_sys::process::{self, Ended, Forked};
use kiln_sys::{namespace, terminal};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Uid;

use crate::cgroup::Membership;
use crate::failure::{Failure, at};
use crate::filesystems::{self, Filesystems, Mounted, Nodes, Scratch};
use crate::launcher::MadeStreams;
use crate::report::Report;
use crate::sandbox::{
    BindSource, Confinement, FirstProcess, Isolation, Mount, MountKind, Network, OwnershipMode, ProvidedFile,
    RootSource, Sandbox, Security, Terminal,
};
use crate::target::{Missing, StubKind, Tree};
use crate::wire::Wire;

/// The name under which the init is started.
pub(crate) const NAME: &str = "kiln-init";
/// The descriptor of the socket to the one who started it, by which the description comes.
pub(crate) const CONTROL: i32 = 3;

/// Becomes the first process of a sandbox, or the warden of several, if this program was started for that; otherwise returns
/// at once.
///
/// To be called first thing in `main`, before any thread exists.
pub fn init_if_asked() {
    match std::env::args_os().next() {
        Some(name) if name == NAME => run(),
        Some(name) if name == crate::warden::NAME => crate::warden::run(),
        _ => {}
    }
}

fn run() -> ! {
    let Ok(control) = process::inherited(CONTROL) else { process::leave(125) };
    // As long as this process lives: a panic may come whenever.
    let control: &'static OwnedFd = Box::leak(Box::new(control));
    std::panic::set_hook(Box::new(|panic| {
        // There is nobody on standard error before there is a command.
        let _ = terminal::send_with_descriptors(control.as_fd(), &panicked(panic).encode(), &[]);
        process::leave(125)
    }));
    let Err(Failure(report)) = begin(control.as_fd());
    let _ = terminal::send_with_descriptors(control.as_fd(), &report.encode(), &[]);
    process::leave(125)
}

fn panicked(panic: &std::panic::PanicHookInfo<'_>) -> Report {
    // "panicked at FILE:LINE:COLUMN:", and what it says on the next line.
    Report::Panicked { message: panic.to_string().replace('\n', " ") }
}

/// Never returns but with a failure.
fn begin(control: BorrowedFd<'_>) -> Result<std::convert::Infallible, Failure> {
    // What the caller of kiln left open must not reach the command (CVE-2024-21626).
    process::close_on_exec_from(3).map_err(at("close inherited descriptors"))?;
    process::reset_signals();
    rustix::process::umask(Mode::empty());
    let outline = receive_outline(control)?;
    // What the root and its mounts make of /proc is not asked.
    let may_set_groups = namespace::may_set_groups();
    let made = match outline.confinement.isolation {
        Isolation::Namespaces => Some(prepare(&outline)?),
        Isolation::Chroot => None,
    };
    let (description, streams) = receive_description(control)?;
    let sandbox = &description.sandbox;
    let mut notes = Vec::new();
    let (tree, terminal) = match made {
        Some(made) => set_up_namespaces(sandbox, &outline.membership, made, control, &mut notes)?,
        None => (crate::chroot::set_up(sandbox, &mut notes)?, None),
    };
    // No descriptor of the host is open from here on, so no path leads there.
    let ready = SetUp { tree, terminal, streams, may_set_groups };
    drop_privileges_and_execute(&description, ready, control, notes)
}

fn receive_outline(control: BorrowedFd<'_>) -> Result<Outline, Failure> {
    let step = || at("receive the sandbox's outline");
    let mut message = vec![0_u8; MAX_OUTLINE];
    let (length, _) = terminal::receive_with_descriptors(control, &mut message).map_err(step())?;
    Outline::decode(&message[..length]).map_err(|_| step()(io::ErrorKind::InvalidData.into()))
}

/// What takes time and needs no more than the outline.
fn prepare(outline: &Outline) -> Result<Filesystems, Failure> {
    if let Membership::Member { .. } = outline.membership {
        process::separate_cgroups().map_err(at("separate the view of cgroups from the host's"))?;
    }
    let security = outline.confinement.security;
    Filesystems::new(security, nodes(security, &outline.membership))
}

/// Waits for the description, which comes with the command's three streams.
fn receive_description(control: BorrowedFd<'_>) -> Result<(Description, MadeStreams), Failure> {
    let step = || at("receive the sandbox's description");
    let mut made = [0_u8; 1];
    let (length, descriptors) = terminal::receive_with_descriptors(control, &mut made).map_err(step())?;
    if length == 0 {
        // It is not needed after all.
        process::leave(0);
    }
    let Ok([description, input, output, error]) = <[OwnedFd; 4]>::try_from(descriptors) else {
        return Err(step()(io::ErrorKind::InvalidData.into()));
    };
    rustix::stdio::dup2_stdin(&input)
        .and_then(|()| rustix::stdio::dup2_stdout(&output))
        .and_then(|()| rustix::stdio::dup2_stderr(&error))
        .map_err(|errno| step()(errno.into()))?;
    let description = Description::decode(&read_all(&description).map_err(step())?)
        .map_err(|_| step()(io::ErrorKind::InvalidData.into()))?;
    Ok((description, MadeStreams(made[0])))
}

/// What an init is sent when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outline {
    pub(crate) confinement: Confinement,
    pub(crate) membership: Membership,
}
crate::wire::wire_struct!(Outline { confinement, membership });

/// More bytes than an outline has: a few paths, of up to 4 KiB each.
pub(crate) const MAX_OUTLINE: usize = 128 * 1024;

/// What it is sent when it is to begin, with the command's streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) sandbox: Sandbox,
    /// The system call filter, eight bytes an instruction.
    pub(crate) filter: Vec<u64>,
}
crate::wire::wire_struct!(Description { sandbox, filter });

fn read_all(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let length = rustix::fs::fstat(file)?.st_size as usize;
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        match rustix::io::pread(file, &mut bytes[done..], done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(bytes)
}

fn set_up_namespaces(
    sandbox: &Sandbox,
    membership: &Membership,
    made: Filesystems,
    control: BorrowedFd<'_>,
    notes: &mut Vec<String>,
) -> Result<(Tree, Option<OwnedFd>), Failure> {
    let nodes = nodes(sandbox.security, membership);
    mount::make_everything_private().map_err(at("separate the mounts from the host's"))?;
    if let Some(name) = &sandbox.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|errno| at("set the host name")(errno.into()))?;
    }
    // While `/` is the host's: with the new root over it, it and what `..` leads to would be that.
    let mounts =
        sandbox.mounts.iter().map(|wanted| make_mount(wanted, nodes)).collect::<Result<Vec<_>, _>>()?;
    let root = mount_root(&sandbox.root, nodes)?;
    mount::attach_root(root.as_fd()).map_err(at("attach the root"))?;
    let mut tree =
        Tree::new(root.try_clone().map_err(at("look at the root"))?).map_err(at("look at the root"))?;
    let mounted = filesystems::mount_all(made, &mut tree, sandbox.security, membership, notes)?;
    for (wanted, made) in sandbox.mounts.iter().zip(mounts) {
        attach_mount(&mut tree, wanted, &made)?;
    }
    provide_files(&mut tree, &mounted.scratch, &sandbox.files)?;
    let terminal = open_terminal(sandbox, &mounted, control)?;
    drop(mounted);
    let old = mount::change_root(root.as_fd()).map_err(at("change the root"))?;
    if old == mount::OldRoot::Covered {
        notes.push("the old root is covered, not unmounted: it is an initramfs".to_owned());
    }
    if sandbox.network == Network::None {
        process::raise_loopback().map_err(at("bring the loopback device up"))?;
    }
    Ok((tree, terminal))
}

/// What becomes of a device node that a command makes or finds: without rules for devices it must be dead, since it may name
/// the host's disk.
fn nodes(security: Security, membership: &Membership) -> Nodes {
    match (security, membership) {
        (Security::Insecure, _) | (_, Membership::Member { .. }) => Nodes::Opened,
        (Security::Sandboxed, Membership::None) => Nodes::Dead,
    }
}

fn mount_root(source: &RootSource, nodes: Nodes) -> Result<OwnedFd, Failure> {
    let attributes = nodes.usual();
    match source {
        RootSource::Overlay { overlay } => Ok(overlay.mount(attributes)?),
        RootSource::Directory { path } => {
            let step = |error: io::Error| at(&format!("mount the root {}", path.display()))(error);
            let place = mount::open_place(path).map_err(step)?;
            mount::clone_restricted(place.as_fd(), attributes).map_err(step)
        }
    }
}

/// A mount that is shown nowhere yet.
struct MadeMount {
    mount: OwnedFd,
    kind: StubKind,
    /// What holds for it once it is shown.
    limits: Option<(Attributes, Depth)>,
}

fn mounting(wanted: &Mount) -> impl Fn(io::Error) -> Failure {
    move |error| at(&format!("mount {}", wanted.target.display()))(error)
}

/// Nodes in a mount are as dead or alive as those of the root.
fn make_mount(wanted: &Mount, nodes: Nodes) -> Result<MadeMount, Failure> {
    let step = mounting(wanted);
    let directory = |mount| MadeMount { mount, kind: StubKind::Directory, limits: None };
    match &wanted.kind {
        MountKind::Tmpfs { size, mode } => {
            let mode = format!("{mode:o}");
            let size = size.map_or_else(|| "50%".to_owned(), |size| size.to_string());
            let options = [("mode", mode.as_str()), ("size", &size)];
            Ok(directory(mount::filesystem("tmpfs", &options, nodes.usual())?))
        }
        MountKind::Overlay { overlay } => Ok(directory(overlay.mount(nodes.usual())?)),
        MountKind::Bind { source, read_only, recursive } => {
            let place = open_source(source)?;
            let status = rustix::fs::fstat(&place).map_err(|errno| step(errno.into()))?;
            let kind = match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory => StubKind::Directory,
                _ => StubKind::File,
            };
            let depth = if *recursive { Depth::Recursive } else { Depth::Single };
            let mount = mount::clone_tree(place.as_fd(), depth).map_err(step)?;
            let attributes = Attributes { read_only: *read_only, ..nodes.usual() };
            Ok(MadeMount { mount, kind, limits: Some((attributes, depth)) })
        }
    }
}

fn attach_mount(tree: &mut Tree, wanted: &Mount, made: &MadeMount) -> Result<(), Failure> {
    let step = mounting(wanted);
    let (target, is_found) = match tree.resolve(&wanted.target, Missing::Refuse) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (tree.resolve(&wanted.target, Missing::Stub(made.kind)).map_err(&step)?, false)
        }
        found => (found.map_err(&step)?, true),
    };
    check_kinds(made.kind, target.as_fd()).map_err(&step)?;
    if is_found && matches!(wanted.kind, MountKind::Tmpfs { .. }) {
        take_mode(made.mount.as_fd(), target.as_fd()).map_err(&step)?;
    }
    let is_another = || is_proc(made.mount.as_fd()) && is_proc(target.as_fd());
    if is_of_proc(target.as_fd()) && !may_be_covered(&wanted.target) && !is_another() {
        return Err(in_proc(format!("mount {}", wanted.target.display())));
    }
    mount::attach(made.mount.as_fd(), target.as_fd()).map_err(&step)?;
    match made.limits {
        Some((attributes, depth)) => mount::restrict(made.mount.as_fd(), attributes, depth).map_err(step),
        None => Ok(()),
    }
}

/// Gives the root of a mount the mode of the directory that it is going to cover, as runc does.
fn take_mode(mount: BorrowedFd<'_>, covered: BorrowedFd<'_>) -> io::Result<()> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(covered)?.st_mode);
    Ok(rustix::fs::chmodat(mount, c".", mode, AtFlags::empty())?)
}

/// A place in `/proc` that nothing may cover.
fn in_proc(step: String) -> Failure {
    let detail = "it is in /proc, where programs ask the kernel what they may do".to_owned();
    Failure(Report::Failed { step, errno: 0, detail })
}

fn is_of_proc(place: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(place).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Whether it is all of a `/proc`.
fn is_proc(place: BorrowedFd<'_>) -> bool {
    /// `PROC_ROOT_INO`
    const TOP: u64 = 1;
    is_of_proc(place) && rustix::fs::fstat(place).is_ok_and(|found| found.st_ino == TOP)
}

/// Whether a file of `/proc` tells of the machine's load alone, as runc lets it be replaced: lxcfs does.
fn may_be_covered(target: &Path) -> bool {
    const LOAD: [&str; 8] =
        ["cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime"];
    target.strip_prefix("/proc").is_ok_and(|inside| LOAD.iter().any(|name| inside == Path::new(name)))
}

/// A directory is mounted on a directory, anything else on none. The kernel's own answer is that something is invalid.
fn check_kinds(made: StubKind, target: BorrowedFd<'_>) -> io::Result<()> {
    let found = FileType::from_raw_mode(rustix::fs::fstat(target)?.st_mode);
    match (made, found) {
        (StubKind::Directory, FileType::Directory) => Ok(()),
        (StubKind::Directory, _) => Err(rustix::io::Errno::NOTDIR.into()),
        (_, FileType::Directory) => Err(rustix::io::Errno::ISDIR.into()),
        _ => Ok(()),
    }
}

fn open_source(source: &BindSource) -> Result<OwnedFd, Failure> {
    match source {
        BindSource::Host { path } => {
            mount::open_place(path).map_err(at(&format!("find the source {} of a mount", path.display())))
        }
        BindSource::Owned { path } => mount::open_place_itself(path)
            .map_err(at(&format!("find the source {} of a mount", path.display()))),
        BindSource::Within { root, path } => {
            let step =
                |error: io::Error| at(&format!("find the source {} of a mount", path.display()))(error);
            let root = mount::open_place_itself(root).map_err(step)?;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            loop {
                // EAGAIN: a rename raced with `..`; the answer would be unsafe, so ask again.
                match rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
                {
                    Err(rustix::io::Errno::AGAIN) => {}
                    other => return other.map_err(|errno| step(errno.into())),
                }
            }
        }
    }
}

fn provide_files(tree: &mut Tree, scratch: &Scratch, files: &[ProvidedFile]) -> Result<(), Failure> {
    for (number, file) in files.iter().enumerate() {
        let step = |error: io::Error| at(&format!("provide {}", file.target.display()))(error);
        let target = tree.resolve(&file.target, Missing::Stub(StubKind::File)).map_err(step)?;
        // The root may have a link there.
        if is_of_proc(target.as_fd()) {
            return Err(in_proc(format!("provide {}", file.target.display())));
        }
        let attributes = Attributes { read_only: file.read_only, ..Attributes::INERT };
        scratch
            .attach_file(&format!("file{number}"), &file.contents, attributes, target.as_fd())
            .map_err(step)?;
    }
    Ok(())
}

/// Opens the terminal, shows it as `/dev/console` and hands the viewer's side out.
fn open_terminal(
    sandbox: &Sandbox,
    mounted: &Mounted,
    control: BorrowedFd<'_>,
) -> Result<Option<OwnedFd>, Failure> {
    let Terminal::Own { rows, columns } = sandbox.process.terminal else { return Ok(None) };
    let step = || at("open a terminal");
    let pair = terminal::open_pair(mounted.devpts.as_fd()).map_err(step())?;
    let size = terminal::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    terminal::set_size(pair.process.as_fd(), size).map_err(step())?;
    filesystems::make_file(mounted.dev.as_fd(), "console", 0o600).map_err(step())?;
    let place = filesystems::open_own(mounted.dev.as_fd(), "console").map_err(step())?;
    let console = mount::clone_tree(pair.process.as_fd(), Depth::Single).map_err(step())?;
    mount::attach(console.as_fd(), place.as_fd()).map_err(step())?;
    terminal::send_with_descriptors(control, &Report::Terminal.encode(), &[pair.viewer.as_fd()])
        .map_err(step())?;
    Ok(Some(pair.process))
}

/// What the command begins with.
struct SetUp {
    tree: Tree,
    terminal: Option<OwnedFd>,
    streams: MadeStreams,
    may_set_groups: bool,
}

fn drop_privileges_and_execute(
    description: &Description,
    set_up: SetUp,
    control: BorrowedFd<'_>,
    mut notes: Vec<String>,
) -> Result<std::convert::Infallible, Failure> {
    let SetUp { mut tree, terminal: own_terminal, streams, may_set_groups } = set_up;
    let sandbox = &description.sandbox;
    let process = &sandbox.process;
    enter_directory(&mut tree, &process.directory)?;
    for wanted in &process.limits {
        if !process::limit(*wanted).map_err(at("set a resource limit"))? {
            notes.push(format!(
                "resource limit {} is as high as this machine permits, not as asked",
                wanted.resource
            ));
        }
    }
    if process.first_process == FirstProcess::Init {
        become_init()?;
    }
    match process::new_session() {
        // A process that leads a group already has one.
        Ok(()) | Err(_) if own_terminal.is_none() => {}
        Ok(()) => {}
        Err(error) => return Err(at("start a session")(error)),
    }
    if let Some(own) = own_terminal {
        terminal::adopt(own.as_fd()).map_err(at("adopt the terminal"))?;
        give_streams(sandbox, MadeStreams::ALL)?;
    } else {
        give_streams(sandbox, streams)?;
    }
    // Without room for another keyring, or without keyrings, the profile's refusal of keyctl has to do.
    let _ = process::leave_session_keyring();
    let stubs = tree.into_stubs();
    let ready = Report::Ready { stubs, notes };
    terminal::send_with_descriptors(control, &ready.encode(), &[]).map_err(at("report"))?;
    drop_privileges(description, may_set_groups, control)?;
    process::die_with_parent().map_err(at("tie the process to kiln"))?;
    // Who died before that line was reached sends no signal, but has closed the socket.
    let hung_up = rustix::event::PollFd::from_borrowed_fd(control, rustix::event::PollFlags::empty());
    let mut polled = [hung_up];
    let _ = rustix::event::poll(&mut polled, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    if polled[0].revents().contains(rustix::event::PollFlags::HUP) {
        process::leave(125);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Err(execute_command(&process.arguments, &process.environment))
}

/// Gives a user what kiln made for its command to read and write: `/dev/stdout` is opened as any other file is. What kiln's
/// own caller passed stays as it is. The group stays: it is that of terminals, perhaps.
fn give_streams(sandbox: &Sandbox, made: MadeStreams) -> Result<(), Failure> {
    let uid = sandbox.process.credentials.uid;
    if uid == 0 || sandbox.ownership == OwnershipMode::Recorded {
        return Ok(());
    }
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for (number, stream) in streams.into_iter().enumerate().filter(|(number, _)| made.has(*number)) {
        match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None) {
            // A user that the namespace does not have is refused below.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(errno) => return Err(at(&format!("give descriptor {number} to user {uid}"))(errno.into())),
        }
    }
    Ok(())
}

/// Changes into the process's directory, making it where it is missing.
fn enter_directory(tree: &mut Tree, directory: &Path) -> Result<(), Failure> {
    let step = |error: io::Error| at(&format!("enter the working directory {}", directory.display()))(error);
    let place = tree.resolve(directory, Missing::Directory).map_err(step)?;
    let status = rustix::fs::fstat(&place).map_err(|errno| step(errno.into()))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return Err(step(rustix::io::Errno::NOTDIR.into()));
    }
    rustix::process::fchdir(&place).map_err(|errno| step(errno.into()))?;
    // The kernel names a directory outside of the root as unreachable.
    let current = rustix::process::getcwd(Vec::new()).map_err(|errno| step(errno.into()))?;
    if current.as_bytes().starts_with(b"/") { Ok(()) } else { Err(step(rustix::io::Errno::NOENT.into())) }
}

fn drop_privileges(
    description: &Description,
    may_set_groups: bool,
    control: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let sandbox = &description.sandbox;
    let process = &sandbox.process;
    if process.no_new_privileges {
        process::forbid_new_privileges().map_err(at("forbid new privileges"))?;
    }
    let kept = match sandbox.security {
        Security::Sandboxed => process.capabilities.bits(),
        Security::Insecure => u64::MAX,
    };
    // Bounding first: it needs CAP_SETPCAP. The filter before the rest: it needs CAP_SYS_ADMIN.
    process::bound_capabilities(kept).map_err(at("bound the capabilities"))?;
    install_filter(description, control)?;
    if sandbox.ownership == OwnershipMode::Kernel {
        let credentials = &process.credentials;
        process::become_user(credentials, may_set_groups).map_err(|error| {
            let lack = namespace::IdMaps::of_this_process().ok().and_then(|maps| maps.lack(credentials));
            let step = format!("become user {} and group {}", credentials.uid, credentials.gid);
            at(&step)(lack.map_or(error, std::io::Error::other))
        })?;
    }
    process::set_capabilities(kept).map_err(at("set the capabilities"))
}

fn install_filter(description: &Description, control: BorrowedFd<'_>) -> Result<(), Failure> {
    use kiln_sys::seccomp::{self, Instruction, Listener};
    if description.filter.is_empty() {
        return Ok(());
    }
    let program: Vec<Instruction> =
        description.filter.iter().map(|bits| crate::seccomp::unpack(*bits)).collect();
    let listener = match description.sandbox.ownership {
        OwnershipMode::Kernel => Listener::None,
        OwnershipMode::Recorded => Listener::Notify,
    };
    let listening = seccomp::install(&program, listener).or_else(|error| match error.kind() {
        // Without CAP_SYS_ADMIN a filter is for those alone who can gain no privileges.
        io::ErrorKind::PermissionDenied => {
            process::forbid_new_privileges()?;
            seccomp::install(&program, listener)
        }
        _ => Err(error),
    });
    let listening = listening.map_err(|error| {
        let step = "install the system call filter";
        if listener == Listener::Notify && error.kind() == io::ErrorKind::ResourceBusy {
            let detail = "another program answers system calls of this one already, as kiln does where it has a single \
                          user ID, and the kernel permits one: give the outer kiln sub-UIDs, or run it as root";
            return Failure(Report::Failed { step: step.to_owned(), errno: 0, detail: detail.to_owned() });
        }
        at(step)(error)
    })?;
    if let Some(listening) = listening {
        terminal::send_with_descriptors(control, &Report::Listener.encode(), &[listening.as_fd()])
            .map_err(at("hand the system call listener out"))?;
        // The recorder looks at this process before it can have become anything else, or have ended.
        let answered = terminal::receive_with_descriptors(control, &mut [0_u8; 1]);
        if !matches!(answered, Ok((1, _))) {
            process::leave(125);
        }
    }
    Ok(())
}

/// Stays as process 1, which collects orphans and hands signals on; the new process goes on and returns.
fn become_init() -> Result<(), Failure> {
    let signals: Vec<i32> = (1..32).filter(|number| ![9, 11, 17, 19].contains(number)).collect();
    let stream = terminal::Signals::take_over(&signals).map_err(at("take over signals"))?;
    match process::fork().map_err(at("start the command beside the init"))? {
        Forked::Child => {
            drop(stream);
            process::reset_signals();
            Ok(())
        }
        Forked::Parent(command) => crate::first::collect(command, &stream),
    }
}

fn execute_command(arguments: &[OsString], environment: &[OsString]) -> Failure {
    let name = arguments.first().cloned().unwrap_or_default();
    let command = name.to_string_lossy().into_owned();
    let texts = |list: &[OsString]| -> Result<Vec<CString>, std::ffi::NulError> {
        list.iter().map(|text| CString::new(text.clone().into_vec())).collect()
    };
    let (Ok(list), Ok(variables)) = (texts(arguments), texts(environment)) else {
        return Failure(Report::NotExecutable { command, errno: rustix::io::Errno::INVAL.raw_os_error() });
    };
    let mut denied = None;
    for candidate in candidates(&name, environment) {
        let Ok(path) = CString::new(candidate.into_os_string().into_vec()) else { continue };
        let error = process::execute(&path, &list, &variables);
        match error.raw_os_error() {
            Some(libc_errno) if is_absence(libc_errno) => {}
            errno => {
                denied.get_or_insert(errno.unwrap_or(0));
                // Only a lack of permission lets the search go on, as a shell does.
                if errno != Some(rustix::io::Errno::ACCESS.raw_os_error()) {
                    break;
                }
            }
        }
    }
    Failure(match denied {
        Some(errno) => Report::NotExecutable { command, errno },
        None => Report::NotFound { command },
    })
}

fn is_absence(errno: i32) -> bool {
    [rustix::io::Errno::NOENT, rustix::io::Errno::NOTDIR].iter().any(|absent| absent.raw_os_error() == errno)
}

/// Where a command may be: as it is if it has a slash, else in the directories of `PATH`.
fn candidates(name: &OsStr, environment: &[OsString]) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    let path = environment.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .split(|byte| *byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() { &b"."[..] } else { directory };
            Path::new(OsStr::from_bytes(directory)).join(name)
        })
        .collect()
}

/// How the init's own process ends for the command that it started.
pub(crate) fn status_of(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(status) => status,
        Ended::Killed(signal) => 128_u8.wrapping_add(signal as u8),
    }
}
