//! The counters of one pool that are not those of its nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts};

use super::labels::{AFFINITY_OUTCOMES, AFFINITY_SOURCES, HandshakeResult, RETRY_RESULTS, STATUS_CLASSES};

/// Upper bounds in seconds: a node on the same network answers in the first few, and nothing is waited for longer
/// than `timeouts.handshake`, which is 10 s unless told.
const HANDSHAKE_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The counters of one pool that are not its nodes'.
pub struct PoolMeter {
    /// The pool's name.
    pub pool: Arc<str>,
    /// Upgrade requests by [`HandshakeResult`].
    handshakes: [AtomicU64; HandshakeResult::ALL.len()],
    /// Seconds from the request's head to the answer, of those that were upgraded.
    pub(super) handshake_seconds: Histogram,
    /// Plain requests by index into [`STATUS_CLASSES`].
    requests: [AtomicU64; STATUS_CLASSES.len()],
    /// Sessions by index into [`AFFINITY_SOURCES`] and into [`AFFINITY_OUTCOMES`].
    affinity: [[AtomicU64; AFFINITY_OUTCOMES.len()]; AFFINITY_SOURCES.len()],
    /// Handshakes that were to be sent to another node: those that were, and those for which the budget had nothing left.
    retries: [AtomicU64; RETRY_RESULTS.len()],
    /// Tunnels that the rebalance under way may still close.
    rebalance_left: AtomicU64,
    /// Tunnels that rebalances have told to close.
    rebalance_closes: AtomicU64,
}

impl PoolMeter {
    pub(super) fn new(pool: Arc<str>) -> Self {
        let options =
            HistogramOpts::new("handshake_seconds", "time to the answer").buckets(HANDSHAKE_BUCKETS.into());
        Self {
            pool,
            handshakes: Default::default(),
            handshake_seconds: Histogram::with_opts(options)
                .expect("the name is a literal and the bounds rise"),
            requests: Default::default(),
            affinity: Default::default(),
            retries: Default::default(),
            rebalance_left: AtomicU64::new(0),
            rebalance_closes: AtomicU64::new(0),
        }
    }

    /// An upgrade request ended.
    pub(crate) fn record_handshake(&self, result: HandshakeResult) {
        self.handshakes[result as usize].fetch_add(1, Relaxed);
    }

    /// A handshake took this long, from the request's head to the answer.
    pub(crate) fn record_handshake_time(&self, took: Duration) {
        self.handshake_seconds.observe(took.as_secs_f64());
    }

    /// A plain request was answered with this status. One outside 100 to 599 counts as `5xx`: nobody may send it.
    pub(crate) fn record_request(&self, status: u16) {
        let class = match status {
            100..=599 => usize::from(status / 100 - 1),
            _ => STATUS_CLASSES.len() - 1,
        };
        self.requests[class].fetch_add(1, Relaxed);
    }

    /// A session was placed: which affinity source decided, one of [`AFFINITY_SOURCES`], and how that went, one of
    /// [`AFFINITY_OUTCOMES`]. Other words are not counted.
    pub(crate) fn record_affinity(&self, source: &'static str, outcome: &'static str) {
        let source = AFFINITY_SOURCES.iter().position(|known| *known == source);
        let outcome = AFFINITY_OUTCOMES.iter().position(|known| *known == outcome);
        if let Some((source, outcome)) = source.zip(outcome) {
            self.affinity[source][outcome].fetch_add(1, Relaxed);
        }
    }

    /// A handshake that a node refused was sent to another, or would have been if the budget had allowed it.
    pub(crate) fn record_retry(&self, is_sent: bool) {
        self.retries[usize::from(!is_sent)].fetch_add(1, Relaxed);
    }

    pub(super) fn retries(&self, result: usize) -> u64 {
        self.retries[result].load(Relaxed)
    }

    /// A rebalance may still close so many tunnels; 0 when none is under way.
    pub(crate) fn set_rebalance_left(&self, left: u32) {
        self.rebalance_left.store(left.into(), Relaxed);
    }

    /// A rebalance has told so many tunnels to close.
    pub(crate) fn record_rebalance_closes(&self, closes: u32) {
        self.rebalance_closes.fetch_add(closes.into(), Relaxed);
    }

    /// What the two above have said.
    pub(super) fn rebalance_counts(&self) -> [u64; 2] {
        [&self.rebalance_left, &self.rebalance_closes].map(|count| count.load(Relaxed))
    }

    pub(super) fn handshakes(&self, result: HandshakeResult) -> u64 {
        self.handshakes[result as usize].load(Relaxed)
    }

    pub(super) fn requests(&self, class: usize) -> u64 {
        self.requests[class].load(Relaxed)
    }

    pub(super) fn affinities(&self, source: usize, outcome: usize) -> u64 {
        self.affinity[source][outcome].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_affinity_has_a_counter_and_no_other_word_makes_one() {
        let pool = PoolMeter::new("chat".into());
        for source in AFFINITY_SOURCES {
            AFFINITY_OUTCOMES.into_iter().for_each(|outcome| pool.record_affinity(source, outcome));
        }
        pool.record_affinity("tea_leaves", "kept");
        pool.record_affinity("cookie", "lost");
        for (source, outcome) in
            (0..AFFINITY_SOURCES.len()).flat_map(|s| (0..AFFINITY_OUTCOMES.len()).map(move |o| (s, o)))
        {
            assert_eq!(pool.affinities(source, outcome), 1);
        }
    }

    #[test]
    fn a_status_that_is_none_is_our_own_fault() {
        let pool = PoolMeter::new("chat".into());
        for status in [0, 99, 100, 200, 299, 304, 404, 503, 599, 600, u16::MAX] {
            pool.record_request(status);
        }
        let counts: Vec<u64> = (0..STATUS_CLASSES.len()).map(|class| pool.requests(class)).collect();
        assert_eq!(counts, [1, 2, 1, 1, 6]);
    }
}
