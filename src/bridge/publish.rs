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
        if self.mode != Mode::Bridge {
            return;
        }
        let everything = self.keepalives.everything(now);
        let Some(service) = self.services.get_mut(id) else { return };
        for (index, item) in service.items.values_mut().enumerate() {
            if item.wants_turn(service.holder && (everything || now < item.until)) {
                self.outbox.push(id, index);
            }
        }
    }

    pub(super) fn enqueue(&mut self, now: Time, id: ServiceId, index: usize) {
        if self.mode != Mode::Bridge {
            return;
        }
        let everything = self.keepalives.everything(now);
        let Some(service) = self.services.get_mut(id) else { return };
        let Some((_, item)) = service.items.get_index_mut(index) else { return };
        if item.wants_turn(service.holder && (everything || now < item.until)) {
            self.outbox.push(id, index);
        }
    }

    /// What an item has to say when its turn comes.
    pub(super) fn print_item(&mut self, now: Time, id: ServiceId, index: usize) -> Option<Publish> {
        let everything = self.keepalives.everything(now);
        let retain = self.options.retain;
        let service = self.services.get_mut(id)?;
        let is_setting = service.is_settings();
        let (path, item) = service.items.get_index_mut(index)?;
        item.queued = false;
        let gone = item.gone;
        let topic = || [&service.topic, &**path].concat();
        let clear = || Publish { topic: topic(), payload: Vec::new(), retain };
        let awake = service.holder && item.secrecy != Secrecy::Blocked && (everything || now < item.until);
        if std::mem::take(&mut item.clear_first) {
            let clear = clear();
            if item.wants_turn(awake) {
                self.outbox.push(id, index);
            }
            self.counters.cleared += 1;
            self.drop_if_done(id, index);
            return Some(clear);
        }
        if awake {
            item.published = true;
            self.scratch.clear();
            item.write_payload(is_setting, &mut self.scratch);
            return Some(Publish { topic: topic(), payload: self.scratch.as_slice().into(), retain });
        }
        if !item.published {
            self.drop_if_done(id, index);
            return None;
        }
        let left = matches!(service.state, State::Left { .. });
        let clear = (left || gone || retain).then(clear);
        if left {
            self.services.cleared(id, index);
            self.services.free_if_done(id);
        } else {
            item.published = false;
        }
        self.drop_if_done(id, index);
        self.counters.cleared += u64::from(clear.is_some());
        clear
    }

    /// A message was not sent, because the broker refuses it; what was retained on its topic has been cleared.
    pub fn left_out(&mut self, topic: &str) {
        if let Incoming::Notification(rest) = self.topics.parse(topic)
            && let Some(item) = self.published_item(rest)
        {
            item.published = false;
        }
    }

    /// The answer to a read: goes out asleep too, but is retained only if somebody keeps it awake.
    pub(super) fn print_answer(&mut self, now: Time, id: ServiceId, index: usize) -> Option<Publish> {
        let everything = self.keepalives.everything(now);
        let service = self.services.get_mut(id)?;
        let (holder, is_setting) = (service.holder, service.is_settings());
        let (path, item) = service.items.get_index_mut(index)?;
        item.answering = false;
        if item.gone {
            self.drop_if_done(id, index);
            return None;
        }
        if !holder {
            return None;
        }
        if std::mem::take(&mut item.clear_first) {
            item.answering = true;
            self.outbox.push_answer(id, index);
            self.counters.cleared += 1;
            return Some(Publish { topic: [&service.topic, &**path].concat(), payload: Vec::new(), retain: self.options.retain });
        }
        let awake = everything || now < item.until;
        item.published |= awake;
        let mut payload = Vec::new();
        item.write_payload(is_setting, &mut payload);
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
        if special == Special::Probe {
            self.probe_published();
        }
        self.is_online |= special == Special::Status && !stopping;
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
