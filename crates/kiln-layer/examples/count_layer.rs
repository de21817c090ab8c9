//! Fixed work for `cargo xtask count`: `count_layer make FILE` writes a layer; `walk FILE` walks it; `write-index FILE`
//! makes the index of a layer of empty files and writes it; `read-index FILE` asks it for each.

use std::path::Path;

use kiln_layer::{Kind, LayerIndex, LayerWriter, Metadata, Options, Outputs, RootView, Source, walk};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const ENTRIES: u32 = 4000;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", path] => {
            let mut tar = fs_err::File::create(path)?;
            writer(8)?.finish(&RootView::default(), Outputs { tar: Some(&mut tar), unpack: None })?;
            Ok(())
        }
        ["walk", path] => {
            let found = walk(fs_err::File::open(path)?, &Options::default())?;
            expect(found.index.entry_count())
        }
        ["write-index", path] => {
            let made = writer(0)?.finish(&RootView::default(), Outputs::default())?;
            Ok(fs_err::write(path, made.index.bytes())?)
        }
        ["read-index", path] => {
            let index = LayerIndex::open(fs_err::File::open(path)?.file(), Path::new(path))?;
            for number in 0..ENTRIES {
                if index.find(name(number).as_bytes())?.is_none() {
                    return Err(name(number).into());
                }
            }
            index.tree_digest(0)?;
            expect(u32::try_from(index.tree().count())?)
        }
        _ => Err("usage: see the head of this example".into()),
    }
}

fn expect(entries: u32) -> Outcome {
    if entries < ENTRIES { Err(format!("{entries} entries").into()) } else { Ok(()) }
}

fn name(number: u32) -> String {
    format!("usr/share/d{:02}/file-{number:05}", number % 40)
}

/// Files of so many bytes each, and the directories that they imply.
fn writer(size: u8) -> Result<LayerWriter<'static>, Box<dyn std::error::Error>> {
    let mut writer = LayerWriter::new();
    for number in 0..ENTRIES {
        let mut metadata = Metadata::new(Kind::Regular, 0o644);
        let bytes = vec![number.to_le_bytes()[0]; usize::from(size)];
        metadata.size = bytes.len() as u64;
        let source = if bytes.is_empty() { Source::Empty } else { Source::Bytes(bytes) };
        writer.add(name(number).as_bytes(), metadata, source)?;
    }
    Ok(writer)
}
