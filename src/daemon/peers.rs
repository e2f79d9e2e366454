//! Whom the configuration means: the bus and the broker. For the daemon, and for commands that only have a look.

use crate::bridge::name::PortalId;
use crate::bridge::topic::Topics;
use crate::config::{self, BusAddress, Config};
use crate::dbus_address::Addresses;
use crate::mqtt::link::{Broker, BrokerTls};
use crate::tls;
use crate::tls::words::OwnCertificate;

/// The addresses of the bus; fails where the environment has one that is not understood.
pub(crate) fn bus_address(address: &BusAddress) -> Result<Addresses, String> {
    let session_is_named = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some_and(|address| !address.is_empty());
    match address {
        BusAddress::Address(addresses) => Ok(addresses.clone()),
        BusAddress::Session => Addresses::session(),
        BusAddress::Auto if session_is_named => Addresses::session(),
        BusAddress::Auto | BusAddress::System => Addresses::system(),
    }
}

/// The broker, and who we are there.
pub(super) fn broker(config: &Config, portal: &PortalId) -> Result<Broker, String> {
    let mqtt = &config.mqtt;
    let secured = |options: &config::Tls| -> Result<BrokerTls, String> {
        let config = tls::client_config(options).map_err(|error| error.to_string())?;
        let own = if options.client.is_some() { OwnCertificate::Shown } else { OwnCertificate::NotConfigured };
        Ok(BrokerTls { config, ca_file: options.ca_file.clone(), own })
    };
    let tls = mqtt.tls.as_ref().map(secured).transpose()?;
    let password = mqtt.password.as_ref().map(|secret| secret.reveal().to_owned());
    Ok(Broker {
        host: mqtt.host.clone(),
        port: mqtt.port,
        client_id: mqtt.client_id.clone().unwrap_or_else(|| format!("venus-mqtt-{portal}")),
        login: mqtt.user.clone().map(|user| (user, password)),
        keep_alive: mqtt.keep_alive,
        tls,
        will: Some((topics(config, portal).own("status"), "offline")),
    })
}

/// The topics of this daemon; `status` among its own is where the broker knows whether it is there.
pub(super) fn topics(config: &Config, portal: &PortalId) -> Topics {
    Topics::new(&config.mqtt.prefix, portal.clone())
}
