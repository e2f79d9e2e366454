//! An MQTT 3.1.1 client for tests: small, exact, and not the daemon's own library.
//!
//! It keeps everything it receives, in order, with the retain flag as the broker set it. Waiting is by deadline; that something does
//! *not* come is known by something sent after it that did.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{DEADLINE, PORTAL};

/// Something the broker sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    pub at: Instant,
}

impl Message {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = if self.payload.is_empty() { "(empty)".into() } else { self.text().chars().take(300).collect() };
        write!(f, "{} {text}{}", self.topic, if self.retain { " retained" } else { "" })
    }
}

/// How to connect.
#[derive(Clone, Default)]
pub struct Options {
    pub client_id: String,
    pub credentials: Option<(String, String)>,
    pub will: Option<Will>,
}

/// What the broker publishes when the client is gone without a word.
#[derive(Clone)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// A connected client.
pub struct Client {
    stream: TcpStream,
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
    /// stands before every topic of [`Client::n`] and its like
    prefix: String,
    /// where [`Client::mark`] was last called
    mark: Mutex<usize>,
}

#[derive(Default)]
struct Inbox {
    messages: Vec<Message>,
    subacks: BTreeMap<u16, Vec<u8>>,
    next_id: u16,
    ponged: bool,
    closed: bool,
}

impl Client {
    pub fn connect(address: SocketAddr, options: &Options) -> Result<Self> {
        let mut stream =
            TcpStream::connect_timeout(&address, DEADLINE).with_context(|| format!("connecting to the broker at {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut body = Vec::new();
        string(&mut body, b"MQTT");
        let flags = 0x02 | if options.credentials.is_some() { 0xc0 } else { 0 } | if options.will.is_some() { 0x04 } else { 0 };
        body.extend([4, flags, 0, 0]);
        string(&mut body, options.client_id.as_bytes());
        if let Some(will) = &options.will {
            string(&mut body, will.topic.as_bytes());
            string(&mut body, &will.payload);
        }
        if let Some((user, password)) = &options.credentials {
            string(&mut body, user.as_bytes());
            string(&mut body, password.as_bytes());
        }
        stream.write_all(&packet(0x10, &body))?;
        match read_packet(&mut stream)? {
            (0x20, body) if body.get(1) == Some(&0) => {}
            (kind, body) => bail!("the broker refuses the test's client: {kind:#x} {body:?}"),
        }
        stream.set_read_timeout(None)?;
        let inbox = Arc::new((Mutex::new(Inbox::default()), Condvar::new()));
        let (reader, shared) = (stream.try_clone()?, Arc::clone(&inbox));
        std::thread::spawn(move || read_all(reader, &shared));
        Ok(Self { stream, inbox, prefix: String::new(), mark: Mutex::new(0) })
    }

    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Subscribes and waits for the answer: the code of the SUBACK.
    pub fn subscribe(&self, filter: &str) -> u8 {
        let id = {
            let mut inbox = self.inbox();
            inbox.next_id += 1;
            inbox.next_id
        };
        let mut body = id.to_be_bytes().to_vec();
        string(&mut body, filter.as_bytes());
        body.push(0);
        self.send(&packet(0x82, &body));
        self.await_inbox(&format!("a SUBACK for {filter}"), DEADLINE, |inbox| {
            inbox.subacks.get(&id).map(|codes| codes.first().copied().unwrap_or(0x80))
        })
    }

    pub fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) {
        self.send_publish(topic, payload.as_ref(), false);
    }

    pub fn publish_retained(&self, topic: &str, payload: impl AsRef<[u8]>) {
        self.send_publish(topic, payload.as_ref(), true);
    }

    /// From here on only what comes counts.
    pub fn mark(&self) {
        *self.lock_mark() = self.inbox().messages.len();
    }

    /// Everything since the mark.
    pub fn since(&self) -> Vec<Message> {
        self.inbox().messages.get(*self.lock_mark()..).unwrap_or_default().to_vec()
    }

    /// Everything since the mark, on one topic.
    pub fn on(&self, topic: &str) -> Vec<Message> {
        self.since().into_iter().filter(|message| message.topic == topic).collect()
    }

    /// The first message since the mark that fits.
    pub fn wait_for(&self, what: &str, mut fits: impl FnMut(&Message) -> bool) -> Message {
        self.wait_within(what, DEADLINE, |messages| messages.iter().find(|message| fits(message)).cloned())
    }

    /// What `find` makes of everything since the mark.
    pub fn wait_within<T>(&self, what: &str, within: Duration, mut find: impl FnMut(&[Message]) -> Option<T>) -> T {
        let mark = *self.lock_mark();
        self.await_inbox(what, within, |inbox| find(inbox.messages.get(mark..).unwrap_or_default()))
    }

    /// A message on this topic with this payload (JSON: spaces do not count), since the mark.
    pub fn expect(&self, topic: &str, payload: &str) -> Message {
        let wanted = without_spaces(payload.as_bytes());
        self.wait_for(&format!("{topic} {payload}"), |message| message.topic == topic && without_spaces(&message.payload) == wanted)
    }

    pub fn expect_topic(&self, topic: &str) -> Message {
        self.wait_for(topic, |message| message.topic == topic)
    }

    /// Once `after` has come, nothing may have come on `topic` since the mark.
    pub fn expect_silence_on(&self, topic: &str, after: &Message) {
        let heard: Vec<Message> =
            self.since().into_iter().take_while(|message| message != after).filter(|message| message.topic == topic).collect();
        assert!(heard.is_empty(), "silence was expected on {topic}, before {after:?}: {heard:?}");
    }

    /// Everything retained that `filter` takes, as a fresh subscriber gets it: call it on a client that has subscribed to nothing.
    pub fn retained(&self, filter: &str) -> BTreeMap<String, String> {
        self.subscribe("retained-view/done");
        self.mark();
        self.subscribe(filter);
        self.publish("retained-view/done", "");
        self.expect_topic("retained-view/done");
        self.since().into_iter().filter(|message| message.retain).map(|message| (message.topic.clone(), message.text())).collect()
    }

    /// Nothing that was sent by or to this client before is still on its way when this returns.
    pub fn barrier(&self) {
        let topic = format!("barrier/{:p}", self);
        self.subscribe(&topic);
        let before = self.inbox().messages.len();
        self.publish(&topic, "");
        self.await_inbox("a barrier's own message", DEADLINE, |inbox| {
            inbox.messages.iter().skip(before).any(|message| message.topic == topic).then_some(())
        });
    }

    /// The broker has looked at everything that was sent, or has closed the connection over it.
    pub fn barrier_or_closed(&self) {
        self.send(&packet(0xc0, &[]));
        crate::eventually("the broker's answer to a ping", DEADLINE, || {
            let inbox = self.inbox();
            (inbox.ponged || inbox.closed).then_some(())
        });
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Goes without a word: the connection ends and the broker publishes the last will.
    pub fn vanish(self) {
        // what was sent before is still delivered; the good-bye that follows is not
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub fn is_closed(&self) -> bool {
        self.inbox().closed
    }

    // The topics of the bridge, by what stands behind the portal ID.

    pub fn topic(&self, kind: char, rest: &str) -> String {
        format!("{}{kind}/{PORTAL}/{rest}", self.prefix)
    }

    /// Waits for `N/<portal>/<rest>` with this payload.
    pub fn n(&self, rest: &str, payload: &str) -> Message {
        self.expect(&self.topic('N', rest), payload)
    }

    pub fn write(&self, rest: &str, payload: impl AsRef<[u8]>) {
        self.publish(&self.topic('W', rest), payload);
    }

    pub fn read(&self, rest: &str) {
        self.publish(&self.topic('R', rest), "");
    }

    pub fn keepalive(&self, payload: impl AsRef<[u8]>) {
        self.publish(&self.topic('R', "keepalive"), payload);
    }

    /// Waits for a `full_publish_completed`.
    pub fn completed(&self) -> Message {
        self.expect_topic(&self.topic('N', "full_publish_completed"))
    }

    /// Topics of items heard of since the mark, without the special ones, by what stands behind the portal ID.
    pub fn items(&self) -> BTreeMap<String, String> {
        let prefix = self.topic('N', "");
        let special = ["system/0/Serial", "keepalive", "heartbeat", "full_publish_completed"];
        self.since()
            .iter()
            .filter_map(|message| Some((message.topic.strip_prefix(&prefix)?.to_owned(), message.text())))
            .filter(|(rest, _)| !special.contains(&rest.as_str()))
            .collect()
    }

    /// Bytes as they are: for what no well-behaved client sends.
    pub fn send(&self, bytes: &[u8]) {
        // a broker that closes on it is noticed by what is waited for next
        let _ = (&self.stream).write_all(bytes);
    }

    fn send_publish(&self, topic: &str, payload: &[u8], retain: bool) {
        let mut body = Vec::with_capacity(topic.len() + payload.len() + 2);
        string(&mut body, topic.as_bytes());
        body.extend_from_slice(payload);
        self.send(&packet(0x30 | u8::from(retain), &body));
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.0.lock().expect("the reader does not panic")
    }

    fn lock_mark(&self) -> MutexGuard<'_, usize> {
        self.mark.lock().expect("nothing panics with the mark in hand")
    }

    fn await_inbox<T>(&self, what: &str, within: Duration, mut find: impl FnMut(&Inbox) -> Option<T>) -> T {
        let end = Instant::now() + within;
        let mark = *self.lock_mark();
        let mut inbox = self.inbox();
        loop {
            if let Some(found) = find(&inbox) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || inbox.closed {
                let reason = if inbox.closed { "the broker closed the connection" } else { "time is up" };
                let since = inbox.messages.get(mark..).unwrap_or_default().to_vec();
                // the lock must not be poisoned for those who look next
                drop(inbox);
                let shown: Vec<_> = since.iter().rev().take(60).rev().map(|message| format!("  {message:?}")).collect();
                panic!("{reason} after {within:?} without {what}\n{} since the mark, the last of them:\n{}", since.len(), shown.join("\n"));
            }
            (inbox, _) = self.inbox.1.wait_timeout(inbox, left).expect("the reader does not panic");
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.send(&[0xe0, 0]);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// JSON without the spaces between its parts.
pub fn without_spaces(json: &[u8]) -> Vec<u8> {
    let (mut inside, mut escaped) = (false, false);
    let mut kept = json.to_vec();
    kept.retain(|&byte| {
        let keep = inside || !byte.is_ascii_whitespace();
        inside ^= byte == b'"' && !escaped;
        escaped = inside && byte == b'\\' && !escaped;
        keep
    });
    kept
}

fn read_all(mut stream: TcpStream, shared: &(Mutex<Inbox>, Condvar)) {
    loop {
        let packet = read_packet(&mut stream);
        let Ok(mut inbox) = shared.0.lock() else { return };
        match packet {
            Ok((kind, body)) if kind >> 4 == 3 => {
                let split = body.get(..2).map(|length| 2 + usize::from(u16::from_be_bytes([length[0], length[1]])));
                if let Some((topic, payload)) = split.and_then(|split| Some((body.get(2..split)?, body.get(split..)?))) {
                    let topic = String::from_utf8_lossy(topic).into_owned();
                    inbox.messages.push(Message { topic, payload: payload.to_vec(), retain: kind & 1 == 1, at: Instant::now() });
                }
            }
            Ok((0x90, body)) if body.len() > 2 => {
                inbox.subacks.insert(u16::from_be_bytes([body[0], body[1]]), body[2..].to_vec());
            }
            Ok((0xd0, _)) => inbox.ponged = true,
            Ok(_) => {}
            Err(_) => inbox.closed = true,
        }
        shared.1.notify_all();
        if inbox.closed {
            return;
        }
    }
}

/// Reads one packet: its first byte, the rest.
pub fn read_packet(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let kind = byte[0];
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21] {
        stream.read_exact(&mut byte)?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((kind, body))
}

/// The SUBACK to a SUBSCRIBE with this body: the same return code for each filter.
pub fn suback(subscribe: &[u8], code: u8) -> Option<Vec<u8>> {
    let mut body = subscribe.get(..2)?.to_vec();
    let mut filters = subscribe.get(2..)?;
    while let [high, low, rest @ ..] = filters {
        body.push(code);
        filters = rest.get(usize::from(u16::from_be_bytes([*high, *low])) + 1..)?;
    }
    Some(packet(0x90, &body))
}

/// A packet: its first byte, the length of the rest, the rest.
pub fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    let mut length = body.len();
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&u16::try_from(text.len()).expect("a topic below 64 KiB").to_be_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces() {
        assert_eq!(without_spaces(br#"{ "a b": [1, 2], "c": "\" x\\" , "d" : 1}"#), br#"{"a b":[1,2],"c":"\" x\\","d":1}"#);
    }

    #[test]
    fn lengths() {
        assert_eq!(packet(0x30, &[0; 127]).get(..2), Some(&[0x30, 127][..]));
        assert_eq!(packet(0x30, &[0; 128]).get(..3), Some(&[0x30, 0x80, 1][..]));
        assert_eq!(packet(0x30, &[0; 321]).get(..3), Some(&[0x30, 0xc1, 2][..]));
    }
}
