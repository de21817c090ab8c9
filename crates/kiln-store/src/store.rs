//! The store itself: where it is, opening it, syncing it.

use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln_layer::LayerIndex;
use kiln_oci::{ChainId, DiffId};
use rusqlite::Connection;

use crate::database::{Database, execute};
use crate::error::{Error, Result};

/// Who owns the files of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// Root, with the layers' owners as they are.
    Root,
    /// A user namespace with subordinate IDs: the layers' owners, shifted.
    SubIds,
    /// One user: every file is the caller's, the layers' owners are in the index alone.
    SingleId,
}

impl Ownership {
    /// As it is written in the database and in keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::SubIds => "sub-ids",
            Self::SingleId => "single-id",
        }
    }
}

/// An open store. All methods may be called from several threads; other processes may use the same store.
pub struct Store {
    root: PathBuf,
    ownership: Ownership,
    pub(crate) boot: String,
    pub(crate) database: Arc<Database>,
    pub(crate) indexes: Mutex<HashMap<DiffId, Arc<LayerIndex>>>,
    pub(crate) chains: Mutex<HashMap<ChainId, Arc<[DiffId]>>>,
}

impl Store {
    /// Opens the store at `root`, making it (mode 0700) if it is not there. Nothing is cleaned up.
    pub fn open(root: &Path, ownership: Ownership) -> Result<Self> {
        let database_path = root.join("kiln.db");
        if !database_path.exists() {
            create_directories(root)?;
        }
        let boot = kiln_sys::publish::boot_id()?;
        let database = Arc::new(Database::open(&database_path)?);
        Ok(Self { root: root.to_path_buf(), ownership, boot, database, indexes: Mutex::default(), chains: Mutex::default() })
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Who owns the files of snapshots that this process makes and uses.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Makes everything that was written before durable: one `syncfs`.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(kiln_sys::publish::sync_file_system(&self.root)?)
    }

    /// After [`Store::sync`]: what was written in this boot is durable now.
    pub(crate) fn clear_marks(&self, t: &Connection) -> Result<()> {
        for table in ["blobs", "layers", "snapshots"] {
            execute(t, &format!("UPDATE {table} SET boot = NULL WHERE boot = ?1"), [&self.boot])?;
        }
        Ok(())
    }
}

fn create_directories(root: &Path) -> Result<()> {
    if let Some(file_system) = kiln_sys::publish::network_file_system(root) {
        return Err(Error::NetworkFileSystem { path: root.to_path_buf(), file_system });
    }
    let make = |path: &Path| {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(Error::file("make the directory", path))
    };
    make(root)?;
    // A directory that was there already may be open to others: setuid files of layers must not be
    // reachable (CVE-2021-41091).
    let mode = fs_err::metadata(root).map_err(Error::file("stat", root))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs_err::set_permissions(root, std::fs::Permissions::from_mode(0o700))
            .map_err(Error::file("set the mode of", root))?;
    }
    for name in ["blobs/sha256", "overlay2/l", "index", "cache", "tmp", "trash", "context", "claims"] {
        make(&root.join(name))?;
    }
    Ok(())
}

/// `bytes` random bytes in hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    use std::fmt::Write as _;
    let random = random(bytes)?;
    let mut text = String::with_capacity(bytes * 2);
    for byte in random {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Random bytes from the kernel.
pub(crate) fn random(bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        let n = rustix::rand::getrandom(&mut buffer[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Error::file("read", "/dev/urandom")(errno.into()))?;
        filled += n;
    }
    Ok(buffer)
}
