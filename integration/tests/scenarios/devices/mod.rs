//! Section 6: devices that register themselves. One file for each part of it.

mod bad_input;
mod caps;
mod catalogue;
mod commands;
mod companion;
mod floods;
mod instances;
mod items;
mod leaving;
mod monitor;
mod moving;
mod proxy;
mod python;
mod registration;
mod restart;
mod settings;
mod silence;
mod stalls;

use venus_mqtt_integration::{Client, Device, Rig, Setup, device::Registration};

/// The temperature sensor that most scenarios are content with: service `t1` of the device `fe001`.
const T1: &str = r#"{"t1": "temperature"}"#;
const SENSOR: &str = "com.victronenergy.temperature.mqtt_fe001_t1";

/// localsettings and the bridge run.
fn running(setup: Setup) -> Rig {
    let mut rig = Rig::new(setup);
    rig.start_bridge();
    rig
}

/// The device `fe001`, registered as [`SENSOR`].
fn sensor(rig: &Rig) -> (Device, Registration) {
    let device = Device::connect(rig, "fe001");
    let registration = device.register(T1);
    (device, registration)
}

/// Where localsettings keeps the instance of a service.
fn instance_setting(id: &str, key: &str) -> String {
    format!("/Settings/Devices/mqtt_{id}_{key}/ClassAndVrmInstance")
}

/// Where localsettings keeps a kept item of a service.
fn kept(id: &str, key: &str, path: &str) -> String {
    format!("/Settings/MqttDevices/mqtt_{id}_{key}/{path}")
}

/// Everything that was sent before has been dealt with: the sensor shows what was written last.
fn settle(rig: &Rig, mqtt: &Client, instance: i64) {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    let mark = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    mqtt.write(&format!("temperature/{instance}/TxPower"), format!(r#"{{"value": {mark}.25}}"#));
    rig.fake().await_shown(SENSOR, "/TxPower", &format!("d {mark}.25"));
}
