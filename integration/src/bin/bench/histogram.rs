//! A histogram of latencies in microseconds, of fixed size: a run of a hundred thousand values a second must not grow the process that counts.
//!
//! Exact below 128 µs, above that each bucket is at most 1/64 of its value wide; a percentile is the upper edge of its bucket, so it never flatters.

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
/// Buckets for everything below 2^40 µs (twelve days).
const BUCKETS: usize = ((40 - SUB_BITS + 1) as usize) << SUB_BITS;

pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    pub fn add(&mut self, micros: u64) {
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count += 1;
            self.total += 1;
            self.max = self.max.max(micros);
        }
    }

    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
        self.max = 0;
    }

    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that `share` (0 to 1) of all values do not exceed; 0 when empty.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_edge(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(micros: u64) -> usize {
    let magnitude = micros.max(1).ilog2().saturating_sub(SUB_BITS);
    (u64::from(magnitude) * SUB + (micros >> magnitude)) as usize
}

fn upper_edge(index: usize) -> u64 {
    let index = index as u64;
    let magnitude = (index / SUB).saturating_sub(1);
    let mantissa = index - magnitude * SUB;
    ((mantissa + 1) << magnitude) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_edges_are_close() {
        let mut value = 0_u64;
        while value < 1 << 39 {
            let edge = upper_edge(bucket(value));
            assert!(edge >= value, "{value}: {edge}");
            assert!(edge - value <= value / SUB + 1, "{value}: {edge}");
            value += value / 50 + 1;
        }
    }

    #[test]
    fn buckets_follow_each_other() {
        for value in 0..100_000 {
            let step = bucket(value + 1) - bucket(value);
            assert!(step <= 1, "{value}");
        }
    }

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut histogram = Histogram::new();
        for value in 1..=1000 {
            histogram.add(value);
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.percentile(0.05), 50);
        assert!((500..=508).contains(&histogram.percentile(0.5)));
        assert!((990..=1000).contains(&histogram.percentile(0.99)));
        assert_eq!(histogram.percentile(1.0), 1000);
        assert_eq!(histogram.max(), 1000);
    }

    #[test]
    fn empty_and_cleared_are_zero() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.percentile(0.99), 0);
        histogram.add(77);
        histogram.clear();
        assert_eq!((histogram.count(), histogram.percentile(0.5), histogram.max()), (0, 0, 0));
    }

    #[test]
    fn what_is_beyond_the_last_bucket_is_not_counted() {
        let mut histogram = Histogram::new();
        histogram.add(u64::MAX);
        assert_eq!(histogram.count(), 0);
    }
}
