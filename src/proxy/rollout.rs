//! The rollout of a pool, from one generation to the next: which release is new, and whether nodes are departing.
//!
//! It is worked out when something about it changes (a node reports another release, the config changes, a node is
//! drained or removed), never for a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use crate::pool::rollout::{Releases, Rollout};
use crate::pool::{Node, NodeId};

/// What is shared by the generations of a pool.
#[derive(Debug, Default)]
pub struct RolloutHistory {
    releases: Mutex<Releases>,
    /// Removed nodes whose tunnels are still being closed.
    departing: AtomicUsize,
}

/// The rollout of a pool in one generation.
#[derive(Debug, Default)]
pub struct RolloutTracker {
    history: Arc<RolloutHistory>,
    /// The rollout that is under way, with the indices of this generation.
    present: ArcSwapOption<Rollout>,
}

impl RolloutTracker {
    /// The same history for the next generation.
    pub fn next(&self) -> Self {
        Self { history: Arc::clone(&self.history), present: ArcSwapOption::empty() }
    }

    /// The rollout that is under way.
    pub fn present(&self) -> Option<Arc<Rollout>> {
        self.present.load_full()
    }

    /// Works the rollout out anew from the nodes of `pool` and the releases that they run.
    pub fn update(&self, pool: &str, nodes: &[(&Node, Option<&str>)]) {
        let mut releases = self.history.releases.lock();
        let before = releases.newest().map(str::to_owned);
        let mut rollout = releases.note(nodes);
        if let Some(rollout) = &mut rollout {
            rollout.is_departing = self.history.departing.load(Relaxed) > 0;
        }
        self.present.store(rollout.map(Arc::new));
        if let Some(release) = releases.newest().filter(|newest| Some(*newest) != before.as_deref()) {
            tracing::info!(pool, release, "rollout detected: clients that move prefer this release");
        }
    }

    /// A node that runs this release is being drained.
    pub fn note_drained(&self, node: &NodeId, release: Option<&str>) {
        self.history.releases.lock().leaves(node, release);
    }

    /// The tunnels of a removed node are being closed, or have been.
    pub fn note_departing(&self, is_departing: bool) {
        let departing = &self.history.departing;
        if is_departing {
            departing.fetch_add(1, Relaxed);
        } else {
            // A pool that was not in the config for a while has counted none of those that it had before.
            let less = |count: usize| Some(count.saturating_sub(1));
            let _ = departing.fetch_update(Relaxed, Relaxed, less);
        }
    }
}
