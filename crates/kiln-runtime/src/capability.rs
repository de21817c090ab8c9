//! Capabilities by name, and Docker's default set.

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

/// Single capabilities as bits.
pub(crate) mod bits {
    pub(crate) const CHOWN: u64 = 1;
    pub(crate) const DAC_OVERRIDE: u64 = 1 << 1;
    pub(crate) const DAC_READ_SEARCH: u64 = 1 << 2;
    pub(crate) const FOWNER: u64 = 1 << 3;
    pub(crate) const FSETID: u64 = 1 << 4;
    pub(crate) const KILL: u64 = 1 << 5;
    pub(crate) const SETGID: u64 = 1 << 6;
    pub(crate) const SETUID: u64 = 1 << 7;
    pub(crate) const SETPCAP: u64 = 1 << 8;
    pub(crate) const NET_BIND_SERVICE: u64 = 1 << 10;
    pub(crate) const NET_RAW: u64 = 1 << 13;
    pub(crate) const SYS_MODULE: u64 = 1 << 16;
    pub(crate) const SYS_RAWIO: u64 = 1 << 17;
    pub(crate) const SYS_CHROOT: u64 = 1 << 18;
    pub(crate) const SYS_PTRACE: u64 = 1 << 19;
    pub(crate) const SYS_PACCT: u64 = 1 << 20;
    pub(crate) const SYS_ADMIN: u64 = 1 << 21;
    pub(crate) const SYS_BOOT: u64 = 1 << 22;
    pub(crate) const SYS_NICE: u64 = 1 << 23;
    pub(crate) const SYS_TIME: u64 = 1 << 25;
    pub(crate) const SYS_TTY_CONFIG: u64 = 1 << 26;
    pub(crate) const MKNOD: u64 = 1 << 27;
    pub(crate) const AUDIT_WRITE: u64 = 1 << 29;
    pub(crate) const SETFCAP: u64 = 1 << 31;
    pub(crate) const SYSLOG: u64 = 1 << 34;
    pub(crate) const PERFMON: u64 = 1 << 38;
    pub(crate) const BPF: u64 = 1 << 39;
}

/// The names without `CAP_`, in the kernel's order (`include/uapi/linux/capability.h`).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Capabilities {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Every one that the kernel knows.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);
    /// What a container of Docker's has (moby `daemon/pkg/oci/caps/defaults.go`).
    pub const DEFAULT: Self = Self(
        bits::CHOWN
            | bits::DAC_OVERRIDE
            | bits::FSETID
            | bits::FOWNER
            | bits::MKNOD
            | bits::NET_RAW
            | bits::SETGID
            | bits::SETUID
            | bits::SETFCAP
            | bits::SETPCAP
            | bits::NET_BIND_SERVICE
            | bits::SYS_CHROOT
            | bits::KILL
            | bits::AUDIT_WRITE,
    );

    /// The kernel's bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// From the kernel's bits.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set of one, by name: `CAP_CHOWN`, `chown` and `CHOWN` are the same.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| *known == short).map(|number| Self(1 << number))
    }

    /// The names, with `CAP_`.
    pub fn names(self) -> impl Iterator<Item = String> {
        NAMES
            .iter()
            .enumerate()
            .filter(move |(number, _)| self.0 & (1 << number) != 0)
            .map(|(_, name)| format!("CAP_{name}"))
    }

    /// Whether all of `others` are in this set.
    #[must_use]
    pub fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Those that are in either.
    #[must_use]
    pub fn union(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Those that are in this set alone.
    #[must_use]
    pub fn difference(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_set_is_dockers() {
        // What `grep CapBnd /proc/self/status` says in a container of Docker's.
        assert_eq!(Capabilities::DEFAULT.bits(), 0x0000_0000_a804_25fb);
    }

    #[test]
    fn names_and_numbers_agree() {
        for (name, number) in [("CAP_CHOWN", 0), ("setfcap", 31), ("CAP_BPF", 39), ("CHECKPOINT_RESTORE", 40)]
        {
            assert_eq!(Capabilities::named(name).map(Capabilities::bits), Some(1 << number), "{name}");
        }
        assert_eq!(Capabilities::named("CAP_FLY"), None);
        assert_eq!(Capabilities::ALL.names().count(), NAMES.len());
    }
}
