//! What is left of earlier boots and of killed commands.

use kiln_oci::{DiffId, Digest};
use kiln_store::{CacheToRemove, Collection, Leased};

use crate::fixture::{Fixture, image_of, layer};

/// After a power cut, what nobody synced is no fault: nothing uses it, and it goes.
#[test]
fn what_an_earlier_boot_left_behind_goes() {
    let fixture = Fixture::new();
    let foreign = layer("foreign");
    fixture.load(&image_of(&[&foreign])).unwrap();
    let kept = fixture.built("kept");
    let lost = fixture.built("lost");
    fixture.store.collect(&Collection::default()).unwrap();
    let root = fixture.store.root();
    let mounts = root.join("mounts");
    fs_err::create_dir(mounts.join("earlier-1")).unwrap();
    fixture.change(&format!(
        "DELETE FROM tags WHERE name LIKE '%lost%'; \
         DELETE FROM images WHERE id IN (SELECT image FROM image_layers WHERE diff_id = x'{0}'); \
         UPDATE layers SET boot = 'earlier' WHERE diff_id = x'{0}'; \
         UPDATE snapshots SET boot = 'earlier' WHERE diff_id = x'{0}' OR boot IS NOT NULL; \
         INSERT INTO blobs VALUES (x'{1}', 4, 'earlier', 0); \
         INSERT INTO leases VALUES ('0123', 'killed', 0)",
        lost.0.hex(),
        Digest::of(b"torn").hex()
    ));
    fs_err::create_dir(root.join("tmp/0123")).unwrap();
    let torn = [root.join("index").join(lost.0.hex()), fixture.store.blob_path(&Digest::of(b"torn"))];
    for path in &torn {
        let _ = fs_err::remove_file(path);
        fs_err::write(path, b"to").unwrap();
    }
    let checked = fixture.again().check().unwrap();
    assert_eq!((checked.faults, checked.layers), (vec![], 2));
    let kinds = checked.garbage.iter().map(|name| name.rsplit_once('/').unwrap().0).collect::<Vec<_>>();
    let one_each = ["blobs/sha256", "index", "mounts"];
    // The loaded layer's files are unpacked again when they are needed.
    assert_eq!(kinds, [&one_each[..], &["overlay2"; 2], &["overlay2/l"; 2], &["tmp"]].concat());
    let collected = fixture.again().collect(&Collection::default()).unwrap();
    assert_eq!(collected.cache_layers, [lost]);
    let checked = fixture.again().check().unwrap();
    assert_eq!((checked.faults, checked.garbage), (vec![], vec![]));
    assert!(!torn.iter().any(|path| path.exists()));
    let store = fixture.again();
    let lease = store.lease("test").unwrap();
    store.snapshots(&lease, &[DiffId(Digest::of(&foreign)), kept]).unwrap();
}

/// A command that runs may use what a failed sync has put into doubt.
#[test]
fn what_is_leased_stays_when_it_is_not_trusted_any_more() {
    let fixture = Fixture::new();
    let (layer, lease) = (fixture.built("used"), fixture.store.lease("test").unwrap());
    let snapshot = fixture.store.snapshots(&lease, &[layer]).unwrap().remove(0);
    lease.keep(Leased::Layer(layer)).unwrap();
    fixture.store.remove_image("used:1", false).unwrap();
    fixture.change("UPDATE layers SET boot = 'not synced'; UPDATE snapshots SET boot = 'not synced'");
    let all = Collection { cache: CacheToRemove::All, ..Collection::default() };
    fixture.store.collect(&all).unwrap();
    assert!(snapshot.diff.join("file").exists());
    drop(lease);
    fixture.store.collect(&all).unwrap();
    assert!(!snapshot.diff.exists());
}

/// Another version of kiln may be at work, as long as anybody is.
#[test]
fn images_for_mounts_of_another_version_go_when_nobody_works() {
    let fixture = Fixture::new();
    let mounts = fixture.store.root().join("mounts");
    let older = mounts.join(format!("{}-0", kiln_sys::publish::boot_id().unwrap()));
    fs_err::create_dir(&older).unwrap();
    fs_err::create_dir(mounts.join("another boot-1")).unwrap();
    let lease = fixture.store.lease("test").unwrap();
    fixture.store.collect(&Collection::default()).unwrap();
    let left = || fs_err::read_dir(&mounts).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(left(), [older]);
    drop(lease);
    fixture.store.collect(&Collection::default()).unwrap();
    assert_eq!(left(), Vec::<std::path::PathBuf>::new());
}

/// Contexts and addresses that nobody comes back to would fill the disk.
#[test]
fn what_is_only_remembered_has_a_most() {
    let fixture = Fixture::new();
    let directory = fixture.store.root().join("context");
    let write = |number: u64| {
        let file = fs_err::File::create(directory.join(number.to_string())).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - number);
        file.into_file().set_modified(time).unwrap();
    };
    (0..1_002).for_each(write);
    fixture.store.collect(&Collection::default()).unwrap();
    let count = || fs_err::read_dir(&directory).unwrap().count();
    assert_eq!(count(), 1_000);
    assert!(directory.join("999").exists() && !directory.join("1000").exists());
    let large = fs_err::OpenOptions::new().write(true).open(directory.join("500")).unwrap();
    large.set_len((256 << 20) + 1).unwrap();
    large.into_file().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(999_500)).unwrap();
    fixture.store.collect(&Collection::default()).unwrap();
    assert_eq!(count(), 500);
    fixture.store.collect(&Collection { cache: CacheToRemove::All, ..Collection::default() }).unwrap();
    assert_eq!(count(), 0);
}

#[test]
fn what_a_kill_left_of_a_layout_goes() {
    let fixture = Fixture::new();
    let left = fixture.store.root().join(".tmp-0123456789abcdef");
    fs_err::write(&left, "{").unwrap();
    assert_eq!(fixture.store.check().unwrap().garbage, [".tmp-0123456789abcdef"]);
    fixture.store.collect(&Collection::default()).unwrap();
    assert!(!left.exists());
}
