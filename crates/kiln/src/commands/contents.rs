//! `image files`, `image cat`, `image diff`, `image unpack`: what is in images. Only unpacking writes files; the others
//! read the layers' indexes.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kiln_layer::view::Node;
use kiln_layer::{Change, Kind as FileKind, RootView};
use kiln_oci::DiffId;
use kiln_store::{Lease, Leased, Store};
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::arguments::image::{Cat, Diff, Files as List, Unpack};
use crate::failure::{Failure, Kind};
use crate::progress::log::sanitise;
use crate::session::{self, Files};

/// Lists files as `tar tv` does.
pub(crate) fn files(root: Option<&Path>, arguments: &List) -> Result<u8> {
    let store = session::open(root, Files::Untouched)?;
    let view = store.root_view(&layers(&store, &arguments.image)?)?;
    let path = arguments.path.as_deref().unwrap_or("/");
    let node = view.resolve(path.as_bytes())?.ok_or_else(|| no_file(&arguments.image, path))?;
    let mut out = std::io::BufWriter::new(crate::output::output());
    for node in view.walk(node) {
        write_line(&mut out, &view, &node?)?;
    }
    out.flush()?;
    Ok(0)
}

fn write_line(out: &mut impl Write, view: &RootView, node: &Node<'_>) -> Result<()> {
    let metadata = view.metadata(node)?;
    let letter = match metadata.kind {
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        _ => '-',
    };
    let size = match metadata.kind {
        FileKind::CharacterDevice | FileKind::BlockDevice => {
            format!("{},{}", metadata.device.0, metadata.device.1)
        }
        _ => metadata.size.to_string(),
    };
    let owner = format!("{}/{}", metadata.uid, metadata.gid);
    let width = 19_usize.saturating_sub(owner.len());
    write!(
        out,
        "{letter}{} {owner} {size:>width$} {} {}",
        permissions(metadata.mode),
        time(metadata.modified.seconds),
        shown(node.path())
    )?;
    if metadata.kind == FileKind::Symlink {
        write!(out, " -> {}", escaped(&metadata.link))?;
    }
    writeln!(out)?;
    Ok(())
}

/// A time to the minute, in UTC; one that no calendar has as its seconds since the epoch, after an `@` as date(1) takes them.
fn time(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => format!("{:<16}", format!("@{seconds}")),
    }
}

fn permissions(mode: u32) -> String {
    let mut text = String::with_capacity(9);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A path with its leading slash, fit for a terminal.
fn shown(path: &[u8]) -> String {
    format!("/{}", escaped(path))
}

/// A name whose controls, invalid bytes and backslashes are escapes: `\n`, `\x1b`, `\\`.
fn escaped(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if is_unseen(c) => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Controls beyond ASCII, and marks that reorder or hide text (Unicode's bidirectional and zero-width ones).
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Prints a file, symbolic links followed inside the image.
pub(crate) fn cat(root: Option<&Path>, arguments: &Cat) -> Result<u8> {
    let store = session::open(root, Files::Touched)?;
    let lease = store.lease("cat")?;
    let layers = leased_layers(&store, &lease, &arguments.image)?;
    let view = store.root_view(&layers)?;
    let path = &arguments.path;
    let node = view.resolve(path.as_bytes())?.ok_or_else(|| no_file(&arguments.image, path))?;
    let file = view.file(&node)?.filter(|file| file.entry.kind() == FileKind::Regular).ok_or_else(|| {
        let what = if node.is_directory() { "a directory" } else { "no regular file" };
        Failure::new(Kind::Input, format!("cannot print {path:?} of {}: it is {what}", arguments.image))
    })?;
    let contents = store.layer_contents(&layers, file.layer)?;
    let mut reader = contents.open(&file.entry)?;
    std::io::copy(&mut reader, &mut crate::output::output())?;
    Ok(0)
}

/// Shows what differs: `A`, `C` or `D`, and the path.
pub(crate) fn diff(root: Option<&Path>, arguments: &Diff) -> Result<u8> {
    let store = session::open(root, Files::Untouched)?;
    let old = store.root_view(&layers(&store, &arguments.from)?)?;
    let new = store.root_view(&layers(&store, &arguments.to)?)?;
    let mut out = std::io::BufWriter::new(crate::output::output());
    for difference in kiln_layer::diff(&old, &new)? {
        let letter = match difference.change {
            Change::Added => 'A',
            Change::Modified => 'C',
            Change::Deleted => 'D',
        };
        writeln!(out, "{letter} {}", shown(&difference.path))?;
    }
    out.flush()?;
    Ok(0)
}

/// Writes the files of an image to a directory, which is made or empty.
pub(crate) fn unpack(root: Option<&Path>, arguments: &Unpack) -> Result<u8> {
    let directory = std::path::absolute(&arguments.directory)?;
    let store = session::open(root, Files::Touched)?;
    let lease = store.lease("unpack")?;
    let layers = leased_layers(&store, &lease, &arguments.image)?;
    let cannot = || Failure::new(Kind::Input, format!("cannot unpack into {}", directory.display()));
    let made = match rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o777)) {
        Ok(()) => true,
        Err(Errno::EXIST) if !directory.is_dir() => return Err(cannot().caused_by(Errno::NOTDIR).into()),
        Err(Errno::EXIST) => {
            if fs_err::read_dir(&directory)?.next().is_some() {
                return Err(cannot().caused_by(Errno::NOTEMPTY).into());
            }
            false
        }
        Err(error) => return Err(cannot().caused_by(error).into()),
    };
    let unpacked = store.unpack_layers(&lease, &layers, &directory);
    if unpacked.is_err()
        // What is half there helps nobody.
        && let Err(error) = clear(&directory, made)
    {
        // Why nothing could be unpacked is said after it, and matters more.
        let kept = format!("kiln: warning: what was unpacked stays in {}: {error:#}", directory.display());
        crate::output::aside(&(sanitise(kept.as_bytes()) + "\n"));
    }
    unpacked.with_context(|| format!("cannot unpack {}", arguments.image))?;
    Ok(0)
}

fn clear(directory: &Path, made: bool) -> Result<()> {
    let opened = kiln_sys::root::Directory::open(directory)?;
    opened.clear()?;
    if let (true, Some(parent), Some(name)) = (made, directory.parent(), directory.file_name()) {
        kiln_sys::root::Directory::open(parent)?.remove_directory(name)?;
    }
    Ok(())
}

fn layers(store: &Store, name: &str) -> Result<Vec<DiffId>> {
    Ok(store.image(store.resolve(name)?)?.config.rootfs.diff_ids)
}

/// As [`layers`], for commands that read their files, which then stay as long as the lease.
fn leased_layers(store: &Store, lease: &Lease, name: &str) -> Result<Vec<DiffId>> {
    let id = store.resolve(name)?;
    lease.keep(Leased::Image(id))?;
    Ok(store.image(id)?.config.rootfs.diff_ids)
}

fn no_file(image: &str, path: &str) -> anyhow::Error {
    Failure::new(Kind::Input, format!("no {path:?} in the image {image}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names() {
        #[track_caller]
        fn check(name: &[u8], expect: &str) {
            assert_eq!(escaped(name), expect);
        }
        check(b"etc/passwd", "etc/passwd");
        check("häß".as_bytes(), "häß");
        check(b"a\nb\x1b[2J\\", "a\\nb\\x1b[2J\\\\");
        check(b"\xff\xfe", "\\xff\\xfe");
        check("a\u{202e}b\u{9b}".as_bytes(), "a\\u{202e}b\\u{9b}");
    }

    #[test]
    fn times_that_no_calendar_has() {
        assert_eq!(time(0), "1970-01-01 00:00");
        assert_eq!(time(-1), "1969-12-31 23:59");
        assert_eq!(time(1_000_000_000_000), "@1000000000000  ");
        assert_eq!(time(i64::MIN), "@-9223372036854775808");
    }

    #[test]
    fn modes() {
        #[track_caller]
        fn check(mode: u32, expect: &str) {
            assert_eq!(permissions(mode), expect);
        }
        check(0o755, "rwxr-xr-x");
        check(0o4755, "rwsr-xr-x");
        check(0o2644, "rw-r-Sr--");
        check(0o1777, "rwxrwxrwt");
        check(0o7000, "--S--S--T");
    }
}
