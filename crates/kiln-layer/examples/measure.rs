//! Measures the walk: `measure walk <layer>`, `measure unpack <layer> <empty directory>`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use kiln_layer::{Options, Ownership, Unpack, Whiteouts, walk};
use kiln_sys::root::Root;

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
        _ => return Err("measure walk <layer> | measure unpack <layer> <directory>".into()),
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
