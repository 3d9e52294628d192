//! The rollout of a pool, from one generation to the next: which release is new, and whether removed nodes still have
//! clients.
//!
//! It is determined when something about it changes (a node says that it runs another release, the config changes, a node
//! is drained or removed), never for a session, which only reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::upstream::Upstream;
use crate::pool::Node;
use crate::pool::rollout::{ReleaseHistory, Rollout};

/// The rollout of a pool in one generation.
#[derive(Debug, Default)]
pub(crate) struct PoolRollout {
    shared: Arc<SharedRollout>,
    /// The rollout that is under way, with the indices of this generation.
    current: ArcSwapOption<Rollout>,
}

/// What the generations of a pool share.
#[derive(Debug, Default)]
struct SharedRollout {
    releases: Mutex<ReleaseHistory>,
    /// Removed nodes whose clients still have to move.
    removed_nodes: AtomicUsize,
}

impl PoolRollout {
    /// The same history, for the next generation.
    pub(crate) fn next(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), current: ArcSwapOption::empty() }
    }

    /// The rollout that is under way.
    pub(crate) fn current(&self) -> Option<Arc<Rollout>> {
        self.current.load_full()
    }

    /// Determines the rollout anew from the releases that the nodes run now.
    pub(crate) fn update(&self, pool: &str, upstreams: &[Arc<Upstream>]) {
        let mut releases = self.shared.releases.lock();
        let before = releases.newest().map(str::to_owned);
        let running: Vec<Option<String>> =
            upstreams.iter().map(|upstream| upstream.running_release()).collect();
        let nodes = upstreams.iter().zip(&running);
        let nodes: Vec<(&Node, Option<&str>)> =
            nodes.map(|(upstream, release)| (&upstream.node, release.as_deref())).collect();
        let mut rollout = releases.observe(&nodes);
        if let Some(rollout) = &mut rollout {
            rollout.has_removed_nodes = self.shared.removed_nodes.load(Relaxed) > 0;
        }
        self.current.store(rollout.map(Arc::new));
        if let Some(release) = releases.newest().filter(|newest| Some(*newest) != before.as_deref()) {
            tracing::info!(pool, release, "new release found, clients that move are sent to its nodes");
        }
    }

    /// Records that a node is drained. The caller then [updates](Self::update) the rollout, as after the next two.
    pub(crate) fn record_drain(&self, upstream: &Upstream) {
        let release = upstream.running_release();
        self.shared.releases.lock().record_leaving(&upstream.node.id, release.as_deref());
    }

    /// Records that a node was removed and its clients have to move.
    pub(crate) fn begin_removal(&self) {
        self.shared.removed_nodes.fetch_add(1, Relaxed);
    }

    /// Records that the clients of a removed node have moved.
    pub(crate) fn end_removal(&self) {
        // A pool that was removed for a while has not counted the removals of the time before.
        let less = |count: usize| Some(count.saturating_sub(1));
        let _ = self.shared.removed_nodes.fetch_update(Relaxed, Relaxed, less);
    }
}
