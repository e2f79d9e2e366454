//! What a measurement looks like, and of whom there is one.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use venus_mqtt_integration::{Backend, DEADLINE, PORTAL, Part, Request, Rig, Setup, invalid, item, items};

use super::{CHARGER, FAST, OTHER, OTHER_SERIAL, SERIAL, charger, other, running, running_with, said};
use crate::{BATTERY, battery};

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// The device with this instance.
fn device(measurement: &Value, instance: i64) -> Value {
    let devices = measurement["devices"].as_array().expect("a list");
    devices.iter().find(|device| device["device_instance"] == instance).cloned().unwrap_or(Value::Null)
}

both! {
    /// Byte for byte what the Solar Backend API takes.
    fn the_shape(rig in Setup::default().file("key", "s3cr3t key\n")) {
        let before = unix();
        let backend = running_with(&mut rig, "update_interval = 0.1\napi_key_file = \"{dir}/key\"");
        let request = backend.await_requests(1).remove(0);
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/api/victron/measurements"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("x-api-key"), Some("s3cr3t key"));
        assert_eq!(request.header("content-encoding"), None);
        assert_eq!(request.header("expect"), None);
        assert!(request.header("user-agent").is_some_and(|agent| agent.starts_with("venus-mqtt/")), "{:?}", request.header("user-agent"));
        let mut json = request.json();
        let stamp = json["timestamp"].take();
        let stamp = stamp.as_str().expect("text");
        // such as 2025-10-30T15:27:33.058551+00:00
        let digits: String = stamp.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(digits, "0000-00-00T00:00:00.000000+00:00");
        let heard = json["devices"][0]["last_update"].take().as_u64().expect("seconds");
        assert!((before - 1..=unix()).contains(&heard), "{heard} is not between {before} and now");
        assert_eq!(
            json,
            json!({"timestamp": null, "cerbo_serial": PORTAL, "devices": [{
                "device_instance": 281, "serial": SERIAL, "name": "PV Carport", "product_name": "BlueSolar Charger MPPT 150/45 rev3",
                "reachable": true, "producing": true, "last_update": null, "yield_power_w": 16.38, "yield_total_kwh": 1274.38,
                "trackers": [{"tracker": 0, "name": "PV", "voltage": 62.55, "power": 16.38}],
            }]})
        );
        assert!(!rig.log(Part::Bridge).contains("s3cr3t"), "the key is in the log");
    }
}

#[test]
fn the_serial_may_be_another() {
    let backend = Backend::start();
    let _rig = running(Setup::default().http(&backend.section("update_interval = 0.1\ncerbo_serial = \"HQ2345ABCDE\"")));
    assert_eq!(backend.await_requests(1)[0].json()["cerbo_serial"], "HQ2345ABCDE");
}

/// Chargers as they are: without a name, without values, with several trackers, under external control, without an instance.
#[test]
fn chargers_of_all_kinds() {
    let backend = Backend::start();
    let mut rig = Rig::new(Setup::default().http(&backend.section("update_interval = 0.1")));
    let add = |n: i32, more: venus_mqtt_integration::Items| {
        let mut all = items([("/DeviceInstance", item(n))]);
        all.extend(more);
        rig.fake().add(&format!("com.victronenergy.solarcharger.n{n}"), all);
    };
    add(1, items([]));
    add(2, items([("/CustomName", item("")), ("/ProductName", item("P")), ("/Serial", item("S2")), ("/State", item(4))]));
    add(3, items([("/CustomName", item("C")), ("/Yield/Power", invalid()), ("/Yield/System", invalid()), ("/Pv/V", invalid())]));
    add(4, items([("/State", item(252)), ("/Yield/Power", item(5.5)), ("/Pv/V", item(0.0))]));
    add(5, items([("/State", item(252)), ("/Yield/Power", item(0.0))]));
    add(6, items([("/State", item(2)), ("/Yield/Power", item(5.5)), ("/NrOfTrackers", item(1)), ("/Pv/V", item(80))]));
    add(
        7,
        items([
            ("/State", item(5)),
            ("/NrOfTrackers", item(4)),
            ("/Yield/Power", item(300)),
            ("/Pv/0/V", item(100.5)),
            ("/Pv/0/P", item(120)),
            ("/Pv/1/V", item(0.0)),
            ("/Pv/1/P", item(1)),
            ("/Pv/2/V", invalid()),
            ("/Pv/3/V", item(90.0)),
        ]),
    );
    rig.fake().add("com.victronenergy.solarcharger.none", items([("/Yield/Power", item(1.0))]));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let measurement =
        backend.await_request("all seven", |request| request.json()["devices"].as_array().is_some_and(|all| all.len() == 7)).json();
    let of = |n: i64, key: &str| device(&measurement, n)[key].clone();
    assert_eq!(
        (of(1, "name"), of(1, "product_name"), of(1, "serial")),
        (json!("Unknown Product"), json!("Unknown Product"), json!("UNKNOWN"))
    );
    assert_eq!((of(1, "producing"), of(1, "trackers"), of(1, "yield_power_w")), (json!(false), json!([]), json!(0.0)));
    assert_eq!((of(2, "name"), of(2, "serial"), of(2, "producing")), (json!("P"), json!("S2"), json!(true)));
    assert_eq!(
        (of(3, "name"), of(3, "yield_power_w"), of(3, "yield_total_kwh"), of(3, "trackers")),
        (json!("C"), json!(0.0), json!(0.0), json!([]))
    );
    assert_eq!((of(4, "producing"), of(4, "trackers")), (json!(true), json!([])));
    assert_eq!(of(5, "producing"), json!(false));
    assert_eq!(
        (of(6, "producing"), of(6, "trackers")),
        (json!(false), json!([{"tracker": 0, "name": "PV", "voltage": 80.0, "power": 5.5}]))
    );
    assert_eq!(
        of(7, "trackers"),
        json!([{"tracker": 0, "name": "PV-1", "voltage": 100.5, "power": 120.0}, {"tracker": 3, "name": "PV-4", "voltage": 90.0, "power": 0.0}])
    );
    assert_eq!((of(7, "producing"), of(7, "yield_power_w")), (json!(true), json!(300.0)));
}

/// What changes on the bus is in the next measurement; what does not change grows old.
#[test]
fn values_follow_the_bus() {
    let backend = Backend::start();
    let rig = running(Setup::default().http(&backend.section(FAST)));
    let first = device(&backend.await_requests(1)[0].json(), 281)["last_update"].as_u64().expect("seconds");
    backend.wait("a measurement two seconds later", DEADLINE, |_| (unix() > first + 2).then_some(()));
    let last = backend.requests().pop().expect("there are some");
    assert_eq!(device(&last.json(), 281)["last_update"], first, "nothing was heard of it since");
    rig.fake().items_changed(CHARGER, items([("/Yield/Power", item(100.5)), ("/CustomName", item("Garage"))]));
    let request = backend.await_request("the change", |request| device(&request.json(), 281)["yield_power_w"] == 100.5);
    let device = device(&request.json(), 281);
    assert_eq!((&device["name"], &device["trackers"][0]["power"]), (&json!("Garage"), &json!(100.5)));
    assert!(device["last_update"].as_u64().is_some_and(|now| now > first), "{device}");
}

both! {
    /// It is told once that a charger has left. Without any charger nothing is posted.
    fn a_charger_leaves(rig in Setup::default()) {
        rig.fake().add(OTHER, other());
        rig.fake().add(BATTERY, battery());
        // its measurements show that time has passed
        let clock = Backend::on(rig.host());
        let lines = clock.section("update_interval = 0.4\ncatch_up_rate = 1000\nformat = \"json-lines\"\nfilters = [\"battery/#\"]");
        rig.configure(rig.setup().clone().http(&lines));
        let backend = running_with(&mut rig, "update_interval = 0.4\ncatch_up_rate = 1000");
        backend.await_request("both", |request| request.json()["devices"].as_array().is_some_and(|all| all.len() == 2));
        rig.fake().remove(OTHER);
        backend.await_request("it is told", |request| device(&request.json(), 280)["reachable"] == false);
        backend.await_request("one without it", |request| request.json()["devices"].as_array().is_some_and(|all| all.len() == 1));
        rig.fake().remove(CHARGER);
        backend.await_request("it is told", |request| device(&request.json(), 281)["reachable"] == false);
        let passed = clock.requests().len();
        clock.await_requests(passed + 3);
        rig.fake().add(OTHER, other());
        let back = backend.await_request("it is back", |request| {
            let json = request.json();
            device(&json, 281).is_null() && device(&json, 280)["reachable"] == true
        });
        let told = |serial: &str| {
            let requests = backend.requests();
            let devices = requests.iter().flat_map(|request| request.json()["devices"].as_array().cloned().unwrap_or_default());
            devices.filter(|device| device["serial"] == serial && device["reachable"] == false).count()
        };
        assert_eq!((told(SERIAL), told(OTHER_SERIAL)), (1, 1));
        assert_eq!(said(&rig, "there is no solar charger").len(), 1);
        let requests = backend.requests();
        let empty = requests.iter().filter(|request| request.json()["devices"].as_array().is_some_and(Vec::is_empty)).count();
        assert_eq!(empty, 0, "without a charger nothing is posted");
        // a tracker less, and back under the same number
        assert_eq!(device(&back.json(), 280)["serial"], OTHER_SERIAL);
    }
}

/// Plugged into another socket, it has another name on the bus: it has not left.
#[test]
fn a_charger_changes_its_name() {
    let backend = Backend::start();
    let rig = running(Setup::default().http(&backend.section("update_interval = 0.5\ncatch_up_rate = 1000")));
    backend.await_requests(2);
    rig.fake().add(OTHER, charger());
    rig.fake().remove(CHARGER);
    rig.fake().items_changed(OTHER, items([("/Yield/Power", item(99.5))]));
    backend.await_request("under the new name", |request| {
        let json = request.json();
        json["devices"].as_array().is_some_and(|all| all.len() == 1) && device(&json, 281)["yield_power_w"] == 99.5
    });
    assert!(backend.requests().iter().all(|request| device(&request.json(), 281)["reachable"] == true));
}

/// The bridge is off, as it is beside FlashMQ: measurements are made all the same.
#[test]
fn without_the_bridge() {
    let backend = Backend::start();
    let _rig = running(Setup::default().bridge("enabled = false").http(&backend.section(FAST)));
    let request = backend.await_requests(2).remove(1);
    assert_eq!(device(&request.json(), 281)["yield_power_w"], 16.38);
}

/// One measurement at each multiple of the interval. A busy machine may be late, and the clocks may differ by a little; it never makes
/// two of one.
#[test]
fn measurements_are_on_the_grid() {
    let backend = Backend::start();
    let _rig = running(Setup::default().http(&backend.section("update_interval = 0.5")));
    let seconds =
        |requests: &[Request]| -> Vec<f64> { requests.iter().map(|request| request.stamp()[17..26].parse().expect("seconds")).collect() };
    let on_grid = |seconds: &f64| (seconds * 2.0 - (seconds * 2.0).round()).abs() < 0.05;
    let seconds = backend.wait("three in a row on the grid", DEADLINE, |requests| {
        let seconds = seconds(requests);
        seconds.windows(3).any(|three| three.iter().all(on_grid)).then_some(seconds)
    });
    // the minute may end between two
    let gaps = seconds.windows(2).map(|pair| (pair[1] - pair[0] + 60.0) % 60.0);
    assert!(gaps.min_by(f64::total_cmp).is_some_and(|gap| gap > 0.25), "{seconds:?}");
}
