//! The other shape: one JSON object with the items that the filters take.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use venus_mqtt_integration::{Answer, Backend, DEADLINE, PORTAL, Rig, Setup, invalid, item, items};

use super::FAST;
use crate::{BATTERY, TANK, battery, tank};

fn section(backend: &Backend, filters: &str) -> String {
    format!("url = \"{}/in\"\nformat = \"json-lines\"\nfilters = {filters}\n{FAST}", backend.url())
}

fn keys(json: &Value) -> BTreeSet<String> {
    json["values"].as_object().expect("an object").keys().cloned().collect()
}

both! {
    fn what_the_filters_take(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        rig.fake().add(TANK, tank());
        let backend = Backend::on(rig.host());
        rig.configure(rig.setup().clone().http(&section(&backend, r#"["battery/+/Soc", "battery/512/Dc/#"]"#)));
        rig.start_bridge();
        let request = backend.await_delivered(1).remove(0);
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/in"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.body.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(request.body.last(), Some(&b'\n'));
        let mut json = request.json();
        assert!(json["timestamp"].take().as_str().is_some_and(|stamp| stamp.ends_with("+00:00") && stamp.len() == 32));
        assert_eq!(
            json,
            json!({"timestamp": null, "portal_id": PORTAL,
                "values": {"battery/512/Soc": 87.0, "battery/512/Dc/0/Voltage": 26.4, "battery/512/Dc/0/Current": -3.5}})
        );
        rig.fake().items_changed(BATTERY, items([("/Soc", item(50))]));
        backend.await_request("the change", |request| request.json()["values"]["battery/512/Soc"] == 50);
    }
}

/// What is never published is never posted either; secrets are masked, and what has no value is `null`.
#[test]
fn what_never_leaves() {
    let backend = Backend::start();
    let mut rig = Rig::new(Setup::default().http(&section(&backend, "[\"#\"]")));
    let mut all = battery();
    all.extend(items([("/Empty", invalid())]));
    rig.fake().add(BATTERY, all);
    rig.fake().add("com.victronenergy.vebus.ttyO1", items([("/DeviceInstance", item(257)), ("/Interfaces/Mk2/Tunnel", item("geheim"))]));
    rig.fake().add(
        "com.victronenergy.settings",
        items([("/Settings/Services/AccessPointPassword", item("geheim")), ("/Settings/Ble/Service/Pincode", item("geheim"))]),
    );
    rig.fake().add("com.victronenergy.paygo", items([("/LVD/Threshold", item("geheim"))]));
    rig.start_bridge();
    let request = backend.await_request("everything", |request| keys(&request.json()).contains("vebus/257/DeviceInstance"));
    let (json, text) = (request.json(), String::from_utf8_lossy(&request.body).into_owned());
    assert!(!text.contains("geheim"), "{text}");
    assert!(!text.contains("paygo"), "{text}");
    assert!(json["values"].get("vebus/257/Interfaces/Mk2/Tunnel").is_none(), "{text}");
    assert_eq!(json["values"]["battery/512/Soc"], 87.0);
    assert_eq!(json["values"]["battery/512/Empty"], Value::Null);
}

/// 404 means what it says: only the Solar Backend API answers so when it knows none of the devices.
#[test]
fn a_404_is_an_address_that_is_wrong() {
    let backend = Backend::start();
    backend.next([Answer::text(404, r#"{"results": []}"#)]);
    let mut rig = Rig::new(Setup::default().http(&section(&backend, "[\"battery/#\"]")));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let requests = backend.wait("another attempt", DEADLINE, |requests| (requests.len() >= 2).then(|| requests.to_vec()));
    assert_eq!(requests[0].stamp(), requests[1].stamp());
}

/// Each of these says that it was taken: who takes lines need not say more.
#[test]
fn taken() {
    let backend = Backend::start();
    backend.next([200, 201, 202, 204].map(Answer::status));
    let mut rig = Rig::new(Setup::default().http(&section(&backend, "[\"battery/#\"]")));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let requests = backend.await_requests(5);
    assert!(requests.windows(2).all(|pair| pair[0].stamp() < pair[1].stamp()), "one was not taken as done");
}

/// Too large for anybody: left out, and said; the next smaller one is posted.
#[test]
fn more_than_a_measurement_holds() {
    let backend = Backend::start();
    let mut rig = Rig::new(Setup::default().http(&section(&backend, "[\"battery/#\"]")));
    let mut all = battery();
    all.extend((0..40).map(|n| (format!("/Long/{n}"), item("x".repeat(10_000)).0)));
    rig.fake().add(BATTERY, all);
    rig.start_bridge();
    let line = rig.await_log(venus_mqtt_integration::Part::Bridge, "left out");
    assert!(line.contains("http 1") && line.contains("filters"), "{line}");
    assert!(backend.requests().is_empty());
    let shorter = (0..40).map(|n| (format!("/Long/{n}"), item("x").0)).collect();
    rig.fake().items_changed(BATTERY, shorter);
    backend.await_delivered(1);
}

/// Text that is not as others: what goes out is JSON all the same.
#[test]
fn odd_values() {
    let backend = Backend::start();
    let mut rig = Rig::new(Setup::default().http(&section(&backend, "[\"battery/#\"]")));
    let mut all = battery();
    all.extend(items([
        ("/Text", item("\"quoted\" \\ \n ünïcode \u{1}")),
        ("/Inf", item(f64::INFINITY)),
        ("/Big", item(u64::MAX)),
        ("/Yes", item(true)),
    ]));
    rig.fake().add(BATTERY, all);
    rig.start_bridge();
    let json = backend.await_delivered(1)[0].json();
    let of = |path: &str| json["values"][format!("battery/512/{path}")].clone();
    assert_eq!(of("Text"), "\"quoted\" \\ \n ünïcode \u{1}");
    assert_eq!((of("Inf"), of("Big")), (Value::Null, json!(u64::MAX)));
}
