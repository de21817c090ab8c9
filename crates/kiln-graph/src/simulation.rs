//! Tests of the schedule without threads: tasks are done and ended in every order that threads could bring about.

#[path = "../tests/toy/mod.rs"]
mod toy;

use std::time::Instant;

use kiln_oci::Digest;
use proptest::prelude::*;

use crate::memory::Memory;
use crate::schedule::{Known, Outcome, Schedule};
use crate::step::Steps;
use crate::{Cancel, Context, Graph, Key, NoCache, Vertex, VertexId};
use toy::{Doing, Step, Toy};

/// Few different vertices, so that many are equal; those with even words give something else each time.
fn draw(sketches: &[(u8, Vec<bool>)]) -> Graph<Step> {
    let mut graph = Graph::new();
    let mut ids = Vec::new();
    for (word, inputs) in sketches {
        let mut step = Step::new(&word.to_string());
        step.reads_data = *word == 3;
        if word % 2 == 0 {
            step.doing = Doing::Dice;
        }
        let chosen = ids.iter().zip(inputs).filter(|(_, chosen)| **chosen);
        let vertex = chosen.fold(Vertex::new(step, "step"), |vertex, (id, _)| vertex.input("source", *id));
        ids.push(graph.add(vertex));
    }
    graph
}

/// Key and result of each vertex, if it has them.
type Results = Vec<Option<(Key, Digest)>>;

/// Solves; at each moment one of `choices` says whether to begin a task or which of those begun to end.
fn simulate(
    graph: &Graph<Step>,
    no_cache: &NoCache,
    toy: &Toy,
    memory: &Memory<Digest>,
    choices: &[u8],
) -> Results {
    let targets: Vec<VertexId> = graph.vertices().map(|(id, _)| id).collect();
    let steps = Steps { graph, executor: toy, records: memory, no_cache };
    let (cancel, began) = (Cancel::new(), Instant::now());
    let mut schedule = Schedule::new(graph, &targets);
    let mut begun: Vec<(VertexId, Outcome<Digest>)> = Vec::new();
    for (moment, choice) in choices.iter().cycle().map(|choice| usize::from(*choice)).enumerate() {
        assert!(moment < 10_000, "a solve ends");
        if choice % 2 == 0
            && let Some(task) = schedule.take()
        {
            let vertex = task.vertex;
            let context = Context { vertex, cancel: &cancel, events: &|_, _| (), began };
            begun.push((vertex, steps.take(task, &context).unwrap()));
        } else if !begun.is_empty() {
            // Mostly the last, so that some tasks are overtaken by many others.
            let overtaken = if choice % 8 == 1 { choice / 8 % begun.len() } else { begun.len() - 1 };
            let (vertex, outcome) = begun.swap_remove(overtaken);
            schedule.end(vertex, outcome);
        } else if !schedule.has_ready() {
            break;
        }
    }
    assert!(!schedule.is_running());
    assert!(targets.iter().all(|target| schedule.known(*target).is_some_and(Known::is_present)));
    schedule.into_known().map(|known| known.map(|known| (known.key, known.result))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_a_solve_leaves_what_the_next_one_finds(
        sketches in prop::collection::vec((0..4_u8, prop::collection::vec(prop::bool::weighted(0.4), 7)), 1..8),
        gone in prop::collection::vec(any::<bool>(), 8),
        no_cache in prop::collection::vec(prop::bool::weighted(0.3), 8),
        choices in prop::collection::vec(any::<u8>(), 40),
    ) {
        let choices = [choices.as_slice(), &[0, 1]].concat();
        let (graph, toy, memory) = (draw(&sketches), Toy::default(), Memory::new());
        let first = simulate(&graph, &NoCache::None, &toy, &memory, &choices);
        prop_assert_eq!(&simulate(&graph, &NoCache::None, &toy, &memory, &[0, 1, 3]), &first);

        for (key, _) in first.iter().zip(&gone).filter(|(_, gone)| **gone).filter_map(|(known, _)| *known) {
            memory.forget_data(&key);
        }
        let ids = graph.vertices().map(|(id, _)| id);
        let without = NoCache::Vertices(ids.filter(|id| no_cache[id.index()]).collect());
        let second = simulate(&graph, &without, &toy, &memory, &choices);
        toy.take_executed();
        let third = simulate(&graph, &NoCache::None, &toy, &memory, &[0, 1, 3]);
        prop_assert_eq!(toy.take_executed(), Vec::<String>::new());
        prop_assert_eq!(second, third);
        prop_assert_eq!(memory.claims(), 0);
    }
}
