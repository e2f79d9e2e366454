//! What stands below a type's name becomes its items. Every mistake is told, each with its line; an item with one is left out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use indexmap::IndexMap;

use crate::bridge::value::Value;
use crate::device::format::{Format, Style};
use crate::text::{escape, escape_to};

use super::pattern::{self, PATHS_MAX};
use super::spec::numeric;
use super::yaml::{Key, Node, What};
use super::{ItemSpec, Kind, MISTAKES_MAX, Wrong, is_group};

/// Items by their path, placeholders as they are.
pub type Items = IndexMap<Box<str>, Arc<ItemSpec>>;

/// Finds the items of a group.
pub type FindGroup<'a> = &'a dyn Fn(&str) -> Option<Arc<Items>>;

/// The key that brings in the items of groups.
const INCLUDE: &str = "_include";

/// What an item may have. `setting` is another word for `persist`.
const KEYS: [&str; 11] = ["default", "description", "format", "persist", "setting", "min", "max", "type", "command", "writable", "names"];

/// Longest description, in bytes.
const DESCRIPTION_MAX: usize = 1024;
/// Most names of an item's values, and the longest one, in bytes.
const NAMES_MAX: usize = 256;
const NAME_MAX: usize = 100;

/// What a path ends in that holds a text although nothing says so.
const TEXTS: [&str; 5] = ["Name", "Serial", "Version", "Model", "Role"];

/// Reads a type or a group. What is taken, but not as it is written, is among the `remarks`.
pub fn items(name: &str, node: &Node, find_group: FindGroup<'_>, wrong: &mut Vec<Wrong>, remarks: &mut Vec<Wrong>) -> Items {
    let empty = Vec::new();
    let entries = match &node.what {
        What::Map(entries) => entries,
        _ if node.is_nothing() => &empty,
        _ => {
            let text = format!("{}: must be a mapping of items; write each item as a key below it", escape(name));
            wrong.push(Wrong { line: node.line, text });
            return Items::new();
        }
    };
    let (includes, entries): (Vec<_>, Vec<_>) = entries.iter().partition(|(key, _)| &*key.text == INCLUDE);
    let mut all = Items::new();
    for (nth, (key, value)) in includes.into_iter().enumerate() {
        let included = if is_group(name) {
            Err(Wrong { line: key.line, text: "a group cannot have it; write it into the types".into() })
        } else if nth > 0 {
            Err(Wrong { line: key.line, text: "is there already; write one list".into() })
        } else {
            include(value, find_group)
        };
        match included {
            Ok(included) => all.extend(included),
            Err(Wrong { line, text }) => wrong.push(Wrong { line, text: format!("{}/{INCLUDE}: {text}", escape(name)) }),
        }
    }
    let own = own_items(name, &entries, wrong, remarks);
    all.extend(own);
    all
}

fn include(value: &Node, find_group: FindGroup<'_>) -> Result<Items, Wrong> {
    let names = match &value.what {
        What::List(nodes) => nodes.as_slice(),
        _ => std::slice::from_ref(value),
    };
    let mut all = Items::new();
    for node in names {
        let name = node.text().ok_or_else(|| wrong(node, "must be the name of a group, or a list of them; such as [_acmeter]"))?;
        let found = find_group(name).ok_or_else(|| wrong(node, format!("there is no group `{}`; correct its name", escape(name))))?;
        all.extend(found.iter().map(|(path, spec)| (path.clone(), spec.clone())));
    }
    Ok(all)
}

fn own_items(name: &str, entries: &[&(Key, Node)], wrong: &mut Vec<Wrong>, remarks: &mut Vec<Wrong>) -> Items {
    let mut own = Items::new();
    let at = |key: &Key| format!("{}/{}", escape(name), escape_to(key.text.trim_start_matches('/'), 100));
    // the place of the last entry of each key
    let last: HashMap<&str, usize> = entries.iter().enumerate().map(|(n, (key, _))| (&*key.text, n)).collect();
    for (n, (key, value)) in entries.iter().enumerate() {
        if wrong.len() > MISTAKES_MAX {
            break;
        }
        if last.get(&*key.text).is_some_and(|last| *last != n) {
            remarks.push(Wrong {
                line: key.line,
                text: format!("{}: it is there again below, and the last one counts; remove this", at(key)),
            });
            continue;
        }
        let mut found = Vec::new();
        let read = read_item(key, value, &mut found).and_then(|read| {
            let known = read.iter().find(|(path, _)| own.contains_key(path.as_str()));
            match known {
                Some((path, _)) => Err(Wrong { line: key.line, text: format!("{path} is there already; remove the one or the other") }),
                None => Ok(read),
            }
        });
        match read {
            Ok(read) => own.extend(read.into_iter().map(|(path, spec)| (path.into(), spec))),
            Err(Wrong { line, text }) => wrong.push(Wrong { line, text: format!("{}: {text}", at(key)) }),
        }
        remarks.extend(found.into_iter().map(|Wrong { line, text }| Wrong { line, text: format!("{}: {text}", at(key)) }));
        if own.len() > PATHS_MAX {
            let text = format!("{}: it has more than {PATHS_MAX} items; write fewer", escape(name));
            wrong.push(Wrong { line: key.line, text });
            break;
        }
    }
    own
}

/// The paths of one entry, each with its item; entries that differ in nothing share one. What is taken, but not as it is written, is among
/// the `remarks`.
fn read_item(key: &Key, value: &Node, remarks: &mut Vec<Wrong>) -> Result<Vec<(String, Arc<ItemSpec>)>, Wrong> {
    let given = given(value, remarks)?;
    let paths = pattern::expand(&key.text).map_err(|text| Wrong { line: key.line, text })?;
    let mut items: Vec<(String, Arc<ItemSpec>)> = Vec::with_capacity(paths.len());
    for path in paths {
        let mut found = Vec::new();
        let spec = spec(&path, &given, &mut found)?;
        // once, however many paths the entry stands for
        if items.is_empty() {
            remarks.append(&mut found);
        }
        if spec.kept {
            let node = given.get("persist").or(given.get("setting"));
            pattern::check_kept(&path).map_err(|text| Wrong { line: node.map_or(key.line, |node| node.line), text })?;
        }
        let shared = items.last().filter(|(_, last)| **last == spec).map(|(_, last)| last.clone());
        items.push((path, shared.unwrap_or_else(|| Arc::new(spec))));
    }
    Ok(items)
}

type Given<'n> = BTreeMap<&'static str, &'n Node>;

fn given<'n>(value: &'n Node, remarks: &mut Vec<Wrong>) -> Result<Given<'n>, Wrong> {
    let mut given = Given::new();
    let entries = match &value.what {
        What::Map(entries) => entries,
        _ if value.is_nothing() => return Ok(given),
        _ => return Err(wrong(value, "must be a mapping; write `default:` and what else it has as keys below it")),
    };
    for (key, node) in entries {
        let Some(known) = KEYS.into_iter().find(|known| *known == &*key.text) else {
            let name = escape(&key.text);
            let text = match super::nearest(&key.text, KEYS.into_iter()) {
                Some(near) => format!("unknown key `{name}`; did you mean `{near}`?"),
                None => format!("unknown key `{name}`; known: {}", KEYS.join(", ")),
            };
            return Err(Wrong { line: key.line, text });
        };
        if given.insert(known, node).is_some() {
            remarks.push(Wrong { line: key.line, text: format!("`{known}` is there already; the last one counts; remove the other") });
        }
    }
    // no format is as good as none
    given.retain(|key, node| *key != "format" || !(node.is_nothing() || node.text() == Some("")));
    Ok(given)
}

fn spec(path: &str, given: &Given<'_>, remarks: &mut Vec<Wrong>) -> Result<ItemSpec, Wrong> {
    let default = given.get("default").map_or(Ok(Value::Invalid), |node| node.value())?;
    let format = match given.get("format") {
        Some(node) => {
            let (format, remark) = Format::parse(text(node, "format")?).map_err(|text| wrong(node, format!("`format`: {text}")))?;
            remarks.extend(remark.map(|text| wrong(node, format!("`format`: {text}"))));
            format
        }
        None if path == "/ProductId" => Format::hex(),
        None => Format::default(),
    };
    let kind = match given.get("type") {
        Some(node) => kind(node)?,
        // dbus-mqtt-devices has had it as a number and as a text
        None if path == "/DeviceType" => Kind::TextOrNumber,
        None => guess(path, &default, &format),
    };
    if let Some(node) = given.get("format").filter(|_| !suits(format.style(), kind)) {
        return Err(wrong(node, "`format`: it does not suit the item's type; write {} or correct `type`"));
    }
    let mut spec = ItemSpec {
        kind,
        default: Value::Invalid,
        description: description(given)?,
        format: names(given, kind, format)?,
        min: Value::Invalid,
        max: Value::Invalid,
        kept: truth(given, "persist", false)? || truth(given, "setting", false)?,
        command: truth(given, "command", false)?,
        writable: truth(given, "writable", true)?,
    };
    (spec.min, spec.max) = limits(given, &spec)?;
    if let Some(node) = given.get("persist").or(given.get("setting")).filter(|_| spec.kept && is_list(kind)) {
        return Err(wrong(node, "a list cannot be kept as a setting; remove `persist`"));
    }
    if let Some(node) = given.get("default") {
        // a number without quotes may be meant as a text, and `on` too
        let default = match node.text() {
            Some(text) if kind == Kind::Text => Value::Str(text.into()),
            _ => default,
        };
        spec.default = spec.bring(default).map_err(|text| wrong(node, format!("`default`: {text}; correct it")))?;
    }
    Ok(spec)
}

/// The kind of an item that has no `type`.
fn guess(path: &str, default: &Value, format: &Format) -> Kind {
    let is_whole = matches!(format.style(), Style::Digits | Style::UpperHex | Style::LowerHex);
    let is_measured = format.has_unit() || matches!(format.style(), Style::Fixed(_));
    match default {
        Value::Array(values) if values.iter().any(|value| matches!(value, Value::Int(_) | Value::Double(_))) => Kind::Doubles,
        Value::Array(_) => Kind::Texts,
        Value::Str(_) => Kind::Text,
        Value::Bool(_) => Kind::Int,
        Value::Double(_) => Kind::Double,
        _ if is_whole => Kind::Int,
        // as dbus-mqtt-devices takes it; a fraction is not cut
        Value::Int(_) if !is_measured => Kind::Number,
        Value::Invalid if TEXTS.iter().any(|text| path.ends_with(text)) => Kind::Text,
        _ => Kind::Double,
    }
}

fn kind(node: &Node) -> Result<Kind, Wrong> {
    match node.text() {
        Some("i" | "int" | "int32" | "integer") => Ok(Kind::Int),
        Some("d" | "double" | "float") => Ok(Kind::Double),
        Some("n" | "number") => Ok(Kind::Number),
        Some("s" | "str" | "string" | "text") => Ok(Kind::Text),
        Some("sn" | "any") => Ok(Kind::TextOrNumber),
        Some("as" | "strings" | "texts") => Ok(Kind::Texts),
        Some("ad" | "doubles" | "floats") => Ok(Kind::Doubles),
        _ => Err(wrong(
            node,
            "`type`: must be i (integer), d (double), n (either), s (text), sn (text or number), as (texts) or ad (doubles)",
        )),
    }
}

fn is_list(kind: Kind) -> bool {
    matches!(kind, Kind::Texts | Kind::Doubles)
}

fn is_number(kind: Kind) -> bool {
    matches!(kind, Kind::Int | Kind::Double | Kind::Number)
}

fn suits(style: Style, kind: Kind) -> bool {
    match style {
        Style::Plain => true,
        Style::Fixed(_) => is_number(kind),
        Style::Digits | Style::UpperHex | Style::LowerHex => kind == Kind::Int,
    }
}

fn limits(given: &Given<'_>, spec: &ItemSpec) -> Result<(Value, Value), Wrong> {
    let has_limits = is_number(spec.kind) || spec.kind == Kind::TextOrNumber;
    // dbus-mqtt-devices has them as the defaults of every setting
    let is_none = |key| given.get(key).is_none_or(|node| matches!(node.value(), Ok(Value::Invalid | Value::Int(0))));
    if !has_limits && is_none("min") && is_none("max") {
        return Ok((Value::Invalid, Value::Invalid));
    }
    let limit = |key: &str| {
        let Some(node) = given.get(key) else { return Ok(Value::Invalid) };
        if !has_limits {
            return Err(wrong(node, format!("`{key}`: only a number has limits; remove it, or correct `type`")));
        }
        // a text among numbers has no limits
        let kind = if spec.kind == Kind::TextOrNumber { Kind::Number } else { spec.kind };
        let number = ItemSpec { kind, ..spec.clone() };
        number.bring(node.value()?).map_err(|text| wrong(node, format!("`{key}`: {text}; correct it")))
    };
    let (min, max) = (limit("min")?, limit("max")?);
    match (given.get("min"), numeric(&min), numeric(&max)) {
        // localsettings has no other way to say that there are none
        (_, Some(0.0), Some(0.0)) => Ok((Value::Invalid, Value::Invalid)),
        (Some(node), Some(least), Some(most)) if least > most => {
            Err(wrong(node, format!("`min` {least} is above `max` {most}; correct the one or the other")))
        }
        _ => Ok((min, max)),
    }
}

fn names(given: &Given<'_>, kind: Kind, format: Format) -> Result<Format, Wrong> {
    let Some(node) = given.get("names") else { return Ok(format) };
    let What::Map(entries) = &node.what else {
        return Err(wrong(node, "`names`: must be a mapping of numbers to names, such as {0: off, 1: on}"));
    };
    if !matches!(kind, Kind::Int | Kind::Number) {
        return Err(wrong(node, "`names`: only an integer has names; remove them, or write `type: i`"));
    }
    if entries.len() > NAMES_MAX {
        return Err(wrong(node, format!("`names`: there are more than {NAMES_MAX}; write fewer")));
    }
    let mut names = BTreeMap::new();
    for (key, node) in entries {
        let wrong = |text: String| Wrong { line: key.line, text: format!("`names`: {text}") };
        let number: i32 = key.text.parse().map_err(|_| wrong(format!("`{}` is not an integer; correct it", escape(&key.text))))?;
        let name = node.text().filter(|name| name.len() <= NAME_MAX);
        let name = name.ok_or_else(|| wrong(format!("{number} needs a name of at most {NAME_MAX} bytes; write one")))?;
        if names.insert(i64::from(number), name.into()).is_some() {
            return Err(wrong(format!("{number} is there already; remove the one or the other")));
        }
    }
    Ok(format.with_names(names.into_iter().collect()))
}

fn description(given: &Given<'_>) -> Result<Box<str>, Wrong> {
    let Some(node) = given.get("description").filter(|node| !node.is_nothing()) else { return Ok("".into()) };
    let text = text(node, "description")?;
    if text.len() > DESCRIPTION_MAX {
        return Err(wrong(node, format!("`description`: it is longer than {DESCRIPTION_MAX} bytes; shorten it")));
    }
    Ok(text.into())
}

fn text<'n>(node: &'n Node, key: &str) -> Result<&'n str, Wrong> {
    node.text().ok_or_else(|| wrong(node, format!("`{key}`: must be a text")))
}

fn truth(given: &Given<'_>, key: &str, default: bool) -> Result<bool, Wrong> {
    let Some(node) = given.get(key) else { return Ok(default) };
    node.truth().ok_or_else(|| wrong(node, format!("`{key}`: must be true or false")))
}

fn wrong(node: &Node, text: impl Into<String>) -> Wrong {
    Wrong { line: node.line, text: text.into() }
}
