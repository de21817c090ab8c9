//! What comes in is read and parsed once, however it is kept. Spans are counted, which are those of the whole process: so
//! this is a test of its own.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use kiln_layer::Compression;
use kiln_oci::{DiffId, Digest, History, ImageConfig, Platform};
use kiln_store::{Ownership, Store};

#[expect(dead_code, reason = "what other tests use")]
#[path = "store/fixture.rs"]
mod fixture;
#[path = "../../../tests/skipped.rs"]
mod skipped;

use fixture::{archive, layer};

/// How often a tar was parsed, and how many of its bytes came out of the reader and decompressor.
fn walked(work: impl FnOnce()) -> (usize, u64) {
    kiln_trace::start();
    work();
    let trace = kiln_trace::finish().expect("it was asked for");
    let of = |name| trace.events.iter().filter(move |event| event.name == name);
    (of("parse tar").count(), of("read and hash layer").map(|event| event.bytes).sum())
}

fn import(store: &Store, input: File) {
    let lease = store.lease("test").expect("a lease");
    let config = ImageConfig::scratch(&Platform::host());
    store.import(&lease, input, config, History::default(), None).expect("imported");
}

fn written(path: &Path, bytes: &[u8]) -> File {
    fs_err::write(path, bytes).expect("written");
    fs_err::File::open(path).expect("opened").into_file()
}

fn bytes_of(store: &Store, layer: DiffId) -> Vec<u8> {
    let lease = store.lease("test").expect("a lease");
    let (mut file, _) = store.open_layer(&lease, &[], layer).expect("a layer");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("read");
    bytes
}

#[test]
fn an_import_is_one_walk() {
    let large = layer(&"hello\n".repeat(3 << 20));
    let many = archive(&(0..2000).map(|name| (name.to_string(), Ok(Vec::new()))).collect::<Vec<_>>());
    let implied = archive(&[("implied/file", Ok(b"text".to_vec()))]);
    let replaced = archive(&[("file", Ok(b"first".to_vec())), ("file", Ok(b"second".to_vec()))]);
    let tars = [
        ("small", layer("small")),
        ("large", large),
        ("many", many),
        ("implied", implied),
        ("replaced", replaced),
    ];
    let ownership = if rustix::process::geteuid().is_root() {
        Ownership::Root
    } else {
        skipped::skipped("what is imported where it is needs root");
        Ownership::SingleId
    };
    for mounts in [true, false] {
        for compression in [Compression::Plain, Compression::Gzip] {
            let directory = tempfile::tempdir().expect("a directory");
            let store = Store::open(&directory.path().join("store"), ownership).expect("a store");
            if !mounts {
                store.never_mount_tars();
            } else if !store.mounts_tars() {
                skipped::skipped("this kernel or user mounts no EROFS images that are files");
            }
            for (name, tar) in &tars {
                let mut encoder = compression.encoder(Vec::new(), 1).expect("an encoder");
                encoder.write_all(tar).expect("compressed");
                let came = encoder.finish().expect("compressed");
                let input = written(&directory.path().join("input"), &came);
                let found = walked(|| import(&store, input));
                assert_eq!(found, (1, tar.len() as u64), "{name}, {compression:?}, mounts: {mounts}");
                let layer = DiffId(Digest::of(tar));
                assert!(bytes_of(&store, layer) == came, "{name}, {compression:?}, mounts: {mounts}");
            }
            assert_eq!(store.check().expect("checked").faults, []);
        }
    }
}
