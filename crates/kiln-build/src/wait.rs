//! A step that waits for other steps, mostly of other builds: it says for whom if that takes long, and ends with the build.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_graph::Context;
use kiln_store::{FilesBusy, Patience};

/// How long a step sleeps before it looks again whether the wait is over.
const PAUSE: Duration = Duration::from_millis(20);
/// A step that waits longer than this says for whom, and looks again after as long who that is.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a step waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Awaited<'a> {
    /// A cache mount, by its id.
    CacheMount(&'a str),
    /// The files of a layer, which need not be made twice.
    Files,
}

impl Awaited<'_> {
    fn span(self) -> &'static str {
        match self {
            Self::CacheMount(_) => "wait for cache mount",
            Self::Files => "wait for files of a layer",
        }
    }

    /// For people: what is waited for, and for whom, as far as that can be told.
    fn told(self, processes: &[u32], own: u32) -> String {
        let (what, done, others_do) = match self {
            Self::CacheMount(id) => (format!("cache mount {id}"), "held", "hold"),
            Self::Files => ("files of a layer".to_owned(), "made ready", "make ready"),
        };
        match named(processes, own) {
            Some(names) => format!("{what}, {done} by {names}"),
            None => format!("{what}, which others {others_do}"),
        }
    }
}

/// A wait that goes on, or may come.
pub(crate) struct Wait<'a> {
    context: Context<'a>,
    awaited: Awaited<'a>,
    /// For whom it was said to be.
    told: Option<Vec<u32>>,
    look: Instant,
    span: Option<kiln_trace::Span>,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(context: &Context<'a>, awaited: Awaited<'a>) -> Self {
        Self { context: *context, awaited, told: None, look: Instant::now() + PATIENCE, span: None }
    }

    /// Waits a moment for what `holders` do; not if the build is canceled.
    pub(crate) fn pause(&mut self, holders: impl FnOnce() -> Vec<u32>) -> ControlFlow<()> {
        if self.span.is_none() {
            (self.look, self.span) = (Instant::now() + PATIENCE, Some(kiln_trace::span(self.awaited.span())));
        }
        if self.context.cancel().sleep(PAUSE) {
            return ControlFlow::Break(());
        }
        if self.look <= Instant::now() {
            let holders = holders();
            if self.told.as_ref() != Some(&holders) {
                self.context.waits(&self.awaited.told(&holders, std::process::id()));
                self.told = Some(holders);
            }
            self.look = Instant::now() + PATIENCE;
        }
        ControlFlow::Continue(())
    }

    /// It is over.
    pub(crate) fn end(&mut self) {
        if self.told.take().is_some() {
            self.context.resumes();
        }
        self.span = None;
    }
}

/// How a step waits for layers' files that another one makes ready.
pub(crate) struct FilesWait<'a>(Mutex<Wait<'a>>);

impl<'a> FilesWait<'a> {
    pub(crate) fn new(context: &Context<'a>) -> Self {
        Self(Mutex::new(Wait::new(context, Awaited::Files)))
    }

    fn wait(&self) -> MutexGuard<'_, Wait<'a>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Patience for FilesWait<'_> {
    fn pause(&self, busy: &FilesBusy<'_>) -> ControlFlow<()> {
        self.wait().pause(|| busy.holders())
    }

    fn end(&self) {
        self.wait().end();
    }

    fn is_over(&self) -> bool {
        self.wait().context.cancel().is_canceled()
    }
}

/// Processes by their numbers; `None` if none can be told.
fn named(processes: &[u32], own: u32) -> Option<String> {
    let mut names: Vec<String> = Vec::new();
    for process in processes {
        let name = match *process == own {
            true => "another step of this build".to_owned(),
            false => format!("process {process}"),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        [most @ .., last] => Some(format!("{} and {last}", most.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_told() {
        let check = |processes: &[u32], cache: &str, files: &str| {
            assert_eq!(Awaited::CacheMount("c").told(processes, 1), format!("cache mount c, {cache}"));
            assert_eq!(Awaited::Files.told(processes, 1), format!("files of a layer, {files}"));
        };
        check(&[], "which others hold", "which others make ready");
        check(&[7], "held by process 7", "made ready by process 7");
        check(&[1], "held by another step of this build", "made ready by another step of this build");
        let several = "another step of this build and process 7";
        check(&[1, 1, 7, 7], &format!("held by {several}"), &format!("made ready by {several}"));
        let most = "process 7, process 8 and process 9";
        check(&[7, 8, 9], &format!("held by {most}"), &format!("made ready by {most}"));
    }
}
