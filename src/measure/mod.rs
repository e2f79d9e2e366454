//! Measurements for HTTP backends, without any input or output: the items that the bridge knows, what the disk and the backends say and
//! both clocks go in; records to be kept and posted, status messages and log lines come out.
//!
//! A measurement is taken on the grid of the wall clock and kept at once; the oldest that is kept is posted, one at a time for each
//! target, until the backend has dealt with it. After each event, ask `poll_command`, `poll_note`, and `poll_publish` as long as the
//! connection has room; and `poll_timeout` for when to call `handle_timeout`.

pub mod answer;
pub mod options;
mod queue;
mod sample;
mod stamp;
mod target;

use std::ops::Range;

use log::Level;

use crate::bridge::name::PortalId;
use crate::bridge::topic::Topics;
use crate::bridge::{Bridge, Note, Publish, Time, limits};

pub use answer::{Answer, Outcome};
use options::Options;
pub use queue::Entry;
pub use sample::{Count, Moment, Sample, Sampler};
pub use stamp::Wall;
use target::Target;

/// What is to be done for one target, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// To be kept, at the end of what is kept: answered by [`Event::Stored`].
    Append { seq: u64, body: Vec<u8> },
    /// To be posted: answered by [`Event::Posted`], [`Event::Lost`] or [`Event::Unreadable`].
    Post(u64),
    /// Nothing up to this one is needed any more.
    Forget { through: u64 },
    /// A power cut may take nothing of what is kept by now.
    Sync,
}

/// What the edge says of one target.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// What earlier lives have left, oldest first; the first event of all.
    Opened {
        entries: Vec<Entry>,
        next_seq: u64,
    },
    /// This and all before are kept.
    Stored(u64),
    /// It was to be posted, and is damaged.
    Lost(u64),
    /// It was to be posted, and cannot be read now; why.
    Unreadable(String),
    Posted(Outcome),
}

/// What the measurements are made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub portal: PortalId,
    /// Empty, or ends with a slash.
    pub prefix: String,
    pub targets: Vec<Options>,
    /// An earlier life may have had more of them.
    pub had_more: bool,
    /// Of the jitter.
    pub seed: u64,
    /// What is more verbose is not formatted.
    pub verbosity: Level,
}

#[derive(Debug)]
pub struct Measures {
    topics: Topics,
    targets: Vec<Target>,
    linked: bool,
    had_more: bool,
    /// The status of these, from 1, is to be taken back: they are not there any more.
    former: Range<usize>,
}

impl Measures {
    pub fn new(setup: Setup) -> Self {
        let Setup { portal, prefix, targets, had_more, seed, verbosity } = setup;
        let seeds = (1..).map(|n: u64| seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let targets = targets.into_iter().zip(seeds).map(|(options, seed)| Target::new(options, seed, verbosity)).collect();
        Self { topics: Topics::new(&prefix, portal), targets, linked: false, had_more, former: 0..0 }
    }

    /// What the edge has to say of the target with this number, from 0.
    pub fn event(&mut self, at: Moment, target: usize, event: Event) {
        if let Some(target) = self.targets.get_mut(target) {
            target.event(at, event);
        }
    }

    /// The broker is there: it is told everything.
    pub fn link_up(&mut self) {
        self.linked = true;
        if self.had_more {
            self.former = self.targets.len() + 1..limits::TARGETS + 1;
        }
        self.targets.iter_mut().for_each(Target::tell_now);
    }

    pub fn link_down(&mut self) {
        self.linked = false;
    }

    /// To be called when the time that [`Self::poll_timeout`] gave has come; early does no harm.
    pub fn handle_timeout(&mut self, at: Moment, bridge: &Bridge) {
        for target in &mut self.targets {
            target.handle_timeout(at, self.topics.portal().as_str(), bridge);
        }
    }

    /// When [`Self::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.targets.iter().filter_map(Target::poll_timeout).min()
    }

    /// What is to be done, and for which target.
    pub fn poll_command(&mut self) -> Option<(usize, Command)> {
        self.targets.iter_mut().enumerate().find_map(|(n, target)| Some((n, target.poll_command()?)))
    }

    pub fn poll_note(&mut self) -> Option<Note> {
        self.targets.iter_mut().find_map(Target::poll_note)
    }

    /// The status of a target, when it is time.
    pub fn poll_publish(&mut self, now: Time) -> Option<Publish> {
        if !self.linked {
            return None;
        }
        let (number, payload) = match self.former.next() {
            Some(number) => (number, Vec::new()),
            None => {
                let (n, target) = self.targets.iter_mut().enumerate().find(|(_, target)| target.is_status_wanted())?;
                (n + 1, target.status(now))
            }
        };
        Some(Publish { topic: self.topics.own(&format!("http/{number}")), payload, retain: true })
    }

    /// Nothing is left to be published.
    pub fn is_drained(&self) -> bool {
        !self.linked || self.former.is_empty() && !self.targets.iter().any(Target::is_status_wanted)
    }

    /// A few lines for the log, on request.
    pub fn summary(&self, now: Time) -> impl Iterator<Item = String> {
        self.targets.iter().map(move |target| target.summary(now))
    }

    /// The end: nothing more is measured or posted, and the status is taken back.
    pub fn shut_down(&mut self) {
        self.targets.iter_mut().for_each(Target::shut_down);
    }

    /// An answer is waited for.
    pub fn is_posting(&self) -> bool {
        self.targets.iter().any(Target::is_posting)
    }
}
