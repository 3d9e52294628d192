//! The counters of one node of one pool.
//!
//! A relay thread counts bytes and messages on its own [`MeterShard`]: one writer, so a plain load and store, no
//! locked instruction, no cache line that two threads write. What happens once per session (a handshake, a close)
//! is an atomic addition. Nothing here allocates or locks after its creation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::drain_gauge::DrainGauge;
use super::labels::{CLOSE_CODES, CloseSide, NODE_STATES, close_code_index};
use super::meter_shard::{MeterShard, RelayedTotals};

/// Not yet in one of [`NODE_STATES`].
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
    pub(super) live: AtomicU32,
    /// The most tunnels that the node takes; 0 is no limit.
    capacity: AtomicU32,
    /// The node's own word about its load, used / max, as the bits of an `f64`; [`NO_LOAD`] without one.
    reported: AtomicU64,
    /// Index into [`NODE_STATES`], or [`NO_STATE`].
    state: AtomicU8,
    /// The node's drain, asked at each scrape; `None` without one. Locked for a moment, on no session's way.
    drain: Mutex<Option<DrainGauge>>,
    /// Tunnels that ended, by [`CloseSide`] and by index into [`CLOSE_CODES`].
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
    pub(crate) fn shard(&self, thread: usize) -> &MeterShard {
        &self.shards[thread.min(self.shards.len() - 1)]
    }

    /// Tunnels that are open now.
    pub(crate) fn live(&self) -> u32 {
        self.live.load(Relaxed)
    }

    /// A tunnel ended: who ended it, and with which close code (1006 when there was none).
    pub(crate) fn record_close(&self, side: CloseSide, code: u16) {
        self.closes[side as usize][close_code_index(code)].fetch_add(1, Relaxed);
    }

    /// A health probe was answered as it should be, or not.
    pub(crate) fn record_probe(&self, ok: bool) {
        self.probes[usize::from(ok)].fetch_add(1, Relaxed);
    }

    /// The node is in this state now, one of `up`, `down`, `draining`, `removed`; any other word is in none.
    pub(crate) fn set_state(&self, state: &'static str) {
        let index = NODE_STATES.iter().position(|known| *known == state);
        let index = index.and_then(|index| u8::try_from(index).ok());
        self.state.store(index.unwrap_or(NO_STATE), Relaxed);
    }

    /// The most tunnels that the node takes; `None` is no limit.
    pub(crate) fn set_capacity(&self, max: Option<u32>) {
        self.capacity.store(max.unwrap_or(0), Relaxed);
    }

    /// What the node says of itself: its connections and the most that it takes, all balancers together. `None`
    /// when it says nothing (any more); a most of 0 is as nothing.
    pub(crate) fn set_reported_load(&self, load: Option<(u64, u64)>) {
        let load = load.filter(|(_, max)| *max > 0);
        let bits = load.map_or(NO_LOAD, |(used, max)| (used as f64 / max as f64).to_bits());
        self.reported.store(bits, Relaxed);
    }

    /// The node's own word about its load; else live tunnels per allowed tunnel, `None` without a limit.
    pub(crate) fn utilization(&self) -> Option<f64> {
        match (self.reported.load(Relaxed), self.capacity.load(Relaxed)) {
            (NO_LOAD, 0) => None,
            (NO_LOAD, max) => Some(f64::from(self.live()) / f64::from(max)),
            (bits, _) => Some(f64::from_bits(bits)),
        }
    }

    /// The node is being drained, or is no longer.
    pub(crate) fn set_drain(&self, drain: Option<DrainGauge>) {
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
        write!(f, "NodeMeter({}/{}, {} live)", self.pool, self.node, self.live())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::{HandshakeResult, TrafficDirection};
    use crate::metrics::node_permit::NodePermit;
    use crate::metrics::pool_meter::PoolMeter;

    fn meter() -> Arc<NodeMeter> {
        Arc::new(NodeMeter::new("chat".into(), "ws1".into(), 2))
    }

    #[test]
    fn a_permit_is_one_pointer_and_a_shard_has_its_cache_lines_to_itself() {
        assert_eq!(size_of::<NodePermit>(), 8);
        assert_eq!(size_of::<Option<NodePermit>>(), 8);
        assert_eq!((size_of::<MeterShard>(), align_of::<MeterShard>()), (128, 128));
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
