//! What the person who runs the devices may choose, checked.

use std::collections::BTreeMap;
use std::time::Duration;

use super::catalogue::Catalogue;
use crate::text::escape;

/// The `[devices]` part of the configuration, but for its files.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Whether devices may register themselves at all.
    pub enabled: bool,
    /// Refuses a Status whose `clientId` is not that of its topic.
    pub strict_client_id: bool,
    pub proxy: Proxy,
    pub stale_after: StaleAfter,
    pub stale: Stale,
    /// How long the values of before a restart of the daemon are shown; `None`: not at all.
    pub restore_values: Option<Duration>,
    /// Whether `device/<client ID>/DeviceInstance` of the first protocol is published too.
    pub device_instance_topic: bool,
    /// Keeps another bridge awake while devices are registered.
    pub keepalive: bool,
    /// Devices at once.
    pub max_devices: usize,
    /// Services of one device.
    pub max_services: usize,
    /// Services of all devices together.
    pub max_services_total: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: true,
            strict_client_id: false,
            proxy: Proxy::Any,
            stale_after: StaleAfter::default(),
            stale: Stale::Disconnect,
            restore_values: None,
            device_instance_topic: true,
            keepalive: false,
            max_devices: 64,
            max_services: 16,
            max_services_total: 160,
        }
    }
}

/// How long a service may go without a value; `None`: for ever.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StaleAfter {
    pub default: Option<Duration>,
    /// Where a type of services differs.
    pub types: BTreeMap<Box<str>, Option<Duration>>,
}

impl StaleAfter {
    pub fn of(&self, kind: &str) -> Option<Duration> {
        self.types.get(kind).copied().unwrap_or(self.default)
    }

    /// A line for each type that `catalogue` does not have: it is probably misspelt.
    pub fn unknown_types(&self, catalogue: &Catalogue) -> Vec<String> {
        let known = catalogue.types();
        let unknown = self.types.keys().filter(|kind| !known.contains(&&***kind));
        unknown
            .map(|kind| format!("`stale_after` in [devices]: there is no type \"{}\"; there are {}", escape(kind), known.join(", ")))
            .collect()
    }
}

/// What becomes of a service that is silent for too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stale {
    /// It stays, without measured values and with `/Connected` 0.
    Disconnect,
    /// It leaves the bus until it is heard of again.
    Leave,
}

/// What a Proxy message may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxy {
    /// Whatever a W may.
    Any,
    /// The services of the device that sent it.
    Own,
}
