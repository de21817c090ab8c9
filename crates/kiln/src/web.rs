//! How this machine reaches the web: what the environment says of proxies and certificates.

use std::path::PathBuf;

use kiln_build::{GitLimits, GitProgram};
use kiln_remote::{Limits, Proxies, Settings};

/// Where systems keep their CA bundle: Debian, Fedora, Alpine and openSUSE.
pub(crate) const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// What to do about [`kiln_build::Error::NoGit`].
pub(crate) const NO_GIT: &str = "install git, or put it on PATH";

/// The CA bundle that the user names.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
pub(crate) fn named_bundle() -> Option<PathBuf> {
    std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The CA bundle that this machine trusts: the one that is named, or one at a usual place.
fn bundle() -> Option<PathBuf> {
    named_bundle().or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()))
}

/// The proxies for downloads and for git alike.
fn proxies() -> Proxies {
    Proxies {
        http: variable("HTTP_PROXY"),
        https: variable("HTTPS_PROXY"),
        direct: variable("NO_PROXY").unwrap_or_default(),
    }
}

/// What a client of kiln's is given.
pub(crate) fn settings() -> Settings {
    let agent = format!("kiln/{}", env!("CARGO_PKG_VERSION"));
    Settings { proxies: proxies(), bundle: bundle(), agent, limits: Limits::default() }
}

/// What to do about a failure that the environment may have caused.
pub(crate) fn hint(error: &kiln_remote::Error) -> Option<String> {
    use kiln_remote::Error;
    match error {
        Error::Proxy { scheme: "https", .. } => Some("HTTPS_PROXY or https_proxy names it".to_owned()),
        Error::Proxy { .. } => Some("HTTP_PROXY or http_proxy names it".to_owned()),
        Error::Roots(_) | Error::NoRoots { .. } => {
            named_bundle().map(|path| format!("SSL_CERT_FILE names {}", path.display()))
        }
        Error::NoBundle { .. } => {
            Some("install ca-certificates, or name a bundle with SSL_CERT_FILE".to_owned())
        }
        _ => None,
    }
}

/// The git of this machine, and what it may know of the environment.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
pub(crate) fn git() -> GitProgram {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join("git")).find(|git| git.is_file());
    let path = path.into_string().ok();
    let mut environment: Vec<(String, String)> =
        path.map(|path| ("PATH".to_owned(), path)).into_iter().collect();
    if let Some(bundle) = bundle() {
        environment.push(("GIT_SSL_CAINFO".to_owned(), bundle.display().to_string()));
    }
    GitProgram { path: found, environment, proxies: proxies(), limits: GitLimits::default() }
}

/// A variable in capital letters or, if that is not set, in small ones.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn variable(name: &str) -> Option<String> {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    value(name).or_else(|| value(&name.to_ascii_lowercase()))
}
