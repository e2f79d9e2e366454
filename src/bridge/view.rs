//! What is known of the bus, for other rooms to read.

use super::items::Service;
use super::time::Time;
use super::value::Value;
use super::{Bridge, access};

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
