//! Real parts for the scenarios: a private dbus-daemon, a Mosquitto on a free loopback port, fake `com.victronenergy.*` services, a
//! fake localsettings and the real `venus-mqtt`, as processes or as containers; and an HTTP backend in the test itself.
//!
//! What it promises: a scenario sees the same [`Rig`] in both; only [`parts`] knows how a part is started, stopped, killed, paused
//! and cut off. Everything ends with its rig, also when a test panics, and then the parts' logs are printed. Nothing here sleeps to
//! let something happen: it waits for a condition, with a deadline.
//!
//! Who calls it: the scenarios in `integration/tests`, the benchmark.

#![forbid(unsafe_code)]

pub mod certs;
pub mod device;
pub mod fake;
pub mod gx;
pub mod http;
pub mod items;
pub mod mqtt;
pub mod parts;
pub mod proxy;
pub mod rig;
pub mod setup;
pub mod watch;

pub use device::Device;
pub use fake::Fake;
pub use gx::Gx;
pub use http::{Answer, Backend, Request};
pub use items::{Item, Items, empty_array, invalid, item, items, owned};
pub use mqtt::{Client, Message};
pub use parts::{Ended, Part};
pub use rig::Rig;
pub use setup::Setup;
pub use watch::Watch;

use std::time::{Duration, Instant};

/// How long anything may take before a test says it does not happen. Only a test that fails waits for it, so it is what the slowest
/// sequence of back-offs takes on a machine that has other work for its processors.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The portal ID of every rig.
pub const PORTAL: &str = "c0619ab1c2d3";

/// Looks at something again and again until it gives what is wanted, or fails with `what` after `within`.
pub fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {within:?}: {what}");
        // between two looks, not in place of one
        std::thread::sleep(Duration::from_millis(10));
    }
}
