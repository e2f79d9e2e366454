//! What is known of the bus, for other rooms to read.

use super::items::{Service, State};
use super::time::Time;
use super::value::Value;
use super::{Bridge, access};

/// A service that has a type and instance, or may have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Occupant {
    pub name: Box<str>,
    /// Its scan has ended: it has the instance. Before, its instance is not known.
    pub is_scanned: bool,
}

/// Two services with one type and instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// It has the topics.
    pub holder: Box<str>,
    pub other: Box<str>,
}

/// A service that is on the bus and has been scanned.
#[derive(Clone, Copy, Debug)]
pub struct ServiceView<'a> {
    service: &'a Service,
}

impl Bridge {
    /// The services that are there now, whether or not they have topics.
    pub fn services(&self) -> impl Iterator<Item = ServiceView<'_>> {
        self.services.iter().map(|(_, service)| service).filter(|service| service.is_ready()).map(|service| ServiceView { service })
    }

    /// The services with this type and instance, and those of the type that are being scanned. `None` until the services that were on the
    /// bus at the start are known, as far as they answer.
    pub fn occupants(&self, service_type: &str, instance: &str) -> Option<Vec<Occupant>> {
        if !self.is_scanned() {
            return None;
        }
        let services = self.services.iter().map(|(_, service)| service).filter(|service| service.service_type() == service_type);
        let occupants = services.filter_map(|service| {
            let is_scanned = match service.state {
                State::Ready if *service.instance == *instance => true,
                State::Scanning(_) => false,
                State::Ready | State::Silent { .. } | State::Left { .. } => return None,
            };
            Some(Occupant { name: service.name.as_str().into(), is_scanned })
        });
        Some(occupants.collect())
    }

    /// A service has come with the type and instance of another one, or changed its instance to it.
    pub fn poll_conflict(&mut self) -> Option<Conflict> {
        self.conflicts.pop_front()
    }

    /// Whether, since the last call, services have come or gone, or changed their instances.
    pub fn poll_numbers(&mut self) -> bool {
        std::mem::take(&mut self.numbers_changed)
    }

    /// Whether what was on the bus at the start is known by now, as far as it answers.
    pub fn is_scanned(&self) -> bool {
        self.first_scan.is_none()
    }
}

impl<'a> ServiceView<'a> {
    pub fn name(self) -> &'a str {
        self.service.name.as_str()
    }

    pub fn service_type(self) -> &'a str {
        self.service.name.service_type()
    }

    /// What stands in its topics.
    pub fn instance(self) -> &'a str {
        &self.service.instance
    }

    /// Whether it has the topics of its type and instance: of several with the same, one does.
    pub fn has_topics(self) -> bool {
        self.service.holder
    }

    /// When it last said something.
    pub fn heard(self) -> Time {
        self.service.heard
    }

    pub fn value(self, path: &str) -> Option<&'a Value> {
        self.service.items.get(path).filter(|item| !item.gone).map(|item| &item.value)
    }

    /// Every item that may be shown to others, `None` for those whose value may not.
    pub fn shown(self) -> impl Iterator<Item = (&'a str, Option<&'a Value>)> {
        let service_type = self.service_type();
        let open = self.service.items.iter().filter(move |(path, item)| !item.gone && !access::is_blocked(service_type, path));
        open.map(move |(path, item)| (&**path, (!access::is_masked(service_type, path)).then_some(&item.value)))
    }
}
