//! `cargo xtask bench`: kiln beside other engines, on the same inputs, in turn.

mod archives;
mod budgets;
mod engines;
mod figures;
mod floor;
mod host;
mod inputs;
mod measure;
mod missed;
mod options;
mod outcome;
mod page;
mod plot;
mod program;
mod race;
mod same;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::machine::{self, has, is_root, repository, say, target_directory};
use engines::{Engine, Kiln, User};
use inputs::Inputs;
use options::{Action, Begin, Keep, Options, PeerKind, Peers, Size};
use outcome::{Results, Run};
use race::Race;
use workload::Workload;

/// Runs the bench.
pub(crate) fn run(words: &[String]) -> Result<()> {
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{}", options::USAGE);
        return Ok(());
    }
    let options = Options::parse(words)?;
    let output = match &options.output {
        Some(directory) => directory.clone(),
        None if options.only.is_empty() => repository().join("docs"),
        None => target_directory().join("bench/part"),
    };
    if options.action == Action::Render {
        let results = read(&output)?;
        return publish(&output, &results);
    }
    // Daemons' orphans stay below this process, so that their memory is counted.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    let place = target_directory().join("bench");
    std::fs::create_dir_all(&place)?;
    // Daemons are told absolute paths.
    let place = place.canonicalize()?;
    let mut left_out = Vec::new();
    let peers = peers(&options);
    install(&peers);
    let inputs = Inputs::prepare(&place.join("inputs"), options.size)?;
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));
    let workloads = workload::all(&inputs, options.size, &place.join("dockerfiles"), &wanted)?;
    if options.action == Action::List {
        for workload in &workloads {
            println!("{:<28} {}", workload.name, workload.title);
        }
        return Ok(());
    }
    if inputs.debian.is_none() {
        left_out.push("whatever needs a Debian root: mmdebstrap and root are needed to make one".to_owned());
    }
    let engines = start(&options, &peers, &place.join("engines"), &mut left_out)?;
    let run = measure(engines, &options, &inputs, &workloads, left_out, (&place, &output))?;
    let mut results = match options.keep {
        Keep::Earlier => read(&output).unwrap_or_default(),
        Keep::Nothing => Results::default(),
    };
    results.runs.push(run);
    publish(&output, &results)?;
    let _ = std::fs::remove_dir_all(place.join(UNFINISHED));
    Ok(())
}

/// What an earlier run took for these workloads, if it says so of most.
fn expected(output: &Path, options: &Options, workloads: &[&Workload]) -> Option<Duration> {
    let size = options.size.name();
    let earlier =
        [output.to_path_buf(), repository().join("docs")].into_iter().filter_map(|at| read(&at).ok());
    let runs: Vec<Run> = earlier.flat_map(|results| results.runs).filter(|run| run.size == size).collect();
    let took =
        |name: &str| runs.iter().flat_map(|run| &run.rows).find(|row| row.name == name && row.took > 0.0);
    let known: Vec<f64> = workloads.iter().filter_map(|workload| Some(took(&workload.name)?.took)).collect();
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let all = known.iter().sum::<f64>() * workloads.len() as f64 / known.len().max(1) as f64;
    (known.len() * 2 > workloads.len()).then(|| Duration::from_secs_f64(all))
}

/// The rest of a run that was interrupted, if it was one of this kind.
fn interrupted(place: &Path, fresh: &Run) -> Result<Run> {
    let run = read(&place.join(UNFINISHED))?.runs.pop().context("the interrupted run is empty")?;
    for (what, before, now) in [("size", &run.size, &fresh.size), ("commit", &run.commit, &fresh.commit)] {
        if before != now {
            bail!("the interrupted run is of another {what}: {before}, this is {now}");
        }
    }
    if run.engines != fresh.engines {
        bail!("the interrupted run was with other engines: {:?}, these are {:?}", run.engines, fresh.engines);
    }
    Ok(run)
}

/// Where a run is kept while it goes on.
const UNFINISHED: &str = "unfinished";

/// The floor first, then every workload that is not there yet.
fn measure(
    engines: Vec<Box<dyn Engine>>,
    options: &Options,
    inputs: &Inputs,
    workloads: &[Workload],
    left_out: Vec<String>,
    (place, output): (&Path, &Path),
) -> Result<Run> {
    let names = engines.iter().map(|engine| Ok((engine.name().to_owned(), engine.version()?)));
    let mut run = Run {
        size: options.size.name().to_owned(),
        commit: host::commit(),
        date: host::date(),
        seed: inputs::SEED,
        machine: host::facts(place, options.user.as_deref()),
        engines: names.collect::<Result<Vec<_>>>()?,
        left_out,
        rest: options.rest.as_secs(),
        program: None,
        floors: Vec::new(),
        rows: Vec::new(),
    };
    if options.begin == Begin::Interrupted {
        run = interrupted(place, &run)?;
    }
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));
    if wanted("floor") && run.floors.is_empty() {
        say("the machine's floor");
        run.floors = floor::measure(inputs, place)?;
        for floor in &run.floors {
            let median = figures::median(&floor.seconds).map_or_else(String::new, figures::seconds);
            println!("{:<48} {median}", floor.title);
        }
    }
    let whole = options.size == Size::Whole || !options.only.is_empty();
    if whole && wanted("program") && options.user.is_none() && run.program.is_none() {
        say("a clean build of the workspace");
        run.program = Some(program::measure(place)?);
    }
    let missing: Vec<&Workload> =
        workloads.iter().filter(|workload| run.rows.iter().all(|row| row.name != workload.name)).collect();
    say("workloads: median, ratio to kiln's, peak memory");
    let expected = expected(output, options, &missing);
    if let Some(expected) = expected {
        println!(
            "an earlier run took {:.1} minutes for these {}",
            expected.as_secs_f64() / 60.0,
            missing.len()
        );
    }
    let clock = race::Clock::start(options.budget, expected, missing.len());
    let mut race = Race::new(engines, place, options.size, clock, options.rest);
    let mut results = Results { runs: vec![run] };
    for workload in missing {
        let row = race.run(workload);
        results.runs[0].rows.push(row);
        // What is there already survives an interruption.
        write(&place.join(UNFINISHED), &results)?;
    }
    results.runs.pop().context("the run is gone")
}

/// The peers that were asked for, or those that are usual here.
fn peers(options: &Options) -> Vec<PeerKind> {
    match &options.peers {
        Peers::These(peers) => peers.clone(),
        Peers::Usual if is_root() => {
            let buildkit = has("buildkitd") && has("buildctl");
            let mut peers = vec![PeerKind::Docker];
            peers.extend(buildkit.then_some(PeerKind::Buildkit));
            peers
        }
        Peers::Usual => Vec::new(),
    }
}

/// kiln, built if no program was named, and the peers; one that does not start is left out.
fn start(
    options: &Options,
    peers: &[PeerKind],
    place: &Path,
    left_out: &mut Vec<String>,
) -> Result<Vec<Box<dyn Engine>>> {
    std::fs::create_dir_all(place)?;
    let program = match &options.kiln {
        Some(program) => program.canonicalize().with_context(|| program.display().to_string())?,
        None => build_kiln()?,
    };
    engines::daemon::stop_on_signals()?;
    let user = options.user.as_deref().map(User::find).transpose()?;
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(Kiln::new(program, place, user)?)];
    for peer in peers {
        match engines::start(*peer, place) {
            Ok(engine) => engines.push(engine),
            Err(error) => {
                let reason = format!("{peer:?}: {error:#}").to_lowercase();
                println!("left out: {reason}");
                left_out.push(reason);
            }
        }
    }
    Ok(engines)
}

/// The release program.
pub(crate) fn build_kiln() -> Result<PathBuf> {
    say("building kiln (release)");
    let words = ["build", "--release", "--quiet", "--package", "kiln"];
    machine::run(machine::cargo().args(words))?;
    Ok(target_directory().join("release/kiln"))
}

/// Installs Debian's packages that are missing, where that is possible; what stays missing is left out later.
fn install(peers: &[PeerKind]) {
    let tools = [("busybox", "busybox-static"), ("mmdebstrap", "mmdebstrap"), ("zstd", "zstd")];
    let wanted = tools.into_iter().chain(peers.iter().filter_map(|peer| engines::package(*peer)));
    let missing: Vec<&str> =
        wanted.filter(|(program, _)| !has(program)).map(|(_, package)| package).collect();
    if missing.is_empty() {
        return;
    }
    if let Err(error) = machine::install(&missing) {
        println!("not installed ({error:#}): {}", missing.join(", "));
    }
}

fn read(directory: &Path) -> Result<Results> {
    let path = directory.join("performance.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn write(directory: &Path, results: &Results) -> Result<()> {
    let plots = directory.join("plots");
    if plots.exists() {
        std::fs::remove_dir_all(&plots)?;
    }
    std::fs::create_dir_all(&plots)?;
    for curve in results.runs.first().map(plot::curves).unwrap_or_default() {
        std::fs::write(plots.join(format!("{}.svg", curve.file())), plot::svg(&curve))?;
    }
    let json = directory.join("performance.json");
    std::fs::write(&json, serde_json::to_string_pretty(results)? + "\n")?;
    let page = directory.join("performance.md");
    std::fs::write(&page, page::render(results, &missed::read(&repository())?))?;
    Ok(())
}

/// Writes the results and says where.
fn publish(directory: &Path, results: &Results) -> Result<()> {
    write(directory, results)?;
    let verdicts: Vec<_> =
        results.runs.iter().filter(|run| page::is_roots(run)).flat_map(budgets::verdicts).collect();
    for complaint in missed::complaints(&missed::read(&repository())?, &verdicts) {
        println!("{complaint}");
    }
    say(&format!("wrote performance.md, performance.json and plots in {}", directory.display()));
    Ok(())
}
