//! Members of JSON objects that two readers would understand differently.
//!
//! Of a member that stands twice, one reader takes the first and another one the last. Go's reader takes `Layers` for
//! `layers`. A document with either is refused, since what was checked by one reader would be used by another
//! (CVE-2021-41190 and its kin).

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::DocumentError;

/// What is expected at a place in a document.
#[derive(Debug)]
pub enum Shape {
    /// Anything.
    Any,
    /// An object whose members' names are data, such as labels.
    Map,
    /// An object with members that have a meaning.
    Object(&'static [(&'static str, Shape)]),
    /// A list of these.
    List(&'static Shape),
}

/// Refuses a document in which a member stands twice, or differs from a known one only by case. It says nothing of the
/// types of values.
pub fn check_members(document: &'static str, shape: &Shape, bytes: &[u8]) -> Result<(), DocumentError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    shape.deserialize(&mut reader).map_err(|source| DocumentError::Json { document, source })
}

impl<'de> DeserializeSeed<'de> for &Shape {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self {
            Shape::Any => deserializer.deserialize_ignored_any(IgnoredAny).map(|_| ()),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for &Shape {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let inside = match self {
                Shape::Object(known) => member(known, &name).map_err(A::Error::custom)?,
                _ => &Shape::Any,
            };
            map.next_value_seed(inside)?;
            if let Some(name) = seen.replace(name) {
                return Err(A::Error::custom(format_args!("member {name:?} stands twice")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let inside = if let Shape::List(inside) = self { inside } else { &Shape::Any };
        while list.next_element_seed(inside)?.is_some() {}
        Ok(())
    }

    // Values of another type than expected are for the reader of the whole document to refuse.
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// What is inside a member.
fn member(known: &'static [(&'static str, Shape)], name: &str) -> Result<&'static Shape, String> {
    let folded = fold(name);
    match known.iter().find(|(known, _)| folded.eq_ignore_ascii_case(known)) {
        Some((known, inside)) if *known == name => Ok(inside),
        Some(_) => Err(format!("member {name:?} differs from a known one only by case")),
        None => Ok(&Shape::Any),
    }
}

/// As Go's `encoding/json` does before it compares: two letters outside of ASCII have lower-case forms in it.
fn fold(name: &str) -> String {
    name.replace('\u{17f}', "s").replace('\u{212a}', "k")
}
