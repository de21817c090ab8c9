//! One reading of a tar: what we list is what Go's `archive/tar`, Python's `tarfile` and GNU tar list, or we refuse it
//! (CVE-2025-62518, CVE-2026-33055: a size that two readers take from different headers smuggles entries past one).
//!
//! The tars are made by chance out of what dialects and extensions allow, hostile combinations included. What a file
//! holds looks like headers itself, so that a reader that loses its step lists something else. More of them by hand:
//!
//! ```text
//! KILN_FUZZ_SEED=7 KILN_FUZZ_ROUNDS=100000 cargo test --release -p kiln-layer --test differential -- --nocapture
//! ```

mod support;

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::process::{Command, Stdio};

use kiln_layer::archive::{Archive, Entry, EntryType, Piece};
use support::chance::{Dice, rounds};
use support::{Header, Tar, pax_records};

/// As many as are looked at where nobody asks for more.
const ROUNDS: u64 = 1200;

const NAMES: [&str; 8] = ["a", "b", "c/d", "dir/", "e", "long", "x/", "sm"];
const NUMBERS: [&str; 10] = ["0", "1", "5", "511", "512", "513", "1024", "2000", "-1", "9999999999999999999"];

fn octal(value: u64, width: usize) -> Vec<u8> {
    format!("{value:0width$o}\0").into_bytes()
}

/// Bytes that look like a tar of one file, `name`.
fn bait(name: &str, length: usize) -> Vec<u8> {
    let one = Tar::new().header(&Header { name: name.as_bytes(), size: 0, ..Header::default() }).bytes;
    one.iter().copied().cycle().take(length).collect()
}

struct Made {
    bytes: Vec<u8>,
    for_python: bool,
}

struct Maker {
    dice: Dice,
    /// Python reads prefixes also where the dialect has none.
    prefix_without_dialect: bool,
    tar: Tar,
    number: usize,
}

impl Maker {
    fn name(&mut self) -> Vec<u8> {
        self.number += 1;
        let name = self.dice.pick(&NAMES);
        let (stem, slash) = name.strip_suffix('/').map_or((name, ""), |stem| (stem, "/"));
        format!("{stem}{}{slash}", self.number).into_bytes()
    }

    fn size(&mut self) -> u64 {
        self.dice.pick(&[0, 0, 1, 5, 511, 512, 513, 1024])
    }

    /// A record: often one that says nothing unusual, else anything.
    fn record(&mut self) -> (&'static str, Vec<u8>) {
        let key = self.dice.pick(&[
            "size",
            "size",
            "path",
            "linkpath",
            "mtime",
            "uid",
            "gid",
            "comment",
            "GNU.sparse.size",
            "GNU.sparse.realsize",
            "GNU.sparse.map",
            "GNU.sparse.name",
            "GNU.sparse.major",
            "GNU.sparse.minor",
            "GNU.sparse.numblocks",
            "GNU.sparse.offset",
            "GNU.sparse.numbytes",
            "SCHILY.xattr.user.a",
            "SCHILY.realsize",
            "hdrcharset",
        ]);
        let value = match key {
            "path" | "linkpath" | "GNU.sparse.name" => self.name(),
            "mtime" => self.dice.pick(&["1700000000", "5.25", "-3.5", "1e3", ""]).as_bytes().to_vec(),
            "GNU.sparse.map" => {
                self.dice.pick(&["0,5", "0,1,512,4", "5,0", "0,5,", "", "7"]).as_bytes().to_vec()
            }
            "GNU.sparse.major" | "GNU.sparse.minor" => self.dice.pick(&["0", "1"]).as_bytes().to_vec(),
            "hdrcharset" => self.dice.pick(&["BINARY", "ISO-IR 10646 2000 UTF-8"]).as_bytes().to_vec(),
            _ if self.dice.one_in(8) => {
                self.dice.pick(&["", " 5", "5 ", "+5", "0x5", "05", "5.0"]).as_bytes().to_vec()
            }
            _ => self.dice.pick(&NUMBERS).as_bytes().to_vec(),
        };
        (key, value)
    }

    fn pax(&mut self, flag: u8) {
        let mut records: Vec<_> = (0..1 + self.dice.below(3)).map(|_| self.record()).collect();
        if flag == b'g' {
            // Go's reader ignores a global time, as we do; the others apply it.
            records.retain(|(key, _)| *key != "mtime");
        }
        let shown: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
        let mut bytes = pax_records(&shown);
        match self.dice.below(20) {
            0 => bytes.push(0),
            1 => bytes.extend_from_slice(b"x"),
            2 => drop(bytes.pop()),
            _ => {}
        }
        self.extended(flag, &bytes);
    }

    fn extended(&mut self, flag: u8, bytes: &[u8]) {
        let tar = std::mem::take(&mut self.tar);
        self.tar = tar.extended(flag, bytes);
    }

    /// A whole sparse file, or nearly.
    fn sparse(&mut self) {
        let content = bait("sm", 7);
        let name = self.name();
        let size = self.dice.pick(&["2000", "2000", "1003", "1002", "0"]);
        let tar = std::mem::take(&mut self.tar);
        self.tar = match self.dice.below(3) {
            0 => tar
                .pax(&[
                    ("GNU.sparse.size", size.as_bytes()),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"0"),
                    ("GNU.sparse.numbytes", b"4"),
                    ("GNU.sparse.offset", b"1000"),
                    ("GNU.sparse.numbytes", b"3"),
                ])
                .file("s", &content),
            1 => {
                let count = self.dice.pick(&["2", "2", "2", "1"]);
                let map = self.dice.pick(&["0,4,1000,3", "0,4,1000,3", "0,4,2,3", "0,4", "1000,3,0,4"]);
                tar.pax(&[
                    ("GNU.sparse.size", size.as_bytes()),
                    ("GNU.sparse.numblocks", count.as_bytes()),
                    ("GNU.sparse.map", map.as_bytes()),
                    ("GNU.sparse.name", &name),
                ])
                .file("s", &content)
            }
            _ => {
                let map =
                    self.dice.pick(&["2\n0\n4\n1000\n3\n", "2\n0\n4\n1000\n3\n", "1\n0\n7\n", "3\n0\n4\n"]);
                let mut stored = map.as_bytes().to_vec();
                stored.resize(512, 0);
                stored.extend_from_slice(&content);
                tar.pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", &name),
                    ("GNU.sparse.realsize", size.as_bytes()),
                ])
                .file("s", &stored)
            }
        };
    }

    fn entry(&mut self) {
        let mut name = self.name();
        let flag = self.dice.pick(b"00000\x00\x007512345S6xgLK");
        if flag != b'5' && name.ends_with(b"/") && !self.dice.one_in(6) {
            name.pop();
        }
        let magic: &[u8] =
            self.dice.pick(&[&b"ustar\x0000"[..], b"ustar\x0000", b"ustar  \0", b"", b"ustar\0  "]);
        let is_file = matches!(flag, b'0' | 0 | b'7' | b'S');
        let size = if is_file || self.dice.one_in(10) { self.size() } else { 0 };
        let link: &[u8] = if matches!(flag, b'1' | b'2') || self.dice.one_in(20) { b"target" } else { b"" };
        let header = Header { name: &name, flag, size, link, magic, ..Header::default() };
        let mut tar = Tar::new().header(&header).bytes;
        match self.dice.below(24) {
            // Numbers in other notations.
            0 => tar[124..136].copy_from_slice(
                &[&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &(size as u16).to_be_bytes()].concat(),
            ),
            1 => tar[124..136].copy_from_slice(format!("{size:>11o} ").as_bytes()),
            2 => tar[124..136].copy_from_slice(format!("{size:012o}").as_bytes()),
            3 => tar[124..136].copy_from_slice(b"-0000000001\0"),
            4 => tar[124..136].fill(self.dice.pick(&[0xff, 0, b' '])),
            5 => tar[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 1, 2, 3]),
            6 => tar[136..148].copy_from_slice(&[0xff; 12]),
            // Where GNU has times and sparse maps, others have prefixes.
            7 | 8 if !magic.starts_with(b"ustar\0") => {
                tar[345..357].copy_from_slice(&octal(1_700_000_000, 11));
                self.prefix_without_dialect = true;
            }
            7 => tar[345..351].copy_from_slice(b"prefix"),
            8 => tar[345..357].copy_from_slice(&octal(1_700_000_000, 11)),
            9 => tar[508..512].copy_from_slice(b"tar\0"),
            10 => {
                tar[386..398].copy_from_slice(&octal(0, 11));
                tar[398..410].copy_from_slice(&octal(size, 11));
                tar[483..495].copy_from_slice(&octal(size + self.size(), 11));
            }
            11 => tar[100..108].copy_from_slice(b"100644 \0"),
            12 => tar[257..265].copy_from_slice(b"ustar\x0001"),
            _ => {}
        }
        support::checksum(&mut tar);
        if self.dice.one_in(40) {
            tar[148] ^= 1;
        }
        self.tar.bytes.extend_from_slice(&tar);
        // What is stored may be what the header says or not.
        let stored = match self.dice.one_in(10) {
            true => self.size(),
            false if is_file => size,
            false => 0,
        };
        let tar = std::mem::take(&mut self.tar);
        self.tar = tar.raw(&bait(&format!("sm{}", self.number), stored as usize));
    }

    fn make(mut self) -> Made {
        for _ in 0..1 + self.dice.below(5) {
            match self.dice.below(16) {
                0..=2 => self.pax(b'x'),
                3 => self.pax(b'g'),
                4 => self.sparse(),
                5 => {
                    let flag = self.dice.pick(b"LK");
                    let mut name = self.name();
                    if self.dice.one_in(2) {
                        name.push(0);
                    }
                    if self.dice.one_in(8) {
                        name.extend_from_slice(b"hidden");
                    }
                    self.extended(flag, &name);
                }
                6 if self.dice.one_in(3) => self.tar.bytes.extend_from_slice(&[0; 512]),
                _ => self.entry(),
            }
        }
        let bytes = if self.dice.one_in(12) { self.tar.bytes } else { self.tar.end() };
        Made { bytes, for_python: !self.prefix_without_dialect }
    }
}

/// What we read: the lines of the other readers, and nothing when we refuse.
fn own(tar: &[u8]) -> Option<String> {
    let mut archive = Archive::new(tar);
    let mut entry = Entry::default();
    let mut lines = String::new();
    while archive.next_entry(&mut entry).ok()? {
        let (kind, link): (u8, &[u8]) = match entry.kind {
            EntryType::Regular => (1, b""),
            EntryType::Directory => (2, b""),
            EntryType::Symlink => (3, &entry.link),
            EntryType::HardLink => (4, &entry.link),
            EntryType::CharacterDevice => (5, b""),
            EntryType::BlockDevice => (6, b""),
            EntryType::Fifo => (7, b""),
        };
        let (mut content, mut size) = ("-".to_owned(), 0);
        let link = hexadecimal(link);
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let name = hexadecimal(name.trim_end_matches('/').as_bytes());
        if kind == 1 {
            let mut hasher = kiln_oci::Hasher::new();
            loop {
                match archive.piece(usize::MAX).ok()? {
                    Piece::Data(bytes) => {
                        hasher.update(bytes);
                        let length = bytes.len();
                        archive.consume(length);
                        size += length as u64;
                    }
                    // The generator makes none that is larger.
                    Piece::Hole(length) if length > 1 << 20 => return None,
                    Piece::Hole(length) => {
                        hasher.update(&vec![0; length as usize]);
                        size += length;
                    }
                    Piece::End => break,
                }
            }
            content = hasher.finish().hex();
        }
        writeln!(
            lines,
            "{kind} {name} {:o} {} {} {} {size} {link} {content}",
            entry.mode, entry.uid, entry.gid, entry.seconds
        )
        .expect("a string");
    }
    Some(lines)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What another reader says of each tar: its lines, or nothing when it refuses.
fn others(mut reader: Command, tars: &[&[u8]]) -> Option<Vec<Option<String>>> {
    let mut child = reader.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut stdin = child.stdin.take().expect("piped");
    let stdout = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let found = std::thread::scope(|scope| {
        scope.spawn(move || {
            for tar in tars {
                stdin.write_all(&(tar.len() as u32).to_le_bytes()).expect("written");
                stdin.write_all(tar).expect("written");
            }
        });
        let mut found: Vec<Option<String>> = Vec::new();
        for line in stdout.lines() {
            match line.expect("read").as_str() {
                "case" => found.push(Some(String::new())),
                "error" => *found.last_mut().expect("a case") = None,
                line => {
                    let last = found.last_mut().expect("a case").as_mut().expect("no error yet");
                    writeln!(last, "{line}").expect("a string");
                }
            }
        }
        found
    });
    assert!(child.wait().expect("ended").success());
    assert_eq!(found.len(), tars.len());
    Some(found)
}

/// Names, types and sizes of files as GNU tar lists them; nothing when it complains.
fn gnu(tar: &[u8]) -> Option<String> {
    let mut child = Command::new("tar")
        .args(["-tvPf", "-", "--numeric-owner", "--full-time", "--quoting-style=escape"])
        .args(["--warning=no-alone-zero-block", "--warning=no-unknown-keyword"])
        .envs([("TZ", "UTC"), ("LC_ALL", "C")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("GNU tar");
    let mut stdin = child.stdin.take().expect("piped");
    // It may stop reading at the end of the archive.
    let _ = stdin.write_all(tar);
    drop(stdin);
    let output = child.wait_with_output().expect("ended");
    if !output.status.success() || !output.stderr.is_empty() {
        return None;
    }
    let mut lines = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.split_whitespace();
        let mode = words.next().expect("a mode");
        let (_, size, _, _) = (words.next(), words.next().expect("a size"), words.next(), words.next());
        let name = words.next().unwrap_or_default().trim_end_matches('/');
        let kind = match &mode[..1] {
            "-" | "C" => '1',
            "d" => '2',
            "l" => '3',
            "h" => '4',
            "c" => '5',
            "b" => '6',
            "p" => '7',
            other => panic!("{other}: {line}"),
        };
        let size = if kind == '1' { size } else { "0" };
        writeln!(lines, "{kind} {} {size}", hexadecimal(name.as_bytes())).expect("a string");
    }
    Some(lines)
}

/// Our lines as [`gnu`] has them.
fn brief(lines: &str) -> String {
    let brief = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        format!("{} {} {}\n", words[0], words[1], words[6])
    };
    lines.lines().map(brief).collect()
}

#[test]
fn every_reader_lists_the_same() {
    let (seed, rounds) = rounds(ROUNDS);
    let made: Vec<Made> = (0..rounds)
        .map(|round| {
            Maker {
                dice: Dice::new(seed.wrapping_add(round)),
                tar: Tar::new(),
                number: 0,
                prefix_without_dialect: false,
            }
            .make()
        })
        .collect();
    let tars: Vec<&[u8]> = made.iter().map(|made| made.bytes.as_slice()).collect();
    let ours: Vec<Option<String>> = tars.iter().map(|tar| own(tar)).collect();
    // What we refuse is not shown to the others, some of which it would keep busy for ever.
    let shown: Vec<&[u8]> =
        tars.iter().zip(&ours).map(|(tar, ours)| if ours.is_some() { *tar } else { &[] }).collect();
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers");
    let mut go = Command::new("go");
    go.arg("run").arg(here.join("read.go"));
    let mut python = Command::new("python3");
    python.arg(here.join("read.py"));
    let mut witnesses = Vec::new();
    for (name, reader) in [("Go", go), ("Python", python)] {
        match others(reader, &shown) {
            Some(found) => witnesses.push((name, found)),
            None => support::skipped(&format!("{name} is not installed")),
        }
    }
    witnesses.push((
        "GNU tar",
        tars.iter().zip(&ours).map(|(tar, ours)| ours.as_ref().and_then(|_| gnu(tar))).collect(),
    ));
    let mut failures = Vec::new();
    for (number, ours) in ours.iter().enumerate() {
        let Some(ours) = ours else { continue };
        for (name, theirs) in &witnesses {
            if *name == "Python" && !made[number].for_python {
                continue;
            }
            let expected = if *name == "GNU tar" { brief(ours) } else { ours.clone() };
            // Python refuses an archive of nothing but a global header.
            let agrees =
                theirs[number].as_ref() == Some(&expected) || expected.is_empty() && theirs[number].is_none();
            if !agrees {
                failures.push((number, *name, expected, theirs[number].clone()));
            }
        }
    }
    let accepted = ours.iter().flatten().count() as u64;
    let mut told = String::new();
    for (number, name, ours, theirs) in failures.iter().take(8) {
        let path = std::env::temp_dir().join(format!("differs-{number}.tar"));
        fs_err::write(&path, tars[*number]).expect("written");
        let theirs = theirs.as_deref().unwrap_or("(refused)\n");
        write!(told, "{}\nkiln:\n{ours}{name}:\n{theirs}", path.display()).expect("a string");
    }
    assert!(failures.is_empty(), "seed {seed}: {} of {accepted} differ\n{told}", failures.len());
    // Else little was compared.
    assert!(accepted > rounds / 6, "{accepted} of {rounds} accepted");
}

#[test]
fn what_readers_disagree_about_is_refused() {
    let file = |tar: Tar, name: &str| tar.file(name, b"text").file("after", b"");
    let sized = |flag, size, name: &[u8]| {
        let header = Header { name, flag, size, link: b"a", ..Header::default() };
        Tar::new().header(&header).raw(&bait("smuggled", 512)).end()
    };
    let sparse = |records: &[(&str, &[u8])]| file(Tar::new().pax(records), "f").end();
    let map: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,4")];
    let counted = [&[("GNU.sparse.numblocks", &b"1"[..])], map].concat();
    let refused: [(&str, Vec<u8>, Vec<u8>); 13] = [
        ("content of a directory", sized(b'5', 512, b"d/"), sized(b'5', 0, b"d/")),
        ("content of a symbolic link", sized(b'2', 1, b"l"), sized(b'1', 1, b"l")),
        ("slash", file(Tar::new(), "f/").end(), Tar::new().dir("f/", 0o755).end()),
        (
            "empty long name",
            file(Tar::new().extended(b'L', b"\0"), "f").end(),
            file(Tar::new().extended(b'L', b"g\0"), "f").end(),
        ),
        (
            "recorded content of a hard link",
            Tar::new().pax(&[("size", b"512")]).link("a", "h").raw(&bait("smuggled", 512)).end(),
            Tar::new().pax(&[("size", b"0")]).link("a", "h").raw(&bait("seen", 512)).end(),
        ),
        (
            "two long names",
            file(Tar::new().extended(b'L', b"g").extended(b'L', b"h"), "f").end(),
            file(Tar::new().extended(b'K', b"g").extended(b'L', b"h"), "f").end(),
        ),
        (
            "two extended headers",
            file(Tar::new().pax(&[("path", b"g")]).pax(&[("size", b"4")]), "f").end(),
            file(Tar::new().pax(&[("path", b"g"), ("size", b"4")]), "f").end(),
        ),
        (
            "global header in between",
            file(Tar::new().pax(&[("path", b"g")]).extended(b'g', &pax_records(&[("comment", b"c")])), "f")
                .end(),
            file(Tar::new().extended(b'g', &pax_records(&[("comment", b"c")])).pax(&[("path", b"g")]), "f")
                .end(),
        ),
        (
            "an owner that is nobody",
            file(Tar::new().pax(&[("uid", b"4294967295")]), "f").end(),
            file(Tar::new().pax(&[("uid", b"4294967294")]), "f").end(),
        ),
        (
            "global owner",
            file(Tar::new().extended(b'g', &pax_records(&[("uid", b"0")])), "f").end(),
            file(Tar::new().pax(&[("uid", b"0")]), "f").end(),
        ),
        (
            "a size twice",
            file(Tar::new().pax(&[("size", b"512"), ("size", b"4")]), "f").end(),
            file(Tar::new().pax(&[("comment", b"512"), ("comment", b"4")]), "f").end(),
        ),
        (
            "an empty size",
            file(Tar::new().pax(&[("size", b"")]), "f").end(),
            file(Tar::new().pax(&[("comment", b"")]), "f").end(),
        ),
        ("a sparse map without its count", sparse(map), sparse(&counted)),
    ];
    for (name, hostile, twin) in refused {
        assert_eq!(own(&hostile), None, "{name}");
        let ours = own(&twin);
        assert!(ours.as_ref().is_some_and(|lines| !lines.is_empty()), "{name}: the harmless twin");
        assert_eq!(gnu(&twin), ours.as_deref().map(brief), "{name}: the harmless twin");
    }
}
