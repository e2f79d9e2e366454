//! Whom the configuration means: the bus and the broker. For the daemon, and for commands that only have a look.

use crate::bridge::name::PortalId;
use crate::config::{BusAddress, Config};
use crate::mqtt::link::Broker;
use crate::tls;

/// The address of the bus, as zbus writes it.
pub(super) fn bus_address(address: &BusAddress) -> Result<String, String> {
    let session_is_named = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some_and(|address| !address.is_empty());
    let known = match address {
        BusAddress::Address(address) => return Ok(address.clone()),
        BusAddress::Session => zbus::Address::session(),
        BusAddress::Auto if session_is_named => zbus::Address::session(),
        BusAddress::Auto | BusAddress::System => zbus::Address::system(),
    };
    known
        .map(|address| address.to_string())
        .map_err(|error| format!("the address of the {address} bus in the environment is none: {error}"))
}

/// The broker, and who we are there.
pub(super) fn broker(config: &Config, portal: &PortalId) -> Result<Broker, String> {
    let mqtt = &config.mqtt;
    let tls = mqtt.tls.as_ref().map(tls::client_config).transpose().map_err(|error| error.to_string())?;
    let password = mqtt.password.as_ref().map(|secret| secret.reveal().to_owned());
    Ok(Broker {
        host: mqtt.host.clone(),
        port: mqtt.port,
        client_id: mqtt.client_id.clone().unwrap_or_else(|| format!("venus-mqtt-{portal}")),
        login: mqtt.user.clone().map(|user| (user, password)),
        keep_alive: mqtt.keep_alive,
        tls,
        will: Some((status_topic(config, portal), "offline")),
    })
}

/// Where the broker knows whether a daemon is there.
pub(super) fn status_topic(config: &Config, portal: &PortalId) -> String {
    format!("{}venus-mqtt/{portal}/status", config.mqtt.prefix)
}
