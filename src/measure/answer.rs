//! What came back for one measurement, and what it means: the table of answers.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::bridge::limits;
use crate::text::{escape, escape_bytes};

use super::options::Format;

/// One attempt to post, as the edge saw it.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    Answer(Answer),
    /// There was no answer; the text says why, for a person, without secrets.
    Failed(String),
    /// There was none because TLS failed: a certificate that is not trusted, say.
    Untrusted(String),
}

/// The backend's answer.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// What `Retry-After` says, seconds or a date brought to a span.
    pub retry_after: Option<Duration>,
    /// What `Content-Type` says, without parameters, in lower case; empty: nothing.
    pub content_type: String,
    /// Where a redirect points to: scheme and host only.
    pub location: Option<String>,
    /// At most 64 KiB of the body.
    pub body: Vec<u8>,
}

/// What an outcome means for the measurement.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// It is there; devices that the backend refused are named.
    Delivered { refused: Vec<Refused> },
    /// It will never be taken.
    Rejected { status: u16, why: String, refused: Vec<Refused> },
    /// It waits.
    Kept { trouble: Trouble, wait: Wait, why: String },
}

/// Why a measurement cannot be delivered now. A change from one to the other is worth a line, another attempt is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// There is no connection, or no answer.
    Unreachable,
    /// Who answers is not trusted, or speaks no TLS that we do.
    Trust,
    /// The backend is at fault, or busy.
    Backend,
    Key,
    /// What answers is not the backend.
    Address,
    /// It is our own: what waits cannot be read.
    Disk,
}

/// When the next attempt is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Longer with each attempt.
    BackOff,
    /// The longest that there is: a person has to do something.
    Longest,
    /// As the backend says.
    Told(Duration),
}

/// A device that the backend did not take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub serial: String,
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", escape(&self.serial))?;
        if self.why.is_empty() { Ok(()) } else { write!(f, " ({})", escape(&self.why)) }
    }
}

/// Names the devices, as far as a line has room.
pub fn names(refused: &[Refused]) -> String {
    let mut names: Vec<String> = refused.iter().take(limits::REFUSED).map(Refused::to_string).collect();
    if refused.len() > limits::REFUSED {
        names.push(format!("and {} more", refused.len() - limits::REFUSED));
    }
    if names.is_empty() { "which, it does not say".into() } else { names.join(", ") }
}

impl Outcome {
    /// What this outcome of posting a measurement of this format means.
    pub fn judge(&self, format: &Format) -> Verdict {
        match self {
            Self::Failed(why) => Verdict::Kept { trouble: Trouble::Unreachable, wait: Wait::BackOff, why: why.clone() },
            Self::Untrusted(why) => Verdict::Kept { trouble: Trouble::Trust, wait: Wait::BackOff, why: why.clone() },
            Self::Answer(answer) => answer.judge(format),
        }
    }
}

impl Answer {
    fn judge(&self, format: &Format) -> Verdict {
        match self.status {
            207 => Verdict::Delivered { refused: self.results().unwrap_or_default() },
            // what a hotel's network answers before somebody has paid
            200 if self.is_web_page() => self
                .kept(Trouble::Address, "a web page came back: another server answers (a log-in page of the network?), or `url` is wrong"),
            200..=299 => Verdict::Delivered { refused: Vec::new() },
            300..=399 => {
                let place = self.location.as_deref().map(|place| format!(" to {}", escape(place))).unwrap_or_default();
                self.kept(
                    Trouble::Address,
                    &format!("it redirects{place}, which is not followed: a log-in page of the network, or `url` is to be corrected"),
                )
            }
            401 | 403 => self.key_refused(),
            404 if *format == Format::VictronMeasurements => match self.results() {
                Some(results) => self.nothing_taken(results),
                None => self.no_such_address(),
            },
            404 | 410 => self.no_such_address(),
            // a web server's own, in front of the backend or in its place
            400 | 413 | 422 if *format == Format::VictronMeasurements && self.is_web_page() => {
                self.kept(Trouble::Address, "a web server refuses it, and not the backend: correct `url`")
            }
            400 | 413 | 422 => {
                let body = if self.body.is_empty() { String::new() } else { format!(": {}", escape_bytes(self.body.trim_ascii())) };
                self.rejected(format!("HTTP {}: it is refused as it is{body}", self.status), Vec::new())
            }
            408 | 425 => self.kept(Trouble::Backend, "it is not ready for this now"),
            429 => self.kept(Trouble::Backend, "it is asked to take too much at once"),
            400..=499 => self.kept(Trouble::Address, "it takes no measurements like this: correct `url` and `format`"),
            503 => self.kept(Trouble::Backend, "it is out of service for now"),
            _ => self.kept(Trouble::Backend, "it has an error of its own"),
        }
    }

    /// Many a framework calls its "OK" one as well.
    fn is_web_page(&self) -> bool {
        self.content_type == "text/html" && self.body.trim_ascii_start().starts_with(b"<")
    }

    /// The backend found not one of the devices good: it knows none of them, or it has no better status for somebody else's key.
    fn nothing_taken(&self, refused: Vec<Refused>) -> Verdict {
        if !refused.is_empty() && refused.iter().all(|refused| refused.why == "Unauthorized") {
            self.key_refused()
        } else {
            let why = format!("HTTP {}: none of the devices is taken there: add them by their serial", self.status);
            self.rejected(why, refused)
        }
    }

    fn key_refused(&self) -> Verdict {
        let why =
            format!("HTTP {}: the API key is refused: give the right one in the file of `api_key_file`, and send SIGHUP", self.status);
        Verdict::Kept { trouble: Trouble::Key, wait: Wait::Longest, why }
    }

    fn no_such_address(&self) -> Verdict {
        self.kept(Trouble::Address, "nothing takes measurements at this address: correct `url`")
    }

    fn rejected(&self, why: String, refused: Vec<Refused>) -> Verdict {
        Verdict::Rejected { status: self.status, why, refused }
    }

    fn kept(&self, trouble: Trouble, why: &str) -> Verdict {
        let told = self.retry_after.filter(|_| matches!(self.status, 429 | 503));
        let wait = told.map_or(Wait::BackOff, |wait| Wait::Told(wait.min(limits::RETRY_AFTER)));
        Verdict::Kept { trouble, wait, why: format!("HTTP {}: {why}", self.status) }
    }

    /// The devices that were not taken, of an answer that has a result for each; `None`: it has none.
    fn results(&self) -> Option<Vec<Refused>> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let results = body.get("results")?.as_array()?;
        let text = |result: &Value, key: &str| result.get(key).and_then(Value::as_str).map(str::to_owned);
        let refused = results.iter().filter(|result| result.get("status").and_then(Value::as_str) != Some("ok"));
        let refused = refused.map(|result| Refused {
            serial: text(result, "device_identifier")
                .or_else(|| text(result, "serial"))
                .unwrap_or_else(|| "a device without serial".into()),
            why: text(result, "error").unwrap_or_default(),
        });
        Some(refused.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::filter::Filter;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: body.into(), ..Answer::default() }
    }

    fn results(errors: &[(&str, &str)]) -> String {
        let each = errors.iter().map(|(serial, error)| match *error {
            "" => format!("{{\"device_identifier\":\"{serial}\",\"status\":\"ok\"}}"),
            error => format!("{{\"device_identifier\":\"{serial}\",\"status\":\"error\",\"error\":\"{error}\"}}"),
        });
        format!("{{\"success_count\":0,\"results\":[{}]}}", each.collect::<Vec<_>>().join(","))
    }

    /// A verdict in one line, as the table has it.
    fn judged(answer: Answer, format: &Format) -> String {
        match Outcome::Answer(answer).judge(format) {
            Verdict::Delivered { refused } if refused.is_empty() => "delivered".into(),
            Verdict::Delivered { refused } => format!("delivered but {}", names(&refused)),
            Verdict::Rejected { refused, .. } if refused.is_empty() => "rejected".into(),
            Verdict::Rejected { refused, .. } => format!("rejected: {}", names(&refused)),
            Verdict::Kept { trouble, wait, .. } => format!("kept: {trouble:?} {wait:?}"),
        }
    }

    #[test]
    fn the_table_of_answers() {
        let unknown = results(&[("HQ1", "Device HQ1 not found"), ("HQ2", "Device HQ2 not found")]);
        let table = [
            (answer(201, ""), "delivered"),
            (answer(200, "{}"), "delivered"),
            (answer(200, "OK"), "delivered"),
            (answer(204, ""), "delivered"),
            (Answer { content_type: "text/html".into(), ..answer(200, "OK") }, "delivered"),
            (Answer { content_type: "text/html".into(), ..answer(200, "<html>") }, "kept: Address BackOff"),
            (Answer { content_type: "text/html".into(), ..answer(201, "<html>") }, "delivered"),
            (answer(207, &results(&[("HQ1", ""), ("HQ2", "Device HQ2 not found")])), "delivered but HQ2 (Device HQ2 not found)"),
            (answer(207, "nonsense"), "delivered"),
            (answer(301, ""), "kept: Address BackOff"),
            (answer(304, ""), "kept: Address BackOff"),
            (answer(401, ""), "kept: Key Longest"),
            (answer(403, ""), "kept: Key Longest"),
            (answer(404, &unknown), "rejected: HQ1 (Device HQ1 not found), HQ2 (Device HQ2 not found)"),
            (answer(404, "{\"results\":[]}"), "rejected"),
            (answer(404, "{\"detail\":\"Not Found\"}"), "kept: Address BackOff"),
            (answer(404, ""), "kept: Address BackOff"),
            // the backend has no better status for these
            (answer(404, &results(&[("HQ1", "Unauthorized")])), "kept: Key Longest"),
            (
                answer(404, &results(&[("HQ1", "Unauthorized"), ("HQ2", "Device HQ2 not found")])),
                "rejected: HQ1 (Unauthorized), HQ2 (Device HQ2 not found)",
            ),
            (answer(404, &results(&[("HQ1", "Failed to store measurement")])), "rejected: HQ1 (Failed to store measurement)"),
            (answer(400, "bad"), "rejected"),
            (Answer { content_type: "text/html".into(), ..answer(400, "<html>The plain HTTP request") }, "kept: Address BackOff"),
            (Answer { content_type: "text/html".into(), ..answer(400, "bad") }, "rejected"),
            (answer(413, ""), "rejected"),
            (answer(422, ""), "rejected"),
            (answer(405, ""), "kept: Address BackOff"),
            (answer(408, ""), "kept: Backend BackOff"),
            (answer(429, ""), "kept: Backend BackOff"),
            (Answer { retry_after: Some(Duration::from_secs(7)), ..answer(429, "") }, "kept: Backend Told(7s)"),
            (Answer { retry_after: Some(Duration::from_secs(7)), ..answer(503, "") }, "kept: Backend Told(7s)"),
            (Answer { retry_after: Some(Duration::from_secs(86_400)), ..answer(503, "") }, "kept: Backend Told(3600s)"),
            (answer(503, ""), "kept: Backend BackOff"),
            (Answer { retry_after: Some(Duration::from_secs(7)), ..answer(500, "") }, "kept: Backend BackOff"),
            (answer(500, ""), "kept: Backend BackOff"),
            (answer(599, ""), "kept: Backend BackOff"),
            (answer(0, ""), "kept: Backend BackOff"),
        ];
        for (answer, expected) in table {
            assert_eq!(judged(answer.clone(), &Format::VictronMeasurements), expected, "{answer:?}");
        }
    }

    /// Nobody but the Solar Backend API means "unknown devices" by a 404.
    #[test]
    fn other_backends() {
        let format = Format::JsonLines(vec![Filter::parse("#").unwrap()]);
        assert_eq!(judged(answer(404, &results(&[("HQ1", "x")])), &format), "kept: Address BackOff");
        for delivered in [answer(200, ""), answer(204, ""), Answer { content_type: "text/html".into(), ..answer(200, "OK") }] {
            assert_eq!(judged(delivered, &format), "delivered");
        }
    }

    #[test]
    fn what_is_said_is_bounded_and_escaped() {
        let many: Vec<(String, String)> = (0..1000).map(|n| (format!("S{n}"), "e\\n".repeat(500))).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(serial, error)| (serial.as_str(), error.as_str())).collect();
        let Verdict::Delivered { refused } = Outcome::Answer(answer(207, &results(&many))).judge(&Format::VictronMeasurements) else {
            panic!("delivered");
        };
        let line = names(&refused);
        assert!(line.len() < 10_000 && !line.contains('\n') && line.ends_with(", and 980 more"), "{line}");
        let Verdict::Rejected { why, .. } = Outcome::Answer(answer(400, &"\n\u{1b}".repeat(1000))).judge(&Format::VictronMeasurements)
        else {
            panic!("rejected");
        };
        assert!(why.len() < 500 && !why.contains('\u{1b}'), "{why}");
    }
}
