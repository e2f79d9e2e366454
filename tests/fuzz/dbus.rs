//! Bodies from the bus: what is read of them is what zbus reads, and its size is bounded by theirs.

#[path = "message.rs"]
#[allow(dead_code)] // each target uses a part of it
mod message;

use std::collections::HashMap;

use message::{CALL, REPLY, normal, to_value};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Change, Reply};
use venus_mqtt::bus::wire;
use zbus::message::Body;
use zbus::wire::DynamicDeserialize;
use zbus::{Message, Variant};

/// Signatures of what is read, and some that nobody expects.
const SIGNATURES: [&str; 16] =
    ["a{sa{sv}}", "a{sv}", "v", "s", "as", "i", "u", "x", "a{sa{sv}}", "aa{sv}", "ai", "av", "a(isv)", "a{us}", "sss", "t"];

/// So deep that the daemon shows all of it, and the decoders agree.
const DEPTH: usize = 8;

pub fn target(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    // any bytes for a message
    if *choice == 255 {
        if let Some(message) = message::receive(body) {
            read(&message);
        }
        return;
    }
    let signature = SIGNATURES[usize::from(*choice) % SIGNATURES.len()];
    let kind = if *choice & 0x80 == 0 { REPLY } else { CALL };
    if let Some(message) = message::message(kind, signature, body) {
        read(&message);
    }
}

type Entry = HashMap<String, Value>;

fn read(message: &Message) {
    let body = message.body();
    match body.signature().to_string().as_str() {
        "a{sa{sv}}" => items(message),
        "a{sv}" => change(message),
        "v" => variant(message),
        _ => {}
    }
    match wire::read_reply(&body).0 {
        Reply::Text(text) => assert_eq!(body.deserialize::<String>().ok(), Some(text)),
        Reply::Names(names) => assert!(names.len() <= body.len()),
        Reply::Value(value) | Reply::Item(value) => assert!(size(&value) <= 4 * body.len() + 4, "{} of {}", size(&value), body.len()),
        _ => {}
    }
    let _ = wire::read_argument(&body);
    let _ = wire::read_names(&body);
}

/// Values in all.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(size).sum::<usize>(),
        Value::Dict(entries) => 1 + entries.iter().map(|(_, value)| 1 + size(value)).sum::<usize>(),
        _ => 1,
    }
}

fn entry(fields: &HashMap<&str, Variant<'_>>) -> Option<Entry> {
    fields
        .iter()
        .filter(|(key, _)| ["Value", "Min", "Max", "Default"].contains(*key))
        .map(|(key, value)| Some(((*key).to_owned(), normal(&to_value(value, DEPTH)?))))
        .collect()
}

fn of(change: &Change) -> Entry {
    let fields = [("Value", &change.value), ("Min", &change.min), ("Max", &change.max), ("Default", &change.default)];
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), normal(value.as_ref()?)))).collect()
}

/// What zbus reads of a body that a bus passes on. It reads others as well, without terminators or with something behind them.
fn whole<'b, T: DynamicDeserialize<'b>>(body: &'b Body) -> Option<T> {
    body.validate().ok()?;
    body.deserialize().ok()
}

fn items(message: &Message) {
    let body = message.body();
    let mut ours = HashMap::new();
    let read = wire::read_items(&body, |path, change| drop(ours.insert(path.to_owned(), of(&change))));
    let theirs = whole::<HashMap<&str, HashMap<&str, Variant<'_>>>>(&body);
    if let Some(theirs) = &theirs
        && let Some(theirs) =
            theirs.iter().map(|(path, fields)| Some(((*path).to_owned(), entry(fields)?))).collect::<Option<HashMap<_, _>>>()
    {
        assert!(read.is_ok(), "zbus reads it: {read:?}");
        assert_eq!(ours, theirs);
    }
    assert!(ours.len() <= body.len() / 8 + 1);
}

fn change(message: &Message) {
    let body = message.body();
    let read = wire::read_change(&body);
    if let Some(theirs) = whole::<HashMap<&str, Variant<'_>>>(&body)
        && let Some(theirs) = entry(&theirs)
    {
        assert_eq!(read.as_ref().ok().map(of), Some(theirs), "{read:?}");
    }
}

fn variant(message: &Message) {
    let body = message.body();
    if let Some(theirs) = whole::<Variant<'_>>(&body)
        && let Some(theirs) = to_value(&theirs, DEPTH)
    {
        match wire::read_reply(&body).0 {
            Reply::Value(ours) | Reply::Item(ours) => assert_eq!(normal(&ours), normal(&theirs)),
            other => panic!("zbus reads it as {theirs:?}: {other:?}"),
        }
    }
}
