//! What is never published, what is shown masked, and what may be written.

use super::filter::Filter;
use super::options::{Access, Options};
use super::topic::Address;

/// What stands for a secret.
pub const MASK: &str = "******";

/// Items that are never published: a tunnel of raw frames, and a threshold that unlocks a device.
pub fn is_blocked(service_type: &str, path: &str) -> bool {
    matches!((service_type, path), ("vebus", "/Interfaces/Mk2/Tunnel") | ("paygo", "/LVD/Threshold"))
}

/// Items whose value is a secret.
pub fn is_masked(service_type: &str, path: &str) -> bool {
    service_type == "settings" && matches!(path, "/Settings/Services/AccessPointPassword" | "/Settings/Ble/Service/Pincode")
}

/// The rules for writes.
#[derive(Debug)]
pub struct Rules {
    access: Access,
    allow: Vec<Filter>,
    deny: Vec<Filter>,
}

impl Rules {
    pub fn new(options: &Options) -> Self {
        Self { access: options.access, allow: options.allow.clone(), deny: options.deny.clone() }
    }

    /// Deny wins; a list of what is allowed, where there is one, is all that is allowed.
    pub fn may_write(&self, address: &Address<'_>) -> bool {
        let taken_by = |filter: &Filter| filter.matches(address.service_type, address.instance, address.path);
        let allowed = match (self.allow.is_empty(), self.access) {
            (false, _) => self.allow.iter().any(taken_by),
            (true, Access::Full) => true,
            (true, Access::ReadOnly) => false,
        };
        allowed && !always_denied(address) && !self.deny.iter().any(taken_by)
    }
}

/// The keys of the device itself: nobody hands them out over MQTT.
fn always_denied(address: &Address<'_>) -> bool {
    match address.service_type {
        "platform" => address.path == "/Security/Api" || address.path.starts_with("/Security/Api/"),
        "settings" => address.path == "/Settings/System/SecurityProfile",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let filters = |list: &[&str]| list.iter().map(|f| Filter::parse(f).unwrap()).collect::<Vec<_>>();
        let rules = |access, allow: &[&str], deny: &[&str]| {
            Rules::new(&Options { access, allow: filters(allow), deny: filters(deny), ..Options::default() })
        };
        let address = |path: &'static str| {
            let (service_type, rest) = path.split_once('/').unwrap();
            let slash = rest.find('/').unwrap();
            Address { service_type, instance: &rest[..slash], path: &rest[slash..] }
        };
        let full = rules(Access::Full, &[], &["vebus/+/Mode"]);
        for (path, expected) in [
            ("vebus/257/Mode", false),
            ("vebus/257/Hub4/L1/AcPowerSetpoint", true),
            ("platform/0/Security/Api/Key", false),
            ("platform/0/Security/Api", false),
            ("platform/0/Security/ApiX", true),
            ("settings/0/Settings/System/SecurityProfile", false),
            ("settings/1/Settings/System/SecurityProfile", false),
        ] {
            assert_eq!(full.may_write(&address(path)), expected, "{path}");
        }
        assert!(!rules(Access::ReadOnly, &[], &[]).may_write(&address("vebus/257/Mode")));
        let list = rules(Access::ReadOnly, &["vebus/#"], &["vebus/+/Mode"]);
        assert!(
            list.may_write(&address("vebus/257/X")) && !list.may_write(&address("vebus/257/Mode")) && !list.may_write(&address("tank/3/X"))
        );
        assert!(
            !rules(Access::Full, &["vebus/#"], &[]).may_write(&address("tank/3/X")),
            "a list of what is allowed is all that is allowed"
        );
        assert!(!rules(Access::Full, &["#"], &[]).may_write(&address("platform/0/Security/Api/Key")));
    }
}
