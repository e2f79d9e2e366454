//! One look, without serving anything: at the bus, for what `venus-mqtt http test` sends; at the broker, for what `venus-mqtt health` says.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use log::Level;

use super::peers::{broker, bus_address, topics};
use super::{Ended, nonce, wall};
use crate::bridge::options::{Enabled, Options};
use crate::bridge::{Bridge, LinkCommand, Setup, Time};
use crate::bus::Watcher;
use crate::config::Config;
use crate::device::catalogue::Catalogue;
use crate::device::options::Options as DeviceOptions;
use crate::device::{self, Devices};
use crate::measure::{Moment, Sample, Sampler};
use crate::mqtt::link::{Broker, Link, LinkEvent};
use crate::portal;
use crate::text::escape;
use crate::watch::Timer;

/// A measurement for each target of the configuration, in its order; `None`: there is nothing to measure. Fails where the bus does,
/// and while the clock is not set.
pub async fn sample_once(config: &Config) -> Result<Vec<Option<Sample>>, Ended> {
    let addresses = bus_address(&config.dbus).map_err(Ended::Unusable)?;
    let connected = Watcher::connect(&addresses).await;
    let (mut watcher, address) = connected.map_err(|why| Ended::Unready(format!("no connection to the bus {why}")))?;
    let unready =
        |error: &dyn std::fmt::Display| Ended::Unready(format!("the bus {}: {}", escape(&address.to_string()), escape(&error.to_string())));
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
        unix: 0,
        verbosity: Level::Warn,
    });
    let mut timer = Timer::new().map_err(|error| unready(&error))?;
    let began = Instant::now();
    let now = || Time::since_start(began.elapsed());
    bridge.bus_up(now());
    while !bridge.is_scanned() {
        let sent = now();
        while let Some(call) = bridge.poll_call(sent) {
            if let Err(why) = watcher.call(&call) {
                bridge.unsent(sent, call.id, why);
            }
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

/// What the broker knows of the daemon.
#[derive(PartialEq, Eq, Debug)]
pub struct Status {
    pub topic: String,
    /// What is retained there; `None`: nothing.
    pub said: Option<String>,
}

/// Asks the broker whether a daemon of this configuration is there. Fails when there is no answer in time.
pub async fn status_once(config: &Config, patience: Duration) -> Result<Status, Ended> {
    let asked = tokio::time::timeout(patience, ask_status(config)).await;
    asked.unwrap_or_else(|_| {
        let (host, port) = (escape(&config.mqtt.host), config.mqtt.port);
        Err(Ended::Unready(format!("no answer within {} s from the broker {host}:{port}", patience.as_secs_f64())))
    })
}

async fn ask_status(config: &Config) -> Result<Status, Ended> {
    let sources = portal::Sources::new(config.portal_id.clone());
    // the bus is asked where nobody else knows, as the daemon does
    let serial = async || {
        let (watcher, _) = Watcher::connect(&bus_address(&config.dbus)?).await?;
        watcher.system_serial().await
    };
    let portal = sources.find(serial).await.map_err(|error| Ended::Unready(error.to_string()))?.id;
    let topics = topics(config, &portal);
    let topic = topics.own("status");
    let broker = broker(config, &portal).map_err(Ended::Unusable)?;
    // under a name of its own, and leaving nothing behind
    let mut link = Link::start(Broker { client_id: format!("venus-mqtt-{:x}", nonce()), will: None, ..broker });
    // what is retained comes between the answer to the first subscription and that to the second
    let barrier = topics.own(&format!("status/{:x}", nonce()));
    let mut said = None;
    loop {
        match link.next().await {
            LinkEvent::Up => [&topic, &barrier].iter().for_each(|filter| link.command(LinkCommand::Subscribe(vec![(*filter).clone()]))),
            LinkEvent::Message { topic: of, payload, .. } if of == topic => said = Some(String::from_utf8_lossy(&payload).into_owned()),
            LinkEvent::Subscribed { filter, accepted: false } if filter == topic => {
                return Err(Ended::Unready(format!("the broker does not let us read {}", escape(&topic))));
            }
            LinkEvent::Subscribed { filter, .. } if filter == barrier => break,
            _ => {}
        }
    }
    link.disconnect();
    Ok(Status { topic, said })
}
