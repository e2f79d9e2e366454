//! A service as the bus sees it: its items, and what it answers. It answers like the services of Victron's own library: single
//! items, inner paths as dictionaries with relative keys, and calls that name no interface.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::catalogue::{ItemSpec, Kind, ServiceType};
use crate::bridge::limits;
use crate::bridge::value::Value;

/// A call to a service.
#[derive(Clone, PartialEq, Debug)]
pub struct Call<'a> {
    pub path: &'a str,
    /// Absent in many calls.
    pub interface: Option<&'a str>,
    pub member: &'a str,
    /// The first argument, if it could be read.
    pub argument: Option<Value>,
    /// It was sent by this process: a W, a read, a scan.
    pub is_ours: bool,
}

/// What goes back.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    Value(Value),
    Text(String),
    Items(Vec<ItemAnswer>),
    /// Of SetValue: 0 is yes.
    Code(i32),
    Nothing,
    MachineId,
    Error {
        name: &'static str,
        text: String,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub struct ItemAnswer {
    pub path: Box<str>,
    pub value: Value,
    pub text: String,
    /// [`Value::Invalid`] where there is none.
    pub min: Value,
    pub max: Value,
    pub default: Value,
}

impl ItemAnswer {
    /// What a service says of its items before it leaves.
    pub fn invalid(path: Box<str>) -> Self {
        Self { path, value: Value::Invalid, text: "---".into(), min: Value::Invalid, max: Value::Invalid, default: Value::Invalid }
    }
}

/// SetValue took it.
pub const ACCEPTED: i32 = 0;
/// The item cannot be written, or the value is of the wrong type (the library's own code for it).
pub const WRONG: i32 = 1;
/// The value is refused, as by the library's programs.
pub const REFUSED: i32 = 2;

const ITEM: &str = "com.victronenergy.BusItem";
const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
const PEER: &str = "org.freedesktop.DBus.Peer";

/// Numbers that say what a device is: many send them once, when they start.
const DESCRIBING: [&str; 13] = [
    "BatteriesParallel",
    "BatteriesSeries",
    "Capacity",
    "DeviceType",
    "InstalledCapacity",
    "IsGenericEnergyMeter",
    "NrOfBatteries",
    "NrOfCellsPerBattery",
    "NrOfPhases",
    "NrOfTrackers",
    "NumberOfAcInputs",
    "NumberOfPhases",
    "ProductId",
];

/// The items of a service.
#[derive(Debug)]
pub struct Exported {
    /// What we say of it ourselves; nobody writes these.
    fixed: Vec<(&'static str, Value)>,
    kind: Arc<ServiceType>,
    /// Of the items of its type, in their order.
    values: Vec<Value>,
    /// Items that came into being when they were written.
    grown: Vec<(Box<str>, Arc<ItemSpec>, Value)>,
    /// Which of `values`, and then of `grown`, somebody has written: the others are defaults.
    written: [Vec<bool>; 2],
}

/// One item, wherever it comes from.
#[derive(Clone, Copy)]
struct Item<'a> {
    path: &'a str,
    spec: Option<&'a ItemSpec>,
    value: &'a Value,
}

impl Exported {
    pub fn new(kind: Arc<ServiceType>, fixed: Vec<(&'static str, Value)>) -> Self {
        let values: Vec<_> = kind.items.iter().map(|(_, spec)| spec.default.clone()).collect();
        let written = [vec![false; values.len()], Vec::new()];
        Self { fixed, kind, values, grown: Vec::new(), written }
    }

    /// Whether the service has room for this value of an item: numbers always have.
    pub fn has_room(&self, path: &str, value: &Value) -> bool {
        self.has_room_beside(&[], path, value)
    }

    /// The same with values that are to be set too, in whichever order.
    pub fn has_room_beside(&self, pending: &[(Box<str>, Value)], path: &str, value: &Value) -> bool {
        let current = |path: &str| self.value(path).map_or(0, Value::heap);
        value.heap() <= current(path) || {
            let all: usize = self.values.iter().chain(self.grown.iter().map(|(.., value)| value)).map(Value::heap).sum();
            let others = pending.iter().filter(|(known, _)| **known != *path);
            let more: usize = others.map(|(path, value)| value.heap().saturating_sub(current(path))).sum();
            (all + more + value.heap()).saturating_sub(current(path)) <= limits::DEVICE_SERVICE_BYTES
        }
    }

    /// Sets an item to a value of its own type; false when it is the same already, there is no such item, or no room for the value.
    pub fn set(&mut self, path: &str, value: Value) -> bool {
        if value.heap() > 0 && !self.has_room(path, &value) {
            return false;
        }
        let fixed = self.fixed.iter_mut().find(|(known, _)| *known == path).map(|(_, value)| value);
        let place = fixed.or_else(|| {
            let index = self.kind.items.iter().position(|(known, _)| **known == *path);
            let typed = index.and_then(|index| self.values.get_mut(index));
            typed.or_else(|| self.grown.iter_mut().find(|(known, ..)| **known == *path).map(|(.., value)| value))
        });
        match place {
            Some(place) if *place != value => {
                *place = value;
                true
            }
            _ => false,
        }
    }

    /// Adds the family of a path that is not there yet, and gives the paths that are new; `None` if there is no room for all of it.
    pub fn grow(&mut self, path: &str, max: usize) -> Option<Vec<Box<str>>> {
        let mut family = self.kind.family_of(path);
        family.retain(|(path, _)| !self.contains(path));
        if self.grown.len() + family.len() > max {
            return None;
        }
        let new = family.iter().map(|(path, _)| path.clone()).collect();
        self.written[1].resize(self.grown.len() + family.len(), false);
        self.grown.extend(family.into_iter().map(|(path, spec)| {
            let value = spec.default.clone();
            (path, spec, value)
        }));
        Some(new)
    }

    /// Whether there is room for the families of all these paths.
    pub fn can_grow<'a>(&self, paths: impl Iterator<Item = &'a str>, max: usize) -> bool {
        let missing = paths.filter(|path| !self.contains(path)).flat_map(|path| self.kind.family_of(path));
        let missing: BTreeSet<Box<str>> = missing.map(|(path, _)| path).filter(|path| !self.contains(path)).collect();
        self.grown.len() + missing.len() <= max
    }

    /// Notes that an item has been written: its value is no default.
    pub fn mark_written(&mut self, path: &str) {
        let [typed, grown] = &mut self.written;
        let written = match self.kind.items.iter().position(|(known, _)| **known == *path) {
            Some(index) => typed.get_mut(index),
            None => self.grown.iter().position(|(known, ..)| **known == *path).and_then(|index| grown.get_mut(index)),
        };
        if let Some(written) = written {
            *written = true;
        }
    }

    /// Items that have been written and have a value, without settings.
    pub fn written(&self) -> impl Iterator<Item = (&str, &ItemSpec, &Value)> {
        let typed = self.kind.items.iter().zip(&self.values).map(|((path, spec), value)| (&**path, &**spec, value));
        let grown = self.grown.iter().map(|(path, spec, value)| (&**path, &**spec, value));
        let all = typed.chain(grown).zip(self.written.iter().flatten());
        all.filter(|((_, spec, value), written)| **written && !spec.kept && **value != Value::Invalid).map(|(item, _)| item)
    }

    /// Makes what has been measured invalid, and gives the paths. Defaults, texts, settings and commands stay, and what describes the device.
    pub fn expire(&mut self) -> Vec<Box<str>> {
        let measured = self.written().filter(|(path, spec, _)| is_measured(path, spec));
        let paths: Vec<Box<str>> = measured.map(|(path, ..)| path.into()).collect();
        for path in &paths {
            self.set(path, Value::Invalid);
        }
        paths
    }

    pub fn value(&self, path: &str) -> Option<&Value> {
        self.item(path).map(|item| item.value)
    }

    /// What a signal says of an item; of a new one its limits too.
    pub fn change(&self, path: &str, new: bool) -> Option<ItemAnswer> {
        let item = self.item(path)?;
        Some(if new {
            item.answer()
        } else {
            ItemAnswer { value: item.value.clone(), text: item.text(), ..ItemAnswer::invalid(path.into()) }
        })
    }

    /// What is known of an item that can be written; `None` too for those we keep ourselves.
    pub fn spec(&self, path: &str) -> Option<Arc<ItemSpec>> {
        if self.fixed.iter().any(|(known, _)| *known == path) {
            return None;
        }
        let typed = self.kind.items.iter().find(|(known, _)| **known == *path).map(|(_, spec)| spec);
        typed.or_else(|| self.grown.iter().find(|(known, ..)| **known == *path).map(|(_, spec, _)| spec)).cloned()
    }

    /// The same, and of an item that comes into being when it is written.
    pub fn spec_to_be(&self, path: &str) -> Option<Arc<ItemSpec>> {
        if self.contains(path) {
            return self.spec(path);
        }
        self.kind.family_of(path).into_iter().find(|(known, _)| **known == *path).map(|(_, spec)| spec)
    }

    pub fn contains(&self, path: &str) -> bool {
        self.item(path).is_some()
    }

    /// Every item that is a setting, with what is known of it.
    pub fn settings(&self) -> Vec<(Box<str>, Arc<ItemSpec>)> {
        let typed = self.kind.items.iter().map(|(path, spec)| (path, spec));
        let all = typed.chain(self.grown.iter().map(|(path, spec, _)| (path, spec)));
        all.filter(|(path, spec)| spec.kept && self.spec(path).is_some()).map(|(path, spec)| (path.clone(), spec.clone())).collect()
    }

    /// What has a value.
    pub fn valid(&self) -> impl Iterator<Item = &str> {
        self.items().filter(|item| *item.value != Value::Invalid).map(|item| item.path)
    }

    /// The answer to any call but SetValue, which gives `None`.
    pub fn query(&self, call: &Call<'_>) -> Option<Answer> {
        let interface = call.interface.unwrap_or_default();
        let of = |wanted: &str| interface.is_empty() || interface == wanted;
        Some(match call.member {
            "SetValue" if of(ITEM) && (self.contains(call.path) || !self.is_inner(call.path)) => return None,
            "GetItems" if of(ITEM) && call.path == "/" => Answer::Items(self.items().map(Item::answer).collect()),
            "GetValue" if of(ITEM) => match self.item(call.path) {
                Some(item) => Answer::Value(item.value.clone()),
                None => self.tree(call.path, |item| item.value.clone()),
            },
            "GetText" if of(ITEM) => match self.item(call.path) {
                Some(item) => Answer::Text(item.text()),
                None => self.tree(call.path, |item| Value::Str(item.text().into())),
            },
            "GetMin" | "GetMax" | "GetDefault" | "GetDescription" if of(ITEM) => self.property(call),
            "Introspect" if of(INTROSPECTABLE) => self.introspect(call.path),
            "Ping" if of(PEER) => Answer::Nothing,
            "GetMachineId" if of(PEER) => Answer::MachineId,
            _ => unknown_method(call),
        })
    }

    fn property(&self, call: &Call<'_>) -> Answer {
        let Some(item) = self.item(call.path) else {
            return if self.is_inner(call.path) { unknown_method(call) } else { unknown_object(call.path) };
        };
        let of = |value: fn(&ItemSpec) -> &Value| Answer::Value(item.spec.map_or(Value::Invalid, |spec| value(spec).clone()));
        match call.member {
            "GetMin" => of(|spec| &spec.min),
            "GetMax" => of(|spec| &spec.max),
            "GetDefault" => of(|spec| &spec.default),
            _ => Answer::Text(item.spec.map_or_else(String::new, |spec| spec.description.to_string())),
        }
    }

    /// Everything below `path`, with relative keys.
    fn tree(&self, path: &str, value: impl Fn(Item<'_>) -> Value) -> Answer {
        let prefix = below(path);
        let entries: Box<[_]> = self.items().filter_map(|item| Some((item.path.strip_prefix(&*prefix)?.into(), value(item)))).collect();
        if entries.is_empty() { unknown_object(path) } else { Answer::Value(Value::Dict(entries)) }
    }

    fn introspect(&self, path: &str) -> Answer {
        let prefix = below(path);
        let children: BTreeSet<&str> =
            self.items().filter_map(|item| item.path.strip_prefix(&*prefix)?.split('/').next()).filter(|child| !child.is_empty()).collect();
        if children.is_empty() && !self.contains(path) {
            return unknown_object(path);
        }
        let mut xml = String::from(INTROSPECTION_HEAD);
        if path == "/" {
            xml.push_str(INTROSPECTION_ROOT);
        }
        xml.push_str(if self.contains(path) { INTROSPECTION_ITEM } else { INTROSPECTION_TREE });
        xml.push_str(" </interface>\n");
        for child in children {
            xml.push_str(&format!(" <node name=\"{child}\"/>\n"));
        }
        xml.push_str("</node>\n");
        Answer::Text(xml)
    }

    fn is_inner(&self, path: &str) -> bool {
        let prefix = below(path);
        self.items().any(|item| item.path.starts_with(&*prefix))
    }

    fn item(&self, path: &str) -> Option<Item<'_>> {
        self.items().find(|item| item.path == path)
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let fixed = self.fixed.iter().map(|(path, value)| Item { path, spec: None, value });
        // what we say ourselves stands, whatever a catalogue has there
        let ours = |path: &str| self.fixed.iter().any(|(known, _)| *known == path);
        let typed = self.kind.items.iter().zip(&self.values).filter(move |((path, _), _)| !ours(path));
        let typed = typed.map(|((path, spec), value)| Item { path, spec: Some(&**spec), value });
        fixed.chain(typed).chain(self.grown.iter().map(|(path, spec, value)| Item { path, spec: Some(&**spec), value }))
    }
}

impl Item<'_> {
    fn text(self) -> String {
        match (self.spec, self.value) {
            (Some(spec), value) => spec.text(value),
            (None, Value::Invalid) => "---".into(),
            (None, Value::Str(text)) => text.to_string(),
            (None, value) => {
                let mut text = Vec::new();
                value.write_json(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            }
        }
    }

    fn answer(self) -> ItemAnswer {
        let of = |value: fn(&ItemSpec) -> &Value| self.spec.map_or(Value::Invalid, |spec| value(spec).clone());
        ItemAnswer {
            path: self.path.into(),
            value: self.value.clone(),
            text: self.text(),
            min: of(|spec| &spec.min),
            max: of(|spec| &spec.max),
            default: of(|spec| &spec.default),
        }
    }
}

/// Whether an item holds what a device measures, which is nothing any more once it is old.
pub(super) fn is_measured(path: &str, spec: &ItemSpec) -> bool {
    let is_number = matches!(spec.kind, Kind::Int | Kind::Double | Kind::Doubles);
    let last = path.rsplit('/').next().unwrap_or_default();
    let describes = DESCRIBING.contains(&last) || last.ends_with("IsAdjustable") || path.contains("/Settings/");
    is_number && !spec.kept && !spec.command && !describes
}

fn below(path: &str) -> Cow<'_, str> {
    if path == "/" { "/".into() } else { format!("{path}/").into() }
}

fn unknown_object(path: &str) -> Answer {
    Answer::Error { name: "org.freedesktop.DBus.Error.UnknownObject", text: format!("there is no {}", crate::text::escape(path)) }
}

fn unknown_method(call: &Call<'_>) -> Answer {
    let interface = call.interface.map(|interface| format!("{interface}.")).unwrap_or_default();
    let method = format!("{interface}{}", call.member);
    let text = format!("{} has no method {}", crate::text::escape(call.path), crate::text::escape(&method));
    Answer::Error { name: "org.freedesktop.DBus.Error.UnknownMethod", text }
}

const INTROSPECTION_HEAD: &str = r#"<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg type="s" name="xml" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId"><arg type="s" name="id" direction="out"/></method>
 </interface>
 <interface name="com.victronenergy.BusItem">
"#;

const INTROSPECTION_ROOT: &str = r#"  <method name="GetItems"><arg type="a{sa{sv}}" name="items" direction="out"/></method>
  <signal name="ItemsChanged"><arg type="a{sa{sv}}" name="items"/></signal>
"#;

const INTROSPECTION_TREE: &str = r#"  <method name="GetValue"><arg type="v" name="values" direction="out"/></method>
  <method name="GetText"><arg type="v" name="texts" direction="out"/></method>
"#;

const INTROSPECTION_ITEM: &str = r#"  <method name="GetValue"><arg type="v" name="value" direction="out"/></method>
  <method name="GetText"><arg type="s" name="text" direction="out"/></method>
  <method name="SetValue"><arg type="v" name="value" direction="in"/><arg type="i" name="result" direction="out"/></method>
  <method name="GetMin"><arg type="v" name="min" direction="out"/></method>
  <method name="GetMax"><arg type="v" name="max" direction="out"/></method>
  <method name="GetDefault"><arg type="v" name="default" direction="out"/></method>
  <method name="GetDescription"><arg type="s" name="language" direction="in"/><arg type="i" name="length" direction="in"/><arg type="s" name="description" direction="out"/></method>
  <signal name="PropertiesChanged"><arg type="a{sv}" name="changes"/></signal>
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::catalogue::Catalogue;

    /// Texts of a service are bounded together, however many items come into being; numbers always have room.
    #[test]
    fn texts_of_a_service_are_bounded() {
        let kind = Catalogue::shipped().service_type("switch").unwrap().clone();
        let mut exported = Exported::new(kind, Vec::new());
        let text = Value::Str("x".repeat(1000).into());
        let path = |n: usize| format!("/SwitchableOutput/output_{n}/Settings/CustomName");
        let set = (0..60).filter(|n| exported.grow(&path(*n), limits::GROWN_ITEMS).is_some() && exported.set(&path(*n), text.clone()));
        let set = set.count();
        assert!((1..=limits::DEVICE_SERVICE_BYTES / 1000).contains(&set), "{set}");
        assert!(exported.set("/SwitchableOutput/output_0/State", Value::Int(1)));
        assert!(exported.set(&path(0), Value::Str("shorter".into())), "what takes no more than before has room");
    }
}
