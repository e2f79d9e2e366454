//! Plays the transcripts of `tests/devices` against the room of devices alone, in virtual time.
//!
//! A transcript starts with a connected broker, a bus that does at once what it is asked, and a localsettings on it that is empty.
//! Each line is something that happens, or something that must come of it:
//!
//! ```text
//! setup   key=value …                     options, in the first lines only: strict, proxy, stale_after, device_instance, keepalive,
//!                                         max_devices, max_services, max_services_total, access, allow, deny, prefix, enabled,
//!                                         settings=absent, show, stale, restore_values. stale_after=60s,grid:10s,tank:off by type,
//!                                         catalogue=services.yml (the items of `SERVICES_YML` in place of those that ship)
//! mqtt  < TOPIC [PAYLOAD] [retained]      a message from the broker, which is for devices       mqtt up, mqtt down, mqtt mode MODE, mqtt suback TOPIC ok|refused,
//!                                         mqtt up quietly: without the status `online`, which is published by mqtt online
//! mqtt  - TOPIC [PAYLOAD]                 a message that devices leave to the bridge
//! mqtt  > TOPIC PAYLOAD                   a message that must come next
//! mqtt    subscribe|unsubscribe TOPIC     what must be asked of the broker
//! bus   > + SERVICE, bus > - SERVICE      a connection is opened for a service, and closed
//! bus   > SERVICE /Path=JSON … [told]     it says what has changed (;text=TEXT with `show text`, ;min= ;max= ;default= where they
//!                                         are given); told: its device has to know
//! bus     by hand                         from here on what is asked of connections is answered by these:
//! bus   < up|known|down SERVICE           bus < refused SERVICE WHY
//! bus   < SERVICE METHOD /Path [JSON]     a call of somebody; `W` in the place of a method is a SetValue of the bridge
//! bus   > SERVICE = ANSWER                what it is answered
//! bus     has SERVICE INSTANCE|?          a service of somebody else with this instance, or not scanned yet; bus loses SERVICE: it has left
//! bus     scanning, bus scanned           the services that were there at the start are not known yet, and are
//! bus     conflict SERVICE SERVICE        the second has come with the type and instance of the first
//! bus   > write TYPE/INSTANCE/Path JSON   a proxy's write to a service of others
//! set   > METHOD Path=JSON …              a call to localsettings (`show set`), paths without /Settings/
//! set   < Path=JSON                       somebody sets a setting         set = Path=JSON         which must be stored
//! set   + OWNER, set -                    localsettings comes and goes    set lose Path           it has forgotten it
//! set     have Path=JSON                  it has been there all the time
//! set     mute, set hold                  it does not answer; it waits, and
//! set     answer, set fail ERROR          answers its oldest call and goes on waiting; set free: answers them all, and at once from here on
//! time  + 61s                             time passes, timer by timer
//! cli   < forget ID|list|registry         an order of the person at the command line
//! cli   > ANSWER
//! daemon  stops|dies                      it ends, with or without a good-bye, and starts again with what it has on disk
//! daemon  ends                            the first half of it
//! daemon  finds JSON                      it dies, and somebody has written this as its registry
//! daemon  sleeps SPAN                     before the next start so much time passes; daemon clock UNIX: the clock says so from then on
//! log   > LEVEL some words                a line that must have been written since the last event; log quiet: none above debug
//! show    set|link|text                   these are expected line by line from here on; otherwise they are not looked at
//! ```
//!
//! SERVICE is a name on the bus without its `com.victronenergy.`. A `…` stands for any text. Everything that comes out and is not
//! named by a line is a mistake.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "devices/localsettings.rs"]
mod localsettings;
mod transcripts;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use localsettings::LocalSettings;
use transcripts::expect;
use venus_mqtt::bridge::filter::Filter;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Access, Options as BridgeOptions};
use venus_mqtt::bridge::value::{Value, parse_json};
use venus_mqtt::bridge::{BusCall, Conflict, LinkCommand, Method, Mode, Occupant, Publish, Reply, Time};
use venus_mqtt::device::catalogue::Catalogue;
use venus_mqtt::device::options::{Options, Proxy, Stale};
use venus_mqtt::device::service::{Answer, Call, ItemAnswer};
use venus_mqtt::device::{BusCommand, BusEvent, Devices, ForeignWrite, Key, Setup, registry};

const PORTAL: &str = "c0619ab1c2d3";
const EPOCH: u64 = 1_795_259_400;
/// Items without a type, as dbus-mqtt-devices has them.
const SERVICES_YML: &str = "
evcharger:
  Current:
    default: 0
  MaxCurrent:
    default: 0
    persist: true
  Mode:
    description: \"0=manual 1=auto 2=scheduled\"
    default: 0
    min: 0
    max: 2
    persist: true
grid:
  DeviceType:
    default: \"grid\"
    persist: true
";

const VICTRON: &str = "com.victronenergy.";

#[test]
fn transcripts() {
    transcripts::play_all::<Stage>("devices");
}

/// What a transcript chooses.
#[derive(Clone, Default)]
struct Chosen {
    options: Options,
    bridge: BridgeOptions,
    prefix: String,
    is_alone: bool,
    services_yml: bool,
    shown: HashSet<String>,
}

impl Chosen {
    fn set(&mut self, setting: &str) -> Result<(), String> {
        let (key, value) = setting.split_once('=').ok_or("key=value")?;
        let filters = || value.split(',').map(|text| Filter::parse(text).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>();
        let number = || value.parse::<usize>().map_err(|e| e.to_string());
        match (key, value) {
            ("strict", _) => self.options.strict_client_id = value == "true",
            ("proxy", "own") => self.options.proxy = Proxy::Own,
            ("stale_after", _) => {
                for part in value.split(',') {
                    let (kind, span) = part.split_once(':').unwrap_or(("", part));
                    let span = if span == "off" { None } else { Some(transcripts::span(span)?) };
                    match kind {
                        "" => self.options.stale_after.default = span,
                        kind => drop(self.options.stale_after.types.insert(kind.into(), span)),
                    }
                }
            }
            ("stale", "leave") => self.options.stale = Stale::Leave,
            ("restore_values", _) => self.options.restore_values = Some(transcripts::span(value)?),
            ("max_services_total", _) => self.options.max_services_total = number()?,
            ("device_instance", _) => self.options.device_instance_topic = value == "true",
            ("keepalive", _) => self.options.keepalive = value == "true",
            ("max_devices", _) => self.options.max_devices = number()?,
            ("max_services", _) => self.options.max_services = number()?,
            ("enabled", _) => self.options.enabled = value == "true",
            ("access", "read-only") => self.bridge.access = Access::ReadOnly,
            ("allow", _) => self.bridge.allow = filters()?,
            ("deny", _) => self.bridge.deny = filters()?,
            ("prefix", value) => self.prefix = format!("{value}/"),
            ("show", what) => drop(self.shown.insert(what.to_owned())),
            ("settings", "absent") => self.is_alone = true,
            ("catalogue", "services.yml") => self.services_yml = true,
            _ => return Err(format!("no such setting: {setting}")),
        }
        Ok(())
    }
}

/// How localsettings answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    AtOnce,
    Held,
    Mute,
    /// Calls to it cannot be sent.
    Unsent,
}

struct Stage {
    chosen: Chosen,
    devices: Devices,
    /// Since the daemon started, and until then.
    elapsed: Duration,
    before: Duration,
    /// Between this life of the daemon and the next.
    sleeps: Duration,
    clock: Option<u64>,
    settings: LocalSettings,
    owner: Option<String>,
    manner: Manner,
    held: VecDeque<BusCall>,
    by_hand: bool,
    /// Services of others that the bridge knows, each with its instance if it has been scanned; `None` before the first scan has ended.
    others: Option<BTreeMap<String, Option<String>>>,
    /// Connections that have not been closed.
    names: BTreeMap<Key, String>,
    /// What is on disk.
    disk: Option<String>,
    published: VecDeque<String>,
    bus: VecDeque<String>,
    calls: VecDeque<String>,
    link: VecDeque<String>,
    answers: VecDeque<String>,
    logged: Vec<String>,
    shown: HashSet<String>,
}

impl transcripts::Play for Stage {
    type Chosen = Chosen;

    fn choose(chosen: &mut Chosen, setting: &str) -> Result<(), String> {
        chosen.set(setting)
    }

    fn begin(chosen: Chosen) -> Self {
        let mut stage = Self {
            devices: devices(&chosen, None, EPOCH),
            owner: (!chosen.is_alone).then(|| ":1.5".into()),
            shown: chosen.shown.clone(),
            chosen,
            elapsed: Duration::ZERO,
            before: Duration::ZERO,
            sleeps: Duration::ZERO,
            clock: None,
            settings: LocalSettings::default(),
            manner: Manner::AtOnce,
            held: VecDeque::new(),
            by_hand: false,
            others: Some(BTreeMap::new()),
            names: BTreeMap::new(),
            disk: None,
            published: VecDeque::new(),
            bus: VecDeque::new(),
            calls: VecDeque::new(),
            link: VecDeque::new(),
            answers: VecDeque::new(),
            logged: Vec::new(),
        };
        stage.start();
        stage
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_expectation = matches!(
            words[..],
            ["bus" | "mqtt" | "log" | "set" | "cli", ">", ..]
                | ["mqtt", "subscribe" | "unsubscribe", ..]
                | ["set", "=", ..]
                | ["log", "quiet"]
        );
        if !is_expectation {
            self.nothing_left()?;
            self.logged.clear();
        }
        match words[0] {
            "mqtt" => self.mqtt(&words[1..])?,
            "bus" => self.bus(&words[1..])?,
            "set" => self.set(&words[1..])?,
            _ => self.other(&words)?,
        }
        self.pump();
        Ok(())
    }

    fn nothing_left(&self) -> Result<(), String> {
        let queues = [&self.published, &self.bus, &self.calls, &self.link, &self.answers];
        let left: Vec<_> = queues.into_iter().flatten().collect();
        if left.is_empty() { Ok(()) } else { Err(format!("before that, this was not expected: {left:#?}")) }
    }
}

impl Stage {
    fn start(&mut self) {
        self.devices.bus_up(self.now());
        self.pump();
        self.devices.link_up(self.now());
        self.devices.set_mode(self.now(), Mode::Bridge);
        self.devices.set_online(self.now(), true);
        self.pump();
    }

    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    fn unix(&self) -> u64 {
        self.clock.unwrap_or(EPOCH + (self.before + self.elapsed).as_secs())
    }

    fn mqtt(&mut self, words: &[&str]) -> Result<(), String> {
        let now = self.now();
        match words {
            ["<", topic, payload @ .., "retained"] => self.receive(topic, payload, true, true)?,
            ["<", topic, payload @ ..] => self.receive(topic, payload, false, true)?,
            ["-", topic, payload @ .., "retained"] => self.receive(topic, payload, true, false)?,
            ["-", topic, payload @ ..] => self.receive(topic, payload, false, false)?,
            [">", rest @ ..] => expect(&mut self.published, &rest.join(" "))?,
            ["suback", filter, outcome] => drop(self.devices.subscribed(now, filter, *outcome == "ok")),
            ["up"] => {
                self.devices.link_up(now);
                self.devices.set_online(now, true);
            }
            ["up", "quietly"] => self.devices.link_up(now),
            ["online"] => drop(self.devices.set_online(now, true)),
            ["down"] => self.devices.link_down(now),
            ["mode", "undecided"] => self.devices.set_mode(now, Mode::Undecided { until: None }),
            ["mode", "bridge"] => self.devices.set_mode(now, Mode::Bridge),
            ["mode", "companion"] => self.devices.set_mode(now, Mode::Companion),
            ["mode", "off"] => self.devices.set_mode(now, Mode::Off),
            ["mode", "down"] => self.devices.set_mode(now, Mode::Down),
            ["subscribe" | "unsubscribe", ..] => expect(&mut self.link, &words.join(" "))?,
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    fn receive(&mut self, topic: &str, payload: &[&str], retained: bool, expected: bool) -> Result<(), String> {
        let taken = self.devices.message(self.now(), topic, payload.join(" ").as_bytes(), retained);
        if taken == expected { Ok(()) } else { Err(format!("{} for devices", if taken { "it is" } else { "it is not" })) }
    }

    fn bus(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            [">", rest @ ..] => expect(&mut self.bus, &rest.join(" "))?,
            ["has" | "loses" | "scanned" | "scanning" | "conflict", ..] => self.other_service(words)?,
            ["by", "hand"] => self.by_hand = true,
            ["<", "up", name] => self.happens(name, BusEvent::Up)?,
            ["<", "known", name] => self.happens(name, BusEvent::Known)?,
            ["<", "down", name] => self.happens(name, BusEvent::Down)?,
            ["<", "refused", name, why @ ..] => self.happens(name, BusEvent::Refused(why.join(" ")))?,
            ["<", name, method, path, rest @ ..] => self.call(name, method, path, &rest.join(" "))?,
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    fn happens(&mut self, name: &str, event: BusEvent) -> Result<(), String> {
        let key = self.key(name)?;
        if matches!(event, BusEvent::Down | BusEvent::Refused(_)) {
            self.names.remove(&key);
        }
        self.devices.bus_event(self.now(), key, event);
        Ok(())
    }

    /// The oldest connection of this name.
    fn key(&self, name: &str) -> Result<Key, String> {
        self.names.iter().find(|(_, known)| *known == name).map(|(key, _)| *key).ok_or("there is no such connection".into())
    }

    fn call(&mut self, name: &str, method: &str, path: &str, argument: &str) -> Result<(), String> {
        let (member, is_ours) = if method == "W" { ("SetValue", true) } else { (method, false) };
        let argument = if argument.is_empty() { None } else { Some(parse_json(argument.as_bytes())?) };
        let answer = self.devices.call(self.now(), self.key(name)?, &Call { path, interface: None, member, argument, is_ours });
        // a signal goes out before the answer
        self.pump();
        let answer = match answer {
            Answer::Value(value) => json(&value),
            Answer::Text(text) => text,
            Answer::Items(items) => items.iter().map(|item| self.item(item)).collect::<Vec<_>>().join(" "),
            Answer::Code(code) => code.to_string(),
            Answer::Nothing => "nothing".into(),
            Answer::MachineId => "the machine's ID".into(),
            Answer::Error { name, text } => format!("{} {text}", name.rsplit('.').next().unwrap()),
        };
        self.bus.push_back(format!("{name} = {answer}"));
        Ok(())
    }

    fn set(&mut self, words: &[&str]) -> Result<(), String> {
        let setting = |text: &str| -> Result<(String, Value), String> {
            let (path, value) = text.split_once('=').ok_or("Path=JSON")?;
            Ok((format!("/Settings/{path}"), parse_json(value.as_bytes())?))
        };
        match words {
            [">", rest @ ..] => expect(&mut self.calls, &rest.join(" "))?,
            ["<", text @ ..] => {
                let (path, value) = setting(&text.join(" "))?;
                if self.settings.set(&path, value) != 0 {
                    return Err("localsettings refuses it".into());
                }
                self.signal();
            }
            ["=", text @ ..] => {
                let (path, value) = setting(&text.join(" "))?;
                match self.settings.stored.get(&path) {
                    Some(stored) if stored.value == value => {}
                    Some(stored) => return Err(format!("stored is {}", json(&stored.value))),
                    None if value == Value::Invalid => {}
                    None => return Err("there is no such setting".into()),
                }
            }
            ["have", text @ ..] => {
                let (path, value) = setting(&text.join(" "))?;
                self.settings.put(&path, value);
            }
            ["lose", path] => drop(self.settings.stored.remove(&format!("/Settings/{path}")).ok_or("there is no such setting")?),
            ["+", owner] => {
                self.owner = Some((*owner).into());
                self.devices.name_owner_changed(self.now(), localsettings::NAME, owner);
            }
            ["-"] => {
                self.owner = None;
                self.devices.name_owner_changed(self.now(), localsettings::NAME, "");
                // the bus answers in its place
                for call in std::mem::take(&mut self.held) {
                    self.devices.reply(self.now(), call.id, error("NoReply"));
                }
            }
            ["mute"] => self.manner = Manner::Mute,
            ["unsent"] => self.manner = Manner::Unsent,
            ["hold"] => self.manner = Manner::Held,
            ["answer"] => {
                let call = self.held.pop_front().ok_or("nobody has asked")?;
                self.answer(&call);
            }
            ["fail", name] => {
                let call = self.held.pop_front().ok_or("nobody has asked")?;
                self.devices.reply(self.now(), call.id, error(name));
            }
            ["free"] => {
                self.manner = Manner::AtOnce;
                while let Some(call) = self.held.pop_front() {
                    self.answer(&call);
                }
            }
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    fn other(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["time", "+", amount] => self.pass(transcripts::span(amount)?),
            ["cli", "<", "forget", id] => self.devices.forget(self.now(), 7, id),
            ["cli", "<", "list"] => {
                let list = self.devices.list(self.now(), self.unix());
                self.answers.extend(list.iter().map(|entry| entry.to_json().to_string()));
            }
            ["cli", "<", "registry"] => self.answers.extend(self.disk.clone()),
            ["cli", ">", rest @ ..] => expect(&mut self.answers, &rest.join(" "))?,
            ["daemon", "stops"] => {
                self.devices.shut_down();
                self.pump();
                self.disk = Some(self.devices.last_registry(self.now(), self.unix()));
                self.begin_again();
            }
            ["daemon", "dies"] => self.begin_again(),
            ["daemon", "finds", text @ ..] => {
                self.disk = Some(text.join(" "));
                self.begin_again();
            }
            ["daemon", "sleeps", span] => self.sleeps = transcripts::span(span)?,
            ["daemon", "clock", unix] => self.clock = Some(unix.parse().map_err(|_| "a number")?),
            ["daemon", "ends"] => self.devices.shut_down(),
            ["log", ">", level, text @ ..] => {
                let (level, text) = (level.to_uppercase(), text.join(" "));
                if !self.logged.iter().any(|line| line.starts_with(&level) && line.contains(&text)) {
                    return Err(format!("not in the log: {:#?}", self.logged));
                }
            }
            ["log", "quiet"] => {
                if let Some(line) = self.logged.iter().find(|line| !line.starts_with("DEBUG")) {
                    return Err(format!("in the log: {line}"));
                }
            }
            ["show", what] => drop(self.shown.insert((*what).to_owned())),
            _ => return Err("not understood".into()),
        }
        Ok(())
    }

    /// The daemon ends, however that may be, and another one starts.
    fn begin_again(&mut self) {
        self.before += self.elapsed + std::mem::take(&mut self.sleeps);
        self.elapsed = Duration::ZERO;
        self.names.clear();
        self.held.clear();
        self.published.clear();
        self.devices = devices(&self.chosen, self.disk.as_deref(), self.unix());
        self.start();
    }

    fn pass(&mut self, amount: Duration) {
        let end = self.elapsed + amount;
        let mut turns = 0;
        while let Some(due) = self.devices.poll_timeout()
            && due <= Time::since_start(end)
        {
            self.elapsed = self.elapsed.max(due.after(Time::default()));
            self.devices.handle_timeout(self.now());
            self.pump();
            turns += 1;
            assert!(turns < 10_000, "it never comes to rest");
        }
        self.elapsed = end;
    }

    fn pump(&mut self) {
        loop {
            let mut quiet = true;
            self.check_numbers();
            while let Some(command) = self.devices.poll_bus() {
                quiet = false;
                self.obey(command);
            }
            while let Some(call) = self.devices.poll_call(self.now()) {
                quiet = false;
                self.take_call(call);
            }
            if quiet {
                break;
            }
        }
        while let Some(ForeignWrite { service_type, instance, path, value, .. }) = self.devices.poll_write() {
            self.bus.push_back(format!("write {service_type}/{instance}{path} {}", json(&value)));
        }
        while let Some(note) = self.devices.poll_note() {
            self.logged.push(format!("{} {}", note.level, note.text));
        }
        while let Some(command) = self.devices.poll_link() {
            if self.shown.contains("link") {
                self.link.push_back(match command {
                    LinkCommand::Subscribe(filters) => format!("subscribe {}", filters.join(" ")),
                    LinkCommand::Unsubscribe(filters) => format!("unsubscribe {}", filters.join(" ")),
                });
            }
        }
        while let Some((_, answer)) = self.devices.poll_answer() {
            self.answers.push_back(answer.unwrap_or_else(|why| format!("error: {why}")));
        }
        while let Some(Publish { topic, payload, retain }) = self.devices.poll_publish() {
            assert!(!retain, "nothing for devices is retained");
            self.published.push_back(format!("{topic} {}", String::from_utf8(payload).unwrap()));
        }
        let unix = self.unix();
        if let Some(text) = self.devices.poll_registry(self.now(), unix) {
            self.disk = Some(text);
        }
    }

    /// What the bridge knows of services of others.
    fn check_numbers(&mut self) {
        let others = &self.others;
        self.devices.check_numbers(self.now(), |service_type, instance| {
            let of_type = others.as_ref()?.iter().filter(|(name, _)| name.split('.').next() == Some(service_type));
            let occupants = of_type.filter(|(_, number)| number.as_ref().is_none_or(|number| number == instance));
            let occupant = |(name, number): (&String, &Option<String>)| Occupant {
                name: format!("{VICTRON}{name}").into(),
                is_scanned: number.is_some(),
            };
            Some(occupants.map(occupant).collect())
        });
    }

    /// A service of somebody else is on the bus, with its instance or not scanned yet, or leaves.
    fn other_service(&mut self, words: &[&str]) -> Result<(), String> {
        let others = self.others.get_or_insert_default();
        match words {
            ["scanned"] => {}
            ["has", name, "?"] => drop(others.insert((*name).into(), None)),
            ["has", name, instance] => drop(others.insert((*name).into(), Some((*instance).into()))),
            ["loses", name] => drop(others.remove(*name).ok_or("there is no such service")?),
            ["scanning"] => self.others = None,
            ["conflict", holder, other] => {
                let [holder, other] = [holder, other].map(|name| format!("{VICTRON}{name}").into());
                self.devices.take_conflict(self.now(), &Conflict { holder, other });
            }
            _ => return Err("not understood".into()),
        }
        self.devices.numbers_changed();
        Ok(())
    }

    fn obey(&mut self, command: BusCommand) {
        let now = self.now();
        match command {
            BusCommand::Open { key, name } => {
                let name = name.strip_prefix(VICTRON).unwrap().to_owned();
                assert!(!self.names.contains_key(&key), "{name} has the key of another life");
                self.bus.push_back(format!("+ {name}"));
                self.names.insert(key, name);
                if !self.by_hand {
                    self.devices.bus_event(now, key, BusEvent::Up);
                    self.devices.bus_event(now, key, BusEvent::Known);
                }
            }
            BusCommand::Emit { key, items, told } => {
                let items: Vec<String> = items.iter().map(|item| self.item(item)).collect();
                let told = if told { " told" } else { "" };
                self.bus.push_back(format!("{} {}{told}", self.names[&key], items.join(" ")));
            }
            BusCommand::Close { key } => {
                self.bus.push_back(format!("- {}", self.names[&key]));
                if !self.by_hand {
                    self.names.remove(&key);
                    self.devices.bus_event(now, key, BusEvent::Down);
                    self.devices.numbers_changed();
                }
            }
        }
    }

    fn item(&self, item: &ItemAnswer) -> String {
        let mut out = format!("{}={}", item.path, json(&item.value));
        if self.shown.contains("text") {
            write!(out, ";text={}", item.text).unwrap();
        }
        for (name, limit) in [("min", &item.min), ("max", &item.max), ("default", &item.default)] {
            if *limit != Value::Invalid {
                write!(out, ";{name}={}", json(limit)).unwrap();
            }
        }
        out
    }

    fn take_call(&mut self, call: BusCall) {
        let short = |path: &str| path.strip_prefix("/Settings/").unwrap_or(path).to_owned();
        let one = |setting: &venus_mqtt::bridge::Setting| {
            let limits = [&setting.min, &setting.max].map(|limit| if *limit == Value::Invalid { String::new() } else { json(limit) });
            let limits = if limits.concat().is_empty() { String::new() } else { format!("[{}]", limits.join("..")) };
            format!("{}={}{limits}", short(&setting.path), json(&setting.default))
        };
        let text = match &call.method {
            Method::GetNameOwner(_) => {
                let reply = self.owner.clone().map_or_else(|| error("NameHasNoOwner"), Reply::Text);
                return self.devices.reply(self.now(), call.id, reply);
            }
            Method::AddSettings(settings) => format!("AddSettings {}", settings.iter().map(one).collect::<Vec<_>>().join(" ")),
            Method::RemoveSettings(paths) => {
                format!("RemoveSettings {}", paths.iter().map(|path| short(path)).collect::<Vec<_>>().join(" "))
            }
            Method::SetValue(value) => format!("SetValue {}={}", short(&call.path), json(value)),
            Method::GetValue => format!("GetValue {}", short(&call.path)),
            _ => panic!("no call for localsettings: {call:?}"),
        };
        if self.shown.contains("set") {
            self.calls.push_back(text);
        }
        match (&self.owner, self.manner) {
            (None, _) => self.devices.reply(self.now(), call.id, error("ServiceUnknown")),
            (_, Manner::AtOnce) => self.answer(&call),
            (_, Manner::Held) => self.held.push_back(call),
            (_, Manner::Mute) => {}
            (_, Manner::Unsent) => self.devices.unsent(self.now(), call.id, "the connection is full".into()),
        }
    }

    /// localsettings answers, and says before what has changed by it.
    fn answer(&mut self, call: &BusCall) {
        let reply = self.settings.answer(&call.path, &call.method).unwrap();
        self.signal();
        self.devices.reply(self.now(), call.id, reply);
    }

    fn signal(&mut self) {
        for (path, value) in std::mem::take(&mut self.settings.changed) {
            self.devices.setting_changed(self.now(), &path, &value);
        }
    }
}

fn devices(chosen: &Chosen, disk: Option<&str>, unix: u64) -> Devices {
    let mut catalogue = Catalogue::shipped();
    if chosen.services_yml {
        assert_eq!(catalogue.add_file("services.yml", SERVICES_YML), []);
    }
    Devices::new(Setup {
        portal: PortalId::parse(PORTAL).unwrap(),
        prefix: chosen.prefix.clone(),
        options: chosen.options.clone(),
        bridge: chosen.bridge.clone(),
        catalogue,
        registry: disk.map(|text| registry::parse(text).unwrap().0).unwrap_or_default(),
        unix,
        verbosity: log::Level::Debug,
    })
}

fn error(name: &str) -> Reply {
    Reply::Error { name: format!("org.freedesktop.DBus.Error.{name}"), text: "no".into() }
}

fn json(value: &Value) -> String {
    let mut out = Vec::new();
    value.write_json(&mut out);
    String::from_utf8(out).unwrap()
}
