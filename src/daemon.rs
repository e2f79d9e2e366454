//! The loop: the only one who knows everyone.
//!
//! Each turn takes what has happened on the bus (at most [`BUS_BUDGET`] messages, so that keep-alives and writes are never
//! starved), at the broker and on the clock, gives it to the core, and carries out what the core wants. Nothing in a turn waits.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bridge::name::PortalId;
use crate::bridge::{Bridge, Setup, Time};
use crate::bus::Watcher;
use crate::config::{BusAddress, Config};
use crate::mqtt::link::{Broker, Link, LinkEvent};
use crate::mqtt::tls;
use crate::portal;
use crate::signals::{Signal, Signals};
use crate::text::escape;
use crate::watch::Timer;

/// Messages of the bus in one turn.
const BUS_BUDGET: usize = 64;
/// Messages of the broker in one turn.
const LINK_BUDGET: usize = 64;
/// The good-bye takes no longer than this; the whole end has two seconds.
const GOODBYE: Duration = Duration::from_millis(1700);

/// Why the daemon ended.
#[derive(Debug)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// It was told to go on with another configuration.
    Reload(Box<Config>),
    /// The bus is gone, or something else is not there (yet): whoever supervises us starts us again.
    Unready(String),
    /// The configuration holds something that only shows now.
    Unusable(String),
}

/// Serves until it is told to stop, or cannot go on. `reload` reads the configuration again.
pub async fn serve<E: std::fmt::Display>(config: &Config, signals: &mut Signals, reload: impl Fn() -> Result<Config, E> + Send) -> Ended {
    let ready = tokio::select! {
        biased;
        () = stop_wanted(signals) => return Ended::Stopped,
        ready = set_up(config) => ready,
    };
    match ready {
        Ok(mut daemon) => daemon.run(signals, reload).await,
        Err(ended) => ended,
    }
}

/// While nothing is served yet, there is nothing else to obey.
async fn stop_wanted(signals: &mut Signals) {
    while signals.next().await != Signal::Stop {}
}

async fn set_up(config: &Config) -> Result<Daemon, Ended> {
    let address = bus_address(&config.dbus).map_err(Ended::Unusable)?;
    let watcher = Watcher::connect(&address).await.map_err(|error| {
        let (address, error) = (escape(&address).to_string(), error.to_string());
        Ended::Unready(format!("no connection to the bus {address}: {}", escape(&error)))
    })?;
    log::info!("connected to the bus {}", escape(&address));
    let sources = portal::Sources::new(config.portal_id.clone());
    // who knows it may not be there yet
    let found = sources.find(async || watcher.system_serial().await).await.map_err(|error| Ended::Unready(error.to_string()))?;
    log::info!("the portal ID is {} (from {})", found.id, found.from);
    let broker = broker(config, &found.id).map_err(Ended::Unusable)?;
    let setup = Setup {
        portal: found.id,
        prefix: config.mqtt.prefix.clone(),
        options: config.bridge.clone(),
        nonce: nonce(),
        verbosity: config.log_level.to_level().unwrap_or(log::Level::Error),
    };
    let timer = Timer::new().map_err(|error| Ended::Unready(format!("no timer: {error}")))?;
    Ok(Daemon { bridge: Bridge::new(setup), watcher, link: Link::start(broker), timer, began: Instant::now() })
}

struct Daemon {
    bridge: Bridge,
    watcher: Watcher,
    link: Link,
    timer: Timer,
    began: Instant,
}

/// What ended the wait.
enum Wake {
    Signal(Signal),
    Bus(zbus::Result<zbus::Message>),
    Link(LinkEvent),
    Time,
}

impl Daemon {
    async fn run<E: std::fmt::Display>(&mut self, signals: &mut Signals, reload: impl Fn() -> Result<Config, E> + Send) -> Ended {
        let now = self.now();
        self.bridge.bus_up(now);
        loop {
            self.carry_out();
            let ended = match self.turn(signals).await {
                Ok(None) => continue,
                Ok(Some(Signal::Summary)) => {
                    self.bridge.summary(self.now()).iter().for_each(|line| log::info!("{line}"));
                    continue;
                }
                Ok(Some(Signal::Stop)) => {
                    log::info!("told to stop");
                    Ended::Stopped
                }
                Ok(Some(Signal::Reload)) => match reload() {
                    Ok(config) => {
                        log::info!("told to start again with the configuration as it is now");
                        Ended::Reload(Box::new(config))
                    }
                    Err(error) => {
                        error.to_string().lines().for_each(|line| log::error!("{line}"));
                        log::error!("the configuration is not used: going on with the one before");
                        continue;
                    }
                },
                Err(error) => return Ended::Unready(format!("the bus is gone: {}", escape(&error.to_string()))),
            };
            self.say_goodbye(signals).await;
            return ended;
        }
    }

    /// Waits until something happens, and gives it to the core with everything else that has happened by then.
    async fn turn(&mut self, signals: &mut Signals) -> zbus::Result<Option<Signal>> {
        let (watcher, link, timer) = (&mut self.watcher, &mut self.link, &mut self.timer);
        let due = self.bridge.poll_timeout().map(|time| self.began + time.after(Time::default()));
        let wake = tokio::select! {
            biased;
            signal = signals.next() => Wake::Signal(signal),
            message = poll_fn(|context| watcher.poll_next(context)) => Wake::Bus(message),
            event = link.next() => Wake::Link(event),
            _ = timer.wait_until(due) => Wake::Time,
        };
        let now = self.now();
        match wake {
            Wake::Signal(signal) => return Ok(Some(signal)),
            Wake::Bus(message) => self.watcher.dispatch(&mut self.bridge, now, &message?),
            Wake::Link(event) => self.take(now, event),
            Wake::Time => {}
        }
        self.take_bus(now).await?;
        for _ in 0..LINK_BUDGET {
            match self.link.try_next() {
                Some(event) => self.take(now, event),
                None => break,
            }
        }
        if self.bridge.poll_timeout().is_some_and(|time| time <= now) {
            self.bridge.handle_timeout(now);
        }
        Ok(None)
    }

    /// What else is there already.
    async fn take_bus(&mut self, now: Time) -> zbus::Result<()> {
        for _ in 1..BUS_BUDGET {
            let watcher = &mut self.watcher;
            match poll_fn(|context| Poll::Ready(watcher.poll_next(context))).await {
                Poll::Ready(message) => self.watcher.dispatch(&mut self.bridge, now, &message?),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, now: Time, event: LinkEvent) {
        match event {
            LinkEvent::Up => self.bridge.link_up(now),
            LinkEvent::Message { topic, payload, retained } => self.bridge.message(now, &topic, &payload, retained),
            LinkEvent::Subscribed { filter, accepted } => self.bridge.subscribed(now, &filter, accepted),
            LinkEvent::Down { oversized } => self.bridge.link_down(oversized),
            LinkEvent::Room => {}
        }
    }

    /// Carries out what the core wants, as far as there is room.
    fn carry_out(&mut self) {
        while let Some(note) = self.bridge.poll_note() {
            log::log!(target: "venus_mqtt::bridge", note.level, "{}", note.text);
        }
        while let Some(call) = self.bridge.poll_call() {
            self.watcher.call(&call);
        }
        while let Some(command) = self.bridge.poll_link() {
            self.link.command(command);
        }
        if self.bridge.is_drained() {
            return;
        }
        let now = self.now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        while self.link.has_room()
            && let Some(publish) = self.bridge.poll_publish(now, unix)
        {
            self.link.publish(&publish);
        }
        self.link.flush();
    }

    /// Takes back what is retained and disconnects, as far as that goes in the time there is.
    async fn say_goodbye(&mut self, signals: &mut Signals) {
        self.bridge.shut_down(self.now());
        let deadline = Instant::now() + GOODBYE;
        let mut said = false;
        loop {
            self.carry_out();
            if self.bridge.is_drained() && !said {
                said = self.link.disconnect();
                if !said {
                    return;
                }
            }
            let turn = tokio::time::timeout_at(deadline.into(), self.turn(signals)).await;
            match turn {
                // a second wish to stop is a wish for haste
                Ok(Ok(Some(Signal::Stop)) | Err(_)) => return,
                Err(_) => return log::warn!("the broker takes nothing: leaving without a good-bye"),
                Ok(Ok(_)) if said && self.bridge.mode() == crate::bridge::Mode::Down => return,
                Ok(Ok(_)) => {}
            }
        }
    }

    fn now(&self) -> Time {
        Time::since_start(self.began.elapsed())
    }
}

fn bus_address(address: &BusAddress) -> Result<String, String> {
    let session_is_named = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some_and(|address| !address.is_empty());
    let known = match address {
        BusAddress::Address(address) => return Ok(address.clone()),
        BusAddress::Session => zbus::Address::session(),
        BusAddress::Auto if session_is_named => zbus::Address::session(),
        BusAddress::Auto | BusAddress::System => zbus::Address::system(),
    };
    known
        .map(|address| address.to_string())
        .map_err(|error| format!("the address of the {address} bus in the environment is none: {error}"))
}

fn broker(config: &Config, portal: &PortalId) -> Result<Broker, String> {
    let mqtt = &config.mqtt;
    let tls = mqtt.tls.as_ref().map(tls::client_config).transpose().map_err(|error| error.to_string())?;
    let password = mqtt.password.as_ref().map(|secret| secret.reveal().to_owned());
    Ok(Broker {
        host: mqtt.host.clone(),
        port: mqtt.port,
        client_id: mqtt.client_id.clone().unwrap_or_else(|| format!("venus-mqtt-{portal}")),
        login: mqtt.user.clone().map(|user| (user, password)),
        keep_alive: mqtt.keep_alive,
        tls,
        will: (format!("{}venus-mqtt/{portal}/status", mqtt.prefix), "offline"),
    })
}

/// A number that no other process has.
fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
