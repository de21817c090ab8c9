//! The program itself: how long it takes to compile, how large it is, and what makes it so.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::outcome::Program;
use crate::machine::{self, has};

/// How many parts are named.
const PARTS: usize = 20;

/// Compiles the workspace from nothing, with what it depends on.
pub(crate) fn measure(place: &Path) -> Result<Program> {
    let target = place.join("clean-build");
    let _ = std::fs::remove_dir_all(&target);
    let mut cargo = machine::cargo();
    cargo.args(["build", "--release", "--workspace", "--quiet"]);
    // Names of functions are needed to tell what they take; the program is shipped without.
    cargo.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_RELEASE_STRIP", "none");
    let started = Instant::now();
    machine::run(&mut cargo)?;
    let build = started.elapsed().as_secs_f64();
    let named = target.join("release/kiln");
    let shipped = target.join("kiln");
    let mut parts = Vec::new();
    let mut size = std::fs::metadata(&named)?.len();
    if has("strip") && has("nm") {
        machine::output(Command::new("strip").arg("-o").arg(&shipped).arg(&named))?;
        size = std::fs::metadata(&shipped)?.len();
        let symbols = machine::output(Command::new("nm").args(["--print-size", "--demangle"]).arg(&named))?;
        parts = largest(by_crate(&symbols), size);
    }
    std::fs::remove_dir_all(&target)?;
    Ok(Program { build, size, parts })
}

/// Bytes of symbols, by the crate that they are of.
fn by_crate(symbols: &str) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    for line in symbols.lines() {
        // address size type name
        let mut fields = line.splitn(4, ' ');
        let (_, size, kind, name) = (fields.next(), fields.next(), fields.next(), fields.next());
        let (Some(size), Some(kind), Some(name)) = (size, kind, name) else { continue };
        // What is only reserved in memory takes nothing in the file.
        if matches!(kind, "b" | "B") {
            continue;
        }
        let Ok(size) = u64::from_str_radix(size, 16) else { continue };
        *sizes.entry(owner(name)).or_default() += size;
    }
    sizes
}

/// The crate of a demangled name: its first path, that of the type where a trait is implemented for one.
fn owner(name: &str) -> String {
    let Some(_) = name.find("::") else {
        let zstd = [
            "ZSTD",
            "HUF_",
            "FSE_",
            "XXH",
            "HIST_",
            "COVER",
            "POOL_",
            "ZBUFF",
            "ERR_",
            "FASTCOVER",
            "HUFv",
            "FSEv",
        ];
        let known = zstd.iter().any(|prefix| name.starts_with(prefix));
        return if known { "zstd, in C" } else { "SQLite and other C" }.to_owned();
    };
    let path = name.trim_start_matches(['<', '&', '*', '(', '[']);
    let path = ["mut ", "dyn ", "const "].iter().fold(path, |path, word| path.trim_start_matches(word));
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    match &path[..end] {
        "alloc" | "core" | "std" | "hashbrown" | "gimli" | "addr2line" | "rustc_demangle" | "T" | "" => {
            "the standard library"
        }
        other => other,
    }
    .to_owned()
}

/// The largest, what is not named, and what no symbol stands for.
fn largest(sizes: BTreeMap<String, u64>, whole: u64) -> Vec<(String, u64)> {
    let told: u64 = sizes.values().sum();
    let mut parts: Vec<(String, u64)> = sizes.into_iter().collect();
    parts.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let rest: u64 = parts.iter().skip(PARTS).map(|(_, size)| size).sum();
    parts.truncate(PARTS);
    parts.push(("other crates".to_owned(), rest));
    parts.push(("texts, tables for unwinding, relocations".to_owned(), whole.saturating_sub(told)));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_belong_to_crates() {
        let symbols = "0000000000001000 0000000000000010 T sqlite3_open\n\
                       0000000000001010 0000000000000020 t <kiln_store::Store as core::fmt::Debug>::fmt\n\
                       0000000000001030 0000000000000002 t kiln_store::open\n\
                       0000000000001040 0000000000000004 t <&T as core::fmt::Debug>::fmt\n\
                       0000000000001050 0000000000000008 t ZSTD_compress\n\
                       0000000000001060 0000000000001000 b reserved\n\
                                        U memcpy\n";
        let expected =
            [("SQLite and other C", 16), ("kiln_store", 34), ("the standard library", 4), ("zstd, in C", 8)];
        assert_eq!(by_crate(symbols), BTreeMap::from(expected.map(|(name, size)| (name.to_owned(), size))));
        let parts = largest(by_crate(symbols), 100);
        assert_eq!(parts[0], ("kiln_store".to_owned(), 34));
        assert_eq!(parts.last().map(|(_, size)| *size), Some(38));
    }
}
