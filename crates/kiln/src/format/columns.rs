//! Columns parted by tabs, aligned as Go's tabwriter aligns them: a cell ends at a tab, a column is as wide as the
//! widest of the adjacent lines that have it, and what follows a line's last tab belongs to no column.

use unicode_width::UnicodeWidthStr;

/// No column is narrower.
const MINIMUM: usize = 10;
/// Spaces between a column's widest cell and the next column.
const PADDING: usize = 3;

/// Aligns the cells of `text`, whose lines end in `\n`.
pub(crate) fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut start = 0;
        while start < lines.len() {
            let block = widths[start..].iter().take_while(|cells| cells.len() > column).count();
            let end = start + block;
            let widest = lines[start..end].iter().map(|cells| cells[column].width() + PADDING).max();
            let width = widest.unwrap_or(0).max(MINIMUM);
            widths[start..end].iter_mut().for_each(|cells| cells[column] = width);
            start = end.max(start + 1);
        }
    }
    let mut out = String::with_capacity(text.len() * 2);
    for (cells, widths) in lines.iter().zip(&widths) {
        for (cell, width) in cells.iter().zip(widths) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width())));
        }
        out.push_str(cells.last().copied().unwrap_or_default());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::align;

    #[track_caller]
    fn check(input: &str, expect: &str) {
        assert_eq!(align(input), expect);
    }

    #[test]
    fn aligned() {
        check("", "");
        check("A\n", "A\n");
        check("A\tB\n", "A         B\n");
        check("REPOSITORY\tTAG\nalpine\t3.20\n", "REPOSITORY   TAG\nalpine       3.20\n");
        check("A\t\tC\nb\t\tc\n", "A                   C\nb                   c\n");
        check("A\tB\nplain\nlonger than ten\tB\n", "A         B\nplain\nlonger than ten   B\n");
        check("A\tB\n世界世界世\tB\n", "A            B\n世界世界世   B\n");
    }
}
