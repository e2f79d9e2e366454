//! JSON from clients, read as a [`Value`].

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::lenient;
use super::value::{CONTAINERS_MAX, TooDeep, Value};
use crate::text::escape_to;

/// Digits of the shortest integer that 64 bits may not hold.
const DIGITS_64_BITS: usize = 19;
/// Longest piece of a number in an error, in characters.
const SHOWN_MAX: usize = 60;

/// Containers between a JSON document and a value in it that is written on its own: an object of objects.
const AROUND_MAX: usize = 2;

/// The `value` of a `{"value": …}` payload, if D-Bus carries it.
pub fn parse_payload(payload: &[u8]) -> Result<Value, PayloadError> {
    parse_payload_with(payload, false)
}

/// The same, with what [`lenient`] takes for JSON beside it. A bare word without a value is a double that is not finite, so that it can be
/// told from `null`: [`Value::has_missing`]. What is no value for every item is a [`Value::Word`], wherever it stands.
pub fn read_payload(payload: &[u8]) -> Result<Value, PayloadError> {
    parse_payload(payload).or_else(|error| {
        let json = lenient::to_json(payload).ok_or_else(|| error.clone())?;
        parse_payload_with(&json, true).map_err(|_| error)
    })
}

fn parse_payload_with(payload: &[u8], lenient: bool) -> Result<Value, PayloadError> {
    let payload = utf8(payload).and_then(integers).map_err(PayloadError::Json)?;
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
    let text = integers(utf8(text)?)?;
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let value = ValueSeed { depth: 0, lenient }.deserialize(&mut reader).map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// JSON is UTF-8. serde_json checks only those texts that are kept.
fn utf8(text: &[u8]) -> Result<&[u8], String> {
    std::str::from_utf8(text).map(str::as_bytes).map_err(|error| format!("no UTF-8 after byte {}", error.valid_up_to()))
}

/// `-0` is an integer, which serde_json reads as a double: its sign is replaced with a space. An integer beyond 64 bits, which serde_json
/// reads as a double too, is refused.
fn integers(text: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let mut result = Cow::Borrowed(text);
    let is_digits = |run: &[u8]| run.len() >= DIGITS_64_BITS && run.first().is_some_and(u8::is_ascii_digit);
    let has_long = || text.chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()).any(is_digits);
    if !text.windows(2).any(|pair| pair == b"-0") && !has_long() {
        return Ok(result);
    }
    let mut at = 0;
    for piece in lenient::pieces(text) {
        let number = piece.trim_ascii();
        if number == b"-0" {
            let sign = at + piece.len() - piece.trim_ascii_start().len();
            if let Some(sign) = result.to_mut().get_mut(sign) {
                *sign = b' ';
            }
        } else if let Ok(number) = std::str::from_utf8(number)
            && lenient::is_beyond_64_bits(number)
        {
            return Err(beyond_64_bits(number));
        }
        at += piece.len();
    }
    Ok(result)
}

fn beyond_64_bits(number: &str) -> String {
    format!("{} is an integer beyond 64 bits", escape_to(number, SHOWN_MAX))
}

/// Why a word is no value.
pub(super) fn why_not(word: &str) -> String {
    if lenient::is_beyond_64_bits(word) {
        return beyond_64_bits(word);
    }
    format!("{} is neither JSON nor a number", escape_to(word, SHOWN_MAX))
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
    /// Bare words are texts with a mark.
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
        if self.lenient
            && let Some(value) = lenient::read_marked(v)
        {
            return Ok(value);
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
            ("1e-0", Value::Double(1.0), "d"),
            ("5E-0", Value::Double(5.0), "d"),
            ("1.5e-00", Value::Double(1.5), "d"),
            ("1e-01", Value::Double(0.1), "d"),
            ("-0e-0", Value::Double(-0.0), "d"),
            ("-0E-0", Value::Double(-0.0), "d"),
            ("1e+0", Value::Double(1.0), "d"),
            ("1000000000000000000000.0", Value::Double(1e21), "d"),
            ("0.1000000000000000055511151231257827", Value::Double(0.1), "d"),
            ("\"18446744073709551616\"", Value::Str("18446744073709551616".into()), "s"),
            ("[1e-0,-0]", Value::Array([Value::Double(1.0), Value::Int(0)].into()), "av"),
            ("{\"e-0\":-0}", Value::Dict([("e-0".into(), Value::Int(0))].into()), "a{sv}"),
            ("\"e-0\\\"-0\"", Value::Str("e-0\"-0".into()), "s"),
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
            let payload = format!(" {{\"x\": [1e-0, -0, {{}}], \"value\": {json} }} ");
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
            b"{\"value\":18446744073709551616}",
            b"{\"value\":[-9223372036854775809]}",
            b"{\"x\":123456789012345678901234567890,\"value\":1}",
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
        let words = read_json(b"{\"a\": 1e999, \"b\": 18446744073709551616, \"c\": on, \"d\": 007, \"e\": [ovf, 1 2]}");
        let word = |word: &str| Value::Word(word.into());
        let Ok(Value::Dict(entries)) = words else { panic!("{words:?}") };
        let [a, b, c, d, (_, Value::Array(e))] = &*entries else { panic!("{entries:?}") };
        assert_eq!([&a.1, &b.1, &c.1, &d.1], [&word("1e999"), &word("18446744073709551616"), &word("on"), &Int(7)]);
        assert!(e[0].has_missing() && e[1] == word("1 2"), "{e:?}");
        assert_eq!(b.1.clone().read_words(), Ok(Double(18_446_744_073_709_551_616.0)));
        assert!(c.1.clone().read_words().is_err() && b.1.check_words().is_err() && d.1.check_words().is_ok());
        for bad in ["{\"value\": nan} x", "{\"value\": nan, }", "{nan: 1, \"value\": 5}", "{\"value\": [nan, \"\\u0000\"]}"] {
            assert_eq!(read_payload(bad.as_bytes()), parse_payload(bad.as_bytes()), "{bad}");
            assert!(read_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
