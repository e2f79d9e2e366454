//! The stream to the broker, which two write to: the client library its packets, and the loop what it publishes.
//!
//! A publish of QoS 0 is one line of bytes that nobody answers. On its way through the client library it would cost more than
//! everything else that is done for a change, so the loop puts it where the library's own packets go. Both append whole packets,
//! so nothing gets between the bytes of one. Everything runs in one thread: the lock is there for the compiler.
//!
//! What comes is the library's, except messages larger than it takes: it would end the connection for one, and if that is retained, the
//! next connection as well, for ever. They are passed over. Nothing is subscribed to with more than QoS 0, so nobody waits for an answer.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::bridge::Publish;
use crate::text::{QUOTE_MAX, escape_bytes};

/// So many bytes may wait for the socket; the rest waits in the outbox, where a newer value takes the place of an older one.
const FULL: usize = 32 * 1024;
/// A large packet leaves no large buffer behind.
const KEEP: usize = 4 * FULL;

/// The type of packet that a message is.
const PUBLISH: u8 = 3;

/// What may stand under a pipe: a TCP or a TLS stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// One end; all its clones are the same pipe.
#[derive(Clone)]
pub struct Pipe(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// There is room again for a loop that found none.
    room: Notify,
    leaving: AtomicBool,
}

struct Inner {
    stream: Box<dyn Stream>,
    /// Whole packets; those before `sent` are gone.
    out: Vec<u8>,
    sent: usize,
    /// The task of the connection, which waits for the socket.
    task: Option<Waker>,
    starved: bool,
    incoming: Incoming,
}

/// Where in the packets of the broker we are.
struct Incoming {
    /// Longest message that is handed on, without its fixed header.
    max: usize,
    /// A fixed header whose end has not come yet.
    header: Vec<u8>,
    /// A fixed header that is to be handed on next.
    ready: Vec<u8>,
    /// Bytes to come after the fixed header.
    left: usize,
    /// They are passed over: how many there were, and the first of them.
    skipped: Option<(usize, Vec<u8>)>,
    told: bool,
}

impl Pipe {
    /// Messages of more than `max` bytes do not come through.
    pub fn new(stream: impl Stream + 'static, max: usize) -> Self {
        let incoming = Incoming { max, header: Vec::new(), ready: Vec::new(), left: 0, skipped: None, told: false };
        let inner = Inner { stream: Box::new(stream), out: Vec::new(), sent: 0, task: None, starved: false, incoming };
        Self(Arc::new(Shared { inner: Mutex::new(inner), room: Notify::new(), leaving: AtomicBool::new(false) }))
    }

    /// Appends a message; false when its topic is too long for a packet.
    pub fn publish(&self, publish: &Publish) -> bool {
        write_publish(&mut self.lock().out, publish)
    }

    /// Whether a message can be taken. If not, [`Pipe::room`] ends when one can.
    pub fn has_room(&self) -> bool {
        let mut inner = self.lock();
        if inner.waiting() >= FULL {
            inner.push();
        }
        inner.starved = inner.waiting() >= FULL;
        !inner.starved
    }

    /// Whether the last answer was no, and nothing has been said since.
    pub fn is_starved(&self) -> bool {
        self.lock().starved
    }

    pub async fn room(&self) {
        self.0.room.notified().await;
    }

    /// Writes what is there, as far as the socket takes it. The rest goes when it takes more.
    pub fn flush(&self) {
        self.lock().push();
    }

    /// Writes what is there. To be polled by the task of the connection, together with the client library.
    pub fn poll_out(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let written = inner.poll_out(context);
        if inner.starved && inner.waiting() < FULL / 2 {
            inner.starved = false;
            self.0.room.notify_one();
        }
        written
    }

    /// The loop has said good-bye.
    pub fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    pub fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    /// A try on the loop's account; whatever it leaves undone, the task of the connection takes up.
    fn push(&mut self) {
        if self.waiting() == 0 {
            return;
        }
        let mut context = Context::from_waker(Waker::noop());
        if !matches!(self.poll_write(&mut context), Poll::Ready(Ok(())))
            && let Some(task) = self.task.take()
        {
            task.wake();
        }
    }

    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(context.waker())) {
            self.task = Some(context.waker().clone());
        }
        self.poll_write(context)
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut *self.stream).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.out.clear();
        self.out.shrink_to(KEEP);
        self.sent = 0;
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_read(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let incoming = &mut self.incoming;
        loop {
            if !incoming.ready.is_empty() {
                let count = incoming.ready.len().min(into.remaining());
                into.put_slice(incoming.ready.drain(..count).as_slice());
                return Poll::Ready(Ok(()));
            }
            // rare: what was read before ended within a fixed header, for the rest of which there may be no room in `into`
            if !incoming.header.is_empty() {
                let mut byte = [0];
                let mut one = ReadBuf::new(&mut byte);
                ready!(Pin::new(&mut *self.stream).poll_read(context, &mut one))?;
                let [byte] = *one.filled() else { return Poll::Ready(Ok(())) };
                if incoming.read_header(byte) {
                    std::mem::swap(&mut incoming.header, &mut incoming.ready);
                }
                continue;
            }
            let start = into.filled().len();
            ready!(Pin::new(&mut *self.stream).poll_read(context, into))?;
            let read = into.filled_mut().get_mut(start..).unwrap_or_default();
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let kept = incoming.sift(read);
            into.set_filled(start + kept);
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl Incoming {
    /// Moves what is to be handed on to the front, and says how much it is. To be called between two packets or within a body.
    fn sift(&mut self, bytes: &mut [u8]) -> usize {
        let (mut from, mut to) = (0, 0);
        while let Some(byte) = bytes.get(from).copied() {
            if self.left == 0 {
                from += 1;
                if self.read_header(byte) {
                    // it has come with these bytes, so there is room for it before `from`
                    if let Some(place) = bytes.get_mut(to..to + self.header.len()) {
                        place.copy_from_slice(&self.header);
                    }
                    to += self.header.len();
                    self.header.clear();
                }
                continue;
            }
            let count = self.left.min(bytes.len() - from);
            self.left -= count;
            if self.skipped.is_some() {
                self.skip(bytes.get(from..from + count).unwrap_or_default());
            } else {
                bytes.copy_within(from..from + count, to);
                to += count;
            }
            from += count;
        }
        to
    }

    /// Whether this byte is the last of a fixed header (MQTT 3.1.1, section 2.2) that is to be handed on.
    fn read_header(&mut self, byte: u8) -> bool {
        self.header.push(byte);
        let Some((kind, length)) = self.header.split_first() else { return false };
        let goes_on = byte & 0x80 != 0;
        if length.is_empty() || (goes_on && length.len() < 4) {
            return false;
        }
        if goes_on {
            // this is no MQTT, which the library shall say
            self.left = usize::MAX;
            return true;
        }
        self.left = length.iter().rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7f));
        if kind >> 4 == PUBLISH && self.left > self.max {
            self.skipped = Some((self.left, Vec::new()));
            self.header.clear();
            return false;
        }
        true
    }

    /// Part of a message that is passed over; at its end it is said which one.
    fn skip(&mut self, bytes: &[u8]) {
        let Some((size, head)) = &mut self.skipped else { return };
        let missing = (2 + QUOTE_MAX).saturating_sub(head.len());
        head.extend(bytes.iter().take(missing));
        if self.left > 0 {
            return;
        }
        let topic = match head.as_slice() {
            [high, low, topic @ ..] => topic.get(..u16::from_be_bytes([*high, *low]).into()).unwrap_or(topic),
            _ => &[],
        };
        let level = if self.told { log::Level::Debug } else { log::Level::Warn };
        let (topic, max) = (escape_bytes(topic), self.max);
        log::log!(level, "a message of {size} bytes on {topic} is passed over: more than {max}; if it is retained, clear it");
        self.told = true;
        self.skipped = None;
    }
}

/// The client library's end.
impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_read(context, into)
    }
}

impl AsyncWrite for Pipe {
    /// Takes everything: the library hands over whole packets, and few.
    fn poll_write(self: Pin<&mut Self>, _context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lock().out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock().stream).poll_shutdown(context)
    }
}

/// MQTT 3.1.1, section 3.3, with QoS 0.
fn write_publish(out: &mut Vec<u8>, publish: &Publish) -> bool {
    let Ok(topic_length) = u16::try_from(publish.topic.len()) else { return false };
    out.push(0x30 | u8::from(publish.retain));
    let mut remaining = 2 + publish.topic.len() + publish.payload.len();
    loop {
        let digit = u8::try_from(remaining % 128).unwrap_or_default();
        remaining /= 128;
        out.push(if remaining > 0 { digit | 0x80 } else { digit });
        if remaining == 0 {
            break;
        }
    }
    out.extend_from_slice(&topic_length.to_be_bytes());
    out.extend_from_slice(publish.topic.as_bytes());
    out.extend_from_slice(&publish.payload);
    true
}

#[cfg(test)]
mod tests {
    use rumqttc::mqttbytes::v4::Packet;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn message(payload: usize) -> Publish {
        Publish { topic: "N/c0619ab1c2d3/battery/512/Soc".into(), payload: vec![b'x'; payload], retain: true }
    }

    /// The client library reads back what was written, whatever its length.
    #[test]
    fn packets() {
        for payload in [0, 10, 90, 127, 128, 16_383, 16_384, 300_000] {
            let mut out = Vec::new();
            assert!(write_publish(&mut out, &message(payload)));
            let mut bytes = out.as_slice().into();
            let Packet::Publish(read) = Packet::read(&mut bytes, 1 << 20).unwrap() else { panic!("another packet") };
            assert_eq!((&read.topic[..], read.payload.len(), read.retain), (message(0).topic.as_bytes(), payload, true));
            assert!(bytes.is_empty());
        }
        assert!(!write_publish(&mut Vec::new(), &Publish { topic: "x".repeat(70_000), payload: Vec::new(), retain: false }));
    }

    #[tokio::test]
    async fn a_full_pipe_says_when_it_has_room_again() {
        let (near, mut far) = tokio::io::duplex(1024);
        let pipe = Pipe::new(near, 1 << 20);
        let mut library = pipe.clone();
        let mut given = 0;
        while pipe.has_room() {
            assert!(pipe.publish(&message(1000)));
            given += 1;
        }
        library.write_all(b"the library's own").await.unwrap();
        let task = tokio::spawn(async move { std::future::poll_fn(|context| library.poll_out(context)).await });
        let mut read = Vec::new();
        let mut rooms = 0;
        while !read.ends_with(b"the library's own") {
            let mut some = [0; 4096];
            let count = far.read(&mut some).await.unwrap();
            read.extend_from_slice(&some[..count]);
            tokio::select! {
                biased;
                () = pipe.room() => rooms += 1,
                () = std::future::ready(()) => {}
            }
        }
        task.await.unwrap().unwrap();
        assert_eq!(rooms, 1, "told once");
        let mut bytes = read.as_slice().into();
        for _ in 0..given {
            assert!(matches!(Packet::read(&mut bytes, 1 << 20), Ok(Packet::Publish(_))));
        }
        assert_eq!(&bytes[..], b"the library's own");
    }

    /// What comes out of a pipe with room for messages of 200 bytes, read in pieces of `size`.
    async fn read_through(stream: impl AsyncRead + Send + Sync + Unpin + 'static, size: usize) -> Vec<u8> {
        let mut pipe = Pipe::new(tokio::io::join(stream, tokio::io::sink()), 200);
        let (mut read, mut piece) = (Vec::new(), vec![0; size]);
        loop {
            let count = pipe.read(&mut piece).await.unwrap();
            if count == 0 {
                return read;
            }
            read.extend_from_slice(&piece[..count]);
        }
    }

    fn packet(topic: &str, remaining: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let payload = vec![b'x'; remaining - 2 - topic.len()];
        assert!(write_publish(&mut out, &Publish { topic: topic.into(), payload, retain: true }));
        out
    }

    /// Wherever the bytes are cut on their way.
    #[tokio::test]
    async fn what_is_too_long_is_passed_over() {
        let mut long_suback = vec![0x90, 0xac, 2];
        long_suback.resize(3 + 300, 0x80);
        let all = [
            (true, vec![0x20, 2, 0, 0]),
            (false, packet("device/evil/Status", 201)),
            (true, packet("device/fe001/Status", 200)),
            (true, vec![0xd0, 0]),
            (false, packet("device/evil/Status", 300)),
            (false, packet("N/x", 20_000)),
            (true, long_suback),
            (true, packet("N/x", 127)),
            (false, packet("N/x", 201)),
            (true, vec![0xd0, 0]),
        ];
        let bytes: Vec<u8> = all.iter().flat_map(|(_, packet)| packet).copied().collect();
        let wanted: Vec<u8> = all.iter().filter(|(passes, _)| *passes).flat_map(|(_, packet)| packet).copied().collect();
        for size in [1, 2, 7, 200, 100_000] {
            assert_eq!(read_through(io::Cursor::new(bytes.clone()), size).await, wanted, "in pieces of {size}");
        }
        // the largest is cut near its ends only
        for cut in (0..=bytes.len()).filter(|cut| !(1000..20_000).contains(cut)) {
            let (before, after) = bytes.split_at(cut);
            let stream = io::Cursor::new(before.to_vec()).chain(io::Cursor::new(after.to_vec()));
            assert_eq!(read_through(stream, 4096).await, wanted, "cut at {cut}");
        }
    }

    /// It is for the library to say what is wrong.
    #[tokio::test]
    async fn what_is_no_mqtt_is_handed_on() {
        let bytes = b"\xff\xff\xff\xff\xff\xff\x30\xff\xff\x7f and whatever follows".to_vec();
        assert_eq!(read_through(io::Cursor::new(bytes.clone()), 5).await, bytes);
        assert_eq!(read_through(io::Cursor::new(bytes.clone()), 100).await, bytes);
    }
}
