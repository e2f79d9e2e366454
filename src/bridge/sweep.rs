//! The search for retained values that no service stands for any more. A part of it subscribes to some of the notifications; the broker
//! replays what is retained there, and then the marker comes back that was published after the subscription. What was found is cleared,
//! and another pass looks again, until one finds nothing.
//!
//! On a slow link the replay of everything would hold up requests for minutes, and beyond its queue's limit the broker would drop them.
//! There the sweep asks in parts, by the depth of the topics, so that each topic is replayed once and unknown types are covered, too; and
//! only while the link has nothing else to do.

use std::collections::VecDeque;
use std::time::Duration;

use log::Level;

use super::items::ServiceId;
use super::notes::Kind;
use super::session::{KEEPALIVE, LinkCommand, Mode, SERIAL};
use super::time::Time;
use super::topic::check_topic;
use super::{Bridge, limits};
use crate::text::escape;

#[derive(Debug)]
pub struct Sweep {
    pass: u32,
    found: usize,
    /// The part under way has had something replayed.
    is_replaying: bool,
    /// A replay ended without the marker: the broker may have dropped more of it.
    is_cut: bool,
    /// The filters of the parts to come, and of the one under way.
    parts: VecDeque<Vec<String>>,
    filters: Vec<String>,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The next part waits for the link to have nothing else to do. It is looked at again at `until`.
    Waiting {
        since: Option<Time>,
        until: Time,
    },
    Subscribing,
    /// The part ends at `quiet`, should the marker get lost.
    Listening {
        since: Time,
        quiet: Time,
    },
    /// What was found is being cleared; then comes the next pass.
    Clearing,
}

/// How busy the link is.
#[derive(Debug, Default)]
pub struct Pace {
    is_slow: bool,
    last_request: Option<Time>,
}

impl Pace {
    pub fn requested(&mut self, now: Time) {
        self.last_request = Some(now);
    }
}

impl Bridge {
    /// Whether the link carries so little that a large replay would hold up requests. To be called before [`Self::link_up`], and when it
    /// may have changed.
    pub fn set_slow_link(&mut self, is_slow: bool) {
        self.pace.is_slow = is_slow;
    }

    pub(super) fn begin_sweep(&mut self) {
        self.begin_pass(1, self.pace.is_slow);
    }

    /// Looks for what was left behind and is not remembered, once there is nothing else to publish.
    pub(super) fn sweep_again(&mut self) {
        if self.unswept && self.mode == Mode::Bridge && self.sweep.is_none() {
            self.unswept = false;
            self.begin_sweep();
        }
    }

    fn begin_pass(&mut self, pass: u32, in_parts: bool) {
        let filters = |texts: &[&str]| texts.iter().map(|text| self.topics.notification(text)).collect();
        // the marker comes on the topic of the keep-alive, which the first part has by its depth
        let parts: VecDeque<Vec<String>> = if in_parts {
            [
                &["+", "+/+", "+/+/+"][..],
                &[KEEPALIVE, "+/+/+/+"],
                &[KEEPALIVE, "+/+/+/+/+"],
                &[KEEPALIVE, "+/+/+/+/+/+"],
                &[KEEPALIVE, "+/+/+/+/+/+/+/#"],
            ]
            .into_iter()
            .map(filters)
            .collect()
        } else {
            VecDeque::from([filters(&["#"])])
        };
        let step = Step::Waiting { since: None, until: Time::default() };
        self.sweep = Some(Sweep { pass, found: 0, is_replaying: false, is_cut: false, parts, filters: Vec::new(), step });
        if !self.pace.is_slow {
            self.begin_part();
        }
    }

    fn begin_part(&mut self) {
        if let Some(sweep) = &mut self.sweep
            && let Some(filters) = sweep.parts.pop_front()
        {
            sweep.step = Step::Subscribing;
            sweep.is_replaying = false;
            sweep.filters.clone_from(&filters);
            self.link_commands.push_back(LinkCommand::Subscribe(filters));
        }
    }

    /// Whether a replay would hold up nothing. A part that seems small comes soon after the last request, and in the end in any case;
    /// a large one only when none came for a long time.
    fn may_sweep(&self, now: Time, since: Time) -> bool {
        if !self.pace.is_slow {
            return true;
        }
        let is_small = self.next_part_is_small();
        let is_patient = now >= since + limits::SWEEP_PATIENCE;
        let pause = if is_small { limits::SWEEP_AFTER_REQUEST } else { limits::SWEEP_PATIENCE };
        let is_quiet = self.outbox.len() <= limits::SWEEP_QUEUE && self.pace.last_request.is_none_or(|last| now >= last + pause);
        if is_small { is_quiet || is_patient } else { is_quiet && is_patient }
    }

    /// As far as the items that are there tell.
    fn next_part_is_small(&self) -> bool {
        let Some(depth) = self.sweep.as_ref().and_then(|sweep| sweep.parts.front()?.last()).map(|filter| filter.matches('+').count())
        else {
            return true;
        };
        let depth_of = |path: &str| 2 + path.matches('/').count();
        let services = self.services.ids().into_iter().filter_map(|id: ServiceId| self.services.get(id));
        let items = services.flat_map(|service| service.items.keys()).filter(|path| depth_of(path) == depth);
        items.take(limits::SWEEP_SMALL + 1).count() <= limits::SWEEP_SMALL
    }

    /// The broker's answer to one filter.
    pub(super) fn sweep_subscribed(&mut self, now: Time, filter: &str, accepted: bool) {
        let quiet = now + self.sweep_quiet();
        let Some(sweep) = &mut self.sweep else { return };
        if sweep.step != Step::Subscribing || sweep.filters.last().is_none_or(|last| last != filter) {
            return;
        }
        if accepted {
            sweep.step = Step::Listening { since: now, quiet };
        } else {
            self.sweep = None;
        }
        // comes back to us behind all that is retained
        self.push_constants();
    }

    fn sweep_quiet(&self) -> Duration {
        if self.pace.is_slow { limits::SWEEP_QUIET_SLOW } else { limits::SWEEP_QUIET }
    }

    /// A notification from the broker.
    pub(super) fn replayed(&mut self, now: Time, rest: &str, topic: &str, payload: &[u8], retained: bool) {
        if !matches!(&self.sweep, Some(sweep) if matches!(sweep.step, Step::Listening { .. })) {
            return;
        }
        if !retained {
            if rest == KEEPALIVE {
                self.end_part(now);
            }
            return;
        }
        let mut stale = !payload.is_empty() && !matches!(rest, SERIAL | KEEPALIVE) && !self.takes_over_retained(now, rest);
        if stale && let Err(why) = check_topic(topic) {
            stale = false;
            self.notes.add_caused(now, Level::Warn, Kind::Item, || {
                format!("the retained value on {} cannot be cleared: the topic {why}; clear it by hand", escape(topic))
            });
        }
        let later = now + self.sweep_quiet();
        if let Some(sweep) = &mut self.sweep {
            sweep.is_replaying = true;
            if let Step::Listening { quiet, .. } = &mut sweep.step {
                *quiet = later;
            }
            if stale {
                sweep.found += 1;
                // the rest is found by the next pass
                if self.outbox.stale() < limits::STALE {
                    self.outbox.push_stale(topic.into());
                }
            }
        }
    }

    fn end_part(&mut self, now: Time) {
        let Some(sweep) = &mut self.sweep else { return };
        self.link_commands.push_back(LinkCommand::Unsubscribe(std::mem::take(&mut sweep.filters)));
        if sweep.parts.is_empty() {
            return self.end_pass();
        }
        let Step::Listening { since, .. } = sweep.step else { return };
        // requests have the link for as long as the part had it
        let until = if self.pace.is_slow { now + now.after(since) } else { now };
        sweep.step = Step::Waiting { since: Some(now), until };
        if !self.pace.is_slow {
            self.begin_part();
        }
    }

    fn end_pass(&mut self) {
        let Some(sweep) = &mut self.sweep else { return };
        let (pass, found) = (sweep.pass, sweep.found);
        if found > 0 {
            self.notes.add(Level::Info, || format!("{found} retained values that nobody stands for are cleared"));
        }
        let passes = if found > 0 { limits::SWEEP_PASSES } else { limits::SWEEP_PASSES_CUT };
        if (found > 0 || sweep.is_cut) && pass < passes {
            sweep.step = Step::Clearing;
            self.next_pass();
        } else {
            self.sweep = None;
        }
    }

    /// Once everything found has been cleared, looks again. A replay that was too much for the broker's queue is asked for in parts.
    pub(super) fn next_pass(&mut self) {
        if let Some(sweep) = &mut self.sweep
            && sweep.step == Step::Clearing
            && self.outbox.stale() == 0
        {
            let (pass, in_parts) = (sweep.pass + 1, sweep.is_cut || self.pace.is_slow);
            self.begin_pass(pass, in_parts);
        }
    }

    pub(super) fn check_sweep(&mut self, now: Time) {
        let Some(step) = self.sweep.as_ref().map(|sweep| sweep.step) else { return };
        match step {
            Step::Waiting { since, until } if until <= now => {
                let since = since.unwrap_or(now);
                if self.may_sweep(now, since) {
                    self.begin_part();
                } else if let Some(sweep) = &mut self.sweep {
                    sweep.step = Step::Waiting { since: Some(since), until: now + limits::SWEEP_LOOK };
                }
            }
            Step::Listening { quiet, .. } if quiet <= now => {
                if let Some(sweep) = &mut self.sweep {
                    sweep.is_cut |= sweep.is_replaying;
                }
                self.end_part(now);
            }
            Step::Waiting { .. } | Step::Subscribing | Step::Listening { .. } | Step::Clearing => {}
        }
    }

    pub(super) fn sweep_deadline(&self) -> Option<Time> {
        match self.sweep.as_ref()?.step {
            Step::Waiting { until, .. } => Some(until),
            Step::Listening { quiet, .. } => Some(quiet),
            Step::Subscribing | Step::Clearing => None,
        }
    }
}
