//! The stream to the broker, which two write to: the client library its packets, and the loop what it publishes.
//!
//! A publish of QoS 0 is one line of bytes that nobody answers. On its way through the client library it would cost more than
//! everything else that is done for a change, so the loop puts it where the library's own packets go. Both append whole packets,
//! so nothing gets between the bytes of one. Everything runs in one thread: the lock is there for the compiler.
//!
//! What was sent is kept until the broker has confirmed it with the answer to a PINGREQ ([`Flow`]): then it is known what a connection
//! that closes has not confirmed ([`Refused`]).
//!
//! What comes is the library's, except messages larger than it takes: it would end the connection for one, and if that is retained, the
//! next connection as well, for ever. They are passed over; of a retained one, the topic is handed on. Nothing is subscribed to with more than QoS 0, so nobody waits for an answer.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::flow::Flow;
use super::incoming::{Incoming, write_length};
use super::refused::{Refused, Subject, split_packet, subjects};
use super::takeover::Closing;
use crate::bridge::Publish;

/// With so many bytes waiting for the socket, it is tried before more is added.
const FULL: usize = 32 * 1024;
/// A large packet leaves no large buffer behind.
const KEEP: usize = 4 * FULL;
/// Bytes on their way while there are suspects: no more packets than are remembered.
const CAREFUL: u64 = 2 * 1024;
/// On a connection that held so long, suspects that were not sent again are cleared.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

/// How long nothing is sent on a connection after one that was closed for a reason unknown: longer than common clients wait before they
/// connect again. Another client with the same client ID ends it by then, and not by chance just when a suspect is tried.
const QUIET: Duration = Duration::from_secs(2);

/// A type of packet, and a packet (MQTT 3.1.1, section 2.2.1).
const SUBSCRIBE: u8 = 8;
const PINGREQ: [u8; 2] = [0xc0, 0];

/// What may stand under a pipe: a TCP or a TLS stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// What has become of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published {
    /// It is sent, or about to be.
    Given,
    /// The broker refuses it: it is not sent, and what was retained on its topic is cleared.
    LeftOut,
    /// Its topic is longer than a packet can have.
    TooLong,
}

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
    began: Instant,
    flow: Flow,
    /// Whole packets that the broker has not confirmed; those before `sent` have been given to the socket.
    out: Vec<u8>,
    sent: usize,
    /// The count of bytes before `out`.
    start: u64,
    refused: Refused,
    /// Packets that wait for a suspect among them, or before them, to be sent alone.
    parked: VecDeque<Vec<u8>>,
    /// What is being sent alone, and the count of bytes with which it is confirmed.
    alone: Vec<Subject>,
    alone_until: u64,
    /// No message is sent before, and no suspect; while `is_wary`, nothing but PINGREQs.
    quiet_until: Option<Instant>,
    is_wary: bool,
    /// The broker has closed the connection.
    closed: bool,
    /// Nothing waits within the stream.
    flushed: bool,
    /// The task of the connection, which waits for the socket.
    task: Option<Waker>,
    starved: bool,
    incoming: Incoming,
}

impl Pipe {
    /// Messages of more than `max` bytes do not come through.
    pub fn new(stream: impl Stream + 'static, max: usize, keep_alive: Duration) -> Self {
        let began = Instant::now();
        let inner = Inner {
            stream: Box::new(stream),
            began,
            flow: Flow::new(began, keep_alive),
            out: Vec::new(),
            sent: 0,
            start: 0,
            refused: Refused::default(),
            parked: VecDeque::new(),
            alone: Vec::new(),
            alone_until: 0,
            quiet_until: None,
            is_wary: false,
            closed: false,
            flushed: true,
            task: None,
            starved: false,
            incoming: Incoming::new(max),
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), room: Notify::new(), leaving: AtomicBool::new(false) }))
    }

    /// What the broker refuses, as known from connections before. If it closed one for a reason unknown, no message and no suspect is sent
    /// at first; nothing at all if `is_wary`.
    pub(super) fn begin(&self, mut refused: Refused, is_wary: bool) {
        let mut inner = self.lock();
        refused.begin(inner.began);
        if is_wary || refused.has_suspects() {
            inner.quiet_until = Some(Instant::now() + QUIET);
        }
        (inner.refused, inner.is_wary) = (refused, is_wary);
    }

    /// Sends at once what [`Self::begin`] has put off.
    pub(super) fn end_quiet(&self) {
        self.lock().end_quiet(Instant::now());
    }

    /// Whether the broker has closed the connection, and was not asked to.
    pub(super) fn was_closed(&self) -> bool {
        self.lock().closed && !self.is_leaving()
    }

    /// Called when the connection has ended; `is_there` says whether the broker still accepts connections, `is_doubted` whether it
    /// may have closed it for another reason than a packet. Returns what is known now of the packets that the broker refuses, and how the connection ended.
    pub(super) fn finish(&self, is_there: bool, is_doubted: bool) -> (Refused, Closing) {
        let mut inner = self.lock();
        inner.read_rest();
        let mut refused = std::mem::take(&mut inner.refused);
        if !is_there || !inner.closed || self.is_leaving() {
            return (refused, Closing::Other);
        }
        let unconfirmed = subjects(inner.out.get(..inner.sent).unwrap_or_default());
        // a broker that closes before it has confirmed anything does so for another reason
        let is_confirmed = inner.flow.is_confirmed();
        let is_known = is_confirmed && refused.closed(Instant::now(), &unconfirmed, is_doubted);
        let closing = match is_known {
            true => Closing::Refused { more: !refused.is_full() },
            false if is_confirmed && unconfirmed.is_empty() => Closing::Confirmed,
            false => Closing::Unconfirmed,
        };
        (refused, closing)
    }

    /// Divides the filters of a subscription: those that may share a packet, those that are sent alone, those that are left out.
    pub fn divide(&self, filters: Vec<String>) -> (Vec<String>, Vec<String>, Vec<String>) {
        let inner = self.lock();
        let (mut shared, mut alone, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for filter in filters {
            let subject = Subject::Filter(filter.clone());
            let list = if inner.refused.leaves_out(&subject, usize::MAX) {
                &mut left_out
            } else if inner.refused.is_suspect(&subject) {
                &mut alone
            } else {
                &mut shared
            };
            list.push(filter);
        }
        (shared, alone, left_out)
    }

    /// Appends a message. One that the broker refuses is left out, and its topic cleared.
    pub fn publish(&self, publish: &Publish) -> Published {
        self.lock().publish(publish)
    }

    /// Whether a message can be taken. If not, [`Pipe::room`] ends when one can.
    pub fn has_room(&self) -> bool {
        let mut inner = self.lock();
        if inner.waiting() >= FULL {
            inner.push();
        }
        inner.starved = !inner.has_room();
        if inner.starved {
            inner.wait_for_room(Instant::now());
            inner.push();
        }
        !inner.starved
    }

    /// Whether the link carries so little that large answers of the broker would hold up requests.
    pub fn is_slow(&self) -> bool {
        self.lock().flow.is_slow()
    }

    /// The broker is to answer this SUBSCRIBE.
    pub fn subscribing(&self, packet: u16) {
        self.lock().flow.subscribing(Instant::now(), packet);
    }

    pub fn subscribed(&self, packet: u16) {
        self.lock().flow.subscribed(packet);
    }

    /// Sends what is due; an error when the broker counts as dead. Returns when to call it again. To be called with everything read
    /// that has come.
    pub fn tick(&self) -> io::Result<Instant> {
        let mut inner = self.lock();
        let due = inner.tick(Instant::now());
        if inner.starved && inner.has_room() {
            inner.starved = false;
            self.0.room.notify_one();
        }
        due
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
        self.lock().poll_out(context)
    }

    /// The loop has said good-bye.
    pub fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
        self.end_quiet();
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

    fn has_room(&self) -> bool {
        let is_alone = !self.parked.is_empty() || self.flow.acked() < self.alone_until;
        let careful = self.refused.has_suspects() && self.flow.given() - self.flow.acked() >= CAREFUL;
        self.quiet_until.is_none() && !is_alone && !careful && self.flow.has_room()
    }

    /// No room was found. A PINGREQ has to be under way, lest no answer ever makes some; the end of the quiet time needs none.
    fn wait_for_room(&mut self, now: Instant) {
        if self.quiet_until.is_none() && self.flow.wait() {
            self.ping(now);
        }
    }

    fn publish(&mut self, publish: &Publish) -> Published {
        let before = self.out.len();
        if !write_publish(&mut self.out, publish) {
            return Published::TooLong;
        }
        let size = self.out.len() - before;
        if self.refused.leaves_anything_out() || self.refused.has_suspects() {
            let subject = Subject::Topic(publish.topic.clone());
            if self.refused.leaves_out(&subject, size) {
                self.out.truncate(before);
                // an older value must not stay retained in its place
                if publish.retain && !publish.payload.is_empty() {
                    self.publish(&Publish { topic: publish.topic.clone(), payload: Vec::new(), retain: true });
                }
                return Published::LeftOut;
            }
            if self.refused.is_suspect(&subject) {
                let packet = self.out.split_off(before);
                self.parked.push_back(packet);
                self.advance(Instant::now());
                return Published::Given;
            }
        }
        self.given(size);
        Published::Given
    }

    /// Bytes were appended.
    fn given(&mut self, size: usize) {
        if self.flow.give(size) {
            self.ping(Instant::now());
        }
    }

    fn ping(&mut self, now: Instant) {
        self.out.extend_from_slice(&PINGREQ);
        let _ = self.flow.give(PINGREQ.len());
        self.flow.ping(now);
    }

    /// Packets of the client library.
    fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let all = bytes;
            let packet = match split_packet(&mut bytes) {
                Some((kind, size, _)) => all.get(..size).map(|packet| (kind >> 4, packet)),
                None => None,
            };
            // the library hands over whole packets
            let (kind, packet) = packet.unwrap_or((0, std::mem::take(&mut bytes)));
            let is_suspect = kind == SUBSCRIBE
                && self.refused.has_suspects()
                && subjects(packet).iter().any(|(subject, _)| self.refused.is_suspect(subject));
            if is_suspect || !self.parked.is_empty() || (self.is_wary && self.quiet_until.is_some()) {
                self.parked.push_back(packet.to_vec());
            } else {
                self.append_packet(packet);
            }
        }
        if !self.parked.is_empty() {
            self.advance(Instant::now());
        }
    }

    fn append_packet(&mut self, packet: &[u8]) {
        self.out.extend_from_slice(packet);
        self.given(packet.len());
        // its answer tells whether the broker has looked at the SUBSCRIBE
        if packet.first().is_some_and(|kind| kind >> 4 == SUBSCRIBE) {
            self.ping(Instant::now());
        }
    }

    /// Sends what waits to be sent alone, one after the other.
    fn advance(&mut self, now: Instant) {
        if self.quiet_until.is_some() || self.flow.acked() < self.alone_until {
            return;
        }
        for subject in self.alone.drain(..) {
            self.refused.clear(&subject);
        }
        while let Some(packet) = self.parked.front() {
            let subjects = subjects(packet);
            let is_suspect = subjects.iter().any(|(subject, _)| self.refused.is_suspect(subject));
            if is_suspect && self.flow.acked() < self.flow.given() {
                if !self.flow.ends_with_ping() {
                    self.ping(now);
                }
                return;
            }
            let Some(packet) = self.parked.pop_front() else { return };
            self.append_packet(&packet);
            if is_suspect {
                if !self.flow.ends_with_ping() {
                    self.ping(now);
                }
                self.alone_until = self.flow.given();
                self.alone = subjects.into_iter().map(|(subject, _)| subject).collect();
                return;
            }
        }
    }

    fn end_quiet(&mut self, now: Instant) {
        self.quiet_until = None;
        self.advance(now);
    }

    /// Counts the answers that have come. Returns whether there is room again for a loop that found none.
    fn count_answers(&mut self) -> bool {
        if self.incoming.connacks == 0 && self.incoming.pingresps == 0 {
            return false;
        }
        let now = Instant::now();
        if std::mem::take(&mut self.incoming.connacks) > 0 {
            self.flow.connected(now, self.began);
            // what comes later than its answer is not the CONNECT's fault
            self.ping(now);
        }
        let pingresps = std::mem::take(&mut self.incoming.pingresps);
        (0..pingresps).for_each(|_| self.flow.pong(now));
        self.trim();
        if pingresps > 0 {
            self.advance(now);
        }
        if !self.starved {
            return false;
        }
        if !self.has_room() {
            self.wait_for_room(now);
            return false;
        }
        self.starved = false;
        true
    }

    /// Drops what the broker has confirmed.
    fn trim(&mut self) {
        let confirmed = usize::try_from(self.flow.acked() - self.start).unwrap_or(usize::MAX).min(self.sent);
        if confirmed > 0 {
            if self.refused.leaves_anything_out() || self.refused.has_suspects() {
                self.refused.taken(self.out.get(..confirmed).unwrap_or_default());
            }
            self.out.drain(..confirmed);
            self.sent -= confirmed;
            self.start += confirmed as u64;
        }
        if self.out.is_empty() {
            self.out.shrink_to(KEEP);
        }
    }

    fn tick(&mut self, now: Instant) -> io::Result<Instant> {
        if let Some(why) = self.flow.failed(now) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        if self.flow.ping_due() <= now {
            if now.saturating_duration_since(self.began) >= SUSPECT_FOR {
                self.refused.clear_all();
            }
            self.ping(now);
        }
        if self.quiet_until.is_some_and(|until| until <= now) {
            self.end_quiet(now);
        }
        Ok(self.quiet_until.map_or(self.flow.due(), |until| until.min(self.flow.due())))
    }

    /// Reads what has come before the connection ended: it may confirm what was sent.
    fn read_rest(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut buffer = [0; 4096];
        loop {
            let mut into = ReadBuf::new(&mut buffer);
            match self.poll_read(&mut context, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
                _ => break,
            }
        }
        self.count_answers();
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
        if self.waiting() == 0 && self.flushed {
            return Poll::Ready(Ok(()));
        }
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let written = match ready!(Pin::new(&mut *self.stream).poll_write(context, rest)) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                written => written,
            };
            let written = written.inspect_err(|error| self.closed |= is_closing(error))?;
            self.flushed = false;
            self.sent += written;
            self.flow.take(Instant::now(), written);
        }
        ready!(Pin::new(&mut *self.stream).poll_flush(context)).inspect_err(|error| self.closed |= is_closing(error))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let incoming = &mut self.incoming;
            if !incoming.ready.is_empty() {
                let count = incoming.ready.len().min(into.remaining());
                into.put_slice(incoming.ready.drain(..count).as_slice());
                return Poll::Ready(Ok(()));
            }
            // rare: what was read before ended within a fixed header, for the rest of which there may be no room in `into`
            if !incoming.header.is_empty() {
                let mut byte = [0];
                let mut one = ReadBuf::new(&mut byte);
                let read = ready!(Pin::new(&mut *self.stream).poll_read(context, &mut one));
                read.inspect_err(|error| self.closed |= is_closing(error))?;
                let [byte] = *one.filled() else {
                    self.closed = true;
                    return Poll::Ready(Ok(()));
                };
                self.flow.read(Instant::now());
                if incoming.read_header(byte) {
                    std::mem::swap(&mut incoming.header, &mut incoming.ready);
                }
                continue;
            }
            let start = into.filled().len();
            let read = ready!(Pin::new(&mut *self.stream).poll_read(context, into));
            read.inspect_err(|error| self.closed |= is_closing(error))?;
            let read = into.filled_mut().get_mut(start..).unwrap_or_default();
            if read.is_empty() {
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            self.flow.read(Instant::now());
            let kept = incoming.sift(read);
            into.set_filled(start + kept);
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The client library's end.
impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let read = inner.poll_read(context, into);
        if inner.count_answers() {
            self.0.room.notify_one();
        }
        read
    }
}

impl AsyncWrite for Pipe {
    /// Takes everything: the library hands over whole packets, and few.
    fn poll_write(self: Pin<&mut Self>, _context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lock().append(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock().stream).poll_shutdown(context)
    }
}

/// Whether the error says that the other side has closed the connection, whatever is lost with it.
pub(super) fn is_closing(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// MQTT 3.1.1, section 3.3, with QoS 0.
fn write_publish(out: &mut Vec<u8>, publish: &Publish) -> bool {
    let Ok(topic_length) = u16::try_from(publish.topic.len()) else { return false };
    out.push(0x30 | u8::from(publish.retain));
    write_length(out, 2 + publish.topic.len() + publish.payload.len());
    out.extend_from_slice(&topic_length.to_be_bytes());
    out.extend_from_slice(publish.topic.as_bytes());
    out.extend_from_slice(&publish.payload);
    true
}

#[cfg(test)]
mod tests {
    use rumqttc::mqttbytes::v4::Packet;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::incoming::LARGE;
    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(20);

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

    /// The other end: answers the CONNECT and each PINGREQ, and reads what `accepts` takes. It closes at what it does not accept.
    async fn answer(mut far: tokio::io::DuplexStream, accepts: impl Fn(&Subject, usize) -> bool) -> Vec<Subject> {
        let (mut taken, mut bytes) = (Vec::new(), Vec::new());
        loop {
            let mut rest = bytes.as_slice();
            while let Some((kind, size, body)) = split_packet(&mut { rest })
                && let Some(packet) = rest.get(..size)
            {
                for (subject, size) in subjects(packet) {
                    if !accepts(&subject, size) {
                        return taken;
                    }
                    taken.push(subject);
                }
                let answer: &[u8] = match kind >> 4 {
                    1 => &[0x20, 2, 0, 0],
                    8 => &[0x90, 3, body[0], body[1], 0],
                    12 => &[0xd0, 0],
                    _ => &[],
                };
                far.write_all(answer).await.unwrap();
                rest = &rest[size..];
            }
            bytes = rest.to_vec();
            if far.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
                return taken;
            }
        }
    }

    /// What the client library does with its end until it is closed.
    async fn read_to_end(mut pipe: Pipe) {
        let mut some = [0; 1024];
        loop {
            let read = std::future::poll_fn(|context| {
                if let Poll::Ready(Err(_)) = pipe.poll_out(context) {
                    return Poll::Ready(0);
                }
                let mut into = ReadBuf::new(&mut some);
                Pin::new(&mut pipe).poll_read(context, &mut into).map(|read| read.map_or(0, |()| into.filled().len()))
            });
            if read.await == 0 {
                return;
            }
        }
    }

    /// Waits until the last byte is confirmed, or the connection is closed.
    async fn confirm(pipe: &Pipe, library: &tokio::task::JoinHandle<()>) {
        while !library.is_finished() {
            {
                let mut inner = pipe.lock();
                if inner.flow.acked() == inner.flow.given() && inner.parked.is_empty() {
                    return;
                }
                if !inner.flow.ends_with_ping() {
                    inner.ping(Instant::now());
                }
                inner.push();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    const CONNECT: [u8; 14] = [0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 20, 0, 0];

    #[tokio::test]
    async fn a_full_pipe_says_when_it_has_room_again() {
        let (near, far) = tokio::io::duplex(1024);
        let pipe = Pipe::new(near, 1 << 20, KEEP_ALIVE);
        pipe.clone().write_all(&CONNECT).await.unwrap();
        let mut given = 0;
        while pipe.has_room() {
            assert_eq!(pipe.publish(&message(1000)), Published::Given);
            given += 1;
        }
        assert!((2..10).contains(&given), "the first window is small: {given}");
        let broker = tokio::spawn(answer(far, |_, _| true));
        let library = tokio::spawn(read_to_end(pipe.clone()));
        for _ in 0..1000 {
            pipe.room().await;
            while pipe.has_room() {
                assert_eq!(pipe.publish(&message(1000)), Published::Given);
                given += 1;
            }
            pipe.flush();
        }
        assert!(given > 1000);
        assert!(!pipe.is_slow(), "it has grown");
        confirm(&pipe, &library).await;
        library.abort();
        let _ = library.await;
        drop(pipe);
        assert_eq!(broker.await.unwrap().len(), given);
    }

    /// Publishes and subscribes on one connection; returns what the broker took.
    async fn connect_once(refused: &mut Refused, accepts: impl Fn(&Subject, usize) -> bool + Send + 'static) -> (Vec<Subject>, bool) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let pipe = Pipe::new(near, 1 << 20, KEEP_ALIVE);
        let broker = tokio::spawn(answer(far, accepts));
        pipe.begin(std::mem::take(refused), false);
        pipe.lock().end_quiet(Instant::now());
        pipe.clone().write_all(&CONNECT).await.unwrap();
        let library = tokio::spawn(read_to_end(pipe.clone()));
        confirm(&pipe, &library).await;
        let (shared, alone, _) = pipe.divide(vec!["R/x/#".into(), "will/1".into(), "bad".into(), "will/2".into()]);
        let groups = [shared].into_iter().chain(alone.into_iter().map(|filter| vec![filter]));
        for group in groups.filter(|group| !group.is_empty()) {
            let mut body = vec![0, 1];
            for filter in group {
                body.extend([&[0, filter.len() as u8], filter.as_bytes(), &[0]].concat());
            }
            let packet = [&[0x82, body.len() as u8], body.as_slice()].concat();
            pipe.clone().write_all(&packet).await.unwrap();
            pipe.flush();
        }
        let mut sent = 0;
        while sent < 100 && !library.is_finished() {
            if pipe.has_room() {
                let payload = if sent == 33 { vec![b'x'; 5000] } else { vec![b'1'] };
                pipe.publish(&Publish { topic: format!("N/x/{sent}"), payload, retain: true });
                pipe.flush();
                sent += 1;
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        confirm(&pipe, &library).await;
        let closed = library.is_finished();
        (*refused, _) = pipe.finish(true, false);
        library.abort();
        let _ = library.await;
        drop(pipe);
        (broker.await.unwrap(), closed)
    }

    #[tokio::test]
    async fn what_the_broker_closes_over_is_left_out() {
        let mut refused = Refused::default();
        let mut connections = 0;
        let taken = loop {
            connections += 1;
            let (taken, closed) =
                connect_once(&mut refused, |subject, size| size < 2000 && *subject != Subject::Filter("bad".into())).await;
            if !closed {
                break taken;
            }
            assert!(connections < 10, "it does not converge");
        };
        assert!(connections <= 6, "{connections}");
        let topics = taken.iter().filter(|subject| matches!(subject, Subject::Topic(_))).count();
        // of the message that is refused the topic is cleared
        assert_eq!((topics, taken.len() - topics), (100, 3), "all but the two refused: {taken:?}");
    }

    /// After a connection that was closed for an unknown reason, nothing is sent at first, so nothing is blamed when that one is closed too.
    #[tokio::test]
    async fn a_connection_is_quiet_while_a_suspect_is_known() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let pipe = Pipe::new(near, 1 << 20, KEEP_ALIVE);
        let mut refused = Refused::default();
        let suspect = (Subject::Filter("R/x/#".into()), 10);
        refused.closed(Instant::now(), std::slice::from_ref(&suspect), false);
        let (close, closed) = tokio::sync::oneshot::channel::<()>();
        let broker = tokio::spawn(async move {
            tokio::select! {
                taken = answer(far, |_, _| true) => taken,
                _ = closed => Vec::new(),
            }
        });
        pipe.clone().write_all(&CONNECT).await.unwrap();
        let library = tokio::spawn(read_to_end(pipe.clone()));
        confirm(&pipe, &library).await;
        pipe.begin(refused, false);
        pipe.clone().write_all(&[0x82, 10, 0, 1, 0, 5, b'R', b'/', b'x', b'/', b'#', 0]).await.unwrap();
        assert!(!pipe.has_room());
        assert!(pipe.tick().unwrap() <= Instant::now() + QUIET);
        assert_eq!(subjects(&pipe.lock().out), []);
        drop(close);
        assert_eq!(broker.await.unwrap(), []);
        let _ = library.await;
        let (refused, closing) = pipe.finish(true, false);
        assert_eq!(closing, Closing::Confirmed);
        assert!(refused.is_suspect(&suspect.0) && !refused.leaves_anything_out());
    }

    /// Nobody needs room before the quiet time is over, and what is no suspect is subscribed to.
    #[tokio::test]
    async fn a_quiet_connection_exchanges_no_pings_for_room() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let pipe = Pipe::new(near, 1 << 20, KEEP_ALIVE);
        let mut refused = Refused::default();
        refused.closed(Instant::now(), &[(Subject::Topic("N/x/1".into()), 10)], false);
        let broker = tokio::spawn(answer(far, |_, _| true));
        pipe.clone().write_all(&CONNECT).await.unwrap();
        let library = tokio::spawn(read_to_end(pipe.clone()));
        confirm(&pipe, &library).await;
        pipe.begin(refused, false);
        let before = pipe.lock().flow.given();
        for _ in 0..1000 {
            assert!(!pipe.has_room());
            tokio::task::yield_now().await;
        }
        assert_eq!(pipe.lock().flow.given(), before);
        let filter = [0x82, 10, 0, 1, 0, 5, b'R', b'/', b'x', b'/', b'#', 0];
        pipe.clone().write_all(&filter).await.unwrap();
        confirm(&pipe, &library).await;
        pipe.end_quiet();
        assert!(pipe.has_room());
        library.abort();
        let _ = library.await;
        drop(pipe);
        assert_eq!(broker.await.unwrap(), [Subject::Filter("R/x/#".into())]);
    }

    /// What comes out of a pipe with room for messages of 200 bytes, read in pieces of `size`.
    async fn read_through(stream: impl AsyncRead + Send + Sync + Unpin + 'static, size: usize) -> Vec<u8> {
        let mut pipe = Pipe::new(tokio::io::join(stream, tokio::io::sink()), 200, KEEP_ALIVE);
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
            (false, packet("N/x", 16_000)),
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
        for cut in (0..=bytes.len()).filter(|cut| !(1000..16_000).contains(cut)) {
            let (before, after) = bytes.split_at(cut);
            let stream = io::Cursor::new(before.to_vec()).chain(io::Cursor::new(after.to_vec()));
            assert_eq!(read_through(stream, 4096).await, wanted, "cut at {cut}");
        }
    }

    /// Also wherever the bytes are cut.
    #[tokio::test]
    async fn the_topic_of_a_large_retained_message_is_handed_on() {
        let part = |topic: &str| {
            let length = 1 + topic.len();
            let mut part = vec![0x31];
            write_length(&mut part, 2 + length + 1);
            [&part, &(length as u16).to_be_bytes()[..], &[LARGE], topic.as_bytes(), b"x"].concat()
        };
        let [long, longer] = [4096, 4097].map(|length| "y".repeat(length));
        let mut plain = packet("N/x", 100_000);
        plain[0] = 0x30;
        let all = [
            (packet("N/x", 100_000), part("N/x")),
            (vec![0xd0, 0], vec![0xd0, 0]),
            (plain, vec![]),
            (packet("", 70_000), part("")),
            (packet(&long, 16_384), part(&long)),
            (packet(&longer, 20_000), vec![]),
            (packet("N/z", 20), packet("N/z", 20)),
            (packet("N/a", 16_383), vec![]),
            (packet("N/a", 70_000), part("N/a")),
        ];
        let bytes: Vec<u8> = all.iter().flat_map(|(packet, _)| packet).copied().collect();
        let wanted: Vec<u8> = all.iter().flat_map(|(_, handed_on)| handed_on).copied().collect();
        for size in [1, 2, 3, 7, 200, 100_000, 1_000_000] {
            assert!(read_through(io::Cursor::new(bytes.clone()), size).await == wanted, "in pieces of {size}");
        }
        for cut in (0..=20).chain(100_000..100_020) {
            let (before, after) = bytes.split_at(cut);
            let stream = io::Cursor::new(before.to_vec()).chain(io::Cursor::new(after.to_vec()));
            assert!(read_through(stream, 4096).await == wanted, "cut at {cut}");
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
