//! A Proxy message of a registered device: as many writes as it has values, none of them to what was not meant, and an answer where one
//! was refused.

#[path = "room.rs"]
#[allow(dead_code)] // each target uses a part of it
mod room;

use std::cell::RefCell;

use room::{PORTAL, Room};
use venus_mqtt::bridge::value::{Value, read_json};

const STATUS: &str = r#"{"clientId":"fe001","connected":1,"services":{"t1":"temperature","s1":"tank"}}"#;

thread_local! {
    /// Registered once: what a message changes, the next one may change again.
    static ROOM: RefCell<Room> = RefCell::new({
        let mut room = Room::new(None);
        room.message("boat/device/fe001/Status", STATUS.as_bytes());
        assert_eq!(room.names().len(), 2);
        room
    });
}

pub fn target(data: &[u8]) {
    ROOM.with_borrow_mut(|room| {
        room.published.clear();
        room.emitted.clear();
        room.writes.clear();
        room.message("boat/device/fe001/Proxy", data);
        check(room, data);
    });
}

fn check(room: &Room, payload: &[u8]) {
    let json = read_json(payload);
    let errors: Vec<_> = room.published.iter().filter(|(topic, _)| topic == "boat/device/fe001/Error").collect();
    assert_eq!(errors.len(), room.published.len(), "nothing but errors comes of it: {:?}", room.published);
    assert!(errors.len() <= 1 && errors.iter().all(|(_, text)| text.len() < 8192), "{errors:?}");
    let nothing = room.emitted.is_empty() && room.writes.is_empty();
    assert!(json.is_ok() || nothing && !errors.is_empty(), "it is no JSON");
    assert!(serde_json::from_slice::<serde_json::Value>(payload).is_err() || json.is_ok() || nothing);
    // no more than was sent: a new item may bring its family
    let values = payload.iter().filter(|byte| **byte == b':').count();
    assert!(room.writes.len() <= values);
    assert_eq!(room.names().len(), 2, "it costs no service");
    for (name, path, value) in &room.emitted {
        assert!(name.ends_with(".mqtt_fe001_t1") || name.ends_with(".mqtt_fe001_s1"), "{name}{path}");
        assert!(!path.starts_with("/Mgmt/") && !matches!(path.as_str(), "/DeviceInstance" | "/Connected"), "{path} is ours to say");
        match value {
            Value::Str(text) => assert!(text.len() <= 1024 && !text.contains('\0')),
            Value::Double(d) => assert!(d.is_finite()),
            Value::Int(n) => assert!(i32::try_from(*n).is_ok()),
            Value::Array(values) => assert!(values.len() <= 64),
            Value::Invalid => {}
            other => panic!("no item has such a value: {other:?}"),
        }
    }
    for write in &room.writes {
        assert!(write.service_type.len() <= 64 && write.instance.len() <= 64);
        let Ok(Value::Dict(fields)) = &json else { panic!("a write out of nothing") };
        let path = fields.iter().rfind(|(key, _)| **key == *"topicPath").map(|(_, path)| path);
        assert!(matches!(path, Some(Value::Str(path)) if path.contains(PORTAL)));
    }
}
