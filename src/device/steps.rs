//! One service at a time, from what it is to what its device wants: settings, connection, name, and back.

use std::sync::Arc;

use log::Level;

use super::catalogue::ServiceType;
use super::model::{Key, Place, Service, Silence, State};
use super::served::Served;
use super::service::{ACCEPTED, Answer, Call, Exported, ItemAnswer, REFUSED, WRONG};
use super::{BusCommand, BusEvent, Devices};
use crate::bridge::notes::Kind;
use crate::bridge::topic::Topics;
use crate::bridge::value::Value;
use crate::bridge::{Time, limits};
use crate::text::escape;

const PROCESS: &str = env!("CARGO_PKG_NAME");
const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Devices {
    pub(super) fn drive_all(&mut self, now: Time, index: usize) {
        // in the order of the Status, so that the first gets the first number
        let count = self.devices.get(index).map_or(0, |device| device.services.len());
        (0..count).for_each(|service| self.drive(now, (index, service)));
        self.settle(now, index);
        self.end_asking();
    }

    /// The next step of a service.
    fn drive(&mut self, now: Time, place: Place) {
        let there = self.settings.is_there();
        let Some(device) = self.devices.get_mut(place.0) else { return };
        let online = device.online;
        let Some(service) = device.services.get_mut(place.1) else { return };
        let away = service.silence == Silence::Left;
        let on = online && service.wanted && service.next_kind.is_none() && !service.restarts && !away;
        match service.state {
            State::Off | State::Waiting | State::Failed { .. } if !on => {
                service.state = State::Off;
                if service.restarts {
                    service.restarts = false;
                    return self.drive(now, place);
                }
                // it comes back with its settings, which localsettings may not have yet
                if away && online && service.wanted && service.next_kind.is_none() {
                    return;
                }
                let values = service.exported.take();
                service.kept.clear();
                service.reset_liveness();
                if let Some(kind) = service.next_kind.take() {
                    self.change_kind(now, place, kind, values);
                    self.drive(now, place);
                }
            }
            State::Failed { retry } if retry > now => {}
            State::Off | State::Waiting | State::Failed { .. } => {
                if device.patience.is_none() && service.state != State::Waiting {
                    device.patience = Some(now + limits::SETTINGS_PATIENCE);
                }
                service.state = State::Waiting;
                if there {
                    self.ask_settings(now, place);
                }
            }
            State::Opening | State::Up if !on => {
                let moves = service.restarts;
                self.close(place, true);
                // should it be wanted again before its connection is closed, it comes back with what was chosen, and not with what was measured
                if !moves && let Some(exported) = self.service_mut(place).and_then(|service| service.exported.as_mut()) {
                    exported.expire();
                }
            }
            // the answer decides
            State::Asking | State::Opening | State::Up | State::Closing => {}
        }
    }

    /// Nothing but its ID stays. Settings that the new type has too stay where the user has chosen something.
    fn change_kind(&mut self, now: Time, place: Place, kind: Box<str>, values: Option<Exported>) {
        let new = self.catalogue.service_type(&kind);
        let old = self.service(place).and_then(|service| self.catalogue.service_type(&service.kind));
        let stays = |path: &str| {
            // of a device that was away nobody knows what the user has chosen
            let chosen = |values: &Exported| values.spec(path).is_some_and(|old| values.value(path) != Some(&old.default));
            let has =
                |kind: &Arc<ServiceType>| kind.items.iter().find(|(known, spec)| **known == *path && spec.kept).map(|(_, spec)| spec.kind);
            values.as_ref().is_none_or(chosen) && old.as_ref().and_then(has).is_some_and(|kind| new.as_ref().and_then(has) == Some(kind))
        };
        let slug = self.service(place).map(|service| service.slug.clone()).unwrap_or_default();
        let mut paths = self.setting_paths(place);
        paths.retain(|full| !full.split_once(&*slug).is_some_and(|(_, path)| stays(path)));
        self.clear_settings(now, paths);
        if let Some(service) = self.service_mut(place) {
            service.kind = kind;
            service.written.clear();
            service.grown.clear();
            service.instance = None;
        }
        self.unsaved = true;
    }

    /// The settings are known: now the connection, with all its items.
    pub(super) fn open(&mut self, now: Time, place: Place) {
        self.apply_pending(now, place);
        let Some(device) = self.devices.get(place.0) else { return };
        let Some(service) = device.services.get(place.1) else { return };
        let (key, name) = (service.key, service.bus_name());
        if let Some(service) = self.service_mut(place) {
            service.state = State::Opening;
            service.known = false;
            service.served = Served::Unknown;
            if let (Some(exported), Some(instance)) = (&mut service.exported, service.instance) {
                exported.set("/DeviceInstance", Value::Int(instance.into()));
            }
        }
        self.bus.push_back(BusCommand::Open { key, name });
    }

    /// The items of a service that has none yet, with their defaults.
    pub(super) fn export(&mut self, place: Place) -> bool {
        let Some(device) = self.devices.get(place.0) else { return false };
        let Some(service) = device.services.get(place.1) else { return false };
        if service.exported.is_some() {
            return true;
        }
        let Some(kind) = self.catalogue.service_type(&service.kind) else { return false };
        let text = |text: &str| Value::Str(text.into());
        let fixed = vec![
            ("/Mgmt/ProcessName", text(PROCESS)),
            ("/Mgmt/ProcessVersion", text(VERSION)),
            ("/Mgmt/Connection", text(&format!("MQTT:{}", device.id.raw()))),
            ("/DeviceInstance", Value::Invalid),
            ("/DeviceName", text(&format!("{}:{}", device.id.raw(), service.id.raw()))),
            ("/ProductName", text(&format!("{} over MQTT", capitalised(&service.kind)))),
            ("/FirmwareVersion", Value::Str(device.version.clone())),
            ("/Connected", Value::Int(1)),
        ];
        let mut exported = Exported::new(kind, fixed);
        for path in &service.grown {
            exported.grow(path, limits::GROWN_ITEMS);
        }
        if let Some(service) = self.service_mut(place) {
            service.exported = Some(exported);
        }
        true
    }

    /// Leaves the bus; before, everything is invalid if that `is_said`.
    fn close(&mut self, place: Place, is_said: bool) {
        let Some(service) = self.service_mut(place) else { return };
        let (key, up) = (service.key, matches!(service.state, State::Up));
        service.state = State::Closing;
        service.served = Served::Unknown;
        let valid: Vec<Box<str>> = service.exported.iter().flat_map(Exported::valid).map(Box::from).collect();
        if up && is_said {
            let items = valid.into_iter().map(ItemAnswer::invalid).collect();
            self.bus.push_back(BusCommand::Emit { key, items, told: false });
        }
        self.bus.push_back(BusCommand::Close { key });
    }

    /// The daemon ends: everything that has a connection leaves, and comes back in its next life. With values that are restored then, nothing
    /// is said to be invalid: programs that follow the state of a genset would see it go for no reason.
    pub(super) fn close_all(&mut self, index: usize) {
        let count = self.devices.get(index).map_or(0, |device| device.services.len());
        let is_said = self.options.restore_values.is_none();
        for place in (0..count).map(|service| (index, service)) {
            if self.service(place).is_some_and(|service| matches!(service.state, State::Opening | State::Up)) {
                self.close(place, is_said);
            }
        }
    }

    /// The service leaves the bus, and comes back with its values.
    pub(super) fn restart(&mut self, now: Time, place: Place) {
        if let Some(service) = self.service_mut(place) {
            service.restarts = true;
        }
        if let Some(device) = self.devices.get_mut(place.0) {
            device.owed = true;
        }
        self.drive(now, place);
    }

    /// What happened to the connection of a service.
    pub fn bus_event(&mut self, now: Time, key: Key, event: BusEvent) {
        self.due = None;
        let Some(place) = self.place_of(key) else { return };
        match event {
            BusEvent::Up => {
                if let Some(service) = self.service_mut(place)
                    && service.state == State::Opening
                {
                    (service.state, service.shown) = (State::Up, true);
                    service.failures = 0;
                    service.last_value.get_or_insert(now);
                    service.last_seen = Some(now);
                    let (name, instance) = (service.bus_name(), service.instance.unwrap_or_default());
                    // values that were restored are not on disk any more either: after a crash they would be older than what was shown last
                    self.unsaved = true;
                    self.unknown = true;
                    self.caused(now, Level::Info, Kind::Registered, || format!("{name} is on the bus as instance {instance}"));
                    self.apply_pending(now, place);
                }
            }
            BusEvent::Known => {
                if let Some(service) = self.service_mut(place) {
                    service.known = true;
                    if service.silence == Silence::Returning {
                        service.silence = Silence::None;
                    }
                }
            }
            BusEvent::Refused(why) => self.fail(now, place, &why),
            BusEvent::Down => {
                let closed = self.service_mut(place).is_some_and(|service| {
                    let closing = service.state == State::Closing;
                    service.state = State::Off;
                    closing
                });
                if !closed {
                    return self.fail(now, place, "its connection to the bus was lost");
                }
            }
        }
        if self.options.enabled {
            self.drive_all(now, place.0);
            self.finish_forgetting(now, place.0);
        }
    }

    /// A service cannot be put on the bus: its device hears why, and it is tried again.
    pub(super) fn fail(&mut self, now: Time, place: Place, why: &str) {
        let Some(device) = self.devices.get_mut(place.0) else { return };
        let (clients, online) = (device.clients.clone(), device.online);
        let Some(service) = device.services.get_mut(place.1) else { return };
        let pause = limits::SERVICE_RETRY_FIRST.saturating_mul(1 << service.failures.min(16)).min(limits::SERVICE_RETRY_LAST);
        service.failures += 1;
        service.state = State::Failed { retry: now + pause };
        service.served = Served::Unknown;
        service.restarts = false;
        let wanted = service.wanted;
        let text = format!("\"{}\" ({}): {why}; tried again in {} s", service.id, service.bus_name(), pause.as_secs());
        if online && wanted {
            let name = self.name_of(place.0);
            self.caused(now, Level::Warn, Kind::Service, || format!("device {name}: {text}"));
            self.complain(&clients, &text);
        }
    }

    /// Answers a device once everything it wants is there and can be written, if it has not been answered yet.
    pub(super) fn settle(&mut self, now: Time, index: usize) {
        let Some(device) = self.devices.get_mut(index) else { return };
        if !device.is_settled() {
            return;
        }
        device.patience = None;
        if !device.online || !device.owed || !self.is_served(now, index) {
            return;
        }
        let Some(device) = self.devices.get_mut(index) else { return };
        if !std::mem::take(&mut device.owed) {
            return;
        }
        device.services.iter_mut().filter(|service| service.wanted).for_each(Service::announce);
        let (dbus, instances) = (answer(device.services.as_slice(), &self.topics), instances(&device.services));
        for client in device.clients.clone() {
            let topic = self.topics.device(&client, "DBus");
            self.publish(topic, dbus.clone());
            if self.options.device_instance_topic {
                let topic = self.topics.device(&client, "DeviceInstance");
                self.publish(topic, instances.clone());
            }
        }
        self.tell_taken(index);
    }

    /// A call to one of the services.
    pub fn call(&mut self, now: Time, key: Key, call: &Call<'_>) -> Answer {
        let Some(place) = self.place_of(key) else { return gone() };
        let Some(exported) = self.service(place).and_then(|service| service.exported.as_ref()) else { return gone() };
        match exported.query(call) {
            Some(answer) => answer,
            None => self.set_value(now, place, call),
        }
    }

    fn set_value(&mut self, now: Time, place: Place, call: &Call<'_>) -> Answer {
        let Some(value) = call.argument.clone() else {
            return Answer::Error { name: "org.freedesktop.DBus.Error.InvalidArgs", text: "SetValue takes one value".into() };
        };
        match self.write_own(now, place, call.path, value, !call.is_ours) {
            Ok(mut items) => {
                // beside another bridge nobody can tell the device from others: what others set too is not its word
                let by_hand = self.is_by_hand(place, call.path);
                if call.is_ours || (self.is_beside() && !by_hand) {
                    self.hear(now, place.0);
                    items.paths.extend(self.service_seen(now, place, !by_hand));
                } else if !by_hand {
                    self.value_written(now, place);
                }
                self.emit(place, items);
                Answer::Code(ACCEPTED)
            }
            Err(Refusal::Unknown) => {
                Answer::Error { name: "org.freedesktop.DBus.Error.UnknownObject", text: format!("there is no {}", escape(call.path)) }
            }
            Err(refusal) => {
                let name = self.service(place).map(|service| service.bus_name()).unwrap_or_default();
                let text = refusal.text();
                self.caused(now, Level::Warn, Kind::DeviceWrite, || {
                    format!("a write of {} to {name} is refused: {}", escape(call.path), escape(&text))
                });
                Answer::Code(if matches!(refusal, Refusal::ReadOnly) { WRONG } else { REFUSED })
            }
        }
    }

    /// Writes an item of a service of ours; gives what has changed by it, and whether the device has to know.
    pub(super) fn write_own(&mut self, now: Time, place: Place, path: &str, value: Value, by_others: bool) -> Result<Changed, Refusal> {
        let mut changed = Changed::default();
        let Some(exported) = self.service_mut(place).and_then(|service| service.exported.as_mut()) else { return Err(Refusal::Unknown) };
        if exported.spec(path).is_none() {
            if exported.contains(path) {
                return Err(Refusal::ReadOnly);
            }
            changed.paths = exported.grow(path, limits::GROWN_ITEMS).ok_or(Refusal::Full)?;
            changed.new = true;
        }
        let Some(spec) = exported.spec(path) else { return Err(Refusal::Unknown) };
        let brought = if spec.writable { spec.bring(value).map_err(Refusal::Value) } else { Err(Refusal::ReadOnly) };
        let brought = brought.and_then(|value| if exported.has_room(path, &value) { Ok(value) } else { Err(Refusal::TooLarge) });
        if !changed.paths.is_empty() {
            let new = changed.paths.clone();
            if let Some(service) = self.service_mut(place) {
                service.grown.extend(new.first().cloned());
            }
            self.unsaved = true;
            self.ask_grown(now, place, &new);
        }
        let set = brought.map(|value| {
            let Some(exported) = self.service_mut(place).and_then(|service| service.exported.as_mut()) else { return false };
            exported.mark_written(path);
            exported.set(path, value)
        });
        match set {
            Ok(true) => {
                if !changed.paths.iter().any(|known| **known == *path) {
                    changed.paths.push(path.into());
                }
                changed.told = by_others || spec.kept || spec.command;
                if spec.kept {
                    self.keep(now, place, path);
                }
                Ok(changed)
            }
            Ok(false) => {
                // localsettings may have another value from long ago
                if spec.kept && changed.paths.iter().any(|known| **known == *path) {
                    self.keep(now, place, path);
                }
                Ok(changed)
            }
            Err(refusal) => {
                // what came into being is there all the same
                self.emit(place, changed);
                Err(refusal)
            }
        }
    }

    /// Sets an item and says so.
    pub(super) fn set_item(&mut self, place: Place, path: &str, value: Value, told: bool) {
        let exported = self.service_mut(place).and_then(|service| service.exported.as_mut());
        if exported.is_some_and(|exported| exported.set(path, value)) {
            self.emit(place, Changed { paths: vec![path.into()], told, new: false });
        }
    }

    /// Says what has changed.
    pub(super) fn emit(&mut self, place: Place, changed: Changed) {
        let Some(service) = self.service(place) else { return };
        let (true, Some(exported)) = (matches!(service.state, State::Up), &service.exported) else { return };
        let key = service.key;
        let items: Vec<_> = changed.paths.iter().filter_map(|path| exported.change(path, changed.new)).collect();
        if !items.is_empty() {
            self.bus.push_back(BusCommand::Emit { key, items, told: changed.told });
        }
    }

    /// Another life of a service: what is still under way for the last one finds nobody.
    pub(super) fn new_key(&mut self, place: Place) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        if let Some(service) = self.service_mut(place) {
            service.key = key;
        }
        key
    }

    pub(super) fn place_of(&self, key: Key) -> Option<Place> {
        self.devices.iter().enumerate().find_map(|(index, device)| {
            let service = device.services.iter().position(|service| service.key == key)?;
            Some((index, service))
        })
    }

    pub(super) fn service(&self, place: Place) -> Option<&Service> {
        self.devices.get(place.0)?.services.get(place.1)
    }

    pub(super) fn service_mut(&mut self, place: Place) -> Option<&mut Service> {
        self.devices.get_mut(place.0)?.services.get_mut(place.1)
    }
}

/// What a write has changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Changed {
    pub paths: Vec<Box<str>>,
    /// Some of them have come into being.
    pub new: bool,
    /// The device has to know.
    pub told: bool,
}

impl Changed {
    /// Adds what another write has changed.
    pub fn add(&mut self, other: Self) {
        self.new |= other.new;
        for path in other.paths {
            if !self.paths.contains(&path) {
                self.paths.push(path);
            }
        }
    }
}

/// Why a write is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Unknown,
    /// It cannot come into being.
    Full,
    ReadOnly,
    /// With it the texts of the service would be too large.
    TooLarge,
    Value(String),
}

impl Refusal {
    pub fn text(&self) -> String {
        match self {
            Self::Unknown => "there is no such item".into(),
            Self::Full => format!("the service has {} items that came into being by being written, and takes no more", limits::GROWN_ITEMS),
            Self::ReadOnly => "it cannot be written".into(),
            Self::TooLarge => format!("all texts and lists of a service may have {} bytes", limits::DEVICE_SERVICE_BYTES),
            Self::Value(why) => why.clone(),
        }
    }
}

fn gone() -> Answer {
    Answer::Error { name: "org.freedesktop.DBus.Error.UnknownObject", text: "the service is leaving".into() }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// The payload of `device/<client ID>/DBus`. Small firmwares search the text: the first mention of a service is its number.
fn answer(services: &[Service], topics: &Topics) -> String {
    let paths: Vec<String> = services
        .iter()
        .filter(|service| service.wanted)
        .map(|service| {
            let rest = format!("{}/{}", service.kind, service.instance.unwrap_or_default());
            let [n, r, w] =
                [topics.notification(&rest), topics.request('R', &rest), topics.request('W', &rest)].map(|topic| quoted(&topic));
            format!("{}: {{\"N\": {n}, \"R\": {r}, \"W\": {w}}}", quoted(service.id.raw()))
        })
        .collect();
    format!(
        "{{\"portalId\": {}, \"deviceInstance\": {}, \"topicPath\": {{{}}}}}",
        quoted(topics.portal().as_str()),
        instances(services),
        paths.join(", ")
    )
}

fn instances(services: &[Service]) -> String {
    let wanted = services.iter().filter(|service| service.wanted);
    let entries: Vec<String> =
        wanted.map(|service| format!("{}: {}", quoted(service.id.raw()), service.instance.unwrap_or_default())).collect();
    format!("{{{}}}", entries.join(", "))
}

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    Value::Str(text.into()).write_json(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}
