//! The calls of the bridge against a model of dbus-daemon, which keeps a place for each call until it is answered, and of services, of
//! which any number hang: a write to one that answers is carried out within its deadline, whatever the others do.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Enabled, Options};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Bridge, Change, Method, Reply, Setup, Time, limits};

const PORTAL: &str = "c0619ab1c2d3";

#[derive(Clone, Debug)]
enum Step {
    /// So many services come, and answer their scan or do not.
    Appear {
        count: usize,
        hang: bool,
    },
    Leave {
        service: usize,
    },
    /// So many of the services stop answering, or go on and answer everything.
    Hang {
        first: usize,
        count: usize,
    },
    Resume {
        first: usize,
        count: usize,
    },
    /// Requests to so many services, so many to each.
    Read {
        first: usize,
        count: usize,
        each: usize,
    },
    Write {
        first: usize,
        count: usize,
        each: usize,
    },
    /// Services that hang may still send signals.
    Change {
        first: usize,
        count: usize,
    },
    /// The connection does not take the next calls.
    Refuse {
        calls: usize,
    },
    Pass {
        millis: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || (0..200_usize, 1..150_usize);
    let step = prop_oneof![
        2 => (1..60_usize, prop::bool::weighted(0.3)).prop_map(|(count, hang)| Step::Appear { count, hang }),
        1 => (0..200_usize).prop_map(|service| Step::Leave { service }),
        2 => some().prop_map(|(first, count)| Step::Hang { first, count }),
        1 => some().prop_map(|(first, count)| Step::Resume { first, count }),
        3 => (some(), 1..20_usize).prop_map(|((first, count), each)| Step::Read { first, count, each }),
        2 => (some(), 1..12_usize).prop_map(|((first, count), each)| Step::Write { first, count, each }),
        1 => some().prop_map(|(first, count)| Step::Change { first, count }),
        1 => (1..5_usize).prop_map(|calls| Step::Refuse { calls }),
        4 => (1..40_000_u64).prop_map(|millis| Step::Pass { millis }),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn services_that_hang_hold_up_no_others(steps in steps()) {
        let mut world = World::new();
        world.appear(false);
        for step in steps {
            world.step(step)?;
            world.check()?;
        }
    }
}

/// So many services that are called often and stop answering hold less than half of the places.
#[test]
fn most_places_are_left() {
    for (services, most) in [(6, 48), (24, 48), (60, 60), (200, 80)] {
        let mut world = World::new();
        (0..services).for_each(|_| {
            world.appear(false);
        });
        world.pass(Duration::from_secs(60)).unwrap();
        world.hang(0, services, true);
        for _ in 0..10 {
            world.request('R', 0, services, 16);
            world.pass(Duration::from_secs(60)).unwrap();
            world.check().unwrap();
        }
        assert!(world.places.len() <= most, "{services} services hold {} places", world.places.len());
        assert!(world.bridge.summary(world.now())[1].contains(&format!("not answered by {} connections that hang", world.hung())));
        // a new service is scanned, and written to
        let new = world.appear(false);
        assert!(world.services[&new].scanned);
        world.check().unwrap();
    }
}

/// However many requests wait for services that hang, one that answers can be asked.
#[test]
fn requests_that_wait_leave_room() {
    let mut world = World::new();
    for _ in 0..100 {
        world.appear(false);
    }
    world.hang(0, 99, true);
    for _ in 0..3 {
        world.request('R', 0, 99, 512);
        world.pass(Duration::from_secs(2)).unwrap();
        world.check().unwrap();
    }
}

/// Services that never answer their scan hold one or two places however long they do not.
#[test]
fn scans_that_are_not_answered_do_not_add_up() {
    let mut world = World::new();
    for _ in 0..6 {
        world.appear(true);
    }
    world.pass(Duration::from_secs(6 * 3600)).unwrap();
    assert!(world.places.len() <= 12, "{}", world.places.len());
    // the answer to the first scan comes late: then it is scanned
    world.hang(0, 6, false);
    assert!(world.services.values().all(|service| service.scanned));
    assert_eq!(world.places.len(), 0);
    world.check().unwrap();
}

/// A service whose scan was given up answers it late, while nearly all places are held by others: it is scanned again at once.
#[test]
fn a_late_answer_is_a_sign_of_life() {
    let mut world = World::new();
    world.appear(false);
    for (count, hang) in [(35, true), (35, false), (42, true), (19, true), (1, false), (56, false)] {
        world.step(Step::Appear { count, hang }).unwrap();
        world.check().unwrap();
    }
    world.step(Step::Resume { first: 131, count: 1 }).unwrap();
    world.check().unwrap();
}

/// A burst of reads, most of them to services that hang, fills the shared part of the table of waiting calls: writes to services that
/// answer are still carried out.
#[test]
fn a_burst_of_reads_leaves_writes_their_turn() {
    let mut world = World::new();
    world.appear(false);
    for (count, hang) in [(18, true), (59, false)] {
        world.step(Step::Appear { count, hang }).unwrap();
        world.check().unwrap();
    }
    for step in [
        Step::Hang { first: 0, count: 39 },
        Step::Appear { count: 37, hang: false },
        Step::Appear { count: 11, hang: false },
        Step::Hang { first: 16, count: 48 },
        Step::Read { first: 2, count: 120, each: 19 },
    ] {
        world.step(step).unwrap();
        world.check().unwrap();
    }
}

struct Service {
    owner: String,
    hangs: bool,
    /// It has answered GetItems.
    scanned: bool,
}

struct World {
    bridge: Bridge,
    elapsed: Duration,
    next: usize,
    services: BTreeMap<usize, Service>,
    /// What the bus keeps a place for: which service, and what.
    places: BTreeMap<u32, (usize, Method)>,
    /// Writes to services that answer, since when.
    writes: BTreeMap<(usize, String), Duration>,
    refuse: usize,
}

impl World {
    fn new() -> Self {
        let options = Options { enabled: Enabled::Yes, ..Options::default() };
        let portal = PortalId::parse(PORTAL).unwrap();
        let setup = Setup { portal, prefix: String::new(), options, beside: false, nonce: 1, verbosity: log::Level::Error };
        let mut world = Self {
            bridge: Bridge::new(setup),
            elapsed: Duration::from_secs(1),
            next: 0,
            services: BTreeMap::new(),
            places: BTreeMap::new(),
            writes: BTreeMap::new(),
            refuse: 0,
        };
        world.bridge.bus_up(world.now());
        world.bridge.link_up(world.now());
        world.pump();
        world.pass(Duration::from_secs(10)).unwrap();
        world
    }

    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    fn hung(&self) -> usize {
        let mut hung: Vec<usize> = self.places.values().map(|(service, _)| *service).collect();
        hung.dedup();
        hung.sort_unstable();
        hung.dedup();
        hung.len()
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Appear { count, hang } => (0..count.min(250 - self.services.len())).for_each(|_| {
                self.appear(hang);
            }),
            Step::Leave { service } => self.leave(service),
            Step::Hang { first, count } => self.hang(first, count, true),
            Step::Resume { first, count } => self.hang(first, count, false),
            Step::Read { first, count, each } => self.request('R', first, count, each),
            Step::Write { first, count, each } => self.request('W', first, count, each),
            Step::Change { first, count } => {
                for n in self.some(first, count) {
                    let owner = self.services[&n].owner.clone();
                    if let Some(mut changes) = self.bridge.changes(self.now(), &owner) {
                        changes.item("/P0", Change::of(Value::Int(1)));
                    }
                }
            }
            Step::Refuse { calls } => self.refuse = calls,
            Step::Pass { millis } => self.pass(Duration::from_millis(millis))?,
        }
        self.pump();
        Ok(())
    }

    fn some(&self, first: usize, count: usize) -> Vec<usize> {
        self.services.range(first..first + count).map(|(n, _)| *n).collect()
    }

    fn appear(&mut self, hangs: bool) -> usize {
        let n = self.next;
        self.next += 1;
        let owner = format!(":1.{n}");
        self.services.insert(n, Service { owner: owner.clone(), hangs, scanned: false });
        self.bridge.name_owner_changed(self.now(), &format!("com.victronenergy.tank.s{n}"), "", &owner);
        self.pump();
        n
    }

    fn leave(&mut self, n: usize) {
        let Some(service) = self.services.remove(&n) else { return };
        self.bridge.name_owner_changed(self.now(), &format!("com.victronenergy.tank.s{n}"), &service.owner, "");
        self.writes.retain(|(of, _), _| *of != n);
        // the bus answers in its place
        let ids: Vec<u32> = self.places.iter().filter(|(_, (of, _))| *of == n).map(|(id, _)| *id).collect();
        for id in ids {
            self.places.remove(&id);
            self.bridge.reply(self.now(), id, Reply::Error { name: "org.freedesktop.DBus.Error.NoReply".into(), text: String::new() });
        }
        self.pump();
    }

    fn hang(&mut self, first: usize, count: usize, hangs: bool) {
        for n in self.some(first, count) {
            self.services.get_mut(&n).unwrap().hangs = hangs;
            if hangs {
                self.writes.retain(|(of, _), _| *of != n);
                continue;
            }
            let held: Vec<u32> = self.places.iter().filter(|(_, (of, _))| *of == n).map(|(id, _)| *id).collect();
            for id in held {
                let (_, method) = self.places.remove(&id).unwrap();
                self.answer(n, id, &method);
            }
            self.pump();
        }
    }

    fn request(&mut self, kind: char, first: usize, count: usize, each: usize) {
        for n in self.some(first, count) {
            for path in (0..each).map(|path| format!("P{path}")) {
                self.bridge.message(self.now(), &format!("{kind}/{PORTAL}/tank/{n}/{path}"), b"{\"value\":1}", false);
            }
        }
        self.pump();
    }

    /// Each service that answers and that nothing is owed to is written to now: within the deadline it has that.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let answering =
            self.services.iter().filter(|(n, service)| !service.hangs && service.scanned && !self.writes.keys().any(|(of, _)| of == *n));
        for n in answering.map(|(n, _)| *n).collect::<Vec<_>>() {
            self.writes.insert((n, "/Checked".into()), self.elapsed);
            self.bridge.message(self.now(), &format!("W/{PORTAL}/tank/{n}/Checked"), b"{\"value\":1}", false);
        }
        self.refuse = 0;
        self.pump();
        self.pass(limits::CALL_DEADLINE)?;
        prop_assert!(self.writes.is_empty(), "not carried out: {:?}; {} places", self.writes, self.places.len());
        let summary = self.bridge.summary(self.now());
        prop_assert!(summary[1].contains(&format!("services: {} under way", self.places.len())), "{} {:?}", self.places.len(), summary);
        Ok(())
    }

    fn pass(&mut self, amount: Duration) -> Result<(), TestCaseError> {
        let end = self.elapsed + amount;
        while let Some(due) = self.bridge.poll_timeout()
            && due <= Time::since_start(end)
        {
            self.elapsed = self.elapsed.max(due.after(Time::default()));
            self.bridge.handle_timeout(self.now());
            self.pump();
        }
        self.elapsed = end;
        self.pump();
        Ok(())
    }

    fn answer(&mut self, n: usize, id: u32, method: &Method) {
        let reply = match method {
            Method::GetItems => {
                self.services.get_mut(&n).unwrap().scanned = true;
                let change = |value| Change::of(Value::Int(value));
                Reply::Items(vec![("/DeviceInstance".into(), change(i64::try_from(n).unwrap())), ("/P0".into(), change(1))])
            }
            Method::GetValue => Reply::Value(Value::Int(1)),
            Method::SetValue(_) => Reply::Code(0),
            _ => Reply::Names(Vec::new()),
        };
        self.bridge.reply(self.now(), id, reply);
    }

    fn pump(&mut self) {
        while let Some(call) = self.bridge.poll_call(self.now()) {
            if self.refuse > 0 && call.answered {
                self.refuse -= 1;
                self.bridge.unsent(self.now(), call.id, "the connection is full".into());
                continue;
            }
            let Some((n, service)) = self.services.iter().find(|(_, service)| service.owner == *call.destination) else {
                self.answer(0, call.id, &Method::ListNames);
                continue;
            };
            let (n, hangs) = (*n, service.hangs);
            if !hangs {
                self.writes.remove(&(n, call.path.to_string()));
            }
            if !call.answered {
                continue;
            }
            self.places.insert(call.id, (n, call.method.clone()));
            assert!(self.places.len() < limits::BUS_PLACES - limits::SETTINGS_PLACES.all, "the bus refuses it");
            if !hangs {
                self.places.remove(&call.id);
                self.answer(n, call.id, &call.method);
            }
        }
        while self.bridge.poll_note().is_some() {}
        while self.bridge.poll_link().is_some() {}
        while self.bridge.poll_publish(self.now(), 1000).is_some() {}
    }
}
