//! Calls to be sent, and how many of them may be under way. The bus keeps a place for each until it is answered, however long we wait
//! for it ourselves, and refuses every further call of ours when there are 128. So whoever does not answer gets no more than a few.

use std::collections::{HashMap, VecDeque};

use super::limits;
use super::name::BUS;
use super::value::Value;

/// A method call to be sent.
#[derive(Clone, PartialEq, Debug)]
pub struct BusCall {
    pub id: u32,
    pub destination: Box<str>,
    pub path: Box<str>,
    pub method: Method,
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

/// Calls on their way to the bus.
#[derive(Debug, Default)]
pub struct Outgoing {
    queue: VecDeque<BusCall>,
    under_way: HashMap<u32, Box<str>>,
    /// By whom they are to be answered.
    each: HashMap<Box<str>, usize>,
}

impl Outgoing {
    pub fn push(&mut self, call: BusCall) {
        self.queue.push_back(call);
    }

    /// The next call that may be sent now.
    pub fn poll(&mut self) -> Option<BusCall> {
        if self.queue.is_empty() {
            return None;
        }
        let place = self.queue.iter().position(|call| self.admits(&call.destination))?;
        let call = self.queue.remove(place)?;
        // the bus itself answers at once
        if *call.destination != *BUS {
            *self.each.entry(call.destination.clone()).or_default() += 1;
            self.under_way.insert(call.id, call.destination.clone());
        }
        Some(call)
    }

    fn admits(&self, destination: &str) -> bool {
        let to_it = self.each.get(destination).copied().unwrap_or_default();
        destination == BUS || (self.under_way.len() < limits::UNDER_WAY && to_it < limits::UNDER_WAY_EACH)
    }

    /// Those that are not under way yet and that nobody waits for are not sent.
    pub fn retain(&mut self, is_waited_for: impl Fn(u32) -> bool) {
        self.queue.retain(|call| is_waited_for(call.id));
    }

    pub fn is_under_way(&self, id: u32) -> bool {
        self.under_way.contains_key(&id)
    }

    /// The answer has come, or the bus says that there will be none.
    pub fn answered(&mut self, id: u32) {
        let Some(destination) = self.under_way.remove(&id) else { return };
        if let Some(count) = self.each.get_mut(&destination) {
            *count -= 1;
            if *count == 0 {
                self.each.remove(&destination);
            }
        }
    }
}
