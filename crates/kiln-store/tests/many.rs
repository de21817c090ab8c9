//! What a build pays for publishing its image does not grow with how many images the store holds.

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_layer::{Kind, Metadata, tar};
use kiln_oci::{History, ImageConfig, Platform};
use kiln_store::{CacheToRemove, Collection, ImagesToRemove, Ownership, Store};

/// A store in memory if that can be had, so that syncing does not take most of the time.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory")
}

/// A store with a loaded image, which the layout shows, and its config.
fn store(directory: &Path) -> (Store, ImageConfig) {
    let store = Store::open(&directory.join("store"), Ownership::SingleId).expect("a store");
    let mut layer = Vec::new();
    tar::write_header(b"file", &Metadata { size: 5, ..Metadata::new(Kind::Regular, 0o644) }, &mut layer);
    layer.extend_from_slice(b"hello");
    tar::pad(5, &mut layer);
    layer.resize(layer.len() + 1024, 0);
    let path = directory.join("layer.tar");
    fs_err::write(&path, layer).expect("written");
    let lease = store.lease("test").expect("a lease");
    let input = fs_err::File::open(&path).expect("opened").into_file();
    let config = ImageConfig::scratch(&Platform::host());
    let name = "base:1".parse().expect("a name");
    let id = store.import(&lease, input, config, History::default(), Some(&name)).expect("imported");
    let config = store.image(id).expect("an image").config;
    (store, config)
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
    let directory = directory();
    let (store, config) = store(directory.path());
    let few = (0..20).map(|number| publish(&store, &config, number)).min();
    for number in 20..980 {
        publish(&store, &config, number);
    }
    let many = (980..1000).map(|number| publish(&store, &config, number)).min();
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
