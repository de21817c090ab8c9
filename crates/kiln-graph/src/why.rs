//! Why a key missed: the nearest recorded preimage, and where it differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kiln_oci::Digest;

use crate::{Preimage, Value};

/// One thing that keeps a record from being used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing was recorded that has the same operation or the same inputs.
    NoRecord,
    /// A member of the operation differs.
    OperationChanged {
        /// The member's name
        field: String,
        /// Its recorded value, if there is one
        before: Option<Value>,
        /// Its value now, if there is one
        after: Option<Value>,
    },
    /// An input's content differs.
    InputChanged {
        /// The input's name
        name: String,
        /// What part of it is taken
        selector: String,
        /// The recorded digest
        before: Digest,
        /// The digest now
        after: Digest,
    },
    /// There is an input more.
    InputAdded {
        /// The input's name
        name: String,
        /// What part of it is taken
        selector: String,
    },
    /// There is an input less.
    InputRemoved {
        /// The input's name
        name: String,
        /// What part of it was taken
        selector: String,
    },
    /// The inputs are the same in another order.
    InputsReordered,
    /// There is a record, but the data of its result was removed and is needed.
    DataGone,
    /// The caller wanted no records to be used.
    CacheDisabled,
}

/// Compares a preimage that missed with recorded ones, and tells where it differs from the nearest; the first of
/// equally near ones is taken. Never empty.
pub fn reasons(missed: &Preimage, candidates: &[Preimage]) -> Vec<Reason> {
    let mut nearest: Option<Comparison> = None;
    for candidate in candidates.iter().filter(|candidate| related(candidate, missed)) {
        let comparison = compare(candidate, missed);
        let nearer = nearest.as_ref().is_none_or(|nearest| {
            (comparison.equal, nearest.differences.len()) > (nearest.equal, comparison.differences.len())
        });
        if nearer && !comparison.differences.is_empty() {
            nearest = Some(comparison);
        }
    }
    nearest.map_or_else(|| vec![Reason::NoRecord], |nearest| nearest.differences)
}

/// Two steps that differ in both what they do and what they do it to have nothing to say about each other.
fn related(before: &Preimage, after: &Preimage) -> bool {
    before.operation.name() == after.operation.name()
        && (before.operation == after.operation || before.inputs == after.inputs)
}

struct Comparison {
    equal: usize,
    differences: Vec<Reason>,
}

fn compare(before: &Preimage, after: &Preimage) -> Comparison {
    let mut comparison = Comparison { equal: 0, differences: Vec::new() };
    compare_operations(before, after, &mut comparison);
    compare_inputs(before, after, &mut comparison);
    if comparison.differences.is_empty() && before.inputs != after.inputs {
        comparison.differences.push(Reason::InputsReordered);
    }
    comparison
}

fn compare_operations(before: &Preimage, after: &Preimage, comparison: &mut Comparison) {
    let (before, after) = (before.operation.members(), after.operation.members());
    for field in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (before.get(field), after.get(field));
        if before == after {
            comparison.equal += 1;
        } else {
            comparison.differences.push(Reason::OperationChanged {
                field: field.clone(),
                before: before.cloned(),
                after: after.cloned(),
            });
        }
    }
}

fn compare_inputs(before: &Preimage, after: &Preimage, comparison: &mut Comparison) {
    let (before, after) = (named(before), named(after));
    for place in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (name, selector) = (place.0.to_owned(), place.1.to_owned());
        let difference = match (before.get(place), after.get(place)) {
            (Some(before), Some(after)) if before == after => {
                comparison.equal += 1;
                continue;
            }
            (Some(&before), Some(&after)) => Reason::InputChanged { name, selector, before, after },
            (Some(_), None) => Reason::InputRemoved { name, selector },
            (None, _) => Reason::InputAdded { name, selector },
        };
        comparison.differences.push(difference);
    }
}

/// Digests by name, selector, and number among those that share both.
fn named(preimage: &Preimage) -> BTreeMap<(&str, &str, usize), Digest> {
    let mut named = BTreeMap::new();
    for input in &preimage.inputs {
        let mut place = (input.name.as_str(), input.selector.as_str(), 0);
        while named.contains_key(&place) {
            place.2 += 1;
        }
        named.insert(place, input.digest);
    }
    named
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoRecord => f.write_str("nothing comparable was done before"),
            Reason::OperationChanged { field, before, after } => {
                let (before, after) = narrowed(before.as_ref(), after.as_ref());
                write!(f, "{field} changed from {before} to {after}")
            }
            Reason::InputChanged { name, selector, before, after } => {
                write_input(f, name, selector)?;
                write!(f, " changed from {} to {}", before.short(), after.short())
            }
            Reason::InputAdded { name, selector } => {
                write_input(f, name, selector)?;
                f.write_str(" was added")
            }
            Reason::InputRemoved { name, selector } => {
                write_input(f, name, selector)?;
                f.write_str(" was removed")
            }
            Reason::InputsReordered => f.write_str("the order of the inputs changed"),
            Reason::DataGone => f.write_str("the recorded result's data was removed"),
            Reason::CacheDisabled => f.write_str("the cache is disabled for this step"),
        }
    }
}

fn write_input(f: &mut fmt::Formatter<'_>, name: &str, selector: &str) -> fmt::Result {
    if selector.is_empty() { f.write_str(name) } else { write!(f, "{name} {selector}") }
}

/// Two values as texts; of two lists or objects only what the other does not have.
fn narrowed(before: Option<&Value>, after: Option<&Value>) -> (String, String) {
    match (before, after) {
        (Some(Value::List(before)), Some(Value::List(after))) => {
            let lacks = |list: &[Value], other: &[Value]| {
                let other: BTreeSet<_> = other.iter().collect();
                Value::List(list.iter().filter(|item| !other.contains(item)).cloned().collect())
            };
            let (removed, added) = (lacks(before, after), lacks(after, before));
            if removed == added {
                // The same items in another order, or another number of times.
                return (shown(Some(&Value::List(before.clone()))), shown(Some(&Value::List(after.clone()))));
            }
            (shown(Some(&removed)), shown(Some(&added)))
        }
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let lacks = |object: &BTreeMap<String, Value>, other: &BTreeMap<String, Value>| {
                let own = object.iter().filter(|(name, value)| other.get(*name) != Some(value));
                Value::object(own.map(|(name, value)| (name.clone(), value.clone())))
            };
            (shown(Some(&lacks(before, after))), shown(Some(&lacks(after, before))))
        }
        _ => (shown(before), shown(after)),
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(Value::List(items)) if items.is_empty() => "nothing".to_owned(),
        Some(Value::Object(members)) if members.is_empty() => "nothing".to_owned(),
        Some(Value::List(items)) if items.len() == 1 => items[0].to_string(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Input, Operation};

    fn run(arguments: &str, environment: &[&str], inputs: &[(&str, &str, u8)]) -> Preimage {
        Preimage {
            operation: Operation::new("run", 1, "linux/amd64")
                .with("arguments", vec!["sh", "-c", arguments])
                .with("environment", environment.to_vec()),
            inputs: inputs
                .iter()
                .map(|&(name, selector, digest)| Input {
                    name: name.to_owned(),
                    selector: selector.to_owned(),
                    digest: Digest::from_bytes([digest; 32]),
                })
                .collect(),
        }
    }

    fn check(missed: &Preimage, candidates: &[Preimage], expect: &[&str]) {
        let texts: Vec<_> = reasons(missed, candidates).iter().map(ToString::to_string).collect();
        assert_eq!(texts, expect);
    }

    #[test]
    fn long_lists_are_compared_at_once() {
        let start = std::time::Instant::now();
        let variables = |last: &str| -> Vec<String> {
            (0..40_000).map(|number| format!("a_variable_{number}=x")).chain([last.to_owned()]).collect()
        };
        let preimage = |last: &str| {
            let variables = variables(last);
            run("make", &variables.iter().map(String::as_str).collect::<Vec<_>>(), &[("root", "", 1)])
        };
        check(&preimage("A=2"), &[preimage("A=1")], &["environment changed from \"A=1\" to \"A=2\""]);
        assert!(start.elapsed() < std::time::Duration::from_secs(15), "{:?}", start.elapsed());
    }

    #[test]
    fn each_difference_is_named() {
        let missed = run("make", &["A=1", "B=2"], &[("root", "", 1), ("source", "*.c", 2)]);
        let inputs = &[("root", "", 1), ("source", "*.c", 2)];
        let equal_operation = |inputs: &[_]| run("make", &["A=1", "B=2"], inputs);
        check(&missed, &[], &["nothing comparable was done before"]);
        check(
            &missed,
            &[run("make all", &["A=1", "B=2"], inputs)],
            &["arguments changed from \"make all\" to \"make\""],
        );
        check(
            &missed,
            &[run("make", &["A=1", "B=1"], inputs)],
            &["environment changed from \"B=1\" to \"B=2\""],
        );
        check(
            &missed,
            &[run("make", &["B=2", "A=1"], inputs)],
            &["environment changed from [\"B=2\",\"A=1\"] to [\"A=1\",\"B=2\"]"],
        );
        check(&missed, &[run("make", &["A=1"], inputs)], &["environment changed from nothing to \"B=2\""]);
        check(
            &missed,
            &[equal_operation(&[("root", "", 1), ("source", "*.c", 3)])],
            &["source *.c changed from 030303030303 to 020202020202"],
        );
        check(
            &missed,
            &[equal_operation(&[("root", "", 1), ("source", "*.h", 2)])],
            &["source *.c was added", "source *.h was removed"],
        );
        check(
            &missed,
            &[equal_operation(&[("source", "*.c", 2), ("root", "", 1)])],
            &["the order of the inputs changed"],
        );
        check(
            &missed,
            &[Preimage { operation: missed.operation.clone().with("user", "me"), ..missed.clone() }],
            &["user changed from \"me\" to nothing"],
        );
    }

    #[test]
    fn the_nearest_is_taken_and_strangers_are_not() {
        let missed = run("make", &["A=1"], &[("root", "", 1), ("source", "a", 2), ("source", "b", 3)]);
        let one = run("make", &["A=1"], &[("root", "", 1), ("source", "a", 2), ("source", "b", 9)]);
        let two = run("make", &["A=1"], &[("root", "", 1), ("source", "a", 9), ("source", "b", 9)]);
        let expect = ["source b changed from 090909090909 to 030303030303"];
        check(&missed, &[two.clone(), one.clone()], &expect);
        check(&missed, &[one, two], &expect);
        check(&missed, &[run("test", &["A=1"], &[("root", "", 5)])], &["nothing comparable was done before"]);
    }

    #[test]
    fn equal_names_and_selectors_are_told_apart_by_number() {
        let missed = run("make", &[], &[("source", "a", 1), ("source", "a", 2)]);
        let before = run("make", &[], &[("source", "a", 1), ("source", "a", 3)]);
        check(&missed, &[before], &["source a changed from 030303030303 to 020202020202"]);
    }
}
