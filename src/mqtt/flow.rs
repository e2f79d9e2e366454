//! How much may be on its way to the broker, and when the broker counts as dead. Pure: it is given the time and counts bytes.
//!
//! A publish of QoS 0 is not acknowledged, and what the kernel has taken can wait in buffers on the path for minutes. The answer to a
//! PINGREQ comes after everything that was sent before it, so PINGREQs among the messages measure how fast the link carries them, and
//! the window follows: about one second of what the link carries. A value that waits longer is replaced by its successor in the outbox.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The window's bounds in bytes. The smallest is some ten notifications; the largest carries 1.3 MB/s over a round trip of 100 ms.
const WINDOW_MIN: u64 = 1024;
pub(super) const WINDOW_MAX: u64 = 128 * 1024;
/// The first window, by how soon the broker has answered the CONNECT: a local one need not be measured first.
const WINDOW_NEAR: u64 = 64 * 1024;
const WINDOW_FAR: u64 = 4 * 1024;
const NEAR: Duration = Duration::from_millis(20);
/// With a window below this the link counts as slow, in bytes.
const SLOW: u64 = 16 * 1024;
/// Beyond twice the shortest round trip: while an answer comes this soon, the window may grow; later than this, it shrinks.
const PROMPT: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(1);
/// Rates are not measured over less than this.
const SAMPLE_MIN: Duration = Duration::from_millis(50);
/// Bytes a second assumed of a near broker before its rate is known.
const RATE_NEAR: u64 = 1024 * 1024;
/// A SUBACK may come later than the answer to a PINGREQ that was sent later, where the broker asks somebody else first.
const SUBACK: Duration = Duration::from_secs(20);
/// However short the keep-alive, an answer may take this long: a busy broker's pause.
const PATIENCE_MIN: Duration = Duration::from_secs(5);

/// The state of one connection.
pub(super) struct Flow {
    /// Time between two PINGREQs, and how long their answer may take when nothing moves: three quarters of the keep-alive each, so
    /// that a dead link is noticed within one and a half, before the broker's own limit.
    interval: Duration,
    /// Bytes since the connection began: handed over, taken by the socket, known to have reached the broker.
    given: u64,
    taken: u64,
    acked: u64,
    /// Those not answered yet, oldest first.
    pings: VecDeque<Ping>,
    last_ping: Instant,
    last_ping_end: u64,
    last_read: Instant,
    last_taken: Instant,
    /// Whether the broker has answered the CONNECT, and a PINGREQ.
    connected: bool,
    confirmed: bool,
    /// SUBSCRIBEs not answered yet: packet ID, the count of bytes given by then, when.
    subscribes: VecDeque<(u16, u64, Instant)>,
    window: u64,
    /// Somebody had to wait since the window grew last, which was then.
    limited: bool,
    grown: Instant,
    shortest: Duration,
    /// Bytes a second.
    rate: u64,
}

struct Ping {
    /// The count of bytes given, this one included.
    end: u64,
    at: Instant,
    /// Bytes that were on their way with it.
    ahead: u64,
    taken: Option<Instant>,
}

impl Flow {
    pub(super) fn new(now: Instant, keep_alive: Duration) -> Self {
        Self {
            interval: keep_alive * 3 / 4,
            given: 0,
            taken: 0,
            acked: 0,
            pings: VecDeque::new(),
            last_ping: now,
            last_ping_end: 0,
            last_read: now,
            last_taken: now,
            connected: false,
            confirmed: false,
            subscribes: VecDeque::new(),
            window: WINDOW_FAR,
            limited: false,
            grown: now,
            shortest: Duration::MAX,
            rate: 1,
        }
    }

    pub(super) fn given(&self) -> u64 {
        self.given
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    /// Whether the broker has answered a PINGREQ on this connection.
    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    pub(super) fn is_slow(&self) -> bool {
        self.window < SLOW
    }

    /// Bytes were handed over. Returns whether a PINGREQ is to follow them.
    #[must_use]
    pub(super) fn give(&mut self, bytes: usize) -> bool {
        self.given += bytes as u64;
        self.connected && self.given - self.last_ping_end >= self.window / 2
    }

    /// Whether nothing was handed over since the last PINGREQ.
    pub(super) fn ends_with_ping(&self) -> bool {
        self.given == self.last_ping_end
    }

    /// A PINGREQ was handed over, counted by [`Flow::give`] already.
    pub(super) fn ping(&mut self, now: Instant) {
        self.pings.push_back(Ping { end: self.given, at: now, ahead: self.given - self.acked, taken: None });
        (self.last_ping, self.last_ping_end) = (now, self.given);
    }

    /// The socket has taken bytes.
    pub(super) fn take(&mut self, now: Instant, bytes: usize) {
        self.taken += bytes as u64;
        self.last_taken = now;
        let taken = self.taken;
        let passed = self.pings.iter_mut().filter(|ping| ping.taken.is_none() && ping.end <= taken);
        passed.for_each(|ping| ping.taken = Some(now));
    }

    /// Something came from the broker.
    pub(super) fn read(&mut self, now: Instant) {
        self.last_read = now;
    }

    /// The CONNACK.
    pub(super) fn connected(&mut self, now: Instant, since: Instant) {
        self.acked = self.given;
        (self.connected, self.last_ping_end) = (true, self.given);
        self.shortest = now.saturating_duration_since(since);
        self.rate = per_second(self.acked, self.shortest);
        if self.shortest < NEAR {
            (self.window, self.rate) = (WINDOW_NEAR, RATE_NEAR);
        }
    }

    /// A PINGRESP. Mosquitto leaves out answers, too, when its queue is full: one that is overdue is not the one that comes after a later PINGREQ.
    pub(super) fn pong(&mut self, now: Instant) {
        while self.pings.len() > 1 && self.pings.front().is_some_and(|ping| ping.at + self.overdue(ping) <= now) {
            self.pings.pop_front();
        }
        let Some(ping) = self.pings.pop_front() else { return };
        self.acked = self.acked.max(ping.end);
        self.confirmed = true;
        let delay = now.saturating_duration_since(ping.at);
        self.shortest = self.shortest.min(delay);
        let rate = per_second(ping.ahead, delay.saturating_sub(self.shortest).max(SAMPLE_MIN));
        if delay > self.shortest * 2 + LATE {
            self.rate = rate;
            self.window = per_second(ping.ahead, delay).clamp(WINDOW_MIN, WINDOW_MAX);
            self.grown = now;
        } else {
            self.rate = self.rate.max(rate);
            // once a round trip: what was sent before the last growth says nothing about it
            if self.limited && ping.at >= self.grown && delay < self.shortest * 2 + PROMPT {
                self.window = (self.window * 2).min(WINDOW_MAX);
                self.limited = false;
                self.grown = now;
            }
        }
    }

    /// Whether more may be handed over.
    pub(super) fn has_room(&self) -> bool {
        self.given - self.acked < self.window
    }

    /// Somebody waits for room. Returns whether a PINGREQ has to be handed over, lest no answer ever makes room.
    #[must_use]
    pub(super) fn wait(&mut self) -> bool {
        self.limited = true;
        self.pings.is_empty()
    }

    /// When the next PINGREQ is due.
    pub(super) fn ping_due(&self) -> Instant {
        // the library's own limit stands until the CONNACK
        if !self.connected {
            return self.last_ping + Duration::from_secs(3600);
        }
        // without room nothing but a PINGREQ would bring an answer, should the last one have been left out
        let overdue = self.pings.back().filter(|_| !self.has_room()).map(|ping| self.overdue(ping));
        self.last_ping + overdue.map_or(self.interval, |overdue| overdue.min(self.interval))
    }

    /// After how long an answer is overdue: as long as a busy broker pauses, and twice what the link takes for the bytes before it.
    fn overdue(&self, ping: &Ping) -> Duration {
        PATIENCE_MIN + Duration::from_millis(ping.ahead.saturating_mul(2000) / self.rate.max(1))
    }

    /// A SUBSCRIBE was handed over.
    pub(super) fn subscribing(&mut self, now: Instant, packet: u16) {
        self.subscribes.push_back((packet, self.given, now));
    }

    /// A SUBACK.
    pub(super) fn subscribed(&mut self, packet: u16) {
        self.subscribes.retain(|(waiting, ..)| *waiting != packet);
    }

    /// Why the connection is of no use any more.
    pub(super) fn failed(&self, now: Instant) -> Option<String> {
        if self.dead_at().is_some_and(|dead| dead <= now) {
            let silent = now.saturating_duration_since(self.last_read).as_secs();
            return Some(format!("it does not answer any more: nothing came for {silent} s"));
        }
        let deaf = self.deaf_at().is_some_and(|deaf| deaf <= now);
        deaf.then(|| format!("it does not answer a SUBSCRIBE within {} s, though it answers PINGREQs", SUBACK.as_secs()))
    }

    /// When [`Flow::failed`] or a PINGREQ is due.
    pub(super) fn due(&self) -> Instant {
        [self.dead_at(), self.deaf_at()].into_iter().flatten().fold(self.ping_due(), Instant::min)
    }

    /// When the broker counts as deaf: it has answered a PINGREQ that followed a SUBSCRIBE, and not the SUBSCRIBE.
    fn deaf_at(&self) -> Option<Instant> {
        let (_, end, at) = self.subscribes.front()?;
        (self.acked >= *end).then(|| *at + SUBACK)
    }

    /// When the broker counts as dead, unless something moves. What is on the way ahead of the PINGREQ is allowed twice the time that
    /// the link takes for it; a link that moves nothing at all is the kernel's to notice (`TCP_USER_TIMEOUT`).
    fn dead_at(&self) -> Option<Instant> {
        let ping = self.pings.front()?;
        let moved = ping.taken.unwrap_or(self.last_taken).max(self.last_read).max(ping.at);
        Some(moved + self.interval.saturating_sub(PATIENCE_MIN) + self.overdue(ping))
    }
}

fn per_second(bytes: u64, span: Duration) -> u64 {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(20);

    /// A link that carries `rate` bytes a second after `trip`; the time stands still but for what is done with it.
    struct Link {
        flow: Flow,
        began: Instant,
        now: Instant,
        rate: f64,
        trip: Duration,
        /// when the last byte given will have arrived
        free: Instant,
        answers: VecDeque<Instant>,
    }

    impl Link {
        fn new(rate: f64, trip: Duration) -> Self {
            let now = Instant::now();
            let mut link = Self { flow: Flow::new(now, KEEP_ALIVE), began: now, now, rate, trip, free: now, answers: VecDeque::new() };
            let _ = link.send(150);
            link.now = link.free + trip;
            link.flow.connected(link.now, link.began);
            link.ping();
            link
        }

        fn send(&mut self, bytes: usize) -> bool {
            let more = self.flow.give(bytes);
            self.flow.take(self.now, bytes);
            self.free = self.free.max(self.now) + Duration::from_secs_f64(bytes as f64 / self.rate);
            more
        }

        fn ping(&mut self) {
            let _ = self.send(2);
            self.flow.ping(self.now);
            self.answers.push_back(self.free + self.trip);
        }

        /// Gives messages of 75 bytes as long as there is room, and then lets the next answer come.
        fn fill(&mut self) {
            while self.flow.has_room() {
                if self.send(75) {
                    self.ping();
                }
            }
            if self.flow.wait() {
                self.ping();
            }
            let answer = self.answers.pop_front().expect("a PINGREQ is on its way");
            assert!(self.flow.dead_at().is_some_and(|dead| dead > answer.max(self.now)), "declared dead while it moves");
            self.now = answer.max(self.now);
            self.flow.read(self.now);
            self.flow.pong(self.now);
        }

        /// How long a message that is given now takes.
        fn queue(&self) -> Duration {
            self.free.saturating_duration_since(self.now)
        }
    }

    #[test]
    fn the_window_is_about_a_second_of_a_slow_link() {
        for rate in [100.0, 500.0, 1000.0, 5000.0, 20_000.0] {
            let mut link = Link::new(rate, Duration::from_millis(50));
            for _ in 0..200 {
                link.fill();
            }
            let most = Duration::from_secs_f64(WINDOW_MIN as f64 / rate).max(Duration::from_secs(2));
            assert!(link.queue() <= most, "{:?} at {rate} bytes/s", link.queue());
            assert!(link.queue() > Duration::ZERO, "the link runs dry at {rate} bytes/s");
        }
    }

    #[test]
    fn the_window_is_large_on_a_fast_link_however_long_its_round_trip() {
        for (rate, trip) in [(1e7, 1), (1e7, 40), (1e7, 600), (1e8, 100)] {
            let mut link = Link::new(rate, Duration::from_millis(trip));
            for _ in 0..200 {
                link.fill();
            }
            assert_eq!(link.flow.window, WINDOW_MAX, "{rate} bytes/s, {trip} ms");
            assert!(!link.flow.is_slow());
        }
    }

    /// A trickle shows nothing of what a link carries.
    #[test]
    fn a_window_that_is_not_used_does_not_grow() {
        let mut link = Link::new(2000.0, Duration::from_millis(100));
        for _ in 0..1000 {
            link.now += Duration::from_millis(100);
            if link.send(75) {
                link.ping();
            }
            while link.answers.front().is_some_and(|answer| *answer <= link.now) {
                let answer = link.answers.pop_front().expect("just seen");
                link.flow.pong(answer);
            }
        }
        assert!(link.flow.window <= WINDOW_FAR, "{}", link.flow.window);
    }

    #[test]
    fn a_broker_that_stops_is_noticed_in_time() {
        for rate in [1000.0, 1e5, 1e8] {
            for rounds in [0, 1, 2, 10, 100] {
                let mut link = Link::new(rate, Duration::from_millis(1));
                (0..rounds).for_each(|_| link.fill());
                // everything before is answered; then more is given, and nothing comes any more
                let stopped = link.now;
                while link.flow.has_room() {
                    if link.send(75) {
                        link.ping();
                    }
                }
                let noticed = link.flow.dead_at().unwrap_or_else(|| {
                    link.now = link.flow.ping_due();
                    link.ping();
                    link.flow.dead_at().expect("a PINGREQ is on its way")
                });
                assert!(noticed - stopped <= Duration::from_secs(34), "{:?} at {rate}, {rounds} rounds", noticed - stopped);
            }
        }
    }

    /// A broker whose queue is full leaves out answers: the link does not wait for them, and is not slow because of them.
    #[test]
    fn an_answer_that_is_left_out_is_not_waited_for() {
        let mut link = Link::new(1e7, Duration::from_millis(1));
        (0..20).for_each(|_| link.fill());
        let window = link.flow.window;
        while link.flow.has_room() {
            if link.send(75) {
                link.ping();
            }
        }
        link.answers.clear();
        let stopped = link.now;
        link.now = link.flow.ping_due();
        assert!(link.now - stopped < Duration::from_secs(6), "{:?}", link.now - stopped);
        link.ping();
        link.fill();
        assert!(link.flow.has_room() && link.flow.window >= window / 2, "{} of {window}", link.flow.window);
    }

    /// A mebibyte at once: the socket takes it bit by bit, and then long nothing comes.
    #[test]
    fn a_large_message_on_a_slow_link_is_waited_for() {
        let mut link = Link::new(5000.0, Duration::from_millis(100));
        (0..20).for_each(|_| link.fill());
        if link.send(1 << 20) {
            link.ping();
        }
        while !link.answers.is_empty() {
            link.fill();
        }
    }
}
