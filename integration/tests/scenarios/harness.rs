//! The harness keeps its own promises: the fakes behave as real services do, and nothing is left behind.

use venus_mqtt_integration::{Client, Part, Rig, Setup, fake::Call, item, items, parts::Signal};
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
