//! The dialogue with localsettings: where the number of a service, its name and whatever else the user chooses live, and survive.
//!
//! What localsettings answers counts: the number asked for may be another's. While it is away nothing is lost: registrations wait, and
//! what was chosen meanwhile is written when it comes back.

use log::Level;

use super::Devices;
use super::catalogue::{ItemSpec, Kind as ItemKind};
use super::dialogue::Purpose;
use super::model::{Kept, Key, Place, State};
use super::steps::Changed;
use crate::bridge::name::is_item_path;
use crate::bridge::notes::Kind;
use crate::bridge::value::Value;
use crate::bridge::{Method, Reply, Setting, Time};
use crate::text::escape;

/// Where the number of a service is.
fn instance_path(slug: &str) -> String {
    format!("/Settings/Devices/{slug}/ClassAndVrmInstance")
}

/// Where the value of an item is.
fn item_path(slug: &str, path: &str) -> String {
    format!("/Settings/MqttDevices/{slug}{path}")
}

/// The number in `<class>:<number>`, if it is of this class.
fn instance_of(value: &Value, class: &str) -> Option<i32> {
    let Value::Str(text) = value else { return None };
    let (found, number) = text.split_once(':')?;
    if found == class { number.trim().parse().ok().filter(|number| *number >= 0) } else { None }
}

/// A value of its kind, for a setting that is there already.
fn any_default(spec: &ItemSpec) -> Value {
    match (spec.kind, &spec.default, &spec.min) {
        (_, default, _) if *default != Value::Invalid => default.clone(),
        (_, _, min) if *min != Value::Invalid => min.clone(),
        (ItemKind::Int, ..) => Value::Int(0),
        (ItemKind::Double, ..) => Value::Double(0.0),
        _ => Value::Str(Box::default()),
    }
}

fn setting(path: String, default: Value, spec: &ItemSpec) -> Setting {
    Setting { path: path.into(), default, min: spec.min.clone(), max: spec.max.clone() }
}

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
            // a call of an earlier life is answered to nobody
            service.kept.values_mut().for_each(|kept| *kept = Kept { newer: kept.newer, ..Kept::default() });
        }
        self.add_settings(now, place, Purpose::Add { key, again: false });
    }

    fn add_settings(&mut self, now: Time, place: Place, purpose: Purpose) {
        let Some(service) = self.service(place) else { return };
        let number = Setting {
            path: instance_path(&service.slug).into(),
            default: Value::Str(format!("{}:1", service.kind).into()),
            min: Value::Invalid,
            max: Value::Invalid,
        };
        let kept = service.exported.iter().flat_map(|exported| exported.settings());
        let known = kept.filter(|(path, spec)| spec.default != Value::Invalid || service.written.contains(path));
        let settings = std::iter::once(number)
            .chain(known.map(|(path, spec)| setting(item_path(&service.slug, &path), any_default(&spec), &spec)))
            .collect();
        self.settings.ask(now, "/", Method::AddSettings(settings), purpose);
    }

    /// Items have come into being: what they keep is asked for.
    pub(super) fn ask_grown(&mut self, now: Time, place: Place, new: &[Box<str>]) {
        let Some(service) = self.service(place) else { return };
        let kept = service.exported.iter().flat_map(|exported| exported.settings());
        let kept = kept.filter(|(path, spec)| new.contains(path) && spec.default != Value::Invalid);
        let settings: Vec<_> = kept.map(|(path, spec)| setting(item_path(&service.slug, &path), spec.default.clone(), &spec)).collect();
        let key = service.key;
        if !settings.is_empty() && self.settings.is_there() {
            self.settings.ask(now, "/", Method::AddSettings(settings), Purpose::Grown(key));
        }
    }

    pub(super) fn take_settings_reply(&mut self, now: Time, purpose: Purpose, reply: Option<Reply>) {
        match purpose {
            Purpose::Owner => match reply {
                Some(Reply::Text(owner)) => self.take_settings_owner(now, &owner),
                Some(_) => {}
                None => self.settings.ask_owner(now),
            },
            Purpose::Add { key, again } => self.take_added(now, key, again, reply),
            Purpose::Old(key, path) => self.take_old(key, &path, reply),
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
        let (kind, slug, up) = (service.kind.clone(), service.slug.clone(), service.state == State::Up);
        let wrong: Vec<Box<str>> =
            results(&added).filter(|(path, error, _)| *error == -5 && is_item(path, &slug)).map(|(path, ..)| path.into()).collect();
        if !wrong.is_empty() && !again {
            // of another program's type: what it holds is brought to ours
            for full in &wrong {
                let path = full.strip_prefix("/Settings/MqttDevices/").and_then(|rest| rest.strip_prefix(&*slug)).unwrap_or_default();
                self.settings.ask(now, full, Method::GetValue, Purpose::Old(key, path.into()));
            }
            self.settings.ask(now, "/", Method::RemoveSettings(wrong), Purpose::Clear);
            return self.add_settings(now, place, Purpose::Add { key, again: true });
        }
        let number = instance_path(&slug);
        let found = results(&added).find(|(path, ..)| *path == number);
        let (error, value) = found.map_or((0, &Value::Invalid), |(_, error, value)| (error, value));
        let instance = instance_of(value, &kind);
        self.take_kept(now, place, &added);
        let known = self.service(place).and_then(|service| service.instance);
        match instance {
            _ if error != 0 => self.fail_asking(now, place, &format!("localsettings refuses {number} (error {error})")),
            Some(instance) if !up || known == Some(instance) => self.use_instance(now, place, instance),
            // it is of another class, or localsettings has lost it
            _ => {
                let wanted = if up { known.unwrap_or(1) } else { 1 };
                let claim = Value::Str(format!("{kind}:{wanted}").into());
                self.settings.ask(now, &number, Method::SetValue(claim), Purpose::Claim(key));
            }
        }
    }

    fn take_old(&mut self, key: Key, path: &str, reply: Option<Reply>) {
        let Some(service) = self.place_of(key).and_then(|place| self.service_mut(place)) else { return };
        let (Some(exported), Some(Reply::Value(value))) = (&mut service.exported, reply) else { return };
        if let Some(Ok(value)) = exported.spec(path).map(|spec| spec.bring(value))
            && value != Value::Invalid
        {
            exported.set(path, value);
            service.kept.entry(path.into()).or_default().newer = true;
        }
    }

    /// A service that is on the bus already stays there.
    fn fail_asking(&mut self, now: Time, place: Place, why: &str) {
        if self.service(place).is_some_and(|service| service.state == State::Asking) {
            self.fail(now, place, why);
            self.drive_all(now, place.0);
            self.finish_forgetting(now, place.0);
        } else {
            self.caused(now, Level::Warn, Kind::Settings, || why.to_owned());
        }
    }

    fn wait_again(&mut self, now: Time, place: Place) {
        let Some((key, state)) = self.service(place).map(|service| (service.key, service.state)) else { return };
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
            State::Opening | State::Up if asks => self.add_settings(now, place, Purpose::Add { key, again: false }),
            _ => {}
        }
    }

    fn take_instance(&mut self, now: Time, key: Key, reply: Option<Reply>) {
        let Some(place) = self.place_of(key) else { return };
        let Some(service) = self.service(place) else { return };
        match reply {
            Some(Reply::Value(value)) => match instance_of(&value, &service.kind) {
                Some(instance) => self.use_instance(now, place, instance),
                None => {
                    let path = instance_path(&service.slug);
                    self.fail_asking(now, place, &format!("localsettings does not give a number of its class at {path}"));
                }
            },
            Some(other) if !other.is_from_nobody() => {
                self.fail_asking(now, place, &format!("localsettings does not give the number of it: {}", escape(&other.reason())));
            }
            _ => self.wait_again(now, place),
        }
    }

    /// The number of a service is known: it can go on, or has to move.
    fn use_instance(&mut self, now: Time, place: Place, instance: i32) {
        let Some(device) = self.devices.get_mut(place.0) else { return };
        let online = device.online;
        let Some(service) = device.services.get_mut(place.1) else { return };
        let moved = service.instance.is_some_and(|known| known != instance);
        let state = service.state;
        service.instance = Some(instance);
        device.owed |= moved && online;
        self.unsaved |= moved;
        let wanted = self.service(place).is_some_and(|service| service.wanted && service.next_kind.is_none());
        match state {
            State::Asking if online && wanted => self.open(now, place),
            State::Asking => {
                if let Some(service) = self.service_mut(place) {
                    service.state = State::Off;
                }
                self.drive_all(now, place.0);
                self.finish_forgetting(now, place.0);
            }
            State::Opening | State::Up if moved => self.restart(now, place),
            _ => {}
        }
    }

    /// The values of settings: those of a setting that is new to us are the service's, later the service's are its.
    fn take_kept(&mut self, now: Time, place: Place, added: &Value) {
        let Some(service) = self.service(place) else { return };
        let slug = service.slug.clone();
        let mut changed = Changed { told: true, ..Changed::default() };
        let mut behind = Vec::new();
        for (setting, error, value) in results(added) {
            let Some(path) = setting.strip_prefix("/Settings/MqttDevices/").and_then(|rest| rest.strip_prefix(&*slug)) else { continue };
            if error != 0 {
                self.caused(now, Level::Warn, Kind::Settings, || {
                    format!("localsettings refuses {} (error {error}): the value is not kept", escape(setting))
                });
                continue;
            }
            let Some(service) = self.service_mut(place) else { return };
            let kept = service.kept.entry(path.into()).or_default();
            kept.exists = true;
            // what is being written now is newer than this answer, and decides
            let busy = kept.busy;
            let newer = if busy { kept.newer } else { std::mem::take(&mut kept.newer) };
            let Some(exported) = &mut service.exported else { return };
            let Some(spec) = exported.spec(path) else { continue };
            let ours = exported.value(path).cloned().unwrap_or_default();
            match spec.bring(value.clone()) {
                Ok(stored) if stored == ours => {}
                Ok(_) if newer && busy => {}
                // it was here before localsettings went away, or has been written since
                Ok(_) if newer => behind.push(Box::from(path)),
                Ok(stored) => {
                    exported.set(path, stored);
                    changed.paths.push(path.into());
                }
                Err(why) => self.caused(now, Level::Warn, Kind::Settings, || {
                    format!("{} holds what the item cannot have: {}", escape(setting), escape(&why))
                }),
            }
        }
        for path in behind {
            self.keep(now, place, &path);
        }
        self.emit(place, changed);
    }

    /// An item that is kept has changed.
    pub(super) fn keep(&mut self, now: Time, place: Place, path: &str) {
        let there = self.settings.is_there();
        let asked = self.service(place).is_some_and(|service| self.settings.asks_settings(service.key));
        let Some(service) = self.service_mut(place) else { return };
        let (key, slug) = (service.key, service.slug.clone());
        let Some(exported) = &service.exported else { return };
        let (Some(value), Some(spec)) = (exported.value(path).cloned(), exported.spec(path)) else { return };
        let kept = service.kept.entry(path.into()).or_default();
        kept.newer = true;
        if kept.busy {
            kept.again = true;
            return;
        }
        // it is asked for when localsettings is back
        let is_new = value != Value::Invalid && spec.default == Value::Invalid && service.written.insert(path.into());
        if !there {
            self.unsaved |= is_new;
            return;
        }
        let full = item_path(&slug, path);
        kept.seen = None;
        if value == Value::Invalid {
            // an answer that is on its way may still tell of it
            (kept.exists, kept.newer) = (false, asked);
            service.written.remove(path);
            self.unsaved = true;
            return self.settings.ask(now, "/", Method::RemoveSettings(vec![full.into()]), Purpose::Clear);
        }
        kept.busy = true;
        let exists = kept.exists;
        self.unsaved |= is_new;
        if exists {
            self.settings.ask(now, &full, Method::SetValue(value), Purpose::Keep(key, path.into()));
        } else {
            let default = if spec.default == Value::Invalid { value } else { spec.default.clone() };
            let settings = vec![setting(full, default, &spec)];
            self.settings.ask(now, "/", Method::AddSettings(settings), Purpose::Create(key, path.into()));
        }
    }

    fn take_created(&mut self, now: Time, key: Key, path: &str, reply: Option<Reply>) {
        let Some(place) = self.place_of(key) else { return };
        let Some(service) = self.service_mut(place) else { return };
        let ours = service.exported.as_ref().and_then(|exported| exported.value(path).cloned()).unwrap_or_default();
        let Some(kept) = service.kept.get_mut(path) else { return };
        (kept.busy, kept.again) = (false, false);
        let added = match reply {
            Some(Reply::Value(added)) => added,
            Some(reply) => return self.not_stored(now, place, &reply),
            None => return self.keep(now, place, path),
        };
        let mut error = 0;
        for (_, code, stored) in results(&added) {
            kept.exists = code == 0;
            kept.again = code == 0 && *stored != ours;
            kept.newer = false;
            error = code;
        }
        if std::mem::take(&mut kept.again) {
            self.keep(now, place, path);
        } else if error != 0 {
            self.not_kept(now, place, path, error);
        }
    }

    fn take_stored(&mut self, now: Time, key: Key, path: &str, reply: Option<Reply>) {
        let Some(place) = self.place_of(key) else { return };
        let Some(service) = self.service_mut(place) else { return };
        let Some(kept) = service.kept.get_mut(path) else { return };
        kept.busy = false;
        let seen = kept.seen.take();
        if std::mem::take(&mut kept.again) {
            return self.keep(now, place, path);
        }
        match reply {
            Some(Reply::Code(0)) => {
                kept.newer = false;
                if let Some(seen) = seen {
                    self.adopt(now, place, path, seen);
                }
            }
            Some(Reply::Code(code)) => {
                kept.newer = false;
                self.not_kept(now, place, path, code);
            }
            // it is written when localsettings is back
            Some(reply) if reply.is_from_nobody() => {}
            // somebody has removed it
            Some(Reply::Error { .. }) => kept.exists = false,
            Some(reply) => self.not_stored(now, place, &reply),
            None => self.keep(now, place, path),
        }
    }

    fn not_kept(&mut self, now: Time, place: Place, path: &str, code: i64) {
        let name = self.service(place).map(|service| service.bus_name()).unwrap_or_default();
        self.caused(now, Level::Warn, Kind::Settings, || {
            format!("localsettings refuses the value of {} of {name} (code {code}): it is not kept", escape(path))
        });
    }

    /// localsettings could not be asked, or its answer not be read. When it has left, that is known already.
    fn not_stored(&mut self, now: Time, place: Place, reply: &Reply) {
        if reply.is_from_nobody() {
            return;
        }
        let name = self.service(place).map(|service| service.bus_name()).unwrap_or_default();
        self.caused(now, Level::Warn, Kind::Settings, || format!("a setting of {name} is not persisted: {}", escape(&reply.reason())));
    }

    /// Somebody has changed a setting.
    pub fn setting_changed(&mut self, now: Time, path: &str, value: &Value) {
        if let Some(rest) = path.strip_prefix("/Settings/Devices/") {
            let Some((slug, "ClassAndVrmInstance")) = rest.split_once('/') else { return };
            let Some(place) = self.place_of_slug(slug) else { return };
            let Some(service) = self.service(place) else { return };
            let (kind, state) = (service.kind.clone(), service.state);
            let asked = self.settings.asks_number(service.key);
            match instance_of(value, &kind) {
                // the answer to our own question says what it is
                _ if asked || !matches!(state, State::Opening | State::Up) => {}
                Some(instance) => self.use_instance(now, place, instance),
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
                kept.exists = false;
            } else if kept.busy {
                kept.seen = Some(value.clone());
            } else if kept.exists {
                self.adopt(now, place, path, value.clone());
            }
        }
    }

    fn adopt(&mut self, now: Time, place: Place, path: &str, value: Value) {
        let Some(exported) = self.service(place).and_then(|service| service.exported.as_ref()) else { return };
        let Some(spec) = exported.spec(path) else { return };
        match spec.bring(value) {
            Ok(value) => self.set_item(place, path, value, true),
            Err(why) => self.caused(now, Level::Warn, Kind::Settings, || {
                format!("the setting of {} was changed to what the item cannot have: {}", escape(path), escape(&why))
            }),
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
            return self.notes.add(Level::Warn, || "localsettings has left the bus: registrations wait for it".into());
        }
        self.notes.add(Level::Info, || "localsettings is on the bus".into());
        for index in 0..self.devices.len() {
            let count = self.devices.get(index).map_or(0, |device| device.services.len());
            for place in (0..count).map(|service| (index, service)) {
                let Some(service) = self.service_mut(place) else { continue };
                // what the one before was told, or was on its way to it, is not known to have been written
                for kept in service.kept.values_mut() {
                    *kept = Kept { exists: kept.exists, newer: kept.newer || kept.exists, ..Kept::default() };
                }
                let key = service.key;
                match service.state {
                    State::Up | State::Opening => self.add_settings(now, place, Purpose::Add { key, again: false }),
                    State::Asking => service.state = State::Waiting,
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

/// The answer to AddSettings: path, error and value of each.
fn results(added: &Value) -> impl Iterator<Item = (&str, i64, &Value)> {
    const NONE: &Value = &Value::Invalid;
    let entries = if let Value::Array(entries) = added { &entries[..] } else { &[] };
    entries.iter().filter_map(|entry| {
        let Value::Dict(fields) = entry else { return None };
        let field = |name: &str| fields.iter().find(|(key, _)| **key == *name).map(|(_, value)| value);
        let Some(Value::Str(path)) = field("path") else { return None };
        let error = if let Some(Value::Int(error)) = field("error") { *error } else { 0 };
        Some((&**path, error, field("value").unwrap_or(NONE)))
    })
}

/// Whether a path of an answer is that of an item of this service.
fn is_item(path: &str, slug: &str) -> bool {
    let below = path.strip_prefix("/Settings/MqttDevices/").and_then(|rest| rest.strip_prefix(slug));
    is_item_path(path) && below.is_some_and(|rest| rest.starts_with('/'))
}
