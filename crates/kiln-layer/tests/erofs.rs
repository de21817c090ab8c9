//! Layers mounted instead of unpacked: both must look the same.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kiln_layer::erofs::Unmountable;
use kiln_layer::{Error, Whiteouts};
use kiln_sys::erofs::MountError;
use kiln_sys::mount::Attributes;
use kiln_sys::overlay::{Overlay, TarMount, Upper};
use kiln_sys::root::{Directory, Root, Time};
use proptest::prelude::*;
use rustix::fs::FileType;
use support::{Tar, describe, unpack};

/// A layer both ways.
struct Both {
    host: tempfile::TempDir,
    mounted: OwnedFd,
}

impl Both {
    fn of(tar: &[u8]) -> Option<Self> {
        Self::at(tar, 0)
    }

    /// The tar starts `offset` bytes into its file. None where nothing can be mounted.
    fn at(tar: &[u8], offset: u64) -> Option<Self> {
        if !support::is_root() {
            support::skipped("needs root to mount");
            return None;
        }
        let host = tempfile::tempdir().expect("a temporary directory");
        fs_err::create_dir(host.path().join("unpacked")).expect("made");
        let walked = unpack(tar, &host.path().join("unpacked"), Whiteouts::OverlayTrusted).expect("unpacked");
        let mut data = fs_err::File::create(host.path().join("tar")).expect("created");
        std::io::Seek::seek(&mut data, std::io::SeekFrom::Start(offset)).expect("moved");
        data.write_all(tar).expect("written");
        let mut image = fs_err::File::create(host.path().join("image")).expect("created");
        let length = kiln_layer::erofs::write(&walked.index, offset, &mut image).expect("an image");
        assert_eq!(image.metadata().expect("stat").len(), length);
        let mounted = mount(&host.path().join("image"), &host.path().join("tar"))?;
        Some(Self { host, mounted })
    }

    fn unpacked(&self) -> PathBuf {
        self.host.path().join("unpacked")
    }

    /// For an overlay, in a mount namespace of the caller's own.
    fn image(&self) -> TarMount {
        let at = |name: &str| self.host.path().join(name);
        let _ = fs_err::create_dir(at("at"));
        TarMount { at: at("at"), metadata: at("image"), tar: at("tar") }
    }

    fn mounted(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.mounted.as_raw_fd()).into()
    }
}

fn mount(image: &Path, data: &Path) -> Option<OwnedFd> {
    let open = |path: &Path| fs_err::File::open(path).expect("opened");
    match kiln_sys::erofs::mount(open(image).as_fd(), open(data).as_fd()) {
        Ok(mounted) => Some(mounted),
        Err(error @ MountError::NotHere(_)) => {
            support::skipped(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What [`describe`] leaves out, path by path: links, size, attributes, and whether listing and file agree on the type.
fn details(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(PathBuf::new(), Directory::open(directory).expect("opened"))];
    found.insert(PathBuf::new(), attributes(&pending[0].1, OsStr::new("")));
    while let Some((path, directory)) = pending.pop() {
        for entry in directory.list().expect("listed") {
            let stat = directory.stat(&entry.name).expect("stat");
            let file_type = FileType::from_raw_mode(stat.st_mode);
            assert_eq!(entry.kind, file_type, "{path:?} {:?}", entry.name);
            let below = path.join(&entry.name);
            let (mut links, mut size) = (stat.st_nlink, stat.st_size);
            if file_type == FileType::Directory {
                (links, size) = (0, 0);
                pending.push((below.clone(), directory.open_directory(&entry.name).expect("opened")));
            }
            if file_type == FileType::CharacterDevice && stat.st_rdev == 0 {
                // All whiteouts of an image are one file.
                links = 0;
            }
            found.insert(below, format!("{links} {size} {}", attributes(&directory, &entry.name)));
        }
    }
    found
}

fn attributes(directory: &Directory, name: &OsStr) -> String {
    let found = kiln_sys::xattr::list(directory, name, |_| true).expect("listed");
    found.iter().map(|(name, value)| format!("{}={} ", name.escape_ascii(), value.escape_ascii())).collect()
}

fn check(both: &Both, test: &str) {
    let (unpacked, mounted) = (both.unpacked(), both.mounted());
    assert_eq!(describe(&mounted), describe(&unpacked), "{test}");
    assert_eq!(details(&mounted), details(&unpacked), "{test}");
}

fn owned(tar: Tar, uid: &str, gid: &str, mtime: &str) -> Tar {
    tar.pax(&[("gid", gid.as_bytes()), ("mtime", mtime.as_bytes()), ("uid", uid.as_bytes())])
}

fn attributed(tar: Tar, attributes: &[(&str, &[u8])]) -> Tar {
    let names: Vec<String> = attributes.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
    let records: Vec<(&str, &[u8])> =
        names.iter().zip(attributes).map(|(name, (_, value))| (name.as_str(), *value)).collect();
    tar.pax(&records)
}

/// `security.capability` version 2: effective cap_net_raw.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn every_kind() -> Tar {
    let mut tar = Tar::new().dir("./", 0o1751).dir("d", 0o2770).dir("empty", 0o000).file("d/empty", b"");
    for size in [1, 511, 512, 513, 4096, 100_000] {
        let content: Vec<u8> = (0..size).map(|byte| (byte % 251) as u8).collect();
        tar = tar.file(&format!("d/file{size}"), &content);
    }
    tar = tar.file_mode("d/setuid", b"x", 0o6755).file_mode("d/none", b"x", 0);
    tar = owned(tar, "4294967294", "70000", "4102444800.75").file("d/owned", b"x");
    tar = owned(tar, "1", "2", "-1").dir("d/old", 0o500);
    tar = owned(tar, "70000", "3", "0").symlink("x", "d/owned-link");
    for length in [1, 59, 60, 447, 448, 449, 511, 512, 513, 4000, 4095] {
        let target = "t".repeat(length);
        tar = tar.pax(&[("linkpath", target.as_bytes())]).symlink("x", &format!("d/link{length}"));
    }
    tar = tar.link("d/file1", "d/hard").link("d/link59", "d/hard-link").link("d/hard", "hard");
    tar = tar.node(b'6', "fifo", (0, 0)).link("fifo", "d/fifo");
    tar = tar.node(b'3', "char", (1, 3)).node(b'4', "block", (259, 70_000)).node(
        b'3',
        "largest",
        (4095, 1_048_575),
    );
    tar = tar.link("char", "d/char");
    for name in ["!", "-", ".a", "...", "..a", "~", "a b", "\u{e9}"] {
        tar = tar.file(name, name.as_bytes());
    }
    for name in [vec![b'n'; 255], vec![0xff, 0x01], b"new\nline".to_vec()] {
        tar = tar.pax(&[("path", &name)]).file("x", &name);
    }
    tar = attributed(tar, &[("security.capability", CAPABILITY)]).file("capable", b"x");
    let many: Vec<(String, Vec<u8>)> = (0..30).map(|n| (format!("user.a{n}"), vec![b'v'; n])).collect();
    let many: Vec<(&str, &[u8])> =
        many.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    tar = attributed(tar, &many).file("attributed", b"content");
    let mixed: [(&str, &[u8]); 4] =
        [("trusted.t", b"1"), ("unknown.u", b"2"), ("user.e", b""), ("user.v", b"3\0\n")];
    tar = attributed(tar, &mixed).dir("attributed-dir", 0o755);
    tar = attributed(tar, &mixed).symlink("a", "attributed-link").link("attributed", "d/attributed");
    let long = "l".repeat(440);
    let records = [
        ("SCHILY.xattr.user.v", &b"3\0\n"[..]),
        ("SCHILY.xattr.trusted.t", b"1"),
        ("linkpath", long.as_bytes()),
    ];
    tar = tar.pax(&records).symlink("a", "attributed-long-link");
    tar = tar
        .file(".wh.gone", b"")
        .file("d/.wh.gone", b"")
        .dir("opaque", 0o700)
        .file("opaque/.wh..wh..opq", b"");
    tar.file("opaque/inside", b"x").dir("remade", 0o755).file(".wh.remade", b"")
}

/// What later entries make of earlier ones.
fn replaced() -> Tar {
    Tar::new()
        .dir("./", 0o755)
        .file("a", b"first")
        .link("a", "kept")
        .file("a", b"second")
        .link("a", "second")
        .link("a", "a")
        .dir("d", 0o700)
        .file("d/f", b"x")
        .file("d", b"a file now")
        .file("e", b"x")
        .dir("e", 0o711)
        .file("e/f", b"x")
        .dir("e", 0o755)
        .symlink("e", "link")
        .file("link/through", b"x")
        .dir("./", 0o1777)
}

#[test]
fn every_kind_of_entry_looks_as_if_unpacked() {
    for (test, tar) in [("kinds", every_kind().end()), ("replaced", replaced().end())] {
        for offset in [0, 512, (5 << 30) + 1024] {
            let Some(both) = Both::at(&tar, offset) else { return };
            check(&both, test);
        }
    }
    let Some(both) = Both::of(&Tar::new().file("f", b"x").end()) else { return };
    let root = Directory::open(&both.mounted()).expect("opened").stat_self().expect("stat");
    assert_eq!((root.st_mode & 0o7777, root.st_uid, root.st_mtime), (0o755, 0, 0), "no entry for the root");
    let Some(both) = Both::of(&Tar::new().end()) else { return };
    assert!(Directory::open(&both.mounted()).expect("opened").list().expect("listed").is_empty());
}

#[test]
fn large_trees_look_as_if_unpacked() {
    let mut tar = Tar::new().dir("./", 0o755).dir("many", 0o755);
    for number in 0..12_000 {
        let name = format!("many/{number}{}", "x".repeat(number % 60));
        tar = if number % 100 == 0 { tar.dir(&name, 0o755) } else { tar.file(&name, name.as_bytes()) };
    }
    let mut path = String::from("deep");
    for level in 0..120 {
        tar = tar.pax(&[("path", path.as_bytes())]).dir("x", 0o755);
        tar = tar.pax(&[("path", format!("{path}/f").as_bytes())]).file("x", path.as_bytes());
        path = format!("{path}/{}", level % 7);
    }
    for directory in 0..100 {
        tar = tar.dir(&format!("d{directory}"), 0o755);
        for number in 0..directory % 40 {
            let header = format!("d{directory}/{}", "n".repeat(1 + number % 80));
            tar = tar.file(&format!("{header}{number}"), &vec![b'c'; number * 40]);
        }
    }
    let Some(both) = Both::of(&tar.end()) else { return };
    check(&both, "large");
    // Each name is found by its path, too, and no other.
    let directory = Directory::open(&both.mounted()).expect("opened").open_directory(OsStr::new("many"));
    let directory = directory.expect("opened");
    for number in 0..12_000 {
        let name = format!("{number}{}", "x".repeat(number % 60));
        directory.stat(OsStr::new(&name)).expect(&name);
        directory.stat(OsStr::new(&format!("{name}x"))).expect_err("one longer");
    }
    for missing in ["!", "~", ".-", "..."] {
        directory.stat(OsStr::new(missing)).expect_err(missing);
    }
}

#[test]
fn attributes_may_be_larger_than_disks_take() {
    let value = vec![b'v'; 65_000];
    let large: [(&str, &[u8]); 3] = [("user.a", &value), ("user.b", &value), ("user.c", b"c")];
    let tar = attributed(Tar::new(), &large).file("f", b"content").file("g", b"x").end();
    let index = support::index(&tar).expect("walked").index;
    let host = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| host.path().join(name);
    fs_err::write(at("tar"), &tar).expect("written");
    let mut image = fs_err::File::create(at("image")).expect("created");
    kiln_layer::erofs::write(&index, 0, &mut image).expect("an image");
    if !support::is_root() {
        support::skipped("needs root to mount");
        return;
    }
    let Some(mounted) = mount(&at("image"), &at("tar")) else { return };
    let path = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
    let directory = Directory::open(&path).expect("opened");
    for (name, value) in large {
        let found = kiln_sys::xattr::get(&directory, OsStr::new("f"), name.as_bytes()).expect("read");
        assert_eq!(found.as_deref(), Some(value), "{name}");
    }
    assert_eq!(fs_err::read(path.join("f")).expect("read"), b"content");
}

#[test]
fn the_mount_keeps_its_files() {
    let Some(both) = Both::of(&Tar::new().file("f", b"content").end()) else { return };
    for name in ["image", "tar"] {
        fs_err::remove_file(both.host.path().join(name)).expect("removed");
    }
    assert_eq!(fs_err::read(both.mounted().join("f")).expect("read"), b"content");
    fs_err::write(both.mounted().join("f"), b"x").expect_err("read-only");
}

#[test]
fn programs_of_a_mounted_layer_run() {
    let Ok(program) = fs_err::read("/bin/true") else {
        support::skipped("needs /bin/true");
        return;
    };
    let tar = Tar::new().file("before", b"x").file_mode("true", &program, 0o755).file("after", b"x").end();
    let Some(both) = Both::of(&tar) else { return };
    let status = std::process::Command::new(both.mounted().join("true")).status().expect("started");
    assert!(status.success(), "{status}");
}

#[test]
fn devices_of_a_mounted_layer_are_dead() {
    let Some(both) = Both::of(&Tar::new().node(b'3', "null", (1, 3)).end()) else { return };
    let error = fs_err::read(both.mounted().join("null")).expect_err("a device");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn what_a_damaged_image_is_refused_with() {
    if !support::is_root() {
        support::skipped("needs root to mount");
        return;
    }
    let host = tempfile::tempdir().expect("a temporary directory");
    let path = host.path().join("zeros");
    fs_err::write(&path, vec![0; 8192]).expect("written");
    let file = fs_err::File::open(&path).expect("opened");
    kiln_sys::erofs::mount(file.as_fd(), file.as_fd()).expect_err("no image");
}

#[test]
fn a_mounted_layer_is_a_lower_of_overlays() {
    let lower =
        every_kind().dir("gone", 0o755).file("gone/f", b"x").dir("remade", 0o755).file("remade/old", b"x");
    let lower = lower.dir("opaque", 0o755).file("opaque/old", b"x").file("removed", b"x");
    let upper = Tar::new()
        .file(".wh.gone", b"")
        .file(".wh.removed", b"")
        .dir("remade", 0o755)
        .file(".wh.remade", b"");
    let upper = upper.file("remade/new", b"x").dir("opaque", 0o750).file("opaque/.wh..wh..opq", b"");
    let upper = upper.file("new", b"x").dir("d", 0o755).file("d/file513", b"other").dir("./", 0o755);
    let Some(lower_layer) = Both::of(&lower.end()) else { return };
    let Some(upper_layer) = Both::of(&upper.end()) else { return };
    // The mounts go with the thread, before the directories that they are on.
    let compared = std::thread::scope(|scope| scope.spawn(|| compare(&lower_layer, &upper_layer)).join());
    compared.expect("they are the same");
}

fn compare(lower_layer: &Both, upper_layer: &Both) {
    kiln_sys::process::separate_mounts().expect("root has a mount namespace of its own");
    let host = tempfile::tempdir().expect("a temporary directory");
    let merged = |name: &str, lowers: [PathBuf; 2]| {
        let make = |part: &str| {
            let path = host.path().join(format!("{name}-{part}"));
            fs_err::create_dir(&path).expect("made");
            Directory::open(&path)
                .expect("opened")
                .set_self(Some(0o755), None, Some(Time::default()))
                .expect("set");
            path
        };
        let upper = Some(Upper { upper: make("upper"), work: make("work") });
        let tars = match name {
            "mounted" => vec![upper_layer.image(), lower_layer.image()],
            _ => Vec::new(),
        };
        let overlay = Overlay { tars, lowers: lowers.into(), upper, userxattr: false, volatile: true };
        overlay.mount(Attributes::default()).expect("mounted")
    };
    let path = |mount: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    let unpacked = merged("unpacked", [upper_layer.unpacked(), lower_layer.unpacked()]);
    let mounted = merged("mounted", [upper_layer.image().at, lower_layer.image().at]);
    let (unpacked, mounted) = (path(&unpacked), path(&mounted));
    let same = |step: &str| {
        assert_eq!(describe(&mounted), describe(&unpacked), "{step}");
        assert_eq!(details(&mounted), details(&unpacked), "{step}");
    };
    same("as they are");
    let device = |name: &str| fs_err::symlink_metadata(mounted.join(name)).expect(name).dev();
    for name in ["d", "d/file1", "d/file513", "attributed-link", "fifo"] {
        assert_eq!(device(name), device(""), "{name} is on the same file system");
    }
    let found = describe(&mounted);
    assert!(
        found.contains_key("/remade/new") && found.contains_key("/new") && found.contains_key("/d/file512")
    );
    for hidden in ["/gone", "/gone/f", "/removed", "/remade/old", "/opaque/old", "/opaque/inside"] {
        assert!(!found.contains_key(hidden), "{hidden}");
    }
    // Changing what a lower holds copies it up.
    for root in [&mounted, &unpacked] {
        let at = |name: &str| root.join(name);
        let directory = Directory::open(root).expect("opened");
        for name in ["d/file100000", "d/hard", "attributed"] {
            let mut file = fs_err::OpenOptions::new().append(true).open(at(name)).expect("opened");
            file.write_all(b"appended").expect("written");
        }
        for name in ["capable", "char", "fifo", "attributed-dir", "d"] {
            directory.set_mode(OsStr::new(name), 0o701).expect("set");
        }
        directory.set_owner(OsStr::new("attributed-long-link"), 5, 6).expect("set");
        fs_err::rename(at("d/file511"), at("attributed-dir/moved")).expect("moved");
        fs_err::remove_file(at("d/file4096")).expect("removed");
        fs_err::remove_dir(at("empty")).expect("removed");
        // When it was changed is not the same.
        for (parent, names) in
            [("d", &["file100000", "hard"][..]), (".", &["attributed", "hard", "d", "attributed-dir"])]
        {
            let parent = Root::open(root).expect("opened").open_directory(Path::new(parent)).expect("opened");
            for name in names {
                parent.set_modified(name, Time::default()).expect("set");
            }
        }
        directory.set_self(None, None, Some(Time::default())).expect("set");
    }
    same("copied up");
}

fn refused(tar: Tar) -> Unmountable {
    let index = support::index(&tar.end()).expect("walked").index;
    let mut image = Vec::new();
    match kiln_layer::erofs::write(&index, 0, &mut image) {
        Err(Error::Unmountable(reason)) if image.is_empty() => reason,
        other => panic!("{other:?}, {} bytes", image.len()),
    }
}

#[test]
fn no_image_is_better_than_a_wrong_one() {
    let attribute =
        |name: &str, value: &[u8]| refused(attributed(Tar::new(), &[(name, value)]).file("f", b"x"));
    assert_eq!(refused(Tar::new().file("implied/f", b"x")), Unmountable::NotAlone);
    assert_eq!(refused(Tar::new().link("lower", "f")), Unmountable::NotAlone);
    let dirty = Tar::new().file("f", &[b"x".as_slice(), &[0; 510], b"!"].concat());
    assert_eq!(support::index(&dirty.clone().end()).expect("walked").index.entry_count(), 1);
    let mut dirty = dirty;
    dirty.bytes[124..136].copy_from_slice(b"00000000777\0");
    support::checksum(&mut dirty.bytes[..512]);
    assert_eq!(refused(dirty), Unmountable::Padding);
    let sparse =
        [("GNU.sparse.size", &b"2000"[..]), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"1000,1")];
    assert_eq!(refused(Tar::new().pax(&sparse).file("f", b"x")), Unmountable::Sparse);
    assert_eq!(attribute("system.posix_acl_access", b"x"), Unmountable::Attribute);
    assert_eq!(attribute("security.capability", b"x"), Unmountable::Attribute);
    assert_eq!(attribute("user.", b"x"), Unmountable::Attribute);
    assert_eq!(attribute(&format!("user.{}", "n".repeat(251)), b"x"), Unmountable::Attribute);
    assert_eq!(attribute("user.large", &vec![b'v'; 65_536]), Unmountable::Attribute);
    let value = vec![b'v'; 60_000];
    let many: Vec<(String, &[u8])> =
        (0..5).map(|number| (format!("user.{number}"), value.as_slice())).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(refused(attributed(Tar::new(), &many).file("f", b"x")), Unmountable::Attribute);
    assert_eq!(refused(Tar::new().node(b'4', "b", (4096, 0))), Unmountable::Device);
    assert_eq!(refused(Tar::new().node(b'3', "c", (1, 1 << 20))), Unmountable::Device);
    let index = support::index(&Tar::new().file("f", b"x").end()).expect("walked").index;
    for offset in [1, 511, 2 << 40, u64::MAX - 511] {
        let error = kiln_layer::erofs::write(&index, offset, &mut Vec::new()).expect_err("too far");
        assert!(matches!(error, Error::Unmountable(Unmountable::Size)), "{offset}: {error}");
    }
}

#[test]
fn the_image_is_pinned() {
    let index = support::index(&every_kind().end()).expect("walked").index;
    let image = |offset| {
        let mut image = Vec::new();
        kiln_layer::erofs::write(&index, offset, &mut image).expect("an image");
        kiln_oci::Digest::of(&image).to_string()
    };
    assert_eq!(image(0), image(0));
    assert_ne!(image(0), image(512));
    assert_eq!(image(0), "sha256:9473438f290e9f2eae87af64cd7578d68b7c95ce2be8b4a8b49df714fcff115e");
}

/// Few names, among them beginnings of each other, and those that sort differently with a slash behind them.
const PATH: &str = "(a|b|-|a[.+-]|[.]a)(/(a|b|-|a[.+-]|[.]a)){0,2}";

/// One entry of a random layer.
fn step(tar: Tar, (kind, path, other): (u8, String, String)) -> Tar {
    match kind {
        0 | 1 => tar.dir(&path, 0o700),
        2 | 3 => tar.file(&path, format!("{path} {other}").as_bytes()),
        4 => tar.symlink(&other, &path),
        5 | 6 => tar.link(&other, &path),
        7 => tar.node(b'6', &path, (0, 0)),
        8 => {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            tar.file(&format!("{parent}/.wh.{name}"), b"")
        }
        _ => tar.file(&format!("{path}/.wh..wh..opq"), b""),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_look_as_if_unpacked(
        steps in proptest::collection::vec((0..10_u8, PATH, PATH), 1..14)
    ) {
        let mut tar = Tar::new().dir("./", 0o755);
        for name in ["-", "a", "b", "a/a", "a/b", "b/-"] {
            tar = tar.dir(name, 0o750);
        }
        let tar = steps.into_iter().fold(tar, step).end();
        if !support::is_root() {
            support::skipped("needs root to make whiteouts");
            return Ok(());
        }
        let host = tempfile::tempdir().expect("a temporary directory");
        let unpacked = unpack(&tar, host.path(), Whiteouts::OverlayTrusted);
        let indexed = support::index(&tar);
        // Layers that need lower ones are another test's subject.
        if indexed.as_ref().is_ok_and(|walk| !walk.index.stands_alone()) {
            return Ok(());
        }
        assert_eq!(indexed.is_ok(), unpacked.is_ok(), "{:?} {:?}", indexed.err(), unpacked.err());
        if unpacked.is_ok() && let Some(both) = Both::of(&tar) {
            check(&both, "random");
        }
    }
}

/// A link into a lower layer takes the place of a directory, as any other entry does; what comes there after it is new.
/// Only unpacking tells what such a link finds, so there is no image of its layer.
#[test]
fn a_link_into_a_lower_layer_replaces_what_is_there() {
    let tar =
        Tar::new().dir("./", 0o755).dir("b", 0o755).dir("b/old", 0o755).link("nowhere", "b").dir("b", 0o700);
    let host = tempfile::tempdir().expect("a temporary directory");
    let index = unpack(&tar.end(), host.path(), Whiteouts::Apply).expect("unpacked").index;
    let there: Vec<PathBuf> = describe(host.path()).into_keys().map(PathBuf::from).collect();
    assert_eq!(there, [PathBuf::new(), "/b".into()]);
    let error = kiln_layer::erofs::write(&index, 0, &mut Vec::new()).expect_err("refused");
    assert!(matches!(error, Error::Unmountable(Unmountable::NotAlone)), "{error}");
}

/// A mark is gone with the directory that it was on, and hides nothing where the layer itself gives a file.
#[test]
fn marks_go_with_what_they_mark() {
    let layer = || Tar::new().dir("./", 0o755);
    for (tar, opaque) in [
        (layer().dir("d", 0o755).file("d/.wh..wh..opq", b"").dir("d", 0o700), true),
        (layer().dir("d", 0o755).file("d/.wh..wh..opq", b"").file("d", b"").dir("d", 0o755), false),
        (layer().file(".wh.d", b"").file("d", b"").dir("d", 0o755), false),
        (layer().file("d", b"").file(".wh.d", b"").dir("d", 0o755), false),
        (layer().file("d", b"").dir("d", 0o755).file(".wh.d", b""), true),
    ] {
        let tar = tar.end();
        let index = support::index(&tar).expect("walked").index;
        assert_eq!(index.has_marks(), opaque, "{}", String::from_utf8_lossy(&tar));
        if let Some(both) = Both::of(&tar) {
            check(&both, "marks");
        }
    }
}

/// What comes below a file is refused without unpacking, too, whatever takes the file's place later.
#[test]
fn nothing_is_below_a_file() {
    let layer = || Tar::new().dir("./", 0o755).file("d", b"");
    for tar in [
        layer().file("d/f", b""),
        layer().file("d/f", b"").dir("d", 0o755),
        layer().file("d/f", b"").file("d", b"again"),
        layer().file("d/.wh..wh..opq", b"").dir("d", 0o755),
        layer().file("d/e/.wh.f", b"").dir("d", 0o755),
    ] {
        let error = support::index(&tar.end()).expect_err("refused");
        assert!(error.to_string().contains("its parent is not a directory"), "{error}");
    }
    let taken = layer().dir("d", 0o755).file("d/f", b"").file("d", b"").dir("d", 0o755).file("d/f", b"");
    assert!(support::index(&taken.end()).is_ok());
    let inside = Tar::new().dir("./", 0o755).dir("d", 0o755).file("d/f", b"").link("d/f", "d");
    let error = support::index(&inside.end()).expect_err("refused");
    assert!(error.to_string().contains("the directory that holds its target"), "{error}");
}
