//! `import`: a root file system's tar becomes an image of one layer.

use std::fs::File;
use std::io;

use kiln_oci::{ChainId, History, ImageConfig, ImageId, Reference};

use crate::Store;
use crate::archive_in::Unpacking;
use crate::error::{Error, Result};
use crate::lease::Lease;

impl Store {
    /// Imports a tar, in any compression, as the one layer of an image. `config` has the platform and what
    /// `--change` made of it; layers, history and time are filled in here. After a failure the lease keeps nothing,
    /// and the layer does not stay.
    pub fn import(
        &self,
        lease: &Lease,
        input: File,
        config: ImageConfig,
        history: History,
        name: Option<&Reference>,
    ) -> Result<ImageId> {
        self.undo_failed(lease, self.import_layer(lease, input, config, history, name))
    }

    fn import_layer(
        &self,
        lease: &Lease,
        mut input: File,
        mut config: ImageConfig,
        history: History,
        name: Option<&Reference>,
    ) -> Result<ImageId> {
        let path = lease.fresh_path("blob");
        let mut copy = fs_err::File::create_new(&path).map_err(Error::file("make", &path))?;
        io::copy(&mut input, &mut copy).map_err(Error::file("copy into", &path))?;
        drop(copy);
        let file = fs_err::File::open(&path).map_err(Error::file("open", &path))?;
        let layer = self.walk_layer(lease, &[], file, &path, Unpacking::Now)?;
        let diff_id = self.publish_layer(lease, ChainId::SCRATCH, layer)?;
        config.rootfs.diff_ids = vec![diff_id];
        config.created.clone_from(&history.created);
        config.history = vec![history];
        let bytes = config.to_bytes();
        let names: Vec<Reference> = name.cloned().into_iter().collect();
        self.publish_shown(lease, &bytes, None, &names)
    }
}
