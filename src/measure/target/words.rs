//! What a target says: log lines, one for each change of state; the status; the summary.

use std::time::Duration;

use log::Level;
use serde::Serialize;

use super::{Condition, Counts, Skipped, StatusClock, Target};
use crate::bridge::notes::Kind;
use crate::bridge::{Time, limits};
use crate::measure::answer::{Refused, Trouble, names};
use crate::measure::options::Options;
use crate::measure::sample::Moment;
use crate::measure::stamp::Wall;

/// What is said.
impl Target {
    pub(super) fn what(&self) -> String {
        format!("http {}", self.options.name)
    }

    pub(super) fn delivered(&mut self, now: Time, refused: &[Refused]) {
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

    pub(super) fn rejected(&mut self, now: Time, status: u16, why: &str, refused: &[Refused]) {
        let (what, host) = (self.what(), self.options.host.clone());
        let serials = serials(refused);
        let devices = if refused.is_empty() { String::new() } else { format!(": {}", names(refused)) };
        let text = format!("{why}{devices}");
        let is_news = self.enter(now, Condition::Rejected { refused: serials, status }).is_some();
        self.add_if_news(now, is_news, || format!("{what}: {host}: {text}; such measurements are dropped"));
        self.last_error = Some(text);
    }

    pub(super) fn troubled(&mut self, now: Time, trouble: Trouble, why: String, wait: Duration) {
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
    pub(super) fn tell_later(&mut self, now: Time) {
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
    pub(super) fn level(self) -> Level {
        if self == Self::Nothing { Level::Info } else { Level::Warn }
    }

    pub(super) fn text(self, options: &Options, wall: Wall) -> String {
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
pub(super) fn span(span: Duration) -> String {
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
