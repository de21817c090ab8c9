//! What the same COPY made of other sources before: files that are still the same are taken from that layer's tar, in one
//! piece of the disk, instead of being opened one by one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kiln_layer::index::Finder;
use kiln_layer::{Kind, LayerIndex};
use kiln_oci::Digest;
use kiln_store::Store;

use crate::error::Result;

/// How many records are looked through for a layer.
const RECORDS: u32 = 4;

/// A layer in the store with its uncompressed tar.
#[derive(Debug)]
pub(crate) struct Earlier {
    index: Arc<LayerIndex>,
    /// Open, so that no collection takes it away.
    tar: File,
}

impl Earlier {
    /// The newest layer that this operation, which is called `name`, made and that still has a tar.
    pub(crate) fn of(store: &Store, operation: &Digest, name: &str) -> Result<Option<Self>> {
        for record in store.nearest_records(operation, name, RECORDS)? {
            let Some(layer) = record.layer.filter(|_| record.operation == *operation) else { continue };
            let Ok(index) = store.index(layer) else { continue };
            for blob in store.layer_blobs(layer)?.iter().filter(|blob| blob.compression == "none") {
                if let Ok(tar) = fs_err::File::open(store.blob_path(&blob.digest)) {
                    return Ok(Some(Self { index, tar: tar.into_file() }));
                }
            }
        }
        Ok(None)
    }

    #[cfg(test)]
    pub(crate) fn new(index: Arc<LayerIndex>, tar: File) -> Self {
        Self { index, tar }
    }

    /// Finds the files of a new layer in this one.
    pub(crate) fn files(&self) -> EarlierFiles<'_> {
        EarlierFiles { tar: &self.tar, finder: self.index.finder() }
    }
}

/// Looks one path after the other up.
pub(crate) struct EarlierFiles<'a> {
    tar: &'a File,
    finder: Finder<'a>,
}

impl<'a> EarlierFiles<'a> {
    /// The bytes of the file at `path`, if it has this content here, too. That they are what the index says is for whoever
    /// reads them to find out; those that cannot be read are missing at the end.
    pub(crate) fn open(&mut self, path: &[u8], size: u64, content: &Digest) -> Option<Piece<'a>> {
        // What is wrong with this index is of no interest here.
        let entry = self.finder.find(path).ok()??;
        let same = entry.kind() == Kind::Regular
            && !entry.is_sparse()
            && entry.size() == size
            && entry.content().as_ref() == Some(content);
        same.then(|| Piece { file: self.tar, offset: entry.content_offset(), left: size })
    }
}

/// A part of a file.
pub(crate) struct Piece<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let length = match self.file.read_at(&mut bytes[..most], self.offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            result => result.unwrap_or(0),
        };
        self.offset += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}
