//! What the nodes carry at the moment of a selection.

use crate::pool::NodeState;

/// Tunnels below which a node is not held to the load bound.
pub(super) const LOAD_BOUND_MIN_TUNNELS: u32 = 10;

/// What changes about a node from one selection to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeLoad {
    /// Only a node that is up is a candidate.
    pub state: NodeState,
    /// Its live tunnels, whole process.
    pub live: u32,
    /// How much of its weight counts under `least_connections` and `random_two`, 0 to 1: slow start.
    pub slow_start_factor: f32,
    /// It has more tunnels than its share while the pool is being rebalanced.
    pub is_above_share: bool,
    /// It is down, but good enough to serve when no other node can.
    pub is_last_resort: bool,
}

/// What the nodes that are up carry together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TotalLoad {
    pub live: u64,
    pub weight: u32,
}

impl TotalLoad {
    #[inline]
    pub(super) fn add(&mut self, load: NodeLoad, weight: u32) {
        self.live += u64::from(load.live);
        // Of another width than `live`, or the compiler puts both into one vector and the loop takes half as
        // long again. It would take four million nodes of the greatest weight to wrap.
        self.weight = self.weight.wrapping_add(weight);
    }
}
