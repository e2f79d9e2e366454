//! Devices that register themselves, without any input or output: what the broker, the bus and localsettings say goes in, with the
//! time; services to be opened and closed, their signals, calls to localsettings, answers and log lines come out.
//!
//! A device says which services it wants, and this room brings what is there to what is wanted, one step at a time: the
//! settings of a service first, then its connection with all its items, its name last. Nothing is waited for, and what fails is
//! told to the device and tried again. Values come as SetValue calls, whoever serves W on this broker, or by way of `proxy`.
//!
//! When services of others have come or gone, call `numbers_changed`. After each event, ask `poll_bus`, `poll_call`, `poll_link`, `poll_write`, `poll_note`, `poll_answer` and `poll_registry` until they
//! are empty, `poll_publish` as long as the connection has room, and `poll_timeout` for when to call `handle_timeout`.

pub mod catalogue;
mod dialogue;
mod format;
pub mod id;
mod model;
mod numbers;
pub mod options;
mod persisted;
mod proxy;
mod recall;
mod registration;
pub mod registry;
mod served;
pub mod service;
mod settings;
mod silence;
pub mod status;
mod steps;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use log::Level;

use crate::bridge::access::Rules;
use crate::bridge::name::{PortalId, SETTINGS};
use crate::bridge::notes::{Kind, Notes, Repeats};
use crate::bridge::options::Options as BridgeOptions;
use crate::bridge::topic::{Topics, check_topic};
use crate::bridge::value::Value;
use crate::bridge::{BusCall, LinkCommand, Mode, Note, Publish, Time, limits};
use catalogue::Catalogue;
use dialogue::Dialogue;
use model::{Device, State};
pub use model::{Key, Place};
use options::Options;
use served::OtherBridge;
use service::ItemAnswer;

/// What a room of devices is made of.
pub struct Setup {
    pub portal: PortalId,
    /// Empty, or ends with a slash.
    pub prefix: String,
    pub options: Options,
    /// Whose rules for writes hold for proxies too.
    pub bridge: BridgeOptions,
    pub catalogue: Catalogue,
    /// Devices that were registered when the daemon ended.
    pub registry: Vec<registry::Entry>,
    /// The time of day, in seconds since 1970: how old their values are.
    pub unix: u64,
    /// What is more verbose is not formatted.
    pub verbosity: Level,
}

/// What the bus is asked to do for a service.
#[derive(Clone, PartialEq, Debug)]
pub enum BusCommand {
    /// A connection of its own, and this name on it, never replacing anybody.
    Open { key: Key, name: String },
    /// One PropertiesChanged, or one ItemsChanged if they are several.
    Emit {
        key: Key,
        items: Vec<ItemAnswer>,
        /// Somebody else than the device has caused it: it has to know.
        told: bool,
    },
    /// Gives the name back, then closes the connection.
    Close { key: Key },
}

/// What happened to the connection of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BusEvent {
    /// It has its name.
    Up,
    /// The bridge knows its items: what is written now is not lost.
    Known,
    /// It could not be opened, and is closed.
    Refused(String),
    /// It is closed.
    Down,
}

/// A write of a proxy to a service of somebody else.
#[derive(Clone, PartialEq, Debug)]
pub struct ForeignWrite {
    pub client: Box<str>,
    pub service_type: Box<str>,
    pub instance: Box<str>,
    pub path: Box<str>,
    pub value: Value,
}

/// Marks an order of the person at the command line, until it is answered.
pub type Token = u64;

pub struct Devices {
    topics: Topics,
    options: Options,
    rules: Rules,
    catalogue: Catalogue,
    devices: Vec<Device>,
    next_key: Key,
    /// localsettings, and what is asked of it.
    settings: Dialogue,
    mode: Mode,
    linked: bool,
    /// Since when there is no broker, while there is none.
    unlinked: Option<Time>,
    /// The status `online` has been published: devices may be answered.
    is_online: bool,
    other: OtherBridge,
    /// When another bridge is kept awake next.
    keep_awake: Option<Time>,
    /// When there is something to check about a device, if that is known.
    due: Option<Option<Time>>,
    /// Some services may not be known to the bridge yet.
    unknown: bool,
    /// The numbers of some services are to be looked up on the bus.
    unchecked: bool,
    /// Some values could not be given to localsettings, although it is there.
    unkept: bool,
    /// The registry on disk is behind.
    unsaved: bool,
    /// It is made anew no earlier.
    save_after: Time,
    bus: VecDeque<BusCommand>,
    link: VecDeque<LinkCommand>,
    writes: VecDeque<ForeignWrite>,
    /// What the values of `writes` take.
    write_bytes: usize,
    publishes: VecDeque<Publish>,
    /// Bytes of the payloads of `publishes`.
    publish_bytes: usize,
    /// What the restart has left out, for the devices to be told once they can be.
    unanswered: Vec<(Vec<Box<str>>, String)>,
    answers: VecDeque<(Token, Result<String, String>)>,
    forgetting: BTreeMap<Box<str>, Token>,
    notes: Notes,
    /// How often localsettings has come to the bus.
    returns: Repeats,
    /// It comes back too often: what is written back and taken over then is only in the log at debug.
    returns_often: bool,
}

impl Devices {
    pub fn new(setup: Setup) -> Self {
        let Setup { portal, prefix, options, bridge, catalogue, registry, unix, verbosity } = setup;
        let mut devices = Self {
            topics: Topics::new(&prefix, portal),
            rules: Rules::new(&bridge),
            options,
            catalogue,
            devices: Vec::new(),
            next_key: 1,
            settings: Dialogue::default(),
            mode: Mode::Down,
            linked: false,
            unlinked: Some(Time::default()),
            is_online: false,
            other: OtherBridge::default(),
            keep_awake: None,
            due: None,
            unknown: false,
            unchecked: false,
            unkept: false,
            unsaved: false,
            save_after: Time::default(),
            bus: VecDeque::new(),
            link: VecDeque::new(),
            writes: VecDeque::new(),
            write_bytes: 0,
            publishes: VecDeque::new(),
            publish_bytes: 0,
            unanswered: Vec::new(),
            answers: VecDeque::new(),
            forgetting: BTreeMap::new(),
            notes: Notes::new(verbosity),
            returns: Repeats::default(),
            returns_often: false,
        };
        if devices.options.enabled {
            devices.recall(registry, unix);
        }
        devices
    }

    /// The bus can be asked.
    pub fn bus_up(&mut self, now: Time) {
        if self.options.enabled {
            self.settings.ask_owner(now);
        }
    }

    /// Connected, without a session.
    pub fn link_up(&mut self, now: Time) {
        self.linked = true;
        self.is_online = false;
        self.due = None;
        let unlinked = self.unlinked.take();
        if !self.options.enabled {
            return;
        }
        self.forget_served();
        self.expect_all(now, unlinked.map_or(Duration::ZERO, |unlinked| now.after(unlinked)));
        let mut filters = vec![self.topics.device("+", "Status"), self.topics.device("+", "Proxy")];
        filters.extend(self.wills());
        self.link.push_back(LinkCommand::Subscribe(filters));
        // a broker that comes back replays what wills have left retained: that counts now, not for devices that register later
        self.devices.iter_mut().for_each(|device| device.will_replayed = now + limits::WILL_REPLAY);
    }

    pub fn link_down(&mut self, now: Time) {
        self.linked = false;
        self.is_online = false;
        self.due = None;
        self.unlinked.get_or_insert(now);
        self.link.clear();
        self.forget_served();
    }

    /// Who serves N, R and W on this broker.
    pub fn set_mode(&mut self, now: Time, mode: Mode) {
        if self.mode != mode {
            self.mode = mode;
            self.check_keep_awake(now);
            self.serve_by_mode(now);
        }
    }

    /// A message from the broker; false when it is none for this room alone.
    pub fn message(&mut self, now: Time, topic: &str, payload: &[u8], retained: bool) -> bool {
        if !self.options.enabled {
            return false;
        }
        self.due = None;
        if self.is_beside() {
            self.take_notification(now, topic, payload, retained);
        }
        let Some(rest) = self.topics.behind_prefix(topic) else { return false };
        if self.take_write(now, topic, payload, retained) {
            return true;
        }
        if let Some((client, what)) = rest.strip_prefix("device/").and_then(|rest| rest.split_once('/')) {
            match what {
                "Status" => self.take_status(now, client, payload, retained),
                // a stale setpoint must not be carried out again at every connect
                "Proxy" if retained => self.notes.add(Level::Debug, || format!("a retained Proxy message of {client:?} is ignored")),
                "Proxy" => self.take_proxy(now, client, payload),
                _ => {}
            }
            return true;
        }
        self.take_will(now, rest, payload, retained)
    }

    /// The broker's answer to one filter of a subscription; false when it is none of this room's.
    pub fn subscribed(&mut self, now: Time, filter: &str, accepted: bool) -> bool {
        self.served_subscribed(now, filter, accepted);
        let ours = self.topics.behind_prefix(filter).is_some_and(|rest| rest.starts_with("device/"));
        if ours && !accepted {
            self.notes.add(Level::Warn, || {
                format!("the broker refuses the subscription to {filter}: allow it for this user in the broker's access list, or set `enabled = false` in [devices]")
            });
        }
        ours
    }

    /// To be called when the time that [`Self::poll_timeout`] gave has come; early does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.due = None;
        while let Some(purpose) = self.settings.expired(now) {
            self.take_settings_reply(now, purpose, None);
        }
        for index in 0..self.devices.len() {
            self.check_device(now, index);
        }
        self.check_keep_awake(now);
        self.drop_gone();
    }

    /// When [`Self::handle_timeout`] has something to do next.
    pub fn poll_timeout(&mut self) -> Option<Time> {
        if !self.options.enabled {
            return None;
        }
        let (options, linked) = (&self.options, self.linked);
        let devices = self.due.get_or_insert_with(|| self.devices.iter().flat_map(|device| device.due(options, linked)).min());
        let save = self.unsaved.then_some(self.save_after);
        [*devices, self.settings.next_deadline(), self.keep_awake, save].into_iter().flatten().min()
    }

    pub fn poll_bus(&mut self) -> Option<BusCommand> {
        self.bus.pop_front()
    }

    pub fn poll_call(&mut self, now: Time) -> Option<BusCall> {
        self.settings.poll(now)
    }

    pub fn poll_link(&mut self) -> Option<LinkCommand> {
        self.link.pop_front()
    }

    pub fn poll_write(&mut self) -> Option<ForeignWrite> {
        let write = self.writes.pop_front()?;
        self.write_bytes -= write.value.heap();
        Some(write)
    }

    pub fn poll_publish(&mut self) -> Option<Publish> {
        let publish = if self.linked { self.publishes.pop_front() } else { None }?;
        self.publish_bytes -= publish.payload.len();
        Some(publish)
    }

    /// Nothing is left to be published.
    pub fn is_drained(&self) -> bool {
        !self.linked || self.publishes.is_empty()
    }

    pub fn poll_note(&mut self) -> Option<Note> {
        self.notes.take()
    }

    /// What became of an order of the person at the command line.
    pub fn poll_answer(&mut self) -> Option<(Token, Result<String, String>)> {
        self.answers.pop_front()
    }

    /// Services that have their names, and are to be [`BusEvent::Known`] when the bridge knows them.
    pub fn unknown(&mut self) -> Vec<(Key, String)> {
        if !self.unknown {
            return Vec::new();
        }
        let services = self.devices.iter().flat_map(|device| &device.services);
        let unknown = services.filter(|service| service.state == State::Up && !service.known);
        let unknown: Vec<_> = unknown.map(|service| (service.key, service.bus_name())).collect();
        self.unknown = !unknown.is_empty();
        unknown
    }

    /// A few lines for the log, on request.
    pub fn summary(&self, now: Time) -> Vec<String> {
        let online = self.devices.iter().filter(|device| device.online);
        let services = || self.devices.iter().flat_map(|device| &device.services);
        let up = services().filter(|service| matches!(service.state, State::Up)).count();
        let waiting = services().filter(|service| matches!(service.state, State::Waiting | State::Asking)).count();
        let settings = if self.settings.is_there() { "there" } else { "not there" };
        vec![
            format!(
                "devices: {} registered, {} known; {up} services on the bus, {waiting} waiting for localsettings, which is {settings}",
                online.count(),
                self.devices.len()
            ),
            format!("calls to localsettings: {}", self.settings.under_way(now)),
        ]
    }

    /// Everything leaves the bus; the registry remembers who was there.
    pub fn shut_down(&mut self) {
        self.options.enabled = false;
        for index in 0..self.devices.len() {
            self.close_all(index);
        }
    }

    /// A message for a device; a newer one takes the place of one that waits.
    fn publish(&mut self, topic: String, payload: String) {
        if let Some(place) = self.publishes.iter().position(|waiting| waiting.topic == topic)
            && let Some(waiting) = self.publishes.remove(place)
        {
            self.publish_bytes -= waiting.payload.len();
        }
        if self.publishes.len() < limits::ANSWERS && self.publish_bytes + payload.len() <= limits::ANSWER_BYTES {
            self.publish_bytes += payload.len();
            self.publishes.push_back(Publish { topic, payload: payload.into_bytes(), retain: false });
        }
    }

    /// Tells a device what is wrong, on every topic it may listen to.
    fn complain(&mut self, clients: &[Box<str>], text: &str) {
        let mut payload = b"{\"error\":".to_vec();
        Value::Str(text.into()).write_json(&mut payload);
        payload.push(b'}');
        let payload = String::from_utf8_lossy(&payload).into_owned();
        for client in clients {
            let topic = self.topics.device(client, "Error");
            // it may not be one where anybody can be answered
            if check_topic(&topic).is_ok() {
                self.publish(topic, payload.clone());
            }
        }
    }

    /// While somebody else is the bridge, commands only come to devices while it is awake.
    fn check_keep_awake(&mut self, now: Time) {
        let wanted = self.options.keepalive && self.linked && self.is_beside() && self.devices.iter().any(|device| device.online);
        if !wanted {
            self.keep_awake = None;
        } else if self.keep_awake.is_none_or(|due| due <= now) {
            self.keep_awake = Some(now + limits::KEEP_AWAKE);
            let topic = self.topics.request('R', "keepalive");
            self.publish(topic, "{\"keepalive-options\":[\"suppress-republish\"]}".into());
        }
    }

    fn caused(&mut self, now: Time, level: Level, kind: Kind, text: impl FnOnce() -> String) {
        self.notes.add_caused(now, level, kind, text);
    }

    /// A value that is written back or taken over. `once`: it is said once each time localsettings comes back, so every one is in the log.
    fn note_setting(&mut self, now: Time, level: Level, once: bool, text: impl FnOnce() -> String) {
        match once {
            true => self.notes.add(if self.returns_often { Level::Debug } else { level }, text),
            false => self.caused(now, level, Kind::Settings, text),
        }
    }

    /// Whether a reply with this serial number is waited for.
    pub fn expects(&self, id: u32) -> bool {
        self.settings.expects(id)
    }

    /// The reply to a call.
    pub fn reply(&mut self, now: Time, id: u32, reply: crate::bridge::Reply) {
        if !self.options.enabled {
            return;
        }
        self.due = None;
        if let Some(purpose) = self.settings.answered(now, id) {
            self.take_settings_reply(now, purpose, Some(reply));
        }
    }

    /// A call could not be sent.
    pub fn unsent(&mut self, now: Time, id: u32, why: String) {
        self.due = None;
        if let Some(purpose) = self.settings.unsent(id) {
            self.take_settings_reply(now, purpose, Some(crate::bridge::Reply::Unreadable(why)));
        }
    }

    /// An owner of a bus name has changed.
    pub fn name_owner_changed(&mut self, now: Time, name: &str, new: &str) {
        self.due = None;
        if name == SETTINGS && self.options.enabled {
            self.take_settings_owner(now, new);
        }
    }

    /// The connection whose signals about settings count.
    pub fn settings_owner(&self) -> Option<&str> {
        self.settings.owner()
    }
}
