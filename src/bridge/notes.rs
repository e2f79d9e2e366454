//! What the core wants in the log. The loop takes the lines and writes them; mistakes of peers are written in full ten times a
//! minute and kind, and at debug beyond that, so that nobody can fill a flash chip from outside.

use std::collections::VecDeque;
use std::time::Duration;

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
    Registered,
    Measurement,
}

const KINDS: usize = 12;

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began: Time,
    lines: u32,
}

#[derive(Debug)]
pub struct Notes {
    /// What is more verbose is not even formatted.
    max: Level,
    queue: VecDeque<Note>,
    windows: [Window; KINDS],
}

impl Notes {
    pub fn new(max: Level) -> Self {
        Self { max, queue: VecDeque::new(), windows: [Window::default(); KINDS] }
    }

    /// A change of state.
    pub fn add(&mut self, level: Level, text: impl FnOnce() -> String) {
        if level <= self.max && self.queue.len() < limits::NOTES {
            self.queue.push_back(Note { level, text: text() });
        }
    }

    /// A line that a peer caused.
    pub fn add_caused(&mut self, now: Time, level: Level, kind: Kind, text: impl FnOnce() -> String) {
        const MINUTE: Duration = Duration::from_secs(60);
        let Some(window) = self.windows.get_mut(kind as usize) else {
            return;
        };
        if now >= window.began + MINUTE {
            *window = Window { began: now, lines: 0 };
        }
        window.lines = window.lines.saturating_add(1);
        match window.lines {
            n if n < limits::NOTES_A_MINUTE => self.add(level, text),
            n if n == limits::NOTES_A_MINUTE => self.add(level, || format!("{} (more of this kind within the minute: at debug)", text())),
            _ => self.add(Level::Debug, text),
        }
    }

    pub fn take(&mut self) -> Option<Note> {
        self.queue.pop_front()
    }
}
