//! Exponential back-off with jitter, between attempts that failed.

use std::time::Duration;

/// Each delay may be twice the one before, up to `most`. At least half of it is kept, so that nobody comes back at once,
/// and the rest is random, so that no two come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// The longest delay before the first new attempt.
    pub first: Duration,
    /// The longest delay at all.
    pub most: Duration,
}

/// Between attempts to connect to Redis.
pub(crate) const RECONNECT: Backoff =
    Backoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };

impl Backoff {
    /// The delay after `failures` (1 is the first) failed attempts; `random` is evenly drawn from all numbers.
    pub(crate) fn delay(&self, failures: u32, random: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let longest = self.first.saturating_mul(1 << doublings).min(self.most);
        longest / 2 + (longest / 2).mul_f64(random as f64 / u64::MAX as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_most_and_at_least_half_of_each_is_kept() {
        let backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };
        let bounds = |failures| [backoff.delay(failures, 0), backoff.delay(failures, u64::MAX)];
        assert_eq!(bounds(1), [50, 100].map(Duration::from_millis));
        assert_eq!(bounds(3), [200, 400].map(Duration::from_millis));
        assert_eq!(bounds(1000), [2500, 5000].map(Duration::from_millis));
    }
}
