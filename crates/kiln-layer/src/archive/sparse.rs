//! The GNU sparse formats: which parts of a file its archive holds.

use super::MAXIMUM_EXTENDED;

/// More regions than any tar writer makes of a map that fits its limit.
pub(super) const MAXIMUM_REGIONS: usize = (MAXIMUM_EXTENDED / 4) as usize;

/// A part of a sparse file that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it is in the file.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

impl Region {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// Regions must be in order, apart, inside the file, and add up to what is stored.
pub(super) fn check(regions: &[Region], size: u64, stored: u64) -> Option<()> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for region in regions {
        if region.offset < end {
            return None;
        }
        end = region.offset.checked_add(region.length)?;
        total = total.checked_add(region.length)?;
    }
    (end <= size && size <= i64::MAX as u64 && total == stored).then_some(())
}

/// GNU sparse 0.1: `offset,length,offset,length,...`.
pub(super) fn parse_list(map: &[u8], regions: &mut Vec<Region>) -> Option<()> {
    if map.is_empty() {
        return Some(());
    }
    pairs(map.split(|byte| *byte == b','), regions)
}

/// GNU sparse 1.0: a count, then offsets and lengths, each on its line.
pub(super) fn parse_map(text: &[u8], regions: &mut Vec<Region>) -> Option<()> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let count = usize::try_from(decimal(lines.next()?)?).ok()?;
    pairs(lines.take(count.checked_mul(2)?), regions)?;
    (regions.len() == count).then_some(())
}

/// How many lines the map has by its first line, itself left out: none while that is not there, an error when it is no
/// number.
pub(super) fn lines_of_map(text: &[u8]) -> Option<Option<usize>> {
    let Some(first) = text.iter().take(super::BLOCK).position(|byte| *byte == b'\n') else {
        return (text.len() < super::BLOCK).then_some(None);
    };
    let count = usize::try_from(decimal(&text[..first])?).ok()?;
    (count <= MAXIMUM_REGIONS).then_some(Some(count * 2))
}

fn pairs<'a>(mut numbers: impl Iterator<Item = &'a [u8]>, regions: &mut Vec<Region>) -> Option<()> {
    while let Some(offset) = numbers.next() {
        let region = Region { offset: decimal(offset)?, length: decimal(numbers.next()?)? };
        if regions.len() >= MAXIMUM_REGIONS {
            return None;
        }
        regions.push(region);
    }
    Some(())
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}
