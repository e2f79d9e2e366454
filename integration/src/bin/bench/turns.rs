//! The longest turn of the bridge's loop that each kind of event causes, as the bridge says it in its summary.

use std::sync::atomic::Ordering;

use anyhow::Result;

use crate::cases::{self, Leaver, Size, TEN, quiet, sleep, steadily};
use crate::model;
use crate::report::{Figures, Target, Unit};
use crate::rig::{PORTAL, Rig};

/// What a turn may take, with the 5,000 items of this bench, and with four times as many.
fn most() -> Target {
    Target::AtMost(if model::COPIES.load(Ordering::Relaxed) == 1 { 10.0 } else { 20.0 })
}

/// Messages of a flood.
const FLOOD: usize = 2000;

type Event = fn(&mut Rig) -> Result<()>;

const EVENTS: [(&str, Event); 13] = [
    ("a keep-alive for everything", |rig| rig.subscriber.keep_alive("").map(drop)),
    ("a keep-alive of 1,000 filters", |rig| rig.subscriber.keep_alive(&filters(1000)).map(drop)),
    ("a keep-alive of 85,000 filters", |rig| rig.subscriber.keep_alive(&filters(85_000)).map(drop)),
    ("keep-alives of 1,000 filters, one after the other", |rig| flood(rig, "R", "keepalive", &filters(1000))),
    ("reads of one item, one after the other", |rig| flood(rig, "R", model::WRITTEN, "")),
    ("reads of what is not there", |rig| flood(rig, "R", "battery/99/Soc", "")),
    ("writes of one item, one after the other", |rig| flood(rig, "W", model::WRITTEN, r#"{"value": 5.5}"#)),
    ("writes of 60 KB", |rig| flood(rig, "W", model::WRITTEN, &format!(r#"{{"value": [{}1]}}"#, "1,".repeat(30_000)))),
    ("messages of devices that are not valid", device_flood),
    ("a service leaves and returns", |rig| {
        let leaver = Leaver::find()?;
        rig.fake.leave(leaver.index)?;
        sleep(rig, 0.5)?;
        rig.fake.come_back(leaver.index).map(drop)
    }),
    ("100,000 changes a second", |rig| cases::load(rig, steadily(100_000.0, 3.0, TEN)).map(drop)),
    ("a summary", |rig| rig.longest_turn().map(drop)),
    ("the broker stands still and goes on", |rig| {
        rig.broker.signal(nix::sys::signal::Signal::SIGSTOP)?;
        let loaded = cases::load(rig, steadily(5000.0, 2.0, TEN));
        rig.broker.signal(nix::sys::signal::Signal::SIGCONT)?;
        loaded.map(drop)
    }),
];

pub fn turns(rig: &mut Rig, _: &Size, figures: &mut Figures) -> Result<()> {
    rig.log_level = "info";
    rig.restart_bridge("")?;
    cases::wake(rig)?;
    figures.add("longest turn: start, connection, first keep-alive", rig.longest_turn()?, Unit::Millis, most());
    for (name, event) in EVENTS {
        rig.subscriber.stay_awake()?;
        quiet(rig, 0.6)?;
        rig.longest_turn()?;
        event(rig)?;
        quiet(rig, 1.5)?;
        figures.add(&format!("longest turn: {name}"), rig.longest_turn()?, Unit::Millis, most());
    }
    rig.log_level = "warn";
    rig.restart_bridge("")?;
    cases::wake(rig)
}

/// A payload of so many filters that match nothing, and one that does.
fn filters(count: usize) -> String {
    let filters: Vec<_> = (0..count - 1).map(|n| format!("\"+/{n}/#\"")).collect();
    format!("[{},\"vebus/#\"]", filters.join(","))
}

fn flood(rig: &mut Rig, letter: &str, rest: &str, payload: &str) -> Result<()> {
    let topic = format!("{letter}/{PORTAL}/{rest}");
    (0..FLOOD.min(20_000_000 / (payload.len() + 1))).try_for_each(|_| rig.subscriber.publish(&topic, payload).map(drop))
}

fn device_flood(rig: &mut Rig) -> Result<()> {
    let values: Vec<_> = (0..512).map(|n| format!("\"Made/Up/{n}\": 1")).collect();
    let proxy = format!(r#"{{"topicPath": "W/{PORTAL}/battery/99", "values": {{{}}}}}"#, values.join(","));
    for n in 0..FLOOD / 10 {
        rig.subscriber.publish(&format!("device/bad{n}/Status"), r#"{"connected": 1, "services": {"t1": "thermometer"}}"#)?;
        rig.subscriber.publish(&format!("device/bad{n}/Proxy"), &proxy)?;
    }
    Ok(())
}
