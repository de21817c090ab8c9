//! What kiln has promised, as data (docs/architecture.md, section 9), and whether a run holds it.

use super::figures::{bytes, ratio, seconds};
use super::outcome::Run;

/// A promise.
pub(crate) struct Budget {
    /// Beginning of the workloads' names that it speaks of.
    workload: &'static str,
    promise: Promise,
}

enum Promise {
    /// This many times faster than each of these peers.
    Faster(f64, &'static [&'static str]),
    /// In less than so many seconds, at the sizes of a whole run.
    Within(f64),
}

const BUILDERS: &[&str] = &["docker", "buildkit"];
const DOCKER: &[&str] = &["docker"];

/// All promises on time. Those on memory and bytes hold for every workload.
const BUDGETS: [Budget; 17] = [
    Budget { workload: "unchanged/", promise: Promise::Faster(10.0, BUILDERS) },
    Budget { workload: "run-steps/cold-40", promise: Promise::Faster(10.0, BUILDERS) },
    Budget { workload: "run-steps/cold-40", promise: Promise::Within(0.5) },
    Budget { workload: "copy/cold", promise: Promise::Faster(4.0, BUILDERS) },
    Budget { workload: "copy/changed", promise: Promise::Faster(8.0, BUILDERS) },
    Budget { workload: "copy/unchanged", promise: Promise::Faster(10.0, BUILDERS) },
    Budget { workload: "copy/cold-run", promise: Promise::Faster(3.0, BUILDERS) },
    Budget { workload: "copy/changed-run", promise: Promise::Faster(5.0, BUILDERS) },
    Budget { workload: "copy/unchanged-run", promise: Promise::Faster(10.0, BUILDERS) },
    Budget { workload: "transfer/load-plain", promise: Promise::Faster(3.0, DOCKER) },
    Budget { workload: "transfer/load-gzip", promise: Promise::Faster(3.0, DOCKER) },
    Budget { workload: "transfer/save-plain", promise: Promise::Faster(3.0, DOCKER) },
    Budget { workload: "transfer/load-run", promise: Promise::Faster(2.0, DOCKER) },
    Budget { workload: "container/run", promise: Promise::Faster(10.0, &["docker", "podman"]) },
    Budget { workload: "queries/images-1000", promise: Promise::Within(0.02) },
    Budget { workload: "queries/images-100", promise: Promise::Within(0.02) },
    Budget { workload: "start/version", promise: Promise::Within(0.005) },
];
/// Seconds, on two cores.
const CLEAN_BUILD: f64 = 360.0;
/// Of all the peer's processes.
const MEMORY: f64 = 4.0;

/// One line of the table.
pub(crate) struct Verdict {
    /// The workload's name; `memory`, `store` or `program` for what is not of one.
    pub(crate) workload: String,
    /// The peer, or `time` for a budget in seconds.
    pub(crate) against: String,
    pub(crate) what: String,
    pub(crate) promised: String,
    pub(crate) found: String,
    pub(crate) held: bool,
}

/// What a run says about each promise that it measured.
pub(crate) fn verdicts(run: &Run) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for budget in &BUDGETS {
        let whole = |name: &str| {
            if budget.workload.ends_with('/') {
                name.starts_with(budget.workload)
            } else {
                name == budget.workload
            }
        };
        for row in run.rows.iter().filter(|row| whole(&row.name)) {
            let Some(kiln) = row.median("kiln") else { continue };
            match &budget.promise {
                Promise::Within(most) => verdicts.push(Verdict {
                    workload: row.name.clone(),
                    against: "time".to_owned(),
                    what: row.title.clone(),
                    promised: format!("within {}", seconds(*most)),
                    found: seconds(kiln),
                    held: kiln <= *most,
                }),
                Promise::Faster(least, peers) => {
                    for peer in *peers {
                        let Some(other) = row.median(peer) else { continue };
                        let found = other / kiln;
                        verdicts.push(Verdict {
                            workload: row.name.clone(),
                            against: (*peer).to_owned(),
                            what: row.title.clone(),
                            promised: format!("{} of {peer}'s speed", ratio(*least)),
                            found: ratio(found),
                            held: found >= *least,
                        });
                    }
                }
            }
        }
    }
    verdicts.extend(space(run));
    if let Some(program) = &run.program {
        verdicts.push(Verdict {
            workload: "program".to_owned(),
            against: "time".to_owned(),
            what: "a clean build of the workspace".to_owned(),
            promised: format!("within {}", seconds(CLEAN_BUILD)),
            found: seconds(program.build),
            held: program.build <= CLEAN_BUILD,
        });
    }
    verdicts
}

/// Memory and bytes, over all workloads of a peer: the worst speaks for them.
fn space(run: &Run) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (peer, _) in run.engines.iter().filter(|(peer, _)| BUILDERS.contains(&peer.as_str())) {
        let pairs =
            || run.rows.iter().filter_map(|row| Some((row, row.measured("kiln")?, row.measured(peer)?)));
        #[expect(clippy::cast_precision_loss, reason = "a ratio with two digits")]
        let times = |kiln: u64, peer: u64| peer as f64 / kiln.max(1) as f64;
        let memory =
            pairs().map(|(row, kiln, peer)| (times(kiln.memory, peer.memory), row, kiln.memory, peer.memory));
        if let Some((found, row, own, other)) = memory.min_by(|a, b| a.0.total_cmp(&b.0)) {
            verdicts.push(Verdict {
                workload: "memory".to_owned(),
                against: peer.clone(),
                what: format!("peak memory, at the worst: {}", row.title),
                promised: format!("a quarter of {peer}'s"),
                found: format!("{} beside {} ({} less)", bytes(own), bytes(other), ratio(found)),
                held: found >= MEMORY,
            });
        }
        let stored =
            pairs().map(|(row, kiln, peer)| (times(kiln.stored, peer.stored), row, kiln.stored, peer.stored));
        if peer != "docker" {
            continue;
        }
        if let Some((found, row, own, other)) = stored.min_by(|a, b| a.0.total_cmp(&b.0)) {
            verdicts.push(Verdict {
                workload: "store".to_owned(),
                against: peer.clone(),
                what: format!("bytes in the store, at the worst: {}", row.title),
                promised: format!("no more than {peer}'s"),
                found: format!("{} beside {}", bytes(own), bytes(other)),
                held: found >= 1.0,
            });
        }
    }
    verdicts
}
