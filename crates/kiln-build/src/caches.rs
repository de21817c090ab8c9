//! The cache mounts of a RUN: which directory each one is, what a new one begins with, and waiting for those that others hold.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_graph::Context;
use kiln_oci::ChainId;
use kiln_runtime::{BindSource, Isolation, MountKind};
use kiln_store::{CacheMountIdentity, CacheMountSharing, CacheMountUse, Ownership};

use crate::engine::{Engine, Step};
use crate::error::{Error, Result};
use crate::operation::{
    Access, CacheMount, CacheOwner, CacheSharing, MountSource, RunMountKind, RunOperation,
};
use crate::wait::{Awaited, Wait};

/// The caches that a step holds, until this is dropped.
pub(crate) struct Caches<'a> {
    context: &'a Context<'a>,
    held: Vec<CacheMountUse>,
}

impl<'a> Caches<'a> {
    /// None yet, for the step that `context` is of.
    pub(crate) fn new(context: &'a Context<'a>) -> Self {
        Self { context, held: Vec::new() }
    }

    /// The step that they are for.
    pub(crate) fn step(&self) -> &'a Context<'a> {
        self.context
    }

    /// Takes all caches of the step, in an order that is the same in every step and process, so that no two wait for each
    /// other.
    ///
    /// # Errors
    /// [`Error::Canceled`] if the build is canceled while one is waited for.
    pub(crate) fn take(
        &mut self,
        engine: &Engine<'_>,
        operation: &RunOperation,
        inputs: &[Step],
        isolation: Isolation,
    ) -> Result<()> {
        let mut wanted = Vec::new();
        for mount in &operation.mounts {
            if let RunMountKind::Cache(mount) = &mount.kind {
                wanted.push(WantedCache::new(engine, mount, inputs)?);
            }
        }
        wanted.sort_by_key(WantedCache::order);
        let same = |pair: &[WantedCache<'_>]| pair[0].identity() == pair[1].identity();
        if isolation == Isolation::Chroot && wanted.windows(2).any(same) {
            let what = "one cache at two places of a step, where nothing can be mounted,";
            return Err(Error::Unsupported(what.to_owned()));
        }
        wanted.iter().try_for_each(|wanted| self.filled(engine, wanted, isolation).map(drop))
    }

    /// How a cache is mounted.
    pub(crate) fn mount(
        &mut self,
        engine: &Engine<'_>,
        mount: &CacheMount,
        inputs: &[Step],
        isolation: Isolation,
    ) -> Result<MountKind> {
        let wanted = WantedCache::new(engine, mount, inputs)?;
        let used = self.filled(engine, &wanted, isolation)?;
        let inside = if wanted.from.is_none() { &mount.path } else { "/" };
        let is_whole = inside.trim_matches('/').is_empty();
        Ok(MountKind::Bind {
            source: match is_whole && isolation == Isolation::Chroot {
                true => BindSource::Owned { path: used },
                false => BindSource::Within { root: used, path: PathBuf::from(inside) },
            },
            read_only: mount.access == Access::ReadOnly,
            recursive: false,
        })
    }

    /// Takes a cache if the step does not hold it yet, and makes what it begins with.
    fn filled(
        &mut self,
        engine: &Engine<'_>,
        wanted: &WantedCache<'_>,
        isolation: Isolation,
    ) -> Result<PathBuf> {
        let identity = wanted.identity();
        if let Some(held) = self.held.iter().find(|held| *held.identity() == identity) {
            // A step does not wait for itself.
            return Ok(held.path().to_path_buf());
        }
        let (mount, sharing) = (wanted.mount, wanted.sharing(isolation));
        let mut wait = Wait::new(self.context, Awaited::CacheMount(&mount.id));
        let mut take = || {
            let used = engine.store.cache_mount(&identity, sharing, |busy| wait.pause(|| busy.holders()))?;
            wait.end();
            used.ok_or(Error::Canceled)
        };
        let mut used = take()?;
        while used.is_fresh() {
            let directory = used.path().to_path_buf();
            // What a step that was cut off had begun to fill is not trusted.
            kiln_sys::root::Directory::open(&directory)?.clear()?;
            match (wanted.from, mount.owner) {
                (Some(chain), None) => {
                    engine.materialize_from(self.context, chain, &mount.path, &directory)?;
                }
                (_, owner) => own(engine, &directory, owner.unwrap_or(CacheOwner::ROOT))?,
            }
            engine.store.cache_mount_is_filled(&used)?;
            drop(used);
            used = take()?;
        }
        let directory = used.path().to_path_buf();
        self.held.push(used);
        Ok(directory)
    }
}

/// A cache mount as a step asks for it.
struct WantedCache<'a> {
    mount: &'a CacheMount,
    /// What a new one begins with; nothing if a stage without layers is named.
    from: Option<ChainId>,
}

impl<'a> WantedCache<'a> {
    fn new(engine: &Engine<'_>, mount: &'a CacheMount, inputs: &[Step]) -> Result<Self> {
        let from = match mount.source {
            MountSource::Empty | MountSource::Context => None,
            MountSource::Input(position) => {
                let chain = inputs[position].chain;
                (!engine.layers(chain)?.is_empty()).then_some(chain)
            }
        };
        Ok(Self { mount, from })
    }

    /// Which directory it is: as in BuildKit, that of another base or owner is another one.
    fn identity(&self) -> CacheMountIdentity {
        let mut base = Vec::new();
        if let Some(from) = self.from {
            base.push(format!("from={from}"));
            if self.mount.owner.is_none() {
                base.push(format!("source={}", self.mount.path));
            }
        }
        if let Some(CacheOwner { uid, gid, mode }) = self.mount.owner {
            base.push(format!("uid={uid},gid={gid},mode={mode:o}"));
        }
        CacheMountIdentity { id: self.mount.id.clone(), base: base.join(",") }
    }

    /// When it is taken. Of one cache at two places the stricter use counts for both.
    fn order(&self) -> (CacheMountIdentity, u8) {
        let strictness = match self.mount.sharing {
            CacheSharing::Locked => 0,
            CacheSharing::Private => 1,
            CacheSharing::Shared => 2,
        };
        (self.identity(), strictness)
    }

    fn sharing(&self, isolation: Isolation) -> CacheMountSharing {
        match self.mount.sharing {
            // A cache that is moved into a root is nobody else's meanwhile.
            CacheSharing::Shared if isolation == Isolation::Chroot => CacheMountSharing::Locked,
            CacheSharing::Shared => CacheMountSharing::Shared,
            CacheSharing::Private => CacheMountSharing::Private,
            CacheSharing::Locked => CacheMountSharing::Locked,
        }
    }
}

fn own(engine: &Engine<'_>, directory: &Path, owner: CacheOwner) -> Result<()> {
    let error = |source| Error::File { action: "prepare", path: directory.display().to_string(), source };
    // With one user there is nobody else to give it to, and whoever the step becomes may write.
    let single = engine.store.ownership() == Ownership::SingleId;
    let (uid, gid) = if single { (0, 0) } else { (owner.uid, owner.gid) };
    std::os::unix::fs::chown(directory, Some(uid), Some(gid)).map_err(error)?;
    fs_err::set_permissions(directory, std::fs::Permissions::from_mode(owner.mode)).map_err(error)
}
