//! What has been asked of localsettings, what for, and until when it is waited for.

use std::collections::BTreeMap;

use super::model::Key;
use crate::bridge::name::BUS;
use crate::bridge::outgoing::Outgoing;
use crate::bridge::{BusCall, Method, Time, limits};

pub const NAME: &str = "com.victronenergy.settings";

/// Above the serial numbers of the bridge's own calls on the same connection.
const FIRST_ID: u32 = 0x8000_0000;

/// What a call was for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Owner,
    /// All settings of a service; the second time after those of a wrong type were removed.
    Add {
        key: Key,
        again: bool,
    },
    /// What a setting of a wrong type holds, before it is removed.
    Old(Key, Box<str>),
    /// The number of a service is to be of its class.
    Claim(Key),
    ReadInstance(Key),
    /// The settings of items that have come into being.
    Grown(Key),
    /// The setting of one item that had none.
    Create(Key, Box<str>),
    Keep(Key, Box<str>),
    /// Nobody waits for it.
    Clear,
    /// The settings of a device that is to be forgotten.
    Forget(Box<str>),
}

/// What is known of localsettings, and what it has been asked.
#[derive(Debug)]
pub(super) struct Dialogue {
    pub(super) owner: Option<Box<str>>,
    next: u32,
    out: Outgoing,
    waiting: BTreeMap<u32, (Purpose, Time)>,
}

impl Default for Dialogue {
    fn default() -> Self {
        Self { owner: None, next: FIRST_ID, out: Outgoing::default(), waiting: BTreeMap::new() }
    }
}

impl Dialogue {
    pub fn ask_owner(&mut self, now: Time) {
        self.call(now, BUS, "/org/freedesktop/DBus", Method::GetNameOwner(NAME.into()), Purpose::Owner);
    }

    pub fn ask(&mut self, now: Time, path: &str, method: Method, purpose: Purpose) {
        self.call(now, NAME, path, method, purpose);
    }

    fn call(&mut self, now: Time, destination: &str, path: &str, method: Method, purpose: Purpose) {
        let id = self.next;
        self.next = self.next.checked_add(1).unwrap_or(FIRST_ID);
        self.out.push(BusCall { id, destination: destination.into(), path: path.into(), method });
        self.waiting.insert(id, (purpose, now + limits::SETTINGS_DEADLINE));
    }

    pub fn poll(&mut self) -> Option<BusCall> {
        self.out.poll()
    }

    pub fn expects(&self, id: u32) -> bool {
        self.out.is_under_way(id) || self.waiting.contains_key(&id)
    }

    /// The call that is answered, if anybody still waits for it.
    pub fn answered(&mut self, id: u32) -> Option<Purpose> {
        self.out.answered(id);
        self.waiting.remove(&id).map(|(purpose, _)| purpose)
    }

    /// A call whose time is up. They all have the same time, so the first is the oldest.
    pub fn expired(&mut self, now: Time) -> Option<Purpose> {
        let (id, (purpose, _)) = self.waiting.first_entry().filter(|entry| entry.get().1 <= now)?.remove_entry();
        self.out.retain(|waiting| waiting != id);
        Some(purpose)
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.waiting.first_key_value().map(|(_, (_, deadline))| *deadline)
    }

    /// Whether all settings of a service are being asked for.
    pub fn asks_settings(&self, of: Key) -> bool {
        self.waiting.values().any(|(purpose, _)| matches!(purpose, Purpose::Add { key, .. } if *key == of))
    }

    /// Whether its number is.
    pub fn asks_number(&self, of: Key) -> bool {
        let asks = |purpose: &Purpose| matches!(purpose, Purpose::Claim(key) | Purpose::ReadInstance(key) if *key == of);
        self.asks_settings(of) || self.waiting.values().any(|(purpose, _)| asks(purpose))
    }

    pub fn is_there(&self) -> bool {
        self.owner.is_some()
    }

    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }
}
