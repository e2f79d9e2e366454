//! What is known of a device and its services.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::id::Id;
use super::served::Served;
use super::service::Exported;
use super::status::Will;
use crate::bridge::Time;
use crate::bridge::name::device_service;

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
    /// It leaves then, if nothing is heard of it.
    pub provisional: Option<Time>,
    pub heard: Option<Time>,
    /// The same in seconds since 1970, as of the last life of the daemon.
    pub heard_unix: Option<u64>,
    pub stale: bool,
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
    /// Leaves the bus to come back with its values.
    pub restarts: bool,
    pub exported: Option<Exported>,
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
    /// What others have set meanwhile.
    pub seen: Option<crate::bridge::value::Value>,
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
            heard: None,
            heard_unix: None,
            stale: false,
            services: Vec::new(),
            owed: false,
            patience: None,
        }
    }

    /// When there is something to check next.
    pub fn due(&self, stale_after: Option<Duration>) -> impl Iterator<Item = Time> {
        let retries = self.services.iter().filter_map(|service| match service.state {
            State::Failed { retry } if self.online => Some(retry),
            _ => None,
        });
        let stale = match (stale_after, self.heard) {
            (Some(after), Some(heard)) if self.online && !self.stale => Some(heard + after),
            _ => None,
        };
        let is_asking = self.online && self.owed && self.is_settled();
        let served = self.services.iter().filter(move |_| is_asking).filter_map(|service| service.served.due());
        [self.provisional, self.patience, stale].into_iter().flatten().chain(retries).chain(served)
    }

    /// Everything it wants is on the bus, and nothing else of it is.
    pub fn is_settled(&self) -> bool {
        self.services.iter().all(|service| match service.wanted {
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
            restarts: false,
            exported: None,
            kept: BTreeMap::new(),
            written: BTreeSet::new(),
            grown: BTreeSet::new(),
        }
    }

    /// The type it has, or is to become.
    pub fn aim(&self) -> &str {
        self.next_kind.as_deref().unwrap_or(&self.kind)
    }

    pub fn bus_name(&self) -> String {
        device_service(&self.kind, &self.slug)
    }
}
