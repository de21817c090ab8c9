//! Operations, inputs, preimages and keys: section 6 of docs/formats.md.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::Range;

use kiln_oci::{Digest, Hasher};

use crate::Value;
use crate::value::write_text;

const OPERATION_MAGIC: &[u8] = b"kiln-operation-1\n";
const KEY_MAGIC: &[u8] = b"kiln-key-1\n";

/// Digest of a [`Preimage`]: equal keys mean equal work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Digest);

impl Key {
    /// The key whose 32 bytes were stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Key {
        Key(Digest::from_bytes(bytes))
    }

    /// The 32 bytes to store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What is done, apart from what it is done to: a JSON object in its canonical text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    members: BTreeMap<String, Value>,
}

/// A text that is not an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// It is not JSON.
    #[error("operation is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// It is JSON, but not the canonical text of an object.
    #[error("operation is not a canonical JSON object")]
    NotCanonical,
    /// A member that every operation has is missing, or of another type.
    #[error("operation has no valid member \"{0}\"")]
    Member(&'static str),
}

impl Operation {
    /// An operation with the three members that all have: its name, the version of its meaning, the platform.
    pub fn new(name: &str, version: u32, platform: &str) -> Operation {
        let members = BTreeMap::from([
            ("operation".to_owned(), Value::from(name)),
            ("platform".to_owned(), Value::from(platform)),
            ("version".to_owned(), Value::from(version)),
        ]);
        Operation { members }
    }

    /// Adds a member, or replaces it.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Operation {
        self.members.insert(member.to_owned(), value.into());
        self
    }

    /// Reads what [`Operation::to_text`] wrote; anything else is refused, since its digest would differ.
    pub fn parse(text: &str) -> Result<Operation, OperationError> {
        let json = serde_json::from_str(text).map_err(OperationError::NotJson)?;
        let Some(Value::Object(members)) = Value::from_json(json) else {
            return Err(OperationError::NotCanonical);
        };
        for member in ["operation", "platform"] {
            if !matches!(members.get(member), Some(Value::Text(_))) {
                return Err(OperationError::Member(member));
            }
        }
        if !matches!(members.get("version"), Some(Value::Integer(_))) {
            return Err(OperationError::Member("version"));
        }
        let operation = Operation { members };
        if operation.to_text() == text { Ok(operation) } else { Err(OperationError::NotCanonical) }
    }

    /// The canonical text, which is what is stored.
    pub fn to_text(&self) -> String {
        self.text_and_place("").0
    }

    /// The canonical text, and where in it the value of a member stands, if there is that member.
    pub fn text_and_place(&self, member: &str) -> (String, Option<Range<usize>>) {
        let mut text = String::new();
        let mut place = None;
        for (name, value) in &self.members {
            text.push(if text.is_empty() { '{' } else { ',' });
            // Writing to a string does not fail.
            let _ = write_text(&mut text, name);
            text.push(':');
            let start = text.len();
            let _ = write!(text, "{value}");
            if name == member {
                place = Some(start..text.len());
            }
        }
        text.push('}');
        (text, place)
    }

    /// SHA-256 over the magic and the canonical text.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(OPERATION_MAGIC);
        hasher.update(self.to_text().as_bytes());
        hasher.finish()
    }

    /// The member `operation`.
    pub fn name(&self) -> &str {
        match self.members.get("operation") {
            Some(Value::Text(name)) => name,
            _ => "",
        }
    }

    /// All members, by name.
    pub fn members(&self) -> &BTreeMap<String, Value> {
        &self.members
    }
}

/// One thing that an operation is done to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Input {
    /// The role it plays, such as `root`
    pub name: String,
    /// What part of it is taken; empty for all
    pub selector: String,
    /// Digest of that part
    pub digest: Digest,
}

/// Everything that decides an operation's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preimage {
    /// What is done
    pub operation: Operation,
    /// What it is done to; the order counts
    pub inputs: Vec<Input>,
}

/// Stored bytes that are not the inputs of a preimage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreimageError {
    /// The operation could not be read.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The inputs end too early, go on too long, or hold a name that is not UTF-8.
    #[error("inputs of a cache key are damaged at byte {0}")]
    Inputs(usize),
}

impl Preimage {
    /// SHA-256 over the magic, the operation's digest and the inputs.
    pub fn key(&self) -> Key {
        let mut hasher = Hasher::new();
        hasher.update(KEY_MAGIC);
        hasher.update(self.operation.digest().as_bytes());
        hasher.update(&self.inputs_to_bytes());
        Key(hasher.finish())
    }

    /// The inputs as they stand in the key: u32 count, then of each u32 length and name, u32 length and
    /// selector, 32 bytes of digest.
    pub fn inputs_to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.inputs.len() * 64);
        bytes.extend_from_slice(&length(self.inputs.len()));
        for input in &self.inputs {
            for text in [&input.name, &input.selector] {
                bytes.extend_from_slice(&length(text.len()));
                bytes.extend_from_slice(text.as_bytes());
            }
            bytes.extend_from_slice(input.digest.as_bytes());
        }
        bytes
    }

    /// Puts together what [`Operation::to_text`] and [`Preimage::inputs_to_bytes`] wrote.
    pub fn from_stored(operation: &str, inputs: &[u8]) -> Result<Preimage, PreimageError> {
        let operation = Operation::parse(operation)?;
        let mut reader = Reader { bytes: inputs, position: 0 };
        let inputs = reader.inputs().ok_or(PreimageError::Inputs(reader.position))?;
        Ok(Preimage { operation, inputs })
    }
}

/// # Panics
/// With 4 GiB of inputs.
fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("inputs of a cache key are shorter than 4 GiB").to_le_bytes()
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Reader<'_> {
    fn inputs(&mut self) -> Option<Vec<Input>> {
        let mut inputs = Vec::new();
        for _ in 0..self.number()? {
            let (name, selector) = (self.text()?, self.text()?);
            let digest = Digest::from_bytes(self.take(32)?.try_into().ok()?);
            inputs.push(Input { name, selector, digest });
        }
        (self.position == self.bytes.len()).then_some(inputs)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok().map(str::to_owned)
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.position..self.position.checked_add(length)?)?;
        self.position += length;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Preimage {
        Preimage {
            operation: Operation::new("run", 1, "linux/amd64")
                .with("arguments", vec!["/bin/sh", "-c", "echo \"a\"\n"])
                .with("environment", vec!["PATH=/bin"])
                .with("directory", "/")
                .with("epoch", None::<i64>),
            inputs: vec![
                Input { name: "root".into(), selector: String::new(), digest: Digest::from_bytes([0; 32]) },
                Input { name: "source".into(), selector: "*.c".into(), digest: Digest::from_bytes([7; 32]) },
            ],
        }
    }

    #[test]
    fn golden() {
        let preimage = run();
        assert_eq!(
            preimage.operation.to_text(),
            r#"{"arguments":["/bin/sh","-c","echo \"a\"\n"],"directory":"/","environment":["PATH=/bin"],"epoch":null,"operation":"run","platform":"linux/amd64","version":1}"#
        );
        assert_eq!(
            preimage.operation.digest().to_string(),
            "sha256:55b869df16c0baa5de513c406c250a545ce7b96e5db8341d096591b2d6eaf27d"
        );
        assert_eq!(
            preimage.key().to_string(),
            "sha256:bb349795d38a706af3005abc47f44639a9cff8ef17cb738960e9f1b3f1322433"
        );
        let (text, place) = preimage.operation.text_and_place("environment");
        assert_eq!(&text[place.unwrap()], r#"["PATH=/bin"]"#);
        assert_eq!((text, None), preimage.operation.text_and_place("none"));
        let scratch = Preimage { operation: Operation::new("scratch", 1, "linux/arm64/v8"), inputs: vec![] };
        assert_eq!(
            scratch.key().to_string(),
            "sha256:13236895e77da887d4621e636e3c3cf8f7df45491cf83ed8a67c40e1525bab7a"
        );
    }

    #[test]
    fn stored_preimages_come_back() {
        let preimage = run();
        let (operation, inputs) = (preimage.operation.to_text(), preimage.inputs_to_bytes());
        assert_eq!(Preimage::from_stored(&operation, &inputs).unwrap(), preimage);
        for end in 0..inputs.len() {
            assert!(matches!(
                Preimage::from_stored(&operation, &inputs[..end]),
                Err(PreimageError::Inputs(_))
            ));
        }
        let longer = [inputs.as_slice(), &[0]].concat();
        assert!(matches!(Preimage::from_stored(&operation, &longer), Err(PreimageError::Inputs(_))));
    }

    #[test]
    fn other_texts_are_refused() {
        let check = |text: &str, expect: &str| {
            assert_eq!(Operation::parse(text).unwrap_err().to_string(), expect, "{text}");
        };
        check("{", "operation is not JSON");
        check("[]", "operation is not a canonical JSON object");
        check(r#"{"operation":"run","platform":"linux/amd64"}"#, "operation has no valid member \"version\"");
        check(
            r#"{"operation":1,"platform":"linux/amd64","version":1}"#,
            "operation has no valid member \"operation\"",
        );
        for text in [
            r#"{"platform":"linux/amd64","operation":"run","version":1}"#,
            r#"{"operation":"run", "platform":"linux/amd64","version":1}"#,
            r#"{"operation":"run","platform":"linux/amd64","size":1.5,"version":1}"#,
            r#"{"operation":"r\u0075n","platform":"linux/amd64","version":1}"#,
        ] {
            check(text, "operation is not a canonical JSON object");
        }
    }

    #[test]
    fn every_part_counts() {
        let key = run().key();
        let mut changes = Vec::new();
        for change in [
            |preimage: &mut Preimage| preimage.inputs.swap(0, 1),
            |preimage: &mut Preimage| preimage.inputs[1].selector.push('c'),
            |preimage: &mut Preimage| preimage.inputs[1].name.push('c'),
            |preimage: &mut Preimage| preimage.inputs[1].digest = Digest::of(b"else"),
            |preimage: &mut Preimage| drop(preimage.inputs.pop()),
            |preimage: &mut Preimage| preimage.operation = preimage.operation.clone().with("user", "root"),
        ] {
            let mut preimage = run();
            change(&mut preimage);
            changes.push(preimage.key());
        }
        assert!(!changes.contains(&key));
    }
}
