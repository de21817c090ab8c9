//! `system check`.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use kiln_store::{Checked, Fault, Store};

use crate::progress::log::sanitise;
use crate::session::{self, Files};

/// Verifies everything in the store: a line for each fault, and status 1 if there is one.
pub(crate) fn run(root: Option<&Path>) -> Result<u8> {
    let store = session::open(root, Files::Touched)?;
    let checked = store.check()?;
    let mut out = crate::output::output();
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
    if let Some(hint) = how_to_repair(&store, &checked)? {
        crate::output::aside(&format!("hint: {hint}\n"));
    }
    Ok(u8::from(!checked.faults.is_empty()))
}

/// What brings back what is damaged. A file that is gone or cut off comes back with the same archive alone; of one whose
/// bytes are others, nothing tells before it is read.
fn how_to_repair(store: &Store, checked: &Checked) -> Result<Option<String>> {
    let in_database = |fault: &Fault| matches!(fault, Fault::Database { .. });
    if checked.faults.iter().all(in_database) {
        return Ok(None);
    }
    let mut names = Vec::new();
    for image in &checked.damaged {
        let own: Vec<String> = store.names_of(*image)?.iter().map(kiln_oci::Reference::familiar).collect();
        names.extend(if own.is_empty() { vec![image.0.short()] } else { own });
    }
    let cache = "`kiln system prune -f`";
    Ok(Some(match names.is_empty() {
        true => format!("{cache} removes what is damaged"),
        false => format!(
            "`kiln rmi -f {}` and {cache} remove what is damaged; then load, import or build it again",
            names.join(" ")
        ),
    }))
}
