//! The socket of a bus on this machine, read in large pieces.
//!
//! A change costs mostly what it takes to wake up and read it. So the socket is watched for reading only (watched for writing
//! as well, the kernel wakes us a second time for every message), one read takes everything that is there, and a read that
//! did not fill the buffer is known to have emptied the socket, so nobody asks again. File descriptors are not taken: nobody
//! sends us any.

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};

use crate::watch::{watch, watch_room};

/// A signal of ten items has about 1 KiB.
const BUFFER: usize = 64 * 1024;

/// Begins a connection to `address`.
pub async fn connect(address: &str) -> zbus::Result<Builder<'static>> {
    let Some(stream) = dial(address).await? else { return Ok(Builder::address(address.parse::<zbus::Address>()?)) };
    let stream = Arc::new(stream);
    Ok(Builder::socket(BusStream { reader: Reader::new(stream.clone(), BUFFER)?, writer: Writer { socket: stream } }))
}

/// The socket at `address`; `None` if it is not one of this machine's.
pub async fn dial(address: &str) -> zbus::Result<Option<UnixStream>> {
    let parsed: zbus::Address = address.parse()?;
    let Transport::Unix(unix) = parsed.transport() else { return Ok(None) };
    let stream = match unix.path() {
        UnixSocket::File(path) => tokio::net::UnixStream::connect(path).await?,
        UnixSocket::Abstract(name) => {
            let mut path = std::ffi::OsString::from("\0");
            path.push(name);
            tokio::net::UnixStream::connect(path).await?
        }
        _ => return Ok(None),
    };
    Ok(Some(stream.into_std()?))
}

#[derive(Debug)]
struct BusStream {
    reader: Reader,
    writer: Writer,
}

impl Socket for BusStream {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
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
