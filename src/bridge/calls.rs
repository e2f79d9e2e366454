//! Calls to the bus: what is to be sent, what is waited for, and until when.
//!
//! The ID of a call is the serial number of its message, so the bus side needs no table of its own.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::items::{Change, ServiceId};
use super::limits;
use super::name::{BUS, ServiceName};
use super::outgoing::{BusCall, Method, Outgoing};
use super::time::Time;
use super::value::Value;

/// What came back, by its signature.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    Names(Vec<String>),
    Text(String),
    Items(Vec<(String, Change)>),
    Value(Value),
    Code(i64),
    Error {
        name: String,
        text: String,
    },
    /// A body of a kind no call of ours is answered with.
    Unreadable(String),
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
    WalkValue(Box<str>),
    Read(Box<str>),
    Write(Box<str>),
}

#[derive(Debug)]
pub struct Calls {
    next: u32,
    out: Outgoing,
    waiting: HashMap<u32, Call>,
    each: HashMap<ServiceId, usize>,
    deadlines: BTreeSet<(Time, u32)>,
}

#[derive(Debug)]
struct Call {
    service: Option<ServiceId>,
    purpose: Purpose,
    deadline: Time,
}

impl Default for Calls {
    fn default() -> Self {
        // the first serials belong to the connection's own hello
        Self { next: 1000, out: Outgoing::default(), waiting: HashMap::new(), each: HashMap::new(), deadlines: BTreeSet::new() }
    }
}

impl Calls {
    /// A call to the bus itself.
    pub fn ask_bus(&mut self, now: Time, method: Method, purpose: Purpose) {
        self.start(now, None, BUS, "/org/freedesktop/DBus", method, purpose);
    }

    /// A call to the connection of a service.
    pub fn ask(&mut self, now: Time, service: ServiceId, owner: &str, path: &str, method: Method, purpose: Purpose) {
        self.start(now, Some(service), owner, path, method, purpose);
    }

    fn start(&mut self, now: Time, service: Option<ServiceId>, owner: &str, path: &str, method: Method, purpose: Purpose) {
        let (id, deadline) = (self.next, deadline(now, &purpose));
        self.next = self.next.checked_add(1).unwrap_or(1000);
        self.out.push(BusCall { id, destination: owner.into(), path: path.into(), method });
        self.waiting.insert(id, Call { service, purpose, deadline });
        if let Some(service) = service {
            *self.each.entry(service).or_default() += 1;
        }
        self.deadlines.insert((deadline, id));
    }

    pub fn poll(&mut self) -> Option<BusCall> {
        self.out.poll()
    }

    pub fn expects(&self, id: u32) -> bool {
        self.out.is_under_way(id) || self.waiting.contains_key(&id)
    }

    /// The call that is answered, if anybody still waits for it.
    pub fn answered(&mut self, id: u32) -> Option<(Option<ServiceId>, Purpose)> {
        self.out.answered(id);
        self.take(id)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no more calls of this service can wait, with how many that are.
    pub fn is_full(&self, service: ServiceId) -> Option<usize> {
        let full = |count: usize, most: usize| (count >= most).then_some(most);
        let each = self.each.get(&service).copied().unwrap_or_default();
        full(self.waiting.len(), limits::CALLS).or_else(|| full(each, limits::CALLS_EACH))
    }

    fn take(&mut self, id: u32) -> Option<(Option<ServiceId>, Purpose)> {
        let call = self.waiting.remove(&id)?;
        self.deadlines.remove(&(call.deadline, id));
        if let Some(service) = call.service
            && let Some(count) = self.each.get_mut(&service)
        {
            *count -= 1;
            if *count == 0 {
                self.each.remove(&service);
            }
        }
        Some((call.service, call.purpose))
    }

    /// A call whose time is up.
    pub fn expired(&mut self, now: Time) -> Option<(Option<ServiceId>, Purpose)> {
        let (deadline, id) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.out.retain(|waiting| waiting != id);
        self.take(id)
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Nobody waits for this service any more.
    pub fn forget(&mut self, service: ServiceId) {
        self.waiting.retain(|_, call| call.service != Some(service));
        self.each.remove(&service);
        let waiting = &self.waiting;
        self.deadlines.retain(|(_, id)| waiting.contains_key(id));
        self.out.retain(|id| waiting.contains_key(&id));
    }

    pub fn waits_for_owner(&self) -> bool {
        self.waiting.values().any(|call| matches!(call.purpose, Purpose::Names | Purpose::Owner(_)))
    }
}

/// How long after `now` a call of this kind is given up.
fn deadline(now: Time, purpose: &Purpose) -> Time {
    let span: Duration = match purpose {
        Purpose::Names | Purpose::Owner(_) => limits::BUS_DEADLINE,
        Purpose::ScanItems | Purpose::ScanRoot | Purpose::WalkNode(_) | Purpose::WalkValue(_) => limits::SCAN_DEADLINE,
        Purpose::Read(_) | Purpose::Write(_) => limits::CALL_DEADLINE,
    };
    now + span
}
