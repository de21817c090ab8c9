//! `ADD --checksum`: what a download must hash to.

use std::fmt;

use kiln_oci::Digest;
use sha2::Digest as _;

/// A digest by one of the algorithms that the OCI registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha256(Digest),
    Sha384(Vec<u8>),
    Sha512(Vec<u8>),
}

impl Checksum {
    /// Reads `algorithm:hex`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (algorithm, hex) = text.split_once(':').ok_or("expected algorithm:hex")?;
        let length = match algorithm {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Err("the algorithms are sha256, sha384 and sha512"),
        };
        if hex.len() != length || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("it has the wrong length, or holds something else than 0-9 and a-f");
        }
        let digits =
            |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Vec<u8> = hex.as_bytes().chunks(2).filter_map(digits).collect();
        Ok(match (algorithm, <[u8; 32]>::try_from(bytes.as_slice())) {
            ("sha256", Ok(bytes)) => Self::Sha256(Digest::from_bytes(bytes)),
            ("sha384", _) => Self::Sha384(bytes),
            _ => Self::Sha512(bytes),
        })
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes) = match self {
            Self::Sha256(digest) => return digest.fmt(f),
            Self::Sha384(bytes) => ("sha384", bytes),
            Self::Sha512(bytes) => ("sha512", bytes),
        };
        write!(f, "{name}:")?;
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Computes SHA-256 and, if a checksum asks for it, another digest beside it.
pub(crate) struct Checker {
    content: kiln_oci::Hasher,
    other: Other,
}

enum Other {
    None,
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
}

impl Checker {
    pub(crate) fn new(checksum: Option<&Checksum>) -> Self {
        let other = match checksum {
            None | Some(Checksum::Sha256(_)) => Other::None,
            Some(Checksum::Sha384(_)) => Other::Sha384(sha2::Sha384::new()),
            Some(Checksum::Sha512(_)) => Other::Sha512(sha2::Sha512::new()),
        };
        Self { content: kiln_oci::Hasher::new(), other }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.content.update(bytes);
        match &mut self.other {
            Other::None => {}
            Other::Sha384(hasher) => hasher.update(bytes),
            Other::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// SHA-256, and the digest by the checksum's algorithm.
    pub(crate) fn finish(self) -> (Digest, Checksum) {
        let content = self.content.finish();
        let found = match self.other {
            Other::None => Checksum::Sha256(content),
            Other::Sha384(hasher) => Checksum::Sha384(hasher.finalize().to_vec()),
            Other::Sha512(hasher) => Checksum::Sha512(hasher.finalize().to_vec()),
        };
        (content, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_read_and_computed() {
        for (text, bytes) in [
            ("sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", b"abc"),
            (
                "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
                b"abc",
            ),
            (
                "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
                b"abc",
            ),
        ] {
            let checksum = Checksum::parse(text).expect(text);
            assert_eq!(checksum.to_string(), text);
            let mut checker = Checker::new(Some(&checksum));
            checker.update(bytes);
            let (content, found) = checker.finish();
            assert_eq!((content, found), (Digest::of(bytes), checksum));
        }
        let short = format!("sha256:{}", "a".repeat(63));
        let upper = format!("sha256:{}", "A".repeat(64));
        let path = format!("sha256:../{}", "a".repeat(61));
        let other = format!("md5:{}", "a".repeat(32));
        for text in
            ["", "sha256", &short, &upper, &path, &other, "sha512:", &format!("sha512:{}", "a".repeat(64))]
        {
            assert!(Checksum::parse(text).is_err(), "{text}");
        }
    }
}
