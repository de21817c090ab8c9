//! Which paths below a directory are wanted: several ignore rules at once.

use kiln_dockerfile::{IgnoreMatcher, IgnoreState};

use crate::error::Result;

/// Rules that must all let a path through. Each is relative to the directory that is walked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    rules: Vec<IgnoreMatcher>,
}

/// What the rules say of one path; a directory's serves what is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterState(Vec<IgnoreState>);

/// Whether a path is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Yes,
    /// No, but something below it may be.
    Below,
    No,
}

impl Filter {
    /// Leaves out what `exclude` matches and, if there is an `include`, what it does not match (`COPY --exclude`,
    /// `COPY --parents`).
    pub(crate) fn new(exclude: &[String], include: Option<&str>) -> Result<Self> {
        let mut rules = Vec::new();
        if !exclude.is_empty() {
            rules.push(IgnoreMatcher::new(exclude)?);
        }
        if let Some(include) = include {
            // Everything is ignored but what the pattern takes back.
            let mut patterns = vec!["**".to_owned()];
            if !include.is_empty() {
                patterns.push(format!("!{include}"));
            }
            rules.push(IgnoreMatcher::new(patterns)?);
        }
        Ok(Self { rules })
    }

    /// Whether everything is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The state of the walked directory itself.
    pub(crate) fn root(&self) -> FilterState {
        FilterState(self.rules.iter().map(IgnoreMatcher::root).collect())
    }

    /// What the rules say of `path`, whose directory has the state `parent`.
    pub(crate) fn child(
        &self,
        parent: &FilterState,
        path: &[u8],
        is_directory: bool,
    ) -> (Wanted, FilterState) {
        let mut state = FilterState(Vec::with_capacity(self.rules.len()));
        let mut wanted = Wanted::Yes;
        for (rule, parent) in self.rules.iter().zip(&parent.0) {
            let child = rule.child(parent, path);
            if child.is_ignored() {
                let enter = wanted != Wanted::No && is_directory && rule.may_include_below(path);
                wanted = if enter { Wanted::Below } else { Wanted::No };
            }
            state.0.push(child);
        }
        (wanted, state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(exclude: &[&str], include: Option<&str>, path: &str, expect: Wanted) {
        let exclude: Vec<String> = exclude.iter().map(ToString::to_string).collect();
        let filter = Filter::new(&exclude, include).expect("patterns");
        let mut state = filter.root();
        let mut wanted = Wanted::Yes;
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let is_directory = end < path.len() || path.ends_with('/');
            (wanted, state) = filter.child(&state, &path.as_bytes()[..end], is_directory);
            if end + 1 == path.len() {
                break;
            }
        }
        assert_eq!(wanted, expect, "{exclude:?} {include:?} {path}");
    }

    #[test]
    fn rules_agree() {
        check(&[], None, "a", Wanted::Yes);
        check(&["*.md"], None, "a.md", Wanted::No);
        check(&["*.md"], None, "d/a.md", Wanted::Yes);
        check(&["d", "!d/keep"], None, "d/", Wanted::Below);
        check(&["d", "!d/keep"], None, "d/keep", Wanted::Yes);
        check(&["d"], None, "d/", Wanted::No);
        check(&[], Some("d/sub/two"), "d/", Wanted::Below);
        check(&[], Some("d/sub/two"), "e/", Wanted::No);
        check(&[], Some("d/sub/two"), "d/sub/two", Wanted::Yes);
        check(&[], Some("d/sub"), "d/sub/below/it", Wanted::Yes);
        check(&[], Some("**/two"), "d/sub/", Wanted::Below);
        check(&[], Some("**/two"), "d/sub/two", Wanted::Yes);
        check(&["d/sub"], Some("**/two"), "d/sub/two", Wanted::No);
        check(&[], Some(""), "d", Wanted::No);
    }
}
