//! The names of the field, each a type that cannot hold a wrong one: portal ID, service name, type, D-Bus path.
//!
//! What is refused here never becomes a topic: everything that passes is free of `+`, `#` and NUL.

use std::fmt;

/// The bus itself.
pub const BUS: &str = "org.freedesktop.DBus";
/// The prefix that makes a bus name a Venus service.
pub const NAMESPACE: &str = "com.victronenergy.";

/// The identifier of a GX device, one level of every topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortalId(Box<str>);

impl PortalId {
    /// Most devices have the twelve hex digits of a MAC address; any single topic level of up to 64 characters is taken.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.trim();
        if text.is_empty() || text.len() > 64 || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b)) {
            return Err(NameError::PortalId);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PortalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The well-known name of a Venus service: `com.victronenergy.<type>[.<suffix>]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceName(Box<str>);

impl ServiceName {
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let rest = text.strip_prefix(NAMESPACE).ok_or(NameError::Service)?;
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if text.len() > 255 || !rest.split('.').all(word) {
            return Err(NameError::Service);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The third part of the name: `battery` of `com.victronenergy.battery.ttyO1`.
    pub fn service_type(&self) -> &str {
        self.0.strip_prefix(NAMESPACE).and_then(|rest| rest.split('.').next()).unwrap_or_default()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `path` is the path of an item: a D-Bus object path below the root, at most 255 bytes.
pub fn is_item_path(path: &str) -> bool {
    path.len() <= 255
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    PortalId,
    Service,
}

impl std::error::Error for NameError {}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortalId => "a portal ID is 1 to 64 letters and digits (usually 12 hex digits, such as c0619ab1c2d3)",
            Self::Service => "not a name of the form com.victronenergy.<type>[.<suffix>]",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_types() {
        let of = |name: &str| ServiceName::parse(name).map(|n| n.service_type().to_owned());
        assert_eq!(of("com.victronenergy.battery.ttyO1"), Ok("battery".into()));
        assert_eq!(of("com.victronenergy.system"), Ok("system".into()));
        assert_eq!(of("com.victronenergy.vecan.can0.more"), Ok("vecan".into()));
        for bad in [
            "com.victronenergy.",
            "com.victronenergy",
            "org.freedesktop.DBus",
            ":1.4",
            "com.victronenergy.a..b",
            "com.victronenergy.a/b",
            "com.victronenergy.#",
        ] {
            assert_eq!(of(bad), Err(NameError::Service), "{bad}");
        }
    }

    #[test]
    fn portal_ids() {
        assert!(PortalId::parse("c0619ab1c2d3\n").is_ok());
        for bad in ["", "a/b", "+", "#", "a b", "\0"] {
            assert_eq!(PortalId::parse(bad), Err(NameError::PortalId), "{bad:?}");
        }
    }

    #[test]
    fn item_paths() {
        for good in ["/Soc", "/Ac/L1/Power", "/Settings/_x/0"] {
            assert!(is_item_path(good), "{good}");
        }
        for bad in ["", "/", "Soc", "//Soc", "/Soc/", "/a b", "/a+", "/#", "/ä"] {
            assert!(!is_item_path(bad), "{bad}");
        }
    }
}
