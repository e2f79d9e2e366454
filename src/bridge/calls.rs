//! Calls to the bus: what is to be sent, what is waited for, and until when.
//!
//! The ID of a call is the serial number of its message, so the bus side needs no table of its own.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::items::{Change, ServiceId};
use super::limits;
use super::name::{BUS, ServiceName};
use super::outgoing::{BusCall, Method, Outgoing, UnderWay};
use super::time::Time;
use super::value::Value;

/// What came back, by its signature.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    Names(Vec<String>),
    Text(String),
    Items(Vec<(String, Change)>),
    /// A dictionary (`a{sv}`) may be the values of an inner path as well.
    Value(Value),
    /// The value of an item, whatever it is: a dictionary that no inner path gives.
    Item(Value),
    Code(i64),
    Error {
        name: String,
        text: String,
    },
    /// A body of a kind no call of ours is answered with, or a call that could not be sent, with the reason.
    Unreadable(String),
    /// The call was sent without a place for its answer.
    Unasked,
}

impl Reply {
    /// The bus answers in the place of a connection that is gone.
    pub fn is_from_nobody(&self) -> bool {
        let Self::Error { name, .. } = self else { return false };
        matches!(name.strip_prefix("org.freedesktop.DBus.Error."), Some("NoReply" | "ServiceUnknown" | "NameHasNoOwner" | "Disconnected"))
    }

    /// Why this is not the answer that was hoped for.
    pub fn reason(&self) -> String {
        match self {
            Self::Error { name, text } => format!("{name}: {text}"),
            Self::Unreadable(why) => why.clone(),
            Self::Unasked => "sent without asking for an answer".into(),
            _ => "an answer of the wrong kind".into(),
        }
    }
}

/// What a call is for.
#[derive(Clone, PartialEq, Debug)]
pub enum Purpose {
    Names,
    Owner(ServiceName),
    ScanItems,
    ScanRoot,
    WalkNode(Box<str>),
    WalkValue(Box<str>, Dictionary),
    Read(Box<str>, Dictionary),
    /// Whether there are objects below one that gives a dictionary.
    ReadNode(Box<str>),
    Write(Box<str>),
}

/// What a dictionary is that an object gives as its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dictionary {
    Unknown,
    /// The value of the object itself, which has no others below it.
    OfItem,
    /// The values of the objects below.
    OfTree,
}

/// What an MQTT client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    Read,
    Write,
}

impl Purpose {
    fn request(&self) -> Option<Request> {
        match self {
            Self::Read(..) | Self::ReadNode(_) => Some(Request::Read),
            Self::Write(_) => Some(Request::Write),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub struct Calls {
    next: u32,
    out: Outgoing,
    /// Sent without a place for the answer.
    unasked: VecDeque<BusCall>,
    waiting: HashMap<u32, Call>,
    /// Requests of each service that wait for their answers.
    each: HashMap<ServiceId, Requests>,
    /// All other calls that wait: scans of services, and questions to the bus, which it answers at once.
    scans: usize,
    deadlines: BTreeSet<(Time, u32)>,
    /// Of the values that wait.
    bytes: usize,
}

/// How many requests of one service wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Requests {
    reads: usize,
    writes: usize,
}

impl Requests {
    fn of(&mut self, request: Request) -> &mut usize {
        match request {
            Request::Read => &mut self.reads,
            Request::Write => &mut self.writes,
        }
    }
}

#[derive(Debug)]
struct Call {
    service: Option<ServiceId>,
    destination: Box<str>,
    purpose: Purpose,
    deadline: Time,
    /// What comes after that: a write that still waits for a place then is sent without one.
    last_deadline: Time,
    bytes: usize,
}

/// A call that came to its end without an answer, and what is said of it.
#[derive(Debug)]
pub struct Expired {
    pub service: Option<ServiceId>,
    pub purpose: Purpose,
    pub reply: Option<Reply>,
}

/// What an answer means.
#[derive(Debug, Default)]
pub struct Answered {
    pub call: Option<(Option<ServiceId>, Purpose)>,
    /// The connection whose call was overdue.
    pub late: Option<Box<str>>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            // the first serials belong to the connection's own hello
            next: 1000,
            out: Outgoing::new(limits::PLACES),
            unasked: VecDeque::new(),
            waiting: HashMap::new(),
            each: HashMap::new(),
            scans: 0,
            deadlines: BTreeSet::new(),
            bytes: 0,
        }
    }
}

impl Calls {
    /// A call to the bus itself.
    pub fn ask_bus(&mut self, now: Time, method: Method, purpose: Purpose) {
        self.start(now, None, BUS, "/org/freedesktop/DBus", method, purpose);
    }

    /// A call to the connection of a service.
    pub fn ask(&mut self, now: Time, service: ServiceId, owner: &str, path: &str, method: Method, purpose: Purpose) -> u32 {
        self.start(now, Some(service), owner, path, method, purpose)
    }

    /// A newer value takes the place of that of a write which waits for a place at the bus; otherwise it is given back.
    pub fn replace(&mut self, id: u32, value: Value) -> Option<Value> {
        let Some(call) = self.waiting.get_mut(&id) else { return Some(value) };
        let Some(method) = self.out.waiting(&call.destination, id) else { return Some(value) };
        let bytes = value.heap();
        *method = Method::SetValue(value);
        self.bytes = self.bytes - call.bytes + bytes;
        call.bytes = bytes;
        None
    }

    fn start(&mut self, now: Time, service: Option<ServiceId>, owner: &str, path: &str, method: Method, purpose: Purpose) -> u32 {
        let (id, last_deadline) = (self.next, deadline(now, &purpose));
        let deadline = if matches!(purpose, Purpose::Write(_)) { now + limits::OVERDUE } else { last_deadline };
        self.next = self.next.checked_add(1).unwrap_or(1000);
        let bytes = if let Method::SetValue(value) = &method { value.heap() } else { 0 };
        self.bytes += bytes;
        if let Some(request) = purpose.request() {
            if let Some(service) = service {
                *self.each.entry(service).or_default().of(request) += 1;
            }
        } else {
            self.scans += 1;
        }
        self.out.push(BusCall { id, destination: owner.into(), path: path.into(), method, answered: true });
        self.waiting.insert(id, Call { service, destination: owner.into(), purpose, deadline, last_deadline, bytes });
        self.deadlines.insert((deadline, id));
        id
    }

    /// The next call that may be sent now. `heard` says when a connection last sent anything.
    pub fn poll(&mut self, now: Time, heard: impl Fn(&str) -> Option<Time>) -> Option<BusCall> {
        self.unasked.pop_front().or_else(|| self.out.poll(now, heard))
    }

    pub fn expects(&self, id: u32) -> bool {
        self.out.is_under_way(id) || self.waiting.contains_key(&id)
    }

    /// The answer to a call, or to one that is given up already.
    pub fn answered(&mut self, now: Time, id: u32) -> Answered {
        Answered { late: self.out.answered(now, id), call: self.take(id) }
    }

    /// A call could not be sent.
    pub fn unsent(&mut self, id: u32) -> Option<(Option<ServiceId>, Purpose)> {
        self.out.unsent(id);
        self.take(id)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the values that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls that hold places at the bus.
    pub fn under_way(&self, now: Time) -> UnderWay {
        self.out.under_way(now)
    }

    /// Returns the number of requests of this service that wait, when no more of this kind may. Each kind has places of its own, so that
    /// reads never exclude writes.
    pub fn is_full(&self, service: ServiceId, request: Request) -> Option<usize> {
        let mut each = self.each.get(&service).copied().unwrap_or_default();
        let waiting = each.reads + each.writes;
        let share = limits::CALLS_SHARED.saturating_sub(self.waiting.len().saturating_sub(self.scans)) / 2;
        let reserved = match request {
            Request::Read => limits::READS_RESERVED,
            Request::Write => limits::WRITES_RESERVED,
        };
        (waiting >= share.min(limits::CALLS_EACH) && *each.of(request) >= reserved).then_some(waiting)
    }

    /// Whether a service that waits for an answer to its scan gets no more calls for it.
    pub fn is_crowded_by_scans(&self) -> bool {
        self.scans >= limits::SCANS_AT_ONCE
    }

    fn take(&mut self, id: u32) -> Option<(Option<ServiceId>, Purpose)> {
        let call = self.waiting.remove(&id)?;
        self.deadlines.remove(&(call.deadline, id));
        self.bytes -= call.bytes;
        match call.purpose.request() {
            None => self.scans -= 1,
            Some(request) => {
                if let Some(service) = call.service
                    && let Some(requests) = self.each.get_mut(&service)
                {
                    *requests.of(request) -= 1;
                    if *requests == Requests::default() {
                        self.each.remove(&service);
                    }
                }
            }
        }
        Some((call.service, call.purpose))
    }

    /// A call whose time is up.
    pub fn expired(&mut self, now: Time) -> Option<Expired> {
        loop {
            let (deadline, id) = *self.deadlines.first()?;
            if deadline > now {
                return None;
            }
            self.deadlines.pop_first();
            let Some(call) = self.waiting.get_mut(&id) else { continue };
            let reply = if deadline < call.last_deadline {
                call.deadline = call.last_deadline;
                let Some(sent) = self.out.send_unanswered(now, &call.destination, id) else {
                    self.deadlines.insert((call.last_deadline, id));
                    continue;
                };
                self.unasked.push_back(sent);
                Some(Reply::Unasked)
            } else {
                self.out.cancel(&call.destination, id);
                None
            };
            let (service, purpose) = self.take(id)?;
            return Some(Expired { service, purpose, reply });
        }
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline).into_iter().chain(self.out.next_look()).min()
    }

    /// The answers of this service do not matter any more.
    pub fn forget(&mut self, service: ServiceId) {
        let ids: Vec<u32> = self.waiting.iter().filter(|(_, call)| call.service == Some(service)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(call) = self.waiting.get(&id) {
                self.out.cancel(&call.destination, id);
            }
            self.take(id);
        }
    }

    /// The last service of a connection has left.
    pub fn gone(&mut self, owner: &str) {
        self.out.gone(owner);
    }

    pub fn waits_for_owner(&self) -> bool {
        self.waiting.values().any(|call| matches!(call.purpose, Purpose::Names | Purpose::Owner(_)))
    }
}

/// How long after `now` a call of this kind is given up.
fn deadline(now: Time, purpose: &Purpose) -> Time {
    let span: Duration = match purpose {
        Purpose::Names | Purpose::Owner(_) => limits::BUS_DEADLINE,
        Purpose::ScanItems | Purpose::ScanRoot | Purpose::WalkNode(_) | Purpose::WalkValue(..) => limits::SCAN_DEADLINE,
        Purpose::Read(..) | Purpose::ReadNode(_) | Purpose::Write(_) => limits::CALL_DEADLINE,
    };
    now + span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_take_nothing_from_requests() {
        let mut calls = Calls::default();
        for n in 0..1024 {
            let purpose = Purpose::WalkNode("/".into());
            calls.ask(Time::default(), ServiceId::numbered(n), ":1.1", "/", Method::Introspect, purpose);
        }
        assert_eq!((calls.is_full(ServiceId::numbered(0), Request::Read), calls.is_crowded_by_scans()), (None, true));
        for n in 0..1024 {
            calls.forget(ServiceId::numbered(n));
        }
        assert!(!calls.is_crowded_by_scans());
    }

    /// The table holds at most what is stated of it, whoever asks for how much.
    #[test]
    fn reads_take_nothing_from_writes() {
        let mut calls = Calls::default();
        let services = || (0..u32::try_from(limits::SERVICES).unwrap()).map(ServiceId::numbered);
        for (request, reserved) in [(Request::Read, limits::READS_RESERVED), (Request::Write, limits::WRITES_RESERVED)] {
            for service in services() {
                let mut taken = 0;
                while calls.is_full(service, request).is_none() {
                    let path = Box::from("/A");
                    let purpose = if request == Request::Read { Purpose::Read(path, Dictionary::Unknown) } else { Purpose::Write(path) };
                    calls.ask(Time::default(), service, ":1.1", "/A", Method::GetValue, purpose);
                    taken += 1;
                }
                assert!(taken >= reserved, "{service:?}: {taken} of {request:?}");
            }
        }
        assert!(calls.len() <= limits::CALLS, "{}", calls.len());
        services().for_each(|service| calls.forget(service));
        assert!(calls.each.is_empty() && calls.len() == 0);
    }
}
