//! `images`.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use kiln_oci::Reference;
use kiln_store::{ImageSummary, Store};

use crate::arguments::image::List;
use crate::failure::Failure;
use crate::filters::{ImageFilters, Labels};
use crate::listing::images::{Image, ImagesStyle};
use crate::session::{self, Files};
use crate::units::Clock;

/// Lists images, a row for each name.
pub(crate) fn run(root: Option<&Path>, arguments: &List) -> Result<u8> {
    let clock = Clock::system();
    let mut wanted = arguments.filter.clone();
    wanted.extend(arguments.reference.iter().map(|pattern| format!("reference={pattern}")));
    let filters = ImageFilters::read(&wanted, &clock).map_err(Failure::from)?;
    let style = ImagesStyle {
        format: arguments.format.asked(),
        quiet: arguments.quiet,
        digests: arguments.digests,
        full: arguments.no_trunc,
    };
    let store = session::open(root, Files::Untouched)?;
    let images = chosen(&store, &filters)?;
    let rows: Vec<Image> = images.iter().flat_map(|image| rows(image, &filters)).collect();
    let text = style.layout().render(&style.rows(&rows, &clock)).map_err(Failure::from)?;
    crate::output::output().write_all(text.as_bytes())?;
    Ok(0)
}

/// The images that pass, whatever their names.
fn chosen(store: &Store, filters: &ImageFilters) -> Result<Vec<ImageSummary>> {
    let created = |names: &[String]| -> Result<Vec<i64>> {
        names.iter().map(|name| Ok(store.image(store.resolve(name)?)?.created)).collect()
    };
    let before = created(&filters.before)?.into_iter().min();
    let since = created(&filters.since)?.into_iter().max();
    let mut chosen = Vec::new();
    for image in store.images()? {
        let in_time = before.is_none_or(|before| image.created < before)
            && since.is_none_or(|since| image.created > since);
        if !in_time || !filters.wants(image.names.is_empty()) {
            continue;
        }
        // Configs are read only for those who ask for labels.
        let labels = match filters.labels.is_empty() {
            true => Labels::default(),
            false => store.image(image.id)?.config.config.labels.unwrap_or_default(),
        };
        if filters.accepts(&labels, time(image.created)) {
            chosen.push(image);
        }
    }
    Ok(chosen)
}

/// A row for each name that was asked for; one row for an image without a name.
fn rows(image: &ImageSummary, filters: &ImageFilters) -> Vec<Image> {
    let row = |repository, tag| Image {
        id: image.id.to_string(),
        repository,
        tag,
        digest: None,
        created: time(image.created),
        size: image.size,
        shared: None,
        containers: None,
    };
    if image.names.is_empty() {
        return if filters.references.is_empty() { vec![row(None, None)] } else { Vec::new() };
    }
    image
        .names
        .iter()
        .filter_map(|name| name.parse::<Reference>().ok())
        .map(|name| (name.familiar_name(), name.tag.unwrap_or_default()))
        .filter(|(name, tag)| filters.names(name, tag))
        .map(|(name, tag)| row(Some(name), Some(tag)))
        .collect()
}

/// The store's time as a time, if it is one.
pub(crate) fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds != kiln_store::NO_TIME)
        .then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok())
        .flatten()
}
