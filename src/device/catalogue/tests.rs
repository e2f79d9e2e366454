use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::bridge::value::Value;

fn text(text: &str) -> Value {
    Value::Str(text.into())
}

fn spec_of(catalogue: &Catalogue, service_type: &str, path: &str) -> Arc<ItemSpec> {
    let found = catalogue.service_type(service_type).unwrap_or_else(|| panic!("no type {service_type}"));
    let in_family = || found.family_of(path).into_iter().find(|(known, _)| &**known == path);
    let item = found.items.iter().find(|(known, _)| &**known == path).cloned().or_else(in_family);
    item.unwrap_or_else(|| panic!("{service_type} has no {path}")).1
}

/// What a user's file is answered with, and the catalogue then.
fn added(file: &str) -> (Catalogue, Vec<String>) {
    let mut catalogue = Catalogue::shipped();
    let mistakes = catalogue.add_file("my.yml", file).iter().map(Mistake::to_string).collect();
    (catalogue, mistakes)
}

#[test]
fn all_that_ships_is_without_a_mistake() {
    let catalogue = Catalogue::shipped();
    assert_eq!(catalogue.shipped.len(), yaml::chunks(SHIPPED).len(), "a name is there twice");
    let mut wrong = Vec::new();
    for name in catalogue.shipped.keys() {
        assert_eq!(check_name(name), Ok(()), "{name}");
        catalogue.read_shipped(name, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for name in catalogue.types() {
        assert_eq!(check(&catalogue.items_of(name)), Ok(()), "{name}");
    }
}

#[test]
fn every_type_ships() {
    assert_eq!(
        Catalogue::shipped().types(),
        [
            "acload",
            "alternator",
            "battery",
            "charger",
            "dcload",
            "dcsource",
            "dcsystem",
            "digitalinput",
            "evcharger",
            "genset",
            "gps",
            "grid",
            "heatpump",
            "inverter",
            "meteo",
            "motordrive",
            "multi",
            "pvinverter",
            "solarcharger",
            "switch",
            "tank",
            "temperature",
            "vebus",
        ]
    );
    assert!(Catalogue::shipped().service_type("_pv").is_none());
    assert!(Catalogue::shipped().service_type("toaster").is_none());
}

#[test]
fn types_have_their_items() {
    let catalogue = Catalogue::shipped();
    // those of the first protocol, then those that came with the others
    for (name, count) in [
        ("temperature", 10 + 7),
        ("tank", 7 + 17),
        ("pvinverter", 23 + 5),
        ("grid", 24 + 8),
        ("gps", 9),
        ("evcharger", 19 + 8),
        ("battery", 19 + 59),
        ("vebus", 62),
        ("motordrive", 2 + 8),
        ("switch", 2 + 1),
        ("digitalinput", 2 + 8),
    ] {
        let found = catalogue.service_type(name).unwrap();
        let paths: BTreeSet<_> = found.items.iter().map(|(path, _)| &**path).collect();
        assert_eq!(paths.len(), found.items.len(), "{name}: a path is there twice");
        let besides = ["/Serial", "/HardwareVersion", "/Relay/0/State"];
        let own = paths.iter().filter(|path| !besides.contains(path)).count();
        assert_eq!(own, count, "{name}: {paths:#?}");
    }
}

#[test]
fn items_that_others_rely_on() {
    use Kind::{Double, Doubles, Int, Text, TextOrNumber, Texts};
    use Value::Invalid;
    let catalogue = Catalogue::shipped();
    let roles = Value::Array([text("grid"), text("pvinverter"), text("genset"), text("acload")].into());
    let (int, double) = (Value::Int, Value::Double);
    for (name, path, kind, default, (min, max)) in [
        ("temperature", "/TemperatureType", Int, int(2), (int(0), int(6))),
        ("temperature", "/Temperature", Double, Invalid, (Invalid, Invalid)),
        ("temperature", "/Luminosity", Double, Invalid, (double(0.0), Invalid)),
        ("temperature", "/Scale", Double, double(1.0), (double(0.1), double(10.0))),
        ("tank", "/Status", Int, int(0), (int(0), int(5))),
        ("tank", "/Capacity", Double, double(0.1), (Invalid, Invalid)),
        ("tank", "/Alarms/Low/Delay", Int, int(30), (int(0), int(100))),
        ("pvinverter", "/AllowedRoles", Texts, roles, (Invalid, Invalid)),
        ("pvinverter", "/StatusCode", Int, int(7), (int(0), int(12))),
        ("grid", "/DeviceType", TextOrNumber, int(0), (Invalid, Invalid)),
        ("grid", "/Ac/L3/Energy/Reverse", Double, Invalid, (Invalid, Invalid)),
        ("gps", "/Position/Latitude", Double, Invalid, (Invalid, Invalid)),
        ("evcharger", "/Status", Int, int(1), (int(0), int(24))),
        ("evcharger", "/Position", Int, int(0), (int(0), int(1))),
        ("evcharger", "/Model", Text, text("AC22NS"), (Invalid, Invalid)),
        ("battery", "/Relay/0/State", Int, Invalid, (int(0), int(1))),
        ("vebus", "/Mode", Int, int(4), (int(1), int(4))),
        ("vebus", "/Ac/In/1/CurrentLimit", Double, double(50.0), (Invalid, Invalid)),
        ("vebus", "/Alarms/L3/Ripple", Int, Invalid, (Invalid, Invalid)),
        ("genset", "/Error/7/Id", Text, text(""), (Invalid, Invalid)),
        ("genset", "/Role", Text, text("genset"), (Invalid, Invalid)),
        ("dcsource", "/Settings/MonitorMode", Int, int(-1), (int(-8), int(-1))),
        ("solarcharger", "/Relay/0/State", Int, Invalid, (int(0), int(1))),
        ("inverter", "/NrOfTrackers", Int, Invalid, (int(0), int(4))),
        ("multi", "/Ac/In/2/L3/F", Double, Invalid, (Invalid, Invalid)),
        ("multi", "/NrOfTrackers", Int, int(1), (int(0), int(4))),
        ("switch", "/State", Int, int(256), (int(256), int(261))),
        ("switch", "/SwitchableOutput/a/LightControls", Doubles, Invalid, (Invalid, Invalid)),
        ("solarcharger", "/History/Daily/30/Yield", Double, Invalid, (Invalid, Invalid)),
        ("multi", "/History/Daily/0/Pv/3/MaxPower", Double, Invalid, (Invalid, Invalid)),
    ] {
        let spec = spec_of(&catalogue, name, path);
        assert_eq!((spec.kind, &spec.default, &spec.min, &spec.max), (kind, &default, &min, &max), "{name}{path}");
    }
}

#[test]
fn every_type_has_a_name_and_outputs() {
    let catalogue = Catalogue::shipped();
    for name in catalogue.types() {
        let custom = spec_of(&catalogue, name, "/CustomName");
        assert!(custom.kept && matches!(&custom.default, Value::Str(text) if &**text != "My Device"), "{name}");
        assert!(spec_of(&catalogue, name, "/SwitchableOutput/1/Settings/Type").kept, "{name}");
        assert!(spec_of(&catalogue, name, "/ProductId").text(&Value::Int(0xa163)) == "0xA163", "{name}");
        assert_eq!(spec_of(&catalogue, name, "/Serial").default, Value::Invalid, "{name}");
    }
}

#[test]
fn what_steers_a_device_is_known() {
    let catalogue = Catalogue::shipped();
    for (name, path) in [
        ("switch", "/SwitchableOutput/x/State"),
        ("battery", "/Relay/0/State"),
        ("vebus", "/Mode"),
        ("vebus", "/Ac/ActiveIn/CurrentLimit"),
        ("genset", "/Start"),
        ("evcharger", "/SetCurrent"),
        ("pvinverter", "/Ac/PowerLimit"),
        ("multi", "/Ess/AcPowerSetpoint"),
    ] {
        let spec = spec_of(&catalogue, name, path);
        assert!((spec.command || spec.kept) && spec.writable, "{name}{path}");
    }
    let measured = spec_of(&catalogue, "vebus", "/Dc/0/Voltage");
    assert!(!measured.command && !measured.kept && measured.writable);
    assert!(!spec_of(&catalogue, "switch", "/SwitchableOutput/x/Name").writable);
}

#[test]
fn texts() {
    let catalogue = Catalogue::shipped();
    for (name, path, value, expected) in [
        ("evcharger", "/Ac/Energy/Forward", Value::Double(12.345), "12.35 kWh"),
        ("pvinverter", "/Ac/L2/Power", Value::Double(740.0), "740.0 W"),
        ("tank", "/Level", Value::Double(55.5), "55.5"),
        ("tank", "/Alarms/High/Active", Value::Int(90), "90 %"),
        ("digitalinput", "/State", Value::Int(6), "open"),
        ("digitalinput", "/Type", Value::Int(1), "1"),
        ("meteo", "/WindDirection", Value::Int(270), "270 °"),
        ("battery", "/Soc", Value::Invalid, "---"),
    ] {
        assert_eq!(spec_of(&catalogue, name, path).text(&value), expected, "{name}{path}");
    }
}

#[test]
fn families_come_into_being_together() {
    let catalogue = Catalogue::shipped();
    let charger = catalogue.service_type("solarcharger").unwrap();
    let paths = |path| charger.family_of(path).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let day = paths("/History/Daily/7/Yield");
    assert_eq!(day.len(), 9);
    assert!(day.iter().all(|path| path.starts_with("/History/Daily/7/") && !path.contains("Pv/")), "{day:?}");
    assert_eq!(paths("/History/Daily/7/Pv/0/MaxPower"), ["/History/Daily/7/Pv/0/Yield", "/History/Daily/7/Pv/0/MaxPower"].map(Box::from));
    for stranger in ["/History/Daily/31/Yield", "/History/Daily/7", "/History/Daily/7/Yields", "/History/Daily/7/Yield/x", "/", "", "Yield"]
    {
        assert!(paths(stranger).is_empty(), "{stranger}");
    }
    let output = charger.family_of("/SwitchableOutput/pump_1/Status");
    let name = output.iter().find(|(path, _)| &**path == "/SwitchableOutput/pump_1/Name").unwrap();
    assert_eq!(name.1.default, text("pump_1"));
    assert!(charger.family_of("/SwitchableOutput/pump-1/Status").is_empty());
}

#[test]
fn a_type_is_parsed_once() {
    let catalogue = Catalogue::shipped();
    assert!(Arc::ptr_eq(&catalogue.service_type("tank").unwrap(), &catalogue.service_type("tank").unwrap()));
}

const SERVICES_YML: &str = r#"
temperature:
  CustomName:
    default: "My Sensor"
    persist: true
  TemperatureType:
    description: "Battery, Fridge or Generic"
    persist: yes
    default: 2
    min: 0
    max: 2
  Temperature:
    description: "C"

# a type of the user's own
kettle:
  ProductId:
    default: 0xA163
  Power:
    default: 0
    format: "{:.1f} W"
  Mode:
    default: 1
  Whole:
    default: 1
    type: i
  Bits:
    default: 1
    format: "{:X}"
  Either:
    type: n
  DeviceType:
    default: "grid"
    persist: true
  Scale:
    default: 1.5
  /Contact:
  ModelName:
  Lid:
    default: Off
  Roles:
    default: ["a", 'b']
  Limits:
    default:
    - 1
    - 2.5
  Cups:
    format: "{:d}"
    setting: true
    min: 0
    max: 0
"#;

#[test]
fn services_yml_as_it_is() {
    let (catalogue, mistakes) = added(SERVICES_YML);
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    let kept = spec_of(&catalogue, "temperature", "/TemperatureType");
    assert_eq!((kept.kind, kept.kept, &kept.max), (Kind::Number, true, &Value::Int(2)));
    assert_eq!(spec_of(&catalogue, "temperature", "/CO2").kind, Kind::Double, "what is not in the file stays");
    for (path, kind, default) in [
        ("/ProductId", Kind::Int, Value::Int(0xa163)),
        ("/Power", Kind::Double, Value::Double(0.0)),
        ("/Mode", Kind::Number, Value::Int(1)),
        ("/Whole", Kind::Int, Value::Int(1)),
        ("/Bits", Kind::Int, Value::Int(1)),
        ("/Either", Kind::Number, Value::Invalid),
        ("/DeviceType", Kind::TextOrNumber, text("grid")),
        ("/Scale", Kind::Double, Value::Double(1.5)),
        ("/Contact", Kind::Double, Value::Invalid),
        ("/ModelName", Kind::Text, Value::Invalid),
        ("/Lid", Kind::Int, Value::Int(0)),
        ("/Roles", Kind::Texts, Value::Array([text("a"), text("b")].into())),
        ("/Limits", Kind::Doubles, Value::Array([Value::Double(1.0), Value::Double(2.5)].into())),
        ("/Cups", Kind::Int, Value::Invalid),
        ("/CustomName", Kind::Text, text("My Device")),
    ] {
        let spec = spec_of(&catalogue, "kettle", path);
        assert_eq!((spec.kind, &spec.default), (kind, &default), "{path}");
    }
    assert_eq!(spec_of(&catalogue, "kettle", "/ProductId").text(&Value::Int(0xa163)), "0xA163");
    let cups = spec_of(&catalogue, "kettle", "/Cups");
    assert_eq!((cups.kept, &cups.min, &cups.max), (true, &Value::Invalid, &Value::Invalid), "0 and 0 are no limits");
}

/// What Python takes, and what would cost more than it is worth.
#[test]
fn services_yml_of_others() {
    let (catalogue, mistakes) = added(
        "kettle:\n  Name: {default: Tea, persist: true, min: 0, max: 0}\n  Room: {type: s, min: 0, max: null}\n  Roles: {type: as, min: 0, max: 0}\n  \
         A: {default: 1.5, format: ''}\n  B: {default: 2, format: null}\n  \
         C: {default: 1, default: 2}\n  D: {default: 1}\n  D: {default: 3}\n  E[1..2]: {default: 1.5, format: '{:5.1f} W'}\n",
    );
    assert_eq!(
        mistakes,
        [
            "my.yml:7: kettle/C: `default` is there already; the last one counts; remove the other",
            "my.yml:8: kettle/D: it is there again below, and the last one counts; remove this",
            "my.yml:10: kettle/E[1..2]: `format`: {:5.1f} is shown as {}; write {}, {:.2f}, {:d} or {:X}",
        ]
    );
    let name = spec_of(&catalogue, "kettle", "/Name");
    assert_eq!((name.kind, &name.min, &name.max), (Kind::Text, &Value::Invalid, &Value::Invalid));
    for (path, default) in [("/A", Value::Double(1.5)), ("/B", Value::Int(2)), ("/C", Value::Int(2)), ("/D", Value::Int(3))] {
        assert_eq!(spec_of(&catalogue, "kettle", path).default, default, "{path}");
    }
    assert_eq!(spec_of(&catalogue, "kettle", "/E2").text(&Value::Double(1.5)), "1.5 W");
}

#[test]
fn limits_of_a_text_or_number() {
    let (catalogue, mistakes) = added("grid:\n  DeviceType: {default: 0, min: 0, max: 2, persist: true}\n");
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    let spec = spec_of(&catalogue, "grid", "/DeviceType");
    assert_eq!((spec.kind, &spec.min, &spec.max), (Kind::TextOrNumber, &Value::Int(0), &Value::Int(2)));
    assert_eq!(spec.bring(text("grid")), Ok(text("grid")));
    assert_eq!(spec.bring(Value::Int(3)), Err("3 is outside 0..2".into()));
    assert_eq!(spec.bring(Value::Double(f64::NAN)), Err("it is a setting, which cannot be without a value".into()));
}

#[test]
fn notations_are_for_users_too() {
    let (mut catalogue, mistakes) = added(
        "pool:\n  _include: [_mine, _relay]\n  Pump/[1..2]/Power, Level: {type: double, format: \"{} W\"}\n  Zone/{0..9}/State: {type: i, \
         command: yes}\n  Zone/3/State: {type: i, default: 3}\n_mine:\n  Depth: {type: d}\n",
    );
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    for path in ["/Depth", "/Relay/0/State", "/Pump/1/Power", "/Pump/2/Power", "/Level", "/Zone/9/State", "/SwitchableOutput/a/State"] {
        spec_of(&catalogue, "pool", path);
    }
    let pool = catalogue.service_type("pool").unwrap();
    assert!(pool.family_of("/Zone/3/State").is_empty(), "it is there already");
    assert!(!catalogue.types().contains(&"_mine"));

    // a second file adds to the first; what was handed out stays as it was
    assert!(catalogue.add_file("more.yml", "pool:\n  Depth: {type: i}\n  Ph:\n").is_empty());
    assert_eq!(spec_of(&catalogue, "pool", "/Depth").kind, Kind::Int);
    assert_eq!(spec_of(&catalogue, "pool", "/Level").kind, Kind::Double);
    assert!(pool.items.iter().all(|(path, _)| &**path != "/Ph"));
}

/// Each mistake costs its type: those around it are there.
fn costs_its_type_only(mistakes: &[(&str, &str)]) {
    for (bad, mistake) in mistakes {
        let (catalogue, mistakes) = added(&format!("{bad}\n\ngood:\n  B:\n    default: 1\nalso:\n  C:\n"));
        assert_eq!(mistakes, [format!("my.yml:{mistake}")], "{bad}");
        spec_of(&catalogue, "good", "/B");
        spec_of(&catalogue, "also", "/C");
        assert!(catalogue.service_type("bad").is_none(), "{bad}");
    }
}

#[test]
fn types_that_cannot_be() {
    costs_its_type_only(&[
        ("bad:\n  A[1..400]:\n  B[1..400]:", "3: bad: it has more than 512 items; write fewer"),
        ("bad:\n  A[1..500]:", "1: bad: it has more than 512 items, with those it has without saying so; write fewer"),
        (
            "bad:\n  A: {persist: on}\n  A/B: {setting: on}",
            "1: bad: /A and /A/B cannot both be kept as settings; remove `persist` from one",
        ),
        ("bad:\n  _include: _pw\n  A:", "2: bad/_include: there is no group `_pw`; correct its name"),
        ("bad: 5", "1: bad: must be a mapping of items; write each item as a key below it"),
        ("bad:\n- A", "2: bad: must be a mapping of items; write each item as a key below it"),
        ("bad", "1: bad: must be a type with a colon, and its items below it"),
        ("- bad", "1: - bad: must be a type with a colon, and its items below it"),
        ("9bad:\n  A:", "1: 9bad: not the name of a type; use at most 32 letters, digits and _, a letter first"),
        (
            "abcdefghijklmnopqrstuvwxyz0123456:\n  A:",
            "1: abcdefghijklmnopqrstuvwxyz0123456: not the name of a type; use at most 32 letters, digits and _, a letter first",
        ),
        ("settings:\n  A:", "1: settings: Venus OS itself has services of this type; choose another name"),
        ("_pv:\n  A:", "1: _pv: there is such a group already; choose another name"),
        ("_mine:\n  _include: _pv", "2: _mine/_include: a group cannot have it; write it into the types"),
    ]);
}

#[test]
fn paths_and_keys_that_are_not_known() {
    costs_its_type_only(&[
        ("bad:\n  A: {defualt: 1}", "2: bad/A: unknown key `defualt`; did you mean `default`?"),
        (
            "bad:\n  A: {colour: 1}",
            "2: bad/A: unknown key `colour`; known: default, description, format, persist, setting, min, max, type, command, writable, names",
        ),
        ("bad:\n  A:\n  B: 5", "3: bad/B: must be a mapping; write `default:` and what else it has as keys below it"),
        ("bad:\n  A:\n  /A: {type: i}", "3: bad/A: /A is there already; remove the one or the other"),
        (
            "bad:\n  A b:",
            "2: bad/A b: `A b` is not a path; write words of letters, digits and _ with / between them, with [1..3], [A|B], {0..9} or {x} where several are meant",
        ),
        (
            "bad:\n  A/{y}/B:",
            "2: bad/A/{y}/B: `A/{y}/B` is not a path; write words of letters, digits and _ with / between them, with [1..3], [A|B], {0..9} or {x} where several are meant",
        ),
        ("bad:\n  Mgmt/Connection:", "2: bad/Mgmt/Connection: every service has this from the daemon itself; remove it"),
        ("bad:\n  A[1..600]:", "2: bad/A[1..600]: it stands for more than 512 paths; write fewer"),
    ]);
}

#[test]
fn values_that_cannot_be() {
    costs_its_type_only(&[
        (
            "bad:\n  A:\n    type: bool",
            "3: bad/A: `type`: must be i (integer), d (double), n (either), s (text), sn (text or number), as (texts) or ad (doubles)",
        ),
        ("bad:\n  A:\n    default: 5\n    format: '{:q}'", "4: bad/A: `format`: {:q} is not known; write {}, {:.2f}, {:d} or {:X}"),
        ("bad:\n  A: {format: W}", "2: bad/A: `format`: it has no {}, where the value goes; write {}, {:.2f}, {:d} or {:X}"),
        ("bad:\n  A: {format: [1]}", "2: bad/A: `format`: must be a text"),
        ("bad:\n  A: {type: s, format: '{:.1f}'}", "2: bad/A: `format`: it does not suit the item's type; write {} or correct `type`"),
        ("bad:\n  A:\n    min: 3\n    max: 2.5", "3: bad/A: `min` 3 is above `max` 2.5; correct the one or the other"),
        ("bad:\n  A: {type: i, min: 0.5}", "2: bad/A: `min`: 0.5 is not a whole number; correct it"),
        ("bad:\n  A: {type: s, max: 3}", "2: bad/A: `max`: only a number has limits; remove it, or correct `type`"),
        ("bad:\n  DeviceType: {max: grid}", "2: bad/DeviceType: `max`: \"grid\" is not a number; correct it"),
        ("bad:\n  A: {min: low}", "2: bad/A: `min`: \"low\" is not a number; correct it"),
        ("bad:\n  A: {default: 5, min: 0, max: 2}", "2: bad/A: `default`: 5 is outside 0..2; correct it"),
        ("bad:\n  A: {default: x, type: d}", "2: bad/A: `default`: \"x\" is not a number; correct it"),
        ("bad:\n  A:\n    default:\n      b: 1", "4: bad/A: must be a value, not a mapping"),
        ("bad:\n  A:\n    default: [1]\n    persist: on", "4: bad/A: a list cannot be kept as a setting; remove `persist`"),
        ("bad:\n  _A: {persist: true}", "2: bad/_A: a part that begins with _ cannot be kept as a setting; remove `persist`"),
        ("bad:\n  A: {persist: perhaps}", "2: bad/A: `persist`: must be true or false"),
        ("bad:\n  A: {names: {0: off}}", "2: bad/A: `names`: only an integer has names; remove them, or write `type: i`"),
        ("bad:\n  A: {type: i, names: {a: off}}", "2: bad/A: `names`: `a` is not an integer; correct it"),
    ]);
}

#[test]
fn yaml_that_is_not_understood() {
    costs_its_type_only(&[
        ("bad:\n  A: &a {min: 1}\n  B: *a", "2: bad: anchors, aliases and tags (&, *, !) are not understood; write the text out"),
        ("bad:\n  A: !!str 5", "2: bad: anchors, aliases and tags (&, *, !) are not understood; write the text out"),
        ("bad:\n  [A]: {}", "2: bad: a key must be a text, not a list or a mapping"),
        ("bad:\n  A: {default: [[[1]]]}", "2: bad: nested too deep; a type has items, an item has keys, a key has a value or a list"),
        ("bad:\n  A: {description: \"\\0\"}", "2: bad: the text holds a NUL, which D-Bus cannot carry; remove it"),
        ("bad:\n  A: {}\n  \u{1b}B: {}", "3: bad: a control character; remove it"),
        (
            "bad:\n  A: {min: 1\n  B:\n",
            "3: bad: not YAML: while parsing a flow mapping, did not find expected ',' or '}'; correct this line or the one before it",
        ),
        (
            "bad:\n  A:\n\tB:\n",
            "3: bad: not YAML: tabs disallowed within this context (block indentation); correct this line or the one before it",
        ),
        ("bad:\n  A: \"x\n  B: y\n", "2: bad: not YAML: invalid indentation in quoted scalar; correct this line or the one before it"),
    ]);
}

#[test]
fn mistakes_of_a_file_as_a_whole() {
    let (catalogue, mistakes) = added("good:\n  A:\n\nother:\n\ngood:\n  B:\n");
    assert_eq!(mistakes, ["my.yml:6: good: is there already, in line 1, which counts; write the items of both below one of them"]);
    spec_of(&catalogue, "good", "/A");

    let many: String = (0..65).map(|n| format!("t{n}:\n")).collect();
    let (catalogue, mistakes) = added(&many);
    assert_eq!(mistakes, ["my.yml:65: more than 64 types in a file; write a second file"]);
    assert!(catalogue.service_type("t63").is_some() && catalogue.service_type("t64").is_none());

    let items: String = (0..60).map(|n| format!("  A{n}: {{x: 1}}\n")).collect();
    let (_, mistakes) = added(&format!("bad:\n{items}"));
    assert_eq!((mistakes.len(), mistakes[50].as_str()), (51, "my.yml:51: there are more mistakes below; correct these first"));

    for nothing in ["", "\n\n", "# nothing\n", "---\n...\n", "\u{feff}"] {
        assert!(added(nothing).1.is_empty(), "{nothing:?}");
    }
}

#[test]
fn lines_may_end_as_on_windows() {
    let (catalogue, mistakes) = added("good:\r\n  A: {min: 1}\r\n  B:\r\n    default: \"x\"\r\n\r\nbad:\r\n  C: {mim: 1}\r\n");
    assert_eq!(mistakes, ["my.yml:7: bad/C: unknown key `mim`; did you mean `min`?"]);
    assert_eq!(spec_of(&catalogue, "good", "/B").default, text("x"));
}

#[test]
fn a_type_that_ships_survives_what_users_add() {
    let (catalogue, mistakes) = added("tank:\n  Level: {type: i}\n  Remaining: {type: x}\n");
    assert_eq!(mistakes.len(), 1);
    assert_eq!(spec_of(&catalogue, "tank", "/Level").kind, Kind::Double);
}

#[test]
fn what_a_mistake_quotes_is_made_fit_for_a_log() {
    let mut catalogue = Catalogue::shipped();
    let mistakes = catalogue.add_file("a\nb.yml", "bad:\n  \"\\e31m\": {}\n");
    assert!(mistakes[0].to_string().starts_with("a\\nb.yml:2: bad/\\u{1b}31m: `"), "{}", mistakes[0]);
}

/// Pieces that catalogues are made of, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a:",
        "tank:",
        "  A:",
        "  Level:",
        "    default:",
        "    min: 0",
        "    format:",
        " 5",
        " {",
        "}",
        " [",
        "]",
        "\n",
        "\n",
        "\n",
        "- ",
        "? ",
        ": ",
        ", ",
        "'",
        "\"",
        "|",
        ">",
        "&a ",
        "*a ",
        "!!str ",
        "---",
        "...",
        "#",
        "%",
        "\t",
        "{}",
        "{x}",
        "{0..3}",
        "[1..3]",
        "_include: [_pv]",
        "\\",
        "é",
        "\u{feff}",
        "\0",
        "\r",
        "yes",
        "0x",
        ".5",
        "1e9",
        "<<: ",
        "@",
        "`",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// The file that ships, with something in it that does not belong there.
fn damaged() -> impl Strategy<Value = String> {
    let at = || any::<prop::sample::Index>();
    (at(), at(), pieces()).prop_map(|(from, to, pieces)| {
        let lines: Vec<_> = SHIPPED.lines().collect();
        let (from, to) = (from.index(lines.len()), to.index(lines.len()));
        let text = lines[from.min(to)..from.max(to).min(from.min(to) + 40)].join("\n");
        let middle = text.char_indices().map(|(at, _)| at).nth(text.chars().count() / 2).unwrap_or(0);
        format!("{}{pieces}{}", &text[..middle], &text[middle..])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_does_harm(text in prop_oneof![pieces(), damaged(), any::<String>()]) {
        let mut catalogue = Catalogue::shipped();
        let mistakes = catalogue.add_file("my.yml", &text);
        prop_assert!(mistakes.len() <= MISTAKES_MAX + 1);
        for mistake in &mistakes {
            prop_assert!((1..=text.matches('\n').count() + 1).contains(&mistake.line), "{}", mistake);
        }
        for name in catalogue.types().into_iter().filter(|name| !catalogue.shipped.contains_key(name) || *name == "tank") {
            prop_assert!(catalogue.service_type(name).unwrap().items.len() <= PATHS_MAX);
        }
    }
}
