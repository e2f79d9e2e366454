//! What waits to be posted, oldest first: which records there are and how large, and which have to go when there is no room.
//! The records themselves are on disk.

use std::collections::VecDeque;

/// A record that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Grows from record to record.
    pub seq: u64,
    /// Bytes of its body.
    pub len: u32,
}

/// Never holds more than it was made for.
#[derive(Debug)]
pub struct Queue {
    entries: VecDeque<Entry>,
    bytes: u64,
    max_records: usize,
    max_bytes: u64,
}

impl Queue {
    pub fn new(max_records: usize, max_bytes: u64) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, max_records, max_bytes }
    }

    /// Takes a record in at the end. Gives how many of the oldest had to go for it.
    pub fn push(&mut self, entry: Entry) -> usize {
        self.entries.push_back(entry);
        self.bytes += u64::from(entry.len);
        let mut dropped = 0;
        while self.entries.len() > 1 && (self.entries.len() > self.max_records || self.bytes > self.max_bytes) {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    pub fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= u64::from(entry.len);
        Some(entry)
    }

    /// The oldest.
    pub fn front(&self) -> Option<Entry> {
        self.entries.front().copied()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
