//! Git repositories as sources: of ADD, and as contexts.
//!
//! As a download, a repository is a vertex of its own: its result is a root with the files of one commit, and its key is
//! that commit's hash. Which commit a branch or tag is at, the repository is asked by every build.

mod address;
mod repository;
mod submodules;
mod watch;

use std::path::{Path, PathBuf};

use kiln_dockerfile::GitSource;
use kiln_graph::{Context, Done, Identity, Input, Operation as KeyOperation, Preimage, Stop};
use kiln_layer::{Kind, LayerWriter, RootView, Source};
use kiln_oci::{ChainId, Digest};

pub(crate) use address::GitAddress;
pub(crate) use repository::Commit;
pub use repository::GitProgram;
use repository::{Git, Stopping};
pub use watch::GitLimits;

use crate::context::BuildContext;
use crate::engine::{Engine, Step};
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::request::Executions;
use crate::tree::SourceTree as _;

/// Checks a repository out below `place`, an empty directory of its own, and gives the directory that `source` means.
///
/// # Errors
/// When the address makes no sense, there is no git, or the repository is not what is asked for.
pub fn check_out(program: &GitProgram, source: &GitSource, place: &Path) -> Result<PathBuf> {
    let address = GitAddress::parse(source)?;
    let git = Git { program, address: &address, stopping: Stopping::Together, place };
    git.check_out(&git.resolve()?)
}

impl Engine<'_> {
    fn git_in<'a>(&'a self, address: &'a GitAddress, place: &'a Path, context: &'a Context<'_>) -> Git<'a> {
        let stopping = match self.request.executions {
            Executions::Allowed(_) | Executions::WithoutCommands { .. } => Stopping::Token(context.cancel()),
            // Nobody listens for interrupts yet.
            Executions::Refused => Stopping::Together,
        };
        Git { program: &self.request.git, address, stopping, place }
    }

    /// The key of a repository: its commit.
    pub(crate) fn git_identity(
        &self,
        address: &GitAddress,
        key: KeyOperation,
        context: &Context<'_>,
    ) -> std::result::Result<Identity, Stop<Error>> {
        let place = self.fresh_directory("git")?;
        let git = self.git_in(address, &place, context);
        let commit = git.resolve().map_err(Error::stop)?;
        let identity = Preimage { operation: key, inputs: vec![input(address, &commit)] };
        self.commits.lock().unwrap_or_else(|e| e.into_inner()).insert(context.vertex(), commit);
        Ok(Identity::Known(identity))
    }

    /// Makes the root with the commit's files.
    pub(crate) fn git(
        &self,
        address: &GitAddress,
        context: &Context<'_>,
    ) -> std::result::Result<Done<Step>, Stop<Error>> {
        let place = self.fresh_directory("git")?;
        let git = self.git_in(address, &place, context);
        let known = self.commits.lock().unwrap_or_else(|e| e.into_inner()).remove(&context.vertex());
        let commit = match known {
            Some(commit) => commit,
            None => git.resolve().map_err(Error::stop)?,
        };
        let directory = git.check_out(&commit).map_err(Error::stop)?;
        let tree = BuildContext::open(&directory, b"", None)?;
        let mut writer = LayerWriter::new();
        for below in tree.walk(b"", &Filter::default())? {
            if below.path.is_empty() {
                continue;
            }
            let source = match below.found.metadata.kind {
                Kind::Regular => {
                    let path = directory.join(crate::tree::to_path(&below.path));
                    Source::Open(Box::new(move || crate::download::open(&path)))
                }
                _ => Source::Empty,
            };
            writer.add(&below.path, below.found.metadata, source).map_err(Error::from)?;
        }
        let layer = self.write_layer(writer, &RootView::default(), context)?;
        let layer = self.store.publish_layer(self.lease()?, ChainId::SCRATCH, layer).map_err(Error::from)?;
        let _ = fs_err::remove_dir_all(&place);
        Ok(self.made(ChainId::SCRATCH, layer).into())
    }
}

fn input(address: &GitAddress, commit: &Commit) -> Input {
    let mut selector = commit.hash.clone();
    if !address.directory.is_empty() {
        selector.push(':');
        selector.push_str(&address.directory);
    }
    if let Some(tag) = &commit.tag {
        // That the tag leads to the commit is known only where it was fetched.
        selector.push_str(&format!("\ntag {tag}"));
    }
    if address.keeps_git_dir() {
        // What is in .git besides the commit.
        let reference = commit.reference.as_deref().unwrap_or_default();
        selector.push_str(&format!("\n{reference}\n{}", kiln_remote::shown(&address.remote)));
    }
    Input { name: "commit".to_owned(), digest: Digest::of(selector.as_bytes()), selector }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use kiln_dockerfile::{SourceKind, source_kind};

    use super::*;

    /// The machine's git, or `None`, which is said.
    #[expect(clippy::disallowed_methods, reason = "a test needs git")]
    fn program(limits: GitLimits) -> Option<GitProgram> {
        if Command::new("git").arg("--version").output().is_err() {
            crate::skipped::skipped("needs git");
            return None;
        }
        let path = std::env::var("PATH").expect("a path");
        let environment = vec![("PATH".to_owned(), path)];
        Some(GitProgram { path: Some("git".into()), environment, limits, ..GitProgram::default() })
    }

    fn check_out_of(program: &GitProgram, url: &str) -> Result<PathBuf> {
        let place = tempfile::tempdir().expect("a directory");
        let SourceKind::Git(source) = source_kind(url) else { panic!("{url} is no repository") };
        check_out(program, &source, place.path())
    }

    /// A server that does this with each connection.
    fn serve(with: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let with = with.clone();
                std::thread::spawn(move || with(stream));
            }
        });
        address
    }

    /// Whether a process has these words in its command line.
    fn goes_on(words: &[u8]) -> bool {
        let processes = fs_err::read_dir("/proc").expect("read").flatten();
        let mut lines = processes.filter_map(|process| fs_err::read(process.path().join("cmdline")).ok());
        lines.any(|line| line.windows(words.len()).any(|part| part == words))
    }

    #[test]
    fn silent_servers_are_left() {
        let limits = GitLimits { stall: Duration::from_secs(1), ..GitLimits::default() };
        let Some(program) = program(limits) else { return };
        // Until git goes away.
        let silent = serve(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
        let trickling = serve(|mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n");
            while stream.write_all(b"0").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        for url in [
            format!("git://{silent}/r.git"),
            format!("http://u:s3cret@{silent}/r.git"),
            format!("http://{trickling}/r.git#{}", "a".repeat(40)),
        ] {
            let start = Instant::now();
            let told = check_out_of(&program, &url).expect_err("a refusal");
            assert!(matches!(told, Error::GitStalled { .. }), "{url}: {told}");
            let told = told.to_string();
            assert!(told.ends_with("/r.git: the server sent nothing for 1 seconds"), "{told}");
            assert!(!told.contains("s3cret"), "{told}");
            // Nothing is left behind, and it is not tried again in another way.
            let server = url.rsplit(['@', '/']).nth(1).expect("a server").as_bytes();
            while goes_on(server) {
                assert!(start.elapsed() < Duration::from_secs(30), "{url} is still asked");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{url}: {:?}", start.elapsed());
        }
    }

    #[test]
    fn lists_without_end_do_not_take_all_memory() {
        let Some(program) = program(GitLimits { memory: 64 << 20, ..GitLimits::default() }) else { return };
        let endless = serve(|mut stream| {
            let line = format!("{}\trefs/heads/{}\n", "a".repeat(40), "x".repeat(900));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n");
            let lines = line.repeat(1000);
            while stream.write_all(lines.as_bytes()).is_ok() {}
        });
        let told = check_out_of(&program, &format!("http://{endless}/r.git")).expect_err("a refusal");
        assert!(matches!(told, Error::Git { .. }), "{told}");
        assert!(told.to_string().to_lowercase().contains("memory"), "{told}");
    }

    struct Daemon(Child);

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Runs git as somebody in a directory; what it says.
    #[track_caller]
    fn git(directory: &Path, words: &[&str]) -> String {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=T", "-c", "user.email=t@example.com"]).args(words);
        git.current_dir(directory).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let output = git.output().expect("git");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Serves the repositories below a directory.
    fn serve_repositories(directory: &Path) -> (Daemon, SocketAddr) {
        let exec_path = git(directory, &["--exec-path"]);
        let free = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = free.local_addr().expect("an address");
        drop(free);
        let mut daemon = Command::new(Path::new(&exec_path).join("git-daemon"));
        daemon.args(["--export-all", "--listen=127.0.0.1", &format!("--port={}", address.port())]);
        daemon.arg(format!("--base-path={}", directory.display())).arg(directory);
        daemon.envs([
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "safe.directory"),
            ("GIT_CONFIG_VALUE_0", "*"),
        ]);
        let daemon = Daemon(daemon.spawn().expect("git-daemon"));
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "git-daemon does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        (daemon, address)
    }

    #[test]
    fn repositories_do_not_fill_the_disk() {
        let limits = GitLimits { bytes: 2 << 20, ..GitLimits::default() };
        let Some(program) = program(limits) else { return };
        let served = tempfile::tempdir().expect("a directory");
        // Zeros are a small pack and a large file.
        fs_err::write(served.path().join("zeros"), vec![0; 4 << 20]).expect("written");
        git(served.path(), &["init", "--quiet"]);
        git(served.path(), &["add", "."]);
        git(served.path(), &["commit", "--quiet", "-m", "large"]);
        let (_daemon, address) = serve_repositories(served.path());
        let url = format!("git://{address}/.git");
        let told = check_out_of(&program, &url).expect_err("a refusal");
        assert_eq!(told.to_string(), format!("{url}: larger than 2097152 bytes"));
        let enough = GitProgram { limits: GitLimits::default(), ..program };
        let place = tempfile::tempdir().expect("a directory");
        let SourceKind::Git(source) = source_kind(&url) else { panic!("{url} is no repository") };
        let directory = check_out(&enough, &source, place.path()).expect("checked out");
        assert_eq!(fs_err::metadata(directory.join("zeros")).expect("there").len(), 4 << 20);
    }

    #[test]
    fn submodules_are_bounded() {
        let Some(program) = program(GitLimits::default()) else { return };
        let served = tempfile::tempdir().expect("a directory");
        // Each has the one before it twice: six submodules, two within one another.
        for level in 0..3 {
            let directory = served.path().join(format!("r{level}"));
            fs_err::create_dir(&directory).expect("made");
            git(&directory, &["init", "--quiet"]);
            fs_err::write(directory.join("file"), "").expect("written");
            if level > 0 {
                let below = format!("r{}", level - 1);
                let commit = git(&served.path().join(&below), &["rev-parse", "HEAD"]);
                let module = |name| {
                    let link = format!("160000,{commit},{name}");
                    git(&directory, &["update-index", "--add", "--cacheinfo", &link]);
                    format!("[submodule \"{name}\"]\n\tpath = {name}\n\turl = ../../{below}/.git\n")
                };
                let modules = module("a") + &module("b");
                fs_err::write(directory.join(".gitmodules"), modules).expect("written");
            }
            git(&directory, &["add", "--ignore-removal", "."]);
            git(&directory, &["commit", "--quiet", "-m", "level"]);
        }
        let (_daemon, address) = serve_repositories(served.path());
        let url = format!("git://{address}/r2/.git");
        let limited = |submodules, nesting| GitProgram {
            limits: GitLimits { submodules, nesting, ..program.limits },
            ..program.clone()
        };
        let told = check_out_of(&limited(5, 2), &url).expect_err("a refusal");
        assert_eq!(told.to_string(), format!("{url}: more than 5 submodules"));
        let told = check_out_of(&limited(6, 1), &url).expect_err("a refusal");
        assert_eq!(told.to_string(), format!("{url}: more than 1 submodules within one another"));
        let place = tempfile::tempdir().expect("a directory");
        let SourceKind::Git(source) = source_kind(&url) else { panic!("{url} is no repository") };
        let directory = check_out(&limited(6, 2), &source, place.path()).expect("checked out");
        for file in ["file", "a/file", "b/file", "a/a/file", "b/a/file", "b/b/file"] {
            assert!(directory.join(file).is_file(), "{file}");
        }
    }
}
