//! The loop: the only one who knows everyone.
//!
//! Each turn takes what has happened on the bus (at most [`BUS_BUDGET`] messages, so that keep-alives and writes are never
//! starved), at the broker and on the clock, gives it to the core, and carries out what the core wants. Nothing in a turn waits, and each
//! source of a turn is left for the next one after a slice of time.

mod once;
mod peers;
mod turn;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::bridge::name::PortalId;
use crate::bridge::topic::{Address, check_topic};
use crate::bridge::{Bridge, Mode, Publish, Setup, Time};
use crate::bus::Watcher;
use crate::bus::services::{ServiceEvent, Services, read_call};
use crate::catalogue_files;
use crate::config::Config;
use crate::control::{self, Command, Control};
use crate::device::catalogue::Catalogue;
use crate::device::{self, BusEvent, Devices, registry};
use crate::http::{self, Http, Unwritten};
use crate::measure::{self, Measures, Moment, Wall};
use crate::mqtt::link::{Link, LinkEvent};
use crate::portal;
use crate::signals::{Signal, Signals};
use crate::store::Store;
use crate::supervisor::Supervisor;
use crate::text::escape;
use crate::watch::Timer;

use peers::broker;
pub(crate) use peers::bus_address;
use turn::{Slice, Turn, Wake};

pub use once::{Status, sample_once, status_once};

/// Messages of the bus in one turn.
const BUS_BUDGET: usize = 64;
/// Messages of the broker in one turn.
const LINK_BUDGET: usize = 64;
/// Calls of our own services, and what happens to their connections, in one turn.
const SERVICE_BUDGET: usize = 64;
/// The good-bye takes no longer than this; the whole end has two seconds.
const GOODBYE: Duration = Duration::from_millis(1700);

/// Least time to write the registry at shutdown; it also gets what is left of [`GOODBYE`]. An fsync on a worn card is slow.
const REMEMBER: Duration = Duration::from_millis(250);

/// The queues of measurements, when another configuration goes on with them: an fsync on a worn card takes its time.
const HAND_OVER: Duration = Duration::from_secs(10);

/// An answer that is under way is waited for so long at the end: what it is for would be posted twice.
const LAST_ANSWER: Duration = Duration::from_millis(1000);

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

/// Serves until it is told to stop, or cannot go on. `reload` reads the configuration again; `unwritten` goes from one life to the
/// next.
pub async fn serve<E: std::fmt::Display>(
    config: &Config,
    signals: &mut Signals,
    unwritten: &mut Unwritten,
    reload: impl Fn() -> Result<Config, E> + Send,
) -> Ended {
    // from here on the loop is watched: each step of what follows has a deadline of its own
    let supervisor = Supervisor::new();
    // until it serves, a reload or a summary stays pending
    let ready = tokio::select! {
        biased;
        _ = signals.stop() => Err(Ended::Stopped),
        ready = set_up(config, unwritten, supervisor) => ready,
    };
    let ended = match ready {
        Ok(mut daemon) => {
            let ended = daemon.run(signals, reload).await;
            *unwritten = daemon.remember(signals, matches!(ended, Ended::Reload(_))).await;
            ended
        }
        Err(ended) => ended,
    };
    // whatever else it would have been
    if signals.stop_wanted() { Ended::Stopped } else { ended }
}

async fn set_up(config: &Config, unwritten: &mut Unwritten, supervisor: Supervisor) -> Result<Daemon, Ended> {
    let addresses = bus_address(&config.dbus).map_err(Ended::Unusable)?;
    let connected = Watcher::connect(&addresses).await;
    let (watcher, address) = connected.map_err(|why| Ended::Unready(format!("no connection to the bus {why}")))?;
    log::info!("connected to the bus {}", escape(&address.to_string()));
    let sources = portal::Sources::new(config.portal_id.clone());
    // who knows it may not be there yet
    let found = sources.find(async || watcher.system_serial().await).await.map_err(|error| Ended::Unready(error.to_string()))?;
    log::info!("the portal ID is {} (from {})", found.id, found.from);
    let broker = broker(config, &found.id).map_err(Ended::Unusable)?;
    let timer = Timer::new().map_err(|error| Ended::Unready(format!("no timer: {error}")))?;
    let http = Http::start(&config.http, &config.devices.state_dir, std::mem::take(unwritten));
    let http = http.map_err(|error| Ended::Unusable(error.to_string()))?;
    let setup = Setup {
        portal: found.id.clone(),
        prefix: config.mqtt.prefix.clone(),
        options: config.bridge.clone(),
        beside: config.devices.options.enabled,
        nonce: nonce(),
        verbosity: config.log_level.to_level().unwrap_or(log::Level::Error),
    };
    let measures = Measures::new(measure::Setup {
        portal: found.id.clone(),
        prefix: config.mqtt.prefix.clone(),
        targets: config.http.iter().map(|target| target.options.clone()).collect(),
        had_more: http::was_used(&config.devices.state_dir),
        seed: nonce(),
        verbosity: setup.verbosity,
    });
    allow_descriptors(config);
    let (store, control, devices) = set_up_devices(config, found.id, setup.verbosity);
    Ok(Daemon {
        bridge: Bridge::new(setup),
        devices,
        measures,
        http,
        own_name: watcher.unique_name(),
        services: Services::new(&address),
        watcher,
        link: Link::start(broker),
        timer,
        store,
        control,
        orders: BTreeMap::new(),
        next_token: 0,
        supervisor,
        unfinished: false,
        end_by: Instant::now(),
        longest_turn: None,
        turn: None,
        began: Instant::now(),
    })
}

/// Each service of a device is a descriptor: as many as the system allows, if the usual thousand may not do.
fn allow_descriptors(config: &Config) {
    const USUAL: usize = 900;
    let options = &config.devices.options;
    if options.enabled
        && options.max_devices.saturating_mul(options.max_services).min(options.max_services_total) > USUAL
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}

/// Devices, and what is remembered of them.
fn set_up_devices(config: &Config, portal: PortalId, verbosity: log::Level) -> (Option<Store>, Option<Control>, Devices) {
    let wanted = &config.devices;
    let enabled = wanted.options.enabled;
    let (catalogue, mistakes) = if enabled { catalogue_files::load(&wanted.catalogue_dir) } else { (Catalogue::shipped(), Vec::new()) };
    mistakes.iter().for_each(|mistake| log::warn!("{mistake}"));
    wanted.options.stale_after.unknown_types(&catalogue).iter().for_each(|line| log::warn!("{line}"));
    let store = enabled.then(|| Store::open(&wanted.state_dir));
    let text = store.as_ref().and_then(Store::load);
    let registry = text.map(|text| registry::parse(&text)).transpose().unwrap_or_else(|why| {
        if let Some(store) = &store {
            store.set_aside(&why);
        }
        None
    });
    let (registry, left_out) = registry.unwrap_or_default();
    left_out.iter().for_each(|line| log::warn!("{line}"));
    let devices = Devices::new(device::Setup {
        portal,
        prefix: config.mqtt.prefix.clone(),
        options: wanted.options.clone(),
        bridge: config.bridge.clone(),
        catalogue,
        registry,
        unix: unix(),
        verbosity,
    });
    (store, enabled.then(|| Control::listen(&wanted.state_dir)), devices)
}

struct Daemon {
    bridge: Bridge,
    devices: Devices,
    measures: Measures,
    /// What keeps and posts measurements.
    http: Http,
    watcher: Watcher,
    /// The watcher's name on the bus.
    own_name: String,
    /// Services of registered devices.
    services: Services,
    link: Link,
    timer: Timer,
    store: Option<Store>,
    control: Option<Control>,
    /// What somebody at a command line waits for.
    orders: BTreeMap<device::Token, control::Answer>,
    next_token: device::Token,
    supervisor: Supervisor,
    /// Calls or messages wait to be sent: the last turn's time was up.
    unfinished: bool,
    /// During shutdown, when the daemon stops waiting for the broker and the disk.
    end_by: Instant,
    /// Since the last summary.
    longest_turn: Option<Turn>,
    turn: Option<Turn>,
    began: Instant,
}

async fn next_order(control: &mut Option<Control>) -> control::Request {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    async fn run<E: std::fmt::Display>(&mut self, signals: &mut Signals, reload: impl Fn() -> Result<Config, E> + Send) -> Ended {
        let now = self.now();
        self.bridge.bus_up(now);
        self.devices.bus_up(now);
        self.supervisor.ready();
        loop {
            self.carry_out();
            let ended = match self.turn(signals.next()).await {
                Ok(None) => continue,
                Ok(Some(Signal::Summary)) => {
                    self.log_summary();
                    continue;
                }
                Ok(Some(Signal::Stop)) => {
                    self.supervisor.stopping();
                    Ended::Stopped
                }
                Ok(Some(Signal::Reload)) => match reload() {
                    Ok(config) => {
                        log::info!("told to start again with the configuration as it is now");
                        self.supervisor.reloading();
                        Ended::Reload(Box::new(config))
                    }
                    Err(error) => {
                        error.to_string().lines().for_each(|line| log::error!("{line}"));
                        log::error!("the configuration is not used: going on with the one before");
                        continue;
                    }
                },
                Err(error) => {
                    self.take_last_answers().await;
                    return Ended::Unready(format!("the bus is gone: {}", escape(&error.to_string())));
                }
            };
            self.say_goodbye(signals).await;
            return ended;
        }
    }

    fn log_summary(&mut self) {
        let now = self.now();
        let longest = self.longest_turn.take().map(|Turn { took, cause, .. }| {
            format!("longest turn of the loop since the last summary: {:.1} ms, caused by {cause}", took.as_secs_f64() * 1e3)
        });
        let lines = self.bridge.summary(now).into_iter().chain(self.devices.summary(now)).chain(self.measures.summary(now));
        lines.chain(longest).for_each(|line| log::info!("{line}"));
    }

    /// Keeps the longest turn for the summary.
    fn end_turn(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        let took = self.now().after(turn.began);
        if self.longest_turn.is_none_or(|longest| took > longest.took) {
            self.longest_turn = Some(Turn { took, ..turn });
        }
    }

    /// Waits until something happens, and gives it to the core with everything else that has happened by then.
    async fn turn(&mut self, signal: impl Future<Output = Signal>) -> zbus::Result<Option<Signal>> {
        let (watcher, services, link, timer) = (&mut self.watcher, &mut self.services, &mut self.link, &mut self.timer);
        let (control, http) = (&mut self.control, &mut self.http);
        let due = [self.bridge.poll_timeout(), self.devices.poll_timeout(), self.measures.poll_timeout()].into_iter().flatten().min();
        let wake_up = due.map(|time| self.began + time.after(Time::default()));
        let wake_up = [wake_up, self.supervisor.due()].into_iter().flatten().min();
        let unfinished = self.unfinished;
        let wake = tokio::select! {
            biased;
            signal = signal => Wake::Signal(signal),
            message = poll_fn(|context| watcher.poll_next(context)) => Wake::Bus(message),
            event = services.next() => Wake::Service(event),
            event = link.next() => Wake::Link(event),
            order = next_order(control) => Wake::Order(order),
            (target, event) = http.next() => Wake::Http(target, event),
            _ = timer.wait_until(wake_up) => Wake::Time,
            // the tasks of the connections have their turn first
            () = tokio::task::yield_now(), if unfinished => Wake::Unfinished,
        };
        let now = self.now();
        self.supervisor.live(self.began + now.after(Time::default()));
        self.turn = Some(Turn { began: now, cause: wake.cause(), took: Duration::ZERO });
        // what ended the wait is part of its source's slice
        let first = Slice::begin();
        let slice = |woke| if woke { first } else { Slice::begin() };
        let (by_bus, by_service, by_link) = (matches!(wake, Wake::Bus(_)), matches!(wake, Wake::Service(_)), matches!(wake, Wake::Link(_)));
        match wake {
            Wake::Signal(signal) => return Ok(Some(signal)),
            Wake::Bus(message) => self.watcher.dispatch(&mut self.bridge, &mut self.devices, now, &message?),
            Wake::Service(event) => self.serve(now, event),
            Wake::Order(order) => self.obey(now, order),
            Wake::Link(event) => self.take(now, event),
            Wake::Http(target, event) => self.measures.event(Moment { now, wall: wall() }, target, event),
            Wake::Time | Wake::Unfinished => {}
        }
        self.take_bus(now, slice(by_bus)).await?;
        self.take_services(now, slice(by_service));
        // as many as there can be: each answers a command
        while let Some((target, event)) = self.http.try_next() {
            self.measures.event(Moment { now, wall: wall() }, target, event);
        }
        self.take_link(now, slice(by_link));
        // what has become due by what happened just now is so in the next turn
        if due.is_some_and(|time| time <= now) {
            if self.bridge.poll_timeout().is_some_and(|time| time <= now) {
                self.bridge.handle_timeout(now);
            }
            if self.devices.poll_timeout().is_some_and(|time| time <= now) {
                self.devices.handle_timeout(now);
            }
            if self.measures.poll_timeout().is_some_and(|time| time <= now) {
                self.measures.handle_timeout(Moment { now, wall: wall() }, &self.bridge);
            }
        }
        Ok(None)
    }

    /// Something came for a service of ours.
    fn serve(&mut self, now: Time, event: ServiceEvent) {
        match event {
            ServiceEvent::Changed(key, event) => self.devices.bus_event(now, key, event),
            ServiceEvent::Call(key, message) => {
                let devices = &mut self.devices;
                let answer = read_call(&message, &self.own_name, |call| devices.call(now, key, call));
                // what a call has changed is told before it is answered, as others do it
                self.carry_out_services();
                if let Some(answer) = answer {
                    self.services.answer(key, &message, answer);
                }
            }
        }
    }

    /// Somebody at a command line wants something.
    fn obey(&mut self, now: Time, order: control::Request) {
        match order.command {
            Command::List => {
                let devices = self.devices.list(now, unix()).iter().map(registry::Entry::to_json).collect();
                order.answer.send(Ok(devices));
            }
            Command::Forget(client) => {
                self.next_token += 1;
                self.orders.insert(self.next_token, order.answer);
                self.devices.forget(now, self.next_token, &client);
            }
        }
    }

    /// What else is there already.
    async fn take_bus(&mut self, now: Time, slice: Slice) -> zbus::Result<()> {
        for _ in 1..BUS_BUDGET {
            if slice.is_over() {
                break;
            }
            let watcher = &mut self.watcher;
            match poll_fn(|context| Poll::Ready(watcher.poll_next(context))).await {
                Poll::Ready(message) => self.watcher.dispatch(&mut self.bridge, &mut self.devices, now, &message?),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn take_services(&mut self, now: Time, slice: Slice) {
        for _ in 0..SERVICE_BUDGET {
            if slice.is_over() {
                break;
            }
            match self.services.try_next() {
                Some(event) => self.serve(now, event),
                None => break,
            }
        }
    }

    fn take_link(&mut self, now: Time, slice: Slice) {
        for _ in 0..LINK_BUDGET {
            if slice.is_over() {
                break;
            }
            match self.link.try_next() {
                Some(event) => self.take(now, event),
                None => break,
            }
        }
    }

    fn take(&mut self, now: Time, event: LinkEvent) {
        match event {
            LinkEvent::Up => {
                self.supervisor.status("connected to the bus and to the broker");
                self.bridge.set_slow_link(self.link.is_slow());
                self.bridge.link_up(now);
                self.devices.link_up(now);
                self.measures.link_up();
            }
            LinkEvent::Message { topic, payload, retained } => {
                if !self.devices.message(now, &topic, &payload, retained) {
                    self.bridge.message(now, &topic, &payload, retained);
                }
            }
            LinkEvent::Large { topic } => self.bridge.large_message(now, &topic),
            LinkEvent::Subscribed { filter, accepted } => {
                if self.devices.subscribed(now, &filter, accepted) {
                    self.bridge.subscribed_beside();
                } else {
                    self.bridge.subscribed(now, &filter, accepted);
                }
            }
            LinkEvent::Down => {
                self.supervisor.status("connected to the bus; there is no broker");
                self.bridge.link_down();
                self.devices.link_down(now);
                self.measures.link_down();
            }
            LinkEvent::Room => {}
        }
    }

    /// Carries out what the core wants, as far as there is room.
    fn carry_out(&mut self) {
        let now = self.now();
        self.bridge.set_slow_link(self.link.is_slow());
        self.devices.set_mode(now, self.bridge.mode());
        self.devices.set_online(now, self.bridge.is_online());
        while let Some(conflict) = self.bridge.poll_conflict() {
            self.devices.take_conflict(now, &conflict);
        }
        if self.bridge.poll_numbers() {
            self.devices.numbers_changed();
        }
        self.devices.check_numbers(now, |service_type, instance| self.bridge.occupants(service_type, instance));
        for (key, name) in self.devices.unknown() {
            if self.bridge.knows(&name) {
                self.bridge.mark_own(&name);
                self.devices.bus_event(now, key, BusEvent::Known);
            }
        }
        self.carry_out_writes(now);
        self.carry_out_services();
        while let Some((token, result)) = self.devices.poll_answer() {
            if let Some(answer) = self.orders.remove(&token) {
                answer.send(result.map(Into::into));
            }
        }
        if let Some(store) = &mut self.store
            && let Some(text) = self.devices.poll_registry(now, unix())
        {
            store.save(text);
        }
        while let Some(note) = self.bridge.poll_note() {
            log::log!(target: "venus_mqtt::bridge", note.level, "{}", note.text);
        }
        while let Some(note) = self.devices.poll_note() {
            log::log!(target: "venus_mqtt::device", note.level, "{}", note.text);
        }
        while let Some(note) = self.measures.poll_note() {
            log::log!(target: "venus_mqtt::measure", note.level, "{}", note.text);
        }
        while let Some((target, command)) = self.measures.poll_command() {
            self.http.command(target, command);
        }
        self.carry_out_calls(now);
        self.carry_out_link();
        self.publish(now);
        // what was published can have ended what a subscription waits for
        self.carry_out_link();
        self.unfinished |= !self.is_drained() && self.link.has_room();
        self.end_turn();
    }

    fn carry_out_link(&mut self) {
        while let Some(command) = self.bridge.poll_link().or_else(|| self.devices.poll_link()) {
            self.link.command(command);
        }
    }

    fn carry_out_calls(&mut self, now: Time) {
        let slice = Slice::begin();
        while !slice.is_over() {
            let Some(call) = self.bridge.poll_call(now) else { break };
            if let Err(why) = self.watcher.call(&call) {
                self.bridge.unsent(now, call.id, why);
            }
        }
        while let Some(call) = self.devices.poll_call(now) {
            if let Err(why) = self.watcher.call(&call) {
                self.devices.unsent(now, call.id, why);
            }
        }
        self.unfinished = slice.is_over();
    }

    fn publish(&mut self, now: Time) {
        if self.is_drained() {
            return;
        }
        let (unix, slice) = (unix(), Slice::begin());
        while self.link.has_room() {
            let Some(publish) = self.poll_publish(now, unix) else { break };
            debug_assert!(check_topic(&publish.topic).is_ok(), "a topic that brokers refuse: {:?}", publish.topic);
            if !self.link.publish(&publish) {
                self.bridge.left_out(&publish.topic);
            }
            // answers to devices follow the status at once
            self.devices.set_online(now, self.bridge.is_online());
            if slice.is_over() {
                self.unfinished = true;
                break;
            }
        }
        self.link.flush();
    }

    fn is_drained(&self) -> bool {
        self.bridge.is_drained() && self.devices.is_drained() && self.measures.is_drained()
    }

    fn poll_publish(&mut self, now: Time, unix: u64) -> Option<Publish> {
        let beside = self.devices.poll_publish().or_else(|| self.measures.poll_publish(now));
        beside.or_else(|| self.bridge.poll_publish(now, unix))
    }

    /// What proxies write to services of others.
    fn carry_out_writes(&mut self, now: Time) {
        let mut next = self.devices.poll_write();
        if next.is_none() {
            return;
        }
        let mut refused: BTreeMap<Box<str>, Vec<String>> = BTreeMap::new();
        while let Some(write) = next {
            let address = Address { service_type: &write.service_type, instance: &write.instance, path: &write.path };
            if let Err(why) = self.bridge.write_value(now, address, write.value) {
                let topic = format!("{}/{}{}", write.service_type, write.instance, write.path);
                let text = format!("{}: {why}", escape(&topic));
                refused.entry(write.client).or_default().push(text);
            }
            next = self.devices.poll_write();
        }
        for (client, texts) in refused {
            self.devices.refuse_proxy(now, &client, &texts);
        }
    }

    fn carry_out_services(&mut self) {
        while let Some(command) = self.devices.poll_bus() {
            if let Some((owner, serial)) = self.services.carry_out(command) {
                self.watcher.tell(owner, serial);
            }
        }
    }

    /// Takes back what is retained and disconnects, as far as that goes in the time there is.
    async fn say_goodbye(&mut self, signals: &mut Signals) {
        let now = self.now();
        self.bridge.shut_down(now);
        self.devices.shut_down();
        self.measures.shut_down();
        let deadline = Instant::now() + GOODBYE;
        self.end_by = deadline;
        let last_answer = Instant::now() + LAST_ANSWER;
        let (mut said, mut linked) = (false, true);
        let mut reconnecting = self.bridge.left_retained() > 0;
        let ended = self.link.ended();
        if reconnecting {
            self.link.hurry();
        }
        loop {
            self.carry_out();
            let answering = self.measures.is_posting() && Instant::now() < last_answer;
            if reconnecting && (self.bridge.mode() != Mode::Down || self.link.ended() > ended) {
                reconnecting = false;
                self.warn_of_retained();
            }
            if !reconnecting && self.bridge.is_drained() && self.measures.is_drained() && !said {
                said = self.link.disconnect();
                linked = said;
            }
            // whoever comes next, and be it ourselves, finds the names free
            if !linked && self.services.is_empty() && !answering {
                return;
            }
            let until = if answering { last_answer } else { deadline };
            let stopping = signals.stop_wanted();
            let turn = tokio::time::timeout_at(until.into(), self.turn(signals.stop())).await;
            match turn {
                Err(_) if answering => {}
                // during a reload, the first one: the same has to be done
                Ok(Ok(Some(_))) if !stopping => self.supervisor.stopping(),
                // the second one ends it at once
                Ok(Ok(Some(_)) | Err(_)) => return,
                Err(_) if reconnecting => return self.warn_of_retained(),
                Err(_) => return log::warn!("the broker takes nothing: leaving without a good-bye"),
                Ok(Ok(_)) if said && self.bridge.mode() == Mode::Down => linked = false,
                Ok(Ok(_)) => {}
            }
        }
    }

    fn warn_of_retained(&self) {
        let left = self.bridge.left_retained();
        if left > 0 {
            log::warn!("no connection to the broker: {left} values stay retained there until the next start, which clears them");
        }
    }

    /// Without a bus there is no more to be done than not to post twice what has been posted.
    async fn take_last_answers(&mut self) {
        self.measures.shut_down();
        let deadline = Instant::now() + LAST_ANSWER;
        loop {
            while let Some((target, command)) = self.measures.poll_command() {
                self.http.command(target, command);
            }
            if !self.measures.is_posting() {
                return;
            }
            let Ok((target, event)) = tokio::time::timeout_at(deadline.into(), self.http.next()).await else { return };
            self.measures.event(Moment { now: self.now(), wall: wall() }, target, event);
        }
    }

    /// What waits on disk, and the last word of the registry with when each device was last heard. Gives what the disk did not take.
    /// `reloading`: another configuration goes on with the queues, unless a stop comes.
    async fn remember(mut self, signals: &mut Signals, reloading: bool) -> Unwritten {
        let now = self.now();
        let over = async {
            if reloading && !signals.stop_wanted() {
                let _ = tokio::time::timeout(HAND_OVER, signals.stop()).await;
            }
            if signals.stop_wanted() || !reloading {
                let _ = tokio::time::timeout(REMEMBER, signals.stop()).await;
            }
        };
        let unwritten = self.http.finish(over).await;
        if let Some(mut store) = self.store.take() {
            store.save(self.devices.last_registry(now, unix()));
            let mut finished = pin!(store.finish());
            let is_written = tokio::time::timeout(REMEMBER, &mut finished).await.is_ok()
                || tokio::select! {
                    () = finished => true,
                    () = tokio::time::sleep_until(self.end_by.into()) => false,
                    // the second stop
                    _ = signals.stop() => false,
                };
            if !is_written {
                log::warn!(
                    "the registry of devices was not written in time at this stop: devices return as of the last write, and values for `restore_values` are lost; check the disk of `state_dir`"
                );
            }
        }
        unwritten
    }

    fn now(&self) -> Time {
        Time::since_start(self.began.elapsed())
    }
}

/// Seconds since 1970, as far as the clock knows.
fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The time of day, as far as the clock knows.
fn wall() -> Wall {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|time| i64::try_from(time.as_micros()).ok());
    Wall::from_micros(micros.unwrap_or(0))
}

/// A number that no other process has.
fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
