//! What the person who runs the devices may choose, checked.

use std::time::Duration;

/// The `[devices]` part of the configuration, but for its files.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Whether devices may register themselves at all.
    pub enabled: bool,
    /// Refuses a Status whose `clientId` is not that of its topic.
    pub strict_client_id: bool,
    pub proxy: Proxy,
    /// A device that is silent for so long is shown as not connected.
    pub stale_after: Option<Duration>,
    /// Whether `device/<client ID>/DeviceInstance` of the first protocol is published too.
    pub device_instance_topic: bool,
    /// Keeps another bridge awake while devices are registered.
    pub keepalive: bool,
    /// Devices at once.
    pub max_devices: usize,
    /// Services of one device.
    pub max_services: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: true,
            strict_client_id: false,
            proxy: Proxy::Any,
            stale_after: None,
            device_instance_topic: true,
            keepalive: false,
            max_devices: 64,
            max_services: 8,
        }
    }
}

/// What a Proxy message may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxy {
    /// Whatever a W may.
    Any,
    /// The services of the device that sent it.
    Own,
}
