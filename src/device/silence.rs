//! Silence: what becomes of values that nobody renews. Readers on the bus go on with the last value of a meter for ever, so a service
//! that is silent for too long loses its measured values and is shown as not connected, or leaves the bus until it is heard of again.
//!
//! Silence is that of one service: a sensor that goes on talking does not keep the last value of a meter of the same device. What
//! renews measured values is a write of one of them, a Proxy message of the device for the service, or its Status. A write of a setting or a
//! command, which may be anybody's, only shows that the service is there; a write that is not the device's does not even show that.

use std::sync::Arc;

use log::Level;

use super::Devices;
use super::catalogue::ItemSpec;
use super::model::{Device, Place, Service, Silence, State};
use super::options::Stale;
use super::service::{Exported, is_measured};
use super::steps::{Changed, Refusal};
use crate::bridge::notes::Kind;
use crate::bridge::topic::Incoming;
use crate::bridge::value::{Value, read_payload};
use crate::bridge::{Time, limits};
use crate::text::escape;

impl Devices {
    /// A service was heard of; `by_value`: by what renews its measured values. Gives what of it has changed by that.
    pub(super) fn service_seen(&mut self, now: Time, place: Place, by_value: bool) -> Option<Box<str>> {
        self.due = None;
        let service = self.service_mut(place)?;
        service.last_seen = Some(now);
        if by_value {
            (service.last_value, service.expired, service.restored_until) = (Some(now), false, None);
        }
        let before = service.silence;
        service.silence = match before {
            Silence::None | Silence::Disconnected => Silence::None,
            Silence::Left | Silence::Returning => Silence::Returning,
        };
        if before == service.silence {
            return None;
        }
        let id = service.id.clone();
        let name = self.name_of(place.0);
        self.caused(now, Level::Info, Kind::SeenAgain, || format!("device {name} is heard of again: {id}"));
        if before == Silence::Left {
            self.drive_all(now, place.0);
            return None;
        }
        let exported = self.service_mut(place).and_then(|service| service.exported.as_mut());
        exported.is_some_and(|exported| exported.set("/Connected", Value::Int(1))).then(|| "/Connected".into())
    }

    /// Somebody else than its device has written a measured item.
    pub(super) fn value_written(&mut self, now: Time, place: Place) {
        self.due = None;
        if let Some(service) = self.service_mut(place) {
            (service.last_value, service.expired, service.restored_until) = (Some(now), false, None);
        }
    }

    /// A Status: its device vouches for all its services.
    pub(super) fn all_seen(&mut self, now: Time, index: usize) {
        let count = self.devices.get(index).map_or(0, |device| device.services.len());
        for place in (0..count).map(|service| (index, service)) {
            let paths: Vec<_> = self.service_seen(now, place, true).into_iter().collect();
            self.emit(place, Changed { paths, ..Changed::default() });
        }
    }

    /// What is due for the services of a device that are silent.
    pub(super) fn check_silence(&mut self, now: Time, index: usize) {
        let count = self.devices.get(index).map_or(0, |device| device.services.len());
        let lines: Vec<String> = (0..count).filter_map(|service| self.check_service(now, (index, service))).collect();
        if !lines.is_empty() {
            let name = self.name_of(index);
            self.caused(now, Level::Info, Kind::Silent, || format!("device {name} is silent: {}", lines.join("; ")));
        }
    }

    fn check_service(&mut self, now: Time, place: Place) -> Option<String> {
        let device = self.devices.get(place.0).filter(|device| device.online)?;
        let service = device.services.get(place.1)?;
        let is_over = service.restored_until.is_some_and(|until| until <= now);
        let after = device.stale_after(service, &self.options).filter(|after| service.silent_at(*after).is_some_and(|due| due <= now));
        if after.is_none() && !is_over {
            return None;
        }
        let is_old = |last: Option<Time>| after.is_some_and(|after| last.is_some_and(|last| last + after <= now));
        let no_value = is_old(service.last_value) && !service.expired;
        let unseen = is_old(service.last_seen) && service.silence == Silence::None && service.state == State::Up;
        let id = service.id.clone();
        let waited = after.unwrap_or_default().as_secs_f64();
        let leaves = unseen && self.options.stale == Stale::Leave;
        if leaves {
            self.set_silence(place, Silence::Left);
            self.drive_all(now, place.0);
        }
        let mut paths = if no_value || is_over || leaves { self.expire(place) } else { Vec::new() };
        let service = self.service_mut(place)?;
        let values = paths.len();
        if unseen && !leaves {
            service.silence = Silence::Disconnected;
            let exported = service.exported.as_mut();
            let is_set = exported.is_some_and(|exported| exported.set("/Connected", Value::Int(0)));
            paths.extend(is_set.then(|| "/Connected".into()));
        }
        self.emit(place, Changed { paths, ..Changed::default() });
        if values == 0 && !unseen {
            return None;
        }
        Some(match (unseen, no_value) {
            (true, _) if leaves => format!("{id}: nothing received for {waited} s: removed from the bus"),
            (true, _) => format!("{id}: nothing received for {waited} s: /Connected set to 0, measured items invalidated: {values}"),
            (false, true) => format!("{id}: no measured value for {waited} s: measured items invalidated: {values}"),
            (false, false) => format!("{id}: no measured value since the restart: restored items invalidated: {values}"),
        })
    }

    /// Invalidates the measured values of a service, those too that it does not have yet.
    fn expire(&mut self, place: Place) -> Vec<Box<str>> {
        let mut pending = self.service_mut(place).map(|service| std::mem::take(&mut service.pending)).unwrap_or_default();
        pending.retain(|(path, _)| self.is_by_hand(place, path));
        let mut restored = self.service_mut(place).map(|service| std::mem::take(&mut service.restored)).unwrap_or_default();
        restored.retain(|(path, _)| self.service(place).is_some_and(|service| !self.is_measured(service, path)));
        let Some(service) = self.service_mut(place) else { return Vec::new() };
        (service.pending, service.restored) = (pending, restored);
        (service.expired, service.restored_until, service.restored_from) = (true, None, None);
        service.exported.as_mut().map(Exported::expire).unwrap_or_default()
    }

    fn set_silence(&mut self, place: Place, silence: Silence) {
        if let Some(service) = self.service_mut(place) {
            service.silence = silence;
        }
    }

    /// A W to a service that is off the bus for its silence: the bridge does not know the service then. False when it is none, or when
    /// another service has its topics by now.
    pub(super) fn take_write(&mut self, now: Time, topic: &str, payload: &[u8], retained: bool) -> bool {
        let Incoming::Write(address) = self.topics.parse(topic) else { return false };
        let is_meant = |service: &Service| service.is_away_at(address.service_type, address.instance);
        let Some(place) = self.find_service(is_meant) else { return false };
        // the bridge logs why these are ignored
        if retained || payload.len() > limits::WRITE_PAYLOAD || !self.rules.may_write(&address) {
            return false;
        }
        let written = match read_payload(payload) {
            Ok(value) => value
                .read_words()
                .and_then(|value| self.write_any(now, place, address.path, value, false).map_err(|refusal| refusal.text()))
                .map_err(|why| (why, true)),
            Err(error) => Err((error.to_string(), false)),
        };
        match written {
            Ok(mut changed) => {
                let by_value = !self.is_by_hand(place, address.path);
                self.hear(now, place.0);
                changed.paths.extend(self.service_seen(now, place, by_value));
                self.emit(place, changed);
            }
            Err((why, is_told)) => {
                let name = self.service(place).map(Service::bus_name).unwrap_or_default();
                let (path, why) = (escape(address.path), escape(&why));
                self.caused(now, Level::Warn, Kind::DeviceWrite, || format!("a write of {path} to {name} is refused: {why}"));
                if is_told {
                    let clients = self.devices.get(place.0).map(|device| device.clients.clone()).unwrap_or_default();
                    self.complain(&clients, &format!("{name}{path}: {why}"));
                }
            }
        }
        true
    }

    /// Whether people and programs write this item too, and not only the device.
    pub(super) fn is_by_hand(&self, place: Place, path: &str) -> bool {
        let Some(service) = self.service(place) else { return true };
        self.spec_of(service, path).is_none_or(|spec| spec.kept || spec.command)
    }

    /// Whether an item of a service holds what its device measures.
    pub(super) fn is_measured(&self, service: &Service, path: &str) -> bool {
        self.spec_of(service, path).is_some_and(|spec| is_measured(path, &spec))
    }

    /// What is known of an item that can be written, whether or not the service has its items yet.
    fn spec_of(&self, service: &Service, path: &str) -> Option<Arc<ItemSpec>> {
        match &service.exported {
            Some(exported) => exported.spec_to_be(path),
            None => self.catalogue.service_type(&service.kind).and_then(|kind| {
                let typed = kind.items.iter().find(|(known, _)| **known == *path).map(|(_, spec)| spec.clone());
                typed.or_else(|| kind.family_of(path).into_iter().find(|(known, _)| **known == *path).map(|(_, spec)| spec))
            }),
        }
    }

    /// Writes an item, or has a value that it can have wait while the service is away for its silence.
    pub(super) fn write_any(&mut self, now: Time, place: Place, path: &str, value: Value, by_others: bool) -> Result<Changed, Refusal> {
        match self.service_mut(place) {
            Some(service) if service.is_away() && service.state != State::Up => {
                let value = check_pending(service, path, value)?;
                service.pending.retain(|(known, _)| **known != *path);
                service.pending.push((path.into(), value));
                Ok(Changed::default())
            }
            _ => self.write_own(now, place, path, value, by_others),
        }
    }

    /// What came while the service was away: its device hears of what cannot be taken.
    pub(super) fn apply_pending(&mut self, now: Time, place: Place) {
        let Some(service) = self.service_mut(place) else { return };
        let pending = std::mem::take(&mut service.pending);
        let name = service.bus_name();
        let (mut changed, mut refused) = (Changed::default(), Vec::new());
        for (path, value) in pending {
            match self.write_own(now, place, &path, value, false) {
                Ok(written) => changed.add(written),
                Err(refusal) => refused.push(format!("{name}{}: {}", escape(&path), escape(&refusal.text()))),
            }
        }
        self.emit(place, changed);
        if !refused.is_empty() {
            refused.truncate(limits::PROXY_REFUSALS);
            let why = refused.join("; ");
            self.caused(now, Level::Warn, Kind::DeviceWrite, || format!("of what came while the service was away: {why}"));
            let clients = self.devices.get(place.0).map(|device| device.clients.clone()).unwrap_or_default();
            self.complain(&clients, &why);
        }
    }

    /// The first service of a device that is there for which `is_meant` holds.
    pub(super) fn find_service(&self, is_meant: impl Fn(&Service) -> bool) -> Option<Place> {
        let online = |device: &Device| device.online;
        let mut devices = self.devices.iter().enumerate().filter(|(_, device)| online(device));
        devices.find_map(|(index, device)| Some((index, device.services.iter().position(&is_meant)?)))
    }

    /// Shows the values of before the restart.
    pub(super) fn apply_restored(&mut self, now: Time, place: Place) {
        // without an end its device has vouched for them already, or what it measured is not among them
        if self.service(place).is_some_and(|service| service.restored_until.is_some_and(|until| until <= now)) {
            self.expire(place);
        }
        let Some(service) = self.service_mut(place) else { return };
        let restored = std::mem::take(&mut service.restored);
        let name = service.bus_name();
        let Some(exported) = &mut service.exported else { return };
        let mut wrong = Vec::new();
        for (path, value) in restored {
            match exported.spec(&path).map(|spec| (spec.kept, spec.bring(value))) {
                Some((false, Ok(value))) if exported.has_room(&path, &value) => {
                    exported.set(&path, value);
                    exported.mark_written(&path);
                }
                _ => wrong.push(path),
            }
        }
        if !wrong.is_empty() {
            self.notes.add(Level::Warn, || {
                format!(
                    "{} values of before the restart are none that {name} can have, such as that of {}",
                    wrong.len(),
                    escape(wrong.first().map_or("", |path| path))
                )
            });
        }
    }
}

/// What an item of a service that is away will have by this write, or why it cannot have it: a value that is refused brings nothing back.
fn check_pending(service: &Service, path: &str, value: Value) -> Result<Value, Refusal> {
    let exported = service.exported.as_ref().ok_or(Refusal::Unknown)?;
    let Some(spec) = exported.spec_to_be(path) else {
        return Err(if exported.contains(path) { Refusal::ReadOnly } else { Refusal::Unknown });
    };
    if !exported.can_grow(service.pending.iter().map(|(path, _)| &**path).chain([path]), limits::GROWN_ITEMS) {
        return Err(Refusal::Full);
    }
    if !spec.writable {
        return Err(Refusal::ReadOnly);
    }
    let value = spec.bring(value).map_err(Refusal::Value)?;
    if exported.has_room_beside(&service.pending, path, &value) { Ok(value) } else { Err(Refusal::TooLarge) }
}
