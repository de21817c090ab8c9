//! A step's changes on a real overlay: what is captured, what the upper directory is afterwards, and what a view says.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_layer::{
    Capture, Change, Changes, ContentSource, Copied, Kind, LayerContents, LayerIndex, Limits, Marks, Options,
    Owner, Owners, RootView, Stub, Unpack, Whiteouts, capture, copy, diff, note_copied, walk,
};
use kiln_sys::root::Root;
use support::{Tar, describe, unpack};

fn base() -> Tar {
    Tar::new()
        .dir("etc", 0o755)
        .file("etc/passwd", b"root")
        .file("etc/group", b"root")
        .dir("gone", 0o755)
        .file("gone/file", b"x")
        .dir("remade", 0o755)
        .file("remade/old", b"x")
        .dir("untouched", 0o755)
        .file("untouched/file", b"x")
        .file("touched", b"same")
        .file("mode", b"same")
        .file("replaced", b"old")
        .symlink("/etc", "link")
}

/// What a step does, in a root that looks like [`base`].
fn step(root: &Path) {
    let at = |path: &str| root.join(path);
    let write = |path: &str, text: &str| fs_err::write(at(path), text).expect(path);
    write("etc/passwd", "root and more");
    write("new", "new");
    fs_err::hard_link(at("new"), at("new-link")).expect("linked");
    fs_err::remove_dir_all(at("gone")).expect("removed");
    fs_err::remove_dir_all(at("remade")).expect("removed");
    fs_err::create_dir(at("remade")).expect("made");
    write("remade/new", "new");
    write("temporary", "");
    fs_err::remove_file(at("temporary")).expect("removed");
    // Changed and changed back: copied up, yet the same.
    for path in ["touched", "untouched/file", "untouched"] {
        let mode = fs_err::metadata(at(path)).expect(path).permissions();
        fs_err::set_permissions(at(path), std::fs::Permissions::from_mode(0o700)).expect(path);
        fs_err::set_permissions(at(path), mode).expect(path);
    }
    fs_err::set_permissions(at("mode"), std::fs::Permissions::from_mode(0o600)).expect("set");
    fs_err::remove_file(at("replaced")).expect("removed");
    fs_err::create_dir(at("replaced")).expect("made");
    fs_err::remove_file(at("link")).expect("removed");
    drop(std::os::unix::net::UnixListener::bind(at("socket")).expect("bound"));
    write("etc/resolv.conf", "");
}

fn entries(index: &LayerIndex) -> Vec<(String, Kind)> {
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    index.tree().map(|entry| entry.expect("read")).map(|entry| (shown(entry.path()), entry.kind())).collect()
}

/// The entries of what [`step`] changed; the stub of a mount is one if nobody says that it is a stub.
fn left_by_step(with_stub: bool) -> Vec<(String, Kind)> {
    let entries = [
        ("etc", Kind::Directory),
        ("etc/passwd", Kind::Regular),
        ("etc/resolv.conf", Kind::Regular),
        ("gone", Kind::Whiteout),
        ("link", Kind::Whiteout),
        ("mode", Kind::Regular),
        ("new", Kind::Regular),
        ("new-link", Kind::HardLink),
        ("remade", Kind::Directory),
        ("remade", Kind::Opaque),
        ("remade/new", Kind::Regular),
        ("replaced", Kind::Directory),
    ];
    let left = entries.into_iter().filter(|(path, _)| with_stub || *path != "etc/resolv.conf");
    left.map(|(path, kind)| (path.to_owned(), kind)).collect()
}

struct Mounted {
    target: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.target, rustix::mount::UnmountFlags::empty());
    }
}

#[test]
fn an_upper_directory_becomes_layer_and_snapshot() {
    if !support::is_root() {
        support::skipped("needs root to mount an overlay");
        return;
    }
    let host = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| host.path().join(name);
    for name in ["lower", "upper", "work", "merged", "again"] {
        fs_err::create_dir(at(name)).expect("made");
    }
    let lower = unpack(&base().end(), &at("lower"), Whiteouts::OverlayTrusted).expect("unpacked");
    let view = RootView::new(vec![Arc::new(lower.index)]);
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=nofollow",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let options = std::ffi::CString::new(options).expect("no NUL");
    let mounted = rustix::mount::mount(
        "overlay",
        at("merged"),
        "overlay",
        rustix::mount::MountFlags::empty(),
        Some(options.as_c_str()),
    );
    if let Err(error) = mounted {
        support::skipped(&format!("an overlay cannot be mounted here: {error}"));
        return;
    }
    let mounted = Mounted { target: at("merged") };
    step(&at("merged"));
    drop(mounted);

    let root = Root::open(&at("upper")).expect("opened");
    root.directory().set_self(Some(0o755), None, None).expect("set");
    let stub = Stub { path: b"etc/resolv.conf".to_vec(), parent: None };
    let request = Capture {
        root: &root,
        lower: &view,
        changes: Changes::Upper(Marks::Trusted),
        owners: Owners::Files,
        stubs: std::slice::from_ref(&stub),
        clamp: None,
        go_on: &|| Ok(()),
    };
    let mut tar = Vec::new();
    let captured = capture(&request, Some(&mut tar)).expect("captured");
    assert_eq!(entries(&captured.index), left_by_step(false));
    assert!(captured.index.stands_alone());

    // The tar says the same, and unpacked it is what the upper directory is now.
    let walked = unpack(&tar, &at("again"), Whiteouts::OverlayTrusted).expect("unpacked");
    assert_eq!(walked.diff_id, captured.diff_id);
    let (mut upper, mut again) = (describe(&at("upper")), describe(&at("again")));
    upper.remove("");
    again.remove("");
    assert_eq!(upper, again);

    // Captured again, it is the same layer.
    let twice = capture(&Capture { stubs: &[], ..request }, None).expect("captured");
    assert_eq!(twice.diff_id, captured.diff_id);

    // The same step in a copied root is the same layer.
    fs_err::create_dir(at("copy")).expect("made");
    let (copied, copy) = copied(&view, &at("copy"));
    step(&at("copy"));
    let clamp = Some(1_600_000_000);
    let clamped = capture(&Capture { clamp, ..request }, None).expect("captured");
    let request_for_copy = Capture { root: &copy, changes: Changes::Copy(&copied), clamp, ..request };
    let in_copy = capture(&request_for_copy, None).expect("captured");
    assert_eq!(entries(&in_copy.index), entries(&clamped.index));
    assert_eq!(in_copy.diff_id, clamped.diff_id);

    let both = RootView::new(vec![Arc::clone(&view.layers()[0]), Arc::new(captured.index)]);
    let exists = |path: &str| both.lookup(path.as_bytes()).expect("read").is_some();
    assert!(exists("etc/group") && exists("remade/new") && exists("new-link"));
    assert!(!exists("gone") && !exists("gone/file") && !exists("remade/old") && !exists("link"));
    let changes: Vec<(String, Change)> = diff(&view, &both)
        .expect("compared")
        .into_iter()
        .map(|difference| (String::from_utf8_lossy(&difference.path).into_owned(), difference.change))
        .collect();
    let expected = [
        ("etc/passwd", Change::Modified),
        ("gone", Change::Deleted),
        ("gone/file", Change::Deleted),
        ("link", Change::Deleted),
        ("mode", Change::Modified),
        ("new", Change::Added),
        ("new-link", Change::Added),
        ("remade/new", Change::Added),
        ("remade/old", Change::Deleted),
        ("replaced", Change::Modified),
    ]
    .map(|(path, change)| (path.to_owned(), change));
    assert_eq!(changes, expected);
    // The digest does not depend on how the layers are cut.
    let whole = walk(&base().end()[..], &Options::default()).expect("walked");
    let alone = RootView::new(vec![Arc::new(whole.index)]);
    assert_eq!(view.content_digest(b"").expect("read"), alone.content_digest(b"").expect("read"));
    assert_eq!(
        both.content_digest(b"untouched").expect("read"),
        view.content_digest(b"untouched").expect("read")
    );
    assert_ne!(both.content_digest(b"etc").expect("read"), view.content_digest(b"etc").expect("read"));
}

/// What a step may set itself is no mark of its overlay's.
#[test]
fn marks_of_another_kind_hide_nothing() {
    if !support::is_root() {
        support::skipped("needs root to set marks");
        return;
    }
    let view =
        || RootView::new(vec![Arc::new(walk(&base().end()[..], &Options::default()).expect("walked").index)]);
    for (marks, own, others) in [(Marks::Trusted, "trusted", "user"), (Marks::User, "user", "trusted")] {
        let captured = |kind: &str| {
            let host = tempfile::tempdir().expect("a temporary directory");
            let directory = kiln_sys::root::Directory::open(host.path()).expect("opened");
            fs_err::create_dir(host.path().join("gone")).expect("made");
            fs_err::write(host.path().join("mode"), "").expect("written");
            for (name, mark) in [("gone", "opaque"), ("mode", "whiteout")] {
                let mark = format!("{kind}.overlay.{mark}");
                kiln_sys::xattr::set(&directory, name.as_ref(), mark.as_bytes(), b"y").expect("set");
            }
            let root = Root::open(host.path()).expect("opened");
            root.directory().set_self(Some(0o755), None, None).expect("set");
            let changes = Changes::Upper(marks);
            let owners = Owners::Files;
            let request = Capture {
                root: &root,
                lower: &view(),
                changes,
                owners,
                stubs: &[],
                clamp: None,
                go_on: &|| Ok(()),
            };
            entries(&capture(&request, None).expect("captured").index)
        };
        let names = |expect: &[(&str, Kind)]| -> Vec<(String, Kind)> {
            expect.iter().map(|(path, kind)| ((*path).to_owned(), *kind)).collect()
        };
        let hidden = [("gone", Kind::Directory), ("gone", Kind::Opaque), ("mode", Kind::Whiteout)];
        assert_eq!(captured(own), names(&hidden), "{marks:?}");
        assert_eq!(captured(others), names(&[("mode", Kind::Regular)]), "{marks:?} {others}");
    }
}

/// A copy of what `view` shows, and how it is before a step.
fn copied(view: &RootView, directory: &Path) -> (Copied, Root) {
    let root = Root::open(directory).expect("opened");
    let tar = base().end();
    let mut file = tempfile::tempfile().expect("a temporary file");
    std::io::Write::write_all(&mut file, &tar).expect("written");
    let index = Arc::clone(&view.layers()[0]);
    let contents = LayerContents::new(index, vec![ContentSource::Tar { file, offset: 0 }]);
    let unpack =
        Unpack { root: &root, whiteouts: Whiteouts::Apply, ownership: support::ownership(), clamp: None };
    let copied = std::thread::scope(|scope| {
        let copying = || {
            copy(view, view.root()?, b"", &unpack, &|_, entry| contents.open(entry))?;
            note_copied(view, &unpack)
        };
        scope.spawn(copying).join().expect("joined").expect("copied")
    });
    (copied, root)
}

fn changes_of(step: impl FnOnce(&Path), owners: Owners<'_>) -> LayerIndex {
    let host = tempfile::tempdir().expect("a temporary directory");
    let view =
        RootView::new(vec![Arc::new(walk(&base().end()[..], &Options::default()).expect("walked").index)]);
    let (copied, root) = copied(&view, host.path());
    step(host.path());
    let changes = Changes::Copy(&copied);
    let request = Capture {
        root: &root,
        lower: &view,
        changes,
        owners,
        stubs: &[],
        clamp: Some(1_600_000_000),
        go_on: &|| Ok(()),
    };
    capture(&request, None).expect("captured").index
}

#[test]
fn a_copied_root_is_compared() {
    let recorded = |stat: &rustix::fs::Stat| {
        (stat.st_size == 13).then_some(Owner { uid: Some(7), gid: None, device: None })
    };
    let index = changes_of(step, Owners::Recorded { recorded: &recorded, fresh: (0, 0) });
    assert_eq!(entries(&index), left_by_step(true));
    let passwd = index.find(b"etc/passwd").expect("read").expect("found");
    assert_eq!((passwd.uid(), passwd.gid(), passwd.mode()), (7, 0, 0o644));
    assert_eq!(passwd.modified().seconds, 1_600_000_000);
}

#[test]
fn what_a_step_hides_in_a_copied_root_is_found() {
    let owners = || Owners::Recorded { recorded: &|_| None, fresh: (0, 0) };
    let check = |what: &str, step: &dyn Fn(&Path), expect: &[(&str, Kind)]| {
        let found = entries(&changes_of(step, owners()));
        let expect: Vec<_> = expect.iter().map(|(path, kind)| ((*path).to_owned(), *kind)).collect();
        assert_eq!(found, expect, "{what}");
    };
    check("nothing", &|_| {}, &[]);
    check(
        "other bytes of the same length, with the old time",
        &|root| {
            let path = root.join("replaced");
            let before = fs_err::metadata(&path).expect("stat").modified().expect("a time");
            fs_err::write(&path, "OLD").expect("written");
            let file = fs_err::File::options().write(true).open(&path).expect("opened");
            file.file().set_modified(before).expect("set");
        },
        &[("replaced", Kind::Regular)],
    );
    check(
        "a directory that takes another's place, its files untouched",
        &|root| {
            fs_err::remove_dir_all(root.join("gone")).expect("removed");
            fs_err::rename(root.join("untouched"), root.join("gone")).expect("renamed");
        },
        &[
            ("gone", Kind::Directory),
            ("gone", Kind::Opaque),
            ("gone/file", Kind::Regular),
            ("untouched", Kind::Whiteout),
        ],
    );
    check(
        "a link to a file of the base",
        &|root| fs_err::hard_link(root.join("touched"), root.join("zlink")).expect("linked"),
        &[("touched", Kind::Regular), ("zlink", Kind::HardLink)],
    );
}

#[test]
fn views_follow_links_inside() {
    let lower =
        Tar::new().dir("usr", 0o755).dir("usr/lib", 0o755).file("usr/lib/f", b"x").symlink("usr/lib", "lib");
    let lower = lower
        .symlink("../../../usr", "up")
        .symlink("/lib/../lib/f", "usr/lib/g")
        .symlink("b", "a")
        .symlink("a", "b");
    let upper = Tar::new().link("usr/lib/f", "h").file("usr/lib/.wh.none", b"");
    let index = |tar: Tar| Arc::new(walk(&tar.end()[..], &Options::default()).expect("walked").index);
    let view = RootView::new(vec![index(lower), index(upper)]);
    for (path, expected) in [
        ("lib/f", Some("usr/lib/f")),
        ("up/lib/g", Some("usr/lib/f")),
        ("../../lib/../lib/f", Some("usr/lib/f")),
        ("lib", Some("usr/lib")),
        ("h", Some("h")),
        ("lib/none", None),
    ] {
        let found = view.resolve(path.as_bytes()).expect("read");
        let found = found.map(|node| String::from_utf8_lossy(node.path()).into_owned());
        assert_eq!(found.as_deref(), expected, "{path}");
    }
    view.resolve(b"a").expect_err("a circle");
    let linked = view.lookup(b"h").expect("read").expect("found");
    let file = view.file(&linked).expect("read").expect("resolved");
    assert_eq!((file.layer, file.entry.path()), (0, &b"usr/lib/f"[..]));
    assert_eq!(
        view.digest(&linked).expect("read"),
        view.content_digest(b"usr/lib/f").expect("read").expect("found")
    );
    assert!(!view.layers()[1].stands_alone());
}

#[test]
fn bombs_are_bounded() {
    use std::io::Read;
    let limits = Limits { bytes: 1 << 20, entries: 100, ..Limits::default() };
    let refused = |name: &str, bytes: &[u8]| {
        let error = walk(bytes, &Options { limits, ..Options::default() });
        assert!(error.is_err(), "{name} must be refused");
    };
    let mut zeros = Vec::new();
    let mut encoder = flate2::write::GzEncoder::new(&mut zeros, flate2::Compression::fast());
    std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut encoder).expect("compressed");
    encoder.finish().expect("compressed");
    refused("zeros", &zeros);
    let mut many = Tar::new();
    for number in 0..101 {
        many = many.file(&format!("{number}"), b"");
    }
    refused("entries", &many.end());
    let deep = "d/".repeat(1001);
    refused("depth", &Tar::new().pax(&[("path", deep.as_bytes())]).dir("d", 0o755).end());
    let long = "d".repeat(256);
    refused("name", &Tar::new().pax(&[("path", long.as_bytes())]).file("d", b"").end());
    let huge = vec![b'1'; (1 << 20) + 1];
    refused("pax header", &Tar::new().extended(b'x', &huge).file("f", b"").end());
    let hole = [("GNU.sparse.size", &b"9223372036854775807"[..]), ("GNU.sparse.map", b"0,1")];
    refused("hole", &Tar::new().pax(&hole).file("f", b"x").end());
    let overlap = [("GNU.sparse.size", &b"100"[..]), ("GNU.sparse.map", b"0,3,2,1")];
    refused("overlap", &Tar::new().pax(&overlap).file("f", b"abcd").end());
    let mut trailing = Vec::new();
    let mut encoder = flate2::write::GzEncoder::new(&mut trailing, flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &Tar::new().file("f", b"").end()).expect("compressed");
    encoder.finish().expect("compressed");
    let both = [trailing.as_slice(), trailing.as_slice()].concat();
    walk(&both[..], &Options { limits, ..Options::default() }).expect("two members are one stream");
    trailing.extend_from_slice(b"garbage");
    refused("trailing bytes", &trailing);
}

#[test]
fn a_snapshot_is_completed_from_below() {
    use kiln_layer::{ContentSource, LayerContents, Ownership, Unpack, complete};
    use std::io::Write;
    let lower = Tar::new().dir("usr", 0o711).file_mode("usr/f", b"from below", 0o640).end();
    let upper = Tar::new().link("usr/f", "usr/h").link("usr/f", "d/i").file("usr/x", b"x").end();
    let mut blob = tempfile::tempfile().expect("a temporary file");
    blob.write_all(&lower).expect("written");
    let below = Arc::new(walk(&lower[..], &Options::default()).expect("walked").index);
    let contents = LayerContents::new(Arc::clone(&below), vec![ContentSource::Blob(blob)]);
    let view = RootView::new(vec![below]);
    let host = tempfile::tempdir().expect("a temporary directory");
    let walked = unpack(&upper, host.path(), Whiteouts::OverlayUser).expect("unpacked");
    assert!(!walked.index.stands_alone());
    assert!(!host.path().join("usr/h").exists(), "what is below is not known yet");
    let root = Root::open(host.path()).expect("opened");
    let ownership = if support::is_root() { Ownership::Keep } else { Ownership::Ignore };
    let to = Unpack { root: &root, whiteouts: Whiteouts::OverlayUser, ownership, clamp: None };
    std::thread::scope(|scope| {
        let completing = || complete(&walked.index, &view, &to, &|_, entry| contents.open(entry));
        scope.spawn(completing).join().expect("joined").expect("completed");
    });
    let stat = |path: &str| fs_err::metadata(host.path().join(path)).expect(path);
    assert_eq!(fs_err::read_to_string(host.path().join("usr/h")).expect("read"), "from below");
    assert_eq!(stat("usr/h").ino(), stat("d/i").ino());
    assert_eq!(
        (stat("usr").mode() & 0o777, stat("d").mode() & 0o777, stat("usr/h").mode() & 0o777),
        (0o711, 0o755, 0o640)
    );
    assert_eq!(
        (stat("usr").mtime(), stat("d").mtime(), stat("usr/x").mtime()),
        (1_700_000_000, 0, 1_700_000_000)
    );
}
