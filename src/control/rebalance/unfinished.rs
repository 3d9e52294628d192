//! A rebalance under way, as another process goes on with it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::outlook::Outlook;
use crate::config::Rebalance;

/// See the module. Whoever reads it may be older or newer: unknown fields are passed over, missing ones move nobody.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unfinished {
    /// The pool's name.
    pub pool: String,
    /// What is left of the window.
    pub over: Duration,
    /// See [`Rebalance`].
    pub tolerance: f64,
    /// See [`Rebalance`].
    pub quiet_first: bool,
    /// An operator wants it, whatever the config says.
    pub is_ordered: bool,
    /// When it began, since 1970: who came later is not moved.
    pub begun: Duration,
    /// How many more each crowded node may give up.
    pub left: BTreeMap<String, u32>,
}

impl Unfinished {
    /// Its rule, over what is left of the window.
    pub(super) fn rule(&self) -> Rebalance {
        Rebalance { over: self.over, tolerance: self.tolerance, quiet_first: self.quiet_first }
    }

    /// When it began.
    pub(super) fn begun(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.begun
    }

    /// Takes from `outlook` what was not to be moved.
    pub(super) fn limit(&self, outlook: &mut Outlook) {
        for stand in &mut outlook.stands {
            let left = self.left.get(stand.node.as_str()).copied().unwrap_or(0);
            stand.surplus = stand.surplus.min(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::outlook::Stand;
    use super::*;

    #[test]
    fn no_node_gives_up_more_than_it_had_still_to() {
        let stand = |node: &str, surplus| Stand {
            node: node.parse().unwrap(),
            index: 0,
            live: 100,
            share: 50,
            surplus,
        };
        let mut outlook = Outlook { stands: vec![stand("a", 50), stand("b", 3), stand("c", 9)] };
        let left = [("a".to_owned(), 7), ("b".to_owned(), 7)].into();
        Unfinished { left, ..Unfinished::default() }.limit(&mut outlook);
        let surplus: Vec<u32> = outlook.stands.iter().map(|stand| stand.surplus).collect();
        assert_eq!(surplus, [7, 3, 0]);
    }

    #[test]
    fn an_older_or_newer_form_is_read_and_moves_nobody_of_whom_nothing_is_said() {
        let read: Unfinished = serde_json::from_str(r#"{"pool": "chat", "novelty": 1}"#).unwrap();
        assert_eq!((&*read.pool, read.begun(), read.left.len()), ("chat", SystemTime::UNIX_EPOCH, 0));
    }
}
