//! Types and items: the ones that come into being when they are written, and the ones that users bring themselves.

use std::process::Command;

use venus_mqtt_integration::{
    Device, Part, Rig, Setup,
    device::name,
    fake::SETTINGS,
    items::{Entry, Items, owned},
    parts::binary,
};
use zbus::Variant;

use super::{kept, running, sensor, settle};

const KETTLE: &str = "# a type of one's own, as services.yml has them
kettle:
  CustomName:
    default: My Kettle
    persist: true
  Temperature:
    format: \"{:.1f} °C\"
  Boiling:
    default: 0
    min: 0
    max: 1
  Target:
    type: d
    default: 80
    persist: true
    min: 0
    max: 100
";

/// Items as dbus-mqtt-devices has them: what type they have is nowhere said.
const SERVICES_YML: &str = "evcharger:
  Current:
    default: 0
  Position:
    default: 0
    type: i
  MaxCurrent:
    persist: true
    default: 0
  Mode:
    persist: true
    default: 0
    min: 0
    max: 2
";

/// A whole default does not make an item whole; what dbus-mqtt-devices has stored is kept, and a fraction is too.
#[test]
fn whole_defaults_take_fractions() {
    let mut rig = running(Setup::devices().device("catalogue_dir = \"{dir}\"").file("services.yml", SERVICES_YML));
    for (path, stored) in [("MaxCurrent", 16), ("Mode", 2)] {
        store(&rig, &kept("fe001", "e", path), 0, Some((0, 0)));
        assert_eq!(rig.fake().set_value(SETTINGS, &kept("fe001", "e", path), stored).ok(), Some(0));
    }
    let device = Device::connect(&rig, "fe001");
    let register = |device: &Device| device.register(r#"{"e": "evcharger"}"#);
    register(&device);
    let charger = name("evcharger", "fe001", "e");
    assert_eq!(rig.fake().shown(&charger, "/Current"), "i 0");
    assert_eq!(rig.fake().shown(&charger, "/MaxCurrent"), "i 16");
    assert_eq!(rig.fake().shown(&charger, "/Mode"), "i 2");
    assert_eq!(rig.fake().shown(SETTINGS, &kept("fe001", "e", "MaxCurrent")), "i 16");
    device.mqtt.keepalive("");
    device.mqtt.write("evcharger/1/Current", r#"{"value": 3.5}"#);
    device.mqtt.n("evcharger/1/Current", r#"{"value":3.5,"default":0}"#);
    device.mqtt.write("evcharger/1/Current", r#"{"value": "4"}"#);
    device.mqtt.n("evcharger/1/Current", r#"{"value":4,"default":0}"#);
    // a type fixes it
    device.mqtt.write("evcharger/1/Position", r#"{"value": 0.5}"#);
    device.mqtt.write("evcharger/1/Position", r#"{"value": 1.0}"#);
    rig.fake().await_shown(&charger, "/Position", "i 1");
    device.mqtt.write("evcharger/1/MaxCurrent", r#"{"value": 12.5}"#);
    rig.fake().await_shown(SETTINGS, &kept("fe001", "e", "MaxCurrent"), "d 12.5");
    for part in [Part::Bridge, Part::Settings] {
        rig.stop(part);
        if part == Part::Bridge {
            rig.start_bridge();
        } else {
            rig.start_settings();
        }
        register(&device);
        assert_eq!(rig.fake().shown(&charger, "/MaxCurrent"), "d 12.5");
        assert_eq!(rig.fake().shown(&charger, "/Mode"), "i 2");
    }
}

/// The model of a grid meter has been a number and a text: either is taken, and what is stored of either is kept.
#[test]
fn a_device_type_is_text_or_number() {
    let mut rig = running(Setup::devices());
    store(&rig, &kept("fe001", "old", "DeviceType"), "grid", None);
    store(&rig, &kept("fe001", "older", "DeviceType"), 71, Some((0, 0)));
    let device = Device::connect(&rig, "fe001");
    let register = |device: &Device| device.register(r#"{"old": "grid", "older": "grid", "new": "grid"}"#);
    let [one, two, three] = ["old", "older", "new"].map(|key| name("grid", "fe001", key));
    let topic = format!("grid/{}/DeviceType", register(&device).instance("new"));
    assert_eq!(rig.fake().shown(&one, "/DeviceType"), "s \"grid\"");
    assert_eq!(rig.fake().shown(&two, "/DeviceType"), "i 71");
    device.mqtt.keepalive("");
    device.mqtt.write(&topic, r#"{"value": "grid"}"#);
    device.mqtt.n(&topic, r#"{"value":"grid","default":0}"#);
    device.mqtt.write(&topic, r#"{"value": 345}"#);
    device.mqtt.n(&topic, r#"{"value":345,"default":0}"#);
    rig.fake().await_shown(SETTINGS, &kept("fe001", "new", "DeviceType"), "i 345");
    rig.stop(Part::Bridge);
    rig.start_bridge();
    register(&device);
    for (service, shown) in [(&one, "s \"grid\""), (&two, "i 71"), (&three, "i 345")] {
        assert_eq!(rig.fake().shown(service, "/DeviceType"), shown);
    }
}

/// Another program has stored this setting.
fn store(rig: &Rig, path: &str, value: impl Into<Variant<'static>>, limits: Option<(i32, i32)>) {
    let mut setting = Entry::from([("path".into(), owned(path.to_owned())), ("default".into(), owned(value))]);
    if let Some((min, max)) = limits {
        setting.extend([("min".into(), owned(min)), ("max".into(), owned(max))]);
    }
    let _: Vec<Entry> = rig.fake().call(SETTINGS, "/", "com.victronenergy.Settings", "AddSettings", &vec![setting]).expect("it answers");
}

/// A channel of a switch: all its items come together, in one signal; its settings are kept.
#[test]
fn a_family_comes_into_being() {
    let mut rig = running(Setup::devices());
    let device = Device::connect(&rig, "plug");
    device.register(r#"{"s": "switch"}"#);
    let switch = name("switch", "plug", "s");
    let items = |rig: &venus_mqtt_integration::Rig| -> Items {
        rig.fake().call(&switch, "/", "com.victronenergy.BusItem", "GetItems", &()).expect("it answers")
    };
    assert!(items(&rig).keys().all(|path| !path.starts_with("/SwitchableOutput")), "{:?}", items(&rig).keys());
    let watch = rig.watch();
    device.proxy(r#"{"s": {"SwitchableOutput/out_1/State": 1, "SwitchableOutput/out_1/Settings/Group": "Cellar"}}"#);
    rig.fake().await_shown(&switch, "/SwitchableOutput/out_1/State", "i 1");
    assert_eq!(rig.fake().shown(&switch, "/SwitchableOutput/out_1/Name"), "s \"out_1\"");
    assert_eq!(rig.fake().shown(&switch, "/SwitchableOutput/out_1/Settings/Group"), "s \"Cellar\"");
    watch.barrier();
    let owner = rig.fake().owner_of(&switch).expect("it is there");
    let signals = watch.of(&owner);
    assert_eq!(signals.len(), 1, "{signals:?}");
    for path in ["/State {", "/Name {", "/Status {", "/Settings/Type {", "/Settings/Group {"] {
        assert!(signals[0].contains(&format!("/SwitchableOutput/out_1{path}")), "{path}: {signals:?}");
    }
    rig.fake().await_shown(SETTINGS, &kept("plug", "s", "SwitchableOutput/out_1/Settings/Group"), "s \"Cellar\"");
    // the GUI switches, and the device hears of it
    device.mqtt.mark();
    assert_eq!(rig.fake().set_value(&switch, "/SwitchableOutput/out_1/State", 0).ok(), Some(0));
    let topic = device.mqtt.topic('N', "switch/1/SwitchableOutput/out_1/State");
    device.mqtt.wait_for("the command", |message| message.topic == topic && message.text().contains("\"value\":0"));
    // what is no member of any family does not come into being
    assert!(
        rig.fake().set_value(&switch, "/SwitchableOutput/out_1/Nonsense", 1).is_ok_and(|code| code != 0)
            || !items(&rig).contains_key("/SwitchableOutput/out_1/Nonsense")
    );
    device.mqtt.write("switch/1/SwitchableOutput/out_1/Nonsense", r#"{"value": 1}"#);
    device.mqtt.write("switch/1/SwitchableOutput/out_1/State", r#"{"value": 1}"#);
    rig.fake().await_shown(&switch, "/SwitchableOutput/out_1/State", "i 1");
    assert!(!items(&rig).contains_key("/SwitchableOutput/out_1/Nonsense"));
    // a restart does not lose them
    let before: Vec<_> = items(&rig).into_keys().collect();
    rig.stop(Part::Bridge);
    rig.start_bridge();
    rig.fake().await_name(&switch);
    assert_eq!(items(&rig).into_keys().collect::<Vec<_>>(), before);
    assert_eq!(rig.fake().shown(&switch, "/SwitchableOutput/out_1/Settings/Group"), "s \"Cellar\"");
}

/// Thousands of labels are not thousands of items.
#[test]
fn a_family_has_an_end() {
    let rig = running(Setup::devices().top("log_level = \"info\""));
    let device = Device::connect(&rig, "plug");
    device.register(r#"{"s": "switch"}"#);
    let (bystander, _) = sensor(&rig);
    let switch = name("switch", "plug", "s");
    let before = rig.rss(Part::Bridge);
    for n in 0..2000 {
        // no more at once than may wait for their answers
        if n % 200 == 0 {
            device.mqtt.write("switch/1/Serial", format!(r#"{{"value": "{n}"}}"#));
            rig.fake().await_shown(&switch, "/Serial", &format!("s \"{n}\""));
        }
        device.mqtt.write(&format!("switch/1/SwitchableOutput/o{n}/State"), r#"{"value": 1}"#);
    }
    device.mqtt.write(&format!("switch/1/SwitchableOutput/{}/State", "o".repeat(33)), r#"{"value": 1}"#);
    device.mqtt.barrier();
    settle(&rig, &bystander.mqtt, 1);
    let items: Items = rig.fake().call(&switch, "/", "com.victronenergy.BusItem", "GetItems", &()).expect("it answers");
    let grown = rig.rss(Part::Bridge).saturating_sub(before);
    eprintln!("{} items after 2,000 labels; RSS grew by {grown} KiB", items.len());
    assert!(items.contains_key("/SwitchableOutput/o0/State"));
    assert!(items.len() < 5000, "{} items", items.len());
    assert!(grown < 8 * 1024, "{grown} KiB");
}

/// A file of the user's own adds types and items; a mistake costs the type it is in, and says where it is.
#[test]
fn types_of_ones_own() {
    let broken = "thing:\n  Good:\n    default: 1\n  Bad:\n    min: 5\n    max: 1\ntemperature:\n  Wind:\n    format: \"{} m/s\"\n";
    let rig = running(Setup::devices().device("catalogue_dir = \"{dir}\"").file("kettle.yml", KETTLE).file("broken.yml", broken));
    rig.await_log(Part::Bridge, "broken.yml:");
    let device = Device::connect(&rig, "fe001");
    device.register(r#"{"k": "kettle", "t1": "temperature"}"#);
    let kettle = name("kettle", "fe001", "k");
    assert_eq!(rig.fake().shown(&kettle, "/CustomName"), "s \"My Kettle\"");
    assert_eq!(rig.fake().shown(&kettle, "/Boiling"), "i 0");
    assert_eq!(rig.fake().shown(&kettle, "/Target"), "d 80.0");
    assert_eq!(rig.fake().shown(&kettle, "/ProductId"), "i 65535");
    device.mqtt.keepalive("");
    device.mqtt.write("kettle/1/Temperature", r#"{"value": "99.95"}"#);
    device.mqtt.n("kettle/1/Temperature", r#"{"value":99.95}"#);
    let text: String = rig.fake().call(&kettle, "/Temperature", "com.victronenergy.BusItem", "GetText", &()).expect("it answers");
    assert!(text.ends_with(" °C") && text.len() < 12, "{text}");
    device.mqtt.write("kettle/1/Target", r#"{"value": 95}"#);
    rig.fake().await_shown(SETTINGS, &kept("fe001", "k", "Target"), "d 95.0");
    assert_ne!(rig.fake().set_value(&kettle, "/Target", 101).ok(), Some(0));
    // an item more for a type that ships
    device.mqtt.write("temperature/1/Wind", r#"{"value": 3}"#);
    rig.fake().await_shown(super::SENSOR, "/Wind", "d 3.0");
    // the type with the mistake is none
    let other = Device::connect(&rig, "fe002");
    other.refuse(other.status_of(r#"{"x": "thing"}"#));
    let config = rig.config().display().to_string();
    let check = Command::new(binary("VENUS_MQTT_BIN", "venus-mqtt").expect("built"))
        .args(["check", "--config", &config])
        .output()
        .expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    assert!(check.status.success() && said.contains("broken.yml:"), "{said}");
}
