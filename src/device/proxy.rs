//! `device/<client ID>/Proxy`: many values in one message. Those of one service of a device go out in one signal.

use log::Level;

use super::model::{Place, Service, State};
use super::options::Proxy;
use super::steps::{Changed, Refusal};
use super::{Devices, ForeignWrite};
use crate::bridge::notes::Kind;
use crate::bridge::topic::Address;
use crate::bridge::value::{Value, read_json};
use crate::bridge::{Time, limits};
use crate::text::escape;

type Entries = [(Box<str>, Value)];

/// Who is meant.
struct Target<'a> {
    service_type: &'a str,
    instance: &'a str,
    /// If it is one of ours.
    place: Option<Place>,
}

impl Devices {
    pub(super) fn take_proxy(&mut self, now: Time, client: &str, payload: &[u8]) {
        let sender = self.sender(client);
        if let Some(index) = sender {
            self.hear(now, index);
        }
        let mut refused = Vec::new();
        if let Err(why) = self.proxy(now, client, sender, payload, &mut refused) {
            refused.push(why);
        }
        self.refuse_proxy(now, client, &refused);
    }

    /// Tells the sender of a proxy message what could not be done.
    pub fn refuse_proxy(&mut self, now: Time, client: &str, refused: &[String]) {
        let (told, rest) = refused.split_at(refused.len().min(limits::PROXY_REFUSALS));
        if told.is_empty() {
            return;
        }
        let rest = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
        let why = format!("{}{rest}", told.join("; "));
        self.caused(now, Level::Warn, Kind::Proxy, || format!("device/{}/Proxy: {}", escape(client), escape(&why)));
        self.complain(&[client.into()], &why);
    }

    fn proxy(&mut self, now: Time, client: &str, sender: Option<usize>, payload: &[u8], refused: &mut Vec<String>) -> Result<(), String> {
        const FORM: &str = "send {\"topicPath\": \"W/…\", \"values\": {…}}, or {\"<service>\": {…}}";
        if payload.len() > limits::PROXY_PAYLOAD {
            return Err(format!("the Proxy message has {} bytes; at most {} are taken", payload.len(), limits::PROXY_PAYLOAD));
        }
        let fields = match read_json(payload) {
            Ok(Value::Dict(fields)) if !fields.is_empty() => fields,
            Ok(_) => return Err(format!("the Proxy message is no JSON object with entries; {FORM}")),
            Err(error) => return Err(format!("the Proxy message is not valid JSON: {error}")),
        };
        let count = |(key, value): &(Box<str>, Value)| match value {
            Value::Dict(values) => values.len(),
            _ => usize::from(**key != *"topicPath"),
        };
        let values: usize = fields.iter().map(count).sum();
        if values > limits::PROXY_VALUES {
            return Err(format!("the Proxy message has {values} values; at most {} are taken", limits::PROXY_VALUES));
        }
        // of a key that is there twice, the last one counts, as everywhere
        let field = |name: &str| fields.iter().rfind(|(key, _)| **key == *name).map(|(_, value)| value);
        match (field("topicPath"), field("values")) {
            (Some(Value::Str(path)), Some(Value::Dict(values))) => {
                let target = self.target(path, sender)?;
                self.write_all(now, client, sender, &target, values, refused);
                Ok(())
            }
            (Some(Value::Str(_)), _) => Err(format!("values is no object; {FORM}")),
            (Some(Value::Dict(_)), _) | (None, _) => self.proxy_by_id(now, client, sender, &fields, refused),
            (Some(_), _) => Err(format!("topicPath is no text; {FORM}")),
        }
    }

    /// `{"t1": {"Temperature": 23}}`
    fn proxy_by_id(
        &mut self,
        now: Time,
        client: &str,
        sender: Option<usize>,
        fields: &Entries,
        refused: &mut Vec<String>,
    ) -> Result<(), String> {
        let index = sender.ok_or("no device with this ID is registered; send a Status first, or a topicPath")?;
        for (id, values) in fields {
            let services = self.devices.get(index).map_or(&[][..], |device| &device.services);
            let named = |service: &Service| service.wanted && (service.id.raw() == &**id || service.id.name() == &**id);
            let Some((at, service)) = services.iter().enumerate().find(|(_, service)| named(service)) else {
                refused.push(format!("\"{}\" is none of the device's services", escape(id)));
                continue;
            };
            let (true, Some(instance)) = (service.state == State::Up || service.is_away(), service.instance) else {
                refused.push(format!("\"{}\" is not on the bus yet; wait for device/{}/DBus", escape(id), escape(client)));
                continue;
            };
            let (kind, instance) = (service.kind.clone(), instance.to_string());
            let Value::Dict(values) = values else {
                refused.push(format!("the values of \"{}\" are no object", escape(id)));
                continue;
            };
            let target = Target { service_type: &kind, instance: &instance, place: Some((index, at)) };
            self.write_all(now, client, sender, &target, values, refused);
        }
        Ok(())
    }

    /// `W/<portal ID>/<type>/<instance>`, with the prefix or without it.
    fn target<'a>(&self, path: &'a str, sender: Option<usize>) -> Result<Target<'a>, String> {
        let rest = self.topics.behind_prefix(path).unwrap_or(path);
        let mut levels = rest.split('/');
        let (Some("W"), Some(portal), Some(service_type), Some(instance), None) =
            (levels.next(), levels.next(), levels.next(), levels.next(), levels.next())
        else {
            return Err(format!("topicPath \"{}\" is not W/<portal ID>/<type>/<instance>", escape(path)));
        };
        if service_type.len() > limits::TYPE || instance.len() > limits::TYPE {
            return Err(format!("topicPath \"{}\" names no service", escape(path)));
        }
        if portal != self.topics.portal().as_str() {
            return Err(format!("topicPath \"{}\" is of another portal ID than {}", escape(path), self.topics.portal()));
        }
        let is_meant = |place: &Place| {
            let is_up = |service: &Service| service.state == State::Up && service.is_at(service_type, instance);
            let there = |service: &Service| is_up(service) || service.is_away_at(service_type, instance);
            self.service(*place).is_some_and(there)
        };
        let is_senders = |place: &Place| Some(place.0) == sender;
        let place = self.places().filter(is_senders).find(is_meant).or_else(|| self.places().find(is_meant));
        if !place.is_some_and(|place| is_senders(&place)) {
            self.check_not_own(sender, service_type, instance)?;
        }
        Ok(Target { service_type, instance, place })
    }

    /// What a device writes to its own service never reaches another one that has, or will have, the same type and instance.
    fn check_not_own(&self, sender: Option<usize>, service_type: &str, instance: &str) -> Result<(), String> {
        let services = sender.and_then(|index| self.devices.get(index)).map_or(&[][..], |device| &device.services);
        let is_number = |number: &Option<i32>| number.is_some_and(|number| number.to_string() == instance);
        let mut own = services.iter().filter(|service| service.wanted && *service.kind == *service_type);
        match own.find(|service| is_number(&service.instance) || service.announced.iter().any(is_number)) {
            Some(service) => Err(format!(
                "{service_type}/{instance} is, or was, \"{}\" of this device, which is not on the bus under that instance; see DBus",
                service.id
            )),
            None => Ok(()),
        }
    }

    fn write_all(
        &mut self,
        now: Time,
        client: &str,
        sender: Option<usize>,
        target: &Target<'_>,
        values: &Entries,
        refused: &mut Vec<String>,
    ) {
        let own = target.place.is_some_and(|(index, _)| Some(index) == sender);
        if self.options.proxy == Proxy::Own && !own {
            return refused.push(format!(
                "{}/{} is none of the device's own services, and `proxy` in [devices] is \"own\"",
                target.service_type, target.instance
            ));
        }
        let (mut changed, mut is_taken, mut by_value) = (Changed::default(), false, own);
        for (key, value) in values {
            let path = format!("/{}", key.trim_start_matches('/'));
            let address = Address { service_type: target.service_type, instance: target.instance, path: &path };
            let written = if !self.rules.may_write(&address) {
                Err("the access rules deny it".into())
            } else if let Err(error) = value.fits_bus() {
                Err(error.to_string())
            } else if let Some(place) = target.place {
                let value = value.clone().read_words();
                value.and_then(|value| self.write_any(now, place, &path, value, !own).map_err(|refusal: Refusal| refusal.text()))
            } else if self.writes.len() < limits::WAITING && self.write_bytes + value.heap() <= limits::WAITING_BYTES {
                self.write_bytes += value.heap();
                self.writes.push_back(ForeignWrite {
                    client: client.into(),
                    service_type: target.service_type.into(),
                    instance: target.instance.into(),
                    path: path.as_str().into(),
                    value: value.clone(),
                });
                Ok(Changed::default())
            } else {
                Err("too many writes are waiting".into())
            };
            match written {
                Ok(written) => {
                    changed.add(written);
                    is_taken = true;
                    by_value |= target.place.is_some_and(|place| !self.is_by_hand(place, &path));
                    // what a device says of itself it knows
                    changed.told |= !own;
                }
                Err(why) => refused.push(format!("{}/{}{}: {why}", escape(target.service_type), escape(target.instance), escape(&path))),
            }
        }
        if let Some(place) = target.place {
            if is_taken {
                self.hear(now, place.0);
                changed.paths.extend(self.service_seen(now, place, by_value));
            }
            self.emit(place, changed);
        }
    }

    /// The device that publishes under this ID.
    fn sender(&self, client: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.online && device.clients.iter().any(|known| **known == *client))
    }
}
