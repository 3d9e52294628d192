//! How often a handshake that a node refused may be sent to another one.
//!
//! A budget rather than a count alone: when every node refuses, each handshake would be sent several times, and the
//! nodes would get the more the less they can take. So retries are at most a part of the handshakes of the last
//! seconds; a few beside that let a quiet pool retry, too. It is arithmetic, and is told the time.

use std::time::Duration;

/// What a pool allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The most nodes that are asked for one handshake; 1 is no retry. A failed dial is none.
    pub attempts: u32,
    /// Retries in percent of the handshakes, 0 to 100.
    pub of_handshakes: u8,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, of_handshakes: 20 }
    }
}

/// Handshakes count for about so long.
const EARNED_DECAY: Duration = Duration::from_secs(10);
/// Retries that are there beside those that handshakes give, and so many more each second.
const SPARE_RETRIES: f64 = 3.0;

/// The retries that a pool has left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryBudget {
    /// What the handshakes of late have given and that is not used, in hundredths of a retry.
    earned: f64,
    /// Retries of the floor that are not used, at most [`SPARE_RETRIES`].
    spare: f64,
    /// When both were right, on the clock that questions are asked by.
    at: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { earned: 0.0, spare: SPARE_RETRIES, at: Duration::ZERO }
    }
}

impl RetryBudget {
    /// A handshake has come.
    pub(crate) fn record_handshake(&mut self, retries: RetryPolicy, now: Duration) {
        self.advance(now);
        self.earned += f64::from(retries.of_handshakes.min(100));
    }

    /// Takes one retry, if there is one.
    pub(crate) fn try_take(&mut self, now: Duration) -> bool {
        self.advance(now);
        let (from, one) =
            if self.earned >= 100.0 { (&mut self.earned, 100.0) } else { (&mut self.spare, 1.0) };
        let is_there = *from >= one;
        if is_there {
            *from -= one;
        }
        is_there
    }

    /// What handshakes have given fades, and the floor fills.
    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.earned *= (-passed / EARNED_DECAY.as_secs_f64()).exp();
        self.spare = (self.spare + passed * SPARE_RETRIES / EARNED_DECAY.as_secs_f64()).min(SPARE_RETRIES);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RETRIES: RetryPolicy = RetryPolicy { attempts: 3, of_handshakes: 20 };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn taken(budget: &mut RetryBudget, now: Duration) -> usize {
        (0..10_000).take_while(|_| budget.try_take(now)).count()
    }

    #[test]
    fn a_quiet_pool_may_retry_a_few_times_and_again_later() {
        let mut budget = RetryBudget::default();
        assert_eq!(taken(&mut budget, ms(0)), 3);
        assert_eq!([ms(1_000), ms(3_400)].map(|now| taken(&mut budget, now)), [0, 1]);
        assert_eq!(taken(&mut budget, ms(3_600_000)), 3, "and does not save up");
        assert!(!budget.try_take(ms(0)), "a clock that is read late gives nothing");
    }

    #[test]
    fn retries_are_a_part_of_the_handshakes_of_late() {
        let mut budget = RetryBudget::default();
        (0..100).for_each(|_| budget.record_handshake(RETRIES, ms(1)));
        assert_eq!(taken(&mut budget, ms(1)), 20 + 3);
        (0..100).for_each(|_| budget.record_handshake(RETRIES, ms(1)));
        assert_eq!(taken(&mut budget, ms(60_000)), 3, "those of a minute ago count no more");
        let none = RetryPolicy { of_handshakes: 0, ..RETRIES };
        (0..100).for_each(|_| budget.record_handshake(none, ms(60_000)));
        assert_eq!(taken(&mut budget, ms(60_000)), 0);
    }

    proptest! {
        #[test]
        fn in_any_order_of_events_there_are_no_more_retries_than_the_budget_says(
            events in prop::collection::vec((any::<bool>(), 0_u64..2_000), 0..500), of_handshakes: u8,
        ) {
            let retries = RetryPolicy { of_handshakes, ..RETRIES };
            let (mut budget, mut now, mut handshakes, mut taken) = (RetryBudget::default(), 0, 0.0, 0.0);
            for (is_handshake, later) in events {
                now += later;
                if is_handshake {
                    budget.record_handshake(retries, ms(now));
                    handshakes += 1.0;
                } else if budget.try_take(ms(now)) {
                    taken += 1.0;
                }
                let most = handshakes * f64::from(of_handshakes.min(100)) / 100.0 + 3.0 + now as f64 * 0.0003;
                prop_assert!(taken <= most + 1e-6, "{taken} of {most}");
            }
        }
    }
}
