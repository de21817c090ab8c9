//! Runs real processes in sandboxes. Needs root (or a user namespace that `kiln_sys` can enter) and a static busybox;
//! says so and skips where they are missing.
//!
//! The test program is its own init, so it has no standard harness. A word on the command line selects the cases whose
//! name contains it.
#![allow(clippy::print_stdout, reason = "a test program reports")]

mod attacks;
mod basics;
mod confinement;
mod devices;
mod fixture;
mod owners;
mod terminals;
mod waiting;

use std::panic::{AssertUnwindSafe, catch_unwind};

use fixture::Fixture;

/// A case: its name and what it does.
type Case = (&'static str, fn(&Fixture));

fn main() {
    if std::env::args_os().next().is_some_and(|name| name == "kiln-init") {
        waiting::spoil();
    }
    kiln_runtime::init_if_asked();
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let arranged = devices::Hierarchies::ALL
        .into_iter()
        .find(|(argument, _)| std::env::args().any(|given| given == *argument));
    if let Some((argument, hierarchies)) = arranged
        && !hierarchies.arrange()
    {
        println!("SKIPPED: tests of devices with {argument}: this machine has no such cgroups");
        return;
    }
    let configuration = kiln_sys::namespace::Configuration::default();
    let user = kiln_sys::namespace::enter_user_namespace(&configuration).expect("a user namespace, or none");
    if user != kiln_sys::namespace::UserNamespace::None {
        println!("in a user namespace: {user:?}");
    }
    let fixture = match Fixture::new(&user) {
        Ok(fixture) => fixture,
        Err(reason) => {
            println!("SKIPPED: all sandbox tests: {reason}");
            return;
        }
    };
    if let Some(wanted) = std::env::args().find(|argument| argument.starts_with("--endless")) {
        return confinement::endless(&fixture, &wanted);
    }
    if std::env::args().any(|argument| argument == "--expecting") {
        return waiting::endless(&fixture);
    }
    if std::env::args().any(|argument| argument == "--recorded") {
        return owners::record(&fixture);
    }
    let cases = match arranged {
        Some((_, hierarchies)) => {
            let has_rules = fixture.launcher.cgroup().make();
            assert_eq!(has_rules.is_ok(), hierarchies != devices::Hierarchies::None, "{has_rules:?}");
            devices::CASES.to_vec()
        }
        None => [
            basics::CASES,
            attacks::CASES,
            confinement::CASES,
            devices::CASES,
            owners::CASES,
            terminals::CASES,
            waiting::CASES,
        ]
        .concat(),
    };
    let mut failed = Vec::new();
    let mut run = 0;
    for (name, case) in cases {
        if wanted.as_deref().is_some_and(|word| !name.contains(word)) {
            continue;
        }
        run += 1;
        let passed = catch_unwind(AssertUnwindSafe(|| case(&fixture))).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    println!("{run} cases, {} failed {failed:?}", failed.len());
    if user == kiln_sys::namespace::UserNamespace::None && arranged.is_none() {
        if !again_as_nobody() {
            failed.push("all of it as an ordinary user");
        }
        if devices::CASES.iter().any(|(name, _)| wanted.as_deref().is_none_or(|word| name.contains(word))) {
            failed.extend(
                devices::Hierarchies::ALL
                    .into_iter()
                    .map(|(argument, _)| argument)
                    .filter(|argument| !again_with(argument)),
            );
        }
    }
    assert!(run > 0, "no case has that word in its name");
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// Runs the cases of devices once more with other cgroup hierarchies.
fn again_with(hierarchies: &str) -> bool {
    let program = std::env::current_exe().expect("a name");
    let arguments = std::env::args_os().skip(1);
    println!("again with {hierarchies}:");
    let status = std::process::Command::new(program).arg(hierarchies).args(arguments).status();
    status.expect("starts").success()
}

/// Runs all of this once more as a user who has no sub-identifiers.
fn again_as_nobody() -> bool {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    // A directory that this user can reach, with the program in it: the build's own may be closed.
    let directory = tempfile::Builder::new().prefix("nobody").tempdir_in("/tmp").expect("a directory");
    let program = directory.path().join("sandbox");
    fs_err::copy(std::env::current_exe().expect("a name"), &program).expect("copied");
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
    let status = std::process::Command::new(&program)
        .args(std::env::args_os().skip(1))
        .env("TMPDIR", directory.path())
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .status();
    status.expect("starts").success()
}
