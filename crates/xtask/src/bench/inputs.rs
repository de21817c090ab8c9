//! What the workloads work on, made from a seed: the same bytes on every machine, kept for the next run.

use std::fs::{File, FileTimes};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::archives::{self, Image};
use super::options::Size;
use crate::machine::{has, is_root, say};

/// What everything is made from.
pub(crate) const SEED: u64 = 0x6b69_6c6e;
/// A change of how inputs are made changes this, so that old ones are not used.
const VERSION: u32 = 2;

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Files of the tree that is copied, 8,650 bytes each in the mean.
    pub(crate) tree: usize,
    /// Files of the context that is only large.
    pub(crate) many: usize,
    /// Bytes of each of the four large files.
    pub(crate) large: u64,
    /// Images in a store with many.
    pub(crate) images: usize,
    /// Seconds that each of two independent stages sleeps.
    pub(crate) sleep: u64,
}

impl Sizes {
    pub(crate) fn of(size: Size) -> Self {
        match size {
            Size::Quick => Self { tree: 2_000, many: 20_000, large: 32 << 20, images: 100, sleep: 1 },
            Size::Whole => Self { tree: 20_000, many: 200_000, large: 256 << 20, images: 1_000, sleep: 3 },
        }
    }
}

/// All inputs, by path.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) sizes: Sizes,
    /// `FROM busybox`.
    pub(crate) busybox: Image,
    /// A Debian root, if one could be made.
    pub(crate) debian: Option<Image>,
    directory: PathBuf,
}

impl Inputs {
    /// Makes what is not there yet.
    pub(crate) fn prepare(directory: &Path, size: Size) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let sizes = Sizes::of(size);
        let busybox = archives::busybox(&directory.join("busybox"))?;
        let debian = match debian(&directory.join("debian")) {
            Ok(debian) => debian,
            Err(error) => {
                println!("no Debian root: {error:#}");
                None
            }
        };
        Ok(Self { sizes, busybox, debian, directory: directory.to_path_buf() })
    }

    /// A context with nothing in it.
    pub(crate) fn empty(&self) -> Result<PathBuf> {
        self.made("empty", |place| Ok(std::fs::create_dir_all(place)?))
    }

    /// A context with `tree/`, `count` files of 8,650 bytes in the mean, and `tree/changing`.
    pub(crate) fn tree(&self, count: usize) -> Result<PathBuf> {
        self.made(&format!("tree-{count}"), |place| write_tree(&place.join("tree"), count, 17_300))
    }

    /// A context with `tree/`, `count` files of a few bytes.
    pub(crate) fn many(&self, count: usize) -> Result<PathBuf> {
        self.made(&format!("many-{count}"), |place| write_tree(&place.join("tree"), count, 200))
    }

    /// A context with `tree.tar`, the tree as an archive.
    pub(crate) fn tree_tar(&self, count: usize) -> Result<PathBuf> {
        let tree = self.tree(count)?;
        self.made(&format!("tar-{count}"), |place| {
            std::fs::create_dir_all(place)?;
            archives::tar_directory(&tree.join("tree"), &place.join("tree.tar"))
        })
    }

    /// An image called `tree` of that tree.
    pub(crate) fn tree_image(&self, count: usize) -> Result<Image> {
        let tree = self.tree(count)?;
        let place = self.made(&format!("tree-image-{count}"), |place| {
            std::fs::create_dir_all(place)?;
            archives::tar_directory(&tree.join("tree"), &place.join(archives::ROOTFS))?;
            archives::image("tree", place).map(drop)
        })?;
        archives::image("tree", &place)
    }

    /// A context with four large files.
    pub(crate) fn large(&self) -> Result<PathBuf> {
        let size = self.sizes.large;
        self.made(&format!("large-{size}"), |place| {
            std::fs::create_dir_all(place)?;
            for number in 0..4 {
                let mut random = Random::new(SEED ^ (number + 1));
                let mut file = std::io::BufWriter::new(File::create(place.join(format!("large-{number}")))?);
                let mut left = size;
                let mut block = vec![0; 1 << 20];
                while left > 0 {
                    random.fill(&mut block);
                    let length = block.len().min(usize::try_from(left)?);
                    file.write_all(&block[..length])?;
                    left -= length as u64;
                }
                file.flush()?;
            }
            Ok(())
        })
    }

    /// A docker archive of `count` images, each with a layer of its own.
    pub(crate) fn many_images(&self, count: usize) -> Result<PathBuf> {
        let place = self.made(&format!("images-{count}"), |place| {
            std::fs::create_dir_all(place)?;
            archives::many_images(count, &place.join("images.tar"))
        })?;
        Ok(place.join("images.tar"))
    }

    /// A docker archive of one image of `count` layers, busybox the lowest.
    pub(crate) fn many_layers(&self, count: usize) -> Result<PathBuf> {
        let place = self.made(&format!("layers-{count}"), |place| {
            std::fs::create_dir_all(place)?;
            archives::many_layers(&self.busybox.rootfs, count, &place.join("image.tar"))
        })?;
        Ok(place.join("image.tar"))
    }

    /// Makes an input once: under another name first, so that half a one is never used.
    fn made(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let place = self.directory.join(format!("{name}.v{VERSION}"));
        if !place.exists() {
            println!("making {name}");
            let partial = self.directory.join(format!("{name}.partial"));
            let _ = std::fs::remove_dir_all(&partial);
            make(&partial).with_context(|| format!("cannot make {name}"))?;
            std::fs::rename(&partial, &place)?;
        }
        Ok(place)
    }
}

/// The file that workloads change between two builds.
pub(crate) const CHANGING: &str = "tree/changing";

/// Gives the changing file other contents of the same length.
pub(crate) fn change(context: &Path, turn: usize) -> Result<()> {
    let mut block = vec![0; 8650];
    Random::new(SEED ^ (0x1000 + turn as u64)).fill(&mut block);
    Ok(std::fs::write(context.join(CHANGING), block)?)
}

fn write_tree(root: &Path, count: usize, largest: u64) -> Result<()> {
    let mut random = Random::new(SEED);
    let mut block = vec![0; usize::try_from(largest)?];
    for number in 0..count {
        let directory = root.join(format!("d{:02}/e{:02}", number % 20, (number / 20) % 10));
        if number < 200 {
            std::fs::create_dir_all(&directory)?;
        }
        let length = usize::try_from(random.next() % largest)?;
        random.fill(&mut block[..length]);
        put(&directory.join(format!("file-{number:06}.txt")), &block[..length])?;
    }
    random.fill(&mut block);
    put(&root.join("changing"), &block[..block.len() / 2])
}

/// Writes a file with a time that is the same on every machine.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(archives::EPOCH);
    Ok(file.set_times(FileTimes::new().set_modified(time))?)
}

/// A Debian root made of the machine's own package sources.
fn debian(directory: &Path) -> Result<Option<Image>> {
    let rootfs = directory.join(archives::ROOTFS);
    if !rootfs.is_file() {
        if !is_root() || !has("mmdebstrap") {
            return Ok(None);
        }
        say("making a Debian root file system");
        std::fs::create_dir_all(directory)?;
        let partial = directory.join("partial.tar");
        crate::demo::debian_root(directory, &partial, "ca-certificates")?;
        std::fs::rename(&partial, &rootfs)?;
    }
    Ok(Some(archives::image("debian", directory)?))
}

/// splitmix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Printable bytes, which compress to about three quarters.
    pub(crate) fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            for (byte, random) in chunk.iter_mut().zip(word) {
                *byte = 0x20 + (random & 0x3f);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let bytes = |seed| {
            let mut block = vec![0; 20];
            Random::new(seed).fill(&mut block);
            block
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
        assert!(bytes(1).iter().all(|b| (0x20..0x60).contains(b)));
        assert_eq!(Random::new(0).next(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn a_tree_has_as_many_files_as_asked_for_and_one_that_changes() {
        let root = std::env::temp_dir().join(format!("bench-tree-{}", std::process::id()));
        write_tree(&root.join("tree"), 50, 200).unwrap();
        let before = std::fs::read(root.join(CHANGING)).unwrap();
        change(&root, 1).unwrap();
        let after = std::fs::read(root.join(CHANGING)).unwrap();
        let mut count = 0;
        let mut pending = vec![root.clone()];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                if entry.path().is_dir() { pending.push(entry.path()) } else { count += 1 }
            }
        }
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(count, 51);
        assert_ne!(before, after);
    }
}
