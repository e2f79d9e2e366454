//! The exported service: it answers as velib's services do, holds its types and limits, and lets its device know what others want.

use std::collections::BTreeMap;

use venus_mqtt_integration::{Device, Part, Rig, Setup, device::name, fake::show_value, items::Items};
use zbus::{OwnedVariant, Variant};

use super::{SENSOR, running, sensor, settle};

const BUS_ITEM: &str = "com.victronenergy.BusItem";

/// Any method without arguments that answers with a variant.
fn asked(rig: &Rig, service: &str, path: &str, member: &str) -> String {
    let answer: Result<OwnedVariant, _> = rig.fake().call_without_interface(service, path, member, &());
    answer.map_or_else(|error| format!("{error:#}"), |value| show_value(&value))
}

fn text(rig: &Rig, service: &str, path: &str) -> String {
    let answer: Result<String, _> = rig.fake().call(service, path, BUS_ITEM, "GetText", &());
    answer.unwrap_or_else(|error| format!("{error:#}"))
}

fn written(rig: &Rig, path: &str, value: impl Into<Variant<'static>>) -> i32 {
    rig.fake().set_value(SENSOR, path, value).expect("it answers")
}

#[test]
fn items_answer() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
    let owner = rig.fake().owner_of(SENSOR).expect("it is there");
    // by either name
    for service in [SENSOR, owner.as_str()] {
        assert_eq!(asked(&rig, service, "/Temperature", "GetValue"), "d 23.4");
        assert_eq!(asked(&rig, service, "/Pressure", "GetValue"), "ai []");
        assert_eq!(asked(&rig, service, "/TemperatureType", "GetDefault"), "i 2");
        assert_eq!(asked(&rig, service, "/TemperatureType", "GetMin"), "i 0");
        assert!(asked(&rig, service, "/TemperatureType", "GetMax").starts_with("i "));
        assert!(text(&rig, service, "/Temperature").contains("23.4"));
    }
    assert_eq!(text(&rig, SENSOR, "/Pressure"), "---");
    assert_eq!(text(&rig, SENSOR, "/CustomName"), "My Temperature Sensor");
    assert_eq!(text(&rig, SENSOR, "/ProductId").to_lowercase(), "0xa162");
    let described: String = rig.fake().call(SENSOR, "/Temperature", BUS_ITEM, "GetDescription", &("en", 100)).expect("it answers");
    let _ = described;
    let set: i32 = rig.fake().call_without_interface(SENSOR, "/Temperature", "SetValue", &Variant::from(24.0)).expect("it answers");
    assert_eq!(set, 0);
    assert_eq!(asked(&rig, SENSOR, "/Temperature", "GetValue"), "d 24.0");
}

#[test]
fn trees_answer() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
    let items: Items = rig.fake().call(SENSOR, "/", BUS_ITEM, "GetItems", &()).expect("it answers");
    for (path, entry) in &items {
        assert!(path.starts_with('/') && entry.contains_key("Value") && entry.contains_key("Text"), "{path} {entry:?}");
    }
    let tree =
        |path: &str| -> BTreeMap<String, OwnedVariant> { rig.fake().value(SENSOR, path).expect("it answers").try_into().expect("a{sv}") };
    let all = tree("/");
    assert_eq!(all.keys().map(|key| format!("/{key}")).collect::<Vec<_>>(), items.keys().cloned().collect::<Vec<_>>());
    assert_eq!(show_value(&all["Temperature"]), "d 23.4");
    assert_eq!(tree("/Mgmt").keys().collect::<Vec<_>>(), ["Connection", "ProcessName", "ProcessVersion"]);
    for path in ["/", "/Mgmt"] {
        let texts = asked(&rig, SENSOR, path, "GetText");
        assert!(texts.contains("MQTT:fe001"), "{texts}");
        let xml: String = rig.fake().call(SENSOR, path, "org.freedesktop.DBus.Introspectable", "Introspect", &()).expect("it answers");
        let child = if path == "/" { "<node name=\"Mgmt\"" } else { "<node name=\"Connection\"" };
        assert!(xml.contains(child), "{xml}");
        let _: () = rig.fake().call(SENSOR, path, "org.freedesktop.DBus.Peer", "Ping", &()).expect("it answers");
    }
    // what is not there, and what nobody understands
    assert!(asked(&rig, SENSOR, "/Nothing", "GetValue").contains("Unknown"));
    assert!(asked(&rig, SENSOR, "/Nothing/At/All", "GetText").contains("Unknown"));
    assert!(asked(&rig, SENSOR, "/Temperature", "Explode").contains("UnknownMethod"));
    let wrong: Result<i32, _> = rig.fake().call(SENSOR, "/Temperature", BUS_ITEM, "SetValue", &());
    assert!(wrong.is_err());
    let elsewhere: Result<OwnedVariant, _> = rig.fake().call(SENSOR, "/Temperature", "org.example.Other", "GetValue", &());
    assert!(elsewhere.is_err());
    settle(&rig, &device.mqtt, 1);
}

/// One item: PropertiesChanged on its path, and nothing else. The same value again: nothing.
#[test]
fn one_change_is_one_signal() {
    let rig = running(Setup::devices());
    let (_device, _) = sensor(&rig);
    let owner = rig.fake().owner_of(SENSOR).expect("it is there");
    let watch = rig.watch();
    assert_eq!(written(&rig, "/Temperature", 23.4), 0);
    assert_eq!(written(&rig, "/Temperature", 23.4), 0);
    let shown = text(&rig, SENSOR, "/Temperature");
    assert_eq!(written(&rig, "/Temperature", Vec::<i32>::new()), 0);
    watch.barrier();
    assert_eq!(
        watch.of(&owner),
        [
            format!("PropertiesChanged /Temperature Text s {shown:?}, Value d 23.4"),
            "PropertiesChanged /Temperature Text s \"---\", Value ai []".to_owned(),
        ]
    );
}

/// Written over MQTT, by devices as they are.
#[test]
fn writes_are_brought_to_the_items_type() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    for (path, json, shown) in [
        ("Temperature", r#""23.4""#, "d 23.4"),
        ("Temperature", "5", "d 5.0"),
        ("Temperature", r#"" 7 ""#, "d 7.0"),
        ("Temperature", r#""null""#, "ai []"),
        ("Temperature", r#""-1e3""#, "d -1000.0"),
        ("Temperature", r#""NaN""#, "ai []"),
        ("Temperature", "1.5", "d 1.5"),
        ("Temperature", r#""Infinity""#, "ai []"),
        ("Temperature", "2.5", "d 2.5"),
        ("Temperature", "null", "ai []"),
        ("Temperature", r#""+5""#, "d 5.0"),
        ("Temperature", r#""unavailable""#, "ai []"),
        ("Temperature", ".5", "d 0.5"),
        ("Temperature", "nan", "ai []"),
        ("Temperature", "-0", "d 0.0"),
        ("Temperature", r#""""#, "ai []"),
        ("Temperature", "5.", "d 5.0"),
        ("Temperature", "-inf", "ai []"),
        ("Temperature", "+7", "d 7.0"),
        ("Temperature", "unknown", "ai []"),
        ("CustomName", r#""unknown""#, "s \"unknown\""),
        ("TemperatureType", r#""1""#, "i 1"),
        ("TemperatureType", "0", "i 0"),
        ("TemperatureType", "2.0", "i 2"),
        ("Status", "true", "i 1"),
        ("CustomName", "5", "s \"5\""),
        ("CustomName", r#""Küche \"2\"""#, "s \"Küche \\\"2\\\"\""),
    ] {
        device.mqtt.write(&format!("temperature/1/{path}"), format!(r#"{{"value": {json}}}"#));
        rig.fake().await_shown(SENSOR, &format!("/{path}"), shown);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_logged() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let (device, _) = sensor(&rig);
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 1.5}"#);
    for (path, json) in [
        ("Temperature", r#""warm""#),
        ("Temperature", r#""0x10""#),
        ("Temperature", "[1, 2]"),
        ("Temperature", r#"{"a": 1}"#),
        ("TemperatureType", "1.5"),
        ("TemperatureType", "99"),
        ("TemperatureType", "-1"),
        ("TemperatureType", "4294967296"),
        ("Alarms/LowBattery", "3"),
    ] {
        device.mqtt.write(&format!("temperature/1/{path}"), format!(r#"{{"value": {json}}}"#));
        settle(&rig, &device.mqtt, 1);
        rig.await_log(Part::Bridge, &format!("/{path}"));
        assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "d 1.5");
        assert_eq!(rig.fake().shown(SENSOR, "/TemperatureType"), "i 2");
        assert_eq!(rig.fake().shown(SENSOR, "/Alarms/LowBattery"), "i 0");
    }
    // over the bus: a number says so
    assert_ne!(written(&rig, "/TemperatureType", 99), 0);
    assert_ne!(written(&rig, "/TemperatureType", 1.5), 0);
    assert_ne!(written(&rig, "/Temperature", "warm"), 0);
    assert_eq!(written(&rig, "/Temperature", "23.5"), 0);
    assert_eq!(written(&rig, "/TemperatureType", 1.0), 0);
    assert_eq!(written(&rig, "/TemperatureType", 0_u8), 0);
    assert_eq!(rig.fake().shown(SENSOR, "/TemperatureType"), "i 0");
    for path in ["/DeviceInstance", "/Mgmt/Connection", "/Mgmt/ProcessName"] {
        let before = rig.fake().shown(SENSOR, path);
        assert_ne!(written(&rig, path, 5), 0, "{path}");
        assert_ne!(written(&rig, path, "x"), 0, "{path}");
        assert_eq!(rig.fake().shown(SENSOR, path), before);
    }
}

/// Limits are part of the notification, as with any service.
#[test]
fn limits_are_published() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.mqtt.keepalive("");
    let topic = device.mqtt.topic('N', "temperature/1/TemperatureType");
    let message = device.mqtt.wait_for("the type", |message| message.topic == topic);
    let json: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
    assert_eq!((json["value"].as_i64(), json["min"].as_i64(), json["default"].as_i64()), (Some(2), Some(0), Some(2)), "{message:?}");
    assert!(json["max"].as_i64() >= Some(2), "{message:?}");
}

/// Nobody is awake. What somebody else wants of a device it is told; what it has measured itself, nobody.
#[test]
fn commands_reach_a_device_while_the_bridge_sleeps() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "ev1");
    let instance = device.register(r#"{"c": "evcharger"}"#).instance("c");
    let charger = name("evcharger", "ev1", "c");
    device.mqtt.mark();
    device.mqtt.write(&format!("evcharger/{instance}/Ac/Power"), r#"{"value": 3600}"#);
    rig.fake().await_shown(&charger, "/Ac/Power", "d 3600.0");
    // the GUI
    assert_eq!(rig.fake().set_value(&charger, "/SetCurrent", 16).ok(), Some(0));
    let topic = device.mqtt.topic('N', &format!("evcharger/{instance}/SetCurrent"));
    let told = device.mqtt.wait_for("the set point", |message| message.topic == topic);
    assert!(told.text().contains("\"value\":16") && !told.retain, "{told:?}");
    // a setting that is changed in localsettings itself
    let setting = super::kept("ev1", "c", "CustomName");
    assert_eq!(rig.fake().set_value("com.victronenergy.settings", &setting, "Garage").ok(), Some(0));
    device.mqtt.n(&format!("evcharger/{instance}/CustomName"), r#"{"value":"Garage","default":"My EV Charger"}"#);
    assert!(device.mqtt.on(&device.mqtt.topic('N', &format!("evcharger/{instance}/Ac/Power"))).is_empty());
    rig.await_retained_items(&[]);
}
