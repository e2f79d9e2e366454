//! One item, one truth: the same facts by whichever messages of a service, in any order, mixture and splitting, with paths written in any
//! way, leave the same retained payloads. A plain model says which: what came last of each part counts, and a snapshot is older than
//! every signal.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Enabled, Options};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Bridge, BusCall, Change, Method, Reply, Setup, Time};

const PORTAL: &str = "c0619ab1c2d3";
const OWNER: &str = ":1.9";
/// Services and their items. The last setting is masked.
const SERVICES: [(&str, &str, [&str; 4]); 2] = [
    ("com.victronenergy.tank.a", "tank/0", ["/Level", "/Dc/0/Voltage", "/Dc/0/Current", "/Dc/1/Voltage"]),
    (
        "com.victronenergy.settings",
        "settings/0",
        ["/Settings/A", "/Settings/Group/B", "/Settings/Group/C", "/Settings/Services/AccessPointPassword"],
    ),
];
const SETTINGS: usize = 1;
const MASKED: &str = "/Settings/Services/AccessPointPassword";

/// What is said of one item, and how its path is written.
#[derive(Clone, Debug)]
struct Entry {
    path: usize,
    style: usize,
    change: Change,
}

#[derive(Clone, Debug)]
enum Message {
    ItemsChanged(Vec<Entry>),
    PropertiesChanged(Entry),
    /// The answer to an R of the item.
    Item {
        path: usize,
        value: Value,
    },
    /// The answer to an R of the node so many levels above: items below it, of which some may be left out.
    Tree {
        path: usize,
        levels: usize,
        style: usize,
        values: Vec<(usize, Value)>,
    },
}

/// How the service is found.
#[derive(Clone, Copy, Debug)]
enum Scan {
    Items,
    Root,
    Walk,
}

/// A life of a service: signals before its scan is answered, the snapshot, and what comes after it.
#[derive(Clone, Debug)]
struct Life {
    service: usize,
    scan: Scan,
    before: Vec<Message>,
    snapshot: Vec<Entry>,
    after: Vec<Message>,
    /// The keep-alive comes first or last.
    awake: bool,
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0..3_i64).prop_map(Value::Int),
        Just(Value::Double(0.5)),
        Just(Value::Str("text".into())),
        Just(Value::Dict([("a".into(), Value::Int(1))].into())),
        Just(Value::TooLarge),
        Just(Value::Invalid),
    ]
}

fn limit() -> impl Strategy<Value = Option<Value>> {
    let limit = prop_oneof![
        2 => Just(Value::Int(0)),
        1 => Just(Value::Double(0.0)),
        1 => Just(Value::Double(f64::NAN)),
        1 => Just(Value::Double(-0.0)),
        1 => Just(Value::Int(5)),
        1 => Just(Value::Invalid),
    ];
    proptest::option::weighted(0.4, limit)
}

fn entry() -> impl Strategy<Value = Entry> {
    let change = (proptest::option::weighted(0.6, value()), limit(), limit(), limit());
    (0..4_usize, 0..4_usize, change).prop_map(|(path, style, (value, min, max, default))| Entry {
        path,
        style,
        change: Change { value, min, max, default },
    })
}

fn signal() -> impl Strategy<Value = Message> {
    prop_oneof![proptest::collection::vec(entry(), 1..4).prop_map(Message::ItemsChanged), entry().prop_map(Message::PropertiesChanged),]
}

fn message() -> impl Strategy<Value = Message> {
    let tree = (0..4_usize, 1..3_usize, 0..4_usize, proptest::collection::vec((0..4_usize, value()), 1..4));
    prop_oneof![
        3 => signal(),
        1 => (0..4_usize, value()).prop_map(|(path, value)| Message::Item { path, value }),
        1 => tree.prop_map(|(path, levels, style, values)| Message::Tree { path, levels, style, values }),
    ]
}

fn life() -> impl Strategy<Value = Life> {
    let scan = prop_oneof![Just(Scan::Items), Just(Scan::Root), Just(Scan::Walk)];
    let before = proptest::collection::vec(signal(), 0..4);
    let snapshot = proptest::collection::vec(entry(), 0..6).prop_map(|mut entries| {
        // an item may be split, and has one value all the same
        let mut seen = BTreeSet::new();
        entries.iter_mut().for_each(|entry| entry.change.value.take_if(|_| !seen.insert(entry.path)).map_or((), drop));
        entries
    });
    let after = proptest::collection::vec(message(), 0..8);
    (0..SERVICES.len(), scan, before, snapshot, after, any::<bool>()).prop_map(|(service, scan, before, mut snapshot, after, awake)| {
        if service == SETTINGS {
            // what is not there has no limits
            let none: Vec<usize> =
                snapshot.iter().filter(|entry| entry.change.value == Some(Value::Invalid)).map(|entry| entry.path).collect();
            snapshot.retain(|entry| !none.contains(&entry.path) || entry.change.value.is_some());
        }
        Life { service, scan, before, snapshot, after, awake }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_retained_depends_on_the_facts_alone(life in life()) {
        let mut world = World::new(&life);
        let mut model = Model::new(life.service);
        world.live(&life, &mut model);
        prop_assert_eq!(world.retained(), model.retained());
    }
}

/// What is known of an item.
#[derive(Clone, Debug, Default)]
struct Known {
    value: Option<Value>,
    min: Value,
    max: Value,
    default: Value,
}

struct Model {
    service: usize,
    items: BTreeMap<&'static str, Known>,
}

impl Model {
    fn new(service: usize) -> Self {
        Self { service, items: BTreeMap::new() }
    }

    fn apply(&mut self, path: &'static str, change: &Change) {
        if self.service == SETTINGS && change.value == Some(Value::Invalid) {
            self.items.remove(path);
            return;
        }
        let known = self.items.entry(path).or_default();
        if let Some(value) = &change.value {
            known.value = Some(value.clone());
        }
        for (kept, new) in [(&mut known.min, &change.min), (&mut known.max, &change.max), (&mut known.default, &change.default)] {
            if let Some(new) = new {
                *kept = new.clone();
            }
        }
    }

    fn retained(&self) -> BTreeMap<String, String> {
        let (_, topic, _) = SERVICES[self.service];
        let is_settings = self.service == SETTINGS;
        let shown = self.items.iter().filter(|(_, known)| !is_settings || known.value.is_some());
        shown.map(|(path, known)| (format!("N/{PORTAL}/{topic}{path}"), known.payload(is_settings, path))).collect()
    }
}

impl Known {
    fn payload(&self, is_settings: bool, path: &str) -> String {
        if is_settings && path == MASKED {
            return "{\"value\":\"******\"}".into();
        }
        let is_zero = |value: &Value| ["0", "0.0", "-0.0"].contains(&json(value).as_str());
        let unlimited = is_settings && is_zero(&self.min) && is_zero(&self.max);
        let mut text = format!("{{\"value\":{}", json(self.value.as_ref().unwrap_or(&Value::Invalid)));
        for (key, limit) in [("min", &self.min), ("max", &self.max), ("default", &self.default)] {
            if json(limit) != "null" && (key == "default" || !unlimited) {
                text += &format!(",\"{key}\":{}", json(limit));
            }
        }
        text + "}"
    }
}

fn json(value: &Value) -> String {
    let mut out = Vec::new();
    value.write_json(&mut out);
    String::from_utf8(out).unwrap()
}

/// A path as messages of services write it.
fn written(path: &str, style: usize) -> String {
    match style {
        0 => path.to_owned(),
        1 => path.trim_start_matches('/').to_owned(),
        2 => format!("/{}", path.replace('/', "//")),
        _ => format!("{}/", path.trim_start_matches('/')),
    }
}

struct World {
    bridge: Bridge,
    service: usize,
    retained: BTreeMap<String, String>,
}

impl World {
    fn new(life: &Life) -> Self {
        let options = Options { enabled: Enabled::Yes, ..Options::default() };
        let portal = PortalId::parse(PORTAL).unwrap();
        let setup = Setup { portal, prefix: String::new(), options, beside: false, nonce: 1, verbosity: log::Level::Warn };
        let mut world = Self { bridge: Bridge::new(setup), service: life.service, retained: BTreeMap::new() };
        world.bridge.bus_up(now());
        let names = world.call();
        world.bridge.reply(now(), names.id, Reply::Names(Vec::new()));
        world.bridge.link_up(now());
        if life.awake {
            world.say("keepalive");
        }
        world
    }

    fn live(&mut self, life: &Life, model: &mut Model) {
        let (name, _, paths) = SERVICES[life.service];
        self.bridge.name_owner_changed(now(), name, "", OWNER);
        let scan = self.call();
        self.messages(&life.before);
        let facts = self.scan(life, scan);
        facts.iter().for_each(|(path, change)| model.apply(path, change));
        self.take();
        self.messages(&life.after);
        for message in life.before.iter().chain(&life.after) {
            match message {
                Message::ItemsChanged(entries) => entries.iter().for_each(|entry| model.apply(paths[entry.path], &entry.change)),
                Message::PropertiesChanged(entry) => model.apply(paths[entry.path], &entry.change),
                Message::Item { path, value } => model.apply(paths[*path], &Change::of(value.clone())),
                Message::Tree { path, levels, values, .. } => {
                    let node = above(paths[*path], *levels);
                    for (path, value) in values.iter().filter(|(path, _)| paths[*path].starts_with(&format!("{node}/"))) {
                        model.apply(paths[*path], &Change::of(value.clone()));
                    }
                }
            }
        }
        if !life.awake {
            self.say("keepalive");
        }
        self.take();
    }

    /// Answers the scan; gives the facts that its answers hold.
    fn scan(&mut self, life: &Life, first: BusCall) -> Vec<(&'static str, Change)> {
        let paths = SERVICES[life.service].2;
        let unknown = || Reply::Error { name: "org.freedesktop.DBus.Error.UnknownMethod".into(), text: String::new() };
        assert_eq!(first.method, Method::GetItems);
        if matches!(life.scan, Scan::Items) {
            let items = life.snapshot.iter().map(|entry| (written(paths[entry.path], entry.style), entry.change.clone())).collect();
            self.bridge.reply(now(), first.id, Reply::Items(items));
            return life.snapshot.iter().map(|entry| (paths[entry.path], entry.change.clone())).collect();
        }
        self.bridge.reply(now(), first.id, unknown());
        // a walk that finds nothing is none
        let mut values: Vec<(usize, usize, Value)> =
            life.snapshot.iter().filter_map(|entry| Some((entry.path, entry.style, entry.change.value.clone()?))).collect();
        if values.iter().all(|(.., value)| *value == Value::Invalid) {
            values = vec![(0, 1, Value::Int(1))];
        }
        let facts = values.iter().map(|(path, _, value)| (paths[*path], Change::of(value.clone()))).collect();
        while let Some(call) = self.bridge.poll_call(now()) {
            let of_item = values.iter().find(|(path, ..)| *paths[*path] == *call.path);
            let reply = match (&call.method, of_item) {
                (Method::GetValue, None) if matches!(life.scan, Scan::Root) => {
                    let entries = values.iter().map(|(path, style, value)| (written(paths[*path], *style).into(), value.clone()));
                    Reply::Value(Value::Dict(entries.collect()))
                }
                (Method::Introspect, item) => {
                    let below = |path: &&str| path.strip_prefix(call.path.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'));
                    let depth = call.path.trim_end_matches('/').split('/').count();
                    let children: BTreeSet<&str> =
                        values.iter().map(|(path, ..)| paths[*path]).filter(below).filter_map(|path| path.split('/').nth(depth)).collect();
                    let interface = item.map_or("", |_| "<interface name=\"com.victronenergy.BusItem\"/>");
                    let nodes: String = children.iter().map(|child| format!("<node name=\"{child}\"/>")).collect();
                    Reply::Text(format!("<node>{interface}{nodes}</node>"))
                }
                (Method::GetValue, Some((.., value))) => Reply::Value(value.clone()),
                _ => unknown(),
            };
            self.bridge.reply(now(), call.id, reply);
        }
        facts
    }

    fn messages(&mut self, messages: &[Message]) {
        let (_, topic, paths) = SERVICES[self.service];
        for message in messages {
            match message {
                Message::ItemsChanged(entries) => {
                    let mut changes = self.bridge.changes(now(), OWNER).unwrap();
                    entries.iter().for_each(|entry| changes.item(&written(paths[entry.path], entry.style), entry.change.clone()));
                }
                // its path is that of an object on the bus
                Message::PropertiesChanged(entry) => {
                    self.bridge.changes(now(), OWNER).unwrap().item(paths[entry.path], entry.change.clone());
                }
                Message::Item { path, value } => {
                    let interface = "<interface name=\"com.victronenergy.BusItem\"/>";
                    self.read(&format!("{topic}{}", paths[*path]), Reply::Value(value.clone()), interface);
                }
                Message::Tree { path, levels, style, values } => {
                    let node = above(paths[*path], *levels);
                    let relative = |(path, value): &(usize, Value)| {
                        let rest = paths[*path].strip_prefix(node)?;
                        rest.starts_with('/').then(|| (written(rest, *style).into(), value.clone()))
                    };
                    let values: Vec<_> = values.iter().filter_map(relative).collect();
                    if !values.is_empty() {
                        self.read(&format!("{topic}{node}"), Reply::Value(Value::Dict(values.into())), "<node name=\"Below\"/>");
                    }
                }
            }
            self.take();
        }
    }

    /// `node`: what the object says of itself when it is asked whether there are others below it.
    fn read(&mut self, topic: &str, reply: Reply, node: &str) {
        self.say(topic);
        while let Some(call) = self.bridge.poll_call(now()) {
            let reply = match call.method {
                Method::GetValue => reply.clone(),
                Method::Introspect => Reply::Text(format!("<node>{node}</node>")),
                other => unreachable!("{other:?}"),
            };
            self.bridge.reply(now(), call.id, reply);
        }
    }

    fn call(&mut self) -> BusCall {
        self.bridge.poll_call(now()).unwrap()
    }

    fn say(&mut self, rest: &str) {
        self.bridge.message(now(), &format!("R/{PORTAL}/{rest}"), b"", false);
    }

    fn take(&mut self) {
        while let Some(publish) = self.bridge.poll_publish(now(), 1000) {
            if publish.retain && publish.payload.is_empty() {
                self.retained.remove(&publish.topic);
            } else if publish.retain {
                self.retained.insert(publish.topic, String::from_utf8(publish.payload).unwrap());
            }
        }
    }

    fn retained(&self) -> BTreeMap<String, String> {
        let of_service = format!("N/{PORTAL}/{}/", SERVICES[self.service].1);
        self.retained
            .iter()
            .filter(|(topic, _)| topic.starts_with(&of_service))
            .map(|(topic, text)| (topic.clone(), text.clone()))
            .collect()
    }
}

fn now() -> Time {
    Time::since_start(Duration::from_secs(1))
}

/// The node so many levels above, `` for the root.
fn above(path: &str, levels: usize) -> &str {
    (0..levels).fold(path, |path, _| path.rsplit_once('/').map_or("", |(node, _)| node))
}
