//! What the keys of an `[[http]]` part mean for each other, and for the other parts.

use std::time::Duration;

use crate::measure::options::{Format, Options};

use super::super::given::GivenTarget;
use super::super::url::{Url, is_loopback};
use super::super::{At, HttpTarget, Place, Secret};
use super::{Notes, value};

/// What the Solar Backend API answers at, below its base.
const MEASUREMENTS: &str = "/api/victron/measurements";

const API_KEY_HEADER: &str = "X-API-Key";

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const UPDATE_INTERVAL: Duration = Duration::from_secs(30);

/// Posts a second: an hour's measurements are through within half a minute, and the backend hardly notices.
const CATCH_UP_RATE: f64 = 5.0;

/// A week of measurements.
const QUEUE_RECORDS: usize = 21_000;
const QUEUE_BYTES: u64 = 32 << 20;

impl Notes {
    pub(super) fn targets(&mut self, given: &[GivenTarget]) -> Vec<HttpTarget> {
        let mut names: Vec<(String, &Place)> = Vec::new();
        for (i, target) in given.iter().enumerate() {
            let (name, place) = match &target.name {
                Some(At { value, place }) => (value.clone(), place),
                None => ((i + 1).to_string(), &target.place),
            };
            if let Some((_, other)) = names.iter().find(|(taken, _)| *taken == name) {
                let text = format!("two targets have the name \"{name}\", the other one is at {other}: write another name for one of them");
                self.mistake(place, if target.name.is_some() { text } else { text + " (without `name` it is the number)" });
            }
            names.push((name, place));
        }
        given.iter().zip(names).filter_map(|(target, (name, _))| self.target(target, name)).collect()
    }

    /// `None`: there are mistakes.
    fn target(&mut self, given: &GivenTarget, name: String) -> Option<HttpTarget> {
        let format = self.format(given);
        if given.url.is_none() {
            self.mistake(&given.place, "`url` is missing: write the address of the backend, such as \"https://backend.example\"".into());
        }
        let url = given.url.as_ref().map(|url| (url, self.url(url, &format)));
        let api_key = self.api_key(given, &format);
        self.ca_file(given);
        let timeout = value(given.timeout.clone()).unwrap_or(TIMEOUT);
        let connect_timeout = self.connect_timeout(given, timeout);
        let update_interval = value(given.update_interval.clone()).unwrap_or(UPDATE_INTERVAL);
        let catch_up_rate = self.catch_up_rate(given, update_interval);
        let (At { value: base, .. }, url) = url?;
        Some(HttpTarget {
            options: Options {
                name: name.into(),
                host: base.origin().into(),
                format,
                update_interval,
                cerbo_serial: value(given.cerbo_serial.clone()).map(String::into),
                catch_up_rate,
                queue_records: value(given.queue_records.clone()).unwrap_or(QUEUE_RECORDS),
                queue_bytes: value(given.queue_bytes.clone()).unwrap_or(QUEUE_BYTES),
            },
            url,
            api_key,
            api_key_header: value(given.api_key_header.clone()).unwrap_or_else(|| API_KEY_HEADER.into()),
            connect_timeout,
            timeout,
            ca_file: value(given.ca_file.clone()),
            gzip: value(given.gzip.clone()).unwrap_or_default(),
        })
    }

    fn format(&mut self, given: &GivenTarget) -> Format {
        match (&given.format, &given.filters) {
            (Some(At { value: Format::JsonLines(_), .. }), Some(filters)) => Format::JsonLines(filters.value.clone()),
            (Some(At { value: Format::JsonLines(_), place }), None) => {
                self.mistake(place, "\"json-lines\" needs `filters`, which say what is sent, such as [\"battery/+/Soc\"]".into());
                Format::JsonLines(Vec::new())
            }
            (_, Some(filters)) => {
                self.mistake(&filters.place, "`filters` are for `format = \"json-lines\"`: write that, or remove them".into());
                Format::VictronMeasurements
            }
            (_, None) => Format::VictronMeasurements,
        }
    }

    /// Where to post to.
    fn url(&mut self, url: &At<Url>, format: &Format) -> String {
        let At { value: url, place } = url;
        if let Format::JsonLines(_) = format {
            return url.to_string();
        }
        if url.has_query() {
            let text = format!("`url`: must not have a query, the part from `?` on: it is the base to which {MEASUREMENTS} is added");
            self.mistake(place, text);
        }
        let base = url.path().trim_end_matches('/');
        let base = base.strip_suffix(MEASUREMENTS).unwrap_or(base);
        let whole = format!("{}{base}{MEASUREMENTS}", url.origin());
        if let Some(part) = part_of_measurements(base) {
            let text = format!("`url`: {MEASUREMENTS} is added to it, which gives {whole}: leave \"{part}\" out, unless it is twice there");
            self.warning(place, text);
        }
        whole
    }

    fn api_key(&mut self, given: &GivenTarget, format: &Format) -> Option<Secret> {
        let Some(At { value: file, place }) = &given.api_key_file else {
            if let Some(header) = &given.api_key_header {
                self.warning(&header.place, "`api_key_header` has no effect, as there is no `api_key_file`".into());
            }
            if *format == Format::VictronMeasurements {
                let text = "`api_key_file` is not set: the backend will answer 401; name the file with the key it was given";
                self.warning(&given.place, text.into());
            }
            return None;
        };
        let Secret { text, file } = self.secret("API key", file, place)?;
        if !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            let text =
                format!("the API key in {} cannot be sent in a header: it must be ASCII, without control characters", file.display());
            self.mistake(place, text);
            return None;
        }
        let key = text.trim_ascii();
        if key.is_empty() {
            self.mistake(place, format!("the API key file {} has no API key: its first line is blank", file.display()));
            return None;
        }
        if let Some(At { value: url, .. }) = &given.url
            && !url.is_https()
            && !is_loopback(url.host())
        {
            self.warning(place, format!("the API key crosses the network to {} readable by anyone: use https", url.host()));
        }
        Some(Secret { text: key.into(), file })
    }

    fn ca_file(&mut self, given: &GivenTarget) {
        let Some(At { value: file, place }) = &given.ca_file else { return };
        if given.url.as_ref().is_some_and(|url| !url.value.is_https()) {
            self.mistake(place, "`ca_file` is for https, and the URL begins with http: correct the URL, or remove `ca_file`".into());
        }
        self.unreadable("the CA file", file, place);
    }

    fn connect_timeout(&mut self, given: &GivenTarget, timeout: Duration) -> Duration {
        let Some(At { value: connect_timeout, place }) = &given.connect_timeout else { return CONNECT_TIMEOUT.min(timeout) };
        if *connect_timeout > timeout {
            let text = format!("`connect_timeout` has no effect, as `timeout`, which is for the whole, is {} s", timeout.as_secs_f64());
            self.warning(place, text);
        }
        *connect_timeout
    }

    fn catch_up_rate(&mut self, given: &GivenTarget, update_interval: Duration) -> f64 {
        let rate = value(given.catch_up_rate.clone()).unwrap_or(CATCH_UP_RATE);
        let place = given.catch_up_rate.as_ref().map(|at| &at.place).or(given.update_interval.as_ref().map(|at| &at.place));
        if let Some(place) = place
            && rate * update_interval.as_secs_f64() <= 1.0
        {
            let text = "the queue never empties after an outage: `catch_up_rate` must be more than one post in each `update_interval`";
            self.warning(place, text.into());
        }
        rate
    }
}

/// The end of `base` that is a part of what will be added: it was probably written in addition.
fn part_of_measurements(base: &str) -> Option<&str> {
    // "/victron" alone is a folder like any other
    [MEASUREMENTS, "/api", "/api/victron", "/victron/measurements", "/measurements"].iter().find_map(|part| {
        let (_, end) = base.split_at_checked(base.len().checked_sub(part.len())?)?;
        end.eq_ignore_ascii_case(part).then_some(end)
    })
}
