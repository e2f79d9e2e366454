//! Section 1, "JSON of a value" and back: every type of the bus, both ways.

use std::collections::BTreeMap;

use venus_mqtt_integration::{Item, Rig, Setup, empty_array, invalid, item, items, items::Items};
use zbus::{ObjectPath, Signature, Structure, Variant};

use crate::BATTERY;

fn dict(entries: &[(&'static str, Variant<'static>)]) -> Variant<'static> {
    let entries: BTreeMap<String, Variant<'static>> =
        entries.iter().map(|(key, value)| ((*key).to_owned(), value.try_clone().expect("no file descriptors"))).collect();
    entries.into()
}

/// A name, a value as a service has it, and its JSON.
fn table() -> Vec<(&'static str, Variant<'static>, &'static str)> {
    let variant = |value: Variant<'static>| Variant::Variant(Box::new(value));
    vec![
        ("y", 255_u8.into(), "255"),
        ("n", i16::MIN.into(), "-32768"),
        ("q", u16::MAX.into(), "65535"),
        ("i", i32::MIN.into(), "-2147483648"),
        ("u", u32::MAX.into(), "4294967295"),
        ("x", i64::MIN.into(), "-9223372036854775808"),
        // one more than a double can hold
        ("x2", 9_007_199_254_740_993_i64.into(), "9007199254740993"),
        ("t", u64::MAX.into(), "18446744073709551615"),
        ("d", 926.0.into(), "926.0"),
        ("d2", 0.1.into(), "0.1"),
        ("d3", (-13.37).into(), "-13.37"),
        ("nan", f64::NAN.into(), "null"),
        ("inf", f64::INFINITY.into(), "null"),
        ("ninf", f64::NEG_INFINITY.into(), "null"),
        ("b", true.into(), "true"),
        ("b2", false.into(), "false"),
        ("s", "text".into(), "\"text\""),
        ("s2", "q\" b\\ n\n ä €".into(), "\"q\\\" b\\\\ n\\n ä €\""),
        ("s3", "".into(), "\"\""),
        ("o", ObjectPath::try_from("/a/b").expect("a path").into(), "\"/a/b\""),
        ("g", Variant::Signature(Signature::try_from("a{sv}").expect("a signature")), "\"a{sv}\""),
        ("ay", vec![0_u8, 255].into(), "[0,255]"),
        ("ai", vec![1_i32, -2].into(), "[1,-2]"),
        ("ad", vec![1.0, 2.5].into(), "[1.0,2.5]"),
        ("as", vec!["a".to_owned(), "b".to_owned()].into(), "[\"a\",\"b\"]"),
        ("aai", vec![vec![1_i32], vec![2, 3]].into(), "[[1],[2,3]]"),
        ("av", vec![variant(1_i32.into()), variant("x".into()), variant(2.5.into())].into(), "[1,\"x\",2.5]"),
        ("v", variant(5_i32.into()), "5"),
        ("asv", dict(&[("a", 1_i32.into()), ("b", "x".into()), ("c", vec![1_i32].into())]), "{\"a\":1,\"b\":\"x\",\"c\":[1]}"),
        ("ss", BTreeMap::from([("k".to_owned(), "v".to_owned())]).into(), "{\"k\":\"v\"}"),
        ("nested", dict(&[("a", dict(&[("b", dict(&[("c", 1.5.into())]))]))]), "{\"a\":{\"b\":{\"c\":1.5}}}"),
        ("struct", Variant::Structure(Structure::from((1_i32, "x"))), "[1,\"x\"]"),
        ("e_i", empty_array("i"), "null"),
        ("e_u", empty_array("u"), "null"),
        ("e_y", empty_array("y"), "null"),
        ("e_s", empty_array("s"), "null"),
        ("e_v", empty_array("v"), "null"),
        ("e_ai", empty_array("ai"), "null"),
        ("e_sv", empty_array("(iv)"), "null"),
    ]
}

/// The table, for a service of this style: where `GetValue` is all there is, a dictionary is what an inner path answers.
fn table_of(style: &str) -> Vec<(&'static str, Variant<'static>, &'static str)> {
    let mut table = table();
    table.retain(|(_, value, _)| style != "leaves" || !matches!(value, Variant::Dict(_)));
    table
}

fn all(style: &str) -> Items {
    let mut all = items([("/DeviceInstance", item(512))]);
    for (name, value, _) in table_of(style) {
        all.insert(format!("/{name}"), item(value).0);
    }
    all
}

fn expect_all(mqtt: &venus_mqtt_integration::Client, style: &str) {
    for (name, _, json) in table_of(style) {
        mqtt.n(&format!("battery/512/{name}"), &format!("{{\"value\":{json}}}"));
    }
}

/// Each type, exactly, whichever way it was found and told.
#[test]
fn from_the_bus() {
    for style in ["normal", "older", "leaves"] {
        let mut rig = Rig::new(Setup::default());
        rig.fake().add_styled(BATTERY, style, all(style));
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.keepalive("");
        expect_all(&mqtt, style);
        // by signals of both kinds
        mqtt.mark();
        rig.fake().items_changed(BATTERY, all(style));
        expect_all(&mqtt, style);
        mqtt.mark();
        rig.fake().properties_changed(BATTERY, all(style));
        expect_all(&mqtt, style);
        // and asked for
        mqtt.mark();
        for (name, _, json) in table_of(style) {
            mqtt.read(&format!("battery/512/{name}"));
            mqtt.n(&format!("battery/512/{name}"), &format!("{{\"value\":{json}}}"));
        }
    }
}

/// The payload's bytes: clients of today search in them.
#[test]
fn limits_come_in_order() {
    let mut rig = Rig::new(Setup::default());
    let list = items([
        ("/DeviceInstance", item(512)),
        ("/A", item(5).limits(1, 10).default(7)),
        ("/B", item(5.5).with("Max", 10.0)),
        ("/C", item("x").with("Default", "y")),
        ("/D", invalid().limits(0, 1)),
        ("/E", item(5).with("Min", empty_array("i")).with("Max", empty_array("u"))),
        ("/F", item(0).with("Min", 0).with("Max", 0)),
    ]);
    rig.fake().add(BATTERY, list);
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/A", r#"{"value":5,"min":1,"max":10,"default":7}"#);
    mqtt.n("battery/512/B", r#"{"value":5.5,"max":10.0}"#);
    mqtt.n("battery/512/C", r#"{"value":"x","default":"y"}"#);
    mqtt.n("battery/512/D", r#"{"value":null,"min":0,"max":1}"#);
    mqtt.n("battery/512/E", r#"{"value":5}"#);
}

/// JSON to D-Bus: the type of the SetValue is seen by the service.
#[test]
fn to_the_bus() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, items([("/DeviceInstance", item(512)), ("/X", item(0))]));
    rig.fake().behave(BATTERY, "signal", "none");
    rig.start_bridge();
    let mqtt = rig.listener();
    let table: [(&str, &str, &str); 25] = [
        ("5", "i", "5"),
        ("-5", "i", "-5"),
        ("2147483647", "i", "2147483647"),
        ("2147483648", "x", "2147483648"),
        ("-2147483649", "x", "-2147483649"),
        ("9007199254740993", "x", "9007199254740993"),
        ("9223372036854775807", "x", "9223372036854775807"),
        ("9223372036854775808", "t", "9223372036854775808"),
        ("18446744073709551615", "t", "18446744073709551615"),
        ("5.0", "d", "5.0"),
        ("5.25", "d", "5.25"),
        ("1e3", "d", "1000.0"),
        ("true", "b", "true"),
        ("false", "b", "false"),
        ("\"text\"", "s", "\"text\""),
        ("\"\"", "s", "\"\""),
        ("\"23.4\"", "s", "\"23.4\""),
        ("[1, 2]", "ai", "[1,2]"),
        ("[1.5, 2.5]", "ad", "[1.5,2.5]"),
        ("[\"a\"]", "as", "[\"a\"]"),
        ("[1, \"a\"]", "av", "[1,\"a\"]"),
        ("[[1], [2]]", "aai", "[[1],[2]]"),
        ("{\"a\": 1}", "a{sv}", "{\"a\":1}"),
        ("null", "ai", "[]"),
        ("[]", "ai", "[]"),
    ];
    for (json, signature, shown) in table {
        mqtt.write("battery/512/X", format!("{{\"value\": {json}}}"));
        rig.fake().await_call(BATTERY, &format!("SetValue /X {signature} {shown}"));
    }
}

/// What is written comes back as it was written.
#[test]
fn there_and_back() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, items([("/DeviceInstance", item(512)), ("/X", item(0))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/X", r#"{"value":0}"#);
    for json in [
        "1",
        "-9223372036854775808",
        "18446744073709551615",
        "0.1",
        "1.0",
        "true",
        "\"a\\\"b\"",
        "null",
        "[1,2]",
        "[1,\"x\",null]",
        "[[1],[2]]",
        "{\"a\":[{\"b\":null}]}",
    ] {
        let payload = format!("{{\"value\":{json}}}");
        mqtt.write("battery/512/X", &payload);
        mqtt.n("battery/512/X", &payload);
    }
}

#[test]
fn a_long_string_and_a_large_array_pass() {
    let mut rig = Rig::new(Setup::default());
    let long = "x".repeat(60_000);
    let many: Vec<i32> = (0..10_000).collect();
    rig.fake().add(
        BATTERY,
        items([("/DeviceInstance", item(512)), ("/S", Item::bare().with("Value", long.clone())), ("/A", Item::bare().with("Value", many))]),
    );
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/S", &format!("{{\"value\":\"{long}\"}}"));
    mqtt.expect_topic(&mqtt.topic('N', "battery/512/A"));
}
