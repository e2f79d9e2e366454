//! What came back for one measurement, as the edge saw it.

use std::time::Duration;

/// One attempt to post.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    Answer(Answer),
    /// There was no answer; the text says why, for a person, without secrets.
    Failed(String),
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
