//! Repository chores, for developers: `cargo xtask demo`, `cargo xtask test` and the like.
//!
//! Needs nothing but Rust and a C compiler; whatever else a chore wants it installs or does without, and says so.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, clippy::exit)]

mod apt;
mod bench;
mod count;
mod demo;
mod kernels;
mod lessons;
mod machine;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask CHORE

  demo   builds kiln, makes a Debian base image out of packages, builds a Python service on it,
         runs it once and prints its history
  test   formatting, lints, tidiness and all tests
  tidy   the house's rules alone
  bench  kiln beside other engines; `cargo xtask bench --help` tells more
  kernels
         kiln on other kernels, in emulated machines; `cargo xtask kernels --help` tells more
  lessons --from DIRECTORY
         builds the Dockerfiles between the fences of a directory's pages as they are written, on
         Debian packages that stand in for their bases
  count  instructions of fixed work, compared with crates/xtask/instructions.json; --accept writes it";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["demo"] => demo::run_demo(),
        ["test"] => test::run(),
        ["tidy"] => tidy::run(),
        ["count"] => count::run(count::Purpose::Compare),
        ["count", "--accept"] => count::run(count::Purpose::Accept),
        ["lessons", "--from", directory] => lessons::run_lessons(std::path::Path::new(directory)),
        ["bench", ..] => bench::run(&arguments[1..]),
        ["kernels", ..] => kernels::run_all(&arguments[1..]),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
