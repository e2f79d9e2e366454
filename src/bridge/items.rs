//! Services and their items: what is known of the bus.
//!
//! A service that has left stays here, without its name, until the topics that were published for it have been taken back.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::name::ServiceName;
use super::time::Time;
use super::value::Value;

/// A change of one item, as a signal or a snapshot brings it. What is `None` was not mentioned.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Change {
    pub value: Option<Value>,
    pub min: Option<Value>,
    pub max: Option<Value>,
    pub default: Option<Value>,
}

impl Change {
    pub fn of(value: Value) -> Self {
        Self { value: Some(value), ..Self::default() }
    }

    fn has_limits(&self) -> bool {
        self.min.is_some() || self.max.is_some() || self.default.is_some()
    }
}

/// [`Value::Invalid`] where there is none.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Limits {
    pub min: Value,
    pub max: Value,
    pub default: Value,
}

#[derive(Debug, Default)]
pub struct Item {
    pub value: Value,
    pub limits: Option<Box<Limits>>,
    /// Until when filters of keep-alives want it.
    pub until: Time,
    /// In the outbox.
    pub queued: bool,
    /// In the lane of answers.
    pub answering: bool,
    /// A subscriber may believe the value: it was published and not taken back since.
    pub published: bool,
    /// Changed by a signal since the scan of its service began.
    pub touched: bool,
    pub secrecy: Secrecy,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Secrecy {
    #[default]
    Open,
    Masked,
    /// Never published; also what a special topic stands for.
    Blocked,
}

impl Item {
    /// True when there is something to tell: a change of the text alone is nothing.
    pub fn apply(&mut self, change: Change) -> bool {
        let has_limits = change.has_limits();
        if has_limits {
            let limits = self.limits.get_or_insert_default();
            let Change { min, max, default, .. } = change;
            for (kept, new) in [(&mut limits.min, min), (&mut limits.max, max), (&mut limits.default, default)] {
                if let Some(new) = new {
                    *kept = new;
                }
            }
            if **limits == Limits::default() {
                self.limits = None;
            }
        }
        let has_value = change.value.is_some();
        if let Some(value) = change.value {
            self.value = value;
        }
        has_value || has_limits
    }

    /// A snapshot: what a signal has brought meanwhile is newer.
    pub fn apply_snapshot(&mut self, change: Change) {
        if self.touched {
            let Change { min, max, default, .. } = change;
            if self.limits.is_none() {
                self.apply(Change { value: None, min, max, default });
            }
        } else {
            self.limits = None;
            self.apply(Change { value: Some(change.value.unwrap_or_default()), ..change });
        }
    }

    /// Appends the payload of the notification.
    pub fn write_payload(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"value\":");
        if self.secrecy == Secrecy::Masked {
            out.push(b'"');
            out.extend_from_slice(super::access::MASK.as_bytes());
            out.extend_from_slice(b"\"}");
            return;
        }
        self.value.write_json(out);
        if let Some(limits) = &self.limits {
            for (key, value) in [("min", &limits.min), ("max", &limits.max), ("default", &limits.default)] {
                if *value != Value::Invalid {
                    out.extend_from_slice(b",\"");
                    out.extend_from_slice(key.as_bytes());
                    out.extend_from_slice(b"\":");
                    value.write_json(out);
                }
            }
        }
        out.push(b'}');
    }
}

#[derive(Debug)]
pub struct Service {
    pub name: ServiceName,
    /// Unique name of its connection.
    pub owner: Box<str>,
    /// Grows with every service that comes: the older has the older right to its topics.
    pub age: u64,
    pub state: State,
    /// When it last said something.
    pub heard: Time,
    pub instance: Box<str>,
    /// `N/<portal ID>/<type>/<instance>`, once the instance is known.
    pub topic: Box<str>,
    /// Has the topics of its type and instance.
    pub holder: bool,
    pub items: IndexMap<Box<str>, Item, RandomState>,
}

#[derive(Debug)]
pub enum State {
    Scanning(Scan),
    /// Did not answer; asked again at that time.
    Silent {
        again: Time,
        attempts: u32,
    },
    Ready,
    /// Left the bus, or its instance: nothing but so many topics to take back.
    Left {
        topics: usize,
    },
}

/// A scan that is under way.
#[derive(Debug)]
pub struct Scan {
    /// Earlier scans of this service that were not answered.
    pub attempts: u32,
    pub walk: Walk,
}

/// A walk through the nodes of a service that answers nothing else.
#[derive(Debug, Default)]
pub struct Walk {
    /// Paths still to be looked at, and whether it is their value that is asked for.
    pub queue: VecDeque<(Box<str>, bool)>,
    pub in_flight: usize,
    pub nodes: usize,
}

impl Service {
    pub fn service_type(&self) -> &str {
        self.name.service_type()
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Whether `path` itself is no item, but there are items below it.
    pub fn items_below<'a>(&'a self, path: &'a str) -> impl Iterator<Item = usize> + 'a {
        let prefix = path.trim_end_matches('/');
        let below = move |key: &str| key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        self.items.keys().enumerate().filter(move |(_, key)| below(key)).map(|(index, _)| index)
    }

    /// What stands in the topics: `/DeviceInstance`, else `/Identifier`, else 0.
    pub fn find_instance(&self) -> Box<str> {
        let text = |path: &str| self.items.get(path).and_then(|item| item.value.as_instance());
        text("/DeviceInstance").or_else(|| text("/Identifier")).unwrap_or_else(|| "0".into()).into()
    }
}

/// A service, for as long as it is there: the slot may be taken by another one later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId {
    slot: u32,
    age: u64,
}

#[derive(Debug, Default)]
pub struct Services {
    slots: Vec<Option<Service>>,
    next_age: u64,
    names: HashMap<Box<str>, ServiceId>,
    owners: HashMap<Box<str>, Vec<ServiceId>>,
    /// By `type/instance`.
    holders: HashMap<String, ServiceId>,
    items: usize,
}

impl Services {
    pub fn get(&self, id: ServiceId) -> Option<&Service> {
        self.slots.get(id.slot as usize)?.as_ref().filter(|service| service.age == id.age)
    }

    pub fn get_mut(&mut self, id: ServiceId) -> Option<&mut Service> {
        self.slots.get_mut(id.slot as usize)?.as_mut().filter(|service| service.age == id.age)
    }

    pub fn by_name(&self, name: &str) -> Option<ServiceId> {
        self.names.get(name).copied()
    }

    pub fn by_owner(&self, owner: &str) -> &[ServiceId] {
        self.owners.get(owner).map_or(&[], Vec::as_slice)
    }

    pub fn by_topic(&self, service_type: &str, instance: &str) -> Option<ServiceId> {
        self.holders.get(&format!("{service_type}/{instance}")).copied()
    }

    /// In the order of their slots.
    pub fn ids(&self) -> Vec<ServiceId> {
        self.iter().map(|(id, _)| id).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (ServiceId, &Service)> {
        let present = self.slots.iter().enumerate().filter_map(|(slot, service)| Some((slot, service.as_ref()?)));
        present.map(|(slot, service)| (ServiceId { slot: u32::try_from(slot).unwrap_or(u32::MAX), age: service.age }, service))
    }

    /// Services on the bus.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Items known, those of services that have left counted until they are taken back.
    pub fn items(&self) -> usize {
        self.items
    }

    pub fn add(&mut self, name: ServiceName, owner: &str, state: State) -> ServiceId {
        self.next_age += 1;
        let service = Service {
            owner: owner.into(),
            age: self.next_age,
            state,
            heard: Time::default(),
            instance: Box::default(),
            topic: Box::default(),
            holder: false,
            items: IndexMap::default(),
            name,
        };
        let (key, left) = (service.name.as_str().into(), matches!(service.state, State::Left { .. }));
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let id = ServiceId { slot: u32::try_from(slot).unwrap_or(u32::MAX), age: service.age };
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(service);
        }
        if !left {
            self.names.insert(key, id);
            self.owners.entry(owner.into()).or_default().push(id);
        }
        id
    }

    /// Takes the name off the service, whose items stay.
    pub fn detach(&mut self, id: ServiceId) {
        self.release_topics(id);
        let Some(service) = self.get_mut(id) else { return };
        service.state = State::Left { topics: service.items.values().filter(|item| item.published).count() };
        let (name, owner) = (service.name.clone(), service.owner.clone());
        self.names.remove(name.as_str());
        if let Some(ids) = self.owners.get_mut(&owner) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.owners.remove(&owner);
            }
        }
    }

    /// Frees what has nothing left to take back.
    pub fn free_if_done(&mut self, id: ServiceId) {
        if let Some(service) = self.get(id)
            && matches!(service.state, State::Left { topics: 0 })
        {
            self.items -= service.items.len();
            if let Some(place) = self.slots.get_mut(id.slot as usize) {
                *place = None;
            }
            while matches!(self.slots.last(), Some(None)) {
                self.slots.pop();
            }
        }
    }

    /// Gives the service the topics of its type and instance, unless another one has them: that one, then.
    pub fn claim_topics(&mut self, id: ServiceId) -> Result<(), ServiceId> {
        let Some(service) = self.get(id) else { return Ok(()) };
        let key = format!("{}/{}", service.service_type(), service.instance);
        match self.holders.get(&key) {
            Some(holder) if *holder != id => return Err(*holder),
            _ => self.holders.insert(key, id),
        };
        if let Some(service) = self.get_mut(id) {
            service.holder = true;
        }
        Ok(())
    }

    /// Takes the topics from the service.
    pub fn release_topics(&mut self, id: ServiceId) {
        if let Some(service) = self.get_mut(id)
            && service.holder
        {
            service.holder = false;
            let key = format!("{}/{}", service.service_type(), service.instance);
            self.holders.remove(&key);
        }
    }

    /// The item at `path`, made when it is new and there is room.
    pub fn item_entry(&mut self, id: ServiceId, path: &str, room: usize) -> Option<(usize, bool)> {
        let full = self.items >= room;
        let items = &mut self.get_mut(id)?.items;
        if let Some(index) = items.get_index_of(path) {
            return Some((index, false));
        }
        if full {
            return None;
        }
        let (index, _) = items.insert_full(path.into(), Item::default());
        self.items += 1;
        Some((index, true))
    }

    pub fn clear_items(&mut self, id: ServiceId) {
        if let Some(service) = self.get_mut(id) {
            let gone = service.items.len();
            service.items.clear();
            self.items -= gone;
        }
    }
}
