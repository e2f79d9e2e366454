//! The core against a small model of what should be: whatever happens, and in whatever order, what is retained at the broker in
//! the end is what the bus has and somebody keeps awake, and nothing else. And no bytes from outside make it panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use venus_mqtt::bridge::filter::Filter;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Enabled, Options};
use venus_mqtt::bridge::value::{Value, parse_payload};
use venus_mqtt::bridge::{Bridge, Change, LinkCommand, Method, Publish, Reply, Setup, Time, limits};

const PORTAL: &str = "c0619ab1c2d3";
const INTERVAL: Duration = Duration::from_secs(60);
const SERVICES: [&str; 4] =
    ["com.victronenergy.battery.a", "com.victronenergy.battery.b", "com.victronenergy.tank.c", "com.victronenergy.tank"];
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
        let setup = Setup { portal, prefix: String::new(), options, beside: false, nonce: 1, verbosity: log::Level::Error };
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
            while let Some(call) = self.bridge.poll_call() {
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
