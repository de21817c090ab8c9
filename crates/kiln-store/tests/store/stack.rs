//! Files out of layers that are there as compressed blobs alone.

use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_layer::Compression;
use kiln_oci::{DiffId, Digest};
use kiln_store::{
    Error, FilesBusy, GivenFiles, Lease, Patience, RootWay, StackContents, Store, Unpacking, Working,
};

use crate::fixture::{Fixture, Member, archive, config, docker, told};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn text(name: &str) -> Vec<u8> {
    name.repeat(10_000).into_bytes()
}

/// A store with one image of one gzip layer.
fn fixture() -> (Fixture, DiffId) {
    let members: Vec<(&str, Member)> = NAMES.iter().map(|name| (*name, Ok(text(name)))).collect();
    let tar = archive(&members);
    let mut encoder = Compression::Gzip.encoder(Vec::new(), 6).unwrap();
    encoder.write_all(&tar).unwrap();
    let members = [
        ("manifest.json", docker("c.json", &["0.tar"])),
        ("c.json", Ok(config(&[&tar]))),
        ("0.tar", Ok(encoder.finish().unwrap())),
    ];
    let fixture = Fixture::new();
    let path = fixture.path("archive.tar");
    fs_err::write(&path, archive(&members)).unwrap();
    fixture.store.load(&fixture.store.lease("load").unwrap(), &path, Unpacking::Later, &mut |_| {}).unwrap();
    (fixture, DiffId(Digest::of(&tar)))
}

fn read(contents: &StackContents, store: &Store, lease: &Lease, (layer, name): (DiffId, &str)) {
    let index = store.index(layer).unwrap();
    let entry = index.find(name.as_bytes()).unwrap().expect("the file");
    let mut bytes = Vec::new();
    let mut reader = contents.open::<Error>(store, || Ok(lease.into()), (0, &entry)).unwrap();
    reader.read_to_end(&mut bytes).unwrap();
    assert!(bytes == text(name), "{name}");
}

/// To decompress a layer for each of its files anew would take the square of its size.
#[test]
fn the_second_file_of_a_compressed_layer_makes_its_tar() {
    let (fixture, layer) = fixture();
    let store = &fixture.store;
    let lease = store.lease("test").unwrap();
    let contents = StackContents::new(vec![layer]);
    let plain = store.blob_path(&layer.0);
    read(&contents, store, &lease, (layer, "c"));
    assert!(!plain.exists(), "one file leaves nothing behind");
    for name in NAMES {
        read(&contents, store, &lease, (layer, name));
        assert!(plain.exists());
    }
    assert_eq!(store.check().unwrap().faults, []);
}

/// Somebody whose need ends after so many looks.
struct Looks(AtomicU32);

impl Patience for Looks {
    fn pause(&self, _: &FilesBusy<'_>) -> ControlFlow<()> {
        ControlFlow::Break(())
    }

    fn end(&self) {}

    fn is_over(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Neither unpacked nor copied nor decompressed: a hostile layer may be a petabyte of zeros.
#[test]
fn what_nobody_needs_any_more_is_not_read() {
    for way in [RootWay::Overlay, RootWay::Copy] {
        let (fixture, layer) = fixture();
        let store = &fixture.store;
        let lease = store.lease("test").unwrap();
        let prepare = |patience: &Looks| {
            let working = Working::with(&lease, patience);
            store.prepare_root(working, &[layer], way, GivenFiles::Hosts).map(drop)
        };
        for looks in 1..3 {
            let error = prepare(&Looks(looks.into())).expect_err("it ends");
            assert!(told(&error).ends_with(&Error::Stopped.to_string()), "{}", told(&error));
            assert!(store.find_snapshot(kiln_oci::ChainId::SCRATCH, layer).unwrap().is_none());
        }
        prepare(&Looks(0.into())).unwrap();
        assert_eq!(store.check().unwrap().faults, []);
    }
}
