//! The counters of one node and of one pool.
//!
//! A relay thread counts bytes and messages on its own [`Shard`]: one writer, so a plain load and store, no
//! locked instruction, no cache line that two threads write. What happens once per session (a handshake, a close)
//! is an atomic addition. Nothing here allocates or locks after its creation.

mod node_permit;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts};

use super::drain_gauge::DrainGauge;
pub use super::shard::MeterShard;
pub(super) use super::shard::RelayedTotals;
pub use node_permit::NodePermit;

/// Which way bytes went, seen from the balancer's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficDirection {
    /// From the client to the node.
    In,
    /// From the node to the client.
    Out,
}

impl TrafficDirection {
    /// Both, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::In, Self::Out];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Who ended a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseSide {
    /// The client.
    Client,
    /// The node.
    Node,
    /// The balancer itself: a limit, a timeout, a drain.
    Balancer,
}

impl CloseSide {
    /// All three, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Client, Self::Node, Self::Balancer];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Node => "node",
            Self::Balancer => "balancer",
        }
    }
}

/// How an upgrade request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeResult {
    /// The client was told yes.
    Upgraded,
    /// The request was wrong, or a node said no: the client's or the node's decision.
    Refused,
    /// No node could be asked, or none gave a valid answer.
    Failed,
    /// A limit of the config kept it out.
    Limited,
}

impl HandshakeResult {
    /// All four, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Upgraded, Self::Refused, Self::Failed, Self::Limited];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upgraded => "upgraded",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Limited => "limited",
        }
    }
}

/// The values of the label `kind`, in the order of the array that [`Shard::add`] takes.
pub const MESSAGE_KINDS: [&str; 5] = ["text", "binary", "ping", "pong", "close"];

/// The values of the label `state`.
pub const NODE_STATES: [&str; 4] = ["up", "down", "draining", "removed"];

/// The values of the label `status`.
pub const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The values of the label `source`.
pub const AFFINITY_SOURCES: [&str; 7] =
    ["cookie", "node_cookie", "engine_io", "header", "query", "client_ip", "none"];

/// The values of the label `outcome`.
pub const AFFINITY_OUTCOMES: [&str; 4] = ["kept", "moved", "hashed", "placed"];

/// The values of the label `code`: RFC 6455's own codes one by one, then the registered range, the private range
/// and whatever else a peer puts there.
pub const CLOSE_CODES: [&str; 19] = [
    "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012",
    "1013", "1014", "1015", "3xxx", "4xxx", "other",
];

fn close_code_index(code: u16) -> usize {
    match code {
        1000..=1015 => usize::from(code - 1000),
        3000..=3999 => 16,
        4000..=4999 => 17,
        _ => 18,
    }
}

/// Not yet in one of [`STATES`].
const NO_STATE: u8 = u8::MAX;

/// No load was reported. The bits of a NaN, which no quotient of two counts has.
const NO_LOAD: u64 = u64::MAX;

/// The counters of one node of one pool.
pub struct NodeMeter {
    /// The pool's name.
    pub pool: Arc<str>,
    /// The node's name.
    pub node: Arc<str>,
    /// Tunnels that are open now, over all relay threads.
    live: AtomicU32,
    /// The most tunnels that the node takes; 0 is no limit.
    capacity: AtomicU32,
    /// The node's own word about its load, used / max, as the bits of an `f64`; [`NO_LOAD`] without one.
    reported: AtomicU64,
    /// Index into [`STATES`], or [`NO_STATE`].
    state: AtomicU8,
    /// The node's drain, asked at each scrape; `None` without one. Locked for a moment, on no session's way.
    drain: Mutex<Option<DrainGauge>>,
    /// Tunnels that ended, by [`Side`] and by index into [`CODES`].
    closes: [[AtomicU64; CLOSE_CODES.len()]; CloseSide::ALL.len()],
    /// Health probes: failed, good.
    probes: [AtomicU64; 2],
    /// One for each relay thread.
    shards: Box<[MeterShard]>,
}

impl NodeMeter {
    pub(super) fn new(pool: Arc<str>, node: Arc<str>, relay_threads: usize) -> Self {
        Self {
            pool,
            node,
            live: AtomicU32::new(0),
            capacity: AtomicU32::new(0),
            reported: AtomicU64::new(NO_LOAD),
            state: AtomicU8::new(NO_STATE),
            drain: Mutex::default(),
            closes: Default::default(),
            probes: Default::default(),
            shards: (0..relay_threads.max(1)).map(|_| MeterShard::default()).collect(),
        }
    }

    /// The shard of this relay thread. Each shard has one writer: only the thread with this number (from 0) may
    /// add to it, or counts are lost. A number that is too large gives the last shard.
    pub fn shard(&self, thread: usize) -> &MeterShard {
        &self.shards[thread.min(self.shards.len() - 1)]
    }

    /// A tunnel ended: who ended it, and with which close code (1006 when there was none).
    pub fn record_close(&self, side: CloseSide, code: u16) {
        self.closes[side as usize][close_code_index(code)].fetch_add(1, Relaxed);
    }

    /// A health probe was answered as it should be, or not.
    pub fn record_probe(&self, ok: bool) {
        self.probes[usize::from(ok)].fetch_add(1, Relaxed);
    }

    /// The node is in this state now, one of `up`, `down`, `draining`, `removed`; any other word is in none.
    pub fn set_state(&self, state: &'static str) {
        let index = NODE_STATES.iter().position(|known| *known == state);
        let index = index.and_then(|index| u8::try_from(index).ok());
        self.state.store(index.unwrap_or(NO_STATE), Relaxed);
    }

    /// The most tunnels that the node takes; `None` is no limit.
    pub fn set_capacity(&self, max: Option<u32>) {
        self.capacity.store(max.unwrap_or(0), Relaxed);
    }

    /// What the node says of itself: its connections and the most that it takes, all balancers together. `None`
    /// when it says nothing (any more); a most of 0 is as nothing.
    pub fn set_reported_load(&self, load: Option<(u64, u64)>) {
        let load = load.filter(|(_, max)| *max > 0);
        let bits = load.map_or(NO_LOAD, |(used, max)| (used as f64 / max as f64).to_bits());
        self.reported.store(bits, Relaxed);
    }

    /// The node's own word about its load; else live tunnels per allowed tunnel, `None` without a limit.
    pub fn utilization(&self) -> Option<f64> {
        match (self.reported.load(Relaxed), self.capacity.load(Relaxed)) {
            (NO_LOAD, 0) => None,
            (NO_LOAD, max) => Some(f64::from(self.live()) / f64::from(max)),
            (bits, _) => Some(f64::from_bits(bits)),
        }
    }

    /// The node is being drained, or is no longer.
    pub fn set_drain(&self, drain: Option<DrainGauge>) {
        *self.drain.lock() = drain;
    }

    /// What has been closed so far, and the deadline in Unix seconds; `None` without a drain.
    pub(super) fn current_drain(&self) -> Option<(usize, f64)> {
        self.drain.lock().as_ref().map(|drain| ((drain.closed)(), drain.deadline))
    }

    pub(super) fn current_state(&self) -> Option<&'static str> {
        NODE_STATES.get(usize::from(self.state.load(Relaxed))).copied()
    }

    pub(super) fn closes(&self, side: CloseSide, code: usize) -> u64 {
        self.closes[side as usize][code].load(Relaxed)
    }

    pub(super) fn probes(&self, ok: bool) -> u64 {
        self.probes[usize::from(ok)].load(Relaxed)
    }

    /// What the node's tunnels have relayed so far, over all relay threads.
    pub(super) fn totals(&self) -> RelayedTotals {
        let mut totals = RelayedTotals::default();
        self.shards.iter().for_each(|shard| totals.add(&shard.totals()));
        totals
    }
}

impl fmt::Debug for NodeMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meter({}/{}, {} live)", self.pool, self.node, self.live())
    }
}

/// The values of the label `result` of a retry.
pub(super) const RETRY_RESULTS: [&str; 2] = ["sent", "over_budget"];

/// Upper bounds in seconds: a node on the same network answers in the first few, and nothing is waited for longer
/// than `timeouts.handshake`, which is 10 s unless told.
const HANDSHAKE_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The counters of one pool that are not its nodes'.
pub struct PoolMeter {
    /// The pool's name.
    pub pool: Arc<str>,
    /// Upgrade requests by [`Handshake`].
    handshakes: [AtomicU64; HandshakeResult::ALL.len()],
    /// Seconds from the request's head to the answer, of those that were upgraded.
    pub(super) handshake_seconds: Histogram,
    /// Plain requests by index into [`CLASSES`].
    requests: [AtomicU64; STATUS_CLASSES.len()],
    /// Sessions by index into [`SOURCES`] and into [`OUTCOMES`].
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
    pub fn record_handshake(&self, result: HandshakeResult) {
        self.handshakes[result as usize].fetch_add(1, Relaxed);
    }

    /// A handshake took this long, from the request's head to the answer.
    pub fn record_handshake_time(&self, took: Duration) {
        self.handshake_seconds.observe(took.as_secs_f64());
    }

    /// A plain request was answered with this status. One outside 100 to 599 counts as `5xx`: nobody may send it.
    pub fn record_request(&self, status: u16) {
        let class = match status {
            100..=599 => usize::from(status / 100 - 1),
            _ => STATUS_CLASSES.len() - 1,
        };
        self.requests[class].fetch_add(1, Relaxed);
    }

    /// A session was placed: which affinity source decided, one of [`SOURCES`], and how that went, one of
    /// [`OUTCOMES`]. Other words are not counted.
    pub fn record_affinity(&self, source: &'static str, outcome: &'static str) {
        let source = AFFINITY_SOURCES.iter().position(|known| *known == source);
        let outcome = AFFINITY_OUTCOMES.iter().position(|known| *known == outcome);
        if let Some((source, outcome)) = source.zip(outcome) {
            self.affinity[source][outcome].fetch_add(1, Relaxed);
        }
    }

    /// A handshake that a node refused was sent to another, or would have been if the budget had allowed it.
    pub fn record_retry(&self, is_sent: bool) {
        self.retries[usize::from(!is_sent)].fetch_add(1, Relaxed);
    }

    pub(super) fn retries(&self, result: usize) -> u64 {
        self.retries[result].load(Relaxed)
    }

    /// A rebalance may still close so many tunnels; 0 when none is under way.
    pub fn set_rebalance_left(&self, left: u32) {
        self.rebalance_left.store(left.into(), Relaxed);
    }

    /// A rebalance has told so many tunnels to close.
    pub fn record_rebalance_closes(&self, closes: u32) {
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

    fn meter() -> Arc<NodeMeter> {
        Arc::new(NodeMeter::new("chat".into(), "ws1".into(), 2))
    }

    #[test]
    fn a_seat_is_one_pointer_and_a_shard_has_its_cache_lines_to_itself() {
        assert_eq!(size_of::<NodePermit>(), 8);
        assert_eq!(size_of::<Option<NodePermit>>(), 8);
        assert_eq!((size_of::<MeterShard>(), align_of::<MeterShard>()), (128, 128));
    }

    #[test]
    fn a_peer_cannot_make_labels_with_its_close_codes() {
        let codes = [0, 999, 1000, 1012, 1015, 1016, 2999, 3000, 3999, 4000, 4999, 5000, u16::MAX];
        let labels = codes.map(|code| CLOSE_CODES[close_code_index(code)]);
        let expected = [
            "other", "other", "1000", "1012", "1015", "other", "other", "3xxx", "3xxx", "4xxx", "4xxx",
            "other", "other",
        ];
        assert_eq!(labels, expected);
        assert!((0..=u16::MAX).all(|code| close_code_index(code) < CLOSE_CODES.len()));
    }

    #[test]
    fn every_side_code_result_and_class_has_a_counter_of_its_own() {
        let (meter, pool) = (meter(), PoolMeter::new("chat".into()));
        for (count, side) in CloseSide::ALL.into_iter().enumerate() {
            (0..=count).for_each(|_| meter.record_close(side, 4001));
            assert_eq!(meter.closes(side, 17), count as u64 + 1);
        }
        for (count, result) in HandshakeResult::ALL.into_iter().enumerate() {
            (0..=count).for_each(|_| pool.record_handshake(result));
            assert_eq!(pool.handshakes(result), count as u64 + 1);
        }
        meter.record_probe(true);
        assert_eq!([meter.probes(true), meter.probes(false)], [1, 0]);
    }

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

    #[test]
    fn a_node_is_in_one_state_at_a_time_and_an_unknown_word_is_none() {
        let meter = meter();
        assert_eq!(meter.current_state(), None);
        for state in NODE_STATES {
            meter.set_state(state);
            assert_eq!(meter.current_state(), Some(state));
        }
        meter.set_state("asleep");
        assert_eq!(meter.current_state(), None);
    }

    #[test]
    fn a_thread_that_does_not_exist_counts_on_the_last_shard() {
        let meter = meter();
        meter.shard(99).add(TrafficDirection::In, 5, &[0, 0, 0, 0, 1]);
        assert_eq!(meter.shards[1].totals(), meter.totals());
        assert_eq!(meter.totals().messages[0], [0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_sum_that_overflows_wraps_instead_of_ending_the_relay_thread() {
        let shard = MeterShard::default();
        shard.add(TrafficDirection::Out, u64::MAX, &[u32::MAX; 5]);
        shard.add(TrafficDirection::Out, 2, &[u32::MAX; 5]);
        assert_eq!(shard.totals().bytes, [0, 1]);
        assert_eq!(shard.totals().messages[1], [2 * u64::from(u32::MAX); 5]);
    }
}
