//! What works where no command can be run, and what is said.

use crate::environment::{Environment, Place};

#[test]
fn what_runs_no_command_works_without_namespaces() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    place.write("copies", "FROM base\nCOPY --chown=5:6 f /f\nADD f /g\nWORKDIR /w\nENV A=1\n");
    place.write("runs", "FROM base\nRUN echo x > /x && chown 5 /x\n");
    let script = r#"
        kiln load -q -i base.image > /dev/null
        kiln build -q -t copies -f copies context > $STORE.id
        kiln build -q -f copies context | cmp - $STORE.id
        kiln save copies > $STORE.tar; kiln load -q -i $STORE.tar > /dev/null
        kiln image files copies /f | cut -d' ' -f2; kiln image cat copies /f
        kiln inspect -f '{{.Config.WorkingDir}}' copies; kiln history -q copies | head -1 | grep -c .
        mkdir $STORE.files; kiln image unpack copies $STORE.files; cat $STORE.files/g
        kiln system check > /dev/null; kiln info | sed -n 's/ (.*//; /^Isolation\|^File/p'
        kiln run copies true 2> $STORE.run || echo $?
        kiln build -f runs context 2> $STORE.err || echo $?
        tail -2 $STORE.err | sed 's/refuses .*/refuses/'; tail -1 $STORE.run
        kiln system prune -af > /dev/null; kiln images -q
    "#;
    let expect = "5/6\nf\n/w\n1\nf\nFile Owners: kept in layers alone: every file here is this user's\n\
        Isolation: none: no command can be run\n125\n1\n\
        kiln: cannot build runs: no command can be run here: the kernel refuses\n\
        hint: run kiln as root, or allow user namespaces; `kiln info` tells what this machine gives\n\
        hint: run kiln as root, or allow user namespaces; `kiln info` tells what this machine gives\n";
    assert_eq!(place.run(Environment::NoNamespaces, "022", script), expect);

    // What is in the cache needs no namespace.
    let build = "STORE=$PWD/SingleId/store; kiln build -q -f runs context";
    let script = format!("kiln load -q -i base.image > /dev/null; {build}");
    let built = place.run(Environment::SingleId, "022", &script);
    assert_eq!(place.run(Environment::NoNamespaces, "022", build), built);
    place.assert_nothing_is_mounted();
}

/// Also what became another user, for which the kernel forgets that it was to die with kiln.
#[test]
fn what_runs_dies_with_kiln() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    let script = r#"
        kiln load -q -i base.image > /dev/null
        (./kiln --root "$STORE" run base su app -c 'echo begun; sleep 60; echo late' & echo $! > $STORE.pid; wait || true) |
            (read line; echo $line; kill -9 $(cat $STORE.pid); cat)
        ls $STORE/tmp | wc -l; kiln system prune -af > /dev/null; ls $STORE/tmp | wc -l
    "#;
    for environment in [Environment::Root, Environment::SubIds, Environment::SingleId] {
        let begun = std::time::Instant::now();
        assert_eq!(place.run(environment, "022", script), "begun\n1\n0\n", "{environment:?}");
        // Whoever still lived would hold the pipe open.
        assert!(begun.elapsed() < std::time::Duration::from_secs(40), "{environment:?}");
    }
    place.assert_nothing_is_mounted();
}

/// A namespace of processes ends with its first one; without, kiln ends what is left.
#[test]
fn what_a_step_leaves_running_ends_with_it() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    // One in the same group of processes, which holds the pipe open; one of another group, and another user's.
    let mark = place.path("").display().to_string();
    let leaves = format!(
        "FROM base\nRUN (sleep 100; echo late) & echo early; echo x > /x\n\
         RUN busybox setsid su app -c 'sleep 100; : {mark}' <&- >&- 2>&- & sleep 1; echo x > /x\n"
    );
    place.write("leaves", &leaves);
    let script = r#"
        kiln load -q -i base.image > /dev/null
        timeout 50 ./kiln --root $STORE build --progress=plain -f leaves context 2>&1 | sed -n 's/^.* \(early\|late\)$/\1/p'
    "#;
    for environment in [Environment::NoMounts, Environment::Root, Environment::SingleId] {
        let begun = std::time::Instant::now();
        assert_eq!(place.run(environment, "022", script), "early\n", "{environment:?}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(40), "{environment:?}");
        let is_left = |process: &std::path::Path| {
            let arguments = fs_err::read(process.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(&format!(": {mark}"))
        };
        let left = fs_err::read_dir("/proc").expect("listed").flatten().any(|entry| is_left(&entry.path()));
        assert!(!left, "{environment:?}");
    }
    place.assert_nothing_is_mounted();
}

#[test]
fn what_is_not_isolated_is_said_once() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    place.write("runs", "FROM base\nRUN echo x > /x\nRUN echo y > /y\n");
    let script = r#"
        kiln load -q -i base.image > /dev/null
        kiln build --progress=plain -f runs context 2> $STORE.err
        grep -c 'not isolated: \|roots of RUN steps are copied' $STORE.err
        kiln run -v $PWD:/host base test 1 2> $STORE.run || { echo $?; cat $STORE.run; }
        kiln info | sed -n 's/ (.*//; /^Storage\|^Isolation/p'; ls $STORE/tmp
    "#;
    let found = place.run(Environment::OverlayRoot, "022", script);
    assert_eq!(found, "1\nStorage Driver: copied roots\nIsolation: namespaces\n");
    let found = place.run(Environment::NoMounts, "022", script);
    let expect = "1\n125\nkiln: cannot run a container from base: cannot put files into the root: /host: it would have to be \
        mounted, and nothing can be mounted here\nStorage Driver: copied roots\nIsolation: chroot, seccomp and \
        capabilities alone\n";
    assert_eq!(found, expect);
    place.assert_nothing_is_mounted();
}

/// Files of identifiers that are taken away later can be removed by nobody but root.
#[test]
fn what_cannot_be_removed_stops_no_collection() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    place.write("runs", "FROM base\nRUN mkdir /d && touch /d/f && chown 5:6 /d\n");
    place.write("plain", "FROM base\nCOPY f /f\nRUN echo x > /x\n");
    let load = "kiln load -q -i base.image > /dev/null";
    for (fill, remove) in [
        ("kiln build -q -f runs context; kiln build -q -f plain context", "kiln system prune -af"),
        ("tar --owner=5 --group=6 -cf f.tar context; kiln import f.tar f", "kiln rmi f base"),
    ] {
        place.run(Environment::SubIds, "022", &format!("{load}; {fill}"));
        let script = format!(
            "STORE=$PWD/SubIds/store; {remove} > $STORE.out 2> $STORE.err; cat $STORE.err; \
             kiln images -q; ls $STORE/trash | grep -c .; kiln system prune -af"
        );
        let told = place.run(Environment::SingleId, "022", &script);
        let lines: Vec<&str> = told.lines().collect();
        // Once, however many images went.
        let [warning, hint, left, reclaimed] = lines.as_slice() else { panic!("{remove}: {told}") };
        assert!(
            warning.starts_with("kiln: warning: some files stay in the store: ")
                && warning.contains("ermission denied"),
            "{remove}: {told}"
        );
        assert!(hint.starts_with("hint: ") && hint.contains("/etc/subuid"), "{remove}: {told}");
        assert_eq!((*left, *reclaimed), ("1", "Total reclaimed space: 0B"), "{remove}");
        assert_eq!(
            place.run(Environment::SubIds, "022", "kiln system prune -af; ls $STORE/trash"),
            "Total reclaimed space: 0B\n"
        );
    }
}

/// A directory of somebody else's cannot even be moved.
#[test]
fn a_cache_mount_that_cannot_be_removed_stops_no_collection() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    place.write("caches", "FROM base\nRUN --mount=type=cache,target=/c,uid=5,gid=6 touch /c/f\n");
    let fill = "kiln load -q -i base.image > /dev/null; kiln build -q -t made -f caches context > /dev/null";
    place.run(Environment::SubIds, "022", fill);
    let script = "STORE=$PWD/SubIds/store
        for i in 1 2; do kiln system prune -af > $STORE.out 2> $STORE.err || echo failed; grep -c '' $STORE.err
        grep -c 'some files stay in the store: ' $STORE.err; grep '^untagged: made' $STORE.out || :; done
        kiln images -q; ls $STORE/cache | grep -c .";
    let told = place.run(Environment::SingleId, "022", script);
    assert_eq!(told, "2\n1\nuntagged: made:latest\n2\n1\n1\n");
    let told = place.run(Environment::SubIds, "022", "kiln system prune -af; ls $STORE/cache");
    assert_eq!(told, "Total reclaimed space: 0B\n");
}
