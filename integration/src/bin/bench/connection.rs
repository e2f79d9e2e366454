//! One D-Bus connection, of a fake service or of somebody who calls services: SASL, Hello, names, calls, and whole messages in and out of a
//! non-blocking socket.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wire::{self, Head, Writer};

/// A name's owner or nobody: never in a queue.
const DO_NOT_QUEUE: u32 = 4;
const NAME_IS_OURS: u32 = 1;
const NAME_RELEASED: u32 = 1;

/// dbus-daemon answers in microseconds; what takes this long never comes.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    /// Messages that came while a call was waiting for its answer.
    kept: VecDeque<Vec<u8>>,
    serial: u32,
}

impl Connection {
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to the bus at {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut connection = Self { stream, incoming: Vec::new(), kept: VecDeque::new(), serial: 0 };
        connection.authenticate()?;
        connection.stream.set_nonblocking(true)?;
        connection.ask_bus("Hello", "", &[])?;
        Ok(connection)
    }

    pub fn own(&mut self, name: &str) -> Result<()> {
        let mut body = Writer::default();
        body.string(name);
        body.u32(DO_NOT_QUEUE);
        match self.ask_bus("RequestName", "su", &body.bytes)? {
            Some(NAME_IS_OURS) => Ok(()),
            other => bail!("the bus does not let the benchmark own {name}: {other:?}"),
        }
    }

    pub fn release(&mut self, name: &str) -> Result<()> {
        let mut body = Writer::default();
        body.string(name);
        match self.ask_bus("ReleaseName", "s", &body.bytes)? {
            Some(NAME_RELEASED) => Ok(()),
            other => bail!("the bus does not release {name}: {other:?}"),
        }
    }

    /// Signals that match `rule` come from now on.
    pub fn listen(&mut self, rule: &str) -> Result<()> {
        let mut body = Writer::default();
        body.string(rule);
        self.ask_bus("AddMatch", "s", &body.bytes).map(drop)
    }

    /// How many connections the bus has, this one and the bus's own name included.
    pub fn connections(&mut self) -> Result<usize> {
        let names = self.call(bus_call("ListNames", ""), &[])?;
        let names = wire::parse(&names)?;
        Ok(wire::strings(names.body)?.into_iter().filter(|name| name.starts_with(':')).count() + 1)
    }

    /// Calls and waits for the reply, which is returned whole; an error is an error here too.
    pub fn call(&mut self, head: Head<'_>, body: &[u8]) -> Result<Vec<u8>> {
        let serial = self.next_serial();
        self.write(&wire::message(head, serial, body).0)?;
        loop {
            while let Some(message) = self.take_message()? {
                let read = wire::parse(&message)?;
                match read.kind {
                    wire::REPLY if read.reply_to == serial => return Ok(message),
                    wire::ERROR if read.reply_to == serial => bail!("{}: {}", head.member.unwrap_or_default(), read.error),
                    _ => self.kept.push_back(message),
                }
            }
            self.wait(PollFlags::POLLIN)?;
            self.fill()?;
        }
    }

    /// Waits until there is something to read.
    pub fn wait_for_more(&self) -> Result<()> {
        self.wait(PollFlags::POLLIN)
    }

    pub fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        self.serial
    }

    /// Writes all of it; while the bus does not take more, waits as a service's own process would.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => bail!("the bus closed a fake service's connection"),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot write to the bus"),
            }
        }
        Ok(())
    }

    /// Everything there is to read, as whole messages.
    pub fn receive(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut messages: Vec<_> = self.kept.drain(..).collect();
        self.fill()?;
        while let Some(message) = self.take_message()? {
            messages.push(message);
        }
        Ok(messages)
    }

    fn authenticate(&mut self) -> Result<()> {
        let user: String = std::fs::metadata("/proc/self")?.uid().to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n") && answer.len() < 1000 {
            self.stream.read_exact(&mut byte).context("the bus does not answer AUTH")?;
            answer.extend_from_slice(&byte);
        }
        if !answer.starts_with(b"OK ") {
            bail!("the bus refuses EXTERNAL: {}", String::from_utf8_lossy(&answer).trim_end());
        }
        Ok(self.stream.write_all(b"BEGIN\r\n")?)
    }

    fn ask_bus(&mut self, member: &str, signature: &str, body: &[u8]) -> Result<Option<u32>> {
        let answer = self.call(bus_call(member, signature), body)?;
        Ok(wire::leading_u32(wire::parse(&answer)?.body))
    }

    fn wait(&self, events: PollFlags) -> Result<()> {
        let timeout = PollTimeout::try_from(ANSWER_WITHIN).map_err(|_| anyhow!("time-out out of range"))?;
        match poll(&mut [PollFd::new(self.stream.as_fd(), events)], timeout)? {
            0 => bail!("the bus stood still for {} s", ANSWER_WITHIN.as_secs()),
            _ => Ok(()),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the bus closed a fake service's connection"),
                Ok(count) => self.incoming.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read from the bus"),
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Vec<u8>>> {
        match wire::message_length(&self.incoming)? {
            Some(length) if self.incoming.len() >= length => Ok(Some(self.incoming.drain(..length).collect())),
            _ => Ok(None),
        }
    }
}

/// A call to the bus itself.
fn bus_call<'a>(member: &'a str, signature: &'a str) -> Head<'a> {
    let name = Some("org.freedesktop.DBus");
    Head {
        kind: wire::CALL,
        path: Some("/org/freedesktop/DBus"),
        interface: name,
        member: Some(member),
        destination: name,
        signature,
        ..Head::default()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
