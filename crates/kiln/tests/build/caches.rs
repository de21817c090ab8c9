//! Which directory a cache mount is, as BuildKit has it: that of its id and of what it begins with.

use std::process::Output;

use crate::bench::{Bench, text};
use crate::patience::until;

fn build(bench: &Bench, dockerfile: &str) -> Output {
    bench.write("Dockerfile", dockerfile);
    let words = ["build", "--progress=plain", "--no-cache", "-f", "Dockerfile", "context"];
    bench.run("store", &words)
}

/// What the steps say.
#[track_caller]
fn said(bench: &Bench, dockerfile: &str) -> String {
    let output = build(bench, dockerfile);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    told
}

#[test]
fn owners_and_modes_are_those_of_another_directory() {
    let Some(bench) = Bench::new() else { return };
    let step = |options: &str| {
        format!(
            "FROM bb\nUSER 1000\nRUN --mount=type=cache,target=/npm{options} touch /npm/x && echo had $(find /npm)\n"
        )
    };
    let refused = build(&bench, &step(""));
    assert!(!refused.status.success() && text(&refused.stderr).contains("Permission denied"), "{refused:?}");
    for options in [",uid=1000", ",mode=0777", ",uid=1000,gid=1000,mode=0700"] {
        assert!(said(&bench, &step(options)).contains("had /npm /npm/x"), "{options}");
        let again = format!("FROM bb\nRUN --mount=type=cache,target=/npm{options} echo has $(find /npm)\n");
        assert!(said(&bench, &again).contains("has /npm /npm/x"), "{options}");
    }
    // What is the same in other words is the same.
    let words = "FROM bb\nRUN --mount=type=cache,target=/npm,uid=1000,gid=0,mode=755 echo has $(find /npm)\n";
    assert!(said(&bench, words).contains("has /npm /npm/x"));
    let listed = text(&bench.run("store", &["system", "df", "-v"]).stdout);
    assert_eq!(listed.matches("exec.cachemount").count(), 4, "{listed}");
    assert!(bench.run("store", &["system", "prune", "-af"]).status.success());
    let listed = text(&bench.run("store", &["system", "df", "-v"]).stdout);
    assert!(!listed.contains("exec.cachemount"), "{listed}");
}

#[test]
fn a_changed_base_is_seen() {
    let Some(bench) = Bench::new() else { return };
    let step = |stage: &str, options: &str| {
        format!(
            "FROM bb AS s\nRUN mkdir /d /e && echo {stage} > /d/f && echo e > /e/f\nFROM bb\n\
             RUN --mount=type=cache,target=/c,id=k1{options} echo saw $(cat /c/f) $(cat /c/more); echo x >> /c/more\n"
        )
    };
    assert!(said(&bench, &step("one", ",from=s,source=/d")).contains("saw one\n"));
    assert!(said(&bench, &step("two", ",from=s,source=/d")).contains("saw two\n"));
    assert!(said(&bench, &step("two", ",from=s,source=/e")).contains("saw e\n"));
    assert!(said(&bench, &step("two", "")).contains("saw\n"));
    assert!(said(&bench, &step("two", "")).contains("saw x\n"));
}

#[test]
fn a_step_does_not_wait_for_itself() {
    let Some(bench) = Bench::new() else { return };
    for sharing in ["locked", "private", "shared"] {
        let mount = format!("--mount=type=cache,id={sharing},sharing={sharing}");
        let step =
            format!("FROM bb\nRUN {mount},target=/x {mount},target=/y touch /x/f && echo at $(find /y)\n");
        assert!(said(&bench, &step).contains("at /y /y/f"), "{sharing}");
    }
}

/// Each would hold what the other one waits for, if they took their caches in the order in which they name them.
#[test]
fn steps_with_the_same_caches_in_another_order_do_not_wait_for_each_other() {
    let Some(bench) = Bench::new() else { return };
    said(&bench, "FROM bb\nRUN --mount=type=cache,id=c,target=/c touch /c/mark\n");
    let cache = bench.cache().expect("a cache mount");
    let lock = fs_err::File::open(cache.with_extension("lock")).expect("opened");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    let mounts = |ids: [&str; 3]| {
        ids.map(|id| format!("--mount=type=cache,sharing=locked,id={id},target=/caches/{id}")).join(" ")
    };
    let (forth, back) = (mounts(["a", "c", "b"]), mounts(["b", "c", "a"]));
    bench.write(
        "Dockerfile",
        &format!(
            "FROM bb AS forth\nRUN {forth} touch /forth\nFROM bb AS back\nRUN {back} touch /back\n\
             FROM bb\nCOPY --from=forth /forth /\nCOPY --from=back /back /\n"
        ),
    );
    let mut build = bench.start("build");
    let own = format!("waiting for cache mount c, held by process {}\n", std::process::id());
    let other = "waiting for cache mount a, held by another step of this build\n";
    until("both steps wait", || {
        let told = bench.read("build.err");
        told.contains(&own) && told.contains(other)
    });
    drop(lock);
    assert!(build.wait().success(), "{}", bench.read("build.err"));
}

#[test]
fn what_a_base_has_keeps_owners_and_modes() {
    let Some(bench) = Bench::new() else { return };
    // The base is the same in whatever second it is made.
    let step = |options: &str, command: &str| {
        format!(
            "FROM bb AS s\nRUN mkdir -p /d/sub && echo f > /d/f && ln -s f /d/l && ln -s d /there && touch /file && \
             /bin/busybox chown 1000:1001 /d /d/f && /bin/busybox chown 5:6 /d/sub && chmod 1777 /d && \
             chmod 4755 /d/f && chmod 2750 /d/sub && \
             touch -h -d @1600000000 /there /file /d/l /d/f /d/sub /d\nFROM bb\n\
             RUN --mount=type=cache,target=/c,from=s{options} {command}\n"
        )
    };
    let list = "for name in /c /c/*; do echo has $(stat -c '%n %a %u:%g' $name); done";
    for options in [",source=/d", ",source=/there,id=other"] {
        let told = said(&bench, &step(options, list));
        for line in ["/c 1777 1000:1001", "/c/f 4755 1000:1001", "/c/l 777 0:0", "/c/sub 2750 5:6"] {
            assert!(told.contains(&format!("has {line}\n")), "{line}: {told}");
        }
    }
    // What a step does to it stays.
    said(&bench, &step(",source=/d", "rm /c/f && echo x > /c/new"));
    let told = said(&bench, &step(",source=/d", list));
    assert!(told.contains("has /c/new 644 0:0\n") && !told.contains("has /c/f"), "{told}");
    for (options, says) in
        [(",source=/file", "a cache mount that begins with a file"), (",source=/no", "\"/no\" not found")]
    {
        let refused = text(&build(&bench, &step(options, "true")).stderr);
        assert!(refused.contains(says), "{refused}");
    }
}
