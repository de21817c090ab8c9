//! Go's settings for modules: variables, or what `go env -w` wrote (`go help environment`).

use anyhow::Result;

use super::{Host, Lending};

/// What says where modules come from and who vouches for them. GOFLAGS is none of them: it changes what is built.
const NAMES: [&str; 7] = ["GOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GONOPROXY", "GOINSECURE", "GOVCS"];

pub(super) fn lend(host: &Host, lending: &mut Lending) -> Result<()> {
    let written = match host.variable("GOENV") {
        Some("off") => None,
        Some(path) => host.text(path)?,
        None => host.at_settings("go/env").map(|path| host.text(path)).transpose()?.flatten(),
    };
    let written = written.unwrap_or_default();
    for name in NAMES {
        let in_file = || written.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        if let Some(value) = host.variable(name).or_else(in_file) {
            lending.environment(name, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Loan;
    use super::super::tests::{check, host};

    #[test]
    fn variables_come_before_what_is_written() {
        let written = "GOPROXY=http://written\nGOFLAGS=-mod=mod\nGOINSECURE=h.example\n";
        let files = [("/home/u/.config/go/env", written)];
        let (_root, mut host) =
            host(&[("HOME", "/home/u"), ("GOPROXY", "http://set"), ("GOFLAGS", "-v")], &files);
        check(&host, Loan::Go, &[("GOPROXY", "http://set"), ("GOINSECURE", "h.example")], &[]);
        host.variables.insert("GOENV".to_owned(), "off".to_owned());
        check(&host, Loan::Go, &[("GOPROXY", "http://set")], &[]);
        host.variables.insert("GOENV".to_owned(), "/home/u/.config/go/env".to_owned());
        check(&host, Loan::Go, &[("GOPROXY", "http://set"), ("GOINSECURE", "h.example")], &[]);
    }
}
