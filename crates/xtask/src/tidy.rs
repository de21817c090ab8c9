//! The house's rules that a compiler does not know (docs/architecture.md, section 3).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::machine::repository;

/// Lines of a source file before its tests.
const MAX_LINES: usize = 800;
const NO_ROOMS: [&str; 4] = ["util", "common", "types", "helpers"];

/// Checks every rule and lists every breach.
pub(crate) fn run() -> Result<()> {
    let breaches = breaches(&repository())?;
    if breaches.is_empty() {
        println!("tidy");
        return Ok(());
    }
    bail!("not tidy:\n  {}", breaches.join("\n  "))
}

fn breaches(root: &Path) -> Result<Vec<String>> {
    let crates = crates(root)?;
    let architecture = std::fs::read_to_string(root.join("docs/architecture.md"))?;
    let mut breaches = Vec::new();
    for (name, directory) in &crates {
        check_sources(name, directory, &mut breaches)?;
        if !architecture.contains(&format!("\n### {name}\n")) {
            breaches.push(format!("docs/architecture.md has no section for {name}"));
        }
    }
    check_edges(&crates, &architecture, &mut breaches)?;
    let security = std::fs::read_to_string(root.join("docs/security.md"))?;
    check_named_tests(&crates, &security, &mut breaches)?;
    Ok(breaches)
}

/// Every test that docs/security.md names must exist: what no test holds is not promised.
fn check_named_tests(
    crates: &BTreeMap<String, PathBuf>,
    page: &str,
    breaches: &mut Vec<String>,
) -> Result<()> {
    let named = named_tests(page);
    if named.is_empty() {
        breaches.push("docs/security.md names no test".to_owned());
    }
    for (name, test) in named {
        let Some(directory) = crates.get(name) else {
            breaches.push(format!("docs/security.md names the crate {name}, which is none"));
            continue;
        };
        let mut sources = Vec::new();
        for part in ["src", "tests"].map(|part| directory.join(part)).iter().filter(|part| part.is_dir()) {
            collect(part, &mut sources)?;
        }
        let found =
            sources.iter().any(|path| std::fs::read_to_string(path).is_ok_and(|text| is_test(&text, test)));
        if !found {
            breaches.push(format!("docs/security.md names the test {test} of {name}, which is none"));
        }
    }
    Ok(())
}

/// Crate and test of each `crate::test` in backticks.
fn named_tests(page: &str) -> Vec<(&str, &str)> {
    page.split('`').skip(1).step_by(2).filter_map(|word| word.split_once("::")).collect()
}

/// Whether a source has a test of this name: a function with the attribute, or a case of the sandbox's table.
fn is_test(text: &str, test: &str) -> bool {
    let (function, case) = (format!("fn {test}("), format!("(\"{test}\","));
    let mut lines = text.lines().map(str::trim);
    let mut marked = false;
    lines.any(|line| {
        if line == "#[test]" {
            marked = true;
        }
        let is_function =
            line.starts_with("fn ") && std::mem::take(&mut marked) && line.starts_with(&function);
        is_function || line.starts_with(&case)
    }) || text.contains("proptest!") && text.contains(&function)
}

fn crates(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            found.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
        }
    }
    Ok(found)
}

fn check_sources(name: &str, directory: &Path, breaches: &mut Vec<String>) -> Result<()> {
    let mut sources = Vec::new();
    collect(&directory.join("src"), &mut sources)?;
    for path in &sources {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let shown = path.strip_prefix(repository()).unwrap_or(path).display();
        if !text.starts_with("//!") {
            breaches.push(format!("{shown} does not begin with //!"));
        }
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        if lines > MAX_LINES {
            breaches.push(format!("{shown} has {lines} lines before its tests; at most {MAX_LINES}"));
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if NO_ROOMS.contains(&stem.as_ref()) {
            breaches.push(format!("{shown}: a module is named after what it holds"));
        }
    }
    let entry = directory.join("src/lib.rs");
    if entry.is_file() && name != "kiln-sys" {
        let text = std::fs::read_to_string(&entry)?;
        if !text.contains("#![forbid(unsafe_code)]") {
            breaches.push(format!("{name} does not forbid unsafe code"));
        }
    }
    Ok(())
}

fn collect(directory: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}

/// The table's last column against the manifests.
fn check_edges(
    crates: &BTreeMap<String, PathBuf>,
    architecture: &str,
    breaches: &mut Vec<String>,
) -> Result<()> {
    for (name, directory) in crates {
        let Some(row) = architecture.lines().find(|line| line.starts_with(&format!("| `{name}` |"))) else {
            breaches.push(format!("docs/architecture.md's table of crates has no row for {name}"));
            continue;
        };
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        let real = edges(&std::fs::read_to_string(directory.join("Cargo.toml"))?);
        let drawn: BTreeSet<String> = match cell {
            "-" => BTreeSet::new(),
            "all" => crates.keys().filter(|other| *other != name && *other != "xtask").cloned().collect(),
            list => list.split(", ").map(|short| format!("kiln-{short}")).collect(),
        };
        let too_many: Vec<&String> = real.difference(&drawn).collect();
        let too_few: Vec<&String> = drawn.difference(&real).collect();
        if !too_many.is_empty() {
            breaches
                .push(format!("{name} depends on {too_many:?}, which the table of crates does not allow"));
        }
        if !too_few.is_empty() && cell != "all" {
            breaches.push(format!("{name} does not depend on {too_few:?}, which the table of crates draws"));
        }
    }
    Ok(())
}

/// The kiln crates in `[dependencies]`.
fn edges(manifest: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| name.starts_with("kiln-"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn named_tests_are_looked_for() {
        assert_eq!(named_tests("| a `b` | `c::d`, `e::f` |"), [("c", "d"), ("e", "f")]);
        let source = "fn helper() {}\n#[test]\n#[cfg(unix)]\nfn holds() {\n}\nfn other() {}\n    (\"a_case\", case),\n";
        assert!(is_test(source, "holds") && is_test(source, "a_case"));
        assert!(!is_test(source, "helper") && !is_test(source, "other") && !is_test(source, "hold"));
    }

    #[test]
    fn edges_are_read_from_a_manifest() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nkiln-oci.workspace = true\nserde = \"1\"\n[dev-dependencies]\nkiln-sys = {}\n";
        assert_eq!(edges(manifest), BTreeSet::from(["kiln-oci".to_owned()]));
    }
}
