//! npm's settings for fetching, of its global file and the user's (`npm help npmrc`). pnpm reads them, too.

use std::path::PathBuf;

use anyhow::Result;

use super::{Host, Lending};

/// What says where packages come from; `@scope:registry` and `//host/:...` besides.
const KEYS: [&str; 20] = [
    "registry",
    "proxy",
    "https-proxy",
    "http-proxy",
    "noproxy",
    "strict-ssl",
    "ca",
    "ca[]",
    "always-auth",
    "_auth",
    "_authtoken",
    "username",
    "_password",
    "email",
    "fetch-retries",
    "fetch-retry-factor",
    "fetch-retry-mintimeout",
    "fetch-retry-maxtimeout",
    "fetch-timeout",
    "maxsockets",
];
/// The same, as files; `//host/:certfile` and `:keyfile` besides.
const FILES: [&str; 3] = ["cafile", "certfile", "keyfile"];
/// How variables that are settings begin.
const PREFIX: &str = "npm_config_";

pub(super) fn lend(host: &Host, lending: &mut Lending) -> Result<()> {
    for (name, value) in &host.variables {
        let Some(key) = name.to_ascii_lowercase().strip_prefix(PREFIX).map(|key| key.replace('_', "-"))
        else {
            continue;
        };
        if FILES.contains(&key.as_str()) {
            let value = lending.value_of_file(host, "npm", value)?;
            lending.environment(name, value);
        } else if is_lent(&key) {
            lending.environment(name, value.as_str());
        }
    }
    let named = |name: &str| {
        let mut variables = host.variables.iter();
        variables.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| PathBuf::from(value))
    };
    let user = named("npm_config_userconfig").or_else(|| host.at_home(".npmrc"));
    let global = named("npm_config_globalconfig").or_else(|| at_prefix(host));
    let mut settings: Vec<(String, String)> = Vec::new();
    for file in [global, user].into_iter().flatten() {
        for (key, value) in host.text(file)?.iter().flat_map(|text| read(text)) {
            // A list has its name many times.
            settings.retain(|(known, _)| *known != key || key.ends_with("[]"));
            settings.push((key, value));
        }
    }
    let mut text = String::new();
    for (key, value) in settings {
        let last = key.rsplit(':').next().unwrap_or_default().to_ascii_lowercase();
        let value = expanded(host, &value);
        if FILES.contains(&last.as_str()) {
            text.push_str(&format!("{key}={}\n", lending.value_of_file(host, "npm", &value)?));
        } else if is_lent(&key) {
            text.push_str(&format!("{key}={value}\n"));
        }
    }
    if !text.is_empty() {
        let path = lending.file("npmrc", text);
        lending.environment("NPM_CONFIG_USERCONFIG", path);
    }
    Ok(())
}

fn is_lent(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key.starts_with("//")
        || key.starts_with('@') && key.ends_with(":registry")
        || KEYS.contains(&key.as_str())
}

/// The global file: below the directory that node is installed in, or where Debian has it.
fn at_prefix(host: &Host) -> Option<PathBuf> {
    let path = host.variable("PATH").unwrap_or_default();
    let node = std::env::split_paths(path).map(|directory| directory.join("node"));
    let prefix = node.filter_map(|node| host.file(&node).and_then(|found| fs_err::canonicalize(found).ok()));
    let prefix = prefix.filter_map(|node| Some(node.parent()?.parent()?.to_path_buf())).next();
    let below = prefix.and_then(|prefix| {
        let root = fs_err::canonicalize(&host.root).ok()?;
        Some(PathBuf::from("/").join(prefix.strip_prefix(root).ok()?).join("etc/npmrc"))
    });
    below.into_iter().chain([PathBuf::from("/etc/npmrc")]).find(|path| host.file(path).is_some())
}

/// Settings of one file.
fn read(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';', '[']));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().trim_matches('"').to_owned())).collect()
}

/// `${NAME}` is a variable's value; where it is not set, the text stays, as npm leaves it.
fn expanded(host: &Host, value: &str) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, behind)) = after.split_once('}') else { break };
        out.push_str(before);
        match host.variables.get(name.trim_end_matches('?')) {
            Some(value) => out.push_str(value),
            None if name.ends_with('?') => {}
            None => out.push_str(&format!("${{{name}}}")),
        }
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::super::Loan;
    use super::super::tests::{check, host};

    #[test]
    fn both_files_become_one() {
        let global = "; all of us\ncafile = \"/etc/ca.pem\"\nregistry=http://global/\nprefix=/usr\n";
        let user = "registry=http://user/\n@s:registry=http://scope/\n//user/:_authToken=${TOKEN}\nyes=true\n\
            //scope/:keyfile=/home/u/key\nproxy=${NOTSET}\n";
        let variables = [
            ("HOME", "/home/u"),
            ("PATH", "/opt/nothing:/opt/bin"),
            ("TOKEN", "t0ken"),
            ("npm_config_strict_ssl", "false"),
            ("npm_config_loglevel", "silent"),
            ("npm_config_cafile", "/etc/ca.pem"),
        ];
        let (_root, host) = host(
            &variables,
            &[
                ("/opt/bin/node", ""),
                ("/opt/etc/npmrc", global),
                ("/home/u/.npmrc", user),
                ("/home/u/key", "key"),
                ("/etc/ca.pem", "ca"),
            ],
        );
        let lent = "cafile=/run/kiln/npm-0-ca.pem\nregistry=http://user/\n@s:registry=http://scope/\n\
            //user/:_authToken=t0ken\n//scope/:keyfile=/run/kiln/npm-1-key\nproxy=${NOTSET}\n";
        check(
            &host,
            Loan::Npm,
            &[
                ("npm_config_cafile", "/run/kiln/npm-0-ca.pem"),
                ("npm_config_strict_ssl", "false"),
                ("NPM_CONFIG_USERCONFIG", "/run/kiln/npmrc"),
            ],
            &[("/run/kiln/npm-0-ca.pem", "ca"), ("/run/kiln/npm-1-key", "key"), ("/run/kiln/npmrc", lent)],
        );
    }

    #[test]
    fn a_machine_without_settings_lends_none() {
        let (_root, host) = host(&[("HOME", "/home/u")], &[]);
        check(&host, Loan::Npm, &[], &[]);
    }
}
