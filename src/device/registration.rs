//! Who is registered: Status messages, wills, what the registry remembers, and who is forgotten.

use std::time::Duration;

use log::Level;

use super::id::Id;
use super::model::{Device, Service, State};
use super::status::{Registration, Request, Status, StatusError};
use super::{Devices, Token, registry};
use crate::bridge::notes::Kind;
use crate::bridge::value::Value;
use crate::bridge::{LinkCommand, Time, limits};
use crate::text::escape;

impl Devices {
    pub(super) fn take_status(&mut self, now: Time, topic_id: &str, payload: &[u8], retained: bool) {
        // this is how a retained Status is removed
        if payload.is_empty() || topic_id.is_empty() {
            return;
        }
        let (client, taken) = match Status::parse(&self.topics, topic_id, payload) {
            Ok(Status { client, request }) => (Some(client.clone()), self.obey(now, topic_id, client, request, retained)),
            Err(StatusError { client, why }) => (client, Err(why)),
        };
        if let Err(why) = taken {
            self.caused(now, Level::Warn, Kind::Status, || {
                format!("a Status on device/{}/Status is refused: {}", escape(topic_id), escape(&why))
            });
            // what it calls itself counts for nothing where the topic has to say the same
            let client = client.filter(|_| !self.options.strict_client_id);
            self.complain(&clients(topic_id, client.as_ref()), &why);
        }
        self.drop_gone();
    }

    fn obey(&mut self, now: Time, topic_id: &str, client: Id, request: Request, retained: bool) -> Result<(), String> {
        if self.options.strict_client_id && client.raw() != topic_id {
            return Err(format!("clientId is \"{client}\", but the topic says \"{}\"; make them the same", escape(topic_id)));
        }
        match request {
            Request::Register(registration) => self.register(now, topic_id, client, registration, retained),
            Request::Leave => {
                // another ID that is only the same on the bus has no say
                if let Some(index) = self.devices.iter().position(|device| device.id == client) {
                    self.take_leave(now, index, retained);
                }
                Ok(())
            }
        }
    }

    fn take_leave(&mut self, now: Time, index: usize, retained: bool) {
        match self.devices.get_mut(index) {
            // what a last will has left may be about an earlier life: the device has time to show that it is there
            Some(device) if retained && device.online && device.confirmed => {
                device.provisional.get_or_insert(now + limits::PROVISIONAL);
            }
            _ => {
                if !retained {
                    self.hear(now, index);
                }
                self.leave(now, index, "it says so");
            }
        }
    }

    fn register(&mut self, now: Time, topic_id: &str, id: Id, wanted: Registration, retained: bool) -> Result<(), String> {
        if !retained {
            self.make_room(now, &id, wanted.services.len());
        }
        self.check(&id, &wanted)?;
        let index = match self.find(id.name()) {
            Some(index) => index,
            None => {
                self.devices.push(Device::new(id.clone()));
                self.devices.len() - 1
            }
        };
        let text = describe(&wanted);
        if let Some(token) = self.forgetting.remove(id.name()) {
            self.answers.push_back((token, Err("it has registered again meanwhile; nothing of it is forgotten".into())));
        }
        let Some(device) = self.devices.get_mut(index) else { return Ok(()) };
        let was_online = device.online;
        if !was_online {
            device.will_replayed = Time::default();
            device.confirmed = false;
        }
        device.provisional = match device.provisional {
            // once more the same: it has not been heard of for all that
            Some(due) if retained && was_online => Some(due),
            _ => (retained && !was_online).then(|| now + limits::PROVISIONAL),
        };
        device.clients = clients(topic_id, Some(&id));
        device.id = id;
        device.online = true;
        device.owed = true;
        let version_changed = device.version != wanted.version;
        device.version = wanted.version;
        let timeout_changed = device.timeout != wanted.timeout;
        device.timeout = wanted.timeout;
        let old_will = std::mem::replace(&mut device.will, wanted.will);
        let services_changed = merge(device, wanted.services);
        let will_changed = old_will != device.will;
        if version_changed {
            self.tell_version(index);
        }
        if will_changed || !was_online {
            self.follow_will(index, old_will.filter(|_| was_online).map(|will| will.topic));
        }
        let changed = !was_online || version_changed || services_changed || will_changed || timeout_changed;
        self.unsaved |= changed;
        let name = self.name_of(index);
        if changed {
            let what = if was_online { "changes" } else { "registers" };
            self.caused(now, Level::Info, Kind::Registered, || format!("device {name} {what}: {text}"));
        } else {
            self.notes.add(Level::Debug, || format!("device {name} registers again"));
        }
        if !retained {
            self.hear(now, index);
            self.all_seen(now, index);
        }
        self.try_again(now, index);
        self.check_keep_awake(now);
        Ok(())
    }

    /// Whatever failed may work now, and the device wants to hear of it.
    fn try_again(&mut self, now: Time, index: usize) {
        let Some(device) = self.devices.get_mut(index) else { return };
        let failed = device.services.iter_mut().filter(|service| matches!(service.state, State::Failed { .. }));
        failed.for_each(|service| service.state = State::Off);
        if device.services.iter().any(|service| service.state == State::Waiting) {
            device.patience = device.patience.or(Some(now + limits::SETTINGS_PATIENCE));
        }
        self.drive_all(now, index);
    }

    /// A device that is there takes the place of those of which nothing has ever been heard but a retained Status, the oldest first; of none
    /// where even all of their places would not do.
    fn make_room(&mut self, now: Time, id: &Id, services: usize) {
        let others = || self.devices.iter().enumerate().filter(|(_, device)| device.online && device.id.name() != id.name());
        let (mut devices, mut total) = (1 + others().count(), services + self.registered_services(id));
        let unheard = others().filter(|(_, device)| device.heard.is_none() && device.heard_unix.is_none());
        let mut unheard: Vec<_> = unheard.filter_map(|(index, device)| Some((device.provisional?, index))).collect();
        unheard.sort_unstable();
        let mut leave = Vec::new();
        for (_, index) in unheard {
            if devices <= self.options.max_devices && total <= self.options.max_services_total {
                break;
            }
            devices -= 1;
            total -= self.devices.get(index).map_or(0, Device::wanted);
            leave.push(index);
        }
        if devices <= self.options.max_devices && total <= self.options.max_services_total {
            leave.into_iter().for_each(|index| self.leave(now, index, "nothing has been heard of it, and another needs its place"));
        }
    }

    /// Services of all devices that are registered, but of this one.
    fn registered_services(&self, id: &Id) -> usize {
        let others = self.devices.iter().filter(|device| device.online && device.id.name() != id.name());
        others.map(Device::wanted).sum()
    }

    /// What speaks against a registration.
    fn check(&self, id: &Id, wanted: &Registration) -> Result<(), String> {
        for (service, kind) in &wanted.services {
            if self.catalogue.service_type(kind).is_none() {
                return Err(format!("services: \"{service}\" has the unknown type \"{}\"{}", escape(kind), self.meant(kind)));
            }
        }
        let (most, count) = (self.options.max_services, wanted.services.len());
        if count > most {
            return Err(format!("services: {count} are more than {most}, the most a device may have (`max_services` in [devices])"));
        }
        let index = self.find(id.name());
        let known = index.and_then(|index| self.devices.get(index));
        if let Some(other) = known.filter(|known| known.online && known.id != *id) {
            return Err(format!("clientId \"{id}\" is the same as \"{}\" on the bus, which is registered; take another", other.id));
        }
        let online = self.devices.iter().filter(|device| device.online).count();
        if !known.is_some_and(|known| known.online) && online >= self.options.max_devices {
            let most = self.options.max_devices;
            return Err(format!("{most} devices are registered already, which is the most (`max_devices` in [devices])"));
        }
        let (others, total) = (self.registered_services(id), self.options.max_services_total);
        if others + count > total {
            return Err(format!(
                "services: {count} are too many beside the {others} of other devices: all devices together may have {total} (`max_services_total` in [devices])"
            ));
        }
        for (service, _) in &wanted.services {
            let slug = Service::new(id, service.clone(), Box::default()).slug;
            let others = self.devices.iter().filter(|device| device.online && device.id.name() != id.name());
            for other in others {
                if other.services.iter().any(|taken| taken.wanted && taken.slug == slug) {
                    return Err(format!(
                        "services: \"{service}\" has the name {slug} on the bus, as one of device \"{}\" has; take another ID",
                        other.id
                    ));
                }
            }
        }
        Ok(())
    }

    /// The type that was probably meant.
    fn meant(&self, kind: &str) -> String {
        let types = self.catalogue.types();
        let near = types.iter().map(|known| (strsim::jaro(known, kind), known)).max_by(|(a, _), (b, _)| a.total_cmp(b));
        match near {
            Some((likeness, near)) if likeness > 0.75 => format!("; is it \"{near}\"?"),
            _ => format!("; there are {}", types.join(", ")),
        }
    }

    /// The device goes; its numbers and settings stay.
    pub(super) fn leave(&mut self, now: Time, index: usize, why: &str) {
        let Some(device) = self.devices.get_mut(index) else { return };
        if !device.online {
            return;
        }
        device.online = false;
        device.owed = false;
        device.provisional = None;
        device.patience = None;
        device.services.iter_mut().for_each(Service::reset_liveness);
        let topic = device.will.as_ref().map(|will| will.topic.clone());
        self.unsaved = true;
        if let Some(topic) = topic {
            self.unfollow_will(&topic);
        }
        let name = self.name_of(index);
        self.caused(now, Level::Info, Kind::Left, || format!("device {name} leaves: {why}"));
        self.drive_all(now, index);
        self.check_keep_awake(now);
    }

    /// A message on a topic by which devices are told to be gone; false when it is none.
    pub(super) fn take_will(&mut self, now: Time, topic: &str, payload: &[u8], retained: bool) -> bool {
        let of = |device: &Device| device.online && device.will.as_ref().is_some_and(|will| *will.topic == *topic);
        let named: Vec<usize> = self.devices.iter().enumerate().filter(|(_, device)| of(device)).map(|(index, _)| index).collect();
        for &index in &named {
            let Some(device) = self.devices.get(index) else { continue };
            // what was retained before it registered is about an earlier life
            let counts = !retained || now <= device.will_replayed;
            if counts && device.will.as_ref().is_some_and(|will| will.value.as_bytes() == payload) {
                self.leave(now, index, "its lwt_topic says so");
            }
        }
        !named.is_empty()
    }

    /// The topics by which devices are told to be gone, each once.
    pub(super) fn wills(&self) -> Vec<String> {
        let online = self.devices.iter().filter(|device| device.online);
        let mut topics: Vec<String> =
            online.filter_map(|device| device.will.as_ref()).map(|will| self.topics.prefixed(&will.topic)).collect();
        topics.sort();
        topics.dedup();
        topics
    }

    fn follow_will(&mut self, index: usize, old: Option<Box<str>>) {
        let new = self.devices.get(index).and_then(|device| Some(device.will.as_ref()?.topic.clone()));
        if let Some(old) = old.filter(|old| Some(old) != new.as_ref()) {
            self.unfollow_will(&old);
        }
        if let Some(topic) = new
            && self.linked
        {
            let filter = self.topics.prefixed(&topic);
            self.link.push_back(LinkCommand::Subscribe(vec![filter]));
        }
    }

    fn unfollow_will(&mut self, topic: &str) {
        let filter = self.topics.prefixed(topic);
        if self.linked && !self.wills().contains(&filter) {
            self.link.push_back(LinkCommand::Unsubscribe(vec![filter]));
        }
    }

    fn tell_version(&mut self, index: usize) {
        let Some(device) = self.devices.get(index) else { return };
        let version = Value::Str(device.version.clone());
        for service in 0..device.services.len() {
            self.set_item((index, service), "/FirmwareVersion", version.clone(), false);
        }
    }

    /// Something came from the device itself.
    pub(super) fn hear(&mut self, now: Time, index: usize) {
        self.due = None;
        let Some(device) = self.devices.get_mut(index) else { return };
        device.heard = Some(now);
        device.confirmed = true;
        if device.provisional.take().is_some() {
            self.unsaved = true;
        }
    }

    /// The broker is there again: nobody knows what it said meanwhile, a last will perhaps. Whoever is registered has to be heard of once more.
    pub(super) fn expect_all(&mut self, now: Time, away: Duration) {
        let mut doubted = 0;
        for device in self.devices.iter_mut().filter(|device| device.online) {
            match &mut device.provisional {
                Some(due) => *due = *due + away,
                None => {
                    device.provisional = Some(now + limits::PROVISIONAL);
                    doubted += 1;
                }
            }
        }
        if doubted > 0 {
            let patience = limits::PROVISIONAL.as_secs();
            self.notes.add(Level::Info, || {
                format!("connected to the broker again: {doubted} registered devices leave if nothing is heard of them within {patience} s")
            });
        }
    }

    /// What is due for a device.
    pub(super) fn check_device(&mut self, now: Time, index: usize) {
        let linked = self.linked;
        let Some(device) = self.devices.get_mut(index) else { return };
        if linked && device.provisional.is_some_and(|due| due <= now) {
            let why = if device.confirmed {
                "nothing has been heard of it since the connection to the broker was lost"
            } else {
                "nothing has been heard of it"
            };
            return self.leave(now, index, why);
        }
        let patience_ends = device.patience.is_some_and(|due| due <= now);
        if patience_ends {
            device.patience = None;
        }
        self.check_silence(now, index);
        if patience_ends {
            self.complain_of_settings(now, index);
        }
        self.drive_all(now, index);
    }

    fn complain_of_settings(&mut self, now: Time, index: usize) {
        let Some(device) = self.devices.get(index) else { return };
        if !device.online || !device.services.iter().any(|service| matches!(service.state, State::Waiting | State::Asking)) {
            return;
        }
        let clients = device.clients.clone();
        let text = format!(
            "localsettings ({}) does not answer since {} s; the registration goes on as soon as it does",
            crate::bridge::name::SETTINGS,
            limits::SETTINGS_PATIENCE.as_secs()
        );
        let name = self.name_of(index);
        self.caused(now, Level::Warn, Kind::Settings, || format!("device {name} waits: {text}"));
        self.complain(&clients, &text);
    }

    /// What can be told of every device that is known; `unix` is the time of day.
    pub fn list(&self, now: Time, unix: u64) -> Vec<registry::Entry> {
        self.devices.iter().map(|device| registry::Entry::of(device, now, unix)).collect()
    }

    /// The registry as it is to be on disk, when it is not yet. Without a time of day (before 2020) nothing is stamped.
    pub fn poll_registry(&mut self, now: Time, unix: u64) -> Option<String> {
        if !self.unsaved || now < self.save_after {
            return None;
        }
        self.unsaved = false;
        self.save_after = now + limits::REGISTRY_EVERY;
        // once they are shown, values that were restored would be older after a crash than what was shown last
        Some(self.registry_with(now, unix, Service::restores))
    }

    /// The person at the command line wants a device to be as if it had never been.
    pub fn forget(&mut self, now: Time, token: Token, client: &str) {
        self.due = None;
        let known = self.devices.iter().position(|device| device.id.raw() == client).or_else(|| self.find(client));
        let Some(index) = known else {
            let text = format!("no device \"{}\" is known; `venus-mqtt devices` lists them", escape(client));
            return self.answers.push_back((token, Err(text)));
        };
        if !self.settings.is_there() {
            let text = "localsettings is not on the bus, so that the settings cannot be freed; try again when it is".into();
            return self.answers.push_back((token, Err(text)));
        }
        self.leave(now, index, "it is to be forgotten");
        if let Some(device) = self.devices.get(index) {
            let replaced = self.forgetting.insert(device.id.name().into(), token);
            self.answers.extend(replaced.map(|token| (token, Err("asked for again meanwhile".into()))));
        }
        self.drive_all(now, index);
        self.finish_forgetting(now, index);
    }

    /// Of the devices that are gone, the latest are remembered.
    pub(super) fn drop_gone(&mut self) {
        let gone = |devices: &[Device]| {
            devices.iter().filter(|device| !device.online).fold((0, 0), |(n, all), device| (n + 1, all + device.services.len()))
        };
        while let (devices, services) = gone(&self.devices)
            && (devices > limits::GONE || services > limits::GONE_SERVICES)
        {
            let gone = self.devices.iter().enumerate().filter(|(_, device)| !device.online && device.is_off());
            let Some((oldest, _)) = gone.min_by_key(|(_, device)| (device.heard, device.heard_unix)) else { return };
            self.devices.remove(oldest);
            self.unsaved = true;
        }
    }

    /// By the name it has on the bus.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.id.name() == name)
    }

    pub(super) fn name_of(&self, index: usize) -> String {
        self.devices.get(index).map(|device| device.id.to_string()).unwrap_or_default()
    }
}

/// Where answers go: to the ID of the topic, and to the device's own if that is another.
fn clients(topic_id: &str, id: Option<&Id>) -> Vec<Box<str>> {
    let own = id.map(Id::raw).filter(|own| *own != topic_id);
    std::iter::once(topic_id).chain(own).map(Box::from).collect()
}

/// Brings the services to what the device wants now; true when that is something else than before.
fn merge(device: &mut Device, wanted: Vec<(Id, Box<str>)>) -> bool {
    let before: Vec<_> = device.services.iter().filter(|service| service.wanted).map(|s| (s.id.clone(), Box::from(s.aim()))).collect();
    let changed = before != wanted;
    for service in &mut device.services {
        (service.wanted, service.next_kind) = (false, None);
    }
    for (id, kind) in wanted.iter().cloned() {
        match device.services.iter_mut().find(|service| service.id.name() == id.name()) {
            Some(service) => {
                service.wanted = true;
                service.id = id;
                service.next_kind = (service.kind != kind).then_some(kind);
            }
            None => device.services.push(Service::new(&device.id, id, kind)),
        }
    }
    // answers have the order of the Status
    device.services.sort_by_key(|service| wanted.iter().position(|(id, _)| *id == service.id).unwrap_or(usize::MAX));
    // those it had before are remembered: they may come back, and can be forgotten
    let mut room = wanted.len() + limits::FORMER_SERVICES;
    device.services.retain(|service| {
        let stays = room > 0 || service.state != State::Off;
        room = room.saturating_sub(1);
        stays
    });
    changed
}

fn describe(wanted: &Registration) -> String {
    let services: Vec<String> = wanted.services.iter().map(|(id, kind)| format!("{id} {kind}")).collect();
    let timeout = wanted.timeout.map(|timeout| format!(", timeout {} s", timeout.as_secs_f64())).unwrap_or_default();
    format!("{}, version \"{}\"{timeout}", services.join(", "), escape(&wanted.version))
}
