//! Pacing: a rate and a fair queue before it, back-off with jitter, and the schedule of a drain.
//!
//! Many things that happen together are spread, so that what comes of them does not come together either:
//! probes of many nodes, dials again after a failure, reconnects after a drain. Randomness comes in as a draw.

mod close_schedule;
mod queue;
mod token_bucket;

use std::time::Duration;

pub use close_schedule::CloseSchedule;
pub use queue::FairQueue;
pub use token_bucket::TokenBucket;

/// `base`, more or less by at most this fraction of it (0 to 1), evenly drawn.
pub fn jitter(base: Duration, fraction: f64, draw: u64) -> Duration {
    // Written so that a fraction that is no number counts as 0.
    let fraction = if fraction > 0.0 { fraction.min(1.0) } else { 0.0 };
    scaled(base, 1.0 + fraction * (2.0 * unit(draw) - 1.0))
}

/// Exponential back-off: each delay may be twice the one before, up to a most, and at least half of it is kept,
/// so that nobody comes back at once and no two come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest delay before the first new attempt.
    pub first: Duration,
    /// The longest delay at all.
    pub most: Duration,
}

impl Backoff {
    /// The delay after `failures` (1 is the first) failed attempts.
    pub fn delay(&self, failures: u32, draw: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let longest = self.first.saturating_mul(1 << doublings).min(self.most);
        scaled(longest, 0.5 + 0.5 * unit(draw))
    }
}

/// A draw as a number from 0 to below 1.
fn unit(draw: u64) -> f64 {
    (draw >> 11) as f64 / 9_007_199_254_740_992.0
}

/// A duration times a factor of 0 to 2; one too long to be told is the longest.
fn scaled(base: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(base.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash;

    const SECOND: Duration = Duration::from_secs(1);

    fn draws() -> impl Iterator<Item = u64> {
        [0, u64::MAX].into_iter().chain((0..1000).map(hash::mix))
    }

    #[test]
    fn jitter_stays_within_its_fraction_and_fills_it() {
        let times: Vec<f64> = draws().map(|draw| jitter(SECOND, 0.2, draw).as_secs_f64()).collect();
        assert!(times.iter().all(|time| (0.8..=1.2).contains(time)));
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!(times.iter().any(|time| *time < 0.82) && times.iter().any(|time| *time > 1.18));
    }

    #[test]
    fn an_odd_fraction_or_base_gives_a_sound_time() {
        for draw in draws() {
            assert_eq!(jitter(SECOND, 0.0, draw), SECOND);
            assert_eq!(jitter(SECOND, f64::NAN, draw), SECOND);
            assert_eq!(jitter(SECOND, -1.0, draw), SECOND);
            assert!(jitter(SECOND, 7.0, draw) <= 2 * SECOND);
            assert_eq!(jitter(Duration::ZERO, 0.5, draw), Duration::ZERO);
            assert!(jitter(Duration::MAX, 0.5, draw) >= Duration::MAX / 4);
        }
    }

    #[test]
    fn back_off_doubles_up_to_its_most_and_keeps_half() {
        let backoff = Backoff { first: SECOND, most: 10 * SECOND };
        for (failures, longest) in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (40, 10), (u32::MAX, 10)]
        {
            let delays: Vec<Duration> = draws().map(|draw| backoff.delay(failures, draw)).collect();
            assert!(
                delays.iter().all(|delay| (SECOND * longest / 2..=SECOND * longest).contains(delay)),
                "{failures}"
            );
            assert!(delays.iter().max() > Some(&(SECOND * longest * 9 / 10)), "{failures}");
        }
        assert_eq!(
            Backoff { first: Duration::MAX, most: Duration::MAX }.delay(9, u64::MAX).min(SECOND),
            SECOND
        );
    }
}
