//! pip's settings for fetching, of all the files that it reads (pip's user guide, "Configuration").

use anyhow::Result;

use super::{Host, Lending};

/// What says where packages come from.
const KEYS: [&str; 9] = [
    "index-url",
    "extra-index-url",
    "find-links",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
    "no-index",
];
/// The same, as files.
const FILES: [&str; 2] = ["cert", "client-cert"];

pub(super) fn lend(host: &Host, lending: &mut Lending) -> Result<()> {
    for key in KEYS {
        let name = variable(key);
        if let Some(value) = host.variable(&name).and_then(|value| elsewhere(key, value)) {
            lending.environment(&name, value);
        }
    }
    for key in FILES {
        let name = variable(key);
        if let Some(path) = host.variable(&name) {
            let value = lending.value_of_file(host, "pip", path)?;
            // One that `ca` lends is the machine's; pip's own comes before it.
            lending.lent.environment.retain(|(known, _)| *known != name);
            lending.environment(&name, value);
        }
    }
    let mut sections: Vec<(String, String)> = Vec::new();
    for (section, key, value) in settings(host)? {
        let value = match () {
            () if FILES.contains(&key.as_str()) => Some(lending.value_of_file(host, "pip", &value)?),
            () if KEYS.contains(&key.as_str()) => elsewhere(&key, &value),
            () => None,
        };
        let Some(value) = value else { continue };
        let line = format!("{key} = {}\n", value.replace('\n', "\n    "));
        // configparser takes each section once.
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, lines)) => lines.push_str(&line),
            None => sections.push((section, line)),
        }
    }
    if !sections.is_empty() {
        let text: String = sections.iter().map(|(section, lines)| format!("[{section}]\n{lines}")).collect();
        let path = lending.file("pip.conf", text);
        lending.environment("PIP_CONFIG_FILE", path);
    }
    Ok(())
}

fn variable(key: &str) -> String {
    format!("PIP_{}", key.to_ascii_uppercase().replace('-', "_"))
}

/// A value without the places that are directories of this machine.
fn elsewhere(key: &str, value: &str) -> Option<String> {
    if key != "find-links" {
        return Some(value.to_owned());
    }
    let places: Vec<&str> = value.split_whitespace().filter(|place| place.contains("://")).collect();
    let places: Vec<&str> = places.into_iter().filter(|place| !place.starts_with("file:")).collect();
    (!places.is_empty()).then(|| places.join("\n"))
}

/// Section, key and value of each setting; the ones that count more come later and are the only ones of their name.
fn settings(host: &Host) -> Result<Vec<(String, String, String)>> {
    let named = host.variable("PIP_CONFIG_FILE");
    if named == Some("/dev/null") {
        return Ok(Vec::new());
    }
    let system = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf"].map(std::path::PathBuf::from);
    let user = [host.at_home(".pip/pip.conf"), host.at_settings("pip/pip.conf")];
    let files = system.into_iter().chain(user.into_iter().flatten()).chain(named.map(Into::into));
    let mut settings: Vec<(String, String, String)> = Vec::new();
    for file in files {
        for (section, key, value) in host.text(file)?.iter().flat_map(|text| read(text)) {
            settings.retain(|(known, name, _)| (known, name) != (&section, &key));
            settings.push((section, key, value));
        }
    }
    Ok(settings)
}

/// Settings of one file, as Python's configparser reads them.
fn read(text: &str) -> Vec<(String, String, String)> {
    let mut settings: Vec<(String, String, String)> = Vec::new();
    let mut section = String::new();
    let mut goes_on = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            if let (true, Some((_, _, value))) = (goes_on, settings.last_mut()) {
                value.push('\n');
                value.push_str(trimmed);
            }
        } else if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name.to_owned();
            goes_on = false;
        } else if let Some((key, value)) = trimmed.split_once(['=', ':']) {
            let key = key.trim().to_ascii_lowercase().replace('_', "-");
            settings.push((section.clone(), key, value.trim().to_owned()));
            goes_on = true;
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::super::Loan;
    use super::super::tests::{check, host};

    #[test]
    fn all_files_become_one() {
        let system = "[global]\ncert = /etc/ca.pem\nindex-url = http://system/\nno-binary = :all:\n";
        let user = "# mine\n[install]\nuser = yes\ntrusted_host =\n    a.example\n    b.example\n\n\
            [global]\nindex-url: http://u:p@user/simple\nfind-links =\n    /opt/wheels\n    https://w/\n";
        let (_root, mut host) = host(
            &[
                ("HOME", "/home/u"),
                ("PIP_TIMEOUT", "9"),
                ("PIP_FIND_LINKS", "/opt/wheels"),
                ("PIP_TARGET", "/x"),
            ],
            &[("/etc/pip.conf", system), ("/home/u/.config/pip/pip.conf", user), ("/etc/ca.pem", "ca")],
        );
        let lent = "[global]\ncert = /run/kiln/pip-0-ca.pem\nindex-url = http://u:p@user/simple\n\
            find-links = https://w/\n[install]\ntrusted-host = \n    a.example\n    b.example\n";
        check(
            &host,
            Loan::Pip,
            &[("PIP_TIMEOUT", "9"), ("PIP_CONFIG_FILE", "/run/kiln/pip.conf")],
            &[("/run/kiln/pip-0-ca.pem", "ca"), ("/run/kiln/pip.conf", lent)],
        );
        // As pip does, a file that is named counts most, and /dev/null turns all of them off.
        let named = [("/x.conf", "[global]\nindex-url = http://named/\n")];
        fs_err::write(host.root.join("x.conf"), named[0].1).unwrap();
        host.variables.insert("PIP_CONFIG_FILE".to_owned(), "/x.conf".to_owned());
        let found = super::super::lend(&host, &[Loan::Pip]).unwrap();
        let text = String::from_utf8_lossy(&found.files.last().unwrap().1).into_owned();
        assert!(text.contains("index-url = http://named/\n") && !text.contains("user"), "{text}");
        host.variables.insert("PIP_CONFIG_FILE".to_owned(), "/dev/null".to_owned());
        check(&host, Loan::Pip, &[("PIP_TIMEOUT", "9")], &[]);
    }

    #[test]
    fn its_own_bundle_comes_before_the_machines() {
        let (_root, host) = host(&[("PIP_CERT", "/etc/ca.pem")], &[("/etc/ca.pem", "ca")]);
        let path = "/run/kiln/pip-0-ca.pem";
        check(&host, Loan::Pip, &[("PIP_CERT", path)], &[(path, "ca")]);
    }
}
