//! Builds that cannot be: one clear error each, and the store as it was.

use std::path::Path;

use crate::bench::{Bench, text};

/// Every file of the store but the database, locks and what is only remembered: stat cache, images of mounts.
fn contents(directory: &Path, found: &mut Vec<String>) {
    for entry in fs_err::read_dir(directory).expect("read").flatten() {
        let name = entry.file_name().into_string().expect("a plain name");
        if name.starts_with("kiln.db") || ["claims", "context", "mounts"].contains(&name.as_str()) {
            continue;
        }
        found.push(entry.path().display().to_string());
        if entry.file_type().expect("its type").is_dir() {
            contents(&entry.path(), found);
        }
    }
    found.sort();
}

impl Bench {
    #[track_caller]
    fn refuses(&self, dockerfile: Option<&str>, status: i32, says: &[&str]) {
        let look = || {
            let mut found = Vec::new();
            contents(&self.path("store"), &mut found);
            (found, text(&self.run("store", &["images", "-aq", "--no-trunc"]).stdout))
        };
        let before = look();
        if let Some(dockerfile) = dockerfile {
            self.write("Dockerfile", dockerfile);
        }
        let words = ["build", "--progress=plain", "-t", "made", "-f", "Dockerfile", "context"];
        let output = self.run("store", &words);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{told}");
        for part in says {
            assert!(told.contains(part), "expected {part:?} in\n{told}");
        }
        let errors = told.lines().filter(|line| line.starts_with("kiln: ")).count();
        assert_eq!((errors, text(&output.stdout).as_str()), (1, ""), "{told}");
        assert!(!told.contains("panicked"), "{told}");
        assert_eq!(look(), before);
    }
}

#[test]
fn refusals_are_clear_and_change_nothing() {
    let Some(bench) = Bench::new() else { return };
    let store = bench.path("store").display().to_string();
    bench.write("context/secret", "secret\n");
    bench.write("context/sources", "");
    bench.write("context/.dockerignore", "secret\n");
    // So that the base is unpacked, which is remembered.
    bench.write("Dockerfile", "FROM bb\nRUN echo first > /first\n");
    assert!(bench.run("store", &["build", "-q", "-f", "Dockerfile", "context"]).status.success());
    fs_err::remove_file(bench.path("Dockerfile")).expect("removed");

    bench.refuses(None, 1, &["cannot read the Dockerfile Dockerfile", "No such file"]);
    bench.refuses(Some(""), 1, &["the Dockerfile cannot be empty"]);
    bench.refuses(Some("# nothing\n\n"), 1, &["kiln: cannot build Dockerfile"]);
    bench.refuses(
        Some("FROM bb\nCPOY a /a\n"),
        1,
        &["unknown instruction: CPOY", "Dockerfile:2:1\n", "2 | CPOY a /a\n  | ^^^^\n", "did you mean COPY?"],
    );
    bench.refuses(
        Some("FROM bb\nCOPY nope /a\n"),
        1,
        &[
            "kiln: cannot build Dockerfile: \"nope\" not found in the build context\n",
            "   2 | >>> COPY nope /a\n",
        ],
    );
    bench.refuses(
        Some("FROM bb\nCOPY secret /a\n"),
        1,
        &[
            "\"secret\" not found in the build context: it is excluded by the ignore file\n",
            ">>> COPY secret /a\n",
        ],
    );
    bench.refuses(
        Some("FROM bb\nCOPY Sources /a\n"),
        1,
        &["\"Sources\" not found in the build context: there is \"sources\", and case counts\n"],
    );
    bench.refuses(
        Some("FROM bb AS build\nFROM bb\nCOPY --from=biuld /a /a\n"),
        1,
        &["docker.io/library/biuld:latest: no such image", " (did you mean the stage build?)\n"],
    );
    bench.refuses(
        Some("FROM bb\nCOPY --from=nosuch /a /a\n"),
        1,
        &["docker.io/library/nosuch:latest: no such image", &store],
    );
    bench.refuses(
        Some("FROM nosuch:1\nCMD x\n"),
        1,
        &[
            "docker.io/library/nosuch:1: no such image in the store at ",
            &store,
            "hint: ",
            ">>> FROM nosuch:1\n",
        ],
    );
    bench.refuses(
        Some("FROM bb\nRUN echo out; echo last words >&2; exit 7\n"),
        1,
        &[
            " out\n",
            " last words\n",
            "kiln: cannot build Dockerfile: process \"/bin/sh -c echo out; echo last words >&2; exit 7\" \
             did not complete successfully: exit code: 7\n",
            ">>> RUN echo out",
        ],
    );
    // Nobody could unpack it, kiln least of all.
    let name = "n".repeat(256);
    for step in [
        format!("WORKDIR /{name}"),
        format!("COPY <<E /{name}\nx\nE"),
        "RUN for i in 0 1 2 3; do for j in $(seq 251); do mkdir d && cd d || exit 1; done; done".to_owned(),
    ] {
        bench.refuses(Some(&format!("FROM bb\n{step}\n")), 1, &["its path is too "]);
    }
    bench.refuses(Some("FROM bb\nRUN [\"/nosuch\"]\n"), 1, &["/nosuch", ">>> RUN [\"/nosuch\"]\n"]);
    // A mount that is read-only, as those of the context are, and not the store.
    bench.refuses(
        Some("FROM bb\nRUN --mount=type=bind,target=/m --mount=type=tmpfs,target=/m/new true\n"),
        1,
        &[
            "kiln: cannot build Dockerfile: cannot mount /m/new: Read-only file system (os error 30)\n",
            "hint: what is mounted around it is read-only, so that no place for it can be made",
        ],
    );
    let most = "kiln: cannot build Dockerfile: the layer has more than 274877906944 bytes\n";
    bench.refuses(Some("FROM bb\nRUN /bin/busybox truncate -s 300G /holes\n"), 1, &[most]);
    bench.refuses(
        Some("FROM bb\nRUN echo not run > /first\nCOPY a[ /o/\n"),
        1,
        &["syntax error in pattern \"a[\"\n", "Dockerfile:3:6\n", "3 | COPY a[ /o/\n  |      ^^\n"],
    );
    bench.write("context/.dockerignore", "a*[\n");
    bench.refuses(
        Some("FROM bb\nCOPY . /a\n"),
        1,
        &["kiln: cannot build Dockerfile: cannot read the ignore file: syntax error in pattern \"a*[\"\n"],
    );
}

#[test]
fn where_the_image_id_cannot_be_written_nothing_is_built() {
    let Some(bench) = Bench::new() else { return };
    bench.write("Dockerfile", "FROM bb\nRUN echo in the step\n");
    for (path, why) in [("none/id", "No such file or directory"), ("context", "Is a directory")] {
        let refused = bench.run("store", &["build", "--iidfile", path, "-f", "Dockerfile", "context"]);
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        let expect = format!("kiln: cannot write the image ID to {path}: {why}");
        assert!(told.starts_with(&expect) && !told.contains("in the step"), "{told}");
    }
}

#[test]
fn a_store_of_a_newer_kiln_is_left_alone() {
    let Some(bench) = Bench::new() else { return };
    let database = bench.path("store/kiln.db");
    let newer = rusqlite::Connection::open(&database).expect("opened");
    newer.execute_batch("PRAGMA user_version = 999; PRAGMA wal_checkpoint(TRUNCATE)").expect("written");
    drop(newer);
    let bytes = fs_err::read(&database).expect("read");
    bench.write("Dockerfile", "FROM bb\nRUN true\n");
    for words in [&["build", "-f", "Dockerfile", "context"][..], &["images"], &["system", "prune", "-f"]] {
        let output = bench.run("store", words);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {told}");
        assert!(told.contains("schema version 999; this kiln knows "), "{told}");
        assert_eq!(told.lines().filter(|line| line.starts_with("kiln: ")).count(), 1, "{told}");
        assert_eq!(fs_err::read(&database).expect("read"), bytes);
    }
}
