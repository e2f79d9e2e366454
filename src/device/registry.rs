//! What is remembered of devices from one life of the daemon to the next, as text, and what is told of them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::model::{Device, Service, Silence, State};
use super::status::{Will, is_timeout};
use crate::bridge::Time;
use crate::bridge::value::{Value, parse_json};
use crate::text::escape;

/// The form of the text.
const VERSION: u64 = 1;
/// Before 2020 the clock is not set.
pub(super) const CLOCK_IS_SET: u64 = 1_577_836_800;

/// One device.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Entry {
    pub client: Box<str>,
    /// Where its answers go.
    pub topics: Vec<Box<str>>,
    pub version: Box<str>,
    pub connected: bool,
    pub state: &'static str,
    /// Seconds since 1970.
    pub last_heard: Option<u64>,
    pub will: Option<Will>,
    pub timeout: Option<Duration>,
    pub services: Vec<ServiceEntry>,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct ServiceEntry {
    pub id: Box<str>,
    pub kind: Box<str>,
    pub instance: Option<i32>,
    /// It is in the device's last Status.
    pub wanted: bool,
    pub written: BTreeSet<Box<str>>,
    pub grown: BTreeSet<Box<str>>,
    /// As of the end of the daemon, if they are to be shown again; until they are shown, also in what is written while it runs.
    pub values: Option<Values>,
}

/// What a service had when the daemon ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Values {
    /// When that was, in seconds since 1970, and when the last of them had come.
    pub at: u64,
    pub seen: u64,
    pub items: Vec<(Box<str>, Value)>,
}

impl Values {
    /// `None`: there is nothing worth it. What was restored itself is no younger for it.
    pub(super) fn of(service: &Service, now: Time, unix: u64) -> Option<Self> {
        let items: Vec<_> = match &service.exported {
            Some(exported) if service.restored.is_empty() => {
                exported.written().map(|(path, _, value)| (path.into(), value.clone())).collect()
            }
            _ => service.restored.clone(),
        };
        let (at, seen) = match service.restored_from.filter(|_| service.restored_until.is_some()) {
            Some(stamps) => stamps,
            None => (unix, unix.saturating_sub(now.after(service.last_value?).as_secs())),
        };
        Some(Self { at, seen, items }).filter(|values| !values.items.is_empty())
    }

    /// About what it takes in the text.
    pub(super) fn size(&self) -> usize {
        let json = |value: &Value| {
            let mut out = Vec::new();
            value.write_json(&mut out);
            out.len()
        };
        const AROUND: usize = 80;
        self.items.iter().map(|(path, value)| path.len() + json(value) + 4).sum::<usize>() + AROUND
    }

    fn to_json(&self) -> Json {
        let items = self.items.iter().map(|(path, value)| {
            let mut out = Vec::new();
            value.write_json(&mut out);
            (path.to_string(), serde_json::from_slice(&out).unwrap_or_default())
        });
        json!({"at": self.at, "seen": self.seen, "items": items.collect::<serde_json::Map<_, _>>()})
    }

    fn parse(json: &Json) -> Option<Self> {
        let number = |key: &str| json.get(key).and_then(Json::as_u64);
        let items = json.get("items")?.as_object()?.iter();
        let items = items.map(|(path, value)| Some((path.as_str().into(), parse_json(value.to_string().as_bytes()).ok()?)));
        Some(Self { at: number("at")?, seen: number("seen")?, items: items.collect::<Option<_>>()? })
    }
}

impl Entry {
    pub(super) fn of(device: &Device, now: Time, unix: u64) -> Self {
        let heard = device.heard.map(|heard| unix.saturating_sub(now.after(heard).as_secs()));
        let services = || device.services.iter().filter(|service| service.wanted);
        Self {
            client: device.id.raw().into(),
            topics: device.clients.clone(),
            version: device.version.clone(),
            connected: device.online,
            state: match device {
                Device { online: false, .. } => "gone",
                Device { provisional: Some(_), .. } => "provisional",
                _ if services().any(|service| service.silence != Silence::Left && !matches!(service.state, State::Up)) => "waiting",
                _ if services().any(|service| service.silence != Silence::None) => "silent",
                _ => "connected",
            },
            last_heard: heard.filter(|heard| *heard >= CLOCK_IS_SET).or(device.heard_unix),
            will: device.will.clone(),
            timeout: device.timeout,
            services: device
                .services
                .iter()
                .map(|service| ServiceEntry {
                    id: service.id.raw().into(),
                    kind: service.aim().into(),
                    instance: service.instance,
                    wanted: service.wanted,
                    written: service.written.clone(),
                    grown: service.grown.clone(),
                    values: None,
                })
                .collect(),
        }
    }

    /// For people, and for who reads it in their place.
    pub fn to_json(&self) -> Json {
        let services = self.services.iter().filter(|service| service.wanted);
        let services = services.map(|service| json!({"id": service.id, "type": service.kind, "instance": service.instance}));
        json!({
            "clientId": self.client, "version": self.version, "state": self.state, "lastHeard": self.last_heard,
            "services": services.collect::<Vec<_>>(),
        })
    }
}

/// The text that is written to disk.
pub fn print(entries: &[Entry]) -> String {
    let devices = entries.iter().map(|entry| {
        let services = entry.services.iter().map(|service| {
            let mut json = json!({
                "id": service.id, "type": service.kind, "instance": service.instance, "wanted": service.wanted,
                "written": service.written, "grown": service.grown,
            });
            if let (Some(values), Some(fields)) = (&service.values, json.as_object_mut()) {
                fields.insert("values".into(), values.to_json());
            }
            json
        });
        json!({
            "clientId": entry.client, "topics": entry.topics, "version": entry.version, "connected": entry.connected,
            "lastHeard": entry.last_heard, "timeout": entry.timeout.map(|timeout| timeout.as_secs_f64()),
            "lwt": entry.will.as_ref().map(|will| json!({"topic": will.topic, "value": will.value})),
            "services": services.collect::<Vec<_>>(),
        })
    });
    let mut text = json!({"version": VERSION, "devices": devices.collect::<Vec<_>>()}).to_string();
    text.push('\n');
    text
}

/// Reads it back: the devices, and a line for each entry that is left out because it lacks something. A text that is none of ours is an
/// error.
pub fn parse(text: &str) -> Result<(Vec<Entry>, Vec<String>), String> {
    let json: Json = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match json.get("version").and_then(Json::as_u64) {
        Some(VERSION) => {}
        Some(other) => return Err(format!("its version is {other}, not {VERSION}")),
        None => return Err("it has no version".into()),
    }
    let devices = json.get("devices").and_then(Json::as_array).ok_or("it has no devices")?;
    let mut left_out = Vec::new();
    let entries = devices.iter().enumerate().filter_map(|(n, device)| {
        let entry = parse_entry(device, &mut left_out);
        if entry.is_none() {
            left_out.push(format!(
                "the registry: entry {} is left out: no device has the form of \"{}\"",
                n + 1,
                escape(&device.to_string())
            ));
        }
        entry
    });
    Ok((entries.collect(), left_out))
}

fn parse_entry(json: &Json, left_out: &mut Vec<String>) -> Option<Entry> {
    let text = |json: &Json, key: &str| json.get(key)?.as_str().map(Box::<str>::from);
    let texts = |json: &Json, key: &str| -> Vec<Box<str>> {
        let list = json.get(key).and_then(Json::as_array);
        list.into_iter().flatten().filter_map(|entry| entry.as_str().map(Box::from)).collect()
    };
    let client = text(json, "clientId")?;
    let connected = json.get("connected")?.as_bool()?;
    let parse_service = |service: &Json, left_out: &mut Vec<String>| {
        let values = service.get("values").map(Values::parse);
        if values == Some(None) {
            left_out.push(format!(
                "the registry: device \"{}\": the values of a service are left out: they have no form of ours",
                escape(&client)
            ));
        }
        Some(ServiceEntry {
            id: text(service, "id")?,
            kind: text(service, "type")?,
            instance: service.get("instance").and_then(Json::as_i64).and_then(|number| i32::try_from(number).ok()),
            wanted: service.get("wanted").and_then(Json::as_bool).unwrap_or(true),
            written: texts(service, "written").into_iter().collect(),
            grown: texts(service, "grown").into_iter().collect(),
            values: values.flatten(),
        })
    };
    let services = json.get("services")?.as_array()?.iter().filter_map(|json| {
        let service = parse_service(json, left_out);
        if service.is_none() {
            left_out.push(format!(
                "the registry: device \"{}\": a service is left out: none has the form of \"{}\"",
                escape(&client),
                escape(&json.to_string())
            ));
        }
        service
    });
    let services = services.collect();
    let timeout = json.get("timeout").and_then(Json::as_f64).filter(|timeout| is_timeout(*timeout)).map(Duration::from_secs_f64);
    let will = json.get("lwt").filter(|will| will.is_object());
    Some(Entry {
        client,
        topics: texts(json, "topics"),
        version: text(json, "version").unwrap_or_default(),
        connected,
        state: "gone",
        last_heard: json.get("lastHeard").and_then(Json::as_u64),
        timeout,
        will: will.and_then(|will| Some(Will { topic: text(will, "topic")?, value: text(will, "value")? })),
        services,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let service = ServiceEntry {
            id: "t1".into(),
            kind: "temperature".into(),
            instance: Some(5),
            wanted: true,
            written: ["/Offset".into()].into(),
            grown: ["/SwitchableOutput/a/State".into()].into(),
            values: None,
        };
        let text = Value::Str("a \"b\"".into());
        let items = [("/A", Value::Int(-1)), ("/B", Value::Double(5.0)), ("/C", Value::Double(0.1 + 0.2)), ("/D", text.clone())];
        let items = items.into_iter().chain([("/E", Value::Array([text].into()))]).map(|(path, value)| (path.into(), value)).collect();
        let values = Values { at: 1_795_259_500, seen: 1_795_259_499, items };
        let entry = Entry {
            client: "fe\"001".into(),
            topics: vec!["fe001".into()],
            version: "v1.0".into(),
            connected: true,
            state: "gone",
            last_heard: Some(1_795_259_400),
            will: Some(Will { topic: "a/LWT".into(), value: "Offline".into() }),
            timeout: Some(Duration::from_millis(2500)),
            services: vec![
                ServiceEntry { values: Some(values), ..service.clone() },
                ServiceEntry { instance: None, wanted: false, ..service },
            ],
        };
        let entries = [entry.clone(), Entry { will: None, last_heard: None, timeout: None, connected: false, ..entry }];
        assert_eq!(parse(&print(&entries)).unwrap(), (entries.to_vec(), Vec::new()));
    }

    /// As it was written before there were timeouts and values.
    #[test]
    fn an_older_registry() {
        let text = r#"{"version":1,"devices":[{"clientId":"a","topics":["a"],"version":"v1","connected":true,"lastHeard":1795259400,"lwt":null,
            "services":[{"id":"t1","type":"temperature","instance":5,"wanted":true,"written":["/Offset"],"grown":[]}]}]}"#;
        let (entries, left_out) = parse(text).unwrap();
        assert_eq!(left_out, Vec::<String>::new());
        let service =
            ServiceEntry { id: "t1".into(), kind: "temperature".into(), instance: Some(5), wanted: true, ..ServiceEntry::default() };
        let expected = Entry {
            client: "a".into(),
            topics: vec!["a".into()],
            version: "v1".into(),
            connected: true,
            state: "gone",
            last_heard: Some(1_795_259_400),
            services: vec![ServiceEntry { written: ["/Offset".into()].into(), ..service }],
            ..Entry::default()
        };
        assert_eq!(entries, [expected]);
    }

    /// Values that cannot be read cost themselves only.
    #[test]
    fn values_that_are_none_of_ours() {
        let of = |values: &str, timeout: &str| {
            let service = format!(r#"{{"id":"t1","type":"temperature","values":{values}}}"#);
            parse(&format!(r#"{{"version":1,"devices":[{{"clientId":"a","connected":true,"timeout":{timeout},"services":[{service}]}}]}}"#))
        };
        for values in ["null", "[8]", "{}", r#"{"at":-5,"seen":1,"items":{}}"#, r#"{"at":1,"seen":1,"items":[]}"#, r#"{"at":1,"items":{}}"#]
        {
            let (entries, left_out) = of(values, "1e300").unwrap();
            assert_eq!((&*entries[0].services[0].kind, &entries[0].services[0].values, entries[0].timeout), ("temperature", &None, None));
            assert!(left_out[0].contains("device \"a\": the values of a service are left out"), "{left_out:?}");
        }
        let (entries, left_out) = of(r#"{"at":1,"seen":1,"items":{"/A":null}}"#, "0").unwrap();
        assert_eq!((left_out.len(), entries[0].timeout), (0, Some(Duration::ZERO)));
    }

    #[test]
    fn what_is_none_of_ours() {
        for (text, part) in [("", "EOF"), ("{}", "no version"), (r#"{"version":2}"#, "version is 2"), (r#"{"version":1}"#, "no devices")] {
            assert!(parse(text).unwrap_err().contains(part), "{text}");
        }
        let entries = r#"{"version":1,"devices":[5,{"clientId":"x"},{"clientId":"y","connected":true,"services":[{"id":1}]}]}"#;
        let (entries, left_out) = parse(entries).unwrap();
        assert_eq!((entries.len(), entries[0].services.len()), (1, 0), "what can be used is");
        for (line, part) in left_out.iter().zip(["entry 1 is left out", "entry 2 is left out", "device \"y\": a service is left out"]) {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(left_out.len(), 3);
    }
}
