//! Submodules of a repository, and theirs: level by level, so that they can be counted before git fetches them.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::repository::{Git, file_error};
use crate::error::{Error, Result};

/// How git's index marks a commit of another repository.
const LINK: &[u8] = b"160000 ";

impl Git<'_> {
    /// Brings the submodules of a checkout here, and theirs. `inside` are the words by which git finds the repository.
    pub(super) fn add_submodules(&self, tree: &Path, inside: &[&str]) -> Result<()> {
        self.add_level(tree, inside, 1, &mut 0)
    }

    /// `depth` says how many repositories the submodules of this one are in, `count` how many submodules there were so far.
    fn add_level(&self, tree: &Path, inside: &[&str], depth: usize, count: &mut usize) -> Result<()> {
        if fs_err::symlink_metadata(tree.join(".gitmodules")).is_err() {
            return Ok(());
        }
        let limits = self.program.limits;
        let most = limits.submodules.saturating_sub(*count);
        let links = self.links(tree, inside, most)?;
        if links.is_empty() {
            return Ok(());
        }
        if depth > limits.nesting {
            return Err(self.too_many("submodules within one another", limits.nesting));
        }
        *count += links.len();
        let update = ["submodule", "--quiet", "update", "--init"];
        let run = |words: &[&str]| self.run(tree, &[inside, &update, words].concat());
        match run(&["--depth=1"]) {
            Err(Error::Git { .. }) => drop(run(&[])?),
            other => drop(other?),
        }
        for link in links {
            let below = tree.join(link);
            // Where git was told to leave it out there is none: it would find the one above.
            if fs_err::symlink_metadata(below.join(".git")).is_ok_and(|found| found.is_file()) {
                self.add_level(&below, &[], depth + 1, count)?;
            }
        }
        Ok(())
    }

    /// Where the submodules of a checkout belong, as its index has them, which git has checked.
    fn links(&self, tree: &Path, inside: &[&str], most: usize) -> Result<Vec<PathBuf>> {
        let listed = self.run_into_file(tree, &[inside, &["ls-files", "--stage", "-z"]].concat())?;
        let entries = BufReader::new(fs_err::File::open(listed).map_err(file_error)?).split(0);
        let mut links = Vec::new();
        for entry in entries {
            let mut entry = entry.map_err(file_error)?;
            let Some(blank) = entry.iter().position(|byte| *byte == b'\t') else { continue };
            if entry.starts_with(LINK) {
                if links.len() == most {
                    return Err(self.too_many("submodules", self.program.limits.submodules));
                }
                links.push(PathBuf::from(OsString::from_vec(entry.split_off(blank + 1))));
            }
        }
        Ok(links)
    }

    fn too_many(&self, what: &'static str, limit: usize) -> Error {
        Error::GitTooMany { remote: self.shown(), what, limit }
    }
}
