//! What a rebalance would do now: how many tunnels each node has, what its share is, how many it would give up.

use std::sync::Arc;
use std::time::Duration;

use crate::pool::surplus::{Standing, shares, surplus};
use crate::pool::{NodeId, NodeState};
use crate::proxy::UpstreamPool;
use crate::proxy::upstream::Upstream;

/// See the module. Only nodes that are up are in it: nobody can be moved to another, and one that is drained has its
/// own closing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// In the order of the config.
    pub stands: Vec<Stand>,
}

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    /// The node.
    pub node: NodeId,
    /// Its place in the pool.
    pub index: usize,
    /// Its tunnels, but for those that are not to count.
    pub live: u32,
    /// Its share of all tunnels, by weight.
    pub share: u32,
    /// The tunnels that it is to give up.
    pub surplus: u32,
}

impl Outlook {
    /// Of this pool at `now`.
    pub fn of(pool: &UpstreamPool, tolerance: f64, now: Duration) -> Self {
        Self::of_staying(pool, tolerance, now, |_| 0)
    }

    /// The same, without those that are `leaving` a node.
    pub fn of_staying(
        pool: &UpstreamPool,
        tolerance: f64,
        now: Duration,
        leaving: impl Fn(&NodeId) -> u32,
    ) -> Self {
        let up = |(index, upstream): (usize, &Arc<Upstream>)| {
            let load = upstream.load(now);
            let staying = load.live.saturating_sub(leaving(&upstream.node.id));
            (load.state == NodeState::Up).then(|| (index, upstream.node.clone(), staying))
        };
        let up: Vec<_> = pool.upstreams.iter().enumerate().filter_map(up).collect();
        let standings = up.iter().map(|(_, node, live)| Standing {
            live: *live,
            weight: node.weight,
            max: node.max_connections,
        });
        let standings: Vec<_> = standings.collect();
        let counts = shares(&standings).into_iter().zip(surplus(&standings, tolerance));
        let stands = up.into_iter().zip(counts).map(|((index, node, live), (share, surplus))| Stand {
            node: node.id,
            index,
            live,
            share,
            surplus,
        });
        Self { stands: stands.collect() }
    }

    /// How many tunnels are to move.
    pub fn moves(&self) -> u32 {
        self.stands.iter().map(|stand| stand.surplus).sum()
    }

    /// Where this node stands; `None` when it is not up.
    pub fn of_node(&self, node: &NodeId) -> Option<&Stand> {
        self.stands.iter().find(|stand| stand.node == *node)
    }
}
