//! What has been asked of localsettings, what for, and until when it is waited for.

use std::collections::BTreeMap;

use super::model::Key;
use crate::bridge::name::{BUS, SETTINGS};
use crate::bridge::outgoing::{Outgoing, UnderWay};
use crate::bridge::{BusCall, Method, Time, limits};

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
    /// What a setting of another type holds, before it is replaced.
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
        Self { owner: None, next: FIRST_ID, out: Outgoing::new(limits::SETTINGS_PLACES), waiting: BTreeMap::new() }
    }
}

impl Dialogue {
    pub fn ask_owner(&mut self, now: Time) {
        self.call(now, BUS, "/org/freedesktop/DBus", Method::GetNameOwner(SETTINGS.into()), Purpose::Owner);
    }

    pub fn ask(&mut self, now: Time, path: &str, method: Method, purpose: Purpose) {
        self.call(now, SETTINGS, path, method, purpose);
    }

    fn call(&mut self, now: Time, destination: &str, path: &str, method: Method, purpose: Purpose) {
        let id = self.next;
        self.next = self.next.checked_add(1).unwrap_or(FIRST_ID);
        self.out.push(BusCall { id, destination: destination.into(), path: path.into(), method, answered: true });
        self.waiting.insert(id, (purpose, now + limits::SETTINGS_DEADLINE));
    }

    pub fn poll(&mut self, now: Time) -> Option<BusCall> {
        self.out.poll(now, |_| None)
    }

    /// Calls that hold places at the bus.
    pub fn under_way(&self, now: Time) -> UnderWay {
        self.out.under_way(now)
    }

    /// A call could not be sent. Who owns the name is asked again at the deadline.
    pub fn unsent(&mut self, id: u32) -> Option<Purpose> {
        self.out.unsent(id);
        if matches!(self.waiting.get(&id), Some((Purpose::Owner, _))) {
            return None;
        }
        self.waiting.remove(&id).map(|(purpose, _)| purpose)
    }

    pub fn expects(&self, id: u32) -> bool {
        self.out.is_under_way(id) || self.waiting.contains_key(&id)
    }

    /// The call that is answered, if anybody still waits for it.
    pub fn answered(&mut self, now: Time, id: u32) -> Option<Purpose> {
        self.out.answered(now, id);
        self.waiting.remove(&id).map(|(purpose, _)| purpose)
    }

    /// A call whose time is up. They all have the same time, so the first is the oldest.
    pub fn expired(&mut self, now: Time) -> Option<Purpose> {
        let (id, (purpose, _)) = self.waiting.first_entry().filter(|entry| entry.get().1 <= now)?.remove_entry();
        self.out.cancel(SETTINGS, id);
        Some(purpose)
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.waiting.first_key_value().map(|(_, (_, deadline))| *deadline).into_iter().chain(self.out.next_look()).min()
    }

    /// Whether all settings of a service are being asked for.
    pub fn asks_settings(&self, of: Key) -> bool {
        self.waiting.values().any(|(purpose, _)| matches!(purpose, Purpose::Add { key, .. } | Purpose::Old(key, _) if *key == of))
    }

    /// Whether what settings of another type hold is.
    pub fn asks_old(&self, of: Key) -> bool {
        self.waiting.values().any(|(purpose, _)| matches!(purpose, Purpose::Old(key, _) if *key == of))
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
