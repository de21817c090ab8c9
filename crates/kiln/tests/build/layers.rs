//! Images of as many layers as there can be.

use crate::bench::{Bench, text};

#[test]
fn an_image_of_five_hundred_layers_is_built_and_run() {
    let Some(bench) = Bench::new() else { return };
    bench.write("context/file", "one");
    let copies: String = (1..500).map(|number| format!("COPY file /n{number}\n")).collect();
    let build = |copies: &str, more: &str| {
        bench.write("more", &format!("FROM bb\n{copies}{more}"));
        bench.run("store", &["build", "-q", "-t", "many", "-f", "more", "context"])
    };
    let made = build(&copies, "");
    assert!(made.status.success(), "{made:?}");
    let ran = bench.run("store", &["run", "--rm", "many", "sh", "-c", "set -- /n*; echo $#; echo x > /new"]);
    assert_eq!(text(&ran.stdout), "499\n", "{ran:?}");
    // A layer that comes twice is mounted once: what replaces a file is the same each time.
    let again = "COPY file /n2\n".repeat(3);
    let made = build(&copies.replace("COPY file /n2\nCOPY file /n3\n", &again), "");
    assert!(made.status.success(), "{made:?}");
    let count = bench.run("store", &["inspect", "-f", "{{len .RootFS.Layers}}", "many"]);
    assert_eq!(text(&count.stdout), "501\n", "{count:?}");
    let ran = bench.run("store", &["run", "--rm", "many", "sh", "-c", "set -- /n*; echo $#"]);
    assert_eq!(text(&ran.stdout), "498\n", "{ran:?}");
    for more in ["COPY file /new", "WORKDIR /new", "RUN echo in the step"] {
        let refused = build(&copies, &format!("{more}\n"));
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(
            told.contains("an image of 501 layers cannot be run: overlayfs stacks at most 500"),
            "{told}"
        );
    }
}

/// A file of the store that is lost is named, whatever asks for it.
#[test]
fn a_lost_index_is_named() {
    let Some(bench) = Bench::new() else { return };
    for (number, step) in ["COPY --from=made /f /g", "RUN --mount=type=bind,from=made,target=/m cat /m/f"]
        .into_iter()
        .enumerate()
    {
        let store = format!("store{number}");
        bench.run(&store, &["import", "image.tar", "bb"]);
        let indexes = || {
            let entries = fs_err::read_dir(bench.path(&store).join("index")).expect("listed");
            entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
        };
        let before = indexes();
        bench.write("Dockerfile", &format!("FROM bb AS made\nRUN echo {number} > /f\n"));
        let built = bench.run(&store, &["build", "-q", "-t", "made", "-f", "Dockerfile", "context"]);
        assert!(built.status.success(), "{built:?}");
        let made: Vec<_> = indexes().into_iter().filter(|path| !before.contains(path)).collect();
        let [index] = made.as_slice() else { panic!("{made:?}") };
        fs_err::remove_file(index).expect("removed");
        bench.write("Dockerfile", &format!("FROM bb AS made\nRUN echo {number} > /f\nFROM bb\n{step}\n"));
        let refused = bench.run(&store, &["build", "-q", "-f", "Dockerfile", "context"]);
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains(&index.display().to_string()), "{told}");
        assert!(told.contains("kiln system check"), "{told}");
    }
}

/// What every container has something mounted on is there for the mounts alone.
#[test]
fn what_is_there_for_mounts_is_in_no_layer() {
    let Some(bench) = Bench::new() else { return };
    let dockerfile = "FROM bb AS programs\nFROM scratch\nCOPY --from=programs /bin /bin\n\
        RUN --network=none [ ! -e /etc/resolv.conf ] && [ -e /etc/hosts ]\n\
        RUN --network=none chmod 700 /etc && echo x > /etc/t && rm /etc/t && touch -d @7 /etc\n\
        RUN [ -e /etc/resolv.conf ] && chmod 711 /etc && find / -xdev -name 'nothing'\n";
    bench.write("Dockerfile", dockerfile);
    let built = bench.run("store", &["build", "-q", "-t", "made", "-f", "Dockerfile", "context"]);
    assert!(built.status.success(), "{built:?}");
    let files = text(&bench.run("store", &["image", "files", "made"]).stdout);
    assert!(files.contains(" /bin/busybox"), "{files}");
    for name in ["/etc", "/dev", "/proc", "/sys"] {
        assert!(!files.contains(&format!(" {name}")), "{name}: {files}");
    }
    // A file that a step makes there is its own, and its directory comes along.
    bench.write(
        "Dockerfile",
        &format!("{dockerfile}RUN --network=none echo > /etc/own; : > /etc/resolv.conf\n"),
    );
    let built = bench.run("store", &["build", "-q", "-t", "made", "-f", "Dockerfile", "context"]);
    assert!(built.status.success(), "{built:?}");
    let files = text(&bench.run("store", &["image", "files", "made"]).stdout);
    for (name, is_there) in
        [("/etc", true), ("/etc/own", true), ("/etc/resolv.conf", true), ("/etc/hosts", false)]
    {
        assert_eq!(
            files.lines().any(|line| line.ends_with(&format!(" {name}"))),
            is_there,
            "{name}: {files}"
        );
    }
}

/// After a pruning, records tell of results whose layers are gone.
#[test]
fn only_what_does_not_run_is_shown_as_cached() {
    let Some(bench) = Bench::new() else { return };
    let build = |dockerfile: &str| {
        bench.write("Dockerfile", dockerfile);
        let words = ["build", "--progress=plain", "-t", "app", "-f", "Dockerfile", "context"];
        let built = bench.run("store", &words);
        assert!(built.status.success(), "{built:?}");
        text(&built.stderr)
    };
    let prune = || assert!(bench.run("store", &["system", "prune", "-f"]).status.success());
    let is_cached = |told: &str, step: &str| {
        let named = told.lines().find(|line| line.ends_with(step)).unwrap_or_else(|| panic!("{told}"));
        let number = named.split(' ').next().unwrap();
        let has = |end: &str| told.lines().any(|line| line.starts_with(&format!("{number} {end}")));
        assert!(has("CACHED") != has("DONE"), "{step}: {told}");
        has("CACHED")
    };
    // The stage's own layer is no image's, and nothing needs it.
    let stages = "FROM bb AS a\nRUN echo a > /a\nFROM bb\nCOPY --from=a /a /a\n";
    build(stages);
    prune();
    let told = build(stages);
    assert!(is_cached(&told, "RUN echo a > /a") && is_cached(&told, "COPY --from=a /a /a"), "{told}");
    // All is needed for what is new.
    let steps = "FROM bb\nRUN echo b > /b\nRUN echo c > /c\n";
    build(steps);
    assert!(bench.run("store", &["rmi", "app"]).status.success());
    prune();
    let told = build(&format!("{steps}RUN echo d > /d\n"));
    // The base is there.
    assert_eq!(told.matches("CACHED").count(), 1, "{told}");
    assert_eq!(
        ["b", "c", "d"].map(|step| is_cached(&told, &format!("RUN echo {step} > /{step}"))),
        [false; 3]
    );
    let told = build(&format!("{steps}RUN echo d > /d\n"));
    assert_eq!(told.matches("CACHED").count(), 4, "{told}");
}
