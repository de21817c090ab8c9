//! A root made of a static busybox, and ways to run commands in it.

use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_runtime::{Finished, Launcher, OwnershipMode, RootSource, RuntimeError, Sandbox, Streams};
use kiln_sys::namespace::UserNamespace;
use kiln_sys::overlay::{Overlay, Upper};

/// The applets that the cases use.
const APPLETS: [&str; 39] = [
    "sh", "true", "false", "echo", "cat", "ls", "id", "grep", "sleep", "mount", "mkdir", "touch", "stat",
    "readlink", "hostname", "ip", "mknod", "head", "wc", "rm", "ln", "kill", "stty", "tty", "pwd", "chown",
    "chmod", "env", "test", "timeout", "ps", "dd", "sort", "unshare", "ifconfig", "su", "seq", "cp", "mv",
];

/// Where the cases run.
pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    /// What the cases run in.
    pub(crate) user: UserNamespace,
    /// For what outlives its statement.
    pub(crate) launcher: Launcher,
    lower: PathBuf,
    number: std::sync::atomic::AtomicU32,
}

/// A root of a case's own.
pub(crate) struct Root {
    pub(crate) overlay: Overlay,
    pub(crate) upper: PathBuf,
    ownership: OwnershipMode,
}

/// What came of a command.
pub(crate) struct Ran {
    pub(crate) finished: Finished,
    pub(crate) output: String,
    pub(crate) error: String,
}

impl Fixture {
    /// Makes the root, or says why no case can run.
    pub(crate) fn new(user: &UserNamespace) -> Result<Self, String> {
        if let UserNamespace::Unavailable { reason } = user {
            return Err(reason.clone());
        }
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let number = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
        if *user != UserNamespace::None && number < (Some(5), Some(11)) {
            return Err(format!("overlays without root need kernel 5.11, and this is {release}"));
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static"]
            .into_iter()
            .find(|path| is_static(Path::new(path)))
            .ok_or("there is no static busybox (Debian: package busybox-static)")?;
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let lower = directory.path().join("lower");
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys", "root"] {
            fs_err::create_dir_all(lower.join(name)).map_err(|error| error.to_string())?;
        }
        fs_err::copy(busybox, lower.join("bin/busybox")).map_err(|error| error.to_string())?;
        for applet in APPLETS {
            fs_err::os::unix::fs::symlink("busybox", lower.join("bin").join(applet))
                .map_err(|error| error.to_string())?;
        }
        fs_err::write(lower.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n")
            .map_err(|error| error.to_string())?;
        Ok(Self {
            user: user.clone(),
            launcher: Launcher::new(),
            directory,
            lower,
            number: std::sync::atomic::AtomicU32::new(0),
        })
    }

    /// A new root; `lowers` lie over busybox's.
    pub(crate) fn root(&self, lowers: &[&Path]) -> Root {
        let number = self.number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let holder = self.directory.path().join(format!("root{number}"));
        let (upper, work) = (holder.join("upper"), holder.join("work"));
        fs_err::create_dir_all(&upper).expect("make an upper");
        fs_err::create_dir_all(&work).expect("make a work directory");
        let lowers = lowers.iter().copied().chain([self.lower.as_path()]).map(Path::to_owned).collect();
        let userxattr = self.user != UserNamespace::None;
        let upper_and_work = Upper { upper: upper.clone(), work };
        let overlay =
            Overlay { tars: Vec::new(), lowers, upper: Some(upper_and_work), userxattr, volatile: true };
        let ownership = match self.user {
            UserNamespace::SingleId { .. } => OwnershipMode::Recorded,
            _ => OwnershipMode::Kernel,
        };
        Root { overlay, upper, ownership }
    }

    /// An empty directory of the host.
    pub(crate) fn empty(&self, name: &str) -> PathBuf {
        let number = self.number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.directory.path().join(format!("{name}{number}"));
        fs_err::create_dir_all(&path).expect("make a directory");
        path
    }

    /// A sandbox over a new root that runs a shell script.
    pub(crate) fn shell(&self, script: &str) -> Sandbox {
        self.root(&[]).shell(script)
    }

    /// Runs a script in a new root and gives what it wrote, trimmed; it must succeed.
    pub(crate) fn output(&self, script: &str) -> String {
        let ran = run(&self.shell(script)).expect("the sandbox starts");
        assert!(
            ran.finished.exit.success(),
            "{script}: {:?} {} {}",
            ran.finished.exit,
            ran.output,
            ran.error
        );
        ran.output.trim().to_owned()
    }
}

impl Root {
    /// A sandbox over this root that runs a shell script.
    pub(crate) fn shell(&self, script: &str) -> Sandbox {
        let root = RootSource::Overlay { overlay: self.overlay.clone() };
        let mut sandbox = Sandbox::new(root, vec!["/bin/sh".into(), "-c".into(), script.into()]);
        sandbox.process.environment = vec!["PATH=/bin".into()];
        sandbox.ownership = self.ownership;
        sandbox
    }
}

/// Runs a sandbox to its end.
pub(crate) fn run(sandbox: &Sandbox) -> Result<Ran, RuntimeError> {
    let launcher = Launcher::new();
    let mut running = kiln_runtime::start(sandbox, Streams::piped(), None, &launcher)?;
    let (output, error) = (running.output.take(), running.error.take());
    let reader = std::thread::spawn(move || text(error));
    let output = text(output);
    let error = reader.join().expect("the reader lives");
    Ok(Ran { finished: running.wait()?, output, error })
}

pub(crate) fn text(end: Option<std::os::fd::OwnedFd>) -> String {
    let mut bytes = Vec::new();
    if let Some(end) = end {
        std::fs::File::from(end).read_to_end(&mut bytes).expect("read a pipe");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An ELF program without an interpreter.
fn is_static(path: &Path) -> bool {
    let Ok(bytes) = fs_err::read(path) else { return false };
    !bytes[..bytes.len().min(4096)]
        .windows(10)
        .any(|window| window == b"ld-linux-x" || window == b"ld-linux-a")
}
