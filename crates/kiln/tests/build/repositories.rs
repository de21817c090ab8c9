//! ADD of git repositories, and repositories as contexts, from servers on this machine's loopback.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Signal, kill_process, kill_process_group};

use crate::bench::{Bench, text};
use crate::patience::{PATIENCE, until};
use crate::web::{Page, Web};

/// Files of a bench served by git-daemon, until it is dropped.
struct Daemon {
    process: Child,
    port: u16,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn has_git() -> bool {
    let found = Command::new("git").arg("--version").output().is_ok();
    if !found {
        crate::skipped::skipped("needs git");
    }
    found
}

/// Runs git on what a test makes.
#[track_caller]
fn git(directory: &Path, words: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"])
        .args(["-c", "user.name=Test", "-c", "user.email=test@example.com"])
        .args(words)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_COMMITTER_DATE", "2001-09-09T01:46:40Z")
        .env("GIT_AUTHOR_DATE", "2001-09-09T01:46:40Z")
        .output()
        .expect("git");
    assert!(output.status.success(), "{words:?} {}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

impl Bench {
    /// Serves what is under `served`.
    fn git_daemon(&self) -> Daemon {
        let directory = self.path("served");
        let exec_path = git(&directory, &["--exec-path"]);
        let free = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let process = Command::new(Path::new(&exec_path).join("git-daemon"))
            .args(["--export-all", "--listen=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--base-path={}", directory.display()))
            .arg(&directory)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("git-daemon");
        let daemon = Daemon { process, port };
        until("git-daemon listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        daemon
    }

    /// A repository with a commit on `main` (tagged `v1`), one more on `feature/x`.
    fn repository(&self) -> (String, String) {
        let work = self.path("work");
        fs_err::create_dir_all(work.join("d")).expect("made");
        fs_err::create_dir_all(self.path("served")).expect("made");
        git(&work, &["init", "--quiet"]);
        self.write("work/a", "a\n");
        self.write("work/d/b", "b\n");
        self.write("work/run", "#!/bin/sh\n");
        self.write("work/Dockerfile", "FROM scratch\nCOPY . /c/\n");
        self.write("work/d/Dockerfile", "FROM scratch\nCOPY */b* b* /only/\n");
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs_err::set_permissions(work.join("run"), mode).expect("set");
        fs_err::os::unix::fs::symlink("a", work.join("l")).expect("linked");
        fs_err::os::unix::fs::symlink("/etc", work.join("out")).expect("linked");
        git(&work, &["add", "."]);
        git(&work, &["commit", "--quiet", "-m", "one"]);
        git(&work, &["tag", "-a", "v1", "-m", "first"]);
        let first = git(&work, &["rev-parse", "HEAD"]);
        git(&work, &["checkout", "--quiet", "-b", "feature/x"]);
        self.write("work/a", "changed\n");
        git(&work, &["commit", "--quiet", "-a", "-m", "two"]);
        let second = git(&work, &["rev-parse", "HEAD"]);
        git(&work, &["checkout", "--quiet", "main"]);
        self.publish();
        (first, second)
    }

    fn publish(&self) {
        let served = self.path("served/r.git");
        let _ = fs_err::remove_dir_all(&served);
        git(&self.path("served"), &["clone", "--quiet", "--bare", "../work", "r.git"]);
        git(&served, &["update-server-info"]);
    }
}

/// The lines of `image files` without their times.
fn listing(bench: &Bench) -> String {
    let output = bench.run("store", &["image", "files", "made"]);
    let lines = text(&output.stdout);
    let short = lines.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let mode = words.next()?;
        let owner = words.next()?;
        Some(format!("{mode} {owner} {}", line.split_once(':')?.1.get(3..)?))
    });
    short.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_commit_of_a_repository_is_added() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    let (first, second) = bench.repository();
    let daemon = bench.git_daemon();
    let remote = format!("git://127.0.0.1:{}/r.git", daemon.port);
    bench.makes(&format!("FROM scratch\nADD {remote} /c/\n"), &[]);
    assert_eq!(
        listing(&bench),
        "drwxr-xr-x 0/0 /\n\
         drwxr-xr-x 0/0 /c\n\
         -rw-r--r-- 0/0 /c/Dockerfile\n\
         -rw-r--r-- 0/0 /c/a\n\
         drwxr-xr-x 0/0 /c/d\n\
         -rw-r--r-- 0/0 /c/d/Dockerfile\n\
         -rw-r--r-- 0/0 /c/d/b\n\
         lrwxrwxrwx 0/0 /c/l -> a\n\
         lrwxrwxrwx 0/0 /c/out -> /etc\n\
         -rwxr-xr-x 0/0 /c/run"
    );
    let id = bench.id();
    bench.makes(&format!("FROM scratch\nADD {remote} /c/\n"), &[]);
    assert_eq!(bench.id(), id);
    for (what, content) in [
        ("#main", "a\n"),
        ("#v1", "a\n"),
        ("#refs/heads/feature/x", "changed\n"),
        ("#feature/x", "changed\n"),
        ("?branch=feature/x", "changed\n"),
        ("?tag=v1", "a\n"),
        (&format!("#{first}"), "a\n"),
        (&format!("#{second}"), "changed\n"),
        (&format!("?checksum={second}&fetch-by-commit=true"), "changed\n"),
    ] {
        bench.makes(&format!("FROM scratch\nADD {remote}{what} /c/\n"), &["--no-cache"]);
        bench.holds("/c/a", content);
    }
    bench.makes(&format!("FROM scratch\nADD --chown=3:4 --checksum={first} {remote}#v1:d /c/\n"), &[]);
    assert_eq!(
        listing(&bench),
        "drwxr-xr-x 0/0 /\ndrwxr-xr-x 3/4 /c\n-rw-r--r-- 3/4 /c/Dockerfile\n-rw-r--r-- 3/4 /c/b"
    );
    bench.makes(&format!("FROM scratch\nADD --keep-git-dir=true {remote}#main /c/\n"), &[]);
    bench.holds("/c/.git/HEAD", &format!("{first}\n"));

    // A branch that moves is seen; a commit does not, and nobody is asked.
    bench.write("work/a", "moved\n");
    git(&bench.path("work"), &["commit", "--quiet", "-a", "-m", "three"]);
    bench.publish();
    bench.makes(&format!("FROM scratch\nADD {remote} /c/\n"), &[]);
    bench.holds("/c/a", "moved\n");
    bench.makes(&format!("FROM scratch\nADD {remote}#{first} /c/\n"), &[]);
    drop(daemon);
    bench.makes(&format!("FROM scratch\nADD {remote}#{first} /c/\n"), &[]);
    bench.holds("/c/a", "a\n");
    bench.fails(&format!("FROM scratch\nADD {remote} /c/\n"), &["fatal:", ">>> ADD"]);
}

#[test]
fn a_server_of_files_will_do() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    let (first, _) = bench.repository();
    let web = Web::start();
    serve_files(&web, &bench.path("served"), "", &Page::default());
    let remote = web.url("/r.git");
    bench.makes(&format!("FROM scratch\nADD {remote}#feature/x /c/\n"), &[]);
    bench.holds("/c/a", "changed\n");
    bench.makes(&format!("FROM scratch\nADD {remote} /c/\n"), &[]);
    bench.holds("/c/a", "a\n");
    bench.makes(&format!("FROM scratch\nADD {remote}#{first}:d /c/\n"), &[]);
    bench.holds("/c/b", "b\n");
    // It is a context, too.
    let build = |words: &[&str]| {
        let output = bench.run("store", &[&["build", "-t", "made"][..], words].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(bench.leases(), 0);
    };
    build(&[&format!("{remote}#feature/x")]);
    bench.holds("/c/a", "changed\n");
    build(&[&format!("{remote}#:d")]);
    bench.holds("/only/b", "b\n");
    build(&["-f", "d/Dockerfile", &format!("{remote}?ref=v1&subdir=/")]);
    bench.holds("/only/b", "b\n");
    let told = text(&bench.run("store", &["build", &web.url("/none.git")]).stderr);
    assert!(
        told.contains("cannot fetch the build context: http://127.0.0.1") && told.contains("not found"),
        "{told}"
    );
}

fn serve_files(web: &Web, directory: &Path, path: &str, like: &Page) {
    for entry in fs_err::read_dir(directory).expect("read").flatten() {
        let path = format!("{path}/{}", entry.file_name().to_str().expect("a plain name"));
        if entry.path().is_dir() {
            serve_files(web, &entry.path(), &path, like);
        } else {
            web.put(&path, Page { body: fs_err::read(entry.path()).expect("read"), ..like.clone() });
        }
    }
}

#[test]
fn credentials_stay_out_of_what_is_kept() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    bench.repository();
    git(&bench.path("served"), &["clone", "--quiet", "--bare", "../work", "sub.git"]);
    git(&bench.path("served/sub.git"), &["update-server-info"]);
    let work = bench.path("work");
    git(&work, &["submodule", "--quiet", "add", &bench.path("served/sub.git").display().to_string(), "s"]);
    git(&work, &["config", "--file", ".gitmodules", "submodule.s.url", "../sub.git"]);
    git(&work, &["commit", "--quiet", "-a", "-m", "modules"]);
    bench.publish();
    let web = Web::start();
    serve_files(&web, &bench.path("served"), "", &Page { locked: true, ..Page::default() });
    let remote = web.url("/r.git");
    bench.fails(&format!("FROM scratch\nADD {remote} /c/\n"), &["could not read Username"]);
    let remote = remote.replace("http://", "http://user:s3cret@");
    bench.makes(&format!("FROM scratch\nADD --keep-git-dir {remote} /c/\n"), &[]);
    bench.holds("/c/s/a", "a\n");
    let out = bench.path("out");
    let unpacked = bench.run("store", &["image", "unpack", "made", &out.display().to_string()]);
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    let found = Command::new("grep").args(["-rl", "s3cret"]).arg(&out).output().expect("grep");
    assert_eq!(text(&found.stdout), "");
    assert!(fs_err::read_to_string(out.join("c/.git/config")).expect("read").contains("127.0.0.1"));
    bench.fails(
        &format!("FROM scratch\nADD {} /c/\n", remote.replace("r.git", "none.git")),
        &["http://127.0.0.1"],
    );
}

#[test]
fn a_repository_with_its_git_directory_is_the_same_each_time() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    bench.repository();
    let daemon = bench.git_daemon();
    let add = format!("FROM scratch\nADD --keep-git-dir git://127.0.0.1:{}/r.git /c/\n", daemon.port);
    let layers = || {
        bench.makes(&add, &["--no-cache"]);
        text(&bench.run("store", &["inspect", "-f", "{{.RootFS.Layers}}", "made"]).stdout)
    };
    let first = layers();
    assert!(first.contains("sha256:"), "{first}");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(layers(), first);
    let out = bench.path("out");
    let unpacked = bench.run("store", &["image", "unpack", "made", &out.display().to_string()]);
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    let words = ["-c", "safe.directory=*", "-c", "core.fileMode=false", "status", "--porcelain"];
    assert_eq!(git(&out.join("c"), &words), "");
}

#[test]
fn a_repository_that_does_not_answer_can_be_interrupted() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let remote = format!("git://{}/r.git", listener.local_addr().expect("an address"));
    bench.write("Dockerfile", &format!("FROM scratch\nADD {remote} /c/\n"));
    let mut build = bench.start("build");
    let (_connection, _) = listener.accept().expect("git asks");
    let start = Instant::now();
    kill_process(build.process(), Signal::INT).expect("interrupted");
    let status = build.wait();
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(130), "{}", bench.read("build.err"));
    bench.assert_nothing_goes_on(&remote);
    assert_eq!(bench.leases(), 0);
    // Nor does git outlive a kiln that nobody could tell anything.
    let mut build = bench.start("build");
    let (_connection, _) = listener.accept().expect("git asks");
    kill_process(build.process(), Signal::KILL).expect("killed");
    assert_eq!(build.wait().code(), None);
    bench.assert_nothing_goes_on(&remote);
    // A context is read before anybody listens for interrupts: a terminal tells the whole group. SIGTERM, since a test run
    // in the background may ignore SIGINT, and what it starts with it.
    for scheme in ["git", "http"] {
        let remote = format!("{scheme}://{}/r.git", listener.local_addr().expect("an address"));
        let mut build = bench.start_on("context", &remote);
        let (_connection, _) = listener.accept().expect("git asks");
        kill_process_group(build.process(), Signal::TERM).expect("interrupted");
        assert!(!build.wait().success());
        bench.assert_nothing_goes_on(&remote);
    }
}

/// The same proxies as for downloads, in capital letters or in small ones.
#[test]
fn repositories_come_through_proxies() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    bench.repository();
    // Whoever is asked through a proxy is named in the request line.
    let proxy = Web::start();
    let host = "http://nowhere.example";
    serve_files(&proxy, &bench.path("served"), host, &Page::default());
    bench.write("Dockerfile", &format!("FROM scratch\nADD {host}/r.git /c/\n"));
    let build = |variables: &[(&str, &str)]| {
        let mut kiln =
            bench.kiln("store", &["build", "--no-cache", "-t", "made", "-f", "Dockerfile", "context"]);
        for name in ["http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"] {
            kiln.env_remove(name);
        }
        let output = kiln.envs(variables.iter().copied()).output().expect("kiln");
        (output.status.success(), text(&output.stderr))
    };
    let (address, nobody) = (proxy.url(""), "http://127.0.0.1:1");
    for name in ["HTTP_PROXY", "http_proxy"] {
        let (done, told) = build(&[(name, &address)]);
        assert!(done, "{name}: {told}");
        bench.holds("/c/a", "a\n");
    }
    let (done, told) = build(&[("HTTP_PROXY", &address), ("http_proxy", nobody), ("ALL_PROXY", nobody)]);
    assert!(done, "{told}");
    proxy.log();
    for direct in [("NO_PROXY", "nowhere.example:80"), ("no_proxy", ".example"), ("NO_PROXY", "*")] {
        let (done, told) = build(&[("HTTP_PROXY", &address), direct]);
        assert!(!done && told.contains("Could not resolve host"), "{direct:?}: {told}");
        assert_eq!(proxy.log(), Vec::<String>::new(), "{direct:?}");
    }
    // This machine is asked directly.
    let web = Web::start();
    serve_files(&web, &bench.path("served"), "", &Page::default());
    bench.write("Dockerfile", &format!("FROM scratch\nADD {} /c/\n", web.url("/r.git")));
    let (done, told) = build(&[("HTTP_PROXY", nobody)]);
    assert!(done, "{told}");
}

#[test]
fn submodules_come_along() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    bench.repository();
    let sub = bench.path("sub");
    fs_err::create_dir_all(&sub).expect("made");
    git(&sub, &["init", "--quiet"]);
    bench.write("sub/inner", "inner\n");
    git(&sub, &["add", "."]);
    git(&sub, &["commit", "--quiet", "-m", "sub"]);
    git(&bench.path("served"), &["clone", "--quiet", "--bare", "../sub", "sub.git"]);
    let work = bench.path("work");
    git(&work, &["submodule", "--quiet", "add", &sub.display().to_string(), "s"]);
    let modules = |url: &str| {
        git(&work, &["config", "--file", ".gitmodules", "submodule.s.url", url]);
        git(&work, &["commit", "--quiet", "-a", "-m", "modules"]);
        bench.publish();
    };
    modules("../sub.git");
    let daemon = bench.git_daemon();
    let remote = format!("git://127.0.0.1:{}/r.git", daemon.port);
    bench.makes(&format!("FROM scratch\nADD {remote} /c/\n"), &[]);
    bench.holds("/c/s/inner", "inner\n");
    assert!(!listing(&bench).contains("/.git\n"), "{}", listing(&bench));
    // With its git directory it is the same each time, and a whole repository.
    let layers = || {
        bench.makes(&format!("FROM scratch\nADD --keep-git-dir {remote} /c/\n"), &["--no-cache"]);
        text(&bench.run("store", &["inspect", "-f", "{{.RootFS.Layers}}", "made"]).stdout)
    };
    let first = layers();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(layers(), first);
    let out = bench.path("out");
    let unpacked = bench.run("store", &["image", "unpack", "made", &out.display().to_string()]);
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    for (directory, expect) in [("c", ""), ("c/s", "")] {
        let words = ["-c", "safe.directory=*", "-c", "core.fileMode=false", "status", "--porcelain"];
        assert_eq!(git(&out.join(directory), &words), expect, "{directory}");
    }
    let module = git(&out.join("c/s"), &["-c", "safe.directory=*", "rev-parse", "--git-dir", "HEAD"]);
    assert!(module.contains("modules/s"), "{module}");
    bench.makes(&format!("FROM scratch\nADD {remote}?submodules=false /c/\n"), &[]);
    assert!(!listing(&bench).contains("inner"), "{}", listing(&bench));

    // What leads to this machine is not followed.
    let canary = bench.path("canary");
    for url in [
        format!("file://{}", sub.display()),
        sub.display().to_string(),
        format!("ext::sh -c touch% {}", canary.display()),
        "ssh://-oProxyCommand=touch/x".to_owned(),
    ] {
        modules(&url);
        bench.fails(&format!("FROM scratch\nADD {remote} /c/\n"), &["git://127.0.0.1", ">>> ADD"]);
        assert!(!canary.exists(), "{url}");
    }
}

#[test]
fn hostile_addresses_and_repositories_are_refused() {
    let Some(bench) = Bench::new() else { return };
    if !has_git() {
        return;
    }
    bench.repository();
    let daemon = bench.git_daemon();
    let remote = format!("git://127.0.0.1:{}/r.git", daemon.port);
    let canary = bench.path("canary");
    let touch = format!("--upload-pack=touch${{IFS}}{}", canary.display());
    for (what, says) in [
        (format!("#{touch}"), "is no branch, tag or commit"),
        (format!("?ref={touch}"), "is no branch, tag or commit"),
        ("#nosuch".to_owned(), "does not contain ref nosuch"),
        (format!("#{}", "0".repeat(40)), "git://127.0.0.1"),
        ("#:out".to_owned(), "is no directory of it"),
        ("#:out/ssh".to_owned(), "is no directory of it"),
        ("#:l".to_owned(), "is no directory of it"),
        ("#:nosuch".to_owned(), "is no directory of it"),
        ("?checksum=0123456".to_owned(), "expected checksum to match 0123456"),
    ] {
        bench.write("what", &what);
        // A dollar sign is a variable's in a Dockerfile.
        let escaped = what.replace('$', "\\$");
        bench.fails(&format!("FROM scratch\nADD {remote}{escaped} /c/\n"), &[says]);
        assert!(!canary.exists(), "{what}");
    }
    forged_lists_lead_nowhere(&bench);
    bench.fails("FROM scratch\nADD git@example.com:x/y.git /c/\n", &["only https, http and git are spoken"]);
    bench.fails("FROM scratch\nCOPY https://h/r.git /c/\n", &["source can't be a git ref for COPY"]);
    // Without the program, one says so.
    bench.write("Dockerfile", &format!("FROM scratch\nADD {remote} /c/\n"));
    let mut kiln = bench.kiln("store", &["build", "-f", "Dockerfile", "context"]);
    let output = kiln.env("PATH", bench.path("nothing")).output().expect("kiln");
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("the git program, which is not on PATH"), "{told}");
}

/// A checksum holds against the server's list of references, too.
fn forged_lists_lead_nowhere(bench: &Bench) {
    let work = bench.path("work");
    let [main, other, tag] = ["main", "feature/x", "v1"].map(|name| git(&work, &["rev-parse", name]));
    let web = Web::start();
    serve_files(&web, &bench.path("served"), "", &Page::default());
    let remote = web.url("/r.git");
    let list = |lines: &[(&str, &str)]| {
        let lines: String = lines.iter().map(|(hash, name)| format!("{hash}\t{name}\n")).collect();
        web.put("/r.git/info/refs", Page::new(lines));
    };
    let add =
        |what: &str, checksum: &str| format!("FROM scratch\nADD --checksum={checksum} {remote}#{what} /c/\n");
    // A branch leads to what is listed for it.
    list(&[(&main, "refs/heads/main"), (&other, "refs/heads/main^{}")]);
    bench.makes(&add("main", &main), &[]);
    bench.holds("/c/a", "a\n");
    // A tag leads to what it says itself, whether or not the other commit was made before.
    list(&[(&other, "refs/heads/feature/x"), (&tag, "refs/tags/v1"), (&other, "refs/tags/v1^{}")]);
    for more in [&other, &tag] {
        let made = add("v1", &other);
        bench.fails(&add("v1", &tag), &["does not lead to", more]);
        bench.makes(&made, &[]);
    }
    list(&[(&main, "refs/heads/main"), (&tag, "refs/tags/v1"), (&main, "refs/tags/v1^{}")]);
    bench.makes(&add("v1", &tag), &[]);
    bench.holds("/c/a", "a\n");
    bench.makes(&add("v1", &main), &[]);
    bench.holds("/c/a", "a\n");
}
