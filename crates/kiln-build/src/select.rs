//! What COPY, ADD and bind mounts select, and the digest of it that enters the cache key.

use kiln_dockerfile::{glob_match, has_wildcards};
use kiln_layer::metadata::Tail;
use kiln_layer::{Kind, Metadata};
use kiln_oci::{Digest, Hasher};

use crate::error::{Absence, Error, Result};
use crate::examine::Entries;
use crate::filter::Filter;
use crate::operation::{CopyKind, CopyOperation, CopySource};
use crate::route::routed;
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
    /// Whether archives among the roots are unpacked.
    pub(crate) unpack: bool,
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
        entries: Selected,
    },
}

/// The entries of a root in the tree, as far as they were needed.
#[derive(Debug)]
pub(crate) enum Selected {
    /// The digest was stored, so that nothing was read.
    Unread,
    /// What the digest was made from.
    Examined(Entries),
    /// In path order, the root first.
    Loaded(Vec<Below>),
}

/// Selects what a COPY or ADD takes from `source`.
///
/// # Errors
/// [`Error::NoSource`] when a source without wildcards is not there, or the directory before the first wildcard.
pub(crate) fn select(operation: &CopyOperation, source: &dyn SourceTree) -> Result<Selection> {
    let _span = kiln_trace::span("select");
    let sources = operation.sources.iter().map(|written| match written {
        CopySource::Inline { name, content } => select_inline(name, content),
        CopySource::Path(path) if operation.parents => select_parents(path, &operation.exclude, source),
        CopySource::Path(path) => {
            let filter = Filter::new(&operation.exclude, None)?;
            let selector = selector(path, &operation.exclude, "");
            let roots = find_roots(path, &cleaned(path), source)?;
            let selected = finish(selector, roots, &filter, source)?;
            Ok(SelectedSource { unpack: operation.kind == CopyKind::Unpack, ..selected })
        }
        CopySource::Repository { input } => {
            let filter = Filter::new(&operation.exclude, None)?;
            let content = RootContent::Tree { path: routed(*input, b""), entries: Selected::Unread };
            let root = SelectedRoot { name: Vec::new(), content };
            finish(selector("/", &operation.exclude, ""), vec![root], &filter, source)
        }
        CopySource::Download { input, name, unpack } => select_download(*input, name, *unpack, source),
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
                let loaded = match std::mem::replace(entries, Selected::Unread) {
                    Selected::Unread => source.walk(path, &Filter::default())?,
                    Selected::Examined(examined) => examined.all(),
                    Selected::Loaded(loaded) => loaded,
                };
                *entries = Selected::Loaded(loaded);
                let Selected::Loaded(loaded) = entries else { return Ok(&[]) };
                Ok(loaded)
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
    let digest = metadata.content_digest(&Tail::Content(&Digest::of(&bytes)));
    let name = split(&cleaned(name)).1.to_vec();
    let digest = roots_digest([(name.as_slice(), digest)]);
    let root = SelectedRoot { name: name.clone(), content: RootContent::Inline(bytes) };
    Ok(SelectedSource {
        selector: format!("<<{}", String::from_utf8_lossy(&name)),
        digest,
        roots: vec![root],
        unpack: false,
    })
}

/// Where a file comes from counts for nothing, only what it is called and what it holds.
fn select_download(
    input: usize,
    name: &str,
    unpack: bool,
    source: &dyn SourceTree,
) -> Result<SelectedSource> {
    let selector = if unpack { format!("{name}\nunpack") } else { name.to_owned() };
    let path = routed(input, crate::download::FILE);
    let name = name.as_bytes().to_vec();
    let root = SelectedRoot { name, content: RootContent::Tree { path, entries: Selected::Unread } };
    let selected = finish(selector, vec![root], &Filter::default(), source)?;
    Ok(SelectedSource { unpack, ..selected })
}

/// `COPY --parents`: what is before `/./` is left out of the destination, what is behind it is a pattern below that.
fn select_parents(path: &str, exclude: &[String], source: &dyn SourceTree) -> Result<SelectedSource> {
    let (pivot, pattern) = path.split_once("/./").unwrap_or(("", path));
    let pattern = String::from_utf8_lossy(&cleaned(pattern)).into_owned();
    if !has_wildcards(pivot) && !has_wildcards(&pattern) {
        literal_root(path, &cleaned(&format!("{pivot}/{pattern}")), source)?;
        // The pattern goes through no link.
        let pivot = resolve_source(path, &cleaned(pivot), source)?;
        let below = join(&pivot, pattern.as_bytes());
        if !pattern.is_empty() && resolve_in(source, &below, LastLink::Keep)? != below {
            let (path, place) = (path.to_owned(), source.place());
            return Err(Error::NoSource { path, place, absence: Absence::BehindLink });
        }
    }
    // BuildKit finds nothing where nothing is behind it, and fails: a directory as it is must be meant.
    let is_whole = pattern.is_empty() && !has_wildcards(pivot);
    let filter = Filter::new(exclude, (!is_whole).then_some(pattern.as_str()))?;
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
    let mut names = Vec::new();
    for (number, root) in roots.iter_mut().enumerate() {
        let RootContent::Tree { path, entries } = &mut root.content else { continue };
        if filter.is_empty()
            && let Some(digest) = source.stored_digest(path)?
        {
            names.extend(source.stored_links(path)?);
            digests.push(digest);
            continue;
        }
        let examined = source.examine(path, filter)?;
        if examined.is_nothing() {
            // It was there a moment ago.
            return Err(no_source("", path, path, source));
        }
        digests.push(examined.digest);
        let mark = (number as u32).to_le_bytes();
        let marked = |group: Vec<Vec<u8>>| group.iter().map(|name| [&mark[..], name].concat()).collect();
        names.extend(examined.links.into_iter().map(marked));
        *entries = Selected::Examined(examined.entries);
    }
    let named = roots.iter().map(|root| root.name.as_slice()).zip(digests);
    let digest = with_links(roots_digest(named), names);
    Ok(SelectedSource { selector, digest, roots, unpack: false })
}

/// The digest of a selection some of whose files have several names (docs/formats.md, section 6).
fn with_links(digest: Digest, mut groups: Vec<Vec<Vec<u8>>>) -> Digest {
    if groups.is_empty() {
        return digest;
    }
    groups.sort();
    let mut hasher = Hasher::new();
    hasher.update(b"kiln-links-1\n");
    hasher.update(digest.as_bytes());
    for group in groups {
        hasher.update(&(group.len() as u32).to_le_bytes());
        for name in group {
            hasher.update(&(name.len() as u32).to_le_bytes());
            hasher.update(&name);
        }
    }
    hasher.finish()
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
    let led = resolve_source(written, &base, source)?;
    if source.find(&led)?.is_none() {
        return Err(no_source(written, &base, &led, source));
    }
    let base = led;
    let mut matches = Vec::new();
    expand(source, &base, &components[first..], &mut matches)?;
    matches
        .iter()
        .map(|path| {
            let name = split(path).1.to_vec();
            // The pattern matched: what is missing is behind a symbolic link.
            let resolved = resolve_source("", path, source)?;
            if source.find(&resolved)?.is_none() {
                return Err(no_source("", path, &resolved, source));
            }
            Ok(SelectedRoot {
                name,
                content: RootContent::Tree { path: resolved, entries: Selected::Unread },
            })
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
        if glob_match(pattern, &String::from_utf8_lossy(&name))? {
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
        return Err(no_source(written, path, &resolved, source));
    }
    let name = split(path).1.to_vec();
    Ok(SelectedRoot { name, content: RootContent::Tree { path: resolved, entries: Selected::Unread } })
}

fn resolve_source(written: &str, path: &[u8], source: &dyn SourceTree) -> Result<Vec<u8>> {
    resolve_in(source, path, LastLink::Follow).map_err(|error| match error {
        Error::NotDirectory(_) => no_source(written, path, path, source),
        error => error,
    })
}

/// What is written as a source stands for `path`, from which symbolic links lead to `led`.
fn no_source(written: &str, path: &[u8], led: &[u8], source: &dyn SourceTree) -> Error {
    let absence = if source.hides(led) {
        Absence::Ignored
    } else if led != path {
        Absence::Link(shown(led))
    } else {
        other_case(path, source).map_or(Absence::Unexplained, Absence::OtherCase)
    };
    let path = if written.is_empty() { shown(path) } else { written.to_owned() };
    Error::NoSource { path, place: source.place(), absence }
}

/// What is there if case does not count: who develops where it does not finds out last.
fn other_case(path: &[u8], source: &dyn SourceTree) -> Option<String> {
    let folded = |name: &[u8]| String::from_utf8_lossy(name).to_lowercase();
    let mut found = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        let names = source.children(&found).ok()?;
        let as_written = names.iter().find(|known| known.as_slice() == name);
        let known = as_written.or_else(|| names.iter().find(|known| folded(known) == folded(name)))?;
        found = join(&found, known);
    }
    (found != path).then(|| String::from_utf8_lossy(&found).into_owned())
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::examine::tree_digest;
    use crate::image_tree::ImageTree;
    use crate::lab::{Image, Lab};

    fn names(lab: &Lab, path: &str) -> Vec<String> {
        let context = lab.open();
        let mut selected = select_mount(path, &context).expect(path);
        let entries = selected.roots[0].load(&context).expect(path);
        entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
    }

    fn digest(lab: &Lab, path: &str) -> Digest {
        let context = lab.open();
        let digest = select_mount(path, &context).expect(path).digest;
        context.save().expect("saved");
        digest
    }

    #[test]
    fn the_ignore_file_prunes() {
        let lab = Lab::new().context(&[
            ("a", "1"),
            ("secret", "2"),
            ("d/x", "3"),
            ("d/keep/y", "4"),
            ("d/keep/z", "5"),
            ("e/f/g", "6"),
            (".dockerignore", "secret\nd\n!d/keep/y\ne/**\n"),
        ]);
        assert_eq!(names(&lab, "/"), ["", ".dockerignore", "a", "d", "d/keep", "d/keep/y", "e"]);
        assert_eq!(names(&lab, "/d"), ["", "keep", "keep/y"]);
        let context = lab.open();
        for (path, hidden) in [("secret", true), ("/d/x", true), ("nowhere", false), ("a/b", false)] {
            match select_mount(path, &context) {
                Err(Error::NoSource { absence, .. }) => {
                    assert_eq!(absence == Absence::Ignored, hidden, "{path}");
                }
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_directory_by_itself_and_entries_give_one_digest() {
        let ignore = "e/**\nf\n!f/keep/x\n*.md\n";
        let lab = Lab::new().context(&[
            ("a", "1"),
            ("b.md", "2"),
            ("d/x", "3"),
            ("d/sub/y", "4"),
            ("d/sub/link", "->y"),
            ("d-/z", ""),
            ("e/g/h", "5"),
            ("f/keep/x", "6"),
            ("f/keep/y", "7"),
            ("f/gone/z", "8"),
            (".dockerignore", ignore),
        ]);
        let directory = lab.context_path().join("d");
        fs_err::hard_link(directory.join("x"), directory.join("sub/other")).expect("linked");
        rustix::fs::mkfifoat(rustix::fs::CWD, directory.join("pipe"), rustix::fs::Mode::RUSR).expect("made");
        age(&lab);
        std::thread::sleep(Duration::from_millis(2100));
        let excluded = Filter::new(&["sub/y".to_owned(), "d/x".to_owned()], None).expect("a filter");
        let included = Filter::new(&[], Some("**/y")).expect("a filter");
        // What nothing is known of, what is remembered in memory, and what is remembered on disk.
        for _ in 0..2 {
            let context = lab.open();
            for _ in 0..2 {
                for path in [&b""[..], b"d", b"d/sub", b"e", b"f", b"a", b"nowhere"] {
                    for filter in [&Filter::default(), &excluded, &included] {
                        let examined = context.examine(path, filter).expect("examined");
                        let (digest, links) = (examined.digest, examined.links);
                        let again = crate::examine::Examined::of(examined.entries.all());
                        assert_eq!((digest, &links), (again.digest, &again.links), "{path:?} {filter:?}");
                        if filter.is_empty() {
                            let linked = matches!(path, b"" | b"d");
                            assert_eq!(links.len(), usize::from(linked), "{path:?}");
                        }
                    }
                }
            }
            context.save().expect("saved");
        }
    }

    #[test]
    fn links_never_lead_out_of_the_context() {
        let lab = Lab::new();
        fs_err::write(lab.host.path().join("canary"), "secret").expect("written");
        let canary = lab.host.path().join("canary").display().to_string();
        let lab = lab.context(&[
            ("absolute", &format!("->{canary}")),
            ("up", "->../canary"),
            ("deep/up", "->../../../../../canary"),
            ("parent", "->.."),
            ("loop", "->loop"),
        ]);
        let context = lab.open();
        for path in ["absolute", "up", "deep/up", "parent/canary", "../canary"] {
            assert!(matches!(select_mount(path, &context), Err(Error::NoSource { .. })), "{path}");
        }
        assert!(matches!(select_mount("loop", &context), Err(Error::Loop(_))));
        // `..` stops at the context's root.
        assert_eq!(names(&lab, "parent"), names(&lab, "/"));
        fs_err::write(lab.context_path().join("canary"), "inside").expect("written");
        let inside = digest(&lab, "up");
        fs_err::write(lab.host.path().join("canary"), "changed").expect("written");
        assert_eq!(digest(&lab, "up"), inside);
    }

    #[test]
    fn sockets_are_no_part_of_the_context() {
        let lab = Lab::new().context(&[("f", "1")]);
        let _socket =
            std::os::unix::net::UnixListener::bind(lab.context_path().join("socket")).expect("bound");
        assert_eq!(names(&lab, "/"), ["", "f"]);
    }

    #[test]
    fn patterns_match_by_component() {
        let lab = Lab::new().context(&[
            ("a/x.txt", ""),
            ("b/x.txt", ""),
            ("b/y.md", ""),
            ("b/c/x.txt", ""),
            ("l", "->b"),
        ]);
        let context = lab.open();
        let found = |pattern: &str| {
            let roots = find_roots(pattern, &cleaned(pattern), &context).expect(pattern);
            let path = |root: &SelectedRoot| match &root.content {
                RootContent::Tree { path, .. } => String::from_utf8_lossy(path).into_owned(),
                RootContent::Inline(_) => panic!(),
            };
            roots.iter().map(path).collect::<Vec<_>>()
        };
        assert_eq!(found("*/x.txt"), ["a/x.txt", "b/x.txt"]);
        assert_eq!(found("[b]/*"), ["b/c", "b/x.txt", "b/y.md"]);
        assert_eq!(found("l/*.md"), ["b/y.md"]);
        assert_eq!(found("l*"), ["b"]);
        assert_eq!(found("*.none"), [""; 0]);
        assert!(find_roots("no/*", b"no/*", &context).is_err());
    }

    #[test]
    fn why_a_source_is_not_there() {
        let lab = Lab::new().context(&[
            ("Src/Main.c", ""),
            ("out", "->/etc/passwd"),
            ("to", "->Src"),
            ("secret", ""),
            (".dockerignore", "secret\n"),
        ]);
        let other = |path: &str| Absence::OtherCase(path.to_owned());
        for (path, expect) in [
            ("nowhere", Absence::Unexplained),
            ("Src/nowhere/x", Absence::Unexplained),
            ("Src/Main.c/x", Absence::Unexplained),
            ("secret", Absence::Ignored),
            ("Secret", Absence::Unexplained),
            ("src/main.C", other("Src/Main.c")),
            ("Src/main.c", other("Src/Main.c")),
            ("src/*.c", other("Src")),
            ("out", Absence::Link("/etc/passwd".to_owned())),
            ("to/x", Absence::Link("/Src/x".to_owned())),
        ] {
            match find_roots(path, &cleaned(path), &lab.open()) {
                Err(Error::NoSource { absence, .. }) => assert_eq!(absence, expect, "{path}"),
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn parents_are_no_links() {
        let lab = Lab::new().context(&[("d/e/f", ""), ("link", "->d"), ("d/last", "->e")]);
        for path in ["link/e", "link/e/f", "d/./last/f"] {
            match select_parents(path, &[], &lab.open()) {
                Err(Error::NoSource { absence, .. }) => assert_eq!(absence, Absence::BehindLink, "{path}"),
                other => panic!("{path}: {other:?}"),
            }
        }
        for path in ["link", "link/", "link/./e/f", "d/last", "d/e/f", "l*/e", "."] {
            select_parents(path, &[], &lab.open()).expect(path);
        }
    }

    #[test]
    fn what_a_pattern_matched_is_named_where_it_leads_nowhere() {
        let lab = Lab::new().context(&[("s/abs", "->/etc/passwd"), ("s/file", ""), ("s/on", "->file/x")]);
        for (pattern, named) in [("s/a*", "/s/abs"), ("s/o*", "/s/on"), ("no/*", "no/*")] {
            match find_roots(pattern, &cleaned(pattern), &lab.open()) {
                Err(Error::NoSource { path, .. }) => assert_eq!(path, named),
                other => panic!("{pattern}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_stored_digest_equals_a_walked_one() {
        let image = Image::default()
            .with(&[("d/", 0o755, ""), ("d/a", 0o644, "a"), ("d/s/", 0o700, ""), ("d/s/l", 0o777, "->a")])
            .with(&[("d/", 0o755, ""), ("d/s/", 0o711, ""), ("d/s/b", 0o600, "b")]);
        let view = image.view();
        let tree = ImageTree::new(&view, &image, "");
        for path in [&b""[..], b"d", b"d/s", b"d/a", b"d/s/l"] {
            let walked = tree.walk(path, &Filter::default()).expect("walked");
            assert_eq!(tree.stored_digest(path).expect("stored"), Some(tree_digest(&walked)));
        }
        // It is in cache keys.
        let whole = "d6f6fbf845be3a37de92fa9746b5146e9eb3cbe08eb78233913add5573de39a7";
        assert_eq!(view.content_digest(b"").expect("read").expect("a root").hex(), whole);
    }

    /// Makes everything in the context look old, so that the stat cache trusts it after one more second of patience.
    fn age(lab: &Lab) {
        let old = SystemTime::now() - Duration::from_secs(100);
        for entry in fs_err::read_dir(lab.context_path()).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                fs_err::File::open(&path).expect("opened").file().set_modified(old).expect("set");
            }
        }
    }

    #[test]
    fn equal_size_and_restored_time_do_not_fool_the_cache() {
        let lab = Lab::new().context(&[("f", "one"), ("g", "two")]);
        age(&lab);
        std::thread::sleep(Duration::from_millis(2100));
        let before = digest(&lab, "/");
        let cache = || {
            let name = fs_err::read_dir(lab.host.path().join("caches")).expect("listed").next();
            fs_err::read(name.expect("a cache").expect("an entry").path()).expect("read")
        };
        assert_eq!(cache().len(), 24 + 2 * 88, "settled files are remembered");
        assert_eq!(digest(&lab, "/"), before, "and found again");
        let path = lab.context_path().join("f");
        let time = fs_err::metadata(&path).expect("stat").modified().expect("a time");
        fs_err::write(&path, "eno").expect("written");
        fs_err::File::open(&path).expect("opened").file().set_modified(time).expect("set");
        let after = digest(&lab, "/");
        assert_ne!(after, before);
        fs_err::write(&path, "one").expect("written");
        assert_eq!(digest(&lab, "/"), before);
        // What is remembered is what decides: a forged record is believed, so the cache is really used.
        let mut bytes = cache();
        for record in bytes[24..].chunks_exact_mut(88) {
            record[87] ^= 1;
        }
        let name = fs_err::read_dir(lab.host.path().join("caches")).expect("listed").next();
        fs_err::write(name.expect("a cache").expect("an entry").path(), &bytes).expect("written");
        assert_ne!(digest(&lab, "/"), before);
    }

    #[derive(Clone, Debug)]
    enum Edit {
        Content(usize, u8),
        Mode(usize, u32),
        Rename(usize, usize),
        Link(usize, u8),
        Touch(usize),
        Ignored(u8),
        Unselected(u8),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            (0..4_usize, any::<u8>()).prop_map(|(file, byte)| Edit::Content(file, byte)),
            (0..4_usize, 0..8_u32).prop_map(|(file, bits)| Edit::Mode(file, 0o600 | bits)),
            (0..4_usize, 4..8_usize).prop_map(|(from, to)| Edit::Rename(from, to)),
            (4..8_usize, 0..3_u8).prop_map(|(name, target)| Edit::Link(name, target)),
            (0..4_usize).prop_map(Edit::Touch),
            any::<u8>().prop_map(Edit::Ignored),
            any::<u8>().prop_map(Edit::Unselected),
        ]
    }

    /// What the selected directory holds, as plainly as can be.
    fn content(lab: &Lab) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in fs_err::read_dir(lab.context_path().join("d")).expect("listed") {
            let path = entry.expect("an entry").path();
            let metadata = path.symlink_metadata().expect("stat");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name == "ignored" {
                continue;
            }
            lines.push(match fs_err::read_link(&path) {
                Ok(target) => format!("{name} -> {}", target.display()),
                Err(_) => {
                    let bytes = fs_err::read(&path).expect("read");
                    format!("{name} {:o} {bytes:?}", metadata.permissions().mode())
                }
            });
        }
        lines.sort();
        lines
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn the_digest_changes_with_the_selected_content_alone(edits in proptest::collection::vec(edit(), 1..12)) {
            let lab = Lab::new().context(&[
                ("d/0", "a"), ("d/1", "a"), ("d/2", "a"), ("d/3", "a"),
                ("d/ignored", "a"), ("other", "a"), (".dockerignore", "d/ignored"),
            ]);
            let path = |name: usize| lab.context_path().join("d").join(name.to_string());
            let mut known: Vec<(Vec<String>, Digest)> = vec![(content(&lab), digest(&lab, "d"))];
            for edit in edits {
                match edit {
                    Edit::Content(file, byte) if path(file).is_file() => {
                        let time = fs_err::metadata(path(file)).expect("stat").modified().expect("a time");
                        fs_err::write(path(file), [byte]).expect("written");
                        fs_err::File::open(path(file)).expect("opened").file().set_modified(time).expect("set");
                    }
                    Edit::Mode(file, mode) if path(file).is_file() => {
                        fs_err::set_permissions(path(file), std::fs::Permissions::from_mode(mode)).expect("set");
                    }
                    Edit::Rename(from, to) if path(from).is_file() => {
                        fs_err::rename(path(from), path(to)).expect("renamed");
                    }
                    Edit::Link(name, target) => {
                        let _ = fs_err::remove_file(path(name));
                        std::os::unix::fs::symlink(target.to_string(), path(name)).expect("linked");
                    }
                    Edit::Touch(file) if path(file).is_file() => {
                        let time = SystemTime::now() - Duration::from_secs(1000);
                        fs_err::File::open(path(file)).expect("opened").file().set_modified(time).expect("set");
                    }
                    Edit::Ignored(byte) => {
                        fs_err::write(lab.context_path().join("d/ignored"), [byte]).expect("written");
                    }
                    Edit::Unselected(byte) => {
                        fs_err::write(lab.context_path().join("other"), [byte]).expect("written");
                    }
                    _ => {}
                }
                let now = (content(&lab), digest(&lab, "d"));
                for before in &known {
                    prop_assert_eq!(before.0 == now.0, before.1 == now.1, "{:?} {:?}", before, now);
                }
                known.push(now);
            }
        }
    }
}
