//! The files of a stack of layers, whatever form each layer is in.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_layer::index::Entry;
use kiln_layer::{ContentReader, LayerContents};
use kiln_oci::DiffId;

use crate::Store;
use crate::error::Error;
use crate::waiting::Working;

/// The files of a stack of layers, each layer opened when a file of it is asked for.
///
/// Where a layer is there as a compressed blob alone, its first file is found by decompressing what stands before it;
/// the second one has the layer's tar made, and kept. So one file of a large layer leaves nothing behind, and many do
/// not decompress the layer again and again.
#[derive(Debug)]
pub struct StackContents {
    layers: Vec<DiffId>,
    opened: Vec<Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    as_found: OnceLock<LayerContents>,
    flat: OnceLock<LayerContents>,
    /// Whether a file was read from the start of the blob.
    is_read: AtomicBool,
}

impl StackContents {
    /// The files of these layers, the lowest first. Nothing is looked at yet.
    pub fn new(layers: Vec<DiffId>) -> Self {
        let opened = layers.iter().map(|_| Opened::default()).collect();
        Self { layers, opened }
    }

    /// Opens a regular file of the layer with this number from the bottom. `lease` is asked for when something is kept.
    ///
    /// # Errors
    /// When the layer has no file's content for this entry, or cannot be read.
    pub fn open<'l, E: From<Error>>(
        &self,
        store: &Store,
        lease: impl FnOnce() -> std::result::Result<Working<'l>, E>,
        (layer, entry): (usize, &Entry<'_>),
    ) -> std::result::Result<ContentReader<'_>, E> {
        let opened = &self.opened[layer];
        let mut contents = match opened.flat.get() {
            Some(contents) => contents,
            None => once(&opened.as_found, || store.layer_contents(&self.layers, layer))?,
        };
        let is_again =
            contents.is_far(entry).map_err(Error::from)? && opened.is_read.swap(true, Ordering::Relaxed);
        if is_again {
            let flat = |lease| Ok::<_, E>(store.flat_contents(lease, &self.layers, layer)?);
            contents = once(&opened.flat, || flat(lease()?))?;
        }
        Ok(contents.open(entry).map_err(Error::from)?)
    }

    /// The same for those who unpack and copy layers, and know nothing of a store.
    pub(crate) fn open_for_layers<'a>(
        &'a self,
        store: &Store,
        lease: Working<'a>,
        file: (usize, &Entry<'_>),
    ) -> kiln_layer::Result<ContentReader<'a>> {
        let opened = self.open::<Error>(store, || Ok(lease), file);
        let reader = opened.map_err(|error| kiln_layer::Error::Read(io::Error::other(error)))?;
        Ok(Box::new(lease.watched(reader)))
    }
}

/// What the cell has, or gets now. Two threads may both make it; one is kept.
fn once<T, E>(
    cell: &OnceLock<T>,
    make: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<&T, E> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}
