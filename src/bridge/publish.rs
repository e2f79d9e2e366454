//! What goes out: when an item is queued, and what it has to say when its turn comes.

use super::items::{Secrecy, ServiceId, State};
use super::outbox::Special;
use super::time::Time;
use super::topic::Incoming;
use super::value::Value;
use super::{Bridge, Mode, Publish};

impl Bridge {
    /// Queues every item that has something to publish, or to take back.
    pub(super) fn enqueue_all(&mut self, now: Time, id: ServiceId) {
        let count = self.services.get(id).map_or(0, |service| service.items.len());
        (0..count).for_each(|index| self.enqueue(now, id, index));
    }

    pub(super) fn enqueue(&mut self, now: Time, id: ServiceId, index: usize) {
        if self.mode != Mode::Bridge {
            return;
        }
        let everything = self.keepalives.everything(now);
        let Some(service) = self.services.get_mut(id) else { return };
        let Some((_, item)) = service.items.get_index_mut(index) else {
            return;
        };
        let awake = service.holder && item.secrecy != Secrecy::Blocked && (everything || now < item.until);
        if !item.queued && (awake || item.published) {
            item.queued = true;
            self.outbox.push(id, index);
        }
    }

    /// What an item has to say when its turn comes.
    pub(super) fn print_item(&mut self, now: Time, id: ServiceId, index: usize) -> Option<Publish> {
        let everything = self.keepalives.everything(now);
        let service = self.services.get_mut(id)?;
        let (path, item) = service.items.get_index_mut(index)?;
        item.queued = false;
        let topic = || [&service.topic, &**path].concat();
        if service.holder && item.secrecy != Secrecy::Blocked && (everything || now < item.until) {
            item.published = true;
            self.scratch.clear();
            item.write_payload(&mut self.scratch);
            return Some(Publish { topic: topic(), payload: self.scratch.as_slice().into(), retain: self.options.retain });
        }
        if !item.published {
            return None;
        }
        item.published = false;
        let left = if let State::Left { topics } = &mut service.state {
            *topics = topics.saturating_sub(1);
            true
        } else {
            false
        };
        let clear = (left || self.options.retain).then(|| Publish { topic: topic(), payload: Vec::new(), retain: self.options.retain });
        if left {
            let (service_type, instance, path) = (service.name.service_type().to_owned(), service.instance.clone(), path.clone());
            self.services.free_if_done(id);
            self.repair(now, &service_type, &instance, &path);
        }
        self.counters.cleared += u64::from(clear.is_some());
        clear
    }

    /// An answer may have overtaken the clearing of its own topic: then it has to be said again.
    pub(super) fn repair(&mut self, now: Time, service_type: &str, instance: &str, path: &str) {
        if let Some(heir) = self.services.by_topic(service_type, instance)
            && let Some((index, _, item)) = self.services.get(heir).and_then(|service| service.items.get_full(path))
            && item.published
        {
            self.enqueue(now, heir, index);
        }
    }

    /// The answer to a read: goes out asleep too, but is retained only if somebody keeps it awake.
    pub(super) fn print_answer(&mut self, now: Time, id: ServiceId, index: usize) -> Option<Publish> {
        let everything = self.keepalives.everything(now);
        let service = self.services.get_mut(id)?;
        let holder = service.holder;
        let (path, item) = service.items.get_index_mut(index)?;
        item.answering = false;
        if !holder {
            return None;
        }
        let awake = everything || now < item.until;
        item.published |= awake;
        let mut payload = Vec::new();
        item.write_payload(&mut payload);
        Some(Publish { topic: [&service.topic, &**path].concat(), payload, retain: awake && self.options.retain })
    }

    pub(super) fn print_stale(&mut self, now: Time) -> Option<Publish> {
        let topic = self.outbox.pop_stale()?;
        self.next_pass();
        if let Incoming::Notification(rest) = self.topics.parse(&topic)
            && self.takes_over_retained(now, rest)
        {
            return None;
        }
        self.counters.cleared += 1;
        Some(Publish { topic, payload: Vec::new(), retain: true })
    }

    pub(super) fn print_completion(&mut self, unix: u64) -> Option<Publish> {
        let echo = self.outbox.pop_completion()?;
        let mut payload = format!("{{\"value\":{unix}").into_bytes();
        if let Some(echo) = echo {
            payload.extend_from_slice(b",\"full-publish-completed-echo\":");
            Value::Str(echo).write_json(&mut payload);
        }
        payload.push(b'}');
        Some(Publish { topic: self.topics.notification("full_publish_completed"), payload, retain: false })
    }

    pub(super) fn print_special(&mut self, special: Special, unix: u64) -> Option<Publish> {
        let stopping = self.stopping;
        let (topic, payload, retain) = match special {
            Special::Status => (self.topics.own("status"), if stopping { "offline" } else { "online" }.to_owned(), true),
            Special::Mode => (self.topics.own("mode"), if stopping { "" } else { self.mode.name() }.to_owned(), true),
            Special::Serial => (self.topics.notification("system/0/Serial"), format!("{{\"value\":\"{}\"}}", self.topics.portal()), true),
            Special::KeepAlive => (self.topics.notification("keepalive"), "{\"value\":1}".to_owned(), true),
            Special::Heartbeat if self.heartbeat.is_none() => return None,
            Special::Heartbeat => (self.topics.notification("heartbeat"), format!("{{\"value\":{unix}}}"), false),
            Special::Probe => (self.topics.request('R', "keepalive"), self.probe.clone(), false),
        };
        Some(Publish { topic, payload: payload.into_bytes(), retain })
    }
}
