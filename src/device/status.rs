//! `device/<client ID>/Status`: what a device says of itself, checked. One bad entry refuses the whole message, with words for
//! the person at the device.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::id::Id;
use crate::bridge::limits;
use crate::bridge::topic::{Topics, check_topic, is_level};
use crate::bridge::value::{Value, read_json};
use crate::text::escape;

/// How long a service may be silent, in seconds: below, one lost message would make it stale; above, nobody would wait for it. For the
/// `timeout` of a Status and for `stale_after` in the configuration.
pub const STALE_AFTER: RangeInclusive<u32> = 2..=86_400 * 30;

/// A Status that can be acted on.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    pub client: Id,
    pub request: Request,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    Register(Registration),
    Leave,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Registration {
    pub version: Box<str>,
    /// In the order of the message, which is that of the answer.
    pub services: Vec<(Id, Box<str>)>,
    pub will: Option<Will>,
    /// The device's own `stale_after`; zero: never.
    pub timeout: Option<Duration>,
}

/// A message by which others tell that the device is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Will {
    pub topic: Box<str>,
    pub value: Box<str>,
}

impl Status {
    /// `topic_id` is the client ID in the topic, a level of one of `topics`.
    pub fn parse(topics: &Topics, topic_id: &str, payload: &[u8]) -> Result<Self, StatusError> {
        let refuse = |why: String| StatusError { client: None, why };
        if payload.len() > limits::STATUS_PAYLOAD {
            return Err(refuse(format!("the Status has {} bytes; at most {} are taken", payload.len(), limits::STATUS_PAYLOAD)));
        }
        let fields = match read_json(payload).and_then(Value::read_words) {
            Ok(Value::Dict(fields)) => fields,
            Ok(_) => {
                return Err(refuse("the Status is no JSON object; send {\"clientId\": …, \"connected\": 1, \"services\": {…}}".into()));
            }
            Err(error) => return Err(refuse(format!("the Status is not valid JSON: {error}"))),
        };
        let client = match field(&fields, "clientId").or_else(|| field(&fields, "clientid")) {
            None | Some(Value::Invalid) => topic_id,
            Some(Value::Str(id)) => id,
            Some(_) => return Err(refuse("clientId is no text".into())),
        };
        let client = Id::parse(client).map_err(|why| refuse(format!("clientId {why}")))?;
        match check_topic_id(topic_id).and_then(|()| parse_request(topics, &fields)) {
            Ok(request) => Ok(Self { client, request }),
            Err(why) => Err(StatusError { client: Some(client), why }),
        }
    }
}

/// Of a key that is there twice, the last one counts. A bare `None` or `nan` is as good as nothing.
fn field<'a>(fields: &'a [(Box<str>, Value)], name: &str) -> Option<&'a Value> {
    let found = fields.iter().rfind(|(key, _)| **key == *name).map(|(_, value)| value);
    found.filter(|value| !matches!(value, Value::Double(number) if !number.is_finite()))
}

/// Whether answers can go to the client ID of a topic, which may be another than the device's own.
pub(super) fn check_topic_id(id: &str) -> Result<(), String> {
    if id.len() > limits::TOPIC_ID || !is_level(id) {
        return Err(format!("the client ID in the topic, \"{}\", is not one level of at most {} bytes", escape(id), limits::TOPIC_ID));
    }
    Ok(())
}

fn parse_request(topics: &Topics, fields: &[(Box<str>, Value)]) -> Result<Request, String> {
    let connected = match field(fields, "connected") {
        Some(Value::Bool(connected)) => *connected,
        Some(Value::Int(1)) => true,
        Some(Value::Int(0)) => false,
        Some(Value::Double(number)) if *number == 1.0 => true,
        Some(Value::Double(number)) if *number == 0.0 => false,
        Some(_) => return Err("connected is neither 1 nor 0".into()),
        None => return Err("connected is missing; send 1 to register, 0 to leave".into()),
    };
    if !connected {
        return Ok(Request::Leave);
    }
    let version = match field(fields, "version") {
        None | Some(Value::Invalid) => Box::default(),
        Some(Value::Str(text)) => text.chars().take(limits::VERSION).collect(),
        Some(Value::Array(_) | Value::Dict(_)) => return Err("version is neither a text nor a number".into()),
        Some(number) => json(number),
    };
    let services = match field(fields, "services") {
        Some(Value::Dict(services)) if !services.is_empty() => parse_services(services)?,
        Some(_) => return Err("services is no object with entries; send {\"t1\": \"temperature\"}".into()),
        None => return Err("services is missing; send {\"t1\": \"temperature\"}".into()),
    };
    let will = parse_will(topics, field(fields, "lwt_topic"), field(fields, "lwt_value"))?;
    let timeout = parse_timeout(field(fields, "timeout"))?;
    Ok(Request::Register(Registration { version, services, will, timeout }))
}

fn parse_services(entries: &[(Box<str>, Value)]) -> Result<Vec<(Id, Box<str>)>, String> {
    let mut services: Vec<(Id, Box<str>)> = Vec::new();
    for (key, value) in entries {
        let id = Id::parse(key).map_err(|why| format!("services: the ID {why}"))?;
        let Value::Str(service_type) = value else {
            return Err(format!("services: the type of \"{}\" is no text", escape(key)));
        };
        if let Some((other, _)) = services.iter().find(|(other, _)| other.name() == id.name()) {
            let text =
                if other == &id { "is there twice".to_owned() } else { format!("is the same as \"{}\" on the bus", escape(other.raw())) };
            return Err(format!("services: \"{}\" {text}", escape(key)));
        }
        services.push((id, service_type.clone()));
    }
    Ok(services)
}

fn parse_will(topics: &Topics, topic: Option<&Value>, value: Option<&Value>) -> Result<Option<Will>, String> {
    let topic = match topic {
        None | Some(Value::Invalid) => return Ok(None),
        Some(Value::Str(topic)) if topic.is_empty() => return Ok(None),
        Some(Value::Str(topic)) => topic,
        Some(_) => return Err("lwt_topic is no text".into()),
    };
    let value = match value {
        None | Some(Value::Invalid) => "false".into(),
        Some(Value::Str(value)) => value.clone(),
        Some(Value::Array(_) | Value::Dict(_)) => return Err("lwt_value is neither a text nor a number".into()),
        Some(scalar) => json(scalar),
    };
    let will = Will { topic: topic.clone(), value };
    will.check(topics).map(|()| Some(will))
}

/// Whether a device can have this for its own `stale_after`, in seconds.
pub(super) fn is_timeout(seconds: f64) -> bool {
    seconds == 0.0 || (f64::from(*STALE_AFTER.start())..=f64::from(*STALE_AFTER.end())).contains(&seconds)
}

fn parse_timeout(value: Option<&Value>) -> Result<Option<Duration>, String> {
    let (least, most) = STALE_AFTER.into_inner();
    let seconds = match value {
        None | Some(Value::Invalid) => return Ok(None),
        Some(Value::Int(seconds)) => *seconds as f64,
        Some(Value::Double(seconds)) => *seconds,
        Some(_) => f64::NAN,
    };
    if is_timeout(seconds) {
        return Ok(Some(Duration::from_secs_f64(seconds)));
    }
    Err(format!(
        "timeout is neither 0 (never stale) nor a number of seconds from {least} to {most}; leave it out for the daemon's `stale_after`"
    ))
}

impl Will {
    /// Why the broker is not to be asked for this one, if it is not.
    pub(super) fn check(&self, topics: &Topics) -> Result<(), String> {
        if self.topic.len() > limits::WILL {
            return Err(format!("lwt_topic is longer than {} bytes", limits::WILL));
        }
        // as it is without the prefix, and as it is subscribed to
        let checked = check_topic(&self.topic).and_then(|()| check_topic(&topics.prefixed(&self.topic)));
        checked.map_err(|why| format!("lwt_topic {why}; take another"))?;
        let ours = ["N", "R", "W", "device"];
        // never a W of anybody: dbus-flashmq carries out a retained one again at each subscription to it
        let is_ours = self.topic.split_once('/').is_some_and(|(first, _)| ours.contains(&first));
        if is_ours || topics.prefixed(&self.topic).starts_with("W/") {
            return Err("lwt_topic is below N, R, W or device, which have meanings of their own; take another".into());
        }
        if self.value.len() > limits::WILL {
            return Err(format!("lwt_value has more than {} bytes", limits::WILL));
        }
        Ok(())
    }
}

fn json(value: &Value) -> Box<str> {
    let mut text = Vec::new();
    value.write_json(&mut text);
    String::from_utf8_lossy(&text).into()
}

/// Why a Status is refused, and whose it is, as far as that could be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusError {
    pub client: Option<Id>,
    pub why: String,
}

impl std::error::Error for StatusError {}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::name::PortalId;

    fn topics() -> Topics {
        Topics::new("boat1/", PortalId::parse("c0619ab1c2d3").unwrap())
    }

    fn parse(payload: &str) -> Result<Status, String> {
        Status::parse(&topics(), "fe001", payload.as_bytes()).map_err(|error| error.why)
    }

    fn registration(payload: &str) -> Registration {
        match parse(payload).unwrap().request {
            Request::Register(registration) => registration,
            Request::Leave => panic!("leaves: {payload}"),
        }
    }

    #[test]
    fn registers() {
        let status = parse(r#"{"clientId":"fe001","connected":1,"version":"v1.0","services":{"t1":"temperature","a":"tank"}}"#).unwrap();
        assert_eq!(status.client.raw(), "fe001");
        let Request::Register(registration) = status.request else { panic!() };
        assert_eq!((&*registration.version, registration.will), ("v1.0", None));
        let services: Vec<_> = registration.services.iter().map(|(id, of)| (id.raw(), &**of)).collect();
        assert_eq!(services, [("t1", "temperature"), ("a", "tank")], "in the order of the message");
    }

    #[test]
    fn topic_ids() {
        let good = "é".repeat(127);
        for id in ["flow", "$x", "a b", &good] {
            assert!(Status::parse(&topics(), id, br#"{"clientId":"x","connected":0}"#).is_ok(), "{id}");
        }
        for id in ["a\u{ffff}", "a\u{1}", &"é".repeat(128)] {
            let error = Status::parse(&topics(), id, br#"{"clientId":"x","connected":0}"#).unwrap_err();
            assert!(error.why.contains("is not one level of at most 255 bytes"), "{id}: {error}");
        }
    }

    #[test]
    fn forms_in_the_field() {
        assert_eq!(parse(r#"{"clientid":"x","connected":0}"#).unwrap().client.raw(), "x");
        assert_eq!(parse(r#"{"connected":false,"services":5}"#).unwrap().client.raw(), "fe001");
        for (version, expected) in
            [("\"\"", ""), ("1", "1"), ("1.0", "1.0"), ("true", "true"), ("null", ""), ("nan", ""), ("None", ""), (".5", "0.5")]
        {
            let payload = format!(r#"{{"connected":true,"version":{version},"services":{{"t":"tank"}}}}"#);
            assert_eq!(&*registration(&payload).version, expected);
        }
        for (connected, leaves) in [("1.0", false), ("1.", false), ("1e0", false), ("0.0", true), ("0.", true), ("0e0", true)] {
            let request = parse(&format!(r#"{{"connected":{connected},"services":{{"t":"tank"}}}}"#)).unwrap().request;
            assert_eq!(request == Request::Leave, leaves, "{connected}");
        }
        let with_will = |will: &str| registration(&format!(r#"{{"connected":1,"services":{{"t":"tank"}},{will}}}"#)).will;
        let will = |value: &str| Some(Will { topic: "tele/plug/LWT".into(), value: value.into() });
        assert_eq!(with_will(r#""lwt_topic":"tele/plug/LWT""#), will("false"));
        assert_eq!(with_will(r#""lwt_topic":"tele/plug/LWT","lwt_value":"Offline""#), will("Offline"));
        assert_eq!(with_will(r#""lwt_topic":"tele/plug/LWT","lwt_value":0"#), will("0"));
        assert_eq!(with_will(r#""lwt_topic":"""#), None);
        assert_eq!(with_will(r#""lwt_topic":None,"lwt_value":None,"version":None,"clientId":None"#), None);
    }

    #[test]
    fn timeouts() {
        let timeout = |timeout: &str| registration(&format!(r#"{{"connected":1,"services":{{"t":"tank"}}{timeout}}}"#)).timeout;
        for (given, seconds) in
            [("2", 2.0), ("2.5", 2.5), ("60", 60.0), ("1e2", 100.0), ("0", 0.0), ("0.0", 0.0), ("-0", 0.0), ("2592000", 2_592_000.0)]
        {
            assert_eq!(timeout(&format!(",\"timeout\":{given}")), Some(Duration::from_secs_f64(seconds)), "{given}");
        }
        assert_eq!((timeout(""), timeout(r#","timeout":null"#)), (None, None));
        for given in ["None", "nan", "NaN"] {
            assert_eq!(timeout(&format!(",\"timeout\":{given}")), None, "{given}");
        }
        for given in ["1", "1.99", "-5", "2592001", "1e300", "\"60\"", "true", "[60]", "{}"] {
            let error = parse(&format!(r#"{{"connected":1,"services":{{"t":"tank"}},"timeout":{given}}}"#)).unwrap_err();
            assert!(error.starts_with("timeout is neither 0 (never stale) nor a number of seconds from 2 to 2592000"), "{given}: {error}");
        }
    }

    #[test]
    fn refuses() {
        let services = |services: &str| format!(r#"{{"connected":1,"services":{services}}}"#);
        let with = |more: &str| format!(r#"{{"connected":1,"services":{{"t":"tank"}},{more}}}"#);
        for (payload, part) in [
            ("no json".into(), "not valid JSON"),
            ("5".into(), "no JSON object"),
            ("[]".into(), "no JSON object"),
            ("{}".into(), "connected is missing"),
            (r#"{"connected":2}"#.into(), "connected is neither 1 nor 0"),
            (r#"{"connected":"1"}"#.into(), "connected is neither"),
            (r#"{"connected":1}"#.into(), "services is missing"),
            (services("[]"), "services is no object"),
            (services("{}"), "services is no object"),
            (services(r#"{"t1":5}"#), "the type of \"t1\" is no text"),
            (services(r#"{"":"tank"}"#), "services: the ID is empty"),
            (services(r#"{"a-b":"tank","a.b":"tank"}"#), "\"a.b\" is the same as \"a-b\" on the bus"),
            (services(r#"{"a":"tank","a":"tank"}"#), "\"a\" is there twice"),
            (services(&format!(r#"{{"{}":"tank"}}"#, "x".repeat(33))), "33 characters"),
            (with(r#""clientId":5"#), "clientId is no text"),
            (r#"{"connected":None,"services":{"t1":"tank"}}"#.into(), "connected is missing"),
            (with(r#""clientId":"""#), "clientId is empty"),
            (with(r#""version":[1]"#), "version is neither"),
            (with(r#""lwt_topic":"a/#""#), "lwt_topic contains the wildcard `#`; take another"),
            (with(r#""lwt_topic":"x\ufffe""#), "lwt_topic contains \\u{fffe}, a noncharacter of Unicode; take another"),
            (with(r#""lwt_topic":"x\u0085""#), "lwt_topic contains the control character \\u{85}; take another"),
            (with(r#""lwt_topic":"$SYS/x""#), "lwt_topic begins with `$`"),
            (with(&format!(r#""lwt_topic":"{}""#, "/".repeat(127))), "lwt_topic has more than 128 levels (with the prefix"),
            (with(&format!(r#""lwt_topic":"{}""#, "x".repeat(257))), "lwt_topic is longer than 256 bytes"),
            (with(&format!(r#""lwt_topic":"x","lwt_value":"{}""#, "x".repeat(257))), "lwt_value has more than 256 bytes"),
            (r#"{"clientId":"a\ufdd0","connected":0}"#.into(), "clientId \"a\\u{fdd0}\" holds what no ID can hold"),
            (services(r#"{"a\uffff":"tank"}"#), "services: the ID \"a\\u{ffff}\" holds what no ID can hold"),
            (with(r#""lwt_topic":"W/x/y""#), "lwt_topic is below"),
            (with(r#""lwt_topic":"W/c0619ab1c2d3/settings/0/Settings/CGwacs/AcPowerSetPoint""#), "lwt_topic is below"),
            (with(r#""lwt_topic":7"#), "lwt_topic is no text"),
            (with(&format!(r#""x":"{}""#, "x".repeat(5000))), "at most 4096 are taken"),
            (format!(r#"{{"connected":1,"x":{}}}"#, "[".repeat(2000)), "not valid JSON"),
        ] {
            let error = parse(&payload).unwrap_err();
            assert!(error.contains(part), "{payload}: {error}");
        }
    }
}
