//! Hostile layers, after containerd's `TestBreakouts` and umoci's tables: nothing outside of the root changes, and what is
//! legitimate still works.

#![allow(clippy::needless_pass_by_value, clippy::semicolon_if_nothing_returned)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_layer::{Error, Whiteouts};
use support::{Canary, Header, Tar, unpack};

/// What is there before the layer comes; only onto a flat tree.
#[derive(Clone, Copy)]
enum Before {
    Dir(&'static str),
    File(&'static str, &'static str),
    Symlink(&'static str, &'static str),
    Link(&'static str, &'static str),
}

#[derive(Clone, Copy)]
enum Expect<'a> {
    Content(&'a str, &'a str),
    Same(&'a str, &'a str),
    Different(&'a str, &'a str),
    Symlink(&'a str, &'a str),
    Missing(&'a str),
    Mode(&'a str, u32),
    Refused,
}

use Before as B;
use Expect as E;

fn inside(root: &Path, path: &str) -> std::path::PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn check(name: &str, before: &[Before], tar: Tar, expected: &[Expect<'_>]) {
    let modes: &[Whiteouts] =
        if before.is_empty() { &[Whiteouts::Apply, Whiteouts::OverlayUser] } else { &[Whiteouts::Apply] };
    for mode in modes {
        let canary = Canary::new();
        let root = canary.root();
        for step in before {
            match *step {
                B::Dir(path) => fs_err::create_dir_all(inside(&root, path)).expect("made"),
                B::File(path, text) => fs_err::write(inside(&root, path), text).expect("written"),
                B::Symlink(target, path) => {
                    std::os::unix::fs::symlink(target, inside(&root, path)).expect("linked");
                }
                B::Link(target, path) => {
                    fs_err::hard_link(inside(&root, target), inside(&root, path)).expect("linked");
                }
            }
        }
        let result = unpack(&tar.clone().end(), &root, *mode);
        canary.check(name);
        let refused = expected.iter().any(|expect| matches!(expect, E::Refused));
        match &result {
            Ok(_) => assert!(!refused, "{name} ({mode:?}) must be refused"),
            Err(error) => {
                assert!(refused, "{name} ({mode:?}): {error}: {:?}", std::error::Error::source(error))
            }
        }
        for expect in expected {
            let stat = |path| fs_err::symlink_metadata(inside(&root, path));
            let identity = |path| stat(path).map(|stat| stat.ino()).expect(name);
            match *expect {
                E::Content(path, text) => {
                    assert_eq!(
                        fs_err::read_to_string(inside(&root, path)).expect(name),
                        text,
                        "{name} ({mode:?})"
                    );
                }
                E::Same(left, right) => assert_eq!(identity(left), identity(right), "{name} ({mode:?})"),
                E::Different(left, right) => assert_ne!(identity(left), identity(right), "{name} ({mode:?})"),
                E::Symlink(path, target) => {
                    let found = fs_err::read_link(inside(&root, path)).expect(name);
                    assert_eq!(found, Path::new(target), "{name} ({mode:?})");
                }
                E::Missing(path) => assert!(stat(path).is_err(), "{name} ({mode:?}): {path} exists"),
                E::Mode(path, mode) => assert_eq!(stat(path).expect(name).mode() & 0o7777, mode, "{name}"),
                E::Refused => {}
            }
        }
    }
}

fn etc() -> Tar {
    Tar::new().dir("etc", 0o770).file("/etc/passwd", b"inside")
}

#[test]
fn links_of_the_layer_itself() {
    let tar = |link: &str, name: &str, file: &str| {
        Tar::new().dir("etc", 0o755).dir("dummy", 0o755).symlink(link, name).file(file, b"unbroken")
    };
    let unbroken = &[E::Content("etc/unbroken", "unbroken")];
    check("absolute", &[], tar("/etc", "localetc", "/localetc/unbroken"), unbroken);
    check("up and out", &[], tar("/dummy/../etc", "localetc", "/localetc/unbroken"), unbroken);
    check("far up", &[], tar("../../../../../etc", "localetc", "/localetc/unbroken"), unbroken);
    check("in a directory", &[], tar("/etc", "/dummy/etc", "/dummy/etc/unbroken"), unbroken);
    let two = Tar::new().dir("etc", 0o755).dir("dummy", 0o755).symlink("/etc", "/dummy/etc");
    let two = two.symlink("./dummy/etc", "localetc").file("localetc/unbroken", b"unbroken");
    check("relative to another", &[], two, unbroken);
    let both = Tar::new().dir("etc", 0o755).dir("dummy", 0o755).symlink("/etc", "/dummy/etc");
    let both = both.symlink("/dummy/etc", "localetc").file("/dummy/etc/unbroken", b"unbroken");
    check("absolute through another", &[], both, unbroken);
    let emptied = Tar::new().dir("etc", 0o755).file("etc/emptied", b"not empty").symlink("/etc", "localetc");
    check("emptied", &[], emptied.file("/localetc/emptied", b""), &[E::Content("etc/emptied", "")]);
    let circle = Tar::new().symlink("b", "a").symlink("a", "b").file("a/file", b"");
    check("circle", &[], circle, &[E::Refused]);
    for (prefix, name) in
        [("/", "root"), ("/../", "dots"), ("/../../../../../", "many"), ("..", "up"), (".", "here")]
    {
        let tar = Tar::new().symlink(prefix, "link").file("link/file", b"inside");
        check(name, &[], tar, &[E::Content("file", "inside"), E::Symlink("link", prefix)]);
    }
    let dangling = Tar::new().symlink("../outside", "out").file("out/secret", b"inside");
    check("to a directory outside", &[], dangling, &[E::Content("outside/secret", "inside")]);
}

/// Names that sort before what is below a directory, byte by byte, are below it all the same.
#[test]
fn links_are_gone_with_their_directory() {
    for name in [".l", "-l", "+l", ",l", "#l", "!l", "l", "~l"] {
        let link = format!("a/{name}");
        let file = format!("{link}/f");
        let tar = Tar::new().dir("a", 0o755).symlink("/b", &link).dir("b", 0o755).file("a", b"");
        let tar = tar.dir("a", 0o755).file(&file, b"here");
        check(name, &[], tar, &[E::Content(&file, "here"), E::Missing("b/f")]);
    }
}

/// What a directory was to get, nothing else gets that has its name afterwards.
#[test]
fn modes_are_gone_with_their_directory() {
    let kept = [E::Mode("e", 0o755)];
    let tar = |directory: &str| Tar::new().dir("e", 0o755).dir(directory, 0o1700);
    check("a link", &[], tar("d").symlink("e", "d"), &kept);
    check("a link to above", &[], tar("d").symlink("/e", "d").dir("x", 0o711), &kept);
    let within = tar("d").dir("d/e", 0o1700).dir("d/e/.f", 0o1700).symlink(".", "d");
    check("a link to where the same is", &[], within, &kept);
    let again = tar("d").dir("d/.s", 0o1700).file("d", b"").dir("d", 0o711).file("d/.s/f", b"");
    check("an implied one", &[], again, &[E::Mode("d", 0o711), E::Mode("d/.s", 0o755)]);
    let lower = [B::Dir("e"), B::Dir("real"), B::Symlink("real", "l")];
    let through = Tar::new().dir("e", 0o755).dir("l/d", 0o1700).symlink("/e", "real/d");
    check("a link by another way", &lower, through, &kept);
}

#[test]
fn hard_links() {
    let same = &[E::Same("localpasswd", "etc/passwd")];
    for (name, link) in [
        ("absolute", "/etc"),
        ("long", "../../../../../../../etc"),
        ("up and out", "upandout/../../../etc"),
        ("relative", "./etc"),
    ] {
        check(name, &[], etc().symlink(link, "localetc").link("/localetc/passwd", "localpasswd"), same);
    }
    let deep = etc().dir("breakouts", 0o755).symlink("../../etc", "breakouts/d1");
    check(
        "deep",
        &[],
        deep.link("/breakouts/d1/passwd", "breakouts/p"),
        &[E::Same("breakouts/p", "etc/passwd")],
    );
    let down = etc().dir("breakouts", 0o755).dir("downandout", 0o755);
    let down = down.symlink("../downandout/../../etc", "breakouts/d1");
    check(
        "down and out",
        &[],
        down.link("/breakouts/d1/passwd", "breakouts/p"),
        &[E::Same("breakouts/p", "etc/passwd")],
    );
    let far = etc().symlink("../../../../../etc/passwd", "l").link("/l", "dup");
    check(
        "to a symbolic link far up",
        &[],
        far,
        &[E::Same("dup", "l"), E::Symlink("dup", "../../../../../etc/passwd")],
    );
    check("direct", &[], etc().link("../../../../../etc/passwd", "localpasswd"), same);
    check("direct and absolute", &[], etc().link("/etc/passwd", "localpasswd"), same);
    let to_link = etc().symlink("/etc/passwd", "passwdlink").link("/passwdlink", "localpasswd");
    let both = &[E::Same("localpasswd", "passwdlink"), E::Symlink("localpasswd", "/etc/passwd")];
    check("to a symbolic link", &[], to_link, both);
    let before = Tar::new()
        .dir("etc", 0o770)
        .symlink("/etc/passwd", "l")
        .link("l", "dup")
        .file("etc/passwd", b"after");
    check(
        "before its target",
        &[],
        before,
        &[E::Symlink("dup", "/etc/passwd"), E::Content("etc/passwd", "after")],
    );
    check("to a directory", &[], Tar::new().dir("d", 0o755).link("d", "e"), &[E::Refused]);
    check("to the root", &[], Tar::new().link("/", "e"), &[E::Refused]);
}

#[test]
fn a_mode_is_never_set_through_a_link() {
    let tar = Tar::new().symlink("../file", "link").link("link", "sketchy").file_mode(
        "sketchy/../other",
        b"",
        0o600,
    );
    check(
        "hard link to a symbolic link",
        &[],
        tar,
        &[E::Mode("other", 0o600), E::Symlink("sketchy", "../file")],
    );
    let tar = Tar::new().symlink("../outside", "d").dir("d", 0o777);
    check("directory over a link", &[], tar, &[E::Mode("d", 0o777)]);
    let tar = Tar::new().symlink("/../../outside", "d").dir("d/", 0o1777).file("d/x", b"x");
    check("directory over a link, then below", &[], tar, &[E::Mode("d", 0o1777), E::Content("d/x", "x")]);
}

#[test]
fn names_that_mean_other_places() {
    check("the root as a link", &[], etc().symlink("/etc/", "./"), &[E::Refused]);
    check("the root as a file", &[], Tar::new().file("./", b""), &[E::Refused]);
    check("the parent as a link", &[], etc().symlink("/etc/", ".."), &[E::Refused]);
    check("no name", &[], etc().symlink("/etc/", ""), &[E::Refused]);
    check("the root with a mode", &[], Tar::new().dir("./", 0o711).file("x", b"x"), &[E::Content("x", "x")]);
    let parent = etc().symlink("/etc/", "localetc/sub/..").link("/etc/passwd", "/localetc/localpasswd");
    check("cleaned to a link", &[], parent, &[E::Same("etc/localpasswd", "etc/passwd")]);
    let slash = etc().dir("localetc/", 0o770).link("/etc/passwd", "/localetc/localpasswd");
    check("ends in a slash", &[], slash, &[E::Same("localetc/localpasswd", "etc/passwd")]);
    for name in ["../file", "/../../file", "a/../../file", "./../././../file"] {
        check(name, &[], Tar::new().file(name, b"inside"), &[E::Content("file", "inside")]);
    }
    check("below a file", &[], Tar::new().file("f", b"").file("f/g", b""), &[E::Refused]);
}

#[test]
fn replacements() {
    let name = "foo/tmp/breakout";
    let tar = Tar::new()
        .dir("foo", 0o755)
        .dir("foo/tmp", 0o755)
        .file(name, b"1")
        .symlink("/", "foo")
        .file(name, b"2");
    let tar = tar.dir("foo", 0o755).dir("foo/tmp", 0o755).file(name, b"3");
    check("link and back", &[], tar, &[E::Content(name, "3"), E::Content("tmp/breakout", "2")]);
    let tar = Tar::new().dir("d", 0o755).file("d/f", b"1").file("d", b"2").dir("d", 0o755);
    check("directory, file, directory", &[], tar, &[E::Missing("d/f")]);
    let tar = Tar::new().file("d/f", b"1").dir("d", 0o711).dir("e", 0o755).dir("e", 0o700);
    check("directories given late or twice", &[], tar, &[E::Mode("d", 0o711), E::Mode("e", 0o700)]);
    let tar = Tar::new().file("f", b"1").link("f", "g").file("f", b"2");
    check("a linked file", &[], tar, &[E::Content("f", "2"), E::Content("g", "1"), E::Different("f", "g")]);
}

#[test]
fn onto_a_tree() {
    let tree = &[B::Dir("etc"), B::File("etc/passwd", "inside"), B::Dir("localetc")];
    let over =
        |target: &str| Tar::new().symlink(target, "localetc").link("/etc/passwd", "/localetc/localpasswd");
    check("link over a directory", tree, over("/etc"), &[E::Same("etc/localpasswd", "etc/passwd")]);
    check(
        "relative link over a directory",
        tree,
        over("../../etc"),
        &[E::Same("etc/localpasswd", "etc/passwd")],
    );
    let linked = &[
        B::Dir("etc"),
        B::File("etc/passwd", "all"),
        B::File("etc/gone", ""),
        B::Symlink("/etc", "localetc"),
    ];
    let tar = Tar::new().dir("/localetc/", 0o755).link("/etc/passwd", "/localetc/localpasswd");
    check("directory over a link", linked, tar, &[E::Same("localetc/localpasswd", "etc/passwd")]);
    let relative = &[
        B::Dir("etc"),
        B::File("etc/passwd", "all"),
        B::Symlink("etc", "l"),
        B::Link("etc/passwd", "etc/other"),
    ];
    let tar = Tar::new().dir("l/", 0o755).file("l/other", b"different");
    check(
        "file in it",
        relative,
        tar,
        &[E::Different("l/other", "etc/passwd"), E::Content("etc/other", "all")],
    );
    check(
        "file through a link",
        linked,
        Tar::new().file("localetc/new", b"x"),
        &[E::Content("etc/new", "x")],
    );
    let out = &[B::Symlink("../outside", "out"), B::Dir("outside")];
    check(
        "file through a link out",
        out,
        Tar::new().file("out/secret", b"x"),
        &[E::Content("outside/secret", "x")],
    );
}

#[test]
fn whiteouts() {
    let tree = &[
        B::Dir("etc"),
        B::File("etc/passwd", "all"),
        B::File("etc/gone", ""),
        B::Symlink("/etc", "localetc"),
    ];
    for name in [".wh...", "etc/.wh...", ".wh..", "etc/.wh..", ".wh.", "etc/.wh."] {
        check(name, tree, Tar::new().file(name, b""), &[E::Refused, E::Content("etc/passwd", "all")]);
    }
    let kept = E::Content("etc/passwd", "all");
    check("a link", tree, Tar::new().file(".wh.localetc", b""), &[kept, E::Missing("localetc")]);
    check("through a link", tree, Tar::new().file("localetc/.wh.gone", b""), &[kept, E::Missing("etc/gone")]);
    check(
        "as a directory",
        tree,
        Tar::new().file(".wh.etc/some", b"x"),
        &[kept, E::Content(".wh.etc/some", "x")],
    );
    check("past a directory", tree, Tar::new().file("dne/../.wh.etc", b""), &[E::Missing("etc/passwd")]);
    let dead = &[B::Dir("etc"), B::File("etc/passwd", "all"), B::Symlink("/dne", "localetc")];
    check("through a dead link", dead, Tar::new().file("localetc/.wh.etc", b""), &[kept]);
    let opaque = Tar::new().dir("etc", 0o755).file("etc/new", b"new").file("etc/.wh..wh..opq", b"");
    check("opaque last", tree, opaque, &[E::Content("etc/new", "new"), E::Missing("etc/passwd")]);
    let opaque = Tar::new().file("localetc/.wh..wh..opq", b"").file("localetc/new", b"new");
    check("opaque through a link", tree, opaque, &[E::Content("etc/new", "new"), E::Missing("etc/passwd")]);
    let remade = Tar::new().dir("etc", 0o755).file("etc/new", b"new").file(".wh.etc", b"");
    check("beside its directory", tree, remade, &[E::Content("etc/new", "new"), E::Missing("etc/passwd")]);
    // umoci's tables: whiteouts at each depth, of files and of directories, and what is not there.
    let deep = &[
        B::Dir("some/path/dir"),
        B::File("some/path/file", "f"),
        B::File(".hidden", "h"),
        B::File("kept", "k"),
    ];
    for name in ["some/path/file", "some/path/dir", "some/path", "some", ".hidden"] {
        let (parent, last) =
            name.rsplit_once('/').map_or((String::new(), name), |(p, l)| (format!("{p}/"), l));
        let tar = Tar::new().file(&format!("{parent}.wh.{last}"), b"");
        check(name, deep, tar, &[E::Missing(name), E::Content("kept", "k")]);
    }
    let nothing = Tar::new().file("some/path/.wh.nothing", b"").file("none/.wh.x", b"");
    check("of nothing", deep, nothing, &[E::Content("some/path/file", "f"), E::Content("kept", "k")]);
    let links = &[
        B::Dir("dir"),
        B::File("file", "kept"),
        B::File("dir/lower", ""),
        B::Symlink("../file", "dir/link"),
        B::Symlink("../../../../../../outside", "dir/verybad"),
        B::Symlink("/../../../outside/secret", "dir/worse"),
    ];
    let opaque = Tar::new().file("dir/.wh..wh..opq", b"").file("dir/new", b"new");
    let gone = ["dir/lower", "dir/link", "dir/verybad", "dir/worse"].map(E::Missing);
    check(
        "opaque over links",
        links,
        opaque,
        &[&[E::Content("file", "kept"), E::Content("dir/new", "new")][..], &gone].concat(),
    );
    let aufs = Tar::new().file(".wh..wh.aufs", b"").dir(".wh..wh.plnk", 0o700).file(".wh..wh.plnk/1.2", b"x");
    check("of AUFS", tree, aufs, &[kept, E::Missing(".wh..wh.aufs"), E::Missing(".wh..wh.plnk")]);
}

#[test]
fn devices_are_not_opened_and_need_privileges() {
    if !support::is_root() {
        support::skipped("needs root to make devices");
        return;
    }
    let canary = Canary::new();
    let tar =
        Tar::new().dir("dev", 0o755).node(b'3', "dev/null", (1, 3)).node(b'6', "dev/pipe", (0, 0)).end();
    unpack(&tar, &canary.root(), Whiteouts::OverlayTrusted).expect("unpacked");
    let stat = fs_err::metadata(canary.root().join("dev/null")).expect("stat");
    assert_eq!((stat.rdev(), stat.mode() & 0o777), (rustix::fs::makedev(1, 3), 0o644));
    let other = Canary::new();
    support::unpack_as(&tar, &other.root(), Whiteouts::OverlayUser, kiln_layer::Ownership::Ignore)
        .expect("unpacked");
    assert!(fs_err::metadata(other.root().join("dev/null")).expect("stat").is_file());
}

/// A node that nothing answers for, and a pipe without a reader: whoever opened them to set their modes would fail.
#[test]
fn modes_of_nodes_are_set_without_opening_them() {
    let canary = Canary::new();
    let mut tar = Tar::new().header(&Header { name: b"pipe", flag: b'6', mode: 0o6711, ..Header::default() });
    if support::is_root() {
        for (name, flag) in [(&b"character"[..], b'3'), (b"block", b'4')] {
            tar = tar.header(&Header { name, flag, mode: 0o6751, device: (511, 7), ..Header::default() });
        }
    }
    unpack(&tar.end(), &canary.root(), Whiteouts::Apply).expect("unpacked");
    let mode = |name: &str| fs_err::symlink_metadata(canary.root().join(name)).expect("stat").mode() & 0o7777;
    assert_eq!(mode("pipe"), if support::is_root() { 0o6711 } else { 0o711 });
    if support::is_root() {
        assert_eq!((mode("character"), mode("block")), (0o6751, 0o6751));
        fs_err::File::open(canary.root().join("character")).expect_err("nothing answers for it");
    }
}

#[test]
fn overlay_marks_do_not_pass() {
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"1"),
        ])
        .dir("d", 0o755)
        .end();
    let canary = Canary::new();
    let walked = unpack(&tar, &canary.root(), Whiteouts::OverlayUser).expect("unpacked");
    let entry = walked.index.find(b"d").expect("read").expect("found");
    let names: Vec<&[u8]> = entry.xattrs().map(|(name, _)| name).collect();
    assert_eq!(names, [b"user.kept"]);
    let root = kiln_sys::root::Directory::open(&canary.root()).expect("opened");
    let all = kiln_sys::xattr::list(&root, "d".as_ref(), |name| name != b"security.selinux").expect("listed");
    assert_eq!(all, vec![(b"user.kept".to_vec(), b"1".to_vec())]);
}

#[test]
fn parents_that_move_during_unpacking() {
    let canary = Canary::new();
    let root = canary.root();
    fs_err::create_dir(root.join("a")).expect("made");
    std::os::unix::fs::symlink("../outside", root.join("b")).expect("linked");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut tar = Tar::new();
    for number in 0..2000 {
        tar = tar.file(&format!("a/{number}"), b"x").dir(&format!("a/d{number}"), 0o777);
    }
    let tar = tar.end();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory = kiln_sys::root::Directory::open(&root).expect("opened");
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(&directory, "a", &directory, "b", flags);
            }
        });
        for mode in [Whiteouts::Apply, Whiteouts::OverlayUser] {
            // It may fail, since its directory is taken away; it must not write elsewhere.
            if let Err(error) = unpack(&tar, &root, mode) {
                assert!(matches!(error, Error::File(_)), "{error:?}");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    canary.check("moving parents");
}
