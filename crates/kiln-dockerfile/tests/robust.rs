//! Nothing panics, whatever the bytes; spans stay inside the text.
#![allow(missing_docs)]

use kiln_dockerfile::{
    Expander, IgnoreMatcher, NoVariables, Span, glob_match, parse, parse_duration, parse_port, parse_signal,
    parse_size, parse_trigger, render_all,
};
use proptest::prelude::*;

const SEED: &str = "# syntax=docker/dockerfile:1\n# escape=\\\nARG A=1 B\nFROM --platform=$P a:${A:-x} AS s\n\
ENV X=\"a b\" Y='c' Z=\\$d\nRUN --mount=type=cache,target=/x,sharing=locked \\\n  # c\n\n  echo ${X%%a*}\n\
COPY --from=s --chown=1:1 [\"a b\", \"/c\"]\nRUN <<EOF cat <<-'Q' > /x\n1\nEOF\n\t2\n\tQ\nONBUILD RUN <<E\n1\nE\n\
HEALTHCHECK --interval=1m30s CMD [\"x\"]\nEXPOSE 80-90/udp ${PORT}\nLABEL a b\nVOLUME [\"/é\"]\nSHELL [\"s\"]\n\
STOPSIGNAL TERM\nUSER u\nWORKDIR /w\nCMD a\nENTRYPOINT []\nADD --unpack https://x/y /z\n";

fn exercise(bytes: &[u8]) {
    let parsed = parse(bytes);
    let source = &parsed.dockerfile.source;
    for diagnostic in &parsed.diagnostics {
        let span = diagnostic.span;
        assert!(span.start <= span.end && span.end <= source.len(), "{diagnostic:?}");
        assert!(source.is_char_boundary(span.start) && source.is_char_boundary(span.end), "{diagnostic:?}");
    }
    let _ = render_all(&parsed.diagnostics, "Dockerfile", source);
    let expander = Expander::new(parsed.dockerfile.directives.escape);
    for instruction in parsed.dockerfile.stages.iter().flat_map(|stage| &stage.instructions) {
        let span = instruction.span;
        assert!(source.get(span.start..span.end).is_some() && span.line <= span.end_line, "{instruction:?}");
        let word = &instruction.keyword;
        assert_eq!(
            source[word.span.start..word.span.start + 1].to_lowercase(),
            word.text[..1].to_lowercase()
        );
        let _ = instruction.kind.expand(&expander, &NoVariables);
        if let kiln_dockerfile::Kind::Run(run) = &instruction.kind {
            let _ = run.program(&[]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        exercise(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse_trigger(&text, Span::default());
        let _ = IgnoreMatcher::parse(&bytes);
        let _ = (parse_duration(&text), parse_port(&text), parse_signal(&text), parse_size(&text));
    }

    #[test]
    fn mutated_files(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4_u8), 1..12)) {
        let mut bytes = SEED.as_bytes().to_vec();
        for (at, other, edit) in edits {
            let at = at.index(bytes.len());
            let other = other.index(bytes.len());
            match edit {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, bytes[other]),
                2 => bytes.swap(at, other),
                _ => bytes.truncate(at.max(12)),
            }
        }
        exercise(&bytes);
    }

    #[test]
    fn any_word(word in "[$\\{\\}A-C:+?#%/*\\\\'\" <0-9é-]{0,40}") {
        let environment = vec!["A=x/y.z".to_owned(), "B=".to_owned()];
        for expander in [Expander::new('\\'), Expander::new('`'), Expander::for_heredoc_body(), Expander::for_display('\\')] {
            let _ = expander.word(&word, &environment);
        }
    }

    #[test]
    fn walks_agree_with_full_look_ups(
        patterns in proptest::collection::vec("!?(a|b|\\*|\\*\\*|\\?|\\[ab\\])(/(a|b|c|\\*|\\*\\*)){0,2}", 1..4),
        path in "[abc](/[abc]){0,3}",
    ) {
        let matcher = IgnoreMatcher::new(&patterns).expect("well formed");
        // With so many suffixes all of them are looked up.
        let others = (0..40).map(|number| format!("**/other{number}"));
        let many = IgnoreMatcher::new(patterns.iter().cloned().chain(others)).expect("well formed");
        prop_assert_eq!(many.is_ignored(&path), matcher.is_ignored(&path));
        let (mut state, mut same) = (matcher.root(), many.root());
        let mut pruned = false;
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            state = matcher.child(&state, &path[..end]);
            same = many.child(&same, &path[..end]);
            prop_assert_eq!(&same, &state);
            pruned |= end < path.len() && state.is_ignored() && !matcher.may_include_below(&path[..end]);
        }
        // What a walk does not enter would have been ignored.
        prop_assert!(!pruned || state.is_ignored());
        if !matcher.has_exclusions() {
            prop_assert_eq!(state.is_ignored(), matcher.is_ignored(&path));
        }
    }

    #[test]
    fn any_glob(pattern in "[ab*?\\[\\]^\\\\/-]{0,12}", path in "[ab/]{0,12}") {
        let _ = glob_match(&pattern, &path);
        if let Ok(matcher) = IgnoreMatcher::new([&pattern]) {
            let _ = (matcher.is_ignored(&path), matcher.may_include_below(&path));
        }
    }
}
