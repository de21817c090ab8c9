//! What a run of the bench found: the form of `performance.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    /// The oldest first.
    pub(crate) runs: Vec<Run>,
}

/// One run of the bench.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    /// `quick` or `whole`.
    pub(crate) size: String,
    pub(crate) commit: String,
    pub(crate) date: String,
    /// Seed of the inputs.
    pub(crate) seed: u64,
    /// What the machine is, line by line.
    pub(crate) machine: Vec<(String, String)>,
    /// Name and version, kiln first.
    pub(crate) engines: Vec<(String, String)>,
    /// What was not measured at all, and why.
    pub(crate) left_out: Vec<String>,
    /// Seconds waited before repeats that began with an emptied store.
    #[serde(default)]
    pub(crate) rest: u64,
    /// The program itself, if it was looked at.
    #[serde(default)]
    pub(crate) program: Option<Program>,
    pub(crate) floors: Vec<Floor>,
    pub(crate) rows: Vec<Row>,
}

/// How long it takes to compile kiln, and what is in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Seconds of a clean release build of the workspace, dependencies included.
    pub(crate) build: f64,
    /// Bytes of the program as it is shipped.
    pub(crate) size: u64,
    /// Where the bytes of its code come from, and of what else there is; the largest first.
    pub(crate) parts: Vec<(String, u64)>,
}

/// What the machine itself takes for something.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Floor {
    pub(crate) name: String,
    pub(crate) title: String,
    /// How many files, if it is about files.
    #[serde(default)]
    pub(crate) size: usize,
    pub(crate) seconds: Vec<f64>,
}

/// One workload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) title: String,
    /// The curve that this is a point of, and its size there.
    pub(crate) growth: Option<(String, f64)>,
    /// By engine.
    pub(crate) results: BTreeMap<String, Outcome>,
    /// By peer: whether it did the same as kiln.
    pub(crate) same: BTreeMap<String, Same>,
    /// Seconds that it took in all, with everything that is not timed.
    #[serde(default)]
    pub(crate) took: f64,
}

/// What an engine did with a workload.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Measured(Measured),
    /// It has no such command.
    Lacking,
    /// It ended with an error.
    Failed(String),
}

/// Figures.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Each repeat.
    pub(crate) seconds: Vec<f64>,
    /// Peak of the resident memory of all processes involved, in bytes.
    pub(crate) memory: u64,
    /// Bytes that the engine's directories take afterwards.
    pub(crate) stored: u64,
}

/// Whether two engines did the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Same {
    /// The same list of files (type, mode, owner, size, link), this long.
    Files(usize),
    /// The same but for so many files, which differ for a known reason.
    Excused { files: usize, count: usize, reason: String },
    /// The same exit.
    Exit,
    /// Not the same: how many files differ, and the first of them.
    Differs { count: usize, first: Vec<String> },
    /// It could not be told.
    Unknown(String),
}

impl Run {
    /// Kiln's or a peer's median for a workload.
    pub(crate) fn median(&self, workload: &str, engine: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == workload)?.median(engine)
    }
}

impl Row {
    /// An engine's figures.
    pub(crate) fn measured(&self, engine: &str) -> Option<&Measured> {
        match self.results.get(engine)? {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Lacking | Outcome::Failed(_) => None,
        }
    }

    /// An engine's median in seconds.
    pub(crate) fn median(&self, engine: &str) -> Option<f64> {
        super::figures::median(&self.measured(engine)?.seconds)
    }
}
