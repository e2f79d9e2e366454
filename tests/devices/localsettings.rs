//! A model of localsettings: what is stored, and the numbers of classes, each given once.

use std::collections::{BTreeMap, BTreeSet};

use venus_mqtt::bridge::value::Value;
use venus_mqtt::bridge::{Method, Reply, Setting};

pub const NAME: &str = "com.victronenergy.settings";
const WRONG_TYPE: i64 = -5;
const OUTSIDE: i64 = -7;

#[derive(Clone, Default)]
pub struct LocalSettings {
    pub stored: BTreeMap<String, Stored>,
    /// What has changed, for its signals.
    pub changed: Vec<(String, Value)>,
}

#[derive(Clone)]
pub struct Stored {
    pub value: Value,
    min: Value,
    max: Value,
}

impl LocalSettings {
    /// The answer to a call; `None` to one that is not for it.
    pub fn answer(&mut self, path: &str, method: &Method) -> Option<Reply> {
        Some(match method {
            Method::AddSettings(settings) => Reply::Value(Value::Array(settings.iter().map(|setting| self.add(setting)).collect())),
            Method::RemoveSettings(paths) => Reply::Value(Value::Array(paths.iter().map(|path| self.remove(path)).collect())),
            Method::SetValue(value) if self.stored.contains_key(path) => Reply::Code(self.set(path, value.clone())),
            Method::GetValue if self.stored.contains_key(path) => Reply::Value(self.stored[path].value.clone()),
            Method::GetValue | Method::SetValue(_) => {
                Reply::Error { name: "org.freedesktop.DBus.Error.UnknownObject".into(), text: format!("no {path}") }
            }
            _ => return None,
        })
    }

    /// 0, or -1 for what cannot be.
    pub fn set(&mut self, path: &str, value: Value) -> i64 {
        let value = if is_number(path) { self.allocate(path, &value) } else { Some(value) };
        let (Some(value), Some(stored)) = (value, self.stored.get_mut(path)) else { return -1 };
        if kind(&value) != kind(&stored.value) || !within(&value, &stored.min, &stored.max) {
            return -1;
        }
        if value != stored.value {
            stored.value = value.clone();
            self.changed.push((path.to_owned(), value));
        }
        0
    }

    /// It has been there all the time.
    #[allow(dead_code)]
    pub fn put(&mut self, path: &str, value: Value) {
        self.stored.insert(path.to_owned(), Stored { value, min: Value::Invalid, max: Value::Invalid });
    }

    fn add(&mut self, setting: &Setting) -> Value {
        let Setting { path, default, min, max } = setting;
        let path = String::from(&**path);
        let error = match self.stored.get_mut(&path) {
            Some(stored) if kind(&stored.value) != kind(default) => WRONG_TYPE,
            Some(stored) => {
                (stored.min, stored.max) = (min.clone(), max.clone());
                0
            }
            None if !within(default, min, max) => OUTSIDE,
            None => {
                let value = if is_number(&path) { self.allocate(&path, default).unwrap() } else { default.clone() };
                self.changed.push((path.clone(), value.clone()));
                self.stored.insert(path.clone(), Stored { value, min: min.clone(), max: max.clone() });
                0
            }
        };
        let mut fields = vec![("path".into(), Value::Str(path.as_str().into())), ("error".into(), Value::Int(error))];
        if error == 0 {
            fields.push(("value".into(), self.stored[&path].value.clone()));
        }
        Value::Dict(fields.into())
    }

    fn remove(&mut self, path: &str) -> Value {
        let removed = self.stored.remove(path).is_some();
        if removed {
            self.changed.push((path.to_owned(), Value::Invalid));
        }
        Value::Int(if removed { 0 } else { -1 })
    }

    /// `<class>:<number>`, or the next number above that nobody has.
    fn allocate(&self, path: &str, wanted: &Value) -> Option<Value> {
        let Value::Str(wanted) = wanted else { return None };
        let (class, number) = wanted.split_once(':')?;
        let number: u32 = number.parse().ok()?;
        let others = self.stored.iter().filter(|(other, _)| is_number(other) && *other != path);
        let taken: BTreeSet<u32> = others.filter_map(|(_, stored)| number_of(&stored.value, class)).collect();
        let free = (number..).find(|number| !taken.contains(number))?;
        Some(Value::Str(format!("{class}:{free}").into()))
    }
}

fn number_of(value: &Value, class: &str) -> Option<u32> {
    let Value::Str(text) = value else { return None };
    text.strip_prefix(class)?.strip_prefix(':')?.parse().ok()
}

fn is_number(path: &str) -> bool {
    path.ends_with("/ClassAndVrmInstance")
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Int(_) => b'i',
        Value::Double(_) => b'd',
        Value::Str(_) => b's',
        _ => b'?',
    }
}

fn within(value: &Value, min: &Value, max: &Value) -> bool {
    let number = |value: &Value| match value {
        Value::Int(n) => Some(*n as f64),
        Value::Double(d) => Some(*d),
        _ => None,
    };
    let Some(value) = number(value) else { return true };
    number(min).is_none_or(|min| value >= min) && number(max).is_none_or(|max| value <= max)
}
