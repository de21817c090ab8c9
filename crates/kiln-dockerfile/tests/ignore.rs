//! Ignore files and wildcards against tables.
#![allow(missing_docs)]

use kiln_dockerfile::{Error, IgnoreMatcher, clean_path, glob_match, has_wildcards};

/// Checks single look-ups, and that a walk that prunes agrees.
fn check(patterns: &str, path: &str, expect: bool) {
    let matcher = IgnoreMatcher::parse(patterns).expect(patterns);
    assert_eq!(matcher.is_ignored(path), expect, "{patterns:?} {path}");
    assert_eq!(walk(&matcher, path), expect, "walking {patterns:?} {path}");
}

fn walk(matcher: &IgnoreMatcher, path: &str) -> bool {
    let mut state = matcher.root();
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        state = matcher.child(&state, &path[..end]);
        let below = end < path.len();
        if below && state.is_ignored() && !matcher.may_include_below(&path[..end]) {
            return true;
        }
    }
    state.is_ignored()
}

#[test]
fn anchoring() {
    check("*.pyc", "a.pyc", true);
    check("*.pyc", "d/a.pyc", false);
    check("**/*.pyc", "a.pyc", true);
    check("**/*.pyc", "d/e/a.pyc", true);
    check("node_modules", "node_modules/a/b", true);
    check("node_modules", "x/node_modules/a", false);
    check("**/node_modules", "x/node_modules/a", true);
    check("**/node_modules", "node_modules", true);
    check("**/node_modules", "xnode_modules", false);
    check("/a", "a", true);
    check("a/", "a", true);
    check("a/", "a/b", true);
    check("./a/../b", "b", true);
    check("..", "a", false);
    check(".", "a", false);
    check("/", "a", false);
}

#[test]
fn wildcards() {
    check("*", "a/b/c", true);
    check("**", "a/b/c", true);
    check("a?c", "abc", true);
    check("a?c", "a/c", false);
    check("a*c", "a/c", false);
    check("[a-c]x", "bx", true);
    check("[^a-c]x", "bx", false);
    check("[^a-c]x", "dx", true);
    check("\\*", "*", true);
    check("\\*", "a", false);
    check("a.b", "axb", false);
    check("a+(b)|{c}$", "a+(b)|{c}$", true);
    check("dir/**", "dir", false);
    check("dir/**", "dir/a/b", true);
    check("dir/**/f", "dir/f", true);
    check("dir/**/f", "dir/a/b/f", true);
    check("dir/**/f", "dirf", false);
    check("a**", "abc", true);
    check("**x", "a/bx", true);
    check("**/a/**/b", "x/a/y/z/b", true);
    check("**/a/**/b", "a/b", true);
    check("**/*.c", "d/x.h", false);
    check("*/*/x", "a/b/x", true);
    check("ä?", "äö", true);
}

#[test]
fn exclusions() {
    check("*\n!keep", "keep", false);
    check("*\n!keep", "other", true);
    check("*\n!d/keep", "d/keep", false);
    check("*\n!d/keep", "d/other", true);
    check("d\n!d/a\nd/a/b", "d/a/b", true);
    check("d\n!d/a\nd/a/b", "d/a/c", false);
    check("!keep\n*", "keep", true);
    check("**/*.md\n!README.md", "README.md", false);
    check("**/*.md\n!README.md", "d/README.md", true);
    check("**\n!**/*.rs", "a/b/c.rs", false);
    check("*\n! d/keep ", "d/keep", false);
    check("*\n!/d", "d/x", false);
}

#[test]
fn files() {
    let text = "\u{feff}# comment\n\n  a  \n #b\r\n!c/\n/d/e/\r\n";
    let matcher = IgnoreMatcher::parse(text).expect("valid");
    assert_eq!(matcher.patterns().collect::<Vec<_>>(), ["a", "#b", "!c", "d/e"]);
    assert!(matcher.has_exclusions());
    assert!(IgnoreMatcher::parse("\n#x\n").expect("valid").is_empty());
}

#[test]
fn malformed_patterns_are_errors() {
    assert_eq!(IgnoreMatcher::parse("!\n").expect_err("empty"), Error::EmptyExclusion);
    for pattern in ["a[", "a[]b", "a\\", "[a-", "[-x]", "\\q"] {
        let error = IgnoreMatcher::new([pattern]).expect_err(pattern);
        assert_eq!(error, Error::Pattern { pattern: pattern.to_owned() });
    }
}

#[test]
fn pruning() {
    fn check(patterns: &[&str], directory: &str, expect: bool) {
        let matcher = IgnoreMatcher::new(patterns).expect("valid");
        assert_eq!(matcher.may_include_below(directory), expect, "{patterns:?} {directory}");
    }
    check(&["*"], "a", false);
    check(&["*", "!a/b"], "a", true);
    check(&["*", "!a/b"], "b", false);
    check(&["*", "!a/b"], "a/b", false);
    check(&["*", "!a/*/c"], "a/x", true);
    check(&["*", "!a/*/c"], "b/x", false);
    check(&["*", "!a/*/c"], "a/x/c", false);
    check(&["*", "!**/x"], "anything/at/all", true);
    check(&["*", "!a/**"], "a/b", true);
    check(&["*", "!a/**"], "b", false);
    check(&["*", "!a?/**/x"], "ab/c/d", true);
    check(&["*", "!a?/**/x"], "a/c/d", false);
}

#[test]
fn names_that_are_not_utf8() {
    let matcher = IgnoreMatcher::new(["*.o"]).expect("valid");
    assert!(matcher.is_ignored(b"\xff\xfe.o"));
    assert!(!matcher.is_ignored(b"\xff\xfe.c"));
}

#[test]
fn many_files_are_fast() {
    let patterns = "**/node_modules\n**/*.pyc\n.git\n*.log\nbuild/**\n**/__pycache__\n!keep.log\n**/*~\n**/.*.sw?\ndocs/**/*.tmp\n";
    let matcher = IgnoreMatcher::parse(patterns).expect("valid");
    let started = std::time::Instant::now();
    let mut ignored = 0;
    for directory in 0..2_000 {
        let name = format!("source/package{directory}/module");
        let state = matcher.child(&matcher.root(), &name);
        for file in 0..100 {
            let extension = if file % 10 == 0 { "pyc" } else { "py" };
            ignored +=
                usize::from(matcher.child(&state, format!("{name}/file{file}.{extension}")).is_ignored());
        }
    }
    assert_eq!(ignored, 20_000);
    // Two orders above what it takes, so that a busy machine does not fail it.
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

/// Of many patterns without wildcards, or with none but `**/` before them, only those are asked that match, and those that did
/// above.
#[test]
fn many_patterns_are_fast() {
    let patterns: String = (0..50_000).map(|number| format!("source/file{number}\n")).collect();
    let matcher =
        IgnoreMatcher::parse(format!("{patterns}*.log\nsource/old\n!source/old/keep\n!source/file7\n"));
    let matcher = matcher.expect("valid");
    let started = std::time::Instant::now();
    let source = matcher.child(&matcher.root(), "source");
    for number in (0..100_000).filter(|number| *number != 7) {
        let state = matcher.child(&source, format!("source/file{number}"));
        assert_eq!(state.is_ignored(), number < 50_000, "{number}");
    }
    assert!(!matcher.child(&source, "source/file7").is_ignored());
    let old = matcher.child(&source, "source/old");
    assert!(old.is_ignored() && matcher.child(&old, "source/old/a").is_ignored());
    assert!(!matcher.child(&old, "source/old/keep").is_ignored());
    let suffixes: String = (0..50_000).map(|number| format!("**/d/file{number}\n")).collect();
    let matcher = IgnoreMatcher::parse(format!("{suffixes}!a/d/file7\n")).expect("valid");
    let directory = matcher.child(&matcher.root(), "a/d");
    for number in (0..100_000).filter(|number| *number != 7) {
        assert!(!matcher.child(&directory, format!("a/file{number}")).is_ignored());
        let state = matcher.child(&directory, format!("a/d/file{number}"));
        assert_eq!(state.is_ignored(), number < 50_000, "{number}");
    }
    assert!(!matcher.child(&directory, "a/d/file7").is_ignored());
    assert!(matcher.child(&matcher.root(), "d/file7").is_ignored());
    assert!(!matcher.child(&matcher.root(), "xd/file7").is_ignored());
    // Asking all of them takes minutes on a fast machine.
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn globs() {
    fn check(pattern: &str, path: &str, expect: Option<bool>) {
        assert_eq!(glob_match(pattern, path).ok(), expect, "{pattern} {path}");
    }
    check("abc", "abc", Some(true));
    check("*", "abc", Some(true));
    check("*", "a/b", Some(false));
    check("a*/b", "abc/b", Some(true));
    check("a*/b", "a/c/b", Some(false));
    check("a*b*c*d", "axbxcxd", Some(true));
    check("a*b?c*x", "abxbbxdbxebxczzx", Some(true));
    check("a*b?c*x", "abxbbxdbxebxczzy", Some(false));
    check("ab[c-e]", "abd", Some(true));
    check("ab[^e-g]", "abf", Some(false));
    check("a\\*b", "a*b", Some(true));
    check("[\\]a]", "]", Some(true));
    check("[x\\-]", "-", Some(true));
    check("a?b", "a/b", Some(false));
    check("[]a]", "]", None);
    check("[-]", "-", None);
    check("[a-b-c]", "a", None);
    check("[", "a", None);
    check("a[", "a", None);
    check("\\", "a", None);
    check("a[", "ab", None);
    check("a*[", "b", None);
    check("a*b*[]", "", None);
    check("a*b*c", "b", Some(false));
    check("*x", "xxx", Some(true));
    check("*.go", "한.go", Some(true));
    assert!(has_wildcards("a*") && has_wildcards("[a]") && has_wildcards("?") && !has_wildcards("a\\*b"));
}

#[test]
fn cleaning() {
    for (path, expect) in [
        ("", "."),
        ("a//b/./c/", "a/b/c"),
        ("a/../b", "b"),
        ("../../a", "../../a"),
        ("/../a", "/a"),
        ("/", "/"),
        ("a/..", "."),
    ] {
        assert_eq!(clean_path(path), expect, "{path}");
    }
}

#[test]
fn malformed_patterns_are_refused() {
    for pattern in ["a[", "[", "[]", "[-]", "[^]", "*[", "d/[", "a*[", "!b[", "x\\"] {
        let found = IgnoreMatcher::parse(format!("fine\n{pattern}\n"));
        assert!(matches!(found, Err(Error::Pattern { .. })), "{pattern}: {found:?}");
    }
}
