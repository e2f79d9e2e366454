//! The bytes from the broker, cut into packets: counts the answers that the flow control needs, and passes over messages that are larger
//! than the client library accepts. The library would close the connection over one, again and again if it is retained.
//!
//! Of a retained one that is too large, the topic is handed on, behind [`LARGE`], and one byte of the payload.

use crate::text::{QUOTE_MAX, escape_bytes};

/// Types of packets (MQTT 3.1.1, section 2.2.1).
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PINGRESP: u8 = 13;
/// Flags of a PUBLISH (section 3.3.1).
const RETAIN: u8 = 1;
const QOS: u8 = 6;
/// Stands before the topic of a message that is handed on in part. No filter of the daemon begins with a control character, so no other topic
/// that comes does.
pub(super) const LARGE: u8 = 0x01;
/// A message of so many bytes, without its fixed header, has a length of three bytes or more: there is room for [`LARGE`] where a short topic
/// needs two.
const LARGE_LEAST: usize = 128 * 128;
/// Longest topic that is handed on so: the daemon publishes on none that is longer.
const TOPIC_MAX: usize = 4096;

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
    /// Bytes to come behind those, to be passed over: those before are the part of a large message that is handed on.
    behind: usize,
    /// The large message under way.
    skipped: Option<Skipped>,
    told: bool,
    /// Answers that have come and were not counted yet.
    pub connacks: u32,
    pub pingresps: u32,
}

/// A message that is passed over, for the log.
struct Skipped {
    /// Bytes without the fixed header, and the first of them.
    size: usize,
    head: Vec<u8>,
    retained: bool,
}

impl Incoming {
    /// Messages of more than `max` bytes, without their fixed header, are passed over.
    pub fn new(max: usize) -> Self {
        Self { max, header: Vec::new(), ready: Vec::new(), left: 0, behind: 0, skipped: None, told: false, connacks: 0, pingresps: 0 }
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
            let is_handed_on = self.skipped.is_none() || self.behind > 0;
            self.skip(bytes.get(from..from + count).unwrap_or_default());
            if is_handed_on {
                bytes.copy_within(from..from + count, to);
                to += count;
            }
            from += count;
            if self.left == 0 {
                self.left = std::mem::take(&mut self.behind);
            }
        }
        to
    }

    /// Whether this byte is the last of a fixed header (MQTT 3.1.1, section 2.2) that is to be handed on. That of a large message which is
    /// handed on in part has the length of the topic behind it.
    pub fn read_header(&mut self, byte: u8) -> bool {
        self.header.push(byte);
        let Some((&kind, rest)) = self.header.split_first() else { return false };
        let Some(end) = rest.iter().take(4).position(|digit| digit & 0x80 == 0) else {
            let is_mqtt = rest.len() < 4;
            if !is_mqtt {
                // which the library shall say
                self.left = usize::MAX;
            }
            return !is_mqtt;
        };
        let (length, topic_length) = rest.split_at(end + 1);
        let size = length.iter().rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7f));
        if kind >> 4 != PUBLISH || size <= self.max {
            self.left = size;
            match kind >> 4 {
                CONNACK => self.connacks += 1,
                PINGRESP => self.pingresps += 1,
                _ => {}
            }
            return true;
        }
        let retained = kind & RETAIN != 0;
        let (topic, head) = match *topic_length {
            _ if !retained || kind & QOS != 0 || size < LARGE_LEAST => (None, Vec::new()),
            [high, low] => (Some(usize::from(u16::from_be_bytes([high, low]))).filter(|length| *length <= TOPIC_MAX), vec![high, low]),
            _ => return false,
        };
        self.left = size - head.len();
        self.header.clear();
        self.skipped = Some(Skipped { size, head, retained });
        let Some(topic) = topic else { return false };
        self.header.push(kind);
        write_length(&mut self.header, 2 + 1 + topic + 1);
        self.header.extend_from_slice(&u16::try_from(1 + topic).unwrap_or_default().to_be_bytes());
        self.header.push(LARGE);
        self.behind = self.left - (topic + 1);
        self.left = topic + 1;
        true
    }

    /// Part of a message that is passed over; at its end it is said which one.
    fn skip(&mut self, bytes: &[u8]) {
        let Some(Skipped { size, head, retained }) = &mut self.skipped else { return };
        let missing = (2 + QUOTE_MAX).saturating_sub(head.len());
        head.extend(bytes.iter().take(missing));
        if self.left > 0 || self.behind > 0 {
            return;
        }
        let topic = match head.as_slice() {
            [high, low, topic @ ..] => topic.get(..u16::from_be_bytes([*high, *low]).into()).unwrap_or(topic),
            _ => &[],
        };
        let level = if self.told { log::Level::Debug } else { log::Level::Warn };
        let (topic, max) = (escape_bytes(topic), self.max);
        let (what, hint) = match retained {
            true => ("a retained message", "; clear it, unless it is below N/<portal ID>, where the bridge does"),
            false => ("a message", ""),
        };
        log::log!(level, "{what} of {size} bytes on {topic} is passed over: more than {max}{hint}");
        self.told = true;
        self.skipped = None;
    }
}

/// The length of a packet in its fixed header (MQTT 3.1.1, section 2.2.3).
pub(super) fn write_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let digit = u8::try_from(length % 128).unwrap_or_default();
        length /= 128;
        out.push(if length > 0 { digit | 0x80 } else { digit });
        if length == 0 {
            break;
        }
    }
}
