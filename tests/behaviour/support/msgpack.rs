//! `MessagePack` written by hand, also what no library would write.

use serde_json::Value as Json;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Mp {
    /// nil
    Nil,
    /// true, false
    Bool(bool),
    /// The shortest integer
    Int(i64),
    /// uint 64
    UInt(u64),
    /// float 32
    F32(f32),
    /// float 64
    F64(f64),
    /// str
    Str(String),
    /// str with any bytes, UTF-8 or not
    RawStr(Vec<u8>),
    /// bin
    Bin(Vec<u8>),
    /// array
    Array(Vec<Mp>),
    /// map, in this order, keys as often as they stand here
    Map(Vec<(Mp, Mp)>),
    /// ext: type and data
    Ext(i8, Vec<u8>),
    /// Bytes as they are
    Raw(Vec<u8>),
}

impl Mp {
    /// A text.
    pub fn str(text: &str) -> Self {
        Self::Str(text.to_owned())
    }

    /// A map with texts as keys.
    pub fn map<'a>(pairs: impl IntoIterator<Item = (&'a str, Mp)>) -> Self {
        Self::Map(pairs.into_iter().map(|(key, value)| (Self::str(key), value)).collect())
    }

    /// The timestamp extension with seconds and nanoseconds, in its 12-byte form.
    pub fn timestamp(seconds: i64, nanos: u32) -> Self {
        Self::Ext(-1, [nanos.to_be_bytes().as_slice(), &seconds.to_be_bytes()].concat())
    }

    /// float32, little-endian, as `bin`.
    pub fn vector(numbers: &[f32]) -> Self {
        Self::Bin(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    /// This map with one more pair, or another value under a key that it has.
    #[must_use]
    pub fn with(mut self, key: &str, value: Mp) -> Self {
        let Self::Map(pairs) = &mut self else { panic!("no map") };
        pairs.retain(|(own, _)| own != &Self::str(key));
        pairs.push((Self::str(key), value));
        self
    }

    /// This map without a key.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        let Self::Map(pairs) = &mut self else { panic!("no map") };
        pairs.retain(|(own, _)| own != &Self::str(key));
        self
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    /// Appends its bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nil => out.push(0xc0),
            Self::Bool(value) => out.push(if *value { 0xc3 } else { 0xc2 }),
            Self::Int(value @ 0..=127) => out.push(*value as u8),
            Self::Int(value @ -32..=-1) => out.push(*value as i8 as u8),
            Self::Int(value) => {
                if let Ok(short) = i32::try_from(*value) {
                    out.push(0xd2);
                    out.extend(short.to_be_bytes());
                } else {
                    out.push(0xd3);
                    out.extend(value.to_be_bytes());
                }
            }
            Self::UInt(value) => {
                out.push(0xcf);
                out.extend(value.to_be_bytes());
            }
            Self::F32(value) => {
                out.push(0xca);
                out.extend(value.to_be_bytes());
            }
            Self::F64(value) => {
                out.push(0xcb);
                out.extend(value.to_be_bytes());
            }
            Self::Str(text) => Self::write_text(text.as_bytes(), out),
            Self::RawStr(bytes) => Self::write_text(bytes, out),
            Self::Bin(bytes) => {
                out.push(0xc6);
                out.extend((bytes.len() as u32).to_be_bytes());
                out.extend(bytes);
            }
            Self::Array(values) => {
                if values.len() < 16 {
                    out.push(0x90 | values.len() as u8);
                } else {
                    out.push(0xdd);
                    out.extend((values.len() as u32).to_be_bytes());
                }
                for value in values {
                    value.write(out);
                }
            }
            Self::Map(pairs) => {
                if pairs.len() < 16 {
                    out.push(0x80 | pairs.len() as u8);
                } else {
                    out.push(0xdf);
                    out.extend((pairs.len() as u32).to_be_bytes());
                }
                for (key, value) in pairs {
                    key.write(out);
                    value.write(out);
                }
            }
            Self::Ext(kind, data) => {
                out.extend([0xc7, data.len() as u8, kind.cast_unsigned()]);
                out.extend(data);
            }
            Self::Raw(bytes) => out.extend(bytes),
        }
    }

    fn write_text(bytes: &[u8], out: &mut Vec<u8>) {
        match bytes.len() {
            len @ 0..32 => out.push(0xa0 | len as u8),
            len @ 32..256 => out.extend([0xd9, len as u8]),
            len => {
                out.push(0xdb);
                out.extend((len as u32).to_be_bytes());
            }
        }
        out.extend(bytes);
    }
}

impl From<&Json> for Mp {
    fn from(json: &Json) -> Self {
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(integer), _) => Self::Int(integer),
                (None, Some(integer)) => Self::UInt(integer),
                (None, None) => Self::F64(number.as_f64().expect("a number")),
            },
            Json::String(text) => Self::str(text),
            Json::Array(values) => Self::Array(values.iter().map(Self::from).collect()),
            Json::Object(map) => Self::Map(map.iter().map(|(key, value)| (Self::str(key), Self::from(value))).collect()),
        }
    }
}

impl From<Json> for Mp {
    fn from(json: Json) -> Self {
        Self::from(&json)
    }
}
