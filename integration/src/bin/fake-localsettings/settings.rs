//! What is stored, and by which rules it changes. Knows no bus: every change is answered with what there is to say about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::value::{Kind, Value};

/// Why a setting is not taken, as `AddSettings` numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Refusal {
    Underscore = -2,
    UnsupportedType = -3,
    PathMissing = -4,
    OtherType = -5,
    BadDefault = -6,
    DefaultOutside = -7,
    IsGroup = -8,
    NotUnderSettings = -9,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Setting {
    pub value: Value,
    pub default: Value,
    /// both 0: none
    pub min: Value,
    pub max: Value,
    pub silent: bool,
}

impl Setting {
    pub fn limits(&self) -> Option<(&Value, &Value)> {
        let some = self.default.kind() != Kind::Text && !(self.min.number() == 0.0 && self.max.number() == 0.0);
        some.then_some((&self.min, &self.max))
    }

    fn takes(&self, value: &Value) -> bool {
        self.limits().is_none_or(|(min, max)| (min.number()..=max.number()).contains(&value.number()))
    }
}

/// What a change did to a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    None,
    /// another value
    Value,
    /// new, or with another default or limits
    Definition,
}

/// Everything there is, by full path.
#[derive(Default, Serialize, Deserialize)]
pub struct Settings(BTreeMap<String, Setting>);

impl Settings {
    pub fn get(&self, path: &str) -> Option<&Setting> {
        self.0.get(path)
    }

    /// Settings below a group, by what remains of their paths.
    pub fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a str, &'a Setting)> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        self.0.iter().filter_map(move |(path, setting)| Some((path.strip_prefix(&prefix)?, setting)))
    }

    /// What stands in the file.
    pub fn load(&mut self, path: String, setting: Setting) {
        self.0.insert(path, setting);
    }

    pub fn is_group(&self, path: &str) -> bool {
        path == "/" || path == "/Settings" || self.below(path).next().is_some()
    }

    /// Adds a setting, or brings the definition of one that exists up to date.
    pub fn add(&mut self, path: &str, asked: Setting) -> Result<Change, Refusal> {
        self.check_path(path)?;
        let kind = asked.default.kind();
        if let Some(old) = self.0.get(path)
            && old.default.kind() != kind
        {
            return Err(Refusal::OtherType);
        }
        let instance = is_instance(path).then(|| class_and_number(&asked.default).ok_or(Refusal::BadDefault)).transpose()?;
        if !asked.takes(&asked.default) {
            return Err(Refusal::DefaultOutside);
        }
        let redefined = |old: &Setting| (&old.default, &old.min, &old.max) != (&asked.default, &asked.min, &asked.max);
        let value = match (self.0.get(path), instance) {
            // a number that somebody has written into the file twice
            (Some(old), Some(_)) if redefined(old) => match class_and_number(&old.value) {
                Some((class, number)) => self.free(path, &class, number),
                None => old.value.clone(),
            },
            (Some(old), _) => old.value.clone(),
            (None, Some((class, number))) => self.free(path, &class, number),
            (None, None) => asked.default.clone(),
        };
        let now = Setting { value, ..asked };
        let old = self.0.insert(path.to_owned(), now.clone());
        Ok(match old {
            Some(old) if (&old.default, &old.min, &old.max) == (&now.default, &now.min, &now.max) => Change::None,
            _ => Change::Definition,
        })
    }

    /// `SetValue`; `None`: refused.
    pub fn set(&mut self, path: &str, value: Value) -> Option<Change> {
        let setting = self.0.get(path)?;
        if !setting.takes(&value) {
            return None;
        }
        let value = if is_instance(path) {
            let (class, number) = class_and_number(&value)?;
            self.free(path, &class, number)
        } else {
            value
        };
        let setting = self.0.get_mut(path)?;
        let same = setting.value == value;
        setting.value = value;
        Some(if same { Change::None } else { Change::Value })
    }

    pub fn remove(&mut self, path: &str) -> bool {
        self.0.remove(path).is_some()
    }

    fn check_path(&self, path: &str) -> Result<(), Refusal> {
        if path.is_empty() {
            return Err(Refusal::PathMissing);
        }
        let Some(rest) = path.strip_prefix("/Settings/") else { return Err(Refusal::NotUnderSettings) };
        let mut segments = rest.split('/');
        if segments.clone().any(|segment| segment.starts_with('_')) {
            return Err(Refusal::Underscore);
        }
        if !segments.all(|segment| !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')) {
            return Err(Refusal::NotUnderSettings);
        }
        let parents = path.match_indices('/').skip(2).map(|(at, _)| &path[..at]);
        if self.is_group(path) || parents.into_iter().any(|parent| self.0.contains_key(parent)) {
            return Err(Refusal::IsGroup);
        }
        Ok(())
    }

    /// `<class>:<n>`, or the next one above that no other setting has.
    fn free(&self, path: &str, class: &str, number: i64) -> Value {
        let taken = |text: &str| {
            self.0.iter().any(|(other, setting)| {
                other != path && is_instance(other) && matches!(&setting.value, Value::Text(value) if value == text)
            })
        };
        let text = (number..).map(|number| format!("{class}:{number}")).find(|text| !taken(text));
        Value::Text(text.unwrap_or_else(|| format!("{class}:{number}")))
    }
}

fn is_instance(path: &str) -> bool {
    path.starts_with("/Settings/Devices/") && path.ends_with("/ClassAndVrmInstance") && path.split('/').count() == 5
}

fn class_and_number(value: &Value) -> Option<(String, i64)> {
    let Value::Text(text) = value else { return None };
    let (class, number) = text.split_once(':')?;
    Some((class.to_owned(), number.parse().ok()?)).filter(|_| !class.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(default: &str) -> Setting {
        let default = Value::Text(default.into());
        Setting { value: default.clone(), default, min: Value::Int(0), max: Value::Int(0), silent: false }
    }

    fn int(default: i64, min: i64, max: i64) -> Setting {
        let [value, default, min, max] = [default, default, min, max].map(Value::Int);
        Setting { value, default, min, max, silent: false }
    }

    #[test]
    fn refusals() {
        let mut settings = Settings::default();
        settings.add("/Settings/A/B", int(5, 0, 10)).expect("taken");
        for (path, asked, wanted) in [
            ("/Settings/A/_B", int(0, 0, 0), Refusal::Underscore),
            ("", int(0, 0, 0), Refusal::PathMissing),
            ("/Settings/A/B", text("x"), Refusal::OtherType),
            ("/Settings/Devices/a/ClassAndVrmInstance", text("tank"), Refusal::BadDefault),
            ("/Settings/Devices/a/ClassAndVrmInstance", text(":1"), Refusal::BadDefault),
            ("/Settings/A/C", int(11, 0, 10), Refusal::DefaultOutside),
            ("/Settings/A", int(0, 0, 0), Refusal::IsGroup),
            ("/Settings/A/B/C", int(0, 0, 0), Refusal::IsGroup),
            ("/Else/A", int(0, 0, 0), Refusal::NotUnderSettings),
            ("/Settings/A//B", int(0, 0, 0), Refusal::NotUnderSettings),
            ("/Settings/A/b-c", int(0, 0, 0), Refusal::NotUnderSettings),
        ] {
            assert_eq!(settings.add(path, asked), Err(wanted), "{path}");
        }
    }

    #[test]
    fn a_number_belongs_to_one_device() {
        let mut settings = Settings::default();
        let path = |id: &str| format!("/Settings/Devices/{id}/ClassAndVrmInstance");
        let value = |settings: &Settings, id: &str| settings.get(&path(id)).map(|setting| setting.value.show()).unwrap_or_default();
        for id in ["a", "b", "c"] {
            settings.add(&path(id), text("tank:1")).expect("taken");
        }
        settings.add(&path("d"), text("temperature:1")).expect("taken");
        assert_eq!(["a", "b", "c", "d"].map(|id| value(&settings, id)), ["tank:1", "tank:2", "tank:3", "temperature:1"]);
        // kept, whatever is asked for later
        assert_eq!(settings.add(&path("b"), text("tank:1")), Ok(Change::None));
        assert_eq!(settings.add(&path("b"), text("tank:9")), Ok(Change::Definition));
        assert_eq!(value(&settings, "b"), "tank:2");
        // taken: the next one above, its own number included
        assert_eq!(settings.set(&path("a"), Value::Text("tank:2".into())), Some(Change::Value));
        assert_eq!(value(&settings, "a"), "tank:4");
        assert_eq!(settings.set(&path("a"), Value::Text("tank:2".into())), Some(Change::None));
        assert_eq!(settings.set(&path("a"), Value::Text("tank:x".into())), None);
        settings.remove(&path("b"));
        assert_eq!(settings.set(&path("a"), Value::Text("tank:2".into())), Some(Change::Value));
    }

    #[test]
    fn a_definition_is_brought_up_to_date() {
        let mut settings = Settings::default();
        assert_eq!(settings.add("/Settings/A", int(5, 0, 10)), Ok(Change::Definition));
        assert_eq!(settings.set("/Settings/A", Value::Int(7)), Some(Change::Value));
        assert_eq!(settings.set("/Settings/A", Value::Int(7)), Some(Change::None));
        assert_eq!(settings.set("/Settings/A", Value::Int(11)), None);
        assert_eq!(settings.add("/Settings/A", int(5, 0, 10)), Ok(Change::None));
        assert_eq!(settings.add("/Settings/A", int(5, 0, 20)), Ok(Change::Definition));
        assert_eq!(settings.set("/Settings/A", Value::Int(11)), Some(Change::Value));
        assert!(settings.remove("/Settings/A") && !settings.remove("/Settings/A"));
    }
}
