//! Trees and diagnostics of whole files.
#![allow(missing_docs)]

use kiln_dockerfile::{
    CommandLine, CopySource, Diagnostic, GitSource, Healthcheck, Kind, Network, PairForm, Parsed, Security,
    Severity, SourceKind, Span, StageNames, context_kind, parse, parse_trigger, render, source_kind,
};

fn good(text: &str) -> Parsed {
    let parsed = parse(text);
    assert!(!parsed.has_errors(), "{text}\n{:?}", parsed.diagnostics);
    parsed
}

/// The kinds of the first stage's instructions.
fn kinds(text: &str) -> Vec<Kind> {
    let parsed = good(text);
    parsed.dockerfile.stages[0].instructions.iter().map(|instruction| instruction.kind.clone()).collect()
}

fn shell(text: &str) -> String {
    match kinds(text).remove(0) {
        Kind::Run(run) => match run.command {
            CommandLine::Shell(word) => word.text,
            CommandLine::Exec(words) => {
                format!("{:?}", words.iter().map(|word| &word.text).collect::<Vec<_>>())
            }
        },
        other => panic!("{other:?}"),
    }
}

/// `line:column message` of all errors, or of all warnings.
fn found(text: &str, severity: Severity) -> Vec<String> {
    let of_kind = |diagnostic: &&Diagnostic| diagnostic.severity == severity;
    let show = |diagnostic: &Diagnostic| {
        let hint = diagnostic.hint.as_deref().map(|hint| format!(" [{hint}]")).unwrap_or_default();
        format!("{}:{} {}{hint}", diagnostic.span.line, diagnostic.span.column, diagnostic.message)
    };
    parse(text).diagnostics.iter().filter(of_kind).map(show).collect()
}

fn check_errors(text: &str, expect: &[&str]) {
    assert_eq!(found(text, Severity::Error), expect, "{text}");
}

fn check_warnings(text: &str, expect: &[&str]) {
    assert_eq!(found(text, Severity::Warning), expect, "{text}");
}

#[test]
fn continuation_lines() {
    for (text, expect) in [
        ("a \\\n  b", "a   b"),
        ("a\\\nb", "ab"),
        ("a \\  \nb", "a b"),
        ("a \\\n# comment\nb", "a b"),
        ("a \\\n   # comment \\\nb", "a b"),
        ("a \\\n\n\nb", "a b"),
        ("a \\\n b \\\n c", "a  b  c"),
        ("a \\\\\nRUN b", "a \\\\"),
        ("a \\", "a"),
        ("a \\\n", "a"),
        ("a # no comment", "a # no comment"),
        ("a \\\r\n b\r\n", "a  b"),
        ("\\\na", "a"),
        ("a\\b", "a\\b"),
    ] {
        assert_eq!(shell(&format!("FROM scratch\nRUN {text}")), expect, "{text:?}");
    }
    assert_eq!(shell("FROM scratch\n  RUN  a  b  \n"), "a  b");
    assert_eq!(shell("FROM scratch\nRUN\\\n a"), "a");
}

#[test]
fn json_forms() {
    for (text, expect) in [
        (r#"["a", "b c"]"#, r#"["a", "b c"]"#),
        (r#"[ "a" ]"#, r#"["a"]"#),
        ("[]", "[]"),
        ("['a']", "['a']"),
        (r#"["a""#, r#"["a""#),
        (r#"["a"] b"#, r#"["a"] b"#),
        (r#"["a\"b"]"#, r#"["a\"b"]"#),
        ("[ -d /x ]", "[ -d /x ]"),
    ] {
        assert_eq!(shell(&format!("FROM scratch\nRUN {text}\n")), expect, "{text}");
    }
    check_errors(
        "FROM scratch\nCMD [\"a\", 1]\n",
        &["2:11 when using JSON array syntax, arrays must be comprised of strings only: found 1"],
    );
    check_warnings(
        "FROM scratch\nCMD ['a']\n",
        &[
            "2:5 the JSON array is malformed, so the whole text is given to the shell [JSON strings stand in double quotes]",
        ],
    );
}

#[test]
fn directives() {
    assert_eq!(shell("# escape=`\nFROM scratch\nRUN a `\n b\\\n"), "a  b\\");
    assert_eq!(shell("#ESCAPE = `\nFROM scratch\nRUN a `\n b"), "a  b");
    assert_eq!(shell("# comment\n# escape=`\nFROM scratch\nRUN a `\n"), "a `");
    assert_eq!(shell("\n# escape=`\nFROM scratch\nRUN a `\n"), "a `");
    assert_eq!(shell("\u{feff}# escape=`\nFROM scratch\nRUN a `\n b"), "a  b");
    assert_eq!(shell("# unknown=x\n# escape=`\nFROM scratch\nRUN a `\n"), "a `");
    assert_eq!(shell("# syntax=docker/dockerfile:1\n# escape=`\nFROM scratch\nRUN a `\n b"), "a  b");
    for syntax in [
        "docker/dockerfile",
        "docker/dockerfile:1",
        "docker.io/docker/dockerfile:1.7-labs",
        "docker/dockerfile-upstream:master",
        "docker/dockerfile:1@sha256:00",
        "docker/dockerfile:1 --more",
    ] {
        good(&format!("# syntax={syntax}\nFROM scratch\n"));
        good(&format!("#!/usr/bin/env docker\n# Syntax = {syntax} \nFROM scratch\n"));
    }
    let other = "kiln reads the Dockerfile language itself and runs no other frontend";
    check_errors(
        "# syntax=example.com/front:1\nFROM scratch\n",
        &[&format!(
            "1:10 frontend example.com/front:1 is not supported: expected docker/dockerfile [{other}]"
        )],
    );
    for (text, place) in [
        ("{\"a\": [1, {}], \"syntax\": \"example.com/front:1\"}\n", "1:26"),
        ("\u{feff}{\"syntax\":\"docker/dockerfile\",\n\"syntax\":\"example.com/front:1\"}", "2:10"),
        ("#!/x\n{\"syntax\": \"example.com/front:1\"}", "2:12"),
    ] {
        let expect = format!("{place} frontend example.com/front:1 is not supported: expected");
        let errors = found(text, Severity::Error);
        assert!(errors.iter().any(|error| error.starts_with(&expect)), "{text} {errors:?}");
    }
    for text in [
        "{\"syntax\": 1}",
        "{\"Syntax\": \"example.com/front:1\"}",
        "{\"syntax\": \"example.com/front:1\"} FROM scratch",
        "{\"x\": {\"syntax\": \"example.com/front:1\"}}",
        "{\"syntax\": \"example.com/front:1\",}",
        "{}",
    ] {
        let found = parse(text).dockerfile.directives.syntax;
        assert_eq!(found, None, "{text}");
    }
    check_errors("# escape=x\nFROM scratch\n", &["1:10 invalid escape token: expected \\ or `, found x"]);
    check_errors(
        "# escape=`\n# escape=`\nFROM scratch\n",
        &["2:1 only one escape parser directive can be used"],
    );
    let check = good("# check=skip=JSONArgsRecommended,StageNameCasing;error=true\nFROM scratch\n");
    let check = check.dockerfile.directives.check.expect("a check directive");
    assert!(check.error && check.skip.contains("StageNameCasing") && !check.skip_all);
}

#[test]
fn heredocs() {
    fn bodies(text: &str) -> Vec<(String, String, bool)> {
        match kinds(text).remove(0) {
            Kind::Run(run) => run
                .heredocs
                .into_iter()
                .map(|heredoc| (heredoc.name.clone(), heredoc.text(), heredoc.expand))
                .collect(),
            Kind::Copy(copy) => {
                let files = copy.transfer.inline.into_iter();
                files.map(|file| (file.name.text, file.content, file.expand)).collect()
            }
            other => panic!("{other:?}"),
        }
    }
    fn check(lines: &str, expect: &[(&str, &str, bool)]) {
        let expect: Vec<_> = expect
            .iter()
            .map(|(name, text, expand)| ((*name).to_owned(), (*text).to_owned(), *expand))
            .collect();
        assert_eq!(bodies(&format!("FROM scratch\n{lines}\n")), expect, "{lines}");
    }
    check("RUN <<EOF\na\n# b\n\\\nEOF", &[("EOF", "a\n# b\n\\\n", true)]);
    check("RUN <<EOF\nEOF", &[("EOF", "", true)]);
    check("RUN <<-EOF\n\t\ta\n\tEOF", &[("EOF", "a\n", true)]);
    check("RUN <<\"EOF\"\n$a\nEOF", &[("EOF", "$a\n", false)]);
    check("RUN <<'E O F'\na\nE O F", &[("E O F", "a\n", false)]);
    check("RUN <<E\"O\"F\na\nEOF", &[("EOF", "a\n", false)]);
    check("RUN <<A cat <<B\n1\nA\n2\nB", &[("A", "1\n", true), ("B", "2\n", true)]);
    check("RUN 3<<A cat\n1\nA", &[("A", "1\n", true)]);
    check("RUN cat <<A | tr a b\n1\n A\nA", &[("A", "1\n A\n", true)]);
    check("RUN <<A \\\n  cat\n1\nA", &[("A", "1\n", true)]);
    check("RUN a <<< b", &[]);
    check("RUN a << < b", &[]);
    check("RUN echo '<<EOF'", &[]);
    check("RUN echo \"x <<EOF\"", &[]);
    check("RUN [\"<<EOF\"]", &[]);
    check("RUN <<EOF\r\na\r\nEOF\r", &[("EOF", "a\r\n", true)]);
    check("COPY <<a.txt <<-'b' /d/\n$x\na.txt\n\t$y\n\tb", &[("a.txt", "$x\n", true), ("b", "$y\n", false)]);
    // A heredoc ends the instruction; what follows is the next one.
    assert_eq!(kinds("FROM scratch\nRUN <<EOF\nFROM x\nEOF\nCMD [\"a\"]\n").len(), 2);
    check_errors(
        "FROM scratch\nRUN <<EOF\na\n EOF\n",
        &["2:5 unterminated heredoc: expected a line \"EOF\", found the end of the file \
           [the line \" EOF\" is not it: no white space may stand around the terminator]"],
    );
    check_errors("FROM scratch\nCOPY a <<EOF\nEOF\n", &["2:8 COPY cannot accept a heredoc as a destination"]);
}

#[test]
fn onbuild() {
    fn check(lines: &str, expect: &str) {
        match kinds(&format!("FROM scratch\n{lines}\n")).remove(0) {
            Kind::Onbuild(onbuild) => assert_eq!(onbuild.expression, expect, "{lines}"),
            other => panic!("{other:?}"),
        }
    }
    check("ONBUILD RUN a \\\n b", "RUN a  b");
    check("onbuild   copy <<E /x\n1\nE", "copy <<E /x\n1\nE");
    check("ONBUILD RUN --mount=type=cache,target=/x a", "RUN --mount=type=cache,target=/x a");
    check_errors(
        "FROM scratch\nONBUILD ONBUILD RUN a\n",
        &["2:9 chaining ONBUILD via ONBUILD ONBUILD isn't allowed"],
    );
    check_errors("FROM scratch\nONBUILD FROM a\n", &["2:9 FROM isn't allowed as an ONBUILD trigger"]);
    check_errors("FROM scratch\nONBUILD\n", &["2:1 ONBUILD requires at least one argument"]);
    check_errors(
        "FROM scratch\nONBUILD CMD [1]\n",
        &["2:14 when using JSON array syntax, arrays must be comprised of strings only: found 1"],
    );
    check_warnings("FROM scratch\nONBUILD RNU a\n", &["2:9 unknown instruction: RNU [did you mean RUN?]"]);

    let place = Span { start: 3, end: 9, line: 2, column: 1, end_line: 2 };
    let trigger = parse_trigger("copy <<E /x\n1\nE", place).expect("a trigger");
    assert_eq!(trigger.span, place);
    assert!(matches!(trigger.kind, Kind::Copy(copy) if copy.transfer.inline[0].content == "1\n"));
    for refused in ["FROM a", "ONBUILD RUN a", "RUN a\nRUN b", "", "NOPE", "COPY --x a b"] {
        assert!(parse_trigger(refused, place).is_err_and(|errors| !errors.is_empty()), "{refused}");
    }
}

#[test]
fn every_instruction() {
    let text = r#"
ARG VERSION=13 OTHER
FROM --platform=$BUILDPLATFORM debian:${VERSION} AS Base
ARG A B="x y" C=
ENV D=1 E="2 3" F=4\ 5
ENV G six seven
LABEL "a.b"="c d"
RUN --network=none --security=insecure --mount=type=cache,target=/c --device=vendor.com/d=a,required make
COPY --from=base --chown=1:2 --chmod=0755 --link --parents --exclude=*.x --exclude=y src1 src2 /dst/
COPY ["with space", "/dst"]
ADD --checksum=sha256:00 --keep-git-dir=true --unpack=false https://example.com/x /x
WORKDIR /a b
USER me:us
EXPOSE 80 53/udp 443
VOLUME /a /b
VOLUME ["/c d"]
SHELL ["/bin/bash", "-c"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --timeout=1m --start-period=1ms --start-interval=2s --retries=4 CMD ["x"]
HEALTHCHECK none
ENTRYPOINT ["a"]
CMD b c
MAINTAINER me
"#;
    let parsed = good(text);
    let file = &parsed.dockerfile;
    assert_eq!(file.meta_args[0].items[0].default.as_ref().map(|word| word.text.as_str()), Some("13"));
    assert!(file.meta_args[0].items[1].default.is_none());
    let stage = &file.stages[0];
    assert_eq!(stage.base.text, "debian:${VERSION}");
    assert_eq!(stage.name.as_ref().map(|word| word.text.as_str()), Some("base"));
    assert_eq!(stage.platform.as_ref().map(|word| word.text.as_str()), Some("$BUILDPLATFORM"));
    let kinds: Vec<&Kind> = stage.instructions.iter().map(|instruction| &instruction.kind).collect();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    assert_eq!(
        names.join(" "),
        "ARG ENV ENV LABEL RUN COPY COPY ADD WORKDIR USER EXPOSE VOLUME VOLUME SHELL STOPSIGNAL HEALTHCHECK \
         HEALTHCHECK ENTRYPOINT CMD MAINTAINER"
    );
    let Kind::Arg(args) = kinds[0] else { panic!() };
    assert_eq!(args[1].default.as_ref().map(|word| word.text.as_str()), Some("\"x y\""));
    assert_eq!(args[2].default.as_ref().map(|word| word.text.as_str()), Some(""));
    let Kind::Env(pairs) = kinds[1] else { panic!() };
    assert_eq!(pairs[2].value.text, "4\\ 5");
    let Kind::Env(pairs) = kinds[2] else { panic!() };
    assert_eq!((pairs[0].value.text.as_str(), pairs[0].form), ("six seven", PairForm::Legacy));
    let Kind::Run(run) = kinds[4] else { panic!() };
    assert_eq!((run.network, run.security, run.mounts.len()), (Network::None, Security::Insecure, 1));
    assert_eq!((run.devices[0].name.as_str(), run.devices[0].required), ("vendor.com/d=a", true));
    let Kind::Copy(copy) = kinds[5] else { panic!() };
    assert!(copy.parents && copy.transfer.link && copy.transfer.sources.len() == 2);
    assert_eq!(copy.transfer.exclude[1].text, "y");
    let Kind::Copy(copy) = kinds[6] else { panic!() };
    assert_eq!(copy.transfer.sources[0].text, "with space");
    let Kind::Add(add) = kinds[7] else { panic!() };
    assert_eq!((add.keep_git_dir, add.unpack), (Some(true), Some(false)));
    let Kind::Workdir(path) = kinds[8] else { panic!() };
    assert_eq!(path.text, "/a b");
    let Kind::Expose(ports) = kinds[10] else { panic!() };
    assert_eq!(ports.iter().map(|port| port.text.as_str()).collect::<Vec<_>>(), ["443", "53/udp", "80"]);
    let Kind::Healthcheck(Healthcheck::Check(check)) = kinds[15] else { panic!() };
    assert_eq!((check.interval.as_secs(), check.timeout.as_secs(), check.retries), (5, 60, 4));
    assert_eq!((check.start_period.as_millis(), check.start_interval.as_secs()), (1, 2));
    assert_eq!(kinds[16], &Kind::Healthcheck(Healthcheck::None));
}

#[test]
fn mistakes_are_found_all_at_once() {
    check_errors(
        "FORM scratch\nFROM scratch as 1x\nCOPY a\nRUN --mout=x a\nENV\nENV a\nLABEL a=b c\nSHELL bash\n\
         EXPOSE 99999\nSTOPSIGNAL TREM\nHEALTHCHECK CDM a\nHEALTHCHECK --retries=-1 --interval=1 CMD a\n\
         COPY --link --link a b\nCOPY --link=maybe a b\nADD --chown a b\nVOLUME [\"\"]\nRUN --network=hots a\n\
         COPY --from=$X a b\nUSER\nARG =x\nHEALTHCHECK NONE a\n",
        &[
            "1:1 unknown instruction: FORM [did you mean FROM?]",
            "2:17 invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
            "3:6 COPY requires at least two arguments, but only one was provided. Destination could not be determined",
            "4:5 unknown flag: --mout [did you mean --mount?]",
            "5:1 ENV requires at least one argument",
            "6:5 ENV must have two arguments: expected ENV a=value",
            "7:11 can't find = in \"c\": expected name=value",
            "8:7 SHELL requires the arguments to be in JSON form, found bash [for example SHELL [\"/bin/bash\", \"-c\"]]",
            "9:8 invalid port \"99999\": container port: expected a number from 0 to 65535, found \"99999\"",
            "10:12 invalid signal: TREM [did you mean SIGTERM?]",
            "11:13 unknown type \"CDM\" in HEALTHCHECK: expected CMD or NONE [did you mean CMD?]",
            "12:13 invalid --retries \"-1\": expected a number that is not negative",
            "12:26 --interval: invalid duration \"1\": missing unit, expected one of ns, us, ms, s, m, h",
            "13:13 duplicate flag specified: --link",
            "14:6 expecting boolean value for flag --link, not: maybe",
            "15:5 missing a value on flag: --chown",
            "16:9 VOLUME specified can not be an empty string",
            "17:5 invalid network mode \"hots\": expected default, none, host [did you mean host?]",
            "18:6 variable expansion is not supported for --from [define a new stage with FROM using ARG from global \
             scope as a workaround]",
            "19:1 USER requires exactly one argument",
            "20:5 ARG names can not be blank",
            "21:13 HEALTHCHECK NONE takes no arguments",
        ],
    );
    check_errors("", &["0:0 the Dockerfile cannot be empty"]);
    check_errors("# only\n\n", &["0:0 file with no instructions"]);
    check_errors("ARG a\n", &["0:0 dockerfile contains no stages to build: expected at least one FROM"]);
    check_errors(
        "RUN a\nRUN b\nFROM x\n",
        &["1:1 no build stage in current context: expected FROM or ARG, found RUN"],
    );
    let no_dockerfile = "nothing in it is an instruction: it is no Dockerfile";
    check_errors(
        "<!DOCTYPE html>\n<html>\n<p>x\n",
        &[&format!("1:1 unknown instruction: <!DOCTYPE [{no_dockerfile}]")],
    );
    check_errors(
        "<html>\nRUN x\n",
        &[
            "1:1 unknown instruction: <html>",
            "2:1 no build stage in current context: expected FROM or ARG, found RUN",
        ],
    );
    let binary = parse(b"\xe9\0\x01\n\xe9\0\x01\n").diagnostics;
    assert_eq!(binary.len(), 1, "{binary:?}");
    // What comes below a FROM that is misspelt is no fault of its own; its faults are.
    let lost = "1:1 unknown instruction: FORM [did you mean FROM?]";
    check_errors("FORM x AS y\nRUN b\nCOPY --from=y a b\n", &[lost]);
    check_errors("FORM x\nRNU b\nFROM y\n", &[lost, "2:1 unknown instruction: RNU [did you mean RUN?]"]);
    check_errors(
        "RNU b\nCOPY a b\nFROM y\n",
        &[
            "1:1 unknown instruction: RNU [did you mean RUN?]",
            "2:1 no build stage in current context: expected FROM or ARG, found COPY",
        ],
    );
    check_errors(
        "FROM a b c d\n",
        &["1:8 FROM requires either one or three arguments: FROM <image> [AS <name>]"],
    );
    check_errors(
        "FROM a\nRUN --mount=type=cahce,target=/x a\n",
        &[
            "2:5 invalid mount \"type=cahce,target=/x\": unsupported mount type \"cahce\" (did you mean cache?)",
        ],
    );
}

#[test]
fn warnings() {
    check_warnings(
        "FROM a\nRUN b \\\n\n c\n",
        &[
            "3:1 empty continuation line: it will become an error in a future Dockerfile version [remove the line, or make it a comment]",
        ],
    );
    check_warnings("from a AS b\n", &["1:8 'AS' and 'from' keywords' casing do not match"]);
    check_warnings("FROM a AS B\n", &["1:11 stage name 'B' should be lowercase"]);
    check_warnings(
        "FROM a AS b\nFROM a AS b\nFROM a AS scratch\n",
        &[
            "2:11 duplicate stage name \"b\", stage names should be unique",
            "3:11 stage name should not use the same name as reserved stage \"scratch\"",
        ],
    );
    check_warnings("FROM a\nARG --x b\n", &["2:5 ARG takes no flags: --x is ignored"]);
}

#[test]
fn casing_follows_the_majority() {
    check_warnings(
        "FROM a\nrun x\nRun y\nRUN z\n",
        &[
            "2:1 'run' should be in upper case, as most instructions are",
            "3:1 'Run' should be in upper case, as most instructions are",
        ],
    );
    check_warnings(
        "from a\nrun x\nRUN y\n",
        &["3:1 'RUN' should be in lower case, as most instructions are"],
    );
    check_warnings("FROM a\nrun x\n", &["2:1 'run' should be in upper case, as most instructions are"]);
    check_warnings("# check=skip=ConsistentInstructionCasing\nFROM a\nrun x\n", &[]);
}

#[test]
fn descriptions_are_checked_for_who_asks() {
    let text = "# what\nARG A=1\n# B is it\nARG B\n# a stage\nFROM $A AS c\n";
    check_warnings(text, &[]);
    let asked = format!("# check=experimental=InvalidDefinitionDescription\n\n{text}");
    check_warnings(
        &asked,
        &[
            "4:1 the comment above ARG should have the form `# A <description>`",
            "8:1 the comment above FROM should have the form `# c <description>`",
        ],
    );
}

#[test]
fn a_check_given_beside_the_file_stands_in_for_its_own() {
    let text = "# check=skip=all\nFROM a AS B\n";
    let severities = |check| {
        let parsed = kiln_dockerfile::parse_checked(text, check);
        parsed.diagnostics.into_iter().map(|diagnostic| diagnostic.severity).collect::<Vec<_>>()
    };
    assert_eq!(severities(None), []);
    assert_eq!(severities(Some("skip=FromAsCasing")), [Severity::Warning]);
    assert_eq!(severities(Some("error=true")), [Severity::Error]);
    let parsed = kiln_dockerfile::parse_checked(text, Some("eror=true"));
    let message = "BUILDKIT_DOCKERFILE_CHECK: invalid check option \"eror\"";
    assert!(parsed.has_errors() && parsed.diagnostics.iter().any(|found| found.message == message));
}

#[test]
fn checks_are_skipped_or_made_errors() {
    check_warnings("# check=skip=FromAsCasing\nFROM a as B\n", &["2:11 stage name 'B' should be lowercase"]);
    check_warnings("# check=skip=all\nFROM a as B\nARG --x b\n", &["3:5 ARG takes no flags: --x is ignored"]);
    check_warnings(
        "FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER b\nFROM c as d\n",
        &["4:8 'as' and 'FROM' keywords' casing do not match"],
    );
    check_errors("# check=error=true\nFROM a AS B\n", &["2:11 stage name 'B' should be lowercase"]);
    check_errors("# check=skpi=all\nFROM a\n", &["1:9 invalid check option \"skpi\" [did you mean skip?]"]);
}

#[test]
fn sources_of_add() {
    fn url(name: &str) -> SourceKind {
        SourceKind::Url { file_name: name.to_owned() }
    }
    fn git(remote: &str, reference: &str, directory: &str) -> SourceKind {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        SourceKind::Git(GitSource {
            remote: remote.to_owned(),
            reference: given(reference),
            directory: given(directory),
            query: None,
        })
    }
    for (source, expect) in [
        ("a/b", SourceKind::Path),
        ("./x@y:z", SourceKind::Path),
        ("github.com/a/b.git", SourceKind::Path),
        ("ftp://a/b", SourceKind::Path),
        ("https://a/b/c.tar.gz?x=/y#z", url("c.tar.gz")),
        ("http://a/b%20c", url("b c")),
        ("http://a/b%+1c%2", url("b%+1c%2")),
        ("http://a/", url("__unnamed__")),
        ("http://a", url("__unnamed__")),
        ("https://a/b.git", git("https://a/b.git", "", "")),
        ("https://a/b.git#v1:sub/dir", git("https://a/b.git", "v1", "sub/dir")),
        ("git@a:b/c", git("git@a:b/c", "", "")),
        ("git@a:b/c#:d", git("git@a:b/c", "", "d")),
        ("ssh://git@a/b", git("ssh://git@a/b", "", "")),
        ("git://a/b#m", git("git://a/b", "m", "")),
    ] {
        assert_eq!(source_kind(source), expect, "{source}");
    }
    // A context is more often a repository than a source of ADD is.
    for (context, expect) in [
        ("github.com/a/b", git("https://github.com/a/b", "", "")),
        ("github.com/a/b#v1:d", git("https://github.com/a/b", "v1", "d")),
        ("./github.com/a/b", SourceKind::Path),
        ("github.com.example/a", SourceKind::Path),
        ("https://a/b.git", git("https://a/b.git", "", "")),
        ("http://a/b", url("b")),
        (".", SourceKind::Path),
    ] {
        assert_eq!(context_kind(context), expect, "{context}");
    }
}

#[test]
fn stages_by_name_and_number() {
    let file = good("FROM a AS one\nFROM one\nFROM b AS one\nFROM one AS Two\n").dockerfile;
    let names = StageNames::of(&file);
    assert_eq!(names.base_stage(1, "one"), Some(0));
    assert_eq!(names.base_stage(3, "one"), Some(2));
    assert_eq!(names.base_stage(0, "one"), None);
    assert_eq!(names.base_stage(3, "ONE"), None);
    assert_eq!(names.copy_source("ONE"), Ok(CopySource::Stage(2)));
    assert_eq!(names.copy_source("1"), Ok(CopySource::Stage(1)));
    assert_eq!(names.copy_source("alpine"), Ok(CopySource::Image("alpine".to_owned())));
    assert_eq!(names.copy_source("9").expect_err("no such stage").to_string(), "invalid stage index 9");
    assert_eq!(names.mount_source("1"), CopySource::Image("1".to_owned()));
    assert_eq!(file.target_stage(None), Ok(3));
    assert_eq!(file.target_stage(Some("two")), Ok(3));
    assert_eq!(file.target_stage(Some("1")), Ok(1));
    let error = file.target_stage(Some("tow")).expect_err("no such stage");
    assert_eq!(error.to_string(), "target stage \"tow\" could not be found (did you mean two?)");
}

#[test]
fn spans_survive_continuation() {
    let text = "FROM a\nRUN x\nCOPY \\\n  # note\n  --from=b \\\n  src \\\n  /dst\nCMD z";
    let parsed = good(text);
    let instruction = &parsed.dockerfile.stages[0].instructions[1];
    assert_eq!((instruction.span.line, instruction.span.end_line), (3, 7));
    let Kind::Copy(copy) = &instruction.kind else { panic!() };
    let at = |word: &kiln_dockerfile::Word| {
        (word.span.line, word.span.column, &text[word.span.start..word.span.end])
    };
    assert_eq!(at(copy.from.as_ref().expect("a flag")), (5, 3, "--from=b"));
    assert_eq!(at(&copy.transfer.sources[0]), (6, 3, "src"));
    assert_eq!(at(&copy.transfer.destination), (7, 3, "/dst"));
    let heredoc = good("FROM a\nRUN <<E\n1\nE\nCMD z");
    let spans: Vec<_> =
        heredoc.dockerfile.stages[0].instructions.iter().map(|it| (it.span.line, it.span.end_line)).collect();
    assert_eq!(spans, [(2, 4), (5, 5)]);
}

#[test]
fn comments_belong_to_what_follows() {
    let parsed = good(
        "# syntax=docker/dockerfile:1\n# first\n#\n# base the base\nFROM a AS base\n# one\n\n# two\nRUN b\nRUN c\n",
    );
    let stage = &parsed.dockerfile.stages[0];
    assert_eq!(stage.comments, ["base the base"]);
    assert_eq!(stage.instructions[0].comments, ["one", "two"]);
    assert!(stage.instructions[1].comments.is_empty());
}

#[test]
fn rendering() {
    fn check(text: &str, expect: &str) {
        let parsed = parse(text);
        assert_eq!(render(&parsed.diagnostics[0], "Dockerfile", &parsed.dockerfile.source), expect);
    }
    check(
        "FROM scratch\n\tCOPY --form=é x /y\n",
        "error: unknown flag: --form\n --> Dockerfile:2:7\n  |\n2 |  COPY --form=é x /y\n  |       ^^^^^^^^\n  = help: did you mean --from?\n",
    );
    check("", "error: the Dockerfile cannot be empty\n");
    check(
        "FROM scratch\n\x1b[31m x\n",
        "error: unknown instruction: \\u{1b}[31m\n --> Dockerfile:2:1\n  |\n2 |  [31m x\n  | ^^^^^\n",
    );
    let long = format!("FROM scratch\nRUN {} --x\nCOPY {} <<E\nE\n", "a".repeat(500), "b".repeat(500));
    let shown = render(&parse(&long).diagnostics[0], "Dockerfile", &long);
    assert!(shown.lines().all(|line| line.chars().count() < 180), "{shown}");
}

#[test]
fn limits() {
    let long = |length: usize| format!("FROM scratch\nRUN {}\n", "x".repeat(length - 4));
    good(&long(65_535));
    check_errors(&long(65_536), &["2:1 line of 65537 bytes is longer than 65535"]);
    let many = parse("FROM x\n".to_owned() + &"x\n".repeat(100_000)).diagnostics;
    assert_eq!(many.len(), kiln_dockerfile::MAX_DIAGNOSTICS + 2);
    assert!(many.last().is_some_and(|last| last.message.starts_with("too many diagnostics")));
    assert!(parse(vec![b' '; kiln_dockerfile::MAX_SOURCE_BYTES + 1]).has_errors());
}

#[test]
fn bytes_that_are_not_utf8() {
    assert!(!parse(b"# \xff\nFROM scratch\n").has_errors());
    let parsed = parse(b"FROM scratch\nRUN \xff\n");
    assert_eq!(parsed.diagnostics[0].message, "the line is not valid UTF-8");
    assert_eq!(parsed.diagnostics[0].span.line, 2);
}
