//! Plays the transcripts of `tests/scenarios` against the core, in virtual time.
//!
//! A transcript starts with one portal ID, `c0619ab1c2d3`, connected to a broker that has accepted every subscription, and an
//! empty bus. Each line is something that happens, or something that must come of it:
//!
//! ```text
//! setup  key=value …                      options, in the first lines only: retain, interval, always_on, enabled, access, allow, deny, prefix, link
//! bus    + NAME OWNER                     a name gets an owner            bus - NAME OWNER   and loses it
//! bus    own NAME                         it is a service of a registered device
//! bus    < items OWNER /Path=JSON …       the answer to its GetItems      (;min=JSON ;max=JSON ;default=JSON behind a value, or alone)
//! bus    < value OWNER JSON               the answer to its oldest open GetValue; likewise `dict OWNER JSON` (of other keys than texts), `code OWNER N`, `error OWNER NAME`, `text OWNER TEXT`;
//!                                         `late` before it: to the oldest that nobody waits for any more
//! bus    < changed OWNER /Path=JSON …     ItemsChanged                    bus < prop OWNER /Path=JSON   PropertiesChanged
//!                                         bus < told OWNER /Path=JSON    ItemsChanged of which somebody has to know
//! bus    > METHOD OWNER PATH [JSON]       a call that must come
//! mqtt   < TOPIC [PAYLOAD] [retained]     a message from the broker       mqtt up, mqtt down, mqtt suback TOPIC ok|refused;
//!                                         mqtt slow, mqtt fast: what the link carries
//! mqtt   > TOPIC PAYLOAD [retained]       a message that must come next   (empty) is a payload of nothing
//! mqtt   subscribe|unsubscribe TOPIC …    what must be asked of the broker
//! time   + 61s                            time passes, timer by timer
//! log    > LEVEL some words               a line that must have been written since the last event
//! show   heartbeat|calls|link             these are expected line by line from here on; otherwise heartbeats, calls of the discovery and subscriptions are not looked at
//! ```
//!
//! Everything that comes out and is not named by a line is a mistake.

#![allow(clippy::unwrap_used)]

#[path = "transcripts/items.rs"]
mod items;
mod transcripts;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use items::{read_item, read_items, read_value};
use transcripts::expect;
use venus_mqtt::bridge::filter::Filter;
use venus_mqtt::bridge::limits;
use venus_mqtt::bridge::name::PortalId;
use venus_mqtt::bridge::options::{Access, AlwaysOn, Enabled, Options};
use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Bridge, BusCall, LinkCommand, Method, Publish, Reply, Setup, Time};

const PORTAL: &str = "c0619ab1c2d3";

#[test]
fn transcripts() {
    transcripts::play_all::<Stage>("scenarios");
}

fn set(setting: &str, Chosen { options, prefix, connected }: &mut Chosen) -> Result<(), String> {
    let (key, value) = setting.split_once('=').ok_or("key=value")?;
    let filters = || value.split(',').map(|text| Filter::parse(text).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>();
    match (key, value) {
        ("retain", value) => options.retain = value == "true",
        ("interval", value) => options.keepalive_interval = transcripts::span(value)?,
        ("always_on", "true") => options.always_on = AlwaysOn::Everything,
        ("always_on", _) => options.always_on = AlwaysOn::Only(filters()?),
        ("enabled", "auto") => options.enabled = Enabled::Auto,
        ("enabled", "false") => options.enabled = Enabled::No,
        ("access", "read-only") => options.access = Access::ReadOnly,
        ("allow", _) => options.allow = filters()?,
        ("deny", _) => options.deny = filters()?,
        ("prefix", value) => *prefix = format!("{value}/"),
        ("link", "down") => *connected = false,
        _ => return Err(format!("no such setting: {setting}")),
    }
    Ok(())
}

/// What a transcript chooses.
#[derive(Clone)]
struct Chosen {
    options: Options,
    prefix: String,
    connected: bool,
}

impl Default for Chosen {
    fn default() -> Self {
        Self { options: Options { enabled: Enabled::Yes, ..Options::default() }, prefix: String::new(), connected: true }
    }
}

struct Stage {
    bridge: Bridge,
    elapsed: Duration,
    published: VecDeque<String>,
    calls: VecDeque<String>,
    link: VecDeque<String>,
    logged: Vec<String>,
    /// Calls that have not been answered: owner, method, serial.
    /// Who was asked, for what, by which call, and when.
    open: Vec<(String, &'static str, u32, Duration)>,
    shown: HashSet<String>,
}

impl transcripts::Play for Stage {
    type Chosen = Chosen;

    fn choose(chosen: &mut Chosen, setting: &str) -> Result<(), String> {
        set(setting, chosen)
    }

    fn begin(Chosen { options, prefix, connected }: Chosen) -> Self {
        let portal = PortalId::parse(PORTAL).unwrap();
        let setup = Setup { portal, prefix: prefix.clone(), options, beside: false, nonce: 1, verbosity: log::Level::Debug };
        let mut stage = Self {
            bridge: Bridge::new(setup),
            elapsed: Duration::ZERO,
            published: VecDeque::new(),
            calls: VecDeque::new(),
            link: VecDeque::new(),
            logged: Vec::new(),
            open: Vec::new(),
            shown: HashSet::new(),
        };
        stage.bridge.bus_up(stage.now());
        stage.pump();
        let (_, _, names, _) = stage.open.remove(0);
        stage.bridge.reply(stage.now(), names, Reply::Names(vec!["org.freedesktop.DBus".into()]));
        if connected {
            stage.bridge.link_up(stage.now());
        }
        stage.pump();
        for filter in ["R/c0619ab1c2d3/#", "W/c0619ab1c2d3/#", "N/c0619ab1c2d3/#"] {
            stage.bridge.subscribed(stage.now(), &format!("{prefix}{filter}"), connected);
        }
        if connected {
            // the sweep: the constants, its marker, and once more, as what is retained came before it
            for (rest, retained) in [("system/0/Serial", true), ("keepalive", true), ("keepalive", false), ("keepalive", false)] {
                stage.bridge.message(stage.now(), &format!("{prefix}N/{PORTAL}/{rest}"), b"{\"value\":1}", retained);
            }
        }
        stage.pump();
        stage.published.clear();
        stage.link.clear();
        stage
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_expectation = matches!(words[..], ["bus" | "mqtt" | "log", ">", ..] | ["mqtt", "subscribe" | "unsubscribe", ..]);
        if !is_expectation {
            self.nothing_left()?;
            self.logged.clear();
        }
        let now = self.now();
        match &words[..] {
            ["bus", "+", name, owner] => self.bridge.name_owner_changed(now, name, "", owner),
            ["bus", "-", name, owner] => self.bridge.name_owner_changed(now, name, owner, ""),
            ["bus", "own", name] => self.bridge.mark_own(name),
            ["bus", "=", name, old, new] => self.bridge.name_owner_changed(now, name, old, new),
            ["bus", "<", "changed", owner, items @ ..] => {
                if let Some(mut changes) = self.bridge.changes(now, owner) {
                    for (path, change) in read_items(items)? {
                        changes.item(&path, change);
                    }
                }
            }
            ["bus", "<", "told", owner, items @ ..] => {
                if let Some(mut changes) = self.bridge.changes(now, owner) {
                    changes.tell();
                    for (path, change) in read_items(items)? {
                        changes.item(&path, change);
                    }
                }
            }
            ["bus", "<", "prop", owner, item] => {
                if let Some(mut changes) = self.bridge.changes(now, owner) {
                    let (path, change) = read_item(item)?;
                    changes.item(&path, change);
                }
            }
            ["bus", "<", "unsent", owner, why @ ..] => {
                let asked = self.open.iter().position(|(to, ..)| to == owner);
                let (_, _, serial, _) = self.open.remove(asked.ok_or("nobody has asked")?);
                self.bridge.unsent(now, serial, why.join(" "));
            }
            ["bus", "<", "late", kind, owner, rest @ ..] => self.answer(kind, owner, rest, true)?,
            ["bus", "<", kind, owner, rest @ ..] => self.answer(kind, owner, rest, false)?,
            ["bus", ">", rest @ ..] => expect(&mut self.calls, &rest.join(" "))?,
            ["mqtt", "<", topic, "retained"] => self.bridge.message(now, topic, b"", true),
            ["mqtt", "<", topic, payload @ .., "retained"] => self.bridge.message(now, topic, payload.join(" ").as_bytes(), true),
            ["mqtt", "<", topic, payload @ ..] => self.bridge.message(now, topic, payload.join(" ").as_bytes(), false),
            ["mqtt", ">", rest @ ..] => expect(&mut self.published, &rest.join(" "))?,
            ["mqtt", "up"] => self.bridge.link_up(now),
            ["mqtt", "slow"] => self.bridge.set_slow_link(true),
            ["mqtt", "fast"] => self.bridge.set_slow_link(false),
            ["mqtt", "down"] => self.bridge.link_down(),
            ["mqtt", "suback", filter, outcome] => self.bridge.subscribed(now, filter, *outcome == "ok"),
            ["mqtt", rest @ ..] => expect(&mut self.link, &rest.join(" "))?,
            ["time", "+", amount] => self.pass(transcripts::span(amount)?),
            ["stop"] => self.bridge.shut_down(now),
            ["log", ">", level, text @ ..] => {
                let (level, text) = (level.to_uppercase(), text.join(" "));
                if !self.logged.iter().any(|line| line.starts_with(&level) && line.contains(&text)) {
                    return Err(format!("not in the log: {:#?}", self.logged));
                }
            }
            ["show", what] => {
                self.shown.insert((*what).to_owned());
            }
            _ => return Err("not understood".into()),
        }
        self.pump();
        Ok(())
    }

    fn nothing_left(&self) -> Result<(), String> {
        let left: Vec<_> = self.published.iter().chain(&self.calls).chain(&self.link).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("before that, this was not expected: {left:#?}")) }
    }
}

impl Stage {
    fn now(&self) -> Time {
        Time::since_start(self.elapsed)
    }

    fn answer(&mut self, kind: &str, owner: &str, rest: &[&str], late: bool) -> Result<(), String> {
        let (method, reply) = match (kind, rest) {
            ("items", items) => {
                let items = read_items(items)?;
                (Some("GetItems"), Reply::Items(items))
            }
            ("value", json) => (Some("GetValue"), Reply::Value(read_value(&json.join(" "))?)),
            ("dict", json) => (Some("GetValue"), Reply::Item(read_value(&json.join(" "))?)),
            ("code", [code]) => (Some("SetValue"), Reply::Code(code.parse().map_err(|_| "no number")?)),
            ("text", text) => (Some("Introspect"), Reply::Text(text.join(" "))),
            ("error", [name]) => (None, Reply::Error { name: format!("org.freedesktop.DBus.Error.{name}"), text: "no".into() }),
            _ => return Err("no such answer".into()),
        };
        self.open.retain(|(_, _, serial, _)| self.bridge.expects(*serial));
        let deadline = |what: &str| if what == "SetValue" { limits::CALL_DEADLINE } else { limits::SCAN_DEADLINE };
        let now = self.elapsed;
        let asked = self.open.iter().position(|(to, what, _, asked)| {
            to == owner && method.is_none_or(|method| *what == method) && (now - *asked >= deadline(what)) == late
        });
        let (_, _, serial, _) = self.open.remove(asked.ok_or("nobody has asked")?);
        self.bridge.reply(self.now(), serial, reply);
        Ok(())
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

    fn pump(&mut self) {
        while let Some(note) = self.bridge.poll_note() {
            self.logged.push(format!("{} {}", note.level, note.text));
        }
        while let Some(BusCall { id, destination, path, method, answered }) = self.bridge.poll_call(self.now()) {
            let (name, value) = match method {
                Method::ListNames => ("ListNames", None),
                Method::GetNameOwner(_) => ("GetNameOwner", None),
                Method::GetItems => ("GetItems", None),
                Method::Introspect => ("Introspect", None),
                Method::GetValue => ("GetValue", None),
                Method::SetValue(value) => ("SetValue", Some(value)),
                Method::AddSettings(_) | Method::RemoveSettings(_) => unreachable!("the bridge has no settings"),
            };
            let value = value.map(|value| format!(" {}:{}", value.signature(), print(&value))).unwrap_or_default();
            if name == "SetValue" || self.shown.contains("calls") {
                self.calls.push_back(format!("{name} {destination} {path}{value}"));
            }
            if answered {
                self.open.push((destination.into(), name, id, self.elapsed));
            }
        }
        self.pump_link();
        let unix = 1000 + self.elapsed.as_secs();
        while let Some(Publish { topic, payload, retain }) = self.bridge.poll_publish(self.now(), unix) {
            if topic.ends_with("/heartbeat") && !self.shown.contains("heartbeat") {
                continue;
            }
            let payload = if payload.is_empty() { "(empty)".into() } else { String::from_utf8(payload).unwrap() };
            self.published.push_back(format!("{topic} {payload}{}", if retain { " retained" } else { "" }));
        }
        self.pump_link();
    }

    fn pump_link(&mut self) {
        while let Some(command) = self.bridge.poll_link() {
            if self.shown.contains("link") {
                self.link.push_back(match command {
                    LinkCommand::Subscribe(filters) => format!("subscribe {}", filters.join(" ")),
                    LinkCommand::Unsubscribe(filters) => format!("unsubscribe {}", filters.join(" ")),
                });
            }
        }
    }
}

fn print(value: &Value) -> String {
    let mut out = Vec::new();
    value.write_json(&mut out);
    String::from_utf8(out).unwrap()
}
