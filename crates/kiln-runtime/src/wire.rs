//! How a sandbox's description travels to the init that sets it up: length-prefixed values, little-endian. Both ends
//! are the same program, so there is no version.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The bytes end early or say what no value can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A value that can be written and read back.
pub(crate) trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut &[u8]) -> Result<Self, Malformed>;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        self.put(&mut out);
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let value = Self::take(&mut bytes)?;
        if bytes.is_empty() { Ok(value) } else { Err(Malformed) }
    }
}

macro_rules! wire_numbers {
    ($($kind:ty),*) => {$(
        impl Wire for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
                let (head, rest) = from.split_first_chunk().ok_or(Malformed)?;
                *from = rest;
                Ok(Self::from_le_bytes(*head))
            }
        }
    )*};
}
wire_numbers!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

/// A list of bytes, apart from `Vec<u8>` as a list of values.
fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    (bytes.len() as u32).put(out);
    out.extend_from_slice(bytes);
}

fn take_bytes<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = u32::take(from)? as usize;
    let (head, rest) = from.split_at_checked(length).ok_or(Malformed)?;
    *from = rest;
    Ok(head)
}

impl Wire for OsString {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(OsStr::from_bytes(take_bytes(from)?).to_owned())
    }
}

impl Wire for PathBuf {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_os_str().as_bytes(), out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self::from(OsString::from_vec(take_bytes(from)?.to_vec())))
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        Self::from_utf8(take_bytes(from)?.to_vec()).map_err(|_| Malformed)
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        for value in self {
            value.put(out);
        }
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        let count = u32::take(from)?;
        (0..count).map(|_| T::take(from)).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        if bool::take(from)? { T::take(from).map(Some) } else { Ok(None) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

/// `Wire` for a structure, field by field.
macro_rules! wire_struct {
    ($name:path { $($field:ident),* $(,)? }) => {
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn take(from: &mut &[u8]) -> Result<Self, $crate::wire::Malformed> {
                Ok(Self { $($field: $crate::wire::Wire::take(from)?),* })
            }
        }
    };
}

/// `Wire` for an enum: a number for each variant, then its fields.
macro_rules! wire_enum {
    ($name:path { $($number:literal => $variant:ident $({ $($field:ident),* $(,)? })? ),* $(,)? }) => {
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        out.push($number);
                        $($($field.put(out);)*)?
                    })*
                }
            }
            fn take(from: &mut &[u8]) -> Result<Self, $crate::wire::Malformed> {
                match u8::take(from)? {
                    $($number => Ok(Self::$variant $({ $($field: $crate::wire::Wire::take(from)?),* })?),)*
                    _ => Err($crate::wire::Malformed),
                }
            }
        }
    };
}
pub(crate) use {wire_enum, wire_struct};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_cut_ones_do_not() {
        let value = (vec![Some(String::from("a")), None], PathBuf::from("/x"));
        let bytes = value.encode();
        assert_eq!(Wire::decode(&bytes), Ok(value));
        for length in 0..bytes.len() {
            assert_eq!(<(Vec<Option<String>>, PathBuf)>::decode(&bytes[..length]), Err(Malformed));
        }
    }
}
