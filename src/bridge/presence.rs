//! Services that come, change and leave: which topics they have, and what of them is known.

use log::Level;

use super::items::{Change, Full, Origin, Secrecy, ServiceId, State};
use super::notes::Kind;
use super::time::Time;
use super::value::{LIMIT_JSON_MAX, VALUE_JSON_MAX, Value};
use super::{Bridge, Conflict, Mode, access, limits, name};
use crate::text::escape;

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
        let path = &*name::to_item_path(path);
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

    fn change(&mut self, now: Time, id: ServiceId, path: &str, change: Change) {
        let invalid = change.value == Some(Value::Invalid);
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
        if invalid && service.is_settings() {
            // the snapshot of a scan that is under way may still have it
            if !service.is_ready()
                && let Some(index) = self.item_at(now, id, path)
            {
                self.touch(id, index, &Change::removal());
            }
            return self.remove_item(now, id, path);
        }
        let Some((index, ..)) = service.items.get_full(path).filter(|(.., item)| !item.gone) else {
            return self.new_item(now, id, path, change);
        };
        self.touch(id, index, &change);
        if !self.apply(now, id, index, change, Origin::Signal) {
            return;
        }
        let Some(service) = self.services.get_mut(id).filter(|service| service.is_ready()) else { return };
        let Some((_, item)) = service.items.get_index_mut(index) else { return };
        let awake = active && service.holder && item.secrecy != Secrecy::Blocked && (everything || now < item.until);
        if awake && !item.queued {
            item.queued = true;
            self.outbox.push(id, index);
        }
        if matches!(path, "/DeviceInstance" | "/Identifier") {
            self.take_instance_change(now, id);
        }
    }

    /// A signal names an item that is not known: it has no value until one comes.
    fn new_item(&mut self, now: Time, id: ServiceId, path: &str, change: Change) {
        let Some(service) = self.services.get(id) else { return };
        let ready = service.is_ready();
        if change.value.is_none() && service.is_settings() {
            return self.take_limits(now, id, path, change, Origin::Signal);
        }
        let Some(index) = self.item_at(now, id, path) else { return };
        self.touch(id, index, &change);
        self.apply(now, id, index, change, Origin::Signal);
        if ready {
            self.enqueue(now, id, index);
            self.take_instance_change(now, id);
        }
    }

    /// A setting without a value is not there yet: its limits are kept for when it is.
    pub(super) fn take_limits(&mut self, now: Time, id: ServiceId, path: &str, change: Change, from: Origin) {
        if !change.has_limits() {
            return;
        }
        let is_new = self.services.get(id).is_some_and(|service| !service.items.contains_key(path));
        let Some(index) = self.entry_at(now, id, path) else { return };
        if is_new {
            self.services.remove_item(id, index);
        }
        if from == Origin::Signal {
            self.touch(id, index, &change);
        }
        self.apply(now, id, index, change, from);
        self.enqueue(now, id, index);
    }

    /// What a signal brings is newer than the snapshot of a scan that is under way.
    fn touch(&mut self, id: ServiceId, index: usize, change: &Change) {
        if let Some(service) = self.services.get_mut(id).filter(|service| !service.is_ready())
            && let Some((_, item)) = service.items.get_index_mut(index)
        {
            item.touched.add(change);
        }
    }
}

/// Items that a service removes while it stays.
impl Bridge {
    /// Clears the topic of the item, and forgets the item. Nothing happens where there is none.
    pub(super) fn remove_item(&mut self, now: Time, id: ServiceId, path: &str) {
        let Some(index) = self.services.get(id).and_then(|service| service.items.get_index_of(path)) else { return };
        self.services.remove_item(id, index);
        self.enqueue(now, id, index);
        self.drop_if_done(id, index);
    }

    /// Frees an item that was removed, once nothing refers to it any more.
    pub(super) fn drop_if_done(&mut self, id: ServiceId, index: usize) {
        let Some(last) = self.services.remove_if_done(id, index) else { return };
        let moved = self.services.get(id).and_then(|service| service.items.get_index(index));
        if moved.is_some_and(|(_, item)| item.queued || item.answering) {
            self.outbox.move_item(id, last, index);
        }
    }

    /// The same for every item of a service, after the queue was cleared.
    pub(super) fn drop_gone(&mut self, id: ServiceId) {
        let Some(service) = self.services.get(id).filter(|service| service.is_settings()) else { return };
        (0..service.items.len()).rev().for_each(|index| self.drop_if_done(id, index));
    }
}

impl Bridge {
    /// The item at `path`, made and prepared when it is new; `None` when there is no room, or the path is none.
    pub(super) fn item_at(&mut self, now: Time, id: ServiceId, path: &str) -> Option<usize> {
        let service = self.services.get_mut(id)?;
        if let Some((index, _, item)) = service.items.get_full_mut(path) {
            if std::mem::take(&mut item.gone) {
                self.prepare(id, index);
            }
            return Some(index);
        }
        let index = self.entry_at(now, id, path)?;
        self.prepare(id, index);
        Some(index)
    }

    /// The entry at `path`, whether or not the item is there; `None` when there is no room, or the path is none.
    fn entry_at(&mut self, now: Time, id: ServiceId, path: &str) -> Option<usize> {
        let name = self.services.get(id)?.name.clone();
        if !name::is_item_path(path) {
            self.notes.add_caused(now, Level::Warn, Kind::Item, || {
                format!("{name} names an item \"{}\", which is no D-Bus path: it is left out", escape(path))
            });
            return None;
        }
        match self.services.item_entry(id, path)? {
            Ok(index) => Some(index),
            Err(full) => {
                self.notes.add_caused(now, Level::Warn, Kind::Item, || match full {
                    Full::Service => {
                        let (items, bytes) = (limits::SERVICE_ITEMS, limits::SERVICE_BYTES >> 20);
                        format!("{name} has {items} items, or {bytes} MiB of them, the most one service may have: {path} is left out")
                    }
                    Full::All => {
                        let (items, bytes) = (limits::ITEMS, limits::MODEL_BYTES >> 20);
                        format!(
                            "all services have {items} items, or {bytes} MiB of them, the most there may be: {path} of {name} is left out"
                        )
                    }
                });
                None
            }
        }
    }

    /// Applies a change to an item, wherever it comes from; true when there is something to publish.
    pub(super) fn apply(&mut self, now: Time, id: ServiceId, index: usize, mut change: Change, from: Origin) -> bool {
        self.cut(now, id, index, &mut change);
        let applied = self.services.apply(id, index, change, from);
        if applied.cut
            && let Some(service) = self.services.get(id)
            && let Some((path, _)) = service.items.get_index(index)
        {
            let (name, bytes) = (&service.name, limits::SERVICE_BYTES >> 20);
            self.notes.add_caused(now, Level::Warn, Kind::Item, || {
                format!("the values of {name} are over {bytes} MiB, the most for one service: {path} is shown as null")
            });
        }
        applied.shown
    }

    /// What is larger than is kept is shown as null, whichever message brought it.
    fn cut(&mut self, now: Time, id: ServiceId, index: usize, change: &mut Change) {
        if change.cut()
            && let Some(service) = self.services.get(id)
            && let Some((path, _)) = service.items.get_index(index)
        {
            let name = &service.name;
            self.notes.add_caused(now, Level::Warn, Kind::Item, || {
                let (value, limit) = (VALUE_JSON_MAX / 1024, LIMIT_JSON_MAX / 1024);
                format!("{path} of {name} has a value of over {value} KiB, or a limit of over {limit} KiB: shown as null")
            });
        }
    }

    /// What depends on the topic of an item.
    pub(super) fn prepare(&mut self, id: ServiceId, index: usize) {
        let Some(service) = self.services.get_mut(id) else { return };
        let service_type = service.name.service_type();
        let instance = &service.instance;
        let Some((path, item)) = service.items.get_index_mut(index).filter(|(_, item)| !item.gone) else {
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
            item.until = self.keepalives.of_service(service_type, instance).until(path).unwrap_or_default();
        }
    }

    /// Finds the instance of a service that has just become ready, or whose instance may have changed, and its topics.
    pub(super) fn take_instance(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get_mut(id) else { return };
        service.instance = service.find_instance();
        service.topic = self.topics.notification(&format!("{}/{}", service.name.service_type(), service.instance)).into();
        let count = service.items.len();
        (0..count).for_each(|index| self.prepare(id, index));
        self.numbers_changed = true;
        match self.services.claim_topics(id) {
            Ok(()) => self.enqueue_all(now, id),
            Err(holder) => {
                if let (Some(service), Some(holder)) = (self.services.get(id), self.services.get(holder)) {
                    let (name, other, topic) = (service.name.clone(), holder.name.clone(), service.topic.clone());
                    if self.conflicts.len() < limits::CONFLICTS {
                        self.conflicts.push_back(Conflict { holder: other.as_str().into(), other: name.as_str().into() });
                    }
                    self.notes.add_caused(now, Level::Warn, Kind::Service, || {
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
        let (name, old) = (service.name.clone(), service.instance.clone());
        let service_type = service.service_type().to_owned();
        self.notes.add_caused(now, Level::Info, Kind::Service, || format!("{name} changes its instance from {old} to {instance}"));
        self.leave_topics(now, id);
        self.drop_gone(id);
        self.services.release_topics(id);
        if let Some(service) = self.services.get_mut(id) {
            service.instance = instance;
        }
        self.take_over(now, (service_type, old));
        self.take_instance(now, id);
    }

    /// The topics of a service that leaves, or changes its instance, are to be cleared.
    fn leave_topics(&mut self, now: Time, id: ServiceId) {
        let (tombstone, lost) = self.services.leave_topics(id);
        self.unswept |= lost > 0;
        if let Some(tombstone) = tombstone {
            self.enqueue_all(now, tombstone);
        }
        self.forget_entries();
    }

    fn forget_entries(&mut self) {
        let (services, most) = (&self.services, self.services.items() + self.services.left());
        self.outbox.forget(most, |id| services.get(id).is_some());
    }

    /// A service has left the bus.
    pub(super) fn leave(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get(id) else { return };
        let (name, owner, held) = (service.name.clone(), service.owner.clone(), service.holder);
        let key = (service.service_type().to_owned(), service.instance.clone());
        self.notes.add(Level::Debug, || format!("{name} left"));
        self.calls.forget(id);
        let lost = self.pending.forget(id);
        if lost > 0 {
            self.notes.add_caused(now, Level::Warn, Kind::WriteFailed, || format!("{name} left with {lost} writes unanswered"));
        }
        self.leave_topics(now, id);
        self.services.remove(id);
        if self.services.by_owner(&owner).is_empty() {
            self.calls.gone(&owner);
        }
        self.forget_entries();
        self.numbers_changed = true;
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
            self.notes.add_caused(now, Level::Info, Kind::Service, || format!("{name} takes over {topic}"));
        }
        self.take_instance(now, heir);
    }
}
