//! Runs a command over a directory by hand: `run_command LOWER HOLDER COMMAND...`. Changes go to `HOLDER/upper`; owners
//! that were only recorded are listed at the end.
#![allow(clippy::print_stdout, clippy::exit, reason = "a program to try things with")]

use std::ffi::OsString;
use std::path::PathBuf;

use kiln_runtime::{Isolation, OwnershipMode, ProvidedFile, RootSource, Sandbox, Streams};
use kiln_sys::namespace::{Configuration, UserNamespace, enter_user_namespace};
use kiln_sys::overlay::{Overlay, Upper};

fn main() {
    kiln_runtime::init_if_asked();
    let user = enter_user_namespace(&Configuration::default()).expect("enter a user namespace");
    println!("user namespace: {user:?}");
    let mut arguments = std::env::args_os().skip(1);
    let lower = PathBuf::from(arguments.next().expect("a lower directory"));
    let holder = PathBuf::from(arguments.next().expect("a directory for changes"));
    let command: Vec<OsString> = arguments.collect();
    let (upper, work) = (holder.join("upper"), holder.join("work"));
    fs_err::create_dir_all(&upper).expect("make the upper");
    fs_err::create_dir_all(&work).expect("make the work directory");
    let userxattr = user != UserNamespace::None;
    let upper_and_work = Upper { upper: upper.clone(), work };
    let chroot = Isolation::best() == Ok(Isolation::Chroot);
    let plain = lower.clone();
    let overlay = Overlay {
        tars: Vec::new(),
        lowers: vec![lower],
        upper: Some(upper_and_work),
        userxattr,
        volatile: true,
    };
    let mut sandbox = Sandbox::new(RootSource::Overlay { overlay }, command);
    if chroot {
        // Nothing can be mounted: the directory itself is changed.
        sandbox.root = RootSource::Directory { path: plain };
        sandbox.isolation = Isolation::Chroot;
    }
    if matches!(user, UserNamespace::SingleId { .. }) {
        sandbox.ownership = OwnershipMode::Recorded;
    }
    let variables = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"];
    sandbox.process.environment = variables.map(OsString::from).to_vec();
    for target in ["/etc/resolv.conf", "/etc/hosts"] {
        let contents = fs_err::read(target).expect("read the host's file");
        sandbox.files.push(ProvidedFile { target: target.into(), contents, read_only: true });
    }
    let begin = std::time::Instant::now();
    match kiln_runtime::run(&sandbox, Streams::inherit(), &kiln_runtime::Launcher::new()) {
        Ok(finished) => {
            println!("{:?} after {:?}, notes {:?}", finished.exit, begin.elapsed(), finished.notes);
            finished.stubs.undo(&upper).expect("undo the stubs");
            list(&upper, &PathBuf::new(), &finished.ownership);
            std::process::exit(finished.exit.status().into());
        }
        Err(error) => {
            println!("error: {error}");
            std::process::exit(error.status().into());
        }
    }
}

/// Lists what has an owner other than root, or stands for a device.
fn list(upper: &std::path::Path, inside: &std::path::Path, ownership: &kiln_runtime::Ownership) {
    let Ok(entries) = fs_err::read_dir(upper.join(inside)) else { return };
    for entry in entries.flatten() {
        let inside = inside.join(entry.file_name());
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
        let Ok(file) = rustix::fs::open(upper.join(&inside), flags, rustix::fs::Mode::empty()) else {
            continue;
        };
        let Ok(status) = rustix::fs::fstat(&file) else { continue };
        let record = ownership.of_file(std::os::fd::AsFd::as_fd(&file)).copied().unwrap_or_default();
        let (uid, gid) = (record.uid.unwrap_or(status.st_uid), record.gid.unwrap_or(status.st_gid));
        if (uid, gid) != (0, 0) || record.device.is_some() {
            println!("{uid}:{gid} {:o} {} {:?}", status.st_mode & 0o7777, inside.display(), record.device);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(upper, &inside, ownership);
        }
    }
}
