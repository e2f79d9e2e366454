//! What each target says of itself on MQTT.

use serde_json::{Value, json};
use venus_mqtt_integration::{Answer, Backend, Client, DEADLINE, Ended, PORTAL, Part, Rig, Setup, eventually, parts::Signal};

use super::{CHARGER, FAST, charger};

fn topic(prefix: &str, number: u32) -> String {
    format!("{prefix}venus-mqtt/{PORTAL}/http/{number}")
}

/// Waits for a status of this target that fits.
fn await_status(mqtt: &Client, number: u32, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let topic = topic(mqtt.prefix(), number);
    mqtt.wait_within(what, DEADLINE, |messages| {
        let of = messages.iter().rev().find(|message| message.topic == topic)?;
        serde_json::from_slice(&of.payload).ok().filter(&fits)
    })
}

both! {
    /// Retained, with everything that there is to know; it goes when the bridge goes.
    fn retained_and_whole(rig in Setup::default().prefix("site/a")) {
        let (good, bad) = (Backend::on(rig.host()), Backend::on(rig.host()));
        bad.key("another");
        let setup = rig.setup().clone().file("key", "wrong\n").http(&good.section(FAST));
        let section = format!("{FAST}name = \"second\"\napi_key_file = \"{{dir}}/key\"");
        rig.configure(setup.http(&bad.section(&section)));
        rig.fake().add(CHARGER, charger());
        let mqtt = rig.listener();
        rig.start_bridge();
        let status = await_status(&mqtt, 1, "delivering", |status| status["state"] == "delivering");
        assert!(status["last_success"].as_str().is_some_and(|at| at.ends_with("+00:00")), "{status}");
        assert_eq!((&status["name"], &status["host"], &status["dropped"]), (&json!("1"), &json!(good.url()), &json!(0)));
        assert_eq!(status["last_error"], Value::Null);
        let status = await_status(&mqtt, 2, "refused", |status| status["state"] == "refused" && status["queued"].as_u64() > Some(3));
        assert_eq!((&status["name"], &status["last_success"]), (&json!("second"), &Value::Null));
        assert!(status["last_error"].as_str().is_some_and(|error| error.contains("401")), "{status}");
        assert!(status["queued_bytes"].as_u64() > Some(300), "{status}");
        let retained = rig.retained("site/a/venus-mqtt/#");
        assert!(retained.contains_key(&topic("site/a/", 1)) && retained.contains_key(&topic("site/a/", 2)), "{retained:?}");
        assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
        let retained = rig.retained("site/a/venus-mqtt/#");
        assert!(!retained.keys().any(|topic| topic.contains("/http/")), "{retained:?}");
    }
}

/// From trouble back to delivering, with the queue counted both ways.
#[test]
fn it_follows_what_happens() {
    let backend = Backend::start();
    backend.answer(Answer::status(500));
    let mut rig = Rig::new(Setup::default().http(&backend.section(FAST)));
    rig.fake().add(CHARGER, charger());
    let mqtt = rig.listener();
    rig.start_bridge();
    let status = await_status(&mqtt, 1, "waiting", |status| status["state"] == "waiting");
    assert!(status["last_error"].as_str().is_some_and(|error| error.contains("500")), "{status}");
    backend.answer(Answer::Api);
    let status = await_status(&mqtt, 1, "delivering", |status| status["state"] == "delivering" && status["queued"] == 0);
    assert_eq!(status["queued_bytes"], 0);
}

/// A broker that has forgotten everything is told again.
#[test]
fn the_broker_restarts() {
    let backend = Backend::start();
    let mut rig = Rig::new(Setup::default().http(&backend.section(FAST)));
    rig.fake().add(CHARGER, charger());
    rig.start_bridge();
    backend.await_delivered(2);
    rig.kill(Part::Broker);
    rig.start(Part::Broker);
    eventually("the status is there again", DEADLINE, || {
        let mqtt = Client::connect(rig.broker_address(), &venus_mqtt_integration::mqtt::Options::default()).ok()?;
        mqtt.retained("venus-mqtt/#").contains_key(&topic("", 1)).then_some(())
    });
}

/// A target that is no more leaves no status behind.
fn a_target_goes(how: impl Fn(&mut Rig)) {
    let (first, second) = (Backend::start(), Backend::start());
    let one = Setup::default().http(&first.section(FAST));
    let mut rig = Rig::new(one.clone().http(&second.section(FAST)));
    rig.fake().add(CHARGER, charger());
    rig.start_bridge();
    let has = |rig: &Rig, number: u32| rig.retained("venus-mqtt/#").contains_key(&topic("", number));
    eventually("both are there", DEADLINE, || (has(&rig, 1) && has(&rig, 2)).then_some(()));
    rig.configure(one);
    how(&mut rig);
    eventually("only the first one is there", DEADLINE, || (has(&rig, 1) && !has(&rig, 2)).then_some(()));
}

#[test]
fn a_target_goes_at_sighup() {
    a_target_goes(|rig| rig.signal(Part::Bridge, Signal::SIGHUP));
}

/// Nobody has taken back what was retained.
#[test]
fn a_target_goes_after_a_crash() {
    a_target_goes(|rig| {
        rig.kill(Part::Bridge);
        rig.start_bridge();
    });
}

/// It is not published for each measurement.
#[test]
fn it_is_not_a_measurement_of_its_own() {
    let backend = Backend::start();
    let mut rig = Rig::new(Setup::default().http(&backend.section(FAST)));
    rig.fake().add(CHARGER, charger());
    let mqtt = rig.listener();
    rig.start_bridge();
    backend.await_delivered(40);
    mqtt.barrier();
    let count = mqtt.on(&topic("", 1)).len();
    assert!((1..=5).contains(&count), "{count} messages in four seconds");
}

/// Without a target there is nothing to say.
#[test]
fn without_targets() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(CHARGER, charger());
    let mqtt = rig.awake();
    assert!(mqtt.since().iter().all(|message| !message.topic.contains("/http/")));
    assert!(!rig.dir().join("state/http").exists());
}
