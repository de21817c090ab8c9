//! A store that a user has used with other subordinate identifiers than are there now.

use crate::environment::{Environment, Place};

/// A store in which a step's layer is a snapshot alone, made with ranges.
fn made() -> Option<(Place, String)> {
    let place = Place::new()?;
    place.make_base();
    place.write(
        "runs",
        "FROM base\nRUN mkdir /d && echo f > /d/f && chown 5:6 /d/f && touch -t 202001010000 /d/f /d\n",
    );
    place.write("above", "FROM runs\nRUN cp -a /d/f /copy; stat -c %u:%g /copy > /owner\n");
    let script = "kiln load -q -i base.image > /dev/null; kiln build -q -f runs -t runs context";
    let built = place.run(Environment::SubIds, "022", script);
    Some((place, built))
}

const STORE: &str = "STORE=$PWD/SubIds/store";

/// With other ranges the files have other owners; what a step makes of them would be kept.
#[test]
fn other_ranges_give_no_wrong_owners() {
    let Some((place, built)) = made() else { return };
    let above = "kiln build -q -f above -t above context > id && kiln image cat above /owner";
    let script = format!("{STORE}; {{ {above}; }} 2> err || {{ echo $?; cat err; }}");
    let above = format!("{STORE}; {above}");
    let told = place.run(Environment::OtherSubIds, "022", &script);
    assert!(
        told.starts_with("1\n")
            && told.contains("were made with other subordinate IDs")
            && told.contains("hint: "),
        "{told}"
    );
    // The same step once more makes the same layer, and the image is usable with either.
    let again = format!("{STORE}; kiln build -q -f runs -t runs context");
    assert_eq!(place.run(Environment::OtherSubIds, "022", &again), built);
    assert_eq!(place.run(Environment::OtherSubIds, "022", &above), "5:6\n");
    assert_eq!(place.run(Environment::SubIds, "022", &above), "5:6\n");
    place.assert_nothing_is_mounted();
}

/// The image is whole, and its files are another mode's: it may be named, and nothing is wrong with it.
#[test]
fn what_another_mode_made_is_whole() {
    let Some((place, built)) = made() else { return };
    for environment in [
        Environment::NoNewPrivileges,
        Environment::Overlapping,
        Environment::SingleId,
        Environment::OtherSubIds,
    ] {
        let script = format!(
            "{STORE}; kiln tag runs {environment:?} 2>&1 | tr A-Z a-z; kiln tag runs again; \
             kiln system check > check 2> err; cat check; grep hint err || true"
        )
        .replace(&format!("{environment:?}"), "other");
        let told = place.run(environment, "022", &script);
        assert!(
            told.starts_with("not read: layer sha256:")
                && told.contains("no fault")
                && !told.contains("hint"),
            "{environment:?}: {told}"
        );
        for command in
            ["run runs true", "save -o x.tar runs", "image cat runs /d/f", "image unpack runs files"]
        {
            let script = format!("{STORE}; kiln {command} 2>&1 > out || echo failed");
            let told = place.run(environment, "022", &script);
            assert!(
                told.contains("subordinate IDs, and this process cannot use them")
                    && told.contains("\nhint: `kiln info` tells which IDs")
                    && told.ends_with("failed\n"),
                "{environment:?} {command}: {told}"
            );
        }
    }
    assert_eq!(
        place.run(Environment::SubIds, "022", &format!("{STORE}; kiln images -q --no-trunc runs")),
        built
    );
}

/// Ranges that cannot be mapped are told once, by a command that uses files, and an unchanged build is found all the same.
#[test]
fn ranges_that_cannot_be_mapped_are_told() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    place.write("runs", "FROM base\nRUN touch /f && chown 5:6 /f\n");
    for (environment, reason) in [
        (Environment::Refusing, "newuidmap: not today"),
        (Environment::NoNewPrivileges, "newuidmap gains no privileges in a process with no_new_privs"),
        (
            Environment::Overlapping,
            "/etc/subuid: what this user has overlaps at 300000, which the kernel does not map",
        ),
    ] {
        let script = "kiln load -q -i base.image 2>&1 > /dev/null; kiln build -q -f runs -t runs context 2>&1 > /dev/null; \
             kiln build -q -f runs context 2>&1 > /dev/null; kiln history -q runs 2>&1 > /dev/null; \
             kiln tag runs other 2>&1; kiln info | sed -n '/^File/p'";
        let told = place.run(environment, "022", script);
        let warnings =
            told.lines().filter(|line| line.starts_with("kiln: warning: ") && line.ends_with(reason));
        let others: Vec<&str> = told.lines().filter(|line| !line.starts_with("kiln: warning: ")).collect();
        let info = format!("File Owners: recorded, in a user namespace with one ID ({reason})");
        assert!((1..=3).contains(&warnings.count()) && others == [info], "{environment:?}: {told}");
    }
}

/// The kernel says `Invalid argument` alone.
#[test]
fn a_user_without_an_identifier_is_named() {
    let Some(place) = Place::new() else { return };
    place.make_base();
    let script = "kiln load -q -i base.image > /dev/null; kiln run -u 65536 base id -u; kiln run -u 70000 base true 2>&1 || true";
    let told = place.run(Environment::SubIds, "022", script);
    let expect = "cannot become user 70000 and group 0: user 70000 is none of the 65537 users that are mapped here, as \
        far as the ranges of /etc/subuid go\n";
    assert!(told.starts_with("65536\n") && told.ends_with(expect), "{told}");
}

/// An image may hold files of users that the subordinate identifiers do not reach.
#[test]
fn an_owner_that_there_is_not_is_named() {
    let Some((place, _)) = made() else { return };
    for (entry, make) in [("file", "touch file"), ("directory", "mkdir directory")] {
        let script = format!(
            "{make}; tar --owner=3000000 --group=7 --numeric-owner -cf foreign.tar {entry}; \
             kiln import foreign.tar foreign:1 2>&1 || rm -r {entry}"
        );
        let told = place.run(Environment::SubIds, "022", &script);
        let expect = format!("layer entry /{entry}: its owner 3000000:7 is not among the user and group IDs");
        assert!(told.contains(&expect), "{told}");
    }
}
