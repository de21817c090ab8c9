//! What is to run: a root, a process, mounts, and how much of the machine it sees.

use std::ffi::OsString;
use std::path::PathBuf;

use kiln_sys::overlay::{Overlay, TarMount, Upper};
use kiln_sys::process::{Credentials, ResourceLimit};

use crate::capability::Capabilities;
use crate::wire::{Wire, wire_enum, wire_struct};

/// The root directory of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// An overlay, mounted in the sandbox's own mount namespace: nothing stays mounted whatever happens.
    Overlay {
        /// The overlay.
        overlay: Overlay,
    },
    /// A directory as it is.
    Directory {
        /// Its path on the host.
        path: PathBuf,
    },
}

/// Where the bytes of a bind mount come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindSource {
    /// A path of the host that the user or kiln named.
    Host {
        /// The path; symbolic links are followed.
        path: PathBuf,
    },
    /// A path inside a directory whose content is not trusted: links are resolved with that directory as `/`
    /// (CVE-2024-1753, CVE-2024-23651).
    Within {
        /// The trusted path of the directory.
        root: PathBuf,
        /// The path inside.
        path: PathBuf,
    },
    /// A path of the host that is the sandbox's own until it ends. Where nothing can be mounted it is moved into the root
    /// meanwhile, which must be on the same file system.
    Owned {
        /// The path; it is no symbolic link.
        path: PathBuf,
    },
}

/// Something to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory that exists.
    Bind {
        /// What.
        source: BindSource,
        /// It may not be written.
        read_only: bool,
        /// Mounts below it come along.
        recursive: bool,
    },
    /// An empty filesystem in memory.
    Tmpfs {
        /// Its size in bytes; half of the memory if not given.
        size: Option<u64>,
        /// The mode of its root; over a directory that there is, it has that one's.
        mode: u32,
    },
    /// An overlay of directories.
    Overlay {
        /// The overlay.
        overlay: Overlay,
    },
}

/// A mount in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Where, as the process sees it. What is missing there is made, and reported as a [`crate::Stub`].
    pub target: PathBuf,
}

/// A file that the sandbox sees over whatever its root has there, such as `/etc/resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvidedFile {
    /// Where, as the process sees it.
    pub target: PathBuf,
    /// Its content.
    pub contents: Vec<u8>,
    /// It may not be written; otherwise changes are lost at the end.
    pub read_only: bool,
}

/// The network that a sandbox sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// That of the host.
    #[default]
    Host,
    /// One of its own that has nothing but a loopback device.
    None,
}

/// Whether the process is held to the usual restrictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// Seccomp profile, the given capabilities, masked and read-only paths of `/proc` and `/sys`.
    #[default]
    Sandboxed,
    /// None of these; all capabilities that kiln has. For `RUN --security=insecure`.
    Insecure,
}

/// Which kernel features hold the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces and mounts.
    #[default]
    Namespaces,
    /// `chroot` alone, for where neither namespaces nor mounts are to be had. The root must be a directory.
    Chroot,
}

/// Who owns what the process makes and changes the owner of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnershipMode {
    /// The kernel keeps owners.
    #[default]
    Kernel,
    /// There is a single identifier: changes of owners and of users are recorded and pretended
    /// ([`crate::Ownership`]).
    Recorded,
}

/// Whether the sandbox's first process is the command itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstProcess {
    /// The command is process 1.
    #[default]
    Command,
    /// Process 1 is a small init of kiln's that hands signals on and collects orphans.
    Init,
}

/// Whether the process gets a terminal of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terminal {
    /// It gets the three descriptors it is given.
    #[default]
    None,
    /// It gets one, of this size at first.
    Own {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
}

/// The process to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The command and its arguments; the command is looked for in the `PATH` of `environment`.
    pub arguments: Vec<OsString>,
    /// `NAME=value`, in order.
    pub environment: Vec<OsString>,
    /// Where it starts; made if it is not there.
    pub directory: PathBuf,
    /// User and groups.
    pub credentials: Credentials,
    /// The capabilities it may have; a user other than root has none until it executes a file that gives some.
    pub capabilities: Capabilities,
    /// It can gain no privileges by executing a file.
    pub no_new_privileges: bool,
    /// Its terminal.
    pub terminal: Terminal,
    /// Whether it is process 1.
    pub first_process: FirstProcess,
    /// Limits to set; one that may not be raised is set as high as it may.
    pub limits: Vec<ResourceLimit>,
}

/// A process over a prepared root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The root.
    pub root: RootSource,
    /// The process.
    pub process: Process,
    /// Mounts. Outer ones are made first, as with Docker and BuildKit, and those of one depth in this order.
    pub mounts: Vec<Mount>,
    /// Files over those of the root, after the mounts.
    pub files: Vec<ProvidedFile>,
    /// The host name.
    pub hostname: Option<OsString>,
    /// The network.
    pub network: Network,
    /// The restrictions.
    pub security: Security,
    /// The kernel features used.
    pub isolation: Isolation,
    /// Who keeps owners.
    pub ownership: OwnershipMode,
}

/// What of a sandbox must be known when its first process is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// The network.
    pub network: Network,
    /// The restrictions.
    pub security: Security,
    /// The kernel features used.
    pub isolation: Isolation,
    /// Who keeps owners.
    pub ownership: OwnershipMode,
}

impl Sandbox {
    /// What must be known of it first.
    #[must_use]
    pub fn confinement(&self) -> Confinement {
        let Self { network, security, isolation, ownership, .. } = *self;
        Confinement { network, security, isolation, ownership }
    }

    /// Gives it what must be known of it first.
    pub fn confine(&mut self, confinement: Confinement) {
        let Confinement { network, security, isolation, ownership } = confinement;
        (self.network, self.security, self.isolation, self.ownership) =
            (network, security, isolation, ownership);
    }

    /// A sandbox that runs a command as root in `/`, with Docker's default capabilities and nothing mounted but `/proc`,
    /// `/dev` and `/sys`.
    #[must_use]
    pub fn new(root: RootSource, arguments: Vec<OsString>) -> Self {
        Self {
            root,
            process: Process {
                arguments,
                environment: Vec::new(),
                directory: PathBuf::from("/"),
                credentials: Credentials::default(),
                capabilities: Capabilities::DEFAULT,
                no_new_privileges: false,
                terminal: Terminal::None,
                first_process: FirstProcess::Command,
                limits: Vec::new(),
            },
            mounts: Vec::new(),
            files: Vec::new(),
            hostname: None,
            network: Network::Host,
            security: Security::Sandboxed,
            isolation: Isolation::Namespaces,
            ownership: OwnershipMode::Kernel,
        }
    }
}

wire_struct!(Confinement { network, security, isolation, ownership });
wire_struct!(Upper { upper, work });
wire_struct!(TarMount { metadata, tar, at });
wire_struct!(Overlay { tars, lowers, upper, userxattr, volatile });
wire_enum!(RootSource { 0 => Overlay { overlay }, 1 => Directory { path } });
wire_enum!(BindSource { 0 => Host { path }, 1 => Within { root, path }, 2 => Owned { path } });
wire_enum!(MountKind {
    0 => Bind { source, read_only, recursive },
    1 => Tmpfs { size, mode },
    2 => Overlay { overlay },
});
wire_struct!(Mount { kind, target });
wire_struct!(ProvidedFile { target, contents, read_only });
wire_enum!(Network { 0 => Host, 1 => None });
wire_enum!(Security { 0 => Sandboxed, 1 => Insecure });
wire_enum!(Isolation { 0 => Namespaces, 1 => Chroot });
wire_enum!(OwnershipMode { 0 => Kernel, 1 => Recorded });
wire_enum!(FirstProcess { 0 => Command, 1 => Init });
wire_enum!(Terminal { 0 => None, 1 => Own { rows, columns } });
wire_struct!(Credentials { uid, gid, groups });
wire_struct!(ResourceLimit { resource, soft, hard });
wire_struct!(Process {
    arguments,
    environment,
    directory,
    credentials,
    capabilities,
    no_new_privileges,
    terminal,
    first_process,
    limits,
});
wire_struct!(Sandbox { root, process, mounts, files, hostname, network, security, isolation, ownership });

impl Wire for Capabilities {
    fn put(&self, out: &mut Vec<u8>) {
        self.bits().put(out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, crate::wire::Malformed> {
        u64::take(from).map(Self::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_comes_back_from_its_bytes() {
        let overlay = Overlay {
            tars: vec![TarMount { metadata: "/m".into(), tar: "/t".into(), at: "/a".into() }],
            lowers: vec!["/a".into(), "/b".into()],
            upper: Some(Upper { upper: "/u".into(), work: "/w".into() }),
            userxattr: true,
            volatile: false,
        };
        let mut sandbox = Sandbox::new(RootSource::Overlay { overlay: overlay.clone() }, vec!["true".into()]);
        sandbox.mounts = vec![
            Mount {
                kind: MountKind::Bind {
                    source: BindSource::Within { root: "/r".into(), path: "p".into() },
                    read_only: true,
                    recursive: false,
                },
                target: "/t".into(),
            },
            Mount { kind: MountKind::Tmpfs { size: Some(7), mode: 0o755 }, target: "/tmp".into() },
            Mount { kind: MountKind::Overlay { overlay }, target: "/o".into() },
        ];
        sandbox.files =
            vec![ProvidedFile { target: "/etc/hosts".into(), contents: b"x".to_vec(), read_only: true }];
        sandbox.hostname = Some("h".into());
        sandbox.process.terminal = Terminal::Own { rows: 3, columns: 4 };
        sandbox.process.credentials = Credentials { uid: 1, gid: 2, groups: vec![3, 4] };
        sandbox.process.limits = vec![ResourceLimit { resource: 7, soft: 1, hard: 2 }];
        assert_eq!(Sandbox::decode(&sandbox.encode()), Ok(sandbox));
    }
}
