//! What a snapshot needs from the layers below: metadata of directories that its layer only implies, and copies of lower
//! files that its layer links to.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;

use crate::error::{Error, Result};
use crate::index::{Entry, LayerIndex, LinkTarget};
use crate::metadata::{Kind, Metadata};
use crate::path::{self, split};
use crate::unpack::{Placed, Unpack, Unpacker};
use crate::view::{Resolved, RootView};

/// Opens the content of a file of a lower layer: the number of the layer from the bottom, and the entry.
pub type OpenLower<'a> = &'a dyn Fn(usize, &Entry<'_>) -> Result<Box<dyn Read + Send + 'a>>;

/// Completes the snapshot of a layer that does not stand alone, after its walk. The snapshot then belongs to this chain
/// only.
///
/// Runs on the calling thread, whose umask it clears.
///
/// # Errors
/// When a linked file is in no lower layer, or a file cannot be read or written.
pub fn complete(
    index: &LayerIndex,
    lower: &RootView,
    unpack: &Unpack<'_>,
    open: OpenLower<'_>,
) -> Result<()> {
    let mut unpacker = Unpacker::new(unpack)?;
    let mut implied: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut touched: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut copied: HashMap<(usize, u32), Vec<u8>> = HashMap::new();
    for entry in index.tree() {
        let entry = entry?;
        let parent = if entry.kind() == Kind::Opaque { entry.path() } else { split(entry.path()).0 };
        let mut above = parent;
        while !above.is_empty() && !implied.contains(above) {
            if index.find(above)?.is_some_and(|found| found.kind() == Kind::Directory) {
                break;
            }
            implied.insert(above.to_vec());
            above = split(above).0;
        }
        if entry.link_target() == LinkTarget::Lower {
            touched.insert(parent.to_vec());
            copy(&entry, lower, &mut unpacker, &mut copied, open)?;
        }
    }
    for path in implied {
        let metadata = match lower.lookup(&path)?.filter(|node| node.is_directory()) {
            Some(node) => lower.metadata(&node)?,
            None => Metadata::implied_directory(),
        };
        touched.remove(&path);
        unpacker.entry(placed(path, metadata))?;
    }
    for path in touched {
        // A file that was copied into a directory changed its time.
        if let Some(entry) = index.find(&path)?.filter(|entry| entry.kind() == Kind::Directory) {
            unpacker.entry(placed(path, entry.metadata()))?;
        }
    }
    unpacker.finish()
}

fn copy(
    link: &Entry<'_>,
    lower: &RootView,
    unpacker: &mut Unpacker<'_>,
    copied: &mut HashMap<(usize, u32), Vec<u8>>,
    open: OpenLower<'_>,
) -> Result<()> {
    let missing = || Error::NoSource { path: path::shown(link.link()) };
    let node = lower.lookup(link.link())?.ok_or_else(missing)?;
    let Resolved { layer, entry } = lower.file(&node)?.ok_or_else(missing)?;
    if entry.kind() == Kind::Directory {
        return Err(missing());
    }
    let path = link.path().to_vec();
    if let Some(first) = copied.get(&(layer, entry.number())) {
        let metadata = Metadata { kind: Kind::HardLink, link: first.clone(), ..entry.metadata() };
        return unpacker.entry(placed(path, metadata));
    }
    copied.insert((layer, entry.number()), path.clone());
    unpacker.entry(placed(path, entry.metadata()))?;
    if entry.kind() == Kind::Regular && entry.size() > 0 {
        let mut reader = open(layer, &entry)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer).map_err(Error::Read)? {
                0 => break,
                length => unpacker.data(&buffer[..length])?,
            }
        }
    }
    Ok(())
}

/// An entry as it is unpacked.
pub(crate) fn placed(path: Vec<u8>, metadata: Metadata) -> Placed {
    Placed {
        path,
        kind: metadata.kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        modified: metadata.modified,
        link: metadata.link,
        device: metadata.device,
        xattrs: metadata.xattrs,
    }
}
