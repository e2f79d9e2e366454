//! The face of a simulated service on the bus: a connection of its own, and what is answered on it.
//!
//! Promises: calls are answered as velib answers them, with or without an interface header, to the unique name as well as to
//! the well-known one; items are there before the name is. There is no object server behind it: every call is read here.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream;
use tokio::sync::mpsc;
use zbus::fdo::RequestNameFlags;
use zbus::message::{Flags, Type};
use zbus::{Connection, Message, MessageStream, Variant};

use crate::items::{Item, Items, Limits, Style, Value, as_f64};
use crate::settings;

const ITEM: &str = "com.victronenergy.BusItem";
const SETTINGS: &str = "com.victronenergy.Settings";
const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";
const UNKNOWN_OBJECT: &str = "org.freedesktop.DBus.Error.UnknownObject";
const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";

type Entry = BTreeMap<&'static str, Variant<'static>>;

/// Connects to the bus and takes the name; calls arrive at `calls`, marked with `number`.
pub async fn connect(address: &str, name: &'static str, number: usize, calls: mpsc::Sender<(usize, Message)>) -> zbus::Result<Connection> {
    let connection = zbus::connection::Builder::address(address).build().await?;
    let mut stream = MessageStream::from(&connection);
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
            if message.message_type() == Type::MethodCall && calls.send((number, message)).await.is_err() {
                break;
            }
        }
    });
    connection.request_name_with_flags(name, RequestNameFlags::DO_NOT_QUEUE).await?;
    Ok(connection)
}

/// The reply to a call, and what it did to the items. `None`: the caller wants no reply.
pub fn answer(items: &mut Items, call: &Message) -> zbus::Result<Option<Message>> {
    let header = call.header();
    let path = header.path().map_or("", |path| path.as_str());
    let member = header.member().map_or("", |member| member.as_str());
    let interface = header.interface().map(|interface| interface.as_str());
    let reply = || Message::method_return(&header);
    let refuse = |name: &'static str, text: String| Message::error(&header, name).build(&text);

    let message = match (interface, member) {
        (None | Some(ITEM), "GetItems") if path == "/" && items.style != Style::Older => {
            reply().build(&items.iter().map(|(path, item)| (path, entry(item))).collect::<BTreeMap<_, _>>())
        }
        (None | Some(ITEM), "GetValue") => match items.get(path) {
            Some(item) => reply().build(&variant(&item.value)),
            None => match tree(items, path, |item| variant(&item.value)) {
                Some(values) => reply().build(&values),
                None => refuse(UNKNOWN_OBJECT, format!("no item at {path}")),
            },
        },
        (None | Some(ITEM), "GetText") => match items.get(path) {
            Some(item) => reply().build(&item.text()),
            None => match tree(items, path, |item| item.text().into()) {
                Some(texts) => reply().build(&texts),
                None => refuse(UNKNOWN_OBJECT, format!("no item at {path}")),
            },
        },
        (None | Some(ITEM), "SetValue") => match call.body().deserialize::<Variant<'_>>() {
            Ok(written) => reply().build(&write(items, path, value(&written))),
            Err(error) => refuse(INVALID_ARGS, format!("SetValue takes one variant: {error}")),
        },
        (None | Some(ITEM), "GetMin" | "GetMax" | "GetDefault") => match items.get(path) {
            Some(item) => reply().build(&entry(item).remove(member.trim_start_matches("Get")).unwrap_or_else(|| variant(&Value::Invalid))),
            None => refuse(UNKNOWN_OBJECT, format!("no item at {path}")),
        },
        (None | Some(SETTINGS), "AddSettings") if path == "/" && items.style == Style::Settings => match call.body().deserialize() {
            Ok(asked) => reply().build(&add_settings(items, asked)),
            Err(error) => refuse(INVALID_ARGS, format!("AddSettings takes a list of dictionaries: {error}")),
        },
        (None | Some(SETTINGS), "RemoveSettings") if path == "/" && items.style == Style::Settings => {
            match call.body().deserialize::<Vec<&str>>() {
                Ok(paths) => reply().build(&paths.into_iter().map(|path| if items.remove(path) { 0 } else { -1 }).collect::<Vec<i32>>()),
                Err(error) => refuse(INVALID_ARGS, format!("RemoveSettings takes a list of paths: {error}")),
            }
        }
        (None | Some("org.freedesktop.DBus.Introspectable"), "Introspect") => reply().build(&introspection(items, path)),
        (None | Some("org.freedesktop.DBus.Peer"), "Ping") => reply().build(&()),
        _ => refuse(UNKNOWN_METHOD, format!("no method {member} at {path}")),
    }?;
    let wanted = !call.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED);
    Ok(wanted.then_some(message))
}

/// The signals that tell what changed since they were last made.
pub fn signals(items: &mut Items) -> zbus::Result<Vec<Message>> {
    let changed = items.take_changes();
    let changed = changed.iter().map(|path| (&**path, change(items, path)));
    if items.style == Style::Items && changed.len() > 1 {
        return Ok(vec![Message::signal("/", ITEM, "ItemsChanged").build(&changed.collect::<BTreeMap<_, _>>())?]);
    }
    changed.map(|(path, entry)| Message::signal(path, ITEM, "PropertiesChanged").build(&entry)).collect()
}

fn change(items: &Items, path: &str) -> Entry {
    match items.get(path) {
        // a setting may have become another one
        Some(item) if items.style == Style::Settings => entry(item),
        Some(item) => value_and_text(item),
        None => BTreeMap::from([("Value", variant(&Value::Invalid)), ("Text", "---".into())]),
    }
}

fn write(items: &mut Items, path: &str, written: Value) -> i32 {
    let written = if items.style == Style::Settings { settings::free(items, path, written) } else { written };
    items.write(path, written)
}

fn add_settings(items: &mut Items, asked: Vec<HashMap<String, Variant<'_>>>) -> Vec<Entry> {
    let add = |asked: HashMap<String, Variant<'_>>| {
        let field = |name: &str| asked.get(name).map_or(Value::Invalid, value);
        let path = if let Value::Text(path) = field("path") { path } else { String::new() };
        let number = |name: &str| as_f64(&field(name)).unwrap_or(0.0);
        let added = settings::add(items, &path, field("default"), Limits { min: number("min"), max: number("max") });
        let mut result = BTreeMap::from([("path", path.into()), ("error", added.as_ref().err().copied().unwrap_or(0).into())]);
        result.extend(added.ok().map(|value| ("value", variant(&value))));
        result
    };
    asked.into_iter().map(add).collect()
}

fn entry(item: &Item) -> Entry {
    let mut entry = value_and_text(item);
    if let Some(limits) = item.limits {
        entry.insert("Min", variant(&item.number(limits.min)));
        entry.insert("Max", variant(&item.number(limits.max)));
    }
    if let Some(default) = &item.default {
        entry.insert("Default", variant(default));
    }
    entry
}

fn value_and_text(item: &Item) -> Entry {
    BTreeMap::from([("Value", variant(&item.value)), ("Text", item.text().into())])
}

fn tree(items: &Items, path: &str, show: impl Fn(&Item) -> Variant<'static>) -> Option<Variant<'static>> {
    let below: BTreeMap<String, Variant<'static>> =
        items.below(path).into_iter().map(|(path, item)| (path.to_owned(), show(item))).collect();
    (!below.is_empty()).then(|| below.into())
}

fn variant(value: &Value) -> Variant<'static> {
    match value {
        Value::Int(value) => (*value).into(),
        Value::Double(value) => (*value).into(),
        Value::Text(value) => value.clone().into(),
        Value::Invalid => Vec::<i32>::new().into(),
    }
}

fn value(written: &Variant<'_>) -> Value {
    match written {
        Variant::U8(value) => Value::Int((*value).into()),
        Variant::Bool(value) => Value::Int((*value).into()),
        Variant::I16(value) => Value::Int((*value).into()),
        Variant::U16(value) => Value::Int((*value).into()),
        Variant::I32(value) => Value::Int(*value),
        Variant::U32(value) => i32::try_from(*value).map_or(Value::Invalid, Value::Int),
        Variant::I64(value) => i32::try_from(*value).map_or(Value::Invalid, Value::Int),
        Variant::F64(value) => Value::Double(*value),
        Variant::Str(value) => Value::Text(value.to_string()),
        Variant::Variant(inner) => self::value(inner),
        // the simulated items always have a value: an empty array is refused like any other type
        _ => Value::Invalid,
    }
}

fn introspection(items: &Items, path: &str) -> String {
    let mut children: Vec<&str> = items.below(path).into_keys().filter_map(|path| path.split('/').next()).collect();
    children.dedup();
    let children: String = children.iter().map(|child| format!("<node name=\"{child}\"/>")).collect();
    let interface = if items.get(path).is_some() { format!("<interface name=\"{ITEM}\"/>") } else { String::new() };
    format!("<node>{interface}{children}</node>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(style: Style) -> Items {
        let mut items = Items::new("com.victronenergy.grid.test", Some(30), "Meter");
        items.style = style;
        items.double("/Ac/L1/Power", "W", 0, 120.0);
        items.double("/Ac/L1/Voltage", "V", 1, 231.04);
        items.int("/Role", "", 1).limited(0.0, 3.0, Some(1.0));
        items.take_changes();
        items
    }

    fn call(items: &mut Items, path: &str, member: &str) -> Message {
        let call = Message::method_call(path, member).build(&()).unwrap();
        answer(items, &call).unwrap().unwrap()
    }

    #[test]
    fn calls_without_an_interface_are_answered() {
        let mut items = grid(Style::Items);
        let reply = call(&mut items, "/", "GetItems");
        assert_eq!(reply.body().signature().to_string(), "a{sa{sv}}");
        let reply = call(&mut items, "/Ac/L1/Voltage", "GetText");
        assert_eq!(reply.body().deserialize::<String>().unwrap(), "231.0V");
        let reply = call(&mut items, "/Role", "GetMax");
        assert_eq!(reply.body().deserialize::<Variant<'_>>().unwrap(), Variant::I32(3));
    }

    #[test]
    fn an_inner_path_gives_relative_keys_without_a_slash() {
        let reply = call(&mut grid(Style::Items), "/Ac", "GetValue");
        assert_eq!(reply.body().signature().to_string(), "v");
        let body = reply.body();
        let Variant::Dict(values) = body.deserialize().unwrap() else { unreachable!() };
        assert_eq!(values.get::<_, f64>(&"L1/Power").unwrap(), Some(120.0));
    }

    #[test]
    fn an_older_service_has_no_getitems_and_signals_one_by_one() {
        let mut items = grid(Style::Older);
        let reply = call(&mut items, "/", "GetItems");
        assert_eq!(reply.header().error_name().unwrap().as_str(), UNKNOWN_METHOD);
        items.set("/Ac/L1/Power", 130.0);
        items.set("/Ac/L1/Voltage", 230.0);
        assert_eq!(signals(&mut items).unwrap().len(), 2);
    }

    #[test]
    fn one_change_is_a_properties_changed_several_are_one_items_changed() {
        let mut items = grid(Style::Items);
        items.set("/Ac/L1/Power", 130.0);
        let member = |message: &Message| message.header().member().unwrap().to_string();
        assert_eq!(signals(&mut items).unwrap().iter().map(member).collect::<Vec<_>>(), ["PropertiesChanged"]);
        items.set("/Ac/L1/Power", 140.0);
        items.set("/Ac/L1/Voltage", 230.0);
        assert_eq!(signals(&mut items).unwrap().iter().map(member).collect::<Vec<_>>(), ["ItemsChanged"]);
        assert!(signals(&mut items).unwrap().is_empty());
    }

    /// Which entries of an item its last change has told.
    fn told(items: &mut Items) -> Vec<String> {
        let [signal] = &signals(items).unwrap()[..] else { panic!("not one signal") };
        assert_eq!(signal.header().member().unwrap().as_str(), "PropertiesChanged");
        let mut told: Vec<String> = signal.body().deserialize::<HashMap<String, Variant<'_>>>().unwrap().into_keys().collect();
        told.sort();
        told
    }

    #[test]
    fn settings_are_added_written_and_removed() {
        let mut items = Items::new("com.victronenergy.settings", None, "Settings");
        items.style = Style::Settings;
        items.take_changes();
        let path = "/Settings/MqttDevices/mqtt_a_t/Offset";
        let wanted = |path: &'static str, default: f64| HashMap::from([("path", Variant::from(path)), ("default", default.into())]);
        let mut first = wanted(path, 0.0);
        first.extend([("min", Variant::from(-100.0)), ("max", Variant::from(100.0))]);
        let add = Message::method_call("/", "AddSettings").interface(SETTINGS);
        let add = add.build(&vec![first, wanted("/Else/A", 1.0)]).unwrap();
        let reply = answer(&mut items, &add).unwrap().unwrap();
        assert_eq!(reply.body().signature().to_string(), "aa{sv}");
        let body = reply.body();
        let [taken, refused] = &body.deserialize::<Vec<HashMap<String, Variant<'_>>>>().unwrap()[..] else { panic!("not two") };
        assert_eq!((&taken["path"], &taken["error"], &taken["value"]), (&path.into(), &0.into(), &0.0.into()));
        assert_eq!((&refused["error"], refused.get("value")), (&(-9).into(), None));
        assert_eq!(told(&mut items), ["Default", "Max", "Min", "Text", "Value"]);

        for (written, accepted) in [(101.0, false), (1.5, true)] {
            let set = Message::method_call(path, "SetValue").build(&(Variant::from(written),)).unwrap();
            let code = answer(&mut items, &set).unwrap().unwrap().body().deserialize::<i32>().unwrap();
            assert_eq!(code == 0, accepted, "{written}");
        }
        assert_eq!(items.number(path), 1.5);
        signals(&mut items).unwrap();

        let remove = Message::method_call("/", "RemoveSettings").build(&vec![path, "/Settings/Nothing"]).unwrap();
        let reply = answer(&mut items, &remove).unwrap().unwrap();
        assert_eq!(reply.body().deserialize::<Vec<i32>>().unwrap(), [0, -1]);
        assert_eq!(told(&mut items), ["Text", "Value"]);
        assert!(items.get(path).is_none());
    }

    #[test]
    fn only_settings_take_settings() {
        let mut items = grid(Style::Items);
        let reply = call(&mut items, "/", "AddSettings");
        assert_eq!(reply.header().error_name().unwrap().as_str(), UNKNOWN_METHOD);
    }

    #[test]
    fn a_write_is_answered_with_velibs_code() {
        let mut items = grid(Style::Items);
        for (written, code) in [(Variant::from(2), 0), (Variant::from(4), 2), (Variant::from("2"), 1), (Vec::<i32>::new().into(), 1)] {
            let call = Message::method_call("/Role", "SetValue").build(&(written,)).unwrap();
            let reply = answer(&mut items, &call).unwrap().unwrap();
            assert_eq!(reply.body().deserialize::<i32>().unwrap(), code);
        }
        assert_eq!(items.number("/Role"), 2.0);
    }
}
