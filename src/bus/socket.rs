//! The socket of a bus on this machine, read in large pieces.
//!
//! A change costs mostly what it takes to wake up and read it. So the socket is watched for reading only (watched for writing
//! as well, the kernel wakes us a second time for every message), one read takes everything that is there, and a read that
//! did not fill the buffer is known to have emptied the socket, so nobody asks again. File descriptors are not taken: nobody
//! sends us any.
//!
//! The header of a message says how large it is. What is larger than is taken is not read into memory: an error stands for an answer,
//! a call has no argument, a signal is left out.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zbus::Message;
use zbus::address::transport::{Tcp, TcpTransportFamily};
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::message::Type;

use crate::dbus_address::{Address, Family, Transport};
use crate::text::escape;
use crate::watch::{watch, watch_room};

/// A signal of ten items has about 1 KiB.
const BUFFER: usize = 64 * 1024;

/// Largest message that the watcher takes, in bytes: fifteen times the answer to GetItems of a large localsettings.
pub(crate) const MESSAGE_MAX: usize = 6 * 1024 * 1024;
/// Of those that are larger than this, one is in memory at a time.
pub(crate) const LARGE: usize = 64 * 1024;
/// Of several readers that share the room for messages larger than this, one reads at a time.
pub(crate) const SHARED: usize = 8 * 1024;
/// Largest header of a message that is skipped and still named.
const HEADER_MAX: usize = 64 * 1024;
/// How often signals that are left out are logged.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Begins a connection to `address`. The next large message is read when the one before has been given back to `turn`.
pub async fn connect(address: &Address, turn: Arc<Turn>) -> zbus::Result<Builder<'static>> {
    let stream = match &address.transport {
        Transport::Tcp { host, port, family, nonce_file } => {
            let family = family.map(|family| match family {
                Family::V4 => TcpTransportFamily::Ipv4,
                Family::V6 => TcpTransportFamily::Ipv6,
            });
            let tcp = Tcp::new(host, *port).set_family(family).set_nonce_file(nonce_file.clone());
            return Ok(Builder::address(zbus::Address::new(zbus::address::Transport::Tcp(tcp))));
        }
        _ => Arc::new(dial(address).await?),
    };
    let reader = Bounded::new(Reader::new(stream.clone(), BUFFER)?, MESSAGE_MAX, Some(turn));
    Ok(Builder::socket(BusStream { reader, writer: Writer { socket: stream } }))
}

/// One large message at a time.
#[derive(Debug)]
pub struct Turn(Semaphore);

impl Turn {
    pub fn new() -> Self {
        Self(Semaphore::new(1))
    }

    async fn begin(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }

    /// A message has been dealt with.
    pub fn end(&self, message: &Message) {
        if message.data().len() > LARGE && self.0.available_permits() == 0 {
            self.0.add_permits(1);
        }
    }
}

/// The socket at `address`, which must be one of this machine's.
pub async fn dial(address: &Address) -> io::Result<UnixStream> {
    let path = match &address.transport {
        Transport::Path(path) => path.clone(),
        Transport::Abstract(name) => {
            let mut path = OsString::from("\0");
            path.push(name);
            path.into()
        }
        Transport::Tcp { .. } => return Err(io::Error::other("registered services need a bus with a unix socket (`address` in [dbus])")),
        Transport::Unusable(why) => return Err(io::Error::other(*why)),
    };
    tokio::net::UnixStream::connect(path).await?.into_std()
}

/// Whether a server with this GUID is the one that is meant (D-Bus specification, "Server Addresses").
pub fn check_guid(address: &Address, guid: &str) -> Result<(), String> {
    match &address.guid {
        Some(wanted) if !wanted.eq_ignore_ascii_case(guid) => {
            Err(format!("it is another bus: its GUID is {}, not that of the address", escape(guid)))
        }
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct BusStream {
    reader: Bounded,
    writer: Writer,
}

impl Socket for BusStream {
    type ReadHalf = Bounded;
    type WriteHalf = Writer;

    fn split(self) -> Split<Bounded, Writer> {
        Split::new(self.reader, self.writer)
    }
}

/// The end that is read from.
#[derive(Debug)]
pub struct Reader {
    socket: AsyncFd<Arc<UnixStream>>,
    buffer: Vec<u8>,
    /// What has been read and not been taken yet.
    start: usize,
    end: usize,
}

impl Reader {
    /// `buffer` is how much is read at once.
    pub fn new(socket: Arc<UnixStream>, buffer: usize) -> io::Result<Self> {
        Ok(Self { socket: watch(socket, Interest::READABLE)?, buffer: vec![0; buffer], start: 0, end: 0 })
    }

    /// The first bytes of the next message, which stay where they are.
    async fn peek(&mut self) -> io::Result<[u8; FIXED]> {
        loop {
            let ready = self.buffer.get(self.start..self.end).unwrap_or_default();
            if let Some(header) = ready.first_chunk() {
                return Ok(*header);
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let count = read(&self.socket, self.buffer.get_mut(self.end..).unwrap_or_default()).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.end += count;
        }
    }

    async fn discard(&mut self, mut count: usize) -> io::Result<()> {
        while count > 0 {
            if self.start == self.end {
                self.start = 0;
                self.end = read(&self.socket, &mut self.buffer).await?;
                if self.end == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            let some = count.min(self.end - self.start);
            self.start += some;
            count -= some;
        }
        Ok(())
    }
}

/// Bytes of the header that every message has.
const FIXED: usize = 16;

/// The lengths of a message's header, with its padding, and of its body.
fn lengths(fixed: &[u8; FIXED]) -> (usize, usize) {
    let [endian, _, _, _, a, b, c, d, _, _, _, _, e, f, g, h] = *fixed;
    let number = |bytes| if endian == b'B' { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
    let size = |bytes| usize::try_from(number(bytes)).unwrap_or(usize::MAX);
    (FIXED.saturating_add(size([e, f, g, h])).saturating_add(7) & !7, size([a, b, c, d]))
}

/// A reader of messages up to a size.
#[derive(Debug)]
pub struct Bounded {
    reader: Reader,
    most: usize,
    turn: Option<Arc<Turn>>,
    /// Of several readers, one at a time reads a message over [`SHARED`], until it reads the next one.
    shared: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
    /// When a signal that was left out was logged.
    logged: Option<Instant>,
}

impl Bounded {
    /// Takes messages of `most` bytes, all at a time if there is no `turn`.
    pub fn new(reader: Reader, most: usize, turn: Option<Arc<Turn>>) -> Self {
        Self { reader, most, turn, shared: None, permit: None, logged: None }
    }

    /// Shares the room for larger messages with other readers.
    pub fn sharing(self, shared: Arc<Semaphore>) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// Reads no more of a message than its header: what stands for it, if anything.
    async fn skip(&mut self, seq: u64, header: usize, body: usize) -> zbus::Result<Option<Message>> {
        if header > HEADER_MAX {
            self.reader.discard(header.saturating_add(body)).await?;
            return Ok(None);
        }
        let mut bytes = vec![0; header];
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match self.reader.recvmsg(rest).await?.0 {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => at += count,
            }
        }
        self.reader.discard(body).await?;
        if let Some(length) = bytes.get_mut(4..8) {
            length.fill(0);
        }
        // it has a signature and no values, which no reader takes for an empty one
        let message = self.reader.receive_message(seq, &mut bytes, &mut Vec::new()).await?;
        let size = header.saturating_add(body);
        let fields = message.header();
        match message.message_type() {
            Type::MethodCall => Ok(Some(message)),
            Type::MethodReturn | Type::Error => {
                let answered = Message::method_call("/", "Skipped").build(&())?;
                let mut error = Message::error(&answered.header(), "org.freedesktop.DBus.Error.LimitsExceeded");
                error = error.reply_serial(fields.reply_serial());
                if let Some(sender) = fields.sender() {
                    error = error.sender(sender);
                }
                error.build(&format!("an answer of {size} bytes, over {} MiB", self.most / (1024 * 1024))).map(Some)
            }
            Type::Signal => {
                if self.logged.is_none_or(|last| last.elapsed() > LOG_EVERY) {
                    self.logged = Some(Instant::now());
                    let sender = fields.sender().map(|name| name.as_str()).unwrap_or_default();
                    log::warn!("a signal of {size} bytes of {} is left out: over {} MiB", escape(sender), self.most / (1024 * 1024));
                }
                Ok(None)
            }
        }
    }
}

#[async_trait]
impl ReadHalf for Bounded {
    async fn recvmsg(&mut self, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.reader.recvmsg(into).await
    }

    async fn receive_message(&mut self, seq: u64, already: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> zbus::Result<Message> {
        self.permit = None;
        loop {
            // what was read with the handshake belongs to the answer to our hello
            if already.is_empty() {
                let (header, body) = lengths(&self.reader.peek().await?);
                let size = header.saturating_add(body);
                if size > self.most {
                    match self.skip(seq, header, body).await? {
                        Some(message) => return Ok(message),
                        None => continue,
                    }
                }
                if size > SHARED
                    && let Some(shared) = &self.shared
                {
                    self.permit = shared.clone().acquire_owned().await.ok();
                }
                if size > LARGE
                    && let Some(turn) = &self.turn
                {
                    turn.begin().await;
                }
            }
            return self.reader.receive_message(seq, already, fds).await;
        }
    }
}

async fn read(socket: &AsyncFd<Arc<UnixStream>>, into: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| (&**socket.get_ref()).read(into)) {
            Ok(Ok(count)) => {
                if count < into.len() {
                    ready.clear_ready();
                }
                return Ok(count);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            // not ready after all
            Err(_) => {}
        }
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if self.start == self.end {
            // a large message goes where it belongs, without a detour
            if into.len() >= self.buffer.len() {
                return Ok((read(&self.socket, into).await?, Vec::new()));
            }
            self.start = 0;
            self.end = read(&self.socket, &mut self.buffer).await?;
        }
        let ready = self.buffer.get(self.start..self.end).unwrap_or_default();
        let count = ready.len().min(into.len());
        if let (Some(into), Some(ready)) = (into.get_mut(..count), ready.get(..count)) {
            into.copy_from_slice(ready);
        }
        self.start += count;
        Ok((count, Vec::new()))
    }
}

#[derive(Debug)]
struct Writer {
    socket: Arc<UnixStream>,
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        loop {
            match (&*self.socket).write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // rare: the bus does not read. Only then is the socket watched for writing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch_room(&self.socket)?.writable().await?.retain_ready();
                }
                done => return done,
            }
        }
    }

    /// All that is to be sent now, in as few writes as it takes.
    async fn send_messages(&mut self, messages: &[zbus::Message]) -> zbus::Result<()> {
        let bytes: Vec<u8> = messages.iter().flat_map(|message| message.data().bytes()).copied().collect();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let count = self.sendmsg(rest, &[]).await?;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        self.socket.shutdown(std::net::Shutdown::Both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(bytes: usize) -> Vec<u8> {
        vec![b'x'; bytes]
    }

    /// What is too large is not read, and what comes behind it is.
    #[tokio::test]
    async fn what_is_too_large_is_skipped() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut reader = Bounded::new(Reader::new(Arc::new(near), 1024).unwrap(), 100_000, None);
        let call = Message::method_call("/X", "SetValue").serial(7.try_into().unwrap()).build(&large(200_000)).unwrap();
        let answer = Message::method_return(&call.header()).sender(":1.5").build(&large(200_000)).unwrap();
        let signal = Message::signal("/", "com.victronenergy.BusItem", "ItemsChanged").build(&large(200_000)).unwrap();
        let small = Message::signal("/", "com.victronenergy.BusItem", "Small").build(&large(50_000)).unwrap();
        let sent = [call, answer, signal, small];
        let bus = std::thread::spawn(move || sent.iter().for_each(|message| far.write_all(message.data().bytes()).unwrap()));
        let mut next = async || reader.receive_message(1, &mut Vec::new(), &mut Vec::new()).await.unwrap();
        let call = next().await;
        assert_eq!((call.message_type(), call.header().member().unwrap().as_str(), call.body().len()), (Type::MethodCall, "SetValue", 0));
        let answer = next().await;
        assert_eq!(answer.message_type(), Type::Error);
        assert_eq!(answer.header().reply_serial(), Some(7.try_into().unwrap()));
        assert_eq!(answer.header().sender().unwrap().as_str(), ":1.5");
        assert!(answer.body().deserialize::<&str>().unwrap().starts_with("an answer of 200"));
        let small = next().await;
        assert_eq!((small.header().member().unwrap().as_str(), small.body().len()), ("Small", 50_004));
        bus.join().unwrap();
    }

    /// Of the large messages, the next one is read when the one before is done with.
    #[tokio::test]
    async fn large_messages_take_turns() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let turn = Arc::new(Turn::new());
        let mut reader = Bounded::new(Reader::new(Arc::new(near), BUFFER).unwrap(), MESSAGE_MAX, Some(turn.clone()));
        let signal = Message::signal("/", "com.victronenergy.BusItem", "ItemsChanged").build(&large(2 * LARGE)).unwrap();
        let bus = std::thread::spawn(move || (0..2).for_each(|_| far.write_all(signal.data().bytes()).unwrap()));
        let mut next = async || reader.receive_message(1, &mut Vec::new(), &mut Vec::new()).await.unwrap();
        let first = next().await;
        let mut second = Box::pin(next());
        assert!(futures_poll(&mut second).is_none());
        turn.end(&first);
        assert_eq!(second.await.body().len(), first.body().len());
        bus.join().unwrap();
    }

    /// However many readers there are, one large message is read at a time; a reader that ends lets the next one go on.
    #[tokio::test]
    async fn readers_share_the_room() {
        let shared = Arc::new(Semaphore::new(1));
        let large = Message::signal("/", "com.victronenergy.BusItem", "Large").build(&large(2 * SHARED)).unwrap();
        let small = Message::signal("/", "com.victronenergy.BusItem", "Small").build(&()).unwrap();
        let reader = |first: &Message| {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            far.write_all(first.data().bytes()).unwrap();
            (Bounded::new(Reader::new(Arc::new(near), 1024).unwrap(), MESSAGE_MAX, None).sharing(shared.clone()), far)
        };
        let ((mut first, _a), (mut second, _b), (mut third, _c)) = (reader(&large), reader(&large), reader(&small));
        first.receive_message(1, &mut Vec::new(), &mut Vec::new()).await.unwrap();
        let (mut already, mut fds) = (Vec::new(), Vec::new());
        let mut waiting = second.receive_message(1, &mut already, &mut fds);
        assert!(futures_poll(&mut waiting).is_none());
        third.receive_message(1, &mut Vec::new(), &mut Vec::new()).await.unwrap();
        drop(first);
        waiting.await.unwrap();
    }

    fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        match std::pin::Pin::new(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    /// The bus stands still, and goes on when more waits than the socket takes; somebody reads from our end all the while.
    #[tokio::test]
    async fn a_bus_that_does_not_read_is_waited_for() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let near = Arc::new(near);
        let mut reader = Reader::new(near.clone(), BUFFER).unwrap();
        let mut writer = Writer { socket: near };
        let full = vec![b'x'; 1 << 20];
        let mut given = writer.sendmsg(&full, &[]).await.unwrap();
        let bus = std::thread::spawn(move || {
            far.write_all(b"y").unwrap();
            let mut read = 0;
            let mut some = vec![0; BUFFER];
            while read < 4 << 20 {
                read += far.read(&mut some).unwrap();
            }
            far.write_all(b"z").unwrap();
        });
        let mut answer = [0];
        assert_eq!(reader.recvmsg(&mut answer).await.unwrap().0, 1);
        while given < 4 << 20 {
            given += writer.sendmsg(&full, &[]).await.unwrap();
        }
        assert_eq!((reader.recvmsg(&mut answer).await.unwrap().0, answer), (1, *b"z"));
        bus.join().unwrap();
    }
}
