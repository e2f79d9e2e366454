//! `venus-mqtt http test`: one measurement now, and what came back, in words.

use std::process::{Command, Output};

use venus_mqtt_integration::{Answer, Backend, Rig, Setup, parts::binary};

use super::{CHARGER, OTHER, OTHER_SERIAL, SERIAL, charger, other};

fn test(rig: &Rig, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary("VENUS_MQTT_BIN", "venus-mqtt").expect("built"));
    command.args(["http", "test", "--config"]).arg(rig.config()).args(more).env_remove("HTTP_PROXY").env_remove("http_proxy");
    let output: Output = command.output().expect("it runs");
    (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// A bus with two chargers, and no daemon.
fn two_chargers(setup: Setup) -> Rig {
    let rig = Rig::new(setup);
    rig.fake().add(CHARGER, charger());
    rig.fake().add(OTHER, other());
    rig
}

#[test]
fn what_each_answer_means() {
    let backend = Backend::start();
    backend.key("right");
    let rig = two_chargers(Setup::default().file("key", "right\n").http(&backend.section("api_key_file = \"{dir}/key\"\ntimeout = 1")));
    let (code, text) = test(&rig, &[]);
    assert_eq!(code, Some(0), "{text}");
    for said in ["201", "2 solar chargers", &backend.url()] {
        assert!(text.contains(said), "{said} is not in: {text}");
    }
    assert_eq!(backend.await_requests(1)[0].json()["devices"].as_array().map(Vec::len), Some(2));
    backend.unknown(&[OTHER_SERIAL]);
    let (code, text) = test(&rig, &[]);
    assert!(text.contains("207") && text.contains(OTHER_SERIAL) && text.contains("not found"), "{code:?} {text}");
    backend.unknown(&[SERIAL, OTHER_SERIAL]);
    let (code, text) = test(&rig, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("404") && text.contains(OTHER_SERIAL) && text.contains(SERIAL), "{text}");
    backend.key("another");
    let (code, text) = test(&rig, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("401") && text.contains("api_key_file"), "{text}");
    for (answer, said) in [
        (Answer::text(400, "{\"detail\": \"what is this?\"}"), "what is this?"),
        (Answer::text(502, "<html>\u{1b}[31mBad Gateway"), "502"),
        (Answer::retry_after(503, "7"), "503"),
        (Answer::redirect(301, "https://elsewhere.example/x?token=geheim"), "elsewhere.example"),
        (Answer::Hang, "1"),
        (Answer::Reset, "reset"),
        (Answer::Raw("SMTP speaking\r\n\r\n"), "HTTP"),
    ] {
        backend.answer(answer.clone());
        let (code, text) = test(&rig, &[]);
        assert_eq!(code, Some(1), "{answer:?}: {text}");
        assert!(text.contains(said), "{answer:?}: {said} is not in: {text}");
        assert!(!text.contains("geheim") && !text.contains('\u{1b}') && !text.contains("right"), "{text}");
    }
    backend.down();
    let (code, text) = test(&rig, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn one_of_several() {
    let (good, bad) = (Backend::start(), Backend::start());
    bad.answer(Answer::status(500));
    let setup = Setup::default().http(&good.section("name = \"good\"")).http(&bad.section("name = \"bad\""));
    let rig = two_chargers(setup);
    let (code, text) = test(&rig, &["good"]);
    assert_eq!((code, bad.requests().len()), (Some(0), 0), "{text}");
    let (code, text) = test(&rig, &[]);
    assert_eq!((code, bad.requests().len()), (Some(1), 1), "{text}");
    assert!(text.contains("good") && text.contains("bad"), "{text}");
    let (code, text) = test(&rig, &["ugly"]);
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("good") && text.contains("bad"), "it should name those that there are: {text}");
}

#[test]
fn it_shows_what_it_posts() {
    let backend = Backend::start();
    let lines = format!("url = \"{}\"\nformat = \"json-lines\"\nfilters = [\"solarcharger/+/Pv/V\"]\ngzip = true", backend.url());
    let rig = two_chargers(Setup::default().http(&lines));
    let (code, text) = test(&rig, &["--show"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\"solarcharger/281/Pv/V\":62.55") && text.contains("1 value"), "{text}");
    assert_eq!(backend.requests()[0].header("content-encoding"), Some("gzip"));
}

#[test]
fn nothing_to_post_and_nowhere() {
    let backend = Backend::start();
    let rig = Rig::new(Setup::default().http(&backend.section("")));
    let (code, text) = test(&rig, &[]);
    assert!(code == Some(1) && text.contains("solar charger"), "{code:?} {text}");
    assert!(backend.requests().is_empty());
    let rig = Rig::new(Setup::default());
    let (code, text) = test(&rig, &[]);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("[[http]]"), "{text}");
}

#[test]
fn without_a_bus() {
    let backend = Backend::start();
    let mut rig = Rig::new(Setup::default().http(&backend.section("")));
    rig.kill(venus_mqtt_integration::Part::Bus);
    let (code, text) = test(&rig, &[]);
    assert_eq!(code, Some(75), "{text}");
}

/// It neither takes what the daemon keeps nor disturbs it.
#[test]
fn beside_the_daemon() {
    let backend = Backend::start();
    backend.down();
    let mut rig = two_chargers(Setup::default().http(&backend.section(super::FAST)));
    rig.start_bridge();
    super::await_measured(&rig, 5);
    backend.up();
    let (code, text) = test(&rig, &[]);
    assert_eq!(code, Some(0), "{text}");
    super::assert_in_order(&super::await_all(&rig, &backend)[1..]);
}
