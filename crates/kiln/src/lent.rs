//! `build --lend`: what the machine lends to RUN steps while they run, as behind a company's proxy.
//!
//! Files appear under `/run/kiln` and are gone with the step; variables are seen by the process alone. Neither is in a
//! layer, in the history or in a cache key.

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
    /// pip's index settings.
    Pip,
    /// npm's settings.
    Npm,
    /// Go's module proxy settings.
    Go,
}

/// Reads what is to be lent from the machine's own configuration.
pub(crate) fn read(loans: &[Loan]) -> Result<Lent> {
    let mut lent = Lent::default();
    let mut apt = String::new();
    for loan in loans {
        match loan {
            Loan::Ca => lend_bundle(&mut lent, &mut apt)?,
            Loan::Proxy => lend_variables(&mut lent, kiln_dockerfile::predefined::is_proxy_arg),
            Loan::Apt => apt.push_str(&apt_settings()?),
            Loan::Pip => {
                let names =
                    ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT"];
                lend_variables(&mut lent, |name| names.contains(&name));
                let files = ["/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf"];
                lend_file(&mut lent, "pip.conf", "PIP_CONFIG_FILE", &files)?;
            }
            Loan::Npm => {
                lend_variables(&mut lent, |name| name.eq_ignore_ascii_case("npm_config_registry"));
                lend_file(&mut lent, "npmrc", "NPM_CONFIG_USERCONFIG", &["~/.npmrc"])?;
            }
            Loan::Go => {
                let names = ["GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GONOPROXY"];
                lend_variables(&mut lent, |name| names.contains(&name));
            }
        }
    }
    if !apt.is_empty() {
        lend(&mut lent, "apt.conf", "APT_CONFIG", apt.into_bytes());
    }
    Ok(lent)
}

fn lend(lent: &mut Lent, name: &str, variable: &str, bytes: Vec<u8>) {
    let path = format!("{PLACE}/{name}");
    lent.environment.push((variable.to_owned(), path.clone()));
    lent.files.push((path, bytes));
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

fn lend_bundle(lent: &mut Lent, apt: &mut String) -> Result<()> {
    let bytes = bundle(web::named_bundle().as_deref(), &web::BUNDLES)?;
    let path = format!("{PLACE}/ca-certificates.crt");
    lent.files.push((path.clone(), bytes));
    lent.environment.extend(BUNDLE_VARIABLES.map(|name| (name.to_owned(), path.clone())));
    apt.push_str(&format!("Acquire::https::CaInfo \"{path}\";\n"));
    Ok(())
}

fn lend_variables(lent: &mut Lent, wanted: impl Fn(&str) -> bool) {
    // `vars` would panic at any variable of the environment that is not UTF-8.
    let all = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let readable = all
        .filter(|(name, _)| wanted(name))
        .filter_map(|(name, value)| Some((name, value.into_string().ok()?)));
    lent.environment.extend(readable);
}

/// Lends the first of these files that is there.
fn lend_file(lent: &mut Lent, name: &str, variable: &str, files: &[&str]) -> Result<()> {
    let found = files.iter().filter_map(|file| at_home(file)).find(|path| path.is_file());
    if let Some(path) = found {
        lend(lent, name, variable, fs_err::read(path)?);
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
fn at_home(file: &str) -> Option<PathBuf> {
    match file.strip_prefix("~/") {
        Some(rest) => std::env::var_os("HOME").map(|home| Path::new(&home).join(rest)),
        None => Some(PathBuf::from(file)),
    }
}

/// The lines of apt's configuration that say how to fetch; nothing of what it does on the machine.
fn apt_settings() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/apt.conf")];
    if let Ok(entries) = fs_err::read_dir("/etc/apt/apt.conf.d") {
        files.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files.sort();
    let mut settings = String::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = fs_err::read_to_string(file)?;
        for line in text.lines().map(str::trim) {
            if line.starts_with("Acquire::") && line.ends_with(';') && line.contains('"') {
                settings.push_str(line);
                settings.push('\n');
            }
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

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
