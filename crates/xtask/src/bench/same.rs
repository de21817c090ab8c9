//! The files of an image, read out of its archive with tar alone, and what differs between two.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::outcome::Same;
use crate::machine;

/// What is compared of each file: type and mode, owner, size, link. By path.
pub(crate) type Files = BTreeMap<String, String>;

/// The files of the first image of a docker archive.
pub(crate) fn files(archive: &Path, scratch: &Path) -> Result<Files> {
    let _ = std::fs::remove_dir_all(scratch);
    std::fs::create_dir_all(scratch)?;
    machine::output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(scratch))?;
    let manifest: Value = serde_json::from_slice(&std::fs::read(scratch.join("manifest.json"))?)?;
    let layers = manifest[0]["Layers"].as_array().context("the archive's manifest.json names no layers")?;
    let mut files = Files::new();
    for layer in layers {
        let path = scratch.join(layer.as_str().unwrap_or_default());
        let mut list = Command::new("tar");
        list.env("LC_ALL", "C.UTF-8").args(["--numeric-owner", "--full-time", "-tvf"]).arg(path);
        apply(&mut files, &machine::output(&mut list)?);
    }
    let _ = std::fs::remove_dir_all(scratch);
    Ok(files)
}

/// Lays a layer, as tar lists it, over the files so far.
fn apply(files: &mut Files, listing: &str) {
    let entries: Vec<(String, String)> = listing.lines().filter_map(entry).collect();
    for (path, _) in &entries {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let below =
            |directory: &str| if directory.is_empty() { String::new() } else { format!("{directory}/") };
        if name == ".wh..wh..opq" {
            let hidden = below(parent);
            files.retain(|path, _| !path.starts_with(&hidden));
        } else if let Some(gone) = name.strip_prefix(".wh.") {
            let gone = format!("{}{gone}", below(parent));
            let inside = format!("{gone}/");
            files.retain(|path, _| *path != gone && !path.starts_with(&inside));
        }
    }
    for (path, facts) in entries {
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.starts_with(".wh.") || path.is_empty() {
            continue;
        }
        match facts.strip_prefix("link to ") {
            Some(target) => {
                if let Some(facts) = files.get(target).cloned() {
                    files.insert(path, facts);
                }
            }
            None => {
                files.insert(path, facts);
            }
        }
    }
}

/// `-rw-r--r-- 0/0 5 2026-01-01 00:00:00 name`, with `-> target` or `link to target`.
fn entry(line: &str) -> Option<(String, String)> {
    let mut rest = line;
    let mut fields = Vec::new();
    for _ in 0..5 {
        let trimmed = rest.trim_start();
        let (field, after) = trimmed.split_once(' ')?;
        fields.push(field);
        rest = after;
    }
    let kind = fields[0].chars().next()?;
    let clean = |path: &str| path.trim_start_matches("./").trim_matches('/').to_owned();
    match kind {
        'h' => {
            let (path, target) = rest.split_once(" link to ")?;
            Some((clean(path), format!("link to {}", clean(target))))
        }
        'l' => {
            let (path, target) = rest.split_once(" -> ")?;
            Some((clean(path), format!("{} {} -> {target}", fields[0], fields[1])))
        }
        'd' => Some((clean(rest), format!("{} {}", fields[0], fields[1]))),
        _ => Some((clean(rest), format!("{} {} {}", fields[0], fields[1], fields[2]))),
    }
}

/// A difference that is not kiln's doing.
struct Excuse {
    /// Beginning of the peer's version.
    version: &'static str,
    /// Whether it explains what a path is for kiln and for the peer; empty where there is nothing.
    explains: fn(&str, &str, &str) -> bool,
    reason: &'static str,
}

const EXCUSES: [Excuse; 3] = [
    Excuse {
        version: "docker 20.",
        explains: |_, kiln, peer| {
            // "crw-rw-rw- 0/0 5,1" became "-rw-rw-rw- 0/0 0".
            let words = |facts: &str| facts.split(' ').map(str::to_owned).collect::<Vec<_>>();
            match (&words(kiln)[..], &words(peer)[..]) {
                ([mode, owner, _], [empty, other, size]) => {
                    let device = mode.starts_with(['c', 'b']) && empty.starts_with('-') && size == "0";
                    device && mode[1..] == empty[1..] && owner == other
                }
                _ => false,
            }
        },
        reason: "docker 20.10 copies device nodes as empty files, which BuildKit has mended since (moby/buildkit#2914)",
    },
    Excuse { version: "buildah", explains: is_mount_stub, reason: STUBS },
    Excuse { version: "podman", explains: is_mount_stub, reason: STUBS },
];

const STUBS: &str =
    "buildah, which podman builds with, leaves what it mounted something on in the layers of its steps";

fn is_mount_stub(path: &str, kiln: &str, peer: &str) -> bool {
    let files = ["etc/hostname", "etc/hosts", "etc/resolv.conf", "run/.containerenv"];
    let directories = ["run", "dev", "proc", "sys"];
    let stub =
        files.contains(&path) && peer.ends_with(" 0") || directories.contains(&path) && peer.starts_with('d');
    kiln.is_empty() && stub
}

/// What differs, kiln's first.
pub(crate) fn compare(kiln: &Files, peer: &Files, version: &str) -> Same {
    let mut differing = Vec::new();
    let mut excused = 0;
    let mut reason = "";
    let paths: BTreeSet<&String> = kiln.keys().chain(peer.keys()).collect();
    for path in paths {
        let (own, other) =
            (kiln.get(path).map_or("", String::as_str), peer.get(path).map_or("", String::as_str));
        if own == other {
            continue;
        }
        let known =
            |excuse: &&Excuse| version.starts_with(excuse.version) && (excuse.explains)(path, own, other);
        match EXCUSES.iter().find(known) {
            Some(known) => (excused, reason) = (excused + 1, known.reason),
            None if other.is_empty() => differing.push(format!("{path}: kiln's only ({own})")),
            None if own.is_empty() => differing.push(format!("{path}: peer's only ({other})")),
            None => differing.push(format!("{path}: {own}, but {other}")),
        }
    }
    if differing.is_empty() {
        return match excused {
            0 => Same::Files(kiln.len()),
            count => Same::Excused { files: kiln.len(), count, reason: reason.to_owned() },
        };
    }
    let count = differing.len();
    differing.truncate(3);
    Same::Differs { count, first: differing }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "drwxr-xr-x 0/0 0 2026-01-01 00:00:00 ./d/
-rw-r--r-- 0/0 5 2026-01-01 00:00:00 ./d/a file
lrwxrwxrwx 0/0 0 2026-01-01 00:00:00 ./l -> d/a file
hrw-r--r-- 0/0 0 2026-01-01 00:00:00 ./h link to ./d/a file
";

    fn files(layers: &[&str]) -> Files {
        let mut files = Files::new();
        for layer in layers {
            apply(&mut files, layer);
        }
        files
    }

    #[test]
    fn layers_are_laid_over_each_other() {
        let base = files(&[BASE]);
        assert_eq!(base.keys().map(String::as_str).collect::<Vec<_>>(), ["d", "d/a file", "h", "l"]);
        assert_eq!(base["h"], base["d/a file"]);
        let over = files(&[BASE, "---------- 0/0 0 2026-01-01 00:00:00 .wh.d\n"]);
        assert_eq!(over.keys().map(String::as_str).collect::<Vec<_>>(), ["h", "l"]);
        let opaque = files(&[
            BASE,
            "---------- 0/0 0 2026-01-01 00:00:00 d/.wh..wh..opq\n-rw------- 0/0 1 2026-01-01 00:00:00 d/b\n",
        ]);
        assert_eq!(opaque.keys().map(String::as_str).collect::<Vec<_>>(), ["d", "d/b", "h", "l"]);
    }

    #[test]
    fn differences_are_named() {
        let own = files(&[BASE]);
        assert_eq!(compare(&own, &own.clone(), "any"), Same::Files(4));
        let mut other = own.clone();
        other.remove("l");
        other.insert("d".to_owned(), "drwx------ 0/0".to_owned());
        other.insert("z".to_owned(), "-rw-r--r-- 0/0 1".to_owned());
        let Same::Differs { count, first } = compare(&own, &other, "any") else { panic!() };
        assert_eq!(count, 3);
        assert!(
            first[0].starts_with("d: ")
                && first[1].starts_with("l: kiln's only")
                && first[2].starts_with("z: peer's")
        );
    }

    #[test]
    fn known_quirks_of_a_peer_are_excused_and_counted() {
        let files = |facts: &str| Files::from([("dev/null".to_owned(), facts.to_owned())]);
        let (own, empty) = (files("crw-rw-rw- 0/0 1,3"), files("-rw-rw-rw- 0/0 0"));
        assert!(matches!(compare(&own, &empty, "docker 20.10.24"), Same::Excused { files: 1, count: 1, .. }));
        assert!(matches!(compare(&own, &empty, "docker 28.2.2"), Same::Differs { count: 1, .. }));
        assert!(matches!(compare(&own, &files("-rw-rw-rw- 0/0 7"), "docker 20.10.24"), Same::Differs { .. }));
        assert!(matches!(compare(&empty, &own, "docker 20.10.24"), Same::Differs { .. }));
    }
}
