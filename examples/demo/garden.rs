//! A device in the garden that registers itself over MQTT, as an ESP32 would: a thermometer and a rain barrel.
//!
//! It knows the broker and nothing else: a last will, a Status, an answer in which its topics are, and then its values every few
//! seconds: one by one with W those of the thermometer, together through the proxy those of the barrel. Dropping it is
//! pulling its plug: the last will tells the rest.

use std::f64::consts::TAU;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rumqttc::{LastWill, Publish, QoS};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::client::{Client, topic};

const STATUS: &str = r#"{"clientId": "garden", "connected": 1, "version": "v1.0", "services": {"air": "temperature", "rain": "tank"}}"#;
const WILL: &str = r#"{"clientId": "garden", "connected": 0}"#;
/// The bridge may still be starting, and a Status that nobody hears is lost.
const AGAIN: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(15);
const VALUES_EVERY: Duration = Duration::from_secs(3);
const BARREL_M3: f64 = 0.5;

pub struct Garden {
    client: Client,
    answer: Answer,
    /// How long a day of the house takes.
    day: Duration,
}

/// What the bridge has told it.
#[derive(Clone, Debug)]
pub struct Answer(Value);

impl Answer {
    fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok().map(Self)
    }

    /// `kind` is N, R or W; empty for what the device does not have.
    pub fn topic(&self, service: &str, kind: &str) -> &str {
        self.0.pointer(&format!("/topicPath/{service}/{kind}")).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Garden {
    /// Returns once it is registered.
    pub async fn register(port: u16, day: Duration) -> anyhow::Result<Self> {
        let will = LastWill::new("device/garden/Status", WILL, QoS::AtMostOnce, false);
        let mut client = Client::open_as_device(port, "garden", &["device/garden/DBus", "device/garden/Error"], will).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            client.publish("device/garden/Status", STATUS)?;
            match timeout_at(Instant::now() + AGAIN, client.next()).await {
                Ok(publish) => {
                    let answer = hear(&publish?)?.context("its answer is not JSON")?;
                    return Ok(Self { client, answer, day });
                }
                Err(_) if Instant::now() < deadline => {}
                Err(_) => bail!("no answer to its Status in {} s", PATIENCE.as_secs()),
            }
        }
    }

    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Does what it is there for; ends only with the broker.
    pub async fn live(mut self) -> anyhow::Result<()> {
        self.client.publish("device/garden/Proxy", &names().to_string())?;
        let start = Instant::now();
        let mut due = interval(VALUES_EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = due.tick() => {
                    for (topic, payload) in values(&self.answer, start.elapsed().div_duration_f64(self.day)) {
                        self.client.publish(&topic, &payload.to_string())?;
                    }
                }
                // somebody has given it another number: its topics are others
                publish = self.client.next() => {
                    if let Ok(Some(answer)) = hear(&publish?) {
                        self.answer = answer;
                    }
                }
            }
        }
    }
}

fn hear(publish: &Publish) -> anyhow::Result<Option<Answer>> {
    if topic(publish).ends_with("/Error") {
        return Err(anyhow!("refused: {}", String::from_utf8_lossy(&publish.payload)));
    }
    Ok(Answer::parse(&publish.payload))
}

/// Without a topic path: the services by their own names.
fn names() -> Value {
    json!({"air": {"CustomName": "Garden", "TemperatureType": 4}, "rain": {"CustomName": "Rain barrel", "Capacity": BARREL_M3}})
}

/// What it measures, `days` after it was switched on.
fn values(answer: &Answer, days: f64) -> [(String, Value); 3] {
    let degrees = tenths(11.0 + 6.0 * (days * TAU).sin());
    let humidity = tenths(75.0 - 14.0 * (days * TAU).sin());
    let level = tenths(60.0 + 25.0 * (days * TAU / 3.0).sin());
    let air = answer.topic("air", "W");
    let barrel = json!({"Level": level, "Remaining": level / 100.0 * BARREL_M3});
    [
        (format!("{air}/Temperature"), json!({"value": degrees})),
        (format!("{air}/Humidity"), json!({"value": humidity})),
        ("device/garden/Proxy".to_owned(), json!({"topicPath": answer.topic("rain", "W"), "values": barrel})),
    ]
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_where_the_answer_says() {
        let answer = r#"{"portalId": "c0", "deviceInstance": {"air": 7, "rain": 3}, "topicPath": {
            "air": {"N": "N/c0/temperature/7", "R": "R/c0/temperature/7", "W": "W/c0/temperature/7"},
            "rain": {"N": "N/c0/tank/3", "R": "R/c0/tank/3", "W": "W/c0/tank/3"}}}"#;
        let answer = Answer::parse(answer.as_bytes()).unwrap();
        assert_eq!(answer.topic("air", "N"), "N/c0/temperature/7");
        let [temperature, _, barrel] = values(&answer, 0.0);
        assert_eq!(temperature, ("W/c0/temperature/7/Temperature".to_owned(), json!({"value": 11.0})));
        assert_eq!(barrel.1, json!({"topicPath": "W/c0/tank/3", "values": {"Level": 60.0, "Remaining": 0.3}}));
    }

    #[test]
    fn a_refusal_is_an_error_with_its_words() {
        let refusal = Publish::new("device/garden/Error", QoS::AtMostOnce, r#"{"error":"no"}"#);
        assert!(hear(&refusal).unwrap_err().to_string().contains("no"));
    }
}
