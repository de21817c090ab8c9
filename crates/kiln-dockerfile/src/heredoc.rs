//! Heredocs: `<<EOF`, `<<-EOF`, `<<"EOF"`, several in one line.

use crate::error::Error;
use crate::expand::{Expander, NoVariables};

/// One heredoc with its body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heredoc {
    /// The terminator, without quotes.
    pub name: String,
    /// The body with its line ends, without the terminator's line. Leading tabs are still there.
    pub content: String,
    /// `<<-`: leading tabs of each line, and of the terminator, do not count.
    pub strip_tabs: bool,
    /// The name is not quoted: variables in the body are expanded (COPY, ADD).
    pub expand: bool,
    /// The number before `<<`, else 0.
    pub descriptor: u32,
}

impl Heredoc {
    /// The body as its reader gets it.
    #[must_use]
    pub fn text(&self) -> String {
        if self.strip_tabs { strip_leading_tabs(&self.content) } else { self.content.clone() }
    }
}

/// Removes tabs at the start of each line.
#[must_use]
pub fn strip_leading_tabs(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// Reads a word such as `3<<-"EOF"` as the start of a heredoc, whose body is still empty.
/// `None` if it is none.
///
/// # Errors
/// [`Error::Expand`] if the name's quotes are open.
pub fn heredoc_start(word: &str) -> Result<Option<Heredoc>, Error> {
    let digits = word.len() - word.trim_start_matches(|ch: char| ch.is_ascii_digit()).len();
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (strip_tabs, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start_matches(['\t', '\n', '\x0c', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = Expander::for_heredoc_name(false).words(rest, &NoVariables)?;
    let [name] = plain.as_slice() else { return Ok(None) };
    let quoted = Expander::for_heredoc_name(true).words(rest, &NoVariables)?;
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        expand: quoted.first().is_some_and(|raw| quotes(raw) == quotes(name)),
        name: name.clone(),
        content: String::new(),
        strip_tabs,
        descriptor: word[..digits].parse().unwrap_or(0),
    }))
}

/// The heredocs that a line starts, in order.
pub(crate) fn heredocs_of_line(line: &str) -> Result<Vec<Heredoc>, Error> {
    let words = Expander::for_heredoc_line().words(line, &NoVariables).unwrap_or_default();
    let mut found = Vec::new();
    for word in words {
        found.extend(heredoc_start(&word)?);
    }
    Ok(found)
}
