//! Canonical JSON: one byte sequence for one value.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// A JSON value that has exactly one text: members sorted bytewise, no white space, no fractions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Boolean(bool),
    /// A whole number; JSON's fractions have no canonical text and are left out.
    Integer(i64),
    /// A string
    Text(String),
    /// An array; clones share it, since many operations have the same long one.
    List(Arc<[Value]>),
    /// An object; the map keeps its members sorted.
    Object(BTreeMap<String, Value>),
}

impl Value {
    /// An object of these members; the last of two with one name wins.
    pub fn object<N: Into<String>, V: Into<Value>>(members: impl IntoIterator<Item = (N, V)>) -> Value {
        Value::Object(members.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// Reads JSON in any layout. `None` when a number is not a whole number of 64 bits.
    pub(crate) fn from_json(json: serde_json::Value) -> Option<Value> {
        Some(match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(boolean) => Value::Boolean(boolean),
            serde_json::Value::Number(number) => Value::Integer(number.as_i64()?),
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(items) => {
                Value::List(items.into_iter().map(Value::from_json).collect::<Option<_>>()?)
            }
            serde_json::Value::Object(members) => Value::Object(
                members
                    .into_iter()
                    .map(|(name, value)| Some((name, Value::from_json(value)?)))
                    .collect::<Option<_>>()?,
            ),
        })
    }
}

/// The canonical text.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Boolean(boolean) => write!(f, "{boolean}"),
            Value::Integer(integer) => write!(f, "{integer}"),
            Value::Text(text) => write_text(f, text),
            Value::List(items) => {
                f.write_char('[')?;
                for (position, item) in items.iter().enumerate() {
                    if position > 0 {
                        f.write_char(',')?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_char(']')
            }
            Value::Object(members) => Members(members).fmt(f),
        }
    }
}

/// The members of an object, which are written as it is.
pub(crate) struct Members<'a>(pub(crate) &'a BTreeMap<String, Value>);

impl fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (position, (name, value)) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_char(',')?;
            }
            write_text(f, name)?;
            write!(f, ":{value}")?;
        }
        f.write_char('}')
    }
}

/// Escapes what RFC 8259 section 7 demands and nothing else, with the short form where there is one.
pub(crate) fn write_text(f: &mut impl fmt::Write, text: &str) -> fmt::Result {
    let is_escaped = |byte: &u8| matches!(byte, b'"' | b'\\' | ..b' ');
    f.write_char('"')?;
    let mut rest = text;
    while let Some(at) = rest.as_bytes().iter().position(is_escaped) {
        f.write_str(&rest[..at])?;
        match rest.as_bytes()[at] {
            b'"' => f.write_str("\\\"")?,
            b'\\' => f.write_str("\\\\")?,
            b'\n' => f.write_str("\\n")?,
            b'\r' => f.write_str("\\r")?,
            b'\t' => f.write_str("\\t")?,
            0x8 => f.write_str("\\b")?,
            0xc => f.write_str("\\f")?,
            control => write!(f, "\\u{control:04x}")?,
        }
        rest = &rest[at + 1..];
    }
    f.write_str(rest)?;
    f.write_char('"')
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<bool> for Value {
    fn from(boolean: bool) -> Value {
        Value::Boolean(boolean)
    }
}

impl From<i64> for Value {
    fn from(integer: i64) -> Value {
        Value::Integer(integer)
    }
}

impl From<u32> for Value {
    fn from(integer: u32) -> Value {
        Value::Integer(i64::from(integer))
    }
}

impl<V: Into<Value>> From<Option<V>> for Value {
    fn from(optional: Option<V>) -> Value {
        optional.map_or(Value::Null, Into::into)
    }
}

impl<V: Into<Value>> From<Vec<V>> for Value {
    fn from(items: Vec<V>) -> Value {
        Value::List(items.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_canonical() {
        let value = Value::object([
            ("é", Value::from("\u{7f}ü/")),
            ("b", Value::from(vec!["\"\\\n\r\t\u{8}\u{c}\u{1}"])),
            ("a", Value::object([("z", 1_u32), ("Z", 2)])),
            ("c", Value::from(None::<bool>)),
        ]);
        assert_eq!(
            value.to_string(),
            "{\"a\":{\"Z\":2,\"z\":1},\"b\":[\"\\\"\\\\\\n\\r\\t\\b\\f\\u0001\"],\"c\":null,\"é\":\"\u{7f}ü/\"}"
        );
    }

    #[test]
    fn text_agrees_with_serde_json_for_every_character_below_300() {
        let text: String = (0..300).filter_map(char::from_u32).collect();
        assert_eq!(Value::from(text.as_str()).to_string(), serde_json::to_string(&text).unwrap());
    }
}
