//! `build --lend`: what the machine lends to RUN steps while they run, as behind a company's proxy.
//!
//! Files appear under `/run/kiln` and are gone with the step; variables are seen by the process alone. Neither is in a
//! layer, in the history or in a cache key. So what is lent says how things are fetched, never what a step makes of them;
//! and what of it names a file of this machine is lent with that file.

mod apt;
mod go;
mod npm;
mod pip;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use kiln_build::Lent;

use crate::failure::{Failure, Kind};
use crate::web;

/// Where lent files appear.
const PLACE: &str = "/run/kiln";
/// Variables by which programs find a CA bundle.
const BUNDLE_VARIABLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
];

/// What can be lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loan {
    /// The CA bundle that the machine trusts.
    Ca,
    /// Proxy variables.
    Proxy,
    /// apt's settings for fetching.
    Apt,
    /// pip's settings for fetching.
    Pip,
    /// npm's settings for fetching.
    Npm,
    /// Go's settings for modules.
    Go,
}

/// The machine that lends.
struct Host {
    /// Its environment, as far as it is text.
    variables: BTreeMap<String, String>,
    /// `/`, but in tests.
    root: PathBuf,
}

impl Host {
    /// A variable that is set to something.
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A file that a path of the machine names.
    fn file(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let path = path.as_ref();
        let path = self.root.join(path.strip_prefix("/").ok()?);
        path.is_file().then_some(path)
    }

    /// What a file says; nothing if there is none.
    fn text(&self, path: impl AsRef<Path>) -> Result<Option<String>> {
        let Some(path) = self.file(path) else { return Ok(None) };
        Ok(Some(String::from_utf8_lossy(&fs_err::read(path)?).into_owned()))
    }

    /// A path below the user's home.
    fn at_home(&self, path: &str) -> Option<PathBuf> {
        self.variable("HOME").map(|home| Path::new(home).join(path))
    }

    /// A path below the place of the user's settings (XDG Base Directory Specification).
    fn at_settings(&self, path: &str) -> Option<PathBuf> {
        let place = self.variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| self.at_home(".config"));
        place.map(|place| place.join(path))
    }
}

/// What is being lent.
#[derive(Default)]
struct Lending {
    lent: Lent,
    /// Of apt, which has one variable for all of it.
    apt: String,
}

impl Lending {
    fn environment(&mut self, name: &str, value: impl Into<String>) {
        self.lent.environment.push((name.to_owned(), value.into()));
    }

    /// Lends what is in a file; its place in a step.
    fn file(&mut self, name: &str, bytes: impl Into<Vec<u8>>) -> String {
        let path = format!("{PLACE}/{name}");
        self.lent.files.push((path.clone(), bytes.into()));
        path
    }

    /// A setting's value in a step: a file that it names is lent, and what was not there for the machine is not there.
    fn value_of_file(&mut self, host: &Host, tool: &str, value: &str) -> Result<String> {
        let Some(path) = host.file(value) else { return Ok(value.to_owned()) };
        let bytes = fs_err::read(path)?;
        let name = Path::new(value).file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((place, _)) = self.lent.files.iter().find(|(_, known)| *known == bytes) {
            return Ok(place.clone());
        }
        let name = format!("{tool}-{}-{name}", self.lent.files.len());
        Ok(self.file(&name, bytes))
    }
}

/// Reads what is to be lent from the machine's own configuration.
pub(crate) fn read(loans: &[Loan]) -> Result<Lent> {
    // `vars` would panic at any variable of the environment that is not UTF-8.
    let all = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let variables = all.filter_map(|(name, value)| Some((name, value.into_string().ok()?))).collect();
    lend(&Host { variables, root: PathBuf::from("/") }, loans)
}

fn lend(host: &Host, loans: &[Loan]) -> Result<Lent> {
    let mut lending = Lending::default();
    // Tools' own settings come last: where they name a bundle, it is the one that is meant for them.
    let mut loans = loans.to_vec();
    loans.sort_by_key(|loan| (!matches!(loan, Loan::Ca | Loan::Proxy), *loan as u8));
    loans.dedup();
    for loan in &loans {
        match loan {
            Loan::Ca => lend_bundle(&mut lending)?,
            Loan::Proxy => {
                let is_proxy = kiln_dockerfile::predefined::is_proxy_arg;
                let proxies = host.variables.iter().filter(|(name, _)| is_proxy(name));
                proxies.for_each(|(name, value)| lending.environment(name, value.as_str()));
            }
            Loan::Apt => apt::lend(host, &mut lending)?,
            Loan::Pip => pip::lend(host, &mut lending)?,
            Loan::Npm => npm::lend(host, &mut lending)?,
            Loan::Go => go::lend(host, &mut lending)?,
        }
    }
    if !lending.apt.is_empty() {
        let text = std::mem::take(&mut lending.apt);
        let path = lending.file("apt.conf", text);
        lending.environment("APT_CONFIG", path);
    }
    Ok(lending.lent)
}

/// The bundle that the user names, which must be there, or else the first of those that are.
fn bundle(named: Option<&Path>, known: &[&str]) -> Result<Vec<u8>, Failure> {
    let cannot = |message| Failure::new(Kind::World, message);
    let known = known.iter().map(Path::new);
    let Some(bundle) = named.or_else(|| known.clone().find(|path| path.is_file())) else {
        let places: Vec<String> = known.map(|path| path.display().to_string()).collect();
        let message = format!("cannot lend a CA bundle: none of {} is there", places.join(", "));
        return Err(cannot(message).hint("name one with SSL_CERT_FILE"));
    };
    fs_err::read(bundle).map_err(|error| {
        let origin = if named.is_some() { ", which SSL_CERT_FILE names" } else { "" };
        cannot(format!("cannot lend the CA bundle {}{origin}", bundle.display())).caused_by(error)
    })
}

fn lend_bundle(lending: &mut Lending) -> Result<()> {
    let bytes = bundle(web::named_bundle().as_deref(), &web::BUNDLES)?;
    let path = lending.file("ca-certificates.crt", bytes);
    lending.lent.environment.extend(BUNDLE_VARIABLES.map(|name| (name.to_owned(), path.clone())));
    lending.apt.push_str(&format!("Acquire::https::CaInfo \"{path}\";\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these variables and files; its root goes with the directory.
    pub(super) fn host(variables: &[(&str, &str)], files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        let variables = variables.iter().map(|(name, value)| (String::from(*name), String::from(*value)));
        let host = Host { variables: variables.collect(), root: root.path().to_owned() };
        (root, host)
    }

    /// Variables and files of a loan, as lines.
    #[track_caller]
    pub(super) fn check(host: &Host, loan: Loan, variables: &[(&str, &str)], files: &[(&str, &str)]) {
        let lent = lend(host, &[loan]).unwrap();
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let found: Vec<_> = lent.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(found, pairs(variables));
        let found =
            lent.files.iter().map(|(path, bytes)| format!("{path}={}", String::from_utf8_lossy(bytes)));
        assert_eq!(found.collect::<Vec<_>>(), pairs(files));
    }

    #[test]
    fn proxies_are_lent_as_they_are() {
        let (_root, host) = host(&[("HTTPS_PROXY", "http://p"), ("no_proxy", "h"), ("HOME", "/root")], &[]);
        check(&host, Loan::Proxy, &[("HTTPS_PROXY", "http://p"), ("no_proxy", "h")], &[]);
    }

    #[test]
    fn a_bundle_that_is_named_is_the_one_that_is_lent() {
        let host = tempfile::tempdir().unwrap();
        let path = |name: &str| host.path().join(name);
        fs_err::write(path("named"), "named").unwrap();
        fs_err::write(path("known"), "known").unwrap();
        let (missing, known) = (path("missing"), path("known"));
        let known = [missing.to_str().unwrap(), known.to_str().unwrap()];
        assert_eq!(bundle(Some(&path("named")), &known).unwrap(), b"named");
        assert_eq!(bundle(None, &known).unwrap(), b"known");
        for (named, expect) in [("missing", "missing, which SSL_CERT_FILE names"), (".", ".")] {
            let told = bundle(Some(&path(named)), &known).unwrap_err();
            assert!(told.to_string().contains(expect), "{told}");
        }
        let told = bundle(None, &known[..1]).unwrap_err();
        assert_eq!(told.to_string(), format!("cannot lend a CA bundle: none of {} is there", known[0]));
    }
}
