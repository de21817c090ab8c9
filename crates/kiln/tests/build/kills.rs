//! A store outlives whatever is killed in it at any instant: it opens, no name is lost or points elsewhere, every byte is
//! what its digest says, and the next collection removes what was left behind.
//!
//! The test tells its seed; the same and longer runs by hand:
//!
//! ```text
//! KILN_KILL_SEED=1234 KILN_KILL_ROUNDS=5000 cargo test --release -p kiln --test build kills -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use crate::bench::{Bench, say, text};
use crate::dice::{Dice, first_seed, variable};

/// The seed where CI is set.
const GATE_SEED: u64 = 7;
/// Rounds where nobody asks for more.
const ROUNDS: u64 = 40;
/// Rounds between two checks of everything.
const ROUNDS_OF_A_CHECK: u64 = 10;
/// How long a command may go on at the most before it is killed: about as long as a build with a RUN takes.
const LONGEST: Duration = Duration::from_millis(400);

/// What a command may do to the one name that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Gives,
    Takes,
    Nothing,
}

type Names = BTreeMap<String, String>;

fn names(bench: &Bench) -> Names {
    let listed =
        bench.run("store", &["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]);
    assert!(listed.status.success(), "{listed:?}");
    let listed = text(&listed.stdout);
    let pairs = listed.lines().filter_map(|line| line.split_once(' '));
    pairs.filter(|(name, _)| *name != "<none>:<none>").map(|(n, i)| (n.to_owned(), i.to_owned())).collect()
}

/// The words of a command, the name that it is about, and what it may do to it.
fn command(bench: &Bench, dice: &mut Dice) -> (Vec<String>, String, Change) {
    let tag = ["x:1", "x:2", "x:3"][dice.below(3)].to_owned();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    match dice.below(7) {
        0 => (words("load -q -i saved.tar"), "saved:1".to_owned(), Change::Gives),
        1 => (words(&format!("import image.tar {tag}")), tag, Change::Gives),
        2 | 3 => {
            bench.write("context/data", &format!("{}", dice.below(1000)));
            (words(&format!("build -q -t {tag} context")), tag, Change::Gives)
        }
        4 => {
            let name = if dice.one_in(3) { "saved:1".to_owned() } else { tag };
            (words(&format!("rmi {name}")), name, Change::Takes)
        }
        5 => (words("system prune -f"), tag, Change::Nothing),
        _ => (words(&format!("tag bb {tag}")), tag, Change::Gives),
    }
}

#[track_caller]
fn check_names(before: &Names, after: &Names, name: &str, change: Change) {
    for (kept, id) in before.iter().filter(|(kept, _)| *kept != name) {
        assert_eq!(after.get(kept), Some(id), "{kept}");
    }
    for made in after.keys().filter(|made| !before.contains_key(*made)) {
        assert!(made == name && change == Change::Gives, "{made} came from nowhere");
    }
    let (old, new) = (before.get(name), after.get(name));
    match change {
        Change::Gives => assert!(new.is_some() || old.is_none(), "{name} is lost"),
        Change::Takes => assert!(new.is_none() || new == old, "{name} moved"),
        Change::Nothing => assert_eq!(new, old),
    }
}

/// Everything is what its digest says, nothing is left behind after a collection, and the base can be read.
#[track_caller]
fn check_store(bench: &Bench) {
    let checked = |words: &[&str]| {
        let output = bench.run("store", words);
        assert!(output.status.success(), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    assert!(checked(&["system", "check"]).contains(": no fault"));
    checked(&["system", "prune", "-f"]);
    let told = checked(&["system", "check"]);
    assert!(told.ends_with(": no fault\n") && !told.contains("unused"), "{told}");
    assert_eq!(checked(&["image", "cat", "bb", "/etc/passwd"]), "root:x:0:0::/root:/bin/sh\n");
    assert_eq!(bench.leases(), 0);
    bench.assert_nothing_goes_on("no marker");
}

#[test]
fn kills_lose_nothing() {
    let first = first_seed("KILN_KILL_SEED", GATE_SEED);
    let rounds = variable("KILN_KILL_ROUNDS").unwrap_or(ROUNDS);
    let Some(bench) = Bench::new() else { return };
    say(&format!("KILN_KILL_SEED={first}"));
    bench.write("context/Dockerfile", "FROM bb\nCOPY data /data\nRUN cat /data /data > /twice\nENV A=1\n");
    bench.write("context/data", "saved");
    for words in [&["build", "-q", "-t", "saved:1", "context"][..], &["save", "-o", "saved.tar", "saved:1"]] {
        let output = bench.run("store", words);
        assert!(output.status.success(), "{output:?}");
    }
    let mut dice = Dice::new(first);
    for round in 0..rounds {
        let before = names(&bench);
        let (words, name, change) = command(&bench, &mut dice);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut child = bench.kiln("store", &words);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        // Short times more often: most of what changes the store is short.
        let share = dice.below(1000) * dice.below(1000);
        std::thread::sleep(LONGEST.mul_f64(share as f64 / 1e6));
        child.kill().expect("killed");
        child.wait().expect("waited");
        let told = std::panic::catch_unwind(|| {
            check_names(&before, &names(&bench), &name, change);
            if round % ROUNDS_OF_A_CHECK == ROUNDS_OF_A_CHECK - 1 || round + 1 == rounds {
                check_store(&bench);
            }
        });
        assert!(told.is_ok(), "KILN_KILL_SEED={first}, round {round}: after killing {words:?}");
    }
}
