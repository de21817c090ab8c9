//! Layers mounted instead of unpacked: both must look the same.

mod support;

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_layer::Whiteouts;
use kiln_sys::erofs::MountError;
use support::{Header, Tar, describe, unpack};

/// A layer both ways.
struct Both {
    host: tempfile::TempDir,
    mounted: OwnedFd,
}

impl Both {
    fn of(tar: &[u8]) -> Option<Self> {
        Self::at(tar, 0)
    }

    /// The tar starts `offset` bytes into its file. None where nothing can be mounted.
    fn at(tar: &[u8], offset: u64) -> Option<Self> {
        if !support::is_root() {
            support::skipped("needs root to mount");
            return None;
        }
        let host = tempfile::tempdir().expect("a temporary directory");
        fs_err::create_dir(host.path().join("unpacked")).expect("made");
        let walked = unpack(tar, &host.path().join("unpacked"), Whiteouts::OverlayTrusted).expect("unpacked");
        let mut data = fs_err::File::create(host.path().join("tar")).expect("created");
        std::io::Seek::seek(&mut data, std::io::SeekFrom::Start(offset)).expect("moved");
        data.write_all(tar).expect("written");
        let mut image = fs_err::File::create(host.path().join("image")).expect("created");
        let length = kiln_layer::erofs::write(&walked.index, offset, &mut image).expect("an image");
        assert_eq!(image.metadata().expect("stat").len(), length);
        let mounted = mount(&host.path().join("image"), &host.path().join("tar"))?;
        Some(Self { host, mounted })
    }

    fn unpacked(&self) -> PathBuf {
        self.host.path().join("unpacked")
    }

    fn mounted(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.mounted.as_raw_fd()).into()
    }
}

fn mount(image: &Path, data: &Path) -> Option<OwnedFd> {
    let open = |path: &Path| fs_err::File::open(path).expect("opened");
    match kiln_sys::erofs::mount(open(image).as_fd(), open(data).as_fd()) {
        Ok(mounted) => Some(mounted),
        Err(error @ MountError::NotHere(_)) => {
            support::skipped(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn experiment() {
    let tar = Tar::new()
        .dir("", 0o755)
        .dir("d", 0o700)
        .file("d/f", b"hello")
        .symlink("d/f", "l")
        .link("d/f", "h")
        .end();
    let Some(both) = Both::of(&tar) else { return };
    assert_eq!(describe(&both.mounted()), describe(&both.unpacked()));
    let _ = Header::default();
}
