//! One target: when a measurement is taken, what waits, when the next post is due; `words` is what is said about it.

mod words;

use std::collections::VecDeque;
use std::time::Duration;

use log::Level;

use crate::bridge::notes::{Kind, Notes};
use crate::bridge::{Bridge, Note, Time, limits};

use super::answer::{Outcome, Trouble, Verdict, Wait, names};
use super::options::Options;
use super::queue::{Entry, Queue};
use super::sample::{Moment, Sample, Sampler};
use super::stamp::Wall;
use super::{Command, Event};
use words::span;

#[derive(Debug)]
pub struct Target {
    options: Options,
    sampler: Sampler,
    queue: Queue,
    step: Step,
    /// The disk does not even say what waits, which was said.
    slow: bool,
    /// The next record's.
    next_seq: u64,
    /// Handed to the disk and not yet taken by it, with their stamps.
    storing: VecDeque<Storing>,
    next_sample: Option<Time>,
    /// When the clock is looked at before: somebody may have set it.
    look_at_clock: Option<Time>,
    /// The pace does not allow a post before.
    next_post: Time,
    sync: Option<Time>,
    /// Attempts that failed, one after the other.
    failures: u32,
    condition: Condition,
    since: Time,
    /// Why there was no measurement the last time.
    skipped: Option<Skipped>,
    overflowing: bool,
    status: StatusClock,
    counts: Counts,
    last_success: Option<Moment>,
    last_error: Option<String>,
    commands: VecDeque<Command>,
    /// Of its own: what others say must not use up the lines of this one.
    notes: Notes,
    stopping: bool,
    random: u64,
}

/// A record on its way to the disk.
#[derive(Clone, Copy, Debug)]
struct Storing {
    seq: u64,
    stamp: Wall,
    len: u32,
}

/// What is being done about the oldest record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// What waits is not known yet.
    Opening,
    Ready,
    Posting(u64),
    Waiting {
        until: Time,
    },
}

/// Why there is no measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Skipped {
    ClockUnset,
    Nothing,
    TooLarge,
    DiskHangs,
}

/// What the log has said last: only a change is worth a line.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Condition {
    Unknown,
    /// All is taken but these devices.
    Delivering {
        refused: Vec<String>,
    },
    Rejected {
        refused: Vec<String>,
        status: u16,
    },
    Trouble(Trouble),
}

/// When the status is told.
#[derive(Clone, Copy, Debug, Default)]
struct StatusClock {
    due: Option<Time>,
    /// As soon as the connection has room.
    wanted: bool,
    told: Time,
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    measured: u64,
    delivered: u64,
    /// The backend will never take them.
    rejected: u64,
    /// There was no room for them, or they could not be read again.
    dropped: u64,
}

impl Target {
    pub fn new(options: Options, seed: u64, verbosity: Level) -> Self {
        Self {
            sampler: Sampler::default(),
            queue: Queue::new(options.queue_records, options.queue_bytes),
            options,
            step: Step::Opening,
            slow: false,
            next_seq: 0,
            storing: VecDeque::new(),
            next_sample: None,
            look_at_clock: None,
            next_post: Time::default(),
            sync: None,
            failures: 0,
            condition: Condition::Unknown,
            since: Time::default(),
            skipped: None,
            overflowing: false,
            status: StatusClock::default(),
            counts: Counts::default(),
            last_success: None,
            last_error: None,
            commands: VecDeque::new(),
            notes: Notes::new(verbosity),
            stopping: false,
            // zero would stay zero
            random: seed | 1,
        }
    }

    /// What the edge has to say.
    pub fn event(&mut self, at: Moment, event: Event) {
        match event {
            Event::Opened { entries, next_seq } => self.opened(at, entries, next_seq),
            Event::Stored(seq) => self.stored(seq),
            Event::Lost(seq) => self.lost(at, seq),
            Event::Unreadable(why) => {
                let why = format!("what waits cannot be read: {why}");
                self.keep(at.now, Trouble::Disk, Wait::BackOff, why);
            }
            Event::Posted(outcome) => self.posted(at, &outcome),
        }
        self.post(at.now);
    }

    /// To be called when the time that [`Self::poll_timeout`] gave has come; early does no harm.
    pub fn handle_timeout(&mut self, at: Moment, portal: &str, bridge: &Bridge) {
        if self.next_sample.is_some_and(|due| due <= at.now) {
            self.sample(at, portal, bridge);
            self.plan(at, self.until_next(at.wall));
        }
        if self.look_at_clock.is_some_and(|due| due <= at.now) {
            self.plan(at, at.wall.until_grid(self.options.update_interval));
        }
        if self.status.due.is_some_and(|due| due <= at.now) {
            self.tell_now();
        }
        if self.step == Step::Opening && !self.slow && at.now >= Time::default() + limits::OPENING {
            self.slow = true;
            let what = self.what();
            self.notes.add(Level::Warn, || {
                format!(
                    "{what}: the disk with what waits does not answer: nothing is measured until it does; look at `state_dir` in [devices]"
                )
            });
        }
        if matches!(self.step, Step::Waiting { until } if until <= at.now) {
            self.step = Step::Ready;
        }
        if self.sync.is_some_and(|due| due <= at.now) {
            self.sync = None;
            self.commands.push_back(Command::Sync);
        }
        self.post(at.now);
    }

    /// When [`Self::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let post = match self.step {
            Step::Opening if !self.slow => Some(Time::default() + limits::OPENING),
            Step::Waiting { until } => Some(until),
            Step::Ready if self.is_postable() => Some(self.next_post).filter(|_| !self.stopping),
            _ => None,
        };
        [self.look_at_clock.or(self.next_sample), self.sync, self.status.due, post].into_iter().flatten().min()
    }

    pub fn poll_note(&mut self) -> Option<Note> {
        self.notes.take()
    }

    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The end: nothing more is measured or posted, and what waits is brought to the flash.
    pub fn shut_down(&mut self) {
        self.stopping = true;
        (self.next_sample, self.look_at_clock, self.sync) = (None, None, None);
        if !self.queue.is_empty() {
            self.commands.push_back(Command::Sync);
        }
        self.tell_now();
    }

    /// An answer is waited for.
    pub fn is_posting(&self) -> bool {
        matches!(self.step, Step::Posting(_))
    }

    fn opened(&mut self, at: Moment, entries: Vec<Entry>, next_seq: u64) {
        let found = entries.len();
        let dropped: usize = entries.into_iter().map(|entry| self.queue.push(entry)).sum();
        self.next_seq = next_seq;
        self.step = Step::Ready;
        let (what, host, interval) = (self.what(), &self.options.host, span(self.options.update_interval));
        let waiting = if found > 0 { format!("; {found} of an earlier time wait") } else { String::new() };
        self.notes.add(Level::Info, || format!("{what}: a measurement every {interval} for {host}{waiting}"));
        self.count_dropped(dropped);
        if !self.stopping {
            self.plan(at, at.wall.until_grid(self.options.update_interval));
        }
        self.tell_now();
    }

    /// The next measurement. So long before it that the clock may be set meanwhile, the wait is only until another look.
    fn plan(&mut self, at: Moment, wait: Duration) {
        self.next_sample = Some(at.now + wait);
        self.look_at_clock = (wait > 2 * limits::LOOK_AT_CLOCK).then(|| at.now + limits::LOOK_AT_CLOCK);
    }

    /// Until the next multiple of the interval; never so soon that a clock that is a little behind sees the same one twice.
    fn until_next(&self, wall: Wall) -> Duration {
        let interval = self.options.update_interval;
        let wait = wall.until_grid(interval);
        if wait < interval / 2 { wait + interval } else { wait }
    }

    fn sample(&mut self, at: Moment, portal: &str, bridge: &Bridge) {
        if at.wall.is_set() && !bridge.is_scanned() {
            return;
        }
        let sample = self.take_sample(at, portal, bridge);
        let before = std::mem::replace(&mut self.skipped, sample.as_ref().err().copied());
        let what = self.what();
        let Sample { body, .. } = match sample {
            Ok(sample) => sample,
            Err(why) => {
                self.counts.dropped += u64::from(why == Skipped::DiskHangs);
                if before != Some(why) {
                    self.notes
                        .add_caused(at.now, why.level(), Kind::Measurement, || format!("{what}: {}", why.text(&self.options, at.wall)));
                }
                return;
            }
        };
        if before == Some(Skipped::ClockUnset) {
            self.notes.add(Level::Info, || format!("{what}: the clock is set now: measuring"));
        }
        self.counts.measured += 1;
        let seq = self.next_seq;
        self.next_seq += 1;
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        self.storing.push_back(Storing { seq, stamp: at.wall, len });
        self.commands.push_back(Command::Append { seq, body });
        let dropped = self.queue.push(Entry { seq, len });
        self.count_dropped(dropped);
        self.sync = self.sync.or(Some(at.now + limits::SYNC));
        self.tell_later(at.now);
    }

    fn take_sample(&mut self, at: Moment, portal: &str, bridge: &Bridge) -> Result<Sample, Skipped> {
        if !at.wall.is_set() {
            return Err(Skipped::ClockUnset);
        }
        let sample = self.sampler.sample(&self.options, portal, at, bridge).ok_or(Skipped::Nothing)?;
        if sample.body.len() > limits::MEASUREMENT {
            return Err(Skipped::TooLarge);
        }
        let bytes: u64 = self.storing.iter().map(|storing| u64::from(storing.len)).sum();
        if self.storing.len() >= limits::STORING || bytes >= limits::STORING_BYTES {
            return Err(Skipped::DiskHangs);
        }
        Ok(sample)
    }

    fn count_dropped(&mut self, dropped: usize) {
        let Some(front) = self.queue.front().filter(|_| dropped > 0) else { return };
        self.counts.dropped += dropped as u64;
        self.commands.push_back(Command::Forget { through: front.seq.saturating_sub(1) });
        if !std::mem::replace(&mut self.overflowing, true) {
            let (what, records, bytes) = (self.what(), self.queue.len(), self.queue.bytes());
            self.notes.add(Level::Warn, || {
                format!(
                    "{what}: the queue is full ({records} measurements, {bytes} bytes): from now on the oldest is dropped for each new one"
                )
            });
        }
    }

    fn stored(&mut self, seq: u64) {
        while let Some(Storing { stamp, .. }) = self.storing.front().copied().filter(|first| first.seq <= seq) {
            self.storing.pop_front();
            let what = self.what();
            self.notes.add(Level::Debug, || format!("{what}: measured {stamp}"));
        }
    }

    /// A record cannot be read, which was said: on with the next one.
    fn lost(&mut self, at: Moment, seq: u64) {
        self.counts.dropped += 1;
        self.step = Step::Ready;
        self.done(at.now, seq);
    }

    /// The record needs no more care.
    fn done(&mut self, now: Time, seq: u64) {
        if self.queue.front().is_some_and(|front| front.seq == seq) {
            self.queue.pop();
            self.commands.push_back(Command::Forget { through: seq });
        } else {
            // there was no room for it while it was on its way
            self.counts.dropped = self.counts.dropped.saturating_sub(1);
        }
        if self.queue.is_empty() {
            self.sync = None;
            self.overflowing = false;
        }
        self.tell_later(now);
    }

    fn is_postable(&self) -> bool {
        let is_stored = |seq| self.storing.front().is_none_or(|first| seq < first.seq);
        self.queue.front().is_some_and(|front| is_stored(front.seq))
    }

    /// Posts the oldest record, if it is time.
    fn post(&mut self, now: Time) {
        if self.stopping || self.step != Step::Ready || now < self.next_post || !self.is_postable() {
            return;
        }
        if let Some(front) = self.queue.front() {
            self.step = Step::Posting(front.seq);
            self.next_post = now + Duration::from_secs_f64(1.0 / self.options.catch_up_rate);
            self.commands.push_back(Command::Post(front.seq));
        }
    }

    fn posted(&mut self, at: Moment, outcome: &Outcome) {
        let Step::Posting(seq) = self.step else { return };
        match outcome.judge(&self.options.format) {
            Verdict::Delivered { refused } => {
                self.counts.delivered += 1;
                self.take_success(at, seq);
                self.last_success = Some(at);
                self.last_error = (!refused.is_empty()).then(|| format!("refused: {}", names(&refused)));
                self.delivered(at.now, &refused);
            }
            Verdict::Rejected { status, why, refused } => {
                self.counts.rejected += 1;
                self.take_success(at, seq);
                self.rejected(at.now, status, &why, &refused);
            }
            Verdict::Kept { trouble, wait, why } => self.keep(at.now, trouble, wait, why),
        }
    }

    /// The record waits for another attempt.
    fn keep(&mut self, now: Time, trouble: Trouble, wait: Wait, why: String) {
        let wait = self.wait_for(wait);
        self.step = Step::Waiting { until: now + wait };
        self.troubled(now, trouble, why, wait);
    }

    /// The backend has dealt with the record.
    fn take_success(&mut self, at: Moment, seq: u64) {
        self.failures = 0;
        self.step = Step::Ready;
        self.done(at.now, seq);
    }

    fn wait_for(&mut self, wait: Wait) -> Duration {
        let doubled = limits::POST_RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(limits::POST_RETRY_LAST);
        self.failures = self.failures.saturating_add(1);
        match wait {
            Wait::BackOff => self.jitter(doubled),
            Wait::Longest => limits::POST_RETRY_LAST,
            // one that wants us back at once, again and again, would have us hammer it
            Wait::Told(told) if self.failures > 3 && told < limits::POST_RETRY_FIRST => doubled.min(limits::RETRY_AFTER_AGAIN),
            Wait::Told(told) => told.max(limits::RETRY_AFTER_LEAST),
        }
    }

    /// Up to a fifth less: a fleet that lost the same backend does not come back in one moment.
    fn jitter(&mut self, span: Duration) -> Duration {
        // xorshift: nothing depends on how random this is
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let thousandths = 800 + u32::try_from(self.random % 201).unwrap_or(200);
        span * thousandths / 1000
    }
}
