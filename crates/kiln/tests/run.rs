//! `run` as a whole, over an image of one static program. Needs root, and busybox of Debian's busybox-static at
//! /bin/busybox or /usr/bin/busybox; says so where it is skipped.

#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    /// A store with the image `bb`, or `None` where that cannot be had.
    fn new() -> Option<Self> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
        let (Some(busybox), true) = (busybox, rustix::process::geteuid().is_root()) else {
            skipped::skipped("needs root and busybox-static");
            return None;
        };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path().join("image");
        fs_err::create_dir_all(root.join("bin")).expect("made");
        fs_err::create_dir_all(root.join("etc")).expect("made");
        fs_err::create_dir_all(root.join("volume")).expect("made");
        fs_err::write(root.join("volume/given"), "given\n").expect("written");
        fs_err::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n")
            .expect("written");
        fs_err::copy(busybox, root.join("bin/busybox")).expect("copied");
        for name in ["sh", "env", "id", "cat", "sleep", "touch", "ls", "true", "pwd"] {
            fs_err::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("linked");
        }
        let tar = directory.path().join("image.tar");
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        assert!(made.expect("tar").success());
        let bench = Self { directory };
        let changes = ["--change", "CMD [\"sh\"]", "--change", "ENV A=1", "--change", "VOLUME /volume"];
        let imported = bench.kiln("import").args(changes).arg(&tar).arg("bb").output().expect("kiln");
        assert!(imported.status.success(), "{imported:?}");
        Some(bench)
    }

    fn kiln(&self, command: &str) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.arg("--root").arg(self.directory.path().join("store")).arg(command).stdin(Stdio::null());
        kiln
    }

    fn run(&self, words: &[&str]) -> Output {
        self.kiln("run").args(words).output().expect("kiln")
    }

    #[track_caller]
    fn check(&self, words: &[&str], status: i32, stdout: &str, stderr: &str) {
        let found = self.run(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let errors = text(&found.stderr);
        assert_eq!((found.status.code(), text(&found.stdout)), (Some(status), stdout.to_owned()), "{errors}");
        assert!(errors.contains(stderr) && (errors.is_empty() || !stderr.is_empty()), "{errors}");
    }

    /// What running commands hold in the store.
    fn leases(&self) -> usize {
        fs_err::read_dir(self.directory.path().join("store/tmp")).expect("read").count()
    }
}

/// As docker: the same file gives the same image wherever it is.
#[test]
fn an_import_names_no_place() {
    let Some(bench) = Bench::new() else { return };
    let told = bench.kiln("history").args(["--format", "{{.Comment}}", "bb"]).output().expect("kiln");
    assert_eq!(String::from_utf8_lossy(&told.stdout).lines().last(), Some("Imported from -"), "{told:?}");
}

#[test]
fn a_command_runs_as_docker_runs_it() {
    let Some(bench) = Bench::new() else { return };
    bench.check(&["bb", "true"], 0, "", "");
    bench.check(&["bb", "sh", "-c", "exit 7"], 7, "", "");
    bench.check(&["bb", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, "", "Killed");
    bench.check(&["bb", "nosuch"], 127, "", "nosuch: command not found");
    bench.check(&["bb", "/etc/passwd"], 126, "", "/etc/passwd: cannot execute");
    bench.check(&["nosuch"], 125, "", "docker.io/library/nosuch:latest");
    bench.check(&["-v", "name:/x", "bb", "true"], 125, "", "no named volumes");
    bench.check(&["-it", "bb"], 1, "", "not a TTY");
    bench.check(&["--entrypoint", "", "bb"], 125, "", "no command specified");
    bench.check(&["--entrypoint", "id", "bb", "-u"], 0, "0\n", "");
    bench.check(
        &["-u", "app", "-w", "/new/place", "bb", "sh", "-c", "id -u; id -g; pwd; echo $HOME"],
        0,
        "7\n8\n/new/place\n/home/app\n",
        "",
    );
    for (user, ids) in [("5:", "5\n0\n"), ("5:6:", "5\n6\n"), (":", "0\n0\n"), ("app:", "7\n8\n")] {
        bench.check(&["-u", user, "bb", "sh", "-c", "id -u; id -g"], 0, ids, "");
    }
    bench.check(&["-u", "nobody", "bb", "true"], 125, "", "unable to find user nobody");
    bench.check(&["-e", "B=2", "-e", "A=3", "-e", "HOSTNAME=h", "bb", "env"], 0,
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOSTNAME=h\nB=2\nA=3\nHOME=/root\n", "");
    bench.check(&["-w", "", "bb", "pwd"], 0, "/\n", "");
    let file = bench.directory.path().join("variables");
    fs_err::write(&file, "# Those\nB=file\nC=of two words\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let told = ["-e", "B=line", "--env-file", file, "bb", "sh", "-c", "echo $A $B $C"];
    bench.check(&told, 0, "1 line of two words\n", "");
    bench.check(&["--env-file", "/nosuch", "bb"], 125, "", "environment file /nosuch: No such file");
    assert_eq!(bench.leases(), 0);
}

/// As docker, which also takes one word for the whole.
#[test]
fn an_import_is_for_the_platform_that_is_named() {
    let Some(bench) = Bench::new() else { return };
    let tar = bench.directory.path().join("image.tar");
    let import = |platform: &str| {
        bench.kiln("import").args(["--platform", platform]).arg(&tar).arg("far").output().expect("kiln")
    };
    for (platform, expect) in
        [("linux/s390x", "linux s390x \n"), ("aarch64", "linux arm64 \n"), ("linux/arm/v7", "linux arm v7\n")]
    {
        assert!(import(platform).status.success(), "{platform}");
        let shown =
            bench.kiln("inspect").args(["-f", "{{.Os}} {{.Architecture}} {{.Variant}}", "far"]).output();
        assert_eq!(String::from_utf8_lossy(&shown.expect("kiln").stdout), expect);
    }
    for (platform, told) in [
        (
            "nosuch",
            "kiln: cannot import: platform \"nosuch\" is not os/architecture[/variant], such as linux/amd64\n",
        ),
        ("windows/amd64", "kiln: cannot import: operating system \"windows\" is not supported\n"),
    ] {
        let refused = import(platform);
        assert_eq!((refused.status.code(), &*String::from_utf8_lossy(&refused.stderr)), (Some(1), told));
    }
}

/// Docker warns of other processors, for which there may be an emulator, and takes no image of another system.
#[test]
fn images_of_other_machines_are_told_apart() {
    let Some(bench) = Bench::new() else { return };
    let inspect =
        bench.kiln("inspect").args(["-f", "{{index .RootFS.Layers 0}}", "bb"]).output().expect("kiln");
    let layer = String::from_utf8_lossy(&inspect.stdout).trim().to_owned();
    let place = bench.directory.path();
    for (os, architecture, status, told) in [
        ("linux", "s390x", 0, "kiln: warning: far is for linux/s390x, this machine is linux/"),
        ("plan9", "amd64", 125, "cannot run a container: far is for plan9/amd64, this machine is linux/"),
    ] {
        let config = format!(
            r#"{{"os":"{os}","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        );
        fs_err::write(place.join("c.json"), config).expect("written");
        let manifest = r#"[{"Config":"c.json","RepoTags":["far"],"Layers":["image.tar"]}]"#;
        fs_err::write(place.join("manifest.json"), manifest).expect("written");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(place).arg("-cf").arg(place.join("far.tar"));
        assert!(tar.args(["manifest.json", "c.json", "image.tar"]).status().expect("tar").success());
        let loaded = bench.kiln("load").arg("-i").arg(place.join("far.tar")).output().expect("kiln");
        assert!(loaded.status.success(), "{loaded:?}");
        bench.check(&["far", "true"], status, "", told);
    }
}

/// CVE-2024-40635: a number that wraps to that of root.
#[test]
fn users_beyond_the_largest_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let tar = bench.directory.path().join("image.tar");
    for (user, status, stdout, stderr) in [
        ("2147483647:2147483647", 0, "2147483647\n", ""),
        ("2147483648", 125, "", "user and group numbers must be from 0 to 2147483647"),
        ("4294967296:0", 125, "", "user and group numbers must be from 0 to 2147483647"),
        ("0:4294967296", 125, "", "user and group numbers must be from 0 to 2147483647"),
    ] {
        let import = ["--change".to_owned(), format!("USER {user}")];
        let imported = bench.kiln("import").args(import).arg(&tar).arg("user").output().expect("kiln");
        assert!(imported.status.success(), "{imported:?}");
        bench.check(&["user", "id", "-u"], status, stdout, stderr);
        if status != 0 {
            bench.check(&["-u", user, "bb", "id", "-u"], status, stdout, stderr);
        }
    }
}

#[test]
fn volumes_show_what_they_should() {
    let Some(bench) = Bench::new() else { return };
    let source = bench.directory.path().join("made/for/it");
    let volume = |options: &str| format!("{}:/data{options}", source.display());
    bench.check(&["-v", &volume(""), "bb", "touch", "/data/file"], 0, "", "");
    assert!(source.join("file").is_file());
    bench.check(&["-v", &volume(":Z"), "bb", "touch", "/data/labelled"], 0, "", "");
    bench.check(&["-v", &volume(":ro,z"), "bb", "touch", "/data/other"], 1, "", "Read-only file system");
    bench.check(&["-v", &volume(":ro"), "bb", "touch", "/data/other"], 1, "", "Read-only file system");
    // An image's volume begins as the image has it, and goes with the container.
    let words = ["bb", "sh", "-c", "touch /volume/new; ls /volume"];
    bench.check(&words, 0, "given\nnew\n", "");
    bench.check(&words, 0, "given\nnew\n", "");
    assert_eq!(bench.leases(), 0);
}

#[test]
fn a_removed_directory_is_needed_by_relative_volumes_alone() {
    let Some(bench) = Bench::new() else { return };
    let gone = bench.directory.path().join("gone");
    let run = |volume: &[&str]| {
        fs_err::create_dir(&gone).expect("made");
        let mut shell = Command::new("sh");
        shell.args(["-c", "rmdir \"$PWD\"; exec \"$@\"", "sh"]).current_dir(&gone);
        let kiln =
            shell.arg(env!("CARGO_BIN_EXE_kiln")).arg("--root").arg(bench.directory.path().join("store"));
        let found = kiln.arg("run").args(volume).args(["bb", "true"]).output().expect("starts");
        (found.status.code(), String::from_utf8_lossy(&found.stderr).into_owned())
    };
    assert_eq!(run(&[]), (Some(0), String::new()));
    assert_eq!(run(&["-v", "/:/host"]), (Some(0), String::new()));
    let (status, errors) = run(&["-v", "./x:/x"]);
    assert_eq!(status, Some(125), "{errors}");
    assert!(errors.contains("\"./x:/x\": cannot find the current directory"), "{errors}");
}

#[test]
fn a_limit_of_files_is_an_error_of_kilns() {
    let Some(bench) = Bench::new() else { return };
    let limited = |command: &str, words: &[&str]| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -f 1500; exec \"$@\"", "sh"]).arg(env!("CARGO_BIN_EXE_kiln"));
        shell.arg("--root").arg(bench.directory.path().join("store")).arg(command).args(words);
        shell.output().expect("starts")
    };
    let into = bench.directory.path().join("saved.tar");
    let into = into.to_str().expect("a name");
    let found = limited("save", &["-o", into, "bb"]);
    let errors = String::from_utf8_lossy(&found.stderr);
    assert!(errors.contains("saved.tar") && errors.contains("File too large"), "{found:?}");
    // Commands begin as anywhere else.
    let found = limited("run", &["bb", "cat", "/proc/self/status"]);
    let status = String::from_utf8_lossy(&found.stdout);
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).expect("a field");
    let ignored = u64::from_str_radix(ignored, 16).expect("a number");
    assert_eq!(ignored & (1 << (rustix::process::Signal::XFSZ.as_raw() - 1)), 0, "{ignored:x}");
}

#[test]
fn nothing_stays_when_kiln_is_killed() {
    let Some(bench) = Bench::new() else { return };
    let marker = format!("{}", 100_000 + std::process::id());
    let mut kiln = bench.kiln("run").args(["bb", "sleep", &marker]).spawn().expect("kiln");
    let runs = || {
        fs_err::read_dir("/proc").expect("read").flatten().any(|process| {
            let command = fs_err::read(process.path().join("cmdline")).unwrap_or_default();
            command == format!("sleep\0{marker}\0").as_bytes()
        })
    };
    let until = |wanted: bool| {
        let start = Instant::now();
        while runs() != wanted {
            assert!(start.elapsed() < Duration::from_secs(20), "sleep runs: {}", !wanted);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(true);
    kiln.kill().expect("killed");
    kiln.wait().expect("ended");
    until(false);
    let mounts = fs_err::read_to_string("/proc/self/mounts").expect("read");
    assert!(!mounts.contains(&bench.directory.path().display().to_string()), "{mounts}");
}

/// A test that is skipped passes, and the harness says nothing of it: it has to be heard all the same.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test tells itself what it is to do")]
fn what_is_skipped_is_heard() {
    const MARK: &str = "KILN_TEST_IS_SKIPPED";
    if std::env::var_os(MARK).is_some() {
        return skipped::skipped("it was asked to be");
    }
    let program = std::env::current_exe().expect("a name");
    let test = ["--exact", "what_is_skipped_is_heard"];
    let output = Command::new(program).args(test).env(MARK, "1").output().expect("starts");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("SKIPPED what_is_skipped_is_heard: it was asked to be\n"), "{output:?}");
}
