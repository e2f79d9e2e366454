//! What dbus-flashmq does in FlashMQ, in the points that others have to live with (versions 12 to 25):
//!
//! - `W/<portal>/…` is carried out by SetValue, a retained one again at each subscription of anybody to a filter that matches it;
//! - a service is known some time after it has appeared on the bus, and what comes for it before is dropped (`Can't find dbus service`);
//! - `R/<portal>/…` is answered by a notification, asleep too;
//! - a keep-alive wakes it for 60 s and publishes everything, except with `suppress-republish`; of those in one second the fourth and later
//!   publish nothing and their echoes are dropped;
//! - the heartbeat comes at once when it was asleep, and every 3 s;
//! - `N/<portal>/…` of anybody else is dropped, and no notification is retained;
//! - a W topic with `password` in it is not delivered to anybody;
//! - a service that leaves: an empty payload on each of its topics.

use std::{
    collections::BTreeMap,
    pin::Pin,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, bail};
use futures_core::Stream;
use serde_json::Value as Json;
use tokio::sync::mpsc::UnboundedSender;
use venus_mqtt_integration::{
    fake::show_value,
    items::{Entry, Items, empty_array},
};
use zbus::{Connection, MessageStream, OwnedVariant, Variant, connection, message::Type};

use super::{Event, Message};

const BUS: &str = "org.freedesktop.DBus";
const ITEM: &str = "com.victronenergy.BusItem";
const VICTRON: &str = "com.victronenergy.";
const KEEPALIVE: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Full publishes in one second.
const TOKENS: u32 = 3;

/// What the bus says.
pub enum Heard {
    Connected(Connection),
    Signal(zbus::Message),
    /// A service has been scanned: its name, its owner, its items.
    Scanned(String, String, Items),
    /// The answer to a read: service, path, value.
    Value(String, String, OwnedVariant),
    Lost,
}

pub struct Plugin {
    portal: String,
    late: Duration,
    events: UnboundedSender<Event>,
    connection: Option<Connection>,
    /// By their names.
    services: BTreeMap<String, Service>,
    awake_until: Option<Instant>,
    heartbeat: Option<Instant>,
    tokens: u32,
    second: Instant,
    publishes: Vec<Message>,
}

struct Service {
    owner: String,
    /// `<type>/<instance>`
    topic: String,
    items: BTreeMap<String, Entry>,
}

impl Plugin {
    pub fn start(portal: String, dbus: String, late: Duration, events: UnboundedSender<Event>) -> Self {
        tokio::spawn(listen(dbus, events.clone()));
        let now = Instant::now();
        Self {
            portal,
            late,
            events,
            connection: None,
            services: BTreeMap::new(),
            awake_until: None,
            heartbeat: None,
            tokens: TOKENS,
            second: now,
            publishes: Vec::new(),
        }
    }

    /// Whether a client may not publish this.
    pub fn refuses(&self, message: &Message) -> bool {
        self.rest(&message.topic, 'N').is_some()
    }

    pub fn strips_retain(&self, message: &Message) -> bool {
        self.rest(&message.topic, 'P').is_some()
    }

    /// Whether nobody may read this.
    pub fn hides(&self, topic: &str) -> bool {
        self.rest(topic, 'W').is_some() && topic.to_lowercase().contains("password")
    }

    pub fn publishes(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.publishes)
    }

    fn rest<'a>(&self, topic: &'a str, letter: char) -> Option<&'a str> {
        topic.strip_prefix(letter)?.strip_prefix('/')?.strip_prefix(&self.portal)?.strip_prefix('/')
    }

    /// A message of a client, or a retained one that was looked at for a client.
    pub fn message(&mut self, message: &Message) {
        if let Some(rest) = self.rest(&message.topic, 'W') {
            println!("[Write] Writing '{}' to '{}'", String::from_utf8_lossy(&message.payload), message.topic);
            if let Err(why) = self.write(&message.topic, rest, &message.payload) {
                println!("{why:#}");
            }
        } else if let Some(rest) = self.rest(&message.topic, 'R') {
            if matches!(rest, "keepalive" | "system/0/Serial") {
                self.keepalive(&String::from_utf8_lossy(&message.payload));
            }
            if rest != "keepalive"
                && let Err(why) = self.read(&message.topic, rest)
            {
                println!("{why:#}");
            }
        }
    }

    fn find<'a>(&self, topic: &str, rest: &'a str) -> Result<(String, &'a str)> {
        let slash = rest.match_indices('/').nth(1).map_or(rest.len(), |(at, _)| at);
        let (address, path) = rest.split_at(slash);
        let found = self.services.iter().find(|(_, service)| service.topic == address);
        match found {
            Some((name, _)) => Ok((name.clone(), path)),
            None => bail!("Can't find dbus service for {topic}"),
        }
    }

    fn write(&self, topic: &str, rest: &str, payload: &[u8]) -> Result<()> {
        let json: Json = serde_json::from_slice(payload)?;
        let Some(value) = json.get("value") else { bail!("Can't find 'value' in json.") };
        let (name, path) = self.find(topic, rest)?;
        if !self.services.get(&name).is_some_and(|service| service.items.contains_key(path)) {
            bail!("Can't find item for {path}");
        }
        let (value, path, topic) = (variant(value), path.to_owned(), topic.to_owned());
        if let Some(connection) = self.connection.clone() {
            tokio::spawn(async move {
                if let Err(error) = connection.call_method(Some(name.as_str()), path.as_str(), Some(ITEM), "SetValue", &value).await {
                    println!("Error on 'SetValue' on {topic}: {error}");
                }
            });
        }
        Ok(())
    }

    fn read(&self, topic: &str, rest: &str) -> Result<()> {
        let (name, path) = self.find(topic, rest)?;
        let path = path.to_owned();
        if let Some(connection) = self.connection.clone() {
            let events = self.events.clone();
            tokio::spawn(async move {
                let reply = connection.call_method(Some(name.as_str()), path.as_str(), Some(ITEM), "GetValue", &()).await;
                match reply.and_then(|reply| reply.body().deserialize::<OwnedVariant>()) {
                    Ok(value) => drop(events.send(Event::Bus(Heard::Value(name, path, value)))),
                    Err(error) => println!("Error on 'GetValue' from {path}: {error}"),
                }
            });
        }
        Ok(())
    }

    fn is_awake(&self) -> bool {
        self.awake_until.is_some_and(|until| Instant::now() < until)
    }

    fn keepalive(&mut self, payload: &str) {
        if !payload.contains("suppress-republish") && self.tokens > 0 {
            self.tokens -= 1;
            let all: Vec<_> =
                self.services.iter().flat_map(|(name, service)| service.items.keys().map(|path| (name.clone(), path.clone()))).collect();
            all.iter().for_each(|(name, path)| self.publish_item(name, path));
            let json: Json = serde_json::from_str(payload).unwrap_or_default();
            let options = json.get("keepalive-options").and_then(Json::as_array);
            let echo = options.and_then(|options| options.iter().find_map(|option| option.get("full-publish-completed-echo")));
            let mut done = serde_json::json!({"value": unix()});
            if let Some(echo) = echo {
                done["full-publish-completed-echo"] = echo.clone();
            }
            self.publish("full_publish_completed", done.to_string());
        }
        self.awake_until = Some(Instant::now() + KEEPALIVE);
        if self.heartbeat.is_none() {
            self.beat();
        }
    }

    fn beat(&mut self) {
        self.heartbeat = self.is_awake().then(|| Instant::now() + HEARTBEAT);
        if self.heartbeat.is_some() {
            self.publish("heartbeat", serde_json::json!({"value": unix()}).to_string());
        }
    }

    /// What time brings.
    pub fn tick(&mut self) {
        let now = Instant::now();
        if now >= self.second + Duration::from_secs(1) {
            (self.second, self.tokens) = (now, TOKENS);
        }
        if self.heartbeat.is_some_and(|due| due <= now) {
            self.beat();
        }
    }

    fn publish(&mut self, rest: &str, payload: String) {
        let topic = format!("N/{}/{rest}", self.portal);
        self.publishes.push(Message { topic, payload: payload.into_bytes(), retain: false });
    }

    fn publish_item(&mut self, name: &str, path: &str) {
        let Some(service) = self.services.get(name) else { return };
        let Some(entry) = service.items.get(path) else { return };
        let shown = |key: &str| entry.get(key).map(show_value);
        let json = |shown: String| {
            shown.split_once(' ').map_or_else(String::new, |(_, json)| if json == "[]" { "null".into() } else { json.to_owned() })
        };
        let limits = ["Max", "Min"].iter().filter_map(|key| Some(format!("\"{}\":{},", key.to_lowercase(), json(shown(key)?))));
        let payload = format!("{{{}\"value\":{}}}", limits.collect::<String>(), shown("Value").map_or("null".into(), json));
        let rest = format!("{}{path}", service.topic);
        self.publish(&rest, payload);
    }

    pub fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Connected(connection) => {
                self.connection = Some(connection);
                println!("connected to the bus");
            }
            Heard::Lost => {
                self.connection = None;
                self.services.clear();
            }
            Heard::Scanned(name, owner, items) => self.scanned(name, owner, items),
            Heard::Value(name, path, value) => {
                if let Some(entry) = self.services.get_mut(&name).and_then(|service| service.items.get_mut(&path)) {
                    entry.insert("Value".into(), value);
                    self.publish_item(&name, &path);
                }
            }
            Heard::Signal(message) => {
                if let Err(error) = self.signal(&message) {
                    println!("a signal is not understood: {error:#}");
                }
            }
        }
    }

    fn scanned(&mut self, name: String, owner: String, items: Items) {
        let Some(kind) = name.strip_prefix(VICTRON).map(|rest| rest.split('.').next().unwrap_or_default().to_owned()) else { return };
        let instance = items.get("/DeviceInstance").and_then(|entry| entry.get("Value")).map(show_value).unwrap_or_default();
        let instance = instance.split_once(' ').and_then(|(_, number)| number.parse::<i64>().ok()).unwrap_or(0);
        let paths: Vec<String> = items.keys().cloned().collect();
        println!("found {name} as {kind}/{instance}");
        self.services.insert(name.clone(), Service { owner, topic: format!("{kind}/{instance}"), items });
        if self.is_awake() {
            paths.iter().for_each(|path| self.publish_item(&name, path));
        }
    }

    fn signal(&mut self, message: &zbus::Message) -> Result<()> {
        let header = message.header();
        let member = header.member().map(|member| member.to_string()).unwrap_or_default();
        let path = header.path().map(|path| path.to_string()).unwrap_or_default();
        let sender = header.sender().map(|sender| sender.to_string()).unwrap_or_default();
        let body = message.body();
        match member.as_str() {
            "NameOwnerChanged" => {
                let (name, _, new): (String, String, String) = body.deserialize()?;
                if name.starts_with(VICTRON) {
                    self.owner_changed(name, new);
                }
            }
            "ItemsChanged" => self.changed(&sender, body.deserialize::<Items>()?),
            "PropertiesChanged" => self.changed(&sender, Items::from([(path, body.deserialize::<Entry>()?)])),
            _ => {}
        }
        Ok(())
    }

    fn changed(&mut self, sender: &str, items: Items) {
        let Some(name) = self.services.iter().find(|(_, service)| service.owner == sender).map(|(name, _)| name.clone()) else { return };
        let awake = self.is_awake();
        for (path, entry) in items {
            if let Some(service) = self.services.get_mut(&name) {
                service.items.entry(path.clone()).or_default().extend(entry);
            }
            if awake {
                self.publish_item(&name, &path);
            }
        }
    }

    fn owner_changed(&mut self, name: String, new: String) {
        if let Some(service) = self.services.remove(&name) {
            service.items.keys().for_each(|path| self.publish(&format!("{}{path}", service.topic), String::new()));
        }
        let Some(connection) = self.connection.clone().filter(|_| !new.is_empty()) else { return };
        let (events, late) = (self.events.clone(), self.late);
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            scan(&connection, name, &events).await;
        });
    }
}

async fn scan(connection: &Connection, name: String, events: &UnboundedSender<Event>) {
    let owner = connection.call_method(Some(BUS), "/", Some(BUS), "GetNameOwner", &name.as_str()).await;
    let Ok(owner) = owner.and_then(|reply| reply.body().deserialize::<String>()) else { return };
    let items = connection.call_method(Some(name.as_str()), "/", Some(ITEM), "GetItems", &()).await;
    match items.and_then(|reply| reply.body().deserialize::<Items>()) {
        Ok(items) => drop(events.send(Event::Bus(Heard::Scanned(name, owner, items)))),
        Err(error) => println!("Error on 'GetItems' from {name}: {error}"),
    }
}

/// Connects to the bus, as soon as there is one, and forwards what it says.
async fn listen(dbus: String, events: UnboundedSender<Event>) {
    loop {
        if let Ok(connection) = connect(&dbus).await {
            let mut stream = MessageStream::from(&connection);
            let _ = events.send(Event::Bus(Heard::Connected(connection.clone())));
            if let Ok(names) = connection.call_method(Some(BUS), "/", Some(BUS), "ListNames", &()).await {
                let names: Vec<String> = names.body().deserialize().unwrap_or_default();
                for name in names.into_iter().filter(|name| name.starts_with(VICTRON)) {
                    let (connection, events) = (connection.clone(), events.clone());
                    tokio::spawn(async move { scan(&connection, name, &events).await });
                }
            }
            while let Some(Ok(message)) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
                if message.message_type() == Type::Signal && events.send(Event::Bus(Heard::Signal(message))).is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Bus(Heard::Lost));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn connect(dbus: &str) -> Result<Connection> {
    let connection = connection::Builder::address(dbus).build().await?;
    for rule in
        ["type='signal',interface='org.freedesktop.DBus',member='NameOwnerChanged'", "type='signal',interface='com.victronenergy.BusItem'"]
    {
        connection.call_method(Some(BUS), "/", Some(BUS), "AddMatch", &rule).await?;
    }
    Ok(connection)
}

/// The type that a value has in JSON.
fn variant(value: &Json) -> Variant<'static> {
    match value {
        Json::Bool(value) => Variant::Bool(*value),
        Json::String(text) => Variant::from(text.clone()),
        Json::Number(number) => match number.as_i64() {
            Some(number) => i32::try_from(number).map_or(Variant::I64(number), Variant::I32),
            None => Variant::F64(number.as_f64().unwrap_or_default()),
        },
        Json::Null | Json::Array(_) | Json::Object(_) => empty_array("i"),
    }
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
