//! Beside another bridge: it serves N, R and W, and registration is the same.

use venus_mqtt_integration::{Client, Device, PORTAL, Part, Rig, Setup, device::name};

use super::{SENSOR, T1, sensor};
use crate::flashmq::{await_companion, change_broker};

/// Nothing but registration comes from us: no N, no write of ours.
fn registers_and_is_silent(rig: &Rig) {
    let (device, answer) = sensor(rig);
    let mqtt = rig.listener();
    assert_eq!(answer.instance("t1"), 1);
    assert!(answer.text.contains(&format!("W/{PORTAL}/temperature/1")), "{}", answer.text);
    // to W and R it is deaf: the other bridge does the SetValue
    mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
    mqtt.read("temperature/1/Temperature");
    mqtt.keepalive("");
    device.register(T1);
    assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "ai []");
    assert_eq!(rig.fake().set_value(SENSOR, "/Temperature", "23.4").ok(), Some(0));
    assert_eq!(rig.fake().shown(SENSOR, "/Temperature"), "d 23.4");
    // a command, too, is the other bridge's to tell
    assert_eq!(rig.fake().set_value(SENSOR, "/CustomName", "GUI").ok(), Some(0));
    rig.fake().await_shown("com.victronenergy.settings", &super::kept("fe001", "t1", "CustomName"), "s \"GUI\"");
    // the proxy is ours
    device.proxy(r#"{"t1": {"Temperature": 25, "Humidity": 50}}"#);
    rig.fake().await_shown(SENSOR, "/Humidity", "d 50.0");
    device.register(T1);
    mqtt.barrier();
    let special: Vec<_> = mqtt.items().into_iter().collect();
    assert!(special.is_empty(), "{special:?}");
    assert!(mqtt.on(&mqtt.topic('N', "full_publish_completed")).is_empty());
    device.vanish();
    rig.fake().await_no_name(SENSOR);
}

fn auto() -> Setup {
    Setup::devices().bridge("enabled = \"auto\"")
}

#[test]
fn beside_the_plugin() {
    let mut rig = Rig::new(auto().flashmq());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    await_companion(&mqtt);
    let (device, answer) = sensor(&rig);
    assert_eq!(answer.instance("t1"), 1);
    // the other bridge writes, reads and publishes; the proxy is ours
    device.mqtt.write("temperature/1/Temperature", r#"{"value": 23.4}"#);
    rig.fake().await_shown(SENSOR, "/Temperature", "d 23.4");
    device.proxy(r#"{"t1": {"Temperature": 25, "Humidity": 50}}"#);
    rig.fake().await_shown(SENSOR, "/Humidity", "d 50.0");
    mqtt.mark();
    mqtt.read("temperature/1/Temperature");
    mqtt.n("temperature/1/Temperature", r#"{"value": 25.0}"#);
    device.vanish();
    rig.fake().await_no_name(SENSOR);
}

#[test]
fn with_the_bridge_switched_off() {
    let mut rig = Rig::new(Setup::devices().bridge("enabled = false"));
    start(&mut rig);
    registers_and_is_silent(&rig);
}

/// The bridge is there, and says that it serves nothing.
fn start(rig: &mut Rig) -> Client {
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    let status = rig.status_topic();
    mqtt.wait_for("a status", |message| message.topic == status && message.payload != b"offline");
    // without a bridge the status does not say that devices are heard
    rig.await_log(Part::Broker, "device/+/Status");
    mqtt
}

/// A proxy message for a service of somebody else is carried out, although the bridge serves no W.
#[test]
fn a_proxy_for_others() {
    let mut rig = Rig::new(Setup::devices().bridge("enabled = false"));
    rig.fake().add(crate::BATTERY, crate::battery());
    start(&mut rig);
    let (device, _) = sensor(&rig);
    device.proxy(format!(r#"{{"topicPath": "W/{PORTAL}/battery/512", "values": {{"Soc": 50}}}}"#));
    rig.fake().await_call(crate::BATTERY, "SetValue /Soc i 50");
}

/// Commands only come while the other bridge is awake: `keepalive = true` sees to it while there are devices.
#[test]
fn the_other_bridge_is_kept_awake() {
    for wanted in [true, false] {
        let mut rig = Rig::new(Setup::devices().bridge("enabled = false").device(&format!("keepalive = {wanted}")));
        let mqtt = start(&mut rig);
        let topic = mqtt.topic('R', "keepalive");
        assert!(mqtt.on(&topic).is_empty(), "nobody is registered yet");
        let device = Device::connect(&rig, "fe001");
        device.register(T1);
        if wanted {
            let sent = mqtt.expect_topic(&topic);
            let json: serde_json::Value = serde_json::from_slice(&sent.payload).expect("JSON");
            assert_eq!(json, serde_json::json!({"keepalive-options": ["suppress-republish"]}));
            assert!(!sent.retain);
        }
        device.register(T1);
        device.leave();
        rig.fake().await_no_name(&name("temperature", "fe001", "t1"));
        mqtt.barrier();
        assert_eq!(mqtt.on(&topic).len(), usize::from(wanted));
    }
}

/// The other bridge comes and goes; the devices do not notice.
#[test]
fn the_plugin_goes() {
    let mut rig = Rig::new(auto().flashmq());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    await_companion(&mqtt);
    let (device, answer) = sensor(&rig);
    let owner = rig.fake().owner_of(SENSOR);
    drop((device, mqtt));
    let mqtt = change_broker(&mut rig, auto());
    rig.await_online(&mqtt);
    let (_device, again) = sensor(&rig);
    assert_eq!((again, rig.fake().owner_of(SENSOR)), (answer, owner));
    mqtt.keepalive("");
    mqtt.n("temperature/1/Connected", r#"{"value":1}"#);
}
