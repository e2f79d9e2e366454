//! The payload of a keep-alive, against the whole bridge and its contract read once more with `serde_json`.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value as Json;
use venus_mqtt::bridge::filter::Filter;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Enabled, Options};
use venus_mqtt::bridge::topic::{check_filter, check_topic};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Bridge, Change, LinkCommand, Method, Reply, Setup, Time};

const PORTAL: &str = "c0619ab1c2d3";
/// What is on the bus, instance 512 each.
const ITEMS: [(&str, &str); 5] =
    [("battery", "/DeviceInstance"), ("battery", "/Soc"), ("battery", "/Dc/0/Voltage"), ("tank", "/DeviceInstance"), ("tank", "/Level")];

/// What the contract says of a payload.
struct Wanted {
    /// Of the items.
    topics: BTreeSet<String>,
    /// Nothing is published now.
    suppress: bool,
    echo: Option<String>,
}

fn wanted(payload: &[u8]) -> Wanted {
    let all = || ITEMS.iter().map(|(kind, path)| topic(kind, path)).collect::<BTreeSet<_>>();
    let mut wanted = Wanted { topics: all(), suppress: false, echo: None };
    match serde_json::from_slice::<Json>(payload) {
        Ok(Json::Array(entries)) => {
            let filters: Vec<Filter> = entries.iter().filter_map(Json::as_str).filter_map(|text| Filter::parse(text).ok()).collect();
            if !filters.is_empty() || entries.is_empty() {
                let taken = |(kind, path): &&(&str, &str)| filters.iter().any(|filter| filter.matches(kind, "512", path));
                wanted.topics = ITEMS.iter().filter(taken).map(|(kind, path)| topic(kind, path)).collect();
            }
        }
        Ok(json) => {
            for option in json["keepalive-options"].as_array().into_iter().flatten() {
                wanted.suppress |= option == "suppress-republish";
                wanted.suppress |= option.get("suppress-republish").is_some_and(|on| *on != Json::Bool(false));
                if let Some(echo) = option["full-publish-completed-echo"].as_str().filter(|echo| echo.len() <= 256) {
                    wanted.echo = Some(echo.into());
                }
            }
        }
        Err(_) => {}
    }
    wanted
}

fn topic(kind: &str, path: &str) -> String {
    format!("N/{PORTAL}/{kind}/512{path}")
}

pub fn target(data: &[u8]) {
    // larger payloads are refused or cut by caps that are tested elsewhere
    if data.len() > 16 * 1024 {
        return;
    }
    let at = |millis| Time::since_start(Duration::from_millis(millis));
    let mut bridge = bridge();
    bridge.bus_up(at(1));
    answer_all(&mut bridge, at(1));
    bridge.link_up(at(2));
    drain(&mut bridge, at(2));
    bridge.message(at(3), &format!("R/{PORTAL}/keepalive"), data, false);
    let published = drain(&mut bridge, at(3));
    let Wanted { topics, suppress, echo } = wanted(data);
    let items: BTreeSet<String> = published.iter().filter(|(topic, _)| topic.contains("/512/")).map(|(topic, _)| topic.clone()).collect();
    let completions: Vec<_> = published.iter().filter(|(topic, _)| topic.ends_with("/full_publish_completed")).collect();
    if suppress {
        assert!(items.is_empty() && completions.is_empty(), "it was to be quiet: {published:?}");
    } else {
        assert_eq!(items, topics);
        let [(_, payload)] = completions[..] else { panic!("{} completions", completions.len()) };
        let json: Json = serde_json::from_slice(payload).expect("it is JSON");
        assert_eq!(json.get("full-publish-completed-echo").and_then(Json::as_str), echo.as_deref());
        assert!(published.last().is_some_and(|(topic, _)| topic.ends_with("/full_publish_completed")), "it is not the last");
    }
    // everything ends, and what was published is taken back
    bridge.handle_timeout(at(61_000));
    let cleared: BTreeSet<String> =
        drain(&mut bridge, at(61_000)).into_iter().filter(|(_, payload)| payload.is_empty()).map(|(topic, _)| topic).collect();
    assert_eq!(cleared, items);
}

fn bridge() -> Bridge {
    Bridge::new(Setup {
        portal: PortalId::parse(PORTAL).expect("it is one"),
        prefix: String::new(),
        options: Options { enabled: Enabled::Yes, ..Options::default() },
        beside: false,
        nonce: 1,
        verbosity: log::Level::Debug,
    })
}

/// The bus answers everything.
fn answer_all(bridge: &mut Bridge, now: Time) {
    while let Some(call) = bridge.poll_call(now) {
        let kind = if &*call.destination == ":1.1" { "battery" } else { "tank" };
        let value = |path: &str| if path == "/DeviceInstance" { Value::Int(512) } else { Value::Double(1.5) };
        let reply = match &call.method {
            Method::ListNames => Reply::Names(vec!["com.victronenergy.battery.a".into(), "com.victronenergy.tank.b".into()]),
            Method::GetNameOwner(name) => Reply::Text(if name.contains("battery") { ":1.1" } else { ":1.2" }.into()),
            Method::GetItems => {
                let items = ITEMS.iter().filter(|(of, _)| *of == kind);
                Reply::Items(items.map(|(_, path)| ((*path).to_owned(), Change::of(value(path)))).collect())
            }
            other => panic!("nobody asks for that: {other:?}"),
        };
        bridge.reply(now, call.id, reply);
    }
}

fn drain(bridge: &mut Bridge, now: Time) -> Vec<(String, Vec<u8>)> {
    let mut published = Vec::new();
    loop {
        while let Some(command) = bridge.poll_link() {
            let (LinkCommand::Subscribe(filters) | LinkCommand::Unsubscribe(filters)) = command;
            assert!(filters.iter().all(|filter| check_filter(filter).is_ok()), "{filters:?}");
        }
        while let Some(note) = bridge.poll_note() {
            assert!(note.text.len() < 4096 && !note.text.contains('\n'), "{}", note.text);
        }
        let Some(publish) = bridge.poll_publish(now, 1_795_259_400) else { return published };
        assert_eq!(check_topic(&publish.topic), Ok(()));
        published.push((publish.topic, publish.payload));
    }
}
