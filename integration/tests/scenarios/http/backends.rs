//! Backends and the ways to them: several at a time, slow ones, TLS, proxies, connections that are kept.

use std::time::{Duration, Instant};

use venus_mqtt_integration::{Answer, Backend, DEADLINE, Part, Rig, Setup, certs::Certs, proxy::Proxy};

use super::{CHARGER, FAST, assert_in_order, assert_once, await_all, await_measured, charger, running, said};
use crate::{BATTERY, battery};

/// Each has a queue and a pace of its own: one that is down and one that hangs cost the others nothing.
#[test]
fn each_on_its_own() {
    let (good, down, hung) = (Backend::start(), Backend::start(), Backend::start());
    down.down();
    hung.answer(Answer::Hang);
    let section = |backend: &Backend, name: &str| backend.section(&format!("{FAST}name = \"{name}\"\n"));
    let setup = Setup::default().http(&section(&down, "down")).http(&section(&hung, "hung")).http(&section(&good, "good"));
    let rig = running(setup);
    let delivered = good.await_delivered(30);
    assert_once(&delivered);
    assert_eq!(hung.requests().len(), 1, "one request at a time");
    assert!(said(&rig, "http good: ").iter().all(|line| !line.starts_with("warn:")));
    assert!(super::measured(&rig, "down").len() >= 20);
    rig.await_log(Part::Bridge, "http down: ");
    down.up();
    down.wait("the first one", DEADLINE, |requests| requests.iter().any(|request| request.delivered()).then_some(()));
}

both! {
    /// A backend that hangs is nobody else's business: what is written arrives on the bus and comes back at once.
    fn one_that_hangs_blocks_nothing(rig in Setup::default()) {
        rig.fake().add(BATTERY, battery());
        let backend = Backend::on(rig.host());
        backend.answer(Answer::Hang);
        rig.configure(rig.setup().clone().http(&backend.section(FAST)));
        rig.fake().add(CHARGER, charger());
        let mqtt = rig.awake();
        backend.await_requests(1);
        for n in 1..=20 {
            mqtt.write("battery/512/Soc", format!(r#"{{"value": {n}.25}}"#));
            mqtt.n("battery/512/Soc", &format!(r#"{{"value":{n}.25}}"#));
        }
        assert_eq!(backend.requests().len(), 1, "the exchange should still have been under way, or nothing was shown");
        // nor does it keep the process from ending
        let asked = Instant::now();
        rig.stop(Part::Bridge);
        assert!(asked.elapsed() < Duration::from_millis(3000), "{:?}", asked.elapsed());
    }
}

/// One at a time, also when the answers are slower than the measurements.
#[test]
fn one_in_flight() {
    let backend = Backend::start();
    backend.answer(Answer::Slow(Duration::from_millis(250)));
    let rig = running(Setup::default().http(&backend.section(FAST)));
    let requests = backend.await_requests(6);
    for pair in requests.windows(2) {
        assert!(pair[1].at - pair[0].at >= Duration::from_millis(240), "{:?}", pair[1].at - pair[0].at);
        assert!(pair[0].status.is_some(), "the next one came before the answer");
    }
    assert_eq!(said(&rig, "warn:").iter().filter(|line| line.contains("http 1")).count(), 0);
}

/// A handshake for each post would be too much at the pace of an outage's end.
#[test]
fn connections_are_kept() {
    let backend = Backend::start();
    let _rig = running(Setup::default().http(&backend.section(FAST)));
    backend.await_delivered(20);
    assert!(backend.connections() <= 2, "{} connections", backend.connections());
}

/// Servers close connections that were idle: that costs no measurement, no wait and no line.
#[test]
fn a_kept_connection_that_was_closed_meanwhile() {
    let backend = Backend::start();
    let rig = running(Setup::default().http(&backend.section("update_interval = 0.5\ncatch_up_rate = 1000")));
    for n in 1..=5 {
        backend.await_delivered(n);
        backend.close_connections();
    }
    backend.await_delivered(6);
    // closed between two posts, and not during one, all but by chance: none of them may have failed twice in a row
    assert!(backend.connections() >= 5);
    let troubles = said(&rig, "warn:").into_iter().filter(|line| line.contains("http 1")).collect::<Vec<_>>();
    assert_eq!(troubles, [""; 0]);
}

#[test]
fn compressed() {
    let backend = Backend::start();
    let _rig = running(Setup::default().http(&backend.section("update_interval = 0.1\ngzip = true")));
    let request = backend.await_delivered(1).remove(0);
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    assert_eq!(request.json()["devices"][0]["yield_power_w"], 16.38);
    let length: usize = request.header("content-length").and_then(|length| length.parse().ok()).expect("a length");
    assert!(length < request.body.len(), "{length} bytes for {}", request.body.len());
}

fn with_ca(certs: &Certs, ca: &str) -> Setup {
    Setup::default().file("ca.pem", if ca == "other" { certs.other_ca.clone() } else { certs.ca.clone() })
}

#[test]
fn tls() {
    let certs = Certs::make("localhost").expect("certificates");
    let backend = Backend::tls(&certs.server_identity());
    let url = backend.url_as("localhost");
    let rig = running(with_ca(&certs, "own").http(&format!("url = \"{url}\"\nca_file = \"{{dir}}/ca.pem\"\n{FAST}")));
    backend.await_delivered(10);
    assert!(backend.connections() <= 2, "{} handshakes", backend.connections());
    assert_in_order(&await_all(&rig, &backend));
}

/// What cannot be trusted gets nothing, the log says why in words, and everything waits.
#[test]
fn tls_refuses_whom_it_cannot_trust() {
    let certs = Certs::make("localhost").expect("certificates");
    let other = Certs::make("backend.example").expect("certificates");
    for (identity, ca, why) in [
        (certs.expired.clone(), "own", "expired"),
        (certs.server_identity(), "other", "not trusted"),
        (certs.server_identity(), "none", "not trusted"),
        (other.server_identity(), "own of the other", "not for localhost"),
    ] {
        let backend = Backend::tls(&identity);
        let url = backend.url_as("localhost");
        let setup = with_ca(if ca == "own of the other" { &other } else { &certs }, ca);
        let ca_line = if ca == "none" { "" } else { "ca_file = \"{dir}/ca.pem\"\n" };
        let rig = running(setup.http(&format!("url = \"{url}\"\n{ca_line}{FAST}")));
        let line = rig.await_log(Part::Bridge, "warn: http 1: ");
        assert!(line.contains(why), "{why:?} is not in {line}");
        await_measured(&rig, 5);
        assert!(backend.requests().is_empty());
        assert_eq!(said(&rig, "warn: http 1: ").len(), 1);
    }
}

/// A port that speaks no TLS.
#[test]
fn tls_that_is_none() {
    let backend = Backend::start();
    let url = backend.url().replace("http:", "https:");
    let rig = running(Setup::default().http(&format!("url = \"{url}\"\n{FAST}")));
    let line = rig.await_log(Part::Bridge, "warn: http 1: ");
    assert!(line.contains("TLS"), "{line}");
}

/// The proxy of the environment finds the backend, which has a name that only it knows.
#[test]
fn through_a_proxy() {
    let certs = Certs::make("backend.example").expect("certificates");
    let (plain, secure) = (Backend::start(), Backend::tls(&certs.server_identity()));
    let proxy = Proxy::connect().expect("a port");
    let address = format!("http://{}", proxy.address());
    let section = |url: String, more: &str| format!("url = \"{url}\"\n{FAST}{more}");
    let setup = with_ca(&certs, "own")
        .http(&section(plain.url_as("backend.example"), ""))
        .http(&section(secure.url_as("backend.example"), "ca_file = \"{dir}/ca.pem\""))
        .env("HTTP_PROXY", &address)
        .env("HTTPS_PROXY", &address);
    let _rig = running(setup);
    plain.await_delivered(2);
    secure.await_delivered(2);
    let wanted = |url: String| url.split("//").nth(1).unwrap_or_default().to_owned();
    let asked = proxy.asked();
    assert!(
        asked.contains(&wanted(plain.url_as("backend.example"))) && asked.contains(&wanted(secure.url_as("backend.example"))),
        "{asked:?}"
    );
}

#[test]
fn past_the_proxy() {
    let backend = Backend::start();
    let proxy = Proxy::connect().expect("a port");
    let setup = Setup::default()
        .http(&backend.section(FAST))
        .env("HTTP_PROXY", &format!("http://{}", proxy.address()))
        .env("NO_PROXY", "127.0.0.1");
    let _rig = running(setup);
    backend.await_delivered(2);
    assert_eq!(proxy.asked(), [""; 0]);
}

/// A proxy that is not there is an outage like others, and said as what it is.
#[test]
fn a_proxy_that_is_not_there() {
    let backend = Backend::start();
    let nobody = Backend::start();
    nobody.down();
    let rig = running(Setup::default().http(&backend.section(FAST)).env("HTTP_PROXY", &nobody.url()));
    let line = rig.await_log(Part::Bridge, "warn: http 1: ");
    assert!(line.contains("proxy"), "{line}");
    assert!(backend.requests().is_empty());
}

/// Secrets in the address of a proxy or in a query are nobody's business.
#[test]
fn no_secret_is_in_the_log() {
    let nobody = Backend::start();
    nobody.down();
    let mut rig = Rig::new(
        Setup::default()
            .top("log_level = \"trace\"")
            .file("key", "hunter2hunter2\n")
            .http(&nobody.section(&format!("{FAST}api_key_file = \"{{dir}}/key\"")))
            .http(&format!("url = \"{}/in?token=hunter2hunter2\"\nformat = \"json-lines\"\nfilters = [\"#\"]\n{FAST}", nobody.url())),
    );
    rig.fake().add(CHARGER, charger());
    let mqtt = rig.listener();
    rig.start_bridge();
    rig.await_log(Part::Bridge, "warn: http 1: ");
    rig.await_log(Part::Bridge, "warn: http 2: ");
    nobody.up();
    nobody.wait("both", DEADLINE, |requests| {
        let of = |path: &str| requests.iter().any(|request| request.delivered() && request.path.starts_with(path));
        (of("/api") && of("/in?token=hunter2hunter2")).then_some(())
    });
    rig.stop(Part::Bridge);
    assert!(!rig.log(Part::Bridge).contains("hunter2"), "a secret is in the log");
    assert!(mqtt.since().iter().all(|message| !message.text().contains("hunter2")), "a secret was published");
}
