//! Requests from clients: reads, answered with a fresh value, and writes, one at a time for each item.

use std::collections::{BTreeMap, BTreeSet};

use log::Level;

use super::Bridge;
use super::calls::{Dictionary, Purpose, Reply, Request};
use super::items::{Change, Origin, Secrecy, Service, ServiceId};
use super::limits;
use super::name::{is_item_path, to_item_path};
use super::notes::Kind;
use super::outgoing::Method;
use super::scan::read_node;
use super::time::Time;
use super::topic::Address;
use super::value::{PayloadError, Value, read_payload};
use crate::text::escape;

/// Reads and writes that are under way, by service and path.
#[derive(Debug, Default)]
pub struct Pending {
    reads: BTreeSet<(ServiceId, Box<str>)>,
    /// What is written next, if anything came meanwhile.
    writes: BTreeMap<(ServiceId, Box<str>), Writing>,
    /// Of the values that are written next.
    bytes: usize,
}

/// A write that is not answered yet.
#[derive(Debug)]
struct Writing {
    call: u32,
    /// What is written then.
    next: Option<Value>,
}

/// What is said of a payload whose value is none.
fn not_valid(why: String) -> String {
    PayloadError::Json(why).to_string()
}

impl Pending {
    pub fn forget(&mut self, service: ServiceId) -> usize {
        let before = self.writes.len();
        self.reads.retain(|(id, _)| *id != service);
        self.writes.retain(|(id, _), writing| {
            let stays = *id != service;
            if !stays {
                self.bytes -= writing.next.as_ref().map_or(0, Value::heap);
            }
            stays
        });
        before - self.writes.len()
    }
}

impl Bridge {
    pub(super) fn read(&mut self, now: Time, address: Address<'_>) {
        let Some(id) = self.services.by_topic(address.service_type, address.instance) else {
            return self.ignore_read(now, address, "no such service");
        };
        let Some(service) = self.services.get(id) else { return };
        if service.items.get(address.path).is_some_and(|item| item.secrecy == Secrecy::Blocked && !item.gone) {
            return self.ignore_read(now, address, "this item is never published");
        }
        if address.path != "/" && !is_item_path(address.path) {
            return self.ignore_read(now, address, "not a D-Bus path");
        }
        self.begin_read(now, id, address.path);
    }

    fn begin_read(&mut self, now: Time, id: ServiceId, path: &str) {
        let key = (id, Box::from(path));
        // the answer on its way is fresh enough for both
        if self.pending.reads.contains(&key) {
            return;
        }
        let Some(service) = self.services.get(id) else { return };
        if let Some(most) = self.calls.is_full(id, Request::Read) {
            let topic = service.topic.clone();
            return self.notes.add_caused(now, Level::Warn, Kind::ReadIgnored, || {
                format!("a read of {} is ignored: {most} calls are waiting for their answers", escape(&format!("{topic}{path}")))
            });
        }
        self.calls.ask(now, id, &service.owner, path, Method::GetValue, Purpose::Read(path.into(), Dictionary::Unknown));
        self.pending.reads.insert(key);
    }

    pub(super) fn take_read(&mut self, now: Time, id: ServiceId, path: Box<str>, dictionary: Dictionary, reply: Option<Reply>) {
        let Some(service) = self.services.get(id) else { return };
        let known = service.items.get(&path).is_some_and(|item| !item.gone);
        if let (Dictionary::Unknown, false, Some(Reply::Value(Value::Dict(_)))) = (dictionary, known, &reply)
            && is_item_path(&path)
            && service.items_below(&path).next().is_none()
        {
            // an item or an inner path, of which nothing is known yet: the value is asked for again once that is clear
            self.calls.ask(now, id, &service.owner, &path, Method::Introspect, Purpose::ReadNode(path.clone()));
            return;
        }
        self.pending.reads.remove(&(id, path.clone()));
        match reply {
            Some(Reply::Value(Value::Dict(items))) if !known && dictionary != Dictionary::OfItem => {
                for (key, value) in items {
                    self.answer(now, id, &to_item_path(&format!("{path}/{key}")), value);
                }
                self.take_instance_change(now, id);
            }
            Some(Reply::Value(value) | Reply::Item(value)) => {
                self.answer(now, id, &path, value);
                self.take_instance_change(now, id);
            }
            Some(other) => {
                // a service that knows its items one by one only
                let below: Vec<Box<str>> = self.services.get(id).map_or_else(Vec::new, |service| {
                    let paths = service.items_below(&path).filter_map(|index| service.items.get_index(index));
                    paths.map(|(path, _)| path.clone()).collect()
                });
                if known || below.is_empty() {
                    self.read_failed(now, id, &path, &other);
                }
                if !known {
                    below.iter().for_each(|path| self.begin_read(now, id, path));
                }
            }
            None => self.read_failed(now, id, &path, &Reply::Unreadable("no answer in time".into())),
        }
    }

    /// What the service says of an object that gives a dictionary; without a word of it, the keys are paths below it.
    pub(super) fn take_read_node(&mut self, now: Time, id: ServiceId, path: &str, reply: Option<Reply>) {
        let Some(service) = self.services.get(id) else { return };
        let dictionary = match reply {
            Some(Reply::Text(xml)) => read_node(&xml).dictionary(),
            _ => Dictionary::OfTree,
        };
        self.calls.ask(now, id, &service.owner, path, Method::GetValue, Purpose::Read(path.into(), dictionary));
    }

    /// A fresh value, which goes out whether or not anybody keeps it awake.
    fn answer(&mut self, now: Time, id: ServiceId, path: &str, value: Value) {
        if value == Value::Invalid && self.services.get(id).is_some_and(Service::is_settings) {
            return self.remove_item(now, id, path);
        }
        let Some(index) = self.item_at(now, id, path) else { return };
        self.apply(now, id, index, Change::of(value), Origin::Signal);
        let Some(service) = self.services.get_mut(id) else { return };
        let Some((_, item)) = service.items.get_index_mut(index) else {
            return;
        };
        if item.secrecy != Secrecy::Blocked && !item.answering && service.holder {
            item.answering = true;
            self.outbox.push_answer(id, index);
        }
    }

    fn read_failed(&mut self, now: Time, id: ServiceId, path: &str, reply: &Reply) {
        if let Some(service) = self.services.get(id) {
            let (name, why) = (service.name.clone(), reply.reason());
            self.notes
                .add_caused(now, Level::Warn, Kind::ReadIgnored, || format!("{name} does not give {}: {}", escape(path), escape(&why)));
        }
    }

    fn ignore_read(&mut self, now: Time, address: Address<'_>, why: &str) {
        self.notes.add_caused(now, Level::Warn, Kind::ReadIgnored, || {
            format!("a read of {} is ignored: {why}", escape(&format!("{}/{}{}", address.service_type, address.instance, address.path)))
        });
    }

    pub(super) fn write(&mut self, now: Time, address: Address<'_>, payload: &[u8]) {
        if !self.rules.may_write(&address) {
            return self.ignore_write(now, address, "the access rules deny it");
        }
        if payload.len() > limits::WRITE_PAYLOAD {
            return self.ignore_write(now, address, &format!("its payload of {} bytes is over 64 KiB", payload.len()));
        }
        let written = match read_payload(payload) {
            Ok(value) => self.write_value(now, address, value),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = written {
            self.ignore_write(now, address, &why);
        }
    }

    /// Writes an item whose write nobody forbids, whoever serves W on this broker. Why not, if that cannot be done.
    pub fn write_value(&mut self, now: Time, address: Address<'_>, value: Value) -> Result<(), String> {
        let Some(id) = self.services.by_topic(address.service_type, address.instance) else {
            return Err("no such service".into());
        };
        if !is_item_path(address.path) {
            return Err("not the path of an item".into());
        }
        // an item of a device has no value then; what another program would make of it nobody knows
        let value = if self.services.get(id).is_some_and(|service| service.own) {
            value.read_words().map_err(not_valid)?
        } else {
            value.check_words().map_err(not_valid)?;
            if value.has_missing() {
                return Err(
                    "a bare nan, inf, unknown or nothing at all is taken for registered devices only; send null for no value".into()
                );
            }
            value
        };
        let bytes = value.heap();
        if self.calls.bytes() + self.pending.bytes + bytes > limits::CALLS_BYTES {
            return Err(format!("{} MiB of values are waiting to be written", limits::CALLS_BYTES / (1024 * 1024)));
        }
        if let Some(writing) = self.pending.writes.get_mut(&(id, address.path.into())) {
            let Some(value) = self.calls.replace(writing.call, value) else { return Ok(()) };
            self.pending.bytes -= writing.next.as_ref().map_or(0, Value::heap);
            self.pending.bytes += bytes;
            writing.next = Some(value);
        } else if let Some(most) = self.calls.is_full(id, Request::Write) {
            return Err(format!("{most} calls are waiting for their answers"));
        } else {
            self.begin_write(now, id, address.path, value);
        }
        Ok(())
    }

    fn begin_write(&mut self, now: Time, id: ServiceId, path: &str, value: Value) {
        if let Some(service) = self.services.get(id) {
            self.notes.add(Level::Debug, || format!("{}{path} is set to a {}", service.name, value.signature()));
            let call = self.calls.ask(now, id, &service.owner, path, Method::SetValue(value), Purpose::Write(path.into()));
            self.pending.writes.insert((id, path.into()), Writing { call, next: None });
            self.counters.writes += 1;
        }
    }

    pub(super) fn take_write(&mut self, now: Time, id: ServiceId, path: Box<str>, reply: Option<Reply>) {
        let next = self.pending.writes.remove(&(id, path.clone())).and_then(|writing| writing.next);
        self.pending.bytes -= next.as_ref().map_or(0, Value::heap);
        let failure = match reply {
            Some(Reply::Code(0)) => None,
            Some(Reply::Code(code)) => Some(format!("refuses it (SetValue gives {code})")),
            Some(Reply::Unasked) => {
                Some("is sent it without asking for an answer: calls that are not answered hold the places for answers at the bus".into())
            }
            Some(other) => Some(format!("did not take it: {}", other.reason())),
            None => Some("did not answer in time".into()),
        };
        if let (Some(failure), Some(service)) = (failure, self.services.get(id)) {
            let name = service.name.clone();
            self.notes.add_caused(now, Level::Warn, Kind::WriteFailed, || {
                format!("a write of {} to {name}: it {}", escape(&path), escape(&failure))
            });
        }
        if let Some(value) = next {
            self.begin_write(now, id, &path, value);
        }
    }

    pub(super) fn ignore_write(&mut self, now: Time, address: Address<'_>, why: &str) {
        self.counters.writes_ignored += 1;
        self.notes.add_caused(now, Level::Warn, Kind::WriteIgnored, || {
            format!(
                "a write of {} is ignored: {}",
                escape(&format!("{}/{}{}", address.service_type, address.instance, address.path)),
                escape(why)
            )
        });
    }
}
