//! The steps that bring one vertex further: identify, look up, restore, execute. Each runs without a lock.

use std::time::{Duration, Instant};

use crate::schedule::{Before, Data, Identified, Known, Miss, Next, Outcome, Task};
use crate::{
    Claim, Context, Done, Earlier, Entry, Event, Executor, Given, Graph, Identity, Key, NoCache, Origin,
    Preimage, Reason, Record, Records, Stop, VertexId, reasons,
};

/// How long to wait for another's claim before looking whether the build was canceled
const PATIENCE: Duration = Duration::from_millis(100);

/// What the steps need.
pub(crate) struct Steps<'a, O, X, S> {
    pub(crate) graph: &'a Graph<O>,
    pub(crate) executor: &'a X,
    pub(crate) records: &'a S,
    pub(crate) no_cache: &'a NoCache,
}

/// What a step gives.
pub(crate) type Step<R, E> = Result<Outcome<R>, Stop<E>>;

/// A claim that is held, and whether another's had to end first.
struct Claimed<G> {
    _guard: G,
    waited: bool,
}

impl<O, X, S> Steps<'_, O, X, S>
where
    X: Executor<O>,
    S: Records<Result = X::Result>,
    X::Error: From<S::Error>,
{
    /// Does one task.
    pub(crate) fn take(&self, task: Task<'_, X::Result>, context: &Context<'_>) -> Step<X::Result, X::Error> {
        match task.next {
            Next::Identify { before } => self.identify(before, task.versions, &task.inputs, context),
            Next::Restore(known) => self.restore(known, context),
            Next::Execute(identified, miss) => self.execute(identified, miss, &task.inputs, context),
            Next::Adopt(known) => {
                self.found(&known, context);
                Ok(Outcome::Known(known))
            }
        }
    }

    fn identify(
        &self,
        before: Before<X::Result>,
        versions: Vec<u32>,
        inputs: &[Given<'_, X::Result>],
        context: &Context<'_>,
    ) -> Step<X::Result, X::Error> {
        let vertex = context.vertex;
        let _span = self.span("compute key", vertex);
        let preimage = match self.executor.preimage(self.operation(vertex), inputs, context)? {
            Identity::Known(preimage) => preimage,
            Identity::NeedsData(wanted) => {
                assert!(
                    wanted.iter().any(|&input| !inputs[input].present),
                    "the executor asks for data that it was given"
                );
                return Ok(Outcome::NeedsData { inputs: wanted, next: Next::Identify { before } });
            }
        };
        let identified = Identified { key: preimage.key(), preimage, versions };
        let miss = match before {
            Before::Missed(before, miss) if before.key == identified.key => miss,
            Before::Known(known) if known.key == identified.key => {
                self.settle(&known, context);
                return Ok(Outcome::Unchanged(Known { versions: identified.versions, ..known }));
            }
            _ if self.no_cache.covers(vertex) => Miss::CacheDisabled,
            _ => match self.lookup(&identified.key)? {
                Some(record) => {
                    let known = from_record(identified, record, Origin::Record);
                    self.found(&known, context);
                    return Ok(Outcome::Known(known));
                }
                None => Miss::Unrecorded,
            },
        };
        Ok(self.when_inputs_are_present(vertex, Next::Execute(identified, miss)))
    }

    fn restore(&self, mut known: Known<X::Result>, context: &Context<'_>) -> Step<X::Result, X::Error> {
        let vertex = context.vertex;
        let start = Instant::now();
        let _span = self.span("restore", vertex);
        match self.executor.restore(self.operation(vertex), &known.result, context)? {
            Some(result) => {
                context.emit(Event::Restored { vertex, duration: start.elapsed() });
                known.result = result;
                known.data = Data::Present;
                Ok(Outcome::Unchanged(known))
            }
            None => {
                let Data::Gone(preimage) = known.data else {
                    unreachable!("what is present is not restored")
                };
                let identified = Identified { key: known.key, preimage, versions: known.versions };
                Ok(self.when_inputs_are_present(vertex, Next::Execute(identified, Miss::DataGone)))
            }
        }
    }

    fn execute(
        &self,
        mut identified: Identified,
        mut miss: Miss,
        inputs: &[Given<'_, X::Result>],
        context: &Context<'_>,
    ) -> Step<X::Result, X::Error> {
        let vertex = context.vertex;
        let _span = self.span("execute", vertex);
        let claimed = self.claim(&identified.key, context)?;
        if miss != Miss::CacheDisabled {
            // Another process may have executed it since the first lookup.
            match self.lookup(&identified.key)? {
                Some(record) if record.present => {
                    let origin = if claimed.waited { Origin::OtherProcess } else { Origin::Record };
                    let known = from_record(identified, record, origin);
                    self.found(&known, context);
                    return Ok(Outcome::Executed { admitted: known.key, known });
                }
                Some(_) => miss = Miss::DataGone,
                None => miss = Miss::Unrecorded,
            }
        }
        let reasons = self.reasons(&identified.preimage, miss)?;
        if context.cancel.is_canceled() {
            return Err(Stop::Canceled);
        }
        context.emit(Event::Missed { vertex, reasons });
        context.emit(Event::Started { vertex });
        let start = Instant::now();
        let operation = self.operation(vertex);
        let done = self.executor.execute(operation, &identified.preimage, inputs, context)?;
        let duration = start.elapsed();
        let Done { result, preimage } = done;
        let admitted = identified.key;
        if let Some(preimage) = preimage {
            identified = Identified { key: preimage.key(), preimage, ..identified };
        }
        let earlier = if miss == Miss::CacheDisabled { Earlier::Replaced } else { Earlier::Kept };
        let result = self.record(vertex, &identified, &result, duration, earlier)?;
        drop(claimed);
        context.emit(Event::Completed { vertex, duration });
        let Identified { key, versions, .. } = identified;
        let known = Known { key, versions, result, data: Data::Present, origin: Origin::Executed, duration };
        Ok(Outcome::Executed { admitted, known })
    }

    /// Claims the key, waiting for others as long as it takes.
    fn claim(&self, key: &Key, context: &Context<'_>) -> Result<Claimed<S::Guard>, Stop<X::Error>> {
        let vertex = context.vertex;
        let mut waited = false;
        let _span = kiln_trace::span("claim key");
        loop {
            if context.cancel.is_canceled() {
                return Err(Stop::Canceled);
            }
            match failed(self.records.claim(key))? {
                Claim::Owned(guard) => return Ok(Claimed { _guard: guard, waited }),
                Claim::Busy { holder } => {
                    if !waited {
                        context.emit(Event::WaitingForOtherProcess { vertex, holder });
                    }
                    waited = true;
                }
            }
            failed(self.records.wait(key, PATIENCE))?;
        }
    }

    fn reasons(&self, preimage: &Preimage, miss: Miss) -> Result<Vec<Reason>, Stop<X::Error>> {
        Ok(match miss {
            Miss::Unrecorded => self.explain(preimage)?,
            Miss::DataGone => vec![Reason::DataGone],
            Miss::CacheDisabled => vec![Reason::CacheDisabled],
        })
    }

    /// What is different from the nearest records.
    fn explain(&self, preimage: &Preimage) -> Result<Vec<Reason>, Stop<X::Error>> {
        let _span = kiln_trace::span("explain miss");
        Ok(reasons(preimage, &failed(self.records.candidates(preimage))?))
    }

    /// Tells of a result that needs no execution. Where its data is gone, that is not known yet.
    fn found(&self, known: &Known<X::Result>, context: &Context<'_>) {
        if known.is_present() {
            let (vertex, origin, saved) = (context.vertex, known.origin, known.duration);
            context.emit(Event::Cached { vertex, origin, saved });
        }
        self.settle(known, context);
    }

    fn settle(&self, known: &Known<X::Result>, context: &Context<'_>) {
        if known.is_present() {
            self.executor.settled(self.operation(context.vertex), context);
        }
    }

    fn span(&self, name: &'static str, vertex: VertexId) -> kiln_trace::Span {
        kiln_trace::span(name).of(|| self.graph.vertex(vertex).name.clone())
    }

    fn record(
        &self,
        vertex: VertexId,
        identified: &Identified,
        result: &X::Result,
        duration: Duration,
        earlier: Earlier,
    ) -> Result<X::Result, Stop<X::Error>> {
        let vertex = self.graph.vertex(vertex);
        let _span = kiln_trace::span("write record");
        failed(self.records.record(Entry {
            key: identified.key,
            preimage: &identified.preimage,
            result,
            duration,
            earlier,
            name: &vertex.name,
            span: vertex.span.as_ref(),
        }))
    }

    fn when_inputs_are_present(&self, vertex: VertexId, next: Next<X::Result>) -> Outcome<X::Result> {
        Outcome::NeedsData { inputs: (0..self.graph.vertex(vertex).inputs().len()).collect(), next }
    }

    fn lookup(&self, key: &Key) -> Result<Option<Record<X::Result>>, Stop<X::Error>> {
        let _span = kiln_trace::span("look record up");
        failed(self.records.lookup(key))
    }

    fn operation(&self, vertex: VertexId) -> &O {
        &self.graph.vertex(vertex).operation
    }
}

fn failed<T, F, E: From<F>>(result: Result<T, F>) -> Result<T, Stop<E>> {
    result.map_err(|error| Stop::Failed(error.into()))
}

fn from_record<R>(identified: Identified, record: Record<R>, origin: Origin) -> Known<R> {
    let Record { result, present, duration } = record;
    let Identified { key, preimage, versions } = identified;
    let data = if present { Data::Present } else { Data::Gone(preimage) };
    Known { key, versions, result, data, origin, duration }
}
