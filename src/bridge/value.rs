//! The value of an item, and its JSON; what reads JSON is in `json`.
//!
//! Integers are exact (64 bit), doubles print as the shortest text that reads back the same, NaN and infinities are `null`. An
//! empty array, of whatever type, is "no value": [`Value::Invalid`], JSON `null`.

use std::fmt;

use super::json::why_not;
pub use super::json::{PayloadError, parse_json, parse_payload, read_json, read_payload};
pub use super::lenient::read_word;
use super::topic::to_level;

/// Containers that D-Bus lets a value be in, of all signatures together (the specification's). A variant, an array and a dictionary
/// entry are one each, so that an object takes three and a mixed array two.
pub const CONTAINERS_MAX: usize = 64;
/// Arrays that D-Bus lets one signature nest (the specification's).
pub const ARRAYS_MAX: usize = 32;
/// Largest value that is kept, in bytes of its JSON, and the largest limit: a packet of 256 KiB holds a value, its three limits and its topic.
pub const VALUE_JSON_MAX: usize = 224 * 1024;
pub const LIMIT_JSON_MAX: usize = 4 * 1024;
/// Largest value that is kept, in bytes of memory: as many numbers as the payload of a write can hold.
pub const VALUE_MAX: usize = 32 * 1024 * size_of::<Value>();

/// Most characters of an instance that is a text: it stands in every topic of its service.
const INSTANCE_MAX: usize = 64;

/// A value as the bus knows it, without the width of its integers.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Value {
    #[default]
    Invalid,
    Bool(bool),
    Int(i64),
    /// Only what `i64` cannot hold.
    UInt(u64),
    Double(f64),
    Str(Box<str>),
    Array(Box<[Value]>),
    Dict(Box<[(Box<str>, Value)]>),
    /// What was larger than [`VALUE_MAX`] when it was decoded. Never kept: [`Value::cut`] decides what is shown.
    TooLarge,
    /// A bare word that a client wrote where JSON has a value, and an integer beyond 64 bits. Never kept or sent:
    /// [`Value::read_words`] says what it means, [`Value::check_words`] why it is refused.
    Word(Box<str>),
}

impl Value {
    /// The text of a string, the digits of an integer: what may stand in a topic as the instance.
    pub fn as_instance(&self) -> Option<String> {
        match self {
            Self::Int(n) => Some(n.to_string()),
            Self::UInt(n) => Some(n.to_string()),
            // some services have their integers as doubles; -0.0 plus 0.0 is 0.0
            Self::Double(d) if d.fract() == 0.0 && d.abs() < 1e15 => Some(format!("{:.0}", d + 0.0)),
            Self::Str(s) if !s.is_empty() => Some(to_level(s, INSTANCE_MAX)),
            _ => None,
        }
    }

    /// Appends the value as JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Invalid | Self::TooLarge | Self::Word(_) => out.extend_from_slice(b"null"),
            Self::Bool(b) => out.extend_from_slice(if *b { b"true" } else { b"false" }),
            Self::Int(n) => json(out, n),
            Self::UInt(n) => json(out, n),
            // serde_json prints what is not finite as null
            Self::Double(d) => json(out, d),
            Self::Str(s) => json(out, s),
            Self::Array(values) => list(out, b'[', b']', values, |out, value| value.write_json(out)),
            Self::Dict(entries) => list(out, b'{', b'}', entries, |out, (key, value)| {
                json(out, key);
                out.push(b':');
                value.write_json(out);
            }),
        }
    }

    /// Reads each [`Value::Word`] in the value as a text of a number is read. The error names one that is no number.
    pub fn read_words(self) -> Result<Self, String> {
        match self {
            Self::Word(word) => read_word(&word).ok_or_else(|| why_not(&word)),
            Self::Array(values) => Ok(Self::Array(values.into_iter().map(Self::read_words).collect::<Result<_, _>>()?)),
            Self::Dict(entries) => {
                let read = |(key, value): (Box<str>, Self)| value.read_words().map(|value| (key, value));
                Ok(Self::Dict(entries.into_iter().map(read).collect::<Result<_, _>>()?))
            }
            value => Ok(value),
        }
    }

    /// Fails when there is a [`Value::Word`] in the value, with the reason why D-Bus does not carry it.
    pub fn check_words(&self) -> Result<(), String> {
        match self {
            Self::Word(word) => Err(why_not(word)),
            Self::Array(values) => values.iter().try_for_each(Self::check_words),
            Self::Dict(entries) => entries.iter().try_for_each(|(_, value)| value.check_words()),
            _ => Ok(()),
        }
    }

    /// Whether a number that is none, as a client has written it, is somewhere in the value.
    pub fn has_missing(&self) -> bool {
        match self {
            Self::Double(d) => !d.is_finite(),
            Self::Word(_) => true,
            Self::Array(values) => values.iter().any(Self::has_missing),
            Self::Dict(entries) => entries.iter().any(|(_, value)| value.has_missing()),
            _ => false,
        }
    }

    /// Bytes on the heap.
    pub fn heap(&self) -> usize {
        match self {
            Self::Invalid | Self::Bool(_) | Self::Int(_) | Self::UInt(_) | Self::Double(_) | Self::TooLarge => 0,
            Self::Str(s) | Self::Word(s) => s.len(),
            Self::Array(values) => values.iter().fold(size_of_val(&**values), |sum, value| sum.saturating_add(value.heap())),
            Self::Dict(entries) => {
                entries.iter().fold(size_of_val(&**entries), |sum, (key, value)| sum.saturating_add(key.len()).saturating_add(value.heap()))
            }
        }
    }

    /// Replaces a value of more than `most` bytes of JSON, or of more than is kept at all, with [`Value::Invalid`]. True if it was.
    pub fn cut(&mut self, most: usize) -> bool {
        let cut = match self {
            Self::TooLarge => true,
            Self::Str(_) | Self::Array(_) | Self::Dict(_) => {
                let mut left = most;
                self.heap() > VALUE_MAX || !self.takes_json(&mut left)
            }
            _ => false,
        };
        if cut {
            *self = Self::Invalid;
        }
        cut
    }

    /// Takes the length of the JSON from `left`; false when that is not enough.
    fn takes_json(&self, left: &mut usize) -> bool {
        let mut take = |bytes: usize| left.checked_sub(bytes).map(|rest| *left = rest).is_some();
        match self {
            Self::Str(text) => take(json_length(text)),
            // with the comma or bracket behind each
            Self::Array(values) => take(values.len() + 1) && values.iter().all(|value| value.takes_json(left)),
            Self::Dict(entries) => {
                take(2 * entries.len() + 1)
                    && entries
                        .iter()
                        .all(|(key, value)| left.checked_sub(json_length(key)).map(|rest| *left = rest).is_some() && value.takes_json(left))
            }
            Self::Int(n) => take(digits(n.unsigned_abs()) + usize::from(*n < 0)),
            Self::UInt(n) => take(digits(*n)),
            Self::Double(d) => {
                let mut printed = Vec::with_capacity(32);
                json(&mut printed, d);
                take(printed.len())
            }
            Self::Bool(_) | Self::Invalid | Self::TooLarge | Self::Word(_) => take(5),
        }
    }

    /// The signature the value has when it is written to the bus.
    pub fn signature(&self) -> String {
        self.layout().signature.to_string()
    }

    /// Whether D-Bus carries the value as the argument of SetValue.
    pub fn fits_bus(&self) -> Result<(), TooDeep> {
        let layout = self.layout();
        if layout.too_many_arrays || layout.levels() > CONTAINERS_MAX { Err(TooDeep) } else { Ok(()) }
    }

    /// What the value looks like on the bus.
    pub(crate) fn layout(&self) -> Layout {
        let plain = |code| Layout { signature: Signature { arrays: 0, code }, inner: 0, too_many_arrays: false };
        match self {
            Self::Invalid | Self::TooLarge | Self::Word(_) => Layout { signature: Signature { arrays: 1, code: 'i' }, ..plain('i') },
            Self::Bool(_) => plain('b'),
            Self::Int(n) if i32::try_from(*n).is_ok() => plain('i'),
            Self::Int(_) => plain('x'),
            Self::UInt(_) => plain('t'),
            Self::Double(_) => plain('d'),
            Self::Str(_) => plain('s'),
            Self::Array(values) => {
                let mut layouts = values.iter().map(Self::layout);
                let Some(first) = layouts.next() else { return Self::Invalid.layout() };
                let (mut same, mut inner, mut levels, mut too_many) = (true, first.inner, first.levels(), first.too_many_arrays);
                for next in layouts {
                    same &= next.signature == first.signature;
                    (inner, levels) = (inner.max(next.inner), levels.max(next.levels()));
                    too_many |= next.too_many_arrays;
                }
                let signature = if same {
                    Signature { arrays: first.signature.arrays + 1, ..first.signature }
                } else {
                    Signature { arrays: 1, code: 'v' }
                };
                let inner = match (same, inner) {
                    (true, 0) => 0,
                    (true, inner) => 1 + inner,
                    (false, _) => 1 + levels,
                };
                Layout { signature, inner, too_many_arrays: too_many || signature.nested() > ARRAYS_MAX }
            }
            Self::Dict(entries) => {
                let levels = entries.iter().map(|(_, value)| value.layout());
                let (levels, too_many) =
                    levels.fold((0, false), |(levels, many), next| (levels.max(next.levels()), many | next.too_many_arrays));
                let inner = if entries.is_empty() { 0 } else { 2 + levels };
                Layout { signature: Signature { arrays: 0, code: '{' }, inner, too_many_arrays: too_many }
            }
        }
    }
}

/// The signature of a value: so many arrays of a basic type, a variant (`v`) or a dictionary (`{`, which is `a{sv}`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Signature {
    pub(crate) arrays: usize,
    pub(crate) code: char,
}

impl Signature {
    fn nested(self) -> usize {
        self.arrays + usize::from(self.code == '{')
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..self.arrays).try_for_each(|_| f.write_str("a"))?;
        match self.code {
            '{' => f.write_str("a{sv}"),
            code => write!(f, "{code}"),
        }
    }
}

/// A value as D-Bus counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) signature: Signature,
    /// Levels from the value to the deepest that a variant inside it reaches, 0 if there is none.
    inner: usize,
    too_many_arrays: bool,
}

impl Layout {
    /// Levels that a variant with this value reaches: its type's own, even where an array of it is empty (so does GLib count, which is
    /// stricter than libdbus), or those of the variants inside.
    fn levels(self) -> usize {
        let own = self.signature.arrays + if self.signature.code == '{' { 3 } else { 1 };
        own.max(if self.inner == 0 { 0 } else { 1 + self.inner })
    }
}

/// A value is nested deeper than D-Bus carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooDeep;

impl std::error::Error for TooDeep {}

impl fmt::Display for TooDeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nested deeper than D-Bus carries ({CONTAINERS_MAX} containers, of which an object takes 3 a level and a mixed array 2; {ARRAYS_MAX} arrays of arrays)"
        )
    }
}

/// Bytes of a text as JSON.
fn json_length(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
        0..0x20 => 5,
        _ => 0,
    };
    text.bytes().fold(text.len() + 2, |sum, byte| sum + escaped(byte))
}

fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // writing a number or a string to memory cannot fail
    let _ = serde_json::to_writer(out, value);
}

/// Bytes of an integer as text.
fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |digits| digits as usize + 1)
}

fn list<T>(out: &mut Vec<u8>, open: u8, close: u8, elements: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(open);
    for (n, element) in elements.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        each(out, element);
    }
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &Value) -> String {
        let mut out = Vec::new();
        value.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn prints() {
        for (value, expected) in [
            (Value::Invalid, "null"),
            (Value::Bool(true), "true"),
            (Value::Int(i64::MIN), "-9223372036854775808"),
            (Value::Int(9_007_199_254_740_993), "9007199254740993"),
            (Value::UInt(u64::MAX), "18446744073709551615"),
            (Value::Double(926.0), "926.0"),
            (Value::Double(0.1), "0.1"),
            (Value::Double(-0.0), "-0.0"),
            (Value::Double(f64::NAN), "null"),
            (Value::Double(f64::NEG_INFINITY), "null"),
            (Value::Str("a \"b\"\n\u{1}ä".into()), "\"a \\\"b\\\"\\n\\u0001ä\""),
            (Value::Array([Value::Int(1), Value::Invalid].into()), "[1,null]"),
            (Value::Dict([("k".into(), Value::Double(1.5))].into()), "{\"k\":1.5}"),
        ] {
            assert_eq!(text(&value), expected);
        }
    }

    #[test]
    fn instances() {
        for (value, expected) in [
            (Value::Int(512), Some("512")),
            (Value::Double(3.0), Some("3")),
            (Value::Double(-3.0), Some("-3")),
            (Value::Double(-0.0), Some("0")),
            (Value::Str("can0/2".into()), Some("can0_2")),
            (Value::Str("a\u{fffe}\u{85}$".into()), Some("a___")),
            (Value::Str("".into()), None),
            (Value::Invalid, None),
            (Value::Double(f64::NAN), None),
        ] {
            assert_eq!(value.as_instance().as_deref(), expected, "{value:?}");
        }
    }
}
