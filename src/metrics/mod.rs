//! Every number that the process counts, and their text for Prometheus.
//!
//! `node_meter` and `pool_meter` have the counters, `table` names every metric in one table, `registry` knows the pools
//! and nodes that are counted for, and [`snapshot`] is what the process before this one had counted.
//!
//! Rules: a caller holds its meter and touches only the atomics in it, so no event looks anything up by a label. Labels
//! come from the config, never from a client. Counters survive a reload, because a meter is found again by its names. The
//! sums of a pool never go back: the counts of a removed node are folded into its pool.

mod drain_gauge;
mod labels;
mod meter_shard;
mod node_meter;
mod node_permit;
mod pool_meter;
mod registry;
pub mod snapshot;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mainstay_core::process_metrics::ProcessConstants;
use parking_lot::Mutex;
use prometheus::IntCounter;
use prometheus::proto::MetricFamily;

pub use drain_gauge::DrainGauge;
pub use labels::CloseSide;
pub use labels::ConnectionRefusal;
pub use labels::HandshakeResult;
pub use labels::PanicLocation;
pub(crate) use labels::{AFFINITY_OUTCOMES, AFFINITY_SOURCES, TrafficDirection};
pub use node_meter::NodeMeter;
pub use node_permit::NodePermit;
pub use pool_meter::PoolMeter;
use registry::{NodeEntry, PoolEntry, pool_entry, remove_unused};
use snapshot::CounterSnapshot;

/// All counters of the process.
pub struct Metrics {
    /// Relay threads, so shards per node.
    relay_threads: usize,
    /// The pools by name. Held by `pool`, `node`, `retain` and `render`, never on a session's way.
    pools: Mutex<BTreeMap<Arc<str>, PoolEntry>>,
    /// Requests that no route took; their pool label is the empty string, which no pool of the config has.
    unrouted: PoolMeter,
    /// The generation of the state that new sessions get; 0 before there is one.
    generation: AtomicU64,
    /// Changes of the config: rejected, applied.
    reloads: [AtomicU64; 2],
    /// The last change was applied. The config that the process started with counts as applied here, not above.
    last_reload_applied: AtomicBool,
    /// Upgrades: failed, done.
    upgrades: [AtomicU64; 2],
    /// What a process before this one had counted.
    imported: Mutex<CounterSnapshot>,
    /// What is shown while another process counts on.
    frozen: Mutex<Option<String>>,
    /// Connections that were refused before HTTP began, by [`ConnectionRefusal`].
    refused: [AtomicU64; ConnectionRefusal::ALL.len()],
    /// Sessions and tunnels that a panic ended, by [`PanicLocation`].
    panics: [AtomicU64; PanicLocation::ALL.len()],
    /// Lines that the access log had no room for.
    access_log_dropped: IntCounter,
    /// What of `process_*` never changes.
    process: ProcessConstants,
}

impl Metrics {
    /// No pools yet. Each node will have one shard for each of the `relay_threads`.
    pub fn new(relay_threads: usize) -> Arc<Self> {
        Arc::new(Self {
            relay_threads: relay_threads.max(1),
            pools: Mutex::default(),
            unrouted: PoolMeter::new("".into()),
            generation: AtomicU64::new(0),
            reloads: Default::default(),
            last_reload_applied: AtomicBool::new(true),
            upgrades: Default::default(),
            imported: Mutex::default(),
            frozen: Mutex::default(),
            refused: Default::default(),
            panics: Default::default(),
            access_log_dropped: IntCounter::new("access_log_dropped", "dropped lines")
                .expect("a literal name without a space is a metric name"),
            process: ProcessConstants::read(),
        })
    }

    /// The meter of this pool; a new one when there is none.
    pub fn pool(&self, pool: &str) -> Arc<PoolMeter> {
        Arc::clone(&pool_entry(&mut self.pools.lock(), pool).meter)
    }

    /// The meter of this node of this pool; a new one when there is none.
    pub fn node(&self, pool: &str, node: &str) -> Arc<NodeMeter> {
        let mut pools = self.pools.lock();
        let pool = pool_entry(&mut pools, pool);
        if let Some(known) = pool.nodes.get_mut(node) {
            known.is_removed = false;
            return Arc::clone(&known.meter);
        }
        let meter = Arc::new(NodeMeter::new(Arc::clone(&pool.meter.pool), node.into(), self.relay_threads));
        pool.nodes
            .insert(Arc::clone(&meter.node), NodeEntry { meter: Arc::clone(&meter), is_removed: false });
        meter
    }

    /// Forgets the pools (asked with `None`) and nodes that `live` does not know. One that somebody still counts
    /// for (a tunnel that is being drained, a session of an older generation) is forgotten when the last of them
    /// has let go of its meter.
    pub fn retain(&self, live: &dyn Fn(&str, Option<&str>) -> bool) {
        let mut pools = self.pools.lock();
        for (name, pool) in pools.iter_mut() {
            pool.is_removed = !live(name, None);
            for (id, node) in &mut pool.nodes {
                node.is_removed = pool.is_removed || !live(name, Some(id));
            }
        }
        remove_unused(&mut pools);
    }

    /// A plain request that no route took, answered with this status.
    pub(crate) fn record_unrouted_request(&self, status: u16) {
        self.unrouted.record_request(status);
    }

    /// An upgrade request that no route took, or that ended before one was looked for.
    pub(crate) fn record_unrouted_handshake(&self, result: HandshakeResult) {
        self.unrouted.record_handshake(result);
    }

    /// A connection was refused before HTTP began.
    pub(crate) fn record_refusal(&self, why: ConnectionRefusal) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A panic ended a session there, and nothing else.
    pub(crate) fn record_panic(&self, part: PanicLocation) {
        self.panics[part as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// New sessions get this generation of state from now on.
    pub(crate) fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// A change of the config was applied, or rejected for its faults. A file that is found unchanged is no change.
    pub(crate) fn record_reload(&self, applied: bool) {
        self.reloads[usize::from(applied)].fetch_add(1, Ordering::Relaxed);
        self.last_reload_applied.store(applied, Ordering::Relaxed);
    }

    /// The binary was replaced, or that failed and this process goes on.
    pub(crate) fn record_upgrade(&self, is_done: bool) {
        self.upgrades[usize::from(is_done)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts on from what a process before this one had counted. Said again, it takes the place of what was said
    /// before: that process has counted on meanwhile.
    pub(crate) fn import(&self, carried: CounterSnapshot) {
        *self.imported.lock() = carried;
    }

    /// The counters of now, for another process to count on.
    pub(crate) fn export(&self) -> CounterSnapshot {
        CounterSnapshot::of(&self.families())
    }

    /// Shows what is counted now for ever, because another process counts on from it: none of the two may show less
    /// than the other has shown.
    pub fn freeze(&self) -> CounterSnapshot {
        let families = self.families();
        *self.frozen.lock() = Some(table::encode_text(&families));
        CounterSnapshot::of(&families)
    }

    /// The counter of the lines that the access log dropped, for the log to count on.
    pub fn access_log_dropped(&self) -> IntCounter {
        self.access_log_dropped.clone()
    }

    /// Shows what is counted again: no other process counts on.
    pub(crate) fn unfreeze(&self) {
        *self.frozen.lock() = None;
    }

    /// Everything in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        let held = self.frozen.lock();
        held.clone().unwrap_or_else(|| table::encode_text(&self.families()))
    }

    fn families(&self) -> Vec<MetricFamily> {
        let mut pools = self.pools.lock();
        remove_unused(&mut pools);
        table::families(&table::Scrape {
            carried: &self.imported.lock(),
            upgrades: self.upgrades.each_ref().map(|count| count.load(Ordering::Relaxed)),
            pools: &pools,
            unrouted: &self.unrouted,
            generation: self.generation.load(Ordering::Relaxed),
            reloads: [0, 1].map(|applied| self.reloads[applied].load(Ordering::Relaxed)),
            last_reload_applied: self.last_reload_applied.load(Ordering::Relaxed),
            refused: self.refused.each_ref().map(|count| count.load(Ordering::Relaxed)),
            panics: self.panics.each_ref().map(|count| count.load(Ordering::Relaxed)),
            access_log_dropped: self.access_log_dropped.get(),
            process: self.process.sample(),
        })
    }
}
