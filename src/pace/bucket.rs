//! A token bucket: how many things may begin in a second.
//!
//! It holds what comes in a tenth of a second (one at least), so a burst of that size passes at once and the rest at
//! the rate. It is one point in time, the one at which it will be full; the rate comes in with each question, so a
//! reload may change it between two of them.

use std::time::Duration;

/// What the bucket holds, in time.
const DEPTH: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// When it will be full again, on the clock that questions are asked by.
    full: Duration,
}

impl Bucket {
    /// Takes one at `rate` a second, or says after which time there is one. `now` never goes back.
    ///
    /// # Errors
    ///
    /// The time to wait; with a rate of 0, no time is enough.
    pub fn take(&mut self, rate: u32, now: Duration) -> Result<(), Duration> {
        if rate == 0 {
            return Err(Duration::MAX);
        }
        let one = Duration::from_secs(1) / rate;
        let full = self.full.max(now).saturating_add(one);
        // At least one fits, however low the rate is.
        let latest = now.saturating_add(DEPTH.max(one));
        if full > latest {
            return Err(full - latest);
        }
        self.full = full;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many of those who ask every millisecond for so long are let through.
    fn passed(rate: u32, millis: u64) -> u32 {
        let mut bucket = Bucket::default();
        let times = (0..millis).flat_map(|milli| [Duration::from_millis(milli); 20]);
        times.map(|now| u32::from(bucket.take(rate, now).is_ok())).sum()
    }

    #[test]
    fn a_second_lets_the_rate_through_and_a_tenth_more_at_its_start() {
        assert_eq!(passed(100, 1), 10);
        assert_eq!(passed(100, 1000), 109);
        assert_eq!(passed(1000, 10_000), 10_099);
        assert_eq!(passed(1, 1), 1);
        assert_eq!(passed(1, 10_000), 10);
        assert_eq!(passed(3, 10_000), 30);
    }

    #[test]
    fn what_was_not_used_is_not_saved_beyond_the_depth() {
        let mut bucket = Bucket::default();
        let later = Duration::from_secs(3600);
        let passed = (0..1000).filter(|_| bucket.take(100, later).is_ok()).count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn a_rate_of_nothing_lets_nothing_through_and_a_new_rate_counts_at_once() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(0, Duration::ZERO), Err(Duration::MAX));
        assert_eq!(bucket.take(1, Duration::ZERO), Ok(()));
        assert_eq!(bucket.take(1, Duration::ZERO), Err(Duration::from_secs(1)));
        assert!(bucket.take(100, Duration::ZERO).is_err());
        assert_eq!(bucket.take(100, Duration::from_secs(1)), Ok(()));
    }

    proptest! {
        #[test]
        fn who_waits_as_told_gets_one(rate in 1_u32..=1_000_000, at in 0_u64..u64::MAX / 4, asks in 1_usize..200) {
            let mut bucket = Bucket::default();
            let now = Duration::from_nanos(at);
            for _ in 0..asks {
                if let Err(wait) = bucket.take(rate, now) {
                    prop_assert!(wait <= Duration::from_secs(1));
                    prop_assert_eq!(bucket.take(rate, now + wait), Ok(()));
                    return Ok(());
                }
            }
        }
    }
}
