//! The schedule of a paced close: clients that are told to leave do not all reconnect in the same second.
//!
//! No second of the window is busier than another, and neither clients that came together nor those of one relay thread
//! are closed together.

use std::time::Duration;

use crate::hash;

/// When each of `count` connections is closed: evenly over a window, in an order that the seed shuffles. It takes a few
/// words of memory for any number of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseSchedule {
    count: u64,
    window: Duration,
    seed: u64,
    /// Half of the bits of the smallest even number of bits that holds every index.
    half_bits: u32,
}

impl CloseSchedule {
    /// The schedule of `count` closes over a window.
    pub fn new(count: u64, window: Duration, seed: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { count, window, seed, half_bits: bits.div_ceil(2).max(1) }
    }

    /// When, after the start of the window, the connection `index` (0 to `count` - 1) is closed: always before the
    /// window ends. An index that is too high is due at once.
    pub fn due(&self, index: u64) -> Duration {
        if index >= self.count {
            return Duration::ZERO;
        }
        let nanos = self.window.as_nanos();
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn no_second_of_a_window_is_busier_than_1_3_times_the_mean() {
        for (count, over) in [(300_u64, 30_u64), (1_000, 30), (9_999, 60), (100_000, 30)] {
            let schedule = CloseSchedule::new(count, Duration::from_secs(over), 7);
            let mut seconds = vec![0_u64; over as usize];
            for index in 0..count {
                seconds[schedule.due(index).as_secs() as usize] += 1;
            }
            let peak = *seconds.iter().max().unwrap() as f64;
            assert!(peak / (count as f64 / over as f64) <= 1.3, "{seconds:?}");
        }
    }

    #[test]
    fn the_order_of_the_closes_is_shuffled_by_the_seed() {
        let order = |seed: u64| {
            let schedule = CloseSchedule::new(1000, Duration::from_secs(30), seed);
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
        assert_eq!(CloseSchedule::new(0, SECOND, 1).due(0), Duration::ZERO);
        assert_eq!(CloseSchedule::new(1, SECOND, 1).due(0), Duration::ZERO);
        assert_eq!(CloseSchedule::new(1, SECOND, 1).due(1), Duration::ZERO);
        assert_eq!(CloseSchedule::new(5, Duration::ZERO, 1).due(3), Duration::ZERO);
        assert!(CloseSchedule::new(u64::MAX, Duration::MAX, 1).due(5) < Duration::MAX);
    }

    proptest! {
        #[test]
        fn i11_every_connection_has_a_time_of_its_own_before_the_window_ends(
            count in 1_u64..600, over in 1_u64..100_000, seed in any::<u64>(),
        ) {
            let over = Duration::from_millis(over);
            let schedule = CloseSchedule::new(count, over, seed);
            let mut due: Vec<Duration> = (0..count).map(|index| schedule.due(index)).collect();
            due.sort_unstable();
            prop_assert_eq!(due[0], Duration::ZERO);
            prop_assert!(due[due.len() - 1] < over);
            let step = over / u32::try_from(count).unwrap();
            prop_assert!(due.windows(2).all(|pair| pair[1] - pair[0] + Duration::from_nanos(1) >= step));
        }
    }
}
