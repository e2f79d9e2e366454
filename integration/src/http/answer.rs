//! What a backend answers.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

/// One answer, or what comes in its place.
#[derive(Clone, Debug, Default)]
pub enum Answer {
    /// What the Solar Backend API answers: 201, or 207 or 404 when it does not know all devices or none of them, or 401.
    #[default]
    Api,
    Reply {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// As [`Answer::Api`], so long after the request came.
    Slow(Duration),
    /// The request is read, and nothing follows.
    Hang,
    /// The connection ends in order, without an answer to what was read.
    Close,
    /// The connection is reset, with the request read.
    Reset,
    /// The connection is reset before anything of the request is read.
    ResetUnread,
    /// An answer whose head never ends, a byte at a time.
    Drip(Duration),
    /// 201, with a body that never ends, a byte at a time.
    DripBody(Duration),
    /// A header that never ends.
    EndlessHeaders,
    /// 201, with 10 MiB that nobody wants.
    HugeBody,
    /// These bytes, and the end of the connection.
    Raw(&'static str),
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self::text(status, "")
    }

    pub fn text(status: u16, body: &str) -> Self {
        Self::Reply { status, headers: Vec::new(), body: body.into() }
    }

    /// With one more header.
    pub fn with(self, name: &str, value: &str) -> Self {
        match self {
            Self::Reply { status, mut headers, body } => {
                headers.push((name.into(), value.into()));
                Self::Reply { status, headers, body }
            }
            other => other,
        }
    }

    pub fn retry_after(status: u16, when: &str) -> Self {
        Self::status(status).with("Retry-After", when)
    }

    pub fn redirect(status: u16, to: &str) -> Self {
        Self::status(status).with("Location", to)
    }
}

/// Status and body of the Solar Backend API's answer.
pub fn api(measurement: &Value, unknown: &BTreeSet<String>, authorized: bool) -> (u16, String) {
    if !authorized {
        return (401, json!({"detail": "Invalid API key"}).to_string());
    }
    let devices = measurement["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let results: Vec<Value> = devices.iter().map(|device| result(device, unknown)).collect();
    let errors = results.iter().filter(|result| result["status"] == "error").count();
    let status = match errors {
        0 => 201,
        _ if errors == results.len() => 404,
        _ => 207,
    };
    let body = json!({
        "cerbo_serial": measurement["cerbo_serial"],
        "timestamp": measurement["timestamp"],
        "total_devices": results.len(),
        "success_count": results.len() - errors,
        "error_count": errors,
        "results": results,
    });
    (status, body.to_string())
}

fn result(device: &Value, unknown: &BTreeSet<String>) -> Value {
    let serial = device["serial"].as_str().unwrap_or_default();
    if unknown.contains(serial) {
        json!({"device_identifier": serial, "status": "error", "error": format!("Device {serial} not found")})
    } else {
        json!({"device_identifier": serial, "status": "ok", "inverter_id": 3, "yield_power_w": device["yield_power_w"]})
    }
}
