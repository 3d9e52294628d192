//! What a pool knows of a rollout, from one generation to the next: which release is new, and who is being left.
//!
//! It is worked out when something about it changes (a node says that it runs another release, the config changes, a
//! node is drained or left), never for a session, which finds it ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::UpstreamPool;
use super::upstream::Upstream;
use crate::pool::Node;
use crate::pool::rollout::{Releases, Rollout};

/// What outlives a generation of a pool.
#[derive(Debug, Default)]
pub struct History {
    releases: Mutex<Releases>,
    /// Nodes that were taken out and are still being left.
    departing: AtomicUsize,
}

/// What one generation of a pool has of it.
#[derive(Debug, Default)]
pub struct Watch {
    history: Arc<History>,
    /// The rollout that is under way, with the indices of this generation.
    present: ArcSwapOption<Rollout>,
}

impl Watch {
    /// The same history for the next generation.
    pub fn next(&self) -> Self {
        Self { history: Arc::clone(&self.history), present: ArcSwapOption::empty() }
    }

    /// The rollout that is under way.
    pub fn present(&self) -> Option<Arc<Rollout>> {
        self.present.load_full()
    }
}

impl UpstreamPool {
    /// Looks at what the nodes run now.
    pub fn note_releases(&self) {
        let mut releases = self.rollout.history.releases.lock();
        let before = releases.newest().map(str::to_owned);
        let said: Vec<Option<String>> =
            self.upstreams.iter().map(|upstream| upstream.running_release()).collect();
        let nodes = self.upstreams.iter().zip(&said);
        let nodes: Vec<(&Node, Option<&str>)> =
            nodes.map(|(upstream, release)| (&upstream.node, release.as_deref())).collect();
        let mut rollout = releases.note(&nodes);
        if let Some(rollout) = &mut rollout {
            rollout.is_departing = self.rollout.history.departing.load(Relaxed) > 0;
        }
        self.rollout.present.store(rollout.map(Arc::new));
        if let Some(release) = releases.newest().filter(|newest| Some(*newest) != before.as_deref()) {
            tracing::info!(pool = %self.config.name, release, "clients that move go to nodes of this release");
        }
    }

    /// This node is being drained.
    pub fn note_drained(&self, upstream: &Upstream) {
        let release = upstream.running_release();
        self.rollout.history.releases.lock().leaves(&upstream.node.id, release.as_deref());
        self.note_releases();
    }

    /// A node that was taken out is being left, or has been.
    pub fn note_departing(&self, is_departing: bool) {
        let departing = &self.rollout.history.departing;
        if is_departing {
            departing.fetch_add(1, Relaxed);
        } else {
            // A pool that was gone for a while has counted none of those that it had before.
            let less = |count: usize| Some(count.saturating_sub(1));
            let _ = departing.fetch_update(Relaxed, Relaxed, less);
        }
        self.note_releases();
    }
}
