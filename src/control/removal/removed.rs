//! What a reload removes: the nodes and routes that are in the old config and not in the new one.

use std::sync::Arc;

use crate::config::{Config, Drain, is_still_there};
use crate::pool::{Node, NodeAddress, NodeId};
use crate::route::Route;

/// A removed node or route.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Removed {
    /// A node from its address.
    Node { pool: Arc<str>, node: NodeId, address: NodeAddress },
    /// A route; the pool that it led to is there.
    Route {
        pool: Arc<str>,
        name: Arc<str>,
        /// `None` where another process has removed it.
        route: Option<Route>,
    },
}

/// Generations of the config: from `since` on, and before `before`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generations {
    pub since: u32,
    pub before: u32,
}

impl Generations {
    pub(super) fn contains(self, generation: u32) -> bool {
        (self.since..self.before).contains(&generation)
    }
}

impl Removed {
    /// A node of a pool, from its present address.
    pub(super) fn node(pool: &Arc<str>, node: &Node) -> Self {
        Self::Node { pool: Arc::clone(pool), node: node.id.clone(), address: node.address.clone() }
    }

    /// A route of the old config.
    pub(super) fn route(route: &Route) -> Self {
        Self::Route { pool: Arc::clone(&route.pool), name: route.name().into(), route: Some(route.clone()) }
    }

    pub(super) fn pool(&self) -> &Arc<str> {
        match self {
            Self::Node { pool, .. } | Self::Route { pool, .. } => pool,
        }
    }

    /// Whether a tunnel of this pool, node and route is one of its tunnels.
    pub(super) fn has(&self, tunnel_pool: &str, tunnel_node: &str, tunnel_route: &str) -> bool {
        **self.pool() == *tunnel_pool
            && match self {
                Self::Node { node, .. } => node.as_str() == tunnel_node,
                Self::Route { name, .. } => **name == *tunnel_route,
            }
    }

    /// Whether a config has it.
    pub(super) fn is_in(&self, config: &Config) -> bool {
        match self {
            Self::Node { pool, node, address } => {
                let known = config.pools.iter().find(|known| known.name == *pool);
                let same = |known: &Node| known.id == *node && known.address == *address;
                known.is_some_and(|known| known.nodes.iter().any(same))
            }
            Self::Route { route: Some(route), .. } => is_still_there(route, &config.routes),
            Self::Route { pool, name, route: None } => {
                config.routes.iter().any(|known| known.name() == **name && known.pool == *pool)
            }
        }
    }
}

/// Whether a config has this pool, or this node of it.
pub(in crate::control) fn is_in_config(config: &Config, pool: &str, node: Option<&str>) -> bool {
    let known = config.pools.iter().find(|known| *known.name == *pool);
    known.is_some_and(|pool| node.is_none_or(|node| pool.nodes.iter().any(|known| known.id.as_str() == node)))
}

/// The nodes that are at an address in `old` and not in `new`, with the drain of their pool: as it says now, or said
/// last.
pub(super) fn removed_nodes<'a>(
    old: &'a Config,
    new: &'a Config,
) -> Vec<(&'a Arc<str>, &'a Node, &'a Drain)> {
    let mut removed = Vec::new();
    for pool in &old.pools {
        let now = new.pools.iter().find(|other| other.name == pool.name);
        let is_there = |node: &&Node| {
            let same = |other: &Node| other.id == node.id && other.address == node.address;
            now.is_some_and(|pool| pool.nodes.iter().any(same))
        };
        let nodes = pool.nodes.iter().filter(|node| !is_there(node));
        removed.extend(nodes.map(|node| (&pool.name, node, &now.unwrap_or(pool).drain)));
    }
    removed
}

/// The routes of `old` whose tunnels have no route in `new`, as long as their pool is there: else its nodes are removed.
pub(super) fn removed_routes<'a>(old: &'a Config, new: &'a Config) -> Vec<(&'a Route, &'a Drain)> {
    let removed = old.routes.iter().filter(|route| !is_still_there(route, &new.routes));
    let drain = |route: &Route| Some(&new.pools.iter().find(|pool| pool.name == route.pool)?.drain);
    removed.filter_map(|route| Some((route, drain(route)?))).collect()
}
