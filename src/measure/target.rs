//! One target: when a measurement is taken, what waits, when the next post is due, and what is said about it.

use std::collections::VecDeque;
use std::time::Duration;

use log::Level;
use serde::Serialize;

use crate::bridge::notes::{Kind, Notes};
use crate::bridge::{Bridge, Note, Time, limits};

use super::answer::{Outcome, Refused, Trouble, Verdict, Wait, names};
use super::options::Options;
use super::queue::{Entry, Queue};
use super::sample::{Moment, Sample, Sampler};
use super::stamp::Wall;
use super::{Command, Event};

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

/// What is said.
impl Target {
    fn what(&self) -> String {
        format!("http {}", self.options.name)
    }

    fn delivered(&mut self, now: Time, refused: &[Refused]) {
        let (what, host, waiting) = (self.what(), self.options.host.clone(), self.queue.len());
        let serials = serials(refused);
        let before = self.enter(now, Condition::Delivering { refused: serials });
        let Some((before, since)) = before else {
            return self.notes.add(Level::Debug, || format!("{what}: delivered, {waiting} wait"));
        };
        if !refused.is_empty() {
            return self.notes.add_caused(now, Level::Warn, Kind::Measurement, || {
                format!(
                    "{what}: {host} takes the measurements, but not of these devices: {}; add them there by their serial",
                    names(refused)
                )
            });
        }
        self.notes.add_caused(now, Level::Info, Kind::Measurement, || match before {
            Condition::Unknown => format!("{what}: {host} takes the measurements"),
            Condition::Trouble(_) => {
                let rest = if waiting > 0 { format!("; {waiting} more follow") } else { String::new() };
                format!("{what}: {host} takes the measurements again, after {}{rest}", span(now.after(since)))
            }
            Condition::Delivering { .. } | Condition::Rejected { .. } => format!("{what}: {host} takes all of the measurements now"),
        });
    }

    fn rejected(&mut self, now: Time, status: u16, why: &str, refused: &[Refused]) {
        let (what, host) = (self.what(), self.options.host.clone());
        let serials = serials(refused);
        let devices = if refused.is_empty() { String::new() } else { format!(": {}", names(refused)) };
        let text = format!("{why}{devices}");
        let is_news = self.enter(now, Condition::Rejected { refused: serials, status }).is_some();
        self.add_if_news(now, is_news, || format!("{what}: {host}: {text}; such measurements are dropped"));
        self.last_error = Some(text);
    }

    fn troubled(&mut self, now: Time, trouble: Trouble, why: String, wait: Duration) {
        let (what, host, waiting) = (self.what(), self.options.host.clone(), self.queue.len());
        let is_news = self.enter(now, Condition::Trouble(trouble)).is_some();
        self.add_if_news(now, is_news, || {
            let measurements = if waiting == 1 { "a measurement waits".into() } else { format!("{waiting} measurements wait") };
            let whose = if trouble == Trouble::Disk { String::new() } else { format!("{host}: ") };
            format!("{what}: {whose}{why}; {measurements}, tried again in {}", span(wait))
        });
        if self.last_error.as_ref() != Some(&why) {
            self.last_error = Some(why);
            self.tell_later(now);
        }
    }

    /// A change of state is a warning; the next attempt that ends alike is not.
    fn add_if_news(&mut self, now: Time, is_news: bool, text: impl FnOnce() -> String) {
        if is_news {
            self.notes.add_caused(now, Level::Warn, Kind::Measurement, text);
        } else {
            self.notes.add(Level::Debug, text);
        }
    }

    /// The condition before and since when, if this is another one.
    fn enter(&mut self, now: Time, condition: Condition) -> Option<(Condition, Time)> {
        if self.condition == condition {
            return None;
        }
        self.tell_now();
        // one trouble after the other is one outage
        let goes_on = matches!((&self.condition, &condition), (Condition::Trouble(_), Condition::Trouble(_)));
        let since = self.since;
        if !goes_on {
            self.since = now;
        }
        Some((std::mem::replace(&mut self.condition, condition), since))
    }

    /// One line for the log, on request.
    pub fn summary(&self, now: Time) -> String {
        let Counts { measured, delivered, rejected, dropped } = self.counts;
        let ago = |at: Moment| match now.after(at.now) {
            passed if passed < Duration::from_secs(1) => "just now".into(),
            passed => format!("{} ago", span(passed)),
        };
        let success = self.last_success.map_or_else(|| "never".into(), ago);
        let error = self.last_error.as_ref().map(|error| format!("; last error: {error}")).unwrap_or_default();
        format!(
            "{}: {}, {}; {} wait ({} bytes); last success {success}; since the start: {measured} measured, {delivered} delivered, {rejected} rejected, {dropped} dropped{error}",
            self.what(),
            self.options.host,
            self.condition.name(),
            self.queue.len(),
            self.queue.bytes(),
        )
    }
}

#[derive(Serialize)]
struct Status<'a> {
    name: &'a str,
    host: &'a str,
    state: &'static str,
    queued: usize,
    queued_bytes: u64,
    dropped: u64,
    rejected: u64,
    last_success: Option<String>,
    last_error: Option<&'a str>,
}

/// The status that is published.
impl Target {
    /// Told when things have settled, and not all the time.
    fn tell_later(&mut self, now: Time) {
        if !self.stopping && !self.status.wanted {
            let due = (now + limits::STATUS_SETTLE).max(self.status.told + limits::STATUS_EVERY);
            self.status.due = Some(self.status.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    pub fn tell_now(&mut self) {
        (self.status.due, self.status.wanted) = (None, true);
    }

    /// The status is to be told.
    pub fn is_status_wanted(&self) -> bool {
        self.status.wanted
    }

    /// The status, which is told with this; at the end it is taken back.
    pub fn status(&mut self, now: Time) -> Vec<u8> {
        self.status = StatusClock { told: now, ..StatusClock::default() };
        if self.stopping {
            return Vec::new();
        }
        let status = Status {
            name: &self.options.name,
            host: &self.options.host,
            state: self.condition.name(),
            queued: self.queue.len(),
            queued_bytes: self.queue.bytes(),
            dropped: self.counts.dropped,
            rejected: self.counts.rejected,
            last_success: self.last_success.map(|at| at.wall.to_string()),
            last_error: self.last_error.as_deref(),
        };
        // numbers and texts always have a JSON form
        serde_json::to_vec(&status).unwrap_or_default()
    }
}

impl Skipped {
    fn level(self) -> Level {
        if self == Self::Nothing { Level::Info } else { Level::Warn }
    }

    fn text(self, options: &Options, wall: Wall) -> String {
        match self {
            Self::ClockUnset => {
                format!("the clock is not set ({wall}): nothing is measured until it is, as nobody would know when it was")
            }
            Self::Nothing => options.format.nothing().into(),
            Self::TooLarge => {
                let most = limits::MEASUREMENT / 1024;
                format!("measurements of more than {most} KiB are left out: choose fewer items in `filters`")
            }
            Self::DiskHangs => "the disk takes nothing: measurements wait for it, and until it does each new one is dropped".into(),
        }
    }
}

impl Condition {
    fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "idle",
            Self::Delivering { .. } => "delivering",
            Self::Rejected { .. } | Self::Trouble(Trouble::Key) => "refused",
            Self::Trouble(_) => "waiting",
        }
    }
}

/// Which devices, in whatever order they were told.
fn serials(refused: &[Refused]) -> Vec<String> {
    let mut serials: Vec<String> = refused.iter().map(|refused| refused.serial.clone()).collect();
    serials.sort_unstable();
    serials.truncate(limits::REFUSED);
    serials
}

/// A span as people say it.
fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        ..1.0 => format!("{} ms", span.as_millis()),
        ..10.0 => format!("{} s", (seconds * 10.0).round() / 10.0),
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}
