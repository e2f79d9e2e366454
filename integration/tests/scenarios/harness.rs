//! The harness keeps its own promises: the fakes behave as real services do, and nothing is left behind.

use venus_mqtt_integration::{Client, DEADLINE, Part, Rig, Setup, eventually, fake::Call, item, items, parts::Signal};
use zbus::{OwnedVariant, Variant};

use crate::{BATTERY, TANK, battery, tank};

fn value_of(rig: &Rig, path: &str) -> String {
    rig.fake().value(BATTERY, path).map_or_else(|error| format!("{error:#}"), |value| Variant::from(value).to_string())
}

both! {
    /// A fake service answers, changes, signals and remembers what was called.
    fn services_behave(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        assert_eq!(value_of(&rig, "/Soc"), "87.");
        assert!(value_of(&rig, "/Dc/0").contains("\"Voltage\": <26.4>"), "{}", value_of(&rig, "/Dc/0"));
        assert!(value_of(&rig, "/Nothing").contains("UnknownObject"));
        assert_eq!(rig.fake().set_value(BATTERY, "/Soc", 50_i32).ok(), Some(0));
        assert_eq!(value_of(&rig, "/Soc"), "50");
        rig.fake().behave(BATTERY, "SetValue", "refuse:2");
        assert_eq!(rig.fake().set_value(BATTERY, "/Soc", 10_i32).ok(), Some(2));
        assert_eq!(value_of(&rig, "/Soc"), "50");
        assert_eq!(rig.fake().calls_of(BATTERY, "SetValue"), ["SetValue /Soc i 50", "SetValue /Soc i 10"]);
    }
}

#[test]
fn styles_behave() {
    let rig = Rig::new(Setup::default());
    let get_items = |name: &str| -> Result<venus_mqtt_integration::Items, String> {
        rig.fake().call(name, "/", "com.victronenergy.BusItem", "GetItems", &()).map_err(|error| format!("{error:#}"))
    };
    rig.fake().add("com.victronenergy.grid.normal", battery());
    let answer = get_items("com.victronenergy.grid.normal").expect("it answers");
    assert_eq!(answer.keys().collect::<Vec<_>>(), ["/Dc/0/Current", "/Dc/0/Voltage", "/DeviceInstance", "/Soc"]);
    rig.fake().add_styled("com.victronenergy.grid.older", "older", battery());
    assert!(get_items("com.victronenergy.grid.older").is_err_and(|error| error.contains("UnknownMethod")));
    assert!(rig.fake().value("com.victronenergy.grid.older", "/").is_ok());
    rig.fake().add_styled("com.victronenergy.grid.leaves", "leaves", battery());
    assert!(rig.fake().value("com.victronenergy.grid.leaves", "/").is_err());
    let xml: String =
        rig.fake().call("com.victronenergy.grid.leaves", "/Dc/0", "org.freedesktop.DBus.Introspectable", "Introspect", &()).expect("xml");
    assert!(xml.contains("<node name=\"Voltage\"/>") && !xml.contains("interface"), "{xml}");
    rig.fake().add_styled("com.victronenergy.grid.dies", "dies", battery());
    assert!(get_items("com.victronenergy.grid.dies").is_err());
    assert!(!rig.fake().names().contains(&"com.victronenergy.grid.dies".to_owned()));
}

#[test]
fn a_name_moves_to_another_connection_without_a_gap() {
    let rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.fake().add(&format!("{BATTERY}#2"), items([("/Soc", item(1.0))]));
    assert_eq!(value_of(&rig, "/Soc"), "1.");
    rig.fake().remove(&format!("{BATTERY}#2"));
    assert!(!rig.fake().names().contains(&BATTERY.to_owned()));
}

#[test]
fn the_retained_view_is_exact() {
    let rig = Rig::new(Setup::default());
    let client = rig.client();
    client.publish_retained("a/1", "x");
    client.publish_retained("a/2", "y");
    client.publish_retained("a/1", "");
    client.publish("a/3", "z");
    client.barrier();
    assert_eq!(rig.retained("a/#").into_iter().collect::<Vec<_>>(), [("a/2".to_owned(), "y".to_owned())]);
}

#[test]
fn a_proxied_link_is_cut_off_and_comes_back() {
    let mut rig = Rig::new(Setup::default().proxied());
    // the bridge's port is the proxy's
    let config = std::fs::read_to_string(rig.config()).expect("written by the rig");
    let port = config.lines().find_map(|line| line.strip_prefix("port = ")).expect("a port");
    let through =
        Client::connect(([127, 0, 0, 1], port.parse().expect("a number")).into(), &venus_mqtt_integration::mqtt::Options::default())
            .expect("the proxy forwards");
    through.subscribe("x");
    rig.cut_off();
    rig.client().publish("x", "1");
    let straight = rig.listener();
    straight.barrier();
    through.expect_silence_on("x", &straight.since()[0]);
    assert!(through.since().is_empty());
    rig.reconnect();
    through.expect("x", "1");
}

#[test]
fn nothing_is_left_behind() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let dir = rig.dir().to_owned();
    let mut pids = Vec::new();
    for part in [Part::Bus, Part::Broker, Part::Fake] {
        assert!(rig.runs(part));
        pids.push(rig.pid(part));
    }
    // one that is stopped must go, too
    rig.signal(Part::Broker, Signal::SIGSTOP);
    drop(rig);
    assert!(!dir.exists());
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} is still there");
    }
}

#[test]
fn floods_count_up() {
    let rig = Rig::new(Setup::default());
    rig.fake().add(TANK, tank());
    rig.fake().flood(TANK, &["/Level".into()], 100, std::time::Duration::from_micros(100));
    venus_mqtt_integration::eventually("the last value", venus_mqtt_integration::DEADLINE, || {
        let value: OwnedVariant = rig.fake().value(TANK, "/Level").ok()?;
        (f64::try_from(&value).ok()? == 100.5).then_some(())
    });
    assert!(rig.fake().calls(TANK).iter().all(|call: &Call| call.member == "GetValue"));
}

/// What the fake FlashMQ has in common with dbus-flashmq.
#[test]
fn the_fake_flashmq_does_as_the_plugin_does() {
    let rig = Rig::new(Setup::default().flashmq().fake_broker(&["--late", "3000"]));
    rig.await_log(Part::Broker, "connected to the bus");
    let mqtt = rig.listener();
    rig.fake().add(BATTERY, battery());
    // it needs some time to find a service
    mqtt.write("battery/512/Soc", r#"{"value":1}"#);
    rig.await_log(Part::Broker, "Can't find dbus service for W/");
    rig.await_log(Part::Broker, "found com.victronenergy.battery.ttyO1 as battery/512");
    // three full publishes a second; the heartbeat at once
    let echo = |n: u32| format!(r#"{{"keepalive-options": [{{"full-publish-completed-echo": "{n}"}}]}}"#);
    (0..8).for_each(|n| mqtt.keepalive(echo(n)));
    mqtt.expect_topic(&mqtt.topic('N', "heartbeat"));
    mqtt.barrier();
    let completed = mqtt.on(&mqtt.topic('N', "full_publish_completed")).len();
    assert!((3..8).contains(&completed), "{completed} of 8");
    // N is its own
    mqtt.mark();
    mqtt.publish_retained(&mqtt.topic('N', "battery/512/Soc"), r#"{"value":2}"#);
    mqtt.barrier();
    assert!(mqtt.on(&mqtt.topic('N', "battery/512/Soc")).is_empty());
    assert!(rig.retained("N/#").is_empty());
    // what looks like a password is not shown to anybody
    mqtt.write("settings/0/Settings/Password", r#"{"value":"x"}"#);
    mqtt.barrier();
    assert!(mqtt.on(&mqtt.topic('W', "settings/0/Settings/Password")).is_empty());
    // a retained W, again at each subscription to what matches it
    mqtt.publish_retained(&mqtt.topic('W', "battery/512/Soc"), r#"{"value":3}"#);
    let calls =
        |count: usize| eventually("the writes", DEADLINE, || (rig.fake().calls_of(BATTERY, "SetValue").len() == count).then_some(()));
    calls(1);
    let exact = mqtt.topic('W', "battery/512/Soc");
    for (n, filter) in ["#", "W/#", "W/+/battery/#", &exact].into_iter().enumerate() {
        rig.client().subscribe(filter);
        calls(n + 2);
    }
    // a read is answered, and a service that leaves takes its topics along
    mqtt.mark();
    mqtt.read("battery/512/DeviceInstance");
    mqtt.n("battery/512/DeviceInstance", r#"{"value":512}"#);
    rig.fake().remove(BATTERY);
    mqtt.n("battery/512/Soc", "");
}
