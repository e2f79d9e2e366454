//! The TOML file to [`Given`]. Walks the table by hand: every mistake is found, not only the first, each with its line.

mod http;

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::bridge::filter::Filter;
use crate::bridge::options::{Access, AlwaysOn, Enabled};
use crate::device::options::{Proxy, Stale, StaleAfter};
use crate::device::status::STALE_AFTER;
use crate::text::{escape, escape_to};

use super::{At, Given, Place, Remark, parse};

/// Every key, by section; the first section is the file's own level.
const SECTIONS: [(&str, &[&str]); 6] = [
    ("", &["portal_id", "log_level"]),
    ("dbus", &["address"]),
    ("mqtt", &["host", "port", "client_id", "user", "password_file", "keep_alive", "prefix", "tls", "ca_file", "cert_file", "key_file"]),
    ("bridge", &["enabled", "retain", "keepalive_interval", "always_on", "access", "allow", "deny"]),
    (
        "devices",
        &[
            "enabled",
            "strict_client_id",
            "proxy",
            "stale_after",
            "stale",
            "restore_values",
            "device_instance_topic",
            "keepalive",
            "max_devices",
            "max_services",
            "max_services_total",
            "state_dir",
            "catalogue_dir",
        ],
    ),
    (http::SECTION, http::KEYS),
];

/// Most filters in one list: each is tried on every write.
const FILTERS_MAX: usize = 256;

/// Longest type in `stale_after`, in bytes: those of the catalogue have no more.
const TYPE_MAX: usize = 32;

/// For how long values of before a restart may be shown, in seconds.
const RESTORE_VALUES: RangeInclusive<u32> = 1..=86_400;

/// What `max_devices`, `max_services` and `max_services_total` may be: everything of a device costs memory, and every service a
/// connection to the bus.
const DEVICES: RangeInclusive<usize> = 1..=1000;
const SERVICES: RangeInclusive<usize> = 1..=64;
const SERVICES_TOTAL: RangeInclusive<usize> = 1..=1000;

pub(super) fn read(file: &Path, text: &str) -> Result<Given, Vec<Remark>> {
    let mut reader = Reader { file, text, mistakes: Vec::new() };
    let root = match DeTable::parse(text) {
        Ok(root) => root.into_inner(),
        Err(error) => {
            let at = error.span().unwrap_or_default();
            reader.refuse(at, format!("not TOML: {}", escape(error.message())));
            return Err(reader.mistakes);
        }
    };
    reader.unknown_keys(&root);
    let given = reader.given(&root);
    if reader.mistakes.is_empty() {
        Ok(given)
    } else {
        reader.mistakes.sort_by_key(|mistake| match mistake.place {
            Place::Line(_, line) => line,
            _ => 0,
        });
        Err(reader.mistakes)
    }
}

/// A value that is not what it must be; `at` where it is not the whole value.
struct Wrong {
    at: Option<Range<usize>>,
    text: String,
}

impl From<String> for Wrong {
    fn from(text: String) -> Self {
        Self { at: None, text }
    }
}

type Parsed<T> = Result<T, Wrong>;

struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    mistakes: Vec<Remark>,
}

impl Reader<'_> {
    fn given(&mut self, root: &DeTable<'_>) -> Given {
        let section = |name: &str| root.get(name).and_then(|value| value.get_ref().as_table());
        let (dbus, mqtt, bridge, devices) = (section("dbus"), section("mqtt"), section("bridge"), section("devices"));
        let file = std::path::absolute(self.file).unwrap_or(self.file.into());
        let base = file.parent().unwrap_or(Path::new("/"));
        let path = |value: &DeValue<'_>| path(value, base);
        let text = |parse: fn(&str) -> _, what| move |value: &DeValue<'_>| checked(value, what, parse);
        let root = Some(root);
        Given {
            portal_id: self.field(root, "portal_id", |v| checked(v, "the portal ID as text", parse::portal_id)),
            log_level: self.field(root, "log_level", |v| checked(v, "a level as text, such as \"info\"", parse::log_level)),
            address: self.field(dbus, "address", |v| checked(v, "an address as text, such as \"system\"", parse::bus_address)),
            host: self.field(mqtt, "host", text(parse::host, "a host name as text")),
            port: self.field(mqtt, "port", port),
            client_id: self.field(mqtt, "client_id", text(parse::client_id, "a client ID as text")),
            user: self.field(mqtt, "user", text(parse::user, "a user name as text")),
            password_file: self.field(mqtt, "password_file", path),
            keep_alive: self.field(mqtt, "keep_alive", keep_alive),
            prefix: self.field(mqtt, "prefix", text(parse::prefix, "a prefix as text, such as \"boat1\"")),
            tls: self.field(mqtt, "tls", boolean),
            ca_file: self.field(mqtt, "ca_file", path),
            cert_file: self.field(mqtt, "cert_file", path),
            key_file: self.field(mqtt, "key_file", path),
            enabled: self.field(bridge, "enabled", enabled),
            retain: self.field(bridge, "retain", boolean),
            keepalive_interval: self.field(bridge, "keepalive_interval", |v| seconds(v, parse::KEEPALIVE_INTERVAL)),
            always_on: self.field(bridge, "always_on", always_on),
            access: self.field(bridge, "access", access),
            allow: self.field(bridge, "allow", |v| filters(v, "a list of filters")),
            deny: self.field(bridge, "deny", |v| filters(v, "a list of filters")),
            devices_enabled: self.field(devices, "enabled", boolean),
            strict_client_id: self.field(devices, "strict_client_id", boolean),
            proxy: self.field(devices, "proxy", proxy),
            stale_after: self.field(devices, "stale_after", stale_after),
            stale: self.field(devices, "stale", stale),
            restore_values: self.field(devices, "restore_values", |v| seconds_or_off(v, RESTORE_VALUES, "")),
            device_instance_topic: self.field(devices, "device_instance_topic", boolean),
            keepalive: self.field(devices, "keepalive", boolean),
            max_devices: self.field(devices, "max_devices", |v| count(v, DEVICES)),
            max_services: self.field(devices, "max_services", |v| count(v, SERVICES)),
            max_services_total: self.field(devices, "max_services_total", |v| count(v, SERVICES_TOTAL)),
            state_dir: self.field(devices, "state_dir", |v| folder(v, base)),
            catalogue_dir: self.field(devices, "catalogue_dir", |v| folder(v, base)),
            http: root.map_or_else(Vec::new, |root| self.targets(root, base)),
        }
    }

    fn field<T>(&mut self, table: Option<&DeTable<'_>>, key: &str, parse: impl FnOnce(&DeValue<'_>) -> Parsed<T>) -> Option<At<T>> {
        let value = table?.get(key)?;
        match parse(value.get_ref()) {
            Ok(parsed) => Some(At { value: parsed, place: self.place(value.span()) }),
            Err(Wrong { at, text }) => {
                self.refuse(at.unwrap_or(value.span()), format!("`{key}`: {text}"));
                None
            }
        }
    }

    fn unknown_keys(&mut self, root: &DeTable<'_>) {
        for (key, value) in root.iter() {
            let name = key.get_ref().as_ref();
            let known = keys_of(name).filter(|_| !name.is_empty());
            // only one kind of section may be there many times
            let tables = tables(value).filter(|_| name == http::SECTION || known.is_none() || value.get_ref().is_table());
            match (known, tables) {
                (Some(_), Some(tables)) => tables.iter().for_each(|(_, table)| self.unknown_in(name, table)),
                (Some(_), None) => {
                    let text = format!("`{name}` is a section: write {} on a line of its own, and its keys below", title(name));
                    self.refuse(key.span(), text);
                }
                (None, Some(tables)) if value.get_ref().is_table() || !tables.is_empty() => self.unknown_section(key),
                (None, _) => self.unknown_key("", key),
            }
        }
    }

    fn unknown_section(&mut self, key: &Spanned<Cow<'_, str>>) {
        let name = key.get_ref().as_ref();
        let sections = SECTIONS.iter().map(|(section, _)| *section).filter(|section| !section.is_empty());
        let text = match nearest(name, sections) {
            Some(near) => format!("unknown section [{}]; did you mean {}?", escape(name), title(near)),
            None => format!("unknown section [{}]; there are [dbus], [mqtt], [bridge], [devices] and [[http]]", escape(name)),
        };
        self.refuse(key.span(), text);
    }

    fn unknown_in(&mut self, section: &str, table: &DeTable<'_>) {
        for key in table.keys() {
            self.unknown_key(section, key);
        }
    }

    fn unknown_key(&mut self, section: &str, key: &Spanned<Cow<'_, str>>) {
        let name = key.get_ref().as_ref();
        let keys = keys_of(section).unwrap_or_default();
        if keys.contains(&name) {
            return;
        }
        let place = |section: &str| {
            if section.is_empty() { "at the top of the file, before any section".to_owned() } else { format!("in {}", title(section)) }
        };
        let homes: Vec<_> = SECTIONS.iter().filter(|(_, keys)| keys.contains(&name)).map(|(home, _)| place(home)).collect();
        let text = if !homes.is_empty() {
            format!("`{name}` belongs {}", homes.join(" or "))
        } else if section == "mqtt" && name == "password" {
            "a password does not belong here: write it into a file of its own and name that as `password_file`".into()
        } else if section == http::SECTION && http::SECRETS.contains(&name) {
            "a secret does not belong here: write it into a file of its own and name that as `api_key_file`".into()
        } else if let Some(near) = nearest(name, keys.iter().copied()) {
            format!("unknown key `{}` {}; did you mean `{near}`?", escape(name), place(section))
        } else {
            format!("unknown key `{}` {}; known: {}", escape(name), place(section), keys.join(", "))
        };
        self.refuse(key.span(), text);
    }

    fn refuse(&mut self, at: Range<usize>, text: String) {
        let place = self.place(at);
        self.mistakes.push(Remark { place, text });
    }

    fn place(&self, at: Range<usize>) -> Place {
        let before = self.text.bytes().take(at.start);
        Place::Line(self.file.into(), before.filter(|&b| b == b'\n').count() + 1)
    }
}

fn keys_of(section: &str) -> Option<&'static [&'static str]> {
    SECTIONS.iter().find(|(name, _)| *name == section).map(|(_, keys)| *keys)
}

/// A section as its heading is written.
fn title(section: &str) -> String {
    if section == http::SECTION { format!("[[{section}]]") } else { format!("[{section}]") }
}

/// The table or the tables that `value` is, each with where it begins; `None`: it is something else.
fn tables<'a, 'b>(value: &'a Spanned<DeValue<'b>>) -> Option<Vec<(Range<usize>, &'a DeTable<'b>)>> {
    let table = |value: &'a Spanned<DeValue<'b>>| Some((value.span(), value.get_ref().as_table()?));
    match value.get_ref() {
        DeValue::Array(items) => items.iter().map(table).collect(),
        _ => Some(vec![table(value)?]),
    }
}

/// The word that was probably meant.
fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    words
        .map(|known| (strsim::damerau_levenshtein(word, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .map(|(_, known)| known)
}

fn path(value: &DeValue<'_>, base: &Path) -> Parsed<PathBuf> {
    path_of("file", value, base)
}

fn folder(value: &DeValue<'_>, base: &Path) -> Parsed<PathBuf> {
    path_of("folder", value, base)
}

fn path_of(what: &str, value: &DeValue<'_>, base: &Path) -> Parsed<PathBuf> {
    checked(value, "a path as text", |text| {
        if text.is_empty() || text.contains('\0') {
            return Err(format!("must be the path of a {what}"));
        }
        Ok(base.join(text))
    })
}

fn port(value: &DeValue<'_>) -> Parsed<u16> {
    integer(value)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| must_be("a whole number from 1 to 65535", value))
}

fn keep_alive(value: &DeValue<'_>) -> Parsed<Duration> {
    integer(value)
        .and_then(|seconds| u16::try_from(seconds).ok())
        .filter(|seconds| *seconds != 0)
        .map(|seconds| Duration::from_secs(seconds.into()))
        .ok_or_else(|| must_be("a whole number of seconds from 1 to 65535", value))
}

fn seconds(value: &DeValue<'_>, range: RangeInclusive<f64>) -> Parsed<Duration> {
    parse::seconds(number(value), range).map_err(|must_be| format!("{must_be}, not {}", shown(value)).into())
}

fn boolean(value: &DeValue<'_>) -> Parsed<bool> {
    value.as_bool().ok_or_else(|| must_be("true or false", value))
}

fn enabled(value: &DeValue<'_>) -> Parsed<Enabled> {
    match value {
        DeValue::Boolean(true) => Ok(Enabled::Yes),
        DeValue::Boolean(false) => Ok(Enabled::No),
        DeValue::String(text) if text == "auto" => Ok(Enabled::Auto),
        _ => Err(must_be("\"auto\", true or false", value)),
    }
}

fn always_on(value: &DeValue<'_>) -> Parsed<AlwaysOn> {
    match value {
        DeValue::Boolean(true) => Ok(AlwaysOn::Everything),
        DeValue::Boolean(false) => Ok(AlwaysOn::No),
        _ => filters(value, "true, false or a list of filters")
            .map(|filters| if filters.is_empty() { AlwaysOn::No } else { AlwaysOn::Only(filters) }),
    }
}

fn access(value: &DeValue<'_>) -> Parsed<Access> {
    match value.as_str() {
        Some("full") => Ok(Access::Full),
        Some("read-only") => Ok(Access::ReadOnly),
        _ => Err(must_be("\"full\" or \"read-only\"", value)),
    }
}

fn proxy(value: &DeValue<'_>) -> Parsed<Proxy> {
    match value.as_str() {
        Some("any") => Ok(Proxy::Any),
        Some("own") => Ok(Proxy::Own),
        _ => Err(must_be("\"any\" or \"own\"", value)),
    }
}

/// One span for all types, or a table of spans by type.
fn stale_after(value: &DeValue<'_>) -> Parsed<StaleAfter> {
    let Some(table) = value.as_table() else {
        let default = seconds_or_off(value, STALE_AFTER, ", or a table of them by type, such as { default = 60, grid = 10 }")?;
        return Ok(StaleAfter { default, ..StaleAfter::default() });
    };
    let mut parsed = StaleAfter::default();
    for (key, value) in table.iter() {
        let kind = key.get_ref().as_ref();
        let wrong = |at: &Range<usize>, text: String| Wrong { at: Some(at.clone()), text: format!("`{}` {text}", escape(kind)) };
        let span = seconds_or_off(value.get_ref(), STALE_AFTER, "").map_err(|Wrong { text, .. }| wrong(&value.span(), text))?;
        let is_type = kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && (1..=TYPE_MAX).contains(&kind.len());
        match kind {
            "default" => parsed.default = span,
            _ if is_type => drop(parsed.types.insert(kind.into(), span)),
            _ => return Err(wrong(&key.span(), "is no type of services: write one such as `grid`, or `default`".into())),
        }
    }
    Ok(parsed)
}

fn stale(value: &DeValue<'_>) -> Parsed<Stale> {
    match value.as_str() {
        Some("disconnect") => Ok(Stale::Disconnect),
        Some("leave") => Ok(Stale::Leave),
        _ => Err(must_be("\"disconnect\" or \"leave\"", value)),
    }
}

/// `or` says what else it may be.
fn seconds_or_off(value: &DeValue<'_>, range: RangeInclusive<u32>, or: &str) -> Parsed<Option<Duration>> {
    match integer(value).and_then(|seconds| u32::try_from(seconds).ok()) {
        Some(0) => Ok(None),
        Some(seconds) if range.contains(&seconds) => Ok(Some(Duration::from_secs(seconds.into()))),
        _ => {
            let (least, most) = range.into_inner();
            Err(must_be(&format!("0 (off) or a whole number of seconds from {least} to {most}{or}"), value))
        }
    }
}

fn count(value: &DeValue<'_>, range: RangeInclusive<usize>) -> Parsed<usize> {
    integer(value)
        .and_then(|count| usize::try_from(count).ok())
        .filter(|count| range.contains(count))
        .ok_or_else(|| must_be(&format!("a whole number from {} to {}", range.start(), range.end()), value))
}

fn filters(value: &DeValue<'_>, what: &str) -> Parsed<Vec<Filter>> {
    let list = value.as_array().ok_or_else(|| must_be(&format!("{what}, such as [\"battery/+/Soc\", \"vebus/#\"]"), value))?;
    if list.len() > FILTERS_MAX {
        return Err(format!("has {} filters, the most is {FILTERS_MAX}: use wildcards", list.len()).into());
    }
    list.iter()
        .map(|item| {
            let parsed = match item.get_ref() {
                DeValue::String(text) => parse::filter(text).map_err(Wrong::from),
                other => Err(must_be("a list of filters as text", other)),
            };
            parsed.map_err(|wrong| Wrong { at: Some(item.span()), ..wrong })
        })
        .collect()
}

fn checked<T>(value: &DeValue<'_>, what: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Parsed<T> {
    let text = value.as_str().ok_or_else(|| must_be(what, value))?;
    Ok(parse(text)?)
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(float) => float.as_str().parse().ok(),
        _ => integer(value).map(|integer| integer as f64),
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn must_be(what: &str, value: &DeValue<'_>) -> Wrong {
    format!("must be {what}, not {}", shown(value)).into()
}

/// A value as a message quotes it.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", escape(text)),
        DeValue::Integer(integer) => escape_to(&integer.to_string(), 40).to_string(),
        DeValue::Float(float) => escape_to(float.as_str(), 40).to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a section".into(),
    }
}
