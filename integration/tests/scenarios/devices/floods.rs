//! What everybody may send, as much of it as goes: calls to a registered service are answered meanwhile, and memory stays bounded.

use std::time::{Duration, Instant};

use venus_mqtt_integration::{Client, Device, Item, Items, PORTAL, Part, Rig, Setup, item, items};

use super::{SENSOR, running, sensor};
use crate::{BATTERY, battery};

const BUS_ITEM: &str = "com.victronenergy.BusItem";

/// What 99 of 100 calls to a registered service take at most, whatever else arrives. A debug build takes some five times as long for
/// everything.
const P99: Duration = Duration::from_millis(if cfg!(debug_assertions) { 250 } else { 50 });

type Flood = fn(&Rig, &Device);

/// Each input, far more of it than anyone needs.
const FLOODS: [(&str, Flood); 9] = [
    ("keep-alives of 1,000 filters", |_, device| repeat(200, || device.mqtt.keepalive(filters(1000)))),
    ("keep-alives of 20,000 filters", |_, device| repeat(20, || device.mqtt.keepalive(filters(20_000)))),
    ("keep-alives for everything", |_, device| repeat(2000, || device.mqtt.keepalive(""))),
    ("large writes to a service", |_, device| repeat(100, || device.mqtt.write("battery/512/Large", numbers()))),
    ("writes to no service", |_, device| repeat(2000, || device.mqtt.write("battery/9/Soc", r#"{"value": 1}"#))),
    ("reads of all items of a service", |_, device| repeat(500, || device.mqtt.read("battery/512"))),
    ("messages of devices that are not valid", |_, device| {
        let values: Vec<_> = (0..512).map(|n| format!("\"Made/Up/{n}\": 1")).collect();
        let payload = format!("{{\"t1\": {{{}}}}}", values.join(", "));
        repeat(100, || {
            device.proxy(&payload);
            device.status(r#"{"clientId": "fe001", "connected": 1, "services": {"t1": "thermometer"}}"#);
        });
    }),
    ("changes", |rig, _| changes(rig, 3000, Duration::ZERO)),
    ("5,000 changes a second", |rig, _| changes(rig, 1000, Duration::from_millis(2))),
];

/// Signals of ten changes each.
fn changes(rig: &Rig, signals: u32, pause: Duration) {
    let paths: Vec<String> = (0..10).map(|n| format!("/Item/{n}")).collect();
    rig.fake().flood(BATTERY, &paths, signals, pause);
}

fn repeat(times: usize, send: impl Fn()) {
    (0..times).for_each(|_| send());
}

fn filters(count: usize) -> String {
    let filters: Vec<_> = (0..count).map(|n| format!("\"+/{n}/#\"")).collect();
    format!("[{}]", filters.join(","))
}

fn numbers() -> String {
    format!("{{\"value\": [{}1]}}", "1,".repeat(32_000))
}

#[test]
fn calls_are_answered_during_floods() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let more: Items = (0..5000).map(|n| (format!("/Item/{n}"), item(1).0)).collect();
    rig.fake().add(BATTERY, battery().into_iter().chain(more).collect());
    let (device, _) = sensor(&rig);
    device.mqtt.keepalive("");
    device.mqtt.completed();
    for (what, flood) in FLOODS {
        // other scenarios run on this machine, too: one quiet spell is enough
        let mut spells = Vec::new();
        while spells.last().is_none_or(|p99| *p99 > P99) {
            assert!(spells.len() < 10, "{what}: 99 of 100 calls were answered within {spells:?}; {P99:?} are allowed");
            spells.push(slow_answers(&rig, &device, flood));
        }
    }
}

/// Time that the loop's thread has run, and time that it has waited for a processor, in nanoseconds. Zero where the kernel does not say.
fn scheduled(rig: &Rig) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{}/schedstat", rig.pid(Part::Bridge))).unwrap_or_default();
    let mut numbers = text.split(' ').map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0.0), numbers.next().unwrap_or(0.0))
}

/// The time within which 99 of 100 calls are answered during a flood, scaled by the share of it that the bridge had a processor.
fn slow_answers(rig: &Rig, device: &Device, flood: Flood) -> Duration {
    let before = scheduled(rig);
    flood(rig, device);
    let mut took: Vec<Duration> = (0..200_u32)
        .map(|n| {
            let asked = Instant::now();
            match n % 4 {
                0 => drop(rig.fake().value(SENSOR, "/Temperature").expect("it answers")),
                1 => assert_eq!(rig.fake().set_value(SENSOR, "/Temperature", f64::from(n)).expect("it answers"), 0),
                2 => drop(rig.fake().call::<Items>(SENSOR, "/", BUS_ITEM, "GetItems", &()).expect("it answers")),
                _ => drop(rig.fake().value(SENSOR, "/").expect("it answers")),
            }
            asked.elapsed()
        })
        .collect();
    took.sort();
    let after = scheduled(rig);
    let (ran, waited) = (after.0 - before.0, after.1 - before.1);
    let share = if ran > 0.0 { ran / (ran + waited) } else { 1.0 };
    // wait until the flood has been handled: the next measurement begins without it
    device.mqtt.mark();
    device.mqtt.read("temperature/1/Temperature");
    device.mqtt.expect_topic(&device.mqtt.topic('N', "temperature/1/Temperature"));
    took[197].mul_f64(share)
}

/// For a minute, the largest message of every kind at once, again and again: the process stays below what the packages allow it.
#[test]
fn memory_stays_bounded_under_the_largest_messages() {
    const MINUTE: Duration = Duration::from_secs(60);
    let rig = running(Setup::devices().top("log_level = \"info\""));
    rig.fake().add(BATTERY, battery());
    let (device, _) = sensor(&rig);
    let client = rig.client();
    client.subscribe(&client.topic('N', "temperature/#"));
    let began = Instant::now();
    let (mut round, mut most) = (0, 0);
    while began.elapsed() < MINUTE {
        largest_of_all(&rig, &client, &device, round);
        most = most.max(rig.rss(Part::Bridge));
        round += 1;
    }
    let allowed = u64::try_from(venus_mqtt::memory::ALLOWED / 1024).expect("it fits");
    assert!(round > 0 && most < allowed, "{most} KiB after {round} rounds, {allowed} allowed");
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 11.5}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 11.5");
}

fn largest_of_all(rig: &Rig, client: &Client, device: &Device, round: u32) {
    let large = numbers();
    let text = "x".repeat(64_000);
    for n in 0..100 {
        client.write(&format!("battery/512/Large/{n}"), &large);
        client.write(&format!("battery/512/Text/{n}"), format!("{{\"value\": \"{text}\"}}"));
        client.read("battery/512");
        client.keepalive(filters(1000));
        client.keepalive(format!("{{\"keepalive-options\": [{{\"full-publish-completed-echo\": \"{n}{}\"}}]}}", "e".repeat(250)));
        device.proxy(format!("{{\"topicPath\": \"W/{PORTAL}/battery/512\", \"values\": {{\"A{n}\": \"{text}\"}}}}"));
        client.publish(&format!("device/evil{n}/Status"), format!("{{\"connected\": 1, \"x\": \"{}\"}}", "x".repeat(4000)));
    }
    let entries = (0..20).map(|n| (format!("/Value/{round}/{n}"), Item::bare().with("Value", "x".repeat(200 * 1024)).0));
    rig.fake().signal_only(BATTERY, entries.collect());
    rig.fake().signal_only(BATTERY, items([("/Bytes", Item::bare().with("Value", vec![1_u8; 1 << 20]))]));
    // all of it has been read by the bridge
    client.mark();
    client.read("temperature/1/Temperature");
    client.expect_topic(&client.topic('N', "temperature/1/Temperature"));
}
