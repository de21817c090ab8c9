//! What the tar of a layer can be had from.

use kiln_oci::{ChainId, DiffId, Digest, History, ImageConfig, Platform};
use kiln_store::{Collection, Error, Fault, GivenFiles, LoadEvent, RootWay, Unpacking};

use crate::fixture::{Fixture, archive, image_of, layer};

impl Fixture {
    pub(crate) fn import(&self, tar: &[u8]) -> Result<(), Error> {
        let path = self.path("input.tar");
        fs_err::write(&path, tar).unwrap();
        let input = fs_err::File::open(&path).unwrap().into_file();
        let config = ImageConfig::scratch(&Platform::host());
        let lease = self.store.lease("test").unwrap();
        self.store.import(&lease, input, config, History::default(), None).map(drop)
    }

    fn bytes_of(&self, below: &[DiffId], layer: DiffId) -> Result<Vec<u8>, Error> {
        let store = self.again();
        let lease = store.lease("test").unwrap();
        let (mut file, _) = store.open_layer(&lease, below, layer)?;
        // One that was made takes no room once it is closed.
        let left = fs_err::read_dir(lease.directory()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["lock"]);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        Ok(bytes)
    }
}

/// Padding, order and dialect of a foreign tar cannot be told from its files.
#[test]
fn the_files_of_a_foreign_layer_are_no_source_of_its_tar() {
    let fixture = Fixture::new();
    let tar = layer("foreign");
    let archive = image_of(&[&tar]);
    fixture.load(&archive).unwrap();
    let diff_id = DiffId(Digest::of(&tar));
    assert!(fixture.store.find_snapshot(ChainId::SCRATCH, diff_id).unwrap().is_some());
    fixture.change("UPDATE snapshots SET boot = NULL; UPDATE blobs SET boot = 'an earlier boot'");
    let named = fixture.store.tag("app:1", &"app:2".parse().unwrap());
    assert!(matches!(named, Err(Error::NoLayer(missing)) if missing == diff_id), "{named:?}");
    // The last blob of an image's layer stays all the same, and what it is gets checked.
    fixture.store.collect(&Collection::default()).unwrap();
    assert!(fixture.store.blob_path(&diff_id.0).exists());
    assert_eq!(fixture.store.check().unwrap().faults, [Fault::NoSource { layer: diff_id }]);
    // An archive brings it again.
    let (path, mut known) = (fixture.path("archive.tar"), Vec::new());
    let mut progress = |event: LoadEvent| {
        let LoadEvent::Layer { known: is_known, .. } = event;
        known.push(is_known);
    };
    let lease = fixture.store.lease("test").unwrap();
    fixture.store.load(&lease, &path, Unpacking::Now, &mut progress).unwrap();
    assert_eq!(known, [false]);
    assert_eq!(fixture.bytes_of(&[], diff_id).unwrap(), tar);
    assert_eq!(fixture.store.check().unwrap().faults, []);
}

#[test]
fn an_import_gives_a_layer_the_source_that_it_lost() {
    let fixture = Fixture::new();
    let tar = layer("foreign");
    fixture.load(&image_of(&[&tar])).unwrap();
    fixture.change("UPDATE snapshots SET boot = NULL; UPDATE blobs SET boot = 'an earlier boot'");
    fixture.import(&tar).unwrap();
    assert_eq!(fixture.bytes_of(&[], DiffId(Digest::of(&tar))).unwrap(), tar);
    assert_eq!(fixture.store.check().unwrap().faults, []);
}

/// A layer whose files depend on what is below it was imported; then it comes in another stack.
#[test]
fn an_imported_layer_has_a_source_in_every_stack() {
    let fixture = Fixture::new();
    let (base, tar) = (layer("base"), archive(&[("implied/file", Ok(b"text".to_vec()))]));
    fixture.import(&tar).unwrap();
    fixture.load(&image_of(&[&base, &tar])).unwrap();
    let layers = [&base, &tar].map(|tar| DiffId(Digest::of(tar)));
    assert_eq!(fixture.bytes_of(&layers[..1], layers[1]).unwrap(), tar);
    let lease = fixture.store.lease("test").unwrap();
    fixture.store.prepare_root(&lease, &layers, RootWay::Overlay, GivenFiles::Hosts).unwrap();
}

#[test]
fn stores_of_older_schemas_are_upgraded() {
    let fixture = Fixture::new();
    fixture.built("built");
    // As root, one whose frames are kept.
    fixture.image("imported", Some("imported:1"));
    fixture.load(&image_of(&[&layer("loaded")])).unwrap();
    let rows = || {
        let database = rusqlite::Connection::open(fixture.path("store/kiln.db")).unwrap();
        let sql = "SELECT group_concat(hex(diff_id) || writer || snapshot_is_source) FROM layers";
        let version = database.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0)).unwrap();
        (version, database.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap())
    };
    for (older, differences) in [
        (2, "ALTER TABLE tags DROP COLUMN manifest; PRAGMA user_version = 2"),
        (
            1,
            "ALTER TABLE tags DROP COLUMN manifest; ALTER TABLE layers DROP COLUMN snapshot_is_source; \
             PRAGMA user_version = 1",
        ),
    ] {
        let before = rows();
        fixture.change(differences);
        let again = fixture.again();
        assert_eq!(rows(), before, "{older}");
        assert_eq!(again.check().unwrap().faults, []);
        fixture.load(&image_of(&[&layer(&format!("loaded after {older}"))])).unwrap();
    }
}

/// What people read: the layers below a snapshot's own, the nearest first, by the short links.
#[test]
fn a_snapshot_says_what_is_below_it() {
    let fixture = Fixture::new();
    let layers = ["one", "two", "three"].map(|name| archive(&[(name, Ok(name.into()))]));
    fixture.load(&image_of(&[&layers[0], &layers[1], &layers[2]])).unwrap();
    let overlay = fixture.path("store/overlay2");
    let mut below: Vec<Vec<String>> = fs_err::read_dir(&overlay)
        .unwrap()
        .filter_map(|entry| fs_err::read_to_string(entry.unwrap().path().join("lower")).ok())
        .map(|text| {
            let names = |link: &str| {
                fs_err::read_dir(overlay.join(link)).unwrap().next().unwrap().unwrap().file_name()
            };
            text.split(':').map(|link| names(link).to_string_lossy().into_owned()).collect()
        })
        .collect();
    below.sort_by_key(Vec::len);
    assert_eq!(below, [vec!["one"], vec!["two", "one"]]);
}
