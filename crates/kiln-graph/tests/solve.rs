//! The graph with a toy executor: what is executed, what is not, and what is said about it.

mod toy;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use kiln_graph::memory::Memory;
use kiln_graph::{
    Cancel, Claim, Earlier, Ending, Entry, Event, Graph, NoCache, Operation, Origin, Preimage, Reason,
    Records, SolveError, Vertex, VertexId,
};
use toy::{Doing, Step, Toy, build, request, solve};

/// base <- compile(source) <- link <- image; and a vertex that nobody needs.
fn program() -> (Graph<Step>, [VertexId; 5]) {
    let mut graph = Graph::new();
    let source = graph.add(Vertex::new(Step::new("source"), "source"));
    let base = graph.add(Vertex::new(Step::new("base"), "base"));
    let compile =
        graph.add(Vertex::new(Step::new("compile"), "compile").input("root", base).input("source", source));
    let link = graph.add(Vertex::new(Step::new("link"), "link").input("root", compile));
    let unused = graph.add(Vertex::new(Step::new("unused"), "unused").input("root", link));
    (graph, [source, base, compile, link, unused])
}

#[test]
fn nothing_is_done_twice_and_nothing_without_need() {
    let (graph, [source, base, compile, link, unused]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    let first = build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["source", "base", "compile", "link"]);
    assert_eq!(first.result(unused), None);
    assert_eq!(first.executions(), 4);

    let lookups = memory.lookups();
    let second = build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), [""; 0]);
    assert_eq!(memory.lookups() - lookups, 4);
    assert_eq!(second.executions(), 0);
    for vertex in [source, base, compile, link] {
        assert_eq!(first.result(vertex), second.result(vertex));
        assert_eq!(first.key(vertex), second.key(vertex));
        assert_eq!(second.origin(vertex), Some(Origin::Record));
    }

    build(&graph, &[base, unused], &toy, &memory);
    assert_eq!(toy.take_executed(), ["unused"]);
}

#[test]
fn no_targets_need_nothing() {
    let (graph, _) = program();
    let solution = build(&graph, &[], &Toy::default(), &Memory::new());
    assert_eq!(solution.executions(), 0);
}

#[test]
fn equal_content_cuts_off() {
    let (mut graph, [source, _, _, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    graph = toy::edit(&graph, source, |step| step.content = Some("same"));
    build(&graph, &[link], &toy, &memory);
    toy.take_executed();
    graph = toy::edit(&graph, source, |step| step.word = "source, with another comment".to_owned());
    build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["source, with another comment"]);
    graph = toy::edit(&graph, source, |step| {
        step.content = Some("other");
        step.word = "changed".to_owned();
    });
    build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["changed", "compile", "link"]);
}

#[test]
fn one_worker_tells_in_a_fixed_order() {
    let (graph, [.., link, _]) = program();
    let memory = Memory::new();
    let told = toy::tell(&graph, &[link], &Toy::default(), &memory);
    let again = toy::tell(&graph, &[link], &Toy::default(), &Memory::new());
    assert_eq!(told, again);
    let expect = "source missed, source started, source log 6, source completed, base missed, base started, base log 4, \
                  base completed, compile missed, compile started, compile log 7, compile completed, link missed, \
                  link started, link log 4, link completed";
    assert_eq!(told.join(", "), expect);
    let cached = toy::tell(&graph, &[link], &Toy::default(), &memory);
    assert_eq!(cached, ["source cached", "base cached", "compile cached", "link cached"]);
}

#[test]
fn gone_data_does_not_matter_until_it_is_needed() {
    let (mut graph, [source, base, compile, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    let first = build(&graph, &[link], &toy, &memory);
    toy.take_executed();
    for vertex in [source, base, compile] {
        assert!(memory.forget_data(&first.key(vertex).unwrap()));
    }
    // Whether they are needed is known at the end.
    let told = toy::tell(&graph, &[link], &toy, &memory);
    assert_eq!(told, ["link cached", "source cached", "base cached", "compile cached"]);
    assert_eq!(toy.take_executed(), [""; 0]);

    // A miss needs its inputs, and what they need to be made again. None of those was there all along.
    graph = toy::edit(&graph, link, |step| step.word = "link again".to_owned());
    let told = toy::tell(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["source", "base", "compile", "link again"]);
    assert!(!told.iter().any(|told| told.ends_with(" cached")), "{told:?}");

    // So does a target.
    assert!(memory.forget_data(&build(&graph, &[link], &toy, &memory).key(link).unwrap()));
    build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["link again"]);
}

#[test]
fn what_needs_no_execution_is_settled() {
    let (mut graph, [source, base, compile, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    let first = build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_settled(), [""; 0]);
    build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_settled(), ["source", "base", "compile", "link"]);

    // What has no data may have to be executed yet.
    for vertex in [source, base, compile] {
        memory.forget_data(&first.key(vertex).unwrap());
    }
    build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_settled(), ["link"]);
    graph = toy::edit(&graph, link, |step| step.word = "link again".to_owned());
    build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_settled(), [""; 0]);
}

#[test]
fn data_that_can_be_restored_is_not_made_again() {
    let (mut graph, [source, base, compile, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    let first = build(&graph, &[link], &toy, &memory);
    for vertex in [source, base, compile] {
        memory.forget_data(&first.key(vertex).unwrap());
    }
    toy.take_executed();
    graph = toy::edit(&graph, compile, |step| step.restorable = true);
    graph = toy::edit(&graph, link, |step| step.word = "link again".to_owned());
    let told = toy::tell(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["link again"]);
    // What is below it is not needed then.
    assert_eq!(told[0], "compile restored");
    assert_eq!(told[told.len() - 2..], ["source cached", "base cached"]);
}

#[test]
fn what_comes_out_different_when_made_again_changes_the_keys_above() {
    let (mut graph, [_, base, compile, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    graph = toy::edit(&graph, base, |step| step.doing = Doing::Dice);
    let first = build(&graph, &[link], &toy, &memory);
    toy.take_executed();
    for vertex in [base, compile] {
        memory.forget_data(&first.key(vertex).unwrap());
    }
    graph = toy::edit(&graph, link, |step| step.word = "link again".to_owned());
    let second = build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["base", "compile", "link again"]);
    assert_ne!(first.result(base), second.result(base));
    assert_ne!(first.key(compile), second.key(compile));
    // What was recorded agrees with what was used.
    let third = build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), [""; 0]);
    assert_eq!(second.result(link), third.result(link));
}

#[test]
fn a_key_that_cannot_be_told_without_data_gets_it() {
    let (mut graph, [source, base, compile, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    graph = toy::edit(&graph, compile, |step| step.reads_data = true);
    let first = build(&graph, &[link], &toy, &memory);
    toy.take_executed();
    for vertex in [source, base] {
        memory.forget_data(&first.key(vertex).unwrap());
    }
    build(&graph, &[link], &toy, &memory);
    assert_eq!(toy.take_executed(), ["source"], "the key of compile reads its second input");
}

#[test]
fn equal_vertices_run_once() {
    for no_cache in [NoCache::None, NoCache::All] {
        for threads in [1, 4] {
            let mut graph = Graph::new();
            let base = graph.add(Vertex::new(Step::new("base"), "base"));
            let twins: Vec<_> = (0..8)
                .map(|_| graph.add(Vertex::new(Step::slow("twin"), "twin").input("root", base)))
                .collect();
            let toy = Toy::default();
            let request =
                kiln_graph::Request { no_cache: no_cache.clone(), ..request(&graph, &twins, threads) };
            let solution = solve(&request, &toy, &Memory::new(), &|_, _| ()).unwrap();
            assert_eq!(toy.take_executed(), ["base", "twin"]);
            assert_eq!(solution.executions(), 2);
            assert!(twins.iter().all(|twin| solution.result(*twin) == solution.result(twins[0])));
        }
    }
}

#[test]
fn no_cache_ignores_records_and_makes_new_ones() {
    let (mut graph, [_, base, _, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    graph = toy::edit(&graph, base, |step| step.doing = Doing::Dice);
    build(&graph, &[link], &toy, &memory);
    toy.take_executed();

    let events = Mutex::new(Vec::new());
    let targets = [link];
    let only_base =
        kiln_graph::Request { no_cache: NoCache::Vertices([base].into()), ..request(&graph, &targets, 1) };
    let changed = solve(&only_base, &toy, &memory, &|_, event| events.lock().unwrap().push(event)).unwrap();
    assert_eq!(toy.take_executed(), ["base", "compile", "link"]);
    let disabled = Event::Missed { vertex: base, reasons: vec![Reason::CacheDisabled] };
    assert!(events.lock().unwrap().contains(&disabled));
    assert_eq!(build(&graph, &[link], &toy, &memory).result(link), changed.result(link));
    assert_eq!(toy.take_executed(), [""; 0]);

    let all = kiln_graph::Request { no_cache: NoCache::All, ..request(&graph, &targets, 1) };
    solve(&all, &toy, &memory, &|_, _| ()).unwrap();
    assert_eq!(toy.take_executed(), ["source", "base", "compile", "link"]);
}

#[test]
fn a_miss_names_what_changed() {
    let (graph, [source, _, compile, link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    build(&graph, &[link], &toy, &memory);
    let edited = toy::edit(&graph, source, |step| step.word = "source, edited".to_owned());
    let misses = Mutex::new(Vec::new());
    solve(&request(&edited, &[link], 1), &toy, &memory, &|_, event| {
        if let Event::Missed { vertex, reasons } = event {
            misses.lock().unwrap().push((vertex, reasons));
        }
    })
    .unwrap();
    let misses = misses.into_inner().unwrap();
    let text =
        |position: usize| misses[position].1.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    assert_eq!(misses.iter().map(|miss| miss.0).collect::<Vec<_>>(), [source, compile, link]);
    assert!(text(0).starts_with("word changed from "), "{}", text(0));
    assert!(text(1).starts_with("source changed from "), "{}", text(1));
    assert!(text(2).starts_with("root changed from "), "{}", text(2));
}

#[test]
fn what_an_operation_really_read_is_what_is_recorded() {
    let mut graph = Graph::new();
    let mut step = Step::new("copy");
    step.doing = Doing::Learn("what was there in the end");
    let copy = graph.add(Vertex::new(step, "copy"));
    let (toy, memory) = (Toy::default(), Memory::new());
    let solution = build(&graph, &[copy], &toy, &memory);
    let learned = Preimage {
        operation: Operation::new("toy", 1, "any").with("word", "what was there in the end"),
        inputs: vec![],
    };
    assert_eq!(solution.key(copy), Some(learned.key()));
    assert!(memory.lookup(&learned.key()).unwrap().is_some());
    assert_eq!(memory.len(), 1);
}

#[test]
fn the_first_failure_stops_the_rest() {
    let mut graph = Graph::new();
    let bad = graph.add(Vertex::new(Step { doing: Doing::Fail, ..Step::new("bad") }, "bad"));
    let other = graph.add(Vertex::new(Step::new("other"), "other"));
    let above = graph.add(Vertex::new(Step::new("above"), "above").input("root", bad));
    let (toy, memory) = (Toy::default(), Memory::new());
    let error = solve(&request(&graph, &[above, other], 1), &toy, &memory, &|_, _| ()).unwrap_err();
    assert_eq!(error.to_string(), "bad failed");
    let SolveError::Failed { vertex, error, others, .. } = error else { panic!("{error:?}") };
    assert_eq!((vertex, error.to_string().as_str(), others.len()), (bad, "bad went wrong", 0));
    assert_eq!(toy.take_executed(), ["bad"]);
    assert_eq!((memory.claims(), memory.len()), (0, 0));
}

#[test]
fn a_failure_cancels_what_runs_and_all_failures_are_kept() {
    let mut graph = Graph::new();
    let patient =
        graph.add(Vertex::new(Step { doing: Doing::UntilCanceled, ..Step::new("patient") }, "patient"));
    let spiteful =
        graph.add(Vertex::new(Step { doing: Doing::FailWhenCanceled, ..Step::new("spiteful") }, "spiteful"));
    let bad = graph.add(Vertex::new(Step { doing: Doing::FailSoon, ..Step::new("bad") }, "bad"));
    let (toy, memory) = (Toy::default(), Memory::new());
    let events = Mutex::new(Vec::new());
    let targets = [patient, spiteful, bad];
    let error =
        solve(&request(&graph, &targets, 3), &toy, &memory, &|_, event| events.lock().unwrap().push(event));
    let SolveError::Failed { vertex, others, .. } = error.unwrap_err() else { panic!("a step failed") };
    assert_eq!(vertex, bad);
    assert_eq!(others.iter().map(|failure| failure.vertex).collect::<Vec<_>>(), [spiteful]);
    let events = events.into_inner().unwrap();
    assert!(events.contains(&Event::Canceled { vertex: patient }));
    let message = "spiteful went wrong".to_owned();
    assert!(events.contains(&Event::Failed { vertex: spiteful, message }));
    assert_eq!(memory.claims(), 0);
}

#[test]
fn after_cancel_nothing_starts() {
    let (graph, [source, .., link, _]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    let cancel = Cancel::new();
    let error = kiln_graph::solve(
        &request(&graph, &[link], 1),
        &toy,
        &memory,
        &|_, event| {
            if event == (Event::Started { vertex: source }) {
                cancel.cancel();
            }
        },
        &Ending::new(&cancel),
    );
    assert!(matches!(error.unwrap_err(), SolveError::Canceled));
    assert_eq!(toy.take_executed(), ["source"]);
    assert_eq!((memory.claims(), memory.len()), (0, 1), "what was finished all the same is kept");

    let ending = Ending::new(&cancel);
    let error = kiln_graph::solve(&request(&graph, &[link], 4), &toy, &memory, &|_, _| (), &ending);
    assert!(matches!(error.unwrap_err(), SolveError::Canceled));
    assert_eq!(toy.take_executed(), [""; 0]);
}

#[test]
fn cancel_reaches_one_who_waits_for_another_process() {
    let (graph, [source, ..]) = program();
    let (toy, memory) = (Toy::default(), Memory::new());
    let key = build(&graph, &[source], &toy, &Memory::new()).key(source).unwrap();
    toy.take_executed();
    let Claim::Owned(_guard) = memory.claim(&key).unwrap() else { panic!("the key is free") };
    let cancel = Cancel::new();
    let waiting = |_: Duration, event: Event| {
        if matches!(event, Event::WaitingForOtherProcess { .. }) {
            cancel.cancel();
        }
    };
    let ending = Ending::new(&cancel);
    let error = kiln_graph::solve(&request(&graph, &[source], 1), &toy, &memory, &waiting, &ending);
    assert!(matches!(error.unwrap_err(), SolveError::Canceled));
    assert_eq!(toy.take_executed(), [""; 0]);
}

#[test]
fn two_solves_share_the_work() {
    let (graph, [.., link, _]) = program();
    let memory = Memory::new();
    let toys = [Toy::slow(), Toy::slow()];
    let results: Vec<_> = std::thread::scope(|scope| {
        let solves: Vec<_> = toys
            .iter()
            .map(|toy| {
                let (memory, graph) = (memory.clone(), &graph);
                scope.spawn(move || build(graph, &[link], toy, &memory).result(link).copied())
            })
            .collect();
        solves.into_iter().map(|solve| solve.join().unwrap()).collect()
    });
    assert_eq!(results[0], results[1]);
    let mut executed: Vec<_> = toys.iter().flat_map(Toy::take_executed).collect();
    executed.sort();
    assert_eq!(executed, ["base", "compile", "link", "source"]);
    assert_eq!(memory.claims(), 0);
}

#[test]
fn what_another_process_recorded_is_taken_and_what_it_left_is_taken_over() {
    let (graph, [source, ..]) = program();
    let model = build(&graph, &[source], &Toy::default(), &Memory::new());
    let (key, result) = (model.key(source).unwrap(), *model.result(source).unwrap());
    for records_it in [true, false] {
        let (toy, memory) = (Toy::default(), Memory::new());
        let guard = Mutex::new(Some(memory.claim(&key).unwrap()));
        let events = Mutex::new(Vec::new());
        // The other process ends, well or not, as soon as it is waited for.
        let sink = |_: Duration, event: Event| {
            if matches!(event, Event::WaitingForOtherProcess { .. }) {
                if records_it {
                    let preimage = Toy::preimage_of(&graph.vertex(source).operation);
                    let entry = Entry {
                        key,
                        preimage: &preimage,
                        result: &result,
                        duration: Duration::ZERO,
                        earlier: Earlier::Kept,
                        name: "source",
                        span: None,
                    };
                    memory.record(entry).unwrap();
                }
                drop(guard.lock().unwrap().take());
            }
            events.lock().unwrap().push(event);
        };
        let solution = solve(&request(&graph, &[source], 1), &toy, &memory, &sink).unwrap();
        let waited = events
            .lock()
            .unwrap()
            .iter()
            .filter(|event| matches!(event, Event::WaitingForOtherProcess { .. }))
            .count();
        assert_eq!(waited, 1);
        assert_eq!(solution.result(source), Some(&result));
        let expect = if records_it { (Origin::OtherProcess, 0) } else { (Origin::Executed, 1) };
        assert_eq!((solution.origin(source).unwrap(), toy.take_executed().len()), expect);
        assert_eq!(memory.claims(), 0);
    }
}

#[test]
fn independent_vertices_run_at_once() {
    let mut graph = Graph::new();
    // Each waits until all four are running.
    let together: Vec<_> = (0..4)
        .map(|number| {
            let step = Step { doing: Doing::Meet(4), ..Step::new(&format!("step {number}")) };
            graph.add(Vertex::new(step, "together"))
        })
        .collect();
    solve(&request(&graph, &together, 4), &Toy::default(), &Memory::new(), &|_, _| ()).unwrap();
}

#[test]
fn no_more_run_at_once_than_allowed() {
    let mut graph = Graph::new();
    let steps: Vec<_> =
        (0..12).map(|number| graph.add(Vertex::new(Step::slow(&number.to_string()), "step"))).collect();
    let toy = Toy::default();
    solve(&request(&graph, &steps, 3), &toy, &Memory::new(), &|_, _| ()).unwrap();
    assert!((1..=3).contains(&toy.most_at_once()), "{}", toy.most_at_once());
}

#[test]
fn a_panic_of_the_executor_is_passed_on_and_leaves_no_claim() {
    let mut graph = Graph::new();
    let bad = graph.add(Vertex::new(Step { doing: Doing::Panic, ..Step::new("bad") }, "bad"));
    let patient =
        graph.add(Vertex::new(Step { doing: Doing::UntilCanceled, ..Step::new("patient") }, "patient"));
    let memory = Memory::new();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        drop(solve(&request(&graph, &[patient, bad], 2), &Toy::default(), &memory, &|_, _| ()));
    }));
    assert!(caught.is_err());
    assert_eq!(memory.claims(), 0);
}

#[test]
fn a_build_without_changes_stays_on_its_thread_and_takes_no_time() {
    let mut graph = Graph::new();
    let mut last = graph.add(Vertex::new(Step::new("base"), "base"));
    for number in 1..200 {
        last = graph.add(Vertex::new(Step::new(&number.to_string()), "step").input("root", last));
    }
    let (toy, memory) = (Toy::default(), Memory::new());
    solve(&request(&graph, &[last], 4), &toy, &memory, &|_, _| ()).unwrap();
    assert_eq!(toy.take_executed().len(), 200);
    let (lookups, main) = (memory.lookups(), std::thread::current().id());
    let start = Instant::now();
    let solution = solve(&request(&graph, &[last], 4), &toy, &memory, &|_, _| {
        assert_eq!(std::thread::current().id(), main, "a chain of hits needs no thread");
    });
    let elapsed = start.elapsed();
    assert_eq!(solution.unwrap().executions(), 0);
    assert_eq!(memory.lookups() - lookups, 200);
    // An order of magnitude more than it takes without optimisation.
    assert!(elapsed < Duration::from_millis(100), "{elapsed:?}");
}
