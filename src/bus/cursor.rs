//! Bodies of messages, read without anything between: nine in ten changes are numbers, and what is spent on each of them is
//! most of what this daemon costs.
//!
//! Reads values of every type in either byte order. A value that is larger than is kept is not stored: from there on its arrays are
//! skipped by their lengths, so that neither time nor memory depends on what they hold. Every step is bounded by the body's length.

use zbus::wire::Endian;

use crate::bridge::Change;
use crate::bridge::value::{CONTAINERS_MAX, VALUE_MAX, Value};

/// The body does not hold what its signature says.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// `a{sa{sv}}`: hands in one item after the other.
pub fn read_items<'b>(body: &'b [u8], endian: Endian, mut each: impl FnMut(&'b str, Change)) -> Result<(), Broken> {
    let mut cursor = Cursor::new(body, endian);
    let end = cursor.array(8).ok_or(Broken)?;
    while cursor.at < end {
        cursor.align(8);
        let path = cursor.text().ok_or(Broken)?;
        each(path, cursor.change().ok_or(Broken)?);
    }
    cursor.finish()
}

/// `a{sv}`: the properties of an item.
pub fn read_change(body: &[u8], endian: Endian) -> Result<Change, Broken> {
    let mut cursor = Cursor::new(body, endian);
    let change = cursor.change().ok_or(Broken)?;
    cursor.finish().map(|()| change)
}

/// A value of the type that `signature` says, of which at most `room` bytes are stored.
pub fn read_value(body: &[u8], endian: Endian, signature: &str, room: usize) -> Result<Value, Broken> {
    let mut cursor = Cursor::new(body, endian);
    let value = cursor.whole(signature.as_bytes(), room).ok_or(Broken)?;
    cursor.finish().map(|()| value)
}

/// `v`: the value of an item, or a dictionary of the values of several, each of which may be as large as one.
pub fn read_values(body: &[u8], endian: Endian, mut each: impl FnMut(&str, Value)) -> Result<Option<Value>, Broken> {
    let mut cursor = Cursor::new(body, endian);
    let value = match cursor.signature().ok_or(Broken)? {
        b"a{sv}" => {
            let end = cursor.array(8).ok_or(Broken)?;
            let empty = cursor.at == end;
            while cursor.at < end {
                cursor.align(8);
                let key = cursor.text().ok_or(Broken)?;
                each(key, cursor.variant().ok_or(Broken)?);
            }
            empty.then_some(Value::Invalid)
        }
        signature => Some(cursor.whole(signature, VALUE_MAX).ok_or(Broken)?),
    };
    cursor.finish().map(|()| value)
}

/// `as`
pub fn read_texts<'b>(body: &'b [u8], endian: Endian, mut each: impl FnMut(&'b str)) -> Result<(), Broken> {
    let mut cursor = Cursor::new(body, endian);
    let end = cursor.array(4).ok_or(Broken)?;
    while cursor.at < end {
        cursor.align(4);
        each(cursor.text().ok_or(Broken)?);
    }
    cursor.finish()
}

/// A bound for the recursion alone: the bus does not carry what is deeper.
const DEPTH_MAX: usize = CONTAINERS_MAX + 2;

struct Cursor<'b> {
    body: &'b [u8],
    at: usize,
    big: bool,
}

/// Bytes that may still be stored of a value; `None` once it is too large.
struct Room(Option<usize>);

impl Room {
    fn take(&mut self, bytes: usize) -> bool {
        self.0 = self.0.and_then(|left| left.checked_sub(bytes));
        self.0.is_some()
    }

    fn is_left(&self) -> bool {
        self.0.is_some()
    }
}

impl<'b> Cursor<'b> {
    fn new(body: &'b [u8], endian: Endian) -> Self {
        Self { body, at: 0, big: endian == Endian::Big }
    }

    fn finish(self) -> Result<(), Broken> {
        if self.at == self.body.len() { Ok(()) } else { Err(Broken) }
    }

    fn change(&mut self) -> Option<Change> {
        let end = self.array(8)?;
        let mut change = Change::default();
        while self.at < end {
            self.align(8);
            let field = match self.bytes()? {
                b"Value" => &mut change.value,
                b"Min" => &mut change.min,
                b"Max" => &mut change.max,
                b"Default" => &mut change.default,
                _ => {
                    self.skip_variant()?;
                    continue;
                }
            };
            *field = Some(self.variant()?);
        }
        (self.at == end).then_some(change)
    }

    fn skip_variant(&mut self) -> Option<()> {
        match self.signature()? {
            b"s" => self.bytes().map(drop),
            signature => self.value(signature, &mut Room(None), 1).map(drop),
        }
    }

    fn variant(&mut self) -> Option<Value> {
        match self.signature()? {
            [code] if *code != b'v' => self.basic(*code, &mut Room(Some(VALUE_MAX))).map(|value| value.unwrap_or(Value::TooLarge)),
            signature => self.whole(signature, VALUE_MAX),
        }
    }

    fn whole(&mut self, signature: &[u8], room: usize) -> Option<Value> {
        let mut room = Room(Some(room));
        let value = self.value(signature, &mut room, 1)?;
        Some(if room.is_left() { value } else { Value::TooLarge })
    }

    /// A value of one complete type. Without room it is skipped, and what is given back is of no use.
    fn value(&mut self, signature: &[u8], room: &mut Room, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX || type_length(signature)? != signature.len() {
            return None;
        }
        self.typed(signature, room, depth)
    }

    /// As [`Self::value`], of a signature that is known to be one complete type.
    fn typed(&mut self, signature: &[u8], room: &mut Room, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        match signature {
            [b'v'] => {
                let signature = self.signature()?;
                self.value(signature, room, depth + 1)
            }
            [b'a', b'{', key, value @ .., b'}'] => self.dictionary(*key, value, room, depth),
            [b'a', element @ ..] => self.elements(element, room, depth),
            [b'(', fields @ .., b')'] => self.structure(fields, room, depth),
            [code] => self.basic(*code, room).map(Option::unwrap_or_default),
            _ => None,
        }
    }

    fn dictionary(&mut self, key: u8, value: &[u8], room: &mut Room, depth: usize) -> Option<Value> {
        let end = self.array(8)?;
        let mut entries = Vec::new();
        while self.at < end {
            if !room.take(size_of::<(Box<str>, Value)>()) {
                self.at = end;
                return Some(Value::Invalid);
            }
            self.align(8);
            let name = self.basic(key, room)?.unwrap_or_default();
            entries.push((to_key(name), self.typed(value, room, depth + 2)?));
        }
        let value = if entries.is_empty() { Value::Invalid } else { Value::Dict(entries.into()) };
        (self.at == end).then_some(value)
    }

    fn elements(&mut self, element: &[u8], room: &mut Room, depth: usize) -> Option<Value> {
        let end = self.array(alignment(*element.first()?))?;
        let mut values = Vec::new();
        while self.at < end {
            if !room.take(size_of::<Value>()) {
                self.at = end;
                return Some(Value::Invalid);
            }
            values.push(self.typed(element, room, depth + 1)?);
        }
        let value = if values.is_empty() { Value::Invalid } else { Value::Array(values.into()) };
        (self.at == end).then_some(value)
    }

    fn structure(&mut self, mut fields: &[u8], room: &mut Room, depth: usize) -> Option<Value> {
        self.align(8);
        let mut values = Vec::new();
        while !fields.is_empty() {
            let (field, rest) = fields.split_at_checked(type_length(fields)?)?;
            let value = self.typed(field, room, depth + 1)?;
            if room.take(size_of::<Value>()) {
                values.push(value);
            }
            fields = rest;
        }
        Some(Value::Array(values.into()))
    }

    /// A value that holds no others; `Some(None)` when there is no room for it.
    #[inline]
    fn basic(&mut self, code: u8, room: &mut Room) -> Option<Option<Value>> {
        let value = match code {
            b'd' => Value::Double(f64::from_le_bytes(self.number()?)),
            b'i' => Value::Int(i32::from_le_bytes(self.number()?).into()),
            b'u' => Value::Int(u32::from_le_bytes(self.number()?).into()),
            b'n' => Value::Int(i16::from_le_bytes(self.number()?).into()),
            b'q' => Value::Int(u16::from_le_bytes(self.number()?).into()),
            b'y' => Value::Int(u8::from_le_bytes(self.number()?).into()),
            b'x' => Value::Int(i64::from_le_bytes(self.number()?)),
            b't' => {
                let number = u64::from_le_bytes(self.number()?);
                i64::try_from(number).map_or(Value::UInt(number), Value::Int)
            }
            b'b' => match u32::from_le_bytes(self.number()?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return None,
            },
            b's' | b'o' | b'g' => {
                let text = if code == b'g' { self.signature()? } else { self.bytes()? };
                if !room.take(text.len()) {
                    return Some(None);
                }
                Value::Str(std::str::from_utf8(text).ok()?.into())
            }
            // a file descriptor is the index of one, which says nothing to others
            b'h' => {
                self.number::<4>()?;
                Value::Invalid
            }
            _ => return None,
        };
        Some(Some(value))
    }

    fn signature(&mut self) -> Option<&'b [u8]> {
        let length = usize::from(*self.body.get(self.at)?);
        self.at += 1;
        self.terminated(length)
    }

    /// The end of an array of elements of this alignment, which begins here.
    fn array(&mut self, alignment: usize) -> Option<usize> {
        let length = self.length()?;
        self.align(alignment);
        self.at.checked_add(length).filter(|end| *end <= self.body.len())
    }

    fn text(&mut self) -> Option<&'b str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn bytes(&mut self) -> Option<&'b [u8]> {
        let length = self.length()?;
        self.terminated(length)
    }

    /// So many bytes, and the NUL behind them.
    fn terminated(&mut self, length: usize) -> Option<&'b [u8]> {
        let end = self.at.checked_add(length)?;
        let text = self.body.get(self.at..end)?;
        (*self.body.get(end)? == 0).then(|| self.at = end + 1)?;
        Some(text)
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.number()?)).ok()
    }

    /// A number of so many bytes, aligned to its size; the least significant byte first.
    fn number<const SIZE: usize>(&mut self) -> Option<[u8; SIZE]> {
        self.align(SIZE);
        let end = self.at.checked_add(SIZE)?;
        let mut bytes: [u8; SIZE] = self.body.get(self.at..end)?.try_into().ok()?;
        self.at = end;
        if self.big {
            bytes.reverse();
        }
        Some(bytes)
    }

    /// Beyond the end is found out by the next read.
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }
}

/// The length of the first complete type of a signature.
fn type_length(signature: &[u8]) -> Option<usize> {
    let (code, rest) = signature.split_first()?;
    match code {
        b'a' if rest.first() == Some(&b'{') => {
            let value = type_length(rest.get(2..)?)?;
            (*rest.get(2 + value)? == b'}').then_some(4 + value)
        }
        b'a' => Some(1 + type_length(rest)?),
        b'(' => {
            let mut length = 0;
            while *rest.get(length)? != b')' {
                length += type_length(rest.get(length..)?)?;
            }
            (length > 0).then_some(2 + length)
        }
        b'y' | b'b' | b'n' | b'q' | b'i' | b'u' | b'x' | b't' | b'd' | b's' | b'o' | b'g' | b'v' | b'h' => Some(1),
        _ => None,
    }
}

fn alignment(code: u8) -> usize {
    match code {
        b'y' | b'g' | b'v' => 1,
        b'n' | b'q' => 2,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 4,
    }
}

/// Keys that are no text are shown as JSON shows them.
fn to_key(key: Value) -> Box<str> {
    match key {
        Value::Str(text) => text,
        other => {
            let mut text = Vec::new();
            other.write_json(&mut text);
            String::from_utf8_lossy(&text).into()
        }
    }
}
