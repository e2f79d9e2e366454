//! Items that are settings: their values are persisted by localsettings, and follow changes from either side.
//!
//! What localsettings holds counts, except what was written while it was away, and what it has lost: a default where another value is
//! known. What it holds in another type is converted, if nothing is lost by that; else it is left as it is, and the log says so.

use log::Level;

use super::Devices;
use super::catalogue::{ItemSpec, Kind as ItemKind};
use super::dialogue::Purpose;
use super::model::{Kept, Key, Place};
use super::steps::Changed;
use crate::bridge::notes::Kind;
use crate::bridge::value::Value;
use crate::bridge::{Method, Reply, Setting, Time};
use crate::text::{escape, escape_to};

/// Longest value in a log line, in characters.
const SHOWN_MAX: usize = 80;

/// What `SetValue` of a setting that does not exist gives.
const NOT_THERE: [&str; 2] = ["org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.DBus.Error.UnknownMethod"];

/// The type of an existing setting differs (`AddSettings`).
pub(super) const OTHER_TYPE: i64 = -5;

impl Devices {
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

    /// A setting has another type than its item, as those of another program or of an earlier version may: this is what it holds. After
    /// the last of them, those that can be converted are replaced, and the others left alone.
    pub(super) fn take_old(&mut self, now: Time, key: Key, path: &str, reply: Option<Reply>) {
        let Some(place) = self.place_of(key) else { return };
        let Some(service) = self.service(place) else { return };
        let spec = service.exported.as_ref().and_then(|exported| exported.spec(path));
        let (full, name) = (item_path(&service.slug, path), service.bus_name());
        let (old, converted) = match (reply, spec) {
            (Some(Reply::Value(old)), Some(spec)) => (old.clone(), convert(&spec, &old)),
            (Some(other), _) if !other.is_from_nobody() => (Value::Invalid, Err(other.reason())),
            // asked for again: it is still there
            _ => return self.wait_again(now, place),
        };
        let held = shown(&old);
        let is_last = !self.settings.asks_old(key);
        let Some(service) = self.service_mut(place) else { return };
        let kept = service.kept.entry(path.into()).or_default();
        match converted {
            Ok(value) => {
                kept.replaced = stored_type(&old) != stored_type(&value);
                // an item that takes numbers of both types comes here at each registration, and nothing is converted
                let level = if kept.replaced { Level::Info } else { Level::Debug };
                self.note_setting(now, level, true, || format!("{full} holds {held}: {name} takes it over as {}", shown(&value)));
                if let Some(kept) = self.service_mut(place).and_then(|service| service.kept.get_mut(path)) {
                    kept.converted = Some(value);
                }
            }
            Err(why) => {
                kept.unusable = true;
                self.caused(now, Level::Warn, Kind::Settings, || {
                    format!(
                        "{full} holds {held}, which {path} of {name} cannot have: {}; it is left as it is, and values of {path} are not \
                         persisted until the setting is removed or corrected in localsettings",
                        escape(&why)
                    )
                });
            }
        }
        if is_last {
            self.replace_old(now, place, key);
        }
    }

    /// The settings of another type are removed and, in the next call, added with the value that they held.
    fn replace_old(&mut self, now: Time, place: Place, key: Key) {
        let Some(service) = self.service(place) else { return };
        let replaced = service.kept.iter().filter(|(_, kept)| kept.replaced && kept.converted.is_some());
        let replaced: Vec<Box<str>> = replaced.map(|(path, _)| item_path(&service.slug, path).into()).collect();
        if !replaced.is_empty() {
            self.settings.ask(now, "/", Method::RemoveSettings(replaced), Purpose::Clear);
        }
        self.add_settings(now, place, Purpose::Add { key, again: true });
    }

    /// What `AddSettings` is given of the items of a service that are settings.
    pub(super) fn wanted_settings(&self, place: Place) -> Vec<Setting> {
        let Some(service) = self.service(place) else { return Vec::new() };
        let all = service.exported.iter().flat_map(|exported| exported.settings());
        let known = all.filter(|(path, spec)| spec.default != Value::Invalid || service.written.contains(path));
        known
            .filter_map(|(path, spec)| {
                let full = item_path(&service.slug, &path);
                match service.kept.get(&path) {
                    Some(kept) if kept.unusable => None,
                    // its default at first, so that it is never without the value; without the limits if they are narrower
                    Some(Kept { converted: Some(value), .. }) => Some(match spec.bring(value.clone()) {
                        Ok(_) => setting(full, value.clone(), &spec),
                        Err(_) => Setting { path: full.into(), default: value.clone(), min: Value::Invalid, max: Value::Invalid },
                    }),
                    _ => Some(setting(full, any_default(&spec), &spec)),
                }
            })
            .collect()
    }

    /// The values of settings, as localsettings has them: those of a service that is not on the bus yet are the service's.
    pub(super) fn take_kept(&mut self, now: Time, place: Place, added: &Value) {
        let Some(service) = self.service(place) else { return };
        let (slug, name) = (service.slug.clone(), service.bus_name());
        let shown_already = service.is_shown() || service.has_left();
        let mut changed = Changed { told: true, ..Changed::default() };
        let mut behind = Vec::new();
        for (setting, error, value) in results(added) {
            let Some(path) = setting.strip_prefix("/Settings/MqttDevices/").and_then(|rest| rest.strip_prefix(&*slug)) else { continue };
            if error != 0 {
                self.not_kept(now, place, path, error);
                continue;
            }
            let Some(service) = self.service_mut(place) else { return };
            let kept = service.kept.entry(path.into()).or_default();
            (kept.exists, kept.stored) = (true, stored_type(value));
            kept.converted = None;
            // what is being written now is newer than this answer, and decides
            let busy = kept.busy;
            let newer = if busy { kept.newer } else { std::mem::take(&mut kept.newer) };
            let returned = std::mem::take(&mut kept.returned);
            let Some(exported) = &mut service.exported else { return };
            let Some(spec) = exported.spec(path) else { continue };
            let ours = exported.value(path).cloned().unwrap_or_default();
            match restore(&spec, value.clone()) {
                Ok(stored) if stored == ours || (newer && busy) => {}
                // written while localsettings was away, or lost by it
                Ok(stored) if newer || (returned && ours != Value::Invalid && stored == any_default(&spec)) => {
                    behind.push(Box::from(path));
                    self.note_setting(now, Level::Info, true, || {
                        let why = if newer { "was written since" } else { "is not the default" };
                        format!("{setting} holds {}: {} of {name}, which {why}, is written back", shown(value), shown(&ours))
                    });
                }
                Ok(stored) => {
                    let text = format!("{setting} holds {}: {name} takes it over, and had {}", shown(&stored), shown(&ours));
                    let outside = spec.bring(value.clone()).err();
                    exported.set(path, stored);
                    changed.paths.push(path.into());
                    match outside {
                        Some(why) => self.note_setting(now, Level::Warn, shown_already, || {
                            format!("{text}; it cannot be written like that again: {}", escape(&why))
                        }),
                        // at a registration it is what it should be
                        None if shown_already => self.note_setting(now, Level::Info, true, || text),
                        None => self.notes.add(Level::Debug, || text),
                    }
                }
                Err(why) => self.note_setting(now, Level::Warn, shown_already, || {
                    format!(
                        "{setting} holds {}, which {path} of {name} cannot have: {}; it stays there until the item is written",
                        shown(value),
                        escape(&why)
                    )
                }),
            }
        }
        for path in behind {
            self.keep(now, place, &path);
        }
        if shown_already
            && !changed.paths.is_empty()
            && let Some(device) = self.devices.get_mut(place.0)
        {
            device.owed |= device.online;
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
        if kept.unusable {
            return;
        }
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
        let is_held = kept.stored.is_none_or(|stored| fits(stored, &value));
        let exists = kept.exists;
        kept.exists &= is_held;
        self.unsaved |= is_new;
        if exists && is_held {
            return self.settings.ask(now, &full, Method::SetValue(value), Purpose::Keep(key, path.into()));
        }
        if exists {
            // an item that takes numbers and texts: a setting has one type
            self.settings.ask(now, "/", Method::RemoveSettings(vec![full.as_str().into()]), Purpose::Clear);
        }
        let is_default = stored_type(&spec.default) == stored_type(&value);
        let default = if is_default { spec.default.clone() } else { value };
        let settings = vec![setting(full, default, &spec)];
        self.settings.ask(now, "/", Method::AddSettings(settings), Purpose::Create(key, path.into()));
    }

    pub(super) fn take_created(&mut self, now: Time, key: Key, path: &str, reply: Option<Reply>) {
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
            (kept.exists, kept.stored) = (code == 0, stored_type(stored));
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

    pub(super) fn take_stored(&mut self, now: Time, key: Key, path: &str, reply: Option<Reply>) {
        let Some(place) = self.place_of(key) else { return };
        let Some(service) = self.service_mut(place) else { return };
        let Some(kept) = service.kept.get_mut(path) else { return };
        kept.busy = false;
        let seen = kept.seen.take();
        if std::mem::take(&mut kept.again) {
            return self.keep(now, place, path);
        }
        match reply {
            // it is written when localsettings is back
            Some(reply) if reply.is_from_nobody() => return,
            // somebody has removed it
            Some(Reply::Error { name, .. }) if NOT_THERE.contains(&&*name) => {
                kept.exists = false;
                return self.keep(now, place, path);
            }
            Some(Reply::Code(code)) => {
                kept.newer = false;
                if code != 0 {
                    self.not_kept(now, place, path, code);
                }
            }
            Some(reply) => {
                // what others have set meanwhile is newer
                kept.newer = seen.is_none();
                self.not_stored(now, place, &reply);
            }
            None => return self.keep(now, place, path),
        }
        if let Some(seen) = seen {
            self.adopt(now, place, path, seen);
        }
    }

    /// localsettings answers: what it was not given before is written now.
    pub(super) fn keep_failed(&mut self, now: Time) {
        if !std::mem::take(&mut self.unkept) {
            return;
        }
        let mut failed = Vec::new();
        for place in self.places() {
            let Some(service) = self.service(place).filter(|service| !self.settings.asks_settings(service.key)) else { continue };
            let paths = service.kept.iter().filter(|(_, kept)| kept.newer && !kept.busy);
            failed.extend(paths.map(|(path, _)| (place, path.clone())));
        }
        for (place, path) in failed {
            self.keep(now, place, &path);
        }
    }

    fn not_kept(&mut self, now: Time, place: Place, path: &str, code: i64) {
        let Some(service) = self.service(place) else { return };
        let (name, full) = (service.bus_name(), item_path(&service.slug, path));
        self.caused(now, Level::Warn, Kind::Settings, || {
            let why = if code == OTHER_TYPE { "the setting has another type; remove it in localsettings" } else { "its own limits differ" };
            format!(
                "localsettings refuses {} for {} of {name} (code {code}, {why}): the value is not persisted",
                escape(&full),
                escape(path)
            )
        });
    }

    /// localsettings could not be asked, gives an error, or its answer cannot be read: what was to be written is written once it answers
    /// again. When it has left, that is known already.
    pub(super) fn not_stored(&mut self, now: Time, place: Place, reply: &Reply) {
        if reply.is_from_nobody() {
            return;
        }
        self.unkept = true;
        let name = self.service(place).map(|service| service.bus_name()).unwrap_or_default();
        self.caused(now, Level::Warn, Kind::Settings, || format!("a setting of {name} is not persisted: {}", escape(&reply.reason())));
    }

    pub(super) fn adopt(&mut self, now: Time, place: Place, path: &str, value: Value) {
        let Some(exported) = self.service(place).and_then(|service| service.exported.as_ref()) else { return };
        let Some(spec) = exported.spec(path) else { return };
        match spec.bring(value) {
            Ok(value) => self.set_item(place, path, value, true),
            Err(why) => self.caused(now, Level::Warn, Kind::Settings, || {
                format!("the setting of {} was changed to what the item cannot have: {}", escape(path), escape(&why))
            }),
        }
    }
}

/// What a setting holds, as the item's value, whichever limits the item has now.
fn restore(spec: &ItemSpec, value: Value) -> Result<Value, String> {
    let without_limits = ItemSpec { min: Value::Invalid, max: Value::Invalid, ..spec.clone() };
    without_limits.bring(value)
}

/// What a setting of another type holds, as the item's value, if nothing is lost.
fn convert(spec: &ItemSpec, old: &Value) -> Result<Value, String> {
    let exact = |new: &Value| match (old, new) {
        (Value::Int(old), Value::Double(new)) => *new as i64 == *old,
        _ => *new != Value::Invalid,
    };
    restore(spec, old.clone()).and_then(|new| if exact(&new) { Ok(new) } else { Err("it would be another value".into()) })
}

/// Which of the three types a setting has that holds this value.
fn stored_type(value: &Value) -> Option<char> {
    match value {
        Value::Int(_) | Value::UInt(_) => Some('i'),
        Value::Double(_) => Some('f'),
        Value::Str(_) => Some('s'),
        _ => None,
    }
}

/// Whether a setting of this type can hold the value.
fn fits(stored: char, value: &Value) -> bool {
    match value {
        Value::Double(double) => stored == 'f' || (stored == 'i' && double.fract() == 0.0),
        _ => stored_type(value) == Some(stored) || (stored == 'f' && matches!(value, Value::Int(_))),
    }
}

/// A value in a log line.
pub(super) fn shown(value: &Value) -> String {
    let mut json = Vec::new();
    value.write_json(&mut json);
    escape_to(&String::from_utf8_lossy(&json), SHOWN_MAX).to_string()
}

/// Where the value of an item is.
pub(super) fn item_path(slug: &str, path: &str) -> String {
    format!("/Settings/MqttDevices/{slug}{path}")
}

/// A value of its kind, for a setting that is there already.
fn any_default(spec: &ItemSpec) -> Value {
    match (spec.kind, &spec.default, &spec.min) {
        (_, default, _) if *default != Value::Invalid => default.clone(),
        (_, _, min) if *min != Value::Invalid => min.clone(),
        (ItemKind::Int | ItemKind::Number, ..) => Value::Int(0),
        (ItemKind::Double, ..) => Value::Double(0.0),
        _ => Value::Str(Box::default()),
    }
}

fn setting(path: String, default: Value, spec: &ItemSpec) -> Setting {
    Setting { path: path.into(), default, min: spec.min.clone(), max: spec.max.clone() }
}

/// The answer to AddSettings: path, error and value of each.
pub(super) fn results(added: &Value) -> impl Iterator<Item = (&str, i64, &Value)> {
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
