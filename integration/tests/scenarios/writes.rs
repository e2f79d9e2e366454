//! Section 4: W, write requests, and who may.

use venus_mqtt_integration::{Client, Part, Rig, Setup, eventually, item, items};

use crate::{BATTERY, TANK, battery, tank};

const VEBUS: &str = "com.victronenergy.vebus.ttyO1";

fn vebus() -> venus_mqtt_integration::Items {
    items([
        ("/DeviceInstance", item(257)),
        ("/Mode", item(3)),
        ("/Ac/In/1/CurrentLimit", item(16.0)),
        ("/Hub4/L1/AcPowerSetpoint", item(0)),
    ])
}

fn rig_with_vebus(setup: Setup) -> (Rig, Client) {
    let mut rig = Rig::new(setup);
    rig.fake().add(VEBUS, vebus());
    rig.start_bridge();
    let mqtt = rig.listener();
    (rig, mqtt)
}

/// When this returns, everything sent before has been looked at, and the service has seen what came of it.
fn settle(rig: &Rig, mqtt: &Client) {
    mqtt.mark();
    mqtt.read("vebus/257/DeviceInstance");
    mqtt.n("vebus/257/DeviceInstance", r#"{"value":257}"#);
    assert!(!rig.log(Part::Bridge).is_empty());
}

#[test]
fn a_write_is_one_setvalue_and_the_answer_the_services_own() {
    for order in ["before", "after"] {
        let (rig, mqtt) = rig_with_vebus(Setup::default());
        rig.fake().behave(VEBUS, "signal", order);
        mqtt.keepalive("");
        mqtt.completed();
        mqtt.mark();
        mqtt.write("vebus/257/Mode", r#"{"value": 1}"#);
        mqtt.n("vebus/257/Mode", r#"{"value":1}"#);
        settle(&rig, &mqtt);
        assert_eq!(rig.fake().calls_of(VEBUS, "SetValue"), ["SetValue /Mode i 1"]);
    }
}

/// A service that says nothing after a write: nothing is published, and certainly not what was written.
#[test]
fn the_answer_is_never_invented() {
    let (rig, mqtt) = rig_with_vebus(Setup::default());
    rig.fake().behave(VEBUS, "signal", "none");
    mqtt.keepalive("");
    mqtt.completed();
    mqtt.mark();
    mqtt.write("vebus/257/Mode", r#"{"value": 1}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 1");
    mqtt.read("vebus/257/DeviceInstance");
    let after = mqtt.n("vebus/257/DeviceInstance", r#"{"value":257}"#);
    mqtt.expect_silence_on(&mqtt.topic('N', "vebus/257/Mode"), &after);
}

/// At most one in flight per item; of those that arrive meanwhile the last wins.
#[test]
fn of_those_that_wait_the_last_wins() {
    let (rig, mqtt) = rig_with_vebus(Setup::default());
    rig.fake().add(TANK, tank());
    rig.fake().behave(VEBUS, "SetValue", "hold");
    mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 1");
    for n in 2..=9 {
        mqtt.write("vebus/257/Mode", format!("{{\"value\":{n}}}"));
    }
    // another item of the same service does not wait
    mqtt.write("vebus/257/Hub4/L1/AcPowerSetpoint", r#"{"value":-500}"#);
    rig.fake().await_call(VEBUS, "SetValue /Hub4/L1/AcPowerSetpoint i -500");
    assert_eq!(rig.fake().release(VEBUS), 2);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 9");
    assert_eq!(rig.fake().release(VEBUS), 1);
    settle(&rig, &mqtt);
    assert_eq!(
        rig.fake().calls_of(VEBUS, "SetValue"),
        ["SetValue /Mode i 1", "SetValue /Hub4/L1/AcPowerSetpoint i -500", "SetValue /Mode i 9"]
    );
}

#[test]
fn nothing_is_retried() {
    for (mode, logged) in [("refuse:1", true), ("refuse:2", true), ("error", true), ("never", false)] {
        let (rig, mqtt) = rig_with_vebus(Setup::default());
        rig.fake().behave(VEBUS, "SetValue", mode);
        mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
        rig.fake().await_call(VEBUS, "SetValue /Mode i 1");
        if logged {
            rig.await_log(Part::Bridge, "/Mode");
        }
        settle(&rig, &mqtt);
        settle(&rig, &mqtt);
        assert_eq!(rig.fake().calls_of(VEBUS, "SetValue").len(), 1, "{mode}");
    }
}

#[test]
fn a_write_that_is_never_answered_holds_nobody_up() {
    let (rig, mqtt) = rig_with_vebus(Setup::default());
    rig.fake().add(TANK, tank());
    rig.fake().behave(VEBUS, "SetValue", "never");
    for n in 0..100 {
        mqtt.write("vebus/257/Mode", format!("{{\"value\":{n}}}"));
        mqtt.write("vebus/257/Ac/In/1/CurrentLimit", format!("{{\"value\":{n}}}"));
    }
    // it is told when it is known, however long that takes
    mqtt.keepalive("");
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    mqtt.write("tank/3/Level", r#"{"value":0.25}"#);
    rig.fake().await_call(TANK, "SetValue /Level d 0.25");
    assert_eq!(rig.fake().calls_of(VEBUS, "SetValue").len(), 2);
    // once the bridge has given up waiting, the last of those that came meanwhile has its turn, once
    eventually("the last write", venus_mqtt_integration::DEADLINE, || {
        rig.fake().calls_of(VEBUS, "SetValue").contains(&"SetValue /Mode i 99".to_owned()).then_some(())
    });
    let calls = rig.fake().calls_of(VEBUS, "SetValue");
    assert_eq!(calls.iter().filter(|call| call.contains("/Mode")).collect::<Vec<_>>(), ["SetValue /Mode i 0", "SetValue /Mode i 99"]);
}

both! {
    /// A stale setpoint must not be applied again: not when it arrives, not at the next connect, not at the next start.
    fn a_retained_write_is_never_carried_out(rig in Setup::default()) {
        rig.fake().add(VEBUS, vebus());
        let mqtt = rig.listener();
        mqtt.publish_retained(&mqtt.topic('W', "vebus/257/Mode"), r#"{"value":4}"#);
        rig.start_bridge();
        rig.await_log(Part::Bridge, "vebus/257/Mode");
        settle(&rig, &mqtt);
        assert!(rig.fake().calls_of(VEBUS, "SetValue").is_empty());
        rig.kill(Part::Broker);
        rig.start(Part::Broker);
        let mqtt = eventually("the broker is back", venus_mqtt_integration::DEADLINE, || {
            Client::connect(rig.broker_address(), &venus_mqtt_integration::mqtt::Options::default()).ok()
        });
        mqtt.publish_retained(&mqtt.topic('W', "vebus/257/Mode"), r#"{"value":2}"#);
        mqtt.subscribe("#");
        mqtt.wait_for("the bridge is back", |message| message.topic == rig.status_topic() && message.payload == b"online");
        settle(&rig, &mqtt);
        assert!(rig.fake().calls_of(VEBUS, "SetValue").is_empty());
        // the same topic, not retained: that is an order
        mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
        rig.fake().await_call(VEBUS, "SetValue /Mode i 1");
        assert_eq!(rig.fake().calls_of(VEBUS, "SetValue").len(), 1);
    }
}

/// Each is ignored, with a line in the log, and the next good one is carried out.
#[test]
fn what_is_no_write_is_ignored_with_a_line() {
    let (mut rig, mqtt) = rig_with_vebus(Setup::default());
    let nested = format!("{{\"value\":{}1{}}}", "[".repeat(33), "]".repeat(33));
    let deeper = format!("{{\"value\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let large = format!("{{\"value\":\"{}\"}}", "x".repeat(65_536));
    let bad: [(&str, &[u8]); 14] = [
        ("empty", b""),
        ("no value", b"{}"),
        ("another key", br#"{"Value":1}"#),
        ("a bare number", b"1"),
        ("an array", b"[1]"),
        ("null", b"null"),
        ("broken", br#"{"value":1"#),
        ("more behind it", br#"{"value":1} x"#),
        ("NaN", br#"{"value":NaN}"#),
        ("not UTF-8", b"{\"value\":\"\xff\xfe\"}"),
        ("a NUL", br#"{"value":"a\u0000b"}"#),
        ("nested too deep", nested.as_bytes()),
        ("nested far too deep", deeper.as_bytes()),
        ("too large", large.as_bytes()),
    ];
    for (what, payload) in bad {
        let lines = rig.log(Part::Bridge).lines().count();
        mqtt.write("vebus/257/Mode", payload);
        settle(&rig, &mqtt);
        assert!(rig.runs(Part::Bridge), "{what} ended the bridge");
        let log = rig.log(Part::Bridge);
        let new: Vec<&str> = log.lines().skip(lines).filter(|line| line.contains("vebus/257/Mode")).collect();
        assert!(new.len() == 1, "{what}: one line with the topic was expected, but there are {new:?}");
    }
    for topic in ["vebus/258/Mode", "nothing/0/Mode"] {
        mqtt.write(topic, r#"{"value":1}"#);
        rig.await_log(Part::Bridge, topic);
    }
    assert!(rig.fake().calls_of(VEBUS, "SetValue").is_empty());
    mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 1");
}

/// Exactly at the limits: 64 KiB and 32 levels are still good.
#[test]
fn the_largest_write_passes() {
    let (rig, mqtt) = rig_with_vebus(Setup::default());
    let frame = r#"{"value":""}"#.len();
    let text = "x".repeat(64 * 1024 - frame);
    mqtt.write("vebus/257/Mode", format!("{{\"value\":\"{text}\"}}"));
    rig.fake().await_call(VEBUS, &format!("SetValue /Mode s \"{text}\""));
}

#[test]
fn read_only_means_nothing_is_written() {
    let (rig, mqtt) = rig_with_vebus(Setup::default().bridge("access = \"read-only\""));
    mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
    rig.await_log(Part::Bridge, "vebus/257/Mode");
    settle(&rig, &mqtt);
    assert!(rig.fake().calls_of(VEBUS, "SetValue").is_empty());
}

#[test]
fn allow_and_deny() {
    let setup = Setup::default()
        .bridge(r#"allow = ["vebus/+/Mode", "vebus/257/Ac/#", "tank/#"]"#)
        .bridge(r#"deny = ["vebus/+/Ac/In/1/CurrentLimit", "tank/3/#"]"#);
    let (rig, mqtt) = rig_with_vebus(setup);
    rig.fake().add(TANK, tank());
    for denied in ["vebus/257/Hub4/L1/AcPowerSetpoint", "vebus/257/Ac/In/1/CurrentLimit"] {
        mqtt.write(denied, r#"{"value":1}"#);
        rig.await_log(Part::Bridge, denied);
    }
    mqtt.write("tank/3/Level", r#"{"value":1}"#);
    mqtt.write("vebus/257/Mode", r#"{"value":2}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 2");
    settle(&rig, &mqtt);
    assert_eq!(rig.fake().calls_of(VEBUS, "SetValue"), ["SetValue /Mode i 2"]);
    assert!(rig.fake().calls_of(TANK, "SetValue").is_empty());
}

/// Whatever the configuration says.
#[test]
fn some_writes_are_always_denied() {
    let mut rig = Rig::new(Setup::default().bridge(r##"allow = ["#"]"##));
    rig.fake().add("com.victronenergy.platform", items([("/Security/Api/Token", item("x")), ("/Security/Other", item(1))]));
    rig.fake()
        .add("com.victronenergy.settings", items([("/Settings/System/SecurityProfile", item(1)), ("/Settings/System/Other", item(1))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    for denied in ["platform/0/Security/Api/Token", "platform/0/Security/Api/New", "settings/0/Settings/System/SecurityProfile"] {
        mqtt.write(denied, r#"{"value":0}"#);
        rig.await_log(Part::Bridge, denied);
    }
    mqtt.write("platform/0/Security/Other", r#"{"value":2}"#);
    mqtt.write("settings/0/Settings/System/Other", r#"{"value":2}"#);
    rig.fake().await_call("com.victronenergy.platform", "SetValue /Security/Other i 2");
    rig.fake().await_call("com.victronenergy.settings", "SetValue /Settings/System/Other i 2");
    assert_eq!(rig.fake().calls_of("com.victronenergy.platform", "SetValue").len(), 1);
    assert_eq!(rig.fake().calls_of("com.victronenergy.settings", "SetValue").len(), 1);
}

#[test]
fn null_clears_a_value() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    mqtt.write("battery/512/Soc", r#"{"value": null}"#);
    mqtt.n("battery/512/Soc", r#"{"value":null}"#);
    assert_eq!(rig.fake().calls_of(BATTERY, "SetValue"), ["SetValue /Soc ai []"]);
}

/// The service that has left cannot be written to; the one that is back can.
#[test]
fn writes_follow_the_owner() {
    let (rig, mqtt) = rig_with_vebus(Setup::default());
    rig.fake().remove(VEBUS);
    rig.fake().add(TANK, tank());
    mqtt.keepalive("");
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
    rig.await_log(Part::Bridge, "vebus/257/Mode");
    rig.fake().add(VEBUS, vebus());
    mqtt.n("vebus/257/Mode", r#"{"value":3}"#);
    mqtt.write("vebus/257/Mode", r#"{"value":2}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 2");
    assert_eq!(rig.fake().calls_of(VEBUS, "SetValue").len(), 1);
}

/// A write in flight to a service that dies does not stand in the way of the next one.
#[test]
fn a_write_in_flight_dies_with_its_service() {
    let (rig, mqtt) = rig_with_vebus(Setup::default());
    rig.fake().behave(VEBUS, "SetValue", "hold");
    mqtt.keepalive("");
    mqtt.completed();
    mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 1");
    mqtt.write("vebus/257/Mode", r#"{"value":2}"#);
    mqtt.barrier();
    mqtt.mark();
    rig.fake().remove(VEBUS);
    mqtt.n("vebus/257/Mode", "");
    rig.fake().add(VEBUS, vebus());
    mqtt.n("vebus/257/Mode", r#"{"value":3}"#);
    mqtt.write("vebus/257/Mode", r#"{"value":4}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 4");
    // what waited for the dead one was for the dead one: a setpoint for a device that is gone
    assert_eq!(rig.fake().calls_of(VEBUS, "SetValue"), ["SetValue /Mode i 4"]);
}

/// The broker restarts while a write is in flight: one SetValue, and its answer is heard.
#[test]
fn a_write_in_flight_survives_the_broker() {
    let (mut rig, mqtt) = rig_with_vebus(Setup::default());
    rig.fake().behave(VEBUS, "SetValue", "hold");
    mqtt.keepalive("");
    mqtt.completed();
    mqtt.write("vebus/257/Mode", r#"{"value":1}"#);
    rig.fake().await_call(VEBUS, "SetValue /Mode i 1");
    rig.kill(Part::Broker);
    rig.start(Part::Broker);
    let mqtt = eventually("the broker is back", venus_mqtt_integration::DEADLINE, || {
        Client::connect(rig.broker_address(), &venus_mqtt_integration::mqtt::Options::default()).ok()
    });
    mqtt.subscribe("#");
    mqtt.expect(&rig.status_topic(), "online");
    assert_eq!(rig.fake().release(VEBUS), 1);
    mqtt.n("vebus/257/Mode", r#"{"value":1}"#);
    assert_eq!(rig.fake().calls_of(VEBUS, "SetValue"), ["SetValue /Mode i 1"]);
}
