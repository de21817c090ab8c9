//! ADD: each source is lowered by its kind.

use kiln_dockerfile::{SourceKind, Span, source_kind};
use kiln_graph::{Vertex, VertexId};

use super::{LoweredStep, Lowering, instruction_error};
use crate::checksum::Checksum;
use crate::error::Result;
use crate::git::GitAddress;
use crate::operation::{CopyKind, CopySource, DownloadOperation, MountSource, Operation};
use crate::stage::StageState;

/// The longest name that a file may have.
const LONGEST_NAME: usize = 255;

impl Lowering<'_> {
    pub(super) fn add(&mut self, state: &StageState, add: &kiln_dockerfile::Add) -> Result<LoweredStep> {
        let transfer = &add.transfer;
        let checksum = add.checksum.as_ref().filter(|checksum| !checksum.text.is_empty());
        if let Some(checksum) = checksum {
            let problem = match transfer.sources.as_slice() {
                [source] if source_kind(&source.text) == SourceKind::Path => {
                    Some("checksum requires HTTP(S) or Git sources")
                }
                [_] => None,
                _ => Some("checksum can't be specified for multiple sources"),
            };
            if let Some(problem) = problem {
                return Err(instruction_error(problem.to_owned(), checksum.span));
            }
        }
        let mut sources = Vec::new();
        let mut inputs = Vec::new();
        for source in &transfer.sources {
            match source_kind(&source.text) {
                SourceKind::Path => sources.push(CopySource::Path(source.text.clone())),
                SourceKind::Git(git) => {
                    let address = GitAddress::parse(&git).and_then(|address| {
                        address.with_flags(checksum.map(|word| word.text.as_str()), add.keep_git_dir)
                    });
                    let address =
                        address.map_err(|error| instruction_error(error.to_string(), source.span))?;
                    let vertex = self.git_vertex(address, source.span);
                    inputs.push(("source".to_owned(), vertex));
                    sources.push(CopySource::Repository { input: inputs.len() });
                }
                SourceKind::Url { file_name } => {
                    let checksum = checksum.map(|word| {
                        Checksum::parse(&word.text).map_err(|problem| {
                            instruction_error(
                                format!("invalid checksum {:?}: {problem}", word.text),
                                word.span,
                            )
                        })
                    });
                    let vertex = self.download_vertex(&source.text, checksum.transpose()?, source.span);
                    inputs.push(("source".to_owned(), vertex));
                    sources.push(CopySource::Download {
                        input: inputs.len(),
                        name: safe_name(file_name),
                        unpack: add.unpack.unwrap_or(false),
                    });
                }
            }
        }
        let kind = if add.unpack.unwrap_or(true) { CopyKind::Unpack } else { CopyKind::Plain };
        let mut operation = self.transfer(state, transfer, MountSource::Context, kind, false);
        let heredocs = operation.sources.split_off(transfer.sources.len());
        operation.sources = sources;
        operation.sources.extend(heredocs);
        Ok((Operation::Copy(Box::new(operation)), inputs, kiln_dockerfile::history::add(add)))
    }

    /// The vertex of a file from the web: one for each address and checksum.
    fn download_vertex(&mut self, url: &str, checksum: Option<Checksum>, span: Span) -> VertexId {
        let known = (url.to_owned(), checksum.as_ref().map(Checksum::to_string));
        if let Some(id) = self.downloads.get(&known) {
            return *id;
        }
        let operation = DownloadOperation { url: url.to_owned(), checksum };
        let name = format!("download {}", kiln_remote::shown(url));
        let vertex = Vertex::new(Operation::Download(operation), name).span(span.start..span.end);
        let id = self.graph.add(vertex);
        self.downloads.insert(known, id);
        id
    }
}

impl Lowering<'_> {
    /// The vertex of a repository: one for each that is asked for in the same way.
    fn git_vertex(&mut self, address: GitAddress, span: Span) -> VertexId {
        if let Some(id) = self.repositories.get(&address) {
            return *id;
        }
        let name = format!("check out {}", kiln_remote::shown(&address.remote));
        let vertex = Vertex::new(Operation::Git(Box::new(address.clone())), name);
        let id = self.graph.add(vertex.span(span.start..span.end));
        self.repositories.insert(address, id);
        id
    }
}

/// A name is one component of a path, whatever an address says.
fn safe_name(name: String) -> String {
    let is_one =
        !matches!(name.as_str(), "" | "." | "..") && !name.contains('/') && name.len() <= LONGEST_NAME;
    if is_one && !name.contains(char::is_control) { name } else { "download".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_components() {
        for name in ["", ".", "..", "a/b", "/etc", "a\0b", "a\nb", &"n".repeat(256)] {
            assert_eq!(safe_name(name.to_owned()), "download", "{name:?}");
        }
        for name in ["a.tar.gz", "..a", "ü b", "__unnamed__", ".wh.x", &"n".repeat(255)] {
            assert_eq!(safe_name(name.to_owned()), name);
        }
    }
}
