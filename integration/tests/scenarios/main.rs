//! What venus-mqtt promises, on a real bus and a real broker. One file for each part of the contract.
//!
//! Every scenario has parts of its own and can run beside all the others. Those in a `both!` run as processes and, when asked for
//! (`integration/test --containers`), as containers: the same lines, started differently.

#![forbid(unsafe_code)]

/// A scenario that runs both ways.
macro_rules! both {
    ($(#[$doc:meta])* fn $name:ident($rig:ident in $setup:expr) $body:block) => {
        $(#[$doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn scenario(mut $rig: venus_mqtt_integration::Rig) {
                // not every scenario stops a part
                let _ = &mut $rig;
                $body
            }

            #[test]
            fn processes() {
                scenario(venus_mqtt_integration::Rig::new($setup));
            }

            #[test]
            #[ignore = "needs a container engine and the image: integration/test --containers"]
            fn containers() {
                scenario(venus_mqtt_integration::Rig::in_containers($setup));
            }
        }
    };
}

mod bus_addresses;
mod calls;
mod demo;
mod devices;
mod discovery;
mod flashmq;
mod harness;
mod http;
mod keepalive;
mod link;
mod localsettings;
mod notifications;
mod outages;
mod process;
mod requests;
mod retained;
mod signals;
mod supervised;
mod texts;
mod values;
mod writes;

use venus_mqtt_integration::{Items, item, items};

/// A battery, instance 512, that most scenarios are content with.
const BATTERY: &str = "com.victronenergy.battery.ttyO1";
/// A second service, to see that it is left in peace.
const TANK: &str = "com.victronenergy.tank.builtin_1";

fn battery() -> Items {
    items([("/DeviceInstance", item(512)), ("/Soc", item(87.0)), ("/Dc/0/Voltage", item(26.4)), ("/Dc/0/Current", item(-3.5))])
}

fn tank() -> Items {
    items([("/DeviceInstance", item(3)), ("/Level", item(0.5))])
}
