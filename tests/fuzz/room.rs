//! The room of devices with a localsettings beside it, for the targets of what devices send.

#[path = "../devices/localsettings.rs"]
mod localsettings;

use std::collections::BTreeMap;
use std::time::Duration;

use localsettings::LocalSettings;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::Options as BridgeOptions;
use venus_mqtt::bridge::topic::{check_filter, check_topic};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{LinkCommand, Method, Mode, Reply, Time};
use venus_mqtt::device::catalogue::Catalogue;
use venus_mqtt::device::options::Options;
use venus_mqtt::device::{BusCommand, BusEvent, Devices, ForeignWrite, Key, Setup, registry};
use zbus::ObjectPath;
use zbus::names::WellKnownName;

pub const PORTAL: &str = "c0619ab1c2d3";
const UNIX: u64 = 1_795_259_400;

pub struct Room {
    pub devices: Devices,
    settings: LocalSettings,
    names: BTreeMap<Key, String>,
    pub published: Vec<(String, String)>,
    pub emitted: Vec<(String, String, Value)>,
    pub writes: Vec<ForeignWrite>,
}

pub fn now() -> Time {
    Time::since_start(Duration::from_secs(1))
}

impl Room {
    pub fn new(disk: Option<&str>) -> Self {
        let registry = disk.map(|text| registry::parse(text).expect("it is ours").0).unwrap_or_default();
        let devices = Devices::new(Setup {
            portal: PortalId::parse(PORTAL).expect("it is one"),
            prefix: "boat/".into(),
            options: Options::default(),
            bridge: BridgeOptions::default(),
            catalogue: Catalogue::shipped(),
            registry,
            unix: UNIX,
            verbosity: log::Level::Debug,
        });
        let (published, emitted, writes) = (Vec::new(), Vec::new(), Vec::new());
        let mut room = Self { devices, settings: LocalSettings::default(), names: BTreeMap::new(), published, emitted, writes };
        room.devices.bus_up(now());
        room.devices.link_up(now());
        room.devices.set_mode(now(), Mode::Bridge);
        room.devices.set_online(now(), true);
        room.pump();
        room
    }

    pub fn message(&mut self, topic: &str, payload: &[u8]) {
        assert!(self.devices.message(now(), topic, payload, false));
        self.pump();
    }

    pub fn registry(&self) -> String {
        registry::print(&self.devices.list(now(), UNIX))
    }

    /// The names on the bus.
    pub fn names(&self) -> Vec<&str> {
        self.names.values().map(String::as_str).collect()
    }

    /// Does what is asked, and holds everything that leaves against what the other side takes.
    pub fn pump(&mut self) {
        loop {
            let mut quiet = true;
            self.devices.check_numbers(now(), |_, _| Some(Vec::new()));
            while let Some(command) = self.devices.poll_bus() {
                quiet = false;
                self.obey(command);
            }
            while let Some(call) = self.devices.poll_call(now()) {
                quiet = false;
                assert!(ObjectPath::try_from(&*call.path).is_ok(), "{}", call.path);
                let reply = match &call.method {
                    Method::GetNameOwner(_) => Reply::Text(":1.5".into()),
                    method => self.settings.answer(&call.path, method).expect("a call of localsettings"),
                };
                self.devices.reply(now(), call.id, reply);
            }
            if quiet {
                break;
            }
        }
        while let Some(command) = self.devices.poll_link() {
            let (LinkCommand::Subscribe(filters) | LinkCommand::Unsubscribe(filters)) = command;
            assert!(filters.iter().all(|filter| check_filter(filter).is_ok()), "{filters:?}");
        }
        while let Some(write) = self.devices.poll_write() {
            self.writes.push(write);
        }
        while let Some(note) = self.devices.poll_note() {
            assert!(note.text.len() < 8192 && !note.text.contains('\n'), "{}", note.text);
        }
        while let Some(publish) = self.devices.poll_publish() {
            assert_eq!(check_topic(&publish.topic), Ok(()));
            let payload = String::from_utf8(publish.payload).expect("it is text");
            assert!(serde_json::from_str::<serde_json::Value>(&payload).is_ok(), "{payload}");
            self.published.push((publish.topic, payload));
        }
    }

    fn obey(&mut self, command: BusCommand) {
        match command {
            BusCommand::Open { key, name } => {
                assert!(WellKnownName::try_from(name.as_str()).is_ok(), "{name}");
                assert!(!self.names.values().any(|taken| *taken == name), "{name} is taken");
                self.names.insert(key, name);
                self.devices.bus_event(now(), key, BusEvent::Up);
                self.devices.bus_event(now(), key, BusEvent::Known);
            }
            BusCommand::Emit { key, items, .. } => {
                let name = self.names.get(&key).expect("it is open").clone();
                for item in items {
                    assert!(ObjectPath::try_from(&*item.path).is_ok() && !item.text.contains('\0'), "{item:?}");
                    self.emitted.push((name.clone(), item.path.into(), item.value));
                }
            }
            BusCommand::Close { key } => {
                self.names.remove(&key).expect("it is open");
                self.devices.bus_event(now(), key, BusEvent::Down);
            }
        }
    }
}
