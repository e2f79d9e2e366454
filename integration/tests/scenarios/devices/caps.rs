//! There is an end to everything: devices, services, the bus's own connections. Who is beyond it is told; nobody else notices.

use venus_mqtt_integration::{DEADLINE, Device, Part, Setup, device::name, eventually, fake::SETTINGS};

use super::{SENSOR, T1, running, sensor, settle};

#[test]
fn the_65th_device_is_refused() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let (device, _) = sensor(&rig);
    device.mqtt.subscribe("device/+/DBus");
    let status = |n: usize| format!(r#"{{"clientId": "d{n}", "connected": 1, "services": {T1}}}"#);
    for n in 2..=64 {
        device.mqtt.publish(&format!("device/d{n}/Status"), status(n));
    }
    for n in 2..=64 {
        device.mqtt.expect_topic(&format!("device/d{n}/DBus"));
    }
    let beyond = Device::connect(&rig, "d65");
    let error = beyond.refuse(status(65));
    assert!(error.contains("64"), "{error}");
    assert!(rig.fake().owner_of(&name("temperature", "d65", "t1")).is_none());
    settle(&rig, &device.mqtt, 1);
    // those that are in may say so again
    assert_eq!(device.register(T1).instance("t1"), 1);
    // one leaves, and there is room
    device.mqtt.publish("device/d64/Status", r#"{"clientId": "d64", "connected": 0}"#);
    rig.fake().await_no_name(&name("temperature", "d64", "t1"));
    beyond.register_as(&status(65));
}

/// Sixteen services of one device, and none more.
#[test]
fn the_17th_service_is_refused() {
    let rig = running(Setup::devices());
    let (sensor, _) = sensor(&rig);
    let device = Device::connect(&rig, "big");
    let error = device.refuse(device.status_of(&tanks(17)));
    assert!(error.contains("16") && error.contains("max_services"), "{error}");
    assert!(rig.fake().owner_of(&name("tank", "big", "s1")).is_none());
    assert_eq!(device.register(&tanks(16)).instances.len(), 16);
    // refused as a whole: what was there stays
    device.refuse(device.status_of(&tanks(17)));
    for n in 1..=16 {
        assert!(rig.fake().owner_of(&name("tank", "big", &format!("s{n}"))).is_some());
    }
    settle(&rig, &sensor.mqtt, 1);
}

/// A flow with one service of each type that dbus-mqtt-devices has, and another temperature.
#[test]
fn a_device_of_nine_services() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "sample");
    let kinds = ["temperature", "tank", "pvinverter", "grid", "gps", "evcharger", "battery", "vebus", "temperature"];
    let services: Vec<_> = kinds.iter().enumerate().map(|(n, kind)| format!(r#""s{n}": "{kind}""#)).collect();
    assert_eq!(device.register(&format!("{{{}}}", services.join(", "))).instances.len(), 9);
    for (n, kind) in kinds.iter().enumerate() {
        assert!(rig.fake().owner_of(&name(kind, "sample", &format!("s{n}"))).is_some(), "{kind}");
    }
}

/// 160 services of all devices, on a bus with as many connections as a device's has.
#[test]
fn the_161st_service_is_refused() {
    let rig = running(Setup::devices().top("log_level = \"info\"").connections(256));
    let devices: Vec<_> = (1..=10).map(|n| Device::connect(&rig, &format!("d{n}"))).collect();
    for device in &devices {
        assert_eq!(device.register(&tanks(16)).instances.len(), 16, "{}", device.id);
    }
    let beyond = Device::connect(&rig, "beyond");
    let error = beyond.refuse(beyond.status_of(T1));
    assert!(error.contains("160") && error.contains("max_services_total"), "{error}");
    // those that are in may have fewer, and say so again
    let first = &devices[0];
    assert_eq!(first.register(&tanks(16)).instances.len(), 16);
    assert_eq!(first.register(&tanks(15)).instances.len(), 15);
    beyond.register(T1);
    first.refuse(first.status_of(&tanks(16)));
    assert!(rig.fake().owner_of(&name("tank", "d1", "s15")).is_some());
}

/// The services of a device with this many tanks.
fn tanks(count: usize) -> String {
    let list: Vec<_> = (1..=count).map(|n| format!(r#""s{n}": "tank""#)).collect();
    format!("{{{}}}", list.join(", "))
}

#[test]
fn caps_can_be_chosen() {
    let rig = running(Setup::devices().device("max_devices = 1").device("max_services = 1"));
    let (device, _) = sensor(&rig);
    let other = Device::connect(&rig, "fe002");
    other.refuse(other.status_of(T1));
    device.refuse(device.status_of(r#"{"t1": "temperature", "t2": "temperature"}"#));
    settle(&rig, &device.mqtt, 1);
}

/// The bus has no connection left: the device is told, what was half there is gone, and later it succeeds.
#[test]
fn the_buss_connections_are_used_up() {
    let rig = running(Setup::devices().connections(12));
    let (device, _) = sensor(&rig);
    let before = rig.fake().connections();
    let big = Device::connect(&rig, "big");
    let error = big.refuse(big.status_of(&tanks(8)));
    assert!(error.contains("bus") || error.contains("connection"), "{error}");
    settle(&rig, &device.mqtt, 1);
    assert_eq!(device.register(T1).instance("t1"), 1);
    // localsettings, and everybody else, is still there
    assert!(!rig.fake().settings().is_empty());
    big.leave();
    eventually("its connections are closed", DEADLINE, || (rig.fake().connections() == before).then_some(()));
    // fewer fit
    assert_eq!(big.register(&tanks(2)).instances.len(), 2);
    rig.fake().await_name(&name("tank", "big", "s2"));
    assert!(rig.fake().owner_of(SENSOR).is_some() && rig.fake().owner_of(SETTINGS).is_some());
    let log = rig.log(Part::Bridge).len();
    assert!(log < 256 * 1024, "{log} bytes of log");
}

/// Somebody else has the name: the device is told, and nobody is replaced.
#[test]
fn the_name_is_taken() {
    let rig = running(Setup::devices());
    rig.fake().add(SENSOR, crate::battery());
    let owner = rig.fake().owner_of(SENSOR);
    let connections = rig.fake().connections();
    let device = Device::connect(&rig, "fe001");
    let error = device.refuse(device.status_of(T1));
    assert!(!error.is_empty());
    assert_eq!(rig.fake().owner_of(SENSOR), owner);
    device.leave();
    eventually("its connections are closed", DEADLINE, || (rig.fake().connections() == connections).then_some(()));
    rig.fake().remove(SENSOR);
    assert_eq!(device.register(T1).instance("t1"), 1);
}
