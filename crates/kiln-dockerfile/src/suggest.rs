//! Near names for "did you mean".

/// Bytes of a character.
const MOST_BYTES: usize = 4;

/// The candidate nearest to `name`, if it is at most two edits away and not the name itself.
/// Letter case of the candidate follows the name's where that is all upper or all lower.
pub(crate) fn near<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<String> {
    let wanted = name.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        // Cheaper than the distance, which is not less.
        if candidate.len().abs_diff(name.len()) > 2 * MOST_BYTES {
            continue;
        }
        let distance = distance(&wanted, &candidate.to_lowercase());
        if distance == 0 {
            return None;
        }
        if distance <= 2
            && distance < candidate.chars().count()
            && best.is_none_or(|(least, _)| distance < least)
        {
            best = Some((distance, candidate));
        }
    }
    let (_, candidate) = best?;
    Some(if name == name.to_uppercase() { candidate.to_uppercase() } else { candidate.to_owned() })
}

/// The hint for a near name.
pub(crate) fn hint<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<String> {
    Some(format!("did you mean {}?", near(name, candidates)?))
}

/// Edits (insert, delete, replace, swap of neighbours) from one text to the other.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().take(64).collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut best = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::near;

    fn check(name: &str, expect: Option<&str>) {
        let candidates = ["run", "copy", "from", "entrypoint"];
        assert_eq!(near(name, candidates).as_deref(), expect, "{name}");
    }

    #[test]
    fn near_names() {
        check("RUNN", Some("RUN"));
        check("rnu", Some("run"));
        check("FORM", Some("FROM"));
        check("ENTRYPIONT", Some("ENTRYPOINT"));
        check("run", None);
        check("x", None);
        check("whatever", None);
    }
}
