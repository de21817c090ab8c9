//! Which proxy a request goes through, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say it. Whoever calls has read them.

use std::net::IpAddr;

use crate::address::{Address, shown};

/// Proxies by the scheme of what is asked for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For http.
    pub http: Option<String>,
    /// For https.
    pub https: Option<String>,
    /// Hosts that are asked directly: names, which stand for everything below them, too; `.name` for what is below
    /// alone; addresses and networks; each may have a port; `*` for all. Separated by commas.
    pub direct: String,
}

impl std::fmt::Debug for Proxies {
    /// Without passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [http, https] = [&self.http, &self.https].map(|proxy| proxy.as_deref().map(shown));
        let mut told = f.debug_struct("Proxies");
        told.field("http", &http).field("https", &https).field("direct", &self.direct).finish()
    }
}

impl Proxies {
    /// The proxy for an address. This machine itself is never asked through one.
    pub(crate) fn of(&self, address: &Address) -> Option<&str> {
        let proxy = if address.is_https() { &self.https } else { &self.http };
        let proxy = proxy.as_deref().filter(|proxy| !proxy.is_empty())?;
        (!self.is_direct(address.host(), address.port())).then_some(proxy)
    }

    /// The host of an http or https address that is asked directly. For programs that read [`Proxies::direct`] otherwise.
    pub fn direct_host(&self, url: &str) -> Option<String> {
        let address = Address::parse(url).ok()?;
        self.of(&address).is_none().then(|| address.host().to_owned())
    }

    fn is_direct(&self, host: &str, port: u16) -> bool {
        let ip: Option<IpAddr> = host.parse().ok();
        if host.eq_ignore_ascii_case("localhost") || ip.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let mut patterns = self.direct.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
        patterns.any(|pattern| matches(&pattern.to_ascii_lowercase(), &host, ip, port))
    }
}

fn matches(pattern: &str, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
    if pattern == "*" {
        return true;
    }
    if let Some((network, bits)) = pattern.split_once('/') {
        let (Some(ip), Ok(network), Ok(bits)) = (ip, network.parse(), bits.parse()) else { return false };
        return is_in(ip, network, bits);
    }
    let (name, wanted) = with_port(pattern);
    if wanted.is_some_and(|wanted| wanted != port) {
        return false;
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        return ip == Some(address);
    }
    let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
    let suffix = below.unwrap_or(name);
    let is_below = host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    is_below || below.is_none() && host == name
}

/// A pattern and its port: `host:port`, `[address]:port`, or without one.
fn with_port(pattern: &str) -> (&str, Option<u16>) {
    if let Some((address, rest)) = pattern.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match pattern.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, port.parse().ok()),
        _ => (pattern, None),
    }
}

fn is_in(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (ip, network, width) = match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            (u128::from(ip.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => (ip.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (ip ^ network).checked_shr(width - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(direct: &str, url: &str, expect: Option<&str>) {
        let proxies = Proxies {
            http: Some("http://plain:1".to_owned()),
            https: Some("http://tls:2".to_owned()),
            direct: direct.to_owned(),
        };
        assert_eq!(proxies.of(&Address::parse(url).unwrap()), expect, "{direct} {url}");
    }

    #[test]
    fn passwords_are_not_told() {
        let secret = |scheme: &str| Some(format!("{scheme}u:secret@h:1"));
        let proxies = Proxies { http: secret(""), https: secret("http://"), direct: String::new() };
        let settings = crate::Settings { proxies, ..crate::Settings::default() };
        let client = crate::Client::new(&settings).unwrap();
        for told in [format!("{settings:?}"), format!("{client:?}")] {
            assert!(told.contains("h:1") && !told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn hosts_are_asked_directly_as_no_proxy_says() {
        let (http, https) = (Some("http://plain:1"), Some("http://tls:2"));
        check("", "http://example.com/", http);
        check("", "https://example.com/", https);
        check("", "http://localhost/", None);
        check("", "http://127.0.0.9:80/", None);
        check("", "http://[::1]/", None);
        check("example.com", "https://example.com/", None);
        check("example.com", "https://a.EXAMPLE.com/", None);
        check("example.com", "https://badexample.com/", https);
        check(".example.com", "https://example.com/", https);
        check("*.example.com", "https://a.example.com/", None);
        check("other, example.com:8443", "https://example.com:8443/", None);
        check("example.com:8443", "https://example.com/", https);
        check("10.0.0.0/8", "http://10.1.2.3/", None);
        check("10.0.0.0/8", "http://11.1.2.3/", http);
        check("fd00::/8", "http://[fd12::1]/", None);
        check("0.0.0.0/0", "http://192.0.2.1/", None);
        check("::/0", "http://192.0.2.1/", http);
        check("192.0.2.1", "http://192.0.2.1:99/", None);
        check("[fd00::1]:99", "http://[fd00::1]:99/", None);
        check("*", "https://example.com/", None);
        let proxies = Proxies {
            http: Some("http://plain:1".to_owned()),
            https: None,
            direct: "h:8443, [fd00::1]:80".to_owned(),
        };
        let direct = |url: &str| proxies.direct_host(url);
        assert_eq!(direct("http://u:secret@h:8443/r.git").as_deref(), Some("h"));
        assert_eq!(direct("http://h/r.git"), None);
        assert_eq!(direct("https://h/r.git").as_deref(), Some("h"));
        assert_eq!(direct("http://[fd00::1]/r.git").as_deref(), Some("fd00::1"));
        assert_eq!(direct("git://h/r.git"), None);
    }
}
