//! The bridge itself, without any input or output: what the bus and the broker say goes in, with the time; calls, messages and
//! log lines come out. It knows no clock, no runtime and no socket, so every promise can be tested with virtual time.
//!
//! After each event, ask `poll_call`, `poll_link`, `poll_note` until they are empty, `poll_publish` as long as the connection has
//! room, and `poll_timeout` for when to call `handle_timeout`.

pub(crate) mod access;
mod calls;
pub mod filter;
mod item;
mod items;
mod json;
mod keepalive;
mod lenient;
pub mod limits;
pub mod name;
pub(crate) mod notes;
pub mod options;
mod outbox;
pub(crate) mod outgoing;
mod presence;
mod publish;
mod request;
mod scan;
mod session;
mod sweep;
pub(crate) mod time;
pub mod topic;
pub mod value;
mod view;

use std::collections::VecDeque;

use log::Level;

pub use access::MASK;
use access::Rules;
pub use calls::Reply;
use calls::{Calls, Expired, Purpose};
pub use items::Change;
use items::{Service, ServiceId, Services, State};
use keepalive::{KeepAlives, Republish, Republishes};
use name::PortalId;
pub use notes::Note;
use notes::{Kind, Notes};
use options::Options;
use outbox::{Entry, Express, Outbox, Special};
pub use outgoing::{BusCall, Method, Setting};
pub use presence::Changes;
use request::Pending;
use session::{History, Waiting};
pub use session::{LinkCommand, Mode};
use sweep::{Pace, Sweep};
pub use time::Time;
use topic::Topics;
pub use view::{Conflict, Occupant, ServiceView};

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
    /// Others of this process subscribe too: while the bridge is off, it is online when they are heard.
    pub beside: bool,
    /// Tells this process's own keep-alives from everyone else's.
    pub nonce: u64,
    /// What is more verbose is not formatted.
    pub verbosity: Level,
}

/// Numbers for the summary, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counters {
    changes: u64,
    published: u64,
    cleared: u64,
    keepalives: u64,
    republishes: u64,
    reads: u64,
    writes: u64,
    writes_ignored: u64,
}

#[derive(Debug)]
pub struct Bridge {
    topics: Topics,
    options: Options,
    beside: bool,
    rules: Rules,
    probe: String,
    mode: Mode,
    /// The status `online` has been published on this connection.
    is_online: bool,
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
    /// More topics were left behind than are remembered: once everything else is published, a sweep looks for them.
    unswept: bool,
    pace: Pace,
    history: History,
    waiting: Waiting,
    first_scan: Option<Time>,
    next_retry: Option<Time>,
    /// To be told to the devices whose services are among them.
    conflicts: VecDeque<Conflict>,
    /// Services have got topics or given them up.
    numbers_changed: bool,
    notes: Notes,
    counters: Counters,
    /// Payloads are printed here first, so that each is allocated once and at its exact size.
    scratch: Vec<u8>,
}

impl Bridge {
    pub fn new(setup: Setup) -> Self {
        let Setup { portal, prefix, options, beside, nonce, verbosity } = setup;
        let probe = format!(
            "{{\"keepalive-options\":[\"suppress-republish\",{{\"full-publish-completed-echo\":\"venus-mqtt {portal} {nonce:016x}\"}}]}}"
        );
        Self {
            topics: Topics::new(&prefix, portal),
            beside,
            rules: Rules::new(&options),
            probe,
            mode: Mode::Down,
            is_online: false,
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
            unswept: false,
            pace: Pace::default(),
            history: History::default(),
            waiting: Waiting::default(),
            first_scan: None,
            next_retry: None,
            conflicts: VecDeque::new(),
            numbers_changed: false,
            notes: Notes::new(verbosity),
            counters: Counters::default(),
            scratch: Vec::new(),
            options,
        }
    }

    /// A signal of a service: hand in its changes one by one. `None` when nobody of ours has sent it.
    pub fn changes(&mut self, now: Time, sender: &str) -> Option<Changes<'_>> {
        let [first, rest @ ..] = self.services.by_owner(sender) else {
            return None;
        };
        let (first, rest) = (*first, rest.to_vec());
        Some(Changes::new(self, now, first, rest))
    }

    /// Whether this service has been scanned, so that its topics can be read and written.
    pub fn knows(&self, name: &str) -> bool {
        self.services.by_name(name).and_then(|id| self.services.get(id)).is_some_and(Service::is_ready)
    }

    /// This service is one of a registered device.
    pub fn mark_own(&mut self, name: &str) {
        if let Some(service) = self.services.by_name(name).and_then(|id| self.services.get_mut(id)) {
            service.own = true;
        }
    }

    /// Whether the status `online` has been published on this connection: reads and writes are received, if this is the bridge.
    pub fn is_online(&self) -> bool {
        self.is_online
    }

    /// Whether a reply with this serial number is waited for.
    pub fn expects(&self, id: u32) -> bool {
        self.calls.expects(id)
    }

    /// The reply to a call.
    pub fn reply(&mut self, now: Time, id: u32, reply: Reply) {
        let answered = self.calls.answered(now, id);
        // a service that hung goes on: what it was not asked meanwhile is asked now
        let late = answered.late.filter(|_| !reply.is_from_nobody());
        if let Some((service, purpose)) = answered.call {
            self.take_reply(now, service, purpose, Some(reply));
        }
        if let Some(owner) = late {
            self.scan_silent(now, &owner);
        }
    }

    /// A call that [`Self::poll_call`] gave could not be sent.
    pub fn unsent(&mut self, now: Time, id: u32, why: String) {
        if let Some((service, purpose)) = self.calls.unsent(id) {
            self.take_reply(now, service, purpose, Some(Reply::Unreadable(why)));
        }
    }

    /// An answer of this connection was larger than is read.
    pub fn answer_cut(&mut self, now: Time, sender: &str, left_out: usize) {
        self.notes.add_caused(now, Level::Warn, Kind::Item, || {
            let (sender, most) = (crate::text::escape(sender), limits::REPLY_BYTES / (1024 * 1024));
            format!("an answer of {sender} has over {most} MiB of values: the last {left_out} are left out")
        });
    }

    fn take_reply(&mut self, now: Time, service: Option<ServiceId>, purpose: Purpose, reply: Option<Reply>) {
        let late = || Reply::Unreadable("no answer in time".into());
        match (purpose, service) {
            (Purpose::Names, _) => self.take_names(now, reply.unwrap_or_else(late)),
            (Purpose::Owner(name), _) => self.take_owner(now, name, reply.unwrap_or_else(late)),
            (Purpose::Read(path, dictionary), Some(id)) => self.take_read(now, id, path, dictionary, reply),
            (Purpose::ReadNode(path), Some(id)) => self.take_read_node(now, id, &path, reply),
            (Purpose::Write(path), Some(id)) => self.take_write(now, id, path, reply),
            (purpose, Some(id)) => self.take_scan(now, id, purpose, reply),
            (_, None) => {}
        }
        self.check_first_scan(now);
    }

    /// To be called when the time that [`Self::poll_timeout`] gave has come; early does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(Expired { service, purpose, reply }) = self.calls.expired(now) {
            self.take_reply(now, service, purpose, reply);
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
            Mode::Undecided { until } => until,
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

    /// The next call that may be sent now. What cannot be sent has to be handed back to [`Self::unsent`].
    pub fn poll_call(&mut self, now: Time) -> Option<BusCall> {
        let services = &self.services;
        self.calls.poll(now, |owner| {
            let heard = services.by_owner(owner).iter().filter_map(|id| services.get(*id)).map(|service| service.heard).max();
            heard.filter(|heard| *heard != Time::default())
        })
    }

    pub fn poll_link(&mut self) -> Option<LinkCommand> {
        if self.unswept && self.outbox.is_empty() {
            self.sweep_again();
        }
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
                    Entry::Sweep => {
                        self.sweep_published();
                        None
                    }
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
                "mode: {}, {awake}; {} services, {} items of {} KiB, {topics} topics published",
                self.mode.name(),
                self.services.len(),
                self.services.items(),
                self.services.bytes() / 1024
            ),
            format!(
                "queued: {} messages, {} calls waiting for their answers; calls to services: {}",
                self.outbox.len(),
                self.calls.len(),
                self.calls.under_way(now)
            ),
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

    fn keep_alive(&mut self, now: Time, payload: &[u8]) {
        self.counters.keepalives += 1;
        let request = keepalive::parse(payload);
        if let Some(odd) = &request.odd {
            self.notes.add_caused(now, Level::Debug, Kind::KeepAlive, || format!("an odd keep-alive: {}", crate::text::escape(odd)));
        }
        let was_awake = self.keepalives.any(now);
        if !self.keepalives.extend(now, &request.scope) {
            self.notes.add_caused(now, Level::Warn, Kind::KeepAlive, || {
                format!("more than {} filters of keep-alives: this keep-alive counts as one for everything", limits::FILTERS)
            });
        }
        if !was_awake && self.keepalives.any(now) {
            self.notes.add_caused(now, Level::Info, Kind::Awake, || "awake: a keep-alive came".into());
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

    fn fall_asleep(&mut self, now: Time) {
        if !self.keepalives.any(now) {
            self.heartbeat = None;
            // nothing that is awake fills the broker's queue any more
            self.unswept |= std::mem::take(&mut self.history.may_stay);
            self.notes.add_caused(now, Level::Info, Kind::Awake, || "asleep: the last keep-alive has run out".into());
        }
        if self.keepalives.everything(now) || self.mode != Mode::Bridge {
            return;
        }
        for id in self.services.ids() {
            let Some(Service { name, instance, items, .. }) = self.services.get_mut(id) else { continue };
            let filters = self.keepalives.has_filters().then(|| self.keepalives.of_service(name.service_type(), instance));
            for (index, (path, item)) in items.iter_mut().enumerate() {
                if now < item.until || !item.published || item.queued {
                    continue;
                }
                // a keep-alive whose republish is still to come has extended it
                item.until = filters.as_ref().and_then(|filters| filters.until(path)).unwrap_or_default();
                if item.until <= now {
                    item.queued = true;
                    self.outbox.push(id, index);
                }
            }
        }
    }

    /// Publishes everything that the keep-alives since the last time have asked for.
    fn republish(&mut self, now: Time) {
        if self.mode != Mode::Bridge {
            return;
        }
        let Some(Republish { everything, filters, completions, mut dropped }) = self.republishes.take(now) else {
            return;
        };
        self.counters.republishes += 1;
        if everything || filters.of_service("system", "0").until("/Serial").is_some() {
            self.outbox.push_special(Special::Serial);
        }
        let all_awake = self.keepalives.everything(now);
        for id in self.services.ids() {
            let Some(Service { name, instance, holder, items, .. }) = self.services.get_mut(id) else { continue };
            let wanted = filters.of_service(name.service_type(), instance);
            let awake = self.keepalives.of_service(name.service_type(), instance);
            for (index, (path, item)) in items.iter_mut().enumerate() {
                let is_wanted = !filters.is_empty() && wanted.until(path).is_some();
                if is_wanted {
                    item.until = awake.until(path).unwrap_or_default();
                }
                if (everything || is_wanted) && item.wants_turn(*holder && (all_awake || now < item.until)) {
                    self.outbox.push(id, index);
                }
            }
        }
        for echo in completions {
            dropped += usize::from(!self.outbox.push_completion(echo));
        }
        if dropped > 0 {
            self.notes
                .add_caused(now, Level::Warn, Kind::KeepAlive, || format!("{dropped} keep-alives too many at once go without their echo"));
        }
    }
}
