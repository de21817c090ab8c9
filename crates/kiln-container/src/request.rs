//! What is asked for: an image and what differs from its config.

use std::path::{Component, Path, PathBuf};

use kiln_oci::ImageId;

/// The program that a container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Entrypoint {
    /// The image's ENTRYPOINT.
    #[default]
    Image,
    /// None: the command is run by itself. The image's CMD does not count.
    None,
    /// This one. The image's CMD does not count.
    Program(String),
}

/// A change to the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    /// It has this value.
    Set {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// It is not there, even if the image sets it.
    Unset {
        /// Its name.
        name: String,
    },
}

/// Whether a container may write to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// Something of the host, or something empty, that a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// A file or directory of the host; made as a directory if it is missing.
    Host {
        /// Its absolute path on the host.
        source: PathBuf,
        /// Where the container sees it.
        target: PathBuf,
        /// Whether it may be written.
        access: Access,
    },
    /// A directory that goes with the container. It begins with what the image has there.
    Anonymous {
        /// Where the container sees it.
        target: PathBuf,
    },
}

impl Volume {
    /// Where the container sees it.
    #[must_use]
    pub fn target(&self) -> &Path {
        match self {
            Self::Host { target, .. } | Self::Anonymous { target } => target,
        }
    }
}

/// Why a volume cannot be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VolumeError {
    /// Too many or empty parts.
    #[error("invalid volume {0:?}: expected SOURCE:TARGET[:OPTIONS]")]
    Format(String),
    /// Its source is a name.
    #[error(
        "invalid volume {volume:?}: {name:?} names a volume, and kiln has no named volumes; name a path of the host, which begins with / or ."
    )]
    Named {
        /// As it was given.
        volume: String,
        /// The name.
        name: String,
    },
    /// Its target is relative, or the root.
    #[error("invalid volume {volume:?}: the target {target:?} must be an absolute path other than /")]
    Target {
        /// As it was given.
        volume: String,
        /// The target.
        target: String,
    },
    /// An option that is not known.
    #[error("invalid volume {volume:?}: unknown option {option:?}; expected ro, rw, z or Z")]
    Option {
        /// As it was given.
        volume: String,
        /// The option.
        option: String,
    },
    /// Two options say the same or the opposite.
    #[error("invalid volume {volume:?}: several options set its {subject}; expected one")]
    Repeated {
        /// As it was given.
        volume: String,
        /// What they are about.
        subject: &'static str,
    },
}

/// Reads `SOURCE:TARGET[:OPTIONS]` or `TARGET`; a source that begins with a dot is below `current`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_volume(text: &str, current: &Path) -> std::result::Result<Volume, VolumeError> {
    let volume = || text.to_owned();
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, options] if !options.is_empty() => (Some(source), target, options),
        _ => return Err(VolumeError::Format(volume())),
    };
    let is_root = target.split('/').all(|part| part.is_empty() || part == ".");
    if !target.starts_with('/') || is_root {
        return Err(VolumeError::Target { volume: volume(), target: target.to_owned() });
    }
    let mut access = Access::ReadWrite;
    let mut subjects = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let subject = match option {
            "ro" | "rw" => "access",
            // Docker's default, and the only propagation there is here.
            "rprivate" => "propagation",
            // Labels of SELinux, which kiln's containers have none of, and how Docker Desktop shares with its machine:
            // nothing, as in Docker where there is neither.
            "z" | "Z" => "label",
            "consistent" | "cached" | "delegated" => "consistency",
            _ => return Err(VolumeError::Option { volume: volume(), option: option.to_owned() }),
        };
        if subjects.contains(&subject) {
            return Err(VolumeError::Repeated { volume: volume(), subject });
        }
        subjects.push(subject);
        if option == "ro" {
            access = Access::ReadOnly;
        }
    }
    let target = PathBuf::from(target);
    match source {
        None => Ok(Volume::Anonymous { target }),
        Some("") => Err(VolumeError::Format(volume())),
        Some(source) if source.starts_with('/') => {
            Ok(Volume::Host { source: cleaned(Path::new(source)), target, access })
        }
        Some(source) if source.starts_with('.') => {
            Ok(Volume::Host { source: cleaned(&current.join(source)), target, access })
        }
        Some(name) => Err(VolumeError::Named { volume: volume(), name: name.to_owned() }),
    }
}

/// Without `.` and `..`, as written: Docker makes the directory that this names, and none on the way to a `..`.
fn cleaned(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub image: ImageId,
    /// The command, or the arguments of the entrypoint; empty for the image's own.
    pub command: Vec<String>,
    /// The entrypoint.
    pub entrypoint: Entrypoint,
    /// Changes to the environment, in order.
    pub environment: Vec<Variable>,
    /// What is mounted.
    pub volumes: Vec<Volume>,
    /// Where it starts instead of the image's WORKDIR.
    pub directory: Option<String>,
    /// Who it is instead of the image's USER.
    pub user: Option<String>,
    /// The host's `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Volume) {
        assert_eq!(parse_volume(text, Path::new("/here")), Ok(expect));
    }

    fn host(source: &str, target: &str, access: Access) -> Volume {
        Volume::Host { source: source.into(), target: target.into(), access }
    }

    #[test]
    fn volumes() {
        check("/a:/b", host("/a", "/b", Access::ReadWrite));
        check("/a:/b:ro", host("/a", "/b", Access::ReadOnly));
        check("/a:/b:rw,rprivate", host("/a", "/b", Access::ReadWrite));
        check("/a:/b:z", host("/a", "/b", Access::ReadWrite));
        check("/a:/b:Z", host("/a", "/b", Access::ReadWrite));
        check("/a:/b:ro,z", host("/a", "/b", Access::ReadOnly));
        check("/a:/b:z,ro", host("/a", "/b", Access::ReadOnly));
        check("/a:/b:cached", host("/a", "/b", Access::ReadWrite));
        check("./a:/b", host("/here/a", "/b", Access::ReadWrite));
        check("../a:/b", host("/a", "/b", Access::ReadWrite));
        check("/nosuch/../tmp/./x/:/b", host("/tmp/x", "/b", Access::ReadWrite));
        check("/../..:/b", host("/", "/b", Access::ReadWrite));
        check("/b", Volume::Anonymous { target: "/b".into() });
    }

    #[test]
    fn refused_volumes() {
        #[track_caller]
        fn check(text: &str, expect: &str) {
            let error = parse_volume(text, Path::new("/here")).unwrap_err();
            assert_eq!(error.to_string(), expect);
        }
        check(
            "data:/b",
            "invalid volume \"data:/b\": \"data\" names a volume, and kiln has no named volumes; \
             name a path of the host, which begins with / or .",
        );
        check("/a:b", "invalid volume \"/a:b\": the target \"b\" must be an absolute path other than /");
        check("/a:/", "invalid volume \"/a:/\": the target \"/\" must be an absolute path other than /");
        check("/a:/b:x", "invalid volume \"/a:/b:x\": unknown option \"x\"; expected ro, rw, z or Z");
        check("/a:/b:z,x", "invalid volume \"/a:/b:z,x\": unknown option \"x\"; expected ro, rw, z or Z");
        check("/a:/b:rw,ro", "invalid volume \"/a:/b:rw,ro\": several options set its access; expected one");
        check("/a:/b:z,Z", "invalid volume \"/a:/b:z,Z\": several options set its label; expected one");
        check(":/b", "invalid volume \":/b\": expected SOURCE:TARGET[:OPTIONS]");
        check("/a:/b:ro:x", "invalid volume \"/a:/b:ro:x\": expected SOURCE:TARGET[:OPTIONS]");
    }
}
