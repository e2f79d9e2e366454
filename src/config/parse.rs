//! One value at a time: text to what it must be, the same for the file and the flags. The errors read after the key's name.

use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;

use crate::bridge::filter::Filter;
use crate::bridge::name::PortalId;
use crate::bridge::options::Enabled;
use crate::text::escape;

use super::BusAddress;

/// Longest client ID, user name, host name and prefix, in bytes: brokers and topics take more, nobody writes more by hand.
const TEXT_MAX: usize = 255;

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
        _ if zbus::Address::from_str(text).is_ok() => Ok(BusAddress::Address(text.into())),
        _ => Err(format!(
            "must be \"auto\", \"system\", \"session\" or one D-Bus address such as \"unix:path=/run/dbus/system_bus_socket\", not \"{}\"",
            escape(text)
        )),
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
    if let Some(c) = bare.chars().find(|c| "+#".contains(*c)) {
        return Err(format!("must not contain the wildcard `{c}`"));
    }
    if bare.starts_with('$') {
        return Err("must not begin with `$`: such topics belong to the broker".into());
    }
    if bare.contains("//") || bare.ends_with('/') {
        return Err("must not have an empty level: write one slash between the levels".into());
    }
    if bare.is_empty() {
        return Ok(String::new());
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
    text.parse().ok().and_then(interval).ok_or_else(|| format!("{INTERVAL_RANGE}, not \"{}\"", escape(text)))
}

/// What [`interval`] takes.
pub(super) const INTERVAL_RANGE: &str = "must be a number of seconds from 0.1 to 86400";

pub(super) fn interval(seconds: f64) -> Option<Duration> {
    (0.1..=86_400.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
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
    if text.contains(char::is_control) {
        return Err(format!("{what} cannot contain control characters: \"{}\"", escape(text)));
    }
    Ok(text.into())
}
