//! Where each vertex stands, and which may be worked on next. Does no work itself and calls nobody.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::{Given, Graph, Key, Origin, Preimage, VertexId};

/// State of all vertices of one solve.
pub(crate) struct Schedule<'g, O, R> {
    graph: &'g Graph<O>,
    nodes: Vec<Node<R>>,
    /// Vertices in state `Ready`; the lowest is taken first, so that one worker goes in a fixed order.
    ready: BTreeSet<VertexId>,
    /// Tasks taken and not yet ended
    running: usize,
    /// Keys that are being executed here, and the vertices that wait for that
    executing: HashMap<Key, Vec<VertexId>>,
    /// Keys that were executed here
    executed: HashMap<Key, Execution<R>>,
}

struct Node<R> {
    state: State<R>,
    /// Vertices that have this one as an input
    users: Vec<VertexId>,
    wants_data: bool,
    /// Counts the results that this vertex has had; users compare it to learn that theirs is outdated.
    version: u32,
}

enum State<R> {
    Unneeded,
    WaitingForInputs { before: Before<R> },
    WaitingForData { inputs: Vec<usize>, next: Next<R> },
    WaitingForTwin(Next<R>),
    Ready(Next<R>),
    Running,
    Known(Known<R>),
}

struct Execution<R> {
    vertex: VertexId,
    result: R,
    duration: Duration,
}

/// A vertex whose result is known.
pub(crate) struct Known<R> {
    pub(crate) key: Key,
    /// Versions of the inputs whose results gave the key
    pub(crate) versions: Vec<u32>,
    pub(crate) result: R,
    pub(crate) data: Data,
    pub(crate) origin: Origin,
    pub(crate) duration: Duration,
}

/// Whether a result's data is there.
pub(crate) enum Data {
    /// It stays so, and the operation is not executed under this key any more: its preimage, which may be large, is not
    /// kept.
    Present,
    /// If it cannot be restored the operation is executed again.
    Gone(Preimage),
}

impl<R> Known<R> {
    pub(crate) fn is_present(&self) -> bool {
        matches!(self.data, Data::Present)
    }
}

/// A vertex whose key is known.
pub(crate) struct Identified {
    pub(crate) key: Key,
    pub(crate) preimage: Preimage,
    /// Versions of the inputs whose results gave the key
    pub(crate) versions: Vec<u32>,
}

/// Why there is something to execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    Unrecorded,
    DataGone,
    CacheDisabled,
}

/// What is to be done for a vertex.
pub(crate) enum Next<R> {
    /// Tell its key and look it up.
    Identify { before: Before<R> },
    /// Bring back its data.
    Restore(Known<R>),
    /// Execute it.
    Execute(Identified, Miss),
    /// Say that it has the result of another vertex.
    Adopt(Known<R>),
}

/// Where a vertex stood when a result that its key came from was replaced.
pub(crate) enum Before<R> {
    Nothing,
    Missed(Identified, Miss),
    Known(Known<R>),
}

/// One thing for a worker to do.
pub(crate) struct Task<'g, R> {
    pub(crate) vertex: VertexId,
    pub(crate) next: Next<R>,
    pub(crate) inputs: Vec<Given<'g, R>>,
    pub(crate) versions: Vec<u32>,
}

/// What came of it.
pub(crate) enum Outcome<R> {
    /// The result is known, its data perhaps not present.
    Known(Known<R>),
    /// The result is the one that was known before; its data may have become present.
    Unchanged(Known<R>),
    /// The execution that [`Schedule::take`] had admitted for this key gave a result.
    Executed { admitted: Key, known: Known<R> },
    /// It can go on when the data of these inputs is present.
    NeedsData { inputs: Vec<usize>, next: Next<R> },
}

impl<'g, O, R: Clone> Schedule<'g, O, R> {
    pub(crate) fn new(graph: &'g Graph<O>, targets: &[VertexId]) -> Schedule<'g, O, R> {
        let needed = graph.needed(targets);
        let mut nodes: Vec<_> = needed
            .iter()
            .map(|needed| Node {
                state: if *needed {
                    State::WaitingForInputs { before: Before::Nothing }
                } else {
                    State::Unneeded
                },
                users: Vec::new(),
                wants_data: false,
                version: 0,
            })
            .collect();
        for target in targets {
            nodes[target.index()].wants_data = true;
        }
        let mut schedule = Schedule {
            graph,
            nodes,
            ready: BTreeSet::new(),
            running: 0,
            executing: HashMap::new(),
            executed: HashMap::new(),
        };
        for (id, vertex) in graph.vertices().filter(|(id, _)| needed[id.index()]) {
            for input in vertex.inputs() {
                schedule.nodes[input.vertex.index()].users.push(id);
            }
            schedule.reconsider(id);
        }
        schedule
    }

    /// Whether a task could be taken.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a task that was taken has not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.running > 0
    }

    /// The next task; it must be ended with [`Schedule::end`] or [`Schedule::abandon`].
    pub(crate) fn take(&mut self) -> Option<Task<'g, R>> {
        while let Some(id) = self.ready.pop_first() {
            let State::Ready(next) = self.set(id, State::Running) else {
                unreachable!("a vertex in the queue is ready")
            };
            let versions = self.versions(id);
            let next = match next {
                // An input that was known is being looked at again: its result may be about to change.
                Next::Identify { before } if !self.inputs_are_known(id) => {
                    self.set(id, State::WaitingForInputs { before });
                    continue;
                }
                Next::Execute(..) if !self.inputs_are_present(id) => {
                    self.set(id, State::WaitingForData { inputs: self.all_inputs(id), next });
                    continue;
                }
                Next::Execute(identified, miss) if identified.versions != versions => {
                    Next::Identify { before: Before::Missed(identified, miss) }
                }
                Next::Execute(identified, miss) => match self.admit(id, identified, miss) {
                    Some(next) => next,
                    None => continue,
                },
                next => next,
            };
            self.running += 1;
            return Some(Task { vertex: id, next, inputs: self.given(id), versions });
        }
        None
    }

    /// Of several vertices with one key the first executes and the others wait.
    fn admit(&mut self, id: VertexId, identified: Identified, miss: Miss) -> Option<Next<R>> {
        if self.executed.contains_key(&identified.key) {
            self.adopt(id, identified.key, identified.versions);
            return None;
        }
        if let Some(twins) = self.executing.get_mut(&identified.key) {
            twins.push(id);
            self.nodes[id.index()].state = State::WaitingForTwin(Next::Execute(identified, miss));
            return None;
        }
        self.executing.insert(identified.key, Vec::new());
        Some(Next::Execute(identified, miss))
    }

    /// Ends a task.
    pub(crate) fn end(&mut self, id: VertexId, outcome: Outcome<R>) {
        self.running -= 1;
        match outcome {
            Outcome::Known(known) => {
                self.nodes[id.index()].version += 1;
                self.know(id, known);
            }
            Outcome::Unchanged(known) => self.know(id, known),
            Outcome::Executed { admitted, known } => {
                self.nodes[id.index()].version += 1;
                let result = known.result.clone();
                let duration = known.duration;
                self.executed.insert(admitted, Execution { vertex: id, result, duration });
                self.replace_record(admitted);
                self.know(id, known);
                for twin in self.executing.remove(&admitted).into_iter().flatten() {
                    if let State::WaitingForTwin(next) = self.set(twin, State::Running) {
                        self.make_ready(twin, next);
                    }
                }
            }
            Outcome::NeedsData { inputs, next } => {
                for &input in &inputs {
                    self.demand(self.graph.vertex(id).inputs()[input].vertex);
                }
                self.set(id, State::WaitingForData { inputs, next });
                self.reconsider(id);
            }
        }
    }

    /// Ends a task that will give nothing; the solve is over then.
    pub(crate) fn abandon(&mut self) {
        self.running -= 1;
    }

    /// The vertex's result.
    pub(crate) fn known(&self, id: VertexId) -> Option<&Known<R>> {
        match &self.nodes[id.index()].state {
            State::Known(known) => Some(known),
            _ => None,
        }
    }

    /// All results, by vertex.
    pub(crate) fn into_known(self) -> impl Iterator<Item = Option<Known<R>>> {
        self.nodes.into_iter().map(|node| match node.state {
            State::Known(known) => Some(known),
            _ => None,
        })
    }

    fn know(&mut self, id: VertexId, known: Known<R>) {
        if known.versions != self.versions(id) {
            return self.make_ready(id, Next::Identify { before: Before::Known(known) });
        }
        let key = known.key;
        if known.origin == Origin::Record && self.executed.get(&key).is_some_and(|twin| twin.vertex != id) {
            return self.adopt(id, key, known.versions);
        }
        if !known.is_present() && self.nodes[id.index()].wants_data {
            return self.make_ready(id, Next::Restore(known));
        }
        self.set(id, State::Known(known));
        for user in self.nodes[id.index()].users.clone() {
            self.reconsider(user);
        }
    }

    /// Vertices that found a record before it was replaced get the new result, as later solves will.
    fn replace_record(&mut self, key: Key) {
        let has_key = |node: &Node<R>| matches!(&node.state, State::Known(known) if known.key == key);
        let twins: Vec<_> =
            self.graph.vertices().map(|(id, _)| id).filter(|id| has_key(&self.nodes[id.index()])).collect();
        for twin in twins {
            if let State::Known(known) = self.set(twin, State::Running) {
                self.adopt(twin, key, known.versions);
            }
        }
    }

    /// Gives the vertex the result that another one's execution of the same key had.
    fn adopt(&mut self, id: VertexId, key: Key, versions: Vec<u32>) {
        let execution = &self.executed[&key];
        let known = Known {
            key,
            versions,
            result: execution.result.clone(),
            data: Data::Present,
            origin: Origin::Vertex(execution.vertex),
            duration: execution.duration,
        };
        self.make_ready(id, Next::Adopt(known));
    }

    fn inputs_are_known(&self, id: VertexId) -> bool {
        self.graph.vertex(id).inputs().iter().all(|input| self.known(input.vertex).is_some())
    }

    fn inputs_are_present(&self, id: VertexId) -> bool {
        self.graph.vertex(id).inputs().iter().all(|input| self.is_present(input.vertex))
    }

    fn is_present(&self, id: VertexId) -> bool {
        self.known(id).is_some_and(Known::is_present)
    }

    /// Positions of all inputs.
    fn all_inputs(&self, id: VertexId) -> Vec<usize> {
        (0..self.graph.vertex(id).inputs().len()).collect()
    }

    /// Has the vertex's data made present, now or when its result is known.
    fn demand(&mut self, id: VertexId) {
        let node = &mut self.nodes[id.index()];
        node.wants_data = true;
        if matches!(&node.state, State::Known(known) if !known.is_present())
            && let State::Known(known) = self.set(id, State::Running)
        {
            self.make_ready(id, Next::Restore(known));
        }
    }

    /// Makes the vertex ready if what it waits for has come, or what it came from was replaced.
    fn reconsider(&mut self, id: VertexId) {
        let inputs = self.graph.vertex(id).inputs();
        let come = match &self.nodes[id.index()].state {
            State::WaitingForInputs { .. } => self.inputs_are_known(id),
            State::WaitingForData { inputs: wanted, .. } => {
                wanted.iter().all(|&position| self.is_present(inputs[position].vertex))
            }
            State::Known(known) => known.versions != self.versions(id),
            _ => false,
        };
        if come {
            match self.set(id, State::Running) {
                State::WaitingForInputs { before } => self.make_ready(id, Next::Identify { before }),
                State::WaitingForData { next, .. } => self.make_ready(id, next),
                State::Known(known) => self.make_ready(id, Next::Identify { before: Before::Known(known) }),
                _ => unreachable!("the vertex was waiting a moment ago"),
            }
        }
    }

    fn make_ready(&mut self, id: VertexId, next: Next<R>) {
        self.set(id, State::Ready(next));
        self.ready.insert(id);
    }

    fn set(&mut self, id: VertexId, state: State<R>) -> State<R> {
        std::mem::replace(&mut self.nodes[id.index()].state, state)
    }

    fn versions(&self, id: VertexId) -> Vec<u32> {
        let inputs = self.graph.vertex(id).inputs().iter();
        inputs.map(|input| self.nodes[input.vertex.index()].version).collect()
    }

    fn given(&self, id: VertexId) -> Vec<Given<'g, R>> {
        let graph = self.graph;
        let inputs = graph.vertex(id).inputs().iter();
        inputs
            .filter_map(|input| {
                let known = self.known(input.vertex)?;
                Some(Given { role: &input.role, result: known.result.clone(), present: known.is_present() })
            })
            .collect()
    }
}
