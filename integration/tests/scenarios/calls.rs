//! Calls to services that hang, that are too deep, or that answer with too much: nothing else is held up.

use nix::sys::signal::Signal;
use venus_mqtt_integration::{Client, Item, Part, Rig, Setup, item, items};

use crate::{BATTERY, TANK, battery, tank};

/// Six services, that of battery 600 + n being the nth.
fn six(rig: &Rig) -> Vec<String> {
    let names: Vec<String> = (0..6).map(|n| format!("com.victronenergy.battery.b{n}")).collect();
    for (n, name) in (600..).zip(&names) {
        rig.fake().add(name, items([("/DeviceInstance", item(n)), ("/Soc", item(1.0))]));
    }
    names
}

/// A write to a service that answers, a read of it, and the scan of a new one.
fn others_work(rig: &Rig, mqtt: &Client) {
    mqtt.write("tank/3/Level", r#"{"value": 0.25}"#);
    rig.fake().await_call(TANK, "SetValue /Level d 0.25");
    rig.fake().add(BATTERY, battery());
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    mqtt.mark();
    mqtt.read("tank/3/Level");
    mqtt.n("tank/3/Level", r#"{"value":0.25}"#);
}

/// dbus-daemon has 128 places for calls that are not answered: six services that hang do not get all of them.
#[test]
fn services_that_hang_hold_up_no_others() {
    let mut rig = Rig::new(Setup::default());
    let six = six(&rig);
    rig.fake().add(TANK, tank());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.completed();
    six.iter().for_each(|name| rig.fake().behave(name, "*", "never"));
    for n in 600..606 {
        (0..16).for_each(|path| mqtt.read(&format!("battery/{n}/P{path}")));
    }
    others_work(&rig, &mqtt);
    rig.signal(Part::Bridge, Signal::SIGUSR1);
    let line = rig.await_log(Part::Bridge, "calls to services: ");
    let held = line.split("calls to services: ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|count| count.parse().ok());
    // two to each that hangs, and perhaps the read
    assert!(matches!(held, Some(12..=13)), "{line}");
}

/// An object is three containers on the bus, which carries 64.
#[test]
fn what_is_nested_too_deep_is_refused() {
    let mut rig = Rig::new(Setup::default());
    six(&rig);
    let more = items([("/Objects", item(0)), ("/Arrays", item(0)), ("/Mixed", item(0))]);
    rig.fake().add(TANK, tank().into_iter().chain(more).collect());
    rig.start_bridge();
    let mqtt = rig.listener();
    let nested = |depth: usize| format!("{{\"value\":{}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth));
    for n in 600..606 {
        (0..16).for_each(|path| mqtt.write(&format!("battery/{n}/P{path}"), nested(22)));
    }
    rig.await_log(Part::Bridge, "nested deeper than D-Bus carries");
    others_work(&rig, &mqtt);
    // as deep as it goes, that it arrives is seen from the answer
    rig.fake().behave(TANK, "SetValue", "refuse:7");
    for (path, value) in [
        ("Objects", nested(21)),
        ("Arrays", format!("{{\"value\":{}1{}}}", "[".repeat(32), "]".repeat(32))),
        ("Mixed", format!("{{\"value\":{}1{}}}", "[true,".repeat(31), "]".repeat(31))),
    ] {
        mqtt.write(&format!("tank/3/{path}"), value);
        rig.await_log(Part::Bridge, &format!("a write of /{path} to {TANK}: it refuses it (SetValue gives 7)"));
    }
}

/// Memory does not grow with what is not shown, and the other items are.
#[test]
fn what_is_too_large_is_shown_as_null() {
    let mut rig = Rig::new(Setup::default());
    let large = Item::bare().with("Value", vec![1_u8; 1 << 20]);
    let text = Item::bare().with("Value", "x".repeat(5 << 20));
    rig.fake().add(BATTERY, items([("/DeviceInstance", item(512)), ("/Large", large), ("/Text", text), ("/Soc", item(87.0))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    for path in ["Large", "Text"] {
        rig.await_log(Part::Bridge, &format!("/{path} of {BATTERY} has a value of over 224 KiB"));
    }
    mqtt.completed();
    for path in ["Large", "Text"] {
        mqtt.mark();
        mqtt.read(&format!("battery/512/{path}"));
        mqtt.n(&format!("battery/512/{path}"), r#"{"value":null}"#);
    }
    let rss = rig.rss(Part::Bridge);
    assert!(rss < 60 * 1024, "{rss} KiB");
}
