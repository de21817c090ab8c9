//! The calls that a recorder answers, and how wide their identifiers are.

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Chown,
    Lchown,
    Fchown,
    FchownAt,
    Mknod,
    MknodAt,
    Stat,
    Lstat,
    Fstat,
    FstatAt,
    Statx,
    Rename,
    RenameAt,
    Link,
    LinkAt,
    Open,
    OpenAt,
    Mkdir,
    MkdirAt,
    Symlink,
    SymlinkAt,
    SetUid,
    SetGid,
    SetReUid,
    SetReGid,
    SetResUid,
    SetResGid,
    SetFsUid,
    SetFsGid,
    SetGroups,
    GetUid,
    GetEuid,
    GetGid,
    GetEgid,
    GetResUid,
    GetResGid,
    GetGroups,
    Control,
    SetCapabilities,
}

const NAMES: [(&str, Call); 41] = [
    ("chown", Call::Chown),
    ("lchown", Call::Lchown),
    ("fchown", Call::Fchown),
    ("fchownat", Call::FchownAt),
    ("mknod", Call::Mknod),
    ("mknodat", Call::MknodAt),
    ("stat", Call::Stat),
    ("lstat", Call::Lstat),
    ("fstat", Call::Fstat),
    ("newfstatat", Call::FstatAt),
    ("statx", Call::Statx),
    ("rename", Call::Rename),
    ("renameat", Call::RenameAt),
    ("renameat2", Call::RenameAt),
    ("link", Call::Link),
    ("linkat", Call::LinkAt),
    ("open", Call::Open),
    ("creat", Call::Open),
    ("openat", Call::OpenAt),
    ("mkdir", Call::Mkdir),
    ("mkdirat", Call::MkdirAt),
    ("symlink", Call::Symlink),
    ("symlinkat", Call::SymlinkAt),
    ("setuid", Call::SetUid),
    ("setgid", Call::SetGid),
    ("setreuid", Call::SetReUid),
    ("setregid", Call::SetReGid),
    ("setresuid", Call::SetResUid),
    ("setresgid", Call::SetResGid),
    ("setfsuid", Call::SetFsUid),
    ("setfsgid", Call::SetFsGid),
    ("setgroups", Call::SetGroups),
    ("getuid", Call::GetUid),
    ("geteuid", Call::GetEuid),
    ("getgid", Call::GetGid),
    ("getegid", Call::GetEgid),
    ("getresuid", Call::GetResUid),
    ("getresgid", Call::GetResGid),
    ("getgroups", Call::GetGroups),
    ("prctl", Call::Control),
    ("capset", Call::SetCapabilities),
];

impl Call {
    /// By the kernel's name, with or without the `32` of architectures that once had 16 bits.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let short = name.strip_suffix("32").unwrap_or(name);
        NAMES.iter().find(|(known, _)| *known == short).map(|(_, call)| *call)
    }

    /// The call and the width of its identifiers on an architecture (`AUDIT_ARCH_*`).
    pub(super) fn with_width(name: &str, architecture: u32) -> Option<(Self, Width)> {
        /// `__AUDIT_ARCH_64BIT`
        const WIDE: u32 = 0x8000_0000;
        let call = Self::named(name)?;
        // `fchownat` came when all identifiers had 32 bits.
        let narrow = architecture & WIDE == 0 && !name.ends_with("32") && call != Self::FchownAt;
        Some((call, if narrow { Width::Narrow } else { Width::Wide }))
    }

    /// Whether it asks what a file is.
    pub(super) fn asks_for_status(self) -> bool {
        matches!(self, Self::Stat | Self::Lstat | Self::Fstat | Self::FstatAt | Self::Statx)
    }

    /// Whether it gives a file another name.
    pub(super) fn names(self) -> bool {
        matches!(self, Self::Rename | Self::RenameAt | Self::Link | Self::LinkAt)
    }

    /// Whether it may make a file.
    pub(super) fn makes(self) -> bool {
        use Call::{Mkdir, MkdirAt, Open, OpenAt, Symlink, SymlinkAt};
        matches!(self, Open | OpenAt | Mkdir | MkdirAt | Symlink | SymlinkAt)
    }

    /// Whether it may decide what the caller keeps when it becomes another one.
    pub(super) fn keeps(self) -> bool {
        matches!(self, Self::Control | Self::SetCapabilities)
    }

    /// Whether the caller is another one afterwards.
    pub(super) fn changes_identity(self) -> bool {
        matches!(
            self,
            Self::SetUid
                | Self::SetGid
                | Self::SetReUid
                | Self::SetReGid
                | Self::SetResUid
                | Self::SetResGid
                | Self::SetFsUid
                | Self::SetFsGid
                | Self::SetGroups
        )
    }
}

/// How wide a call's identifiers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// 16 bits.
    Narrow,
    /// 32 bits.
    Wide,
}

impl Width {
    /// An argument as an identifier; nothing for the one that means "as it is".
    pub(super) fn identifier(self, argument: u64) -> Option<u32> {
        match self {
            Self::Narrow if argument as u16 == u16::MAX => None,
            Self::Narrow => Some(u32::from(argument as u16)),
            Self::Wide if argument as u32 == u32::MAX => None,
            Self::Wide => Some(argument as u32),
        }
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::Narrow => 2,
            Self::Wide => 4,
        }
    }

    pub(super) fn bytes(self, identifiers: &[u32]) -> Vec<u8> {
        identifiers.iter().flat_map(|identifier| identifier.to_le_bytes()[..self.size()].to_vec()).collect()
    }

    pub(super) fn numbers(self, bytes: &[u8]) -> Vec<u32> {
        bytes
            .chunks_exact(self.size())
            .map(|chunk| chunk.iter().rev().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_follow_the_architecture() {
        const I386: u32 = 0x4000_0003;
        const X86_64: u32 = 0xc000_003e;
        let check = |name: &str, architecture: u32, expect: Option<(Call, Width)>| {
            assert_eq!(Call::with_width(name, architecture), expect, "{name}");
        };
        check("chown", X86_64, Some((Call::Chown, Width::Wide)));
        check("chown", I386, Some((Call::Chown, Width::Narrow)));
        check("chown32", I386, Some((Call::Chown, Width::Wide)));
        check("fchownat", I386, Some((Call::FchownAt, Width::Wide)));
        check("chmod", X86_64, None);
    }

    #[test]
    fn identifiers_survive_their_bytes() {
        for width in [Width::Narrow, Width::Wide] {
            assert_eq!(width.numbers(&width.bytes(&[1, 500, 65534])), [1, 500, 65534]);
            assert_eq!(width.identifier(u64::MAX), None);
            assert_eq!(width.identifier(7), Some(7));
        }
    }
}
