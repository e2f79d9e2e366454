//! What nobody should send, and somebody does: a clear refusal, nobody else affected, nothing left over.

use std::time::{Duration, Instant};

use venus_mqtt_integration::{DEADLINE, Device, Part, Rig, Setup, device::name, eventually};

use super::{SENSOR, T1, running, sensor, settle};

/// The bystander still works, and the bus has as many connections as before.
fn nobody_else_is_affected(rig: &Rig, bystander: &Device, connections: usize) {
    settle(rig, &bystander.mqtt, 1);
    eventually("the connections of before", DEADLINE, || (rig.fake().connections() == connections).then_some(()));
}

#[test]
fn what_is_no_status_is_refused() {
    let mut rig = running(Setup::devices());
    let (bystander, _) = sensor(&rig);
    let connections = rig.fake().connections();
    let device = Device::connect(&rig, "bad");
    let services = |list: &str| format!(r#"{{"clientId": "bad", "connected": 1, "version": "v1", "services": {list}}}"#);
    let many: Vec<_> = (0..1000).map(|n| format!(r#""s{n}": "tank""#)).collect();
    let mut payloads: Vec<Vec<u8>> = [
        "nonsense",
        "5",
        "[]",
        "null",
        "true",
        "\"text\"",
        "{",
        "{}",
        " ",
        "\0",
        r#"{"clientId": "bad"}"#,
        r#"{"clientId": "bad", "connected": 1}"#,
        r#"{"clientId": "bad", "connected": "perhaps", "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "bad", "connected": 2, "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "bad", "connected": null, "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "bad", "connected": [1], "services": {"t1": "temperature"}}"#,
        r#"{"clientId": 5.5, "connected": 1, "services": {"t1": "temperature"}}"#,
        r#"{"clientId": ["bad"], "connected": 1, "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "", "connected": 1, "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "bad", "connected": 1, "version": {"a": 1}, "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "bad", "connected": 1, "services": {"t1": "temperature"}, "lwt_topic": 5}"#,
        r#"{"clientId": "bad", "connected": 1, "services": {"t1": "temperature"}, "lwt_topic": "a/+/b"}"#,
        r#"{"clientId": "bad", "connected": 1, "services": {"t1": "temperature"}, "lwt_topic": "a/#"}"#,
        r#"{"clientId": "bad", "connected": 1, "services": {"t1": "temperature"}, "lwt_topic": "a\u0000b"}"#,
        r#"{"clientId": "bad", "connected": 1, "services": {"t1": "temperature"}} trailing"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    for list in [
        "5",
        "[]",
        r#"["temperature"]"#,
        r#""temperature""#,
        "null",
        r#"{"t1": 5}"#,
        r#"{"t1": null}"#,
        r#"{"t1": ["temperature"]}"#,
        r#"{"t1": "thermometer"}"#,
        r#"{"t1": ""}"#,
        r#"{"t1": "temperature", "t2": "thermometer"}"#,
        r#"{"t1": "Temperature"}"#,
        r#"{"t1": "../tank"}"#,
        r#"{"t1": "settings"}"#,
        r#"{"": "tank"}"#,
        r#"{"a/b": "tank"}"#,
        r#"{"a\nb": "tank"}"#,
        r#"{"a\u0000b": "tank"}"#,
        &format!(r#"{{"{}": "tank"}}"#, "k".repeat(33)),
        &format!(r#"{{"{}": "tank"}}"#, "k".repeat(255)),
        &format!(r#"{{"t1": "{}"}}"#, "tank".repeat(200)),
        &format!("{{{}}}", many.join(", ")),
    ] {
        payloads.push(services(list).into_bytes());
    }
    for id in ["a/b", "../../etc", "a\\nb", "a\\u0000b", "a+b", "#", &"i".repeat(33), &"i".repeat(255)] {
        payloads.push(format!(r#"{{"clientId": "{id}", "connected": 1, "services": {T1}}}"#).into_bytes());
    }
    payloads.push(b"\xff\xfe{\"clientId\": \"bad\"}".to_vec());
    payloads.push(format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes());
    payloads.push(services(&format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000))).into_bytes());
    payloads.push("x".repeat(200 * 1024).into_bytes());
    payloads.push(services(&format!("{T1}{}", " ".repeat(200 * 1024))).into_bytes());
    payloads.push(services(&format!(r#"{{"t1": "temperature", "{}": "tank"}}"#, "k".repeat(200 * 1024))).into_bytes());
    let mut accepted = Vec::new();
    for payload in payloads {
        let shown = String::from_utf8_lossy(&payload[..payload.len().min(100)]).into_owned();
        device.mqtt.mark();
        device.status(&payload);
        let answer = device.mqtt.wait_for(&format!("an answer to {shown}"), |message| {
            message.topic == device.topic("Error") || message.topic == device.topic("DBus")
        });
        if answer.topic == device.topic("DBus") {
            device.status(String::from_utf8_lossy(&payload).replace(r#""connected": 1"#, r#""connected": 0"#));
            accepted.push(shown);
            continue;
        }
        assert!(answer.payload.len() < 1024, "{answer:?}");
        assert!(serde_json::from_slice::<serde_json::Value>(&answer.payload).is_ok_and(|json| json["error"].is_string()), "{answer:?}");
    }
    assert!(accepted.is_empty(), "accepted: {accepted:#?}");
    nobody_else_is_affected(&rig, &bystander, connections);
    assert!(rig.fake().names().iter().all(|name| !name.contains("mqtt_bad")), "{:?}", rig.fake().names());
    // nothing of it is in its way
    assert_eq!(device.register(T1).instance("t1"), 2);
    // and a bad one does not end what is there
    device.refuse("nonsense");
    assert!(rig.fake().owner_of(&name("temperature", "bad", "t1")).is_some());
    assert!(rig.runs(Part::Bridge));
}

/// A bad ID in the topic: nobody can be answered, nobody is harmed.
#[test]
fn topics_of_all_kinds() {
    let mut rig = running(Setup::devices());
    let (bystander, _) = sensor(&rig);
    let connections = rig.fake().connections();
    let long = "i".repeat(255);
    // the broker may throw out whoever publishes there: a client each, without a last will
    let publish = |topic: &str, payload: &str| {
        let client = rig.client();
        client.publish(topic, payload);
        client.barrier_or_closed();
    };
    for topic in [
        "device//Status",
        "device/../Status",
        "device/a\nb/Status",
        "device/$SYS/Status",
        "device/ /Status",
        &format!("device/{long}/Status"),
    ] {
        for payload in [r#"{"connected": 1, "services": {"x y": "tank", "t1": "nonsense"}}"#, "5", ""] {
            publish(topic, payload);
        }
    }
    for topic in ["device/Status", "device/a/b/Status", "device/a/Status/b", "device/fe001/DBus", "device/fe001/Error", "device", "device/"]
    {
        publish(topic, r#"{"clientId": "fe001", "connected": 0}"#);
    }
    nobody_else_is_affected(&rig, &bystander, connections);
    assert!(rig.fake().owner_of(SENSOR).is_some());
    assert!(rig.runs(Part::Bridge));
}

/// The bad message that used to end it for ever: retained.
#[test]
fn a_bad_status_is_retained() {
    let mut rig = running(Setup::devices());
    let (bystander, _) = sensor(&rig);
    for (id, payload) in
        [("b1", "nonsense"), ("b2", "5"), ("b3", r#"{"clientId": "a/b", "connected": 1, "services": {"t1": "temperature"}}"#)]
    {
        bystander.mqtt.publish_retained(&format!("device/{id}/Status"), payload);
    }
    settle(&rig, &bystander.mqtt, 1);
    rig.stop(Part::Bridge);
    rig.start_bridge();
    assert_eq!(bystander.register(T1).instance("t1"), 1);
    assert!(rig.runs(Part::Bridge));
}

/// A hundred a second, good ones and bad ones.
#[test]
fn a_hundred_status_a_second() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let (bystander, _) = sensor(&rig);
    let device = Device::connect(&rig, "mad");
    device.register(T1);
    let connections = rig.fake().connections();
    let owner = rig.fake().owner_of(&name("temperature", "mad", "t1"));
    let log = rig.log(Part::Bridge).len();
    let bad = ["nonsense", r#"{"clientId": "mad", "connected": 1, "services": {"t1": "thermometer"}}"#];
    let mut slowest = Duration::ZERO;
    for n in 0..300_usize {
        let next = Instant::now() + Duration::from_millis(10);
        match n % 3 {
            0 => device.status(device.status_of(T1)),
            odd => device.status(bad[odd - 1]),
        }
        let asked = Instant::now();
        rig.fake().value(SENSOR, "/Temperature").expect("it answers");
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    eprintln!("a bystander's slowest answer meanwhile: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    nobody_else_is_affected(&rig, &bystander, connections);
    device.register(T1);
    assert_eq!(rig.fake().owner_of(&name("temperature", "mad", "t1")), owner);
    let grown = rig.log(Part::Bridge).len() - log;
    assert!(grown < 64 * 1024, "{grown} bytes of log in three seconds");
}

/// On and off ten times a second, and as fast as it can: what it said last holds.
#[test]
fn flapping() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let (bystander, _) = sensor(&rig);
    let connections = rig.fake().connections();
    let log = rig.log(Part::Bridge).len();
    let device = Device::connect(&rig, "mad");
    let flap = |times: u32, pause: Duration| {
        for n in 0..times {
            let services = if n % 2 == 0 { r#"{"t1": "temperature", "tk1": "tank"}"# } else { r#"{"t1": "tank"}"# };
            device.status(device.status_of(services));
            std::thread::sleep(pause / 2);
            device.leave();
            std::thread::sleep(pause / 2);
        }
    };
    flap(30, Duration::from_millis(100));
    nobody_else_is_affected(&rig, &bystander, connections);
    flap(200, Duration::ZERO);
    nobody_else_is_affected(&rig, &bystander, connections);
    flap(5, Duration::ZERO);
    device.register(T1);
    eventually("what it said last", DEADLINE, || {
        let names: Vec<_> = rig.fake().names().into_iter().filter(|name| name.contains("mqtt_mad")).collect();
        (names == [name("temperature", "mad", "t1")]).then_some(())
    });
    nobody_else_is_affected(&rig, &bystander, connections + 1);
    let grown = rig.log(Part::Bridge).len() - log;
    assert!(grown < 256 * 1024, "{grown} bytes of log");
}

/// Two devices that both believe to be `twin`.
#[test]
fn two_devices_with_the_same_id() {
    let rig = running(Setup::devices());
    let (bystander, _) = sensor(&rig);
    let connections = rig.fake().connections();
    let (one, two) = (Device::connect(&rig, "twin"), Device::connect(&rig, "twin"));
    for _ in 0..20 {
        one.status(one.status_of(r#"{"t1": "temperature"}"#));
        two.status(two.status_of(r#"{"t1": "tank", "x": "tank"}"#));
    }
    // which of two clients' messages the broker takes first is its affair
    one.mqtt.barrier();
    two.status(two.status_of(r#"{"t1": "tank", "x": "tank"}"#));
    eventually("what was said last", DEADLINE, || {
        let mut names: Vec<_> = rig.fake().names().into_iter().filter(|name| name.contains("mqtt_twin")).collect();
        names.sort();
        (names == [name("tank", "twin", "t1"), name("tank", "twin", "x")]).then_some(())
    });
    one.leave();
    two.leave();
    nobody_else_is_affected(&rig, &bystander, connections);
}

/// Writes of any content to a device's own items.
#[test]
fn malformed_writes() {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    for payload in [
        &b""[..],
        b"5",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xff",
        br#"{"value"}"#,
        br#"{"value": 1e999}"#,
        br#"{"value": {"a": {"b": []}}}"#,
        br#"{"value": "\u0000"}"#,
        br#"{"value": [[[1]]]}"#,
        br#"{"value": 18446744073709551616}"#,
        br#"{"value": [1, "x", null]}"#,
    ] {
        for path in
            ["Temperature", "TemperatureType", "CustomName", "DeviceInstance", "Connected", "Mgmt/Connection", "Nothing", "Alarms", ""]
        {
            device.mqtt.write(&format!("temperature/1/{path}"), payload);
        }
    }
    let long = format!(r#"{{"value": "{}"}}"#, "x".repeat(60_000));
    device.mqtt.write("temperature/1/CustomName", long);
    settle(&rig, &device.mqtt, 1);
    assert_eq!(rig.fake().shown(SENSOR, "/DeviceInstance"), "i 1");
    assert_eq!(rig.fake().shown(SENSOR, "/Mgmt/Connection"), "s \"MQTT:fe001\"");
    assert!(rig.fake().shown(SENSOR, "/CustomName").len() < 2000);
    assert!(rig.runs(Part::Bridge));
}
