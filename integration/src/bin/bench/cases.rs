//! What is measured, one function each. All of them run in one rig, in the order of `CASES`.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::clock;
use crate::devices;
use crate::emission::{Emission, Emitted, Style, Until};
use crate::http;
use crate::measure::{Machine, cpu_seconds, resident_kb, thread_cpu_seconds};
use crate::model;
use crate::report::{Cpu, Figures, Load, Target, Unit};
use crate::rig::{Rig, wait_until};
use crate::turns;

/// How long and how much.
#[derive(Clone, Copy)]
pub struct Size {
    /// Of the longest load; the others take half of it.
    pub seconds: f64,
    /// Values of the flat-out run.
    pub flat_out: u64,
    pub republishes: usize,
    pub writes: usize,
    /// Writes to registered services.
    pub device_writes: usize,
    /// Times that a device registers and leaves.
    pub cycles: usize,
    /// Measurements that are delivered, and that an outage lasts.
    pub measurements: usize,
    /// Measurements that an outage lasts in which memory and CPU time are counted.
    pub unreachable: usize,
}

/// The measurements that another program than venus-mqtt is spared unless they are named. The last ones: their bridges are not that of the
/// others.
pub const OWN: [&str; 3] = ["turns", "http", "devices"];

type Case = fn(&mut Rig, &Size, &mut Figures) -> Result<()>;

/// By the names of `--only`. The start, which all others need, runs always.
pub const CASES: &[(&str, &str, Case)] = &[
    ("rss", "resident memory with every item published", rss),
    ("republish", "keep-alive to full_publish_completed", republish),
    ("idle", "CPU while nothing changes, awake", idle),
    ("latency", "500/s in signals of ten", latency),
    ("latency-pc", "500/s in single PropertiesChanged", latency_pc),
    ("steady", "2,000/s in signals of ten", steady),
    ("steady-pc", "2,000/s in single PropertiesChanged", steady_pc),
    ("write", "W to N", write),
    ("leave", "a service of some 520 items leaves and returns", leave),
    ("hung", "a service signals but answers no call, at 2,000/s", hung),
    ("stopped", "the broker stands still under 5,000/s", stopped),
    ("flat", "as fast as the bus takes it, signals of ten", flat_out),
    ("flood", "100,000/s: only intermediate values may be lost", flood),
    ("rss-end", "resident memory after all that", rss_end),
    ("turns", "the longest turn of the loop that each kind of event causes", turns::turns),
    ("http", "measurements over HTTP: delivered, kept while there is no backend, caught up", http::http),
    ("devices", "64 devices register 8 services each, with a bridge of their own", devices::devices),
];

pub const TEN: Style = Style::Items { batch: 10 };

/// A keep-alive lasts 60 s; it is renewed well before.
const STAY_AWAKE_EVERY: f64 = 20.0;

/// Nothing arrived for so long: nothing more will.
pub const SETTLED: f64 = 2.5;

/// From the start of the bridge's process to the last topic. Keep-alives go out until the first topics come, as clients do that cannot know.
pub fn start(rig: &mut Rig, bridge: &str, figures: &mut Figures) -> Result<()> {
    thread::sleep(Duration::from_millis(500));
    let expected = rig.fake.items;
    rig.subscriber.reset();
    let started = clock::now();
    rig.start_bridge(bridge)?;
    let (mut asked, mut first) = (f64::NEG_INFINITY, true);
    loop {
        rig.check()?;
        let now = clock::now();
        if first && now - asked > 0.05 {
            rig.subscriber.keep_alive("")?;
            asked = now;
        }
        let counts = rig.subscriber.counts();
        first = counts.topics < 5;
        let still = counts.last > 0.0 && now - counts.last > 6.0;
        if counts.topics >= expected || still || now - started > 60.0 {
            break;
        }
        drop(counts);
        thread::sleep(Duration::from_millis(10));
    }
    let counts = rig.subscriber.counts();
    let (topics, took) = (counts.topics, counts.last_new - started);
    drop(counts);
    quiet(rig, SETTLED)?;
    figures.add("start to all values", took * 1e3, Unit::Millis, Target::AtMost(150.0));
    figures.add("topics missing after start", expected.saturating_sub(topics) as f64, Unit::Count, Target::AtMost(0.0));
    figures.add("CPU of the bridge to start", cpu_seconds(rig.bridge_pid()) * 1e3, Unit::Millis, Target::None);
    Ok(())
}

fn rss(rig: &mut Rig, _: &Size, figures: &mut Figures) -> Result<()> {
    figures.add("RSS of the bridge", resident_kb(rig.bridge_pid()) / 1024.0, Unit::Megabytes, Target::AtMost(8.0));
    figures.add("RSS of the broker", resident_kb(rig.broker.pid()) / 1024.0, Unit::Megabytes, Target::None);
    Ok(())
}

fn rss_end(rig: &mut Rig, _: &Size, figures: &mut Figures) -> Result<()> {
    figures.add("RSS of the bridge at the end", resident_kb(rig.bridge_pid()) / 1024.0, Unit::Megabytes, Target::AtMost(8.0));
    Ok(())
}

fn republish(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let (mut times, mut cpus, mut brokers) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.republishes {
        thread::sleep(Duration::from_millis(1200));
        rig.subscriber.reset();
        let before = Cpus::now(rig);
        let asked = rig.subscriber.keep_alive("")?;
        wait_until(Duration::from_secs(20), "full_publish_completed", || Ok(rig.subscriber.counts().completions > 0))?;
        quiet(rig, 0.3)?;
        let used = before.since(rig);
        times.push((rig.subscriber.counts().completed - asked) * 1e3);
        cpus.push(used.bridge * 1e3);
        brokers.push(used.broker * 1e3);
    }
    figures.add("keep-alive to full_publish_completed", crate::report::median(&mut times), Unit::Millis, Target::None);
    figures.add("  CPU of the bridge", crate::report::median(&mut cpus), Unit::Millis, Target::None);
    figures.add("  CPU of the broker", crate::report::median(&mut brokers), Unit::Millis, Target::None);
    Ok(())
}

fn idle(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    rig.subscriber.stay_awake()?;
    quiet(rig, SETTLED)?;
    let (machine, before, started) = (Machine::now(), Cpus::now(rig), clock::now());
    sleep(rig, size.seconds / 2.0)?;
    let (used, took) = (before.since(rig), clock::now() - started);
    let noise = machine.noise_since(used.total);
    figures.add("idle, CPU of the bridge in a second", used.bridge * 1e3 / took, Unit::Millis, Target::AtMost(0.1)).noise(noise);
    figures.add("  of the broker", used.broker * 1e3 / took, Unit::Millis, Target::None);
    Ok(())
}

fn latency(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let load = load(rig, steadily(500.0, size.seconds / 2.0, TEN))?;
    figures.load("500/s x10", load, Target::None, Target::AtMost(2.0));
    Ok(())
}

fn latency_pc(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let load = load(rig, steadily(500.0, size.seconds / 2.0, Style::Properties))?;
    figures.load("500/s PC", load, Target::None, Target::AtMost(2.0));
    Ok(())
}

fn steady(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let load = load(rig, steadily(2000.0, size.seconds, TEN))?;
    figures.load("2,000/s x10", load, Target::AtMost(1.3), Target::None);
    Ok(())
}

fn steady_pc(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let load = load(rig, steadily(2000.0, size.seconds / 2.0, Style::Properties))?;
    figures.load("2,000/s PC", load, Target::AtMost(1.0), Target::None);
    Ok(())
}

fn flat_out(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    rig.pin(false)?;
    let load = load(rig, Emission { rate: None, until: Until::Values(size.flat_out), style: TEN, without: None })?;
    figures.load("flat out x10", load, Target::AtMost(0.9), Target::None);
    rig.pin(true)
}

fn write(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    rig.subscriber.stay_awake()?;
    quiet(rig, 0.6)?;
    rig.subscriber.reset();
    let (machine, before) = (Machine::now(), Cpus::now(rig));
    let trips = rig.subscriber.round_trips(&[model::WRITTEN.to_owned()], size.writes, Duration::from_millis(5))?;
    let noise = machine.noise_since(before.since(rig).total);
    let millis = |share| trips.latency.percentile(share) as f64 / 1e3;
    figures.add("W to N, p50", millis(0.5), Unit::Millis, Target::None);
    figures.add("W to N, p99", millis(0.99), Unit::Millis, Target::AtMost(2.0)).noise(noise);
    figures.add("W without N", trips.missed as f64, Unit::Count, Target::AtMost(0.0));
    Ok(())
}

/// First alone, then while the others change: they must not notice.
fn leave(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let leaver = Leaver::find()?;
    rig.subscriber.stay_awake()?;
    quiet(rig, 0.6)?;
    let (gone, back) = leave_and_return(rig, &leaver)?;
    figures.add(&format!("a service of {} items leaves", leaver.items), gone * 1e3, Unit::Millis, Target::None);
    figures.add("  returns, until all its values are there", back * 1e3, Unit::Millis, Target::None);

    let emission = Emission { without: Some(leaver.index), ..steadily(1000.0, (size.seconds / 4.0).max(4.0), TEN) };
    let running = Running::begin(rig, emission)?;
    sleep(rig, 1.0)?;
    for present in [false, true] {
        if present {
            rig.fake.come_back(leaver.index)?
        } else {
            rig.fake.leave(leaver.index)?
        };
        sleep(rig, 1.0)?;
    }
    let load = running.end(rig, &[])?;
    figures.load("1,000/s x10 of the others meanwhile", load, Target::None, Target::None);
    Ok(())
}

fn hung(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let leaver = Leaver::find()?;
    rig.subscriber.stay_awake()?;
    rig.fake.leave(leaver.index)?;
    quiet(rig, 0.8)?;
    rig.fake.mute(leaver.index, true)?;
    rig.fake.come_back(leaver.index)?;
    sleep(rig, 1.0)?;
    let running = Running::begin(rig, steadily(2000.0, size.seconds / 2.0, TEN))?;
    let load = running.end(rig, &[&leaver])?;
    figures.load("2,000/s x10, one service hung (others)", load, Target::AtMost(1.3), Target::None);
    rig.fake.mute(leaver.index, false)?;
    leave_and_return(rig, &leaver).map(drop)
}

fn flood(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    rig.pin(false)?;
    let emission = steadily(100_000.0, (size.seconds / 3.0).max(3.0), TEN);
    let mut memory = Memory::before(rig);
    let mut running = Running::begin(rig, emission)?;
    sleep(rig, 1.0)?;
    "bench-flood".clone_into(&mut rig.subscriber.counts().echo);
    let asked = rig.subscriber.keep_alive(r#"{"keepalive-options":[{"full-publish-completed-echo":"bench-flood"}]}"#)?;
    while !running.emitted_within(0.2)? {
        memory.sample(rig);
    }
    wait_until(Duration::from_secs(10), "the answer to a keep-alive", || Ok(rig.subscriber.counts().echoed > 0.0))?;
    let answered = rig.subscriber.counts().echoed - asked;
    let load = running.end(rig, &[])?;
    memory.sample(rig);
    figures.add("100,000/s: changes a second reached", load.rate, Unit::Count, Target::None);
    figures.load("100,000/s x10", load, Target::None, Target::None);
    figures.add("  RSS of the bridge grows by", memory.bridge_growth(), Unit::Megabytes, Target::AtMost(2.0));
    figures.add("  keep-alive answered within", answered * 1e3, Unit::Millis, Target::AtMost(1000.0));
    rig.pin(true)
}

fn stopped(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    rig.pin(false)?;
    rig.subscriber.stay_awake()?;
    quiet(rig, 0.6)?;
    let mut memory = Memory::before(rig);
    let mut running = Running::begin(rig, steadily(5000.0, (size.seconds / 3.0).max(4.0), TEN))?;
    sleep(rig, 1.0)?;
    rig.broker.signal(Signal::SIGSTOP)?;
    while !running.emitted_within(0.2)? {
        memory.sample(rig);
    }
    rig.broker.signal(Signal::SIGCONT)?;
    let continued = clock::now();
    let last_values = rig.fake.last_values()?;
    // beyond the limit is a result too, not an error
    let latest = wait_until(Duration::from_secs(20), "the latest values", || {
        memory.sample(rig);
        Ok(rig.subscriber.counts().wrong(&last_values, None) == 0)
    });
    rig.check()?;
    let took = if latest.is_ok() { clock::now() - continued } else { f64::INFINITY };
    let load = running.end(rig, &[])?;
    figures.add("broker stopped under 5,000/s: latest values after", took * 1e3, Unit::Millis, Target::AtMost(5000.0));
    figures.add("  RSS of the bridge grows by", memory.bridge_growth(), Unit::Megabytes, Target::AtMost(2.0));
    figures.add("  RSS of dbus-daemon grows by", memory.bus_growth(), Unit::Megabytes, Target::AtMost(2.0));
    figures.add("  services are kept waiting by", load.behind * 1e3, Unit::Millis, Target::AtMost(100.0));
    figures.add("  wrong last values", load.wrong, Unit::Count, Target::AtMost(0.0));
    rig.pin(true)
}

pub fn steadily(rate: f64, seconds: f64, style: Style) -> Emission {
    Emission { rate: Some(rate), until: Until::Seconds(seconds), style, without: None }
}

pub fn load(rig: &mut Rig, emission: Emission) -> Result<Load> {
    Running::begin(rig, emission)?.end(rig, &[])
}

/// A load that is on its way.
pub struct Running {
    emitting: Receiver<Result<Emitted>>,
    emitted: Option<Emitted>,
    machine: Machine,
    before: Cpus,
}

impl Running {
    pub fn begin(rig: &mut Rig, emission: Emission) -> Result<Self> {
        rig.subscriber.stay_awake()?;
        quiet(rig, 0.6)?;
        rig.subscriber.reset();
        let (machine, before) = (Machine::now(), Cpus::now(rig));
        Ok(Self { emitting: rig.fake.emit(emission)?, emitted: None, machine, before })
    }

    pub fn emitted_within(&mut self, seconds: f64) -> Result<bool> {
        if self.emitted.is_none() {
            match self.emitting.recv_timeout(Duration::from_secs_f64(seconds)) {
                Ok(emitted) => self.emitted = Some(emitted?),
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => bail!("the fake services are gone"),
            }
        }
        Ok(true)
    }

    /// Waits until all is sent and has arrived, or nothing more arrives. What `without` emitted is not expected to.
    pub fn end(mut self, rig: &mut Rig, without: &[&Leaver]) -> Result<Load> {
        let mut awake = clock::now();
        let (mut seen, mut still_since) = (u64::MAX, clock::now());
        let emitted = loop {
            rig.check()?;
            if clock::now() - awake > STAY_AWAKE_EVERY {
                rig.subscriber.stay_awake()?;
                awake = clock::now();
            }
            if self.emitted.is_none() {
                self.emitted_within(0.5)?;
                continue;
            }
            let Some(emitted) = &self.emitted else { continue };
            let counts = rig.subscriber.counts();
            if counts.messages != seen {
                (seen, still_since) = (counts.messages, clock::now());
            }
            if counts.values >= emitted.values || clock::now() - still_since > SETTLED {
                break emitted.clone();
            }
            drop(counts);
            thread::sleep(Duration::from_millis(20));
        };
        let used = self.before.since(rig);
        let (other, steal) = self.machine.noise_since(used.total);
        let last_values = rig.fake.last_values()?;
        let left_out: u64 = without.iter().filter_map(|leaver| emitted.by_service.get(leaver.index)).sum();
        let prefix = without.first().map(|leaver| leaver.topic.as_str());
        let counts = rig.subscriber.counts();
        let arrived = counts.values - prefix.map_or(0, |prefix| counts.values_below(prefix));
        let millis = |micros: u64| micros as f64 / 1e3;
        let per_million = |seconds: f64| seconds / emitted.values as f64 * 1e6;
        Ok(Load {
            cpu: Cpu {
                bridge: per_million(used.bridge),
                broker: per_million(used.broker),
                bus: per_million(used.bus),
                fakes: per_million(used.fakes),
                subscriber: per_million(used.subscriber),
            },
            rate: emitted.values as f64 / (emitted.ended - emitted.started),
            delivered: arrived as f64 / (emitted.values - left_out).max(1) as f64 * 100.0,
            p50: millis(counts.latency.percentile(0.5)),
            p99: millis(counts.latency.percentile(0.99)),
            max: millis(counts.latency.max()),
            lag: (counts.last_value - emitted.ended).max(0.0) * 1e3,
            wrong: counts.wrong(&last_values, prefix) as f64,
            behind: emitted.behind,
            other,
            steal,
        })
    }
}

/// The service that hangs, leaves and returns.
pub struct Leaver {
    pub index: usize,
    items: usize,
    topic: String,
}

impl Leaver {
    pub fn find() -> Result<Self> {
        let house = model::house();
        let (index, service) = house.iter().enumerate().find(|(_, service)| service.name == model::LEAVER).context("no such service")?;
        Ok(Self { index, items: service.items.len(), topic: format!("{}/{}/", service.kind, service.instance) })
    }
}

/// How long until its topics are cleared, and until its values are all there again.
fn leave_and_return(rig: &mut Rig, leaver: &Leaver) -> Result<(f64, f64)> {
    rig.subscriber.reset();
    let left = rig.fake.leave(leaver.index)?;
    wait_or_still(rig, |rig| rig.subscriber.counts().empties >= leaver.items as u64)?;
    let gone = rig.subscriber.counts().last - left;
    quiet(rig, 0.6)?;
    rig.subscriber.reset();
    let returned = rig.fake.come_back(leaver.index)?;
    wait_or_still(rig, |rig| rig.subscriber.counts().topics >= leaver.items)?;
    let back = rig.subscriber.counts().last_new - returned;
    quiet(rig, 0.6)?;
    Ok((gone, back))
}

/// Until `done`, or until nothing arrives any more.
fn wait_or_still(rig: &mut Rig, done: impl Fn(&Rig) -> bool) -> Result<()> {
    let started = clock::now();
    while !done(rig) {
        rig.check()?;
        let last = rig.subscriber.counts().last.max(started);
        if clock::now() - last > SETTLED {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Wakes a bridge that has just been started, until all is published.
pub fn wake(rig: &mut Rig) -> Result<()> {
    let started = clock::now();
    rig.subscriber.reset();
    // one that comes too early is not heard
    while rig.subscriber.counts().completions == 0 {
        rig.check()?;
        if clock::now() - started > 10.0 {
            bail!("no full_publish_completed within 10 s");
        }
        rig.subscriber.keep_alive("")?;
        thread::sleep(Duration::from_millis(100));
    }
    quiet(rig, SETTLED)
}

/// Until no item has arrived for `seconds`.
pub fn quiet(rig: &mut Rig, seconds: f64) -> Result<()> {
    let (mut seen, mut since) = (u64::MAX, clock::now());
    while clock::now() - since < seconds {
        rig.check()?;
        let messages = rig.subscriber.counts().messages;
        if messages != seen {
            (seen, since) = (messages, clock::now());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub fn sleep(rig: &mut Rig, seconds: f64) -> Result<()> {
    let until = clock::now() + seconds;
    while clock::now() < until {
        rig.check()?;
        thread::sleep(Duration::from_secs_f64((until - clock::now()).clamp(0.0, 0.2)));
    }
    Ok(())
}

/// CPU seconds of all parts.
pub struct Cpus {
    pub bridge: f64,
    broker: f64,
    bus: f64,
    fakes: f64,
    subscriber: f64,
    pub total: f64,
}

impl Cpus {
    pub fn now(rig: &Rig) -> Self {
        let (bridge, broker, bus) = (cpu_seconds(rig.bridge_pid()), cpu_seconds(rig.broker.pid()), cpu_seconds(rig.bus.pid()));
        let own: f64 = crate::measure::tasks(std::process::id() as i32).into_iter().map(|(_, task)| thread_cpu_seconds(task)).sum();
        let (fakes, subscriber) = (thread_cpu_seconds(rig.fake.thread_id), thread_cpu_seconds(rig.subscriber.thread_id));
        Self { bridge, broker, bus, fakes, subscriber, total: bridge + broker + bus + own + cpu_seconds(rig.settings_pid()) }
    }

    pub fn since(&self, rig: &Rig) -> Self {
        let now = Self::now(rig);
        Self {
            bridge: now.bridge - self.bridge,
            broker: now.broker - self.broker,
            bus: now.bus - self.bus,
            fakes: now.fakes - self.fakes,
            subscriber: now.subscriber - self.subscriber,
            total: now.total - self.total,
        }
    }
}

/// Resident memory, from a beginning to its peak.
struct Memory {
    bridge: (f64, f64),
    bus: (f64, f64),
}

impl Memory {
    fn before(rig: &Rig) -> Self {
        let (bridge, bus) = (resident_kb(rig.bridge_pid()), resident_kb(rig.bus.pid()));
        Self { bridge: (bridge, bridge), bus: (bus, bus) }
    }

    fn sample(&mut self, rig: &Rig) {
        self.bridge.1 = self.bridge.1.max(resident_kb(rig.bridge_pid()));
        self.bus.1 = self.bus.1.max(resident_kb(rig.bus.pid()));
    }

    fn bridge_growth(&self) -> f64 {
        (self.bridge.1 - self.bridge.0) / 1024.0
    }

    fn bus_growth(&self) -> f64 {
        (self.bus.1 - self.bus.0) / 1024.0
    }
}
