//! References: `registry/repository:tag@digest` (distribution's grammar, Docker's short forms).

use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError};

/// The registry that Docker means when none is named.
const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A full reference. Parsing fills in Docker's defaults: `alpine` is `docker.io/library/alpine`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host, with a port if one was given.
    pub registry: String,
    /// Path in the registry.
    pub repository: String,
    /// Tag, if one was given.
    pub tag: Option<String>,
    /// Digest, if one was given.
    pub digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Not of the form `[registry/]repository[:tag][@digest]`.
    #[error("invalid reference format: {0:?} is not [registry/]repository[:tag][@digest]")]
    Format(String),
    /// Upper case in the repository.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    UpperCase(String),
    /// The name is as long as no registry takes.
    #[error("repository name must not be more than {MAX_NAME} characters")]
    TooLong,
    /// 64 hexadecimal digits, which Docker takes for an image ID.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// A repository called as an algorithm of digests: `sha256:...` would be an image's ID to some commands and a tag to
    /// others, and whoever can give a name could take an ID's place.
    #[error(
        "invalid repository name ({0}): sha256: begins an image's ID; a name is pinned as NAME@sha256:..."
    )]
    LooksLikeDigest(String),
    /// The part after `@`.
    #[error("invalid reference format")]
    Digest(#[from] DigestError),
}

impl Reference {
    /// The name without tag and digest, as Docker shows it: `alpine`, `localhost:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.repository);
        }
        match self.repository.strip_prefix("library/") {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The whole reference as Docker shows it.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The name without tag and digest, in full.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same reference with tag `latest` if it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = || ReferenceError::Format(text.chars().take(300).collect());
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (registry, path) = split_registry(rest);
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !is_registry(registry) || tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad());
        }
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(repository.chars().take(300).collect()));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad());
        }
        if registry == DEFAULT_REGISTRY && matches!(repository, "sha256" | "library/sha256") {
            return Err(ReferenceError::LooksLikeDigest(text.chars().take(300).collect()));
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

/// Docker's rule: the first component is a registry if it has a dot or a port, is `localhost`, or has upper case.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((address, port)) => {
                let ok = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
                return ok && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
            }
            None => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alphanumeric = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    let mut separator = Vec::new();
    for byte in bytes {
        if alphanumeric(byte) {
            let ok = matches!(separator.as_slice(), b"" | b"." | b"_" | b"__")
                || separator.iter().all(|b| *b == b'-');
            if !ok {
                return false;
            }
            separator.clear();
        } else {
            separator.push(*byte);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, full: &str, familiar: &str) {
        let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(reference.to_string(), full);
        assert_eq!(reference.familiar(), familiar);
    }

    #[test]
    fn short_forms_are_completed() {
        check("alpine", "docker.io/library/alpine", "alpine");
        check("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20");
        check("docker.io/alpine", "docker.io/library/alpine", "alpine");
        check("index.docker.io/library/alpine", "docker.io/library/alpine", "alpine");
        check("me/app:v1", "docker.io/me/app:v1", "me/app:v1");
        check("localhost/app", "localhost/app", "localhost/app");
        check("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t");
        check("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a");
        check("a__b/c-----d/e.f", "docker.io/a__b/c-----d/e.f", "a__b/c-----d/e.f");
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check(&format!("x:1@{digest}"), &format!("docker.io/library/x:1@{digest}"), &format!("x:1@{digest}"));
    }

    #[test]
    fn bad_names_are_refused() {
        for text in [
            "",
            ":",
            "a:",
            "A",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:-x",
            "a b",
            "../a",
            "a/../b",
            "a@sha256:1",
            "a\0b",
            "é",
            "host:port/a",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        for text in
            ["sha256", "sha256:latest", "docker.io/sha256:a", "library/sha256", "docker.io/library/sha256:a"]
        {
            assert!(matches!(text.parse::<Reference>(), Err(ReferenceError::LooksLikeDigest(_))), "{text:?}");
        }
        assert!(
            "localhost/sha256:a".parse::<Reference>().is_ok() && "me/sha256".parse::<Reference>().is_ok()
        );
        assert_eq!(
            "a/".to_owned().repeat(200).trim_end_matches('/').parse::<Reference>(),
            Err(ReferenceError::TooLong)
        );
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }
}
