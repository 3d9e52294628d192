//! The plan of a rebalance: how many tunnels each node has, what its share is, and how many it is to give up.

use std::sync::Arc;
use std::time::Duration;

use crate::pool::surplus::{NodeOccupancy, shares, surplus};
use crate::pool::{NodeId, NodeState};
use crate::proxy::UpstreamPool;
use crate::proxy::upstream::Upstream;

/// What a rebalance would do now. Only nodes that are up are in it: no client can be moved to another one, and a drain
/// closes the tunnels of its node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RebalancePlan {
    /// In the order of the config.
    pub nodes: Vec<NodeShare>,
}

/// The tunnels of a node, and its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeShare {
    /// The node.
    pub node: NodeId,
    /// Its place in the pool.
    pub index: usize,
    /// Its tunnels, without those that are being closed.
    pub tunnels: u32,
    /// Its share of all tunnels, by weight.
    pub share: u32,
    /// The tunnels that it is to give up.
    pub surplus: u32,
}

impl RebalancePlan {
    /// The plan of this pool at `now`.
    pub(crate) fn new(pool: &UpstreamPool, tolerance: f64, now: Duration) -> Self {
        Self::without_closing(pool, tolerance, now, |_| 0)
    }

    /// The same, without the tunnels of a node that are `closing`.
    pub(crate) fn without_closing(
        pool: &UpstreamPool,
        tolerance: f64,
        now: Duration,
        closing: impl Fn(&NodeId) -> u32,
    ) -> Self {
        let up = |(index, upstream): (usize, &Arc<Upstream>)| {
            let load = upstream.load(now);
            let staying = load.live.saturating_sub(closing(&upstream.node.id));
            (load.state == NodeState::Up).then(|| (index, upstream.node.clone(), staying))
        };
        let up: Vec<_> = pool.upstreams.iter().enumerate().filter_map(up).collect();
        let occupancies = up.iter().map(|(_, node, tunnels)| NodeOccupancy {
            tunnels: *tunnels,
            weight: node.weight,
            max: node.max_connections,
        });
        let occupancies: Vec<_> = occupancies.collect();
        let counts = shares(&occupancies).into_iter().zip(surplus(&occupancies, tolerance));
        let nodes = up.into_iter().zip(counts).map(|((index, node, tunnels), (share, surplus))| NodeShare {
            node: node.id,
            index,
            tunnels,
            share,
            surplus,
        });
        Self { nodes: nodes.collect() }
    }

    /// How many tunnels are to move.
    pub(crate) fn moves(&self) -> u32 {
        self.nodes.iter().map(|node| node.surplus).sum()
    }

    /// The share of this node; `None` when it is not up.
    pub(crate) fn share_of(&self, node: &NodeId) -> Option<&NodeShare> {
        self.nodes.iter().find(|share| share.node == *node)
    }
}
