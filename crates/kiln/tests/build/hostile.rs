//! Dockerfiles, contexts and base images that mean harm to the machine that builds or runs them: it stays as it was, and
//! what uses the same feature harmlessly works. More seconds of racing by hand:
//!
//! ```text
//! KILN_RACE_SECONDS=60 cargo test --release -p kiln --test build hostile -- --nocapture
//! ```

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bench::{Bench, text};

/// What no step may see.
const SECRET: &str = "the-canary-sings-4d1f";

/// A directory of the machine that nothing may read or change.
struct Canary(PathBuf);

impl Canary {
    fn new(bench: &Bench) -> Self {
        let path = bench.path("canary");
        fs_err::create_dir_all(path.join("b")).expect("made");
        fs_err::write(path.join("secret"), SECRET).expect("written");
        Self(path)
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.0.display()
    }

    #[track_caller]
    fn unharmed(&self) {
        let mut names: Vec<_> =
            fs_err::read_dir(&self.0).expect("read").map(|entry| entry.expect("read").file_name()).collect();
        names.sort();
        assert_eq!(names, ["b", "secret"]);
        assert_eq!(fs_err::read_dir(self.0.join("b")).expect("read").count(), 0);
        assert_eq!(fs_err::read_to_string(self.0.join("secret")).expect("read"), SECRET);
    }
}

impl Bench {
    fn build(&self, dockerfile: &str, options: &[&str]) -> Output {
        self.write("Dockerfile", dockerfile);
        let mut kiln = self.kiln("store", &["build", "--progress=plain", "-f", "Dockerfile"]);
        kiln.args(options).arg("context").output().expect("kiln")
    }

    /// Builds, and gives what was said.
    #[track_caller]
    fn built(&self, dockerfile: &str, options: &[&str]) -> String {
        let output = self.build(dockerfile, options);
        let told = text(&output.stderr);
        assert!(output.status.success(), "{told}");
        told
    }

    /// Does not build, for a reason that is given, and without losing its head.
    #[track_caller]
    fn not_built(&self, dockerfile: &str, reason: &str) {
        let output = self.build(dockerfile, &[]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(reason) && !told.contains("panicked"), "expected {reason:?} in\n{told}");
    }

    /// Whether these bytes are in any file below a directory here.
    fn file_with(&self, directory: &str, bytes: &[u8]) -> Option<PathBuf> {
        fn search(path: &Path, bytes: &[u8]) -> Option<PathBuf> {
            let metadata = fs_err::symlink_metadata(path).ok()?;
            if metadata.is_dir() {
                return fs_err::read_dir(path).ok()?.flatten().find_map(|entry| search(&entry.path(), bytes));
            }
            let content = if metadata.is_symlink() {
                fs_err::read_link(path).ok()?.into_os_string().into_encoded_bytes()
            } else if metadata.is_file() {
                fs_err::read(path).ok()?
            } else {
                return None;
            };
            let found = content.windows(bytes.len()).any(|window| window == bytes);
            found.then(|| path.to_owned())
        }
        search(&self.path(directory), bytes)
    }
}

/// How long races last.
#[expect(clippy::disallowed_methods, reason = "how long, as whoever runs the test wants it")]
fn race() -> Duration {
    let seconds = std::env::var("KILN_RACE_SECONDS").ok().map(|value| value.parse().expect("a number"));
    seconds.map_or(Duration::from_millis(1500), Duration::from_secs)
}

/// CVE-2019-14271 and CVE-2026-41567: programs and libraries of an image that a careless engine would execute itself.
#[test]
fn programs_of_an_image_stay_in_its_containers() {
    let Some(bench) = Bench::new() else { return };
    let marker = bench.path("marker");
    let trojan = format!("#!/bin/sh\necho ran >> /ran; echo ran >> {}\n", marker.display());
    fs_err::create_dir_all(bench.path("context/t/bin")).expect("made");
    for name in ["xz", "unxz", "unpigz", "pigz", "gzip", "tar", "git", "zstd", "bzip2", "getent", "newuidmap"]
    {
        let path = bench.path("context/t/bin").join(name);
        fs_err::write(&path, &trojan).expect("written");
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("its mode");
    }
    for name in ["libnss_files.so.2", "libnss_dns.so.2", "libc.so.6"] {
        fs_err::create_dir_all(bench.path("context/t/lib/x86_64-linux-gnu")).expect("made");
        fs_err::write(bench.path("context/t/lib/x86_64-linux-gnu").join(name), &trojan).expect("written");
        fs_err::write(bench.path("context/t/lib").join(name), &trojan).expect("written");
    }
    fs_err::write(bench.path("context/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:7:8::/:/bin/sh\n")
        .expect("written");
    fs_err::write(bench.path("context/group"), "root:x:0:\nbob:x:9:\n").expect("written");
    fs_err::write(bench.path("context/file"), "text\n").expect("written");
    for (suffix, option) in [("xz", "-J"), ("gz", "-z"), ("bz2", "-j")] {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(bench.path("context")).arg(option).arg("-cf");
        let status =
            tar.arg(bench.path(&format!("context/a.tar.{suffix}"))).arg("file").status().expect("tar");
        assert!(status.success(), "{suffix}");
    }
    bench.built(
        "FROM bb AS t\nCOPY t/bin /bin/\nCOPY t/bin /usr/bin/\nCOPY t/lib /lib/\nCOPY t/lib /usr/lib/\n\
         COPY passwd group /etc/\nADD a.tar.xz /x/\nADD a.tar.gz /g/\nADD a.tar.bz2 /b/\n\
         COPY --chown=ann:bob file /owned\nUSER ann\nWORKDIR /home/ann\nRUN cat /x/file > /tmp-file || true\n",
        &["-t", "trojans"],
    );
    let output = bench
        .run("store", &["run", "-u", "ann:bob", "trojans", "stat", "-c", "%u:%g %n", "/owned", "/home/ann"]);
    assert_eq!(text(&output.stdout), "7:9 /owned\n7:8 /home/ann\n", "{output:?}");
    for words in [
        &["save", "-o", "out.tar", "trojans"][..],
        &["image", "unpack", "trojans", "tree"],
        &["history", "trojans"],
    ] {
        let output = bench.run("store", words);
        assert!(output.status.success(), "{output:?}");
    }
    for unpacked in ["tree/x/file", "tree/g/file", "tree/b/file"] {
        assert_eq!(bench.read(unpacked), "text\n", "{unpacked}");
    }
    assert!(!marker.exists() && !bench.path("tree/ran").exists());
    // In a container they run when they are asked for.
    assert_eq!(
        text(&bench.run("store", &["run", "-u", "0", "trojans", "sh", "-c", "git; cat /ran"]).stdout),
        "ran\n"
    );
    assert!(!marker.exists());
}

/// CVE-2024-23651, CVE-2024-11218: one step swaps the source of another one's mount for a link.
#[test]
fn sources_in_a_shared_cache_that_move() {
    let Some(bench) = Bench::new() else { return };
    let canary = Canary::new(&bench);
    bench.built(
        "FROM bb\nRUN --mount=type=cache,id=shared,target=/c mkdir /c/d && echo harmless > /c/d/secret\n",
        &[],
    );
    let directory = bench.cache().expect("a cache mount");
    let victim = |number: usize| {
        format!(
            "FROM bb\nRUN --mount=type=cache,id=shared,source=d,target=/m : {number}; cat /m/secret > /seen; \
             echo evil > /m/evil; rm /m/evil; true\n"
        )
    };
    bench.built(&victim(0), &["-t", "seen"]);
    let seen = || text(&bench.run("store", &["run", "seen", "cat", "/seen"]).stdout);
    assert_eq!(seen(), "harmless\n");
    fs_err::os::unix::fs::symlink(&canary.0, directory.join("l")).expect("linked");
    let over = AtomicBool::new(false);
    let end = Instant::now() + race();
    let (mut built, mut number) = (0, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let at = rustix::fs::open(&directory, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
                .expect("opened");
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&at, "d", &at, "l", rustix::fs::RenameFlags::EXCHANGE)
                    .expect("swapped");
                std::thread::yield_now();
            }
        });
        while Instant::now() < end || number < 4 {
            let output = bench.build(&victim(number), &["-t", "seen"]);
            let told = text(&output.stderr);
            assert!(!told.contains("panicked") && !told.contains(SECRET), "{told}");
            if output.status.success() {
                built += 1;
                assert!(!seen().contains(SECRET));
            }
            number += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    canary.unharmed();
    assert!(built > 0, "none of {number} was built");
}

/// CVE-2024-1753, CVE-2024-9675, CVE-2024-9407, CVE-2025-47290.
#[test]
fn mounts_that_lead_out() {
    let Some(bench) = Bench::new() else { return };
    let canary = Canary::new(&bench);
    let here = canary.shown();
    bench.built(
        &format!(
            "FROM bb\nRUN mkdir -p /real && echo inside > /real/file && ln -s {here} /link && ln -s /real /good \
             && ln -s ../../../../../..{here}/secret /up\n"
        ),
        &["-t", "evil"],
    );
    for source in ["/link", "link/secret", "/up", "/../../../../canary"] {
        bench.not_built(
            &format!("FROM bb\nRUN --mount=type=bind,from=evil,source={source},target=/m cat /m /m/*\n"),
            "",
        );
        bench.not_built(&format!("FROM bb\nCOPY --from=evil {source} /m\n"), "");
    }
    bench.built("FROM bb\nRUN --mount=type=bind,from=evil,source=/good,target=/m cat /m/file\nCOPY --from=evil /good/file /m\n", &[]);
    bench.built(
        "FROM bb\nRUN --mount=type=cache,id=../../etc,target=/c echo x > /c/x\n\
         RUN --mount=type=cache,id=/etc,target=/c echo y > /c/y\n",
        &[],
    );
    let caches = fs_err::read_dir(bench.path("store/cache")).expect("read").flatten();
    assert_eq!(caches.filter(|entry| entry.path().is_dir()).count(), 2);
    assert!(!bench.path("etc").exists() && !bench.path("store/etc").exists());
    for mount in ["type=bind,bind-propagation=shared,target=/m", "type=bind,propagation=rshared,target=/m"] {
        bench.not_built(&format!("FROM bb\nRUN --mount={mount} true\n"), "propagation");
    }
    // CVE-2024-23652: the parent of a mount's place becomes a link to a directory with an empty one of that name.
    bench.built(
        &format!("FROM bb\nRUN --mount=type=tmpfs,target=/a/b mv /a /moved && ln -s {here} /a\n"),
        &["-t", "moved"],
    );
    let output = bench.run("store", &["image", "unpack", "moved", "moved"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs_err::read_link(bench.path("moved/a")).expect("a link"), canary.0);
    canary.unharmed();
}

/// CVE-2024-21626, CVE-2026-55686: working directories that are links, or descriptors that a careless caller left open.
#[test]
fn working_directories_that_lead_out() {
    let Some(bench) = Bench::new() else { return };
    let canary = Canary::new(&bench);
    let here = canary.shown();
    bench.built(
        &format!("FROM bb\nRUN ln -s {here} /link\nWORKDIR /link/made\nRUN touch here && pwd > /seen\n"),
        &["-t", "linked"],
    );
    let output =
        bench.run("store", &["run", "-w", "/link/other", "linked", "sh", "-c", "touch here; cat /seen"]);
    assert_eq!(text(&output.stdout), format!("{here}/made\n"), "{output:?}");
    let output = bench.run("store", &["run", "linked", "sh", "-c", "pwd; find ."]);
    assert_eq!(text(&output.stdout), format!("{here}/made\n.\n./here\n"), "{output:?}");
    canary.unharmed();
    // The machine has a directory that the base image has not.
    assert!(Path::new("/usr").is_dir());
    let with_open = |words: String| {
        let script = format!(
            "exec 9<{here} 23<{here} 39</; exec {} --root {} {words}",
            env!("CARGO_BIN_EXE_kiln"),
            bench.path("store").display()
        );
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(script).current_dir(bench.path("")).stdin(Stdio::null()).output().expect("bash")
    };
    let output = with_open("run bb sh -c 'exec find /proc/self/fd -type l'".to_owned());
    let fds = text(&output.stdout).lines().count();
    // Three, and the one by which find reads.
    assert!((3..=4).contains(&fds), "{output:?}");
    let mut targets = String::from("FROM bb\n");
    for number in 3..=40 {
        let look = "pwd; find . -maxdepth 1; cat secret";
        let output = with_open(format!("run -w /proc/self/fd/{number} bb sh -c '{look}'"));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains(SECRET) && !said.contains("./usr"), "{number}: {said}");
        targets.push_str(&format!("WORKDIR /proc/self/fd/{number}\nRUN {look}; true\n"));
    }
    bench.write("Dockerfile", &targets);
    let output = with_open("build --progress=plain -f Dockerfile context".to_owned());
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(!said.contains(SECRET) && !said.contains("./usr"), "{said}");
    canary.unharmed();
}

/// CVE-2024-23653: more than a Dockerfile may have by itself.
#[test]
fn privileges_need_an_allowance() {
    let Some(bench) = Bench::new() else { return };
    bench.built("FROM bb\nONBUILD RUN --security=insecure true\n", &["-t", "insecure"]);
    bench.built("FROM bb\nONBUILD RUN --network=host true\n", &["-t", "network"]);
    for (dockerfile, reason) in [
        ("FROM bb\nRUN --security=insecure true\n", "--allow security.insecure"),
        ("FROM bb\nRUN --network=host true\n", "--allow network.host"),
        (
            "FROM bb AS s\nRUN --security=insecure touch /x\nFROM bb\nCOPY --from=s /x /x\n",
            "--allow security.insecure",
        ),
        ("FROM insecure\n", "--allow security.insecure"),
        ("FROM network\n", "--allow network.host"),
        ("# syntax=docker/dockerfile:1-labs\nFROM bb\nRUN --device=vendor/class=x true\n", "--device"),
    ] {
        bench.not_built(dockerfile, reason);
    }
    bench.built("FROM insecure\n", &["--allow", "security.insecure"]);
    bench.built("FROM network\n", &["--allow", "network.host"]);
    // A stage that nothing needs is not run.
    bench.built("FROM bb AS unused\nRUN --security=insecure true\nFROM bb\n", &[]);
    for trigger in ["ONBUILD ONBUILD RUN true", "ONBUILD FROM bb", "ONBUILD MAINTAINER x"] {
        bench.not_built(&format!("FROM bb\n{trigger}\n"), "ONBUILD");
    }
    let proc = "cat /proc/self/status | while read a b; do case $a in Cap*|Groups:) echo $a $b;; esac; done";
    let held = "Groups: 0\nCapInh: 0000000000000000\nCapPrm: 00000000a80425fb\nCapEff: 00000000a80425fb\n\
                CapBnd: 00000000a80425fb\nCapAmb: 0000000000000000\n";
    bench.built(&format!("FROM bb\nRUN {proc} > /seen\n"), &["-t", "caps"]);
    assert_eq!(text(&bench.run("store", &["run", "-u", "0", "caps", "cat", "/seen"]).stdout), held);
    assert_eq!(text(&bench.run("store", &["run", "bb", "sh", "-c", proc]).stdout), held);
    let other = text(&bench.run("store", &["run", "-u", "5:6", "bb", "sh", "-c", proc]).stdout);
    assert_eq!(other.lines().next(), Some("Groups: 6"), "{other}");
    assert!(
        other.contains("CapEff: 0000000000000000") && other.contains("CapInh: 0000000000000000"),
        "{other}"
    );
}

/// A node that a step makes is one in its layer; which of them can be opened does not depend on who made them.
#[test]
fn device_nodes_of_steps_and_images() {
    let Some(bench) = Bench::new() else { return };
    if !bench.opens_devices() {
        return;
    }
    let try_both = "echo x > /d/n && echo opened; (: < /d/k) 2>&1";
    let told = bench.built(
        &format!(
            "FROM bb AS made\n\
             RUN mkdir /d && busybox mknod /d/n c 1 3 && busybox mknod /d/k c 1 11; {try_both}; true\n\
             FROM made\nRUN {try_both}; true\n\
             FROM bb AS copied\nCOPY --from=made /d /d\nRUN {try_both}; true\n\
             FROM bb\nCOPY --from=copied /d /d\n"
        ),
        &["-t", "nodes"],
    );
    assert_eq!(told.matches(" opened\n").count(), 2, "{told}");
    assert_eq!(told.matches("/d/k: Operation not permitted\n").count(), 2, "{told}");
    let output = bench.run("store", &["run", "--rm", "nodes", "sh", "-c", &format!("{try_both}; true")]);
    let said = text(&output.stdout);
    assert!(said.starts_with("opened\n") && said.ends_with("/d/k: Operation not permitted\n"), "{said}");
}

/// CVE-2024-24557: the image of a cached build has the settings of this Dockerfile and no other.
#[test]
fn each_setting_counts() {
    let Some(bench) = Bench::new() else { return };
    let image = |setting: &str| {
        bench.built(
            &format!("FROM bb\n{setting}\nRUN true\n"),
            &["--iidfile=id", "--build-arg=SOURCE_DATE_EPOCH=1"],
        );
        let id = bench.read("id");
        let shown = text(&bench.run("store", &["inspect", &id]).stdout);
        (id, shown)
    };
    for (setting, values) in [
        ("HEALTHCHECK CMD", ["first-value", "other-value"]),
        ("HEALTHCHECK --retries=7 CMD", ["first-value", "other-value"]),
        ("ONBUILD RUN", ["first-value", "other-value"]),
        ("ENV A=", ["first-value", "other-value"]),
        ("LABEL a=", ["first-value", "other-value"]),
        ("EXPOSE", ["7001", "7002"]),
        ("VOLUME", ["/first-value", "/other-value"]),
        ("USER", ["7003", "7004"]),
        ("WORKDIR", ["/first-value", "/other-value"]),
        ("CMD", ["first-value", "other-value"]),
        ("ENTRYPOINT", ["first-value", "other-value"]),
        ("STOPSIGNAL", ["SIGUSR1", "SIGUSR2"]),
        ("SHELL", ["[\"/bin/sh\", \"-c\"]", "[\"/bin/sh\", \"-ec\"]"]),
    ] {
        let line = |value: &str| {
            if setting.ends_with('=') { format!("{setting}{value}") } else { format!("{setting} {value}") }
        };
        let [first, other, again] = [values[0], values[1], values[0]].map(|value| image(&line(value)));
        assert_eq!(first.0, again.0, "{setting}");
        assert_ne!(first.0, other.0, "{setting}");
        if !setting.starts_with("SHELL") {
            assert!(other.1.contains(values[1]) && !other.1.contains(values[0]), "{setting}: {}", other.1);
        }
    }
}

/// CVE-2021-3602, CVE-2025-4953: what the machine's environment holds stays there.
#[test]
fn secrets_of_the_environment_stay_out() {
    let Some(bench) = Bench::new() else { return };
    let (plain, proxy) = ("plain-secret-77e1", "proxy-secret-93b2");
    bench.write(
        "Dockerfile",
        "FROM bb\nARG GIVEN\nRUN env | sort > /seen; cat /proc/*/environ > /environs 2>/dev/null; true\n\
         RUN [ -z \"$HTTPS_PROXY\" ] || echo proxied > /proxied\n",
    );
    let words = [
        "build",
        "--progress=plain",
        "--lend=proxy",
        "--lend=pip",
        "-t",
        "seen",
        "-f",
        "Dockerfile",
        "context",
    ];
    let output = bench
        .kiln("store", &words)
        .env("PLAIN_TOKEN", plain)
        .env("HTTPS_PROXY", format!("http://user:{proxy}@127.0.0.1:9"))
        .args(["--build-arg", "GIVEN"])
        .output()
        .expect("kiln");
    let told = text(&output.stderr);
    assert!(output.status.success() && !told.contains(plain) && !told.contains(proxy), "{told}");
    // The step wrote down what it saw: that is its doing, and shows that the variable was lent at all.
    let output = bench.run("store", &["run", "seen", "cat", "/seen", "/proxied"]);
    let seen = text(&output.stdout);
    assert!(!seen.contains(plain) && seen.contains(proxy) && seen.ends_with("proxied\n"), "{seen}");
    assert_eq!(bench.file_with("store", plain.as_bytes()), None);
    // A step that keeps nothing of it.
    bench.write("Dockerfile", "FROM bb\nRUN [ -n \"$HTTPS_PROXY\" ] && echo used > /used\n");
    let output = bench.kiln("clean", &["import", "image.tar", "bb"]).output().expect("kiln");
    assert!(output.status.success(), "{output:?}");
    let words = ["build", "--lend=proxy", "-t", "used", "-f", "Dockerfile", "context"];
    let output = bench.kiln("clean", &words).env("HTTPS_PROXY", proxy).output().expect("kiln");
    assert!(output.status.success(), "{output:?}");
    let words = ["build", "--build-arg", "HTTPS_PROXY", "-t", "given", "-f", "Dockerfile", "context"];
    let output = bench.kiln("clean", &words).env("HTTPS_PROXY", proxy).output().expect("kiln");
    assert!(output.status.success(), "{output:?}");
    for words in
        [&["save", "-o", "clean/saved.tar", "used", "given"][..], &["history", "--no-trunc", "given"]]
    {
        let output = bench.run("clean", words);
        assert!(output.status.success() && !text(&output.stdout).contains(proxy), "{output:?}");
    }
    assert_eq!(bench.file_with("clean", proxy.as_bytes()), None);
    assert!(bench.file_with("clean", b"echo used").is_some(), "the search finds what is there");
}

/// Settings of tools, with their files: none of it is in what is kept, and none of it is in a key.
#[test]
fn what_is_lent_leaves_no_trace() {
    let Some(bench) = Bench::new() else { return };
    fs_err::create_dir_all(bench.path("home")).expect("made");
    let at = |name: &str| bench.path(name).display().to_string();
    bench.write("home/token", "k3y-of-the-machine");
    bench.write("home/.npmrc", &format!("//h/:_authToken=t0ken-of-npm\n//h/:keyfile={}\n", at("home/token")));
    bench.write("home/goenv", "GOPROXY=https://go-pr0xy.example\n");
    bench.write("home/pip.conf", "[global]\nindex-url = https://u:p1p-secret@h.example/simple\n");
    bench.write("home/bundle.pem", "b-u-n-d-l-e");
    bench.write(
        "Dockerfile",
        "FROM bb\nRUN cat $NPM_CONFIG_USERCONFIG $PIP_CONFIG_FILE $SSL_CERT_FILE /run/kiln/npm-*token; \\\n\
         [ \"$GOPROXY\" = https://go-pr0xy.example ] && echo used > /used\n",
    );
    let build = |loans: &[&str], home: &str| {
        let words =
            [&["build", "--progress=plain"][..], loans, &["-t", "made", "-f", "Dockerfile", "context"]];
        let mut kiln = bench.kiln("store", &words.concat());
        kiln.env_remove("PIP_CERT").env("HOME", at(home)).env("GOENV", at("home/goenv"));
        kiln.env("PIP_CONFIG_FILE", at("home/pip.conf")).env("SSL_CERT_FILE", at("home/bundle.pem"));
        let output = kiln.output().expect("kiln");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let told = build(&["--lend=ca,pip,npm", "--lend", "go"], "home");
    let secrets = ["k3y-of-the-machine", "t0ken-of-npm", "go-pr0xy", "p1p-secret", "b-u-n-d-l-e"];
    for secret in secrets.iter().filter(|secret| **secret != "go-pr0xy") {
        assert!(told.contains(secret), "{secret} was not lent: {told}");
    }
    // Without any of it, it is the same build.
    let again = build(&[], "context");
    assert!(again.contains("CACHED") && !again.contains("t0ken"), "{again}");
    for words in [&["save", "-o", "store/saved.tar", "made"][..], &["history", "--no-trunc", "made"]] {
        let output = bench.run("store", words);
        let shown = text(&output.stdout);
        assert!(output.status.success() && !secrets.iter().any(|it| shown.contains(it) && *it != "go-pr0xy"));
    }
    for secret in secrets.iter().filter(|secret| **secret != "go-pr0xy") {
        assert_eq!(bench.file_with("store", secret.as_bytes()), None, "{secret}");
    }
    assert!(bench.file_with("store", b"echo used").is_some(), "the search finds what is there");
}

/// Says that it is over when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A context whose directories become links to elsewhere while COPY reads it, and an ignore file that is none.
#[test]
fn contexts_that_move() {
    let Some(bench) = Bench::new() else { return };
    let canary = Canary::new(&bench);
    for name in ["context/d", "context/d/e"] {
        fs_err::create_dir_all(bench.path(name)).expect("made");
    }
    for number in 0..200 {
        fs_err::write(bench.path(&format!("context/d/e/{number}")), "harmless\n").expect("written");
    }
    fs_err::write(bench.path("context/d/secret"), "harmless\n").expect("written");
    fs_err::os::unix::fs::symlink(&canary.0, bench.path("context/l")).expect("linked");
    bench.built("FROM bb\nCOPY d /d\nRUN cat /d/secret\n", &["-t", "copied"]);
    let over = AtomicBool::new(false);
    let end = Instant::now() + race();
    let (mut built, mut number) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let context = bench.path("context");
            let at = rustix::fs::open(&context, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
                .expect("opened");
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&at, "d", &at, "l", rustix::fs::RenameFlags::EXCHANGE)
                    .expect("swapped");
                std::thread::yield_now();
            }
        });
        // So that a test that fails ends, too.
        let _over = Over(&over);
        while Instant::now() < end || number < 6 {
            let dockerfile = format!(
                "FROM bb\nLABEL n={number}\nCOPY d /d\nCOPY d/secret /s\nADD d/e /e\n\
                 RUN --mount=type=bind,source=d,target=/m cat /m/secret; true\n"
            );
            let output = bench.build(&dockerfile, &["--no-cache"]);
            let told = text(&output.stderr);
            assert!(!told.contains("panicked") && !told.contains(SECRET), "{told}");
            built += usize::from(output.status.success());
            number += 1;
        }
    });
    assert_eq!(bench.file_with("store", SECRET.as_bytes()), None, "{built} of {number} built");
    canary.unharmed();

    let ignore = bench.path("context/.dockerignore");
    let made = Command::new("mkfifo").arg(&ignore).status().expect("mkfifo");
    assert!(made.success());
    bench.not_built("FROM bb\nCOPY d /d\n", ".dockerignore");
    fs_err::remove_file(&ignore).expect("removed");
    fs_err::os::unix::fs::symlink(canary.0.join("secret"), &ignore).expect("linked");
    bench.not_built("FROM bb\nCOPY d /d\n", ".dockerignore");
}

/// CVE-2024-9676: account files of an image that are links, pipes or without end; CVE-2022-23648: its volumes elsewhere.
#[test]
fn images_whose_own_files_are_traps() {
    let Some(bench) = Bench::new() else { return };
    let canary = Canary::new(&bench);
    let here = canary.shown();
    fs_err::write(bench.path("canary-passwd"), "evil:x:0:0::/:/bin/sh\n").expect("written");
    let host = bench.path("canary-passwd");
    let host = host.display();
    for (name, make) in [
        ("link", format!("ln -s {host} /etc/passwd")),
        ("up", format!("ln -s ../../../../../../..{host} /etc/passwd")),
        ("loop", "ln -s passwd /etc/passwd".to_owned()),
        ("pipe", "/bin/busybox mkfifo /etc/passwd".to_owned()),
        ("directory", "mkdir /etc/passwd".to_owned()),
        ("endless", "/bin/busybox truncate -s 1G /etc/passwd".to_owned()),
    ] {
        bench.built(&format!("FROM bb\nRUN rm /etc/passwd && {make}\n"), &["-t", name]);
        let start = Instant::now();
        for words in
            [&["run", "-u", "evil", name, "true"][..], &["run", "-u", "5", name, "cat", "/proc/self/status"]]
        {
            let output = bench.run("store", words);
            let told = text(&output.stderr);
            assert!(!told.contains("panicked"), "{told}");
            assert!(words[2] == "5" || output.status.code() == Some(125), "{name}: {output:?}");
        }
        let output =
            bench.build(&format!("FROM {name}\nCOPY --chown=evil Dockerfile* /\nUSER evil\nRUN true\n"), &[]);
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        assert!(start.elapsed() < Duration::from_secs(30), "{name}");
    }
    // The twin: accounts kept elsewhere in the image.
    bench.built(
        "FROM bb\nRUN mkdir /accounts && echo 'good:x:7:8::/:/bin/sh' > /accounts/passwd && ln -sf ../accounts/passwd /etc/passwd\n",
        &["-t", "elsewhere"],
    );
    let output = bench.run("store", &["run", "-u", "good", "elsewhere", "/bin/busybox", "id", "-u"]);
    assert_eq!(text(&output.stdout), "7\n", "{output:?}");

    bench.built(
        &format!("FROM bb\nRUN ln -s {here} /link && mkdir /real && ln -s /real /good\nVOLUME /link /good /../../../..{here}\n"),
        &["-t", "volumes"],
    );
    let script = format!(
        "echo evil > /link/evil; echo evil > {here}/evil2; echo x > /good/x; cat /real/x; rm -f {here}/secret"
    );
    let output = bench.run("store", &["run", "volumes", "sh", "-c", &script]);
    assert_eq!(text(&output.stdout), "x\n", "{output:?}");
    canary.unharmed();
    let output = bench.run(
        "store",
        &["run", "-v", &format!("{}:/link/in", bench.path("context").display()), "volumes", "true"],
    );
    assert!(!text(&output.stderr).contains("panicked"), "{output:?}");
    canary.unharmed();
}

/// CVE-2021-41091: layers hold setuid files; nobody else reaches them, not even while they come in.
#[test]
fn the_store_is_closed_to_others() {
    let Some(bench) = Bench::new() else { return };
    bench.built("FROM bb\nRUN chmod 4755 /bin/busybox\n", &["-t", "setuid"]);
    // The directory above is open, as /var/lib is.
    for (path, mode) in [("", 0o755), ("store", 0o755)] {
        fs_err::set_permissions(bench.path(path), PermissionsExt::from_mode(mode)).expect("its mode");
    }
    assert!(bench.run("store", &["images"]).status.success(), "this closes it again");
    let diff = text(
        &bench.run("store", &["inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", "setuid"]).stdout,
    );
    let file = Path::new(diff.trim()).join("bin/busybox");
    assert!(file.is_file(), "{diff}");
    let reaches = |path: &Path| {
        let mut stat = Command::new("stat");
        std::os::unix::process::CommandExt::uid(&mut stat, 1000);
        stat.arg(path).stdin(Stdio::null()).output().expect("stat").status.success()
    };
    for path in [file, bench.path("store/kiln.db"), bench.path("store/tmp")] {
        assert!(!reaches(&path), "{}", path.display());
    }
    assert!(reaches(&bench.path("store")), "the test asks as somebody who comes that far");
    assert!(bench.run("store", &["save", "-o", "setuid.tar", "setuid"]).status.success());
    // While a load goes on, its directory is looked for all the time.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut tried = 0;
            while !over.load(Ordering::Relaxed) || tried == 0 {
                for store in ["store", "loaded"] {
                    for name in ["tmp", "overlay2", "blobs", "index", "kiln.db"] {
                        let path = bench.path(store).join(name);
                        assert!(!reaches(&path), "{}", path.display());
                        tried += 1;
                    }
                }
            }
        });
        let loaded = bench.run("loaded", &["load", "-i", "setuid.tar"]);
        over.store(true, Ordering::Relaxed);
        assert!(loaded.status.success(), "{loaded:?}");
        watcher.join().expect("nothing was reached");
    });
}
