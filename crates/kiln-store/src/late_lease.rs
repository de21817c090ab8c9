//! A lease that begins when something is to be made. Looking up writes nothing until then: what was found is kept by a
//! shared lock, whose end collections wait for.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kiln_oci::{ChainId, DiffId, Digest, ImageId};
use kiln_sys::lock::{Lock, Sharing};
use rusqlite::Connection;

use crate::Store;
use crate::collect::COLLECT_LOCK;
use crate::database::{all, digest, now};
use crate::error::{Error, Result};
use crate::lease::{Lease, Leased};
use crate::records::{CachedResult, NOTED_AGAIN, find_record};

/// Held shared by those who look things up without a lease, and by a collection while it removes.
pub(crate) const LOOK_LOCK: &str = "look.lock";

/// That a layer was used is noted unless it was in the last hour.
const LAYER_NOTED_AGAIN: i64 = 3600 * 1_000_000_000;

/// A lease that may never begin: what only looks things up needs none.
pub struct LateLease<'a> {
    store: &'a Store,
    command: &'static str,
    begun: OnceLock<Lease>,
    looking: Mutex<Looking>,
}

/// What was found before the lease began.
#[derive(Default)]
struct Looking {
    /// `None` once the lease has begun.
    lock: Option<Lock>,
    images: Vec<ImageId>,
    /// Chains whose layers are all there.
    chains: HashSet<ChainId>,
    /// Their layers.
    layers: HashSet<DiffId>,
}

impl Store {
    /// A lease for a command that begins when it is asked for, or at once while a collection goes on or waits. Until then
    /// collections wait, so that whoever goes on for long begins it before.
    pub fn lease_late(&self, command: &'static str) -> Result<LateLease<'_>> {
        let late = LateLease { store: self, command, begun: OnceLock::new(), looking: Mutex::default() };
        // A collection that waits is not kept waiting by ever new ones.
        if let Some(_gate) = Lock::try_acquire(&self.root().join(COLLECT_LOCK), Sharing::Shared)? {
            late.looking().lock = Lock::try_acquire(&self.root().join(LOOK_LOCK), Sharing::Shared)?;
        }
        if late.looking().lock.is_none() {
            late.begin()?;
        }
        Ok(late)
    }
}

impl LateLease<'_> {
    fn looking(&self) -> MutexGuard<'_, Looking> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease, which begins now if it has not: with all that was found so far.
    pub fn begin(&self) -> Result<&Lease> {
        if let Some(lease) = self.begun.get() {
            return Ok(lease);
        }
        let mut looking = self.looking();
        if let Some(lease) = self.begun.get() {
            return Ok(lease);
        }
        let lease = self.store.lease_with(self.command, |t, lease| {
            for image in &looking.images {
                match lease.keep_in(t, Leased::Image(*image)) {
                    // It may go, not its layers.
                    Err(Error::NoImage(_)) => {}
                    kept => kept?,
                }
            }
            for layer in &looking.layers {
                lease.keep_in(t, Leased::Layer(*layer))?;
            }
            Ok(looking.chains.iter().copied().collect())
        })?;
        *looking = Looking::default();
        Ok(self.begun.get_or_init(|| lease))
    }

    /// As [`Store::cached`]: what it finds is kept.
    pub fn cached(&self, key: &Digest) -> Result<Option<CachedResult>> {
        if self.begun.get().is_none() {
            let looking = self.looking();
            if looking.lock.is_some() {
                match self.look_up(looking, key)? {
                    Looked::Found(found) => return Ok(found),
                    Looked::ToBeNoted => {}
                }
            }
        }
        self.store.cached(key, self.begin()?)
    }

    fn look_up(&self, mut looking: MutexGuard<'_, Looking>, key: &Digest) -> Result<Looked> {
        let connection = self.store.database.lock();
        let Some((known, last_used)) = find_record(&connection, key)? else { return Ok(Looked::Found(None)) };
        if now().saturating_sub(last_used) > NOTED_AGAIN {
            return Ok(Looked::ToBeNoted);
        }
        Ok(match self.find_chain(&connection, &mut looking, known.result)? {
            Found::Kept => Looked::Found(Some(known)),
            Found::Gone => Looked::Found(Some(CachedResult { present: false, ..known })),
            Found::ToBeNoted => Looked::ToBeNoted,
        })
    }

    /// Keeps an image with its layers, if they are all there.
    pub fn keep_image(&self, image: ImageId) -> Result<()> {
        if self.begun.get().is_none() {
            let mut looking = self.looking();
            if looking.lock.is_some() {
                let connection = self.store.database.lock();
                let sql = "SELECT chain_id FROM images WHERE id = ?1";
                let chain = all(&connection, sql, [image.0.as_bytes()], |row| digest(row, 0))?;
                let chain = chain.first().ok_or_else(|| Error::NoImage(image.to_string()))?;
                match self.find_chain(&connection, &mut looking, ChainId(*chain))? {
                    Found::Kept | Found::Gone => {
                        looking.images.push(image);
                        return Ok(());
                    }
                    Found::ToBeNoted => {}
                }
            }
        }
        self.store.keep_image(self.begin()?, image)
    }

    fn find_chain(&self, connection: &Connection, looking: &mut Looking, chain: ChainId) -> Result<Found> {
        if looking.chains.contains(&chain) {
            return Ok(Found::Kept);
        }
        let Some(layers) = self.store.chain_layers_in(connection, chain)? else { return Ok(Found::Gone) };
        let mut at = ChainId::SCRATCH;
        let now = now();
        let mut found = Vec::new();
        for layer in layers.iter() {
            at = at.with(*layer);
            if looking.chains.contains(&at) {
                continue;
            }
            let Some(last_used) = self.store.usable(connection, *layer)? else { return Ok(Found::Gone) };
            if now.saturating_sub(last_used) > LAYER_NOTED_AGAIN {
                return Ok(Found::ToBeNoted);
            }
            found.push((at, *layer));
        }
        looking.chains.insert(chain);
        for (chain, layer) in found {
            looking.chains.insert(chain);
            looking.layers.insert(layer);
        }
        Ok(Found::Kept)
    }
}

/// What came of a look-up.
enum Looked {
    Found(Option<CachedResult>),
    /// Its use is to be written down, which takes a lease.
    ToBeNoted,
}

/// What came of looking for a chain.
enum Found {
    /// All layers are there, and stay.
    Kept,
    /// A layer is not there.
    Gone,
    /// The use of a layer is to be written down.
    ToBeNoted,
}
