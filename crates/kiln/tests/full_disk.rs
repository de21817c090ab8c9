//! A store on a small file system that runs full, and the cap of its build cache. Needs root, for the mounts, which
//! are in namespaces of their own; says so where it is skipped.

#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A tmpfs in a mount namespace of its own, which ends with the process that holds it: that reads from this one, and so
/// ends with it, whichever way that goes.
struct Disk {
    directory: tempfile::TempDir,
    holder: Child,
}

impl Disk {
    /// `None` where nothing can be mounted.
    fn new(mebibytes: u32) -> Option<Self> {
        Self::with(&format!("size={mebibytes}m"))
    }

    fn with(limits: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = directory.path().join("disk");
        fs_err::create_dir(&disk).expect("made");
        let script = format!("mount -t tmpfs -o {limits},mode=0700 kiln-test \"$0\" && echo up && exec cat");
        let holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .arg(&disk)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let up = |holder: &mut Child| {
            let mut told = [0; 3];
            let out = holder.stdout.as_mut().expect("piped");
            std::io::Read::read_exact(out, &mut told).is_ok() && told == *b"up\n"
        };
        if let Ok(mut holder) = holder {
            if up(&mut holder) {
                return Some(Self { directory, holder });
            }
            let _ = holder.wait();
        }
        skipped::skipped("needs root that may mount");
        None
    }

    /// A path on the disk, as this process gets to it.
    fn on_disk(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(self.path("disk").strip_prefix("/").expect("absolute")).join(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Standard output, standard error and exit status.
    fn kiln(&self, words: &[&str]) -> (String, String, i32) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.arg(format!("--wd={}", self.directory.path().display()));
        command.arg(env!("CARGO_BIN_EXE_kiln")).args(words).env("KILN_ROOT", self.path("disk/store"));
        let output = command.stdin(Stdio::null()).output().expect("kiln starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
    }

    #[track_caller]
    fn succeed(&self, words: &[&str]) -> String {
        let (stdout, stderr, status) = self.kiln(words);
        assert_eq!(status, 0, "kiln {words:?}: {stderr}");
        stdout
    }

    /// Lets something else take all the room that there is.
    fn take_the_rest(&self) {
        let mut file =
            fs_err::OpenOptions::new().append(true).create(true).open(self.on_disk("filler")).expect("made");
        let block = [1; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    /// Lets something else make all the files that there can be.
    fn take_all_names(&self) {
        let directory = self.on_disk("files");
        fs_err::create_dir_all(&directory).expect("made");
        for number in 0.. {
            if fs_err::File::create(directory.join(number.to_string())).is_err() {
                break;
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let listed = self.succeed(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// A context of one file that no other has, and a Dockerfile that copies it.
    fn context(&self, number: u32, kibibytes: usize) {
        let context = self.path("context");
        fs_err::create_dir_all(&context).expect("made");
        fs_err::write(context.join("data"), bytes(number, kibibytes)).expect("written");
        fs_err::write(context.join("Dockerfile"), "FROM scratch\nCOPY data /data\n").expect("written");
    }

    /// A tar of the same file.
    fn archive(&self, number: u32, kibibytes: usize) {
        self.context(number, kibibytes);
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(self.path("layer.tar")).arg("-C").arg(self.path("context")).arg("data");
        assert!(tar.status().expect("tar starts").success());
    }

    /// Adds images until one does not fit any more; gives the names of those that did, and what was said then.
    fn fill(&self, kibibytes: usize, add: impl Fn(&Self, u32) -> (String, String, i32)) -> String {
        let mut names = self.names();
        for number in 0..10_000 {
            let (_, told, status) = add(self, number);
            if status == 0 {
                names = self.names();
                continue;
            }
            assert_eq!(status, 1, "{told}");
            assert_eq!(self.names(), names, "after {told}");
            let checked = self.succeed(&["system", "check"]);
            assert!(checked.ends_with(": no fault\n"), "{checked}");
            return told;
        }
        panic!("the disk takes everything, {kibibytes} KiB at a time");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It ends at the end of its input.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Bytes that no other number gives.
fn bytes(number: u32, kibibytes: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..kibibytes * 256).flat_map(|_| next()).collect()
}

/// One line and one hint, which name what could not be written and why.
#[track_caller]
fn is_clear(told: &str, disk: &Disk) {
    let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("kiln: ")).collect();
    assert_eq!(errors.len(), 1, "{told}");
    assert!(errors[0].contains(&disk.path("disk/store").display().to_string()), "names no file: {told}");
    assert!(told.ends_with("`kiln system prune` removes what is unused\n"), "no hint: {told}");
}

#[test]
fn a_full_disk_loses_nothing() {
    let Some(disk) = Disk::new(12) else { return };
    disk.context(1_000_000, 64);
    disk.succeed(&["build", "-q", "-t", "kept:1", "context"]);
    for kibibytes in [3000, 300, 40] {
        let name = |way: &str, number: u32| format!("{way}:{kibibytes}-{number}");
        let import = |disk: &Disk, number| {
            disk.archive(number, kibibytes);
            disk.kiln(&["import", "layer.tar", &name("import", number)])
        };
        is_clear(&disk.fill(kibibytes, import), &disk);
        let build = |disk: &Disk, number| {
            disk.context(20_000 + number, kibibytes);
            disk.kiln(&["build", "-q", "-t", &name("build", number), "context"])
        };
        is_clear(&disk.fill(kibibytes, build), &disk);
    }
    assert!(disk.names().contains(&"kept:1".to_owned()));
    // Room again: everything goes on.
    disk.succeed(&["system", "prune", "-af"]);
    disk.succeed(&["build", "-q", "-t", "kept:1", "context"]);
    assert_eq!(disk.names(), ["kept:1"]);
}

#[test]
fn a_load_that_does_not_fit_leaves_no_bytes() {
    let Some(disk) = Disk::new(12) else { return };
    // Two layers, of which the first fits.
    disk.context(1, 1500);
    fs_err::write(disk.path("context/more"), bytes(2, 12_000)).expect("written");
    fs_err::write(disk.path("context/Dockerfile"), "FROM scratch\nCOPY data /data\nCOPY more /more\n")
        .expect("written");
    let root = disk.path("elsewhere");
    let elsewhere = ["--root", root.to_str().expect("a name")];
    disk.succeed(&[&elsewhere[..], &["build", "-q", "-t", "large:1", "context"]].concat());
    disk.succeed(&[&elsewhere[..], &["save", "-o", "large.tar", "large:1"]].concat());
    disk.context(3, 64);
    disk.succeed(&["build", "-q", "-t", "kept:1", "context"]);
    let before = disk.succeed(&["system", "check"]);
    // Read where it is, and unpacked into the store first.
    assert!(Command::new("gzip").arg("-k1").arg(disk.path("large.tar")).status().expect("gzip").success());
    for archive in ["large.tar", "large.tar.gz"] {
        let (_, told, status) = disk.kiln(&["load", "-i", archive]);
        assert_eq!(status, 1, "{told}");
        is_clear(&told, &disk);
        assert!(!told.contains("cannot read"), "{told}");
        assert_eq!(disk.succeed(&["system", "check"]), before);
    }
    let empty = |name: &str| fs_err::read_dir(disk.on_disk(name)).expect("listed").next().is_none();
    assert!(empty("store/tmp") && empty("store/trash"));
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let Some(disk) = Disk::new(12) else { return };
    disk.context(1, 64);
    disk.succeed(&["build", "-q", "-t", "kept:1", "context"]);
    names_fill(&disk);
}

/// The names of an image that has a manifest are in the layout, too, which is written once they have moved.
#[test]
fn names_that_the_layout_shows_and_that_do_not_fit_are_refused() {
    let Some(disk) = Disk::new(12) else { return };
    disk.archive(1, 64);
    assert!(Command::new("gzip").arg(disk.path("layer.tar")).status().expect("gzip").success());
    disk.succeed(&["import", "layer.tar.gz", "kept:1"]);
    names_fill(&disk);
}

/// Gives `kept:1` further names until the disk is full.
#[track_caller]
fn names_fill(disk: &Disk) {
    let mut told = None;
    for number in 0..10_000 {
        disk.take_the_rest();
        let before = disk.names();
        let (_, said, status) = disk.kiln(&["tag", "kept:1", &format!("kept:{number}-{}", "x".repeat(100))]);
        if status != 0 {
            assert_eq!((status, disk.names()), (1, before), "{said}");
            told = Some(said);
            break;
        }
    }
    is_clear(&told.expect("the disk takes every name"), disk);
    let checked = disk.succeed(&["system", "check"]);
    assert!(checked.ends_with(": no fault\n"), "{checked}");
    disk.succeed(&["system", "prune", "-f"]);
    fs_err::remove_file(disk.on_disk("filler")).expect("removed");
    disk.succeed(&["tag", "kept:1", "kept:2"]);
}

/// What opening a store takes comes from what is set aside, and enough of that is left for a collection.
#[test]
fn a_store_that_needs_room_to_be_opened_gets_it() {
    for version in [1, kiln_store::SCHEMA_VERSION] {
        let Some(disk) = Disk::new(12) else { return };
        disk.context(1, 3000);
        disk.succeed(&["build", "-q", "-t", "kept:1", "context"]);
        if version == 1 {
            make_old(&disk);
        }
        // As if a command had ended when there was room, and nothing had to be kept.
        fs_err::write(disk.on_disk("store/kiln.db-shm"), "").expect("emptied");
        disk.take_the_rest();
        assert_eq!(disk.names(), ["kept:1"]);
        disk.take_the_rest();
        let pruned = disk.succeed(&["system", "prune", "-af"]);
        assert!(pruned.contains("untagged: kept:1\n"), "{pruned}");
        fs_err::remove_file(disk.on_disk("filler")).expect("removed");
        disk.succeed(&["build", "-q", "-t", "kept:2", "context"]);
        let checked = disk.succeed(&["system", "check"]);
        assert!(checked.ends_with(": no fault\n"), "{checked}");
    }
}

#[test]
fn an_image_can_be_removed_where_there_is_no_room() {
    let Some(disk) = Disk::new(12) else { return };
    disk.context(1, 3000);
    disk.succeed(&["build", "-q", "-t", "kept:1", "context"]);
    disk.succeed(&["tag", "kept:1", "kept:2"]);
    // The log of the database has room in itself.
    let no_room = |number: u32| {
        disk.take_the_rest();
        let (_, told, status) = disk.kiln(&["tag", "kept:1", &format!("kept:{number}-{}", "x".repeat(100))]);
        (status != 0).then_some(told)
    };
    let told = (3..10_000).find_map(no_room);
    is_clear(&told.expect("no room"), &disk);
    assert!(disk.succeed(&["rmi", "kept:2"]).contains("Untagged: kept:2\n"));
    disk.take_the_rest();
    assert!(disk.succeed(&["rmi", "-f", "kept:1"]).contains("Untagged: kept:1\n"));
    for name in disk.names() {
        disk.succeed(&["rmi", &name]);
    }
    disk.succeed(&["system", "prune", "-f"]);
    let checked = disk.succeed(&["system", "check"]);
    assert_eq!(checked, "0 images, 0 layers, 0 blobs: no fault\n");
    fs_err::remove_file(disk.on_disk("filler")).expect("removed");
    disk.succeed(&["build", "-q", "-t", "kept:2", "context"]);
}

/// A copy of a store may lack the index of the log, which is a file to be made then.
#[test]
fn a_file_system_without_a_name_left_is_full() {
    let Some(disk) = Disk::with("size=12m,nr_inodes=1000") else { return };
    disk.context(1, 64);
    disk.succeed(&["build", "-q", "-t", "kept:1", "context"]);
    fs_err::remove_file(disk.on_disk("store/kiln.db-shm")).expect("removed");
    disk.take_all_names();
    assert_eq!(disk.names(), ["kept:1"], "the index takes the name of the reserve");
    disk.take_all_names();
    fs_err::remove_file(disk.on_disk("store/kiln.db-shm")).expect("removed");
    disk.take_all_names();
    let (_, told, status) = disk.kiln(&["images"]);
    assert_eq!(status, 1, "{told}");
    is_clear(&told, &disk);
    fs_err::remove_dir_all(disk.on_disk("files")).expect("removed");
    disk.succeed(&["system", "prune", "-af"]);
    assert!(disk.names().is_empty());
}

/// Makes the store one of schema version 1, which a command before this one has written.
fn make_old(disk: &Disk) {
    // SQLite does not find its way to the disk from here.
    let here = disk.path("kiln.db");
    for end in ["", "-wal"] {
        let name = format!("kiln.db{end}");
        fs_err::copy(disk.on_disk(&format!("store/{name}")), disk.path(&name)).expect("copied");
    }
    let database = rusqlite::Connection::open(&here).expect("opened");
    let old = "ALTER TABLE layers DROP COLUMN snapshot_is_source; ALTER TABLE tags DROP COLUMN manifest; \
               PRAGMA user_version = 1";
    database.execute_batch(old).expect("changed");
    database.close().expect("closed");
    fs_err::write(disk.on_disk("store/kiln.db-wal"), "").expect("emptied");
    fs_err::copy(&here, disk.on_disk("store/kiln.db")).expect("copied");
}

#[test]
fn an_archive_that_does_not_fit_leaves_nothing() {
    let Some(disk) = Disk::new(4) else { return };
    disk.context(1, 6000);
    let root = disk.path("elsewhere");
    let elsewhere = ["--root", root.to_str().expect("a name")];
    disk.succeed(&[&elsewhere[..], &["build", "-q", "-t", "large:1", "context"]].concat());
    for form in ["docker-archive", "oci-archive", "oci-dir"] {
        let output = disk.path("disk/out");
        let words = ["save", "--format", form, "-o", output.to_str().expect("a name"), "large:1"];
        let (_, told, status) = disk.kiln(&[&elsewhere[..], &words].concat());
        let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("kiln: ")).collect();
        let cannot = format!("kiln: cannot save to {}: ", output.display());
        assert!(errors.len() == 1 && errors[0].starts_with(&cannot) && status == 1, "{told}");
        assert!(errors[0].contains("No space left on device"), "{told}");
        assert_eq!(fs_err::read_dir(disk.on_disk("")).expect("listed").count(), 0, "{form}");
    }
}

#[test]
fn a_build_over_the_cap_trims_the_cache() {
    // The cap is a tenth of the file system.
    let Some(disk) = Disk::new(20) else { return };
    let build = |number, name: &str| {
        disk.context(number, 600);
        disk.succeed(&["build", "-q", "-t", name, "context"]);
    };
    let cached = || {
        let listed =
            disk.succeed(&["system", "df", "-v", "--format", "{{range .BuildCache}}{{.Shared}} {{end}}"]);
        (listed.matches("true").count(), listed.matches("false").count())
    };
    build(0, "tagged:1");
    // Each of these takes the name from the one before, whose layer is cache then: three fit, and the last one's comes
    // after its successor has trimmed.
    for number in 1..=8 {
        build(number, "moved:1");
        disk.succeed(&["image", "prune", "-f"]);
        let (tagged, free) = cached();
        assert!(tagged == 2 && free <= 4, "after {number}: {tagged} {free}");
    }
    assert_eq!(cached(), (2, 4));
    assert_eq!(disk.names(), ["moved:1", "tagged:1"]);
}
