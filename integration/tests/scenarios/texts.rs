//! Texts that become topics and filters: what our own checks accept, the broker accepts; what they refuse never reaches it.

use venus_mqtt::bridge::topic::{LEVELS_MAX, TOPIC_MAX, check_filter, check_topic, to_level};
use venus_mqtt_integration::{Client, Device, PORTAL, Part, Rig, Setup, device::name, eventually, item, items};

use crate::{BATTERY, battery};

/// Characters that brokers treat in a way of their own, and their neighbours.
const NASTY: &[char] = &[
    '\0',
    '\u{1}',
    '\t',
    '\n',
    '\u{1f}',
    ' ',
    '!',
    '"',
    '#',
    '$',
    '%',
    '*',
    '+',
    '.',
    '/',
    '\\',
    '~',
    '\u{7f}',
    '\u{80}',
    '\u{85}',
    '\u{9f}',
    '\u{a0}',
    '\u{ad}',
    'ß',
    '\u{200b}',
    '\u{2028}',
    '\u{202e}',
    '\u{d7ff}',
    '\u{e000}',
    '\u{fdcf}',
    '\u{fdd0}',
    '\u{fdef}',
    '\u{fdf0}',
    '\u{feff}',
    '\u{fffd}',
    '\u{fffe}',
    '\u{ffff}',
    '\u{10000}',
    '\u{1fffd}',
    '\u{1fffe}',
    '\u{e0001}',
    '\u{10fffd}',
    '\u{10fffe}',
    '\u{10ffff}',
];

/// Each nasty character in each place, long and deep texts, and a thousand mixtures (the same ones each time).
fn texts() -> Vec<String> {
    let mut texts: Vec<String> =
        NASTY.iter().flat_map(|c| [format!("{c}"), format!("{c}a"), format!("a{c}"), format!("a/{c}/b"), format!("{c}/{c}")]).collect();
    for n in [LEVELS_MAX - 1, LEVELS_MAX, LEVELS_MAX + 1, 200, 201, 202] {
        texts.extend([vec!["a"; n].join("/"), vec!["+"; n].join("/"), "/".repeat(n - 1)]);
    }
    for n in [TOPIC_MAX - 1, TOPIC_MAX, TOPIC_MAX + 1, 65_535] {
        texts.extend(["a".repeat(n), "\u{10fffd}".repeat(n / 4)]);
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for _ in 0..1000 {
        let length = 1 + next(6);
        // plain ones between, so that more than a few are accepted
        texts.push((0..length).map(|_| if next(2) == 0 { ['a', '/', '+', '#'][next(4)] } else { NASTY[next(NASTY.len())] }).collect());
    }
    texts
}

#[test]
fn what_we_accept_the_broker_accepts() {
    let rig = Rig::new(Setup::default());
    let client = rig.client();
    let stays = |client: &Client, what: &str, text: &str| {
        client.barrier_or_closed();
        assert!(!client.is_closed(), "Mosquitto closes the connection over the {what} {text:?}");
    };
    let (mut topics, mut filters) = (0, 0);
    for text in texts() {
        if check_topic(&text).is_ok() {
            topics += 1;
            client.publish(&text, "x");
            stays(&client, "topic", &text);
            let behind = format!("boat/N/{PORTAL}/tank/{}", to_level(&text, 64));
            assert_eq!(check_topic(&behind), Ok(()), "{text:?}");
        }
        if check_filter(&text).is_ok() {
            filters += 1;
            assert_ne!(client.subscribe(&text), 0x80, "{text:?}");
            stays(&client, "filter", &text);
        }
        // whatever stands in it: as an instance it can be published
        let instance = format!("N/{PORTAL}/tank/{}/Level", to_level(&text, 64));
        client.publish(&instance, "x");
        stays(&client, "topic", &instance);
    }
    assert!(topics > 200 && filters > topics, "{topics} topics, {filters} filters: too few to say anything");
}

fn connects(rig: &Rig) -> usize {
    rig.log(Part::Broker).matches("as venus-mqtt-").count()
}

/// A will that the broker does not take, and devices that an earlier version has noted with one: the connection is made once.
#[test]
fn a_will_that_no_broker_takes() {
    let noted = r#"{"version":1,"devices":[
        {"clientId":"old","topics":["old","o/#"],"version":"v1","connected":true,"lwt":{"topic":"x\ufffe","value":"false"},"services":[{"id":"t","type":"tank"}]},
        {"clientId":"a\uffff","topics":["a\uffff"],"version":"","connected":true,"lwt":null,"services":[{"id":"t","type":"tank"}]}]}"#;
    let mut rig = Rig::new(Setup::devices());
    std::fs::create_dir_all(rig.dir().join("state")).expect("a folder");
    std::fs::write(rig.dir().join("state/devices.json"), noted).expect("written");
    rig.fake().add(BATTERY, battery());
    // the instance is a text from the bus
    rig.fake().add("com.victronenergy.grid.odd", items([("/Identifier", item("a\u{ffff}/\u{85}#")), ("/Ac/Power", item(5))]));
    rig.start_bridge();
    rig.fake().await_name(&name("tank", "old", "t"));
    for line in [r#"the registry: device "old": lwt_topic contains \u{fffe}"#, r#"the registry: device "a\u{ffff}" is left out"#] {
        rig.await_log(Part::Bridge, line);
    }
    for escape in ["\\ufffe", "\\u0001", "\\u009f", "\\ufdd0", "\\ud83f\\udfff"] {
        let device = Device::connect(&rig, "x");
        device.mqtt.mark();
        device.status(format!(r#"{{"connected":1,"services":{{"t":"tank"}},"lwt_topic":"x{escape}"}}"#));
        let error = device.mqtt.expect_topic(&device.topic("Error"));
        assert!(error.text().contains("lwt_topic contains"), "{error:?}");
    }
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("grid/a____/Ac/Power", r#"{"value":5}"#);
    mqtt.completed();
    eventually("the broker has said who connected", venus_mqtt_integration::DEADLINE, || (connects(&rig) > 0).then_some(()));
    assert_eq!(connects(&rig), 1, "{}", rig.log(Part::Broker));
}
