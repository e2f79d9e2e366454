//! What the person who sends measurements may choose for each target, checked.

use std::time::Duration;

use crate::bridge::filter::Filter;

/// What the core knows of one target of the `[[http]]` part of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Stands in log lines and in the name of the queue: the target's number, unless it was given a name.
    pub name: Box<str>,
    /// Scheme, host and port of the backend, for log lines and the status: paths and queries may hold secrets.
    pub host: Box<str>,
    pub format: Format,
    /// One measurement in so long, on the grid of the clock.
    pub update_interval: Duration,
    /// Stands in the measurements; `None`: the portal ID.
    pub cerbo_serial: Option<Box<str>>,
    /// Most posts a second after an outage.
    pub catch_up_rate: f64,
    /// Most measurements that wait, and most bytes of them.
    pub queue_records: usize,
    pub queue_bytes: u64,
}

/// The shape of a measurement.
#[derive(Clone, PartialEq, Debug)]
pub enum Format {
    /// Every solar charger, in the shape of the Solar Backend API.
    VictronMeasurements,
    /// One JSON object with every item that these filters take.
    JsonLines(Vec<Filter>),
}

impl Format {
    /// As it is written in the configuration; also a part of the name of the queue.
    pub fn name(&self) -> &'static str {
        match self {
            Self::VictronMeasurements => "victron-measurements",
            Self::JsonLines(_) => "json-lines",
        }
    }

    /// What there is when there is no measurement.
    pub fn nothing(&self) -> &'static str {
        match self {
            Self::VictronMeasurements => "there is no solar charger (with an instance) on the bus: nothing is measured until there is",
            Self::JsonLines(_) => "no item on the bus is one that `filters` takes: nothing is measured until there is",
        }
    }
}
