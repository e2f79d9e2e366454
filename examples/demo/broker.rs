//! The demo's MQTT broker: 3.1.1, in this process, on 127.0.0.1 only.
//!
//! Why one of our own: the demo must run where nothing but Rust is installed, and everyone who runs the tests compiles what it
//! needs. The broker crates there are cost more than they give here: `rumqttd` 0.20 brings about a hundred crates (axum, hyper,
//! config, prometheus), threads that cannot be stopped, sends a new subscriber only as many retained messages as fit one
//! batch, and forgets a retained message on any empty payload, retained or not; `rmqtt` 0.24 wants a newer Rust than ours;
//! `mqtt5` 0.49 brings an HTTP server, argon2 and a TLS stack. The MQTT client that the bridge is built on has a codec which
//! reads and writes both sides' packets: what is left to do is this file. `--broker mosquitto` runs a real one instead.
//!
//! Promises: retained messages (replaced, cleared by an empty one, replayed with the retain flag to each new subscription, with
//! `+` and `#`), last wills, keep-alive time-outs, a client ID used again takes over. What it forwards keeps its order.
//! Refuses: malformed packets, anything before CONNECT, other protocol versions, and clients that do not read (their queue is
//! bounded). Delivers at QoS 0 only, which is what it grants; sessions are never kept. No passwords, no TLS.
//!
//! One task owns all state; one task per connection reads and writes, and ends with it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, PubComp, PubRec, Publish, SubAck, SubscribeReasonCode, UnsubAck,
};
use rumqttc::mqttbytes::{Error, QoS, matches, valid_filter, valid_topic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Both ways; the bridge allows as much.
const MAX_PACKET: usize = 1024 * 1024 + 1024;
/// Packets waiting for a client that does not read; a few republishes of the whole house.
const MAX_QUEUED: usize = 8_192;
const MAX_RETAINED: usize = 20_000;
const MAX_CLIENTS: u64 = 100;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Broker {
    listener: TcpListener,
}

impl Broker {
    /// Listens on the loopback address; 0 is any free port.
    pub async fn bind(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        Ok(Self { listener })
    }

    pub fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let (events, mut inbox) = mpsc::channel(1_024);
        let mut state = State::default();
        let mut next = 0;
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    if state.clients.len() as u64 >= MAX_CLIENTS {
                        continue;
                    }
                    next += 1;
                    tokio::spawn(serve(stream, next, events.clone()));
                }
                Some((id, event)) = inbox.recv() => state.handle(id, event),
            }
        }
    }
}

enum Event {
    Connected(Box<Connect>, mpsc::Sender<Packet>),
    Packet(Packet),
    /// The connection is gone; politely or not.
    Gone {
        polite: bool,
    },
}

#[derive(Default)]
struct State {
    clients: BTreeMap<u64, Client>,
    retained: BTreeMap<String, Bytes>,
}

struct Client {
    name: String,
    will: Option<LastWill>,
    filters: Vec<String>,
    /// QoS 2 messages that were delivered but not yet released.
    unreleased: HashSet<u16>,
    /// Dropping it ends the connection.
    queue: mpsc::Sender<Packet>,
}

impl State {
    fn handle(&mut self, id: u64, event: Event) {
        match event {
            Event::Connected(connect, queue) => self.connected(id, *connect, queue),
            Event::Packet(packet) => self.packet(id, packet),
            Event::Gone { polite } => self.gone(id, polite),
        }
    }

    fn connected(&mut self, id: u64, connect: Connect, queue: mpsc::Sender<Packet>) {
        let name = connect.client_id;
        if !name.is_empty()
            && let Some((&older, _)) = self.clients.iter().find(|(_, client)| client.name == name)
        {
            self.gone(older, false);
        }
        let client = Client { name, will: connect.last_will, filters: Vec::new(), unreleased: HashSet::new(), queue };
        self.clients.insert(id, client);
        self.send(id, Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false)));
    }

    fn packet(&mut self, id: u64, packet: Packet) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match packet {
            Packet::Publish(publish) => {
                let repeated = publish.qos == QoS::ExactlyOnce && !client.unreleased.insert(publish.pkid);
                match publish.qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => self.send(id, Packet::PubAck(PubAck::new(publish.pkid))),
                    QoS::ExactlyOnce => self.send(id, Packet::PubRec(PubRec::new(publish.pkid))),
                }
                if !repeated {
                    match String::from_utf8(publish.topic.to_vec()) {
                        Ok(topic) if !topic.is_empty() && valid_topic(&topic) => self.publish(&topic, publish.payload, publish.retain),
                        _ => self.gone(id, false),
                    }
                }
            }
            Packet::PubRel(release) => {
                client.unreleased.remove(&release.pkid);
                self.send(id, Packet::PubComp(PubComp::new(release.pkid)));
            }
            Packet::Subscribe(subscribe) => self.subscribe(id, subscribe.pkid, subscribe.filters.into_iter().map(|filter| filter.path)),
            Packet::Unsubscribe(unsubscribe) => {
                client.filters.retain(|filter| !unsubscribe.topics.contains(filter));
                self.send(id, Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)));
            }
            Packet::PingReq => self.send(id, Packet::PingResp),
            // a second CONNECT, or what only a broker sends
            _ => self.gone(id, false),
        }
    }

    fn subscribe(&mut self, id: u64, pkid: u16, filters: impl Iterator<Item = String>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let mut codes = Vec::new();
        let mut replay = Vec::new();
        for filter in filters {
            if !valid_filter(&filter) {
                codes.push(SubscribeReasonCode::Failure);
                continue;
            }
            codes.push(SubscribeReasonCode::Success(QoS::AtMostOnce));
            let fits = self.retained.iter().filter(|(topic, _)| matches(topic, &filter));
            replay.extend(fits.map(|(topic, payload)| message(topic, payload.clone(), true)));
            if !client.filters.contains(&filter) {
                client.filters.push(filter);
            }
        }
        self.send(id, Packet::SubAck(SubAck::new(pkid, codes)));
        for message in replay {
            self.send(id, message);
        }
    }

    fn publish(&mut self, topic: &str, payload: Bytes, retain: bool) {
        if retain && payload.is_empty() {
            self.retained.remove(topic);
        } else if retain && (self.retained.len() < MAX_RETAINED || self.retained.contains_key(topic)) {
            self.retained.insert(topic.to_owned(), payload.clone());
        }
        let wanted = |client: &Client| client.filters.iter().any(|filter| matches(topic, filter));
        let to: Vec<u64> = self.clients.iter().filter(|(_, client)| wanted(client)).map(|(id, _)| *id).collect();
        for id in to {
            self.send(id, message(topic, payload.clone(), false));
        }
    }

    /// Queues a packet; who lets the queue overflow is cut off, so that nobody else waits.
    fn send(&mut self, id: u64, packet: Packet) {
        if self.clients.get(&id).is_some_and(|client| client.queue.try_send(packet).is_err()) {
            self.gone(id, false);
        }
    }

    fn gone(&mut self, id: u64, polite: bool) {
        let Some(client) = self.clients.remove(&id) else { return };
        if let Some(will) = client.will.filter(|_| !polite) {
            self.publish(&will.topic, will.message, will.retain);
        }
    }
}

fn message(topic: &str, payload: Bytes, retain: bool) -> Packet {
    let mut publish = Publish::from_bytes(topic, QoS::AtMostOnce, payload);
    publish.retain = retain;
    Packet::Publish(publish)
}

/// One connection, from its first packet to its last.
async fn serve(mut stream: TcpStream, id: u64, events: mpsc::Sender<(u64, Event)>) {
    let _ = stream.set_nodelay(true);
    let mut incoming = BytesMut::with_capacity(4_096);
    let connect = match tokio::time::timeout(CONNECT_TIMEOUT, read(&mut stream, &mut incoming)).await {
        Ok(Ok(Packet::Connect(connect))) => connect,
        Ok(Err(ReadError::Malformed(Error::InvalidProtocolLevel(_)))) => {
            let mut refusal = BytesMut::new();
            let refused = Packet::ConnAck(ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false));
            if refused.write(&mut refusal, MAX_PACKET).is_ok() {
                let _ = stream.write_all(&refusal).await;
            }
            return;
        }
        _ => return,
    };
    // one and a half times what the client promised; 0 is no promise
    let patience = match connect.keep_alive {
        0 => Duration::from_secs(86_400),
        seconds => Duration::from_millis(u64::from(seconds) * 1_500),
    };
    let (queue, outgoing) = mpsc::channel(MAX_QUEUED);
    if events.send((id, Event::Connected(Box::new(connect), queue))).await.is_err() {
        return;
    }
    let (mut reader, writer) = stream.split();
    let reading = async {
        loop {
            match tokio::time::timeout(patience, read(&mut reader, &mut incoming)).await {
                Ok(Ok(Packet::Disconnect)) => break true,
                Ok(Ok(packet)) => {
                    if events.send((id, Event::Packet(packet))).await.is_err() {
                        break true;
                    }
                }
                Ok(Err(_)) | Err(_) => break false,
            }
        }
    };
    let polite = tokio::select! {
        polite = reading => polite,
        () = write(writer, outgoing) => false,
    };
    let _ = events.send((id, Event::Gone { polite })).await;
}

enum ReadError {
    Closed,
    Malformed(Error),
}

async fn read(stream: &mut (impl AsyncReadExt + Unpin), incoming: &mut BytesMut) -> Result<Packet, ReadError> {
    loop {
        match Packet::read(incoming, MAX_PACKET) {
            Ok(packet) => return Ok(packet),
            Err(Error::InsufficientBytes(_)) => {}
            Err(error) => return Err(ReadError::Malformed(error)),
        }
        match stream.read_buf(incoming).await {
            Ok(0) | Err(_) => return Err(ReadError::Closed),
            Ok(_) => {}
        }
    }
}

/// Writes what is queued, as much as there is at a time, until the queue or the connection ends.
async fn write(mut stream: impl AsyncWriteExt + Unpin, mut outgoing: mpsc::Receiver<Packet>) {
    let mut buffer = BytesMut::new();
    while let Some(packet) = outgoing.recv().await {
        let _ = packet.write(&mut buffer, MAX_PACKET);
        while buffer.len() < 64 * 1024
            && let Ok(packet) = outgoing.try_recv()
        {
            let _ = packet.write(&mut buffer, MAX_PACKET);
        }
        if stream.write_all(&buffer).await.is_err() {
            break;
        }
        buffer.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;

    /// What a client sees: packets in, packets out, by hand.
    struct Peer {
        stream: TcpStream,
        incoming: BytesMut,
    }

    impl Peer {
        async fn connect(port: u16, name: &str, will: Option<LastWill>) -> Self {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let mut peer = Self { stream, incoming: BytesMut::new() };
            let mut connect = Connect::new(name);
            connect.clean_session = true;
            connect.last_will = will;
            peer.send(Packet::Connect(connect)).await;
            assert_eq!(peer.next().await, Some(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))));
            peer
        }

        async fn send(&mut self, packet: Packet) {
            let mut bytes = BytesMut::new();
            packet.write(&mut bytes, MAX_PACKET).unwrap();
            self.stream.write_all(&bytes).await.unwrap();
        }

        async fn publish(&mut self, topic: &str, payload: &str, retain: bool) {
            let mut publish = Publish::new(topic, QoS::AtMostOnce, payload);
            publish.retain = retain;
            self.send(Packet::Publish(publish)).await;
        }

        async fn subscribe(&mut self, filter: &str) {
            static NEXT: AtomicU16 = AtomicU16::new(1);
            let mut subscribe = rumqttc::mqttbytes::v4::Subscribe::new(filter, QoS::ExactlyOnce);
            subscribe.pkid = NEXT.fetch_add(1, Ordering::Relaxed);
            let granted = vec![SubscribeReasonCode::Success(QoS::AtMostOnce)];
            let pkid = subscribe.pkid;
            self.send(Packet::Subscribe(subscribe)).await;
            assert_eq!(self.next().await, Some(Packet::SubAck(SubAck::new(pkid, granted))));
        }

        /// `None`: the broker has closed the connection.
        async fn next(&mut self) -> Option<Packet> {
            let read = read(&mut self.stream, &mut self.incoming);
            match tokio::time::timeout(Duration::from_secs(5), read).await.expect("nothing came in 5 s") {
                Ok(packet) => Some(packet),
                Err(ReadError::Closed) => None,
                Err(ReadError::Malformed(error)) => panic!("{error}"),
            }
        }

        async fn message(&mut self) -> (String, String, bool) {
            match self.next().await {
                Some(Packet::Publish(publish)) => {
                    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                    (text(&publish.topic), text(&publish.payload), publish.retain)
                }
                other => panic!("{other:?}"),
            }
        }

        /// A round trip: whatever was sent before has been handled.
        async fn settle(&mut self) {
            self.send(Packet::PingReq).await;
            assert_eq!(self.next().await, Some(Packet::PingResp));
        }
    }

    fn story(story: impl AsyncFnOnce(u16)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = Broker::bind(0).await.unwrap();
            let port = broker.port().unwrap();
            tokio::spawn(broker.run());
            story(port).await;
        });
    }

    fn message(topic: &str, payload: &str, retain: bool) -> (String, String, bool) {
        (topic.into(), payload.into(), retain)
    }

    #[test]
    fn retained_messages_are_replayed_replaced_and_cleared() {
        story(async |port| {
            let mut bridge = Peer::connect(port, "bridge", None).await;
            bridge.publish("N/a/1", "old", true).await;
            bridge.publish("N/a/1", "new", true).await;
            bridge.publish("N/a/2", "two", true).await;
            bridge.publish("N/b/1", "other", true).await;
            bridge.publish("N/a/3", "passing", false).await;
            bridge.settle().await;
            let mut first = Peer::connect(port, "first", None).await;
            first.subscribe("N/a/+").await;
            assert_eq!(first.message().await, message("N/a/1", "new", true));
            assert_eq!(first.message().await, message("N/a/2", "two", true));
            first.settle().await;

            bridge.publish("N/a/1", "", false).await;
            assert_eq!(first.message().await, message("N/a/1", "", false));
            bridge.publish("N/a/2", "", true).await;
            assert_eq!(first.message().await, message("N/a/2", "", false));
            let mut second = Peer::connect(port, "second", None).await;
            second.subscribe("N/#").await;
            // an empty payload clears only when it is retained itself
            assert_eq!(second.message().await, message("N/a/1", "new", true));
            assert_eq!(second.message().await, message("N/b/1", "other", true));
            second.settle().await;
        });
    }

    #[test]
    fn a_thousand_retained_messages_all_arrive() {
        story(async |port| {
            let mut bridge = Peer::connect(port, "bridge", None).await;
            for n in 0..1_000 {
                bridge.publish(&format!("N/{n}"), "x", true).await;
            }
            bridge.settle().await;
            let mut client = Peer::connect(port, "client", None).await;
            client.subscribe("N/#").await;
            let mut topics = HashSet::new();
            for _ in 0..1_000 {
                topics.insert(client.message().await.0);
            }
            assert_eq!(topics.len(), 1_000);
        });
    }

    #[test]
    fn the_last_will_is_published_unless_the_client_says_goodbye() {
        story(async |port| {
            let will = || Some(LastWill::new("status", "offline", QoS::AtMostOnce, true));
            let mut watcher = Peer::connect(port, "watcher", None).await;
            watcher.subscribe("#").await;
            let mut polite = Peer::connect(port, "polite", will()).await;
            polite.publish("status", "online", true).await;
            assert_eq!(watcher.message().await, message("status", "online", false));
            polite.send(Packet::Disconnect).await;
            assert_eq!(polite.next().await, None);
            let cut = Peer::connect(port, "cut", will()).await;
            drop(cut);
            assert_eq!(watcher.message().await, message("status", "offline", false));
            let mut late = Peer::connect(port, "late", None).await;
            late.subscribe("status").await;
            assert_eq!(late.message().await, message("status", "offline", true));
        });
    }

    #[test]
    fn a_client_id_used_again_takes_over() {
        story(async |port| {
            let mut watcher = Peer::connect(port, "watcher", None).await;
            watcher.subscribe("gone").await;
            let will = LastWill::new("gone", "x", QoS::AtMostOnce, false);
            let mut older = Peer::connect(port, "same", Some(will)).await;
            let mut newer = Peer::connect(port, "same", None).await;
            assert_eq!(watcher.message().await, message("gone", "x", false));
            assert_eq!(older.next().await, None);
            newer.settle().await;
        });
    }

    #[test]
    fn unsubscribed_topics_stop() {
        story(async |port| {
            let mut client = Peer::connect(port, "client", None).await;
            client.subscribe("a/#").await;
            client.subscribe("b").await;
            client.send(Packet::Unsubscribe(unsubscribe(9, "a/#"))).await;
            assert_eq!(client.next().await, Some(Packet::UnsubAck(UnsubAck::new(9))));
            client.publish("a/1", "x", false).await;
            client.publish("b", "y", false).await;
            assert_eq!(client.message().await, message("b", "y", false));
        });
    }

    fn unsubscribe(pkid: u16, filter: &str) -> rumqttc::mqttbytes::v4::Unsubscribe {
        let mut unsubscribe = rumqttc::mqttbytes::v4::Unsubscribe::new(filter);
        unsubscribe.pkid = pkid;
        unsubscribe
    }

    #[test]
    fn what_is_no_mqtt_is_cut_off_and_harms_nobody() {
        story(async |port| {
            let mut client = Peer::connect(port, "client", None).await;
            for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xc0, 0], &[0xff; 16], &[0x30, 0xff, 0xff, 0xff, 0x7f]] {
                let mut rude = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
                rude.write_all(bytes).await.unwrap();
                rude.shutdown().await.unwrap();
                // an end of stream or a reset, as the kernel likes
                let _ = rude.read(&mut [0; 16]).await;
            }
            let mut wild = Peer::connect(port, "wild", None).await;
            // PUBLISH to "a/#", which the codec does not let a client write
            wild.stream.write_all(&[0x30, 6, 0, 3, b'a', b'/', b'#', b'x']).await.unwrap();
            assert_eq!(wild.next().await, None);
            client.settle().await;
        });
    }

    #[test]
    fn qos_1_and_2_are_acknowledged_and_delivered_once() {
        story(async |port| {
            let mut watcher = Peer::connect(port, "watcher", None).await;
            watcher.subscribe("t").await;
            let mut client = Peer::connect(port, "client", None).await;
            let mut publish = Publish::new("t", QoS::AtLeastOnce, "one");
            publish.pkid = 1;
            client.send(Packet::Publish(publish)).await;
            assert_eq!(client.next().await, Some(Packet::PubAck(PubAck::new(1))));
            let mut publish = Publish::new("t", QoS::ExactlyOnce, "two");
            publish.pkid = 2;
            for _ in 0..2 {
                client.send(Packet::Publish(publish.clone())).await;
                assert_eq!(client.next().await, Some(Packet::PubRec(PubRec::new(2))));
            }
            client.send(Packet::PubRel(rumqttc::mqttbytes::v4::PubRel::new(2))).await;
            assert_eq!(client.next().await, Some(Packet::PubComp(PubComp::new(2))));
            client.publish("t", "three", false).await;
            for expected in ["one", "two", "three"] {
                assert_eq!(watcher.message().await, message("t", expected, false));
            }
        });
    }
}
