//! Emitting at a rate: which signals, when each is due, and what was sent.

use std::time::Duration;

use anyhow::Result;

use crate::clock;
use crate::fake::{Service, changed_signal, set_serial};
use crate::model::{Item, Value};

/// How changes are told.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Style {
    /// One `ItemsChanged` for up to `batch` items of a service.
    Items { batch: usize },
    /// One `PropertiesChanged` for each item.
    Properties,
}

#[derive(Clone, Copy)]
pub enum Until {
    Seconds(f64),
    Values(u64),
}

#[derive(Clone, Copy)]
pub struct Emission {
    /// Changes a second; `None`: as fast as the bus takes them.
    pub rate: Option<f64>,
    pub until: Until,
    pub style: Style,
    /// A service that is left out, though it is there.
    pub without: Option<usize>,
}

/// What was sent.
#[derive(Clone, Debug)]
pub struct Emitted {
    pub values: u64,
    pub signals: u64,
    pub started: f64,
    pub ended: f64,
    /// The furthest it was behind its rate, in seconds: how long the bus made the services wait.
    pub behind: f64,
    /// Values by service.
    pub by_service: Vec<u64>,
}

/// A signal ready to go.
struct Prepared {
    service: usize,
    bytes: Vec<u8>,
    places: Vec<usize>,
    items: Vec<usize>,
    last: Option<f64>,
}

pub struct Emitter {
    emission: Emission,
    signals: Vec<Prepared>,
    next: usize,
    sent: Emitted,
}

/// Signals sent flat out before calls are answered again.
const FLAT_OUT_TURN: usize = 64;

pub fn prepare(services: &[Service], emission: &Emission) -> Emitter {
    let mut signals = Vec::new();
    for (index, service) in services.iter().enumerate() {
        if !service.moves || service.absent || emission.without == Some(index) {
            continue;
        }
        let moving: Vec<_> = service.items.iter().enumerate().filter(|(_, item)| matches!(item.value, Value::Double(_))).collect();
        let batch = match emission.style {
            Style::Items { batch } => batch.max(1),
            Style::Properties => 1,
        };
        for group in moving.chunks(batch) {
            let items: Vec<&Item> = group.iter().map(|(_, item)| *item).collect();
            let (bytes, places) = changed_signal(&items, emission.style);
            signals.push(Prepared { service: index, bytes, places, items: group.iter().map(|(n, _)| *n).collect(), last: None });
        }
    }
    shuffle(&mut signals);
    let started = clock::now();
    let sent = Emitted { values: 0, signals: 0, started, ended: started, behind: 0.0, by_service: vec![0; services.len()] };
    Emitter { emission: *emission, signals, next: 0, sent }
}

impl Emitter {
    /// Sends what is due. Returns how long until the next is, or `None` when all is done.
    pub fn turn(&mut self, services: &mut [Service]) -> Result<Option<Duration>> {
        let elapsed = clock::now() - self.sent.started;
        if self.signals.is_empty() || self.is_over(elapsed) {
            return Ok(None);
        }
        let Some(rate) = self.emission.rate else {
            for _ in 0..FLAT_OUT_TURN {
                if self.is_over(elapsed) {
                    break;
                }
                self.send_next(services)?;
            }
            return Ok(Some(Duration::ZERO));
        };
        let due = rate * elapsed;
        while (self.sent.values as f64) < due && !self.is_over(elapsed) {
            self.send_next(services)?;
        }
        let elapsed = clock::now() - self.sent.started;
        self.sent.behind = self.sent.behind.max(elapsed - self.sent.values as f64 / rate);
        let next = (self.sent.values + 1) as f64 / rate - elapsed;
        Ok(Some(Duration::from_secs_f64(next.clamp(0.0, 1.0))))
    }

    /// The last value sent of each item, by topic.
    pub fn last_values(&self, services: &[Service]) -> Vec<(String, f64)> {
        let mut values = Vec::new();
        for signal in &self.signals {
            let (Some(last), Some(service)) = (signal.last, services.get(signal.service)) else {
                continue;
            };
            let items = signal.items.iter().filter_map(|n| service.items.get(*n));
            values.extend(items.map(|item| (format!("{}{}", service.topic, item.path), last)));
        }
        values
    }

    pub fn finish(mut self) -> Emitted {
        self.sent.ended = clock::now();
        self.sent
    }

    fn is_over(&self, elapsed: f64) -> bool {
        match self.emission.until {
            Until::Seconds(seconds) => elapsed >= seconds,
            Until::Values(values) => self.sent.values >= values,
        }
    }

    fn send_next(&mut self, services: &mut [Service]) -> Result<()> {
        let turn = self.next;
        self.next = (turn + 1) % self.signals.len();
        let Some(signal) = self.signals.get_mut(turn) else { return Ok(()) };
        let Some(service) = services.get_mut(signal.service) else {
            return Ok(());
        };
        let value = clock::stamped();
        for (place, item) in signal.places.iter().zip(&signal.items) {
            if let Some(place) = signal.bytes.get_mut(*place..*place + 8) {
                place.copy_from_slice(&value.to_le_bytes());
            }
            if let Some(item) = service.items.get_mut(*item) {
                item.value = Value::Double(value);
            }
        }
        signal.last = Some(value);
        set_serial(&mut signal.bytes, service.connection.next_serial());
        service.connection.write(&signal.bytes)?;
        self.sent.values += signal.places.len() as u64;
        self.sent.signals += 1;
        if let Some(count) = self.sent.by_service.get_mut(signal.service) {
            *count += signal.places.len() as u64;
        }
        Ok(())
    }
}

/// The same order every time, so that runs can be compared; mixed, so that the services take turns.
fn shuffle(signals: &mut [Prepared]) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for i in (1..signals.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        signals.swap(i, (state % (i as u64 + 1)) as usize);
    }
}
