//! A Status: refused with why, or a device whose names, topics and filters are all ones that the other side takes, and which the
//! registry brings back as it was.

#[path = "room.rs"]
#[allow(dead_code)] // each target uses a part of it
mod room;

use std::collections::BTreeSet;

use room::{PORTAL, Room};
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::topic::{Topics, check_topic};
use venus_mqtt::device::status::{Request, Status};

pub fn target(data: &[u8]) {
    let (id, payload) = match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (String::from_utf8_lossy(&data[..at]).into_owned(), &data[at + 1..]),
        None => ("fe001".to_owned(), data),
    };
    // a level of a topic, as it comes from a broker
    if id.contains('/') || id.is_empty() {
        return;
    }
    let topics = Topics::new("boat/", PortalId::parse(PORTAL).expect("it is one"));
    let parsed = Status::parse(&topics, &id, payload);
    let mut room = Room::new(None);
    room.message(&format!("boat/device/{id}/Status"), payload);
    let errors: Vec<_> = room.published.iter().filter(|(topic, _)| topic.ends_with("/Error")).collect();
    match parsed {
        Ok(Status { client, request }) => {
            assert!((1..=32).contains(&client.raw().chars().count()) && check_topic(&topics.device(client.raw(), "DBus")).is_ok());
            if let Request::Register(registration) = request {
                assert!(registration.version.chars().count() <= 64 && !registration.version.contains('\0'));
                let names: BTreeSet<_> = registration.services.iter().map(|(id, _)| id.name()).collect();
                assert_eq!(names.len(), registration.services.len(), "two services with one name");
                if let Some(will) = &registration.will {
                    assert_eq!(check_topic(&topics.prefixed(&will.topic)), Ok(()));
                    assert!(will.value.len() <= 256);
                }
                // all of it, or nothing and why
                let on_the_bus = room.names().len();
                assert!(on_the_bus == names.len() && errors.is_empty() || on_the_bus == 0 && !errors.is_empty(), "{errors:?}");
            } else {
                assert!(room.names().is_empty() && errors.is_empty());
            }
        }
        Err(why) => {
            assert!(room.names().is_empty());
            let sendable = check_topic(&topics.device(&id, "Error")).is_ok();
            assert!(payload.is_empty() || !sendable || errors.iter().any(|(_, payload)| payload.contains("error")), "{why}");
        }
    }
    // the next daemon has the same devices on the bus
    let disk = room.registry();
    let again = Room::new(Some(&disk));
    let sorted = |room: &Room| room.names().into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&room), sorted(&again), "{disk}");
}
