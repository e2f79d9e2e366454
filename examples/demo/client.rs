//! The demo's own MQTT client: what any client of a GX device does, on the library that the bridge uses.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail};
use rumqttc::{AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, Publish, PublishOptions, QoS};
use tokio::time::{Instant, timeout_at};

pub struct Client {
    requests: AsyncClient,
    events: EventLoop,
    /// Came before the subscriptions were acknowledged.
    early: VecDeque<Publish>,
}

impl Client {
    /// Connects and subscribes; returns when the broker has acknowledged it.
    pub async fn open(port: u16, id: &str, filters: &[&str]) -> anyhow::Result<Self> {
        Self::connect(port, id, filters, None).await
    }

    /// The same, with a last will.
    pub async fn open_as_device(port: u16, id: &str, filters: &[&str], will: LastWill) -> anyhow::Result<Self> {
        Self::connect(port, id, filters, Some(will)).await
    }

    async fn connect(port: u16, id: &str, filters: &[&str], will: Option<LastWill>) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new(id, ("127.0.0.1", port));
        options.set_keep_alive(20);
        if let Some(will) = will {
            options.set_last_will(will);
        }
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (requests, events) = AsyncClient::builder(options).capacity(64).build();
        let early = VecDeque::new();
        let mut client = Self { requests, events, early };
        for filter in filters {
            client.requests.try_subscribe(*filter, QoS::AtMostOnce).with_context(|| format!("subscribe {filter}"))?;
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut acknowledged = 0;
        while acknowledged < filters.len() {
            let event = timeout_at(deadline, client.events.poll()).await;
            match event.context("the broker does not answer")?? {
                Event::Incoming(Packet::SubAck(_)) => acknowledged += 1,
                Event::Incoming(Packet::Publish(publish)) => client.early.push_back(publish),
                _ => {}
            }
        }
        Ok(client)
    }

    pub fn publish(&self, topic: &str, payload: &str) -> anyhow::Result<()> {
        let sent = self.requests.try_publish(topic, payload.as_bytes().to_vec(), PublishOptions::at_most_once());
        sent.with_context(|| format!("publish {topic}"))
    }

    /// The next message; cancel-safe.
    pub async fn next(&mut self) -> anyhow::Result<Publish> {
        if let Some(publish) = self.early.pop_front() {
            return Ok(publish);
        }
        loop {
            if let Event::Incoming(Packet::Publish(publish)) = self.events.poll().await.context("the broker is gone")? {
                return Ok(publish);
            }
        }
    }

    /// Takes messages until `enough` says so; an error when that takes longer than until `deadline`.
    pub async fn until(&mut self, deadline: Instant, mut enough: impl FnMut(&str, &Publish) -> bool) -> anyhow::Result<()> {
        loop {
            let Ok(publish) = timeout_at(deadline, self.next()).await else { bail!("it did not come in time") };
            let publish = publish?;
            if enough(&topic(&publish), &publish) {
                return Ok(());
            }
        }
    }
}

pub fn topic(publish: &Publish) -> String {
    String::from_utf8_lossy(&publish.topic).into_owned()
}
