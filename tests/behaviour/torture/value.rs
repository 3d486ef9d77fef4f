//! A value as a producer has it, and the two encodings of the contract, made by hand: the oracle shares no code with the
//! program.

use serde_json::json;
use uuid::Uuid;

/// A value of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i64),
    Float(f64),
    Text(String),
    Uuid(Uuid),
    /// Unix microseconds.
    Time(i64),
    Vector(Vec<f32>),
    Map(Vec<(&'static str, Value)>),
}

impl Value {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// As JSON has it; also what a JSON column or a metadata map must hold in the end.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Int(number) => json!(number),
            Self::Float(number) => json!(number),
            Self::Text(text) => json!(text),
            Self::Uuid(id) => json!(id.hyphenated().to_string()),
            Self::Time(us) => json!(jiff::Timestamp::from_microsecond(*us).expect("a time").to_string()),
            Self::Vector(numbers) => json!(numbers),
            Self::Map(pairs) => pairs.iter().map(|(key, value)| ((*key).to_owned(), value.json())).collect(),
        }
    }

    /// Appends it as `MessagePack`.
    pub fn pack(&self, out: &mut Vec<u8>) {
        match self {
            Self::Int(number) => {
                out.push(0xd3);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Float(number) => {
                out.push(0xcb);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Text(text) => pack_text(text, out),
            Self::Uuid(id) => pack_bytes(id.as_bytes(), out),
            Self::Time(us) => {
                let (seconds, nanos) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000) * 1000);
                out.extend_from_slice(&[0xd7, 0xff]);
                out.extend_from_slice(&((nanos << 34) | seconds).to_be_bytes());
            }
            Self::Vector(numbers) => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                pack_bytes(&bytes, out);
            }
            Self::Map(pairs) => {
                out.push(0xde);
                out.extend_from_slice(&(pairs.len() as u16).to_be_bytes());
                for (key, value) in pairs {
                    pack_text(key, out);
                    value.pack(out);
                }
            }
        }
    }
}

/// The head of an array of `len` values.
pub fn pack_array(len: usize, out: &mut Vec<u8>) {
    out.push(0xdc);
    out.extend_from_slice(&(len as u16).to_be_bytes());
}

fn pack_text(text: &str, out: &mut Vec<u8>) {
    out.push(0xda);
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn pack_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(0xc5);
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}
