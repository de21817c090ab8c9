//! The same files come out, however roots and owners are had.

use std::process::Command;

use crate::environment::{Environment, Place};

/// What a step may do to a base, and what is easily lost: owners, special bits, replaced directories, links, bytes of
/// equal length under an old time.
const DOCKERFILE: &str = r#"
FROM base AS first
COPY --chown=7:8 --chmod=640 f /copied
RUN chown 5:6 /etc/group && echo x >> /etc/shadow && rm -rf /opt && mkdir -m 2775 /opt && chown 9:42 /opt
RUN touch /opt/new && chmod 4711 /bin/tool && ln /etc/passwd /etc/link && mkfifo /pipe && chown -h 3:4 /symlink \
 && rm /gone/file && rmdir /gone && mkdir -p /made/below && mv /etc/second /etc/third
RUN printf 'OLD' > /equal && touch -d @1600000000 /equal && chmod 700 /same && chmod 755 /same
USER app
WORKDIR /home/app/work
RUN id -u > mine && ln -s mine own
RUN <<END
#!/bin/sh
echo "$0" > script
END
USER root
FROM first AS second
RUN --mount=type=bind,from=first,source=/opt,target=/mnt --mount=type=cache,target=/cache \
    --mount=type=tmpfs,target=/scratch test -f /mnt/new && touch /cache/file /scratch/file && cat /etc/hosts > /dev/null
RUN <<END
echo heredoc > /heredoc
END
FROM base
COPY --from=second / /all/
RUN chown -R 11:12 /all/made
"#;

/// What the maintainer scripts of openssh-client, dbus and passwd do, and programs that look before they give away.
const SCRIPTS: &str = r#"
FROM base
RUN set -e; cp -a /etc/shadow- /root-copy; cp -p /etc/group /etc/group-; echo '_ssh:x:101:' >> /etc/group \
 && cat /etc/shadow > /etc/shadow- && echo '_ssh:!:1::::::' >> /etc/shadow- \
 && sed 's/^root/toor/' /etc/shadow > /etc/shadow+ && chown root:shadow /etc/shadow+ && chmod 640 /etc/shadow+ \
 && mv /etc/shadow+ /etc/shadow && chgrp _ssh /bin/tool && chmod 2755 /bin/tool
RUN cp /bin/tool /bin/helper && chown app:shadow /bin/helper && chmod 4750 /bin/helper \
 && mkdir -p /var/lib/dbus && chown app:app /var/lib/dbus && chmod 2775 /var/lib/dbus && touch /var/lib/dbus/id && cp -a /bin/helper /bin/again && cp -a /var /var2 && mv /etc/shadow- /etc/shadow.old \
 && ln /etc/shadow /etc/shadow.link && stat -c %u:%g:%a /etc/shadow.old /bin/helper > /seen
RUN mkdir -m 777 /open && su app -c 'cd /open; mkdir d; echo x > d/f; ln -s f d/l; mv d/f d/g; cp -a d /open/e' && stat -c %u /open/d/g > /seen2
RUN chown -R 0:0 /var2 && chown app /var2/lib && sed -i 's/x/y/' /etc/shadow && test "$(stat -c %g /etc/shadow)" = 42
RUN mkdir -p -m 3770 /var/own /var/put && cd /etc && for f in again over under kept; do echo $f > $f; done && echo 1 > plain \
 && ln kept link && chown app:shadow /var/own /var/put again over under kept && chmod 4755 again
RUN rmdir /var/own /var/put && mkdir /var/own /put && mv /put /var && cd /etc && rm again && echo new > again && chmod 755 again \
 && echo new > new && mv new over && mv plain under && echo more >> kept \
 && stat -c %u:%g:%a /var/own /var/put again over under kept link > /seen3 && echo it is not theirs any more
USER app
WORKDIR /home/app/work
RUN touch mine && test -O mine && test -O . && test "$(stat -c %u:%g mine)" = 1000:1000
"#;

impl Place {
    /// Builds and gives the image's ID and files.
    fn build(&self, environment: Environment, umask: &str) -> String {
        let script = "kiln load -q -i base.image > /dev/null\n\
             kiln build -q --build-arg SOURCE_DATE_EPOCH=1700000000 -t built -f Dockerfile context\n\
             kiln run built sh -c 'cat /etc/passwd > /dev/null' 2> $STORE.err\n\
             kiln save built > $STORE.tar; rm $STORE.tar; kiln system check > /dev/null\n\
             kiln image files built";
        self.run(environment, umask, script)
    }
}

/// Tells what differs.
#[track_caller]
fn same(found: &str, expect: &str, environment: Environment) {
    let only = |one: &str, other: &str| {
        let other: std::collections::HashSet<&str> = other.lines().collect();
        one.lines().filter(|line| !other.contains(line)).map(str::to_owned).collect::<Vec<_>>().join("\n")
    };
    assert!(
        found == expect,
        "{environment:?} gives\n{}\ninstead of\n{}",
        only(found, expect),
        only(expect, found)
    );
}

#[test]
fn every_way_gives_the_same_image() {
    check(DOCKERFILE);
}

#[test]
fn every_way_gives_the_same_owners() {
    check(SCRIPTS);
}

#[track_caller]
fn check(dockerfile: &str) {
    let Some(place) = Place::new() else { return };
    place.make_base();
    place.write("Dockerfile", dockerfile);
    let expect = place.build(Environment::Root, "022");
    assert!(expect.starts_with("sha256:"), "{expect}");
    for (environment, umask) in [
        (Environment::OverlayRoot, "022"),
        (Environment::NoMounts, "022"),
        (Environment::SubIds, "077"),
        (Environment::SingleId, "077"),
    ] {
        same(&place.build(environment, umask), &expect, environment);
    }
    let again = Place::new().expect("as before");
    fs_err::copy(place.path("base.image"), again.path("base.image")).expect("copied");
    again.write("context/f", "f\n");
    again.write("Dockerfile", dockerfile);
    same(&again.build(Environment::Root, "077"), &expect, Environment::Root);
    place.assert_nothing_is_mounted();
    let passwd = Command::new("head").args(["-1", "/etc/passwd"]).output().expect("head");
    assert!(passwd.stdout.starts_with(b"root:"));
}

/// A context that root packed may hold what nobody else could read if it lay in a directory.
#[test]
fn an_archive_may_hold_what_its_owner_may_not_read() {
    let Some(place) = Place::new() else { return };
    let make = r#"
        rm -r context; mkdir -p context/closed/below context/write context/open; cd context
        printf 'FROM scratch\nCOPY . /c/\nCOPY closed/below/f n* /d/\n' > Dockerfile
        echo f > closed/below/f; ln closed/below/f link; echo w > write/w; echo n > none; echo o > open/o
        chmod 4000 closed/below/f; chmod 0 none closed/below; chmod 2300 closed; chmod 222 write; chmod 555 open
        chmod 1311 .; tar -cf ../context.tar .; chmod 644 ../context.tar; cd ..
        kiln build -q --build-arg SOURCE_DATE_EPOCH=1700000000 -t made context; kiln image files made
    "#;
    let expect = place.run(Environment::Root, "022", make);
    for (mode, path) in [
        ("d-wx--S---", "/c/closed"),
        ("d---------", "/c/closed/below"),
        ("---S------", "/c/closed/below/f"),
        ("---S------", "/c/link"),
        ("----------", "/d/none"),
    ] {
        let is_there = expect.lines().any(|line| line.starts_with(mode) && line.ends_with(path));
        assert!(is_there, "{mode} {path} in\n{expect}");
    }
    let build = "kiln build -q --build-arg SOURCE_DATE_EPOCH=1700000000 -t made - < context.tar; kiln image files made; \
        kiln rmi made > /dev/null; kiln system prune -af > /dev/null; find $STORE/tmp $STORE/trash -mindepth 1";
    for environment in [
        Environment::Root,
        Environment::OverlayRoot,
        Environment::NoMounts,
        Environment::SubIds,
        Environment::SingleId,
        Environment::NoNamespaces,
    ] {
        same(&place.run(environment, "022", build), &expect, environment);
    }
}

/// What a user with sub-identifiers has unpacked is not his to remove; the way out that the help names is one.
#[test]
fn an_unpacked_tree_can_be_removed() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    place
        .write("Dockerfile", "FROM base\nRUN mkdir -m 700 /own && touch /own/f && chown -R 1000:1000 /own\n");
    let script = "kiln load -q -i base.image > /dev/null; kiln build -q -t made -f Dockerfile context > /dev/null\n\
        kiln image unpack made rootfs; if rm -rf rootfs 2> /dev/null; then echo removed; else echo refused; fi\n\
        kiln run --rm -v \"$PWD:/w\" made rm -rf /w/rootfs; test ! -e rootfs";
    for (environment, expect) in [(Environment::SubIds, "refused\n"), (Environment::SingleId, "removed\n")] {
        assert_eq!(place.run(environment, "022", script), expect, "{environment:?}");
    }
    place.assert_nothing_is_mounted();
}
