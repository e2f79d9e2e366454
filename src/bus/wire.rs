//! Bodies of messages, read without a copy of what is not kept: texts are skipped where they lie, and numbers go straight to
//! the core.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use zbus::message::Body;
use zbus::{Array, Dict, DynamicType, Signature, Variant};

use crate::bridge::value::{DEPTH_MAX, Value};
use crate::bridge::{Change, Reply};

/// `a{sa{sv}}`, the body of `ItemsChanged` and of the answer to `GetItems`: hands in one item after the other.
pub fn read_items(body: &Body, each: impl FnMut(&str, Change)) -> Result<(), zbus::Error> {
    expect(body, &ITEMS)?;
    body.data().deserialize_with_seed(Items { each }).map(|_| ())
}

/// `a{sv}`, the body of `PropertiesChanged`.
pub fn read_change(body: &Body) -> Result<Change, zbus::Error> {
    expect(body, &CHANGE)?;
    body.data().deserialize_with_seed(OneItem).map(|(change, _)| change)
}

/// The three names of `NameOwnerChanged`.
pub fn read_names(body: &Body) -> Result<(&str, &str, &str), zbus::Error> {
    body.deserialize()
}

/// The answer to a call, by its signature.
pub fn read_reply(body: &Body) -> Reply {
    let read = match body.signature() {
        signature if *signature == ITEMS => {
            let mut items = Vec::new();
            read_items(body, |path, change| items.push((path.to_owned(), change))).map(|()| Reply::Items(items))
        }
        Signature::Variant => body.deserialize::<Variant<'_>>().map(|value| Reply::Value(to_value(&value, 0))),
        Signature::Str => body.deserialize::<String>().map(Reply::Text),
        signature if *signature == NAMES => body.deserialize::<Vec<String>>().map(Reply::Names),
        Signature::I32 => body.deserialize::<i32>().map(|code| Reply::Code(code.into())),
        Signature::U32 => body.deserialize::<u32>().map(|code| Reply::Code(code.into())),
        Signature::I64 => body.deserialize::<i64>().map(Reply::Code),
        other => return Reply::Unreadable(format!("an answer of signature `{other}`")),
    };
    read.unwrap_or_else(|error| Reply::Unreadable(format!("a broken answer: {error}")))
}

/// What comes back instead of an answer.
pub fn read_error(name: Option<&str>, body: &Body) -> Reply {
    let text = body.deserialize::<&str>().unwrap_or_default();
    Reply::Error { name: name.unwrap_or_default().to_owned(), text: text.to_owned() }
}

/// A value as the bus wants it.
pub fn to_variant(value: &Value) -> zbus::Result<Variant<'static>> {
    Ok(match value {
        Value::Invalid => Variant::Array(Array::new(&Signature::I32)),
        Value::Bool(b) => Variant::Bool(*b),
        Value::Int(n) => i32::try_from(*n).map_or(Variant::I64(*n), Variant::I32),
        Value::UInt(n) => Variant::U64(*n),
        Value::Double(d) => Variant::F64(*d),
        Value::Str(s) => Variant::Str(String::from(&**s).into()),
        Value::Array(values) => {
            let signature = Signature::try_from(value.signature().as_str())?;
            let Signature::Array(element) = &signature else {
                return Err(zbus::Error::IncorrectType);
            };
            let mixed = *element.signature() == Signature::Variant;
            let mut array = Array::new(element.signature());
            for value in values {
                let variant = to_variant(value)?;
                array.append(if mixed { Variant::Variant(Box::new(variant)) } else { variant })?;
            }
            Variant::Array(array)
        }
        Value::Dict(entries) => {
            let mut dict = Dict::new(&Signature::Str, &Signature::Variant);
            for (key, value) in entries {
                dict.append(Variant::Str(String::from(&**key).into()), Variant::Variant(Box::new(to_variant(value)?)))?;
            }
            Variant::Dict(dict)
        }
    })
}

const ITEMS: Signature = zbus::signature!("a{sa{sv}}");
const CHANGE: Signature = zbus::signature!("a{sv}");
const NAMES: Signature = zbus::signature!("as");

fn expect(body: &Body, signature: &Signature) -> Result<(), zbus::Error> {
    if body.signature() == signature { Ok(()) } else { Err(zbus::Error::Failure(format!("a body of signature `{}`", body.signature()))) }
}

fn to_value(variant: &Variant<'_>, depth: usize) -> Value {
    if depth > 2 * DEPTH_MAX {
        return Value::Invalid;
    }
    match variant {
        Variant::U8(n) => Value::Int((*n).into()),
        Variant::I16(n) => Value::Int((*n).into()),
        Variant::U16(n) => Value::Int((*n).into()),
        Variant::I32(n) => Value::Int((*n).into()),
        Variant::U32(n) => Value::Int((*n).into()),
        Variant::I64(n) => Value::Int(*n),
        Variant::U64(n) => i64::try_from(*n).map_or(Value::UInt(*n), Value::Int),
        Variant::F64(d) => Value::Double(*d),
        Variant::Bool(b) => Value::Bool(*b),
        Variant::Str(s) => Value::Str(s.as_str().into()),
        Variant::ObjectPath(path) => Value::Str(path.as_str().into()),
        Variant::Signature(signature) => Value::Str(signature.to_string().into()),
        Variant::Variant(inner) => to_value(inner, depth + 1),
        Variant::Array(array) if array.is_empty() => Value::Invalid,
        Variant::Array(array) => Value::Array(array.inner().iter().map(|value| to_value(value, depth + 1)).collect()),
        Variant::Structure(fields) => Value::Array(fields.fields().iter().map(|value| to_value(value, depth + 1)).collect()),
        Variant::Dict(dict) => Value::Dict(dict.iter().map(|(key, value)| (to_key(key), to_value(value, depth + 1))).collect()),
        Variant::Fd(_) => Value::Invalid,
    }
}

/// Keys that are no text are shown as JSON shows them.
fn to_key(key: &Variant<'_>) -> Box<str> {
    match to_value(key, 0) {
        Value::Str(text) => text,
        other => {
            let mut text = Vec::new();
            other.write_json(&mut text);
            String::from_utf8_lossy(&text).into()
        }
    }
}

struct Items<F> {
    each: F,
}

impl<F> DynamicType for Items<F> {
    fn signature(&self) -> Signature {
        ITEMS
    }
}

impl<'de, F: FnMut(&str, Change)> DeserializeSeed<'de> for Items<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, Change)> Visitor<'de> for Items<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("items")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(path) = map.next_key::<&str>()? {
            let change = map.next_value_seed(OneItem)?;
            (self.each)(path, change);
        }
        Ok(())
    }
}

struct OneItem;

impl DynamicType for OneItem {
    fn signature(&self) -> Signature {
        CHANGE
    }
}

impl<'de> DeserializeSeed<'de> for OneItem {
    type Value = Change;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Change, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneItem {
    type Value = Change;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the properties of an item")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Change, A::Error> {
        let mut change = Change::default();
        while let Some(key) = map.next_key::<&str>()? {
            let field = match key {
                "Value" => &mut change.value,
                "Min" => &mut change.min,
                "Max" => &mut change.max,
                "Default" => &mut change.default,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *field = Some(to_value(&map.next_value::<Variant<'de>>().map_err(A::Error::custom)?, 0));
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use zbus::Message;

    use super::*;

    fn body<B: serde::Serialize + DynamicType>(content: &B) -> Body {
        Message::signal("/", "com.victronenergy.BusItem", "ItemsChanged").unwrap_message(content)
    }

    trait Build {
        fn unwrap_message<B: serde::Serialize + DynamicType>(self, content: &B) -> Body;
    }

    impl Build for zbus::message::Builder<'_> {
        fn unwrap_message<B: serde::Serialize + DynamicType>(self, content: &B) -> Body {
            self.build(content).unwrap().body()
        }
    }

    /// As JSON, whatever type it had on the bus.
    fn json(variant: Variant<'_>) -> String {
        let mut out = Vec::new();
        let Reply::Value(value) = read_reply(&body(&variant)) else { panic!("no value") };
        value.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn items() {
        let text = Variant::from("12 V");
        let entry = |value: Variant<'static>| HashMap::from([("Text", text.try_clone().unwrap()), ("Value", value)]);
        let mut seen = Vec::new();
        read_items(&body(&HashMap::from([("/Soc", entry(Variant::F64(87.5)))])), |path, change| seen.push((path.to_owned(), change)))
            .unwrap();
        read_items(&body(&HashMap::from([("/T", HashMap::from([("Text", &text)]))])), |path, change| seen.push((path.to_owned(), change)))
            .unwrap();
        let limits = HashMap::from([("Min", Variant::I32(1)), ("Max", Variant::Array(Array::new(&Signature::I32)))]);
        read_items(&body(&HashMap::from([("/L", limits)])), |path, change| seen.push((path.to_owned(), change))).unwrap();
        assert_eq!(
            seen,
            [
                ("/Soc".to_owned(), Change::of(Value::Double(87.5))),
                ("/T".to_owned(), Change::default()),
                ("/L".to_owned(), Change { min: Some(Value::Int(1)), max: Some(Value::Invalid), ..Change::default() }),
            ]
        );
        assert!(read_items(&body(&"text"), |_, _| {}).is_err());
        assert!(read_change(&body(&5_i32)).is_err());
    }

    #[test]
    fn values() {
        let dict = HashMap::from([("a", Variant::Variant(Box::new(Variant::I32(5))))]);
        for (variant, expected) in [
            (Variant::U8(255), "255"),
            (Variant::I16(-5), "-5"),
            (Variant::U64(u64::MAX), "18446744073709551615"),
            (Variant::I64(i64::MIN), "-9223372036854775808"),
            (Variant::F64(926.0), "926.0"),
            (Variant::Bool(true), "true"),
            (Variant::from("é"), "\"é\""),
            (Variant::Array(Array::new(&Signature::U32)), "null"),
            (Variant::Array(Array::new(&Signature::U8)), "null"),
            (Variant::from(vec![1_u8, 2]), "[1,2]"),
            (Variant::from(vec![Variant::I32(1), Variant::from("x")]), "[1,\"x\"]"),
            (Variant::from(dict), "{\"a\":5}"),
            (Variant::Variant(Box::new(Variant::I32(7))), "7"),
        ] {
            assert_eq!(json(variant), expected);
        }
    }

    #[test]
    fn written() {
        for payload in [
            "null",
            "true",
            "5",
            "5000000000",
            "18446744073709551615",
            "1.5",
            "\"x\"",
            "[1,2]",
            "[1,\"x\"]",
            "[[1],[2]]",
            "{\"a\":[1,{\"b\":null}]}",
        ] {
            let value = crate::bridge::value::parse_payload(format!("{{\"value\":{payload}}}").as_bytes()).unwrap();
            let variant = to_variant(&value).unwrap();
            assert_eq!(variant.value_signature().to_string(), value.signature(), "{payload}");
            assert_eq!(json(variant), payload);
        }
    }
}
