//! Bodies of messages, read without a copy of what is not kept: texts are skipped where they lie, and numbers go straight to
//! the core.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zbus::message::Body;
use zbus::{Array, Dict, DynamicType, Signature, Variant};

use super::cursor;
use crate::bridge::limits::WRITE_PAYLOAD;
use crate::bridge::value::{DEPTH_MAX, Value};
use crate::bridge::{Change, Reply, Setting};
use crate::device::service::ItemAnswer;

/// `a{sa{sv}}`, the body of `ItemsChanged` and of the answer to `GetItems`: hands in one item after the other.
pub fn read_items(body: &Body, mut each: impl FnMut(&str, Change)) -> Result<(), zbus::Error> {
    expect(body, &ITEMS)?;
    // what was read before something unusual came is read again, to the same end
    if is_little_endian(body) && cursor::read_items(body.data(), &mut each).is_ok() {
        return Ok(());
    }
    body.data().deserialize_with_seed(Items { each }).map(|_| ())
}

/// `a{sv}`, the body of `PropertiesChanged`.
pub fn read_change(body: &Body) -> Result<Change, zbus::Error> {
    expect(body, &CHANGE)?;
    if is_little_endian(body)
        && let Ok(change) = cursor::read_change(body.data())
    {
        return Ok(change);
    }
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
        Signature::Variant => body.data().deserialize_with_seed(AnyValue { depth: 0 }).map(|(value, _)| Reply::Value(value)),
        Signature::Str => body.deserialize::<String>().map(Reply::Text),
        signature if *signature == NAMES => body.deserialize::<Vec<String>>().map(Reply::Names),
        Signature::I32 => body.deserialize::<i32>().map(|code| Reply::Code(code.into())),
        Signature::U32 => body.deserialize::<u32>().map(|code| Reply::Code(code.into())),
        Signature::I64 => body.deserialize::<i64>().map(Reply::Code),
        // of localsettings: a list of dictionaries, a list of numbers
        signature @ Signature::Array(_) => read_typed(body, signature).map(Reply::Value),
        other => return Reply::Unreadable(format!("an answer of signature `{other}`")),
    };
    read.unwrap_or_else(|error| Reply::Unreadable(format!("a broken answer: {error}")))
}

/// The first argument of a call, if it is the only one. Not all callers wrap it in a variant. What is larger than any write may be is
/// not looked at: as a value it takes many times the space.
pub fn read_argument(body: &Body) -> Option<Value> {
    match body.signature() {
        _ if body.len() > WRITE_PAYLOAD => None,
        Signature::Unit | Signature::Structure(_) => None,
        Signature::Variant => body.data().deserialize_with_seed(AnyValue { depth: 0 }).map(|(value, _)| value).ok(),
        signature => read_typed(body, signature).ok(),
    }
}

fn read_typed(body: &Body, signature: &Signature) -> Result<Value, zbus::Error> {
    body.data().deserialize_with_seed(Typed { signature, depth: 0 }).map(|(value, _)| value)
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

/// The items of a service, as `GetItems` gives them.
pub fn to_items(items: &[ItemAnswer]) -> zbus::Result<BTreeMap<&str, BTreeMap<&'static str, Variant<'static>>>> {
    let entry = |item: &ItemAnswer| -> zbus::Result<_> {
        let mut entry = BTreeMap::from([("Value", to_variant(&item.value)?), ("Text", Variant::from(item.text.clone()))]);
        for (key, value) in [("Min", &item.min), ("Max", &item.max), ("Default", &item.default)] {
            if *value != Value::Invalid {
                entry.insert(key, to_variant(value)?);
            }
        }
        Ok(entry)
    };
    items.iter().map(|item| Ok((&*item.path, entry(item)?))).collect()
}

/// What AddSettings takes.
pub fn to_settings(settings: &[Setting]) -> zbus::Result<Vec<BTreeMap<&'static str, Variant<'static>>>> {
    let entry = |setting: &Setting| -> zbus::Result<_> {
        let path = Variant::from(setting.path.to_string());
        let mut entry = BTreeMap::from([("path", path), ("default", to_variant(&setting.default)?)]);
        // one of them alone would be read as the other being 0
        if setting.min != Value::Invalid && setting.max != Value::Invalid {
            entry.extend([("min", to_variant(&setting.min)?), ("max", to_variant(&setting.max)?)]);
        }
        Ok(entry)
    };
    settings.iter().map(entry).collect()
}

const ITEMS: Signature = zbus::signature!("a{sa{sv}}");
const CHANGE: Signature = zbus::signature!("a{sv}");
const NAMES: Signature = zbus::signature!("as");

fn is_little_endian(body: &Body) -> bool {
    body.data().context().endian() == zbus::wire::Endian::Little
}

fn expect(body: &Body, signature: &Signature) -> Result<(), zbus::Error> {
    if body.signature() == signature { Ok(()) } else { Err(zbus::Error::Failure(format!("a body of signature `{}`", body.signature()))) }
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
            *field = Some(map.next_value_seed(AnyValue { depth: 0 })?);
        }
        Ok(change)
    }
}

/// A variant of whatever type, as a value.
struct AnyValue {
    depth: usize,
}

impl DynamicType for AnyValue {
    fn signature(&self) -> Signature {
        Signature::Variant
    }
}

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a variant")
    }

    /// A variant comes as two elements: its signature, and what it holds.
    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Value, A::Error> {
        let signature: &str = parts.next_element()?.ok_or_else(|| A::Error::custom("a variant without a signature"))?;
        let value = if signature.len() == 1 && signature != "v" {
            parts.next_element_seed(Plain)?
        } else {
            let signature = Signature::try_from(signature).map_err(A::Error::custom)?;
            parts.next_element_seed(Typed { signature: &signature, depth: self.depth })?
        };
        value.ok_or_else(|| A::Error::custom("a variant without a value"))
    }
}

/// A value that holds no others.
struct Plain;

impl<'de> DeserializeSeed<'de> for Plain {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Visits one kind of number.
macro_rules! visit_number {
    ($($visit:ident $number:ty),*) => {
        $(fn $visit<E>(self, number: $number) -> Result<Value, E> {
            Ok(Value::Int(number.into()))
        })*
    };
}

impl<'de> Visitor<'de> for Plain {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a boolean or a text")
    }

    visit_number!(visit_u8 u8, visit_i16 i16, visit_u16 u16, visit_i32 i32, visit_u32 u32, visit_i64 i64);

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(i64::try_from(number).map_or(Value::UInt(number), Value::Int))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Double(number))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Str(text.into()))
    }
}

/// A value of a known type, with all it holds.
#[derive(Clone, Copy)]
struct Typed<'s> {
    signature: &'s Signature,
    depth: usize,
}

impl DynamicType for Typed<'_> {
    fn signature(&self) -> Signature {
        self.signature.clone()
    }
}

impl Typed<'_> {
    fn inner<'s>(&self, signature: &'s Signature) -> Typed<'s> {
        Typed { signature, depth: self.depth + 1 }
    }
}

impl<'de> DeserializeSeed<'de> for Typed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.signature {
            // a variant and the array that holds it are one level to whoever reads the JSON; what is deeper is not shown
            _ if self.depth > 2 * DEPTH_MAX => deserializer.deserialize_any(IgnoredAny).map(|_| Value::Invalid),
            Signature::Variant => deserializer.deserialize_seq(AnyValue { depth: self.depth + 1 }),
            Signature::Array(_) | Signature::Structure(_) => deserializer.deserialize_seq(self),
            Signature::Dict { .. } => deserializer.deserialize_map(self),
            // a file descriptor says nothing to anybody
            Signature::Fd => deserializer.deserialize_any(IgnoredAny).map(|_| Value::Invalid),
            _ => deserializer.deserialize_any(Plain),
        }
    }
}

impl<'de> Visitor<'de> for Typed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array, a structure or a dictionary")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        match self.signature {
            Signature::Array(element) => {
                while let Some(value) = elements.next_element_seed(self.inner(element.signature()))? {
                    values.push(value);
                }
            }
            Signature::Structure(fields) => {
                for field in fields.iter() {
                    values.extend(elements.next_element_seed(self.inner(field))?);
                }
            }
            _ => {}
        }
        Ok(if values.is_empty() { Value::Invalid } else { Value::Array(values.into()) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Signature::Dict { key, value } = self.signature else { return Ok(Value::Invalid) };
        let mut entries = Vec::new();
        while let Some(name) = map.next_key_seed(self.inner(key.signature()))? {
            entries.push((to_key(name), map.next_value_seed(self.inner(value.signature()))?));
        }
        Ok(if entries.is_empty() { Value::Invalid } else { Value::Dict(entries.into()) })
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

    /// The quick way and the general way say the same, and neither minds a body that is cut anywhere.
    #[test]
    fn both_ways_agree() {
        let entry =
            |value: Variant<'static>| HashMap::from([("Text", Variant::from("12 V")), ("Value", value), ("Max", Variant::F64(5.5))]);
        let simple = [
            Variant::U8(255),
            Variant::I16(-5),
            Variant::U16(5),
            Variant::I32(-70_000),
            Variant::U32(u32::MAX),
            Variant::I64(i64::MIN),
            Variant::U64(u64::MAX),
            Variant::F64(926.0),
            Variant::Bool(true),
            Variant::from("é"),
        ];
        for value in simple {
            let body = body(&HashMap::from([("/Dc/0/Voltage", entry(value.try_clone().unwrap())), ("/X", entry(value))]));
            let (mut quick, mut general) = (Vec::new(), Vec::new());
            cursor::read_items(body.data(), |path, change| quick.push((path.to_owned(), change))).unwrap();
            body.data().deserialize_with_seed(Items { each: |path: &str, change| general.push((path.to_owned(), change)) }).unwrap();
            assert_eq!(quick, general);
            for cut in 0..body.len() {
                assert_eq!(cursor::read_items(&body.data()[..cut], |_, _| {}), Err(cursor::Unread), "{cut}");
            }
        }
        let list = body(&HashMap::from([("Value", Variant::from(vec![1, 2]))]));
        assert_eq!(cursor::read_change(list.data()), Err(cursor::Unread));
        assert_eq!(read_change(&list).unwrap(), Change::of(Value::Array([Value::Int(1), Value::Int(2)].into())));
        let number = body(&HashMap::from([("Value", Variant::I32(7))]));
        assert_eq!(cursor::read_change(number.data()), Ok(Change::of(Value::Int(7))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_quick_way_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = cursor::read_items(&bytes, |_, _| {});
            let _ = cursor::read_change(&bytes);
        }
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
    fn arguments() {
        assert_eq!(read_argument(&body(&Variant::from(5))), Some(Value::Int(5)));
        assert_eq!(read_argument(&body(&5.5)), Some(Value::Double(5.5)));
        assert_eq!(read_argument(&body(&(5, 6))), None);
        let bytes = |count| Variant::from(vec![1_u8; count]);
        assert!(read_argument(&body(&bytes(WRITE_PAYLOAD - 100))).is_some());
        assert_eq!(read_argument(&body(&bytes(WRITE_PAYLOAD))), None);
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
