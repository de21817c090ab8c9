//! Making a layer index: entries in tar order go in, the effective tree is worked out at the end.

mod links;

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::HashMap;

use kiln_oci::{DiffId, Digest, Hasher};

use super::{
    FLAG_MARKS, FLAG_SPARSE, FLAG_STANDS_ALONE, FLAG_STRAY_PADDING, FLAG_SUPERSEDED, HEADER, LOWER,
    LayerIndex, MAGIC, RECORD, SECTION, Section, VERSION,
};
use crate::error::{EntryProblem, Error, Result};
use crate::facts;
use crate::metadata::{Children, Hashed, Kind, Metadata, Tail, Time, Xattr, content_digest, mark_digest};
use crate::path::{self, OPAQUE, WHITEOUT, is_below, split};

const NONE: u32 = u32::MAX;
/// Bytes of paths, link targets and attributes in one layer: they are in memory while the index is made.
const MOST_STRINGS: usize = 512 << 20;

/// An entry as the tar has it, its path cleaned.
pub(crate) struct New<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Time,
    pub(crate) size: u64,
    pub(crate) link: &'a [u8],
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: &'a [Xattr],
    pub(crate) content_offset: u64,
    pub(crate) sparse: bool,
}

#[derive(Clone)]
struct Record {
    path: (u32, u32),
    link: (u32, u32),
    xattrs: (u32, u32),
    link_entry: u32,
    kind: Kind,
    flags: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    modified: Time,
    size: u64,
    device: (u32, u32),
    content_offset: u64,
    content: Digest,
}

/// What is known of the layer once its stream has ended.
pub(crate) struct Totals {
    pub(crate) diff_id: DiffId,
    pub(crate) tar_size: u64,
    /// The version of the tar writer; zero for a foreign layer.
    pub(crate) writer: u32,
}

/// An index being made.
#[derive(Default)]
pub(crate) struct Builder {
    records: Vec<Record>,
    strings: Vec<u8>,
    xattrs: Vec<[u32; 4]>,
    facts: Vec<(u32, u32, u32)>,
    fact_bytes: Vec<u8>,
    /// Tar order so far is path order without duplicates, as kiln's own writer makes it.
    sorted: bool,
    stray_padding: bool,
}

/// The entries of one path above others, in the order of the tar.
struct Group<'a> {
    entries: &'a [u32],
    /// The last non-directory at or above this path: what came before it is gone.
    killed_before: u32,
    /// For what comes below: looked up once, however many entries there are, above or below.
    kinds: OnceCell<Kinds>,
}

/// Entries of one path, in the order of the tar.
struct Kinds {
    /// All but marks.
    real: Vec<u32>,
    /// What takes the place of a directory.
    files: Vec<u32>,
}

/// What the entries of one path leave.
#[derive(Default)]
struct Left {
    real: Option<u32>,
    mark: Option<u32>,
    /// One past the last non-directory.
    killed_before: u32,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { sorted: true, ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    fn string(&mut self, bytes: &[u8]) -> Result<(u32, u32)> {
        // Attributes can be shorter than what is kept of each.
        if self.strings.len() + self.xattrs.len() * size_of::<[u32; 4]>() + bytes.len() > MOST_STRINGS {
            let limit = MOST_STRINGS as u64;
            return Err(Error::Limit { what: "bytes of names, links and attributes", limit });
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(bytes);
        Ok((offset, bytes.len() as u32))
    }

    fn text(&self, range: (u32, u32)) -> &[u8] {
        &self.strings[range.0 as usize..range.0 as usize + range.1 as usize]
    }

    fn path(&self, number: u32) -> &[u8] {
        self.text(self.records[number as usize].path)
    }

    fn link(&self, number: u32) -> &[u8] {
        self.text(self.records[number as usize].link)
    }

    pub(crate) fn add(&mut self, new: &New<'_>) -> Result<u32> {
        let number = u32::try_from(self.records.len()).ok().filter(|number| *number != NONE);
        let number = number.ok_or(Error::Limit { what: "entries", limit: NONE.into() })?;
        if self.sorted && number > 0 {
            let last = self.path(number - 1);
            self.sorted = path::compare(last, new.path) == Ordering::Less;
        }
        let path = self.string(new.path)?;
        let link = self.string(new.link)?;
        let first = u32::try_from(self.xattrs.len()).unwrap_or(NONE);
        for (name, value) in new.xattrs {
            let (name, value) = (self.string(name)?, self.string(value)?);
            self.xattrs.push([name.0, name.1, value.0, value.1]);
        }
        self.records.push(Record {
            path,
            link,
            xattrs: (first, new.xattrs.len() as u32),
            link_entry: 0,
            kind: new.kind,
            flags: if new.sparse { FLAG_SPARSE } else { 0 },
            mode: new.mode & 0o7777,
            uid: new.uid,
            gid: new.gid,
            modified: new.modified,
            size: new.size,
            device: new.device,
            content_offset: new.content_offset,
            content: Digest::default(),
        });
        Ok(number)
    }

    pub(crate) fn set_content(&mut self, number: u32, digest: Digest) {
        self.records[number as usize].content = digest;
    }

    /// Says that something stands in the padding of the tar's files.
    pub(crate) fn set_stray_padding(&mut self) {
        self.stray_padding = true;
    }

    /// Whether the bytes of a file are to be kept, and there is room for them.
    pub(crate) fn wants_fact(&self, path: &[u8], size: u64) -> bool {
        facts::is_fact(path, size) && self.fact_bytes.len() as u64 + size <= facts::MOST
    }

    /// Keeps the bytes of a file; entries must come in order.
    pub(crate) fn add_fact(&mut self, number: u32, bytes: &[u8]) {
        let offset = self.fact_bytes.len() as u32;
        self.fact_bytes.extend_from_slice(bytes);
        self.facts.push((number, offset, bytes.len() as u32));
    }

    /// Works out the effective tree and lays the index out.
    pub(crate) fn finish(mut self, totals: &Totals) -> Result<LayerIndex> {
        let mut span = kiln_trace::span("write index");
        span.count(self.records.len());
        let mut order: Vec<u32> = (0..self.records.len() as u32).collect();
        if !self.sorted {
            order.sort_by(|left, right| {
                path::compare(self.path(*left), self.path(*right)).then(left.cmp(right))
            });
        }
        let mut effective = self.effective(&order)?;
        self.resolve_links(&order)?;
        self.promote_whiteouts(&mut effective);
        let (trees, implied) = self.trees(&effective);
        Ok(self.lay_out(totals, &effective, &trees, implied))
    }

    /// The entries that are left when every later one has won over the earlier ones it replaces.
    fn effective(&mut self, order: &[u32]) -> Result<Vec<u32>> {
        let mut effective = Vec::with_capacity(order.len());
        let mut above: Vec<Group<'_>> = Vec::new();
        let mut rest = order;
        while let Some(first) = rest.first() {
            let path = self.path(*first);
            let length = rest.iter().take_while(|number| self.path(**number) == path).count();
            let (entries, after) = rest.split_at(length);
            rest = after;
            while above.last().is_some_and(|above| !is_below(path, self.path(above.entries[0]))) {
                above.pop();
            }
            let killed = above.last().map_or(0, |above| above.killed_before);
            let left = self.left_of(entries, killed);
            let killed_before = killed.max(left.killed_before);
            above.push(Group { entries, killed_before, kinds: OnceCell::new() });
            if killed > 0 || (left.killed_before > 0 && entries.len() > 1) {
                entries.iter().try_for_each(|number| self.has_directory_above(&above, *number))?;
            }
            for number in entries {
                self.records[*number as usize].flags |= FLAG_SUPERSEDED;
            }
            let directory = left.real.is_none_or(|real| !self.replaces(real));
            for number in [left.real, left.mark.filter(|_| directory)].into_iter().flatten() {
                self.records[number as usize].flags &= !FLAG_SUPERSEDED;
                effective.push(number);
            }
        }
        Ok(effective)
    }

    /// Follows the entries of one path in the order of the tar, as unpacking would.
    fn left_of(&self, entries: &[u32], killed: u32) -> Left {
        let mut left = Left::default();
        for number in entries {
            if self.replaces(*number) {
                left.killed_before = *number + 1;
            }
            if *number < killed {
                continue;
            }
            let file = left.real.is_some_and(|real| self.replaces(real));
            match self.records[*number as usize].kind {
                // What this layer gives is not what its whiteout hides.
                Kind::Whiteout if file => {}
                Kind::Whiteout => left.mark = left.mark.or(Some(*number)),
                // It says more than a whiteout of the same path.
                Kind::Opaque => left.mark = Some(*number),
                Kind::Directory => left.real = Some(*number),
                // The directory that was there is gone, its mark with it.
                _ => (left.real, left.mark) = (Some(*number), None),
            }
        }
        left
    }

    /// Fails where a non-directory has the place of a parent when entry `number`, one of the last group, comes. The parent
    /// of an opaque mark is the directory that it is on.
    fn has_directory_above(&self, groups: &[Group<'_>], number: u32) -> Result<()> {
        let inside = self.records[number as usize].kind == Kind::Opaque;
        let mut killed = 0;
        for group in &groups[..groups.len() - usize::from(!inside)] {
            let kinds = group.kinds.get_or_init(|| self.kinds(group.entries));
            let last = |among: &[u32]| {
                among.partition_point(|entry| *entry < number).checked_sub(1).map(|position| among[position])
            };
            if last(&kinds.real).is_some_and(|entry| entry >= killed && self.replaces(entry)) {
                return Err(self.bad(number, EntryProblem::ParentNotDirectory));
            }
            killed = killed.max(last(&kinds.files).map_or(0, |entry| entry + 1));
        }
        Ok(())
    }

    fn kinds(&self, entries: &[u32]) -> Kinds {
        let real: Vec<u32> =
            entries.iter().copied().filter(|entry| !self.records[*entry as usize].kind.is_mark()).collect();
        let files = real.iter().copied().filter(|entry| self.replaces(*entry)).collect();
        Kinds { real, files }
    }

    /// Whether an entry takes the place of a directory and of all that is in it.
    fn replaces(&self, number: u32) -> bool {
        let kind = self.records[number as usize].kind;
        !kind.is_mark() && kind != Kind::Directory
    }

    fn bad(&self, number: u32, problem: EntryProblem) -> Error {
        Error::Entry { path: path::shown(self.path(number)), problem }
    }

    /// A whiteout beside a directory, given or implied by entries below it, is an opaque mark.
    fn promote_whiteouts(&mut self, effective: &mut [u32]) {
        for position in 0..effective.len() {
            let number = effective[position];
            if self.records[number as usize].kind != Kind::Whiteout {
                continue;
            }
            let path = self.path(number);
            let beside = position > 0 && self.path(effective[position - 1]) == path;
            let implied = effective.get(position + 1).is_some_and(|next| is_below(self.path(*next), path));
            if beside || implied {
                self.records[number as usize].kind = Kind::Opaque;
            }
        }
    }

    /// The content digest of each effective entry, and whether a directory is implied.
    fn trees(&self, effective: &[u32]) -> (Vec<Digest>, bool) {
        struct Open<'a> {
            path: &'a [u8],
            /// The position of its entry; an implied directory has none.
            position: Option<usize>,
            children: Children,
        }
        let mut trees = vec![Digest::default(); effective.len()];
        let mut linked: HashMap<u32, Digest> = HashMap::new();
        let mut implied = false;
        let mut open = vec![Open { path: b"", position: None, children: Children::default() }];
        let close = |open: &mut Vec<Open<'_>>, trees: &mut Vec<Digest>| {
            let Some(closed) = open.pop() else { return };
            let digest =
                self.directory_digest(closed.position.map(|position| effective[position]), &closed.children);
            if let Some(position) = closed.position {
                trees[position] = digest;
            }
            if let Some(parent) = open.last_mut() {
                parent.children.add(b"", split(closed.path).1, &digest);
            }
        };
        for (position, number) in effective.iter().enumerate() {
            let record = &self.records[*number as usize];
            let path = self.path(*number);
            let parent = if record.kind == Kind::Opaque { path } else { split(path).0 };
            while open.len() > 1
                && open.last().is_some_and(|top| top.path != parent && !is_below(parent, top.path))
            {
                close(&mut open, &mut trees);
            }
            while let Some(top) = open.last().filter(|top| top.path != parent) {
                let skip = if top.path.is_empty() { 0 } else { top.path.len() + 1 };
                let length = parent[skip..]
                    .iter()
                    .position(|byte| *byte == b'/')
                    .map_or(parent.len(), |end| skip + end);
                implied = true;
                open.push(Open { path: &parent[..length], position: None, children: Children::default() });
            }
            match record.kind {
                Kind::Directory if path.is_empty() => open[0].position = Some(position),
                Kind::Directory => {
                    open.push(Open { path, position: Some(position), children: Children::default() });
                }
                _ => {
                    let (prefix, name, digest) = match record.kind {
                        Kind::Whiteout => (WHITEOUT, split(path).1, mark_digest(record.kind)),
                        Kind::Opaque => (OPAQUE, &b""[..], mark_digest(record.kind)),
                        // Of a file with many names the attributes are hashed once.
                        Kind::HardLink if record.link_entry != LOWER => {
                            let digest = *linked.entry(record.link_entry).or_insert_with(|| {
                                self.entry_digest(&self.records[record.link_entry as usize])
                            });
                            (&b""[..], split(path).1, digest)
                        }
                        _ => (&b""[..], split(path).1, self.entry_digest(record)),
                    };
                    trees[position] = digest;
                    if let Some(top) = open.last_mut() {
                        top.children.add(prefix, name, &digest);
                    }
                }
            }
        }
        while !open.is_empty() {
            close(&mut open, &mut trees);
        }
        (trees, implied)
    }

    fn xattrs(&self, record: &Record) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        let (first, count) = record.xattrs;
        let range = first as usize..first as usize + count as usize;
        self.xattrs[range]
            .iter()
            .map(|xattr| (self.text((xattr[0], xattr[1])), self.text((xattr[2], xattr[3]))))
    }

    /// Of anything but a hard link within the layer, which is the file it names.
    fn entry_digest(&self, record: &Record) -> Digest {
        let is_file = matches!(record.kind, Kind::Regular | Kind::HardLink);
        self.record_digest(record, &Tail::of(is_file.then_some(&record.content)))
    }

    fn record_digest(&self, record: &Record, tail: &Tail<'_>) -> Digest {
        let Record { kind, mode, uid, gid, size, device, .. } = *record;
        let link = self.text(record.link);
        content_digest(&Hashed { kind, mode, uid, gid, size, device, link }, self.xattrs(record), tail)
    }

    fn directory_digest(&self, number: Option<u32>, children: &Children) -> Digest {
        let tail = Tail::Children(children);
        match number {
            Some(number) => self.record_digest(&self.records[number as usize], &tail),
            None => Metadata::implied_directory().content_digest(&tail),
        }
    }

    fn lay_out(&self, totals: &Totals, effective: &[u32], trees: &[Digest], implied: bool) -> LayerIndex {
        let lengths = [
            self.records.len() * RECORD,
            self.strings.len(),
            effective.len() * 4,
            trees.len() * 32,
            self.xattrs.len() * 16,
            8 + self.facts.len() * 12 + self.fact_bytes.len(),
        ];
        let start = HEADER + lengths.len() * SECTION;
        let total = start + lengths.iter().sum::<usize>();
        let mut file = Vec::with_capacity(total);
        self.header(&mut file, totals, effective, implied, total);
        let mut offset = start;
        for (position, length) in lengths.into_iter().enumerate() {
            for number in [position as u32 + Section::Entries as u32, 1] {
                file.extend_from_slice(&number.to_le_bytes());
            }
            file.extend_from_slice(&(offset as u64).to_le_bytes());
            file.extend_from_slice(&(length as u64).to_le_bytes());
            offset += length;
        }
        for record in &self.records {
            write_record(record, &mut file);
        }
        file.extend_from_slice(&self.strings);
        for number in effective {
            file.extend_from_slice(&number.to_le_bytes());
        }
        for digest in trees {
            file.extend_from_slice(digest.as_bytes());
        }
        for number in self.xattrs.as_flattened() {
            file.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.facts.len() as u32, facts::RULES] {
            file.extend_from_slice(&number.to_le_bytes());
        }
        for (number, offset, length) in &self.facts {
            for value in [number, offset, length] {
                file.extend_from_slice(&value.to_le_bytes());
            }
        }
        file.extend_from_slice(&self.fact_bytes);
        let mut end = start;
        let mut sections = [const { 0..0 }; super::SECTIONS];
        for (section, length) in sections.iter_mut().zip(lengths) {
            end += length;
            *section = end - length..end;
        }
        LayerIndex { bytes: super::Bytes::Owned(file), sections }
    }

    fn header(&self, file: &mut Vec<u8>, totals: &Totals, effective: &[u32], implied: bool, total: usize) {
        let records = || effective.iter().map(|number| &self.records[*number as usize]);
        let content: u64 = self.content_size(effective);
        // A superseded one counts, too: only unpacking tells what it would have met.
        let lower =
            self.records.iter().any(|record| record.kind == Kind::HardLink && record.link_entry == LOWER);
        let marks = records().any(|record| record.kind.is_mark());
        let mut flags = 0;
        if !implied && !lower {
            flags |= FLAG_STANDS_ALONE;
        }
        if marks {
            flags |= FLAG_MARKS;
        }
        if self.stray_padding {
            flags |= FLAG_STRAY_PADDING;
        }
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&VERSION.to_le_bytes());
        file.extend_from_slice(&6_u32.to_le_bytes());
        file.extend_from_slice(totals.diff_id.0.as_bytes());
        file.extend_from_slice(&totals.tar_size.to_le_bytes());
        file.extend_from_slice(&(total as u64).to_le_bytes());
        file.extend_from_slice(&(self.records.len() as u32).to_le_bytes());
        file.extend_from_slice(&(effective.len() as u32).to_le_bytes());
        file.extend_from_slice(&content.to_le_bytes());
        file.extend_from_slice(&flags.to_le_bytes());
        file.extend_from_slice(&totals.writer.to_le_bytes());
        file.extend_from_slice(&[0; 8]);
    }

    /// Sizes of the effective regular files, those that only a hard link still names included, each once.
    fn content_size(&self, effective: &[u32]) -> u64 {
        let mut counted: Vec<u32> = effective
            .iter()
            .filter_map(|number| match &self.records[*number as usize] {
                record if record.kind == Kind::Regular => Some(*number),
                record if record.kind == Kind::HardLink && record.link_entry != LOWER => {
                    Some(record.link_entry)
                }
                _ => None,
            })
            .collect();
        counted.sort_unstable();
        counted.dedup();
        counted.iter().fold(0, |sum, number| sum.saturating_add(self.records[*number as usize].size))
    }
}

fn write_record(record: &Record, file: &mut Vec<u8>) {
    let mut bytes = [0_u8; RECORD];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &record.path.0.to_le_bytes());
    put(4, &record.path.1.to_le_bytes());
    put(8, &[record.kind as u8, record.flags]);
    put(10, &(record.mode as u16).to_le_bytes());
    put(12, &record.uid.to_le_bytes());
    put(16, &record.gid.to_le_bytes());
    put(20, &record.modified.nanoseconds.to_le_bytes());
    put(24, &record.modified.seconds.to_le_bytes());
    put(32, &record.size.to_le_bytes());
    put(40, &record.link.0.to_le_bytes());
    put(44, &record.link.1.to_le_bytes());
    put(48, &record.link_entry.to_le_bytes());
    put(52, &record.xattrs.0.to_le_bytes());
    put(56, &record.xattrs.1.to_le_bytes());
    put(60, &record.device.0.to_le_bytes());
    put(64, &record.device.1.to_le_bytes());
    put(72, &record.content_offset.to_le_bytes());
    if matches!(record.kind, Kind::Regular | Kind::HardLink) {
        put(80, record.content.as_bytes());
    }
    file.extend_from_slice(&bytes);
}

/// Hashes the bytes of one file as they come, keeping them when they are a fact.
pub(crate) struct Content {
    hasher: Hasher,
    fact: Option<Vec<u8>>,
}

impl Content {
    pub(crate) fn new(keep: bool) -> Self {
        Self { hasher: Hasher::new(), fact: keep.then(Vec::new) }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(fact) = &mut self.fact {
            fact.extend_from_slice(bytes);
        }
    }

    pub(crate) fn finish(self, builder: &mut Builder, number: u32) {
        builder.set_content(number, self.hasher.finish());
        if let Some(fact) = self.fact {
            builder.add_fact(number, &fact);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of an attribute may be larger than the attribute.
    #[test]
    fn attributes_count_for_what_is_kept_of_them() {
        let mut builder = Builder::new();
        builder.string(b"name").expect("room");
        // Zeros that nobody touches take no memory.
        builder.xattrs = vec![[0; 4]; MOST_STRINGS / size_of::<[u32; 4]>()];
        assert!(matches!(builder.string(b"name"), Err(Error::Limit { .. })));
    }
}
