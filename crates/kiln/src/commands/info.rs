//! `info`: how kiln works on this machine, and why.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use kiln_runtime::{CommandCgroup, Isolation};
use kiln_store::{Ownership, Store};
use kiln_sys::namespace::{UserNamespace, enter_user_namespace};
use kiln_sys::overlay::Overlay;
use serde_json::{Value as Json, json};

use crate::arguments::system::Info;
use crate::failure::Failure;
use crate::format::inspect::Inspect;
use crate::session;
use crate::units::{Clock, binary_size};

/// One thing that can be done in several ways: the way here, and the reason if it is not the best one.
#[derive(Clone)]
struct Way {
    way: &'static str,
    reason: Option<String>,
}

impl Way {
    fn shown(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} ({reason})", self.way),
            None => self.way.to_owned(),
        }
    }

    fn json(&self) -> Json {
        json!({ "Way": self.way, "Reason": self.reason })
    }
}

/// Prints what kiln finds, as lines or through a template.
pub(crate) fn run(root: Option<&Path>, arguments: &Info) -> Result<u8> {
    let format = arguments.format.asked().map(|f| if f == "json" { "{{json .}}" } else { f });
    let inspect = Inspect::read(format).map_err(|failure| Failure::from(failure).status(64))?;
    // Before any thread; without a namespace the rest is still told.
    let ways = Entered::try_here();
    let store = session::open_as(root, &ways.whose)?;
    let facts = facts(&store, &ways)?;
    let owners = ways.owners;
    let mut out = crate::output::output();
    if format.is_none_or(str::is_empty) {
        out.write_all(lines(&facts, &owners).as_bytes())?;
        return Ok(0);
    }
    let inspected = inspect.render(&[facts.json(&owners)], "the information", &Clock::system());
    match inspected.failures.into_iter().next() {
        Some(failure) => return Err(Failure::from(failure).into()),
        None => out.write_all(inspected.text.as_bytes())?,
    }
    Ok(0)
}

/// What came of trying to become whoever may own files and run commands.
struct Entered {
    whose: session::Owners,
    owners: Way,
    isolation: Way,
    held: Option<Isolation>,
}

impl Entered {
    fn try_here() -> Self {
        let entered = enter_user_namespace(&session::namespace_configuration())
            .unwrap_or_else(|error| UserNamespace::Unavailable { reason: error.to_string() });
        let whose = session::Owners::in_namespace(&entered);
        let (way, reason) = match (&entered, whose.ownership) {
            (UserNamespace::SubIds { .. }, _) | (_, Ownership::SubIds) => {
                ("kept by the kernel, in a user namespace with subordinate IDs", None)
            }
            (UserNamespace::SingleId { reason, .. }, _) => {
                ("recorded, in a user namespace with one ID", Some(reason.clone()))
            }
            (_, Ownership::Root) => ("kept by the kernel, as root", None),
            (UserNamespace::Unavailable { reason }, _) => {
                ("kept in layers alone: every file here is this user's", Some(reason.clone()))
            }
            (UserNamespace::None, _) => ("recorded, in a user namespace with one ID", None),
        };
        let owners = Way { way, reason };
        let held = Isolation::best();
        let refusal = match &entered {
            UserNamespace::Unavailable { reason } => Some(reason.clone()),
            _ => None,
        };
        let isolation = match &held {
            Ok(Isolation::Namespaces) => Way { way: "namespaces", reason: None },
            Ok(Isolation::Chroot) => Way { way: "chroot, seccomp and capabilities alone", reason: refusal },
            Err(reason) => {
                Way { way: "none: no command can be run", reason: refusal.or_else(|| Some(reason.clone())) }
            }
        };
        Self { whose, owners, isolation, held: held.ok() }
    }
}

struct Facts {
    root: String,
    file_system: &'static str,
    images: usize,
    cache: u64,
    cache_cap: u64,
    roots: Way,
    isolation: Way,
    devices: Way,
    network: Way,
    kernel: String,
    system: String,
    name: String,
    architecture: &'static str,
    processors: usize,
    memory: u64,
    store_schema: u32,
}

fn facts(store: &Store, entered: &Entered) -> Result<Facts> {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    Ok(Facts {
        root: store.root().display().to_string(),
        file_system: file_system(store.root()),
        images: store.images()?.len(),
        cache: store.cache_bytes()?,
        cache_cap: store.cache_cap()?,
        roots: roots(store, entered.held)?,
        isolation: entered.isolation.clone(),
        devices: devices(store, entered.held),
        network: network(entered.held),
        kernel: text(uname.release()),
        system: operating_system(),
        name: text(uname.nodename()),
        architecture: std::env::consts::ARCH,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory(),
        store_schema: kiln_store::SCHEMA_VERSION,
    })
}

/// How a step's root is put together: tried, not guessed.
fn roots(store: &Store, held: Option<Isolation>) -> Result<Way> {
    let copied = |reason: String| Way { way: "copied roots", reason: Some(reason) };
    match (held, store.snapshots_refused()) {
        (None, _) => return Ok(Way { way: "none", reason: Some("no command can be run".to_owned()) }),
        (Some(Isolation::Chroot), _) => return Ok(copied("nothing can be mounted".to_owned())),
        (Some(Isolation::Namespaces), Some(reason)) => return Ok(copied(reason.to_owned())),
        (Some(Isolation::Namespaces), None) => {}
    }
    let lease = store.lease("info")?;
    let directory = lease.fresh_directory("probe")?;
    let userxattr = store.ownership() != Ownership::Root;
    Ok(match Overlay::probe(&directory, userxattr) {
        Ok(()) => Way { way: "overlay2", reason: None },
        Err(error) => copied(error.to_string()),
    })
}

/// Which network steps and containers have.
fn network(held: Option<Isolation>) -> Way {
    let none = match held {
        Some(Isolation::Namespaces) => "--network=none cuts off",
        _ => "--network=none needs a network namespace, which cannot be had here",
    };
    Way { way: "the host's", reason: Some(format!("kiln has no networks of its own yet; {none}")) }
}

/// What becomes of device nodes in a container: tried, not guessed.
fn devices(store: &Store, held: Option<Isolation>) -> Way {
    let refusal = match (held, store.ownership()) {
        (None, _) => Err("no command can be run".to_owned()),
        (Some(Isolation::Chroot), _) => Err("nothing holds a command to the usual devices".to_owned()),
        (_, Ownership::SubIds | Ownership::SingleId) => {
            Err("in a user namespace the kernel opens none".to_owned())
        }
        (Some(Isolation::Namespaces), Ownership::Root) => CommandCgroup::new().make(),
    };
    match refusal {
        Ok(()) => Way { way: "the usual ones can be opened", reason: None },
        Err(reason) => Way { way: "those in /dev alone can be opened", reason: Some(reason) },
    }
}

impl Facts {
    /// Docker's names where it has the same thing.
    fn json(&self, owners: &Way) -> Json {
        json!({
            "Images": self.images,
            "Driver": "overlay2",
            "DriverStatus": [["Backing Filesystem", self.file_system]],
            "KernelVersion": self.kernel,
            "OperatingSystem": self.system,
            "OSType": "linux",
            "Architecture": self.architecture,
            "NCPU": self.processors,
            "MemTotal": self.memory,
            "DockerRootDir": self.root,
            "Name": self.name,
            "ServerVersion": env!("CARGO_PKG_VERSION"),
            "SecurityOptions": ["name=seccomp,profile=builtin"],
            "StoreSchema": self.store_schema,
            "BuildCache": { "Bytes": self.cache, "Cap": self.cache_cap },
            "Ways": {
                "Owners": owners.json(),
                "Roots": self.roots.json(),
                "Isolation": self.isolation.json(),
                "Devices": self.devices.json(),
                "Network": self.network.json(),
            },
        })
    }
}

fn lines(facts: &Facts, owners: &Way) -> String {
    let rows = [
        ("Server Version", env!("CARGO_PKG_VERSION").to_owned()),
        ("Images", facts.images.to_string()),
        ("Storage Driver", facts.roots.shown()),
        (" Backing Filesystem", facts.file_system.to_owned()),
        (" Store Schema", facts.store_schema.to_string()),
        ("Build Cache", format!("{}, kept to {}", binary_size(facts.cache), binary_size(facts.cache_cap))),
        ("File Owners", owners.shown()),
        ("Isolation", facts.isolation.shown()),
        ("Device Nodes", facts.devices.shown()),
        ("Network", facts.network.shown()),
        ("Security Options", "seccomp (builtin profile)".to_owned()),
        ("Kernel Version", facts.kernel.clone()),
        ("Operating System", facts.system.clone()),
        ("OSType", "linux".to_owned()),
        ("Architecture", facts.architecture.to_owned()),
        ("CPUs", facts.processors.to_string()),
        ("Total Memory", binary_size(facts.memory)),
        ("Name", facts.name.clone()),
        ("Docker Root Dir", facts.root.clone()),
    ];
    rows.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}

fn operating_system() -> String {
    let text = fs_err::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "unknown".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn memory() -> u64 {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total
        .and_then(|total| total.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Docker's names of file systems.
fn file_system(path: &Path) -> &'static str {
    let Ok(stat) = rustix::fs::statfs(path) else { return "unknown" };
    // linux/magic.h
    match stat.f_type as u64 & 0xffff_ffff {
        0xef53 => "extfs",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        _ => "unknown",
    }
}
