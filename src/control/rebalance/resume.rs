//! A rebalance under way, as it goes over to another process: plain data.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::plan::RebalancePlan;
use crate::config::Rebalance;

/// What a rebalance has still to do. The process that reads it may be older or newer: unknown fields are ignored, and
/// with missing ones it moves no client.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingRebalance {
    /// The pool's name.
    pub pool: String,
    /// What is left of the window.
    pub over: Duration,
    /// See [`Rebalance`].
    pub tolerance: f64,
    /// See [`Rebalance`].
    pub quiet_first: bool,
    /// An operator ordered it, whatever the config says.
    pub is_ordered: bool,
    /// When it began, since 1970: sessions that were opened later are not moved.
    pub begun: Duration,
    /// How many more tunnels each overfull node may give up.
    pub left: BTreeMap<String, u32>,
}

impl PendingRebalance {
    /// Its settings, with what is left of the window.
    pub(super) fn settings(&self) -> Rebalance {
        Rebalance { over: self.over, tolerance: self.tolerance, quiet_first: self.quiet_first }
    }

    /// When it began.
    pub(super) fn begun(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.begun
    }

    /// Limits the surplus of each node to what is left of the earlier plan.
    pub(super) fn limit(&self, plan: &mut RebalancePlan) {
        for share in &mut plan.nodes {
            let left = self.left.get(share.node.as_str()).copied().unwrap_or(0);
            share.surplus = share.surplus.min(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::NodeShare;
    use super::*;

    #[test]
    fn a_resumed_rebalance_moves_no_more_tunnels_than_were_left() {
        let share = |node: &str, surplus| NodeShare {
            node: node.parse().unwrap(),
            index: 0,
            tunnels: 100,
            share: 50,
            surplus,
        };
        let mut plan = RebalancePlan { nodes: vec![share("a", 50), share("b", 3), share("c", 9)] };
        let left = [("a".to_owned(), 7), ("b".to_owned(), 7)].into();
        PendingRebalance { left, ..PendingRebalance::default() }.limit(&mut plan);
        let surplus: Vec<u32> = plan.nodes.iter().map(|share| share.surplus).collect();
        assert_eq!(surplus, [7, 3, 0]);
    }

    #[test]
    fn an_older_or_newer_form_is_read_and_missing_fields_move_no_client() {
        let read: PendingRebalance = serde_json::from_str(r#"{"pool": "chat", "novelty": 1}"#).unwrap();
        assert_eq!((&*read.pool, read.begun(), read.left.len()), ("chat", SystemTime::UNIX_EPOCH, 0));
    }
}
