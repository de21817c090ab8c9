//! `version`.

use std::io::Write as _;

use anyhow::Result;
use serde_json::json;

use crate::arguments::system::Version;
use crate::failure::Failure;
use crate::format::inspect::Inspect;
use crate::units::Clock;

/// Prints kiln's version. There is no server, but scripts ask for `.Server.Version`: it is the same program.
pub(crate) fn show(arguments: &Version) -> Result<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let (os, arch) = (std::env::consts::OS, architecture());
    let engine = json!({ "Version": version, "Os": os, "Arch": arch });
    let mut out = crate::output::output();
    match arguments.format.asked() {
        None => write!(out, "kiln:\n Version:  {version}\n OS/Arch:  {os}/{arch}\n")?,
        Some(format) => {
            let template = if format == "json" { "{{json .}}" } else { format };
            let document = json!({ "Client": engine, "Server": engine });
            let inspect =
                Inspect::read(Some(template)).map_err(|failure| Failure::from(failure).status(64))?;
            let inspected = inspect.render(&[document], "the version", &Clock::system());
            match inspected.failures.into_iter().next() {
                Some(failure) => return Err(Failure::from(failure).into()),
                None => out.write_all(inspected.text.as_bytes())?,
            }
        }
    }
    Ok(0)
}

/// The architecture in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
