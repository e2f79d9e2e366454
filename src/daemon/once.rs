//! One look at the bus, without serving anything: what `venus-mqtt http test` sends.

use std::future::poll_fn;
use std::time::Instant;

use log::Level;

use super::{Ended, bus_address, nonce, wall};
use crate::bridge::options::{Enabled, Options};
use crate::bridge::{Bridge, Setup, Time};
use crate::bus::Watcher;
use crate::config::Config;
use crate::device::catalogue::Catalogue;
use crate::device::options::Options as DeviceOptions;
use crate::device::{self, Devices};
use crate::measure::{Moment, Sample, Sampler};
use crate::portal;
use crate::text::escape;
use crate::watch::Timer;

/// A measurement for each target of the configuration, in its order; `None`: there is nothing to measure. Fails where the bus does,
/// and while the clock is not set.
pub async fn sample_once(config: &Config) -> Result<Vec<Option<Sample>>, Ended> {
    let address = bus_address(&config.dbus).map_err(Ended::Unusable)?;
    let unready = |error: &dyn std::fmt::Display| Ended::Unready(format!("the bus {}: {}", escape(&address), escape(&error.to_string())));
    let mut watcher = Watcher::connect(&address).await.map_err(|error| unready(&error))?;
    let sources = portal::Sources::new(config.portal_id.clone());
    let portal = sources.find(async || watcher.system_serial().await).await.map_err(|error| Ended::Unready(error.to_string()))?.id;
    let mut bridge = Bridge::new(Setup {
        portal: portal.clone(),
        prefix: String::new(),
        options: Options { enabled: Enabled::No, ..Options::default() },
        beside: false,
        nonce: nonce(),
        verbosity: Level::Warn,
    });
    // nobody registers here: it only takes what the bridge does not want
    let mut devices = Devices::new(device::Setup {
        portal: portal.clone(),
        prefix: String::new(),
        options: DeviceOptions { enabled: false, ..DeviceOptions::default() },
        bridge: Options::default(),
        catalogue: Catalogue::shipped(),
        registry: Vec::new(),
        verbosity: Level::Warn,
    });
    let mut timer = Timer::new().map_err(|error| unready(&error))?;
    let began = Instant::now();
    let now = || Time::since_start(began.elapsed());
    bridge.bus_up(now());
    while !bridge.is_scanned() {
        while let Some(call) = bridge.poll_call() {
            watcher.call(&call);
        }
        let due = bridge.poll_timeout().map(|time| began + time.after(Time::default()));
        tokio::select! {
            message = poll_fn(|context| watcher.poll_next(context)) => {
                let message = message.map_err(|error| unready(&error))?;
                watcher.dispatch(&mut bridge, &mut devices, now(), &message);
            }
            _ = timer.wait_until(due) => bridge.handle_timeout(now()),
        }
    }
    let at = Moment { now: now(), wall: wall() };
    if !at.wall.is_set() {
        return Err(Ended::Unready(format!("the clock is not set ({}): nobody would know when it was measured", at.wall)));
    }
    let sample = |options| Sampler::default().sample(options, portal.as_str(), at, &bridge);
    Ok(config.http.iter().map(|target| sample(&target.options)).collect())
}
