//! Whether services of devices can be written by MQTT, so that their device may be answered.
//!
//! Where this daemon is the bridge, it is once its own subscriptions are acknowledged. Where another bridge serves the broker, it is once that
//! bridge has found the service: dbus-flashmq drops a write to a service that it has not scanned yet. A read request for
//! `/DeviceInstance`, which every service has, is repeated until the notification comes. A retained one may be of an earlier life and
//! proves nothing. After [`limits::SERVED_PATIENCE`] the device is answered all the same.

use log::Level;

use super::Devices;
use super::model::State;
use crate::bridge::notes::Kind;
use crate::bridge::topic::{Address, Incoming};
use crate::bridge::value::{Value, parse_json};
use crate::bridge::{LinkCommand, Mode, Time, limits};

const ITEM: &str = "DeviceInstance";

/// Whether another bridge serves a service on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Served {
    #[default]
    Unknown,
    /// It counts as served at `until`. The next read request is sent at `next`, once the answer would be received.
    Asking {
        until: Time,
        next: Option<Time>,
        /// Read requests so far.
        asked: u32,
    },
    Yes,
}

impl Served {
    /// When there is something to do next.
    pub fn due(self) -> Option<Time> {
        match self {
            Self::Asking { until, next, .. } => Some(next.map_or(until, |next| next.min(until))),
            Self::Unknown | Self::Yes => None,
        }
    }
}

/// What is known of the other bridge on this connection.
#[derive(Debug, Default)]
pub struct OtherBridge {
    subscription: Subscription,
    /// `bridge.enabled = false`, and nothing has answered: devices are answered at once.
    is_absent: bool,
    /// Read requests since `window` began.
    requests: usize,
    window: Time,
}

/// The subscription to notifications of `/DeviceInstance`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Subscription {
    #[default]
    None,
    Requested,
    Acknowledged,
}

impl OtherBridge {
    /// Whether one more read request may be sent now; else when.
    fn admit(&mut self, now: Time) -> Result<(), Time> {
        if now >= self.window + limits::SERVED_WINDOW {
            (self.window, self.requests) = (now, 0);
        }
        if self.requests >= limits::SERVED_REQUESTS {
            return Err(self.window + limits::SERVED_WINDOW);
        }
        self.requests += 1;
        Ok(())
    }
}

impl Devices {
    /// Reads and writes are received by somebody from now on: the status `online` has been published. Returns whether that is new.
    pub fn set_online(&mut self, now: Time, is_online: bool) -> bool {
        let is_new = self.is_online != is_online;
        self.is_online = is_online;
        if is_new {
            self.settle_all(now);
        }
        if is_online {
            for (clients, text) in std::mem::take(&mut self.unanswered) {
                self.complain(&clients, &text);
            }
        }
        is_new
    }

    pub(super) fn is_beside(&self) -> bool {
        matches!(self.mode, Mode::Companion | Mode::Off)
    }

    /// Nothing is known of another bridge, and every device is to be answered again.
    pub(super) fn forget_served(&mut self) {
        self.other = OtherBridge::default();
        self.services_mut().for_each(|service| service.served = Served::Unknown);
        self.devices.iter_mut().filter(|device| device.online).for_each(|device| device.owed = true);
    }

    /// The mode is another one: whoever asks begins anew.
    pub(super) fn serve_by_mode(&mut self, now: Time) {
        if std::mem::take(&mut self.other).subscription != Subscription::None && self.linked {
            self.link.push_back(LinkCommand::Unsubscribe(vec![self.served_filter()]));
        }
        self.services_mut().for_each(|service| service.served = Served::Unknown);
        self.settle_all(now);
    }

    fn settle_all(&mut self, now: Time) {
        self.due = None;
        (0..self.devices.len()).for_each(|index| self.settle(now, index));
        self.end_asking();
    }

    fn services_mut(&mut self) -> impl Iterator<Item = &mut super::model::Service> {
        self.devices.iter_mut().flat_map(|device| &mut device.services)
    }

    fn served_filter(&self) -> String {
        self.topics.notification(&format!("+/+/{ITEM}"))
    }

    /// Whether all services of a device, which are on the bus, can be written by MQTT. If not, this is found out.
    pub(super) fn is_served(&mut self, now: Time, index: usize) -> bool {
        if !self.is_online || !self.is_beside() || self.other.is_absent {
            return self.is_online;
        }
        let Some(device) = self.devices.get_mut(index) else { return false };
        let (mut is_served, mut silent, mut reads) = (true, None, Vec::new());
        // one that has left the bus for its silence is served by nobody
        for service in device.services.iter_mut().filter(|service| service.is_up()) {
            let (until, next, asked) = match service.served {
                Served::Yes => continue,
                Served::Asking { until, .. } if until <= now => {
                    service.served = Served::Yes;
                    silent = Some(service.bus_name());
                    continue;
                }
                Served::Asking { until, next, asked } => (until, next, asked),
                Served::Unknown => {
                    let next = (self.other.subscription == Subscription::Acknowledged).then(|| now + limits::SERVED_FIRST);
                    (now + limits::SERVED_PATIENCE, next, 0)
                }
            };
            is_served = false;
            let due = next.is_some_and(|next| next <= now);
            let (next, asked) = match due.then(|| self.other.admit(now)) {
                Some(Ok(())) => {
                    reads.push(format!("{}/{}/{ITEM}", service.kind, service.instance.unwrap_or_default()));
                    (Some(now + limits::SERVED_AGAIN.saturating_mul(1 << asked.min(8))), asked + 1)
                }
                Some(Err(later)) => (Some(later), asked),
                None => (next, asked),
            };
            service.served = Served::Asking { until, next, asked };
        }
        self.due = None;
        for read in reads {
            let topic = self.topics.request('R', &read);
            self.publish(topic, String::new());
        }
        if !is_served && self.other.subscription == Subscription::None {
            self.other.subscription = Subscription::Requested;
            self.link.push_back(LinkCommand::Subscribe(vec![self.served_filter()]));
        }
        if let Some(name) = silent {
            self.say_unserved(now, &name);
        }
        is_served || self.other.is_absent
    }

    fn say_unserved(&mut self, now: Time, name: &str) {
        let seconds = limits::SERVED_PATIENCE.as_secs();
        if self.mode == Mode::Off {
            self.other.is_absent = true;
            self.services_mut().for_each(|service| service.served = Served::Unknown);
            self.settle_all(now);
            self.notes.add(Level::Info, || {
                format!("no other bridge answers for {name} within {seconds} s (`bridge.enabled = false`): devices are answered at once")
            });
        } else {
            self.caused(now, Level::Warn, Kind::Service, || {
                format!("the other bridge does not answer for {name} within {seconds} s: its device is answered all the same, and the first write may be lost")
            });
        }
    }

    /// Unsubscribes when no service waits any more.
    pub(super) fn end_asking(&mut self) {
        let is_asking = || self.devices.iter().flat_map(|device| &device.services).any(|service| service.served.due().is_some());
        if self.other.subscription != Subscription::None && !is_asking() {
            self.other.subscription = Subscription::None;
            self.link.push_back(LinkCommand::Unsubscribe(vec![self.served_filter()]));
        }
    }

    /// The broker's answer to one filter of a subscription: without this one nothing can be found out, and the time runs out.
    pub(super) fn served_subscribed(&mut self, now: Time, filter: &str, accepted: bool) {
        if !accepted || self.other.subscription != Subscription::Requested || filter != self.served_filter() {
            return;
        }
        self.other.subscription = Subscription::Acknowledged;
        self.due = None;
        for service in self.services_mut() {
            if let Served::Asking { next: next @ None, .. } = &mut service.served {
                *next = Some(now + limits::SERVED_FIRST);
            }
        }
    }

    /// A notification of another bridge.
    pub(super) fn take_notification(&mut self, now: Time, topic: &str, payload: &[u8], retained: bool) {
        let Incoming::Notification(rest) = self.topics.parse(topic) else { return };
        let read = self.topics.request('R', rest);
        let Incoming::Read(Address { service_type, instance, path }) = self.topics.parse(&read) else { return };
        let number = instance.parse::<i32>().ok();
        if retained || number.is_none() || path.strip_prefix('/') != Some(ITEM) {
            return;
        }
        let is_there = matches!(
            parse_json(payload),
            Ok(Value::Dict(fields)) if fields.iter().any(|(key, value)| **key == *"value" && Some(value) == number.map(|n| Value::Int(n.into())).as_ref())
        );
        let place = self.devices.iter().enumerate().find_map(|(index, device)| {
            let mut services = device.services.iter();
            let place =
                services.position(|service| service.instance == number && *service.kind == *service_type && service.state == State::Up)?;
            Some((index, place))
        });
        let Some(service) = place.and_then(|place| self.service_mut(place)) else { return };
        match service.served {
            Served::Asking { asked: 1.., .. } if is_there => service.served = Served::Yes,
            // it has left there, or is about to
            Served::Yes if !is_there => service.served = Served::Unknown,
            Served::Asking { .. } | Served::Unknown | Served::Yes => return,
        }
        if let Some((index, _)) = place {
            self.settle(now, index);
        }
        self.end_asking();
    }
}
