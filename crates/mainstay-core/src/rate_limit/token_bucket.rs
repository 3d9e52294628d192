//! A token bucket: how many things may begin in a second.
//!
//! It holds what comes in a tenth of a second (one at least), so a burst of that size passes at once and the rest at
//! the rate. It is one point in time, the one at which it will be full; the rate comes in with each question, so a
//! reload may change it between two of them.

use std::time::Duration;

/// What the bucket holds, in time.
const DEPTH: Duration = Duration::from_millis(100);

/// Tokens that refill at a rate; each lets one thing through.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenBucket {
    /// When it will be full again, on the clock that questions are asked by.
    full: Duration,
}

impl TokenBucket {
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

    /// Takes `amount` at `rate` a second from a bucket that holds what comes in a second, or says after which time it
    /// is there. More than the bucket holds is taken from a full one, and the debt is paid before the next.
    ///
    /// # Errors
    ///
    /// The time to wait; with a rate of 0, no time is enough.
    pub fn spend(&mut self, amount: u64, rate: u64, now: Duration) -> Result<(), Duration> {
        if rate == 0 {
            return Err(Duration::MAX);
        }
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(rate);
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let full = self.full.max(now);
        // A full bucket serves any amount, or one that is larger than the bucket would never be served.
        let latest = now.saturating_add(Duration::from_secs(1).saturating_sub(time));
        if full > latest {
            return Err(full - latest);
        }
        self.full = full.saturating_add(time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many of those who ask every millisecond for so long are let through.
    fn passed(rate: u32, millis: u64) -> u32 {
        let mut bucket = TokenBucket::default();
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
        let mut bucket = TokenBucket::default();
        let later = Duration::from_secs(3600);
        let passed = (0..1000).filter(|_| bucket.take(100, later).is_ok()).count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn a_rate_of_nothing_lets_nothing_through_and_a_new_rate_counts_at_once() {
        let mut bucket = TokenBucket::default();
        assert_eq!(bucket.take(0, Duration::ZERO), Err(Duration::MAX));
        assert_eq!(bucket.take(1, Duration::ZERO), Ok(()));
        assert_eq!(bucket.take(1, Duration::ZERO), Err(Duration::from_secs(1)));
        assert!(bucket.take(100, Duration::ZERO).is_err());
        assert_eq!(bucket.take(100, Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn a_second_of_a_rate_may_be_spent_at_once_and_what_is_larger_leaves_a_debt() {
        let mut bucket = TokenBucket::default();
        let now = Duration::from_secs(9);
        let spent = (0..100).filter(|_| bucket.spend(10, 100, now).is_ok()).count();
        assert_eq!(spent, 10);
        assert_eq!(bucket.spend(10, 100, now), Err(Duration::from_millis(100)));
        assert_eq!(bucket.spend(10, 100, now + Duration::from_millis(100)), Ok(()));
        let mut bucket = TokenBucket::default();
        assert_eq!(bucket.spend(300, 100, now), Ok(()));
        assert_eq!(bucket.spend(1, 100, now), Err(Duration::from_millis(2_010)));
        assert_eq!(bucket.spend(1, 0, now), Err(Duration::MAX));
        assert_eq!(TokenBucket::default().spend(u64::MAX, 1, now), Ok(()));
    }

    proptest! {
        #[test]
        fn who_waits_as_told_gets_one(rate in 1_u32..=1_000_000, at in 0_u64..u64::MAX / 4, asks in 1_usize..200) {
            let mut bucket = TokenBucket::default();
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
