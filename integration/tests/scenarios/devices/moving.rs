//! Moving over from dbus-mqtt-devices: what it has stored with localsettings, in each of its types and layouts, is ours.

use std::{collections::BTreeMap, fmt::Write as _};

use venus_mqtt_integration::{Device, Ended, Part, Rig, Setup, device::name, fake::SETTINGS};

use super::{instance_setting, kept};

/// One setting as it was stored: item, type, default, limits, value; and what the item shows after the move.
type Stored = (&'static str, char, &'static str, Option<(&'static str, &'static str)>, &'static str, &'static str);

const ZERO_TO_TWO: Option<(&str, &str)> = Some(("0", "2"));

/// What a type of service stored in the version in which it came or changed.
fn stored(version: &str, kind: &str) -> Vec<Stored> {
    let named = |default, value, shown| ("CustomName", 's', default, None, value, shown);
    match (version, kind) {
        (_, "temperature") => vec![
            named("My Temperature Sensor", "Tom &amp; Jérôme &lt;3", "s \"Tom & Jérôme <3\""),
            ("TemperatureType", 'i', "2", ZERO_TO_TWO, "1", "i 1"),
        ],
        // no name yet
        ("0.2.0", "tank") => {
            vec![("Capacity", 'f', "0.1", Some(("0.0", "9999.0")), "0.75", "d 0.75"), ("FluidType", 'i', "1", Some(("0", "5")), "5", "i 5")]
        }
        ("0.4.1" | "0.5.1", "tank") => vec![
            named("My Tank Sensor", "Fresh", "s \"Fresh\""),
            ("FluidType", 'i', "1", Some(("0", "5")), "2", "i 2"),
            ("Capacity", 'f', "0.1", Some(("0.0", "9999.0")), "120.0", "d 120.0"),
        ],
        (_, "tank") => vec![
            named("My Tank Sensor", "Diesel", "s \"Diesel\""),
            ("FluidType", 'i', "1", Some(("0", "11")), "11", "i 11"),
            ("Capacity", 'f', "0.1", None, "0.35", "d 0.35"),
        ],
        // whole numbers, where ours are doubles
        ("0.4.1" | "0.5.1", "pvinverter") => vec![
            named("My PV Inverter", "East", "s \"East\""),
            ("Position", 'i', "0", ZERO_TO_TWO, "2", "i 2"),
            ("Ac/MaxPower", 'i', "0", None, "4600", "d 4600.0"),
        ],
        (_, "pvinverter") => vec![
            named("My PV Inverter", "", "s \"\""),
            ("Position", 'i', "0", ZERO_TO_TWO, "1", "i 1"),
            ("Role", 's', "pvinverter", None, "acload", "s \"acload\""),
            ("Ac/MaxPower", 'i', "0", None, "10000", "d 10000.0"),
        ],
        ("0.5.1" | "0.8.0", "grid") => {
            vec![named("My Grid Meter", "EM540", "s \"EM540\""), ("DeviceType", 'i', "0", ZERO_TO_TWO, "2", "i 2")]
        }
        // a text since 0.9.0
        (_, "grid") => vec![named("My Grid Meter", "Shelly", "s \"Shelly\""), ("DeviceType", 's', "grid", None, "grid", "s \"grid\"")],
        (_, "gps") => vec![named("My GPS Sensor", "Mast", "s \"Mast\"")],
        (_, "evcharger") => vec![
            named("My EV Charger", "Wallbox", "s \"Wallbox\""),
            ("AutoStart", 'i', "0", None, "1", "i 1"),
            ("EnableDisplay", 'i', "1", None, "0", "i 0"),
            ("MaxCurrent", 'i', "0", None, "32", "d 32.0"),
            ("Mode", 'i', "0", ZERO_TO_TWO, "2", "i 2"),
            ("Position", 'i', "0", ZERO_TO_TWO, "2", "i 2"),
            ("SetCurrent", 'i', "0", None, "16", "d 16.0"),
            ("StartStop", 'i', "0", None, "1", "i 1"),
        ],
        (_, "battery") => vec![named("MQTT BMS", "JK BMS", "s \"JK BMS\"")],
        (_, "vebus") => vec![
            named("My VEBUS System", "Quattro", "s \"Quattro\""),
            ("Ac/ActiveIn/CurrentLimit", 'i', "50", None, "25", "d 25.0"),
            ("Ac/ActiveIn/CurrentLimitIsAdjustable", 'i', "1", None, "0", "i 0"),
            ("Ac/In/1/CurrentLimit", 'i', "50", None, "32", "d 32.0"),
            ("Ac/In/1/CurrentLimitIsAdjustable", 'i', "1", None, "0", "i 0"),
        ],
        _ => unreachable!("{kind} of {version}"),
    }
}

/// The types of each version that had others than the one before, or stored others of their items.
const VERSIONS: [(&str, &[&str]); 6] = [
    ("0.2.0", &["temperature", "tank"]),
    ("0.4.1", &["temperature", "tank", "pvinverter"]),
    ("0.5.1", &["temperature", "tank", "pvinverter", "grid", "gps"]),
    ("0.6.6", &["temperature", "tank", "pvinverter", "gps"]),
    ("0.8.0", &["temperature", "tank", "pvinverter", "grid", "gps", "evcharger"]),
    ("0.9.0", &["temperature", "tank", "pvinverter", "grid", "gps", "evcharger", "battery", "vebus"]),
];

/// A device of each version, and its services: their IDs are their types'.
fn devices() -> impl Iterator<Item = (&'static str, String, &'static [&'static str])> {
    VERSIONS.into_iter().map(|(version, kinds)| (version, format!("dev_{}", version.replace('.', "")), kinds))
}

fn instance(version: usize, kind: usize) -> usize {
    // no two of a type, none that would be handed out next, in no order
    60 - 7 * version + kind
}

/// The file of localsettings as dbus-mqtt-devices leaves it. Its older versions ran on an older localsettings, which wrote no `silent` and
/// limits of 0 and 0 for none.
fn file() -> String {
    let (mut numbers, mut values) = (String::new(), String::new());
    for (n, (version, id, kinds)) in devices().enumerate() {
        let is_old = version < "0.6";
        let silent = if is_old { "" } else { " silent=\"False\"" };
        for (nth, kind) in kinds.iter().enumerate() {
            let slug = format!("mqtt_{id}_{kind}");
            let number = instance(n, nth);
            let _ = writeln!(
                numbers,
                "<{slug}><ClassAndVrmInstance type=\"s\" default=\"{kind}:1\"{silent}>{kind}:{number}</ClassAndVrmInstance></{slug}>"
            );
            let _ = writeln!(values, "<{slug}>");
            for (path, stored_type, default, limits, value, _) in stored(version, kind) {
                let limits = match limits {
                    Some((min, max)) => format!(" min=\"{min}\" max=\"{max}\""),
                    None if is_old && stored_type != 's' => " min=\"0\" max=\"0\"".into(),
                    None => String::new(),
                };
                let (groups, item) = path.rsplit_once('/').unwrap_or(("", path));
                let groups: Vec<&str> = groups.split('/').filter(|group| !group.is_empty()).collect();
                // a tag never begins with a digit
                let tag =
                    |group: &&str| if group.starts_with(|c: char| c.is_ascii_digit()) { format!("_{group}") } else { (*group).into() };
                let open: String = groups.iter().map(|group| format!("<{}>", tag(group))).collect();
                let close: String = groups.iter().rev().map(|group| format!("</{}>", tag(group))).collect();
                let _ =
                    writeln!(values, "{open}<{item} type=\"{stored_type}\"{limits} default=\"{default}\"{silent}>{value}</{item}>{close}");
            }
            let _ = writeln!(values, "</{slug}>");
        }
    }
    format!(
        "<?xml version='1.0' encoding='UTF-8'?>\n<Settings version=\"15\" unique-id=\"c0619ab1c2d3\">\n<Devices>\n{numbers}</Devices>\n<MqttDevices>\n{values}</MqttDevices>\n</Settings>\n"
    )
}

/// A value without its type: what it means is compared, and a double that is whole is the whole number.
fn plain(shown: &str) -> &str {
    let value = shown.split_once(' ').map_or(shown, |(_, value)| value);
    value.strip_suffix(".0").unwrap_or(value)
}

fn services(kinds: &[&str]) -> String {
    let services: Vec<String> = kinds.iter().map(|kind| format!("\"{kind}\": \"{kind}\"")).collect();
    format!("{{{}}}", services.join(", "))
}

/// Everything is as it was: in localsettings, on the bus, and what the devices are told.
fn check(rig: &Rig, connected: &[Device], before: &BTreeMap<String, String>) {
    let after = rig.fake().settings();
    for (path, value) in before {
        assert_eq!(after.get(path).map(|value| plain(value)), Some(plain(value)), "{path}, which was {value}");
    }
    for ((n, (version, id, kinds)), device) in devices().enumerate().zip(connected) {
        let answer = device.register(&services(kinds));
        for (nth, kind) in kinds.iter().enumerate() {
            let service = name(kind, &id, kind);
            assert_eq!(answer.instance(kind), i64::try_from(instance(n, nth)).expect("small"), "{service}");
            assert_eq!(rig.fake().shown(&service, "/DeviceInstance"), format!("i {}", instance(n, nth)), "{service}");
            for (path, _, _, _, _, shown) in stored(version, kind) {
                assert_eq!(rig.fake().shown(&service, &format!("/{path}")), *shown, "{path} of {service}");
            }
        }
    }
}

both! {
    fn everything_that_was_stored_is_kept(rig in Setup::devices().without_settings()) {
        std::fs::write(rig.dir().join("settings.json"), file()).expect("written");
        rig.start_settings();
        let before = rig.fake().settings();
        assert!(before.len() > 90, "{}", before.len());
        rig.start_bridge();
        let connected: Vec<Device> = devices().map(|(_, id, _)| Device::connect(&rig, &id)).collect();
        check(&rig, &connected, &before);
        // for whoever wants to see it: `--nocapture`
        let after = rig.fake().settings();
        for (path, value) in &before {
            println!("| `{}` | `{value}` | `{}` |", path.trim_start_matches("/Settings/"), after[path]);
        }
        // what is written now is persisted as well, with its fraction
        let ev = name("evcharger", "dev_090", "evcharger");
        assert_eq!(rig.fake().set_value(&ev, "/SetCurrent", 13.5).ok(), Some(0));
        rig.fake().await_shown(SETTINGS, &kept("dev_090", "evcharger", "SetCurrent"), "d 13.5");
        assert_eq!(rig.fake().set_value(&ev, "/SetCurrent", 16).ok(), Some(0));
        rig.fake().await_shown(SETTINGS, &kept("dev_090", "evcharger", "SetCurrent"), "d 16.0");
        // and it is in the file: another life of both has it too
        for part in [Part::Bridge, Part::Settings] {
            assert_eq!(rig.stop(part), Ended::Code(0));
        }
        rig.start_settings();
        rig.start_bridge();
        check(&rig, &connected, &before);
        assert_eq!(
            rig.fake().shown(SETTINGS, &instance_setting("dev_020", "tank")),
            format!("s \"tank:{}\"", instance(0, 1))
        );
    }
}
