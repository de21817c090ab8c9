//! How this machine reaches the web: what the environment says of proxies and certificates.

use std::path::PathBuf;

use kiln_remote::{Limits, Proxies, Settings};

/// Where systems keep their CA bundle: Debian, Fedora, Alpine and openSUSE.
pub(crate) const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// The CA bundle that this machine trusts: what `SSL_CERT_FILE` names, or one at a usual place.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
pub(crate) fn bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    named.into_iter().chain(BUNDLES.iter().map(PathBuf::from)).find(|path| path.is_file())
}

/// What a client of kiln's is given.
pub(crate) fn settings() -> Settings {
    let proxies = Proxies {
        http: variable("HTTP_PROXY"),
        https: variable("HTTPS_PROXY"),
        direct: variable("NO_PROXY").unwrap_or_default(),
    };
    let agent = format!("kiln/{}", env!("CARGO_PKG_VERSION"));
    Settings { proxies, bundle: bundle(), agent, limits: Limits::default() }
}

/// A variable in capital letters or, if that is not set, in small ones.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn variable(name: &str) -> Option<String> {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    value(name).or_else(|| value(&name.to_ascii_lowercase()))
}
