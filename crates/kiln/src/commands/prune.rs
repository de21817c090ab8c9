//! `image prune` and `system prune`.

use std::collections::{BTreeSet, HashSet};
use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use kiln_oci::ImageId;
use kiln_store::{CacheToRemove, Collected, Collection, ImagesToRemove, Store};

use crate::arguments::image::Prune as PruneImages;
use crate::arguments::system::Prune as PruneSystem;
use crate::failure::Failure;
use crate::filters::{PruneFilters, given};
use crate::prompt::confirm;
use crate::session::{self, Files};
use crate::units::{Clock, human_size};

/// Removes images without a name, or all.
pub(crate) fn images(root: Option<&Path>, arguments: &PruneImages) -> Result<u8> {
    let filters = PruneFilters::read(&arguments.filter, &Clock::system()).map_err(Failure::from)?;
    // `--filter dangling=false` is Docker's other way of saying --all.
    let all = arguments.all || filters.dangling == Some(false);
    let warning = match all {
        true => "WARNING! This will remove all images without at least one container associated to them.",
        false => "WARNING! This will remove all dangling images.",
    };
    if !arguments.force && !asked(warning)? {
        return Ok(0);
    }
    let store = session::open(root, Files::Touched)?;
    prune(&store, &filters, all, CacheToRemove::Nothing)
}

/// Removes what nothing uses.
pub(crate) fn system(root: Option<&Path>, arguments: &PruneSystem) -> Result<u8> {
    let filters = PruneFilters::read(&arguments.filter, &Clock::system()).map_err(Failure::from)?;
    let all = arguments.all || filters.dangling == Some(false);
    let (images, cache) = match all {
        true => ("all images without at least one container associated to them", "all build cache"),
        false => ("all dangling images", "unused build cache"),
    };
    let mut warning = format!("WARNING! This will remove:\n  - {images}\n  - {cache}\n");
    let filtered: BTreeSet<&String> = given(&arguments.filter).collect();
    if !filtered.is_empty() {
        warning.push_str("\n  Items to be pruned will be filtered with:\n");
        warning.extend(filtered.into_iter().map(|filter| format!("  - {filter}\n")));
    }
    if !arguments.force && !asked(&warning)? {
        return Ok(0);
    }
    // The build cache has no labels.
    let labels = !filters.labels.is_empty() || !filters.kept_labels.is_empty();
    let cache = match (labels, all && filters.until.is_none()) {
        (true, _) => CacheToRemove::Nothing,
        (false, true) => CacheToRemove::All,
        (false, false) => CacheToRemove::Unused,
    };
    let store = session::open(root, Files::Touched)?;
    prune(&store, &filters, all, cache)
}

fn asked(warning: &str) -> Result<bool> {
    Ok(confirm(warning, std::io::stdin().lock(), crate::output::output())?)
}

fn prune(store: &Store, filters: &PruneFilters, all: bool, cache: CacheToRemove) -> Result<u8> {
    let images = if all { ImagesToRemove::All } else { ImagesToRemove::Dangling };
    let labelled = match filters.labels.is_empty() && filters.kept_labels.is_empty() {
        true => None,
        false => Some(with_labels(store, filters)?),
    };
    let until = filters.until.map(|until| i64::try_from(until.as_nanosecond()).unwrap_or(i64::MAX));
    let collected = store.collect(&Collection { images, only: labelled.as_ref(), cache, until })?;
    report(&collected)?;
    super::tell_files_stay(collected.not_removed.as_deref());
    Ok(0)
}

fn with_labels(store: &Store, filters: &PruneFilters) -> Result<HashSet<ImageId>> {
    let mut chosen = HashSet::new();
    for image in store.images()? {
        // What is gone meanwhile is not to be removed, and of a damaged config nobody knows.
        let Ok(found) = store.image(image.id) else { continue };
        let labels = found.config.config.labels.unwrap_or_default();
        if filters.accepts(&labels, super::images::time(image.created)) {
            chosen.insert(image.id);
        }
    }
    Ok(chosen)
}

fn report(collected: &Collected) -> Result<()> {
    let mut out = crate::output::output();
    if !collected.images.is_empty() {
        writeln!(out, "Deleted Images:")?;
        for image in &collected.images {
            for name in &image.names {
                writeln!(out, "untagged: {name}")?;
            }
            writeln!(out, "deleted: {}", image.id)?;
        }
        for layer in &collected.image_layers {
            writeln!(out, "deleted: {layer}")?;
        }
        writeln!(out)?;
    }
    if !collected.cache_layers.is_empty() || !collected.cache_mounts.is_empty() {
        writeln!(out, "Deleted build cache objects:")?;
        for layer in &collected.cache_layers {
            writeln!(out, "{}", layer.0.hex())?;
        }
        for mount in &collected.cache_mounts {
            writeln!(out, "{mount}")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "Total reclaimed space: {}", human_size(collected.bytes))?;
    Ok(())
}
