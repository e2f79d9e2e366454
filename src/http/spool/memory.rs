//! Records that the disk does not take: in order, and no more of them than memory has room for.

use std::collections::VecDeque;

/// What a record costs beside its body.
const OVERHEAD: usize = 64;

#[derive(Debug)]
pub struct Memory {
    records: VecDeque<(u64, Box<[u8]>)>,
    bytes: usize,
    max: usize,
}

impl Memory {
    pub fn new(max: usize) -> Self {
        Self { records: VecDeque::new(), bytes: 0, max }
    }

    /// Takes a record in at the end. Gives how many of the oldest had to go for it.
    pub fn push(&mut self, seq: u64, body: &[u8]) -> u64 {
        self.bytes += body.len() + OVERHEAD;
        self.records.push_back((seq, body.into()));
        let mut dropped = 0;
        while self.bytes > self.max && self.pop().is_some() {
            dropped += 1;
        }
        dropped
    }

    /// Takes the oldest out.
    pub fn pop(&mut self) -> Option<(u64, Box<[u8]>)> {
        let (seq, body) = self.records.pop_front()?;
        self.bytes = self.bytes.saturating_sub(body.len() + OVERHEAD);
        if self.records.is_empty() {
            self.records = VecDeque::new();
        }
        Some((seq, body))
    }

    /// Puts the oldest back.
    pub fn put_back(&mut self, seq: u64, body: Box<[u8]>) {
        self.bytes += body.len() + OVERHEAD;
        self.records.push_front((seq, body));
    }

    /// Nothing up to this one is needed any more.
    pub fn forget(&mut self, through: u64) {
        while self.first().is_some_and(|seq| seq <= through) {
            self.pop();
        }
    }

    pub fn get(&self, seq: u64) -> Option<&[u8]> {
        let at = self.records.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        self.records.get(at).map(|(_, body)| &**body)
    }

    /// The number of the oldest.
    pub fn first(&self) -> Option<u64> {
        self.records.front().map(|(seq, _)| *seq)
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    #[cfg(test)]
    pub fn cost(&self) -> (usize, usize) {
        (self.bytes, self.records.capacity())
    }
}
