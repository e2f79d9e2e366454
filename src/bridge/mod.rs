//! The bridge itself, without any input or output: what the bus and the broker say goes in, with the time; calls, messages and
//! log lines come out. It knows no clock, no runtime and no socket, so every promise can be tested with virtual time.
//!
//! After each event, ask `poll_call`, `poll_link`, `poll_note` until they are empty, `poll_publish` as long as the connection has
//! room, and `poll_timeout` for when to call `handle_timeout`.

mod access;
mod calls;
pub mod filter;
mod items;
mod keepalive;
pub mod limits;
pub mod name;
mod notes;
pub mod options;
mod outbox;
mod request;
mod scan;
mod session;
mod time;
mod topic;
pub mod value;

use std::collections::VecDeque;

use log::Level;

use access::Rules;
pub use calls::{BusCall, Method, Reply};
use calls::{Calls, Purpose};
pub use items::Change;
use items::{Secrecy, ServiceId, Services, State};
use keepalive::{KeepAlives, Republish, Republishes};
use name::PortalId;
pub use notes::Note;
use notes::{Kind, Notes};
use options::Options;
use outbox::{Entry, Express, Outbox, Special};
use request::Pending;
pub use session::{LinkCommand, Mode};
use session::{Sweep, Waiting};
pub use time::Time;
pub use topic::{Address, Incoming, Topics};
use value::{VALUE_MAX, Value};

/// A message for the broker, QoS 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
}

/// What a bridge is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub portal: PortalId,
    /// Empty, or ends with a slash.
    pub prefix: String,
    pub options: Options,
    /// Tells this process's own keep-alives from everyone else's.
    pub nonce: u64,
    /// What is more verbose is not formatted.
    pub verbosity: Level,
}

/// Numbers for the summary, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub changes: u64,
    pub published: u64,
    pub cleared: u64,
    pub keepalives: u64,
    pub republishes: u64,
    pub reads: u64,
    pub writes: u64,
    pub writes_ignored: u64,
}

#[derive(Debug)]
pub struct Bridge {
    topics: Topics,
    options: Options,
    rules: Rules,
    probe: String,
    mode: Mode,
    stopping: bool,
    services: Services,
    keepalives: KeepAlives,
    republishes: Republishes,
    /// Completions that a lost connection left behind.
    owed: Vec<Option<Box<str>>>,
    heartbeat: Option<Time>,
    outbox: Outbox,
    calls: Calls,
    pending: Pending,
    link_commands: VecDeque<LinkCommand>,
    sweep: Option<Sweep>,
    sweep_allowed: bool,
    waiting: Waiting,
    first_scan: Option<Time>,
    next_retry: Option<Time>,
    notes: Notes,
    counters: Counters,
}

impl Bridge {
    pub fn new(setup: Setup) -> Self {
        let Setup { portal, prefix, options, nonce, verbosity } = setup;
        let probe = format!(
            "{{\"keepalive-options\":[\"suppress-republish\",{{\"full-publish-completed-echo\":\"venus-mqtt {portal} {nonce:016x}\"}}]}}"
        );
        Self {
            topics: Topics::new(&prefix, portal),
            rules: Rules::new(&options),
            probe,
            mode: Mode::Down,
            stopping: false,
            services: Services::default(),
            keepalives: KeepAlives::new(options.keepalive_interval, &options.always_on),
            republishes: Republishes::default(),
            owed: Vec::new(),
            heartbeat: None,
            outbox: Outbox::default(),
            calls: Calls::default(),
            pending: Pending::default(),
            link_commands: VecDeque::new(),
            sweep: None,
            sweep_allowed: true,
            waiting: Waiting::default(),
            first_scan: None,
            next_retry: None,
            notes: Notes::new(verbosity),
            counters: Counters::default(),
            options,
        }
    }

    /// A signal of a service: hand in its changes one by one. `None` when nobody of ours has sent it.
    pub fn changes(&mut self, now: Time, sender: &str) -> Option<Changes<'_>> {
        let [first, rest @ ..] = self.services.by_owner(sender) else {
            return None;
        };
        let (first, rest) = (*first, rest.to_vec());
        Some(Changes { bridge: self, now, first, rest })
    }

    /// Whether a reply with this serial number is waited for.
    pub fn expects(&self, id: u32) -> bool {
        self.calls.expects(id)
    }

    /// The reply to a call.
    pub fn reply(&mut self, now: Time, id: u32, reply: Reply) {
        if let Some((service, purpose)) = self.calls.take(id) {
            self.take_reply(now, service, purpose, Some(reply));
        }
    }

    fn take_reply(&mut self, now: Time, service: Option<ServiceId>, purpose: Purpose, reply: Option<Reply>) {
        let late = || Reply::Unreadable("no answer in time".into());
        match (purpose, service) {
            (Purpose::Names, _) => self.take_names(now, reply.unwrap_or_else(late)),
            (Purpose::Owner(name), _) => self.take_owner(now, name, reply.unwrap_or_else(late)),
            (Purpose::Read(path), Some(id)) => self.take_read(now, id, path, reply),
            (Purpose::Write(path), Some(id)) => self.take_write(now, id, path, reply),
            (purpose, Some(id)) => self.take_scan(now, id, purpose, reply),
            (_, None) => {}
        }
        self.check_first_scan(now);
    }

    /// To be called when the time that [`Self::poll_timeout`] gave has come; early does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((service, purpose)) = self.calls.expired(now) {
            self.take_reply(now, service, purpose, None);
        }
        self.retry_scans(now);
        self.check_first_scan(now);
        self.check_detection(now);
        self.check_sweep(now);
        if self.keepalives.expire(now) {
            self.fall_asleep(now);
        }
        if self.heartbeat.is_some_and(|due| due <= now) {
            self.heartbeat = Some(now + limits::HEARTBEAT);
            if self.mode == Mode::Bridge {
                self.outbox.push_special(Special::Heartbeat);
            }
        }
        self.republish(now);
    }

    /// When [`Self::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let detection = match self.mode {
            Mode::Undecided { until } => Some(until),
            _ => None,
        };
        let times = [
            self.calls.next_deadline(),
            self.next_retry,
            self.first_scan,
            detection,
            self.sweep_deadline(),
            self.keepalives.next_expiry(),
            self.heartbeat,
            self.republishes.due().filter(|_| self.mode == Mode::Bridge),
        ];
        times.into_iter().flatten().min()
    }

    pub fn poll_call(&mut self) -> Option<BusCall> {
        self.calls.poll()
    }

    pub fn poll_link(&mut self) -> Option<LinkCommand> {
        self.link_commands.pop_front()
    }

    pub fn poll_note(&mut self) -> Option<Note> {
        self.notes.take()
    }

    /// The next message, if there is any; `unix` is the time of day for those that carry it.
    pub fn poll_publish(&mut self, now: Time, unix: u64) -> Option<Publish> {
        if self.mode == Mode::Down {
            return None;
        }
        loop {
            let publish = if let Some(entry) = self.outbox.pop_express() {
                match entry {
                    Express::Special(special) => self.print_special(special, unix),
                    Express::Answer(id, index) => self.print_answer(now, id, index),
                }
            } else {
                match self.outbox.pop()? {
                    Entry::Item(id, index) => self.print_item(now, id, index),
                    Entry::Stale => self.print_stale(now),
                    Entry::Completion => self.print_completion(unix),
                }
            };
            if let Some(publish) = publish {
                self.counters.published += 1;
                return Some(publish);
            }
        }
    }

    /// Nothing is left to be published.
    pub fn is_drained(&self) -> bool {
        self.mode == Mode::Down || self.outbox.is_empty()
    }

    /// A few lines for the log, on request.
    pub fn summary(&self, now: Time) -> Vec<String> {
        let Counters { changes, published, cleared, keepalives, republishes, reads, writes, writes_ignored } = self.counters;
        let awake = if self.keepalives.everything(now) {
            "everything is awake"
        } else if self.keepalives.any(now) {
            "some filters are awake"
        } else {
            "asleep"
        };
        let topics: usize = self.services.iter().map(|(_, service)| service.items.values().filter(|item| item.published).count()).sum();
        let mut lines = vec![
            format!(
                "mode: {}, {awake}; {} services, {} items, {topics} topics published",
                self.mode.name(),
                self.services.len(),
                self.services.items()
            ),
            format!("queued: {} messages, {} calls waiting for their answers", self.outbox.len(), self.calls.len()),
            format!(
                "since the start: {changes} changes, {published} messages published, {cleared} topics cleared, {keepalives} keep-alives, {republishes} republishes, {reads} reads, {writes} writes, {writes_ignored} writes ignored"
            ),
        ];
        let unwell = self.services.iter().filter_map(|(_, service)| match &service.state {
            State::Silent { again, attempts } => {
                Some(format!("{} did not answer ({attempts} times); asked again in {} s", service.name, again.after(now).as_secs()))
            }
            State::Scanning(_) => Some(format!("{} is being scanned", service.name)),
            State::Ready if !service.holder => Some(format!("{} has no topics: another service has its type and instance", service.name)),
            _ => None,
        });
        lines.extend(unwell.take(20));
        lines
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn keep_alive(&mut self, now: Time, payload: &[u8]) {
        self.counters.keepalives += 1;
        let request = keepalive::parse(payload);
        if let Some(odd) = &request.odd {
            self.notes.add_caused(now, Level::Debug, Kind::KeepAlive, || format!("an odd keep-alive: {}", crate::text::escape(odd)));
        }
        let was_awake = self.keepalives.any(now);
        let refused = self.keepalives.extend(now, &request.scope);
        if refused > 0 {
            self.notes.add_caused(now, Level::Warn, Kind::KeepAlive, || {
                format!("more than {} filters are awake: {refused} of a keep-alive are left out", limits::FILTERS)
            });
        }
        if let keepalive::Scope::Only(filters) = &request.scope {
            self.wake(|service_type, instance, path| filters.iter().any(|filter| filter.matches(service_type, instance, path)));
        }
        if !was_awake && self.keepalives.any(now) {
            self.notes.add(Level::Info, || "awake: a keep-alive came".into());
        }
        if self.heartbeat.is_none() && self.keepalives.any(now) {
            self.heartbeat = Some(now + limits::HEARTBEAT);
            self.outbox.push_special(Special::Heartbeat);
        }
        if !request.suppress {
            self.republishes.ask(request);
            self.republish(now);
        }
    }

    /// Brings the time of the items that `matching` takes up to date.
    fn wake(&mut self, matching: impl Fn(&str, &str, &str) -> bool) {
        for id in self.services.ids() {
            let Some(service) = self.services.get_mut(id) else { continue };
            let (service_type, instance) = (service.name.service_type(), &service.instance);
            for (path, item) in &mut service.items {
                if matching(service_type, instance, path) {
                    item.until = self.keepalives.until(service_type, instance, path);
                }
            }
        }
    }

    fn fall_asleep(&mut self, now: Time) {
        if !self.keepalives.any(now) {
            self.heartbeat = None;
            self.notes.add(Level::Info, || "asleep: the last keep-alive has run out".into());
        }
        let everything = self.keepalives.everything(now);
        for id in self.services.ids() {
            let Some(service) = self.services.get(id) else { continue };
            let asleep = service.items.values().enumerate().filter(|(_, item)| !everything && item.until <= now);
            let asleep: Vec<usize> = asleep.map(|(index, _)| index).collect();
            asleep.into_iter().for_each(|index| self.enqueue(now, id, index));
        }
    }

    /// Publishes everything that the keep-alives since the last time have asked for.
    fn republish(&mut self, now: Time) {
        if self.mode != Mode::Bridge {
            return;
        }
        let Some(Republish { everything, filters, completions, dropped }) = self.republishes.take(now) else {
            return;
        };
        self.counters.republishes += 1;
        if dropped > 0 {
            self.notes
                .add_caused(now, Level::Warn, Kind::KeepAlive, || format!("{dropped} keep-alives too many at once go without their echo"));
        }
        let wanted = |service_type: &str, instance: &str, path: &str| {
            everything || filters.iter().any(|filter| filter.matches(service_type, instance, path))
        };
        if wanted("system", "0", "/Serial") {
            self.outbox.push_special(Special::Serial);
        }
        for id in self.services.ids() {
            let Some(service) = self.services.get(id) else { continue };
            let matching = |path: &str| wanted(service.service_type(), &service.instance, path);
            let indices: Vec<usize> = service.items.keys().enumerate().filter(|(_, path)| matching(path)).map(|(index, _)| index).collect();
            indices.into_iter().for_each(|index| self.enqueue(now, id, index));
        }
        for echo in completions {
            self.outbox.push_completion(echo);
        }
    }

    /// The item at `path`, made and prepared when it is new; `None` when there is no room, or the path is none.
    fn item_at(&mut self, now: Time, id: ServiceId, path: &str) -> Option<(usize, bool)> {
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
    fn prepare(&mut self, id: ServiceId, index: usize) {
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
    fn take_instance(&mut self, now: Time, id: ServiceId) {
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
    fn take_instance_change(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get(id) else { return };
        let instance = service.find_instance();
        if !service.is_ready() || instance == service.instance {
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
    fn leave(&mut self, now: Time, id: ServiceId) {
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
    fn take_over(&mut self, now: Time, (service_type, instance): (String, Box<str>)) {
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

    /// Queues every item that has something to publish, or to take back.
    fn enqueue_all(&mut self, now: Time, id: ServiceId) {
        let count = self.services.get(id).map_or(0, |service| service.items.len());
        (0..count).for_each(|index| self.enqueue(now, id, index));
    }

    fn enqueue(&mut self, now: Time, id: ServiceId, index: usize) {
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
    fn print_item(&mut self, now: Time, id: ServiceId, index: usize) -> Option<Publish> {
        let everything = self.keepalives.everything(now);
        let service = self.services.get_mut(id)?;
        let (path, item) = service.items.get_index_mut(index)?;
        item.queued = false;
        let topic = || format!("{}{path}", service.topic);
        if service.holder && item.secrecy != Secrecy::Blocked && (everything || now < item.until) {
            item.published = true;
            let mut payload = Vec::with_capacity(48);
            item.write_payload(&mut payload);
            return Some(Publish { topic: topic(), payload, retain: self.options.retain });
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
    fn repair(&mut self, now: Time, service_type: &str, instance: &str, path: &str) {
        if let Some(heir) = self.services.by_topic(service_type, instance)
            && let Some((index, _, item)) = self.services.get(heir).and_then(|service| service.items.get_full(path))
            && item.published
        {
            self.enqueue(now, heir, index);
        }
    }

    /// The answer to a read: goes out asleep too, but is retained only if somebody keeps it awake.
    fn print_answer(&mut self, now: Time, id: ServiceId, index: usize) -> Option<Publish> {
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
        let mut payload = Vec::with_capacity(48);
        item.write_payload(&mut payload);
        Some(Publish { topic: format!("{}{path}", service.topic), payload, retain: awake && self.options.retain })
    }

    fn print_stale(&mut self, now: Time) -> Option<Publish> {
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

    fn print_completion(&mut self, unix: u64) -> Option<Publish> {
        let echo = self.outbox.pop_completion()?;
        let mut payload = format!("{{\"value\":{unix}").into_bytes();
        if let Some(echo) = echo {
            payload.extend_from_slice(b",\"full-publish-completed-echo\":");
            Value::Str(echo).write_json(&mut payload);
        }
        payload.push(b'}');
        Some(Publish { topic: self.topics.notification("full_publish_completed"), payload, retain: false })
    }

    fn print_special(&mut self, special: Special, unix: u64) -> Option<Publish> {
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

/// The changes of one signal.
#[derive(Debug)]
pub struct Changes<'a> {
    bridge: &'a mut Bridge,
    now: Time,
    first: ServiceId,
    /// Other names on the same connection.
    rest: Vec<ServiceId>,
}

impl Changes<'_> {
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
        }
    }
}

impl Bridge {
    fn change(&mut self, now: Time, id: ServiceId, path: &str, mut change: Change) {
        if change.value.as_ref().is_some_and(|value| value.weight() > VALUE_MAX) {
            self.notes.add_caused(now, Level::Warn, Kind::Item, || {
                format!("the value of {path} is over {} KiB: shown as null", VALUE_MAX / 1024)
            });
            change.value = Some(Value::Invalid);
        }
        self.counters.changes += 1;
        let everything = self.keepalives.everything(now);
        let active = self.mode == Mode::Bridge;
        let Some(service) = self.services.get_mut(id) else { return };
        if matches!(service.state, State::Silent { .. }) {
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
