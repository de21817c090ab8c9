//! Addresses: what is written in a Dockerfile or a Location header, made fit for a request line (RFC 3986).

use ureq::http::Uri;

use crate::error::{Error, Result};

/// The longest address that is taken, in bytes.
const LONGEST: usize = 8 << 10;

/// An http or https address with a host.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Without its fragment.
    uri: Uri,
}

impl Address {
    /// Reads an address. What may not stand in one, such as blanks and letters beyond ASCII, is percent-encoded.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let refused = |problem| Error::Address { url: shown(text), problem };
        if text.len() > LONGEST {
            return Err(refused("it is too long"));
        }
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = encoded(text).parse().map_err(|_| refused("it cannot be read"))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(refused("only http and https are downloaded from")),
        }
        let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
            return Err(refused("it names no host"));
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = authority.rsplit('@').next().unwrap_or_default().strip_prefix(host).unwrap_or_default();
        if port.len() > 1 && uri.port_u16().is_none() {
            return Err(refused("its port is none"));
        }
        Ok(Self { uri })
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// The host without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(if self.is_https() { 443 } else { 80 })
    }

    /// Where a Location header leads. Credentials of this address go no further than to what it names without a host (RFC 3986,
    /// section 5.2.2), as with Go and curl.
    pub(crate) fn join(&self, location: &str) -> Result<Self> {
        let location = location.trim();
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let text = if has_scheme(location) {
            location.to_owned()
        } else if let Some(rest) = location.strip_prefix("//") {
            format!("{scheme}://{rest}")
        } else {
            let authority = self.uri.authority().map_or("", |authority| authority.as_str());
            format!("{scheme}://{authority}{}", self.joined_path(location))
        };
        Self::parse(&text)
    }

    fn joined_path(&self, location: &str) -> String {
        let (path, query) = match location.split('#').next().unwrap_or_default().split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (location.split('#').next().unwrap_or_default(), String::new()),
        };
        let base = self.uri.path();
        let path = match path {
            "" if query.is_empty() => {
                return self.uri.path_and_query().map_or("/", |all| all.as_str()).to_owned();
            }
            "" => base.to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("{}/{path}", &base[..base.rfind('/').unwrap_or_default()]),
        };
        format!("{}{query}", without_dots(&path))
    }

    /// To tell addresses apart: with everything that may be secret.
    pub(crate) fn exact(&self) -> String {
        self.uri.to_string()
    }

    /// For messages: without credentials.
    pub(crate) fn shown(&self) -> String {
        shown(&self.uri.to_string())
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Address").field(&self.shown()).finish()
    }
}

/// An address for people: without the password that may be in it, and without its query, which may hold a token.
pub fn shown(url: &str) -> String {
    // Without a scheme it may still begin with a password, as proxies are often written.
    let (scheme, rest) = match url.find("://").filter(|at| !url[..*at].contains(['/', '?', '#', '@'])) {
        Some(at) => url.split_at(at + 3),
        None => ("", url),
    };
    let skipped = if scheme.is_empty() && rest.starts_with("//") { 2 } else { 0 };
    let (slashes, rest) = rest.split_at(skipped);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    let path = tail.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}{slashes}{host}{path}")
}

fn has_scheme(location: &str) -> bool {
    let Some((scheme, _)) = location.split_once(':') else { return false };
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 0x7f.. => {
                out.push_str(&format!("%{byte:02X}"));
            }
            byte => out.push(char::from(byte)),
        }
    }
    out
}

/// RFC 3986, section 5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let last = path.rsplit('/').next().unwrap_or_default();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    if matches!(last, "." | "..") {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, expect) in [
            ("http://h/a b", "http://h/a%20b"),
            ("https://h:8443/ü?q=\"x\"#f", "https://h:8443/%C3%BC?q=%22x%22"),
            ("http://h", "http://h/"),
            ("http://[::1]:80/x%20y", "http://[::1]:80/x%20y"),
        ] {
            assert_eq!(Address::parse(text).unwrap().uri().to_string(), expect, "{text}");
        }
        let long = format!("http://h/{}", "a".repeat(LONGEST));
        for text in
            ["ftp://h/x", "file:///etc/passwd", "http://", "http:///x", "h/x", "", "http://h:99999/", &long]
        {
            assert!(matches!(Address::parse(text), Err(Error::Address { .. })), "{text}");
        }
    }

    #[test]
    fn locations_are_followed_as_browsers_do() {
        let base = Address::parse("https://user:secret@h:1/a/b/c?q=1").unwrap();
        for (location, expect) in [
            ("http://o/x", "http://o/x"),
            ("//o/x", "https://o/x"),
            ("/x", "https://user:secret@h:1/x"),
            ("x?y=../z", "https://user:secret@h:1/a/b/x?y=../z"),
            ("../x", "https://user:secret@h:1/a/x"),
            ("../../../../x/./y/..", "https://user:secret@h:1/x/"),
            ("?q=2", "https://user:secret@h:1/a/b/c?q=2"),
            ("", "https://user:secret@h:1/a/b/c?q=1"),
            ("/x#frag", "https://user:secret@h:1/x"),
        ] {
            assert_eq!(base.join(location).unwrap().uri().to_string(), expect, "{location}");
        }
        for location in ["file:///etc/passwd", "javascript:0", "gopher://h/"] {
            assert!(base.join(location).is_err(), "{location}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("https://u:secret@h/p?token=secret#secret"), "https://h/p");
        assert_eq!(shown("https://h/@scope/name"), "https://h/@scope/name");
        assert_eq!(shown("nonsense"), "nonsense");
        assert_eq!(shown("u:secret@h:3128"), "h:3128");
        assert_eq!(shown("u:secret@h/a://b"), "h/a://b");
        assert_eq!(shown("//u:secret@h/x?secret"), "//h/x");
        let address = Address::parse("https://u:secret@h/p?token=secret").unwrap();
        assert_eq!(format!("{address:?}"), "Address(\"https://h/p\")");
    }
}
