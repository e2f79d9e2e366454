//! Section 3: R, read requests.

use venus_mqtt_integration::{PORTAL, Part, Rig, Setup, item, items};

use crate::{BATTERY, TANK, battery, tank};

#[test]
fn one_item_is_read_afresh() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    // changed without a signal: only a GetValue can know
    rig.fake().store(BATTERY, items([("/Soc", item(33.0))]));
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":33.0}"#);
    assert_eq!(rig.fake().calls_of(BATTERY, "GetValue"), ["GetValue /Soc"]);
    // awake as well
    mqtt.keepalive("");
    mqtt.completed();
    rig.fake().store(BATTERY, items([("/Soc", item(34.0))]));
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":34.0}"#);
}

#[test]
fn the_answer_has_the_limits() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, items([("/DeviceInstance", item(512)), ("/Max", item(5).limits(0, 10).default(3))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.read("battery/512/Max");
    mqtt.n("battery/512/Max", r#"{"value":5,"min":0,"max":10,"default":3}"#);
}

both! {
    /// Asleep, the answer is not retained; awake it is.
    fn the_answer_is_retained_only_while_awake(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.read("battery/512/Soc");
        mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
        mqtt.read("battery/512/Dc");
        mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
        rig.await_retained_items(&[]);
        // awake for another topic only: this one is still asleep
        mqtt.keepalive(r#"["battery/512/Dc/#"]"#);
        mqtt.completed();
        mqtt.mark();
        mqtt.read("battery/512/Soc");
        mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
        rig.await_retained_items(&["battery/512/Dc/0/Voltage", "battery/512/Dc/0/Current"]);
    }
}

#[test]
fn the_payload_is_ignored() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    for payload in [&b""[..], b"x", b"{\"value\": 5}", b"[", b"\xff\xfe\x00", &[b'x'; 100_000]] {
        mqtt.mark();
        mqtt.publish(&mqtt.topic('R', "battery/512/Soc"), payload);
        mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    }
    assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty());
}

#[test]
fn an_inner_path_gives_everything_below() {
    let mut rig = Rig::new(Setup::default());
    let list = items([
        ("/DeviceInstance", item(279)),
        ("/Dc/0/Voltage", item(26.4)),
        ("/Dc/0/Current", item(1.5)),
        ("/Dc/1/Voltage", item(12.1)),
        ("/DcX", item(1)),
        ("/Pv/V", item(80.0)),
    ]);
    rig.fake().add("com.victronenergy.solarcharger.ttyO2", list);
    rig.start_bridge();
    let mqtt = rig.listener();
    rig.fake().store("com.victronenergy.solarcharger.ttyO2", items([("/Dc/0/Current", item(9.5))]));
    mqtt.read("solarcharger/279/Dc");
    mqtt.n("solarcharger/279/Dc/0/Voltage", r#"{"value":26.4}"#);
    mqtt.n("solarcharger/279/Dc/0/Current", r#"{"value":9.5}"#);
    mqtt.n("solarcharger/279/Dc/1/Voltage", r#"{"value":12.1}"#);
    mqtt.read("solarcharger/279/Pv/V");
    mqtt.n("solarcharger/279/Pv/V", r#"{"value":80.0}"#);
    assert_eq!(mqtt.items().len(), 4, "{:?}", mqtt.items());
}

/// A path the scan did not find but the service has: answered, and known from then on.
#[test]
fn a_hidden_item_is_known_once_read() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.fake().add_hidden(BATTERY, items([("/Debug/Counter", item(7))]));
    let mqtt = rig.awake();
    assert!(!mqtt.items().contains_key("battery/512/Debug/Counter"));
    mqtt.read("battery/512/Debug/Counter");
    mqtt.n("battery/512/Debug/Counter", r#"{"value":7}"#);
    mqtt.mark();
    mqtt.keepalive("");
    mqtt.completed();
    assert_eq!(mqtt.items().get("battery/512/Debug/Counter").map(String::as_str), Some(r#"{"value":7}"#));
}

#[test]
fn what_is_unknown_is_logged() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    for topic in ["battery/513/Soc", "nothing/512/Soc", "battery/512/Nothing/Here"] {
        mqtt.read(topic);
        rig.await_log(Part::Bridge, topic.rsplit_once('/').map_or(topic, |(_, last)| last));
    }
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    assert_eq!(mqtt.items().len(), 1, "{:?}", mqtt.items());
}

both! {
    /// A retained R is somebody's forgotten message: every connect would ask again.
    fn retained_reads_are_ignored(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        let mqtt = rig.client();
        mqtt.publish_retained(&mqtt.topic('R', "battery/512/Soc"), "");
        mqtt.publish_retained(&mqtt.topic('R', "battery/512/Dc"), "x");
        mqtt.publish_retained(&mqtt.topic('R', "keepalive"), "x");
        mqtt.publish_retained(&mqtt.topic('R', "system/0/Serial"), "x");
        mqtt.subscribe(&mqtt.topic('N', "battery/#"));
        mqtt.subscribe(&mqtt.topic('N', "full_publish_completed"));
        rig.start_bridge();
        rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
        mqtt.read("battery/512/Dc/0/Voltage");
        mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
        assert_eq!(mqtt.since().len(), 1, "{:?}", mqtt.since());
    }
}

#[test]
fn another_systems_requests_are_not_ours() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.publish("R/ffffffffffff/battery/512/Soc", "");
    mqtt.publish("R/ffffffffffff/keepalive", "");
    mqtt.publish(&format!("R/{PORTAL}x/keepalive"), "");
    mqtt.publish("W/ffffffffffff/battery/512/Soc", r#"{"value":1}"#);
    mqtt.read("battery/512/Dc/0/Voltage");
    mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
    assert_eq!(mqtt.items().len(), 1, "{:?}", mqtt.items());
    assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty());
}

#[test]
fn a_read_that_is_never_answered_holds_nobody_up() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.fake().add(TANK, tank());
    rig.start_bridge();
    let mqtt = rig.listener();
    rig.fake().behave(BATTERY, "GetValue", "never");
    for _ in 0..200 {
        mqtt.read("battery/512/Soc");
    }
    mqtt.read("tank/3/Level");
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    mqtt.completed();
}

/// Topics that are no topics of ours, or can be none.
#[test]
fn odd_topics_are_survived() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    for rest in [
        "",
        "/",
        "//",
        "battery",
        "battery/",
        "battery/512",
        "battery/512/",
        "battery/512//Soc",
        "battery//Soc",
        "battery/512/Soc/",
        "battery/512/ä",
        "battery/512/a b",
        "keepalive/",
        "keepalive/x",
        "system/0/Serial/",
        "system/0",
        "battery/-1/Soc",
        "battery/99999999999999999999/Soc",
    ] {
        mqtt.read(rest);
        // a slash too many is forgiven
        if rest != "battery/512/Soc/" {
            mqtt.write(rest, r#"{"value":1}"#);
        }
    }
    mqtt.read(&format!("battery/512/{}", "x/".repeat(150)));
    mqtt.read(&format!("battery/512/{}", "y".repeat(60_000)));
    mqtt.publish(&format!("R/{PORTAL}"), "");
    mqtt.publish(&format!("W/{PORTAL}"), r#"{"value":1}"#);
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty(), "{:?}", rig.fake().calls_of(BATTERY, "SetValue"));
    assert!(rig.runs(Part::Bridge));
}
