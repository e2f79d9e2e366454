//! What is known of a device and its services.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::id::Id;
use super::options::Options;
use super::served::Served;
use super::service::Exported;
use super::status::Will;
use crate::bridge::Time;
use crate::bridge::name::device_service;
use crate::bridge::value::Value;

/// One life of a service on the bus; never used twice.
pub type Key = u64;

/// Where a service stands: device, service.
pub type Place = (usize, usize);

#[derive(Debug)]
pub struct Device {
    pub id: Id,
    /// Where answers go: the ID of its topic, and its own if that is another.
    pub clients: Vec<Box<str>>,
    pub version: Box<str>,
    pub will: Option<Will>,
    /// What its will has left retained counts until then.
    pub will_replayed: Time,
    /// It wants to be on the bus.
    pub online: bool,
    /// It leaves then, if nothing is heard of it: the time during which there is no broker does not count.
    pub provisional: Option<Time>,
    /// Something was heard of it since it registered, and not only what the broker or the registry still had.
    pub confirmed: bool,
    pub heard: Option<Time>,
    /// The same in seconds since 1970, as of the last life of the daemon.
    pub heard_unix: Option<u64>,
    /// Its own `stale_after`; zero: never.
    pub timeout: Option<Duration>,
    /// In the order of its Status.
    pub services: Vec<Service>,
    /// Once all its services are there, it is told so.
    pub owed: bool,
    /// It is told then that localsettings is missing.
    pub patience: Option<Time>,
}

#[derive(Debug)]
pub struct Service {
    pub key: Key,
    pub id: Id,
    pub kind: Box<str>,
    /// What it is to become once it has left the bus.
    pub next_kind: Option<Box<str>>,
    /// It is in the device's last Status.
    pub wanted: bool,
    pub state: State,
    /// The bridge knows its items.
    pub known: bool,
    /// The bridge of somebody else does.
    pub served: Served,
    /// In a row.
    pub failures: u32,
    /// `mqtt_<client>_<service>`
    pub slug: Box<str>,
    pub instance: Option<i32>,
    /// Whether the instance is free on the bus is being found out.
    pub check: Option<NumberCheck>,
    /// A number that it could not have, and the service that has it: its device is told.
    pub taken: Option<(i32, Box<str>)>,
    /// The instance that the device was told last, and the one that it was told before.
    pub announced: [Option<i32>; 2],
    /// Leaves the bus to come back with its values.
    pub restarts: bool,
    pub exported: Option<Exported>,
    /// When a value came that the device has measured, or its Status.
    pub last_value: Option<Time>,
    /// When anything was written to it, its device's Status came, or it came to the bus.
    pub last_seen: Option<Time>,
    /// Since then its measured items have been invalidated.
    pub expired: bool,
    pub silence: Silence,
    /// Values received while it was off the bus for its silence, applied when it is back.
    pub pending: Vec<(Box<str>, Value)>,
    /// Values of before the restart of the daemon, until they are shown.
    pub restored: Vec<(Box<str>, Value)>,
    /// They are shown until then, unless the device is heard of.
    pub restored_until: Option<Time>,
    /// When the daemon stopped, and when the last of them had come, in seconds since 1970: unchanged at the next stop.
    pub restored_from: Option<(u64, u64)>,
    /// It has been on the bus since the daemon started.
    pub shown: bool,
    pub kept: BTreeMap<Box<str>, Kept>,
    /// Settings without a default, which are only there once they have been written.
    pub written: BTreeSet<Box<str>>,
    /// Families of items that have come into being, each by one of its paths.
    pub grown: BTreeSet<Box<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Off,
    /// For localsettings.
    Waiting,
    /// localsettings has been asked.
    Asking,
    /// The connection is being made.
    Opening,
    Up,
    /// The connection is being closed.
    Closing,
    /// Tried again then.
    Failed {
        retry: Time,
    },
}

/// How the instance of a service is being found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumberCheck {
    /// Services that are still being scanned are waited for until then.
    pub until: Time,
    /// Numbers that were claimed because the one before was taken.
    pub claims: u32,
    /// localsettings has answered: the bridge is to be asked.
    pub is_due: bool,
}

/// What the silence of a service has led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    /// Nothing: it is not silent.
    None,
    /// `/Connected` is 0.
    Disconnected,
    /// It is off the bus.
    Left,
    /// It has been heard of again, and is on its way back to the bus.
    Returning,
}

/// How the value of an item stands with the setting that keeps it.
#[derive(Debug, Default)]
pub struct Kept {
    /// The setting is there.
    pub exists: bool,
    /// A call about it is under way.
    pub busy: bool,
    /// The value has changed since that call was made.
    pub again: bool,
    /// The setting is not known to have the value yet: what it holds is older.
    pub newer: bool,
    /// Its type, if that is known: `i`, `f` or `s`.
    pub stored: Option<char>,
    /// localsettings was away since the value was last compared: a default that it holds may stand for a value that it has lost.
    pub returned: bool,
    /// What the setting held in another type, as the item's value; it is being added again with this.
    pub converted: Option<crate::bridge::value::Value>,
    /// The setting is removed before that.
    pub replaced: bool,
    /// The setting holds what the item cannot have: it is left alone.
    pub unusable: bool,
    /// What others have set meanwhile.
    pub seen: Option<Value>,
}

impl Device {
    pub fn new(id: Id) -> Self {
        Self {
            id,
            clients: Vec::new(),
            version: Box::default(),
            will: None,
            will_replayed: Time::default(),
            online: false,
            provisional: None,
            confirmed: false,
            heard: None,
            heard_unix: None,
            timeout: None,
            services: Vec::new(),
            owed: false,
            patience: None,
        }
    }

    /// When there is something to check next.
    pub fn due(&self, options: &Options, linked: bool) -> impl Iterator<Item = Time> {
        let services = self.services.iter().filter(|_| self.online).flat_map(|service| {
            let retry = if let State::Failed { retry } = service.state { Some(retry) } else { None };
            let silent = self.stale_after(service, options).and_then(|after| service.silent_at(after));
            [retry, silent, service.restored_until]
        });
        let checks = self.services.iter().filter(|service| service.state == State::Asking).filter_map(|service| service.check);
        let checks = checks.filter(|check| check.is_due).map(|check| check.until);
        let is_asking = self.online && self.owed && self.is_settled();
        let served = self.services.iter().filter(move |service| is_asking && service.is_up()).filter_map(|service| service.served.due());
        [self.provisional.filter(|_| linked), self.patience].into_iter().chain(services).flatten().chain(checks).chain(served)
    }

    /// Services it has while it is there.
    pub fn wanted(&self) -> usize {
        if self.online { self.services.iter().filter(|service| service.wanted).count() } else { 0 }
    }

    /// How long one of its services may be silent.
    pub fn stale_after(&self, service: &Service, options: &Options) -> Option<Duration> {
        match self.timeout {
            Some(own) => Some(own).filter(|own| !own.is_zero()),
            None => options.stale_after.of(&service.kind),
        }
    }

    /// Everything it wants is on the bus, and nothing else of it is; but for what has left for its silence.
    pub fn is_settled(&self) -> bool {
        self.services.iter().all(|service| match service.wanted {
            true if service.silence == Silence::Left => service.instance.is_some() && service.check.is_none(),
            true => service.state == State::Up && service.known && service.next_kind.is_none(),
            false => service.state == State::Off,
        })
    }

    pub fn is_off(&self) -> bool {
        self.services.iter().all(|service| matches!(service.state, State::Off | State::Waiting | State::Failed { .. }))
    }
}

impl Service {
    pub fn new(client: &Id, id: Id, kind: Box<str>) -> Self {
        Self {
            key: 0,
            slug: format!("mqtt_{}_{}", client.name(), id.name()).into(),
            id,
            kind,
            next_kind: None,
            wanted: true,
            state: State::Off,
            known: false,
            served: Served::default(),
            failures: 0,
            instance: None,
            check: None,
            taken: None,
            announced: [None; 2],
            restarts: false,
            exported: None,
            last_value: None,
            last_seen: None,
            expired: false,
            silence: Silence::None,
            pending: Vec::new(),
            restored: Vec::new(),
            restored_until: None,
            restored_from: None,
            shown: false,
            kept: BTreeMap::new(),
            written: BTreeSet::new(),
            grown: BTreeSet::new(),
        }
    }

    /// The type it has, or is to become.
    pub fn aim(&self) -> &str {
        self.next_kind.as_deref().unwrap_or(&self.kind)
    }

    /// Its device wants it, and it is on the bus.
    pub fn is_up(&self) -> bool {
        self.wanted && self.state == State::Up
    }

    /// It has a name on the bus, or is about to get it.
    pub fn is_shown(&self) -> bool {
        matches!(self.state, State::Opening | State::Up) && !self.restarts
    }

    /// It is on the bus, or has not been since the daemon started: devices cannot bring that about as often as they like.
    pub fn is_new_or_shown(&self) -> bool {
        self.is_shown() || !self.shown
    }

    /// Whether it uses this type and instance on the bus.
    pub fn uses_number(&self, kind: &str, instance: i32) -> bool {
        self.is_shown() && *self.kind == *kind && self.instance == Some(instance)
    }

    /// The device has been told the instance.
    pub fn announce(&mut self) {
        if self.instance != self.announced[0] {
            self.announced = [self.instance, self.announced[0]];
        }
    }

    /// When its silence has consequences next.
    pub fn silent_at(&self, stale_after: Duration) -> Option<Time> {
        let value = self.last_value.filter(|_| !self.expired && self.wanted);
        let seen = self.last_seen.filter(|_| self.silence == Silence::None && self.state == State::Up);
        value.into_iter().chain(seen).map(|last| last + stale_after).min()
    }

    /// Whether its topics are those of this type and instance.
    pub fn is_at(&self, kind: &str, instance: &str) -> bool {
        *self.kind == *kind && self.instance.is_some_and(|number| number.to_string() == instance)
    }

    /// It is off the bus for its silence, and nobody has asked localsettings for its settings since.
    pub fn has_left(&self) -> bool {
        self.wanted && self.silence == Silence::Left
    }

    /// It is off the bus for its silence, or on its way back.
    pub fn is_away(&self) -> bool {
        self.wanted && matches!(self.silence, Silence::Left | Silence::Returning)
    }

    /// While it is off the bus, another service has got its type and instance.
    pub fn has_lost_number(&self) -> bool {
        let is_another = self.taken.as_ref().is_some_and(|(number, _)| Some(*number) == self.instance);
        is_another || (self.silence == Silence::Left && self.check.is_some())
    }

    /// Whether what is written to this type and instance is for it while it is off the bus.
    pub fn is_away_at(&self, kind: &str, instance: &str) -> bool {
        self.is_away() && self.is_at(kind, instance) && !self.has_lost_number()
    }

    /// Drops what is known of when it was heard of, and values that are not applied yet.
    pub fn reset_liveness(&mut self) {
        (self.last_value, self.last_seen, self.expired) = (None, None, false);
        self.silence = Silence::None;
        self.pending.clear();
        self.restored.clear();
        (self.restored_until, self.restored_from) = (None, None);
    }

    /// Values of before the restart wait to be shown: nothing newer is known.
    pub fn restores(&self) -> bool {
        self.restored_from.is_some() && !self.shown
    }

    pub fn bus_name(&self) -> String {
        device_service(&self.kind, &self.slug)
    }
}
