//! Recognises that another client connects with the same client ID: the broker closes the connection of the one before (MQTT 3.1.1,
//! section 3.1.4), and does not say why.
//!
//! A connection that is accepted and closed again and again, without a packet to which that could be put down, is taken for it.

use std::time::Duration;

/// A connection that held for so long is not one of a series: clients that are thrown out come back within a minute.
pub(super) const HELD: Duration = Duration::from_secs(120);
/// With this score the series is taken for a takeover: three connections that were closed with everything confirmed, or five otherwise. A
/// packet that the broker refuses is found with the fourth at the latest ([`super::refused`]).
const SUSPECTED: u32 = 5;
/// With this score the next connection is quiet at first.
const WARY: u32 = 3;

/// How a connection has ended, or an attempt to make one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    /// The broker has closed it, and had confirmed everything that was sent.
    Confirmed,
    /// The broker has closed it, and had not confirmed something.
    Unconfirmed,
    /// The broker has closed it over a packet that is known now; `more`: another one can be left out.
    Refused { more: bool },
    /// For another reason that is known, or not by the broker.
    Other,
}

/// The series of connections that were closed.
#[derive(Default)]
pub(super) struct Takeover {
    score: u32,
}

impl Takeover {
    /// A connection has ended that held for so long.
    pub(super) fn ended(&mut self, closing: Closing, held: Duration) {
        if held >= HELD {
            self.score = 0;
        }
        match closing {
            Closing::Confirmed => self.score = self.score.saturating_add(2),
            Closing::Unconfirmed => self.score = self.score.saturating_add(1),
            Closing::Refused { .. } | Closing::Other => self.score = 0,
        }
    }

    pub(super) fn is_suspected(&self) -> bool {
        self.score >= SUSPECTED
    }

    /// Whether the next connection is to send nothing at first, so that it is known what it was not closed for.
    pub(super) fn is_wary(&self) -> bool {
        self.score >= WARY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(series: &[(Closing, u64)]) -> bool {
        let mut takeover = Takeover::default();
        series.iter().for_each(|(closing, held)| takeover.ended(*closing, Duration::from_secs(*held)));
        takeover.is_suspected()
    }

    #[test]
    fn a_series_without_another_reason_is_a_takeover() {
        use Closing::{Confirmed, Other, Unconfirmed};
        // the first may have held for days
        assert!(after(&[(Confirmed, 86_400), (Confirmed, 1), (Confirmed, 59)]));
        assert!(after(&[(Unconfirmed, 86_400), (Unconfirmed, 0), (Unconfirmed, 0), (Confirmed, 2)]));
        assert!(!after(&[(Confirmed, 1), (Confirmed, 1)]));
        assert!(!after(&[(Confirmed, 1), (Confirmed, 1), (Confirmed, 121)]));
        // a broker that restarts: some attempt fails in between
        assert!(!after(&[(Confirmed, 1), (Other, 0), (Confirmed, 1), (Other, 0), (Confirmed, 1)]));
        // a filter with a wildcard that the broker refuses, among more packets than are remembered
        assert!(!after(&[(Unconfirmed, 1), (Unconfirmed, 1), (Unconfirmed, 1), (Other, 1), (Unconfirmed, 1)]));
        assert!(!after(&[(Confirmed, 1), (Confirmed, 1), (Confirmed, 1), (Other, 1)]));
    }
}
