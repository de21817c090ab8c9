//! Links the unwinder into the program. To find, map and relocate a shared library for it takes a twentieth of the time of a
//! short command.

#![expect(clippy::disallowed_methods, reason = "a build script is told by the environment")]

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    // Another machine's parts are not asked for.
    if variable("CARGO_CFG_TARGET_ENV") != "gnu" || variable("HOST") != variable("TARGET") {
        return;
    }
    let parts: Option<Vec<String>> = ["libgcc_eh.a", "libgcc.a"].into_iter().map(part).collect();
    // Where there are none, the shared library does.
    let Some(parts) = parts else { return };
    // Another compiler may come, with its parts elsewhere.
    parts.iter().for_each(|part| println!("cargo:rerun-if-changed={}", part.trim_matches('"')));
    // rustc asks the linker for `-lgcc_s`, which finds this script before the library: it names the parts of the same.
    let directory = PathBuf::from(variable("OUT_DIR"));
    let script = format!("GROUP ( {} )\n", parts.join(" "));
    if std::fs::write(directory.join("libgcc_s.so"), script).is_ok() {
        println!("cargo:rustc-link-search=native={}", directory.display());
    }
}

/// The path of a part of the compiler's library, if the C compiler has it.
fn part(name: &str) -> Option<String> {
    let output = Command::new("cc").arg(format!("-print-file-name={name}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    // One that it does not have is answered by its name.
    let is_there = path.is_absolute() && path.is_file();
    is_there.then(|| format!("\"{}\"", path.display()))
}
