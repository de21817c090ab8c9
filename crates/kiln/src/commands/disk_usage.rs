//! `system df`.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use kiln_oci::Reference;
use kiln_store::{CacheItem, CacheItemKind, DiskUsage as Found, ImageUsage};

use crate::arguments::system::DiskUsage as Arguments;
use crate::failure::Failure;
use crate::listing::disk_usage::{CacheEntry, DiskUsage, Usage};
use crate::listing::images::Image;
use crate::session::{self, Files};
use crate::units::Clock;

/// Shows what takes space in the store.
pub(crate) fn run(root: Option<&Path>, arguments: &Arguments) -> Result<u8> {
    let store = session::open(root, Files::Touched)?;
    let usage = listing(&store.disk_usage()?);
    let format = arguments.format.asked();
    let text = match arguments.verbose {
        true => usage.details(format, &Clock::system()),
        false => usage.summary(format),
    };
    crate::output::output().write_all(text.map_err(Failure::from)?.as_bytes())?;
    Ok(0)
}

fn listing(found: &Found) -> DiskUsage {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let own = found.cache.iter().filter(|item| !item.shared);
    let in_use = |item: &&CacheItem| item.in_use;
    DiskUsage {
        images: Usage {
            count: count(found.images.len()),
            active: count(found.images.iter().filter(|image| image.containers > 0).count()),
            size: found.image_bytes,
            reclaimable: found.unused_image_bytes,
        },
        blobs: Usage {
            count: found.blobs,
            active: found.blobs_of_images,
            size: found.blob_bytes,
            reclaimable: found.unused_blob_bytes,
        },
        // One that ends is gone.
        containers: Usage {
            count: found.containers,
            active: found.containers,
            size: found.container_bytes,
            reclaimable: 0,
        },
        cache: Usage {
            count: count(found.cache.len()),
            active: count(found.cache.iter().filter(in_use).count()),
            size: own.clone().map(|item| item.size).sum(),
            reclaimable: own.filter(|item| !item.in_use).map(|item| item.size).sum(),
        },
        image_list: found.images.iter().map(image).collect(),
        cache_list: found.cache.iter().map(entry).collect(),
    }
}

/// One row for an image, under its first name.
fn image(image: &ImageUsage) -> Image {
    let name = image.names.first().and_then(|name| name.parse::<Reference>().ok());
    Image {
        id: image.id.to_string(),
        repository: name.as_ref().map(Reference::familiar_name),
        tag: name.and_then(|name| name.tag),
        digest: Some(String::new()),
        created: super::images::time(image.created),
        size: image.size,
        shared: Some(image.shared),
        containers: Some(image.containers),
    }
}

fn entry(item: &CacheItem) -> CacheEntry {
    let time = |nanoseconds: i64| Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default();
    CacheEntry {
        id: item.id.clone(),
        parents: Vec::new(),
        kind: match item.kind {
            CacheItemKind::Layer => "regular".to_owned(),
            CacheItemKind::Mount => "exec.cachemount".to_owned(),
        },
        description: item.description.clone(),
        size: item.size,
        created: time(item.created),
        last_used: Some(time(item.last_used)),
        uses: item.records,
        in_use: item.in_use,
        shared: item.shared,
    }
}
