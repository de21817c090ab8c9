//! What `build` builds from: a directory, or what comes on standard input, from the web or from a git repository. That is
//! put into a directory that goes with the build.

use std::io::{self, Cursor, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kiln_build::{ContextKind, GivenModes};
use kiln_dockerfile::{GitSource, MAX_SOURCE_BYTES, SourceKind, context_kind};
use kiln_layer::archive::{Archive, Entry};
use kiln_layer::index::LinkTarget;
use kiln_layer::{Compression, LayerIndex, Options, Ownership, Unpack, Whiteouts, walk};
use kiln_remote::{Answer, Client, Download};
use kiln_store::Lease;
use kiln_sys::root::Root;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::failure::{Failure, Kind};
use crate::session::{self, Files};

/// How much is looked at to tell an archive from a Dockerfile.
const PEEK: u64 = 64 << 10;
const STANDARD_INPUT: &str = "-";
/// The same in messages.
const INPUT: &str = "standard input";
/// Where that has no context.
const HINT: &str = "name a directory, or pipe an archive or a Dockerfile into `kiln build -`";
/// Where it has no Dockerfile.
const DOCKERFILE_HINT: &str = "name a file with -f, or pipe a Dockerfile into it";
/// All of a context is 0:0 in the image, and nobody's device.
const OWNERSHIP: Ownership = Ownership::Modes;
const NOWHERE: &str = "it is a symbolic link to nothing in its directory";

/// A context that is at hand, and the Dockerfile and ignore file that belong to it.
pub(crate) struct Inputs {
    pub(crate) context: PathBuf,
    pub(crate) kind: ContextKind,
    pub(crate) dockerfile: Vec<u8>,
    /// In messages.
    pub(crate) dockerfile_name: String,
    pub(crate) ignore: Vec<u8>,
    /// Holds what was unpacked.
    _lease: Option<Lease>,
}

/// Where the Dockerfile is read from.
enum Place {
    /// A path of this machine, and the context's ignore file beside it.
    Machine(PathBuf),
    /// A path inside of what was unpacked, and what that was.
    Inside(PathBuf, String),
    /// It was all that came.
    Here(Vec<u8>),
    StandardInput,
}

impl Place {
    fn inside(file: Option<&Path>, origin: &str) -> Self {
        Self::Inside(file.unwrap_or(Path::new("Dockerfile")).to_path_buf(), origin.to_owned())
    }
}

/// Brings the context here, and reads the Dockerfile.
pub(crate) fn open(root: Option<&Path>, context: &Path, file: Option<&Path>) -> Result<Inputs> {
    let from_input = file.is_some_and(|file| file.as_os_str() == STANDARD_INPUT);
    if from_input && context.as_os_str() != STANDARD_INPUT && io::stdin().is_terminal() {
        let failure = Failure::new(Kind::Usage, "no Dockerfile to build from: standard input is a terminal");
        return Err(failure.hint(DOCKERFILE_HINT).into());
    }
    let remote = context.to_str().map_or(SourceKind::Path, context_kind);
    if context.as_os_str() == STANDARD_INPUT {
        if from_input {
            let message = "cannot take both the context and the Dockerfile from standard input";
            return Err(Failure::new(Kind::Usage, message).into());
        }
        if io::stdin().is_terminal() {
            let failure = Failure::new(Kind::Usage, "no context to build from: standard input is a terminal");
            return Err(failure.hint(HINT).into());
        }
        return unpack(root, io::stdin(), INPUT, file);
    }
    if matches!(remote, SourceKind::Path) || context.is_dir() {
        check_directory(context)?;
        let place = match file {
            Some(_) if from_input => Place::StandardInput,
            Some(file) => Place::Machine(file.to_path_buf()),
            None => Place::Machine(context.join("Dockerfile")),
        };
        return read(context.to_path_buf(), ContextKind::Lasting, place, None);
    }
    let url = context.to_str().unwrap_or_default();
    if let SourceKind::Git(source) = remote {
        return check_out(root, &source, from_input, file);
    }
    let name = kiln_remote::shown(url);
    let failed = |error| {
        let hint = crate::web::hint(&error);
        not_fetched(hint, error)
    };
    match Client::new(&crate::web::settings()).and_then(|client| client.get(url, None)).map_err(failed)? {
        Answer::Body(download) => unpack(root, Body(*download), &name, file),
        Answer::Unchanged => anyhow::bail!("{name} says that it has not changed, and nobody asked"),
    }
}

/// A context of this machine is a directory.
fn check_directory(context: &Path) -> Result<()> {
    let shown = context.display();
    let error: io::Error = match rustix::fs::stat(context) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => return Ok(()),
        Ok(_) => Errno::NOTDIR.into(),
        Err(error) => error.into(),
    };
    let failure = Failure::new(Kind::Input, format!("cannot build from {shown}: {error}"));
    if !context.is_file() {
        return Err(match context.to_str().and_then(|text| text.split_once("://")) {
            Some(_) => failure.hint("a context comes over http or https, or from git over these or git://"),
            None => failure.hint("the context is a directory, an address, or - for standard input"),
        }
        .into());
    }
    let mut first = Vec::new();
    fs_err::File::open(context)?.take(PEEK).read_to_end(&mut first)?;
    let parent = context.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Err(failure
        .hint(if is_archive(&first) {
            format!("an archive comes on standard input: kiln build - < {shown}")
        } else {
            format!(
                "-f names the Dockerfile, and the context is a directory: kiln build -f {shown} {}",
                parent.display()
            )
        })
        .into())
}

/// A context that could not be brought here. What is behind it names the address.
fn not_fetched(hint: Option<String>, error: impl Into<anyhow::Error>) -> Failure {
    let failure = Failure::new(Kind::World, "cannot fetch the build context").caused_by(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A context that comes as a stream: an archive, or a Dockerfile alone.
fn unpack(
    root: Option<&Path>,
    mut stream: impl Read + Send,
    name: &str,
    file: Option<&Path>,
) -> Result<Inputs> {
    let mut first = Vec::new();
    (&mut stream).take(PEEK).read_to_end(&mut first).with_context(|| format!("cannot read {name}"))?;
    if first.is_empty() {
        let message = format!("cannot build from {name}: it is empty: expected an archive or a Dockerfile");
        let failure = Failure::new(Kind::Input, message);
        return Err(if name == INPUT { failure.hint(HINT) } else { failure }.into());
    }
    let lease = session::open(root, Files::Untouched)?.lease("build context")?;
    let directory = lease.fresh_directory("context")?;
    let mut modes = GivenModes::new();
    let place = if is_archive(&first) {
        let root = Root::open(&directory)?;
        let unpack = Unpack { root: &root, whiteouts: Whiteouts::Refuse, ownership: OWNERSHIP, clamp: None };
        let options = Options { unpack: Some(unpack), ..Options::default() };
        let unpacked = walk(Cursor::new(first).chain(stream), &options)
            .map_err(|error| Failure::new(Kind::Input, format!("cannot unpack {name}")).caused_by(error))?;
        modes = given_modes(&unpacked.index)?;
        match file {
            Some(file) if file.as_os_str() == STANDARD_INPUT => Place::StandardInput,
            file => Place::inside(file, name),
        }
    } else {
        if file.is_some() {
            let message = format!("{name} is a Dockerfile, and --file names another");
            return Err(Failure::new(Kind::Usage, message).into());
        }
        (&mut stream)
            .take(MAX_SOURCE_BYTES as u64)
            .read_to_end(&mut first)
            .with_context(|| format!("cannot read {name}"))?;
        Place::Here(first)
    };
    read(directory, ContextKind::Passing { modes: Arc::new(modes) }, place, Some(lease))
}

/// The modes of an archive that the files do not have, since they could not be read with them.
fn given_modes(index: &LayerIndex) -> Result<GivenModes> {
    let mut modes = GivenModes::new();
    for entry in index.tree() {
        let entry = entry?;
        let file = match entry.link_target() {
            LinkTarget::Entry(number) => index.entry(number)?,
            LinkTarget::None | LinkTarget::Lower => entry,
        };
        if OWNERSHIP.mode(file.kind(), file.mode()) != file.mode() {
            modes.insert(entry.path().to_vec(), file.mode());
        }
    }
    Ok(modes)
}

/// A context that is a directory of a git repository.
fn check_out(
    root: Option<&Path>,
    source: &GitSource,
    from_input: bool,
    file: Option<&Path>,
) -> Result<Inputs> {
    let lease = session::open(root, Files::Untouched)?.lease("build context")?;
    let place = lease.fresh_directory("context")?;
    let failed = |error| {
        let hint = matches!(error, kiln_build::Error::NoGit).then(|| crate::web::NO_GIT.to_owned());
        not_fetched(hint, error)
    };
    let directory = kiln_build::check_out(&crate::web::git(), source, &place).map_err(failed)?;
    let place = if from_input {
        Place::StandardInput
    } else {
        Place::inside(file, &kiln_remote::shown(&source.remote))
    };
    read(directory, ContextKind::Passing { modes: Arc::default() }, place, Some(lease))
}

fn is_archive(first: &[u8]) -> bool {
    Compression::detect(first) != Compression::Plain
        || Archive::new(first).next_entry(&mut Entry::default()).unwrap_or(false)
}

fn read(context: PathBuf, kind: ContextKind, place: Place, lease: Option<Lease>) -> Result<Inputs> {
    let mut name = "Dockerfile".to_owned();
    let mut own = None;
    let dockerfile = match place {
        Place::Here(bytes) => bytes,
        Place::StandardInput => {
            let mut bytes = Vec::new();
            io::stdin().lock().take(MAX_SOURCE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
            if bytes.is_empty() {
                return Err(no_dockerfile("of standard input: it is empty").hint(DOCKERFILE_HINT).into());
            }
            bytes
        }
        Place::Machine(path) => {
            let (directory, file) = parted(&path)?;
            let shown = path.display().to_string();
            let root =
                Root::open(directory).map_err(|error| no_dockerfile(&shown).caused_by(error.source))?;
            let (bytes, found) = dockerfile_in(&root, Path::new(file), &shown)?;
            own = Some((root, found.clone()));
            name = found.to_string_lossy().into_owned();
            bytes
        }
        Place::Inside(path, origin) => {
            let root = Root::open(&context)?;
            let shown = match path.to_str() {
                Some("Dockerfile") => format!("of {origin}"),
                _ => format!("{} of {origin}", path.display()),
            };
            let (bytes, found) = dockerfile_in(&root, &path, &shown)?;
            if let Some(last) = found.file_name() {
                name = last.to_string_lossy().into_owned();
            }
            own = Some((root, found));
            bytes
        }
    };
    let ignore = ignore_file(&context, own.as_ref().map(|(root, path)| (root, path.as_path())))?;
    Ok(Inputs { context, kind, dockerfile, dockerfile_name: name, ignore, _lease: lease })
}

/// The directory and the name of a path that names a file.
fn parted(path: &Path) -> Result<(&Path, &std::ffi::OsStr)> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let name = path
        .file_name()
        .ok_or_else(|| no_dockerfile(&path.display().to_string()).hint("it names no file"))?;
    Ok((parent, name))
}

fn no_dockerfile(shown: &str) -> Failure {
    Failure::new(Kind::Input, format!("cannot read the Dockerfile {shown}"))
}

/// A Dockerfile and where it was found: where `Dockerfile` is missing, `dockerfile` does. Symbolic links are followed
/// inside of its directory, as buildx and BuildKit do; pipes and devices are never waited for.
fn dockerfile_in(root: &Root, path: &Path, shown: &str) -> Result<(Vec<u8>, PathBuf)> {
    let failed = |error: io::Error| {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let failure = no_dockerfile(shown).caused_by(error);
        // What it is in the end, links to elsewhere followed: `<(command)` of a shell is such a link, to a pipe.
        let found = rustix::fs::statat(root.directory(), path, AtFlags::empty())
            .map(|found| FileType::from_raw_mode(found.st_mode));
        match (root.resolve_link(path), found) {
            (_, Ok(kind)) if kind != FileType::RegularFile => not_regular(kind, failure, shown),
            (Ok(_), _) if root.resolve(path).is_err() => failure.hint(NOWHERE),
            (Err(_), _) if is_missing => failure.hint("-f names another file, or - for standard input"),
            (_, Ok(kind)) => not_regular(kind, failure, shown),
            (_, Err(_)) => failure,
        }
    };
    let small =
        path.file_name().filter(|name| *name == "Dockerfile").map(|_| path.with_file_name("dockerfile"));
    match (root.resolve_link(path), small) {
        (Err(_), Some(small)) if root.resolve_link(&small).is_ok() => {
            read_in(root, &small).map(|bytes| (bytes, small)).map_err(|error| failed(error).into())
        }
        _ => {
            read_in(root, path).map(|bytes| (bytes, path.to_path_buf())).map_err(|error| failed(error).into())
        }
    }
}

/// Says what stands in a Dockerfile's place.
fn not_regular(kind: FileType, failure: Failure, shown: &str) -> Failure {
    match kind {
        FileType::RegularFile => failure,
        FileType::Directory => failure.hint(format!("-f names the file itself, as in -f {shown}/Dockerfile")),
        FileType::Fifo => no_dockerfile(&format!("{shown}: it is a pipe"))
            .hint(format!("standard input can be one: kiln build -f - CONTEXT < {shown}")),
        _ => no_dockerfile(&format!("{shown}: it is no regular file")),
    }
}

/// A file inside of a directory; the error does not name it.
fn read_in(root: &Root, path: &Path) -> io::Result<Vec<u8>> {
    let file = root.open_file(path).map_err(|error| error.source)?;
    let mut bytes = Vec::new();
    (&file).take(MAX_SOURCE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `<Dockerfile>.dockerignore` if it is there, else the context's `.dockerignore`. Symbolic links are followed inside the
/// directory that it is in; one that cannot be read is an error, since without it secrets would be copied.
fn ignore_file(context: &Path, dockerfile: Option<(&Root, &Path)>) -> Result<Vec<u8>> {
    if let Some((root, path)) = dockerfile {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        if let Some(bytes) = ignore_in(root, Path::new(&name))? {
            return Ok(bytes);
        }
    }
    // Where there is no context, steps that need one say so.
    let Ok(root) = Root::open(context) else { return Ok(Vec::new()) };
    Ok(ignore_in(&root, Path::new(".dockerignore"))?.unwrap_or_default())
}

fn ignore_in(root: &Root, path: &Path) -> Result<Option<Vec<u8>>> {
    if root.resolve_link(path).is_err() {
        return Ok(None);
    }
    let shown = || format!("cannot read {}", root.directory().name().join(path).display());
    let bytes = read_in(root, path).map_err(|error| {
        let failure = Failure::new(Kind::Input, shown()).caused_by(error);
        match root.resolve(path) {
            Ok(_) => failure,
            Err(_) => failure.hint(NOWHERE),
        }
    })?;
    if bytes.len() > MAX_SOURCE_BYTES {
        let message = format!("{}: it has more than {MAX_SOURCE_BYTES} bytes", shown());
        return Err(Failure::new(Kind::Input, message).into());
    }
    Ok(Some(bytes))
}

/// A download as it is read.
struct Body(Download);

impl Read for Body {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_ignore(context: &Path) -> Result<Vec<u8>> {
        ignore_file(context, None)
    }

    fn link(target: impl AsRef<Path>, path: &Path) {
        let _ = fs_err::remove_file(path);
        fs_err::os::unix::fs::symlink(target, path).unwrap();
    }

    fn pipe(path: &Path) {
        let _ = fs_err::remove_file(path);
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    }

    #[test]
    fn an_ignore_file_is_read_or_the_build_ends() {
        let host = tempfile::tempdir().unwrap();
        let context = host.path();
        let file = context.join(".dockerignore");
        assert_eq!(read_ignore(context).unwrap(), b"");
        fs_err::write(context.join("real"), "secret").unwrap();
        link("real", &file);
        assert_eq!(read_ignore(context).unwrap(), b"secret");
        for target in ["missing", "/etc/hostname", "../../../../../../../etc/hostname", ".dockerignore"] {
            link(target, &file);
            assert!(read_ignore(context).is_err(), "{target}");
        }
        pipe(&file);
        assert!(read_ignore(context).is_err());
        link("/dev/zero", &file);
        assert!(read_ignore(context).is_err());
    }

    #[test]
    fn a_dockerfile_is_a_file_of_its_directory() {
        let host = tempfile::tempdir().unwrap();
        let context = host.path().join("context");
        fs_err::create_dir_all(context.join("docker")).unwrap();
        fs_err::write(host.path().join("outside"), "FROM outside").unwrap();
        fs_err::write(context.join("docker/real"), "FROM inside").unwrap();
        let file = context.join("Dockerfile");
        let found = |file: Option<&Path>| {
            open(None, &context, file).map(|inputs| String::from_utf8(inputs.dockerfile).unwrap())
        };
        link("docker/real", &file);
        assert_eq!(found(None).unwrap(), "FROM inside");
        link("/docker/real", &file);
        assert_eq!(found(None).unwrap(), "FROM inside");
        let outside = host.path().join("outside");
        let absolute = outside.display().to_string();
        for target in ["../outside", &absolute, "/etc/passwd", "/dev/zero", "Dockerfile", "docker"] {
            link(target, &file);
            assert!(found(None).is_err(), "{target}");
        }
        pipe(&file);
        assert!(found(None).is_err());
        // What the user names is the user's to say: only its own directory counts.
        assert_eq!(found(Some(&outside)).unwrap(), "FROM outside");
        fs_err::remove_file(&file).unwrap();
        assert!(found(None).is_err());
        fs_err::write(context.join("dockerfile"), "FROM small").unwrap();
        assert_eq!(found(None).unwrap(), "FROM small");
        assert!(found(Some(&context.join("nosuch"))).is_err());
    }

    #[test]
    fn archives_are_told_from_dockerfiles() {
        assert!(!is_archive(b"FROM scratch\n"));
        assert!(!is_archive(&[0; 600]));
        assert!(is_archive(&[0x1f, 0x8b, 8, 0]));
        assert!(is_archive(&[0x28, 0xb5, 0x2f, 0xfd]));
        let mut tar = vec![0_u8; 512];
        tar[0] = b'f';
        tar[100..108].copy_from_slice(b"0000644\0");
        tar[124..136].copy_from_slice(b"00000000000\0");
        tar[156] = b'0';
        tar[257..263].copy_from_slice(b"ustar\0");
        tar[148..156].fill(b' ');
        let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(is_archive(&tar));
    }
}
