//! The pools and nodes that are counted for, and when one is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::meter_shard::RelayedTotals;
use super::node_meter::NodeMeter;
use super::pool_meter::PoolMeter;

/// One pool that is counted for.
pub(super) struct PoolEntry {
    pub meter: Arc<PoolMeter>,
    /// The nodes by name.
    pub nodes: BTreeMap<Arc<str>, NodeEntry>,
    /// What the nodes that are forgotten had relayed.
    pub folded: RelayedTotals,
    /// No longer in the config: forgotten as soon as nothing counts for it.
    pub is_removed: bool,
}

/// One node that is counted for.
pub(super) struct NodeEntry {
    pub meter: Arc<NodeMeter>,
    /// No longer in the config: forgotten as soon as nothing counts for it.
    pub is_removed: bool,
}

pub(super) fn pool_entry<'a>(pools: &'a mut BTreeMap<Arc<str>, PoolEntry>, name: &str) -> &'a mut PoolEntry {
    let name: Arc<str> = name.into();
    let pool = pools.entry(Arc::clone(&name)).or_insert_with(|| PoolEntry {
        meter: Arc::new(PoolMeter::new(name)),
        nodes: BTreeMap::new(),
        folded: RelayedTotals::default(),
        is_removed: false,
    });
    pool.is_removed = false;
    pool
}

/// Removes what is gone and held by nobody else. Only then is a node's sum final; and with the map locked nobody
/// can take hold of its meter again while it is folded.
pub(super) fn remove_unused(pools: &mut BTreeMap<Arc<str>, PoolEntry>) {
    pools.retain(|_, pool| {
        pool.nodes.retain(|_, node| {
            // `get_mut` also synchronises with the threads that let go, so their last counts are seen.
            let last = node.is_removed && Arc::get_mut(&mut node.meter).is_some();
            if last {
                pool.folded.add(&node.meter.totals());
            }
            !last
        });
        !(pool.is_removed && pool.nodes.is_empty() && Arc::get_mut(&mut pool.meter).is_some())
    });
}
