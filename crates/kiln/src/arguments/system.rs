//! Commands on the store, and about kiln itself.

use clap::Args;

use super::{DocumentFormat, RowFormat};

/// Show what takes space in the store
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln system df
  kiln system df -v
  kiln system df --format json

Fields: .Type .TotalCount .Active .Size .Reclaimable")]
pub(crate) struct DiskUsage {
    #[command(flatten)]
    pub(crate) format: RowFormat,

    /// Show every image and cache record
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Remove what nothing uses
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln system prune
  kiln system prune -a -f --filter until=24h

What a running command uses is never removed. Filters: until=TIME, label=NAME[=VALUE], label!=NAME[=VALUE], dangling=true|false (false as --all).")]
pub(crate) struct Prune {
    /// Remove all images that no container uses, not only those without a name
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Remove only what fits; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) filter: Vec<String>,

    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Remove volumes too, of which kiln keeps none
    #[arg(long)]
    pub(crate) volumes: bool,
}

/// Verify every object of the store against its digest
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln system check")]
pub(crate) struct Check {}

/// Show how kiln works on this machine, and why
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln info
  kiln info -f json")]
pub(crate) struct Info {
    #[command(flatten)]
    pub(crate) format: DocumentFormat,
}

/// Show the version
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln version
  kiln version -f json")]
pub(crate) struct Version {
    #[command(flatten)]
    pub(crate) format: DocumentFormat,
}
