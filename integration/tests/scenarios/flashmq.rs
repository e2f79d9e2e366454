//! "Beside dbus-flashmq": who serves N, R and W when the broker may already do so itself. The broker is the harness' own, which does what
//! FlashMQ with dbus-flashmq does; an older bridge on Mosquitto is played by a client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use venus_mqtt_integration::{
    Client, DEADLINE, Device, Message, PORTAL, Part, Rig, Setup, device::name, eventually, item, items, mqtt::Options,
};

use crate::{BATTERY, battery};

fn auto() -> Setup {
    Setup::default().bridge("enabled = \"auto\"")
}

/// Answers keep-alives with a heartbeat, as every other bridge does.
struct Bridge {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bridge {
    /// `at_once`: it was asleep, and its first heartbeat follows the keep-alive; else it was awake, and beats every three seconds.
    fn start(rig: &Rig, at_once: bool) -> Self {
        let client = rig.client();
        client.subscribe(&client.topic('R', "keepalive"));
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut next = std::time::Instant::now() + Duration::from_secs(3);
            let mut seen = 0;
            while !ends.load(Ordering::Relaxed) {
                let asked = client.since().len();
                if (at_once && asked > seen) || (!at_once && std::time::Instant::now() >= next) {
                    client.publish(&client.topic('N', "heartbeat"), r#"{"value":1700000000}"#);
                    next = std::time::Instant::now() + Duration::from_secs(3);
                }
                seen = asked;
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The bridge says that it stays out, on a topic of its own beside the status.
pub fn await_companion(mqtt: &Client) {
    mqtt.wait_for("`companion` among the bridge's own topics", is_companion);
}

fn is_companion(message: &Message) -> bool {
    message.topic.starts_with("venus-mqtt/") && message.text().contains("companion")
}

#[test]
fn alone_it_serves() {
    let mut rig = Rig::new(auto());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    // the probe: a keep-alive that asks for nothing, with an echo by which it is known again
    let topic = mqtt.topic('R', "keepalive");
    let probe = mqtt.wait_for("the probe", |message| message.topic == topic);
    assert!(
        probe.text().contains("suppress-republish") && probe.text().contains("full-publish-completed-echo") && !probe.retain,
        "{probe:?}"
    );
    // what is read before it is known waits for it; what is written is another bridge's, if there is one
    mqtt.write("battery/512/Soc", r#"{"value":4}"#);
    mqtt.read("battery/512/Dc/0/Voltage");
    mqtt.keepalive("");
    mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
    let completed = mqtt.completed();
    let took = completed.at - probe.at;
    assert!(took < Duration::from_secs(5), "{took:?}");
    // from now on writes are received
    mqtt.expect(&rig.status_topic(), "online");
    mqtt.write("battery/512/Soc", r#"{"value":5}"#);
    mqtt.n("battery/512/Soc", r#"{"value":5}"#);
    assert_eq!(rig.fake().calls_of(BATTERY, "SetValue"), ["SetValue /Soc i 5"]);
    // its own probe woke nobody: no third party has to hear of it
    assert_eq!(mqtt.on(&topic).len(), 2);
}

/// Its own probe is not a keep-alive of a client.
#[test]
fn its_own_probe_wakes_nobody() {
    let mut rig = Rig::new(auto());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    mqtt.expect(&rig.status_topic(), "online");
    mqtt.read("battery/512/Soc");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
    mqtt.read("battery/512/Dc/0/Voltage");
    mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
    assert_eq!(mqtt.on(&mqtt.topic('N', "battery/512/Soc")).len(), 1, "{:?}", mqtt.since());
    assert!(mqtt.on(&mqtt.topic('N', "heartbeat")).is_empty());
}

#[test]
fn beside_another_bridge_it_stays_out() {
    for at_once in [true, false] {
        let mut rig = Rig::new(auto());
        rig.fake().add(BATTERY, battery());
        let other = Bridge::start(&rig, at_once);
        let mqtt = rig.listener();
        // the other bridge's own retained topics are not ours to sweep
        mqtt.publish_retained(&mqtt.topic('N', "battery/512/Soc"), r#"{"value":1}"#);
        mqtt.barrier();
        mqtt.mark();
        rig.start(Part::Bridge);
        mqtt.write("battery/512/Soc", r#"{"value":5}"#);
        mqtt.read("battery/512/Soc");
        mqtt.keepalive("");
        await_companion(&mqtt);
        rig.await_log(Part::Bridge, "another bridge");
        let status = rig.status_topic();
        mqtt.write("battery/512/Soc", r#"{"value":6}"#);
        mqtt.read("battery/512/Soc");
        mqtt.keepalive("");
        rig.fake().items_changed(BATTERY, items([("/Soc", item(2.0))]));
        rig.stop(Part::Bridge);
        mqtt.expect(&status, "offline");
        assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty());
        assert!(mqtt.items().is_empty(), "{:?}", mqtt.since());
        assert!(mqtt.on(&mqtt.topic('N', "full_publish_completed")).is_empty());
        rig.await_retained_items(&["battery/512/Soc"]);
        drop(other);
    }
}

/// dbus-flashmq serves; a keep-alive is answered once.
#[test]
fn beside_the_plugin_it_stays_out() {
    for awake in [false, true] {
        let mut rig = Rig::new(auto().flashmq());
        rig.fake().add(BATTERY, battery());
        let mqtt = rig.listener();
        if awake {
            mqtt.keepalive("");
            mqtt.completed();
        }
        rig.start(Part::Bridge);
        await_companion(&mqtt);
        mqtt.expect(&rig.status_topic(), "online");
        mqtt.mark();
        mqtt.write("battery/512/Soc", r#"{"value":6}"#);
        mqtt.read("battery/512/Dc/0/Voltage");
        mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
        rig.fake().await_call(BATTERY, "SetValue /Soc i 6");
        let status = rig.status_topic();
        rig.stop(Part::Bridge);
        mqtt.expect(&status, "offline");
        assert_eq!(rig.fake().calls_of(BATTERY, "SetValue"), ["SetValue /Soc i 6"]);
        assert_eq!(mqtt.on(&mqtt.topic('N', "battery/512/Dc/0/Voltage")).len(), 1);
        assert!(!rig.log(Part::Broker).contains("cut off"), "{}", rig.log(Part::Broker));
    }
}

#[test]
fn true_serves_beside_the_plugin() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let other = Bridge::start(&rig, true);
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    mqtt.completed();
    // and it did not probe
    drop(other);
}

#[test]
fn false_serves_nothing() {
    let mut rig = Rig::new(Setup::default().bridge("enabled = false"));
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    mqtt.publish_retained(&mqtt.topic('N', "battery/512/Soc"), r#"{"value":1}"#);
    mqtt.barrier();
    mqtt.mark();
    rig.start(Part::Bridge);
    let status = rig.status_topic();
    mqtt.wait_for("a status", |message| message.topic == status && message.payload != b"offline");
    mqtt.keepalive("");
    mqtt.read("battery/512/Soc");
    mqtt.write("battery/512/Soc", r#"{"value":5}"#);
    mqtt.barrier();
    rig.stop(Part::Bridge);
    mqtt.expect(&status, "offline");
    assert!(mqtt.items().is_empty(), "{:?}", mqtt.since());
    assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty());
    rig.await_retained_items(&["battery/512/Soc"]);
}

/// Each connect finds out anew: the plugin that was not there may be there now.
#[test]
fn each_connect_finds_out_anew() {
    let mut rig = Rig::new(auto());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    mqtt.expect(&rig.status_topic(), "online");
    mqtt.keepalive("");
    mqtt.completed();
    drop(mqtt);
    change_broker(&mut rig, auto().flashmq()).wait_for("the mode", is_companion);
    rig.await_log(Part::Bridge, "another bridge");
}

/// Another broker in the place of this one; a client that has subscribed to everything.
pub fn change_broker(rig: &mut Rig, setup: Setup) -> Client {
    rig.kill(Part::Broker);
    rig.configure(setup);
    rig.start(Part::Broker);
    let mqtt = eventually("the broker is back", DEADLINE, || Client::connect(rig.broker_address(), &Options::default()).ok());
    mqtt.subscribe("#");
    mqtt
}

const SETTINGS: &str = "com.victronenergy.settings";
const SETPOINT: &str = "settings/0/Settings/CGwacs/AcPowerSetPoint";

fn setpoint_calls(rig: &Rig) -> Vec<String> {
    let calls = rig.fake().calls_of(SETTINGS, "SetValue");
    calls.iter().map(|call| call.replace("SetValue /Settings/CGwacs/AcPowerSetPoint i ", "")).collect()
}

/// Waits until the bridge has found out once more that it is not alone.
fn await_companion_again(mqtt: &Client, cause: impl FnOnce()) {
    mqtt.mark();
    cause();
    await_companion(mqtt);
}

/// dbus-flashmq carries out each retained W again whenever a client subscribes to what matches it: none of our subscriptions may.
#[test]
fn retained_writes_are_not_repeated() {
    let mut rig = Rig::new(auto().flashmq());
    rig.fake().add(SETTINGS, items([("/Settings/CGwacs/AcPowerSetPoint", item(0))]));
    rig.fake().add(BATTERY, battery());
    rig.await_log(Part::Broker, "found com.victronenergy.settings");
    let mqtt = rig.client();
    mqtt.subscribe("venus-mqtt/#");
    mqtt.subscribe("device/#");
    mqtt.publish_retained(&mqtt.topic('W', SETPOINT), r#"{"value":-3000}"#);
    rig.fake().await_call(SETTINGS, "SetValue /Settings/CGwacs/AcPowerSetPoint i -3000");
    mqtt.write(SETPOINT, r#"{"value":50}"#);
    rig.fake().await_call(SETTINGS, "SetValue /Settings/CGwacs/AcPowerSetPoint i 50");
    for _ in 0..2 {
        await_companion_again(&mqtt, || rig.start(Part::Bridge));
        rig.stop(Part::Bridge);
    }
    await_companion_again(&mqtt, || rig.start(Part::Bridge));
    // a connection that is lost
    await_companion_again(&mqtt, || {
        let options = Options { client_id: format!("venus-mqtt-{PORTAL}"), ..Options::default() };
        drop(Client::connect(rig.broker_address(), &options).expect("the broker takes the client"));
    });
    // a last will that names a W
    let will = format!(r#""lwt_topic": "W/{PORTAL}/{SETPOINT}""#);
    mqtt.publish("device/fe001/Status", format!(r#"{{"connected": 1, "services": {{"t1": "temperature"}}, {will}}}"#));
    mqtt.wait_for("the refusal", |message| message.topic == "device/fe001/Error" && message.text().contains("lwt_topic"));
    rig.stop(Part::Bridge);
    assert_eq!(rig.fake().shown(SETTINGS, "/Settings/CGwacs/AcPowerSetPoint"), "i 50");
    assert_eq!(setpoint_calls(&rig), ["-3000", "50"]);
    // and it would have been
    mqtt.subscribe("W/+/settings/#");
    rig.fake().await_shown(SETTINGS, "/Settings/CGwacs/AcPowerSetPoint", "i -3000");
}

/// One registration with a W behind the answer at once: whether the W is lost.
fn loses_first_value(rig: &Rig, device: &Device, value: u32) -> bool {
    let complaints = || {
        let log = rig.log(Part::Broker);
        let lines = log.lines().filter(|line| line.starts_with("Can't find") || line.starts_with("Error on 'SetValue'"));
        lines.filter(|line| line.contains(" W/")).count()
    };
    let before = complaints();
    let instance = device.register(r#"{"t1": "temperature"}"#).instance("t1");
    device.mqtt.write(&format!("temperature/{instance}/Temperature"), format!(r#"{{"value": {value}.25}}"#));
    let (service, wanted) = (name("temperature", &device.id, "t1"), format!("d {value}.25"));
    eventually("the value is there, or lost", DEADLINE, || {
        if rig.fake().shown(&service, "/Temperature") == wanted {
            return Some(false);
        }
        (complaints() > before).then_some(true)
    })
}

/// A device writes as soon as it is answered, again and again. `VENUS_TRIES=200` for more of them.
#[test]
fn no_first_value_is_lost() {
    let tries = std::env::var("VENUS_TRIES").ok().and_then(|tries| tries.parse().ok()).unwrap_or(20);
    let mut rig = Rig::new(Setup::devices().bridge("enabled = \"auto\"").flashmq());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    await_companion(&mqtt);
    let mut lost = 0;
    for n in 0..tries {
        let device = Device::connect(&rig, &format!("fe{n}"));
        lost += u32::from(loses_first_value(&rig, &device, n));
        // the same again, while the plugin may still have the life before
        device.leave();
        rig.fake().await_no_name(&name("temperature", &device.id, "t1"));
        lost += u32::from(loses_first_value(&rig, &device, n + 1000));
        device.leave();
        rig.fake().await_no_name(&name("temperature", &device.id, "t1"));
    }
    println!("{lost} of {} first values are lost", 2 * tries);
    assert_eq!(lost, 0, "of {}", 2 * tries);
}

/// The answer waits for the plugin, however long that takes, up to three seconds.
#[test]
fn a_slow_plugin_is_waited_for() {
    for (late, in_time) in [("700", true), ("8000", false)] {
        let mut rig = Rig::new(Setup::devices().bridge("enabled = \"auto\"").flashmq().fake_broker(&["--late", late]));
        let mqtt = rig.listener();
        rig.start(Part::Bridge);
        await_companion(&mqtt);
        let device = Device::connect(&rig, "fe001");
        if in_time {
            assert!(!loses_first_value(&rig, &device, 21));
        } else {
            let asked = std::time::Instant::now();
            device.register(r#"{"t1": "temperature"}"#);
            let took = asked.elapsed();
            assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(7), "{took:?}");
            rig.await_log(Part::Bridge, "the other bridge does not answer for com.victronenergy.temperature.mqtt_fe001_t1");
        }
    }
}

/// After every reconnect each device is answered again, when it can write.
#[test]
fn a_reconnect_answers_every_device() {
    let mut rig = Rig::new(Setup::devices().bridge("enabled = \"auto\"").flashmq());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    await_companion(&mqtt);
    let devices = ["fe001", "fe002"].map(|id| Device::connect(&rig, id));
    devices.iter().for_each(|device| drop(device.register(r#"{"t1": "temperature"}"#)));
    rig.kill(Part::Broker);
    rig.start(Part::Broker);
    let mqtt = eventually("the broker is back", DEADLINE, || Client::connect(rig.broker_address(), &Options::default()).ok());
    mqtt.subscribe("#");
    let online = mqtt.expect(&rig.status_topic(), "online");
    for id in ["fe001", "fe002"] {
        let answer = mqtt.expect_topic(&format!("device/{id}/DBus"));
        assert!(answer.at >= online.at, "behind the status");
        let instance = venus_mqtt_integration::device::registration(&answer).instance("t1");
        mqtt.write(&format!("temperature/{instance}/Temperature"), r#"{"value": 7.5}"#);
        rig.fake().await_shown(&name("temperature", id, "t1"), "/Temperature", "d 7.5");
    }
}

/// With `false` nobody knows whether there is another bridge: a device is answered when it serves, else once after three seconds and then at once.
#[test]
fn false_waits_for_the_plugin_too() {
    let mut rig = Rig::new(Setup::devices().bridge("enabled = false").flashmq());
    rig.start_bridge();
    let device = Device::connect(&rig, "fe001");
    assert!(!loses_first_value(&rig, &device, 21));
}
