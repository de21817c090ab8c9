//! Several builds on one store, and builds that are ended from outside.

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use kiln_sys::lock::{Lock, Sharing};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::bench::{Bench, Running};
use crate::patience::{PATIENCE, until};

fn succeeded(bench: &Bench, name: &str, status: ExitStatus) -> String {
    assert!(status.success(), "{name}: {status}\n{}", bench.read(&format!("{name}.err")));
    let id = bench.read(&format!("{name}.id"));
    assert!(id.starts_with("sha256:"), "{id}");
    id
}

#[test]
fn two_builds_do_each_step_once() {
    let Some(bench) = Bench::new() else { return };
    bench.write(
        "Dockerfile",
        "FROM bb AS left\n\
         RUN --mount=type=cache,target=/c echo left >> /c/log; sleep 0.3; echo left > /left\n\
         FROM bb AS right\n\
         RUN --mount=type=cache,target=/c echo right >> /c/log; sleep 0.3; echo right > /right\n\
         FROM bb\n\
         COPY --from=left /left /\n\
         COPY --from=right /right /\n\
         RUN --mount=type=cache,target=/c echo last >> /c/log; sleep 0.3; cat /left /right > /both\n",
    );
    let mut builds = ["one", "two", "three"].map(|name| (name, bench.start(name)));
    let ids: Vec<_> = builds.iter_mut().map(|(name, build)| succeeded(&bench, name, build.wait())).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let log = bench.log();
    let mut lines: Vec<_> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["last", "left", "right"]);
    assert_eq!(bench.leases(), 0);
}

#[test]
fn a_build_takes_over_from_one_that_was_killed() {
    let Some(bench) = Bench::new() else { return };
    let marker = format!("taken-over-{}", std::process::id());
    bench.write(
        "Dockerfile",
        &format!(
            "FROM bb\n\
             RUN --mount=type=cache,target=/c echo first >> /c/log\n\
             RUN --mount=type=cache,target=/c : {marker}; echo begun >> /c/log; \
             while [ ! -e /c/go ]; do sleep 0.05; done; echo ended >> /c/log; echo made > /made\n"
        ),
    );
    let mut killed = bench.start("killed");
    until("the first build is in its step", || bench.log().ends_with("begun\n"));
    let mut other = bench.start("other");
    let told = format!(
        "another build (process {}), which executes the same step",
        killed.process().as_raw_nonzero()
    );
    until("the second build says for whom it waits", || bench.read("other.err").contains(&told));
    kill_process(killed.process(), Signal::KILL).expect("killed");
    killed.wait();
    until("the second build is in the step", || bench.log().ends_with("begun\nbegun\n"));
    fs_err::write(bench.cache().expect("a cache mount").join("go"), "").expect("written");
    succeeded(&bench, "other", other.wait());
    assert_eq!(bench.log(), "first\nbegun\nbegun\nended\n");
    bench.assert_nothing_goes_on(&marker);

    assert_eq!(bench.leases(), 1, "that of the killed build");
    let pruned = bench.run("store", &["system", "prune", "-f"]);
    assert!(pruned.status.success(), "{pruned:?}");
    assert_eq!(bench.leases(), 0);
    let checked = bench.run("store", &["system", "check"]);
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn an_interrupt_ends_a_step_at_once() {
    let Some(bench) = Bench::new() else { return };
    let opens_devices = bench.opens_devices();
    let marker = format!("interrupted-{}", std::process::id());
    bench.write(
        "Dockerfile",
        &format!(
            "FROM bb\n\
             RUN --mount=type=cache,target=/c echo first >> /c/log\n\
             RUN --mount=type=cache,target=/c : {marker}; trap '' INT; echo begun >> /c/log; \
             [ -e /c/go ] || sleep 1000; echo ended >> /c/log\n"
        ),
    );
    let interrupts: [fn(Pid, Signal) -> rustix::io::Result<()>; 2] = [kill_process, kill_process_group];
    for (round, interrupt) in interrupts.into_iter().enumerate() {
        let log = format!("first\n{}", "begun\n".repeat(round + 1));
        let mut build = bench.start("build");
        until("the build is in its second step", || bench.log() == log);
        let start = Instant::now();
        assert_eq!(Bench::has_cgroup(build.process()), opens_devices);
        interrupt(build.process(), Signal::INT).expect("interrupted");
        let status = build.wait();
        // Without an interrupt it would be 1000 s.
        assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
        let told = bench.read("build.err");
        assert_eq!(status.code(), Some(130), "{told}");
        assert_eq!(told.lines().filter(|line| line.starts_with("kiln: ")).count(), 1, "{told}");
        assert!(bench.read("build.id").is_empty());
        bench.assert_nothing_goes_on(&marker);
        assert!(!Bench::has_cgroup(build.process()));
        assert_eq!(bench.leases(), 0);
    }
    fs_err::write(bench.cache().expect("a cache mount").join("go"), "").expect("written");
    succeeded(&bench, "build", bench.start("build").wait());
    assert_eq!(bench.log(), "first\nbegun\nbegun\nbegun\nended\n");
}

/// A build whose one step holds the cache `k` and says `begun` in it, until there is `go` in it.
fn holding(bench: &Bench, name: &str, marker: &str) -> Running {
    bench.write(
        "Dockerfile",
        &format!(
            "FROM bb\nRUN --mount=type=cache,id=k,target=/c,sharing=locked : {marker}; echo begun >> /c/log; \
             while [ ! -e /c/go ]; do sleep 0.05; done; echo ended >> /c/log\n"
        ),
    );
    let before = bench.log();
    let build = bench.start(name);
    until("the step holds the cache", || bench.log() == format!("{before}begun\n"));
    build
}

#[test]
fn a_step_says_for_whom_it_waits_and_takes_the_cache_of_one_who_died() {
    let Some(bench) = Bench::new() else { return };
    let marker = format!("holds-{}", std::process::id());
    let mut holder = holding(&bench, "holder", &marker);
    let told = format!("waiting for cache mount k, held by process {}\n", holder.process().as_raw_nonzero());
    bench.write(
        "Dockerfile",
        "FROM bb\nRUN --mount=type=cache,id=k,target=/c,sharing=locked echo waited >> /c/log\n",
    );
    for interrupted in [true, false] {
        let mut waiter = bench.start("waiter");
        until("the second build says for whom it waits", || bench.read("waiter.err").contains(&told));
        if interrupted {
            let start = Instant::now();
            kill_process(waiter.process(), Signal::INT).expect("interrupted");
            let status = waiter.wait();
            assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
            assert_eq!(status.code(), Some(130), "{}", bench.read("waiter.err"));
            assert_eq!(bench.leases(), 1, "that of the build that holds the cache");
        } else {
            kill_process(holder.process(), Signal::KILL).expect("killed");
            holder.wait();
            succeeded(&bench, "waiter", waiter.wait());
        }
    }
    assert_eq!(bench.log(), "begun\nwaited\n");
    bench.assert_nothing_goes_on(&marker);
}

/// The init that waits for a build's next step.
fn init_of(build: Pid) -> Option<Pid> {
    let parent = format!("PPid:\t{}\n", build.as_raw_nonzero());
    let entries = fs_err::read_dir("/proc").expect("read").flatten();
    let is_init = |place: &Path| {
        fs_err::read(place.join("cmdline")).is_ok_and(|line| line.starts_with(b"kiln-init\0"))
            && fs_err::read_to_string(place.join("status")).is_ok_and(|status| status.contains(&parent))
    };
    let found = entries.map(|entry| entry.path()).find(|place| is_init(place))?;
    Pid::from_raw(found.file_name()?.to_str()?.parse().ok()?)
}

#[test]
fn an_interrupt_ends_a_build_whose_next_step_does_not_get_started() {
    let Some(bench) = Bench::new() else { return };
    let marker = format!("stopped-{}", std::process::id());
    bench.write(
        "Dockerfile",
        &format!(
            "FROM bb\n\
             RUN --mount=type=cache,target=/c echo begun >> /c/log; while [ ! -e /c/go ]; do sleep 0.05; done\n\
             RUN : {marker}\n"
        ),
    );
    let mut build = bench.start("build");
    until("the build is in its first step", || bench.log() == "begun\n");
    // What is to become the second step waits already, and is stopped by somebody.
    let mut init = None;
    until("the next init waits", || {
        init = init_of(build.process());
        init.is_some()
    });
    kill_process(init.expect("found"), Signal::STOP).expect("stopped");
    fs_err::write(bench.cache().expect("a cache mount").join("go"), "").expect("written");
    until("the second step begins", || bench.read("build.err").contains("[3/3] RUN"));
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    kill_process(build.process(), Signal::INT).expect("interrupted");
    let status = build.wait();
    assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(130), "{}", bench.read("build.err"));
    bench.assert_nothing_goes_on(&marker);
    assert!(fs_err::symlink_metadata(format!("/proc/{}", init.expect("found").as_raw_nonzero())).is_err());
    assert_eq!(bench.leases(), 0);
}

/// After the first step, when the build listens for interrupts: a file of the context is read, and one that a command made. It
/// has no bytes on the disk, and would be read for minutes.
#[test]
fn an_interrupt_ends_the_reading_of_a_large_file() {
    let Some(bench) = Bench::new() else { return };
    bench.write("context/large", "");
    let large = fs_err::OpenOptions::new().write(true).open(bench.path("context/large")).expect("opened");
    large.file().set_len(1 << 40).expect("made large");
    for steps in ["RUN echo x > /first\nCOPY large /x\n", "RUN truncate -s 1024G /large && echo made\n"] {
        bench.write("Dockerfile", &format!("FROM bb\n{steps}"));
        let mut build = bench.start("build");
        until("the build reads", || {
            let told = bench.read("build.err");
            told.contains("2/3] RUN") || told.contains(" made\n")
        });
        std::thread::sleep(Duration::from_millis(700));
        let start = Instant::now();
        kill_process(build.process(), Signal::INT).expect("interrupted");
        let status = build.wait();
        assert!(start.elapsed() < PATIENCE / 4, "{steps}: {:?}", start.elapsed());
        let told = bench.read("build.err");
        assert_eq!(status.code(), Some(130), "{told}");
        assert_eq!(told.lines().filter(|line| line.starts_with("kiln: ")).count(), 1, "{told}");
        assert_eq!(bench.leases(), 0);
    }
}

#[test]
fn who_waits_for_files_of_a_layer_says_for_whom() {
    let Some(bench) = Bench::new() else { return };
    let run = |words: &[&str]| {
        let done = bench.run("store", words);
        assert!(done.status.success(), "{done:?}");
    };
    run(&["save", "-o", "bb.tar", "bb"]);
    bench.remove_store("store");
    run(&["load", "--no-unpack", "-q", "-i", "bb.tar"]);
    bench.write("Dockerfile", "FROM bb\nRUN true\n");
    // Whichever of the locks they ask for, this process has it.
    let claims = bench.path("store/claims");
    let first = claims.join("files-000");
    let held = Lock::acquire(&first, Sharing::Exclusive).expect("locked");
    for number in 0..4096 {
        for kind in ["files", "tar"] {
            let _ = fs_err::hard_link(&first, claims.join(format!("{kind}-{number:03x}")));
        }
    }
    let own = std::process::id();
    let told = format!("waiting for files of a layer, made ready by process {own}\n");
    let mut build = bench.start("build");
    until("the build says for whom it waits", || bench.read("build.err").contains(&told));
    let start = Instant::now();
    kill_process(build.process(), Signal::INT).expect("interrupted");
    let status = build.wait();
    assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(130), "{}", bench.read("build.err"));
    assert_eq!(bench.leases(), 0);

    let told =
        format!("kiln: waiting for another command that makes files of a layer ready: process {own}\n");
    let errors = fs_err::File::create(bench.path("run.err")).expect("made");
    let mut command = bench.kiln("store", &["run", "--rm", "bb", "true"]);
    let mut command = command.stderr(errors.into_parts().0).spawn().expect("kiln");
    until("the command says for whom it waits", || bench.read("run.err").contains(&told));
    drop(held);
    assert!(command.wait().expect("waited").success());
}
