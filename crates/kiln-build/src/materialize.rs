//! A filtered view of the context for `RUN --mount=type=bind`: a copy of what was selected, so that what the ignore file
//! leaves out cannot be read, nor the user's files be changed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufReader};
use std::os::unix::ffi::OsStrExt as _;

use kiln_layer::Kind;
use kiln_sys::root::{self, Directory, Root};
use rustix::fs::FileType;

use crate::beginning::Watched;
use crate::context::is_no_file;
use crate::error::{Error, Result};
use crate::select::{RootContent, SelectedSource};
use crate::tree::{Below, Found, SourceTree, join, shown, split, to_path};

/// The name under which the selected file or directory is found in the directory that it was written to.
pub(crate) const NAME: &str = "root";
const BUFFER: usize = 128 << 10;

/// Writes what a bind mount selects into the empty `directory`, under [`NAME`]. Modes and times are the context's, the
/// owner is whoever runs this: root of the sandbox.
///
/// # Errors
/// When a file changed since the key was made ([`Error::Changed`]), or cannot be read or written.
pub(crate) fn materialize(
    source: &dyn SourceTree,
    selected: &mut SelectedSource,
    directory: &Directory,
) -> Result<()> {
    let _span = kiln_trace::span("materialize mount");
    let Some(root) = selected.roots.first_mut() else { return Ok(()) };
    let path = match &root.content {
        RootContent::Tree { path, .. } => path.clone(),
        RootContent::Inline(_) => Vec::new(),
    };
    let entries = root.load(source)?;
    let target = Root::from_fd(directory.try_clone()?.into(), directory.name());
    let mut writing = Writing { source, from: path, target, links: HashMap::new(), parent: None };
    for entry in entries {
        writing.entry(entry)?;
    }
    writing.parent = None;
    for entry in entries.iter().rev().filter(|entry| entry.found.metadata.kind == Kind::Directory) {
        let path = join(NAME.as_bytes(), &entry.path);
        let metadata = &entry.found.metadata;
        let made = writing.target.open_directory(to_path(&path))?;
        made.set_self(Some(metadata.mode), None, Some(metadata.modified))?;
    }
    Ok(())
}

struct Writing<'a> {
    source: &'a dyn SourceTree,
    from: Vec<u8>,
    target: Root,
    /// The first name of each group of hard links.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// The directory that was written to last.
    parent: Option<(Vec<u8>, Directory)>,
}

impl Writing<'_> {
    fn entry(&mut self, entry: &Below) -> Result<()> {
        let path = join(NAME.as_bytes(), &entry.path);
        let (parent_path, name) = split(&path);
        let name = OsStr::from_bytes(name);
        if self.parent.as_ref().is_none_or(|(known, _)| known != parent_path) {
            self.parent = Some((parent_path.to_vec(), self.target.open_directory(to_path(parent_path))?));
        }
        let Some((_, parent)) = &self.parent else { return Ok(()) };
        let metadata = &entry.found.metadata;
        let node = |kind| {
            parent.make_node(name, kind, metadata.mode, metadata.device.0, metadata.device.1)?;
            parent.set_mode(name, metadata.mode)
        };
        match metadata.kind {
            // The mode may shut us out: it comes last.
            Kind::Directory => return Ok(parent.make_directory(name, 0o700)?),
            Kind::Symlink => parent.make_symlink(name, OsStr::from_bytes(&metadata.link))?,
            Kind::Fifo => node(FileType::Fifo)?,
            Kind::CharacterDevice => node(FileType::CharacterDevice)?,
            Kind::BlockDevice => node(FileType::BlockDevice)?,
            Kind::Regular => {
                if let Some(first) = entry.found.group.and_then(|group| self.links.get(&group)) {
                    let (from, first) = split(first);
                    let from = self.target.open_directory(to_path(from))?;
                    return Ok(parent.make_link(name, &from, OsStr::from_bytes(first))?);
                }
                self.file(entry, parent, name)?;
                if let Some(group) = entry.found.group {
                    self.links.insert(group, path.clone());
                }
                return Ok(());
            }
            Kind::HardLink | Kind::Whiteout | Kind::Opaque => return Ok(()),
        }
        Ok(parent.set_modified(name, metadata.modified)?)
    }

    fn file(&self, entry: &Below, parent: &Directory, name: &OsStr) -> Result<()> {
        let path = join(&self.from, &entry.path);
        let failed = |source: io::Error| Error::File { action: "copy", path: shown(&path), source };
        let changed = || Error::Changed(shown(&path));
        let (reader, before) = match self.source.open(&path) {
            Err(error) if is_no_file(&error) => return Err(changed()),
            opened => opened?,
        };
        if before != entry.found.stamp {
            return Err(changed());
        }
        let Found { metadata, content, .. } = &entry.found;
        let mut file = parent.create_file(name, 0o600)?;
        // One byte more shows that there is more.
        let watched = Watched::new(reader, metadata.size.saturating_add(1));
        let mut reader = BufReader::with_capacity(BUFFER, watched);
        io::copy(&mut reader, &mut file).map_err(failed)?;
        let copied = reader.into_inner().beginning();
        if copied.length != metadata.size || content.is_some_and(|content| content != copied.digest) {
            return Err(changed());
        }
        root::set_file(&file, None, Some(metadata.mode), Some(metadata.modified)).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;
    use crate::lab::{Lab, Shifting};
    use crate::select::select_mount;

    #[test]
    fn a_view_holds_what_is_selected_and_nothing_else() {
        let lab = Lab::new().context(&[
            ("d/f", "f"),
            ("d/.env", "secret"),
            ("d/l", "->../outside"),
            ("d/sub/g", "g"),
            (".dockerignore", "**/.env"),
        ]);
        let context_path = lab.context_path();
        fs_err::hard_link(context_path.join("d/f"), context_path.join("d/sub/h")).expect("linked");
        let chmod = |path: &std::path::Path, mode| {
            fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
        };
        chmod(&context_path.join("d/sub"), 0o500);
        chmod(&context_path.join("d/f"), 0o4711);
        let context = lab.open();
        let mut selected = select_mount("/d", &context).expect("selected");
        let directory = Directory::open(&lab.host.path().join("scratch")).expect("opened");
        materialize(&context, &mut selected, &directory).expect("written");
        let root = lab.host.path().join("scratch/root");
        assert_eq!(fs_err::read_to_string(root.join("f")).expect("read"), "f");
        assert_eq!(fs_err::metadata(root.join("f")).expect("stat").mode() & 0o7777, 0o4711);
        assert_eq!(fs_err::metadata(root.join("sub")).expect("stat").mode() & 0o7777, 0o500);
        assert_eq!(fs_err::read_link(root.join("l")).expect("read").to_str(), Some("../outside"));
        assert!(!root.join(".env").exists());
        let inode = |path: &std::path::Path| fs_err::metadata(path).expect("stat").ino();
        assert_eq!(inode(&root.join("f")), inode(&root.join("sub/h")));
        assert_ne!(inode(&root.join("f")), inode(&context_path.join("d/f")), "the user's file is not shared");
        let mtime = |path: &std::path::Path| fs_err::metadata(path).expect("stat").mtime();
        assert_eq!(mtime(&root.join("sub")), mtime(&context_path.join("d/sub")));
        // So that they can be removed.
        [root, context_path.join("d")].iter().for_each(|above| chmod(&above.join("sub"), 0o700));
    }

    #[test]
    fn a_file_that_changed_is_named() {
        let lab = Lab::new().context(&[("f", "f")]);
        let context = lab.open();
        let mut selected = select_mount("f", &context).expect("selected");
        fs_err::write(lab.context_path().join("f"), "longer").expect("written");
        let directory = Directory::open(&lab.host.path().join("scratch")).expect("opened");
        let error = materialize(&context, &mut selected, &directory).expect_err("changed");
        assert!(matches!(error, Error::Changed(path) if path == "/f"));
    }

    #[test]
    fn bytes_that_look_unchanged_are_compared() {
        let lab = Lab::new().context(&[("f", "mine")]);
        let context = lab.open();
        for (bytes, is_same) in
            [(&b"mine"[..], true), (b"them", false), (b"min", false), (b"mine too", false)]
        {
            let scratch = tempfile::tempdir().expect("a directory");
            let directory = Directory::open(scratch.path()).expect("opened");
            let mut selected = select_mount("f", &context).expect("selected");
            let done = materialize(&Shifting::new(&context, &[bytes]), &mut selected, &directory);
            assert_eq!(done.is_ok(), is_same, "{bytes:?}: {done:?}");
            assert!(is_same || matches!(done, Err(Error::Changed(path)) if path == "/f"));
        }
    }
}
