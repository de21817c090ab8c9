//! `RUN --mount` and `RUN --device`: comma-separated options, typed.

use crate::error::Error;
use crate::expand::Expansion;
use crate::source::Word;
use crate::suggest;
use crate::value::{parse_bool, parse_size};

/// A `--mount` as written. Its options may contain variables, so it is read when these are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlag {
    /// The whole value.
    pub value: Word,
    /// `from=` as written: a stage's name, or an image. Never expanded.
    pub from: Option<String>,
}

/// `type=`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountType {
    /// A read-only or throw-away view of the context, a stage or an image.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret's file or variable.
    Secret,
    /// An agent's socket.
    Ssh,
}

impl MountType {
    const NAMES: [(&'static str, Self); 5] = [
        ("bind", Self::Bind),
        ("cache", Self::Cache),
        ("tmpfs", Self::Tmpfs),
        ("secret", Self::Secret),
        ("ssh", Self::Ssh),
    ];

    /// The name in `type=`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// `sharing=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All at once.
    Shared,
    /// A new directory for a second writer.
    Private,
    /// One at a time.
    Locked,
}

/// A mount with its options read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// `type=`
    pub mount_type: MountType,
    /// `from=`
    pub from: Option<String>,
    /// `source=`, `src=`; empty if not given.
    pub source: String,
    /// `target=`, `dst=`, `destination=`; empty if not given.
    pub target: String,
    /// `ro`, `rw` or the type's default: caches and tmpfs are writable, the others are not.
    pub read_only: bool,
    /// `size=` of a tmpfs in bytes, 0 for none.
    pub size_limit: i64,
    /// `id=`
    pub id: Option<String>,
    /// `sharing=`; not given means shared.
    pub sharing: Option<Sharing>,
    /// `required` of secrets and agents.
    pub required: bool,
    /// `env=` of a secret; an empty name means the secret's id.
    pub env: Option<String>,
    /// `mode=`
    pub mode: Option<u32>,
    /// `uid=`
    pub uid: Option<u32>,
    /// `gid=`
    pub gid: Option<u32>,
}

const MOUNT_KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountFlag {
    /// Checks what can be checked without knowing variables.
    pub(crate) fn new(value: Word) -> Result<Self, Error> {
        let fail = |reason: String| Error::Mount { value: value.text.clone(), reason };
        let mut from = None;
        for field in split_fields(&value.text).map_err(fail)? {
            let Some((key, field_value)) = field.split_once('=') else { continue };
            if key.eq_ignore_ascii_case("from") {
                if field_value.find('$').is_some_and(|at| at + 1 != field_value.len()) {
                    let reason = "'from' doesn't support variable expansion, define alias stage instead";
                    return Err(fail(reason.to_owned()));
                }
                from = Some(field_value.to_owned()).filter(|from| !from.is_empty());
            }
        }
        Ok(Self { value, from })
    }

    /// Reads the options, each value expanded by `expand`. The second part is the report of each expansion.
    ///
    /// # Errors
    /// [`Error::Mount`] for unknown keys, bad values and combinations; those of `expand`.
    pub fn resolve(
        &self,
        mut expand: impl FnMut(&str) -> Result<Expansion, Error>,
    ) -> Result<(Mount, Vec<Expansion>), Error> {
        let fail = |reason: String| Error::Mount { value: self.value.text.clone(), reason };
        let mut builder = MountBuilder::default();
        let mut reports = Vec::new();
        for field in split_fields(&self.value.text).map_err(fail)? {
            match field.split_once('=') {
                None => builder.word(&field).map_err(fail)?,
                Some((key, value)) => {
                    let expansion = expand(value)?;
                    builder.pair(&key.to_lowercase(), &expansion.text, &field).map_err(fail)?;
                    reports.push(expansion);
                }
            }
        }
        Ok((builder.finish().map_err(fail)?, reports))
    }
}

#[derive(Default)]
struct MountBuilder {
    mount: Mount,
    read_only: Option<bool>,
}

impl MountBuilder {
    fn word(&mut self, field: &str) -> Result<(), String> {
        match field.to_lowercase().as_str() {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => {
                self.only_for("required", &[MountType::Secret, MountType::Ssh])?;
                self.mount.required = true;
            }
            _ => return Err(format!("field '{field}' must be a key=value pair")),
        }
        Ok(())
    }

    fn only_for(&self, key: &str, types: &[MountType]) -> Result<(), String> {
        if types.contains(&self.mount.mount_type) {
            return Ok(());
        }
        Err(format!("unexpected key '{key}' for mount type '{}'", self.mount.mount_type.name()))
    }

    fn pair(&mut self, key: &str, value: &str, field: &str) -> Result<(), String> {
        let bad = || format!("invalid value for {key}: {value}");
        let mount = &mut self.mount;
        match key {
            "type" => {
                let found = MountType::NAMES.iter().find(|(name, _)| *name == value.to_lowercase());
                mount.mount_type = found.map(|(_, kind)| *kind).ok_or_else(|| {
                    with_near(
                        format!("unsupported mount type {value:?}"),
                        value,
                        MountType::NAMES.map(|(name, _)| name),
                    )
                })?;
            }
            "from" => mount.from = Some(value.to_owned()).filter(|from| !from.is_empty()),
            "source" | "src" => value.clone_into(&mut mount.source),
            "target" | "dst" | "destination" => value.clone_into(&mut mount.target),
            "readonly" | "ro" => self.read_only = Some(parse_bool(value).ok_or_else(bad)?),
            "readwrite" | "rw" => self.read_only = Some(!parse_bool(value).ok_or_else(bad)?),
            "required" => {
                self.only_for(key, &[MountType::Secret, MountType::Ssh])?;
                self.mount.required = parse_bool(value).ok_or_else(bad)?;
            }
            "size" => {
                self.only_for(key, &[MountType::Tmpfs])?;
                self.mount.size_limit = parse_size(value).map_err(|_| bad())?;
            }
            "id" => mount.id = Some(value.to_owned()).filter(|id| !id.is_empty()),
            "sharing" => {
                mount.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => {
                        let message = format!("unsupported sharing value {value:?}");
                        return Err(with_near(message, value, ["shared", "private", "locked"]));
                    }
                });
            }
            "mode" => mount.mode = Some(u32::from_str_radix(unsigned(value), 8).map_err(|_| bad())?),
            "uid" => mount.uid = Some(unsigned(value).parse().map_err(|_| bad())?),
            "gid" => mount.gid = Some(unsigned(value).parse().map_err(|_| bad())?),
            "env" => mount.env = Some(value.to_owned()),
            _ => return Err(with_near(format!("unexpected key '{key}' in '{field}'"), key, MOUNT_KEYS)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Mount, String> {
        let mut mount = self.mount;
        let kind = mount.mount_type;
        if matches!(kind, MountType::Bind | MountType::Tmpfs) {
            for (key, given) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
                if given.is_some() {
                    return Err(format!("{key} not allowed for {:?} type mounts", kind.name()));
                }
            }
        }
        mount.read_only = self.read_only.unwrap_or(!matches!(kind, MountType::Cache | MountType::Tmpfs));
        if kind == MountType::Secret {
            if mount.from.is_some() {
                return Err("secret mount should not have a from".to_owned());
            }
            if mount.sharing.is_some() {
                return Err("secret mount should not define sharing".to_owned());
            }
            if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_none() {
                return Err("secret mount needs one of id, source, target".to_owned());
            }
            if !mount.source.is_empty() && mount.id.is_some() {
                return Err("secret mount: both source and id can't be set".to_owned());
            }
        }
        if mount.sharing.is_some() && kind != MountType::Cache {
            return Err(format!("sharing is for cache mounts only, not for {}", kind.name()));
        }
        Ok(mount)
    }
}

/// Rust's number parsers take a leading `+`, Go's `ParseUint` does not.
fn unsigned(value: &str) -> &str {
    if value.starts_with('+') { "" } else { value }
}

fn with_near<'c>(message: String, name: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    match suggest::hint(name, candidates) {
        Some(hint) => format!("{message} ({hint})"),
        None => message,
    }
}

/// A `--device` as written, its options read: they know no variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFlag {
    /// The whole value.
    pub value: Word,
    /// The device's name, such as `vendor1.com/device=foo`.
    pub name: String,
    /// `required`
    pub required: bool,
}

impl DeviceFlag {
    pub(crate) fn new(value: Word) -> Result<Self, Error> {
        let fail = |reason: String| Error::Device { value: value.text.clone(), reason };
        let (mut name, mut required) = (String::new(), false);
        for field in split_fields(&value.text).map_err(fail)? {
            let (key, option) =
                field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
            match (key.to_lowercase().as_str(), option) {
                ("required", None) => required = true,
                ("required", Some(option)) => {
                    required = parse_bool(option)
                        .ok_or_else(|| fail(format!("invalid value for required: {option}")))?;
                }
                ("name", Some(_)) if !name.is_empty() => {
                    return Err(fail(format!("name already set to {name}")));
                }
                ("name", Some(option)) => option.clone_into(&mut name),
                (_, _) if name.is_empty() => name.clone_from(&field),
                (_, None) => return Err(fail(format!("field '{field}' must be a key=value pair"))),
                (key, Some(_)) => {
                    let message = format!("unexpected key '{key}' in '{field}'");
                    return Err(fail(with_near(message, key, ["name", "required"])));
                }
            }
        }
        Ok(Self { value, name, required })
    }
}

/// One line of comma-separated values: a field may be quoted, `""` in it is a quote.
fn split_fields(text: &str) -> Result<Vec<String>, String> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    if text.is_empty() {
        return Err("expected options, found nothing".to_owned());
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, after) =
                rest.split_once(',').map_or((rest, None), |(field, after)| (field, Some(after)));
            if field.contains('"') {
                return Err(format!("a quote inside the unquoted field {field}"));
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let Some((part, after)) = quoted.split_once('"') else {
                return Err("a quote is not closed".to_owned());
            };
            field.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    field.push('"');
                    quoted = after;
                }
                None => {
                    quoted = after;
                    break;
                }
            }
        }
        fields.push(field);
        match quoted.strip_prefix(',') {
            Some(after) => rest = after,
            None if quoted.is_empty() => return Ok(fields),
            None => return Err("text behind a closed quote".to_owned()),
        }
    }
}
