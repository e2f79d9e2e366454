//! Discovery: which services there are, and what each of them has.
//!
//! Each service is scanned on its own, without waiting for any other: `GetItems`, else `GetValue` on `/`, else a walk through its
//! introspection data. What its signals bring meanwhile is newer than the snapshot and stays.

use log::Level;
use quick_xml::events::Event;

use super::Bridge;
use super::calls::{Dictionary, Purpose, Reply};
use super::items::{Change, Origin, Scan, ServiceId, State, Touched, Walk};
use super::limits;
use super::name::{NAMESPACE, ServiceName, is_item_path, to_item_path};
use super::notes::Kind;
use super::outgoing::Method;
use super::time::Time;
use super::value::Value;
use crate::text::escape;

impl Bridge {
    /// Asks the bus who is there. The match rules must be in place.
    pub fn bus_up(&mut self, now: Time) {
        self.first_scan = Some(now + limits::FIRST_SCAN);
        self.calls.ask_bus(now, Method::ListNames, Purpose::Names);
    }

    /// `NameOwnerChanged`.
    pub fn name_owner_changed(&mut self, now: Time, name: &str, old: &str, new: &str) {
        let Ok(name) = ServiceName::parse(name) else { return };
        if !old.is_empty()
            && let Some(id) = self.services.by_name(name.as_str())
        {
            self.leave(now, id);
        }
        if !new.is_empty() {
            self.appear(now, name.clone(), new);
            if let Some(service) = self.services.by_name(name.as_str()).and_then(|id| self.services.get_mut(id)) {
                service.heard = now;
            }
        }
    }

    pub(super) fn take_names(&mut self, now: Time, reply: Reply) {
        match reply {
            Reply::Names(names) => {
                let ours = names.iter().filter(|name| name.starts_with(NAMESPACE)).filter_map(|name| ServiceName::parse(name).ok());
                let (mut left, mut beyond) = (limits::SERVICES, 0_usize);
                for name in ours {
                    if left == 0 {
                        beyond += 1;
                        continue;
                    }
                    left -= 1;
                    self.calls.ask_bus(now, Method::GetNameOwner(name.as_str().into()), Purpose::Owner(name));
                }
                if beyond > 0 {
                    self.notes.add(Level::Warn, || format!("more than {} services: {beyond} are left out", limits::SERVICES));
                }
            }
            other => self.notes.add(Level::Error, || format!("the bus does not say which services it has: {other:?}")),
        }
    }

    pub(super) fn take_owner(&mut self, now: Time, name: ServiceName, reply: Reply) {
        // no owner: it left before the bus was asked
        if let Reply::Text(owner) = reply {
            self.appear(now, name, &owner);
        }
    }

    fn appear(&mut self, now: Time, name: ServiceName, owner: &str) {
        if let Some(known) = self.services.by_name(name.as_str()) {
            if self.services.get(known).is_some_and(|service| &*service.owner == owner) {
                return;
            }
            self.leave(now, known);
        }
        if self.services.len() >= limits::SERVICES {
            self.notes
                .add_caused(now, Level::Warn, Kind::Service, || format!("more than {} services: {name} is left out", limits::SERVICES));
            return;
        }
        self.notes.add(Level::Debug, || format!("{name} came ({})", escape(owner)));
        let id = self.services.add(name, owner, State::Scanning(Scan { attempts: 0, walk: Walk::default() }));
        self.begin_scan(now, id, 0);
    }

    fn begin_scan(&mut self, now: Time, id: ServiceId, attempts: u32) {
        let Some(service) = self.services.get_mut(id) else { return };
        service.state = State::Scanning(Scan { attempts, walk: Walk::default() });
        self.calls.ask(now, id, &service.owner, "/", Method::GetItems, Purpose::ScanItems);
    }

    /// A connection answers again: its services that did not answer their scan are asked now.
    pub(super) fn scan_silent(&mut self, now: Time, owner: &str) {
        for id in self.services.by_owner(owner).to_vec() {
            if let Some(service) = self.services.get_mut(id) {
                service.heard = now;
            }
            if let Some(State::Silent { attempts, .. }) = self.services.get(id).map(|service| &service.state) {
                self.begin_scan(now, id, *attempts);
            }
        }
    }

    /// The services that did not answer and are to be asked again.
    pub(super) fn retry_scans(&mut self, now: Time) {
        if self.next_retry.is_none_or(|at| at > now) {
            return;
        }
        self.next_retry = None;
        for id in self.services.ids() {
            match self.services.get(id).map(|service| &service.state) {
                Some(State::Silent { again, attempts }) if *again <= now => self.begin_scan(now, id, *attempts),
                Some(State::Silent { again, .. }) => self.next_retry = Some(self.next_retry.map_or(*again, |at| at.min(*again))),
                _ => {}
            }
        }
    }

    /// The answer to one of the calls of a scan; `None` when its time is up.
    pub(super) fn take_scan(&mut self, now: Time, id: ServiceId, purpose: Purpose, reply: Option<Reply>) {
        let Some(reply) = reply else {
            return self.give_up_scan(now, id, "does not answer");
        };
        if reply.is_from_nobody() {
            // its name goes next, or has gone already
            return self.give_up_scan(now, id, "went away while it was scanned");
        }
        match (purpose, reply) {
            (Purpose::ScanItems, Reply::Items(items)) => {
                for (path, change) in items {
                    self.take_scanned(now, id, &path, change);
                }
                self.end_scan(now, id);
            }
            (Purpose::ScanItems, other) => {
                self.note_fallback(id, "GetItems", &other);
                self.ask_again(now, id, Method::GetValue, Purpose::ScanRoot);
            }
            (Purpose::ScanRoot, Reply::Value(Value::Dict(items))) => {
                for (path, value) in items {
                    self.take_scanned(now, id, &path, Change::of(value));
                }
                self.end_scan(now, id);
            }
            (Purpose::ScanRoot, other) => {
                self.note_fallback(id, "GetValue", &other);
                if let Some(walk) = self.walk(id) {
                    walk.queue.push_back(("/".into(), None));
                    walk.nodes = 1;
                }
                self.step_walk(now, id);
            }
            (Purpose::WalkNode(path), reply) => {
                self.take_node(id, &path, reply);
                self.step_walk(now, id);
            }
            (Purpose::WalkValue(path, dictionary), reply) => {
                self.finished_one(id);
                match reply {
                    // a node that has the interface and no value of its own is a group
                    Reply::Value(Value::Dict(_)) if dictionary == Dictionary::OfTree => {}
                    Reply::Value(value) | Reply::Item(value) => self.take_scanned(now, id, &path, Change::of(value)),
                    _ => {}
                }
                self.step_walk(now, id);
            }
            _ => {}
        }
    }

    fn note_fallback(&mut self, id: ServiceId, method: &str, reply: &Reply) {
        if let Some(service) = self.services.get(id) {
            self.notes
                .add(Level::Debug, || format!("{} has no {method} ({}): trying the older way", service.name, escape(&reply.reason())));
        }
    }

    fn ask_again(&mut self, now: Time, id: ServiceId, method: Method, purpose: Purpose) {
        if let Some(service) = self.services.get(id) {
            self.calls.ask(now, id, &service.owner, "/", method, purpose);
        }
    }

    fn give_up_scan(&mut self, now: Time, id: ServiceId, why: &str) {
        let Some(service) = self.services.get_mut(id) else { return };
        let State::Scanning(Scan { attempts, .. }) = service.state else {
            return;
        };
        let wait = limits::SCAN_RETRY_FIRST.saturating_mul(1 << attempts.min(8)).min(limits::SCAN_RETRY_LAST);
        let again = now + wait;
        service.state = State::Silent { again, attempts: attempts + 1 };
        self.next_retry = Some(self.next_retry.map_or(again, |at| at.min(again)));
        let level = if attempts == 0 { Level::Warn } else { Level::Debug };
        let name = service.name.clone();
        self.notes.add_caused(now, level, Kind::Service, || {
            format!("{name} {why}: its values are not published; it is asked again in {} s", wait.as_secs())
        });
        self.services.clear_items(id);
        self.calls.forget(id);
    }

    /// One item of a snapshot.
    fn take_scanned(&mut self, now: Time, id: ServiceId, path: &str, change: Change) {
        let path = &*to_item_path(path);
        let Some(service) = self.services.get(id) else { return };
        let known = service.items.get(path);
        if service.is_settings() {
            let (is_there, is_newer) = known.map_or((false, false), |item| (!item.gone, item.touched.value));
            match change.value {
                // not there at all, or removed since
                Some(Value::Invalid) => return,
                _ if is_newer && !is_there => return,
                None if !is_there => return self.take_limits(now, id, path, change, Origin::Snapshot),
                _ => {}
            }
        }
        if let Some(index) = self.item_at(now, id, path) {
            self.apply(now, id, index, change, Origin::Snapshot);
        }
    }

    fn end_scan(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get_mut(id) else { return };
        service.state = State::Ready;
        service.heard = now;
        for item in service.items.values_mut() {
            item.touched = Touched::default();
        }
        self.drop_gone(id);
        self.take_instance(now, id);
    }

    fn walk(&mut self, id: ServiceId) -> Option<&mut Walk> {
        match &mut self.services.get_mut(id)?.state {
            State::Scanning(scan) => Some(&mut scan.walk),
            _ => None,
        }
    }

    fn finished_one(&mut self, id: ServiceId) {
        if let Some(walk) = self.walk(id) {
            walk.in_flight = walk.in_flight.saturating_sub(1);
        }
    }

    fn take_node(&mut self, id: ServiceId, path: &str, reply: Reply) {
        self.finished_one(id);
        let Reply::Text(xml) = reply else { return };
        let node = read_node(&xml);
        let waiting = self.services.iter().map(|(_, service)| match &service.state {
            State::Scanning(scan) => scan.walk.queue.len(),
            _ => 0,
        });
        let mut room = limits::WALK_NODES_ALL.saturating_sub(waiting.sum());
        let Some(walk) = self.walk(id) else { return };
        if node.is_item && is_item_path(path) {
            walk.queue.push_back((path.into(), Some(node.dictionary())));
        }
        let parent = path.trim_end_matches('/');
        for child in node.children {
            let child = to_item_path(&format!("{parent}/{child}")).into_owned();
            if walk.nodes < limits::WALK_NODES && room > 0 && is_item_path(&child) {
                (walk.nodes, room) = (walk.nodes + 1, room - 1);
                walk.queue.push_back((child.into(), None));
            }
        }
    }

    /// Asks for the next nodes, or ends the walk.
    fn step_walk(&mut self, now: Time, id: ServiceId) {
        let mut crowded = self.calls.is_crowded_by_scans();
        while let Some(walk) = self.walk(id)
            && (walk.in_flight == 0 || (walk.in_flight < limits::WALK_AT_ONCE && !crowded))
            && let Some((path, value)) = walk.queue.pop_front()
        {
            walk.in_flight += 1;
            let Some(service) = self.services.get(id) else { return };
            let (method, purpose) = match value {
                Some(dictionary) => (Method::GetValue, Purpose::WalkValue(path.clone(), dictionary)),
                None => (Method::Introspect, Purpose::WalkNode(path.clone())),
            };
            self.calls.ask(now, id, &service.owner, &path, method, purpose);
            crowded = self.calls.is_crowded_by_scans();
        }
        if self.walk(id).is_some_and(|walk| walk.in_flight == 0) {
            if self.services.get(id).is_some_and(|service| service.items.is_empty()) {
                self.give_up_scan(now, id, "has no items that can be found");
            } else {
                self.end_scan(now, id);
            }
        }
    }

    /// Requests need not wait any longer: every service that was there at the start has answered, or had its time.
    pub(super) fn check_first_scan(&mut self, now: Time) {
        let Some(deadline) = self.first_scan else { return };
        let scanning = |state: &State| matches!(state, State::Scanning(_));
        let busy = self.calls.waits_for_owner() || self.services.iter().any(|(_, service)| scanning(&service.state));
        if !busy || deadline <= now {
            self.first_scan = None;
            let (services, items) = (self.services.len(), self.services.items());
            self.notes.add(Level::Info, || format!("the bus has {services} services with {items} items"));
            self.drain_waiting(now);
        }
    }
}

/// What one node of introspection data says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    is_item: bool,
    children: Vec<String>,
}

impl Node {
    /// What a dictionary is that the node gives as its value.
    pub(super) fn dictionary(&self) -> Dictionary {
        if self.is_item && self.children.is_empty() { Dictionary::OfItem } else { Dictionary::OfTree }
    }
}

/// Reads what is well-formed, up to the first mistake.
pub(super) fn read_node(xml: &str) -> Node {
    let mut node = Node::default();
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut depth = 0_u32;
    while let Ok(event) = reader.read_event() {
        let (element, opens) = match &event {
            Event::Start(element) => (element, true),
            Event::Empty(element) => (element, false),
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                continue;
            }
            Event::Eof => break,
            _ => continue,
        };
        let name = element.try_get_attribute("name").ok().flatten();
        let name = name.map(|attribute| attribute.value.into_owned());
        // the children of the node itself, not those further in
        if depth == 1 {
            match (element.name().as_ref(), name) {
                ("node", Some(name)) if node.children.len() < limits::WALK_NODES => node.children.push(name),
                ("interface", Some(name)) => node.is_item |= name == "com.victronenergy.BusItem",
                _ => {}
            }
        }
        if opens {
            depth += 1;
        }
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn introspection() {
        let xml = r#"<!DOCTYPE node PUBLIC "x" "y">
            <node name="/Ac"><interface name="com.victronenergy.BusItem"><method name="GetValue"/></interface>
            <node name="L1"><node name="inner"/></node><node name="Power"/></node>"#;
        assert_eq!(read_node(xml), Node { is_item: true, children: vec!["L1".into(), "Power".into()] });
        assert_eq!(read_node("<node><node name=\"a\"/><no"), Node { is_item: false, children: vec!["a".into()] });
        assert_eq!(read_node(""), Node::default());
        read_node(&"<node>".repeat(100_000));
    }
}
