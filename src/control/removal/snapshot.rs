//! A removal that is under way, as it goes over to another process: plain data.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::removed::{Generations, Removed};
use crate::config::Drain;
use crate::pool::NodeAddress;
use crate::proxy::drain::ActiveDrain;

/// A removal that is under way. The process that reads it may be older or newer: unknown fields are ignored, and with
/// missing ones it selects no tunnel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemovalSnapshot {
    /// The pool's name.
    pub pool: String,
    /// The node's name; empty for a route.
    pub node: String,
    /// The node's address; empty where it is not known.
    pub address: String,
    /// The route, as sessions have it; empty for a node.
    pub route: String,
    /// The first generation whose tunnels are drained.
    pub since: u32,
    /// The first that is not.
    pub before: u32,
    /// What is left of the window.
    pub over: Duration,
    /// The close code.
    pub code: u16,
    /// The reason in the Close.
    pub reason: String,
    /// Tunnels that have closed.
    pub closed: usize,
    /// Its metrics are shown already, for other generations.
    #[serde(skip)]
    pub is_known: bool,
}

impl RemovalSnapshot {
    pub(super) fn new(removed: &Removed, generations: Generations, drain: &ActiveDrain) -> Self {
        let (node, address, route) = match removed {
            Removed::Node { node, address, .. } => (node.to_string(), address.to_string(), String::new()),
            Removed::Route { name, .. } => (String::new(), String::new(), name.to_string()),
        };
        Self {
            pool: removed.pool().to_string(),
            node,
            address,
            route,
            since: generations.since,
            before: generations.before,
            over: drain.remaining_order().over,
            code: drain.order.code,
            reason: drain.order.reason.clone(),
            closed: drain.closed(),
            is_known: false,
        }
    }

    /// The generations whose tunnels are drained.
    pub(super) fn generations(&self) -> Generations {
        Generations { since: self.since, before: self.before }
    }

    /// How its tunnels are drained.
    pub(super) fn order(&self) -> Drain {
        Drain { over: self.over, code: self.code, reason: self.reason.clone() }
    }

    /// What was removed; `None` for a name that no version of this program allows.
    pub(super) fn removed(&self) -> Option<Removed> {
        let pool = self.pool.as_str().into();
        if self.node.is_empty() {
            return Some(Removed::Route { pool, name: self.route.as_str().into(), route: None });
        }
        let nowhere = || NodeAddress::Unix(PathBuf::new());
        let address = self.address.parse().unwrap_or_else(|_| nowhere());
        Some(Removed::Node { pool, node: self.node.parse().ok()?, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_or_newer_snapshot_is_read_and_selects_no_tunnel_without_generations() {
        let read: RemovalSnapshot =
            serde_json::from_str(r#"{"pool": "chat", "node": "a", "novelty": 1}"#).unwrap();
        assert_eq!((read.since, read.before), (0, 0));
        assert!(matches!(read.removed(), Some(Removed::Node { .. })));
        let route = RemovalSnapshot { node: String::new(), route: "/".into(), ..read };
        assert!(matches!(route.removed(), Some(Removed::Route { route: None, .. })));
    }
}
