//! Services that come, change and leave: which topics they have, and what of them is known.

use log::Level;

use super::items::{Change, Secrecy, ServiceId, State};
use super::notes::Kind;
use super::time::Time;
use super::value::{VALUE_MAX, Value};
use super::{Bridge, Mode, access, limits, name};

/// The changes of one signal.
#[derive(Debug)]
pub struct Changes<'a> {
    bridge: &'a mut Bridge,
    now: Time,
    first: ServiceId,
    /// Other names on the same connection.
    rest: Vec<ServiceId>,
    told: bool,
}

impl<'a> Changes<'a> {
    pub(super) fn new(bridge: &'a mut Bridge, now: Time, first: ServiceId, rest: Vec<ServiceId>) -> Self {
        Self { bridge, now, first, rest, told: false }
    }

    /// Somebody has to know: the changes are published asleep too, as an answer would be.
    pub fn tell(&mut self) {
        self.told = true;
    }

    /// One item of the signal. A path nobody knows is a new item of the first service on that connection.
    pub fn item(&mut self, path: &str, change: Change) {
        let services = &self.bridge.services;
        let known = |id: &ServiceId| services.get(*id).is_some_and(|service| service.items.contains_key(path));
        let others: Vec<ServiceId> = self.rest.iter().copied().filter(known).collect();
        let first = others.is_empty() || known(&self.first);
        for id in others {
            self.bridge.change(self.now, id, path, change.clone());
        }
        if first {
            self.bridge.change(self.now, self.first, path, change);
            if self.told {
                self.bridge.tell(self.now, self.first, path);
            }
        }
    }
}

impl Bridge {
    /// Publishes an item that nobody keeps awake.
    fn tell(&mut self, now: Time, id: ServiceId, path: &str) {
        let everything = self.keepalives.everything(now);
        let active = self.mode == Mode::Bridge;
        let Some(service) = self.services.get_mut(id) else { return };
        let (holds, ready) = (service.holder, service.is_ready());
        let Some((index, _, item)) = service.items.get_full_mut(path) else { return };
        let asleep = !everything && item.until <= now && item.secrecy != Secrecy::Blocked;
        if active && holds && ready && asleep && !item.answering {
            item.answering = true;
            self.outbox.push_answer(id, index);
        }
    }

    fn change(&mut self, now: Time, id: ServiceId, path: &str, mut change: Change) {
        if change.value.as_ref().is_some_and(|value| value.weight() > VALUE_MAX) {
            self.notes.add_caused(now, Level::Warn, Kind::Item, || {
                format!("the value of {} is over {} KiB: shown as null", crate::text::escape(path), VALUE_MAX / 1024)
            });
            change.value = Some(Value::Invalid);
        }
        self.counters.changes += 1;
        let everything = self.keepalives.everything(now);
        let active = self.mode == Mode::Bridge;
        let Some(service) = self.services.get_mut(id) else { return };
        service.heard = now;
        if let State::Silent { again, .. } = &mut service.state {
            // it lives: worth asking again before long
            let soon = now + limits::SCAN_RETRY_FIRST;
            if *again > soon {
                *again = soon;
                self.next_retry = self.next_retry.map(|at| at.min(soon));
            }
            return;
        }
        let Some((index, _, item)) = service.items.get_full_mut(path) else {
            return self.new_item(now, id, path, change);
        };
        if !item.apply(change) {
            return;
        }
        match service.state {
            State::Ready => {
                let awake = active && service.holder && item.secrecy != Secrecy::Blocked && (everything || now < item.until);
                if awake && !item.queued {
                    item.queued = true;
                    self.outbox.push(id, index);
                }
                if matches!(path, "/DeviceInstance" | "/Identifier") {
                    self.take_instance_change(now, id);
                }
            }
            _ => item.touched = true,
        }
    }

    /// A signal names an item that is not known. Without a value there is nothing to know yet.
    fn new_item(&mut self, now: Time, id: ServiceId, path: &str, change: Change) {
        if change.value.is_none() {
            return;
        }
        let Some((index, _)) = self.item_at(now, id, path) else { return };
        let Some(service) = self.services.get_mut(id) else { return };
        let ready = service.is_ready();
        if let Some((_, item)) = service.items.get_index_mut(index) {
            item.apply(change);
            item.touched = !ready;
        }
        if ready {
            self.enqueue(now, id, index);
            self.take_instance_change(now, id);
        }
    }
}

impl Bridge {
    /// The item at `path`, made and prepared when it is new; `None` when there is no room, or the path is none.
    pub(super) fn item_at(&mut self, now: Time, id: ServiceId, path: &str) -> Option<(usize, bool)> {
        let known = self.services.get(id)?.items.get_index_of(path);
        if let Some(index) = known {
            return Some((index, false));
        }
        if !name::is_item_path(path) {
            return None;
        }
        let Some(found) = self.services.item_entry(id, path, limits::ITEMS) else {
            self.notes
                .add_caused(now, Level::Warn, Kind::Item, || format!("more than {} items on the bus: {path} is left out", limits::ITEMS));
            return None;
        };
        self.prepare(id, found.0);
        Some(found)
    }

    /// What depends on the topic of an item.
    pub(super) fn prepare(&mut self, id: ServiceId, index: usize) {
        let Some(service) = self.services.get_mut(id) else { return };
        let service_type = service.name.service_type();
        let instance = &service.instance;
        let Some((path, item)) = service.items.get_index_mut(index) else {
            return;
        };
        // the serial of the system is a topic of its own
        let special = service_type == "system" && **instance == *"0" && **path == *"/Serial";
        item.secrecy = if special || access::is_blocked(service_type, path) {
            Secrecy::Blocked
        } else if access::is_masked(service_type, path) {
            Secrecy::Masked
        } else {
            Secrecy::Open
        };
        if self.keepalives.has_filters() {
            item.until = self.keepalives.until(service_type, instance, path);
        }
    }

    /// Finds the instance of a service that has just become ready, or whose instance may have changed, and its topics.
    pub(super) fn take_instance(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get_mut(id) else { return };
        service.instance = service.find_instance();
        service.topic = self.topics.notification(&format!("{}/{}", service.name.service_type(), service.instance)).into();
        let count = service.items.len();
        (0..count).for_each(|index| self.prepare(id, index));
        match self.services.claim_topics(id) {
            Ok(()) => self.enqueue_all(now, id),
            Err(holder) => {
                if let (Some(service), Some(holder)) = (self.services.get(id), self.services.get(holder)) {
                    let (name, other, topic) = (service.name.clone(), holder.name.clone(), service.topic.clone());
                    self.notes.add(Level::Warn, || {
                        format!("{name} has the type and instance of {other} ({topic}): it is not published until that one leaves; give it another instance")
                    });
                }
            }
        }
    }

    /// The instance may have changed: the old topics are taken back, and everything is published under the new ones.
    pub(super) fn take_instance_change(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get(id) else { return };
        let instance = service.find_instance();
        if !service.is_ready() || instance == service.instance {
            return;
        }
        // a service that is about to leave makes its items invalid first: that is no new instance
        if service.items.get("/DeviceInstance").is_some_and(|item| item.value == Value::Invalid) {
            return;
        }
        let (name, owner, topic, old) = (service.name.clone(), service.owner.clone(), service.topic.clone(), service.instance.clone());
        let service_type = service.service_type().to_owned();
        self.notes.add(Level::Info, || format!("{name} changes its instance from {old} to {instance}"));
        let ghost = self.services.add(name, &owner, State::Left { topics: 0 });
        let published: Vec<Box<str>> = match self.services.get_mut(id) {
            Some(service) => {
                let published = service.items.iter_mut().filter(|(_, item)| item.published);
                published.map(|(path, item)| (item.published = false, path.clone()).1).collect()
            }
            None => Vec::new(),
        };
        for path in &published {
            self.services.item_entry(ghost, path, usize::MAX);
        }
        if let Some(service) = self.services.get_mut(ghost) {
            (service.topic, service.instance) = (topic, old.clone());
            service.items.values_mut().for_each(|item| item.published = true);
            service.state = State::Left { topics: published.len() };
        }
        self.enqueue_all(now, ghost);
        self.services.free_if_done(ghost);
        self.services.release_topics(id);
        if let Some(service) = self.services.get_mut(id) {
            service.instance = instance;
        }
        self.take_over(now, (service_type, old));
        self.take_instance(now, id);
    }

    /// A service has left the bus.
    pub(super) fn leave(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get(id) else { return };
        let (name, held) = (service.name.clone(), service.holder);
        let key = (service.service_type().to_owned(), service.instance.clone());
        self.notes.add(Level::Debug, || format!("{name} left"));
        self.calls.forget(id);
        let lost = self.pending.forget(id);
        if lost > 0 {
            self.notes.add_caused(now, Level::Warn, Kind::WriteFailed, || format!("{name} left with {lost} writes unanswered"));
        }
        self.services.detach(id);
        self.enqueue_all(now, id);
        self.services.free_if_done(id);
        if held {
            self.take_over(now, key);
        }
        self.check_first_scan(now);
    }

    /// Topics have become free: the oldest of those that wait for them gets them.
    pub(super) fn take_over(&mut self, now: Time, (service_type, instance): (String, Box<str>)) {
        let waiting = self.services.iter().filter(|(_, service)| {
            service.is_ready() && !service.holder && service.service_type() == service_type && service.instance == instance
        });
        let Some(heir) = waiting.min_by_key(|(_, service)| service.age).map(|(id, _)| id) else {
            return;
        };
        if let Some(service) = self.services.get(heir) {
            let (name, topic) = (service.name.clone(), service.topic.clone());
            self.notes.add(Level::Info, || format!("{name} takes over {topic}"));
        }
        self.take_instance(now, heir);
    }
}
