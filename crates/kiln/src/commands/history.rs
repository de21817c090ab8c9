//! `history`.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use kiln_oci::History as Entry;
use kiln_store::{Image, Store};

use crate::arguments::image::History;
use crate::failure::Failure;
use crate::listing::history::{HistoryStyle, Step};
use crate::session::{self, Files};
use crate::units::Clock;

/// Shows how an image came to be, the newest step first.
pub(crate) fn run(root: Option<&Path>, arguments: &History) -> Result<u8> {
    let style = HistoryStyle {
        format: arguments.format.asked(),
        quiet: arguments.quiet,
        full: arguments.no_trunc,
        human: arguments.human,
    };
    let store = session::open(root, Files::Untouched)?;
    let image = store.image(store.resolve(&arguments.image)?)?;
    let steps = steps(&store, &image)?;
    let rows = style.rows(&steps, &Clock::system());
    let text = style.layout().render(&rows).map_err(Failure::from)?;
    crate::output::output().write_all(text.as_bytes())?;
    Ok(0)
}

/// The steps with the sizes of the layers that they made. Layers that no step tells of are steps of their own.
fn steps(store: &Store, image: &Image) -> Result<Vec<Step>> {
    let mut layers = image.config.rootfs.diff_ids.iter();
    let mut size = |made: bool| -> Result<u64> {
        let layer = if made { layers.next() } else { None };
        let info = layer.map(|layer| store.layer(*layer)).transpose()?.flatten();
        Ok(info.map_or(0, |info| info.files_size))
    };
    let step = |entry: &Entry, size: u64| Step {
        id: None,
        created: entry.created.as_deref().and_then(|time| time.parse().ok()),
        created_by: entry.created_by.clone(),
        size,
        comment: entry.comment.clone(),
    };
    let mut steps = Vec::new();
    for entry in &image.config.history {
        steps.push(step(entry, size(!entry.empty_layer)?));
    }
    let told = image.config.history.iter().filter(|entry| !entry.empty_layer).count();
    for _ in told..image.config.rootfs.diff_ids.len() {
        steps.push(step(&Entry::default(), size(true)?));
    }
    steps.reverse();
    if let Some(newest) = steps.first_mut() {
        newest.id = Some(image.id.to_string());
    }
    Ok(steps)
}
