//! What other readers make of the store and of what goes out: skopeo and umoci. Run where they are installed, as root.

#[path = "../../../tests/skipped.rs"]
mod skipped;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_layer::{Kind, Metadata, tar};
use serde_json::json;

/// A layer's tar.
#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn put(mut self, path: &str, kind: Kind, mode: u32, change: impl FnOnce(&mut Metadata)) -> Self {
        let mut metadata = Metadata::new(kind, mode);
        metadata.modified.seconds = 1_600_000_000 + i64::try_from(self.0.len()).expect("few bytes");
        change(&mut metadata);
        tar::write_header(path.as_bytes(), &metadata, &mut self.0);
        self
    }

    fn file(mut self, path: &str, mode: u32, text: &str, change: impl FnOnce(&mut Metadata)) -> Self {
        let size = text.len() as u64;
        self = self.put(path, Kind::Regular, mode, |metadata| {
            metadata.size = size;
            change(metadata);
        });
        self.0.extend_from_slice(text.as_bytes());
        tar::pad(size, &mut self.0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn layers() -> [Vec<u8>; 3] {
    let link = |target: &'static str| move |metadata: &mut Metadata| metadata.link = target.into();
    let owner = |uid, gid| move |metadata: &mut Metadata| (metadata.uid, metadata.gid) = (uid, gid);
    let device = |major, minor| move |metadata: &mut Metadata| metadata.device = (major, minor);
    // Capabilities, version 2: CAP_NET_RAW, permitted and effective.
    let mut capability = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
    capability.resize(20, 0);
    let below = Layer::default()
        .put("etc", Kind::Directory, 0o755, |_| {})
        .file("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\n", |_| {})
        .file("etc/old", 0o600, "goes\n", |_| {})
        .put("bin", Kind::Directory, 0o755, |_| {})
        .file("bin/su", 0o4755, "su\n", |_| {})
        .file("bin/ping", 0o755, "ping\n", |metadata| {
            metadata.xattrs = vec![(b"security.capability".to_vec(), capability)];
        })
        .put("bin/sh", Kind::Symlink, 0o777, link("../bin/su"))
        .put("bin/also-su", Kind::HardLink, 0o4755, link("bin/su"))
        .put("home", Kind::Directory, 0o1777, owner(1000, 1001))
        .file("home/notes", 0o640, "mine\n", |metadata| {
            (metadata.uid, metadata.gid) = (1000, 70_000);
            metadata.xattrs = vec![(b"user.note".to_vec(), b"a value".to_vec())];
        })
        .put("home/pipe", Kind::Fifo, 0o622, owner(1000, 1001))
        .put("dev", Kind::Directory, 0o755, |_| {})
        .put("dev/null", Kind::CharacterDevice, 0o666, device(1, 3))
        .put("dev/disk", Kind::BlockDevice, 0o660, device(7, 300))
        .put("hidden", Kind::Directory, 0o755, |_| {})
        .file("hidden/below", 0o644, "hidden\n", |_| {})
        .put("gone", Kind::Directory, 0o755, |_| {})
        .file("gone/deep", 0o644, "gone\n", |_| {})
        .file("becomes-a-directory", 0o644, "a file\n", |_| {});
    let middle = Layer::default()
        .file("etc/.wh.old", 0, "", |_| {})
        .file(".wh.gone", 0, "", |_| {})
        .put("hidden", Kind::Directory, 0o700, owner(5, 6))
        .file("hidden/.wh..wh..opq", 0, "", |_| {})
        .file("hidden/above", 0o644, "shown\n", |_| {})
        .put("becomes-a-directory", Kind::Directory, 0o2750, |_| {})
        .file("becomes-a-directory/inside", 0o444, "inside\n", |_| {});
    let above = Layer::default()
        .file("etc/passwd", 0o600, "changed\n", owner(8, 9))
        .put("gone", Kind::Symlink, 0o777, link("/etc/passwd"))
        .file("home/ümläut \u{1f525}", 0o644, "name\n", |_| {});
    [below.end(), middle.end(), above.end()]
}

/// A docker archive of an image.
fn archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| kiln_oci::Digest::of(layer)).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "config": { "Labels": { "name": name } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let paths: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest = json!([{ "Config": "c.json", "RepoTags": [name], "Layers": paths }]);
    let mut out = Layer::default().file("manifest.json", 0o644, &manifest.to_string(), |_| {}).file(
        "c.json",
        0o644,
        &config.to_string(),
        |_| {},
    );
    for (path, layer) in paths.iter().zip(layers) {
        let size = layer.len() as u64;
        out = out.put(path, Kind::Regular, 0o644, |metadata| metadata.size = size);
        out.0.extend_from_slice(layer);
        tar::pad(size, &mut out.0);
    }
    out.end()
}

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    /// `None`, and a line that says so, where the programs are missing.
    fn new(programs: &[&str]) -> Option<Self> {
        let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
        let mut missing: Vec<&str> = programs.iter().copied().filter(|program| !is_there(program)).collect();
        if !rustix::process::geteuid().is_root() {
            missing.push("root");
        }
        if missing.is_empty() {
            return Some(Self { directory: tempfile::tempdir().expect("a directory") });
        }
        skipped::skipped(&format!("what {} read: needs {}", programs.join(" and "), missing.join(", ")));
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Standard output of a program that succeeds.
    #[track_caller]
    fn run(&self, program: &str, words: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(words).env("KILN_ROOT", self.path("store")).env("HOME", self.directory.path());
        let output = command.current_dir(self.directory.path()).stdin(Stdio::null()).output().expect(program);
        assert!(output.status.success(), "{program} {words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn kiln(&self, words: &[&str]) -> String {
        self.run(env!("CARGO_BIN_EXE_kiln"), words)
    }

    fn load(&self, name: &str, layers: &[Vec<u8>]) {
        fs_err::write(self.path("in.tar"), archive(name, layers)).expect("written");
        self.kiln(&["load", "-q", "-i", "in.tar"]);
    }
}

/// All that can be told of a file but how many names it has: umoci copies a file that a higher layer changes.
fn attributes(path: &Path) -> String {
    let found = fs_err::symlink_metadata(path).expect("a status");
    let kind = found.file_type();
    let content = match () {
        () if kind.is_symlink() => fs_err::read_link(path).expect("read").display().to_string(),
        () if kind.is_file() => String::from_utf8_lossy(&fs_err::read(path).expect("read")).into_owned(),
        () if kind.is_block_device() || kind.is_char_device() => format!("{:x}", found.rdev()),
        () => String::new(),
    };
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).expect("listed");
    let mut xattrs = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("read");
        xattrs.insert(String::from_utf8_lossy(name).into_owned(), value[..length].to_vec());
    }
    let (mode, owner, time) = (found.mode(), (found.uid(), found.gid()), (found.mtime(), found.mtime_nsec()));
    format!("{mode:o} {owner:?} {time:?} {content:?} {xattrs:?}")
}

fn tree(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let below = path.strip_prefix(root).expect("below").as_os_str().as_bytes().to_vec();
        if !below.is_empty() {
            found.insert(below, attributes(&path));
        }
        if fs_err::symlink_metadata(&path).expect("a status").is_dir() {
            waiting
                .extend(fs_err::read_dir(&path).expect("listed").map(|entry| entry.expect("listed").path()));
        }
    }
    found
}

#[test]
fn umoci_unpacks_what_kiln_unpacks() {
    let Some(bench) = Bench::new(&["skopeo", "umoci"]) else { return };
    bench.load("app:1", &layers());
    bench.run("skopeo", &["--insecure-policy", "copy", "-q", "oci:store:app:1", "oci:layout:app"]);
    bench.run("umoci", &["unpack", "--image", "layout:app", "bundle"]);
    bench.kiln(&["image", "unpack", "app:1", "root"]);
    let (theirs, ours) = (tree(&bench.path("bundle/rootfs")), tree(&bench.path("root")));
    for path in ours.keys().chain(theirs.keys()) {
        let name = String::from_utf8_lossy(path);
        assert_eq!(ours.get(path), theirs.get(path), "{name}: kiln's, and umoci's");
    }
    assert_eq!((ours.len(), ours.contains_key(&b"hidden/above"[..])), (19, true));
    assert!(!ours.contains_key(&b"gone/deep"[..]) && !ours.contains_key(&b"hidden/below"[..]));
}

/// By its name as people write it, which is another one for each: a tag alone would be ambiguous.
#[test]
fn skopeo_finds_each_image_of_a_layout() {
    let Some(bench) = Bench::new(&["skopeo"]) else { return };
    let names = ["app:latest", "other:latest", "busybox:1.37.0-glibc", "localhost:5000/team/app:latest"];
    for name in names {
        bench.load(name, &[Layer::default().file("name", 0o644, name, |_| {}).end()]);
    }
    bench.kiln(&[&["save", "--format", "oci-dir", "-o", "saved"][..], &names].concat());
    bench.kiln(&[&["save", "--format", "oci-archive", "-o", "saved.tar"][..], &names].concat());
    for place in ["oci:store", "oci:saved", "oci-archive:saved.tar"] {
        for name in names {
            let config = bench.run("skopeo", &["inspect", "--config", &format!("{place}:{name}")]);
            assert!(config.contains(&format!("\"name\": \"{name}\"")), "{place}:{name}: {config}");
        }
    }
}
