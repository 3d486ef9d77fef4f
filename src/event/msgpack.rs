//! `MessagePack` read in place: values borrow from the payload, containers are stepped into or over without allocation.
//!
//! Source of the format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use super::DEPTH_MAX;

/// One value; of a container only its head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// nil
    Nil,
    /// true or false
    Bool(bool),
    /// An integer that fits 64 bits with a sign.
    Int(i64),
    /// An integer above that.
    UInt(u64),
    /// float 32 or 64
    Float(f64),
    /// str, not yet known to be UTF-8
    Text(&'a [u8]),
    /// bin
    Bytes(&'a [u8]),
    /// array of so many values, which follow
    Array(u32),
    /// map of so many pairs, which follow
    Map(u32),
    /// extension: type and data
    Ext(i8, &'a [u8]),
}

impl Value<'_> {
    /// What it is, in words for a reason.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::UInt(_) => "an integer",
            Self::Float(_) => "a floating-point number",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::Array(_) => "an array",
            Self::Map(_) => "a map",
            Self::Ext(-1, _) => "a timestamp",
            Self::Ext(..) => "an extension type",
        }
    }
}

/// Why bytes are not `MessagePack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Torn {
    /// The bytes end in the middle of a value.
    #[error("the MessagePack ends in the middle of a value, after {0} bytes")]
    Ended(usize),
    /// 0xc1, which the format never uses.
    #[error("byte {0} is 0xc1, which MessagePack never uses")]
    Reserved(usize),
}

/// A place in the payload.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stepped_over: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the first byte.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, stepped_over: 0 }
    }

    /// Bytes read so far.
    pub const fn position(&self) -> usize {
        self.at
    }

    /// Whether all is read.
    pub const fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// All bytes from a position to this one.
    pub fn since(&self, position: usize) -> &'a [u8] {
        self.bytes.get(position..self.at).unwrap_or_default()
    }

    /// Containers stepped over so far.
    pub const fn containers_stepped_over(&self) -> usize {
        self.stepped_over
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Torn> {
        let rest = &self.bytes[self.at..];
        if rest.len() < len {
            return Err(Torn::Ended(self.bytes.len()));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    #[inline]
    fn number<const N: usize>(&mut self) -> Result<[u8; N], Torn> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N)?);
        Ok(number)
    }

    #[inline]
    fn len8(&mut self) -> Result<usize, Torn> {
        Ok(usize::from(self.number::<1>()?[0]))
    }

    #[inline]
    fn len16(&mut self) -> Result<usize, Torn> {
        Ok(usize::from(u16::from_be_bytes(self.number()?)))
    }

    #[inline]
    fn len32(&mut self) -> Result<usize, Torn> {
        Ok(u32::from_be_bytes(self.number()?) as usize)
    }

    fn ext(&mut self, len: usize) -> Result<Value<'a>, Torn> {
        let kind = i8::from_be_bytes(self.number()?);
        Ok(Value::Ext(kind, self.take(len)?))
    }

    /// The next value; of a container its head, its members being next.
    ///
    /// # Errors
    /// The bytes are torn.
    #[inline]
    pub fn read(&mut self) -> Result<Value<'a>, Torn> {
        let at = self.at;
        let marker = self.number::<1>()?[0];
        Ok(match marker {
            0x00..=0x7f => Value::Int(i64::from(marker)),
            0x80..=0x8f => Value::Map(u32::from(marker & 0x0f)),
            0x90..=0x9f => Value::Array(u32::from(marker & 0x0f)),
            0xa0..=0xbf => Value::Text(self.take(usize::from(marker & 0x1f))?),
            0xc0 => Value::Nil,
            0xc1 => return Err(Torn::Reserved(at)),
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4 => self.len8().and_then(|len| self.take(len)).map(Value::Bytes)?,
            0xc5 => self.len16().and_then(|len| self.take(len)).map(Value::Bytes)?,
            0xc6 => self.len32().and_then(|len| self.take(len)).map(Value::Bytes)?,
            0xc7 => self.len8().and_then(|len| self.ext(len))?,
            0xc8 => self.len16().and_then(|len| self.ext(len))?,
            0xc9 => self.len32().and_then(|len| self.ext(len))?,
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.number()?))),
            0xcb => Value::Float(f64::from_be_bytes(self.number()?)),
            0xcc => Value::Int(i64::from(self.number::<1>()?[0])),
            0xcd => Value::Int(i64::from(u16::from_be_bytes(self.number()?))),
            0xce => Value::Int(i64::from(u32::from_be_bytes(self.number()?))),
            0xcf => {
                let number = u64::from_be_bytes(self.number()?);
                i64::try_from(number).map_or(Value::UInt(number), Value::Int)
            }
            0xd0 => Value::Int(i64::from(i8::from_be_bytes(self.number()?))),
            0xd1 => Value::Int(i64::from(i16::from_be_bytes(self.number()?))),
            0xd2 => Value::Int(i64::from(i32::from_be_bytes(self.number()?))),
            0xd3 => Value::Int(i64::from_be_bytes(self.number()?)),
            0xd4 => self.ext(1)?,
            0xd5 => self.ext(2)?,
            0xd6 => self.ext(4)?,
            0xd7 => self.ext(8)?,
            0xd8 => self.ext(16)?,
            0xd9 => self.len8().and_then(|len| self.take(len)).map(Value::Text)?,
            0xda => self.len16().and_then(|len| self.take(len)).map(Value::Text)?,
            0xdb => self.len32().and_then(|len| self.take(len)).map(Value::Text)?,
            0xdc => Value::Array(self.len16()? as u32),
            0xdd => Value::Array(self.len32()? as u32),
            0xde => Value::Map(self.len16()? as u32),
            0xdf => Value::Map(self.len32()? as u32),
            0xe0..=0xff => Value::Int(i64::from(marker.cast_signed())),
        })
    }

    /// Steps over the members of `head`, which was just read: nothing to do unless it is a container. Takes constant memory
    /// however deep the members nest.
    ///
    /// # Errors
    /// The bytes are torn.
    pub fn skip_members(&mut self, head: Value<'a>) -> Result<(), Torn> {
        self.skip(members(head))
    }

    /// Steps over so many values.
    ///
    /// Every value of an event is stepped over before it is read, so this looks at markers alone and makes no values; most of
    /// them tell their length by themselves.
    #[inline]
    fn skip(&mut self, mut left: u64) -> Result<(), Torn> {
        let bytes = self.bytes;
        let (mut at, mut containers) = (self.at, 0);
        while left > 0 {
            let Some(&marker) = bytes.get(at) else { return Err(Torn::Ended(bytes.len())) };
            left -= 1;
            match LENGTH[usize::from(marker)] {
                0 => {
                    let (next, members) = behind_head(bytes, at, marker)?;
                    at = next;
                    if let Some(members) = members {
                        containers += 1;
                        left += members;
                    }
                }
                length => at += usize::from(length),
            }
        }
        if at > bytes.len() {
            return Err(Torn::Ended(bytes.len()));
        }
        self.at = at;
        self.stepped_over += containers;
        Ok(())
    }

    /// All bytes of the next value.
    ///
    /// # Errors
    /// The bytes are torn.
    #[inline]
    pub fn whole(&mut self) -> Result<&'a [u8], Torn> {
        let from = self.at;
        match self.bytes.get(from).map_or(0, |marker| LENGTH[usize::from(*marker)]) {
            0 => self.skip(1).map(|()| &self.bytes[from..self.at]),
            length => self.take(usize::from(length)),
        }
    }

    /// The next value whole: its head and all its bytes.
    ///
    /// # Errors
    /// The bytes are torn.
    #[inline]
    pub fn read_whole(&mut self) -> Result<(Value<'a>, &'a [u8]), Torn> {
        let whole = self.whole()?;
        Ok((Self::new(whole).read()?, whole))
    }

    /// The next value, if it is a text of up to 31 bytes.
    #[inline]
    pub fn short_text(&mut self) -> Option<&'a [u8]> {
        let text = short_text(&self.bytes[self.at..])?;
        self.at += 1 + text.len();
        Some(text)
    }
}

/// The text that bytes begin with, if it is one of up to 31 bytes.
#[inline]
pub fn short_text(bytes: &[u8]) -> Option<&[u8]> {
    match bytes.split_first()? {
        (marker @ 0xa0..=0xbf, rest) => rest.get(..usize::from(marker & 0x1f)),
        _ => None,
    }
}

/// Bytes that a value takes with its marker, where the marker alone tells; 0 for containers and for what has a length of its own.
const LENGTH: [u8; 256] = {
    let mut length = [0; 256];
    let mut marker = 0;
    while marker < 256 {
        length[marker] = match marker {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => 1,
            0xa0..=0xbf => 1 + (marker as u8 & 0x1f),
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 => 3,
            0xca | 0xce | 0xd2 => 5,
            0xcb | 0xcf | 0xd3 => 9,
            0xd4..=0xd8 => 2 + (1 << (marker - 0xd4)),
            _ => 0,
        };
        marker += 1;
    }
    length
};

/// Where the next value starts behind a marker that [`LENGTH`] has nothing for, and a container's members.
fn behind_head(bytes: &[u8], at: usize, marker: u8) -> Result<(usize, Option<u64>), Torn> {
    let length = |width: usize| -> Result<usize, Torn> {
        let bytes = bytes.get(at + 1..at + 1 + width).ok_or(Torn::Ended(bytes.len()))?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    let behind = at + 1;
    Ok(match marker {
        0x80..=0x8f => (behind, Some(2 * u64::from(marker & 0x0f))),
        0x90..=0x9f => (behind, Some(u64::from(marker & 0x0f))),
        0xc4 | 0xd9 => (behind + 1 + length(1)?, None),
        0xc5 | 0xda => (behind + 2 + length(2)?, None),
        0xc6 | 0xdb => (behind + 4 + length(4)?, None),
        0xc7 => (behind + 2 + length(1)?, None),
        0xc8 => (behind + 3 + length(2)?, None),
        0xc9 => (behind + 5 + length(4)?, None),
        0xdc => (behind + 2, Some(length(2)? as u64)),
        0xdd => (behind + 4, Some(length(4)? as u64)),
        0xde => (behind + 2, Some(2 * length(2)? as u64)),
        0xdf => (behind + 4, Some(2 * length(4)? as u64)),
        // The others have a length in the table, all but 0xc1.
        _ => return Err(Torn::Reserved(at)),
    })
}

fn members(head: Value<'_>) -> u64 {
    match head {
        Value::Array(len) => u64::from(len),
        Value::Map(len) => 2 * u64::from(len),
        Value::Nil
        | Value::Bool(_)
        | Value::Int(_)
        | Value::UInt(_)
        | Value::Float(_)
        | Value::Text(_)
        | Value::Bytes(_)
        | Value::Ext(..) => 0,
    }
}

/// Whether containers nest deeper than [`DEPTH_MAX`] in one whole value.
///
/// # Errors
/// The bytes are torn.
pub fn too_deep(value: &[u8]) -> Result<bool, Torn> {
    let mut reader = Reader::new(value);
    let mut open = [0_u64; DEPTH_MAX + 1];
    let mut depth = 0;
    loop {
        let value = reader.read()?;
        if let Value::Array(_) | Value::Map(_) = value {
            depth += 1;
            if depth > DEPTH_MAX {
                return Ok(true);
            }
            open[depth] = members(value);
        } else if depth > 0 {
            open[depth] -= 1;
        }
        // A container that is through counts as one member of the one around it.
        while depth > 0 && open[depth] == 0 {
            depth -= 1;
            open[depth] = open[depth].saturating_sub(1);
        }
        if depth == 0 {
            return Ok(false);
        }
    }
}
