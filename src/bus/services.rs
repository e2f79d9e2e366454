//! Services of our own on the bus, each on a connection of its own: signals belong to the connection that sent them, and whoever
//! watches maps one connection to one service.
//!
//! There may be hundreds, so a connection is a socket, a small buffer and a task that reads; it is written to from the loop, which never
//! waits for it: what the bus does not take is kept, and a connection with too much of it is given up, and with it the service's place
//! on the bus until it is put there again. The handshake is a few lines, the wire format and the messages are zbus's.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;
use zbus::Message;
use zbus::connection::socket::ReadHalf;
use zbus::message::{Flags, Type};

use super::socket::{Bounded, Reader, check_guid, dial};
use super::{BUS, BUS_PATH, ITEM, wire};
use crate::bridge::limits::WRITE_PAYLOAD;
use crate::dbus_address::Address;
use crate::device::service::{Answer, Call, ItemAnswer};
use crate::device::{BusCommand, BusEvent, Key};
use crate::files::read_bounded;
use crate::text::escape;
use crate::watch::watch_room;

/// Messages read ahead of the loop, of all services together, and bytes of the largest, which holds the largest write: together 3 MiB.
pub(crate) const INCOMING: usize = 32;
pub(crate) const MESSAGE_MAX: usize = WRITE_PAYLOAD + 16 * 1024;
/// Most calls are less.
const BUFFER: usize = 1024;
/// From the connection to its name.
const OPENING: Duration = Duration::from_secs(10);
/// Bytes the bus has not taken, beyond which nothing is added, of one connection and of all; a bus that reads takes them at once.
const BACKLOG: usize = 256 * 1024;
pub(crate) const BACKLOG_ALL: usize = 2 * 1024 * 1024;

/// Serial numbers of the three calls that a connection makes itself; its signals and replies come after them.
const HELLO: NonZeroU32 = NonZeroU32::new(1).unwrap();
const REQUEST: NonZeroU32 = NonZeroU32::new(2).unwrap();
const RELEASE: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// RequestName: fail rather than wait behind somebody else.
const DO_NOT_QUEUE: u32 = 4;
const PRIMARY_OWNER: u32 = 1;

/// What has happened to a service.
pub enum ServiceEvent {
    Changed(Key, BusEvent),
    Call(Key, Message),
}

/// The connections of all services.
pub struct Services {
    address: Address,
    to_loop: Sender<(Key, FromTask)>,
    events: Receiver<(Key, FromTask)>,
    open: HashMap<Key, Connection>,
    /// What happened without any task.
    own: VecDeque<(Key, BusEvent)>,
    machine_id: Option<String>,
    /// One service at a time reads a large message.
    reading: Arc<Semaphore>,
}

struct Connection {
    name: String,
    /// Once it has its name.
    socket: Option<Arc<UnixStream>>,
    /// Unique name.
    owner: String,
    /// What the bus has not taken yet.
    out: Vec<u8>,
    /// Somebody waits for the socket to take more.
    waiting: bool,
    closing: bool,
    task: AbortHandle,
}

enum FromTask {
    Up(Arc<UnixStream>, String),
    Refused(String),
    Message(Message),
    /// The socket takes more.
    Room,
    Down,
}

impl Services {
    /// Connections will be made to this address.
    pub fn new(address: &Address) -> Self {
        let (to_loop, events) = channel(INCOMING);
        Self {
            address: address.clone(),
            to_loop,
            events,
            open: HashMap::new(),
            own: VecDeque::new(),
            machine_id: machine_id(),
            reading: Arc::new(Semaphore::new(1)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What happens next. Dropping the future loses nothing.
    pub async fn next(&mut self) -> ServiceEvent {
        loop {
            if let Some((key, event)) = self.own.pop_front() {
                return ServiceEvent::Changed(key, event);
            }
            // where there are none, looking at the channel would be a cost of every turn
            if self.open.is_empty() {
                return std::future::pending().await;
            }
            // this struct holds a sender itself, so it never ends
            let Some((key, event)) = self.events.recv().await else { return std::future::pending().await };
            if let Some(event) = self.take(key, event) {
                return event;
            }
        }
    }

    /// What has happened already, without waiting.
    pub fn try_next(&mut self) -> Option<ServiceEvent> {
        loop {
            if let Some((key, event)) = self.own.pop_front() {
                return Some(ServiceEvent::Changed(key, event));
            }
            if self.open.is_empty() {
                return None;
            }
            let (key, event) = self.events.try_recv().ok()?;
            if let Some(event) = self.take(key, event) {
                return Some(event);
            }
        }
    }

    fn take(&mut self, key: Key, event: FromTask) -> Option<ServiceEvent> {
        let connection = self.open.get_mut(&key)?;
        match event {
            FromTask::Up(socket, owner) => {
                connection.socket = Some(socket);
                connection.owner = owner;
                if connection.closing {
                    self.release(key);
                    return None;
                }
                Some(ServiceEvent::Changed(key, BusEvent::Up))
            }
            FromTask::Message(message) => Some(ServiceEvent::Call(key, message)),
            FromTask::Room => {
                connection.waiting = false;
                self.flush(key);
                None
            }
            FromTask::Refused(why) => {
                let closing = connection.closing;
                self.open.remove(&key);
                Some(ServiceEvent::Changed(key, if closing { BusEvent::Down } else { BusEvent::Refused(why) }))
            }
            FromTask::Down => {
                self.open.remove(&key);
                Some(ServiceEvent::Changed(key, BusEvent::Down))
            }
        }
    }

    /// Carries out what the core wants. Gives the connection and the serial number of a signal that has to be told.
    pub fn carry_out(&mut self, command: BusCommand) -> Option<(String, u32)> {
        match command {
            BusCommand::Open { key, name } => self.connect(key, name),
            BusCommand::Close { key } => self.close(key),
            BusCommand::Emit { key, items, told } => match signal(&items) {
                Ok(message) => {
                    let owner = self.open.get(&key)?.owner.clone();
                    self.send(key, &message);
                    return told.then(|| (owner, message.primary_header().serial_num().get()));
                }
                Err(error) => log::warn!("a signal cannot be sent: {error}"),
            },
        }
        None
    }

    fn connect(&mut self, key: Key, name: String) {
        let (address, wanted, to_loop, reading) = (self.address.clone(), name.clone(), self.to_loop.clone(), self.reading.clone());
        let task = tokio::spawn(async move {
            let last = match tokio::time::timeout(OPENING, open(&address, &wanted)).await {
                Ok(Ok((reader, socket, owner))) => {
                    if to_loop.send((key, FromTask::Up(socket, owner))).await.is_err() {
                        return;
                    }
                    serve(key, reader.sharing(reading), &to_loop).await;
                    FromTask::Down
                }
                Ok(Err(why)) => FromTask::Refused(why),
                Err(_) => FromTask::Refused(format!("no answer from the bus within {} s", OPENING.as_secs())),
            };
            let _ = to_loop.send((key, last)).await;
        });
        let (owner, out, task) = (String::new(), Vec::new(), task.abort_handle());
        self.open.insert(key, Connection { name, socket: None, owner, out, waiting: false, closing: false, task });
    }

    /// The name is given back before the connection goes, so that whoever takes it next finds it free.
    fn close(&mut self, key: Key) {
        let Some(connection) = self.open.get_mut(&key) else { return self.own.push_back((key, BusEvent::Down)) };
        connection.closing = true;
        if connection.socket.is_some() {
            self.release(key);
        }
    }

    fn release(&mut self, key: Key) {
        let Some(connection) = self.open.get(&key) else { return };
        let call = call_bus("ReleaseName", RELEASE);
        match call.build(&connection.name.as_str()) {
            Ok(message) => self.send(key, &message),
            Err(error) => log::warn!("cannot give {} back: {error}", connection.name),
        }
    }

    /// Answers a call, if an answer is wanted.
    pub fn answer(&mut self, key: Key, call: &Message, answer: Answer) {
        let header = call.header();
        if header.primary().flags().contains(Flags::NO_REPLY_EXPECTED) {
            return;
        }
        let reply = Message::method_return(&header);
        let built = match answer {
            Answer::Value(value) => wire::to_variant(&value).and_then(|value| reply.build(&value)),
            Answer::Text(text) => reply.build(&text),
            Answer::Items(items) => wire::to_items(&items).and_then(|items| reply.build(&items)),
            Answer::Code(code) => reply.build(&code),
            Answer::Nothing => reply.build(&()),
            Answer::MachineId => match &self.machine_id {
                Some(id) => reply.build(id),
                None => Message::error(&header, "org.freedesktop.DBus.Error.FileNotFound").build(&"this machine has no ID"),
            },
            Answer::Error { name, text } => Message::error(&header, name).build(&text),
        };
        // a caller never waits for an answer that cannot be built
        let built = built.or_else(|error| {
            log::warn!("the answer to a call of a service cannot be built: {}", escape(&error.to_string()));
            Message::error(&header, "org.freedesktop.DBus.Error.Failed").build(&format!("the answer cannot be built: {error}"))
        });
        match built {
            Ok(message) => self.send(key, &message),
            Err(error) => log::warn!("a call of a service cannot be answered: {}", escape(&error.to_string())),
        }
    }

    fn send(&mut self, key: Key, message: &Message) {
        if self.backlog(key) >= BACKLOG {
            self.flush(key);
        }
        let waiting = self.backlog(key);
        let all = || self.open.values().map(|connection| connection.out.len()).sum::<usize>();
        if waiting >= BACKLOG || (waiting > 0 && all() >= BACKLOG_ALL) {
            return self.give_up(key, log::Level::Warn, "the bus does not read");
        }
        let Some(connection) = self.open.get_mut(&key) else { return };
        if connection.out.is_empty() && connection.out.capacity() > BUFFER {
            connection.out = Vec::new();
        }
        connection.out.extend_from_slice(message.data().bytes());
        // whoever is woken when there is room writes the rest
        if !connection.waiting {
            self.flush(key);
        }
    }

    fn backlog(&self, key: Key) -> usize {
        self.open.get(&key).map_or(0, |connection| connection.out.len())
    }

    /// Writes what is there, as far as the socket takes it.
    fn flush(&mut self, key: Key) {
        let Some(connection) = self.open.get_mut(&key) else { return };
        let Some(socket) = &connection.socket else { return };
        while !connection.out.is_empty() {
            let (level, error) = match (&**socket).write(&connection.out) {
                Ok(count) => {
                    connection.out.drain(..count);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // the device hears that it is gone, and that is all there is to say
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => (log::Level::Debug, error),
                Err(_) if connection.waiting => return,
                Err(_) => match watch_room(socket) {
                    Ok(watched) => {
                        connection.waiting = true;
                        let to_loop = self.to_loop.clone();
                        tokio::spawn(async move {
                            if watched.writable().await.is_ok() {
                                let _ = to_loop.send((key, FromTask::Room)).await;
                            }
                        });
                        return;
                    }
                    Err(error) => (log::Level::Warn, error),
                },
            };
            return self.give_up(key, level, &error.to_string());
        }
    }

    fn give_up(&mut self, key: Key, level: log::Level, why: &str) {
        let Some(connection) = self.open.remove(&key) else { return };
        log::log!(level, "the connection of {} to the bus is given up: {}", connection.name, escape(why));
        connection.task.abort();
        // whoever waits for room holds the socket as well: the bus shall free the name now
        if let Some(socket) = &connection.socket {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        self.own.push_back((key, BusEvent::Down));
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.open.values().for_each(|connection| connection.task.abort());
    }
}

/// What a call of somebody means.
pub fn read_call<T>(message: &Message, own_name: &str, take: impl FnOnce(&Call<'_>) -> T) -> Option<T> {
    let header = message.header();
    let (path, member) = (header.path()?, header.member()?);
    let body = message.body();
    Some(take(&Call {
        path: path.as_str(),
        interface: header.interface().map(|interface| interface.as_str()),
        member: member.as_str(),
        argument: wire::read_argument(&body),
        is_ours: header.sender().is_some_and(|sender| sender.as_str() == own_name),
    }))
}

/// Connects, says who we are, and takes the name.
async fn open(address: &Address, name: &str) -> Result<(Bounded, Arc<UnixStream>, String), String> {
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the bus closes the connection: it may have as many as its limits allow (max_connections_per_user)".to_owned()
        }
        _ => format!("no connection to the bus: {}", escape(&error.to_string())),
    };
    let no_connection = |error: io::Error| format!("no connection to the bus: {}", escape(&error.to_string()));
    let socket = Arc::new(dial(address).await.map_err(no_connection)?);
    let mut reader = Bounded::new(Reader::new(socket.clone(), BUFFER).map_err(lost)?, MESSAGE_MAX, None);
    let uid: String = nix::unistd::geteuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
    (&*socket).write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes()).map_err(lost)?;
    let answer = read_line(&mut reader).await.map_err(lost)?;
    let guid = answer.strip_prefix("OK ").ok_or_else(|| format!("the bus does not let us in: {}", escape(&answer)))?;
    check_guid(address, guid.trim_ascii())?;
    let build = || -> zbus::Result<Vec<u8>> {
        let mut out = b"BEGIN\r\n".to_vec();
        out.extend_from_slice(call_bus("Hello", HELLO).build(&())?.data().bytes());
        out.extend_from_slice(call_bus("RequestName", REQUEST).build(&(name, DO_NOT_QUEUE))?.data().bytes());
        Ok(out)
    };
    let out = build().map_err(|error| error.to_string())?;
    (&*socket).write_all(&out).map_err(lost)?;
    let mut owner = String::new();
    loop {
        let message = receive(&mut reader).await.map_err(lost)?;
        let header = message.header();
        let (Some(serial), body) = (header.reply_serial(), message.body()) else { continue };
        if message.message_type() == Type::Error {
            let text = body.deserialize::<&str>().unwrap_or_default();
            return Err(format!("the bus refuses {}: {}", if serial == HELLO { "us" } else { "the name" }, escape(text)));
        }
        if serial == HELLO {
            owner = body.deserialize::<String>().map_err(|error| error.to_string())?;
        } else if serial == REQUEST {
            return match body.deserialize::<u32>() {
                Ok(PRIMARY_OWNER) => Ok((reader, socket, owner)),
                Ok(_) => Err("another program has this name on the bus; end that one (dbus-mqtt-devices, or another venus-mqtt?)".into()),
                Err(error) => Err(error.to_string()),
            };
        }
    }
}

/// Reads until the name has been given back, or the connection ends.
async fn serve(key: Key, mut reader: Bounded, to_loop: &Sender<(Key, FromTask)>) {
    while let Ok(message) = receive(&mut reader).await {
        let goes_on = match message.message_type() {
            Type::MethodCall => to_loop.send((key, FromTask::Message(message))).await.is_ok(),
            Type::MethodReturn | Type::Error => message.header().reply_serial() != Some(RELEASE),
            Type::Signal => true,
        };
        if !goes_on {
            return;
        }
    }
}

async fn receive(reader: &mut Bounded) -> io::Result<Message> {
    reader.receive_message(0, &mut Vec::new(), &mut Vec::new()).await.map_err(|error| match error {
        zbus::Error::InputOutput(error) => io::Error::new(error.kind(), error.to_string()),
        error => io::Error::other(error.to_string()),
    })
}

/// A line of the handshake. Nothing follows it before we have answered.
async fn read_line(reader: &mut Bounded) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        if reader.recvmsg(&mut byte).await?.0 == 0 || line.len() > BUFFER {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
}

fn call_bus(member: &'static str, serial: NonZeroU32) -> zbus::message::Builder<'static> {
    Message::method_call(BUS_PATH, member).destination(BUS).interface(BUS).serial(serial)
}

/// One item: PropertiesChanged on it. Several from one cause: one ItemsChanged. Never both, as Victron's own library does.
fn signal(items: &[ItemAnswer]) -> zbus::Result<Message> {
    let mut entries = wire::to_items(items)?;
    match entries.pop_first() {
        Some((path, entry)) if entries.is_empty() => Message::signal(path, ITEM, "PropertiesChanged").build(&entry),
        first => {
            entries.extend(first);
            Message::signal("/", ITEM, "ItemsChanged").build(&entries)
        }
    }
}

/// Most bytes read of a machine ID, which has 32 and a line end.
const MACHINE_ID_MAX: u64 = 64;

/// What org.freedesktop.DBus.Peer gives.
fn machine_id() -> Option<String> {
    let files = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
    let bytes = files.iter().find_map(|file| read_bounded(Path::new(file), MACHINE_ID_MAX).ok())?;
    let id = str::from_utf8(&bytes).ok()?.trim();
    (id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit())).then(|| id.to_owned())
}
