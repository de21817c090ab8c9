//! `performance.md`, written whole from the results.

use std::fmt::Write as _;

use super::budgets;
use super::figures::{self, bytes, ratio, seconds, slope};
use super::floor;
use super::host::ROOT;
use super::missed::Text;
use super::outcome::{Outcome, Results, Row, Run, Same};
use super::plot;
use super::workload::GROUPS;

const ABOUT: &str = include_str!("about.md");

/// Why a budget is missed: told once, for the first run that misses it.
struct Reason<'a> {
    text: &'a Text,
    /// The number of the run that it was told for.
    told: Option<usize>,
}

/// The page.
pub(crate) fn render(results: &Results, texts: &[Text]) -> String {
    let mut page = format!("# Performance\n\n{}\n", ABOUT.trim_end());
    let mut reasons: Vec<Reason<'_>> = texts.iter().map(|text| Reason { text, told: None }).collect();
    for (number, run) in results.runs.iter().enumerate() {
        let whose = if is_roots(run) { "" } else { ", by an ordinary user" };
        let heading = match results.runs.len() {
            1 => format!("The run{whose}"),
            _ => format!("Run {}{whose}", number + 1),
        };
        // Writing to a String does not fail.
        let _ = write!(page, "\n## {heading}\n\n");
        section(&mut page, run, &mut reasons, number + 1);
    }
    let beside_peers: Vec<&Run> = results.runs.iter().filter(|run| run.engines.len() > 1).collect();
    if beside_peers.len() > 1 {
        page.push_str("\n## How far ratios wander\n\n");
        wander(&mut page, &beside_peers);
    }
    page
}

fn section(page: &mut String, run: &Run, reasons: &mut [Reason<'_>], number: usize) {
    table(page, &["", ""], run.machine.iter().map(|(name, value)| vec![name.clone(), value.clone()]));
    let engines: Vec<String> =
        run.engines.iter().map(|(name, version)| format!("{name} ({version})")).collect();
    let _ = write!(
        page,
        "\n{} run of {}, commit {}, seed {:#x}. Engines: {}.\n",
        if run.size == "quick" { "Quick (a tenth of the sizes)" } else { "Whole" },
        run.date,
        run.commit,
        run.seed,
        engines.join(", ")
    );
    for reason in &run.left_out {
        let _ = write!(page, "\nLeft out: {reason}.\n");
    }
    if run.rest > 0 {
        let _ =
            write!(page, "\nRepeats that begin with an emptied store began {} s after it was.\n", run.rest);
    }
    // Promises are about root and peers; the ordinary user's table stands for itself.
    if is_roots(run) {
        promises(page, run, reasons, number);
    }
    if !run.floors.is_empty() {
        page.push_str("\n### The machine's floor\n\n");
        table(
            page,
            &["work", "median", "spread"],
            run.floors
                .iter()
                .map(|floor| vec![floor.title.clone(), middle(&floor.seconds), spread(&floor.seconds)]),
        );
    }
    for (group, heading) in GROUPS {
        let rows: Vec<&Row> = run.rows.iter().filter(|row| row.group == group).collect();
        if !rows.is_empty() {
            let _ = write!(page, "\n### {heading}\n\n");
            group_table(page, run, &rows);
        }
    }
    growth(page, run);
    program(page, run);
    doubts(page, run);
}

pub(crate) fn is_roots(run: &Run) -> bool {
    run.machine.iter().any(|(name, value)| name == "user" && value == ROOT)
}

fn promises(page: &mut String, run: &Run, reasons: &mut [Reason<'_>], number: usize) {
    page.push_str("\n### Budgets\n\n");
    let verdicts = budgets::verdicts(run);
    table(
        page,
        &["work", "promised", "found", ""],
        verdicts.iter().map(|verdict| {
            let held = if verdict.held { "held" } else { "**missed**" };
            vec![verdict.what.clone(), verdict.promised.clone(), verdict.found.clone(), held.to_owned()]
        }),
    );
    let missed = || verdicts.iter().filter(|verdict| !verdict.held);
    if missed().next().is_none() {
        return;
    }
    page.push_str("\n### Where a budget is missed\n");
    for reason in reasons.iter_mut() {
        let about: Vec<String> = missed()
            .filter(|verdict| reason.text.is_about(verdict))
            .map(|verdict| format!("{}: {}, found {}", verdict.what, verdict.promised, verdict.found))
            .collect();
        if about.is_empty() {
            continue;
        }
        let told = reason.told.map(|earlier| format!("Why is told for run {earlier}."));
        reason.told.get_or_insert(number);
        let _ =
            write!(page, "\n- {}\n\n{}\n", about.join("\n- "), told.as_deref().unwrap_or(&reason.text.body));
    }
    let silent: Vec<&str> = missed()
        .filter(|verdict| !reasons.iter().any(|reason| reason.text.is_about(verdict)))
        .map(|verdict| verdict.what.as_str())
        .collect();
    if !silent.is_empty() {
        let _ = write!(page, "\nNot explained yet: {}.\n", silent.join("; "));
    }
}

fn program(page: &mut String, run: &Run) {
    let Some(program) = &run.program else { return };
    let _ = write!(
        page,
        "\n### The program\n\nA clean release build of the workspace, dependencies included: {}. The program has {}, of which:\n\n",
        seconds(program.build),
        bytes(program.size)
    );
    table(
        page,
        &["part", "bytes"],
        program.parts.iter().map(|(name, size)| vec![name.clone(), bytes(*size)]),
    );
}

fn group_table(page: &mut String, run: &Run, rows: &[&Row]) {
    let mut header: Vec<String> = ["work", "repeats", "floor", "kiln", "spread"].map(str::to_owned).to_vec();
    let peers: Vec<&str> = run.engines.iter().skip(1).map(|(name, _)| name.as_str()).collect();
    for peer in &peers {
        header.extend([(*peer).to_owned(), "spread".to_owned(), "ratio".to_owned()]);
    }
    let names: Vec<&str> = std::iter::once("kiln").chain(peers.iter().copied()).collect();
    header.push(format!("peak memory: {}", names.join(", ")));
    header.push(format!("store after: {}", names.join(", ")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let cells = rows.iter().map(|row| {
        let repeats =
            row.measured("kiln").map_or_else(String::new, |measured| measured.seconds.len().to_string());
        let floor = floor::below(run, &row.name).map_or_else(String::new, seconds);
        let mut cells = vec![row.title.clone(), repeats, floor, time(row, "kiln"), spread_of(row, "kiln")];
        for peer in &peers {
            let faster = match (row.median("kiln"), row.median(peer)) {
                (Some(kiln), Some(peer)) => ratio(peer / kiln),
                _ => String::new(),
            };
            cells.extend([time(row, peer), spread_of(row, peer), faster]);
        }
        let each = |pick: fn(&super::outcome::Measured) -> u64| {
            let shown = names
                .iter()
                .map(|name| row.measured(name).map_or_else(|| "-".to_owned(), |m| bytes(pick(m))));
            shown.collect::<Vec<_>>().join(", ")
        };
        cells.extend([each(|measured| measured.memory), each(|measured| measured.stored)]);
        cells
    });
    table(page, &header, cells);
}

fn time(row: &Row, engine: &str) -> String {
    match row.results.get(engine) {
        Some(Outcome::Measured(measured)) => middle(&measured.seconds),
        Some(Outcome::Failed(_)) => "failed".to_owned(),
        Some(Outcome::Lacking) | None => "-".to_owned(),
    }
}

fn spread_of(row: &Row, engine: &str) -> String {
    row.measured(engine).map_or_else(String::new, |measured| spread(&measured.seconds))
}

fn middle(values: &[f64]) -> String {
    figures::median(values).map_or_else(|| "-".to_owned(), seconds)
}

fn spread(values: &[f64]) -> String {
    match figures::spread(values) {
        Some((least, greatest)) => format!("{} - {}", seconds(least), seconds(greatest)),
        None => String::new(),
    }
}

/// How cost grows, with the fitted exponents.
fn growth(page: &mut String, run: &Run) {
    let curves = plot::curves(run);
    if curves.is_empty() {
        return;
    }
    page.push_str("\n### Growth\n\nThe exponent of the size that fits best: 0 is flat, 1 linear.\n\n");
    let names: Vec<&str> = run.engines.iter().map(|(name, _)| name.as_str()).collect();
    let mut header = vec!["cost of", "sizes"];
    header.extend(&names);
    header.push("plot");
    let rows = curves.iter().map(|curve| {
        let sizes: Vec<String> = curve.sizes().iter().map(|size| format!("{size}")).collect();
        let mut cells = vec![curve.name.clone(), sizes.join(", ")];
        for name in &names {
            let fitted = curve.points.get(*name).and_then(|points| slope(points));
            cells.push(fitted.map_or_else(|| "-".to_owned(), |slope| format!("{slope:.2}")));
        }
        cells.push(format!("[plot](plots/{}.svg)", curve.file()));
        cells
    });
    table(page, &header, rows);
}

/// What failed, and what was not the same.
fn doubts(page: &mut String, run: &Run) {
    if run.engines.len() == 1 && run.rows.iter().all(|row| row.measured("kiln").is_some()) {
        return;
    }
    let mut lines = Vec::new();
    let mut excused = Vec::new();
    let mut files = 0;
    for row in &run.rows {
        for (engine, outcome) in &row.results {
            if let Outcome::Failed(error) = outcome {
                lines.push(format!("{}: {engine} failed: {}", row.title, error.replace('\n', " ")));
            }
        }
        for (peer, same) in &row.same {
            match same {
                Same::Files(_) => files += 1,
                Same::Excused { files: all, count, reason } => {
                    files += 1;
                    excused.push(format!("{}: {count} of {all} files of {peer}'s: {reason}", row.title));
                }
                Same::Exit => {}
                Same::Differs { count, first } => lines.push(format!(
                    "{}: {count} files differ from {peer}'s, among them {}",
                    row.title,
                    first.join("; ")
                )),
                Same::Unknown(reason) => {
                    lines.push(format!("{}: not compared with {peer}'s: {reason}", row.title));
                }
            }
        }
    }
    let _ = write!(page, "\n### The same work\n\n{files} images had the same files as the peer's.");
    if lines.is_empty() {
        page.push_str(" Nothing failed and nothing differed.\n");
    } else {
        page.push_str(" What failed or differed:\n\n");
        for line in lines {
            let _ = writeln!(page, "- {}", line.replace('|', "\\|"));
        }
    }
    if !excused.is_empty() {
        page.push_str("\nLeft out of the comparison, since the reason is known:\n\n");
        for line in excused {
            let _ = writeln!(page, "- {}", line.replace('|', "\\|"));
        }
    }
}

/// Every ratio of every run, side by side.
fn wander(page: &mut String, runs: &[&Run]) {
    let numbers: Vec<String> = (1..=runs.len()).map(|number| format!("run {number}")).collect();
    let mut header = vec!["work", "peer"];
    header.extend(numbers.iter().map(String::as_str));
    let mut cells = Vec::new();
    for row in &runs[0].rows {
        for peer in row.results.keys().filter(|name| *name != "kiln") {
            let ratios: Vec<Option<f64>> = runs
                .iter()
                .map(|run| Some(run.median(&row.name, peer)? / run.median(&row.name, "kiln")?))
                .collect();
            if ratios.iter().flatten().count() > 1 {
                let shown = ratios.iter().map(|found| found.map_or_else(|| "-".to_owned(), ratio));
                cells.push([row.title.clone(), peer.clone()].into_iter().chain(shown).collect());
            }
        }
    }
    table(page, &header, cells.into_iter());
}

fn table(page: &mut String, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    page.push_str(&line(&header.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()));
    page.push_str(&format!("|{}\n", "---|".repeat(header.len())));
    for row in rows {
        page.push_str(&line(&row));
    }
}
