//! The bytes from the broker, cut into packets: counts the answers that the flow control needs, and passes over messages that are larger
//! than the client library accepts. The library would close the connection over one, again and again if it is retained.

use crate::text::{QUOTE_MAX, escape_bytes};

/// Types of packets (MQTT 3.1.1, section 2.2.1).
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PINGRESP: u8 = 13;

/// The position in the bytes from the broker: between two packets, in a fixed header, or in a body.
pub(super) struct Incoming {
    /// Longest message that is handed on, without its fixed header.
    max: usize,
    /// A fixed header whose end has not come yet.
    pub header: Vec<u8>,
    /// A fixed header that is to be handed on next.
    pub ready: Vec<u8>,
    /// Bytes to come after the fixed header.
    left: usize,
    /// They are passed over: how many there were, and the first of them.
    skipped: Option<(usize, Vec<u8>)>,
    told: bool,
    /// Answers that have come and were not counted yet.
    pub connacks: u32,
    pub pingresps: u32,
}

impl Incoming {
    /// Messages of more than `max` bytes, without their fixed header, are passed over.
    pub fn new(max: usize) -> Self {
        Self { max, header: Vec::new(), ready: Vec::new(), left: 0, skipped: None, told: false, connacks: 0, pingresps: 0 }
    }

    /// Moves what is to be handed on to the front, and says how much it is. To be called between two packets or within a body.
    pub fn sift(&mut self, bytes: &mut [u8]) -> usize {
        let (mut from, mut to) = (0, 0);
        while let Some(byte) = bytes.get(from).copied() {
            if self.left == 0 {
                from += 1;
                if self.read_header(byte) {
                    // it has come with these bytes, so there is room for it before `from`
                    if let Some(place) = bytes.get_mut(to..to + self.header.len()) {
                        place.copy_from_slice(&self.header);
                    }
                    to += self.header.len();
                    self.header.clear();
                }
                continue;
            }
            let count = self.left.min(bytes.len() - from);
            self.left -= count;
            if self.skipped.is_some() {
                self.skip(bytes.get(from..from + count).unwrap_or_default());
            } else {
                bytes.copy_within(from..from + count, to);
                to += count;
            }
            from += count;
        }
        to
    }

    /// Whether this byte is the last of a fixed header (MQTT 3.1.1, section 2.2) that is to be handed on.
    pub fn read_header(&mut self, byte: u8) -> bool {
        self.header.push(byte);
        let Some((kind, length)) = self.header.split_first() else { return false };
        let goes_on = byte & 0x80 != 0;
        if length.is_empty() || (goes_on && length.len() < 4) {
            return false;
        }
        if goes_on {
            // this is no MQTT, which the library shall say
            self.left = usize::MAX;
            return true;
        }
        self.left = length.iter().rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7f));
        match kind >> 4 {
            CONNACK => self.connacks += 1,
            PINGRESP => self.pingresps += 1,
            _ => {}
        }
        if kind >> 4 == PUBLISH && self.left > self.max {
            self.skipped = Some((self.left, Vec::new()));
            self.header.clear();
            return false;
        }
        true
    }

    /// Part of a message that is passed over; at its end it is said which one.
    fn skip(&mut self, bytes: &[u8]) {
        let Some((size, head)) = &mut self.skipped else { return };
        let missing = (2 + QUOTE_MAX).saturating_sub(head.len());
        head.extend(bytes.iter().take(missing));
        if self.left > 0 {
            return;
        }
        let topic = match head.as_slice() {
            [high, low, topic @ ..] => topic.get(..u16::from_be_bytes([*high, *low]).into()).unwrap_or(topic),
            _ => &[],
        };
        let level = if self.told { log::Level::Debug } else { log::Level::Warn };
        let (topic, max) = (escape_bytes(topic), self.max);
        log::log!(level, "a message of {size} bytes on {topic} is passed over: more than {max}; if it is retained, clear it");
        self.told = true;
        self.skipped = None;
    }
}
