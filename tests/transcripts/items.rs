//! Items of a service as the lines of a transcript have them.

use venus_mqtt::bridge::Change;
use venus_mqtt::bridge::value::{Value, parse_payload};

pub fn read_items(items: &[&str]) -> Result<Vec<(String, Change)>, String> {
    items.iter().map(|item| read_item(item)).collect()
}

/// `/Path=1;min=0;max=5`, or `/Path;min=0` without a value.
pub fn read_item(text: &str) -> Result<(String, Change), String> {
    let mut parts = text.split(';');
    let first = parts.next().unwrap_or_default();
    let mut change = Change::default();
    let path = match first.split_once('=') {
        Some((path, value)) => {
            change.value = Some(read_value(value)?);
            path
        }
        None => first,
    };
    for part in parts {
        let (key, value) = part.split_once('=').ok_or("key=value")?;
        let value = Some(read_value(value)?);
        match key {
            "min" => change.min = value,
            "max" => change.max = value,
            "default" => change.default = value,
            _ => return Err(format!("no such limit: {key}")),
        }
    }
    Ok((path.to_owned(), change))
}

/// JSON, or a number that is none: `nan`, `inf`.
pub fn read_value(json: &str) -> Result<Value, String> {
    if let Some(number) = json.parse().ok().filter(|number: &f64| !number.is_finite()) {
        return Ok(Value::Double(number));
    }
    parse_payload(format!("{{\"value\":{json}}}").as_bytes()).map_err(|error| error.to_string())
}
