//! The payload of a W to the body of a SetValue and back, read by the daemon's own reader and by zbus' decoder.

#[path = "message.rs"]
#[allow(dead_code)] // each target uses a part of it
mod message;

use message::{CALL, normal, to_value};
use serde::de::IgnoredAny;
use venus_mqtt::bridge::value::{PayloadError, Value, parse_json, parse_payload, read_payload};
use venus_mqtt::bus::wire;
use zbus::{Message, Variant};

/// Most containers of one body that D-Bus carries, and how many of them may be of one kind.
const CONTAINERS: usize = 64;
const OF_ONE_KIND: usize = 32;

pub fn target(data: &[u8]) {
    let read = parse_payload(data);
    let reference = serde_json::from_slice::<serde_json::Value>(data);
    match (&read, &reference) {
        (Ok(_), Ok(json)) => assert!(json.get("value").is_some(), "a value out of nothing"),
        (Err(PayloadError::NoValue), Ok(json)) => assert!(json.is_object() && json.get("value").is_none()),
        // too deep, a NUL, or no object: all of it JSON
        (Err(PayloadError::Json(_)), _) => {}
        // in texts that are of no interest neither looks for halves of surrogate pairs
        (_, Err(error)) => assert!(serde_json::from_slice::<IgnoredAny>(data).is_ok(), "read, and it is no JSON: {error}"),
    }
    let lenient = read_payload(data);
    match (&read, &lenient) {
        // what is JSON means what it says
        (Ok(_), _) => assert_eq!(read, lenient),
        // an integer beyond 64 bits, which may stand beside the value
        (Err(_), Ok(_)) if data.chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()).any(|run| run.len() >= 19) => {}
        (Err(_), Ok(value)) => assert!(value.has_missing() || reference.is_err(), "it is JSON, and was refused"),
        (Err(why), Err(lenient)) => assert_eq!(why, lenient),
    }
    let Ok(value) = lenient else { return };
    if value.has_missing() {
        return;
    }
    json(&value);
    bus(&value);
}

/// What is printed is read back as it was.
fn json(value: &Value) {
    let mut text = Vec::new();
    value.write_json(&mut text);
    let again = parse_json(&text).unwrap_or_else(|error| panic!("it prints what is no JSON: {error}"));
    assert_eq!(again, *value);
    assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
}

/// Arrays, structures and variants around the innermost value, the variant of the argument with them.
fn containers(value: &Value) -> (usize, usize) {
    let deepest =
        |values: &mut dyn Iterator<Item = &Value>| values.map(containers).fold((0, 0), |(all, arrays), (a, b)| (all.max(a), arrays.max(b)));
    match value {
        // an array, and a variant if its elements differ
        Value::Array(values) => {
            let (all, arrays) = deepest(&mut values.iter());
            (all + 2, arrays + 1)
        }
        // an array of entries with a variant each
        Value::Dict(entries) => {
            let (all, arrays) = deepest(&mut entries.iter().map(|(_, value)| value));
            (all + 3, arrays + 1)
        }
        // "no value" is an array
        Value::Invalid => (1, 1),
        _ => (0, 0),
    }
}

fn bus(value: &Value) {
    let (all, arrays) = containers(value);
    if all >= CONTAINERS || arrays >= OF_ONE_KIND {
        return;
    }
    let variant = wire::to_variant(value).unwrap_or_else(|error| panic!("it cannot be a variant: {error}"));
    assert_eq!(variant.value_signature().to_string(), value.signature());
    let built = Message::method_call("/", "SetValue").build(&variant);
    let built = built.unwrap_or_else(|error| panic!("it cannot be built: {error}"));
    let received = message::receive(built.data().bytes()).unwrap_or_else(|| panic!("it cannot be received"));
    let (body, expected) = (received.body(), normal(value));
    assert_eq!(body.signature().to_string(), "v");
    if let Some(ours) = wire::read_argument(&body) {
        assert_eq!(normal(&ours), expected);
    } else {
        assert!(body.len() > 64 * 1024);
    }
    let theirs: Variant<'_> = body.deserialize().unwrap_or_else(|error| panic!("zbus does not read it: {error}"));
    assert_eq!(to_value(&theirs, usize::MAX).map(|value| normal(&value)), Some(expected));
    // the same bytes as the body of a call of others
    let again = message::message(CALL, "v", body.data()).unwrap_or_else(|| panic!("it cannot be received again"));
    assert_eq!(wire::read_argument(&again.body()).map(|value| normal(&value)), wire::read_argument(&body).map(|value| normal(&value)));
}
