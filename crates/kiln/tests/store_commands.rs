//! The whole program on a small store: what it prints, its exit status, and kills at any moment.

mod patience;
#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_layer::{Kind, Metadata, tar};
use kiln_store::{Ownership, Store};
use serde_json::json;

use patience::{PATIENCE, until};

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().expect("a directory") };
        fs_err::write(fixture.path("app.tar"), archive("app:1", "hello\n")).expect("written");
        fs_err::write(fixture.path("new.tar"), archive("new:1", "goodbye\n")).expect("written");
        fixture
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(words).env("KILN_ROOT", self.path("store")).env("TZ", "UTC");
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Standard output, standard error and exit status.
    fn run(&self, words: &[&str]) -> (String, String, i32) {
        let output = self.command(words).output().expect("kiln starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
    }

    #[track_caller]
    fn check(&self, words: &[&str], stdout: &str, stderr: &str, status: i32) {
        assert_eq!(self.run(words), (stdout.to_owned(), stderr.to_owned(), status), "kiln {words:?}");
    }
}

fn put(name: &str, bytes: &[u8], out: &mut Vec<u8>) {
    let metadata = Metadata { size: bytes.len() as u64, ..Metadata::new(Kind::Regular, 0o644) };
    tar::write_header(name.as_bytes(), &metadata, out);
    out.extend_from_slice(bytes);
    tar::pad(bytes.len() as u64, out);
}

/// A docker archive of one layer with `/hello` and `/a<newline>b`.
fn archive(name: &str, text: &str) -> Vec<u8> {
    let mut layer = Vec::new();
    put("a\nb", b"", &mut layer);
    put("hello", text.as_bytes(), &mut layer);
    layer.resize(layer.len() + 1024, 0);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["sh"], "Labels": { "a": "b" } },
        "history": [{ "created_by": "COPY hello /" }, { "created_by": "CMD [\"sh\"]", "empty_layer": true }],
        "rootfs": { "type": "layers", "diff_ids": [kiln_oci::Digest::of(&layer)] },
    });
    let mut out = Vec::new();
    let manifest = json!([{ "Config": "c.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    put("manifest.json", manifest.to_string().as_bytes(), &mut out);
    put("c.json", config.to_string().as_bytes(), &mut out);
    put("layer.tar", &layer, &mut out);
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn commands_on_images() {
    let kiln = Fixture::new();
    kiln.check(&["images"], "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n", "", 0);
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let (id, _, _) = kiln.run(&["inspect", "-f", "{{.Id}}", "app:1"]);
    let short = &id["sha256:".len()..][..12];
    let row = format!("app          1         {short}   N/A       6B\n");
    kiln.check(&["images"], &format!("REPOSITORY   TAG       IMAGE ID       CREATED   SIZE\n{row}"), "", 0);
    kiln.check(&["images", "-q", "--filter", "label=a=b", "ap*"], &format!("{short}\n"), "", 0);
    kiln.check(&["images", "-q", "--filter", "label=a=c"], "", "", 0);
    let steps = format!("{short} 0B CMD [\"sh\"]\n<missing> 6B COPY hello /\n");
    kiln.check(&["history", "--format", "{{.ID}} {{.Size}} {{.CreatedBy}}", "app:1"], &steps, "", 0);
    kiln.check(
        &["inspect", "-f", "{{.Config.Cmd}} {{.RepoTags}} {{.GraphDriver.Name}}", "app:1"],
        "[sh] [app:1] overlay2\n",
        "",
        0,
    );
    kiln.check(&["inspect", "-f", "{{.ID}}", "app:1"], &id, "", 0);
    for words in [&["inspect", "-f", "{{", "nope"][..], &["info", "-f", "{{"], &["version", "-f", "{{"]] {
        kiln.check(words, "", "kiln: template parsing error: template: :1: unclosed action\n", 64);
    }
    kiln.check(&["inspect", "nope"], "[]\n", "kiln: No such object: nope\n", 1);
    kiln.check(&["image", "inspect", "nope"], "[]\n", "kiln: No such image: nope\n", 1);
    kiln.check(&["image", "cat", "app:1", "/hello"], "hello\n", "", 0);
    let (files, _, status) = kiln.run(&["image", "files", "app:1"]);
    assert!(files.contains(" /a\\nb\n") && files.contains(" /hello\n") && status == 0, "{files}");
    kiln.check(&["load", "-i", "new.tar"], "Loaded image: new:1\n", "", 0);
    kiln.check(&["image", "diff", "app:1", "new:1"], "C /hello\n", "", 0);
    kiln.check(&["tag", "app:1", "x.org/y"], "", "", 0);
    kiln.check(&["tag", "app:1", "a@sha256:0"], "", &kiln.run(&["tag", "app:1", "a@sha256:0"]).1, 1);
    kiln.check(&["tag", "app:1", "sha256:0"], "", &kiln.run(&["tag", "app:1", "sha256:0"]).1, 1);
    let conflict = format!(
        "kiln: conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories\n"
    );
    kiln.check(&["rmi", short], "", &conflict, 1);
    kiln.check(&["rmi", "nope", "x.org/y"], "Untagged: x.org/y:latest\n", "kiln: No such image: nope\n", 1);
    kiln.check(&["rmi", "-f", "nope"], "", "kiln: No such image: nope\n", 0);
    kiln.check(&["system", "check"], "2 images, 2 layers, 6 blobs: no fault\n", "", 0);
    let (removed, _, status) = kiln.run(&["rmi", "app:1"]);
    assert!(removed.starts_with(&format!("Untagged: app:1\nDeleted: {id}")) && status == 0, "{removed}");
    let question =
        "WARNING! This will remove all dangling images.\nAre you sure you want to continue? [y/N] ";
    kiln.check(&["image", "prune"], question, "", 0);
    // In Docker's words and order; an empty filter is none.
    let question = "WARNING! This will remove:\n  - all dangling images\n  - unused build cache\n\n  \
                    Items to be pruned will be filtered with:\n  - label!=x\n  - label=a\n  - until=1h\n\n\
                    Are you sure you want to continue? [y/N] ";
    let filters = ["--filter", "until=1h", "--filter", "label=a", "--filter", "label!=x", "--filter", ""];
    kiln.check(&[&["system", "prune"][..], &filters].concat(), question, "", 0);
    kiln.check(&["image", "prune", "-f"], "Total reclaimed space: 0B\n", "", 0);
    let (pruned, _, status) = kiln.run(&["system", "prune", "-af", "--volumes"]);
    assert!(
        pruned.starts_with("Deleted Images:\nuntagged: new:1\ndeleted: sha256:") && status == 0,
        "{pruned}"
    );
    kiln.check(&["system", "check"], "0 images, 0 layers, 0 blobs: no fault\n", "", 0);
}

/// The advice is for what cannot be written: the archive, not the store.
#[test]
fn a_place_that_is_read_only_is_not_the_stores() {
    if !rustix::process::geteuid().is_root() {
        return skipped::skipped("needs root, to mount something read-only");
    }
    let kiln = Fixture::new();
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    fs_err::create_dir(kiln.path("fixed")).expect("made");
    let script = "mount -t tmpfs -o ro fixed fixed && exec \"$0\" save -o fixed/x.tar app:1";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_kiln")]).env("KILN_ROOT", kiln.path("store"));
    let output = command.current_dir(kiln.directory.path()).output().expect("unshare");
    let expect = "kiln: cannot save to fixed/x.tar: make a file in fixed: Read-only file system (os error 30)\n\
                  hint: -o names the archive; where it is to be nothing can be written\n";
    assert_eq!((&*String::from_utf8_lossy(&output.stderr), output.status.code()), (expect, Some(1)));
}

#[test]
fn an_image_goes_out_and_comes_back() {
    let kiln = Fixture::new();
    kiln.check(&["load", "--no-unpack", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let (data, _, _) = kiln.run(&["inspect", "-f", "{{json .GraphDriver.Data}}", "app:1"]);
    // Unpacked only now, by who may mount layers and asks for their directories; else not at all.
    let directory = |text: &str| text.split('"').find(|part| part.ends_with("/diff")).map(str::to_owned);
    assert!(data == "null\n" || directory(&data).is_some_and(|diff| Path::new(&diff).is_dir()), "{data}");
    for form in ["docker-archive", "oci-archive", "oci-dir"] {
        kiln.check(&["save", "--format", form, "-o", form, "app:1"], "", "", 0);
        let store = kiln.path(&format!("{form}-store"));
        let root = store.to_str().expect("a name");
        kiln.check(&["--root", root, "load", "-i", form], "Loaded image: app:1\n", "", 0);
    }
    let (_, told, status) = kiln.run(&["save", "-o", "none/x.tar", "app:1"]);
    assert!(told.starts_with("kiln: cannot save to none/x.tar: ") && status == 1, "{told}");
    kiln.check(&["save", "-o", "x.tar", "nope"], "", "kiln: No such image: nope\n", 1);
    assert!(!kiln.path("x.tar").exists());
    kiln.check(&["image", "unpack", "app:1", "root"], "", "", 0);
    assert_eq!(fs_err::read_to_string(kiln.path("root/hello")).expect("read"), "hello\n");
}

#[test]
fn what_came_through_a_pipe_may_be_nothing_or_cut_off() {
    let kiln = Fixture::new();
    let whole = fs_err::read(kiln.path("app.tar")).expect("read");
    let piped = |words: &[&str], bytes: &[u8]| {
        let mut command = kiln.command(words);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let child = child.as_mut().expect("started");
        // It may be refused before it is read.
        let _ = std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), bytes);
        let mut told = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().expect("a pipe"), &mut told).expect("read");
        (told, child.wait().expect("waited").code())
    };
    let check = |words: &[&str], bytes: &[u8], told: &str| {
        assert_eq!(piped(words, bytes), (format!("kiln: {told}\n"), Some(1)));
    };
    let empty_gzip = [31, 139, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for nothing in [&[][..], &empty_gzip] {
        let told = "cannot import standard input: it is empty: expected a tar archive\n\
                    hint: name a file, or pipe an archive into `kiln import -`";
        check(&["import", "-", "x"], nothing, told);
        let told = "cannot load standard input: it is empty: expected a docker or OCI archive\n\
                    hint: name a file with -i, or pipe an archive into `kiln load`";
        check(&["load"], nothing, told);
    }
    let told = "it is truncated: it ends after 2600 bytes, in the middle of layer.tar";
    check(&["load"], &whole[..2600], &format!("cannot load standard input: {told}"));
    fs_err::write(kiln.path("cut.tar"), &whole[..2600]).expect("written");
    kiln.check(&["load", "-i", "cut.tar"], "", &format!("kiln: cannot load cut.tar: {told}\n"), 1);
    kiln.check(&["images", "-q"], "", "", 0);
    let told = "kiln: cannot import http://x.org/a.tar: No such file or directory (os error 2)\n\
                hint: `curl -fL http://x.org/a.tar | kiln import -` imports what is there\n";
    kiln.check(&["import", "http://x.org/a.tar"], "", told, 1);
}

#[test]
fn a_check_says_how_to_repair() {
    let kiln = Fixture::new();
    kiln.check(&["load", "--no-unpack", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let (layer, _, _) = kiln.run(&["inspect", "-f", "{{index .RootFS.Layers 0}}", "app:1"]);
    let blob = kiln.path("store/blobs/sha256").join(layer.trim().trim_start_matches("sha256:"));
    let mut bytes = fs_err::read(&blob).expect("read");
    bytes[1100] ^= 1;
    fs_err::write(&blob, &bytes).expect("written");
    let (found, hint, status) = kiln.run(&["system", "check"]);
    assert!(found.starts_with(&format!("blob {}: its bytes have the digest", layer.trim())), "{found}");
    let repair = "hint: `kiln rmi -f app:1` and `kiln system prune -f` remove what is damaged; \
                  then load, import or build it again\n";
    assert_eq!((hint.as_str(), status), (repair, 1));
    let (_, told, status) = kiln.run(&["save", "-o", "out.tar", "app:1"]);
    let expect = format!("kiln: cannot save to out.tar: blob {} in the store is damaged: its", layer.trim());
    assert!(
        told.starts_with(&expect) && told.contains("\nhint: `kiln system check`") && status == 1,
        "{told}"
    );
    assert!(!kiln.path("out.tar").exists());
    assert_eq!(kiln.run(&["rmi", "-f", "app:1"]).2, 0);
    assert_eq!(kiln.run(&["system", "prune", "-f"]).2, 0);
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    kiln.check(&["system", "check"], "1 image, 1 layer, 3 blobs: no fault\n", "", 0);
}

#[test]
fn a_store_that_cannot_be_opened_is_named_with_what_to_do() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let (root, database) = (kiln.path("store"), kiln.path("store/kiln.db"));
    let put_back = format!(
        "put back a copy of it, or move {} away and load, import or build the images again",
        root.display()
    );
    // All of it is in the database.
    let connection = rusqlite::Connection::open(&database).expect("opened");
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("moved");
    drop(connection);
    let (mode, kept) = (fs_err::metadata(&database).expect("read").permissions(), kiln.path("kept.db"));
    fs_err::copy(&database, &kept).expect("copied");
    fs_err::write(&database, [b'x'; 8192]).expect("written");
    let told = format!(
        "kiln: the store's database {} is damaged: {put_back}: file is not a database: \
         Error code 26: file is not a database\n",
        database.display()
    );
    kiln.check(&["images"], "", &told, 1);
    fs_err::write(&database, "").expect("written");
    let told = format!("kiln: the store's database {} is empty: {put_back}\n", database.display());
    kiln.check(&["system", "prune", "-af"], "", &told, 1);
    fs_err::copy(&kept, &database).expect("copied");
    kiln.check(&["images", "--format", "{{.Repository}}"], "app\n", "", 0);

    // Not to be read: root may read everything, so that another user asks there.
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    fs_err::set_permissions(&database, closed).expect("closed");
    let mut command = kiln.command(&["images"]);
    if rustix::process::geteuid().is_root() {
        let nobody = Some(65_534);
        for path in [kiln.directory.path(), &root] {
            fs_err::os::unix::fs::chown(path, nobody, nobody).expect("given");
        }
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    }
    let Ok(output) = command.output() else {
        // Of a directory that is root's alone.
        return skipped::skipped("needs a program that everybody may run");
    };
    let told = format!(
        "kiln: cannot open {}: Permission denied (os error 13)\n\
         hint: the store at {} must be this user's own with all its files; --root or KILN_ROOT names another place\n",
        database.display(),
        root.display()
    );
    assert_eq!(
        (String::from_utf8_lossy(&output.stderr).as_ref(), output.status.code()),
        (told.as_str(), Some(1))
    );
    fs_err::set_permissions(&database, mode).expect("opened");
}

/// An image of 24 MB that was built, so that saving it takes a while.
fn large(kiln: &Fixture) {
    let context = kiln.path("context");
    fs_err::create_dir(&context).expect("made");
    fs_err::write(context.join("data"), vec![7; 24 << 20]).expect("written");
    fs_err::write(context.join("Dockerfile"), "FROM scratch\nCOPY data /\n").expect("written");
    let (_, told, status) = kiln.run(&["build", "-q", "-t", "large:1", "context"]);
    assert_eq!(status, 0, "{told}");
}

/// Whenever a save is interrupted, what it was to write is there as a whole or not at all.
#[test]
fn an_interrupted_save_leaves_nothing() {
    let kiln = Fixture::new();
    large(&kiln);
    let out = kiln.path("out");
    fs_err::create_dir(&out).expect("made");
    let mut reference = std::collections::HashMap::new();
    for form in ["docker-archive", "oci-archive", "oci-dir"] {
        kiln.check(&["save", "--format", form, "-o", form, "large:1"], "", "", 0);
        let file = if form == "oci-dir" { "oci-dir/index.json" } else { form };
        reference.insert(form, fs_err::read(kiln.path(file)).expect("read"));
    }
    let mut interrupted = 0;
    for round in 0..24_u64 {
        let form = ["docker-archive", "oci-archive", "oci-dir"][round as usize % 3];
        // A directory cannot be without a name: it needs the chance to remove it.
        let signal = if form == "oci-dir" { "INT" } else { ["INT", "TERM", "KILL"][round as usize % 2 + 1] };
        let mut save = kiln.command(&["save", "--format", form, "-o", "out/x", "large:1"]);
        let mut child = save.stderr(Stdio::piped()).spawn().expect("started");
        std::thread::sleep(Duration::from_millis(round * 4));
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
        assert!(sent.expect("sent").success());
        let mut told = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        std::io::Read::read_to_string(&mut stderr, &mut told).expect("read");
        let status = child.wait().expect("waited");
        let count = fs_err::read_dir(&out).expect("listed").count();
        let whole = |name: &str| fs_err::read(kiln.path(name)).is_ok_and(|bytes| bytes == reference[form]);
        let complete = if form == "oci-dir" { whole("out/x/index.json") } else { whole("out/x") };
        assert!(
            count == 0 || count == 1 && complete,
            "round {round}: {signal} left {count} of {form}: {told}"
        );
        if !complete {
            interrupted += 1;
            let by_signal = status.code().is_none();
            let expect = if signal == "TERM" { 143 } else { 130 };
            assert!(
                by_signal
                    || status.code() == Some(expect) && told == "kiln: cannot save to out/x: interrupted\n"
            );
        }
        drop(fs_err::remove_file(out.join("x")).or_else(|_| fs_err::remove_dir_all(out.join("x"))));
    }
    assert!(interrupted > 0);
}

/// One error, and not the silence of a listing whose reader has seen enough: half an archive is of no use.
#[test]
fn a_save_whose_reader_went_away_says_so() {
    let kiln = Fixture::new();
    large(&kiln);
    let mut child = kiln
        .command(&["save", "large:1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("waited");
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(
        told.starts_with("kiln: cannot save to standard output: ") && told.lines().count() == 1,
        "{told}"
    );
    assert!(told.contains("Broken pipe"), "{told}");
    assert_eq!(output.status.code(), Some(1));
}

/// A store outlives what is killed in it: it opens, keeps its names, and has no fault.
#[test]
fn kills_lose_nothing() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    for round in 0..24_u64 {
        let words: &[&str] =
            if round % 3 == 2 { &["system", "prune", "-f"] } else { &["load", "-q", "-i", "new.tar"] };
        let mut child =
            kiln.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        std::thread::sleep(Duration::from_micros(round * 700));
        child.kill().expect("killed");
        child.wait().expect("waited");
        if round % 3 == 1 {
            kiln.run(&["rmi", "new:1"]);
        }
        kiln.check(&["image", "cat", "app:1", "hello"], "hello\n", "", 0);
    }
    let (_, told, status) = kiln.run(&["system", "prune", "-f"]);
    assert_eq!((told.as_str(), status), ("", 0));
    let (checked, _, status) = kiln.run(&["system", "check"]);
    assert!(checked.ends_with(": no fault\n") && !checked.contains("unused") && status == 0, "{checked}");
    assert!(is_empty(&kiln.path("store/tmp")) && is_empty(&kiln.path("store/trash")));
}

/// Several processes on one store.
#[test]
fn processes_share_a_store() {
    let kiln = Fixture::new();
    let words: [&[&str]; 4] = [
        &["load", "-i", "app.tar"],
        &["load", "-i", "new.tar"],
        &["load", "-i", "app.tar"],
        &["system", "prune", "-f"],
    ];
    for _ in 0..3 {
        let children: Vec<_> = words
            .iter()
            .map(|words| kiln.command(words).stdout(Stdio::null()).spawn().expect("started"))
            .collect();
        for mut child in children {
            assert!(child.wait().expect("waited").success());
        }
    }
    kiln.check(&["system", "check"], "2 images, 2 layers, 6 blobs: no fault\n", "", 0);
}

/// Who waits for others says so, and goes on when they have ended.
#[test]
fn a_removal_says_whom_it_waits_for() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let store = Store::open(&kiln.path("store"), Ownership::SingleId).expect("a store");
    for words in [&["rmi", "app:1"][..], &["system", "prune", "-f"]] {
        let looking = store.lease_late("test").expect("it looks things up");
        let log = fs_err::File::create(kiln.path("log")).expect("made");
        let mut removal = kiln.command(words);
        let mut removal = removal.stdout(Stdio::null()).stderr(log.into_parts().0).spawn().expect("started");
        let told = || fs_err::read_to_string(kiln.path("log")).expect("read");
        until("it says that it waits", || told().ends_with('\n'));
        drop(looking);
        assert!(removal.wait().expect("waited").success());
        let process = std::process::id();
        let line = format!("kiln: waiting for a build that looks things up: process {process}\n");
        assert_eq!(told(), line, "{words:?}");
    }
}

/// Nobody who removes something waits until a build has read what changed in its context.
#[test]
fn a_build_that_reads_its_context_is_not_waited_for() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let context = kiln.path("context");
    fs_err::create_dir_all(context.join("d")).expect("made");
    fs_err::write(context.join("d/data"), "small").expect("written");
    fs_err::write(context.join("Dockerfile"), "FROM scratch\nCOPY d /d\n").expect("written");
    // Files that were written a moment ago are not remembered.
    std::thread::sleep(Duration::from_millis(2500));
    let (_, told, status) = kiln.run(&["build", "-q", "context"]);
    assert_eq!(status, 0, "{told}");

    // It reads a hole for longer than anybody waits here.
    let data = fs_err::OpenOptions::new().write(true).open(context.join("d/data")).expect("opened");
    data.set_len(1 << 40).expect("made longer");
    let mut build = kiln.command(&["build", "-q", "context"]).spawn().expect("started");
    let read = || {
        let counts = fs_err::read_to_string(format!("/proc/{}/io", build.id())).unwrap_or_default();
        let count = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
        count.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    until("the build reads the file", || read() > 64 << 20);
    let mut removal = kiln.command(&["rmi", "app:1"]).stdout(Stdio::null()).spawn().expect("started");
    let start = Instant::now();
    let removed = loop {
        match removal.try_wait().expect("waited") {
            None if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            ended => break ended,
        }
    };
    let goes_on = build.try_wait().expect("waited").is_none();
    for mut child in [build, removal] {
        let _ = child.kill();
        child.wait().expect("waited");
    }
    assert!(removed.is_some_and(|status| status.success()) && goes_on, "{removed:?} {goes_on}");
}

/// A store that a newer kiln wrote is refused by every command, and left as it is.
#[test]
fn a_newer_store_is_left_alone() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    fs_err::write(kiln.path("Dockerfile"), "FROM scratch\nCOPY new.tar /\n").expect("written");
    let database = kiln.path("store/kiln.db");
    let connection = rusqlite::Connection::open(&database).expect("opened");
    let journal_is_kept = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(journal_is_kept, true).expect("set");
    connection.pragma_update(None, "user_version", 999).expect("written");
    drop(connection);
    let journal = kiln.path("store/kiln.db-wal");
    let bytes = || (fs_err::read(&database).expect("read"), fs_err::read(&journal).expect("read"));
    let bytes_before = bytes();
    let listed = || {
        let mut found = Vec::new();
        list(&kiln.path("store"), &mut found);
        found
    };
    let before = listed();
    let known = kiln_store::SCHEMA_VERSION;
    let told = format!(
        "kiln: the store at {} has schema version 999; this kiln knows {known}: use a newer kiln, or another --root\n",
        kiln.path("store").display()
    );
    let commands: [&[&str]; 5] = [
        &["images"],
        &["build", "."],
        &["load", "-q", "-i", "new.tar"],
        &["rmi", "-f", "app:1"],
        &["system", "prune", "-af"],
    ];
    for words in commands {
        let (stdout, stderr, status) = kiln.run(words);
        let ends_with_it = stderr.ends_with(told.trim_start_matches("kiln: "));
        assert!(stdout.is_empty() && ends_with_it && status == 1, "{words:?}: {stderr}");
    }
    assert!(listed() == before && bytes() == bytes_before);
}

/// Everything below a directory with its time of modification, but for what SQLite shares between processes.
fn list(directory: &Path, found: &mut Vec<(std::path::PathBuf, std::time::SystemTime)>) {
    for entry in fs_err::read_dir(directory).expect("listed") {
        let entry = entry.expect("listed");
        let metadata = entry.metadata().expect("a status");
        if metadata.is_dir() {
            list(&entry.path(), found);
        } else if entry.file_name() != "kiln.db-shm" {
            found.push((entry.path(), metadata.modified().expect("a time")));
        }
    }
    found.sort();
}

fn is_empty(directory: &Path) -> bool {
    fs_err::read_dir(directory).expect("listed").next().is_none()
}

#[test]
fn a_full_standard_error_changes_no_status() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-q", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    fs_err::write(kiln.path("Dockerfile"), "FROM app:1 as warned\nLABEL c=d\n").expect("written");
    let (_, warned, status) = kiln.run(&["build", "-t", "warned", "."]);
    assert!(status == 0 && warned.contains("warning"), "{warned}");
    for words in [&["build", "-t", "warned", "."][..], &["build", "."], &["--timings", "images"]] {
        let full = fs_err::OpenOptions::new().write(true).open("/dev/full").expect("opened");
        let output = kiln.command(words).stderr(full.into_parts().0).output().expect("kiln starts");
        assert_eq!(output.status.code(), Some(0), "kiln {words:?}");
    }
}

#[test]
fn an_archive_in_a_directory_that_was_removed() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-q", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$0\" save -o x.tar app:1";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_kiln")]).env("KILN_ROOT", kiln.path("store"));
    let output = command.current_dir(kiln.path("")).output().expect("kiln starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told, "kiln: cannot save to x.tar: the directory . was removed\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_archive_on_a_full_standard_output_is_begun() {
    let kiln = Fixture::new();
    kiln.check(&["load", "-q", "-i", "app.tar"], "Loaded image: app:1\n", "", 0);
    let full = fs_err::OpenOptions::new().write(true).open("/dev/full").expect("opened");
    let output = kiln.command(&["save", "app:1"]).stdout(full.into_parts().0).output().expect("kiln starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.starts_with("kiln: cannot save to standard output: "), "{told}");
    assert!(!told.contains("nothing of it was left"), "what came before the end was written: {told}");
    assert!(!told.contains("prune"), "the store is not what is full: {told}");
    assert_eq!(output.status.code(), Some(1));
}
