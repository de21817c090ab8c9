//! Durations, sizes, signals, ports, mounts, history texts.
#![allow(missing_docs)]

use std::time::Duration;

use kiln_dockerfile::{
    Expander, Kind, MountType, NoVariables, Sharing, format_duration, history, parse, parse_duration,
    parse_port, parse_signal, parse_size,
};

#[test]
fn durations() {
    for (text, expect) in [
        ("0", Some(0)),
        ("5s", Some(5_000_000_000)),
        ("1m30s", Some(90_000_000_000)),
        ("1.5h", Some(5_400_000_000_000)),
        ("100ms", Some(100_000_000)),
        ("3us2ns", Some(3_002)),
        ("3µs", Some(3_000)),
        (".5s", Some(500_000_000)),
        ("-1s", Some(-1_000_000_000)),
        ("+1s", Some(1_000_000_000)),
        ("", None),
        ("s", None),
        (".s", None),
        ("30", None),
        ("1 s", None),
        ("1d", None),
        ("9999999h", None),
    ] {
        assert_eq!(parse_duration(text).ok(), expect, "{text}");
    }
    for (nanos, expect) in [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (30_000_000_000, "30s"),
        (60_000_000_000, "1m0s"),
        (245_000_000_000, "4m5s"),
        (3_600_000_000_000, "1h0m0s"),
        (3_661_001_000_000, "1h1m1.001s"),
    ] {
        assert_eq!(format_duration(Duration::from_nanos(nanos)), expect);
    }
}

#[test]
fn sizes_and_signals() {
    for (text, expect) in [
        ("1024", Some(1024)),
        ("1k", Some(1024)),
        ("1.5m", Some(1_572_864)),
        ("2GiB", Some(2 << 30)),
        ("3 MB", Some(3 << 20)),
        ("1b", Some(1)),
        ("m", None),
        ("1x", None),
        ("-1k", None),
        ("1kbb", None),
    ] {
        assert_eq!(parse_size(text).ok(), expect, "{text}");
    }
    for (text, expect) in [
        ("SIGTERM", Some(15)),
        ("term", Some(15)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
        ("rtmax-14", Some(50)),
        ("RTMIN+16", None),
        ("0", None),
        ("SIGNOPE", None),
    ] {
        assert_eq!(parse_signal(text).ok(), expect, "{text}");
    }
}

#[test]
fn ports() {
    fn check(text: &str, expect: Option<&[&str]>) {
        let expect = expect.map(|list| list.iter().map(ToString::to_string).collect());
        assert_eq!(parse_port(text).ok(), expect, "{text}");
    }
    check("80", Some(&["80/tcp"]));
    check("53/UDP", Some(&["53/udp"]));
    check("80/", Some(&["80/tcp"]));
    check("8080-8082/tcp", Some(&["8080/tcp", "8081/tcp", "8082/tcp"]));
    check("80-80", Some(&["80/tcp"]));
    check("1.2.3.4:90:80/sctp", Some(&["80/sctp"]));
    check("[::1]:90-91:80", Some(&["80/tcp"]));
    check("0", Some(&["0/tcp"]));
    check("65536", None);
    check("90-80", None);
    check("80/icmp", None);
    check("/tcp", None);
    check("", None);
    check("a", None);
    check("localhost:90:80", None);
    check("90-92:80-81", None);
}

#[test]
fn mounts() {
    fn check(options: &str, expect: Result<(MountType, &str, bool), &str>) {
        let parsed = parse(format!("FROM scratch\nRUN --mount={options} true\n"));
        let got = match parsed.diagnostics.first() {
            Some(diagnostic) => Err(diagnostic.message.clone()),
            None => {
                let kind = &parsed.dockerfile.stages[0].instructions[0].kind;
                let expanded =
                    kind.expand(&Expander::new('\\'), &NoVariables).map_err(|error| error.to_string());
                expanded.map(|mut expanded| expanded.mounts.remove(0))
            }
        };
        match (got, expect) {
            (Ok(mount), Ok(expect)) => {
                assert_eq!((mount.mount_type, mount.target.as_str(), mount.read_only), expect);
            }
            (Err(message), Err(part)) => assert!(message.contains(part), "{options}: {message}"),
            (got, expect) => panic!("{options}: got {got:?}, expected {expect:?}"),
        }
    }
    check("target=/a", Ok((MountType::Bind, "/a", true)));
    check("type=cache,dst=/a", Ok((MountType::Cache, "/a", false)));
    check(
        "type=cache,target=/a,sharing=locked,id=x,mode=0700,uid=1,gid=2,ro",
        Ok((MountType::Cache, "/a", true)),
    );
    check("type=tmpfs,destination=/a,size=5m", Ok((MountType::Tmpfs, "/a", false)));
    check("type=secret,id=x,env=X,required", Ok((MountType::Secret, "", true)));
    check("type=ssh", Ok((MountType::Ssh, "", true)));
    check("from=other,src=/x,target=/a,rw", Ok((MountType::Bind, "/a", false)));
    check("\\\"target=/a,b\\\"", Ok((MountType::Bind, "/a,b", true)));
    check("type=cahce,target=/a", Err("did you mean cache?"));
    check("type=cache,targt=/a", Err("did you mean target?"));
    check("from=$X,target=/a", Err("doesn't support variable expansion"));
    check("target=/a,size=5m", Err("unexpected key 'size' for mount type 'bind'"));
    check("target=/a,uid=5", Err("uid not allowed"));
    check("type=secret", Err("one of id, source, target"));
    check("target=/a,sharing=locked", Err("sharing is for cache mounts"));
    check("target", Err("must be a key=value pair"));

    let parsed = parse("FROM scratch\nRUN --mount=type=cache,target=/c,sharing=Private true\n");
    let expanded =
        parsed.dockerfile.stages[0].instructions[0].kind.expand(&Expander::new('\\'), &NoVariables);
    assert_eq!(expanded.expect("valid").mounts[0].sharing, Some(Sharing::Private));
}

#[test]
fn history_texts() {
    fn check(lines: &str, expect: &str) {
        let parsed = parse(format!("FROM scratch\n{lines}\n"));
        assert!(!parsed.has_errors(), "{lines}: {:?}", parsed.diagnostics);
        let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
        let got = match &parsed.dockerfile.stages[0].instructions[0].kind {
            Kind::Run(run) => history::run(&run.program(&shell).arguments, &[], &NoVariables),
            Kind::Cmd(command) => history::cmd(&command.arguments(&shell)),
            Kind::Entrypoint(command) => history::entrypoint(&command.arguments(&shell)),
            Kind::Copy(copy) => history::copy(copy),
            Kind::Add(add) => history::add(add),
            Kind::Env(pairs) => history::env(pairs),
            Kind::Label(pairs) => history::label(pairs),
            Kind::Shell(words) => history::shell(words),
            Kind::Volume(words) => history::volume(words),
            Kind::Healthcheck(healthcheck) => history::healthcheck(healthcheck),
            Kind::Maintainer(word) => history::maintainer(&word.text),
            other => panic!("{other:?}"),
        };
        assert_eq!(got, expect, "{lines}");
    }
    check("RUN echo  hi", "RUN /bin/sh -c echo  hi # buildkit");
    check("RUN [\"echo\", \"a b\"]", "RUN echo a b # buildkit");
    check("RUN a \\\n  b", "RUN /bin/sh -c a   b # buildkit");
    check("RUN <<EOF\necho $X\n\tb\nEOF", "RUN /bin/sh -c echo $X\n\tb\n # buildkit");
    check("RUN <<-EOF\n\techo\n\tEOF", "RUN /bin/sh -c echo\n # buildkit");
    check("RUN <<EOF\n#!/usr/bin/env python3\nx\nEOF", "RUN /bin/sh -c /dev/pipes/EOF # buildkit");
    check("RUN cat <<A <<'B' > /x\n1\nA\n2\nB", "RUN /bin/sh -c cat <<A <<'B' > /x\n1\nA\n2\nB # buildkit");
    check("CMD echo \"hi\"", r#"CMD ["/bin/sh" "-c" "echo \"hi\""]"#);
    check("CMD [\"a\", \"tab\\té\\u0001\"]", "CMD [\"a\" \"tab\\té\\x01\"]");
    check("ENTRYPOINT []", "ENTRYPOINT []");
    check("COPY --chmod=755 --parents --link a b /c", "COPY --parents --chmod=755 a b /c # buildkit");
    check("COPY a <<EOF /c\nx\nEOF", "COPY a <<EOF /c # buildkit");
    check("ADD --chown=1 https://x/y /c", "ADD --chown=1 https://x/y /c # buildkit");
    check("ENV A=1 B=2", "ENV A=1 B=2");
    check("LABEL a b c", "LABEL a=b c");
    check("SHELL [\"/bin/bash\", \"-c\"]", "SHELL [/bin/bash -c]");
    check("VOLUME [\"/a b\", \"/c\"]", "VOLUME [/a b /c]");
    check("MAINTAINER me <me@x>", "MAINTAINER me <me@x>");
    check(
        "HEALTHCHECK --interval=90s --retries=3 CMD curl -f x",
        "HEALTHCHECK {Test:[CMD-SHELL curl -f x] Interval:1m30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:3}",
    );
    check(
        "HEALTHCHECK NONE",
        "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
    );
}

#[test]
fn build_arguments_in_run_history() {
    let arguments = ["/bin/sh", "-c", "x"].map(str::to_owned);
    let args = [("A", Some("1")), ("B", None), ("A", Some("2"))];
    let args = args.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    let environment = vec!["B=env".to_owned()];
    assert_eq!(history::run(&arguments, &args, &environment), "RUN |2 A=2 B=env /bin/sh -c x # buildkit");
    assert_eq!(history::arg(&args), "ARG A=1 B A=2");
    assert_eq!(history::expose(&["80/tcp".to_owned(), "443/tcp".to_owned()]), "EXPOSE [80/tcp 443/tcp]");
    assert_eq!(history::workdir("/app"), "WORKDIR /app");
}
