//! "Beside dbus-flashmq": who serves N, R and W when the broker may already do so itself. The plugin is played by a client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use venus_mqtt_integration::{Client, DEADLINE, Part, Rig, Setup, eventually, item, items};

use crate::{BATTERY, battery};

fn auto() -> Setup {
    Setup::default().bridge("enabled = \"auto\"")
}

/// Answers keep-alives with a heartbeat, as dbus-flashmq does.
pub struct Plugin {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Plugin {
    /// `at_once`: it was asleep, and its first heartbeat follows the keep-alive; else it was awake, and beats every three seconds.
    pub fn start(rig: &Rig, at_once: bool) -> Self {
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

impl Drop for Plugin {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The bridge says that it stays out, on a topic of its own beside the status.
pub fn await_companion(mqtt: &Client) {
    mqtt.wait_for("`companion` among the bridge's own topics", |message| {
        message.topic.starts_with("venus-mqtt/") && message.text().contains("companion")
    });
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
    // what comes before it is known waits for it
    mqtt.write("battery/512/Soc", r#"{"value":5}"#);
    mqtt.read("battery/512/Dc/0/Voltage");
    mqtt.keepalive("");
    mqtt.n("battery/512/Dc/0/Voltage", r#"{"value":26.4}"#);
    rig.fake().await_call(BATTERY, "SetValue /Soc i 5");
    let completed = mqtt.completed();
    let took = completed.at - probe.at;
    assert!(took < Duration::from_secs(5), "{took:?}");
    mqtt.n("battery/512/Soc", r#"{"value":5}"#);
    mqtt.expect(&rig.status_topic(), "online");
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
fn beside_the_plugin_it_stays_out() {
    for at_once in [true, false] {
        let mut rig = Rig::new(auto());
        rig.fake().add(BATTERY, battery());
        let plugin = Plugin::start(&rig, at_once);
        let mqtt = rig.listener();
        // the plugin's own retained topics are not ours to sweep
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
        drop(plugin);
    }
}

#[test]
fn true_serves_beside_the_plugin() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let plugin = Plugin::start(&rig, true);
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    mqtt.completed();
    // and it did not probe
    drop(plugin);
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
    rig.kill(Part::Broker);
    rig.start(Part::Broker);
    let mqtt = eventually("the broker is back", DEADLINE, || {
        Client::connect(rig.broker_address(), &venus_mqtt_integration::mqtt::Options::default()).ok()
    });
    let plugin = Plugin::start(&rig, true);
    mqtt.subscribe("#");
    await_companion(&mqtt);
    drop(plugin);
}
