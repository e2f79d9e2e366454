//! What is to be published, in order, and no more than once an item: the payload is made when the link has room, from the latest
//! value, so that a slow broker costs intermediate values and nothing else.

use std::collections::{BTreeSet, VecDeque};

use super::items::ServiceId;
use super::limits;

/// One entry of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Whatever the item's state wants when its turn comes: its value, or an empty payload.
    Item(ServiceId, usize),
    /// The next of the stale topics is cleared.
    Stale,
    /// The sweep may begin: everything queued before it has been sent.
    Sweep,
    /// The next of the completions is sent: everything queued before it has been.
    Completion,
}

/// Topics that belong to no item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    Status,
    Mode,
    Serial,
    KeepAlive,
    Heartbeat,
    Probe,
}

/// What goes out before everything that is queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Express {
    Special(Special),
    /// The answer to a read.
    Answer(ServiceId, usize),
}

#[derive(Debug, Default)]
pub struct Outbox {
    express: VecDeque<Express>,
    queue: VecDeque<Entry>,
    /// Each once, however often a broker sends it.
    stale: BTreeSet<String>,
    completions: VecDeque<Option<Box<str>>>,
    /// Express entries since the last one of the queue.
    overtaken: u32,
}

/// So many entries of the queue belong to no item: stale topics and completions.
const SPARE: usize = limits::STALE + limits::COMPLETIONS;

/// So many answers may overtake one queued value.
const OVERTAKE: u32 = 8;

impl Outbox {
    pub fn push(&mut self, id: ServiceId, index: usize) {
        self.queue.push_back(Entry::Item(id, index));
    }

    /// False when it waits already.
    pub fn push_stale(&mut self, topic: &str) -> bool {
        let is_new = self.stale.insert(topic.to_owned());
        if is_new {
            self.queue.push_back(Entry::Stale);
        }
        is_new
    }

    pub fn push_sweep(&mut self) {
        self.queue.push_back(Entry::Sweep);
    }

    /// False when so many wait already: their senders ask faster than the broker takes the answers.
    pub fn push_completion(&mut self, echo: Option<Box<str>>) -> bool {
        let room = self.completions.len() < limits::COMPLETIONS;
        if room {
            self.completions.push_back(echo);
            self.queue.push_back(Entry::Completion);
        }
        room
    }

    pub fn push_answer(&mut self, id: ServiceId, index: usize) {
        self.express.push_back(Express::Answer(id, index));
    }

    /// An item has another index.
    pub fn move_item(&mut self, id: ServiceId, from: usize, to: usize) {
        for entry in &mut self.queue {
            if *entry == Entry::Item(id, from) {
                *entry = Entry::Item(id, to);
            }
        }
        for entry in &mut self.express {
            if *entry == Express::Answer(id, from) {
                *entry = Express::Answer(id, to);
            }
        }
    }

    /// Once, however often it is asked for.
    pub fn push_special(&mut self, special: Special) {
        if !self.has_special(special) {
            self.express.push_back(Express::Special(special));
        }
    }

    /// Whether it waits to be published.
    pub fn has_special(&self, special: Special) -> bool {
        self.express.contains(&Express::Special(special))
    }

    pub fn pop_express(&mut self) -> Option<Express> {
        if self.overtaken >= OVERTAKE && !self.queue.is_empty() {
            return None;
        }
        let entry = self.express.pop_front()?;
        self.overtaken += 1;
        Some(entry)
    }

    pub fn pop(&mut self) -> Option<Entry> {
        self.overtaken = 0;
        self.queue.pop_front()
    }

    pub fn pop_stale(&mut self) -> Option<String> {
        self.stale.pop_first()
    }

    pub fn pop_completion(&mut self) -> Option<Option<Box<str>>> {
        self.completions.pop_front()
    }

    /// Forgets everything but the completions, which are answered after the next link is up.
    pub fn clear(&mut self) -> Vec<Option<Box<str>>> {
        self.express.clear();
        self.queue.clear();
        self.stale.clear();
        // a long outage leaves no large buffers behind
        self.queue.shrink_to(1024);
        std::mem::take(&mut self.completions).into()
    }

    /// Services are gone, and their entries with them. Looked for only when the queue is clearly larger than `most` items can make it, so that it
    /// costs little and is bounded, however often services come and go.
    pub fn forget(&mut self, most: usize, is_there: impl Fn(ServiceId) -> bool) {
        let most = most + most / 4 + SPARE;
        if self.queue.len() > most {
            self.queue.retain(|entry| !matches!(entry, Entry::Item(id, _) if !is_there(*id)));
        }
        if self.express.len() > most {
            self.express.retain(|entry| !matches!(entry, Express::Answer(id, _) if !is_there(*id)));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.express.is_empty() && self.queue.is_empty()
    }

    pub fn len(&self) -> usize {
        self.express.len() + self.queue.len()
    }

    pub fn stale(&self) -> usize {
        self.stale.len()
    }
}
