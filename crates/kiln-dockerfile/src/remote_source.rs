//! ADD's sources that are not in the context: URLs and git repositories, told apart by their form.

use crate::glob::clean_path;

/// What a source of ADD or COPY is, by its (expanded) text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A path or pattern in the context, stage or image.
    Path,
    /// An HTTP(S) address. COPY refuses it.
    Url {
        /// The name that the downloaded file gets: the last part of the address's path.
        file_name: String,
    },
    /// A git repository. COPY refuses it.
    Git(GitSource),
}

/// A git repository's address, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitSource {
    /// The address without query and fragment.
    pub remote: String,
    /// Branch, tag or commit behind `#`, if given.
    pub reference: Option<String>,
    /// The directory behind `#reference:`, if given, without a leading slash.
    pub directory: Option<String>,
    /// The query behind `?`, as written: `ref`, `tag`, `branch`, `subdir`, `checksum`, `submodules`
    /// and so on are for whoever fetches.
    pub query: Option<String>,
}

/// Tells what a source is. An HTTP(S) address is a repository if its path ends with `.git`; an
/// address of a scheme other than http, https, ssh and git is a path, as in BuildKit.
#[must_use]
pub fn source_kind(source: &str) -> SourceKind {
    let scheme = source.split_once("://").map(|(scheme, _)| scheme);
    let scheme =
        scheme.filter(|scheme| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let Some(scheme) = scheme else {
        return if is_scp_style(source) { SourceKind::Git(git_source(source)) } else { SourceKind::Path };
    };
    let path = url_path(source);
    match scheme.to_ascii_lowercase().as_str() {
        "ssh" | "git" => SourceKind::Git(git_source(source)),
        "http" | "https" if path.ends_with(".git") => SourceKind::Git(git_source(source)),
        // As in BuildKit, a download is told by its small letters.
        _ if source.starts_with("http://") || source.starts_with("https://") => {
            let cleaned = clean_path(&decoded(path));
            let base = cleaned.rsplit('/').next().unwrap_or_default();
            let named = !base.is_empty() && base != ".";
            SourceKind::Url { file_name: if named { base } else { "__unnamed__" }.to_owned() }
        }
        _ => SourceKind::Path,
    }
}

/// Tells what a build context is: what [`source_kind`] says, and `github.com/user/repository` is a repository, too, as in
/// BuildKit. Whether it is a directory of this machine instead, whoever calls has looked.
#[must_use]
pub fn context_kind(context: &str) -> SourceKind {
    match source_kind(context) {
        SourceKind::Path if context.starts_with("github.com/") => {
            SourceKind::Git(git_source(&format!("https://{context}")))
        }
        kind => kind,
    }
}

/// `user@host:path`
fn is_scp_style(source: &str) -> bool {
    let Some((user, rest)) = source.split_once('@') else { return false };
    let Some((host, _)) = rest.split_once(':') else { return false };
    let word = |byte: u8, extra: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == extra;
    !user.is_empty()
        && !host.is_empty()
        && user.bytes().all(|byte| word(byte, b'_'))
        && host.bytes().all(|byte| word(byte, b'.'))
}

/// The path of an address with a scheme, without query and fragment.
fn url_path(source: &str) -> &str {
    let rest = source.split_once("://").map_or(source, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    rest.find('/').map_or("", |at| &rest[at..])
}

fn git_source(source: &str) -> GitSource {
    let (rest, fragment) =
        source.split_once('#').map_or((source, None), |(rest, fragment)| (rest, Some(fragment)));
    let (remote, query) = rest.split_once('?').map_or((rest, None), |(remote, query)| (remote, Some(query)));
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let (reference, directory) =
        fragment.unwrap_or_default().split_once(':').unwrap_or((fragment.unwrap_or_default(), ""));
    let directory = clean_path(&format!("/{directory}"));
    GitSource {
        remote: remote.to_owned(),
        reference: given(reference),
        directory: given(directory.trim_start_matches('/')),
        query: query.and_then(given),
    }
}

/// `%41` as `A`; what is no UTF-8 afterwards, or no escape, stays.
fn decoded(text: &str) -> String {
    String::from_utf8(percent_decoded(text)).unwrap_or_else(|_| text.to_owned())
}

/// The bytes of a part of an address, whose escapes (`%41`) are of two hexadecimal digits (RFC 3986, section 2.1); what is no
/// escape stays.
#[must_use]
pub fn percent_decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = match (byte, after) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)).map(|(high, low)| (high << 4) | low),
            _ => None,
        };
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    bytes
}
