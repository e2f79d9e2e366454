//! Bodies of messages: what of them is read, and how ours are built.

use std::collections::BTreeMap;

use zbus::message::Body;
use zbus::wire::Endian;
use zbus::{Array, Dict, Signature, Variant};

use super::cursor;
use crate::bridge::limits::{self, WRITE_PAYLOAD};
use crate::bridge::value::{self, Value};
use crate::bridge::{Change, Reply, Setting};
use crate::device::service::ItemAnswer;

/// Characters of an error's text, and bytes of the text that a service answers with, that are kept.
const ERROR_TEXT: usize = 1024;
const TEXT: usize = 1024 * 1024;

/// `a{sa{sv}}`, the body of `ItemsChanged` and of the answer to `GetItems`: hands in one item after the other.
pub fn read_items(body: &Body, each: impl FnMut(&str, Change)) -> Result<(), String> {
    expect(body, &ITEMS)?;
    cursor::read_items(body.data(), endian(body), each).map_err(broken)
}

/// `a{sv}`, the body of `PropertiesChanged`.
pub fn read_change(body: &Body) -> Result<Change, String> {
    expect(body, &CHANGE)?;
    cursor::read_change(body.data(), endian(body)).map_err(broken)
}

/// The three names of `NameOwnerChanged`.
pub fn read_names(body: &Body) -> Result<(&str, &str, &str), String> {
    body.deserialize().map_err(|error| error.to_string())
}

/// The answer to a call, by its signature, and how many values at its end were left out because it holds more than
/// [`limits::REPLY_BYTES`].
pub fn read_reply(body: &Body) -> (Reply, usize) {
    let (data, endian) = (body.data(), endian(body));
    let mut room = Room { left: limits::REPLY_BYTES, skipped: 0 };
    let read = match body.signature() {
        signature if *signature == ITEMS => {
            let mut items = Vec::new();
            let each = |path: &str, change: Change| {
                if room.takes(size_of::<(String, Change)>() + path.len() + change.heap()) {
                    items.push((path.to_owned(), change));
                }
            };
            cursor::read_items(data, endian, each).map(|()| Reply::Items(items))
        }
        Signature::Variant => {
            let mut values = Vec::new();
            let each = |key: &str, value: Value| {
                if room.takes(size_of::<(Box<str>, Value)>() + key.len() + value.heap()) {
                    values.push((key.into(), value));
                }
            };
            let value = cursor::read_values(data, endian, each);
            value.map(|value| match value {
                None => Reply::Value(Value::Dict(values.into())),
                Some(value @ Value::Dict(_)) => Reply::Item(value),
                Some(value) => Reply::Value(value),
            })
        }
        Signature::Str => match body.deserialize::<&str>() {
            Ok(text) if text.len() > TEXT => return (Reply::Unreadable(format!("a text of {} bytes", text.len())), 0),
            Ok(text) => Ok(Reply::Text(text.to_owned())),
            Err(_) => Err(cursor::Broken),
        },
        signature if *signature == NAMES => {
            let mut names = Vec::new();
            let each = |name: &str| {
                if room.takes(size_of::<String>() + name.len()) {
                    names.push(name.to_owned());
                }
            };
            cursor::read_texts(data, endian, each).map(|()| Reply::Names(names))
        }
        signature @ (Signature::I32 | Signature::U32 | Signature::I64) => {
            cursor::read_value(data, endian, &signature.to_string(), 0).map(|value| match value {
                Value::Int(code) => Reply::Code(code),
                other => Reply::Value(other),
            })
        }
        // of localsettings: a list of dictionaries, a list of numbers
        signature @ Signature::Array(_) => {
            cursor::read_value(data, endian, &signature.to_string(), limits::REPLY_BYTES).map(|value| match value {
                Value::TooLarge => Reply::Unreadable("an answer that is too large".into()),
                value => Reply::Value(value),
            })
        }
        other => return (Reply::Unreadable(format!("an answer of signature `{other}`")), 0),
    };
    match read {
        Ok(reply) => (reply, room.skipped),
        Err(cursor::Broken) => (Reply::Unreadable("a broken answer".into()), 0),
    }
}

/// What of an answer may still be kept.
struct Room {
    left: usize,
    skipped: usize,
}

impl Room {
    /// From the first that is too large, all are left out: which they are then depends on their order alone.
    fn takes(&mut self, bytes: usize) -> bool {
        match self.left.checked_sub(bytes) {
            Some(left) if self.skipped == 0 => self.left = left,
            _ => self.skipped += 1,
        }
        self.skipped == 0
    }
}

/// The first argument of a call, if it is the only one. Not all callers wrap it in a variant. What is larger than any write may be is
/// not looked at.
pub fn read_argument(body: &Body) -> Option<Value> {
    let signature = match body.signature() {
        _ if body.len() > WRITE_PAYLOAD => return None,
        Signature::Unit | Signature::Structure(_) => return None,
        signature => signature.to_string(),
    };
    cursor::read_value(body.data(), endian(body), &signature, WRITE_PAYLOAD * size_of::<Value>())
        .ok()
        .filter(|value| *value != Value::TooLarge)
}

/// What comes back instead of an answer.
pub fn read_error(name: Option<&str>, body: &Body) -> Reply {
    let text = body.deserialize::<&str>().unwrap_or_default();
    let text = text.chars().take(ERROR_TEXT).collect();
    Reply::Error { name: name.unwrap_or_default().to_owned(), text }
}

/// A value as the bus wants it.
pub fn to_variant(value: &Value) -> zbus::Result<Variant<'static>> {
    value.fits_bus().map_err(|error| zbus::Error::Failure(error.to_string()))?;
    to_typed(value, value.layout().signature)
}

/// A value whose signature is known.
fn to_typed(value: &Value, signature: value::Signature) -> zbus::Result<Variant<'static>> {
    Ok(match value {
        Value::Invalid | Value::TooLarge | Value::Word(_) => Variant::Array(Array::new(&Signature::I32)),
        Value::Bool(b) => Variant::Bool(*b),
        Value::Int(n) => i32::try_from(*n).map_or(Variant::I64(*n), Variant::I32),
        Value::UInt(n) => Variant::U64(*n),
        Value::Double(d) => Variant::F64(*d),
        Value::Str(s) => Variant::Str(String::from(&**s).into()),
        Value::Array(values) => {
            let element = value::Signature { arrays: signature.arrays.saturating_sub(1), ..signature };
            let mut array = Array::new(&Signature::try_from(element.to_string().as_str())?);
            let mixed = (element.arrays, element.code) == (0, 'v');
            for value in values {
                array.append(if mixed { boxed(value)? } else { to_typed(value, element)? })?;
            }
            Variant::Array(array)
        }
        Value::Dict(entries) => {
            let mut dict = Dict::new(&Signature::Str, &Signature::Variant);
            for (key, value) in entries {
                dict.append(Variant::Str(String::from(&**key).into()), boxed(value)?)?;
            }
            Variant::Dict(dict)
        }
    })
}

/// A value in a variant of its own.
fn boxed(value: &Value) -> zbus::Result<Variant<'static>> {
    Ok(Variant::Variant(Box::new(to_typed(value, value.layout().signature)?)))
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

fn endian(body: &Body) -> Endian {
    body.data().context().endian()
}

fn broken(_: cursor::Broken) -> String {
    "it does not hold what its signature says".into()
}

fn expect(body: &Body, signature: &Signature) -> Result<(), String> {
    if body.signature() == signature { Ok(()) } else { Err(format!("a body of signature `{}`", body.signature())) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use zbus::{DynamicType, Message};

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
        let Reply::Value(value) = read_reply(&body(&variant)).0 else { panic!("no value") };
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

    /// In both byte orders, and a body that is cut anywhere is refused.
    #[test]
    fn simple_values() {
        let entry =
            |value: Variant<'static>| HashMap::from([("Text", Variant::from("12 V")), ("Value", value), ("Max", Variant::F64(5.5))]);
        for (variant, value) in [
            (Variant::U8(255), Value::Int(255)),
            (Variant::I16(-5), Value::Int(-5)),
            (Variant::U16(5), Value::Int(5)),
            (Variant::I32(-70_000), Value::Int(-70_000)),
            (Variant::U32(u32::MAX), Value::Int(u32::MAX.into())),
            (Variant::I64(i64::MIN), Value::Int(i64::MIN)),
            (Variant::U64(u64::MAX), Value::UInt(u64::MAX)),
            (Variant::F64(926.0), Value::Double(926.0)),
            (Variant::Bool(true), Value::Bool(true)),
            (Variant::from("é"), Value::Str("é".into())),
            (Variant::from(vec![1, 2]), Value::Array([Value::Int(1), Value::Int(2)].into())),
        ] {
            let content = HashMap::from([("/Dc/0/Voltage", entry(variant.try_clone().unwrap())), ("/X", entry(variant))]);
            let change = Change { max: Some(Value::Double(5.5)), ..Change::of(value) };
            for endian in [Endian::Little, Endian::Big] {
                let signal = Message::signal("/", "com.victronenergy.BusItem", "ItemsChanged").endian(endian);
                let body = signal.build(&content).unwrap().body();
                let mut seen = Vec::new();
                read_items(&body, |path, change| seen.push((path.to_owned(), change))).unwrap();
                seen.sort_by(|(a, _), (b, _)| a.cmp(b));
                assert_eq!(seen, [("/Dc/0/Voltage".to_owned(), change.clone()), ("/X".to_owned(), change.clone())]);
                for cut in 0..body.len() {
                    assert_eq!(cursor::read_items(&body.data()[..cut], endian, |_, _| {}), Err(cursor::Broken), "{cut}");
                }
            }
        }
    }

    /// What is too large costs no more than a value that is not, and nothing beside it is lost.
    #[test]
    fn what_is_too_large_is_skipped() {
        let large = [
            Variant::from(vec![1_u8; 8 << 20]),
            Variant::from(vec![0.5; 1 << 20]),
            Variant::from("x".repeat(5 << 20)),
            Variant::from(vec!["x"; 200_000]),
            Variant::from(vec![vec![1_u8; 1000]; 1000]),
            Variant::from(HashMap::from([("a", Variant::from(vec![1_u8; 1 << 20])), ("b", Variant::from(5))])),
            Variant::from(("x".repeat(2 << 20), vec![1_u8; 1 << 20])),
        ];
        for value in large {
            let signature = value.value_signature().to_string();
            let entry = |value: Variant<'static>| HashMap::from([("Value", value), ("Min", Variant::from(1))]);
            let items = body(&BTreeMap::from([("/A", entry(value.try_clone().unwrap())), ("/B", entry(Variant::from(5)))]));
            let (Reply::Items(seen), 0) = read_reply(&items) else { panic!("{signature}") };
            let change = |value| Change { min: Some(Value::Int(1)), ..Change::of(value) };
            let (a, b) = (("/A".to_owned(), change(Value::TooLarge)), ("/B".to_owned(), change(Value::Int(5))));
            assert_eq!(seen, [a, b], "{signature}");
            match read_reply(&body(&value)) {
                (Reply::Value(Value::TooLarge), 0) => {}
                // as an item's value it is too large, as the values of two items one of them is
                (Reply::Value(Value::Dict(items)), 0) => assert!(items.iter().any(|(_, value)| *value == Value::TooLarge)),
                (reply, _) => panic!("{signature}: {reply:?}"),
            }
        }
        let many: BTreeMap<_, _> =
            (0..40).map(|n| (format!("/{n:02}"), HashMap::from([("Value", Variant::from(vec![1_u8; 30_000]))]))).collect();
        let (Reply::Items(items), skipped) = read_reply(&body(&many)) else { panic!("no items") };
        assert!(items.len() >= 5 && items.len() + skipped == 40, "{}", items.len());
        assert!(items.iter().map(|(_, change)| change.heap()).sum::<usize>() <= limits::REPLY_BYTES);
        assert_eq!(items.first().map(|(path, _)| path.as_str()), Some("/00"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), signature in "[a(){}vsidyog]{0,12}") {
            for endian in [Endian::Little, Endian::Big] {
                let _ = cursor::read_items(&bytes, endian, |_, _| {});
                let _ = cursor::read_change(&bytes, endian);
                let _ = cursor::read_values(&bytes, endian, |_, _| {});
                let _ = cursor::read_value(&bytes, endian, &signature, 1000);
            }
        }

        /// What is taken from clients is what can be built, and it comes back as it was.
        #[test]
        fn taken_is_carried(value in nested()) {
            let mut json = b"{\"value\":".to_vec();
            value.write_json(&mut json);
            json.push(b'}');
            let parsed = value::parse_payload(&json);
            let built = to_typed(&value, value.layout().signature)
                .and_then(|variant| Message::method_call("/X", "SetValue").build(&variant));
            proptest::prop_assert_eq!(parsed.is_ok(), built.is_ok(), "{} {:?}", value.signature(), built);
            if let (Ok(parsed), Ok(message)) = (parsed, built) {
                let argument = cursor::read_value(message.body().data(), Endian::Little, "v", usize::MAX).unwrap();
                let shown = |value: &Value| {
                    let mut out = Vec::new();
                    value.write_json(&mut out);
                    String::from_utf8(out).unwrap()
                };
                // an empty object is no value to those who read it
                proptest::prop_assert_eq!(shown(&argument), shown(&parsed).replace("{}", "null"));
            }
        }
    }

    /// Values about as deep as D-Bus carries.
    fn nested() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Invalid),
            Just(Value::Int(1)),
            Just(Value::Int(1 << 40)),
            Just(Value::Double(0.5)),
            Just(Value::Str("x".into())),
            Just(Value::Dict([].into()))
        ];
        let layers = proptest::collection::vec((0..3_u8, 1..24_usize), 1..5);
        (leaf, layers).prop_map(|(leaf, layers)| {
            layers.into_iter().fold(leaf, |value, (kind, count)| {
                (0..count).fold(value, |value, _| match kind {
                    0 => Value::Array([value].into()),
                    1 => Value::Dict([("a".into(), value)].into()),
                    _ => Value::Array([Value::Bool(true), value].into()),
                })
            })
        })
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

    /// The values of an inner path have texts as keys; other dictionaries are those of an item.
    #[test]
    fn dictionaries() {
        let tree = Variant::from(HashMap::from([("a", Variant::I32(1))]));
        let entry = |value| Value::Dict([("1".into(), value)].into());
        assert!(matches!(read_reply(&body(&tree)).0, Reply::Value(Value::Dict(_))));
        assert_eq!(read_reply(&body(&Variant::from(HashMap::from([(1, 2)])))).0, Reply::Item(entry(Value::Int(2))));
        assert_eq!(read_reply(&body(&Variant::from(HashMap::from([("1", "x")])))).0, Reply::Item(entry(Value::Str("x".into()))));
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
