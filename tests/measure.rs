//! Plays the transcripts of `tests/measure` against the core of measurements, in virtual time.
//!
//! A transcript starts on 30 October 2025 at 15:27:00, with one portal ID, `c0619ab1c2d3`, a connected broker, an empty bus, an empty
//! disk, and one target: `1`, at https://solar.example. Each line is something that happens, or something that must come of it:
//!
//! ```text
//! setup   key=value …                  options, in the first lines only: prefix, link=down, clock=DATETIME, there=NAME
//!                                      (a service that was there before, as :1.1); and of the target: name,
//!                                      format, filters, interval, serial, catch_up_rate, queue_records, queue_bytes; `target=another`: from here
//!                                      on of one more, which is named by its number
//! bus     + NAME OWNER                 a name gets an owner            bus - NAME OWNER   and loses it
//! bus     < large OWNER /Path N        ItemsChanged with a text of so many KiB
//! bus     < items OWNER /Path=JSON …   the answer to its GetItems      bus < changed OWNER /Path=JSON …   ItemsChanged
//! time    + 61s                        time passes on both clocks, timer by timer
//! time      late 3s                    time passes in which nothing is served; timers are with the next `time + …`
//! time      early                      what timers serve is asked for before its time
//! clock   = 2025-10-30T15:00:00        somebody sets the clock         clock + 1h, clock - 10s   forth and back
//! http    > TARGET 15:27:30            a post that must come next: what was measured then
//! http    > TARGET BODY                or what it says
//! http    < [TARGET] ANSWER            the backend answers: `201`, `429 retry-after=7s`, `302 location=https://…`, `200 type=text/html`, each
//!                                      with a body behind it if there is one; or `failed WHY`, when no answer has come; or `untrusted WHY`
//! http      always [TARGET] ANSWER     every target's posts (or this one's) are answered so, at once, from here on; http by hand: no longer
//! disk      hangs                      what it is to do waits          disk takes   it is done, and the rest at once again
//! disk      spoils 15:27:30            what was measured then cannot be read any more
//! disk      gives nothing              what it keeps cannot be read       disk gives again
//! disk    = 15:27:30 15:28:00          what is kept, oldest first; `disk = nothing`, `disk = 64 measurements`
//! disk    > sync                       with `show sync`: a power cut is to take nothing of what is kept by now
//! disk    > keep|forget 15:27:30       with `show disk`: what was measured then, and with forgetting all before
//! mqtt      up, mqtt down              the connection to the broker; mqtt full: it has no room, mqtt room: it has
//! mqtt    > TOPIC PAYLOAD retained     with `show status`: a message that must come next; (empty) is a payload of nothing
//! log     > LEVEL text                 the next line above debug, or a line at debug that must have been written since the last event
//! daemon    ends                       it is told to end
//! daemon    starts [key=value …]       another one starts with what is on disk and, if so, with other options
//! daemon    dies                       and another one starts; `daemon loses power`: and what was not brought to the flash
//! daemon    reports                    what it writes on SIGUSR1: at info
//! show      status|disk|sync              these are expected line by line from here on; otherwise they are not looked at
//! hide      posts                      these are not looked at from here on; otherwise they are expected
//! ```
//!
//! A `…` stands for any text. Everything that comes out and is not named by a line is a mistake: every log line above debug, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "transcripts/items.rs"]
mod items;
mod transcripts;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use items::read_items;
use transcripts::{expect, is_like, span};
use venus_mqtt::bridge::filter::Filter;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Enabled, Options as BridgeOptions};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Bridge, BusCall, Change, Method, Publish, Reply, Setup as BridgeSetup, Time};
use venus_mqtt::measure::options::{Format, Options};
use venus_mqtt::measure::{Answer, Command, Entry, Event, Measures, Moment, Outcome, Setup, Wall};

const PORTAL: &str = "c0619ab1c2d3";
const START: &str = "2025-10-30T15:27:00";

#[test]
fn transcripts() {
    transcripts::play_all::<Stage>("measure");
}

/// What a transcript chooses.
#[derive(Clone)]
struct Chosen {
    prefix: String,
    is_linked: bool,
    clock: i64,
    /// On the bus before the daemon.
    there: Vec<String>,
    targets: Vec<Options>,
}

impl Default for Chosen {
    fn default() -> Self {
        Self { prefix: String::new(), is_linked: true, clock: micros(START).unwrap(), there: Vec::new(), targets: vec![target(1)] }
    }
}

fn target(number: usize) -> Options {
    Options {
        name: number.to_string().into(),
        host: "https://solar.example".into(),
        format: Format::VictronMeasurements,
        update_interval: Duration::from_secs(30),
        cerbo_serial: None,
        catch_up_rate: 5.0,
        queue_records: 21_000,
        queue_bytes: 32 * 1024 * 1024,
    }
}

impl Chosen {
    fn set(&mut self, setting: &str) -> Result<(), String> {
        let (key, value) = setting.split_once('=').ok_or("key=value")?;
        let number = || value.parse::<usize>().map_err(|e| e.to_string());
        let filters = || value.split(',').map(|text| Filter::parse(text).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>();
        let next = self.targets.len() + 1;
        let target = self.targets.last_mut().unwrap();
        match (key, value) {
            ("prefix", _) => self.prefix = format!("{value}/"),
            ("link", "down") => self.is_linked = false,
            ("clock", _) => self.clock = micros(value)?,
            ("there", _) => self.there.push(value.into()),
            ("target", "another") => self.targets.push(self::target(next)),
            ("name", _) => target.name = value.into(),
            ("format", "json-lines") => target.format = Format::JsonLines(Vec::new()),
            ("filters", _) => target.format = Format::JsonLines(filters()?),
            ("interval", _) => target.update_interval = span(value)?,
            ("serial", _) => target.cerbo_serial = Some(value.into()),
            ("catch_up_rate", _) => target.catch_up_rate = value.parse().map_err(|_| "no number")?,
            ("queue_records", _) => target.queue_records = number()?,
            ("queue_bytes", _) => target.queue_bytes = number()? as u64,
            _ => return Err(format!("no such setting: {setting}")),
        }
        Ok(())
    }
}

/// The disk of one target: it does what it is told in that order, and at once unless it hangs.
#[derive(Default)]
struct Disk {
    kept: BTreeMap<u64, Vec<u8>>,
    next_seq: u64,
    /// All before is on the flash.
    synced: u64,
    spoiled: BTreeSet<u64>,
    gives_nothing: bool,
    hangs: bool,
    waiting: VecDeque<Command>,
}

struct Stage {
    chosen: Chosen,
    bridge: Bridge,
    measures: Measures,
    elapsed: Duration,
    /// What the clock shows more than has elapsed, in microseconds.
    clock: i64,
    disks: Vec<Disk>,
    /// What the backends are dealing with.
    posting: Vec<Option<u64>>,
    /// The connection to the broker takes nothing.
    is_full: bool,
    /// By the number of the target.
    always: BTreeMap<usize, Outcome>,
    /// GetItems that have not been answered: owner and serial.
    open: Vec<(String, u32)>,
    /// The target, what was measured when, and what it says.
    posts: VecDeque<(String, String, String)>,
    done: VecDeque<String>,
    published: VecDeque<String>,
    logged: VecDeque<String>,
    debug: Vec<String>,
    shown: HashSet<String>,
}

impl transcripts::Play for Stage {
    type Chosen = Chosen;

    fn choose(chosen: &mut Chosen, setting: &str) -> Result<(), String> {
        chosen.set(setting)
    }

    fn begin(chosen: Chosen) -> Self {
        let portal = PortalId::parse(PORTAL).unwrap();
        let options = BridgeOptions { enabled: Enabled::Yes, ..BridgeOptions::default() };
        let bridge =
            Bridge::new(BridgeSetup { portal, prefix: String::new(), options, beside: false, nonce: 1, verbosity: log::Level::Debug });
        let mut stage = Self {
            bridge,
            measures: measures(&chosen),
            elapsed: Duration::ZERO,
            clock: chosen.clock,
            disks: chosen.targets.iter().map(|_| Disk::default()).collect(),
            posting: vec![None; chosen.targets.len()],
            chosen,
            is_full: false,
            always: BTreeMap::new(),
            open: Vec::new(),
            posts: VecDeque::new(),
            done: VecDeque::new(),
            published: VecDeque::new(),
            logged: VecDeque::new(),
            debug: Vec::new(),
            shown: HashSet::from(["posts".into()]),
        };
        stage.bridge.bus_up(stage.now());
        let names = stage.bridge.poll_call(stage.now()).unwrap().id;
        stage.bridge.reply(stage.now(), names, Reply::Names(stage.chosen.there.clone()));
        stage.start();
        // which target there is, as every daemon says
        stage.logged.clear();
        stage
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_expectation = matches!(words[..], ["http" | "disk" | "mqtt" | "log", ">", ..] | ["disk", "=", ..]);
        if !is_expectation {
            self.nothing_left()?;
            self.debug.clear();
        }
        match &words[..] {
            ["bus", words @ ..] => self.bus(words)?,
            ["http", words @ ..] => self.http(words)?,
            ["disk", words @ ..] => self.disk(words)?,
            ["daemon", words @ ..] => self.daemon(words)?,
            ["time", "+", amount] => self.pass(span(amount)?)?,
            ["time", "late", amount] => self.elapsed += span(amount)?,
            ["time", "early"] => self.measures.handle_timeout(self.moment(), &self.bridge),
            ["clock", "=", time] => self.clock = micros(time)? - i64::try_from(self.elapsed.as_micros()).unwrap(),
            ["clock", "+", amount] => self.clock += i64::try_from(span(amount)?.as_micros()).unwrap(),
            ["clock", "-", amount] => self.clock -= i64::try_from(span(amount)?.as_micros()).unwrap(),
            ["mqtt", "up"] => self.measures.link_up(),
            ["mqtt", "down"] => self.measures.link_down(),
            ["mqtt", "full"] => self.is_full = true,
            ["mqtt", "room"] => self.is_full = false,
            ["mqtt", ">", rest @ ..] => expect(&mut self.published, &rest.join(" "))?,
            ["log", ">", "debug", text @ ..] => {
                if !self.debug.iter().any(|line| is_like(line, &text.join(" "))) {
                    return Err(format!("not in the log: {:#?}", self.debug));
                }
            }
            ["log", ">", rest @ ..] => expect(&mut self.logged, &rest.join(" "))?,
            ["show", what] => drop(self.shown.insert((*what).to_owned())),
            ["hide", what] => drop(self.shown.remove(*what)),
            _ => return Err("not understood".into()),
        }
        self.pump();
        Ok(())
    }

    fn nothing_left(&self) -> Result<(), String> {
        let queues = [&self.done, &self.published, &self.logged];
        let posts = self.posts.iter().map(|(target, time, body)| format!("http > {target} {time}: {body}"));
        let left: Vec<_> = queues.into_iter().flatten().cloned().chain(posts).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("before that, this was not expected: {left:#?}")) }
    }
}

impl Stage {
    fn start(&mut self) {
        self.measures = measures(&self.chosen);
        if self.chosen.is_linked {
            self.measures.link_up();
        }
        for n in 0..self.disks.len() {
            self.posting[n] = None;
            let disk = &mut self.disks[n];
            disk.waiting.clear();
            let entries = disk.kept.iter().map(|(seq, body)| Entry { seq: *seq, len: u32::try_from(body.len()).unwrap() }).collect();
            let event = Event::Opened { entries, next_seq: disk.next_seq };
            self.measures.event(self.moment(), n, event);
        }
        self.pump();
    }

    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    fn moment(&self) -> Moment {
        let elapsed = i64::try_from(self.elapsed.as_micros()).unwrap();
        Moment { now: self.now(), wall: Wall::from_micros(self.clock + elapsed) }
    }

    fn bus(&mut self, words: &[&str]) -> Result<(), String> {
        let now = self.now();
        match words {
            ["+", name, owner] => self.bridge.name_owner_changed(now, name, "", owner),
            ["-", name, owner] => self.bridge.name_owner_changed(now, name, owner, ""),
            ["<", "items", owner, items @ ..] => {
                let asked = self.open.iter().position(|(to, _)| to == owner).ok_or("nobody has asked")?;
                let (_, serial) = self.open.remove(asked);
                self.bridge.reply(now, serial, Reply::Items(read_whole_items(items)?));
            }
            ["<", "changed", owner, items @ ..] => {
                let mut changes = self.bridge.changes(now, owner).ok_or("nobody knows it")?;
                for (path, change) in read_whole_items(items)? {
                    changes.item(&path, change);
                }
            }
            ["<", "large", owner, path, size] => {
                let size: usize = size.parse().map_err(|_| "no number")?;
                let value = Some(Value::Str("x".repeat(size * 1024).into()));
                let mut changes = self.bridge.changes(now, owner).ok_or("nobody knows it")?;
                changes.item(path, Change { value, ..Change::default() });
            }
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    fn http(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            [">", target, expected @ ..] => {
                let expected = expected.join(" ");
                let (of, time, body) = self.posts.pop_front().ok_or("nothing came")?;
                let has_come = of == *target && (time == expected || is_like(&body, &expected));
                if !has_come {
                    return Err(format!("came instead: {of} {time} {body}\n    then: {:#?}", self.posts));
                }
            }
            ["<", answer @ ..] => {
                let (n, answer) = self.of_target(answer);
                self.posting[n.unwrap_or(0)].take().ok_or("nothing was posted")?;
                self.measures.event(self.moment(), n.unwrap_or(0), Event::Posted(outcome(answer)?));
            }
            ["always", answer @ ..] => {
                let (n, answer) = self.of_target(answer);
                for n in n.map_or(0..self.posting.len(), |n| n..n + 1) {
                    self.always.insert(n, outcome(answer)?);
                    if self.posting[n].take().is_some() {
                        self.measures.event(self.moment(), n, Event::Posted(outcome(answer)?));
                    }
                }
            }
            ["by", "hand"] => self.always.clear(),
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    /// The number of the target that is named first, if one is, and the words behind it.
    fn of_target<'a, 'b>(&self, words: &'a [&'b str]) -> (Option<usize>, &'a [&'b str]) {
        match self.chosen.targets.iter().position(|target| *target.name == *words[0]) {
            Some(n) => (Some(n), &words[1..]),
            None => (None, words),
        }
    }

    /// There is one disk in these transcripts: that of the first target.
    fn disk(&mut self, words: &[&str]) -> Result<(), String> {
        let disk = &mut self.disks[0];
        match words {
            ["hangs"] => disk.hangs = true,
            ["takes"] => {
                disk.hangs = false;
                for command in std::mem::take(&mut disk.waiting) {
                    self.carry_out(0, command);
                }
            }
            ["spoils", time] => {
                let (seq, _) = disk.kept.iter().find(|(_, body)| time_of(body) == *time).ok_or("it is not kept")?;
                disk.spoiled.insert(*seq);
            }
            ["gives", "nothing"] => disk.gives_nothing = true,
            ["gives", "again"] => disk.gives_nothing = false,
            [">", rest @ ..] => expect(&mut self.done, &rest.join(" "))?,
            ["=", expected @ ..] => {
                let kept: Vec<String> = disk.kept.values().map(|body| time_of(body)).collect();
                let is_so = match expected {
                    ["nothing"] => kept.is_empty(),
                    [count, "measurements"] => *count == kept.len().to_string(),
                    times => kept == times,
                };
                if !is_so {
                    return Err(format!("there are {}: {kept:?}", kept.len()));
                }
            }
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    fn daemon(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["ends"] => self.measures.shut_down(),
            ["starts", settings @ ..] => {
                settings.iter().try_for_each(|setting| self.chosen.set(setting))?;
                self.start();
            }
            ["dies"] => self.start(),
            ["loses", "power"] => {
                for disk in &mut self.disks {
                    disk.kept.split_off(&disk.synced);
                }
                self.start();
            }
            ["reports"] => self.logged.extend(self.measures.summary(self.now()).map(|line| format!("info {line}"))),
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    fn pass(&mut self, amount: Duration) -> Result<(), String> {
        let end = self.elapsed + amount;
        let mut turns = 0;
        while let Some(due) = self.bridge.poll_timeout().into_iter().chain(self.measures.poll_timeout()).min()
            && due <= Time::since_start(end)
        {
            self.elapsed = self.elapsed.max(due.after(Time::default()));
            let is_due = |due: Option<Time>| due.is_some_and(|due| due <= Time::since_start(self.elapsed));
            if is_due(self.bridge.poll_timeout()) {
                self.bridge.handle_timeout(self.now());
            }
            if is_due(self.measures.poll_timeout()) {
                self.measures.handle_timeout(self.moment(), &self.bridge);
            }
            self.pump();
            if self.measures.poll_timeout().is_some_and(|due| due <= self.now()) {
                return Err("it never comes to rest".into());
            }
            turns += 1;
            assert!(turns < 1_000_000, "it never comes to rest");
        }
        self.elapsed = end;
        Ok(())
    }

    fn pump(&mut self) {
        self.pump_bridge();
        let mut turns = 0;
        while let Some((n, command)) = self.measures.poll_command() {
            turns += 1;
            assert!(turns < 10_000, "it never comes to rest");
            if self.disks[n].hangs {
                self.disks[n].waiting.push_back(command);
            } else {
                self.carry_out(n, command);
            }
        }
        while let Some(note) = self.measures.poll_note() {
            match note.level {
                log::Level::Debug => self.debug.push(note.text),
                level => self.logged.push_back(format!("{} {}", level.as_str().to_lowercase(), note.text)),
            }
        }
        while !self.is_full
            && let Some(Publish { topic, payload, retain }) = self.measures.poll_publish(self.now())
        {
            let payload = if payload.is_empty() { "(empty)".into() } else { String::from_utf8(payload).unwrap() };
            if self.shown.contains("status") {
                self.published.push_back(format!("{topic} {payload}{}", if retain { " retained" } else { "" }));
            }
        }
    }

    /// The other tests look at what the bridge says.
    fn pump_bridge(&mut self) {
        while let Some(BusCall { id, destination, method, .. }) = self.bridge.poll_call(self.now()) {
            match method {
                Method::GetItems => self.open.push((destination.into(), id)),
                Method::GetNameOwner(_) => self.bridge.reply(self.now(), id, Reply::Text(":1.1".into())),
                _ => {}
            }
        }
        while self.bridge.poll_note().is_some() {}
        while self.bridge.poll_link().is_some() {}
        while self.bridge.poll_publish(self.now(), 0).is_some() {}
    }

    fn carry_out(&mut self, n: usize, command: Command) {
        let disk = &mut self.disks[n];
        let is_shown = self.shown.contains("disk") && n == 0;
        let (done, event) = match command {
            Command::Append { seq, body } => {
                assert!(seq >= disk.next_seq, "number {seq} has been given away");
                let done = format!("keep {}", time_of(&body));
                disk.next_seq = seq + 1;
                disk.kept.insert(seq, body);
                (Some(done).filter(|_| is_shown), Some(Event::Stored(seq)))
            }
            Command::Forget { through } => {
                let needed = disk.kept.split_off(&(through + 1));
                let forgotten = std::mem::replace(&mut disk.kept, needed);
                let (_, last) = forgotten.last_key_value().expect("there is something to forget");
                (Some(format!("forget {}", time_of(last))).filter(|_| is_shown), None)
            }
            Command::Sync => {
                disk.synced = disk.next_seq;
                (Some("sync".into()).filter(|_| self.shown.contains("sync") && n == 0), None)
            }
            Command::Post(seq) => {
                let event = if disk.gives_nothing {
                    Some(Event::Unreadable("input/output error".into()))
                } else if disk.spoiled.contains(&seq) {
                    Some(Event::Lost(seq))
                } else {
                    self.post(n, seq)
                };
                (None, event)
            }
        };
        self.done.extend(done);
        if let Some(event) = event {
            self.measures.event(self.moment(), n, event);
        }
    }

    fn post(&mut self, n: usize, seq: u64) -> Option<Event> {
        let Options { name, format, .. } = &self.chosen.targets[n];
        let body = self.disks[n].kept.get(&seq).expect("only what is kept is posted");
        assert_eq!(body.ends_with(b"\n"), matches!(format, Format::JsonLines(_)), "one line, or none");
        if self.shown.contains("posts") {
            self.posts.push_back((name.to_string(), time_of(body), String::from_utf8(body.clone()).unwrap()));
        }
        if let Some(outcome) = self.always.get(&n) {
            return Some(Event::Posted(outcome.clone()));
        }
        let before = self.posting[n].replace(seq);
        assert!(before.is_none(), "one at a time");
        None
    }
}

fn measures(chosen: &Chosen) -> Measures {
    Measures::new(Setup {
        portal: PortalId::parse(PORTAL).unwrap(),
        prefix: chosen.prefix.clone(),
        targets: chosen.targets.clone(),
        had_more: false,
        seed: 1,
        verbosity: log::Level::Debug,
    })
}

/// Texts of items may have spaces.
fn read_whole_items(words: &[&str]) -> Result<Vec<(String, Change)>, String> {
    let text = words.join(" ");
    let items: Vec<String> = text.split(" /").enumerate().map(|(n, item)| if n == 0 { item.into() } else { format!("/{item}") }).collect();
    read_items(&items.iter().map(String::as_str).collect::<Vec<_>>())
}

fn outcome(words: &[&str]) -> Result<Outcome, String> {
    match words {
        ["failed", why @ ..] => return Ok(Outcome::Failed(why.join(" "))),
        ["untrusted", why @ ..] => return Ok(Outcome::Untrusted(why.join(" "))),
        _ => {}
    }
    let [status, rest @ ..] = words else { return Err("an answer is missing".into()) };
    let mut answer = Answer { status: status.parse().map_err(|_| "no status")?, ..Answer::default() };
    for (n, word) in rest.iter().enumerate() {
        match word.split_once('=') {
            Some(("retry-after", after)) => answer.retry_after = Some(span(after)?),
            Some(("type", kind)) => answer.content_type = kind.into(),
            Some(("location", place)) => answer.location = Some(place.into()),
            _ => {
                answer.body = rest[n..].join(" ").into();
                break;
            }
        }
    }
    Ok(Outcome::Answer(answer))
}

/// `2025-10-30T15:27:33.058551`
fn micros(time: &str) -> Result<i64, String> {
    let time: jiff::Timestamp = format!("{time}Z").parse().map_err(|_| "no time")?;
    Ok(time.as_microsecond())
}

/// When it was measured: `15:27:30`, with a fraction where there is one.
fn time_of(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let stamp = body["timestamp"].as_str().unwrap();
    stamp[11..26].trim_end_matches('0').trim_end_matches('.').into()
}
