//! What the core wants in the log. The loop takes the lines and writes them. Lines that peers can cause as often as they like are
//! written ten times for each kind; then one an hour says how many there were, and the others go to debug, until there was none for an
//! hour: the log is on flash.

use std::collections::VecDeque;

use log::Level;

use super::limits;
use super::time::Time;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    pub level: Level,
    pub text: String,
}

/// The kinds of lines that peers can cause as often as they like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    WriteIgnored,
    WriteFailed,
    ReadIgnored,
    KeepAlive,
    Service,
    Item,
    Status,
    Proxy,
    DeviceWrite,
    Settings,
    SettingsLeft,
    Registered,
    Left,
    Silent,
    SeenAgain,
    Measurement,
    /// Keep-alives that come only after the one before has run out.
    Awake,
}

const KINDS: usize = 17;

/// How often a line of one kind is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repeats {
    /// Written since there was none for an hour.
    written: u32,
    /// Not written since the last one that was.
    left_out: u64,
    last: Time,
    /// No other line before this.
    next: Time,
}

impl Repeats {
    /// Takes a line: what is to be added to it, or `None` when it goes to debug.
    pub fn admit(&mut self, now: Time) -> Option<String> {
        if now >= self.last + limits::NOTES_WINDOW {
            self.written = 0;
        }
        self.last = now;
        if self.written >= limits::NOTES_AT_ONCE && now < self.next {
            self.left_out += 1;
            return None;
        }
        self.written = self.written.saturating_add(1);
        self.next = now + limits::NOTES_WINDOW;
        let left_out = match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            count => format!(" ({count} more of this kind before it, at debug)"),
        };
        let last = if self.written == limits::NOTES_AT_ONCE { " (from now on one of this kind an hour, the others at debug)" } else { "" };
        Some(left_out + last)
    }
}

#[derive(Debug)]
pub struct Notes {
    /// What is more verbose is not even formatted.
    max: Level,
    queue: VecDeque<Note>,
    repeats: [Repeats; KINDS],
}

impl Notes {
    pub fn new(max: Level) -> Self {
        Self { max, queue: VecDeque::new(), repeats: [Repeats::default(); KINDS] }
    }

    /// A change of state.
    pub fn add(&mut self, level: Level, text: impl FnOnce() -> String) {
        if level <= self.max && self.queue.len() < limits::NOTES {
            self.queue.push_back(Note { level, text: text() });
        }
    }

    /// A line that a peer caused.
    pub fn add_caused(&mut self, now: Time, level: Level, kind: Kind, text: impl FnOnce() -> String) {
        match self.repeats.get_mut(kind as usize).and_then(|repeats| repeats.admit(now)) {
            Some(more) => self.add(level, || text() + &more),
            None => self.add(Level::Debug, text),
        }
    }

    pub fn take(&mut self) -> Option<Note> {
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many of the lines are written, one each `every` for `span`.
    fn written(repeats: &mut Repeats, from: Duration, every: Duration, span: Duration) -> Vec<String> {
        let times = (0..).map(|n| every * n).take_while(|passed| *passed < span);
        times.filter_map(|passed| repeats.admit(Time::since_start(from + passed))).collect()
    }

    #[test]
    fn a_day_of_any_rhythm_is_a_few_lines() {
        const DAY: Duration = Duration::from_secs(86_400);
        for seconds in [1, 5, 7, 60, 600, 3599] {
            let lines = written(&mut Repeats::default(), Duration::ZERO, Duration::from_secs(seconds), DAY);
            assert!(lines.len() <= 10 + 24, "every {seconds} s: {} lines", lines.len());
        }
    }

    #[test]
    fn what_was_left_out_is_counted() {
        let mut repeats = Repeats::default();
        let hour = limits::NOTES_WINDOW;
        let lines = written(&mut repeats, hour, Duration::from_secs(1), hour + Duration::from_secs(10));
        let at = |n: usize| lines.get(n).map(String::as_str);
        assert_eq!(lines.len(), 11);
        assert_eq!(at(8), Some(""));
        assert_eq!(at(9), Some(" (from now on one of this kind an hour, the others at debug)"));
        assert_eq!(at(10), Some(" (3599 more of this kind before it, at debug)"));
        // an hour without any: it is news again
        let lines = written(&mut repeats, 4 * hour, Duration::from_secs(1), Duration::from_secs(12));
        assert_eq!(lines.len(), 10);
    }
}
