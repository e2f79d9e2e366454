//! Fake MQTT broker, for what Mosquitto does not do: FlashMQ with the plugin dbus-flashmq, which is in no package, and brokers that replay
//! retained messages in ways of their own.
//!
//!     fake-broker --port 1883 [--flashmq PORTAL --dbus ADDRESS [--late MILLISECONDS]] [--replay MANNER]
//!
//! What it promises: MQTT 3.1.1 at QoS 0 on the loopback; retained messages, wills, and a client ID used again takes over. With `--flashmq`, see
//! [`plugin`]. `--replay` is one of
//!
//! | manner | retained messages for a new subscription |
//! |---|---|
//! | `all` | all, behind the SUBACK (the default) |
//! | `exact` | none where the filter has a wildcard, as RabbitMQ 3 |
//! | `early` | all, before the SUBACK, as amqtt 0.12 |
//! | `twice` | all, each two times |
//! | `late` | all, 100 ms after the SUBACK and thus between live messages, as FlashMQ may |
//! | a number | at most so many, as rumqttd 0.20 |
//!
//! One loop owns everything; the connections' tasks only forward.

#![forbid(unsafe_code)]

mod broker;
mod plugin;

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{net::TcpListener, sync::mpsc};

use broker::{Broker, Packet, Replay};
use plugin::{Heard, Plugin};

/// What reaches the loop.
pub enum Event {
    Packet(u64, Packet),
    /// The replay for a subscription is due: of this client, for these filters.
    Replay(u64, Vec<String>),
    Bus(Heard),
}

/// A message from a client.
#[derive(Clone, Debug)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
}

struct Arguments {
    port: u16,
    portal: Option<String>,
    dbus: Option<String>,
    late: Duration,
    replay: Replay,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(arguments))
}

fn arguments() -> Result<Arguments> {
    let mut read = Arguments { port: 0, portal: None, dbus: None, late: Duration::from_millis(10), replay: Replay::All };
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        let value = words.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--port" => read.port = value.parse()?,
            "--flashmq" => read.portal = Some(value),
            "--dbus" => read.dbus = Some(value),
            "--late" => read.late = Duration::from_millis(value.parse()?),
            "--replay" => read.replay = value.parse()?,
            _ => bail!("usage: fake-broker --port PORT [--flashmq PORTAL --dbus ADDRESS [--late MS]] [--replay MANNER]; not {flag}"),
        }
    }
    Ok(read)
}

async fn run(arguments: Arguments) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port)).await?;
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut broker = Broker::new(arguments.replay, events.clone());
    let mut plugin = match (arguments.portal, arguments.dbus) {
        (Some(portal), Some(dbus)) => Some(Plugin::start(portal, dbus, arguments.late, events.clone())),
        (None, _) => None,
        (Some(_), None) => bail!("--flashmq needs --dbus"),
    };
    println!("fake broker running");
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        let event = tokio::select! {
            accepted = listener.accept() => {
                broker.accept(accepted?.0);
                continue;
            }
            _ = tick.tick() => None,
            event = inbox.recv() => event,
        };
        let effects = match event {
            Some(Event::Packet(id, packet)) => broker.packet(id, packet, plugin.as_ref()),
            Some(Event::Replay(id, filters)) => {
                broker.replay(id, &filters, plugin.as_ref());
                Vec::new()
            }
            Some(Event::Bus(heard)) => {
                if let Some(plugin) = &mut plugin {
                    plugin.heard(heard);
                }
                Vec::new()
            }
            None => Vec::new(),
        };
        if let Some(plugin) = &mut plugin {
            effects.iter().for_each(|message| plugin.message(message));
            plugin.tick();
            for message in plugin.publishes() {
                broker.deliver(&message, Some(plugin));
            }
        }
    }
}
