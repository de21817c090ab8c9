//! Owners that a single identifier cannot give: recorded instead, and pretended to have been given.
//!
//! With a single identifier in the user namespace the kernel refuses every change of owner or user to another one, and
//! so package managers fail. A filter hands those calls to a thread of kiln's, which notes what was wanted and lets the
//! call succeed. This is pretence, not protection: what a process can do is decided by its user namespace alone, and a
//! process that races with the recorder deceives nobody but itself.

mod calls;
mod identity;
mod itself;
mod made;
mod ownership;
mod shown;

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use kiln_sys::seccomp::{self, Answer, Notification};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::sandbox::{RootSource, Sandbox};
use crate::target::open_below;
pub(crate) use calls::Call;
use calls::Width;
use identity::{Identity, Wanted};
pub use ownership::{Birth, DeviceNode, Ownership, Record};
pub use shown::{LowerFile, LowerFiles};

/// What a recorder starts from.
pub(crate) struct Recorder {
    listener: OwnedFd,
    first: OwnedFd,
    pid: i32,
    root: RootSource,
    initial: Identity,
    below: Option<LowerFiles>,
}

impl Recorder {
    pub(crate) fn new(
        sandbox: &Sandbox,
        below: Option<LowerFiles>,
        listener: OwnedFd,
        pid: i32,
        first: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let initial = Identity::of(&sandbox.process.credentials);
        Ok(Self {
            listener,
            first: first.try_clone_to_owned()?,
            pid,
            root: sandbox.root.clone(),
            initial,
            below,
        })
    }

    /// Answers calls on a thread of its own until the sandbox's last process has ended.
    pub(crate) fn run(self) -> io::Result<JoinHandle<Ownership>> {
        let (ready, prepared) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            let mut scene = match Scene::open(&self) {
                Ok(scene) => scene,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ownership::default();
                }
            };
            let _ = ready.send(Ok(()));
            scene.answer_all(self.listener.as_fd(), self.first.as_fd());
            scene.find_expected(None);
            scene.ownership
        })?;
        prepared.recv().map_err(io::Error::other)??;
        Ok(thread)
    }
}

/// The recorder's view of the sandbox. Its thread has a root and a current directory of its own, which it moves to
/// wherever a caller's are.
struct Scene {
    proc: OwnedFd,
    /// The sandbox's root, in its mount namespace.
    base: OwnedFd,
    base_device: u64,
    base_mount: Option<u64>,
    /// Where the overlay keeps what was changed; with a plain directory that is the root itself.
    upper: Option<OwnedFd>,
    initial: Identity,
    /// Callers that pretend to be someone else, by thread, with the start time that tells apart who used an identifier.
    identities: HashMap<u32, (u64, Identity)>,
    ownership: Ownership,
    /// The lower layers.
    below: Option<LowerFiles>,
    /// What was said of files, by device and inode.
    known: HashMap<(u64, u64), shown::Known>,
    expected: Vec<made::Expected>,
}

/// A file that a caller named.
struct Named {
    file: OwnedFd,
    status: Stat,
}

impl Scene {
    fn open(recorder: &Recorder) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        let base = rustix::fs::openat(&proc, format!("{}/root", recorder.pid), flags, Mode::empty())?;
        let upper = match &recorder.root {
            RootSource::Overlay { overlay } => match &overlay.upper {
                Some(upper) => Some(rustix::fs::open(&upper.upper, flags, Mode::empty())?),
                None => None,
            },
            RootSource::Directory { .. } => None,
        };
        let base_device = rustix::fs::fstat(&base)?.st_dev;
        kiln_sys::process::separate_directories()?;
        rustix::process::umask(Mode::empty());
        Ok(Self {
            proc,
            base_mount: ownership::mount_of(base.as_fd()),
            base,
            base_device,
            upper,
            initial: recorder.initial.clone(),
            identities: HashMap::new(),
            ownership: Ownership::default(),
            below: recorder.below.clone(),
            known: HashMap::new(),
            expected: Vec::new(),
        })
    }

    fn answer_all(&mut self, listener: BorrowedFd<'_>, first: BorrowedFd<'_>) {
        seccomp::take_turns(listener);
        loop {
            let mut polled = [
                PollFd::from_borrowed_fd(listener, PollFlags::IN),
                PollFd::from_borrowed_fd(first, PollFlags::IN),
            ];
            // The first process's end is the namespace's; a kernel before 5.8 says no more than that.
            match poll(&mut polled, Some(&Timespec { tv_sec: 60, tv_nsec: 0 })) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let (calls, end) = (polled[0].revents(), polled[1].revents());
            if calls.contains(PollFlags::IN) {
                let Ok(notification) = seccomp::receive(listener) else { continue };
                let answer = self.answer(listener, &notification);
                // A caller that was killed meanwhile needs none.
                let _ = seccomp::answer(listener, notification.id, answer);
            } else if calls.intersects(PollFlags::HUP | PollFlags::ERR) || end.contains(PollFlags::IN) {
                return;
            }
        }
    }

    fn answer(&mut self, listener: BorrowedFd<'_>, notification: &Notification) -> Answer {
        let name = crate::seccomp::name_of(notification.architecture, notification.number);
        let Some((call, width)) = name.and_then(|name| Call::with_width(name, notification.architecture))
        else {
            return Answer::Continue;
        };
        self.find_expected(Some(notification.pid));
        if call.keeps() {
            // The kernel does it as well.
            let _ = self.note_kept(notification, call);
            return Answer::Continue;
        }
        if call.asks_for_status() || call.names() || call.makes() {
            let answer = if call.makes() {
                self.expect(notification, call)
            } else if call.names() {
                self.keep_owner(notification, call)
            } else {
                self.show(listener, notification, (call, width))
            };
            // Whatever is wrong, the kernel knows better.
            return answer.unwrap_or(Answer::Continue);
        }
        let result = match call {
            Call::Chown | Call::Lchown | Call::Fchown | Call::FchownAt => {
                self.change_owner(listener, notification, call, width)
            }
            Call::Mknod | Call::MknodAt => self.make_node(listener, notification, call),
            _ => self.identify(notification, call, width),
        };
        match result {
            Ok(value) => Answer::Value(value),
            // The kernel knows better what is wrong with a path: it is asked to do the call, and refuses.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::FAULT | Errno::SRCH | Errno::LOOP) => Answer::Continue,
            Err(errno) => Answer::Fail(errno.raw_os_error()),
        }
    }

    fn change_owner(
        &mut self,
        listener: BorrowedFd<'_>,
        notification: &Notification,
        call: Call,
        width: Width,
    ) -> Result<i64, Errno> {
        let [first, second, third, fourth, fifth, _] = notification.arguments;
        let none = c"".to_owned();
        let (directory, path, uid, gid, flags) = match call {
            Call::Fchown => (first as i32, none, second, third, AT_EMPTY_PATH),
            Call::FchownAt => {
                (first as i32, self.name(notification, second, fifth as u32)?, third, fourth, fifth as u32)
            }
            Call::Lchown => (AT_FDCWD, self.text(notification, first)?, second, third, AT_SYMLINK_NOFOLLOW),
            _ => (AT_FDCWD, self.text(notification, first)?, second, third, 0),
        };
        let (uid, gid) = (width.identifier(uid), width.identifier(gid));
        let identity = self.identity(notification.pid);
        if !identity.may_give(uid, gid) {
            return Err(Errno::PERM);
        }
        let named = match self.named(notification.pid, directory, &path, flags) {
            Err(Errno::NOENT) if !path.is_empty() => {
                self.named_itself(notification.pid, directory, &path, flags)?
            }
            named => named?,
        };
        if !seccomp::still_waits(listener, notification.id) {
            return Err(Errno::SRCH);
        }
        if itself::is_pipe(named.file.as_fd()) || itself::is_of_proc(named.file.as_fd()) {
            // It goes with its processes.
            return Ok(0);
        }
        // The real change, to the one owner there is: it copies the file up, takes set-user-ID bits away and touches
        // the change time exactly as the kernel would.
        let root = |given: Option<u32>| given.map(|_| 0);
        rustix::fs::chownat(
            &named.file,
            c"",
            root(uid).map(Uid::from_raw),
            root(gid).map(Gid::from_raw),
            AtFlags::EMPTY_PATH,
        )?;
        if let Some((device, inode, birth)) = self.kept_as(&named)? {
            self.ownership.note_owner(device, inode, birth, uid, gid);
            // Two changes may bear one time.
            self.known.clear();
        }
        Ok(0)
    }

    fn make_node(
        &mut self,
        listener: BorrowedFd<'_>,
        notification: &Notification,
        call: Call,
    ) -> Result<i64, Errno> {
        let [first, second, third, fourth, ..] = notification.arguments;
        let (directory, path, mode, device) = match call {
            Call::MknodAt => (first as i32, self.text(notification, second)?, third, fourth),
            _ => (AT_FDCWD, self.text(notification, first)?, second, third),
        };
        let identity = self.identity(notification.pid);
        if !identity.is_privileged() {
            return Err(Errno::PERM);
        }
        let umask = self.status_field(notification.pid, "Umask:", 8).unwrap_or(0o022);
        self.stand(notification.pid, directory, &path)?;
        if !seccomp::still_waits(listener, notification.id) {
            return Err(Errno::SRCH);
        }
        let bits = Mode::from_raw_mode((mode as u32) & 0o7777 & !(umask as u32));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path.as_c_str(), flags, bits)?;
        let status = rustix::fs::fstat(&file)?;
        if let Some((kept_device, inode, birth)) = self.kept_as(&Named { file, status })? {
            let block = mode as u32 & FILE_TYPE == BLOCK_DEVICE;
            let number = device & 0xffff_ffff;
            let node =
                DeviceNode { block, major: rustix::fs::major(number), minor: rustix::fs::minor(number) };
            self.ownership.note_device(kept_device, inode, birth, node);
            self.known.clear();
        }
        Ok(0)
    }

    fn identify(&mut self, notification: &Notification, call: Call, width: Width) -> Result<i64, Errno> {
        let arguments = notification.arguments.map(|argument| width.identifier(argument));
        let plain = notification.arguments;
        let mut identity = self.identity(notification.pid);
        let value = match call {
            Call::GetUid => identity.uids.real.into(),
            Call::GetEuid => identity.uids.effective.into(),
            Call::GetGid => identity.gids.real.into(),
            Call::GetEgid => identity.gids.effective.into(),
            Call::GetResUid | Call::GetResGid => {
                let ids = if call == Call::GetResUid { identity.uids } else { identity.gids };
                for (address, id) in plain.into_iter().zip([ids.real, ids.effective, ids.saved]) {
                    self.write(notification, address, &width.bytes(&[id]))?;
                }
                0
            }
            Call::GetGroups => {
                let (room, count) = (plain[0] as i32, identity.groups.len() as i32);
                if room != 0 && room < count {
                    return Err(Errno::INVAL);
                }
                if room != 0 {
                    self.write(notification, plain[1], &width.bytes(&identity.groups))?;
                }
                count.into()
            }
            Call::SetGroups => {
                let count = plain[0] as usize;
                // Anyone may: a process that kept its capabilities over a change of user is not told apart.
                if count > 65536 {
                    return Err(Errno::INVAL);
                }
                let mut bytes = vec![0; count * width.size()];
                self.read(notification, plain[1], &mut bytes)?;
                identity.groups = width.numbers(&bytes);
                0
            }
            _ => identity.change(call, arguments)?,
        };
        if call.changes_identity() {
            let started = self.started(notification.pid).ok_or(Errno::SRCH)?;
            self.identities.insert(notification.pid, (started, identity));
        }
        Ok(value)
    }

    /// Notes what a caller keeps of root when it becomes another user.
    fn note_kept(&mut self, notification: &Notification, call: Call) -> Result<(), Errno> {
        let [_, second, ..] = notification.arguments;
        let before = self.identity(notification.pid);
        let mut identity = before.clone();
        if call == Call::Control {
            identity.ask(second != 0, self.program(notification.pid)?);
        } else {
            // The first two words of `struct __user_cap_data_struct`, the same for 32 and for 64 bits.
            let mut words = [0; 8];
            self.read(notification, second, &mut words)?;
            let [effective, permitted] =
                [0, 4].map(|at| u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]));
            identity.set_capabilities(Wanted { effective, permitted });
        }
        if identity != before {
            let started = self.started(notification.pid).ok_or(Errno::SRCH)?;
            self.identities.insert(notification.pid, (started, identity));
        }
        Ok(())
    }

    /// The program that a process runs, by device and inode.
    fn program(&self, process: u32) -> Result<(u64, u64), Errno> {
        let found = rustix::fs::statat(&self.proc, format!("{process}/exe"), AtFlags::empty())?;
        Ok((found.st_dev, found.st_ino))
    }

    /// Whom a caller pretends to be: itself, its process, or the nearest ancestor that changed.
    fn identity(&self, caller: u32) -> Identity {
        let mut process = caller;
        for _ in 0..64 {
            if self.identities.is_empty() {
                break;
            }
            if let Some((started, identity)) = self.identities.get(&process)
                && self.started(process) == Some(*started)
            {
                let mut identity = identity.clone();
                if identity.kept.is_some_and(|kept| self.program(caller) != Ok(kept.program)) {
                    identity.kept = None;
                }
                return identity;
            }
            let leader = self.status_field(process, "Tgid:", 10).unwrap_or(0) as u32;
            let next = if leader == process {
                self.status_field(process, "PPid:", 10).unwrap_or(0) as u32
            } else {
                leader
            };
            if next == 0 {
                break;
            }
            process = next;
        }
        self.initial.clone()
    }

    fn process_file(&self, process: u32, name: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.proc, format!("{process}/{name}"), flags, Mode::empty()).ok()?;
        let mut bytes = vec![0; 4096];
        let count = rustix::io::read(&file, &mut bytes[..]).ok()?;
        Some(String::from_utf8_lossy(&bytes[..count]).into_owned())
    }

    fn status_field(&self, process: u32, field: &str, radix: u32) -> Option<u64> {
        let status = self.process_file(process, "status")?;
        let value = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(value.trim(), radix).ok()
    }

    /// When a process started: field 22 of its `stat`, behind a name that may hold anything.
    fn started(&self, process: u32) -> Option<u64> {
        let stat = self.process_file(process, "stat")?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
    }

    /// Moves this thread's root and current directory to where a caller's path starts.
    fn stand(&self, caller: u32, directory: i32, path: &CStr) -> Result<(), Errno> {
        let place = |name: String, flags: OFlags| {
            rustix::fs::openat(&self.proc, name, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        };
        let root = place(format!("{caller}/root"), OFlags::DIRECTORY)?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(c".")?;
        if path.to_bytes().starts_with(b"/") {
            return Ok(());
        }
        let start = match directory {
            AT_FDCWD => place(format!("{caller}/cwd"), OFlags::DIRECTORY)?,
            number => place(format!("{caller}/fd/{number}"), OFlags::empty())?,
        };
        rustix::process::fchdir(&start)
    }

    /// Opens what a caller named.
    fn named(&self, caller: u32, directory: i32, path: &CStr, flags: u32) -> Result<Named, Errno> {
        let file = if path.is_empty() {
            if flags & AT_EMPTY_PATH == 0 {
                return Err(Errno::NOENT);
            }
            let name = match directory {
                AT_FDCWD => format!("{caller}/cwd"),
                number => format!("{caller}/fd/{number}"),
            };
            rustix::fs::openat(&self.proc, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?
        } else {
            self.stand(caller, directory, path)?;
            let mut how = OFlags::PATH | OFlags::CLOEXEC;
            how.set(OFlags::NOFOLLOW, flags & AT_SYMLINK_NOFOLLOW != 0);
            rustix::fs::open(path, how, Mode::empty())?
        };
        let status = rustix::fs::fstat(&file)?;
        Ok(Named { file, status })
    }

    /// The device, inode and birth of the file that keeps what was named, as who reads the upper directory sees it.
    /// Nothing for what lies on another mount, or has no name any more.
    fn kept_as(&self, named: &Named) -> Result<Option<(u64, u64, Option<Birth>)>, Errno> {
        let Some(upper) = &self.upper else {
            return if named.status.st_dev == self.base_device {
                ownership::key_of(named.file.as_fd()).map(Some)
            } else {
                Ok(None)
            };
        };
        // Directories and files of an overlay may show different devices, and those of mounts in it others still: what
        // counts is whether the upper has it under that name.
        rustix::process::fchdir(&self.base)?;
        rustix::process::chroot(c".")?;
        let link = format!("self/fd/{}", named.file.as_raw_fd());
        let text = rustix::fs::readlinkat(&self.proc, link, Vec::new())?;
        let path = Path::new(std::ffi::OsStr::from_bytes(text.as_bytes()));
        let Ok(inside) = path.strip_prefix("/") else { return Ok(None) };
        if !ownership::is_on(&self.base, named.file.as_fd()) {
            return Ok(None);
        }
        let inside: PathBuf = inside.to_owned();
        match open_below(upper.as_fd(), &inside, OFlags::PATH) {
            Ok(kept) => {
                let same = FileType::from_raw_mode(rustix::fs::fstat(&kept)?.st_mode)
                    == FileType::from_raw_mode(named.status.st_mode);
                if same { ownership::key_of(kept.as_fd()).map(Some) } else { Ok(None) }
            }
            Err(_) => Ok(None),
        }
    }

    /// The path of a call that may name a descriptor instead: since Linux 6.11 by no path at all (openat(2), `AT_EMPTY_PATH`).
    fn name(&self, notification: &Notification, address: u64, flags: u32) -> Result<CString, Errno> {
        match address {
            0 if flags & AT_EMPTY_PATH != 0 => Ok(c"".to_owned()),
            _ => self.text(notification, address),
        }
    }

    fn text(&self, notification: &Notification, address: u64) -> Result<CString, Errno> {
        const PAGE: u64 = 4096;
        const LONGEST: usize = 4096;
        let mut bytes = Vec::new();
        let mut at = address;
        while bytes.len() < LONGEST {
            // To the end of the page: the next one may not be there.
            let mut part = vec![0; (PAGE - at % PAGE) as usize];
            let count = seccomp::read_memory(notification.pid, at, &mut part).map_err(|_| Errno::FAULT)?;
            if let Some(end) = part[..count].iter().position(|byte| *byte == 0) {
                bytes.extend_from_slice(&part[..end]);
                return CString::new(bytes).map_err(|_| Errno::INVAL);
            }
            bytes.extend_from_slice(&part[..count]);
            at += count as u64;
        }
        Err(Errno::NAMETOOLONG)
    }

    fn read(&self, notification: &Notification, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        match seccomp::read_memory(notification.pid, address, into) {
            _ if into.is_empty() => Ok(()),
            Ok(count) if count == into.len() => Ok(()),
            _ => Err(Errno::FAULT),
        }
    }

    fn write(&self, notification: &Notification, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        seccomp::write_memory(notification.pid, address, bytes).map_err(|_| Errno::FAULT)
    }
}

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
const AT_EMPTY_PATH: u32 = 0x1000;
const FILE_TYPE: u32 = 0o170_000;
const BLOCK_DEVICE: u32 = 0o060_000;
