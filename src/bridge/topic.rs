//! Topics, parsed and printed. Printing is injective: no two items share a topic, because a type is a word of a bus name, an
//! instance holds no slash, and a path is a D-Bus object path.

use super::name::PortalId;

/// What a client can be talking about: `type/instance/path`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address<'a> {
    pub service_type: &'a str,
    pub instance: &'a str,
    /// Begins with a slash; `/` alone is the service itself.
    pub path: &'a str,
}

impl<'a> Address<'a> {
    /// `rest` is what stands behind the portal ID.
    fn parse(rest: &'a str) -> Option<Self> {
        let (service_type, rest) = rest.split_once('/')?;
        let (instance, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
        (!service_type.is_empty() && !instance.is_empty()).then_some(Self {
            service_type,
            instance,
            path: if path.is_empty() { "/" } else { path },
        })
    }
}

/// A topic the bridge has subscribed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// `R/<portal ID>/keepalive`
    KeepAlive,
    /// `R/<portal ID>/system/0/Serial`, the keep-alive of old
    SerialKeepAlive,
    Read(Address<'a>),
    Write(Address<'a>),
    /// `N/<portal ID>/…`: what stands behind the portal ID
    Notification(&'a str),
    /// Another portal ID, or not one of our topics at all
    Foreign,
}

/// Where everything of one portal ID lives, behind one prefix.
#[derive(Debug)]
pub struct Topics {
    /// Empty, or ends with a slash.
    prefix: Box<str>,
    portal: PortalId,
}

impl Topics {
    pub fn new(prefix: &str, portal: PortalId) -> Self {
        Self { prefix: prefix.into(), portal }
    }

    pub fn portal(&self) -> &PortalId {
        &self.portal
    }

    pub fn parse<'a>(&self, topic: &'a str) -> Incoming<'a> {
        let parts = topic.strip_prefix(&*self.prefix).and_then(|rest| rest.split_once('/'));
        let behind = parts.and_then(|(letter, rest)| Some((letter, rest.strip_prefix(self.portal.as_str())?.strip_prefix('/')?)));
        match behind {
            Some(("R", "keepalive")) => Incoming::KeepAlive,
            Some(("R", "system/0/Serial")) => Incoming::SerialKeepAlive,
            Some(("R", rest)) => Address::parse(rest).map_or(Incoming::Foreign, Incoming::Read),
            Some(("W", rest)) => Address::parse(rest).map_or(Incoming::Foreign, Incoming::Write),
            Some(("N", rest)) => Incoming::Notification(rest),
            _ => Incoming::Foreign,
        }
    }

    /// `N/<portal ID>/<rest>`
    pub fn notification(&self, rest: &str) -> String {
        format!("{}N/{}/{rest}", self.prefix, self.portal)
    }

    /// `R/<portal ID>/<rest>` and `W/<portal ID>/<rest>`
    pub fn request(&self, letter: char, rest: &str) -> String {
        format!("{}{letter}/{}/{rest}", self.prefix, self.portal)
    }

    /// `venus-mqtt/<portal ID>/<rest>`
    pub fn own(&self, rest: &str) -> String {
        format!("{}venus-mqtt/{}/{rest}", self.prefix, self.portal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(prefix: &str) -> Topics {
        Topics::new(prefix, PortalId::parse("c0619ab1c2d3").unwrap())
    }

    fn address<'a>(service_type: &'a str, instance: &'a str, path: &'a str) -> Address<'a> {
        Address { service_type, instance, path }
    }

    #[test]
    fn parses() {
        for (topic, expected) in [
            ("R/c0619ab1c2d3/keepalive", Incoming::KeepAlive),
            ("R/c0619ab1c2d3/system/0/Serial", Incoming::SerialKeepAlive),
            ("R/c0619ab1c2d3/vebus/257/Ac/Out/P", Incoming::Read(address("vebus", "257", "/Ac/Out/P"))),
            ("R/c0619ab1c2d3/vebus/257", Incoming::Read(address("vebus", "257", "/"))),
            ("R/c0619ab1c2d3/vebus/257/", Incoming::Read(address("vebus", "257", "/"))),
            ("R/c0619ab1c2d3/vebus/257/Dc/", Incoming::Read(address("vebus", "257", "/Dc"))),
            ("W/c0619ab1c2d3/hub4/0/AcPowerSetpoint", Incoming::Write(address("hub4", "0", "/AcPowerSetpoint"))),
            ("W/c0619ab1c2d3/keepalive", Incoming::Foreign),
            ("N/c0619ab1c2d3/heartbeat", Incoming::Notification("heartbeat")),
            ("R/c0619ab1c2d4/keepalive", Incoming::Foreign),
            ("R/c0619ab1c2d3x/keepalive", Incoming::Foreign),
            ("R/c0619ab1c2d3", Incoming::Foreign),
            ("R/c0619ab1c2d3/vebus", Incoming::Foreign),
            ("R/c0619ab1c2d3//257/Mode", Incoming::Foreign),
            ("X/c0619ab1c2d3/keepalive", Incoming::Foreign),
            ("", Incoming::Foreign),
        ] {
            assert_eq!(topics("").parse(topic), expected, "{topic}");
        }
        assert_eq!(topics("boat1/").parse("boat1/R/c0619ab1c2d3/keepalive"), Incoming::KeepAlive);
        assert_eq!(topics("boat1/").parse("R/c0619ab1c2d3/keepalive"), Incoming::Foreign);
    }

    #[test]
    fn prints() {
        assert_eq!(topics("boat1/").notification("heartbeat"), "boat1/N/c0619ab1c2d3/heartbeat");
        assert_eq!(topics("").request('W', "#"), "W/c0619ab1c2d3/#");
        assert_eq!(topics("").own("status"), "venus-mqtt/c0619ab1c2d3/status");
    }
}
