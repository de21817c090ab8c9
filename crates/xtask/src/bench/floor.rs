//! What the machine itself takes: the floor under every figure.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use super::inputs::Inputs;
use super::outcome::{Floor, Run};
use super::workload::grouped;

const REPEATS: usize = 5;

/// Measures all floors.
pub(crate) fn measure(inputs: &Inputs, place: &Path) -> Result<Vec<Floor>> {
    let tree = inputs.tree(inputs.sizes.tree)?.join("tree");
    let many = inputs.many(inputs.sizes.many)?.join("tree");
    let copy = place.join("floor-copy");
    let count = grouped(inputs.sizes.tree);
    let mut floors = vec![
        floor("stat-tree", format!("stat of {count} files"), || walk(&tree).map(drop))?,
        floor("stat-many", format!("stat of {} files", grouped(inputs.sizes.many)), || {
            walk(&many).map(drop)
        })?,
        floor("hash-tree", format!("read and sha256 of {count} files"), || hash(&tree))?,
    ];
    floors.push(floor("copy-tree", format!("cp -a of {count} files"), || {
        let _ = std::fs::remove_dir_all(&copy);
        run(Command::new("cp").arg("-a").arg(&tree).arg(&copy))
    })?);
    for (floor, size) in floors.iter_mut().zip([inputs.sizes.tree, inputs.sizes.many]) {
        floor.size = size;
    }
    let _ = std::fs::remove_dir_all(&copy);
    floors.push(floor("exec", "clone and exec of a program that exits at once".to_owned(), || {
        run(&mut Command::new("true"))
    })?);
    if crate::machine::is_root() {
        floors.push(floor("unshare", "the same in new namespaces, by unshare(1)".to_owned(), || {
            run(Command::new("unshare").args(["--mount", "--pid", "--ipc", "--uts", "--fork", "true"]))
        })?);
    }
    floors
        .push(floor("fsync", "write and fsync of a new file of 4 KiB".to_owned(), || sync(place, 4 << 10))?);
    floors.push(floor("fsync-large", "write and fsync of a new file of 64 MiB".to_owned(), || {
        sync(place, 64 << 20)
    })?);
    Ok(floors)
}

/// What the machine takes for the least that a workload has to do, where that was measured.
pub(crate) fn below(run: &Run, workload: &str) -> Option<f64> {
    let median = |name: &str| {
        let floor = run.floors.iter().find(|floor| floor.name == name)?;
        super::figures::median(&floor.seconds)
    };
    // Floors were measured on the largest trees.
    let of = |name: &str, count: &str| {
        let floor = run.floors.iter().find(|floor| floor.name == name)?;
        (count.parse() == Ok(floor.size)).then(|| median(name)).flatten()
    };
    match workload.split_once('/')? {
        ("unchanged", what) => {
            let count = what.strip_prefix("files-")?;
            of("stat-tree", count).or_else(|| of("stat-many", count))
        }
        ("run-steps", what) => Some(median("unshare")? * what.strip_prefix("cold-")?.parse::<f64>().ok()?),
        ("copy", "cold" | "cold-run") => median("hash-tree"),
        ("copy", "changed" | "changed-run" | "unchanged" | "unchanged-run") => median("stat-tree"),
        ("container", "run") => median("unshare"),
        ("start", "version") => median("exec"),
        _ => None,
    }
}

fn floor(name: &str, title: String, mut work: impl FnMut() -> Result<()>) -> Result<Floor> {
    // Once for the page cache.
    work()?;
    let mut seconds = Vec::new();
    for _ in 0..REPEATS {
        let started = Instant::now();
        work()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(Floor { name: name.to_owned(), title, size: 0, seconds })
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    anyhow::ensure!(status.success(), "{} ended with {status}", crate::machine::line(command));
    Ok(())
}

/// Looks at every file below a directory.
fn walk(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() { pending.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    Ok(files)
}

fn hash(root: &Path) -> Result<()> {
    let mut sum = Sha256::new();
    let mut buffer = Vec::new();
    for file in walk(root)? {
        buffer.clear();
        File::open(file)?.read_to_end(&mut buffer)?;
        sum.update(&buffer);
    }
    std::hint::black_box(sum.finalize());
    Ok(())
}

fn sync(place: &Path, length: usize) -> Result<()> {
    let path = place.join("floor-sync");
    let mut file = File::create(&path)?;
    file.write_all(&vec![7; length])?;
    file.sync_all()?;
    Ok(std::fs::remove_file(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_below_the_workload_of_its_size() {
        let floor = |name: &str, size, seconds| Floor {
            name: name.to_owned(),
            title: String::new(),
            size,
            seconds: vec![seconds],
        };
        let floors =
            vec![floor("stat-tree", 2000, 0.1), floor("stat-many", 20_000, 1.0), floor("unshare", 0, 0.01)];
        let run = Run { floors, ..Run::default() };
        assert_eq!(below(&run, "unchanged/files-2000"), Some(0.1));
        assert_eq!(below(&run, "unchanged/files-20000"), Some(1.0));
        assert_eq!(below(&run, "unchanged/files-200"), None);
        assert_eq!(below(&run, "run-steps/cold-40"), Some(0.4));
        assert_eq!(below(&run, "start/version"), None);
    }
}
