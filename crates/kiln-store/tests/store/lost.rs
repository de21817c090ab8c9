//! A database that is no database any more, and other things where the store has its files: the message names the path
//! and what to do, and nothing is removed.

use kiln_store::{Error, Store};

use crate::fixture::{Fixture, told};

type Damage = fn(&std::path::Path);

impl Fixture {
    /// What is said when another process opens the store and looks at everything.
    fn refusal(&self) -> Result<(), Error> {
        let store = Store::open(self.store.root(), self.store.ownership())?;
        store.images()?;
        store.check()?;
        store.collect(&kiln_store::Collection::default()).map(drop)
    }
}

#[test]
fn a_database_that_is_none_is_refused_with_a_remedy() {
    let damages: [(&str, Damage); 5] = [
        ("is damaged", |path| fs_err::write(path, "no database".repeat(1000)).unwrap()),
        ("is damaged", |path| {
            let file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(fs_err::metadata(path).unwrap().len() / 2).unwrap();
        }),
        ("is empty", |path| fs_err::write(path, "").unwrap()),
        ("is gone", |path| fs_err::remove_file(path).unwrap()),
        ("is a directory", |path| {
            fs_err::remove_file(path).unwrap();
            fs_err::create_dir(path).unwrap();
        }),
    ];
    for (found, damage) in damages {
        let fixture = Fixture::new();
        fixture.image("kept", Some("kept:1"));
        let path = fixture.path("store/kiln.db");
        // All of it is in the database, and nobody has that open.
        fixture.change("PRAGMA wal_checkpoint(TRUNCATE)");
        let Fixture { directory: _directory, store } = fixture;
        let (root, ownership) = (store.root().to_path_buf(), store.ownership());
        drop(store);
        for name in ["kiln.db-wal", "kiln.db-shm"] {
            let _ = fs_err::remove_file(root.join(name));
        }
        damage(&path);
        let refused = (|| {
            let store = Store::open(&root, ownership)?;
            store.images()?;
            store.check().map(drop)
        })();
        let error = refused.err().unwrap_or_else(|| panic!("{found}: nothing is said"));
        let said = told(&error);
        assert!(matches!(&error, Error::LostDatabase { .. }), "{said}");
        let start =
            format!("the store's database {} {found}: put back a copy of it, or move ", path.display());
        assert!(said.starts_with(&start), "{said}");
        assert!(fs_err::read_dir(root.join("index")).unwrap().next().is_some());
    }
}

/// In a young store everything is in the log.
#[test]
fn a_database_without_its_log_is_refused() {
    let Fixture { directory: _directory, store } = Fixture::new();
    let (root, ownership) = (store.root().to_path_buf(), store.ownership());
    drop(store);
    // As much as an image writes may have gone from the log to the database.
    fs_err::write(root.join("index").join("0".repeat(64)), "").unwrap();
    for name in ["kiln.db-wal", "kiln.db-shm"] {
        fs_err::remove_file(root.join(name)).unwrap();
    }
    let error = Store::open(&root, ownership).err().expect("refused");
    assert!(matches!(&error, Error::LostDatabase { .. }), "{}", told(&error));
    assert!(fs_err::read_dir(root.join("index")).unwrap().next().is_some());
}

#[test]
fn directories_in_the_place_of_files_are_named() {
    for name in ["index.json", "oci-layout"] {
        let fixture = Fixture::new();
        let path = fixture.path("store").join(name);
        let _ = fs_err::remove_file(&path);
        fs_err::create_dir(&path).unwrap();
        let refused = fixture.refusal().err().unwrap();
        assert_eq!(
            told(&refused),
            format!("{} is no file, and kiln writes one there: remove it", path.display())
        );
        fs_err::remove_dir(&path).unwrap();
        fixture.refusal().unwrap();
        // What anybody else wrote there goes.
        fs_err::write(&path, "garbage").unwrap();
        fixture.refusal().unwrap();
        assert!(fs_err::read_to_string(&path).unwrap().starts_with('{'));
    }
}
