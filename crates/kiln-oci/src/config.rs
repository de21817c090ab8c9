//! The image config (OCI image-spec `config.md`, with Docker's additions).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ChainId, DiffId, Platform};

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

    /// Reads a config; fails unless it has as many non-empty history entries as layers, or no history at all.
    pub fn parse(bytes: &[u8]) -> Result<Self, crate::DocumentError> {
        let config: Self = crate::manifest::parse_document("image config", bytes)?;
        if config.rootfs.kind != "layers" {
            return Err(crate::DocumentError::Invalid {
                document: "image config",
                reason: format!("rootfs.type is {:?}, expected \"layers\"", config.rootfs.kind),
            });
        }
        Ok(config)
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

    #[test]
    fn a_config_is_written_by_name() {
        let config = ImageConfig::scratch(&"linux/amd64".parse().unwrap());
        assert_eq!(
            String::from_utf8(config.to_bytes()).unwrap(),
            r#"{"architecture":"amd64","config":{},"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#
        );
    }
}
