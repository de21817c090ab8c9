//! Bytes that chance has changed: tars, compressed layers and layer indexes are read or refused, without panic and in time.
//! Longer by hand:
//!
//! ```text
//! KILN_FUZZ_SEED=7 KILN_FUZZ_ROUNDS=1000000 cargo test --release -p kiln-layer --test fuzz
//! ```

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_layer::{Compression, LayerIndex, Limits, Options, RootView, walk};
use support::chance::{Dice, rounds};
use support::{Header, Tar, pax_records};

const ROUNDS: u64 = 4_000;
/// For one input, which is small and whose limits are.
const PATIENCE: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits { bytes: 16 << 20, entries: 10_000, detours: 1 << 20 };

fn seeds() -> Vec<Vec<u8>> {
    let sparse = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"2000"),
    ];
    let mut map = b"2\n0\n4\n1000\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abcdxyz");
    let old = Header { name: b"old", flag: b'S', size: 7, magic: b"ustar  \0", ..Header::default() };
    let mut old = Tar::new().header(&old).bytes;
    for (at, value) in [(386, 0), (398, 4), (410, 1000), (422, 3), (483, 2000)] {
        old[at..at + 12].copy_from_slice(format!("{value:011o}\0").as_bytes());
    }
    support::checksum(&mut old);
    vec![
        Tar::new().dir("d", 0o755).file("d/f", b"text").symlink("f", "d/l").link("d/f", "d/h").end(),
        Tar::new()
            .symlink("/etc", "l")
            .file("l/passwd", b"x")
            .file("d/.wh.x", b"")
            .file("d/.wh..wh..opq", b"")
            .end(),
        Tar::new().pax(&sparse).file("s", &map).file("after", b"z").end(),
        Tar { bytes: old }.raw(b"abcdxyz").end(),
        Tar::new()
            .extended(b'g', &pax_records(&[("comment", b"c")]))
            .pax(&[("path", b"p"), ("size", b"4"), ("mtime", b"-1.5"), ("SCHILY.xattr.user.a", b"v")])
            .file("x", b"abcd")
            .extended(b'L', &[b'n'; 300])
            .extended(b'K', b"k\0")
            .symlink("t", "n")
            .node(b'3', "c", (1, 3))
            .node(b'6', "p", (0, 0))
            .end(),
    ]
}

fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    const DIGITS: &[u8] = b"0123456789 \0-=,\n/.\x80\xff";
    for _ in 0..1 + dice.below(6) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.below(bytes.len());
        let length = dice.below(64).min(bytes.len() - at);
        match dice.below(8) {
            0 => bytes[at] = dice.next() as u8,
            1 | 2 => bytes[at] = dice.pick(DIGITS),
            3 => bytes[at] ^= 1 << dice.below(8),
            4 => bytes[at..at + length].fill(dice.pick(&[0, 0xff, b'7', b'9', b' '])),
            5 => drop(bytes.drain(at..at + length)),
            6 => {
                let part = bytes[at..at + length].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, part);
            }
            // Whole blocks change places or come twice.
            _ => {
                let block = at / 512 * 512;
                let part = bytes[block..(block + 512).min(bytes.len())].to_vec();
                let to = dice.below(bytes.len() / 512 + 1) * 512;
                bytes.splice(to..to, part);
            }
        }
    }
}

/// A header's checksum would hide everything behind it.
fn mend(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            support::checksum(block);
        }
    }
}

fn read_index(bytes: Vec<u8>) {
    let Ok(index) = LayerIndex::from_bytes(bytes) else { return };
    for entry in index.entries() {
        let Ok(entry) = entry else { break };
        let _ = (entry.path().len(), entry.link().len(), entry.xattrs().count(), entry.content());
    }
    let view = RootView::new(vec![Arc::new(index)]);
    let Ok(root) = view.root() else { return };
    for node in view.walk(root).take(1000) {
        let Ok(node) = node else { break };
        let _ = (view.digest(&node), view.metadata(&node), view.resolve(node.path()));
    }
}

fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = compression.encoder(Vec::new(), 1).expect("an encoder");
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("finished")
}

#[test]
fn mutated_layers_and_indexes() {
    let (first, rounds) = rounds(ROUNDS);
    let seeds = seeds();
    let mut read = 0;
    for seed in first..first + rounds {
        let dice = &mut Dice::new(seed);
        let start = Instant::now();
        let mut bytes = seeds[dice.below(seeds.len())].clone();
        if dice.one_in(3) {
            bytes.truncate(bytes.len() - 1024);
            bytes.extend_from_slice(&seeds[dice.below(seeds.len())]);
        }
        let options = Options { limits: LIMITS, ..Options::default() };
        match dice.below(8) {
            0 => {
                let mut stream = compressed(dice.pick(&[Compression::Gzip, Compression::Zstd]), &bytes);
                mutate(dice, &mut stream);
                read += usize::from(walk(&stream[..], &options).is_ok());
            }
            1 => {
                let Ok(walked) = walk(&bytes[..], &options) else { continue };
                let mut index = walked.index.bytes().to_vec();
                mutate(dice, &mut index);
                read_index(index);
            }
            _ => {
                mutate(dice, &mut bytes);
                mend(&mut bytes);
                if let Ok(walked) = walk(&bytes[..], &options) {
                    read += 1;
                    read_index(walked.index.bytes().to_vec());
                }
            }
        }
        assert!(start.elapsed() < PATIENCE, "KILN_FUZZ_SEED={seed}: {:?}", start.elapsed());
    }
    // Else everything is refused at once and nothing is tried.
    assert!(read as u64 > rounds / 50, "{read} of {rounds}");
}
