//! Section 5: keep-alives, what they ask for, and their end.

use std::time::{Duration, Instant};

use venus_mqtt_integration::{DEADLINE, Part, Rig, Setup, eventually, item, items};

use crate::{BATTERY, TANK, battery, tank};

const ALL: [&str; 6] = [
    "battery/512/Dc/0/Current",
    "battery/512/Dc/0/Voltage",
    "battery/512/DeviceInstance",
    "battery/512/Soc",
    "tank/3/DeviceInstance",
    "tank/3/Level",
];

/// A house of two services, asleep.
fn house(setup: Setup) -> Rig {
    let mut rig = Rig::new(setup);
    add_house(&rig);
    rig.start_bridge();
    rig
}

fn add_house(rig: &Rig) {
    rig.fake().add(BATTERY, battery());
    rig.fake().add(TANK, tank());
}

/// What was published since the mark and before the completion.
fn before_completed(mqtt: &venus_mqtt_integration::Client) -> Vec<String> {
    let completed = mqtt.completed();
    let prefix = mqtt.topic('N', "");
    let mut topics: Vec<String> = mqtt
        .since()
        .into_iter()
        .take_while(|message| *message != completed)
        .filter_map(|message| message.topic.strip_prefix(&prefix).map(ToOwned::to_owned))
        .filter(|rest| !["heartbeat", "keepalive", "system/0/Serial"].contains(&rest.as_str()))
        .collect();
    topics.sort();
    topics.dedup();
    topics
}

both! {
    /// An empty payload: everything, now, and then the completion.
    fn an_empty_one_asks_for_everything(rig in Setup::default()) {
        add_house(&rig);
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.mark();
        mqtt.keepalive("");
        assert_eq!(before_completed(&mqtt), ALL);
        rig.fake().items_changed(TANK, items([("/Level", item(0.1))]));
        mqtt.n("tank/3/Level", r#"{"value":0.1}"#);
        rig.fake().properties_changed(BATTERY, items([("/Soc", item(1.5))]));
        mqtt.n("battery/512/Soc", r#"{"value":1.5}"#);
    }
}

#[test]
fn filters_ask_for_what_they_take() {
    let rig = house(Setup::default());
    let mqtt = rig.listener();
    let table: [(&str, &[&str]); 7] = [
        (r#"["tank/#"]"#, &["tank/3/DeviceInstance", "tank/3/Level"]),
        (r#"["battery/+/Dc/0/Voltage"]"#, &["battery/512/Dc/0/Voltage"]),
        (r#"["battery/512/Dc/#"]"#, &["battery/512/Dc/0/Current", "battery/512/Dc/0/Voltage"]),
        (r#"["+/+/DeviceInstance"]"#, &["battery/512/DeviceInstance", "tank/3/DeviceInstance"]),
        (r#"["battery/512/Soc", "tank/3/Level"]"#, &["battery/512/Soc", "tank/3/Level"]),
        (r##"["#"]"##, &ALL),
        (r#"["grid/#"]"#, &[]),
    ];
    for (payload, wanted) in table {
        mqtt.mark();
        mqtt.keepalive(payload);
        assert_eq!(before_completed(&mqtt), wanted, "{payload}");
    }
}

#[test]
fn changes_are_published_as_far_as_the_filters_go() {
    let rig = house(Setup::default());
    let mqtt = rig.listener();
    mqtt.keepalive(r#"["battery/+/Soc"]"#);
    mqtt.completed();
    mqtt.mark();
    rig.fake().items_changed(BATTERY, items([("/Dc/0/Voltage", item(1.0)), ("/Soc", item(2.0))]));
    rig.fake().items_changed(TANK, items([("/Level", item(0.1))]));
    rig.fake().items_changed(BATTERY, items([("/Soc", item(3.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":3.0}"#);
    assert_eq!(mqtt.items().keys().collect::<Vec<_>>(), ["battery/512/Soc"]);
}

both! {
    /// At its end nothing more is published, and what was retained is cleared.
    fn the_end_clears_what_was_retained(rig in Setup::short()) {
        add_house(&rig);
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.mark();
        let asked = Instant::now();
        mqtt.keepalive("");
        mqtt.completed();
        for topic in ALL {
            let cleared = mqtt.n(topic, "");
            let after = cleared.at - asked;
            assert!(after >= Duration::from_millis(950), "cleared after {after:?} only");
        }
        rig.await_retained_items(&[]);
        mqtt.mark();
        rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
        mqtt.read("tank/3/Level");
        let after = mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
        mqtt.expect_silence_on(&mqtt.topic('N', "battery/512/Soc"), &after);
        let retained = rig.retained("#");
        assert!(retained.contains_key(&mqtt.topic('N', "system/0/Serial")) && retained.contains_key(&mqtt.topic('N', "keepalive")), "{retained:?}");
    }
}

both! {
    /// Each filter has its own end: a topic is cleared when the last that matched it has run out.
    fn each_filter_has_its_own_end(rig in Setup::default().bridge("keepalive_interval = 2")) {
        add_house(&rig);
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.mark();
        mqtt.keepalive(r#"["battery/#", "tank/#"]"#);
        mqtt.completed();
        // one is renewed again and again, the others are not
        eventually("the battery stays awake alone", DEADLINE, || {
            mqtt.keepalive(r#"["battery/512/Soc"]"#);
            std::thread::sleep(Duration::from_millis(200));
            let retained = rig.retained("N/#");
            let mut items: Vec<&str> = retained.keys().filter_map(|topic| topic.strip_prefix(&mqtt.topic('N', ""))).collect();
            items.retain(|rest| !["system/0/Serial", "keepalive"].contains(rest));
            (items == ["battery/512/Soc"]).then_some(())
        });
        rig.fake().items_changed(BATTERY, items([("/Soc", item(5.5)), ("/Dc/0/Voltage", item(5.5))]));
        mqtt.n("battery/512/Soc", r#"{"value":5.5}"#);
        mqtt.n("battery/512/Soc", "");
        rig.await_retained_items(&[]);
    }
}

both! {
    /// With `suppress-republish` everything stays awake, nothing is published, and nothing is completed.
    fn suppress_republish_only_keeps_awake(rig in Setup::default()) {
        add_house(&rig);
        rig.start_bridge();
        let mqtt = rig.listener();
        mqtt.mark();
        mqtt.keepalive(r#"{"keepalive-options": ["suppress-republish"]}"#);
        mqtt.keepalive(r#"{"keepalive-options": ["suppress-republish", {"full-publish-completed-echo": "never"}]}"#);
        mqtt.keepalive(r#"{"keepalive-options": [{"full-publish-completed-echo": "never"}, "suppress-republish"]}"#);
        mqtt.read("tank/3/Level");
        mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
        // a republish that was delayed would be here by then
        rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
        mqtt.n("battery/512/Soc", r#"{"value":1.0}"#);
        mqtt.expect_topic(&mqtt.topic('N', "heartbeat"));
        assert!(mqtt.on(&mqtt.topic('N', "full_publish_completed")).is_empty(), "{:?}", mqtt.since());
        assert_eq!(mqtt.items().keys().collect::<Vec<_>>(), ["battery/512/Soc", "tank/3/Level"]);
    }
}

#[test]
fn suppress_republish_prolongs() {
    let rig = house(Setup::short());
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.completed();
    mqtt.mark();
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(2500) {
        mqtt.keepalive(r#"{"keepalive-options": ["suppress-republish"]}"#);
        std::thread::sleep(Duration::from_millis(200));
    }
    rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":1.0}"#);
    assert!(
        mqtt.since().iter().filter(|message| message.topic.starts_with("N/")).all(|message| !message.payload.is_empty()),
        "{:?}",
        mqtt.since()
    );
    mqtt.n("battery/512/Soc", "");
}

#[test]
fn the_echo_comes_back() {
    let rig = house(Setup::default());
    let mqtt = rig.listener();
    for echo in ["1", "a \\\"quoted\\\" one", "ä€", &"x".repeat(256)] {
        mqtt.mark();
        mqtt.keepalive(format!("{{\"keepalive-options\": [{{\"full-publish-completed-echo\": \"{echo}\"}}]}}"));
        let completed = mqtt.completed();
        let json: serde_json::Value = serde_json::from_slice(&completed.payload).expect("JSON");
        let wanted: serde_json::Value = serde_json::from_str(&format!("\"{echo}\"")).expect("JSON");
        assert_eq!(json["full-publish-completed-echo"], wanted);
        assert!(json["value"].is_u64(), "{completed:?}");
        assert_eq!(before_completed(&mqtt), ALL);
    }
}

/// All of these are in the field, and all mean everything.
#[test]
fn anything_else_asks_for_everything() {
    let rig = house(Setup::default());
    let mqtt = rig.listener();
    let long = format!("{{\"keepalive-options\": [{{\"full-publish-completed-echo\": \"{}\"}}]}}", "x".repeat(257));
    for payload in [
        &b"1"[..],
        b"0",
        b"keepalive",
        b"true",
        b"null",
        b"\"x\"",
        b"{}",
        b"{",
        b"[\"tank/#\"",
        b"\xff\xfe",
        br#"{"keepalive-options": []}"#,
        br#"{"keepalive-options": ["unknown"]}"#,
        br#"{"keepalive-options": "suppress"}"#,
        br#"{"keepalive-options": [{"unknown": 1}]}"#,
        br#"{"keepalive-options": [{"full-publish-completed-echo": 5}]}"#,
        long.as_bytes(),
    ] {
        mqtt.mark();
        mqtt.keepalive(payload);
        assert_eq!(before_completed(&mqtt), ALL, "{}", String::from_utf8_lossy(payload));
    }
}

/// The legacy form: the same rules, and the serial is answered.
#[test]
fn the_serial_is_a_keepalive_too() {
    let rig = house(Setup::default());
    let mqtt = rig.listener();
    let serial = |payload: &str| mqtt.publish(&mqtt.topic('R', "system/0/Serial"), payload);
    mqtt.mark();
    serial(r#"["tank/#"]"#);
    mqtt.n("system/0/Serial", r#"{"value":"c0619ab1c2d3"}"#);
    assert_eq!(before_completed(&mqtt), ["tank/3/DeviceInstance", "tank/3/Level"]);
    mqtt.mark();
    serial(r#"{"keepalive-options": ["suppress-republish"]}"#);
    mqtt.n("system/0/Serial", r#"{"value":"c0619ab1c2d3"}"#);
    mqtt.mark();
    serial("");
    mqtt.n("system/0/Serial", r#"{"value":"c0619ab1c2d3"}"#);
    assert_eq!(before_completed(&mqtt), ALL);
}

/// Whoever subscribed before has every current value when the completion arrives, also while values change and others ask.
#[test]
fn whoever_asks_has_everything_at_the_completion() {
    let rig = house(Setup::default());
    let paths: Vec<String> = (0..50).map(|n| format!("/Flood/{n}")).collect();
    rig.fake().items_changed(TANK, paths.iter().map(|path| (path.clone(), item(0.0).0)).collect());
    rig.fake().flood(TANK, &paths, 1000, Duration::from_millis(1));
    let clients: Vec<_> = (0..3).map(|_| rig.client()).collect();
    for (n, client) in clients.iter().enumerate() {
        client.subscribe(&client.topic('N', "#"));
        client.mark();
        client.keepalive(format!("{{\"keepalive-options\": [{{\"full-publish-completed-echo\": \"client {n}\"}}]}}"));
    }
    for (n, client) in clients.iter().enumerate() {
        let own = client.wait_for("the own echo", |message| message.text().contains(&format!("client {n}")));
        let heard = client.since();
        for path in paths.iter().map(|path| format!("tank/3{path}")).chain(ALL.map(ToOwned::to_owned)) {
            let topic = client.topic('N', &path);
            assert!(
                heard.iter().take_while(|message| **message != own).any(|message| message.topic == topic),
                "client {n} completed without {path}"
            );
        }
    }
}

/// At most three republishes a second; those beyond are joined, and each echo is answered.
#[test]
fn no_echo_is_lost() {
    let rig = house(Setup::default());
    let mqtt = rig.listener();
    mqtt.mark();
    let started = Instant::now();
    for n in 0..12 {
        mqtt.keepalive(format!("{{\"keepalive-options\": [{{\"full-publish-completed-echo\": \"echo {n}\"}}]}}"));
        mqtt.barrier();
    }
    for n in 0..12 {
        mqtt.wait_for(&format!("echo {n}"), |message| {
            message.topic.ends_with("full_publish_completed") && message.text().contains(&format!("\"echo {n}\""))
        });
    }
    let took = started.elapsed().as_secs_f64();
    let published = mqtt.on(&mqtt.topic('N', "tank/3/Level")).len();
    assert!(f64::from(u32::try_from(published).expect("few")) <= 3.0 + 3.0 * took.ceil(), "{published} republishes in {took} s");
    // the completions come in the order of the questions
    let order: Vec<String> =
        mqtt.on(&mqtt.topic('N', "full_publish_completed")).iter().map(venus_mqtt_integration::Message::text).collect();
    let position = |n: i32| order.iter().position(|text| text.contains(&format!("\"echo {n}\"")));
    assert!((1..12).all(|n| position(n - 1) <= position(n)), "{order:?}");
}

/// With the interval of the contract.
#[test]
fn sixty_seconds_are_sixty_seconds() {
    let rig = house(Setup::default());
    let mqtt = rig.listener();
    mqtt.mark();
    let asked = Instant::now();
    mqtt.keepalive("");
    mqtt.completed();
    let topic = mqtt.topic('N', "battery/512/Soc");
    let cleared = mqtt.wait_within("the end", Duration::from_secs(75), |messages| {
        messages.iter().find(|message| message.topic == topic && message.payload.is_empty()).cloned()
    });
    let after = cleared.at - asked;
    assert!(after > Duration::from_millis(59_500) && after < Duration::from_secs(63), "{after:?}");
}

#[test]
fn always_on_needs_no_keepalive() {
    let mut rig = Rig::new(Setup::short().bridge("always_on = true"));
    add_house(&rig);
    let mqtt = rig.listener();
    rig.start_bridge();
    for topic in ALL {
        mqtt.expect_topic(&mqtt.topic('N', topic));
    }
    rig.await_retained_items(&ALL);
    mqtt.keepalive(r#"["tank/#"]"#);
    mqtt.completed();
    mqtt.mark();
    // the end of a keep-alive ends nothing
    let over = Instant::now() + Duration::from_millis(1500);
    eventually("the keep-alive is over", DEADLINE, || (Instant::now() > over).then_some(()));
    rig.fake().items_changed(TANK, items([("/Level", item(0.1))]));
    mqtt.n("tank/3/Level", r#"{"value":0.1}"#);
    assert!(mqtt.since().iter().all(|message| !message.payload.is_empty() || message.topic.starts_with("barrier")), "{:?}", mqtt.since());
    rig.await_retained_items(&ALL);
}

#[test]
fn always_on_can_be_a_list() {
    let mut rig = Rig::new(Setup::short().bridge(r#"always_on = ["battery/+/Soc"]"#));
    add_house(&rig);
    let mqtt = rig.listener();
    rig.start_bridge();
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    rig.await_retained_items(&["battery/512/Soc"]);
    mqtt.keepalive("");
    mqtt.completed();
    rig.await_retained_items(&["battery/512/Soc"]);
    rig.fake().items_changed(BATTERY, items([("/Dc/0/Voltage", item(1.0)), ("/Soc", item(2.0))]));
    mqtt.n("battery/512/Soc", r#"{"value":2.0}"#);
}

/// A keep-alive that comes with the first services still being asked is complete only when they have answered.
#[test]
fn a_keepalive_at_the_start_is_complete_as_well() {
    let mut rig = Rig::new(Setup::default());
    let mut many = battery();
    many.extend((0..500).map(|n| (format!("/Many/{n}"), item(n).0)));
    rig.fake().add(BATTERY, many);
    rig.fake().add(TANK, tank());
    let mqtt = rig.listener();
    rig.start(Part::Bridge);
    let status = rig.status_topic();
    mqtt.wait_for("online", |message| message.topic == status && message.payload == b"online");
    mqtt.mark();
    mqtt.keepalive("");
    let completed = before_completed(&mqtt);
    assert!(completed.contains(&"tank/3/Level".to_owned()) && completed.contains(&"battery/512/Many/499".to_owned()), "{completed:?}");
}
