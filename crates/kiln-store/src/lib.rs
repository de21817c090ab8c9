//! The store: blobs, images and their names, layer indexes, snapshots, build cache records, leases.
//!
//! This crate owns what is on disk and who may remove it. SQLite alone is the truth; any number of processes use a
//! store at once, and none cleans up at start. It must never run a process.
//!
//! Entry: [`Store`].
#![forbid(unsafe_code)]

mod archive_in;
mod archive_out;
mod cache_mounts;
mod chains;
mod check;
mod collect;
mod copied;
mod database;
mod durable;
mod error;
mod images;
mod import;
mod late_lease;
mod layers;
mod layout;
mod lease;
mod members;
mod mount_points;
mod records;
mod refusal;
mod reserve;
mod roots;
#[cfg(test)]
#[path = "../../../tests/skipped.rs"]
mod skipped;
mod snapshots;
mod stack;
mod stale;
mod store;
mod sub_ids;
mod superseded;
mod tar_mounts;
mod usage;
mod waiting;

pub use archive_in::{LoadEvent, LoadedImage, Unpacking, is_layout};
pub use archive_out::{ArchiveForm, SavedImage, Saving};
pub use cache_mounts::{CacheMountBusy, CacheMountIdentity, CacheMountSharing, CacheMountUse};
pub use check::{Checked, Fault};
pub use collect::{CacheToRemove, Collected, CollectedImage, Collection, ImagesToRemove};
pub use database::SCHEMA_VERSION;
pub use error::{Error, OtherOwners, Result};
pub use images::{Image, ImageSummary, NO_TIME, Removed, Tag};
pub use late_lease::LateLease;
pub use layers::{LayerBlob, LayerInfo, NewBlob, NewLayer};
pub use lease::{Lease, Leased, Spent};
pub use mount_points::GivenFiles;
pub use records::{CacheRecord, CachedResult, Claim, FirstMade, NearRecord, RecordInput};
pub use roots::{Lowers, RootPart};
pub use snapshots::{PreparedRoot, RootForm, RootWay, SnapshotPaths};
pub use stack::StackContents;
pub use store::{Ownership, Store};
pub use sub_ids::Certainty;
pub use usage::{CONTAINER, CacheItem, CacheItemKind, DiskUsage, ImageUsage};
pub use waiting::{Awaited, FilesBusy, Patience, Wait, Working};
