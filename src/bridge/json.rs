//! JSON from clients, read as a [`Value`].

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::lenient::{self, MISSING};
use super::value::{CONTAINERS_MAX, TooDeep, Value};

/// Containers between a JSON document and a value in it that is written on its own: an object of objects.
const AROUND_MAX: usize = 2;

/// The `value` of a `{"value": …}` payload, if D-Bus carries it.
pub fn parse_payload(payload: &[u8]) -> Result<Value, PayloadError> {
    parse_payload_with(payload, false)
}

/// The same, with what [`lenient`] takes for JSON beside it. A bare word without a value is a double that is not finite, so that it can be
/// told from `null`: [`Value::has_missing`].
pub fn read_payload(payload: &[u8]) -> Result<Value, PayloadError> {
    parse_payload(payload).or_else(|error| {
        let json = lenient::to_json(payload).ok_or_else(|| error.clone())?;
        parse_payload_with(&json, true).map_err(|_| error)
    })
}

fn parse_payload_with(payload: &[u8], lenient: bool) -> Result<Value, PayloadError> {
    let payload = integer_zeros(utf8(payload).map_err(PayloadError::Json)?);
    let mut reader = serde_json::Deserializer::from_slice(&payload);
    let found = reader.deserialize_any(PayloadVisitor { lenient }).map_err(PayloadError::from_json)?;
    reader.end().map_err(PayloadError::from_json)?;
    let value = found.ok_or(PayloadError::NoValue)?;
    value.fits_bus().map_err(|error| PayloadError::Json(error.to_string()))?;
    Ok(value)
}

/// Any JSON, as a value. An empty array is [`Value::Invalid`], as it is on the bus; an object keeps its order. What of it goes to the bus
/// has to be checked ([`Value::fits_bus`]).
pub fn parse_json(text: &[u8]) -> Result<Value, String> {
    parse_json_with(text, false)
}

/// The same, with what [`lenient`] takes for JSON beside it, as in [`read_payload`].
pub fn read_json(text: &[u8]) -> Result<Value, String> {
    parse_json(text).or_else(|error| {
        let json = lenient::to_json(text).ok_or_else(|| error.clone())?;
        parse_json_with(&json, true).map_err(|_| error)
    })
}

fn parse_json_with(text: &[u8], lenient: bool) -> Result<Value, String> {
    let text = integer_zeros(utf8(text)?);
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let value = ValueSeed { depth: 0, lenient }.deserialize(&mut reader).map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// JSON is UTF-8. serde_json checks only those texts that are kept.
fn utf8(text: &[u8]) -> Result<&[u8], String> {
    std::str::from_utf8(text).map(str::as_bytes).map_err(|error| format!("no UTF-8 after byte {}", error.valid_up_to()))
}

/// `-0` is an integer, which serde_json reads as a double: its sign is replaced with a space.
fn integer_zeros(text: &[u8]) -> Cow<'_, [u8]> {
    let mut result = Cow::Borrowed(text);
    if !text.windows(2).any(|pair| pair == b"-0") {
        return result;
    }
    let (mut in_string, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'-' if !in_string && is_integer_zero(text.get(at + 1..).unwrap_or_default()) => {
                if let Some(sign) = result.to_mut().get_mut(at) {
                    *sign = b' ';
                }
            }
            _ => {}
        }
    }
    result
}

fn is_integer_zero(text: &[u8]) -> bool {
    matches!(text, [b'0', rest @ ..] if !matches!(rest, [b'.' | b'e' | b'E' | b'0'..=b'9', ..]))
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
struct PayloadVisitor {
    lenient: bool,
}

impl<'de> Visitor<'de> for PayloadVisitor {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a \"value\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "value" {
                found = Some(map.next_value_seed(ValueSeed { depth: 0, lenient: self.lenient })?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Reads any JSON as a [`Value`], no deeper than anything that D-Bus carries.
#[derive(Clone, Copy)]
struct ValueSeed {
    depth: usize,
    /// [`MISSING`] is what a bare word was.
    lenient: bool,
}

impl ValueSeed {
    fn deeper<E: de::Error>(&self) -> Result<Self, E> {
        if self.depth >= CONTAINERS_MAX + AROUND_MAX {
            return Err(E::custom(TooDeep));
        }
        Ok(Self { depth: self.depth + 1, ..*self })
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
        if self.lenient && v == MISSING {
            return Ok(Value::Double(f64::NAN));
        }
        if v.contains('\0') {
            return Err(E::custom("a string holds a NUL, which D-Bus cannot carry"));
        }
        Ok(Value::Str(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(if values.is_empty() { Value::Invalid } else { Value::Array(values.into()) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut entries: Vec<(Box<str>, Value)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(inner)?;
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

    #[test]
    fn reads() {
        let table = [
            ("5", Value::Int(5), "i"),
            ("2147483648", Value::Int(2_147_483_648), "x"),
            ("9223372036854775808", Value::UInt(9_223_372_036_854_775_808), "t"),
            ("-9223372036854775808", Value::Int(i64::MIN), "x"),
            ("-0", Value::Int(0), "i"),
            ("-0.0", Value::Double(-0.0), "d"),
            ("-0e0", Value::Double(-0.0), "d"),
            ("[-0,-1,\"-0\"]", Value::Array([Value::Int(0), Value::Int(-1), Value::Str("-0".into())].into()), "av"),
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
        let nested = |depth: usize, open: &str, inner: &str, close: &str| {
            parse_payload(format!("{{\"value\":{}{inner}{}}}", open.repeat(depth), close.repeat(depth)).as_bytes())
        };
        for (deepest, open, inner, close) in [
            (32, "[", "1", "]"),
            (31, "[", "[]", "]"),
            (31, "[", "{}", "]"),
            (21, "{\"a\":", "1", "}"),
            (20, "{\"a\":", "null", "}"),
            (20, "{\"a\":", "{}", "}"),
            (31, "[1,", "2.5", "]"),
            (15, "[{\"a\":", "1", "}]"),
        ] {
            assert!(nested(deepest, open, inner, close).is_ok(), "{deepest} {open} {inner}");
            let error = nested(deepest + 1, open, inner, close).unwrap_err();
            assert!(error.to_string().contains("nested deeper than D-Bus carries (64 containers"), "{error}");
        }
        assert!(matches!(nested(10_000, "[", "1", "]"), Err(PayloadError::Json(_))));
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

    /// Numbers as C, JavaScript, Python and templates print them.
    #[test]
    fn numbers_as_others_print_them() {
        use Value::{Bool, Double, Int};
        for (json, value) in [
            ("-0", Int(0)),
            ("+0", Int(0)),
            ("+5", Int(5)),
            ("  5\n", Int(5)),
            ("1e3", Double(1000.0)),
            ("1E+3", Double(1000.0)),
            ("5.", Double(5.0)),
            (".5", Double(0.5)),
            ("-.5", Double(-0.5)),
            ("5.0e-1", Double(0.5)),
            ("[+1, .5]", Value::Array([Int(1), Double(0.5)].into())),
            ("True", Bool(true)),
            ("False", Bool(false)),
        ] {
            for start in ["", "\u{feff}"] {
                let payload = format!("{start}{{\"value\": {json}}}");
                assert_eq!(read_payload(payload.as_bytes()), Ok(value.clone()), "{json}");
            }
        }
        for json in ["nan", "-nan", "NaN", "inf", "-Infinity", "None", "unknown", "undefined"] {
            let payload = format!("{{\"value\": {json}, \"b\": null, \"c\": \"{json}\"}}");
            assert!(read_payload(payload.as_bytes()).is_ok_and(|value| value.has_missing()), "{json}");
            assert!(parse_payload(payload.as_bytes()).is_err(), "{json}");
            let Ok(Value::Dict(entries)) = read_json(payload.as_bytes()) else { panic!("{json}") };
            let missing: Vec<_> = entries.iter().map(|(_, value)| value.has_missing()).collect();
            assert_eq!((missing, &entries[2].1), (vec![true, false, false], &Value::Str(json.into())));
        }
        assert_eq!(read_payload(b"{\"value\": null}"), Ok(Value::Invalid));
        for bad in
            ["{\"value\": nan} x", "{\"value\": nan, }", "{nan: 1, \"value\": 5}", "{\"value\": [nan, \"\\u0000\"]}", "{\"value\": 1e999}"]
        {
            assert_eq!(read_payload(bad.as_bytes()), parse_payload(bad.as_bytes()), "{bad}");
            assert!(read_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
