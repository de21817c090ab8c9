//! What is printed above the message of a build that failed: the last output of the step, and the lines of the
//! Dockerfile around it.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use super::FailedStep;
use super::log::sanitise;

/// The instruction that failed, in its file.
#[derive(Debug, Clone)]
pub(crate) struct Source<'a> {
    /// The file's name as it was given.
    pub(crate) file: &'a str,
    /// The whole file.
    pub(crate) text: &'a str,
    /// The instruction's lines, from 1.
    pub(crate) lines: RangeInclusive<usize>,
}

/// The step's name and last `count` lines between rules.
pub(crate) fn last_output(step: &FailedStep, count: usize) -> String {
    let mut out = format!("------\n > {}:\n", step.name);
    let skip = step.lines.len().saturating_sub(count);
    for line in &step.lines[skip..] {
        out.push_str(line);
        out.push('\n');
    }
    out.push_str("------\n");
    out
}

/// The instruction's lines, marked, and some around them. Nothing for lines that the file does not have.
pub(crate) fn source(source: &Source<'_>) -> String {
    const RULE: &str = "--------------------\n";
    let lines: Vec<&str> = source.text.split('\n').collect();
    let (start, end) = (*source.lines.start(), (*source.lines.end()).min(lines.len()));
    if start == 0 || start > end {
        return String::new();
    }
    let around = if start == end { 2 } else { 1 };
    let shown = start.saturating_sub(around).max(1)..=(end + around).min(lines.len());
    let mut out = format!("{}:{start}\n{RULE}", sanitise(source.file.as_bytes()));
    for number in shown {
        let mark = if (start..=end).contains(&number) { ">>>" } else { "   " };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            " {number:3} | {mark} {}",
            sanitise(lines[number - 1].trim_end_matches('\r').as_bytes())
        );
    }
    out.push_str(RULE);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, lines: RangeInclusive<usize>, expect: &str) {
        assert_eq!(source(&Source { file: "Dockerfile", text, lines }), expect);
    }

    #[test]
    fn sources() {
        check(
            "FROM busybox:1.37\nRUN echo before; echo err >&2; exit 7\n",
            2..=2,
            "Dockerfile:2\n--------------------\n   1 |     FROM busybox:1.37\n   2 | >>> RUN echo before; echo err >&2; exit 7\n   3 |     \n--------------------\n",
        );
        check(
            "FROM a\nRUN 1\nRUN 2\nCOPY hello.txt /\nWORKDIR /opt\nENV A=b\nCMD x\n",
            4..=4,
            "Dockerfile:4\n--------------------\n   2 |     RUN 1\n   3 |     RUN 2\n   4 | >>> COPY hello.txt /\n   5 |     WORKDIR /opt\n   6 |     ENV A=b\n--------------------\n",
        );
        check(
            "a\nb\nc \\\n  d\ne\nf",
            3..=4,
            "Dockerfile:3\n--------------------\n   2 |     b\n   3 | >>> c \\\n   4 | >>>   d\n   5 |     e\n--------------------\n",
        );
        check(
            "RUN \x1b[2Jx\r\n",
            1..=1,
            "Dockerfile:1\n--------------------\n   1 | >>> RUN x\n   2 |     \n--------------------\n",
        );
        check("a", 5..=5, "");
        check("a", 0..=0, "");
    }

    #[test]
    fn outputs() {
        let step = FailedStep {
            name: "[2/2] RUN echo before; exit 7".to_owned(),
            message: "exit code: 7".to_owned(),
            lines: ["0.122 first", "0.123 before", "0.123 err"].map(str::to_owned).to_vec(),
        };
        assert_eq!(
            last_output(&step, 2),
            "------\n > [2/2] RUN echo before; exit 7:\n0.123 before\n0.123 err\n------\n"
        );
    }
}
