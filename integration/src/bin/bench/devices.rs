//! Devices that register themselves: what their services cost in memory and time, and whether they cost others anything.
//!
//! It needs a bridge that has served nothing before, and the name of localsettings, which one of the fake services has in the other
//! measurements: both are exchanged, so this is the last measurement of a run.

use std::collections::HashSet;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::built;
use crate::cases::{self, Cpus, Running, SETTLED, Size, TEN, quiet, sleep, steadily};
use crate::clock;
use crate::connection::Connection;
use crate::fake::INTERFACE;
use crate::histogram::Histogram;
use crate::measure::{Machine, open_files, resident_kb};
use crate::model;
use crate::report::{Figures, Load, Target, Unit};
use crate::rig::{Rig, wait_until};
use crate::wire::{self, Head, Writer};

const SETTINGS: &str = "com.victronenergy.settings";
const SETTINGS_INTERFACE: &str = "com.victronenergy.Settings";

/// What only names of registered services have in them.
const REGISTERED: &str = ".mqtt_";

const DEVICES: usize = 64;

/// What each device registers: the key of the service, its type, and an item that takes any number. A switch has none without an output.
const SERVICES: [(&str, &str, Option<&str>); 8] = [
    ("t1", "temperature", Some("/Temperature")),
    ("tk1", "tank", Some("/Remaining")),
    ("g1", "grid", Some("/Ac/Power")),
    ("pv1", "pvinverter", Some("/Ac/Power")),
    ("ev1", "evcharger", Some("/Current")),
    ("b1", "battery", Some("/Dc/0/Power")),
    ("gps1", "gps", Some("/Altitude")),
    ("sw1", "switch", None),
];

/// Values fall asleep so soon that the run does not wait long for it, and late enough for each load.
const KEEP_ALIVE: u32 = 12;
const STAY_AWAKE_EVERY: f64 = 5.0;

/// Between two writes or calls: what was sent before is done with.
const GAP: Duration = Duration::from_millis(1);

/// Cycles before memory, files and connections are counted: what is kept for ever is there by then.
const WARM_UP: usize = 50;

pub fn devices(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    let mut bus = Bus::connect(rig)?;
    exchange(rig, &mut bus)?;
    let before = resident_kb(rig.bridge_pid());
    let files = (bus.connection.connections()?, open_files(rig.bridge_pid()));
    let plain = cases::load(rig, steadily(2000.0, size.seconds / 5.0, TEN))?;
    figures.load("2,000/s x10, no devices", plain, Target::AtMost(1.3), Target::None);

    let items = register_all(rig, &mut bus, before, figures)?;
    writes(rig, &mut bus, &items, size, figures)?;
    calls(rig, &mut bus, &items, size, figures)?;
    beside(rig, &plain, size, figures)?;
    idle(rig, size, figures)?;
    leave_all(rig, &mut bus, before, files, figures)?;
    cycles(rig, &mut bus, size, figures)
}

/// localsettings takes the place of the fake settings, and a bridge that knows nothing that of the other.
fn exchange(rig: &mut Rig, bus: &mut Bus) -> Result<()> {
    let program = match std::env::var_os("VENUS_SETTINGS_BIN") {
        Some(program) => PathBuf::from(program),
        None => built("venus-mqtt-integration", "fake-localsettings")?,
    };
    let house = model::house();
    rig.fake.leave(house.iter().position(|service| service.kind == "settings").context("no settings among the fakes")?)?;
    rig.start_settings(&program)?;
    bus.wait_for(|owned| owned.contains(SETTINGS))?;
    // what is there has its numbers from localsettings too, or registered services would be given the same
    for service in house.iter().filter(|service| service.instance > 0) {
        bus.store_instance(&format!("bench_{}_{}", service.kind, service.instance), service.kind, service.instance)?;
    }
    // more than a bus has room for, unless it is this one
    let file = rig.folder().join("devices.toml");
    std::fs::write(&file, format!("[devices]\nmax_services_total = {}\n", DEVICES * SERVICES.len()))?;
    rig.restart_bridge(&format!("--keepalive-interval {KEEP_ALIVE} --config {}", file.display()))?;
    cases::wake(rig)
}

/// All devices at once; the memory is that of the bridge when everything of theirs has been published.
fn register_all(rig: &mut Rig, bus: &mut Bus, before: f64, figures: &mut Figures) -> Result<Vec<Item>> {
    rig.subscriber.stay_awake()?;
    quiet(rig, 0.6)?;
    rig.subscriber.reset();
    let (machine, cpus, first) = (Machine::now(), Cpus::now(rig), clock::now());
    for device in 0..DEVICES {
        publish_status(rig, device, true)?;
    }
    wait_until(Duration::from_secs(30), "the answers to all devices", || Ok(rig.subscriber.counts().answers.len() >= DEVICES))?;
    let (items, last) = registered(rig)?;
    let used = cpus.since(rig);
    let noise = machine.noise_since(used.total);
    bus.wait_for(|owned| registered_among(owned) >= DEVICES * SERVICES.len())?;
    quiet(rig, 0.6)?;
    rig.subscriber.reset();
    rig.subscriber.keep_alive("")?;
    wait_until(Duration::from_secs(20), "full_publish_completed", || Ok(rig.subscriber.counts().completions > 0))?;
    quiet(rig, 0.6)?;
    let services = (DEVICES * SERVICES.len()) as f64;
    let each = (resident_kb(rig.bridge_pid()) - before) / services;
    figures.add("64 x 8 services register, first Status to last DBus", (last - first) * 1e3, Unit::Millis, Target::None).noise(noise);
    figures.add("  CPU of the bridge", used.bridge * 1e3, Unit::Millis, Target::None);
    figures.add("  topics of the system with them", rig.subscriber.counts().topics as f64, Unit::Count, Target::None);
    figures.add("  RSS of the bridge for each registered service", each, Unit::Kilobytes, Target::AtMost(60.0));
    Ok(items)
}

/// An item of a registered service.
struct Item {
    /// Below `N/<portal>/`.
    topic: String,
    service: String,
    path: &'static str,
}

/// What the answers say is registered, the services of all devices in turn; and when the last answer came.
fn registered(rig: &Rig) -> Result<(Vec<Item>, f64)> {
    let counts = rig.subscriber.counts();
    let mut items = Vec::new();
    let mut last = 0.0_f64;
    for answer in &counts.answers {
        let client = answer.topic.strip_prefix("device/").and_then(|rest| rest.strip_suffix("/DBus"));
        let client = client.with_context(|| format!("{}: {}", answer.topic, String::from_utf8_lossy(&answer.payload)))?;
        items.extend(items_of(client, &answer.payload)?);
        last = last.max(answer.at);
    }
    Ok((items, last))
}

fn items_of(client: &str, answer: &[u8]) -> Result<Vec<Item>> {
    let answer: serde_json::Value = serde_json::from_slice(answer).with_context(|| format!("the answer to {client} is no JSON"))?;
    let mut items = Vec::new();
    for (key, kind, path) in SERVICES {
        let instance = answer.pointer(&format!("/deviceInstance/{key}")).and_then(serde_json::Value::as_u64);
        let instance = instance.with_context(|| format!("the answer to {client} has no instance of {key}"))?;
        let Some(path) = path else { continue };
        items.push(Item { topic: format!("{kind}/{instance}{path}"), service: service_name(client, key, kind), path });
    }
    Ok(items)
}

fn service_name(client: &str, key: &str, kind: &str) -> String {
    format!("com.victronenergy.{kind}{REGISTERED}{client}_{key}")
}

/// From both sides: a device sends a value, and somebody on the bus changes one.
fn writes(rig: &mut Rig, bus: &mut Bus, items: &[Item], size: &Size, figures: &mut Figures) -> Result<()> {
    rig.subscriber.stay_awake()?;
    quiet(rig, 0.6)?;
    rig.subscriber.reset();
    let (machine, before) = (Machine::now(), Cpus::now(rig));
    let topics: Vec<_> = items.iter().map(|item| item.topic.clone()).collect();
    let trips = rig.subscriber.round_trips(&topics, size.device_writes, GAP)?;
    let noise = machine.noise_since(before.since(rig).total);
    figures.add("W to N of a registered service, p50", millis(trips.latency.percentile(0.5)), Unit::Millis, Target::None);
    figures.add("  p99", millis(trips.latency.percentile(0.99)), Unit::Millis, Target::AtMost(2.0)).noise(noise);
    figures.add("  W without N", trips.missed as f64, Unit::Count, Target::AtMost(0.0));

    rig.subscriber.stay_awake()?;
    quiet(rig, 0.6)?;
    rig.subscriber.reset();
    let (machine, before) = (Machine::now(), Cpus::now(rig));
    for item in items.iter().cycle().take(size.device_writes) {
        bus.set_value(item, clock::stamped())?;
        // the answer comes before the N
        thread::sleep(2 * GAP);
    }
    quiet(rig, 0.3)?;
    let noise = machine.noise_since(before.since(rig).total);
    let counts = rig.subscriber.counts();
    let lost = (size.device_writes as u64).saturating_sub(counts.values);
    figures.add("SetValue to N of a registered service, p50", millis(counts.latency.percentile(0.5)), Unit::Millis, Target::None);
    figures.add("  p99", millis(counts.latency.percentile(0.99)), Unit::Millis, Target::AtMost(2.0)).noise(noise);
    figures.add("  SetValue without N", lost as f64, Unit::Count, Target::AtMost(0.0));
    Ok(())
}

/// Whoever calls a registered service is answered soon, whatever else happens on the bus.
fn calls(rig: &mut Rig, bus: &mut Bus, items: &[Item], size: &Size, figures: &mut Figures) -> Result<()> {
    let mut running = Running::begin(rig, steadily(5000.0, size.seconds / 5.0, TEN))?;
    let (mut values, mut all) = (Histogram::new(), Histogram::new());
    let mut items = items.iter().cycle();
    while !running.emitted_within(GAP.as_secs_f64())? {
        let Some(item) = items.next() else { break };
        values.add(bus.get_value(item)?);
        all.add(bus.get_items(item)?);
    }
    let load = running.end(rig, &[])?;
    for (what, latency) in [("GetValue", values), ("GetItems", all)] {
        let name = format!("5,000/s: answer of a registered service to {what}, p99");
        figures.add(&name, millis(latency.percentile(0.99)), Unit::Millis, Target::AtMost(50.0)).noise((load.other, load.steal));
        figures.add("  max", millis(latency.max()), Unit::Millis, Target::AtMost(50.0));
    }
    figures.load("5,000/s x10, while services are called", load, Target::None, Target::None);
    Ok(())
}

/// Registered services in which nothing changes must not cost the others anything.
fn beside(rig: &mut Rig, plain: &Load, size: &Size, figures: &mut Figures) -> Result<()> {
    let load = cases::load(rig, steadily(2000.0, size.seconds / 5.0, TEN))?;
    figures.load("2,000/s x10, beside 64 x 8 services", load, Target::AtMost(1.3), Target::None);
    let multiple = |pick: fn(&Load) -> f64| pick(&load) / pick(plain);
    figures.add("  CPU of the bridge, as a multiple of that without devices", multiple(|load| load.cpu.bridge), Unit::Ratio, Target::None);
    figures.add("  of dbus-daemon", multiple(|load| load.cpu.bus), Unit::Ratio, Target::None);
    Ok(())
}

fn idle(rig: &mut Rig, size: &Size, figures: &mut Figures) -> Result<()> {
    rig.subscriber.reset();
    let asleep = Duration::from_secs(u64::from(KEEP_ALIVE) + 5);
    wait_until(asleep, "the end of the keep-alive", || Ok(rig.subscriber.counts().empties > 0))?;
    quiet(rig, SETTLED)?;
    let (machine, before, started) = (Machine::now(), Cpus::now(rig), clock::now());
    sleep(rig, size.seconds / 4.0)?;
    let (used, took) = (before.since(rig), clock::now() - started);
    let noise = machine.noise_since(used.total);
    figures
        .add("asleep with 64 x 8 services, CPU of the bridge in a second", used.bridge * 1e3 / took, Unit::Millis, Target::AtMost(0.1))
        .noise(noise);
    Ok(())
}

fn leave_all(rig: &mut Rig, bus: &mut Bus, before: f64, files: (usize, usize), figures: &mut Figures) -> Result<()> {
    let first = clock::now();
    for device in 0..DEVICES {
        publish_status(rig, device, false)?;
    }
    bus.wait_for(|owned| registered_among(owned) == 0)?;
    let took = clock::now() - first;
    let left = bus.settled(rig)?;
    figures.add("64 x 8 services leave, first Status to last name", took * 1e3, Unit::Millis, Target::None);
    figures.add("  connections to the bus left behind", left as f64 - files.0 as f64, Unit::Count, Target::AtMost(0.0));
    figures.add("  open files left behind", open_files(rig.bridge_pid()) as f64 - files.1 as f64, Unit::Count, Target::AtMost(0.0));
    let kept = (resident_kb(rig.bridge_pid()) - before) / 1024.0;
    figures.add("  RSS of the bridge above that before they came", kept, Unit::Megabytes, Target::None);
    Ok(())
}

/// One device comes and goes, awake: nothing may stay behind.
fn cycles(rig: &mut Rig, bus: &mut Bus, size: &Size, figures: &mut Figures) -> Result<()> {
    let mut awake = f64::NEG_INFINITY;
    let mut run = |rig: &mut Rig, bus: &mut Bus, count: usize| -> Result<f64> {
        let started = clock::now();
        for _ in 0..count {
            if clock::now() - awake > STAY_AWAKE_EVERY {
                rig.subscriber.stay_awake()?;
                rig.check()?;
                awake = clock::now();
            }
            rig.subscriber.counts().answers.clear();
            publish_status(rig, 0, true)?;
            bus.wait_for(|owned| registered_among(owned) >= SERVICES.len())?;
            while rig.subscriber.counts().answers.is_empty() {
                thread::sleep(Duration::from_micros(100));
                if clock::now() - awake > 2.0 * STAY_AWAKE_EVERY {
                    bail!("a device that came back was not answered");
                }
            }
            registered(rig)?;
            publish_status(rig, 0, false)?;
            bus.wait_for(|owned| registered_among(owned) == 0)?;
        }
        Ok(clock::now() - started)
    };
    run(rig, bus, WARM_UP)?;
    let count = |rig: &mut Rig, bus: &mut Bus| -> Result<(f64, f64, f64)> {
        let connections = bus.settled(rig)?;
        Ok((connections as f64, open_files(rig.bridge_pid()) as f64, resident_kb(rig.bridge_pid())))
    };
    let before = count(rig, bus)?;
    let cpus = Cpus::now(rig);
    let took = run(rig, bus, size.cycles)?;
    let used = cpus.since(rig).bridge / size.cycles as f64;
    let after = count(rig, bus)?;
    let name = format!("{} times a device with 8 services comes and goes, times a second", size.cycles);
    figures.add(&name, size.cycles as f64 / took, Unit::Count, Target::None);
    figures.add("  CPU of the bridge each", used * 1e3, Unit::Millis, Target::None);
    figures.add("  connections to the bus left behind", after.0 - before.0, Unit::Count, Target::AtMost(0.0));
    figures.add("  open files left behind", after.1 - before.1, Unit::Count, Target::AtMost(0.0));
    figures.add("  RSS of the bridge grows by", (after.2 - before.2) / 1024.0, Unit::Megabytes, Target::AtMost(0.5));
    Ok(())
}

fn publish_status(rig: &Rig, device: usize, connected: bool) -> Result<f64> {
    let client = format!("bench{device:02}");
    rig.subscriber.publish(&format!("device/{client}/Status"), &status(&client, connected))
}

fn status(client: &str, connected: bool) -> String {
    let services: Vec<_> = SERVICES.iter().filter(|_| connected).map(|(key, kind, _)| format!("\"{key}\": \"{kind}\"")).collect();
    format!(
        r#"{{"clientId": "{client}", "connected": {}, "version": "v1.0", "services": {{{}}}}}"#,
        u8::from(connected),
        services.join(", ")
    )
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

/// Somebody on the bus, who calls registered services and sees them come and go.
struct Bus {
    connection: Connection,
    /// Names that somebody has taken since it listens.
    owned: HashSet<String>,
}

const OWNERS: &str = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0namespace='com.victronenergy'";

impl Bus {
    fn connect(rig: &Rig) -> Result<Self> {
        let mut connection = rig.connect()?;
        connection.listen(OWNERS)?;
        Ok(Self { connection, owned: HashSet::new() })
    }

    /// Waits until the names are as `done` wants them.
    fn wait_for(&mut self, done: impl Fn(&HashSet<String>) -> bool) -> Result<()> {
        loop {
            self.take()?;
            if done(&self.owned) {
                return Ok(());
            }
            self.connection.wait_for_more().with_context(|| {
                let mut there: Vec<_> = self.owned.iter().filter(|name| name.contains(REGISTERED)).map(String::as_str).collect();
                there.sort_unstable();
                format!("{} registered services are there: {}", there.len(), there.join(" "))
            })?;
        }
    }

    /// The connections there are, when there are no fewer a moment later.
    fn settled(&mut self, rig: &mut Rig) -> Result<usize> {
        quiet(rig, 1.0)?;
        self.connection.connections()
    }

    /// Microseconds until the answer to GetValue on the item.
    fn get_value(&mut self, item: &Item) -> Result<u64> {
        self.timed(&item.service, item.path, "GetValue")
    }

    /// Microseconds until the answer to GetItems of the item's service.
    fn get_items(&mut self, item: &Item) -> Result<u64> {
        self.timed(&item.service, "/", "GetItems")
    }

    fn set_value(&mut self, item: &Item, value: f64) -> Result<()> {
        let mut body = Writer::default();
        body.signature("d");
        body.double(value);
        let reply = self.connection.call(call(&item.service, item.path, "SetValue", "v"), &body.bytes)?;
        match wire::leading_u32(wire::parse(&reply)?.body) {
            Some(0) => Ok(()),
            code => bail!("{} {} refuses {value}: {code:?}", item.service, item.path),
        }
    }

    /// With localsettings, as the program of a real service does.
    fn store_instance(&mut self, device: &str, kind: &str, instance: i32) -> Result<()> {
        let mut body = Writer::default();
        body.string(&format!("Devices/{device}"));
        body.string("ClassAndVrmInstance");
        body.signature("s");
        body.string(&format!("{kind}:{instance}"));
        body.string("s");
        for _ in ["min", "max"] {
            body.signature("i");
            body.i32(0);
        }
        let head = Head { interface: Some(SETTINGS_INTERFACE), ..call(SETTINGS, "/Settings", "AddSetting", "ssvsvv") };
        let reply = self.connection.call(head, &body.bytes)?;
        match wire::leading_u32(wire::parse(&reply)?.body) {
            Some(0) => Ok(()),
            code => bail!("localsettings does not store {kind}:{instance} for {device}: {code:?}"),
        }
    }

    fn timed(&mut self, service: &str, path: &str, member: &str) -> Result<u64> {
        let asked = clock::now();
        self.connection.call(call(service, path, member, ""), &[])?;
        Ok(((clock::now() - asked) * 1e6) as u64)
    }

    fn take(&mut self) -> Result<()> {
        for bytes in self.connection.receive()? {
            let signal = wire::parse(&bytes)?;
            if (signal.kind, signal.member) != (wire::SIGNAL, "NameOwnerChanged") {
                continue;
            }
            let [name, _, owner] = wire::leading_strings(signal.body)?;
            if owner.is_empty() {
                self.owned.remove(name);
            } else {
                self.owned.insert(name.to_owned());
            }
        }
        Ok(())
    }
}

fn registered_among(names: &HashSet<String>) -> usize {
    names.iter().filter(|name| name.contains(REGISTERED)).count()
}

fn call<'a>(service: &'a str, path: &'a str, member: &'a str, signature: &'a str) -> Head<'a> {
    Head {
        kind: wire::CALL,
        path: Some(path),
        interface: Some(INTERFACE),
        member: Some(member),
        destination: Some(service),
        signature,
        ..Head::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_lists_the_services_in_their_order_and_is_as_short_as_it_must_be() {
        let text = status("bench07", true);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["clientId"].as_str(), json["connected"].as_u64()), (Some("bench07"), Some(1)));
        assert_eq!(json["services"].as_object().unwrap().len(), SERVICES.len());
        assert!(text.find("\"t1\"") < text.find("\"sw1\"") && text.len() < 4096, "{text}");
        let json: serde_json::Value = serde_json::from_str(&status("bench07", false)).unwrap();
        assert_eq!((json["connected"].as_u64(), json["services"].as_object().unwrap().len()), (Some(0), 0));
    }

    #[test]
    fn items_have_the_instances_of_the_answer() {
        let answer = br#"{"deviceInstance": {"t1": 5, "tk1": 2, "g1": 30, "pv1": 20, "ev1": 40, "b1": 512, "gps1": 0, "sw1": 1}}"#;
        let items = items_of("bench07", answer).unwrap();
        assert_eq!(items.len(), 7);
        assert_eq!((items[0].topic.as_str(), items[5].topic.as_str()), ("temperature/5/Temperature", "battery/512/Dc/0/Power"));
        assert_eq!(items[1].service, "com.victronenergy.tank.mqtt_bench07_tk1");
        for wrong in [&b"{}"[..], br#"{"deviceInstance": {"t1": 5}}"#, b"no"] {
            assert!(items_of("bench07", wrong).is_err());
        }
    }
}
