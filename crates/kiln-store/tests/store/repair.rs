//! Files of the store that are gone, cut off or changed: nothing bad goes out, and an archive brings them back.

use kiln_layer::Compression;
use kiln_oci::{ChainId, DiffId, Digest};
use kiln_store::{ArchiveForm, CacheToRemove, Collection, Error, Fault, LoadEvent, Saving, Store, Unpacking};

use crate::fixture::{Fixture, image_of, layer, oci};

const PLAIN: Saving<'_> = Saving { compression: Compression::Plain, stopped: &|| false };

/// A change to a file of the store.
type Damage = fn(&std::path::Path);

fn gone(path: &std::path::Path) {
    fs_err::remove_file(path).unwrap();
}

fn cut_off(path: &std::path::Path) {
    let length = fs_err::metadata(path).unwrap().len();
    fs_err::OpenOptions::new().write(true).open(path).unwrap().into_file().set_len(length / 2).unwrap();
}

/// One bit, in a tar of its padding, which leaves one that can be read.
fn changed(path: &std::path::Path) {
    let mut bytes = fs_err::read(path).unwrap();
    let position = if bytes.len() > 600 { 520 } else { 0 };
    bytes[position] ^= 1;
    fs_err::write(path, bytes).unwrap();
}

impl Fixture {
    /// Loads `archive.tar` again; says of each layer whether it was known.
    fn load_again(&self, store: &Store) -> Vec<bool> {
        let mut known = Vec::new();
        let mut progress = |LoadEvent::Layer { known: is_known, .. }: LoadEvent| known.push(is_known);
        let lease = store.lease("test").unwrap();
        store.load(&lease, &self.path("archive.tar"), Unpacking::Later, &mut progress).unwrap();
        known
    }

    /// Whether a snapshot or a blob that holds a layer was synced.
    fn has_durable_source(&self, layer: DiffId) -> bool {
        let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE diff_id = ?1 AND boot IS NULL) \
                   OR EXISTS (SELECT 1 FROM layer_blobs JOIN blobs ON digest = blob \
                              WHERE diff_id = ?1 AND boot IS NULL)";
        let database = rusqlite::Connection::open(self.path("store/kiln.db")).unwrap();
        database.query_row(sql, [layer.0.as_bytes()], |row| row.get(0)).unwrap()
    }

    fn save(&self, form: Option<ArchiveForm>, how: &Saving<'_>) -> Result<(), Error> {
        let store = self.again();
        let lease = store.lease("save").unwrap();
        let images = store.images_to_save(&["app:1".to_owned()]).unwrap();
        let path = self.path("saved");
        let saved = match form {
            Some(form) => store.save_to_file(&lease, &images, form, how, &path),
            None => store.save_to_directory(&lease, &images, how, &path),
        };
        assert_eq!(path.exists(), saved.is_ok());
        let _ = fs_err::remove_file(&path);
        let _ = fs_err::remove_dir_all(&path);
        saved
    }
}

#[test]
fn a_load_brings_back_what_is_gone_or_cut_off() {
    let tar = layer("hello\n");
    let (archive, [manifest, config, _]) = oci(|_| {});
    for (archive, manifest) in [(archive, Some(manifest)), (image_of(&[&tar]), None)] {
        for damage in [gone as Damage, cut_off] {
            for what in ["blob", "index", "config", "manifest"] {
                let fixture = Fixture::new();
                let lease = fixture.store.lease("test").unwrap();
                fs_err::write(fixture.path("archive.tar"), &archive).unwrap();
                let path = fixture.path("archive.tar");
                let loaded = fixture.store.load(&lease, &path, Unpacking::Later, &mut |_| {}).unwrap();
                assert_eq!(fixture.load_again(&fixture.again()), [true]);
                let blob = |bytes: &[u8]| fixture.store.blob_path(&Digest::of(bytes));
                damage(&match (what, &manifest) {
                    ("blob", _) => blob(&tar),
                    ("index", _) => fixture.path("store/index").join(Digest::of(&tar).hex()),
                    ("manifest", Some(manifest)) => blob(manifest),
                    ("config", Some(_)) => blob(&config),
                    ("config", None) => fixture.store.blob_path(&loaded[0].id.0),
                    _ => continue,
                });
                let store = fixture.again();
                assert_eq!(store.check().unwrap().faults.len(), 1, "{what}");
                let known = matches!(what, "config" | "manifest");
                assert_eq!(fixture.load_again(&store), [known], "{what}");
                assert_eq!(fixture.again().check().unwrap().faults, [], "{what}");
                assert_eq!(fixture.load_again(&fixture.again()), [true]);
                fixture.save(Some(ArchiveForm::Docker), &PLAIN).unwrap();
            }
        }
    }
}

#[test]
fn what_is_changed_does_not_go_out_and_is_repaired_as_the_check_says() {
    let fixture = Fixture::new();
    let tar = layer("hello\n");
    fs_err::write(fixture.path("archive.tar"), image_of(&[&tar])).unwrap();
    fixture.load_again(&fixture.store);
    fixture.save(None, &PLAIN).unwrap();
    let blob = Digest::of(&tar);
    let path = fixture.store.blob_path(&blob);
    for damage in [changed as Damage, cut_off, gone] {
        damage(&path);
        for form in [Some(ArchiveForm::Docker), Some(ArchiveForm::Oci), None] {
            let error = fixture.save(form, &PLAIN).unwrap_err();
            let expect = format!("blob {blob} in the store is damaged: ");
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            assert!(error.to_string().starts_with(&expect), "{error}");
        }
        let store = fixture.again();
        let checked = store.check().unwrap();
        assert!(matches!(&checked.faults[..], [Fault::Blob { blob: found, .. }] if *found == blob));
        assert_eq!(checked.damaged, [store.resolve("app:1").unwrap()]);
        store.remove_image("app:1", true).unwrap();
        store.collect(&Collection { cache: CacheToRemove::Unused, ..Collection::default() }).unwrap();
        assert_eq!(fixture.load_again(&fixture.again()), [false]);
        assert_eq!(fixture.again().check().unwrap().faults, []);
    }
    // What an earlier boot left is no reason to load again what is there.
    fixture.change(&format!(
        "INSERT INTO blobs VALUES (x'{0}', 5, 'an earlier boot', 0); \
         INSERT INTO layer_blobs VALUES (x'{1}', x'{0}', 'gzip')",
        Digest::of(b"torn").hex(),
        blob.hex()
    ));
    assert_eq!(fixture.load_again(&fixture.again()), [true]);
}

/// A compressed blob that is made of a damaged one would have a digest that fits.
#[test]
fn what_is_changed_is_not_compressed() {
    let fixture = Fixture::new();
    let layer = fixture.built("app");
    let how = Saving { compression: Compression::Gzip, ..PLAIN };
    let blobs = |store: &Store| store.layer_blobs(layer).unwrap();
    for _ in 0..2 {
        fixture.save(Some(ArchiveForm::Oci), &how).unwrap();
    }
    let [blob] = &blobs(&fixture.store)[..] else { panic!("one blob") };
    changed(&fixture.store.blob_path(&blob.digest));
    let how = Saving { compression: Compression::Zstd, ..PLAIN };
    assert!(matches!(fixture.save(Some(ArchiveForm::Oci), &how), Err(Error::Damaged { .. })));
    assert_eq!(blobs(&fixture.again()).len(), 1);
}

/// Of a layer that is stored as its files alone: damage to those.
#[test]
fn an_import_and_a_load_bring_back_files_that_are_gone_or_cut_off() {
    let tar = layer("hello\n");
    let damages: [Damage; 4] = [
        gone,
        cut_off,
        |path| {
            let link = path.with_file_name("elsewhere");
            fs_err::rename(path, &link).unwrap();
            fs_err::os::unix::fs::symlink(&link, path).unwrap();
        },
        |path| fs_err::remove_dir_all(path.parent().unwrap()).unwrap(),
    ];
    for by_load in [false, true] {
        for damage in damages {
            let fixture = Fixture::new();
            let lease = fixture.store.lease("test").unwrap();
            fs_err::write(fixture.path("archive.tar"), image_of(&[&tar])).unwrap();
            // Where owners cannot be given away, an import keeps the tar: a step's layer is stored so everywhere.
            let (_, layer) = fixture.image("hello\n", Some("app:1"));
            if !fixture.store.layer_blobs(layer).unwrap().is_empty() {
                return;
            }
            let files = || fixture.again().find_snapshot(ChainId::SCRATCH, layer).unwrap();
            let before = files().unwrap().diff;
            damage(&before.join("hello"));
            assert_eq!(fixture.again().check().unwrap().faults.len(), 1);
            drop(lease);
            if by_load {
                assert_eq!(fixture.load_again(&fixture.again()), [false]);
                assert_eq!(files(), None);
            } else {
                fixture.image("hello\n", Some("app:1"));
                assert_ne!(files().unwrap().diff, before);
            }
            assert_eq!(fixture.again().check().unwrap().faults, []);
            // The name is there already: what it stands for is made durable all the same.
            assert!(fixture.has_durable_source(layer), "a power cut would take it");
            fixture.save(Some(ArchiveForm::Docker), &PLAIN).unwrap();
            // What is whole is not made again.
            let now = files();
            assert_eq!(fixture.load_again(&fixture.again()), [true]);
            fixture.image("hello\n", Some("app:1"));
            assert!(now.is_none() || files() == now);
        }
    }
}

/// A step that is run again brings back what it left before.
#[test]
fn a_step_brings_back_what_is_gone() {
    for what in ["snapshot", "index"] {
        let fixture = Fixture::new();
        let layer = fixture.built("app");
        let diff = fixture.again().find_snapshot(ChainId::SCRATCH, layer).unwrap().unwrap().diff;
        match what {
            "snapshot" => fs_err::remove_dir_all(diff.parent().unwrap()).unwrap(),
            _ => gone(&fixture.path("store/index").join(layer.0.hex())),
        }
        assert_eq!(fixture.again().check().unwrap().faults.len(), 1, "{what}");
        assert_eq!(fixture.built("app"), layer);
        assert_eq!(fixture.again().check().unwrap().faults, [], "{what}");
        assert!(fixture.has_durable_source(layer), "{what}");
    }
}
