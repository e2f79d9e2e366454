//! Who is registered: Status messages, wills, what the registry remembers, and who is forgotten.

use std::collections::BTreeSet;

use log::Level;

use super::id::Id;
use super::model::{Device, Service, State};
use super::status::{Registration, Request, Status, StatusError, Will, check_topic_id};
use super::{Devices, Token, registry};
use crate::bridge::name::{is_bus_text, is_item_path};
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
            Some(device) if retained && device.online && device.provisional.is_none() => {
                device.provisional = Some(now + limits::PROVISIONAL);
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
            self.make_room(now, &id);
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
        let old_will = std::mem::replace(&mut device.will, wanted.will);
        let services_changed = merge(device, wanted.services);
        let will_changed = old_will != device.will;
        if version_changed {
            self.tell_version(index);
        }
        if will_changed || !was_online {
            self.follow_will(index, old_will.filter(|_| was_online).map(|will| will.topic));
        }
        let changed = !was_online || version_changed || services_changed || will_changed;
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

    /// A device that is there takes the place of one of which nothing has ever been heard but a retained Status.
    fn make_room(&mut self, now: Time, id: &Id) {
        let online = || self.devices.iter().enumerate().filter(|(_, device)| device.online);
        if online().count() < self.options.max_devices || online().any(|(_, device)| device.id.name() == id.name()) {
            return;
        }
        let unheard = online().filter(|(_, device)| device.heard.is_none() && device.heard_unix.is_none());
        let unheard = unheard.filter_map(|(index, device)| Some((device.provisional?, index))).min();
        if let Some((_, index)) = unheard {
            self.leave(now, index, "nothing has been heard of it, and another needs its place");
        }
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
        let topic = device.will.as_ref().map(|will| will.topic.clone());
        self.unsaved = true;
        if let Some(topic) = topic {
            self.unfollow_will(&topic);
        }
        let name = self.name_of(index);
        self.caused(now, Level::Info, Kind::Registered, || format!("device {name} leaves: {why}"));
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
        if device.provisional.take().is_some() {
            self.unsaved = true;
        }
        if std::mem::take(&mut device.stale) {
            let services = device.services.len();
            (0..services).for_each(|service| self.set_item((index, service), "/Connected", Value::Int(1), false));
        }
    }

    /// What is due for a device.
    pub(super) fn check_device(&mut self, now: Time, index: usize) {
        let Some(device) = self.devices.get_mut(index) else { return };
        if device.provisional.is_some_and(|due| due <= now) {
            return self.leave(now, index, "nothing has been heard of it");
        }
        let patience_ends = device.patience.is_some_and(|due| due <= now);
        if patience_ends {
            device.patience = None;
        }
        let silent = match (self.options.stale_after, device.heard) {
            (Some(after), Some(heard)) => device.online && !device.stale && heard + after <= now,
            _ => false,
        };
        device.stale |= silent;
        let services = device.services.len();
        if silent {
            let name = self.name_of(index);
            self.caused(now, Level::Info, Kind::Registered, || format!("device {name} is silent: shown as not connected"));
            (0..services).for_each(|service| self.set_item((index, service), "/Connected", Value::Int(0), false));
        }
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

    /// Brings back who was registered when the daemon ended. What cannot be used costs itself and nothing else: the text may be of
    /// another version of this program, or a person's.
    pub(super) fn recall(&mut self, entries: Vec<registry::Entry>) {
        for entry in entries {
            if self.devices.len() >= limits::GONE + self.options.max_devices {
                let most = self.devices.len();
                return self.notes.add(Level::Warn, || format!("the registry has more than {most} devices: the rest is left out"));
            }
            let id = match Id::parse(&entry.client) {
                Ok(id) if self.find(id.name()).is_none() => id,
                Ok(id) => {
                    self.notes.add(Level::Warn, || format!("the registry: device \"{id}\" is there twice: one is left out"));
                    continue;
                }
                Err(why) => {
                    self.notes.add(Level::Warn, || {
                        format!("the registry: device \"{}\" is left out: clientId {}", escape(&entry.client), escape(&why))
                    });
                    continue;
                }
            };
            let online = self.devices.iter().filter(|device| device.online).count();
            let mut device = Device::new(id);
            device.heard_unix = entry.last_heard;
            device.online = entry.connected && online < self.options.max_devices;
            device.provisional = device.online.then(|| Time::default() + limits::PROVISIONAL);
            self.recall_texts(&mut device, entry.topics, entry.version, entry.will);
            entry.services.into_iter().for_each(|remembered| self.recall_service(&mut device, remembered));
            self.devices.push(device);
        }
    }

    fn leave_out(&mut self, device: &Device, why: &str) {
        self.notes.add(Level::Warn, || format!("the registry: device \"{}\": {}: left out", device.id, escape(why)));
    }

    /// What of a device becomes a topic or a text on the bus.
    fn recall_texts(&mut self, device: &mut Device, topics: Vec<Box<str>>, version: Box<str>, will: Option<Will>) {
        for topic in topics {
            // a Status has two at most
            match check_topic_id(&topic) {
                Ok(()) if device.clients.len() < 2 => device.clients.push(topic),
                Ok(()) => self.leave_out(device, "it has more than two topics"),
                Err(why) => self.leave_out(device, &why),
            }
        }
        if device.clients.is_empty() {
            device.clients.push(device.id.raw().into());
        }
        if is_bus_text(&version) && version.chars().count() <= limits::VERSION {
            device.version = version;
        } else {
            self.leave_out(device, &format!("its version \"{}\" is not one that can be shown on the bus", escape(&version)));
        }
        match will.as_ref().map_or(Ok(()), |will| will.check(&self.topics)) {
            Ok(()) => device.will = will,
            Err(why) => self.leave_out(device, &why),
        }
    }

    fn recall_service(&mut self, device: &mut Device, remembered: registry::ServiceEntry) {
        let id = match Id::parse(&remembered.id) {
            Ok(id) if device.services.iter().all(|service| service.id.name() != id.name()) => id,
            Ok(id) => return self.leave_out(device, &format!("its service \"{id}\" is there twice")),
            Err(why) => return self.leave_out(device, &format!("a service whose ID {why}")),
        };
        if self.catalogue.service_type(&remembered.kind).is_none() {
            return self.notes.add(Level::Warn, || {
                format!("device {}: the catalogue has no type \"{}\" any more; {id} is left out", device.id, escape(&remembered.kind))
            });
        }
        let paths = |paths: &BTreeSet<Box<str>>| paths.iter().filter(|path| is_item_path(path)).cloned().collect::<BTreeSet<_>>();
        let mut service = Service::new(&device.id, id, remembered.kind);
        service.instance = remembered.instance;
        service.announce();
        service.written = paths(&remembered.written);
        service.grown = paths(&remembered.grown);
        if service.written != remembered.written || service.grown != remembered.grown {
            self.leave_out(device, &format!("what is no path of an item, of its service \"{}\"", service.id));
        }
        let wanted = device.services.iter().filter(|service| service.wanted).count();
        service.wanted = remembered.wanted && wanted < self.options.max_services;
        service.state = if device.online && service.wanted { State::Waiting } else { State::Off };
        device.services.push(service);
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
        Some(registry::print(&self.list(now, unix)))
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
        while self.devices.iter().filter(|device| !device.online).count() > limits::GONE {
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
    format!("{}, version \"{}\"", services.join(", "), escape(&wanted.version))
}
