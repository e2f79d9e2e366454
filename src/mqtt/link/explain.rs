//! Why a connection to the broker has ended, or was not made, in words.

use std::error::Error;
use std::io;

use rumqttc::{ConnectReturnCode, ConnectionError, StateError};

use super::{Broker, CONNECT_TIMEOUT};
use crate::mqtt::pipe::is_closing;
use crate::tls::words::tls_error;

/// What went wrong, and what to do about it where that is known. `was_up`: the broker had accepted the connection.
pub(super) fn explain(error: &ConnectionError, broker: &Broker, was_up: bool) -> String {
    if let Some(error) = io_error(error) {
        return match (&broker.tls, tls_error(error)) {
            (Some(tls), Some(error)) => broker.server(tls).explain(error),
            _ if is_closing(error) => closed(broker, was_up),
            _ => error.to_string(),
        };
    }
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized) => {
            let who = broker.login.as_ref().map_or("nobody (no user is configured)", |(user, _)| user.as_str());
            format!("it refuses {who}: check user and password_file")
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadClientId) => {
            format!("it refuses the client ID {}: set another client_id", broker.client_id)
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::RefusedProtocolVersion) => "it does not speak MQTT 3.1.1".into(),
        ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable) => {
            "it refuses the connection for now (return code 3, server unavailable)".into()
        }
        ConnectionError::NetworkTimeout => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        ConnectionError::FlushTimeout => format!("it takes nothing since {} s", CONNECT_TIMEOUT.as_secs()),
        ConnectionError::RequestsDone => "closed".into(),
        ConnectionError::MqttState(StateError::ConnectionAborted) => closed(broker, was_up),
        ConnectionError::NotConnAck(_) | ConnectionError::MqttState(StateError::Deserialization(_)) => {
            let hint = if was_up { "" } else { port_hint(broker) };
            format!("what answers does not speak MQTT{hint}")
        }
        error => error.to_string(),
    }
}

/// The library passes on errors of the stream in several wrappings.
fn io_error(error: &ConnectionError) -> Option<&io::Error> {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

fn closed(broker: &Broker, was_up: bool) -> String {
    if was_up {
        "it closed the connection (another client with the same client ID, or a limit of the broker: its log says why)".into()
    } else {
        format!("it closed the connection before it accepted it{}", port_hint(broker))
    }
}

pub(super) fn taken_over(broker: &Broker) -> String {
    format!(
        "it closes each connection soon after it accepted it: most likely another client uses the client ID {}, as a second venus-mqtt with this portal ID does; give one of them another `client_id` (the broker's log says more)",
        broker.client_id
    )
}

fn port_hint(broker: &Broker) -> &'static str {
    if broker.tls.is_some() { ": its log says why" } else { ": is it a port for TLS? then set `tls` or `ca_file`" }
}
