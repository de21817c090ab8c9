//! Descriptors, manifests and indexes (OCI image-spec; Docker's schema 2).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::members::{Shape, check_members};
use crate::{Digest, Platform};

/// The largest manifest, index or config that is read: 4 MiB, as registries allow.
pub const MAX_DOCUMENT_SIZE: u64 = 4 << 20;

/// Media types.
pub mod media_type {
    /// OCI manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, uncompressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker's layer, uncompressed.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// Annotation: the reference of an image in a layout.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    /// Annotation that containerd adds: the full image name.
    pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

    /// Whether a media type is that of a manifest.
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
    }

    /// Whether a media type is that of an index.
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, OCI_INDEX | DOCKER_INDEX)
    }
}

/// Annotations of a descriptor, manifest or index.
pub type Annotations = BTreeMap<String, String>;

/// A pointer to content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Where else the content may be had; never followed by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
    /// What the content runs on, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// A descriptor without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: None,
            platform: None,
        }
    }
}

/// An image manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// OCI's or Docker's manifest type; OCI allows its absence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Layers from the bottom to the top.
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
}

/// An index, also called manifest list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// OCI's or Docker's index type; OCI allows its absence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What is in it.
    pub manifests: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
}

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An image manifest.
    Manifest(Box<Manifest>),
    /// An index.
    Index(Index),
}

/// Why bytes are not the document that they should be.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Larger than [`MAX_DOCUMENT_SIZE`].
    #[error("{document} has {size} bytes; at most {MAX_DOCUMENT_SIZE} are read")]
    TooLarge {
        /// Which document.
        document: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// Not JSON, or not of the document's form.
    #[error("{document} cannot be read")]
    Json {
        /// Which document.
        document: &'static str,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
    /// JSON of the right form that contradicts itself or the specification.
    #[error("{document}: {reason}")]
    Invalid {
        /// Which document.
        document: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a JSON document of bounded size.
pub(crate) fn parse_document<T: DeserializeOwned>(
    document: &'static str,
    bytes: &[u8],
) -> Result<T, DocumentError> {
    if bytes.len() as u64 > MAX_DOCUMENT_SIZE {
        return Err(DocumentError::TooLarge { document, size: bytes.len() as u64 });
    }
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { document, source })
}

/// The members whose presence tells what a document is.
#[derive(Default)]
struct Members {
    manifests: bool,
    layers_or_config: bool,
}

const PLATFORM: Shape = Shape::Object(&[
    ("architecture", Shape::Any),
    ("os", Shape::Any),
    ("os.features", Shape::Any),
    ("os.version", Shape::Any),
    ("variant", Shape::Any),
]);
const DESCRIPTOR: Shape = Shape::Object(&[
    ("mediaType", Shape::Any),
    ("digest", Shape::Any),
    ("size", Shape::Any),
    ("urls", Shape::Any),
    ("annotations", Shape::Map),
    ("platform", PLATFORM),
]);
/// A manifest or an index.
const DOCUMENT: Shape = Shape::Object(&[
    ("schemaVersion", Shape::Any),
    ("mediaType", Shape::Any),
    ("config", DESCRIPTOR),
    ("layers", Shape::List(&DESCRIPTOR)),
    ("manifests", Shape::List(&DESCRIPTOR)),
    ("annotations", Shape::Map),
]);

fn members(document: &'static str, bytes: &[u8]) -> Result<Members, DocumentError> {
    let map: BTreeMap<String, serde::de::IgnoredAny> = parse_document(document, bytes)?;
    check_members(document, &DOCUMENT, bytes)?;
    Ok(Members {
        manifests: map.contains_key("manifests"),
        layers_or_config: map.contains_key("layers") || map.contains_key("config"),
    })
}

impl Document {
    /// Reads a manifest or an index. `media_type` is what the descriptor or the Content-Type says; it must
    /// agree with what the document is (CVE-2021-41190).
    pub fn parse(media_type: Option<&str>, bytes: &[u8]) -> Result<Self, DocumentError> {
        let document = "manifest";
        let invalid = |reason: &str| DocumentError::Invalid { document, reason: reason.to_owned() };
        let members = members(document, bytes)?;
        if members.manifests && members.layers_or_config {
            return Err(invalid("has both manifests and layers or config"));
        }
        let (parsed, own, index) = if members.manifests {
            let index: Index = parse_document("index", bytes)?;
            (Self::Index(index.clone()), (index.media_type, index.schema_version), true)
        } else {
            let manifest: Manifest = parse_document(document, bytes)?;
            (
                Self::Manifest(Box::new(manifest.clone())),
                (manifest.media_type, manifest.schema_version),
                false,
            )
        };
        if own.1 != 2 {
            return Err(invalid("schemaVersion is not 2"));
        }
        for media_type in [media_type, own.0.as_deref()].into_iter().flatten() {
            let agrees =
                if index { media_type::is_index(media_type) } else { media_type::is_manifest(media_type) };
            if !agrees {
                return Err(DocumentError::Invalid {
                    document,
                    reason: format!(
                        "media type {media_type:?} does not belong to {}",
                        if index { "an index" } else { "a manifest" }
                    ),
                });
            }
        }
        if let (Some(outer), Some(inner)) = (media_type, own.0.as_deref())
            && outer != inner
        {
            return Err(DocumentError::Invalid {
                document,
                reason: format!("mediaType is {inner:?} but {outer:?} was announced"),
            });
        }
        Ok(parsed)
    }
}

impl Manifest {
    /// The bytes of a manifest that kiln itself makes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Index {
    /// The bytes of an index that kiln itself makes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = r#"{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;

    fn check(media_type: Option<&str>, text: &str, ok: bool) {
        let result = Document::parse(media_type, text.as_bytes());
        assert_eq!(result.is_ok(), ok, "{text}: {result:?}");
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        let manifest = format!(r#"{{"schemaVersion":2,"config":{D},"layers":[{D}]}}"#);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{D}]}}"#);
        check(None, &manifest, true);
        check(None, &index, true);
        check(Some(media_type::OCI_MANIFEST), &manifest, true);
        check(Some(media_type::OCI_INDEX), &manifest, false);
        check(Some(media_type::OCI_MANIFEST), &index, false);
        check(None, &format!(r#"{{"schemaVersion":2,"manifests":[],"config":{D},"layers":[]}}"#), false);
        check(None, &format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"Layers":[]}}"#), false);
        check(None, &format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"layers":[{D}]}}"#), false);
        let twice = D.replace("\"size\":0", "\"size\":0,\"size\":1");
        check(None, &format!(r#"{{"schemaVersion":2,"config":{D},"layers":[{twice}]}}"#), false);
        let by_case = D.replace("digest", "Digest\":\"x\",\"digest");
        check(None, &format!(r#"{{"schemaVersion":2,"config":{D},"layers":[{by_case}]}}"#), false);
        // U+017F is an s to Go.
        check(None, &format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"layer\u017f":[]}}"#), false);
        let annotated =
            |a: &str| format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"annotations":{{{a}}}}}"#);
        check(None, &annotated(r#""a":"1","a":"2""#), false);
        check(None, &annotated(r#""a":"1","A":"2","layers":"x","Layers":"y""#), true);
        check(None, &format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"new":{{"Layers":1}}}}"#), true);
        check(None, &format!(r#"{{"schemaVersion":1,"config":{D},"layers":[]}}"#), false);
        let typed =
            format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media_type::OCI_MANIFEST);
        check(None, &typed, false);
    }
}
