//! An image goes out under the digest under which it came, whatever else the store knows of its layers.

use kiln_layer::Compression;
use kiln_oci::Digest;
use kiln_store::{ArchiveForm, Error, Saving};
use serde_json::Value as Json;

use crate::fixture::{Fixture, compressed, image_of, layer, oci, oci_as, told};

impl Fixture {
    /// The digest under which an OCI layout shows a name.
    fn shown(layout: &std::path::Path, name: &str) -> Digest {
        let index = fs_err::read(layout.join("index.json")).unwrap();
        let index: Json = serde_json::from_slice(&index).unwrap();
        let all = index["manifests"].as_array().unwrap();
        let named = |entry: &&Json| entry["annotations"]["org.opencontainers.image.ref.name"] == name;
        let found: Vec<&Json> = all.iter().filter(named).collect();
        assert_eq!(found.len(), 1, "{name} in {index}");
        found[0]["digest"].as_str().unwrap().parse().unwrap()
    }

    /// The digests of a name in the store's own layout, and in what `save` writes.
    fn goes_out_as(&self, name: &str) -> [Digest; 2] {
        let lease = self.store.lease("test").unwrap();
        let images = self.store.images_to_save(&[name.to_owned()]).unwrap();
        let how = Saving { compression: Compression::Plain, stopped: &|| false };
        let saved = self.path("saved");
        let _ = fs_err::remove_dir_all(&saved);
        self.store.save_to_directory(&lease, &images, &how, &saved).unwrap();
        self.store.save_to_file(&lease, &images, ArchiveForm::Docker, &how, &self.path("saved.tar")).unwrap();
        let again = Fixture::new();
        assert_eq!(again.load_from(&saved).unwrap().len(), 1);
        let name = if name.starts_with("sha256:") { "app:1" } else { name };
        [self.store.root(), &saved].map(|layout| Self::shown(layout, name))
    }
}

#[test]
fn what_was_here_before_does_not_change_a_published_digest() {
    let tar = layer("published");
    let known: [&dyn Fn(&Fixture); 4] = [
        &|_| {},
        &|fixture| drop(fixture.load(&image_of(&[&tar])).unwrap()),
        &|fixture| drop(fixture.import(&tar)),
        &|fixture| drop(fixture.load(&oci_as("zstd:1", Compression::Zstd, &tar, &tar).0).unwrap()),
    ];
    for (number, known) in known.iter().enumerate() {
        let fixture = Fixture::new();
        known(&fixture);
        let (archive, manifest) = oci_as("app:2", Compression::Gzip, &tar, &tar);
        fixture.load(&archive).unwrap();
        assert_eq!(fixture.goes_out_as("app:2"), [manifest; 2], "{number}");
        // Named is only what a power cut cannot tear.
        let unsynced = [manifest, Digest::of(&compressed(Compression::Gzip, &tar))].map(|blob| {
            let sql = format!("SELECT boot IS NOT NULL FROM blobs WHERE digest = x'{}'", blob.hex());
            let database = rusqlite::Connection::open(fixture.path("store/kiln.db")).unwrap();
            database.query_row(&sql, [], |row| row.get::<_, bool>(0)).unwrap()
        });
        assert_eq!(unsynced, [false; 2], "{number}");
        assert_eq!(fixture.store.check().unwrap().faults, []);
    }
}

#[test]
fn each_name_keeps_what_came_under_it() {
    let (fixture, tar) = (Fixture::new(), layer("several"));
    let forms = [Compression::Gzip, Compression::Zstd, Compression::Plain];
    let manifests = forms.map(|form| {
        let (archive, manifest) = oci_as(&format!("{}:1", form.name()), form, &tar, &tar);
        fixture.load(&archive).unwrap();
        manifest
    });
    let check = |name: &str, manifest| assert_eq!(fixture.goes_out_as(name), [manifest; 2], "{name}");
    for (form, manifest) in forms.iter().zip(manifests) {
        check(&format!("{}:1", form.name()), manifest);
    }
    // A copy of a name stands for the same; a name that moves stands for what it moved to.
    let tag = |source: &str, name: &str| fixture.store.tag(source, &name.parse().unwrap()).unwrap();
    tag("zstd:1", "copy:1");
    check("copy:1", manifests[1]);
    tag("gzip:1", "copy:1");
    check("copy:1", manifests[0]);
    tag(&format!("any@{}", manifests[1]), "copy:1");
    check("copy:1", manifests[1]);
    // Loaded again, a name is what it was loaded as.
    fixture.load(&oci_as("copy:1", Compression::Gzip, &tar, &tar).0).unwrap();
    check("copy:1", manifests[0]);
    check("zstd:1", manifests[1]);
}

/// One by the digest of its manifest, too.
#[test]
fn an_image_is_saved_under_the_digest_that_was_asked_for() {
    let (fixture, tar) = (Fixture::new(), layer("by digest"));
    let forms = [Compression::Gzip, Compression::Zstd];
    let manifests = forms.map(|form| {
        let (archive, manifest) = oci_as("app:1", form, &tar, &tar);
        fixture.load(&archive).unwrap();
        manifest
    });
    let lease = fixture.store.lease("test").unwrap();
    let how = Saving { compression: Compression::Plain, stopped: &|| false };
    for manifest in manifests {
        let images = fixture.store.images_to_save(&[format!("app@{manifest}")]).unwrap();
        let saved = fixture.path(&manifest.hex());
        fixture.store.save_to_directory(&lease, &images, &how, &saved).unwrap();
        let index: Json = serde_json::from_slice(&fs_err::read(saved.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], manifest.to_string());
    }
}

/// A layer that is known is not taken at an archive's word: its bytes would go out for the layer later.
#[test]
fn other_bytes_for_a_known_layer_are_refused() {
    let (fixture, tar) = (Fixture::new(), layer("known"));
    let (archive, manifest) = oci_as("app:1", Compression::Gzip, &tar, &tar);
    fixture.load(&archive).unwrap();
    let hostile = oci_as("app:1", Compression::Gzip, &tar, &layer("hostile")).0;
    let error = fixture.load(&hostile).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }) && told(&error).contains("diff ID"), "{}", told(&error));
    // Nor is its size.
    let wrong = |manifest: &mut Json| manifest["layers"][0]["size"] = 7.into();
    let plain = oci(|_| {}).0;
    fixture.load(&plain).unwrap();
    let error = fixture.load(&oci(wrong).0).unwrap_err();
    assert!(told(&error).contains("its descriptor says 7"), "{}", told(&error));
    fixture.load(&archive).unwrap();
    assert_eq!(fixture.goes_out_as("app:1"), [manifest; 2]);
    let checked = fixture.store.check().unwrap();
    assert_eq!((checked.faults, checked.garbage), (vec![], vec![]));
}
