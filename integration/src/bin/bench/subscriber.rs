//! A counting MQTT subscriber: raw MQTT 3.1.1 over TCP, one thread, little CPU.
//!
//! It looks at every topic below `N/<portal>/`, remembers the last value of each, and reads from a value that carries the time how long it took.
//! It is also every device that registers itself: it publishes what they would, and keeps what they are answered.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::time::TimeSpec;

use crate::clock;
use crate::histogram::Histogram;
use crate::packet;

/// The handle the measuring thread holds.
pub struct Subscriber {
    counts: Arc<Mutex<Counts>>,
    commands: Sender<Command>,
    wake: UnixStream,
    portal: String,
    thread: Option<JoinHandle<()>>,
    pub thread_id: i32,
}

enum Command {
    Publish { topic: String, payload: Vec<u8>, done: Sender<f64> },
    RoundTrips { items: Vec<String>, count: usize, gap: Duration, done: Sender<RoundTrips> },
    Quit,
}

/// What was counted since the last reset. Times are the benchmark's seconds, 0 for never.
pub struct Counts {
    /// Publishes of items, with and without payload.
    pub messages: u64,
    /// Of those, the values emitted since the reset.
    pub values: u64,
    pub empties: u64,
    /// Topics seen since the reset.
    pub topics: usize,
    pub first: f64,
    pub last: f64,
    pub last_new: f64,
    pub last_value: f64,
    pub completed: f64,
    pub completions: u64,
    pub echo: String,
    pub echoed: f64,
    pub latency: Histogram,
    /// What devices were answered.
    pub answers: Vec<Answer>,
    /// What a value emitted now would be at the time of the reset.
    since: f64,
    generation: u32,
    seen: HashMap<Box<[u8]>, Seen, BuildHasherDefault<Fnv>>,
    awaited: Option<(Vec<u8>, f64)>,
    arrived: Option<f64>,
}

/// A message to a device, and when it came.
pub struct Answer {
    pub topic: String,
    pub payload: Vec<u8>,
    pub at: f64,
}

/// What devices are answered on.
const ANSWERS: [&str; 2] = ["device/+/DBus", "device/+/Error"];

struct Seen {
    generation: u32,
    value: f64,
    /// Values emitted since the reset.
    values: u64,
}

/// The write test: from W to the N that shows the value.
pub struct RoundTrips {
    pub latency: Histogram,
    pub missed: usize,
}

/// How long a write may take before it counts as missed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(6);

impl Subscriber {
    /// Connects and subscribes to everything below `N/<portal>/`, and to the answers of devices.
    pub fn start(port: u16, portal: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("cannot connect to the broker on port {port}"))?;
        stream.set_nodelay(true)?;
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::RcvBuf, &(4 << 20))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&packet::connect("venus-mqtt-bench"))?;
        expect(&mut stream, packet::CONNACK_OK, "CONNACK")?;
        for filter in ANSWERS.into_iter().chain([format!("N/{portal}/#").as_str()]) {
            stream.write_all(&packet::subscribe(filter))?;
            expect(&mut stream, packet::SUBACK_OK, "SUBACK")?;
        }
        stream.set_nonblocking(true)?;

        let (commands, inbox) = mpsc::channel();
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let counts = Arc::new(Mutex::new(Counts::new()));
        let (tell, told) = mpsc::channel();
        let mut reader =
            Reader { stream, woken, counts: Arc::clone(&counts), portal: portal.to_owned(), buffer: vec![0; 1 << 20], filled: 0 };
        let thread = thread::Builder::new().name("subscriber".into()).spawn(move || {
            let _ = tell.send(nix::unistd::gettid().as_raw());
            if let Err(error) = reader.run(&inbox) {
                eprintln!("bench: the subscriber ended: {error:#}");
            }
        })?;
        let thread_id = told.recv().context("the subscriber did not start")?;
        Ok(Self { counts, commands, wake, portal: portal.to_owned(), thread: Some(thread), thread_id })
    }

    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the counts, keeps the last values.
    pub fn reset(&self) {
        self.counts().reset();
    }

    /// Sends `R/<portal>/keepalive`; returns when.
    pub fn keep_alive(&self, payload: &str) -> Result<f64> {
        self.publish(&format!("R/{}/keepalive", self.portal), payload)
    }

    /// Publishes; returns when.
    pub fn publish(&self, topic: &str, payload: &str) -> Result<f64> {
        let (done, is_done) = mpsc::channel();
        self.send(Command::Publish { topic: topic.to_owned(), payload: payload.as_bytes().to_vec(), done })?;
        is_done.recv().context("the subscriber is gone")
    }

    /// Prolongs the keep-alive without having everything published again.
    pub fn stay_awake(&self) -> Result<()> {
        self.keep_alive(r#"{"keepalive-options":["suppress-republish"]}"#).map(drop)
    }

    /// Writes `count` times, one after the other, to the `items` in turn.
    pub fn round_trips(&self, items: &[String], count: usize, gap: Duration) -> Result<RoundTrips> {
        let (done, is_done) = mpsc::channel();
        self.send(Command::RoundTrips { items: items.to_vec(), count, gap, done })?;
        is_done.recv().context("the subscriber is gone")
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| anyhow!("the subscriber is gone"))?;
        (&self.wake).write_all(b"!").context("the subscriber is gone")
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        drop(self.send(Command::Quit));
        // before the broker, which would be missed
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Counts {
    /// How many of `expected` have another last value here, leaving out topics that begin with `without`.
    pub fn wrong(&self, expected: &[(String, f64)], without: Option<&str>) -> usize {
        let considered = expected.iter().filter(|(topic, _)| without.is_none_or(|prefix| !topic.starts_with(prefix)));
        considered.filter(|(topic, value)| self.seen.get(topic.as_bytes()).is_none_or(|seen| seen.value != *value)).count()
    }

    /// Values emitted since the reset on topics that begin with `prefix`.
    pub fn values_below(&self, prefix: &str) -> u64 {
        let below = self.seen.iter().filter(|(topic, seen)| topic.starts_with(prefix.as_bytes()) && seen.generation == self.generation);
        below.map(|(_, seen)| seen.values).sum()
    }

    fn new() -> Self {
        Self {
            messages: 0,
            values: 0,
            empties: 0,
            topics: 0,
            first: 0.0,
            last: 0.0,
            last_new: 0.0,
            last_value: 0.0,
            completed: 0.0,
            completions: 0,
            echo: String::new(),
            echoed: 0.0,
            latency: Histogram::new(),
            answers: Vec::new(),
            since: clock::stamped(),
            generation: 1,
            seen: HashMap::default(),
            awaited: None,
            arrived: None,
        }
    }

    fn reset(&mut self) {
        let (seen, mut latency) = (std::mem::take(&mut self.seen), std::mem::replace(&mut self.latency, Histogram::new()));
        latency.clear();
        let generation = self.generation + 1;
        *self = Self { seen, latency, generation, ..Self::new() };
    }

    /// Takes a publish; `topic` is what follows `N/<portal>/`.
    fn take(&mut self, topic: &[u8], payload: &[u8], now: f64) {
        match topic {
            b"heartbeat" | b"keepalive" => return,
            b"full_publish_completed" => {
                self.completions += 1;
                self.completed = now;
                if !self.echo.is_empty() && find(payload, self.echo.as_bytes()).is_some() {
                    self.echoed = now;
                }
                return;
            }
            _ => {}
        }
        self.messages += 1;
        self.last = now;
        if self.first == 0.0 {
            self.first = now;
        }
        let number = number(payload);
        let fresh = number.filter(|value| *value >= self.since && *value <= clock::VALUE_BASE + now + 0.001);
        if !self.seen.contains_key(topic) {
            self.seen.insert(topic.into(), Seen { generation: 0, value: 0.0, values: 0 });
        }
        let Some(seen) = self.seen.get_mut(topic) else { return };
        if seen.generation != self.generation {
            (seen.generation, seen.values) = (self.generation, 0);
            self.topics += 1;
            self.last_new = now;
        }
        seen.value = number.unwrap_or(f64::NEG_INFINITY);
        self.empties += u64::from(payload.is_empty());
        if let Some(value) = fresh {
            seen.values += 1;
            self.values += 1;
            self.last_value = now;
            self.latency.add(((clock::VALUE_BASE + now - value).max(0.0) * 1e6) as u64);
        }
        if self.awaited.as_ref().is_some_and(|(item, value)| item == topic && number == Some(*value)) {
            self.arrived.get_or_insert(now);
        }
    }
}

struct Reader {
    stream: TcpStream,
    woken: UnixStream,
    counts: Arc<Mutex<Counts>>,
    portal: String,
    buffer: Vec<u8>,
    filled: usize,
}

impl Reader {
    fn run(&mut self, inbox: &Receiver<Command>) -> Result<()> {
        loop {
            let mut ready = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN), PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot poll the broker"),
            }
            let [broker, command] = ready.map(|fd| fd.any().unwrap_or(false));
            if broker {
                self.read()?;
            }
            if !command {
                continue;
            }
            drop((&self.woken).read(&mut [0; 64]));
            while let Ok(command) = inbox.try_recv() {
                match command {
                    Command::Quit => return Ok(()),
                    Command::Publish { topic, payload, done } => {
                        let sent = clock::now();
                        self.write(&packet::publish(&topic, &payload))?;
                        let _ = done.send(sent);
                    }
                    Command::RoundTrips { items, count, gap, done } => drop(done.send(self.round_trips(&items, count, gap)?)),
                }
            }
        }
    }

    fn round_trips(&mut self, items: &[String], count: usize, gap: Duration) -> Result<RoundTrips> {
        let mut trips = RoundTrips { latency: Histogram::new(), missed: 0 };
        for (n, item) in items.iter().cycle().take(count).enumerate() {
            let topic = format!("W/{}/{item}", self.portal);
            let text = format!("{}.{:03}5", 100 + n, n * 37 % 1000);
            self.lock().awaited = Some((item.as_bytes().to_vec(), text.parse()?));
            self.lock().arrived = None;
            let sent = clock::now();
            self.write(&packet::publish(&topic, format!("{{\"value\": {text}}}").as_bytes()))?;
            while self.lock().arrived.is_none() && clock::now() - sent < WRITE_TIMEOUT.as_secs_f64() {
                self.read_for(WRITE_TIMEOUT)?;
            }
            match self.lock().arrived {
                Some(arrived) => trips.latency.add(((arrived - sent) * 1e6) as u64),
                None => trips.missed += 1,
            }
            let next = clock::now() + gap.as_secs_f64();
            loop {
                let left = next - clock::now();
                if left <= 0.0 {
                    break;
                }
                self.read_for(Duration::from_secs_f64(left))?;
            }
        }
        self.lock().awaited = None;
        Ok(trips)
    }

    fn read_for(&mut self, timeout: Duration) -> Result<()> {
        let mut ready = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut ready, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Ok(_) => self.read(),
            Err(error) => Err(error).context("cannot poll the broker"),
        }
    }

    fn read(&mut self) -> Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        match self.stream.read(self.buffer.get_mut(self.filled..).unwrap_or_default()) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(count) => self.filled += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => return Err(error).context("cannot read from the broker"),
        }
        let now = clock::now();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        while let Some(packet) = packet::next(self.buffer.get(taken..self.filled).unwrap_or_default()) {
            taken += packet.length;
            let Some((topic, payload)) = packet.publish() else { continue };
            let below = topic.strip_prefix(b"N/").and_then(|rest| rest.strip_prefix(self.portal.as_bytes()));
            match below.and_then(|rest| rest.strip_prefix(b"/")) {
                Some(topic) => counts.take(topic, payload, now),
                None => {
                    let topic = String::from_utf8_lossy(topic).into_owned();
                    counts.answers.push(Answer { topic, payload: payload.to_vec(), at: now });
                }
            }
        }
        drop(counts);
        self.buffer.copy_within(taken..self.filled, 0);
        self.filled -= taken;
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
                }
                Err(error) => return Err(error).context("cannot write to the broker"),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn expect(stream: &mut TcpStream, expected: &[u8], what: &str) -> Result<()> {
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).with_context(|| format!("the broker sends no {what}"))?;
    if answer != expected {
        bail!("the broker's {what} is {answer:?}");
    }
    Ok(())
}

/// The number after `"value":`, if that is what the payload has.
fn number(payload: &[u8]) -> Option<f64> {
    const KEY: &[u8] = b"\"value\":";
    let at = if payload.get(1..1 + KEY.len()) == Some(KEY) { 1 } else { find(payload, KEY)? };
    let rest = payload.get(at + KEY.len()..)?.trim_ascii_start();
    let end = rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).unwrap_or(rest.len());
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// FNV-1a: short for short keys, and topics are no attack here.
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_payloads() {
        assert_eq!(number(br#"{"value":926.0}"#), Some(926.0));
        assert_eq!(number(br#"{"min": 0, "value": -1.5e3, "max": 2}"#), Some(-1500.0));
        assert_eq!(number(br#"{"value":null}"#), None);
        assert_eq!(number(br#"{"value":"7"}"#), None);
        assert_eq!(number(b""), None);
    }

    #[test]
    fn a_stamped_value_counts_once_and_old_ones_do_not() {
        let mut counts = Counts::new();
        let value = clock::stamped();
        let payload = format!("{{\"value\":{value}}}");
        counts.take(b"battery/1/Soc", payload.as_bytes(), clock::now());
        assert_eq!((counts.values, counts.topics, counts.messages, counts.latency.count()), (1, 1, 1, 1));
        counts.reset();
        counts.take(b"battery/1/Soc", payload.as_bytes(), clock::now());
        assert_eq!((counts.values, counts.topics, counts.messages), (0, 1, 1));
        assert_eq!(counts.wrong(&[("battery/1/Soc".into(), value)], None), 0);
        assert_eq!(counts.wrong(&[("battery/1/Soc".into(), value), ("battery/1/X".into(), 1.0)], None), 1);
        assert_eq!(counts.wrong(&[("battery/1/X".into(), 1.0)], Some("battery/1/")), 0);
    }

    #[test]
    fn special_topics_are_no_items() {
        let mut counts = Counts::new();
        counts.echo = "e7".into();
        counts.take(b"heartbeat", br#"{"value":1}"#, 1.0);
        counts.take(b"full_publish_completed", br#"{"full-publish-completed-echo":"e7","value":1}"#, 2.0);
        assert_eq!((counts.messages, counts.completions, counts.completed, counts.echoed), (0, 1, 2.0, 2.0));
    }
}
