//! `kiln.db`: opening it, and the two kinds of write transaction.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kiln_layer::LayerIndex;
use kiln_oci::Digest;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior};

use crate::error::{Error, Result};
use crate::layers::snapshot_is_source;
use crate::refusal::{failed, refused};

/// "kiln".
const APPLICATION_ID: i64 = 0x6b69_6c6e;
/// The version of the schema that this kiln writes, and the newest that it reads.
pub const SCHEMA_VERSION: u32 = 3;
const SCHEMA: &str = include_str!("schema.sql");
/// How long a writer waits for another process's transaction, which takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether what a transaction says must survive a power cut when it returns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Garbage at worst is lost.
    Relaxed,
    /// A name is published.
    Durable,
}

impl Durability {
    /// What a transaction is called in a trace.
    fn span(self) -> &'static str {
        match self {
            Self::Relaxed => "transaction",
            Self::Durable => "durable transaction",
        }
    }
}

/// Bytes of a page of a database that is made. There are some thirty tables and indexes, most of which hold little, and each has
/// pages of its own; with half of it, a store of 1,000 images is read noticeably slower.
const PAGE: u32 = 2048;

/// Pages in the log before they are moved into the database. Every command that comes alone reads the log, which takes
/// some microseconds for each page, and moving some milliseconds.
const LOG_PAGES: i64 = 64;

/// The byte of `kiln.db-shm` that every open connection holds a shared lock on (`UNIX_SHM_DMS` of SQLite's os_unix.c).
const OPEN_LOCK: u64 = 128;

/// How many databases this process has open.
static OPEN: Mutex<usize> = Mutex::new(0);

/// The one connection of this process.
pub(crate) struct Database {
    connection: Mutex<Connection>,
    path: PathBuf,
    /// What the connection is set up for: nothing before its first write transaction, so that who only reads need not.
    written: Mutex<Option<Durability>>,
    /// Dropped after the connection.
    _closing: Closing,
}

/// What comes after the connection is closed.
struct Closing {
    /// The index of the log.
    index: PathBuf,
}

/// Whether what is given up now can be had again: on a full disk the index keeps its blocks.
fn has_room(path: &Path) -> bool {
    const ROOM: u64 = 64 << 20;
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) > ROOM)
}

impl Drop for Closing {
    /// Empties the index of the log if nobody has the database open any more, as SQLite would when it is opened next. Now
    /// its blocks are not on the disk yet and cost nothing; to free them later takes milliseconds on some file systems.
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *open -= 1;
        // Closing a file takes this process's record locks on it away, so no other connection may be open in it.
        if *open == 0
            && has_room(&self.index)
            && let Ok(index) = fs_err::OpenOptions::new().write(true).open(&self.index)
            && matches!(kiln_sys::lock::try_lock_byte(index.file(), OPEN_LOCK), Ok(true))
        {
            let _ = index.set_len(3);
        }
    }
}

impl Database {
    /// Opens or makes the database at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut open = OPEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let connection = Self::connect(path)?;
        *open += 1;
        drop(open);
        let closing = Closing { index: path.with_extension("db-shm") };
        let database = Self {
            connection: Mutex::new(connection),
            path: path.to_path_buf(),
            written: Mutex::default(),
            _closing: closing,
        };
        database.prepare()?;
        Ok(database)
    }

    fn connect(path: &Path) -> Result<Connection> {
        let connection = Connection::open(path).map_err(refused(path, "open kiln.db"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(refused(path, "set the busy timeout"))?;
        connection.set_prepared_statement_cache_capacity(128);
        // Every command is the last to close: a checkpoint there, and a new log in the next one, would cost each four
        // fsyncs. The log stays, and is short enough to be read again at once.
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(refused(path, "keep the log"))?;
        // Else a query whose plan might depend on a bound value is planned again each time that a value is bound.
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
            .map_err(refused(path, "keep plans"))?;
        for (config, on) in
            [(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true), (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)]
        {
            connection.set_db_config(config, on).map_err(refused(path, "set up the connection"))?;
        }
        Ok(connection)
    }

    fn prepare(&self) -> Result<()> {
        let connection = self.lock();
        let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let version = pragma("user_version").map_err(failed(&connection, "read the schema version"))?;
        let application = pragma("application_id").map_err(failed(&connection, "read the application ID"))?;
        if application != 0 && application != APPLICATION_ID || application == 0 && version != 0 {
            return Err(Error::NotKiln { path: self.path.clone(), found: application });
        }
        if version > i64::from(SCHEMA_VERSION) {
            let path = self.path.parent().unwrap_or(&self.path).to_path_buf();
            return Err(Error::NewerStore { path, found: version, known: SCHEMA_VERSION.into() });
        }
        if version == i64::from(SCHEMA_VERSION) {
            return Ok(());
        }
        drop(connection);
        self.create_or_upgrade()
    }

    /// Makes the schema, or brings an older one up to date. Another process may be doing the same: the version is read
    /// again inside.
    fn create_or_upgrade(&self) -> Result<()> {
        let mut connection = self.lock();
        // Without effect on a database that is there.
        let page = connection.pragma_update(None, "page_size", PAGE);
        page.map_err(failed(&connection, "set the size of pages"))?;
        switch_to_wal(&connection).map_err(failed(&connection, "switch to WAL"))?;
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(refused(&self.path, "begin"))?;
        let version: i64 = transaction
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(refused(&self.path, "read the schema version"))?;
        match version {
            0 => {
                // What it had may be in a log that is gone.
                crate::store::refuse_lost_database(&self.path, "has no tables")?;
                transaction.execute_batch(&statements()).map_err(refused(&self.path, "make the schema"))?;
            }
            1 => {
                upgrade_from_1(&transaction, &self.path.with_file_name("index"))?;
                upgrade_from_2(&transaction)?;
            }
            2 => upgrade_from_2(&transaction)?,
            _ => return Ok(()),
        }
        transaction
            .execute_batch(&format!(
                "PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};"
            ))
            .map_err(refused(&self.path, "write the schema version"))?;
        transaction.commit().map_err(refused(&self.path, "commit the schema"))?;
        if version > 0 {
            // What the log grew by is room that a collection may need. Who reads meanwhile keeps it, which is no harm.
            let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        }
        Ok(())
    }

    /// The connection, for reading.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs `body` in one `BEGIN IMMEDIATE` transaction, which is rolled back if it fails.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        body: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let _span = kiln_trace::span(durability.span());
        let mut connection = self.lock();
        self.set_up(&connection, durability)?;
        self.transact(&mut connection, body)
    }

    /// Makes the next commit as durable as it must be. Checkpoints, which come with commits, always sync.
    fn set_up(&self, connection: &Connection, durability: Durability) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if written.is_none() {
            connection
                .pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES, |_| Ok(()))
                .map_err(failed(connection, "limit the log"))?;
        }
        if *written != Some(durability) {
            let synchronous = match durability {
                Durability::Relaxed => "PRAGMA synchronous=NORMAL",
                Durability::Durable => "PRAGMA synchronous=FULL",
            };
            connection
                .execute_batch(synchronous)
                .map_err(failed(connection, "set how durable commits are"))?;
            *written = Some(durability);
        }
        Ok(())
    }

    fn transact<T>(
        &self,
        connection: &mut Connection,
        body: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(refused(&self.path, "begin"))?;
        let value = body(&transaction)?;
        transaction.commit().map_err(refused(&self.path, "commit"))?;
        Ok(value)
    }

    /// One row or none.
    pub(crate) fn one<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql).map_err(failed(&connection, "prepare a query"))?;
        statement.query_row(parameters, read).optional().map_err(failed(&connection, "read a row"))
    }

    /// All rows.
    pub(crate) fn all<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let connection = self.lock();
        all(&connection, sql, parameters, read)
    }
}

/// The schema without its comments, which SQLite would keep, and read whenever the database is opened.
fn statements() -> String {
    SCHEMA
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default().trim_end().to_owned() + "\n")
        .collect()
}

/// Waits for other processes that do the same: SQLite itself does not here, lest two of them wait for each other.
fn switch_to_wal(connection: &Connection) -> rusqlite::Result<()> {
    let start = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && start.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

/// Version 1 did not say of which layers the snapshot is a source; their indexes do.
fn upgrade_from_1(t: &Connection, indexes: &Path) -> Result<()> {
    t.execute_batch(
        "ALTER TABLE layers ADD COLUMN snapshot_is_source INTEGER NOT NULL DEFAULT 0; \
         UPDATE layers SET snapshot_is_source = writer <> 0;",
    )
    .map_err(failed(t, "upgrade the schema"))?;
    for layer in all(t, "SELECT diff_id FROM layers WHERE writer = 0", [], |row| digest(row, 0))? {
        let path = indexes.join(layer.hex());
        // One that is gone or damaged is no source. What cannot be read today may be tomorrow.
        let index = match fs_err::File::open(&path) {
            Ok(file) => LayerIndex::open(file.file(), &path).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::file("open", &path)(error)),
        };
        if index.is_some_and(|index| snapshot_is_source(&index)) {
            execute(t, "UPDATE layers SET snapshot_is_source = 1 WHERE diff_id = ?1", [layer.as_bytes()])?;
        }
    }
    Ok(())
}

/// Version 2 did not say under which manifest a name's image came.
fn upgrade_from_2(t: &Connection) -> Result<()> {
    // Names that read as IDs are none any more.
    t.execute_batch(
        "ALTER TABLE tags ADD COLUMN manifest BLOB; \
         DELETE FROM tags WHERE name LIKE 'docker.io/library/sha256:%';",
    )
    .map_err(failed(t, "upgrade the schema"))
}

/// All rows, on a connection or in a transaction.
pub(crate) fn all<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare_cached(sql).map_err(failed(connection, "prepare a query"))?;
    let rows = statement.query_map(parameters, read).map_err(failed(connection, "query"))?;
    rows.collect::<rusqlite::Result<_>>().map_err(failed(connection, "read rows"))
}

/// One statement in a transaction; returns how many rows changed.
pub(crate) fn execute(
    transaction: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<usize> {
    let mut statement =
        transaction.prepare_cached(sql).map_err(failed(transaction, "prepare a statement"))?;
    statement.execute(parameters).map_err(failed(transaction, "write a row"))
}

/// Reads a digest column.
pub(crate) fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get::<_, [u8; 32]>(column).map(Digest::from_bytes)
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_make_one_store_at_once() {
        for _ in 0..40 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("kiln.db");
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| Database::open(&path).unwrap());
                }
            });
        }
    }

    #[test]
    fn a_newer_store_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        drop(Database::open(&path).unwrap());
        Connection::open(&path).unwrap().execute_batch("PRAGMA user_version=999").unwrap();
        let error = Database::open(&path).err().unwrap();
        assert!(matches!(error, Error::NewerStore { found: 999, known: 3, .. }), "{error}");
    }

    #[test]
    fn another_programs_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("PRAGMA application_id=7; CREATE TABLE t (x)")
            .unwrap();
        assert!(matches!(Database::open(&path), Err(Error::NotKiln { found: 7, .. })));
    }

    #[test]
    fn the_log_outlives_its_connection_and_stays_short() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let log = || directory.path().join("kiln.db-wal").metadata().unwrap().len();
        for number in 0..400 {
            let database = Database::open(&path).unwrap();
            let lease = format!("lease {number}");
            database
                .write(Durability::Relaxed, |t| {
                    execute(t, "INSERT INTO leases VALUES (?1, 'b', 0)", [&lease]).map(drop)
                })
                .unwrap();
            drop(database);
            assert!(log() > 0 && log() < 2 << 20, "{}", log());
        }
        let database = Database::open(&path).unwrap();
        let count = database.one("SELECT count(*) FROM leases", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count, Some(400));
    }

    #[test]
    fn a_failed_transaction_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("kiln.db")).unwrap();
        let failed: Result<()> = database.write(Durability::Relaxed, |t| {
            execute(t, "INSERT INTO leases VALUES ('a', 'b', 0)", [])?;
            Err(Error::NoImage("x".into()))
        });
        assert!(failed.is_err());
        let count = database.one("SELECT count(*) FROM leases", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count, Some(0));
    }
}
