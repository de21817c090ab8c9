//! Why budgets are missed: texts that people write, kept in `missed.md` beside this file, joined to the rows that miss.
//!
//! A heading names what a text is about: `## WORKLOAD PEER`, `## WORKLOAD time`, `## memory PEER`, `## store PEER`, several
//! separated by commas; a workload that ends in `*` stands for all that begin so.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::budgets::Verdict;

/// A text and what it is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Text {
    subjects: Vec<(String, String)>,
    pub(crate) body: String,
}

/// The texts of this repository.
pub(crate) fn read(repository: &Path) -> Result<Vec<Text>> {
    let path = repository.join("crates/xtask/src/bench/missed.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Text>> {
    let mut texts: Vec<Text> = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let subject = |words: &str| {
                let (workload, against) =
                    words.trim().split_once(' ').context("a heading is WORKLOAD PEER")?;
                Ok((workload.to_owned(), against.trim().to_owned()))
            };
            let subjects = heading.split(',').map(subject).collect::<Result<_>>()?;
            texts.push(Text { subjects, body: String::new() });
        } else if let Some(last) = texts.last_mut() {
            last.body.push_str(line);
            last.body.push('\n');
        }
    }
    for text in &mut texts {
        text.body = text.body.trim().to_owned();
    }
    Ok(texts)
}

impl Text {
    /// Whether it is about this budget.
    pub(crate) fn is_about(&self, verdict: &Verdict) -> bool {
        self.subjects.iter().any(|(workload, against)| {
            let fits = match workload.strip_suffix('*') {
                Some(start) => verdict.workload.starts_with(start),
                None => verdict.workload == *workload,
            };
            fits && *against == verdict.against
        })
    }

    fn heading(&self) -> String {
        self.subjects
            .iter()
            .map(|(workload, against)| format!("{workload} {against}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Missed budgets without a text, and texts about none.
pub(crate) fn complaints(texts: &[Text], verdicts: &[Verdict]) -> Vec<String> {
    let missed = || verdicts.iter().filter(|verdict| !verdict.held);
    let unexplained =
        missed().filter(|verdict| !texts.iter().any(|text| text.is_about(verdict))).map(|verdict| {
            format!(
                "missed, and missed.md does not say why: {} {} ({})",
                verdict.workload, verdict.against, verdict.found
            )
        });
    let idle = texts.iter().filter(|text| !missed().any(|verdict| text.is_about(verdict)));
    unexplained
        .chain(idle.map(|text| format!("nothing is missed that missed.md explains: {}", text.heading())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(workload: &str, against: &str, held: bool) -> Verdict {
        Verdict {
            workload: workload.to_owned(),
            against: against.to_owned(),
            what: String::new(),
            promised: String::new(),
            found: "2.0x".to_owned(),
            held,
        }
    }

    #[test]
    fn texts_and_missed_budgets_belong_together() {
        let texts = parse("Head.\n\n## copy/cold* buildkit, copy/changed docker\n\nBecause.\nReally.\n\n## memory docker\nNo.\n").unwrap();
        assert_eq!(texts.len(), 2);
        assert_eq!(texts[0].body, "Because.\nReally.");
        assert!(texts[0].is_about(&verdict("copy/cold-run", "buildkit", false)));
        assert!(!texts[0].is_about(&verdict("copy/cold-run", "docker", false)));
        let told = complaints(
            &texts,
            &[
                verdict("copy/cold", "buildkit", false),
                verdict("start/version", "time", false),
                verdict("memory", "docker", true),
            ],
        );
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("start/version time") && told[1].contains("memory docker"), "{told:?}");
        assert!(parse("## nonsense\n").is_err());
    }

    #[test]
    fn the_repositorys_texts_can_be_read() {
        for text in read(&crate::machine::repository()).unwrap() {
            assert!(!text.body.is_empty(), "{}", text.heading());
        }
    }
}
