//! Word expansion against tables of (word, result).
#![allow(missing_docs)]

use kiln_dockerfile::{Error, ExpandFailure, Expander, Kind, MAX_NESTING, NoVariables, parse};

fn environment() -> Vec<String> {
    [
        "HOME=/root",
        "NAME=kiln",
        "EMPTY=",
        "UTF=한국어",
        "TWO=one  two",
        "EDGES= a b ",
        "STARS=*.*",
        "URL=http://a/b/c.txt",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn check(word: &str, expect: Result<&str, ()>) {
    let got = Expander::new('\\').word(word, &environment());
    assert_eq!(got.map(|expansion| expansion.text).map_err(|_| ()), expect.map(str::to_owned), "{word}");
}

fn check_words(word: &str, expect: &[&str]) {
    let got = Expander::new('\\').words(word, &environment()).expect(word);
    assert_eq!(got, expect, "{word}");
}

#[test]
fn quotes_and_escapes() {
    for (word, expect) in [
        ("plain", Ok("plain")),
        ("a'b c'd", Ok("ab cd")),
        ("a\"b c\"d", Ok("ab cd")),
        ("it's", Err(())),
        ("it\\'s", Ok("it's")),
        ("it\\\\'s", Err(())),
        ("a\\tb", Ok("atb")),
        ("\"a\\tb\"", Ok("a\\tb")),
        ("\"a\\\\tb\"", Ok("a\\tb")),
        ("'a\\tb'", Ok("a\\tb")),
        ("tail\\", Ok("tail")),
        ("tail\\\\", Ok("tail\\")),
        ("\"open", Err(())),
        ("\"open\\\"", Err(())),
        ("'closed\\'", Ok("closed\\")),
        ("\"''\"", Ok("''")),
        ("'\"x\"'", Ok("\"x\"")),
        ("ü'ö ä'", Ok("üö ä")),
        ("\"a\\", Err(())),
    ] {
        check(word, expect);
    }
}

#[test]
fn variables() {
    for (word, expect) in [
        ("$NAME", Ok("kiln")),
        ("x$NAME.y", Ok("xkiln.y")),
        ("x${NAME}y", Ok("xkilny")),
        ("$NAMEy", Ok("")),
        ("$UTF!", Ok("한국어!")),
        ("\\$NAME", Ok("$NAME")),
        ("\\\\$NAME", Ok("\\kiln")),
        ("\"\\$NAME $NAME\"", Ok("$NAME kiln")),
        ("'$NAME'", Ok("$NAME")),
        ("$", Ok("$")),
        ("$.", Ok("$.")),
        ("a$1b", Ok("ab")),
        ("$123b", Ok("b")),
        ("$@x$*y$#z$?$-$!$$", Ok("xyz")),
        ("${1:-one}", Ok("one")),
        ("${@:-at}", Ok("at")),
        ("${", Err(())),
        ("${}", Err(())),
        ("${{NAME}}", Err(())),
        ("${:-x}", Err(())),
        ("${.}", Err(())),
        ("${NAME", Err(())),
        ("${NAME}}", Ok("kiln}")),
        ("\\${NAME}", Ok("${NAME}")),
        ("a<b<<c", Ok("a<b<<c")),
    ] {
        check(word, expect);
    }
}

#[test]
fn defaults_and_alternatives() {
    for (word, expect) in [
        ("${NONE-d}", Ok("d")),
        ("${NONE:-d}", Ok("d")),
        ("${EMPTY-d}", Ok("")),
        ("${EMPTY:-d}", Ok("d")),
        ("${NAME-d}", Ok("kiln")),
        ("${NAME:-d}", Ok("kiln")),
        ("${NONE+a}", Ok("")),
        ("${EMPTY+a}", Ok("a")),
        ("${EMPTY:+a}", Ok("")),
        ("${NAME:+a}", Ok("a")),
        ("${NONE:-${NAME:+$HOME}}", Ok("/root")),
        ("${NONE:-${ALSO:-c d}}", Ok("c d")),
        ("${NONE:-a b {c}", Ok("a b {c")),
        ("${NONE:-\\$NAME:}", Ok("$NAME:")),
        ("${NONE:-\"a}b\"}", Ok("a}b")),
        ("${NAME:+$NAME:}x", Ok("kiln:x")),
        ("${NAME=x}", Err(())),
        ("${NAME:=x}", Err(())),
        ("${NAME:x}", Err(())),
        ("${NONE:-a ${NAME}", Err(())),
    ] {
        check(word, expect);
    }
}

#[test]
fn required_variables() {
    fn message(word: &str) -> String {
        Expander::new('\\').word(word, &environment()).expect_err(word).to_string()
    }
    check("${NAME?}", Ok("kiln"));
    check("${EMPTY?}", Ok(""));
    check("${NAME:?no}", Ok("kiln"));
    assert_eq!(message("${NONE?}"), "failed to process \"${NONE?}\": NONE: is not allowed to be unset");
    assert_eq!(message("${EMPTY:?}"), "failed to process \"${EMPTY:?}\": EMPTY: is not allowed to be empty");
    assert_eq!(message("${NONE:?set $NAME}"), "failed to process \"${NONE:?set $NAME}\": NONE: set kiln");
}

#[test]
fn trimming() {
    for (word, expect) in [
        ("${URL#*/}", Ok("/a/b/c.txt")),
        ("${URL##*/}", Ok("c.txt")),
        ("${URL%/*}", Ok("http://a/b")),
        ("${URL%%/*}", Ok("http:")),
        ("${URL%.txt}", Ok("http://a/b/c")),
        ("${URL#x}", Ok("http://a/b/c.txt")),
        ("${URL#}", Ok("http://a/b/c.txt")),
        ("${NAME#?}", Ok("iln")),
        ("${NAME%%?n}", Ok("ki")),
        ("${STARS#\\*}", Ok(".*")),
        ("${STARS%\\*}", Ok("*.")),
        ("${STARS##*}", Ok("")),
        ("${STARS#\\x}", Err(())),
        ("${NAME:#k}", Err(())),
        ("${NAME:%%n}", Err(())),
        ("${NONE#a}", Ok("")),
        ("${UTF%어}", Ok("한국")),
        ("${URL#$NONE}", Ok("http://a/b/c.txt")),
    ] {
        check(word, expect);
    }
}

#[test]
fn replacing() {
    for (word, expect) in [
        ("${URL/http/https}", Ok("https://a/b/c.txt")),
        ("${URL/\\//_}", Ok("http:_/a/b/c.txt")),
        ("${URL//\\//_}", Ok("http:__a_b_c.txt")),
        ("${NAME/?/}", Ok("iln")),
        ("${NAME//?/x}", Ok("xxxx")),
        ("${NAME//i*/}", Ok("k")),
        ("${NAME/}", Err(())),
        ("${NAME/x}", Err(())),
        ("${NAME///}", Ok("kiln")),
        ("${NAME//n/[\\$0]}", Ok("kil[\\n]")),
        ("${NONE/a/b}", Ok("")),
        ("${STARS//\\*/s}", Ok("s.s")),
        ("${NAME/$EMPTY/>}", Ok(">kiln")),
        ("${NAME//$EMPTY/>}", Ok(">k>i>l>n>")),
    ] {
        check(word, expect);
    }
}

#[test]
fn splitting() {
    for (word, expect) in [
        ("a b", &["a", "b"][..]),
        ("a\\ b", &["a b"]),
        ("'a b' c", &["a b", "c"]),
        ("x${TWO}y", &["xone", "twoy"]),
        ("x\"$TWO\"y", &["xone  twoy"]),
        ("x$EDGES", &["x", "a", "b"]),
        ("${EDGES}y", &["a", "b", "y"]),
        ("\"$EDGES\"", &[" a b "]),
        ("", &[]),
        ("$EMPTY", &[]),
        // BuildKit forgets what stands before a substitution with a word in it.
        ("80${NONE:-81}/tcp", &["81/tcp"]),
    ] {
        check_words(word, expect);
    }
}

#[test]
fn other_escape_character() {
    let expander = Expander::new('`');
    assert_eq!(expander.word("a`$NAME\\$NAME", &environment()).expect("valid").text, "a$NAME\\kiln");
}

#[test]
fn lookups_are_reported() {
    let expansion = Expander::new('\\').word("$NAME ${NONE:-$HOME} '$X'", &environment()).expect("valid");
    assert_eq!(expansion.used.iter().map(String::as_str).collect::<Vec<_>>(), ["HOME", "NAME"]);
    assert_eq!(expansion.unset.iter().map(String::as_str).collect::<Vec<_>>(), ["NONE"]);
}

#[test]
fn heredoc_bodies_keep_their_quotes() {
    let text =
        Expander::for_heredoc_body().word("it's \"$NAME\" \\$HOME\n", &environment()).expect("valid").text;
    assert_eq!(text, "it's \"kiln\" $HOME\n");
}

#[test]
fn display_leaves_quotes_and_unset_variables() {
    let text =
        Expander::for_display('\\').word("echo \"$NAME\" ${NONE:-x} $Y", &environment()).expect("valid").text;
    assert_eq!(text, "echo \"kiln\" ${NONE:-x} $Y");
}

#[test]
fn nesting_is_capped() {
    let deep = format!("{}x{}", "${A:-".repeat(MAX_NESTING + 1), "}".repeat(MAX_NESTING + 1));
    let error = Expander::new('\\').word(&deep, &NoVariables).expect_err("too deep");
    assert!(matches!(error, Error::Expand { reason: ExpandFailure::TooDeep { .. }, .. }), "{error}");
    let fine = format!("{}x{}", "${A:-".repeat(100), "}".repeat(100));
    assert_eq!(Expander::new('\\').word(&fine, &NoVariables).expect("not too deep").text, "x");
}

#[test]
fn doubling_variables_end_with_an_error() {
    let mut environment = vec!["A=0123456789".to_owned()];
    let expander = Expander::new('\\');
    let end = (0..64).find_map(|_| match expander.word("$A$A", &environment) {
        Ok(expansion) => {
            environment = vec![format!("A={}", expansion.text)];
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(end, Some(Error::Expand { reason: ExpandFailure::TooLarge { .. }, .. })));
    let big = vec![format!("A={}", "y".repeat(1 << 16))];
    let refused = |word: String| {
        let error = expander.word(&word, &big).expect_err("too large");
        assert!(matches!(error, Error::Expand { reason: ExpandFailure::TooLarge { .. }, .. }), "{error}");
    };
    refused(format!("${{A//?/{}}}", "x".repeat(4096)));
    refused(format!("\"{}\"", "$A".repeat(1000)));
}

/// Each word alone is not too large.
#[test]
fn the_words_of_one_instruction_are_bounded_together() {
    let environment = [format!("A={}", "y".repeat(1 << 20))];
    let expand = |line: &str| {
        let parsed = parse(format!("FROM scratch\n{line}\n"));
        assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
        parsed.dockerfile.stages[0].instructions[0]
            .kind
            .expand(&Expander::new('\\'), &environment[..])
            .map(drop)
    };
    for (start, word, end) in
        [("LABEL", " a=\"$A\"", ""), ("RUN --mount=type=tmpfs,target=/", ",target=/$A", " x")]
    {
        expand(&format!("{start}{}{end}", word.repeat(10))).expect("not too much");
        let error = expand(&format!("{start}{}{end}", word.repeat(100))).expect_err("too much");
        let Error::At { error, .. } = error else { panic!("{error}") };
        assert!(matches!(*error, Error::Expand { reason: ExpandFailure::TooMuch { .. }, .. }), "{error}");
    }
}

#[test]
fn instructions_expand_their_own_words_only() {
    fn check(line: &str, expect: &str) {
        let parsed = parse(format!("FROM scratch\n{line}\n"));
        assert!(!parsed.has_errors(), "{line}: {:?}", parsed.diagnostics);
        let kind = &parsed.dockerfile.stages[0].instructions[0].kind;
        let environment: Vec<String> = ["A=x y", "P=80 443", "T=cache"].map(str::to_owned).to_vec();
        let expanded = kind.expand(&Expander::new('\\'), &environment).expect(line);
        let shown = match &expanded.kind {
            Kind::Env(pairs) => kiln_dockerfile::history::env(pairs),
            Kind::Copy(copy) => kiln_dockerfile::history::copy(copy),
            Kind::Expose(words) => format!("{:?}", words.iter().map(|word| &word.text).collect::<Vec<_>>()),
            Kind::User(word) | Kind::StopSignal(word) | Kind::Workdir(word) => word.text.clone(),
            Kind::Volume(words) => kiln_dockerfile::history::volume(words),
            Kind::Run(_) => format!("{:?} {}", expanded.mounts[0].mount_type, expanded.mounts[0].target),
            other => format!("{other:?}"),
        };
        assert_eq!(shown, expect, "{line}");
    }
    check("ENV B=$A C=\"$B\"", "ENV B=x y C=");
    check("ENV B a $A", "ENV B=a x y");
    check("COPY --chown=$A --from=other \"$A\" '$A' /d/$A/", "COPY --chown=x y x y $A /d/x y/ # buildkit");
    check("EXPOSE $P 53/udp", "[\"80\", \"443\", \"53/udp\"]");
    check("USER $A", "x y");
    check("STOPSIGNAL ${S:-SIGTERM}", "SIGTERM");
    check("VOLUME /a $A", "VOLUME [/a x y]");
    check("RUN --mount=type=$T,target=/c/$P true", "Cache /c/80 443");
}
