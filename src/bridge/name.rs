//! The names of the field, each a type that cannot hold a wrong one: portal ID, service name, type, D-Bus path. Checked and built
//! here, and nowhere else.
//!
//! What is refused here never becomes a topic, and never reaches dbus-daemon, which closes the connection over a name or path that is
//! none.

use std::borrow::Cow;
use std::fmt;

/// The bus itself.
pub const BUS: &str = "org.freedesktop.DBus";
/// The prefix that makes a bus name a Venus service.
pub const NAMESPACE: &str = "com.victronenergy.";
/// localsettings: its items come and go while it runs.
pub const SETTINGS: &str = "com.victronenergy.settings";

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
        if text.starts_with(NAMESPACE) && is_bus_name(text) { Ok(Self(text.into())) } else { Err(NameError::Service) }
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

/// Longest name on the bus, in bytes (D-Bus specification).
const NAME_MAX: usize = 255;
/// Longest path of an item, in bytes, and its most levels: several times those of any real one, and every topic of an item is one that
/// brokers take.
const PATH_MAX: usize = 255;
pub const PATH_LEVELS: usize = 64;

/// Whether `name` is a well-known name of the bus: two or more elements, none of which begins with a digit.
fn is_bus_name(name: &str) -> bool {
    let is_element = |element: &str| {
        element.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') && element.starts_with(|c: char| !c.is_ascii_digit())
    };
    name.len() <= NAME_MAX && name.contains('.') && name.split('.').all(is_element)
}

/// The name on the bus of a service of a device: `com.victronenergy.<type>.<slug>`.
pub fn device_service(service_type: &str, slug: &str) -> String {
    format!("{NAMESPACE}{service_type}.{slug}")
}

/// Whether `path` is the path of an item: a D-Bus object path below the root, at most 255 bytes and 64 levels.
pub fn is_item_path(path: &str) -> bool {
    let is_path = |rest: &str| rest.split('/').all(is_path_element) && rest.split('/').count() <= PATH_LEVELS;
    path.len() <= PATH_MAX && path.strip_prefix('/').is_some_and(is_path)
}

/// The path of an item as messages of services name it: its leading slash may be missing (older services, and keys of `GetValue`), and
/// empty levels, from a doubled slash or one at the end, are none. Whether that is a path at all is for [`is_item_path`] to say.
pub fn to_item_path(text: &str) -> Cow<'_, str> {
    let is_doubled = || text.as_bytes().windows(2).any(|pair| pair == b"//");
    if text.len() > 2 * PATH_MAX || (text.starts_with('/') && !text.ends_with('/') && !is_doubled()) {
        return text.into();
    }
    text.split('/').filter(|element| !element.is_empty()).fold(String::new(), |path, element| path + "/" + element).into()
}

/// Whether `element` is one level of a D-Bus object path.
pub fn is_path_element(element: &str) -> bool {
    !element.is_empty() && element.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether D-Bus carries `text`: any UTF-8 without a NUL.
pub fn is_bus_text(text: &str) -> bool {
    !text.contains('\0')
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
            "com.victronenergy.a.1b",
            "com.victronenergy.1a",
            "com.victronenergy.ä",
            "com.victronenergy.a\0",
            &format!("com.victronenergy.{}", "a".repeat(238)),
        ] {
            assert_eq!(of(bad), Err(NameError::Service), "{bad}");
        }
        assert!(of(&format!("com.victronenergy.{}", "a".repeat(237))).is_ok());
        assert!(of("com.victronenergy.a-b._1").is_ok());
        // the longest that a device can have
        let slug = format!("mqtt_{}_{}", "1".repeat(32), "1".repeat(32));
        assert!(of(&device_service(&"t".repeat(32), &slug)).is_ok());
    }

    #[test]
    fn portal_ids() {
        assert!(PortalId::parse("c0619ab1c2d3\n").is_ok());
        for bad in ["", "a/b", "+", "#", "a b", "\0"] {
            assert_eq!(PortalId::parse(bad), Err(NameError::PortalId), "{bad:?}");
        }
    }

    #[test]
    fn paths_as_messages_name_them() {
        for (text, path) in [
            ("/Dc/0/Voltage", "/Dc/0/Voltage"),
            ("Dc/0/Voltage", "/Dc/0/Voltage"),
            ("Temperature", "/Temperature"),
            ("//Dc//0/Voltage", "/Dc/0/Voltage"),
            ("Dc/0/Voltage/", "/Dc/0/Voltage"),
            ("/Dc/0/Voltage//", "/Dc/0/Voltage"),
            ("/a b", "/a b"),
            ("a-b", "/a-b"),
        ] {
            assert_eq!(to_item_path(text), path, "{text}");
        }
        for none in ["", "/", "//", &"/a".repeat(300), &"a/".repeat(300)] {
            assert!(!is_item_path(&to_item_path(none)), "{none}");
        }
    }

    #[test]
    fn item_paths() {
        for good in ["/Soc", "/Ac/L1/Power", "/Settings/_x/0"] {
            assert!(is_item_path(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "Soc",
            "//Soc",
            "/Soc/",
            "/a b",
            "/a+",
            "/#",
            "/ä",
            "/a\0",
            "/a-b",
            &"/a".repeat(65),
            &format!("/{}", "a".repeat(255)),
        ] {
            assert!(!is_item_path(bad), "{bad}");
        }
        assert!(is_item_path(&"/a".repeat(64)) && is_item_path(&format!("/{}", "a".repeat(254))));
    }
}
