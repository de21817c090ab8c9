//! What holds for every graph.

mod toy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_graph::memory::Memory;
use kiln_graph::{Cancel, Ending, Event, Graph, Input, Key, NoCache, Request, Vertex, VertexId};
use kiln_oci::Digest;
use proptest::prelude::*;
use toy::{Doing, Step, Toy, build, edit, request, solve};

/// A vertex before it is one: its word, whether it throws dice, and for each earlier vertex whether that is an
/// input.
type Sketch = (u8, bool, Vec<bool>);

#[derive(Debug, Clone)]
struct Case {
    graph: Graph<Step>,
    targets: Vec<VertexId>,
    threads: usize,
}

/// Few words, so that some vertices are equal.
fn cases() -> impl Strategy<Value = Case> {
    let inputs = prop::collection::vec(prop::bool::weighted(0.3), 12);
    drawn((0..12_u8, Just(false), inputs))
}

fn cases_with_dice() -> impl Strategy<Value = Case> {
    let inputs = prop::collection::vec(prop::bool::weighted(0.3), 12);
    drawn((0..12_u8, prop::bool::weighted(0.4), inputs))
}

fn drawn(sketch: impl Strategy<Value = Sketch>) -> impl Strategy<Value = Case> {
    let sketches = prop::collection::vec(sketch, 1..12);
    (sketches, prop::collection::vec(any::<prop::sample::Index>(), 1..3), 1..4_usize).prop_map(
        |(sketches, targets, threads)| {
            let graph = draw(&sketches);
            let ids: Vec<_> = graph.vertices().map(|(id, _)| id).collect();
            let targets = targets.iter().map(|index| *index.get(&ids)).collect();
            Case { graph, targets, threads }
        },
    )
}

fn draw(sketches: &[Sketch]) -> Graph<Step> {
    let mut graph = Graph::new();
    let mut ids = Vec::new();
    for (word, dice, inputs) in sketches {
        let mut step = Step::new(&format!("word {word}"));
        step.content = matches!(word, 3 | 4).then_some("constant");
        step.restorable = *word == 1;
        step.reads_data = *word == 2;
        if *dice {
            step.doing = Doing::Dice;
            step.word = format!("dice {word}");
        }
        let name = format!("vertex {}", ids.len());
        let vertex = Vertex::new(step, name);
        let chosen = ids.iter().zip(inputs).filter(|(_, chosen)| **chosen);
        ids.push(graph.add(chosen.fold(vertex, |vertex, (id, _)| vertex.input("source", *id))));
    }
    graph
}

/// Key and result of every vertex that the targets need, without cache and scheduler.
fn naive(graph: &Graph<Step>, targets: &[VertexId]) -> BTreeMap<VertexId, (Key, Digest)> {
    fn visit(graph: &Graph<Step>, id: VertexId, known: &mut BTreeMap<VertexId, (Key, Digest)>) -> Digest {
        if let Some((_, result)) = known.get(&id) {
            return *result;
        }
        let vertex = graph.vertex(id);
        let inputs: Vec<_> = vertex.inputs().iter().map(|input| visit(graph, input.vertex, known)).collect();
        let mut preimage = Toy::preimage_of(&vertex.operation);
        let named =
            |digest: &Digest| Input { name: "source".into(), selector: String::new(), digest: *digest };
        preimage.inputs = inputs.iter().map(named).collect();
        let result = Toy::result_of(&vertex.operation, &inputs);
        known.insert(id, (preimage.key(), result));
        result
    }
    let mut known = BTreeMap::new();
    for target in targets {
        visit(graph, *target, &mut known);
    }
    known
}

fn keys(known: &BTreeMap<VertexId, (Key, Digest)>) -> BTreeSet<Key> {
    known.values().map(|(key, _)| *key).collect()
}

/// Solves, and gives the key of each vertex that was executed, in order.
fn executed_keys(case: &Case, memory: &Memory<Digest>) -> Vec<Key> {
    let (toy, completed) = (Toy::default(), Mutex::new(Vec::new()));
    let solution = solve(&request(&case.graph, &case.targets, case.threads), &toy, memory, &|_, event| {
        if let Event::Completed { vertex, .. } = event {
            completed.lock().unwrap().push(vertex);
        }
    })
    .unwrap();
    for (id, (key, result)) in naive(&case.graph, &case.targets) {
        assert_eq!((solution.key(id), solution.result(id)), (Some(key), Some(&result)));
    }
    let completed = completed.into_inner().unwrap();
    assert_eq!(completed.len(), toy.take_executed().len());
    completed.into_iter().filter_map(|vertex| solution.key(vertex)).collect()
}

fn assert_each_once(executed: &[Key]) -> BTreeSet<Key> {
    let set: BTreeSet<_> = executed.iter().copied().collect();
    assert_eq!(set.len(), executed.len(), "a key is executed once");
    set
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_what_is_new_is_executed(
        case in cases(),
        edited in any::<prop::sample::Index>(),
        same_content in any::<bool>(),
    ) {
        let memory = Memory::new();
        let before = keys(&naive(&case.graph, &case.targets));
        prop_assert_eq!(&assert_each_once(&executed_keys(&case, &memory)), &before);
        prop_assert_eq!(executed_keys(&case, &memory), []);

        let ids: Vec<_> = case.graph.vertices().map(|(id, _)| id).collect();
        let graph = edit(&case.graph, *edited.get(&ids), |step| {
            step.word.push_str(" edited");
            if same_content {
                step.content = Some("constant");
            }
        });
        let case = Case { graph, ..case };
        let after = keys(&naive(&case.graph, &case.targets));
        let expect: BTreeSet<_> = after.difference(&before).copied().collect();
        let lookups = memory.lookups();
        prop_assert_eq!(assert_each_once(&executed_keys(&case, &memory)), expect);
        prop_assert!(memory.lookups() - lookups <= 2 * case.graph.len());
    }

    #[test]
    fn what_is_gone_is_made_again_only_where_needed(
        case in cases(),
        gone in prop::collection::vec(any::<bool>(), 12),
    ) {
        let memory = Memory::new();
        executed_keys(&case, &memory);
        let known = naive(&case.graph, &case.targets);
        let gone: BTreeSet<_> = known
            .iter()
            .filter(|(id, _)| gone[id.index()] && memory.forget_data(&known[id].0))
            .map(|(_, (key, _))| *key)
            .collect();
        let again = assert_each_once(&executed_keys(&case, &memory));
        prop_assert!(again.is_subset(&gone), "only what is gone is made again");
        let wanted = case.targets.iter().map(|target| known[target].0);
        let is_restorable = |key: &Key| known.iter().any(|(id, known)| {
            known.0 == *key && case.graph.vertex(*id).operation.restorable
        });
        for key in wanted.filter(|key| gone.contains(key) && !is_restorable(key)) {
            prop_assert!(again.contains(&key), "a target's data is made again");
        }
        prop_assert_eq!(executed_keys(&case, &memory), []);
    }

    #[test]
    fn a_solve_leaves_what_the_next_one_finds(
        case in cases_with_dice(),
        gone in prop::collection::vec(any::<bool>(), 12),
        no_cache in prop::collection::vec(prop::bool::weighted(0.1), 12),
    ) {
        let (toy, memory) = (Toy::default(), Memory::new());
        let all = request(&case.graph, &case.targets, case.threads);
        let first = solve(&all, &toy, &memory, &|_, _| ()).unwrap();
        let ids: Vec<_> = case.graph.vertices().map(|(id, _)| id).collect();
        for id in ids.iter().filter(|id| gone[id.index()]) {
            first.key(*id).map(|key| memory.forget_data(&key));
        }
        let without = ids.iter().copied().filter(|id| no_cache[id.index()]).collect();
        let second = Request { no_cache: NoCache::Vertices(without), ..all.clone() };
        let second = solve(&second, &toy, &memory, &|_, _| ()).unwrap();
        toy.take_executed();
        let third = solve(&all, &toy, &memory, &|_, _| ()).unwrap();
        prop_assert_eq!(toy.take_executed(), Vec::<String>::new());
        for id in ids {
            prop_assert_eq!(second.result(id), third.result(id));
            prop_assert_eq!(second.key(id), third.key(id));
        }
    }

    #[test]
    fn cancel_leaves_no_claim_and_starts_nothing(case in cases(), moment in 0..40_usize) {
        let (toy, memory) = (Toy::default(), Memory::new());
        let (cancel, count) = (Cancel::new(), AtomicUsize::new(0));
        let (returned, started_late) = (AtomicBool::new(false), AtomicUsize::new(0));
        let sink = |_, event: Event| {
            if matches!(event, Event::Started { .. }) && returned.load(Ordering::SeqCst) {
                started_late.fetch_add(1, Ordering::SeqCst);
            }
            if count.fetch_add(1, Ordering::SeqCst) == moment {
                cancel.cancel();
                returned.store(true, Ordering::SeqCst);
            }
        };
        let request = request(&case.graph, &case.targets, case.threads);
        let _ = kiln_graph::solve(&request, &toy, &memory, &sink, &Ending::new(&cancel));
        prop_assert_eq!(memory.claims(), 0);
        // Between the check and the event each worker may be overtaken by the cancellation once.
        prop_assert!(started_late.into_inner() <= case.threads);
        executed_keys(&case, &memory);
    }

    #[test]
    fn two_solves_execute_a_key_once(case in cases(), edited in any::<prop::sample::Index>()) {
        let memory = Memory::new();
        let ids: Vec<_> = case.graph.vertices().map(|(id, _)| id).collect();
        let graph = edit(&case.graph, *edited.get(&ids), |step| step.word.push_str(" edited"));
        let other = Case { graph, targets: case.targets.clone(), threads: 2 };
        let mut executed = std::thread::scope(|scope| {
            let beside = scope.spawn(|| executed_keys(&other, &memory));
            let mut executed = executed_keys(&case, &memory);
            executed.extend(beside.join().unwrap());
            executed
        });
        prop_assert_eq!(memory.claims(), 0);
        executed.sort();
        let mut expect = keys(&naive(&case.graph, &case.targets));
        expect.extend(keys(&naive(&other.graph, &other.targets)));
        prop_assert_eq!(executed, expect.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn one_worker_is_deterministic() {
    let sketches: Vec<Sketch> =
        (0..10_u8).map(|number| (number, false, (0..12).map(|other| other % 3 == 0).collect())).collect();
    let graph = draw(&sketches);
    let targets: Vec<_> = graph.vertices().map(|(id, _)| id).collect();
    let told = toy::tell(&graph, &targets, &Toy::default(), &Memory::new());
    for _ in 0..5 {
        assert_eq!(told, toy::tell(&graph, &targets, &Toy::default(), &Memory::new()));
    }
    assert_eq!(build(&graph, &targets, &Toy::default(), &Memory::new()).executions(), 10);
}
