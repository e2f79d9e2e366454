//! What is said of a connection that TLS ends: for the broker and for HTTP backends, whatever the library calls it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error};

use crate::text::{escape, escape_to};

/// Most characters of the names in a certificate.
const NAMES_MAX: usize = 300;

/// The server, as the configuration names it.
pub struct Server<'a> {
    /// "broker" or "backend".
    pub role: &'static str,
    pub host: &'a str,
    /// What trusts it; `None`: the certificates of the system.
    pub ca_file: Option<&'a Path>,
    pub own: OwnCertificate,
    /// What may be wrong with the port where nobody speaks TLS.
    pub port_hint: &'a str,
}

/// Whether the client shows a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OwnCertificate {
    Shown,
    NotConfigured,
    /// There is no option for one.
    Unsupported,
}

/// The error of rustls in `error`, if TLS caused it.
pub fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

impl Server<'_> {
    /// Explains an error of the TLS library.
    pub fn explain(&self, error: &Error) -> String {
        let role = self.role;
        match error {
            Error::InvalidCertificate(error) => self.certificate(error),
            Error::AlertReceived(alert) => self.alert(*alert),
            Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => {
                format!("what answers does not speak TLS: is it {}?", self.port_hint)
            }
            Error::PeerIncompatible(why) => {
                format!("no common version or cipher of TLS with the {role}: {}; it must speak TLS 1.2 or 1.3", words(why))
            }
            Error::PeerMisbehaved(why) => format!("the {role} breaks the rules of TLS: {}", words(why)),
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
                format!("the {role} breaks the rules of TLS: an unexpected message")
            }
            Error::NoCertificatesPresented => format!("the {role} shows no certificate"),
            Error::DecryptError => format!("TLS failed: what the {role} sends cannot be decrypted"),
            Error::General(why) => format!("TLS failed: {}", escape(why)),
            error => format!("TLS failed: {}", words(error)),
        }
    }

    /// Explains a handshake that did not come to its end.
    pub fn explain_handshake(&self, error: &io::Error) -> String {
        if let Some(error) = tls_error(error) {
            return self.explain(error);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => {
                format!("the {} closed the connection during the TLS handshake: is it {}?", self.role, self.port_hint)
            }
            _ => format!("the TLS handshake failed: {}", escape(&crate::files::why(error))),
        }
    }

    fn certificate(&self, error: &CertificateError) -> String {
        let role = self.role;
        match error {
            CertificateError::ExpiredContext { time, not_after } => {
                format!("the certificate expired on {}, or the clock is wrong: here it is {}", day(*not_after), day(*time))
            }
            CertificateError::Expired => "the certificate has expired, or the clock is wrong".into(),
            CertificateError::NotValidYetContext { time, not_before } => {
                format!("the certificate is not valid before {}, or the clock is wrong: here it is {}", day(*not_before), day(*time))
            }
            CertificateError::NotValidYet => "the certificate is not valid yet, or the clock is wrong".into(),
            CertificateError::UnknownIssuer => match self.ca_file {
                Some(file) => format!(
                    "the certificate is not trusted: the {role}'s certificate is not the one in {}, nor signed by it; if it was replaced, put the new one there",
                    escape(&file.display().to_string())
                ),
                None => format!(
                    "the certificate is not trusted: its issuer is unknown; name the CA's certificate, or the {role}'s own, with `ca_file`"
                ),
            },
            CertificateError::NotValidForNameContext { expected, presented } => {
                let dns_names = || presented.iter().filter_map(|name| dns_name(name));
                let address = match expected {
                    ServerName::IpAddress(address) => Some(IpAddr::from(*address)),
                    _ => None,
                };
                let but = match address.filter(|address| dns_names().any(|name| name.parse() == Ok(*address))) {
                    Some(address) => format!("which stands there as a DNS name: an address needs an IP entry (subjectAltName=IP:{address})"),
                    None => {
                        let names: Vec<_> = presented.iter().filter_map(|name| dns_name(name).or_else(|| ip_address(name))).collect();
                        match names.is_empty() {
                            true => "and names no host: subjectAltName has no DNS name and no IP address".into(),
                            false => format!("but for {}", escape_to(&names.join(", "), NAMES_MAX)),
                        }
                    }
                };
                let host = self.host;
                format!("the certificate is not for {host}, {but}; to accept this very certificate under any name, put it into `ca_file`")
            }
            CertificateError::NotValidForName => format!("the certificate is not for {}", self.host),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "the certificate is not for servers: its extended key usage lacks serverAuth".into()
            }
            CertificateError::BadSignature => format!(
                "a signature is wrong: the {role} does not have the key of the certificate, the certificate was altered, or its RSA key has less than 2,048 bits"
            ),
            CertificateError::BadEncoding => "the certificate is malformed".into(),
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                "the certificate has a signature or a key of a kind that is not supported: make one with RSA (2,048 bits or more), ECDSA or Ed25519, and SHA-256 or better".into()
            }
            error => {
                let kind = match reason(error).as_str() {
                    // what `openssl req -x509` makes, and the certificate of a GX
                    "ca used as end entity" => "one of a CA",
                    "unsupported cert version" => "one of X.509 version 1",
                    other => return format!("the certificate cannot be used: {other}"),
                };
                match self.ca_file {
                    Some(file) => format!(
                        "the certificate is not trusted: the {role}'s certificate is not the one in {}, and {kind}, which is accepted only if it is that one; if it was replaced, put the new one there",
                        escape(&file.display().to_string())
                    ),
                    None => format!(
                        "the certificate is not trusted: it is {kind}, which is accepted only if it is in `ca_file`: put the {role}'s certificate there"
                    ),
                }
            }
        }
    }

    fn alert(&self, alert: AlertDescription) -> String {
        use AlertDescription as Alert;
        let role = self.role;
        match alert {
            Alert::ProtocolVersion => format!("the {role} refuses TLS 1.2 and 1.3: it speaks older or other versions only"),
            Alert::CertificateRequired => match self.own {
                OwnCertificate::Unsupported => format!("the {role} wants a client certificate, and an API key is all that there can be"),
                _ => format!("the {role} wants a client certificate: name one with `cert_file` and `key_file`"),
            },
            Alert::HandshakeFailure | Alert::InsufficientSecurity => {
                let wants = match self.own {
                    OwnCertificate::NotConfigured => "it wants a client certificate (`cert_file`, `key_file`), ",
                    OwnCertificate::Unsupported => "it wants a client certificate, ",
                    OwnCertificate::Shown => "it ",
                };
                format!(
                    "the {role} refused the TLS handshake: {wants}knows no cipher of ours, or has a certificate of a kind that is not supported (RSA, ECDSA P-256, P-384, Ed25519 are)"
                )
            }
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
                if self.own == OwnCertificate::Shown =>
            {
                let hint = match alert {
                    Alert::UnknownCA => ": its CA must be one that the server trusts",
                    Alert::CertificateExpired => ": it has expired, or a clock is wrong",
                    Alert::CertificateRevoked => ": it has been revoked",
                    _ => "",
                };
                format!("the {role} refuses the client certificate in `cert_file`{hint}; TLS alert: {}", alert_name(alert))
            }
            Alert::UnrecognisedName => format!("the {role} does not know the name {}: it has no certificate for it", self.host),
            alert => format!("the {role} refused TLS; TLS alert: {}", alert_name(alert)),
        }
    }
}

fn alert_name(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::Unknown(number) => format!("number {number}"),
        alert => words(&alert),
    }
}

/// What is wrong with a certificate, in words.
pub(super) fn reason(error: &CertificateError) -> String {
    match error {
        CertificateError::Other(other) => words(&other.0),
        error => words(error),
    }
}

/// The name of a variant in words: `NoCipherSuitesInCommon` becomes "no cipher suites in common".
pub(super) fn words(variant: &dyn fmt::Debug) -> String {
    let text = format!("{variant:?}");
    let name = text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let mut words = String::with_capacity(name.len() + 8);
    let mut before_is_capital = true;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !before_is_capital {
            words.push(' ');
        }
        before_is_capital = letter.is_ascii_uppercase();
        words.push(letter.to_ascii_lowercase());
    }
    words
}

/// The name in `DnsName("a.test")`. What else rustls names is an IP address, or of a kind that no host has: an e-mail address, a URI.
fn dns_name(presented: &str) -> Option<&str> {
    presented.strip_prefix("DnsName(\"")?.strip_suffix("\")")
}

/// The address in `IpAddress(192.0.2.1)`.
fn ip_address(presented: &str) -> Option<&str> {
    presented.strip_prefix("IpAddress(")?.strip_suffix(')')
}

fn day(time: UnixTime) -> String {
    let time = i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "?".into(), |time| time.strftime("%F").to_string())
}
