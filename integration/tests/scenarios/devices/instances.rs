//! "A number is only handed out when its topics are free": services of other programs that have the type and instance of a device's.

use std::time::{Duration, Instant};

use venus_mqtt_integration::{
    DEADLINE, Device, Ended, Items, PORTAL, Part, Rig, Setup, device::name, eventually, fake::SETTINGS, item, items,
};

use super::{instance_setting, running};
use crate::flashmq::await_companion;

/// A service of another program, whose instance is not from localsettings.
const OTHER: &str = "com.victronenergy.heatpump.http_40";
const OURS: &str = "com.victronenergy.heatpump.mqtt_hp_h";
const HEATPUMP: &str = r#"{"h": "heatpump"}"#;

fn other(instance: i32) -> Items {
    items([("/DeviceInstance", item(instance)), ("/CustomName", item("theirs")), ("/State", item(0))])
}

/// The device is told of both services.
fn is_told(device: &Device, with: &str) {
    let error = device.refused();
    assert!(error.contains(OURS) && error.contains(with) && error.contains("heatpump/"), "{error}");
}

/// What is written to the device's number reaches its service, by every way, and the other one is left alone.
fn writes_reach_ours(rig: &Rig, device: &Device, instance: i64, others: &[&str]) {
    let before: Vec<_> = others.iter().map(|other| rig.fake().calls_of(other, "SetValue")).collect();
    device.mqtt.write(&format!("heatpump/{instance}/CustomName"), r#"{"value": "by W"}"#);
    rig.fake().await_shown(OURS, "/CustomName", "s \"by W\"");
    device.proxy(r#"{"h": {"CustomName": "by ID"}}"#);
    rig.fake().await_shown(OURS, "/CustomName", "s \"by ID\"");
    device.proxy(format!(r#"{{"topicPath": "W/{PORTAL}/heatpump/{instance}", "values": {{"CustomName": "by topicPath"}}}}"#));
    rig.fake().await_shown(OURS, "/CustomName", "s \"by topicPath\"");
    let after: Vec<_> = others.iter().map(|other| rig.fake().calls_of(other, "SetValue")).collect();
    assert_eq!(before, after);
}

both! {
    /// It was there first: the device gets the next number, before it is answered.
    fn the_other_one_was_first(rig in Setup::devices()) {
        rig.fake().add(OTHER, other(1));
        rig.start_bridge();
        let device = Device::connect(&rig, "hp");
        let answer = device.register(HEATPUMP);
        assert_eq!(answer.instance("h"), 2);
        assert!(answer.text.contains(&format!("W/{PORTAL}/heatpump/2")), "{}", answer.text);
        is_told(&device, OTHER);
        rig.await_log(Part::Bridge, &format!("{OURS} cannot have heatpump/1, which is the type and instance of {OTHER}"));
        assert_eq!(rig.fake().shown(OURS, "/DeviceInstance"), "i 2");
        assert_eq!(rig.fake().shown(SETTINGS, &instance_setting("hp", "h")), "s \"heatpump:2\"");
        writes_reach_ours(&rig, &device, 2, &[OTHER]);
        // both have their topics
        device.mqtt.keepalive("");
        device.mqtt.n("heatpump/1/CustomName", r#"{"value":"theirs"}"#);
        let topic = device.mqtt.topic('N', "heatpump/2/CustomName");
        device.mqtt.wait_for("the name", |message| message.topic == topic && message.text().contains("\"by topicPath\""));
        device.mqtt.write("heatpump/1/State", r#"{"value": 3}"#);
        rig.fake().await_call(OTHER, "SetValue /State i 3");
        // it leaves, and the number stays
        rig.fake().remove(OTHER);
        rig.fake().await_no_name(OTHER);
        assert_eq!(device.register(HEATPUMP), answer);
        device.leave();
        rig.fake().await_no_name(OURS);
        assert_eq!(device.register(HEATPUMP), answer);
    }
}

both! {
    /// It comes later: it gets no topics, and never what is written to the device. When the daemon restarts it is the first.
    fn the_other_one_comes_later(rig in Setup::devices()) {
        rig.start_bridge();
        let device = Device::connect(&rig, "hp");
        assert_eq!(device.register(HEATPUMP).instance("h"), 1);
        device.mqtt.mark();
        rig.fake().add(OTHER, other(1));
        is_told(&device, OTHER);
        let line = rig.await_log(Part::Bridge, "has the type and instance of");
        assert!(line.contains(OURS) && line.contains(OTHER), "{line}");
        writes_reach_ours(&rig, &device, 1, &[OTHER]);
        // the device comes again: nothing changes
        assert_eq!(device.register(HEATPUMP).instance("h"), 1);
        eventually("the device in the registry", DEADLINE, || {
            std::fs::read_to_string(rig.dir().join("state/devices.json")).ok().filter(|text| text.contains("\"hp\"")).map(drop)
        });
        assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
        rig.fake().await_no_name(OURS);
        device.mqtt.mark();
        rig.start(Part::Bridge);
        let answer = device.answered();
        assert_eq!(answer.instance("h"), 2);
        is_told(&device, OTHER);
        rig.fake().await_shown(OURS, "/DeviceInstance", "i 2");
        assert_eq!(rig.fake().shown(SETTINGS, &instance_setting("hp", "h")), "s \"heatpump:2\"");
        // before it has read that, it may write to the old topic: that is not for the other one
        let calls = rig.fake().calls_of(OTHER, "SetValue");
        device.mqtt.mark();
        device.proxy(format!(r#"{{"topicPath": "W/{PORTAL}/heatpump/1", "values": {{"CustomName": "late"}}}}"#));
        let refused = device.refused();
        assert!(refused.contains("heatpump/1"), "{refused}");
        writes_reach_ours(&rig, &device, 2, &[OTHER]);
        assert_eq!(rig.fake().calls_of(OTHER, "SetValue"), calls);
    }
}

/// It comes while the service is off the bus for its silence: what is written to the number is for it, and the device has the next one.
#[test]
fn the_other_one_comes_while_the_device_is_silent() {
    let rig = running(Setup::devices().device("stale_after = 2").device("stale = \"leave\""));
    let device = Device::connect(&rig, "hp");
    assert_eq!(device.register(HEATPUMP).instance("h"), 1);
    rig.fake().await_no_name(OURS);
    device.mqtt.mark();
    rig.fake().add(OTHER, other(1));
    assert_eq!(device.answered().instance("h"), 2);
    is_told(&device, OTHER);
    rig.await_log(Part::Bridge, &format!("{OURS} cannot have heatpump/1, which is the type and instance of {OTHER}"));
    device.mqtt.write("heatpump/1/State", r#"{"value": 3}"#);
    rig.fake().await_call(OTHER, "SetValue /State i 3");
    let client = Device::connect(&rig, "x");
    client.register(r#"{"t": "temperature"}"#);
    client.proxy(format!(r#"{{"topicPath": "W/{PORTAL}/heatpump/1", "values": {{"State": 4}}}}"#));
    rig.fake().await_call(OTHER, "SetValue /State i 4");
    assert!(rig.fake().owner_of(OURS).is_none());
    device.mqtt.write("heatpump/2/CustomName", r#"{"value": "back"}"#);
    rig.fake().await_name(OURS);
    rig.fake().await_shown(OURS, "/CustomName", "s \"back\"");
    assert_eq!(rig.fake().shown(OURS, "/DeviceInstance"), "i 2");
}

/// Several numbers are taken, on the bus and in localsettings; and one that is of another type is none of these.
#[test]
fn the_next_one_that_is_free() {
    let rig = running(Setup::devices());
    for (name, instance) in [(OTHER, 1), ("com.victronenergy.heatpump.http_41", 3), ("com.victronenergy.tank.http_42", 4)] {
        rig.fake().add(name, other(instance));
        rig.await_log(Part::Bridge, &format!("{name} came"));
    }
    let second = Device::connect(&rig, "second");
    assert_eq!(second.register(HEATPUMP).instance("h"), 2);
    let device = Device::connect(&rig, "hp");
    assert_eq!(device.register(HEATPUMP).instance("h"), 4);
    let tank = Device::connect(&rig, "tank");
    assert_eq!(tank.register(r#"{"h": "tank"}"#).instance("h"), 1);
    // the user wants one that is taken
    device.mqtt.mark();
    assert_eq!(rig.fake().set_value(SETTINGS, &instance_setting("hp", "h"), "heatpump:3").ok(), Some(0));
    assert_eq!(device.answered().instance("h"), 4);
    rig.fake().await_shown(SETTINGS, &instance_setting("hp", "h"), "s \"heatpump:4\"");
    writes_reach_ours(&rig, &device, 4, &[OTHER]);
    // and another program takes one at run time
    device.mqtt.mark();
    rig.fake().items_changed(OTHER, items([("/DeviceInstance", item(4))]));
    is_told(&device, OTHER);
    writes_reach_ours(&rig, &device, 4, &[OTHER]);
    assert_eq!(rig.fake().shown(OURS, "/DeviceInstance"), "i 4");
    // and gives one back
    let third = Device::connect(&rig, "third");
    assert_eq!(third.register(HEATPUMP).instance("h"), 1);
}

/// Its instance is not known before it has been scanned: it is waited for, but one that hangs holds up nobody for long.
#[test]
fn one_that_has_not_been_scanned() {
    let rig = running(Setup::devices());
    rig.fake().add_styled(OTHER, "late", other(1));
    rig.fake().await_call(OTHER, "GetItems /");
    let device = Device::connect(&rig, "hp");
    device.mqtt.mark();
    device.status(device.status_of(HEATPUMP));
    eventually("the number is asked for", DEADLINE, || rig.fake().settings().contains_key(&instance_setting("hp", "h")).then_some(()));
    device.mqtt.barrier();
    assert!(rig.fake().owner_of(OURS).is_none());
    assert_eq!(rig.fake().release(OTHER), 1);
    assert_eq!(device.answered().instance("h"), 2);
    let mute = "com.victronenergy.heatpump.mute";
    rig.fake().add_styled(mute, "mute", other(3));
    rig.fake().await_call(mute, "GetItems /");
    let began = Instant::now();
    let next = Device::connect(&rig, "next");
    assert_eq!(next.register(HEATPUMP).instance("h"), 3);
    assert!(began.elapsed() >= Duration::from_millis(1500), "it was not waited for");
    // another type does not wait
    let tank = Device::connect(&rig, "tank");
    tank.register(r#"{"h": "tank"}"#);
}

/// Also at the start, when nobody has been scanned yet: the device was there first, and is the second now.
#[test]
fn a_hung_service_at_the_start() {
    let mut rig = Rig::new(Setup::devices());
    rig.fake().add(OTHER, other(1));
    rig.fake().add_styled("com.victronenergy.heatpump.mute", "mute", other(2));
    rig.start(Part::Bridge);
    let device = Device::connect(&rig, "hp");
    rig.await_log(Part::Broker, "device/+/Status");
    // the one that hangs has 2, but does not say so
    assert_eq!(device.register(HEATPUMP).instance("h"), 2);
    is_told(&device, OTHER);
}

/// Beside another bridge the topics are its own, and so is the conflict: what is on the bus counts.
#[test]
fn beside_another_bridge() {
    let mut rig = Rig::new(Setup::devices().bridge("enabled = \"auto\"").flashmq());
    rig.fake().add(OTHER, other(1));
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    await_companion(&mqtt);
    let device = Device::connect(&rig, "hp");
    assert_eq!(device.register(HEATPUMP).instance("h"), 2);
    is_told(&device, OTHER);
    device.mqtt.mark();
    let late = "com.victronenergy.heatpump.http_42";
    rig.fake().add(late, other(2));
    is_told(&device, late);
    device.proxy(format!(r#"{{"topicPath": "W/{PORTAL}/heatpump/2", "values": {{"CustomName": "mine"}}}}"#));
    rig.fake().await_shown(OURS, "/CustomName", "s \"mine\"");
    assert!(rig.fake().calls_of(late, "SetValue").is_empty());
}

/// Somebody has written one number into localsettings' file twice.
#[test]
fn two_of_ours_with_one_number() {
    let mut rig = running(Setup::devices());
    let (first, second) = (Device::connect(&rig, "hp"), Device::connect(&rig, "second"));
    assert_eq!((first.register(HEATPUMP).instance("h"), second.register(HEATPUMP).instance("h")), (1, 2));
    assert_eq!(rig.stop(Part::Settings), Ended::Code(0));
    let file = rig.dir().join("settings.json");
    let text = std::fs::read_to_string(&file).expect("stored").replace("heatpump:2", "heatpump:1");
    std::fs::write(&file, text).expect("written");
    rig.start_settings();
    rig.fake().await_shown(SETTINGS, &instance_setting("second", "h"), "s \"heatpump:2\"");
    assert_eq!(rig.fake().shown(OURS, "/DeviceInstance"), "i 1");
    assert_eq!(second.register(HEATPUMP).instance("h"), 2);
    assert_eq!(rig.fake().shown(&name("heatpump", "second", "h"), "/DeviceInstance"), "i 2");
}
