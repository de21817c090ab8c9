//! The image config (OCI image-spec `config.md`, with Docker's additions).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::members::{Shape, check_members};
use crate::{ChainId, DiffId, DocumentError, Platform};

const DOCUMENT: &str = "image config";
/// The most layers that are read: twice what can be mounted.
const MOST_LAYERS: usize = 1_000;
/// The most ports that are read: all of TCP, UDP and SCTP.
const MOST_PORTS: usize = 3 * 65_536;
/// The most of anything else that is read.
const MOST_ITEMS: usize = 10_000;

/// Where members have a meaning.
const SHAPE: Shape = Shape::Object(&[
    ("architecture", Shape::Any),
    ("author", Shape::Any),
    ("config", CONFIG),
    ("created", Shape::Any),
    ("history", Shape::List(&HISTORY)),
    ("os", Shape::Any),
    ("os.features", Shape::Any),
    ("os.version", Shape::Any),
    ("rootfs", Shape::Object(&[("type", Shape::Any), ("diff_ids", Shape::Any)])),
    ("variant", Shape::Any),
]);
const HISTORY: Shape = Shape::Object(&[
    ("created", Shape::Any),
    ("created_by", Shape::Any),
    ("author", Shape::Any),
    ("comment", Shape::Any),
    ("empty_layer", Shape::Any),
]);
const CONFIG: Shape = Shape::Object(&[
    ("User", Shape::Any),
    ("ExposedPorts", Shape::Map),
    ("Env", Shape::Any),
    ("Entrypoint", Shape::Any),
    ("Cmd", Shape::Any),
    ("Volumes", Shape::Map),
    ("WorkingDir", Shape::Any),
    ("Labels", Shape::Map),
    ("StopSignal", Shape::Any),
    ("ArgsEscaped", Shape::Any),
    ("Healthcheck", HEALTHCHECK),
    ("OnBuild", Shape::Any),
    ("StopTimeout", Shape::Any),
    ("Shell", Shape::Any),
]);
const HEALTHCHECK: Shape = Shape::Object(&[
    ("Test", Shape::Any),
    ("Interval", Shape::Any),
    ("Timeout", Shape::Any),
    ("StartPeriod", Shape::Any),
    ("StartInterval", Shape::Any),
    ("Retries", Shape::Any),
]);

/// An empty JSON object, the value of a Go `map[string]struct{}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// An image's config. Members are in the order in which BuildKit writes them, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// GOARCH.
    #[serde(default)]
    pub architecture: String,
    /// MAINTAINER, or who committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What a container runs by default.
    #[serde(default)]
    pub config: Config,
    /// RFC 3339 time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// One entry for each instruction, base first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// GOOS.
    #[serde(default)]
    pub os: String,
    /// Only used by Windows images.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// Only used by Windows images.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// The layers.
    pub rootfs: RootFs,
    /// `v7` of `arm/v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Diff IDs from the bottom to the top.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// One entry of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339 time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// MAINTAINER.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// The builder's note, `buildkit.dockerfile.v0` for images of Dockerfiles.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the instruction made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// `config` of the image config: what a container runs by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// `user[:group]`, by name or number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `port/protocol`.
    #[serde(default, skip_serializing_if = "no_members")]
    pub exposed_ports: Option<BTreeMap<String, Empty>>,
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "no_items")]
    pub env: Option<Vec<String>>,
    /// What is always run.
    #[serde(default, skip_serializing_if = "no_items")]
    pub entrypoint: Option<Vec<String>>,
    /// The command, or the arguments of the entrypoint.
    #[serde(default, skip_serializing_if = "no_items")]
    pub cmd: Option<Vec<String>>,
    /// Directories that are volumes.
    #[serde(default, skip_serializing_if = "no_members")]
    pub volumes: Option<BTreeMap<String, Empty>>,
    /// Where the command starts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "no_members")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Signal that ends a container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Whether `cmd` is escaped already (Windows).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// How to see whether a container is well (Docker's addition).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for images built on this one (Docker's addition).
    #[serde(default, skip_serializing_if = "no_items")]
    pub on_build: Option<Vec<String>>,
    /// Seconds before a container is killed (Docker's addition).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// The shell of shell forms (Docker's addition).
    #[serde(default, skip_serializing_if = "no_items")]
    pub shell: Option<Vec<String>>,
}

/// Docker's health check; times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `NONE`, or `CMD` with arguments, or `CMD-SHELL` with a command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Nanoseconds between checks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Nanoseconds before a check counts as failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Nanoseconds in which failures do not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Nanoseconds between checks in the start period.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row before a container is unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// Go's `omitempty`: an empty list is left out like a missing one.
fn no_items(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// As [`no_items`], of a map.
fn no_members<T>(map: &Option<BTreeMap<String, T>>) -> bool {
    map.as_ref().is_none_or(BTreeMap::is_empty)
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageConfig {
    /// The config of `FROM scratch`.
    pub fn scratch(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            ..Self::default()
        }
    }

    /// Reads a config; fails if two readers could understand it differently, or if it has far more of something than any
    /// image.
    pub fn parse(bytes: &[u8]) -> Result<Self, crate::DocumentError> {
        let config: Self = crate::manifest::parse_document(DOCUMENT, bytes)?;
        check_members(DOCUMENT, &SHAPE, bytes)?;
        let invalid = |reason| DocumentError::Invalid { document: DOCUMENT, reason };
        if config.rootfs.kind != "layers" {
            return Err(invalid(format!("rootfs.type is {:?}, expected \"layers\"", config.rootfs.kind)));
        }
        config.check_counts(0)?;
        Ok(config)
    }

    /// Fails if it has far more of something than any image, or will have with `coming` more history entries: it could not be
    /// read again.
    pub fn check_counts(&self, coming: usize) -> Result<(), crate::DocumentError> {
        for (what, count, most) in self.counts(coming) {
            if count > most {
                let reason = format!("it has {count} {what}; at most {most} are read");
                return Err(DocumentError::Invalid { document: DOCUMENT, reason });
            }
        }
        Ok(())
    }

    /// Fails if it will have more than is read, with texts of `coming` bytes in history entries to come.
    pub fn check_size(&self, coming: usize) -> Result<(), crate::DocumentError> {
        let size = (self.to_bytes().len() + coming) as u64;
        if size > crate::manifest::MAX_DOCUMENT_SIZE {
            return Err(DocumentError::TooLarge { document: DOCUMENT, size });
        }
        Ok(())
    }

    /// What there is how often, and how often it may be.
    fn counts(&self, coming: usize) -> [(&'static str, usize, usize); 10] {
        let list = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        let config = &self.config;
        [
            ("layers", self.rootfs.diff_ids.len(), MOST_LAYERS),
            ("history entries", self.history.len() + coming, MOST_ITEMS),
            ("exposed ports", config.exposed_ports.as_ref().map_or(0, BTreeMap::len), MOST_PORTS),
            ("volumes", config.volumes.as_ref().map_or(0, BTreeMap::len), MOST_ITEMS),
            ("labels", config.labels.as_ref().map_or(0, BTreeMap::len), MOST_ITEMS),
            ("environment variables", list(&config.env), MOST_ITEMS),
            ("words in Entrypoint", list(&config.entrypoint), MOST_ITEMS),
            ("words in Cmd", list(&config.cmd), MOST_ITEMS),
            ("words in Shell", list(&config.shell), MOST_ITEMS),
            ("ONBUILD instructions", list(&config.on_build), MOST_ITEMS),
        ]
    }

    /// The bytes of a config that kiln itself makes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The chain ID of all layers.
    pub fn chain_id(&self) -> ChainId {
        ChainId::of(&self.rootfs.diff_ids)
    }

    /// The platform the config names.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_nulls_are_read() {
        let text = br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Labels":null,"OnBuild":null,"Hostname":"x"},
            "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config = ImageConfig::parse(text).unwrap();
        assert_eq!(config.config, Config::default());
    }

    #[track_caller]
    fn check(members: &str, expect: Result<(), &str>) {
        let rootfs = r#""rootfs":{"type":"layers","diff_ids":[]}"#;
        let found = ImageConfig::parse(format!("{{{rootfs}{members}}}").as_bytes());
        match (found, expect) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(expect)) => {
                let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let told = format!("{error}: {source}");
                assert!(told.contains(expect), "{told}");
            }
            (found, _) => panic!("{members}: {found:?}"),
        }
    }

    /// Whoever checks a config and whoever runs it must read the same.
    #[test]
    fn ambiguous_configs_are_refused() {
        let by_case = Err("differs from a known one only by case");
        check(r#","Rootfs":{"type":"layers","diff_ids":[]}"#, by_case);
        check(r#","config":{"user":"0"}"#, by_case);
        check(r#","config":{"Healthcheck":{"test":[]}}"#, by_case);
        check(r#","history":[{"Created_by":"x"}]"#, by_case);
        check(r#","hi\u017ftory":[]"#, by_case);
        check(r#","os":"linux","os":"windows""#, Err("duplicate field"));
        check(r#","config":{"Labels":{"a":"1","a":"2"}}"#, Err("member \"a\" stands twice"));
        check(r#","config":{"Volumes":{"/a":{},"/a":{}}}"#, Err("stands twice"));
        check(r#","new":1,"new":2"#, Err("stands twice"));
        // Names that are data, and members that others have.
        check(r#","config":{"Labels":{"maintainer":"1","MAINTAINER":"2","user":"3"}}"#, Ok(()));
        check(
            r#","config":{"Hostname":"x","AttachStdin":false},"container_config":{"user":"0"},"Size":1"#,
            Ok(()),
        );
    }

    #[test]
    fn configs_are_bounded() {
        let map = |count: usize, value: &str| {
            (0..count).map(|i| format!("\"{i}\":{value}")).collect::<Vec<_>>().join(",")
        };
        let list = |count: usize, item: &str| vec![item; count].join(",");
        for (count, ok) in [(10_000, true), (10_001, false)] {
            let expect = |text| if ok { Ok(()) } else { Err(text) };
            let member = |name: &str, value: &str| format!(",\"config\":{{\"{name}\":{value}}}");
            check(&member("Env", &format!("[{}]", list(count, "\"A=1\""))), expect("10001 environment"));
            check(&member("Cmd", &format!("[{}]", list(count, "\"a\""))), expect("10001 words in Cmd"));
            check(&member("Volumes", &format!("{{{}}}", map(count, "{}"))), expect("10001 volumes"));
            check(&member("Labels", &format!("{{{}}}", map(count, "\"v\""))), expect("10001 labels"));
            let history = format!(",\"history\":[{}]", list(count, "{\"empty_layer\":true}"));
            check(&history, expect("10001 history entries"));
        }
        let ports = |count| format!(",\"config\":{{\"ExposedPorts\":{{{}}}}}", map(count, "{}"));
        check(&ports(196_608), Ok(()));
        check(&ports(196_609), Err("196609 exposed ports"));
        let layers = |count| {
            let diff_id = format!("\"sha256:{}\"", "0".repeat(64));
            let layers = list(count, &diff_id);
            ImageConfig::parse(
                format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{layers}]}}}}"#).as_bytes(),
            )
        };
        assert!(layers(1_000).is_ok() && layers(1_001).is_err());
    }

    #[test]
    fn a_config_is_written_by_name() {
        let config = ImageConfig::scratch(&"linux/amd64".parse().unwrap());
        assert_eq!(
            String::from_utf8(config.to_bytes()).unwrap(),
            r#"{"architecture":"amd64","config":{},"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#
        );
    }
}
