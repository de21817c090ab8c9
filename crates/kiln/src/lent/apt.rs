//! apt's settings for fetching: all of `Acquire` (apt.conf(5)) but what says which files are kept and how.

use std::process::{Command, Stdio};

use anyhow::Result;

use super::{Host, Lending};
use crate::failure::{Failure, Kind};

/// Groups of `Acquire` that say what is fetched or kept, and programs of this machine that tell a proxy.
const OWN: [&str; 8] = [
    "cdrom",
    "changelogs",
    "compressiontypes",
    "gzipindexes",
    "indextargets",
    "languages",
    "proxy-auto-detect",
    "proxyautodetect",
];
/// Settings whose values are files.
const FILES: [&str; 5] = ["cainfo", "cafile", "crlfile", "sslcert", "sslkey"];

/// Lends what apt itself says of its settings; on machines that have none of its programs, what is written for it.
pub(super) fn lend(host: &Host, lending: &mut Lending) -> Result<()> {
    let program = ["/usr/bin/apt-config", "/bin/apt-config"].into_iter().find_map(|path| host.file(path));
    let settings = match program {
        Some(program) => {
            let output = Command::new(program)
                .args(["dump", "--no-empty", "--format", "%f \"%v\";%n"])
                .stdin(Stdio::null())
                .output()?;
            if !output.status.success() {
                let told = String::from_utf8_lossy(&output.stderr);
                let message = format!("cannot lend apt's settings: apt-config dump: {}", told.trim());
                return Err(Failure::new(Kind::World, message).into());
            }
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        None => written(host)?,
    };
    for line in settings.lines() {
        let Some((name, value)) = setting(line) else { continue };
        let value = match name.rsplit("::").next() {
            Some(last) if FILES.contains(&last.to_ascii_lowercase().as_str()) => {
                lending.value_of_file(host, "apt", value)?
            }
            _ => value.to_owned(),
        };
        lending.apt.push_str(&format!("{name} \"{value}\";\n"));
    }
    Ok(())
}

/// Name and value of a line, if it is to be lent.
fn setting(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.trim().strip_suffix("\";")?.split_once(" \"")?;
    let name = name.trim();
    let mut groups = name.split("::").map(str::to_ascii_lowercase);
    // A quote in a value would end it.
    let is_ours = groups.next()? == "acquire" && !groups.any(|group| OWN.contains(&group.as_str()));
    (is_ours && !value.contains('"')).then_some((name, value))
}

/// Settings that have a line of their own.
fn written(host: &Host) -> Result<String> {
    let parts = host.root.join("etc/apt/apt.conf.d");
    let mut files: Vec<_> =
        fs_err::read_dir(parts).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.push(host.root.join("etc/apt/apt.conf"));
    let mut text = String::new();
    for file in files.iter().filter(|file| file.is_file()) {
        text.push_str(&String::from_utf8_lossy(&fs_err::read(file)?));
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::Loan;
    use super::super::tests::{check, host};

    const LENT: &str = "Acquire::http::Proxy \"http://p:3128\";\n\
        Acquire::https::h.example::SslKey \"/run/kiln/apt-0-key.pem\";\n\
        Acquire::https::CaInfo \"/nosuch\";\n";

    #[test]
    fn what_apt_says_of_itself_is_lent() {
        use std::os::unix::fs::PermissionsExt as _;
        let program = "#!/bin/sh\ncat <<'end'\n\
            APT::Architecture \"amd64\";\n\
            Acquire::Languages:: \"none\";\n\
            Acquire::GzipIndexes \"true\";\n\
            Acquire::http::Proxy \"http://p:3128\";\n\
            Acquire::http::Proxy-Auto-Detect \"/usr/bin/detect\";\n\
            Acquire::IndexTargets::deb::Packages::flatMetaKey \"Packages\";\n\
            Acquire::https::h.example::SslKey \"/etc/ssl/key.pem\";\n\
            Acquire::https::CaInfo \"/nosuch\";\n\
            Acquire::x \"a\" b\";\n\
            DPkg::Post-Invoke:: \"touch /x\";\nend\n";
        let (root, host) = host(&[], &[("/usr/bin/apt-config", program), ("/etc/ssl/key.pem", "key")]);
        let program = root.path().join("usr/bin/apt-config");
        fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        check(
            &host,
            Loan::Apt,
            &[("APT_CONFIG", "/run/kiln/apt.conf")],
            &[("/run/kiln/apt-0-key.pem", "key"), ("/run/kiln/apt.conf", LENT)],
        );
        fs_err::write(&program, "#!/bin/sh\necho E: Syntax error >&2; exit 100\n").unwrap();
        let told = super::super::lend(&host, &[Loan::Apt]).unwrap_err().to_string();
        assert_eq!(told, "cannot lend apt's settings: apt-config dump: E: Syntax error");
    }

    #[test]
    fn without_its_programs_what_is_written_is_lent() {
        let parts = "Acquire::http::Proxy \"http://p:3128\";\n// a comment\nAPT::Get::Assume-Yes \"true\";\n\
            Acquire::https::h.example::SslKey \"/etc/ssl/key.pem\";\n";
        let (_root, host) = host(
            &[],
            &[
                ("/etc/apt/apt.conf.d/01proxy", parts),
                ("/etc/apt/apt.conf", "Acquire::https::CaInfo \"/nosuch\";"),
                ("/etc/ssl/key.pem", "key"),
            ],
        );
        check(
            &host,
            Loan::Apt,
            &[("APT_CONFIG", "/run/kiln/apt.conf")],
            &[("/run/kiln/apt-0-key.pem", "key"), ("/run/kiln/apt.conf", LENT)],
        );
    }

    #[test]
    fn a_machine_without_settings_lends_none() {
        let (_root, host) = host(&[], &[]);
        check(&host, Loan::Apt, &[], &[]);
    }
}
