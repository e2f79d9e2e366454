//! Packets from a broker: what the pipe hands on is what came, without the messages that are too large, however it is cut; and the
//! codec reads that without harm.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rumqttc::mqttbytes::v4::Packet;
use tokio::io::{AsyncRead, ReadBuf};
use venus_mqtt::mqtt::pipe::Pipe;

const PUBLISH: u8 = 3;

/// What comes, in pieces.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    size: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let end = self.bytes.len().min(self.at + self.size.min(into.remaining()));
        into.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

pub fn target(data: &[u8]) {
    let [max, size, room, stream @ ..] = data else { return };
    let (max, size, room) = (4 * usize::from(*max), 1 + usize::from(*size), 1 + usize::from(*room));
    let wanted = sifted(stream, max);
    let pieces = Pieces { bytes: stream.to_vec(), at: 0, size };
    let mut pipe = Pipe::new(tokio::io::join(pieces, tokio::io::sink()), max, Duration::from_secs(20));
    let (mut read, mut piece) = (Vec::new(), vec![0; room]);
    loop {
        let mut buffer = ReadBuf::new(&mut piece);
        match Pin::new(&mut pipe).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => break,
            Poll::Ready(Ok(())) => read.extend_from_slice(buffer.filled()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(read, wanted, "in pieces of {size}, read by {room}");
    let mut bytes = bytes::BytesMut::from(read.as_slice());
    // ends: each packet that is read takes at least two bytes
    while let Ok(packet) = Packet::read(&mut bytes, max.max(256)) {
        if let Packet::Publish(publish) = packet {
            assert!(publish.topic.len() + publish.payload.len() <= max.max(256));
        }
    }
}

/// The same, with everything at hand.
fn sifted(mut stream: &[u8], max: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut length = 0;
        let mut digits = 0;
        loop {
            // a header that has not come to its end is not handed on
            let Some(digit) = stream.get(1 + digits) else { return out };
            length |= usize::from(digit & 0x7f) << (7 * digits);
            digits += 1;
            if digit & 0x80 == 0 {
                break;
            }
            if digits == 4 {
                // no MQTT: the rest is handed on as it is
                out.extend_from_slice(stream);
                return out;
            }
        }
        let whole = (1 + digits + length).min(stream.len());
        let (packet, rest) = stream.split_at(whole);
        if packet[0] >> 4 != PUBLISH || length <= max {
            out.extend_from_slice(packet);
        }
        stream = rest;
    }
}
