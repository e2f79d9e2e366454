//! One turn of the loop: what caused it, and how long each of its parts may take.

use std::time::{Duration, Instant};

use crate::bridge::Time;
use crate::bus::services::ServiceEvent;
use crate::control;
use crate::measure;
use crate::mqtt::link::LinkEvent;
use crate::signals::Signal;

/// How long a turn takes messages of one source, sends calls, or publishes. A turn has five of these, each of which ends up to one
/// message later, and stays below 10 ms, so that calls to our own services are answered within 50 ms whatever else arrives.
const SLICE: Duration = Duration::from_millis(1);

/// One turn of the loop, from the end of its wait.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub began: Time,
    pub cause: &'static str,
    pub took: Duration,
}

/// The end of a [`SLICE`].
#[derive(Clone, Copy)]
pub(super) struct Slice(Instant);

impl Slice {
    pub fn begin() -> Self {
        Self(Instant::now() + SLICE)
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}

/// What ended the wait.
pub(super) enum Wake {
    Signal(Signal),
    Bus(zbus::Result<zbus::Message>),
    Service(ServiceEvent),
    Link(LinkEvent),
    Order(control::Request),
    Http(usize, measure::Event),
    Time,
    Unfinished,
}

impl Wake {
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Signal(_) => "a signal",
            Self::Bus(_) => "the bus",
            Self::Service(_) => "a call to a registered service",
            Self::Link(_) => "the broker",
            Self::Order(_) => "a command line",
            Self::Http(..) => "an HTTP backend",
            Self::Time => "a timer",
            Self::Unfinished => "what the turn before had left",
        }
    }
}
