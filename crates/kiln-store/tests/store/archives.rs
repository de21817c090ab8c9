//! Archives that come in and go out: hostile and broken ones change nothing, their harmless twins load.

use kiln_layer::Compression;
use kiln_oci::{Digest, History, ImageConfig, ImageId, Platform};
use kiln_store::{ArchiveForm, Collection, Error, Leased, Saving, Unpacking};
use serde_json::json;

use crate::fixture::{
    Fixture, archive, blob, compressed, config, config_with, docker, image_of, layer, layout_index, oci,
    oci_as, told,
};

fn docker_archive() -> Vec<u8> {
    let (one, two) = (layer("one"), layer("two"));
    let config = config(&[&one, &two]);
    archive(&[
        ("manifest.json", docker("c.json", &["a/layer.tar", "b/layer.tar"])),
        ("c.json", Ok(config)),
        ("a/layer.tar", Ok(one)),
        ("b/layer.tar", Ok(two)),
    ])
}

/// The archive is refused, and nothing stays.
#[track_caller]
fn refused(bytes: &[u8], expect: &str) {
    let fixture = Fixture::new();
    let error = fixture.load(bytes).expect_err("it was loaded");
    let message = told(&error);
    assert!(message.contains(expect), "{message}");
    assert!(fixture.store.images().unwrap().is_empty() && fixture.store.tags().unwrap().is_empty());
    let checked = fixture.store.check().unwrap();
    assert_eq!((checked.faults, checked.garbage, checked.layers), (vec![], vec![], 0), "{message}");
}

#[track_caller]
fn loaded(bytes: &[u8], layers: usize) {
    let fixture = Fixture::new();
    let loaded = fixture.load(bytes).unwrap();
    let image = fixture.store.image(loaded[0].id).unwrap();
    assert_eq!(image.config.rootfs.diff_ids.len(), layers);
    assert_eq!(loaded[0].names[0].familiar(), "app:1");
    assert_eq!(fixture.store.check().unwrap().faults, []);
}

/// A digest in it would make the name another one, which looks the same and which no command finds.
#[test]
fn an_archive_gives_no_name_with_a_digest() {
    let digest = Digest::of(b"any");
    let tar = layer("hello\n");
    for name in [format!("app:1@{digest}"), format!("app@{digest}")] {
        let manifest = json!([{ "Config": "c.json", "RepoTags": [name], "Layers": ["0.tar"] }]);
        let members = [
            ("manifest.json", Ok(manifest.to_string().into_bytes())),
            ("c.json", Ok(config(&[&tar]))),
            ("0.tar", Ok(tar.clone())),
        ];
        refused(&archive(&members), "a digest is no tag");
    }
    let (_, [manifest, config, tar]) = oci(|_| {});
    for (name, given) in
        [(format!("docker.io/library/app:1@{digest}"), vec!["app:1"]), (format!("app@{digest}"), vec![])]
    {
        for annotation in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
            let mut index: serde_json::Value = serde_json::from_slice(&layout_index(&manifest)).unwrap();
            index["manifests"][0]["annotations"] = json!({ annotation: name });
            let mut members = vec![("index.json".to_owned(), Ok(index.to_string().into_bytes()))];
            members.extend([&manifest, &config, &tar].map(|bytes| (blob(bytes), Ok(bytes.clone()))));
            let fixture = Fixture::new();
            fixture.load(&archive(&members)).unwrap();
            assert_eq!(fixture.names(), given);
        }
    }
}

#[test]
fn well_formed_archives_load() {
    loaded(&docker_archive(), 2);
    loaded(&oci(|_| {}).0, 1);
    // Old docker archives have layers that are links to other layers.
    let one = layer("one");
    let members = [
        ("manifest.json", docker("c.json", &["a/layer.tar", "b/layer.tar"])),
        ("c.json", Ok(config(&[&one, &one]))),
        ("a/layer.tar", Ok(one)),
        ("b/layer.tar", Err("../a/layer.tar")),
    ];
    loaded(&archive(&members), 2);
}

#[test]
fn an_archive_cut_anywhere_changes_nothing() {
    for whole in [docker_archive(), oci(|_| {}).0] {
        // The zeros at the end, and those that fill the last member's last block, may be missing.
        let content = whole.iter().rposition(|byte| *byte != 0).unwrap();
        for length in (0..content).step_by(content / 12) {
            refused(&whole[..length], "");
        }
    }
}

/// Docker writes `manifest.json` last.
#[test]
fn a_truncated_archive_is_told_to_be_one() {
    let (one, two) = (layer("one"), layer("two"));
    let config = config(&[&one, &two]);
    let whole = archive(&[
        ("c.json", Ok(config)),
        ("a/layer.tar", Ok(one)),
        ("b/layer.tar", Ok(two)),
        ("manifest.json", docker("c.json", &["a/layer.tar", "b/layer.tar"])),
    ]);
    let header = |name: &str| whole.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    for name in ["c.json", "a/layer.tar", "b/layer.tar", "manifest.json"] {
        let bytes = header(name) + 512 + 10;
        let told = format!("it is truncated: it ends after {bytes} bytes, in the middle of {name}");
        refused(&whole[..bytes], &told);
    }
    refused(&whole[..header("manifest.json")], "it is truncated: it has no end, and neither manifest.json");
    let (whole, [_, _, layer]) = oci(|_| {});
    let cut = whole.len() - 1024 - layer.len().next_multiple_of(512) - 512;
    refused(&whole[..cut], "is named but not in it: it is truncated");
}

#[test]
fn bytes_without_their_digest_are_refused() {
    let members = [
        ("manifest.json", docker("c.json", &["a/layer.tar"])),
        ("c.json", Ok(config(&[&layer("one")]))),
        ("a/layer.tar", Ok(layer("other"))),
    ];
    refused(&archive(&members), "expected sha256:");
    // By the time the second layer turns out to be another one, the first has been published.
    let members = [
        ("manifest.json", docker("c.json", &["a/layer.tar", "b/layer.tar"])),
        ("c.json", Ok(config(&[&layer("one"), &layer("two")]))),
        ("a/layer.tar", Ok(layer("one"))),
        ("b/layer.tar", Ok(layer("other"))),
    ];
    refused(&archive(&members), "expected sha256:");
    refused(&oci(|manifest| manifest["layers"][0]["size"] = json!(7)).0, "its descriptor says 7");
    refused(&oci(|manifest| manifest["config"]["size"] = json!(7)).0, "its descriptor says 7");
}

/// CVE-2024-3727: digests that are paths. CVE-2021-41190: documents that two readers take for different things.
#[test]
fn hostile_documents_are_refused() {
    for digest in ["sha256:../../../etc/passwd", "sha512:00", "sha256:ABCD", ""] {
        refused(&oci(|manifest| manifest["layers"][0]["digest"] = json!(digest)).0, "digest");
    }
    for digest in ["sha256:../../../etc/passwd", "sha512:00", "sha256:ABCD", ""] {
        refused(&oci(|manifest| manifest["config"]["digest"] = json!(digest)).0, "digest");
        let (_, [manifest, config, layer]) = oci(|_| {});
        let with = |index: String, config: Vec<u8>| {
            let members = [
                ("index.json".to_owned(), Ok(index.into())),
                (blob(&manifest), Ok(manifest.clone())),
                (blob(&config), Ok(config)),
                (blob(&layer), Ok(layer.clone())),
            ];
            archive(&members)
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let good = text(&layout_index(&manifest));
        loaded(&with(good.clone(), config.clone()), 1);
        refused(&with(good.replace(&Digest::of(&manifest).to_string(), digest), config.clone()), "digest");
        let diff_id = text(&config).replace(&Digest::of(&layer).to_string(), digest).into_bytes();
        let members = [
            ("manifest.json", docker("c.json", &["l.tar"])),
            ("c.json", Ok(diff_id)),
            ("l.tar", Ok(layer.clone())),
        ];
        refused(&archive(&members), "digest");
    }
    refused(&oci(|manifest| manifest["manifests"] = json!([])).0, "both manifests and layers or config");
    refused(&oci(|manifest| manifest["Layers"] = json!([])).0, "differs from a known one only by case");
    refused(&oci(|manifest| manifest["layers"] = json!([])).0, "has 0 layers, its config 1");
}

/// What one reader would check and another one use.
#[test]
fn ambiguous_documents_are_refused() {
    let one = layer("one");
    let good = config_with(&[&one], &json!({ "Labels": { "a": "1", "A": "2" }, "Hostname": "x" }));
    let with = |manifest: &str, config: &[u8]| {
        let members = [
            ("manifest.json", Ok(manifest.into())),
            ("c.json", Ok(config.to_vec())),
            ("l.tar", Ok(one.clone())),
        ];
        archive(&members)
    };
    let manifest = r#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar"],"Parent":"x"}]"#;
    loaded(&with(manifest, &good), 1);
    let text = String::from_utf8(good.clone()).unwrap();
    for (from, to, expect) in [
        ("\"a\":\"1\"", "\"A\":\"1\"", "stands twice"),
        ("\"Hostname\":\"x\"", "\"user\":\"1000\"", "only by case"),
        ("\"os\":", "\"OS\":\"x\",\"os\":", "only by case"),
        ("\"os\":", "\"os\":\"x\",\"os\":", "duplicate field"),
        ("\"rootfs\":", "\"RootFS\":{\"diff_ids\":[]},\"rootfs\":", "only by case"),
    ] {
        assert!(text.contains(from), "{text}");
        refused(&with(manifest, text.replacen(from, to, 1).as_bytes()), expect);
    }
    refused(&with(&manifest.replace("Parent", "layers"), &good), "only by case");
    refused(&with(&manifest.replace("Parent", "Config"), &good), "stands twice");
}

#[test]
fn configs_are_bounded() {
    let one = layer("one");
    let with = |count: usize| {
        let env: Vec<String> = (0..count).map(|number| format!("V{number}=1")).collect();
        let members = [
            ("manifest.json", docker("c.json", &["l.tar"])),
            ("c.json", Ok(config_with(&[&one], &json!({ "Env": env })))),
            ("l.tar", Ok(one.clone())),
        ];
        archive(&members)
    };
    loaded(&with(10_000), 1);
    refused(&with(10_001), "it has 10001 environment variables; at most 10000 are read");
    let mut large = config(&[]);
    large.resize((4 << 20) + 1, b' ');
    refused(
        &archive(&[("manifest.json", docker("c.json", &[])), ("c.json", Ok(large))]),
        "has 4194305 bytes",
    );
}

/// Layouts of Docker's official images hold blobs that are links to files beside them.
#[test]
fn links_in_a_layout_stay_in_it() {
    let (_, [manifest, config, layer]) = oci(|_| {});
    let make = |target: &str| {
        let fixture = Fixture::new();
        let layout = fixture.path("layout");
        fs_err::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs_err::write(layout.join("index.json"), layout_index(&manifest)).unwrap();
        fs_err::write(layout.join("rootfs.tar"), &layer).unwrap();
        fs_err::write(fixture.path("outside.tar"), &layer).unwrap();
        for document in [&manifest, &config] {
            fs_err::write(layout.join(blob(document)), document).unwrap();
        }
        fs_err::os::unix::fs::symlink(target, layout.join(blob(&layer))).unwrap();
        let names = fixture.load_from(&layout).map(|_| fixture.names());
        let checked = fixture.store.check().unwrap();
        assert_eq!((checked.faults, checked.garbage), (vec![], vec![]));
        names
    };
    assert_eq!(make("../../rootfs.tar").unwrap(), ["app:1"]);
    assert_eq!(make("/rootfs.tar").unwrap(), ["app:1"]);
    for outside in ["../../../outside.tar", "/etc/hostname", "../../missing"] {
        assert!(told(&make(outside).unwrap_err()).contains("is named but not in it"));
    }
}

/// A file of holes takes no room where it lies, and all there is where it is copied to.
#[test]
fn blobs_of_holes_are_not_copied() {
    let holes = 300 << 30;
    for (size, expect) in [
        (None, "has 322122547200 bytes, its descriptor says"),
        (Some(holes), "at most 274877906944 are read"),
    ] {
        let (_, [manifest, config, layer]) = oci(|manifest| {
            if let Some(size) = size {
                manifest["layers"][0]["size"] = json!(size);
            }
        });
        let fixture = Fixture::new();
        let layout = fixture.path("layout");
        fs_err::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs_err::write(layout.join("index.json"), layout_index(&manifest)).unwrap();
        for bytes in [&manifest, &config, &layer] {
            fs_err::write(layout.join(blob(bytes)), bytes).unwrap();
        }
        fs_err::OpenOptions::new()
            .write(true)
            .open(layout.join(blob(&layer)))
            .unwrap()
            .set_len(holes)
            .unwrap();
        let error = fixture.load_from(&layout).unwrap_err();
        assert!(told(&error).contains(expect), "{}", told(&error));
    }
}

/// A small archive that names the same image so often that its documents would fill the memory.
#[test]
fn images_in_an_archive_are_bounded() {
    let one = json!({ "Config": "c.json", "RepoTags": null, "Layers": [] });
    let many = |count: usize, config: Vec<u8>| {
        let manifest = serde_json::to_vec(&vec![one.clone(); count]).unwrap();
        archive(&[("manifest.json", Ok(manifest)), ("c.json", Ok(config))])
    };
    refused(&many(1_001, config(&[])), "it names more than 1000 images");
    let mut large = config(&[]);
    large.resize(2 << 20, b' ');
    refused(&many(130, large), "its documents have more than");
    let named = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("app:{number}")).collect();
        let manifest = json!([{ "Config": "c.json", "RepoTags": names, "Layers": ["l.tar"] }]).to_string();
        let one = layer("one");
        let config = config(&[&one]);
        archive(&[("manifest.json", Ok(manifest.into())), ("c.json", Ok(config)), ("l.tar", Ok(one))])
    };
    assert_eq!(Fixture::new().load(&named(10_000)).unwrap()[0].names.len(), 10_000);
    refused(&named(10_001), "it gives an image 10001 names; at most 10000 are read");
}

/// CVE-2014-9356 and CVE-2014-6407: names and links of members that lead out of the archive.
#[test]
fn members_stay_in_the_archive() {
    let one = layer("one");
    let config = config(&[&one]);
    for hostile in ["../../../etc/hostname", "/etc/hostname"] {
        let members = [("manifest.json", docker("c.json", &[hostile])), ("c.json", Ok(config.clone()))];
        refused(&archive(&members), "is named but not in it");
        let members = [("manifest.json", docker(hostile, &["l.tar"])), ("l.tar", Ok(one.clone()))];
        refused(&archive(&members), "is named but not in it");
    }
    for (target, expect) in [("../../etc/hostname", "is named but not in it"), ("l.tar", "a link to itself")]
    {
        let manifest = ("manifest.json", docker("c.json", &["l.tar"]));
        refused(&archive(&[manifest, ("c.json", Ok(config.clone())), ("l.tar", Err(target))]), expect);
    }
}

/// What would be read from the wrong place, and what would fill the memory.
#[test]
fn members_that_are_no_plain_files_are_refused() {
    let mut header = Vec::new();
    let metadata =
        kiln_layer::Metadata { size: 512, ..kiln_layer::Metadata::new(kiln_layer::Kind::Regular, 0o644) };
    kiln_layer::tar::write_header(b"holes", &metadata, &mut header);
    // Old GNU format: one region of the 512 bytes, behind a hole as long.
    header[156] = b'S';
    header[257..265].copy_from_slice(b"ustar  \0");
    header[386..398].copy_from_slice(b"00000001000\0");
    header[398..410].copy_from_slice(b"00000001000\0");
    header[483..495].copy_from_slice(b"00000002000\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.resize(512 + 512 + 1024, 0);
    refused(&header, "holes is a sparse file, which is not read");
    let name: &str = "x".repeat(1 << 19).leak();
    let links: Vec<_> = (0..129).map(|number| (format!("{number}"), Err(name))).collect();
    refused(&archive(&links), "its names have more than 67108864 bytes");
}

/// An archive of two images, `one:1` and `two:1`.
fn two_images() -> Vec<u8> {
    let layers = [layer("one"), layer("two")];
    let manifest = json!([
        { "Config": "1.json", "RepoTags": ["one:1"], "Layers": ["1.tar"] },
        { "Config": "2.json", "RepoTags": ["two:1", "one:2"], "Layers": ["2.tar"] },
    ]);
    archive(&[
        ("manifest.json", Ok(manifest.to_string().into())),
        ("1.json", Ok(config(&[&layers[0]]))),
        ("2.json", Ok(config(&[&layers[1]]))),
        ("1.tar", Ok(layers[0].clone())),
        ("2.tar", Ok(layers[1].clone())),
    ])
}

#[test]
fn images_of_one_archive_come_together_or_not_at_all() {
    let whole = two_images();
    let fixture = Fixture::new();
    let loaded = fixture.load(&whole).unwrap();
    assert_eq!(loaded.iter().map(|image| image.names.len()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(fixture.names(), ["one:1", "one:2", "two:1"]);

    // The second one's layer is not whole, or not what its config says.
    let content = whole.iter().rposition(|byte| *byte != 0).unwrap();
    refused(&whole[..content], "");
    let mut other = whole.clone();
    other[content] ^= 1;
    refused(&other, "expected sha256:");

    // Both are whole, and the second one cannot be published.
    let fixture = Fixture::new();
    let (before, _) = fixture.image("before", Some("one:1"));
    let database = rusqlite::Connection::open(fixture.path("store/kiln.db")).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON images WHEN (SELECT count(*) FROM images) > 1 \
                BEGIN SELECT RAISE(ABORT, 'full'); END";
    database.execute_batch(full).unwrap();
    let message = told(&fixture.load(&whole).unwrap_err());
    assert!(message.contains("full"), "{message}");
    assert_eq!(fixture.names(), ["one:1"]);
    assert_eq!(fixture.store.resolve("one:1").unwrap(), before);
    let checked = fixture.store.check().unwrap();
    assert_eq!((checked.images, checked.layers, checked.faults, checked.garbage), (1, 1, vec![], vec![]));
    database.execute_batch("DROP TRIGGER full").unwrap();
    let loaded = fixture.load(&whole).unwrap();
    assert_eq!(loaded[0].moved, [("one:1".parse().unwrap(), before)]);
    assert_eq!(fixture.names(), ["one:1", "one:2", "two:1"]);
}

#[test]
fn an_image_with_two_manifests_stands_in_the_layout_once() {
    let fixture = Fixture::new();
    let id = fixture.load(&oci(|_| {}).0).unwrap()[0].id;
    let noted = oci(|manifest| manifest["annotations"] = json!({ "a": "b" })).0;
    assert_eq!(fixture.load(&noted).unwrap()[0].id, id);
    let layout = fs_err::read_to_string(fixture.path("store/index.json")).unwrap();
    assert_eq!(layout.matches("docker.io/library/app:1").count(), 1, "{layout}");
    // It can be asked for by either.
    for (_, [manifest, ..]) in [oci(|_| {}), oci(|manifest| manifest["annotations"] = json!({ "a": "b" }))] {
        let name = format!("app@{}", Digest::of(&manifest));
        assert_eq!(fixture.store.resolve(&name).unwrap(), id);
    }
}

/// Bytes that no name stands for any more do not stay as long as the image does.
#[test]
fn a_collection_forgets_manifests_without_a_name() {
    let fixture = Fixture::new();
    let layer = layer(&"hello ".repeat(1000));
    let load = |name: &str, compression| {
        let (archive, manifest) = oci_as(name, compression, &layer, &layer);
        fixture.load(&archive).unwrap();
        (manifest, Digest::of(&compressed(compression, &layer)))
    };
    let there = |digest: &Digest| fixture.path(&format!("store/blobs/sha256/{}", digest.hex())).exists();
    let collect = || fixture.store.collect(&Collection::default()).unwrap().bytes;
    let found =
        |name: &str, manifest: &Digest| fixture.store.find(&format!("{name}@{manifest}")).unwrap().is_some();
    let (plain, tar) = load("app:1", Compression::Plain);
    let (gzip, zipped) = load("app:2", Compression::Gzip);
    // Each has a name.
    assert_eq!(collect(), 0);
    assert!(there(&tar) && there(&zipped) && found("app", &plain) && found("app", &gzip));
    // The name of the first one now stands for a third; while a command uses the layer, nothing of it goes.
    let (zstd, squeezed) = load("app:1", Compression::Zstd);
    let lease = fixture.store.lease("test").unwrap();
    lease.keep(Leased::Image(fixture.store.resolve("app:1").unwrap())).unwrap();
    assert_eq!(collect(), 0);
    assert!(there(&tar) && found("app", &plain));
    drop(lease);
    assert_eq!(collect(), layer.len() as u64);
    assert!(!there(&tar) && !there(&plain) && !found("app", &plain));
    assert!(there(&zipped) && there(&squeezed) && found("app", &gzip) && found("app", &zstd));
    // What names without a manifest of their own stand for stays.
    fixture.load(&image_of(&[&layer])).unwrap();
    fixture.store.remove_image("app:2", false).unwrap();
    collect();
    assert_eq!([there(&zipped), there(&squeezed)], [false, true]);
    let checked = fixture.store.check().unwrap();
    assert_eq!((checked.images, checked.faults, checked.garbage), (1, vec![], vec![]));
}

#[test]
fn an_image_keeps_its_bytes_through_load_and_save() {
    let fixture = Fixture::new();
    let (bytes, documents) = oci(|_| {});
    let id = fixture.load(&bytes).unwrap()[0].id;
    assert_eq!(id, ImageId(Digest::of(&documents[1])));
    let images = fixture.store.images_to_save(&["app:1".to_owned()]).unwrap();
    let lease = fixture.store.lease("test").unwrap();
    let save = |form| {
        let path = fixture.path("out.tar");
        let how = Saving { compression: Compression::Plain, stopped: &|| false };
        fixture.store.save_to_file(&lease, &images, form, &how, &path).unwrap();
        fs_err::read(path).unwrap()
    };
    let saved = save(ArchiveForm::Docker);
    assert_eq!(saved, save(ArchiveForm::Docker));
    for document in &documents {
        assert!(saved.windows(document.len()).any(|window| window == document.as_slice()));
    }
    for archive in [saved, save(ArchiveForm::Oci)] {
        assert_eq!(Fixture::new().load(&archive).unwrap()[0].id, id);
    }
}

/// Nothing is left where an image was to be saved: the directory's only names are those from before.
#[test]
fn saving_that_is_stopped_leaves_nothing() {
    let fixture = Fixture::new();
    // As root, a layer that is made again from its files; a loaded one that is a blob.
    fixture.image(&"x".repeat(100_000), Some("made:1"));
    fixture.load(&oci(|_| {}).0).unwrap();
    let images = fixture.store.images_to_save(&["made:1".to_owned(), "app:1".to_owned()]).unwrap();
    let lease = fixture.store.lease("test").unwrap();
    let out = fixture.path("out");
    fs_err::create_dir(&out).unwrap();
    fs_err::write(out.join("old.tar"), b"old").unwrap();
    for compression in [Compression::Plain, Compression::Gzip] {
        for most in [0, 1, 1000] {
            let asked = std::sync::atomic::AtomicU32::new(0);
            let stopped = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= most;
            let how = Saving { compression, stopped: &stopped };
            let form = ArchiveForm::Docker;
            let to_file = fixture.store.save_to_file(&lease, &images, form, &how, &out.join("old.tar"));
            asked.store(0, std::sync::atomic::Ordering::Relaxed);
            let to_directory = fixture.store.save_to_directory(&lease, &images, &how, &out.join("dir"));
            let left = fs_err::read_dir(&out).unwrap().count();
            match (to_file, to_directory) {
                (Err(Error::Stopped), Err(Error::Stopped)) => {
                    assert_eq!((left, fs_err::read(out.join("old.tar")).unwrap()), (1, b"old".to_vec()));
                }
                // Both were finished before they had asked that often.
                (Ok(()), Ok(())) => {
                    assert!(left == 2 && most == 1000);
                    fs_err::write(out.join("old.tar"), b"old").unwrap();
                    fs_err::remove_dir_all(out.join("dir")).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let how = Saving { compression: Compression::Plain, stopped: &|| false };
    // A kill left it behind.
    fs_err::create_dir_all(out.join(".kiln-unfinished-0123456789abcdef/blobs")).unwrap();
    fixture.store.save_to_directory(&lease, &images, &how, &out.join("new")).unwrap();
    assert!(
        fs_err::read_dir(&out).unwrap().all(|entry| !entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with('.'))
    );
    fixture.store.save_to_file(&lease, &images, ArchiveForm::Docker, &how, &out.join("old.tar")).unwrap();
    assert_eq!(Fixture::new().load_from(&out.join("new")).unwrap().len(), 2);
    assert_eq!(Fixture::new().load_from(&out.join("old.tar")).unwrap().len(), 2);
}

/// A stream without end, or nearly: what it writes until nobody reads it any more.
fn endless(compression: Compression, head: Vec<u8>) -> fs_err::File {
    let (reader, writer) = std::io::pipe().unwrap();
    std::thread::spawn(move || {
        let mut encoder = compression.encoder(writer, 1).unwrap();
        let zeros = vec![0; 1 << 20];
        let mut write = |bytes: &[u8]| std::io::Write::write_all(&mut encoder, bytes).is_ok();
        let mut goes_on = write(&head);
        for _ in 0..1 << 12 {
            goes_on = goes_on && write(&zeros);
        }
    });
    fs_err::File::from_parts(std::os::fd::OwnedFd::from(reader).into(), "a pipe")
}

#[test]
fn streams_that_are_no_archives_end_at_once() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        for head in [vec![], b"no archive".to_vec(), vec![b'x'; 600]] {
            let fixture = Fixture::new();
            let lease = fixture.store.lease("test").unwrap();
            let stream = endless(compression, head.clone()).into_file();
            let loaded = fixture.store.load_stream(&lease, "-", stream, Unpacking::Now, &mut |_| {});
            loaded.expect_err("no archive");
            let held = fs_err::read_dir(lease.directory()).unwrap();
            let held: u64 = held.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
            assert!(held <= 4 << 20, "{held} bytes of {compression}");
            if head.len() < 512 {
                // Zeros are an empty archive, and what follows belongs to the layer.
                continue;
            }
            let stream = endless(compression, head).into_file();
            let (config, history) = (ImageConfig::scratch(&Platform::host()), History::default());
            fixture.store.import(&lease, stream, config, history, None).expect_err("no archive");
        }
    }
    let fixture = Fixture::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &docker_archive()));
    let lease = fixture.store.lease("test").unwrap();
    let stream = fs_err::File::from_parts(std::os::fd::OwnedFd::from(reader).into(), "a pipe").into_file();
    let loaded = fixture.store.load_stream(&lease, "-", stream, Unpacking::Now, &mut |_| {}).unwrap();
    assert_eq!(loaded.len(), 1);
    writing.join().unwrap().unwrap();
}
