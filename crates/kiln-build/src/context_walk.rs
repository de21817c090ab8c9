//! The walk over a build context: only what is selected is visited, several directories at a time.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use kiln_dockerfile::IgnoreState;
use rustix::fs::FileType;

use crate::context::{BuildContext, WORKERS, is_missing};
use crate::error::{Error, Result};
use crate::filter::{Filter, FilterState, Wanted};
use crate::tree::{Below, Found, join};

/// A walk over everything below one directory of the context.
pub(crate) struct Walk<'a> {
    context: &'a BuildContext,
    filter: &'a Filter,
    root: Vec<u8>,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    pending: Vec<Task>,
    /// How many tasks are being done.
    active: usize,
    /// What was found in each directory, by its number.
    listings: Vec<Vec<Listed>>,
    failure: Option<Error>,
}

/// A directory to be read.
struct Task {
    number: usize,
    /// Relative to the walked directory.
    path: Vec<u8>,
    ignore: IgnoreState,
    filter: FilterState,
}

/// What was found in a directory; the directories in it, and where they are in the listing.
type Read = (Vec<Listed>, Vec<(Task, usize)>);

struct Listed {
    name: Vec<u8>,
    found: Found,
    is_implied: bool,
    /// It is there only if something below it is.
    needs_below: bool,
    listing: Option<usize>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        context: &'a BuildContext,
        root: &[u8],
        ignore: IgnoreState,
        filter: &'a Filter,
    ) -> Self {
        let first = Task { number: 0, path: Vec::new(), ignore, filter: filter.root() };
        let work = Work { pending: vec![first], listings: vec![Vec::new()], ..Work::default() };
        Self { context, filter, root: root.to_vec(), work: Mutex::new(work), changed: Condvar::new() }
    }

    /// Everything below the directory, in path order.
    pub(crate) fn run(self) -> Result<Vec<Below>> {
        std::thread::scope(|scope| {
            for _ in 1..WORKERS {
                scope.spawn(|| self.work());
            }
            self.work();
        });
        let mut work = self.work.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = work.failure {
            return Err(failure);
        }
        let mut below = Vec::with_capacity(work.listings.iter().map(Vec::len).sum());
        assemble(&mut work.listings, 0, &mut Vec::new(), &mut below);
        Ok(below)
    }

    fn work(&self) {
        let mut span = kiln_trace::span("walk context");
        while let Some(task) = self.next() {
            let result = self.read(&task);
            let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            work.active -= 1;
            match result {
                Ok((mut listing, tasks)) => {
                    span.count(listing.len());
                    let first = work.listings.len();
                    for (task, entry) in tasks {
                        let number = work.listings.len();
                        work.listings.push(Vec::new());
                        listing[entry].listing = Some(number);
                        work.pending.push(Task { number, ..task });
                    }
                    // The one pushed last is taken first: keep to the order of names.
                    let pushed = work.listings.len() - first;
                    let start = work.pending.len() - pushed;
                    work.pending[start..].reverse();
                    work.listings[task.number] = listing;
                }
                Err(error) => {
                    work.failure.get_or_insert(error);
                    work.pending.clear();
                }
            }
            drop(work);
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Task> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(task) = work.pending.pop() {
                work.active += 1;
                return Some(task);
            }
            if work.active == 0 {
                return None;
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads one directory: its entries, and which of them are directories to be read, too.
    fn read(&self, task: &Task) -> Result<Read> {
        let from_root = join(&self.root, &task.path);
        let directory = match self.context.root().open_directory(Path::new(OsStr::from_bytes(&from_root))) {
            // It went away since its parent was read.
            Err(error) if is_missing(&error) && !task.path.is_empty() => return Ok(Read::default()),
            directory => directory?,
        };
        let mut names = directory.list()?;
        names.sort_by(|left, right| left.name.cmp(&right.name));
        let mut listing = Vec::with_capacity(names.len());
        let mut tasks = Vec::new();
        let (mut path, mut relative) = (from_root, task.path.clone());
        let (path_length, relative_length) = (path.len(), relative.len());
        for name in names {
            append(&mut path, path_length, name.name.as_bytes());
            append(&mut relative, relative_length, name.name.as_bytes());
            let ignore = self.context.ignore().child(&task.ignore, &path);
            let may_enter = matches!(name.kind, FileType::Directory | FileType::Unknown);
            if ignore.is_ignored() && !(may_enter && self.context.ignore().may_include_below(&path)) {
                continue;
            }
            let (wanted, filter) = self.filter.child(&task.filter, &relative, may_enter);
            if wanted == Wanted::No {
                continue;
            }
            let stat = match directory.stat(&name.name) {
                // It went away since the directory was read.
                Err(error) if is_missing(&error) => continue,
                stat => stat?,
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let needs_below = ignore.is_ignored() || wanted == Wanted::Below;
            if needs_below && !is_directory {
                continue;
            }
            let Some(found) = BuildContext::found(&directory, &name.name, &stat)? else { continue };
            if is_directory {
                tasks.push((Task { number: 0, path: relative.clone(), ignore, filter }, listing.len()));
            }
            listing.push(Listed {
                name: name.name.as_bytes().to_vec(),
                found,
                is_implied: wanted == Wanted::Below,
                needs_below,
                listing: None,
            });
        }
        Ok((listing, tasks))
    }
}

fn append(path: &mut Vec<u8>, length: usize, name: &[u8]) {
    path.truncate(length);
    if length > 0 {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn assemble(listings: &mut [Vec<Listed>], number: usize, path: &mut Vec<u8>, below: &mut Vec<Below>) {
    let length = path.len();
    for listed in std::mem::take(&mut listings[number]) {
        append(path, length, &listed.name);
        let at = below.len();
        let is_implied = listed.is_implied;
        below.push(Below { path: path.as_slice().into(), found: listed.found, is_implied });
        if let Some(listing) = listed.listing {
            assemble(listings, listing, path, below);
        }
        if listed.needs_below && below.len() == at + 1 {
            below.pop();
        }
    }
    path.truncate(length);
}
