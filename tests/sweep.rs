//! The sweep against brokers that replay retained messages each in their own way: whatever they leave out, repeat or send late, in the end nothing
//! is retained that nobody stands for.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{AlwaysOn, Enabled, Options};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Bridge, Change, LinkCommand, Method, Publish, Reply, Setup, Time};

const PORTAL: &str = "c0619ab1c2d3";

#[derive(Clone, Copy, PartialEq, Debug)]
enum Replay {
    All,
    /// Before the SUBACK.
    Early,
    Twice,
    /// Behind the marker: after so many live messages.
    Behind(usize),
    /// No more than so many for a subscription, in the order of the topics or against it.
    Most(usize),
    MostOfTheLast(usize),
    /// Only for filters without wildcards.
    Exact,
}

struct World {
    bridge: Bridge,
    elapsed: Duration,
    replay: Replay,
    /// Topics with this in it are not taken.
    refused: &'static str,
    /// What each service has on the bus.
    services: BTreeMap<String, Vec<String>>,
    retained: BTreeMap<String, String>,
    /// Of these topics, no service stands for any.
    stale: Vec<String>,
    filters: Vec<String>,
    /// Retained messages that are still to come.
    waiting: VecDeque<String>,
    subscribes: usize,
    lines: Vec<String>,
}

/// Retained by a former run, that no service stands for.
fn stale() -> Vec<String> {
    let paths = paths();
    let gone = ["battery/9", "zigzag/0", "aaa/1"].into_iter().flat_map(|service| paths.iter().map(move |path| format!("{service}{path}")));
    let removed = (0..300).map(|n| format!("settings/0/Settings/Group{}/Removed{n}", n % 20));
    gone.chain(removed).chain(["odd".into(), "of/two".into()]).collect()
}

fn paths() -> Vec<String> {
    let mut paths: Vec<String> =
        ["/DeviceInstance", "/ProductName", "/Mgmt/Connection", "/Dc/0/Voltage", "/Dc/0/Current"].map(String::from).into();
    paths.extend((0..30).map(|day| format!("/History/Daily/{day}/Yield")));
    paths
}

impl World {
    fn new(replay: Replay, always_on: bool) -> Self {
        let options =
            Options { enabled: Enabled::Yes, always_on: if always_on { AlwaysOn::Everything } else { AlwaysOn::No }, ..Options::default() };
        let portal = PortalId::parse(PORTAL).unwrap();
        let setup = Setup { portal, prefix: String::new(), options, beside: false, nonce: 1, verbosity: log::Level::Info };
        let mut services = BTreeMap::new();
        for n in 0..12 {
            let kind = ["battery", "solarcharger", "tank", "grid"][n % 4];
            services.insert(format!("com.victronenergy.{kind}.n{n}"), paths());
        }
        let settings = (0..600).map(|n| format!("/Settings/Group{}/Name{}", n % 20, n / 20)).collect();
        services.insert("com.victronenergy.settings".into(), settings);
        let stale: Vec<String> = stale().into_iter().map(|rest| format!("N/{PORTAL}/{rest}")).collect();
        let mut world = Self {
            bridge: Bridge::new(setup),
            elapsed: Duration::from_secs(1),
            replay,
            refused: "nothing",
            services,
            retained: stale.iter().map(|topic| (topic.clone(), "{\"value\":0}".into())).collect(),
            stale,
            filters: Vec::new(),
            waiting: VecDeque::new(),
            subscribes: 0,
            lines: Vec::new(),
        };
        world.bridge.bus_up(world.now());
        world
    }

    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    /// A connection, until nothing happens any more.
    fn connect(&mut self) {
        self.bridge.link_up(self.now());
        let end = self.elapsed + Duration::from_secs(20_000);
        loop {
            self.pump();
            if self.wait_ended() {
                continue;
            }
            match self.bridge.poll_timeout().map(|due| due.after(Time::default())) {
                Some(due) if due <= end => self.elapsed = self.elapsed.max(due),
                _ => return,
            }
            self.bridge.handle_timeout(self.now());
        }
    }

    fn disconnect(&mut self) {
        self.bridge.link_down();
        self.filters.clear();
        self.waiting.clear();
    }

    /// What is late comes when nothing else does.
    fn wait_ended(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.iter().for_each(|topic| self.send_retained(topic));
        !waiting.is_empty()
    }

    fn send_retained(&mut self, topic: &str) {
        if let Some(payload) = self.retained.get(topic).cloned() {
            self.bridge.message(self.now(), topic, payload.as_bytes(), true);
        }
    }

    fn pump(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(call) = self.bridge.poll_call(self.now()) {
                quiet = false;
                let reply = match call.method {
                    Method::ListNames => Reply::Names(self.services.keys().cloned().collect()),
                    Method::GetNameOwner(name) => Reply::Text(format!(":{name}")),
                    Method::GetItems => {
                        let name = call.destination.trim_start_matches(':');
                        let number = name.rsplit('n').next().and_then(|number| number.parse().ok()).unwrap_or(0);
                        let value = |path: &str| Change::of(Value::Int(if path == "/DeviceInstance" { number } else { 1 }));
                        Reply::Items(self.services[name].iter().map(|path| (path.clone(), value(path))).collect())
                    }
                    method => panic!("{method:?}"),
                };
                self.bridge.reply(self.now(), call.id, reply);
            }
            while let Some(command) = self.bridge.poll_link() {
                quiet = false;
                self.obey(command);
            }
            while let Some(publish) = self.bridge.poll_publish(self.now(), 1000) {
                quiet = false;
                self.take(publish);
            }
            while let Some(note) = self.bridge.poll_note() {
                self.lines.push(format!("{} {}", note.level, note.text));
            }
            if quiet {
                return;
            }
        }
    }

    fn obey(&mut self, command: LinkCommand) {
        let now = self.now();
        match command {
            LinkCommand::Unsubscribe(filters) => self.filters.retain(|filter| !filters.contains(filter)),
            LinkCommand::Subscribe(filters) => {
                self.subscribes += 1;
                let fits =
                    |filter: &str, topic: &str| matches(filter, topic) && (self.replay != Replay::Exact || !filter.contains(['+', '#']));
                let mut topics: Vec<String> =
                    self.retained.keys().filter(|topic| filters.iter().any(|filter| fits(filter, topic))).cloned().collect();
                match self.replay {
                    Replay::Most(most) => topics.truncate(most),
                    Replay::MostOfTheLast(most) => drop(topics.drain(..topics.len().saturating_sub(most))),
                    Replay::Twice => topics.extend(topics.clone()),
                    Replay::All | Replay::Early | Replay::Behind(_) | Replay::Exact => {}
                }
                if self.replay == Replay::Early {
                    topics.iter().for_each(|topic| self.send_retained(topic));
                }
                filters.iter().for_each(|filter| self.bridge.subscribed(now, filter, true));
                match self.replay {
                    Replay::Early => {}
                    Replay::Behind(_) => self.waiting.extend(topics),
                    _ => topics.iter().for_each(|topic| self.send_retained(topic)),
                }
                self.filters.extend(filters);
            }
        }
    }

    fn take(&mut self, Publish { topic, payload, retain }: Publish) {
        let text = String::from_utf8(payload.clone()).unwrap();
        if retain && text.is_empty() {
            self.retained.remove(&topic);
        } else if retain && !topic.contains(self.refused) {
            self.retained.insert(topic.clone(), text);
        }
        if self.filters.iter().any(|filter| matches(filter, &topic)) {
            self.bridge.message(self.now(), &topic, &payload, false);
        }
        // a replay in pieces, between what is published meanwhile
        if let Replay::Behind(pieces) = self.replay {
            for topic in self.waiting.drain(..pieces.min(self.waiting.len())).collect::<Vec<_>>() {
                self.send_retained(&topic);
            }
        }
    }

    /// What is retained and should not be.
    fn left(&self) -> Vec<String> {
        self.stale.iter().filter(|topic| self.retained.contains_key(*topic)).cloned().collect()
    }

    fn lines_with(&self, text: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(text)).count()
    }
}

fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

/// Everything is awake, so that it fills a queue that is too small, or nothing is.
#[test]
fn nothing_stale_is_left_however_it_is_replayed() {
    let cut = [800, 300, 60].into_iter().flat_map(|most| [Replay::Most(most), Replay::MostOfTheLast(most)]);
    let others = [Replay::All, Replay::Early, Replay::Twice, Replay::Behind(0), Replay::Behind(1), Replay::Behind(3)];
    for replay in others.into_iter().chain(cut) {
        for always_on in [true, false] {
            let mut world = World::new(replay, always_on);
            world.connect();
            let left = world.left();
            assert!(left.is_empty(), "{replay:?}, always_on {always_on}: {} are left, like {:?}", left.len(), &left[..left.len().min(5)]);
            let awake: usize = if always_on { world.services.values().map(Vec::len).sum() } else { 0 };
            assert_eq!(world.retained.keys().filter(|topic| topic.starts_with("N/")).count(), awake + 2, "{replay:?}");
            // where single depths are cut, names that are not known cannot be ruled out
            let warnings = usize::from(always_on && matches!(replay, Replay::Most(..=300) | Replay::MostOfTheLast(..=300)));
            assert_eq!(world.lines_with("WARN"), warnings, "{replay:?}: {:?}", world.lines);
            assert!(world.subscribes < 2000, "{replay:?}: {} subscriptions", world.subscribes);
            // a second connection, with everything as it was
            world.disconnect();
            world.connect();
            assert!(world.left().is_empty(), "{replay:?}");
        }
    }
}

/// A number of values that are cleared, each counted once.
#[test]
fn what_comes_twice_is_counted_once() {
    let mut world = World::new(Replay::Twice, false);
    world.connect();
    assert_eq!(world.lines_with(&format!("{} retained values that nobody stands for are cleared", stale().len())), 1, "{:?}", world.lines);
}

/// RabbitMQ: said once, however often the connection is made, and not tried again and again.
#[test]
fn a_broker_without_wildcard_replay_is_named_once() {
    for always_on in [true, false] {
        let mut world = World::new(Replay::Exact, always_on);
        for _ in 0..3 {
            world.connect();
            world.disconnect();
        }
        assert_eq!(world.lines_with("does not replay retained messages to subscriptions with wildcards"), 1, "{:?}", world.lines);
        assert_eq!(world.lines_with("WARN"), 1, "{:?}", world.lines);
        // requests, and one part
        assert_eq!(world.subscribes, 3 * 2);
        assert_eq!(world.left().len(), stale().len());
    }
}

/// A value that the broker does not take never comes back: that is not a replay which was cut.
#[test]
fn what_the_broker_refuses_is_not_waited_for() {
    let mut world = World::new(Replay::All, true);
    world.refused = "/ProductName";
    world.connect();
    assert!(world.left().is_empty());
    // it looks the same as a replay that was cut
    assert_eq!(world.lines_with("WARN"), world.lines_with("may stay"), "{:?}", world.lines);
    assert!(world.subscribes < 200, "{}", world.subscribes);
}

/// A limit below which no broker is usable: the sweep ends, and says what may be left.
#[test]
fn a_hopeless_limit_is_named_once() {
    let mut world = World::new(Replay::Most(1), true);
    for _ in 0..2 {
        world.connect();
        world.disconnect();
    }
    assert_eq!(world.lines_with("WARN"), 1, "{:?}", world.lines);
    assert_eq!(world.lines_with("max_queued_messages"), 1, "{:?}", world.lines);
}

/// A broker that has lost what it retained: whatever the link carries and what was published before, the constants are there before the
/// first subscription to notifications, so that it is not taken for one without replay.
#[test]
fn the_constants_are_published_before_the_first_subscription() {
    for is_slow in [false, true] {
        for reads in [0, 9] {
            let mut world = World::new(Replay::All, false);
            world.connect();
            // the connection is lost while answers are published one after the other
            for n in 0..reads {
                let day = format!("R/{PORTAL}/battery/0/History/Daily/{n}/Yield");
                world.bridge.message(world.now(), &day, b"", false);
                while let Some(call) = world.bridge.poll_call(world.now()) {
                    world.bridge.reply(world.now(), call.id, Reply::Value(Value::Int(1)));
                }
                assert!(world.bridge.poll_publish(world.now(), 1000).is_some());
            }
            world.disconnect();
            world.retained.clear();
            world.bridge.set_slow_link(is_slow);
            world.bridge.link_up(world.now());
            let mut is_subscribed = false;
            while !is_subscribed {
                // the link has no room yet when the timers are looked at
                world.elapsed += Duration::from_secs(1);
                world.bridge.handle_timeout(world.now());
                while let Some(command) = world.bridge.poll_link() {
                    is_subscribed |=
                        matches!(&command, LinkCommand::Subscribe(filters) if filters.iter().any(|filter| filter.starts_with("N/")));
                    world.obey(command);
                }
                if !is_subscribed && let Some(publish) = world.bridge.poll_publish(world.now(), 1000) {
                    world.take(publish);
                }
            }
            let constants = ["system/0/Serial", "keepalive"].map(|rest| world.retained.contains_key(&format!("N/{PORTAL}/{rest}")));
            assert_eq!(constants, [true, true], "slow: {is_slow}, {reads} reads");
            world.pump();
            assert_eq!(world.lines_with("WARN"), 0, "{:?}", world.lines);
        }
    }
}

/// One service whose values fill the queue, with stale values behind them.
fn filled(replay: Replay, always_on: bool, mut live: Vec<String>, stale: impl Iterator<Item = String>) -> World {
    let mut world = World::new(replay, always_on);
    live.push("/DeviceInstance".into());
    world.services = [("com.victronenergy.battery.n1".to_owned(), live)].into();
    world.stale = stale.map(|rest| format!("N/{PORTAL}/{rest}")).collect();
    world.retained = world.stale.iter().map(|topic| (topic.clone(), "1".into())).collect();
    world
}

/// Topics with names that no value has any more are found by their other names and their numbers; where that is not possible, the log says so.
#[test]
fn what_is_hidden_behind_values_is_found_or_named() {
    let table = |rows: std::ops::Range<usize>, columns: usize| {
        let path = move |row| (0..columns).map(move |column| format!("/A/{row}/{column}"));
        rows.flat_map(path).collect::<Vec<_>>()
    };
    let stale = |paths: Vec<String>| paths.into_iter().map(|path| format!("battery/1{path}"));
    let names = |of: &str, count: usize| (0..count).map(|n| format!("/{of}{n}")).collect::<Vec<_>>();
    let long = |name: &str, numbers: std::ops::Range<usize>| numbers.map(|n| format!("/{name}/{n}/V")).collect::<Vec<_>>();
    for most in [Replay::Most as fn(usize) -> Replay, Replay::MostOfTheLast] {
        let cases = [
            (filled(most(100), true, table(0..25, 40), stale(table(25..55, 10))), true),
            (filled(most(200), true, table(0..20, 30), stale(table(20..40, 10))), true),
            (filled(most(200), true, long("A", 0..300), stale(long("A", 300..1800))), most(0) == Replay::Most(0)),
            (filled(most(10), true, long("A", 0..41), (0..30).map(|n| format!("battery/2/X/{n}"))), true),
            (filled(most(10), true, long("A", 0..41), stale(long("A", 41..51))), true),
            (filled(most(1), true, long("A", 0..41), stale(long("A", 41..81))), false),
            (filled(most(50), true, names("Awake", 300), stale(names("Gone", 60))), false),
            (filled(most(50), true, names("Awake", 300), stale(names("Zone", 60))), false),
        ];
        for (at, (mut world, is_found)) in cases.into_iter().enumerate() {
            world.connect();
            let left = world.left();
            let case = format!(
                "case {at}, {:?}: {} of {} are left, {} subscriptions",
                world.replay,
                left.len(),
                world.stale.len(),
                world.subscribes
            );
            assert!(left.is_empty() || world.lines_with("may stay") == 1, "{case}: {:?}", world.lines);
            assert!(left.is_empty() || !is_found, "{case}, like {:?}", &left[..left.len().min(5)]);
            let live = world.services["com.victronenergy.battery.n1"].len();
            assert_eq!(world.retained.len() - left.len(), live + 4, "{case}: something live is gone");
        }
    }
}

/// What could not be found behind values that were awake is found once they are not.
#[test]
fn the_sweep_begins_again_when_nothing_is_awake() {
    let names = |of: &str| (0..300).map(|n| format!("/{of}{n}")).collect::<Vec<_>>();
    let mut world = filled(Replay::Most(50), false, names("Awake"), names("Zone").into_iter().map(|path| format!("battery/1{path}")));
    world.retained.clear();
    world.connect();
    world.bridge.message(world.now(), &format!("R/{PORTAL}/keepalive"), b"", false);
    world.pump();
    world.disconnect();
    world.retained.extend(world.stale.iter().map(|topic| (topic.clone(), "1".into())));
    world.connect();
    assert!(world.left().is_empty(), "{:?}", world.lines);
    assert_eq!(world.lines_with("may stay"), 1, "{:?}", world.lines);
}
