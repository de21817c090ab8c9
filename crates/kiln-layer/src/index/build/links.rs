//! What the hard links of a layer mean, worked out when all its entries are known.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{Builder, LOWER};
use crate::error::{EntryProblem, Result};
use crate::metadata::Kind;
use crate::path::{self, is_below};

impl Builder {
    /// Finds what each hard link means: the file that had the path when the link was made.
    pub(super) fn resolve_links(&mut self, order: &[u32]) -> Result<()> {
        for (number, target) in self.link_targets(order) {
            let Some(target) = target else {
                self.records[number as usize].link_entry = LOWER;
                continue;
            };
            let found = self.records[target as usize].clone();
            if found.kind == Kind::Directory {
                return Err(self.bad(number, EntryProblem::LinkToDirectory));
            }
            if is_below(self.path(target), self.path(number)) {
                return Err(self.bad(number, EntryProblem::LinkInside));
            }
            // A link to a link is a link to what that one means.
            let target = if found.kind == Kind::HardLink { found.link_entry } else { target };
            let record = &mut self.records[number as usize];
            (record.link_entry, record.content) = (target, found.content);
            (record.mode, record.uid, record.gid) = (found.mode, found.uid, found.gid);
            (record.modified, record.xattrs) = (found.modified, found.xattrs);
        }
        Ok(())
    }

    /// The hard links in the order of the tar, each with the entry that it names, if that is there.
    fn link_targets(&self, order: &[u32]) -> Vec<(u32, Option<u32>)> {
        let kind = |number: &u32| self.records[*number as usize].kind;
        let links = (0..self.records.len() as u32).filter(|number| kind(number) == Kind::HardLink);
        let mut targets: Vec<(u32, Option<u32>)> = links.map(|number| (number, None)).collect();
        if targets.is_empty() {
            return targets;
        }
        let real: Vec<u32> = order.iter().copied().filter(|number| !kind(number).is_mark()).collect();
        for (number, target) in &mut targets {
            *target = self.last_before(self.link(*number), *number, &real);
        }
        // In path order no directory comes after what is in it.
        if !self.sorted {
            self.take_replaced(&real, &mut targets);
        }
        targets
    }

    /// Takes the targets that were gone when the link was made: a file that took the place of a directory above in the
    /// meantime took the target with it. One walk for all links, through both in path order.
    fn take_replaced(&self, real: &[u32], targets: &mut [(u32, Option<u32>)]) {
        let mut targets: Vec<_> = targets.iter_mut().filter(|(_, target)| target.is_some()).collect();
        targets.sort_by(|left, right| path::compare(self.link(left.0), self.link(right.0)));
        let mut files = real.iter().copied().filter(|number| self.replaces(*number)).peekable();
        // Those at or above where the walk is: in path order, and in the order of the tar.
        let (mut above, mut numbers) = (Vec::new(), BTreeSet::new());
        for (link, target) in targets {
            let path = self.link(*link);
            let is_before = |file: &u32| path::compare(self.path(*file), path) == Ordering::Less;
            while let Some(file) = files.next_if(is_before) {
                self.leave(&mut above, &mut numbers, self.path(file));
                above.push(file);
                numbers.insert(file);
            }
            self.leave(&mut above, &mut numbers, path);
            *target = target.filter(|target| numbers.range(target + 1..*link).next().is_none());
        }
    }

    /// Forgets what is neither at nor above `path`.
    fn leave(&self, above: &mut Vec<u32>, numbers: &mut BTreeSet<u32>, path: &[u8]) {
        let stays = |file: u32| self.path(file) == path || is_below(path, self.path(file));
        while let Some(file) = above.pop_if(|file| !stays(*file)) {
            numbers.remove(&file);
        }
    }

    /// The last entry for `path` before `number` among some that are in path order: one search, however many there are.
    fn last_before(&self, path: &[u8], number: u32, among: &[u32]) -> Option<u32> {
        let after = among.partition_point(|other| {
            path::compare(self.path(*other), path).then(other.cmp(&number)) == Ordering::Less
        });
        let last = *among.get(after.checked_sub(1)?)?;
        (self.path(last) == path).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::New;
    use super::*;
    use crate::metadata::Time;

    fn add(builder: &mut Builder, kind: Kind, path: &str, link: &str) -> u32 {
        let new = New {
            path: path.as_bytes(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            modified: Time { seconds: 0, nanoseconds: 0 },
            size: 0,
            link: link.as_bytes(),
            device: (0, 0),
            xattrs: &[],
            content_offset: 0,
            sparse: false,
        };
        builder.add(&new).expect("room")
    }

    /// What a link names, found by looking at all that came before it.
    fn named(builder: &Builder, link: u32) -> Option<u32> {
        let path = builder.link(link);
        let is_real = |number: &u32| !builder.records[*number as usize].kind.is_mark();
        let target = (0..link).rev().find(|number| is_real(number) && builder.path(*number) == path)?;
        let takes = |number: u32| builder.replaces(number) && is_below(path, builder.path(number));
        (!(target + 1..link).any(takes)).then_some(target)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn links_name_what_was_there(
            entries in prop::collection::vec(
                (
                    prop::sample::select(vec![
                        Kind::Directory, Kind::Directory, Kind::Regular, Kind::Symlink, Kind::HardLink, Kind::HardLink,
                        Kind::Whiteout, Kind::Opaque,
                    ]),
                    "[ab](/[ab]){0,3}",
                    "[ab](/[ab]){0,3}",
                ),
                0..24,
            ),
            in_order in any::<bool>(),
        ) {
            let mut entries = entries;
            if in_order {
                entries.sort_by(|left, right| path::compare(left.1.as_bytes(), right.1.as_bytes()));
                entries.dedup_by(|left, right| left.1 == right.1);
            }
            let mut builder = Builder::new();
            for (kind, path, link) in &entries {
                add(&mut builder, *kind, path, link);
            }
            let mut order: Vec<u32> = (0..entries.len() as u32).collect();
            order.sort_by(|left, right| {
                path::compare(builder.path(*left), builder.path(*right)).then(left.cmp(right))
            });
            let links = (0..entries.len() as u32).filter(|number| entries[*number as usize].0 == Kind::HardLink);
            let expect: Vec<_> = links.map(|link| (link, named(&builder, link))).collect();
            prop_assert_eq!(builder.link_targets(&order), expect);
        }
    }
}
