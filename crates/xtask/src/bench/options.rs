//! What to measure, from the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

/// Engines that kiln can be measured beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerKind {
    Docker,
    Buildkit,
    Buildah,
    Podman,
    Umoci,
}

/// How long the bench may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// A few minutes, a tenth of the sizes.
    Quick,
    /// The sizes that the budgets speak of.
    Whole,
}

impl Size {
    /// As the JSON file has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Whole => "whole",
        }
    }
}

/// Where a run goes in the results that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// It takes their place.
    Nothing,
    /// It stands beside them.
    Earlier,
}

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With the first workload.
    Afresh,
    /// Where another was interrupted.
    Interrupted,
}

/// Which peers were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    /// docker, and BuildKit where it is on the PATH, if this is root; else none.
    Usual,
    /// These.
    These(Vec<PeerKind>),
}

/// The command line.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) size: Size,
    pub(crate) only: Vec<String>,
    pub(crate) peers: Peers,
    pub(crate) keep: Keep,
    pub(crate) begin: Begin,
    pub(crate) output: Option<PathBuf>,
    pub(crate) kiln: Option<PathBuf>,
    /// Whose commands kiln's are, if not the caller's.
    pub(crate) user: Option<String>,
    /// What a whole run may take; repeats are fewer for it, down to a least number.
    pub(crate) budget: Option<Duration>,
    /// Waited before every repeat that begins with an emptied store.
    pub(crate) rest: Duration,
    pub(crate) action: Action,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Measure,
    /// Write page and plots anew from the JSON file.
    Render,
    /// Name the workloads.
    List,
}

pub(crate) const USAGE: &str = "usage: cargo xtask bench [OPTIONS]

  --quick         a tenth of the sizes and fewer repeats: a few minutes
  --only NAME     only workloads whose name contains NAME; may be repeated; writes below the target directory
  --peer PEER     docker, buildkit, buildah, podman, umoci or none; may be repeated
                  [default: as root docker, and buildkit where buildkitd and buildctl are on the PATH; else none]
  --user NAME     kiln's commands are those of this user, who needs no password; without peers, since theirs are root's
  --append        keep the runs that the JSON file has and add this one
  --resume        go on with a run of this commit and size that was interrupted: every workload is written when it is done
  --minutes N     what the workloads may take: slow ones are repeated less often for it, but not less than two or three
                  times [default: 35 for a whole run]
  --rest SECONDS  wait so long before repeats that begin with an emptied store: ext4 passes over inodes that were deleted in
                  the last minute, one by one [default: 0]
  --output DIR    where performance.md, performance.json and plots/ go [default: docs]
  --kiln FILE     measure this program [default: build it]
  --render        measure nothing, write page and plots anew from the JSON file
  --list          name the workloads";

impl Options {
    /// Reads the words after `bench`.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            size: Size::Whole,
            only: Vec::new(),
            peers: Peers::Usual,
            keep: Keep::Nothing,
            begin: Begin::Afresh,
            output: None,
            kiln: None,
            user: None,
            budget: None,
            rest: Duration::ZERO,
            action: Action::Measure,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (flag, attached) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let mut value = || match attached.clone().or_else(|| words.next().cloned()) {
                Some(value) => Ok(value),
                None => bail!("{flag} needs a value\n\n{USAGE}"),
            };
            match flag {
                "--only" => options.only.push(value()?),
                "--peer" => options.add_peers(&value()?)?,
                "--output" => options.output = Some(value()?.into()),
                "--kiln" => options.kiln = Some(value()?.into()),
                "--user" => options.user = Some(value()?),
                "--minutes" => options.budget = Some(Duration::from_secs(60 * number(flag, &value()?)?)),
                "--rest" => options.rest = Duration::from_secs(number(flag, &value()?)?),
                _ if attached.is_some() => bail!("{flag} takes no value\n\n{USAGE}"),
                "--quick" => options.size = Size::Quick,
                "--append" => options.keep = Keep::Earlier,
                "--resume" => options.begin = Begin::Interrupted,
                "--render" => options.action = Action::Render,
                "--list" => options.action = Action::List,
                _ => bail!("unknown option {flag}\n\n{USAGE}"),
            }
        }
        if options.user.is_some() {
            match &options.peers {
                Peers::Usual => options.peers = Peers::These(Vec::new()),
                Peers::These(peers) if peers.is_empty() => {}
                Peers::These(_) => bail!("--user goes with --peer none: the peers' daemons are root's"),
            }
        }
        if options.size == Size::Whole && options.budget.is_none() {
            options.budget = Some(Duration::from_secs(35 * 60));
        }
        Ok(options)
    }

    fn add_peers(&mut self, names: &str) -> Result<()> {
        if self.peers == Peers::Usual {
            self.peers = Peers::These(Vec::new());
        }
        let Peers::These(peers) = &mut self.peers else { return Ok(()) };
        for name in names.split(',') {
            let kind = match name {
                "none" => continue,
                "docker" => PeerKind::Docker,
                "buildkit" => PeerKind::Buildkit,
                "buildah" => PeerKind::Buildah,
                "podman" => PeerKind::Podman,
                "umoci" => PeerKind::Umoci,
                other => bail!("unknown peer {other}\n\n{USAGE}"),
            };
            if !peers.contains(&kind) {
                peers.push(kind);
            }
        }
        Ok(())
    }
}

fn number(flag: &str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| anyhow!("{flag} needs a number, not {text:?}\n\n{USAGE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn peers_are_collected() {
        assert_eq!(parse("--quick").unwrap().peers, Peers::Usual);
        assert_eq!(parse("--peer none").unwrap().peers, Peers::These(vec![]));
        let two = parse("--peer docker --peer=buildkit,docker").unwrap();
        assert_eq!(two.peers, Peers::These(vec![PeerKind::Docker, PeerKind::Buildkit]));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "--peer",
            "--peer rkt",
            "--quick=yes",
            "--fast",
            "quick",
            "--minutes ten",
            "--user me --peer docker",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
