//! One monotonic clock for everything in this process: the fakes write it into the values, the subscriber reads it back.

use std::sync::OnceLock;
use std::time::Instant;

/// What is added to the time in a value, so that no other value of the house can be mistaken for one.
pub const VALUE_BASE: f64 = 1e6;

/// Seconds since the benchmark began.
pub fn now() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// A value that carries the present time, to the microsecond.
pub fn stamped() -> f64 {
    VALUE_BASE + (now() * 1e6).trunc() / 1e6
}
