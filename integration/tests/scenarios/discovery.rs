//! Section 1: how services are found, followed and forgotten.

use venus_mqtt_integration::{Part, Rig, Setup, empty_array, invalid, item, items, items::Item};

use crate::{BATTERY, TANK, battery, tank};

const BATTERY_TOPICS: [(&str, &str); 4] = [
    ("battery/512/Dc/0/Current", r#"{"value":-3.5}"#),
    ("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#),
    ("battery/512/DeviceInstance", r#"{"value":512}"#),
    ("battery/512/Soc", r#"{"value":87.0}"#),
];

fn expect_battery(mqtt: &venus_mqtt_integration::Client) {
    for (topic, payload) in BATTERY_TOPICS {
        mqtt.n(topic, payload);
    }
}

both! {
    /// `GetItems`: one call, every item.
    fn a_service_is_found_by_getitems(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.keepalive("");
        expect_battery(&mqtt);
        assert_eq!(rig.fake().calls_of(BATTERY, "GetItems"), ["GetItems /"]);
        assert!(rig.fake().calls_of(BATTERY, "GetValue").is_empty());
    }
}

both! {
    /// No `GetItems`: `GetValue` on `/`, whose keys have no leading slash.
    fn an_older_service_is_found_by_getvalue(rig in Setup::default()) {
        rig.fake().add_styled(BATTERY, "older", battery());
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.keepalive("");
        expect_battery(&mqtt);
        assert!(rig.fake().calls_of(BATTERY, "Introspect").is_empty());
        // and followed like any other
        rig.fake().properties_changed(BATTERY, items([("/Soc", item(86.5))]));
        mqtt.n("battery/512/Soc", r#"{"value":86.5}"#);
    }
}

#[test]
fn an_older_service_may_have_the_leading_slash() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add_styled(BATTERY, "older", battery());
    rig.fake().behave(BATTERY, "keys", "slash");
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
}

#[test]
fn an_older_service_may_call_it_an_unknown_object() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.fake().behave(BATTERY, "GetItems", "unknown-object");
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
}

both! {
    /// Neither `GetItems` nor `GetValue` on `/`: the tree is walked by `Introspect`.
    fn a_service_of_leaves_is_found_by_introspection(rig in Setup::default()) {
        rig.fake().add_styled(BATTERY, "leaves", battery());
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.keepalive("");
        expect_battery(&mqtt);
        rig.fake().items_changed(BATTERY, items([("/Soc", item(86.5))]));
        mqtt.n("battery/512/Soc", r#"{"value":86.5}"#);
    }
}

both! {
    /// A service that never answers costs the others nothing.
    fn a_mute_service_costs_the_others_nothing(rig in Setup::default()) {
        rig.fake().add_styled(BATTERY, "mute", battery());
        rig.fake().add(TANK, tank());
        rig.start_bridge();
        let mqtt = rig.listener();
        // it signals all the same
        rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
        mqtt.keepalive("");
        mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
        rig.fake().items_changed(BATTERY, items([("/Soc", item(2.0))]));
        rig.fake().items_changed(TANK, items([("/Level", item(0.4))]));
        let after = mqtt.n("tank/3/Level", r#"{"value":0.4}"#);
        mqtt.expect_silence_on(&mqtt.topic('N', "battery/0/Soc"), &after);
        mqtt.write("tank/3/Level", r#"{"value":0.1}"#);
        mqtt.n("tank/3/Level", r#"{"value":0.1}"#);
    }
}

/// A service that was busy for a minute is found when it answers: it is asked again.
#[test]
fn a_mute_service_that_comes_to_life_is_found() {
    let mut rig = Rig::new(Setup::default().bridge("always_on = true"));
    rig.fake().add_styled(BATTERY, "mute", battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    rig.fake().await_call(BATTERY, "GetItems /");
    rig.fake().behave(BATTERY, "*", "answer");
    let topic = mqtt.topic('N', "battery/512/Soc");
    mqtt.wait_within("the battery", venus_mqtt_integration::DEADLINE * 3, |messages| {
        messages.iter().any(|message| message.topic == topic).then_some(())
    });
}

both! {
    /// A service dies of the scan; when it is back it is scanned again.
    fn a_service_dies_in_mid_scan_and_returns(rig in Setup::default()) {
        rig.fake().add(TANK, tank());
        rig.fake().add_styled(BATTERY, "dies", battery());
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.keepalive("");
        mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
        rig.fake().add(BATTERY, battery());
        expect_battery(&mqtt);
    }
}

#[test]
fn a_service_dies_in_the_middle_of_a_walk() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(TANK, tank());
    rig.fake().add_styled(BATTERY, "leaves", battery());
    rig.fake().behave(BATTERY, "GetValue", "die");
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    mqtt.completed();
    assert!(rig.runs(Part::Bridge));
}

/// The answer to `GetItems` is older than the signals that come before it: they win.
#[test]
fn changes_before_the_end_of_the_scan_are_kept() {
    for properties in [false, true] {
        let mut rig = Rig::new(Setup::default());
        rig.fake().add_styled(BATTERY, "late", battery());
        rig.fake().add(TANK, tank());
        rig.start_bridge();
        let mqtt = rig.listener();
        rig.fake().await_call(BATTERY, "GetItems /");
        let change = || items([("/Soc", item(55.0)), ("/Dc/0/Current", item(1.5))]);
        if properties {
            rig.fake().properties_changed(BATTERY, change());
        } else {
            rig.fake().items_changed(BATTERY, change());
        }
        rig.fake().items_changed(BATTERY, items([("/New", item(1))]));
        mqtt.keepalive("");
        mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
        assert_eq!(rig.fake().release(BATTERY), 1);
        mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
        mqtt.n("battery/512/Soc", r#"{"value":55.0}"#);
        mqtt.n("battery/512/New", r#"{"value":1}"#);
        mqtt.mark();
        mqtt.keepalive("");
        mqtt.completed();
        let values = mqtt.items();
        assert_eq!(values.get("battery/512/Soc").map(String::as_str), Some(r#"{"value":55.0}"#));
        assert_eq!(values.get("battery/512/Dc/0/Current").map(String::as_str), Some(r#"{"value":1.5}"#));
    }
}

#[test]
fn a_service_that_appears_while_awake_is_published() {
    let mut rig = Rig::new(Setup::default());
    let mqtt = rig.awake();
    rig.fake().add(BATTERY, battery());
    expect_battery(&mqtt);
}

/// It can have the same values as before: nobody may conclude that nothing has changed.
#[test]
fn a_service_returns_with_a_new_owner() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    for _ in 0..3 {
        mqtt.mark();
        rig.fake().remove(BATTERY);
        for (topic, _) in BATTERY_TOPICS {
            mqtt.n(topic, "");
        }
        mqtt.mark();
        rig.fake().add(BATTERY, battery());
        expect_battery(&mqtt);
    }
}

/// Some services make their items invalid before they go; some are followed at once by the next.
#[test]
fn a_service_takes_leave() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    mqtt.mark();
    rig.fake().items_changed(BATTERY, items([("/Soc", invalid()), ("/Dc/0/Voltage", invalid()), ("/Dc/0/Current", invalid())]));
    mqtt.n("battery/512/Soc", r#"{"value":null}"#);
    rig.fake().remove(BATTERY);
    rig.fake().add("com.victronenergy.battery.ttyO9", battery());
    expect_battery(&mqtt);
    // the old one's end does not clear the new one's topics
    rig.await_retained_items(&BATTERY_TOPICS.map(|(topic, _)| topic));
}

/// A dozen services at once, as when a device starts.
#[test]
fn many_services_come_at_once() {
    let mut rig = Rig::new(Setup::default());
    let mqtt = rig.awake();
    for n in 0..30 {
        let style = ["normal", "older", "leaves", "normal", "mute", "dies"][n % 6];
        let instance = item(i32::try_from(n).expect("small"));
        rig.fake().add_styled(
            &format!("com.victronenergy.temperature.n{n}"),
            style,
            items([("/DeviceInstance", instance), ("/Temperature", item(20.5))]),
        );
    }
    for n in (0..30).filter(|n| n % 6 < 4) {
        mqtt.n(&format!("temperature/{n}/Temperature"), r#"{"value":20.5}"#);
    }
}

/// Without a moment without an owner: the items are those of the new one, and the old one is not listened to any more.
#[test]
fn a_name_changes_hands() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    mqtt.mark();
    let second = format!("{BATTERY}#2");
    rig.fake().add(&second, items([("/DeviceInstance", item(512)), ("/Soc", item(10.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":10.0}"#);
    mqtt.n("battery/512/Dc/0/Voltage", "");
    mqtt.mark();
    rig.fake().items_changed(BATTERY, items([("/Soc", item(99.0))]));
    rig.fake().items_changed(&second, items([("/Soc", item(11.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":11.0}"#);
    assert_eq!(mqtt.on(&mqtt.topic('N', "battery/512/Soc")).len(), 1, "{:?}", mqtt.since());
    // the last value, after all of this
    mqtt.mark();
    mqtt.keepalive("");
    mqtt.completed();
    assert_eq!(mqtt.items().get("battery/512/Soc").map(String::as_str), Some(r#"{"value":11.0}"#));
}

/// The first keeps the topics; the second is logged, and takes over when the first leaves.
#[test]
fn two_services_share_type_and_instance() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    mqtt.mark();
    let second = "com.victronenergy.battery.ttyO2";
    rig.fake().add(second, items([("/DeviceInstance", item(512)), ("/Soc", item(20.0))]));
    rig.await_log(Part::Bridge, second);
    rig.fake().items_changed(second, items([("/Soc", item(21.0))]));
    rig.fake().items_changed(BATTERY, items([("/Soc", item(80.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":80.0}"#);
    assert_eq!(mqtt.on(&mqtt.topic('N', "battery/512/Soc")).len(), 1, "{:?}", mqtt.since());
    // writes go to the first
    mqtt.write("battery/512/Soc", r#"{"value":70}"#);
    rig.fake().await_call(BATTERY, "SetValue /Soc i 70");
    assert!(rig.fake().calls_of(second, "SetValue").is_empty());

    mqtt.mark();
    rig.fake().remove(BATTERY);
    mqtt.n("battery/512/Soc", r#"{"value":21.0}"#);
    mqtt.n("battery/512/Dc/0/Voltage", "");
    rig.fake().items_changed(second, items([("/Soc", item(22.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":22.0}"#);
}

/// The old topics are retired, the new ones published.
#[test]
fn the_instance_changes_while_running() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    mqtt.mark();
    rig.fake().properties_changed(BATTERY, items([("/DeviceInstance", item(7))]));
    for (topic, payload) in BATTERY_TOPICS {
        mqtt.n(topic, "");
        let payload = if topic.ends_with("DeviceInstance") { r#"{"value":7}"# } else { payload };
        mqtt.n(&topic.replace("512", "7"), payload);
    }
    mqtt.write("battery/7/Soc", r#"{"value":1}"#);
    rig.fake().await_call(BATTERY, "SetValue /Soc i 1");
    rig.await_retained_items(&["battery/7/Soc", "battery/7/DeviceInstance", "battery/7/Dc/0/Voltage", "battery/7/Dc/0/Current"]);
}

/// Who moves away makes room for who waited, and waits where somebody is already.
#[test]
fn an_instance_is_left_and_taken() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    let second = "com.victronenergy.battery.ttyO2";
    rig.fake().add(second, items([("/DeviceInstance", item(512)), ("/Soc", item(20.0))]));
    rig.await_log(Part::Bridge, second);
    mqtt.mark();
    // the first moves away: the second is heard
    rig.fake().properties_changed(BATTERY, items([("/DeviceInstance", item(7))]));
    mqtt.n("battery/512/Soc", r#"{"value":20.0}"#);
    mqtt.n("battery/7/Soc", r#"{"value":87.0}"#);
    mqtt.n("battery/512/Dc/0/Voltage", "");
    // the second follows: it waits
    mqtt.mark();
    rig.fake().properties_changed(second, items([("/DeviceInstance", item(7))]));
    mqtt.n("battery/512/Soc", "");
    rig.fake().items_changed(second, items([("/Soc", item(21.0))]));
    rig.fake().items_changed(BATTERY, items([("/Soc", item(86.0))]));
    mqtt.n("battery/7/Soc", r#"{"value":86.0}"#);
    rig.await_retained_items(&["battery/7/Soc", "battery/7/DeviceInstance", "battery/7/Dc/0/Voltage", "battery/7/Dc/0/Current"]);
    rig.fake().remove(BATTERY);
    mqtt.n("battery/7/Soc", r#"{"value":21.0}"#);
    rig.await_retained_items(&["battery/7/Soc", "battery/7/DeviceInstance"]);
    rig.fake().remove(second);
    rig.await_retained_items(&[]);
}

#[test]
fn instances_come_from_where_they_are() {
    let mut rig = Rig::new(Setup::default());
    let soc = || ("/Soc", item(1));
    rig.fake().add("com.victronenergy.battery.text", items([("/Identifier", item("can0_5")), soc()]));
    rig.fake().add("com.victronenergy.battery.both", items([("/Identifier", item("x")), ("/DeviceInstance", item(4)), soc()]));
    rig.fake().add("com.victronenergy.battery.none", items([soc()]));
    rig.fake().add("com.victronenergy.settings", items([("/Settings/A", item(1))]));
    rig.fake().add("com.victronenergy.platform", items([("/Device/Model", item("x"))]));
    rig.fake().add("com.victronenergy.vecan.can0", items([("/Link", item(1))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    for topic in
        ["battery/can0_5/Soc", "battery/4/Soc", "battery/0/Soc", "settings/0/Settings/A", "platform/0/Device/Model", "vecan/0/Link"]
    {
        mqtt.expect_topic(&mqtt.topic('N', topic));
    }
}

#[test]
fn an_instance_that_comes_later_moves_the_topics() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, items([("/Soc", item(1))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/0/Soc", r#"{"value":1}"#);
    rig.fake().items_changed(BATTERY, items([("/DeviceInstance", item(9))]));
    mqtt.n("battery/9/Soc", r#"{"value":1}"#);
    mqtt.n("battery/0/Soc", "");
}

#[test]
fn names_of_others_are_left_alone() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add("com.victronenergyx.battery.a", battery());
    rig.fake().add("org.example.battery.b", battery());
    rig.fake().add(TANK, tank());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    mqtt.completed();
    rig.fake().add("com.victronenergyx.battery.c", battery());
    rig.fake().items_changed(TANK, items([("/Level", item(0.6))]));
    mqtt.n("tank/3/Level", r#"{"value":0.6}"#);
    assert_eq!(mqtt.items().keys().collect::<Vec<_>>(), ["tank/3/DeviceInstance", "tank/3/Level"]);
    assert!(rig.fake().calls("com.victronenergyx.battery.a").is_empty());
}

#[test]
fn two_names_on_one_connection_are_two_services() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(TANK, tank());
    rig.fake().take_name(TANK, "com.victronenergy.temperature.second");
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    mqtt.n("temperature/3/Level", r#"{"value":0.5}"#);
    // a signal comes from the connection, so it is of both
    rig.fake().items_changed(TANK, items([("/Level", item(0.7))]));
    mqtt.n("tank/3/Level", r#"{"value":0.7}"#);
    mqtt.n("temperature/3/Level", r#"{"value":0.7}"#);
    rig.fake().drop_name(TANK, "com.victronenergy.temperature.second");
    mqtt.n("temperature/3/Level", "");
    rig.fake().items_changed(TANK, items([("/Level", item(0.8))]));
    mqtt.n("tank/3/Level", r#"{"value":0.8}"#);
}

#[test]
fn a_path_never_seen_before_is_a_new_item() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    rig.fake().items_changed(BATTERY, items([("/History/A", item(5))]));
    mqtt.n("battery/512/History/A", r#"{"value":5}"#);
    rig.fake().properties_changed(BATTERY, items([("/History/B", item(6))]));
    mqtt.n("battery/512/History/B", r#"{"value":6}"#);
}

#[test]
fn partial_entries_change_the_limits() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    expect_battery(&mqtt);
    mqtt.mark();
    rig.fake().items_changed(BATTERY, items([("/Soc", Item::bare().limits(0, 100))]));
    mqtt.n("battery/512/Soc", r#"{"value":87.0,"min":0,"max":100}"#);
    rig.fake().properties_changed(BATTERY, items([("/Soc", Item::bare().with("Max", 90.5))]));
    mqtt.n("battery/512/Soc", r#"{"value":87.0,"min":0,"max":90.5}"#);
    rig.fake().items_changed(BATTERY, items([("/Soc", item(50.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":50.0,"min":0,"max":90.5}"#);
    // an invalid limit is none
    rig.fake().items_changed(BATTERY, items([("/Soc", Item::bare().with("Min", empty_array("i")).with("Default", 1.5))]));
    mqtt.n("battery/512/Soc", r#"{"value":50.0,"max":90.5,"default":1.5}"#);
    // a text alone is nothing to us
    mqtt.mark();
    rig.fake().items_changed(BATTERY, items([("/Soc", Item::bare().with("Text", "fifty"))]));
    rig.fake().items_changed(BATTERY, items([("/Dc/0/Current", item(0.0))]));
    let after = mqtt.n("battery/512/Dc/0/Current", r#"{"value":0.0}"#);
    mqtt.expect_silence_on(&mqtt.topic('N', "battery/512/Soc"), &after);
}

/// Bodies that are not what they should be: the service is left out, or the signal, and everything else goes on.
#[test]
fn garbage_from_the_bus_is_survived() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(TANK, tank());
    for (n, what) in ["GetItems", "GetTree", "Introspect", "GetValue"].into_iter().enumerate() {
        let name = format!("com.victronenergy.grid.g{n}");
        rig.fake().add_styled(
            &name,
            if n == 0 {
                "normal"
            } else if n == 1 {
                "older"
            } else {
                "leaves"
            },
            battery(),
        );
        rig.fake().behave(&name, what, "garbage");
    }
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    rig.fake().raw_signal(TANK, "/", "ItemsChanged", "text");
    rig.fake().raw_signal(TANK, "/", "ItemsChanged", vec![1_u32, 2]);
    rig.fake().raw_signal(TANK, "/Level", "PropertiesChanged", 5_u8);
    rig.fake().raw_signal(TANK, "/Level", "PropertiesChanged", (1, "two", 3.0));
    rig.fake().raw_signal(TANK, "/", "PropertiesChanged", "text");
    rig.fake().raw_signal(TANK, "/Level", "ItemsChanged", "text");
    rig.fake().raw_signal(TANK, "/Level", "Unheard", "of");
    // paths that can never be topics
    rig.fake().items_changed(
        TANK,
        items([("", item(1)), ("/", item(1)), ("Level", item(1)), ("/a//b", item(1)), ("/a+/#", item(1)), ("/ä", item(1))]),
    );
    rig.fake().items_changed(TANK, items([("/Level", item(0.25))]));
    mqtt.n("tank/3/Level", r#"{"value":0.25}"#);
    assert!(mqtt.since().iter().all(|message| !message.topic.contains(['+', '#']) && !message.topic.contains("//")));
    assert!(rig.runs(Part::Bridge));
}

/// Every call of the daemon carries what a strict service wants to see.
#[test]
fn calls_are_well_formed() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.read("battery/512/Soc");
    mqtt.write("battery/512/Soc", r#"{"value":1}"#);
    rig.fake().await_call(BATTERY, "SetValue /Soc i 1");
    for call in rig.fake().calls(BATTERY) {
        assert!(["com.victronenergy.BusItem", "org.freedesktop.DBus.Introspectable"].contains(&call.interface.as_str()), "{call:?}");
    }
}
