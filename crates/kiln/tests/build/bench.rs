//! A directory with a store, a base image and a context, and what is looked at from outside of kiln.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rustix::process::Pid;

use crate::patience::until;
use crate::skipped::skipped;

/// Programs of the base image.
const PROGRAMS: [&str; 17] = [
    "cat", "chmod", "echo", "env", "find", "ln", "md5sum", "mkdir", "mv", "rm", "sh", "sleep", "sort",
    "stat", "touch", "true", "[",
];

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    /// A store with the image `bb`, or `None` where that cannot be had.
    pub(crate) fn new() -> Option<Self> {
        if !is_root() {
            skipped("needs root and busybox-static");
            return None;
        }
        Self::of_anyone()
    }

    /// The same for tests that an ordinary user can run, too.
    pub(crate) fn of_anyone() -> Option<Self> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
        let Some(busybox) = busybox else {
            skipped("needs busybox-static");
            return None;
        };
        let bench = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        let root = bench.path("image");
        for name in ["bin", "etc", "obs"] {
            fs_err::create_dir_all(root.join(name)).expect("made");
        }
        fs_err::create_dir_all(bench.path("context")).expect("made");
        fs_err::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").expect("written");
        fs_err::copy(busybox, root.join("bin/busybox")).expect("copied");
        for name in PROGRAMS {
            fs_err::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("linked");
        }
        let tar = bench.path("image.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(&root).args(["--owner=0", "--group=0", "-cf"]).arg(&tar).arg(".");
        assert!(pack.status().expect("tar").success());
        let imported = bench.kiln("store", &["import", "image.tar", "bb"]).output().expect("kiln");
        assert!(imported.status.success(), "{imported:?}");
        if !is_root() && !bench.run("store", &["run", "--rm", "bb", "true"]).status.success() {
            skipped("needs root or user namespaces");
            return None;
        }
        Some(bench)
    }

    /// Removes a store, if it is there.
    pub(crate) fn remove_store(&self, name: &str) {
        let store = self.path(name);
        if !store.exists() {
            return;
        }
        // Files of subordinate identifiers can be removed by kiln alone.
        if !is_root() {
            let pruned = self.run(name, &["system", "prune", "-af"]);
            assert!(pruned.status.success(), "{pruned:?}");
        }
        fs_err::remove_dir_all(&store).expect("removed");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).expect("written");
    }

    /// kiln in this directory, on the store of this name.
    pub(crate) fn kiln(&self, store: &str, words: &[&str]) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.arg("--root").arg(self.path(store)).args(words);
        kiln.current_dir(self.directory.path()).stdin(Stdio::null());
        kiln
    }

    pub(crate) fn run(&self, store: &str, words: &[&str]) -> Output {
        self.kiln(store, words).output().expect("kiln")
    }

    /// A build of `Dockerfile` that goes on meanwhile; `name.err` gets what it says.
    pub(crate) fn start(&self, name: &str) -> Running {
        self.start_with(name, &["-f", "Dockerfile", "context"])
    }

    /// A build of a context that goes on meanwhile.
    pub(crate) fn start_on(&self, name: &str, context: &str) -> Running {
        self.start_with(name, &[context])
    }

    fn start_with(&self, name: &str, words: &[&str]) -> Running {
        let mut kiln = self.kiln("store", &["build", "--progress=plain", "--iidfile"]);
        let told = fs_err::File::create(self.path(&format!("{name}.err"))).expect("made");
        kiln.arg(format!("{name}.id")).args(words).stderr(told.into_parts().0);
        std::os::unix::process::CommandExt::process_group(&mut kiln, 0);
        Running { child: kiln.spawn().expect("kiln") }
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The one cache mount's directory, once a step has it.
    pub(crate) fn cache(&self) -> Option<PathBuf> {
        let entries = fs_err::read_dir(self.path("store/cache")).ok()?;
        entries.flatten().map(|entry| entry.path()).find(|path| path.is_dir())
    }

    /// What steps wrote to `log` in the cache mount.
    pub(crate) fn log(&self) -> String {
        let log = self.cache().map(|cache| cache.join("log"));
        log.and_then(|log| fs_err::read_to_string(log).ok()).unwrap_or_default()
    }

    /// How many leases the store holds.
    pub(crate) fn leases(&self) -> usize {
        fs_err::read_dir(self.path("store/tmp")).expect("read").count()
    }

    /// Whether containers are held to the usual devices here, so that device nodes can be opened; says so if not.
    pub(crate) fn opens_devices(&self) -> bool {
        let found = self.run("store", &["info", "--format", "{{.Ways.Devices.Reason}}"]);
        let reason = text(&found.stdout);
        if reason.trim() != "<no value>" && reason.trim() != "<nil>" {
            skipped(&format!("device nodes: {}", reason.trim()));
            return false;
        }
        true
    }

    /// Whether a command left a cgroup behind.
    pub(crate) fn has_cgroup(command: Pid) -> bool {
        let name = format!("kiln-{}-*", command.as_raw_nonzero());
        let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &name]).output().expect("find");
        !found.stdout.is_empty()
    }

    /// No process has this directory or `marker` in its command line, and nothing is mounted in the directory.
    #[track_caller]
    pub(crate) fn assert_nothing_goes_on(&self, marker: &str) {
        let place = self.directory.path().display().to_string();
        let running = || {
            let processes = fs_err::read_dir("/proc").expect("read").flatten();
            let lines = processes.filter_map(|process| fs_err::read(process.path().join("cmdline")).ok());
            let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
            lines.filter(|line| line.contains(&place) || line.contains(marker)).collect::<Vec<_>>()
        };
        until("every process has ended", || running().is_empty());
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").expect("read");
        assert!(!mounts.contains(&place), "{mounts}");
    }
}

/// A build that does not outlive its test.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("the build ends", || self.child.try_wait().expect("waited").is_some());
        self.child.wait().expect("waited")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::print_stdout, reason = "seeds are said")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
