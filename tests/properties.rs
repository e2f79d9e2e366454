//! The core against a small model of what should be: whatever happens, and in whatever order, what is retained at the broker in
//! the end is what the bus has and somebody keeps awake, and nothing else. And no bytes from outside make it panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use venus_mqtt::bridge::filter::Filter;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Enabled, Options};
use venus_mqtt::bridge::value::{LIMIT_JSON_MAX, VALUE_JSON_MAX, Value, parse_payload};
use venus_mqtt::bridge::{Bridge, Change, LinkCommand, Method, Publish, Reply, Setup, Time, limits};

const PORTAL: &str = "c0619ab1c2d3";
const INTERVAL: Duration = Duration::from_secs(60);
const SERVICES: [&str; 5] = [
    "com.victronenergy.battery.a",
    "com.victronenergy.battery.b",
    "com.victronenergy.tank.c",
    "com.victronenergy.tank",
    "com.victronenergy.settings",
];
/// Of these, the one that can remove an item.
const SETTINGS: usize = 4;
const PATHS: [&str; 3] = ["/Soc", "/Dc/0/Voltage", "/Level"];
const FILTERS: [&str; 4] = ["battery/#", "+/1/Soc", "tank/+/Level", "+/+/Dc/#"];

#[derive(Clone, Debug)]
enum Step {
    /// The service comes, or comes back with another owner.
    Appear {
        service: usize,
        instance: i64,
        value: i64,
    },
    Leave {
        service: usize,
    },
    Change {
        service: usize,
        path: usize,
        value: i64,
    },
    /// A setting is removed.
    Remove {
        path: usize,
    },
    Rename {
        service: usize,
        instance: i64,
    },
    KeepAll,
    Keep {
        filter: usize,
    },
    Pass {
        millis: u64,
    },
    /// The broker takes so many messages.
    Take {
        messages: usize,
    },
    /// The connection breaks; so many of the last messages never arrived, and the broker may forget everything.
    Down {
        lost: usize,
        forgets: bool,
    },
    Up,
    Read {
        service: usize,
        path: usize,
    },
    /// Everything is let to its end, and looked at.
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let service = 0..SERVICES.len();
    let step = prop_oneof![
        3 => (service.clone(), 0..3_i64, 0..9_i64).prop_map(|(service, instance, value)| Step::Appear { service, instance, value }),
        1 => service.clone().prop_map(|service| Step::Leave { service }),
        5 => (service.clone(), 0..PATHS.len(), 0..9_i64).prop_map(|(service, path, value)| Step::Change { service, path, value }),
        2 => (0..PATHS.len()).prop_map(|path| Step::Remove { path }),
        2 => (0..PATHS.len(), 0..9_i64).prop_map(|(path, value)| Step::Change { service: SETTINGS, path, value }),
        1 => (service.clone(), 0..3_i64).prop_map(|(service, instance)| Step::Rename { service, instance }),
        2 => Just(Step::KeepAll),
        2 => (0..FILTERS.len()).prop_map(|filter| Step::Keep { filter }),
        3 => (1..40_000_u64).prop_map(|millis| Step::Pass { millis }),
        4 => (0..12_usize).prop_map(|messages| Step::Take { messages }),
        1 => (0..5_usize, any::<bool>()).prop_map(|(lost, forgets)| Step::Down { lost, forgets }),
        1 => Just(Step::Up),
        1 => (service, 0..PATHS.len()).prop_map(|(service, path)| Step::Read { service, path }),
        1 => Just(Step::Settle),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn retained_is_what_it_should_be(steps in steps(), retain in any::<bool>()) {
        let mut world = World::new(retain);
        for step in steps {
            world.step(step)?;
        }
        world.step(Step::Settle)?;
        world.stop();
        prop_assert_eq!(world.values_retained(), BTreeMap::new(), "after the end nothing is retained");
    }

    #[test]
    fn no_bytes_make_it_panic(
        messages in proptest::collection::vec((topic(), proptest::collection::vec(any::<u8>(), 0..60), any::<bool>()), 0..40)
    ) {
        let mut world = World::new(true);
        world.step(Step::Appear { service: 0, instance: 1, value: 1 })?;
        for (topic, payload, retained) in messages {
            let now = world.now();
            world.bridge.message(now, &topic, &payload, retained);
            world.bridge.name_owner_changed(now, &topic, "", &topic);
            if let Some(mut changes) = world.bridge.changes(now, ":1.0") {
                changes.item(&topic, Change::of(Value::Int(1)));
            }
            world.bridge.subscribed(now, &topic, retained);
            world.pump();
            world.take(usize::MAX);
        }
    }

    #[test]
    fn a_value_survives_its_json(json in json()) {
        let payload = format!("{{\"value\":{json}}}");
        let value = parse_payload(payload.as_bytes()).unwrap();
        let mut printed = Vec::new();
        value.write_json(&mut printed);
        let again = parse_payload(&[b"{\"value\":", &printed[..], b"}"].concat()).unwrap();
        prop_assert_eq!(value, again);
    }
}

/// A broker that hands in keep-alives and takes no answers: what waits for it is bounded, and comes when it takes them again.
#[test]
fn echoes_are_bounded_while_the_broker_takes_nothing() {
    let mut world = World::new(true);
    for second in 0..4 {
        for n in 0..3000 {
            world.say("keepalive", format!("{{\"keepalive-options\":[{{\"full-publish-completed-echo\":\"{second} {n}\"}}]}}").as_bytes());
        }
        world.pass(Duration::from_secs(1));
    }
    let mut echoes = 0;
    while let Some(publish) = world.bridge.poll_publish(world.now(), 1000) {
        echoes += usize::from(publish.topic.ends_with("/full_publish_completed"));
    }
    assert_eq!(echoes, limits::COMPLETIONS);
}

/// A bridge with one service of so many items, all of them published.
fn published(items: usize) -> Bridge {
    let mut world = World::new(true);
    world.say("keepalive", b"");
    appear(&mut world.bridge, world.elapsed, 0, items);
    world.take(usize::MAX);
    world.bridge
}

fn appear(bridge: &mut Bridge, elapsed: Duration, owner: u64, items: usize) {
    let now = Time::since_start(elapsed);
    bridge.name_owner_changed(now, SERVICES[0], "", &format!(":1.{owner}"));
    let call = std::iter::from_fn(|| bridge.poll_call(now)).find(|call| call.method == Method::GetItems).unwrap();
    let answer = (0..items).map(|n| (format!("/Item/{n}"), Change::of(Value::Int(1)))).collect();
    bridge.reply(now, call.id, Reply::Items(answer));
}

/// What the summary says in this place.
fn summary(bridge: &Bridge, now: Time, before: &str, after: &str) -> usize {
    let text = bridge.summary(now).join("\n");
    let rest = text.split_once(before).unwrap().1;
    rest.split_once(after).unwrap().0.trim().parse().unwrap()
}

/// A service gives up its name and takes it again while the broker takes nothing: what waits is bounded by its items, and in the end
/// every topic has been cleared once and published once.
#[test]
fn the_queue_is_bounded_by_the_items() {
    const ITEMS: usize = 2000;
    let mut bridge = published(ITEMS);
    let mut most = 0;
    for turn in 0..60_u64 {
        let now = Time::since_start(Duration::from_millis(66 * turn));
        bridge.name_owner_changed(now, SERVICES[0], &format!(":1.{turn}"), "");
        appear(&mut bridge, Duration::from_millis(66 * turn), turn + 1, ITEMS);
        most = most.max(summary(&bridge, now, "queued:", "messages"));
    }
    let allowed = 9 * ITEMS / 4 + limits::STALE + limits::COMPLETIONS;
    assert!((ITEMS..=allowed).contains(&most), "{most} entries for {ITEMS} items");
    let mut payloads: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    while let Some(publish) = bridge.poll_publish(Time::since_start(Duration::from_secs(20)), 1000) {
        if publish.topic.contains("/Item/") {
            payloads.entry(publish.topic).or_default().push(publish.payload.len());
        }
    }
    assert_eq!(payloads.len(), ITEMS);
    assert!(payloads.values().all(|sent| *sent == [0, 11]), "cleared once, then published");
}

/// More topics are left behind than are remembered: a sweep looks for the rest.
#[test]
fn topics_that_are_not_remembered_are_swept() {
    let mut bridge = published(limits::LEFT_TOPICS + 10);
    let now = Time::since_start(Duration::from_secs(1));
    while bridge.poll_link().is_some() {}
    bridge.name_owner_changed(now, SERVICES[0], ":1.0", "");
    assert_eq!(bridge.poll_link(), None, "first what is remembered");
    let cleared = std::iter::from_fn(|| bridge.poll_publish(now, 1000)).filter(|publish| publish.payload.is_empty()).count();
    assert_eq!(cleared, limits::LEFT_TOPICS);
    assert_eq!(bridge.poll_link(), None, "first what the replay has to bring");
    assert_eq!(std::iter::from_fn(|| bridge.poll_publish(now, 1000)).count(), 2);
    assert_eq!(bridge.poll_link(), Some(LinkCommand::Subscribe(vec![format!("N/{PORTAL}/#")])));
    assert_eq!(bridge.poll_link(), None, "once");
}

/// A service that makes up paths, or fills them with texts, leaves room for the others, and is named.
#[test]
fn one_service_leaves_room_for_the_others() {
    let text = |length: usize| Change::of(Value::Str("x".repeat(length).into()));
    for (length, items) in [(0, 70_000), (200 * 1024, 200)] {
        let mut world = World::new(true);
        world.say("keepalive", b"");
        appear(&mut world.bridge, world.elapsed, 0, 1);
        let mut changes = world.bridge.changes(world.now(), ":1.0").unwrap();
        (0..items).for_each(|n| changes.item(&format!("/Made/Up/{n}"), text(length)));
        let notes: Vec<_> = std::iter::from_fn(|| world.bridge.poll_note()).map(|note| note.text).collect();
        assert!(notes.iter().any(|note| note.contains(SERVICES[0]) && note.contains("most")), "{notes:?}");
        assert!(summary(&world.bridge, world.now(), "items of", "KiB") <= limits::SERVICE_BYTES / 1024 + 1);
        let now = world.now();
        world.bridge.name_owner_changed(now, SERVICES[2], "", ":1.7");
        let call = std::iter::from_fn(|| world.bridge.poll_call(now)).find(|call| call.method == Method::GetItems).unwrap();
        world.bridge.reply(world.now(), call.id, Reply::Items(vec![("/Level".into(), text(1000))]));
        let mut changes = world.bridge.changes(world.now(), ":1.7").unwrap();
        changes.item("/Level", text(2000));
        let published =
            std::iter::from_fn(|| world.bridge.poll_publish(world.now(), 1000)).find(|publish| publish.topic.ends_with("/Level"));
        assert_eq!(published.unwrap().payload.len(), 2012);
    }
}

/// Devices that are registered and forgotten again and again, each time under another name: what is known, queued and retained does
/// not grow, whether the broker takes what there is at once, later, or is away.
#[test]
fn settings_that_come_and_go_leave_nothing_behind() {
    for takes in [true, false] {
        for away in [true, false] {
            let mut world = World::new(true);
            world.step(Step::Appear { service: SETTINGS, instance: 0, value: 1 }).unwrap();
            world.step(Step::KeepAll).unwrap();
            world.step(Step::Settle).unwrap();
            let before = (world.values_retained(), world.items_known());
            let owner = world.services[&SETTINGS].owner.clone();
            if away {
                world.down(0, false);
            }
            for flap in 0..500 {
                let path = format!("/Settings/Devices/d{flap}/ClassAndVrmInstance");
                for value in [Value::Int(flap), Value::Invalid] {
                    world.bridge.changes(world.now(), &owner).unwrap().item(&path, Change::of(value));
                    if takes {
                        world.take(usize::MAX);
                    }
                }
                // a value of one that stays, which may have another place by now
                let value = flap % 9;
                world.step(Step::Change { service: SETTINGS, path: 2, value }).unwrap();
            }
            if away {
                assert_eq!(world.items_known(), before.1, "nothing of them was ever published");
            }
            world.step(Step::Change { service: SETTINGS, path: 2, value: 1 }).unwrap();
            world.step(Step::Settle).unwrap();
            assert_eq!((world.values_retained(), world.items_known()), before);
        }
    }
}

/// What is too large is shown as null, whichever message brought it, and nothing beside it is lost.
#[test]
fn a_value_is_shown_alike_whichever_message_brought_it() {
    let longest = "x".repeat(VALUE_JSON_MAX - 2);
    let numbers = |count| Value::Array(vec![Value::Int(1); count].into());
    for (value, shown) in [
        (Value::Str(longest.clone().into()), format!("\"{longest}\"")),
        (Value::Str(format!("{longest}x").into()), "null".to_owned()),
        (Value::Str("\u{1}".repeat(VALUE_JSON_MAX / 6 + 1).into()), "null".to_owned()),
        (numbers(32 * 1024), format!("[{}]", vec!["1"; 32 * 1024].join(","))),
        (numbers(32 * 1024 + 1), "null".to_owned()),
        (Value::TooLarge, "null".to_owned()),
        (Value::Str("x".repeat(LIMIT_JSON_MAX - 2).into()), format!("\"{}\"", "x".repeat(LIMIT_JSON_MAX - 2))),
        (Value::Str("x".repeat(LIMIT_JSON_MAX - 1).into()), format!("\"{}\"", "x".repeat(LIMIT_JSON_MAX - 1))),
    ] {
        let large = || Change { min: Some(value.clone()), ..Change::of(value.clone()) };
        for way in 0..4 {
            let mut world = World::new(true);
            let now = world.now();
            world.say("keepalive", b"");
            world.bridge.name_owner_changed(now, SERVICES[0], "", ":1.9");
            let scan = world.bridge.poll_call(now).unwrap();
            let change = |path: &str, change| (path.to_owned(), change);
            let mut items = vec![change("/DeviceInstance", Change::of(Value::Int(1))), change("/Soc", Change::of(Value::Int(5)))];
            let scanned = if way == 0 { large() } else { Change::of(Value::Int(3)) };
            items.insert(1, change("/Large", scanned));
            world.bridge.reply(now, scan.id, Reply::Items(items));
            match way {
                1 => world.bridge.changes(now, ":1.9").unwrap().item("/Large", large()),
                2 | 3 => {
                    world.say(if way == 2 { "battery/1/Large" } else { "battery/1" }, b"");
                    let read = world.bridge.poll_call(now).unwrap();
                    let tree = [("Large".into(), value.clone())];
                    let reply = if way == 2 { value.clone() } else { Value::Dict(tree.into()) };
                    world.bridge.reply(now, read.id, Reply::Value(reply));
                }
                _ => {}
            }
            let mut last = BTreeMap::new();
            while let Some(publish) = world.bridge.poll_publish(now, 1000) {
                last.insert(publish.topic, String::from_utf8(publish.payload).unwrap());
            }
            let limits =
                if way < 2 && shown.len() <= LIMIT_JSON_MAX && shown != "null" { format!(",\"min\":{shown}") } else { String::new() };
            let (payload, expected) = (&last[&format!("N/{PORTAL}/battery/1/Large")], format!("{{\"value\":{shown}{limits}}}"));
            let start = |text: &str| text.chars().take(100).collect::<String>();
            assert!(*payload == expected, "way {way}: {} bytes, {}; not {}", payload.len(), start(payload), expected.len());
            assert_eq!(last[&format!("N/{PORTAL}/battery/1/Soc")], "{\"value\":5}");
        }
    }
}

fn topic() -> impl Strategy<Value = String> {
    let part = prop_oneof!["[a-zA-Z0-9/+#_. ]{0,12}", Just("battery/1/Soc".to_owned()), Just("keepalive".to_owned()), ".{0,8}"];
    (prop_oneof![Just("R"), Just("W"), Just("N"), Just("")], prop_oneof![Just(PORTAL), Just("x")], part)
        .prop_map(|(a, b, c)| format!("{a}/{b}/{c}"))
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("finite", |d| d.is_finite()).prop_map(|d| format!("{d:?}")),
        "[a-zA-Z äé\\\\/]{0,10}".prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|all| format!("[{}]", all.join(","))),
            proptest::collection::vec(inner, 0..4).prop_map(|all| format!(
                "{{{}}}",
                all.iter().enumerate().map(|(n, v)| format!("\"k{n}\":{v}")).collect::<Vec<_>>().join(",")
            )),
        ]
    })
}

/// A service as the model knows it.
#[derive(Clone, Debug)]
struct Known {
    owner: String,
    instance: i64,
    items: BTreeMap<&'static str, i64>,
    /// Has its topics.
    holder: bool,
    age: u64,
}

struct World {
    bridge: Bridge,
    retain: bool,
    elapsed: Duration,
    connected: bool,
    /// What the broker keeps.
    retained: BTreeMap<String, String>,
    /// The last messages, of which some may get lost.
    recent: VecDeque<Publish>,
    /// The bridge listens to notifications.
    listening: bool,
    owners: u64,
    services: BTreeMap<usize, Known>,
    everything_until: Duration,
    filters: BTreeMap<usize, Duration>,
}

impl World {
    fn new(retain: bool) -> Self {
        let options = Options { enabled: Enabled::Yes, retain, ..Options::default() };
        let portal = PortalId::parse(PORTAL).unwrap();
        let setup = Setup { portal, prefix: String::new(), options, beside: false, nonce: 1, verbosity: log::Level::Warn };
        let mut world = Self {
            bridge: Bridge::new(setup),
            retain,
            elapsed: Duration::from_secs(1),
            connected: true,
            retained: BTreeMap::from([(format!("N/{PORTAL}/battery/7/Stale"), "{\"value\":1}".to_owned())]),
            recent: VecDeque::new(),
            listening: false,
            owners: 0,
            services: BTreeMap::new(),
            everything_until: Duration::ZERO,
            filters: BTreeMap::new(),
        };
        world.bridge.bus_up(world.now());
        world.pump();
        world.bridge.link_up(world.now());
        world.pump();
        world
    }

    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Appear { service, instance, value } => self.appear(service, instance, value),
            Step::Leave { service } => self.leave(service),
            Step::Change { service, path, value } => {
                if let Some(known) = self.services.get_mut(&service) {
                    known.items.insert(PATHS[path], value);
                    let owner = known.owner.clone();
                    self.change(&owner, PATHS[path], value);
                }
            }
            Step::Remove { path } => {
                if let Some(known) = self.services.get_mut(&SETTINGS) {
                    known.items.remove(PATHS[path]);
                    let owner = known.owner.clone();
                    if let Some(mut changes) = self.bridge.changes(self.now(), &owner) {
                        changes.item(PATHS[path], Change::of(Value::Invalid));
                    }
                }
            }
            Step::Rename { service, instance } => self.rename(service, instance),
            Step::KeepAll if self.connected => {
                self.everything_until = self.elapsed + INTERVAL;
                self.say("keepalive", b"");
            }
            Step::Keep { filter } if self.connected => {
                self.filters.insert(filter, self.elapsed + INTERVAL);
                self.say("keepalive", format!("[\"{}\"]", FILTERS[filter]).as_bytes());
            }
            Step::KeepAll | Step::Keep { .. } => {}
            Step::Pass { millis } => self.pass(Duration::from_millis(millis)),
            Step::Take { messages } => self.take(messages),
            Step::Down { lost, forgets } => self.down(lost, forgets),
            Step::Up => self.up(),
            Step::Read { service, path } => {
                if let Some(known) = self.services.get(&service).filter(|_| self.connected) {
                    let rest = format!("{}/{}{}", service_type(service), known.instance, PATHS[path]);
                    self.say(&rest, b"");
                }
            }
            Step::Settle => {
                self.up();
                self.take(usize::MAX);
                // a fourth republish within a second comes late
                self.pass(Duration::from_secs(1));
                self.take(usize::MAX);
                prop_assert_eq!(self.values_retained(), self.expected());
                prop_assert_eq!(self.items_known(), self.services.values().map(|known| known.items.len()).sum::<usize>());
            }
        }
        self.pump();
        Ok(())
    }

    fn appear(&mut self, service: usize, instance: i64, value: i64) {
        let old = self.services.get(&service).map(|known| known.owner.clone()).unwrap_or_default();
        self.forget(service);
        self.owners += 1;
        let owner = format!(":1.{}", self.owners);
        let items = BTreeMap::from([("/DeviceInstance", instance), (PATHS[0], value), (PATHS[2], value)]);
        let known = Known { owner: owner.clone(), instance, items, holder: false, age: self.owners };
        self.services.insert(service, known);
        self.claim(service);
        self.bridge.name_owner_changed(self.now(), SERVICES[service], &old, &owner);
    }

    fn leave(&mut self, service: usize) {
        if let Some(owner) = self.services.get(&service).map(|known| known.owner.clone()) {
            self.forget(service);
            self.bridge.name_owner_changed(self.now(), SERVICES[service], &owner, "");
        }
    }

    fn rename(&mut self, service: usize, instance: i64) {
        let Some(known) = self.services.get(&service).cloned() else { return };
        if known.instance != instance {
            self.forget(service);
            let items = known.items.clone().into_iter().chain([("/DeviceInstance", instance)]).collect();
            self.services.insert(service, Known { instance, items, holder: false, ..known.clone() });
            self.claim(service);
        }
        self.change(&known.owner, "/DeviceInstance", instance);
    }

    /// The model: the topics of a service that goes fall to the oldest that waits for them.
    fn forget(&mut self, service: usize) {
        let Some(gone) = self.services.remove(&service) else { return };
        let waits = |(other, known): &(&usize, &mut Known)| {
            gone.holder && !known.holder && service_type(**other) == service_type(service) && known.instance == gone.instance
        };
        if let Some((_, heir)) = self.services.iter_mut().filter(waits).min_by_key(|(_, known)| known.age) {
            heir.holder = true;
        }
    }

    fn claim(&mut self, service: usize) {
        let instance = self.services[&service].instance;
        let taken = self
            .services
            .iter()
            .any(|(other, known)| known.holder && service_type(*other) == service_type(service) && known.instance == instance);
        self.services.get_mut(&service).unwrap().holder = !taken;
    }

    fn change(&mut self, owner: &str, path: &str, value: i64) {
        if let Some(mut changes) = self.bridge.changes(self.now(), owner) {
            changes.item(path, Change::of(Value::Int(value)));
        }
    }

    fn say(&mut self, rest: &str, payload: &[u8]) {
        self.bridge.message(self.now(), &format!("R/{PORTAL}/{rest}"), payload, false);
    }

    fn pass(&mut self, amount: Duration) {
        let end = self.elapsed + amount;
        while let Some(due) = self.bridge.poll_timeout()
            && due <= Time::since_start(end)
        {
            self.elapsed = self.elapsed.max(due.after(Time::default()));
            self.bridge.handle_timeout(self.now());
            self.pump();
        }
        self.elapsed = end;
    }

    fn down(&mut self, lost: usize, forgets: bool) {
        if !self.connected {
            return;
        }
        (self.connected, self.listening) = (false, false);
        self.recent.truncate(self.recent.len().saturating_sub(lost));
        self.deliver_recent();
        if forgets {
            self.retained.clear();
        }
        self.bridge.link_down();
    }

    fn up(&mut self) {
        if !self.connected {
            self.connected = true;
            self.bridge.link_up(self.now());
            self.pump();
        }
    }

    /// Answers what the bridge asks, of the bus and of the broker.
    fn pump(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(call) = self.bridge.poll_call(self.now()) {
                quiet = false;
                let service = self.services.values().find(|known| known.owner == *call.destination);
                let reply = match (&call.method, service) {
                    (Method::ListNames, _) => Reply::Names(Vec::new()),
                    (Method::GetItems, Some(known)) => {
                        Reply::Items(known.items.iter().map(|(path, value)| ((*path).to_owned(), Change::of(Value::Int(*value)))).collect())
                    }
                    (Method::GetValue, Some(known)) if known.items.contains_key(&*call.path) => {
                        Reply::Value(Value::Int(known.items[&*call.path]))
                    }
                    _ => Reply::Error { name: "org.freedesktop.DBus.Error.UnknownObject".into(), text: String::new() },
                };
                self.bridge.reply(self.now(), call.id, reply);
            }
            while let Some(command) = self.bridge.poll_link() {
                quiet = false;
                self.obey(command);
            }
            while self.bridge.poll_note().is_some() {}
            if quiet {
                return;
            }
        }
    }

    fn obey(&mut self, command: LinkCommand) {
        match command {
            LinkCommand::Subscribe(filters) => {
                self.deliver_recent();
                for filter in filters {
                    self.bridge.subscribed(self.now(), &filter, true);
                    if filter.starts_with("N/") {
                        self.listening = true;
                        for (topic, payload) in self.retained.clone() {
                            self.bridge.message(self.now(), &topic, payload.as_bytes(), true);
                        }
                    }
                }
            }
            LinkCommand::Unsubscribe(_) => self.listening = false,
        }
    }

    /// The broker takes messages, in order.
    fn take(&mut self, most: usize) {
        for _ in 0..most {
            let Some(publish) = self.bridge.poll_publish(self.now(), 1000) else {
                self.pump();
                if self.bridge.is_drained() {
                    break;
                }
                continue;
            };
            self.recent.push_back(publish);
            if self.recent.len() > 5 {
                self.deliver();
            }
        }
        if most == usize::MAX {
            self.deliver_recent();
            self.pump();
            if !self.bridge.is_drained() {
                self.take(most);
            }
        }
    }

    fn deliver_recent(&mut self) {
        while !self.recent.is_empty() {
            self.deliver();
        }
    }

    fn deliver(&mut self) {
        let Some(Publish { topic, payload, retain }) = self.recent.pop_front() else { return };
        let text = String::from_utf8(payload.clone()).unwrap();
        if retain && text.is_empty() {
            self.retained.remove(&topic);
        } else if retain {
            self.retained.insert(topic.clone(), text);
        }
        if self.listening && topic.starts_with("N/") {
            self.bridge.message(self.now(), &topic, &payload, false);
        }
    }

    fn stop(&mut self) {
        self.bridge.shut_down(self.now());
        self.take(usize::MAX);
    }

    /// What is retained beside the two constants.
    fn values_retained(&self) -> BTreeMap<String, String> {
        let constant = |topic: &str| topic.ends_with("/system/0/Serial") || topic == format!("N/{PORTAL}/keepalive");
        self.retained.iter().filter(|(topic, _)| topic.starts_with("N/") && !constant(topic)).map(|(t, p)| (t.clone(), p.clone())).collect()
    }

    /// As the summary has it.
    fn items_known(&self) -> usize {
        let line = self.bridge.summary(self.now()).remove(0);
        line.split(" items").next().and_then(|text| text.split(' ').next_back()).unwrap().parse().unwrap()
    }

    fn expected(&self) -> BTreeMap<String, String> {
        let mut expected = BTreeMap::new();
        for (service, known) in self.services.iter().filter(|(_, known)| self.retain && known.holder) {
            for (path, value) in &known.items {
                let (service_type, instance) = (service_type(*service), known.instance.to_string());
                let takes = |filter: &usize| Filter::parse(FILTERS[*filter]).unwrap().matches(service_type, &instance, path);
                let awake = self.elapsed < self.everything_until
                    || self.filters.iter().any(|(filter, until)| self.elapsed < *until && takes(filter));
                if awake {
                    expected.insert(format!("N/{PORTAL}/{service_type}/{instance}{path}"), format!("{{\"value\":{value}}}"));
                }
            }
        }
        expected
    }
}

fn service_type(service: usize) -> &'static str {
    SERVICES[service].split('.').nth(2).unwrap()
}
