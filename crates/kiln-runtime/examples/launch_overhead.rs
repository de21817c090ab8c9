//! Measures what it costs to run `true` in a sandbox: `cargo run --release -p kiln-runtime --example launch_overhead`.
//!
//! Arguments: a static busybox (default `/bin/busybox`) and the number of rounds (default 200).
#![allow(clippy::print_stdout, reason = "a measuring program prints")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_runtime::{Launcher, Network, OwnershipMode, RootSource, Sandbox, Streams};
use kiln_sys::namespace::UserNamespace;
use kiln_sys::overlay::{Overlay, Upper};

fn main() {
    kiln_runtime::init_if_asked();
    let configuration = kiln_sys::namespace::Configuration::default();
    let begin = Instant::now();
    let user = kiln_sys::namespace::enter_user_namespace(&configuration).expect("enter a user namespace");
    println!("{user:?}, entered in {:?}", begin.elapsed());
    let mut arguments = std::env::args().skip(1);
    let busybox = PathBuf::from(arguments.next().unwrap_or_else(|| "/bin/busybox".to_owned()));
    let rounds: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(200);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let lower = directory.path().join("lower");
    fs_err::create_dir_all(lower.join("bin")).expect("make a root");
    for name in ["proc", "dev", "sys"] {
        fs_err::create_dir(lower.join(name)).expect("make a root");
    }
    fs_err::copy(busybox, lower.join("bin/true")).expect("copy busybox");
    let launcher = Launcher::new();
    for network in [Network::Host, Network::None] {
        let mut times: Vec<Duration> = (0..rounds)
            .map(|round| once(directory.path(), &lower, &user, network, round, &launcher))
            .collect();
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!(
            "network {network:?}: median {:.2} ms, 10th {:.2} ms, 90th {:.2} ms",
            at(50),
            at(10),
            at(90)
        );
    }
}

fn once(
    directory: &Path,
    lower: &Path,
    user: &UserNamespace,
    network: Network,
    round: usize,
    launcher: &Launcher,
) -> Duration {
    let holder = directory.join(format!("{network:?}{round}"));
    let (upper, work) = (holder.join("upper"), holder.join("work"));
    fs_err::create_dir_all(&upper).expect("make an upper");
    fs_err::create_dir_all(&work).expect("make a work directory");
    let overlay = Overlay {
        tars: Vec::new(),
        lowers: vec![lower.to_owned()],
        upper: Some(Upper { upper, work }),
        userxattr: *user != UserNamespace::None,
        volatile: true,
    };
    let mut sandbox = Sandbox::new(RootSource::Overlay { overlay }, vec!["/bin/true".into()]);
    sandbox.network = network;
    if matches!(user, UserNamespace::SingleId { .. }) {
        sandbox.ownership = OwnershipMode::Recorded;
    }
    let begin = Instant::now();
    let finished = kiln_runtime::run(&sandbox, Streams::inherit(), launcher).expect("run true");
    let time = begin.elapsed();
    assert!(finished.exit.success(), "{:?}", finished.exit);
    time
}
