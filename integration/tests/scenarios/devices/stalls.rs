//! A bus that stands still for a while, as a busy one does: what cannot be written waits, and goes on when the bus does.

use venus_mqtt_integration::{Device, Part, Rig, Setup};

use super::{SENSOR, running, sensor};
use crate::{BATTERY, battery};

const LOST: &str = "does not read";

/// A device that writes `values` times while the bus stands still, all of which the bridge has heard.
fn values_during_a_stall(values: u32) -> (Rig, Device) {
    let mut rig = running(Setup::devices());
    let (device, _) = sensor(&rig);
    device.mqtt.keepalive("");
    device.mqtt.completed();
    rig.pause(Part::Bus);
    for n in 1..=values {
        let n = f64::from(n) / 100.0;
        device.proxy(format!(r#"{{"t1": {{"Temperature": {n}, "Pressure": {n}, "Humidity": {n}}}}}"#));
    }
    // the answer comes after everything before it
    device.refuse("nonsense");
    device.mqtt.mark();
    rig.resume(Part::Bus);
    (rig, device)
}

fn write_and_read(rig: &Rig, device: &Device) {
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 92.25}"#);
    device.mqtt.n("temperature/1/Temperature", r#"{"value":92.25}"#);
    assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "d 92.25");
}

/// More than the socket takes, and no more than is kept.
#[test]
fn a_service_goes_on_after_a_stall() {
    let (rig, device) = values_during_a_stall(600);
    device.mqtt.n("temperature/1/Temperature", r#"{"value":6.0}"#);
    device.mqtt.n("temperature/1/Humidity", r#"{"value":6.0}"#);
    write_and_read(&rig, &device);
    assert!(!rig.log(Part::Bridge).contains(LOST), "its connection need not be given up");
}

/// More than is kept: the service comes back, and the log says why it went.
#[test]
fn a_service_comes_back_after_a_long_stall() {
    let (rig, device) = values_during_a_stall(3000);
    rig.await_log(Part::Bridge, LOST);
    // of a service that is there again everything is published
    device.mqtt.n("temperature/1/DeviceInstance", r#"{"value":1}"#);
    write_and_read(&rig, &device);
}

/// The same with what the watcher has to say, which is writes to services of others.
#[test]
fn writes_go_on_after_a_stall() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    rig.pause(Part::Bus);
    let large = "x".repeat(60_000);
    for n in 0..16 {
        mqtt.write(&format!("battery/512/Large/{n}"), format!(r#"{{"value": "{large}"}}"#));
    }
    mqtt.mark();
    mqtt.keepalive("");
    mqtt.completed();
    rig.resume(Part::Bus);
    mqtt.write("battery/512/Soc", r#"{"value": 55}"#);
    mqtt.n("battery/512/Soc", r#"{"value":55}"#);
    mqtt.mark();
    mqtt.read("battery/512/Dc/0/Voltage");
    mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
    assert_eq!(rig.fake().calls_of(BATTERY, "SetValue").len(), 17, "what the socket had no room for arrived, too");
}
