//! The value of an item, and its JSON both ways.
//!
//! Integers are exact (64 bit), doubles print as the shortest text that reads back the same, NaN and infinities are `null`. An
//! empty array, of whatever type, is "no value": [`Value::Invalid`], JSON `null`.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Deepest nesting taken from outside, on either side.
pub const DEPTH_MAX: usize = 32;
/// Largest value kept, in bytes of its JSON: a packet of 1 MiB holds it with its limits and topic.
pub const VALUE_MAX: usize = 256 * 1024;

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
}

impl Value {
    /// The text of a string, the digits of an integer: what may stand in a topic as the instance.
    pub fn as_instance(&self) -> Option<String> {
        match self {
            Self::Int(n) => Some(n.to_string()),
            Self::UInt(n) => Some(n.to_string()),
            // some services have their integers as doubles
            Self::Double(d) if d.fract() == 0.0 && d.abs() < 1e15 => Some(format!("{d:.0}")),
            Self::Str(s) if !s.is_empty() => {
                Some(s.chars().take(64).map(|c| if c.is_control() || "/+#$".contains(c) { '_' } else { c }).collect())
            }
            _ => None,
        }
    }

    /// Appends the value as JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Invalid => out.extend_from_slice(b"null"),
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

    /// About the length of the JSON, so that a value too large is never kept.
    pub fn weight(&self) -> usize {
        match self {
            Self::Invalid | Self::Bool(_) | Self::Int(_) | Self::UInt(_) | Self::Double(_) => 8,
            Self::Str(s) => s.len().saturating_add(2),
            Self::Array(values) => values.iter().fold(2, |sum: usize, v| sum.saturating_add(v.weight())),
            Self::Dict(entries) => entries.iter().fold(2, |sum: usize, (k, v)| sum.saturating_add(k.len() + 4).saturating_add(v.weight())),
        }
    }

    /// The signature the value has when it is written to the bus.
    pub fn signature(&self) -> String {
        match self {
            Self::Invalid => "ai".into(),
            Self::Bool(_) => "b".into(),
            Self::Int(n) if i32::try_from(*n).is_ok() => "i".into(),
            Self::Int(_) => "x".into(),
            Self::UInt(_) => "t".into(),
            Self::Double(_) => "d".into(),
            Self::Str(_) => "s".into(),
            Self::Array(values) => {
                let mut signatures = values.iter().map(Value::signature);
                match signatures.next() {
                    None => "ai".into(),
                    Some(first) if signatures.all(|next| next == first) => format!("a{first}"),
                    Some(_) => "av".into(),
                }
            }
            Self::Dict(_) => "a{sv}".into(),
        }
    }
}

fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // writing a number or a string to memory cannot fail
    let _ = serde_json::to_writer(out, value);
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

/// The `value` of a `{"value": …}` payload.
pub fn parse_payload(payload: &[u8]) -> Result<Value, PayloadError> {
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let found = reader.deserialize_any(PayloadVisitor).map_err(PayloadError::from_json)?;
    reader.end().map_err(PayloadError::from_json)?;
    found.ok_or(PayloadError::NoValue)
}

/// Any JSON, as a value. An empty array is [`Value::Invalid`], as it is on the bus; an object keeps its order.
pub fn parse_json(text: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = ValueSeed { depth: 0 }.deserialize(&mut reader).map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// Why a payload is no value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PayloadError {
    Json(String),
    NoValue,
}

impl PayloadError {
    fn from_json(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

impl std::error::Error for PayloadError {}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => write!(f, "the payload is not valid: {error}; send {{\"value\": …}}"),
            Self::NoValue => f.write_str("the payload has no \"value\"; send {\"value\": …}"),
        }
    }
}

/// Takes `value` out of an object; everything else beside it is read and dropped.
struct PayloadVisitor;

impl<'de> Visitor<'de> for PayloadVisitor {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a \"value\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let value = map.next_value_seed(ValueSeed { depth: 0 })?;
            if key == "value" {
                found = Some(value);
            }
        }
        Ok(found)
    }
}

/// Reads any JSON as a [`Value`], no deeper than [`DEPTH_MAX`].
struct ValueSeed {
    depth: usize,
}

impl ValueSeed {
    fn deeper<E: de::Error>(&self) -> Result<usize, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {DEPTH_MAX}")));
        }
        Ok(self.depth + 1)
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Invalid)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(i64::try_from(v).map_or(Value::UInt(v), Value::Int))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Double(v))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        if v.contains('\0') {
            return Err(E::custom("a string holds a NUL, which D-Bus cannot carry"));
        }
        Ok(Value::Str(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(ValueSeed { depth })? {
            values.push(value);
        }
        Ok(if values.is_empty() { Value::Invalid } else { Value::Array(values.into()) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut entries: Vec<(Box<str>, Value)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(ValueSeed { depth })?;
            if key.contains('\0') {
                return Err(de::Error::custom("a key holds a NUL, which D-Bus cannot carry"));
            }
            entries.push((key.into(), value));
        }
        Ok(Value::Dict(entries.into()))
    }
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
    fn reads() {
        let table = [
            ("5", Value::Int(5), "i"),
            ("2147483648", Value::Int(2_147_483_648), "x"),
            ("9223372036854775808", Value::UInt(9_223_372_036_854_775_808), "t"),
            ("-9223372036854775808", Value::Int(i64::MIN), "x"),
            ("5.0", Value::Double(5.0), "d"),
            ("5e0", Value::Double(5.0), "d"),
            ("true", Value::Bool(true), "b"),
            ("\"x\"", Value::Str("x".into()), "s"),
            ("null", Value::Invalid, "ai"),
            ("[]", Value::Invalid, "ai"),
            ("[1,2]", Value::Array([Value::Int(1), Value::Int(2)].into()), "ai"),
            ("[1,2.5]", Value::Array([Value::Int(1), Value::Double(2.5)].into()), "av"),
            ("[[1],[2]]", Value::Array([Value::Array([Value::Int(1)].into()), Value::Array([Value::Int(2)].into())].into()), "aai"),
            ("{\"a\":1}", Value::Dict([("a".into(), Value::Int(1))].into()), "a{sv}"),
        ];
        for (json, value, signature) in table {
            let payload = format!(" {{\"x\": [1, {{}}], \"value\": {json} }} ");
            assert_eq!(parse_payload(payload.as_bytes()), Ok(value.clone()), "{json}");
            assert_eq!(value.signature(), signature, "{json}");
        }
    }

    #[test]
    fn refuses() {
        let nested = |depth: usize| format!("{{\"value\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_payload(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(matches!(parse_payload(nested(DEPTH_MAX + 1).as_bytes()), Err(PayloadError::Json(e)) if e.contains("nested deeper")));
        assert!(matches!(parse_payload(nested(10_000).as_bytes()), Err(PayloadError::Json(_))));
        assert_eq!(parse_payload(b"{}"), Err(PayloadError::NoValue));
        assert_eq!(parse_payload(b"{\"Value\":1}"), Err(PayloadError::NoValue));
        for bad in [
            &b""[..],
            b"5",
            b"[]",
            b"null",
            b"\"value\"",
            b"{\"value\":1",
            b"{\"value\":1} x",
            b"{\"value\":\"\\u0000\"}",
            b"{\"value\":\xff}",
            b"{\"value\":NaN}",
        ] {
            assert!(matches!(parse_payload(bad), Err(PayloadError::Json(_))), "{bad:?}");
        }
    }

    #[test]
    fn instances() {
        for (value, expected) in [
            (Value::Int(512), Some("512")),
            (Value::Double(3.0), Some("3")),
            (Value::Str("can0/2".into()), Some("can0_2")),
            (Value::Str("".into()), None),
            (Value::Invalid, None),
            (Value::Double(f64::NAN), None),
        ] {
            assert_eq!(value.as_instance().as_deref(), expected, "{value:?}");
        }
    }
}
