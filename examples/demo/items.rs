//! The items of one simulated service: their values, texts and limits, and which of them changed.
//!
//! Promises: a value that is set again is no change; what a client writes is brought to the item's type or refused, with
//! velib's codes. Pure: no bus, no clock. [`house`](crate::house) sets values, [`service`](crate::service) shows them on the bus.

use std::collections::BTreeMap;

use indexmap::{IndexMap, IndexSet};

/// What `SetValue` answers, as velib does.
pub const ACCEPTED: i32 = 0;
/// The item is read-only, or the value has a type it cannot take.
pub const WRONG: i32 = 1;
/// The service does not want this value: it is outside the limits.
pub const REFUSED: i32 = 2;

/// Of items that were not there from the start.
const DEFINED_DECIMALS: usize = 3;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i32),
    Double(f64),
    Text(String),
    /// No value: an empty array on the bus, `null` in MQTT.
    Invalid,
}

/// One item; the builder-like methods below say what it is beyond its value.
#[derive(Clone, Debug)]
pub struct Item {
    pub value: Value,
    pub limits: Option<Limits>,
    pub default: Option<Value>,
    /// The value before it was rounded, so that small steps add up.
    exact: f64,
    unit: &'static str,
    decimals: usize,
    writable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub min: f64,
    pub max: f64,
}

impl Item {
    pub fn text(&self) -> String {
        match &self.value {
            Value::Int(value) => format!("{value}{}", self.unit),
            Value::Double(value) => format!("{value:.*}{}", self.decimals, self.unit),
            Value::Text(value) => value.clone(),
            Value::Invalid => "---".to_owned(),
        }
    }

    /// A number as this item carries it: an integer stays one, and so do the limits it is shown with.
    pub fn number(&self, number: f64) -> Value {
        match self.value {
            Value::Int(_) => Value::Int(number as i32),
            _ => Value::Double(number),
        }
    }

    /// Anyone may write it.
    pub fn writable(&mut self) -> &mut Self {
        self.writable = true;
        self
    }

    /// Anyone may write it, within limits that the service tells.
    pub fn limited(&mut self, min: f64, max: f64, default: Option<f64>) -> &mut Self {
        self.limits = Some(Limits { min, max });
        self.default = default.map(|default| self.number(default));
        self.writable()
    }

    fn take(&self, written: Value) -> Result<Value, i32> {
        if !self.writable {
            return Err(WRONG);
        }
        let value = match (&self.value, written) {
            (Value::Int(_), Value::Double(number)) if number.fract() == 0.0 && number.abs() < f64::from(i32::MAX) => {
                Value::Int(number as i32)
            }
            (Value::Double(_), Value::Int(number)) => Value::Double(f64::from(number)),
            (Value::Int(_), value @ Value::Int(_))
            | (Value::Double(_), value @ Value::Double(_))
            | (Value::Text(_), value @ Value::Text(_)) => value,
            _ => return Err(WRONG),
        };
        match (as_f64(&value), self.limits) {
            (Some(number), Some(limits)) if !limits.contain(number) => Err(REFUSED),
            _ => Ok(value),
        }
    }
}

impl Limits {
    pub fn contain(&self, number: f64) -> bool {
        (self.min..=self.max).contains(&number)
    }
}

/// How a service answers and signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Today's velib: `GetItems`; several changes at once in one `ItemsChanged`.
    Items,
    /// Older programs: no `GetItems`, and each change in a `PropertiesChanged` of its own.
    Older,
    /// localsettings: `GetItems`, but only `PropertiesChanged`.
    Settings,
}

#[derive(Debug)]
pub struct Items {
    pub name: &'static str,
    pub style: Style,
    items: IndexMap<Box<str>, Item>,
    changed: IndexSet<Box<str>>,
}

impl Items {
    /// The items that every service has, then its own by [`int`](Self::int), [`double`](Self::double) and [`text`](Self::text).
    pub fn new(name: &'static str, instance: Option<i32>, product: &str) -> Self {
        let mut items = Self { name, style: Style::Items, items: IndexMap::new(), changed: IndexSet::new() };
        items.text("/Mgmt/ProcessName", "venus-mqtt demo");
        items.text("/Mgmt/ProcessVersion", env!("CARGO_PKG_VERSION"));
        items.text("/Mgmt/Connection", "simulated");
        if let Some(instance) = instance {
            items.int("/DeviceInstance", "", instance);
        }
        items.text("/ProductName", product);
        items.int("/Connected", "", 1);
        items
    }

    pub fn int(&mut self, path: &'static str, unit: &'static str, value: i32) -> &mut Item {
        self.add(path, unit, 0, Value::Int(value))
    }

    pub fn double(&mut self, path: &'static str, unit: &'static str, decimals: usize, value: f64) -> &mut Item {
        self.add(path, unit, decimals, Value::Double(round(value, decimals)))
    }

    pub fn text(&mut self, path: impl Into<Box<str>>, value: &str) -> &mut Item {
        self.add(path, "", 0, Value::Text(value.to_owned()))
    }

    /// A new value from the simulation, rounded to what the item shows; NaN makes it invalid (for items that hold a double).
    pub fn set(&mut self, path: &str, number: f64) {
        let Some(item) = self.items.get_mut(path) else { return };
        item.exact = number;
        let value = match item.value {
            _ if number.is_nan() => Value::Invalid,
            Value::Int(_) => Value::Int(number.round() as i32),
            _ => Value::Double(round(number, item.decimals)),
        };
        if item.value != value {
            item.value = value;
            self.changed.insert(path.into());
        }
    }

    /// For counters.
    pub fn add_to(&mut self, path: &str, more: f64) {
        self.set(path, self.number(path) + more);
    }

    /// The number of an item, not rounded; 0 for what is not there or is no number.
    pub fn number(&self, path: &str) -> f64 {
        self.items.get(path).map_or(0.0, |item| item.exact)
    }

    pub fn get(&self, path: &str) -> Option<&Item> {
        self.items.get(path)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.items.iter().map(|(path, item)| (&**path, item))
    }

    /// The items below an inner path (`/` is the whole service), by their path relative to it, without a leading slash.
    pub fn below(&self, path: &str) -> BTreeMap<&str, &Item> {
        let prefix = path.trim_end_matches('/');
        self.iter().filter_map(|(path, item)| Some((path.strip_prefix(prefix)?.strip_prefix('/')?, item))).collect()
    }

    /// What `SetValue` does and answers.
    pub fn write(&mut self, path: &str, written: Value) -> i32 {
        let Some(item) = self.items.get_mut(path) else {
            return WRONG;
        };
        match item.take(written) {
            Ok(value) => {
                if item.value != value {
                    item.exact = as_f64(&value).unwrap_or(0.0);
                    item.value = value;
                    self.changed.insert(path.into());
                }
                ACCEPTED
            }
            Err(code) => code,
        }
    }

    /// A new item that comes, or one that is another from now on, while the service runs. Anyone may write it.
    pub fn define(&mut self, path: &str, value: Value, default: Value, limits: Option<Limits>) {
        let item = self.add(path, "", DEFINED_DECIMALS, value);
        item.default = Some(default);
        item.limits = limits;
        item.writable = true;
        self.changed.insert(path.into());
    }

    /// False: there is no such item.
    pub fn remove(&mut self, path: &str) -> bool {
        let removed = self.items.shift_remove(path).is_some();
        if removed {
            self.changed.insert(path.into());
        }
        removed
    }

    /// What changed since the last call, in the order it changed; what is not there any more was removed.
    pub fn take_changes(&mut self) -> Vec<Box<str>> {
        self.changed.drain(..).collect()
    }

    fn add(&mut self, path: impl Into<Box<str>>, unit: &'static str, decimals: usize, value: Value) -> &mut Item {
        let exact = as_f64(&value).unwrap_or(0.0);
        let item = Item { value, limits: None, default: None, exact, unit, decimals, writable: false };
        self.items.entry(path.into()).insert_entry(item).into_mut()
    }
}

pub fn as_f64(value: &Value) -> Option<f64> {
    match value {
        Value::Int(value) => Some(f64::from(*value)),
        Value::Double(value) => Some(*value),
        Value::Text(_) | Value::Invalid => None,
    }
}

fn round(value: f64, decimals: usize) -> f64 {
    let scale = 10_f64.powi(decimals as i32);
    // adding zero turns -0.0 into 0.0
    (value * scale).round() / scale + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charger() -> Items {
        let mut items = Items::new("com.victronenergy.evcharger.test", Some(40), "EV");
        items.int("/SetCurrent", "A", 10).limited(6.0, 32.0, None);
        items.double("/Ac/Power", "W", 0, 0.0);
        items.take_changes();
        items
    }

    #[test]
    fn writes_are_brought_to_the_type_or_refused() {
        let mut items = charger();
        for (path, written, code) in [
            ("/SetCurrent", Value::Int(16), ACCEPTED),
            ("/SetCurrent", Value::Double(20.0), ACCEPTED),
            ("/SetCurrent", Value::Double(20.5), WRONG),
            ("/SetCurrent", Value::Text("20".into()), WRONG),
            ("/SetCurrent", Value::Invalid, WRONG),
            ("/SetCurrent", Value::Int(33), REFUSED),
            ("/Ac/Power", Value::Double(1.0), WRONG),
            ("/Nothing", Value::Int(1), WRONG),
        ] {
            assert_eq!(items.write(path, written.clone()), code, "{path} {written:?}");
        }
        assert_eq!(items.number("/SetCurrent"), 20.0);
        assert_eq!(items.take_changes(), ["/SetCurrent".into()]);
    }

    #[test]
    fn the_same_value_is_no_change() {
        let mut items = charger();
        items.set("/Ac/Power", 0.3);
        assert_eq!(items.write("/SetCurrent", Value::Int(10)), ACCEPTED);
        assert!(items.take_changes().is_empty());
    }

    #[test]
    fn inner_paths_show_what_is_below_them() {
        let items = charger();
        assert_eq!(items.below("/Ac").into_keys().collect::<Vec<_>>(), ["Power"]);
        assert!(items.below("/").contains_key("Ac/Power"));
        assert!(items.below("/Ac/Pow").is_empty());
    }
}
