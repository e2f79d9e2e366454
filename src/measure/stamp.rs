//! The time of day, for stamps alone; what waits, waits by [`Time`](crate::bridge::Time).

use std::time::Duration;

use jiff::Timestamp;

/// Microseconds since 1970, as far as the clock knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Wall(i64);

/// 2020-01-01: a clock that stands before it has not been set.
const SET: i64 = 1_577_836_800_000_000;

impl Wall {
    pub fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Whether somebody has set the clock.
    pub fn is_set(self) -> bool {
        self.0 >= SET && Timestamp::from_microsecond(self.0).is_ok()
    }

    pub fn unix(self) -> u64 {
        u64::try_from(self.0 / 1_000_000).unwrap_or(0)
    }

    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long it is until the next multiple of `interval`.
    pub fn until_grid(self, interval: Duration) -> Duration {
        let interval = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX).max(1);
        Duration::from_micros(u64::try_from(interval - self.0.rem_euclid(interval)).unwrap_or(0))
    }
}

/// Such as `2025-10-30T15:27:33.058551+00:00`.
impl std::fmt::Display for Wall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Timestamp::from_microsecond(self.0) {
            Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").fmt(f),
            // nothing is stamped then
            Err(_) => f.write_str("(no time)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints() {
        for (micros, expected) in [
            (1_761_838_053_058_551, "2025-10-30T15:27:33.058551+00:00"),
            (1_761_838_053_000_000, "2025-10-30T15:27:33.000000+00:00"),
            (1_582_934_400_000_001, "2020-02-29T00:00:00.000001+00:00"),
            (0, "1970-01-01T00:00:00.000000+00:00"),
        ] {
            assert_eq!(Wall::from_micros(micros).to_string(), expected);
        }
    }

    #[test]
    fn clocks_that_were_set() {
        for (micros, expected) in [(0, false), (-1, false), (SET - 1, false), (SET, true), (1_761_838_053_058_551, true), (i64::MAX, false)]
        {
            assert_eq!(Wall::from_micros(micros).is_set(), expected, "{micros}");
        }
    }

    #[test]
    fn the_grid() {
        let table = [(0, 30_000, 30_000), (1, 30_000, 29_999), (29_999, 30_000, 1), (30_000, 30_000, 30_000), (-1, 30_000, 1), (7, 0, 1)];
        for (micros, interval, expected) in table {
            assert_eq!(Wall::from_micros(micros).until_grid(Duration::from_micros(interval)), Duration::from_micros(expected), "{micros}");
        }
    }
}
