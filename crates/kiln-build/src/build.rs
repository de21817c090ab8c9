//! The whole way: parse, lower, solve, export.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use kiln_dockerfile::{Diagnostic, Dockerfile, Severity, Span, parse_checked, render_all};
use kiln_graph::{Cancel, Ending, Events, Graph, NoCache, Request, Solution, SolveError, VertexId, solve};
use kiln_oci::{DiffId, ImageId, Platform, Reference};
use kiln_store::{LateLease, Store};

use crate::engine::{Engine, Step};
use crate::error::{Error, Result};
use crate::lower::{BaseImage, Bases, Lowered, lower};
use crate::operation::{Operation, ROOT};
use crate::request::{BuildRequest, CacheUse};

/// Whether a config will be too large is looked at before its steps are run if its history has so many bytes, as what fills
/// it does; all are looked at when they are written.
const LARGE_HISTORY: usize = 1 << 20;

/// What a build made.
#[derive(Clone, Debug)]
pub struct Built {
    /// Digest of the config.
    pub id: ImageId,
    /// Warnings about the Dockerfile, rendered with their lines.
    pub warnings: String,
    /// How many steps ran.
    pub executions: usize,
}

/// A build that failed in one of its steps, or before.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct BuildFailure {
    /// What went wrong.
    #[source]
    pub error: Error,
    /// The step's name, if it was a step.
    pub step: Option<String>,
    /// Where in the Dockerfile, in bytes.
    pub span: Option<std::ops::Range<usize>>,
    /// The Dockerfile's text, for an excerpt.
    pub source_text: String,
}

/// Steps of a build, as shown before they happen.
pub trait Watcher: Events {
    /// The graph's vertices are known: identity and name of each.
    fn planned(&self, steps: &[(VertexId, String)]);
    /// Something to tell once, such as which network is used.
    fn note(&self, text: &str);
    /// Something is about to be made, so that an interruption should cancel the build and no longer just end it. May
    /// come more than once.
    fn works(&self) {}
}

/// Builds an image and names it. What was made for the cache stays, also if the build fails.
pub fn build<W: Watcher>(
    store: &Store,
    request: &BuildRequest,
    watcher: &W,
    cancel: &Cancel,
) -> std::result::Result<Built, Box<BuildFailure>> {
    let parsed = parse_traced(request);
    let source_text = parsed.dockerfile.source.clone();
    let fail = |error: Error, step: Option<String>, span: Option<std::ops::Range<usize>>| {
        let span = span.or_else(|| span_of(&error).map(|span| span.start..span.end));
        Box::new(BuildFailure { error, step, span, source_text: source_text.clone() })
    };
    let mut diagnostics = parsed.diagnostics;
    let refused = |diagnostics: &[Diagnostic]| -> std::result::Result<(), Box<BuildFailure>> {
        let errors = rendered(request, &source_text, diagnostics, Severity::Error);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(fail(Error::Dockerfile(errors.trim_end().to_owned()), None, None))
        }
    };
    refused(&diagnostics)?;
    let lease = store.lease_late("build").map_err(|error| fail(error.into(), None, None))?;
    keep_named(store, &lease, request).map_err(|error| fail(error.into(), None, None))?;
    let lowered = match plan(store, &lease, &parsed.dockerfile, request) {
        Err(Error::Syntax(kiln_dockerfile::Error::At { error, span })) => {
            diagnostics.push(Diagnostic::error(error.to_string(), span));
            return Err(refused(&diagnostics)
                .err()
                .unwrap_or_else(|| fail(Error::Syntax(*error), None, None)));
        }
        planned => planned.map_err(|error| fail(error, None, None))?,
    };
    diagnostics.extend_from_slice(&lowered.findings);
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    refused(&diagnostics)?;
    watcher.planned(&steps(&lowered.graph));
    let ending = Ending::new(cancel);
    let engine = Engine {
        stood_on: stood_on(&lowered.graph),
        // Nothing is made yet: an interrupt still ends the build at once.
        before_reading: &|| Ok(lease.begin().map(drop)?),
        note: &|text: &str| watcher.note(text),
        works: &|| watcher.works(),
        cancel: ending.token().clone(),
        ..Engine::new(store, &lease, request)
    };
    let solved = run(&engine, &lowered, watcher, &ending);
    // What was learned of the context is of use also to the build that comes after one that failed.
    let saved = engine.opened.get().map_or(Ok(()), crate::context::BuildContext::save);
    let solution = solved.map_err(|error| match *error {
        SolveError::Canceled => fail(Error::Canceled, None, None),
        SolveError::Failed { vertex, name, error, .. } => {
            let span = lowered.graph.vertex(vertex).span.clone();
            fail(error, Some(name), span)
        }
    })?;
    saved.map_err(|error| fail(error, None, None))?;
    let layers =
        result_layers(&engine, lowered.target, solution.as_ref()).map_err(|error| fail(error, None, None))?;
    let executions = solution.as_ref().map_or(0, Solution::executions);
    let id = export(&engine, lowered, &layers, solution.as_ref()).map_err(|error| fail(error, None, None))?;
    // The lease still holds what this build used. The image is there, whatever becomes of the cache.
    if executions > 0
        && let Err(error) = store.collect_if_needed()
    {
        watcher.note(&format!("the build cache could not be trimmed: {error}"));
    }
    let warnings = rendered(request, &source_text, &diagnostics, Severity::Warning);
    Ok(Built { id, warnings, executions })
}

/// The diagnostics of one severity as people read them; empty if there is none.
fn rendered(request: &BuildRequest, source: &str, diagnostics: &[Diagnostic], severity: Severity) -> String {
    let chosen: Vec<_> =
        diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).cloned().collect();
    render_all(&chosen, &request.dockerfile_name, source)
}

fn span_of(error: &Error) -> Option<Span> {
    match error {
        Error::Instruction { span, .. } | Error::NoBase { span, .. } => Some(*span),
        _ => None,
    }
}

fn steps(graph: &Graph<Operation>) -> Vec<(VertexId, String)> {
    graph.vertices().map(|(id, vertex)| (id, vertex.name.clone())).collect()
}

/// The vertices on whose roots a RUN stands, directly or through steps that only copy.
fn stood_on(graph: &Graph<Operation>) -> HashSet<VertexId> {
    let mut found = HashSet::new();
    let vertices: Vec<_> = graph.vertices().collect();
    for (id, vertex) in vertices.into_iter().rev() {
        if matches!(vertex.operation, Operation::Run(_)) || found.contains(&id) {
            found.extend(vertex.inputs().iter().filter(|edge| edge.role == ROOT).map(|edge| edge.vertex));
        }
    }
    found
}

/// Leases what has the build's names now: most builds end there again.
fn keep_named(store: &Store, lease: &LateLease<'_>, request: &BuildRequest) -> kiln_store::Result<()> {
    for name in &request.names {
        if let Some(image) = store.find_name(name)? {
            match lease.keep_image(image) {
                // It was removed a moment ago: the build makes another.
                Err(kiln_store::Error::NoImage { .. }) => {}
                kept => kept?,
            }
        }
    }
    Ok(())
}

fn parse_traced(request: &BuildRequest) -> kiln_dockerfile::Parsed {
    let _span = kiln_trace::span("parse").with_bytes(request.dockerfile.len() as u64);
    let check = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str);
    parse_checked(&request.dockerfile, check)
}

fn plan(
    store: &Store,
    lease: &LateLease<'_>,
    dockerfile: &Dockerfile,
    request: &BuildRequest,
) -> Result<Lowered> {
    let _span = kiln_trace::span("lower");
    let lowered = lower(dockerfile, request, &mut StoreBases { store, lease })?;
    // Better now than when all steps are done.
    lowered.image.check_counts(lowered.history.len())?;
    let texts: usize = lowered.history.iter().map(|plan| plan.entry.created_by.len()).sum();
    if texts > LARGE_HISTORY {
        lowered.image.check_size(texts)?;
    }
    Ok(lowered)
}

/// Base images from the store.
struct StoreBases<'a> {
    store: &'a Store,
    lease: &'a LateLease<'a>,
}

impl Bases for StoreBases<'_> {
    fn find(&mut self, reference: &Reference, _platform: &Platform, span: Span) -> Result<BaseImage> {
        let found = self.store.find_name(reference)?;
        let id = match found {
            Some(id) => id,
            None => {
                return Err(Error::NoBase {
                    reference: reference.to_string(),
                    store: self.store.root().display().to_string(),
                    span,
                    near_stage: None,
                });
            }
        };
        self.lease.keep_image(id)?;
        let image = self.store.image(id)?;
        let pinned = match reference.digest {
            Some(_) => reference.to_string(),
            None => format!("{reference}@{id}"),
        };
        Ok(BaseImage { config: image.config, pinned })
    }
}

fn run<W: Watcher>(
    engine: &Engine<'_>,
    lowered: &Lowered,
    watcher: &W,
    ending: &Ending,
) -> std::result::Result<Option<Solution<Step>>, Box<SolveError<Error>>> {
    let Some(target) = lowered.target else { return Ok(None) };
    let parallelism = NonZeroUsize::new(engine.request.parallelism).unwrap_or(NonZeroUsize::MIN);
    let no_cache = match engine.request.cache {
        CacheUse::Records => NoCache::None,
        CacheUse::Nothing => NoCache::All,
    };
    let request = Request { graph: &lowered.graph, targets: &[target], no_cache, parallelism };
    Ok(Some(solve(&request, engine, engine, watcher, ending)?))
}

/// The layers of the image's root, from the bottom to the top.
fn result_layers(
    engine: &Engine<'_>,
    target: Option<VertexId>,
    solution: Option<&Solution<Step>>,
) -> Result<Vec<DiffId>> {
    match target.and_then(|target| solution?.result(target)) {
        Some(step) => engine.layers(step.chain),
        None => Ok(Vec::new()),
    }
}

fn export(
    engine: &Engine<'_>,
    lowered: Lowered,
    layers: &[DiffId],
    solution: Option<&Solution<Step>>,
) -> Result<ImageId> {
    let _span = kiln_trace::span("export");
    let base_layers = lowered.image.rootfs.diff_ids.len();
    let made = |vertex: VertexId| solution.and_then(|s| s.result(vertex)).map(|step| step.created);
    let config = crate::export::finish(lowered.image, base_layers, &lowered.history, layers, made);
    let (config, names) = (config.to_bytes(), &engine.request.names);
    if let Some(id) = engine.store.published(&config, names)? {
        return Ok(id);
    }
    // What is published is leased until it is.
    engine.lease()?;
    Ok(engine.store.publish_image(&config, names)?)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use kiln_graph::Event;
    use kiln_store::Ownership;

    use super::*;
    use crate::lab::{Lab, request};

    struct Nobody;

    impl Watcher for Nobody {
        fn planned(&self, _: &[(VertexId, String)]) {}
        fn note(&self, _: &str) {}
    }

    impl Events for Nobody {
        fn emit(&self, _: std::time::Duration, _: Event) {}
    }

    #[test]
    fn nothing_is_kept_for_copies_that_are_not_executed() {
        let lab = Lab::new().context(&[("a/1", "1"), ("b/2", "2")]);
        let store = Store::open(&lab.host.path().join("store"), Ownership::SingleId).expect("a store");
        let dockerfile = b"FROM scratch AS one\nCOPY a /a\nCOPY b /b\nFROM scratch\nCOPY --from=one /a /c\n";
        let request = request(lab.context_path(), dockerfile);
        for executed in [4, 0] {
            let lease = store.lease_late("build").expect("a lease");
            let lowered =
                plan(&store, &lease, &parse_traced(&request).dockerfile, &request).expect("lowered");
            let engine = Engine::new(&store, &lease, &request);
            let solved = run(&engine, &lowered, &Nobody, &Ending::new(&Cancel::new()))
                .expect("solved")
                .expect("a target");
            assert_eq!(solved.executions(), executed);
            let kept = engine.selections.lock().expect("not poisoned").len();
            assert_eq!(kept, 0, "with {executed} executions");
        }
    }

    /// Has a server answer, which lets a step fail, as soon as another one reads a large file.
    struct FailsMeanwhile {
        /// For its key, or for its layer.
        reading: Reading,
        answer: Mutex<Option<mpsc::Sender<()>>>,
        copy: Mutex<Option<VertexId>>,
        ended: Mutex<Vec<Event>>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Reading {
        Key,
        Layer,
    }

    impl Watcher for FailsMeanwhile {
        fn planned(&self, steps: &[(VertexId, String)]) {
            let copy = steps.iter().find(|(_, name)| name.contains("COPY large")).expect("a COPY").0;
            *self.copy.lock().expect("not poisoned") = Some(copy);
        }
        fn note(&self, _: &str) {}
    }

    impl Events for FailsMeanwhile {
        fn emit(&self, _: std::time::Duration, event: Event) {
            let copy = self.copy.lock().expect("not poisoned").expect("it is planned");
            match event {
                Event::Started { vertex } if vertex == copy => {
                    self.answer.lock().expect("not poisoned").take();
                }
                Event::Canceled { .. } | Event::Failed { .. } | Event::Completed { .. } => {
                    // The copy stands on what completes first, and is next.
                    if self.reading == Reading::Key {
                        self.answer.lock().expect("not poisoned").take();
                    }
                    self.ended.lock().expect("not poisoned").push(event);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_large_file_is_not_read_to_its_end_when_another_step_fails() {
        for (reading, size) in [(Reading::Key, 64 << 30), (Reading::Layer, 1 << 30)] {
            let lab = Lab::new().context(&[("large", "")]);
            let file = fs_err::OpenOptions::new().write(true).open(lab.context_path().join("large"));
            file.expect("opened").set_len(size).expect("set");
            let store = Store::open(&lab.host.path().join("store"), Ownership::SingleId).expect("a store");
            let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
            let address = server.local_addr().expect("an address");
            let (answer, answers) = mpsc::channel::<()>();
            let watcher = FailsMeanwhile {
                reading,
                answer: Mutex::new(Some(answer)),
                copy: Mutex::default(),
                ended: Mutex::default(),
            };
            let dockerfile = format!(
                "FROM scratch AS one\nCOPY large /\nFROM scratch AS two\nADD http://{address}/file /\n\
                 FROM scratch\nCOPY --from=one / /\nCOPY --from=two / /\n"
            );
            let request =
                BuildRequest { parallelism: 2, ..request(lab.context_path(), dockerfile.as_bytes()) };
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    let (mut stream, _) = server.accept().expect("a request");
                    answers.recv().expect_err("it is dropped");
                    if reading == Reading::Key {
                        std::thread::sleep(std::time::Duration::from_secs(1));
                    }
                    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    std::io::Write::write_all(&mut stream, answer).expect("answered");
                });
                let failed =
                    build(&store, &request, &watcher, &Cancel::new()).map(drop).expect_err("it fails");
                assert!(matches!(failed.error, Error::Remote(_)), "{:?}", failed.error);
            });
            let copy = watcher.copy.into_inner().expect("not poisoned").expect("planned");
            let ended = watcher.ended.into_inner().expect("not poisoned");
            let canceled = ended.contains(&Event::Canceled { vertex: copy });
            assert!(canceled, "{reading:?}: {copy:?} {ended:?}");
        }
    }

    /// What could not be read again is not built.
    #[test]
    fn configs_beyond_all_bounds_are_refused_at_once() {
        let lab = Lab::new().context(&[]);
        let store = Store::open(&lab.host.path().join("store"), Ownership::SingleId).expect("a store");
        let lease = store.lease_late("build").expect("a lease");
        let variables: String = (0..10_000).map(|number| format!(" \\\n a{number}=x")).collect();
        for (lines, told) in [
            ("CMD [\"x\"]\n".repeat(10_001), "it has 10001 history entries; at most 10000"),
            (format!("ENV{variables}\n"), "it has 10001 environment variables; at most 10000"),
            (
                format!("ENV A={}\n{}", "x".repeat(50_000), "LABEL a=$A$A\n".repeat(50)),
                "at most 4194304 are read",
            ),
        ] {
            let dockerfile = format!("FROM scratch\n{lines}");
            let request = request(lab.context_path(), dockerfile.as_bytes());
            let planned = plan(&store, &lease, &parse_traced(&request).dockerfile, &request);
            let error = planned.map(drop).expect_err(told).to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
