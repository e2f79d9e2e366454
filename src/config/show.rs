//! The configuration in effect as TOML: every option, defaults included, to be read by people and by [`super::read`].

use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::bridge::filter::Filter;
use crate::bridge::options::{Access, AlwaysOn, Enabled};
use crate::device::options::{Proxy, Stale};
use crate::measure::options::Format;

use super::{BusAddress, DEFAULT_PATHS, Devices, HttpTarget, Loaded, Mqtt};

pub(super) fn show(loaded: &Loaded) -> String {
    let mut out = String::new();
    // a String takes everything
    let _ = write(&mut out, loaded);
    out
}

fn write(out: &mut String, loaded: &Loaded) -> fmt::Result {
    let config = &loaded.config;
    origin(out, loaded)?;
    writeln!(out)?;
    match &config.portal_id {
        Some(id) => writeln!(out, "portal_id = {}", quoted(id.as_str()))?,
        None => writeln!(out, "# portal_id is not set: it is found out at start (unique-id file, the bus, MAC address)")?,
    }
    writeln!(out, "log_level = \"{}\"", config.log_level.as_str().to_lowercase())?;
    writeln!(out, "\n[dbus]")?;
    write!(out, "address = {}", quoted(&config.dbus.to_string()))?;
    match (&config.dbus, std::env::var_os("DBUS_SESSION_BUS_ADDRESS")) {
        (BusAddress::Auto, Some(_)) => writeln!(out, "  # the session bus, as DBUS_SESSION_BUS_ADDRESS is set")?,
        (BusAddress::Auto, None) => writeln!(out, "  # the system bus, as DBUS_SESSION_BUS_ADDRESS is not set")?,
        _ => writeln!(out)?,
    }
    mqtt(out, &config.mqtt)?;
    bridge(out, loaded)?;
    devices(out, &config.devices)?;
    if config.http.is_empty() {
        writeln!(out, "\n# there is no [[http]]: no measurements are posted")?;
    }
    config.http.iter().try_for_each(|target| http(out, target))
}

fn origin(out: &mut String, loaded: &Loaded) -> fmt::Result {
    match &loaded.file {
        Some(file) => writeln!(out, "# from {}", file.display())?,
        None => writeln!(out, "# from the defaults: there is no {}", DEFAULT_PATHS.join(" and no "))?,
    }
    if !loaded.flags.is_empty() {
        writeln!(out, "# and from the command line: {}", loaded.flags.join(", "))?;
    }
    Ok(())
}

fn mqtt(out: &mut String, mqtt: &Mqtt) -> fmt::Result {
    writeln!(out, "\n[mqtt]")?;
    writeln!(out, "host = {}", quoted(&mqtt.host))?;
    writeln!(out, "port = {}", mqtt.port)?;
    match &mqtt.client_id {
        Some(id) => writeln!(out, "client_id = {}", quoted(id))?,
        None => writeln!(out, "# client_id is not set: it is venus-mqtt-<portal ID>")?,
    }
    match &mqtt.user {
        Some(user) => writeln!(out, "user = {}", quoted(user))?,
        None => writeln!(out, "# user is not set: no name and no password are sent")?,
    }
    if let Some(password) = &mqtt.password {
        writeln!(out, "password_file = {}  # the password: {password}", quoted_path(password.file()))?;
    }
    writeln!(out, "keep_alive = {}", mqtt.keep_alive.as_secs())?;
    writeln!(out, "prefix = {}", quoted(&mqtt.prefix))?;
    writeln!(out, "tls = {}", mqtt.tls.is_some())?;
    let Some(tls) = &mqtt.tls else { return Ok(()) };
    match &tls.ca_file {
        Some(file) => writeln!(out, "ca_file = {}", quoted_path(file))?,
        None => writeln!(out, "# ca_file is not set: the system's roots are trusted")?,
    }
    if let Some(client) = &tls.client {
        writeln!(out, "cert_file = {}", quoted_path(&client.cert_file))?;
        writeln!(out, "key_file = {}", quoted_path(&client.key_file))?;
    }
    Ok(())
}

fn bridge(out: &mut String, loaded: &Loaded) -> fmt::Result {
    let options = &loaded.config.bridge;
    writeln!(out, "\n[bridge]")?;
    writeln!(
        out,
        "enabled = {}",
        match options.enabled {
            Enabled::Auto => "\"auto\"",
            Enabled::Yes => "true",
            Enabled::No => "false",
        }
    )?;
    writeln!(out, "retain = {}", options.retain)?;
    writeln!(out, "keepalive_interval = {}", seconds(options.keepalive_interval))?;
    match &options.always_on {
        AlwaysOn::No => writeln!(out, "always_on = false")?,
        AlwaysOn::Everything => writeln!(out, "always_on = true")?,
        AlwaysOn::Only(filters) => writeln!(out, "always_on = {}", list(filters))?,
    }
    writeln!(
        out,
        "access = {}",
        match options.access {
            Access::Full => "\"full\"",
            Access::ReadOnly => "\"read-only\"",
        }
    )?;
    writeln!(out, "allow = {}", list(&options.allow))?;
    writeln!(out, "deny = {}", list(&options.deny))
}

fn devices(out: &mut String, devices: &Devices) -> fmt::Result {
    let options = &devices.options;
    writeln!(out, "\n[devices]")?;
    writeln!(out, "enabled = {}", options.enabled)?;
    writeln!(out, "strict_client_id = {}", options.strict_client_id)?;
    writeln!(
        out,
        "proxy = {}",
        match options.proxy {
            Proxy::Any => "\"any\"",
            Proxy::Own => "\"own\"",
        }
    )?;
    let span = |span: Option<Duration>| span.map_or_else(|| "0".into(), seconds);
    let off = |span: Option<Duration>| if span.is_none() { "  # off" } else { "" };
    let silence = &options.stale_after;
    if silence.types.is_empty() {
        writeln!(out, "stale_after = {}{}", span(silence.default), off(silence.default))?;
    } else {
        let types = silence.types.iter().map(|(kind, silence)| format!(", {kind} = {}", span(*silence)));
        writeln!(out, "stale_after = {{ default = {}{} }}", span(silence.default), types.collect::<String>())?;
    }
    writeln!(
        out,
        "stale = {}",
        match options.stale {
            Stale::Disconnect => "\"disconnect\"",
            Stale::Leave => "\"leave\"",
        }
    )?;
    writeln!(out, "restore_values = {}{}", span(options.restore_values), off(options.restore_values))?;
    writeln!(out, "device_instance_topic = {}", options.device_instance_topic)?;
    writeln!(out, "keepalive = {}", options.keepalive)?;
    writeln!(out, "max_devices = {}", options.max_devices)?;
    writeln!(out, "max_services = {}", options.max_services)?;
    writeln!(out, "max_services_total = {}", options.max_services_total)?;
    writeln!(out, "state_dir = {}", quoted_path(&devices.state_dir))?;
    writeln!(out, "catalogue_dir = {}", quoted_path(&devices.catalogue_dir))
}

fn http(out: &mut String, target: &HttpTarget) -> fmt::Result {
    let options = &target.options;
    writeln!(out, "\n[[http]]")?;
    writeln!(out, "name = {}", quoted(&options.name))?;
    match target.url.split_once('?') {
        // as a comment: the address alone would be taken, and be the wrong one
        Some((address, _)) => writeln!(out, "# url = {}  # what follows `?` is hidden: write the whole URL", quoted(address))?,
        None => writeln!(out, "url = {}", quoted(&target.url))?,
    }
    writeln!(out, "format = \"{}\"", options.format.name())?;
    if let Format::JsonLines(filters) = &options.format {
        writeln!(out, "filters = {}", list(filters))?;
    }
    match &target.api_key {
        Some(key) => {
            writeln!(out, "api_key_file = {}  # the API key: {key}", quoted_path(key.file()))?;
            writeln!(out, "api_key_header = {}", quoted(&target.api_key_header))?;
        }
        None => writeln!(out, "# api_key_file is not set: no key is sent")?,
    }
    writeln!(out, "timeout = {}", seconds(target.timeout))?;
    writeln!(out, "connect_timeout = {}", seconds(target.connect_timeout))?;
    writeln!(out, "update_interval = {}", seconds(options.update_interval))?;
    match &options.cerbo_serial {
        Some(serial) => writeln!(out, "cerbo_serial = {}", quoted(serial))?,
        None => writeln!(out, "# cerbo_serial is not set: it is the portal ID")?,
    }
    match &target.ca_file {
        Some(file) => writeln!(out, "ca_file = {}", quoted_path(file))?,
        None if target.url.starts_with("https:") => writeln!(out, "# ca_file is not set: the system's roots are trusted")?,
        None => {}
    }
    writeln!(out, "gzip = {}", target.gzip)?;
    writeln!(out, "catch_up_rate = {}", options.catch_up_rate)?;
    writeln!(out, "queue_records = {}", options.queue_records)?;
    writeln!(out, "queue_bytes = {}", options.queue_bytes)
}

fn seconds(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 { duration.as_secs().to_string() } else { duration.as_secs_f64().to_string() }
}

fn list(filters: &[Filter]) -> String {
    let quoted: Vec<_> = filters.iter().map(|filter| quoted(filter.as_str())).collect();
    format!("[{}]", quoted.join(", "))
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
