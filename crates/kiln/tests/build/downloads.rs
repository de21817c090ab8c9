//! ADD of what is on the web.

use std::process::Command;
use std::time::Instant;

use rustix::process::{Signal, kill_process};

use crate::bench::{Bench, text};
use crate::patience::{PATIENCE, until};
use crate::web::{Page, Web};

const OLD: &str = "Last-Modified: Sun, 09 Sep 2001 01:46:40 GMT";

impl Bench {
    /// Builds a Dockerfile that must be right; what was executed, by the number of steps that were not cached.
    #[track_caller]
    pub(crate) fn makes(&self, dockerfile: &str, more: &[&str]) -> String {
        self.write("Dockerfile", dockerfile);
        let mut words = vec!["build", "--progress=plain", "-t", "made", "-f", "Dockerfile"];
        words.extend(more);
        words.push("context");
        let output = self.run("store", &words);
        let told = text(&output.stderr);
        assert!(output.status.success(), "{dockerfile}\n{told}");
        told
    }

    #[track_caller]
    pub(crate) fn fails(&self, dockerfile: &str, says: &[&str]) {
        self.write("Dockerfile", dockerfile);
        let images = text(&self.run("store", &["images", "-aq"]).stdout);
        let output = self.run("store", &["build", "-t", "made", "-f", "Dockerfile", "context"]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{dockerfile}\n{told}");
        for part in says {
            assert!(told.contains(part), "expected {part:?} in\n{told}");
        }
        assert_eq!(text(&self.run("store", &["images", "-aq"]).stdout), images);
        assert_eq!(self.leases(), 0);
    }

    #[track_caller]
    pub(crate) fn holds(&self, path: &str, expect: &str) {
        let output = self.run("store", &["image", "cat", "made", path]);
        assert!(output.status.success(), "{path}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), expect, "{path}");
    }

    fn files(&self) -> String {
        text(&self.run("store", &["image", "files", "made"]).stdout)
    }

    pub(crate) fn id(&self) -> String {
        text(&self.run("store", &["images", "-q", "--no-trunc", "made"]).stdout)
    }
}

#[test]
fn what_did_not_change_is_asked_for_once() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    web.put("/tagged", Page::new("one").header("ETag: \"1\""));
    web.put("/dated", Page::new("two").header(OLD));
    web.put("/weak", Page::new("three").header("ETag: W/\"1\""));
    web.put("/bare", Page::new("four"));
    let adds: String = ["/tagged", "/dated", "/weak", "/bare"]
        .iter()
        .map(|path| format!("ADD {} /d/\n", web.url(path)))
        .collect();
    let dockerfile = format!("FROM scratch\n{adds}");
    bench.makes(&dockerfile, &[]);
    let sorted = || {
        let mut log = web.log();
        log.sort();
        log
    };
    assert_eq!(sorted(), ["200 /bare", "200 /dated", "200 /tagged", "200 /weak"]);
    let id = bench.id();
    bench.makes(&dockerfile, &[]);
    assert_eq!(bench.id(), id);
    assert_eq!(sorted(), ["200 /bare", "200 /dated", "200 /weak", "304 /tagged"]);

    // What did change is seen, however the server tells of it.
    web.put("/tagged", Page::new("ONE").header("ETag: \"2\""));
    // A server calls what is no later than the date unchanged, and this one is older.
    web.put("/dated", Page::new("TWO").header(OLD));
    web.put("/bare", Page::new("FOUR"));
    bench.makes(&dockerfile, &[]);
    assert_ne!(bench.id(), id);
    bench.holds("/d/tagged", "ONE");
    bench.holds("/d/dated", "TWO");
    bench.holds("/d/bare", "FOUR");
    assert_eq!(sorted(), ["200 /bare", "200 /dated", "200 /tagged", "200 /weak"]);

    // A step below that changes needs no second download.
    let above = format!("FROM scratch\nCOPY <<x /x\ny\nx\n{adds}");
    bench.makes(&above, &[]);
    assert_eq!(sorted(), ["200 /bare", "200 /dated", "200 /weak", "304 /tagged"]);
    bench.holds("/d/tagged", "ONE");

    // The same address twice is one request, and --no-cache asks for everything.
    bench.makes(&format!("FROM scratch\nADD {0} /a\nADD {0} /b\n", web.url("/tagged")), &["--no-cache"]);
    assert_eq!(sorted(), ["200 /tagged"]);
    bench.holds("/b", "ONE");
    // What is remembered names no address.
    for entry in fs_err::read_dir(bench.path("store/downloads")).expect("read").flatten() {
        let remembered = fs_err::read_to_string(entry.path()).expect("read");
        assert!(!remembered.contains("127.0.0.1"), "{remembered}");
    }
}

#[test]
fn a_redirect_that_leads_elsewhere_is_followed() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    for (path, body) in [("/one", "one"), ("/two", "two")] {
        web.put(path, Page::new(body).header("ETag: \"same\""));
    }
    let leads = |target: &str| {
        web.put("/latest", Page::default().header(&format!("Location: {target}")));
    };
    let dockerfile = format!("FROM scratch\nADD {} /f\n", web.url("/latest"));
    for (target, body, log) in [
        ("/one", "one", ["302 /latest", "200 /one"]),
        ("/one", "one", ["302 /latest", "304 /one"]),
        ("/two", "two", ["302 /latest", "200 /two"]),
    ] {
        leads(target);
        bench.makes(&dockerfile, &[]);
        assert_eq!(web.log(), log);
        bench.holds("/f", body);
    }
}

#[test]
fn a_checksum_says_all_that_must_be_known() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    web.put("/f", Page::new("abc"));
    let sums = [
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
         2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ];
    for sum in sums {
        let dockerfile = format!("FROM scratch\nARG SUM={sum}\nADD --checksum=$SUM {} /f\n", web.url("/f"));
        bench.makes(&dockerfile, &[]);
        assert_eq!(web.log(), ["200 /f"], "{sum}");
        bench.holds("/f", "abc");
        bench.makes(&dockerfile, &[]);
        // Nor does it matter where it comes from, or that there is another step below.
        let moved = dockerfile.replace("/f /f", "/elsewhere/f /f").replace("ARG", "COPY <<x /x\nx\nARG");
        bench.makes(&moved, &[]);
        assert_eq!(web.log(), [""; 0], "{sum}");
    }
    let wrong = sums[0].replace("ba78", "ba79");
    bench.fails(
        &format!("FROM scratch\nADD --checksum={wrong} {} /f\n", web.url("/f")),
        &["digest mismatch", &wrong, sums[0], ">>> ADD"],
    );
    bench
        .fails(&format!("FROM scratch\nADD --checksum=md5:00 {} /f\n", web.url("/f")), &["invalid checksum"]);
    bench.fails(
        "FROM scratch\nADD --checksum=sha256:00 f /f\n",
        &["checksum requires HTTP(S) or Git sources"],
    );
    bench.fails(
        &format!("FROM scratch\nADD --checksum={} {1} {1} /f/\n", sums[0], web.url("/f")),
        &["checksum can't be specified for multiple sources"],
    );
}

#[test]
fn names_come_from_the_address_alone() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    let evil = "Content-Disposition: attachment; filename=\"../../../../etc/passwd\"";
    web.put("/good", Page::new("1").header(evil));
    web.put("/..%2f..%2fup", Page::new("2"));
    web.put("/", Page::new("3"));
    web.put("/a%20b", Page::new("4"));
    web.put("/x%0ay", Page::new("5"));
    let url = |path: &str| web.url(path);
    bench.makes(
        &format!(
            "FROM scratch\nADD [\"{}\", \"{}\", \"{}\", \"{}\", \"{}\", \"{}\", \"/d/\"]\n",
            url("/good?x=/y"),
            url("/..%2f..%2fup"),
            url("/"),
            url("/a%20b"),
            url("/x%0ay"),
            url("/good#z"),
        ),
        &[],
    );
    assert_eq!(bench.files().lines().count(), 2 + 5, "{}", bench.files());
    for (path, content) in
        [("/d/good", "1"), ("/d/up", "2"), ("/d/__unnamed__", "3"), ("/d/a b", "4"), ("/d/download", "5")]
    {
        bench.holds(path, content);
    }
    let passwd = fs_err::read_to_string("/etc/passwd").expect("read");
    assert!(passwd.starts_with("root:"), "the machine is as it was");
}

#[test]
fn archives_are_unpacked_when_that_is_asked_for() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    fs_err::write(bench.path("inner"), "inside\n").expect("written");
    let tar = Command::new("tar").arg("-C").arg(bench.path("")).args(["-czf", "-", "inner"]).output();
    let tar = tar.expect("tar").stdout;
    web.put("/t.tgz", Page::new(tar.clone()));
    fs_err::write(bench.path("context/local.tgz"), &tar).expect("written");
    let url = web.url("/t.tgz");
    for (flag, there, absent) in [
        ("", "/d/t.tgz", "/d/x/inner"),
        ("--unpack=false ", "/d/t.tgz", "/d/x/inner"),
        ("--unpack ", "/d/inner", "/d/t.tgz"),
        ("--unpack=true ", "/d/inner", "/d/t.tgz"),
    ] {
        bench.makes(&format!("FROM scratch\nADD {flag}{url} /d/\n"), &[]);
        let files = bench.files();
        assert!(files.contains(&there[1..]) && !files.contains(&absent[1..]), "{flag}: {files}");
    }
    // In one instruction, each is what it would be by itself.
    bench.makes(&format!("FROM scratch\nADD --chown=3:4 --chmod=640 local.tgz {url} /d/\n"), &[]);
    let files = bench.files();
    assert!(files.contains("d/inner") && files.contains("d/t.tgz") && !files.contains("local"), "{files}");
    let tar = Command::new("tar").arg("-C").arg(bench.path("")).args(["-cf", "-", "inner"]).output();
    web.put("/cut.tar", Page::new(tar.expect("tar").stdout[..515].to_vec()));
    bench.fails(
        &format!("FROM scratch\nADD --unpack {} /d/\n", web.url("/cut.tar")),
        &["cannot unpack cut.tar"],
    );
}

#[test]
fn refusals_say_what_the_server_said() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    bench.fails(
        &format!("FROM scratch\nADD {} /f\n", web.url("/no")),
        &["invalid response status 404", "/no"],
    );
    bench.fails(
        "FROM scratch\nADD http://user:secret@127.0.0.1:1/f /f\n",
        &["cannot download http://127.0.0.1:1/f"],
    );
    bench.fails("FROM scratch\nADD http:///f /f\n", &["it cannot be read", ">>> ADD"]);
    bench.fails("FROM scratch\nCOPY http://127.0.0.1/f /f\n", &["source can't be a URL for COPY"]);
}

#[test]
fn a_download_can_be_interrupted() {
    let Some(bench) = Bench::new() else { return };
    let web = Web::start();
    web.put("/endless", Page { endless: true, ..Page::default() });
    bench.write("Dockerfile", &format!("FROM scratch\nADD {} /f\n", web.url("/endless")));
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut build = bench.start("build");
        until("the download has begun", || !web.log().is_empty());
        std::thread::sleep(std::time::Duration::from_millis(200));
        let start = Instant::now();
        kill_process(build.process(), signal).expect("interrupted");
        let ended = build.wait();
        assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
        assert_eq!(ended.code(), Some(status), "{}", bench.read("build.err"));
        assert_eq!(bench.leases(), 0);
    }
}
