//! Running the machine's git: nothing of the user's or the system's configuration, no hook, no prompt, no protocol but the
//! network's, never a word of a Dockerfile where git looks for options.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln_graph::Cancel;
use kiln_remote::Proxies;
use kiln_sys::root::{Directory, Time};
use rustix::fs::FileType;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::address::{GitAddress, is_commit, is_reference};
use super::watch::{Beyond, GitLimits, Watch, family};
use crate::error::{Error, Result};

/// The machine's git, and what it may know of the environment.
#[derive(Clone, Debug, Default)]
pub struct GitProgram {
    /// Its path; `None` if there is none.
    pub path: Option<PathBuf>,
    /// PATH for its helpers, the CA bundle.
    pub environment: Vec<(String, String)>,
    /// The same as for downloads.
    pub proxies: Proxies,
    /// How much is waited for and taken.
    pub limits: GitLimits,
}

/// How often it is looked whether git has ended.
const TICK: Duration = Duration::from_millis(10);
/// The most that is read of what git says.
const SAID: u64 = 1 << 20;

/// A helper that nobody is left to watch leaves a server that sends fewer bytes a second than this for a minute.
const SLOWEST: [&str; 4] = ["-c", "http.lowSpeedLimit=100", "-c", "http.lowSpeedTime=60"];

/// A commit, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Its hash.
    pub(crate) hash: String,
    /// That of the annotated tag that must lead to it: the one that the checksum is of. Nothing but the tag itself
    /// says so: what a server lists is its word alone.
    pub(crate) tag: Option<String>,
    /// The reference that led to it, in full.
    pub(crate) reference: Option<String>,
}

/// What ends git before its time, besides its limits.
#[derive(Clone, Copy)]
pub(crate) enum Stopping<'a> {
    /// A token: git and its helpers are a process group that is killed.
    Token(&'a Cancel),
    /// Whatever ends this process: the terminal tells them all.
    Together,
}

impl Stopping<'_> {
    /// Ends git and its helpers. Those that have ended meanwhile are no failure.
    fn kill(self, git: Pid) {
        if let Self::Token(_) = self {
            let _ = kill_process_group(git, Signal::KILL);
            return;
        }
        for (process, _) in family(git) {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// git for one repository.
pub(crate) struct Git<'a> {
    pub(crate) program: &'a GitProgram,
    pub(crate) address: &'a GitAddress,
    pub(crate) stopping: Stopping<'a>,
    /// An empty directory of its own.
    pub(crate) place: &'a Path,
}

impl Git<'_> {
    pub(super) fn shown(&self) -> String {
        kiln_remote::shown(&self.address.remote)
    }

    fn failed(&self, problem: impl Into<String>) -> Error {
        Error::Git { remote: self.shown(), problem: problem.into() }
    }

    fn beyond(&self, limit: Beyond) -> Error {
        let (remote, limits) = (self.shown(), self.program.limits);
        match limit {
            Beyond::Time => Error::GitStalled { remote, after: limits.stall },
            Beyond::Space => Error::GitTooLarge { remote, limit: limits.bytes },
        }
    }

    fn check_size(&self) -> Result<()> {
        if self.program.limits.allow(self.place) { Ok(()) } else { Err(self.beyond(Beyond::Space)) }
    }

    /// Runs git; what it wrote to its standard output, up to a mebibyte.
    pub(super) fn run(&self, directory: &Path, words: &[&str]) -> Result<String> {
        said(&self.run_into_file(directory, words)?)
    }

    /// Runs git; the file with what it wrote to its standard output, which the next run replaces.
    pub(super) fn run_into_file(&self, directory: &Path, words: &[&str]) -> Result<PathBuf> {
        let program = self.program.path.as_ref().ok_or(Error::NoGit)?;
        let (output, complaints) = (self.place.join("output"), self.place.join("complaints"));
        let create =
            |path: &Path| fs_err::File::create(path).map(|file| file.into_file()).map_err(file_error);
        let mut child = self
            .command(program, directory, words)
            .stdout(create(&output)?)
            .stderr(create(&complaints)?)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Error::NoGit,
                _ => Error::File { action: "run", path: program.display().to_string(), source },
            })?;
        let git = Pid::from_child(&child);
        let mut watch = Watch::new(self.program.limits, self.place, git);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(file_error)? {
                break status;
            }
            let is_canceled = match self.stopping {
                Stopping::Token(cancel) => cancel.sleep(TICK),
                Stopping::Together => {
                    std::thread::sleep(TICK);
                    false
                }
            };
            let ended =
                if is_canceled { Some(Error::Canceled) } else { watch.look().map(|it| self.beyond(it)) };
            if let Some(error) = ended {
                self.stopping.kill(git);
                let _ = child.wait();
                return Err(error);
            }
        };
        if status.success() {
            return Ok(output);
        }
        let mut told = said(&complaints)?;
        if let Some((with, without)) = self.address.credentials() {
            told = told.replace(&with, &without);
            let behind = with.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
            if let Some((userinfo, _)) = behind {
                told = told.replace(&format!("{userinfo}@"), "");
            }
        }
        let lines: Vec<&str> = told.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n");
        Err(self.failed(if last.is_empty() { status.to_string() } else { last }))
    }

    fn command(&self, program: &Path, directory: &Path, words: &[&str]) -> Command {
        // A redirect or a submodule leads to no protocol that is worse.
        let protocols = match self.address.remote.split("://").next() {
            Some("https") => "https",
            Some("http") => "http:https",
            _ => "git:https",
        };
        let mut command = Command::new(program);
        command
            .args(["-c", "protocol.file.allow=never", "-c", "core.hooksPath=/dev/null"])
            .args(["-c", "core.fsmonitor=false", "-c", "init.templateDir=", "-c", "gc.auto=0"])
            .args(["-c", "init.defaultBranch=master", "-c", "advice.detachedHead=false"])
            .args(SLOWEST)
            .args(["-c", "credential.helper="])
            .args(words)
            .current_dir(directory)
            .env_clear()
            .envs(self.program.environment.iter().map(|(name, value)| (name, value)))
            .envs([
                ("GIT_TERMINAL_PROMPT", "0"),
                ("GIT_CONFIG_NOSYSTEM", "1"),
                ("GIT_CONFIG_GLOBAL", "/dev/null"),
                ("GIT_ATTR_NOSYSTEM", "1"),
                ("GIT_ALLOW_PROTOCOL", protocols),
                ("HOME", "/dev/null"),
                ("XDG_CONFIG_HOME", "/dev/null"),
                ("LC_ALL", "C"),
            ])
            .stdin(Stdio::null());
        if let Some((with, without)) = self.address.credentials() {
            // In the environment: neither other users' `ps` nor any configuration that is kept sees them.
            command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", format!("url.{with}.insteadOf"));
            command.env("GIT_CONFIG_VALUE_0", without);
        }
        self.set_proxies(&mut command);
        if let Stopping::Token(_) = self.stopping {
            command.process_group(0);
        }
        // Even if nobody is left to stop it.
        kiln_sys::process::ends_with_parent(&mut command);
        kiln_sys::process::limits_memory(&mut command, self.program.limits.memory);
        command
    }

    /// libcurl reads variables in small letters. It goes to this machine itself without a proxy only if it is told to, and
    /// knows no ports in `no_proxy`: for the repository's own host it gets the answer that a download would get.
    fn set_proxies(&self, command: &mut Command) {
        let proxies = &self.program.proxies;
        for (name, proxy) in [("http_proxy", &proxies.http), ("https_proxy", &proxies.https)] {
            command.envs(proxy.as_ref().map(|proxy| (name, proxy)));
        }
        let mut direct = vec![proxies.direct.clone(), "localhost,127.0.0.0/8,127.0.0.1,::1".to_owned()];
        direct.extend(proxies.direct_host(&self.address.remote));
        direct.retain(|hosts| !hosts.is_empty());
        command.env("no_proxy", direct.join(","));
    }

    /// Asks the repository which commit is meant.
    pub(crate) fn resolve(&self) -> Result<Commit> {
        let mut commit = match self.address.commit() {
            Some(hash) => Commit { hash: hash.to_owned(), tag: None, reference: None },
            None => self.ask()?,
        };
        let checksum = self.address.checksum.as_deref().unwrap_or_default();
        // It may be the tag's as well as the commit's.
        let is_commits = commit.hash.starts_with(checksum);
        commit.tag = commit.tag.filter(|tag| !is_commits && tag.starts_with(checksum));
        if !is_commits && commit.tag.is_none() {
            return Err(self.failed(format!("expected checksum to match {checksum}, got {}", commit.hash)));
        }
        Ok(commit)
    }

    fn ask(&self) -> Result<Commit> {
        let remote = &self.shown();
        let Some(reference) = &self.address.reference else {
            let listed = self.run(self.place, &["ls-remote", "--symref", "--", remote, "HEAD"])?;
            let ends = |line: &str| line.strip_suffix("\tHEAD").map(str::to_owned);
            let target = listed.lines().find_map(|line| ends(line.strip_prefix("ref: ")?));
            let hash = listed.lines().filter_map(ends).find(|hash| is_commit(hash));
            let hash = hash.ok_or_else(|| self.failed("it has no default branch"))?;
            let reference = target.filter(|target| is_reference(target));
            return Ok(Commit { hash, tag: None, reference });
        };
        let peeled = format!("{reference}^{{}}");
        let listed = self.run(self.place, &["ls-remote", "--", remote, reference, &peeled])?;
        let find = |name: &str| {
            let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
            lines.find(|(hash, found)| *found == name && is_commit(hash)).map(|(hash, _)| hash.to_owned())
        };
        // As in git-checkout(1), a branch comes before a tag of the same name.
        let names = [
            format!("refs/{}", reference.trim_start_matches("refs/")),
            format!("refs/heads/{}", reference.trim_start_matches("refs/heads/")),
            format!("refs/tags/{}", reference.trim_start_matches("refs/tags/")),
        ];
        let found = names.into_iter().find_map(|name| find(&name).map(|hash| (name, hash)));
        let (name, hash) =
            found.ok_or_else(|| self.failed(format!("repository does not contain ref {reference}")))?;
        // Nothing but a tag leads to something else.
        let peeled = name.starts_with("refs/tags/").then(|| find(&format!("{name}^{{}}"))).flatten();
        Ok(match peeled {
            Some(commit) => Commit { hash: commit, tag: Some(hash), reference: Some(name) },
            None => Commit { hash, tag: None, reference: Some(name) },
        })
    }

    /// Brings the commit's files here; the directory that holds what is wanted of them. Modes and times are the
    /// commit's, whatever the umask and the time of day.
    pub(crate) fn check_out(&self, commit: &Commit) -> Result<PathBuf> {
        let tree = self.place.join("tree");
        fs_err::create_dir(&tree).map_err(file_error)?;
        let keep = self.address.keeps_git_dir();
        let git_dir = if keep { tree.join(".git") } else { self.place.join("repository") };
        let git_dir_text = git_dir.display().to_string();
        let tree_text = tree.display().to_string();
        let inside = ["--git-dir", &git_dir_text, "--work-tree", &tree_text];
        let run = |words: &[&str]| self.run(&tree, &[&inside[..], words].concat());
        let format = if commit.hash.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        self.run(&tree, &["--git-dir", &git_dir_text, "init", "--quiet", format])?;
        run(&["remote", "add", "--", "origin", &self.shown()])?;
        self.fetch(commit, &run)?;
        self.check_size()?;
        self.check_tag(commit, &run)?;
        if keep {
            run(&["checkout", "--quiet", "--detach", &commit.hash])?;
        } else {
            run(&["read-tree", "--reset", "-u", &commit.hash])?;
        }
        if self.address.submodules {
            self.add_submodules(&tree, &inside)?;
        }
        self.check_size()?;
        let time = run(&["show", "--no-patch", "--format=%ct", &commit.hash])?;
        let seconds = time.trim().parse().map_err(|_| self.failed("its commit has no time"))?;
        if keep {
            self.settle_index(&git_dir, &tree)?;
            self.settle_modules(&git_dir.join("modules"))?;
        }
        let mut directory = Directory::open(&tree)?;
        settle(&directory, seconds, if keep { GitDirs::Keep } else { GitDirs::Remove })?;
        // No symbolic link leads out of the repository: none is followed at all (CVE-2026-33748).
        let mut path = tree;
        for name in self.address.directory.split('/').filter(|name| !name.is_empty()) {
            directory = directory
                .open_directory(name)
                .map_err(|_| self.failed(format!("{:?} is no directory of it", self.address.directory)))?;
            path.push(name);
        }
        Ok(path)
    }

    /// An index notes inodes and times of its checkout; made anew it notes the commit alone.
    fn settle_index(&self, git_dir: &Path, tree: &Path) -> Result<()> {
        let _ = fs_err::remove_file(git_dir.join("FETCH_HEAD"));
        fs_err::remove_file(git_dir.join("index")).map_err(file_error)?;
        let (git_dir, shown) = (git_dir.display().to_string(), tree.display().to_string());
        let inside = ["--git-dir", &git_dir, "--work-tree", &shown];
        self.run(tree, &[&inside[..], &["reflog", "expire", "--all", "--expire=now"]].concat())?;
        self.run(tree, &[&inside[..], &["read-tree", "HEAD"]].concat()).map(drop)
    }

    /// The same for what is kept of submodules, which may have some of their own. Their names are paths.
    fn settle_modules(&self, directory: &Path) -> Result<()> {
        let Ok(entries) = fs_err::read_dir(directory) else { return Ok(()) };
        for entry in entries {
            let path = entry.map_err(file_error)?.path();
            if path.join("index").is_file() && path.join("HEAD").is_file() {
                self.settle_index(&path, &path)?;
                self.settle_modules(&path.join("modules"))?;
            } else if path.is_dir() {
                self.settle_modules(&path)?;
            }
        }
        Ok(())
    }

    /// The tag that the checksum is of leads to the commit.
    fn check_tag(&self, commit: &Commit, run: &dyn Fn(&[&str]) -> Result<String>) -> Result<()> {
        let Some(tag) = &commit.tag else { return Ok(()) };
        let is_tag = run(&["cat-file", "-t", tag])?.trim() == "tag";
        let target = run(&["rev-parse", "--verify", "--end-of-options", &format!("{tag}^{{commit}}")])?;
        if !is_tag || target.trim() != commit.hash {
            return Err(self.failed(format!("the tag {tag} does not lead to {}", commit.hash)));
        }
        Ok(())
    }

    /// Fetches as little as the server lets: the commit alone, its branch or tag, or everything.
    fn fetch(&self, commit: &Commit, run: &dyn Fn(&[&str]) -> Result<String>) -> Result<()> {
        let wanted = [format!("{}^{{commit}}", commit.hash)];
        let wanted: Vec<&String> = wanted.iter().chain(&commit.tag).collect();
        let named = commit.reference.as_ref().map(|name| format!("+{name}:{name}"));
        let shallow = ["fetch", "--quiet", "--no-tags", "--depth=1", "--", "origin"];
        let deep = ["fetch", "--quiet", "--no-tags", "--", "origin"];
        let everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        let mut tries: Vec<Vec<&str>> = Vec::new();
        match (&named, self.address.keeps_git_dir() || commit.tag.is_some()) {
            (Some(named), true) => tries.push([&shallow[..], &[named]].concat()),
            _ => tries.push([&shallow[..], &[&commit.hash]].concat()),
        }
        if let Some(named) = &named {
            tries.push([&shallow[..], &[named]].concat());
            tries.push([&deep[..], &[named]].concat());
        }
        tries.push([&deep[..], &everything[..]].concat());
        let mut last = None;
        for words in &tries {
            match run(words) {
                // Another way may be open, but not after what ended this one from outside.
                Err(error @ Error::Git { .. }) => last = Some(error),
                Err(error) => return Err(error),
                Ok(_) => {
                    if wanted.iter().all(|object| run(&["cat-file", "-e", object]).is_ok()) {
                        return Ok(());
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| self.failed(format!("it has no commit {}", commit.hash))))
    }
}

/// Whether `.git` stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GitDirs {
    /// Everywhere: below the top, `.git` is a file that leads to the one at the top.
    Keep,
    /// This is one: nothing below it is special.
    Within,
    /// Nowhere: those of submodules lead to where the build was.
    Remove,
}

/// Gives files the modes that git knows of, and the commit's time.
fn settle(directory: &Directory, seconds: i64, git_dirs: GitDirs) -> Result<()> {
    let time = Time { seconds, nanoseconds: 0 };
    for found in directory.list()? {
        let name: &OsStr = &found.name;
        if name == ".git" && git_dirs == GitDirs::Remove {
            directory.remove_all(name)?;
            continue;
        }
        let stat = directory.stat(name)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = match git_dirs {
                    GitDirs::Within => GitDirs::Within,
                    GitDirs::Keep if name == ".git" => GitDirs::Within,
                    other => other,
                };
                settle(&directory.open_directory(name)?, seconds, below)?;
                directory.set_mode(name, 0o755)?;
            }
            FileType::RegularFile => {
                directory.set_mode(name, if stat.st_mode & 0o100 == 0 { 0o644 } else { 0o755 })?;
            }
            _ => {}
        }
        directory.set_modified(name, time)?;
    }
    Ok(())
}

fn said(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let file = fs_err::File::open(path).map_err(file_error)?;
    file.take(SAID).read_to_end(&mut bytes).map_err(file_error)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The error names the path itself.
pub(super) fn file_error(source: io::Error) -> Error {
    Error::File { action: "use", path: "the place for a repository".to_owned(), source }
}
