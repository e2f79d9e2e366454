//! The connection to the broker: TLS, authentication, restarts, refusals, brokers that hang, large packets.

use std::{
    io::Write,
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use venus_mqtt_integration::{
    Client, DEADLINE, Device, Item, PORTAL, Part, Rig, Setup,
    certs::Certs,
    eventually, item, items,
    mqtt::{Options, packet, read_packet, suback},
};

use crate::{BATTERY, TANK, battery, outages::reroute, tank};

fn serves(rig: &Rig, mqtt: &Client) {
    mqtt.mark();
    mqtt.keepalive("");
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    mqtt.completed();
    assert!(!rig.log(Part::Bridge).contains("panicked"));
}

fn tls(server_name: &str) -> (Certs, Setup) {
    let certs = Certs::make(server_name).expect("certificates");
    let setup = Setup::default()
        .file("ca.pem", certs.ca.clone())
        .file("other.pem", certs.other_ca.clone())
        .file("server.pem", certs.server.clone())
        .file("server.key", certs.server_key.clone())
        .file("client.pem", certs.client.clone())
        .file("client.key", certs.client_key.clone())
        .listener("allow_anonymous true")
        .listener("cafile {dir}/ca.pem")
        .listener("certfile {dir}/server.pem")
        .listener("keyfile {dir}/server.key");
    (certs, setup)
}

#[test]
fn tls_with_a_ca_of_ones_own() {
    let (_, setup) = tls("localhost");
    let mut rig = Rig::new(setup.host("localhost").mqtt("ca_file = \"{dir}/ca.pem\""));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    serves(&rig, &rig.listener());
}

#[test]
fn tls_with_an_address_for_a_name() {
    let (_, setup) = tls("127.0.0.1");
    let mut rig = Rig::new(setup.mqtt("ca_file = \"{dir}/ca.pem\""));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    serves(&rig, &rig.listener());
}

#[test]
fn tls_with_a_client_certificate() {
    let (_, setup) = tls("localhost");
    let setup = setup
        .host("localhost")
        .listener("require_certificate true")
        .listener("use_identity_as_username true")
        .mqtt("ca_file = \"{dir}/ca.pem\"");
    let with = setup.clone().mqtt("cert_file = \"{dir}/client.pem\"").mqtt("key_file = \"{dir}/client.key\"");
    let mut rig = Rig::new(with);
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    serves(&rig, &rig.listener());
    drop(rig);
    let mut without = Rig::new(setup);
    without.start(Part::Bridge);
    never_online(&mut without);
}

/// What a GX shows on port 8883: a certificate that is its own CA and has no alternative name (`openssl req -x509`).
const GX: &str = include_str!("../../../tests/tls/gx.pem");
const GX_KEY: &str = include_str!("../../../tests/tls/gx.key");

/// Pinned by `ca_file`, it is accepted by whatever name; another one is not, and the log says so.
#[test]
fn tls_with_the_certificate_of_a_gx() {
    let (_, setup) = tls("localhost");
    let setup = setup.file("gx.pem", GX).mqtt("ca_file = \"{dir}/gx.pem\"");
    let mut rig = Rig::new(setup.clone().file("server.pem", GX).file("server.key", GX_KEY));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    serves(&rig, &rig.listener());
    drop(rig);
    let mut rig = Rig::new(setup);
    rig.start(Part::Bridge);
    let line = never_online(&mut rig);
    assert!(line.contains("the broker's certificate is not the one in ") && line.contains("gx.pem"), "{line}");
}

/// The bridge tries, says why it fails, and stays. Gives the line.
fn never_online(rig: &mut Rig) -> String {
    let mqtt = rig.listener();
    let line = rig.await_log(Part::Bridge, "warn: no connection to the broker ");
    assert!(rig.runs(Part::Bridge));
    assert!(mqtt.on(&rig.status_topic()).is_empty());
    let of_the_library = ["Error", "Other(", "Context", "docs.rs"];
    assert!(!of_the_library.iter().any(|name| line.contains(name)), "{line}");
    line
}

#[test]
fn tls_refuses_whom_it_cannot_trust() {
    // a CA that has not signed it; a name it is not for; no CA at all, so only the system's
    for (name, host, line, why) in [
        ("localhost", "localhost", "ca_file = \"{dir}/other.pem\"", "the broker's certificate is not the one in "),
        ("broker.example", "localhost", "ca_file = \"{dir}/ca.pem\"", "is not for localhost, but for broker.example"),
        ("broker.example", "127.0.0.1", "ca_file = \"{dir}/ca.pem\"", "is not for 127.0.0.1, but for broker.example"),
        ("localhost", "localhost", "tls = true", "its issuer is unknown"),
    ] {
        let (_, setup) = tls(name);
        let mut rig = Rig::new(setup.host(host).mqtt(line));
        rig.start(Part::Bridge);
        let said = never_online(&mut rig);
        assert!(said.contains(why), "{said}");
        let log = rig.log(Part::Broker);
        assert!(!log.contains(" as venus-mqtt-"), "it connected all the same with {line} to {host}");
    }
}

/// TLS that does not come about for another reason than trust: the log says which.
#[test]
fn tls_that_fails_is_explained() {
    let (certs, setup) = tls("localhost");
    let setup = setup.host("localhost");
    let trusting = setup.clone().mqtt("ca_file = \"{dir}/ca.pem\"");
    let wants_client = trusting.clone().listener("require_certificate true");
    let foreign = Certs::make("localhost").expect("certificates");
    let foreign = wants_client
        .clone()
        .file("client.pem", foreign.client)
        .file("client.key", foreign.client_key)
        .mqtt("cert_file = \"{dir}/client.pem\"")
        .mqtt("key_file = \"{dir}/client.key\"");
    let expired = trusting.clone().file("server.pem", certs.expired.cert);
    let plain = Setup::default().file("ca.pem", certs.ca).host("localhost").mqtt("ca_file = \"{dir}/ca.pem\"");
    for (setup, why) in [
        (wants_client, "the broker wants a client certificate: name one with `cert_file` and `key_file`"),
        (foreign, "the broker refuses the client certificate in `cert_file`"),
        (expired, "the certificate expired on 2021-01-01, or the clock is wrong"),
        (plain, "is it its port for TLS (8883 at most brokers)?"),
        (setup, "is it a port for TLS? then set `tls` or `ca_file`"),
    ] {
        let mut rig = Rig::new(setup);
        rig.start(Part::Bridge);
        let said = never_online(&mut rig);
        assert!(said.contains(why), "{why:?} is not in {said}");
    }
}

/// Another server than a broker, which closes the connection after its answer or in the middle of it.
#[test]
fn what_does_not_speak_mqtt_is_explained() {
    let no_mqtt = "what answers does not speak MQTT: is ";
    for (answer, why) in [
        ("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_owned(), no_mqtt),
        (format!("HTTP/1.1 400 Bad Request\r\n\r\n{}", "x".repeat(200)), no_mqtt),
        ("SSH-2.0-OpenSSH_9\r\n".to_owned(), no_mqtt),
        // an alert of TLS, and the first half of a CONNACK
        ("\x15\x03\x03\0\x02\x02\x46".to_owned(), no_mqtt),
        ("\x20\x02".to_owned(), no_mqtt),
        ("\x20\x02\0\x06".to_owned(), "it refuses the connection with return code 6, which MQTT 3.1.1 does not have"),
    ] {
        let mut rig = Rig::new(Setup::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok).take(10) {
                let _ = read_packet(&mut stream);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        reroute(&rig, port);
        rig.start(Part::Bridge);
        let said = never_online(&mut rig);
        assert!(said.contains(why), "{why:?} is not in {said}");
        assert!(why != no_mqtt || said.contains(&format!("{port} its port for MQTT")), "{said}");
    }
}

#[test]
fn user_and_password() {
    let mosquitto_passwd = |password: &str| {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("passwd");
        let done = std::process::Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args(["bridge", password]).status();
        assert!(done.is_ok_and(|status| status.success()), "mosquitto_passwd comes with mosquitto");
        std::fs::read(file).expect("it wrote the file")
    };
    let setup = Setup::default()
        .file("passwd", mosquitto_passwd("right horse"))
        .file("password", "right horse\n")
        .file("wrong", "wrong horse\n")
        .listener("allow_anonymous false")
        .listener("password_file {dir}/passwd")
        .mqtt("user = \"bridge\"");
    let mut rig = Rig::new(setup.clone().mqtt("password_file = \"{dir}/password\""));
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    serves(&rig, &rig.listener());
    drop(rig);
    let mut rig = Rig::new(setup.mqtt("password_file = \"{dir}/wrong\""));
    rig.start(Part::Bridge);
    never_online(&mut rig);
    assert!(!rig.log(Part::Bridge).contains("wrong horse"));
}

#[test]
fn the_broker_may_come_later() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.kill(Part::Broker);
    rig.start(Part::Bridge);
    rig.fake().await_call(BATTERY, "GetItems /");
    rig.start(Part::Broker);
    let mqtt = eventually("the broker is back", DEADLINE, || Client::connect(rig.broker_address(), &Options::default()).ok());
    mqtt.subscribe("#");
    mqtt.expect(&rig.status_topic(), "online");
    serves(&rig, &mqtt);
}

/// Everything is subscribed to and published again at every connect; what changed meanwhile is what arrives.
#[test]
fn a_broker_that_restarts_is_served_again() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.awake();
    let files = rig.open_files(Part::Bridge);
    for n in 1..=3 {
        rig.kill(Part::Broker);
        for m in 0..200 {
            rig.fake().items_changed(BATTERY, items([("/Dc/0/Current", item(f64::from(m)))]));
        }
        rig.fake().items_changed(BATTERY, items([("/Dc/0/Current", item(1000.0 + f64::from(n)))]));
        rig.start(Part::Broker);
        let mqtt = eventually("the broker is back", DEADLINE, || Client::connect(rig.broker_address(), &Options::default()).ok());
        mqtt.subscribe("#");
        // still awake, so without being asked for
        mqtt.n("battery/512/Dc/0/Current", &format!("{{\"value\":{:?}}}", 1000.0 + f64::from(n)));
        let stale =
            mqtt.on(&mqtt.topic('N', "battery/512/Dc/0/Current")).iter().any(|message| message.text().len() < r#"{"value":1001.0}"#.len());
        assert!(!stale, "what queued during the outage is stale: {:?}", mqtt.since());
        // requests are heard from here on
        mqtt.expect(&rig.status_topic(), "online");
        mqtt.write("battery/512/Soc", r#"{"value":50}"#);
        mqtt.n("battery/512/Soc", r#"{"value":50}"#);
        mqtt.write("battery/512/Soc", r#"{"value":87.0}"#);
        mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
        serves(&rig, &mqtt);
    }
    assert_eq!(rig.open_files(Part::Bridge), files, "a connection was left open");
    let log = rig.log(Part::Bridge);
    assert!(!log.contains("another client uses the client ID"), "{log}");
}

both! {
    /// A pulled cable: nobody is told, the connection's own keep-alive notices.
    fn a_link_that_is_cut_off_is_noticed_and_comes_back(rig in Setup::default().proxied().mqtt("keep_alive = 2")) {
        rig.fake().add(BATTERY, battery());
        let mqtt = rig.awake();
        mqtt.mark();
        rig.cut_off();
        rig.fake().items_changed(BATTERY, items([("/Soc", item(1.0))]));
        mqtt.expect(&rig.status_topic(), "offline");
        rig.fake().items_changed(BATTERY, items([("/Soc", item(2.0))]));
        rig.reconnect();
        mqtt.expect(&rig.status_topic(), "online");
        mqtt.n("battery/512/Soc", r#"{"value":2.0}"#);
        mqtt.write("battery/512/Soc", r#"{"value":3}"#);
        mqtt.n("battery/512/Soc", r#"{"value":3}"#);
    }
}

/// A broker that hangs, and 5,000 changes a second: the bus side does not wait, memory stays flat, and the latest values are there
/// soon after it goes on, and not when TCP's own timer for a closed window, which has grown for 15 seconds, is due (3.5 s more).
#[test]
fn a_broker_that_hangs_makes_nobody_wait() {
    let mut rig = Rig::new(Setup::default().mqtt("keep_alive = 60"));
    let paths: Vec<String> = (0..50).map(|n| format!("/Flood/{n}")).collect();
    let mut all = tank();
    all.extend(paths.iter().map(|path| (path.clone(), item(0.0).0)));
    rig.fake().add(TANK, all);
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.awake();
    // warm: as it is under this load with a broker that listens
    rig.fake().flood(TANK, &paths, 100, Duration::from_millis(10));
    mqtt.n("tank/3/Flood/0", r#"{"value":100.0}"#);
    rig.pause(Part::Broker);
    let before = rig.rss(Part::Bridge);
    rig.fake().flood(TANK, &paths, 1500, Duration::from_millis(10));
    let mut slowest = Duration::ZERO;
    eventually("the flood is over", Duration::from_secs(60), || {
        let asked = Instant::now();
        let value = rig.fake().value(BATTERY, "/Soc").is_ok();
        slowest = slowest.max(asked.elapsed());
        assert!(value, "another service does not answer any more");
        let last = f64::try_from(&rig.fake().value(TANK, "/Flood/49").ok()?).ok()?;
        (last >= 1600.0).then_some(())
    });
    let after = rig.rss(Part::Bridge);
    assert!(slowest < Duration::from_millis(1000), "a call of another service took {slowest:?}");
    assert!(after < before + 4096, "RSS grew from {before} to {after} KiB");
    mqtt.mark();
    let resumed = Instant::now();
    rig.resume(Part::Broker);
    for path in &paths {
        mqtt.n(&format!("tank/3{path}"), r#"{"value":1600.0}"#);
    }
    assert!(resumed.elapsed() < Duration::from_secs(3), "{:?}", resumed.elapsed());
    assert!(rig.runs(Part::Bridge));
}

/// In both directions, on every kind of topic, without the connection being lost.
#[test]
fn packets_up_to_the_limit_pass() {
    let mut rig = Rig::new(Setup::default());
    let large = "x".repeat(200 * 1024);
    rig.fake().add(BATTERY, battery());
    rig.fake().items_changed(BATTERY, items([("/Large", Item::bare().with("Value", large.clone()))]));
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    mqtt.n("battery/512/Large", &format!("{{\"value\":\"{large}\"}}"));
    let connects = || rig.log(Part::Broker).matches(" as venus-mqtt-").count();
    let before = connects();
    // just below the limit, on every kind of topic
    let payload = vec![b'x'; 256 * 1024 - 200];
    mqtt.publish(&mqtt.topic('R', "battery/512/Soc"), &payload);
    mqtt.n("battery/512/Soc", r#"{"value":87.0}"#);
    mqtt.write("battery/512/Soc", &payload);
    mqtt.keepalive(&payload);
    serves(&rig, &mqtt);
    assert_eq!(connects(), before, "it lost the connection");
    assert!(rig.fake().calls_of(BATTERY, "SetValue").is_empty());
}

/// A packet beyond the limit costs nothing but itself: the connection stays, and the log says once what was passed over.
#[test]
fn packets_beyond_the_limit_are_passed_over() {
    let mut rig = Rig::new(Setup::devices());
    rig.fake().add(BATTERY, battery());
    let mqtt = rig.listener();
    // the first two come again at every connect
    let large = vec![b'x'; 300_000];
    mqtt.publish_retained("device/evil/Status", &large);
    mqtt.publish_retained(&mqtt.topic('N', "x/0/y"), &large);
    mqtt.barrier();
    rig.start_bridge();
    mqtt.write("battery/512/Soc", vec![b'x'; 3 * 1024 * 1024]);
    serves(&rig, &mqtt);
    mqtt.write("battery/512/Soc", r#"{"value": 55}"#);
    mqtt.n("battery/512/Soc", r#"{"value":55}"#);
    Device::connect(&rig, "fe001").register(r#"{"t1": "temperature"}"#);
    assert_eq!(rig.log(Part::Broker).matches(" as venus-mqtt-").count(), 1, "it lost the connection");
    rig.await_log(Part::Bridge, "on device/evil/Status is passed over");
    let log = rig.log(Part::Bridge);
    assert_eq!(log.lines().filter(|line| line.starts_with("warn: ") && line.contains("is passed over")).count(), 1);
    // what nobody stands for is cleared like a smaller one
    let topic = mqtt.topic('N', "x/0/y");
    eventually("it is cleared", DEADLINE, || rig.retained(&topic).is_empty().then_some(()));
    assert!(rig.retained("device/evil/Status").contains_key("device/evil/Status"));
}

/// A broker that grants nothing: said in the log, with the filter, and not in a busy loop.
#[test]
fn refused_subscriptions_are_reported() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok).take(100) {
            std::thread::spawn(move || refuse(stream));
        }
    });
    reroute(&rig, port);
    rig.start(Part::Bridge);
    eventually("a line about the refusal", DEADLINE, || {
        let log = rig.log(Part::Bridge);
        log.lines()
            .any(|line| (line.starts_with("error:") || line.starts_with("warn:")) && line.contains(&format!("R/{PORTAL}")))
            .then_some(())
    });
    assert!(rig.runs(Part::Bridge));
}

/// A broker that takes everyone and grants no subscription.
fn refuse(mut stream: TcpStream) -> Option<()> {
    loop {
        let (kind, body) = read_packet(&mut stream).ok()?;
        let answer = match kind >> 4 {
            1 => packet(0x20, &[0, 0]),
            8 => suback(&body, 0x80)?,
            12 => packet(0xd0, &[]),
            _ => continue,
        };
        stream.write_all(&answer).ok()?;
    }
}

fn serves_again(mqtt: &Client) {
    eventually("it serves again", DEADLINE * 3, || {
        mqtt.keepalive("");
        mqtt.barrier();
        mqtt.since().iter().any(|message| message.topic.ends_with("full_publish_completed")).then_some(())
    });
}

/// With the client ID of the bridge; connects when it is wanted.
fn rival(rig: &Rig) -> Client {
    let options = Options { client_id: format!("venus-mqtt-{PORTAL}"), ..Options::default() };
    Client::connect(rig.broker_address(), &options).expect("the broker takes it")
}

/// Two with the same client ID throw each other out: neither may do so in a busy loop, and the log names the reason, once.
#[test]
fn a_client_id_used_twice_is_named() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.start_bridge();
    let mqtt = rig.listener();
    let connects = || rig.log(Part::Broker).matches(" as venus-mqtt-").count();
    let began = Instant::now();
    let mut other = rival(&rig);
    let line = eventually("the reason", Duration::from_secs(60), || {
        // whoever is awake has the daemon publish as soon as it can
        mqtt.keepalive("");
        if other.is_closed() {
            other = rival(&rig);
        }
        let log = rig.log(Part::Bridge);
        log.lines().find(|line| line.contains("another client uses the client ID")).map(str::to_owned)
    });
    assert!(line.starts_with("warn: the connection to the broker ") && line.contains("give one of them another `client_id`"), "{line}");
    let most = 12 + 2 * began.elapsed().as_secs() as usize;
    assert!(connects() < most, "{} connects in {:?}", connects(), began.elapsed());
    drop(other);
    serves_again(&mqtt);
    let log = rig.log(Part::Bridge);
    assert!(!log.contains("left out"), "{log}");
    assert_eq!(log.lines().filter(|line| line.starts_with("warn: ") && line.contains("another client uses the client ID")).count(), 1);
}

/// A message that the broker refuses is found although somebody else ends the connection, too; nothing else is left out.
#[test]
fn a_refused_message_is_found_beside_a_takeover() {
    let mut rig = Rig::new(Setup::default().broker("max_packet_size 2000"));
    rig.fake().add(BATTERY, battery());
    let mut all = tank();
    all.insert("/Large".into(), item("x".repeat(5000)).0);
    rig.fake().add(TANK, all);
    rig.start_bridge();
    let mqtt = rig.listener();
    mqtt.keepalive("");
    for _ in 0..2 {
        let other = rival(&rig);
        eventually("the bridge is back", Duration::from_secs(60), || other.is_closed().then_some(()));
    }
    let line = eventually("the message", DEADLINE * 3, || {
        mqtt.keepalive("");
        rig.log(Part::Bridge).lines().find(|line| line.contains("is left out")).map(str::to_owned)
    });
    assert!(line.contains("tank/3/Large"), "{line}");
    serves_again(&mqtt);
    assert_eq!(rig.log(Part::Bridge).matches("left out").count(), 1);
}

/// Accepts the client, answers its PINGREQs until it subscribes, and closes the connection after half a second.
fn throws_out(mut stream: TcpStream) -> Option<()> {
    let until = Instant::now() + Duration::from_millis(500);
    let mut has_subscribed = false;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        stream.set_read_timeout(Some(left)).ok()?;
        let (kind, _) = read_packet(&mut stream).ok()?;
        let answer = match kind >> 4 {
            1 => packet(0x20, &[0, 0]),
            12 if !has_subscribed => packet(0xd0, &[]),
            8 => {
                has_subscribed = true;
                continue;
            }
            _ => continue,
        };
        stream.write_all(&answer).ok()?;
    }
}

/// Whenever the other one comes while a subscription is not confirmed: that is not to blame.
#[test]
fn a_takeover_is_not_put_down_to_a_subscription() {
    let mut rig = Rig::new(Setup::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok).take(100) {
            std::thread::spawn(move || throws_out(stream));
        }
    });
    reroute(&rig, port);
    rig.start(Part::Bridge);
    rig.await_log(Part::Bridge, "most likely another client uses the client ID");
    // the next one has ended as well
    rig.await_log(Part::Bridge, "debug: the connection to the broker ");
    assert!(!rig.log(Part::Bridge).contains("left out"), "{}", rig.log(Part::Bridge));
}

/// One that waits a second before it connects again, as `mosquitto_sub` and most libraries do.
#[test]
fn a_client_id_that_a_common_client_uses_is_named() {
    let mut rig = Rig::new(Setup::default());
    rig.fake().add(BATTERY, battery());
    rig.awake();
    let port = rig.broker_address().port().to_string();
    let mut rival = std::process::Command::new("mosquitto_sub")
        .args(["-p", &port, "-i", &format!("venus-mqtt-{PORTAL}"), "-t", "nothing"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("mosquitto_sub comes with mosquitto's clients");
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("the reason", Duration::from_secs(60), || {
            let log = rig.log(Part::Bridge);
            log.contains("another client uses the client ID").then_some(())
        });
    }));
    let _ = rival.kill();
    let _ = rival.wait();
    assert!(found.is_ok() && !rig.log(Part::Bridge).contains("left out"), "{}", rig.log(Part::Bridge));
    serves_again(&rig.listener());
}
