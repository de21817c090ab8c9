//! The store itself: where it is, opening it, syncing it.

use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use kiln_layer::LayerIndex;
use kiln_oci::{ChainId, DiffId};
use rusqlite::Connection;

use crate::database::{Database, Durability, all, execute};
use crate::error::{Error, Result};
use crate::mount_points;
use crate::refusal::failed;
use crate::waiting::Tell;

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
    /// As it is written in keys, and in the database.
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
    /// Whose the files are, as the database says it.
    owners: String,
    pub(crate) boot: String,
    pub(crate) database: Arc<Database>,
    pub(crate) indexes: Mutex<HashMap<DiffId, Arc<LayerIndex>>>,
    pub(crate) chains: Mutex<HashMap<ChainId, Arc<[DiffId]>>>,
    /// Why no snapshots can be kept, if so.
    pub(crate) snapshots_refused: OnceLock<Option<String>>,
    pub(crate) mounts_tars: OnceLock<bool>,
    pub(crate) tell_wait: OnceLock<Tell>,
}

impl Store {
    /// Opens the store at `root`, making it (mode 0700) if it is not there. Nothing is cleaned up.
    pub fn open(root: &Path, ownership: Ownership) -> Result<Self> {
        let _span = kiln_trace::span("open store");
        let database_path = root.join("kiln.db");
        let found = fs_err::metadata(&database_path).map(|found| found.len());
        let is_new = found.is_err();
        if !found.is_ok_and(|length| length > 0) {
            refuse_lost_database(&database_path, if is_new { "is gone" } else { "is empty" })?;
        }
        if is_new {
            create_directories(root)?;
        } else {
            let found = close_to_others(root)?;
            // A copy of a store may lack what was empty. Where links do not count directories, they are always made.
            if found.nlink() < 2 + DIRECTORIES.len() as u64 {
                // A store that can only be read lacks nothing that is asked for.
                let _ = make_directories(root);
            }
        }
        let boot = kiln_sys::publish::boot_id()?;
        let database = Arc::new(open_database(root, &database_path)?);
        let store = Self {
            root: root.to_path_buf(),
            ownership,
            owners: ownership.name().to_owned(),
            boot,
            database,
            indexes: Mutex::default(),
            chains: Mutex::default(),
            snapshots_refused: OnceLock::new(),
            mounts_tars: OnceLock::new(),
            tell_wait: OnceLock::new(),
        };
        if is_new {
            crate::reserve::make(root);
        }
        Ok(store)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Who owns the files of snapshots that this process makes and uses.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// As the database says whose files these are: the ownership, and with sub-identifiers which ranges, if they are not
    /// the first that were used here.
    pub(crate) fn owners(&self) -> &str {
        &self.owners
    }

    pub(crate) fn set_owners(&mut self, owners: String) {
        self.owners = owners;
    }

    /// Does what gives room in the end. Where it finds none, it may take what is set aside.
    pub(crate) fn with_reserve<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if error.is_full_disk() => {
                crate::reserve::release(&self.root)?;
                let done = work();
                crate::reserve::make(&self.root);
                done
            }
            done => done,
        }
    }

    /// Makes everything that was written before durable: one `syncfs`.
    pub(crate) fn sync(&self) -> Result<()> {
        let _span = kiln_trace::span("sync file system");
        let root = fs_err::File::open(&self.root).map_err(Error::file("open", &self.root))?;
        kiln_sys::publish::sync_file_system(&root).map_err(Error::file("sync the file system of", &self.root))
    }

    /// What is marked as written in this boot and not synced. Taken before [`Store::sync`], so that what another
    /// process writes meanwhile keeps its mark.
    pub(crate) fn marks(&self) -> Result<Marks> {
        let connection = self.database.lock();
        // One transaction: a layer that is published meanwhile is in none of the tables, or in all.
        let t = connection.unchecked_transaction().map_err(failed(&connection, "begin"))?;
        let mut marks = Marks::default();
        for (table, column) in MARKED {
            let sql = format!("SELECT {column}, created FROM {table} WHERE boot = ?1");
            let rows = all(&t, &sql, [&self.boot], |row| Ok((row.get(0)?, row.get(1)?)))?;
            marks.0.extend(rows.into_iter().map(|(key, created)| Mark { table, column, key, created }));
        }
        Ok(marks)
    }

    /// After a sync that failed: what was marked may be lost, although the next sync would not say so again. It is not
    /// trusted any more.
    pub(crate) fn distrust(&self, marks: &Marks) -> Result<()> {
        self.database.write(Durability::Relaxed, |t| set_boot(t, marks, &self.boot, Some("not synced")))
    }
}

/// Opens the database. On a full disk that may take some of what is set aside: for an upgrade, and for the index of the log,
/// which may be empty.
fn open_database(root: &Path, path: &Path) -> Result<Database> {
    match Database::open(path) {
        Err(error) if error.is_full_disk() => {
            crate::reserve::release(root)?;
            let opened = Database::open(path);
            // What is left of it.
            crate::reserve::make(root);
            opened
        }
        opened => opened,
    }
}

/// Tables whose rows stand for files, with their keys.
const MARKED: [(&str, &str); 3] = [("blobs", "digest"), ("layers", "diff_id"), ("snapshots", "id")];

/// A marked row. The time tells it from another one that took its place.
struct Mark {
    table: &'static str,
    column: &'static str,
    key: rusqlite::types::Value,
    created: i64,
}

/// Marked rows.
#[derive(Default)]
pub(crate) struct Marks(Vec<Mark>);

impl Marks {
    /// The mark of the row of `table` whose `column` is `key` and that was made at `created`.
    pub(crate) fn add(
        &mut self,
        table: &'static str,
        column: &'static str,
        key: rusqlite::types::Value,
        created: i64,
    ) {
        self.0.push(Mark { table, column, key, created });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// After a sync: what was marked before it is durable now.
pub(crate) fn clear_marks(t: &Connection, marks: &Marks, boot: &str) -> Result<()> {
    set_boot(t, marks, boot, None)
}

fn set_boot(t: &Connection, marks: &Marks, boot: &str, to: Option<&str>) -> Result<()> {
    for Mark { table, column, key, created } in &marks.0 {
        let sql = format!("UPDATE {table} SET boot = ?4 WHERE {column} = ?1 AND created = ?2 AND boot = ?3");
        execute(t, &sql, rusqlite::params![key, created, boot, to])?;
    }
    Ok(())
}

/// What the store's root holds, made when the store is.
const DIRECTORIES: [&str; 11] = [
    "blobs/sha256",
    "overlay2/l",
    "index",
    "cache",
    "tmp",
    "trash",
    "context",
    "claims",
    "mounts",
    "downloads",
    mount_points::NAME,
];

/// Refuses to make a database where there are layers: the next collection would remove all that it does not know.
pub(crate) fn refuse_lost_database(path: &Path, found: &'static str) -> Result<()> {
    let mut layers = fs_err::read_dir(path.with_file_name("index")).into_iter().flatten();
    match layers.next() {
        None => Ok(()),
        Some(_) => Err(Error::LostDatabase { path: path.to_path_buf(), found, source: None }),
    }
}

/// Refuses a directory that something else is in: it would be closed to everybody else.
fn refuse_foreign(root: &Path) -> Result<()> {
    let entries = match fs_err::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::file("list", root))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::file("list", root))?.file_name();
        let text = name.to_string_lossy();
        // What a kill may have left of a store that was being made, and what file systems have of their own.
        let is_ours = DIRECTORIES.iter().any(|path| path.split('/').next() == Some(&*text))
            || text.starts_with("kiln.db")
            || matches!(
                &*text,
                crate::sub_ids::NAME | "reserve" | "oci-layout" | "index.json" | "lost+found"
            )
            || text.ends_with(".lock")
            || kiln_sys::publish::is_temporary(&name);
        if !is_ours {
            return Err(Error::NotStore { path: root.to_path_buf(), found: text.into_owned() });
        }
    }
    Ok(())
}

fn create_directories(root: &Path) -> Result<()> {
    refuse_foreign(root)?;
    if let Some(file_system) = network_file_system(root) {
        return Err(Error::NetworkFileSystem { path: root.to_path_buf(), file_system });
    }
    make_directory(root)?;
    close_to_others(root)?;
    make_directories(root)?;
    let tmp = root.join("tmp");
    let opened = fs_err::File::open(&tmp).map_err(Error::file("open", &tmp))?;
    // Only for speed: other file systems do without.
    let _ = kiln_sys::publish::spread_directories(&opened);
    Ok(())
}

/// Makes the directories that are missing.
pub(crate) fn make_directories(root: &Path) -> Result<()> {
    DIRECTORIES.iter().try_for_each(|name| make_directory(&root.join(name)))
}

fn make_directory(path: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(Error::file("make the directory", path))
}

/// A directory that was there already, or was changed since, may be open to others: setuid files of layers must not be
/// reachable (CVE-2021-41091). Its owner cannot be kept out, and would say what is in root's images.
fn close_to_others(root: &Path) -> Result<std::fs::Metadata> {
    let found = fs_err::metadata(root).map_err(Error::file("stat", root))?;
    let (owner, own) = (found.uid(), rustix::process::geteuid().as_raw());
    if owner != own {
        return Err(Error::ForeignStore { path: root.to_path_buf(), owner, own });
    }
    let mode = found.permissions().mode();
    if mode & 0o077 != 0 {
        fs_err::set_permissions(root, std::fs::Permissions::from_mode(0o700))
            .map_err(Error::file("set the mode of", root))?;
    }
    Ok(found)
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

/// The name of the network file system that `path` (or its nearest parent that exists) is on, if it is one.
fn network_file_system(path: &Path) -> Option<&'static str> {
    let stat = path.ancestors().find_map(|path| rustix::fs::statfs(path).ok())?;
    // linux/magic.h
    match stat.f_type as u64 & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9P"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f => Some("AFS"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As copies of stores lose them that keep files alone.
    #[test]
    fn directories_that_are_lost_are_made_again() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("store");
        drop(Store::open(&root, Ownership::SingleId).unwrap());
        drop(
            Store::open(&root, Ownership::SingleId)
                .unwrap()
                .mount_points(mount_points::GivenFiles::Hosts)
                .unwrap(),
        );
        for name in DIRECTORIES {
            let lost = root.join(name.split('/').next().unwrap());
            fs_err::remove_dir_all(&lost).unwrap();
            let store = Store::open(&root, Ownership::SingleId).unwrap();
            assert!(root.join(name).is_dir(), "{name}");
            drop(store.lease("test").unwrap());
            // While it is open.
            fs_err::remove_dir_all(root.join(name)).unwrap();
            store.collect(&crate::Collection::default()).unwrap();
            assert!(root.join(name).is_dir(), "{name}");
        }
    }

    #[test]
    fn a_directory_of_another_user_is_no_store() {
        if !rustix::process::geteuid().is_root() {
            crate::skipped::skipped("needs root");
            return;
        }
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("store");
        let own = |owner| std::os::unix::fs::chown(&root, Some(owner), None).unwrap();
        let refused = || {
            let opened = Store::open(&root, Ownership::Root).map(drop);
            assert!(matches!(&opened, Err(Error::ForeignStore { owner: 7, own: 0, .. })), "{opened:?}");
        };
        fs_err::create_dir(&root).unwrap();
        own(7);
        refused();
        assert_eq!(fs_err::read_dir(&root).unwrap().count(), 0);
        own(0);
        drop(Store::open(&root, Ownership::Root).unwrap());
        own(7);
        refused();
    }

    /// A slip of the pen as root would close `/` or `/var/lib` to everybody else.
    #[test]
    fn a_directory_of_others_is_refused_and_left_as_it_is() {
        let host = tempfile::tempdir().unwrap();
        let mode = || fs_err::metadata(host.path()).unwrap().permissions().mode() & 0o777;
        fs_err::set_permissions(host.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        fs_err::create_dir(host.path().join("lost+found")).unwrap();
        fs_err::write(host.path().join("etc"), "").unwrap();
        let opened = Store::open(host.path(), Ownership::SingleId).map(drop);
        assert!(matches!(&opened, Err(Error::NotStore { found, .. }) if found == "etc"), "{opened:?}");
        assert_eq!((mode(), fs_err::read_dir(host.path()).unwrap().count()), (0o755, 2));
        fs_err::remove_file(host.path().join("etc")).unwrap();
        drop(Store::open(host.path(), Ownership::SingleId).unwrap());
        assert_eq!(mode(), 0o700);
        // A kill came before the database.
        fs_err::remove_file(host.path().join("kiln.db")).unwrap();
        Store::open(host.path(), Ownership::SingleId).unwrap();
    }
}
