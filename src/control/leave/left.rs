//! What is gone and still being left, as it goes over to another process: plain data.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Departure, Gone};
use crate::config::Drain;
use crate::pool::Address;

/// See the module. Whoever reads it may be older or newer: unknown fields are passed over, missing ones mean nobody.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Left {
    /// The pool's name.
    pub pool: String,
    /// The node's name; empty for a route.
    pub node: String,
    /// Where the node was; empty where nobody knows.
    pub address: String,
    /// The route, as sessions have it; empty for a node.
    pub route: String,
    /// The first generation whose tunnels are meant.
    pub since: u32,
    /// The first that is not.
    pub before: u32,
    /// What is left of the window.
    pub over: Duration,
    /// The close code.
    pub code: u16,
    /// The reason in the Close.
    pub reason: String,
    /// Tunnels that have left.
    pub closed: usize,
    /// Its numbers are shown already, for other generations.
    #[serde(skip)]
    pub is_known: bool,
}

impl Left {
    pub(super) fn of(departure: &Departure) -> Self {
        let ((since, before), (drain, begun)) = (departure.generations, &departure.order);
        let (node, address, route) = match &departure.what {
            Gone::Node { node, address, .. } => (node.to_string(), address.to_string(), String::new()),
            Gone::Route { name, .. } => (String::new(), String::new(), name.to_string()),
        };
        Self {
            pool: departure.what.pool().to_string(),
            node,
            address,
            route,
            since,
            before,
            over: drain.over.saturating_sub(begun.elapsed()),
            code: drain.code,
            reason: drain.reason.clone(),
            closed: departure.progress.closed(),
            is_known: false,
        }
    }

    /// How its tunnels leave.
    pub(super) fn order(&self) -> Drain {
        Drain { over: self.over, code: self.code, reason: self.reason.clone() }
    }

    /// `None` for what no version of this program is called.
    pub(super) fn what(&self) -> Option<Gone> {
        let pool = self.pool.as_str().into();
        if self.node.is_empty() {
            return Some(Gone::Route { pool, name: self.route.as_str().into(), route: None });
        }
        let nowhere = || Address::Unix(PathBuf::new());
        let address = self.address.parse().unwrap_or_else(|_| nowhere());
        Some(Gone::Node { pool, node: self.node.parse().ok()?, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_or_newer_form_is_read_and_means_nobody_of_whom_nothing_is_said() {
        let read: Left = serde_json::from_str(r#"{"pool": "chat", "node": "a", "novelty": 1}"#).unwrap();
        assert_eq!((read.since, read.before), (0, 0));
        assert!(matches!(read.what(), Some(Gone::Node { .. })));
        let route = Left { node: String::new(), route: "/".into(), ..read };
        assert!(matches!(route.what(), Some(Gone::Route { route: None, .. })));
    }
}
