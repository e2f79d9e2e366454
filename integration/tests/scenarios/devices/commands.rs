//! `venus-mqtt devices`: who is registered, and how one is forgotten.

use std::process::{Command, Output};

use venus_mqtt_integration::{DEADLINE, Device, Part, Rig, Setup, device::name, eventually, parts::binary};

use super::{SENSOR, T1, running, sensor};

fn devices(rig: &Rig, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("VENUS_MQTT_BIN", "venus-mqtt").expect("built"));
    let (config, rest) = (rig.config(), arguments);
    command.arg("devices").args(rest).arg("--config").arg(config).output().expect("it runs")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn all(output: &Output) -> String {
    format!("{}{}", out(output), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn they_are_listed() {
    let mut rig = running(Setup::devices());
    let nobody = devices(&rig, &[]);
    assert_eq!(nobody.status.code(), Some(0), "{}", all(&nobody));
    assert!(all(&nobody).contains("no device"), "{}", all(&nobody));
    let (device, _) = sensor(&rig);
    let other = Device::connect(&rig, "plug-7");
    other.register(r#"{"p": "acload", "q": "switch"}"#);
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 1}"#);
    let listed = devices(&rig, &[]);
    assert_eq!(listed.status.code(), Some(0), "{}", all(&listed));
    for shown in ["fe001", "v1.0", "t1", "temperature/1", "plug-7", "acload/1", "switch/1"] {
        assert!(out(&listed).contains(shown), "{shown} is not in:\n{}", out(&listed));
    }
    let json: serde_json::Value = serde_json::from_slice(&devices(&rig, &["--json"]).stdout).expect("JSON");
    let one = json.as_array().and_then(|list| list.iter().find(|entry| entry["clientId"] == "fe001")).expect("in the list").clone();
    assert_eq!(one["version"], "v1.0");
    assert_eq!(one["state"], "connected");
    assert_eq!(one["services"], serde_json::json!([{"id": "t1", "type": "temperature", "instance": 1}]));
    assert!(one["lastHeard"].as_i64().is_some_and(|seconds| seconds > 1_600_000_000), "{one}");
    // one that has left is remembered
    other.leave();
    rig.fake().await_no_name(&name("acload", "plug-7", "p"));
    eventually("it is listed as gone", DEADLINE, || {
        let json: serde_json::Value = serde_json::from_slice(&devices(&rig, &["--json"]).stdout).ok()?;
        json.as_array()?.iter().any(|entry| entry["clientId"] == "plug-7" && entry["state"] == "gone").then_some(())
    });
    // the daemon does not run: its last note
    rig.stop(Part::Bridge);
    let noted = devices(&rig, &[]);
    assert_eq!(noted.status.code(), Some(0), "{}", all(&noted));
    assert!(out(&noted).contains("fe001") && out(&noted).contains("plug-7"), "{}", all(&noted));
    let forget = devices(&rig, &["forget", "fe001"]);
    assert_eq!(forget.status.code(), Some(75), "{}", all(&forget));
}

/// Its settings and numbers are free, and it is gone.
#[test]
fn one_is_forgotten() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    let other = Device::connect(&rig, "fe002");
    assert_eq!(other.register(T1).instance("t1"), 2);
    device.mqtt.write("temperature/1/CustomName", r#"{"value": "Cellar"}"#);
    rig.fake().await_shown("com.victronenergy.settings", &super::kept("fe001", "t1", "CustomName"), "s \"Cellar\"");
    let mine = |path: &&String| path.contains("mqtt_fe001_");
    assert!(rig.fake().settings().keys().filter(mine).count() >= 3);
    let forgotten = devices(&rig, &["forget", "fe001"]);
    assert_eq!(forgotten.status.code(), Some(0), "{}", all(&forgotten));
    rig.fake().await_no_name(SENSOR);
    let left = rig.fake().settings();
    assert_eq!(left.keys().filter(mine).count(), 0, "{left:?}");
    assert!(left.keys().any(|path| path.contains("mqtt_fe002_")));
    let again = devices(&rig, &["forget", "fe001"]);
    assert_eq!(again.status.code(), Some(1), "{}", all(&again));
    assert!(!out(&devices(&rig, &[])).contains("fe001"));
    // a newcomer has the number, and the forgotten one is a newcomer itself
    let third = Device::connect(&rig, "fe003");
    assert_eq!(third.register(T1).instance("t1"), 1);
    assert_eq!(device.register(T1).instance("t1"), 3);
    assert_eq!(rig.fake().shown(SENSOR, "/CustomName"), "s \"My Temperature Sensor\"");
}

/// One that is away, and one whose settings localsettings does not give.
#[test]
fn one_that_is_away_is_forgotten() {
    let rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.leave();
    rig.fake().await_no_name(SENSOR);
    let forgotten = devices(&rig, &["forget", "fe001"]);
    assert_eq!(forgotten.status.code(), Some(0), "{}", all(&forgotten));
    assert!(rig.fake().settings().keys().all(|path| !path.contains("mqtt_fe001_")), "{:?}", rig.fake().settings());
    assert_eq!(devices(&rig, &["forget", "nobody"]).status.code(), Some(1));
    assert_eq!(devices(&rig, &["forget"]).status.code(), Some(64));
}
