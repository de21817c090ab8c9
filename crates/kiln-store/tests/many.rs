//! What a build pays for publishing its image does not grow with how many images the store holds.

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_oci::ImageConfig;
use kiln_store::{CacheToRemove, Collection, ImagesToRemove, Ownership, Store};

#[expect(dead_code, reason = "what other tests use")]
#[path = "store/fixture.rs"]
mod fixture;

use fixture::Fixture;

/// A store in memory if that can be had, so that syncing does not take most of the time.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory")
}

/// Publishes an image that differs from all others, as a build does.
fn publish(store: &Store, config: &ImageConfig, number: usize) -> Duration {
    let mut config = config.clone();
    config.config.env = Some(vec![format!("NUMBER={number}")]);
    let name = format!("image{}:v{number}", number / 10).parse().expect("a name");
    let bytes = config.to_bytes();
    let start = Instant::now();
    store.publish_image(&bytes, &[name]).expect("published");
    start.elapsed()
}

#[test]
fn a_thousand_images() {
    let fixture = Fixture::at(directory(), Ownership::SingleId);
    let (id, _) = fixture.image("hello", Some("base:1"));
    let store = &fixture.store;
    let config = store.image(id).expect("an image").config;
    let few = (0..20).map(|number| publish(store, &config, number)).min();
    for number in 20..980 {
        publish(store, &config, number);
    }
    let many = (980..1000).map(|number| publish(store, &config, number)).min();
    let (few, many) = (few.expect("a time"), many.expect("a time"));
    assert!(many < few * 3 + Duration::from_millis(1), "{few:?} with few images, {many:?} with many");

    let images = store.images().expect("listed");
    assert_eq!((images.len(), images.iter().filter(|image| image.names.len() == 1).count()), (1001, 1001));
    let usage = store.disk_usage().expect("told");
    // One layer, whichever way it is looked at.
    assert_eq!(
        (usage.images.len(), usage.image_bytes, usage.blobs, usage.unused_blob_bytes),
        (1001, 5, 1, 0)
    );
    assert!(usage.images.iter().all(|image| image.size == 5 && image.shared == 5));
    let everything =
        Collection { images: ImagesToRemove::All, cache: CacheToRemove::Unused, ..Collection::default() };
    let collected = store.collect(&everything).expect("collected");
    assert_eq!((collected.images.len(), collected.image_layers.len()), (1001, 1));
    let checked = store.check().expect("checked");
    assert_eq!((checked.layers, checked.faults, checked.garbage), (0, vec![], vec![]));
}
