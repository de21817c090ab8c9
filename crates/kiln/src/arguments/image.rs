//! Commands on images.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DocumentFormat, RowFormat};

/// List images
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln images
  kiln images 'app:*'
  kiln images --filter dangling=true -q
  kiln images --format json

Filters: dangling=true|false, label=NAME[=VALUE], before=IMAGE, since=IMAGE, reference=PATTERN, until=TIME.
Fields: .ID .Repository .Tag .Digest .CreatedSince .CreatedAt .Size .VirtualSize .SharedSize .UniqueSize .Containers")]
pub(crate) struct List {
    /// Show images that only serve as parents too, of which kiln makes none
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Show digests that images have in registries, of which kiln knows none yet
    #[arg(long)]
    pub(crate) digests: bool,

    /// Show only what fits; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) filter: Vec<String>,

    #[command(flatten)]
    pub(crate) format: RowFormat,

    /// Show IDs in full
    #[arg(long)]
    pub(crate) no_trunc: bool,

    /// Show only IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Show only images of this name; * and ? match within a part of it
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(crate) reference: Option<String>,
}

/// Show how an image came to be, step by step
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln history app
  kiln history --no-trunc app
  kiln history -H=false --format json app

Fields: .ID .CreatedSince .CreatedAt .CreatedBy .Size .Comment")]
pub(crate) struct History {
    #[command(flatten)]
    pub(crate) format: RowFormat,

    /// Show ages and rounded sizes; =false for times and bytes
    #[arg(
        short = 'H',
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_name = "BOOL",
        hide_default_value = true,
        hide_possible_values = true,
    )]
    pub(crate) human: bool,

    /// Show everything in full
    #[arg(long)]
    pub(crate) no_trunc: bool,

    /// Show only IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Image: NAME, NAME:TAG or an ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

/// Show all that is known about images, as JSON
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln inspect app
  kiln inspect -f '{{.RootFS.Layers}}' app
  kiln inspect -f '{{json .Config}}' app | jq")]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) format: DocumentFormat,

    /// Look only for things of this kind
    #[arg(long = "type", value_name = "KIND")]
    pub(crate) kind: Option<ObjectKind>,

    /// Names or IDs
    #[arg(value_name = "NAME|ID", required = true)]
    pub(crate) names: Vec<String>,
}

/// What `inspect` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectKind {
    /// Images.
    Image,
    /// Containers, of which none outlives its command.
    Container,
}

/// Show all that is known about images, as JSON
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln image inspect app
  kiln image inspect --format '{{.Id}}' app base")]
pub(crate) struct InspectImage {
    #[command(flatten)]
    pub(crate) format: DocumentFormat,

    /// Images: NAME, NAME:TAG or an ID
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

/// Show what differs between the files of two images
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln image diff app:1 app:2

A: only in the second, D: only in the first, C: differs.")]
pub(crate) struct Diff {
    /// The image to start from
    #[arg(value_name = "IMAGE")]
    pub(crate) from: String,

    /// The image to arrive at
    #[arg(value_name = "IMAGE")]
    pub(crate) to: String,
}

/// List the files of an image
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln image files app
  kiln image files app /etc

Times are in UTC; one that no calendar has is shown as seconds since 1970: @1000000000000.")]
pub(crate) struct Files {
    /// Image: NAME, NAME:TAG or an ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// Directory or file to list [default: /]
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
}

/// Print a file of an image
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln image cat app /etc/os-release")]
pub(crate) struct Cat {
    /// Image: NAME, NAME:TAG or an ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// The file
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
}

/// Write the files of an image to a directory
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln image unpack app ./rootfs

For a user with ranges in /etc/subuid, files get the owners that the image gives them, out of these ranges, and directories
of theirs cannot be removed by rm alone. Any image with an rm in it does:
  kiln run --rm -v \"$PWD:/w\" IMAGE rm -rf /w/rootfs")]
pub(crate) struct Unpack {
    /// Image: NAME, NAME:TAG or an ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// Directory, which must be empty or not there
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// Give an image another name
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln tag app localhost:5000/team/app:1")]
pub(crate) struct Tag {
    /// Image: NAME, NAME:TAG or an ID
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    pub(crate) source: String,

    /// The new name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    pub(crate) target: String,
}

/// Remove names of images, and images with their last name
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln rmi app:1 app:2
  kiln rmi -f 0f7396cbbc2a

Of an image that a container runs from, the names go at once; the files stay as long as it needs them.")]
pub(crate) struct Remove {
    /// Remove an image by its ID though it has several names; exit with 0 if there is none
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Keep parents without a name, of which kiln makes none
    #[arg(long)]
    pub(crate) no_prune: bool,

    /// Images: NAME, NAME:TAG or an ID
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

/// Load images from an archive or an OCI directory
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln load -i app.tar
  zcat app.tar.gz | kiln load

Archives of docker save (old and new) and OCI archives are told apart by their content; so is their compression.")]
pub(crate) struct Load {
    /// Archive, or directory of an OCI layout [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,

    /// Leave out progress
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Do not unpack layers now; the first command that needs the files does
    #[arg(long)]
    pub(crate) no_unpack: bool,
}

/// Write images to an archive or an OCI directory
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln save -o app.tar app
  kiln save app:1 app:2 | ssh host docker load
  kiln save --format oci-dir -o layout app")]
pub(crate) struct Save {
    /// Where to write to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Form of the archive
    #[arg(long, value_name = "FORM", default_value = "docker-archive")]
    pub(crate) format: ArchiveForm,

    /// Compression of layers that kiln made; others go out as they came. Docker before 23 cannot load zstd
    #[arg(long, value_name = "METHOD", default_value = "none")]
    pub(crate) compression: Compression,

    /// Images: NAME, NAME:TAG or an ID
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

/// What `save` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchiveForm {
    /// A tar archive that is an OCI layout and has docker's manifest.json.
    DockerArchive,
    /// A tar archive of an OCI layout.
    OciArchive,
    /// A directory with an OCI layout.
    OciDir,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Make an image of one layer from a tar archive of a root file system
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln import rootfs.tar.gz base:1
  kiln import --change 'ENV A=b' rootfs.tar base
  kiln import --platform linux/arm64 rootfs.tar base:arm64
  tar c -C rootfs . | kiln import - base")]
pub(crate) struct Import {
    /// Dockerfile instruction to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR and the like; may be repeated
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<String>,

    /// Comment in the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,

    /// What the files run on, OS/ARCHITECTURE[/VARIANT] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// Archive, or - for standard input
    #[arg(value_name = "FILE|-")]
    pub(crate) file: PathBuf,

    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(crate) reference: Option<String>,
}

impl Import {
    /// The platform, if one was named. An empty name is none, as in Docker.
    pub(crate) fn platform(&self) -> Option<&str> {
        self.platform.as_deref().filter(|platform| !platform.is_empty())
    }
}

/// Remove images without a name
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  kiln image prune
  kiln image prune -a -f --filter until=24h

Filters: until=TIME, label=NAME[=VALUE], label!=NAME[=VALUE], dangling=true|false (false as --all).")]
pub(crate) struct Prune {
    /// Remove all images that no container uses
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Remove only what fits; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) filter: Vec<String>,

    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}
