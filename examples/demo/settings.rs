//! What the demo's `com.victronenergy.settings` does beyond what every service does: settings come, and numbers are given out.
//!
//! Promises of localsettings that registration relies on: a setting that is there keeps its value whoever asks for it again,
//! and a number `<class>:<n>` belongs to one device only, the next free one above being given instead. Nothing is stored: the
//! demo's devices are new at each start. Pure; [`service`](crate::service) reads the calls.

use crate::items::{Items, Limits, Value, as_f64};

/// Why a setting is not taken, as `AddSettings` numbers it.
const UNSUPPORTED_TYPE: i32 = -3;
const OTHER_TYPE: i32 = -5;
const BAD_DEFAULT: i32 = -6;
const DEFAULT_OUTSIDE: i32 = -7;
const NOT_UNDER_SETTINGS: i32 = -9;

/// Where the number of a device is.
pub fn instance_path(id: &str) -> String {
    format!("/Settings/Devices/{id}/ClassAndVrmInstance")
}

/// One setting of `AddSettings`: the value that it has now, or the error. Limits of 0 and 0 are none.
pub fn add(items: &mut Items, path: &str, default: Value, limits: Limits) -> Result<Value, i32> {
    if !path.starts_with("/Settings/") {
        return Err(NOT_UNDER_SETTINGS);
    }
    if default == Value::Invalid {
        return Err(UNSUPPORTED_TYPE);
    }
    let limits = as_f64(&default).map(|_| limits).filter(|limits| (limits.min, limits.max) != (0.0, 0.0));
    if limits.zip(as_f64(&default)).is_some_and(|(limits, default)| !limits.contain(default)) {
        return Err(DEFAULT_OUTSIDE);
    }
    let value = match items.get(path) {
        Some(item) if std::mem::discriminant(&item.value) != std::mem::discriminant(&default) => return Err(OTHER_TYPE),
        Some(item) if (&item.default, item.limits) == (&Some(default.clone()), limits) => return Ok(item.value.clone()),
        Some(item) => item.value.clone(),
        None => free(items, path, default.clone()),
    };
    if value == Value::Invalid {
        return Err(BAD_DEFAULT);
    }
    items.define(path, value.clone(), default, limits);
    Ok(value)
}

/// What a setting gets when this is written to it: of a number that another device has, the next one that is free; no value for what is
/// no number of a device.
pub fn free(items: &Items, path: &str, wanted: Value) -> Value {
    if !is_instance(path) {
        return wanted;
    }
    let Value::Text(wanted) = wanted else { return Value::Invalid };
    let Some((class, Ok(number))) = wanted.split_once(':').map(|(class, number)| (class, number.parse::<i32>())) else {
        return Value::Invalid;
    };
    let taken = |text: &Value| items.iter().any(|(other, item)| other != path && is_instance(other) && item.value == *text);
    let mut free = (number..).map(|number| Value::Text(format!("{class}:{number}"))).filter(|text| !taken(text));
    free.next().unwrap_or(Value::Invalid)
}

fn is_instance(path: &str) -> bool {
    path.strip_prefix("/Settings/Devices/").and_then(|rest| rest.split_once('/')).is_some_and(|(_, rest)| rest == "ClassAndVrmInstance")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LIMITS: Limits = Limits { min: 0.0, max: 0.0 };

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    fn house() -> Items {
        let mut items = Items::new("com.victronenergy.settings", None, "Settings");
        items.text(instance_path("adc_temp1"), "temperature:2");
        items
    }

    #[test]
    fn a_number_belongs_to_one_device() {
        let mut items = house();
        let mut ask = |id: &str, default: &str| add(&mut items, &instance_path(id), text(default), NO_LIMITS);
        assert_eq!(ask("a", "temperature:1"), Ok(text("temperature:1")));
        assert_eq!(ask("b", "temperature:1"), Ok(text("temperature:3")));
        assert_eq!(ask("c", "tank:1"), Ok(text("tank:1")));
        assert_eq!(ask("b", "temperature:9"), Ok(text("temperature:3")));
        assert_eq!(ask("d", "temperature"), Err(BAD_DEFAULT));
        for (written, gets) in [("temperature:1", "temperature:1"), ("temperature:2", "temperature:4"), ("temperature:8", "temperature:8")]
        {
            assert_eq!(free(&items, &instance_path("a"), text(written)), text(gets));
        }
        assert_eq!(free(&items, &instance_path("a"), text("8")), Value::Invalid);
    }

    #[test]
    fn a_setting_keeps_its_value() {
        let mut items = house();
        let path = "/Settings/MqttDevices/mqtt_a_t/TemperatureType";
        let limits = Limits { min: 0.0, max: 6.0 };
        assert_eq!(add(&mut items, path, Value::Int(2), limits), Ok(Value::Int(2)));
        items.write(path, Value::Int(4));
        items.take_changes();
        assert_eq!(add(&mut items, path, Value::Int(2), limits), Ok(Value::Int(4)));
        assert!(items.take_changes().is_empty(), "it is as it was");
        assert_eq!(add(&mut items, path, Value::Int(3), NO_LIMITS), Ok(Value::Int(4)));
        assert_eq!(items.take_changes(), [path.into()], "its default and limits are others");
        assert_eq!(items.get(path).map(|item| item.limits), Some(None));
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        let mut items = house();
        let limits = Limits { min: 1.0, max: 2.0 };
        for (path, default, error) in [
            ("/Else/A", Value::Int(1), NOT_UNDER_SETTINGS),
            ("", Value::Int(1), NOT_UNDER_SETTINGS),
            ("/Settings/A", Value::Invalid, UNSUPPORTED_TYPE),
            ("/Settings/A", Value::Int(3), DEFAULT_OUTSIDE),
            ("/Settings/Devices/adc_temp1/ClassAndVrmInstance", Value::Int(2), OTHER_TYPE),
        ] {
            assert_eq!(add(&mut items, path, default.clone(), limits), Err(error), "{path} {default:?}");
        }
    }
}
