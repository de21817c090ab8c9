//! What is kept and what goes: leases, names, collection, and what a check finds.

use std::collections::HashSet;
use std::time::Duration;

use kiln_layer::{Compression, Owners};
use kiln_oci::{ChainId, DiffId, Digest};
use kiln_store::{
    Awaited, CacheMountIdentity, CacheMountSharing, CacheRecord, CacheToRemove, Collected, Collection, Error,
    Fault, FirstMade, GivenFiles, ImagesToRemove, Lease, Leased, Ownership, Removed, RootWay, Store, Wait,
};
use kiln_sys::lock::{Lock, Sharing};

use crate::fixture::{Fixture, told};

impl Fixture {
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
    fixture.store.tag(&id.to_string(), &"two:2".parse().unwrap()).unwrap();
    let error = fixture.store.remove_image(&id.0.short(), false).unwrap_err().to_string();
    assert!(error.contains("must be forced"), "{error}");
    assert_eq!(fixture.store.remove_image("one:1", false).unwrap(), [Removed::Untagged("one:1".to_owned())]);
    assert!(fixture.has(layer));
    let gone = fixture.store.remove_image(&id.to_string(), false).unwrap();
    assert_eq!(gone, [Removed::Untagged("two:2".to_owned()), Removed::Deleted(id), Removed::Layer(layer)]);
    assert!(matches!(fixture.store.remove_image("two:2", true), Err(kiln_store::Error::NoImage(_))));
}

#[test]
fn an_image_with_a_damaged_config_can_be_removed() {
    let fixture = Fixture::new();
    let (id, layer) = fixture.image("one", Some("one:1"));
    fixture.change("UPDATE images SET config = x'7b'");
    assert_eq!(fixture.store.check().unwrap().damaged, [id]);
    let removed = fixture.store.remove_image("one:1", false).unwrap();
    assert_eq!(removed, [Removed::Untagged("one:1".to_owned()), Removed::Deleted(id), Removed::Layer(layer)]);
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
    let plain = |id: &str| CacheMountIdentity { id: id.to_owned(), base: String::new() };
    let fixture = Fixture::new();
    let take = |identity: &CacheMountIdentity, sharing| {
        let taken = fixture.store.cache_mount(identity, sharing, |_| std::ops::ControlFlow::Break(()));
        taken.unwrap().expect("nobody holds it")
    };
    let used = take(&plain("used"), CacheMountSharing::Locked);
    let idle = take(&plain("idle"), CacheMountSharing::Shared).path().to_path_buf();
    fs_err::write(idle.join("file"), b"12345").unwrap();
    let collected = fixture.collect(ImagesToRemove::None);
    assert_eq!((collected.cache_mounts.len(), collected.bytes), (1, 5));
    assert!(used.path().is_dir() && !idle.exists());
    assert!(take(&plain("idle"), CacheMountSharing::Shared).is_fresh());
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

/// Whichever byte of an index is another one: keys and COPY are made of it, and nothing else would notice.
#[test]
fn a_check_compares_indexes_with_their_layers() {
    let fixture = Fixture::new();
    let (_, loaded) = fixture.image("loaded", Some("loaded:1"));
    let (_, compressed) = fixture.image_from("compressed", Some("compressed:1"), Compression::Gzip);
    for layer in [loaded, compressed, fixture.built("built")] {
        let path = fixture.path("store/index").join(layer.0.hex());
        let whole = fs_err::read(&path).unwrap();
        assert_eq!(fixture.again().check().unwrap().faults, []);
        // Who wrote the tar, and what is reserved, is in no tar; of sections that are empty or unknown it is all one where they are; and
        // whatever the frames (section 7) are, they are good if they give the tar back.
        let table_end = 96 + 24 * usize::from(whole[12]);
        let number = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
        let frames = (96..table_end).step_by(24).find(|at| whole[*at] == 7);
        let frames = frames.map_or(0..0, |at| number(at + 8)..number(at + 8) + number(at + 16));
        for place in (16..84).chain(table_end..whole.len()).filter(|place| !frames.contains(place)) {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs_err::write(&path, damaged).unwrap();
            let faults = fixture.again().check().unwrap().faults;
            let is_told = faults.iter().any(|fault| match fault {
                Fault::Index { layer: found, .. }
                | Fault::Snapshot { layer: found, .. }
                // By what is left of the index no tar can be made again.
                | Fault::NoSource { layer: found } => *found == layer,
                _ => false,
            });
            assert!(is_told, "byte {place} of {layer}: {faults:?}");
        }
        fs_err::write(&path, whole).unwrap();
    }
}

/// What a collection of another command's is about to remove, or a lease that ends, is no fault.
#[test]
fn a_check_looks_again_when_a_collection_is_over() {
    let fixture = Fixture::new();
    let (id, layer) = fixture.image("good", Some("good:1"));
    let root = fixture.store.root();
    let index = root.join("index").join(layer.0.hex());
    let aside = root.join("trash/aside");
    let store = fixture.again();
    let (told, waits) = std::sync::mpsc::channel();
    store.tell_waits(move |wait| told.send(wait.awaited).expect("heard"));
    // In the middle of its work: the file is on its way into the trash.
    let collecting = Lock::acquire(&root.join("collect.lock"), Sharing::Exclusive).unwrap();
    fs_err::rename(&index, &aside).unwrap();
    let checked = std::thread::scope(|scope| {
        let checking = scope.spawn(|| store.check().unwrap());
        let waited_for = waits.recv_timeout(Duration::from_secs(60));
        fs_err::rename(&aside, &index).unwrap();
        drop(collecting);
        assert_eq!(waited_for, Ok(Awaited::Collection));
        checking.join().unwrap()
    });
    assert_eq!((checked.faults, checked.garbage, checked.damaged), (vec![], vec![], vec![]));
    assert_eq!((checked.images, checked.layers), (1, 1));
    // A lease that ends has no row any more while its files are removed.
    let lease = fixture.store.lease("runner").unwrap();
    fixture.change("DELETE FROM leases");
    assert_eq!(store.check().unwrap().garbage, Vec::<String>::new());
    drop(lease);
    // What is damaged for good stays a fault.
    fs_err::remove_file(&index).unwrap();
    let checked = fixture.again().check().unwrap();
    assert_eq!((checked.faults.len(), checked.damaged), (1, vec![id]));
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
    let prepared = fixture.store.prepare_root(&lease, &[], RootWay::Overlay, GivenFiles::Hosts).unwrap();
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
        shared: None,
        inputs: Vec::new(),
        parent: ChainId::SCRATCH,
        result,
        layer: Some(diff_id),
        wall_time: std::time::Duration::ZERO,
        bytes: 0,
        created: 0,
        name: String::new(),
    };
    fixture.store.record(&record, FirstMade::Kept).unwrap();
    assert!(fixture.store.cached(&key, &lease).unwrap().unwrap().present);
    // What is made again was first made when it was, unless that was not to count.
    for (created, made, expect) in [(7, FirstMade::Kept, 0), (8, FirstMade::Now, 8), (9, FirstMade::Kept, 8)]
    {
        let record = CacheRecord { created, ..record.clone() };
        assert_eq!(fixture.store.record(&record, made).unwrap(), expect);
        assert_eq!(fixture.store.cached(&key, &lease).unwrap().unwrap().created, expect);
    }
    let other = Store::open(fixture.store.root(), Ownership::SubIds).unwrap();
    let lease = other.lease("other").unwrap();
    assert!(!other.cached(&key, &lease).unwrap().unwrap().present);
}

/// A step leaves the same files as an earlier one, so that its own are of no use.
#[test]
fn what_may_take_long_to_remove_is_given_back() {
    let fixture = Fixture::new();
    let lease = fixture.store.lease("builder").unwrap();
    let left = || {
        let entries = fs_err::read_dir(lease.directory()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).filter(|name| name != "lock").collect::<Vec<_>>()
    };
    for is_new in [true, false] {
        let prepared = fixture.store.prepare_root(&lease, &[], RootWay::Overlay, GivenFiles::Hosts).unwrap();
        fs_err::create_dir_all(prepared.changed().join("a/b")).unwrap();
        fs_err::write(prepared.changed().join("a/b/file"), b"the same").unwrap();
        let view = fixture.store.root_view(&[]).unwrap();
        let new = fixture.store.capture(&lease, &prepared, &view, Owners::Files, Some(0)).unwrap();
        fixture.store.publish_layer(&lease, ChainId::SCRATCH, new).unwrap();
        lease.discard(&prepared);
        let spent = lease.tidy();
        assert_eq!(spent.is_none(), is_new);
        if let Some(spent) = spent {
            assert_eq!(left(), [prepared.changed().file_name().unwrap()], "until somebody has time");
            spent.remove();
        }
        assert_eq!(left(), [""; 0]);
        assert!(lease.tidy().is_none());
    }
}

/// Steps that change nothing leave the same layer.
#[test]
fn a_layer_that_is_published_again_is_leased_and_nothing_stays_of_it() {
    let fixture = Fixture::new();
    let publish = |lease: &kiln_store::Lease| {
        let prepared = fixture.store.prepare_root(lease, &[], RootWay::Overlay, GivenFiles::Hosts).unwrap();
        let view = fixture.store.root_view(&[]).unwrap();
        let new = fixture.store.capture(lease, &prepared, &view, Owners::Files, Some(0)).unwrap();
        let layer = fixture.store.publish_layer(lease, ChainId::SCRATCH, new).unwrap();
        lease.discard(&prepared);
        assert!(lease.tidy().is_none(), "an upper without files takes no time");
        let left = fs_err::read_dir(lease.directory()).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        (layer, names)
    };
    let snapshots = || fs_err::read_dir(fixture.store.root().join("overlay2")).unwrap().count();
    let first = fixture.store.lease("first").unwrap();
    let (layer, left) = publish(&first);
    assert_eq!(left, ["lock"]);
    let published = snapshots();
    let second = fixture.store.lease("second").unwrap();
    assert_eq!(publish(&second), (layer, vec!["lock".into()]));
    assert_eq!(snapshots(), published);
    drop(first);
    fixture.collect(ImagesToRemove::None);
    assert!(fixture.has(layer), "the second lease keeps it");
    drop(second);
    fixture.collect(ImagesToRemove::None);
    assert!(!fixture.has(layer));
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
            shared: None,
            inputs: Vec::new(),
            parent: ChainId::SCRATCH,
            result: ChainId::SCRATCH.with(layer),
            layer: Some(layer),
            wall_time: Duration::ZERO,
            bytes: text.len() as u64,
            created: 0,
            name: "COPY".to_owned(),
        };
        self.store.record(&record, FirstMade::Kept).unwrap();
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
fn looking_up_writes_nothing_and_collections_wait_for_it() {
    let fixture = Fixture::new();
    let (key, layer) = fixture.cached("text");
    let root = fixture.store.root().to_owned();
    let other = || Store::open(&root, fixture.store.ownership()).unwrap();
    let in_flight = || fs_err::read_dir(root.join("tmp")).unwrap().count();
    let log = || fs_err::read(root.join("kiln.db-wal")).unwrap();
    let all = Collection { cache: CacheToRemove::Over(0), ..Collection::default() };

    let before = log();
    let late = fixture.store.lease_late("build").unwrap();
    assert!(late.cached(&key).unwrap().unwrap().present);
    assert_eq!(in_flight(), 0);
    assert!(log() == before);
    std::thread::scope(|scope| {
        let collection = scope.spawn(|| other().collect(&all).unwrap().cache_layers);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!collection.is_finished() && fixture.has(layer));
        // Who comes now finds a collection that waits, and takes a lease at once.
        let second = other();
        let next = second.lease_late("build").unwrap();
        assert_eq!(in_flight(), 1);
        drop(next);
        drop(late);
        assert_eq!(collection.join().unwrap(), [layer]);
    });
    // The record outlives its layer.
    let late = fixture.store.lease_late("build").unwrap();
    assert!(!late.cached(&key).unwrap().unwrap().present);
}

#[test]
fn a_collection_that_waits_says_for_whom() {
    let fixture = Fixture::new();
    let root = fixture.store.root();
    let (sender, told) = std::sync::mpsc::channel();
    fixture.store.tell_waits(move |wait| sender.send(wait.clone()).unwrap());
    let late = fixture.store.lease_late("build").unwrap();
    for (awaited, name) in [(Awaited::LookUp, "look.lock"), (Awaited::Collection, "collect.lock")] {
        let held = match awaited {
            Awaited::LookUp | Awaited::Files => None,
            Awaited::Collection => Some(Lock::acquire(&root.join(name), Sharing::Exclusive).unwrap()),
        };
        let processes = kiln_sys::lock::holders(&root.join(name));
        assert_eq!(processes, [std::process::id()]);
        std::thread::scope(|scope| {
            let collection = scope.spawn(|| fixture.store.collect(&Collection::default()).unwrap());
            let wait = told.recv_timeout(Duration::from_secs(60));
            drop(held);
            late.begin().unwrap();
            collection.join().unwrap();
            assert_eq!(wait, Ok(Wait { awaited, processes }));
        });
    }
    // Who need not wait says nothing.
    fixture.store.collect(&Collection::default()).unwrap();
    assert!(told.try_recv().is_err());
}

#[test]
fn a_late_lease_keeps_what_was_found_before_it_began() {
    let fixture = Fixture::new();
    let (key, layer) = fixture.cached("text");
    let (id, of_image) = fixture.image("image", Some("image:1"));
    let (_, unused) = fixture.cached("unused");
    let late = fixture.store.lease_late("build").unwrap();
    assert!(late.cached(&key).unwrap().unwrap().present);
    late.keep_image(id).unwrap();
    // A name and its image may go at any time; no collection comes before the lease has begun.
    late.begin().unwrap();
    fixture.store.remove_image("image:1", false).unwrap();
    let all = Collection { cache: CacheToRemove::Over(0), ..Collection::default() };
    assert_eq!(fixture.store.collect(&all).unwrap().cache_layers, [unused]);
    assert!(fixture.has(layer) && fixture.has(of_image));
    assert!(late.cached(&key).unwrap().unwrap().present);
    drop(late);
    assert_eq!(fixture.store.collect(&all).unwrap().cache_layers.len(), 2);
    assert_eq!(fixture.store.check().unwrap().garbage, Vec::<String>::new());
}

#[test]
fn a_use_that_was_long_ago_is_written_down() {
    let fixture = Fixture::new();
    let (key, layer) = fixture.cached("text");
    let database = fixture.store.root().join("kiln.db");
    let age = |hours: i64| {
        let sql = format!("UPDATE layers SET last_used = last_used - {hours} * 3600000000000");
        rusqlite::Connection::open(&database).unwrap().execute_batch(&sql).unwrap();
    };
    let last_used = || {
        let items = fixture.store.disk_usage().unwrap().cache;
        items.iter().map(|item| item.last_used).max().unwrap()
    };
    let look_up = || {
        let late = fixture.store.lease_late("build").unwrap();
        assert!(late.cached(&key).unwrap().unwrap().present);
    };
    let first = last_used();
    look_up();
    assert_eq!(last_used(), first);
    age(2);
    assert!(last_used() < first);
    look_up();
    assert!(last_used() > first && fixture.has(layer));
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

#[test]
fn an_index_that_cannot_be_used_is_not_a_missing_one() {
    let fixture = Fixture::new();
    let (_, layer) = fixture.image("text", None);
    let path = fixture.store.root().join("index").join(layer.0.hex());
    let good = fs_err::read(&path).unwrap();
    let index = || {
        let again = Store::open(fixture.store.root(), fixture.store.ownership()).unwrap();
        again.index(layer).map(drop)
    };
    let put = |bytes: &[u8]| {
        // A new file: the old one may be mapped.
        fs_err::remove_file(&path).unwrap();
        fs_err::write(&path, bytes).unwrap();
    };
    index().unwrap();
    let mut newer = good.clone();
    newer[8] = 99;
    for (bytes, expect) in [
        (&newer[..], "version 99, this kiln knows 1"),
        (b"no index", "damaged layer index"),
        (&good[..good.len() - 1], "damaged layer index"),
    ] {
        put(bytes);
        let error = index().unwrap_err();
        let message = told(&error);
        assert!(matches!(error, Error::Index { .. }), "{message}");
        assert!(message.contains(expect) && message.contains(path.to_str().unwrap()), "{message}");
    }
    fs_err::remove_file(&path).unwrap();
    assert!(matches!(index(), Err(Error::NoLayer(missing)) if missing == layer));
    // What the kernel refuses, also to root: a link that leads to itself, and a directory.
    fs_err::os::unix::fs::symlink(&path, &path).unwrap();
    let refused = |error: Error| assert!(told(&error).contains(path.to_str().unwrap()), "{}", told(&error));
    refused(index().unwrap_err());
    fs_err::remove_file(&path).unwrap();
    fs_err::create_dir(&path).unwrap();
    refused(index().unwrap_err());
}

/// Rows that a query counts.
fn count(fixture: &Fixture, table: &str) -> i64 {
    let database = rusqlite::Connection::open(fixture.path("store/kiln.db")).unwrap();
    database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn chains_go_when_nothing_reaches_them() {
    let fixture = Fixture::new();
    let (key, layer) = fixture.cached("cached");
    let (_, in_use) = fixture.image("in use", Some("used:1"));
    let (_, idle) = fixture.image("idle", Some("idle:1"));
    let lease = fixture.store.lease("test").unwrap();
    lease.keep(Leased::Layer(in_use)).unwrap();
    fixture.collect(ImagesToRemove::All);
    let again = Store::open(fixture.store.root(), fixture.store.ownership()).unwrap();
    let known = |layer: DiffId| again.chain_layers(ChainId::of(&[layer])).unwrap().is_some();
    // The data of the cached layer is gone, and its record still tells what it was.
    assert!(!fixture.has(layer) && fixture.has(in_use) && !fixture.has(idle));
    let found = fixture.store.cached(&key, &lease).unwrap().unwrap();
    assert!(!found.present && found.result == ChainId::of(&[layer]));
    assert!(known(layer) && known(in_use) && !known(idle));
    drop(lease);
    fixture.collect(ImagesToRemove::All);
    assert_eq!(count(&fixture, "chains"), 1);
    fixture.store.collect(&Collection { cache: CacheToRemove::All, ..Collection::default() }).unwrap();
    assert_eq!(count(&fixture, "chains"), 0);
}

/// A store that sees new images and new steps for ever does not grow for ever.
#[test]
fn records_have_a_most() {
    let fixture = Fixture::new();
    let database = rusqlite::Connection::open(fixture.path("store/kiln.db")).unwrap();
    let add = |from: i64, to: i64| {
        let numbers = "WITH n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2)";
        for insert in [
            "INSERT INTO operations SELECT unhex(printf('%064x', i)), 'copy', x'7b7d' FROM n",
            "INSERT INTO records SELECT unhex(printf('%064x', i)), unhex(printf('%064x', i)), \
             unhex(printf('%064x', i)), NULL, 0, 0, 0, i, '' FROM n",
            "INSERT INTO record_inputs SELECT unhex(printf('%064x', i)), 0, 'root', '', zeroblob(32) FROM n",
            "INSERT INTO chains SELECT unhex(printf('%064x', i)), zeroblob(32), zeroblob(32) FROM n",
        ] {
            database.execute(&format!("{numbers} {insert}"), [from, to]).unwrap();
        }
    };
    let counts = || ["operations", "records", "record_inputs", "chains"].map(|table| count(&fixture, table));
    add(1, 20_001);
    fixture.store.collect_if_needed().unwrap();
    assert_eq!(counts(), [20_000; 4]);
    add(20_001, 20_002);
    fixture.store.collect_if_needed().unwrap();
    assert_eq!(counts(), [18_000; 4]);
    // Those that were used longest ago went, and a use is noted.
    let key = |number: u16| {
        let mut key = [0; 32];
        key[30..].copy_from_slice(&number.to_be_bytes());
        Digest::from_bytes(key)
    };
    let lease = fixture.store.lease("test").unwrap();
    let found = |number| fixture.store.cached(&key(number), &lease).unwrap().is_some();
    assert!(!found(2001) && found(2002) && found(20_001));
    add(30_000, 32_001);
    fixture.store.collect_if_needed().unwrap();
    assert!(found(2002) && !found(2003));
}

#[test]
fn what_a_container_needs_is_not_reclaimable() {
    let fixture = Fixture::new();
    let (used, _) = fixture.image("used", Some("used:1"));
    fixture.image("other one", Some("other:1"));
    let usage = || fixture.store.disk_usage().unwrap();
    let found = |usage: &kiln_store::DiskUsage| {
        let mut active = usage.images.iter().filter(|image| image.containers > 0);
        (usage.containers, active.next().map(|image| (image.id, image.containers)), usage.unused_image_bytes)
    };
    let at_rest = usage();
    assert_eq!(found(&at_rest), (0, None, at_rest.image_bytes));
    let container = fixture.store.lease(kiln_store::CONTAINER).unwrap();
    container.keep(Leased::Image(used)).unwrap();
    let other = fixture.store.lease("save").unwrap();
    other.keep(Leased::Image(used)).unwrap();
    fs_err::write(container.fresh_path("written"), "1234567").unwrap();
    let running = usage();
    assert_eq!(found(&running), (1, Some((used, 1)), at_rest.image_bytes - "used".len() as u64));
    assert_eq!(running.container_bytes, 7);
    drop(container);
    assert_eq!(found(&usage()), found(&at_rest));
}
