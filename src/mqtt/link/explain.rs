//! Why a connection to the broker has ended, or was not made, in words.

use std::error::Error;
use std::fmt;
use std::io;

use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{ConnectReturnCode, ConnectionError, ProtocolViolation, StateError};

use super::{Broker, CONNECT_TIMEOUT};
use crate::files::why;
use crate::mqtt::pipe::is_closing;
use crate::tls::words::tls_error;

/// What went wrong, and what to do about it where that is known. `was_up`: the broker had accepted the connection.
pub(super) fn explain(error: &ConnectionError, broker: &Broker, was_up: bool) -> String {
    if ends_within_packet(error) {
        return if was_up { closed(broker, was_up) } else { no_mqtt(broker) };
    }
    if let Some(error) = io_error(error) {
        return match (&broker.tls, tls_error(error)) {
            (Some(tls), Some(error)) => broker.server(tls).explain(error),
            _ if is_closing(error) || error.kind() == io::ErrorKind::WriteZero => closed(broker, was_up),
            _ => io_failure(error, broker),
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
        ConnectionError::FlushTimeout => format!("it took nothing for {} s", CONNECT_TIMEOUT.as_secs()),
        ConnectionError::DisconnectTimeout => "it did not take the last messages in time".into(),
        ConnectionError::RequestsDone => "closed".into(),
        ConnectionError::SessionStateMismatch { .. } => breach(&"a session from before, where a clean one was asked for"),
        ConnectionError::NotConnAck(_) => no_mqtt(broker),
        ConnectionError::MqttState(error) => explain_state(error, broker, was_up),
        error => unexpected(error),
    }
}

fn explain_state(error: &StateError, broker: &Broker, was_up: bool) -> String {
    match error {
        StateError::ConnectionAborted => closed(broker, was_up),
        StateError::AwaitPingResp | StateError::CollisionTimeout => "it does not answer any more".into(),
        StateError::Deserialization(PacketError::InvalidConnectReturnCode(code)) => {
            format!("it refuses the connection with return code {code}, which MQTT 3.1.1 does not have: its log says why")
        }
        // ours
        StateError::Deserialization(error @ (PacketError::OutgoingPacketTooLarge { .. } | PacketError::PayloadTooLong)) => {
            format!("a packet cannot be sent to it: {}", lower(error))
        }
        StateError::Deserialization(_) if !was_up => no_mqtt(broker),
        StateError::Deserialization(error) => breach(&lower(error)),
        StateError::Unsolicited(packet) => breach(&format_args!("an answer with packet ID {packet}, which nothing was sent with")),
        StateError::ProtocolViolation(ProtocolViolation::DuplicateConnAck) => breach(&"a second CONNACK"),
        StateError::ProtocolViolation(ProtocolViolation::UnexpectedIncomingPacket(kind)) => {
            breach(&format_args!("a packet that servers do not send ({})", format!("{kind:?}").to_uppercase()))
        }
        StateError::ProtocolViolation(ProtocolViolation::SubAckReturnCodeCountMismatch { expected, actual, .. }) => {
            breach(&format_args!("a SUBACK with {actual} return codes for {expected} filters"))
        }
        error => unexpected(error),
    }
}

/// Whether the connection was closed in the middle of a packet: the codec has no error of its own for it.
fn ends_within_packet(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::MqttState(StateError::Deserialization(PacketError::Io(error))) => {
            error.kind() == io::ErrorKind::Other && tls_error(error).is_none()
        }
        _ => false,
    }
}

fn io_failure(error: &io::Error, broker: &Broker) -> String {
    let text = why(error);
    match text.strip_prefix("failed to lookup address information: ") {
        Some(reason) => format!("{} was not found: {reason}", broker.host),
        None if error.raw_os_error().is_some() => text,
        // in our own words
        None => error.to_string(),
    }
}

fn breach(what: &dyn fmt::Display) -> String {
    format!("it breaks the rules of MQTT 3.1.1: {what}")
}

/// An error of ours, or one that the library has got since.
fn unexpected(error: &dyn fmt::Display) -> String {
    format!("the MQTT client failed: {}", lower(error))
}

fn lower(error: &dyn fmt::Display) -> String {
    error.to_string().to_lowercase()
}

fn no_mqtt(broker: &Broker) -> String {
    let port = broker.port;
    match broker.tls {
        Some(_) => format!("what answers does not speak MQTT: is {port} its port for MQTT with TLS (8883 at most brokers)?"),
        None => format!(
            "what answers does not speak MQTT: is {port} its port for MQTT (1883 at most brokers)? if it is one for TLS, set `tls` or `ca_file`"
        ),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rumqttc::PacketType;

    use super::*;

    fn broker() -> Broker {
        let (host, client_id) = ("b.test".into(), "c".into());
        Broker { host, port: 80, client_id, login: None, keep_alive: Duration::from_secs(20), tls: None, will: None }
    }

    fn packet(error: PacketError) -> ConnectionError {
        ConnectionError::MqttState(StateError::Deserialization(error))
    }

    const NO_MQTT: &str =
        "what answers does not speak MQTT: is 80 its port for MQTT (1883 at most brokers)? if it is one for TLS, set `tls` or `ca_file`";
    const CLOSED: &str = "it closed the connection (another client with the same client ID, or a limit of the broker: its log says why)";
    const CLOSED_EARLY: &str = "it closed the connection before it accepted it: is it a port for TLS? then set `tls` or `ca_file`";

    /// What comes before the broker has accepted the connection, and after it.
    #[test]
    fn errors_of_packets() {
        // as the codec has it when the connection ends within a packet
        let cut = || packet(io::Error::other("bytes remaining on stream").into());
        assert_eq!((explain(&cut(), &broker(), false), explain(&cut(), &broker(), true)), (NO_MQTT.into(), CLOSED.into()));
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof, io::ErrorKind::WriteZero] {
            let closed = || packet(io::Error::from(kind).into());
            assert_eq!((explain(&closed(), &broker(), false), explain(&closed(), &broker(), true)), (CLOSED_EARLY.into(), CLOSED.into()));
        }
        for (error, up) in [
            (PacketError::MalformedPacket, "it breaks the rules of MQTT 3.1.1: malformed packet"),
            (PacketError::InvalidQoS(3), "it breaks the rules of MQTT 3.1.1: invalid qos level: 3"),
            (PacketError::PayloadSizeIncorrect, "it breaks the rules of MQTT 3.1.1: payload size is incorrect"),
            (PacketError::PayloadSizeLimitExceeded(300_000), "it breaks the rules of MQTT 3.1.1: payload size limit exceeded: 300000"),
        ] {
            let error = packet(error);
            assert_eq!((explain(&error, &broker(), false), explain(&error, &broker(), true)), (NO_MQTT.into(), up.into()));
        }
        let code = explain(&packet(PacketError::InvalidConnectReturnCode(135)), &broker(), false);
        assert_eq!(code, "it refuses the connection with return code 135, which MQTT 3.1.1 does not have: its log says why");
    }

    #[test]
    fn errors_of_the_session() {
        let state = ConnectionError::MqttState;
        let violation = |violation| ConnectionError::MqttState(StateError::ProtocolViolation(violation));
        for (error, expected) in [
            (ConnectionError::FlushTimeout, "it took nothing for 30 s"),
            (ConnectionError::DisconnectTimeout, "it did not take the last messages in time"),
            (
                ConnectionError::SessionStateMismatch { clean_session: true, session_present: true },
                "it breaks the rules of MQTT 3.1.1: a session from before, where a clean one was asked for",
            ),
            (state(StateError::AwaitPingResp), "it does not answer any more"),
            (state(StateError::CollisionTimeout), "it does not answer any more"),
            (
                state(StateError::Unsolicited(7)),
                "it breaks the rules of MQTT 3.1.1: an answer with packet ID 7, which nothing was sent with",
            ),
            (violation(ProtocolViolation::DuplicateConnAck), "it breaks the rules of MQTT 3.1.1: a second CONNACK"),
            (
                violation(ProtocolViolation::UnexpectedIncomingPacket(PacketType::Subscribe)),
                "it breaks the rules of MQTT 3.1.1: a packet that servers do not send (SUBSCRIBE)",
            ),
            (
                violation(ProtocolViolation::SubAckReturnCodeCountMismatch { pkid: 1, expected: 2, actual: 1 }),
                "it breaks the rules of MQTT 3.1.1: a SUBACK with 1 return codes for 2 filters",
            ),
            (state(StateError::InvalidState), "the MQTT client failed: invalid state for a given operation"),
            (
                packet(PacketError::OutgoingPacketTooLarge { pkt_size: 9, max: 8 }),
                "a packet cannot be sent to it: cannot send packet of size '9'. it's greater than the broker's maximum packet size of: '8'",
            ),
        ] {
            assert_eq!(explain(&error, &broker(), true), expected);
        }
    }

    #[test]
    fn errors_of_the_network() {
        for (error, expected) in [
            (io::Error::from_raw_os_error(nix::libc::ECONNREFUSED), "connection refused"),
            (io::Error::from_raw_os_error(nix::libc::EHOSTUNREACH), "no route to host"),
            (
                io::Error::other("failed to lookup address information: Name or service not known"),
                "b.test was not found: name or service not known",
            ),
            (io::Error::new(io::ErrorKind::NotFound, "the host name has no address"), "the host name has no address"),
            (io::Error::new(io::ErrorKind::TimedOut, "no PINGRESP"), "no PINGRESP"),
        ] {
            assert_eq!(explain(&ConnectionError::Io(error), &broker(), false), expected);
        }
    }
}
