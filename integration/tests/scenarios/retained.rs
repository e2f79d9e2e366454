//! No stale retained value survives: not the end of a keep-alive, a service, the daemon, a crash, nor the broker's absence.

use std::sync::atomic::{AtomicBool, Ordering};

use venus_mqtt_integration::{Client, DEADLINE, Ended, PORTAL, Part, Rig, Setup, eventually, item, items, mqtt::Options, proxy::Proxy};

use crate::{BATTERY, TANK, battery, outages::reroute, tank};

const BATTERY_ITEMS: [&str; 4] = ["battery/512/Dc/0/Current", "battery/512/Dc/0/Voltage", "battery/512/DeviceInstance", "battery/512/Soc"];

/// The broker after it was started again.
fn back(rig: &Rig) -> Client {
    eventually("the broker is back", DEADLINE, || Client::connect(rig.broker_address(), &Options::default()).ok())
}

both! {
    /// SIGTERM: cleared before DISCONNECT, and what is never removed stays.
    fn a_polite_end_leaves_no_values(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        let mqtt = rig.awake();
        rig.await_retained_items(&BATTERY_ITEMS);
        assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
        rig.await_retained_items(&[]);
        let retained = rig.retained("#");
        assert_eq!(retained.get(&rig.status_topic()).map(String::as_str), Some("offline"));
        assert!(retained.contains_key(&mqtt.topic('N', "system/0/Serial")) && retained.contains_key(&mqtt.topic('N', "keepalive")), "{retained:?}");
    }
}

both! {
    /// A crash: the next start finds what is still retained and clears what is not published.
    fn the_next_start_sweeps_what_a_crash_left(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        rig.fake().add(TANK, tank());
        let mqtt = rig.awake();
        rig.kill(Part::Bridge);
        rig.fake().remove(BATTERY);
        let mut left = BATTERY_ITEMS.to_vec();
        left.extend(["tank/3/DeviceInstance", "tank/3/Level"]);
        rig.await_retained_items(&left);
        rig.start_bridge();
        rig.await_retained_items(&[]);
        // and it works as ever
        mqtt.mark();
        mqtt.keepalive("");
        mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
        rig.await_retained_items(&["tank/3/DeviceInstance", "tank/3/Level"]);
    }
}

both! {
    /// The sweep is of our own topics: those of another portal, and everything else on the broker, are left alone.
    fn the_sweep_leaves_others_alone(rig in Setup::default()) {
        rig.fake().add(TANK, tank());
        let planter = rig.client();
        planter.publish_retained(&planter.topic('N', "battery/512/Soc"), r#"{"value":1}"#);
        planter.publish_retained(&planter.topic('N', "a/b/c/d/e/f/g"), "anything");
        planter.publish_retained(&planter.topic('N', "odd"), "anything");
        planter.publish_retained("N/ffffffffffff/battery/512/Soc", r#"{"value":2}"#);
        planter.publish_retained(&format!("N/{PORTAL}x/battery/512/Soc"), r#"{"value":2}"#);
        planter.publish_retained("zigbee2mqtt/lamp", "on");
        planter.publish_retained(&planter.topic('W', "battery/512/Soc"), r#"{"value":1}"#);
        planter.barrier();
        rig.start_bridge();
        rig.await_retained_items(&[]);
        let others: Vec<String> = rig.retained("#").into_keys().filter(|topic| !topic.starts_with(&planter.topic('N', "")) && !topic.starts_with("venus-mqtt/")).collect();
        assert_eq!(others, ["N/c0619ab1c2d3x/battery/512/Soc", "N/ffffffffffff/battery/512/Soc", "W/c0619ab1c2d3/battery/512/Soc", "zigbee2mqtt/lamp"]);
    }
}

#[test]
fn the_sweep_keeps_what_is_published() {
    let mut rig = Rig::new(Setup::default().bridge(r#"always_on = ["battery/+/Soc"]"#));
    rig.fake().add(BATTERY, battery());
    let planter = rig.client();
    for topic in BATTERY_ITEMS {
        planter.publish_retained(&planter.topic('N', topic), r#"{"value":1}"#);
    }
    planter.barrier();
    rig.start_bridge();
    rig.await_retained_items(&["battery/512/Soc"]);
    assert_eq!(rig.retained("#").get(&planter.topic('N', "battery/512/Soc")).map(String::as_str), Some(r#"{"value":87.0}"#));
}

/// A keep-alive that comes while the sweep goes on: what it asks for is there at the end.
#[test]
fn a_keepalive_during_the_sweep_wins() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let planter = rig.client();
    for n in 0..2000 {
        planter.publish_retained(&planter.topic('N', &format!("old/0/{n}")), "1");
    }
    for topic in BATTERY_ITEMS {
        planter.publish_retained(&planter.topic('N', topic), r#"{"value":1}"#);
    }
    planter.barrier();
    planter.subscribe(&rig.status_topic());
    planter.mark();
    rig.start(Part::Bridge);
    rig.await_online(&planter);
    planter.keepalive("");
    rig.await_retained_items(&BATTERY_ITEMS);
    assert_eq!(rig.retained("#").get(&planter.topic('N', "battery/512/Soc")).map(String::as_str), Some(r#"{"value":87.0}"#));
}

#[test]
fn without_retain_the_sweep_clears_everything() {
    let mut rig = Rig::new(Setup::default().bridge("retain = false"));
    rig.fake().add(BATTERY, battery());
    let planter = rig.client();
    planter.publish_retained(&planter.topic('N', "battery/512/Soc"), r#"{"value":1}"#);
    planter.barrier();
    rig.start_bridge();
    rig.await_retained_items(&[]);
}

/// A service that leaves while the broker is away: its topics are cleared when the broker is back with what it had kept.
#[test]
fn what_happens_while_the_broker_is_away_is_made_up_for() {
    let mut rig = Rig::new(Setup::default().broker("persistence true").broker("persistence_location {dir}/"));
    rig.fake().add(BATTERY, battery());
    rig.fake().add(TANK, tank());
    rig.awake();
    rig.stop(Part::Broker);
    rig.fake().remove(BATTERY);
    rig.fake().items_changed(TANK, items([("/Level", item(0.75))]));
    rig.start(Part::Broker);
    let mqtt = back(&rig);
    mqtt.subscribe("N/#");
    // the keep-alive still runs, so the tank is published again without being asked for
    mqtt.n("tank/3/Level", r#"{"value":0.75}"#);
    rig.await_retained_items(&["tank/3/DeviceInstance", "tank/3/Level"]);
}

#[test]
fn a_keepalive_that_ends_while_the_broker_is_away_has_ended() {
    let mut rig = Rig::new(Setup::short().broker("persistence true").broker("persistence_location {dir}/"));
    rig.fake().add(BATTERY, battery());
    rig.awake();
    rig.stop(Part::Broker);
    rig.await_log(Part::Bridge, "asleep");
    rig.start(Part::Broker);
    back(&rig);
    rig.await_retained_items(&[]);
}

/// A broker that lost everything gets everything again.
#[test]
fn a_broker_without_memory_is_filled_again() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    rig.kill(Part::Broker);
    rig.start(Part::Broker);
    back(&rig);
    rig.await_retained_items(&BATTERY_ITEMS);
    eventually("the constants", DEADLINE, || {
        let retained = rig.retained("#");
        (retained.contains_key(&mqtt.topic('N', "system/0/Serial")) && retained.contains_key(&mqtt.topic('N', "keepalive"))).then_some(())
    });
}

both! {
    /// While the broker hangs, services come, go, change hands and values: afterwards exactly what is there is retained.
    fn a_house_that_moves_while_the_broker_hangs(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        rig.fake().add(TANK, tank());
        let mqtt = rig.awake();
        rig.pause(Part::Broker);
        rig.fake().remove(TANK);
        for n in 0..20 {
            rig.fake().remove(BATTERY);
            rig.fake().add(BATTERY, items([("/DeviceInstance", item(512)), ("/Soc", item(f64::from(n)))]));
            rig.fake().items_changed(BATTERY, items([("/Soc", item(f64::from(n) + 0.5))]));
        }
        rig.fake().add("com.victronenergy.grid.x", items([("/DeviceInstance", item(30)), ("/Ac/Power", item(100.5))]));
        rig.fake().await_call("com.victronenergy.grid.x", "GetItems /");
        rig.resume(Part::Broker);
        mqtt.n("grid/30/Ac/Power", r#"{"value":100.5}"#);
        rig.await_retained_items(&["battery/512/DeviceInstance", "battery/512/Soc", "grid/30/Ac/Power", "grid/30/DeviceInstance"]);
        eventually("the last value", DEADLINE, || (rig.retained("#").get(&mqtt.topic('N', "battery/512/Soc"))? == r#"{"value":19.5}"#).then_some(()));
    }
}

both! {
    /// The end of a keep-alive while the broker hangs is made up for.
    fn an_end_while_the_broker_hangs(rig in Setup::short()) {
        rig.fake().add(BATTERY, battery());
        rig.awake();
        rig.pause(Part::Broker);
        rig.await_log(Part::Bridge, "asleep");
        rig.resume(Part::Broker);
        rig.await_retained_items(&[]);
    }
}

/// Services that come and go faster than anyone looks: at the end all is as it is on the bus.
#[test]
fn flapping_services_end_as_they_are() {
    let mut rig = Rig::new(Setup::default());
    let mqtt = rig.awake();
    for n in 0..60 {
        let style = ["normal", "older", "leaves"][n % 3];
        rig.fake().add_styled(BATTERY, style, battery());
        rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
        rig.fake().remove(BATTERY);
    }
    rig.await_retained_items(&[]);
    rig.fake().add(BATTERY, battery());
    rig.await_retained_items(&BATTERY_ITEMS);
    assert_eq!(rig.retained("#").get(&mqtt.topic('N', "battery/512/Soc")).map(String::as_str), Some(r#"{"value":87.0}"#));
}

#[test]
fn a_service_that_died_leaves_nothing() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.awake();
    rig.await_retained_items(&BATTERY_ITEMS);
    // all of them at once
    rig.kill(Part::Fake);
    rig.await_retained_items(&[]);
    assert!(rig.runs(Part::Bridge));
}

/// Ten services of 500 items: a house larger than any.
/// A broker that takes its time for the CONNECT, as on a busy machine, counts as behind a slow link: then the sweep lets a minute pass
/// before a large part, and waits half a minute for an answer that was dropped.
const SWEPT: std::time::Duration = DEADLINE.saturating_mul(5);

fn large_house(rig: &Rig) -> usize {
    for n in 0..10 {
        let mut list = items([("/DeviceInstance", item(n))]);
        list.extend((1..500).map(|m| (format!("/A/Rather/Long/Path/Of/An/Item/{m}"), item(m).0)));
        rig.fake().add(&format!("com.victronenergy.solarcharger.n{n}"), list);
    }
    5000
}

fn count(rig: &Rig) -> usize {
    rig.retained(&format!("N/{PORTAL}/solarcharger/#")).len()
}

/// Five thousand topics are cleared within the two seconds a polite end may take.
#[test]
fn a_large_house_is_cleared_in_time() {
    // at the level devices have: a line per message is not what is measured
    let mut rig = Rig::new(Setup::default().top("log_level = \"info\""));
    let all = large_house(&rig);
    rig.start_bridge();
    let mqtt = rig.client();
    mqtt.subscribe(&mqtt.topic('N', "full_publish_completed"));
    mqtt.keepalive("");
    mqtt.completed();
    assert_eq!(count(&rig), all);
    let asked = std::time::Instant::now();
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    assert!(asked.elapsed() < std::time::Duration::from_millis(3000), "{:?}", asked.elapsed());
    // said by then, and read by the broker soon
    eventually("everything is cleared", DEADLINE, || (count(&rig) == 0).then_some(()));
}

/// And a crash leaves five thousand, which the next start finds and clears.
#[test]
fn a_large_house_is_swept() {
    // at the level devices have: a line per message is not what is measured
    let mut rig = Rig::new(Setup::default().top("log_level = \"info\""));
    let all = large_house(&rig);
    rig.start_bridge();
    let mqtt = rig.client();
    mqtt.subscribe(&mqtt.topic('N', "full_publish_completed"));
    mqtt.keepalive("");
    mqtt.completed();
    rig.kill(Part::Bridge);
    assert_eq!(count(&rig), all);
    rig.start_bridge();
    eventually("the sweep", SWEPT, || (count(&rig) == 0).then_some(()));
}

/// Requests that arrive during the end change nothing about it: what is unread when a connection is closed must not cost what was said.
#[test]
fn a_polite_end_under_fire_leaves_no_values() {
    let mut rig = Rig::new(Setup::default().top("log_level = \"info\""));
    let all = large_house(&rig);
    rig.start_bridge();
    let mqtt = rig.client();
    mqtt.subscribe(&mqtt.topic('N', "full_publish_completed"));
    mqtt.keepalive("");
    mqtt.completed();
    assert_eq!(count(&rig), all);
    let over = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        let (mqtt, over) = (rig.client(), &over);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for n in 0..50 {
                    mqtt.read(&format!("nobody/{n}/Here"));
                }
                mqtt.barrier();
            }
        });
        // the parts end with the thread that started them: this one
        let ended = rig.stop(Part::Bridge);
        over.store(true, Ordering::Relaxed);
        ended
    });
    assert_eq!(ended, Ended::Code(0));
    eventually("everything is cleared", DEADLINE, || (count(&rig) == 0).then_some(()));
}

/// Mosquitto leaves out of a replay what does not fit its queue, without a word: values that are awake fill it, and what is stale is found all
/// the same. Where answers are left out as well the link counts as slow, and the sweep takes its time between the parts.
#[test]
#[ignore = "takes two minutes and more"]
fn a_replay_that_is_cut_is_not_taken_for_complete() {
    let mut rig = Rig::new(Setup::default().top("log_level = \"info\"").bridge("always_on = true").broker("max_queued_messages 40"));
    // slower than the broker writes, which fills the kernel's buffers first
    let proxy = Proxy::start(rig.broker_address()).expect("a port");
    proxy.limit(20_000_000);
    reroute(&rig, proxy.address().port());
    let text = "x".repeat(1500);
    for n in 0..8 {
        let mut list = items([("/DeviceInstance", item(n))]);
        list.extend((0..400).map(|m| (format!("/Awake/Group{}/{m}", m % 40), item(text.clone()).0)));
        rig.fake().add(&format!("com.victronenergy.solarcharger.n{n}"), list);
    }
    // a view of everything would be cut as well
    let count = |rig: &Rig, service: &str| rig.retained(&format!("N/{PORTAL}/{service}/#")).len();
    rig.start_bridge();
    let awake = |rig: &Rig| (0..8).all(|n| count(rig, &format!("solarcharger/{n}")) == 401);
    eventually("everything awake is retained", DEADLINE, || awake(&rig).then_some(()));
    rig.kill(Part::Bridge);
    let stale: Vec<String> = (0..20).map(|n| format!("zigzag/{n}")).collect();
    let planter = rig.client();
    for service in &stale {
        (0..150).for_each(|n| planter.publish_retained(&planter.topic('N', &format!("{service}/Awake/Group{}/{n}", n % 40)), &text));
        planter.barrier();
    }
    rig.start_bridge();
    let end = std::time::Duration::from_secs(1500);
    eventually("everything stale is cleared", end, || stale.iter().all(|service| count(&rig, service) == 0).then_some(()));
    assert!(awake(&rig));
    let log = rig.log(Part::Broker);
    assert!(
        log.contains(&format!("Outgoing messages are being dropped for client venus-mqtt-{PORTAL}")),
        "nothing was cut: this shows nothing"
    );
}

/// Messages that are too large to be taken fill the broker's queue as others do: they are part of a replay, and cleared.
#[test]
fn large_messages_in_a_replay_are_cleared_and_hide_nothing() {
    let mut rig = Rig::new(Setup::default().broker("max_queued_messages 20"));
    rig.fake().add(BATTERY, battery());
    let planter = rig.client();
    let large = "x".repeat(300_000);
    for n in 0..40 {
        planter.publish_retained(&planter.topic('N', &format!("large/0/{n}")), &large);
        planter.barrier();
    }
    for n in 0..100 {
        planter.publish_retained(&planter.topic('N', &format!("small/0/{n}")), r#"{"value":1}"#);
    }
    planter.barrier();
    rig.start_bridge();
    // one by one: a replay of everything would be cut here as well
    let view = rig.client();
    let mut topics = (0..40).map(|n| format!("large/0/{n}")).chain((0..100).map(|n| format!("small/0/{n}"))).peekable();
    // at its limit the broker drops answers to SUBSCRIBEs too: the connection is made anew 20 s later
    eventually("everything stale is cleared", SWEPT, || {
        let is_cleared = |topic: &String| view.retained(&view.topic('N', topic)).is_empty();
        while topics.next_if(is_cleared).is_some() {}
        topics.peek().is_none().then_some(())
    });
}

/// Brokers that replay before the SUBACK, or twice.
#[test]
fn a_replay_in_another_manner_is_swept() {
    for manner in ["early", "twice"] {
        let mut rig = Rig::new(Setup::default().fake_broker(&["--replay", manner]).bridge(r#"always_on = ["battery/+/Soc"]"#));
        rig.fake().add(BATTERY, battery());
        let planter = rig.client();
        for n in 0..200 {
            planter.publish_retained(&planter.topic('N', &format!("old/0/{n}")), "1");
        }
        planter.publish_retained(&planter.topic('N', "battery/512/Dc/0/Voltage"), "1");
        planter.barrier();
        rig.start_bridge();
        rig.await_retained_items(&["battery/512/Soc"]);
    }
}

/// RabbitMQ replays nothing to a filter with a wildcard: said once, however often the connection is made.
#[test]
fn a_broker_without_wildcard_replay_is_named_once() {
    let mut rig = Rig::new(Setup::default().fake_broker(&["--replay", "exact"]));
    rig.fake().add(BATTERY, battery());
    let text = "does not replay retained messages to subscriptions with wildcards";
    let lines = |rig: &Rig| rig.log(Part::Bridge).lines().filter(|line| line.contains(text)).count();
    rig.start_bridge();
    assert!(rig.await_log(Part::Bridge, text).contains("warn"));
    rig.kill(Part::Broker);
    rig.start(Part::Broker);
    eventually("it is noticed again", DEADLINE, || (lines(&rig) == 2).then_some(()));
    let warnings = rig.log(Part::Bridge).lines().filter(|line| line.contains(text) && line.contains("warn")).count();
    assert_eq!(warnings, 1);
    // and it serves
    let mqtt = back(&rig);
    mqtt.subscribe("N/#");
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
}
