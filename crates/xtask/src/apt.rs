//! apt without root and without a change to this machine, and the machine's own Debian mirrors.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::machine::{self, output, run};

/// The release whose mirrors are looked for.
pub(crate) const SUITE: &str = "bookworm";

/// apt with every directory of its own, so that it needs no root.
pub(crate) struct PrivateApt {
    configuration: PathBuf,
}

impl PrivateApt {
    /// Reads the lists of these sources.
    pub(crate) fn new(directory: &Path, sources: &str) -> Result<Self> {
        for name in ["lists/partial", "archives/partial", "preferences.d", "apt.conf.d"] {
            std::fs::create_dir_all(directory.join(name))?;
        }
        std::fs::write(directory.join("status"), "")?;
        std::fs::write(directory.join("sources.list"), sources)?;
        let shown = directory.display();
        let text = format!(
            "Dir::State \"{shown}\";\nDir::State::Lists \"{shown}/lists\";\nDir::State::status \"{shown}/status\";\n\
             Dir::Cache \"{shown}\";\nDir::Cache::archives \"{shown}/archives\";\n\
             Dir::Etc::main \"-\";\nDir::Etc::parts \"{shown}/apt.conf.d\";\n\
             Dir::Etc::sourcelist \"{shown}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferences \"-\";\nDir::Etc::preferencesparts \"{shown}/preferences.d\";\n\
             Debug::NoLocking \"1\";\nAPT::Install-Recommends \"0\";\nAPT::Sandbox::User \"root\";\n{}",
            fetch_settings()?
        );
        let configuration = directory.join("apt.conf");
        std::fs::write(&configuration, text)?;
        let apt = Self { configuration };
        run(apt.command().args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &self.configuration);
        command
    }

    /// Names of the packages that installing these brings.
    pub(crate) fn plan(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut simulate = self.command();
        simulate.args(["install", "--simulate", "-qq"]).args(wanted);
        let plan = output(&mut simulate)?;
        let packages: Vec<String> = plan
            .lines()
            .filter_map(|line| line.strip_prefix("Inst "))
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        if packages.is_empty() {
            bail!("{} names no package", machine::line(&simulate));
        }
        Ok(packages)
    }

    /// Puts the files of packages into a directory.
    pub(crate) fn download(&self, packages: &[String], to: &Path) -> Result<()> {
        run(self.command().current_dir(to).args(["download", "-qq"]).args(packages))
    }
}

/// How the machine's apt fetches (proxies, certificates), without what it does besides.
fn fetch_settings() -> Result<String> {
    let all = output(Command::new("apt-config").arg("dump"))?;
    let settings = all.lines().filter(|line| line.starts_with("Acquire::"));
    Ok(settings.map(|line| format!("{line}\n")).collect())
}

/// One-line sources of the machine's own Debian mirrors, so that no host is named here.
pub(crate) fn debian_sources() -> Result<String> {
    let format = "$(RELEASE) $(REPO_URI)";
    let listed =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Identifier: Packages"]))?;
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let lines = sources_of(&listed, &os_release);
    if lines.is_empty() {
        bail!("apt knows no Debian mirror on this machine");
    }
    Ok(lines.join("\n") + "\n")
}

/// The sources of [`SUITE`] on the mirrors of the machine's own release, which may be another one: mirrors have all.
fn sources_of(listed: &str, os_release: &str) -> Vec<String> {
    let own = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let own = own.map(|name| name.trim_matches('"')).filter(|name| !name.is_empty());
    let mut lines: Vec<String> = Vec::new();
    for target in listed.lines() {
        let Some((release, uri)) = target.split_once(' ') else { continue };
        let names = [Some(SUITE), own, Some("stable")].into_iter().flatten();
        let part = names.filter_map(|name| release.strip_prefix(name)).find(|part| PARTS.contains(part));
        let Some(part) = part.filter(|_| uri.contains("debian")) else { continue };
        let line = format!("deb {} {SUITE}{part} main", uri.trim());
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// What is read of a release.
const PARTS: [&str; 3] = ["", "-updates", "-security"];

/// A source of another suite, on the mirror that has this machine's own.
pub(crate) fn source_of(suite: &str) -> Result<String> {
    let sources = debian_sources()?;
    let mirror =
        sources.lines().find_map(|line| line.strip_prefix("deb ")?.strip_suffix(&format!(" {SUITE} main")));
    let Some(mirror) = mirror else { bail!("apt knows no mirror of Debian {SUITE} on this machine") };
    Ok(format!("deb {mirror} {suite} main\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirrors_of_another_release_have_this_one() {
        let listed = |name: &str| {
            format!(
                "{name} http://m/debian\n{name} http://m/debian\n{name}-updates http://m/debian\n\
                 {name}-backports http://m/debian\n{name}-security http://m/debian-security\n{name} http://m/other\n"
            )
        };
        let expect = [
            "deb http://m/debian bookworm main",
            "deb http://m/debian bookworm-updates main",
            "deb http://m/debian-security bookworm-security main",
        ];
        for name in ["bookworm", "trixie", "stable"] {
            assert_eq!(sources_of(&listed(name), "ID=debian\nVERSION_CODENAME=trixie\n"), expect, "{name}");
        }
        assert_eq!(sources_of(&listed("sid"), "VERSION_CODENAME=trixie\n"), [""; 0]);
    }
}
