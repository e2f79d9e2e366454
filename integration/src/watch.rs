//! Every signal of a bus, in the order it gave them: what a monitor of its own would see.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_core::Stream;
use tokio::runtime::Runtime;
use zbus::{Connection, Message, MessageStream, connection, message::Type};

use crate::{DEADLINE, eventually, fake::show_value, items::Items};

const BUS: &str = "org.freedesktop.DBus";
const OWN: &str = "org.venusmqtt.Watch";

/// Collects signals until it is dropped.
pub struct Watch {
    runtime: Runtime,
    connection: Connection,
    seen: Arc<Mutex<Vec<Signal>>>,
    mark: Mutex<usize>,
    barriers: Mutex<u32>,
}

/// One signal.
#[derive(Clone)]
pub struct Signal {
    /// the unique name of who sent it
    pub sender: String,
    pub path: String,
    pub member: String,
    /// Of the bus: `name old new`. Of an item: `Text s "5", Value i 5`. Of several: `/Soc {…}, /State {…}`.
    pub body: String,
    pub at: Instant,
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.sender, self.member, self.path, self.body)
    }
}

impl Watch {
    pub fn connect(address: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&seen);
        let connection = runtime.block_on(async {
            let connection = connection::Builder::address(address).method_timeout(DEADLINE).build().await?;
            let mut messages = MessageStream::from(&connection);
            tokio::spawn(async move {
                while let Some(Ok(message)) = std::future::poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)).await {
                    if message.message_type() == Type::Signal
                        && let Ok(mut seen) = shared.lock()
                    {
                        seen.push(read(&message));
                    }
                }
            });
            connection.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "AddMatch", &"type='signal'").await?;
            Ok::<_, zbus::Error>(connection)
        });
        let connection = connection.with_context(|| format!("watching the bus at {address}"))?;
        Ok(Self { runtime, connection, seen, mark: Mutex::new(0), barriers: Mutex::new(0) })
    }

    /// From here on only what comes counts.
    pub fn mark(&self) {
        self.barrier();
        *self.mark.lock().expect("nothing panics with the mark in hand") = self.all().len();
    }

    /// Everything since the mark.
    pub fn since(&self) -> Vec<Signal> {
        let mark = *self.mark.lock().expect("nothing panics with the mark in hand");
        self.all().into_iter().skip(mark).filter(|signal| signal.member != "Barrier").collect()
    }

    /// Items' signals since the mark, of whoever owns this unique name: `PropertiesChanged /Soc Text s "5", Value i 5`.
    pub fn of(&self, sender: &str) -> Vec<String> {
        let of = |signal: &Signal| signal.sender == sender && ["PropertiesChanged", "ItemsChanged"].contains(&signal.member.as_str());
        self.since().into_iter().filter(of).map(|signal| format!("{} {} {}", signal.member, signal.path, signal.body)).collect()
    }

    /// Everything the bus has routed before is there when this returns.
    pub fn barrier(&self) {
        let number = {
            let mut barriers = self.barriers.lock().expect("nothing panics with it in hand");
            *barriers += 1;
            *barriers
        };
        let signal = Message::signal("/", OWN, "Barrier").build(&number).expect("a signal");
        self.runtime.block_on(self.connection.send(&signal)).expect("the bus is there");
        let (own, wanted) = (self.connection.unique_name().map(|name| name.to_string()).unwrap_or_default(), number.to_string());
        eventually("a barrier on the bus", DEADLINE, || {
            self.all().iter().any(|signal| signal.member == "Barrier" && signal.sender == own && signal.body == wanted).then_some(())
        });
    }

    /// What `find` makes of everything since the mark.
    pub fn wait_for<T>(&self, what: &str, find: impl FnMut(&[Signal]) -> Option<T>) -> T {
        self.wait_within(what, DEADLINE, find)
    }

    pub fn wait_within<T>(&self, what: &str, within: Duration, mut find: impl FnMut(&[Signal]) -> Option<T>) -> T {
        let end = Instant::now() + within;
        loop {
            let since = self.since();
            if let Some(found) = find(&since) {
                return found;
            }
            let last: Vec<_> = since.iter().rev().take(40).rev().map(|signal| format!("  {signal:?}")).collect();
            assert!(Instant::now() < end, "not within {within:?} on the bus: {what}\n{} since the mark:\n{}", since.len(), last.join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn all(&self) -> Vec<Signal> {
        self.seen.lock().expect("the reader does not panic").clone()
    }
}

fn read(message: &Message) -> Signal {
    let header = message.header();
    let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let body = message.body();
    let shown = if let Ok((name, old, new)) = body.deserialize::<(String, String, String)>() {
        format!("{name} {old} {new}")
    } else if let Ok(items) = body.deserialize::<Items>() {
        let shown: Vec<_> = items.iter().map(|(path, entry)| format!("{path} {{{}}}", show_entry(entry))).collect();
        shown.join(", ")
    } else if let Ok(entry) = body.deserialize() {
        show_entry(&entry)
    } else {
        body.deserialize::<u32>().map_or_else(|_| String::new(), |number| number.to_string())
    };
    Signal {
        sender: text(header.sender().map(|name| name.as_str())),
        path: text(header.path().map(|path| path.as_str())),
        member: text(header.member().map(|member| member.as_str())),
        body: shown,
        at: Instant::now(),
    }
}

fn show_entry(entry: &crate::items::Entry) -> String {
    entry.iter().map(|(key, value)| format!("{key} {}", show_value(value))).collect::<Vec<_>>().join(", ")
}
