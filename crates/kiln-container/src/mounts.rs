//! What a container sees besides its root: volumes, and the files that kiln provides.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kiln_layer::RootView;
use kiln_oci::Config;
use kiln_runtime::{BindSource, Mount, MountKind, ProvidedFile};
use kiln_store::{Lease, Ownership, PreparedRoot, RootPart, Store};
use kiln_sys::overlay::{Overlay, Upper};

use crate::error::{Error, Result};
use crate::request::{Access, Request, Volume};

/// Where a container's volumes come from.
pub(crate) struct Origin<'a> {
    pub(crate) store: &'a Store,
    pub(crate) lease: &'a Lease,
    pub(crate) prepared: &'a PreparedRoot,
    pub(crate) view: &'a RootView,
}

/// All volumes: the asked for, and the image's where none was asked for.
pub(crate) fn volumes(origin: &Origin<'_>, config: &Config, request: &Request) -> Result<Vec<Mount>> {
    let mut volumes = request.volumes.clone();
    for target in config.volumes.iter().flatten().map(|(target, _)| Path::new("/").join(target)) {
        if !volumes.iter().any(|volume| same_place(volume.target(), &target)) {
            volumes.push(Volume::Anonymous { target });
        }
    }
    volumes.iter().map(|volume| mount(origin, volume)).collect()
}

fn same_place(one: &Path, other: &Path) -> bool {
    one.components().eq(other.components())
}

fn mount(origin: &Origin<'_>, volume: &Volume) -> Result<Mount> {
    let kind = match volume {
        Volume::Host { source, access, .. } => {
            if fs_err::symlink_metadata(source).is_err() {
                let failed = |error| Error::Volume { path: source.clone(), source: error };
                fs_err::create_dir_all(source).map_err(failed)?;
            }
            MountKind::Bind {
                source: BindSource::Host { path: source.clone() },
                read_only: *access == Access::ReadOnly,
                recursive: true,
            }
        }
        Volume::Anonymous { target } => anonymous(origin, target)?,
    };
    Ok(Mount { kind, target: volume.target().to_path_buf() })
}

/// A directory of the container's own that begins as the image's: an overlay where one can be had, so that nothing is
/// copied.
fn anonymous(origin: &Origin<'_>, target: &Path) -> Result<MountKind> {
    let path = target.as_os_str().as_bytes();
    let layers = &origin.prepared.layers;
    let own =
        |path| MountKind::Bind { source: BindSource::Owned { path }, read_only: false, recursive: false };
    let lowers = match origin.store.root_part(origin.lease, layers, path, origin.prepared.way())? {
        Some(RootPart::Directories(lowers)) => lowers,
        Some(RootPart::Copy(copy)) if copy.is_dir() => return Ok(own(copy)),
        Some(RootPart::File(_) | RootPart::Copy(_)) | None => {
            return Ok(own(origin.lease.fresh_directory("volume")?));
        }
    };
    let upper = origin.lease.fresh_directory("volume")?;
    if let Some(node) = origin.view.resolve(path)? {
        origin.store.dress(&upper, &origin.view.metadata(&node)?)?;
    }
    let upper = Upper { upper, work: origin.lease.fresh_directory("work")? };
    let userxattr = origin.store.ownership() != Ownership::Root;
    let (tars, lowers) = (lowers.tars, lowers.directories);
    Ok(MountKind::Overlay {
        overlay: Overlay { tars, lowers, upper: Some(upper), userxattr, volatile: true },
    })
}

/// The files that Docker provides, except where a volume takes their place.
pub(crate) fn provided_files(hostname: &str, resolv_conf: &[u8], volumes: &[Mount]) -> Vec<ProvidedFile> {
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.1.1\t{hostname}\n"
    );
    let files = [
        ("/etc/resolv.conf", resolv_conf.to_vec()),
        ("/etc/hostname", format!("{hostname}\n").into_bytes()),
        ("/etc/hosts", hosts.into_bytes()),
    ];
    files
        .into_iter()
        .map(|(target, contents)| ProvidedFile { target: PathBuf::from(target), contents, read_only: false })
        .filter(|file| !volumes.iter().any(|mount| same_place(&mount.target, &file.target)))
        .collect()
}
