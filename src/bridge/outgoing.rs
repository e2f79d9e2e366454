//! Calls to be sent, and how many of them may be under way.
//!
//! dbus-daemon keeps a place for each call until it is answered, however long we wait for it ourselves, and refuses every further call
//! of a connection when there are 128. A call that is not answered holds its place until the called connection ends. So a connection
//! gets few places before its first answer, fewer the more are taken, and one more at a time while a call to it is overdue; what is
//! left of the places is for those that show that they are alive. Each connection has a queue of its own, and they take turns.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use super::limits;
use super::name::BUS;
use super::time::Time;
use super::value::Value;

/// A method call to be sent.
#[derive(Clone, PartialEq, Debug)]
pub struct BusCall {
    pub id: u32,
    pub destination: Box<str>,
    pub path: Box<str>,
    pub method: Method,
    /// The bus keeps a place for the answer.
    pub answered: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Method {
    ListNames,
    GetNameOwner(Box<str>),
    GetItems,
    GetValue,
    SetValue(Value),
    Introspect,
    /// Of localsettings; it answers each, in order.
    AddSettings(Vec<Setting>),
    RemoveSettings(Vec<Box<str>>),
}

/// A setting that is to be there.
#[derive(Clone, PartialEq, Debug)]
pub struct Setting {
    pub path: Box<str>,
    pub default: Value,
    /// [`Value::Invalid`] where there is none.
    pub min: Value,
    pub max: Value,
}

/// Places that calls may hold at the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    /// All, once only connections that have shown a sign of life take more.
    pub all: usize,
    /// Before that: of connections of which nothing was heard for [`limits::ALIVE`].
    pub unheard: usize,
    /// Beyond which a connection gets one at most, and none while a call to it is overdue.
    pub crowded: usize,
    /// Of one connection, since it was idle, before its first answer, and after it.
    pub first: usize,
    pub each: usize,
    /// Of one connection while a call to it is overdue: if it has never answered nor said anything since it was called, and otherwise.
    pub mute: usize,
    pub overdue: usize,
}

/// Calls on their way to the bus.
#[derive(Debug)]
pub struct Outgoing {
    places: Places,
    lanes: HashMap<Box<str>, Lane>,
    /// The bus itself answers at once: it needs no place.
    to_bus: BTreeMap<u32, BusCall>,
    /// Connections with calls that may be sent, in turn, and those with calls that could not be when they were looked at. An entry
    /// counts only if the lane is [`Listed`] so.
    ready: VecDeque<Box<str>>,
    blocked: VecDeque<Box<str>>,
    /// When all that are blocked are looked at again: nothing else notices that a connection was heard.
    look_again: Option<Time>,
    under_way: HashMap<u32, Box<str>>,
}

/// What one connection is asked.
#[derive(Debug, Default)]
struct Lane {
    queue: BTreeMap<u32, BusCall>,
    /// Sent and not answered, with when that was.
    under_way: BTreeMap<u32, Time>,
    /// It has answered once.
    known: bool,
    /// It has answered since it was idle.
    open: bool,
    listed: Listed,
    /// Calls that were sent without a place since that time.
    unanswered: Option<(Time, usize)>,
    /// The connection has no service any more.
    gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Listed {
    #[default]
    Not,
    Ready,
    Blocked,
}

/// What is under way, for the summary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnderWay {
    pub calls: usize,
    pub connections: usize,
    /// Not answered for [`limits::OVERDUE`], and of how many connections.
    pub overdue: usize,
    pub hung: usize,
    pub oldest: Option<Duration>,
}

impl fmt::Display for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, connections, overdue, hung, oldest } = self;
        write!(f, "{calls} under way to {connections} connections")?;
        if let Some(oldest) = oldest {
            write!(f, ", the oldest for {} s", oldest.as_secs())?;
        }
        if *overdue > 0 {
            write!(f, "; {overdue} are not answered by {hung} connections that hang")?;
        }
        Ok(())
    }
}

/// Blocked connections that are looked at again when a place becomes free.
const LOOKS: usize = 8;
/// How often all of them are.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Outgoing {
    pub fn new(places: Places) -> Self {
        Self {
            places,
            lanes: HashMap::new(),
            to_bus: BTreeMap::new(),
            ready: VecDeque::new(),
            blocked: VecDeque::new(),
            look_again: None,
            under_way: HashMap::new(),
        }
    }

    pub fn push(&mut self, call: BusCall) {
        if *call.destination == *BUS {
            self.to_bus.insert(call.id, call);
            return;
        }
        let destination = call.destination.clone();
        self.lanes.entry(destination.clone()).or_default().queue.insert(call.id, call);
        self.make_ready(destination);
    }

    /// The next call that may be sent now. `heard` says when a connection last sent anything.
    pub fn poll(&mut self, now: Time, heard: impl Fn(&str) -> Option<Time>) -> Option<BusCall> {
        if let Some((_, call)) = self.to_bus.pop_first() {
            return Some(call);
        }
        if self.look_again.is_some_and(|at| at <= now) {
            self.look_again = None;
            self.look_at_blocked(usize::MAX);
        }
        while let Some(destination) = self.ready.pop_front() {
            let used = self.under_way.len();
            let places = self.places;
            let Some(lane) = self.lanes.get_mut(&destination).filter(|lane| lane.listed == Listed::Ready) else { continue };
            lane.listed = Listed::Not;
            if lane.queue.is_empty() {
                self.drop_if_idle(&destination);
            } else if lane.admits(now, &places, used, || heard(&destination)) {
                let Some((id, call)) = lane.queue.pop_first() else { continue };
                lane.under_way.insert(id, now);
                self.under_way.insert(id, destination.clone());
                self.make_ready(destination);
                self.check();
                return Some(call);
            } else {
                lane.listed = Listed::Blocked;
                self.blocked.push_back(destination);
                self.look_again.get_or_insert(now + LOOK_AGAIN);
            }
        }
        None
    }

    /// When [`Self::poll`] may have something that it had not before.
    pub fn next_look(&self) -> Option<Time> {
        self.look_again
    }

    fn make_ready(&mut self, destination: Box<str>) {
        if let Some(lane) = self.lanes.get_mut(&destination)
            && lane.listed != Listed::Ready
            && !lane.queue.is_empty()
        {
            lane.listed = Listed::Ready;
            self.ready.push_back(destination);
        }
    }

    fn look_at_blocked(&mut self, most: usize) {
        for _ in 0..most {
            let Some(destination) = self.blocked.pop_front() else { return };
            if self.lanes.get(&destination).is_some_and(|lane| lane.listed == Listed::Blocked) {
                self.make_ready(destination);
            }
        }
    }

    /// A call that is not under way yet is not sent.
    pub fn cancel(&mut self, destination: &str, id: u32) -> Option<BusCall> {
        if let Some(call) = self.to_bus.remove(&id) {
            return Some(call);
        }
        let call = self.lanes.get_mut(destination)?.queue.remove(&id);
        self.drop_if_idle(destination);
        call
    }

    /// The method of a call that waits for a place.
    pub fn waiting(&mut self, destination: &str, id: u32) -> Option<&mut Method> {
        let lane = self.lanes.get_mut(destination).filter(|lane| lane.listed == Listed::Blocked)?;
        lane.queue.get_mut(&id).map(|call| &mut call.method)
    }

    /// A call that waits for a place is to be sent without one, if no call to its connection is under way: what is sent to a connection that
    /// hangs fills the memory of the bus, so that there are as many as it may have places.
    pub fn send_unanswered(&mut self, now: Time, destination: &str, id: u32) -> Option<BusCall> {
        let lane = self.lanes.get_mut(destination)?;
        let (since, count) = lane.unanswered.filter(|(since, _)| now < *since + limits::OVERDUE).unwrap_or((now, 0));
        if !lane.under_way.is_empty() || count >= self.places.each {
            return None;
        }
        let call = lane.queue.remove(&id)?;
        lane.unanswered = Some((since, count + 1));
        Some(BusCall { answered: false, ..call })
    }

    pub fn is_under_way(&self, id: u32) -> bool {
        self.under_way.contains_key(&id)
    }

    /// The call could not be sent: it holds no place.
    pub fn unsent(&mut self, id: u32) {
        let Some(destination) = self.under_way.remove(&id) else { return };
        if let Some(lane) = self.lanes.get_mut(&destination) {
            lane.under_way.remove(&id);
        }
        self.make_ready(destination.clone());
        self.drop_if_idle(&destination);
        self.check();
    }

    /// The answer has come, or the bus says that there will be none. Whom it was for, if it was overdue.
    pub fn answered(&mut self, now: Time, id: u32) -> Option<Box<str>> {
        let destination = self.under_way.remove(&id)?;
        let mut overdue = false;
        if let Some(lane) = self.lanes.get_mut(&destination) {
            overdue = lane.under_way.remove(&id).is_some_and(|sent| sent + limits::OVERDUE <= now);
            (lane.known, lane.open) = (true, true);
        }
        self.make_ready(destination.clone());
        self.look_at_blocked(LOOKS);
        self.drop_if_idle(&destination);
        self.check();
        overdue.then_some(destination)
    }

    /// The last service of a connection has left.
    pub fn gone(&mut self, destination: &str) {
        if let Some(lane) = self.lanes.get_mut(destination) {
            lane.gone = true;
        }
        self.drop_if_idle(destination);
    }

    /// The next calls to an idle connection begin with few again.
    fn drop_if_idle(&mut self, destination: &str) {
        let Some(lane) = self.lanes.get_mut(destination) else { return };
        if lane.queue.is_empty() && lane.under_way.is_empty() {
            lane.open = false;
            if lane.gone || !lane.known {
                self.lanes.remove(destination);
            }
        }
    }

    pub fn under_way(&self, now: Time) -> UnderWay {
        let lanes = || self.lanes.values().filter(|lane| !lane.under_way.is_empty());
        let oldest = lanes().filter_map(|lane| lane.under_way.values().min()).min();
        UnderWay {
            calls: self.under_way.len(),
            connections: lanes().count(),
            overdue: lanes().map(|lane| lane.overdue(now)).sum(),
            hung: lanes().filter(|lane| lane.is_overdue(now)).count(),
            oldest: oldest.map(|sent| now.after(*sent)),
        }
    }

    /// What is counted for each connection is what is counted in all.
    fn check(&self) {
        debug_assert!(self.under_way.len() <= self.places.all, "{} calls are under way", self.under_way.len());
        debug_assert_eq!(self.under_way.len(), self.lanes.values().map(|lane| lane.under_way.len()).sum::<usize>());
    }
}

impl Lane {
    fn overdue(&self, now: Time) -> usize {
        self.under_way.values().filter(|sent| **sent + limits::OVERDUE <= now).count()
    }

    fn is_overdue(&self, now: Time) -> bool {
        self.under_way.first_key_value().is_some_and(|(_, sent)| *sent + limits::OVERDUE <= now)
    }

    fn admits(&self, now: Time, places: &Places, used: usize, heard: impl FnOnce() -> Option<Time>) -> bool {
        let held = self.under_way.len();
        if self.is_overdue(now) {
            let last = self.under_way.last_key_value().map(|(_, sent)| *sent);
            let most =
                if self.known || heard().is_some_and(|heard| last.is_some_and(|last| heard > last)) { places.overdue } else { places.mute };
            return held < most && self.overdue(now) == held && used < places.crowded;
        }
        let most = if self.open { places.each } else { places.first };
        let share = (places.crowded.saturating_sub(used) / 2).max(1);
        if held >= most.min(share) {
            return false;
        }
        used < places.unheard || (used < places.all && heard().is_some_and(|heard| now < heard + limits::ALIVE))
    }
}
