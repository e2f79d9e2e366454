//! Services and their items: what is known of the bus.
//!
//! The topics of a service that has left stay here, as the tombstone of their type and instance, until they have been cleared.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::calls::Dictionary;
pub use super::item::{Change, Item, Secrecy, Touched};
use super::limits;
use super::name::{SETTINGS, ServiceName};
use super::time::Time;

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
    /// It is one of a registered device, on a connection of this process.
    pub own: bool,
    pub items: IndexMap<Box<str>, Item, RandomState>,
    /// What the items take, in bytes.
    pub bytes: usize,
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
    /// The tombstone of a type and instance: nothing but so many topics to clear.
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
    /// Paths still to be looked at. Those whose value is asked for: what a dictionary is there.
    pub queue: VecDeque<(Box<str>, Option<Dictionary>)>,
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

    /// localsettings. An invalid value is how its items are removed: a setting has a value as long as it exists.
    pub fn is_settings(&self) -> bool {
        self.name.as_str() == SETTINGS
    }

    /// Whether `path` itself is no item, but there are items below it.
    pub fn items_below<'a>(&'a self, path: &'a str) -> impl Iterator<Item = usize> + 'a {
        let prefix = path.trim_end_matches('/');
        let below = move |key: &str| key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        self.items.iter().enumerate().filter(move |(_, (key, item))| below(key) && !item.gone).map(|(index, _)| index)
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

#[cfg(test)]
impl ServiceId {
    pub fn numbered(slot: u32) -> Self {
        Self { slot, age: 0 }
    }
}

#[derive(Debug, Default)]
pub struct Services {
    slots: Vec<Option<Service>>,
    next_age: u64,
    names: HashMap<Box<str>, ServiceId>,
    owners: HashMap<Box<str>, Vec<ServiceId>>,
    /// By `type/instance`.
    holders: HashMap<String, ServiceId>,
    /// By `type/instance`: topics of services that have left.
    tombstones: HashMap<String, ServiceId>,
    /// All topics that are to be cleared.
    left: usize,
    items: usize,
    /// What the items take, in bytes.
    bytes: usize,
}

/// Why an item finds no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// The service has as many items as one may have.
    Service,
    /// All services together have.
    All,
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

    /// Items known.
    pub fn items(&self) -> usize {
        self.items
    }

    /// What they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Topics of services that have left, to be cleared.
    pub fn left(&self) -> usize {
        self.left
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
            own: false,
            items: IndexMap::default(),
            bytes: 0,
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

    /// Removes a service that has left the bus; its topics are left behind before ([`Self::leave_topics`]).
    pub fn remove(&mut self, id: ServiceId) {
        self.release_topics(id);
        self.clear_items(id);
        let Some(service) = self.get(id) else { return };
        let (name, owner) = (service.name.clone(), service.owner.clone());
        self.names.remove(name.as_str());
        if let Some(ids) = self.owners.get_mut(&owner) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.owners.remove(&owner);
            }
        }
        self.free(id);
    }

    fn free(&mut self, id: ServiceId) {
        if let Some(place) = self.slots.get_mut(id.slot as usize) {
            *place = None;
        }
        while matches!(self.slots.last(), Some(None)) {
            self.slots.pop();
        }
    }

    /// Leaves what the service has published to the one tombstone of its type and instance, so that what waits to be cleared is bounded
    /// by the topics, however often services come and go. Gives the tombstone, if there is something to clear, and how many topics found
    /// no room there.
    pub fn leave_topics(&mut self, id: ServiceId) -> (Option<ServiceId>, usize) {
        let Some(service) = self.get_mut(id) else { return (None, 0) };
        let published = service.items.iter_mut().filter(|(_, item)| item.published || item.clear_first);
        let published: Vec<Box<str>> = published
            .map(|(path, item)| {
                (item.published, item.clear_first) = (false, false);
                path.clone()
            })
            .collect();
        if published.is_empty() {
            return (None, 0);
        }
        let (name, owner, instance, topic) = (service.name.clone(), service.owner.clone(), service.instance.clone(), service.topic.clone());
        let key = topics_key(&name, &instance);
        let tombstone = match self.tombstones.get(&key) {
            Some(tombstone) => *tombstone,
            None if self.tombstones.len() >= limits::SERVICES => return (None, published.len()),
            None => {
                let tombstone = self.add(name, &owner, State::Left { topics: 0 });
                self.tombstones.insert(key, tombstone);
                tombstone
            }
        };
        let (mut room, mut lost) = (limits::LEFT_TOPICS.saturating_sub(self.left), 0);
        let mut added = 0;
        if let Some(Service { items, state: State::Left { topics }, instance: its, topic: stem, .. }) = self.get_mut(tombstone) {
            (*its, *stem) = (instance, topic);
            for path in published {
                if let Some(item) = items.get_mut(&path) {
                    added += usize::from(!item.published);
                    item.published = true;
                } else if room > 0 {
                    items.insert(path, Item { published: true, ..Item::default() });
                    room -= 1;
                    added += 1;
                } else {
                    lost += 1;
                }
            }
            *topics += added;
        }
        self.left += added;
        self.free_if_done(tombstone);
        (self.get(tombstone).map(|_| tombstone), lost)
    }

    /// The service takes over the topics that a tombstone has of its items: each is cleared before it is published again.
    fn take_from_tombstone(&mut self, id: ServiceId, only: Option<usize>) {
        let Some(service) = self.get(id) else { return };
        let Some(tombstone) = self.tombstones.get(&topics_key(&service.name, &service.instance)).copied() else { return };
        let mut taken = Vec::new();
        if let (Some(service), Some(Service { items: left, .. })) = (self.get(id), self.get(tombstone)) {
            let all = service.items.keys().enumerate().filter(|(index, _)| only.is_none_or(|only| only == *index));
            taken.extend(all.filter_map(|(index, path)| Some((index, left.get_full(path).filter(|(.., item)| item.published)?.0))));
        }
        for (index, left) in taken {
            self.cleared(tombstone, left);
            if let Some((_, item)) = self.get_mut(id).and_then(|service| service.items.get_index_mut(index)) {
                item.clear_first = true;
            }
        }
        self.free_if_done(tombstone);
    }

    /// A topic of a tombstone needs no clearing any more.
    pub fn cleared(&mut self, tombstone: ServiceId, index: usize) {
        if let Some(Service { items, state: State::Left { topics }, .. }) = self.get_mut(tombstone)
            && let Some((_, item)) = items.get_index_mut(index)
            && std::mem::take(&mut item.published)
        {
            *topics -= 1;
            self.left -= 1;
        }
    }

    /// Frees a tombstone that has nothing left to clear.
    pub fn free_if_done(&mut self, id: ServiceId) {
        if let Some(Service { state: State::Left { topics: 0 }, name, instance, .. }) = self.get(id) {
            let key = topics_key(name, instance);
            self.tombstones.remove(&key);
            self.free(id);
        }
    }

    /// Nothing is to be cleared any more.
    pub fn forget_left(&mut self) {
        for id in std::mem::take(&mut self.tombstones).into_values() {
            self.free(id);
        }
        self.left = 0;
    }

    /// Gives the service the topics of its type and instance, unless another one has them: that one, then.
    pub fn claim_topics(&mut self, id: ServiceId) -> Result<(), ServiceId> {
        let Some(service) = self.get(id) else { return Ok(()) };
        let key = topics_key(&service.name, &service.instance);
        match self.holders.get(&key) {
            Some(holder) if *holder != id => return Err(*holder),
            _ => self.holders.insert(key, id),
        };
        if let Some(service) = self.get_mut(id) {
            service.holder = true;
        }
        self.take_from_tombstone(id, None);
        Ok(())
    }

    /// Takes the topics from the service.
    pub fn release_topics(&mut self, id: ServiceId) {
        if let Some(service) = self.get_mut(id)
            && service.holder
        {
            service.holder = false;
            let key = topics_key(&service.name, &service.instance);
            self.holders.remove(&key);
        }
    }

    /// The item at `path`, made when it is new and there is room.
    pub fn item_entry(&mut self, id: ServiceId, path: &str) -> Option<Result<usize, Full>> {
        let full = self.items >= limits::ITEMS || self.bytes >= limits::MODEL_BYTES;
        let service = self.get_mut(id)?;
        if let Some(index) = service.items.get_index_of(path) {
            return Some(Ok(index));
        }
        if service.items.len() >= limits::SERVICE_ITEMS || service.bytes >= limits::SERVICE_BYTES {
            return Some(Err(Full::Service));
        }
        if full {
            return Some(Err(Full::All));
        }
        let bytes = limits::ITEM_BYTES + path.len();
        let (index, _) = service.items.insert_full(path.into(), Item::default());
        service.bytes += bytes;
        let holder = service.holder;
        self.items += 1;
        self.bytes += bytes;
        if holder {
            self.take_from_tombstone(id, Some(index));
        }
        Some(Ok(index))
    }

    /// Applies a change to an item. What does not fit into what the values of one service, or of all, may take is left out:
    /// [`Applied::cut`].
    pub fn apply(&mut self, id: ServiceId, index: usize, mut change: Change, from: Origin) -> Applied {
        let mut applied = Applied::default();
        let room = limits::MODEL_BYTES.saturating_sub(self.bytes);
        let Some(service) = self.get_mut(id) else { return applied };
        let room = room.min(limits::SERVICE_BYTES.saturating_sub(service.bytes));
        let Some((_, item)) = service.items.get_index_mut(index) else { return applied };
        let before = item.heap();
        let heavy = change.heap();
        if heavy > 0 && heavy > room + before {
            applied.cut = true;
            change = change.without_weight();
        }
        applied.shown = match from {
            Origin::Signal => item.apply(change),
            Origin::Snapshot => {
                item.apply_snapshot(change);
                true
            }
        };
        let after = item.heap();
        if before != after {
            service.bytes = service.bytes - before + after;
            self.bytes = self.bytes - before + after;
        }
        applied
    }

    /// Marks an item as [`Item::gone`]: all that is left of it is a topic to clear.
    pub fn remove_item(&mut self, id: ServiceId, index: usize) {
        let Some(service) = self.get_mut(id) else { return };
        let Some((_, item)) = service.items.get_index_mut(index) else { return };
        let bytes = item.heap();
        let Item { published, clear_first, queued, answering, touched, .. } = *item;
        *item = Item { gone: true, secrecy: Secrecy::Blocked, published, clear_first, queued, answering, touched, ..Item::default() };
        service.bytes -= bytes;
        self.bytes -= bytes;
    }

    /// Removes an item that is [`Item::gone`], unless its topic is still to be cleared, something queued refers to it, its limits are
    /// known, or a snapshot that is still to come may be older. The last item takes its index: returns the index that it had.
    pub fn remove_if_done(&mut self, id: ServiceId, index: usize) -> Option<usize> {
        let service = self.get_mut(id)?;
        let (path, item) = service.items.get_index(index)?;
        let waits = item.queued || item.answering || item.published || item.clear_first || item.touched.value;
        if !item.gone || waits || item.limits.is_some() {
            return None;
        }
        let bytes = limits::ITEM_BYTES + path.len() + item.heap();
        service.items.swap_remove_index(index);
        service.bytes -= bytes;
        let last = service.items.len();
        self.items -= 1;
        self.bytes -= bytes;
        Some(last)
    }

    pub fn clear_items(&mut self, id: ServiceId) {
        if let Some(service) = self.get_mut(id) {
            let (gone, bytes) = (service.items.len(), service.bytes);
            service.items.clear();
            service.bytes = 0;
            self.items -= gone;
            self.bytes -= bytes;
        }
    }
}

/// Where a change comes from: a snapshot never overwrites what a signal has brought since the scan began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Signal,
    Snapshot,
}

/// What became of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// There is something to publish: a change of the text alone is nothing.
    pub shown: bool,
    /// A value found no room and is shown as null.
    pub cut: bool,
}

/// `type/instance`
fn topics_key(name: &ServiceName, instance: &str) -> String {
    format!("{}/{instance}", name.service_type())
}
