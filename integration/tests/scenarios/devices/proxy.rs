//! Values of one message: `device/<client ID>/Proxy`.

use venus_mqtt_integration::{Device, PORTAL, Part, Setup, device::name, items::Items};

use super::{SENSOR, T1, running, sensor, settle};
use crate::{BATTERY, battery};

fn w(rest: &str) -> String {
    format!("W/{PORTAL}/{rest}")
}

/// All values of one message in one ItemsChanged, whichever form it has.
#[test]
fn one_message_is_one_signal() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    let owner = rig.fake().owner_of(SENSOR).expect("it is there");
    let forms = [
        format!(r#"{{"topicPath": "{}", "values": {{"Temperature": 23, "Pressure": "900", "Alarms/LowBattery": 1}}}}"#, w("temperature/1")),
        r#"{"t1": {"Temperature": 24, "Pressure": 901.5, "Alarms/LowBattery": 2}}"#.to_owned(),
    ];
    for (payload, shown) in forms.iter().zip([["i 1", "d 900.0", "d 23.0"], ["i 2", "d 901.5", "d 24.0"]]) {
        let watch = rig.watch();
        device.proxy(payload);
        rig.fake().await_shown(SENSOR, "/Pressure", shown[1]);
        watch.barrier();
        let signals = watch.of(&owner);
        assert_eq!(signals.len(), 1, "{signals:?}");
        assert!(signals[0].starts_with("ItemsChanged / "), "{signals:?}");
        for (path, value) in ["/Alarms/LowBattery", "/Pressure", "/Temperature"].into_iter().zip(shown) {
            assert!(signals[0].contains(&format!("{path} {{")) && signals[0].contains(&format!("Value {value}}}")), "{signals:?}");
            assert_eq!(rig.fake().shown(SENSOR, path), value);
        }
    }
}

/// What printf, Python and Home Assistant have for no value makes its item invalid; the others get theirs.
#[test]
fn a_number_that_is_none_costs_itself() {
    let rig = running(Setup::devices());
    rig.fake().add(BATTERY, battery());
    let (device, _) = sensor(&rig);
    for (none, other) in [
        ("nan", "+1.5"),
        (r#""unknown""#, "2.5"),
        ("-inf", ".5"),
        (r#""Unavailable""#, "4.5"),
        ("None", "5."),
        (r#""""#, "6.5"),
        (r#""NaN""#, "7.5"),
        ("null", "8.5"),
        ("unavailable", "9.5"),
    ] {
        device.proxy(r#"{"t1": {"Temperature": 20.5, "CustomName": "Cellar"}}"#);
        rig.fake().await_shown(SENSOR, "/Temperature", "d 20.5");
        let name = if none.starts_with('"') { none } else { r#""nan""# };
        device.proxy(format!("\u{feff}{{\"t1\": {{\"Temperature\": {none}, \"Humidity\": {other}, \"CustomName\": {name}}}}}"));
        let humidity: f64 = other.trim_start_matches('+').parse().expect("a number");
        rig.fake().await_shown(SENSOR, "/Humidity", &format!("d {humidity:?}"));
        assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "ai []", "{none}");
        // in a text it is what it says
        assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), format!("s {name}"), "{none}");
    }
    // another program would be told what its client did not mean: there it is refused, and null is not
    device.mqtt.read("battery/512/Soc");
    device.mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    let error = device.topic("Error");
    device.mqtt.mark();
    device.proxy(format!(r#"{{"topicPath": "{}", "values": {{"Soc": nan, "Dc/0/Current": +1}}}}"#, w("battery/512")));
    rig.fake().await_call(BATTERY, "SetValue /Dc/0/Current i 1");
    device.mqtt.wait_for("the reason", |message| message.topic == error && message.text().contains("battery/512/Soc: a bare nan"));
    device.mqtt.write("battery/512/Soc", r#"{"value": NaN}"#);
    device.mqtt.write("battery/512/Soc", r#"{"value": null}"#);
    rig.fake().await_call(BATTERY, "SetValue /Soc ai []");
    assert_eq!(rig.fake().calls_of(BATTERY, "SetValue").len(), 2);
}

/// The value that does not fit is refused, and the others count.
#[test]
fn one_bad_value_costs_itself() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let (device, _) = sensor(&rig);
    device.proxy(r#"{"t1": {"Temperature": 23, "TemperatureType": 99, "Nonsense": 5, "Humidity": 50}}"#);
    rig.fake().await_shown(SENSOR, "/Humidity", "d 50.0");
    assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "d 23.0");
    assert_eq!(rig.fake().shown(SENSOR, "/TemperatureType"), "i 2");
    rig.await_log(Part::Bridge, "TemperatureType: 99");
    let items: Items = rig.fake().call(SENSOR, "/", "com.victronenergy.BusItem", "GetItems", &()).expect("it answers");
    assert!(!items.contains_key("/Nonsense"));
}

#[test]
fn several_services_in_one_message() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "fe001");
    device.register(r#"{"t1": "temperature", "tk1": "tank"}"#);
    device.proxy(r#"{"t1": {"Temperature": 23}, "tk1": {"Level": 50}}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 23.0");
    rig.fake().await_shown(&name("tank", "fe001", "tk1"), "/Level", "d 50.0");
}

/// A setting goes to localsettings this way, too.
#[test]
fn a_setting_by_proxy() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.proxy(r#"{"t1": {"CustomName": "Cellar", "Temperature": 5}}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 5.0");
    rig.fake().await_shown("com.victronenergy.settings", &super::kept("fe001", "t1", "CustomName"), "s \"Cellar\"");
    rig.fake().await_shown(SENSOR, "/CustomName", "s \"Cellar\"");
}

/// Another service of the system: one SetValue each.
#[test]
fn any_service_can_be_written() {
    let rig = running(Setup::devices());
    rig.fake().add(BATTERY, battery());
    let (device, _) = sensor(&rig);
    device.mqtt.read("battery/512/Soc");
    device.mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    device.proxy(format!(r#"{{"topicPath": "{}", "values": {{"Soc": 50, "Dc/0/Current": 1.5}}}}"#, w("battery/512")));
    rig.fake().await_call(BATTERY, "SetValue /Soc i 50");
    rig.fake().await_call(BATTERY, "SetValue /Dc/0/Current d 1.5");
    assert_eq!(rig.fake().calls_of(BATTERY, "SetValue").len(), 2);
}

/// The access rules are those of any W; `own` is the device's own services alone.
#[test]
fn what_may_not_be_written() {
    for (setup, own) in [
        (Setup::devices().bridge("deny = [\"battery/#\"]"), true),
        (Setup::devices().device("proxy = \"own\""), true),
        (Setup::devices().bridge("access = \"read-only\""), false),
    ] {
        let rig = running(setup.top("log_level = \"info\""));
        rig.fake().add(BATTERY, battery());
        let (device, _) = sensor(&rig);
        device.mqtt.read("battery/512/Soc");
        device.mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
        let lines = rig.log(Part::Bridge).lines().count();
        device.proxy(format!(r#"{{"topicPath": "{}", "values": {{"Soc": 50}}}}"#, w("battery/512")));
        device.proxy(format!(r#"{{"topicPath": "{}", "values": {{"Temperature": 23}}}}"#, w("temperature/1")));
        if own {
            rig.fake().await_shown(SENSOR, "/Temperature", "d 23.0");
        }
        venus_mqtt_integration::eventually("a line about it", venus_mqtt_integration::DEADLINE, || {
            rig.log(Part::Bridge).lines().skip(lines).any(|line| line.contains("device/fe001/Proxy")).then_some(())
        });
        assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty());
        if !own {
            assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "ai []");
        }
    }
}

/// Each is ignored or refused, and ends nothing.
#[test]
fn what_is_no_proxy_message() {
    let rig = running(Setup::devices());
    rig.fake().add(BATTERY, battery());
    let (device, _) = sensor(&rig);
    device.mqtt.read("battery/512/Soc");
    device.mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    let deep = format!(r#"{{"t1": {{"Temperature": {}1{}}}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let long = format!(r#"{{"t1": {{"CustomName": "{}"}}}}"#, "x".repeat(1024 * 1024));
    for payload in [
        "",
        "5",
        "[]",
        "null",
        "{",
        "nonsense",
        "{}",
        r#"{"t1": 5}"#,
        r#"{"t1": {}}"#,
        r#"{"t9": {"Temperature": 1}}"#,
        r#"{"topicPath": 5, "values": {"Soc": 1}}"#,
        r#"{"topicPath": "W/ffffffffffff/battery/512", "values": {"Soc": 1}}"#,
        r#"{"topicPath": "N/c0619ab1c2d3/battery/512", "values": {"Soc": 1}}"#,
        r#"{"topicPath": "W/c0619ab1c2d3/battery", "values": {"Soc": 1}}"#,
        r#"{"topicPath": "W/c0619ab1c2d3/battery/+", "values": {"Soc": 1}}"#,
        r#"{"topicPath": "W/c0619ab1c2d3/battery/512"}"#,
        r#"{"topicPath": "W/c0619ab1c2d3/battery/512", "values": [1]}"#,
        r#"{"topicPath": "W/c0619ab1c2d3/battery/512", "values": {"": 1, "/": 1, "a b": 1, "../Soc": 1, "+": 1}}"#,
        r#"{"topicPath": "", "values": {"Soc": 1}}"#,
        deep.as_str(),
        long.as_str(),
    ] {
        device.proxy(payload);
    }
    device.proxy(b"\xff\xfe{\"t1\": {}}");
    device.mqtt.publish_retained(&device.topic("Proxy"), r#"{"t1": {"Temperature": 66}}"#);
    // a device that nobody knows
    device.mqtt.publish("device/nobody/Proxy", r#"{"t1": {"Temperature": 66}}"#);
    settle(&rig, &device.mqtt, 1);
    assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty(), "{:?}", rig.fake().calls_of(BATTERY, "SetValue"));
    assert_eq!(device.register(T1).instance("t1"), 1);
}

/// The setpoint of yesterday is not carried out at the next connect.
#[test]
fn a_retained_one_is_ignored() {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    rig.stop(Part::Bridge);
    device.mqtt.publish_retained(&device.topic("Proxy"), r#"{"t1": {"Temperature": 66}}"#);
    device.mqtt.barrier();
    rig.start_bridge();
    rig.fake().await_name(SENSOR);
    device.register(T1);
    settle(&rig, &device.mqtt, 1);
    assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "ai []");
}
