//! The names of a directory as an EROFS image has them: blocks of entries in bytewise order, the names behind the entries.

use super::{BLOCK, pad};

const ENTRY: usize = 12;
const DIRECTORY: u8 = 2;

/// The names of one directory, as they come in order.
pub(super) struct Listing<'a> {
    full: Vec<u8>,
    /// The entries of the block being filled: name, inode, type.
    block: Vec<(&'a [u8], u32, u8)>,
    used: usize,
    /// `.` and `..`, until their places have come.
    dots: [Option<(&'static [u8], u32)>; 2],
    last: &'a [u8],
}

impl<'a> Listing<'a> {
    pub(super) fn new(own: u32, parent: u32) -> Self {
        let dots = [Some((&b"."[..], own)), Some((&b".."[..], parent))];
        Self { full: Vec::new(), block: Vec::new(), used: 0, dots, last: b"" }
    }

    /// Adds a name; false when it does not come after the one before.
    pub(super) fn add(&mut self, name: &'a [u8], nid: u32, file_type: u8) -> bool {
        if name <= self.last {
            return false;
        }
        self.last = name;
        self.add_dots(Some(name));
        self.push(name, nid, file_type);
        true
    }

    fn add_dots(&mut self, before: Option<&[u8]>) {
        for dot in 0..self.dots.len() {
            if let Some((name, nid)) =
                self.dots[dot].take_if(|dot| before.is_none_or(|before| dot.0 < before))
            {
                self.push(name, nid, DIRECTORY);
            }
        }
    }

    fn push(&mut self, name: &'a [u8], nid: u32, file_type: u8) {
        let room = ENTRY + name.len();
        if self.used + room > BLOCK {
            self.flush();
            pad(&mut self.full, BLOCK);
        }
        self.used += room;
        self.block.push((name, nid, file_type));
    }

    fn flush(&mut self) {
        let mut name_at = self.block.len() * ENTRY;
        for (name, nid, file_type) in &self.block {
            self.full.extend_from_slice(&u64::from(*nid).to_le_bytes());
            self.full.extend_from_slice(&(name_at as u16).to_le_bytes());
            self.full.extend_from_slice(&[*file_type, 0]);
            name_at += name.len();
        }
        for (name, ..) in &self.block {
            self.full.extend_from_slice(name);
        }
        self.block.clear();
        self.used = 0;
    }

    /// Appends the blocks to `blocks`, whose length is a multiple of a block's, and gives the directory's size.
    pub(super) fn finish(mut self, blocks: &mut Vec<u8>) -> usize {
        self.add_dots(None);
        self.flush();
        blocks.extend_from_slice(&self.full);
        pad(blocks, BLOCK);
        self.full.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of each block.
    fn listed(names: &[&'static str]) -> Vec<Vec<String>> {
        let mut listing = Listing::new(1, 2);
        for name in names {
            assert!(listing.add(name.as_bytes(), 3, 1), "{name}");
        }
        let mut blocks = Vec::new();
        let size = listing.finish(&mut blocks);
        assert!(blocks.len() == size.next_multiple_of(BLOCK));
        let number = |bytes: &[u8], at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let block = |block: &[u8]| {
            let count = number(block, 8) / ENTRY;
            let start =
                |entry: usize| if entry < count { number(block, entry * ENTRY + 8) } else { block.len() };
            let name =
                |entry| String::from_utf8(block[start(entry)..start(entry + 1)].to_vec()).expect("text");
            (0..count).map(|entry| name(entry).trim_end_matches('\0').to_owned()).collect()
        };
        blocks[..size].chunks(BLOCK).map(block).collect()
    }

    #[test]
    fn dots_stand_in_their_order() {
        assert_eq!(listed(&[]), [[".", ".."]]);
        assert_eq!(listed(&["!", "-x", "a"]), [["!", "-x", ".", "..", "a"]]);
        assert_eq!(listed(&["-", ".-", "...", ".a"]), [["-", ".", ".-", "..", "...", ".a"]]);
        assert!(!Listing::new(1, 1).add(b"", 2, 1), "an empty name");
    }

    #[test]
    fn a_block_is_filled_to_its_end() {
        let long: &'static str = Box::leak("x".repeat(255).into_boxed_str());
        // 12 + 1 and 12 + 2 of the dots, 12 + 206 and 12 + 255 make 512.
        let exact: &'static str = Box::leak("w".repeat(206).into_boxed_str());
        assert_eq!(listed(&[exact, long]), [[".", "..", exact, long]]);
        let more: &'static str = Box::leak("w".repeat(207).into_boxed_str());
        assert_eq!(listed(&[more, long]), [vec![".", "..", more], vec![long]]);
    }
}
