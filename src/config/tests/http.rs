//! The `[[http]]` parts: every refusal with its exact words, and that what is shown can be fed back and holds no secret.

use std::time::Duration;

use super::*;
use crate::measure::options::{Format, Options as HttpOptions};

#[test]
fn defaults() {
    let dir = Scratch::new();
    let loaded = load(&dir, "[http]\nurl = \"https://backend.example\"").unwrap();
    let expected = HttpTarget {
        options: HttpOptions {
            name: "1".into(),
            host: "https://backend.example".into(),
            format: Format::VictronMeasurements,
            update_interval: Duration::from_secs(30),
            cerbo_serial: None,
            catch_up_rate: 5.0,
            queue_records: 21_000,
            queue_bytes: 33_554_432,
        },
        url: "https://backend.example/api/victron/measurements".into(),
        api_key: None,
        api_key_header: "X-API-Key".into(),
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(10),
        ca_file: None,
        gzip: false,
    };
    assert_eq!(loaded.config.http, [expected]);
}
