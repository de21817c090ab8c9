//! What COPY, ADD and bind mounts select, and the digest of it that enters the cache key.

use kiln_dockerfile::{glob_match, has_wildcards};
use kiln_layer::metadata::{Children, Hashed, Tail, content_digest};
use kiln_layer::{Kind, Metadata};
use kiln_oci::{Digest, Hasher};

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::operation::{CopyOperation, CopySource};
use crate::tree::{Below, LastLink, SourceTree, cleaned, join, resolve_in, shown, split};

/// What an operation selects: one member for each of its sources, in order.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) sources: Vec<SelectedSource>,
}

/// What one source of COPY or ADD, or one bind mount, selects.
#[derive(Debug)]
pub(crate) struct SelectedSource {
    /// The source as written, with its filters.
    pub(crate) selector: String,
    /// Of names and content of all that was selected.
    pub(crate) digest: Digest,
    pub(crate) roots: Vec<SelectedRoot>,
}

/// A file or directory that a source stands for.
#[derive(Debug)]
pub(crate) struct SelectedRoot {
    /// What it is called inside of a directory that it is copied into.
    pub(crate) name: Vec<u8>,
    pub(crate) content: RootContent,
}

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum RootContent {
    /// A heredoc.
    Inline(Vec<u8>),
    /// In the source tree.
    Tree {
        /// Without symbolic links.
        path: Vec<u8>,
        /// Read late when the digest was stored.
        entries: Option<Vec<Below>>,
    },
}

/// Selects what a COPY or ADD takes from `source`.
///
/// # Errors
/// [`Error::NoSource`] when a source without wildcards is not there, or the directory before the first wildcard.
pub(crate) fn select(operation: &CopyOperation, source: &dyn SourceTree) -> Result<Selection> {
    let sources = operation.sources.iter().map(|written| match written {
        CopySource::Inline { name, content } => select_inline(name, content),
        CopySource::Path(path) if operation.parents => select_parents(path, &operation.exclude, source),
        CopySource::Path(path) => {
            let filter = Filter::new(&operation.exclude, None)?;
            let selector = selector(path, &operation.exclude, "");
            let roots = find_roots(path, &cleaned(path), source)?;
            finish(selector, roots, &filter, source)
        }
    });
    Ok(Selection { sources: sources.collect::<Result<_>>()? })
}

/// Selects what a bind mount shows.
///
/// # Errors
/// [`Error::NoSource`] when nothing is there.
pub(crate) fn select_mount(path: &str, source: &dyn SourceTree) -> Result<SelectedSource> {
    let root = literal_root(path, &cleaned(path), source)?;
    finish(selector(path, &[], ""), vec![root], &Filter::default(), source)
}

impl Selection {
    /// The sources as written, with their filters.
    pub(crate) fn selector(&self) -> String {
        let selectors: Vec<&str> = self.sources.iter().map(|source| source.selector.as_str()).collect();
        selectors.join("\n")
    }

    /// Of everything that was selected, in order.
    pub(crate) fn digest(&self) -> Digest {
        roots_digest(self.sources.iter().map(|source| (source.selector.as_bytes(), source.digest)))
    }
}

impl SelectedRoot {
    /// The entries of a root in the tree, read now if they were not needed before.
    pub(crate) fn load(&mut self, source: &dyn SourceTree) -> Result<&[Below]> {
        match &mut self.content {
            RootContent::Inline(_) => Ok(&[]),
            RootContent::Tree { path, entries } => {
                if entries.is_none() {
                    *entries = Some(source.walk(path, &Filter::default())?);
                }
                Ok(entries.as_deref().unwrap_or_default())
            }
        }
    }
}

fn selector(path: &str, exclude: &[String], mark: &str) -> String {
    let mut selector = format!("{path}{mark}");
    for pattern in exclude {
        selector.push_str("\n!");
        selector.push_str(pattern);
    }
    selector
}

fn select_inline(name: &str, content: &str) -> Result<SelectedSource> {
    let bytes = content.as_bytes().to_vec();
    let metadata = Metadata { size: bytes.len() as u64, ..Metadata::new(Kind::Regular, 0o644) };
    let digest = entry_digest(&metadata, &Tail::Content(&Digest::of(&bytes)));
    let name = split(&cleaned(name)).1.to_vec();
    let digest = roots_digest([(name.as_slice(), digest)]);
    let root = SelectedRoot { name: name.clone(), content: RootContent::Inline(bytes) };
    Ok(SelectedSource {
        selector: format!("<<{}", String::from_utf8_lossy(&name)),
        digest,
        roots: vec![root],
    })
}

/// `COPY --parents`: what is before `/./` is left out of the destination, what is behind it is a pattern below that.
fn select_parents(path: &str, exclude: &[String], source: &dyn SourceTree) -> Result<SelectedSource> {
    let (pivot, pattern) = path.split_once("/./").unwrap_or(("", path));
    let pattern = String::from_utf8_lossy(&cleaned(pattern)).into_owned();
    if !has_wildcards(pivot) && !has_wildcards(&pattern) {
        literal_root(path, &cleaned(&format!("{pivot}/{pattern}")), source)?;
    }
    let filter = Filter::new(exclude, Some(&pattern))?;
    let roots = find_roots(path, &cleaned(pivot), source)?;
    finish(selector(path, exclude, "\nparents"), roots, &filter, source)
}

/// Completes a source: walks what must be walked, and makes the digest.
fn finish(
    selector: String,
    mut roots: Vec<SelectedRoot>,
    filter: &Filter,
    source: &dyn SourceTree,
) -> Result<SelectedSource> {
    let mut digests = Vec::with_capacity(roots.len());
    for root in &mut roots {
        let RootContent::Tree { path, entries } = &mut root.content else { continue };
        if filter.is_empty()
            && let Some(digest) = source.stored_digest(path)?
        {
            digests.push(digest);
            continue;
        }
        let mut walked = source.walk(path, filter)?;
        source.hash(path, &mut walked)?;
        digests.push(tree_digest(&walked));
        *entries = Some(walked);
    }
    let named = roots.iter().map(|root| root.name.as_slice()).zip(digests);
    let digest = roots_digest(named);
    Ok(SelectedSource { selector, digest, roots })
}

/// The files and directories that a path or pattern stands for. None at all is fine for a pattern alone.
fn find_roots(written: &str, path: &[u8], source: &dyn SourceTree) -> Result<Vec<SelectedRoot>> {
    let text = String::from_utf8_lossy(path).into_owned();
    if !has_wildcards(&text) {
        return Ok(vec![literal_root(written, path, source)?]);
    }
    let components: Vec<&str> = text.split('/').collect();
    let first = components.iter().position(|component| has_wildcards(component)).unwrap_or_default();
    let base = components[..first].join("/").into_bytes();
    let base = resolve_source(written, &base, source)?;
    if source.find(&base)?.is_none() {
        return Err(no_source(written, &base, source));
    }
    let mut matches = Vec::new();
    expand(source, &base, &components[first..], &mut matches)?;
    matches
        .iter()
        .map(|path| {
            let name = split(path).1.to_vec();
            let resolved = resolve_source(written, path, source)?;
            if source.find(&resolved)?.is_none() {
                return Err(no_source(written, path, source));
            }
            Ok(SelectedRoot { name, content: RootContent::Tree { path: resolved, entries: None } })
        })
        .collect()
}

/// Collects the paths below `directory` that match the patterns, one for each component; symbolic links on the way are
/// not followed (fsutil's `ResolveWildcards`).
fn expand(
    source: &dyn SourceTree,
    directory: &[u8],
    patterns: &[&str],
    matches: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let Some((pattern, rest)) = patterns.split_first() else { return Ok(()) };
    if source.find(directory)?.is_none_or(|found| found.metadata.kind != Kind::Directory) {
        return Ok(());
    }
    for name in source.children(directory)? {
        // A malformed pattern matches nothing.
        if glob_match(pattern, &String::from_utf8_lossy(&name)).unwrap_or(false) {
            let path = join(directory, &name);
            if rest.is_empty() {
                matches.push(path);
            } else {
                expand(source, &path, rest, matches)?;
            }
        }
    }
    Ok(())
}

fn literal_root(written: &str, path: &[u8], source: &dyn SourceTree) -> Result<SelectedRoot> {
    let resolved = resolve_source(written, path, source)?;
    if source.find(&resolved)?.is_none() {
        return Err(no_source(written, &resolved, source));
    }
    let name = split(path).1.to_vec();
    Ok(SelectedRoot { name, content: RootContent::Tree { path: resolved, entries: None } })
}

fn resolve_source(written: &str, path: &[u8], source: &dyn SourceTree) -> Result<Vec<u8>> {
    resolve_in(source, path, LastLink::Follow).map_err(|error| match error {
        Error::NotDirectory(_) => no_source(written, path, source),
        error => error,
    })
}

fn no_source(written: &str, path: &[u8], source: &dyn SourceTree) -> Error {
    let ignored = source.hides(path);
    let path = if written.is_empty() { shown(path) } else { written.to_owned() };
    Error::NoSource { path, place: source.place(), ignored }
}

/// The digest of selected roots: their names and content digests, in order (docs/formats.md, section 6).
fn roots_digest<'a>(roots: impl IntoIterator<Item = (&'a [u8], Digest)>) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(b"kiln-selection-1\n");
    for (name, digest) in roots {
        hasher.update(&(name.len() as u32).to_le_bytes());
        hasher.update(name);
        hasher.update(digest.as_bytes());
    }
    hasher.finish()
}

/// The content digest of a tree (docs/formats.md, section 3), whose entries are in path order, the root first.
pub(crate) fn tree_digest(entries: &[Below]) -> Digest {
    let mut rest = entries;
    match entries.first() {
        Some(_) => take_digest(&mut rest),
        None => Digest::default(),
    }
}

/// The digest of the first entry with everything below it, which is taken off.
fn take_digest(entries: &mut &[Below]) -> Digest {
    let Some((first, rest)) = entries.split_first() else { return Digest::default() };
    *entries = rest;
    match first.found.metadata.kind {
        Kind::Directory => {
            let mut children = Children::default();
            while let Some(next) = entries.first().filter(|next| is_below(&next.path, &first.path)) {
                let digest = take_digest(entries);
                children.add(b"", split(&next.path).1, &digest);
            }
            entry_digest(&first.found.metadata, &Tail::Children(&children))
        }
        Kind::Regular => {
            let content = first.found.content.unwrap_or_default();
            entry_digest(&first.found.metadata, &Tail::Content(&content))
        }
        _ => entry_digest(&first.found.metadata, &Tail::Nothing),
    }
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    kiln_layer::path::is_below(path, directory)
}

fn entry_digest(metadata: &Metadata, tail: &Tail<'_>) -> Digest {
    let hashed = Hashed {
        kind: metadata.kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        size: metadata.size,
        device: metadata.device,
        link: &metadata.link,
    };
    let xattrs = metadata.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    content_digest(&hashed, xattrs, tail)
}
