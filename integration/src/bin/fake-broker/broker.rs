//! The broker: clients, subscriptions, retained messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedReadHalf},
    sync::mpsc::{UnboundedSender, unbounded_channel},
};
use venus_mqtt_integration::mqtt::{packet, suback};

use super::{Event, Message, plugin::Plugin};

/// How retained messages are replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    All,
    Exact,
    Early,
    Twice,
    Late,
    Most(usize),
}

impl FromStr for Replay {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "all" => Self::All,
            "exact" => Self::Exact,
            "early" => Self::Early,
            "twice" => Self::Twice,
            "late" => Self::Late,
            number => Self::Most(number.parse().context("all, exact, early, twice, late or a number")?),
        })
    }
}

/// Its first byte, the rest. `None`: the connection has ended.
pub type Packet = Option<(u8, Vec<u8>)>;

pub struct Broker {
    replay: Replay,
    events: UnboundedSender<Event>,
    next: u64,
    /// Everybody connected, by a number of ours.
    clients: BTreeMap<u64, Client>,
    retained: BTreeMap<String, Vec<u8>>,
}

struct Client {
    /// Empty until its CONNECT has come.
    name: Option<String>,
    will: Option<Message>,
    filters: BTreeSet<String>,
    queue: UnboundedSender<Vec<u8>>,
}

impl Broker {
    pub fn new(replay: Replay, events: UnboundedSender<Event>) -> Self {
        Self { replay, events, next: 0, clients: BTreeMap::new(), retained: BTreeMap::new() }
    }

    pub fn accept(&mut self, stream: TcpStream) {
        self.next += 1;
        let id = self.next;
        let _ = stream.set_nodelay(true);
        let (reader, mut writer) = stream.into_split();
        let (queue, mut outgoing) = unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(bytes) = outgoing.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        self.clients.insert(id, Client { name: None, will: None, filters: BTreeSet::new(), queue });
        tokio::spawn(read_all(reader, id, self.events.clone()));
    }

    /// What a client sends; gives the messages that are of interest to a plugin, in their order.
    pub fn packet(&mut self, id: u64, packet: Packet, plugin: Option<&Plugin>) -> Vec<Message> {
        let Some((kind, body)) = packet else { return self.gone(id, plugin) };
        let handled = match kind >> 4 {
            1 => self.connect(id, &body, plugin),
            3 => self.publish(id, kind, &body, plugin),
            8 => self.subscribe(id, &body, plugin),
            10 => self.unsubscribe(id, &body),
            12 => {
                self.send(id, packet_of(0xd0, &[]));
                Ok(Vec::new())
            }
            14 => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.will = None;
                }
                return self.gone(id, plugin);
            }
            _ => Ok(Vec::new()),
        };
        handled.unwrap_or_else(|error| {
            println!("client {id} is cut off: {error:#}");
            self.gone(id, plugin)
        })
    }

    fn connect(&mut self, id: u64, body: &[u8], plugin: Option<&Plugin>) -> Result<Vec<Message>> {
        let mut rest = body;
        if take(&mut rest)? != b"MQTT" || rest.first() != Some(&4) {
            bail!("no MQTT 3.1.1");
        }
        let flags = *rest.get(1).context("flags")?;
        rest = rest.get(4..).context("keep-alive")?;
        let name = String::from_utf8(take(&mut rest)?.to_vec())?;
        let will = if flags & 4 == 4 {
            let topic = String::from_utf8(take(&mut rest)?.to_vec())?;
            Some(Message { topic, payload: take(&mut rest)?.to_vec(), retain: flags & 0x20 == 0x20 })
        } else {
            None
        };
        let older = self.clients.iter().find(|(_, client)| !name.is_empty() && client.name.as_deref() == Some(&name)).map(|(id, _)| *id);
        let left = older.map(|older| self.gone(older, plugin)).unwrap_or_default();
        let client = self.clients.get_mut(&id).context("it is gone")?;
        (client.name, client.will) = (Some(name), will);
        self.send(id, packet_of(0x20, &[0, 0]));
        Ok(left)
    }

    fn publish(&mut self, id: u64, kind: u8, body: &[u8], plugin: Option<&Plugin>) -> Result<Vec<Message>> {
        let mut rest = body;
        let topic = String::from_utf8(take(&mut rest)?.to_vec())?;
        if kind & 0x06 != 0 {
            let packet_id = rest.get(..2).context("packet ID")?.to_vec();
            rest = rest.get(2..).unwrap_or_default();
            self.send(id, packet_of(0x40, &packet_id));
        }
        let message = Message { topic, payload: rest.to_vec(), retain: kind & 1 == 1 };
        Ok(self.published(message, plugin))
    }

    fn published(&mut self, mut message: Message, plugin: Option<&Plugin>) -> Vec<Message> {
        if let Some(plugin) = plugin {
            if plugin.refuses(&message) {
                return Vec::new();
            }
            message.retain &= !plugin.strips_retain(&message);
        }
        self.deliver(&message, plugin);
        if message.retain {
            if message.payload.is_empty() {
                self.retained.remove(&message.topic);
            } else {
                self.retained.insert(message.topic.clone(), message.payload.clone());
            }
        }
        vec![message]
    }

    /// To whoever has subscribed to it.
    pub fn deliver(&self, message: &Message, plugin: Option<&Plugin>) {
        if plugin.is_some_and(|plugin| plugin.hides(&message.topic)) {
            return;
        }
        let bytes = publish_of(message, false);
        for client in self.clients.values() {
            if client.filters.iter().any(|filter| matches(filter, &message.topic)) {
                let _ = client.queue.send(bytes.clone());
            }
        }
    }

    fn subscribe(&mut self, id: u64, body: &[u8], plugin: Option<&Plugin>) -> Result<Vec<Message>> {
        let mut rest = body.get(2..).context("packet ID")?;
        let mut filters = Vec::new();
        while !rest.is_empty() {
            filters.push(String::from_utf8(take(&mut rest)?.to_vec())?);
            rest = rest.get(1..).context("QoS")?;
        }
        let answer = suback(body, 0).context("packet ID")?;
        if let Some(client) = self.clients.get_mut(&id) {
            client.filters.extend(filters.iter().cloned());
        }
        // the plugin is asked for each retained message whether this client may read it, and takes that for the message itself
        let covered = filters.iter().flat_map(|filter| self.retained.iter().filter(move |(topic, _)| matches(filter, topic)));
        let covered = covered.map(|(topic, payload)| Message { topic: topic.clone(), payload: payload.clone(), retain: true }).collect();
        match self.replay {
            Replay::Early => {
                self.replay(id, &filters, plugin);
                self.send(id, answer);
            }
            Replay::Late => {
                self.send(id, answer);
                let events = self.events.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let _ = events.send(Event::Replay(id, filters));
                });
            }
            Replay::All | Replay::Exact | Replay::Twice | Replay::Most(_) => {
                self.send(id, answer);
                self.replay(id, &filters, plugin);
            }
        }
        Ok(covered)
    }

    pub fn replay(&self, id: u64, filters: &[String], plugin: Option<&Plugin>) {
        let (times, most) = match self.replay {
            Replay::Twice => (2, usize::MAX),
            Replay::Most(most) => (1, most),
            _ => (1, usize::MAX),
        };
        for filter in filters.iter().filter(|filter| self.replay != Replay::Exact || !filter.contains(['+', '#'])) {
            let found = self.retained.iter().filter(|(topic, _)| matches(filter, topic));
            for (topic, payload) in found.take(most) {
                let message = Message { topic: topic.clone(), payload: payload.clone(), retain: true };
                if !plugin.is_some_and(|plugin| plugin.hides(topic)) {
                    (0..times).for_each(|_| self.send(id, publish_of(&message, true)));
                }
            }
        }
    }

    fn unsubscribe(&mut self, id: u64, body: &[u8]) -> Result<Vec<Message>> {
        let mut rest = body.get(2..).context("packet ID")?;
        while !rest.is_empty() {
            let filter = String::from_utf8(take(&mut rest)?.to_vec())?;
            if let Some(client) = self.clients.get_mut(&id) {
                client.filters.remove(&filter);
            }
        }
        self.send(id, packet_of(0xb0, body.get(..2).unwrap_or_default()));
        Ok(Vec::new())
    }

    fn gone(&mut self, id: u64, plugin: Option<&Plugin>) -> Vec<Message> {
        let will = self.clients.remove(&id).and_then(|client| client.will);
        will.map(|will| self.published(will, plugin)).unwrap_or_default()
    }

    fn send(&self, id: u64, bytes: Vec<u8>) {
        if let Some(client) = self.clients.get(&id) {
            let _ = client.queue.send(bytes);
        }
    }
}

fn packet_of(kind: u8, body: &[u8]) -> Vec<u8> {
    packet(kind, body)
}

fn publish_of(message: &Message, retain: bool) -> Vec<u8> {
    let length = u16::try_from(message.topic.len()).unwrap_or(u16::MAX);
    let body = [&length.to_be_bytes()[..], message.topic.as_bytes(), &message.payload].concat();
    packet(0x30 | u8::from(retain), &body)
}

/// A string or bytes with their length before them.
fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let (length, behind) = rest.split_at_checked(2).context("a length")?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let (text, behind) = behind.split_at_checked(length).context("a string")?;
    *rest = behind;
    Ok(text)
}

pub fn matches(filter: &str, topic: &str) -> bool {
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

async fn read_all(mut reader: OwnedReadHalf, id: u64, events: UnboundedSender<Event>) {
    loop {
        let packet = read_packet(&mut reader).await.ok();
        let is_over = packet.is_none();
        if events.send(Event::Packet(id, packet)).is_err() || is_over {
            return;
        }
    }
}

async fn read_packet(reader: &mut OwnedReadHalf) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = reader.read_u8().await?;
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21] {
        let byte = reader.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok((kind, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for (filter, topic, wanted) in [
            ("#", "W/a/b", true),
            ("W/#", "W", true),
            ("W/+/b", "W/a/b", true),
            ("W/+", "W/a/b", false),
            ("W/a/b", "W/a/b", true),
            ("W/a", "W/a/b", false),
            ("W/a/b/#", "W/a", false),
        ] {
            assert_eq!(matches(filter, topic), wanted, "{filter} {topic}");
        }
    }
}
