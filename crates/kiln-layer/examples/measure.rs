//! Measures the walk: `measure walk <layer>`, `measure unpack <layer> <empty directory>`;
//! and the writer: `measure write <directory> <tar> [<empty directory>]`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use kiln_layer::{
    Kind, LayerWriter, Metadata, Options, Outputs, Ownership, RootView, Source, Unpack, Whiteouts, path, walk,
};
use kiln_sys::root::{Directory, Root, Time};
use rustix::fs::FileType;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let start = Instant::now();
    match arguments[..] {
        ["walk", layer] => report(layer, &Options::default())?,
        ["unpack", layer, directory] => {
            let root = Root::open(directory.as_ref())?;
            let unpack = Unpack {
                root: &root,
                whiteouts: Whiteouts::OverlayTrusted,
                ownership: Ownership::Keep,
                clamp: None,
            };
            report(layer, &Options { unpack: Some(unpack), ..Options::default() })?;
        }
        ["write", directory, tar] => write(directory, tar, None)?,
        ["write", directory, tar, snapshot] => write(directory, tar, Some(snapshot))?,
        _ => return Err("usage: see the head of this example".into()),
    }
    println!("{:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn report(layer: &str, options: &Options<'_>) -> Outcome {
    let found = walk(fs_err::File::open(layer)?, options)?;
    println!("blob {} {} bytes, {}", found.blob, found.blob_size, found.compression);
    println!("tar {} {} bytes", found.diff_id, found.tar_size);
    println!("index {} bytes, {} entries", found.index.bytes().len(), found.index.entry_count());
    Ok(())
}

fn write(directory: &str, tar: &str, snapshot: Option<&str>) -> Outcome {
    let mut writer = LayerWriter::new();
    add(&mut writer, &Arc::new(Directory::open(directory.as_ref())?), b"")?;
    let snapshot = snapshot.map(|path| Root::open(path.as_ref())).transpose()?;
    let unpack = snapshot.as_ref().map(|root| Unpack {
        root,
        whiteouts: Whiteouts::OverlayTrusted,
        ownership: Ownership::Keep,
        clamp: None,
    });
    let mut tar = fs_err::File::create(tar)?;
    let written = writer.finish(&RootView::default(), Outputs { tar: Some(&mut tar), unpack })?;
    println!("tar {} {} bytes", written.diff_id, written.tar_size);
    Ok(())
}

fn add(writer: &mut LayerWriter<'static>, directory: &Arc<Directory>, above: &[u8]) -> Outcome {
    for found in directory.list()? {
        let path = path::join(above, found.name.as_bytes());
        let stat = directory.stat(&found.name)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::Regular,
            _ => continue,
        };
        let mut metadata = Metadata::new(kind, stat.st_mode & 0o7777);
        metadata.modified = Time::modified(&stat);
        metadata.size = u64::try_from(stat.st_size)?;
        if kind == Kind::Directory {
            writer.add(&path, metadata, Source::Empty)?;
            add(writer, &Arc::new(directory.open_directory(&found.name)?), &path)?;
        } else {
            let directory = Arc::clone(directory);
            let open = move || Ok(Box::new(directory.open_file(&found.name)?) as Box<dyn std::io::Read>);
            writer.add(&path, metadata, Source::Open(Box::new(open)))?;
        }
    }
    Ok(())
}
