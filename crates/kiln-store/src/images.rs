//! Images and their names.

use kiln_oci::{ChainId, DiffId, Digest, ImageConfig, ImageId, Reference};
use rusqlite::{Connection, params};

use crate::Store;
use crate::collect::Collection;
use crate::database::{Durability, all, digest, execute, now};
use crate::durable::DURABLE_LAYER;
use crate::error::{Error, Result};
use crate::layout::{NewManifest, insert_manifest, is_shown};
use crate::lease::Lease;
use crate::store::{Marks, clear_marks};

/// How often layers are synced anew because they were collected and made anew meanwhile.
const MOST_TRIES: usize = 16;

/// An image as the store knows it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the config.
    pub id: ImageId,
    /// The config's own bytes.
    pub config_bytes: Vec<u8>,
    /// The config.
    pub config: ImageConfig,
    /// Bytes of regular files in all layers, hard links once in each.
    pub size: u64,
    /// `created` of the config, nanoseconds since the epoch; 0 if it has none.
    pub created: i64,
    /// When the image came into the store, nanoseconds since the epoch.
    pub stored: i64,
}

/// A name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The full name with its tag.
    pub name: Reference,
    /// What it names.
    pub image: ImageId,
    /// When it was last moved, nanoseconds since the epoch.
    pub updated: i64,
}

/// A line of `kiln images`: enough to list without reading configs.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    /// Digest of the config.
    pub id: ImageId,
    /// Bytes of regular files in all layers.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// All names, sorted.
    pub names: Vec<String>,
}

/// What removing a name did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The name is gone.
    Untagged(String),
    /// The image is gone.
    Deleted(ImageId),
    /// A layer that only this image had is gone.
    Layer(DiffId),
    /// Some files stay: why, as in [`Collected::not_removed`](crate::Collected::not_removed).
    FilesStay(String),
}

/// An image that is to be published.
pub(crate) struct NewImage {
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) manifest: Option<NewManifest>,
    pub(crate) names: Vec<Reference>,
    /// The manifest that came with the image under these names, whose digest they stand for.
    pub(crate) came_as: Option<Digest>,
}

impl NewImage {
    fn id(&self) -> ImageId {
        ImageId(Digest::of(&self.config_bytes))
    }
}

/// An image that was published.
pub(crate) struct PublishedImage {
    pub(crate) id: ImageId,
    /// Those of its names that another image had before, and which.
    pub(crate) moved: Vec<(Reference, ImageId)>,
}

impl Store {
    /// Adds an image and gives it names, durably: what is on disk is synced first, and the names move in one
    /// transaction. Does nothing at all if every name is there already.
    pub fn publish_image(&self, config_bytes: &[u8], names: &[Reference]) -> Result<ImageId> {
        if let Some(id) = self.published(config_bytes, names)? {
            return Ok(id);
        }
        let id = ImageId(Digest::of(config_bytes));
        let image = NewImage {
            config_bytes: config_bytes.to_vec(),
            manifest: None,
            names: names.to_vec(),
            came_as: None,
        };
        self.publish(&[image])?;
        Ok(id)
    }

    /// As [`Store::publish_image`], of an image that came with layers that have blobs: `manifest`, or else one that is
    /// made for it, is kept with it.
    pub(crate) fn publish_shown(
        &self,
        lease: &Lease,
        config_bytes: &[u8],
        manifest: Option<NewManifest>,
        names: &[Reference],
    ) -> Result<ImageId> {
        let came_as = manifest.as_ref().map(NewManifest::digest);
        let image =
            NewImage { config_bytes: config_bytes.to_vec(), manifest, names: names.to_vec(), came_as };
        self.publish_all_shown(lease, vec![image])?;
        Ok(ImageId(Digest::of(config_bytes)))
    }

    /// As [`Store::publish_shown`], of several images: all of them, or none.
    pub(crate) fn publish_all_shown(
        &self,
        lease: &Lease,
        mut images: Vec<NewImage>,
    ) -> Result<Vec<PublishedImage>> {
        let mut done = true;
        for image in &mut images {
            if image.manifest.is_none() {
                image.manifest = self.made_manifest(&image.config_bytes)?;
            }
            done = done && self.is_published(image.id(), &image.names, image.came_as)?;
            if let Some(manifest) = &image.manifest {
                done = done && self.has_documents(image.id(), manifest)?;
            }
        }
        if done {
            // A kill may have come between the names and the layout.
            if images.iter().any(|image| image.manifest.is_some()) {
                self.with_reserve(|| self.write_layout())?;
            }
            let same = |image: &NewImage| PublishedImage { id: image.id(), moved: Vec::new() };
            return Ok(images.iter().map(same).collect());
        }
        for image in &images {
            if let Some(manifest) = &image.manifest {
                self.put_documents(lease, &image.config_bytes, manifest)?;
            }
        }
        self.publish(&images)
    }

    /// One sync and one transaction for all of them.
    fn publish(&self, images: &[NewImage]) -> Result<Vec<PublishedImage>> {
        let _span = kiln_trace::span("publish image");
        let mut layers = Vec::new();
        let mut documents = Vec::new();
        for image in images {
            layers.extend(ImageConfig::parse(&image.config_bytes)?.rootfs.diff_ids);
            if let Some(manifest) = &image.manifest {
                documents.extend([manifest.digest(), image.id().0]);
                documents.extend(manifest.layers()?);
            }
        }
        for _ in 0..MOST_TRIES {
            let marks = self.make_durable(&layers, &documents)?;
            if let Some((published, shown)) = self.publish_durable(images, &marks)? {
                if shown {
                    // The names have moved: what only shows them must not fail for want of room.
                    self.with_reserve(|| self.write_layout())?;
                }
                // The database may have grown.
                crate::reserve::make(self.root());
                return Ok(published);
            }
        }
        Err(Error::Restless)
    }

    /// The transaction that names images. `None`, and nothing has happened, if a layer of theirs was collected and made anew
    /// since it was synced.
    fn publish_durable(
        &self,
        images: &[NewImage],
        marks: &Marks,
    ) -> Result<Option<(Vec<PublishedImage>, bool)>> {
        let mut anew = false;
        let published = self.database.write(Durability::Durable, |t| {
            clear_marks(t, marks, &self.boot)?;
            let mut shown = false;
            let mut published = Vec::new();
            for image in images {
                let id = insert_image(t, &image.config_bytes)?;
                if let Some(manifest) = &image.manifest {
                    insert_manifest(t, id, manifest)?;
                }
                for layer in layers_of(t, id)? {
                    // What a power cut left behind must not get a name.
                    let usable = self.is_usable(t, layer)?;
                    let durable = match usable {
                        true => self.is_durable(t, layer)?,
                        false => self.is_durable_for_others(t, layer)?,
                    };
                    if !durable {
                        anew = usable;
                        return Err(Error::NoLayer(layer));
                    }
                }
                // The layout names the image that has a name now, and the one that had it.
                shown |= is_shown(t, id)?;
                let mut moved = Vec::new();
                for name in &image.names {
                    if let Some(old) = move_tag(t, name, id, image.came_as)?.filter(|old| *old != id) {
                        shown |= is_shown(t, old)?;
                        moved.push((name.clone(), old));
                    }
                }
                published.push(PublishedImage { id, moved });
            }
            Ok((published, shown))
        });
        if anew { Ok(None) } else { published.map(Some) }
    }

    /// The image of this config, if it is there, durable, and has all these names: publishing it would do nothing.
    pub fn published(&self, config_bytes: &[u8], names: &[Reference]) -> Result<Option<ImageId>> {
        let id = ImageId(Digest::of(config_bytes));
        Ok(self.is_published(id, names, None)?.then_some(id))
    }

    fn is_published(&self, id: ImageId, names: &[Reference], came_as: Option<Digest>) -> Result<bool> {
        // Mostly all that is in the store is durable, which is told at once.
        let any_unsynced = self.database.one(
            "SELECT EXISTS (SELECT 1 FROM layers WHERE boot IS NOT NULL) \
                 OR EXISTS (SELECT 1 FROM snapshots WHERE boot IS NOT NULL) \
                 OR EXISTS (SELECT 1 FROM blobs WHERE boot IS NOT NULL) FROM images WHERE id = ?1",
            [id.0.as_bytes()],
            |row| row.get::<_, bool>(0),
        )?;
        match any_unsynced {
            None => return Ok(false),
            Some(true) if !self.has_durable_layers(id)? => return Ok(false),
            Some(_) => {}
        }
        for name in names {
            if self.tagged(name)? != Some(id) || came_as.is_some() && self.manifest_of(name)? != came_as {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether index and a source of every layer of an image are durable.
    fn has_durable_layers(&self, id: ImageId) -> Result<bool> {
        let sql = format!(
            "SELECT 1 FROM image_layers i LEFT JOIN layers l USING (diff_id) \
             WHERE i.image = ?1 AND ({DURABLE_LAYER}) IS NOT 1 LIMIT 1"
        );
        let unsynced = self.database.one(&sql, params![id.0.as_bytes(), self.owners()], |_| Ok(()))?;
        Ok(unsynced.is_none())
    }

    /// The image that has a name; a digest in it does not count.
    fn tagged(&self, name: &Reference) -> Result<Option<ImageId>> {
        let sql = "SELECT image FROM tags WHERE name = ?1";
        let row = self.database.one(sql, [name.to_string()], |row| digest(row, 0))?;
        Ok(row.map(ImageId))
    }

    /// The manifest that came under a name.
    pub(crate) fn manifest_of(&self, name: &Reference) -> Result<Option<Digest>> {
        let sql = "SELECT manifest FROM tags WHERE name = ?1 AND manifest IS NOT NULL";
        self.database.one(sql, [name.to_string()], |row| digest(row, 0))
    }

    /// Gives an image a further name, durably: the same image under the same manifest, if `source` is a name or a digest
    /// under which one came.
    pub fn tag(&self, source: &str, name: &Reference) -> Result<()> {
        let image = self.image(self.resolve(source)?)?;
        let came_as = match source.parse::<Reference>() {
            Ok(Reference { digest: Some(digest), .. }) => Some(digest).filter(|digest| *digest != image.id.0),
            Ok(source) => self.manifest_of(&source.or_latest())?,
            Err(_) => None,
        };
        if self.is_published(image.id, std::slice::from_ref(name), came_as)? {
            return Ok(());
        }
        let names = vec![name.clone()];
        let image = NewImage { config_bytes: image.config_bytes, manifest: None, names, came_as };
        self.publish(&[image]).map(drop)
    }

    /// An image by ID.
    pub fn image(&self, id: ImageId) -> Result<Image> {
        let row = self.database.one(
            "SELECT config, size, created, stored FROM images WHERE id = ?1",
            [id.0.as_bytes()],
            |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?, row.get(2)?, row.get(3)?)),
        )?;
        let (config_bytes, size, created, stored) = row.ok_or_else(|| Error::NoImage(id.to_string()))?;
        let config = ImageConfig::parse(&config_bytes)?;
        Ok(Image { id, config_bytes, config, size: size.unsigned_abs(), created, stored })
    }

    /// The image that a name, a full ID or the beginning of an ID means, as Docker resolves it.
    pub fn resolve(&self, text: &str) -> Result<ImageId> {
        self.find(text)?.ok_or_else(|| Error::NoImage(text.to_owned()))
    }

    /// As [`Store::resolve`], with `None` if there is none.
    pub fn find(&self, text: &str) -> Result<Option<ImageId>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Ok(digest) = Digest::from_hex(hex) {
            return self.known(ImageId(digest));
        }
        if let Ok(reference) = text.parse::<Reference>()
            && let Some(id) = self.find_name(&reference.or_latest())?
        {
            return Ok(Some(id));
        }
        self.find_prefix(hex)
    }

    /// The image that a reference names, by tag or by digest (of its config or manifest).
    pub fn find_name(&self, reference: &Reference) -> Result<Option<ImageId>> {
        if let Some(digest) = reference.digest {
            let by_manifest = self.database.one(
                "SELECT image FROM manifests WHERE digest = ?1",
                [digest.as_bytes()],
                |row| super::database::digest(row, 0),
            )?;
            return match by_manifest {
                Some(image) => Ok(Some(ImageId(image))),
                None => self.known(ImageId(digest)),
            };
        }
        self.tagged(reference)
    }

    fn known(&self, id: ImageId) -> Result<Option<ImageId>> {
        let row = self.database.one("SELECT 1 FROM images WHERE id = ?1", [id.0.as_bytes()], |_| Ok(()))?;
        Ok(row.map(|()| id))
    }

    fn find_prefix(&self, hex: &str) -> Result<Option<ImageId>> {
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(None);
        }
        let bound = |fill: &str| {
            Digest::from_hex(&format!("{hex}{}", fill.repeat(64 - hex.len()))).unwrap_or_default()
        };
        let (low, high) = (bound("0"), bound("f"));
        let found = self.database.all(
            "SELECT id FROM images WHERE id BETWEEN ?1 AND ?2 LIMIT 100",
            params![low.as_bytes(), high.as_bytes()],
            |row| digest(row, 0),
        )?;
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(ImageId(*one))),
            many => Err(Error::AmbiguousId(hex.to_owned(), many.len())),
        }
    }

    /// All tags, by name.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        let rows = self.database.all("SELECT name, image, updated FROM tags ORDER BY name", [], |row| {
            Ok((row.get::<_, String>(0)?, digest(row, 1)?, row.get(2)?))
        })?;
        rows.into_iter()
            .map(|(name, image, updated)| Ok(Tag { name: name.parse()?, image: ImageId(image), updated }))
            .collect()
    }

    /// The names of one image, sorted.
    pub fn names_of(&self, id: ImageId) -> Result<Vec<Reference>> {
        let rows = self.database.all(
            "SELECT name FROM tags WHERE image = ?1 ORDER BY name",
            [id.0.as_bytes()],
            |row| row.get::<_, String>(0),
        )?;
        rows.iter().map(|name| Ok(name.parse()?)).collect()
    }

    /// When a name of the image last moved, nanoseconds since the epoch.
    pub fn last_tag_time(&self, id: ImageId) -> Result<Option<i64>> {
        let row = self.database.one(
            "SELECT max(updated) FROM tags WHERE image = ?1",
            [id.0.as_bytes()],
            |row| row.get::<_, Option<i64>>(0),
        )?;
        Ok(row.flatten())
    }

    /// All images, newest first, with their names: one query each, no configs.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let mut images = self.database.all(
            "SELECT id, size, created FROM images ORDER BY created DESC, id",
            [],
            |row| {
                let size: i64 = row.get(1)?;
                Ok(ImageSummary {
                    id: ImageId(digest(row, 0)?),
                    size: size.unsigned_abs(),
                    created: row.get(2)?,
                    names: Vec::new(),
                })
            },
        )?;
        let position: std::collections::HashMap<ImageId, usize> =
            images.iter().enumerate().map(|(position, image)| (image.id, position)).collect();
        let names = self.database.all("SELECT name, image FROM tags ORDER BY name", [], |row| {
            Ok((row.get::<_, String>(0)?, digest(row, 1)?))
        })?;
        for (name, image) in names {
            if let Some(position) = position.get(&ImageId(image)) {
                images[*position].names.push(name);
            }
        }
        Ok(images)
    }

    /// Removes what `text` means, as `docker rmi` does: a name if it is not the last one, else the image
    /// with its names; an ID with several names needs `force`.
    pub fn remove_image(&self, text: &str, force: bool) -> Result<Vec<Removed>> {
        let id = self.resolve(text)?;
        let by_name = text
            .parse::<Reference>()
            .ok()
            .map(Reference::or_latest)
            .filter(|name| name.digest.is_none())
            .filter(|name| matches!(self.find_name(name), Ok(Some(found)) if found == id));
        let (layers, gone, last) = self.with_reserve(|| {
            self.database.write(Durability::Durable, |t| {
                // Not from the config, which may be damaged: that is a reason to remove an image.
                let layers = layers_of(t, id)?;
                let (gone, last) = remove_names(t, id, by_name.as_ref(), force)?;
                Ok((layers, gone, last))
            })
        })?;
        let mut removed = Vec::new();
        for name in gone {
            removed.push(Removed::Untagged(name.parse::<Reference>()?.familiar()));
        }
        if last {
            removed.push(Removed::Deleted(id));
            let collected = self.collect(&Collection::default())?;
            let gone = &collected.cache_layers;
            let own = layers.iter().rev().filter(|layer| gone.contains(layer));
            removed.extend(own.map(|layer| Removed::Layer(*layer)));
            removed.extend(collected.not_removed.map(Removed::FilesStay));
        } else {
            self.with_reserve(|| self.write_layout_for(id))?;
        }
        Ok(removed)
    }
}

/// Removes one name of an image, or all, and the image with its last one. Gives the names, and whether it was the last.
fn remove_names(
    t: &Connection,
    id: ImageId,
    by_name: Option<&Reference>,
    force: bool,
) -> Result<(Vec<String>, bool)> {
    let names = all(t, "SELECT name FROM tags WHERE image = ?1 ORDER BY name", [id.0.as_bytes()], |row| {
        row.get::<_, String>(0)
    })?;
    if by_name.is_none() && names.len() > 1 && !force {
        return Err(Error::SeveralNames(id.0.short()));
    }
    let gone = by_name.map_or_else(|| names.clone(), |name| vec![name.to_string()]);
    // Another process may have moved or removed the name since it was looked up.
    if let Some(name) = by_name
        && !names.contains(&gone[0])
    {
        return Err(Error::NoImage(name.familiar()));
    }
    let last = names.iter().all(|name| gone.contains(name));
    for name in &gone {
        execute(t, "DELETE FROM tags WHERE name = ?1 AND image = ?2", params![name, id.0.as_bytes()])?;
    }
    if last {
        execute(t, "DELETE FROM images WHERE id = ?1", [id.0.as_bytes()])?;
    }
    Ok((gone, last))
}

fn layers_of(t: &Connection, id: ImageId) -> Result<Vec<DiffId>> {
    all(t, "SELECT diff_id FROM image_layers WHERE image = ?1 ORDER BY position", [id.0.as_bytes()], |row| {
        digest(row, 0).map(DiffId)
    })
}

/// Inserts an image, its layers' order and their chains. Idempotent.
fn insert_image(t: &Connection, config_bytes: &[u8]) -> Result<ImageId> {
    let id = ImageId(Digest::of(config_bytes));
    let config = ImageConfig::parse(config_bytes)?;
    let size = image_size(t, &config.rootfs.diff_ids)?;
    let created = config.created.as_deref().and_then(parse_time).unwrap_or(NO_TIME);
    let inserted = execute(
        t,
        "INSERT INTO images (id, config, chain_id, size, created, stored) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT DO NOTHING",
        params![id.0.as_bytes(), config_bytes, config.chain_id().0.as_bytes(), size, created, now()],
    )?;
    if inserted == 0 {
        return Ok(id);
    }
    for (position, layer) in config.rootfs.diff_ids.iter().enumerate() {
        execute(
            t,
            "INSERT INTO image_layers VALUES (?1, ?2, ?3)",
            params![id.0.as_bytes(), position as i64, layer.0.as_bytes()],
        )?;
    }
    insert_chain(t, &config.rootfs.diff_ids)?;
    Ok(id)
}

fn insert_chain(t: &Connection, layers: &[DiffId]) -> Result<()> {
    let mut parent = ChainId::SCRATCH;
    for layer in layers {
        crate::chains::insert_link(t, parent, *layer)?;
        parent = parent.with(*layer);
    }
    Ok(())
}

/// Sum over all layers; fails if one is not there, so that an image never lacks a layer.
fn image_size(t: &Connection, layers: &[DiffId]) -> Result<i64> {
    let mut size: i64 = 0;
    for layer in layers {
        let found =
            all(t, "SELECT files_size FROM layers WHERE diff_id = ?1", [layer.0.as_bytes()], |row| {
                row.get::<_, i64>(0)
            })?;
        size = size.saturating_add(*found.first().ok_or(Error::NoLayer(*layer))?);
    }
    Ok(size)
}

/// Gives a name to an image; returns the one that had it. A name that moves to where it is keeps what its image came as.
fn move_tag(
    t: &Connection,
    name: &Reference,
    id: ImageId,
    came_as: Option<Digest>,
) -> Result<Option<ImageId>> {
    let name = name.to_string();
    let old = all(t, "SELECT image FROM tags WHERE name = ?1", [&name], |row| digest(row, 0))?;
    execute(
        t,
        "INSERT INTO tags VALUES (?1, ?2, ?3, ?4) ON CONFLICT (name) DO UPDATE SET updated = ?3, \
         manifest = CASE WHEN image = ?2 THEN coalesce(?4, manifest) ELSE ?4 END, image = ?2",
        params![name, id.0.as_bytes(), now(), came_as.as_ref().map(Digest::as_bytes)],
    )?;
    Ok(old.first().copied().map(ImageId))
}

/// When an image was made that does not say it, or says a time that so few nanoseconds do not reach.
pub const NO_TIME: i64 = i64::MIN;

/// Nanoseconds since the epoch of an RFC 3339 time.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    let timestamp: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(timestamp.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another process has moved the name between the look-up and the transaction.
    #[test]
    fn a_name_that_has_moved_takes_no_image_with_it() {
        let host = tempfile::tempdir().unwrap();
        let store = Store::open(&host.path().join("store"), crate::Ownership::SingleId).unwrap();
        let name: Reference = "moved:1".parse().unwrap();
        let ids = ["one", "two"].map(|comment| {
            let mut config = ImageConfig::scratch(&kiln_oci::Platform::host());
            config.author = Some(comment.to_owned());
            store.publish_image(&config.to_bytes(), std::slice::from_ref(&name)).unwrap()
        });
        let removed =
            store.database.write(Durability::Durable, |t| remove_names(t, ids[0], Some(&name), false));
        assert!(matches!(removed, Err(Error::NoImage(text)) if text == "moved:1"));
        assert_eq!(store.images().unwrap().len(), 2);
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_time("1970-01-01T00:00:01.000000002Z"), Some(1_000_000_002));
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(parse_time("0001-01-01T00:00:00Z"), None);
        assert_eq!(parse_time("yesterday"), None);
    }
}
