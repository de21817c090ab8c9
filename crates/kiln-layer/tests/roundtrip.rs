//! Laws: what is written is read back, what is unpacked is captured back, and golden digests of the tar writer.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_layer::metadata::Time;
use kiln_layer::{
    Capture, Changes, ContentSource, Kind, LayerContents, LayerWriter, Marks, Metadata, Options, Outputs,
    Owners, Ownership, RootView, Source, Unpack, Whiteouts, Written, capture, walk,
};
use kiln_sys::root::Root;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Made {
    path: String,
    metadata: Metadata,
    content: Vec<u8>,
}

fn entry(path: &str, kind: Kind, mode: u32) -> Made {
    let mut metadata = Metadata::new(kind, mode);
    metadata.modified = Time { seconds: 1_700_000_000, nanoseconds: 0 };
    Made { path: path.to_owned(), metadata, content: Vec::new() }
}

fn file(path: &str, content: &[u8]) -> Made {
    let mut made = entry(path, Kind::Regular, 0o644);
    made.metadata.size = content.len() as u64;
    made.content = content.to_vec();
    made
}

fn link(path: &str, kind: Kind, target: &str) -> Made {
    let mut made = entry(path, kind, 0o777);
    made.metadata.link = target.as_bytes().to_vec();
    made
}

fn write(entries: &[Made], lower: &RootView) -> (Written, Vec<u8>) {
    let mut writer = LayerWriter::new();
    for made in entries {
        let source =
            if made.content.is_empty() { Source::Empty } else { Source::Bytes(made.content.clone()) };
        writer.add(made.path.as_bytes(), made.metadata.clone(), source).expect("added");
    }
    let mut tar = Vec::new();
    let written = writer.finish(lower, Outputs { tar: Some(&mut tar), unpack: None }).expect("written");
    (written, tar)
}

fn sample() -> Vec<Made> {
    let long = "d/".to_owned() + &"long".repeat(40);
    let mut capability = file("bin/ping", b"ping");
    capability.metadata.mode = 0o4755;
    capability.metadata.xattrs = vec![
        (b"user.note".to_vec(), b"a\nb=c".to_vec()),
        (b"security.capability".to_vec(), [&[1, 0, 0, 3][..], &[0; 16], &[0, 0, 1, 0]].concat()),
        (b"security.selinux".to_vec(), b"never".to_vec()),
        (b"user.overlay.opaque".to_vec(), b"y".to_vec()),
    ];
    let mut far = file("far", b"far");
    far.metadata.modified = Time { seconds: -5, nanoseconds: 7 };
    (far.metadata.uid, far.metadata.gid) = (3_000_000, 4_000_000_000);
    let mut device = entry("dev/tty", Kind::CharacterDevice, 0o666);
    device.metadata.device = (5, 300);
    vec![
        capability,
        far,
        device,
        file(&long, b"long"),
        file("d/\u{e9}t\u{e9}", b"not ASCII"),
        file("d/empty", b""),
        file("d/big", &vec![7; 1 << 20]),
        link("a-link", Kind::HardLink, "d/big"),
        link("z-link", Kind::HardLink, "a-link"),
        link("l", Kind::Symlink, &"x/".repeat(80)),
        entry("p", Kind::Fifo, 0o600),
        entry("opaque", Kind::Directory, 0o1777),
        entry("opaque", Kind::Opaque, 0),
        entry("gone/file", Kind::Whiteout, 0),
        file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
    ]
}

#[test]
fn golden_digests_of_writer_version_1() {
    let empty = RootView::default();
    for (name, entries, expected) in [
        ("empty", vec![], "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"),
        ("one file", vec![file("f", b"text")], GOLDEN_FILE),
        ("sample", sample(), GOLDEN_SAMPLE),
    ] {
        let (written, tar) = write(&entries, &empty);
        assert_eq!(kiln_oci::Digest::of(&tar), written.diff_id.0, "{name}");
        assert_eq!(tar.len() as u64, written.tar_size, "{name}");
        assert_eq!(written.diff_id.to_string(), expected, "{name}");
        let mut reversed = entries.clone();
        reversed.reverse();
        assert_eq!(write(&reversed, &empty).0.diff_id, written.diff_id, "{name}: order of adding");
    }
}

const GOLDEN_FILE: &str = "sha256:f9e4744b5e23ff19f4e2aabcd8620195d5ce3b46d4a7cf293872b00fc37000e0";
const GOLDEN_SAMPLE: &str = "sha256:f1784eef43dc4e8f201d54e22ca38caae07dfc4f9f8e6e06bb1851f52ab14d82";

/// What the index says, without what only a writer's index has.
fn comparable(index: &kiln_layer::LayerIndex) -> Vec<u8> {
    let mut bytes = index.bytes().to_vec();
    bytes[84..88].fill(0);
    bytes
}

#[test]
fn the_sample_is_read_back() {
    let (written, tar) = write(&sample(), &RootView::default());
    let walked = walk(&tar[..], &Options::default()).expect("walked");
    assert_eq!(walked.diff_id, written.diff_id);
    assert_eq!(comparable(&walked.index), comparable(&written.index));
    assert!(written.index.stands_alone() && written.index.has_marks());
    let find = |path: &str| written.index.find(path.as_bytes()).expect("read").expect(path);
    let ping = find("bin/ping");
    let xattrs: Vec<_> = ping.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    let capability = [&[1, 0, 0, 2][..], &[0; 16]].concat();
    assert_eq!(
        xattrs,
        [(b"security.capability".to_vec(), capability), (b"user.note".to_vec(), b"a\nb=c".to_vec())]
    );
    assert_eq!((find("far").modified().seconds, find("far").modified().nanoseconds), (-5, 0));
    assert_eq!(find("a-link").kind(), Kind::Regular, "the first name holds the content");
    assert_eq!(find("d/big").kind(), Kind::HardLink);
    assert_eq!(find("d/big").content(), find("z-link").content());
    let contents = LayerContents::new(Arc::new(walked.index), vec![]);
    let passwd = contents.index().find(b"etc/passwd").expect("read").expect("found");
    assert!(contents.read(&passwd, 1000).expect("a fact").starts_with(b"root:"));
}

/// Lists a tar with a program that knows nothing of us.
fn foreign_list(program: &str, arguments: &[&str], tar: &[u8]) -> Option<String> {
    let mut child = match Command::new(program)
        .args(arguments)
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            support::skipped(&format!("{program} cannot be run: {error}"));
            return None;
        }
    };
    let mut stdin = child.stdin.take().expect("piped");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(tar).expect("written"));
        let output = child.wait_with_output().expect("ended");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

#[test]
fn gnu_tar_reads_what_is_written() {
    let (written, tar) = write(&sample(), &RootView::default());
    let Some(list) = foreign_list("tar", &["-tvf", "-", "--numeric-owner", "--full-time"], &tar) else {
        return;
    };
    assert_eq!(list.lines().count(), written.index.entry_count() as usize, "{list}");
    for expected in [
        "-rwsr-xr-x 0/0               4 2023-11-14 22:13:20 bin/ping",
        "-rw-r--r-- 3000000/4000000000 3 1969-12-31 23:59:55 far",
        "crw-rw-rw- 0/0           5,300 2023-11-14 22:13:20 dev/tty",
        "drwxrwxrwt 0/0               0 2023-11-14 22:13:20 opaque/",
        "opaque/.wh..wh..opq",
        "gone/.wh.file",
        "d/big link to a-link",
        "d/\u{e9}t\u{e9}",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(&list).contains(&squeezed(expected)), "{expected} is not in\n{list}");
    }
}

const PYTHON: &str = r#"
import sys, tarfile, hashlib
archive = tarfile.open(fileobj=sys.stdin.buffer, mode="r|")
for m in archive:
    content = hashlib.sha256(archive.extractfile(m).read()).hexdigest() if m.isreg() else "-"
    link = m.linkname if m.issym() or m.islnk() else ""
    kind = {b"0": 1, b"\0": 1, b"7": 1, b"S": 1, b"1": 4, b"2": 3, b"3": 5, b"4": 6, b"5": 2, b"6": 7}[m.type]
    if m.isreg(): kind = 1
    size = m.size if m.isreg() else 0
    print(kind, m.name.encode("utf-8", "surrogateescape").hex(), oct(m.mode & 0o7777), m.uid, m.gid, int(m.mtime // 1), size, link.encode("utf-8", "surrogateescape").hex(), content)
"#;

/// The same line for each entry of our index, in tar order.
fn own_list(tar: &[u8]) -> String {
    let walked = walk(tar, &Options::default()).expect("walked");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut lines = String::new();
    for entry in walked.index.entries() {
        let entry = entry.expect("read");
        let content = match (entry.kind(), entry.content()) {
            (Kind::Regular, Some(digest)) => digest.hex(),
            _ => "-".to_owned(),
        };
        let line = format!(
            "{} {} 0o{:o} {} {} {} {} {} {content}\n",
            entry.kind() as u8,
            hex(entry.path()),
            entry.mode(),
            entry.uid(),
            entry.gid(),
            entry.modified().seconds,
            entry.size(),
            hex(entry.link()),
        );
        lines.push_str(&line);
    }
    lines
}

#[test]
fn python_reads_what_we_read() {
    use support::{Header, Tar, pax_records};
    let octal = |value: u64| format!("{value:011o}\0").into_bytes();
    let sparse_map = b"2\n0\n4\n1000\n3\n";
    let mut old_sparse = Tar::new().header(&Header {
        name: b"old-sparse",
        flag: b'S',
        size: 7,
        magic: b"ustar  \0",
        ..Header::default()
    });
    for (at, value) in [(386, 0), (398, 4), (410, 1000), (422, 3), (483, 2000)] {
        old_sparse.bytes[at..at + 12].copy_from_slice(&octal(value));
    }
    support::checksum(&mut old_sparse.bytes);
    let mut base256 = Tar::new().header(&Header { name: b"base256", ..Header::default() });
    base256.bytes[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    base256.bytes[136..148]
        .copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00]);
    support::checksum(&mut base256.bytes);
    let mut prefix = Tar::new().header(&Header { name: b"name", ..Header::default() });
    prefix.bytes[345..351].copy_from_slice(b"prefix");
    support::checksum(&mut prefix.bytes);
    let long = "n".repeat(150) + "/" + &"m".repeat(100);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "plain",
            Tar::new().dir("d", 0o755).file("d/f", b"text").symlink("f", "d/l").link("d/f", "d/h").end(),
        ),
        ("v7", Tar::new().header(&Header { name: b"dir/", flag: 0, magic: b"", ..Header::default() }).end()),
        (
            "contiguous",
            Tar::new()
                .header(&Header { name: b"c", flag: b'7', size: 3, ..Header::default() })
                .raw(b"abc")
                .end(),
        ),
        (
            "gnu long",
            Tar::new().extended(b'L', long.as_bytes()).extended(b'K', b"target\0").symlink("t", "n").end(),
        ),
        ("prefix", prefix.end()),
        ("base-256", base256.end()),
        (
            "pax",
            Tar::new()
                .pax(&[("path", long.as_bytes()), ("uid", b"123456789"), ("mtime", b"12.75"), ("size", b"4")])
                .file("x", b"")
                .raw(b"abcd")
                .end(),
        ),
        (
            "size governs",
            Tar::new().pax(&[("size", b"512")]).file("x", b"").raw(&[b'y'; 512]).file("after", b"z").end(),
        ),
        ("old sparse", old_sparse.raw(b"abcdxyz").file("after", b"z").end()),
        (
            "sparse 0.0",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"2000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"0"),
                    ("GNU.sparse.numbytes", b"4"),
                    ("GNU.sparse.offset", b"1000"),
                    ("GNU.sparse.numbytes", b"3"),
                ])
                .file("s", b"abcdxyz")
                .file("after", b"z")
                .end(),
        ),
        (
            "sparse 0.1",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"2000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.map", b"0,4,1000,3"),
                    ("GNU.sparse.name", b"real"),
                ])
                .file("s", b"abcdxyz")
                .file("after", b"z")
                .end(),
        ),
        ("sparse 1.0", {
            let mut content = sparse_map.to_vec();
            content.resize(512, 0);
            content.extend_from_slice(b"abcdxyz");
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"real"),
                    ("GNU.sparse.realsize", b"2000"),
                ])
                .file("s", &content)
                .file("after", b"z")
                .end()
        }),
        (
            "global comment",
            Tar::new().extended(b'g', &pax_records(&[("comment", b"x")])).file("f", b"").end(),
        ),
    ];
    for (name, tar) in cases {
        let own = own_list(&tar);
        let Some(theirs) = foreign_list("python3", &["-c", PYTHON], &tar) else { return };
        assert_eq!(own, theirs, "{name}");
        assert!(!own.is_empty(), "{name}");
    }
}

fn unpacked(tar: &[u8]) -> (tempfile::TempDir, BTreeMap<String, String>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    support::unpack(tar, directory.path(), marks()).expect("unpacked");
    let description = support::describe(directory.path());
    (directory, description)
}

/// Without privileges every file is ours, and means 0:0.
fn owners() -> Owners<'static> {
    if support::is_root() { Owners::Files } else { Owners::Recorded { recorded: &|_| None, fresh: (0, 0) } }
}

fn marks() -> Whiteouts {
    if support::is_root() { Whiteouts::OverlayTrusted } else { Whiteouts::OverlayUser }
}

fn tree() -> impl Strategy<Value = Vec<Made>> {
    let name = prop_oneof!["[a-c]", "[a-c]\\.x", "\u{e9}", "n{110}"];
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let content = prop::collection::vec(any::<u8>(), 0..2000);
    let kind = prop_oneof![
        4 => content.prop_map(|content| file("", &content)),
        3 => (0o700_u32..0o1000).prop_map(|mode| entry("", Kind::Directory, mode)),
        1 => "[a-c/.]{1,6}".prop_map(|target| link("", Kind::Symlink, &target)),
        1 => Just(entry("", Kind::Fifo, 0o640)),
    ];
    let one = (path, kind, 0_u32..3, -10_i64..2_000_000_000).prop_map(|(path, mut made, uid, seconds)| {
        made.path = path;
        made.metadata.modified.seconds = seconds;
        if support::is_root() {
            (made.metadata.uid, made.metadata.gid) = (uid, uid * 1000);
        }
        made
    });
    prop::collection::vec(one, 0..25).prop_map(|entries| {
        // Nothing is below a file; later entries win.
        let mut kept: BTreeMap<String, Made> = BTreeMap::new();
        for made in entries {
            let mut above = made.path.as_str();
            let mut fits = true;
            while let Some((parent, _)) = above.rsplit_once('/') {
                fits &= kept.get(parent).is_none_or(|parent| parent.metadata.kind == Kind::Directory);
                above = parent;
            }
            let below = format!("{}/", made.path);
            fits &=
                made.metadata.kind == Kind::Directory || !kept.keys().any(|path| path.starts_with(&below));
            if fits {
                kept.insert(made.path.clone(), made);
            }
        }
        kept.into_values().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn written_walked_unpacked_captured(entries in tree()) {
        let empty = RootView::default();
        let (written, tar) = write(&entries, &empty);
        let walked = walk(&tar[..], &Options::default()).expect("walked");
        prop_assert_eq!(walked.diff_id, written.diff_id);
        prop_assert_eq!(comparable(&walked.index), comparable(&written.index));

        // The snapshot that the writer makes is the one that unpacking makes.
        let (directory, description) = unpacked(&tar);
        let beside = tempfile::tempdir().expect("a temporary directory");
        let root = Root::open(beside.path()).expect("opened");
        let mut writer = LayerWriter::new();
        for made in &entries {
            writer.add(made.path.as_bytes(), made.metadata.clone(), Source::Bytes(made.content.clone())).expect("added");
        }
        let unpack = Unpack { root: &root, whiteouts: marks(), ownership: support::ownership(), clamp: None };
        let again = writer.finish(&empty, Outputs { tar: None, unpack: Some(unpack) }).expect("written");
        prop_assert_eq!(again.diff_id, written.diff_id);
        let mut described = support::describe(beside.path());
        described.insert(String::new(), description[""].clone());
        prop_assert_eq!(&described, &description);

        // As an upper directory over nothing it is the same layer.
        let root = Root::open(directory.path()).expect("opened");
        root.directory().set_self(Some(0o755), None, None).expect("set");
        let unknown = kiln_layer::Copied::default();
        let upper = Changes::Upper(if marks() == Whiteouts::OverlayTrusted { Marks::Trusted } else { Marks::User });
        for changes in [upper, Changes::Copy(&unknown)] {
            let request = Capture { root: &root, lower: &empty, changes, owners: owners(), stubs: &[], clamp: None, go_on: &|| Ok(()) };
            let captured = capture(&request, None).expect("captured");
            prop_assert_eq!(captured.diff_id, written.diff_id);
            prop_assert_eq!(captured.index.bytes(), written.index.bytes());
        }

        // Over itself, as a copied root, nothing has changed.
        let view = RootView::new(vec![Arc::new(walked.index)]);
        let unpack = Unpack { root: &root, whiteouts: marks(), ownership: support::ownership(), clamp: None };
        let copied = kiln_layer::note_copied(&view, &unpack).expect("noted");
        let changes = Changes::Copy(&copied);
        let request = Capture { root: &root, lower: &view, changes, owners: owners(), stubs: &[], clamp: None, go_on: &|| Ok(()) };
        let nothing = capture(&request, None).expect("captured");
        prop_assert_eq!(nothing.index.entry_count(), 0);

        // Every file can be read from every source.
        let file = tempfile::tempfile().expect("a temporary file");
        (&file).write_all(&tar).expect("written");
        let index = Arc::clone(&view.layers()[0]);
        let sources = [
            ContentSource::Snapshot(root),
            ContentSource::Tar { file: file.try_clone().expect("clone"), offset: 0 },
            ContentSource::Blob(file),
        ];
        for source in sources {
            let contents = LayerContents::new(Arc::clone(&index), vec![source]);
            for made in entries.iter().filter(|made| made.metadata.kind == Kind::Regular) {
                let entry = index.find(made.path.as_bytes()).expect("read").expect("found");
                prop_assert_eq!(&contents.read(&entry, 1 << 20).expect("read"), &made.content);
            }
        }
    }

    #[test]
    fn damaged_tars_and_indexes_never_panic(entries in tree(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let (written, tar) = write(&entries, &RootView::default());
        let mut broken = tar.clone();
        let mut index = written.index.bytes().to_vec();
        for (at, byte) in &damage {
            let (in_tar, in_index) = (at.index(broken.len()), at.index(index.len()));
            broken[in_tar] = *byte;
            index[in_index] = *byte;
        }
        // A header's checksum would hide everything behind it.
        for block in 0..broken.len() / 512 {
            let block = &mut broken[block * 512..block * 512 + 512];
            if &block[257..262] == b"ustar" {
                support::checksum(block);
            }
        }
        let _ = walk(&broken[..], &Options::default());
        if let Ok(index) = kiln_layer::LayerIndex::from_bytes(index) {
            let view = RootView::new(vec![Arc::new(index)]);
            if let Ok(root) = view.root() {
                for node in view.walk(root) {
                    let Ok(node) = node else { break };
                    let _ = (view.digest(&node), view.metadata(&node), view.resolve(node.path()));
                }
            }
        }
    }
}

/// What is unpacked to be read can be read, whatever its mode says.
#[test]
fn modes_that_forbid_reading_do_not_where_files_are_to_be_read() {
    let host = tempfile::tempdir().expect("a directory");
    let tar = support::Tar::new()
        .dir("closed/", 0)
        .dir("closed/below/", 0o2311)
        .file_mode("closed/below/file", b"x", 0o4200)
        .file_mode("none", b"", 0)
        .dir("open/", 0o1555)
        .file_mode("open/file", b"x", 0o2711)
        .end();
    let unpacked = support::unpack_as(&tar, host.path(), Whiteouts::Refuse, Ownership::Modes);
    let index = unpacked.expect("unpacked").index;
    let found = support::describe(host.path());
    for (path, mode) in [
        ("closed", 0o500),
        ("closed/below", 0o2711),
        ("closed/below/file", 0o4600),
        ("none", 0o400),
        ("open", 0o1555),
        ("open/file", 0o2711),
    ] {
        let entry = index.find(path.as_bytes()).expect("read").expect("there");
        assert_eq!(Ownership::Modes.mode(entry.kind(), entry.mode()), mode, "{path}");
        let kind = if entry.kind() == Kind::Directory { 0o4_0000 } else { 0o10_0000 };
        let line = &found[&format!("/{path}")];
        assert!(line.starts_with(&format!("{:o} ", kind | mode)), "{path}: {line}");
    }
    for directory in ["closed", "open"] {
        let writable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs_err::set_permissions(host.path().join(directory), writable).expect("its owner may");
    }
}

/// What a foreign tar says more exactly than in seconds, docker and umoci leave on the disk, too.
#[test]
fn times_keep_their_fractions() {
    let host = tempfile::tempdir().expect("a directory");
    let tar = support::Tar::new()
        .pax(&[("mtime", b"12.75")])
        .file("later", b"")
        .pax(&[("mtime", b"-5.5")])
        .file("earlier", b"")
        .end();
    support::unpack(&tar, host.path(), Whiteouts::Refuse).expect("unpacked");
    let found = support::describe(host.path());
    for (path, time) in [("/later", "(12, 750000000)"), ("/earlier", "(-6, 500000000)")] {
        assert!(found[path].contains(time), "{path}: {}", found[path]);
    }
}
