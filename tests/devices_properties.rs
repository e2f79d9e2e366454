//! The room of devices against a small model of what should be: whatever devices, users, the bus and localsettings do, and in
//! whatever order, in the end the bus has what the devices want and nothing else, under the numbers and with the values that
//! localsettings has; no connection is opened twice, and nothing is said on one that is not there. And no bytes make it panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "devices/localsettings.rs"]
mod localsettings;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use localsettings::LocalSettings;
use proptest::prelude::*;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::Options as BridgeOptions;
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{BusCall, Conflict, LinkCommand, Method, Mode, Occupant, Reply, Time, limits};
use venus_mqtt::device::catalogue::Catalogue;
use venus_mqtt::device::options::{Options, Stale, StaleAfter};
use venus_mqtt::device::service::{ACCEPTED, Answer, Call};
use venus_mqtt::device::{BusCommand, BusEvent, Devices, Key, Setup, Token, registry};

const CLIENTS: [&str; 3] = ["a", "b-b", "c"];
const SERVICES: [&str; 2] = ["s", "t.t"];
const TYPES: [&str; 2] = ["temperature", "tank"];
/// Services of other programs.
const OTHERS: usize = 3;
/// One less than there are clients.
const MOST: usize = 2;
const PROVISIONAL: Duration = Duration::from_secs(300);
const STALE_AFTER: Duration = Duration::from_secs(100);
const EPOCH: u64 = 1_795_259_400;
const OUTPUT: &str = "/SwitchableOutput/a/Settings/Type";

/// What is chosen in the configuration.
#[derive(Clone, Copy, Debug, Default)]
struct Flavour {
    /// Silent services leave the bus.
    leave: bool,
    /// Values are shown again after a restart.
    restore: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// A device says what it wants: the type of each service, if it has it.
    Register {
        client: usize,
        types: [Option<usize>; 2],
        version: u8,
        retained: bool,
    },
    Leave {
        client: usize,
    },
    Proxy {
        client: usize,
        service: usize,
        item: usize,
        value: u8,
    },
    /// A SetValue to one of the services that are there.
    Write {
        which: usize,
        item: usize,
        value: u8,
        is_ours: bool,
    },
    /// The user changes a setting.
    Choose {
        client: usize,
        service: usize,
        setting: usize,
        value: u8,
    },
    /// localsettings answers so many of the calls that wait.
    Answer {
        calls: usize,
    },
    /// localsettings goes, and with it what waits.
    Away,
    /// It comes, perhaps without what it has been told last.
    Back {
        loses: bool,
    },
    /// Something that was asked of the bus is done, or cannot be done.
    Done {
        which: usize,
        fails: bool,
    },
    /// A connection breaks.
    Break {
        which: usize,
    },
    /// A service of another program is there with this type and number, or has changed its number, or has not been scanned yet.
    Other {
        which: usize,
        kind: usize,
        number: Option<i64>,
    },
    OtherGone {
        which: usize,
    },
    Pass {
        millis: u64,
    },
    LinkDown,
    LinkUp,
    Forget {
        client: usize,
    },
    Restart {
        says_goodbye: bool,
    },
    /// Everything is let to its end, and looked at.
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (client, service) = (0..CLIENTS.len(), 0..SERVICES.len());
    let types = || proptest::option::weighted(0.8, 0..TYPES.len());
    let types = (types(), types()).prop_map(|(a, b)| if a.is_none() && b.is_none() { [Some(0), None] } else { [a, b] });
    let register = (client.clone(), types, 0..3_u8, proptest::bool::weighted(0.2));
    let step = prop_oneof![
        6 => register.prop_map(|(client, types, version, retained)| Step::Register { client, types, version, retained }),
        2 => client.clone().prop_map(|client| Step::Leave { client }),
        2 => (client.clone(), service.clone(), 0..ITEMS, 1..6_u8)
            .prop_map(|(client, service, item, value)| Step::Proxy { client, service, item, value }),
        5 => (0..6_usize, 0..ITEMS, 1..6_u8, any::<bool>()).prop_map(|(which, item, value, is_ours)| Step::Write { which, item, value, is_ours }),
        2 => (client.clone(), service, 0..3_usize, 1..6_u8)
            .prop_map(|(client, service, setting, value)| Step::Choose { client, service, setting, value }),
        6 => (1..5_usize).prop_map(|calls| Step::Answer { calls }),
        1 => Just(Step::Away),
        1 => any::<bool>().prop_map(|loses| Step::Back { loses }),
        7 => (0..6_usize, proptest::bool::weighted(0.15)).prop_map(|(which, fails)| Step::Done { which, fails }),
        1 => (0..6_usize).prop_map(|which| Step::Break { which }),
        3 => (0..OTHERS, 0..TYPES.len(), proptest::option::weighted(0.8, 1..5_i64))
            .prop_map(|(which, kind, number)| Step::Other { which, kind, number }),
        1 => (0..OTHERS).prop_map(|which| Step::OtherGone { which }),
        2 => prop_oneof![1..12_000_u64, 1..200_000_u64].prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::LinkDown),
        1 => Just(Step::LinkUp),
        1 => client.prop_map(|client| Step::Forget { client }),
        1 => any::<bool>().prop_map(|says_goodbye| Step::Restart { says_goodbye }),
        1 => Just(Step::Settle),
    ];
    proptest::collection::vec(step, 1..90)
}

/// What a step writes.
const ITEMS: usize = 6;

/// The path and the JSON of it, and whether nobody but devices writes it.
fn item(kind: usize, item: usize, value: u8) -> (&'static str, Value, bool) {
    let double = |n: u8| Value::Double(f64::from(n));
    match (item, TYPES[kind]) {
        (0, _) => ("/CustomName", Value::Str(format!("name {value}").into()), false),
        (1, "tank") => ("/Level", double(value), true),
        (1, _) => ("/Temperature", double(value), true),
        (2, _) => (OUTPUT, Value::Int(value.into()), true),
        (3, "tank") => ("/RawValueEmpty", double(value), true),
        (4, "tank") => ("/RawValueEmpty", Value::Invalid, true),
        (5, "tank") => ("/Capacity", double(value), false),
        _ => ("/Offset", double(value), false),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn the_bus_has_what_devices_want(steps in steps(), leave in any::<bool>(), restore in any::<bool>()) {
        let mut world = World::with(Flavour { leave, restore });
        for step in steps {
            world.step(step)?;
        }
        world.settle()?;
    }

    #[test]
    fn no_bytes_make_it_panic(
        messages in proptest::collection::vec((topic(), payload(), any::<bool>()), 0..25)
    ) {
        let mut world = World::new();
        world.act_at_once = true;
        for (topic, payload, retained) in messages {
            world.devices.message(world.now(), &topic, &payload, retained);
            world.devices.subscribed(world.now(), &topic, retained);
            world.devices.setting_changed(world.now(), &topic, &Value::Str(String::from_utf8_lossy(&payload).into()));
            world.devices.forget(world.now(), 0, &topic);
            world.pump()?;
            world.pass(Duration::from_secs(2))?;
        }
        world.devices.summary(world.now());
    }
}

/// A name that is chosen after a device has left, while its number is still being asked for, is the one it has when it comes back.
#[test]
fn a_name_chosen_between_two_registrations_stays() {
    let mut world = World::new();
    let register = |types| Step::Register { client: 0, types, version: 0, retained: false };
    for step in [
        register([Some(0), None]),
        register([Some(0), None]),
        register([Some(1), Some(0)]),
        Step::Answer { calls: 2 },
        Step::Back { loses: false },
        Step::Answer { calls: 2 },
        Step::Leave { client: 0 },
        Step::Choose { client: 0, service: 0, setting: 1, value: 1 },
        register([Some(1), None]),
    ] {
        world.step(step).unwrap();
    }
    world.settle().unwrap();
}

/// localsettings is back and asked for everything when a device writes a name; then the user chooses another. The name is written once, so
/// that the user's, which is later, stays.
#[test]
fn a_name_chosen_while_one_is_being_written_stays() {
    let mut world = World::new();
    world.step(Step::Register { client: 0, types: [Some(0), None], version: 0, retained: false }).unwrap();
    world.settle().unwrap();
    let slug = slug(0, 0);
    let path = format!("/Settings/MqttDevices/{slug}/CustomName");
    world.step(Step::Choose { client: 0, service: 0, setting: 1, value: 1 }).unwrap();
    world.step(Step::Away).unwrap();
    world.step(Step::Back { loses: false }).unwrap();
    world.step(Step::Write { which: 0, item: 0, value: 2, is_ours: true }).unwrap();
    loop {
        let call = world.calls.pop_front().expect("the name is written");
        let reply = world.settings.answer(&call.path, &call.method).unwrap();
        world.signal();
        if world.settings.stored[&path].value == Value::Str("name 2".into()) {
            // its answer comes after the user's choice
            world.choose(0, 0, 1, 3);
            world.devices.reply(world.now(), call.id, reply);
            break;
        }
        world.devices.reply(world.now(), call.id, reply);
        world.pump().unwrap();
    }
    world.settle().unwrap();
    assert_eq!(world.settings.stored[&path].value, Value::Str("mine 3".into()));
}

/// Devices that say so again and again, while nobody takes their answers: what waits is bounded.
#[test]
fn answers_are_bounded_while_the_broker_takes_nothing() {
    let mut world = World::new();
    for n in 0..3000 {
        world.devices.message(world.now(), &format!("device/x{n}/Status"), b"nonsense", false);
        world.devices.message(
            world.now(),
            &format!("device/x{n}/Proxy"),
            b"{\"topicPath\":\"W/c0619ab1c2d3/vebus/1\",\"values\":{\"a\":1}}",
            false,
        );
    }
    let count = |poll: &mut dyn FnMut() -> bool| std::iter::from_fn(|| poll().then_some(())).count();
    assert_eq!(count(&mut || world.devices.poll_publish().is_some()), limits::ANSWERS);
    assert_eq!(count(&mut || world.devices.poll_write().is_some()), limits::WAITING);
    assert!(count(&mut || world.devices.poll_note().is_some()) <= limits::NOTES);
}

/// Whoever comes and goes under ever new names is remembered, but not without end.
#[test]
fn devices_that_are_gone_are_bounded() {
    let mut world = World::new();
    world.act_at_once = true;
    for n in 0..limits::GONE + 50 {
        let topic = format!("device/x{n}/Status");
        world.devices.message(world.now(), &topic, br#"{"connected":1,"services":{"s":"tank"}}"#, false);
        world.pump().unwrap();
        world.devices.message(world.now(), &topic, br#"{"connected":0}"#, false);
        world.pump().unwrap();
        world.elapsed += Duration::from_secs(1);
    }
    let left = world.devices.list(world.now(), EPOCH);
    assert_eq!((left.len(), world.open.len()), (limits::GONE, 0));
    assert_eq!(&*left[0].client, "x50", "the latest are remembered");
}

fn topic() -> impl Strategy<Value = String> {
    let id = prop_oneof![Just("fe001".to_owned()), "[a-zA-Z0-9 .]{0,3}", ".{0,40}"];
    let what = prop_oneof![4 => Just("Status"), 4 => Just("Proxy"), 1 => Just("DBus"), 1 => Just("")];
    let device = (id.clone(), what).prop_map(|(id, what)| format!("device/{id}/{what}"));
    let setting = id.prop_map(|id| format!("/Settings/MqttDevices/mqtt_fe001_{id}/CustomName"));
    prop_oneof![8 => device, 1 => setting, 1 => Just("/Settings/Devices/mqtt_fe001_s/ClassAndVrmInstance".to_owned()), 1 => Just("will".to_owned())]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        Just("1".to_owned()),
        Just("null".to_owned()),
        Just("1e999".to_owned()),
        any::<f64>().prop_map(|d| format!("{d:?}")),
        prop_oneof![
            "[a-z]{0,3}",
            ".{0,40}",
            Just("tank".into()),
            Just("fe001".into()),
            Just("W/c0619ab1c2d3/tank/1".into()),
            Just("will".into())
        ]
        .prop_map(|s: String| serde_json::to_string(&s).unwrap()),
    ];
    let key = prop_oneof![
        Just("clientId"),
        Just("connected"),
        Just("version"),
        Just("services"),
        Just("lwt_topic"),
        Just("lwt_value"),
        Just("timeout"),
        Just("s"),
        Just("topicPath"),
        Just("values"),
        Just("Level"),
        Just("/CustomName"),
        Just("SwitchableOutput/a/State"),
        Just("")
    ];
    let json = leaf.prop_recursive(3, 24, 5, move |inner| {
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..4).prop_map(|all| format!("[{}]", all.join(","))),
            4 => proptest::collection::vec((key.clone(), inner), 0..5).prop_map(|all| format!(
                "{{{}}}",
                all.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect::<Vec<_>>().join(",")
            )),
        ]
    });
    let status =
        json.clone().prop_map(|json| format!(r#"{{"connected":1,"services":{{"s":"tank"}},"lwt_topic":"will","version":{json}}}"#));
    let proxy = json.clone().prop_map(|json| format!(r#"{{"s":{json}}}"#));
    prop_oneof![
        2 => json.prop_map(String::into_bytes),
        2 => status.prop_map(String::into_bytes),
        2 => proxy.prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Life {
    Opening,
    Up,
    /// The bridge knows it too.
    Known,
    Closing,
}

/// What a device wants, as the model knows it.
#[derive(Clone, Debug, Default)]
struct Wanted {
    types: [Option<usize>; 2],
    /// It leaves then, unless it is heard of.
    until: Option<Duration>,
}

struct World {
    flavour: Flavour,
    devices: Devices,
    /// In this life of the daemon, and in all before.
    elapsed: Duration,
    before: Duration,
    /// Since when there is no broker, while there is none.
    unlinked: Duration,
    /// When the measured values of a service were renewed last, when it was heard of, and when it came to the bus; in all lives of the daemon.
    renewed: BTreeMap<(usize, usize), Duration>,
    seen: BTreeMap<(usize, usize), Duration>,
    came: BTreeMap<(usize, usize), Duration>,
    /// What was written last to each measured item, by anybody.
    latest: BTreeMap<(usize, usize), BTreeMap<&'static str, Value>>,
    linked: bool,
    /// Everything that is asked of others is done at once.
    act_at_once: bool,
    settings: LocalSettings,
    /// What has got to its disk.
    saved: LocalSettings,
    is_there: bool,
    calls: VecDeque<BusCall>,
    open: BTreeMap<Key, (String, Life)>,
    /// Services that the bridge knows, by name: the number, if it has been scanned, and when it came to have it.
    bridge: BTreeMap<String, (Option<i64>, u64)>,
    /// The same when the devices were told last that it has changed.
    told: BTreeMap<String, (Option<i64>, u64)>,
    turns: u64,
    /// Lives that have begun.
    lives: BTreeSet<Key>,
    disk: Option<String>,
    wanted: BTreeMap<usize, Wanted>,
    /// What devices have written last.
    written: BTreeMap<(usize, usize), BTreeMap<&'static str, Value>>,
    /// Clients that were told that something is wrong.
    errors: BTreeSet<String>,
    orders: BTreeSet<Token>,
    last_token: Token,
}

impl World {
    fn new() -> Self {
        Self::with(Flavour::default())
    }

    fn with(flavour: Flavour) -> Self {
        let mut world = Self {
            flavour,
            devices: devices(flavour, None, EPOCH),
            before: Duration::ZERO,
            elapsed: Duration::from_secs(1),
            unlinked: Duration::ZERO,
            renewed: BTreeMap::new(),
            seen: BTreeMap::new(),
            came: BTreeMap::new(),
            latest: BTreeMap::new(),
            linked: false,
            act_at_once: false,
            settings: LocalSettings::default(),
            saved: LocalSettings::default(),
            is_there: true,
            calls: VecDeque::new(),
            open: BTreeMap::new(),
            bridge: BTreeMap::new(),
            told: BTreeMap::new(),
            turns: 0,
            lives: BTreeSet::new(),
            disk: None,
            wanted: BTreeMap::new(),
            written: BTreeMap::new(),
            errors: BTreeSet::new(),
            orders: BTreeSet::new(),
            last_token: 0,
        };
        world.start().unwrap();
        world
    }

    fn start(&mut self) -> Result<(), TestCaseError> {
        self.devices.bus_up(self.now());
        self.link(true);
        self.pump()
    }

    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        self.errors.clear();
        match step {
            Step::Register { client, types, version, retained } if self.linked => self.register(client, types, version, retained),
            Step::Leave { client } if self.linked => {
                self.say(client, "Status", "{\"connected\":0}", false);
                self.gone(client);
            }
            Step::Proxy { client, service, item, value } if self.linked => self.proxy(client, service, item, value)?,
            Step::Register { .. } | Step::Leave { .. } | Step::Proxy { .. } => {}
            Step::Write { which, item, value, is_ours } => self.write(which, item, value, is_ours),
            Step::Choose { client, service, setting, value } => self.choose(client, service, setting, value),
            Step::Answer { calls } => {
                for _ in 0..calls {
                    if let Some(call) = self.calls.pop_front() {
                        self.answer(&call);
                        self.pump()?;
                    }
                }
            }
            Step::Away => self.away(),
            Step::Back { loses } => self.back(loses),
            Step::Done { which, fails } => self.done(which, fails),
            Step::Break { which } => {
                let up = self.up();
                if let Some(key) = up.get(which % up.len().max(1)) {
                    let (name, _) = self.open.remove(key).unwrap();
                    self.bridge.remove(&name);
                    self.devices.bus_event(self.now(), *key, BusEvent::Down);
                }
            }
            Step::Other { which, kind, number } => {
                let other = |kind: usize| format!("com.victronenergy.{}.other_{which}", TYPES[kind]);
                self.bridge.remove(&other(1 - kind));
                self.appears(&other(kind), number);
            }
            Step::OtherGone { which } => self.bridge.retain(|name, _| !name.ends_with(&format!("other_{which}"))),
            Step::Pass { millis } => {
                self.pass(Duration::from_millis(millis))?;
                self.saved = self.settings.clone();
            }
            Step::LinkDown => self.link(false),
            Step::LinkUp => self.link(true),
            Step::Forget { client } => {
                self.last_token += 1;
                self.orders.insert(self.last_token);
                self.devices.forget(self.now(), self.last_token, CLIENTS[client]);
                if self.is_there {
                    self.gone(client);
                }
            }
            Step::Restart { says_goodbye } => self.restart(says_goodbye)?,
            Step::Settle => self.settle()?,
        }
        self.pump()?;
        self.no_value_is_old()
    }

    /// Since the daemon started for the first time.
    fn age(&self) -> Duration {
        self.before + self.elapsed
    }

    fn unix(&self) -> u64 {
        EPOCH + self.age().as_secs()
    }

    /// Whatever has happened: what a service shows as measured is what was written last, and it is not older than it may be.
    fn no_value_is_old(&mut self) -> Result<(), TestCaseError> {
        for (key, (name, life)) in self.open.clone() {
            // one that closes has said that it has none
            if life == Life::Closing {
                continue;
            }
            let (client, service, kind) = of_name(&name);
            let path = measured(kind);
            let Some(value) = self.value(key, path).filter(|value| *value != Value::Invalid) else { continue };
            let latest = self.latest.get(&(client, service)).and_then(|values| values.get(path)).cloned();
            prop_assert_eq!(Some(value), latest, "{} of {}", path, name);
            let renewed = self.renewed.get(&(client, service)).copied().unwrap_or_default();
            prop_assert!(self.age() < renewed + STALE_AFTER, "{path} of {name}, renewed at {renewed:?}, at {:?}", self.age());
        }
        Ok(())
    }

    /// The device was heard of: by what renews its values, or by anything else.
    fn service_seen(&mut self, client: usize, service: usize, by_value: bool) {
        self.seen.insert((client, service), self.age());
        if by_value {
            self.renewed.insert((client, service), self.age());
        }
    }

    /// What was measured is too old by now.
    fn expire(&mut self) {
        let age = self.age();
        for ((client, service), written) in &mut self.written {
            if self.renewed.get(&(*client, *service)).is_none_or(|renewed| *renewed + STALE_AFTER <= age) {
                let measured = written.iter_mut().filter(|(path, _)| matches!(**path, "/Level" | "/Temperature"));
                measured.for_each(|(_, value)| *value = Value::Invalid);
            }
        }
    }

    /// The bridge knows a service, or its new number: of two with the same one, the first has the topics.
    fn appears(&mut self, name: &str, number: Option<i64>) {
        if self.bridge.get(name).is_some_and(|(known, _)| *known == number) {
            return;
        }
        self.turns += 1;
        self.bridge.insert(name.to_owned(), (number, self.turns));
        let same = |(other, (known, _)): &(&String, &(Option<i64>, u64))| {
            number.is_some() && *known == number && other.as_str() != name && kind_of(other) == kind_of(name)
        };
        let holder = self.bridge.iter().filter(same).min_by_key(|(_, (_, since))| *since).map(|(other, _)| other.clone());
        if let Some(holder) = holder {
            self.devices.take_conflict(self.now(), &Conflict { holder: holder.into(), other: name.into() });
        }
    }

    fn say(&mut self, client: usize, what: &str, payload: &str, retained: bool) {
        let topic = format!("device/{}/{what}", CLIENTS[client]);
        assert!(self.devices.message(self.now(), &topic, payload.as_bytes(), retained));
    }

    fn register(&mut self, client: usize, types: [Option<usize>; 2], version: u8, retained: bool) {
        let services = types.iter().zip(SERVICES).filter_map(|(kind, id)| Some(format!("\"{id}\":\"{}\"", TYPES[(*kind)?])));
        let services = services.collect::<Vec<_>>().join(",");
        self.say(client, "Status", &format!("{{\"connected\":1,\"version\":{version},\"services\":{{{services}}}}}"), retained);
        if !self.wanted.contains_key(&client) && self.wanted.len() >= MOST {
            // one of which nothing was ever heard makes room for a device that is there
            let list = self.devices.list(self.now(), EPOCH);
            let is_gone = |client: &usize| {
                let entry = list.iter().find(|entry| *entry.client == *CLIENTS[*client]);
                entry.is_some_and(|entry| entry.state == "gone" && entry.last_heard.is_none())
            };
            let unheard = self.wanted.iter().filter(|(_, wanted)| wanted.until.is_some()).map(|(client, _)| *client);
            match unheard.into_iter().find(is_gone) {
                Some(unheard) if !retained => self.gone(unheard),
                _ => return,
            }
        }
        let known = self.wanted.get(&client).cloned();
        let until = match &known {
            Some(known) if retained => known.until,
            _ => retained.then(|| self.elapsed + PROVISIONAL),
        };
        for (service, kind) in types.iter().enumerate() {
            if known.as_ref().is_none_or(|known| known.types[service] != *kind) {
                self.written.remove(&(client, service));
            }
        }
        self.wanted.insert(client, Wanted { types, until });
        if !retained {
            (0..SERVICES.len()).for_each(|service| self.service_seen(client, service, true));
        }
    }

    /// The model: the device is not there any more.
    fn gone(&mut self, client: usize) {
        self.wanted.remove(&client);
        self.written.retain(|(other, _), _| *other != client);
    }

    fn heard(&mut self, client: usize) {
        if let Some(wanted) = self.wanted.get_mut(&client) {
            wanted.until = None;
        }
    }

    fn proxy(&mut self, client: usize, service: usize, which: usize, value: u8) -> Result<(), TestCaseError> {
        let Some(kind) = self.wanted.get(&client).and_then(|wanted| wanted.types[service]) else { return Ok(()) };
        let (path, value, is_own) = item(kind, which, value);
        self.say(client, "Proxy", &format!("{{\"{}\":{{\"{path}\":{}}}}}", SERVICES[service], json(&value)), false);
        self.heard(client);
        self.pump()?;
        // away for its silence, it takes what comes, and is back with it
        let is_taken = !self.errors.contains(CLIENTS[client]);
        if is_taken {
            self.service_seen(client, service, true);
            if path == measured(kind) {
                self.latest.entry((client, service)).or_default().insert(path, value.clone());
            }
        }
        let written = self.written.entry((client, service)).or_default();
        if is_taken && is_own {
            written.insert(path, value);
        } else {
            written.remove(path);
        }
        Ok(())
    }

    /// Connections that have their names.
    fn up(&self) -> Vec<Key> {
        self.open.iter().filter(|(_, (_, life))| matches!(life, Life::Up | Life::Known)).map(|(key, _)| *key).collect()
    }

    fn write(&mut self, which: usize, what: usize, value: u8, is_ours: bool) {
        let up = self.up();
        let Some(key) = up.get(which % up.len().max(1)) else { return };
        let (client, service, kind) = of_name(&self.open[key].0);
        let (path, value, is_own) = item(kind, what, value);
        let call = Call { path, interface: None, member: "SetValue", argument: Some(value.clone()), is_ours };
        let answer = self.devices.call(self.now(), *key, &call);
        // beside another bridge a measured value is the device's own word
        let is_measured = path == measured(kind);
        if answer == Answer::Code(ACCEPTED) && (is_ours || (is_measured && self.linked)) {
            self.heard(client);
            self.service_seen(client, service, is_measured);
        }
        if answer == Answer::Code(ACCEPTED) && is_measured {
            self.renewed.insert((client, service), self.age());
            self.latest.entry((client, service)).or_default().insert(path, value.clone());
        }
        if answer == Answer::Code(ACCEPTED) && is_own {
            self.written.entry((client, service)).or_default().insert(path, value);
        }
    }

    fn choose(&mut self, client: usize, service: usize, setting: usize, value: u8) {
        let slug = slug(client, service);
        let number = format!("/Settings/Devices/{slug}/ClassAndVrmInstance");
        match setting {
            0 => {
                let Some(Value::Str(now)) = self.settings.stored.get(&number).map(|stored| stored.value.clone()) else { return };
                let class = now.split(':').next().unwrap();
                self.settings.set(&number, Value::Str(format!("{class}:{value}").into()));
            }
            1 => drop(self.settings.set(&format!("/Settings/MqttDevices/{slug}/CustomName"), Value::Str(format!("mine {value}").into()))),
            _ => {
                for path in ["Capacity", "Offset"] {
                    self.settings.set(&format!("/Settings/MqttDevices/{slug}/{path}"), Value::Double(f64::from(value) + 0.5));
                }
            }
        }
        self.signal();
    }

    fn answer(&mut self, call: &BusCall) {
        let reply = self.settings.answer(&call.path, &call.method).unwrap();
        self.signal();
        self.devices.reply(self.now(), call.id, reply);
    }

    /// Whoever is not there is not heard.
    fn signal(&mut self) {
        for (path, value) in std::mem::take(&mut self.settings.changed) {
            if self.is_there {
                self.devices.setting_changed(self.now(), &path, &value);
            }
        }
    }

    fn away(&mut self) {
        self.is_there = false;
        self.devices.name_owner_changed(self.now(), localsettings::NAME, "");
        for call in std::mem::take(&mut self.calls) {
            self.devices.reply(self.now(), call.id, error("NoReply"));
        }
    }

    fn back(&mut self, loses: bool) {
        if self.is_there {
            return;
        }
        if loses {
            self.settings = self.saved.clone();
            // of a service that was not on the bus, it is what is stored that counts
            let up: Vec<_> = self.up().iter().map(|key| of_name(&self.open[key].0)).map(|(client, service, _)| (client, service)).collect();
            self.written.retain(|place, _| up.contains(place));
            // what it holds counts, if that is no default
            let stored = &self.settings.stored;
            for ((client, service), written) in &mut self.written {
                let slug = slug(*client, *service);
                written.retain(|path, value| {
                    let stored = stored.get(&format!("/Settings/MqttDevices/{slug}{path}")).map(|stored| &stored.value);
                    let is_default =
                        |stored: &Value| *stored == Value::Int(1) || matches!(stored, Value::Str(name) if name.starts_with("My "));
                    stored.is_none_or(|stored| stored == value || is_default(stored))
                });
            }
        }
        self.is_there = true;
        self.devices.name_owner_changed(self.now(), localsettings::NAME, ":1.9");
    }

    fn done(&mut self, which: usize, fails: bool) {
        let waits: Vec<Key> = self.open.iter().filter(|(_, (_, life))| *life != Life::Known).map(|(key, _)| *key).collect();
        let Some(key) = waits.get(which % waits.len().max(1)).copied() else { return };
        let next = match self.open[&key].1 {
            Life::Opening if fails => Err(BusEvent::Refused("no".into())),
            Life::Opening => Ok((Life::Up, BusEvent::Up)),
            Life::Up | Life::Known => Ok((Life::Known, BusEvent::Known)),
            Life::Closing => Err(BusEvent::Down),
        };
        let event = match next {
            Ok((life, event)) => {
                let open = self.open.get_mut(&key).unwrap();
                open.1 = life;
                let name = open.0.clone();
                if life == Life::Up
                    && let Some((client, service, _)) = find_name(&name)
                {
                    self.came.insert((client, service), self.age());
                }
                // the bridge has scanned it
                if let (Life::Known, Some(Value::Int(number))) = (life, self.value(key, "/DeviceInstance")) {
                    self.appears(&name, Some(number));
                }
                event
            }
            Err(event) => {
                let (name, _) = self.open.remove(&key).unwrap();
                self.bridge.remove(&name);
                event
            }
        };
        self.devices.bus_event(self.now(), key, event);
    }

    fn link(&mut self, up: bool) {
        if up == self.linked {
            return;
        }
        self.linked = up;
        if up {
            self.devices.link_up(self.now());
            // a last will may have been published meanwhile; and what nobody could hear is held against nobody
            let (elapsed, away) = (self.elapsed, self.elapsed - self.unlinked);
            for wanted in self.wanted.values_mut() {
                wanted.until = Some(wanted.until.map_or(elapsed + PROVISIONAL, |until| until + away));
            }
        } else {
            self.devices.link_down(self.now());
            self.unlinked = self.elapsed;
        }
        self.devices.set_mode(self.now(), if up { Mode::Companion } else { Mode::Down });
        self.devices.set_online(self.now(), up);
    }

    fn restart(&mut self, says_goodbye: bool) -> Result<(), TestCaseError> {
        // the registry is made anew once a second at the most
        self.pass(Duration::from_secs(1))?;
        if says_goodbye {
            self.devices.shut_down();
            self.pump()?;
            let closing = |(_, life): &(String, Life)| *life == Life::Closing;
            prop_assert!(self.open.values().all(closing), "not everything leaves: {:?}", self.open);
            prop_assert_eq!(self.devices.poll_timeout(), None);
        }
        self.open.clear();
        self.bridge.retain(|name, _| name.contains(".other_"));
        // what is on its way arrives
        for call in std::mem::take(&mut self.calls) {
            self.settings.answer(&call.path, &call.method);
        }
        self.settings.changed.clear();
        self.orders.clear();
        self.written.clear();
        if says_goodbye {
            self.disk = Some(self.devices.last_registry(self.now(), self.unix()));
        }
        self.before += self.elapsed;
        self.elapsed = Duration::ZERO;
        self.unlinked = Duration::ZERO;
        self.wanted.values_mut().for_each(|wanted| wanted.until = Some(PROVISIONAL));
        self.linked = false;
        self.devices = devices(self.flavour, self.disk.as_deref(), self.unix());
        self.stop_at_once()?;
        self.lives.clear();
        self.start()
    }

    /// The daemon ends before anything is on the bus again: nothing of the values is lost, and they are no younger.
    fn stop_at_once(&self) -> Result<(), TestCaseError> {
        let read = |text: &str| registry::parse(text).unwrap().0;
        let before = read(self.disk.as_deref().unwrap_or(r#"{"version":1,"devices":[]}"#));
        let after = read(&self.devices.last_registry(self.now(), self.unix()));
        let unix = self.unix();
        for entry in before.iter().filter(|entry| entry.connected) {
            let again = after.iter().find(|again| again.client == entry.client);
            for service in entry.services.iter().filter(|service| service.wanted) {
                let again = again.and_then(|again| again.services.iter().find(|again| again.id == service.id));
                let again = again.and_then(|again| again.values.as_ref());
                let is_young = service.values.as_ref().is_some_and(|values| self.flavour.restore && values.seen == unix);
                let is_lost = again.is_none() && !is_young;
                prop_assert!(is_lost || again == service.values.as_ref(), "{again:?} of {:?}", service.values);
            }
        }
        Ok(())
    }

    fn pass(&mut self, amount: Duration) -> Result<(), TestCaseError> {
        let end = self.elapsed + amount;
        let mut turns = 0;
        while let Some(due) = self.devices.poll_timeout()
            && due <= Time::since_start(end)
        {
            self.elapsed = self.elapsed.max(due.after(Time::default()));
            self.devices.handle_timeout(self.now());
            self.pump()?;
            turns += 1;
            prop_assert!(turns < 1000, "it never comes to rest");
        }
        self.elapsed = end;
        let is_over = |wanted: &Wanted| self.linked && wanted.until.is_some_and(|until| until <= end);
        let gone: Vec<usize> = self.wanted.iter().filter(|(_, wanted)| is_over(wanted)).map(|(c, _)| *c).collect();
        gone.into_iter().for_each(|client| self.gone(client));
        self.expire();
        Ok(())
    }

    /// Takes everything that comes out, and holds it to the rules.
    fn pump(&mut self) -> Result<(), TestCaseError> {
        for turn in 0.. {
            prop_assert!(turn < 10_000, "it never comes to rest");
            let mut quiet = true;
            if self.told != self.bridge {
                self.told.clone_from(&self.bridge);
                self.devices.numbers_changed();
            }
            let (bridge, now) = (&self.bridge, self.now());
            self.devices.check_numbers(now, |kind, instance| Some(occupants(bridge, kind, instance)));
            while let Some(command) = self.devices.poll_bus() {
                quiet = false;
                self.obey(command)?;
            }
            while let Some(call) = self.devices.poll_call(self.now()) {
                quiet = false;
                self.take_call(call);
            }
            if self.act_at_once {
                while let Some(call) = self.calls.pop_front() {
                    quiet = false;
                    self.answer(&call);
                }
                while self.open.values().any(|(_, life)| *life != Life::Known) {
                    quiet = false;
                    self.done(0, false);
                }
            }
            if quiet {
                break;
            }
        }
        while let Some((token, _)) = self.devices.poll_answer() {
            prop_assert!(self.orders.remove(&token) || token == 0, "an order is answered once");
        }
        while let Some(publish) = self.devices.poll_publish() {
            prop_assert!(self.linked && !publish.retain);
            // the other bridge serves every service at once
            if let Some(read) = publish.topic.strip_prefix("R/")
                && let [portal, kind, instance, "DeviceInstance"] = read.split('/').collect::<Vec<_>>()[..]
            {
                let payload = format!("{{\"value\":{instance}}}");
                self.devices.message(self.now(), &format!("N/{portal}/{kind}/{instance}/DeviceInstance"), payload.as_bytes(), false);
            }
            if let Some(client) = publish.topic.strip_prefix("device/").and_then(|rest| rest.strip_suffix("/Error")) {
                self.errors.insert(client.to_owned());
            }
        }
        while let Some(command) = self.devices.poll_link() {
            if let LinkCommand::Subscribe(filters) = command {
                for filter in filters {
                    self.devices.subscribed(self.now(), &filter, true);
                }
            }
        }
        while self.devices.poll_note().is_some() || self.devices.poll_write().is_some() {}
        if let Some(text) = self.devices.poll_registry(self.now(), self.unix()) {
            self.disk = Some(text);
        }
        Ok(())
    }

    fn obey(&mut self, command: BusCommand) -> Result<(), TestCaseError> {
        match command {
            BusCommand::Open { key, name } => {
                prop_assert!(self.lives.insert(key), "a life is never lived twice");
                prop_assert!(self.open.values().all(|(other, _)| *other != name), "{name} is opened twice");
                self.open.insert(key, (name, Life::Opening));
            }
            BusCommand::Emit { key, items, .. } => {
                let life = self.open.get(&key).map(|(_, life)| *life);
                prop_assert!(matches!(life, Some(Life::Up | Life::Known)), "nobody has a connection for {items:?}: {life:?}");
                let paths: BTreeSet<_> = items.iter().map(|item| &item.path).collect();
                prop_assert!(!items.is_empty() && paths.len() == items.len(), "no item twice: {items:?}");
            }
            BusCommand::Close { key } => {
                let Some((name, life)) = self.open.get_mut(&key) else {
                    return Err(TestCaseError::fail("what is closed was never opened"));
                };
                prop_assert!(*life != Life::Closing, "{name} is closed twice");
                *life = Life::Closing;
            }
        }
        Ok(())
    }

    fn take_call(&mut self, call: BusCall) {
        match (&call.method, self.is_there) {
            (Method::GetNameOwner(_), true) => self.devices.reply(self.now(), call.id, Reply::Text(":1.9".into())),
            (Method::GetNameOwner(_), false) => self.devices.reply(self.now(), call.id, error("NameHasNoOwner")),
            (_, true) => self.calls.push_back(call),
            (_, false) => self.devices.reply(self.now(), call.id, error("ServiceUnknown")),
        }
    }

    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.link(true);
        self.back(false);
        self.act_at_once = true;
        self.pump()?;
        self.pass(limits::SERVICE_RETRY_LAST + Duration::from_secs(1))?;
        self.act_at_once = false;
        self.check()
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let places =
            || self.wanted.iter().flat_map(|(client, wanted)| wanted.types.iter().enumerate().map(move |(n, kind)| (*client, n, *kind)));
        // what is silent may have left, by its device's last word; and must have, when it has been there for so long too
        let is_old = |since: &BTreeMap<_, Duration>, place| since.get(&place).is_none_or(|since| *since + STALE_AFTER <= self.age());
        let left = |client, service| {
            let is_silent = self.flavour.leave && is_old(&self.seen, (client, service));
            let is_there = |(name, _): &(String, Life)| of_name(name).0 == client && of_name(name).1 == service;
            is_silent && (is_old(&self.came, (client, service)) || !self.open.values().any(is_there))
        };
        let there = places().filter(|(client, service, _)| !left(*client, *service));
        let names: BTreeSet<String> = there.filter_map(|(client, service, kind)| Some(name(client, service, kind?))).collect();
        let up: BTreeSet<String> = self.open.values().map(|(name, _)| name.clone()).collect();
        prop_assert_eq!(&up, &names, "what is on the bus, and what is wanted");
        prop_assert!(self.open.values().all(|(_, life)| *life == Life::Known));
        prop_assert!(self.orders.is_empty(), "somebody still waits for an answer: {:?}", self.orders);
        prop_assert!(self.calls.is_empty());
        for (key, (name, _)) in self.open.clone() {
            self.check_service(key, &name)?;
        }
        self.check_others()
    }

    /// What is written to the topics of services of others is for them, whichever of ours had their numbers before.
    fn check_others(&mut self) -> Result<(), TestCaseError> {
        let others: Vec<_> = self.bridge.iter().filter(|(name, _)| name.contains(".other_")).collect();
        let numbers = others.into_iter().filter_map(|(name, (number, _))| Some((kind_of(name).to_owned(), (*number)?)));
        for (kind, number) in numbers.collect::<Vec<_>>() {
            let topic = format!("W/c0619ab1c2d3/{kind}/{number}/Nowhere");
            prop_assert!(!self.devices.message(self.now(), &topic, b"{\"value\":1}", false), "{topic} is taken from another service");
        }
        Ok(())
    }

    fn check_service(&mut self, key: Key, name: &str) -> Result<(), TestCaseError> {
        let (client, service, kind) = of_name(name);
        let slug = slug(client, service);
        let number = self.settings.stored[&format!("/Settings/Devices/{slug}/ClassAndVrmInstance")].value.clone();
        let Some(Value::Int(instance)) = self.value(key, "/DeviceInstance") else {
            return Err(TestCaseError::fail(format!("{name} has no number")));
        };
        prop_assert_eq!(number, Value::Str(format!("{}:{instance}", TYPES[kind]).into()), "the number of {}", name);
        // nobody else had it before
        let since = self.bridge[name].1;
        let before = self.bridge.iter().find(|(other, (number, at))| {
            *number == Some(instance) && *at < since && other.as_str() != name && kind_of(other) == TYPES[kind]
        });
        prop_assert!(before.is_none(), "{} has the number of {:?}", name, before);
        for path in ["/CustomName", "/Capacity", "/Offset", "/RawValueEmpty", OUTPUT] {
            let stored = self.settings.stored.get(&format!("/Settings/MqttDevices/{slug}{path}")).map(|stored| stored.value.clone());
            // one without a value has no setting, or one that nobody looks at
            if let Some(ours) = self.value(key, path).filter(|ours| *ours != Value::Invalid) {
                prop_assert_eq!(ours, stored.unwrap_or_default(), "{} of {}, and what is stored", path, name);
            }
        }
        for (path, written) in self.written.get(&(client, service)).cloned().unwrap_or_default() {
            prop_assert_eq!(self.value(key, path), Some(written), "{} of {}, and what was written last", path, name);
        }
        Ok(())
    }

    fn value(&mut self, key: Key, path: &str) -> Option<Value> {
        let call = Call { path, interface: None, member: "GetValue", argument: None, is_ours: false };
        match self.devices.call(self.now(), key, &call) {
            Answer::Value(value) => Some(value),
            _ => None,
        }
    }
}

/// What services of this type measure.
fn measured(kind: usize) -> &'static str {
    if TYPES[kind] == "tank" { "/Level" } else { "/Temperature" }
}

fn devices(flavour: Flavour, disk: Option<&str>, unix: u64) -> Devices {
    let options = Options {
        max_devices: MOST,
        stale_after: StaleAfter { default: Some(STALE_AFTER), ..StaleAfter::default() },
        stale: if flavour.leave { Stale::Leave } else { Stale::Disconnect },
        restore_values: flavour.restore.then_some(Duration::from_secs(1000)),
        keepalive: true,
        ..Options::default()
    };
    Devices::new(Setup {
        portal: PortalId::parse("c0619ab1c2d3").unwrap(),
        prefix: String::new(),
        options,
        bridge: BridgeOptions::default(),
        catalogue: Catalogue::shipped(),
        registry: disk.map(|text| registry::parse(text).unwrap().0).unwrap_or_default(),
        unix,
        verbosity: log::Level::Error,
    })
}

/// Who has, or may have, a number, as the bridge knows it.
fn occupants(bridge: &BTreeMap<String, (Option<i64>, u64)>, kind: &str, instance: &str) -> Vec<Occupant> {
    let of_kind = bridge.iter().filter(|(name, _)| kind_of(name) == kind);
    let may_be = of_kind.filter(|(_, (number, _))| number.is_none_or(|number| number.to_string() == instance));
    may_be.map(|(name, (number, _))| Occupant { name: name.as_str().into(), is_scanned: number.is_some() }).collect()
}

/// The type in a name on the bus.
fn kind_of(name: &str) -> &str {
    name.split('.').nth(2).unwrap()
}

fn clean(id: &str) -> String {
    id.replace(['-', '.'], "_")
}

fn slug(client: usize, service: usize) -> String {
    format!("mqtt_{}_{}", clean(CLIENTS[client]), clean(SERVICES[service]))
}

fn name(client: usize, service: usize, kind: usize) -> String {
    format!("com.victronenergy.{}.{}", TYPES[kind], slug(client, service))
}

fn of_name(wanted: &str) -> (usize, usize, usize) {
    find_name(wanted).unwrap()
}

fn find_name(wanted: &str) -> Option<(usize, usize, usize)> {
    let all = (0..CLIENTS.len())
        .flat_map(|client| (0..SERVICES.len()).flat_map(move |service| (0..TYPES.len()).map(move |kind| (client, service, kind))));
    all.into_iter().find(|(client, service, kind)| name(*client, *service, *kind) == wanted)
}

fn error(name: &str) -> Reply {
    Reply::Error { name: format!("org.freedesktop.DBus.Error.{name}"), text: "no".into() }
}

fn json(value: &Value) -> String {
    let mut out = Vec::new();
    value.write_json(&mut out);
    String::from_utf8(out).unwrap()
}
