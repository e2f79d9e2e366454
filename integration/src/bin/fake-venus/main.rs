//! Fake `com.victronenergy.*` services: one process, any number of services, each on a connection of its own.
//!
//! What it promises: it answers as velib's, veutil's and older services do, says nothing it was not told to say, and is told what to
//! do over the bus itself (`org.venusmqtt.Fake` on `/`), so that it is the same to a scenario in a process and in a container.
//!
//!     fake-venus --dbus unix:path=/tmp/rig/bus
//!
//! | method of `org.venusmqtt.Fake` | does |
//! |---|---|
//! | `AddService(s handle, s style, a{sa{sv}} items)` | a new connection; the name is the handle up to a `#`, so that two owners can follow each other |
//! | `AddHidden(s handle, a{sa{sv}} items)` | items that `GetValue` knows and `GetItems` does not |
//! | `RemoveService(s handle)` | closes its connection |
//! | `Rename(s handle, s name, b own)` | takes or gives up one more name on the same connection |
//! | `Change(s handle, s how, a{sa{sv}} entries)` | `items`: one ItemsChanged; `properties`: a PropertiesChanged each; `store`: no signal; `signal`: ItemsChanged, nothing stored |
//! | `Raw(s handle, s path, s member, v body)` | any signal with any body |
//! | `Flood(s handle, as paths, u signals, u every_us)` | that many ItemsChanged of all these paths, each counting up by one |
//! | `Behave(s handle, s what, s mode)` | see [`service::Service`] |
//! | `Release(s handle) → u` | answers the calls that were held, in order |
//! | `Calls(s handle) → a(sssv)` | what was called so far: path, interface (may be empty), member, the value of a SetValue |
//! | `Owner(s handle) → s` | the unique name of its connection |
//!
//! One loop owns everything; the connections' readers only forward.

#![forbid(unsafe_code)]

mod control;
mod service;

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use anyhow::{Context, Result, bail};
use futures_core::Stream;
use tokio::sync::mpsc::{self, UnboundedSender};
use zbus::{Connection, Message, MessageStream, connection, message::Type};

use service::Service;

/// What reaches the loop.
pub enum Event {
    Message { handle: String, message: Message },
    Closed { handle: String },
    Flood { handle: String, paths: Vec<String> },
}

/// The handle of the connection the orders come in on.
const CONTROL: &str = "";

/// Everything there is.
pub struct House {
    address: String,
    events: UnboundedSender<Event>,
    control: Connection,
    services: BTreeMap<String, Service>,
}

fn main() -> Result<()> {
    let address = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [flag, address] if flag == "--dbus" => address.clone(),
        _ => bail!("usage: fake-venus --dbus ADDRESS"),
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(address))
}

async fn run(address: String) -> Result<()> {
    let (events, mut inbox) = mpsc::unbounded_channel();
    let control = connect(&address, CONTROL, &events).await?;
    let mut house = House { address, events, control, services: BTreeMap::new() };
    own(&house.control, "org.venusmqtt.Fake", 4).await?;
    while let Some(event) = inbox.recv().await {
        match event {
            Event::Message { handle, message } if handle == CONTROL => {
                if message.message_type() == Type::MethodCall {
                    control::obey(&mut house, &message).await?;
                }
            }
            Event::Message { handle, message } => {
                if message.message_type() == Type::MethodCall
                    && let Some(service) = house.services.get_mut(&handle)
                    && service.called(&message).await?.is_none()
                {
                    house.services.remove(&handle);
                }
            }
            Event::Closed { handle } if handle == CONTROL => bail!("the bus is gone"),
            // a service that was removed, or that died as it was told to
            Event::Closed { .. } => {}
            Event::Flood { handle, paths } => {
                if let Some(service) = house.services.get_mut(&handle) {
                    service.count_up(&paths).await?;
                }
            }
        }
    }
    Ok(())
}

impl House {
    pub async fn connect(&self, handle: &str) -> Result<Connection> {
        connect(&self.address, handle, &self.events).await
    }

    /// Sends `signals` events to the loop, one each interval.
    pub fn flood(&self, handle: String, paths: Vec<String>, signals: u32, every: Duration) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            for _ in 0..signals {
                ticks.tick().await;
                let event = Event::Flood { handle: handle.clone(), paths: paths.clone() };
                if events.send(event).is_err() {
                    return;
                }
            }
        });
    }
}

/// A connection whose messages go to the loop.
async fn connect(address: &str, handle: &str, events: &UnboundedSender<Event>) -> Result<Connection> {
    let connection = connection::Builder::address(address).build().await.with_context(|| format!("connecting to {address}"))?;
    let mut stream = MessageStream::from(&connection);
    let (events, handle) = (events.clone(), handle.to_owned());
    tokio::spawn(async move {
        while let Some(next) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
            let Ok(message) = next else { break };
            if events.send(Event::Message { handle: handle.clone(), message }).is_err() {
                return;
            }
        }
        let _ = events.send(Event::Closed { handle });
    });
    Ok(connection)
}

/// Takes a name; `flags` as in the D-Bus specification (1 allow replacement, 2 replace, 4 do not queue).
pub async fn own(connection: &Connection, name: &str, flags: u32) -> Result<()> {
    let bus = "org.freedesktop.DBus";
    let reply = connection
        .call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "RequestName", &(name, flags))
        .await
        .with_context(|| format!("taking the name {name}"))?;
    match reply.body().deserialize::<u32>()? {
        1 | 4 => Ok(()),
        code => bail!("the name {name} is not to be had: the bus says {code}"),
    }
}
