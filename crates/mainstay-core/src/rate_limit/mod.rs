//! Pacing: a rate and a fair queue before it, back-off with jitter, and the schedule of a drain.
//!
//! Many things that happen together are spread, so that what comes of them does not come together either:
//! probes of many nodes, dials again after a failure, reconnects after a drain. Randomness comes in as a draw.

mod token_bucket;
mod queue;

use std::time::Duration;

use crate::hash;

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

/// When each of so many tunnels is closed: evenly over a window, in an order that the seed shuffles. Neither
/// clients that came together nor those of one relay thread go together, and no time of the window is busier than
/// another. Any number costs a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    count: u64,
    over: Duration,
    seed: u64,
    /// Half of the bits of the smallest even number of bits that holds every index.
    half_bits: u32,
}

impl Schedule {
    /// The schedule of `count` closes over a window.
    pub fn new(count: u64, over: Duration, seed: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { count, over, seed, half_bits: bits.div_ceil(2).max(1) }
    }

    /// When, after the start of the window, the tunnel `index` (0 to `count` - 1) is closed: always before the
    /// window ends. An index that is too high is due at once.
    pub fn due(&self, index: u64) -> Duration {
        if index >= self.count {
            return Duration::ZERO;
        }
        let nanos = self.over.as_nanos();
        // Split so that the product cannot overflow: count is below 2^64 and the remainder below count.
        let (count, slot) = (u128::from(self.count), u128::from(self.slot(index)));
        let due = nanos / count * slot + nanos % count * slot / count;
        let seconds = u64::try_from(due / 1_000_000_000).unwrap_or(u64::MAX);
        Duration::new(seconds, (due % 1_000_000_000) as u32)
    }

    /// The place of an index in the shuffled order: a Feistel network permutes all numbers of `2 * half_bits`
    /// bits, and whatever falls outside is sent through again, at most four times on average.
    fn slot(&self, index: u64) -> u64 {
        let mut slot = index;
        loop {
            slot = self.permuted(slot);
            if slot < self.count {
                return slot;
            }
        }
    }

    fn permuted(&self, number: u64) -> u64 {
        let mask = u64::MAX >> (u64::BITS - self.half_bits);
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for round in 0..4 {
            let key = self.seed.wrapping_add(u64::wrapping_mul(round, 0x9e37_79b9_7f4a_7c15));
            (left, right) = (right, left ^ (hash::mix(hash::mix(key) ^ right) & mask));
        }
        left << self.half_bits | right
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
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn no_second_of_a_drain_is_busier_than_1_3_times_the_mean() {
        for (count, over) in [(300_u64, 30_u64), (1_000, 30), (9_999, 60), (100_000, 30)] {
            let schedule = Schedule::new(count, Duration::from_secs(over), 7);
            let mut seconds = vec![0_u64; over as usize];
            for index in 0..count {
                seconds[schedule.due(index).as_secs() as usize] += 1;
            }
            let peak = *seconds.iter().max().unwrap() as f64;
            assert!(peak / (count as f64 / over as f64) <= 1.3, "{seconds:?}");
        }
    }

    #[test]
    fn the_order_of_a_drain_is_shuffled_by_its_seed() {
        let order = |seed: u64| {
            let schedule = Schedule::new(1000, Duration::from_secs(30), seed);
            (0..1000).map(|index| schedule.due(index)).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        // Neighbours are a third of the window apart on average, as two random times are.
        let apart: Duration = order(1).windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
        assert!((9.0..11.0).contains(&(apart.as_secs_f64() / 999.0)), "{apart:?}");
        // Of those that come first, half go in the first half.
        let early = order(1)[..500].iter().filter(|due| due.as_secs() < 15).count();
        assert!((210..290).contains(&early), "{early}");
    }

    #[test]
    fn the_ends_of_a_schedule_are_sound() {
        assert_eq!(Schedule::new(0, SECOND, 1).due(0), Duration::ZERO);
        assert_eq!(Schedule::new(1, SECOND, 1).due(0), Duration::ZERO);
        assert_eq!(Schedule::new(1, SECOND, 1).due(1), Duration::ZERO);
        assert_eq!(Schedule::new(5, Duration::ZERO, 1).due(3), Duration::ZERO);
        assert!(Schedule::new(u64::MAX, Duration::MAX, 1).due(5) < Duration::MAX);
    }

    proptest! {
        #[test]
        fn i11_every_tunnel_has_a_time_of_its_own_before_the_deadline(
            count in 1_u64..600, over in 1_u64..100_000, seed in any::<u64>(),
        ) {
            let over = Duration::from_millis(over);
            let schedule = Schedule::new(count, over, seed);
            let mut due: Vec<Duration> = (0..count).map(|index| schedule.due(index)).collect();
            due.sort_unstable();
            prop_assert_eq!(due[0], Duration::ZERO);
            prop_assert!(due[due.len() - 1] < over);
            let step = over / u32::try_from(count).unwrap();
            prop_assert!(due.windows(2).all(|pair| pair[1] - pair[0] + Duration::from_nanos(1) >= step));
        }
    }
}
