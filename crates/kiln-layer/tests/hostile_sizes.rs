//! Layers that are small on the wire and would cost much: memory and time stay bounded, and what is only large still works.

#![allow(clippy::needless_pass_by_value, clippy::semicolon_if_nothing_returned)]

mod support;

use std::io::{Read, Write as _};
use std::time::{Duration, Instant};

use kiln_layer::{
    Compression, Error, Kind, LayerWriter, Limits, Metadata, Options, Result, Source, Walk, Whiteouts, walk,
};
use support::{Canary, Header, Tar, index, unpack};

/// Far more than any of these takes, far less than what a quadratic one would.
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory that a walk of any length may take beside its index.
const ROOM: u64 = 96 << 20;

#[track_caller]
fn in_time<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    done
}

/// Measures memory: one test at a time, since it is the whole process's.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How much more memory than now the process has at any time while `work` is done, in bytes.
fn memory<T>(work: impl FnOnce() -> T) -> (T, u64) {
    // 5 sets the peak to what there is now (proc(5)).
    fs_err::write("/proc/self/clear_refs", "5").expect("reset");
    let before = peak();
    let done = work();
    (done, peak() - before)
}

fn peak() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").expect("read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn compressed(compression: Compression, bytes: impl Read) -> Vec<u8> {
    let mut bytes = bytes;
    let mut encoder = compression.encoder(Vec::new(), 1).expect("an encoder");
    std::io::copy(&mut bytes, &mut encoder).expect("compressed");
    encoder.finish().expect("finished")
}

fn limited(bytes: &[u8], limits: Limits) -> Result<Walk> {
    walk(bytes, &Options { limits, ..Options::default() })
}

#[track_caller]
fn over<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
    match result {
        Err(Error::Limit { what, .. }) => assert_eq!(what, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn zeros_without_end() {
    let size = 128 << 20;
    let _alone = alone();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let header = Tar::new().header(&Header { name: b"zeros", size, ..Header::default() }).bytes;
        let tar = header.chain(std::io::repeat(0).take(size + 1024));
        let bomb = compressed(compression, tar);
        assert!(bomb.len() < 10 << 20);
        let limits = Limits { bytes: 64 << 20, ..Limits::default() };
        over(in_time(|| limited(&bomb, limits)), "bytes in files");
        let (walked, more) = memory(|| in_time(|| limited(&bomb, Limits::default())));
        let walked = walked.expect("one that the limit allows");
        assert_eq!(walked.index.find(b"zeros").expect("read").expect("found").size(), size);
        assert!(more < ROOM, "{} MiB more", more >> 20);
    }
    // The tar itself is limited, too: what follows its end belongs to the layer.
    let padding = Tar::new().end();
    let bomb = compressed(Compression::Zstd, padding.chain(std::io::repeat(0).take(size)));
    over(in_time(|| limited(&bomb, Limits { bytes: 64 << 20, ..Limits::default() })), "bytes");
    in_time(|| limited(&bomb, Limits::default())).expect("padding");
}

/// What our own reader would not take, or take for something else, is not written.
#[test]
fn attributes_that_no_tar_can_hold() {
    let add = |name: &str, length: usize| {
        let mut metadata = Metadata::new(Kind::Regular, 0o644);
        metadata.xattrs =
            (0..20).map(|number| (format!("{name}{number}").into_bytes(), vec![b'x'; length])).collect();
        LayerWriter::new().add(b"file", metadata, Source::Empty)
    };
    add("user.a", 50_000).expect("not too large");
    let refused = |result: Result<()>| result.expect_err("refused").to_string();
    assert!(refused(add("user.a", 60_000)).contains("/file: its extended attributes are larger"));
    assert!(refused(add("user.a=b", 1)).contains("/file: an attribute of it has a ="));
    // What is not written is no matter.
    add("trusted.a=b", 60_000).expect("not looked at");
}

/// A step leaves a file of holes in no time; to read it would take hours, and no layer that comes in may be so large.
#[test]
fn holes_of_a_step_without_end() {
    let most = Limits::default().bytes;
    let file = |size| Metadata { size, ..Metadata::new(Kind::Regular, 0o644) };
    let unread = || Source::Open(Box::new(|| panic!("it is read")));
    over(LayerWriter::new().add(b"holes", file(most), unread()), "bytes");
    over(LayerWriter::new().add(b"holes", file(u64::MAX), unread()), "bytes");
    let mut writer = LayerWriter::new();
    for name in [b"a", b"b", b"c"] {
        writer.add(name, file(most / 4), unread()).expect("not too large yet");
    }
    over(writer.add(b"d", file(most / 4), unread()), "bytes");
}

#[test]
fn holes_without_end() {
    let _alone = alone();
    let sparse = |size: &str| {
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", size.as_bytes()),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.map", b"0,1"),
                ("path", b"holes"),
            ])
            .file("x", b"y")
    };
    over(in_time(|| index(&sparse("9223372036854775807").end())), "bytes in files");
    let many = (0..300).fold(Tar::new(), |tar, _| tar.raw(&sparse("1073741824").bytes));
    over(in_time(|| limited(&many.end(), Limits { bytes: 1 << 30, ..Limits::default() })), "bytes in files");
    // What is not beyond the limit takes no room on the disk.
    let canary = Canary::new();
    unpack(&sparse("1073741824").end(), &canary.root(), Whiteouts::Apply).expect("unpacked");
    let stat = fs_err::metadata(canary.root().join("holes")).expect("stat");
    assert_eq!(stat.len(), 1 << 30);
    assert!(std::os::unix::fs::MetadataExt::blocks(&stat) * 512 < 1 << 20);
}

/// CVE-2025-58183: maps that grow without bound, and maps that are read again for every block.
#[test]
fn sparse_maps() {
    let map = |regions: usize, announced: usize| {
        let mut map = format!("{announced}\n");
        for region in 0..regions {
            map.push_str(&format!("{region}\n0\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(512), 0);
        map
    };
    let entry = |map: &[u8], name: &str| {
        Tar::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", name.as_bytes()),
                ("GNU.sparse.realsize", b"5000000"),
            ])
            .file("s", map)
    };
    let _alone = alone();
    in_time(|| index(&entry(&map(1_000_000, 1_000_000), "s").end())).expect_err("a million regions");
    in_time(|| index(&entry(&map(1, 1_000_000), "s").end())).expect_err("more announced than there are");
    let large = map(100_000, 100_000);
    let tar = (0..40).fold(Tar::new(), |tar, number| tar.raw(&entry(&large, &format!("s{number}")).bytes));
    let tar = tar.end();
    let (walked, more) = memory(|| in_time(|| index(&tar)));
    assert_eq!(walked.expect("as large as other readers take").index.entry_count(), 40);
    assert!(more < ROOM, "{} MiB more", more >> 20);
}

#[test]
fn extended_headers() {
    let _alone = alone();
    for flag in [b'x', b'g', b'L', b'K'] {
        let header = Header { name: b"extended", flag, size: 100 << 20, ..Header::default() };
        let head = Tar::new().header(&header).bytes;
        let bomb = compressed(Compression::Gzip, head.chain(std::io::repeat(b'a').take(100 << 20)));
        let (error, more) = memory(|| in_time(|| index(&bomb)).expect_err("100 MiB"));
        assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
        assert!(more < ROOM, "{} MiB more", more >> 20);
    }
    // Any number of those that are small enough.
    let value = vec![b'v'; 1_000_000];
    let one = Tar::new().pax(&[("comment", &value)]).file("f", b"x").bytes;
    let tar = (0..50).fold(Tar::new(), |tar, _| tar.raw(&one)).end();
    let bomb = compressed(Compression::Zstd, &tar[..]);
    drop(tar);
    let (walked, more) = memory(|| in_time(|| index(&bomb)));
    walked.expect("comments");
    assert!(more < ROOM, "{} MiB more", more >> 20);
}

#[test]
fn names_and_attributes_that_fill_the_memory() {
    let value = vec![b'v'; 1_000_000];
    let one = Tar::new().pax(&[("SCHILY.xattr.user.a", &value)]).file("f", b"").bytes;
    // Compressed as it is made: the test must not be the one that fills the memory.
    let bomb = {
        let mut encoder = Compression::Zstd.encoder(Vec::new(), 1).expect("an encoder");
        for _ in 0..600 {
            encoder.write_all(&one).expect("compressed");
        }
        encoder.write_all(&[0; 1024]).expect("compressed");
        encoder.finish().expect("finished")
    };
    let _alone = alone();
    let (result, more) = memory(|| in_time(|| index(&bomb)));
    over(result, "bytes of names, links and attributes");
    assert!(more < ROOM + (1 << 30), "{} MiB more", more >> 20);
    assert!(index(&Tar::new().raw(&one).end()).is_ok());
}

#[test]
fn entries_without_end() {
    let _alone = alone();
    let mut encoder = Compression::Gzip.encoder(Vec::new(), 1).expect("an encoder");
    for number in 0..50_000 {
        encoder.write_all(&Tar::new().file(&format!("d/{number}"), b"").bytes).expect("compressed");
    }
    encoder.write_all(&[0; 1024]).expect("compressed");
    let bomb = encoder.finish().expect("finished");
    over(in_time(|| limited(&bomb, Limits { entries: 49_999, ..Limits::default() })), "entries");
    assert_eq!(in_time(|| index(&bomb)).expect("walked").index.entry_count(), 50_000);
}

#[test]
fn depth() {
    let _alone = alone();
    for (depth, fits) in [(900, true), (1_000, true), (1_001, false), (4_000, false)] {
        let name = "d/".repeat(depth - 1) + "f";
        let tar = Tar::new().pax(&[("path", name.as_bytes())]).file("x", b"deep").end();
        for whiteouts in [Whiteouts::Apply, Whiteouts::OverlayUser] {
            let canary = Canary::new();
            let unpacked = in_time(|| unpack(&tar, &canary.root(), whiteouts));
            assert_eq!(unpacked.is_ok(), fits, "{depth}");
            canary.check("depth");
        }
    }
    // Deep places in turn: each is reached again from far above.
    let two = (0..200).fold(Tar::new(), |tar, number| {
        let name = format!("{}{}f{number}", ["a/", "b/"][number % 2], "d/".repeat(900));
        tar.pax(&[("path", name.as_bytes())]).file("x", b"")
    });
    let canary = Canary::new();
    in_time(|| unpack(&two.end(), &canary.root(), Whiteouts::OverlayUser)).expect("unpacked");
}

/// Layers that made one look-up for each pair of entries, or followed long links for each entry.
#[test]
fn nothing_is_quadratic() {
    const MANY: usize = 12_000;
    let _alone = alone();
    let base = Tar::new().dir("d", 0o755).file("d/f", b"x").file("d/f", b"y");
    let with = |middle: &Tar, last: &dyn Fn(usize) -> Tar| {
        let mut bytes = base.bytes.clone();
        for _ in 0..MANY {
            bytes.extend_from_slice(&middle.bytes);
        }
        for number in 0..MANY {
            bytes.extend_from_slice(&last(number).bytes);
        }
        Tar { bytes }.end()
    };
    let link = |number: usize| Tar::new().link("d/f", &format!("l{number}"));
    // The parent of a link's target again and again; marks where the target was.
    let parents = with(&Tar::new().dir("d", 0o755), &link);
    in_time(|| index(&parents)).expect("walked");
    let marks =
        with(&Tar::new().file("d/.wh.g", b""), &|number| Tar::new().link("d/g", &format!("l{number}")));
    in_time(|| index(&marks)).expect("walked");
    // Opaque marks on a directory of many files, onto a tree that is there.
    let opaque = with(&Tar::new().file("d/.wh..wh..opq", b""), &|number| {
        Tar::new().file(&format!("d/{number}"), b"").file("d/.wh..wh..opq", b"").file(".wh.d", b"")
    });
    let canary = Canary::new();
    in_time(|| unpack(&opaque, &canary.root(), Whiteouts::Apply)).expect("unpacked");
    assert_eq!(fs_err::read_dir(canary.root().join("d")).expect("read").count(), MANY + 1);
    // One file of many attributes with many names.
    let value = vec![b'v'; 60_000];
    let mut names = Tar::new().pax(&[("SCHILY.xattr.user.a", &value)]).file("d/f", b"x");
    for number in 0..MANY {
        names = names.link("d/f", &format!("l{number}"));
    }
    let names = names.end();
    in_time(|| index(&names)).expect("walked");
    // Links whose targets are as long as can be, each through the next.
    let mut long = Tar::new();
    for number in 0..40 {
        let target = "d/../".repeat(800) + &format!("s{}", number + 1);
        long = long.extended(b'K', target.as_bytes()).symlink("t", &format!("s{number}"));
    }
    let short = Tar { bytes: long.bytes.clone() }.file("s38/f", b"");
    assert!(matches!(in_time(|| index(&short.end())), Ok(_) | Err(Error::Entry { .. })));
    for _ in 0..MANY {
        long = long.file("s0/f", b"");
    }
    assert!(matches!(in_time(|| index(&long.end())), Err(Error::Entry { .. })));
    // A directory in a file's place, given again and again, with as much below it.
    let often = 10 * MANY;
    let mut again = Tar::new().file("a", b"");
    for _ in 0..often {
        again = again.dir("a", 0o755);
    }
    for number in 0..often {
        again = again.file(&format!("a/{number}"), b"");
    }
    let again = again.end();
    in_time(|| index(&again)).expect("walked");
}

/// Long ways along symbolic links: a layer may go a few of them, and the same one for any number of entries.
#[test]
fn ways_along_links_are_bounded() {
    const MANY: usize = 5_000;
    let _alone = alone();
    // Each link leads to the next by 201 components, the last one to a directory.
    let links = |count: usize| {
        let link = |tar: Tar, number: usize| {
            let target = "d/../".repeat(100) + &format!("s{}", number + 1);
            tar.extended(b'K', target.as_bytes()).symlink("t", &format!("s{number}"))
        };
        (0..count).fold(Tar::new(), link).dir(&format!("s{count}"), 0o755)
    };
    let detours = |count: u64| Limits { detours: count, ..Limits::default() };
    let once = 201 * 39;
    let together = (0..MANY).fold(links(39), |tar, number| tar.file(&format!("s0/{number}"), b"")).end();
    let walked = limited(&together, detours(once)).expect("one way");
    assert!(walked.index.find(b"s39/4999").expect("read").is_some());
    over(limited(&together, detours(once - 1)), "steps along symbolic links");
    let apart = |directories: usize| {
        (0..directories).fold(links(39), |tar, number| tar.file(&format!("s0/{number}/f"), b"")).end()
    };
    limited(&apart(10), detours(10 * once)).expect("ten ways");
    over(limited(&apart(11), detours(10 * once)), "steps along symbolic links");
    // A link that comes in between makes the same way another one.
    let moved = links(39).file("s0/f", b"").dir("o", 0o755).symlink("o", "s39").file("s0/f", b"").end();
    let walked = limited(&moved, detours(2 * once + 1)).expect("two ways");
    assert!(walked.index.find(b"o/f").expect("read").is_some());
    // Nobody counts the directories of a path that meets no link.
    let deep = "d/".repeat(900);
    let plain = (0..20).fold(Tar::new().symlink("d", "l"), |tar, number| {
        tar.pax(&[("path", format!("{deep}f{number}").as_bytes())]).file("x", b"")
    });
    limited(&plain.end(), detours(0)).expect("no way along a link");
}

/// Links to what is as deep as can be, in a layer in which each directory above may have been replaced meanwhile.
#[test]
fn links_to_deep_places() {
    const MANY: usize = 500;
    let _alone = alone();
    let deep = "d/".repeat(990);
    let path = |number: usize| format!("{deep}f{number}").into_bytes();
    let mut tar = Tar::new().file("z", b"");
    for number in 0..MANY {
        tar = tar.pax(&[("path", &path(number))]).file("x", &number.to_le_bytes());
    }
    for number in 0..MANY {
        tar = tar.pax(&[("linkpath", &path(number))]).link("x", &format!("l{number}"));
    }
    let tar = tar.end();
    let walked = in_time(|| index(&tar)).expect("walked");
    let content = |path: &[u8]| walked.index.find(path).expect("read").expect("found").content();
    for number in [0, MANY - 1] {
        let name = format!("l{number}");
        assert!(content(name.as_bytes()).is_some());
        assert_eq!(content(name.as_bytes()), content(&path(number)));
    }
}
