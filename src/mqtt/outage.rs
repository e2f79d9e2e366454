//! What the log says of a connection that fails: a line when it begins, one when it ends, and in between a summary at most once an
//! hour, whatever the reasons are. The log of a GX device is 100 kB on flash.

use std::time::Duration;

use log::Level;
use tokio::time::Instant;

/// Between two summaries.
const SUMMARY: Duration = Duration::from_secs(3600);
/// A connection that held for so long ends an outage in which others broke.
pub(super) const STEADY: Duration = Duration::from_secs(600);

/// The failures since a connection was steady last.
#[derive(Default)]
pub(super) struct Outage {
    /// When it began, and when a line was written last.
    began: Option<(Instant, Instant)>,
    failures: u32,
    /// Connections that were made, and did not hold.
    broken: u32,
    last_reason: String,
    /// It was logged that another client has the same client ID.
    takeover_logged: bool,
}

/// Why a connection has ended.
pub(super) enum Reason {
    /// Another client has the same client ID, most likely.
    Takeover(String),
    Other(String),
}

impl Outage {
    /// An attempt has failed, or a connection has ended, for a reason. Returns what is to be logged.
    #[must_use]
    pub(super) fn failed(&mut self, now: Instant, broker: &str, reason: Reason, was_up: bool) -> (Level, String) {
        let is_news = matches!(reason, Reason::Takeover(_)) && !self.takeover_logged;
        self.takeover_logged |= is_news;
        let (Reason::Takeover(reason) | Reason::Other(reason)) = reason;
        let first = self.began.is_none();
        let what = if was_up { "the connection to" } else { "no connection to" };
        let text = format!("{what} the broker {broker}: {reason}");
        self.failures = self.failures.saturating_add(1);
        self.last_reason = reason;
        if was_up && !first {
            self.broken = self.broken.saturating_add(1);
        }
        let (_, said) = *self.began.get_or_insert((now, now));
        if first || is_news {
            return (Level::Warn, text);
        }
        // once: that it is connected has been said, and is not so any more
        if was_up && self.broken == 1 {
            return (Level::Warn, format!("{text}; it does not hold: further attempts are summarized once an hour"));
        }
        if now.saturating_duration_since(said) < SUMMARY {
            return (Level::Debug, text);
        }
        (Level::Warn, self.summarize(now, broker))
    }

    /// A connection was made. Returns what is to be logged.
    #[must_use]
    pub(super) fn connected(&mut self, broker: &str, client_id: &str) -> (Level, String) {
        // one that breaks again and again is not worth a line each time
        let level = if self.broken == 0 { Level::Info } else { Level::Debug };
        let text = format!("connected to the broker {broker} as {client_id}");
        (level, if self.failures > 1 { format!("{text} after {} attempts", self.failures) } else { text })
    }

    /// A connection has held for [`STEADY`]. Returns what is to be logged.
    #[must_use]
    pub(super) fn steady(&mut self, broker: &str) -> Option<(Level, String)> {
        let ended = std::mem::take(self);
        let text =
            || format!("the connection to the broker {broker} holds after {} failures, the last: {}", ended.failures, ended.last_reason);
        (ended.broken > 0).then(|| (Level::Info, text()))
    }

    fn summarize(&mut self, now: Instant, broker: &str) -> String {
        let (began, said) = self.began.get_or_insert((now, now));
        *said = now;
        let minutes = now.saturating_duration_since(*began).as_secs() / 60;
        format!("the broker {broker}: {} failures in {minutes} min, the last: {}", self.failures, self.last_reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines at info and above in a day of attempts, the nth of which fails for `reason(n)`.
    fn lines_of_a_day(outage: &mut Outage, every: u64, was_up: bool, reason: impl Fn(u64) -> String) -> Vec<String> {
        let began = Instant::now();
        let mut lines = Vec::new();
        for n in 0..86_400 / every {
            let now = began + Duration::from_secs(n * every);
            let up = was_up.then(|| outage.connected("b:1", "me"));
            let failed = outage.failed(now, "b:1", Reason::Other(reason(n)), was_up);
            lines.extend(up.into_iter().chain([failed]).filter(|(level, _)| *level <= Level::Info).map(|(_, text)| text));
        }
        lines
    }

    #[test]
    fn a_failure_that_repeats_is_a_line_an_hour() {
        let mut outage = Outage::default();
        let lines = lines_of_a_day(&mut outage, 30, false, |n| format!("certificate expired {n} seconds ago"));
        assert!((24..=25).contains(&lines.len()), "{lines:#?}");
        assert_eq!(lines[0], "no connection to the broker b:1: certificate expired 0 seconds ago");
        assert_eq!(lines[1], "the broker b:1: 121 failures in 60 min, the last: certificate expired 120 seconds ago");
        assert_eq!(outage.connected("b:1", "me"), (Level::Info, "connected to the broker b:1 as me after 2880 attempts".into()));
        assert_eq!(outage.steady("b:1"), None, "it has been said that it is connected");
        assert_eq!(outage.failed(Instant::now(), "b:1", Reason::Other("closed".into()), true).0, Level::Warn, "another outage");
    }

    #[test]
    fn a_connection_that_breaks_again_and_again_is_a_line_an_hour() {
        let mut outage = Outage::default();
        let lines = lines_of_a_day(&mut outage, 2, true, |n| if n % 2 == 0 { "closed".into() } else { "reset".into() });
        assert!(lines.len() <= 28, "{lines:#?}");
        assert!(lines[3].contains("it does not hold"), "{lines:#?}");
        assert_eq!(outage.connected("b:1", "me").0, Level::Debug);
        assert!(outage.steady("b:1").is_some_and(|(level, text)| level == Level::Info && text.contains("holds after 43200 failures")));
    }

    #[test]
    fn a_takeover_is_named_once() {
        let mut outage = Outage::default();
        let now = Instant::now();
        let mut levels = Vec::new();
        for n in 0..100 {
            let reason = if n < 4 { Reason::Other("closed".into()) } else { Reason::Takeover("another client".into()) };
            levels.push(outage.failed(now + Duration::from_secs(n), "b:1", reason, true));
        }
        let warnings: Vec<_> = levels.iter().filter(|(level, _)| *level == Level::Warn).map(|(_, text)| text.as_str()).collect();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert_eq!(warnings[2], "the connection to the broker b:1: another client");
        let (level, text) = outage.steady("b:1").unwrap();
        assert!(level == Level::Info && text.ends_with("holds after 100 failures, the last: another client"), "{text}");
        let again = outage.failed(now, "b:1", Reason::Takeover("another client".into()), true);
        assert_eq!(again.0, Level::Warn, "another outage");
    }

    #[test]
    fn a_restart_of_the_broker_is_two_lines() {
        let mut outage = Outage::default();
        let now = Instant::now();
        assert_eq!(outage.connected("b:1", "me"), (Level::Info, "connected to the broker b:1 as me".into()));
        assert_eq!(
            outage.failed(now, "b:1", Reason::Other("closed".into()), true),
            (Level::Warn, "the connection to the broker b:1: closed".into())
        );
        assert_eq!(outage.failed(now, "b:1", Reason::Other("refused".into()), false).0, Level::Debug);
        assert_eq!(outage.connected("b:1", "me").0, Level::Info);
        assert_eq!(outage.steady("b:1"), None);
    }
}
