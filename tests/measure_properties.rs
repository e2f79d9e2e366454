//! Measurements against a small model of what should be: whatever the clock, the disk and the backend do, and in whatever order, what
//! was measured is posted in order, one at a time, never before its time, and exactly once unless the daemon ended meanwhile; nothing
//! is lost but what was dropped or rejected, and that is counted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use venus_mqtt::bridge::filter::Filter;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Enabled, Options as BridgeOptions};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Bridge, Change, Method, Reply, Setup as BridgeSetup, Time};
use venus_mqtt::measure::options::{Format, Options};
use venus_mqtt::measure::{Answer, Command, Entry, Event, Measures, Moment, Outcome, Setup, Wall};

const PORTAL: &str = "c0619ab1c2d3";
const START: i64 = 1_761_838_020_000_000;
const UNSET: i64 = 86_400_000_000;
const BATTERY: &str = "com.victronenergy.battery.a";
const OWNER: &str = ":1.1";
const MINUTE: Duration = Duration::from_secs(60);
/// Timers that an answer waits for.
const SOON: usize = 20;
/// Measurements that the disk has not taken, at most: with a few more they would be dropped.
const UNTAKEN: usize = 50;

#[derive(Clone, Debug)]
enum Step {
    Pass {
        millis: u64,
    },
    /// Time in which the process gets no turn.
    Late {
        millis: u64,
    },
    /// Somebody sets the clock, forth or back.
    Jump {
        seconds: i64,
    },
    /// It begins again in 1970, or is right again.
    Unset {
        unset: bool,
    },
    /// What is measured comes, or goes.
    Battery {
        present: bool,
    },
    /// A measurement is so much larger from now on.
    Size {
        bytes: usize,
    },
    /// The disk does at once what it is to do, or hangs.
    Disk {
        hangs: bool,
    },
    /// It hangs, but does so much of it.
    Crawl {
        commands: usize,
    },
    /// It cannot read this one, counted from the oldest.
    Spoil {
        which: usize,
    },
    /// The backend answers what is posted, or what will be, if that is soon.
    Answer(Kind),
    Link {
        up: bool,
    },
    Restart {
        says_goodbye: bool,
    },
    /// Everything is let to its end, and looked at.
    Settle,
}

/// How the backend answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Taken,
    TakenBut,
    Unreachable,
    Broken,
    Busy { seconds: u64 },
    Key,
    Refused,
    Unknown,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        4 => Just(Kind::Taken),
        1 => Just(Kind::TakenBut),
        2 => Just(Kind::Unreachable),
        1 => Just(Kind::Broken),
        1 => prop_oneof![Just(0), 1..100_u64, Just(7200)].prop_map(|seconds| Kind::Busy { seconds }),
        1 => Just(Kind::Key),
        1 => Just(Kind::Refused),
        1 => Just(Kind::Unknown),
    ];
    let step = prop_oneof![
        8 => prop_oneof![1..1_000_u64, 1..40_000_u64, 1..1_200_000_u64].prop_map(|millis| Step::Pass { millis }),
        1 => prop_oneof![1..10_000_u64, 1..200_000_u64].prop_map(|millis| Step::Late { millis }),
        1 => prop_oneof![-40..40_i64, -100_000..100_000_i64].prop_map(|seconds| Step::Jump { seconds }),
        1 => proptest::bool::weighted(0.3).prop_map(|unset| Step::Unset { unset }),
        1 => proptest::bool::weighted(0.7).prop_map(|present| Step::Battery { present }),
        1 => (0..300_usize).prop_map(|bytes| Step::Size { bytes }),
        2 => proptest::bool::weighted(0.4).prop_map(|hangs| Step::Disk { hangs }),
        2 => (1..8_usize).prop_map(|commands| Step::Crawl { commands }),
        1 => (0..4_usize).prop_map(|which| Step::Spoil { which }),
        12 => kind.prop_map(Step::Answer),
        1 => any::<bool>().prop_map(|up| Step::Link { up }),
        1 => any::<bool>().prop_map(|says_goodbye| Step::Restart { says_goodbye }),
        1 => Just(Step::Settle),
    ];
    proptest::collection::vec(step, 1..80)
}

fn options() -> impl Strategy<Value = Options> {
    let interval = prop_oneof![Just(10_000), Just(30_000), Just(12_345)];
    let rate = prop_oneof![Just(0.5), Just(5.0), Just(100.0)];
    (interval, rate, 1..40_usize, prop_oneof![Just(1_000_u64), Just(1_000_000)]).prop_map(
        |(interval, catch_up_rate, queue_records, queue_bytes)| Options {
            name: "1".into(),
            host: "https://backend.example".into(),
            format: Format::JsonLines(vec![Filter::parse("battery/#").unwrap()]),
            update_interval: Duration::from_millis(interval),
            cerbo_serial: None,
            catch_up_rate,
            queue_records,
            queue_bytes,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_was_measured_is_delivered(options in options(), seed in any::<u64>(), steps in steps()) {
        let mut world = World::new(options, seed);
        for step in steps {
            world.step(step)?;
        }
        world.step(Step::Settle)?;
    }
}

/// What the disk is to do, does, and keeps from one life of the daemon to the next.
#[derive(Default)]
struct Disk {
    kept: BTreeMap<u64, Vec<u8>>,
    next_seq: u64,
    spoiled: BTreeSet<u64>,
    /// Not opened yet.
    opening: bool,
    hangs: bool,
    waiting: VecDeque<Command>,
}

/// What should be, of one life of the daemon.
#[derive(Default)]
struct Model {
    /// What has not been dealt with: when it was measured, and how large it is.
    queue: BTreeMap<u64, (Duration, u64)>,
    /// The disk has taken everything up to here.
    stored: Option<u64>,
    /// Everything up to here outlives a power cut.
    synced: Option<u64>,
    posting: Option<u64>,
    dropped: u64,
    rejected: u64,
    failures: u32,
    /// The next post comes no earlier than the first and no later than the second.
    wait: (Duration, Duration),
    last_post: Option<Duration>,
    last_sync: Option<Duration>,
    last_sample: Option<Duration>,
    /// Since when nothing has kept it from measuring.
    ready: Option<Duration>,
    condition: Option<Kind>,
    stopping: bool,
}

struct World {
    options: Options,
    seed: u64,
    bridge: Bridge,
    measures: Measures,
    elapsed: Duration,
    clock: i64,
    present: bool,
    linked: bool,
    disk: Disk,
    /// What the backend is dealing with.
    under_way: Option<(u64, Vec<u8>)>,
    model: Model,
    /// What the backend has by now, and what it may get twice.
    delivered: BTreeSet<(u64, Vec<u8>)>,
    excused: BTreeSet<u64>,
}

type Checked = Result<(), TestCaseError>;

impl World {
    fn new(options: Options, seed: u64) -> Self {
        let portal = PortalId::parse(PORTAL).unwrap();
        let bridge_options = BridgeOptions { enabled: Enabled::Yes, ..BridgeOptions::default() };
        let setup =
            BridgeSetup { portal, prefix: String::new(), options: bridge_options, beside: false, nonce: 1, verbosity: log::Level::Warn };
        let mut world = Self {
            bridge: Bridge::new(setup),
            measures: measures(&options, seed),
            options,
            seed,
            elapsed: Duration::ZERO,
            clock: START,
            present: false,
            linked: false,
            disk: Disk { opening: true, ..Disk::default() },
            under_way: None,
            model: Model::default(),
            delivered: BTreeSet::new(),
            excused: BTreeSet::new(),
        };
        world.bridge.bus_up(Time::default());
        let names = world.bridge.poll_call(world.now()).unwrap().id;
        world.bridge.reply(Time::default(), names, Reply::Names(Vec::new()));
        world.battery(true);
        world
    }

    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now(), wall: Wall::from_micros(self.clock + micros(self.elapsed)) }
    }

    fn pace(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.options.catch_up_rate)
    }

    fn step(&mut self, step: Step) -> Checked {
        match step {
            Step::Pass { millis } => self.pass(Duration::from_millis(millis))?,
            Step::Late { millis } => self.elapsed += Duration::from_millis(millis),
            Step::Jump { seconds } => self.clock = (self.clock + seconds * 1_000_000).max(0),
            Step::Unset { unset } => self.clock = if unset { UNSET } else { START },
            Step::Battery { present } => self.battery(present),
            Step::Size { bytes } => {
                let (now, value) = (self.now(), Value::Str("x".repeat(bytes).into()));
                if let Some(mut changes) = self.bridge.changes(now, OWNER) {
                    changes.item("/CustomName", Change { value: Some(value), ..Change::default() });
                }
            }
            Step::Disk { hangs } => self.disk.hangs = hangs,
            Step::Crawl { commands } => self.disk_does(commands)?,
            Step::Spoil { which } => self.disk.spoiled.extend(self.disk.kept.keys().nth(which)),
            Step::Answer(kind) => {
                for _ in 0..SOON {
                    if self.under_way.is_some() {
                        break;
                    }
                    self.pass_to_next()?;
                }
                self.answer(kind)?;
            }
            Step::Link { up } => {
                self.linked = up;
                if up { self.measures.link_up() } else { self.measures.link_down() }
            }
            Step::Restart { says_goodbye } => self.restart(says_goodbye)?,
            Step::Settle => self.settle()?,
        }
        self.serve()
    }

    fn battery(&mut self, present: bool) {
        if present == self.present {
            return;
        }
        self.present = present;
        let now = self.now();
        let (old, new) = if present { ("", OWNER) } else { (OWNER, "") };
        self.bridge.name_owner_changed(now, BATTERY, old, new);
        while let Some(call) = self.bridge.poll_call(self.now()) {
            if matches!(call.method, Method::GetItems) {
                let change = Change { value: Some(Value::Int(1)), ..Change::default() };
                self.bridge.reply(now, call.id, Reply::Items(vec![("/DeviceInstance".into(), change)]));
            }
        }
    }

    fn pass_to_next(&mut self) -> Checked {
        let due = self.measures.poll_timeout().map_or(Duration::ZERO, |due| due.after(self.now()));
        self.pass(due)
    }

    fn pass(&mut self, amount: Duration) -> Checked {
        let end = self.elapsed + amount;
        while let Some(due) = self.measures.poll_timeout()
            && due <= Time::since_start(end)
        {
            self.elapsed = self.elapsed.max(due.after(Time::default()));
            self.serve()?;
        }
        self.elapsed = end;
        Ok(())
    }

    /// What is due is served, and what must be by now is.
    fn serve(&mut self) -> Checked {
        self.measures.handle_timeout(self.moment(), &self.bridge);
        self.pump()?;
        let due = self.measures.poll_timeout();
        prop_assert!(due.is_none_or(|due| due > self.now()), "it does not come to rest");
        let (now, model) = (self.elapsed, &self.model);
        if model.stopping || self.disk.opening {
            return Ok(());
        }
        let wakes_by = |time: Duration| due.is_some_and(|due| due <= Time::since_start(time));
        let is_stored = |seq: &u64| model.stored.is_some_and(|stored| *seq <= stored);
        if let Some((front, _)) = model.queue.first_key_value().filter(|(front, _)| is_stored(front) && model.posting.is_none()) {
            let post = model.last_post.map_or(model.wait.1, |last| model.wait.1.max(last + self.pace()));
            prop_assert!(now < post && wakes_by(post), "{front} is to be posted at {post:?}, it is {now:?}, and it sleeps until {due:?}");
        }
        if let Some((seq, (measured, _))) = model.queue.iter().find(|(seq, _)| model.synced.is_none_or(|synced| **seq > synced)) {
            let sync = *measured + MINUTE;
            prop_assert!(
                now < sync && wakes_by(sync),
                "a power cut takes {seq}, of {measured:?}: it is {now:?}, and it sleeps until {due:?}"
            );
        }
        let is_ready = self.present && self.moment().wall.is_set();
        self.model.ready = if is_ready { self.model.ready.or(Some(now)) } else { None };
        if let Some(ready) = self.model.ready {
            let last = self.model.last_sample.map_or(ready, |last| last.max(ready));
            prop_assert!(now <= last + self.options.update_interval * 3 / 2, "nothing has been measured since {last:?}");
        }
        Ok(())
    }

    fn pump(&mut self) -> Checked {
        while self.bridge.poll_note().is_some() || self.bridge.poll_call(self.now()).is_some() || self.bridge.poll_link().is_some() {}
        loop {
            if !self.disk.hangs {
                self.disk_does(usize::MAX)?;
            }
            let mut quiet = true;
            while let Some((target, command)) = self.measures.poll_command() {
                prop_assert_eq!(target, 0);
                self.check(&command)?;
                self.disk.waiting.push_back(command);
                quiet = false;
            }
            if !quiet && !self.disk.hangs {
                continue;
            }
            if self.disk.waiting.iter().filter(|command| matches!(command, Command::Append { .. })).count() < UNTAKEN {
                break;
            }
            self.disk_does(UNTAKEN / 2)?;
        }
        while self.measures.poll_note().is_some() {}
        while let Some(publish) = self.measures.poll_publish(self.now()) {
            prop_assert!(self.linked && publish.retain);
            if !self.model.stopping {
                self.check_status(&publish.payload)?;
            }
        }
        Ok(())
    }

    /// What is to be done now must be what should be done now.
    fn check(&mut self, command: &Command) -> Checked {
        let (now, pace, model) = (self.elapsed, self.pace(), &mut self.model);
        prop_assert!(!self.disk.opening, "nobody knows what there is: {command:?}");
        match command {
            Command::Append { seq, body } => {
                prop_assert!(!model.stopping && self.present);
                prop_assert!(model.queue.keys().next_back().is_none_or(|last| last < seq), "{seq} has been given away");
                if let Some(last) = model.last_sample.replace(now) {
                    prop_assert!(now >= last + self.options.update_interval / 2, "twice for one multiple: at {last:?} and {now:?}");
                }
                model.queue.insert(*seq, (now, body.len() as u64));
                model.make_room(&self.options);
            }
            Command::Post(seq) => {
                prop_assert!(!model.stopping, "it posts at the end");
                prop_assert_eq!(model.posting.replace(*seq), None, "two at once");
                prop_assert_eq!(model.queue.keys().next(), Some(seq), "not the oldest");
                prop_assert!(model.stored.is_some_and(|stored| *seq <= stored), "{seq} cannot be read yet");
                prop_assert!(now >= model.wait.0, "{seq} is posted {:?} too early", model.wait.0 - now);
                let paced = model.last_post.replace(now).is_none_or(|last| now >= last + pace);
                prop_assert!(paced, "faster than {} a second", self.options.catch_up_rate);
            }
            Command::Forget { through } => {
                let first = model.queue.keys().next();
                prop_assert!(first.is_none_or(|first| first > through), "{first:?} is still needed");
            }
            Command::Sync => {
                prop_assert!(!model.queue.is_empty(), "for nothing");
                let before = model.last_sync.replace(now);
                prop_assert!(model.stopping || before.is_none_or(|before| now >= before + MINUTE), "twice in a minute");
                model.synced = model.queue.keys().next_back().copied();
            }
        }
        Ok(())
    }

    fn check_status(&self, payload: &[u8]) -> Checked {
        let status: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let model = &self.model;
        prop_assert_eq!(status["queued"].as_u64(), Some(model.queue.len() as u64));
        prop_assert_eq!(status["queued_bytes"].as_u64(), Some(model.bytes()));
        prop_assert_eq!(status["dropped"].as_u64(), Some(model.dropped));
        prop_assert_eq!(status["rejected"].as_u64(), Some(model.rejected));
        Ok(())
    }

    fn disk_does(&mut self, commands: usize) -> Checked {
        for _ in 0..commands {
            if std::mem::take(&mut self.disk.opening) {
                self.opened();
            } else if let Some(command) = self.disk.waiting.pop_front() {
                self.carry_out(command)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn opened(&mut self) {
        let entry = |(seq, body): (&u64, &Vec<u8>)| Entry { seq: *seq, len: u32::try_from(body.len()).unwrap() };
        let entries: Vec<Entry> = self.disk.kept.iter().map(entry).collect();
        self.model.queue = entries.iter().map(|entry| (entry.seq, (self.elapsed, u64::from(entry.len)))).collect();
        self.model.make_room(&self.options);
        self.model.stored = entries.last().map(|entry| entry.seq);
        self.model.synced = self.model.stored;
        // the first multiple is an interval away, at most
        self.model.ready = None;
        self.measures.event(self.moment(), 0, Event::Opened { entries, next_seq: self.disk.next_seq });
    }

    fn carry_out(&mut self, command: Command) -> Checked {
        match command {
            Command::Append { seq, body } => {
                self.disk.next_seq = seq + 1;
                self.disk.kept.insert(seq, body);
                self.model.stored = Some(seq);
                self.measures.event(self.moment(), 0, Event::Stored(seq));
            }
            Command::Forget { through } => {
                let needed = self.disk.kept.split_off(&(through + 1));
                prop_assert!(!self.disk.kept.is_empty(), "there is nothing up to {through}");
                self.disk.kept = needed;
            }
            Command::Post(seq) if self.disk.spoiled.contains(&seq) => {
                self.model.posting = None;
                // if it is not there any more, that was counted when there was no room for it
                if self.model.queue.remove(&seq).is_some() {
                    self.model.dropped += 1;
                }
                self.measures.event(self.moment(), 0, Event::Lost(seq));
            }
            Command::Post(seq) => {
                self.under_way = self.disk.kept.get(&seq).map(|body| (seq, body.clone()));
                prop_assert!(self.under_way.is_some(), "{seq} is not there");
            }
            Command::Sync => {}
        }
        Ok(())
    }

    /// The backend answers what has been posted, if anything has.
    fn answer(&mut self, kind: Kind) -> Checked {
        let Some((seq, body)) = self.under_way.take() else { return Ok(()) };
        self.model.posting = None;
        if matches!(kind, Kind::Taken | Kind::TakenBut) {
            let is_new = self.delivered.insert((seq, body));
            prop_assert!(is_new || self.excused.contains(&seq), "{seq} is delivered twice");
        }
        self.model.answered(self.elapsed, seq, kind);
        self.pump()?;
        self.measures.event(self.moment(), 0, Event::Posted(kind.outcome()));
        let mut lines = Vec::new();
        while let Some(note) = self.measures.poll_note() {
            lines.extend(Some(note.text).filter(|_| note.level < log::Level::Debug));
        }
        let is_news = self.model.condition.replace(kind.condition()) != Some(kind.condition());
        prop_assert!(lines.len() <= usize::from(is_news), "said again: {lines:?}");
        Ok(())
    }

    /// The daemon ends, and another one starts with what is on disk.
    fn restart(&mut self, says_goodbye: bool) -> Checked {
        if says_goodbye {
            self.model.stopping = true;
            self.measures.shut_down();
            self.serve()?;
            let waits = !self.model.queue.is_empty();
            prop_assert_eq!(self.model.synced, self.model.queue.keys().next_back().copied().filter(|_| waits).or(self.model.synced));
            self.answer(Kind::Taken)?;
            self.serve()?;
            while !self.disk.waiting.is_empty() && !self.disk.opening {
                self.disk_does(1)?;
                self.serve()?;
            }
        }
        // what was under way, and what the disk has not been rid of
        self.excused.extend(self.disk.kept.keys());
        self.disk.waiting.clear();
        self.disk.opening = true;
        self.under_way = None;
        self.model = Model::default();
        self.measures = measures(&self.options, self.seed);
        if self.linked {
            self.measures.link_up();
        }
        Ok(())
    }

    fn settle(&mut self) -> Checked {
        self.battery(false);
        self.disk.hangs = false;
        for _ in 0..1_000 {
            self.serve()?;
            self.answer(Kind::Taken)?;
            self.serve()?;
            if self.model.queue.is_empty() && self.disk.waiting.is_empty() && !self.disk.opening {
                break;
            }
            self.pass_to_next()?;
        }
        prop_assert!(self.model.queue.is_empty(), "still there: {:?}", self.model.queue);
        prop_assert!(self.disk.kept.is_empty(), "not forgotten: {:?}", self.disk.kept.keys());
        prop_assert!(!self.measures.is_posting());
        self.battery(true);
        Ok(())
    }
}

impl Model {
    fn bytes(&self) -> u64 {
        self.queue.values().map(|(_, len)| len).sum()
    }

    /// The oldest go; there is room for the last one in any case.
    fn make_room(&mut self, options: &Options) {
        while self.queue.len() > options.queue_records || self.queue.len() > 1 && self.bytes() > options.queue_bytes {
            self.queue.pop_first();
            self.dropped += 1;
        }
    }

    fn answered(&mut self, now: Duration, seq: u64, kind: Kind) {
        let exactly = |seconds: u64| (Duration::from_secs(seconds), Duration::from_secs(seconds));
        let (least, most) = match kind {
            Kind::Taken | Kind::TakenBut | Kind::Refused | Kind::Unknown => {
                self.failures = 0;
                self.rejected += u64::from(matches!(kind, Kind::Refused | Kind::Unknown));
                // there was no room for it, but it got there
                if self.queue.remove(&seq).is_none() {
                    self.dropped -= 1;
                }
                return;
            }
            // from the fourth failure on, next to nothing grows to a minute
            Kind::Busy { seconds: 0..5 } if self.failures >= 3 => exactly((5 << self.failures.min(8)).min(60)),
            Kind::Busy { seconds } => exactly(seconds.clamp(1, 3600)),
            Kind::Key => exactly(900),
            Kind::Unreachable | Kind::Broken => {
                let most = Duration::from_secs(5 << self.failures.min(8)).min(Duration::from_secs(900));
                (most * 4 / 5, most)
            }
        };
        self.failures += 1;
        self.wait = (now + least, now + most);
    }
}

impl Kind {
    fn outcome(self) -> Outcome {
        let status = match self {
            Self::Unreachable => return Outcome::Failed("connection refused".into()),
            Self::Taken => 201,
            Self::TakenBut => 207,
            Self::Broken => 500,
            Self::Busy { .. } => 429,
            Self::Key => 401,
            Self::Refused => 400,
            // nobody but the other format's backend means the measurement by a 404
            Self::Unknown => 422,
        };
        let retry_after = if let Self::Busy { seconds } = self { Some(Duration::from_secs(seconds)) } else { None };
        let body = b"{\"results\":[{\"device_identifier\":\"HQ1\",\"status\":\"error\",\"error\":\"not found\"}]}".to_vec();
        Outcome::Answer(Answer { status, retry_after, body, ..Answer::default() })
    }

    /// What the log calls the same.
    fn condition(self) -> Self {
        if let Self::Busy { .. } = self { Self::Broken } else { self }
    }
}

fn measures(options: &Options, seed: u64) -> Measures {
    Measures::new(Setup {
        portal: PortalId::parse(PORTAL).unwrap(),
        prefix: String::new(),
        targets: vec![options.clone()],
        seed,
        had_more: false,
        verbosity: log::Level::Debug,
    })
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap()
}
