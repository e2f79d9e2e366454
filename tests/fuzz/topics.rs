//! Topics, filters and names on the bus, against rules written once more, character by character, and zbus' own checks.

use venus_mqtt::bridge::filter::{FILTER_MAX, Filter};
use venus_mqtt::bridge::name::{NAMESPACE, PortalId, ServiceName, is_item_path};
use venus_mqtt::bridge::topic::{Incoming, LEVELS_MAX, TOPIC_MAX, Topics, check_filter, check_text, check_topic, is_level, to_level};
use zbus::ObjectPath;
use zbus::names::WellKnownName;

const PORTAL: &str = "c0619ab1c2d3";

pub fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    checks(&text);
    names(&text);
    for prefix in ["", "boat1/"] {
        topics(prefix, &text);
    }
    // a filter, and what it may match
    if let Some((filter, topic)) = text.split_once('\n') {
        matches(filter, topic);
    }
}

/// What Mosquitto 2.0 and FlashMQ take, as they were seen to.
fn is_taken(text: &str) -> bool {
    let refused = |n: u32| n < 0x20 || (0x7f..0xa0).contains(&n) || (0xfdd0..0xfdf0).contains(&n) || n % 0x1_0000 >= 0xfffe;
    text.len() <= TOPIC_MAX && !text.chars().any(|c| refused(c.into()))
}

fn checks(text: &str) {
    let both = is_taken(text) && !text.is_empty() && !text.starts_with('$') && text.split('/').count() <= LEVELS_MAX;
    assert_eq!(check_text(text).is_ok(), is_taken(text));
    assert_eq!(check_topic(text).is_ok(), both && !text.contains(['+', '#']));
    let mut good = both;
    for (at, c) in text.char_indices() {
        let (before, after) = (&text[..at], &text[at + c.len_utf8()..]);
        let starts = before.is_empty() || before.ends_with('/');
        good &= match c {
            '+' => starts && (after.is_empty() || after.starts_with('/')),
            '#' => starts && after.is_empty(),
            _ => true,
        };
    }
    assert_eq!(check_filter(text).is_ok(), good);
    if let Ok(filter) = Filter::parse(text) {
        assert!(good && text.len() <= FILTER_MAX && filter.as_str() == text);
    }
    let level = to_level(text, 64);
    assert!(is_level(&level) && level.chars().count() <= 64 && !level.starts_with('$'));
    assert_eq!(to_level(&level, 64), level);
    assert_eq!(is_level(text), is_taken(text) && !text.contains(['/', '+', '#']));
}

fn names(text: &str) {
    assert_eq!(ServiceName::parse(text).is_ok(), text.starts_with(NAMESPACE) && WellKnownName::try_from(text).is_ok(), "{text:?}");
    let of_us = format!("{NAMESPACE}{text}");
    assert_eq!(ServiceName::parse(&of_us).is_ok(), WellKnownName::try_from(of_us.as_str()).is_ok(), "{of_us:?}");
    let is_path = ObjectPath::try_from(text).is_ok() && text.len() <= 255 && text != "/" && text.split('/').count() <= 65;
    assert_eq!(is_item_path(text), is_path, "{text:?}");
}

/// Whatever is printed for an item is parsed back as that item, and brokers take it.
fn topics(prefix: &str, text: &str) {
    let topics = Topics::new(prefix, PortalId::parse(PORTAL).expect("it is one"));
    let mut parts = text.splitn(3, '\n');
    let (kind, instance, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let instance = to_level(instance, 64);
    if let Ok(name) = ServiceName::parse(&format!("{NAMESPACE}{kind}"))
        && is_item_path(path)
        && !instance.is_empty()
    {
        let rest = format!("{}/{instance}{path}", name.service_type());
        for topic in [topics.notification(&rest), topics.request('R', &rest), topics.request('W', &rest)] {
            assert_eq!(check_topic(&topic), Ok(()));
        }
        assert_eq!(topics.parse(&topics.notification(&rest)), Incoming::Notification(&rest));
        match topics.parse(&topics.request('W', &rest)) {
            Incoming::Write(address) => {
                assert_eq!((address.service_type, address.instance, address.path), (name.service_type(), instance.as_str(), path));
            }
            other => panic!("{rest}: {other:?}"),
        }
    }
    // from outside
    match topics.parse(text) {
        Incoming::Foreign => {}
        Incoming::Read(address) | Incoming::Write(address) => {
            assert!(address.path.starts_with('/') && !address.instance.contains('/') && !address.service_type.contains('/'));
        }
        _ => assert!(text.starts_with(prefix)),
    }
    assert_eq!(topics.behind_prefix(&topics.prefixed(text)), Some(text));
}

/// Level by level, recursively.
fn takes(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) | ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => takes(filter, topic),
        ([word, filter @ ..], [level, topic @ ..]) => word == level && takes(filter, topic),
        _ => false,
    }
}

fn matches(filter: &str, topic: &str) {
    let Ok(parsed) = Filter::parse(filter) else { return };
    let mut levels = topic.splitn(3, '/');
    let (Some(kind), Some(instance), Some(rest)) = (levels.next(), levels.next(), levels.next()) else { return };
    let filter: Vec<_> = filter.split('/').collect();
    let topic: Vec<_> = topic.split('/').collect();
    assert_eq!(parsed.matches(kind, instance, &format!("/{rest}")), takes(&filter, &topic));
}
