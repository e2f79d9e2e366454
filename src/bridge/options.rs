//! What the person who runs the bridge may choose, checked.

use std::time::Duration;

use super::filter::Filter;

/// The `[bridge]` part of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    pub enabled: Enabled,
    /// Whether values are published retained.
    pub retain: bool,
    /// How long a keep-alive lasts.
    pub keepalive_interval: Duration,
    pub always_on: AlwaysOn,
    pub access: Access,
    /// When not empty, only what one of these takes may be written.
    pub allow: Vec<Filter>,
    /// What one of these takes may never be written.
    pub deny: Vec<Filter>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: Enabled::Auto,
            retain: true,
            keepalive_interval: Duration::from_secs(60),
            always_on: AlwaysOn::No,
            access: Access::Full,
            allow: Vec::new(),
            deny: Vec::new(),
        }
    }
}

/// Whether the bridge serves N, R and W.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enabled {
    /// Unless another bridge does so already on this broker.
    Auto,
    Yes,
    No,
}

/// What is published without any keep-alive.
#[derive(Clone, PartialEq, Debug)]
pub enum AlwaysOn {
    No,
    Everything,
    Only(Vec<Filter>),
}

/// Who may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Full,
    ReadOnly,
}
