//! A foreign library reads and writes a registered device as velib does: dbus-python, without introspection, without an interface.

use std::process::Command;

use venus_mqtt_integration::{Device, Setup, device::name};

use super::running;

#[test]
fn a_tank_through_dbus_python() {
    let rig = running(Setup::devices());
    let device = Device::connect(&rig, "fe001");
    let instance = device.register(r#"{"tk1": "tank"}"#).instance("tk1");
    let tank = name("tank", "fe001", "tk1");
    device.mqtt.write(&format!("tank/{instance}/Level"), r#"{"value": "62.5"}"#);
    rig.fake().await_shown(&tank, "/Level", "d 62.5");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/velib.py");
    let output = Command::new("/usr/bin/python3").arg(script).arg(rig.bus_address()).arg(&tank).output().expect("python3 runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.ends_with("all is well\n"), "{text}");
    // what it has written is there, and the device has heard of it
    assert_eq!(rig.fake().shown(&tank, "/CustomName"), "s \"From Python\"");
    assert_eq!(rig.fake().shown(&tank, "/FluidType"), "i 5");
    let topic = device.mqtt.topic('N', &format!("tank/{instance}/FluidType"));
    device.mqtt.wait_for("the fluid", |message| message.topic == topic && message.text().contains("\"value\":5"));
}
