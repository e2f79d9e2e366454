//! The connection to the broker as the core sees it: what is subscribed to, who serves this portal ID, what a former life
//! left retained, and how it all ends.

use std::collections::VecDeque;

use log::Level;

use super::Bridge;
use super::items::{Secrecy, ServiceId, State};
use super::limits;
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
    /// Another bridge would show itself by then.
    Undecided { until: Time },
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

/// The search for retained values that nobody stands for any more. A pass subscribes to every notification; the broker
/// replays what is retained, and then the marker comes back that was published after the subscription.
#[derive(Debug)]
pub struct Sweep {
    pass: u32,
    found: usize,
    /// The pass ends then, should the marker get lost.
    quiet: Time,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Subscribing,
    Listening,
    /// What was found is being cleared; then comes the next pass.
    Clearing,
}

/// Requests that came before it was known whom to ask.
#[derive(Debug, Default)]
pub struct Waiting {
    messages: VecDeque<(String, Vec<u8>)>,
    bytes: usize,
}

const SERIAL: &str = "system/0/Serial";
const KEEPALIVE: &str = "keepalive";
const HEARTBEAT: &str = "heartbeat";

impl Bridge {
    /// Connected, without a session.
    pub fn link_up(&mut self, now: Time) {
        self.outbox.clear();
        self.mode = match self.options.enabled {
            Enabled::Yes => Mode::Bridge,
            Enabled::Auto => Mode::Undecided { until: now + limits::DETECTION },
            Enabled::No => Mode::Off,
        };
        let requests = vec![self.topics.request('R', "#"), self.topics.request('W', "#")];
        match self.mode {
            Mode::Bridge => {
                self.link_commands.push_back(LinkCommand::Subscribe(requests));
                self.become_bridge(now);
            }
            Mode::Undecided { .. } => {
                // the heartbeat first: the answer to the probe must not be missed
                self.link_commands.push_back(LinkCommand::Subscribe(vec![self.topics.notification(HEARTBEAT)]));
                self.link_commands.push_back(LinkCommand::Subscribe(requests));
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
        self.sweep = None;
        self.link_commands.clear();
        self.waiting = Waiting::default();
        // whoever waits for an echo gets it after the next resync
        self.owed.extend(self.outbox.clear());
        for id in self.services.ids() {
            if let Some(service) = self.services.get_mut(id) {
                service.items.values_mut().for_each(|item| (item.queued, item.answering) = (false, false));
            }
        }
    }

    /// The broker's answer to one filter of a subscription.
    pub fn subscribed(&mut self, now: Time, filter: &str, accepted: bool) {
        if !accepted {
            self.notes.add(Level::Warn, || {
                format!("the broker refuses the subscription to {}: allow it for this user in the broker's access list", escape(filter))
            });
        }
        if filter == self.topics.request('R', "#") {
            // from now on requests are heard
            self.outbox.push_special(Special::Status);
            if matches!(self.mode, Mode::Undecided { .. }) {
                self.outbox.push_special(Special::Probe);
            }
        }
        if filter == self.topics.notification("#") {
            match &mut self.sweep {
                Some(sweep) if accepted => {
                    sweep.step = Step::Listening;
                    sweep.quiet = now + limits::SWEEP_QUIET;
                }
                _ => self.sweep = None,
            }
            // comes back to us behind all that is retained
            self.push_constants();
        }
    }

    /// What is there for good, so that a system can be found.
    fn push_constants(&mut self) {
        self.outbox.push_special(Special::Serial);
        self.outbox.push_special(Special::KeepAlive);
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
            Incoming::Foreign => self.notes.add(Level::Debug, || format!("a message on {} is none of ours", escape(topic))),
            _ if !matches!(self.mode, Mode::Bridge | Mode::Undecided { .. }) => {}
            _ if !self.is_settled() => self.wait(topic, payload),
            request => self.request(now, request, payload),
        }
    }

    fn request(&mut self, now: Time, request: Incoming<'_>, payload: &[u8]) {
        // our own question to another bridge
        if payload == self.probe.as_bytes() {
            return;
        }
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

    fn wait(&mut self, topic: &str, payload: &[u8]) {
        let waiting = &mut self.waiting;
        let bytes = waiting.bytes + topic.len() + payload.len();
        if waiting.messages.len() < limits::WAITING && bytes <= limits::WAITING_BYTES {
            waiting.bytes = bytes;
            waiting.messages.push_back((topic.into(), payload.into()));
        } else {
            self.notes
                .add(Level::Warn, || format!("too many requests before the start is complete: the one on {} is dropped", escape(topic)));
        }
    }

    pub(super) fn drain_waiting(&mut self, now: Time) {
        if self.is_settled() {
            let waiting = std::mem::take(&mut self.waiting);
            for (topic, payload) in &waiting.messages {
                self.request(now, self.topics.parse(topic), payload);
            }
        }
    }

    /// Nobody else serves this portal ID.
    pub(super) fn check_detection(&mut self, now: Time) {
        if let Mode::Undecided { until } = self.mode
            && until <= now
        {
            self.mode = Mode::Bridge;
            self.notes.add(Level::Info, || "no other bridge on this broker: serving N, R and W".into());
            self.link_commands.push_back(LinkCommand::Unsubscribe(vec![self.topics.notification(HEARTBEAT)]));
            self.become_bridge(now);
        }
    }

    fn become_bridge(&mut self, now: Time) {
        self.outbox.push_special(Special::Mode);
        self.begin_pass(1);
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
        self.drain_waiting(now);
    }

    fn become_companion(&mut self) {
        self.mode = Mode::Companion;
        self.waiting = Waiting::default();
        self.outbox.push_special(Special::Mode);
        let filters = [self.topics.request('R', "#"), self.topics.request('W', "#"), self.topics.notification(HEARTBEAT)];
        self.link_commands.push_back(LinkCommand::Unsubscribe(filters.into()));
        self.notes.add(Level::Info, || "another bridge serves N, R and W on this broker (its heartbeat came): staying out of them".into());
        for id in self.services.ids() {
            self.forget_published(id);
        }
    }

    /// The topics are another bridge's now.
    fn forget_published(&mut self, id: ServiceId) {
        if let Some(service) = self.services.get_mut(id) {
            service.items.values_mut().for_each(|item| item.published = false);
            if let State::Left { topics } = &mut service.state {
                *topics = 0;
            }
        }
        self.services.free_if_done(id);
    }

    fn notification(&mut self, now: Time, rest: &str, topic: &str, payload: &[u8], retained: bool) {
        if matches!(self.mode, Mode::Undecided { .. }) {
            if rest == HEARTBEAT && !retained && !payload.is_empty() {
                self.become_companion();
            }
            return;
        }
        if !matches!(&self.sweep, Some(sweep) if sweep.step == Step::Listening) {
            return;
        }
        if !retained {
            if rest == KEEPALIVE {
                self.end_pass();
            }
            return;
        }
        let stale = !payload.is_empty() && !matches!(rest, SERIAL | KEEPALIVE) && !self.takes_over_retained(now, rest);
        if let Some(sweep) = &mut self.sweep {
            sweep.quiet = now + limits::SWEEP_QUIET;
            if stale {
                sweep.found += 1;
                // the rest is found by the next pass
                if self.outbox.stale() < limits::STALE {
                    self.outbox.push_stale(topic.into());
                }
            }
        }
    }

    /// Whether the topic has a value now, or is about to get one. What is retained there is ours to take back then.
    pub(super) fn takes_over_retained(&mut self, now: Time, rest: &str) -> bool {
        let topic = self.topics.request('R', rest);
        let Incoming::Read(Address { service_type, instance, path }) = self.topics.parse(&topic) else { return false };
        let everything = self.keepalives.everything(now);
        let holder = self.services.by_topic(service_type, instance);
        let Some(service) = holder.and_then(|id| self.services.get_mut(id)) else { return false };
        let Some(item) = service.items.get_mut(path) else { return false };
        let stands = item.secrecy != Secrecy::Blocked && (everything || now < item.until);
        item.published |= stands;
        stands
    }

    fn end_pass(&mut self) {
        let Some(sweep) = &mut self.sweep else { return };
        let (pass, found) = (sweep.pass, sweep.found);
        self.link_commands.push_back(LinkCommand::Unsubscribe(vec![self.topics.notification("#")]));
        if found > 0 {
            self.notes.add(Level::Info, || format!("{found} retained values that nobody stands for are cleared"));
        }
        if found > 0 && pass < limits::SWEEP_PASSES {
            sweep.step = Step::Clearing;
            self.next_pass();
        } else {
            self.sweep = None;
        }
    }

    /// Once everything found has been cleared, looks again.
    pub(super) fn next_pass(&mut self) {
        if let Some(sweep) = &mut self.sweep
            && sweep.step == Step::Clearing
            && self.outbox.stale() == 0
        {
            let pass = sweep.pass + 1;
            self.begin_pass(pass);
        }
    }

    fn begin_pass(&mut self, pass: u32) {
        self.sweep = Some(Sweep { pass, found: 0, quiet: Time::MAX, step: Step::Subscribing });
        self.link_commands.push_back(LinkCommand::Subscribe(vec![self.topics.notification("#")]));
    }

    pub(super) fn check_sweep(&mut self, now: Time) {
        if self.sweep.as_ref().is_some_and(|sweep| sweep.step == Step::Listening && sweep.quiet <= now) {
            self.end_pass();
        }
    }

    pub(super) fn sweep_deadline(&self) -> Option<Time> {
        self.sweep.as_ref().filter(|sweep| sweep.step == Step::Listening).map(|sweep| sweep.quiet)
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
            if self.mode == Mode::Bridge {
                self.enqueue_all(now, id);
            }
        }
        if self.mode != Mode::Down {
            self.outbox.push_special(Special::Mode);
            self.outbox.push_special(Special::Status);
        }
    }
}
