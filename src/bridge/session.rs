//! The connection to the broker as the core sees it: what is subscribed to, who serves this portal ID, what a former life
//! left retained, and how it all ends.

use std::collections::{BTreeSet, VecDeque};

use log::Level;

use super::Bridge;
use super::items::{Item, Secrecy, ServiceId, State};
use super::limits;
use super::notes::Kind;
use super::options::Enabled;
use super::outbox::Special;
use super::time::Time;
use super::topic::{Address, Incoming};
use crate::text::escape;

/// Who serves N, R and W on this broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// No connection.
    Down,
    /// Another bridge would show itself by `until`, which is known once the broker has the probe.
    Undecided { until: Option<Time> },
    /// This one.
    Bridge,
    /// Another one; this one stays out of its way.
    Companion,
    /// Nobody: switched off.
    Off,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Undecided { .. } => "undecided",
            Self::Bridge => "bridge",
            Self::Companion => "companion",
            Self::Off => "off",
        }
    }
}

/// What the connection is asked to do beside publishing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkCommand {
    Subscribe(Vec<String>),
    Unsubscribe(Vec<String>),
}

/// What is remembered from one connection to the next.
#[derive(Debug, Default)]
pub struct History {
    /// What the log says of who serves the broker.
    mode: Option<Mode>,
    /// Filters that the log says are refused: a few, all of this program.
    refused: BTreeSet<String>,
    /// The log says that the broker does not replay to wildcards, or not everything.
    pub(super) has_no_replay: bool,
    pub(super) cuts_replay: bool,
    /// The last sweep may have left something: it begins again once nothing is awake.
    pub(super) may_stay: bool,
}

/// Requests that came before it was known whom to ask.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The first of the two subscriptions to heartbeats: the second follows the probe.
    is_heartbeat_acknowledged: bool,
    messages: VecDeque<(String, Vec<u8>)>,
    bytes: usize,
}

pub(super) const SERIAL: &str = "system/0/Serial";
pub(super) const KEEPALIVE: &str = "keepalive";
const HEARTBEAT: &str = "heartbeat";

impl Bridge {
    /// Connected, without a session.
    pub fn link_up(&mut self, now: Time) {
        self.outbox.clear();
        self.is_online = false;
        if self.stopping {
            return self.take_back(now);
        }
        self.mode = match self.options.enabled {
            Enabled::Yes => Mode::Bridge,
            Enabled::Auto => Mode::Undecided { until: None },
            Enabled::No => Mode::Off,
        };
        let reads = self.topics.request('R', "#");
        match self.mode {
            Mode::Bridge => {
                self.link_commands.push_back(LinkCommand::Subscribe(vec![reads, self.topics.request('W', "#")]));
                self.become_bridge(now);
            }
            Mode::Undecided { .. } => {
                // The heartbeat first: the answer to the probe must not be missed. W later: dbus-flashmq carries out each retained W
                // again whenever a client subscribes to a filter that matches it.
                self.link_commands.push_back(LinkCommand::Subscribe(vec![self.topics.notification(HEARTBEAT)]));
                self.link_commands.push_back(LinkCommand::Subscribe(vec![reads]));
            }
            _ if self.beside => {}
            _ => self.say_off(),
        }
    }

    fn say_off(&mut self) {
        self.outbox.push_special(Special::Status);
        self.outbox.push_special(Special::Mode);
    }

    /// What others of this process have subscribed to is heard from now on.
    pub fn subscribed_beside(&mut self) {
        if self.mode == Mode::Off {
            self.say_off();
        }
    }

    /// The connection is gone, with everything that was on its way.
    pub fn link_down(&mut self) {
        self.mode = Mode::Down;
        self.is_online = false;
        self.sweep = None;
        self.link_commands.clear();
        self.waiting = Waiting::default();
        // whoever waits for an echo gets it after the next resync
        self.owed.extend(self.outbox.clear());
        for id in self.services.ids() {
            if let Some(service) = self.services.get_mut(id) {
                service.items.values_mut().for_each(|item| (item.queued, item.answering) = (false, false));
            }
            self.drop_gone(id);
        }
    }

    /// The broker's answer to one filter of a subscription.
    pub fn subscribed(&mut self, now: Time, filter: &str, accepted: bool) {
        if accepted {
            self.history.refused.remove(filter);
        } else {
            // once, however often the connection is made
            let level = if self.history.refused.insert(filter.into()) { Level::Warn } else { Level::Debug };
            self.notes.add(level, || {
                format!("the broker refuses the subscription to {}: allow it for this user in the broker's access list", escape(filter))
            });
        }
        if matches!(self.mode, Mode::Undecided { .. }) {
            if filter == self.topics.request('R', "#") {
                self.outbox.push_special(Special::Probe);
            } else if filter == self.topics.notification(HEARTBEAT) && std::mem::replace(&mut self.waiting.is_heartbeat_acknowledged, true)
            {
                self.probe_delivered(now);
            }
        }
        if filter == self.topics.request('W', "#") {
            // the last subscription: from now on reads and writes are received
            self.outbox.push_special(Special::Status);
        }
        self.sweep_subscribed(now, filter, accepted);
    }

    /// What is there for good, so that a system can be found.
    pub(super) fn push_constants(&mut self) {
        self.outbox.push_special(Special::Serial);
        self.outbox.push_special(Special::KeepAlive);
    }

    /// A retained message whose payload is too large to be taken. Only the search for retained values looks at these: they are part of a
    /// replay, and cleared by their topic.
    pub fn large_message(&mut self, now: Time, topic: &str) {
        if !self.stopping
            && let Incoming::Notification(rest) = self.topics.parse(topic)
        {
            self.notification(now, rest, topic, b"large", true);
        }
    }

    /// A message from the broker.
    pub fn message(&mut self, now: Time, topic: &str, payload: &[u8], retained: bool) {
        if self.stopping {
            return;
        }
        match self.topics.parse(topic) {
            Incoming::Notification(rest) => self.notification(now, rest, topic, payload, retained),
            Incoming::Write(address) if retained && !matches!(self.mode, Mode::Companion | Mode::Off) => self.ignore_write(
                now,
                address,
                "it is retained, and would be carried out again at every connect: publish it without the retain flag",
            ),
            _ if retained => {}
            // our own question to another bridge: whoever answers has it by now
            _ if payload == self.probe.as_bytes() => self.probe_delivered(now),
            // not subscribed to yet, and maybe another bridge's
            Incoming::Write(_) if matches!(self.mode, Mode::Undecided { .. }) => {}
            Incoming::Foreign => self.notes.add(Level::Debug, || format!("a message on {} is none of ours", escape(topic))),
            _ if !matches!(self.mode, Mode::Bridge | Mode::Undecided { .. }) => {}
            _ if !self.is_settled() => self.wait(now, topic, payload),
            request => self.request(now, request, payload),
        }
    }

    fn request(&mut self, now: Time, request: Incoming<'_>, payload: &[u8]) {
        self.pace.requested(now);
        match request {
            Incoming::KeepAlive => self.keep_alive(now, payload),
            Incoming::SerialKeepAlive => {
                self.keep_alive(now, payload);
                self.outbox.push_special(Special::Serial);
            }
            Incoming::Read(address) => {
                self.counters.reads += 1;
                self.read(now, address);
            }
            Incoming::Write(address) => self.write(now, address, payload),
            Incoming::Notification(_) | Incoming::Foreign => {}
        }
    }

    fn is_settled(&self) -> bool {
        self.mode == Mode::Bridge && self.first_scan.is_none()
    }

    fn wait(&mut self, now: Time, topic: &str, payload: &[u8]) {
        let waiting = &mut self.waiting;
        let bytes = waiting.bytes + topic.len() + payload.len();
        if waiting.messages.len() < limits::WAITING && bytes <= limits::WAITING_BYTES {
            waiting.bytes = bytes;
            waiting.messages.push_back((topic.into(), payload.into()));
        } else {
            self.notes.add_caused(now, Level::Warn, Kind::WriteIgnored, || {
                format!("too many requests before the start is complete: the one on {} is dropped", escape(topic))
            });
        }
    }

    pub(super) fn drain_waiting(&mut self, now: Time) {
        if self.is_settled() {
            self.await_published();
            let waiting = std::mem::take(&mut self.waiting);
            for (topic, payload) in &waiting.messages {
                self.request(now, self.topics.parse(topic), payload);
            }
        }
    }

    /// The probe is published: the answer to one more subscription shows that the broker has it, however long that takes, and also where the
    /// broker does not deliver it to its sender. No time alone shows that.
    pub(super) fn probe_published(&mut self) {
        if matches!(self.mode, Mode::Undecided { .. }) {
            self.link_commands.push_back(LinkCommand::Subscribe(vec![self.topics.notification(HEARTBEAT)]));
        }
    }

    /// The broker has the probe: another bridge shows itself soon.
    fn probe_delivered(&mut self, now: Time) {
        if let Mode::Undecided { until } = &mut self.mode {
            *until = Some(now + limits::DETECTION);
        }
    }

    /// Nobody else serves this portal ID.
    pub(super) fn check_detection(&mut self, now: Time) {
        if let Mode::Undecided { until: Some(until) } = self.mode
            && until <= now
        {
            self.mode = Mode::Bridge;
            self.say_mode("no other bridge on this broker: serving N, R and W");
            self.link_commands.push_back(LinkCommand::Unsubscribe(vec![self.topics.notification(HEARTBEAT)]));
            self.link_commands.push_back(LinkCommand::Subscribe(vec![self.topics.request('W', "#")]));
            self.become_bridge(now);
        }
    }

    /// Once, however often the connection is made.
    fn say_mode(&mut self, text: &str) {
        let level = if self.history.mode == Some(self.mode) { Level::Debug } else { Level::Info };
        self.history.mode = Some(self.mode);
        self.notes.add(level, || text.into());
    }

    fn become_bridge(&mut self, now: Time) {
        self.outbox.push_special(Special::Mode);
        if self.keepalives.any(now) {
            self.heartbeat = Some(now + limits::HEARTBEAT);
            self.outbox.push_special(Special::Heartbeat);
        }
        // first what is to be taken back, then what is there
        let everyone = self.services.ids();
        let (left, present): (Vec<_>, Vec<_>) =
            everyone.into_iter().partition(|id| self.services.get(*id).is_some_and(|service| matches!(service.state, State::Left { .. })));
        for id in left.into_iter().chain(present) {
            self.enqueue_all(now, id);
        }
        for echo in std::mem::take(&mut self.owed) {
            self.outbox.push_completion(echo);
        }
        self.republish(now);
        self.begin_sweep();
        self.drain_waiting(now);
    }

    fn become_companion(&mut self) {
        self.mode = Mode::Companion;
        self.waiting = Waiting::default();
        self.outbox.push_special(Special::Mode);
        self.outbox.push_special(Special::Status);
        let filters = [self.topics.request('R', "#"), self.topics.notification(HEARTBEAT)];
        self.link_commands.push_back(LinkCommand::Unsubscribe(filters.into()));
        self.say_mode("another bridge serves N, R and W on this broker (its heartbeat came): staying out of them");
        self.services.forget_left();
        for id in self.services.ids() {
            self.forget_published(id);
            self.drop_gone(id);
        }
    }

    /// The topics are another bridge's now.
    fn forget_published(&mut self, id: ServiceId) {
        if let Some(service) = self.services.get_mut(id) {
            service.items.values_mut().for_each(|item| (item.published, item.clear_first) = (false, false));
        }
    }

    fn notification(&mut self, now: Time, rest: &str, topic: &str, payload: &[u8], retained: bool) {
        if matches!(self.mode, Mode::Undecided { .. }) {
            if rest == HEARTBEAT && !retained && !payload.is_empty() {
                self.become_companion();
            }
            return;
        }
        self.replayed(now, rest, topic, payload, retained);
    }

    /// Whether the topic has a value now, or is about to get one. What is retained there is ours to take back then.
    pub(super) fn takes_over_retained(&mut self, now: Time, rest: &str) -> bool {
        let everything = self.keepalives.everything(now);
        let Some(item) = self.published_item(rest) else { return false };
        let stands = item.secrecy != Secrecy::Blocked && (everything || now < item.until);
        item.published |= stands;
        stands
    }

    /// The item that has this topic.
    pub(super) fn published_item(&mut self, rest: &str) -> Option<&mut Item> {
        let topic = self.topics.request('R', rest);
        let Incoming::Read(Address { service_type, instance, path }) = self.topics.parse(&topic) else { return None };
        let holder = self.services.by_topic(service_type, instance);
        holder.and_then(|id| self.services.get_mut(id))?.items.get_mut(path)
    }

    /// The end: takes back what is retained, and says so.
    pub fn shut_down(&mut self, now: Time) {
        self.keepalives.stop();
        self.sweep = None;
        self.link_commands.clear();
        self.waiting = Waiting::default();
        self.owed.clear();
        self.outbox.clear();
        self.stopping = true;
        for id in self.services.ids() {
            if let Some(service) = self.services.get_mut(id) {
                service.items.values_mut().for_each(|item| {
                    (item.queued, item.answering, item.until) = (false, false, Time::default());
                });
            }
        }
        if self.mode != Mode::Down {
            self.take_back(now);
        }
    }

    /// Also before it is known whether another bridge is there: what is published is from a connection on which this was the bridge.
    fn take_back(&mut self, now: Time) {
        if matches!(self.mode, Mode::Down | Mode::Undecided { .. }) {
            self.mode = Mode::Bridge;
        }
        self.services.ids().into_iter().for_each(|id| self.enqueue_all(now, id));
        self.outbox.push_special(Special::Mode);
        self.outbox.push_special(Special::Status);
    }

    /// How many values are retained that cannot be taken back without a connection.
    pub fn left_retained(&self) -> usize {
        if self.mode != Mode::Down || !self.options.retain {
            return 0;
        }
        let services = self.services.ids().into_iter().filter_map(|id| self.services.get(id));
        services.flat_map(|service| service.items.values()).filter(|item| item.published).count()
    }
}
