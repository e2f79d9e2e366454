//! The connection to the broker. A task of its own connects, reads and writes; the loop hands it messages as long as it has
//! credit, and never waits for it.
//!
//! Each connection starts empty: what was on its way when the last one broke is stale by then, and the core says again what
//! still holds. This is the only file that knows the MQTT library.

mod explain;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::str::Utf8Error;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;
use std::{fmt, io};

use nix::sys::socket::{setsockopt, sockopt};
use rumqttc::{
    AsyncClient, ClientError, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions, Outgoing, Packet, QoS,
    SubscribeFilter, SubscribeReasonCode,
};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsConnector;

use super::incoming::LARGE;
use super::outage::{Outage, Reason, STEADY};
use super::pipe::{Pipe, Published};
use super::refused::Refused;
use super::takeover::{self, Closing, Takeover};
use crate::bridge::{LinkCommand, Publish};
use crate::text::{escape, escape_to};
use crate::tls::server_name;
use crate::tls::words::{OwnCertificate, Server};

use explain::{explain, taken_over};

/// Subscriptions and the like on their way. A turn of the loop can want two for each message it takes.
const REQUESTS: usize = 256;
/// Messages from the broker that the loop has not taken yet.
const INCOMING: usize = 256;
/// Bytes of their payloads: four of the largest packets.
pub(super) const INCOMING_BYTES: u32 = 1024 * 1024;
/// Largest packet taken from the broker, and given to it.
pub(super) const PACKET_MAX: usize = 256 * 1024;
/// What the kernel keeps for a broker that does not read. Little, because it is stale when it arrives; the kernel doubles it.
const SEND_BUFFER: u32 = 32 * 1024;
/// Largest segment. That of the loopback, 64 KiB, is more than the window of a broker that begins to read again after it stood still:
/// it would be held back by a timer that has grown all the while.
const SEGMENT: u32 = 8 * 1024;
/// A broker that takes the connection and says nothing is waited for this long: then a hung one is used the moment it wakes up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// However short the keep-alive, a link may move nothing for this long.
const UNMOVED_MIN: Duration = Duration::from_secs(10);
/// How long a broker that has closed the connection may take to accept another.
const PROBE: Duration = Duration::from_secs(2);
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
const BACK_OFF_LAST: Duration = Duration::from_secs(30);
/// Most characters of a line in the log: the reason of a failure has the path of a file in it, and what to do.
const LINE_MAX: usize = 600;
/// A connection that held this long was a good one: the back-off starts over.
const GOOD: Duration = Duration::from_secs(10);

/// Whom to connect to, and as whom.
#[derive(Clone)]
pub struct Broker {
    pub host: String,
    pub port: u16,
    pub client_id: String,
    /// The password is never printed.
    pub login: Option<(String, Option<String>)>,
    pub keep_alive: Duration,
    pub tls: Option<BrokerTls>,
    /// Topic and payload that the broker publishes, retained, when we are gone without a word.
    pub will: Option<(String, &'static str)>,
}

/// How to speak TLS with the broker.
#[derive(Clone)]
pub struct BrokerTls {
    pub config: Arc<rustls::ClientConfig>,
    /// For what is said of errors.
    pub ca_file: Option<PathBuf>,
    pub own: OwnCertificate,
}

/// What the connection has to tell.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    Up,
    Message {
        topic: String,
        payload: Vec<u8>,
        retained: bool,
    },
    /// A retained message that is too large to be taken.
    Large {
        topic: String,
    },
    Subscribed {
        filter: String,
        accepted: bool,
    },
    Down,
    /// There is credit again.
    Room,
}

/// The loop's end of the connection.
pub struct Link {
    events: Receiver<FromTask>,
    connection: Option<Connection>,
    /// What the broker has answered, one filter at a time.
    answered: VecDeque<(String, bool)>,
    /// The task connects without a pause.
    hurry: watch::Sender<bool>,
    /// Attempts and connections that have ended.
    ended: u64,
}

/// One connection that is up.
struct Connection {
    requests: AsyncClient,
    /// Where messages go: past the client library, which needs as long for one as everyone else together.
    pipe: Pipe,
    /// Filters of subscriptions in the order they were asked for, until they have a packet ID, and then by it.
    asked: VecDeque<Vec<String>>,
    sent: Vec<(u16, Vec<String>)>,
    /// What is subscribed to.
    heard: Vec<String>,
}

enum FromTask {
    Up(AsyncClient, Pipe),
    Message { topic: String, payload: Vec<u8>, retained: bool, is_large: bool, _room: Option<OwnedSemaphorePermit> },
    SubscribeSent(u16),
    SubscribeAnswered(u16, Vec<SubscribeReasonCode>),
    Down,
}

impl Link {
    /// Starts the task that connects, again and again.
    pub fn start(broker: Broker) -> Self {
        let (to_loop, events) = channel(INCOMING);
        let (hurry, hurried) = watch::channel(false);
        let gone = to_loop.clone();
        tokio::spawn(async move {
            // a link that nobody holds any more must not come back under a client ID that is another's by then
            tokio::select! {
                () = gone.closed() => {}
                () = keep_connected(broker, to_loop, hurried) => {}
            }
        });
        Self { events, connection: None, answered: VecDeque::new(), hurry, ended: 0 }
    }

    /// What happens next. Dropping the future loses nothing.
    pub async fn next(&mut self) -> LinkEvent {
        loop {
            if let Some((filter, accepted)) = self.answered.pop_front() {
                return LinkEvent::Subscribed { filter, accepted };
            }
            let pipe = self.connection.as_ref().map(|connection| &connection.pipe).filter(|pipe| pipe.is_starved());
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = wait_for_room(pipe) => return LinkEvent::Room,
            };
            // the task never ends before the loop does
            let Some(event) = event else { return std::future::pending().await };
            if let Some(event) = self.take(event) {
                return event;
            }
        }
    }

    /// What has happened already, without waiting.
    pub fn try_next(&mut self) -> Option<LinkEvent> {
        loop {
            if let Some((filter, accepted)) = self.answered.pop_front() {
                return Some(LinkEvent::Subscribed { filter, accepted });
            }
            let event = self.events.try_recv().ok()?;
            if let Some(event) = self.take(event) {
                return Some(event);
            }
        }
    }

    fn take(&mut self, event: FromTask) -> Option<LinkEvent> {
        match event {
            FromTask::Up(requests, pipe) => {
                self.connection = Some(Connection { requests, pipe, asked: VecDeque::new(), sent: Vec::new(), heard: Vec::new() });
                Some(LinkEvent::Up)
            }
            FromTask::Message { topic, is_large: true, .. } => Some(LinkEvent::Large { topic }),
            FromTask::Message { topic, payload, retained, .. } => Some(LinkEvent::Message { topic, payload, retained }),
            FromTask::SubscribeSent(packet) => {
                let connection = self.connection.as_mut()?;
                let filters = connection.asked.pop_front()?;
                connection.sent.push((packet, filters));
                None
            }
            FromTask::SubscribeAnswered(packet, codes) => {
                let connection = self.connection.as_mut()?;
                let place = connection.sent.iter().position(|(sent, _)| *sent == packet)?;
                let (_, filters) = connection.sent.swap_remove(place);
                let accepted = codes.iter().map(|code| matches!(code, SubscribeReasonCode::Success(_)));
                self.answered.extend(filters.into_iter().zip(accepted));
                None
            }
            FromTask::Down => {
                self.ended += 1;
                self.connection = None;
                self.answered.clear();
                Some(LinkEvent::Down)
            }
        }
    }

    /// Whether a message can be taken. If not, [`LinkEvent::Room`] comes when one can.
    pub fn has_room(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.pipe.has_room())
    }

    /// Whether the link carries so little that large answers of the broker would hold up requests.
    pub fn is_slow(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.pipe.is_slow())
    }

    /// To be called with room only, and followed by [`Link::flush`]. False if the message is left out, and nothing is retained on its topic.
    pub fn publish(&self, publish: &Publish) -> bool {
        let published = self.connection.as_ref().map(|connection| connection.pipe.publish(publish));
        if published == Some(Published::TooLong) {
            log::warn!("a message cannot be published, its topic is too long: {}", escape(&publish.topic));
        }
        matches!(published, None | Some(Published::Given))
    }

    /// Sends what was published.
    pub fn flush(&self) {
        if let Some(connection) = &self.connection {
            connection.pipe.flush();
        }
    }

    pub fn command(&mut self, command: LinkCommand) {
        let Some(connection) = &mut self.connection else { return };
        let done = match command {
            LinkCommand::Subscribe(filters) => {
                let (shared, alone, left_out) = connection.pipe.divide(filters);
                self.answered.extend(left_out.into_iter().map(|filter| (filter, false)));
                let packets = [shared].into_iter().filter(|shared| !shared.is_empty()).chain(alone.into_iter().map(|filter| vec![filter]));
                packets.map(|filters| connection.subscribe(filters)).fold(Ok(()), Result::and)
            }
            LinkCommand::Unsubscribe(filters) => {
                connection.heard.retain(|heard| !filters.contains(heard));
                connection.requests.try_unsubscribe_many(filters)
            }
        };
        if let Err(error) = done {
            log::warn!("a subscription cannot be changed: {}", escape(&error.to_string()));
        }
    }

    /// Connects once without the pause between two attempts, and without a quiet time.
    pub fn hurry(&self) {
        self.hurry.send_replace(true);
    }

    /// How many attempts and connections have ended.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// Says good-bye after everything that was given before; [`LinkEvent::Down`] comes when it is said.
    pub fn disconnect(&mut self) -> bool {
        self.connection.as_ref().is_some_and(|connection| {
            connection.pipe.leave();
            // Its answer comes when the broker has read everything before it, and nothing follows that answer: a socket closed with
            // something unread is reset, and what the broker has not read by then is lost. The DISCONNECT follows the answer.
            let mut heard = connection.heard.clone();
            if heard.is_empty() {
                heard.push("#".into());
            }
            connection.requests.try_unsubscribe_many(heard).is_ok()
        })
    }
}

impl Connection {
    fn subscribe(&mut self, filters: Vec<String>) -> Result<(), ClientError> {
        let wanted: Vec<_> = filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtMostOnce)).collect();
        self.requests.try_subscribe_many(wanted)?;
        // answers come in the order of what was sent: one that was not must not stand among them
        self.heard.extend_from_slice(&filters);
        self.asked.push_back(filters);
        Ok(())
    }
}

async fn wait_for_room(pipe: Option<&Pipe>) {
    match pipe {
        Some(pipe) => pipe.room().await,
        None => std::future::pending().await,
    }
}

/// One connection after the other, with a pause between them that grows while they fail.
async fn keep_connected(broker: Broker, to_loop: Sender<FromTask>, mut hurry: watch::Receiver<bool>) {
    let name = format!("{}:{}", broker.host, broker.port);
    let mut pause = BACK_OFF_FIRST;
    let mut past = Past::default();
    loop {
        let began = Instant::now();
        let Err(ended) = run(&broker, &to_loop, &mut past, &hurry).await else { return };
        if to_loop.send(FromTask::Down).await.is_err() || ended.polite {
            return;
        }
        let held = began.elapsed();
        past.takeover.ended(ended.closing, held);
        let is_taken_over = past.takeover.is_suspected();
        let reason =
            if is_taken_over { Reason::Takeover(taken_over(&broker)) } else { Reason::Other(explain(&ended.error, &broker, ended.was_up)) };
        let (level, text) = past.outage.failed(Instant::now(), &name, reason, ended.was_up);
        log::log!(level, "{}", escape_to(&text, LINE_MAX));
        // two that throw each other out must not begin anew each time; one packet less that ends the connection is a step forward
        let was_good = ended.was_up && held >= if is_taken_over { takeover::HELD } else { GOOD };
        if was_good || ended.closing == (Closing::Refused { more: true }) {
            pause = BACK_OFF_FIRST;
        }
        // the attempt itself counts: a broker that hangs has taken its time already
        let wait = jitter(pause).saturating_sub(began.elapsed()).max(jitter(BACK_OFF_FIRST));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = hurry.changed() => {}
        }
        pause = pause.saturating_mul(2).min(BACK_OFF_LAST);
    }
}

/// What is known from the connections before.
#[derive(Default)]
struct Past {
    outage: Outage,
    refused: Refused,
    takeover: Takeover,
}

struct Ended {
    was_up: bool,
    closing: Closing,
    /// It was the loop that ended it.
    polite: bool,
    error: ConnectionError,
}

/// Serves one connection until it breaks; `Ok` when the loop is gone.
async fn run(broker: &Broker, to_loop: &Sender<FromTask>, past: &mut Past, hurry: &watch::Receiver<bool>) -> Result<(), Ended> {
    let (name, began) = (format!("{}:{}", broker.host, broker.port), Instant::now());
    let pipe = Arc::new(OnceLock::new());
    let (requests, mut events) = connection(broker, &pipe);
    let mut client = Some(requests.clone());
    let mut last = None;
    let mut timer = pin!(tokio::time::sleep(STEADY));
    let mut steady_at = None;
    let room = Arc::new(Semaphore::new(INCOMING_BYTES as usize));
    loop {
        let event = match next_event(&mut events, pipe.get(), timer.as_mut()).await {
            Ok(event) => event,
            Err(error) => {
                let was_up = client.is_none();
                let mut closing = Closing::Other;
                if let Some(pipe) = pipe.get().filter(|_| was_up) {
                    // a broker that has exited closed the connection neither over a packet nor for another client
                    let is_there = pipe.was_closed() && listens(broker).await;
                    (past.refused, closing) = pipe.finish(is_there, past.takeover.is_suspected() && began.elapsed() < takeover::HELD);
                }
                if steady_at.is_some_and(|at| at <= Instant::now()) {
                    log_steady(&mut past.outage, &name);
                }
                return Err(Ended { was_up, closing, polite: pipe.get().is_some_and(Pipe::is_leaving), error });
            }
        };
        if steady_at.is_some_and(|at| at <= Instant::now()) {
            log_steady(&mut past.outage, &name);
            steady_at = None;
        }
        let told = match event {
            Event::Incoming(Packet::Publish(publish)) => match topic_of(&publish.topic) {
                Ok((topic, is_large)) => {
                    let bytes = u32::try_from(publish.payload.len()).unwrap_or(INCOMING_BYTES).min(INCOMING_BYTES);
                    let _room = room.clone().acquire_many_owned(bytes).await.ok();
                    FromTask::Message { topic, payload: publish.payload.to_vec(), retained: publish.retain, is_large, _room }
                }
                Err(_) => continue,
            },
            Event::Incoming(Packet::ConnAck(_)) => match (client.take(), pipe.get()) {
                (Some(client), Some(pipe)) => {
                    let (level, text) = past.outage.connected(&name, &broker.client_id);
                    log::log!(level, "{}", escape(&text));
                    steady_at = Some(Instant::now() + STEADY);
                    // the library's PINGREQs would wait for an answer no longer than one interval, whatever moves meanwhile
                    events.mqtt_options.set_keep_alive(0);
                    pipe.begin(std::mem::take(&mut past.refused), past.takeover.is_wary());
                    if *hurry.borrow() {
                        pipe.end_quiet();
                    }
                    FromTask::Up(client, pipe.clone())
                }
                _ => continue,
            },
            Event::Outgoing(Outgoing::Unsubscribe(packet)) => {
                last = Some(packet);
                continue;
            }
            Event::Incoming(Packet::UnsubAck(answer)) => {
                if pipe.get().is_some_and(Pipe::is_leaving) && last == Some(answer.pkid) {
                    let _ = requests.try_disconnect();
                }
                continue;
            }
            Event::Outgoing(Outgoing::Subscribe(packet)) => {
                if let Some(pipe) = pipe.get() {
                    pipe.subscribing(packet);
                }
                FromTask::SubscribeSent(packet)
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                if let Some(pipe) = pipe.get() {
                    pipe.subscribed(answer.pkid);
                }
                FromTask::SubscribeAnswered(answer.pkid, answer.return_codes)
            }
            _ => continue,
        };
        if to_loop.send(told).await.is_err() {
            return Ok(());
        }
    }
}

/// Whether the broker accepts a TCP connection within [`PROBE`].
async fn listens(broker: &Broker) -> bool {
    tokio::time::timeout(PROBE, dial(&broker.host, broker.port)).await.is_ok_and(|connected| connected.is_ok())
}

fn log_steady(outage: &mut Outage, broker: &str) {
    if let Some((level, text)) = outage.steady(broker) {
        log::log!(level, "{}", escape_to(&text, LINE_MAX));
    }
}

/// What the library has to tell, while what the loop publishes goes out beside it; an error when the broker counts as dead.
async fn next_event(events: &mut EventLoop, pipe: Option<&Pipe>, mut timer: Pin<&mut Sleep>) -> Result<Event, ConnectionError> {
    let mut library = pin!(events.poll());
    poll_fn(|context| {
        let Some(pipe) = pipe else { return library.as_mut().poll(context) };
        loop {
            if let Poll::Ready(Err(error)) = pipe.poll_out(context) {
                return Poll::Ready(Err(ConnectionError::Io(error)));
            }
            if let Poll::Ready(event) = library.as_mut().poll(context) {
                return Poll::Ready(event);
            }
            let due = match pipe.tick() {
                Ok(due) => due,
                Err(error) => return Poll::Ready(Err(ConnectionError::Io(error))),
            };
            if let Poll::Ready(Err(error)) = pipe.poll_out(context) {
                return Poll::Ready(Err(ConnectionError::Io(error)));
            }
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// The pipe is there once the socket is.
fn connection(broker: &Broker, pipe: &Arc<OnceLock<Pipe>>) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(broker.client_id.clone(), (broker.host.clone(), broker.port));
    options
        .set_keep_alive(u16::try_from(broker.keep_alive.as_secs()).unwrap_or(u16::MAX))
        .set_max_packet_size(PACKET_MAX, PACKET_MAX)
        .set_clean_session(true);
    if let Some((topic, payload)) = &broker.will {
        options.set_last_will(LastWill::new(topic.clone(), *payload, QoS::AtLeastOnce, true));
    }
    match &broker.login {
        Some((user, Some(password))) => drop(options.set_credentials(user.clone(), password.clone().into_bytes())),
        Some((user, None)) => drop(options.set_username(user.clone())),
        None => {}
    }
    let (broker, pipe) = (broker.clone(), pipe.clone());
    options.set_socket_connector(move |_, _| {
        let (broker, slot) = (broker.clone(), pipe.clone());
        async move {
            let pipe = open(&broker).await?;
            let _ = slot.set(pipe.clone());
            Ok(pipe)
        }
    });
    let (client, mut events) = AsyncClient::builder(options).capacity(REQUESTS).build();
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    events.set_network_options(network);
    (client, events)
}

/// The stream, with TLS where it is wanted.
async fn open(broker: &Broker) -> io::Result<Pipe> {
    let stream = dial(&broker.host, broker.port).await?;
    setsockopt(&stream, sockopt::TcpUserTimeout, &unmoved(broker.keep_alive))?;
    let Some(tls) = &broker.tls else { return Ok(Pipe::new(stream, PACKET_MAX, broker.keep_alive)) };
    let connecting = TlsConnector::from(tls.config.clone()).connect(server_name(&broker.host)?, stream).await;
    let stream = connecting.map_err(|error| io::Error::other(broker.server(tls).explain_handshake(&error)))?;
    Ok(Pipe::new(stream, PACKET_MAX, broker.keep_alive))
}

impl Broker {
    fn server<'a>(&'a self, tls: &'a BrokerTls) -> Server<'a> {
        Server {
            role: "broker",
            host: &self.host,
            ca_file: tls.ca_file.as_deref(),
            own: tls.own,
            port_hint: "its port for TLS (8883 at most brokers)",
        }
    }
}

/// Milliseconds for which the kernel lets nothing that was sent be acknowledged, before it ends the connection: one and a half times the
/// keep-alive, after which the broker ends it, too. Only links that move nothing are concerned, however much waits.
fn unmoved(keep_alive: Duration) -> u32 {
    u32::try_from((keep_alive * 3 / 2).max(UNMOVED_MIN).as_millis()).unwrap_or(u32::MAX)
}

/// The first address of the host that answers.
async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_nodelay(true)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        setsockopt(&socket, sockopt::TcpMaxSeg, &SEGMENT)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Between 80 and 120 % of `span`, so that many devices do not come back at once.
fn jitter(span: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = u32::try_from(RandomState::new().hash_one(0) % 400).unwrap_or(200);
    span * (800 + random) / 1000
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// The topic of a message, and whether nothing else of it is here: it is too large.
fn topic_of(bytes: &[u8]) -> Result<(String, bool), Utf8Error> {
    let (topic, is_large) = bytes.strip_prefix(&[LARGE]).map_or((bytes, false), |topic| (topic, true));
    Ok((std::str::from_utf8(topic)?.to_owned(), is_large))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_subscription_that_finds_no_room_is_nobodys_answer() {
        let (requests, _unpolled) = AsyncClient::builder(MqttOptions::new("c", ("localhost", 1883))).capacity(1).build();
        let pipe = Pipe::new(tokio::io::empty(), PACKET_MAX, Duration::from_secs(20));
        let (_to_loop, events) = channel(1);
        let mut link = Link { events, connection: None, answered: VecDeque::new(), hurry: watch::channel(false).0, ended: 0 };
        link.take(FromTask::Up(requests, pipe));
        for filter in ["sent", "not sent"] {
            link.command(LinkCommand::Subscribe(vec![filter.into()]));
        }
        for packet in [1, 2] {
            link.take(FromTask::SubscribeSent(packet));
            link.take(FromTask::SubscribeAnswered(packet, vec![SubscribeReasonCode::Success(QoS::AtMostOnce)]));
        }
        assert_eq!(link.try_next(), Some(LinkEvent::Subscribed { filter: "sent".into(), accepted: true }));
        assert_eq!(link.try_next(), None);
    }
}
