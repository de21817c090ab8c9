//! What is kept and what goes: leases, names, collection, and what a check finds.

use std::collections::HashSet;
use std::io::Write as _;
use std::time::Duration;

use kiln_layer::{Compression, Kind, Metadata, Owners, tar};
use kiln_oci::{ChainId, DiffId, Digest, History, ImageConfig, ImageId, Platform};
use kiln_store::{
    CacheMountSharing, CacheRecord, CacheToRemove, Collected, Collection, Fault, ImagesToRemove, Lease,
    Leased, Ownership, Removed, RootWay, Store,
};

struct Fixture {
    _directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = rustix::process::geteuid().is_root();
        let ownership = if root { Ownership::Root } else { Ownership::SingleId };
        let store = Store::open(&directory.path().join("store"), ownership).unwrap();
        Self { _directory: directory, store }
    }

    /// An image of one layer with one file, imported from a plain tar, which as root is not stored beside its files.
    fn image(&self, text: &str, name: Option<&str>) -> (ImageId, DiffId) {
        self.image_from(text, name, Compression::Plain)
    }

    fn image_from(&self, text: &str, name: Option<&str>, compression: Compression) -> (ImageId, DiffId) {
        let mut bytes = Vec::new();
        let metadata = Metadata { size: text.len() as u64, ..Metadata::new(Kind::Regular, 0o644) };
        tar::write_header(b"file", &metadata, &mut bytes);
        bytes.extend_from_slice(text.as_bytes());
        tar::pad(text.len() as u64, &mut bytes);
        bytes.resize(bytes.len() + 1024, 0);
        let path = self.store.root().join("input.tar");
        let mut encoder = compression.encoder(Vec::new(), 1).unwrap();
        encoder.write_all(&bytes).unwrap();
        fs_err::write(&path, encoder.finish().unwrap()).unwrap();
        let lease = self.store.lease("test").unwrap();
        let config = ImageConfig::scratch(&Platform::host());
        let input = fs_err::File::open(&path).unwrap().into_file();
        let name = name.map(|name| name.parse().unwrap());
        let id = self.store.import(&lease, input, config, History::default(), name.as_ref()).unwrap();
        (id, DiffId(Digest::of(&bytes)))
    }

    fn collect(&self, images: ImagesToRemove) -> Collected {
        let cache = CacheToRemove::Unused;
        self.store.collect(&Collection { images, cache, ..Collection::default() }).unwrap()
    }

    fn has(&self, layer: DiffId) -> bool {
        let snapshot = |layer| self.store.find_snapshot(ChainId::SCRATCH, layer).unwrap();
        self.store.layer(layer).unwrap().is_some() && snapshot(layer).is_some_and(|s| s.diff.is_dir())
    }
}

#[test]
fn a_lease_keeps_what_it_holds() {
    let fixture = Fixture::new();
    let (id, layer) = fixture.image("held", Some("held:1"));
    let lease = fixture.store.lease("holder").unwrap();
    lease.keep(Leased::Layer(layer)).unwrap();
    let removed = fixture.store.remove_image("held:1", false).unwrap();
    assert_eq!(removed, [Removed::Untagged("held:1".to_owned()), Removed::Deleted(id)]);
    fixture.collect(ImagesToRemove::All);
    assert!(fixture.has(layer));
    drop(lease);
    assert_eq!(fixture.collect(ImagesToRemove::All).cache_layers, [layer]);
    assert_eq!(fixture.store.check().unwrap().garbage, Vec::<String>::new());
}

#[test]
fn images_go_by_their_names() {
    let fixture = Fixture::new();
    let (id, layer) = fixture.image("one", Some("one:1"));
    fixture.store.tag(id, &"two:2".parse().unwrap()).unwrap();
    let error = fixture.store.remove_image(&id.0.short(), false).unwrap_err().to_string();
    assert!(error.contains("must be forced"), "{error}");
    assert_eq!(fixture.store.remove_image("one:1", false).unwrap(), [Removed::Untagged("one:1".to_owned())]);
    assert!(fixture.has(layer));
    let gone = fixture.store.remove_image(&id.to_string(), false).unwrap();
    assert_eq!(gone, [Removed::Untagged("two:2".to_owned()), Removed::Deleted(id), Removed::Layer(layer)]);
    assert!(matches!(fixture.store.remove_image("two:2", true), Err(kiln_store::Error::NoImage(_))));
}

#[test]
fn collection_takes_what_was_asked_for() {
    let fixture = Fixture::new();
    let (named, named_layer) = fixture.image("named", Some("named:1"));
    let (dangling, dangling_layer) = fixture.image("dangling", None);
    let (_, spared_layer) = fixture.image("spared", None);
    let only = HashSet::from([dangling, named]);
    let images = ImagesToRemove::Dangling;
    let collection = Collection { images, only: Some(&only), ..Collection::default() };
    let collected = fixture.store.collect(&collection).unwrap();
    assert_eq!(collected.images.iter().map(|image| image.id).collect::<Vec<_>>(), [dangling]);
    assert_eq!(collected.image_layers, [dangling_layer]);
    assert!(fixture.has(named_layer) && fixture.has(spared_layer) && !fixture.has(dangling_layer));
    assert_eq!(fixture.collect(ImagesToRemove::All).images.len(), 2);
    assert_eq!(fixture.store.check().unwrap().layers, 0);
}

#[test]
fn cache_mounts_in_use_stay() {
    let fixture = Fixture::new();
    let used = fixture.store.cache_mount("used", CacheMountSharing::Locked).unwrap();
    let idle = fixture.store.cache_mount("idle", CacheMountSharing::Shared).unwrap().path().to_path_buf();
    fs_err::write(idle.join("file"), b"12345").unwrap();
    let collected = fixture.collect(ImagesToRemove::None);
    assert_eq!((collected.cache_mounts.len(), collected.bytes), (1, 5));
    assert!(used.path().is_dir() && !idle.exists());
    assert!(fixture.store.cache_mount("idle", CacheMountSharing::Shared).unwrap().is_fresh());
}

#[test]
fn a_check_names_what_is_damaged() {
    let fixture = Fixture::new();
    let (_, layer) = fixture.image("good", Some("good:1"));
    assert_eq!(fixture.store.check().unwrap().faults, []);
    fs_err::write(fixture.store.root().join("blobs/sha256/stray"), b"x").unwrap();
    let checked = fixture.store.check().unwrap();
    assert_eq!((checked.faults, checked.garbage), (vec![], vec!["blobs/sha256/stray".to_owned()]));
    fixture.collect(ImagesToRemove::None);
    assert_eq!(fixture.store.check().unwrap().garbage, Vec::<String>::new());
    let index = fixture.store.root().join("index").join(layer.0.hex());
    fs_err::remove_file(&index).unwrap();
    fs_err::write(&index, b"no index").unwrap();
    let again = Store::open(fixture.store.root(), fixture.store.ownership()).unwrap();
    let faults = again.check().unwrap().faults;
    assert!(
        matches!(faults.as_slice(), [Fault::Index { layer: found, .. }] if *found == layer),
        "{faults:?}"
    );
}

#[test]
fn a_lease_on_an_image_keeps_its_layers_when_the_image_goes() {
    let fixture = Fixture::new();
    let (id, layer) = fixture.image("run", Some("run:1"));
    let lease = fixture.store.lease("runner").unwrap();
    lease.keep(Leased::Image(id)).unwrap();
    fixture.store.remove_image("run:1", true).unwrap();
    fixture.collect(ImagesToRemove::All);
    assert!(fixture.has(layer));
}

#[test]
fn a_layer_that_only_another_ownership_mode_can_read_is_not_there() {
    let fixture = Fixture::new();
    let lease = fixture.store.lease("builder").unwrap();
    let prepared = fixture.store.prepare_root(&lease, &[], RootWay::Overlay).unwrap();
    fs_err::write(prepared.changed().join("file"), b"made here").unwrap();
    let view = fixture.store.root_view(&[]).unwrap();
    let layer = fixture.store.capture(&lease, &prepared, &view, Owners::Files, None).unwrap();
    let diff_id = fixture.store.publish_layer(&lease, ChainId::SCRATCH, layer).unwrap();
    let result = ChainId::SCRATCH.with(diff_id);
    let key = Digest::of(b"key");
    let record = CacheRecord {
        key,
        operation: Digest::of(b"operation"),
        operation_name: "copy".to_owned(),
        operation_json: Vec::new(),
        inputs: Vec::new(),
        parent: ChainId::SCRATCH,
        result,
        layer: Some(diff_id),
        wall_time: std::time::Duration::ZERO,
        bytes: 0,
        created: 0,
        name: String::new(),
    };
    fixture.store.record(&record).unwrap();
    assert!(fixture.store.cached(&key, &lease).unwrap().unwrap().present);
    let other = Store::open(fixture.store.root(), Ownership::SubIds).unwrap();
    let lease = other.lease("other").unwrap();
    assert!(!other.cached(&key, &lease).unwrap().unwrap().present);
}

#[test]
fn what_a_killed_command_left_in_tmp_goes() {
    let fixture = Fixture::new();
    let lease = fixture.store.lease("alive").unwrap();
    // A lease's row goes before its directory: a kill in between leaves this.
    let left = fixture.store.root().join("tmp/0123456789abcdef");
    fs_err::create_dir(&left).unwrap();
    fs_err::write(left.join("lock"), b"").unwrap();
    fs_err::write(left.join("0-archive"), b"much").unwrap();
    fixture.collect(ImagesToRemove::None);
    assert!(!left.exists() && lease.directory().join("lock").exists());
    assert_eq!(fixture.store.check().unwrap().garbage, Vec::<String>::new());
}

impl Fixture {
    /// A layer that the build cache alone has: a record's result, without a lease.
    fn cached(&self, text: &str) -> (Digest, DiffId) {
        let (id, layer) = self.image(text, None);
        let key = Digest::of(text.as_bytes());
        let record = CacheRecord {
            key,
            operation: key,
            operation_name: "copy".to_owned(),
            operation_json: b"{}".to_vec(),
            inputs: Vec::new(),
            parent: ChainId::SCRATCH,
            result: ChainId::SCRATCH.with(layer),
            layer: Some(layer),
            wall_time: Duration::ZERO,
            bytes: text.len() as u64,
            created: 0,
            name: "COPY".to_owned(),
        };
        self.store.record(&record).unwrap();
        let lease = self.store.lease("test").unwrap();
        lease.keep(Leased::Layer(layer)).unwrap();
        self.store.remove_image(&id.to_string(), false).unwrap();
        (key, layer)
    }
}

#[test]
fn the_cache_loses_first_what_was_used_longest_ago() {
    let fixture = Fixture::new();
    let (_, tagged) = fixture.image("tagged", Some("tagged:1"));
    let (looked_up, first) = fixture.cached("one");
    let (_, second) = fixture.cached("two");
    let (in_use, third) = fixture.cached("six");
    let (_, fourth) = fixture.cached("ten");
    let all = fixture.store.cache_bytes().unwrap();
    let over = |bytes| {
        let cache = CacheToRemove::Over(bytes);
        let collected = fixture.store.collect(&Collection { cache, ..Collection::default() });
        collected.unwrap().cache_layers
    };
    assert_eq!(over(all), []);
    let look_up =
        |key: &Digest, lease: &Lease| assert!(fixture.store.cached(key, lease).unwrap().unwrap().present);
    look_up(&looked_up, &fixture.store.lease("build").unwrap());
    assert_eq!(over(all - 1), [second]);
    let running = fixture.store.lease("build").unwrap();
    look_up(&in_use, &running);
    assert_eq!(over(0).iter().collect::<HashSet<_>>(), HashSet::from([&first, &fourth]));
    assert!(fixture.has(third) && fixture.has(tagged));
    drop(running);
    assert_eq!(over(0), [third]);
    assert!(fixture.has(tagged));
    // Far from a tenth of any file system: nothing is trimmed.
    fixture.cached("twelve");
    assert_eq!(fixture.store.collect_if_needed().unwrap(), Collected::default());
}

#[test]
fn a_name_that_moves_leaves_the_layout() {
    let fixture = Fixture::new();
    fixture.image_from("old", Some("app:1"), Compression::Gzip);
    let (new, _) = fixture.image_from("new", Some("other:1"), Compression::Gzip);
    let layout = || fs_err::read_to_string(fixture.store.root().join("index.json")).unwrap();
    assert_eq!(layout().matches("docker.io/library/app:1").count(), 1);
    let mut config = fixture.store.image(new).unwrap().config;
    config.config.env = Some(vec!["A=1".to_owned()]);
    // As a build publishes it: without a manifest.
    fixture.store.publish_image(&config.to_bytes(), &["app:1".parse().unwrap()]).unwrap();
    assert!(!layout().contains("docker.io/library/app:1") && layout().contains("docker.io/library/other:1"));
}
