//! The dialogue with localsettings: where the number of a service, its name and whatever else the user chooses live, and survive.
//!
//! What localsettings answers counts: the number asked for may be another's. While it is away nothing is lost: registrations wait, and
//! what was chosen meanwhile is written when it comes back.

use log::Level;

use super::Devices;
use super::dialogue::Purpose;
use super::model::{Kept, Key, Place, Service, State};
use super::numbers::{instance_of, instance_path};
use super::persisted::{OTHER_TYPE, item_path, results, shown};
use crate::bridge::name::is_item_path;
use crate::bridge::notes::Kind;
use crate::bridge::value::Value;
use crate::bridge::{Method, Reply, Setting, Time};
use crate::text::escape;

impl Devices {
    /// Asks for everything a service keeps; its number first.
    pub(super) fn ask_settings(&mut self, now: Time, place: Place) {
        if !self.export(place) {
            let kind = self.service(place).map(|service| service.kind.clone()).unwrap_or_default();
            return self.fail(now, place, &format!("the catalogue has no type \"{}\"", escape(&kind)));
        }
        self.apply_restored(now, place);
        let key = self.new_key(place);
        if let Some(service) = self.service_mut(place) {
            service.state = State::Asking;
            service.check = None;
            // a call of an earlier life is answered to nobody
            service.kept.values_mut().for_each(|kept| *kept = Kept { newer: kept.newer, ..Kept::default() });
        }
        self.add_settings(now, place, Purpose::Add { key, again: false });
    }

    pub(super) fn add_settings(&mut self, now: Time, place: Place, purpose: Purpose) {
        let Some(service) = self.service(place) else { return };
        // a number that localsettings has lost is asked for again; one that it has stays, whatever is asked for
        let number = format!("{}:{}", service.kind, service.instance.unwrap_or(1));
        let path = instance_path(&service.slug).into();
        let number = Setting { path, default: Value::Str(number.into()), min: Value::Invalid, max: Value::Invalid };
        let settings = std::iter::once(number).chain(self.wanted_settings(place)).collect();
        self.settings.ask(now, "/", Method::AddSettings(settings), purpose);
    }

    pub(super) fn take_settings_reply(&mut self, now: Time, purpose: Purpose, reply: Option<Reply>) {
        let asked = match purpose {
            Purpose::Add { key, .. } | Purpose::Old(key, _) | Purpose::ReadInstance(key) | Purpose::Grown(key) => self.place_of(key),
            _ => None,
        };
        let answers = matches!(reply, Some(Reply::Value(_) | Reply::Code(_)));
        self.take_answer(now, purpose, reply);
        if answers {
            self.keep_failed(now);
        }
        // what was taken over is told, once it is known which services move
        if let Some((index, _)) = asked {
            let mut services = self.devices.get(index).into_iter().flat_map(|device| &device.services);
            if !services.any(|service| self.settings.asks_number(service.key)) {
                self.settle(now, index);
            }
        }
    }

    fn take_answer(&mut self, now: Time, purpose: Purpose, reply: Option<Reply>) {
        match purpose {
            Purpose::Owner => match reply {
                Some(Reply::Text(owner)) => self.take_settings_owner(now, &owner),
                Some(_) => {}
                None => self.settings.ask_owner(now),
            },
            Purpose::Add { key, again } => self.take_added(now, key, again, reply),
            Purpose::Old(key, path) => self.take_old(now, key, &path, reply),
            Purpose::Claim(key) => {
                if let Some(place) = self.place_of(key)
                    && let Some(service) = self.service(place)
                {
                    let path = instance_path(&service.slug);
                    self.settings.ask(now, &path, Method::GetValue, Purpose::ReadInstance(key));
                }
            }
            Purpose::ReadInstance(key) => self.take_instance(now, key, reply),
            Purpose::Grown(key) => {
                let Some(place) = self.place_of(key) else { return };
                match reply {
                    Some(Reply::Value(added)) => self.take_kept(now, place, &added),
                    Some(reply) => self.not_stored(now, place, &reply),
                    None => self.wait_again(now, place),
                }
            }
            Purpose::Create(key, path) => self.take_created(now, key, &path, reply),
            Purpose::Keep(key, path) => self.take_stored(now, key, &path, reply),
            Purpose::Clear => {}
            Purpose::Forget(name) => self.take_forgotten(&name, reply),
        }
    }

    fn take_added(&mut self, now: Time, key: Key, again: bool, reply: Option<Reply>) {
        let Some(place) = self.place_of(key) else { return };
        let added = match reply {
            Some(Reply::Value(added)) => added,
            Some(other) if !other.is_from_nobody() => {
                return self.fail_asking(now, place, &format!("localsettings refuses AddSettings: {}", escape(&other.reason())));
            }
            nobody => {
                // it has left, or it hangs: whoever waits goes on waiting
                if nobody.is_some() {
                    self.settings.owner = None;
                    self.settings.ask_owner(now);
                }
                return self.wait_again(now, place);
            }
        };
        let Some(service) = self.service(place) else { return };
        let (kind, slug) = (service.kind.clone(), service.slug.clone());
        let wrong: Vec<Box<str>> =
            results(&added).filter(|(path, error, _)| *error == OTHER_TYPE && is_item(path, &slug)).map(|(path, ..)| path.into()).collect();
        if !wrong.is_empty() && !again {
            // of another program's type: what it holds is read first, and then converted
            for full in &wrong {
                let path = full.strip_prefix("/Settings/MqttDevices/").and_then(|rest| rest.strip_prefix(&*slug)).unwrap_or_default();
                self.settings.ask(now, full, Method::GetValue, Purpose::Old(key, path.into()));
            }
            return;
        }
        let number = instance_path(&slug);
        let found = results(&added).find(|(path, ..)| *path == number);
        let (error, value) = found.map_or((0, &Value::Invalid), |(_, error, value)| (error, value));
        let instance = instance_of(value, &kind);
        self.take_kept(now, place, &added);
        let known = self.service(place).and_then(|service| service.instance);
        match instance {
            _ if error != 0 => self.fail_asking(now, place, &format!("localsettings refuses {number} (error {error})")),
            Some(instance) => self.use_instance(now, place, instance, true),
            // it is of another class, or has gone again
            None => {
                let claim = Value::Str(format!("{kind}:{}", known.unwrap_or(1)).into());
                let once = self.service(place).is_some_and(Service::is_new_or_shown);
                self.note_setting(now, Level::Info, once, || format!("{number} is none of the class {kind}: {} is claimed", shown(&claim)));
                self.settings.ask(now, &number, Method::SetValue(claim), Purpose::Claim(key));
            }
        }
    }

    /// A service that is on the bus already stays there.
    pub(super) fn fail_asking(&mut self, now: Time, place: Place, why: &str) {
        if self.service(place).is_some_and(|service| service.state == State::Asking) {
            self.fail(now, place, why);
            self.drive_all(now, place.0);
            self.finish_forgetting(now, place.0);
        } else {
            self.caused(now, Level::Warn, Kind::Settings, || why.to_owned());
        }
    }

    pub(super) fn wait_again(&mut self, now: Time, place: Place) {
        let Some(service) = self.service(place) else { return };
        let (key, state, has_left) = (service.key, service.state, service.has_left());
        // once is enough, however much has gone unanswered
        let asks = self.settings.is_there() && !self.settings.asks_settings(key);
        match state {
            State::Asking => {
                if let Some(service) = self.service_mut(place) {
                    service.state = State::Waiting;
                }
                self.drive_all(now, place.0);
                self.finish_forgetting(now, place.0);
            }
            _ if asks && (has_left || matches!(state, State::Opening | State::Up)) => {
                self.add_settings(now, place, Purpose::Add { key, again: false })
            }
            _ => {}
        }
    }

    /// Somebody has changed a setting.
    pub fn setting_changed(&mut self, now: Time, path: &str, value: &Value) {
        if let Some(rest) = path.strip_prefix("/Settings/Devices/") {
            let Some((slug, "ClassAndVrmInstance")) = rest.split_once('/') else { return };
            let Some(place) = self.place_of_slug(slug) else { return };
            let Some(service) = self.service(place) else { return };
            let kind = service.kind.clone();
            let is_known = match service.state {
                State::Opening | State::Up => true,
                State::Asking => service.check.is_some_and(|check| check.is_due),
                // it comes back under the number that it has then
                _ => service.has_left(),
            };
            let asked = self.settings.asks_number(service.key);
            // a setting that is there already does not change by being asked for
            if self.settings.asks_settings(service.key) && service.instance.is_some() && service.instance == instance_of(value, &kind) {
                let (name, once) = (service.bus_name(), service.is_new_or_shown() || service.has_left());
                self.note_setting(now, Level::Info, once, || format!("{path} was missing: {} of {name} is written back", shown(value)));
                return;
            }
            match instance_of(value, &kind) {
                // the answer to our own question says what it is
                _ if asked || !is_known => {}
                Some(instance) => self.use_instance(now, place, instance, false),
                None if *value == Value::Invalid => {}
                None => {
                    let slug = slug.to_owned();
                    self.caused(now, Level::Warn, Kind::Settings, || {
                        format!("the instance of {slug} was set to what is none of the class {kind}: it stays as it is")
                    });
                }
            }
        } else if let Some(rest) = path.strip_prefix("/Settings/MqttDevices/") {
            let Some(slash) = rest.find('/') else { return };
            let (slug, path) = rest.split_at(slash);
            let Some(place) = self.place_of_slug(slug) else { return };
            // it may be a default that is new there: the answer says what is ours
            if self.service(place).is_some_and(|service| self.settings.asks_settings(service.key)) {
                return;
            }
            let Some(kept) = self.service_mut(place).and_then(|service| service.kept.get_mut(path)) else { return };
            if *value == Value::Invalid {
                // removed; it comes back with the next change
                (kept.exists, kept.unusable) = (false, false);
            } else if kept.busy {
                kept.seen = Some(value.clone());
            } else if kept.exists {
                kept.newer = false;
                self.adopt(now, place, path, value.clone());
            }
        }
    }

    /// Finds the service that a settings path belongs to: of a device that is online, else of one that is offline and whose services still
    /// hold values. It uses these values when it registers again before they are dropped.
    fn place_of_slug(&self, slug: &str) -> Option<Place> {
        let find = |online: bool| {
            self.devices.iter().enumerate().filter(move |(_, device)| device.online == online).find_map(|(index, device)| {
                let service =
                    device.services.iter().position(|service| *service.slug == *slug && (online || service.exported.is_some()))?;
                Some((index, service))
            })
        };
        find(true).or_else(|| find(false))
    }

    /// localsettings has come, or gone.
    pub(super) fn take_settings_owner(&mut self, now: Time, new: &str) {
        if self.settings.owner() == Some(new) {
            return;
        }
        self.settings.owner = Some(new).filter(|new| !new.is_empty()).map(Box::from);
        if new.is_empty() {
            return self
                .caused(now, Level::Warn, Kind::SettingsLeft, || "localsettings has left the bus: registrations wait for it".into());
        }
        let admitted = self.returns.admit(now);
        self.returns_often = admitted.is_none();
        self.note_setting(now, Level::Info, true, || format!("localsettings is on the bus{}", admitted.unwrap_or_default()));
        self.numbers_changed();
        for index in 0..self.devices.len() {
            let count = self.devices.get(index).map_or(0, |device| device.services.len());
            for place in (0..count).map(|service| (index, service)) {
                let Some(service) = self.service_mut(place) else { continue };
                // what was on its way to the one before is not known to have been written
                for kept in service.kept.values_mut() {
                    *kept = Kept { exists: kept.exists, newer: kept.newer, returned: kept.exists, stored: kept.stored, ..Kept::default() };
                }
                let key = service.key;
                match service.state {
                    State::Asking => service.state = State::Waiting,
                    state if service.has_left() || matches!(state, State::Opening | State::Up) => {
                        self.add_settings(now, place, Purpose::Add { key, again: false });
                    }
                    _ => {}
                }
            }
            self.drive_all(now, index);
        }
    }

    /// Every setting of a service.
    pub(super) fn setting_paths(&self, place: Place) -> Vec<Box<str>> {
        let Some(service) = self.service(place) else { return Vec::new() };
        let kind = self.catalogue.service_type(&service.kind);
        let typed = kind.iter().flat_map(|kind| &kind.items).filter(|(_, spec)| spec.kept).map(|(path, _)| path.clone());
        let grown = kind.iter().flat_map(|kind| service.grown.iter().flat_map(|path| kind.family_of(path)));
        let grown = grown.filter(|(_, spec)| spec.kept).map(|(path, _)| path);
        let mut paths: Vec<Box<str>> =
            typed.chain(grown).chain(service.written.iter().cloned()).map(|path| item_path(&service.slug, &path).into()).collect();
        paths.sort();
        paths.dedup();
        paths
    }

    pub(super) fn clear_settings(&mut self, now: Time, paths: Vec<Box<str>>) {
        if !paths.is_empty() && self.settings.is_there() {
            self.settings.ask(now, "/", Method::RemoveSettings(paths), Purpose::Clear);
        }
    }

    /// Once a device that is to be forgotten has left the bus, its settings go.
    pub(super) fn finish_forgetting(&mut self, now: Time, index: usize) {
        let Some(device) = self.devices.get(index) else { return };
        let name: Box<str> = device.id.name().into();
        if !self.forgetting.contains_key(&name) || device.online || !device.is_off() {
            return;
        }
        let mut paths = Vec::new();
        // the same name on the bus can be another's by now
        let is_taken = |slug: &str| {
            let others = self.devices.iter().filter(|other| other.online).flat_map(|other| &other.services);
            others.into_iter().any(|service| service.wanted && *service.slug == *slug)
        };
        let own = device.services.iter().enumerate().filter(|(_, service)| !is_taken(&service.slug));
        for place in own.map(|(service, _)| (index, service)) {
            paths.extend(self.service(place).map(|service| Box::from(instance_path(&service.slug))));
            paths.extend(self.setting_paths(place));
        }
        self.settings.ask(now, "/", Method::RemoveSettings(paths), Purpose::Forget(name));
    }

    fn take_forgotten(&mut self, name: &str, reply: Option<Reply>) {
        let Some(token) = self.forgetting.remove(name) else { return };
        let answer = match (self.find(name), reply) {
            (Some(index), Some(Reply::Value(codes))) => {
                let Some(device) = self.devices.get(index).filter(|device| !device.online) else {
                    return self.answers.push_back((token, Err("it has registered again meanwhile; nothing of it is forgotten".into())));
                };
                let removed =
                    if let Value::Array(codes) = &codes { codes.iter().filter(|code| **code == Value::Int(0)).count() } else { 0 };
                let instances: Vec<String> =
                    device.services.iter().filter_map(|service| Some(format!("{}/{}", service.kind, service.instance?))).collect();
                let text = format!("{} is forgotten: freed {} and {removed} settings", device.id, instances.join(", "));
                self.devices.remove(index);
                self.unsaved = true;
                Ok(text)
            }
            (_, reply) => {
                let why = reply.map_or_else(|| "no answer".to_owned(), |reply| reply.reason());
                Err(format!("localsettings does not free the settings: {}", escape(&why)))
            }
        };
        self.answers.push_back((token, answer));
    }
}

/// Whether a path of an answer is that of an item of this service.
fn is_item(path: &str, slug: &str) -> bool {
    let below = path.strip_prefix("/Settings/MqttDevices/").and_then(|rest| rest.strip_prefix(slug));
    is_item_path(path) && below.is_some_and(|rest| rest.starts_with('/'))
}
