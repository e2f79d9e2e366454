//! Messages of the bus out of any bytes, received as the daemon receives them; values as zbus' own decoder reads them.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use venus_mqtt::bridge::value::Value;
use zbus::connection::socket::ReadHalf;
use zbus::{Message, Variant};

/// A socket from which nothing more comes.
#[derive(Debug)]
struct Ended;

#[async_trait::async_trait]
impl ReadHalf for Ended {
    async fn recvmsg(&mut self, _into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((0, Vec::new()))
    }
}

/// Receives a whole message, as from a socket.
pub fn receive(bytes: &[u8]) -> Option<Message> {
    let mut bytes = bytes.to_vec();
    let mut fds = Vec::new();
    let mut ended = Ended;
    let receiving = pin!(ended.receive_message(0, &mut bytes, &mut fds));
    match receiving.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(message) => message.ok(),
        Poll::Pending => unreachable!("everything is there"),
    }
}

/// Kinds of messages, as on the wire.
pub const CALL: u8 = 1;
pub const REPLY: u8 = 2;

/// A message of this kind with any bytes for a body, in the byte order of this machine's kind.
pub fn message(kind: u8, signature: &str, body: &[u8]) -> Option<Message> {
    let mut fields = Vec::new();
    let mut text = |code: u8, kind: u8, value: &str| {
        fields.resize(usize::next_multiple_of(fields.len(), 8), 0);
        fields.extend([code, 1, kind, 0]);
        if kind == b'g' {
            fields.push(u8::try_from(value.len()).unwrap_or_default());
        } else {
            fields.extend(u32::try_from(value.len()).unwrap_or_default().to_le_bytes());
        }
        fields.extend_from_slice(value.as_bytes());
        fields.push(0);
    };
    text(1, b'o', "/");
    text(3, b's', "SetValue");
    text(7, b's', ":1.42");
    if !signature.is_empty() {
        text(8, b'g', signature);
    }
    if kind == REPLY {
        fields.resize(usize::next_multiple_of(fields.len(), 8), 0);
        fields.extend([5, 1, b'u', 0, 7, 0, 0, 0]);
    }
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or_default().to_le_bytes();
    let mut out = vec![b'l', kind, 0, 1];
    out.extend(length(body));
    out.extend(1_u32.to_le_bytes());
    out.extend(length(&fields));
    out.extend(fields);
    out.resize(usize::next_multiple_of(out.len(), 8), 0);
    out.extend_from_slice(body);
    receive(&out)
}

/// What zbus' own decoder has read, as a value; `None` for what holds more containers than `depth`.
pub fn to_value(variant: &Variant<'_>, depth: usize) -> Option<Value> {
    let list = |values: &[Variant<'_>]| {
        let values: Option<Vec<_>> = values.iter().map(|value| to_value(value, depth.checked_sub(1)?)).collect();
        values.map(|values| if values.is_empty() { Value::Invalid } else { Value::Array(values.into()) })
    };
    Some(match variant {
        Variant::U8(n) => Value::Int((*n).into()),
        Variant::Bool(yes) => Value::Bool(*yes),
        Variant::I16(n) => Value::Int((*n).into()),
        Variant::U16(n) => Value::Int((*n).into()),
        Variant::I32(n) => Value::Int((*n).into()),
        Variant::U32(n) => Value::Int((*n).into()),
        Variant::I64(n) => Value::Int(*n),
        Variant::U64(n) => i64::try_from(*n).map_or(Value::UInt(*n), Value::Int),
        Variant::F64(d) => Value::Double(*d),
        Variant::Str(text) => Value::Str(text.as_str().into()),
        // zbus reads `vs` and `(vs)` as one and the same
        Variant::Signature(zbus::wire::Signature::Structure(_)) => return None,
        Variant::Signature(signature) => Value::Str(signature.to_string().into()),
        Variant::ObjectPath(path) => Value::Str(path.as_str().into()),
        Variant::Variant(inner) => to_value(inner, depth.checked_sub(1)?)?,
        Variant::Array(array) => list(array.inner())?,
        Variant::Structure(fields) => list(fields.fields())?,
        Variant::Dict(dict) => {
            let entries: Option<Vec<_>> =
                dict.iter().map(|(key, value)| Some((to_key(key)?, to_value(value, depth.checked_sub(1)?)?))).collect();
            let entries = entries?;
            if entries.is_empty() { Value::Invalid } else { Value::Dict(entries.into()) }
        }
        Variant::Fd(_) => Value::Invalid,
    })
}

fn to_key(key: &Variant<'_>) -> Option<Box<str>> {
    match to_value(key, 1)? {
        Value::Str(text) => Some(text),
        other => {
            let mut text = Vec::new();
            other.write_json(&mut text);
            Some(String::from_utf8_lossy(&text).into())
        }
    }
}

/// One form for values that mean the same: entries in the order of their keys, the last of each; what is empty is invalid; a number
/// that is none has one form.
pub fn normal(value: &Value) -> Value {
    match value {
        Value::Double(d) if d.is_nan() => Value::Str("NaN".into()),
        Value::Array(values) => Value::Array(values.iter().map(normal).collect()),
        Value::Dict(entries) => {
            let entries: std::collections::BTreeMap<_, _> = entries.iter().map(|(key, value)| (key.clone(), normal(value))).collect();
            if entries.is_empty() { Value::Invalid } else { Value::Dict(entries.into_iter().collect()) }
        }
        other => other.clone(),
    }
}
