//! Section 2: what is published, when, and what never is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use venus_mqtt_integration::{
    Item, PORTAL, Part, Rig, Setup,
    fake::SETTINGS,
    item, items,
    items::{Entry, owned},
};

use crate::{BATTERY, TANK, battery, tank};

const SYSTEM: &str = "com.victronenergy.system";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The number of `{"value": n}`.
fn seconds(text: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    value["value"].as_u64().unwrap_or_else(|| panic!("{text}: no integer"))
}

#[test]
fn asleep_nothing_is_published() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    rig.start_bridge();
    rig.fake().items_changed(BATTERY, items([("/Soc", item(50.0))]));
    rig.fake().properties_changed(BATTERY, items([("/Soc", item(51.0))]));
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":51.0}"#);
    assert_eq!(mqtt.items().len(), 1, "{:?}", mqtt.since());
    assert_eq!(mqtt.on(&mqtt.topic('N', "battery/512/Soc")).len(), 1, "{:?}", mqtt.since());
}

#[test]
fn changes_of_both_kinds_are_published_in_order() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    mqtt.mark();
    // each waits for the one before, so that none may be joined with the next
    for n in 0..20 {
        let value = f64::from(n) + 0.5;
        if n % 2 == 0 {
            rig.fake().items_changed(BATTERY, items([("/Soc", item(value)), ("/Dc/0/Voltage", item(value))]));
        } else {
            rig.fake().properties_changed(BATTERY, items([("/Soc", item(value)), ("/Dc/0/Voltage", item(value))]));
        }
        mqtt.n("battery/512/Soc", &format!("{{\"value\":{value:?}}}"));
        mqtt.n("battery/512/Dc/0/Voltage", &format!("{{\"value\":{value:?}}}"));
    }
    assert_eq!(mqtt.on(&mqtt.topic('N', "battery/512/Soc")).len(), 20);
}

/// An item is the same whichever message names it, and however its path is written.
#[test]
fn a_path_without_its_slash() {
    let mut rig = Rig::new(Setup::default());
    let sensor = "com.victronenergy.temperature.virtual_a";
    rig.fake().add(sensor, items([("DeviceInstance", item(24)), ("Temperature", item(10.0)), ("/Dc/0/Voltage", item(12.5))]));
    rig.fake().behave(sensor, "keys", "slash");
    let mqtt = rig.awake();
    mqtt.n("temperature/24/Temperature", r#"{"value":10.0}"#);
    rig.fake().signal_only(sensor, items([("Temperature", item(11.0)), ("Dc/0/Voltage", item(12.6))]));
    mqtt.n("temperature/24/Temperature", r#"{"value":11.0}"#);
    mqtt.n("temperature/24/Dc/0/Voltage", r#"{"value":12.6}"#);
    rig.fake().signal_only(sensor, items([("Temperature", Item::bare().with("Min", -40.0)), ("//Dc/0//Voltage/", item(12.7))]));
    mqtt.n("temperature/24/Temperature", r#"{"value":11.0,"min":-40.0}"#);
    mqtt.n("temperature/24/Dc/0/Voltage", r#"{"value":12.7}"#);
    mqtt.read("temperature/24/Dc");
    mqtt.n("temperature/24/Dc/0/Voltage", r#"{"value":12.5}"#);
    // what can be no path is left out with a line
    rig.fake().signal_only(sensor, items([("Air-Quality", item(1)), ("Temperature", item(12.0))]));
    mqtt.n("temperature/24/Temperature", r#"{"value":12.0,"min":-40.0}"#);
    rig.await_log(Part::Bridge, "Air-Quality");
}

/// localsettings says "no limits" by 0 and 0 in its signals, and by nothing in GetItems: clients see the same.
#[test]
fn settings_without_limits() {
    let mut rig = Rig::new(Setup::devices());
    let mqtt = rig.awake();
    let path = "/Settings/Added/Later";
    let add = |rig: &Rig, max: i32| {
        let limit = |limit: i32| owned(limit);
        let setting =
            Entry::from([("path".into(), owned(path)), ("default".into(), limit(3)), ("min".into(), limit(0)), ("max".into(), limit(max))]);
        let _: Vec<Entry> =
            rig.fake().call(SETTINGS, "/", "com.victronenergy.Settings", "AddSettings", &vec![setting]).expect("it answers");
    };
    let none = r#"{"value":3,"default":3}"#;
    for (max, payload) in [(0, none), (5, r#"{"value":3,"min":0,"max":5,"default":3}"#), (0, none)] {
        mqtt.mark();
        add(&rig, max);
        mqtt.n(&format!("settings/0{path}"), payload);
        // as a scan finds it
        rig.stop(Part::Bridge);
        rig.start_bridge();
        mqtt.mark();
        mqtt.keepalive("");
        mqtt.n(&format!("settings/0{path}"), payload);
    }
}

both! {
    /// Retained by default: who subscribes later has the values at once.
    fn values_are_retained(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        let mqtt = rig.awake();
        rig.await_retained_items(&["battery/512/Soc", "battery/512/DeviceInstance", "battery/512/Dc/0/Voltage", "battery/512/Dc/0/Current"]);
        rig.fake().items_changed(BATTERY, items([("/Soc", item(12.5))]));
        mqtt.n("battery/512/Soc", r#"{"value":12.5}"#);
        assert_eq!(rig.retained("#").get(&format!("N/{PORTAL}/battery/512/Soc")).map(String::as_str), Some(r#"{"value":12.5}"#));
    }
}

#[test]
fn with_retain_false_nothing_of_an_item_is_retained() {
    let mut rig = Rig::new(Setup::short().bridge("retain = false"));
    rig.fake().add(BATTERY, battery());
    rig.fake().add(TANK, tank());
    let mqtt = rig.awake();
    rig.fake().items_changed(BATTERY, items([("/Soc", item(12.5))]));
    mqtt.n("battery/512/Soc", r#"{"value":12.5}"#);
    rig.await_retained_items(&[]);
    // at its end nothing is sent, and nothing more is published
    mqtt.mark();
    mqtt.keepalive(r#"["tank/#"]"#);
    mqtt.completed();
    venus_mqtt_integration::eventually("the battery falls asleep", venus_mqtt_integration::DEADLINE, || {
        mqtt.keepalive(r#"["tank/#"]"#);
        mqtt.mark();
        rig.fake().items_changed(BATTERY, items([("/Soc", item(13.5))]));
        rig.fake().store(BATTERY, items([("/Soc", item(0.0))]));
        rig.fake().items_changed(TANK, items([("/Level", item(0.1))]));
        mqtt.n("tank/3/Level", r#"{"value":0.1}"#);
        mqtt.on(&mqtt.topic('N', "battery/512/Soc")).is_empty().then_some(())
    });
    assert!(mqtt.since().iter().all(|message| !message.payload.is_empty()), "{:?}", mqtt.since());
}

/// A service that leaves: an empty payload for each of its topics that was published, and for no other.
#[test]
fn a_service_that_leaves_is_cleared() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.fake().add(TANK, tank());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive(r#"["battery/+/Soc", "tank/#"]"#);
    mqtt.completed();
    mqtt.mark();
    rig.fake().remove(BATTERY);
    mqtt.n("battery/512/Soc", "");
    rig.fake().items_changed(TANK, items([("/Level", item(0.1))]));
    mqtt.n("tank/3/Level", r#"{"value":0.1}"#);
    assert_eq!(mqtt.items().keys().collect::<Vec<_>>(), ["battery/512/Soc", "tank/3/Level"]);
    rig.await_retained_items(&["tank/3/Level", "tank/3/DeviceInstance"]);
}

#[test]
fn blocked_items_are_never_published_and_masked_ones_never_shown() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(
        "com.victronenergy.vebus.ttyO1",
        items([("/DeviceInstance", item(257)), ("/Mode", item(3)), ("/Interfaces/Mk2/Tunnel", item("raw"))]),
    );
    rig.fake().add("com.victronenergy.paygo", items([("/LVD/Threshold", item(9.5)), ("/LVD/Other", item(1))]));
    let settings = [
        ("/Settings/Services/AccessPointPassword", item("hunter2").default("hunter1")),
        ("/Settings/Ble/Service/Pincode", item("123456")),
        ("/Settings/Services/AccessPoint", item(1)),
    ];
    rig.fake().add("com.victronenergy.settings", items(settings));
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("settings/0/Settings/Services/AccessPoint", r#"{"value":1}"#);
    mqtt.n("vebus/257/Mode", r#"{"value":3}"#);
    mqtt.n("paygo/0/LVD/Other", r#"{"value":1}"#);
    let masked = |path: &str| {
        let message = mqtt.expect_topic(&mqtt.topic('N', &format!("settings/0{path}")));
        assert!(message.text().contains(r#""value":"******""#), "{message:?}");
    };
    masked("/Settings/Services/AccessPointPassword");
    masked("/Settings/Ble/Service/Pincode");
    // nor later, in any way
    rig.fake().items_changed("com.victronenergy.settings", items([("/Settings/Ble/Service/Pincode", item("secret3"))]));
    rig.fake().properties_changed("com.victronenergy.vebus.ttyO1", items([("/Interfaces/Mk2/Tunnel", item("more"))]));
    mqtt.read("settings/0/Settings/Ble/Service/Pincode");
    mqtt.read("settings/0/Settings/Ble");
    mqtt.read("vebus/257/Interfaces/Mk2/Tunnel");
    mqtt.read("vebus/257/Interfaces");
    mqtt.read("paygo/0/LVD/Threshold");
    mqtt.keepalive(r#"["vebus/257/Interfaces/Mk2/Tunnel", "paygo/#", "settings/#"]"#);
    mqtt.completed();
    mqtt.read("vebus/257/Mode");
    mqtt.n("vebus/257/Mode", r#"{"value":3}"#);
    let all: Vec<String> = mqtt.since().iter().map(|message| format!("{message:?}")).collect();
    for never in ["hunter", "123456", "secret3", "N/c0619ab1c2d3/vebus/257/Interfaces", "N/c0619ab1c2d3/paygo/0/LVD/Threshold"] {
        assert!(all.iter().all(|line| !line.contains(never)), "{never} was published: {all:?}");
    }
    for secret in ["hunter", "123456", "secret3"] {
        assert!(!rig.log(Part::Bridge).contains(secret), "{secret} is in the log");
    }
}

both! {
    /// Serial and keepalive: on every connect, asleep too, always retained, never removed.
    fn serial_and_keepalive_are_there_from_the_start(rig in Setup::default().bridge("retain = false")) {
        rig.fake().add(SYSTEM, items([("/Serial", item(PORTAL)), ("/Dc/Battery/Soc", item(50))]));
        let mqtt = rig.listener();
        rig.start_bridge();
        mqtt.n("system/0/Serial", &format!("{{\"value\":\"{PORTAL}\"}}"));
        mqtt.n("keepalive", r#"{"value":1}"#);
        mqtt.keepalive("");
        mqtt.n("system/0/Dc/Battery/Soc", r#"{"value":50}"#);
        mqtt.mark();
        // the service system leaves: the serial stays
        rig.fake().remove(SYSTEM);
        mqtt.n("system/0/Dc/Battery/Soc", "");
        assert!(mqtt.on(&mqtt.topic('N', "system/0/Serial")).iter().all(|message| !message.payload.is_empty()));
        let retained = rig.retained("#");
        assert_eq!(retained.get(&format!("N/{PORTAL}/system/0/Serial")), Some(&format!("{{\"value\":\"{PORTAL}\"}}")));
        assert_eq!(retained.get(&format!("N/{PORTAL}/keepalive")).map(String::as_str), Some(r#"{"value":1}"#));
    }
}

both! {
    /// Every three seconds while awake, never retained; not asleep.
    fn the_heartbeat_beats_while_awake(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        let mqtt = rig.listener();
        rig.start_bridge();
        assert!(mqtt.on(&mqtt.topic('N', "heartbeat")).is_empty());
        mqtt.keepalive("");
        let topic = mqtt.topic('N', "heartbeat");
        let beats = mqtt.wait_within("three heartbeats", venus_mqtt_integration::DEADLINE, |messages| {
            let beats: Vec<_> = messages.iter().filter(|message| message.topic == topic).cloned().collect();
            (beats.len() >= 3).then_some(beats)
        });
        for pair in beats.windows(2) {
            let apart = pair[1].at - pair[0].at;
            assert!(apart > Duration::from_millis(2500) && apart < Duration::from_millis(3900), "{apart:?} between two heartbeats");
        }
        for beat in &beats {
            assert!(now().abs_diff(seconds(&beat.text())) <= 15, "{beat:?}");
        }
        assert!(!rig.retained("#").contains_key(&topic));
    }
}

/// Awake for a second, so at most the heartbeat of the waking: none comes in the seconds after.
#[test]
fn the_heartbeat_ends_with_the_keepalive() {
    let mut rig = Rig::new(Setup::short());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", "");
    mqtt.mark();
    // what is sent after it, here the next keep-alive's, shows that the time has passed
    let quiet = std::time::Instant::now() + Duration::from_millis(3500);
    while std::time::Instant::now() < quiet {
        mqtt.barrier();
        std::thread::sleep(Duration::from_millis(50));
    }
    let topic = mqtt.topic('N', "heartbeat");
    assert!(mqtt.on(&topic).is_empty(), "{:?}", mqtt.since());
    mqtt.keepalive("");
    mqtt.expect_topic(&topic);
}

#[test]
fn completed_has_the_time_and_is_never_retained() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    let completed = mqtt.completed();
    assert!(now().abs_diff(seconds(&completed.text())) <= 2, "{completed:?}");
    assert!(!completed.text().contains("echo"));
    assert!(!rig.retained("#").contains_key(&completed.topic));
}

both! {
    /// `online` while it is there, `offline` when it goes, politely or not.
    fn the_status_says_whether_it_is_there(rig in Setup::default()) {
        let mqtt = rig.listener();
        let status = rig.status_topic();
        rig.start_bridge();
        mqtt.expect(&status, "online");
        assert_eq!(rig.retained("#").get(&status).map(String::as_str), Some("online"));
        rig.stop(Part::Bridge);
        mqtt.expect(&status, "offline");
        assert_eq!(rig.retained("#").get(&status).map(String::as_str), Some("offline"));
        rig.start_bridge();
        mqtt.mark();
        rig.kill(Part::Bridge);
        mqtt.expect(&status, "offline");
        assert_eq!(rig.retained("#").get(&status).map(String::as_str), Some("offline"));
    }
}

#[test]
fn a_prefix_stands_before_every_topic() {
    let mut rig = Rig::new(Setup::default().prefix("boats/boat1"));
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    rig.start_bridge();
    // without the prefix it is not for us
    rig.client().publish(&format!("R/{PORTAL}/keepalive"), "");
    rig.client().publish(&format!("W/{PORTAL}/battery/512/Soc"), r#"{"value":1}"#);
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    mqtt.completed();
    mqtt.write("battery/512/Soc", r#"{"value":5}"#);
    mqtt.n("battery/512/Soc", r#"{"value":5}"#);
    mqtt.read("battery/512/Dc/0/Voltage");
    mqtt.expect("boats/boat1/venus-mqtt/c0619ab1c2d3/status", "online");
    assert_eq!(rig.fake().calls_of(BATTERY, "SetValue"), ["SetValue /Soc i 5"]);
    for message in mqtt.since() {
        let ours = ["N/", "venus-mqtt/"].iter().any(|start| message.topic.starts_with(start));
        assert!(!ours, "{message:?}");
    }
    rig.stop(Part::Bridge);
    mqtt.expect("boats/boat1/venus-mqtt/c0619ab1c2d3/status", "offline");
    rig.await_retained_items(&[]);
}

/// Nothing is published with a QoS that a broker would have to remember; the log of the broker shows what it received.
#[test]
fn everything_is_qos_0() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.awake();
    rig.stop(Part::Bridge);
    rig.await_retained_items(&[]);
    let log = rig.log(Part::Broker);
    let published: Vec<&str> = log.lines().filter(|line| line.contains("Received PUBLISH from venus-mqtt-")).collect();
    assert!(published.len() > 5, "{published:?}");
    let more: Vec<&&str> = published.iter().filter(|line| !line.contains(", q0, ")).collect();
    assert!(more.is_empty(), "{more:?}");
}

/// A change to the same value is a change: the client that asked for it waits for it.
#[test]
fn a_signal_with_the_same_value_harms_nobody() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    for _ in 0..3 {
        rig.fake().items_changed(BATTERY, items([("/Soc", item(87.0))]));
    }
    rig.fake().items_changed(BATTERY, items([("/Soc", item(88.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":88.0}"#);
}
