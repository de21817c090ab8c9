//! Which commit of which repository is meant: `https://host/repository.git?query#reference:directory`, as BuildKit reads
//! it, and what of it git may be given.

use kiln_dockerfile::{GitSource, clean_path};

use crate::error::{Error, Result};

/// What is wanted of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct GitAddress {
    /// Given to git; http, https or git.
    pub(crate) remote: String,
    /// Branch, tag or commit; the default branch if absent.
    pub(crate) reference: Option<String>,
    /// Begins the commit's (or tag's) hash.
    pub(crate) checksum: Option<String>,
    /// Inside of the repository, without a leading slash; empty for all of it.
    pub(crate) directory: String,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) submodules: bool,
    /// The checksum is the commit, whatever the reference says.
    pub(crate) by_commit: bool,
}

impl GitAddress {
    /// Takes an address apart.
    ///
    /// # Errors
    /// When a part makes no sense, git would take it for something else, or its protocol is not spoken.
    pub(crate) fn parse(source: &GitSource) -> Result<Self> {
        let mut address = Self {
            remote: source.remote.clone(),
            reference: source.reference.clone(),
            directory: source.directory.clone().unwrap_or_default(),
            submodules: true,
            ..Self::default()
        };
        for pair in source.query.iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            address.query(&decoded(key), &decoded(value))?;
        }
        address.check()?;
        Ok(address)
    }

    fn refused(&self, problem: impl Into<String>) -> Error {
        Error::Git { remote: kiln_remote::shown(&self.remote), problem: problem.into() }
    }

    fn query(&mut self, key: &str, value: &str) -> Result<()> {
        let flag = |address: &Self| match value {
            "" => Ok(true),
            value => boolean(value).ok_or_else(|| address.refused(format!("invalid {key} value: {value:?}"))),
        };
        match key {
            "keep-git-dir" => self.keep_git_dir = Some(flag(self)?),
            "submodules" => self.submodules = flag(self)?,
            "fetch-by-commit" => self.by_commit = flag(self)?,
            _ if value.is_empty() => return Err(self.refused(format!("query {key:?} has no value"))),
            "ref" => self.set_reference(value.to_owned())?,
            "tag" => self.set_reference(format!("refs/tags/{}", value.trim_start_matches("refs/tags/")))?,
            "branch" => {
                self.set_reference(format!("refs/heads/{}", value.trim_start_matches("refs/heads/")))?;
            }
            "subdir" => {
                let directory = clean_path(&format!("/{value}"))[1..].to_owned();
                if !matches!(self.directory.as_str(), "" | "/") && self.directory != directory {
                    return Err(self.refused("subdir conflicts with the fragment's"));
                }
                self.directory = directory;
            }
            "checksum" | "commit" => self.checksum = Some(value.to_owned()),
            "mtime" if value == "commit" => {}
            "mtime" => {
                return Err(self.refused("files have the commit's time: mtime can be nothing but commit"));
            }
            other => return Err(self.refused(format!("unexpected query {other:?}"))),
        }
        Ok(())
    }

    fn set_reference(&mut self, reference: String) -> Result<()> {
        match &self.reference {
            Some(known) if *known != reference => {
                Err(self.refused(format!("ref conflicts: {known:?} vs {reference:?}")))
            }
            _ => {
                self.reference = Some(reference);
                Ok(())
            }
        }
    }

    /// `--checksum` and `--keep-git-dir` of an instruction.
    pub(crate) fn with_flags(mut self, checksum: Option<&str>, keep_git_dir: Option<bool>) -> Result<Self> {
        if let Some(checksum) = checksum {
            if self.checksum.as_deref().is_some_and(|known| known != checksum) {
                return Err(self.refused("its checksum is not the instruction's"));
            }
            self.checksum = Some(checksum.to_owned());
        }
        if let Some(keep) = keep_git_dir {
            if self.keep_git_dir.is_some_and(|known| known != keep) {
                return Err(self.refused("inconsistent keep-git-dir configuration"));
            }
            self.keep_git_dir = Some(keep);
        }
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<()> {
        if !self.remote.starts_with("https://")
            && !self.remote.starts_with("http://")
            && !self.remote.starts_with("git://")
        {
            // There is no way yet to lend an agent or keys, and the user's own are not a Dockerfile's to use.
            return Err(
                self.refused("only https, http and git are spoken: expected https://host/repository.git")
            );
        }
        let host = self.remote.split("://").nth(1).unwrap_or_default();
        let host = host.split('/').next().unwrap_or_default().rsplit('@').next().unwrap_or_default();
        if host.is_empty()
            || host.starts_with('-')
            || self.remote.contains(|c: char| c.is_control() || c == ' ')
        {
            return Err(self.refused("it names no host"));
        }
        if let Some(reference) = self.reference.as_deref().filter(|reference| !is_reference(reference)) {
            return Err(self.refused(format!("{reference:?} is no branch, tag or commit")));
        }
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(checksum) = self.checksum.as_deref().filter(|checksum| !is_hex(checksum)) {
            return Err(self.refused(format!("invalid checksum {checksum}: expected a commit's hash")));
        }
        if self.by_commit && !self.checksum.as_deref().is_some_and(is_commit) {
            return Err(self.refused("fetch-by-commit needs the whole hash of a commit as checksum"));
        }
        Ok(())
    }

    /// The commit, if nobody must be asked for it.
    pub(crate) fn commit(&self) -> Option<&str> {
        match &self.reference {
            _ if self.by_commit => self.checksum.as_deref(),
            Some(reference) if is_commit(reference) => Some(reference),
            _ => None,
        }
    }

    /// How addresses on the remote's host begin, with the credentials that the remote has and without.
    pub(crate) fn credentials(&self) -> Option<(String, String)> {
        let (scheme, rest) = self.remote.split_once("://")?;
        let authority = rest.split('/').next()?;
        let (_, host) = authority.rsplit_once('@')?;
        Some((format!("{scheme}://{authority}/"), format!("{scheme}://{host}/")))
    }

    pub(crate) fn keeps_git_dir(&self) -> bool {
        self.keep_git_dir == Some(true) && self.directory.is_empty()
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether a text is the whole hash of a commit, SHA-1 or SHA-256.
pub(crate) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether git takes a text for a name of a branch or tag, and for nothing else (git-check-ref-format(1)).
pub(crate) fn is_reference(text: &str) -> bool {
    let forbidden = |c: char| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    let component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    !text.starts_with('-')
        && !text.contains(forbidden)
        && !text.contains("..")
        && !text.contains("@{")
        && text != "@"
        && !text.ends_with('.')
        && text.split('/').all(component)
}

/// A part of a query, where `+` is a blank.
fn decoded(text: &str) -> String {
    String::from_utf8_lossy(&kiln_dockerfile::percent_decoded(&text.replace('+', " "))).into_owned()
}

#[cfg(test)]
mod tests {
    use kiln_dockerfile::{SourceKind, source_kind};

    use super::*;

    fn parse(text: &str) -> Result<GitAddress> {
        match source_kind(text) {
            SourceKind::Git(source) => GitAddress::parse(&source),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        let commit = "a".repeat(40);
        for (text, reference, directory, checksum) in [
            ("https://h/r.git", None, "", None),
            ("https://h/r.git#main", Some("main"), "", None),
            ("https://h/r.git#feature/x:a/../b", Some("feature/x"), "b", None),
            ("https://h/r.git#:d", None, "d", None),
            ("https://h/r.git?tag=v1", Some("refs/tags/v1"), "", None),
            ("https://h/r.git?branch=refs/heads/x&subdir=a%2Fb", Some("refs/heads/x"), "a/b", None),
            ("https://h/r.git?ref=v1&checksum=abc", Some("v1"), "", Some("abc")),
            (&format!("git://h/r#{commit}"), Some(commit.as_str()), "", None),
        ] {
            let address = parse(text).expect(text);
            assert_eq!(
                (address.reference.as_deref(), address.directory.as_str(), address.checksum.as_deref()),
                (reference, directory, checksum),
                "{text}"
            );
        }
        let address = parse("http://h/r.git?keep-git-dir&submodules=false#main").expect("an address");
        assert_eq!((address.keep_git_dir, address.submodules, address.commit()), (Some(true), false, None));
        assert_eq!(address.remote, "http://h/r.git");
    }

    #[test]
    fn credentials_are_set_apart() {
        let address = parse("https://user:p@ss@h:1/r.git").expect("an address");
        let expect = ("https://user:p@ss@h:1/".to_owned(), "https://h:1/".to_owned());
        assert_eq!(address.credentials(), Some(expect));
        assert_eq!(parse("https://h/@r.git").expect("an address").credentials(), None);
    }

    #[test]
    fn nothing_becomes_an_option_or_another_protocol() {
        for text in [
            "https://h/r.git#--upload-pack=touch /tmp/x",
            "https://h/r.git#--upload-pack=x",
            "https://h/r.git#-x",
            "https://h/r.git?ref=--upload-pack%3Dx",
            "https://h/r.git?branch=a..b",
            "https://h/r.git#a b",
            "https://h/r.git#a^{commit}",
            "https://h/r.git#@{-1}",
            "https://h/r.git#a\nb",
            "https://h/r.git#/a",
            "https://h/r.git#a//b",
            "https://h/r.git#x.lock",
            "https://-oProxyCommand=x/r.git",
            "https:///r.git",
            "ssh://git@h/r.git",
            "git@h:r.git",
            "ssh://-oProxyCommand=x/r.git",
            "https://h/r.git?checksum=--x",
            "https://h/r.git?ref=a&ref=b",
            "https://h/r.git?ref=a#b",
            "https://h/r.git?subdir=a#:b",
            "https://h/r.git?nonsense=1",
            "https://h/r.git?tag=",
            "https://h/r.git?submodules=maybe",
            "https://h/r.git?fetch-by-commit&checksum=abc",
        ] {
            assert!(matches!(parse(text), Err(Error::Git { .. })), "{text}");
        }
    }
}
