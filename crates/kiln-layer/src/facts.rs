//! Which files' bytes an index keeps, so that owners by name, package lists and lint need no unpacking.

use crate::path::split;

/// The version of the rules below; an index says which it was made with.
pub const RULES: u32 = 1;
/// The largest file that is kept.
pub const LARGEST: u64 = 8 << 20;
/// How much one index keeps.
pub const MOST: u64 = 32 << 20;

const PATHS: &[&[u8]] = &[
    b"etc/passwd",
    b"etc/group",
    b"etc/os-release",
    b"usr/lib/os-release",
    b"etc/alpine-release",
    b"etc/debian_version",
    b"etc/apk/world",
    b"lib/apk/db/installed",
    b"usr/lib/apk/db/installed",
    b"var/lib/dpkg/status",
];

const NAMES: &[&[u8]] = &[
    b"package.json",
    b"package-lock.json",
    b"npm-shrinkwrap.json",
    b"yarn.lock",
    b"pnpm-lock.yaml",
    b"requirements.txt",
    b"Pipfile.lock",
    b"poetry.lock",
    b"uv.lock",
    b"pyproject.toml",
    b"go.mod",
    b"Cargo.lock",
    b"Gemfile.lock",
    b"composer.lock",
    b"pom.properties",
];

/// Whether the bytes of the regular file at `path` are kept.
pub fn is_fact(path: &[u8], size: u64) -> bool {
    if size > LARGEST {
        return false;
    }
    let (directory, name) = split(path);
    PATHS.contains(&path)
        || directory == b"var/lib/dpkg/status.d"
        || NAMES.contains(&name)
        || (name == b"METADATA" && directory.ends_with(b".dist-info"))
        || (name == b"PKG-INFO" && directory.ends_with(b".egg-info"))
        || (name.ends_with(b".gemspec") && directory.ends_with(b"/specifications"))
}
