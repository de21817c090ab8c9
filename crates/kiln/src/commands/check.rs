//! `system check`.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::progress::log::sanitise;
use crate::session::{self, Files};

/// Verifies everything in the store: a line for each fault, and status 1 if there is one.
pub(crate) fn run(root: Option<&Path>) -> Result<u8> {
    let store = session::open(root, Files::Touched)?;
    let checked = store.check()?;
    let mut out = std::io::stdout().lock();
    for fault in &checked.faults {
        writeln!(out, "{}", sanitise(fault.to_string().as_bytes()))?;
    }
    for name in &checked.garbage {
        writeln!(out, "unused: {}", sanitise(name.as_bytes()))?;
    }
    let counted = |count: u64, word: &str| match count {
        1 => format!("1 {word}"),
        count => format!("{count} {word}s"),
    };
    let faults = match checked.faults.len() {
        0 => "no fault".to_owned(),
        count => counted(count as u64, "fault"),
    };
    writeln!(
        out,
        "{}, {}, {}: {faults}",
        counted(checked.images, "image"),
        counted(checked.layers, "layer"),
        counted(checked.blobs, "blob")
    )?;
    Ok(u8::from(!checked.faults.is_empty()))
}
