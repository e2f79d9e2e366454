//! The `[[http]]` parts, and `[http]`, which is one of them.

use std::ops::RangeInclusive;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::bridge::filter::Filter;
use crate::measure::options::Format;

use super::super::given::{GivenTarget, Place};
use super::super::url::Url;
use super::{Parsed, Reader, boolean, checked, count, filters, must_be, number, parse, path, seconds, shown, tables};

pub(super) const SECTION: &str = "http";

pub(super) const KEYS: &[&str] = &[
    "name",
    "url",
    "format",
    "filters",
    "api_key_file",
    "api_key_header",
    "timeout",
    "connect_timeout",
    "update_interval",
    "cerbo_serial",
    "ca_file",
    "gzip",
    "catch_up_rate",
    "queue_records",
    "queue_bytes",
];

/// What people call a secret.
pub(super) const SECRETS: [&str; 4] = ["api_key", "key", "password", "token"];

/// Each target has a queue, a connection and a thread while it posts.
const TARGETS_MAX: usize = 8;

/// In seconds: below, no network is quick enough; above, nobody waits.
const TIMEOUT: RangeInclusive<f64> = 0.1..=300.0;

const UPDATE_INTERVAL: RangeInclusive<f64> = 0.05..=86_400.0;
const CATCH_UP_RATE: RangeInclusive<f64> = 0.01..=1000.0;

/// A queue that is smaller holds no measurement of a large system; one that is larger fills the flash.
const QUEUE_RECORDS: RangeInclusive<usize> = 1..=1_000_000;
const QUEUE_BYTES: RangeInclusive<usize> = 65_536..=1 << 30;

impl Reader<'_> {
    pub(super) fn targets(&mut self, root: &DeTable<'_>, base: &Path) -> Vec<GivenTarget> {
        let Some(tables) = root.get(SECTION).and_then(tables) else { return Vec::new() };
        if let Some((at, _)) = tables.get(TARGETS_MAX) {
            self.refuse(
                at.clone(),
                format!("there are {} targets, the most is {TARGETS_MAX}: remove this one and those below", tables.len()),
            );
        }
        tables
            .into_iter()
            .map(|(at, table)| {
                let place = self.place(at);
                self.target(place, table, base)
            })
            .collect()
    }

    fn target(&mut self, place: Place, table: &DeTable<'_>, base: &Path) -> GivenTarget {
        let table = Some(table);
        let timeout = |value: &DeValue<'_>| seconds(value, TIMEOUT);
        let path = |value: &DeValue<'_>| path(value, base);
        GivenTarget {
            place,
            name: self.field(table, "name", |v| checked(v, "a name as text, such as \"home\"", parse::target)),
            url: self.field(table, "url", |v| checked(v, "an address as text, such as \"https://backend.example\"", Url::parse)),
            format: self.field(table, "format", format),
            filters: self.field(table, "filters", some_filters),
            api_key_file: self.field(table, "api_key_file", path),
            api_key_header: self.field(table, "api_key_header", |v| checked(v, "the name of a header as text", parse::header)),
            timeout: self.field(table, "timeout", timeout),
            connect_timeout: self.field(table, "connect_timeout", timeout),
            update_interval: self.field(table, "update_interval", |v| seconds(v, UPDATE_INTERVAL)),
            cerbo_serial: self.field(table, "cerbo_serial", |v| checked(v, "a serial number as text", parse::cerbo_serial)),
            ca_file: self.field(table, "ca_file", path),
            gzip: self.field(table, "gzip", boolean),
            catch_up_rate: self.field(table, "catch_up_rate", catch_up_rate),
            queue_records: self.field(table, "queue_records", |v| count(v, QUEUE_RECORDS)),
            queue_bytes: self.field(table, "queue_bytes", |v| count(v, QUEUE_BYTES).map(|bytes| bytes as u64)),
        }
    }
}

fn format(value: &DeValue<'_>) -> Parsed<Format> {
    let formats = [Format::VictronMeasurements, Format::JsonLines(Vec::new())];
    let named = formats.into_iter().find(|format| value.as_str() == Some(format.name()));
    named.ok_or_else(|| must_be("\"victron-measurements\" or \"json-lines\"", value))
}

fn some_filters(value: &DeValue<'_>) -> Parsed<Vec<Filter>> {
    let filters = filters(value, "a list of filters")?;
    if filters.is_empty() {
        return Err("must not be empty: nothing would be sent; [\"#\"] is everything".to_owned().into());
    }
    Ok(filters)
}

fn catch_up_rate(value: &DeValue<'_>) -> Parsed<f64> {
    number(value).filter(|rate| CATCH_UP_RATE.contains(rate)).ok_or_else(|| {
        let (least, most) = CATCH_UP_RATE.into_inner();
        format!("must be a number of posts a second from {least} to {most}, not {}", shown(value)).into()
    })
}
