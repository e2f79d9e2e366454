//! The fake services: one thread that owns them all, each on a connection of its own, answering calls and emitting signals at any rate.
//!
//! Signals are marshalled once; to emit one, only its doubles and its serial are patched. That costs the machine a fraction of what it measures.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::clock;
use crate::connection::Connection;
use crate::emission::{Emission, Emitted, Emitter, Style, prepare};
use crate::model::{self, Item, Value};
use crate::wire::{self, Argument, Head, Received, Writer};

pub const INTERFACE: &str = "com.victronenergy.BusItem";

/// The handle the measuring thread holds.
pub struct Fake {
    commands: Sender<Command>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
    pub thread_id: i32,
    pub items: usize,
}

enum Command {
    Emit(Emission, Sender<Result<Emitted>>),
    Leave(usize, Sender<Result<f64>>),
    Return(usize, Sender<Result<f64>>),
    Mute(usize, bool),
    LastValues(Sender<Vec<(String, f64)>>),
    Quit,
}

impl Fake {
    pub fn start(socket: &Path) -> Result<Self> {
        let socket = socket.to_owned();
        let (commands, inbox) = mpsc::channel();
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::Builder::new().name("fake-services".into()).spawn(move || match Services::open(&socket) {
            Ok(mut services) => {
                let items = services.all.iter().map(|service| service.items.len()).sum();
                drop(ready.send(Ok((nix::unistd::gettid().as_raw(), items))));
                if let Err(error) = services.serve(&inbox, &woken) {
                    eprintln!("bench: the fake services ended: {error:#}");
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        })?;
        let (thread_id, items) = is_ready.recv().context("the fake services did not start")??;
        Ok(Self { commands, wake, thread: Some(thread), thread_id, items })
    }

    /// Starts to emit; the answer comes when the last signal is with the bus.
    pub fn emit(&self, emission: Emission) -> Result<Receiver<Result<Emitted>>> {
        self.send_for(|answer| Command::Emit(emission, answer))
    }

    /// The service gives up its name; returns when it did.
    pub fn leave(&self, service: usize) -> Result<f64> {
        self.send_for(|answer| Command::Leave(service, answer))?.recv()?
    }

    /// The service takes its name again; returns when it asked for it.
    pub fn come_back(&self, service: usize) -> Result<f64> {
        self.send_for(|answer| Command::Return(service, answer))?.recv()?
    }

    /// A mute service answers no calls; its signals go on.
    pub fn mute(&self, service: usize, mute: bool) -> Result<()> {
        self.send(Command::Mute(service, mute))
    }

    /// The last value emitted of each item of the last emission, by topic below `N/<portal>/`.
    pub fn last_values(&self) -> Result<Vec<(String, f64)>> {
        Ok(self.send_for(Command::LastValues)?.recv()?)
    }

    fn send_for<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<Receiver<T>> {
        let (answer, answered) = mpsc::channel();
        self.send(command(answer))?;
        Ok(answered)
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| anyhow!("the fake services are gone"))?;
        (&self.wake).write_all(b"!").context("the fake services are gone")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.send(Command::Quit));
        // before the bus, which would be missed
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// A service on the bus.
pub struct Service {
    pub name: String,
    pub topic: String,
    pub items: Vec<Item>,
    pub moves: bool,
    pub absent: bool,
    pub connection: Connection,
    by_path: HashMap<String, usize>,
    mute: bool,
}

struct Services {
    all: Vec<Service>,
    style: Style,
    last_values: Vec<(String, f64)>,
}

impl Services {
    fn open(socket: &Path) -> Result<Self> {
        let mut all = Vec::new();
        for service in model::house() {
            let by_path = service.items.iter().enumerate().map(|(n, item)| (item.path.clone(), n)).collect();
            all.push(Service {
                connection: Connection::open(socket)?,
                topic: format!("{}/{}", service.kind, service.instance),
                name: service.name,
                items: service.items,
                moves: service.moves,
                absent: false,
                by_path,
                mute: false,
            });
        }
        for service in &mut all {
            service.connection.own(&service.name)?;
        }
        Ok(Self { all, style: Style::Items { batch: 10 }, last_values: Vec::new() })
    }

    fn serve(&mut self, inbox: &Receiver<Command>, woken: &UnixStream) -> Result<()> {
        let mut running: Option<(Emitter, Sender<Result<Emitted>>)> = None;
        loop {
            let mut pause = Duration::from_secs(1);
            if let Some((mut emitter, answer)) = running.take() {
                match emitter.turn(&mut self.all)? {
                    Some(next) => {
                        pause = next;
                        running = Some((emitter, answer));
                    }
                    None => {
                        self.last_values = emitter.last_values(&self.all);
                        drop(answer.send(Ok(emitter.finish())));
                    }
                }
            }
            for index in self.readable(woken, pause)? {
                self.answer_calls(index)?;
            }
            drop((&mut &*woken).read(&mut [0; 64]));
            while let Ok(command) = inbox.try_recv() {
                match command {
                    Command::Emit(emission, answer) => {
                        self.style = emission.style;
                        running = Some((prepare(&self.all, &emission), answer));
                    }
                    Command::Quit => return Ok(()),
                    other => self.obey(other),
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Leave(index, answer) => drop(answer.send(self.presence(index, false))),
            Command::Return(index, answer) => drop(answer.send(self.presence(index, true))),
            Command::Mute(index, mute) => {
                if let Some(service) = self.all.get_mut(index) {
                    service.mute = mute;
                }
            }
            Command::LastValues(answer) => drop(answer.send(self.last_values.clone())),
            Command::Emit(..) | Command::Quit => {}
        }
    }

    fn presence(&mut self, index: usize, present: bool) -> Result<f64> {
        let service = self.all.get_mut(index).ok_or_else(|| anyhow!("no service {index}"))?;
        let asked = clock::now();
        if present {
            service.connection.own(&service.name)?;
        } else {
            service.connection.release(&service.name)?;
        }
        service.absent = !present;
        // calls that came before the bus's answer are with the connection already: no poll tells of them
        self.answer_calls(index)?;
        Ok(asked)
    }

    /// Waits for calls or a command; the services that have calls.
    fn readable(&self, woken: &UnixStream, pause: Duration) -> Result<Vec<usize>> {
        let mut ready: Vec<_> = self.all.iter().map(|service| PollFd::new(service.connection.as_fd(), PollFlags::POLLIN)).collect();
        ready.push(PollFd::new(woken.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut ready, Some(TimeSpec::from_duration(pause)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot poll the bus"),
        }
        Ok(ready.iter().take(self.all.len()).enumerate().filter(|(_, fd)| fd.any().unwrap_or(false)).map(|(index, _)| index).collect())
    }

    fn answer_calls(&mut self, index: usize) -> Result<()> {
        let style = self.style;
        let Some(service) = self.all.get_mut(index) else { return Ok(()) };
        for bytes in service.connection.receive()? {
            let call = wire::parse(&bytes)?;
            if call.kind == wire::CALL && !service.mute {
                service.answer(&call, style)?;
            }
        }
        Ok(())
    }
}

impl Service {
    fn answer(&mut self, call: &Received<'_>, style: Style) -> Result<()> {
        let mut body = Writer::default();
        let item = self.by_path.get(call.path).copied();
        let below = format!("{}/", call.path.trim_end_matches('/'));
        match call.member {
            "GetItems" if call.path == "/" => {
                items_body(&mut body, self.items.iter(), true);
                self.reply(call, "a{sa{sv}}", &body)
            }
            "GetValue" => match item.and_then(|n| self.items.get(n)) {
                Some(item) => {
                    variant(&mut body, &item.value);
                    self.reply(call, "v", &body)
                }
                None if self.items.iter().any(|item| item.path.starts_with(&below)) => {
                    body.signature("a{sv}");
                    let entries = body.open_array(8);
                    for item in &self.items {
                        let Some(relative) = item.path.strip_prefix(&below) else { continue };
                        body.align(8);
                        body.string(relative);
                        variant(&mut body, &item.value);
                    }
                    body.close_array(entries);
                    self.reply(call, "v", &body)
                }
                None => self.refuse(call, "org.freedesktop.DBus.Error.UnknownObject"),
            },
            "GetText" if let Some(item) = item.and_then(|n| self.items.get(n)) => {
                body.string(&item.text);
                self.reply(call, "s", &body)
            }
            "SetValue" if let Some(index) = item => self.set(call, index, style),
            _ => self.refuse(call, "org.freedesktop.DBus.Error.UnknownMethod"),
        }
    }

    /// The reply first, then the signal: as a device that confirms what it was told.
    fn set(&mut self, call: &Received<'_>, index: usize, style: Style) -> Result<()> {
        let Some(item) = self.items.get_mut(index) else { return Ok(()) };
        let accepted = match (wire::set_value_argument(call.body)?, &mut item.value) {
            (Argument::Number(number), Value::Double(value)) => {
                *value = number;
                true
            }
            (Argument::Number(number), Value::Int(value)) => {
                *value = number as i32;
                true
            }
            (Argument::Text(text), Value::Text(value)) => {
                text.clone_into(value);
                true
            }
            _ => false,
        };
        let item = item.clone();
        let mut body = Writer::default();
        body.i32(if accepted { 0 } else { 1 });
        self.reply(call, "i", &body)?;
        if accepted {
            let (mut signal, _) = changed_signal(&[&item], style);
            set_serial(&mut signal, self.connection.next_serial());
            self.connection.write(&signal)?;
        }
        Ok(())
    }

    fn reply(&mut self, call: &Received<'_>, signature: &str, body: &Writer) -> Result<()> {
        let head = Head { kind: wire::REPLY, reply_to: Some(call.serial), destination: Some(call.sender), signature, ..Head::default() };
        if call.wants_no_reply {
            return Ok(());
        }
        let serial = self.connection.next_serial();
        self.connection.write(&wire::message(head, serial, &body.bytes).0)
    }

    fn refuse(&mut self, call: &Received<'_>, error: &str) -> Result<()> {
        let head =
            Head { kind: wire::ERROR, error: Some(error), reply_to: Some(call.serial), destination: Some(call.sender), ..Head::default() };
        let serial = self.connection.next_serial();
        self.connection.write(&wire::message(head, serial, &[]).0)
    }
}

/// A change signal with serial 0, and where in it the doubles of `items` stand, in their order.
pub fn changed_signal(items: &[&Item], style: Style) -> (Vec<u8>, Vec<usize>) {
    let mut body = Writer::default();
    let (path, member, signature, places) = match (style, items) {
        (Style::Properties, [item, ..]) => {
            let places = properties(&mut body, item, false);
            (item.path.as_str(), "PropertiesChanged", "a{sv}", places.into_iter().collect())
        }
        _ => ("/", "ItemsChanged", "a{sa{sv}}", items_body(&mut body, items.iter().copied(), false)),
    };
    let head =
        Head { kind: wire::SIGNAL, path: Some(path), interface: Some(INTERFACE), member: Some(member), signature, ..Head::default() };
    let (bytes, start) = wire::message(head, 0, &body.bytes);
    (bytes, places.into_iter().map(|place: usize| place + start).collect())
}

pub fn set_serial(message: &mut [u8], serial: u32) {
    if let Some(place) = message.get_mut(wire::SERIAL_AT..wire::SERIAL_AT + 4) {
        place.copy_from_slice(&serial.to_le_bytes());
    }
}

fn items_body<'a>(body: &mut Writer, items: impl Iterator<Item = &'a Item>, full: bool) -> Vec<usize> {
    let entries = body.open_array(8);
    let mut places = Vec::new();
    for item in items {
        body.align(8);
        body.string(&item.path);
        places.extend(properties(body, item, full));
    }
    body.close_array(entries);
    places
}

/// `{Value, Text}`, with `Min` and `Max` when `full`; where the double stands, if it is one.
fn properties(body: &mut Writer, item: &Item, full: bool) -> Option<usize> {
    let entries = body.open_array(8);
    body.align(8);
    body.string("Value");
    let place = variant(body, &item.value);
    body.align(8);
    body.string("Text");
    body.signature("s");
    body.string(&item.text);
    if let Some((min, max)) = item.limits.filter(|_| full && !matches!(item.value, Value::Text(_))) {
        for (name, limit) in [("Min", min), ("Max", max)] {
            body.align(8);
            body.string(name);
            match item.value {
                Value::Int(_) => variant(body, &Value::Int(limit as i32)),
                _ => variant(body, &Value::Double(limit)),
            };
        }
    }
    body.close_array(entries);
    place
}

fn variant(body: &mut Writer, value: &Value) -> Option<usize> {
    match value {
        Value::Double(value) => {
            body.signature("d");
            return Some(body.double(*value));
        }
        Value::Int(value) => {
            body.signature("i");
            body.i32(*value);
        }
        Value::Unsigned(value) => {
            body.signature("u");
            body.u32(*value);
        }
        Value::Word(value) => {
            body.signature("q");
            body.u16(*value);
        }
        Value::Text(text) => {
            body.signature("s");
            body.string(text);
        }
        Value::Invalid => {
            body.signature("ai");
            let empty = body.open_array(4);
            body.close_array(empty);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(path: &str, value: f64) -> Item {
        Item { path: path.into(), value: Value::Double(value), text: "1.0V".into(), limits: None }
    }

    #[test]
    fn the_places_of_a_signal_are_those_of_its_doubles() {
        let items = [item("/Dc/0/Voltage", 1.25), item("/Ac/L1/P", -7.5), item("/Soc", 99.0)];
        let items: Vec<_> = items.iter().collect();
        for (style, count) in [(Style::Items { batch: 3 }, 3), (Style::Properties, 1)] {
            let (bytes, places) = changed_signal(&items, style);
            assert_eq!(places.len(), count);
            for (item, place) in items.iter().zip(&places) {
                let Value::Double(expected) = item.value else { unreachable!() };
                assert_eq!(place % 8, 0);
                assert_eq!(f64::from_le_bytes(bytes[*place..place + 8].try_into().unwrap()), expected);
            }
            assert_eq!(wire::message_length(&bytes), Ok(Some(bytes.len())));
        }
    }

    #[test]
    fn a_prepared_signal_reads_as_one_and_takes_a_serial() {
        let voltage = item("/Dc/0/Voltage", 1.25);
        let (mut bytes, _) = changed_signal(&[&voltage], Style::Properties);
        set_serial(&mut bytes, 42);
        let read = wire::parse(&bytes).unwrap();
        assert_eq!((read.kind, read.serial, read.path, read.member), (wire::SIGNAL, 42, "/Dc/0/Voltage", "PropertiesChanged"));
    }
}
