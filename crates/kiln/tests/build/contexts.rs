//! Contexts that are no directory: archives and Dockerfiles on standard input and on the web.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::bench::{Bench, text};
use crate::web::{Page, Web};

const DOCKERFILE: &str = "FROM scratch\nCOPY . /c/\n";

impl Bench {
    /// The context's files as a tar, compressed as `flag` says; names begin with `./`.
    fn archive(&self, flag: &str) -> Vec<u8> {
        let output = Command::new("tar").args([flag, "-", "-C"]).arg(self.path("context")).arg(".").output();
        let output = output.expect("tar");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    fn build_from(&self, words: &[&str], input: &[u8]) -> Output {
        let mut kiln = self.kiln("store", &["build", "-t", "made"]);
        kiln.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kiln.spawn().expect("kiln");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        // A refusal may come before all was read.
        let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("kiln");
        writing.join().expect("written");
        assert_eq!(self.leases(), 0, "{}", text(&output.stderr));
        output
    }

    #[track_caller]
    fn builds_from(&self, words: &[&str], input: &[u8]) -> String {
        let output = self.build_from(words, input);
        assert!(output.status.success(), "{words:?}\n{}", text(&output.stderr));
        text(&self.run("store", &["images", "-q", "--no-trunc", "made"]).stdout)
    }

    #[track_caller]
    fn refuses_from(&self, words: &[&str], input: &[u8], status: i32, says: &str) {
        let output = self.build_from(words, input);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words:?}\n{told}");
        assert!(told.contains(says), "expected {says:?} in\n{told}");
        assert_eq!(told.lines().filter(|line| line.starts_with("kiln: ")).count(), 1, "{told}");
    }

    fn fill_context(&self) {
        fs_err::create_dir_all(self.path("context/d")).expect("made");
        self.write("context/Dockerfile", DOCKERFILE);
        self.write("context/d/other", "FROM scratch\nCOPY a /other\n");
        self.write("context/a", "a\n");
        self.write("context/secret", "secret\n");
        self.write("context/.dockerignore", "secret\n");
    }
}

fn names(bench: &Bench) -> Vec<String> {
    let output = bench.run("store", &["image", "files", "made"]);
    text(&output.stdout).lines().filter_map(|line| Some(line.rsplit(' ').next()?.to_owned())).collect()
}

#[test]
fn an_archive_is_a_context() {
    let Some(bench) = Bench::new() else { return };
    bench.fill_context();
    let expect = ["/", "/c", "/c/.dockerignore", "/c/Dockerfile", "/c/a", "/c/d", "/c/d/other"];
    let id = bench.builds_from(&["context"], b"");
    assert_eq!(names(&bench), expect);
    for flag in ["-cf", "-czf", "-cJf", "-cjf"] {
        // The ignore file counts, and the key is that of the same directory: nothing is copied again.
        assert_eq!(bench.builds_from(&["-"], &bench.archive(flag)), id, "{flag}");
    }
    let mut zstd = Command::new("tar");
    zstd.args(["--zstd", "-cf", "-", "-C"]).arg(bench.path("context")).arg(".");
    if let Some(bytes) = made_or_skipped(&mut zstd) {
        assert_eq!(bench.builds_from(&["-"], &bytes), id);
    }
    bench.builds_from(&["-f", "d/other", "-"], &bench.archive("-cf"));
    assert_eq!(names(&bench), ["/", "/other"]);
    let web = Web::start();
    web.put("/context.tar.gz", Page::new(bench.archive("-czf")));
    assert_eq!(bench.builds_from(&[&web.url("/context.tar.gz")], b""), id);
    bench.builds_from(&["-f", "-", &web.url("/context.tar.gz")], b"FROM scratch\nCOPY d /\n");
    assert_eq!(names(&bench), ["/", "/other"]);
}

/// BuildKit has the same modes however a context comes.
#[test]
fn modes_of_an_archive_are_those_of_its_files() {
    let Some(bench) = Bench::new() else { return };
    bench.fill_context();
    let mode = |name: &str, mode| {
        let path = bench.path("context").join(name);
        fs_err::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("set");
    };
    for name in ["e", "n", "s"] {
        fs_err::create_dir(bench.path("context").join(name)).expect("made");
    }
    bench.write("context/su", "su");
    bench.write("context/none", "none");
    bench.write("context/e/f", "f");
    for (name, bits) in [
        ("su", 0o4755),
        ("a", 0o2711),
        ("none", 0),
        ("d", 0o2755),
        ("d/other", 0o6444),
        ("e", 0o555),
        ("n", 0),
        ("s", 0o1777),
    ] {
        mode(name, bits);
    }
    let id = bench.builds_from(&["context"], b"");
    assert_eq!(bench.builds_from(&["-"], &bench.archive("-czf")), id);
    // A store in a directory whose group is everybody's.
    let shared = bench.path("shared");
    fs_err::create_dir(&shared).expect("made");
    fs_err::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o2777)).expect("set");
    let modes = |store: &str, words: &[&str], input: &[u8]| {
        let mut kiln = bench.kiln(store, &["build", "-t", "made"]);
        kiln.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kiln.spawn().expect("kiln");
        child.stdin.take().expect("a pipe").write_all(input).expect("written");
        let output = child.wait_with_output().expect("kiln");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&bench.run(store, &["image", "files", "made"]).stdout)
    };
    let expect = modes("shared/one", &["context"], b"");
    assert!(expect.contains("drwxr-sr-x"), "{expect}");
    assert_eq!(modes("shared/two", &["-"], &bench.archive("-cf")), expect);
}

#[test]
fn names_of_whiteouts_are_no_files_of_an_archive() {
    let Some(bench) = Bench::new() else { return };
    bench.fill_context();
    for name in [".wh.a", "d/.wh..wh..opq"] {
        bench.write(&format!("context/{name}"), "x");
        let says = "its name is reserved for whiteouts";
        bench.refuses_from(&["-"], &bench.archive("-cf"), 1, says);
        fs_err::remove_file(bench.path("context").join(name)).expect("removed");
    }
    bench.builds_from(&["-"], &bench.archive("-cf"));
}

#[test]
fn words_that_make_no_sense_are_told_before_the_context_is_fetched() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    let url = web.url("/context.tar");
    for (words, status, says) in [
        (["--network=x", &url], 125, "cannot use the network"),
        (["--allow=x", &url], 125, "cannot allow"),
        (["-t=A", &url], 1, "repository name (A) must be lowercase"),
        (["--build-arg==x", &url], 125, "for --build-arg: expected NAME=VALUE"),
        (["--label==x", &url], 125, "for --label: expected NAME=VALUE"),
        (["--progress=tty", &url], 125, "cannot show progress as tty"),
    ] {
        bench.refuses_from(&words[..], b"", status, says);
        assert_eq!(web.log(), Vec::<String>::new(), "{words:?}");
    }
    bench.refuses_from(&[&url], b"", 1, "cannot fetch the build context: http://127.0.0.1");
    assert_eq!(web.log(), ["404 /context.tar"]);
    bench.refuses_from(&["http://u:s3cret@[::1"], b"", 1, "cannot fetch the build context: \"http://");
}

fn made_or_skipped(tar: &mut Command) -> Option<Vec<u8>> {
    let output = tar.output().expect("tar");
    if !output.status.success() {
        crate::skipped::skipped("a zstd archive needs the zstd program");
        return None;
    }
    Some(output.stdout)
}

#[test]
fn a_dockerfile_alone_has_an_empty_context() {
    let Some(bench) = Bench::new() else { return };
    bench.builds_from(&["-"], b"FROM scratch\nCOPY <<a /a\nx\na\n");
    assert_eq!(names(&bench), ["/", "/a"]);
    bench.builds_from(&["-"], b"FROM scratch\nCOPY . /c/\n");
    assert_eq!(names(&bench), ["/", "/c"]);
    let web = Web::start();
    web.put("/Dockerfile", Page::new("FROM scratch\nCOPY <<b /b\nx\nb\n"));
    bench.builds_from(&[&web.url("/Dockerfile")], b"");
    assert_eq!(names(&bench), ["/", "/b"]);
    bench.fill_context();
    bench.builds_from(&["-f", "-", "context"], b"FROM scratch\nCOPY a /x\n");
    assert_eq!(names(&bench), ["/", "/x"]);

    bench.refuses_from(&["-"], b"FROM scratch\nCOPY a /a\n", 1, "\"a\" not found in the build context");
    let says = "kiln: cannot build from standard input: it is empty: expected an archive or a Dockerfile\n\
                hint: name a directory, or pipe an archive or a Dockerfile into `kiln build -`\n";
    bench.refuses_from(&["-"], b"", 1, says);
    let says = "kiln: cannot read the Dockerfile of standard input: it is empty\n\
                hint: name a file with -f, or pipe a Dockerfile into it\n";
    bench.refuses_from(&["-f", "-", "context"], b"", 1, says);
    web.put("/empty", Page::new(""));
    let says = "/empty: it is empty: expected an archive or a Dockerfile\n";
    bench.refuses_from(&[&web.url("/empty")], b"", 1, says);
    bench.refuses_from(&["-f", "-", "-"], b"", 125, "both the context and the Dockerfile");
    bench.refuses_from(&["-f", "x", "-"], b"FROM scratch\n", 125, "--file names another");
    bench.refuses_from(&[&web.url("/none")], b"", 1, "invalid response status 404");
}

#[test]
fn hostile_archives_stay_inside() {
    let Some(bench) = Bench::new() else { return };
    let canary = bench.path("canary");
    fs_err::write(&canary, "untouched").expect("written");
    let place = bench.path("").display().to_string();
    // Made by hand, as GNU tar would not.
    let entry = |name: &str, kind: u8, link: &str, body: &[u8]| {
        let mut header = vec![0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000666\0");
        header[108..124].copy_from_slice(b"0000000\x000000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", body.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header.extend_from_slice(body);
        header.resize(header.len().next_multiple_of(512), 0);
        header
    };
    let dockerfile = || entry("Dockerfile", b'0', "", b"FROM scratch\nCOPY . /c/\n");
    let end = [0_u8; 1024];
    for attack in [
        vec![entry("../../../../../../../../canary", b'0', "", b"pwned")],
        vec![entry(&format!("{place}canary"), b'0', "", b"pwned")],
        vec![entry("l", b'2', &place, b""), entry("l/canary", b'0', "", b"pwned")],
        vec![entry("h", b'1', &format!("{place}canary"), b""), entry("h", b'0', "", b"pwned")],
        vec![entry("l", b'2', "/etc/passwd", b""), entry("l", b'0', "", b"pwned")],
        vec![entry("null", b'3', "", b"")],
        vec![entry("Dockerfile", b'2', "/etc/passwd", b"")],
        vec![entry("Dockerfile", b'6', "", b"")],
        vec![entry(".dockerignore", b'6', "", b"")],
        vec![entry(".dockerignore", b'2', "../../../../../../../../etc/passwd", b"")],
    ] {
        let bytes = [dockerfile(), attack.concat(), end.to_vec()].concat();
        let output = bench.build_from(&["-"], &bytes);
        let told = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{told}");
        assert!(!told.contains("root:") && !told.contains("panicked"), "{told}");
        assert_eq!(fs_err::read_to_string(&canary).expect("read"), "untouched");
    }
    // A context is whole or not at all.
    let cut = [dockerfile(), entry("f", b'0', "", &[b'x'; 600])[..600].to_vec()].concat();
    bench.refuses_from(&["-"], &cut, 1, "cannot unpack standard input");
    bench.refuses_from(&["-"], &[0x1f, 0x8b, 8, 0, 1, 2, 3], 1, "cannot unpack standard input");
    bench.fill_context();
    let whole = bench.archive("-czf");
    let says = "kiln: cannot unpack standard input: damaged or cut off (gzip): ";
    bench.refuses_from(&["-"], &whole[..whole.len() / 2], 1, says);
    let says = "cannot read the Dockerfile of standard input: No such file or directory";
    bench.refuses_from(&["-"], &[entry("a", b'0', "", b""), end.to_vec()].concat(), 1, says);
}

#[test]
fn what_is_no_context_is_told_with_what_to_write() {
    let Some(bench) = Bench::new() else { return };
    bench.fill_context();
    fs_err::write(bench.path("a.tgz"), bench.archive("-czf")).expect("written");
    for (words, says) in [
        (
            &["context/Dockerfile"][..],
            "kiln: cannot build from context/Dockerfile: Not a directory (os error 20)\n\
             hint: -f names the Dockerfile, and the context is a directory: \
             kiln build -f context/Dockerfile context\n",
        ),
        (&["a.tgz"], "hint: an archive comes on standard input: kiln build - < a.tgz\n"),
        (
            &["nosuch"],
            "kiln: cannot build from nosuch: No such file or directory (os error 2)\nhint: the context is",
        ),
        (&["ftp://h/x"], "hint: a context comes over http or https"),
        (
            &["-f", "context/nosuch", "context"],
            "kiln: cannot read the Dockerfile context/nosuch: No such file or directory (os error 2)\n\
             hint: -f names another file",
        ),
    ] {
        bench.refuses_from(words, b"", 1, says);
    }
    let no_git = |context: &str| {
        let mut kiln = bench.kiln("store", &["build", context]);
        text(&kiln.env("PATH", bench.path("nothing")).output().expect("kiln").stderr)
    };
    for context in ["https://127.0.0.1:1/r.git", "github.com/user/repository"] {
        let told = no_git(context);
        assert!(told.contains("git program, which is not on PATH\nhint: install git"), "{told}");
    }
}
