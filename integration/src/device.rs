//! A device that registers itself, as the firmware of one would: an MQTT client of its own, with a last will.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Client, Message, PORTAL, Rig, mqtt::Will};

/// A connected device; it has registered nothing yet.
pub struct Device {
    pub id: String,
    /// subscribed to all of the device's topics and to notifications
    pub mqtt: Client,
}

/// What `device/<id>/DBus` said.
#[derive(Clone, PartialEq, Debug)]
pub struct Registration {
    pub instances: BTreeMap<String, i64>,
    /// the whole payload, as it came
    pub text: String,
}

impl Registration {
    pub fn instance(&self, key: &str) -> i64 {
        self.instances.get(key).copied().unwrap_or_else(|| panic!("no instance of {key} in {}", self.text))
    }
}

impl Device {
    /// Connects with the last will that devices have: `connected` 0.
    pub fn connect(rig: &Rig, id: &str) -> Self {
        let will = json!({"clientId": id, "connected": 0, "version": "v1.0", "services": {}});
        Self::with_will(rig, id, &format!("device/{id}/Status"), &will.to_string())
    }

    /// Connects with any last will.
    pub fn with_will(rig: &Rig, id: &str, topic: &str, payload: &str) -> Self {
        let prefix = &rig.setup().prefix;
        let will = Will { topic: format!("{prefix}{topic}"), payload: payload.into() };
        let mqtt = rig.client_with_will(will);
        for filter in [format!("{prefix}device/{id}/+"), format!("{prefix}N/#")] {
            assert_ne!(mqtt.subscribe(&filter), 0x80, "the broker refuses {filter}");
        }
        Self { id: id.into(), mqtt }
    }

    /// `device/<id>/<what>`, behind the prefix if there is one.
    pub fn topic(&self, what: &str) -> String {
        format!("{}device/{}/{what}", self.mqtt.prefix(), self.id)
    }

    /// Publishes a Status of any content.
    pub fn status(&self, payload: impl AsRef<[u8]>) {
        self.mqtt.publish(&self.topic("Status"), payload);
    }

    /// The Status of these services, `{"t1": "temperature"}`.
    pub fn status_of(&self, services: &str) -> String {
        format!(r#"{{"clientId": "{}", "connected": 1, "version": "v1.0", "services": {services}}}"#, self.id)
    }

    /// Registers these services and waits for the answer.
    pub fn register(&self, services: &str) -> Registration {
        self.register_as(&self.status_of(services))
    }

    /// Publishes this Status and waits for the answer.
    pub fn register_as(&self, status: &str) -> Registration {
        self.mqtt.mark();
        self.status(status);
        self.answered()
    }

    /// The next answer since the mark. One that says why not ends the test.
    pub fn answered(&self) -> Registration {
        let (answer, error) = (self.topic("DBus"), self.topic("Error"));
        let message = self.mqtt.wait_for(&answer, |message| message.topic == answer || message.topic == error);
        assert_eq!(message.topic, answer, "refused: {}", message.text());
        registration(&message)
    }

    /// The next refusal since the mark: its text.
    pub fn refused(&self) -> String {
        let message = self.mqtt.expect_topic(&self.topic("Error"));
        let json: Value = serde_json::from_slice(&message.payload).unwrap_or_else(|error| panic!("{message:?}: {error}"));
        assert!(!message.retain, "{message:?}");
        json["error"].as_str().unwrap_or_else(|| panic!("no text in {message:?}")).to_owned()
    }

    /// Publishes this Status and waits for the refusal.
    pub fn refuse(&self, status: impl AsRef<[u8]>) -> String {
        self.mqtt.mark();
        self.status(status);
        self.refused()
    }

    pub fn leave(&self) {
        self.status(format!(r#"{{"clientId": "{}", "connected": 0, "version": "v1.0", "services": {{}}}}"#, self.id));
    }

    /// Power is cut: the broker publishes the last will.
    pub fn vanish(self) {
        self.mqtt.vanish();
    }

    pub fn proxy(&self, payload: impl AsRef<[u8]>) {
        self.mqtt.publish(&self.topic("Proxy"), payload);
    }
}

/// Reads an answer, and holds it to its form: three keys in their order, in each the services in the order of the Status.
pub fn registration(message: &Message) -> Registration {
    let text = message.text();
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let keys: Vec<_> = ["\"portalId\"", "\"deviceInstance\"", "\"topicPath\""].iter().map(|key| text.find(key)).collect();
    assert!(keys.iter().all(Option::is_some) && keys.is_sorted(), "the order of the keys: {text}");
    assert_eq!(json["portalId"], PORTAL, "{text}");
    assert!(!message.retain, "{message:?}");
    let instances = json["deviceInstance"].as_object().unwrap_or_else(|| panic!("no deviceInstance in {text}"));
    let instances = instances.iter().map(|(key, n)| (key.clone(), n.as_i64().unwrap_or_else(|| panic!("no number in {text}"))));
    Registration { instances: instances.collect(), text }
}

/// The name on the bus of a device's service.
pub fn name(kind: &str, id: &str, key: &str) -> String {
    format!("com.victronenergy.{kind}.mqtt_{id}_{key}")
}
