//! An executor whose operations are words and whose results are digests.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "a module of several test programs")]

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use kiln_graph::memory::Memory;
use kiln_graph::{
    Cancel, Context, Done, Ending, Event, Events, Executor, Given, Graph, Identity, Input, NoCache,
    Operation, Preimage, Request, Solution, SolveError, Stop, Stream, VertexId,
};
use kiln_oci::Digest;

/// An operation.
#[derive(Debug, Clone)]
pub struct Step {
    /// What its key knows of it
    pub word: String,
    /// What comes out, if not a digest of word and inputs
    pub content: Option<&'static str>,
    /// What happens while it is executed
    pub doing: Doing,
    /// Whether data that is gone can be had from elsewhere
    pub restorable: bool,
    /// Whether its key needs the data of its last input
    pub reads_data: bool,
}

/// What happens while a step is executed.
#[derive(Debug, Clone, Copy)]
pub enum Doing {
    Nothing,
    Sleep,
    /// Gives something else each time
    Dice,
    /// Finds that its word is another
    Learn(&'static str),
    Fail,
    FailSoon,
    FailWhenCanceled,
    UntilCanceled,
    Panic,
    /// Waits until so many steps are executed at once
    Meet(usize),
}

impl Step {
    pub fn new(word: &str) -> Step {
        Step {
            word: word.to_owned(),
            content: None,
            doing: Doing::Nothing,
            restorable: false,
            reads_data: false,
        }
    }

    pub fn slow(word: &str) -> Step {
        Step { doing: Doing::Sleep, ..Step::new(word) }
    }
}

/// The executor; notes what it executes.
#[derive(Default)]
pub struct Toy {
    slow: bool,
    executed: Mutex<Vec<String>>,
    settled: Mutex<Vec<String>>,
    dice: AtomicUsize,
    meeting: (Mutex<usize>, Condvar),
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} went wrong")]
pub struct Wrong(pub String);

impl From<std::convert::Infallible> for Wrong {
    fn from(never: std::convert::Infallible) -> Wrong {
        match never {}
    }
}

impl Toy {
    pub fn slow() -> Toy {
        Toy { slow: true, ..Toy::default() }
    }

    /// Words of what was executed since the last call, in order.
    pub fn take_executed(&self) -> Vec<String> {
        std::mem::take(&mut self.executed.lock().unwrap())
    }

    /// Words of what needed no execution since the last call, in order.
    pub fn take_settled(&self) -> Vec<String> {
        std::mem::take(&mut self.settled.lock().unwrap())
    }

    pub fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }

    /// The preimage of a step without inputs.
    pub fn preimage_of(step: &Step) -> Preimage {
        Preimage {
            operation: Operation::new("toy", 1, "any").with("word", step.word.as_str()),
            inputs: vec![],
        }
    }

    /// What a step gives.
    pub fn result_of(step: &Step, inputs: &[Digest]) -> Digest {
        match step.content {
            Some(content) => Digest::of(content.as_bytes()),
            None => {
                let inputs: Vec<_> = inputs.iter().map(ToString::to_string).collect();
                Digest::of(format!("{} {}", step.word, inputs.join(" ")).as_bytes())
            }
        }
    }

    fn act(&self, step: &Step, context: &Context<'_>) -> Result<Option<Done<Digest>>, Stop<Wrong>> {
        let wrong = || Stop::Failed(Wrong(step.word.clone()));
        match step.doing {
            Doing::Nothing => {}
            Doing::Sleep => std::thread::sleep(Duration::from_millis(5)),
            Doing::Dice => {
                let number = self.dice.fetch_add(1, Ordering::SeqCst);
                return Ok(Some(Digest::of(format!("dice {number}").as_bytes()).into()));
            }
            Doing::Learn(word) => {
                let preimage = Some(Toy::preimage_of(&Step::new(word)));
                return Ok(Some(Done { result: Digest::of(word.as_bytes()), preimage }));
            }
            Doing::Fail => return Err(wrong()),
            Doing::FailSoon => {
                std::thread::sleep(Duration::from_millis(50));
                return Err(wrong());
            }
            Doing::FailWhenCanceled | Doing::UntilCanceled => {
                assert!(context.cancel().sleep(Duration::from_secs(60)), "the step is told to stop");
                let gives_up = matches!(step.doing, Doing::UntilCanceled);
                return Err(if gives_up { Stop::Canceled } else { wrong() });
            }
            Doing::Panic => {
                std::thread::sleep(Duration::from_millis(20));
                panic!("{} panics", step.word)
            }
            Doing::Meet(number) => {
                let mut met = self.meeting.0.lock().unwrap();
                *met += 1;
                self.meeting.1.notify_all();
                let long = Duration::from_secs(60);
                let (met, _) = self.meeting.1.wait_timeout_while(met, long, |met| *met < number).unwrap();
                assert!(*met >= number, "steps run at once");
            }
        }
        Ok(None)
    }
}

impl Executor<Step> for Toy {
    type Result = Digest;
    type Error = Wrong;

    fn preimage(
        &self,
        step: &Step,
        inputs: &[Given<'_, Digest>],
        _: &Context<'_>,
    ) -> Result<Identity, Stop<Wrong>> {
        if step.reads_data && inputs.last().is_some_and(|input| !input.present) {
            return Ok(Identity::NeedsData(vec![inputs.len() - 1]));
        }
        let mut preimage = Toy::preimage_of(step);
        preimage.inputs = inputs
            .iter()
            .map(|input| Input { name: input.role.to_owned(), selector: String::new(), digest: input.result })
            .collect();
        Ok(Identity::Known(preimage))
    }

    fn execute(
        &self,
        step: &Step,
        preimage: &Preimage,
        inputs: &[Given<'_, Digest>],
        context: &Context<'_>,
    ) -> Result<Done<Digest>, Stop<Wrong>> {
        assert!(inputs.iter().all(|input| input.present), "inputs are present");
        let results: Vec<_> = inputs.iter().map(|input| input.result).collect();
        assert!(preimage.inputs.iter().map(|input| &input.digest).eq(&results), "the key knows what is used");
        self.executed.lock().unwrap().push(step.word.clone());
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        context.log(Stream::Output, step.word.as_bytes());
        if self.slow {
            std::thread::sleep(Duration::from_millis(5));
        }
        let done = self.act(step, context);
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(done?.unwrap_or_else(|| Toy::result_of(step, &results).into()))
    }

    fn settled(&self, step: &Step, _: &Context<'_>) {
        self.settled.lock().unwrap().push(step.word.clone());
    }

    fn restore(&self, step: &Step, result: &Digest, _: &Context<'_>) -> Result<Option<Digest>, Stop<Wrong>> {
        Ok(step.restorable.then_some(*result))
    }
}

pub fn request<'a>(graph: &'a Graph<Step>, targets: &'a [VertexId], threads: usize) -> Request<'a, Step> {
    Request { graph, targets, no_cache: NoCache::None, parallelism: NonZeroUsize::new(threads).unwrap() }
}

pub fn solve(
    request: &Request<'_, Step>,
    toy: &Toy,
    memory: &Memory<Digest>,
    events: &dyn Events,
) -> Result<Solution<Digest>, SolveError<Wrong>> {
    kiln_graph::solve(request, toy, memory, events, &Ending::new(&Cancel::new()))
}

/// Solves with one worker; must go well.
pub fn build(
    graph: &Graph<Step>,
    targets: &[VertexId],
    toy: &Toy,
    memory: &Memory<Digest>,
) -> Solution<Digest> {
    solve(&request(graph, targets, 1), toy, memory, &|_, _| ()).unwrap()
}

/// Solves with one worker; gives the events as texts.
pub fn tell(graph: &Graph<Step>, targets: &[VertexId], toy: &Toy, memory: &Memory<Digest>) -> Vec<String> {
    let told = Mutex::new(Vec::new());
    let events = |_: Duration, event: Event| {
        let what = match &event {
            Event::Missed { .. } => "missed".to_owned(),
            Event::Started { .. } => "started".to_owned(),
            Event::Cached { .. } => "cached".to_owned(),
            Event::Log { bytes, .. } => format!("log {}", bytes.len()),
            Event::Restored { .. } => "restored".to_owned(),
            Event::Completed { .. } => "completed".to_owned(),
            other => format!("{other:?}"),
        };
        told.lock().unwrap().push(format!("{} {what}", graph.vertex(event.vertex()).name));
    };
    solve(&request(graph, targets, 1), toy, memory, &events).unwrap();
    told.into_inner().unwrap()
}

/// The graph with one operation changed.
pub fn edit(graph: &Graph<Step>, edited: VertexId, change: impl FnOnce(&mut Step)) -> Graph<Step> {
    let mut change = Some(change);
    let mut copy = Graph::new();
    for (id, vertex) in graph.vertices() {
        let mut vertex = vertex.clone();
        if id == edited
            && let Some(change) = change.take()
        {
            change(&mut vertex.operation);
        }
        copy.add(vertex);
    }
    copy
}
