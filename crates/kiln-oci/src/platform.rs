//! Platforms: `os/architecture[/variant]` (OCI image-spec `image-index.md`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH: `amd64`, `arm64`, ...
    pub architecture: String,
    /// GOOS: `linux`.
    pub os: String,
    /// `v7` of `arm/v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Only used by Windows images.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Only used by Windows images.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// Why a text is not a platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("platform {0:?} is not os/architecture[/variant], such as linux/amd64")]
pub struct PlatformError(String);

impl Platform {
    /// The platform of this program.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7".to_owned())),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant,
            os_version: None,
            os_features: Vec::new(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Reads `os/architecture[/variant]`, with containerd's normal names (`x86_64` is `amd64`, `aarch64` is `arm64`). As in
    /// containerd, a system or an architecture that it knows may stand alone; the other is then this program's.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError(text.to_owned());
        if !text.contains('/') {
            let word = text.to_ascii_lowercase();
            if SYSTEMS.contains(&word.as_str()) {
                return Ok(Self { os: word, ..Self::host() });
            }
            let platform: Self = format!("{}/{word}", Self::host().os).parse().map_err(|_| bad())?;
            let is_known = ARCHITECTURES.contains(&platform.architecture.as_str());
            return if is_known { Ok(platform) } else { Err(bad()) };
        }
        let mut parts = text.split('/').map(str::to_ascii_lowercase);
        let os = parts.next().filter(|part| is_word(part)).ok_or_else(bad)?;
        let architecture = parts.next().filter(|part| is_word(part)).ok_or_else(bad)?;
        let variant = parts.next();
        if parts.next().is_some() || variant.as_deref().is_some_and(|part| !is_word(part)) {
            return Err(bad());
        }
        let (architecture, variant) = match (architecture.as_str(), variant) {
            ("x86_64" | "x86-64", variant) => ("amd64".to_owned(), variant),
            ("aarch64" | "arm64", None) => ("arm64".to_owned(), None),
            ("aarch64" | "arm64", Some(variant)) if variant == "v8" => ("arm64".to_owned(), None),
            ("armhf", None) => ("arm".to_owned(), Some("v7".to_owned())),
            ("arm", None) => ("arm".to_owned(), Some("v7".to_owned())),
            ("i386", variant) => ("386".to_owned(), variant),
            (_, variant) => (architecture, variant),
        };
        Ok(Self { architecture, os, variant, os_version: None, os_features: Vec::new() })
    }
}

/// What containerd takes for a system.
const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

/// What containerd takes for an architecture.
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

fn is_word(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalised() {
        for (text, expect) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("s390x", "linux/s390x"),
            ("ARM", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().map(|p| p.to_string()), Ok(expect.to_owned()));
        }
        assert_eq!("linux".parse(), Ok(Platform::host()));
        for text in ["", "bogus", "linux/", "linux/amd64/v1/x", "li nux/amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
