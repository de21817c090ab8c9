//! The suite that every implementation of [`Records`] runs in its tests. It panics where one breaks the contract.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use kiln_oci::Digest;

use crate::{Claim, Earlier, Entry, Input, Operation, Preimage, Record, Records};

/// Longer than any wait here should take, and than a test should
const LONG: Duration = Duration::from_secs(20);

/// Checks an implementation.
///
/// Each call of `open` opens the same records, empty at first, the way another process would. `result` gives a result that is
/// stored as present, different for different numbers. That data goes missing is not part of this suite.
///
/// # Panics
/// Where the contract is broken.
pub fn records<S>(open: impl Fn() -> S, result: impl Fn(u8) -> S::Result)
where
    S: Records,
    S::Result: PartialEq + Debug,
{
    let (here, there) = (open(), open());
    a_record_is_found_everywhere(&here, &there, &result);
    recording_again_replaces(&here, &there, &result);
    candidates_are_those_of_the_name(&here, &there, &result);
    a_claim_is_exclusive_until_dropped(&here, &there);
    a_waiter_takes_over(&here, &there);
    of_many_one_gets_the_claim(&open);
}

fn preimage(name: &str, argument: &str, input: u8) -> Preimage {
    Preimage {
        operation: Operation::new(name, 1, "linux/amd64").with("argument", argument),
        inputs: vec![
            Input { name: "root".into(), selector: String::new(), digest: Digest::from_bytes([input; 32]) },
            Input { name: "source".into(), selector: "*.c".into(), digest: Digest::from_bytes([9; 32]) },
        ],
    }
}

fn store<S>(records: &S, preimage: &Preimage, result: &S::Result, duration: Duration)
where
    S: Records,
    S::Result: PartialEq + Debug,
{
    let span = 3..14;
    let recorded = ok(records.record(Entry {
        key: preimage.key(),
        preimage,
        result,
        duration,
        earlier: Earlier::Kept,
        name: "a step",
        span: Some(&span),
    }));
    assert_eq!(recorded, *result);
}

fn ok<T, E: Debug>(result: Result<T, E>) -> T {
    result.expect("records can be read and written")
}

fn a_record_is_found_everywhere<S>(here: &S, there: &S, result: impl Fn(u8) -> S::Result)
where
    S: Records,
    S::Result: PartialEq + Debug,
{
    let preimage = preimage("found", "", 1);
    assert_eq!(ok(here.lookup(&preimage.key())), None);
    let duration = Duration::from_millis(1234);
    store(here, &preimage, &result(1), duration);
    let expect = Record { result: result(1), present: true, duration };
    assert_eq!(ok(here.lookup(&preimage.key())), Some(expect.clone()));
    assert_eq!(ok(there.lookup(&preimage.key())), Some(expect));
    assert_eq!(ok(there.lookup(&self::preimage("found", "", 2).key())), None);
}

fn recording_again_replaces<S>(here: &S, there: &S, result: impl Fn(u8) -> S::Result)
where
    S: Records,
    S::Result: PartialEq + Debug,
{
    let preimage = preimage("replaced", "", 1);
    store(here, &preimage, &result(2), Duration::ZERO);
    store(there, &preimage, &result(3), Duration::from_secs(1));
    store(there, &preimage, &result(3), Duration::from_secs(1));
    let expect = Record { result: result(3), present: true, duration: Duration::from_secs(1) };
    assert_eq!(ok(here.lookup(&preimage.key())), Some(expect));
    assert_eq!(ok(here.candidates(&preimage)), [preimage], "one record for a key");
}

fn candidates_are_those_of_the_name<S>(here: &S, there: &S, result: impl Fn(u8) -> S::Result)
where
    S: Records,
    S::Result: PartialEq + Debug,
{
    let missed = preimage("named", "a", 1);
    assert_eq!(ok(here.candidates(&missed)), []);
    let (other_input, other_argument) = (preimage("named", "a", 2), preimage("named", "b", 1));
    for recorded in [&other_input, &preimage("unnamed", "a", 1), &other_argument] {
        store(here, recorded, &result(4), Duration::ZERO);
    }
    assert_eq!(ok(there.candidates(&missed)), [other_argument, other_input], "newest first");
}

fn a_claim_is_exclusive_until_dropped<S: Records>(here: &S, there: &S) {
    let key = preimage("claimed", "", 1).key();
    let Claim::Owned(guard) = ok(here.claim(&key)) else { panic!("a free key can be claimed") };
    for records in [here, there] {
        assert!(matches!(ok(records.claim(&key)), Claim::Busy { .. }), "a claimed key is busy for all");
    }
    let other = ok(there.claim(&preimage("claimed", "", 2).key()));
    assert!(matches!(other, Claim::Owned(_)), "another key is free");
    let start = Instant::now();
    ok(there.wait(&key, Duration::from_millis(20)));
    assert!(start.elapsed() < LONG, "waiting ends with its time");
    drop(guard);
    assert!(matches!(ok(there.claim(&key)), Claim::Owned(_)), "a dropped claim frees the key");
    assert!(matches!(ok(here.claim(&key)), Claim::Owned(_)), "and so does the next");
}

fn a_waiter_takes_over<S: Records>(here: &S, there: &S) {
    let key = preimage("inherited", "", 1).key();
    let Claim::Owned(guard) = ok(here.claim(&key)) else { panic!("a free key can be claimed") };
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| claim_patiently(there, &key));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished(), "the claim is still held");
        drop(guard);
    });
}

fn of_many_one_gets_the_claim<S: Records>(open: impl Fn() -> S) {
    let key = preimage("contended", "", 1).key();
    let all: Vec<S> = (0..4).map(|_| open()).collect();
    let holders = std::sync::atomic::AtomicUsize::new(0);
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for records in &all {
            scope.spawn(|| {
                for _ in 0..5 {
                    let guard = claim_patiently(records, &key);
                    assert_eq!(holders.fetch_add(1, order), 0, "two hold one key");
                    std::thread::sleep(Duration::from_micros(200));
                    holders.fetch_sub(1, order);
                    drop(guard);
                }
            });
        }
    });
}

fn claim_patiently<S: Records>(records: &S, key: &crate::Key) -> S::Guard {
    let start = Instant::now();
    while start.elapsed() < LONG {
        if let Claim::Owned(guard) = ok(records.claim(key)) {
            return guard;
        }
        ok(records.wait(key, Duration::from_millis(50)));
    }
    panic!("a key stays busy though nobody holds it")
}
