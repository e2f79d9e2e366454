//! One value at a time: text to what it must be, the same for the file and the flags. The errors read after the key's name.

use std::ops::RangeInclusive;
use std::time::Duration;

use log::LevelFilter;
use ureq::http::HeaderName;

use crate::bridge::filter::Filter;
use crate::bridge::name::PortalId;
use crate::bridge::options::Enabled;
use crate::bridge::topic::{PREFIX_LEVELS, check_text, check_topic};
use crate::text::escape;

use super::BusAddress;
use crate::dbus_address::Addresses;

/// Longest client ID, user name, host name, prefix and the like, in bytes: brokers and topics take more, nobody writes more by hand.
const TEXT_MAX: usize = 255;

/// Longest name of a target, in bytes: it is a part of a folder's name, and of many log lines.
const TARGET_MAX: usize = 32;

/// Headers that say how a message is carried, which is not the user's to say.
const CARRIERS: [&str; 6] = ["Host", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Connection"];

/// What `keepalive_interval` may be, in seconds.
pub(super) const KEEPALIVE_INTERVAL: RangeInclusive<f64> = 0.1..=86_400.0;
/// What a command may take, in seconds.
const PATIENCE: RangeInclusive<f64> = 0.1..=600.0;

pub fn portal_id(text: &str) -> Result<PortalId, String> {
    PortalId::parse(text).map_err(|error| format!("{error}, not \"{}\"", escape(text)))
}

pub fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" => Ok(LevelFilter::Error),
        "warn" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        "trace" => Ok(LevelFilter::Trace),
        _ => Err(format!("must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\", not \"{}\"", escape(text))),
    }
}

pub fn bus_address(text: &str) -> Result<BusAddress, String> {
    match text {
        "auto" => Ok(BusAddress::Auto),
        "system" => Ok(BusAddress::System),
        "session" => Ok(BusAddress::Session),
        _ => Addresses::parse(text).map(BusAddress::Address).map_err(|why| {
            format!(
                "must be \"auto\", \"system\", \"session\" or a D-Bus address such as \"unix:path=/run/dbus/system_bus_socket\" (of several, `;` between them, the first that answers is used); {why}"
            )
        }),
    }
}

/// A name or an address; the brackets of an IPv6 address are taken off.
pub fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if text.contains("://") {
        return Err(format!("write the name alone, without \"{}://\"; TLS is switched on by `tls` or `ca_file`", {
            escape(text.split("://").next().unwrap_or_default())
        }));
    }
    if let Some((name, port)) = text.rsplit_once(':')
        && !name.contains(':')
        && port.parse::<u16>().is_ok()
    {
        return Err(format!("write the name alone (\"{}\") and the port as `port` ({port})", escape(name)));
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.:%".contains(&b);
    if bare.is_empty() || bare.len() > TEXT_MAX || !bare.bytes().all(good) {
        return Err(format!("must be a host name or an IP address, not \"{}\"", escape(text)));
    }
    Ok(bare.into())
}

pub fn client_id(text: &str) -> Result<String, String> {
    if let Some(c) = text.chars().find(|c| "+#/".contains(*c)) {
        return Err(format!("must not contain `{c}`: it becomes part of topics and of access rules"));
    }
    plain("a client ID", text)
}

pub fn user(text: &str) -> Result<String, String> {
    plain("a user name", text)
}

/// Normalised: empty, or ending in one slash.
pub fn prefix(text: &str) -> Result<String, String> {
    let bare = text.strip_suffix('/').unwrap_or(text);
    if bare.contains("//") || bare.ends_with('/') {
        return Err("must not have an empty level: write one slash between the levels".into());
    }
    if bare.is_empty() {
        return Ok(String::new());
    }
    check_topic(bare).map_err(|error| format!("a prefix {error}: \"{}\"", escape(bare)))?;
    // another bridge would take what is below for its own
    if let Some(first @ ("N" | "R" | "W" | "device")) = bare.split('/').next() {
        return Err(format!("must not begin with {first}: topics below N, R, W and device have meanings of their own"));
    }
    if bare.split('/').count() > PREFIX_LEVELS {
        return Err(format!("must not have more than {PREFIX_LEVELS} levels"));
    }
    plain("a prefix", bare).map(|prefix| prefix + "/")
}

pub fn enabled(text: &str) -> Result<Enabled, String> {
    match text {
        "auto" => Ok(Enabled::Auto),
        "true" => Ok(Enabled::Yes),
        "false" => Ok(Enabled::No),
        _ => Err(format!("must be auto, true or false, not \"{}\"", escape(text))),
    }
}

pub fn keepalive_interval(text: &str) -> Result<Duration, String> {
    seconds_of(text, KEEPALIVE_INTERVAL)
}

/// How long a command may take.
pub fn patience(text: &str) -> Result<Duration, String> {
    seconds_of(text, PATIENCE)
}

fn seconds_of(text: &str, range: RangeInclusive<f64>) -> Result<Duration, String> {
    seconds(text.parse().ok(), range).map_err(|must_be| format!("{must_be}, not \"{}\"", escape(text)))
}

/// A span of time in `range`; the error says what it must be.
pub(super) fn seconds(seconds: Option<f64>, range: RangeInclusive<f64>) -> Result<Duration, String> {
    let inside = seconds.filter(|seconds| range.contains(seconds)).map(Duration::from_secs_f64);
    inside.ok_or_else(|| format!("must be a number of seconds from {} to {}", range.start(), range.end()))
}

/// The name of a target.
pub(super) fn target(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if !(1..=TARGET_MAX).contains(&text.len()) || !text.bytes().all(good) {
        return Err(format!("must be 1 to {TARGET_MAX} letters, digits, `-` or `_`, not \"{}\"", escape(text)));
    }
    Ok(text.into())
}

/// The name of a header. What is none is not shown: it may be the secret itself.
pub(super) fn header(text: &str) -> Result<String, String> {
    if text.len() > TEXT_MAX || HeaderName::from_bytes(text.as_bytes()).is_err() {
        return Err("must be the name of a header alone, such as \"X-API-Key\" or \"Authorization\"; its value is in `api_key_file`".into());
    }
    if let Some(carrier) = CARRIERS.iter().find(|carrier| text.eq_ignore_ascii_case(carrier)) {
        return Err(format!(
            "must not be {carrier}, which says how the measurement is carried: name the header the backend wants the key in"
        ));
    }
    Ok(text.into())
}

pub(super) fn cerbo_serial(text: &str) -> Result<String, String> {
    plain("a serial number", text)
}

pub(super) fn filter(text: &str) -> Result<Filter, String> {
    Filter::parse(text).map_err(|error| format!("\"{}\": {error}", escape(text)))
}

fn plain(what: &str, text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(format!("{what} cannot be empty: write one, or leave the key out"));
    }
    if text.len() > TEXT_MAX {
        return Err(format!("{what} has at most {TEXT_MAX} bytes, this has {}", text.len()));
    }
    check_text(text).map_err(|error| format!("{what} {error}: \"{}\"", escape(text)))?;
    Ok(text.into())
}
