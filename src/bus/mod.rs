//! The watcher: one connection to the bus, which sees every change of every service, in the bus's own order.
//!
//! Calls are sent and never waited for; their replies come back in the same stream as the signals, so that the order of a reply
//! and a change is known. The loop must take what comes without waiting for anyone.

#[doc(hidden)] // for the fuzz targets
mod cursor;
pub mod services;
pub(crate) mod socket;
#[doc(hidden)] // for the fuzz targets
pub mod wire;

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use tokio::sync::mpsc::{Sender, channel};
use zbus::message::{Flags, Header, Type};
use zbus::{Connection, Message, MessageStream};

use crate::bridge::name::{BUS, to_item_path};
use crate::bridge::value::Value;
use crate::bridge::{Bridge, BusCall, Method, Reply, Time};
use crate::dbus_address::{Address, Addresses, Transport};
use crate::device::Devices;
use crate::files::why;
use crate::text::escape;
use crate::watchdog;

const BUS_PATH: &str = "/org/freedesktop/DBus";
const ITEM: &str = "com.victronenergy.BusItem";
const SETTINGS: &str = "com.victronenergy.Settings";

/// What is listened to, before anybody is asked anything.
const RULES: [&str; 3] = [
    "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0namespace='com.victronenergy'",
    "type='signal',interface='com.victronenergy.BusItem',member='ItemsChanged'",
    "type='signal',interface='com.victronenergy.BusItem',member='PropertiesChanged'",
];
/// The one question that is waited for, before anything is served.
const SERIAL: Duration = Duration::from_secs(2);
/// Messages read ahead of the loop, none of them over [`socket::LARGE`] but one.
pub(crate) const QUEUE: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// A bus that does not even let us in.
const CONNECT: Duration = Duration::from_secs(10);
/// All addresses of a list together: half of the time that the watchdog gives the start.
const CONNECT_ALL: Duration = watchdog::LOOK;
/// Messages waiting to be written, more than calls can be under way: those beyond come back as errors.
const CALLS: usize = 8192;
/// Signals on their way that have to be told.
const TOLD: usize = 1024;
/// Calls written to the socket at once.
const BATCH: usize = 64;

/// The connection of the watcher.
#[derive(Debug)]
pub struct Watcher {
    stream: MessageStream,
    calls: Sender<Message>,
    /// Signals of services of ours that have to be published whether or not anybody keeps their items awake: who sent them, and
    /// their serial numbers.
    told: VecDeque<(String, u32)>,
    turn: Arc<socket::Turn>,
}

impl Watcher {
    /// Connects to the first of `addresses` that lets us in, and listens. Gives it, too. Fails with what is wrong with each, after
    /// [`CONNECT_ALL`] at the latest.
    pub async fn connect(addresses: &Addresses) -> Result<(Self, Address), String> {
        let deadline = Instant::now() + CONNECT_ALL;
        let mut untried = addresses.iter().filter(|address| is_usable(address)).count();
        let mut failures = Vec::new();
        for address in addresses.iter() {
            let limit = share(deadline.saturating_duration_since(Instant::now()), untried);
            untried -= usize::from(is_usable(address));
            let connected = match tokio::time::timeout(limit, Self::connect_to(address)).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("no answer from the bus within {:.1} s", limit.as_secs_f64())),
            };
            match connected {
                Ok(watcher) => return Ok((watcher, address.clone())),
                Err(why) => failures.push(format!("{}: {why}", escape(&address.to_string()))),
            }
        }
        Err(failures.join("; "))
    }

    async fn connect_to(address: &Address) -> Result<Self, String> {
        if let Transport::Unusable(why) = address.transport {
            return Err(why.into());
        }
        let turn = Arc::new(socket::Turn::new());
        let connecting = async { socket::connect(address, turn.clone()).await?.max_queued(QUEUE).method_timeout(CONNECT).build().await };
        let connection = connecting.await.map_err(|error| explain(&error))?;
        socket::check_guid(address, connection.server_guid().as_str())?;
        let stream = MessageStream::from(&connection);
        for rule in RULES {
            connection.call_method(Some(BUS), BUS_PATH, Some(BUS), "AddMatch", &rule).await.map_err(|error| explain(&error))?;
        }
        Ok(Self { stream, calls: spawn_sender(connection), told: VecDeque::new(), turn })
    }

    /// `/Serial` of `com.victronenergy.system`, which is the portal ID.
    pub async fn system_serial(&self) -> Result<String, String> {
        let connection = Connection::from(&self.stream);
        let call = connection.call_method(Some("com.victronenergy.system"), "/Serial", Some(ITEM), "GetValue", &());
        let reply = tokio::time::timeout(SERIAL, call).await.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
        match wire::read_reply(&reply.body()).0 {
            Reply::Value(Value::Str(serial)) => Ok(serial.into()),
            _ => Err("it is no text".into()),
        }
    }

    /// Sends a call; its answer comes with the stream. Why not, if it cannot be sent: then no answer comes.
    pub fn call(&self, call: &BusCall) -> Result<(), String> {
        let message = build_call(call).map_err(|error| format!("the call cannot be built: {error}"))?;
        self.calls.try_send(message).map_err(|error| format!("the call cannot be sent: {error}"))
    }

    /// The next message; an error is the end of the bus.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<zbus::Result<Message>> {
        let ended = || Err(zbus::Error::Failure("the bus has closed the connection".into()));
        Pin::new(&mut self.stream).poll_next(context).map(|message| message.unwrap_or_else(ended))
    }

    /// The name of this connection.
    pub fn unique_name(&self) -> String {
        Connection::from(&self.stream).unique_name().map(ToString::to_string).unwrap_or_default()
    }

    /// This signal is to be told, when it comes.
    pub fn tell(&mut self, owner: String, serial: u32) {
        // one that never came must not stay for ever
        if self.told.len() >= TOLD {
            self.told.pop_front();
        }
        self.told.push_back((owner, serial));
    }

    /// Gives a message to the core.
    pub fn dispatch(&mut self, bridge: &mut Bridge, devices: &mut Devices, now: Time, message: &Message) {
        let header = message.header();
        match message.message_type() {
            Type::Signal => self.dispatch_signal(bridge, devices, now, message, &header),
            Type::MethodReturn | Type::Error => {
                if let Some(serial) = header.reply_serial().map(NonZeroU32::get) {
                    let body = message.body();
                    let read = |bridge: &mut Bridge| match message.message_type() {
                        Type::Error => wire::read_error(header.error_name().map(|name| name.as_str()), &body),
                        _ => {
                            let (reply, skipped) = wire::read_reply(&body);
                            if skipped > 0 {
                                let sender = header.sender().map(|name| name.as_str()).unwrap_or_default();
                                bridge.answer_cut(now, sender, skipped);
                            }
                            reply
                        }
                    };
                    if bridge.expects(serial) {
                        let reply = read(bridge);
                        bridge.reply(now, serial, reply);
                    } else if devices.expects(serial) {
                        devices.reply(now, serial, read(bridge));
                    }
                }
            }
            Type::MethodCall => self.refuse(&header),
        }
        self.turn.end(message);
    }

    fn dispatch_signal(&mut self, bridge: &mut Bridge, devices: &mut Devices, now: Time, message: &Message, header: &Header<'_>) {
        let Some(sender) = header.sender() else { return };
        let told = !self.told.is_empty() && self.is_told(sender, message.primary_header().serial_num().get());
        let read = match (header.interface().map(|name| name.as_str()), header.member().map(|name| name.as_str())) {
            (Some(ITEM), Some("ItemsChanged")) => {
                let is_settings = devices.settings_owner() == Some(sender.as_str());
                let mut changes = bridge.changes(now, sender);
                if let Some(changes) = changes.as_mut().filter(|_| told) {
                    changes.tell();
                }
                if changes.is_none() && !is_settings {
                    return;
                }
                wire::read_items(&message.body(), |path, change| {
                    if let Some(value) = change.value.as_ref().filter(|_| is_settings) {
                        devices.setting_changed(now, &to_item_path(path), value);
                    }
                    if let Some(changes) = &mut changes {
                        changes.item(path, change);
                    }
                })
            }
            (Some(ITEM), Some("PropertiesChanged")) => {
                let Some(path) = header.path() else { return };
                wire::read_change(&message.body()).map(|change| {
                    if let Some(value) = &change.value
                        && devices.settings_owner() == Some(sender.as_str())
                    {
                        devices.setting_changed(now, path, value);
                    }
                    if let Some(mut changes) = bridge.changes(now, sender) {
                        if told {
                            changes.tell();
                        }
                        changes.item(path, change);
                    }
                })
            }
            (Some(BUS), Some("NameOwnerChanged")) if sender.as_str() == BUS => wire::read_names(&message.body()).map(|(name, old, new)| {
                devices.name_owner_changed(now, name, new);
                bridge.name_owner_changed(now, name, old, new);
            }),
            _ => Ok(()),
        };
        if let Err(error) = read {
            log::debug!("a signal of {sender} cannot be read: {}", escape(&error));
        }
    }

    fn is_told(&mut self, sender: &str, serial: u32) -> bool {
        let place = self.told.iter().position(|(owner, told)| *told == serial && owner == sender);
        place.and_then(|place| self.told.remove(place)).is_some()
    }

    /// The watcher has nothing that could be called, but nobody shall wait for it either.
    fn refuse(&self, header: &Header<'_>) {
        let wants_reply = !header.primary().flags().contains(Flags::NO_REPLY_EXPECTED);
        // what others send us must not take the places of our own calls
        if wants_reply
            && self.calls.capacity() > CALLS / 2
            && let Ok(message) = Message::error(header, "org.freedesktop.DBus.Error.UnknownMethod").build(&"venus-mqtt has no objects here")
        {
            drop(self.calls.try_send(message));
        }
    }
}

fn is_usable(address: &Address) -> bool {
    !matches!(address.transport, Transport::Unusable(_))
}

/// How long the next of so many addresses may take when `left` is for all of them. What one does not use is left to the others.
fn share(left: Duration, addresses: usize) -> Duration {
    (left / u32::try_from(addresses.max(1)).unwrap_or(u32::MAX)).min(CONNECT)
}

/// Why there is no connection.
fn explain(error: &zbus::Error) -> String {
    match error {
        zbus::Error::InputOutput(error) | zbus::Error::Connection(error, _) => why(error),
        error => escape(&error.to_string()).to_string(),
    }
}

/// A task of its own writes, so that a bus that is slow to read cannot hold up the loop.
fn spawn_sender(connection: Connection) -> Sender<Message> {
    let (calls, mut queue) = channel(CALLS);
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            if let Err(error) = connection.send_all(&batch).await {
                log::warn!("cannot write to the bus: {}", escape(&error.to_string()));
                // the loop hears of it as of every other end of the bus
                let _ = connection.close().await;
                return;
            }
            batch.clear();
        }
    });
    calls
}

fn build_call(call: &BusCall) -> zbus::Result<Message> {
    let (interface, member) = match &call.method {
        Method::ListNames => (BUS, "ListNames"),
        Method::GetNameOwner(_) => (BUS, "GetNameOwner"),
        Method::GetItems => (ITEM, "GetItems"),
        Method::GetValue => (ITEM, "GetValue"),
        Method::SetValue(_) => (ITEM, "SetValue"),
        Method::Introspect => ("org.freedesktop.DBus.Introspectable", "Introspect"),
        Method::AddSettings(_) => (SETTINGS, "AddSettings"),
        Method::RemoveSettings(_) => (SETTINGS, "RemoveSettings"),
    };
    let serial = NonZeroU32::new(call.id).ok_or(zbus::Error::InvalidSerial)?;
    let mut message = Message::method_call(&*call.path, member).destination(&*call.destination).interface(interface).serial(serial);
    if !call.answered {
        message = message.with_flags(Flags::NO_REPLY_EXPECTED);
    }
    match &call.method {
        Method::GetNameOwner(name) => message.build(&&**name),
        Method::SetValue(value) => message.build(&wire::to_variant(value)?),
        Method::AddSettings(settings) => message.build(&wire::to_settings(settings)?),
        Method::RemoveSettings(paths) => message.build(&paths.iter().map(|path| &**path).collect::<Vec<_>>()),
        _ => message.build(&()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use zbus::Guid;
    use zbus::connection::Builder;

    use super::*;

    /// However many addresses hang, and whichever: the whole has an end, one address has its ten seconds, and each has its part.
    #[test]
    fn the_addresses_of_a_list_share_the_time() {
        for hangs in 0..1_u32 << 8 {
            for addresses in 1..=8 {
                let mut left = CONNECT_ALL;
                for untried in (1..=addresses).rev() {
                    let limit = share(left, untried);
                    assert!(limit <= CONNECT && limit >= CONNECT_ALL / 8, "{limit:?} for one of {addresses}");
                    assert!(limit == CONNECT || addresses > 3, "{limit:?} for one of {addresses}");
                    if hangs >> untried & 1 == 1 {
                        left = left.checked_sub(limit).unwrap();
                    }
                }
            }
        }
        assert_eq!(share(CONNECT_ALL, 8), Duration::from_millis(3750));
        assert_eq!(share(Duration::ZERO, 0), Duration::ZERO);
    }

    /// Nobody would miss what is never written: the stream has to end.
    #[tokio::test]
    async fn the_end_of_the_sender_is_the_end_of_the_bus() {
        let (near, far) = UnixStream::pair().unwrap();
        let socket = near.try_clone().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let guid = Guid::generate();
        let bus = Builder::unix_stream(far).server(guid).p2p().build();
        let ours = Builder::unix_stream(near).p2p().build();
        let (bus, ours) = tokio::join!(bus, ours);
        let (_bus, ours) = (bus.unwrap(), ours.unwrap());
        let stream = MessageStream::from(&ours);
        let turn = Arc::new(socket::Turn::new());
        let mut watcher = Watcher { stream, calls: spawn_sender(ours), told: VecDeque::new(), turn };
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        watcher
            .call(&BusCall { id: 1, destination: BUS.into(), path: BUS_PATH.into(), method: Method::ListNames, answered: true })
            .unwrap();
        let ended = tokio::time::timeout(CONNECT, std::future::poll_fn(|context| watcher.poll_next(context))).await.unwrap();
        assert!(ended.is_err(), "{ended:?}");
    }
}
