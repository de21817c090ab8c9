//! Layers that are mounted where their tar is. Needs root and a kernel that can; says so and skips elsewhere.

use kiln_layer::Compression;
use kiln_oci::{ChainId, DiffId, Digest, History, ImageConfig, Platform};
use kiln_store::{
    CacheToRemove, Collection, GivenFiles, ImagesToRemove, Lease, Ownership, PreparedRoot, RootForm, RootWay,
    Store, Unpacking,
};
use kiln_sys::overlay::Overlay;

use crate::fixture::{Fixture, archive, compressed, image_of, layer, oci_as};
use crate::skipped::skipped;

/// A store that mounts.
fn mounting() -> Option<(tempfile::TempDir, Store)> {
    let directory = tempfile::tempdir().unwrap();
    if !rustix::process::geteuid().is_root() {
        skipped("mounts need root");
        return None;
    }
    let store = Store::open(&directory.path().join("store"), Ownership::Root).unwrap();
    if !store.mounts_tars() {
        skipped("this kernel mounts no EROFS images that are files");
        return None;
    }
    Some((directory, store))
}

fn overlay_of(prepared: &PreparedRoot) -> &Overlay {
    match &prepared.form {
        RootForm::Overlay { overlay, .. } => overlay,
        RootForm::Copy { .. } => panic!("no overlay was prepared"),
    }
}

/// A smaller layer is unpacked.
fn large() -> String {
    "hello\n".repeat(3 << 20)
}

fn load(store: &Store, lease: &Lease, directory: &tempfile::TempDir, bytes: &[u8]) {
    let path = directory.path().join("archive.tar");
    fs_err::write(&path, bytes).unwrap();
    store.load(lease, &path, Unpacking::IfNeeded, &mut |_| {}).unwrap();
}

/// Nothing is unpacked at load, nor for a root; those who ask for a directory get one.
#[test]
fn a_layer_is_stored_once() {
    let Some((directory, store)) = mounting() else { return };
    let (lease, layer) = (store.lease("test").unwrap(), layer(&large()));
    load(&store, &lease, &directory, &image_of(&[&layer]));
    let diff_id = DiffId(Digest::of(&layer));
    let prepared = store.prepare_root(&lease, &[diff_id], RootWay::Overlay, GivenFiles::Hosts).unwrap();
    assert!(store.find_snapshot(ChainId::SCRATCH, diff_id).unwrap().is_none());
    assert_eq!(overlay_of(&prepared).tars.len(), 1);
    let tar = &overlay_of(&prepared).tars[0];
    assert_eq!(fs_err::read(&tar.tar).unwrap(), layer);
    // The last one is that of mount points.
    let own = |prepared: &kiln_store::PreparedRoot| {
        let [own @ .., mount_points] = &overlay_of(prepared).lowers[..] else { panic!("no lowers") };
        assert_eq!(*mount_points, directory.path().join("store/mount-points/hosts"));
        own.to_vec()
    };
    assert_eq!(own(&prepared), std::slice::from_ref(&tar.at));
    // A layer that comes twice is mounted once.
    let twice = store.prepare_root(&lease, &[diff_id, diff_id], RootWay::Overlay, GivenFiles::Hosts).unwrap();
    assert_eq!((overlay_of(&twice).tars.len(), own(&twice).len()), (1, 1));
    let unpacked = store.snapshots(&lease, &[diff_id]).unwrap();
    assert_eq!(fs_err::read_to_string(unpacked[0].diff.join("hello")).unwrap(), large());
    let prepared = store.prepare_root(&lease, &[diff_id], RootWay::Overlay, GivenFiles::Hosts).unwrap();
    assert!(overlay_of(&prepared).tars.is_empty());
    drop(lease);
    assert_eq!(store.check().unwrap().garbage, Vec::<String>::new());
}

/// A compressed layer is decompressed once, when it is first needed, and the image still goes out as it came.
#[test]
fn a_compressed_layer_is_decompressed_when_it_is_needed() {
    let Some((directory, store)) = mounting() else { return };
    let (lease, layer) = (store.lease("test").unwrap(), layer(&large()));
    let (archive, manifest) = oci_as("app:1", Compression::Gzip, &layer, &layer);
    let compressed = compressed(Compression::Gzip, &layer);
    load(&store, &lease, &directory, &archive);
    let diff_id = DiffId(Digest::of(&layer));
    let forms = |store: &Store| {
        let blobs = store.layer_blobs(diff_id).unwrap();
        blobs.into_iter().map(|blob| blob.compression).collect::<Vec<_>>()
    };
    assert_eq!(forms(&store), ["gzip"]);
    for _ in 0..2 {
        let prepared = store.prepare_root(&lease, &[diff_id], RootWay::Overlay, GivenFiles::Hosts).unwrap();
        assert_eq!(fs_err::read(&overlay_of(&prepared).tars[0].tar).unwrap(), layer);
        assert_eq!(forms(&store), ["none", "gzip"]);
    }
    let index = fs_err::read_to_string(store.root().join("index.json")).unwrap();
    assert!(index.contains(&manifest.hex()), "{index}");
    // What a torn blob would decompress to is never mounted.
    fs_err::write(store.blob_path(&Digest::of(&compressed)), &compressed[..compressed.len() - 9]).unwrap();
    fs_err::remove_file(store.blob_path(&Digest::of(&layer))).unwrap();
    drop(lease);
    let faults = store.check().unwrap().faults;
    assert_eq!(faults.len(), 2, "{faults:?}");
}

/// The images for mounts are of one boot, and go with their layers.
#[test]
fn images_for_mounts_are_collected() {
    let Some((directory, store)) = mounting() else { return };
    let (lease, layer) = (store.lease("test").unwrap(), layer(&large()));
    load(&store, &lease, &directory, &image_of(&[&layer]));
    store.prepare_root(&lease, &[DiffId(Digest::of(&layer))], RootWay::Overlay, GivenFiles::Hosts).unwrap();
    let mounts = store.root().join("mounts");
    let other = mounts.join("another-boot");
    fs_err::create_dir(&other).unwrap();
    fs_err::write(other.join(Digest::of(&layer).hex()), "torn by a power cut").unwrap();
    drop(lease);
    let all =
        Collection { images: ImagesToRemove::None, cache: CacheToRemove::Nothing, ..Collection::default() };
    store.collect(&all).unwrap();
    assert!(!other.exists());
    let boot = fs_err::read_dir(&mounts).unwrap().next().unwrap().unwrap().path();
    let count = || fs_err::read_dir(&boot).unwrap().count();
    assert_eq!(count(), 1);
    store.collect(&Collection { images: ImagesToRemove::All, cache: CacheToRemove::All, ..all }).unwrap();
    assert_eq!(count(), 0);
}

/// overlayfs knows no opaque root of a lower: what it would hide is not mounted at all.
#[test]
fn an_opaque_root_hides_the_layers_below() {
    let fixture = Fixture::new();
    let lease = fixture.store.lease("test").unwrap();
    let (lower, upper) =
        (layer("lower\n"), archive(&[(".wh..wh..opq", Ok(Vec::new())), ("new", Ok(b"x".to_vec()))]));
    fixture.load(&image_of(&[&lower, &upper])).unwrap();
    let layers = [&lower, &upper].map(|tar| DiffId(Digest::of(tar)));
    let lowers = |layers: &[DiffId]| match fixture
        .store
        .prepare_root(&lease, layers, RootWay::Overlay, GivenFiles::Hosts)
        .unwrap()
        .form
    {
        // One is that of mount points.
        kiln_store::RootForm::Overlay { overlay, .. } => overlay.lowers.len() - 1,
        kiln_store::RootForm::Copy { .. } => panic!("a copy"),
    };
    assert_eq!(lowers(&layers), 1);
    assert_eq!(lowers(&[layers[1], layers[0]]), 2);
}

/// Who wants directories gets them.
#[test]
fn unpacking_can_be_asked_for() {
    let fixture = Fixture::new();
    assert!(!fixture.store.mounts_tars());
    let (_, layer) = fixture.image("hello\n", Some("app:1"));
    assert!(fixture.store.find_snapshot(ChainId::SCRATCH, layer).unwrap().is_some());
}

/// A small layer is unpacked anyway; what is imported need not have the tar, too.
#[test]
fn a_small_import_is_stored_once_and_a_large_one_as_its_tar() {
    let Some((directory, store)) = mounting() else { return };
    let lease = store.lease("test").unwrap();
    let many = archive(&(0..2000).map(|name| (name.to_string(), Ok(Vec::new()))).collect::<Vec<_>>());
    for (tar, blobs, is_unpacked) in
        [(layer("small"), 0, true), (layer(&large()), 1, false), (many, 1, false)]
    {
        let path = directory.path().join("input.tar");
        fs_err::write(&path, &tar).unwrap();
        let input = fs_err::File::open(&path).unwrap().into_file();
        let config = ImageConfig::scratch(&Platform::host());
        store.import(&lease, input, config, History::default(), None).unwrap();
        let diff_id = DiffId(Digest::of(&tar));
        assert_eq!(store.layer_blobs(diff_id).unwrap().len(), blobs);
        let snapshot = store.find_snapshot(ChainId::SCRATCH, diff_id).unwrap();
        assert_eq!(snapshot.is_some(), is_unpacked);
        // As it came.
        let (mut file, _) = store.open_layer(&lease, &[], diff_id).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        assert!(bytes == tar);
    }
    assert_eq!(store.check().unwrap().faults, []);
}
