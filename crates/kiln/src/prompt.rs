//! Questions before something is removed.

use std::io::{BufRead, Write};

/// Prints `warning` and asks whether to go on. Only `y` and `yes` mean yes; so nothing happens at the end of input.
pub(crate) fn confirm(warning: &str, input: impl BufRead, mut output: impl Write) -> std::io::Result<bool> {
    write!(output, "{warning}\nAre you sure you want to continue? [y/N] ")?;
    output.flush()?;
    // A longer answer is no answer, and is not read to its end.
    let mut answer = String::new();
    input.take(64).read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::confirm;

    #[test]
    fn answers() {
        #[track_caller]
        fn check(answer: &str, expect: bool) {
            let mut output = Vec::new();
            assert_eq!(confirm("WARNING!", answer.as_bytes(), &mut output).unwrap(), expect);
            assert_eq!(output, b"WARNING!\nAre you sure you want to continue? [y/N] ");
        }
        check("y\n", true);
        check("Yes\n", true);
        check(" y", true);
        check("n\n", false);
        check("\n", false);
        check("", false);
        check("yellow\n", false);
    }
}
