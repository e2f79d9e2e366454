//! From Status to DBus: what makes a device of the system, and what a later Status changes.

use venus_mqtt_integration::{
    Device, PORTAL, Part, Rig, Setup,
    device::{name, registration},
    eventually,
    items::Items,
    mqtt::without_spaces,
};

use super::{SENSOR, T1, instance_setting, running, sensor};

const BUS_ITEM: &str = "com.victronenergy.BusItem";

fn items_of(rig: &Rig, service: &str) -> Items {
    rig.fake().call(service, "/", BUS_ITEM, "GetItems", &()).expect("it answers")
}

both! {
    /// A Status, its answer, a value, a last will: the whole life of a device.
    fn a_device_from_power_on_to_last_will(rig in Setup::devices()) {
        rig.start_bridge();
        let others = rig.fake().connections();
        let device = Device::connect(&rig, "fe001");
        let answer = device.register(r#"{"t1": "temperature", "tk1": "tank"}"#);
        let paths = |kind: &str| ["N", "R", "W"].map(|letter| format!(r#""{letter}":"{letter}/{PORTAL}/{kind}/1""#)).join(",");
        assert_eq!(
            String::from_utf8(without_spaces(answer.text.as_bytes())).expect("JSON"),
            format!(
                r#"{{"portalId":"{PORTAL}","deviceInstance":{{"t1":1,"tk1":1}},"topicPath":{{"t1":{{{}}},"tk1":{{{}}}}}}}"#,
                paths("temperature"),
                paths("tank")
            )
        );
        // the first protocol's answer follows
        device.mqtt.expect(&device.topic("DeviceInstance"), r#"{"t1":1,"tk1":1}"#);
        let heard: Vec<_> = device.mqtt.since().iter().filter_map(|message| message.topic.strip_prefix("device/fe001/").map(str::to_owned)).collect();
        assert_eq!(heard, ["Status", "DBus", "DeviceInstance"]);
        let tank = name("tank", "fe001", "tk1");
        assert!(rig.fake().owner_of(SENSOR).is_some() && rig.fake().owner_of(&tank).is_some());
        // one connection each
        assert_eq!(rig.fake().connections(), others + 2);
        assert_eq!(rig.fake().shown("com.victronenergy.settings", &instance_setting("fe001", "t1")), "s \"temperature:1\"");
        device.mqtt.keepalive("");
        device.mqtt.completed();
        device.mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
        device.mqtt.write("tank/1/Level", r#"{"value": 62}"#);
        device.mqtt.n("temperature/1/Temperature", r#"{"value":23.4}"#);
        device.mqtt.n("tank/1/Level", r#"{"value":62.0}"#);
        rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
        device.vanish();
        rig.fake().await_no_name(SENSOR);
        rig.fake().await_no_name(&tank);
        eventually("their connections are closed", venus_mqtt_integration::DEADLINE, || (rig.fake().connections() == others).then_some(()));
    }
}

/// Whoever sees the name finds everything: nothing is added after it.
#[test]
fn items_first_name_last() {
    let rig = running(Setup::devices());
    let watch = rig.watch();
    let device = Device::connect(&rig, "fe001");
    device.status(device.status_of(T1));
    let owner = rig.fake().await_name(SENSOR);
    let items = items_of(&rig, SENSOR);
    device.answered();
    watch.barrier();
    assert!(watch.of(&owner).is_empty(), "{:?}", watch.of(&owner));
    assert_eq!(items.keys().collect::<Vec<_>>(), items_of(&rig, SENSOR).keys().collect::<Vec<_>>());
    for (path, wanted) in [
        ("/Mgmt/Connection", "s \"MQTT:fe001\""),
        ("/DeviceInstance", "i 1"),
        ("/FirmwareVersion", "s \"v1.0\""),
        ("/Connected", "i 1"),
        ("/ProductId", "i 41314"),
        ("/CustomName", "s \"My Temperature Sensor\""),
        ("/TemperatureType", "i 2"),
        ("/Status", "i 0"),
        ("/Temperature", "ai []"),
        ("/Pressure", "ai []"),
        ("/Humidity", "ai []"),
        ("/BatteryVoltage", "ai []"),
        ("/TxPower", "ai []"),
    ] {
        let value = items.get(path).unwrap_or_else(|| panic!("no {path}")).get("Value").expect("a value");
        assert_eq!(venus_mqtt_integration::fake::show_value(value), wanted, "{path}");
    }
    for path in ["/Mgmt/ProcessName", "/Mgmt/ProcessVersion", "/DeviceName", "/ProductName"] {
        let text = rig.fake().shown(SENSOR, path);
        assert!(text.starts_with("s \"") && text.len() > 4, "{path} {text}");
    }
    assert_eq!(rig.fake().shown(SENSOR, "/Mgmt/ProcessName"), "s \"venus-mqtt\"");
}

#[test]
fn every_type_registers() {
    let rig = running(Setup::devices().device("max_services = 30"));
    let kinds = [
        "temperature",
        "tank",
        "pvinverter",
        "grid",
        "gps",
        "evcharger",
        "battery",
        "vebus",
        "genset",
        "acload",
        "inverter",
        "solarcharger",
        "multi",
        "charger",
        "dcload",
        "dcsource",
        "dcsystem",
        "alternator",
        "switch",
        "meteo",
        "digitalinput",
        "heatpump",
        "motordrive",
    ];
    let services: Vec<_> = kinds.iter().map(|kind| format!(r#""{kind}1": "{kind}""#)).collect();
    let device = Device::connect(&rig, "all");
    let answer = device.register(&format!("{{{}}}", services.join(", ")));
    device.mqtt.keepalive("");
    device.mqtt.completed();
    for kind in kinds {
        assert_eq!(answer.instance(&format!("{kind}1")), 1, "{kind}");
        assert_eq!(rig.fake().shown(&name(kind, "all", &format!("{kind}1")), "/Connected"), "i 1");
        device.mqtt.n(&format!("{kind}/1/Connected"), r#"{"value":1}"#);
    }
}

#[test]
fn the_first_protocols_answer_can_be_off() {
    let rig = running(Setup::devices().device("device_instance_topic = false"));
    let (device, _) = sensor(&rig);
    device.status(device.status_of(T1));
    let answer = device.topic("DBus");
    device.mqtt.wait_within("two answers", venus_mqtt_integration::DEADLINE, |messages| {
        (messages.iter().filter(|message| message.topic == answer).count() == 2).then_some(())
    });
    assert!(device.mqtt.on(&device.topic("DeviceInstance")).is_empty());
}

#[test]
fn it_can_be_off() {
    let rig = running(Setup::devices().device("enabled = false"));
    let device = Device::connect(&rig, "fe001");
    device.status(device.status_of(T1));
    device.mqtt.read("system/0/Serial");
    device.mqtt.n("system/0/Serial", &format!(r#"{{"value":"{PORTAL}"}}"#));
    device.mqtt.barrier();
    assert!(device.mqtt.on(&device.topic("DBus")).is_empty() && device.mqtt.on(&device.topic("Error")).is_empty());
    assert!(rig.fake().owner_of(SENSOR).is_none());
}

/// Every minute, by some devices: nothing changes, nothing is said but the answer.
#[test]
fn a_repeat_changes_nothing() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let (device, first) = sensor(&rig);
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
    let owner = rig.fake().owner_of(SENSOR);
    let connections = rig.fake().connections();
    let calls = rig.fake().settings_calls();
    let lines = rig.log(Part::Bridge).lines().count();
    let watch = rig.watch();
    for _ in 0..20 {
        assert_eq!(device.register(T1), first);
        device.mqtt.expect(&device.topic("DeviceInstance"), r#"{"t1":1}"#);
    }
    assert_eq!(rig.fake().owner_of(SENSOR), owner);
    assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "d 23.4");
    watch.barrier();
    assert!(watch.of(&owner.expect("it is there")).is_empty());
    assert_eq!(rig.fake().settings_calls(), calls);
    // the monitor's own
    assert_eq!(rig.fake().connections(), connections + 1);
    let log = rig.log(Part::Bridge);
    assert_eq!(log.lines().count(), lines, "{}", log.lines().skip(lines).collect::<Vec<_>>().join("\n"));
}

/// Other services, another version: only what changed changes.
#[test]
fn a_later_status_changes_what_it_changes() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
    let owner = rig.fake().owner_of(SENSOR);
    let unchanged = |rig: &Rig| {
        assert_eq!(rig.fake().owner_of(SENSOR), owner);
        assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "d 23.4");
    };
    // one more
    let second = name("temperature", "fe001", "t2");
    let more = device.register(r#"{"t1": "temperature", "t2": "temperature"}"#);
    assert_eq!((more.instance("t1"), more.instance("t2")), (1, 2));
    assert_eq!(rig.fake().shown(&second, "/DeviceInstance"), "i 2");
    unchanged(&rig);
    // another version
    device
        .register_as(r#"{"clientId": "fe001", "connected": 1, "version": "v2.0", "services": {"t1": "temperature", "t2": "temperature"}}"#);
    rig.fake().await_shown(SENSOR, "/FirmwareVersion", "s \"v2.0\"");
    rig.fake().await_shown(&second, "/FirmwareVersion", "s \"v2.0\"");
    unchanged(&rig);
    // one less
    let less = device.register_as(r#"{"clientId": "fe001", "connected": 1, "version": "v2.0", "services": {"t1": "temperature"}}"#);
    assert_eq!(less.instances.keys().collect::<Vec<_>>(), ["t1"]);
    rig.fake().await_no_name(&second);
    unchanged(&rig);
    // and back: the number was kept for it, although another device came between
    let other = Device::connect(&rig, "fe002");
    assert_eq!(other.register(T1).instance("t1"), 3);
    assert_eq!(device.register(r#"{"t1": "temperature", "t2": "temperature"}"#).instance("t2"), 2);
    unchanged(&rig);
}

#[test]
fn another_type_is_another_class() {
    let rig = running(Setup::devices());
    let other = Device::connect(&rig, "fe000");
    other.register(r#"{"tk1": "tank"}"#);
    let (device, _) = sensor(&rig);
    let answer = device.register(r#"{"t1": "tank"}"#);
    assert_eq!(answer.instance("t1"), 2);
    assert!(answer.text.contains(&format!("W/{PORTAL}/tank/2")), "{}", answer.text);
    rig.fake().await_no_name(SENSOR);
    let tank = name("tank", "fe001", "t1");
    assert_eq!(rig.fake().shown(&tank, "/DeviceInstance"), "i 2");
    assert_eq!(rig.fake().shown("com.victronenergy.settings", &instance_setting("fe001", "t1")), "s \"tank:2\"");
    device.mqtt.write("tank/2/Level", r#"{"value": 50}"#);
    rig.fake().await_shown(&tank, "/Level", "d 50.0");
}

#[test]
fn all_that_devices_send_is_understood() {
    let rig = running(Setup::devices());
    for (n, status) in [
        r#"{"clientId": "ID", "connected": 1, "version": "v1.0", "services": {"t1": "temperature"}}"#,
        r#"{"clientid": "ID", "connected": 1, "services": {"t1": "temperature"}}"#,
        r#"{"connected": 1, "version": "v1.0", "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "ID", "connected": true, "version": 1.5, "services": {"t1": "temperature"}}"#,
        r#"{"clientId": "ID", "connected": 1, "version": 2, "services": {"t1": "temperature"}}"#,
        r#"{"services": {"t1": "temperature"}, "version": true, "unknown": [1, {"a": null}], "connected": 1, "clientId": "ID"}"#,
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("form{n}");
        let device = Device::connect(&rig, &id);
        let answer = device.register_as(&status.replace("ID", &id));
        assert!(answer.instance("t1") > 0, "{status}");
        let service = name("temperature", &id, "t1");
        assert_eq!(rig.fake().shown(&service, "/Connected"), "i 1", "{status}");
        assert_eq!(rig.fake().shown(&service, "/Mgmt/Connection"), format!("s \"MQTT:{id}\""));
        device.status(status.replace("ID", &id).replace(r#""connected": 1"#, r#""connected": 0"#).replace(": true,", ": false,"));
        rig.fake().await_no_name(&service);
    }
}

#[test]
fn the_version_is_any_scalar() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "fe001");
    for (version, shown) in [(r#""v1.0 ALPHA""#, "v1.0 ALPHA"), ("1.5", "1.5"), ("2", "2"), (r#""""#, "")] {
        device.register_as(&format!(r#"{{"clientId": "fe001", "connected": 1, "version": {version}, "services": {T1}}}"#));
        rig.fake().await_shown(SENSOR, "/FirmwareVersion", &format!("s \"{shown}\""));
    }
}

/// How a retained Status is removed: nobody's refusal, nobody's end.
#[test]
fn an_empty_payload_is_ignored() {
    let rig = running(Setup::devices());
    let (device, answer) = sensor(&rig);
    device.mqtt.mark();
    device.status("");
    device.mqtt.publish_retained(&device.topic("Status"), "");
    device.status(device.status_of(T1));
    assert_eq!(device.answered(), answer);
    assert!(device.mqtt.on(&device.topic("Error")).is_empty());
    assert!(rig.fake().owner_of(SENSOR).is_some());
}

#[test]
fn a_retained_status_counts() {
    let mut rig = Rig::new(Setup::devices());
    let device = Device::connect(&rig, "fe001");
    device.mqtt.publish_retained(&device.topic("Status"), device.status_of(T1));
    device.mqtt.barrier();
    rig.start_bridge();
    device.answered();
    assert_eq!(rig.fake().shown(SENSOR, "/Connected"), "i 1");
    // removed, it is not its end
    device.mqtt.publish_retained(&device.topic("Status"), "");
    super::settle(&rig, &device.mqtt, 1);
    assert!(rig.fake().owner_of(SENSOR).is_some());
}

/// A flow that sends another `clientId` than its topic's: it is who it says it is, and both are answered.
#[test]
fn a_topic_may_differ_from_the_client_id() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "topic");
    device.mqtt.subscribe("device/identity/+");
    let status = format!(r#"{{"clientId": "identity", "connected": 1, "version": "v1.0", "services": {T1}}}"#);
    let answer = device.register_as(&status);
    let same = registration(&device.mqtt.expect_topic("device/identity/DBus"));
    assert_eq!(answer, same);
    device.mqtt.expect("device/identity/DeviceInstance", r#"{"t1":1}"#);
    device.mqtt.expect("device/topic/DeviceInstance", r#"{"t1":1}"#);
    let service = name("temperature", "identity", "t1");
    assert_eq!(rig.fake().shown(&service, "/Mgmt/Connection"), "s \"MQTT:identity\"");
    assert!(rig.fake().owner_of(&name("temperature", "topic", "t1")).is_none());
    // a refusal, too
    device.mqtt.mark();
    device.status(status.replace("\"temperature\"", "\"thermometer\""));
    device.refused();
    device.mqtt.expect_topic("device/identity/Error");
    device.status(status.replace(r#""connected": 1"#, r#""connected": 0"#));
    rig.fake().await_no_name(&service);
}

#[test]
fn strict_refuses_another_client_id() {
    let rig = running(Setup::devices().device("strict_client_id = true"));
    let device = Device::connect(&rig, "topic");
    let error = device.refuse(format!(r#"{{"clientId": "identity", "connected": 1, "services": {T1}}}"#));
    assert!(error.contains("identity") || error.contains("topic"), "{error}");
    assert!(rig.fake().owner_of(&name("temperature", "identity", "t1")).is_none());
    device.register(T1);
    let absent = device.register_as(&format!(r#"{{"connected": 1, "services": {T1}}}"#));
    assert_eq!(absent.instance("t1"), 1);
}

#[test]
fn of_two_ids_that_become_the_same_the_second_is_refused() {
    let rig = running(Setup::devices());
    let first = Device::connect(&rig, "a-b");
    first.register(T1);
    let service = name("temperature", "a_b", "t1");
    let owner = rig.fake().owner_of(&service);
    assert!(owner.is_some());
    let second = Device::connect(&rig, "a.b");
    let error = second.refuse(second.status_of(T1));
    assert!(error.contains("a-b"), "it should name the other: {error}");
    // not even its end is the first one's
    second.leave();
    assert!(first.register(T1).instance("t1") == 1);
    assert_eq!(rig.fake().owner_of(&service), owner);
    // and what only becomes the same together with its service
    let (long, short) = (Device::connect(&rig, "x_y"), Device::connect(&rig, "x"));
    long.register(r#"{"z": "temperature"}"#);
    short.refuse(short.status_of(r#"{"y_z": "temperature"}"#));
    // services of one device as well
    let third = Device::connect(&rig, "c");
    third.refuse(third.status_of(r#"{"t-1": "temperature", "t.1": "temperature"}"#));
}

/// What a name on the bus cannot have becomes `_`; the device is answered as it asked.
#[test]
fn ids_of_all_kinds() {
    let rig = running(Setup::devices());
    for (id, key, in_names) in [
        ("fe-001.x", "t:1", "fe_001_x_t_1"),
        ("küche unten", "größe", "k_che_unten_gr__e"),
        ("1", "2", "1_2"),
        (
            "abcdefghijklmnopqrstuvwxyz012345",
            "abcdefghijklmnopqrstuvwxyz012345",
            "abcdefghijklmnopqrstuvwxyz012345_abcdefghijklmnopqrstuvwxyz012345",
        ),
        ("__", "_", "____"),
    ] {
        let device = Device::connect(&rig, id);
        let answer = device.register(&format!(r#"{{"{key}": "temperature"}}"#));
        let instance = answer.instance(key);
        let service = format!("com.victronenergy.temperature.mqtt_{in_names}");
        assert_eq!(rig.fake().shown(&service, "/DeviceInstance"), format!("i {instance}"), "{id} {key}");
        assert_eq!(rig.fake().shown(&service, "/Mgmt/Connection"), format!("s \"MQTT:{id}\""));
        let setting = format!("/Settings/Devices/mqtt_{in_names}/ClassAndVrmInstance");
        assert_eq!(rig.fake().shown("com.victronenergy.settings", &setting), format!("s \"temperature:{instance}\""));
        device.mqtt.write(&format!("temperature/{instance}/Temperature"), r#"{"value": 1.5}"#);
        rig.fake().await_shown(&service, "/Temperature", "d 1.5");
    }
}

#[test]
fn behind_a_prefix() {
    let rig = running(Setup::devices().prefix("house"));
    let device = Device::connect(&rig, "fe001");
    let answer = device.register(T1);
    let json: serde_json::Value = serde_json::from_str(&answer.text).expect("JSON");
    // a device publishes where it is told to
    let write = json["topicPath"]["t1"]["W"].as_str().expect("a topic").to_owned();
    device.mqtt.publish(&format!("{write}/Temperature"), r#"{"value": 23.4}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
    device.mqtt.keepalive("");
    let notified = json["topicPath"]["t1"]["N"].as_str().expect("a topic").to_owned();
    device.mqtt.expect(&format!("{notified}/Temperature"), r#"{"value":23.4}"#);
    // nothing of it is heard without the prefix
    let outside = rig.client();
    outside.subscribe("device/#");
    outside.publish("device/fe009/Status", format!(r#"{{"clientId": "fe009", "connected": 1, "services": {T1}}}"#));
    device.register(T1);
    outside.barrier();
    assert!(outside.since().iter().all(|message| message.topic.ends_with("/Status") || message.topic.starts_with("barrier")));
    device.vanish();
    rig.fake().await_no_name(SENSOR);
}
