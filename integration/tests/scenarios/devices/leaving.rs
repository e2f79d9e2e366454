//! How a device leaves: its own word, its last will, another topic's; and that nothing of it is left.

use venus_mqtt_integration::{DEADLINE, Device, Part, Setup, device::name, eventually};

use super::{SENSOR, T1, running, sensor};

both! {
    /// The device is cut off and the broker says so: its last will.
    fn a_last_will_ends_it(rig in Setup::devices()) {
        rig.start_bridge();
        let before = rig.fake().connections();
        let (device, _) = sensor(&rig);
        let other = Device::connect(&rig, "fe002");
        other.register(T1);
        device.vanish();
        rig.fake().await_no_name(SENSOR);
        assert!(rig.fake().owner_of(&name("temperature", "fe002", "t1")).is_some());
        eventually("its connection is closed", DEADLINE, || (rig.fake().connections() == before + 1).then_some(()));
    }
}

#[test]
fn connected_0_ends_it() {
    let rig = running(Setup::devices());
    for status in [
        r#"{"clientId": "fe001", "connected": 0, "version": "v1.0", "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "fe001", "connected": false, "services": {}}"#,
        r#"{"clientid": "fe001", "connected": 0}"#,
        r#"{"connected": 0, "services": {"other": "nonsense"}}"#,
    ] {
        let (device, _) = sensor(&rig);
        device.mqtt.mark();
        device.status(status);
        rig.fake().await_no_name(SENSOR);
        // and once more, by one that is not there
        device.status(status);
        device.register(T1);
        assert!(device.mqtt.on(&device.topic("Error")).is_empty(), "{status}");
        device.leave();
        rig.fake().await_no_name(SENSOR);
    }
}

/// Every item is invalid before the name goes; awake, its topics are cleared.
#[test]
fn items_are_invalid_first() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.mqtt.keepalive("");
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
    device.mqtt.n("temperature/1/Temperature", r#"{"value":23.4}"#);
    let owner = rig.fake().owner_of(SENSOR).expect("it is there");
    let watch = rig.watch();
    device.mqtt.mark();
    device.leave();
    let signals = watch.wait_for("the name goes", |signals| {
        let gone =
            signals.iter().position(|signal| signal.member == "NameOwnerChanged" && signal.body.starts_with(&format!("{SENSOR} ")))?;
        Some(signals[..gone].to_vec())
    });
    let said: Vec<_> = signals.iter().filter(|signal| signal.sender == owner).collect();
    for path in ["/Temperature", "/Connected", "/TemperatureType", "/CustomName"] {
        let entry = format!("{path} {{Text s \"---\", Value ai []}}");
        assert!(said.iter().any(|signal| signal.member == "ItemsChanged" && signal.body.contains(&entry)), "{path}: {said:?}");
    }
    device.mqtt.expect(&device.mqtt.topic('N', "temperature/1/Temperature"), "");
    eventually("nothing of it is retained", DEADLINE, || {
        rig.retained("#").keys().all(|topic| !topic.contains("/temperature/")).then_some(())
    });
}

#[test]
fn another_topics_word_ends_it() {
    let rig = running(Setup::devices());
    for (lwt_value, alive, dead) in [(r#", "lwt_value": "Offline""#, "Online", "Offline"), ("", "true", "false")] {
        let device = Device::connect(&rig, "fe001");
        let status = format!(r#"{{"clientId": "fe001", "connected": 1, "services": {T1}, "lwt_topic": "tele/plug_1/LWT"{lwt_value}}}"#);
        device.register_as(&status);
        device.mqtt.publish("tele/plug_1/LWT", alive);
        device.mqtt.publish("tele/plug_2/LWT", dead);
        device.mqtt.publish("tele/plug_1/LWT", "");
        assert_eq!(device.register_as(&status).instance("t1"), 1);
        super::settle(&rig, &device.mqtt, 1);
        assert!(rig.fake().owner_of(SENSOR).is_some());
        device.mqtt.publish("tele/plug_1/LWT", dead);
        rig.fake().await_no_name(SENSOR);
        // it is back as if nothing had been
        device.register_as(&status);
        device.leave();
        rig.fake().await_no_name(SENSOR);
    }
}

/// What its topic still says of its last life is not about this one.
#[test]
fn a_retained_word_of_before() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "fe001");
    device.mqtt.publish_retained("tele/plug/LWT", "Offline");
    device.mqtt.barrier();
    let status =
        format!(r#"{{"clientId": "fe001", "connected": 1, "services": {T1}, "lwt_topic": "tele/plug/LWT", "lwt_value": "Offline"}}"#);
    device.register_as(&status);
    super::settle(&rig, &device.mqtt, 1);
    device.mqtt.publish_retained("tele/plug/LWT", "Online");
    super::settle(&rig, &device.mqtt, 1);
    assert!(rig.fake().owner_of(SENSOR).is_some());
    device.mqtt.publish_retained("tele/plug/LWT", "Offline");
    rig.fake().await_no_name(SENSOR);
}

/// Two devices behind one gateway, whose last will is theirs.
#[test]
fn one_topics_word_can_end_many() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "a");
    let status = |id: &str| {
        format!(r#"{{"clientId": "{id}", "connected": 1, "services": {T1}, "lwt_topic": "gateway/state", "lwt_value": "offline"}}"#)
    };
    device.mqtt.subscribe("device/b/+");
    device.register_as(&status("a"));
    device.mqtt.publish("device/b/Status", status("b"));
    device.mqtt.expect_topic("device/b/DBus");
    let (a, b) = (name("temperature", "a", "t1"), name("temperature", "b", "t1"));
    // one of them leaves, and the other one still listens
    device.mqtt.publish("device/b/Status", r#"{"clientId": "b", "connected": 0}"#);
    rig.fake().await_no_name(&b);
    assert!(rig.fake().owner_of(&a).is_some());
    device.mqtt.publish("gateway/state", "offline");
    rig.fake().await_no_name(&a);
}

/// No number, no name and no setting is lost when it comes back; values are its own to send again.
#[test]
fn it_comes_back_as_it_was() {
    let rig = running(Setup::devices());
    let first = Device::connect(&rig, "fe000");
    first.register(T1);
    let (device, answer) = sensor(&rig);
    assert_eq!(answer.instance("t1"), 2);
    device.mqtt.write("temperature/2/Temperature", r#"{"value": 23.4}"#);
    device.mqtt.write("temperature/2/CustomName", r#"{"value": "Cellar"}"#);
    rig.fake().await_shown(SENSOR, "/CustomName", "s \"Cellar\"");
    device.vanish();
    rig.fake().await_no_name(SENSOR);
    first.leave();
    let (_device, again) = sensor(&rig);
    assert_eq!(again, answer);
    assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), "s \"Cellar\"");
    assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "ai []");
}

/// Registered and gone a thousand times: no connection, no descriptor and no memory is left of it.
#[test]
fn a_thousand_times() {
    const WARM_UP: u32 = 100;
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let device = Device::connect(&rig, "fe001");
    let tank = name("tank", "fe001", "tk1");
    let cycle = || {
        device.register(r#"{"t1": "temperature", "tk1": "tank"}"#);
        device.leave();
        rig.fake().await_no_name(SENSOR);
        rig.fake().await_no_name(&tank);
    };
    let connections = rig.fake().connections();
    let figures = || {
        eventually("their connections are closed", DEADLINE, || (rig.fake().connections() <= connections).then_some(()));
        (rig.fake().connections(), rig.open_files(Part::Bridge), rig.rss(Part::Bridge))
    };
    let started = std::time::Instant::now();
    (0..WARM_UP).for_each(|_| cycle());
    let before = figures();
    (WARM_UP..1000).for_each(|_| cycle());
    let after = figures();
    eprintln!(
        "1,000 times registered and gone in {:?}: connections {} to {}, open files {} to {}, RSS {} to {} KiB",
        started.elapsed(),
        before.0,
        after.0,
        before.1,
        after.1,
        before.2,
        after.2
    );
    assert_eq!((before.0, before.1), (after.0, after.1));
    assert!(after.2 < before.2 + 1024, "RSS grew from {} to {} KiB", before.2, after.2);
    let log = rig.log(Part::Bridge).len();
    assert!(log < 1024 * 1024, "{log} bytes of log for 1,000 times");
}
