//! A broker, or a link to it, that is slow, dead or deaf, and one that closes the connection over what it does not accept.

use std::{
    io::Write,
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use venus_mqtt_integration::{
    Client, DEADLINE, Ended, Items, PORTAL, Part, Rig, Setup, eventually, item, items,
    mqtt::{Options, packet, read_packet, suback},
    proxy::Proxy,
};

use crate::{BATTERY, TANK, battery, tank};

/// From now on the bridge reaches the broker by this port.
pub(crate) fn reroute(rig: &Rig, port: u16) {
    let config = std::fs::read_to_string(rig.config()).expect("written by the rig");
    let lines = config.lines().map(|line| if line.starts_with("port = ") { format!("port = {port}") } else { line.into() });
    std::fs::write(rig.config(), lines.collect::<Vec<_>>().join("\n")).expect("the rig's folder takes files");
}

/// A rig whose bridge comes by way of a proxy, and a tank with so many items more.
fn proxied(setup: Setup, count: usize) -> (Rig, Proxy, Vec<String>) {
    let rig = Rig::new(setup);
    let proxy = Proxy::start(rig.broker_address()).expect("a port");
    reroute(&rig, proxy.address().port());
    let paths: Vec<String> = (0..count).map(|n| format!("/Flood/{n}")).collect();
    let mut all: Items = tank();
    all.extend(paths.iter().map(|path| (path.clone(), item(0.0).0)));
    rig.fake().add(TANK, all);
    rig.fake().add(BATTERY, battery());
    (rig, proxy, paths)
}

/// The default keep-alive is 20 s. Returns after how long the bridge has made another connection.
fn noticed(rig: &Rig, proxy: &Proxy) -> Duration {
    let began = Instant::now();
    proxy.freeze();
    eventually("the bridge connects again", Duration::from_secs(60), || (proxy.connections() > 1).then_some(()));
    rig.await_log(Part::Bridge, "it does not answer any more");
    began.elapsed()
}

/// A keep-alive that comes before the bridge has subscribed is lost.
fn answers_again(mqtt: &Client) {
    mqtt.mark();
    eventually("a keep-alive is answered", DEADLINE, || {
        mqtt.keepalive("");
        mqtt.barrier();
        mqtt.since().iter().any(|message| message.topic.ends_with("full_publish_completed")).then_some(())
    });
}

#[test]
fn a_link_that_dies_is_noticed_within_35_s() {
    let (mut rig, proxy, _) = proxied(Setup::default(), 1);
    let mqtt = rig.awake();
    let after = noticed(&rig, &proxy);
    assert!(after <= Duration::from_secs(35), "{after:?}");
    answers_again(&mqtt);
}

#[test]
fn a_link_that_dies_under_load_is_noticed_within_35_s() {
    let (mut rig, proxy, paths) = proxied(Setup::default(), 50);
    rig.awake();
    rig.fake().flood(TANK, &paths, 6000, Duration::from_millis(10));
    let after = noticed(&rig, &proxy);
    assert!(after <= Duration::from_secs(35), "{after:?}");
}

/// Its kernel acknowledges what is sent, and it answers nothing.
#[test]
fn a_broker_that_stops_is_noticed_within_35_s() {
    let (mut rig, _proxy, _) = proxied(Setup::default(), 1);
    rig.awake();
    let began = Instant::now();
    rig.pause(Part::Broker);
    eventually("a line about it", Duration::from_secs(60), || rig.log(Part::Bridge).contains("it does not answer any more").then_some(()));
    assert!(began.elapsed() <= Duration::from_secs(35), "{:?}", began.elapsed());
    rig.resume(Part::Broker);
}

/// 2,500 changes a second on a link that carries some thirty: requests wait for no more than a window, the latest values come in the
/// end, and the connection stays.
#[test]
fn a_slow_link_settles_with_the_latest_values() {
    // awake however long it takes on this machine
    let (mut rig, proxy, paths) = proxied(Setup::default().bridge("always_on = true"), 200);
    proxy.limit(2000);
    let mqtt = rig.awake();
    rig.fake().flood(TANK, &paths, 2000, Duration::from_millis(10));
    for n in 0..3 {
        mqtt.write("battery/512/Soc", format!(r#"{{"value":{n}}}"#));
        eventually("the write is carried out", DEADLINE, || (rig.fake().calls_of(BATTERY, "SetValue").len() > n).then_some(()));
        mqtt.mark();
        mqtt.read("battery/512/Dc/0/Voltage");
        let answer = mqtt.topic('N', "battery/512/Dc/0/Voltage");
        mqtt.wait_within("the answer", DEADLINE, |messages| messages.iter().any(|message| message.topic == answer).then_some(()));
        // behind what was on the link, which is a window, and not behind all that waits
        let before = mqtt.since().iter().position(|message| message.topic == answer);
        assert!(before.is_some_and(|before| before < 150), "{before:?}");
    }
    let last = eventually("the flood is over", Duration::from_secs(60), || {
        let last = f64::try_from(&rig.fake().value(TANK, "/Flood/199").ok()?).ok()?;
        (last >= 2000.0).then_some(last)
    });
    let wanted = format!(r#"{{"value":{last:?}}}"#);
    for path in &paths {
        let topic = mqtt.topic('N', &format!("tank/3{path}"));
        mqtt.wait_within(path, DEADLINE, |messages| {
            messages.iter().any(|message| message.topic == topic && message.text() == wanted).then_some(())
        });
    }
    assert_eq!(proxy.connections(), 1, "it lost the connection");
}

/// What is retained from an earlier run would take the link for a minute.
#[test]
fn a_sweep_on_a_slow_link_holds_up_no_request() {
    let (mut rig, proxy, _) = proxied(Setup::default(), 1000);
    let mqtt = rig.awake();
    mqtt.publish_retained(&mqtt.topic('N', "gone/0/X"), r#"{"value":1}"#);
    rig.kill(Part::Bridge);
    mqtt.barrier();
    mqtt.mark();
    proxy.limit(1500);
    rig.start_bridge();
    for n in 0..3 {
        mqtt.write("battery/512/Soc", format!(r#"{{"value":{n}}}"#));
        eventually("the write is carried out", DEADLINE, || (rig.fake().calls_of(BATTERY, "SetValue").len() > n).then_some(()));
    }
    let gone = mqtt.topic('N', "gone/0/X");
    mqtt.wait_within("the stale topic is cleared", DEADLINE * 3, |messages| {
        messages.iter().any(|message| message.topic == gone && message.payload.is_empty()).then_some(())
    });
}

/// A broker that takes everyone, answers PINGREQs, and nothing else.
fn deaf(mut stream: TcpStream) -> Option<()> {
    loop {
        let answer = match read_packet(&mut stream).ok()?.0 >> 4 {
            1 => packet(0x20, &[0, 0]),
            12 => packet(0xd0, &[]),
            _ => continue,
        };
        stream.write_all(&answer).ok()?;
    }
}

#[test]
fn a_broker_that_answers_no_subscribe_is_left() {
    let mut rig = Rig::new(Setup::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    reroute(&rig, listener.local_addr().expect("bound").port());
    let (made, connections) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok).take(10) {
            let _ = made.send(());
            std::thread::spawn(move || deaf(stream));
        }
    });
    rig.start(Part::Bridge);
    for _ in 0..2 {
        connections.recv_timeout(DEADLINE * 3).expect("another connection");
    }
    rig.await_log(Part::Bridge, "it does not answer a SUBSCRIBE");
}

/// A broker that closes the connection over a packet that is too large, as Mosquitto does: that item is left out, and no older value of it
/// stays retained; the others come.
#[test]
fn an_item_that_the_broker_does_not_take_costs_only_itself() {
    let mut rig = Rig::new(Setup::default().broker("max_packet_size 2000"));
    rig.fake().add(BATTERY, battery());
    let mut all = tank();
    all.insert("/Large".into(), item("small").0);
    rig.fake().add(TANK, all);
    let mqtt = rig.awake();
    mqtt.n("tank/3/Large", r#"{"value":"small"}"#);
    let grow = |text: String| rig.fake().items_changed(TANK, venus_mqtt_integration::items([("/Large", item(text))]));
    mqtt.mark();
    grow("x".repeat(5000));
    let line = rig.await_log(Part::Bridge, "is left out");
    assert!(line.starts_with("warn: ") && line.contains(&format!("N/{PORTAL}/tank/3/Large")), "{line}");
    mqtt.expect(&mqtt.topic('N', "tank/3/Large"), "");
    let connects = |rig: &Rig| rig.log(Part::Broker).matches(" as venus-mqtt-").count();
    let serves = |mqtt: &Client| {
        mqtt.mark();
        mqtt.keepalive("");
        mqtt.completed();
        mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
        mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    };
    answers_again(&mqtt);
    serves(&mqtt);
    let before = connects(&rig);
    assert!(before <= 4, "{before} connections");
    for n in 0..5 {
        grow("y".repeat(5000 + n));
        mqtt.read("tank/3/Large");
        serves(&mqtt);
    }
    assert_eq!(connects(&rig), before, "it lost the connection again");
    let fresh = Client::connect(rig.broker_address(), &Options::default()).expect("the broker takes it");
    let retained = fresh.retained(&mqtt.topic('N', "tank/3/#"));
    assert!(
        !retained.contains_key(&mqtt.topic('N', "tank/3/Large")) && retained.contains_key(&mqtt.topic('N', "tank/3/Level")),
        "{retained:?}"
    );
    // a value that fits is published
    let publishes = |text: &str| {
        mqtt.mark();
        grow(text.into());
        mqtt.n("tank/3/Large", &format!(r#"{{"value":"{text}"}}"#));
    };
    publishes("short");
    // another one that does not, smaller than the first: nothing older stays, and smaller ones are published again
    let topic = mqtt.topic('N', "tank/3/Large");
    grow("z".repeat(3000));
    let overhead = 3 + 2 + topic.len() + r#"{"value":""}"#.len();
    rig.await_log(Part::Bridge, &format!("at a message of {} bytes on {topic}", 3000 + overhead));
    let within = Duration::from_secs(60);
    eventually("it is cleared", within, || (!rig.retained(&topic).contains_key(&topic)).then_some(()));
    answers_again(&mqtt);
    for fits in [1500, 100, 50] {
        publishes(&"z".repeat(fits));
    }
    let before = connects(&rig);
    grow("y".repeat(3000));
    mqtt.expect(&topic, "");
    serves(&mqtt);
    publishes("last");
    grow("y".repeat(4000));
    mqtt.expect(&topic, "");
    assert_eq!(connects(&rig), before, "it lost the connection again");
    rig.stop(Part::Bridge);
    rig.await_retained_items(&[]);
}

/// Answers everything up to the first message after the subscriptions. False if the client goes first.
fn takes_no_message(stream: &mut TcpStream) -> bool {
    let mut pings = 0;
    while let Ok((kind, body)) = read_packet(stream) {
        let answer = match kind >> 4 {
            1 => packet(0x20, &[0, 0]),
            3 if pings > 1 => return true,
            8 => suback(&body, 0).expect("a SUBSCRIBE"),
            10 => packet(0xb0, &body[..2]),
            12 => {
                pings += 1;
                packet(0xd0, &[])
            }
            _ => continue,
        };
        if stream.write_all(&answer).is_err() {
            break;
        }
    }
    false
}

/// A broker that exits at a message has not refused it, however often; one that closes the connection and accepts another has.
#[test]
fn a_broker_that_ends_refuses_no_message() {
    for ends in [true, false] {
        let mut rig = Rig::new(Setup::default());
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        reroute(&rig, address.port());
        rig.start(Part::Bridge);
        let mut closed = 0;
        while closed < 4 {
            let (mut stream, _) = listener.accept().expect("a connection");
            if !takes_no_message(&mut stream) {
                continue;
            }
            closed += 1;
            if ends {
                drop(listener);
                drop(stream);
                // as long as a restart takes: the bridge looks at once whether the port is open
                std::thread::sleep(Duration::from_millis(300));
                listener = TcpListener::bind(address).expect("the same port");
            } else if rig.log(Part::Bridge).contains("is left out") {
                break;
            }
        }
        if ends {
            // the bridge has said what it makes of the last time before it connects again
            listener.accept().expect("a connection");
            assert!(!rig.log(Part::Bridge).contains("left out"), "{}", rig.log(Part::Bridge));
        } else {
            rig.await_log(Part::Bridge, "is left out");
        }
    }
}

/// A broker's limit of packets is found by two of the items beyond it, and not by each of them.
#[test]
fn a_limit_of_the_broker_is_learned() {
    let mut rig = Rig::new(Setup::default().broker("max_packet_size 3000"));
    rig.fake().add(BATTERY, battery());
    let mut all = tank();
    all.extend((0..100).map(|n| (format!("/T{n}"), item("x".repeat(5000)).0)));
    rig.fake().add(TANK, all);
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    let line = rig.await_log(Part::Bridge, "are left out on all topics");
    assert!(line.starts_with("warn: the broker closes the connection at large messages"), "{line}");
    answers_again(&mqtt);
    mqtt.mark();
    mqtt.keepalive("");
    mqtt.completed();
    mqtt.n("tank/3/Level", r#"{"value":0.5}"#);
    let connects = rig.log(Part::Broker).matches(" as venus-mqtt-").count();
    assert!(connects <= 7, "{connects} connections");
    let left_out = || rig.log(Part::Bridge).matches("left out").count();
    eventually("three lines", DEADLINE, || (left_out() >= 3).then_some(()));
    assert_eq!(left_out(), 3);
}

/// Topics whose messages are smaller and smaller are not tried one by one; everything else is published.
#[test]
fn a_limit_of_the_broker_is_learned_from_shrinking_messages() {
    let mut rig = Rig::new(Setup::default().bridge("always_on = true").broker("max_packet_size 2000"));
    let mut all = battery();
    all.extend((0..14).map(|n| (format!("/T/{n:02}"), item("x".repeat(5000 - n * 200)).0)));
    all.extend(items([("/Zz", item(3))]));
    rig.fake().add(BATTERY, all);
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.n("battery/512/Zz", r#"{"value":3}"#);
    let connects = rig.log(Part::Broker).matches(" as venus-mqtt-").count();
    assert!(connects <= 9, "{connects} connections");
    // what was not published is not looked for
    rig.await_log(Part::Broker, "Received UNSUBSCRIBE from venus-mqtt-");
    assert!(!rig.log(Part::Bridge).contains("leaves out retained messages"), "{}", rig.log(Part::Bridge));
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    rig.await_retained_items(&[]);
}

/// The pause before the next connection does not keep values retained.
#[test]
fn a_stop_between_two_connections_clears_what_is_retained() {
    let mut rig = Rig::new(Setup::default().bridge("always_on = true").broker("max_packet_size 3000"));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    rig.await_retained_items(&["battery/512/Dc/0/Current", "battery/512/Dc/0/Voltage", "battery/512/DeviceInstance", "battery/512/Soc"]);
    rig.fake().items_changed(BATTERY, items([("/Soc", item("x".repeat(5000)))]));
    rig.await_log(Part::Bridge, "it closed the connection");
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    rig.await_retained_items(&[]);
}

/// Without a broker nothing can be cleared, and the stop does not wait for one.
#[test]
fn a_stop_without_a_broker_says_what_stays() {
    let mut rig = Rig::new(Setup::default().bridge("always_on = true"));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    rig.listener().n("battery/512/Soc", r#"{"value":87.0}"#);
    rig.kill(Part::Broker);
    rig.await_log(Part::Bridge, "it closed the connection");
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    rig.await_log(Part::Bridge, "4 values stay retained there until the next start");
}

/// A broker that is restarted while something is on its way has refused nothing: the connection is used at once.
#[test]
fn a_broker_that_restarts_is_used_at_once() {
    let mut rig = Rig::new(Setup::default().bridge("always_on = true"));
    let paths: Vec<String> = (0..20).map(|n| format!("/T/{n}")).collect();
    let mut all = tank();
    all.extend(paths.iter().map(|path| (path.clone(), item(0.0).0)));
    rig.fake().add(TANK, all);
    rig.start_bridge();
    rig.fake().flood(TANK, &paths, 600, Duration::from_millis(5));
    rig.listener().n("tank/3/T/0", r#"{"value":100.0}"#);
    rig.stop(Part::Broker);
    let before = rig.log(Part::Broker).len();
    rig.start(Part::Broker);
    let log = || rig.log(Part::Broker).split_off(before);
    eventually("it subscribes again", DEADLINE, || log().contains("Received SUBSCRIBE from venus-mqtt-").then_some(()));
    eventually("it publishes again", DEADLINE, || log().contains("/tank/3/T/0'").then_some(()));
    let log = log();
    let until = log.find("Received SUBSCRIBE").expect("it was there");
    let pings = log[..until].matches("Received PINGREQ").count();
    assert!(pings <= 3, "{pings} PINGREQs before the first SUBSCRIBE");
}

/// A failure that repeats is one line, whatever the reasons are, and its end another.
#[test]
fn a_failure_that_repeats_is_one_line() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.kill(Part::Broker);
    rig.start(Part::Bridge);
    rig.await_log(Part::Bridge, "no connection to the broker");
    let attempts = |rig: &Rig| rig.log(Part::Bridge).matches("no connection to the broker").count();
    eventually("more attempts", DEADLINE, || (attempts(&rig) >= 3).then_some(()));
    rig.start(Part::Broker);
    rig.await_log(Part::Bridge, "connected to the broker");
    let log = rig.log(Part::Bridge);
    let lines = log.lines().filter(|line| line.contains("the broker 127.0.0.1:") && !line.starts_with("debug: "));
    assert_eq!(lines.count(), 2, "{log}");
}
