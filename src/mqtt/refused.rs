//! Packets that a broker closes the connection over: a filter it does not accept, a message beyond its limit. MQTT 3.1.1 has no other
//! way to refuse them, so they are found by what was sent last.
//!
//! What a connection had sent and the broker had not confirmed when it closed is suspect. On the next connection each suspect is sent
//! alone: after everything before it was confirmed, and before anything else. If the connection closes then, it was that packet, and it
//! is left out from then on. So a refused packet costs the connection twice; three times, if more was unconfirmed than is remembered.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::text::escape;

/// Suspects at once. More packets than that do not fit into the window that they leave.
pub(super) const SUSPECTS: usize = 128;
/// Filters and topics left out at once; beyond, the oldest is tried again.
pub(super) const LEFT_OUT: usize = 64;
/// A connection that begins later than this tries again what is left out: the broker may have another configuration.
const LEFT_OUT_FOR: Duration = Duration::from_secs(3600);
/// Two topics left out at messages of this size, in bytes, or more show that the broker limits packets. Limits below it are rare.
const LIMIT_LEAST: usize = 1024;
/// So many topics left out at messages of this size or more show it, too. Below, messages are refused for another reason.
const LIMIT_RARE: (usize, usize) = (4, 256);
/// From so many refused sizes on the limit is looked for between the largest message taken and the smallest refused. Each costs a connection.
const SIZES_ALONE: usize = 3;
/// A topic whose messages were refused at so many sizes has only those below [`LIMIT_LEAST`] sent. Each size costs the connection twice.
const SIZES: u32 = 3;
/// The daemon cannot do without filters with wildcards. They are left out after one more try than others, should the broker have closed
/// the connection for another reason.
const TRIES_WILD: u32 = 2;

/// While another client seems to use the same client ID, which ends connections at any moment, every packet needs so many tries.
const TRIES_DOUBTED: u32 = 3;

/// What a packet is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Subject {
    Filter(String),
    Topic(String),
}

/// What a broker closes, or may close, the connection over.
#[derive(Default)]
pub(super) struct Refused {
    /// With the number of connections that closed while it was alone, and the size of its packet.
    suspects: BTreeMap<Subject, (u32, usize)>,
    left_out: VecDeque<LeftOut>,
    /// Messages of this size, in bytes, are left out on every topic: the broker closes the connection at them.
    limit: Option<(usize, Instant)>,
    /// Messages refused that were smaller than any before.
    sizes: usize,
    /// Size of the largest message that the broker has taken on this connection, of those that [`Refused::taken`] was told.
    largest_taken: usize,
}

struct LeftOut {
    subject: Subject,
    /// Size of the smallest packet refused, in bytes.
    size: usize,
    /// How many packets were refused, each smaller than the one before.
    refusals: u32,
    since: Instant,
}

impl LeftOut {
    /// Packets of this size, in bytes, or more are left out. Smaller ones are sent: the size may be the reason. A message without a
    /// payload, which clears the topic, is sent until one was refused itself.
    fn least(&self) -> usize {
        let Subject::Topic(topic) = &self.subject else { return 0 };
        let empty = empty_size(topic);
        if self.size <= empty {
            return self.size;
        }
        let least = match self.refusals {
            // it is not the size
            2.. if self.size < LIMIT_LEAST => 0,
            SIZES.. => LIMIT_LEAST.min(self.size),
            _ => self.size,
        };
        least.max(empty + 1)
    }
}

/// Size of a PUBLISH without a payload, in bytes.
fn empty_size(topic: &str) -> usize {
    let remaining = 2 + topic.len();
    let digits = match remaining {
        0..128 => 1,
        128..16_384 => 2,
        _ => 3,
    };
    1 + digits + remaining
}

impl Refused {
    /// A connection begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.left_out.retain(|left_out| now.saturating_duration_since(left_out.since) < LEFT_OUT_FOR);
        self.limit = self.limit.filter(|(_, since)| now.saturating_duration_since(*since) < LEFT_OUT_FOR);
        if self.limit.is_none() {
            self.sizes = 0;
        }
        self.largest_taken = 0;
    }

    /// The broker has taken these packets.
    pub(super) fn taken(&mut self, mut packets: &[u8]) {
        while let Some((kind, size, _)) = split_packet(&mut packets) {
            if kind >> 4 == 3 {
                self.largest_taken = self.largest_taken.max(size);
            }
        }
    }

    /// Whether one more left out lets another one be tried again.
    pub(super) fn is_full(&self) -> bool {
        self.left_out.len() >= LEFT_OUT
    }

    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    pub(super) fn is_suspect(&self, subject: &Subject) -> bool {
        self.suspects.contains_key(subject)
    }

    pub(super) fn leaves_anything_out(&self) -> bool {
        !self.left_out.is_empty() || self.limit.is_some()
    }

    pub(super) fn leaves_out(&self, subject: &Subject, size: usize) -> bool {
        let is_over = matches!(subject, Subject::Topic(_)) && self.limit.is_some_and(|(limit, _)| size >= limit);
        is_over || self.left_out.iter().any(|left_out| left_out.subject == *subject && size >= left_out.least())
    }

    /// The broker has taken this.
    pub(super) fn clear(&mut self, subject: &Subject) {
        self.suspects.remove(subject);
    }

    pub(super) fn clear_all(&mut self) {
        self.suspects.clear();
    }

    /// The broker has closed the connection, and has not confirmed these packets, oldest first. `is_doubted`: it may
    /// have done so for another reason. Returns whether it is known now which one it refuses.
    pub(super) fn closed(&mut self, now: Instant, unconfirmed: &[(Subject, usize)], is_doubted: bool) -> bool {
        let known =
            if let [(subject, size)] = unconfirmed { self.suspects.get_mut(subject).map(|known| (subject, size, known)) } else { None };
        let Some((subject, size, (tries, _))) = known else {
            self.suspect(unconfirmed);
            return false;
        };
        *tries += 1;
        let is_wild = matches!(subject, Subject::Filter(filter) if filter.contains(['+', '#']));
        let needed = if is_doubted { TRIES_DOUBTED } else { 1 }.max(if is_wild { TRIES_WILD } else { 1 });
        if *tries < needed {
            return false;
        }
        self.suspects.remove(subject);
        let again = "reload the configuration to try it again";
        match subject {
            Subject::Topic(topic) => log::warn!(
                "the broker closes the connection at a message of {size} bytes on {}: it is left out; check the broker's limit of packets (max_packet_size), and {again}",
                escape(topic)
            ),
            Subject::Filter(filter) if is_wild => log::error!(
                "the broker closes the connection at the subscription to {}: it is left out, and messages on these topics are not received; {again}",
                escape(filter)
            ),
            Subject::Filter(filter) => {
                log::warn!("the broker closes the connection at the subscription to {}: it is left out; {again}", escape(filter));
            }
        }
        self.leave_out(now, subject.clone(), *size);
        self.learn_limit(now);
        true
    }

    /// A limit of the broker would cost the connection twice for each topic with a message beyond it.
    fn learn_limit(&mut self, now: Instant) {
        let topics = || self.left_out.iter().filter(|left_out| matches!(left_out.subject, Subject::Topic(_)));
        let sizes = |from| topics().map(|left_out| left_out.size).filter(move |size| *size >= from);
        let of = |count, from| sizes(from).min().filter(|least| sizes(from).count() >= count && *least > self.largest_taken);
        let Some(mut least) = of(LIMIT_RARE.0, LIMIT_RARE.1).or_else(|| of(2, LIMIT_LEAST)) else { return };
        if self.limit.is_none_or(|(limit, _)| least < limit) {
            self.sizes += 1;
            if self.sizes >= SIZES_ALONE {
                least = (self.largest_taken + least).div_ceil(2).max(LIMIT_RARE.1);
            }
            log::warn!(
                "the broker closes the connection at large messages: those of {least} bytes and more are left out on all topics; check the broker's limit of packets (max_packet_size), and reload the configuration to try them again"
            );
            self.limit = Some((least, now));
            self.suspects.retain(|subject, (_, size)| matches!(subject, Subject::Filter(_)) || *size < least);
        }
    }

    fn suspect(&mut self, unconfirmed: &[(Subject, usize)]) {
        if !unconfirmed.is_empty() {
            let old = std::mem::take(&mut self.suspects);
            let last = unconfirmed.iter().rev().take(SUSPECTS);
            self.suspects =
                last.map(|(subject, size)| (subject.clone(), (old.get(subject).map_or(0, |(tries, _)| *tries), *size))).collect();
        }
    }

    fn leave_out(&mut self, now: Instant, subject: Subject, size: usize) {
        let known = self.left_out.iter_mut().find(|left_out| left_out.subject == subject);
        if let Some(known) = known {
            known.size = known.size.min(size);
            known.refusals = known.refusals.saturating_add(1);
            return;
        }
        if self.left_out.len() >= LEFT_OUT {
            self.left_out.pop_front();
        }
        self.left_out.push_back(LeftOut { subject, size, refusals: 1, since: now });
    }
}

/// What the whole packets in `bytes` are about, with their sizes; of what is cut off at the end, what can be read.
pub(super) fn subjects(bytes: &[u8]) -> Vec<(Subject, usize)> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some((kind, size, body)) = split_packet(&mut rest) {
        match kind >> 4 {
            3 => {
                if let Some(topic) = take_text(&mut &*body) {
                    found.push((Subject::Topic(topic), size));
                }
            }
            8 => {
                let mut body = body.get(2..).unwrap_or_default();
                while let Some(filter) = take_text(&mut body) {
                    found.push((Subject::Filter(filter), size));
                    body = body.get(1..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    found
}

/// The first packet (MQTT 3.1.1, section 2): its first byte, its size, and its body as far as it is there.
pub(super) fn split_packet<'a>(bytes: &mut &'a [u8]) -> Option<(u8, usize, &'a [u8])> {
    let (kind, after) = bytes.split_first()?;
    let digits = after.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let length = after.iter().take(digits).rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7f));
    let body = after.get(digits..).unwrap_or_default();
    let (body, rest) = body.split_at(length.min(body.len()));
    *bytes = rest;
    Some((*kind, 1 + digits + length, body))
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    *bytes = rest;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(n: usize) -> (Subject, usize) {
        (Subject::Topic(format!("N/x/{n}")), 100)
    }

    /// A broker that closes the connection at some of the packets, and one side that sends all of them at every connect. Returns how
    /// many connections it takes until one stays.
    fn connections(count: usize, bad: &[usize]) -> usize {
        let now = Instant::now();
        let mut refused = Refused::default();
        for connection in 1.. {
            refused.begin(now);
            let all: Vec<_> = (0..count).map(topic).filter(|(subject, size)| !refused.leaves_out(subject, *size)).collect();
            let is_bad = |subject: &Subject| bad.iter().any(|bad| topic(*bad).0 == *subject);
            // as many as are unconfirmed when the first bad one arrives: all at first, then as many as the small window takes
            let behind = if refused.has_suspects() { 20 } else { count };
            let mut closed = false;
            for (index, (subject, _)) in all.iter().enumerate() {
                let alone = refused.is_suspect(subject);
                if is_bad(subject) {
                    let unconfirmed = if alone { &all[index..=index] } else { &all[index..(index + behind).min(all.len())] };
                    refused.closed(now, unconfirmed, false);
                    closed = true;
                    break;
                }
                if alone {
                    refused.clear(subject);
                }
            }
            if !closed {
                return connection;
            }
            assert!(connection < 100, "it does not converge");
        }
        unreachable!()
    }

    #[test]
    fn each_refused_packet_costs_the_connection_twice() {
        assert_eq!(connections(50, &[]), 1);
        assert_eq!(connections(50, &[7]), 3);
        assert_eq!(connections(50, &[0, 49]), 4);
        // the first that is refused is not among those remembered
        assert!(connections(1000, &[3]) <= 4);
        for n in 0..50 {
            assert!(connections(500, &[n, n * 7 + 3, 499]) <= 10, "{n}");
        }
    }

    /// Refuses a packet of each size on one topic, and returns from which size on packets are left out then.
    fn left_out_from(subject: &Subject, sizes: &[usize]) -> usize {
        let now = Instant::now();
        let mut refused = Refused::default();
        for size in sizes {
            assert!(!refused.leaves_out(subject, *size), "{size} of {sizes:?}");
            refused.closed(now, &[(subject.clone(), *size)], false);
            refused.closed(now, &[(subject.clone(), *size)], false);
            assert!(refused.leaves_out(subject, *size));
        }
        let from = (0..10_000).find(|size| refused.leaves_out(subject, *size)).unwrap();
        assert!((from..10_000).all(|size| refused.leaves_out(subject, size)));
        refused.begin(now + LEFT_OUT_FOR);
        assert!(!refused.leaves_out(subject, 10_000));
        from
    }

    #[test]
    fn a_smaller_message_is_sent_again() {
        let subject = topic(1).0;
        assert_eq!(left_out_from(&subject, &[5000]), 5000);
        assert_eq!(left_out_from(&subject, &[5000, 1500]), 1500);
        assert_eq!(left_out_from(&subject, &[5000, 4999, 4998]), LIMIT_LEAST, "no more sizes are tried");
        assert_eq!(left_out_from(&subject, &[500]), 500);
    }

    #[test]
    fn a_message_that_clears_is_sent_until_one_was_refused() {
        for length in [5, 125, 126, 2000, 3000] {
            let subject = Subject::Topic("x".repeat(length));
            let mut empty = vec![0x31];
            let remaining = 2 + length;
            empty.extend(if remaining < 128 {
                vec![remaining as u8]
            } else {
                vec![(remaining % 128) as u8 | 0x80, (remaining / 128) as u8]
            });
            empty.extend((length as u16).to_be_bytes());
            empty.extend("x".repeat(length).bytes());
            let empty = empty.len();
            assert_eq!(empty_size(&"x".repeat(length)), empty);
            for least in [9000, 8000, 7000, empty + 500, empty + 10] {
                assert!(left_out_from(&subject, &[9500, 9400, least]) > empty, "{length}, {least}");
                assert!(left_out_from(&subject, &[9500, least]) > empty, "{length}, {least}");
            }
            assert_eq!(left_out_from(&subject, &[9500, empty]), empty);
            assert_eq!(left_out_from(&subject, &[empty]), empty);
        }
        let subject = topic(1).0;
        assert_eq!(left_out_from(&subject, &[5000, 500]), empty_size("N/x/1") + 1, "it is not the size");
    }

    #[test]
    fn a_limit_of_packets_is_found_after_two_topics() {
        let (now, large) = (Instant::now(), |n: usize| (topic(n).0, 5000 + n));
        let mut refused = Refused::default();
        let all: Vec<_> = (0..100).map(large).chain([topic(200)]).collect();
        refused.closed(now, &all, false);
        for n in [1, 0] {
            assert!(!refused.leaves_out(&large(50).0, 5050));
            refused.closed(now, &[large(n)], false);
        }
        assert!(refused.leaves_out(&large(50).0, 5050) && !refused.leaves_out(&large(50).0, 4999));
        assert!(!refused.leaves_out(&Subject::Filter("R/#".into()), usize::MAX));
        assert_eq!(refused.suspects.len(), 1, "what may be sent is still tried alone");
        refused.begin(now + LEFT_OUT_FOR);
        assert!(!refused.leaves_out(&large(50).0, 5050));
        // small messages are refused for another reason than their size
        for n in 0..10 {
            refused.closed(now, &[topic(n)], false);
            refused.closed(now, &[topic(n)], false);
        }
        assert!(!refused.leaves_out(&topic(50).0, 100));
    }

    /// A broker with a limit, and texts of these sizes, each on a topic of its own, between smaller messages. Returns how many connections
    /// it takes until one stays, and from which size on messages are left out then.
    fn connections_below(limit: usize, texts: &[usize]) -> (usize, usize) {
        let now = Instant::now();
        let mut refused = Refused::default();
        for connection in 1..100 {
            refused.begin(now);
            let mut all: Vec<_> = (0..20).map(topic).collect();
            all.extend(texts.iter().enumerate().map(|(n, size)| (Subject::Topic(format!("N/x/T/{n}")), *size)));
            all.retain(|(subject, size)| !refused.leaves_out(subject, *size));
            let Some(first) = all.iter().position(|(_, size)| *size > limit) else {
                let from = (0..10_000).find(|size| refused.leaves_out(&topic(1).0, *size));
                return (connection, from.unwrap_or(usize::MAX));
            };
            for (subject, size) in &all[..first] {
                refused.clear(subject);
                let length = size - 3;
                refused.taken(&[&[0x31, (length % 128) as u8 | 0x80, (length / 128) as u8][..], &vec![0; length]].concat());
            }
            // as many as are unconfirmed then: all at first, then as many as the small window takes
            let behind = if refused.has_suspects() { (first + 20).min(all.len()) } else { all.len() };
            let alone = refused.is_suspect(&all[first].0);
            refused.closed(now, if alone { &all[first..=first] } else { &all[first..behind] }, false);
        }
        panic!("it does not converge");
    }

    #[test]
    fn a_limit_of_packets_is_found_whatever_sizes_are_refused() {
        let descending: Vec<usize> = (0..14).map(|n| 5000 - n * 200).collect();
        let (connections, from) = connections_below(2000, &descending);
        assert!(connections <= 8 && (1000..=2400).contains(&from), "{connections} connections, {from}");
        let ascending: Vec<usize> = descending.iter().rev().copied().collect();
        assert!(connections_below(2000, &ascending).0 <= 4);
        // a small limit, and more texts than can be left out by their topics
        let (connections, from) = connections_below(500, &[600; 70]);
        assert!(connections <= 7 && from == 600, "{connections} connections, {from}");
        let mixed: Vec<usize> = (0..200).map(|n| 300 + n * 37 % 4000).collect();
        let (connections, from) = connections_below(1000, &mixed);
        assert!(connections <= 10 && (256..=1100).contains(&from), "{connections} connections, {from}");
    }

    /// Larger messages are taken: it is not the size for which these are refused.
    #[test]
    fn topics_that_are_refused_are_no_limit() {
        let now = Instant::now();
        let mut refused = Refused::default();
        refused.taken(&[&[0x31, 0xd0, 0x0f][..], &[0; 2000]].concat());
        for n in 0..10 {
            let large = (topic(n).0, 1500);
            refused.closed(now, std::slice::from_ref(&large), false);
            refused.closed(now, &[large], false);
        }
        assert!(!refused.leaves_out(&topic(50).0, 1500));
    }

    #[test]
    fn what_cannot_be_done_without_is_tried_once_more() {
        let now = Instant::now();
        let mut refused = Refused::default();
        for (filter, closed) in [("device/x/gone", 2), ("R/c0619ab1c2d3/#", 3)] {
            let subject = Subject::Filter(filter.into());
            for _ in 0..closed {
                assert!(!refused.leaves_out(&subject, 50));
                refused.closed(now, &[(subject.clone(), 50)], false);
            }
            assert!(refused.leaves_out(&subject, 50), "{filter}");
        }
    }

    #[test]
    fn beside_a_takeover_each_packet_is_tried_more_often() {
        let now = Instant::now();
        let mut refused = Refused::default();
        let packet = [topic(1)];
        for _ in 0..3 {
            assert!(!refused.closed(now, &packet, true) && refused.is_suspect(&packet[0].0));
        }
        // a suspect that was taken meanwhile begins anew
        refused.clear(&packet[0].0);
        for _ in 0..3 {
            assert!(!refused.closed(now, &packet, true));
        }
        assert!(refused.closed(now, &packet, true) && refused.leaves_out(&packet[0].0, 100));
    }

    #[test]
    fn many_are_bounded() {
        let now = Instant::now();
        let mut refused = Refused::default();
        refused.closed(now, &(0..10_000).map(topic).collect::<Vec<_>>(), false);
        assert_eq!(refused.suspects.len(), SUSPECTS);
        for n in 0..1000 {
            refused.closed(now, &[topic(n)], false);
            refused.closed(now, &[topic(n)], false);
        }
        assert_eq!(refused.left_out.len(), LEFT_OUT);
    }

    #[test]
    fn packets_are_read() {
        let publish = [&[0x31, 9, 0, 3][..], b"N/x", b"pay!"].concat();
        let subscribe = [&[0x82, 12, 0, 1, 0, 3][..], b"R/#", &[0, 0, 1], b"#", &[0]].concat();
        let bytes = [&publish[..], &[0xc0, 0], &subscribe, &publish[..7]].concat();
        let (filter, topic) = (|text: &str| Subject::Filter(text.into()), Subject::Topic("N/x".into()));
        assert_eq!(subjects(&bytes), [(topic.clone(), 11), (filter("R/#"), 14), (filter("#"), 14), (topic, 11)]);
        for end in 0..bytes.len() {
            subjects(&bytes[..end]);
        }
        assert_eq!(subjects(&[0x30, 0xff, 0xff, 0xff, 0xff, 1]), []);
    }
}
