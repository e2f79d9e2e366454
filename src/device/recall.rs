//! From one life of the daemon to the next: what the registry has to have at the end, and who comes back from it at the start.

use std::collections::BTreeSet;
use std::time::Duration;

use log::Level;

use super::id::Id;
use super::model::{Device, Service, State};
use super::options::Options;
use super::status::{Will, check_topic_id};
use super::{Devices, registry};
use crate::bridge::name::{is_bus_text, is_item_path};
use crate::bridge::{Time, limits};
use crate::text::escape;

/// Services of a device for which there is no place any more.
#[derive(Default)]
struct Beyond {
    of_device: Vec<String>,
    of_all: Vec<String>,
}

impl Beyond {
    fn reasons(&self, options: &Options) -> Vec<String> {
        let caps =
            [(&self.of_device, "max_services", options.max_services), (&self.of_all, "max_services_total", options.max_services_total)];
        let caps = caps.into_iter().filter(|(ids, ..)| !ids.is_empty());
        caps.map(|(ids, key, most)| format!("services {} are beyond `{key}` = {most} in [devices]", list(ids))).collect()
    }
}

/// The first few of many.
fn list(ids: &[String]) -> String {
    let (told, rest) = ids.split_at(ids.len().min(limits::PROXY_REFUSALS));
    let told = told.iter().map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(", ");
    if rest.is_empty() { told } else { format!("{told} and {} more", rest.len()) }
}

impl Devices {
    /// The registry as the daemon leaves it when it ends: with the values of now, if the next start is to show them.
    pub fn last_registry(&self, now: Time, unix: u64) -> String {
        self.registry_with(now, unix, |_| true)
    }

    /// The registry with the values of the services for which `is_meant` holds.
    pub(super) fn registry_with(&self, now: Time, unix: u64, is_meant: impl Fn(&Service) -> bool) -> String {
        let mut entries = self.list(now, unix);
        let text = registry::print(&entries);
        if self.options.restore_values.is_none() || unix < registry::CLOCK_IS_SET {
            return text;
        }
        let mut room = limits::REGISTRY_BYTES.saturating_sub(text.len()).min(limits::RESTORED_BYTES);
        for (device, entry) in self.devices.iter().zip(&mut entries).filter(|(device, _)| device.online) {
            let services = device.services.iter().zip(&mut entry.services);
            for (service, entry) in services.filter(|(service, _)| service.wanted && is_meant(service)) {
                entry.values = registry::Values::of(service, now, unix).filter(|values| {
                    let size = values.size();
                    let fits = size <= room;
                    room -= if fits { size } else { 0 };
                    fits
                });
            }
        }
        registry::print(&entries)
    }

    /// Brings back who was registered when the daemon ended. What cannot be used costs itself and nothing else: the text may be of
    /// another version of this program, or a person's.
    pub(super) fn recall(&mut self, entries: Vec<registry::Entry>, unix: u64) {
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
            let mut room = self.options.max_services_total.saturating_sub(self.devices.iter().map(Device::wanted).sum());
            let mut device = Device::new(id);
            device.heard_unix = entry.last_heard;
            device.timeout = entry.timeout;
            device.online = entry.connected && online < self.options.max_devices;
            let has_no_place = entry.connected && !device.online;
            device.provisional = device.online.then(|| Time::default() + limits::PROVISIONAL);
            self.recall_texts(&mut device, entry.topics, entry.version, entry.will);
            let mut beyond = Beyond::default();
            for remembered in entry.services {
                self.recall_service(&mut device, remembered, &mut room, &mut beyond, unix);
            }
            let why = match has_no_place {
                true => vec![format!("it is beyond the {} devices of `max_devices` in [devices]", self.options.max_devices)],
                false => beyond.reasons(&self.options),
            };
            if entry.connected && !why.is_empty() {
                let why = why.join("; ");
                self.leave_out(&device, &why);
                self.unanswered.push((device.clients.clone(), format!("left out at the restart of the daemon: {why}")));
            }
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

    /// `room` is how many more services all devices may have.
    fn recall_service(
        &mut self,
        device: &mut Device,
        remembered: registry::ServiceEntry,
        room: &mut usize,
        beyond: &mut Beyond,
        unix: u64,
    ) {
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
        let most = self.options.max_services;
        service.wanted = remembered.wanted && device.services.iter().filter(|service| service.wanted).count() < most;
        if remembered.wanted && !service.wanted {
            beyond.of_device.push(service.id.to_string());
        }
        if device.online && service.wanted && *room == 0 {
            service.wanted = false;
            beyond.of_all.push(service.id.to_string());
        }
        if device.online && service.wanted {
            *room -= 1;
            service.state = State::Waiting;
            if let Some((values, left)) = remembered.values.and_then(|values| self.restorable(device, &service, values, unix)) {
                service.restored_from = Some((values.at, values.seen));
                (service.restored, service.restored_until) = (values.items, Some(Time::default() + left));
            }
        }
        device.services.push(service);
    }

    /// The values of before the restart, and for how long they are shown. Without a time of day nobody knows how old they are.
    /// Of a service that was silent for too long, what it measured is none of them.
    fn restorable(
        &self,
        device: &Device,
        service: &Service,
        mut values: registry::Values,
        unix: u64,
    ) -> Option<(registry::Values, Duration)> {
        let age = |at: u64| unix.checked_sub(at).filter(|_| at >= registry::CLOCK_IS_SET).map(Duration::from_secs);
        let left = self.options.restore_values?.checked_sub(age(values.at)?)?;
        let seen = age(values.seen)?;
        let left = match device.stale_after(service, &self.options) {
            Some(after) if after > seen => left.min(after - seen),
            Some(_) => {
                values.items.retain(|(path, _)| !self.is_measured(service, path));
                left
            }
            None => left,
        };
        (!left.is_zero() && !values.items.is_empty()).then_some((values, left))
    }
}
