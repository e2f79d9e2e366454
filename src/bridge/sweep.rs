//! The search for retained values that no service stands for any more. A part of it subscribes to some of the notifications; the broker
//! replays what is retained there, and then the marker comes back that was published after the subscription. What was found is cleared,
//! and another pass looks again, until one finds nothing.
//!
//! A replay is not taken for complete because the marker came back. Mosquitto leaves out silently what does not fit the client's queue
//! (`max_queued_messages`), FlashMQ mixes the replay with live messages, amqtt sends it before the SUBACK, RabbitMQ sends nothing for a
//! filter with a wildcard. So a sweep begins when everything awake has been published on this connection, and what is known to be retained has to
//! come back: the two constants, and every value that is published. If some of it is missing, the replay was cut. Then what was found is cleared
//! and the part asked for again; and when most of it is awake, because such values fill the queue, the part is divided: by the depth of the
//! topics, then by the names that are known of each of their levels. A stale topic with an unknown name at one level is found by its names at
//! the others, or by its number: numbers that no known topic has at a level are asked for as well, as their replay brings nothing else.
//! Names do not cover a filter: the log says that values may stay, and the sweep begins again once nothing is awake.
//!
//! On a slow link the replay of everything would hold up requests for minutes. There the sweep asks in parts from the beginning, by the depth of
//! the topics, so that each topic is replayed once and unknown types are covered, too; and only while the link has nothing else to do.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use log::Level;

use super::items::{Service, ServiceId};
use super::notes::Kind;
use super::outbox::Special;
use super::session::{KEEPALIVE, LinkCommand, Mode, SERIAL};
use super::time::Time;
use super::topic::check_topic;
use super::{Bridge, limits};
use crate::text::escape;

#[derive(Debug)]
pub struct Sweep {
    pass: u32,
    before: usize,
    found: usize,
    /// A replay of this pass was cut and could not be divided: it may have had more.
    is_cut: bool,
    /// A part of this pass was divided by names: topics with others may be left.
    is_partial: bool,
    /// Parts of this pass that were asked for.
    asked: usize,
    /// The parts to come.
    parts: VecDeque<Part>,
    /// The filters under way, each what stands behind the portal ID, and the numbers that come next should these bring something.
    part: Vec<String>,
    next: Option<Numbers>,
    replay: Replay,
    step: Step,
}

/// What is asked for at once.
#[derive(Debug)]
enum Part {
    /// Each what stands behind the portal ID.
    Filters(Vec<String>),
    Numbers(Numbers),
}

/// The numbers from `first` on that no known topic has at this level of the filter.
#[derive(Debug)]
struct Numbers {
    filter: String,
    level: usize,
    first: u32,
}

/// What has come of the part under way.
#[derive(Clone, Copy, Debug, Default)]
struct Replay {
    messages: usize,
    /// So many of them are to be cleared.
    found: usize,
    /// Of the values that are published, and the constants, so many have not come: see [`super::items::Item::expected`].
    missing: usize,
    keepalive: bool,
    serial: bool,
    /// The marker has come back.
    is_marked: bool,
    /// Something retained came after the marker had been sent: a replay that is mixed with live messages is not over.
    goes_on: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The next part waits for the link to have nothing else to do. It is looked at again at `until`.
    Waiting {
        since: Option<Time>,
        until: Time,
    },
    /// Everything awake is being published.
    Publishing,
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

    /// To be called when everything awake is in the outbox.
    pub(super) fn begin_sweep(&mut self) {
        // they have to be retained before the first subscription
        self.push_constants();
        self.begin_pass(1, 0);
    }

    /// Looks for what was left behind and is not remembered, once there is nothing else to publish.
    pub(super) fn sweep_again(&mut self) {
        if self.unswept && self.mode == Mode::Bridge && self.sweep.is_none() {
            self.unswept = false;
            self.begin_sweep();
        }
    }

    /// `before`: what earlier passes have found.
    fn begin_pass(&mut self, pass: u32, before: usize) {
        self.sweep = Some(Sweep {
            pass,
            before,
            found: 0,
            is_cut: false,
            is_partial: false,
            asked: 0,
            parts: VecDeque::new(),
            part: Vec::new(),
            next: None,
            replay: Replay::default(),
            step: Step::Publishing,
        });
        self.await_published();
    }

    /// The services that are there at the start are published first. To be called again when they have been scanned.
    pub(super) fn await_published(&mut self) {
        if self.first_scan.is_none() && self.sweep.as_ref().is_some_and(|sweep| sweep.step == Step::Publishing) {
            self.outbox.push_sweep();
        }
    }

    /// Everything that stood in the queue when the pass began has been published.
    pub(super) fn sweep_published(&mut self) {
        let Some(sweep) = self.sweep.as_mut().filter(|sweep| sweep.step == Step::Publishing) else { return };
        if self.outbox.has_special(Special::Serial) || self.outbox.has_special(Special::KeepAlive) {
            // the queue has its turn now and then before what goes first
            self.outbox.push_sweep();
            return;
        }
        if self.pace.is_slow {
            sweep.parts = by_depth();
            sweep.step = Step::Waiting { since: None, until: Time::default() };
        } else {
            sweep.parts = VecDeque::from([Part::Filters(vec!["#".into()])]);
            self.begin_part();
        }
    }

    fn begin_part(&mut self) {
        let Some(part) = self.sweep.as_mut().and_then(|sweep| sweep.parts.pop_front()) else { return };
        let (part, next) = match part {
            Part::Filters(filters) => (filters, None),
            Part::Numbers(numbers) => self.number(numbers),
        };
        let constants = [KEEPALIVE, SERIAL].map(|rest| part.iter().any(|filter| matches(filter, rest.split('/'))));
        let missing = self.expect(&part) + constants.iter().filter(|expected| **expected).count();
        let filters = part.iter().map(|rest| self.topics.notification(rest)).collect();
        if let Some(sweep) = &mut self.sweep {
            sweep.step = Step::Subscribing;
            sweep.replay = Replay { missing, keepalive: constants[0], serial: constants[1], ..Replay::default() };
            sweep.part = part;
            sweep.next = next;
            sweep.asked += 1;
            self.link_commands.push_back(LinkCommand::Subscribe(filters));
        }
    }

    /// Marks the published values that a replay of this part has to bring, and counts them.
    fn expect(&mut self, part: &[String]) -> usize {
        let retain = self.options.retain;
        let mut expected = 0;
        for id in self.services.ids() {
            let Some(Service { name, instance, holder, items, .. }) = self.services.get_mut(id) else { continue };
            for (path, item) in items {
                // one that waits in the outbox may not have been published on this connection
                let is_retained = retain && *holder && item.published && !item.queued && !item.gone;
                let levels = || [name.service_type(), &**instance].into_iter().chain(path.split('/').skip(1));
                item.expected = is_retained && part.iter().any(|filter| matches(filter, levels()));
                expected += usize::from(item.expected);
            }
        }
        expected
    }

    /// The published values that the part has not brought, and that are still published.
    fn missing(&mut self) -> usize {
        let mut missing = 0;
        for id in self.services.ids() {
            let Some(service) = self.services.get_mut(id) else { continue };
            for item in service.items.values_mut() {
                missing += usize::from(std::mem::take(&mut item.expected) && item.published && !item.queued);
            }
        }
        missing
    }

    /// Smaller parts for one whose replay was cut; none if there is nothing to divide it by.
    fn divide(&self, part: &[String]) -> Vec<Part> {
        let Some((filter, others)) = part.split_last() else { return Vec::new() };
        if filter == "#" {
            return by_depth().into();
        }
        // the shallow topics that were part of it
        let others: Vec<String> = others.iter().filter(|other| *other != KEEPALIVE).cloned().collect();
        let levels: Vec<&str> = filter.split('/').collect();
        let names = self.names(filter);
        // one combination of levels in one order only: those before the last that is named have parts of their own
        let named = levels.iter().rposition(|level| !matches!(*level, "+" | "#")).map_or(0, |at| at + 1);
        let open = || names.iter().enumerate().skip(named).filter(|(at, _)| levels.get(*at) == Some(&"+"));
        let numbers = open().flat_map(|(level, names)| {
            let known: BTreeSet<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
            let above = known.last().map(|last| last.saturating_add(1));
            let between = above.filter(|above| known.len() < *above as usize).map(|_| 0);
            let numbers = move |first| Part::Numbers(Numbers { filter: filter.clone(), level, first });
            between.into_iter().chain(above).map(numbers)
        });
        let by_name = open().filter(|(_, names)| names.len() > 1).flat_map(|(level, names)| {
            let name = move |name: &&str| Part::Filters(vec![KEEPALIVE.to_owned(), with_name(filter, level, name)]);
            names.iter().map(name)
        });
        let mut parts: Vec<Part> = numbers.chain(by_name).collect();
        if !parts.is_empty() && !others.is_empty() {
            parts.insert(0, Part::Filters(others));
        }
        parts
    }

    /// The names that known topics have at each level of the filter, as far as it matches them.
    fn names(&self, filter: &str) -> Vec<BTreeSet<&str>> {
        let mut names = vec![BTreeSet::new(); filter.split('/').count()];
        for service in self.services.ids().into_iter().filter_map(|id: ServiceId| self.services.get(id)) {
            for path in service.items.keys() {
                let topic = || [service.name.service_type(), &*service.instance].into_iter().chain(path.split('/').skip(1));
                if matches(filter, topic()) {
                    names.iter_mut().zip(topic()).for_each(|(names, name)| names.extend([name]));
                }
            }
        }
        names
    }

    /// Filters for the next numbers, and what follows them.
    fn number(&self, Numbers { filter, level, first }: Numbers) -> (Vec<String>, Option<Numbers>) {
        let names = self.names(&filter);
        let is_known = |name: &String| names.get(level).is_some_and(|names| names.contains(name.as_str()));
        let mut after = None;
        let numbers = (first..u32::MAX).map(|number| (number, number.to_string())).filter(|(_, name)| !is_known(name));
        let numbers = numbers.take(limits::SWEEP_NUMBERS).inspect(|(number, _)| after = number.checked_add(1));
        let filters = [KEEPALIVE.to_owned()].into_iter().chain(numbers.map(|(_, name)| with_name(&filter, level, &name))).collect();
        (filters, after.map(|first| Numbers { filter, level, first }))
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
        let Some(Part::Filters(part)) = self.sweep.as_ref().and_then(|sweep| sweep.parts.front()) else { return true };
        let Some(filter) = part.last() else { return true };
        let services = self.services.ids().into_iter().filter_map(|id: ServiceId| self.services.get(id));
        let items = services.flat_map(|service| service.items.keys().map(move |path| (service, path)));
        let topics =
            items.map(|(service, path)| [service.name.service_type(), &*service.instance].into_iter().chain(path.split('/').skip(1)));
        topics.filter(|levels| matches(filter, levels.clone())).take(limits::SWEEP_SMALL + 1).count() <= limits::SWEEP_SMALL
    }

    /// The broker's answer to one filter.
    pub(super) fn sweep_subscribed(&mut self, now: Time, filter: &str, accepted: bool) {
        let quiet = now + self.sweep_quiet();
        let Some(sweep) = &mut self.sweep else { return };
        if sweep.step != Step::Subscribing || sweep.part.last().is_none_or(|last| self.topics.notification(last) != filter) {
            return;
        }
        if accepted {
            sweep.step = Step::Listening { since: now, quiet };
            sweep.replay.goes_on = false;
            // the marker comes back to us behind all that is retained
            self.push_constants();
        } else {
            self.sweep = None;
        }
    }

    fn sweep_quiet(&self) -> Duration {
        if self.pace.is_slow { limits::SWEEP_QUIET_SLOW } else { limits::SWEEP_QUIET }
    }

    /// A notification from the broker. Some send the replay before they acknowledge the subscription.
    pub(super) fn replayed(&mut self, now: Time, rest: &str, topic: &str, payload: &[u8], retained: bool) {
        let step = self.sweep.as_ref().map(|sweep| sweep.step);
        let is_acknowledged = matches!(step, Some(Step::Listening { .. }));
        if !is_acknowledged && step != Some(Step::Subscribing) {
            return;
        }
        if !retained {
            if is_acknowledged && rest == KEEPALIVE {
                self.take_marker(now);
            }
            return;
        }
        let was_expected = self.take_expected(rest);
        let mut stale = !payload.is_empty() && !matches!(rest, SERIAL | KEEPALIVE) && !self.takes_over_retained(now, rest);
        if stale && let Err(why) = check_topic(topic) {
            stale = false;
            self.notes.add_caused(now, Level::Warn, Kind::Item, || {
                format!("the retained value on {} cannot be cleared: the topic {why}; clear it by hand", escape(topic))
            });
        }
        // the rest is found by the next pass
        let is_new = stale && (self.outbox.stale() >= limits::STALE || self.outbox.push_stale(topic));
        let later = now + self.sweep_quiet();
        let Some(sweep) = &mut self.sweep else { return };
        sweep.found += usize::from(is_new);
        let replay = &mut sweep.replay;
        replay.messages += 1;
        replay.found += usize::from(is_new);
        replay.missing -= usize::from(was_expected && replay.missing > 0);
        replay.goes_on = true;
        if let Step::Listening { quiet, .. } = &mut sweep.step {
            *quiet = later;
        }
        if replay.missing == 0 && std::mem::take(&mut replay.is_marked) {
            // the marker was faster than the replay: one more, behind what has come by now
            replay.goes_on = false;
            self.push_constants();
        }
    }

    /// Whether the part under way has to bring this, and has not yet.
    fn take_expected(&mut self, rest: &str) -> bool {
        let Some(sweep) = &mut self.sweep else { return false };
        match rest {
            KEEPALIVE => std::mem::take(&mut sweep.replay.keepalive),
            SERIAL => std::mem::take(&mut sweep.replay.serial),
            _ => self.published_item(rest).is_some_and(|item| std::mem::take(&mut item.expected)),
        }
    }

    /// The marker came back. What is missing may still follow; else it is over once a marker comes back with nothing retained before it.
    fn take_marker(&mut self, now: Time) {
        let Some(Sweep { replay, .. }) = &mut self.sweep else { return };
        replay.is_marked = true;
        if replay.missing > 0 {
            return;
        }
        if std::mem::take(&mut replay.goes_on) {
            replay.is_marked = false;
            return self.push_constants();
        }
        self.end_part(now);
    }

    fn end_part(&mut self, now: Time) {
        let missing = self.missing();
        let Some(sweep) = &mut self.sweep else { return };
        let (part, next, replay) = (std::mem::take(&mut sweep.part), sweep.next.take(), sweep.replay);
        let constants = usize::from(replay.keepalive) + usize::from(replay.serial);
        self.link_commands.push_back(LinkCommand::Unsubscribe(part.iter().map(|rest| self.topics.notification(rest)).collect()));
        if replay.messages == 0 && constants > 0 {
            // without the marker, nothing may be read here
            if replay.is_marked {
                self.say_no_replay();
            }
            self.sweep = None;
            return;
        }
        // a few values that do not come are not retained: the broker may have refused them
        let is_cut = !replay.is_marked || constants > 0 || (missing > 0 && replay.messages + missing > limits::SWEEP_SURE);
        let room = limits::SWEEP_PARTS.saturating_sub(sweep.parts.len());
        if let Some(next) = next.filter(|_| replay.found > 0) {
            sweep.parts.push_front(Part::Numbers(next));
            sweep.is_cut |= is_cut;
        } else if is_cut && replay.found * 2 <= replay.messages && sweep.asked < limits::SWEEP_ASKED {
            // what is awake fills the queue
            let mut parts = self.divide(&part);
            let Some(sweep) = &mut self.sweep else { return };
            // only a marker that got lost may come the next time
            sweep.is_cut |= parts.is_empty() && !replay.is_marked;
            sweep.is_partial |= part.last().is_none_or(|filter| filter != "#") || parts.len() > room;
            parts.truncate(room);
            parts.into_iter().rev().for_each(|part| sweep.parts.push_front(part));
        } else {
            sweep.is_cut |= is_cut;
        }
        let Some(sweep) = &mut self.sweep else { return };
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
        let (pass, before, found, is_cut) = (sweep.pass, sweep.before, sweep.found, sweep.is_cut);
        let may_stay = is_cut || sweep.is_partial;
        if found > 0 {
            // a broker that cuts replays takes hundreds of passes
            let level = if pass == 1 { Level::Info } else { Level::Debug };
            self.notes.add(level, || format!("{found} retained values that nobody stands for are cleared"));
        }
        let passes = if found > 0 { limits::SWEEP_PASSES } else { limits::SWEEP_PASSES_CUT };
        if (found > 0 || is_cut) && pass < passes {
            sweep.step = Step::Clearing;
            self.next_pass();
        } else {
            self.sweep = None;
            if pass > 2 {
                self.notes
                    .add(Level::Info, || format!("{} retained values that nobody stands for are cleared in {pass} passes", before + found));
            }
            self.history.may_stay = may_stay || found > 0;
            if may_stay {
                self.say_cut();
            } else if found > 0 {
                self.notes.add(Level::Warn, || {
                    format!(
                        "stale retained values are still found after {pass} passes: the broker does not accept the empty messages that clear them, or another client publishes below {}",
                        self.topics.notification("#")
                    )
                });
            }
        }
    }

    /// Once in the life of the daemon: it is a property of the broker.
    fn say_cut(&mut self) {
        let level = if std::mem::replace(&mut self.history.cuts_replay, true) { Level::Debug } else { Level::Warn };
        self.notes.add(level, || {
            "the broker leaves out retained messages where it has many to replay: values that a former run has left retained may stay; \
             raise its limit of queued messages (Mosquitto: max_queued_messages)"
                .into()
        });
    }

    fn say_no_replay(&mut self) {
        let level = if std::mem::replace(&mut self.history.has_no_replay, true) { Level::Debug } else { Level::Warn };
        let advice = if self.options.retain { "; set `retain = false` in [bridge], or use another broker" } else { "" };
        self.notes.add(level, || {
            format!(
                "the broker does not replay retained messages to subscriptions with wildcards (RabbitMQ does not, others when they retain nothing): values that a former run has left retained cannot be found and stay, and clients do not find this system by N/+/system/0/Serial{advice}"
            )
        });
    }

    /// Once everything found has been cleared, looks again.
    pub(super) fn next_pass(&mut self) {
        if let Some(sweep) = &mut self.sweep
            && sweep.step == Step::Clearing
            && self.outbox.stale() == 0
        {
            let (pass, before) = (sweep.pass + 1, sweep.before + sweep.found);
            self.begin_pass(pass, before);
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
                self.end_part(now);
            }
            Step::Waiting { .. } | Step::Publishing | Step::Subscribing | Step::Listening { .. } | Step::Clearing => {}
        }
    }

    pub(super) fn sweep_deadline(&self) -> Option<Time> {
        match self.sweep.as_ref()?.step {
            Step::Waiting { until, .. } => Some(until),
            Step::Listening { quiet, .. } => Some(quiet),
            Step::Publishing | Step::Subscribing | Step::Clearing => None,
        }
    }
}

/// The filter with a name at one of its levels.
fn with_name(filter: &str, level: usize, name: &str) -> String {
    let levels: Vec<&str> = filter.split('/').enumerate().map(|(at, kept)| if at == level { name } else { kept }).collect();
    levels.join("/")
}

/// All notifications, by the depth of their topics. The marker comes on the topic of the keep-alive, which the first part has by its depth.
fn by_depth() -> VecDeque<Part> {
    let parts = [
        &["+", "+/+", "+/+/+"][..],
        &[KEEPALIVE, "+/+/+/+"],
        &[KEEPALIVE, "+/+/+/+/+"],
        &[KEEPALIVE, "+/+/+/+/+/+"],
        &[KEEPALIVE, "+/+/+/+/+/+/+/#"],
    ];
    parts.map(|part| Part::Filters(part.iter().map(|&filter| filter.to_owned()).collect())).into()
}

fn matches<'a>(filter: &str, mut levels: impl Iterator<Item = &'a str>) -> bool {
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (name, Some(level)) if name == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}
