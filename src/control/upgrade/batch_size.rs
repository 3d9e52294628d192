//! How many tunnels go over at once: as many as a pause of 50 ms allows on this machine, measured by the batch before.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Tunnels of the first batch: 10 to 20 ms where a core is free.
const FIRST: usize = 1_000;
/// The pause that the size aims at: less than the 50 ms that a batch may take, since the next one may be slower.
const PAUSE: Duration = Duration::from_millis(30);
/// The fewest and the most tunnels of a batch. On a busy machine, where each thread waits for its core, a smaller batch
/// hardly shortens the pause and prolongs the whole.
const RANGE: RangeInclusive<usize> = 500..=8_000;

/// The size of the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchSize(usize);

impl BatchSize {
    /// Before anything is known of the machine.
    pub(super) fn first() -> Self {
        Self(FIRST)
    }

    /// The most tunnels that the batch has.
    pub(super) fn tunnels(self) -> usize {
        self.0
    }

    /// The next size after a batch of `count` tunnels that took `pause`, at most twice as many. A batch that was not full
    /// changes nothing.
    pub(super) fn after(self, count: usize, pause: Duration) -> Self {
        if count < self.0 {
            return self;
        }
        let fitting = count as f64 * PAUSE.as_secs_f64() / pause.as_secs_f64().max(1e-6);
        Self((fitting.min(count as f64 * 2.0) as usize).clamp(*RANGE.start(), *RANGE.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_as_large_as_the_pause_allows_and_grows_by_steps() {
        let after = |ms| BatchSize::first().after(1_000, Duration::from_millis(ms)).tunnels();
        assert_eq!([0, 2, 20, 30, 40].map(after), [2_000, 2_000, 1_500, 1_000, 750]);
        assert_eq!(after(5_000), 500);
        assert_eq!(BatchSize(8_000).after(8_000, Duration::from_millis(4)).tunnels(), 8_000);
    }

    #[test]
    fn a_batch_that_was_not_full_changes_nothing() {
        assert_eq!(BatchSize::first().after(10, Duration::from_secs(1)), BatchSize::first());
    }
}
