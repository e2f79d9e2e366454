//! Topics and filters, checked, built and parsed; nothing else does any of it. Building is injective: no two items share a topic,
//! because a type is a word of a bus name, an instance holds no slash, and a path is a D-Bus object path.
//!
//! A broker closes the connection over a topic that it does not take, and again after the reconnect. So what comes from outside and
//! becomes part of a topic, a filter, a client ID or a user name is checked here where it comes in, against MQTT 3.1.1 and against
//! what Mosquitto 2 and FlashMQ refuse beyond it.

use std::fmt;

use super::name::{PATH_LEVELS, PortalId};
use crate::text::is_noncharacter;

/// Longest topic or filter, in bytes, with the prefix: FlashMQ takes no longer string by default (`max_string_length`); MQTT itself
/// takes 65,535.
pub const TOPIC_MAX: usize = 4096;
/// Most levels of a topic or filter, with the prefix: FlashMQ's default (`max_topic_split_depth`); Mosquitto takes 201.
pub const LEVELS_MAX: usize = 128;
/// Most levels of the prefix, so that every topic of an item fits behind it.
pub const PREFIX_LEVELS: usize = 32;

// N/<portal ID>/<type>/<instance>/<path>
const _: () = assert!(PREFIX_LEVELS + 4 + PATH_LEVELS <= LEVELS_MAX);

/// Checks a topic to publish to.
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    check_all(topic)?;
    match topic.chars().find(|c| matches!(c, '+' | '#')) {
        Some(wildcard) => Err(TopicError::Character(wildcard)),
        None => Ok(()),
    }
}

/// Checks a filter to subscribe to: `+` is one level, `#` at the end is the rest.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    check_all(filter)?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        match level {
            "#" if levels.peek().is_some() => return Err(TopicError::HashNotLast),
            "#" | "+" => {}
            word if word.contains(['+', '#']) => return Err(TopicError::PartOfWord),
            _ => {}
        }
    }
    Ok(())
}

/// Whether `text` can be one level of a topic, though not the first: it may begin with `$`, and may be empty.
pub fn is_level(text: &str) -> bool {
    check_text(text).is_ok() && !text.contains(['/', '+', '#'])
}

/// Checks any other text of an MQTT packet: a client ID, a user name.
pub fn check_text(text: &str) -> Result<(), TopicError> {
    if text.len() > TOPIC_MAX {
        return Err(TopicError::TooLong);
    }
    text.chars().find(|c| is_refused(*c)).map_or(Ok(()), |c| Err(TopicError::Character(c)))
}

/// What both topics and filters must be.
fn check_all(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.starts_with('$') {
        return Err(TopicError::Reserved);
    }
    check_text(text)?;
    if text.bytes().filter(|b| *b == b'/').count() >= LEVELS_MAX {
        return Err(TopicError::TooDeep);
    }
    Ok(())
}

/// Control characters and noncharacters, which MQTT lets a broker refuse (section 1.5.3), and Mosquitto and FlashMQ do.
fn is_refused(c: char) -> bool {
    c.is_control() || is_noncharacter(c)
}

/// `text` as one level of a topic, cut at `max` characters: what cannot stand in one becomes `_`.
pub fn to_level(text: &str, max: usize) -> String {
    text.chars().take(max).map(|c| if is_refused(c) || matches!(c, '/' | '+' | '#' | '$') { '_' } else { c }).collect()
}

/// Why a text cannot be a topic, a filter or another text of MQTT. Reads after what it is about: "lwt_topic is empty".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopicError {
    Empty,
    TooLong,
    TooDeep,
    /// `$` at the beginning.
    Reserved,
    Character(char),
    HashNotLast,
    PartOfWord,
}

impl std::error::Error for TopicError {}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty"),
            Self::TooLong => write!(f, "is longer than {TOPIC_MAX} bytes (with the prefix, if there is one)"),
            Self::TooDeep => write!(f, "has more than {LEVELS_MAX} levels (with the prefix, if there is one)"),
            Self::Reserved => f.write_str("begins with `$`: such topics belong to the broker"),
            Self::Character(c @ ('+' | '#')) => write!(f, "contains the wildcard `{c}`"),
            Self::Character(c) if c.is_control() => write!(f, "contains the control character {}", c.escape_unicode()),
            Self::Character(c) => write!(f, "contains {}, a noncharacter of Unicode", c.escape_unicode()),
            Self::HashNotLast => f.write_str("has `#` before its end: it stands for the rest, and can only be the last level"),
            Self::PartOfWord => f.write_str("has `+` or `#` as part of a word: they stand for whole levels"),
        }
    }
}

/// What a client can be talking about: `type/instance/path`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address<'a> {
    pub service_type: &'a str,
    pub instance: &'a str,
    /// Begins with a slash; `/` alone is the service itself.
    pub path: &'a str,
}

impl<'a> Address<'a> {
    /// `rest` is what stands behind the portal ID.
    fn parse(rest: &'a str) -> Option<Self> {
        let (service_type, rest) = rest.split_once('/')?;
        let (instance, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
        (!service_type.is_empty() && !instance.is_empty()).then_some(Self {
            service_type,
            instance,
            path: if path.is_empty() { "/" } else { path },
        })
    }
}

/// A topic the bridge has subscribed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// `R/<portal ID>/keepalive`
    KeepAlive,
    /// `R/<portal ID>/system/0/Serial`, the keep-alive of old
    SerialKeepAlive,
    Read(Address<'a>),
    Write(Address<'a>),
    /// `N/<portal ID>/…`: what stands behind the portal ID
    Notification(&'a str),
    /// Another portal ID, or not one of our topics at all
    Foreign,
}

/// Where everything of one portal ID lives, behind one prefix.
#[derive(Debug)]
pub struct Topics {
    /// Empty, or ends with a slash.
    prefix: Box<str>,
    portal: PortalId,
}

impl Topics {
    pub fn new(prefix: &str, portal: PortalId) -> Self {
        Self { prefix: prefix.into(), portal }
    }

    pub fn portal(&self) -> &PortalId {
        &self.portal
    }

    /// What stands behind the prefix; `None` when the topic has another one.
    pub fn behind_prefix<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(&*self.prefix)
    }

    pub fn parse<'a>(&self, topic: &'a str) -> Incoming<'a> {
        let parts = self.behind_prefix(topic).and_then(|rest| rest.split_once('/'));
        let behind = parts.and_then(|(letter, rest)| Some((letter, rest.strip_prefix(self.portal.as_str())?.strip_prefix('/')?)));
        match behind {
            Some(("R", "keepalive")) => Incoming::KeepAlive,
            Some(("R", "system/0/Serial")) => Incoming::SerialKeepAlive,
            Some(("R", rest)) => Address::parse(rest).map_or(Incoming::Foreign, Incoming::Read),
            Some(("W", rest)) => Address::parse(rest).map_or(Incoming::Foreign, Incoming::Write),
            Some(("N", rest)) => Incoming::Notification(rest),
            _ => Incoming::Foreign,
        }
    }

    /// `N/<portal ID>/<rest>`
    pub fn notification(&self, rest: &str) -> String {
        format!("{}N/{}/{rest}", self.prefix, self.portal)
    }

    /// `R/<portal ID>/<rest>` and `W/<portal ID>/<rest>`
    pub fn request(&self, letter: char, rest: &str) -> String {
        format!("{}{letter}/{}/{rest}", self.prefix, self.portal)
    }

    /// `device/<client ID>/<what>`
    pub fn device(&self, client: &str, what: &str) -> String {
        self.prefixed(&format!("device/{client}/{what}"))
    }

    /// A topic of others, behind the prefix.
    pub fn prefixed(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// `venus-mqtt/<portal ID>/<rest>`
    pub fn own(&self, rest: &str) -> String {
        format!("{}venus-mqtt/{}/{rest}", self.prefix, self.portal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(prefix: &str) -> Topics {
        Topics::new(prefix, PortalId::parse("c0619ab1c2d3").unwrap())
    }

    fn address<'a>(service_type: &'a str, instance: &'a str, path: &'a str) -> Address<'a> {
        Address { service_type, instance, path }
    }

    #[test]
    fn parses() {
        for (topic, expected) in [
            ("R/c0619ab1c2d3/keepalive", Incoming::KeepAlive),
            ("R/c0619ab1c2d3/system/0/Serial", Incoming::SerialKeepAlive),
            ("R/c0619ab1c2d3/vebus/257/Ac/Out/P", Incoming::Read(address("vebus", "257", "/Ac/Out/P"))),
            ("R/c0619ab1c2d3/vebus/257", Incoming::Read(address("vebus", "257", "/"))),
            ("R/c0619ab1c2d3/vebus/257/", Incoming::Read(address("vebus", "257", "/"))),
            ("R/c0619ab1c2d3/vebus/257/Dc/", Incoming::Read(address("vebus", "257", "/Dc"))),
            ("W/c0619ab1c2d3/hub4/0/AcPowerSetpoint", Incoming::Write(address("hub4", "0", "/AcPowerSetpoint"))),
            ("W/c0619ab1c2d3/keepalive", Incoming::Foreign),
            ("N/c0619ab1c2d3/heartbeat", Incoming::Notification("heartbeat")),
            ("R/c0619ab1c2d4/keepalive", Incoming::Foreign),
            ("R/c0619ab1c2d3x/keepalive", Incoming::Foreign),
            ("R/c0619ab1c2d3", Incoming::Foreign),
            ("R/c0619ab1c2d3/vebus", Incoming::Foreign),
            ("R/c0619ab1c2d3//257/Mode", Incoming::Foreign),
            ("X/c0619ab1c2d3/keepalive", Incoming::Foreign),
            ("", Incoming::Foreign),
        ] {
            assert_eq!(topics("").parse(topic), expected, "{topic}");
        }
        assert_eq!(topics("boat1/").parse("boat1/R/c0619ab1c2d3/keepalive"), Incoming::KeepAlive);
        assert_eq!(topics("boat1/").parse("R/c0619ab1c2d3/keepalive"), Incoming::Foreign);
    }

    #[test]
    fn checks() {
        let deep = |levels: usize| vec!["a"; levels].join("/");
        let (long, longer) = ("a".repeat(TOPIC_MAX), "a".repeat(TOPIC_MAX + 1));
        for good in [
            "a",
            "/",
            "//",
            "a//b/",
            " ",
            "a b",
            "ä/太阳/\u{feff}\u{fffd}\u{2028}",
            "x/$SYS",
            "..",
            "\u{e000}\u{10fffd}",
            &deep(128),
            &long,
        ] {
            assert_eq!((check_topic(good), check_filter(good)), (Ok(()), Ok(())), "{good:?}");
        }
        let character = |c| TopicError::Character(c);
        let mut table = vec![
            (String::new(), TopicError::Empty),
            (longer.clone(), TopicError::TooLong),
            (deep(129), TopicError::TooDeep),
            ("$SYS/broker".into(), TopicError::Reserved),
            ("$share/a/b".into(), TopicError::Reserved),
        ];
        let planes = (0..=16_u32).flat_map(|plane| [plane << 16 | 0xfffe, plane << 16 | 0xffff]);
        let refused = (0..0x20).chain(0x7f..0xa0).chain(0xfdd0..0xfdf0).chain(planes);
        table.extend(refused.filter_map(char::from_u32).map(|c| (format!("x{c}"), character(c))));
        for (bad, error) in table {
            assert_eq!((check_topic(&bad), check_filter(&bad)), (Err(error), Err(error)), "{bad:?}");
        }
        for (text, topic, filter) in [
            ("+", Err(character('+')), Ok(())),
            ("#", Err(character('#')), Ok(())),
            ("a/+/#", Err(character('+')), Ok(())),
            ("a+", Err(character('+')), Err(TopicError::PartOfWord)),
            ("a/b#", Err(character('#')), Err(TopicError::PartOfWord)),
            ("##", Err(character('#')), Err(TopicError::PartOfWord)),
            ("#/a", Err(character('#')), Err(TopicError::HashNotLast)),
        ] {
            assert_eq!((check_topic(text), check_filter(text)), (topic, filter), "{text}");
        }
        assert_eq!(check_text("$x +#"), Ok(()));
        assert_eq!((check_text("\u{85}"), check_text(&longer)), (Err(character('\u{85}')), Err(TopicError::TooLong)));
    }

    #[test]
    fn levels() {
        for (text, good) in [("fe001", true), ("$x", true), ("", true), ("a/b", false), ("+", false), ("a#", false), ("a\u{ffff}", false)] {
            assert_eq!(is_level(text), good, "{text:?}");
        }
        for (text, level) in [("can0/2", "can0_2"), ("+#$", "___"), ("a\u{fffe}\u{7f}\0b", "a___b"), ("äöü", "äö")] {
            assert_eq!(to_level(text, if text == "äöü" { 2 } else { 64 }), level);
        }
    }

    #[test]
    fn prints() {
        assert_eq!(topics("boat1/").notification("heartbeat"), "boat1/N/c0619ab1c2d3/heartbeat");
        assert_eq!(topics("").request('W', "#"), "W/c0619ab1c2d3/#");
        assert_eq!(topics("").own("status"), "venus-mqtt/c0619ab1c2d3/status");
        assert_eq!(topics("boat1/").device("fe001", "DBus"), "boat1/device/fe001/DBus");
        assert_eq!(topics("boat1/").prefixed("tele/LWT"), "boat1/tele/LWT");
    }
}
